//! Receives and sends.
//!
//! A send is tried without waiting. What the kernel has no room for moves out of the pool's blocks, so that a slow reader pins
//! none, and is tried again once a poll says that there is room.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::null_mut;
use std::time::Instant;

use ::io_uring::{cqueue, opcode, squeue, types};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::super::flags::Flagged;
use super::super::{BULK_BYTES, Event, Handed, Piece, Side, Size, Sock};
use super::groups;
use super::messages::NO_MESSAGE;
use super::ring::{Operation, token};
use super::socket::{
    ARMED, AWAITS_ROOM, BEHIND, BLOCKED, BULK, CLOSING, CONNECTING, DIRTY, EMPTIED, ENDED, EXPECTS_NO_INPUT, FINISH,
    FINISHED, FLUSHED, LARGE, PARKED, POLLING, RECEIVE_FAILED, SEND_FAILED, SENDING, Socket, WANTED, WORKER,
};
use super::{IoUring, acknowledged};
use crate::buffers::block;
use crate::kernel::{is_in_memory, send_file};

/// Waits for the socket to become ready before the first try (`IORING_RECVSEND_POLL_FIRST`, Linux 5.19).
const POLL_FIRST: u16 = 1;

/// Makes a call that would wait as the socket does, as if the socket did not. No operation begins meanwhile; those that have begun go on as they
/// were.
fn without_waiting<T>(socket: &Socket, call: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
    let descriptor = socket.descriptor();
    fcntl(descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let result = call(descriptor);
    fcntl(descriptor, FcntlArg::F_SETFL(OFlag::empty()))?;
    result
}

impl IoUring {
    /// Arms a receive, now or when the socket is connected.
    pub(super) fn want_receive(&mut self, sock: Sock, size: Size) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        if !socket.can_receive() || socket.is(CLOSING) {
            return;
        }
        match size {
            Size::Large if self.pool.total(Size::Large) > 0 => socket.set(LARGE),
            _ => socket.clear(LARGE),
        }
        socket.set(WANTED);
        if socket.is(BULK) {
            self.work.wanted_bulk.push_back((sock, self.pool.promise(socket.size())));
        } else if !socket.is(CONNECTING) {
            self.work.wanted.push(sock);
        }
    }

    /// Queues the entry of a receive.
    pub(super) fn arm_receive(&mut self, sock: Sock) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        debug_assert!(!socket.is(ARMED | PARKED), "a second receive is armed");
        socket.clear(WANTED);
        let group = groups::number(socket.share(), socket.size());
        socket.set(ARMED);
        self.memory.groups[group].armed += 1;
        let entry = opcode::Recv::new(types::Fd(socket.raw()), null_mut(), 0)
            .buf_group(group as u16)
            .ioprio(if socket.is(EMPTIED) { POLL_FIRST } else { 0 })
            .build()
            .flags(squeue::Flags::BUFFER_SELECT)
            .user_data(token(Operation::receive(group), sock));
        // SAFETY: the bytes go to a block of the group, which keeps it in place until a completion names it.
        unsafe { self.ring.push(entry) };
    }

    /// A receive is over.
    pub(super) fn complete_receive(&mut self, sock: Sock, group: usize, result: i32, flags: u32) -> Option<Event> {
        let groups = &mut self.memory.groups;
        groups[group].armed -= 1;
        let mut block = groups[group].take(flags);
        let full = block.as_mut().is_some_and(|block| block.spare().1 <= usize::try_from(result).unwrap_or(0));
        let socket = self.sockets.lookup_mut(sock)?;
        socket.clear(ARMED);
        if result == -libc::ENOBUFS && (!socket.is(CLOSING) || socket.is(FLUSHED)) {
            // The next try waits for bytes before it asks for a block; and a small one is better than none.
            socket.set(PARKED | EMPTIED);
            socket.clear(LARGE);
            groups[groups::number(socket.share(), Size::Small)].parked.push(sock);
            return None;
        }
        match result {
            // Not every kernel knows what is left in a Unix socket; a full block says that there may be more.
            1.. if full => {
                socket.clear(EMPTIED);
                socket.set(BULK);
            }
            1.. => {
                socket.clear(BULK);
                if cqueue::sock_nonempty(flags) { socket.clear(EMPTIED) } else { socket.set(EMPTIED) }
            }
            0 => socket.set(ENDED),
            _ if matches!(-result, libc::EINTR | libc::EAGAIN | libc::ENOBUFS) => {}
            _ => socket.set(RECEIVE_FAILED),
        }
        if socket.is(CLOSING) {
            if result > 0 {
                socket.clear(EXPECTS_NO_INPUT);
            }
            if socket.is(FLUSHED) && socket.can_receive() {
                self.arm_receive(sock);
            }
            return self.proceed_to_close(sock);
        }
        if socket.is(RECEIVE_FAILED) {
            return Some(Event::Fail { sock, side: Side::Receive, error: io::Error::from_raw_os_error(-result) });
        }
        if socket.is(ENDED) {
            return Some(Event::End { sock });
        }
        if result < 0 {
            self.arm_receive(sock);
            return None;
        }
        let mut block = block.expect("a receive that brings bytes names their buffer");
        // SAFETY: the kernel has written that many bytes to the block's spare room.
        unsafe { block.filled(result as usize) };
        Some(Event::Receive { sock, block })
    }

    /// Tops the groups up and lets parked receives try again; whether another round is needed before the loop may sleep.
    pub(super) fn refill(&mut self) -> bool {
        let mut parked = false;
        for number in 0..groups::GROUPS {
            let group = &mut self.memory.groups[number];
            group.refill(&self.pool);
            if group.parked.is_empty() {
                continue;
            }
            let count = group.ready().min(group.parked.len());
            let again: Vec<Sock> = group.parked.drain(..count).collect();
            parked |= count > 0 && !group.parked.is_empty();
            for sock in again {
                if self.sockets.lookup_mut(sock).is_some_and(|socket| socket.replace(PARKED)) {
                    self.arm_receive(sock);
                }
            }
        }
        parked
    }

    /// Queues a piece for the end of the turn.
    pub(super) fn queue_piece(&mut self, sock: Sock, piece: Piece) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        if !socket.can_send() {
            return;
        }
        if socket.is(BEHIND | CONNECTING) {
            self.memory.outboxes.push_waiting(&mut socket.outbox, piece, &self.pool);
        } else {
            self.memory.outboxes.push(&mut socket.outbox, piece);
        }
        self.mark_dirty(sock);
    }

    /// Puts a socket into the list of those whose outbox, or half-close, leaves at the next wait.
    pub(super) fn mark_dirty(&mut self, sock: Sock) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        let work = !socket.outbox.is_empty() || socket.is(FINISH | AWAITS_ROOM);
        if work && !socket.is(DIRTY | SENDING | POLLING | CONNECTING) {
            socket.set(DIRTY);
            match socket.is(BEHIND) && !socket.is(BLOCKED) {
                true => self.work.dirty_bulk.push_back(sock),
                false => self.work.dirty.push(sock),
            }
        }
    }

    /// Queues the sends and receives of this turn. A receive waits until here, so that one that was asked for only to say that
    /// no more is expected, right before a flushed close, costs nothing.
    pub(super) fn flush(&mut self) {
        let mut dirty = std::mem::take(&mut self.work.dirty);
        for sock in dirty.drain(..) {
            self.start_send(sock);
            debug_assert!(!self.pins_blocks(sock), "a block of the pool waits for a peer");
        }
        self.work.dirty = dirty;
        let mut left = BULK_BYTES;
        while left > 0
            && let Some(sock) = self.work.dirty_bulk.pop_front()
        {
            self.start_send(sock);
            let offered = self.sockets.lookup(sock).map_or(0, |socket| socket.offered as usize);
            left = left.saturating_sub(offered.clamp(block::SMALL, block::LARGE));
        }
        let mut wanted = std::mem::take(&mut self.work.wanted);
        for sock in wanted.drain(..) {
            self.arm_wanted(sock);
        }
        self.work.wanted = wanted;
        let (mut left, mut armed) = (BULK_BYTES, [0; groups::GROUPS]);
        while left > 0
            && armed.iter().zip(&self.memory.groups).all(|(armed, group)| *armed < group.most_bulk())
            && let Some((sock, promise)) = self.work.wanted_bulk.pop_front()
        {
            if let Some(group) = self.arm_wanted(sock) {
                armed[group] += 1;
                left = left.saturating_sub(promise.bytes());
            }
        }
    }

    /// Arms a receive, if it is still wanted; the number of its group.
    fn arm_wanted(&mut self, sock: Sock) -> Option<usize> {
        let socket = self.sockets.lookup(sock).filter(|socket| socket.is(WANTED))?;
        let group = groups::number(socket.share(), socket.size());
        self.arm_receive(sock);
        Some(group)
    }

    /// Whether a peer that is behind, or not connected yet, keeps a block of the pool.
    fn pins_blocks(&self, sock: Sock) -> bool {
        let waits = |socket: &&Socket| socket.is(BEHIND | CONNECTING);
        self.sockets.lookup(sock).filter(waits).is_some_and(|socket| self.memory.outboxes.holds_blocks(&socket.outbox))
    }

    fn start_send(&mut self, sock: Sock) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        socket.clear(DIRTY);
        if socket.is(SENDING | POLLING | CONNECTING | SEND_FAILED) {
            return;
        }
        // What waits may also be a file, of which nothing is queued.
        if socket.is(BLOCKED) && (!socket.outbox.is_empty() || socket.is(AWAITS_ROOM)) {
            socket.set(POLLING);
            let entry = opcode::PollAdd::new(types::Fd(socket.raw()), libc::POLLOUT as u32).build();
            // SAFETY: a poll refers to no memory.
            return unsafe { self.ring.push(entry.user_data(token(Operation::Room, sock))) };
        }
        if socket.outbox.is_empty() {
            socket.clear(BEHIND);
            if socket.replace(AWAITS_ROOM) {
                self.ready.push_back(Event::Drain { sock });
            }
            return self.finish_if_empty(sock);
        }
        let memory = &mut *self.memory;
        let mut pieces = memory.outboxes.pieces(&socket.outbox);
        let Some(first) = pieces.next() else { return };
        let mut flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        let fd = types::Fd(socket.raw());
        let entry = if let Some(second) = pieces.next() {
            let pieces = [first, second].into_iter().chain(pieces);
            let (message, header, bytes) = memory.messages.fill(pieces);
            (socket.message, socket.offered) = (message, u32::try_from(bytes).unwrap_or(u32::MAX));
            flags |= before_fin(socket);
            opcode::SendMsg::new(fd, header).flags(flags as u32).build()
        } else {
            socket.offered = first.len() as u32;
            flags |= before_fin(socket);
            opcode::Send::new(fd, first.as_ptr(), socket.offered).flags(flags).build()
        };
        socket.set(SENDING);
        // SAFETY: the message is released, and the pieces are dropped, moved or shortened, only after the completion.
        unsafe { self.ring.push(entry.user_data(token(Operation::Send, sock))) };
    }

    /// See [`Backend::send_file`](super::super::Backend::send_file).
    pub(super) fn send_from_file(&mut self, sock: Sock, file: &File, at: u64, count: u64) -> Handed {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return Handed::Sent(0) };
        if !socket.can_send() {
            return Handed::Sent(0);
        }
        let count = count.min(BULK_BYTES as u64).min(self.file_bytes);
        if count > 0 && !is_in_memory(file, at, count) {
            return Handed::Unable;
        }
        if !socket.outbox.is_empty() || socket.is(SENDING | POLLING | CONNECTING) {
            // What is queued leaves first.
            socket.set(AWAITS_ROOM);
            return Handed::Sent(0);
        }
        if count == 0 {
            // Others had their turns; it has its own in one of the next.
            socket.set(AWAITS_ROOM | BEHIND);
            self.mark_dirty(sock);
            return Handed::Sent(0);
        }
        let sent = match without_waiting(socket, |descriptor| send_file(descriptor, file, at, count)) {
            Ok(0) => return Handed::Ended,
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                let failed = self.fail_send(sock, error.raw_os_error().unwrap_or(libc::EIO));
                self.ready.extend(failed);
                return Handed::Sent(0);
            }
        };
        socket.sent += sent;
        self.taken += sent;
        self.file_bytes -= sent;
        if sent < count {
            if !socket.is(BEHIND) {
                self.ready.push_back(Event::Full { sock });
            }
            socket.set(BLOCKED | BEHIND | AWAITS_ROOM);
            self.mark_dirty(sock);
        }
        Handed::Sent(sent)
    }

    /// The kernel has room again, or says what is wrong with the socket at the next send.
    pub(super) fn complete_room(&mut self, sock: Sock) -> Option<Event> {
        let socket = self.sockets.lookup_mut(sock)?;
        socket.clear(POLLING | BLOCKED);
        if socket.flags & (CLOSING | FLUSHED) == CLOSING {
            return self.proceed_to_close(sock);
        }
        self.mark_dirty(sock);
        None
    }

    /// A send is over, in whole or in part.
    pub(super) fn complete_send(&mut self, sock: Sock, result: i32) -> Option<Event> {
        let socket = self.sockets.lookup_mut(sock)?;
        socket.clear(SENDING);
        if socket.message != NO_MESSAGE {
            self.memory.messages.release(socket.message);
            socket.message = NO_MESSAGE;
        }
        let taken = match result {
            0.. => result as usize,
            _ if matches!(-result, libc::EAGAIN | libc::EINTR) => 0,
            _ => return self.fail_send(sock, -result),
        };
        socket.sent += taken as u64;
        if !socket.is(WORKER) {
            self.taken += taken as u64;
        }
        self.memory.outboxes.consume(&mut socket.outbox, taken);
        if socket.flags & (CLOSING | FLUSHED) == CLOSING {
            // What is left was given up.
            return self.proceed_to_close(sock);
        }
        let drains = taken > 0 && socket.replace(AWAITS_ROOM);
        let drain = drains.then_some(Event::Drain { sock });
        if socket.outbox.is_empty() {
            socket.clear(BLOCKED | BEHIND);
            self.finish_if_empty(sock);
            return self.after_send(sock, drain);
        }
        if taken == socket.offered as usize {
            socket.clear(BLOCKED);
        } else {
            socket.set(BLOCKED);
            if !socket.is(BEHIND) {
                socket.set(BEHIND);
                self.memory.outboxes.settle(&mut socket.outbox, &self.pool);
                if socket.is(FLUSHED) {
                    self.close_deadlines.await_progress(Instant::now(), sock, acknowledged(&self.ring, sock, socket));
                } else if !socket.is(CLOSING) {
                    self.ready.push_back(Event::Full { sock });
                }
            }
        }
        self.mark_dirty(sock);
        self.after_send(sock, drain)
    }

    fn fail_send(&mut self, sock: Sock, error: i32) -> Option<Event> {
        let socket = self.sockets.lookup_mut(sock)?;
        match socket.is(WORKER) {
            true => self.memory.outboxes.clear(&mut socket.outbox),
            false => self.memory.outboxes.abandon(&mut socket.outbox),
        }
        socket.clear(BLOCKED | BEHIND | AWAITS_ROOM);
        socket.set(SEND_FAILED);
        let error = io::Error::from_raw_os_error(error);
        self.after_send(sock, Some(Event::Fail { sock, side: Side::Send, error }))
    }

    /// A closing socket goes on closing; another gets its event.
    fn after_send(&mut self, sock: Sock, event: Option<Event>) -> Option<Event> {
        let closing = self.sockets.lookup(sock).is_some_and(|socket| socket.is(CLOSING));
        if closing { self.proceed_to_close(sock) } else { event }
    }

    /// Shuts the sending half when that was asked for and nothing is left to send.
    pub(super) fn finish_if_empty(&mut self, sock: Sock) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        if socket.is(FINISH) && !socket.is(FINISHED | SENDING | CONNECTING) && socket.outbox.is_empty() {
            socket.set(FINISHED);
            socket.shut(libc::SHUT_WR);
        }
    }
}

/// A flag for the send that was just offered, if it is the last before a FIN: its bytes wait for that and leave in the same
/// segment, which spares both ends a packet (tcp(7), send(2)).
fn before_fin(socket: &Socket) -> libc::c_int {
    let last = socket.is(FINISH | FLUSHED) && socket.offered as usize == socket.outbox.bytes();
    if last { libc::MSG_MORE } else { 0 }
}
