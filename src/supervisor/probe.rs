//! Is a worker there and ready? Non-blocking looks with back-off, and what to say when the answer does not come.
//!
//! There are three ways to look, all at the address that requests will go to, or in turn at several of which it will be one:
//!
//! - **connect**: somebody listens. The connection is closed at once. On a Unix socket the answer is immediate; on TCP it is
//!   waited for in the supervisor's poll. A full backlog is an answer: somebody listens and is busy.
//! - **accept**: somebody takes connections. For a worker that inherits its listening socket: the kernel answers connects
//!   on that one from the beginning, with nobody behind it. A connection is made and kept, and the system's table of
//!   Unix sockets (/proc/net/unix) tells when no connection to that path waits any more. Nothing is sent, so that the app
//!   sees no more of it than of a connect. Where there is no such table, `OPTIONS *` is asked and any answer counts.
//! - **ask**: a GET of a path is answered with 2xx ([`Check::get`]).
//!
//! A probe never blocks and owns at most one connection.

pub(super) mod http;

use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::config::ReadyBy;
use http::{Check, HttpProbe, Outcome, refusal};

/// How long a TCP connect may take before it counts as failed.
const CONNECT_PATIENCE: Duration = Duration::from_secs(2);
/// After that time of asking in vain, a worker is asked less often: requests cost it more than connects do.
const EAGER: Duration = Duration::from_secs(5);
/// The delay between two questions then.
const LATE_DELAY: Duration = Duration::from_millis(500);
/// The state of a connection that nobody has accepted yet, in /proc/net/unix (SS_CONNECTING in the kernel's net.h).
const NOT_ACCEPTED: &[u8] = b"02";
/// The flags of a socket that listens, there (__SO_ACCEPTCON).
const LISTENS: &[u8] = b"00010000";

/// What a look at a probe shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It is there, and as ready as was asked for.
    Listening,
    /// Not yet; look again at [`Probe::next`], or when [`Probe::entry`] has its event. [`Probe::reason`] says more.
    NotYet,
}

/// What is done at each look.
#[derive(Debug)]
enum Kind {
    Connect,
    /// The socket's path, as the system's table has it.
    Accept(PathBuf),
    Ask(Rc<Check>),
}

/// What is under way.
#[derive(Debug)]
enum Pending {
    /// A TCP connect, and since when.
    Connect(Socket, Instant),
    /// A connection that is to be accepted.
    Accept(Socket),
    /// A request that is to be answered.
    Ask(HttpProbe),
}

/// A series of looks, each a little later than the one before.
#[derive(Debug)]
pub struct Probe {
    /// Where somebody may listen: each look goes through those that are left until somebody does. Never empty.
    addresses: Vec<SockAddr>,
    /// The one that is looked at.
    at: usize,
    kind: Kind,
    pending: Option<Pending>,
    start: Instant,
    next: Instant,
    delay: Duration,
    longest: Duration,
    reason: Option<String>,
}

impl Probe {
    /// A probe that connects at once, then after `first`, then after twice that, up to every `longest`.
    pub fn new(address: SockAddr, first: Duration, longest: Duration, now: Instant) -> Probe {
        Probe {
            addresses: vec![address],
            at: 0,
            kind: Kind::Connect,
            pending: None,
            start: now,
            next: now,
            delay: first,
            longest,
            reason: None,
        }
    }

    /// The same, and where nobody listens there, at these addresses in turn.
    pub fn or_at(mut self, others: impl IntoIterator<Item = SockAddr>) -> Probe {
        self.addresses.extend(others);
        self
    }

    /// The address that is looked at; after [`Look::Listening`], where that was.
    pub fn address(&self) -> &SockAddr {
        &self.addresses[self.at]
    }

    /// A probe for a worker's own socket: 5 ms, doubling up to 100 ms.
    pub fn of_worker(address: SockAddr, now: Instant) -> Probe {
        Probe::new(address, Duration::from_millis(5), Duration::from_millis(100), now)
    }

    /// A probe for a server that somebody else runs: 50 ms, doubling up to 1 s.
    pub fn of_upstream(address: SockAddr, now: Instant) -> Probe {
        Probe::new(address, Duration::from_millis(50), Duration::from_secs(1), now)
    }

    /// A probe that asks a worker for `path` until it answers with 2xx: 5 ms, doubling up to 100 ms; after 5 s every 500 ms.
    /// A question is given up after [`http::PATIENCE`].
    pub fn of_answers(address: SockAddr, path: &str, now: Instant) -> Probe {
        Probe { kind: Kind::Ask(Rc::new(Check::get(path))), ..Probe::of_worker(address, now) }
    }

