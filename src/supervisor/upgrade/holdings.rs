//! What a server holds for a successor: the sockets that it listens on, and the files of those that have one.
//!
//! Every loop has copies of its own. These are kept so that they can be handed over: a socket with connections in its backlog must
//! not be closed by the last who has it. They go as soon as the server accepts no more; a copy that nobody accepts from would keep
//! clients waiting.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::handover::Listener;
use crate::socket_file::SocketFile;

/// A listener, as it is held.
#[derive(Debug)]
pub struct Held {
    /// As it is configured: the port may be 0.
    pub asked: String,
    /// Where it is.
    pub address: String,
    /// Copies of its sockets, in the order of the loops.
    pub sockets: Vec<OwnedFd>,
    /// The file of a Unix socket that a server has made: this one, or one before it.
    pub file: Option<SocketFile>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Holdings {
    /// The run directory as it is configured, absolute.
    pub run_dir: PathBuf,
    /// The listeners.
    pub listeners: Vec<Held>,
}

impl Holdings {
    /// What is told of the listeners, and copies of their sockets in the same order.
    ///
    /// # Errors
    /// When there are no descriptors left.
    pub fn copies(&self) -> io::Result<(Vec<Listener>, Vec<OwnedFd>)> {
        let told = self.listeners.iter().map(|held| Listener {
            asked: held.asked.clone(),
            address: held.address.clone(),
            sockets: held.sockets.len(),
            file: held.file.as_ref().map(SocketFile::identity),
        });
        let sockets: io::Result<Vec<OwnedFd>> =
            self.listeners.iter().flat_map(|held| &held.sockets).map(OwnedFd::try_clone).collect();
        Ok((told.collect(), sockets?))
    }

    /// The server accepts no more.
    pub fn close(&mut self) {
        self.listeners.iter_mut().for_each(|held| held.sockets.clear());
    }

    /// From now on the files are this server's.
    pub fn take_over(&mut self) {
        self.listeners.iter_mut().filter_map(|held| held.file.as_mut()).for_each(SocketFile::take_over);
    }

    /// From now on the files of those listeners are the successor's.
    pub fn give_away(&mut self, addresses: &[String]) {
        let given = self.listeners.iter_mut().filter(|held| addresses.contains(&held.address));
        given.filter_map(|held| held.file.as_mut()).for_each(SocketFile::give_away);
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<String> {
        self.listeners.iter().map(|held| held.address.clone()).collect()
    }
}
