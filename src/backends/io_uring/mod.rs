//! Completions on Linux (5.19 and later) through io_uring.
//!
//! | file | owns |
//! |---|---|
//! | `mod` | the backend: its tables, the turn, connects, the bell |
//! | `ring` | the queues shared with the kernel, tokens, the one enter of a turn |
//! | `groups` | blocks that lie ready for receives |
//! | `messages` | headers of gathered sends |
//! | `accept`, `transfer`, `close` | what is done with listeners, bytes, and sockets that end |
//! | `socket` | what is kept of a socket, and plain system calls |
//!
//! Rules:
//! - A turn is one enter: it submits what the last turn has queued and sleeps. Completions are handled one by one as
//!   [`Backend::next`] is called, so that each sees the state that the events before it have left.
//! - What the kernel may read or write stays where it is until the operation's final completion: pieces in their outbox,
//!   messages in boxes, blocks in their group. A socket's entry is freed only when nothing is in flight for it, so that a
//!   completion always finds its socket.
//! - Sockets are blocking for us: on one with O_NONBLOCK io_uring would answer EAGAIN where it should wait.

mod accept;
mod close;
mod groups;
mod messages;
mod ring;
mod socket;
mod transfer;

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ::io_uring::{cqueue, opcode, types};
use socket2::SockAddr;

#[cfg(doc)]
use super::BULK_BYTES;
use super::closing::CloseDeadlines;
use super::flags::Flagged;
use super::shortage::{Shortage, Spare};
use super::{Backend, Bell, Event, FILES_A_TURN, Handed, How, Options, Piece, Side, Size, Sock};
use crate::buffers::block::{Census, Pool, Promise};
use crate::buffers::outbox::Outboxes;
use crate::buffers::slots::Slots;
use crate::kernel::unacknowledged;
use accept::Listener;
use groups::{GROUPS, Group};
use messages::Messages;
use ring::{KernelVersion, Operation, Ring, bare_token, parse, token};
use socket::{
    AWAITS_ROOM, BEHIND, CLOSING, CONNECTING, FINISH, FLUSHED, GONE, LINGERING, LISTENER, PARKED, SEND_FAILED, SENDING,
    Socket, Started, UNCONNECTED, WANTED, WORKER,
};

/// How long leaving waits for the kernel to let go of everything. It takes microseconds; beyond this the memory that the
/// kernel may still write to is leaked rather than freed.
const QUIESCE: Duration = Duration::from_secs(2);

/// The io_uring backend of one loop.
pub struct IoUring {
    ring: Ring,
    /// Freed by `drop`, and only once nothing is in flight.
    memory: ManuallyDrop<Memory>,
    sockets: Slots<Socket>,
    listeners: Vec<Listener>,
    /// What each listener may take from the kernel before its turn; `None`: as much as comes.
    ahead: Option<usize>,
    work: Work,
    /// Events that no completion brings.
    ready: VecDeque<Event>,
    close_deadlines: CloseDeadlines,
    shortage: Shortage,
    /// Bytes that the kernel took from accepted sockets.
    taken: u64,
    /// Bytes of files that may still be sent in this turn.
    file_bytes: u64,
    spare: Spare,
    pool: Pool,
    bell: IoUringBell,
    now: Instant,
}

/// What is to be submitted at the next wait.
#[derive(Default)]
struct Work {
    /// Sockets with something to send.
    dirty: Vec<Sock>,
    /// The same for those whose peers were behind and that have room now: as many a turn as [`BULK_BYTES`] say.
    dirty_bulk: VecDeque<Sock>,
    /// Sockets with a receive to arm.
    wanted: Vec<Sock>,
    /// The same for those in the middle of a long transfer: as many a turn as [`BULK_BYTES`] say. What they may bring is set aside
    /// meanwhile.
    wanted_bulk: VecDeque<(Sock, Promise)>,
}

/// What operations in flight may refer to.
struct Memory {
    groups: [Group; GROUPS],
    messages: Messages,
    outboxes: Outboxes,
    /// Where the bell's counter is read to. From a box; raw, so that no reference to it is held while the kernel writes.
    rings: *mut u64,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: made by `Box::into_raw`, freed once, and the bell's read is over.
        drop(unsafe { Box::from_raw(self.rings) });
    }
}

/// Wakes an [`IoUring`] through an eventfd(2), whose read is always in flight.
#[derive(Clone)]
pub struct IoUringBell(Arc<BellState>);

