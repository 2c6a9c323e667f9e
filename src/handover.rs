//! The handover of a running server to its successor: what is said and what is passed over one pair of sockets.
//!
//! The successor is a child of the server that runs, and finds its end of the pair as its standard input; [`VARIABLE`] tells it so.
//! Each message is one line of JSON:
//!
//! ```text
//! new   hello { protocol, version }
//!   old   estate { listeners, run directory, counts, … }   and behind it the descriptors, 64 at a time, each batch with one byte
//! new   ready                              its workers are; it has accepted nobody yet
//!   old   limit { what clients have used of it } …, if the hello says that it is heard
//!   old   changed { since the estate }       if the hello says that it is heard
//!   old   hub { a part of what it has } …    if the hello says that it is heard; what is published from here on is the new one's to publish
//!   old   go { counts }
//! new   serving { what it has taken }      from here on it accepts; the old one accepts no more, and drains
//!   old   counted { counts } …             what the old one still counts
//!   old   notice { what an app has published there } …
//! new   handed_over                      if the estate says that it is heard: it has a successor itself, which serves by now
//!   old   farewell { counts }
//! both  failed { reason }                  at any time before "serving": the old one stays
//! ```
//!
//! Rules: whoever reads checks every count before it uses one. A message that is not understood is a failure and never a guess, a member
//! that is not known is passed over. The protocol's number changes when an older server would be wrong about a newer one; the old server
//! judges, since it is the one that stays.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::{Deserialize, Serialize};

use crate::metrics::Account;
use crate::socket_file::Identity;
use crate::tls::{HandedOver, TicketKey};

/// The protocol that this server speaks.
pub const PROTOCOL: u32 = 1;
/// Set for a successor; its value is the predecessor's protocol.
pub const VARIABLE: &str = crate::config::HANDOVER;
/// Descriptors in one message: far below what every kernel takes (unix(7): 253).
const BATCH: usize = 64;
/// Descriptors in all, at most.
const MOST_DESCRIPTORS: usize = 16 * 1024;
/// Bytes of a hub in one message.
const PART: usize = 256 * 1024;
/// Bytes of a message, at most.
const MOST_MESSAGE: usize = 16 << 20;
/// How long the successor waits for what it inherits.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the two say. See the module.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs, reason = "the module has what each means")]
pub enum Message {
    Hello(Hello),
    Estate(Box<Estate>),
    Ready,
    /// [`Kept`](crate::limits::Kept), which whoever hears it is to judge.
    Limit(serde_json::Value),
    Changed(Changed),
    Hub(HubPart),
    /// A body that [`crate::hub::wire::notify`] understands.
    Notice(String),
    Go(Account),
    Serving(Taken),
    Counted(Account),
    HandedOver,
    Farewell(Account),
    Failed {
        reason: String,
    },
}

/// Who the successor is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol that it speaks.
    pub protocol: u32,
    /// Its version, for people.
    pub version: String,
    /// Whether it hears of limits what clients have used of them.
    #[serde(default)]
    pub hears_limits: bool,
    /// Whether it hears of hubs what is in them.
    #[serde(default)]
    pub hears_hubs: bool,
    /// Whether it hears what of the estate has changed meanwhile.
    #[serde(default)]
    pub hears_changes: bool,
}

impl Hello {
    /// Of this binary.
    pub fn own() -> Hello {
        Hello {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            hears_limits: true,
            hears_hubs: true,
            hears_changes: true,
        }
    }
}

/// A part of what a hub has ([`crate::hub::Hub::snapshot`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubPart {
    /// The hub's name.
    pub name: String,
    /// The next bytes, in base64.
    pub bytes: String,
    /// No more of them come.
    pub last: bool,
}

impl HubPart {
    /// The parts of that.
    pub fn of<'a>(name: &'a str, bytes: &'a [u8]) -> impl Iterator<Item = HubPart> + use<'a> {
        let count = bytes.len().div_ceil(PART);
        bytes.chunks(PART).enumerate().map(move |(at, part)| HubPart {
            name: name.to_owned(),
            bytes: STANDARD.encode(part),
            last: at + 1 == count,
        })
    }

    /// Puts its bytes behind those before it.
    ///
    /// # Errors
    /// When they are no base64.
    pub fn append(&self, all: &mut Vec<u8>) -> Result<(), String> {
        STANDARD.decode_vec(&self.bytes, all).map_err(|error| error.to_string())
    }
}

