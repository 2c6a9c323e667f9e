//! Requests to the worker and its answers, read with the parser that the server reads them with.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::bench::{Bench, LOOK_AGAIN, Trouble};
use crate::http::body::Chunked;
use crate::http::fields::Fields;
use crate::http::head::{self, HeadLimits, Response};
use crate::http::{Framing, Method, Version};
use crate::kernel;

/// How long an answer may take: the server's own default for `--read-timeout-ms`.
pub const ANSWER_TIME: Duration = Duration::from_secs(5);
/// How long a connect may take.
const CONNECT_TIME: Duration = Duration::from_secs(2);
/// Bytes read at once.
const PORTION: usize = 64 * 1024;

/// A connection to the worker.
pub struct Client {
    socket: Socket,
    /// What came and is not part of an answer yet.
    input: Vec<u8>,
    /// What is to be sent.
    output: Vec<u8>,
    /// The worker has finished sending.
    ended: bool,
    /// What sending failed with. An answer may still be there to be read.
    broken: Option<io::Error>,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The final status.
    pub status: u16,
    /// The version of its status line.
    pub version: Version,
    /// How its body ended.
    pub framing: Framing,
    /// Whether the connection may be used again.
    pub keep_alive: bool,
    /// `Keep-Alive: timeout=N`, in seconds.
    pub keep_alive_timeout: Option<u32>,
    /// 503 with `Rip-Worker-Busy: 1`.
    pub busy: bool,
    /// 503 with `Rip-Worker-Draining: 1`.
    pub draining: bool,
    /// Bytes of the body.
    pub body: u64,
    /// Bytes of the request that were not sent yet when the answer was whole.
    pub unsent: usize,
}

/// A GET of a path, without a body.
pub fn get(path: &str) -> String {
    head("GET", path, "")
}

/// A request's head, with more field lines.
pub fn head(method: &str, path: &str, fields: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: production_server-conformance\r\n{fields}\r\n")
}

impl Client {
    /// Adds to what is sent in the next wait.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.output.extend_from_slice(bytes.as_ref());
    }

    /// Whether the worker has read all that was sent, as far as the kernel can tell: over TCP, whether it has come there.
    pub fn is_read(&self) -> bool {
        kernel::unacknowledged(&self.socket) == 0
    }

    /// Bytes that came behind the last answer.
    pub fn surplus(&self) -> usize {
        self.input.len()
    }

    /// Whether the worker has ended the connection.
    pub fn has_ended(&self) -> bool {
        self.ended || self.broken.is_some()
    }

    /// Leaves as a client does that has lost its patience.
    pub fn leave(self) {
        self.socket.shutdown(Shutdown::Both).ok();
    }

    fn events(&self) -> i16 {
        let read = if self.ended { 0 } else { libc::POLLIN };
        let write = if self.output.is_empty() || self.broken.is_some() { 0 } else { libc::POLLOUT };
        read | write
    }

    /// Sends and receives what can be, without waiting.
    fn advance(&mut self) -> Result<(), Trouble> {
        while !self.output.is_empty() && self.broken.is_none() {
            match self.socket.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => self.broken = Some(error),
            }
        }
        let before = self.input.len();
        while !self.ended && self.input.len() < before + PORTION {
            let end = self.input.len();
            self.input.resize(end + PORTION, 0);
            let read = self.socket.read(&mut self.input[end..]);
            self.input.truncate(end + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => self.ended = true,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    self.ended = true;
                    self.broken = Some(error);
                }
            }
        }
        Ok(())
    }
}

