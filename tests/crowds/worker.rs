//! A worker that has thousands of requests at once: one thread, a Unix socket, and what it does is in the path of each request.
//!
//! | path | |
//! |---|---|
//! | `/fast` | four bytes at once |
//! | `/large/N` | N bytes, at most [`LARGEST`], as they are taken |
//! | `/events` | an event stream: [`BURST`] at once, then an event in each [`INTERVAL`] for as long as it is taken |
//! | `/hold/ID` | reads the body; answers what came of it, once ID is released |
//! | `/upload/ID` | reads nothing of the body until ID is released |
//! | `/pour/N` | a tunnel: sends N bytes |
//! | `/deaf/ID/N` | a tunnel: reads nothing until ID is released, then N bytes, and answers what came of them |

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mio::event::Event;
use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use crate::support::{fields, pattern};

use super::actor::{Actor, Turns};

/// The largest answer, body and tunnel.
pub const LARGEST: usize = 16 << 20;
/// What an event stream sends at once.
pub const BURST: usize = 100 << 10;
/// From one event of a stream to the next.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// One event.
pub const EVENT: usize = 1 << 10;

/// In so many portions the streams get their events within an interval.
const PORTIONS: usize = 50;
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// All bodies are the beginning of these bytes.
pub fn pattern_bytes() -> &'static Arc<[u8]> {
    static BYTES: OnceLock<Arc<[u8]>> = OnceLock::new();
    BYTES.get_or_init(|| pattern(LARGEST).into())
}

/// How an event looks: one line of `e`.
pub fn event_bytes() -> Vec<u8> {
    [b"data: ".as_slice(), &[b'e'; EVENT - 8], b"\n\n"].concat()
}

/// What there is of each kind now, and has been.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Connections that are open.
    pub open: usize,
    /// Requests that are under way.
    pub running: usize,
    /// The most of them that there ever were.
    pub most: usize,
    /// Requests that wait for their release.
    pub held: usize,
    /// Event streams that are open.
    pub streams: usize,
    /// Answers of `/large` that the server has taken whole.
    pub large_done: usize,
    /// Bytes of them that were taken.
    pub large_taken: usize,
}

/// The handle of the worker's thread.
pub struct CrowdWorker {
    /// What `--upstream` takes.
    pub url: String,
    actor: Actor<State>,
    _folder: tempfile::TempDir,
}

impl CrowdWorker {
    pub fn start() -> CrowdWorker {
        let folder = crate::support::folder();
        let path = folder.path().join("worker.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // The crowd comes at once, and a full backlog is another matter.
        socket2::SockRef::from(&listener).listen(4096).unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("unix:{}", path.display());
        let actor = Actor::start(|registry| State::new(registry, UnixListener::from_std(listener)));
        CrowdWorker { url, actor, _folder: folder }
    }

    pub fn tally(&self) -> Tally {
        self.actor.ask(|state| state.tally)
    }

    /// Lets those go whose number lies in the range, those too that come later.
    pub fn release(&self, ids: Range<usize>) {
        self.actor.ask(move |state| state.release(ids));
    }

    /// Lets those go that wait now.
    pub fn release_held(&self) {
        self.actor.ask(|state| {
            let held: Vec<usize> = state.connections.iter().flatten().filter_map(Connection::held).collect();
            held.into_iter().for_each(|id| state.released.push(id..id + 1));
            state.release(0..0);
        });
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Fast,
    Large(usize),
    Events,
    Hold(usize),
    Upload(usize),
    Pour(usize),
    Deaf(usize, usize),
}

/// What a connection is at.
enum Doing {
    /// Between two requests, or in a head.
    Head,
    /// Reads a body, or what comes through a tunnel.
    Body { kind: Kind, left: usize, got: Got },
    /// Waits for its release; then the body is read, or it is answered.
    Held { kind: Kind, left: usize, got: Got },
    /// Sends for as long as it is taken.
    Endless,
}

/// How much of a body came, and whether it was right.
#[derive(Clone, Copy)]
struct Got {
    count: usize,
    right: bool,
}

impl Got {
    const NOTHING: Got = Got { count: 0, right: true };

    fn take(&mut self, bytes: &[u8]) {
        self.right &= pattern_bytes().get(self.count..self.count + bytes.len()) == Some(bytes);
        self.count += bytes.len();
    }

    /// What is answered.
    fn text(self) -> String {
        format!("{} bytes, {}", self.count, if self.right { "right" } else { "wrong" })
    }
}

/// What a body of so many right bytes is answered by.
pub fn received(count: usize) -> String {
    Got { count, right: true }.text()
}

struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    /// Pieces with what of each is still to be sent.
    output: VecDeque<(Arc<[u8]>, Range<usize>)>,
    doing: Doing,
    /// The request under way.
    kind: Option<Kind>,
}

struct State {
    registry: Registry,
    listener: UnixListener,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    released: Vec<Range<usize>>,
    tally: Tally,
    event: Arc<[u8]>,
    burst: Arc<[u8]>,
    portion: usize,
    next_portion: Instant,
}

/// The connection goes on, or is over.
#[derive(PartialEq)]
enum Fate {
    Stays,
    Ends,
}

const LISTENER: Token = Token(usize::MAX - 1);

impl Turns for State {
    fn event(&mut self, event: &Event) {
        if event.token() == LISTENER {
            return self.accept();
        }
        let index = event.token().0;
        // Those that wait do not read, and see the server's close by its event alone.
        if event.is_write_closed() || event.is_error() {
            return self.drop_connection(index);
        }
        self.go_on(index);
    }

