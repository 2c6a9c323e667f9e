//! A worker that cannot be connected to.

use std::os::unix::net::{UnixListener, UnixStream};

/// A listener that never accepts, whose backlog is to be filled after the server's probe.
pub struct Clogged {
    pub listener: UnixListener,
    pub waiting: Vec<UnixStream>,
}

impl Clogged {
    pub fn new(path: &std::path::Path) -> Clogged {
        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.bind(&socket2::SockAddr::unix(path).unwrap()).unwrap();
        socket.listen(1).unwrap();
        Clogged { listener: socket.into(), waiting: Vec::new() }
    }

    pub fn fill(&mut self) {
        let address = self.listener.local_addr().unwrap();
        loop {
            let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            match socket.connect(&socket2::SockAddr::unix(address.as_pathname().unwrap()).unwrap()) {
                Ok(()) => self.waiting.push(socket.into()),
                Err(error) => break assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock),
            }
        }
    }
}
