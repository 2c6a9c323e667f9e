//! Tunnels: after a 101, bytes flow both ways until both ways are over.
//!
//! The permit has gone back; the tunnel counts under the worker's tunnels. Each side is read while the other side's outbox is
//! short. A way is over when its sender has ended, which is passed on as a half-close, or when its receiver takes no more: what still
//! comes for that one is dropped, while all that it had sent is passed on (RFC 9110 §9.3.6). When both ways are over, or a receive
//! failed or nothing moved for the idle timeout, both connections are closed.

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
        exchange.phase = Phase::Tunnel { over: None };
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
            self.tunnel_way_ended(key, true);
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
        let (client, link, Phase::Tunnel { over }) = (exchange.stream.connection, exchange.link(), exchange.phase)
        else {
            return;
        };
        self.tunnel_way(client, link, over == Some(true));
        self.tunnel_way(link, client, over == Some(false));
    }

    /// A way that is over is read to its end, whatever still waits for its receiver.
    fn tunnel_way(&mut self, from: Sock, to: Sock, is_over: bool) {
        let unsent = self.unsent(to);
        if is_over || (unsent <= HIGH_MARK && (unsent == 0 || self.memory.has_room())) {
            self.backend.recv(from, Size::Small);
        } else {
            self.backend.await_room(to);
        }
    }

    /// The way from the client is over, or else the one from the worker. Whether there is a tunnel.
    pub fn tunnel_way_ended(&mut self, key: Key, from_client: bool) -> bool {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return false };
        let other = if from_client { exchange.link() } else { exchange.stream.connection };
        let Phase::Tunnel { over } = &mut exchange.phase else { return false };
        match over.replace(from_client) {
            None => self.finish_sending(other),
            Some(before) if before != from_client => self.finish(key, Ending::Left { how: How::Flushed }),
            Some(_) => {}
        }
        self.continue_tunnel(key);
        true
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
        // Whoever is sending still is not to lose what it was sent to a reset.
        self.backend.finish(link);
        self.close_link(link, How::Flushed);
        self.count().active_tunnels.decrement();
    }
}
