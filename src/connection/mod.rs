//! Connections: bytes and framing, on the side of the clients and on that of the workers.
//!
//! A connection lives and dies on the loop that accepted or opened it. This module owns the loop's state, [`Loop`]; `exchange`
//! carries one request and its answer from a client's connection to a worker's.
//!
//! | file | what |
//! |---|---|
//! | `table` | the connection array |
//! | `admission` | listeners, and the limit on connections |
//! | `client` | what happens to a client's connection, and its timer |
//! | `request` | from bytes to requests |
//! | `stream` | how an answer reaches its client: the surface that exchanges write to |
//! | `worker` | connections to workers, and their reuse |
//! | `leftover` | what a worker still does for a request that has ended without it |
//! | `memory` | where bytes are that wait, and who goes on when memory comes back |
//!
//! Rules:
//! - The array is indexed by the socket's own index, and an entry is freed at [`Event::Close`](crate::backends::Event::Close) only.
//! - A client's public life is [`State`]; one function assigns it, and asserts that the move is allowed.
//! - Handlers never call each other in circles: what must be looked at again goes onto a list that the reactor works off
//!   after each event ([`Loop::work_off`]).

mod admission;
mod client;
mod leftover;
mod memory;
mod request;
mod stream;
mod table;
mod worker;

pub(crate) use admission::{Accepting, Listener};
pub use admission::{Admission, Scheme};
pub(crate) use client::Client;
pub(crate) use memory::Memory;
pub use memory::{RESERVED_SHARE, Scarcity};
pub(crate) use stream::{Http1, Stream};
pub(crate) use table::{Kind, Table};
pub(crate) use worker::{Link, LinkState, Reach, Seat};

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backends::{Backend, How, Piece, Size, Sock};
use crate::buffers::slots::{Key, Slots};
use crate::buffers::wheel::Wheel;
use crate::config::{self, Settings};
use crate::day::Day;
use crate::dispatch::{Dispatch, Grant, Streams};
use crate::exchange::Exchange;
use crate::http::fields::Fields;
use crate::http::head::HeadLimits;
use crate::http::reply;
use crate::log::{AccessLog, Log};
use crate::mailbox::Postboxes;
use crate::metrics::{ConnectionState, Counters, Metrics};

/// A client connection's public life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum State {
    /// Just accepted.
    Accepting,
    /// Waiting for a request, or in the middle of its head.
    ReadingRequest,
    /// A request is being collected, is queued, or is with a worker.
    Processing,
    /// The head of the answer has been written.
    WritingResponse,
    /// Being closed; what is queued may still leave.
    Closing,
    /// Closed: nothing is in flight, the entry is free.
    Closed,
}

impl State {
    /// Which gauge counts connections in this state; none for those that are closed.
    fn gauge(self) -> Option<ConnectionState> {
        ConnectionState::ALL.get(self as usize).copied()
    }

