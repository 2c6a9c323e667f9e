//! The way to a worker: a request becomes an exchange, its body is collected, a permit is asked for, and head and body leave in
//! one gather.

use crate::backends::{Backend, HIGH_MARK, How, Size, Sock};
use crate::buffers::block::{Block, Pool, SMALL};
use crate::buffers::slots::Key;
use crate::buffers::wheel::TICK;
use crate::connection::{LinkState, Loop, Reach, State};
use crate::dispatch::{Acquire, Ask, Grant, Outcome, Patience, Permit, Waiter};
use crate::http::Framing;
use crate::http::head::Request;
use crate::http::rewrite::{self, Forward};

use super::{Exchange, Phase, Reader};

/// How soon a worker whose backlog is full is asked again.
const BACKLOG_RETRY: std::time::Duration = std::time::Duration::from_millis(5);
/// Runs of a held body are joined up to this size.
const JOINED_BYTES: usize = 4096;
/// Bytes a second below which a body is not arriving: each such portion extends the body's deadline by a second.
const BODY_RATE: u64 = 1024;

impl<B: Backend> Loop<B> {
    /// Makes an exchange of a request for the app. `input` begins with its head.
    pub fn forward(&mut self, sock: Sock, mut input: Block, request: &Request) {
        let Some(client) = self.table.client(sock) else { return };
        let app = &self.shared.settings.app;
        let forward = Forward {
            peer: client.peer.ip,
            unix: client.peer.unix,
            local_port: self.listeners[client.listener as usize].1,
            https: false,
            request_id: &id_text(self.next_id),
            start_micros: self.clock.micros(self.wheel.now_nanos()),
            trusted: false,
            keep_alive: app.keepalive,
            open: request.framing == Framing::Chunked,
        };
        let room = rewrite::request_room(request, &self.fields, &forward);
        let head = self.scratch.write(room, |out| rewrite::request(out, &input, request, &self.fields, &forward));
        let exchange = Exchange::new(sock, request, head, self.next_id, self.now, app.timeouts.request);
        self.next_id = self.next_id.wrapping_add(1);
        self.become_state(sock, State::Processing);
        let Ok(key) = self.exchanges.insert(exchange) else {
            return self.refuse(sock, 503, "too many requests are in progress", b"");
        };
        if let Some(client) = self.table.client(sock) {
            client.exchange = key;
        }
        input.advance(request.len);
        match request.framing {
            Framing::None => {
                self.keep_input(sock, input);
                self.acquire(key, false);
            }
            Framing::Length(length) if length > self.shared.settings.max_body => self.fail(key, 413, TOO_LARGE),
            framing => self.begin_body(key, framing, input),
        }
    }