struct BellState {
    fd: OwnedFd,
    /// Whether it was rung since the last `Wake`.
    rung: AtomicBool,
}

impl IoUringBell {
    fn new() -> io::Result<IoUringBell> {
        // SAFETY: plain numbers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(IoUringBell(Arc::new(BellState { fd, rung: AtomicBool::new(false) })))
    }
}

impl Bell for IoUringBell {
    fn ring(&self) {
        if self.0.rung.swap(true, Ordering::AcqRel) {
            return;
        }
        let one = 1u64;
        // SAFETY: eight bytes are read from a place that outlives the call. It cannot block: the counter is at most 1.
        unsafe { libc::write(self.0.fd.as_raw_fd(), std::ptr::from_ref(&one).cast(), size_of::<u64>()) };
    }
}

impl Backend for IoUring {
    type Bell = IoUringBell;

    fn new(options: Options) -> io::Result<IoUring> {
        IoUring::open(options, KernelVersion::Linux66)
    }

    fn bell(&self) -> IoUringBell {
        self.bell.clone()
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn listen(&mut self, listener: OwnedFd) -> io::Result<Sock> {
        self.start_listening(listener)
    }

    fn set_stall(&mut self, stall: Duration) {
        self.close_deadlines.set_stall(stall);
    }

    fn pause(&mut self, listener: Sock) {
        self.pause_listener(listener);
    }

    fn resume(&mut self, listener: Sock) {
        self.resume_listener(listener);
    }

    fn accept_ahead(&mut self, most: Option<usize>) {
        self.bound_accepts(most);
    }

    fn connect(&mut self, address: &SockAddr) -> io::Result<Option<Sock>> {
        if self.sockets.len() == self.sockets.limit() {
            return Err(no_entry());
        }
        let (fd, started) = self.spare.help(|| socket::start_connect(address))?;
        let flags = match started {
            Started::Full => {
                drop(fd);
                self.spare.restore();
                return Ok(None);
            }
            Started::Connected => WORKER,
            Started::InProgress => WORKER | CONNECTING,
            Started::Refused(_) => WORKER | UNCONNECTED,
        };
        let descriptor = types::Fd(fd.as_raw_fd());
        let sock = self.sockets.insert(Socket::new(fd, flags)).map_err(|_| no_entry())?;
        match started {
            Started::Refused(error) => self.ready.push_back(Event::Fail { sock, side: Side::Connect, error }),
            Started::InProgress => {
                let entry = opcode::PollAdd::new(descriptor, libc::POLLOUT as u32).build();
                // SAFETY: a poll refers to no memory.
                unsafe { self.ring.push(entry.user_data(token(Operation::Connect, sock))) };
            }
            _ => self.ready.push_back(Event::Connect { sock }),
        }
        Ok(Some(sock))
    }

    fn recv(&mut self, sock: Sock, size: Size) {
        self.want_receive(sock, size);
    }

    fn send(&mut self, sock: Sock, piece: Piece) {
        self.queue_piece(sock, piece);
    }

    fn unsent(&self, sock: Sock) -> usize {
        self.sockets.lookup(sock).map_or(0, |socket| socket.outbox.bytes())
    }

    fn is_behind(&self, sock: Sock) -> bool {
        self.sockets.lookup(sock).is_some_and(|socket| socket.is(BEHIND))
    }

    fn sent(&self, sock: Sock) -> u64 {
        self.sockets.lookup(sock).map_or(0, |socket| socket.sent)
    }

    fn offered(&self, sock: Sock) -> u64 {
        let in_flight = |socket: &Socket| if socket.is(SENDING) { u64::from(socket.offered) } else { 0 };
        self.sockets.lookup(sock).map_or(0, |socket| socket.sent + in_flight(socket))
    }

    fn acknowledged(&self, sock: Sock) -> u64 {
        let socket = self.sockets.lookup(sock).filter(|socket| !socket.is(LISTENER | GONE));
        socket.map_or(0, |socket| acknowledged(&self.ring, sock, socket))
    }

    fn taken(&self) -> u64 {
        self.taken
    }

    fn await_room(&mut self, sock: Sock) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        if socket.is(SEND_FAILED | UNCONNECTED | CLOSING | LISTENER) {
            return;
        }
        socket.set(AWAITS_ROOM);
        self.mark_dirty(sock);
    }

    fn is_starved(&self, sock: Sock) -> bool {
        self.sockets.lookup(sock).is_some_and(|socket| socket.is(PARKED) && !socket.is(CLOSING))
    }

