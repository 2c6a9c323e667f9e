//! Listeners: while there are places for many, one multishot accept each; else some that bring one connection each. What they bring beyond a
//! turn's batch waits as a bare descriptor.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use ::io_uring::{opcode, types};

use super::super::flags::Flagged;
use super::super::{ACCEPT_BATCH, Event, Peer, Sock};
use super::ring::{Operation, bare_token, token};
use super::socket::{self, CLOSING, FLUSHED, LISTENER, Socket};
use super::{IoUring, no_entry};

/// Accepted connections that may wait for their turn; with more the accept is cancelled, and the rest waits in the
/// kernel's backlog. What the kernel has brought until then, a completion queue's worth at most, is kept.
const MOST_WAITING: usize = 256;
/// Accepts of one connection each that are in flight for a listener at most: enough for who comes within a turn.
const MOST_SINGLE: usize = 8;

/// A listener's state beyond that of a socket.
pub(super) struct Listener {
    sock: Sock,
    unix: bool,
    /// Accepted and not yet brought up.
    waiting: VecDeque<OwnedFd>,
    /// Brought up in this turn.
    taken: usize,
    /// Accepts in flight: a multishot one, or those that bring one connection each.
    armed: usize,
    /// The one in flight is a multishot.
    multishot: bool,
    /// All that are in flight were cancelled.
    cancelled: bool,
    paused: bool,
}

impl Listener {
    /// How many accepts are to be armed beside those in flight; `ahead`: what one that brings one connection each may have taken.
    fn lacks(&self, ahead: Option<usize>) -> usize {
        match ahead {
            _ if self.paused || self.cancelled => 0,
            None => usize::from(self.armed == 0 && self.waiting.len() <= MOST_WAITING / 2),
            Some(most) => most.clamp(1, MOST_SINGLE).saturating_sub(self.armed + self.waiting.len()),
        }
    }
}

