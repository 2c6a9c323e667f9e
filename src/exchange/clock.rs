//! Whom an exchange waits for, until when, and what happens then.
//!
//! | who is waited for | deadline | past it |
//! |---|---|---|
//! | the worker, before its head | `--read-timeout-ms` without a byte | 504; the worker may finish |
//! | | `--request-timeout` since it has had the request | 504; without a byte for as long, the worker is stuck |
//! | the worker, in its answer | `--read-timeout-ms` without a byte | the answer is cut; the worker may finish |
//! | the worker, in an event stream or a tunnel | `--idle-timeout` without a byte from it, or taken of what was sent | it ends; nobody is to blame |
//! | the client, for its body | `--body-timeout` without a byte, and the mean rate [`BODY_RATE`]; and no byte of an early answer either | 408 |
//! | the client, to take its answer | the connection's own (`--write-timeout`) | it is cut |
//! | nobody | the queue's, the hold's; none while we lack memory | 503, 504 |
//!
//! `--answer-timeout`, where it is set, bounds an ordinary answer as a whole.

use std::time::Duration;

use crate::backends::{Backend, How};
use crate::buffers::slots::Key;
use crate::buffers::wheel::nanos;
use crate::event_loop::Loop;
use crate::planted::{self, Bug};

use super::{Ending, Exchange, Hold, Nanos, Phase, Upload};

/// Bytes a second below which a body is not arriving.
const BODY_RATE: u64 = 1024;
/// How soon an answer that is held up by our own lack of memory is looked at again, should nobody tell that memory came back.
const MEMORY_LOOK: Duration = Duration::from_millis(250);

/// Who is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waits {
    Worker,
    Client,
    /// It is up to us.
    Nobody,
}

impl Waits {
    /// For log lines.
    pub fn name(self) -> &'static str {
        match self {
            Waits::Worker => "worker",
            Waits::Client => "client",
            Waits::Nobody => "server",
        }
    }
}

/// Which deadline it is that comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Due {
    Body,
    Queue,
    Backlog,
    Verdict,
    Connect,
    Read,
    Request,
    Answer,
    Idle,
    Memory,
}

/// How a client keeps up with its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// From when on its mean rate is measured, and how much had come by then.
    from: Nanos,
    base: u64,
    last: Nanos,
}

impl Pace {
    /// Measured from now on, `bytes` having come already.
    pub fn new(now: Nanos, bytes: u64) -> Pace {
        Pace { from: now, base: bytes, last: now }
    }

    /// Something has come.
    pub fn moved(&mut self, now: Nanos) {
        self.last = now;
    }

    fn deadline(&self, patience: Duration, bytes: u64) -> Nanos {
        let earned = Duration::from_secs((bytes - self.base) / BODY_RATE);
        (self.last + nanos(patience)).min(self.from + nanos(patience) + nanos(earned))
    }
}

impl Exchange {
    /// Who is waited for, derived from the state.
    pub fn waits(&self) -> Waits {
        match self.phase {
            Phase::Collecting => Waits::Client,
            Phase::Asking | Phase::Queued { .. } | Phase::Backlog { .. } | Phase::Verdict { .. } => Waits::Nobody,
            Phase::Tunnel { .. } => Waits::Worker,
            Phase::Awaiting | Phase::Relaying => match self.answer.hold {
                // A worker that has not got the whole request may well wait for the rest of it.
                Hold::Not if self.request.upload == Upload::Streaming => Waits::Client,
                Hold::Client | Hold::Memory if planted::active(Bug::BlamingClock) => Waits::Worker,
                Hold::Client => Waits::Client,
                Hold::Memory => Waits::Nobody,
                Hold::Not if self.link() == Key::NONE => Waits::Nobody,
                Hold::Not => Waits::Worker,
            },
        }
    }
}

impl<B: Backend> Loop<B> {
    /// When an exchange is looked at next, and for which deadline.
    fn due(&self, exchange: &Exchange) -> Option<(Nanos, Due)> {
        let times = &exchange.times;
        let timeouts = &exchange.app.settings.timeouts;
        let client = &exchange.app.server.timeouts;
        let body = || (exchange.request.pace.deadline(client.body, exchange.request.bytes), Due::Body);
        let quiet = || match exchange.answer.stream {
            true => (times.heard + nanos(client.idle), Due::Idle),
            false => (times.heard + nanos(timeouts.read), Due::Read),
        };
        let own = match (exchange.phase, exchange.waits()) {
            (Phase::Asking, _) => None,
            (Phase::Queued { look, .. }, _) => Some((look, Due::Queue)),
            (Phase::Backlog { again, .. }, _) => Some((again, Due::Backlog)),
            (Phase::Verdict { until }, _) => Some((until, Due::Verdict)),
            (Phase::Tunnel { .. }, _) => Some((times.heard + nanos(client.idle), Due::Idle)),
            // A disk may take its time, and others may have the memory on the way to it.
            (Phase::Collecting, _) if exchange.request.spool.as_ref().is_some_and(|body| body.stalls()) => {
                Some((self.time.nanos() + nanos(MEMORY_LOOK), Due::Memory))
            }
            (Phase::Collecting, _) => Some(body()),
            (_, Waits::Client) if exchange.answer.hold != Hold::Not => None,
            // While an early answer flows, nobody waits for the rest of its request.
            (Phase::Relaying, Waits::Client) => Some((body().0.max(quiet().0), Due::Body)),
            (_, Waits::Client) => Some(body()),
            // A disk may take its time.
            (Phase::Relaying, Waits::Nobody) if exchange.answer.hold == Hold::Not => None,
            (_, Waits::Nobody) => Some((self.time.nanos() + nanos(MEMORY_LOOK), Due::Memory)),
            (Phase::Awaiting, Waits::Worker) if self.table.is_connecting(exchange.link()) => {
                Some((times.heard + nanos(timeouts.connect), Due::Connect))
            }
            (_, Waits::Worker) if exchange.request.spool.as_ref().is_some_and(|body| body.is_read()) => None,
            // It has not got the whole request yet, and shows by taking more of it that it is there.
            (Phase::Awaiting, Waits::Worker) if !exchange.is_uploaded() => {
                Some((times.heard + nanos(timeouts.read), Due::Read))
            }
            (Phase::Awaiting, Waits::Worker) => {
                let (read, request) = (times.heard + nanos(timeouts.read), times.given + nanos(timeouts.request));
                Some(if read < request { (read, Due::Read) } else { (request, Due::Request) })
            }
            (Phase::Relaying, Waits::Worker) => Some(quiet()),
        };
        let (Some(limit), Some(granted)) = (timeouts.answer, times.granted) else { return own };
        // What is whole waits for its client alone.
        let is_answer = matches!(exchange.phase, Phase::Awaiting | Phase::Relaying) && !exchange.answer.stream;
        let ordinary = is_answer && !exchange.is_over();
        let whole = ordinary.then(|| (granted + nanos(limit), Due::Answer));
        own.into_iter().chain(whole).min_by_key(|(time, _)| *time)
    }

