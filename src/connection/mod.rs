//! Connections: bytes and framing, on the side of the clients and on that of the workers.
//!
//! A connection lives and dies on the loop that accepted or opened it. This module owns the loop's state, [`Loop`], with its
//! connection array, [`Table`]; the modules below it handle what happens to a client's connection (`client`, `request`) and to a
//! worker's (`worker`); `exchange` carries one request and its answer from the one to the other.
//!
//! Rules:
//! - The array is indexed by the socket's own index, and an entry is freed at [`Event::Close`](crate::backends::Event::Close) only.
//! - A client's public life is [`State`]; one function assigns it, and asserts that the move is allowed.
//! - Handlers never call each other in circles: what must be looked at again goes onto a list that the reactor works off
//!   after each event ([`Loop::settle`]).

mod client;
mod request;
mod worker;

pub(crate) use worker::Reach;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::backends::{Backend, How, Peer, Piece, Size, Sock};
use crate::buffers::block::{Block, Pool, Scratch};
use crate::buffers::slots::{Key, Slots};
use crate::buffers::wheel::Wheel;
use crate::config::Settings;
use crate::dispatch::{Dispatch, Grant, Target, WorkerId};
use crate::exchange::{BodySkip, Exchange, Streams};
use crate::http::date::date;
use crate::http::fields::Fields;
use crate::http::head::{HeadLimits, HeadSearch};
use crate::http::reply;
use crate::log::{AccessLog, Log};
use crate::mailbox::Postboxes;
use crate::metrics::{ConnectionState, Counters, Metrics};

/// Pipelined bytes kept for a client whose request is being answered; beyond this its receive stays unarmed.
pub(crate) const PIPELINE_BYTES: usize = 16 * 1024;

/// A client connection's public life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Just accepted.
    Accepting,
    /// Waiting for a request, or in the middle of its head.
    ReadingRequest,
    /// A request is being collected, is queued, or is with a worker.
    Processing,
    /// The head of the answer has been written.
    WritingResponse,
    /// Being closed; what is queued may still leave.
    Closing,
    /// Closed: nothing is in flight, the entry is free.
    Closed,
}

impl State {
    /// Which gauge counts connections in this state; none for those that are closed.
    fn gauge(self) -> Option<ConnectionState> {
        ConnectionState::ALL.get(self as usize).copied()
    }

    /// Whether a connection may go from this state to `next`.
    pub fn may_become(self, next: State) -> bool {
        use State::*;
        matches!(
            (self, next),
            (Accepting, ReadingRequest | Closing | Closed)
                | (ReadingRequest, Processing | WritingResponse | Closing | Closed)
                | (Processing, WritingResponse | Closing | Closed)
                | (WritingResponse, ReadingRequest | Closing | Closed)
                | (Closing, Closed)
        )
    }
}

/// A client's connection.
pub(crate) struct Client {
    pub state: State,
    /// The peer has finished sending.
    pub ended: bool,
    /// Requests wait in `input` until the outbox has drained.
    pub stalled: bool,
    /// Which of the loop's listeners accepted it.
    pub listener: u16,
    pub peer: Peer,
    /// The request that is being answered, or [`Key::NONE`].
    pub exchange: Key,
    /// Bytes received and not yet used: a part of a head, or requests that wait for their turn.
    pub input: Option<Block>,
    /// How far `input` was searched for the end of a head.
    pub search: HeadSearch,
    /// [`Backend::sent`] at the last look of the write timeout.
    pub written: u64,
    /// The rest of a body that nobody wants.
    pub skip: Option<Box<BodySkip>>,
}

/// What a worker's connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// connect(2) has not come back yet.
    Connecting,
    /// Kept open for the next request.
    Idle,
    /// It carries an exchange.
    Busy,
    /// Being closed.
    Closing,
}

/// A connection to a worker.
pub(crate) struct Link {
    pub state: LinkState,
    pub worker: WorkerId,
    /// The exchange it carries, or [`Key::NONE`].
    pub exchange: Key,
    /// Part of an answer's head.
    pub input: Option<Block>,
    /// Whether a request has been answered over it before.
    pub reused: bool,
}

/// Who a socket of the table belongs to.
pub(crate) enum Role {
    Free,
    Listener(u16),
    Client(Client),
    Link(Link),
}

/// What [`Role`] a socket has, without its state.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Free,
    Listener(u16),
    Client,
    Link,
}

struct Entry {
    generation: u32,
    role: Role,
}

