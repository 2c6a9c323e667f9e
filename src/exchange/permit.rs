//! The way to a worker: a permit is asked for and waited for, a connection found, and head and body leave in one gather.

use std::time::Duration;

use crate::apps::App;
use crate::backends::{Backend, HIGH_MARK, Size, Sock};
use crate::buffers::slots::Key;
use crate::buffers::wheel::{TICK, nanos};
use crate::config;
use crate::connection::LinkState;
use crate::dispatch::{Acquire, Ask, Grant, Outcome, Patience, Permit, Waiter, WorkerId};
use crate::event_loop::{Loop, Task};
use crate::http::body::last_chunk;
use crate::http::{Framing, rewrite};

use super::{Ending, Pace, Phase, Source, Upload};

/// How soon a worker whose backlog is full is asked again.
const BACKLOG_RETRY: Duration = Duration::from_millis(5);

impl<B: Backend> Loop<B> {
    /// Answers in the worker's place, before any worker was busy with the request.
    fn refuse_unasked(&mut self, key: Key, status: u16, reason: &str) {
        self.finish(key, Ending::Failed { status, reason, outcome: Some(Outcome::Unused) });
    }

    /// Asks for a permit; `front` for an exchange that had one already.
    pub fn acquire(&mut self, key: Key, front: bool) {
        let now = self.time.now;
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let (app, count) = (&exchange.app, exchange.app.count);
        if !front {
            exchange.times.asked = now;
        } else if now >= exchange.times.asked + longest_wait(&app.settings) {
            // Workers that look ready and refuse would else have it go from one to the next for ever.
            self.waited_in_vain(count, |app| &app.queue_timeouts);
            return self.refuse_unasked(key, 504, "no worker took the request in time");
        }
        let waiter = Waiter { loop_index: self.index, exchange: key };
        let (exclude, turn) = (exchange.attempt.exclude, exchange.attempt.turn);
        let ask = Ask { since: exchange.times.asked, exclude, front, tunnel: exchange.request.websocket, turn };
        match app.dispatch.acquire(waiter, ask, now) {
            Acquire::Granted(permit) => self.start(key, permit),
            Acquire::Queued(ticket) => {
                exchange.times.queued |= exchange.times.granted.is_none();
                exchange.phase = Phase::Queued { ticket, look: self.time.nanos() };
                self.wait_in_queue(key);
            }
            Acquire::Full => {
                self.count().app(count).queue_full.add(1);
                self.refuse_unasked(key, 503, QUEUE_FULL);
            }
            Acquire::NoTunnel => {
                self.count().app(count).no_tunnel.add(1);
                self.refuse_unasked(key, 503, "every worker has as many tunnels as it may");
            }
            Acquire::Failed => self.refuse_given_up(key, count),
        }
    }

    fn wait_in_queue(&mut self, key: Key) {
        let keeps_blocks = self.exchanges.lookup(key).is_some_and(|exchange| exchange.request.keeps_blocks());
        if keeps_blocks && !self.memory.has_reserve() {
            self.count().memory_refused.add(1);
            return self.refuse_unasked(key, 503, "the server has no memory left for requests that wait");
        }
        self.set_aside(key);
        self.queue_expired(key);
    }

    /// No block waits for a worker: the request's bytes go to the heap, and the client is watched.
    fn set_aside(&mut self, key: Key) {
        self.settle_request(key);
        if let Some(exchange) = self.exchanges.lookup(key)
            && exchange.request.upload != Upload::Held
        {
            self.watch(exchange.stream.connection);
        }
    }

    /// Looks whether a queued exchange has waited too long, and when to look again.
    pub fn queue_expired(&mut self, key: Key) {
        let now = self.time.now;
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let (app, count) = (&exchange.app, exchange.app.count);
        let Phase::Queued { ticket, look } = &mut exchange.phase else { return };
        let by = exchange.times.asked + longest_wait(&app.settings);
        match app.dispatch.patience(*ticket, by, now) {
            Patience::Until(instant) => *look = self.time.nanos() + nanos(instant.saturating_duration_since(now)),
            // The permit is in the mail; were it lost, this would look for it again.
            Patience::Granted => *look = self.time.nanos() + nanos(app.settings.queue.timeout.max(TICK)),
            Patience::QueueTimeout => {
                self.waited_in_vain(count, |app| &app.queue_timeouts);
                return self.refuse_unasked(key, 504, "no worker became free in time");
            }
            Patience::HoldExpired => {
                self.waited_in_vain(count, |app| &app.hold_expired);
                return self.refuse_unasked(key, 503, super::ending::STARTING);
            }
        }
        self.rearm(key);
    }

