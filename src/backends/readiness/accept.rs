//! Accepting, in batches.
//!
//! On Linux a listener is watched without EPOLLET: every wait tells of it as long as connections are there. So nobody has
//! to go on accepting until the kernel says that there are no more, which costs as much as six receives (accept4(2)
//! makes a socket, an inode and a file before it looks). How many are worth a try in a turn is learned from the turns
//! before. Elsewhere the edge is told once, and a batch goes on until its bound or the refusal.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use mio::Poll;

use super::super::flags::Flagged;
use super::super::shortage::Shortage;
use super::super::{ACCEPT_BATCH, Event, Sock};
use super::socket::Socket;
use super::socket::flag::*;
use super::system::{self, TELLS_AGAIN, token};
use super::{Readiness, alive, table_is_full};
use crate::buffers::slots::Slots;

/// How much allowance one connection takes.
const STEP: usize = 4;

/// A listener, beyond what is known of any socket.
pub(super) struct Listener {
    sock: Sock,
    /// [`STEP`] for each connection that is worth a try in one turn. Grows with turns in which all were there, slowly at
    /// first, and falls to what was there in a turn that failed.
    allowance: usize,
}

/// A listener's part of this turn.
pub(super) struct Batch {
    sock: Sock,
    taken: usize,
    most: usize,
}

/// Who accepts, and what is to be taken in this turn.
pub(super) struct Accepting {
    listeners: Vec<Listener>,
    /// One of them has connections, or is one of which the kernel does not tell for now: they are to be looked at.
    announced: bool,
    /// Listeners that have connections for this turn.
    batches: Vec<Batch>,
    shortage: Shortage,
}

impl Accepting {
    /// Without listeners. A shortage lasts for `retry_after` at a time.
    pub(super) fn new(retry_after: Duration) -> Accepting {
        let shortage = Shortage::new(retry_after);
        Accepting { listeners: Vec::new(), announced: false, batches: Vec::new(), shortage }
    }

    /// The kernel has said that a listener has connections.
    pub(super) fn announce(&mut self) {
        self.announced = true;
    }

    /// When accepting is tried again, while it rests.
    pub(super) fn rests_until(&self) -> Option<Instant> {
        self.shortage.until()
    }

    /// Whether connections are to be taken in this turn.
    #[inline]
    pub(super) fn is_under_way(&self) -> bool {
        !self.batches.is_empty()
    }

    /// Whether connections may be taken from it now.
    fn is_open(&self, sockets: &Slots<Socket>, listener: Sock) -> bool {
        self.shortage.until().is_none()
            && sockets.len() < sockets.limit()
            && sockets.lookup(listener).is_some_and(|socket| !socket.is(PAUSED))
    }

    /// Whether connections wait that may be taken.
    pub(super) fn can_accept(&self, sockets: &Slots<Socket>) -> bool {
        self.announced && self.listeners.iter().any(|listener| self.has_any(sockets, listener.sock))
    }

    /// Whether that one has connections that may be taken.
    fn has_any(&self, sockets: &Slots<Socket>, listener: Sock) -> bool {
        sockets.lookup(listener).is_some_and(|socket| socket.is(READABLE)) && self.is_open(sockets, listener)
    }

    /// Before a wait: the kernel is to be silent about connections that nobody may take, and to speak again afterwards.
    #[inline]
    pub(super) fn suspend_or_resume(&mut self, sockets: &mut Slots<Socket>, poll: &Poll) {
        if self.announced {
            self.announced = false;
            self.look_at_listeners(sockets, poll);
        }
    }

    fn look_at_listeners(&mut self, sockets: &mut Slots<Socket>, poll: &Poll) {
        for index in 0..self.listeners.len() {
            let sock = self.listeners[index].sock;
            let open = self.is_open(sockets, sock);
            let Some(socket) = alive(sockets, sock) else { continue };
            let suspend = !open && socket.is(READABLE | SUSPENDED);
            if TELLS_AGAIN && socket.is(SUSPENDED) != suspend {
                if suspend {
                    socket.set(SUSPENDED)
                } else {
                    socket.clear(SUSPENDED)
                }
                let descriptor = system::borrow(&socket.descriptor).as_raw_fd();
                system::suspend_listener(poll, descriptor, token(sock), suspend);
            }
            self.announced |= socket.is(READABLE | SUSPENDED);
        }
    }