impl IoUring {
    pub(super) fn start_listening(&mut self, fd: OwnedFd) -> io::Result<Sock> {
        socket::make_blocking(fd.as_raw_fd())?;
        let unix = socket::is_unix(fd.as_raw_fd());
        if !unix {
            // Accepted sockets inherit it.
            socket::set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, &(1 as libc::c_int));
        }
        let sock = self.sockets.insert(Socket::new(fd, LISTENER)).map_err(|_| no_entry())?;
        self.listeners.push(Listener {
            sock,
            unix,
            waiting: VecDeque::new(),
            taken: 0,
            armed: 0,
            multishot: false,
            cancelled: false,
            paused: false,
        });
        Ok(sock)
    }

    pub(super) fn pause_listener(&mut self, sock: Sock) {
        let Some(position) = self.position(sock) else { return };
        // What one that is being closed still brings up is to come.
        if self.sockets.lookup(sock).is_some_and(|socket| !socket.is(CLOSING)) {
            self.listeners[position].paused = true;
            self.cancel_accepts(position);
        }
    }

    pub(super) fn resume_listener(&mut self, sock: Sock) {
        let Some(position) = self.position(sock) else { return };
        self.listeners[position].paused = false;
    }

    /// Closes a listener; `Close` follows at once when nothing is in flight. In a flushed close what the kernel has accepted already is
    /// brought up first: those clients are connected, and nobody else has their sockets.
    pub(super) fn close_listener(&mut self, sock: Sock) -> Option<Event> {
        let position = self.position(sock)?;
        let flushed = self.sockets.lookup(sock)?.is(FLUSHED);
        let listener = &mut self.listeners[position];
        listener.paused = false;
        if !flushed {
            listener.waiting.clear();
        }
        self.cancel_accepts(position);
        if self.listeners[position].armed > 0 || !self.listeners[position].waiting.is_empty() {
            return None;
        }
        self.listeners.remove(position);
        Some(Event::Close { sock })
    }

    /// Arms the accepts that should be; whether accepted connections can be brought up without a wait.
    pub(super) fn prepare_accepts(&mut self) -> bool {
        let mut has_waiting = false;
        let rests = self.shortage.until().is_some();
        let room = self.sockets.len() < self.sockets.limit();
        for position in 0..self.listeners.len() {
            let listener = &mut self.listeners[position];
            listener.taken = 0;
            has_waiting |= room && !listener.paused && !listener.waiting.is_empty();
            let lacks = listener.lacks(self.ahead);
            if lacks > 0 && !rests {
                self.arm_accepts(position, lacks);
            }
        }
        has_waiting
    }

    fn arm_accepts(&mut self, position: usize, count: usize) {
        let listener = &mut self.listeners[position];
        let sock = listener.sock;
        let Some(socket) = self.sockets.lookup(sock).filter(|socket| !socket.is(CLOSING)) else { return };
        listener.armed += count;
        listener.multishot = self.ahead.is_none();
        let (descriptor, flags) = (types::Fd(socket.raw()), libc::SOCK_CLOEXEC);
        let entry = if listener.multishot {
            opcode::AcceptMulti::new(descriptor).flags(flags).build()
        } else {
            opcode::Accept::new(descriptor, std::ptr::null_mut(), std::ptr::null_mut()).flags(flags).build()
        };
        let entry = entry.user_data(token(Operation::Accept, sock));
        for _ in 0..count {
            // SAFETY: an accept refers to no memory when it is given none for addresses.
            unsafe { self.ring.push(entry.clone()) };
        }
    }

    /// Says how many each listener may take from the kernel before their turn. A multishot accept knows no bound, so it ends with the first.
    pub(super) fn bound_accepts(&mut self, most: Option<usize>) {
        self.ahead = most;
        for position in 0..self.listeners.len() {
            if most.is_some() && self.listeners[position].multishot {
                self.cancel_accepts(position);
            }
        }
    }

    /// An accept has brought a connection, or has failed, or has ended.
    pub(super) fn complete_accept(&mut self, sock: Sock, result: i32, more: bool) -> Option<Event> {
        let accepted = (result >= 0).then(|| {
            // SAFETY: an accept that succeeded gives a new descriptor to us alone.
            unsafe { OwnedFd::from_raw_fd(result) }
        });
        let position = self.position(sock)?;
        let socket = self.sockets.lookup(sock)?;
        let (closing, flushed) = (socket.is(CLOSING), socket.is(FLUSHED));
        let listener = &mut self.listeners[position];
        if !more {
            listener.armed -= 1;
            listener.cancelled &= listener.armed > 0;
        }
        let mut event = None;
        if let Some(fd) = accepted {
            self.shortage.accepted();
            if !closing || flushed {
                listener.waiting.push_back(fd);
            }
            if listener.waiting.len() >= MOST_WAITING {
                self.cancel_accepts(position);
            }
        } else if !matches!(-result, libc::ECANCELED | libc::ECONNABORTED | libc::EINTR | libc::EAGAIN | libc::EPROTO) {
            let told = self.shortage.begin(self.now) && !closing;
            event = told.then(|| Event::Exhausted { listener: sock, error: io::Error::from_raw_os_error(-result) });
        }
        if closing && !more { self.close_listener(sock) } else { event }
    }

    /// The next accepted connection of this turn.
    pub(super) fn next_accept(&mut self) -> Option<Event> {
        // A multishot accept brings more than was wanted by the time of a pause: that waits here as it would in the backlog.
        for listener in self.listeners.iter_mut().filter(|listener| !listener.paused) {
            while listener.taken < ACCEPT_BATCH && self.sockets.len() < self.sockets.limit() {
                let Some(fd) = listener.waiting.pop_front() else { break };
                listener.taken += 1;
                let peer = if listener.unix { Some(Peer::UNIX) } else { socket::peer(fd.as_raw_fd()) };
                // Without a peer it has been reset already, and nobody would read an answer.
                let Some(peer) = peer else { continue };
                if let Ok(sock) = self.sockets.insert(Socket::new(fd, 0)) {
                    return Some(Event::Accept { listener: listener.sock, sock, peer });
                }
            }
        }
        self.next_close_of_a_listener()
    }

    /// The end of a listener that waited for the last of what it had accepted.
    fn next_close_of_a_listener(&mut self) -> Option<Event> {
        let sockets = &self.sockets;
        let is_over = |listener: &&Listener| {
            let closing = sockets.lookup(listener.sock).is_some_and(|socket| socket.is(CLOSING));
            closing && listener.armed == 0 && listener.waiting.is_empty()
        };
        let sock = self.listeners.iter().find(is_over)?.sock;
        self.close_listener(sock)
    }

    fn cancel_accepts(&mut self, position: usize) {
        let listener = &mut self.listeners[position];
        if listener.armed > 0 && !listener.cancelled {
            listener.cancelled = true;
            let all = types::CancelBuilder::user_data(token(Operation::Accept, listener.sock)).all();
            // SAFETY: a cancel refers to no memory.
            unsafe { self.ring.push(opcode::AsyncCancel2::new(all).build().user_data(bare_token(Operation::Cancel))) };
        }
    }

    fn position(&self, sock: Sock) -> Option<usize> {
        self.listeners.iter().position(|listener| listener.sock == sock)
    }
}
