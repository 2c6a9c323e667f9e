//! The network in memory: connections, their bytes on the way, and the places where somebody listens.
//!
//! It behaves as Linux does, as far as a server can tell:
//!
//! - bytes arrive in order; a FIN or a reset arrives behind the bytes sent before it; over TCP all of it takes its time;
//! - a send into a closed Unix socket is EPIPE and delivers nothing; over TCP it is taken, and a reset comes back;
//! - who closes with bytes unread resets the connection: the other end reads what it still has, then ECONNRESET; whether
//!   a reset destroys what was not read yet is up to chance, as it differs between systems;
//! - a connection waits in its listener's backlog until it is accepted, and is reset when the listener goes away.
//!
//! A connection is forgotten when both of its ends are closed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::random::{Faults, Random};
use crate::buffers::slots::{Key, Slots};

/// Connections alive at once, far above what a simulation opens.
const MAX_CONNECTIONS: usize = 1 << 16;

/// Takes the lines of a trace.
pub type Trace = Box<dyn FnMut(&str)>;

/// One end of a connection. Each end is held by one party: a scripted peer or a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct End {
    pub(super) connection: Key,
    pub(super) side: u8,
}

impl End {
    pub(super) fn other(self) -> End {
        End { connection: self.connection, side: 1 - self.side }
    }
}

impl fmt::Display for End {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = if self.side == 0 { 'a' } else { 'b' };
        write!(formatter, "{:?}{side}", self.connection)
    }
}

/// Where somebody can listen.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// A Unix socket's path. Nothing is made in the file system.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

/// Why a connect did not lead to a connection.
pub(super) enum Refusal {
    /// The other side's answer, or the lack of one.
    Error(io::Error),
    /// A Unix socket's backlog is full.
    BacklogFull,
}

pub(super) struct Network {
    pub now: Instant,
    pub random: Random,
    pub faults: Faults,
    /// Counts everything that anybody has done or noticed; while it stands still, only time can change something.
    pub activity: u64,
    pub loops: Vec<LoopState>,
    pub driven: bool,
    pub descriptors: BTreeMap<RawFd, Key>,
    connections: Slots<Connection>,
    gates: Slots<Gate>,
    trace: Option<Trace>,
    next_port: u16,
}

/// What the network knows about a loop: how it is woken.
pub(super) struct LoopState {
    pub bell: Arc<AtomicBool>,
    /// When its last wait wanted to return at the latest.
    pub wakes_at: Option<Instant>,
}

struct Connection {
    unix: bool,
    halves: [Half; 2],
}

/// What stands at one end: what has arrived, and what is on its way there.
#[derive(Default)]
struct Half {
    inbox: VecDeque<u8>,
    transit: VecDeque<(Instant, Parcel)>,
    /// Bytes among the transit.
    on_the_way: usize,
    ended: bool,
    reset: bool,
    reset_was_told: bool,
    end_was_told: bool,
    shut: bool,
    closed: bool,
}

enum Parcel {
    Bytes(Vec<u8>),
    Fin,
    Reset,
}

struct Gate {
    place: Place,
    backlog: usize,
    refusing: bool,
    waiting: VecDeque<(Instant, End)>,
}

impl Network {
    pub fn new(seed: u64, faults: Faults) -> Network {
        Network {
            now: Instant::now(),
            random: Random::new(seed),
            faults,
            activity: 0,
            loops: Vec::new(),
            driven: false,
            descriptors: BTreeMap::new(),
            connections: Slots::new(MAX_CONNECTIONS),
            gates: Slots::new(MAX_CONNECTIONS),
            trace: None,
            next_port: 40_000,
        }
    }

    pub fn trace_to(&mut self, trace: Option<Trace>) {
        self.trace = trace;
    }

    pub fn note(&mut self, line: fmt::Arguments<'_>) {
        if let Some(trace) = &mut self.trace {
            trace(&line.to_string());
        }
    }

    // --- Places ---

    pub fn open(&mut self, place: Place, backlog: usize) -> Key {
        self.note(format_args!("listen {place:?}"));
        let gate = Gate { place, backlog, refusing: false, waiting: VecDeque::new() };
        self.gates.insert(gate).unwrap_or_else(|_| panic!("the simulated network is out of listeners"))
    }

