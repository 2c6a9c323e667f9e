//! The rig: a backend with its pool, peers for it, and the rules that hold for every event.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use production_server::backends::{
    ACCEPT_BATCH, Backend, Bell, Event, Handed, How, Options, Peer, Piece, Side, Size, Sock,
};
use production_server::buffers::block::{Block, Budget, Pool};
use socket2::SockAddr;
use tempfile::TempDir;

/// No wait of the suite is longer; it ends a case that would hang.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// What the rules know of one socket.
#[derive(Default)]
struct Known {
    armed: bool,
    closing: bool,
    received_in: Option<u64>,
    ended: bool,
    failed: Vec<Side>,
    /// Full was told, and the outbox was not empty since.
    full: bool,
    awaits_room: bool,
    /// A file was sent: it may be behind though nothing is queued.
    has_file: bool,
}

/// A backend under test. All calls go through here, so that the rules know what was asked.
pub struct Rig<B: Backend> {
    pub backend: B,
    pub pool: Pool,
    known: HashMap<Sock, Known>,
    accepted: HashMap<Sock, usize>,
    waiting: Vec<Event>,
    turn: u64,
}

/// What a rig's backend gets, unless a case says otherwise.
pub fn options() -> Options {
    Options {
        max_sockets: 1024,
        pool: Pool::new(64, 8, Budget::new(64 << 20)),
        stall: Duration::from_secs(60),
        linger: Duration::from_secs(60),
        accept_retry: Duration::from_millis(50),
    }
}

pub fn options_with_pool(pool: Pool) -> Options {
    Options { pool, ..options() }
}

impl<B: Backend> Rig<B> {
    pub fn new() -> Rig<B> {
        Rig::with(options())
    }

    pub fn with(options: Options) -> Rig<B> {
        let pool = options.pool.clone();
        let backend = B::new(options).expect("the kernel gives us this backend");
        Rig { backend, pool, known: HashMap::new(), accepted: HashMap::new(), waiting: Vec::new(), turn: 0 }
    }

    pub fn listen_tcp(&mut self) -> (Sock, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        (self.listen(listener.into()), address)
    }

    pub fn listen(&mut self, listener: std::os::fd::OwnedFd) -> Sock {
        let sock = self.backend.listen(listener).unwrap();
        self.meet(sock);
        sock
    }

    /// A peer over TCP and our end of it. The listener lives on.
    pub fn tcp_pair(&mut self) -> (TcpStream, Sock) {
        let (_, address) = self.listen_tcp();
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        (stream, self.accept().0)
    }

    /// A peer that we have connected to over a Unix socket, and our end of it.
    pub fn unix_pair(&mut self) -> (UnixStream, Sock) {
        let directory = TempDir::new().unwrap();
        let (listener, address) = unix_listener(&directory.path().join("worker.sock"));
        let sock = self.connect(&address).expect("a fresh backlog has room");
        let (stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        self.until("connect", |event| match event {
            Event::Connect { sock: connected } if connected == sock => Ok(()),
            other => Err(other),
        });
        (stream, sock)
    }

    pub fn connect(&mut self, address: &SockAddr) -> Option<Sock> {
        let sock = self.backend.connect(address).unwrap()?;
        self.meet(sock);
        Some(sock)
    }

    /// A new socket. Layers above keep what they know of a socket at its index, until its Close is told.
    fn meet(&mut self, sock: Sock) {
        let taken = self.known.keys().find(|other| other.index == sock.index);
        assert!(taken.is_none(), "{sock:?} has the index of {taken:?}, whose Close was not told yet");
        self.known.insert(sock, Known::default());
    }

    pub fn recv(&mut self, sock: Sock) {
        self.recv_sized(sock, Size::Small);
    }

    pub fn recv_sized(&mut self, sock: Sock, size: Size) {
        if let Some(known) = self.known.get_mut(&sock) {
            known.armed = true;
        }
        self.backend.recv(sock, size);
    }

    pub fn send(&mut self, sock: Sock, bytes: &[u8]) {
        let piece = Piece::from(self.pool.heap(bytes));
        self.backend.send(sock, piece);
    }

    pub fn await_room(&mut self, sock: Sock) {
        if let Some(known) = self.known.get_mut(&sock) {
            known.awaits_room = true;
        }
        self.backend.await_room(sock);
    }

    /// Sends from a file: room for more is told without being asked for.
    pub fn send_file(&mut self, sock: Sock, file: &File, at: u64, count: u64) -> Handed {
        if let Some(known) = self.known.get_mut(&sock) {
            (known.awaits_room, known.has_file) = (true, true);
        }
        self.backend.send_file(sock, file, at, count)
    }

    /// Whether there was or is room for more of a file does not matter any more.
    pub fn forget_room(&mut self, sock: Sock) {
        let is_of =
            |event: &Event| matches!(event, Event::Full { sock: of } | Event::Drain { sock: of } if *of == sock);
        self.pump();
        self.waiting.retain(|event| !is_of(event));
    }

    pub fn close(&mut self, sock: Sock, how: How) {
        if let Some(known) = self.known.get_mut(&sock) {
            known.closing = true;
        }
        self.backend.close(sock, how);
    }

    /// One turn: a wait of at most `timeout`, and all its events, checked.
    pub fn turn(&mut self, timeout: Duration) -> Vec<Event> {
        self.wait(timeout);
        std::iter::from_fn(|| self.next()).collect()
    }

    pub fn wait(&mut self, timeout: Duration) {
        self.backend.wait(Some(timeout)).unwrap();
        self.turn += 1;
        self.accepted.clear();
        self.forget_full();
    }

    /// Full may be told again once the outbox was empty.
    fn forget_full(&mut self) {
        for (sock, known) in &mut self.known {
            known.full &= self.backend.unsent(*sock) > 0;
        }
    }

    /// The next event of this turn, checked.
    pub fn next(&mut self) -> Option<Event> {
        let event = self.backend.next();
        if let Some(event) = &event {
            self.check(event);
        }
        self.forget_full();
        event
    }

    /// Runs turns until `wanted` takes an event; those that it gives back wait for a later call.
    pub fn until<T>(&mut self, what: &str, mut wanted: impl FnMut(Event) -> Result<T, Event>) -> T {
        let deadline = Instant::now() + DEADLINE;
        let mut found = None;
        for event in std::mem::take(&mut self.waiting) {
            self.offer(event, &mut found, &mut wanted);
        }
        while found.is_none() {
            assert!(Instant::now() < deadline, "no {what} within {DEADLINE:?}; waiting: {:?}", self.waiting);
            for event in self.turn(Duration::from_millis(100)) {
                self.offer(event, &mut found, &mut wanted);
            }
        }
        found.unwrap()
    }

    fn offer<T>(&mut self, event: Event, found: &mut Option<T>, wanted: &mut impl FnMut(Event) -> Result<T, Event>) {
        match if found.is_some() { Err(event) } else { wanted(event) } {
            Ok(value) => *found = Some(value),
            Err(event) => self.waiting.push(event),
        }
    }

    /// One turn without sleep, so that what is queued leaves; its events wait for a later call.
    pub fn pump(&mut self) {
        let events = self.turn(Duration::ZERO);
        self.waiting.extend(events);
    }

    /// Runs turns until `done` says so; their events wait for a later call.
    pub fn pump_until(&mut self, what: &str, mut done: impl FnMut(&mut Rig<B>) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(Instant::now() < deadline, "no {what} within {DEADLINE:?}");
            let events = self.turn(Duration::from_millis(5));
            self.waiting.extend(events);
        }
    }

