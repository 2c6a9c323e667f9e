//! Sending: what is queued leaves at the end of the turn, and files from where the kernel has them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::time::Instant;

use super::socket::Socket;
use super::socket::flag::*;
use super::{Backend, Event, Handed, Readiness, Side, Sock, alive, system};
use crate::backends::flags::Flagged;
use crate::backends::{BULK_BYTES, FILES_A_TURN};
use crate::buffers::block;
use crate::buffers::outbox::{GATHER, Outboxes};
use crate::kernel::{is_in_memory, send_file};

/// Who has something to send, and what of it has left. All of them have [`DIRTY`] set.
#[derive(Default)]
pub(super) struct Sending {
    /// To be flushed at the end of the turn.
    dirty: Vec<Sock>,
    /// The same for those whose peers were behind and that have room now: as many a turn as [`BULK_BYTES`] say.
    bulk: VecDeque<Sock>,
    /// Bytes that the kernel took from accepted sockets.
    taken: u64,
    /// Bytes of files that may still be sent in this turn.
    file_bytes: u64,
}

impl Sending {
    /// See [`Backend::taken`].
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    /// Goes on to the next turn.
    pub(super) fn begin_turn(&mut self) {
        self.file_bytes = FILES_A_TURN;
    }

    /// Whether any has to be flushed for which nothing has to come first.
    pub(super) fn has_bulk(&self) -> bool {
        !self.bulk.is_empty()
    }

    /// Has the socket flushed at the end of the turn.
    #[inline]
    pub(super) fn mark(&mut self, sock: Sock, socket: &mut Socket) {
        if !socket.is(DIRTY) {
            socket.set(DIRTY);
            self.dirty.push(sock);
        }
    }

    /// Has it flushed in its turn among those whose peers were behind.
    pub(super) fn mark_bulk(&mut self, sock: Sock, socket: &mut Socket) {
        if !socket.is(DIRTY) {
            socket.set(DIRTY);
            self.bulk.push_back(sock);
        }
    }
}

impl Readiness {
    /// Flushes all that have something to send.
    pub(super) fn flush_dirty(&mut self) {
        let mut dirty = std::mem::take(&mut self.sending.dirty);
        for &sock in &dirty {
            self.flush(sock);
            debug_assert!(!self.pins_blocks(sock), "a block of the pool waits for a peer");
        }
        dirty.clear();
        let mut left = BULK_BYTES;
        while left > 0
            && let Some(sock) = self.sending.bulk.pop_front()
        {
            let before = self.sent(sock);
            self.flush(sock);
            left = left.saturating_sub((self.sent(sock).saturating_sub(before) as usize).max(block::SMALL));
        }
        // Flushing marks nothing; keep the list's memory.
        debug_assert!(self.sending.dirty.is_empty(), "a flush has marked a socket");
        self.sending.dirty = dirty;
    }

    /// See [`Backend::send_file`](crate::backends::Backend::send_file).
    pub(super) fn send_from_file(&mut self, sock: Sock, file: &File, at: u64, count: u64) -> Handed {
        let Some(socket) = alive(&mut self.sockets, sock) else { return Handed::Sent(0) };
        if socket.is(SEND_FAILED | FINISH | CLOSING | LISTENER) {
            return Handed::Sent(0);
        }
        if self.sending.file_bytes == 0 {
            // Others had their turns; it has its own in one of the next.
            socket.set(AWAITS_ROOM);
            self.sending.mark_bulk(sock, socket);
            return Handed::Sent(0);
        }
        if !socket.is(WRITABLE) {
            self.await_room_for_files(sock);
            return Handed::Sent(0);
        }
        let count = count.min(BULK_BYTES as u64).min(self.sending.file_bytes);
        if !is_in_memory(file, at, count) {
            return Handed::Unable;
        }
        socket.set(FOLLOWED);
        self.flush(sock);
        let Some(socket) = alive(&mut self.sockets, sock) else { return Handed::Sent(0) };
        socket.clear(FOLLOWED);
        if socket.is(SEND_FAILED) {
            return Handed::Sent(0);
        }
        if !socket.outbox.is_empty() {
            self.await_room_for_files(sock);
            return Handed::Sent(0);
        }
        match send_file(system::borrow(&socket.descriptor), file, at, count) {
            Ok(0) => Handed::Ended,
            Ok(sent) => {
                socket.sent += sent;
                self.sending.taken += sent;
                self.sending.file_bytes -= sent;
                if sent < count {
                    self.await_room_for_files(sock);
                }
                Handed::Sent(sent)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.await_room_for_files(sock);
                Handed::Sent(0)
            }
            Err(error) => {
                self.fail_send(sock, error);
                Handed::Sent(0)
            }
        }
    }

