//! Connections: bytes and framing, on the side of the clients and on that of the workers.
//!
//! A connection lives and dies on the loop that accepted or opened it. `exchange` carries one request and its answer from a client's
//! connection to a worker's.
//!
//! | file | what |
//! |---|---|
//! | `table` | the connection array |
//! | `client` | what happens to a client's connection, and its timer |
//! | `request` | from bytes to requests |
//! | `stream` | how an answer reaches its client: the surface that exchanges write to |
//! | `worker` | connections to workers, and their reuse |
//! | `leftover` | what a worker still does for a request that has ended without it |
//!
//! Rules:
//! - The array is indexed by the socket's own index, and an entry is freed at [`Event::Close`](crate::backends::Event::Close) only.
//! - A client's public life is [`State`]; one function assigns it, and asserts that the move is allowed.

mod client;
mod leftover;
mod request;
mod stream;
mod table;
mod worker;

pub(crate) use client::Client;
pub(crate) use stream::Stream;
pub(crate) use table::Table;
pub(crate) use worker::{Link, LinkState};

use crate::backends::{Backend, How, Size, Sock};
use crate::buffers::slots::Key;
use crate::event_loop::Loop;
/// A client connection's public life.
pub use crate::metrics::ConnectionState as State;

impl State {
    /// Whether a connection may go from this state to `next`; back to reading, once another app was asked. From every one it may end.
    pub fn may_become(self, next: State) -> bool {
        use State::*;
        matches!(
            (self, next),
            (Accepting, ReadingRequest | Closing)
                | (ReadingRequest, Processing | WritingResponse | Closing)
                | (Processing, WritingResponse | ReadingRequest | Closing)
                | (WritingResponse, ReadingRequest | Closing)
        )
    }
}

/// Who a socket of the table belongs to.
pub(crate) enum Role {
    Free,
    Listener(u16),
    Client(Client),
    Link(Link),
}

impl<B: Backend> Loop<B> {
    /// The one place where a client's state is assigned.
    #[inline]
    pub fn become_state(&mut self, sock: Sock, next: State) {
        let Some(client) = self.table.client(sock) else { return };
        let before = std::mem::replace(&mut client.state, next);
        debug_assert!(before.may_become(next), "a connection went from {before:?} to {next:?}");
        self.count().moved(Some(before), Some(next));
    }

    /// Closes a client's connection, whose exchange has ended. Of one that closes already, what is left of a whole answer is cut.
    ///
    /// A client that is told something may still be sending, whose bytes must not reset that. The half-close says to the backend that it is
    /// worth waiting for, although nothing of it waits to be read now.
    pub fn close_client(&mut self, sock: Sock, how: How) {
        if how == How::Flushed {
            self.finish_sending(sock);
        }
        self.end_client(sock, how);
    }

    fn end_client(&mut self, sock: Sock, how: How) {
        let Some(client) = self.table.client(sock) else { return };
        if client.state == State::Closing {
            let looks_whole = client.http.ends_with_connection() && self.unsent(sock) > 0;
            if how != How::Flushed {
                self.backend.close(sock, if looks_whole { How::Reset } else { how });
            }
            return;
        }
        if client.subscriber.is_some() {
            self.stop_subscriber(sock);
        }
        let Some(client) = self.table.client(sock) else { return };
        debug_assert!(client.exchange == Key::NONE, "a client was closed under its exchange");
        client.input = None;
        client.body = None;
        self.become_state(sock, State::Closing);
        self.time.connections.disarm(sock.index);
        self.end_session(sock, how);
        self.backend.close(sock, how);
    }

    /// Closes a connection whose last request is answered. With a receive armed the backend expects no more input, and spares
    /// the linger, unless bytes are here that nobody has read, or a client that still reads may send some: one that begins its next request, where
    /// it `may_go_on` by its last, or behind an answer that promised so, as a drain ends the connection, or the word of TLS that it has finished.
    pub fn close_answered(&mut self, sock: Sock, may_go_on: bool) {
        let sent_away = self.accepting.draining || self.sends_away() || self.is_secure(sock);
        let may_go_on = may_go_on || (sent_away && self.unsent(sock) > 0);
        let Some(client) = self.table.client(sock) else { return };
        if may_go_on || client.input.is_some() || client.body.is_some() {
            return self.close_client(sock, How::Flushed);
        }
        self.backend.recv(sock, Size::Small);
        self.end_client(sock, How::Flushed);
    }

    /// The backend is done with a socket: the entry is free.
    pub fn closed(&mut self, sock: Sock) {
        self.time.connections.disarm(sock.index);
        self.end_session(sock, How::Now);
        match self.table.take(sock) {
            Role::Client(client) => {
                self.count().moved(Some(client.state), None);
                self.departed(client.entrance.counted.then_some(client.arrival.peer));
            }
            Role::Link(link) => debug_assert!(link.state == LinkState::Closing),
            Role::Listener(index) => self.accepting.listener_closed(index),
            Role::Free => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closing_connection_becomes_nothing_else() {
        assert!(State::ALL.iter().all(|next| !State::Closing.may_become(*next)));
        assert!(State::ALL.iter().all(|next| !next.may_become(State::Accepting)));
    }
}
