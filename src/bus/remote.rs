//! Connections to a server that machines share, made again as long as it takes. What is spoken over them is a [`Peer`]'s.
//!
//! Names are looked up and connections are made by a thread of their own, which ends with that: nothing else of the bus waits for it. All connections of
//! a peer live and end together.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::{Interest, Token};

use super::wires::PUMP_MARK;
use super::{Order, Turn, next_token};
use crate::config;
use crate::hub::{LoopSet, Notice, Topic};
use crate::log::Level;
use crate::mailbox::{Message, Postbox, Postboxes};
use crate::tls::client::Client;

/// How long a connection may take to be made.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two tries, at first and at most.
const RETRY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// Bytes of the line with which a server of NATS begins, at most.
const GREETING: usize = 64 << 10;
/// How long a server may take nothing of what waits to be sent.
const STALLED: Duration = Duration::from_secs(3);
/// Bytes that may wait to be sent, whoever says them: four of the longest messages.
const MOST_WAITING: usize = 64 << 20;

/// What a peer has to be done.
#[derive(Debug, Default)]
pub struct Out {
    /// Bytes for each connection.
    pub bytes: [Vec<u8>; 2],
    /// How many bytes wait for each already.
    pub left: [usize; 2],
    /// Loops that are to be told.
    pub tell: Vec<(Arc<Topic>, LoopSet)>,
}

impl Out {
    /// Bytes that wait for a connection.
    pub fn waiting(&self, connection: usize) -> usize {
        self.left[connection] + self.bytes[connection].len()
    }
}

/// What is spoken with a server: sans-IO.
pub trait Peer: Send {
    /// How many connections it has.
    fn connections(&self) -> usize;
    /// All of them are there.
    fn opened(&mut self, now: Duration, out: &mut Out);
    /// Bytes have come over one.
    ///
    /// # Errors
    /// What is wrong with them, or with what was said: the connections end.
    fn received(&mut self, now: Duration, connection: usize, bytes: &[u8], out: &mut Out) -> Result<(), String>;
    /// They are gone.
    fn lost(&mut self, now: Duration);
    /// Who gets in is said otherwise from now on.
    fn is_told(&mut self, said: &config::Remote);
    /// Something is to be published.
    fn carry(&mut self, now: Duration, notice: Notice, out: &mut Out);
    /// Does what is due.
    ///
    /// # Errors
    /// What is wrong: the connections end.
    fn tick(&mut self, now: Duration, out: &mut Out) -> Result<(), String>;
    /// When something is due.
    fn due(&self) -> Option<Duration>;
    /// Whether it has more for its first connection, as soon as less waits there.
    fn has_more(&self) -> bool {
        false
    }
    /// Whether what is published goes to others.
    fn is_up(&self) -> bool;
    /// How many messages wait.
    fn waiting(&self) -> usize;
}

/// A connection that was made, and what it has said already.
pub struct Made {
    socket: TcpStream,
    tls: Option<Client>,
    greeting: Vec<u8>,
}

struct Connection {
    socket: mio::net::TcpStream,
    token: usize,
    tls: Option<Client>,
    output: Vec<u8>,
    taken: usize,
    /// When something was taken last of what waits, or waits since.
    moved: Instant,
}

/// See the module.
pub struct Remote {
    hub: Arc<str>,
    said: config::Remote,
    greets: bool,
    /// What is spoken.
    pub peer: Box<dyn Peer>,
    connections: Vec<Connection>,
    thread: Postbox<Order>,
    postboxes: Postboxes,
    /// When connections are made next; `None`: they are there, or on their way.
    retry: Option<Instant>,
    wait: Duration,
    /// Those that are on their way are made as it is said no more.
    is_stale: bool,
    unread: Vec<usize>,
    /// Why there are none.
    pub problem: Option<String>,
}

impl Remote {
    /// With that server. `greets`: it speaks first, and in plain text.
    pub fn new(
        (hub, said): (&Arc<str>, &config::Remote),
        greets: bool,
        peer: Box<dyn Peer>,
        (thread, postboxes): (Postbox<Order>, Postboxes),
    ) -> Remote {
        let (hub, said, retry) = (hub.clone(), said.clone(), Some(Instant::now()));
        let (connections, unread) = (Vec::new(), Vec::new());
        let (wait, is_stale, problem) = (RETRY[0], false, None);
        Remote { hub, said, greets, peer, connections, thread, postboxes, retry, wait, is_stale, unread, problem }
    }

    /// It is the same server, which is reached or spoken to otherwise from now on: connections are made anew, and what waits for them stays.
    pub fn is_told(&mut self, turn: &Turn<'_>, said: &config::Remote) {
        (self.said, self.wait) = (said.clone(), RETRY[0]);
        self.peer.is_told(said);
        self.is_stale = self.connections.is_empty() && self.retry.is_none();
        if !self.is_stale {
            self.end(turn);
            self.retry = Some(turn.instant);
        }
    }

