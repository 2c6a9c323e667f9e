//! A crowd of clients of one kind: one thread. They take their places, receive a little and then no more, and go on sending.
//!
//! Their receive buffers have 4 KiB and their segments 1,400 bytes, as on a real network: over the 64 KiB segments of loopback the
//! kernel takes megabytes for each reader, and the server would hold nothing. Their send buffers are small, too, so that a crowd does
//! not use up the kernel's memory for TCP.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use mio::event::Event;
use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use crate::support::{Client, Server, until};

use super::actor::{Actor, Turns};
use super::worker::pattern_bytes;

/// What all peers of a crowd do.
pub struct Habit {
    /// What each sends, by its number.
    pub request: fn(usize) -> String,
    /// Bytes of the pattern that it sends behind the request.
    pub body: usize,
    /// Whether it sends them only when an answer has begun: through a tunnel.
    pub waits: bool,
    /// Bytes that it receives before it stops.
    pub takes: usize,
}

/// A status line, and not the end of a head.
const FIRST: usize = 16;

impl Habit {
    pub fn asking(request: fn(usize) -> String) -> Habit {
        Habit { request, body: 0, waits: false, takes: FIRST }
    }

    pub fn sending(request: fn(usize) -> String, body: usize) -> Habit {
        Habit { body, ..Habit::asking(request) }
    }

    /// Sends through a tunnel, once that is open.
    pub fn tunnelling(request: fn(usize) -> String, body: usize) -> Habit {
        Habit { body, waits: true, ..Habit::asking(request) }
    }

    /// Takes all that comes.
    pub fn reading(request: fn(usize) -> String) -> Habit {
        Habit { takes: usize::MAX, ..Habit::asking(request) }
    }
}

/// How many peers have come how far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Places {
    /// Connections that are open, as far as a peer that reads little can know.
    pub open: usize,
    /// Those that have got the beginning of an answer.
    pub begun: usize,
    /// Those whose answer is a 200 or a 101.
    pub good: usize,
    /// Those that have sent all.
    pub sent: usize,
}

/// Connections that are opened in one turn, so that the others' events are not kept waiting.
const DIALS: usize = 32;
const RECEIVE_BUFFER: usize = 4096;
const SEND_BUFFER: usize = 32 << 10;
const SEGMENT: u32 = 1400;

/// The handle of the crowd's thread. All peers leave with it.
pub struct Crowd {
    actor: Actor<State>,
    /// How many they are.
    pub size: usize,
}

impl Crowd {
    pub fn enter(server: &Server, size: usize, habit: Habit) -> Crowd {
        let address = server.address;
        let actor = Actor::start(|registry| State { registry, address, habit, size, peers: Vec::new() });
        Crowd { actor, size }
    }

    pub fn places(&self) -> Places {
        self.actor.ask(|state| state.places())
    }

    /// Waits until all are so far.
    pub fn until(&self, what: &str, of: impl Fn(Places) -> usize) {
        let mut places = Places::default();
        let (mut last, end) = (0, std::time::Instant::now() + crate::support::DEADLINE);
        while last < self.size {
            assert!(std::time::Instant::now() < end, "in vain: {what}: {last} of {}, {places:?}", self.size);
            std::thread::sleep(Duration::from_millis(5));
            places = self.places();
            last = of(places);
        }
    }

    /// The numbers of those whose connection has ended.
    pub fn ended(&self) -> Vec<usize> {
        self.actor.ask(|state| state.ended())
    }

    /// Whether those have sent all.
    pub fn have_sent(&self, peers: Range<usize>) -> bool {
        self.actor.ask(move |state| state.peers[peers].iter().flatten().all(|peer| peer.has_sent(&state.habit)))
    }

    /// Takes some out of the crowd: from now on they do what the test says.
    pub fn take(&self, peers: Range<usize>) -> Vec<Client> {
        self.actor.ask(move |state| peers.map(|index| state.take(index)).collect())
    }

    /// All who are left close: half of them in order, and half by a reset.
    pub fn leave(self) {
        self.actor.ask(|state| state.leave());
    }

    /// Those send another request of the same kind and are answered again. Only for those that have read their answers.
    pub fn ask_again(&self, peers: Range<usize>) {
        self.actor.ask(move |state| peers.for_each(|index| state.ask_again(index)));
        until("they are answered again", || self.places().begun == self.size);
    }
}

