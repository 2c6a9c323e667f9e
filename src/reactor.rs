//! The loop: one turn after the other, generic over the backend.
//!
//! A turn is: send what the last one queued and sleep until something happens; handle the events; read the mail; look at the
//! deadlines that are due. Nothing else ever runs on a loop's thread.
//!
//! A panic while an event, a message, a deadline or what follows from them is handled is caught here: the connection that it was
//! about closes, `panics` counts, and the loop goes on. What is not caught: the wait itself, and in debug builds the check of
//! invariants at the end of a turn. They end the loop, and the server with it, which notices. A broken invariant of dispatch
//! aborts where it is found.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::apps::AppTable;
use crate::backends::{Backend, Event, How, Sock};
use crate::buffers::block::Pool;
use crate::buffers::slots::{Key, Slots};
use crate::buffers::wheel::Wheel;
use crate::connection::{Client, Role, State, Table};
use crate::day::Day;
use crate::event_loop::{Accepting, Apps, Heads, Hubs, Loop, Memory, Shared, Time};
use crate::exchange::{Exchange, Hold, Phase};
pub use crate::listener::ListenerSetup;
use crate::log::{AccessLog, Level};
use crate::mailbox::{Mailbox, Message};
use crate::metrics::Metrics;

/// What a loop is made of.
pub struct Setup {
    /// Which of the loops this is.
    pub index: u16,
    /// What it shares with the others.
    pub shared: Arc<Shared>,
    /// What it serves at first.
    pub table: Arc<AppTable>,
    /// Its listeners.
    pub listeners: Vec<ListenerSetup>,
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
    /// Whether it accepts nobody before [`Message::Accept`] comes.
    pub held: bool,
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
    /// A loop that accepts on its listeners from the first turn on, or when it is told to.
    pub fn new(backend: B, setup: Setup) -> std::io::Result<Reactor<B>> {
        let now = backend.now();
        let time = Time {
            now,
            day: Day::new(0),
            connections: Wheel::new(now, setup.max_sockets),
            exchanges: Wheel::new(now, setup.max_sockets),
            files: u64::MAX,
        };
        let mut core = Loop {
            backend,
            index: setup.index,
            table: Table::new(setup.max_sockets),
            // Each client has at most one.
            exchanges: Slots::new(setup.max_sockets),
            time,
            memory: Memory::new(setup.pool),
            heads: Heads::new(&setup.table.settings, setup.first_id),
            apps: Apps::new(&setup.table),
            accepting: Accepting::default(),
            hubs: Hubs::default(),
            secure: None,
            counters: setup.metrics.of_loop(setup.index as usize).clone(),
            access: setup.access,
            work: VecDeque::new(),
            shared: setup.shared,
        };
        core.open_listeners(setup.listeners)?;
        if setup.held {
            core.hold_listeners();
        }
        Ok(Reactor { core, mailbox: setup.mailbox, mail: Vec::new(), deadline: None, stopped: false })
    }

    /// Turns until it has been told to stop and everything is closed.
    pub fn run(&mut self) -> std::io::Result<()> {
        while !self.is_done() {
            self.turn()?;
        }
        // Requests whose clients are gone may still be with their workers: their permits go back before the loop does.
        self.core.cut();
        self.core.work_off_guarded();
        self.core.access.flush();
        Ok(())
    }

    /// Whether the loop was told to stop and nothing is left to be done.
    pub fn is_done(&self) -> bool {
        (self.stopped || self.core.has_ended()) && self.core.table.clients() == 0
    }

    /// One turn.
    #[inline(always)]
    pub fn turn(&mut self) -> std::io::Result<()> {
        let timeout = self.sleep();
        self.core.backend.wait(timeout)?;
        self.core.time.turn(self.core.backend.now());
        self.mailbox.awake();
        while !self.core.guarded(Loop::handle_all) {}
        self.core.dismiss_idle();
        self.read_mail();
        self.expire();
        self.core.work_off_guarded();
        if self.core.is_changing() {
            self.core.guarded(Loop::forget_apps);
        }
        self.seal_all();
        while self.core.must_make_room() {
            self.core.guarded(Loop::make_room);
            self.core.work_off_guarded();
            // Records take memory, too.
            if !self.seal_all() {
                break;
            }
        }
        self.core.count_taken();
        self.core.access.flush();
        self.core.note_drained();
        self.core.memory.scratch.rewind();
        #[cfg(debug_assertions)]
        self.core.check_invariants();
        Ok(())
    }

    /// Makes records of what is to be sealed; whether there was anything.
    #[inline(always)]
    fn seal_all(&mut self) -> bool {
        let seals = self.core.must_seal();
        if seals {
            while !self.core.guarded(Loop::seal_all) {}
        }
        seals
    }

    /// How long the next wait may last.
    fn sleep(&mut self) -> Option<Duration> {
        if !self.mailbox.may_sleep() || self.core.accepting.dismisses {
            return Some(Duration::ZERO);
        }
        let timer = self.core.time.sleep();
        let Some(deadline) = self.deadline else { return timer };
        let until = deadline.saturating_duration_since(self.core.time.now);
        Some(timer.map_or(until, |timer| timer.min(until)))
    }