    /// When something is due.
    pub fn due(&self, turn: &Turn<'_>) -> Option<Duration> {
        let takes_more = self.connections.first().is_some_and(|first| first.left() < PUMP_MARK);
        if !self.unread.is_empty() || takes_more && self.peer.has_more() {
            return Some(Duration::ZERO);
        }
        let stalls = self.connections.iter().filter(|it| it.left() > 0).map(|it| it.moved + STALLED);
        let instants = stalls.chain(self.retry).map(|at| at.saturating_duration_since(turn.instant));
        let due = self.peer.due().map(|due| due.saturating_sub(turn.now));
        instants.chain(due).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, turn: &Turn<'_>) {
        for token in std::mem::take(&mut self.unread) {
            self.read(turn, token);
        }
        if self.retry.is_some_and(|at| at <= turn.instant) {
            self.retry = None;
            self.connect();
        }
        if self.connections.iter().any(|it| it.left() > 0 && turn.instant >= it.moved + STALLED) {
            self.fail(turn, "it takes nothing any more".to_owned());
        }
        let mut done = Ok(());
        self.with_peer(turn, |peer, now, out| done = peer.tick(now, out));
        if let Err(problem) = done {
            self.fail(turn, problem);
        }
    }

    /// Something is to be published.
    pub fn carry(&mut self, turn: &Turn<'_>, notice: Notice) {
        self.with_peer(turn, |peer, now, out| peer.carry(now, notice, out));
    }

    /// Something has happened to a connection. Whether it is one of these.
    pub fn event(&mut self, turn: &Turn<'_>, token: usize) -> bool {
        let Some(at) = self.connections.iter().position(|connection| connection.token == token) else { return false };
        self.flush(turn, at);
        self.read(turn, token);
        true
    }

    /// What came of connecting.
    pub fn connected(&mut self, turn: &Turn<'_>, made: Result<Vec<Made>, String>) {
        if std::mem::take(&mut self.is_stale) {
            self.retry = Some(turn.instant);
            return;
        }
        let mut greetings = Vec::new();
        let all = made.and_then(|made| {
            let take = |made: Made| {
                greetings.push(made.greeting);
                Connection::of(made.socket, made.tls, turn).map_err(|error| error.to_string())
            };
            made.into_iter().map(take).collect::<Result<Vec<_>, _>>()
        });
        match all {
            Ok(all) => {
                self.connections = all;
                self.with_peer(turn, |peer, now, out| peer.opened(now, out));
                for (at, greeting) in greetings.iter().enumerate().filter(|(_, greeting)| !greeting.is_empty()) {
                    // Plain, whatever is spoken behind it.
                    self.understand(turn, at, greeting);
                }
            }
            Err(problem) => self.fail(turn, problem),
        }
    }

    fn connect(&self) {
        let (said, greets, count) = (self.said.clone(), self.greets, self.peer.connections());
        let (thread, hub) = (self.thread.clone(), self.hub.clone());
        let body = move || {
            let made = (0..count).map(|_| make(&said, greets)).collect();
            thread.post(Order::Connected(hub, made));
        };
        if let Err(error) = std::thread::Builder::new().name("bus-connect".to_owned()).spawn(body) {
            self.thread.post(Order::Connected(self.hub.clone(), Err(error.to_string())));
        }
    }

    fn with_peer(&mut self, turn: &Turn<'_>, act: impl FnOnce(&mut dyn Peer, Duration, &mut Out)) {
        let was_up = self.peer.is_up();
        let mut out = Out::default();
        self.connections.iter().zip(&mut out.left).for_each(|(connection, left)| *left = connection.left());
        act(&mut *self.peer, turn.now, &mut out);
        for (topic, loops) in out.tell {
            loops.iter().for_each(|loop_index| self.postboxes.post(loop_index, Message::Published(topic.clone())));
        }
        for (at, bytes) in out.bytes.iter().enumerate().filter(|(_, bytes)| !bytes.is_empty()) {
            if let Some(connection) = self.connections.get_mut(at) {
                connection.put(turn.instant, bytes);
                self.flush(turn, at);
            }
        }
        if self.peer.is_up() && !was_up {
            (self.wait, self.problem) = (RETRY[0], None);
            turn.log.event(Level::Info, "a hub shares its messages", &[("hub", &self.hub), ("with", &self.said.host)]);
        }
    }

    fn flush(&mut self, turn: &Turn<'_>, at: usize) {
        let Some(connection) = self.connections.get_mut(at) else { return };
        if let Err(error) = connection.flush(turn.instant) {
            self.fail(turn, error.to_string());
        }
    }

