//! What the ends of requests say of a worker: what it is counted for, and whether it fails.
//!
//! Only a server that something else runs can have failed too often: workers of ours are replaced for other reasons. What counts is a
//! row of failures without a success between them, however long it takes: a connect that failed, a connection that ended before an
//! answer, a request that timed out, something that is no answer, and 502, 503 and 504. An answer that breaks off says nothing: much of
//! it was good; nor does 500, which a single request may cause.

use std::time::Instant;

use super::workers::{FAILING, RECOVERS, THRESHOLD};
use super::{Board, Outcome, Standing};

impl Board {
    /// Counts a request that ended.
    #[inline]
    pub fn count(&mut self, index: u32, outcome: Outcome, now: Instant) {
        let worker = self.workers.at_mut(index);
        match outcome {
            Outcome::Unused | Outcome::Unreachable => return,
            Outcome::Answered | Outcome::Failed | Outcome::Late => worker.answered_at = Some(now),
            Outcome::Broken | Outcome::Malformed | Outcome::Lost => worker.broken += 1,
            Outcome::Tunnel => {
                worker.tunnels += 1;
                worker.answered_at = Some(now);
            }
        }
        worker.served += 1;
        // One that is draining or dead is being replaced already.
        let replaceable = matches!(worker.standing, Standing::Ready | Standing::Unreachable);
        let (due, in_doubt) = (worker.served == worker.request_limit && replaceable, worker.is_in_doubt());
        if due {
            self.tell(index, THRESHOLD);
        }
        match outcome {
            Outcome::Answered | Outcome::Tunnel if in_doubt => self.succeeded(index),
            Outcome::Failed | Outcome::Malformed | Outcome::Lost => self.failed(index),
            _ => {}
        }
    }

    #[cold]
    fn succeeded(&mut self, index: u32) {
        let worker = self.workers.at_mut(index);
        worker.failures = 0;
        if worker.on_trial() {
            self.tell(index, RECOVERS);
        }
    }

    /// One more failure in a row. On trial the first is too much.
    #[cold]
    pub fn failed(&mut self, index: u32) {
        let most = self.failures;
        let worker = self.workers.at_mut(index);
        if most == 0 || worker.is_supervised() || worker.standing != Standing::Ready {
            return;
        }
        worker.failures += 1;
        if worker.failures >= most || worker.on_trial() {
            worker.failures = 0;
            self.tell(index, FAILING);
        }
    }
}
