//! Connections to workers: opened when a permit asks for one, kept for the next request, retired when they end.
//!
//! Each loop keeps its own, at most as many idle ones to a worker as it takes requests at a time. An idle connection has a
//! receive armed: its end or stray bytes retire it, so that a request meets a dead one as rarely as can be. What a
//! worker says about its keep-alive time is obeyed with a second to spare.

use std::io;
use std::time::Duration;

use crate::apps::App;
use crate::backends::{Backend, How, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::dispatch::{AppId, WorkerId};
use crate::exchange::{Phase, Upload};

use super::Role;
use super::leftover::Leftover;
use crate::event_loop::{Loop, Seat};

/// What a worker's connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// connect(2) has not come back yet.
    Connecting,
    /// Kept open for the next request.
    Idle,
    /// It carries an exchange.
    Busy,
    /// Its exchange has ended without it (`leftover.rs`).
    Leftover,
    /// Being closed.
    Closing,
}

/// A connection to a worker.
pub(crate) struct Link {
    pub state: LinkState,
    /// Whether a request has been answered over it before.
    pub reused: bool,
    pub app: AppId,
    pub worker: WorkerId,
    /// The exchange it carries, or [`Key::NONE`].
    pub exchange: Key,
    /// Part of an answer's head.
    pub input: Option<Block>,
    pub leftover: Option<Box<Leftover>>,
}

impl Link {
    fn new(app: AppId, worker: WorkerId) -> Link {
        let (state, exchange) = (LinkState::Connecting, Key::NONE);
        Link { state, reused: false, app, worker, exchange, input: None, leftover: None }
    }
}

impl<B: Backend> Loop<B> {
    /// Learns where a worker listens; whether it is still known.
    pub fn meet(&mut self, app: &App, worker: WorkerId) -> bool {
        if self.apps.seat(app.id, worker).is_some() {
            return true;
        }
        let Some(target) = app.dispatch.target(worker) else { return false };
        let before = self.apps.put_seat(app.id, Seat { worker, target, idle: Vec::new() });
        self.forget(before);
        true
    }

    /// A new connection to a worker that was met. None while the worker's backlog is full. An error says that no descriptor or entry is left here.
    pub fn reach(&mut self, app: &App, worker: WorkerId) -> io::Result<Option<Sock>> {
        let Some(seat) = self.apps.seat(app.id, worker) else { return Ok(None) };
        let Some(sock) = self.backend.connect(&seat.target.address)? else { return Ok(None) };
        self.table.put(sock, Role::Link(Link::new(app.id, worker)));
        self.count().app(app.count).worker_connections.add(1);
        Ok(Some(sock))
    }

    /// Keeps a connection for the next request, where its worker has less than `most` of them; or closes it.
    pub fn park(&mut self, sock: Sock, most: usize, timeout: Option<u32>) {
        let Some(link) = self.table.link(sock) else { return };
        let seat = self.apps.seat_mut(link.app, link.worker).filter(|seat| seat.idle.len() < most);
        let (Some(seat), false) = (seat, timeout.is_some_and(|seconds| seconds <= 1)) else {
            return self.close_link(sock, How::Now);
        };
        link.state = LinkState::Idle;
        link.exchange = Key::NONE;
        link.reused = true;
        seat.idle.push(sock);
        if let Some(seconds) = timeout {
            self.time.connections.arm_after(sock.index, Duration::from_secs(u64::from(seconds) - 1));
        }
        self.backend.recv(sock, Size::Small);
    }

    pub fn close_link(&mut self, sock: Sock, how: How) {
        let Some(link) = self.table.link(sock) else { return };
        let (before, app, worker) = (link.state, link.app, link.worker);
        debug_assert!(link.leftover.is_none(), "a connection closes with a permit in it");
        link.state = LinkState::Closing;
        link.input = None;
        if before == LinkState::Idle
            && let Some(seat) = self.apps.seat_mut(app, worker)
        {
            seat.idle.retain(|idle| *idle != sock);
        }
        if before != LinkState::Closing {
            self.time.connections.disarm(sock.index);
            self.backend.close(sock, how);
        }
    }

    /// Forgets a worker: its idle connections close, busy ones once they are done.
    pub fn retire(&mut self, app: AppId, worker: WorkerId) {
        let seat = self.apps.take_seat(app, worker);
        self.forget(seat);
    }

    /// Closes the idle connections to workers that are not known any more.
    pub fn forget(&mut self, seats: impl IntoIterator<Item = Seat>) {
        for sock in seats.into_iter().flat_map(|seat| seat.idle) {
            self.close_link(sock, How::Now);
        }
    }

    pub fn link_connected(&mut self, sock: Sock) {
        let Some(link) = self.table.link(sock).filter(|link| link.state == LinkState::Connecting) else { return };
        link.state = LinkState::Busy;
        let key = link.exchange;
        let Some(exchange) = self.exchanges.lookup(key).filter(|exchange| exchange.phase == Phase::Awaiting) else {
            return;
        };
        let held = exchange.request.upload == Upload::Held;
        self.heard(key);
        if held {
            self.send_message(key, sock);
        }
    }

    pub fn link_received(&mut self, sock: Sock, block: Block) {
        let Some(link) = self.table.link(sock) else { return };
        let key = link.exchange;
        match link.state {
            // Nobody asked for these bytes: an answer out of turn must never meet the next request.
            LinkState::Idle => self.close_link(sock, How::Now),
            LinkState::Closing => {}
            LinkState::Leftover => self.leftover_received(sock, block),
            LinkState::Connecting | LinkState::Busy => {
                match self.exchanges.lookup(key).map(|exchange| exchange.phase) {
                    Some(Phase::Awaiting) => self.answer_head(key, sock, block),
                    Some(Phase::Relaying) => self.answer_body(key, block),
                    Some(Phase::Tunnel { .. }) => self.tunnel_to_client(key, block),
                    _ => self.close_link(sock, How::Now),
                }
            }
        }
    }

    /// A deadline of a worker's connection: the worker's keep-alive time, or the end of a leftover.
    pub fn link_expired(&mut self, sock: Sock) {
        match self.table.link(sock).map(|link| link.state) {
            Some(LinkState::Idle) => self.close_link(sock, How::Now),
            Some(LinkState::Leftover) => self.leftover_expired(sock),
            _ => {}
        }
    }
}
