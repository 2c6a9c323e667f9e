//! Readiness through mio: epoll on Linux, kqueue on macOS and the BSDs.
//!
//! It owns the sockets of one loop and turns edge-triggered readiness into the completions of the contract. What keeps
//! it cheap:
//!
//! - A socket is registered once, at the end of the turn that brought it, for reading alone: one that came and went
//!   within a turn never is, and there are no wakeups for writability that nobody waits for (a Unix socket would give
//!   one for every read of its peer). Writability is asked for when a send falls short, and closing deregisters.
//! - A flag per socket remembers whether the kernel may have input. A receive is one recv(2) when the flag is set, and none
//!   otherwise; a short one clears the flag (epoll(7), on stream sockets), unless the peer's end was announced, or urgent data, at
//!   which recv(2) stops short whatever lies behind it.
//! - An accepted socket counts as readable: its request has often come with it, and if so a whole turn is saved.
//!
//! Lists hold names, not references; a name in a list may have died, and every use looks it up.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Poll, Token, Waker};
use socket2::SockAddr;

use self::accept::{Batch, Listener};
use self::socket::Socket;
use self::socket::flag::*;
use self::system::{Connecting, Readied, Told, sock_of, token};
use super::closing::{CloseDeadlines, Step};
use super::flags::Flagged;
use super::shortage::{Shortage, Spare};
use super::{BULK_BYTES, Backend, Bell, Event, FILES_A_TURN, Handed, How, Options, Piece, Side, Size, Sock};
use crate::buffers::block::{Census, Pool, Promise, Share};
use crate::buffers::outbox::{Outbox, Outboxes};
use crate::buffers::slots::Slots;

mod accept;
mod sending;
mod socket;
mod system;

/// Events taken from the kernel in one turn at most; more wait there for the next turn.
const EVENTS: usize = 512;
/// The bell's token: the index of no socket.
const BELL: Token = Token(usize::MAX);
/// Reads of unwanted input from one lingering socket in one turn at most.
const DISCARDS: usize = 16;

/// The readiness backend of one loop.
pub struct Readiness {
    poll: Poll,
    told: Told,
    bell: ReadinessBell,
    now: Instant,
    /// Counts waits; wraps.
    turn: u32,
    sockets: Slots<Socket>,
    outboxes: Outboxes,
    pool: Pool,
    close_deadlines: CloseDeadlines,
    listeners: Vec<Listener>,
    /// One of them has connections, or is one of which the kernel does not tell for now: they are to be looked at.
    announced: bool,
    /// Listeners that have connections for this turn.
    accepting: Vec<Batch>,
    shortage: Shortage,
    /// Bytes that the kernel took from accepted sockets.
    taken: u64,
    /// Opened in this turn and not registered yet.
    unregistered: Vec<Sock>,
    /// To be flushed at the end of the turn.
    dirty: Vec<Sock>,
    /// The same for those whose peers were behind and that have room now: as many a turn as [`BULK_BYTES`] say.
    dirty_bulk: VecDeque<Sock>,
    /// To be read in this turn, those before `cursor` are done.
    ready: Vec<Sock>,
    cursor: usize,
    /// To be read in the next turn.
    later: Vec<Sock>,
    /// To be read as [`BULK_BYTES`] say, behind all others. What they may bring is set aside meanwhile.
    ready_bulk: VecDeque<(Sock, Promise)>,
    /// Receives that wait for a block: clients', workers'.
    parked: [VecDeque<Sock>; 2],
    /// Everything that is told other than receives and accepts.
    pending: VecDeque<Event>,
    spare: Spare,
    /// Bytes of files that may still be sent in this turn.
    file_bytes: u64,
}

/// Wakes a [`Readiness`] from any thread.
#[derive(Clone)]
pub struct ReadinessBell(Arc<Waker>);

impl Bell for ReadinessBell {
    fn ring(&self) {
        // It fails only when the kernel has no memory for it; the loop then wakes by its timers.
        let _ = self.0.wake();
    }
}

