//! What a worker says of itself: the datagrams of sd_notify(3), and the watchdog that they wind up.
//!
//! Owns one datagram socket per worker, in the folder of this start's sockets. Its path is the worker's `NOTIFY_SOCKET`.
//! Rules:
//! - Reading never blocks and takes a bounded number of datagrams at a time. What is too long, no UTF-8 or no list of
//!   `NAME=value` lines is dropped whole and counted; names that mean nothing here are passed over.
//! - On Linux the kernel names the sender (SO_PASSCRED, unix(7)), and only processes of the worker's own process group
//!   count: a worker that was given the wrong socket, or a stray child in a group of its own, does not speak for it. A
//!   sender that has ended meanwhile, as the systemd-notify tool does, belongs to no group any more and counts. Elsewhere,
//!   and against ill will anywhere, the guard is the folder that only our user may enter.
//! - Descriptors that come along (`FDSTORE=1`, `BARRIER=1`) are not taken; the kernel closes them, which is what a barrier
//!   waits for.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::run_directory::check_length;
use crate::socket_file;

/// The longest datagram that is understood, in bytes, as in systemd.
pub const DATAGRAM_LIMIT: usize = 4096;
/// Characters of a status that are kept.
pub const STATUS_LIMIT: usize = 256;
/// Datagrams read at a time; more are read in the next turn.
const TURN_LIMIT: usize = 64;
/// Such portions are read at most of what a worker has left behind: more than the kernel queues, unless net.unix.max_dgram_qlen (unix(7))
/// was raised beyond all use.
const LAST_TURNS: usize = 64;

/// One thing that a worker says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// `READY=1`: it serves.
    Ready,
    /// `RELOADING=1`: it loads its configuration again; `READY=1` follows.
    Reloading,
    /// `STOPPING=1`: it leaves by itself.
    Stopping,
    /// `STATUS=`: one line for people, without control characters, at most [`STATUS_LIMIT`] characters.
    Status(String),
    /// `WATCHDOG=1`: it is alive.
    WatchdogPing,
    /// `WATCHDOG=trigger`: it knows that it is not well, and is to be treated as if it had hung.
    WatchdogTrigger,
    /// `WATCHDOG_USEC=`: from now on it pings at least that often; zero: it does not any more.
    WatchdogUsec(Duration),
}

/// The socket on which one worker speaks. Dropping it removes its path.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    path: PathBuf,
    /// The worker's process group, once it is known.
    group: Option<i32>,
    ignored: u64,
}

impl NotifySocket {
    /// Opens the socket at `path`, which nobody else may write to.
    ///
    /// # Errors
    /// When the path is too long for a socket, in use, or the kernel refuses (bind(2), setsockopt(2), chmod(2)).
    pub fn open(path: &Path) -> io::Result<NotifySocket> {
        check_length(path).map_err(io::Error::other)?;
        socket_file::clear(path)?;
        let socket = UnixDatagram::bind(path)?;
        let socket = NotifySocket { socket, path: path.to_path_buf(), group: None, ignored: 0 };
        socket.socket.set_nonblocking(true)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        #[cfg(target_os = "linux")]
        socket2::SockRef::from(&socket.socket).set_passcred(true)?;
        Ok(socket)
    }

    /// `NOTIFY_SOCKET`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The descriptor to be polled for reading.
    pub fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// From now on only processes of that group count, which is the worker's process id. To be called right after its start:
    /// before, everybody counts.
    pub fn belongs_to(&mut self, group: i32) {
        self.group = Some(group);
    }

    /// Datagrams that were dropped: too long, garbage, or from a process of another group.
    pub fn ignored(&self) -> u64 {
        self.ignored
    }