    /// The app has given up while this exchange waited for a worker; its ticket is void.
    pub fn app_failed(&mut self, key: Key) {
        match self.exchanges.lookup(key) {
            Some(exchange) if matches!(exchange.phase, Phase::Queued { .. }) => {
                self.refuse_given_up(key, exchange.app.count);
            }
            _ => drop(self.apps.app_of_late(key)),
        }
    }

    fn refuse_given_up(&mut self, key: Key, count: u16) {
        self.count().app(count).app_failed.add(1);
        self.refuse_unasked(key, 503, GIVEN_UP);
    }

    /// A permit has come to an exchange that waited. One that is gone, or no longer waits, gives it back unused.
    pub fn granted(&mut self, grant: Grant) {
        let key = grant.waiter.exchange;
        match self.exchanges.lookup(key).map(|exchange| exchange.phase) {
            Some(Phase::Queued { .. }) => self.start(key, grant.permit),
            _ => self.return_late(key, grant.permit),
        }
    }

    /// Gives back a permit that found nobody.
    fn return_late(&mut self, key: Key, permit: Permit) {
        let app = self.apps.app_of_late(key);
        debug_assert!(app.is_some(), "a permit came for an exchange that did not wait");
        if let Some(app) = app {
            self.release(&app, permit, Outcome::Unused);
        }
    }

    /// Gives a permit of an app back and passes on what it freed.
    pub fn release(&mut self, app: &App, permit: Permit, outcome: Outcome) {
        let freed = app.dispatch.release(permit, outcome, self.time.now, self.index);
        self.pass_on(freed);
    }

    /// Tells whoever has got a permit that was given back.
    #[inline]
    pub fn pass_on(&mut self, freed: Option<Grant>) {
        match freed {
            Some(grant) if grant.waiter.loop_index == self.index => self.work.push_back(Task::Start(grant)),
            Some(grant) => self.shared.postboxes.grant(grant),
            None => {}
        }
    }

