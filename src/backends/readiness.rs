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
//! `accept`, `receiving` and `sending` own the lists of who accepts, who is read and who sends, and say whose turn it is. Lists hold names,
//! not references; a name in a list may have died, and every use looks it up.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Poll, Token, Waker};
use socket2::SockAddr;

use self::accept::Accepting;
use self::receiving::Reading;
use self::sending::Sending;
use self::socket::Socket;
use self::socket::flag::*;
use self::system::{Connecting, Readied, Told, sock_of, token};
use super::closing::{CloseDeadlines, Step};
use super::flags::Flagged;
use super::shortage::Spare;
use super::{Backend, Bell, Event, Handed, How, Options, Piece, Side, Size, Sock};
use crate::buffers::block::{Census, Pool};
use crate::buffers::outbox::{Outbox, Outboxes};
use crate::buffers::slots::Slots;

mod accept;
mod receiving;
mod sending;
mod socket;
mod system;

/// Events taken from the kernel in one turn at most; more wait there for the next turn.
const EVENTS: usize = 512;
/// The bell's token: the index of no socket.
const BELL: Token = Token(usize::MAX);

/// The readiness backend of one loop.
pub struct Readiness {
    poll: Poll,
    told: Told,
    bell: ReadinessBell,
    now: Instant,
    sockets: Slots<Socket>,
    outboxes: Outboxes,
    pool: Pool,
    close_deadlines: CloseDeadlines,
    accepting: Accepting,
    reading: Reading,
    sending: Sending,
    /// Opened in this turn and not registered yet.
    unregistered: Vec<Sock>,
    /// Everything that is told other than receives and accepts.
    pending: VecDeque<Event>,
    spare: Spare,
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
            sockets: Slots::new(options.max_sockets),
            outboxes: Outboxes::new(),
            close_deadlines: CloseDeadlines::new(&options),
            pool: options.pool,
            accepting: Accepting::new(options.accept_retry),
            reading: Reading::default(),
            sending: Sending::default(),
            unregistered: Vec::new(),
            pending: VecDeque::new(),
            spare: Spare::new(),
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
            self.reading.queue(sock, socket, size, &self.pool);
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
        self.sending.mark(sock, socket);
    }

    fn send_file(&mut self, sock: Sock, file: &File, at: u64, count: u64) -> Handed {
        self.send_from_file(sock, file, at, count)
    }

    fn unsent(&self, sock: Sock) -> usize {
        self.sockets.lookup(sock).map_or(0, |socket| socket.outbox.bytes())
    }

    fn is_behind(&self, sock: Sock) -> bool {
        self.sockets.lookup(sock).is_some_and(|socket| socket.is(BEHIND))
    }

    fn sent(&self, sock: Sock) -> u64 {
        self.sockets.lookup(sock).filter(|socket| !socket.is(CLOSED)).map_or(0, |socket| socket.sent)
    }

    fn acknowledged(&self, sock: Sock) -> u64 {
        self.sockets.lookup(sock).filter(|socket| !socket.is(CLOSED | LISTENER)).map_or(0, Socket::acknowledged)
    }

    fn taken(&self) -> u64 {
        self.sending.taken()
    }

    fn await_room(&mut self, sock: Sock) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        if socket.is(SEND_FAILED | CLOSING | LISTENER) {
            return;
        }
        socket.set(AWAITS_ROOM);
        if socket.outbox.is_empty() {
            self.sending.mark(sock, socket);
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
        self.sending.mark(sock, socket);
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
        self.sending.mark(sock, socket);
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.flush_dirty();
        self.register_new();
        self.reading.begin_turn(&self.pool);
        self.sending.begin_turn();
        self.accepting.suspend_or_resume(&mut self.sockets, &self.poll);
        let sleep = if self.has_work() { Some(Duration::ZERO) } else { self.shorten(timeout) };
        match self.told.wait(&mut self.poll, sleep) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.now = Instant::now();
        for index in 0..self.told.len() {
            self.note_readiness(self.told.at(index));
        }
        self.reading.take_bulk(&self.sockets);
        self.close_overdue();
        self.accepting.begin_turn(&self.sockets, self.now);
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
            if let Some(sock) = self.reading.next() {
                if let Some(event) = self.read(sock) {
                    return Some(event);
                }
            } else if self.accepting.is_under_way() {
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
        let turn = self.reading.turn_before();
        let socket = Socket { descriptor: Some(descriptor), flags, outbox: Outbox::default(), sent: 0, turn };
        self.sockets.insert(socket).ok()
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
        // What came since the kernel was asked last, it does not tell before the next wait.
        let is_read = || self.reading.has_read(socket) || !system::has_unread_input(&socket.descriptor);
        match socket.facts().next(|| expects_no_input && is_read()) {
            Step::Wait => {}
            Step::Linger => {
                if !socket.is(SHUT) {
                    system::shut_write(system::borrow(&socket.descriptor));
                }
                socket.set(LINGERING | SHUT | QUEUED);
                self.reading.push(sock);
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
        self.reading.has_work()
            || self.sending.has_bulk()
            || !self.pending.is_empty()
            || self.accepting.can_accept(&self.sockets)
    }

    /// The caller's timeout, or the time until something of our own is due.
    fn shorten(&mut self, timeout: Option<Duration>) -> Option<Duration> {
        if self.close_deadlines.is_empty() && self.accepting.rests_until().is_none() {
            return timeout;
        }
        let sockets = &self.sockets;
        let due = self.close_deadlines.next_due(sockets.len(), |sock| sockets.lookup(sock).is_some());
        let due = due.into_iter().chain(self.accepting.rests_until()).min();
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
                self.reading.queue_readied(sock, socket, &self.pool);
            } else if socket.is(LISTENER) {
                self.accepting.announce();
            }
        }
        if readied.is_writable() || over {
            if socket.is(CONNECTING) {
                self.end_connect(sock);
            } else if !socket.is(LISTENER) {
                socket.set(WRITABLE);
                // What waits may also be a file, of which nothing is queued.
                if !socket.outbox.is_empty() || socket.is(AWAITS_ROOM) {
                    self.sending.mark_bulk(sock, socket);
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
                    self.reading.push(sock);
                }
                self.sending.mark(sock, socket);
                self.pending.push_back(Event::Connect { sock });
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