    /// A probe for a worker that inherited the listening socket at `path`: until it accepts. 5 ms, doubling up to 100 ms.
    pub fn of_accepts(address: SockAddr, path: &Path, now: Instant) -> Probe {
        Probe { kind: Kind::Accept(path.to_path_buf()), ..Probe::of_worker(address, now) }
    }

    /// The probe by which a worker shows that it is ready; `None` when it says so itself. `inherited` is the path of the
    /// listening socket that it was given, if it was.
    pub fn of_readiness(ready: &ReadyBy, address: SockAddr, inherited: Option<&Path>, now: Instant) -> Option<Probe> {
        match (ready, inherited) {
            (ReadyBy::Notify | ReadyBy::Join, _) => None,
            (ReadyBy::Http(path), _) => Some(Probe::of_answers(address, path, now)),
            (ReadyBy::Listen, Some(path)) => Some(Probe::of_accepts(address, path, now)),
            (ReadyBy::Listen, None) => Some(Probe::of_worker(address, now)),
        }
    }

    /// When to look again, whatever the descriptor does.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// A connection under way, to be polled for [`Probe::events`].
    pub fn descriptor(&self) -> Option<RawFd> {
        self.interest().map(|(descriptor, _)| descriptor)
    }

    /// What the descriptor is to be polled for: POLLIN or POLLOUT (poll(2)); 0 when there is none.
    pub fn events(&self) -> i16 {
        self.interest().map_or(0, |(_, events)| events)
    }

    /// Both, for [`super::wake::poll`].
    pub fn entry(&self) -> Option<libc::pollfd> {
        self.interest().map(|(descriptor, events)| super::wake::entry(descriptor, events))
    }

    fn interest(&self) -> Option<(RawFd, i16)> {
        match &self.pending {
            Some(Pending::Connect(socket, _)) => Some((socket.as_raw_fd(), libc::POLLOUT)),
            Some(Pending::Ask(ask)) => Some(ask.interest()),
            // That it is accepted is no event.
            Some(Pending::Accept(_)) | None => None,
        }
    }

    /// Why the last look that was answered failed, for the message about a worker that does not get ready: `GET /ready was
    /// answered with 503`, `nobody listens there`. `None` before the first answer.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// Looks: goes on with what is under way, or starts the next look if it is due. Never blocks.
    pub fn look(&mut self, now: Instant) -> Look {
        match self.pending.take() {
            None if now >= self.next => self.begin(now),
            None => Look::NotYet,
            Some(Pending::Connect(socket, since)) => self.follow_connect(socket, since, now),
            Some(Pending::Accept(socket)) => self.follow_accept(socket, now),
            Some(Pending::Ask(ask)) => self.follow_ask(ask, now),
        }
    }

    /// Puts the next look off, each time for longer. It begins with the first address again.
    pub fn later(&mut self, now: Instant) {
        self.at = 0;
        self.next = now + self.delay;
        let late = matches!(self.kind, Kind::Ask(_)) && now.saturating_duration_since(self.start) >= EAGER;
        self.delay = if late { LATE_DELAY } else { (self.delay * 2).min(self.longest) };
    }

    fn failed(&mut self, reason: String, now: Instant) -> Look {
        self.reason = Some(reason);
        self.later(now);
        Look::NotYet
    }

    /// Nobody listens there: goes on with the next address.
    fn nobody(&mut self, reason: String, now: Instant) -> Look {
        if self.at + 1 < self.addresses.len() {
            self.at += 1;
            return self.begin(now);
        }
        self.failed(reason, now)
    }

    fn begin(&mut self, now: Instant) -> Look {
        if let Kind::Ask(question) = &self.kind {
            return match HttpProbe::begin(self.address(), question, now) {
                Ok(ask) => self.follow_ask(ask, now),
                Err(reason) => self.nobody(reason, now),
            };
        }
        match (connect(self.address()), &self.kind) {
            (Ok(socket), Kind::Accept(_)) => {
                // Nobody can have accepted it yet.
                self.pending = Some(Pending::Accept(socket));
                self.failed("it has not accepted a connection yet".to_owned(), now)
            }
            (Ok(socket), _) => self.follow_connect(socket, now, now),
            (Err(error), Kind::Connect) if error.kind() == io::ErrorKind::WouldBlock => Look::Listening,
            (Err(error), _) => self.nobody(refusal(&error), now),
        }
    }