    /// Sets the exchange's timer to what its state says. To be called whenever the state, or who made progress, has changed.
    #[inline]
    pub fn rearm(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if let Some((time, _)) = self.due(exchange) {
            self.time.exchanges.arm_at(key.index, time);
        }
    }

    /// The worker is waited for from now on, or has just been heard: its silence counts anew.
    #[inline]
    pub fn heard(&mut self, key: Key) {
        let now = self.time.nanos();
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            exchange.times.heard = now;
        }
        self.rearm(key);
    }

    /// The timer at that place of the table has run out. It may be that of an exchange that is gone, or have been set before the
    /// state changed: what is due is derived anew.
    pub fn exchange_expired(&mut self, index: u32) {
        let Some(key) = self.exchanges.key_at(index) else { return };
        self.concern(key);
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let phase = exchange.phase;
        let Some((time, due)) = self.due(exchange) else { return };
        if due == Due::Memory {
            if phase == Phase::Collecting { self.gather_spooled(key) } else { self.pull(key) }
        }
        if self.time.nanos() < time {
            return self.rearm(key);
        }
        if due == Due::Idle && self.takes_more(key) {
            return self.heard(key);
        }
        let quiet = due == Due::Idle && !matches!(phase, Phase::Tunnel { .. });
        if quiet || matches!(due, Due::Connect | Due::Body | Due::Answer) {
            self.count().timeouts.add(1);
        }
        match due {
            Due::Queue => self.queue_expired(key),
            Due::Backlog => self.backlog_expired(key),
            Due::Verdict => self.hear_verdict(key, true),
            Due::Memory => {}
            Due::Connect => self.unreachable(key),
            Due::Body => self.fail(key, 408, "the request's body did not arrive in time: --body-timeout"),
            Due::Read | Due::Request => self.silent(key, due == Due::Request),
            Due::Answer => self.give_up_answer(key, "the answer was not whole in time: --answer-timeout"),
            Due::Idle if !quiet => self.finish(key, Ending::Left { how: How::Flushed }),
            Due::Idle => self.fail(key, 504, "the stream was idle: --idle-timeout"),
        }
    }

    /// The worker was silent for too long. That its receive found no block is our fault and not its own; and one that still takes
    /// its request, however slowly, is at work.
    fn silent(&mut self, key: Key, request: bool) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if self.backend.is_starved(exchange.link()) || (!request && self.takes_more(key)) {
            return self.heard(key);
        }
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        self.count().timeouts.add(1);
        if let Some(worker) = exchange.attempt.worker {
            exchange.app.dispatch.suspect(worker);
        }
        let reason = match (exchange.phase, request) {
            (Phase::Relaying, _) => "the worker stopped in the middle of an answer: --read-timeout-ms",
            (_, false) => "the worker did not answer in time: no byte of it came within --read-timeout-ms",
            (_, true) => "the worker did not answer in time: no head of it came within --request-timeout",
        };
        self.give_up_answer(key, reason);
    }

    /// Whether more was taken since this was asked last, of what was not or is not all taken: by the worker of its request, by the client of
    /// an event stream, by either side of a tunnel.
    fn takes_more(&mut self, key: Key) -> bool {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return false };
        let (link, asks, client) = (exchange.link(), exchange.phase == Phase::Awaiting, exchange.stream.connection);
        let endless = exchange.answer.stream || matches!(exchange.phase, Phase::Tunnel { .. });
        let both = [link, if asks { Key::NONE } else { client }];
        let taken = both.map(|sock| self.backend.acknowledged(sock)).iter().sum();
        let all: u64 = both.map(|sock| self.backend.sent(sock) + self.backend.unsent(sock) as u64).iter().sum();
        let before = std::mem::replace(&mut exchange.attempt.taken, taken);
        (asks || endless) && taken > before && (taken < all || before > exchange.attempt.sent_before)
    }

    /// Ends an exchange whose worker has taken too long, and may still be at it.
    fn give_up_answer(&mut self, key: Key, reason: &str) {
        if self.exchanges.lookup(key).is_some_and(|exchange| exchange.phase != Phase::Relaying) {
            self.warn(key, "a request timed out", reason, &[]);
        }
        self.finish(key, Ending::Failed { status: 504, reason, outcome: None });
    }
}
