//! Leftovers: what a worker may still be doing for a request that has ended without it.
//!
//! The client has left, or was told 504; the worker does not know, or cannot stop. With one request at a time it must not be given
//! the next before it is done, so the permit stays with its connection, which is half-closed, and the answer is read to its end
//! and forgotten. A worker that was silent until `--request-timeout` is reported as stuck; the dispatch knows whether anything
//! else on it has moved meanwhile.

use std::rc::Rc;

use crate::apps::App;
use crate::backends::{Backend, How, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::buffers::wheel::nanos;
use crate::dispatch::{Outcome, Permit};
use crate::exchange::{Nanos, Phase};
use crate::http::Method;
use crate::http::head;
use crate::http::reader::Reader;
use crate::limits::InFlight;
use crate::planted::{self, Bug};

use super::LinkState;
use crate::event_loop::Loop;

/// What is left of an exchange at its worker's connection.
pub(crate) struct Leftover {
    app: Rc<App>,
    /// Stays out while nothing else may be given to the worker.
    permit: Option<Permit>,
    /// Its place among those that its route may have under way.
    _seat: Option<InFlight>,
    method: Method,
    /// What is still to come of the answer's body; `None` before its head.
    reader: Option<Reader>,
    /// Since when nothing has been heard of it, where it has kept us waiting.
    silent_since: Option<Nanos>,
    /// What the worker had taken of its request when it was left.
    taken: u64,
}

impl<B: Backend> Loop<B> {
    /// Takes an exchange from a worker that may still be busy with it; `timed_out`: the worker has kept us waiting.
    pub fn leave_worker(&mut self, key: Key, timed_out: bool) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let app = exchange.app.clone();
        let isolated = app.settings.sharing.concurrency == 1;
        let sock = std::mem::take(&mut exchange.source).link();
        let delivered = self.backend.offered(sock) > exchange.attempt.sent_before;
        if planted::active(Bug::DirtyLink) && sock != Key::NONE {
            self.park(sock, app.idle_links(), None);
            return self.give_back(key, Outcome::Unused);
        }
        let waits = timed_out || (isolated && !exchange.answer.stream);
        let due = if timed_out {
            exchange.times.heard + nanos(app.settings.timeouts.request)
        } else {
            now + nanos(app.settings.timeouts.abandon)
        };
        // Of a connection that has ended nothing is to be waited for.
        if !delivered || !waits || matches!(exchange.phase, Phase::Verdict { .. }) {
            self.close_link(sock, How::Now);
            return self.give_back(key, if delivered { Outcome::Broken } else { Outcome::Unused });
        }
        let relaying = exchange.phase == Phase::Relaying;
        let leftover = Leftover {
            app,
            permit: exchange.attempt.permit.take_if(|_| isolated),
            _seat: exchange.attempt.seat.take(),
            method: exchange.request.method,
            reader: relaying.then(|| std::mem::take(&mut exchange.answer.reader)),
            silent_since: timed_out.then_some(exchange.times.heard),
            taken: if timed_out { self.backend.acknowledged(sock) } else { 0 },
        };
        if let Some(link) = self.table.link(sock) {
            (link.state, link.exchange) = (LinkState::Leftover, Key::NONE);
            link.leftover = Some(Box::new(leftover));
        }
        // A worker that takes several at a time may be given others meanwhile.
        self.give_back(key, Outcome::Broken);
        self.backend.finish(sock);
        self.backend.recv(sock, Size::Small);
        self.time.connections.arm_at(sock.index, due);
    }

    /// Bytes of an answer that nobody waits for.
    pub fn leftover_received(&mut self, sock: Sock, block: Block) {
        let now = self.time.nanos();
        let Some(link) = self.table.link(sock) else { return };
        let Some(leftover) = link.leftover.as_mut() else { return };
        if let Some(since) = &mut leftover.silent_since {
            *since = now;
        }
        let mut input = self.memory.pool.joined(link.input.take(), block);
        while leftover.reader.is_none() {
            match head::response(&input, leftover.method, false, &self.heads.limits, &mut self.heads.fields) {
                Ok(None) => {
                    link.input = Some(input.settle(&self.memory.pool));
                    return self.backend.recv(sock, Size::Small);
                }
                Ok(Some(response)) if response.status < 200 => input.advance(response.len),
                Ok(Some(response)) => {
                    input.advance(response.len);
                    leftover.reader = Some(Reader::new(response.framing));
                }
                Err(_) => return self.leftover_ended(sock, false),
            }
        }
        let Some(reader) = &mut leftover.reader else { return };
        loop {
            match reader.take(&mut input) {
                Ok(Some(_)) => {}
                Ok(None) if reader.is_done() => return self.leftover_ended(sock, false),
                Ok(None) => return self.backend.recv(sock, Size::Small),
                Err(_) => return self.leftover_ended(sock, false),
            }
        }
    }

    /// The worker is done with it, or its connection is of no use any more; `end`: it has ended its side.
    pub fn leftover_ended(&mut self, sock: Sock, end: bool) {
        let Some(link) = self.table.link(sock) else { return };
        let Some(leftover) = link.leftover.take() else { return };
        self.close_link(sock, How::Now);
        let whole = match &leftover.reader {
            Some(Reader::UntilClose) => end,
            Some(reader) => reader.is_done(),
            None => false,
        };
        if let Some(permit) = leftover.permit {
            self.release(&leftover.app, permit, if whole { Outcome::Late } else { Outcome::Broken });
        }
    }

    /// The time that the worker had for it is over. With one request at a time it has worked on nothing else. One that has taken
    /// more of the request since is slow, and not stuck.
    pub fn leftover_expired(&mut self, sock: Sock) {
        let (now, taken) = (self.time.nanos(), self.backend.acknowledged(sock));
        let Some(link) = self.table.link(sock) else { return };
        let (worker, Some(leftover)) = (link.worker, link.leftover.as_ref()) else { return };
        let app = &leftover.app;
        if let Some(since) = leftover.silent_since
            && taken <= leftover.taken
            && now >= since + nanos(app.settings.timeouts.request)
        {
            app.dispatch.stuck(worker, self.time.instant(since), self.time.now);
        }
        self.leftover_ended(sock, false);
    }
}