impl Bench {
    /// Opens a connection to the worker.
    ///
    /// # Errors
    /// [`Trouble::Unreachable`] when nobody accepts.
    pub fn connect(&mut self) -> Result<Client, Trouble> {
        let address = self.address()?;
        let end = Instant::now() + CONNECT_TIME;
        let socket = Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, None);
        let socket =
            socket.and_then(|socket| socket.set_nonblocking(true).map(|()| socket)).map_err(Trouble::Machine)?;
        loop {
            match socket.connect(&address) {
                Ok(()) => break,
                Err(error) if error.raw_os_error() == Some(libc::EISCONN) => break,
                // A full backlog; it empties when the worker accepts.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                    self.turn(None, Instant::now() + LOOK_AGAIN)?;
                }
                Err(error) if is_under_way(&error) && Instant::now() < end => {
                    self.turn(Some((socket.as_raw_fd(), libc::POLLOUT)), end)?;
                }
                Err(error) => return Err(Trouble::Unreachable(error)),
            }
        }
        Ok(Client { socket, input: Vec::new(), output: Vec::new(), ended: false, broken: None })
    }

    /// Sends a request on a connection of its own and reads the answer.
    ///
    /// # Errors
    /// Whatever keeps the answer from being whole and valid.
    pub fn ask(&mut self, request: &str) -> Result<Answer, Trouble> {
        let mut client = self.connect()?;
        client.send(request);
        self.answer(&mut client, Method::Get, ANSWER_TIME)
    }

    /// Sends all that the client has to send. A connection that the worker breaks is no error yet: an answer may be there
    /// to be read.
    ///
    /// # Errors
    /// When the worker does not take it in time.
    pub fn flush(&mut self, client: &mut Client) -> Result<(), Trouble> {
        let end = Instant::now() + ANSWER_TIME;
        loop {
            client.advance()?;
            if client.output.is_empty() || client.broken.is_some() {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(Trouble::Late(ANSWER_TIME));
            }
            self.turn(Some((client.socket.as_raw_fd(), client.events())), end)?;
        }
    }

    /// Sends what is left to send and reads one answer to its end; interim answers are passed over.
    ///
    /// # Errors
    /// Whatever keeps the answer from being whole and valid within `patience`.
    pub fn answer(&mut self, client: &mut Client, to: Method, patience: Duration) -> Result<Answer, Trouble> {
        let end = Instant::now() + patience;
        let mut came = 0;
        let response = loop {
            if let Some(response) = take_head(client, to)? {
                came += response.len as u64;
                if response.status >= 200 {
                    break response;
                }
                continue;
            }
            self.more(client, came + client.input.len() as u64, end, patience)?;
        };
        let body = self.body(client, response.framing, end, patience)?;
        Ok(Answer {
            status: response.status,
            version: response.version,
            framing: response.framing,
            keep_alive: response.keep_alive,
            keep_alive_timeout: response.keep_alive_timeout,
            busy: response.busy,
            draining: response.draining,
            body,
            unsent: client.output.len(),
        })
    }

    /// Reads a body to its end and forgets it; returns its length.
    fn body(
        &mut self,
        client: &mut Client,
        framing: Framing,
        end: Instant,
        patience: Duration,
    ) -> Result<u64, Trouble> {
        let mut length = 0;
        let mut chunked = Chunked::new();
        loop {
            match framing {
                Framing::None => return Ok(0),
                Framing::Length(total) => {
                    let take = client.input.len().min(usize::try_from(total - length).unwrap_or(usize::MAX));
                    client.input.drain(..take);
                    length += take as u64;
                    if length == total {
                        return Ok(length);
                    }
                }
                Framing::Chunked => {
                    while !client.input.is_empty() {
                        let progress = chunked.decode(&client.input).map_err(|r| Trouble::Malformed(r.of_answer()))?;
                        length += progress.data.len() as u64;
                        client.input.drain(..progress.consumed);
                        if progress.done {
                            return Ok(length);
                        }
                    }
                }
                Framing::UntilClose => {
                    length += client.input.len() as u64;
                    client.input.clear();
                    match self.more(client, length, end, patience) {
                        Err(Trouble::Ended(_)) => return Ok(length),
                        other => other?,
                    }
                    continue;
                }
            }
            self.more(client, length, end, patience)?;
        }
    }

    /// Waits for the worker to end the connection; anything that it still sends is kept.
    ///
    /// # Errors
    /// As [`Bench::turn`].
    pub fn until_end(&mut self, client: &mut Client, patience: Duration) -> Result<bool, Trouble> {
        let end = Instant::now() + patience;
        loop {
            client.advance()?;
            if client.has_ended() {
                return Ok(true);
            }
            if Instant::now() >= end {
                return Ok(false);
            }
            self.turn(Some((client.socket.as_raw_fd(), client.events())), end)?;
        }
    }

    /// Waits until there is more to read. `came` is for the message when there is not.
    fn more(&mut self, client: &mut Client, came: u64, end: Instant, patience: Duration) -> Result<(), Trouble> {
        let before = client.input.len();
        loop {
            client.advance()?;
            if client.input.len() > before {
                return Ok(());
            }
            if client.ended {
                return match client.broken.take() {
                    Some(error) => Err(Trouble::Broken(error)),
                    None => Err(Trouble::Ended(came)),
                };
            }
            if Instant::now() >= end {
                return Err(Trouble::Late(patience));
            }
            self.turn(Some((client.socket.as_raw_fd(), client.events())), end)?;
        }
    }
}

/// Takes a head off the input, if it is whole.
fn take_head(client: &mut Client, to: Method) -> Result<Option<Response>, Trouble> {
    if client.input.is_empty() {
        return Ok(None);
    }
    let parsed = head::response(&client.input, to, false, &HeadLimits::default(), &mut Fields::default());
    let response = parsed.map_err(Trouble::Malformed)?;
    if let Some(response) = &response {
        client.input.drain(..response.len);
    }
    Ok(response)
}

fn is_under_way(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY))
}