    /// Nobody listens there any more; what waited in the backlog is reset. Returns what these connections had sent.
    pub fn shut_down(&mut self, gate: Key) -> Vec<Vec<u8>> {
        let Some(gate) = self.gates.remove(gate) else { return Vec::new() };
        self.note(format_args!("gone {:?}", gate.place));
        self.activity += 1;
        gate.waiting.into_iter().map(|(_, end)| self.close(end, true)).collect()
    }

    pub fn gates_at(&self, place: &Place) -> Vec<Key> {
        self.gates.iter().filter(|(_, gate)| gate.place == *place).map(|(key, _)| key).collect()
    }

    pub fn refuse(&mut self, gate: Key, refusing: bool) {
        if let Some(gate) = self.gates.lookup_mut(gate) {
            gate.refusing = refusing;
        }
    }

    pub fn is_unix(&self, gate: Key) -> bool {
        self.gates.lookup(gate).is_some_and(|gate| matches!(gate.place, Place::Unix(_)))
    }

    /// The next connection that waits there.
    pub fn accept(&mut self, gate: Key) -> Option<End> {
        let now = self.now;
        let gate = self.gates.lookup_mut(gate)?;
        if gate.waiting.front().is_none_or(|(due, _)| *due > now) {
            return None;
        }
        let (_, end) = gate.waiting.pop_front()?;
        self.activity += 1;
        self.note(format_args!("accept {end}"));
        Some(end)
    }

    pub fn has_waiting(&self, gate: Key) -> bool {
        let front = self.gates.lookup(gate).and_then(|gate| gate.waiting.front());
        front.is_some_and(|(due, _)| *due <= self.now)
    }

    // --- Connections ---

    /// Opens a connection to one of those who listen at `place`. The returned end is the caller's; over TCP the handshake
    /// takes until the returned instant.
    pub fn connect(&mut self, place: &Place) -> Result<(End, Instant), Refusal> {
        self.activity += 1;
        let unix = matches!(place, Place::Unix(_));
        let gates = self.gates_at(place);
        if gates.is_empty() {
            let kind = if unix { io::ErrorKind::NotFound } else { io::ErrorKind::ConnectionRefused };
            self.note(format_args!("connect {place:?}: {kind}"));
            return Err(Refusal::Error(kind.into()));
        }
        let key = gates[self.random.below(gates.len())];
        let gate = self.gates.lookup(key).expect("a listed gate is alive");
        let (full, refusing) = (gate.waiting.len() >= gate.backlog, gate.refusing);
        if self.random.chance(self.faults.refuse) || refusing || (full && !unix) {
            self.note(format_args!("connect {place:?}: refused"));
            return Err(Refusal::Error(io::ErrorKind::ConnectionRefused.into()));
        }
        if (self.random.chance(self.faults.backlog_full) && unix) || full {
            self.note(format_args!("connect {place:?}: backlog full"));
            return Err(Refusal::BacklogFull);
        }
        let arrival = self.now + self.way(unix);
        let connection = Connection { unix, halves: Default::default() };
        let connection = self.connections.insert(connection);
        let connection = connection.unwrap_or_else(|_| panic!("the simulated network is out of connections"));
        let end = End { connection, side: 0 };
        let gate = self.gates.lookup_mut(key).expect("a listed gate is alive");
        gate.waiting.push_back((arrival, end.other()));
        self.note(format_args!("connect {place:?}: {end}"));
        Ok((end, arrival))
    }

