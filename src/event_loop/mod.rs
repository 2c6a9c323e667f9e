//! One loop's state, [`Loop`], and what belongs to the loop and to no connection of it: who gets in, the memory, the time, the work
//! that handlers leave.
//!
//! `connection/` and `exchange/` are the handlers that work on it, `reactor.rs` is the turn that calls them.
//!
//! | file | what |
//! |---|---|
//! | `account` | what is counted of an exchange, and its line in the log |
//! | `admission` | listeners, and the limit on connections |
//! | `apps` | what is served, and how a new configuration takes the place of an old one |
//! | `compress` | answers that are compressed on their way to the client |
//! | `files` | files that are served: what is known of them, and their way to the client |
//! | `front` | what stands in front of a listener: PROXY protocol headers, and whose word about a request's origin counts |
//! | `gate` | who gets in by a route, and how often |
//! | `hub` | hubs: who listens to which topics, and the way of messages to them |
//! | `inside` | documents about the inside of the server, and who gets them |
//! | `progress` | whether clients take what they are sent |
//! | `memory` | where bytes are that wait, and who goes on when memory comes back |
//! | `secure` | TLS: what clients send is taken apart, what they are sent is sealed |
//! | `spool` | answers that wait in a file for their client |
//! | `spooled_body` | request bodies that are gathered in a file |
//! | `verdict` | what the end of a worker's connection means |
//! | `routes` | where a request goes, and what the loop itself says there |
//!
//! Rule: handlers never call each other in circles: what must be looked at again goes onto a list that the reactor works off after
//! each event ([`Loop::work_off`]).

mod account;
mod admission;
mod apps;
mod compress;
mod files;
mod forward;
mod front;
mod gate;
mod hub;
mod inside;
mod memory;
mod progress;
mod routes;
mod secure;
mod spool;
mod spooled_body;
mod verdict;

pub(crate) use account::Answered;
pub use admission::Admission;
pub(crate) use admission::{ADMIN_PLACES, Accepting, Listener};
pub(crate) use apps::{Apps, Seat};
pub(crate) use compress::{Coded, wish};
pub use files::MOST_OPEN;
pub(crate) use files::Sending;
use forward::is_named;
pub(crate) use forward::{Word, Words};
pub(crate) use front::{Arrival, Tolds};
pub(crate) use gate::{Entrance, Gate, Paid, Pass};
pub(crate) use hub::{Asked, Hubs, Subscriber};
pub(crate) use memory::Memory;
pub use memory::{RESERVED_SHARE, Scarcity};
pub(crate) use routes::{Leads, LoopRoute, Route, Routes, Written};
pub(crate) use secure::{Secure, send};
pub(crate) use spool::Unspooled;
pub(crate) use spooled_body::SpooledBody;
pub(crate) use verdict::VERDICT;

use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::access::TOLD;
use crate::backends::{Backend, Sock};
use crate::buffers::slots::{Key, Slots};
use crate::buffers::wheel::Wheel;
use crate::config::Settings;
use crate::connection::Table;
use crate::day::Day;
use crate::dispatch::Grant;
use crate::exchange::Exchange;
use crate::helpers::{Helpers, Kind};
use crate::http::fields::Fields;
use crate::http::head::HeadLimits;
use crate::http::origin::Origin;
use crate::http::route::Edits;
use crate::limits::InFlight;
use crate::log::{AccessLog, Log};
use crate::mailbox::desk::Desk;
use crate::mailbox::{Message, Postboxes};
use crate::metrics::{Counters, OwnCounters};
use crate::spool::Spools;

/// What all loops of a server share.
pub struct Shared {
    /// The checked configuration that the server was started with. What holds now, each loop has for itself.
    pub settings: Arc<Settings>,
    /// The way to every loop.
    pub postboxes: Postboxes,
    /// Where events are told.
    pub log: Log,
    /// How many connections there are in all loops.
    pub admission: Admission,
    /// Whether answers wait for memory.
    pub scarcity: Scarcity,
    /// Who knows what the loops do not.
    pub desk: Desk,
    /// Who does for the loops what would block them.
    pub helpers: Helpers,
    /// What all have in the spool.
    pub spools: Spools,
    /// Writes the `/status` document.
    pub status: Box<dyn Fn() -> String + Send + Sync>,
}