impl Backend for Readiness {
    type Bell = ReadinessBell;

    fn new(options: Options) -> io::Result<Readiness> {
        let poll = Poll::new()?;
        let bell = ReadinessBell(Arc::new(Waker::new(poll.registry(), BELL)?));
        Ok(Readiness {
            poll,
            told: Told::new(EVENTS),
            bell,
            now: Instant::now(),
            turn: 0,
            sockets: Slots::new(options.max_sockets),
            outboxes: Outboxes::new(),
            close_deadlines: CloseDeadlines::new(&options),
            pool: options.pool,
            listeners: Vec::new(),
            announced: false,
            accepting: Vec::new(),
            shortage: Shortage::new(options.accept_retry),
            taken: 0,
            unregistered: Vec::new(),
            dirty: Vec::new(),
            dirty_bulk: VecDeque::new(),
            ready: Vec::new(),
            cursor: 0,
            later: Vec::new(),
            ready_bulk: VecDeque::new(),
            parked: [VecDeque::new(), VecDeque::new()],
            pending: VecDeque::new(),
            spare: Spare::new(),
            file_bytes: 0,
        })
    }

    fn bell(&self) -> ReadinessBell {
        self.bell.clone()
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn listen(&mut self, listener: OwnedFd) -> io::Result<Sock> {
        self.add_listener(listener)
    }

    fn set_stall(&mut self, stall: Duration) {
        self.close_deadlines.set_stall(stall);
    }

    fn pause(&mut self, listener: Sock) {
        if let Some(socket) = alive(&mut self.sockets, listener)
            && socket.is(LISTENER)
        {
            socket.set(PAUSED);
        }
    }

    fn resume(&mut self, listener: Sock) {
        if let Some(socket) = alive(&mut self.sockets, listener) {
            socket.clear(PAUSED);
        }
    }

    fn connect(&mut self, address: &SockAddr) -> io::Result<Option<Sock>> {
        if self.sockets.len() == self.sockets.limit() {
            return Err(table_is_full());
        }
        let (descriptor, flags, refusal) = match self.spare.help(|| system::connect(address))? {
            Connecting::Connected(descriptor) => (descriptor, WORKER | WRITABLE, None),
            Connecting::Started(descriptor) => (descriptor, WORKER | CONNECTING, None),
            Connecting::Refused(descriptor, error) => (descriptor, WORKER | SEND_FAILED | ENDED, Some(error)),
            Connecting::Full => {
                self.spare.restore();
                return Ok(None);
            }
        };
        let sock = self.open(descriptor, flags).expect("room was checked above");
        match refusal {
            Some(error) => self.pending.push_back(Event::Fail { sock, side: Side::Connect, error }),
            None => {
                self.unregistered.push(sock);
                if flags & CONNECTING == 0 {
                    self.pending.push_back(Event::Connect { sock });
                }
            }
        }
        Ok(Some(sock))
    }

    #[inline]
    fn recv(&mut self, sock: Sock, size: Size) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        if socket.is(ARMED | ENDED | CLOSING | LISTENER) {
            return;
        }
        socket.set(if size == Size::Large { ARMED | LARGE } else { ARMED });
        if socket.flags & (READABLE | QUEUED) == READABLE {
            self.queue_read(sock, size);
        }
    }