    fn read_mail(&mut self) {
        if !self.mailbox.take(&mut self.mail) {
            return;
        }
        for message in self.mail.drain(..) {
            match &message {
                Message::Drain { deadline } | Message::HandOver { deadline } => self.deadline = Some(*deadline),
                Message::StopNow => self.stopped = true,
                _ => {}
            }
            self.core.guarded(|core| core.take_message(message));
            self.core.work_off_guarded();
        }
    }

    fn expire(&mut self) {
        while let Some(index) = self.core.time.connections.expire() {
            let sock = self.core.table.at(index);
            self.core.guarded(|core| {
                core.table.subject = sock;
                core.expired(sock);
                core.work_off();
            });
        }
        while let Some(index) = self.core.time.exchanges.expire() {
            self.core.guarded(|core| {
                core.exchange_expired(index);
                core.work_off();
            });
        }
        if self.core.time.files <= self.core.time.nanos() {
            self.core.guarded(Loop::let_go_of_files);
        }
        if self.deadline.is_some_and(|deadline| deadline <= self.core.time.now) {
            self.deadline = None;
            self.stopped = true;
            self.core.cut();
        }
    }

    /// What the loop holds, for checks that nothing leaks: client connections, exchanges, sockets, armed deadlines.
    pub fn holdings(&self) -> (usize, usize, usize, usize) {
        let core = &self.core;
        (core.table.clients(), core.exchanges.len(), core.backend.live(), core.time.connections.armed())
    }

    /// How many exchanges wait for a permit and how many answers for memory, for checks that nobody is forgotten.
    pub fn waiting(&self) -> (usize, usize) {
        let count = |waits: fn(&Exchange) -> bool| self.core.exchanges.iter().filter(|(_, it)| waits(it)).count();
        let queued = count(|exchange| matches!(exchange.phase, Phase::Queued { .. }));
        (queued, count(|exchange| exchange.answer.hold == Hold::Memory))
    }

    /// Panics where what the loop knows of its hubs' subscribers is not true, for checks that nothing leaks.
    #[cfg(debug_assertions)]
    pub fn check_hubs(&mut self) {
        self.core.check_hubs();
    }

    /// The backend, for tests that drive it.
    pub fn backend(&mut self) -> &mut B {
        &mut self.core.backend
    }
}

impl<B: Backend> Loop<B> {
    /// Does a part of the turn. A panic in it costs the connection that it was about, and not the loop; then this is false.
    fn guarded(&mut self, part: impl FnOnce(&mut Loop<B>)) -> bool {
        self.table.subject = Sock::NONE;
        let outcome = catch_unwind(AssertUnwindSafe(|| part(self)));
        if outcome.is_err() {
            self.caught(self.table.subject);
        }
        outcome.is_ok()
    }

    /// [`Loop::work_off`], to its end. What panics has been taken off its list before.
    fn work_off_guarded(&mut self) {
        while !self.work.is_empty() && !self.guarded(Loop::work_off) {}
    }

    /// Brings the counter of sent bytes up to what the kernel has taken.
    #[inline]
    fn count_taken(&mut self) {
        let sent = &self.count().bytes_sent;
        sent.add(self.backend.taken() - sent.value());
    }

    /// The turn's events.
    fn handle_all(&mut self) {
        while let Some(event) = self.backend.next() {
            self.table.subject = event.sock();
            self.handle(event);
            self.work_off();
        }
    }

