//! systemd's protocols, towards the manager that has started this server: what it is told (sd_notify(3)), the watchdog that it keeps
//! (sd_watchdog_enabled(3)), and the sockets that it has opened for us (sd_listen_fds(3)).
//!
//! Rules:
//! - Where nobody listens (`NOTIFY_SOCKET` is not set) nothing is sent, and nobody needs to ask whether, but to save work.
//! - Sending never blocks. What the manager has no room for is sent later, in order; only a sign of life is not kept, for the next one
//!   says the same.
//! - After [`Manager::hand_over`] this process is not the service's main process any more, and says nothing new.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{SockType, getsockopt, sockopt};
use nix::time::{ClockId, clock_gettime};

/// How soon it is tried again to send what the manager had no room for.
const SEND_AGAIN: Duration = Duration::from_millis(20);
/// Words that wait at most; of more the oldest go.
const MOST_WAITING: usize = 64;
/// How long the manager is asked to wait further, and how often while something goes on.
const EXTENSION: Duration = Duration::from_secs(15);
const EXTEND_AGAIN: Duration = Duration::from_secs(5);
/// Signs of life in the time that the manager waits for one.
const PINGS_A_PERIOD: u32 = 3;
/// The first descriptor that is handed over, `SD_LISTEN_FDS_START`.
const FIRST_DESCRIPTOR: RawFd = 3;
/// The variables about handed-over sockets, which are for one process alone.
pub const LISTEN_VARIABLES: [&str; 4] = ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID"];

/// The variables of a process, as [`std::env::var_os`] has them.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// The manager, as far as it wants to know.
#[derive(Debug, Default)]
pub struct Manager {
    socket: Option<UnixDatagram>,
    waiting: VecDeque<String>,
    send_at: Option<Instant>,
    status: String,
    extend_at: Option<Instant>,
    ping: Option<Duration>,
    ping_at: Option<Instant>,
    /// Another process is the service's main process, and this one says no more.
    handed_over: bool,
}

impl Manager {
    /// The one that this process's environment names, if any. A line about a name that cannot be used.
    pub fn of(variables: Variables<'_>, now: Instant) -> (Manager, Option<String>) {
        let Some(name) = variables("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else {
            return (Manager::default(), None);
        };
        let connected = connect(&name);
        let trouble = connected.as_ref().err().map(|error| {
            format!("NOTIFY_SOCKET={}: {error}; the service manager is told nothing", name.to_string_lossy())
        });
        let ping = watchdog(variables).map(|period| period / PINGS_A_PERIOD);
        let ping_at = ping.map(|_| now);
        (Manager { socket: connected.ok(), ping, ping_at, ..Manager::default() }, trouble)
    }

    /// Whether somebody is told anything.
    pub fn is_there(&self) -> bool {
        self.socket.is_some() && !self.handed_over
    }

    /// The server serves.
    pub fn ready(&mut self, now: Instant) {
        self.extend_at = None;
        self.say("READY=1".to_owned(), now);
    }

    /// The configuration is read again; [`Manager::ready`] follows.
    pub fn reloading(&mut self, now: Instant) {
        let micros = clock_gettime(ClockId::CLOCK_MONOTONIC)
            .map_or(0, |time| time.tv_sec() as u64 * 1_000_000 + time.tv_nsec() as u64 / 1000);
        self.say(format!("RELOADING=1\nMONOTONIC_USEC={micros}"), now);
    }

    /// The server ends.
    pub fn stopping(&mut self, now: Instant) {
        self.say("STOPPING=1".to_owned(), now);
    }

    /// What the server does, in one line for people; said again only when it has changed.
    pub fn status(&mut self, status: String, now: Instant) {
        if status != self.status {
            self.say(format!("STATUS={status}"), now);
            self.status = status;
        }
    }

    /// Something goes on that may take longer than the manager waits by itself, a start or a stop: it is asked to wait, again and again.
    pub fn wait_for_us(&mut self, now: Instant) {
        if self.is_there() && self.extend_at.is_none_or(|at| at <= now) {
            self.extend_at = Some(now + EXTEND_AGAIN);
            self.say(format!("EXTEND_TIMEOUT_USEC={}", EXTENSION.as_micros()), now);
        }
    }

    /// Another process is the service's main process from now on. This one says no more.
    pub fn hand_over(&mut self, process: u32, now: Instant) {
        // What had no room until now would be taken for another's when it is read.
        self.waiting.clear();
        self.say(format!("MAINPID={process}"), now);
        *self = Manager {
            socket: self.socket.take(),
            waiting: std::mem::take(&mut self.waiting),
            send_at: self.send_at,
            handed_over: true,
            ..Manager::default()
        };
    }