    pub fn accept(&mut self) -> (Sock, Peer) {
        self.until("accept", |event| match event {
            Event::Accept { sock, peer, .. } => Ok((sock, peer)),
            other => Err(other),
        })
    }

    pub fn receive(&mut self, sock: Sock) -> Block {
        self.until("receive", |event| match event {
            Event::Receive { sock: from, block } if from == sock => Ok(block),
            other => Err(other),
        })
    }

    /// Arms receives until exactly `bytes` were received.
    pub fn expect_bytes(&mut self, sock: Sock, bytes: &[u8]) {
        let mut received = Vec::new();
        while received.len() < bytes.len() {
            self.recv(sock);
            received.extend_from_slice(&self.receive(sock));
        }
        assert_eq!(received, bytes);
    }

    pub fn expect_end(&mut self, sock: Sock) {
        self.until("end", |event| match event {
            Event::End { sock: from } if from == sock => Ok(()),
            other => Err(other),
        });
    }

    pub fn expect_close(&mut self, sock: Sock) {
        self.until("close", |event| match event {
            Event::Close { sock: closed } if closed == sock => Ok(()),
            other => Err(other),
        });
    }

    pub fn expect_full(&mut self, sock: Sock) {
        self.until("full", |event| match event {
            Event::Full { sock: from } if from == sock => Ok(()),
            other => Err(other),
        });
    }

    pub fn expect_drain(&mut self, sock: Sock) {
        self.until("drain", |event| match event {
            Event::Drain { sock: from } if from == sock => Ok(()),
            other => Err(other),
        });
    }

    /// Asks for room until the outbox is empty; whether Full was told meanwhile does not matter.
    pub fn expect_empty(&mut self, sock: Sock) {
        while self.backend.unsent(sock) > 0 {
            self.await_room(sock);
            self.expect_drain(sock);
        }
        self.waiting.retain(|event| !matches!(event, Event::Full { sock: from } if *from == sock));
    }

    pub fn expect_fail(&mut self, sock: Sock, side: Side) -> io::Error {
        self.until("fail", |event| match event {
            Event::Fail { sock: from, side: at, error } if from == sock && at == side => Ok(error),
            other => Err(other),
        })
    }

    /// Proves that nothing more is on its way: rings the bell and runs turns until it was heard, three times, and then
    /// demands that no event is left.
    pub fn expect_silence(&mut self) {
        for _ in 0..3 {
            self.backend.bell().ring();
            self.until("wake", |event| match event {
                Event::Wake => Ok(()),
                other => Err(other),
            });
        }
        assert!(self.waiting.is_empty(), "unexpected: {:?}", self.waiting);
    }

