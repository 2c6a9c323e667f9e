//! What happens to a client's connection: accepted, bytes, its end, failures, timeouts.
//!
//! While a request is being answered the receive stays armed, so that a departure is seen; what comes meanwhile is kept on the
//! heap up to [`PIPELINE_BYTES`]. A head has one deadline from its first byte on, however the bytes trickle in.

use crate::backends::{Backend, HIGH_MARK, How, Peer, Side, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::exchange::Phase;
use crate::http::head::HeadSearch;

use super::{Client, Kind, Loop, PIPELINE_BYTES, Role, State};

impl<B: Backend> Loop<B> {
    pub fn accepted(&mut self, listener: Sock, sock: Sock, peer: Peer) {
        let Kind::Listener(index) = self.table.kind(listener) else {
            debug_assert!(false, "accepted by an unknown listener");
            return self.backend.close(sock, How::Now);
        };
        let client = Client {
            state: State::Accepting,
            ended: false,
            stalled: false,
            listener: index,
            peer,
            exchange: Key::NONE,
            input: None,
            search: HeadSearch::default(),
            written: 0,
            skip: None,
        };
        self.table.put(sock, Role::Client(client));
        self.count().total_connections.add(1);
        self.count().active_connections.increment();
        self.count().moved(None, State::Accepting.gauge());
        self.arrived();
        self.become_state(sock, State::ReadingRequest);
        self.arm(sock, self.shared.settings.timeouts.header);
        if self.draining {
            return self.close_client(sock, How::Flushed);
        }
        self.backend.recv(sock, Size::Small);
    }

    pub fn client_received(&mut self, sock: Sock, block: Block) {
        self.count().bytes_received.add(block.len() as u64);
        let Some(client) = self.table.client(sock) else { return };
        match client.state {
            State::Closing | State::Closed => {}
            State::ReadingRequest if client.input.is_none() => {
                client.input = Some(block);
                self.read_requests(sock);
            }
            State::ReadingRequest => {
                self.keep_input(sock, block);
                self.read_requests(sock);
            }
            State::Accepting | State::Processing | State::WritingResponse => {
                let key = client.exchange;
                self.received_during_exchange(sock, key, block);
            }
        }
    }

    fn received_during_exchange(&mut self, sock: Sock, key: Key, block: Block) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let link = exchange.link;
        match exchange.phase {
            Phase::Collecting => self.collect(key, block),
            Phase::Tunnel => self.tunnel_to_worker(key, block),
            _ if exchange.upload.is_done() => {
                self.keep_input(sock, block);
                self.watch(sock);
            }
            // The body streams, and its worker is not there yet: it waits, and no more of it is received.
            _ if self.table.link(link).is_none_or(|link| link.is_connecting()) => self.keep_input(sock, block),
            _ => self.upload(key, block),
        }
    }

    /// Keeps the receive armed while a request is being answered, so that the client's departure is seen.
    pub fn watch(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        if client.input.as_ref().is_none_or(|input| input.len() < PIPELINE_BYTES) {
            self.backend.recv(sock, Size::Small);
        }
    }

    /// Puts bytes behind those that wait already.
    pub fn keep_input(&mut self, sock: Sock, block: Block) {
        let Some(client) = self.table.client(sock) else { return };
        if block.is_empty() {
            return;
        }
        client.input = Some(match client.input.take() {
            None => block.settle(&self.pool),
            Some(before) => self.pool.heap_joined(&before, &block),
        });
    }

    /// The client has finished sending.
    pub fn client_ended(&mut self, sock: Sock) {
        let serve = self.shared.settings.app.serve_half_closed;
        let Some(client) = self.table.client(sock) else { return };
        client.ended = true;
        let key = client.exchange;
        let Some(exchange) = self.exchanges.lookup(key) else {
            if client.stalled && client.input.is_some() {
                // Whole requests wait for the outbox; once it has drained they are answered, and then the connection closes.
                return;
            }
            // Nothing is being answered. Answers of earlier requests may still be on their way.
            return self.close_client(sock, How::Flushed);
        };
        match exchange.phase {
            Phase::Tunnel => self.tunnel_client_ended(key),
            _ if exchange.upload.is_done() && (serve || !exchange.keep_alive) => {}
            _ => {
                self.count().client_gone.add(1);
                self.client_left(sock, How::Flushed);
            }
        }
    }

    /// The client is gone, or must go: its exchange is cancelled, its connection closed.
    pub fn client_left(&mut self, sock: Sock, how: How) {
        let Some(client) = self.table.client(sock) else { return };
        let key = std::mem::replace(&mut client.exchange, Key::NONE);
        if key != Key::NONE {
            self.abandon(key);
        }
        self.close_client(sock, how);
    }

    pub fn client_failed(&mut self, sock: Sock, side: Side) {
        let Some(client) = self.table.client(sock) else { return };
        if side == Side::Send || !matches!(client.state, State::Closing | State::Closed) {
            if client.exchange != Key::NONE {
                self.count().client_gone.add(1);
            }
            self.client_left(sock, How::Now);
        }
    }

    /// The outbox had been full and is empty.
    pub fn client_drained(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        if client.stalled {
            client.stalled = false;
            self.resume.push_back(sock);
        }
        let key = client.exchange;
        if key != Key::NONE {
            self.answer_drained(key);
        }
    }

    /// The client's deadline has passed: which one it was depends on what it is doing.
    pub fn client_expired(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        if matches!(client.state, State::Closing | State::Closed) {
            return;
        }
        let key = client.exchange;
        if key != Key::NONE {
            return self.exchange_expired(key);
        }
        let timeouts = self.shared.settings.timeouts.clone();
        let sent = self.backend.sent(sock);
        let unsent = self.backend.unsent(sock);
        if unsent > 0 {
            if sent != client.written {
                client.written = sent;
                return self.arm(sock, timeouts.write);
            }
            self.count().timeouts.add(1);
            return self.close_client(sock, How::Reset);
        }
        if client.skip.is_some() {
            // Its request is answered: a second answer would be taken for that of the next one.
            self.count().timeouts.add(1);
            return self.close_client(sock, How::Flushed);
        }
        let started = client.input.is_some();
        let waited_for_write = client.written != sent;
        client.written = sent;
        if started {
            self.count().timeouts.add(1);
            return self.refuse(sock, 408, "the request did not arrive in time", b"");
        }
        if waited_for_write && timeouts.idle > timeouts.write {
            return self.arm(sock, timeouts.idle - timeouts.write);
        }
        // An idle connection at its end is no failure; one that never sent anything is a timeout.
        if sent == 0 {
            self.count().timeouts.add(1);
        }
        self.close_answered(sock);
    }

    /// The next request may come: waits for it, for the next one already here, or closes.
    pub fn await_request(&mut self, sock: Sock) {
        let timeouts = &self.shared.settings.timeouts;
        let wait = timeouts.idle.min(timeouts.write);
        self.wheel.arm_after(sock.index, wait);
        let Some(client) = self.table.client(sock) else { return };
        client.search = HeadSearch::default();
        let waits = client.input.is_some();
        let over = !waits && (client.ended || self.draining);
        if !over && self.stalls(sock) {
            // A pipeline whose answers nobody reads must not fill the memory: the drain resumes.
            return;
        }
        if waits {
            self.resume.push_back(sock);
        } else if over {
            self.close_answered(sock);
        } else {
            self.backend.recv(sock, Size::Small);
        }
    }

    /// A graceful stop has begun: a connection between two requests closes, others after their answer.
    pub fn client_drains(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        if client.state == State::ReadingRequest && client.input.is_none() && client.skip.is_none() {
            self.close_answered(sock);
        }
    }

    /// Whether so much waits to be sent that no further request is read now; the drain will resume.
    pub fn stalls(&mut self, sock: Sock) -> bool {
        let stalls = self.backend.unsent(sock) > HIGH_MARK;
        if let Some(client) = self.table.client(sock) {
            client.stalled = stalls;
        }
        stalls
    }
}
