//! The loop: one turn after the other, generic over the backend.
//!
//! A turn is: send what the last one queued and sleep until something happens; handle the events; read the mail; look at the
//! deadlines that are due. Nothing else ever runs on a loop's thread.
//!
//! A panic while an event, a message, a deadline or what follows from them is handled is caught here: the connection that it was
//! about closes, `panics` counts, and the loop goes on. What is not caught: the wait itself, and in debug builds the check of
//! invariants at the end of a turn. They end the loop, and the server with it, which notices. A broken invariant of dispatch
//! aborts where it is found.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use std::os::fd::OwnedFd;

use crate::backends::{Backend, Event, How, Sock};
use crate::buffers::block::{Pool, Scratch};
use crate::buffers::slots::Slots;
use crate::buffers::wheel::Wheel;
use crate::connection::{Clock, Kind, Loop, Role, Shared, Table};
use crate::http::fields::Fields;
use crate::http::head::HeadLimits;
use crate::log::{AccessLog, Level};
use crate::mailbox::{Mailbox, Message};
use crate::metrics::Metrics;

/// What a loop is made of.
pub struct Setup {
    /// Which of the loops this is.
    pub index: u16,
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// Its listeners, each with the local port that `X-Forwarded-Port` tells.
    pub listeners: Vec<(OwnedFd, u16)>,
    /// Its mail.
    pub mailbox: Mailbox<Message>,
    /// The counters of all loops.
    pub metrics: Metrics,
    /// Its access log.
    pub access: AccessLog,
    /// Its receive memory; the backend has the same.
    pub pool: Pool,
    /// Connections and listeners that its table can hold.
    pub max_sockets: usize,
    /// Where its request ids start.
    pub first_id: u64,
}

/// One event loop.
pub struct Reactor<B: Backend> {
    core: Loop<B>,
    mailbox: Mailbox<Message>,
    mail: Vec<Message>,
    /// When a graceful stop cuts what is left.
    deadline: Option<Instant>,
    stopped: bool,
}

impl<B: Backend> Reactor<B> {
    /// A loop that accepts on its listeners from the first turn on.
    pub fn new(mut backend: B, setup: Setup) -> std::io::Result<Reactor<B>> {
        let now = backend.now();
        let mut table = Table::new(setup.max_sockets);
        let mut listeners = Vec::new();
        for (index, (listener, port)) in setup.listeners.into_iter().enumerate() {
            let sock = backend.listen(listener)?;
            table.put(sock, Role::Listener(index as u16));
            listeners.push((sock, port));
        }
        let settings = &setup.shared.settings;
        let limits = HeadLimits::new(settings.max_head, settings.max_fields);
        let core = Loop {
            backend,
            index: setup.index,
            table,
            // Each client has at most one, and each worker's connection may hold one that its client has left.
            exchanges: Slots::new(setup.max_sockets),
            wheel: Wheel::new(now, setup.max_sockets),
            scratch: Scratch::new(setup.pool.clone()),
            pool: setup.pool,
            fields: Fields::default(),
            limits,
            seats: Vec::new(),
            now,
            subject: Sock::NONE,
            clock: Clock::new(0),
            next_id: setup.first_id,
            listeners,
            paused: false,
            draining: false,
            metrics: setup.metrics,
            access: setup.access,
            grants: Default::default(),
            again: Default::default(),
            resume: Default::default(),
            shared: setup.shared,
        };
        Ok(Reactor { core, mailbox: setup.mailbox, mail: Vec::new(), deadline: None, stopped: false })
    }

    /// Turns until it has been told to stop and everything is closed.
    pub fn run(&mut self) -> std::io::Result<()> {
        while !self.is_done() {
            self.turn()?;
        }
        // Requests whose clients are gone may still be with their workers: their permits go back before the loop does.
        self.core.cut();
        self.core.settle_guarded();
        self.core.access.flush();
        Ok(())
    }

    /// Whether the loop was told to stop and nothing is left to be done.
    pub fn is_done(&self) -> bool {
        (self.core.draining || self.stopped) && self.core.table.clients() == 0
    }

    /// One turn.
    pub fn turn(&mut self) -> std::io::Result<()> {
        let timeout = self.sleep();
        self.core.backend.wait(timeout)?;
        self.core.now = self.core.backend.now();
        self.core.wheel.turn(self.core.now);
        self.core.clock.tick(self.core.wheel.now_nanos());
        self.mailbox.awake();
        while !self.core.guarded(Loop::handle_all) {}
        self.read_mail();
        self.expire();
        self.core.settle_guarded();
        self.core.access.flush();
        self.core.scratch.rewind();
        #[cfg(debug_assertions)]
        self.core.check_invariants();
        Ok(())
    }

    /// How long the next wait may last.
    fn sleep(&mut self) -> Option<Duration> {
        if !self.mailbox.may_sleep() {
            return Some(Duration::ZERO);
        }
        let until = self.deadline.map(|deadline| deadline.saturating_duration_since(self.core.now));
        match (self.core.wheel.sleep(), until) {
            (Some(timer), Some(deadline)) => Some(timer.min(deadline)),
            (timer, deadline) => timer.or(deadline),
        }
    }

    fn read_mail(&mut self) {
        self.mailbox.take(&mut self.mail);
        for message in self.mail.drain(..) {
            match &message {
                Message::Drain { deadline } => self.deadline = Some(*deadline),
                Message::StopNow => self.stopped = true,
                _ => {}
            }
            self.core.guarded(|core| core.heed(message));
            self.core.settle_guarded();
        }
    }