    /// Reads what has come, up to one turn's share, and calls `each` for every message in it, in order. Never blocks. True: there may be
    /// more now.
    pub fn read(&mut self, mut each: impl FnMut(Message)) -> bool {
        let mut buffer = [0; DATAGRAM_LIMIT];
        for _ in 0..TURN_LIMIT {
            match receive(&self.socket, &mut buffer) {
                // No datagram, or an error that the next turn will have again, if it lasts.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
                Ok(datagram) => {
                    let ours = self.group.zip(datagram.sender).is_none_or(|(group, sender)| is_in(sender, group));
                    let text = buffer.get(..datagram.length).filter(|_| ours && !datagram.cut);
                    match text.and_then(parse) {
                        Some(messages) => messages.into_iter().for_each(&mut each),
                        None => self.ignored += 1,
                    }
                }
            }
        }
        true
    }

    /// The worker is gone: takes what is left of what it has said, whoever else may still speak.
    pub fn finish(&mut self, mut each: impl FnMut(Message)) {
        for _ in 0..LAST_TURNS {
            if !self.read(&mut each) {
                break;
            }
        }
    }
}

impl Drop for NotifySocket {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}

/// A worker's notify socket and what has come through it.
#[derive(Debug)]
pub struct Channel {
    /// The socket.
    pub socket: NotifySocket,
    /// Whether the worker still says that it lives.
    pub watchdog: Watchdog,
    /// The last `STATUS=`; empty before.
    pub status: String,
}

impl Channel {
    /// Nothing was said yet. `watchdog`: the period that the worker is given, if it is.
    pub fn new(socket: NotifySocket, watchdog: Option<Duration>) -> Channel {
        Channel { socket, watchdog: Watchdog::new(watchdog), status: String::new() }
    }
}

/// The messages of one datagram; `None` when it is no list of `NAME=value` lines.
fn parse(bytes: &[u8]) -> Option<Vec<Message>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let mut messages = Vec::new();
    for line in text.split('\n') {
        let (name, value) = line.split_once('=')?;
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return None;
        }
        messages.extend(match (name, value) {
            ("READY", "1") => Some(Message::Ready),
            ("RELOADING", "1") => Some(Message::Reloading),
            ("STOPPING", "1") => Some(Message::Stopping),
            ("STATUS", status) => Some(Message::Status(cleaned(status))),
            ("WATCHDOG", "1") => Some(Message::WatchdogPing),
            ("WATCHDOG", "trigger") => Some(Message::WatchdogTrigger),
            ("WATCHDOG_USEC", value) => Some(Message::WatchdogUsec(Duration::from_micros(value.parse().ok()?))),
            _ => None,
        });
    }
    Some(messages)
}

/// A status fit for a terminal and a line of the log.
fn cleaned(status: &str) -> String {
    let safe: String = status.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    safe.trim().chars().take(STATUS_LIMIT).collect()
}

/// What a receive brought.
struct Datagram {
    length: usize,
    /// It was longer than the buffer.
    cut: bool,
    /// The sender's process id, where the kernel tells; 0 and below when it cannot be named here.
    sender: Option<i32>,
}

/// Whether a process is in the group. One that has ended already, or that cannot be named here, may be.
fn is_in(process: i32, group: i32) -> bool {
    if process <= 0 {
        return true;
    }
    // SAFETY: getpgid takes and returns plain numbers.
    let found = unsafe { libc::getpgid(process) };
    found == group || (found < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ESRCH))
}

/// Room for the control message that names the sender, and for no other: descriptors find no place and are closed.
#[cfg(target_os = "linux")]
#[repr(C, align(8))]
struct Control([u8; CONTROL_LENGTH]);

#[cfg(target_os = "linux")]
// SAFETY: CMSG_SPACE only computes with its argument.
const CONTROL_LENGTH: usize = unsafe { libc::CMSG_SPACE(size_of::<libc::ucred>() as u32) } as usize;