    fn follow_connect(&mut self, socket: Socket, since: Instant, now: Instant) -> Look {
        match socket.take_error() {
            Ok(None) if socket.peer_addr().is_ok() => Look::Listening,
            Ok(None) if now.saturating_duration_since(since) < CONNECT_PATIENCE => {
                self.pending = Some(Pending::Connect(socket, since));
                self.next = since + CONNECT_PATIENCE;
                Look::NotYet
            }
            Ok(None) => self.nobody("a connection to it is not answered".to_owned(), now),
            Ok(Some(error)) | Err(error) => self.nobody(refusal(&error), now),
        }
    }

    fn follow_accept(&mut self, mut socket: Socket, now: Instant) -> Look {
        let Kind::Accept(path) = &self.kind else { return Look::NotYet };
        if now < self.next {
            self.pending = Some(Pending::Accept(socket));
            return Look::NotYet;
        }
        match socket.read(&mut [0]) {
            // It was accepted, and closed or even spoken to.
            Ok(_) => return Look::Listening,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // The listener was closed with the connection in its queue.
            Err(error) => return self.failed(refusal(&error), now),
        }
        match fs::read("/proc/net/unix") {
            // It waits no more. A listener that closes leaves the table before those that wait for it: one that is there after that is alive.
            Ok(table) if !waits_to_be_accepted(&table, path) => match fs::read("/proc/net/unix") {
                Ok(later) if !is_listened_on(&later, path) => {
                    self.failed("nobody listens there any more".to_owned(), now)
                }
                _ => Look::Listening,
            },
            Ok(_) => {
                self.pending = Some(Pending::Accept(socket));
                self.later(now);
                Look::NotYet
            }
            Err(_) => {
                self.kind = Kind::Ask(Rc::new(Check::ping()));
                self.begin(now)
            }
        }
    }

    fn follow_ask(&mut self, mut ask: HttpProbe, now: Instant) -> Look {
        match ask.advance(now) {
            Outcome::Yes => Look::Listening,
            Outcome::No(reason) => self.failed(reason, now),
            Outcome::Nobody(reason) => self.nobody(reason, now),
            Outcome::Pending => {
                self.next = ask.deadline();
                self.pending = Some(Pending::Ask(ask));
                Look::NotYet
            }
        }
    }
}

/// Connects without blocking; the connect may still be under way (EINPROGRESS, TCP only). A full backlog of a Unix socket
/// is [`io::ErrorKind::WouldBlock`] (connect(2)).
///
/// # Errors
/// Those of socket(2) and connect(2).
pub(super) fn connect(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::from(i32::from(address.family())), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(address) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket),
    }
}

/// Whether the system's table of Unix sockets has a connection to that path that nobody has accepted. A line is `num
/// refcount protocol flags type st inode path`; such a connection carries the listener's path (proc_net(5)).
fn waits_to_be_accepted(table: &[u8], path: &Path) -> bool {
    has_line(table, path, 5, NOT_ACCEPTED)
}

/// Whether it has a socket with that path that listens.
fn is_listened_on(table: &[u8], path: &Path) -> bool {
    has_line(table, path, 3, LISTENS)
}

