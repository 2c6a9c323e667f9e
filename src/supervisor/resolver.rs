//! Names of upstreams, looked up on threads of their own: getaddrinfo(3) may wait for a name server as long as it likes.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;

use super::wake::Waker;

/// Finds the addresses of a host's port. Called on a thread where it may block.
pub type Resolve = fn(&str, u16) -> io::Result<Vec<SocketAddr>>;

/// The system's way: hosts file, name servers and what else nsswitch.conf(5) says.
///
/// # Errors
/// When the name is not known, or nobody could be asked.
pub fn by_system(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    Ok((host, port).to_socket_addrs()?.collect())
}

/// A look-up under way. One that is dropped runs on to its end, and nobody hears of it.
#[derive(Debug)]
pub struct Lookup(Receiver<Result<Vec<SocketAddr>, String>>);

impl Lookup {
    /// Begins one; the waker is woken when it has ended.
    pub fn begin(resolve: Resolve, host: &str, port: u16, waker: &Waker) -> Lookup {
        let (sender, receiver) = channel();
        let (name, waker, unheard) = (host.to_owned(), waker.clone(), sender.clone());
        let ask = move || {
            let found = match resolve(&name, port) {
                Ok(found) if found.is_empty() => Err("the name has no address".to_owned()),
                Ok(found) => Ok(found),
                Err(error) => Err(error.to_string()),
            };
            sender.send(found).ok();
            waker.wake();
        };
        if let Err(error) = thread::Builder::new().name("resolver".to_owned()).spawn(ask) {
            unheard.send(Err(format!("no thread for it: {error}"))).ok();
        }
        Lookup(receiver)
    }

    /// What was found, or why nothing was; `None` while it runs.
    pub fn take(&self) -> Option<Result<Vec<SocketAddr>, String>> {
        match self.0.try_recv() {
            Ok(found) => Some(found),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err("the thread that asked has ended".to_owned())),
        }
    }
}
