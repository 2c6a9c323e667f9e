//! Tunnels: after a 101, bytes flow both ways until either side ends.
//!
//! The permit has gone back; the tunnel counts under the worker's tunnels. Each side is read while the other side's outbox is
//! short. An end of one side is passed on as a half-close; when both have ended, or one failed or nothing moved for the idle
//! timeout, both connections are closed.

use crate::backends::{Backend, HIGH_MARK, How, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::connection::Loop;
use crate::dispatch::Outcome;
use crate::http::head::Response;
use crate::planted::{self, Bug};

use super::{Ending, Fate, Phase, Upload};

impl<B: Backend> Loop<B> {
    pub fn begin_tunnel(&mut self, key: Key, mut input: Block, response: &Response) {
        let now = self.time.now;
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if exchange.attempt.worker.is_some_and(|worker| !self.dispatch_of(exchange).tunnel_room(worker)) {
            let detail = "the worker has as many tunnels as it may: --max-tunnels";
            return self.finish(key, Ending::Refused { status: 503, detail, fate: Fate::Unused });
        }
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.phase = Phase::Tunnel { client_ended: false, worker_ended: false };
        exchange.answer.status = 101;
        exchange.times.finished = Some(now);
        exchange.request.upload = Upload::Sent;
        let (stream, id) = (exchange.stream, exchange.request.id);
        self.stream_switch(stream, id, &input, response);
        self.account(key, false);
        self.count().tunnels.add(1);
        self.count().active_tunnels.increment();
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            exchange.request.release(false);
        }
        self.give_back(key, Outcome::Tunnel);
        input.advance(response.len);
        if !input.is_empty() {
            self.send_client(stream.connection, input.into());
        }
        // What the client sent behind its request already belongs to the tunnel.
        if let Some(early) = self.table.client(stream.connection).and_then(|client| client.input.take()) {
            self.tunnel_to_worker(key, early);
        }
        self.heard(key);
        self.continue_tunnel(key);
        // An end comes once, and this client's came before its tunnel did.
        if self.table.client(stream.connection).is_some_and(|client| client.ended) {
            self.tunnel_client_ended(key);
        }
    }

    pub fn tunnel_to_worker(&mut self, key: Key, block: Block) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        self.backend.send(exchange.link(), block.into());
        self.heard(key);
        self.continue_tunnel(key);
    }

    pub fn tunnel_to_client(&mut self, key: Key, block: Block) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.answer.bytes += block.len() as u64;
        let connection = exchange.stream.connection;
        self.send_client(connection, block.into());
        if let Some(exchange) = self.exchanges.lookup(key) {
            self.note_move(exchange);
        }
        self.heard(key);
        self.continue_tunnel(key);
    }

    /// Arms the receive of each side whose other side keeps up.
    pub fn continue_tunnel(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (client, link) = (exchange.stream.connection, exchange.link());
        self.tunnel_way(client, link);
        self.tunnel_way(link, client);
    }

    fn tunnel_way(&mut self, from: Sock, to: Sock) {
        let unsent = self.backend.unsent(to);
        if unsent <= HIGH_MARK && (unsent == 0 || self.memory.has_room()) {
            self.backend.recv(from, Size::Small);
        } else {
            self.backend.await_room(to);
        }
    }

    /// The client's end is passed on; the worker may still send.
    pub fn tunnel_client_ended(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let link = exchange.link();
        let Phase::Tunnel { client_ended, worker_ended } = &mut exchange.phase else { return };
        *client_ended = true;
        if *worker_ended { self.finish(key, Ending::TunnelOver) } else { self.backend.finish(link) }
    }

    /// The worker's end is passed on; the client may still send.
    pub fn tunnel_worker_ended(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let connection = exchange.stream.connection;
        let Phase::Tunnel { client_ended, worker_ended } = &mut exchange.phase else { return };
        *worker_ended = true;
        if *client_ended { self.finish(key, Ending::TunnelOver) } else { self.backend.finish(connection) }
    }

    /// Gives a tunnel's part of its worker back.
    pub fn end_tunnel(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let link = std::mem::take(&mut exchange.source).link();
        let (app, worker) = (exchange.app, exchange.attempt.worker);
        self.close_link(link, How::Flushed);
        self.count().active_tunnels.decrement();
        if let Some(worker) = worker
            && !planted::active(Bug::ForgottenTunnel)
        {
            self.shared.apps[app as usize].dispatch.tunnel_ended(worker);
        }
    }
}