    #[inline]
    fn send(&mut self, sock: Sock, piece: Piece) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        if socket.is(SEND_FAILED | FINISH | CLOSING | LISTENER) {
            return;
        }
        if socket.is(BEHIND | CONNECTING) {
            self.outboxes.push_waiting(&mut socket.outbox, piece, &self.pool);
        } else {
            self.outboxes.push(&mut socket.outbox, piece);
        }
        if !socket.is(DIRTY) {
            socket.set(DIRTY);
            self.dirty.push(sock);
        }
    }

    fn send_file(&mut self, sock: Sock, file: &File, at: u64, count: u64) -> Handed {
        self.send_from_file(sock, file, at, count)
    }

    fn unsent(&self, sock: Sock) -> usize {
        self.sockets.lookup(sock).map_or(0, |socket| socket.outbox.bytes())
    }

    fn sent(&self, sock: Sock) -> u64 {
        self.sockets.lookup(sock).filter(|socket| !socket.is(CLOSED)).map_or(0, |socket| socket.sent)
    }

    fn acknowledged(&self, sock: Sock) -> u64 {
        self.sockets.lookup(sock).filter(|socket| !socket.is(CLOSED | LISTENER)).map_or(0, Socket::acknowledged)
    }

    fn taken(&self) -> u64 {
        self.taken
    }

    fn await_room(&mut self, sock: Sock) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        if socket.is(SEND_FAILED | CLOSING | LISTENER) {
            return;
        }
        socket.set(AWAITS_ROOM);
        if socket.outbox.is_empty() {
            self.mark_dirty(sock);
        }
    }

    fn is_starved(&self, sock: Sock) -> bool {
        self.sockets.lookup(sock).is_some_and(|socket| socket.is(PARKED))
    }

    fn finish(&mut self, sock: Sock) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        if socket.is(SEND_FAILED | FINISH | CLOSING | LISTENER) {
            return;
        }
        socket.set(FINISH);
        self.mark_dirty(sock);
    }

    fn close(&mut self, sock: Sock, how: How) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        if how != How::Flushed || socket.is(LISTENER) {
            return self.close_now(sock, how == How::Reset);
        }
        if socket.is(CLOSING) {
            return;
        }
        let expects_no_input = socket.flags & (ARMED | READABLE | FINISH) == ARMED;
        socket.clear(ARMED | PARKED | AWAITS_ROOM);
        socket.set(if expects_no_input { CLOSING | EXPECTS_NO_INPUT } else { CLOSING });
        if socket.outbox.is_empty() {
            return self.proceed_to_close(sock);
        }
        if socket.is(BEHIND | CONNECTING) {
            self.close_deadlines.await_progress(Instant::now(), sock, socket.acknowledged());
        }
        self.mark_dirty(sock);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.flush_dirty();
        self.register_new();
        self.unpark();
        match std::mem::take(&mut self.cursor) {
            read if read == self.ready.len() => self.ready.clear(),
            read => drop(self.ready.drain(..read)),
        }
        if !self.later.is_empty() {
            self.ready.append(&mut self.later);
        }
        self.turn = self.turn.wrapping_add(1);
        self.file_bytes = FILES_A_TURN;
        self.suspend_or_resume_listeners();
        let sleep = if self.has_work() { Some(Duration::ZERO) } else { self.shorten(timeout) };
        match self.told.wait(&mut self.poll, sleep) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.now = Instant::now();
        for index in 0..self.told.len() {
            self.note_readiness(self.told.at(index));
        }
        self.take_bulk();
        self.close_overdue();
        self.shortage.expire(self.now);
        self.choose_listeners();
        Ok(())
    }

    #[inline]
    fn next(&mut self) -> Option<Event> {
        loop {
            while let Some(event) = self.pending.pop_front() {
                if self.still_wanted(&event) {
                    return Some(event);
                }
            }
            if let Some(&sock) = self.ready.get(self.cursor) {
                self.cursor += 1;
                if let Some(event) = self.read(sock) {
                    return Some(event);
                }
            } else if !self.accepting.is_empty() {
                if let Some(event) = self.accept() {
                    return Some(event);
                }
            } else {
                return None;
            }
        }
    }

    fn live(&self) -> usize {
        self.sockets.len()
    }

    fn count_blocks(&self, census: &mut Census) {
        self.outboxes.count_blocks(census);
    }
}

/// The socket of a name that lives and is not closed.
#[inline]
fn alive(sockets: &mut Slots<Socket>, sock: Sock) -> Option<&mut Socket> {
    let socket = sockets.lookup_mut(sock)?;
    if socket.is(CLOSED) { None } else { Some(socket) }
}

