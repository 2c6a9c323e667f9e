//! Connections to workers: opened when a permit asks for one, kept for the next request, retired when they end.
//!
//! Each loop keeps its own, at most as many idle ones to a worker as it takes requests at a time. An idle connection has a
//! receive armed: its end or stray bytes retire it, so that a request meets a dead one as rarely as can be. What a
//! worker says about its keep-alive time is obeyed with a second to spare.

use std::io;
use std::time::Duration;

use crate::backends::{Backend, How, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::dispatch::WorkerId;
use crate::exchange::Phase;

use super::{Link, LinkState, Loop, Role, Seat};

/// What came of the wish for a connection.
pub(crate) enum Reach {
    /// A kept one, or one that is being opened.
    Link(Sock),
    /// The worker's backlog is full.
    Backlog,
    /// The worker is no longer known.
    Gone,
    /// No descriptor or entry is left here.
    Exhausted(io::Error),
}

impl Link {
    pub fn is_connecting(&self) -> bool {
        self.state == LinkState::Connecting
    }
}

impl<B: Backend> Loop<B> {
    /// A connection to that worker: the one used last, or a new one.
    pub fn reach(&mut self, worker: WorkerId, fresh: bool) -> Reach {
        let known = matches!(self.seats.get(worker.index as usize), Some(Some(seat)) if seat.worker == worker);
        if !known && !self.meet(worker) {
            return Reach::Gone;
        }
        let Some(Some(seat)) = self.seats.get_mut(worker.index as usize) else { return Reach::Gone };
        if !fresh && let Some(sock) = seat.idle.pop() {
            return Reach::Link(sock);
        }
        match self.backend.connect(&seat.target.address) {
            Ok(Some(sock)) => {
                let link =
                    Link { state: LinkState::Connecting, worker, exchange: Key::NONE, input: None, reused: false };
                self.table.put(sock, Role::Link(link));
                self.count().worker_connections.add(1);
                Reach::Link(sock)
            }
            Ok(None) => Reach::Backlog,
            Err(error) => Reach::Exhausted(error),
        }
    }

    /// Learns where a worker listens.
    fn meet(&mut self, worker: WorkerId) -> bool {
        let Some(target) = self.shared.dispatch.target(worker) else { return false };
        let index = worker.index as usize;
        if self.seats.len() <= index {
            self.seats.resize_with(index + 1, || None);
        }
        if let Some(before) = self.seats[index].replace(Seat { worker, target, idle: Vec::new() }) {
            for sock in before.idle {
                self.close_link(sock, How::Now);
            }
        }
        true
    }

    /// Keeps a connection for the next request, or closes it.
    pub fn park(&mut self, sock: Sock, timeout: Option<u32>) {
        let app = &self.shared.settings.app;
        let most = app.concurrency as usize;
        let Some(link) = self.table.link(sock) else { return };
        let seat = self.seats.get_mut(link.worker.index as usize).and_then(Option::as_mut);
        let seat = seat.filter(|seat| seat.worker == link.worker && seat.idle.len() < most);
        let (Some(seat), true, false) = (seat, app.keepalive, timeout.is_some_and(|seconds| seconds <= 1)) else {
            return self.close_link(sock, How::Now);
        };
        link.state = LinkState::Idle;
        link.exchange = Key::NONE;
        link.reused = true;
        seat.idle.push(sock);
        if let Some(seconds) = timeout {
            self.wheel.arm_after(sock.index, Duration::from_secs(u64::from(seconds) - 1));
        }
        self.backend.recv(sock, Size::Small);
    }

    pub fn close_link(&mut self, sock: Sock, how: How) {
        let Some(link) = self.table.link(sock) else { return };
        let (before, worker) = (link.state, link.worker);
        link.state = LinkState::Closing;
        link.input = None;
        if before == LinkState::Idle
            && let Some(Some(seat)) = self.seats.get_mut(worker.index as usize)
        {
            seat.idle.retain(|idle| *idle != sock);
        }
        if before != LinkState::Closing {
            self.wheel.disarm(sock.index);
            self.backend.close(sock, how);
        }
    }

    /// Forgets a worker: its idle connections close, busy ones once they are done.
    pub fn retire(&mut self, worker: WorkerId) {
        let Some(place) = self.seats.get_mut(worker.index as usize) else { return };
        if place.as_ref().is_some_and(|seat| seat.worker == worker)
            && let Some(seat) = place.take()
        {
            for sock in seat.idle {
                self.close_link(sock, How::Now);
            }
        }
    }

    pub fn link_connected(&mut self, sock: Sock) {
        let Some(link) = self.table.link(sock).filter(|link| link.is_connecting()) else { return };
        link.state = LinkState::Busy;
        let key = link.exchange;
        let Some(exchange) = self.exchanges.lookup(key).filter(|exchange| exchange.phase == Phase::Awaiting) else {
            return;
        };
        let streamed = exchange.streamed;
        self.extend_read(key);
        if streamed {
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
            LinkState::Connecting | LinkState::Busy => {
                match self.exchanges.lookup(key).map(|exchange| exchange.phase) {
                    Some(Phase::Awaiting) => self.answer_head(key, sock, block),
                    Some(Phase::Relaying) => self.answer_body(key, block),
                    Some(Phase::Tunnel) => self.tunnel_to_client(key, block),
                    Some(Phase::Abandoned) => self.backend.recv(sock, Size::Small),
                    _ => self.close_link(sock, How::Now),
                }
            }
        }
    }

    /// A deadline of a worker's connection: the worker's keep-alive time, or the end of an abandoned request.
    pub fn link_expired(&mut self, sock: Sock) {
        let Some(link) = self.table.link(sock) else { return };
        let key = link.exchange;
        match link.state {
            LinkState::Idle => self.close_link(sock, How::Now),
            LinkState::Busy
                if self.exchanges.lookup(key).is_some_and(|exchange| exchange.phase == Phase::Abandoned) =>
            {
                self.abandoned_expired(key);
            }
            _ => {}
        }
    }
}
