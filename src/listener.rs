//! What a listener of a loop is: a description, which comes with its socket. A new configuration brings listeners and takes some away.

use std::os::fd::OwnedFd;

/// What is spoken on a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP without encryption.
    Http,
}

impl Scheme {
    /// Whether the client's side is encrypted.
    pub fn is_secure(self) -> bool {
        match self {
            Scheme::Http => false,
        }
    }
}

/// A listener of a loop, with its socket.
#[derive(Debug)]
pub struct ListenerSetup {
    /// Its name in the whole process, the same in each loop; no other listener of this process has had it.
    pub id: u32,
    /// The socket, bound and listening.
    pub descriptor: OwnedFd,
    /// The local port that `X-Forwarded-Port` tells; 0 for a Unix socket.
    pub port: u16,
    /// What is spoken on it.
    pub scheme: Scheme,
}