    fn finish(&mut self, sock: Sock) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        if socket.can_send() {
            socket.set(FINISH);
            self.mark_dirty(sock);
        }
    }

    fn close(&mut self, sock: Sock, how: How) {
        self.begin_close(sock, how);
    }

    fn send_file(&mut self, sock: Sock, file: &File, at: u64, count: u64) -> Handed {
        self.send_from_file(sock, file, at, count)
    }

    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.file_bytes = FILES_A_TURN;
        self.close_overdue();
        self.shortage.expire(self.now);
        self.flush();
        let accepts = self.prepare_accepts();
        let parked = self.refill();
        let bulk = !(self.work.dirty_bulk.is_empty() && self.work.wanted_bulk.is_empty());
        let has_work = accepts || parked || bulk || !self.ready.is_empty() || self.ring.has_completions();
        let result = if has_work {
            self.ring.enter(0, None)
        } else {
            let sleep = self.shorten(timeout);
            self.ring.enter(1, sleep)
        };
        self.now = Instant::now();
        result
    }

    fn next(&mut self) -> Option<Event> {
        let event = self.next_event()?;
        if let Event::Close { sock } = event {
            // Dropping the socket closes its descriptor.
            self.sockets.remove(sock);
            self.spare.restore();
        }
        Some(event)
    }

    fn live(&self) -> usize {
        self.sockets.len()
    }

    fn count_blocks(&self, census: &mut Census) {
        self.memory.outboxes.count_blocks(census);
        self.memory.groups.iter().for_each(|group| group.count_blocks(census));
    }
}

impl IoUring {
    /// The backend as on the oldest kernel that has what it needs, Linux 5.19: for tests of what newer ones do not show.
    ///
    /// # Errors
    /// As [`Backend::new`].
    pub fn on_oldest_kernel(options: Options) -> io::Result<IoUring> {
        IoUring::open(options, KernelVersion::Linux519)
    }