/// What is handed over. Its descriptors follow in the order of its members.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Estate {
    /// The run directory; one descriptor, the lock.
    pub run_dir: Option<RunDir>,
    /// The listeners, each with its sockets.
    pub listeners: Vec<Listener>,
    /// What was counted so far.
    pub account: Account,
    /// Workers started and crashed so far.
    pub lives: (u64, u64),
    /// Workers that have joined by themselves.
    pub joined: Vec<JoinedWorker>,
    /// Apps that are not required, and have no worker that is ready.
    pub down: Vec<String>,
    /// The configuration file, where there is one.
    pub configuration: Option<PathBuf>,
    /// What TLS tickets are sealed with.
    pub ticket_keys: Vec<TicketKey>,
    /// The certificate that was made at the start, signed by itself.
    pub self_signed: Option<HandedOver>,
    /// Whether it is heard that the successor has handed over in its turn.
    pub hears_of_next: bool,
    /// The process group of the predecessor, where the successor has one of its own until it is the server.
    pub process_group: Option<i32>,
}

/// What may change while the successor starts: all of it, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Changed {
    /// As in the estate.
    pub joined: Vec<JoinedWorker>,
    /// As in the estate.
    pub ticket_keys: Vec<TicketKey>,
}

/// A locked run directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunDir {
    /// As it is configured, absolute.
    pub configured: PathBuf,
    /// Where lock and sockets lie.
    pub path: PathBuf,
}

/// A listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// As it is configured: the port may be 0.
    pub asked: String,
    /// Where it is.
    pub address: String,
    /// How many sockets it has.
    pub sockets: usize,
    /// The file of a Unix socket that the server has made.
    pub file: Option<Identity>,
    /// Whether it is for those who watch the server, where that is told.
    pub admin: Option<bool>,
}

/// A worker that has joined by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinedWorker {
    /// The body with which it joined, or would join again.
    pub join: serde_json::Value,
}

/// What the successor has taken over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Taken {
    /// The run directory and what lies in it.
    pub run_dir: bool,
    /// The addresses of the listeners that it serves.
    pub listeners: Vec<String>,
}

impl Estate {
    /// How many descriptors come behind it; an error when that cannot be.
    fn descriptors(&self) -> Result<usize, String> {
        let lock = usize::from(self.run_dir.is_some());
        let sockets = self.listeners.iter().try_fold(lock, |sum, listener| sum.checked_add(listener.sockets));
        match sockets.filter(|sum| *sum <= MOST_DESCRIPTORS) {
            Some(sum) if self.listeners.iter().all(|listener| listener.sockets > 0) => Ok(sum),
            _ => Err("the estate has an impossible number of sockets".to_owned()),
        }
    }
}

/// What waits to be sent.
#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    Descriptors(Vec<OwnedFd>),
}

/// One end of the pair. Nothing here blocks, but for [`Channel::inherit`].
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    input: Vec<u8>,
    output: VecDeque<Part>,
}

impl Channel {
    /// A pair: this server's end, and the standard input of the successor.
    ///
    /// # Errors
    /// When no pair can be made.
    pub fn pair() -> io::Result<(Channel, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        Ok((Channel { stream: ours, input: Vec::new(), output: VecDeque::new() }, theirs.into()))
    }