    fn read(&mut self, turn: &Turn<'_>, token: usize) {
        let mut room = vec![0; 64 << 10];
        for _ in 0..32 {
            let Some(at) = self.connections.iter().position(|connection| connection.token == token) else { return };
            match self.connections[at].socket.read(&mut room) {
                Ok(0) => return self.fail(turn, "it has closed the connection".to_owned()),
                Ok(count) => self.hear(turn, at, &room[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.fail(turn, error.to_string()),
            }
        }
        self.unread.push(token);
    }

    fn hear(&mut self, turn: &Turn<'_>, at: usize, bytes: &[u8]) {
        let Some(connection) = self.connections.get_mut(at) else { return };
        let mut plain = Vec::new();
        let opened = match &mut connection.tls {
            Some(tls) => {
                let opened = tls.open(bytes, &mut plain);
                // What a handshake has to say, and why it ends.
                connection.put(turn.instant, &[]);
                connection.flush(turn.instant).ok();
                opened
            }
            None => {
                plain.extend_from_slice(bytes);
                Ok(())
            }
        };
        match opened {
            Ok(()) => self.understand(turn, at, &plain),
            Err(problem) => self.fail(turn, problem),
        }
    }

    fn understand(&mut self, turn: &Turn<'_>, at: usize, plain: &[u8]) {
        let mut understood = Ok(());
        self.with_peer(turn, |peer, now, out| understood = peer.received(now, at, plain, out));
        if let Err(problem) = understood {
            self.fail(turn, problem);
        }
    }

    /// The connections end.
    fn end(&mut self, turn: &Turn<'_>) {
        let had = !self.connections.is_empty();
        self.connections.clear();
        self.unread.clear();
        if had {
            self.peer.lost(turn.now);
        }
    }

    /// The connections end, and are made again after a while.
    fn fail(&mut self, turn: &Turn<'_>, problem: String) {
        self.end(turn);
        self.retry = Some(turn.instant + self.wait);
        self.wait = (self.wait * 2).min(RETRY[1]);
        if self.problem.as_ref() != Some(&problem) {
            let fields: [(&str, &dyn std::fmt::Display); 3] =
                [("hub", &self.hub), ("server", &self.said.host), ("error", &problem)];
            turn.log.event(Level::Warn, "a hub's bus is away: messages stay here for now", &fields);
            self.problem = Some(problem);
        }
    }
}

impl Connection {
    fn of(socket: TcpStream, tls: Option<Client>, turn: &Turn<'_>) -> io::Result<Connection> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let mut socket = mio::net::TcpStream::from_std(socket);
        let token = next_token();
        turn.registry.register(&mut socket, Token(token), Interest::READABLE | Interest::WRITABLE)?;
        let mut connection = Connection { socket, token, tls, output: Vec::new(), taken: 0, moved: turn.instant };
        connection.put(turn.instant, &[]);
        connection.flush(turn.instant)?;
        Ok(connection)
    }

    /// Bytes that wait to be sent.
    fn left(&self) -> usize {
        self.output.len() - self.taken
    }

    /// Puts bytes behind what waits, and what TLS has to say for itself.
    fn put(&mut self, now: Instant, bytes: &[u8]) {
        if self.left() == 0 {
            self.moved = now;
        }
        match &mut self.tls {
            Some(tls) => tls.seal(bytes, &mut self.output),
            None => self.output.extend_from_slice(bytes),
        }
    }

    fn flush(&mut self, now: Instant) -> io::Result<()> {
        let before = self.taken;
        while self.taken < self.output.len() {
            match self.socket.write(&self.output[self.taken..]) {
                Ok(count) => self.taken += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if self.taken > before {
            self.moved = now;
        }
        // What waits is moved to the front seldom: it may be long.
        if self.taken >= self.left() {
            self.output.drain(..std::mem::take(&mut self.taken));
            self.output.shrink_to(PUMP_MARK.max(2 * self.output.len()));
        }
        if self.left() > MOST_WAITING {
            return Err(io::Error::new(ErrorKind::TimedOut, "it takes less than is published"));
        }
        Ok(())
    }
}

/// Makes one connection.
fn make(said: &config::Remote, greets: bool) -> Result<Made, String> {
    let tls = said.tls.then(|| Client::new(&said.host, said.ca_file.as_deref())).transpose()?;
    let addresses = (said.host.as_str(), said.port).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut problem = "that name has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(mut socket) => {
                let greeting = if greets { greeting(&mut socket)? } else { Vec::new() };
                return Ok(Made { socket, tls, greeting });
            }
            Err(error) => problem = format!("{address}: {error}"),
        }
    }
    Err(problem)
}

/// The first line, and nothing behind it: TLS may begin there.
fn greeting(socket: &mut TcpStream) -> Result<Vec<u8>, String> {
    socket.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    let (mut line, mut byte) = (Vec::new(), [0]);
    while !line.ends_with(b"\n") {
        socket.read_exact(&mut byte).map_err(|error| format!("it does not say who it is: {error}"))?;
        line.extend_from_slice(&byte);
        if line.len() > GREETING {
            return Err("it does not say who it is".to_owned());
        }
    }
    Ok(line)
}