    fn open(options: Options, most: KernelVersion) -> io::Result<IoUring> {
        if options.max_sockets > ring::MOST_SOCKETS {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "io_uring: more than 16,777,216 sockets"));
        }
        let ring = Ring::new(most)?;
        let group = |number| Group::new(ring.handle(), &options.pool, number);
        let groups = [group(0)?, group(1)?, group(2)?, group(3)?];
        let bell = IoUringBell::new()?;
        let rings = Box::into_raw(Box::new(0));
        let memory = Memory { groups, messages: Messages::default(), outboxes: Outboxes::new(), rings };
        let close_deadlines = CloseDeadlines::new(&options);
        let mut backend = IoUring {
            ring,
            memory: ManuallyDrop::new(memory),
            sockets: Slots::new(options.max_sockets),
            listeners: Vec::new(),
            ahead: None,
            work: Work::default(),
            ready: VecDeque::new(),
            close_deadlines,
            shortage: Shortage::new(options.accept_retry),
            taken: 0,
            file_bytes: 0,
            spare: Spare::new(),
            pool: options.pool,
            bell,
            now: Instant::now(),
        };
        backend.await_bell();
        // The kernel refuses an operation here rather than under load.
        backend.ring.enter(0, None)?;
        Ok(backend)
    }

    #[inline]
    fn next_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                if self.is_wanted(&event) {
                    return Some(event);
                }
                continue;
            }
            let Some(entry) = self.ring.next() else { return self.next_accept() };
            if let Some(event) = self.complete(&entry) {
                return Some(event);
            }
        }
    }

    /// Whether an event is still to be told: once its owner has closed a socket, only `Close` is.
    fn is_wanted(&self, event: &Event) -> bool {
        let closing = |sock| self.sockets.lookup(sock).is_none_or(|socket| socket.is(CLOSING));
        matches!(event, Event::Close { .. } | Event::Wake) || !closing(event.sock())
    }

    /// Handles one completion.
    fn complete(&mut self, entry: &cqueue::Entry) -> Option<Event> {
        let (operation, sock) = parse(entry.user_data());
        match operation {
            Operation::Send => self.complete_send(sock, entry.result()),
            Operation::Room => self.complete_room(sock),
            Operation::Accept => self.complete_accept(sock, entry.result(), cqueue::more(entry.flags())),
            Operation::Connect => self.complete_connect(sock, entry.result()),
            Operation::Cancel => None,
            Operation::Bell => {
                self.await_bell();
                // A swap, so that what was done before a ring that found the bell rung already is seen now.
                self.bell.0.rung.swap(false, Ordering::AcqRel);
                Some(Event::Wake)
            }
            _ => {
                let group = operation as usize - Operation::Receive0 as usize;
                self.complete_receive(sock, group, entry.result(), entry.flags())
            }
        }
    }

    fn await_bell(&mut self) {
        let fd = types::Fd(self.bell.0.fd.as_raw_fd());
        let entry = opcode::Read::new(fd, self.memory.rings.cast(), size_of::<u64>() as u32).build();
        // SAFETY: the eight bytes are freed only once nothing is in flight, and nobody else touches them.
        unsafe { self.ring.push(entry.user_data(bare_token(Operation::Bell))) };
    }

    /// The connect has come to its end.
    fn complete_connect(&mut self, sock: Sock, result: i32) -> Option<Event> {
        let socket = self.sockets.lookup_mut(sock)?;
        socket.clear(CONNECTING);
        let error = if result < 0 { -result } else { socket::take_error(socket.raw()) };
        if error != 0 {
            socket.set(UNCONNECTED);
            self.memory.outboxes.clear(&mut socket.outbox);
        }
        if socket.is(CLOSING) {
            return self.proceed_to_close(sock);
        }
        if error != 0 {
            return Some(Event::Fail { sock, side: Side::Connect, error: io::Error::from_raw_os_error(error) });
        }
        if socket.is(WANTED) {
            self.work.wanted.push(sock);
        }
        self.mark_dirty(sock);
        Some(Event::Connect { sock })
    }

    /// The caller's timeout, or the time until something of our own is due.
    fn shorten(&mut self, timeout: Option<Duration>) -> Option<Duration> {
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
        let now = Instant::now();
        let flushes = |socket: &&Socket| socket.flags & (FLUSHED | LINGERING) == FLUSHED;
        while let Some((sock, how)) = self.close_deadlines.overdue(now, |sock| {
            let socket = self.sockets.lookup(sock).filter(flushes);
            socket.map(|socket| acknowledged(&self.ring, sock, socket))
        }) {
            self.begin_close(sock, how);
        }
    }

    /// Asks the kernel to end an operation.
    fn cancel(&mut self, operation: Operation, sock: Sock) {
        let entry = opcode::AsyncCancel::new(token(operation, sock)).build();
        // SAFETY: a cancel refers to no memory.
        unsafe { self.ring.push(entry.user_data(bare_token(Operation::Cancel))) };
    }

    /// Ends everything in flight and waits for it; whether the kernel has let go of all our memory.
    fn quiesce(&mut self) -> bool {
        let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any()).build();
        // SAFETY: a cancel refers to no memory.
        unsafe { self.ring.push(entry.user_data(bare_token(Operation::Cancel))) };
        let deadline = Instant::now() + QUIESCE;
        while self.ring.in_flight() > 0 {
            let has_work = self.ring.has_completions();
            let entered = self.ring.enter(u32::from(!has_work), Some(QUIESCE / 8));
            while let Some(entry) = self.ring.next() {
                if parse(entry.user_data()).0 == Operation::Accept && entry.result() >= 0 {
                    // SAFETY: an accept that succeeded gives a new descriptor to us alone.
                    drop(unsafe { OwnedFd::from_raw_fd(entry.result()) });
                }
            }
            if entered.is_err() || Instant::now() > deadline {
                break;
            }
        }
        self.ring.in_flight() == 0
    }
}

impl Drop for IoUring {
    fn drop(&mut self) {
        if self.quiesce() {
            // SAFETY: nothing in flight refers to it any more, and it is not used after this.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

/// Bytes that the peer has acknowledged. A send may have completed and not been seen yet: what the kernel holds then has more in it
/// than is known to be sent.
fn acknowledged(ring: &Ring, sock: Sock, socket: &Socket) -> u64 {
    let send = token(Operation::Send, sock);
    let mut unseen = ring.untaken(send);
    loop {
        let held = unacknowledged(&socket.fd);
        let meanwhile = ring.untaken(send);
        if meanwhile == unseen {
            return (socket.sent + unseen).saturating_sub(held);
        }
        unseen = meanwhile;
    }
}

/// All entries of the table are taken.
fn no_entry() -> io::Error {
    io::Error::new(io::ErrorKind::QuotaExceeded, "all sockets of this loop are in use")
}
