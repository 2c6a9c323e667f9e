//! Event streams keep their permits for as long as somebody listens: how many there are, so that it can be said when they hold all.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// How many event streams hold a permit, in all loops.
#[derive(Default)]
pub struct Streams {
    held: Arc<AtomicUsize>,
    /// The second in which it was last said that they hold all permits.
    told: AtomicU64,
}

/// Counts as one stream as long as it lives.
pub struct StreamHold(Arc<AtomicUsize>);

/// Seconds between two lines about streams that hold all permits.
const TELL_SECONDS: u64 = 10;

impl Streams {
    /// Counts one more, until the hold is dropped.
    pub fn hold(&self) -> StreamHold {
        self.held.fetch_add(1, Ordering::Relaxed);
        StreamHold(self.held.clone())
    }

    /// How many there are.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether it is time to say, in that second of the clock, that they hold all permits; a yes counts as said.
    pub fn may_tell(&self, second: u64) -> bool {
        let told = self.told.load(Ordering::Relaxed);
        second >= told + TELL_SECONDS
            && self.told.compare_exchange(told, second, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Drop for StreamHold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
