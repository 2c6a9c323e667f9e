//! Receiving: whose turn it is to be read, and the one receive that each has in a turn.

use std::collections::VecDeque;
use std::io;

use super::socket::Socket;
use super::socket::flag::*;
use super::{Event, Readiness, Side, Sock, alive, system};
use crate::backends::BULK_BYTES;
use crate::backends::flags::Flagged;
use crate::buffers::block::{Pool, Promise, Share, Size};
use crate::buffers::slots::Slots;

/// Reads of unwanted input from one lingering socket in one turn at most.
const DISCARDS: usize = 16;

/// Who is to be read, and when. All of them have [`QUEUED`] set.
#[derive(Default)]
pub(super) struct Reading {
    /// Counts waits; wraps.
    turn: u32,
    /// To be read in this turn, those before `cursor` are done.
    ready: Vec<Sock>,
    cursor: usize,
    /// To be read in the next turn.
    later: Vec<Sock>,
    /// To be read as [`BULK_BYTES`] say, behind all others. What they may bring is set aside meanwhile.
    bulk: VecDeque<(Sock, Promise)>,
    /// Receives that wait for a block: clients', workers'.
    parked: [VecDeque<Sock>; 2],
}

impl Reading {
    /// The turn of which a socket is that has not received in this one.
    pub(super) fn turn_before(&self) -> u32 {
        self.turn.wrapping_sub(1)
    }

    /// Whether a socket has received in this turn.
    pub(super) fn has_read(&self, socket: &Socket) -> bool {
        socket.turn == self.turn
    }

    /// Goes on to the next turn: with those that are left of the last one, those that were put off, and as many parked ones as there are
    /// blocks for.
    pub(super) fn begin_turn(&mut self, pool: &Pool) {
        self.unpark(pool);
        match std::mem::take(&mut self.cursor) {
            read if read == self.ready.len() => self.ready.clear(),
            read => drop(self.ready.drain(..read)),
        }
        if !self.later.is_empty() {
            self.ready.append(&mut self.later);
        }
        self.turn = self.turn.wrapping_add(1);
    }

    /// Whether anybody is to be read for whom nothing has to come first.
    pub(super) fn has_work(&self) -> bool {
        !(self.bulk.is_empty() && self.ready.is_empty())
    }

    /// Who is next.
    #[inline]
    pub(super) fn next(&mut self) -> Option<Sock> {
        let sock = *self.ready.get(self.cursor)?;
        self.cursor += 1;
        Some(sock)
    }

    /// Puts one, which is marked already, behind those of this turn.
    #[inline]
    pub(super) fn push(&mut self, sock: Sock) {
        self.ready.push(sock);
    }

    /// Queues an armed receive for which there may be input already. Apart from [`Backend::recv`](crate::backends::Backend::recv), which
    /// mostly has nothing to queue.
    #[inline(never)]
    pub(super) fn queue(&mut self, sock: Sock, socket: &mut Socket, size: Size, pool: &Pool) {
        socket.set(QUEUED);
        if socket.is(BULK) {
            self.bulk.push_back((sock, pool.promise(size)));
        } else if socket.turn == self.turn {
            self.later.push(sock);
        } else {
            self.ready.push(sock);
        }
    }

    /// Queues one of which the kernel has just said that it has input.
    #[inline]
    pub(super) fn queue_readied(&mut self, sock: Sock, socket: &mut Socket, pool: &Pool) {
        socket.set(QUEUED);
        if socket.is(BULK) {
            self.bulk.push_back((sock, pool.promise(if socket.is(LARGE) { Size::Large } else { Size::Small })));
        } else {
            self.ready.push(sock);
        }
    }

    /// Lets long transfers be read in this turn, the longest waiting first.
    #[inline]
    pub(super) fn take_bulk(&mut self, sockets: &Slots<Socket>) {
        let mut left = BULK_BYTES;
        while left > 0
            && let Some((sock, promise)) = self.bulk.pop_front()
        {
            if sockets.lookup(sock).is_some_and(|socket| !socket.is(CLOSED)) {
                left = left.saturating_sub(promise.bytes());
                self.ready.push(sock);
            }
        }
    }

    /// Keeps an armed receive for which no block is left.
    fn park(&mut self, sock: Sock, share: Share, sockets: &Slots<Socket>) {
        let parked = &mut self.parked[share as usize];
        if parked.len() > 2 * sockets.len() {
            // Sockets that came and went while the pool stayed empty.
            parked.retain(|other| sockets.lookup(*other).is_some());
        }
        parked.push_back(sock);
    }

    /// Lets as many parked receives go on as there are blocks for, workers first.
    fn unpark(&mut self, pool: &Pool) {
        for share in [Share::Worker, Share::Client] {
            let parked = &mut self.parked[share as usize];
            if parked.is_empty() || pool.take(Size::Small, share).is_none() {
                continue;
            }
            let free = pool.free(Size::Small).min(parked.len());
            self.ready.extend(parked.drain(..free));
        }
    }
}

impl Readiness {
    /// The one receive of this turn, if there is something to tell.
    #[inline]
    pub(super) fn read(&mut self, sock: Sock) -> Option<Event> {
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
            socket.set(QUEUED | PARKED);
            self.reading.park(sock, share, &self.sockets);
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
                socket.turn = self.reading.turn;
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
            self.reading.later.push(sock);
        }
    }
}
