//! What the ends of requests say of a worker: what it is counted for, and whether it fails.
//!
//! Only a server that something else runs can have failed too often: workers of ours are replaced for other reasons. What counts is a
//! row of failures without a success between them, however long it takes: a connect that failed, a connection that ended before an
//! answer, a request that timed out, something that is no answer, and 502, 503 and 504. An answer that breaks off says nothing: much of
//! it was good; nor does 500, which a single request may cause.

use std::time::Instant;

use super::workers::{FAILING, RECOVERS, THRESHOLD};
use super::{Board, Outcome, Standing};

/// What became of the requests of one worker.
pub(super) struct Record {
    /// Requests it was given and that ran, whole or broken.
    pub served: u64,
    limit: u64,
    pub broken: u64,
    pub answered_at: Option<Instant>,
    /// Failures since its last success.
    pub failures: u32,
}

impl Record {
    /// That of one which is due after so many.
    pub fn new(limit: Option<u64>) -> Record {
        Record { served: 0, limit: limit.unwrap_or(u64::MAX), broken: 0, answered_at: None, failures: 0 }
    }

    /// It is due after so many from now on, those counted that it had; 0: never. Whether it is at once.
    pub fn limit(&mut self, limit: u64) -> bool {
        self.limit = if limit == 0 { u64::MAX } else { limit };
        self.served >= self.limit
    }
}

impl Board {
    /// Counts a request that ended.
    #[inline]
    pub fn count(&mut self, index: u32, outcome: Outcome, now: Instant) {
        let worker = self.workers.at_mut(index);
        match outcome {
            Outcome::Unused | Outcome::Declined | Outcome::Unreachable => return,
            Outcome::Answered | Outcome::Failed | Outcome::Late => worker.record.answered_at = Some(now),
            Outcome::Broken | Outcome::Malformed | Outcome::Lost => worker.record.broken += 1,
            Outcome::Tunnel => {
                worker.load.tunnels += 1;
                worker.record.answered_at = Some(now);
            }
        }
        worker.record.served += 1;
        // One that is draining or dead is being replaced already.
        let replaceable = matches!(worker.standing, Standing::Ready | Standing::Unreachable);
        let due = worker.record.served == worker.record.limit && replaceable;
        let in_doubt = worker.is_in_doubt();
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
        worker.record.failures = 0;
        if worker.load.on_trial() {
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
        worker.record.failures += 1;
        if worker.record.failures >= most || worker.load.on_trial() {
            worker.record.failures = 0;
            self.tell(index, FAILING);
        }
    }
}
