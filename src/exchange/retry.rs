//! What to do when a worker's connection fails: the retry table.
//!
//! At most one retry, beside what workers decline, and only while the whole request is here and no byte of an answer was seen:
//!
//! | what happened | method | what is done |
//! |---|---|---|
//! | the connect failed | any | the worker is reported; back to the head of the queue, no retry spent |
//! | 503 with `Rip-Worker-Busy: 1` or `Rip-Worker-Draining: 1` | any | another worker, each once: it did not run |
//! | ended, and nothing of the request was taken by the kernel | any | a fresh connection, another worker |
//! | the same on a fresh connection, and the retry is spent | any | as if the connect had failed, up to eight times |
//! | bytes came before anything of the request was taken by the kernel | any | the same: they answer something else |
//! | a kept connection ended, bytes were delivered | idempotent | wait for word whether the worker died: then 502, else a fresh connection |
//! | the same | others | 502 |
//! | a fresh connection ended | any | 502 |
//!
//! A request that killed its worker may be poison: it is never given to a second one (`event_loop/verdict.rs`).

use crate::backends::{Backend, How, Side, Sock};
use crate::buffers::slots::Key;
use crate::connection::LinkState;
use crate::dispatch::Outcome;
use crate::event_loop::{Loop, Task, VERDICT};
use crate::http::reader::Reader;
use crate::metrics::series::RetryReason;
use crate::planted::{self, Bug};

use super::{Ending, Phase};

/// How many fresh connections may end without taking anything of a request whose retry is spent. Workers that are told to end all at once take in
/// whom the kernel has connected, and nothing from them; one that does so for ever must not be asked for ever.
const MOST_UNTAKEN: u8 = 8;

impl<B: Backend> Loop<B> {
    /// A worker's connection has ended or failed.
    pub fn link_lost(&mut self, sock: Sock, side: Option<Side>) {
        let Some(link) = self.table.link(sock) else { return };
        let (state, key) = (link.state, link.exchange);
        match state {
            LinkState::Closing => {}
            LinkState::Idle => self.close_link(sock, How::Now),
            LinkState::Connecting => self.unreachable(key),
            LinkState::Busy => self.busy_link_lost(key, sock, side),
            LinkState::Leftover if side == Some(Side::Send) => {}
            LinkState::Leftover => self.leftover_ended(sock, side.is_none()),
        }
    }

    fn busy_link_lost(&mut self, key: Key, sock: Sock, side: Option<Side>) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return self.close_link(sock, How::Now) };
        let delivered = self.backend.offered(sock) > exchange.attempt.sent_before;
        match exchange.phase {
            // A failed send that delivered something leaves an early answer possible: receives go on.
            Phase::Awaiting if side == Some(Side::Send) && delivered => {}
            Phase::Awaiting => self.lost_before_answer(key, delivered),
            Phase::Relaying if side == Some(Side::Send) => {}
            Phase::Relaying if side.is_none() && matches!(exchange.answer.reader, Reader::UntilClose) => {
                self.answer_closed(key);
            }
            Phase::Relaying => self.fail(key, 502, "the worker's connection ended in the middle of an answer"),
            Phase::Tunnel { .. } if side == Some(Side::Receive) => self.finish(key, Ending::Left { how: How::Flushed }),
            Phase::Tunnel { .. } => _ = self.tunnel_way_ended(key, side.is_some()),
            // It has ended already, and stays named for what of the answer lies in a file.
            Phase::Verdict { .. } => {}
            _ => debug_assert!(false, "a link was lost in {:?}", exchange.phase),
        }
    }

    /// The connection is of no use any more, and no answer to the request has come.
    pub fn lost_before_answer(&mut self, key: Key, delivered: bool) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let link = self.table.link(exchange.link());
        let (seen, reused) = link.map_or((true, false), |link| (link.input.is_some(), link.reused));
        let may_retry = exchange.is_whole() && !exchange.attempt.retried && !seen;
        let late = planted::active(Bug::LateRetry) && exchange.is_whole() && !exchange.attempt.retried;
        let idempotent = exchange.request.method.is_idempotent();
        if (may_retry && !delivered) || late {
            return self.retry(key, RetryReason::NotTaken);
        }
        // Its worker is about to end, and the request is as if it had been refused.
        if exchange.is_whole() && !seen && !delivered && !reused && exchange.attempt.untaken < MOST_UNTAKEN {
            exchange.attempt.untaken += 1;
            return self.unreachable(key);
        }
        if may_retry && reused && idempotent {
            return self.await_verdict(key, VERDICT);
        }
        self.lose(key);
    }

    /// The worker is lost with the request in it.
    pub fn lose(&mut self, key: Key) {
        let reason = "the worker's connection ended before it answered";
        // A process that is dying closes its sockets one by one: until the supervisor has looked, it may still seem to listen, and
        // the worker freed last would be asked first. The dispatch knows whether this was all it had.
        self.finish(key, Ending::Failed { status: 502, reason, outcome: Some(Outcome::Lost) });
    }

    /// Sends the request again, over a fresh connection and preferably to another worker.
    pub fn retry(&mut self, key: Key, reason: RetryReason) {
        let outcome = match reason {
            RetryReason::ConnectionLost => Outcome::Broken,
            RetryReason::NotTaken => Outcome::Unused,
            RetryReason::Declined => Outcome::Declined,
        };
        self.drop_worker(key, outcome);
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        match reason {
            RetryReason::Declined => exchange.attempt.declined += 1,
            _ => exchange.attempt.retried = true,
        }
        exchange.attempt.exclude = exchange.attempt.worker;
        let count = exchange.app.count;
        self.count().app(count).retries[reason as usize].add(1);
        self.ask_again(key);
    }

    /// The request is to ask for a permit once more, from where it stood in the queue.
    pub fn ask_again(&mut self, key: Key) {
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            exchange.phase = Phase::Asking;
            self.work.push_back(Task::Ask(key));
        }
    }

    /// The connect was refused or took too long: dispatch learns of it, the request keeps its place and its retry.
    pub fn unreachable(&mut self, key: Key) {
        if let Some(exchange) = self.exchanges.lookup(key) {
            self.count().app(exchange.app.count).connects_failed.add(1);
        }
        self.drop_worker(key, Outcome::Unreachable);
        self.ask_again(key);
    }
}