    /// After a wait: whose connections are taken in this turn, and how many.
    pub(super) fn begin_turn(&mut self, sockets: &Slots<Socket>, now: Instant) {
        self.shortage.expire(now);
        self.batches.clear();
        if !self.announced {
            return;
        }
        for &Listener { sock, allowance } in &self.listeners {
            if self.has_any(sockets, sock) {
                let most = if TELLS_AGAIN { allowance / STEP } else { ACCEPT_BATCH };
                self.batches.push(Batch { sock, taken: 0, most });
            }
        }
    }

    fn count_one(&mut self) {
        self.batches.last_mut().expect("a batch is under way").taken += 1;
    }

    /// The last batch is done. `whole`: as many connections were there as were tried for. `over`: if there are more, the
    /// kernel will tell.
    fn end_batch(&mut self, sockets: &mut Slots<Socket>, whole: bool, over: bool) {
        let Some(Batch { sock, taken, .. }) = self.batches.pop() else { return };
        if over && let Some(socket) = alive(sockets, sock) {
            socket.clear(READABLE);
        }
        if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.sock == sock) {
            let allowance = if whole { listener.allowance + 1 + listener.allowance / (2 * STEP) } else { taken * STEP };
            listener.allowance = allowance.clamp(STEP, ACCEPT_BATCH * STEP);
        }
    }
}

impl Readiness {
    /// Watches a new listener.
    pub(super) fn add_listener(&mut self, listener: OwnedFd) -> io::Result<Sock> {
        system::prepare_listener(&listener)?;
        let descriptor = listener.as_raw_fd();
        let sock = self.open(listener, LISTENER | REGISTERED).ok_or_else(table_is_full)?;
        // What came before the registration is told by it.
        if let Err(error) = system::watch_listener(&self.poll, descriptor, token(sock)) {
            self.sockets.remove(sock);
            return Err(error);
        }
        self.accepting.listeners.push(Listener { sock, allowance: STEP });
        Ok(sock)
    }

    /// Forgets a listener that is about to be closed.
    pub(super) fn remove_listener(&mut self, sock: Sock) {
        if let Some(socket) = alive(&mut self.sockets, sock) {
            // Closing alone does not end the watch while another process has the same listener.
            system::unwatch_listener(&self.poll, system::borrow(&socket.descriptor).as_raw_fd());
        }
        self.accepting.listeners.retain(|other| other.sock != sock);
        self.accepting.batches.retain(|other| other.sock != sock);
    }

    /// The next connection of the last of this turn's listeners, or `None` when that one is done. Kept apart, because the address in
    /// its event would have all events moved byte by byte.
    #[inline(never)]
    pub(super) fn accept(&mut self) -> Option<Event> {
        let Batch { sock: listener, taken, most } = *self.accepting.batches.last()?;
        if taken == most || !self.accepting.is_open(&self.sockets, listener) {
            self.accepting.end_batch(&mut self.sockets, taken == most, TELLS_AGAIN && taken == most);
            return None;
        }
        let socket = alive(&mut self.sockets, listener)?;
        match system::accept(system::borrow(&socket.descriptor)) {
            Ok((descriptor, peer)) => {
                let sock = self.open(descriptor, READABLE | WRITABLE).expect("room was checked above");
                self.unregistered.push(sock);
                self.accepting.shortage.accepted();
                self.accepting.count_one();
                Some(Event::Accept { listener, sock, peer })
            }
            Err(error) => {
                if error.kind() == io::ErrorKind::WouldBlock {
                    self.accepting.end_batch(&mut self.sockets, false, true);
                } else if system::is_lost_connection(&error) {
                    self.accepting.count_one();
                } else {
                    return self.accepting.shortage.begin(self.now).then_some(Event::Exhausted { listener, error });
                }
                None
            }
        }
    }
}