fn table_is_full() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "no entry is left in this loop's socket table")
}

/// Opening, watching and closing.
impl Readiness {
    fn open(&mut self, descriptor: OwnedFd, flags: u32) -> Option<Sock> {
        let turn = self.turn.wrapping_sub(1);
        let socket = Socket { descriptor: Some(descriptor), flags, outbox: Outbox::default(), sent: 0, turn };
        self.sockets.insert(socket).ok()
    }

    /// Puts the socket into the list of those to be flushed.
    fn mark_dirty(&mut self, sock: Sock) {
        if let Some(socket) = self.sockets.lookup_mut(sock)
            && !socket.is(DIRTY)
        {
            socket.set(DIRTY);
            self.dirty.push(sock);
        }
    }

    fn register_new(&mut self) {
        while let Some(sock) = self.unregistered.pop() {
            let Some(socket) = alive(&mut self.sockets, sock) else { continue };
            let writes = socket.is(CONNECTING | BEHIND) || !(socket.is(WRITABLE) || socket.outbox.is_empty());
            socket.set(if writes { REGISTERED | WATCHED } else { REGISTERED });
            let interest = system::interest(writes);
            let descriptor = system::borrow(&socket.descriptor).as_raw_fd();
            if let Err(error) = self.poll.registry().register(&mut SourceFd(&descriptor), token(sock), interest) {
                // The kernel has no room to watch it: nothing will ever be heard of it.
                let side = if socket.is(CONNECTING) { Side::Connect } else { Side::Receive };
                socket.set(ENDED);
                self.pending.push_back(Event::Fail { sock, side, error });
            }
        }
    }

    /// Starts or stops to watch a registered socket for writability.
    fn watch(&mut self, sock: Sock, writes: bool) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        if !socket.is(REGISTERED) || socket.is(WATCHED) == writes {
            return;
        }
        let interest = system::interest(writes);
        let descriptor = system::borrow(&socket.descriptor).as_raw_fd();
        match self.poll.registry().reregister(&mut SourceFd(&descriptor), token(sock), interest) {
            Ok(()) if writes => socket.set(WATCHED),
            Ok(()) => socket.clear(WATCHED),
            // Without it the rest would never leave: that is a failed send.
            Err(error) if writes => self.fail_send(sock, error),
            Err(_) => {}
        }
    }

    /// Takes a flushed close as far as it can go now.
    fn proceed_to_close(&mut self, sock: Sock) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        debug_assert!(socket.is(CLOSING), "only what was closed ends");
        let expects_no_input = socket.flags & (EXPECTS_NO_INPUT | READABLE) == EXPECTS_NO_INPUT;
        match socket.facts().next(|| expects_no_input) {
            Step::Wait => {}
            Step::Linger => {
                if !socket.is(SHUT) {
                    system::shut_write(system::borrow(&socket.descriptor));
                }
                socket.set(LINGERING | SHUT | QUEUED);
                self.ready.push(sock);
                self.close_deadlines.await_end(Instant::now(), sock);
            }
            Step::End => self.close_now(sock, false),
        }
    }

    /// Closes the descriptor now; the name dies when its event is told.
    fn close_now(&mut self, sock: Sock, reset: bool) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        self.outboxes.clear(&mut socket.outbox);
        if socket.is(LISTENER) {
            self.remove_listener(sock);
        }
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        socket.flags = CLOSED;
        let descriptor = socket.descriptor.take();
        if let Some(descriptor) = descriptor {
            if reset { system::reset(descriptor) } else { drop(descriptor) }
        }
        self.spare.restore();
        self.pending.push_back(Event::Close { sock });
    }

    /// Whether an event is still to be told; telling a close ends its name.
    fn still_wanted(&mut self, event: &Event) -> bool {
        match event {
            Event::Close { sock } => self.sockets.remove(*sock).is_some(),
            Event::Connect { sock } | Event::Full { sock } | Event::Drain { sock } | Event::Fail { sock, .. } => {
                alive(&mut self.sockets, *sock).is_some_and(|socket| !socket.is(CLOSING))
            }
            _ => true,
        }
    }
}

