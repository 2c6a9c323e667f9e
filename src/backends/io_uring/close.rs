//! How a socket ends: what the close still has to wait for, end what is in flight, close(2), `Close`.

use std::time::Instant;

use super::super::closing::Step;
use super::super::flags::Flagged;
use super::super::{Event, How, Sock};
use super::groups;
use super::ring::Operation;
use super::socket::{
    ARMED, AWAITS_ROOM, BEHIND, CLOSING, CONNECTING, ENDING, EXPECTS_NO_INPUT, FINISH, FINISHED, FLUSHED, GONE,
    LINGERING, LISTENER, PARKED, POLLING, RESET, SENDING, WANTED,
};
use super::{IoUring, acknowledged};

impl IoUring {
    /// Starts to close, or makes a close in progress harsher.
    pub(super) fn begin_close(&mut self, sock: Sock, how: How) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        let again = socket.is(CLOSING);
        if socket.is(GONE) || (again && (how == How::Flushed || socket.is(LISTENER))) {
            return;
        }
        if !again && socket.is(ARMED | PARKED | WANTED) && !socket.is(FINISH) {
            socket.set(EXPECTS_NO_INPUT);
        }
        socket.set(CLOSING);
        socket.clear(WANTED | FLUSHED | AWAITS_ROOM);
        match how {
            How::Flushed => socket.set(FLUSHED),
            How::Reset => socket.set(RESET),
            How::Now => {}
        }
        if how == How::Flushed && socket.is(BEHIND | CONNECTING) && !socket.outbox.is_empty() {
            self.close_deadlines.await_progress(Instant::now(), sock, acknowledged(&self.ring, sock, socket));
        }
        let event = if socket.is(LISTENER) { self.close_listener(sock) } else { self.proceed_to_close(sock) };
        self.ready.extend(event);
    }

    /// Takes a closing socket as far as it can go now; its `Close` once nothing is in flight.
    pub(super) fn proceed_to_close(&mut self, sock: Sock) -> Option<Event> {
        let socket = self.sockets.lookup_mut(sock).filter(|socket| !socket.is(GONE))?;
        debug_assert!(socket.is(CLOSING), "only what was closed ends");
        if socket.is(FLUSHED) {
            match socket.facts().next(|| socket.expects_no_input()) {
                Step::Wait => {
                    self.mark_dirty(sock);
                    return None;
                }
                Step::Linger => {
                    self.linger(sock);
                    return None;
                }
                Step::End => socket.clear(FLUSHED),
            }
        }
        if !socket.is(SENDING) {
            self.memory.outboxes.clear(&mut socket.outbox);
        }
        if socket.is_busy() {
            if !socket.is(ENDING) {
                socket.set(ENDING);
                self.end_operations(sock);
            }
            return None;
        }
        if socket.is(RESET) {
            socket.close_with_reset();
        }
        socket.set(GONE);
        Some(Event::Close { sock })
    }

    /// Waits for the peer's end, with a receive armed whose bytes are discarded.
    fn linger(&mut self, sock: Sock) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        if !socket.is(FINISHED) {
            socket.shut(libc::SHUT_WR);
        }
        socket.set(LINGERING | FINISHED);
        self.close_deadlines.await_end(Instant::now(), sock);
        if socket.can_receive() {
            self.arm_receive(sock);
        }
    }

    /// Tells the kernel to complete what is in flight. A shutdown does so with one call, but shows the peer a clean end;
    /// and it does not end a connect.
    fn end_operations(&mut self, sock: Sock) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        if !socket.is(RESET | CONNECTING) {
            socket.shut(libc::SHUT_RDWR);
            return;
        }
        let receive = Operation::receive(groups::number(socket.share(), socket.size()));
        let flags = socket.flags;
        let send = [(SENDING, Operation::Send), (POLLING, Operation::Room), (CONNECTING, Operation::Connect)];
        for (flag, operation) in [(ARMED, receive)].into_iter().chain(send) {
            if flags & flag != 0 {
                self.cancel(operation, sock);
            }
        }
    }
}