    pub fn port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(40_000);
        self.next_port
    }

    /// Whether the connection of this end still exists and this end is open.
    pub fn is_open(&self, end: End) -> bool {
        self.half(end).is_some_and(|half| !half.closed)
    }

    pub fn has_finished(&self, end: End) -> bool {
        self.half(end).is_some_and(|half| half.shut)
    }

    /// Sends a part of `bytes`: at least one byte, or an error; `WouldBlock` while the other end has no room.
    pub fn write(&mut self, end: End, bytes: &[u8]) -> io::Result<usize> {
        debug_assert!(!bytes.is_empty(), "a send of nothing says nothing");
        self.deliver(end);
        let Some(connection) = self.connections.lookup(end.connection) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let unix = connection.unix;
        let (mine, theirs) = (&connection.halves[end.side as usize], &connection.halves[1 - end.side as usize]);
        if mine.shut || mine.reset || (unix && theirs.closed) {
            self.activity += 1;
            self.note(format_args!("write {end}: broken pipe"));
            // Over TCP the first call after a reset is told of it, whichever call that is; a Unix socket keeps it for a read.
            let half = self.half_mut(end);
            let first = !unix && !half.shut && !std::mem::replace(&mut half.reset_was_told, true);
            return Err(if first { io::ErrorKind::ConnectionReset } else { io::ErrorKind::BrokenPipe }.into());
        }
        let held = theirs.inbox.len() + theirs.on_the_way;
        let room = self.faults.capacity.saturating_sub(held);
        let (gone, broken) = (theirs.closed, !unix && self.random.chance(self.faults.reset));
        if broken {
            self.sever(end);
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut count = bytes.len().min(room);
        if self.random.chance(self.faults.short_write) {
            count = self.random.between(1, count);
        }
        self.activity += 1;
        self.note(format_args!("write {end}: {count} of {} bytes", bytes.len()));
        if gone {
            // Nobody is there to take them: over TCP one learns it when the answer to these bytes is a reset.
            self.dispatch(end, Parcel::Reset);
        } else {
            self.dispatch(end.other(), Parcel::Bytes(bytes[..count].to_vec()));
        }
        Ok(count)
    }

    /// Receives into `room`: at least one byte, `Ok(0)` at the end, or an error; `WouldBlock` while nothing is there.
    pub fn read(&mut self, end: End, room: &mut [u8]) -> io::Result<usize> {
        self.deliver(end);
        let Some(connection) = self.connections.lookup(end.connection) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let half = &connection.halves[end.side as usize];
        let (held, unix, over) = (half.inbox.len(), connection.unix, half.ended || half.reset);
        if held == 0 && !over {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        if !unix && self.random.chance(self.faults.reset) {
            self.sever(end);
        }
        let mut count = held.min(room.len());
        if count > 0 && self.random.chance(self.faults.short_receive) {
            count = self.random.between(1, count);
        }
        let half = self.half_mut(end);
        let count = count.min(half.inbox.len());
        let (front, back) = half.inbox.as_slices();
        let split = count.min(front.len());
        room[..split].copy_from_slice(&front[..split]);
        room[split..count].copy_from_slice(&back[..count - split]);
        half.inbox.drain(..count);
        if count == 0 && half.reset && !std::mem::replace(&mut half.reset_was_told, true) {
            self.activity += 1;
            self.note(format_args!("read {end}: reset"));
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        // To find the end again is nothing new.
        if count > 0 || !std::mem::replace(&mut half.end_was_told, true) {
            self.activity += 1;
            self.note(format_args!("read {end}: {count} bytes"));
        }
        Ok(count)
    }

    /// Bytes that have arrived and were not read.
    pub fn held(&mut self, end: End) -> usize {
        self.deliver(end);
        self.half(end).map_or(0, |half| half.inbox.len())
    }

    /// Bytes that were sent to an end and not read there.
    pub fn unread(&self, end: End) -> usize {
        self.half(end).map_or(0, |half| half.inbox.len() + half.on_the_way)
    }

    /// Whether a receive would not block.
    pub fn is_readable(&mut self, end: End) -> bool {
        self.deliver(end);
        self.half(end).is_none_or(|half| !half.inbox.is_empty() || half.ended || half.reset)
    }

    /// Sends a FIN.
    pub fn shut(&mut self, end: End) {
        let Some(half) = self.half(end) else { return };
        if half.shut || half.closed || half.reset {
            return;
        }
        self.half_mut(end).shut = true;
        self.activity += 1;
        self.note(format_args!("finish {end}"));
        self.dispatch(end.other(), Parcel::Fin);
    }

    /// Closes an end, with a reset if asked for or if bytes were left unread. Returns these bytes.
    pub fn close(&mut self, end: End, reset: bool) -> Vec<u8> {
        self.deliver(end);
        let Some(connection) = self.connections.lookup_mut(end.connection) else { return Vec::new() };
        let unix = connection.unix;
        let half = &mut connection.halves[end.side as usize];
        if std::mem::replace(&mut half.closed, true) {
            return Vec::new();
        }
        let mut unread = Vec::from(std::mem::take(&mut half.inbox));
        for (_, parcel) in std::mem::take(&mut half.transit) {
            if let Parcel::Bytes(bytes) = parcel {
                unread.extend_from_slice(&bytes);
            }
        }
        half.on_the_way = 0;
        let (shut, was_reset) = (half.shut, half.reset);
        self.activity += 1;
        let cut = (reset && !unix) || !unread.is_empty();
        self.note(format_args!("close {end}{}", if cut { ": reset" } else { "" }));
        if self.half(end.other()).is_some_and(|other| other.closed) {
            self.connections.remove(end.connection);
        } else if cut && !was_reset {
            self.dispatch(end.other(), Parcel::Reset);
        } else if !shut && !was_reset {
            self.dispatch(end.other(), Parcel::Fin);
        }
        unread
    }

    /// Cuts a TCP connection at both ends, as a router on the way may.
    fn sever(&mut self, end: End) {
        self.activity += 1;
        self.note(format_args!("severed {end}"));
        for end in [end, end.other()] {
            let half = self.half_mut(end);
            half.transit.clear();
            half.on_the_way = 0;
            half.reset = true;
        }
    }

    // --- Time ---

    /// When something arrives next that has not arrived yet.
    pub fn next_arrival(&self) -> Option<Instant> {
        let halves = self.connections.iter().flat_map(|(_, connection)| &connection.halves);
        let parcels = halves.filter_map(|half| half.transit.front().map(|(due, _)| *due));
        let calls = self.gates.iter().filter_map(|(_, gate)| gate.waiting.front().map(|(due, _)| *due));
        parcels.chain(calls).filter(|due| *due > self.now).min()
    }

    /// The next instant at which a loop wants to be woken.
    pub fn next_wake(&self) -> Option<Instant> {
        self.loops.iter().filter_map(|state| state.wakes_at).filter(|due| *due > self.now).min()
    }

    pub fn any_bell(&self) -> bool {
        self.loops.iter().any(|state| state.bell.load(Ordering::Acquire))
    }

    /// Connections of which at least one end is open.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    pub fn gates(&self) -> usize {
        self.gates.len()
    }

    fn way(&mut self, unix: bool) -> Duration {
        let delay = self.random.duration(self.faults.delay);
        if unix { Duration::ZERO } else { delay }
    }

    /// Puts a parcel on its way to an end, behind those that are already on their way there.
    fn dispatch(&mut self, to: End, parcel: Parcel) {
        let unix = self.connections.lookup(to.connection).is_some_and(|connection| connection.unix);
        let arrival = self.now + self.way(unix);
        let half = self.half_mut(to);
        if half.closed {
            return;
        }
        let due = half.transit.back().map_or(arrival, |(last, _)| arrival.max(*last));
        if let Parcel::Bytes(bytes) = &parcel {
            half.on_the_way += bytes.len();
        }
        half.transit.push_back((due, parcel));
    }

    /// Takes in what has arrived by now.
    fn deliver(&mut self, end: End) {
        let now = self.now;
        let Some(connection) = self.connections.lookup_mut(end.connection) else { return };
        let half = &mut connection.halves[end.side as usize];
        while half.transit.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, parcel)) = half.transit.pop_front() else { return };
            match parcel {
                Parcel::Bytes(bytes) => {
                    half.on_the_way -= bytes.len();
                    half.inbox.extend(bytes);
                }
                Parcel::Fin => half.ended = true,
                Parcel::Reset => {
                    half.reset = true;
                    if !connection.unix && self.random.chance(500) {
                        half.inbox.clear();
                    }
                }
            }
        }
    }

    fn half(&self, end: End) -> Option<&Half> {
        Some(&self.connections.lookup(end.connection)?.halves[end.side as usize])
    }

    fn half_mut(&mut self, end: End) -> &mut Half {
        let connection = self.connections.lookup_mut(end.connection).expect("the connection of an open end is alive");
        &mut connection.halves[end.side as usize]
    }
}
