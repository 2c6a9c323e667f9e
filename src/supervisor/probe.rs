//! Is somebody listening there? Non-blocking connects with back-off, and what to say when nobody comes.
//!
//! A probe opens a connection and closes it at once. On a Unix socket the answer is immediate; on TCP it is waited for in
//! the supervisor's poll. A full backlog is an answer: somebody listens and is busy.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// How long a TCP connect may take before it counts as failed.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);

/// What a look at a probe shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// Somebody listens.
    Listening,
    /// Not yet; look again at [`Probe::next`], or when [`Probe::descriptor`] is writable.
    NotYet,
}

/// A series of connects to one address, each a little later than the one before.
#[derive(Debug)]
pub struct Probe {
    address: SockAddr,
    /// A TCP connect that is under way, and since when.
    pending: Option<(Socket, Instant)>,
    next: Instant,
    delay: Duration,
    longest: Duration,
}

impl Probe {
    /// A probe that connects at once, then after `first`, then after twice that, up to every `longest`.
    pub fn new(address: SockAddr, first: Duration, longest: Duration, now: Instant) -> Probe {
        Probe { address, pending: None, next: now, delay: first, longest }
    }

    /// A probe for a worker's own socket: 5 ms, doubling up to 100 ms.
    pub fn of_worker(address: SockAddr, now: Instant) -> Probe {
        Probe::new(address, Duration::from_millis(5), Duration::from_millis(100), now)
    }

    /// A probe for a server that somebody else runs: 50 ms, doubling up to 1 s.
    pub fn of_upstream(address: SockAddr, now: Instant) -> Probe {
        Probe::new(address, Duration::from_millis(50), Duration::from_secs(1), now)
    }

    /// When to look again.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// A connect under way, to be polled for writing.
    pub fn descriptor(&self) -> Option<RawFd> {
        self.pending.as_ref().map(|(socket, _)| socket.as_raw_fd())
    }

    /// Looks: finishes the connect that is under way, or starts the next one if it is due. Never blocks.
    pub fn look(&mut self, now: Instant) -> Look {
        let Some((socket, since)) = self.pending.take() else {
            return if now >= self.next { self.connect(now) } else { Look::NotYet };
        };
        match socket.take_error() {
            Ok(None) if socket.peer_addr().is_ok() => return Look::Listening,
            Ok(None) if now.saturating_duration_since(since) < CONNECT_PATIENCE => self.pending = Some((socket, since)),
            _ => self.later(now),
        }
        Look::NotYet
    }

    fn connect(&mut self, now: Instant) -> Look {
        match connect(&self.address) {
            Ok(None) => return Look::Listening,
            Ok(Some(socket)) => {
                self.pending = Some((socket, now));
                self.next = now + CONNECT_PATIENCE;
            }
            Err(_) => self.later(now),
        }
        Look::NotYet
    }

    /// Puts the next look off, each time for longer.
    pub fn later(&mut self, now: Instant) {
        self.next = now + self.delay;
        self.delay = (self.delay * 2).min(self.longest);
    }
}

/// One non-blocking connect: `None` when somebody listens, the socket when the answer is still to come.
fn connect(address: &SockAddr) -> io::Result<Option<Socket>> {
    let socket = Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(address) {
        Ok(()) => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(Some(socket)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::wake;
    use std::net::{SocketAddr, TcpListener};
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_unix_socket_is_found_as_soon_as_it_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let start = Instant::now();
        let mut probe = Probe::of_worker(SockAddr::unix(&path).unwrap(), start);
        let mut now = start;
        let mut steps = Vec::new();
        for _ in 0..8 {
            assert_eq!(probe.look(now), Look::NotYet);
            assert_eq!(probe.look(now), Look::NotYet, "not due, no connect");
            steps.push((probe.next() - now).as_millis());
            now = probe.next();
        }
        assert_eq!(steps, [5, 10, 20, 40, 80, 100, 100, 100]);
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(probe.look(now), Look::Listening);
        drop(listener);
    }

    #[test]
    fn a_tcp_listener_is_found_and_a_closed_port_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        assert_eq!(follow(Probe::of_upstream(address.into(), Instant::now())), Look::Listening);
        drop(listener);
        assert_eq!(follow(Probe::of_upstream(address.into(), Instant::now())), Look::NotYet);
    }

    /// Looks until the first connect has its answer.
    fn follow(mut probe: Probe) -> Look {
        let now = Instant::now();
        let mut look = probe.look(now);
        while let Some(descriptor) = probe.descriptor() {
            wake::poll(&mut [wake::entry(descriptor, libc::POLLOUT)], Some(Duration::from_secs(10))).unwrap();
            look = probe.look(now);
        }
        look
    }

    #[test]
    fn a_full_backlog_is_an_answer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let address = SockAddr::unix(&path).unwrap();
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        listener.bind(&address).unwrap();
        listener.listen(0).unwrap();
        for _ in 0..3 {
            assert_eq!(Probe::of_worker(address.clone(), Instant::now()).look(Instant::now()), Look::Listening);
        }
    }
}