#[cfg(target_os = "linux")]
fn receive(socket: &UnixDatagram, buffer: &mut [u8]) -> io::Result<Datagram> {
    let mut control = Control([0; CONTROL_LENGTH]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zeros is a valid value of this structure of numbers and pointers.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control).cast();
    header.msg_controllen = CONTROL_LENGTH as _;
    // SAFETY: every pointer in the header is to memory that outlives the call, with its true length.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    let cut = header.msg_flags & libc::MSG_TRUNC != 0;
    // SAFETY: the header is as the kernel left it, and its control buffer is still there.
    let first = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    let mut sender = None;
    // SAFETY: a first header that is there lies in the control buffer, which is aligned for it and whose filled length
    // holds it whole; the kernel writes a whole ucred for SCM_CREDENTIALS, and there is room for one.
    unsafe {
        if !first.is_null()
            && (*first).cmsg_level == libc::SOL_SOCKET
            && (*first).cmsg_type == libc::SCM_CREDENTIALS
            && (*first).cmsg_len as usize >= libc::CMSG_LEN(size_of::<libc::ucred>() as u32) as usize
        {
            sender = Some(libc::CMSG_DATA(first).cast::<libc::ucred>().read_unaligned().pid);
        }
    }
    Ok(Datagram { length, cut, sender })
}

/// Without control messages: descriptors that come along are closed by the kernel. A datagram that fills the buffer may
/// have been longer, and is taken for it.
#[cfg(not(target_os = "linux"))]
fn receive(socket: &UnixDatagram, buffer: &mut [u8]) -> io::Result<Datagram> {
    let length = socket.recv(buffer)?;
    Ok(Datagram { length, cut: length == buffer.len(), sender: None })
}

/// Whether a worker that promised to say so regularly is still alive.
///
/// The period is what the worker announces with `WATCHDOG_USEC=`, else what it was given. It holds from the first
/// `WATCHDOG=1` on, so that an app that knows nothing of watchdogs is never taken for dead; and no more after
/// `STOPPING=1`, when the drain has its own deadline.
#[derive(Clone, Debug)]
pub struct Watchdog {
    /// Zero: none.
    period: Duration,
    due: Option<Instant>,
    stopping: bool,
}

impl Watchdog {
    /// A watchdog with the period that the worker was given, if it was given one.
    pub fn new(period: Option<Duration>) -> Watchdog {
        Watchdog { period: period.unwrap_or(Duration::ZERO), due: None, stopping: false }
    }

    /// Takes notice of what the worker says.
    pub fn take(&mut self, message: &Message, now: Instant) {
        match message {
            Message::Stopping => self.stopping = true,
            Message::WatchdogTrigger => self.due = Some(now),
            Message::WatchdogPing if !self.period.is_zero() => self.due = now.checked_add(self.period),
            Message::WatchdogUsec(period) => {
                self.period = *period;
                // A period that changes under way holds from here.
                self.due = self.due.filter(|_| !period.is_zero()).and_then(|_| now.checked_add(*period));
            }
            _ => {}
        }
        if self.stopping {
            self.due = None;
        }
    }

    /// The period that holds; `None`: none was given or announced.
    pub fn period(&self) -> Option<Duration> {
        Some(self.period).filter(|period| !period.is_zero())
    }

    /// When the worker is taken for dead unless it says something.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether it is: it was silent for its period, or called for help.
    pub fn has_expired(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};

    fn said(text: &[u8]) -> Option<Vec<Message>> {
        parse(text)
    }

    #[test]
    fn messages_are_understood() {
        assert_eq!(said(b"READY=1"), Some(vec![Message::Ready]));
        assert_eq!(
            said(b"READY=1\nSTATUS=Serving 3 apps\nMAINPID=4711\nWATCHDOG=1\n"),
            Some(vec![Message::Ready, Message::Status("Serving 3 apps".to_owned()), Message::WatchdogPing])
        );
        assert_eq!(said(b"STOPPING=1\nRELOADING=1"), Some(vec![Message::Stopping, Message::Reloading]));
        assert_eq!(said(b"WATCHDOG_USEC=1500000"), Some(vec![Message::WatchdogUsec(Duration::from_millis(1500))]));
        assert_eq!(said(b"WATCHDOG=trigger"), Some(vec![Message::WatchdogTrigger]));
        assert_eq!(said(b"READY=0\nERRNO=2\nX_MINE=a=b"), Some(vec![]));
    }

