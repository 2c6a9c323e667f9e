//! How a socket ends: flush, linger, end what is in flight, close(2), `Close`.

use super::super::flags::Flagged;
use super::super::{Event, How, Sock};
use super::IoUring;
use super::groups;
use super::ring::Operation;
use super::socket::{
    ARMED, CLOSING, CONNECTING, EMPTIED, ENDED, ENDING, FINISH, FINISHED, FLUSHING, GONE, LINGERING, LISTENER, PARKED,
    QUIET, RECEIVE_FAILED, RESET, SEND_FAILED, SENDING, Socket, UNCONNECTED, WANTED,
};

impl IoUring {
    /// Starts to close, or makes a close in progress harsher.
    pub(super) fn begin_close(&mut self, sock: Sock, how: How) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        let again = socket.is(CLOSING);
        if socket.is(GONE) || (again && (how == How::Flushed || socket.is(LISTENER))) {
            return;
        }
        socket.set(CLOSING);
        if socket.is(ARMED | PARKED | WANTED) && !socket.is(FINISH) {
            socket.set(QUIET);
        }
        socket.clear(WANTED | FLUSHING | LINGERING);
        match how {
            How::Flushed if !again => socket.set(FLUSHING),
            How::Reset => socket.set(RESET),
            _ => {}
        }
        let listener = socket.is(LISTENER);
        self.ready.retain(|event| !concerns(event, sock));
        let event = if listener { self.close_listener(sock) } else { self.proceed_to_close(sock) };
        if self.sockets.lookup(sock).is_some_and(|socket| socket.is(FLUSHING)) {
            self.arm_deadline(sock, self.stall);
        }
        self.ready.extend(event);
    }

    /// Takes a closing socket as far as it can go now; its `Close` once nothing is in flight.
    pub(super) fn proceed_to_close(&mut self, sock: Sock) -> Option<Event> {
        if self.is_flushing(sock) || self.is_lingering(sock) {
            return None;
        }
        let socket = self.sockets.lookup_mut(sock).filter(|socket| !socket.is(GONE))?;
        debug_assert!(socket.is(CLOSING), "only what was closed ends");
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
        self.wheel.disarm(sock.index);
        Some(Event::Close { sock })
    }

    /// The patience with a closing socket's peer is over.
    pub(super) fn end_patience(&mut self, sock: Sock) {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return };
        if !socket.is(FLUSHING | LINGERING) {
            return;
        }
        if !socket.outbox.is_empty() {
            // What was cut should not look whole.
            socket.set(RESET);
        }
        socket.clear(FLUSHING | LINGERING);
        let event = self.proceed_to_close(sock);
        self.ready.extend(event);
    }

    /// Whether the close still waits for the outbox. When it is empty, decides whether to linger.
    fn is_flushing(&mut self, sock: Sock) -> bool {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return false };
        if !socket.is(FLUSHING) {
            return false;
        }
        let failed = socket.is(SEND_FAILED | UNCONNECTED);
        if !failed && (socket.is(SENDING) || !socket.outbox.is_empty()) {
            self.mark_dirty(sock);
            return true;
        }
        socket.clear(FLUSHING);
        // A receive that only was to be armed has seen nothing; but the one before it has, if it left nothing behind.
        let read_whole = |socket: &Socket| !socket.is(ARMED | PARKED) && socket.is(EMPTIED);
        let quiet = socket.is(QUIET) && (read_whole(socket) || !socket.has_unread_input());
        let quiet = quiet || socket.is(ENDED | RECEIVE_FAILED);
        if !quiet && !failed && !socket.is(CONNECTING) {
            socket.set(LINGERING);
            if !socket.is(FINISHED) {
                socket.set(FINISHED);
                socket.shut(libc::SHUT_WR);
            }
            self.arm_deadline(sock, self.linger);
        }
        false
    }

    /// Whether the close still waits for the peer's end. Keeps a receive armed, whose bytes are discarded.
    fn is_lingering(&mut self, sock: Sock) -> bool {
        let Some(socket) = self.sockets.lookup_mut(sock) else { return false };
        if !socket.is(LINGERING) {
            return false;
        }
        if socket.is(ENDED | RECEIVE_FAILED) {
            socket.clear(LINGERING);
            return false;
        }
        if socket.can_receive() {
            self.arm_receive(sock);
        }
        true
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
        for (flag, operation) in [(ARMED, receive), (SENDING, Operation::Send), (CONNECTING, Operation::Connect)] {
            if flags & flag != 0 {
                self.cancel(operation, sock);
            }
        }
    }
}

/// Whether an event is about that socket.
fn concerns(event: &Event, about: Sock) -> bool {
    match event {
        Event::Connect { sock }
        | Event::Receive { sock, .. }
        | Event::End { sock }
        | Event::Drain { sock }
        | Event::Fail { sock, .. }
        | Event::Close { sock } => *sock == about,
        Event::Accept { .. } | Event::Wake => false,
    }
}