    /// Whether a connection may go from this state to `next`.
    pub fn may_become(self, next: State) -> bool {
        use State::*;
        matches!(
            (self, next),
            (Accepting, ReadingRequest | Closing | Closed)
                | (ReadingRequest, Processing | WritingResponse | Closing | Closed)
                | (Processing, WritingResponse | Closing | Closed)
                | (WritingResponse, ReadingRequest | Closing | Closed)
                | (Closing, Closed)
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

/// An app as the loops know it.
pub struct App {
    /// Its part of the checked configuration.
    pub settings: config::App,
    /// Its permits and its waiting queue.
    pub dispatch: Arc<Dispatch>,
    /// Its event streams that hold permits.
    pub streams: Streams,
}

impl App {
    /// An app without streams yet.
    pub fn new(settings: config::App, dispatch: Arc<Dispatch>) -> App {
        App { settings, dispatch, streams: Streams::default() }
    }
}

/// What all loops of a server share.
pub struct Shared {
    /// The checked configuration.
    pub settings: Arc<Settings>,
    /// The apps; exchanges and listeners name them by their index.
    pub apps: Vec<App>,
    /// The way to every loop.
    pub postboxes: Postboxes,
    /// Where events are told.
    pub log: Log,
    /// How many connections there are in all loops.
    pub admission: Admission,
    /// Whether answers wait for memory.
    pub scarcity: Scarcity,
    /// The answer of `--respond`.
    pub direct: Option<reply::Direct>,
    /// Writes the `/status` document.
    pub status: Box<dyn Fn() -> String + Send + Sync>,
}

/// What time it is, and what is due when.
pub(crate) struct Time {
    /// The turn's.
    pub now: Instant,
    pub day: Day,
    /// Deadlines of connections, by socket.
    pub connections: Wheel,
    /// Deadlines of exchanges, by entry. Never taken away, but found void.
    pub exchanges: Wheel,
}

impl Time {
    /// Begins a turn.
    #[inline]
    pub fn turn(&mut self, now: Instant) {
        self.now = now;
        let nanos = self.connections.turn(now);
        self.exchanges.turn_at(nanos);
        self.day.tick(nanos);
    }

    /// How long the loop may sleep before something is due.
    #[inline]
    pub fn sleep(&self) -> Option<Duration> {
        let until = self.connections.looks_at().min(self.exchanges.looks_at());
        (until < u64::MAX).then(|| Duration::from_nanos(until.saturating_sub(self.nanos())))
    }

    /// The turn's, in nanoseconds since the loop's start: for what is compared more often than is cheap with `Instant`.
    #[inline]
    pub fn nanos(&self) -> u64 {
        self.connections.now_nanos()
    }

    /// The time of the turn when it was so many nanoseconds after the loop's start.
    pub fn instant(&self, nanos: u64) -> Instant {
        self.now.checked_sub(Duration::from_nanos(self.nanos() - nanos)).unwrap_or(self.now)
    }
}

/// How heads are parsed.
pub(crate) struct Heads {
    pub limits: HeadLimits,
    /// The fields of the head in hand.
    pub fields: Fields,
}

impl Heads {
    pub fn new(settings: &Settings) -> Heads {
        Heads { limits: HeadLimits::new(settings.max_head, settings.max_fields), fields: Fields::default() }
    }
}

/// Something that the handler of an event has left to be done.
pub(crate) enum Task {
    /// A permit came to an exchange of this loop.
    Start(Grant),
    /// An exchange asks for a permit again.
    Ask(Key),
    /// A client's input can be looked at again.
    Resume(Sock),
}

/// One loop's state: everything that its handlers work on.
pub(crate) struct Loop<B: Backend> {
    pub backend: B,
    pub shared: Arc<Shared>,
    pub index: u16,
    pub table: Table,
    pub exchanges: Slots<Exchange>,
    pub time: Time,
    pub memory: Memory,
    pub heads: Heads,
    /// The workers that this loop has met, by app and by their places in its dispatch.
    pub seats: Vec<Vec<Option<Seat>>>,
    /// The connection that is worked on, which a panic is to cost; [`Key::NONE`] for what concerns none.
    pub subject: Sock,
    /// The next request's id: a random start, so that ids of two loops or two servers do not meet.
    pub next_id: u64,
    pub accepting: Accepting,
    pub metrics: Metrics,
    pub access: AccessLog,
    /// What the handlers have left to be done, in this order.
    pub work: VecDeque<Task>,
}

impl<B: Backend> Loop<B> {
    #[inline]
    pub fn count(&self) -> &Counters {
        self.metrics.of_loop(self.index as usize)
    }

    /// The one place where a client's state is assigned.
    #[inline]
    pub fn become_state(&mut self, sock: Sock, next: State) {
        let Some(client) = self.table.client(sock) else { return };
        let before = std::mem::replace(&mut client.state, next);
        debug_assert!(before.may_become(next), "a connection went from {before:?} to {next:?}");
        self.count().moved(before.gauge(), next.gauge());
    }

    /// Queues bytes for a client.
    #[inline]
    pub fn send_client(&mut self, sock: Sock, piece: Piece) {
        self.backend.send(sock, piece);
    }

    /// What must hold between two turns: exchanges and connections name each other, and the pool's blocks are where they may be.
    #[cfg(debug_assertions)]
    pub fn check_invariants(&mut self) {
        debug_assert!(self.work.is_empty(), "work was left undone");
        for (key, exchange) in self.exchanges.iter() {
            let phase = exchange.phase;
            let named = self.table.client(exchange.stream.connection).is_some_and(|client| client.exchange == key);
            debug_assert!(named, "the client of an exchange in {phase:?} does not know it");
            let link = exchange.link();
            let named = link == Key::NONE || self.table.link(link).is_some_and(|link| link.exchange == key);
            debug_assert!(named, "the worker's connection of an exchange in {phase:?} does not know it");
        }
        for app in &self.shared.apps {
            app.dispatch.check_invariants();
        }
        self.check_blocks();
    }

    /// Works off what the handlers of an event have left: permits granted, permits to ask for, input to read.
    #[inline]
    pub fn work_off(&mut self) {
        while let Some(task) = self.work.pop_front() {
            self.do_task(task);
        }
    }

    #[inline(never)]
    fn do_task(&mut self, task: Task) {
        match task {
            Task::Start(grant) => {
                self.concern(grant.waiter.exchange);
                self.granted(grant);
            }
            Task::Ask(key) => {
                self.concern(key);
                self.acquire(key, true);
            }
            Task::Resume(sock) => {
                self.subject = sock;
                self.resume_client(sock);
            }
        }
    }

    /// Notes that an exchange is worked on: a panic is to cost its client.
    pub fn concern(&mut self, exchange: Key) {
        self.subject = self.exchanges.lookup(exchange).map_or(Key::NONE, |exchange| exchange.stream.connection);
    }

    /// Closes a client's connection, whose exchange has ended.
    pub fn close_client(&mut self, sock: Sock, how: How) {
        let Some(client) = self.table.client(sock) else { return };
        if matches!(client.state, State::Closing | State::Closed) {
            if how != How::Flushed {
                self.backend.close(sock, how);
            }
            return;
        }
        debug_assert!(client.exchange == Key::NONE, "a client was closed under its exchange");
        client.input = None;
        client.body = None;
        self.become_state(sock, State::Closing);
        self.time.connections.disarm(sock.index);
        self.backend.close(sock, how);
    }

    /// Closes a connection whose last request is answered. With a receive armed the backend expects no more input, and spares
    /// the linger, unless bytes are here that nobody has read, or a drain ends a connection whose client reads an answer that
    /// promised to go on, and may have begun its next request.
    pub fn close_answered(&mut self, sock: Sock) {
        let may_go_on = self.sends_away() && self.backend.unsent(sock) > 0;
        let Some(client) = self.table.client(sock) else { return };
        if client.input.is_none() && client.body.is_none() && !may_go_on {
            self.backend.recv(sock, Size::Small);
        }
        self.close_client(sock, How::Flushed);
    }

    /// Closes a client's connection in the middle of its request: it may be sending, and is to read the answer nevertheless. The
    /// half-close says to the backend that the peer is worth waiting for, although nothing of it waits to be read now.
    pub fn close_sending_client(&mut self, sock: Sock) {
        self.backend.finish(sock);
        self.close_client(sock, How::Flushed);
    }

    /// The backend is done with a socket: the entry is free.
    pub fn closed(&mut self, sock: Sock) {
        self.time.connections.disarm(sock.index);
        match self.table.take(sock) {
            Role::Client(client) => {
                debug_assert!(client.state.may_become(State::Closed));
                self.count().moved(client.state.gauge(), None);
                self.count().active_connections.decrement();
                self.departed();
            }
            Role::Link(link) => debug_assert!(link.state == LinkState::Closing),
            Role::Listener(_) | Role::Free => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_connection_becomes_nothing() {
        use State::*;
        for next in [Accepting, ReadingRequest, Processing, WritingResponse, Closing, Closed] {
            assert!(!Closed.may_become(next));
            assert!(next == Closed || !Closing.may_become(next));
        }
    }
}