/// The connection array: one entry for each socket of the backend, at the same index.
pub(crate) struct Table {
    entries: Vec<Entry>,
    clients: usize,
}

impl Table {
    pub fn new(capacity: usize) -> Table {
        Table { entries: Vec::with_capacity(capacity), clients: 0 }
    }

    pub fn put(&mut self, sock: Sock, role: Role) {
        while self.entries.len() <= sock.index as usize {
            self.entries.push(Entry { generation: 0, role: Role::Free });
        }
        let entry = &mut self.entries[sock.index as usize];
        debug_assert!(matches!(entry.role, Role::Free), "an entry is used twice");
        self.clients += usize::from(matches!(role, Role::Client(_)));
        *entry = Entry { generation: sock.generation, role };
    }

    pub fn take(&mut self, sock: Sock) -> Role {
        match self.entries.get_mut(sock.index as usize) {
            Some(entry) if entry.generation == sock.generation => {
                let role = std::mem::replace(&mut entry.role, Role::Free);
                self.clients -= usize::from(matches!(role, Role::Client(_)));
                role
            }
            _ => Role::Free,
        }
    }

    #[inline]
    pub fn kind(&self, sock: Sock) -> Kind {
        match self.entries.get(sock.index as usize) {
            Some(entry) if entry.generation == sock.generation => match entry.role {
                Role::Free => Kind::Free,
                Role::Listener(index) => Kind::Listener(index),
                Role::Client(_) => Kind::Client,
                Role::Link(_) => Kind::Link,
            },
            _ => Kind::Free,
        }
    }

    /// The socket that lives at that index now.
    pub fn at(&self, index: u32) -> Sock {
        let generation = self.entries.get(index as usize).map_or(0, |entry| entry.generation);
        Sock { index, generation }
    }

    /// How many clients' connections are in the table.
    pub fn clients(&self) -> usize {
        self.clients
    }

    /// All sockets of that kind, for what concerns every connection: a drain, a stop.
    pub fn all(&self, kind: Kind) -> Vec<Sock> {
        (0..self.entries.len() as u32).map(|index| self.at(index)).filter(|sock| self.kind(*sock) == kind).collect()
    }

    #[inline]
    pub fn client(&mut self, sock: Sock) -> Option<&mut Client> {
        match self.entries.get_mut(sock.index as usize) {
            Some(Entry { generation, role: Role::Client(client) }) if *generation == sock.generation => Some(client),
            _ => None,
        }
    }

    #[inline]
    pub fn link(&mut self, sock: Sock) -> Option<&mut Link> {
        match self.entries.get_mut(sock.index as usize) {
            Some(Entry { generation, role: Role::Link(link) }) if *generation == sock.generation => Some(link),
            _ => None,
        }
    }
}

/// A worker as this loop knows it: where it listens, and the connections kept open to it.
pub(crate) struct Seat {
    pub worker: WorkerId,
    pub target: Arc<Target>,
    pub idle: Vec<Sock>,
}

/// What all loops of a server share.
pub struct Shared {
    /// The checked configuration.
    pub settings: Arc<Settings>,
    /// Permits and the waiting queue of the app.
    pub dispatch: Arc<Dispatch>,
    /// The way to every loop.
    pub postboxes: Postboxes,
    /// Where events are told.
    pub log: Log,
    /// How many connections there are in all loops.
    pub admission: Admission,
    /// Event streams that hold permits.
    pub streams: Streams,
    /// The answer of `--respond`.
    pub direct: Option<reply::Direct>,
    /// Writes the `/status` document.
    pub status: Box<dyn Fn() -> String + Send + Sync>,
}

/// The bound on the connections of all loops together.
#[derive(Default)]
pub struct Admission {
    active: AtomicUsize,
    /// Some loop has paused its listeners.
    paused: AtomicBool,
}

impl Admission {
    /// Client connections open now, in all loops.
    pub fn active(&self) -> usize {
        // In one order with the flag, see `pause_accepting`.
        self.active.load(Ordering::SeqCst)
    }
}

/// The time of day, kept by the loop's own clock and compared with the system's once a second. Times are those of
/// [`Wheel::now_nanos`].
pub(crate) struct Clock {
    at: u64,
    micros: u64,
    /// When the next second begins.
    next: u64,
    pub date: [u8; 29],
}