struct Peer {
    stream: TcpStream,
    request: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    ended: bool,
}

struct State {
    registry: Registry,
    address: SocketAddr,
    habit: Habit,
    size: usize,
    peers: Vec<Option<Peer>>,
}

impl Turns for State {
    fn event(&mut self, event: &Event) {
        let Some(peer) = self.peers.get_mut(event.token().0).and_then(Option::as_mut) else { return };
        peer.receive(&self.habit);
        peer.send(&self.habit);
        peer.ended |= event.is_error() || event.is_write_closed() || (event.is_read_closed() && peer.is_at_end());
    }

    fn rest(&mut self) -> Duration {
        let first = self.peers.len();
        for index in first..self.size.min(first + DIALS) {
            self.dial(index);
        }
        if self.peers.len() < self.size { Duration::ZERO } else { Duration::from_secs(1) }
    }
}

impl State {
    fn dial(&mut self, index: usize) {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER).unwrap();
        socket.set_send_buffer_size(SEND_BUFFER).unwrap();
        socket.set_tcp_mss(SEGMENT).unwrap();
        socket.set_tcp_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
        if let Err(error) = socket.connect(&self.address.into()) {
            assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "{error}");
        }
        let mut stream = TcpStream::from_std(socket.into());
        self.registry.register(&mut stream, Token(index), Interest::READABLE | Interest::WRITABLE).unwrap();
        let request = (self.habit.request)(index).into_bytes();
        self.peers.push(Some(Peer { stream, request, sent: 0, input: Vec::new(), ended: false }));
    }

    fn places(&self) -> Places {
        let mut places = Places::default();
        for peer in self.peers.iter().flatten() {
            places.open += usize::from(!peer.ended);
            places.begun += usize::from(!peer.input.is_empty());
            places.good +=
                usize::from([b"HTTP/1.1 200", b"HTTP/1.1 101"].iter().any(|line| peer.input.starts_with(*line)));
            places.sent += usize::from(peer.has_sent(&self.habit));
        }
        places
    }

    fn ended(&self) -> Vec<usize> {
        let all = self.peers.iter().enumerate();
        all.filter(|(_, peer)| peer.as_ref().is_some_and(|peer| peer.ended)).map(|(index, _)| index).collect()
    }

    fn take(&mut self, index: usize) -> Client {
        let mut peer = self.peers[index].take().expect("nobody has taken it");
        self.registry.deregister(&mut peer.stream).unwrap();
        let stream = std::net::TcpStream::from(std::os::fd::OwnedFd::from(peer.stream));
        stream.set_nonblocking(false).unwrap();
        Client::over(stream, peer.input)
    }

    fn leave(&mut self) {
        for (index, peer) in self.peers.drain(..).enumerate() {
            if let Some(peer) = peer
                && index % 2 == 1
            {
                socket2::SockRef::from(&peer.stream).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
        self.size = 0;
    }

    fn ask_again(&mut self, index: usize) {
        let peer = self.peers[index].as_mut().expect("nobody has taken it");
        peer.input.clear();
        peer.sent = 0;
        peer.send(&self.habit);
    }
}

impl Peer {
    fn has_sent(&self, habit: &Habit) -> bool {
        self.sent == self.request.len() + habit.body
    }

    fn receive(&mut self, habit: &Habit) {
        let mut buffer = [0; 4096];
        while self.input.len() < habit.takes && !self.ended {
            let room = buffer.len().min(habit.takes - self.input.len());
            match self.stream.read(&mut buffer[..room]) {
                Ok(0) => self.ended = true,
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::NotConnected => return,
                Err(_) => self.ended = true,
            }
        }
    }

    fn send(&mut self, habit: &Habit) {
        let head = self.request.len();
        while !self.ended && self.sent < head + habit.body {
            if self.sent >= head && habit.waits && self.input.is_empty() {
                return;
            }
            let piece = if self.sent < head {
                &self.request[self.sent..]
            } else {
                &pattern_bytes()[self.sent - head..habit.body]
            };
            match self.stream.write(piece) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::NotConnected => return,
                Err(_) => self.ended = true,
            }
        }
    }

    /// Whether the server has closed its side, and nothing is left to be read.
    fn is_at_end(&self) -> bool {
        matches!(self.stream.peek(&mut [0]), Ok(0) | Err(_))
    }
}