    /// Sends a sign of life if one is due and `alive`, and what had to wait. Whether it is time for the loops to show the next one.
    pub fn turn(&mut self, alive: bool, now: Instant) -> bool {
        if self.send_at.is_some_and(|at| at <= now) {
            self.send(now);
        }
        let (Some(period), Some(at)) = (self.ping, self.ping_at) else { return false };
        if self.socket.is_none() || at > now {
            return false;
        }
        self.ping_at = Some(now + period);
        if alive && self.waiting.is_empty() {
            self.say("WATCHDOG=1".to_owned(), now);
            // Said late it would be worth nothing.
            self.waiting.clear();
            self.send_at = None;
        }
        true
    }

    /// When it needs a turn.
    pub fn due(&self) -> Option<Instant> {
        self.socket.as_ref()?;
        [self.send_at, self.ping_at, self.extend_at].into_iter().flatten().min()
    }

    fn say(&mut self, words: String, now: Instant) {
        if !self.is_there() {
            return;
        }
        self.waiting.push_back(words);
        if self.waiting.len() > MOST_WAITING {
            self.waiting.pop_front();
        }
        self.send(now);
    }

    fn send(&mut self, now: Instant) {
        self.send_at = None;
        let Some(socket) = &self.socket else { return };
        while let Some(words) = self.waiting.front() {
            match socket.send(words.as_bytes()) {
                Ok(_) => drop(self.waiting.pop_front()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_full(&error) => {
                    self.send_at = Some(now + SEND_AGAIN);
                    return;
                }
                // Nobody listens there any more.
                Err(_) => return self.waiting.clear(),
            }
        }
    }
}

/// unix(7): a datagram socket whose queue is full says EAGAIN, and some systems ENOBUFS.
fn is_full(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    match name.as_bytes() {
        [b'/', ..] => socket.connect(name)?,
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            socket.connect_addr(&std::os::unix::net::SocketAddr::from_abstract_name(name)?)?;
        }
        _ => return Err(io::Error::other("expected an absolute path, or @ and an abstract name")),
    }
    Ok(socket)
}

