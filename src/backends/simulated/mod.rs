//! A seeded network in memory, for tests: the same contract as the real backends, with chance in place of the kernel.
//!
//! [`World`] is the network, its time and its chance; a [`Simulated`] is one loop's access to it; scripted peers use the
//! world itself. Everything happens on one thread and in the order that the seed gives, so that a failing run repeats.
//!
//! What it does to its loop, as often as [`Faults`] says: short sends and receives, slow and cut connections, refused
//! connects, full backlogs, starved block pools, EMFILE, late Close events, small turns, early wakes, and events of
//! different sockets in any order.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::SockAddr;

use super::closing::{CloseDeadlines, Facts, Step};
use super::shortage::Shortage;
use super::{ACCEPT_BATCH, Backend, Event, Handed, How, Options, Peer, Piece, Side, Size, Sock};
use crate::buffers::block::{Block, Census, Share};
use crate::buffers::outbox::{GATHER, Outbox, Outboxes};
use crate::buffers::slots::{Key, Slots};

mod network;
mod random;
#[cfg(test)]
mod tests;
mod world;

pub use network::{End, Place, Trace};
use network::{LoopState, Network, Refusal};
pub use random::{Faults, Random};
pub use world::{Entered, Service, World};

/// One loop's access to a [`World`].
pub struct Simulated {
    world: World,
    number: usize,
    options: Options,
    sockets: Slots<Socket>,
    outboxes: Outboxes,
    events: VecDeque<Event>,
    /// The names alive at the start of the turn, in the order in which this turn looks at them.
    order: Vec<Sock>,
    bell: SimulatedBell,
    now: Instant,
    taken: u64,
    close_deadlines: CloseDeadlines,
    shortage: Shortage,
}

/// Wakes a [`Simulated`] backend.
#[derive(Clone, Debug)]
pub struct SimulatedBell(Arc<AtomicBool>);

impl super::Bell for SimulatedBell {
    fn ring(&self) {
        self.0.store(true, Ordering::Release);
    }
}

enum Socket {
    Listener(Listener),
    Stream(Stream),
}

struct Listener {
    gate: Key,
    descriptor: OwnedFd,
    paused: bool,
    close_due: Option<Instant>,
}

struct Stream {
    /// `None` when the connect was refused.
    end: Option<End>,
    share: Share,
    phase: Phase,
    outbox: Outbox,
    sent: u64,
    armed: Option<Size>,
    receive_over: bool,
    send_over: bool,
    /// A write was short, and the outbox was not empty since.
    behind: bool,
    awaits_room: bool,
    /// The armed receive found no block.
    starved: bool,
    finish: bool,
    closing: Option<Closing>,
}

enum Phase {
    Connecting { until: Instant, error: Option<io::Error> },
    Refused,
    Open,
}

struct Closing {
    how: How,
    /// A receive was armed, at which nothing has come since, and the sending half was not shut before.
    expects_no_input: bool,
    lingering: bool,
    /// Set once the end is closed: when the Close event comes.
    close_due: Option<Instant>,
    /// Whether it has come.
    told: bool,
}

impl Stream {
    fn new(end: Option<End>, share: Share, phase: Phase) -> Stream {
        Stream {
            end,
            share,
            phase,
            outbox: Outbox::default(),
            sent: 0,
            armed: None,
            receive_over: false,
            send_over: false,
            behind: false,
            awaits_room: false,
            starved: false,
            finish: false,
            closing: None,
        }
    }

    /// What the peer has read of what was sent.
    fn acknowledged(&self, network: &Network) -> u64 {
        self.sent - self.end.map_or(0, |end| network.unread(end.other())) as u64
    }

    fn open_end(&self) -> Option<End> {
        if matches!(self.phase, Phase::Open) { self.end } else { None }
    }
}

impl Backend for Simulated {
    type Bell = SimulatedBell;

    /// Opens the backend in the world that this thread has entered; without one, that is an error.
    fn new(options: Options) -> io::Result<Simulated> {
        let world =
            World::current().ok_or_else(|| io::Error::other("no simulated world was entered on this thread"))?;
        let bell = SimulatedBell(Arc::new(AtomicBool::new(false)));
        let (number, now) = {
            let mut network = world.0.borrow_mut();
            network.loops.push(LoopState { bell: Arc::clone(&bell.0), wakes_at: None });
            (network.loops.len() - 1, network.now)
        };
        let sockets = Slots::new(options.max_sockets);
        let (outboxes, events, order) = (Outboxes::new(), VecDeque::new(), Vec::new());
        let (close_deadlines, shortage) = (CloseDeadlines::new(&options), Shortage::new(options.accept_retry));
        Ok(Simulated {
            world,
            number,
            options,
            sockets,
            outboxes,
            events,
            order,
            bell,
            now,
            taken: 0,
            close_deadlines,
            shortage,
        })
    }