    fn expire(&mut self) {
        while let Some(index) = self.core.wheel.expire() {
            let sock = self.core.table.at(index);
            self.core.guarded(|core| {
                core.subject = sock;
                core.expired(sock);
                core.settle();
            });
        }
        if self.deadline.is_some_and(|deadline| deadline <= self.core.now) {
            self.deadline = None;
            self.stopped = true;
            self.core.cut();
        }
    }

    /// What the loop holds, for checks that nothing leaks: client connections, exchanges, sockets, armed deadlines.
    pub fn holdings(&self) -> (usize, usize, usize, usize) {
        let core = &self.core;
        (core.table.clients(), core.exchanges.len(), core.backend.live(), core.wheel.armed())
    }

    /// The backend, for tests that drive it.
    pub fn backend(&mut self) -> &mut B {
        &mut self.core.backend
    }
}

/// The socket that an event is about.
fn socket_of(event: &Event) -> Sock {
    match event {
        Event::Accept { sock, .. }
        | Event::Connect { sock }
        | Event::Receive { sock, .. }
        | Event::End { sock }
        | Event::Drain { sock }
        | Event::Fail { sock, .. }
        | Event::Close { sock } => *sock,
        Event::Wake => Sock::NONE,
    }
}

impl<B: Backend> Loop<B> {
    /// Does a part of the turn. A panic in it costs the connection that it was about, and not the loop; then this is false.
    fn guarded(&mut self, part: impl FnOnce(&mut Loop<B>)) -> bool {
        self.subject = Sock::NONE;
        let outcome = catch_unwind(AssertUnwindSafe(|| part(self)));
        if outcome.is_err() {
            self.caught(self.subject);
        }
        outcome.is_ok()
    }

    /// [`Loop::settle`], to its end. What panics has been taken off its list before.
    fn settle_guarded(&mut self) {
        while !self.guarded(Loop::settle) {}
    }

    /// The turn's events.
    fn handle_all(&mut self) {
        while let Some(event) = self.backend.next() {
            self.subject = socket_of(&event);
            self.handle(event);
            self.settle();
        }
    }

    fn heed(&mut self, message: Message) {
        match message {
            Message::Grant(grant) => {
                self.concern(grant.waiter.exchange);
                self.granted(grant);
            }
            Message::AppFailed(exchange) => {
                self.concern(exchange);
                self.app_failed(exchange);
            }
            Message::Died(worker) => self.worker_died(worker),
            Message::Retire(worker) => self.retire(worker),
            Message::Accept => self.resume_accepting(),
            Message::Drain { .. } => self.drain(),
            Message::StopNow => {
                self.drain();
                self.cut();
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Receive { sock, block } => match self.table.kind(sock) {
                Kind::Client => self.client_received(sock, block),
                Kind::Link => self.link_received(sock, block),
                Kind::Listener(_) | Kind::Free => {}
            },
            Event::Accept { listener, sock, peer } => self.accepted(listener, sock, peer),
            Event::Connect { sock } => self.link_connected(sock),
            Event::End { sock } => match self.table.kind(sock) {
                Kind::Client => self.client_ended(sock),
                Kind::Link => self.link_lost(sock, None),
                Kind::Listener(_) | Kind::Free => {}
            },
            Event::Drain { sock } => match self.table.kind(sock) {
                Kind::Client => self.client_drained(sock),
                Kind::Link => self.link_drained(sock),
                Kind::Listener(_) | Kind::Free => {}
            },
            Event::Fail { sock, side, .. } => match self.table.kind(sock) {
                Kind::Client => self.client_failed(sock, side),
                Kind::Link => self.link_lost(sock, Some(side)),
                Kind::Listener(_) | Kind::Free => {}
            },
            Event::Close { sock } => self.closed(sock),
            Event::Wake => {}
        }
    }

    fn expired(&mut self, sock: Sock) {
        match self.table.kind(sock) {
            Kind::Client => self.client_expired(sock),
            Kind::Link => self.link_expired(sock),
            Kind::Listener(_) | Kind::Free => {}
        }
    }

    /// A handler has panicked: counts it, says so, and gives up the connection that it was about.
    fn caught(&mut self, sock: Sock) {
        self.count().panics.add(1);
        self.shared.log.event(Level::Error, "a panic was caught; the connection is closed", &[]);
        self.disown(sock);
    }

    /// Gets rid of a connection whose handler has panicked, without trusting its state.
    fn disown(&mut self, sock: Sock) {
        let closed = catch_unwind(AssertUnwindSafe(|| match self.table.kind(sock) {
            Kind::Client => self.client_left(sock, How::Now),
            Kind::Link => self.link_lost(sock, None),
            Kind::Listener(_) | Kind::Free => {}
        }));
        if closed.is_err() {
            self.backend.close(sock, How::Now);
        }
    }

    /// A graceful stop begins: no new connections, idle ones close, busy ones after their answer.
    fn drain(&mut self) {
        if self.draining {
            return;
        }
        self.draining = true;
        // Their names die, their ports are still told to workers for requests that come until the end.
        for (listener, _) in &self.listeners {
            self.backend.close(*listener, How::Now);
        }
        self.each(Kind::Client, Loop::client_drains);
    }

    /// The stop's deadline: what is left is cut.
    fn cut(&mut self) {
        self.each(Kind::Client, |core, sock| core.client_left(sock, How::Now));
        self.each(Kind::Link, |core, sock| {
            core.link_lost(sock, None);
            core.close_link(sock, How::Now);
        });
    }

    /// Does the same to all connections of a kind; a panic costs only the one that it was about.
    fn each(&mut self, kind: Kind, act: impl Fn(&mut Loop<B>, Sock)) {
        for sock in self.table.all(kind) {
            self.guarded(|core| {
                core.subject = sock;
                act(core, sock);
            });
        }
    }
}