    /// The kernel takes no more of a file for now.
    fn await_room_for_files(&mut self, sock: Sock) {
        if let Some(socket) = alive(&mut self.sockets, sock) {
            socket.clear(WRITABLE);
            socket.set(AWAITS_ROOM);
        }
        self.fall_behind(sock);
    }

    /// Whether a peer that is behind, or not connected yet, keeps a block of the pool.
    fn pins_blocks(&self, sock: Sock) -> bool {
        let waits = |socket: &&Socket| socket.is(BEHIND | CONNECTING);
        self.sockets.lookup(sock).filter(waits).is_some_and(|socket| self.outboxes.holds_blocks(&socket.outbox))
    }

    /// Sends as much as the kernel takes, then does what was to follow it.
    #[inline]
    fn flush(&mut self, sock: Sock) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        socket.clear(DIRTY);
        while socket.is(WRITABLE) && !socket.outbox.is_empty() {
            match send_some(&self.outboxes, socket) {
                Ok((sent, tried)) => {
                    self.outboxes.consume(&mut socket.outbox, sent);
                    socket.sent += sent as u64;
                    if !socket.is(WORKER) {
                        self.sending.taken += sent as u64;
                    }
                    if socket.is(AWAITS_ROOM) {
                        socket.clear(AWAITS_ROOM);
                        self.pending.push_back(Event::Drain { sock });
                    }
                    if sent < tried {
                        socket.clear(WRITABLE);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.clear(WRITABLE),
                Err(error) => return self.fail_send(sock, error),
            }
        }
        if !socket.outbox.is_empty() {
            return self.fall_behind(sock);
        }
        if socket.is(WATCHED | BEHIND | AWAITS_ROOM | FINISH | CLOSING) {
            self.after_flush(sock);
        }
    }

    /// The kernel takes no more for now, or is not connected yet.
    fn fall_behind(&mut self, sock: Sock) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        if !socket.is(BEHIND | CONNECTING) {
            socket.set(BEHIND);
            self.outboxes.settle(&mut socket.outbox, &self.pool);
            if socket.is(CLOSING) {
                self.close_deadlines.await_progress(Instant::now(), sock, socket.acknowledged());
            } else {
                self.pending.push_back(Event::Full { sock });
            }
        }
        self.watch(sock, true);
    }

    /// The outbox is empty.
    fn after_flush(&mut self, sock: Sock) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        if socket.is(CONNECTING) {
            return;
        }
        socket.clear(BEHIND);
        if socket.is(AWAITS_ROOM) {
            socket.clear(AWAITS_ROOM);
            self.pending.push_back(Event::Drain { sock });
        }
        if socket.flags & (FINISH | SHUT) == FINISH {
            socket.set(SHUT);
            system::shut_write(system::borrow(&socket.descriptor));
        }
        if socket.is(CLOSING) {
            return self.proceed_to_close(sock);
        }
        self.watch(sock, false);
    }

    /// The sending half has failed: what is queued is dropped, and an armed receive tells what is left to read.
    pub(super) fn fail_send(&mut self, sock: Sock, error: io::Error) {
        let Some(socket) = alive(&mut self.sockets, sock) else { return };
        match socket.is(WORKER) {
            true => self.outboxes.clear(&mut socket.outbox),
            false => self.outboxes.abandon(&mut socket.outbox),
        }
        socket.set(SEND_FAILED);
        socket.clear(BEHIND | AWAITS_ROOM);
        if socket.is(CLOSING) {
            return self.proceed_to_close(sock);
        }
        self.pending.push_back(Event::Fail { sock, side: Side::Send, error });
    }
}

/// One send from the head of the outbox: how many bytes left, of how many that were offered.
#[inline]
fn send_some(outboxes: &Outboxes, socket: &Socket) -> io::Result<(usize, usize)> {
    let descriptor = system::borrow(&socket.descriptor);
    // Two of them shut the sending half as soon as the outbox is empty.
    let more_follows = socket.is(FINISH | CLOSING | FOLLOWED);
    let first = outboxes.pieces(&socket.outbox).next().unwrap_or_default();
    if first.len() == socket.outbox.bytes() {
        return Ok((system::send(descriptor, first, more_follows)?, first.len()));
    }
    let mut vectors = [IoSlice::new(&[]); GATHER];
    let count = outboxes.gather(&socket.outbox, &mut vectors);
    let tried = vectors[..count].iter().map(|vector| vector.len()).sum();
    let last = more_follows && tried == socket.outbox.bytes();
    Ok((system::send_gathered(descriptor, &vectors[..count], last)?, tried))
}