    fn bell(&self) -> SimulatedBell {
        self.bell.clone()
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn listen(&mut self, listener: OwnedFd) -> io::Result<Sock> {
        let gate = self.world.0.borrow().descriptors.get(&listener.as_raw_fd()).copied();
        let gate = gate.ok_or_else(|| io::Error::other("not a listener of the simulated world"))?;
        let listener = Listener { gate, descriptor: listener, paused: false, close_due: None };
        self.sockets.insert(Socket::Listener(listener)).map_err(|_| no_entry())
    }

    fn set_stall(&mut self, stall: Duration) {
        self.close_deadlines.set_stall(stall);
    }

    fn pause(&mut self, listener: Sock) {
        if let Some(Socket::Listener(listener)) = self.sockets.lookup_mut(listener) {
            listener.paused = true;
        }
    }

    fn resume(&mut self, listener: Sock) {
        if let Some(Socket::Listener(listener)) = self.sockets.lookup_mut(listener) {
            listener.paused = false;
            self.world.0.borrow_mut().activity += 1;
        }
    }

    fn connect(&mut self, address: &SockAddr) -> io::Result<Option<Sock>> {
        let place = place_of(address)?;
        if self.sockets.len() == self.sockets.limit() {
            return Err(no_entry());
        }
        let network = &mut *self.world.0.borrow_mut();
        if network.random.chance(network.faults.descriptors) {
            return Err(no_entry());
        }
        let (end, until, error) = match network.connect(&place) {
            Ok((end, until)) => (Some(end), until, None),
            Err(Refusal::Error(error)) => (None, network.now, Some(error)),
            Err(Refusal::BacklogFull) => return Ok(None),
        };
        let stream = Stream::new(end, Share::Worker, Phase::Connecting { until, error });
        self.sockets.insert(Socket::Stream(stream)).map(Some).map_err(|_| no_entry())
    }

    fn recv(&mut self, sock: Sock, size: Size) {
        if let Some(stream) = self.living(sock)
            && !stream.receive_over
            && stream.armed.is_none()
        {
            stream.armed = Some(size);
            self.world.0.borrow_mut().activity += 1;
        }
    }

    fn send_file(&mut self, _: Sock, _: &File, _: u64, _: u64) -> Handed {
        Handed::Unable
    }

    fn send(&mut self, sock: Sock, piece: Piece) {
        let Some(Socket::Stream(stream)) = self.sockets.lookup_mut(sock) else { return };
        if stream.send_over || stream.finish || stream.closing.is_some() {
            return;
        }
        if stream.behind || matches!(stream.phase, Phase::Connecting { .. }) {
            self.outboxes.push_waiting(&mut stream.outbox, piece, &self.options.pool);
        } else {
            self.outboxes.push(&mut stream.outbox, piece);
        }
        self.world.0.borrow_mut().activity += 1;
    }

    fn unsent(&self, sock: Sock) -> usize {
        self.stream(sock).map_or(0, |stream| stream.outbox.bytes())
    }

    fn is_behind(&self, sock: Sock) -> bool {
        self.stream(sock).is_some_and(|stream| stream.behind)
    }

    fn sent(&self, sock: Sock) -> u64 {
        self.stream(sock).map_or(0, |stream| stream.sent)
    }

    fn acknowledged(&self, sock: Sock) -> u64 {
        self.stream(sock).map_or(0, |stream| stream.acknowledged(&self.world.0.borrow()))
    }

    fn taken(&self) -> u64 {
        self.taken
    }

    fn await_room(&mut self, sock: Sock) {
        if let Some(stream) = self.living(sock)
            && !stream.send_over
        {
            stream.awaits_room = true;
            self.world.0.borrow_mut().activity += 1;
        }
    }

    fn is_starved(&self, sock: Sock) -> bool {
        self.stream(sock).is_some_and(|stream| stream.starved)
    }

    fn finish(&mut self, sock: Sock) {
        if let Some(stream) = self.living(sock) {
            stream.finish = true;
            self.world.0.borrow_mut().activity += 1;
        }
    }

    fn close(&mut self, sock: Sock, how: How) {
        let world = self.world.clone();
        let network = &mut *world.0.borrow_mut();
        match self.sockets.lookup_mut(sock) {
            Some(Socket::Listener(listener)) if listener.close_due.is_none() => {
                network.shut_down(listener.gate);
                network.descriptors.remove(&listener.descriptor.as_raw_fd());
                listener.close_due = Some(network.now);
            }
            Some(Socket::Stream(stream)) => match &mut stream.closing {
                Some(closing) if closing.how == How::Flushed => closing.how = how,
                Some(_) => return,
                None => {
                    let expects_no_input = stream.armed.is_some() && !stream.finish;
                    let closing = Closing { how, expects_no_input, lingering: false, close_due: None, told: false };
                    stream.closing = Some(closing);
                    if stream.behind || matches!(stream.phase, Phase::Connecting { .. }) {
                        self.close_deadlines.await_progress(network.now, sock, stream.acknowledged(network));
                    }
                }
            },
            _ => return,
        }
        network.activity += 1;
        if how != How::Flushed {
            // At once: nobody, of another loop either, may see a later request while this connection still looks open.
            self.shut_down(sock, network);
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let until = timeout.map(|timeout| self.world.now() + timeout);
        // Events of the last turn that nobody has asked for are still there; a new turn adds its own behind them.
        loop {
            self.turn();
            if !self.events.is_empty() || !self.sleep(until) {
                break;
            }
        }
        self.now = self.world.now();
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        loop {
            let event = self.events.pop_front()?;
            let closing = self.stream(event.sock()).is_some_and(|stream| stream.closing.is_some());
            let stale = closing && !matches!(event, Event::Close { .. });
            let network = &mut *self.world.0.borrow_mut();
            if stale && !network.random.chance(network.faults.stale_event) {
                continue;
            }
            network.note(format_args!("loop {}: {event:?}", self.number));
            if let Event::Close { sock } = event {
                self.sockets.remove(sock);
            }
            return Some(event);
        }
    }

    fn live(&self) -> usize {
        self.sockets.len()
    }

    fn count_blocks(&self, census: &mut Census) {
        self.outboxes.count_blocks(census);
        for event in &self.events {
            if let Event::Receive { block, .. } = event {
                census.count(block);
            }
        }
    }
}

impl Simulated {
    /// Pieces queued on all sockets, for leak checks.
    pub fn queued(&self) -> usize {
        self.outboxes.len()
    }

    /// One look at everything: sends leave, then events are gathered, from the sockets in a random order.
    fn turn(&mut self) {
        let world = self.world.clone();
        let most = {
            let network = &mut *world.0.borrow_mut();
            self.order.clear();
            self.order.extend(self.sockets.iter().map(|(sock, _)| sock));
            network.random.shuffle(&mut self.order);
            if self.bell.0.swap(false, Ordering::AcqRel) {
                network.activity += 1;
                self.events.push_back(Event::Wake);
            }
            let small = network.random.chance(network.faults.small_batch);
            if small { self.events.len() + 1 + network.random.below(3) } else { usize::MAX }
        };
        self.close_overdue();
        let order = std::mem::take(&mut self.order);
        for &sock in &order {
            self.flush(sock);
        }
        for &sock in &order {
            // What a small turn leaves out is still there in the next one.
            if self.events.len() >= most {
                break;
            }
            self.look(sock);
        }
        debug_assert!(order.iter().all(|sock| !self.pins_blocks(*sock)), "a block of the pool waits for a peer");
        self.order = order;
        self.world.0.borrow_mut().activity += self.events.len() as u64;
    }

    /// Whether a peer that is behind, or not connected yet, keeps a block of the pool.
    fn pins_blocks(&self, sock: Sock) -> bool {
        let waits = |stream: &&Stream| stream.behind || matches!(stream.phase, Phase::Connecting { .. });
        self.stream(sock).filter(waits).is_some_and(|stream| self.outboxes.holds_blocks(&stream.outbox))
    }

    /// Moves time to whatever comes first and says whether to look again; false ends the wait.
    fn sleep(&mut self, until: Option<Instant>) -> bool {
        let now = self.world.now();
        let sockets = &self.sockets;
        let due = self.close_deadlines.next_due(sockets.len(), |sock| sockets.lookup(sock).is_some());
        let timers = sockets.iter().filter_map(|(_, socket)| timer(socket));
        let timer = timers.chain(due).chain(self.shortage.until()).filter(|due| *due > now).min();
        let network = &mut *self.world.0.borrow_mut();
        network.loops[self.number].wakes_at = [until, timer].into_iter().flatten().min();
        // Who does not want to sleep at all has something to do.
        network.activity += u64::from(until.is_some_and(|until| until <= now));
        if network.driven || network.random.chance(network.faults.early_wake) {
            return false;
        }
        let next = [network.next_arrival(), timer].into_iter().flatten().min();
        match next.filter(|next| until.is_none_or(|until| *next <= until)) {
            Some(next) => {
                network.now = next;
                true
            }
            None => {
                network.now = until.unwrap_or(network.now);
                false
            }
        }
    }

    /// Sends what is queued, as far as the network takes it; then a FIN, if one is wanted.
    fn flush(&mut self, sock: Sock) {
        let Some(Socket::Stream(stream)) = self.sockets.lookup_mut(sock) else { return };
        let Some(end) = stream.open_end() else { return };
        if stream.send_over || stream.closing.as_ref().is_some_and(|closing| closing.how != How::Flushed) {
            return;
        }
        let network = &mut *self.world.0.borrow_mut();
        let (mut falls_behind, mut drains) = (false, false);
        if !stream.outbox.is_empty() {
            // No more than the network ever holds, and a byte that it cannot take: copying the rest would take most of the time.
            let (mut gathered, most) = (Vec::new(), network.faults.capacity + 1);
            for piece in self.outboxes.pieces(&stream.outbox).take(GATHER) {
                gathered.extend_from_slice(&piece[..piece.len().min(most - gathered.len())]);
            }
            match network.write(end, &gathered) {
                Ok(count) => {
                    stream.sent += count as u64;
                    self.taken += if stream.share == Share::Client { count as u64 } else { 0 };
                    self.outboxes.consume(&mut stream.outbox, count);
                    falls_behind = count < gathered.len();
                    drains = std::mem::take(&mut stream.awaits_room);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => falls_behind = true,
                Err(error) => {
                    match stream.share {
                        Share::Client => self.outboxes.abandon(&mut stream.outbox),
                        Share::Worker => self.outboxes.clear(&mut stream.outbox),
                    }
                    (stream.send_over, stream.behind, stream.awaits_room) = (true, false, false);
                    if stream.closing.is_none() {
                        self.events.push_back(Event::Fail { sock, side: Side::Send, error });
                    }
                    return;
                }
            }
        }
        let told = stream.closing.is_none();
        if falls_behind && !std::mem::replace(&mut stream.behind, true) {
            self.outboxes.settle(&mut stream.outbox, &self.options.pool);
            if told {
                self.events.push_back(Event::Full { sock });
            } else {
                self.close_deadlines.await_progress(network.now, sock, stream.acknowledged(network));
            }
        }
        if told && (drains || (stream.outbox.is_empty() && std::mem::take(&mut stream.awaits_room))) {
            self.events.push_back(Event::Drain { sock });
        }
        if !stream.outbox.is_empty() {
            return;
        }
        stream.behind = false;
        if stream.finish {
            network.shut(end);
        }
    }

    /// Gathers what has happened to one socket since the last look.
    fn look(&mut self, sock: Sock) {
        match self.sockets.lookup_mut(sock) {
            Some(Socket::Listener(_)) => self.look_at_listener(sock),
            Some(Socket::Stream(stream)) if stream.closing.is_some() => self.look_at_closing(sock),
            Some(Socket::Stream(stream)) if matches!(stream.phase, Phase::Connecting { .. }) => {
                self.look_at_connect(sock)
            }
            Some(Socket::Stream(_)) => self.receive(sock),
            None => {}
        }
    }

    fn look_at_listener(&mut self, sock: Sock) {
        let world = self.world.clone();
        for _ in 0..ACCEPT_BATCH {
            let full = self.sockets.len() == self.sockets.limit();
            let Some(Socket::Listener(listener)) = self.sockets.lookup_mut(sock) else { return };
            let network = &mut *world.0.borrow_mut();
            if listener.close_due.take_if(|due| *due <= network.now).is_some() {
                self.events.push_back(Event::Close { sock });
                return;
            }
            self.shortage.expire(network.now);
            if listener.paused || listener.close_due.is_some() || self.shortage.until().is_some() {
                return;
            }
            if !network.has_waiting(listener.gate) {
                return;
            }
            if full {
                return;
            }
            if network.random.chance(network.faults.accept) {
                if self.shortage.begin(network.now) {
                    self.events.push_back(Event::Exhausted { listener: sock, error: no_entry() });
                }
                return;
            }
            let (gate, unix) = (listener.gate, network.is_unix(listener.gate));
            let Some(end) = network.accept(gate) else { return };
            self.shortage.accepted();
            let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 0, network.random.between(1, 250) as u8));
            let peer = if unix { Peer::UNIX } else { Peer { ip, port: network.port(), unix } };
            let stream = Stream::new(Some(end), Share::Client, Phase::Open);
            let Ok(accepted) = self.sockets.insert(Socket::Stream(stream)) else { return };
            self.events.push_back(Event::Accept { listener: sock, sock: accepted, peer });
        }
    }

    fn look_at_connect(&mut self, sock: Sock) {
        let now = self.world.now();
        let Some(Socket::Stream(stream)) = self.sockets.lookup_mut(sock) else { return };
        let Phase::Connecting { until, error } = &mut stream.phase else { return };
        if *until > now {
            return;
        }
        let event = match error.take() {
            Some(error) => {
                self.outboxes.clear(&mut stream.outbox);
                (stream.phase, stream.send_over, stream.receive_over) = (Phase::Refused, true, true);
                stream.armed = None;
                Event::Fail { sock, side: Side::Connect, error }
            }
            None => {
                stream.phase = Phase::Open;
                Event::Connect { sock }
            }
        };
        self.events.push_back(event);
        self.world.0.borrow_mut().activity += 1;
    }

    fn receive(&mut self, sock: Sock) {
        let Some(Socket::Stream(stream)) = self.sockets.lookup_mut(sock) else { return };
        let (Some(end), Some(size)) = (stream.open_end(), stream.armed) else { return };
        let network = &mut *self.world.0.borrow_mut();
        if !network.is_readable(end) {
            return;
        }
        if network.random.chance(network.faults.starve) {
            // Chance alone keeps the block away, so the next look may bring it: this counts as something under way.
            network.activity += 1;
            stream.starved = true;
            return;
        }
        let pool = &self.options.pool;
        let block = pool.take(size, stream.share).or_else(|| pool.take(Size::Small, stream.share));
        stream.starved = block.is_none();
        let Some(mut block) = block else { return };
        let event = match read_into(network, end, &mut block) {
            Ok(0) => {
                stream.receive_over = true;
                Event::End { sock }
            }
            Ok(_) => Event::Receive { sock, block },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(error) => {
                stream.receive_over = true;
                Event::Fail { sock, side: Side::Receive, error }
            }
        };
        stream.armed = None;
        self.events.push_back(event);
    }

    fn look_at_closing(&mut self, sock: Sock) {
        if self.next_step(sock) == Step::Wait {
            return;
        }
        let world = self.world.clone();
        self.shut_down(sock, &mut world.0.borrow_mut());
        let Some(Socket::Stream(Stream { closing: Some(closing), .. })) = self.sockets.lookup_mut(sock) else { return };
        let network = &mut *self.world.0.borrow_mut();
        if closing.close_due.is_some_and(|due| due <= network.now) && !std::mem::replace(&mut closing.told, true) {
            network.activity += 1;
            self.events.push_back(Event::Close { sock });
        }
    }

    /// Whether a socket that is being closed has something to wait for. Begins to linger when that is the next step.
    fn next_step(&mut self, sock: Sock) -> Step {
        let Some(Socket::Stream(stream)) = self.sockets.lookup_mut(sock) else { return Step::End };
        let (Some(end), Some(closing)) = (stream.end, &mut stream.closing) else { return Step::End };
        let network = &mut *self.world.0.borrow_mut();
        if let Phase::Connecting { until, error: None } = stream.phase
            && until <= network.now
        {
            stream.phase = Phase::Open;
        }
        if closing.how != How::Flushed || closing.close_due.is_some() {
            return Step::End;
        }
        let (came, ended) = discard(network, end);
        closing.expects_no_input &= !came;
        let facts = Facts {
            connected: matches!(stream.phase, Phase::Open),
            unsent: !stream.outbox.is_empty(),
            send_failed: stream.send_over,
            input_over: stream.receive_over || ended,
            lingering: closing.lingering,
        };
        let step = facts.next(|| closing.expects_no_input);
        if step == Step::Linger {
            closing.lingering = true;
            network.shut(end);
            self.close_deadlines.await_end(network.now, sock);
            return Step::Wait;
        }
        step
    }

    /// Ends the closes that their peers have held up for too long.
    fn close_overdue(&mut self) {
        let world = self.world.clone();
        let progress = |stream: &Stream| {
            let closing = stream.closing.as_ref()?;
            let flushes = closing.how == How::Flushed && !closing.lingering && closing.close_due.is_none();
            flushes.then(|| stream.acknowledged(&world.0.borrow()))
        };
        let now = world.now();
        while let Some((sock, how)) = self.close_deadlines.overdue(now, |sock| match self.sockets.lookup(sock)? {
            Socket::Stream(stream) => progress(stream),
            Socket::Listener(_) => None,
        }) {
            self.close(sock, how);
        }
    }

    /// Closes the end of a socket; its Close event follows.
    fn shut_down(&mut self, sock: Sock, network: &mut Network) {
        let Some(Socket::Stream(stream)) = self.sockets.lookup_mut(sock) else { return };
        let Some(closing) = stream.closing.as_mut().filter(|closing| closing.close_due.is_none()) else { return };
        self.outboxes.clear(&mut stream.outbox);
        (stream.armed, stream.starved) = (None, false);
        if let Some(end) = stream.end {
            network.close(end, closing.how == How::Reset);
        }
        let late = network.random.chance(network.faults.late_close);
        let delay = if late { network.random.duration(network.faults.delay) } else { Duration::ZERO };
        closing.close_due = Some(network.now + delay);
        network.activity += 1;
    }

    fn stream(&self, sock: Sock) -> Option<&Stream> {
        match self.sockets.lookup(sock)? {
            Socket::Stream(stream) => Some(stream),
            Socket::Listener(_) => None,
        }
    }

    /// The stream of that name, unless its owner has closed it.
    fn living(&mut self, sock: Sock) -> Option<&mut Stream> {
        match self.sockets.lookup_mut(sock)? {
            Socket::Stream(stream) if stream.closing.is_none() => Some(stream),
            _ => None,
        }
    }
}

impl Drop for Simulated {
    /// What a process leaves behind when it ends: everything closed by the kernel.
    fn drop(&mut self) {
        let network = &mut *self.world.0.borrow_mut();
        for (_, socket) in self.sockets.iter() {
            match socket {
                Socket::Listener(listener) => {
                    network.shut_down(listener.gate);
                    network.descriptors.remove(&listener.descriptor.as_raw_fd());
                }
                Socket::Stream(Stream { end: Some(end), .. }) => drop(network.close(*end, false)),
                Socket::Stream(_) => {}
            }
        }
        network.loops[self.number].wakes_at = None;
    }
}

/// Reads and forgets what has come; whether something has, and whether the peer has ended.
fn discard(network: &mut Network, end: End) -> (bool, bool) {
    let (mut discarded, mut came) = ([0; 4096], false);
    loop {
        match network.read(end, &mut discarded) {
            Ok(0) => return (came, true),
            Ok(_) => came = true,
            Err(error) => return (came, error.kind() != io::ErrorKind::WouldBlock),
        }
    }
}

/// When the network itself has to look at a socket again although nothing arrives.
fn timer(socket: &Socket) -> Option<Instant> {
    match socket {
        Socket::Listener(listener) => listener.close_due,
        Socket::Stream(Stream { closing: Some(Closing { close_due: Some(due), .. }), .. }) => Some(*due),
        Socket::Stream(Stream { phase: Phase::Connecting { until, .. }, .. }) => Some(*until),
        Socket::Stream(_) => None,
    }
}

fn read_into(network: &mut Network, end: End, block: &mut Block) -> io::Result<usize> {
    let (place, room) = block.spare();
    // SAFETY: `spare` gives `room` bytes that nobody else sees; they are zeroed before they are lent as a slice, and
    // those that the read has filled are initialised.
    unsafe {
        std::ptr::write_bytes(place, 0, room);
        let count = network.read(end, std::slice::from_raw_parts_mut(place, room))?;
        block.filled(count);
        Ok(count)
    }
}

fn place_of(address: &SockAddr) -> io::Result<Place> {
    if let Some(path) = address.as_pathname() {
        return Ok(Place::Unix(path.to_owned()));
    }
    let address = address.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    Ok(Place::Tcp(address))
}

/// As the kernel says it when no descriptor is left.
fn no_entry() -> io::Error {
    io::Error::from_raw_os_error(libc::EMFILE)
}
