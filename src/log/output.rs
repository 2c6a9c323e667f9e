//! Where the writer of a sink puts its bytes: a stream, a file that can be opened anew, or a datagram socket.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::net::{ToSocketAddrs, UdpSocket};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use super::framing::{LENGTH, first};
use crate::config::SyslogAddress;

/// Where the bytes go.
pub enum Output {
    /// A descriptor or anything else that can be written.
    Stream(Box<dyn Write + Send>),
    /// A file that can be reopened by its path.
    File(PathBuf, File),
    /// A datagram for each message.
    Datagrams(Datagrams),
}

impl Output {
    /// A file opened for appending, made with mode 0640. A named pipe is opened for both directions where that never waits, so that it
    /// needs no reader to be opened, and outlives the one that it has.
    pub fn file(path: &Path) -> io::Result<Output> {
        Ok(Output::File(path.to_owned(), open_to_append(path)?))
    }

    /// A socket that is looked for when the first message is sent, and again whenever it was away.
    pub fn datagrams(to: SyslogAddress) -> Output {
        Output::Datagrams(Datagrams { to, socket: None, late: None, stale: false })
    }

    /// The writer's stream.
    pub fn stream(&mut self) -> &mut dyn Write {
        match self {
            Output::Stream(stream) => stream,
            Output::File(_, file) => file,
            Output::Datagrams(datagrams) => datagrams,
        }
    }

    /// Opens it anew where it has a path or an address.
    pub fn reopen(&mut self) -> io::Result<()> {
        match self {
            Output::Stream(_) => {}
            Output::File(path, file) => *file = open_to_append(path)?,
            Output::Datagrams(datagrams) => datagrams.socket = None,
        }
        Ok(())
    }

    /// Whether nothing stands in what it writes to, as in a file that was made anew.
    pub fn is_empty(&self) -> bool {
        matches!(self, Output::File(_, file) if file.metadata().is_ok_and(|metadata| metadata.len() == 0))
    }

    /// Whether there is nobody to write to until somebody is looked for again.
    pub fn is_away(&self) -> bool {
        matches!(self, Output::Datagrams(Datagrams { socket: None, .. }))
    }

    /// What was told, while a message was sent, of an earlier one that did not arrive.
    pub fn take_late(&mut self) -> Option<io::Error> {
        match self {
            Output::Datagrams(datagrams) => datagrams.late.take(),
            _ => None,
        }
    }
}

/// Opens a file to be written to at its end, or a named pipe, without waiting for somebody who reads from it.
///
/// # Errors
/// What the system says.
pub fn open_to_append(path: &Path) -> io::Result<File> {
    let pipe = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    if pipe && cfg!(target_os = "linux") {
        return OpenOptions::new().read(true).write(true).open(path);
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// A datagram socket that comes and goes.
pub struct Datagrams {
    to: SyslogAddress,
    socket: Option<Socket>,
    /// What the kernel told of an earlier message.
    late: Option<io::Error>,
    /// The receiver may be elsewhere by now, and is looked for again behind this batch.
    stale: bool,
}

enum Socket {
    Unix(UnixDatagram),
    Udp(UdpSocket),
}

impl Datagrams {
    fn connect(&self) -> io::Result<Socket> {
        match &self.to {
            SyslogAddress::Unix(path) => {
                let socket = UnixDatagram::unbound()?;
                socket.connect(path)?;
                Ok(Socket::Unix(socket))
            }
            SyslogAddress::Udp(host, port) => {
                let mut last = io::Error::new(ErrorKind::NotFound, "the host has no address");
                for address in (host.as_str(), *port).to_socket_addrs()? {
                    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    match UdpSocket::bind(any).and_then(|socket| socket.connect(address).map(|()| socket)) {
                        Ok(socket) => return Ok(Socket::Udp(socket)),
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }

    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        let sent = match &self.socket {
            Some(Socket::Unix(socket)) => socket.send(message),
            Some(Socket::Udp(socket)) => socket.send(message),
            None => return Err(ErrorKind::NotConnected.into()),
        };
        sent.map(drop)
    }
}

/// Takes one message at each write, with its length before it.
impl Write for Datagrams {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some((message, _)) = first(bytes) else { return Ok(bytes.len()) };
        let fresh = self.socket.is_none();
        if fresh {
            self.socket = Some(self.connect()?);
        }
        let mut sent = self.send(message);
        match (&self.socket, sent) {
            // A receiver that was started anew has another socket at the same path.
            (Some(Socket::Unix(_)), Err(error)) if is_gone(&error) && !fresh => {
                self.socket = None;
                self.socket = Some(self.connect()?);
                sent = self.send(message);
            }
            // An earlier message was sent back, and this one was not sent (udp(7)); whoever is there now takes it.
            (Some(Socket::Udp(_)), Err(error)) if is_gone(&error) => {
                sent = self.send(message);
                (self.late, self.stale) = (Some(error), true);
            }
            (_, first) => sent = first,
        }
        match sent {
            Ok(()) => Ok(LENGTH + message.len()),
            Err(error) if is_gone(&error) && !self.stale => {
                self.socket = None;
                // Not a pipe's end, which is for ever.
                Err(if error.kind() == ErrorKind::BrokenPipe { ErrorKind::NotConnected.into() } else { error })
            }
            Err(error) => Err(error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.stale)
            && let Some(Socket::Udp(socket)) = self.socket.take()
        {
            self.late = socket.take_error()?;
        }
        Ok(())
    }
}

fn is_gone(error: &io::Error) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected, NotFound};
    matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotConnected | NotFound)
}
