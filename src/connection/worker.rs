//! Connections to workers: opened when a permit asks for one, kept for the next request, retired when they end.
//!
//! Each loop keeps its own, at most as many idle ones to a worker as it takes requests at a time. An idle connection has a
//! receive armed: its end or stray bytes retire it, so that a request meets a dead one as rarely as can be. What a
//! worker says about its keep-alive time is obeyed with a second to spare.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::backends::{Backend, How, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::dispatch::{Target, WorkerId};
use crate::exchange::{Phase, Upload};

use super::Role;
use super::leftover::Leftover;
use crate::event_loop::Loop;

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
    pub app: u16,
    pub worker: WorkerId,
    /// The exchange it carries, or [`Key::NONE`].
    pub exchange: Key,
    /// Part of an answer's head.
    pub input: Option<Block>,
    pub leftover: Option<Box<Leftover>>,
}

/// A worker as this loop knows it: where it listens, and the connections kept open to it.
pub(crate) struct Seat {
    pub worker: WorkerId,
    pub target: Arc<Target>,
    pub idle: Vec<Sock>,
}

/// The workers that a loop has met, by app and by their places in its dispatch.
pub(crate) struct Seats(Vec<Vec<Option<Seat>>>);

impl Seats {
    /// Nobody was met yet.
    pub fn new(apps: usize) -> Seats {
        Seats((0..apps).map(|_| Vec::new()).collect())
    }

    /// The place of a worker, if it was met.
    #[inline]
    pub fn get(&self, app: u16, worker: WorkerId) -> Option<&Seat> {
        self.0[app as usize].get(worker.index as usize)?.as_ref().filter(|seat| seat.worker == worker)
    }

    #[inline]
    fn get_mut(&mut self, app: u16, worker: WorkerId) -> Option<&mut Seat> {
        self.0[app as usize].get_mut(worker.index as usize)?.as_mut().filter(|seat| seat.worker == worker)
    }

    /// Seats a worker, or nobody, in that place: who had it before.
    fn put(&mut self, app: u16, index: u32, seat: Option<Seat>) -> Option<Seat> {
        let seats = &mut self.0[app as usize];
        if seats.len() <= index as usize {
            seats.resize_with(index as usize + 1, || None);
        }
        std::mem::replace(&mut seats[index as usize], seat)
    }
}

impl Link {
    fn new(app: u16, worker: WorkerId) -> Link {
        let (state, exchange) = (LinkState::Connecting, Key::NONE);
        Link { state, reused: false, app, worker, exchange, input: None, leftover: None }
    }
}

impl<B: Backend> Loop<B> {
    /// Learns where a worker listens; whether it is still known.
    pub fn meet(&mut self, app: u16, worker: WorkerId) -> bool {
        if self.seats.get(app, worker).is_some() {
            return true;
        }
        let Some(target) = self.shared.apps[app as usize].dispatch.target(worker) else { return false };
        let before = self.seats.put(app, worker.index, Some(Seat { worker, target, idle: Vec::new() }));
        self.forget(before);
        true
    }

    /// A connection to a worker that was met: unless it is to be `fresh`, the one used last, or else one that is being opened. None while
    /// the worker's backlog is full. An error says that no descriptor or entry is left here.
    pub fn reach(&mut self, app: u16, worker: WorkerId, fresh: bool) -> io::Result<Option<Sock>> {
        let Some(seat) = self.seats.get_mut(app, worker) else { return Ok(None) };
        if !fresh && let Some(sock) = seat.idle.pop() {
            return Ok(Some(sock));
        }
        let Some(sock) = self.backend.connect(&seat.target.address)? else { return Ok(None) };
        self.table.put(sock, Role::Link(Link::new(app, worker)));
        self.count_app(app).worker_connections.add(1);
        Ok(Some(sock))
    }

    /// Keeps a connection for the next request, or closes it.
    pub fn park(&mut self, sock: Sock, timeout: Option<u32>) {
        let Some(link) = self.table.link(sock) else { return };
        let app = &self.shared.apps[link.app as usize].settings;
        let most = app.concurrency as usize;
        let seat = self.seats.get_mut(link.app, link.worker).filter(|seat| seat.idle.len() < most);
        let (Some(seat), true, false) = (seat, app.keepalive, timeout.is_some_and(|seconds| seconds <= 1)) else {
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
            && let Some(seat) = self.seats.get_mut(app, worker)
        {
            seat.idle.retain(|idle| *idle != sock);
        }
        if before != LinkState::Closing {
            self.time.connections.disarm(sock.index);
            self.backend.close(sock, how);
        }
    }

    /// Forgets a worker: its idle connections close, busy ones once they are done.
    pub fn retire(&mut self, app: u16, worker: WorkerId) {
        if self.seats.get(app, worker).is_some() {
            let seat = self.seats.put(app, worker.index, None);
            self.forget(seat);
        }
    }

    fn forget(&mut self, seat: Option<Seat>) {
        for sock in seat.into_iter().flat_map(|seat| seat.idle) {
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