    /// Takes the permit out of an exchange and gives it back.
    pub fn give_back(&mut self, key: Key, outcome: Outcome) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if let Some(permit) = exchange.attempt.permit.take() {
            let freed = exchange.app.dispatch.release(permit, outcome, self.time.now, self.index);
            self.pass_on(freed);
        }
    }

    /// Sends the request to the worker of that permit.
    fn start(&mut self, key: Key, permit: Permit) {
        let worker = permit.worker();
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup_mut(key) else {
            return self.return_late(key, permit);
        };
        exchange.times.granted = Some(now);
        exchange.attempt.worker = Some(worker);
        exchange.attempt.permit = Some(permit);
        // A body that streams cannot be sent again, so that a kept connection which has just died would cost it.
        let streams = exchange.request.upload == Upload::Held;
        let fresh = exchange.attempt.retried || streams || exchange.request.websocket;
        let idle = if fresh { None } else { self.apps.idle_link(exchange.app.id, worker) };
        if let Some(link) = idle.or_else(|| self.open_link(key, worker)) {
            self.send_request(key, link);
        }
    }

    /// Opens a connection to the worker of an exchange's permit. Where that fails, what becomes of the exchange is decided here.
    #[inline(never)]
    fn open_link(&mut self, key: Key, worker: WorkerId) -> Option<Sock> {
        let app = self.exchanges.lookup(key)?.app.clone();
        if !self.meet(&app, worker) {
            self.unreachable(key);
            return None;
        }
        match self.reach(&app, worker) {
            Ok(Some(link)) => return Some(link),
            Ok(None) => self.wait_for_backlog(key),
            Err(error) => {
                let fields: [(&str, &dyn std::fmt::Display); 1] = [("error", &error)];
                self.shared.log.seldom(crate::log::Level::Error, "cannot open a connection to a worker", &fields);
                self.refuse_unasked(key, 503, "the server has no descriptor left to reach a worker with");
            }
        }
        None
    }

    /// The worker's backlog is full: another worker, or the same again in a moment, until the connect timeout.
    fn wait_for_backlog(&mut self, key: Key) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let until = match exchange.phase {
            Phase::Backlog { until, .. } => until,
            _ if exchange.attempt.exclude.is_none() => {
                exchange.attempt.exclude = exchange.attempt.worker;
                self.give_back(key, Outcome::Unused);
                return self.ask_again(key);
            }
            _ => now + nanos(exchange.app.settings.timeouts.connect),
        };
        if now >= until {
            self.count().timeouts.add(1);
            return self.refuse_unasked(key, 503, "the worker accepts no connections: its backlog is full");
        }
        exchange.phase = Phase::Backlog { again: now + nanos(BACKLOG_RETRY), until };
        self.set_aside(key);
        self.rearm(key);
    }

    /// Tries the same worker again after its backlog was full.
    pub fn backlog_expired(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if let Some(permit) = exchange.attempt.permit.take() {
            self.start(key, permit);
        }
    }

    fn send_request(&mut self, key: Key, sock: Sock) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let Some(link) = self.table.link(sock) else { return };
        exchange.source = Source::Worker(sock);
        exchange.phase = Phase::Awaiting;
        exchange.attempt.sent_before = self.backend.offered(sock);
        exchange.attempt.taken = exchange.attempt.sent_before;
        (exchange.times.given, exchange.times.heard) = (now, now);
        link.exchange = key;
        let connecting = link.state == LinkState::Connecting;
        if !connecting {
            link.state = LinkState::Busy;
        }
        let held = exchange.request.upload == Upload::Held;
        self.rearm(key);
        self.backend.recv(sock, Size::Small);
        // A body that streams is not kept: nothing of it leaves before the worker is known to be there, so that a connect
        // which fails costs nothing.
        if !connecting || !held {
            self.send_message(key, sock);
        }
    }

    /// Queues the request for its worker; a body that streams begins to flow.
    pub fn send_message(&mut self, key: Key, sock: Sock) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if let Some(head) = &exchange.request.head {
            self.backend.send(sock, head.clone().into());
        }
        let (connection, held) = (exchange.stream.connection, exchange.request.upload == Upload::Held);
        let spools = exchange.request.spool.is_some();
        if exchange.request.open || !exchange.request.body.is_empty() {
            self.send_body(key, sock);
        }
        let is_spooled = spools && self.send_spooled(key);
        if !held {
            return self.watch(connection);
        }
        if is_spooled {
            return;
        }
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            exchange.request.upload = Upload::Streaming;
            exchange.request.pace = Pace::new(now, exchange.request.bytes);
        }
        self.continue_upload(key);
    }

    /// The end of the head and the body collected so far.
    fn send_body(&mut self, key: Key, sock: Sock) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let request = &mut exchange.request;
        let (streams, is_spooled) = (request.upload == Upload::Held, request.spool.is_some());
        let chunked = request.leaves_chunked();
        let trailers = request.trailers.clone();
        // What has streamed cannot be sent again; keeping it would double the memory.
        let body = if streams { std::mem::take(&mut request.body) } else { request.body.clone() };
        if request.open {
            let framing = if chunked { Framing::Chunked } else { Framing::Length(request.bytes) };
            let end = self.memory.scratch.write(64, |out| rewrite::request_end(out, framing));
            self.backend.send(sock, end.into());
        }
        for data in body {
            self.send_run(sock, data, chunked);
        }
        if chunked && !streams && !is_spooled {
            let end = last_chunk(&mut self.memory.scratch, trailers.as_deref().unwrap_or_default());
            self.backend.send(sock, end);
        }
    }

    /// Whether so much of a request waits for its worker that no more is taken from the client.
    pub fn link_is_full(&self, link: Sock) -> bool {
        let unsent = self.backend.unsent(link);
        unsent > HIGH_MARK || (unsent > 0 && !self.memory.has_room())
    }
}

/// How long a request goes from worker to worker, or from one wait to the next, when workers come and go under it.
fn longest_wait(app: &config::App) -> Duration {
    app.timeouts.request.max(app.queue.hold + app.queue.timeout)
}

pub(super) const GIVEN_UP: &str = "the app has failed, and is tried again now and then";
pub(super) const QUEUE_FULL: &str = "the queue is full";