    /// Closes every socket, and checks that nothing is left anywhere.
    pub fn finish(mut self) {
        self.expect_silence();
        let open: Vec<Sock> = self.known.iter().filter(|(_, known)| !known.closing).map(|(sock, _)| *sock).collect();
        for sock in open {
            self.close(sock, How::Now);
        }
        let all: Vec<Sock> = self.known.keys().copied().collect();
        for sock in all {
            self.expect_close(sock);
        }
        self.expect_silence();
        assert_eq!(self.backend.live(), 0);
        drop(self.backend);
        for size in [Size::Small, Size::Large] {
            assert_eq!(self.pool.free(size), self.pool.total(size), "a block was leaked");
        }
        assert_eq!(self.pool.budget().used(), 0, "heap bytes were leaked");
    }

    /// The rules that hold for every event.
    fn check(&mut self, event: &Event) {
        match event {
            Event::Wake | Event::Exhausted { .. } => {}
            Event::Accept { listener, sock, .. } => {
                let count = self.accepted.entry(*listener).or_default();
                *count += 1;
                assert!(*count <= ACCEPT_BATCH, "more accepts in one turn than a batch");
                assert!(self.known.contains_key(listener), "an accept for an unknown listener");
                self.meet(*sock);
            }
            Event::Close { sock } => {
                let known = self.known.remove(sock).expect("Close came twice, or for an unknown socket");
                assert!(known.closing, "Close came unasked");
            }
            Event::Connect { sock } => {
                assert!(!self.speak(*sock).closing, "Connect after close was called");
            }
            Event::Full { sock } => {
                let waits = self.backend.unsent(*sock) > 0;
                let known = self.speak(*sock);
                assert!(waits || known.has_file, "Full, and nothing waits");
                assert!(!known.closing, "Full after close was called");
                assert!(!std::mem::replace(&mut known.full, true), "Full came twice");
            }
            Event::Drain { sock } => {
                let known = self.speak(*sock);
                assert!(!known.closing, "Drain after close was called");
                assert!(std::mem::take(&mut known.awaits_room), "Drain came unasked");
            }
            Event::Receive { sock, block } => {
                let turn = self.turn;
                let known = self.speak(*sock);
                assert!(!known.closing, "received after close was called");
                assert!(!block.is_empty(), "received nothing");
                assert!(std::mem::take(&mut known.armed), "received without being armed");
                assert!(!known.ended, "received after the end");
                assert_ne!(known.received_in.replace(turn), Some(turn), "received twice in one turn");
            }
            Event::End { sock } => {
                let known = self.speak(*sock);
                assert!(!known.closing, "End after close was called");
                assert!(std::mem::take(&mut known.armed), "End came though no receive was armed");
                assert!(!std::mem::replace(&mut known.ended, true), "End came twice");
            }
            Event::Fail { sock, side, .. } => {
                let known = self.speak(*sock);
                assert!(!known.closing, "Fail after close was called");
                assert!(!known.failed.contains(side), "{side:?} failed twice");
                assert!(*side != Side::Receive || (known.armed && !known.ended), "a receive failed that was not armed");
                known.failed.push(*side);
            }
        }
    }

    fn speak(&mut self, sock: Sock) -> &mut Known {
        self.known.get_mut(&sock).unwrap_or_else(|| panic!("an event for the dead name {sock:?}"))
    }
}

pub fn unix_listener(path: &Path) -> (UnixListener, SockAddr) {
    (UnixListener::bind(path).unwrap(), SockAddr::unix(path).unwrap())
}

/// `count` bytes of which each depends on its place, so that loss, doubling and disorder show.
pub fn pattern(start: usize, count: usize) -> Vec<u8> {
    (start..start + count).map(|place| (place ^ (place >> 8) ^ (place >> 15).wrapping_mul(31)) as u8).collect()
}

/// Reads to the end and checks that exactly the first `total` bytes of the pattern came.
pub fn read_pattern(mut stream: impl Read, total: usize) {
    let mut buffer = vec![0; 64 * 1024];
    let mut got = 0;
    loop {
        let count = crate::support::read(&mut stream, &mut buffer).unwrap();
        if count == 0 {
            break;
        }
        assert_eq!(buffer[..count], pattern(got, count), "wrong bytes from {got} on");
        got += count;
    }
    assert_eq!(got, total);
}

/// Writes and expects the same bytes back, while the rig's side plays the echo.
pub fn echo_once<B: Backend>(rig: &mut Rig<B>, mut stream: impl Read + Write, sock: Sock, bytes: &[u8]) {
    stream.write_all(bytes).unwrap();
    rig.expect_bytes(sock, bytes);
    rig.send(sock, bytes);
    rig.pump();
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, bytes);
}

/// Runs `case` in a process of its own: this binary again, told to run only the test of that name.
pub fn in_own_process(name: &str, case: fn()) {
    const MARK: &str = "PRODUCTION_SERVER_SUITE_ALONE";
    let name = name.split_once("::").expect("a path within the binary").1;
    if std::env::var_os(MARK).is_some_and(|alone| alone == name) {
        return case();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env(MARK, name)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{name} alone: {}\n{text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}