/// Waiting.
impl Readiness {
    fn has_work(&self) -> bool {
        let bulk = !(self.ready_bulk.is_empty() && self.dirty_bulk.is_empty());
        bulk || !self.pending.is_empty() || !self.ready.is_empty() || self.can_accept()
    }

    /// The caller's timeout, or the time until something of our own is due.
    fn shorten(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        if self.close_deadlines.is_empty() && self.shortage.until().is_none() {
            return timeout;
        }
        let sockets = &self.sockets;
        let due = self.close_deadlines.next_due(sockets.len(), |sock| sockets.lookup(sock).is_some());
        let due = due.into_iter().chain(self.shortage.until()).min();
        let own = due.map(|due| due.saturating_duration_since(self.now));
        timeout.into_iter().chain(own).min()
    }

    /// Ends the closes that their peers have held up for too long.
    fn close_overdue(&mut self) {
        if self.close_deadlines.is_empty() {
            return;
        }
        let flushes = |socket: &&Socket| socket.flags & (CLOSING | LINGERING) == CLOSING;
        while let Some((sock, how)) = self
            .close_deadlines
            .overdue(self.now, |sock| self.sockets.lookup(sock).filter(flushes).map(Socket::acknowledged))
        {
            self.close(sock, how);
        }
    }

    /// Takes over what the kernel says of one socket.
    fn note_readiness(&mut self, readied: Readied) {
        if readied.token() == BELL {
            self.pending.push_back(Event::Wake);
            return;
        }
        let sock = sock_of(readied.token());
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        let over = readied.is_over();
        if over || readied.is_readable() {
            socket.set(if over || readied.is_urgent() { READABLE | ANNOUNCED } else { READABLE });
            if socket.is(ARMED | LINGERING) && !socket.is(QUEUED | CONNECTING) {
                socket.set(QUEUED);
                if socket.is(BULK) {
                    let promise = self.pool.promise(if socket.is(LARGE) { Size::Large } else { Size::Small });
                    self.ready_bulk.push_back((sock, promise));
                } else {
                    self.ready.push(sock);
                }
            } else if socket.is(LISTENER) {
                self.announced = true;
            }
        }
        if readied.is_writable() || over {
            if socket.is(CONNECTING) {
                self.end_connect(sock);
            } else if !socket.is(LISTENER) {
                socket.set(WRITABLE);
                // What waits may also be a file, of which nothing is queued.
                if (!socket.outbox.is_empty() || socket.is(AWAITS_ROOM)) && !socket.is(DIRTY) {
                    socket.set(DIRTY);
                    self.dirty_bulk.push_back(sock);
                }
            }
        }
    }

    fn end_connect(&mut self, sock: Sock) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        match system::connect_outcome(system::borrow(&socket.descriptor)) {
            Ok(()) => {
                socket.clear(CONNECTING);
                socket.set(WRITABLE);
                if socket.flags & (ARMED | READABLE | QUEUED) == ARMED | READABLE {
                    socket.set(QUEUED);
                    self.ready.push(sock);
                }
                self.pending.push_back(Event::Connect { sock });
                self.mark_dirty(sock);
            }
            Err(error) => {
                socket.clear(CONNECTING | ARMED);
                socket.set(SEND_FAILED | ENDED);
                self.outboxes.clear(&mut socket.outbox);
                if socket.is(CLOSING) {
                    return self.proceed_to_close(sock);
                }
                self.pending.push_back(Event::Fail { sock, side: Side::Connect, error });
            }
        }
    }
}