impl Clock {
    pub fn new(now: u64) -> Clock {
        let mut clock = Clock { at: now, micros: 0, next: now, date: date(0) };
        clock.compare(now);
        clock
    }

    /// Microseconds since the epoch at `now`.
    pub fn micros(&self, now: u64) -> u64 {
        self.micros + now.saturating_sub(self.at) / 1000
    }

    /// Brings the date up to `now`.
    #[inline]
    pub fn tick(&mut self, now: u64) {
        if now >= self.next {
            self.compare(now);
        }
    }

    #[cold]
    fn compare(&mut self, now: u64) {
        let epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.at = now;
        self.micros = epoch.as_micros() as u64;
        self.next = now + (1_000_000_000 - u64::from(epoch.subsec_nanos()));
        self.date = date(epoch.as_secs());
    }
}

/// One loop's state: everything that its handlers work on.
pub(crate) struct Loop<B: Backend> {
    pub backend: B,
    pub shared: Arc<Shared>,
    pub index: u16,
    pub table: Table,
    pub exchanges: Slots<Exchange>,
    pub wheel: Wheel,
    pub pool: Pool,
    pub scratch: Scratch,
    pub fields: Fields,
    pub limits: HeadLimits,
    pub seats: Vec<Option<Seat>>,
    pub now: Instant,
    /// The connection that is worked on, which a panic is to cost; [`Key::NONE`] for what concerns none.
    pub subject: Sock,
    pub clock: Clock,
    /// The next request's id: a random start, so that ids of two loops or two servers do not meet.
    pub next_id: u64,
    pub listeners: Vec<(Sock, u16)>,
    /// The listeners are paused, for `max_connections`.
    pub paused: bool,
    /// Set once a graceful stop has begun.
    pub draining: bool,
    pub metrics: Metrics,
    pub access: AccessLog,
    /// Permits that came to exchanges of this loop during the event.
    pub grants: VecDeque<Grant>,
    /// Exchanges that ask for a permit again.
    pub again: VecDeque<Key>,
    /// Clients whose next request may be read.
    pub resume: VecDeque<Sock>,
}

impl<B: Backend> Loop<B> {
    #[inline]
    pub fn count(&self) -> &Counters {
        self.metrics.of_loop(self.index as usize)
    }

    /// The one place where a client's state is assigned.
    #[inline]
    pub fn become_state(&mut self, sock: Sock, next: State) {
        let Some(client) = self.table.client(sock) else { return };
        let before = std::mem::replace(&mut client.state, next);
        debug_assert!(before.may_become(next), "a connection went from {before:?} to {next:?}");
        self.count().moved(before.gauge(), next.gauge());
    }

    #[inline]
    pub fn arm(&mut self, sock: Sock, after: Duration) {
        self.wheel.arm_after(sock.index, after);
    }

    /// Queues bytes for a client, and counts them.
    #[inline]
    pub fn send_client(&mut self, sock: Sock, piece: Piece) {
        self.count().bytes_sent.add(piece.bytes().len() as u64);
        self.backend.send(sock, piece);
    }

    /// What must hold between two turns: exchanges and connections name each other.
    #[cfg(debug_assertions)]
    pub fn check_invariants(&mut self) {
        debug_assert!(
            self.grants.is_empty() && self.again.is_empty() && self.resume.is_empty(),
            "work was left undone"
        );
        for (key, exchange) in self.exchanges.iter() {
            if exchange.client != Key::NONE {
                let named = self.table.client(exchange.client).is_some_and(|client| client.exchange == key);
                debug_assert!(named, "the client of an exchange in {:?} does not know it", exchange.phase);
            }
            if exchange.link != Key::NONE {
                let named = self.table.link(exchange.link).is_some_and(|link| link.exchange == key);
                debug_assert!(named, "the worker's connection of an exchange in {:?} does not know it", exchange.phase);
            }
        }
        self.shared.dispatch.check_invariants();
    }

    /// Works off what the handlers of an event have left: permits granted, permits to ask for, requests to read.
    #[inline]
    pub fn settle(&mut self) {
        if !(self.grants.is_empty() && self.again.is_empty() && self.resume.is_empty()) {
            self.settle_all();
        }
    }

    fn settle_all(&mut self) {
        loop {
            if let Some(grant) = self.grants.pop_front() {
                self.concern(grant.waiter.exchange);
                self.granted(grant);
            } else if let Some(key) = self.again.pop_front() {
                self.concern(key);
                self.acquire(key, true);
            } else if let Some(sock) = self.resume.pop_front() {
                self.subject = sock;
                self.read_requests(sock);
            } else {
                return;
            }
        }
    }

