//! What is done when descriptors run out: accepting rests, and one descriptor is spared for requests that are here already.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

/// Nothing is accepted for a while: descriptors or memory have run out, or a listener fails for good. Trying at once again would spin.
pub(super) struct Shortage {
    retry_after: Duration,
    /// When it is tried again.
    until: Option<Instant>,
    /// Whether it was told, and nothing was accepted since.
    told: bool,
}

impl Shortage {
    /// None yet; one lasts for `retry_after` at a time.
    pub(super) fn new(retry_after: Duration) -> Shortage {
        Shortage { retry_after, until: None, told: false }
    }

    /// An accept has failed; whether that is to be told.
    pub(super) fn begin(&mut self, now: Instant) -> bool {
        self.until = Some(now + self.retry_after);
        !std::mem::replace(&mut self.told, true)
    }

    /// A connection was accepted: the next failure is a new one.
    pub(super) fn accepted(&mut self) {
        self.told = false;
    }

    /// Ends the rest when its time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        if self.until.is_some_and(|until| until <= now) {
            self.until = None;
        }
    }

    /// When accepting is tried again, while it rests.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }
}

/// A descriptor that is held only to be given up when there is no other: so a request that came in can still reach a worker.
pub(super) struct Spare(Option<File>);

impl Spare {
    /// Takes one, if one is left.
    pub(super) fn new() -> Spare {
        Spare(File::open("/dev/null").ok())
    }

    /// Opens something, with the spare descriptor if there is no other.
    pub(super) fn help<T>(&mut self, open: impl Fn() -> io::Result<T>) -> io::Result<T> {
        match open() {
            Err(error) if is_exhaustion(&error) && self.0.take().is_some() => open(),
            outcome => outcome,
        }
    }

    /// Takes one again if the last was given up. For when a descriptor was closed.
    pub(super) fn restore(&mut self) {
        if self.0.is_none() {
            *self = Spare::new();
        }
    }
}

/// Whether the process or the system has run out of descriptors or of memory for sockets.
fn is_exhaustion(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
