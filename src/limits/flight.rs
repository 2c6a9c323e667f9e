//! How many requests of a route are under way at once: so many that a slow one cannot have all workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// The requests of a route that are under way, over all loops.
#[derive(Debug, Default)]
pub struct Flight(AtomicU32);

impl Flight {
    /// One more, unless so many are under way.
    pub fn take(self: &Arc<Flight>, most: u32) -> Option<InFlight> {
        let more = |count: u32| (count < most).then_some(count + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(InFlight(self.clone()))
    }

    /// How many are under way.
    pub fn count(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One request among them, until this is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<Flight>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
