//! When a worker was last heard from: what tells one that is slow from one that is stuck.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When a worker was last heard from, on whichever loop. The loops note it at each receive, so it is coarse: what comes within
/// [`Moves::GRAIN`] of what was noted last goes unnoted.
#[derive(Debug)]
pub struct Moves {
    epoch: Instant,
    /// Nanoseconds from the epoch to the last byte that was noted; 0 for none.
    last: AtomicU64,
}

impl Moves {
    /// A worker that sends all the time costs its loops one store in this time, and reads of a line that rarely changes. What is asked
    /// of this clock is whether seconds have passed.
    pub const GRAIN: Duration = Duration::from_millis(100);

    /// A clock that knows no moment before `epoch`.
    pub fn new(epoch: Instant) -> Moves {
        Moves { epoch, last: AtomicU64::new(0) }
    }

    /// Notes a byte of the worker.
    #[inline]
    pub fn note(&self, now: Instant) {
        let (at, last) = (self.nanoseconds(now).max(1), self.last.load(Ordering::Relaxed));
        // Loops that note at the same time may overwrite each other's moment: that is less than a turn, and no matter.
        if last == 0 || at > last.saturating_add(Moves::GRAIN.as_nanos() as u64) {
            self.last.store(at, Ordering::Relaxed);
        }
    }

    /// Whether the worker was ever heard from.
    pub fn ever(&self) -> bool {
        self.last.load(Ordering::Relaxed) != 0
    }

    /// Whether the worker was heard from after this moment.
    pub fn since(&self, moment: Instant) -> bool {
        self.last.load(Ordering::Relaxed) > self.nanoseconds(moment)
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.epoch);
        since.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(since.subsec_nanos()))
    }
}

impl Default for Moves {
    /// A clock that begins now.
    fn default() -> Moves {
        Moves::new(Instant::now())
    }
}