/// How often the manager wants a sign of life of this process.
fn watchdog(variables: Variables<'_>) -> Option<Duration> {
    let number = |name| variables(name)?.to_str()?.parse::<u64>().ok();
    let ours = variables("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(u64::from(std::process::id()));
    number("WATCHDOG_USEC").filter(|micros| ours && *micros > 0).map(Duration::from_micros)
}

/// A listening socket that the manager has opened.
#[derive(Debug)]
pub struct Socket {
    /// `FileDescriptorName=` of its unit; `unknown` where none was said.
    pub name: String,
    /// It listens.
    pub descriptor: OwnedFd,
}

/// Takes the sockets that were handed to this process. To be called once, before anything else is opened.
///
/// # Errors
/// A sentence about descriptors that are no listening stream sockets.
pub fn take_sockets(variables: Variables<'_>) -> Result<Vec<Socket>, String> {
    let text = |name| variables(name).and_then(|value| value.into_string().ok());
    // What was meant for another process, from which this one has the variables, lies not here.
    if text("LISTEN_PID").and_then(|process| process.parse().ok()) != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = text("LISTEN_FDS").and_then(|count| count.parse::<RawFd>().ok()).filter(|count| *count >= 0);
    let count = count.ok_or_else(|| "LISTEN_PID is set, and LISTEN_FDS is no number".to_owned())?;
    let names = text("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let take = |at: RawFd| {
        let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown").to_owned();
        // SAFETY: by the protocol the descriptor is this process's own, and this function is called once.
        let descriptor = unsafe { OwnedFd::from_raw_fd(at) };
        let listens = getsockopt(&descriptor, sockopt::AcceptConn).is_ok_and(|listens| listens);
        let streams = getsockopt(&descriptor, sockopt::SockType).is_ok_and(|kind| kind == SockType::Stream);
        if !(listens && streams) {
            std::mem::forget(descriptor);
            return Err(format!(
                "the inherited descriptor {at} ({name}) is no listening stream socket: expected ListenStream= and Accept=no in \
                 its socket unit"
            ));
        }
        close_on_exec(&descriptor).map_err(|error| format!("the inherited descriptor {at} ({name}): {error}"))?;
        Ok(Socket { name, descriptor })
    };
    (FIRST_DESCRIPTOR..FIRST_DESCRIPTOR.saturating_add(count)).map(take).collect()
}

fn close_on_exec(descriptor: &impl AsFd) -> nix::Result<()> {
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(folder: &std::path::Path, more: &[(&str, &str)], now: Instant) -> (Manager, UnixDatagram) {
        let path = folder.join("notify");
        let theirs = UnixDatagram::bind(&path).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let variables = |name: &str| match name {
            "NOTIFY_SOCKET" => Some(path.clone().into_os_string()),
            _ => more.iter().find(|(other, _)| *other == name).map(|(_, value)| OsString::from(value)),
        };
        let (manager, trouble) = Manager::of(&variables, now);
        assert_eq!(trouble, None);
        (manager, theirs)
    }

    fn heard(socket: &UnixDatagram) -> Vec<String> {
        let mut buffer = [0; 512];
        let next =
            || socket.recv(&mut buffer).ok().map(|length| String::from_utf8_lossy(&buffer[..length]).into_owned());
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn the_manager_hears_each_word_once_and_in_order() {
        let (folder, now) = (tempfile::tempdir().unwrap(), Instant::now());
        let (mut manager, theirs) = manager(folder.path(), &[], now);
        manager.wait_for_us(now);
        manager.wait_for_us(now);
        manager.ready(now);
        manager.status("serving".to_owned(), now);
        manager.status("serving".to_owned(), now);
        manager.reloading(now);
        manager.stopping(now);
        manager.hand_over(7, now);
        manager.ready(now);
        let words = heard(&theirs);
        let [extend, ready, status, reloading, stopping, main] = &words[..] else { panic!("{words:?}") };
        assert_eq!([extend, ready, status], ["EXTEND_TIMEOUT_USEC=15000000", "READY=1", "STATUS=serving"]);
        let micros: u64 = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap().parse().unwrap();
        assert!(micros > 0);
        assert_eq!([stopping, main], ["STOPPING=1", "MAINPID=7"]);
        assert_eq!(manager.due(), None);
    }

    #[test]
    fn a_sign_of_life_is_sent_only_by_one_who_lives() {
        let (folder, now) = (tempfile::tempdir().unwrap(), Instant::now());
        let (mut first, theirs) = manager(folder.path(), &[("WATCHDOG_USEC", "3000000")], now);
        assert_eq!(first.due(), Some(now));
        assert!(first.turn(true, now), "the loops are to show the next one");
        assert!(!first.turn(true, now), "not yet");
        let next = now + Duration::from_secs(1);
        assert_eq!(first.due(), Some(next));
        assert!(first.turn(false, next));
        assert_eq!(heard(&theirs), ["WATCHDOG=1"]);
        drop(theirs);
        let other = tempfile::tempdir().unwrap();
        let (mut another, theirs) = manager(other.path(), &[("WATCHDOG_USEC", "3000000"), ("WATCHDOG_PID", "1")], now);
        assert!(!another.turn(true, now) && another.due().is_none(), "meant for another process");
        assert!(heard(&theirs).is_empty());
    }

    #[test]
    fn what_has_no_room_is_sent_later() {
        let (folder, now) = (tempfile::tempdir().unwrap(), Instant::now());
        let (mut manager, theirs) = manager(folder.path(), &[], now);
        let mut said = 0;
        while manager.due().is_none() {
            manager.status(format!("{said}"), now);
            said += 1;
        }
        let mut words = heard(&theirs);
        assert_eq!(words.len(), said - 1);
        assert!(!manager.turn(true, manager.due().unwrap()));
        words.extend(heard(&theirs));
        assert_eq!(words.last().unwrap(), &format!("STATUS={}", said - 1));
        assert_eq!(manager.due(), None);
    }

    #[test]
    fn of_what_has_no_room_at_a_handover_only_the_new_process_is_told() {
        let (folder, now) = (tempfile::tempdir().unwrap(), Instant::now());
        let (mut manager, theirs) = manager(folder.path(), &[], now);
        let mut said = 0;
        while manager.due().is_none() {
            manager.status(format!("{said}"), now);
            said += 1;
        }
        manager.hand_over(7, now);
        manager.wait_for_us(now);
        assert!(!manager.is_there());
        assert_eq!(heard(&theirs).len(), said - 1);
        assert!(!manager.turn(true, manager.due().unwrap()));
        assert_eq!(heard(&theirs), ["MAINPID=7"]);
        assert_eq!(manager.due(), None);
    }

    #[test]
    fn a_name_that_cannot_be_used_is_told() {
        for (name, reason) in [("relative", "expected an absolute path"), ("/nobody/there", "No such file")] {
            let (manager, trouble) =
                Manager::of(&|asked| (asked == "NOTIFY_SOCKET").then(|| OsString::from(name)), Instant::now());
            let trouble = trouble.unwrap();
            assert!(trouble.contains(name) && trouble.contains(reason), "{trouble}");
            assert_eq!(manager.due(), None);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn an_abstract_name_is_understood() {
        use std::os::linux::net::SocketAddrExt;
        let name = format!("production_server-test-{}", std::process::id());
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        let theirs = UnixDatagram::bind_addr(&address).unwrap();
        theirs.set_nonblocking(true).unwrap();
        let now = Instant::now();
        let (mut manager, trouble) =
            Manager::of(&|asked| (asked == "NOTIFY_SOCKET").then(|| OsString::from(format!("@{name}"))), now);
        assert_eq!(trouble, None);
        manager.ready(now);
        assert_eq!(heard(&theirs), ["READY=1"]);
    }

    #[test]
    fn sockets_of_another_process_are_not_taken() {
        let variables = |name: &str| match name {
            "LISTEN_PID" => Some("1".into()),
            "LISTEN_FDS" => Some("2".into()),
            _ => None,
        };
        assert!(take_sockets(&variables).unwrap().is_empty());
        assert!(take_sockets(&|_| None).unwrap().is_empty());
    }
}
