//! Whether a client's peer takes what it is sent: the clock that runs while it is behind.

use crate::backends::{Backend, How, Progress, Sock};
use crate::buffers::slots::Key;

use super::Loop;

impl<B: Backend> Loop<B> {
    /// The peer has not taken all that it was offered: from now on it is watched.
    pub fn client_full(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        client.behind = true;
        // A head that is coming in has the clock, and will not have it for long.
        if !client.entrance.pass.waits() && (client.is_answered() || client.input.is_none() || client.entrance.stalled)
        {
            self.watch_write(sock);
        }
        self.client_fell_behind(sock);
    }

    /// Begins to look whether the peer makes progress.
    pub fn watch_write(&mut self, sock: Sock) {
        let progress = Progress::since(self.backend.acknowledged(sock));
        let Some(client) = self.table.client(sock) else { return };
        client.progress = progress;
        self.arm(sock, Progress::interval(self.apps.settings.timeouts.write));
    }

    /// Looks whether the peer has acknowledged something since the last look that is worth the name, and cuts it when it has not
    /// for the whole of the write timeout.
    pub fn look_at_write(&mut self, sock: Sock) {
        let patience = self.apps.settings.timeouts.write;
        let acknowledged = self.backend.acknowledged(sock);
        let Some(client) = self.table.client(sock) else { return };
        if !client.progress.is_over(acknowledged, patience) {
            return self.arm(sock, Progress::interval(patience));
        }
        let asked = client.exchange != Key::NONE;
        self.count().timeouts.add(1);
        self.count().client_gone.add(u64::from(asked));
        self.client_left(sock, How::Reset);
    }
}