impl Shared {
    /// Has a helper do for that loop what would block it: what came of it comes by mail, as the message that is made of it; `None`
    /// stands for a panic. `false`: the line is full, and the request that it is for is to be answered 503.
    pub fn ask_helper<T>(
        &self,
        (loop_index, counters): (u16, &Counters),
        kind: Kind,
        work: impl FnOnce() -> T + Send + 'static,
        message: impl FnOnce(Option<T>) -> Message + Send + 'static,
    ) -> bool {
        let postboxes = self.postboxes.clone();
        self.have_done(counters, kind, work, move |done| postboxes.post(loop_index, message(done)))
    }

    /// The same of what is told by `tell`, on the helper's thread, to whomever it concerns.
    pub fn have_done<T>(
        &self,
        counters: &Counters,
        kind: Kind,
        work: impl FnOnce() -> T + Send + 'static,
        tell: impl FnOnce(Option<T>) + Send + 'static,
    ) -> bool {
        let taken = self.helpers.ask(kind, work, tell);
        counters.helper_jobs.add(1);
        counters.helper_refusals.add(u64::from(!taken));
        taken
    }
}

/// What time it is, and what is due when.
pub(crate) struct Time {
    /// The turn's.
    pub now: Instant,
    pub day: Day,
    /// Deadlines of connections, by socket.
    pub connections: Wheel,
    /// Deadlines of exchanges, by entry. Never taken away, but found void.
    pub exchanges: Wheel,
    /// When to let go of files that are open for whoever asks next, in nanoseconds as [`Time::nanos`] has them; [`u64::MAX`]: none are.
    pub files: u64,
}

impl Time {
    /// Begins a turn.
    #[inline]
    pub fn turn(&mut self, now: Instant) {
        self.now = now;
        let nanos = self.connections.turn(now);
        self.exchanges.turn_at(nanos);
        self.day.tick(nanos);
    }

    /// How long the loop may sleep before something is due.
    #[inline]
    pub fn sleep(&self) -> Option<Duration> {
        let until = self.connections.looks_at().min(self.exchanges.looks_at()).min(self.files);
        (until < u64::MAX).then(|| Duration::from_nanos(until.saturating_sub(self.nanos())))
    }

    /// The turn's, in nanoseconds since the loop's start: for what is compared more often than is cheap with `Instant`.
    #[inline]
    pub fn nanos(&self) -> u64 {
        self.connections.now_nanos()
    }

    /// The time of the turn when it was so many nanoseconds after the loop's start.
    pub fn instant(&self, nanos: u64) -> Instant {
        self.now.checked_sub(Duration::from_nanos(self.nanos() - nanos)).unwrap_or(self.now)
    }
}

/// How heads are parsed.
pub(crate) struct Heads {
    pub limits: HeadLimits,
    /// The fields of the head in hand.
    pub fields: Fields,
    /// Where the request in hand comes from.
    pub origin: Origin,
    /// The lines that tell who has sent it, where a route has found out.
    pub identity: Vec<u8>,
    /// The lines that tell its client what is left of its limits, where these say so, each with its end.
    pub quota: Vec<u8>,
    /// What another app has said of it, where one is asked.
    pub word: Option<Word>,
    /// The same of those that wait.
    pub words: Words,
    /// Who answers it, where not everybody may come in.
    pub route: Option<Route>,
    /// Its place among those that its route may have under way.
    pub seat: Option<InFlight>,
    /// What has come out of an encoder, until it is sent.
    pub coded: Vec<u8>,
    /// The next request's id: a random start, so that ids of two loops or two servers do not meet.
    pub next_id: u64,
}

impl Heads {
    pub fn new(settings: &Settings, next_id: u64) -> Heads {
        let limits = HeadLimits::new(settings.bounds.head, settings.bounds.fields);
        Heads {
            limits,
            fields: Fields::default(),
            origin: Origin::default(),
            identity: Vec::new(),
            quota: Vec::new(),
            word: None,
            words: Words::default(),
            route: None,
            seat: None,
            coded: Vec::new(),
            next_id,
        }
    }