/// Whether it has a line of that path with this value in that field, counted from 0.
fn has_line(table: &[u8], path: &Path, field: usize, value: &[u8]) -> bool {
    let path = path.as_os_str().as_bytes();
    table.split(|&byte| byte == b'\n').any(|line| {
        let Some(start) = line.strip_suffix(path) else { return false };
        let mut fields = start.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
        start.ends_with(b" ") && fields.nth(field) == Some(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::wake;
    use std::io::Write;
    use std::net::{SocketAddr, TcpListener};
    use std::os::unix::net::UnixListener;
    use std::thread::JoinHandle;

    const PATIENCE: Duration = Duration::from_secs(20);

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
        assert_eq!(probe.reason(), Some("its socket is not there"));
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(probe.look(now), Look::Listening);
        drop(listener);
    }

    #[test]
    fn a_tcp_listener_is_found_and_a_closed_port_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        assert_eq!(follow(&mut Probe::of_upstream(address.into(), Instant::now())), Look::Listening);
        drop(listener);
        let mut probe = Probe::of_upstream(address.into(), Instant::now());
        assert_eq!(follow(&mut probe), Look::NotYet);
        assert_eq!(probe.reason(), Some("nobody listens there"));
    }

    #[test]
    fn several_addresses_are_looked_at_in_turn() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let port = TcpListener::bind("127.0.0.1:0").unwrap();
        let port_at: SocketAddr = port.local_addr().unwrap();
        drop(port);
        let both = |probe: Probe| probe.or_at([SockAddr::from(port_at)]);
        let unix = || SockAddr::unix(&path).unwrap();
        for asks in [false, true] {
            let mut probe = match asks {
                false => both(Probe::of_worker(unix(), Instant::now())),
                true => both(Probe::of_answers(unix(), "/ready", Instant::now())),
            };
            for _ in 0..2 {
                assert_eq!(follow(&mut probe), Look::NotYet);
                assert_eq!(probe.reason(), Some("nobody listens there"));
                probe.next = Instant::now();
            }
            let listener = TcpListener::bind(port_at).unwrap();
            let ready = std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").ok();
                stream.read_to_end(&mut Vec::new()).ok();
            });
            assert_eq!(follow(&mut probe), Look::Listening);
            assert_eq!(probe.address().as_socket(), Some(port_at));
            drop(probe);
            ready.join().unwrap();
        }
        let listener = UnixListener::bind(&path).unwrap();
        let worker = answering(listener, &[b"HTTP/1.1 503 x\r\n\r\n"]);
        let mut probe = both(Probe::of_answers(unix(), "/ready", Instant::now()));
        assert_eq!(follow(&mut probe), Look::NotYet);
        assert_eq!(
            probe.reason(),
            Some("GET /ready was answered with 503"),
            "it is there, and the others are not asked"
        );
        worker.join().unwrap();
    }

    /// Looks until what is under way has its answer.
    fn follow(probe: &mut Probe) -> Look {
        let mut look = probe.look(Instant::now());
        while let Some(entry) = probe.entry() {
            let left = probe.next().saturating_duration_since(Instant::now());
            wake::poll(&mut [entry], Some(left)).unwrap();
            look = probe.look(Instant::now());
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
        let mut asks = Probe::of_answers(address, "/ready", Instant::now());
        assert_eq!(asks.look(Instant::now()), Look::NotYet, "it can still not be asked");
        assert_eq!(asks.reason(), Some("its queue of connections is full"));
    }

    /// A worker that answers each connection with the next of these, and hands back what it was asked.
    fn answering(listener: UnixListener, answers: &[&[u8]]) -> JoinHandle<Vec<String>> {
        let answers: Vec<Vec<u8>> = answers.iter().map(|answer| answer.to_vec()).collect();
        std::thread::spawn(move || {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut question = Vec::new();
                let mut byte = [0];
                while !question.ends_with(b"\r\n\r\n") {
                    assert_eq!(stream.read(&mut byte).unwrap(), 1, "the question is cut");
                    question.push(byte[0]);
                }
                asked.push(String::from_utf8(question).unwrap());
                // One that has heard enough may hang up.
                stream.write_all(&answer).ok();
            }
            asked
        })
    }

    #[test]
    fn a_worker_is_asked_until_it_is_ready() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let address = SockAddr::unix(&path).unwrap();
        let mut probe = Probe::of_answers(address, "/ready?deep=1", Instant::now());
        assert_eq!(follow(&mut probe), Look::NotYet);
        assert_eq!(probe.reason(), Some("its socket is not there"));
        let endless = vec![b'x'; 10 << 20];
        let huge = [&b"HTTP/1.1 500 x\r\n\r\n"[..], &endless].concat();
        let head = [&b"HTTP/1.1 200 OK\r\nX: "[..], &endless].concat();
        let answers: [(&[u8], &str); 8] = [
            (b"HTTP/1.1 503 x\r\nContent-Length: 9\r\n\r\nnot-ready", "was answered with 503 and `not-ready`"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnot-ready", "was answered with 200 and `not-ready`"),
            (b"HTTP/1.1 200 OK\r\n\r\ndraining", "was answered with 200 and `draining`"),
            (b"", "got no answer, and the connection's end"),
            (b"\x16\x03\x01", "was answered with something that is no HTTP/1.1 answer: invalid HTTP version"),
            (&head, "was answered with a head of more than 8 KiB"),
            (&huge, "was answered with 500"),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", ""),
        ];
        let listener = UnixListener::bind(&path).unwrap();
        let worker = answering(listener, &answers.map(|(answer, _)| answer));
        for (_, expected) in &answers[..7] {
            probe.next = Instant::now();
            assert_eq!(follow(&mut probe), Look::NotYet);
            assert_eq!(probe.reason(), Some(format!("GET /ready?deep=1 {expected}").as_str()));
            assert!(probe.next() > Instant::now() - LATE_DELAY && probe.descriptor().is_none());
        }
        probe.next = Instant::now();
        assert_eq!(follow(&mut probe), Look::Listening);
        let asked = worker.join().unwrap();
        let expected = "GET /ready?deep=1 HTTP/1.1\r\nHost: localhost\r\nUser-Agent: production_server\r\nAccept: */*\r\nConnection: close\r\n\r\n";
        assert_eq!(asked[0], expected);
    }

    #[test]
    fn a_question_without_answer_is_given_up_and_asked_less_often_later() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let start = Instant::now();
        let mut probe = Probe::of_answers(listener.local_addr().unwrap().into(), "/ready", start);
        let mut now = start;
        let mut delays = Vec::new();
        while now < start + EAGER + Duration::from_secs(4) {
            // The kernel has the question at once; only the clock is ours.
            while probe.events() != libc::POLLIN {
                wake::poll(&mut [probe.entry().unwrap_or(wake::entry(-1, 0))], Some(Duration::from_millis(1))).unwrap();
                assert_eq!(probe.look(now), Look::NotYet);
            }
            assert_eq!(probe.next() - now, http::PATIENCE);
            now = probe.next();
            assert_eq!(probe.look(now), Look::NotYet);
            assert_eq!(probe.reason(), Some("GET /ready was not answered within 1 s"));
            assert!(probe.descriptor().is_none(), "its connection is closed");
            delays.push((probe.next() - now).as_millis());
            now = probe.next();
        }
        assert_eq!(delays, [5, 10, 20, 40, 80, 500, 500, 500]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_socket_that_is_inherited_is_ready_when_it_is_accepted_from() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut probe = Probe::of_accepts(SockAddr::unix(&path).unwrap(), &path, Instant::now());
        for _ in 0..5 {
            assert_eq!(probe.look(probe.next()), Look::NotYet, "only the kernel listens");
            assert_eq!(probe.reason(), Some("it has not accepted a connection yet"));
        }
        let accepted = listener.accept().unwrap();
        assert_eq!(probe.look(probe.next()), Look::Listening);
        drop(accepted);
    }

    #[test]
    fn an_inherited_socket_that_dies_before_it_is_accepted_from_is_not_ready() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let mut probe = Probe::of_accepts(SockAddr::unix(&path).unwrap(), &path, Instant::now());
        assert_eq!(probe.look(probe.next()), Look::NotYet);
        drop(listener);
        assert_eq!(probe.look(probe.next()), Look::NotYet);
        assert_eq!(probe.reason(), Some("its socket was closed"));
        assert_eq!(probe.look(probe.next()), Look::NotYet);
        assert_eq!(probe.reason(), Some("nobody listens there"));
    }

    #[test]
    fn without_the_systems_table_a_ping_shows_who_accepts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let ping = Kind::Ask(Rc::new(Check::ping()));
        let mut probe = Probe { kind: ping, ..Probe::of_worker(SockAddr::unix(&path).unwrap(), Instant::now()) };
        assert_eq!(probe.look(Instant::now()), Look::NotYet);
        assert_eq!(probe.events(), libc::POLLIN);
        drop(listener);
        assert_eq!(follow(&mut probe), Look::NotYet, "dead before it accepted");
        std::fs::remove_file(&path).unwrap();
        for answer in [&b"HTTP/1.1 405 no\r\n\r\n"[..], b"", b"?"] {
            let listener = UnixListener::bind(&path).unwrap();
            let worker = answering(listener, &[answer]);
            probe.next = Instant::now();
            assert_eq!(follow(&mut probe), Look::Listening, "{answer:?}");
            assert!(worker.join().unwrap()[0].starts_with("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n"));
            std::fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn the_systems_table_is_read_to_the_letter() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            00000000ba8deb35: 00000003 00000000 00000000 0001 02     0 /run/a.sock\n\
            00000000841bc422: 00000002 00000000 00010000 0001 01 17860879 /run/b.sock\n\
            00000000ba8deb36: 00000003 00000000 00000000 0001 03 17860882 /run/b.sock\n\
            00000000ba8deb37: 00000003 00000000 00000000 0001 02     0 /x/run/b.sock\n";
        assert!(waits_to_be_accepted(table, Path::new("/run/a.sock")));
        assert!(!waits_to_be_accepted(table, Path::new("/run/b.sock")));
        assert!(!waits_to_be_accepted(table, Path::new("a.sock")));
        assert!(!waits_to_be_accepted(b"", Path::new("/run/a.sock")));
        assert!(is_listened_on(table, Path::new("/run/b.sock")) && !is_listened_on(table, Path::new("/run/a.sock")));
    }
}
