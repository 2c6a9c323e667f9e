//! Verdicts: a worker's connection has ended, and what that means depends on whether the worker has.
//!
//! | what ended | the worker has died | it lives, or no word comes in time |
//! |---|---|---|
//! | a kept connection with a request in it that could be sent again | 502: it may be poison | it is sent again |
//! | the connection of an answer whose end that is | the answer is cut, which the client must see | the answer is whole |
//!
//! An answer that ends with its connection carries no sign of its own end, and a process that dies closes its connections as one does
//! that is done with them. Where that is all there is to go by, a worker that lives is believed at once, and so is one that nobody here
//! has started; one that ends with code 0 has done its work. The supervisor's word is waited for when the worker is seen to die, or is on
//! its way out and may be killed at any moment.

use std::time::Duration;

use crate::backends::{Backend, How};
use crate::buffers::slots::Key;
use crate::buffers::wheel::nanos;
use crate::dispatch::{AppId, Life, WorkerId};
use crate::exchange::{Exchange, Hold, Phase};
use crate::http::reader::Reader;
use crate::metrics::series::RetryReason;
use crate::proc;

use super::Loop;

/// How long the supervisor's word about a worker is waited for.
pub(crate) const VERDICT: Duration = Duration::from_millis(50);
/// The same, about one that is seen to die: a word is sure to come, unless what it has started goes on without it.
const LAST_WORD: Duration = Duration::from_secs(1);

impl<B: Backend> Loop<B> {
    /// The worker has ended the connection of an answer whose end that is.
    #[cold]
    pub fn answer_closed(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        (exchange.answer.reader, exchange.answer.reuse.keeps) = (Reader::Done, false);
        let life = life(exchange);
        let patience = match life {
            // The one look of a loop into /proc, behind which no disk stands: the kernel alone knows of an exit before the parent is told.
            Life::Lives { process, .. } if proc::is_seen_to_die(process) => LAST_WORD,
            Life::Lives { leaves: true, .. } => VERDICT,
            Life::Lives { .. } | Life::Unknown | Life::Ended { .. } => Duration::ZERO,
        };
        if patience.is_zero() { self.judge_closed(key, life) } else { self.await_verdict(key, patience) }
    }

    /// Waits for word whether the worker of an exchange has died; its connection is of no use any more.
    pub fn await_verdict(&mut self, key: Key, patience: Duration) {
        let until = self.time.nanos() + nanos(patience);
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        // Where a part of an answer waits in a file, an answer without a source would be taken for whole.
        let spools = exchange.answer.spool.is_some();
        let link = if spools { Key::NONE } else { std::mem::take(&mut exchange.source).link() };
        exchange.phase = Phase::Verdict { until };
        exchange.answer.hold = Hold::Not;
        self.close_link(link, How::Now);
        self.rearm(key);
        self.hear_verdict(key, false);
    }

    /// Looks whether the worker of an exchange in doubt is known to be dead; `over` when the wait is.
    pub fn hear_verdict(&mut self, key: Key, over: bool) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if exchange.answer.status != 0 {
            let life = life(exchange);
            if over || matches!(life, Life::Ended { .. }) {
                self.judge_closed(key, life);
            }
            return;
        }
        match exchange.attempt.worker.and_then(|worker| exchange.app.dispatch.is_alive(worker)) {
            Some(false) => self.lose(key),
            Some(true) if !over => {}
            _ => self.retry(key, RetryReason::ConnectionLost),
        }
    }

    /// Ends an answer whose connection has ended, once it is known how its worker has, or the wait for that is over.
    fn judge_closed(&mut self, key: Key, life: Life) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.phase = Phase::Relaying;
        match life {
            Life::Ended { well: false } => self.fail(key, 502, "the worker died in the middle of an answer"),
            _ => self.answer_whole(key, false),
        }
    }

    /// The supervisor has seen a worker die.
    pub fn worker_died(&mut self, app: AppId, worker: WorkerId) {
        let is_its = |it: &Exchange| it.app.id == app && it.attempt.worker == Some(worker);
        let in_doubt = |it: &Exchange| matches!(it.phase, Phase::Verdict { .. }) && is_its(it);
        let doubtful: Vec<Key> = self.exchanges.iter().filter(|(_, it)| in_doubt(it)).map(|(key, _)| key).collect();
        doubtful.into_iter().for_each(|key| self.hear_verdict(key, true));
        self.retire(app, worker);
    }
}

fn life(exchange: &Exchange) -> Life {
    exchange.attempt.worker.map_or(Life::Unknown, |worker| exchange.app.dispatch.life(worker))
}