    /// The line that says who has sent the request in hand, where that is known.
    pub fn user(&self) -> Option<&[u8]> {
        self.identity.split_inclusive(|byte| *byte == b'\n').find(|line| is_named(line, TOLD[0]))
    }

    /// What becomes of the fields of the answer to the request in hand, on a route that changes so much of it.
    #[inline]
    pub fn edits(&self, of_route: &Option<Rc<Edits>>) -> Option<Rc<Edits>> {
        if self.quota.is_empty() {
            return of_route.clone();
        }
        Some(Rc::new(Edits::and(of_route.as_deref(), &[], &self.quota)))
    }
}

/// Something that the handler of an event has left to be done.
pub(crate) enum Task {
    /// A permit came to an exchange of this loop.
    Start(Grant),
    /// An exchange asks for a permit again.
    Ask(Key),
    /// A client's input can be looked at again.
    Resume(Sock),
    /// A client has said inside that it has finished sending.
    End(Sock),
}

/// One loop's state: everything that its handlers work on.
pub(crate) struct Loop<B: Backend> {
    pub backend: B,
    pub shared: Arc<Shared>,
    pub index: u16,
    pub table: Table,
    pub exchanges: Slots<Exchange>,
    pub time: Time,
    pub memory: Memory,
    pub heads: Heads,
    pub apps: Apps,
    pub accepting: Accepting,
    pub hubs: Hubs,
    /// Clients that speak TLS; `None` as long as no listener does.
    pub secure: Option<Box<Secure>>,
    pub counters: OwnCounters,
    pub access: AccessLog,
    /// What the handlers have left to be done, in this order.
    pub work: VecDeque<Task>,
}

impl<B: Backend> Loop<B> {
    #[inline]
    pub fn count(&self) -> &Counters {
        &self.counters
    }

    /// What must hold between two turns: exchanges and connections name each other, and the pool's blocks are where they may be.
    #[cfg(debug_assertions)]
    pub fn check_invariants(&mut self) {
        debug_assert!(self.work.is_empty(), "work was left undone");
        for (key, exchange) in self.exchanges.iter() {
            let phase = exchange.phase;
            let connection = exchange.stream.connection;
            let is_free = exchange.stream.is_event() && connection == Sock::NONE;
            let named = is_free || self.table.client(connection).is_some_and(|client| client.exchange == key);
            debug_assert!(named, "the client of an exchange in {phase:?} does not know it");
            let link = exchange.link();
            let named = link == Key::NONE || self.table.link(link).is_some_and(|link| link.exchange == key);
            debug_assert!(named, "the worker's connection of an exchange in {phase:?} does not know it");
        }
        for app in self.apps.all() {
            app.dispatch.check_invariants();
        }
        self.check_blocks();
    }

    /// Works off what the handlers of an event have left: permits granted, permits to ask for, input to read.
    #[inline]
    pub fn work_off(&mut self) {
        while let Some(task) = self.work.pop_front() {
            self.do_task(task);
        }
    }

    #[inline(never)]
    fn do_task(&mut self, task: Task) {
        match task {
            Task::Start(grant) => {
                self.concern(grant.waiter.exchange);
                self.granted(grant);
            }
            Task::Ask(key) => {
                self.concern(key);
                self.acquire(key, true);
            }
            Task::End(sock) => {
                self.table.subject = sock;
                // Bytes of a body that wait to be read come before it, and behind them the connection's own end says it again.
                let waits =
                    self.table.client(sock).is_some_and(|client| client.body.is_some() && client.input.is_some());
                if !waits {
                    self.client_ended(sock);
                }
            }
            Task::Resume(sock) => {
                self.table.subject = sock;
                self.resume_client(sock);
            }
        }
    }

    /// Notes that an exchange is worked on: a panic is to cost its client.
    pub fn concern(&mut self, exchange: Key) {
        self.table.subject = self.exchanges.lookup(exchange).map_or(Key::NONE, |exchange| exchange.stream.connection);
    }
}