    fn begin_body(&mut self, key: Key, framing: Framing, input: Block) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let sock = exchange.client;
        if self.table.client(sock).is_some_and(|client| client.ended) {
            // What is here is all there will be, and the end is not told a second time.
            return self.collect(key, input);
        }
        if exchange.expects {
            if self.shared.dispatch.queue_is_full() {
                return self.fail(key, 503, QUEUE_FULL);
            }
            if input.is_empty() {
                self.send_client(sock, crate::backends::Piece::Static(b"HTTP/1.1 100 Continue\r\n\r\n"));
            }
        }
        self.arm(sock, self.shared.settings.timeouts.body);
        let buffered = self.shared.settings.app.request_buffer as u64;
        if matches!(framing, Framing::Length(length) if length > buffered) {
            // It will not fit into memory: a permit is asked for at once, and the body streams.
            if let Some(exchange) = self.exchanges.lookup_mut(key) {
                exchange.streamed = true;
            }
            self.keep_input(sock, input);
            return self.acquire(key, false);
        }
        if input.is_empty() { self.backend.recv(sock, Size::Small) } else { self.collect(key, input) }
    }

    /// Takes body bytes in before a permit is asked for.
    pub fn collect(&mut self, key: Key, mut input: Block) {
        loop {
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
            match exchange.upload.take(&mut input) {
                Ok(Some(data)) => {
                    exchange.body_bytes += data.len() as u64;
                    join_small(&self.pool, &mut exchange.body, data);
                    if exchange.body_bytes > self.shared.settings.max_body {
                        return self.refuse_body(key, 413, TOO_LARGE);
                    }
                }
                Ok(None) => break,
                Err(refusal) => return self.refuse_body(key, refusal.status, refusal.reason),
            }
        }
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let sock = exchange.client;
        if exchange.upload.is_done() {
            self.keep_input(sock, input);
            return self.acquire(key, false);
        }
        if self.table.client(sock).is_some_and(|client| client.ended) {
            self.count().client_gone.add(1);
            return self.client_left(sock, How::Flushed);
        }
        let budget = self.pool.budget();
        if exchange.body_bytes > self.shared.settings.app.request_buffer as u64 || !budget.fits(SMALL) {
            exchange.streamed = true;
            return self.acquire(key, false);
        }
        let scarce = self.pool.scarce();
        for block in &mut exchange.body {
            if scarce || block.wasteful() {
                *block = block.clone().settle(&self.pool);
            }
        }
        let long = matches!(exchange.upload, Reader::Length(left) if left > SMALL as u64);
        // Slow senders are bounded by a rate: the deadline moves with what has arrived, and not with each byte.
        let patience =
            self.shared.settings.timeouts.body + std::time::Duration::from_secs(exchange.body_bytes / BODY_RATE);
        let deadline = exchange.started + patience;
        self.wheel.arm(sock.index, deadline);
        self.backend.recv(sock, if long { Size::Large } else { Size::Small });
    }

    /// Asks for a permit; `front` for an exchange that had one already.
    pub fn acquire(&mut self, key: Key, front: bool) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if !front {
            exchange.since = self.now;
            // A sender that was slow, and was allowed to be, has not used up its worker's time.
            exchange.request_by = self.now + self.shared.settings.app.timeouts.request;
        } else if self.now >= exchange.request_by {
            // Workers that look ready and refuse would else have it go from one to the next for ever.
            self.count().timeouts.add(1);
            return self.fail(key, 504, "no worker took the request in time");
        }
        let waiter = Waiter { loop_index: self.index, exchange: key };
        let ask = Ask { since: exchange.since, exclude: exchange.exclude, front };
        match self.shared.dispatch.acquire(waiter, ask, self.now) {
            Acquire::Granted(permit) => self.start(key, permit),
            Acquire::Queued(ticket) => {
                exchange.ticket = Some(ticket);
                exchange.phase = Phase::Queued;
                self.wait_in_queue(key);
            }
            Acquire::Full => {
                self.count().queue_full.add(1);
                self.fail(key, 503, QUEUE_FULL);
            }
            Acquire::Failed => self.fail(key, 503, GIVEN_UP),
        }
    }

    /// No block waits in a queue: the request's bytes go to the heap, and the client is watched.
    fn wait_in_queue(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.head = exchange.head.take().map(|head| head.settle(&self.pool));
        for block in &mut exchange.body {
            *block = block.clone().settle(&self.pool);
        }
        let (sock, streamed) = (exchange.client, exchange.streamed);
        if !streamed {
            self.watch(sock);
        }
        self.queue_expired(key);
    }

    /// Looks whether a queued exchange has waited too long, and when to look again.
    pub fn queue_expired(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let (sock, Some(ticket)) = (exchange.client, exchange.ticket) else { return };
        match self.shared.dispatch.patience(ticket, exchange.request_by, self.now) {
            Patience::Until(instant) => self.wheel.arm(sock.index, instant),
            // The permit is in the mail; were it lost, this would look for it again.
            Patience::Granted => self.arm(sock, self.shared.settings.app.queue.timeout.max(TICK)),
            Patience::QueueTimeout => {
                exchange.ticket = None;
                self.count().queue_timeouts.add(1);
                self.count().timeouts.add(1);
                self.fail(key, 504, "no worker became free in time");
            }
            Patience::HoldExpired => {
                exchange.ticket = None;
                self.count().hold_expired.add(1);
                self.fail(key, 503, super::cancel::STARTING);
            }
        }
    }

    /// A permit has come to an exchange that waited. One that is gone, or no longer waits, gives it back unused.
    pub fn granted(&mut self, grant: Grant) {
        let key = grant.waiter.exchange;
        let read = self.shared.settings.app.timeouts.read;
        match self.exchanges.lookup_mut(key) {
            Some(exchange) if exchange.phase == Phase::Queued => {
                if exchange.granted.is_none() {
                    // However long it has waited, no worker is asked for what it is given no time to answer.
                    exchange.request_by = exchange.request_by.max(self.now + read);
                }
                self.start(key, grant.permit);
            }
            _ => self.release(grant.permit, Outcome::Unused),
        }
    }

    /// Gives a permit back and passes on what it freed.
    pub fn release(&mut self, permit: Permit, outcome: Outcome) {
        if let Some(grant) = self.shared.dispatch.release(permit, outcome, self.now) {
            if grant.waiter.loop_index == self.index {
                self.grants.push_back(grant);
            } else {
                self.shared.postboxes.grant(grant);
            }
        }
    }

    /// Sends the request to the worker of that permit.
    pub fn start(&mut self, key: Key, permit: Permit) {
        let worker = permit.worker();
        let Some(exchange) = self.exchanges.lookup_mut(key) else {
            return self.release(permit, Outcome::Unused);
        };
        exchange.ticket = None;
        exchange.granted = Some(self.now);
        exchange.worker = Some(worker);
        exchange.permit = Some(permit);
        let fresh = exchange.wants_fresh || exchange.websocket;
        match self.reach(worker, fresh) {
            Reach::Link(link) => self.send_request(key, link),
            Reach::Backlog => self.wait_for_backlog(key),
            Reach::Gone => {
                self.unreachable(key);
            }
            Reach::Exhausted(error) => {
                self.shared.log.seldom(
                    crate::log::Level::Error,
                    "cannot open a connection to a worker",
                    &[("error", &error)],
                );
                self.give_back(key, Outcome::Unused);
                self.fail(key, 503, "the server has no descriptor left to reach a worker with");
            }
        }
    }

    /// The worker's backlog is full: another worker, or the same again in a moment, until the connect timeout.
    pub fn wait_for_backlog(&mut self, key: Key) {
        let connect = self.shared.settings.app.timeouts.connect;
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let sock = exchange.client;
        let first = exchange.phase != Phase::Backlog;
        if first && exchange.exclude.is_none() {
            exchange.exclude = exchange.permit.as_ref().map(|permit| permit.worker());
            exchange.phase = Phase::Queued;
            self.give_back(key, Outcome::Unused);
            return self.again.push_back(key);
        }
        if first {
            exchange.phase = Phase::Backlog;
            exchange.read_by = self.now + connect;
        }
        if self.now >= exchange.read_by {
            self.count().timeouts.add(1);
            self.give_back(key, Outcome::Unused);
            return self.fail(key, 503, "the worker accepts no connections: its backlog is full");
        }
        let streamed = exchange.streamed;
        self.arm(sock, BACKLOG_RETRY);
        if !streamed {
            self.watch(sock);
        }
    }

    /// Tries the same worker again after its backlog was full.
    pub fn backlog_expired(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if let Some(permit) = exchange.permit.take() {
            self.start(key, permit);
        }
    }

    fn send_request(&mut self, key: Key, sock: Sock) {
        let settings = &self.shared.settings;
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let Some(link) = self.table.link(sock) else { return };
        exchange.link = sock;
        exchange.phase = Phase::Awaiting;
        exchange.fresh = !link.reused;
        exchange.sent_before = self.backend.offered(sock);
        exchange.read_by = self.now + settings.app.timeouts.read;
        link.exchange = key;
        let connecting = link.state == LinkState::Connecting;
        if !connecting {
            link.state = LinkState::Busy;
        }
        let left = exchange.request_by.saturating_duration_since(self.now);
        let wait = if connecting { settings.app.timeouts.connect } else { settings.app.timeouts.read.min(left) };
        self.wheel.arm_after(exchange.client.index, wait);
        self.backend.recv(sock, Size::Small);
        // A body that streams is not kept: nothing of it leaves before the worker is known to be there, so that a connect
        // which fails costs nothing.
        if !connecting || !exchange.streamed {
            self.send_message(key, sock);
        }
    }

    /// Queues the request for its worker; a body that streams begins to flow.
    pub fn send_message(&mut self, key: Key, sock: Sock) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if let Some(head) = &exchange.head {
            self.backend.send(sock, head.clone().into());
        }
        let (client, streamed) = (exchange.client, exchange.streamed);
        if exchange.open || !exchange.body.is_empty() {
            self.send_body(key, sock);
        }
        if !streamed {
            self.watch(client);
        } else if let Some(input) = self.table.client(client).and_then(|client| client.input.take()) {
            self.upload(key, input);
        } else {
            self.continue_upload(key);
        }
    }

    /// The end of the head and the body collected so far.
    fn send_body(&mut self, key: Key, sock: Sock) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let chunked = exchange.open && (exchange.streamed || !exchange.upload.trailers().is_empty());
        if exchange.open {
            let framing = if chunked { Framing::Chunked } else { Framing::Length(exchange.body_bytes) };
            let end = self.scratch.write(64, |out| rewrite::request_end(out, framing));
            self.backend.send(sock, end.into());
        }
        for index in 0..exchange.body.len() {
            let data = self.exchanges.lookup(key).map(|exchange| exchange.body[index].clone());
            if let Some(data) = data {
                self.send_data(sock, data, chunked);
            }
        }
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if exchange.streamed {
            // What has been sent cannot be sent again; keeping it would double the memory.
            exchange.body = Vec::new();
        } else if chunked {
            self.send_last_chunk(key, sock);
        }
    }

    /// Whether so much of a request waits for its worker that no more is taken from the client.
    pub fn link_is_full(&self, link: Sock) -> bool {
        self.backend.unsent(link) > HIGH_MARK
    }

    /// Takes the permit out of an exchange and gives it back.
    pub fn give_back(&mut self, key: Key, outcome: Outcome) {
        let permit = self.exchanges.lookup_mut(key).and_then(|exchange| exchange.permit.take());
        if let Some(permit) = permit {
            self.release(permit, outcome);
        }
    }

    /// Ends the use of a worker's connection by closing it.
    pub fn drop_link(&mut self, key: Key, how: How) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let link = std::mem::replace(&mut exchange.link, Key::NONE);
        self.close_link(link, how);
    }
}

