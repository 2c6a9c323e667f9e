//! Whether a peer that is behind takes what it is sent: what counts as progress, and when there was none for too long. Sans-IO: whoever has the
//! clock looks [`LOOKS`] times in a write timeout.

use std::time::Duration;

/// How often in a write timeout it is looked whether the peer makes progress.
const LOOKS: u32 = 4;
/// What counts as progress over a write timeout: so many bytes for each of its seconds, and at most [`MOST_PROGRESS`].
const WRITE_RATE: u128 = 512;
const MOST_PROGRESS: u128 = 16 * 1024;

/// What was seen of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    /// The low half of [`Backend::acknowledged`](super::Backend::acknowledged) when progress was last seen: a connection that waits is to be small.
    acknowledged: u32,
    /// Looks in a row at which the peer had made no progress.
    silent_looks: u8,
}

impl Progress {
    /// From now on, so much being acknowledged.
    pub fn since(acknowledged: u64) -> Progress {
        Progress { acknowledged: acknowledged as u32, silent_looks: 0 }
    }

    /// How long it is until the next look.
    pub fn interval(patience: Duration) -> Duration {
        patience / LOOKS
    }

    /// A look: whether the peer has acknowledged nothing worth the name for the whole of the write timeout.
    pub fn is_over(&mut self, acknowledged: u64, patience: Duration) -> bool {
        let worth = (patience.as_millis() * WRITE_RATE / 1000).clamp(1, MOST_PROGRESS) as u32;
        if (acknowledged as u32).wrapping_sub(self.acknowledged) >= worth {
            *self = Progress::since(acknowledged);
        } else {
            self.silent_looks += 1;
        }
        u32::from(self.silent_looks) >= LOOKS
    }
}