    #[test]
    fn garbage_says_nothing() {
        for garbage in [
            &b""[..],
            b"\n",
            b"READY",
            b"=1",
            b"READY=1\n\nSTOPPING=1",
            b"READY=1\nrubbish",
            b"\0READY=1",
            b"STATUS=\xff",
            b"READY 1=1",
            b"WATCHDOG_USEC=soon",
            b"WATCHDOG_USEC=-1",
            b"WATCHDOG_USEC=99999999999999999999",
        ] {
            assert_eq!(said(garbage), None, "{:?}", String::from_utf8_lossy(garbage));
        }
    }

    #[test]
    fn a_status_is_fit_for_a_terminal() {
        let status = |text: &str| said(format!("STATUS={text}").as_bytes()).unwrap().remove(0);
        assert_eq!(status(" \u{1b}[2Jgone\u{7}\r"), Message::Status("[2Jgone".to_owned()));
        assert_eq!(status("a\u{1b}b\u{85}c"), Message::Status("a b c".to_owned()));
        assert_eq!(status(&"ü".repeat(1000)), Message::Status("ü".repeat(STATUS_LIMIT)));
    }

    fn open(directory: &tempfile::TempDir) -> NotifySocket {
        NotifySocket::open(&directory.path().join("web.note")).unwrap()
    }

    fn read(socket: &mut NotifySocket) -> Vec<Message> {
        let mut messages = Vec::new();
        socket.read(|message| messages.push(message));
        messages
    }