/// Puts a run of a body behind the others. Small ones are joined, each with those before it that are no larger: so a body in tiny
/// chunks or packets costs neither an entry a byte nor copying over and over.
fn join_small(pool: &Pool, body: &mut Vec<Block>, mut data: Block) {
    while let Some(last) = body.last()
        && last.len() <= data.len()
        && last.len() + data.len() <= JOINED_BYTES
    {
        data = pool.heap_joined(last, &data);
        body.pop();
    }
    body.push(data);
}

/// An exchange's id as sixteen hexadecimal digits.
pub(crate) fn id_text(id: u64) -> [u8; 16] {
    let mut text = [0; 16];
    text[..8].copy_from_slice(&hexadecimal((id >> 32) as u32));
    text[8..].copy_from_slice(&hexadecimal(id as u32));
    text
}

/// Eight digits at a time: each four bits are moved to a byte of their own, and those above nine on to the letters.
fn hexadecimal(number: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let spread = u64::from(number);
    let spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    let spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    let spread = (spread | spread << 4) & (0x0f * ONES);
    let letters = (spread + 6 * ONES) >> 4 & ONES;
    (spread + u64::from(b'0') * ONES + letters * u64::from(b'a' - b'9' - 1)).to_be_bytes()
}

pub(super) const GIVEN_UP: &str = "the app has failed and is not being restarted";
pub(super) const QUEUE_FULL: &str = "the queue is full";
pub(super) const TOO_LARGE: &str = "the body is larger than this server takes";

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_sixteen_digits() {
        for id in [0, 1, 9, 10, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 0xa0b1_c2d3_e4f5_9a90, u64::MAX] {
            assert_eq!(super::id_text(id), *format!("{id:016x}").as_bytes());
        }
    }
}
