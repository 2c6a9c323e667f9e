//! Tunnels: after a 101, bytes flow both ways until either side ends.
//!
//! The permit has gone back; the tunnel counts under the worker's tunnels. Each side is read while the other side's outbox is
//! short. An end of one side is passed on as a half-close; when both have ended, or one failed or nothing moved for the idle
//! timeout, both connections are closed.

use crate::backends::{Backend, HIGH_MARK, How, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::connection::{Loop, State};
use crate::dispatch::Outcome;
use crate::http::head::Response;
use crate::http::rewrite::{self, Answer, Rewritten};
use crate::planted::{self, Bug};

use super::start::id_text;
use super::{Phase, Reader};

impl<B: Backend> Loop<B> {
    pub fn begin_tunnel(&mut self, key: Key, mut input: Block, response: &Response) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if exchange.worker.is_some_and(|worker| !self.shared.dispatch.tunnel_room(worker)) {
            self.drop_link(key, How::Now);
            self.give_back(key, Outcome::Unused);
            return self.fail(key, 503, "the worker has as many tunnels as it may");
        }
        exchange.phase = Phase::Tunnel;
        exchange.status = 101;
        (exchange.upload, exchange.answer) = (Reader::UntilClose, Reader::UntilClose);
        exchange.finished = Some(self.now);
        let sock = exchange.client;
        let answer = Answer {
            date: &self.clock.date,
            request_id: &id_text(exchange.id),
            client: exchange.version,
            keep_alive: true,
            framing: Rewritten::Same,
            upgrade: true,
        };
        let room = rewrite::response_room(response, &self.fields, &answer);
        let piece = self.scratch.write(room, |out| rewrite::response(out, &input, response, &self.fields, &answer));
        self.become_state(sock, State::WritingResponse);
        self.send_client(sock, piece.into());
        self.log_exchange(key);
        self.count().tunnels.add(1);
        self.count().active_tunnels.increment();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.release_request(false);
        self.give_back(key, Outcome::Tunnel);
        input.advance(response.len);
        if !input.is_empty() {
            self.send_client(sock, input.into());
        }
        // What the client sent behind its request already belongs to the tunnel.
        if let Some(early) = self.table.client(sock).and_then(|client| client.input.take()) {
            self.tunnel_to_worker(key, early);
        }
        self.continue_tunnel(key);
        // An end comes once, and this client's came before its tunnel did.
        if self.table.client(sock).is_some_and(|client| client.ended) {
            self.tunnel_client_ended(key);
        }
    }

    pub fn tunnel_to_worker(&mut self, key: Key, block: Block) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        self.backend.send(exchange.link, self.light(block).into());
        self.continue_tunnel(key);
    }

    pub fn tunnel_to_client(&mut self, key: Key, block: Block) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.bytes += block.len() as u64;
        let client = exchange.client;
        let piece = self.light(block).into();
        self.send_client(client, piece);
        self.continue_tunnel(key);
    }

    /// Messages are small and blocks are not: what would wait in a mostly empty block is copied when blocks are scarce.
    fn light(&self, block: Block) -> Block {
        if self.pool.scarce() && block.wasteful() { block.settle(&self.pool) } else { block }
    }

    /// Arms the receive of each side whose other side keeps up.
    fn continue_tunnel(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (client, link) = (exchange.client, exchange.link);
        if self.backend.unsent(link) <= HIGH_MARK {
            self.backend.recv(client, Size::Small);
        }
        if self.backend.unsent(client) <= HIGH_MARK {
            self.backend.recv(link, Size::Small);
        }
        self.arm(client, self.shared.settings.timeouts.idle);
    }

    pub fn tunnel_drained(&mut self, key: Key, _sock: Sock) {
        self.continue_tunnel(key);
    }

    /// The client's end is passed on; the worker may still send.
    pub fn tunnel_client_ended(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.upload = Reader::Done;
        let link = exchange.link;
        if exchange.answer.is_done() {
            return self.end_tunnel(key);
        }
        self.backend.finish(link);
    }

    /// The worker's end is passed on; the client may still send.
    pub fn tunnel_worker_ended(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.answer = Reader::Done;
        let client = exchange.client;
        if exchange.upload.is_done() {
            return self.end_tunnel(key);
        }
        self.backend.finish(client);
    }

    /// Closes both sides.
    pub fn end_tunnel(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (client, worker) = (exchange.client, exchange.worker);
        self.drop_link(key, How::Flushed);
        self.exchanges.discard(key);
        if let Some(worker) = worker {
            self.count().active_tunnels.decrement();
            if !planted::active(Bug::ForgottenTunnel) {
                self.shared.dispatch.tunnel_ended(worker);
            }
        }
        if let Some(entry) = self.table.client(client) {
            entry.exchange = Key::NONE;
            self.close_client(client, How::Flushed);
        }
    }
}
