//! Whether a client's peer takes what it is sent: the clock that runs while it is behind.

use crate::backends::{Backend, How, Sock};

use super::Loop;

/// How often in a write timeout it is looked whether the peer makes progress.
const LOOKS: u32 = 4;
/// What counts as progress over a write timeout: so many bytes for each of its seconds, and at most [`MOST_PROGRESS`].
const WRITE_RATE: u128 = 512;
const MOST_PROGRESS: u128 = 16 * 1024;

/// What was seen of it.
#[derive(Default)]
pub(crate) struct Progress {
    /// The low half of [`Backend::acknowledged`] when progress was last seen: a connection that waits is to be small.
    acknowledged: u32,
    /// Looks in a row at which the peer had made no progress.
    silent_looks: u8,
}

impl<B: Backend> Loop<B> {
    /// Begins to look whether the peer makes progress.
    pub fn watch_write(&mut self, sock: Sock) {
        let acknowledged = self.backend.acknowledged(sock) as u32;
        let Some(client) = self.table.client(sock) else { return };
        client.progress = Progress { acknowledged, silent_looks: 0 };
        self.arm(sock, self.apps.settings.timeouts.write / LOOKS);
    }

    /// Looks whether the peer has acknowledged something since the last look that is worth the name, and cuts it when it has not
    /// for the whole of the write timeout.
    pub fn look_at_write(&mut self, sock: Sock) {
        let patience = self.apps.settings.timeouts.write;
        let worth = (patience.as_millis() * WRITE_RATE / 1000).min(MOST_PROGRESS) as u32;
        let acknowledged = self.backend.acknowledged(sock) as u32;
        let Some(client) = self.table.client(sock) else { return };
        let progress = &mut client.progress;
        if acknowledged.wrapping_sub(progress.acknowledged) >= worth {
            *progress = Progress { acknowledged, silent_looks: 0 };
        } else {
            progress.silent_looks += 1;
        }
        if u32::from(progress.silent_looks) < LOOKS {
            return self.arm(sock, patience / LOOKS);
        }
        self.count().timeouts.add(1);
        self.client_left(sock, How::Reset);
    }
}