    /// The end of a process that was started as a successor; `None` for any other. Standard input is empty afterwards.
    pub fn of_this_process() -> Option<Channel> {
        std::env::var_os(VARIABLE)?;
        let stdin = io::stdin();
        let socket = stdin.lock();
        // Not a socket: the variable is a stranger's.
        let copy = fcntl(&socket, FcntlArg::F_DUPFD_CLOEXEC(3)).ok()?;
        // SAFETY: the call above has made it for us alone.
        let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(copy) });
        stream.peer_addr().ok()?;
        let null = std::fs::File::open("/dev/null").ok()?;
        // SAFETY: plain numbers; nobody reads standard input, which is locked here.
        unsafe { libc::dup2(null.as_raw_fd(), 0) };
        Some(Channel { stream, input: Vec::new(), output: VecDeque::new() })
    }

    /// The descriptor to be polled, and for what.
    pub fn poll_entry(&self) -> libc::pollfd {
        let events = if self.output.is_empty() { libc::POLLIN } else { libc::POLLIN | libc::POLLOUT };
        libc::pollfd { fd: self.stream.as_raw_fd(), events, revents: 0 }
    }

    /// Says something, as soon as there is room.
    ///
    /// # Errors
    /// When the other side is gone.
    pub fn say(&mut self, message: &Message) -> io::Result<()> {
        self.say_with(message, Vec::new())
    }

    /// Says something and passes descriptors behind it.
    ///
    /// # Errors
    /// When the other side is gone.
    pub fn say_with(&mut self, message: &Message, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.output.push_back(Part::Bytes(line));
        let mut descriptors = descriptors.into_iter().peekable();
        while descriptors.peek().is_some() {
            self.output.push_back(Part::Descriptors(descriptors.by_ref().take(BATCH).collect()));
        }
        self.flush()
    }

    /// Sends what there is room for.
    ///
    /// # Errors
    /// When the other side is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(part) = self.output.front_mut() {
            let sent = match part {
                Part::Bytes(bytes) => (&self.stream).write(bytes).map(|count| {
                    bytes.drain(..count);
                    bytes.is_empty()
                }),
                Part::Descriptors(descriptors) => send_descriptors(&self.stream, descriptors).map(|()| true),
            };
            match sent {
                Ok(true) => drop(self.output.pop_front()),
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What the other side has said next; `None` when there is nothing yet.
    ///
    /// # Errors
    /// `UnexpectedEof` when it is gone, `InvalidData` with a sentence when it makes no sense.
    pub fn hear(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.input) {
                let rest = self.input.split_off(end + 1);
                let line = std::mem::replace(&mut self.input, rest);
                return read(&line).map(Some);
            }
            if self.input.len() > MOST_MESSAGE {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a message without an end"));
            }
            let mut buffer = [0; 16 * 1024];
            match (&self.stream).read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A side that ends with something unread resets.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until nobody has the other end any more, for so long at most. What is still said goes unheard.
    pub fn await_end(&mut self, patience: Duration) {
        self.stream.set_nonblocking(false).ok();
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.stream.set_read_timeout(Some(left)).is_err() {
                break;
            }
            match (&self.stream).read(&mut [0; 4096]) {
                Ok(count) if count > 0 => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        self.stream.set_nonblocking(true).ok();
    }

    /// The successor's first step: it says who it is and waits for what it inherits. Blocks, for seconds at most.
    ///
    /// # Errors
    /// A sentence, when the predecessor is gone, refuses, or says something that makes no sense.
    pub fn inherit(&mut self) -> Result<(Estate, Vec<OwnedFd>), String> {
        let broken = |error: io::Error| format!("the handover failed: {error}");
        self.stream.set_nonblocking(false).map_err(broken)?;
        self.stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
        self.say(&Message::Hello(Hello::own())).map_err(broken)?;
        let estate = match self.next_line().and_then(|line| read(&line)).map_err(broken)? {
            Message::Estate(estate) => *estate,
            _ => {
                return Err(
                    "the handover failed: the running server has said something else than was expected".to_owned()
                );
            }
        };
        let mut missing = estate.descriptors()?;
        let mut descriptors = Vec::with_capacity(missing);
        while missing > 0 {
            let wanted = missing.min(BATCH);
            let batch = receive_descriptors(&self.stream).map_err(broken)?;
            if batch.len() != wanted {
                return Err(format!("the handover failed: {} sockets came, {wanted} were expected", batch.len()));
            }
            missing -= wanted;
            descriptors.extend(batch);
        }
        self.stream.set_nonblocking(true).map_err(broken)?;
        Ok((estate, descriptors))
    }

    /// The next line, and not a byte of what is behind it: that comes with descriptors, which a read would lose.
    fn next_line(&self) -> io::Result<Vec<u8>> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        while !line.ends_with(b"\n") && line.len() <= MOST_MESSAGE {
            match (&self.stream).read(&mut byte) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(line)
    }

    /// Tells the predecessor that nothing comes of it, as far as it still listens. Blocks for a moment at most.
    pub fn fail(mut self, reason: &str) {
        self.stream.set_nonblocking(false).ok();
        self.stream.set_write_timeout(Some(Duration::from_secs(1))).ok();
        self.say(&Message::Failed { reason: reason.to_owned() }).ok();
    }
}

fn read(line: &[u8]) -> io::Result<Message> {
    serde_json::from_slice(line).map_err(|error| {
        let shown: String = String::from_utf8_lossy(line).trim_end().chars().take(80).collect();
        io::Error::new(io::ErrorKind::InvalidData, format!("a message is not understood ({error}): {shown:?}"))
    })
}

fn send_descriptors(stream: &UnixStream, descriptors: &[OwnedFd]) -> io::Result<()> {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&numbers)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"+")], &rights, MsgFlags::empty(), None)?;
    Ok(())
}