    /// Notes that an exchange is worked on: a panic is to cost its client.
    pub fn concern(&mut self, exchange: Key) {
        self.subject = self.exchanges.lookup(exchange).map_or(Key::NONE, |exchange| exchange.client);
    }

    /// Closes a client's connection, whose exchange has ended or been abandoned.
    pub fn close_client(&mut self, sock: Sock, how: How) {
        let Some(client) = self.table.client(sock) else { return };
        if matches!(client.state, State::Closing | State::Closed) {
            if how != How::Flushed {
                self.backend.close(sock, how);
            }
            return;
        }
        debug_assert!(client.exchange == Key::NONE, "a client was closed under its exchange");
        client.input = None;
        client.skip = None;
        self.become_state(sock, State::Closing);
        self.wheel.disarm(sock.index);
        self.backend.close(sock, how);
    }

    /// Closes a connection whose last request is answered. With a receive armed the backend expects no more input, and spares
    /// the linger, unless bytes are here that nobody has read, or a drain ends a connection whose client reads an answer that
    /// promised to go on, and may have begun its next request.
    pub fn close_answered(&mut self, sock: Sock) {
        let may_go_on = self.draining && self.backend.unsent(sock) > 0;
        let Some(client) = self.table.client(sock) else { return };
        if client.input.is_none() && client.skip.is_none() && !may_go_on {
            self.backend.recv(sock, Size::Small);
        }
        self.close_client(sock, How::Flushed);
    }

    /// Closes a client's connection in the middle of its request: it may be sending, and is to read the answer nevertheless. The
    /// half-close says to the backend that the peer is worth waiting for, although nothing of it waits to be read now.
    pub fn close_sending_client(&mut self, sock: Sock) {
        self.backend.finish(sock);
        self.close_client(sock, How::Flushed);
    }

    /// The backend is done with a socket: the entry is free.
    pub fn closed(&mut self, sock: Sock) {
        self.wheel.disarm(sock.index);
        match self.table.take(sock) {
            Role::Client(client) => {
                debug_assert!(client.state.may_become(State::Closed));
                self.count().moved(client.state.gauge(), None);
                self.count().active_connections.decrement();
                self.departed();
            }
            Role::Link(link) => debug_assert!(link.state == LinkState::Closing),
            Role::Listener(_) | Role::Free => {}
        }
    }

    /// One connection less: whoever paused its listeners for the limit may accept again.
    fn departed(&mut self) {
        let admission = &self.shared.admission;
        let before = admission.active.fetch_sub(1, Ordering::SeqCst);
        let below = before <= self.shared.settings.max_connections;
        if below && admission.paused.load(Ordering::SeqCst) && admission.paused.swap(false, Ordering::SeqCst) {
            self.shared.postboxes.broadcast(|| crate::mailbox::Message::Accept);
        }
    }

    /// One connection more: at the limit this loop pauses its listeners.
    fn arrived(&mut self) {
        let limit = self.shared.settings.max_connections;
        let active = self.shared.admission.active.fetch_add(1, Ordering::SeqCst) + 1;
        if active >= limit && !self.paused {
            self.pause_accepting();
        }
    }

    fn pause_accepting(&mut self) {
        self.paused = true;
        for (listener, _) in &self.listeners {
            self.backend.pause(*listener);
        }
        self.shared.admission.paused.store(true, Ordering::SeqCst);
        // A connection may have left between the count and the flag: then nobody else would wake this loop. Store and load here,
        // and count and load there, must not pass each other: hence one order for all of them.
        if self.shared.admission.active() < self.shared.settings.max_connections {
            self.resume_accepting();
        }
    }

    /// Accepts again after the limit was reached.
    pub fn resume_accepting(&mut self) {
        if !self.paused || self.draining {
            return;
        }
        self.paused = false;
        for (listener, _) in &self.listeners {
            self.backend.resume(*listener);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_connection_becomes_nothing() {
        use State::*;
        for next in [Accepting, ReadingRequest, Processing, WritingResponse, Closing, Closed] {
            assert!(!Closed.may_become(next));
            assert!(next == Closed || !Closing.may_become(next));
        }
    }

    #[test]
    fn an_idle_connection_is_small() {
        assert!(size_of::<Entry>() <= 120, "an entry has {} bytes", size_of::<Entry>());
    }
}