    fn rest(&mut self) -> Duration {
        if self.tally.streams == 0 {
            return Duration::from_secs(1);
        }
        let now = Instant::now();
        if now >= self.next_portion {
            self.next_portion = now + INTERVAL / PORTIONS as u32;
            self.portion = (self.portion + 1) % PORTIONS;
            for index in (self.portion..self.connections.len()).step_by(PORTIONS) {
                self.send_event(index);
            }
        }
        self.next_portion.saturating_duration_since(now)
    }
}

impl State {
    fn new(registry: Registry, mut listener: UnixListener) -> State {
        registry.register(&mut listener, LISTENER, Interest::READABLE).unwrap();
        let event: Arc<[u8]> = event_bytes().into();
        State {
            registry,
            listener,
            connections: Vec::new(),
            free: Vec::new(),
            released: Vec::new(),
            tally: Tally::default(),
            burst: event.repeat(BURST / EVENT).into(),
            event,
            portion: 0,
            next_portion: Instant::now(),
        }
    }

    fn accept(&mut self) {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the worker cannot accept: {error}"),
            };
            let index = self.free.pop().unwrap_or(self.connections.len());
            self.registry.register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE).unwrap();
            let made =
                Connection { stream, input: Vec::new(), output: VecDeque::new(), doing: Doing::Head, kind: None };
            if index == self.connections.len() {
                self.connections.push(None);
            }
            self.connections[index] = Some(made);
            self.tally.open += 1;
        }
    }

    fn drop_connection(&mut self, index: usize) {
        let Some(mut connection) = self.connections[index].take() else { return };
        // Closed with the drop in any case.
        let _ = self.registry.deregister(&mut connection.stream);
        self.tally.open -= 1;
        self.tally.held -= usize::from(matches!(connection.doing, Doing::Held { .. }));
        if let Some(kind) = connection.kind {
            self.tally.running -= 1;
            self.tally.streams -= usize::from(kind == Kind::Events);
        }
        self.free.push(index);
    }

    fn go_on(&mut self, index: usize) {
        let State { connections, released, tally, burst, .. } = self;
        let Some(connection) = &mut connections[index] else { return };
        if connection.go_on(tally, released, burst) == Fate::Ends {
            self.drop_connection(index);
        }
    }

    fn send_event(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else { return };
        if connection.kind == Some(Kind::Events) && connection.output.is_empty() {
            connection.output.push_back((self.event.clone(), 0..EVENT));
            self.go_on(index);
        }
    }

    fn release(&mut self, ids: Range<usize>) {
        self.released.push(ids);
        for index in 0..self.connections.len() {
            self.go_on(index);
        }
    }
}

impl Connection {
    /// The number by which its request waits.
    fn held(&self) -> Option<usize> {
        match self.doing {
            Doing::Held { kind: Kind::Hold(id) | Kind::Upload(id) | Kind::Deaf(id, _), .. } => Some(id),
            _ => None,
        }
    }

    /// Does what can be done now.
    fn go_on(&mut self, tally: &mut Tally, released: &[Range<usize>], burst: &Arc<[u8]>) -> Fate {
        loop {
            match self.flush(tally) {
                Err(()) => return Fate::Ends,
                Ok(false) => return Fate::Stays,
                Ok(true) => {}
            }
            match &mut self.doing {
                Doing::Head => {
                    self.answered(tally);
                    if let Some(end) = memchr::memmem::find(&self.input, b"\r\n\r\n") {
                        let head: Vec<u8> = self.input.drain(..end + 4).collect();
                        self.begin(&String::from_utf8_lossy(&head), tally, burst);
                        continue;
                    }
                }
                Doing::Held { kind, left, got } => {
                    let (kind, left, got) = (*kind, *left, *got);
                    if !self.held().is_some_and(|id| released.iter().any(|ids| ids.contains(&id))) {
                        return Fate::Stays;
                    }
                    tally.held -= 1;
                    match kind {
                        Kind::Hold(_) => self.respond(got.text().as_bytes()),
                        _ => self.doing = Doing::Body { kind, left, got },
                    }
                    continue;
                }
                Doing::Body { left, got, .. } if !self.input.is_empty() || *left == 0 => {
                    let count = self.input.len().min(*left);
                    got.take(&self.input[..count]);
                    *left -= count;
                    self.input.drain(..count);
                    if *left == 0 {
                        self.body_is_whole(tally);
                        continue;
                    }
                }
                // What a client sends into a stream or a tunnel that only pours is dropped.
                Doing::Endless => self.input.clear(),
                Doing::Body { .. } => {}
            }
            match self.receive() {
                Some(Fate::Stays) => return Fate::Stays,
                Some(Fate::Ends) => return Fate::Ends,
                None => {}
            }
        }
    }

