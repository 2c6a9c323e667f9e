//! Tunnels: after a 101, bytes flow both ways until either side ends.
//!
//! The permit has gone back; the tunnel counts under the worker's tunnels. Each side is read while the other side's outbox is
//! short. An end of one side is passed on as a half-close; when both have ended, or one failed or nothing moved for the idle
//! timeout, both connections are closed.

use crate::backends::{Backend, HIGH_MARK, How, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::dispatch::Outcome;
use crate::event_loop::Loop;
use crate::http::head::Response;
use crate::planted::{self, Bug};

use super::{Ending, Phase, Upload};

impl<B: Backend> Loop<B> {
    pub fn begin_tunnel(&mut self, key: Key, mut input: Block, response: &Response) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.phase = Phase::Tunnel { half_closed: false };
        exchange.answer.status = 101;
        exchange.times.finished = Some(now);
        exchange.request.upload = Upload::Sent;
        let (stream, id, app) = (exchange.stream, exchange.request.id, exchange.app.count);
        self.stream_head(stream, &id, &input, response, 0, None);
        self.account(key, false);
        self.count().app(app).tunnels.add(1);
        self.count().active_tunnels.increment();
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            exchange.request.release(false);
        }
        self.give_back(key, Outcome::Tunnel);
        input.advance(response.len);
        if !input.is_empty() {
            self.send(stream.connection, input.into());
        }
        // What the client sent behind its request already belongs to the tunnel.
        if let Some(early) = self.table.client(stream.connection).and_then(|client| client.input.take()) {
            self.tunnel_to_worker(key, early);
        }
        self.heard(key);
        self.continue_tunnel(key);
        // An end comes once, and this client's came before its tunnel did.
        if self.table.client(stream.connection).is_some_and(|client| client.ended) {
            self.tunnel_side_ended(key, true);
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
        self.send(connection, block.into());
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
        let unsent = self.unsent(to);
        if unsent <= HIGH_MARK && (unsent == 0 || self.memory.has_room()) {
            self.backend.recv(from, Size::Small);
        } else {
            self.backend.await_room(to);
        }
    }

    /// The end of the client's side, or else of the worker's, is passed on; the other may still send.
    pub fn tunnel_side_ended(&mut self, key: Key, client: bool) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let other = if client { exchange.link() } else { exchange.stream.connection };
        let Phase::Tunnel { half_closed } = &mut exchange.phase else { return };
        if std::mem::replace(half_closed, true) {
            return self.finish(key, Ending::Left { how: How::Flushed });
        }
        self.finish_sending(other);
    }

    /// Gives a tunnel's part of its worker back.
    pub fn end_tunnel(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let link = std::mem::take(&mut exchange.source).link();
        if let Some(worker) = exchange.attempt.worker
            && !planted::active(Bug::ForgottenTunnel)
        {
            exchange.app.dispatch.tunnel_ended(worker);
        }
        self.close_link(link, How::Flushed);
        self.count().active_tunnels.decrement();
    }
}