/// One batch of descriptors, and the byte that they come with.
fn receive_descriptors(stream: &UnixStream) -> io::Result<Vec<OwnedFd>> {
    let (mut byte, mut space) = ([0], nix::cmsg_space!([RawFd; BATCH]));
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::empty())?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has made each of them for this process, and nobody else knows them.
            descriptors.extend(numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }));
        }
    }
    if message.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    for descriptor in &descriptors {
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok(descriptors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn successor(stdin: OwnedFd) -> Channel {
        Channel { stream: UnixStream::from(stdin), input: Vec::new(), output: VecDeque::new() }
    }

    fn hear(channel: &mut Channel) -> Message {
        let mut entries = [channel.poll_entry()];
        // SAFETY: one entry, which outlives the call.
        unsafe { libc::poll(entries.as_mut_ptr(), 1, 10_000) };
        channel.hear().unwrap().expect("something was said")
    }

    fn estate(sockets: usize) -> Estate {
        let listener = Listener {
            asked: "0:8080".into(),
            address: "0.0.0.0:8080".into(),
            sockets,
            file: None,
            admin: Some(false),
        };
        Estate { listeners: vec![listener], ..Estate::default() }
    }

    /// More descriptors than one message takes come in order and complete, and nothing of what is said behind them is lost.
    #[test]
    fn what_is_handed_over_arrives_whole() {
        let (mut old, stdin) = Channel::pair().unwrap();
        let thread = std::thread::spawn(move || {
            let mut new = successor(stdin);
            let (estate, descriptors) = new.inherit().unwrap();
            let go = loop {
                if let Some(message) = new.hear().unwrap() {
                    break message;
                }
            };
            (estate, descriptors, go)
        });
        assert_eq!(hear(&mut old), Message::Hello(Hello::own()));
        let folder = tempfile::tempdir().unwrap();
        let count = BATCH * 2 + 5;
        let file = |index: usize| {
            std::fs::write(folder.path().join(index.to_string()), index.to_string()).unwrap();
            OwnedFd::from(File::open(folder.path().join(index.to_string())).unwrap())
        };
        old.say_with(&Message::Estate(Box::new(estate(count))), (0..count).map(file).collect()).unwrap();
        old.say(&Message::Go(Account::default())).unwrap();
        let (inherited, descriptors, go) = thread.join().unwrap();
        assert_eq!((inherited, go), (estate(count), Message::Go(Account::default())));
        for (index, descriptor) in descriptors.into_iter().enumerate() {
            let flags = fcntl(&descriptor, FcntlArg::F_GETFD).unwrap();
            assert_eq!(flags, FdFlag::FD_CLOEXEC.bits());
            assert_eq!(io::read_to_string(File::from(descriptor)).unwrap(), index.to_string());
        }
    }

    #[test]
    fn what_is_in_a_hub_comes_in_parts() {
        let bytes: Vec<u8> = (0..2 * PART + 7).map(|at| (at % 251) as u8).collect();
        let (mut all, mut lasts) = (Vec::new(), Vec::new());
        for part in HubPart::of("live", &bytes) {
            let line = serde_json::to_vec(&Message::Hub(part)).unwrap();
            let Message::Hub(part) = read(&line).unwrap() else { panic!() };
            part.append(&mut all).unwrap();
            lasts.push((part.name, part.last));
        }
        assert_eq!(all, bytes);
        assert_eq!(lasts, [false, false, true].map(|last| ("live".to_owned(), last)));
        let broken = HubPart { name: "live".to_owned(), bytes: "no base64".to_owned(), last: true };
        assert!(broken.append(&mut all).is_err());
    }

    #[test]
    fn a_count_that_does_not_fit_is_refused() {
        for (sockets, sent) in [(3, 2), (1, 2), (usize::MAX, 0), (0, 0)] {
            let (mut old, stdin) = Channel::pair().unwrap();
            let thread = std::thread::spawn(move || successor(stdin).inherit().map(drop));
            hear(&mut old);
            let descriptors = (0..sent).map(|_| OwnedFd::from(File::open("/dev/null").unwrap())).collect();
            old.say_with(&Message::Estate(Box::new(estate(sockets))), descriptors).ok();
            drop(old);
            assert!(thread.join().unwrap().is_err(), "{sent} of {sockets}");
        }
    }

    #[test]
    fn a_side_that_is_gone_and_one_that_makes_no_sense_are_told_apart() {
        let (mut old, stdin) = Channel::pair().unwrap();
        let mut new = successor(stdin);
        new.stream.write_all(b"{\"nonsense\":1}\n").unwrap();
        assert_eq!(old.hear().unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert!(old.hear().unwrap().is_none());
        successor(new.stream.into()).fail("no room");
        assert_eq!(hear(&mut old), Message::Failed { reason: "no room".to_owned() });
        assert_eq!(old.hear().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_member_that_is_not_known_is_passed_over() {
        let newer =
            br#"{"estate":{"listeners":[{"asked":"a","address":"b","sockets":2,"file":null,"new":1}],"also":[]}}"#;
        let Message::Estate(estate) = read(newer).unwrap() else { panic!() };
        assert_eq!((estate.listeners[0].sockets, estate.run_dir), (2, None));
    }
}