    fn take_message(&mut self, message: Message) {
        match message {
            Message::Grant(grant) => {
                self.concern(grant.waiter.exchange);
                self.granted(grant);
            }
            Message::AppFailed(exchange) => {
                self.concern(exchange);
                self.app_failed(exchange);
            }
            Message::Died(app, worker) => self.worker_died(app, worker),
            Message::Retire(app, worker) => self.retire(app, worker),
            Message::Configure(table) => self.configure(&table),
            Message::Listen(setups) => {
                if let Err(error) = self.open_listeners(setups) {
                    let fields: [(&str, &dyn std::fmt::Display); 2] = [("loop", &self.index), ("error", &error)];
                    self.shared.log.event(Level::Error, "a loop cannot listen on a new listener", &fields);
                }
            }
            Message::CloseListener(id) => self.close_listener(id),
            Message::Accept => self.resume_accepting(),
            Message::FewPlaces => self.look_at_places(),
            Message::ShakeHands => while !self.guarded(Loop::shake_hands) {},
            Message::AcceptAnew => self.accept_anew(),
            Message::CloseIdle(wanted) => self.make_places(wanted),
            Message::Memory => self.share_memory(),
            Message::Checked(sock, said) => {
                self.table.subject = sock;
                self.checked(sock, said);
            }
            Message::Document(reply) => {
                self.concern(reply.exchange);
                self.document_came(reply);
            }
            Message::Found(question, look) => self.found(&question, look),
            Message::Read(exchange, bytes) => {
                self.concern(exchange);
                self.file_read(exchange, bytes);
            }
            Message::Spooled(exchange, way, done) => {
                self.concern(exchange);
                self.spooled(exchange, way, done);
            }
            Message::Published(topic) => self.published(&topic),
            Message::Say(sock, token, hub, frame) => {
                self.table.subject = sock;
                self.told_by_app((sock, token), &hub, frame);
            }
            Message::HandOut => while !self.guarded(Loop::hand_out) {},
            Message::Beat(number) => {
                self.count().beat.store(number, Ordering::Release);
                self.shared.desk.ring();
            }
            Message::Drain { deadline } => {
                self.hubs.leave_by = Some(deadline);
                self.drain(false);
            }
            Message::HandOver { deadline } => {
                self.hubs.leave_by = Some(deadline);
                self.drain(true);
            }
            Message::CloseAdmin => self.close_admin(),
            Message::StopNow => {
                self.drain(false);
                self.cut();
            }
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Receive { sock, block } => match self.table.role(sock) {
                Role::Client(_) => self.client_received(sock, block),
                Role::Link(_) => self.link_received(sock, block),
                _ => {}
            },
            Event::Accept { listener, sock, peer } => match self.table.role(listener) {
                Role::Listener(index) => self.accepted(*index, sock, peer),
                _ => self.backend.close(sock, How::Now),
            },
            Event::Exhausted { error, .. } => self.exhausted(&error),
            // A worker's clock is its exchange's.
            Event::Full { sock } => self.client_full(sock),
            Event::Connect { sock } => self.link_connected(sock),
            Event::End { sock } => match self.table.role(sock) {
                Role::Client(_) => self.client_ended(sock),
                Role::Link(_) => self.link_lost(sock, None),
                _ => {}
            },
            Event::Drain { sock } => match self.table.role(sock) {
                Role::Client(_) => self.client_drained(sock),
                Role::Link(_) => self.link_drained(sock),
                _ => {}
            },
            Event::Fail { sock, side, .. } => match self.table.role(sock) {
                Role::Client(_) => self.client_failed(sock, side),
                Role::Link(_) => self.link_lost(sock, Some(side)),
                _ => {}
            },
            Event::Close { sock } => self.closed(sock),
            Event::Wake => {}
        }
    }

    fn expired(&mut self, sock: Sock) {
        match self.table.role(sock) {
            Role::Client(_) => self.client_expired(sock),
            Role::Link(_) => self.link_expired(sock),
            Role::Listener(_) => self.look_for_places(),
            _ => {}
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
        let closed = catch_unwind(AssertUnwindSafe(|| match self.table.role(sock) {
            Role::Client(_) => self.client_left(sock, How::Now),
            Role::Link(_) => self.link_lost(sock, None),
            _ => {}
        }));
        if closed.is_err() {
            self.backend.close(sock, How::Now);
        }
    }

    /// A graceful stop begins: no new connections, idle ones close, busy ones after their answer.
    fn drain(&mut self, handed_over: bool) {
        if !self.accepting.draining {
            self.stop_accepting(handed_over);
        }
    }

    /// Closes those who are idle, in the turn after a stop has begun: what had come by then has been read.
    fn dismiss_idle(&mut self) {
        if std::mem::take(&mut self.accepting.dismisses) {
            self.each(|role| matches!(role, Role::Client(_)), Loop::client_drains);
        }
    }

    /// The drain is over in all loops: those who watched it are let in no more, and who of them has not asked yet is closed.
    fn close_admin(&mut self) {
        if self.accepting.close_admin(&mut self.backend) {
            let admin: Vec<bool> = self.accepting.listeners.iter().map(|listener| listener.admin).collect();
            let waits = |client: &Client| {
                admin[usize::from(client.listener)]
                    && client.exchange == Key::NONE
                    && matches!(client.state, State::Accepting | State::ReadingRequest)
            };
            self.each(
                |role| matches!(role, Role::Client(client) if waits(client)),
                |core, sock| core.close_client(sock, How::Now),
            );
        }
    }

    /// The stop's deadline: what is left is cut.
    fn cut(&mut self) {
        self.refuse_waiting();
        self.close_admin();
        self.each(|role| matches!(role, Role::Client(_)), |core, sock| core.client_left(sock, How::Now));
        self.each(
            |role| matches!(role, Role::Link(_)),
            |core, sock| {
                core.link_lost(sock, None);
                core.close_link(sock, How::Now);
            },
        );
    }

    /// Does the same to all connections of a role; a panic costs only the one that it was about.
    fn each(&mut self, is_it: impl Fn(&Role) -> bool, act: impl Fn(&mut Loop<B>, Sock)) {
        let of_role: Vec<Sock> = self.table.roles().filter(|(_, role)| is_it(role)).map(|(sock, _)| sock).collect();
        for sock in of_role {
            self.guarded(|core| {
                core.table.subject = sock;
                act(core, sock);
            });
        }
    }
}