/// Receiving.
impl Readiness {
    /// The one receive of this turn, if there is something to tell.
    #[inline]
    fn read(&mut self, sock: Sock) -> Option<Event> {
        let socket = alive(&mut self.sockets, sock)?;
        socket.clear(QUEUED | PARKED);
        if !socket.is(ARMED) {
            if socket.is(LINGERING) {
                self.discard(sock);
            }
            return None;
        }
        let share = if socket.is(WORKER) { Share::Worker } else { Share::Client };
        let large = if socket.is(LARGE) { self.pool.take(Size::Large, share) } else { None };
        let Some(mut block) = large.or_else(|| self.pool.take(Size::Small, share)) else {
            self.park(sock, share);
            return None;
        };
        match system::recv(system::borrow(&socket.descriptor), &mut block) {
            Ok((0, _)) => {
                socket.clear(ARMED | LARGE);
                socket.set(ENDED);
                Some(Event::End { sock })
            }
            Ok((_, full)) => {
                if !full && !socket.is(ANNOUNCED) && system::short_is_all(&socket.descriptor) {
                    socket.clear(READABLE);
                }
                socket.clear(ARMED | LARGE | BULK);
                if full {
                    socket.set(BULK);
                }
                socket.turn = self.turn;
                Some(Event::Receive { sock, block })
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                socket.clear(READABLE | ANNOUNCED);
                None
            }
            Err(error) => {
                socket.clear(ARMED | LARGE);
                socket.set(ENDED);
                Some(Event::Fail { sock, side: Side::Receive, error })
            }
        }
    }

    /// Queues an armed receive for which there may be input already. Apart from [`Backend::recv`], which mostly has nothing to queue.
    #[inline(never)]
    fn queue_read(&mut self, sock: Sock, size: Size) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        socket.set(QUEUED);
        if socket.is(BULK) {
            self.ready_bulk.push_back((sock, self.pool.promise(size)));
        } else if socket.turn == self.turn {
            self.later.push(sock);
        } else {
            self.ready.push(sock);
        }
    }

    /// Lets long transfers be read in this turn, the longest waiting first.
    #[inline]
    fn take_bulk(&mut self) {
        let mut left = BULK_BYTES;
        while left > 0
            && let Some((sock, promise)) = self.ready_bulk.pop_front()
        {
            if alive(&mut self.sockets, sock).is_some() {
                left = left.saturating_sub(promise.bytes());
                self.ready.push(sock);
            }
        }
    }

    /// Keeps an armed receive for which no block is left.
    fn park(&mut self, sock: Sock, share: Share) {
        let parked = &mut self.parked[share as usize];
        if parked.len() > 2 * self.sockets.len() {
            // Sockets that came and went while the pool stayed empty.
            parked.retain(|other| self.sockets.lookup(*other).is_some());
        }
        if let Some(socket) = self.sockets.lookup_mut(sock) {
            socket.set(QUEUED | PARKED);
            parked.push_back(sock);
        }
    }

    /// Lets as many parked receives go on as there are blocks for, workers first.
    fn unpark(&mut self) {
        for share in [Share::Worker, Share::Client] {
            let parked = &mut self.parked[share as usize];
            if parked.is_empty() || self.pool.take(Size::Small, share).is_none() {
                continue;
            }
            let free = self.pool.free(Size::Small).min(parked.len());
            self.ready.extend(parked.drain(..free));
        }
    }

    /// Reads what a lingering socket's peer still sends, until its end.
    fn discard(&mut self, sock: Sock) {
        for _ in 0..DISCARDS {
            let Some(socket) = alive(&mut self.sockets, sock) else { return };
            match system::discard(system::borrow(&socket.descriptor)) {
                Ok(1..) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    socket.clear(READABLE);
                    return;
                }
                Ok(0) | Err(_) => {
                    socket.set(ENDED);
                    return self.proceed_to_close(sock);
                }
            }
        }
        if let Some(socket) = self.sockets.lookup_mut(sock) {
            socket.set(QUEUED);
            self.later.push(sock);
        }
    }
}