    #[test]
    fn the_socket_is_ours_alone_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        let mut socket = open(&directory);
        let path = socket.path().to_path_buf();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(NotifySocket::open(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(read(&mut socket), [], "nothing was said, and nothing is waited for");
        drop(socket);
        assert!(!path.exists());
        let long = directory.path().join("x".repeat(200));
        assert!(NotifySocket::open(&long).unwrap_err().to_string().contains("the system allows"));
    }

    #[test]
    fn what_is_too_long_or_garbage_is_counted_and_the_rest_is_heard() {
        let directory = tempfile::tempdir().unwrap();
        let mut socket = open(&directory);
        let worker = UnixDatagram::unbound().unwrap();
        let long = |length: usize| format!("STATUS={}", "x".repeat(length - 7));
        for text in [&long(DATAGRAM_LIMIT + 1), "READY=1", "\u{0}", "STOPPING=1"] {
            worker.send_to(text.as_bytes(), socket.path()).unwrap();
        }
        assert_eq!(read(&mut socket), [Message::Ready, Message::Stopping]);
        assert_eq!(socket.ignored(), 2);
    }

    #[test]
    fn a_flood_is_read_in_portions() {
        let directory = tempfile::tempdir().unwrap();
        let mut socket = open(&directory);
        let worker = UnixDatagram::unbound().unwrap();
        worker.set_nonblocking(true).unwrap();
        let mut sent = 0;
        let mut heard = 0;
        while sent < 3 * TURN_LIMIT {
            match worker.send_to(b"WATCHDOG=1", socket.path()) {
                Ok(_) => sent += 1,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    heard += read(&mut socket).len();
                }
            }
        }
        loop {
            let portion = read(&mut socket).len();
            assert!(portion <= TURN_LIMIT);
            heard += portion;
            if portion == 0 {
                break;
            }
        }
        assert_eq!(heard, sent);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn descriptors_that_come_along_are_closed() {
        use std::io::Read;
        let directory = tempfile::tempdir().unwrap();
        let mut socket = open(&directory);
        let (mut kept, given) = std::os::unix::net::UnixStream::pair().unwrap();
        let worker = UnixDatagram::unbound().unwrap();
        worker.connect(socket.path()).unwrap();
        let mut text = *b"BARRIER=1";
        let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
        let mut control = [0u64; 3];
        // SAFETY: all zeros is a valid value; every pointer set below is to memory that outlives the call; the control
        // buffer is aligned and has room for one header and one descriptor.
        unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_iov = &raw mut part;
            header.msg_iovlen = 1;
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = libc::CMSG_SPACE(4) as _;
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(4) as _;
            libc::CMSG_DATA(first).cast::<i32>().write_unaligned(given.as_raw_fd());
            assert_eq!(libc::sendmsg(worker.as_raw_fd(), &raw const header, 0), text.len() as isize);
        }
        drop(given);
        assert_eq!(read(&mut socket), []);
        assert_eq!(socket.ignored(), 0, "a barrier is known, and waits for nothing but this");
        kept.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        assert_eq!(kept.read(&mut [0]).unwrap(), 0, "all other holders have closed it");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn only_the_workers_own_group_is_heard() {
        let directory = tempfile::tempdir().unwrap();
        let mut socket = open(&directory);
        let mut worker =
            Command::new("sleep").arg("1000").process_group(0).stdin(Stdio::null()).spawn().expect("sleep is there");
        let worker_group = worker.id() as i32;
        socket.belongs_to(worker_group);
        let sender = UnixDatagram::unbound().unwrap();
        sender.send_to(b"READY=1", socket.path()).unwrap();
        assert_eq!(read(&mut socket), [], "this test is no process of the worker's");
        assert_eq!(socket.ignored(), 1);
        worker.kill().unwrap();
        worker.wait().unwrap();
        // SAFETY: getpgrp has no arguments and cannot fail.
        socket.belongs_to(unsafe { libc::getpgrp() });
        sender.send_to(b"READY=1", socket.path()).unwrap();
        assert_eq!(read(&mut socket), [Message::Ready]);
        assert!(is_in(worker_group, 1), "one that has ended belongs to no group");
    }

    #[test]
    fn silence_counts_after_the_first_ping() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut watchdog = Watchdog::new(Some(Duration::from_millis(100)));
        watchdog.take(&Message::Ready, at(0));
        assert_eq!((watchdog.due(), watchdog.has_expired(at(1_000_000))), (None, false), "it never promised anything");
        watchdog.take(&Message::WatchdogPing, at(1000));
        watchdog.take(&Message::WatchdogPing, at(1050));
        assert_eq!(watchdog.due(), Some(at(1150)));
        assert!(!watchdog.has_expired(at(1149)) && watchdog.has_expired(at(1150)));
        watchdog.take(&Message::WatchdogUsec(Duration::from_millis(500)), at(1100));
        assert_eq!(watchdog.due(), Some(at(1600)));
        watchdog.take(&Message::Stopping, at(1200));
        watchdog.take(&Message::WatchdogPing, at(1200));
        assert_eq!(watchdog.due(), None, "it leaves, and the drain has a deadline of its own");
    }

    #[test]
    fn the_period_may_be_the_workers_own() {
        let now = Instant::now();
        let mut watchdog = Watchdog::new(None);
        watchdog.take(&Message::WatchdogPing, now);
        assert_eq!((watchdog.period(), watchdog.due()), (None, None));
        watchdog.take(&Message::WatchdogUsec(Duration::from_secs(1)), now);
        assert_eq!(watchdog.due(), None, "announced, not yet promised");
        watchdog.take(&Message::WatchdogPing, now);
        assert_eq!(watchdog.due(), Some(now + Duration::from_secs(1)));
        watchdog.take(&Message::WatchdogUsec(Duration::ZERO), now);
        assert_eq!((watchdog.period(), watchdog.due()), (None, None));
        watchdog.take(&Message::WatchdogUsec(Duration::from_micros(u64::MAX)), now);
        watchdog.take(&Message::WatchdogPing, now);
        assert!(!watchdog.has_expired(now + Duration::from_secs(1_000_000)));
        watchdog.take(&Message::WatchdogTrigger, now);
        assert!(watchdog.has_expired(now));
    }
}