    /// All of an answer was taken.
    fn answered(&mut self, tally: &mut Tally) {
        if let Some(kind) = self.kind.take() {
            tally.running -= 1;
            tally.large_done += usize::from(matches!(kind, Kind::Large(_)));
        }
    }

    fn begin(&mut self, head: &str, tally: &mut Tally, burst: &Arc<[u8]>) {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let left = fields(head, "content-length").first().map_or(0, |length| length.parse().unwrap());
        let kind = kind_of(path);
        self.kind = Some(kind);
        tally.running += 1;
        tally.most = tally.most.max(tally.running);
        match kind {
            Kind::Fast | Kind::Large(_) | Kind::Hold(_) => self.doing = Doing::Body { kind, left, got: Got::NOTHING },
            Kind::Upload(_) => self.hold(kind, left, tally),
            Kind::Deaf(_, count) => {
                self.send(SWITCHING.as_bytes());
                self.hold(kind, count, tally);
            }
            Kind::Pour(count) => {
                self.send(SWITCHING.as_bytes());
                self.output.push_back((pattern_bytes().clone(), 0..count));
                self.doing = Doing::Endless;
            }
            Kind::Events => {
                self.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
                self.output.push_back((burst.clone(), 0..BURST));
                self.doing = Doing::Endless;
                tally.streams += 1;
            }
        }
    }

    fn hold(&mut self, kind: Kind, left: usize, tally: &mut Tally) {
        self.doing = Doing::Held { kind, left, got: Got::NOTHING };
        tally.held += 1;
    }

    fn body_is_whole(&mut self, tally: &mut Tally) {
        let Doing::Body { kind, got, .. } = self.doing else { unreachable!() };
        match kind {
            Kind::Hold(_) => {
                self.doing = Doing::Held { kind, left: 0, got };
                tally.held += 1;
            }
            Kind::Deaf(..) => {
                self.send(got.text().as_bytes());
                self.doing = Doing::Endless;
            }
            Kind::Large(size) => {
                self.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n").as_bytes());
                self.output.push_back((pattern_bytes().clone(), 0..size));
                self.doing = Doing::Head;
            }
            Kind::Upload(_) => self.respond(got.text().as_bytes()),
            _ => self.respond(b"fast"),
        }
    }

    fn respond(&mut self, body: &[u8]) {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        self.send(&[head.as_bytes(), body].concat());
        self.doing = Doing::Head;
    }

    fn send(&mut self, bytes: &[u8]) {
        self.output.push_back((bytes.into(), 0..bytes.len()));
    }

    /// Whether all is sent that is to be.
    fn flush(&mut self, tally: &mut Tally) -> Result<bool, ()> {
        while let Some((bytes, range)) = self.output.front_mut() {
            match self.stream.write(&bytes[range.clone()]) {
                Ok(count) => {
                    range.start += count;
                    tally.large_taken += if matches!(self.kind, Some(Kind::Large(_))) { count } else { 0 };
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(_) => return Err(()),
            }
            if range.start == range.end {
                self.output.pop_front();
            }
        }
        Ok(true)
    }

    /// Receives once; `None`: something came.
    fn receive(&mut self) -> Option<Fate> {
        let mut buffer = [0; 65536];
        match self.stream.read(&mut buffer) {
            Ok(0) => Some(Fate::Ends),
            Ok(count) => {
                self.input.extend_from_slice(&buffer[..count]);
                None
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Some(Fate::Stays),
            Err(_) => Some(Fate::Ends),
        }
    }
}

fn kind_of(path: &str) -> Kind {
    let mut words = path.split('/').skip(1);
    let name = words.next().unwrap_or_default();
    let numbers: Vec<usize> = words.map(|word| word.parse().unwrap()).collect();
    match (name, numbers.as_slice()) {
        ("fast", []) => Kind::Fast,
        ("large", [size]) => Kind::Large(*size),
        ("events", []) => Kind::Events,
        ("hold", [id]) => Kind::Hold(*id),
        ("upload", [id]) => Kind::Upload(*id),
        ("pour", [count]) => Kind::Pour(*count),
        ("deaf", [id, count]) => Kind::Deaf(*id, *count),
        _ => panic!("the worker knows no {path}"),
    }
}
