//! The request's side: a request becomes an exchange, and its body is collected before a worker is asked for, or streams to the
//! worker with back-pressure when it is too large for that.
//!
//! The connection decodes the body; what a worker sees is framed anew by us, so that a malformed or cut body ends in no last
//! chunk and a closed connection.

use std::io::Write;

use crate::backends::{Backend, How};
use crate::buffers::block::{Block, Pool, SMALL};
use crate::buffers::slots::Key;
use crate::connection::{Loop, State, Stream};
use crate::http::head::Request;
use crate::http::id::id_text;
use crate::http::rewrite::{self, Forward};
use crate::http::{Framing, find_lines};

use super::{Ending, Exchange, Fate, Pace, Phase, Upload};

/// Runs of a held body are joined up to this size.
const JOINED_BYTES: usize = 4096;

impl<B: Backend> Loop<B> {
    /// Makes an exchange of a request for the app. `input` begins with its head.
    pub fn forward(&mut self, stream: Stream, mut input: Block, request: &Request) {
        let Some(client) = self.table.client(stream.connection) else { return };
        let listener = &self.accepting.listeners[client.listener as usize];
        let app = listener.app;
        let forward = Forward {
            peer: client.peer.ip,
            unix: client.peer.unix,
            local_port: listener.port,
            https: listener.scheme.is_secure(),
            request_id: &id_text(self.next_id),
            start_micros: self.time.day.micros(self.time.connections.now_nanos()),
            trusted: false,
            keep_alive: self.shared.apps[app as usize].settings.keepalive,
            open: request.framing == Framing::Chunked,
        };
        let room = rewrite::request_room(request, &self.heads.fields, &forward);
        let head = self.memory.scratch.write(room, |out| {
            rewrite::request(out, &input, request, &self.heads.fields, &forward);
        });
        let exchange = Exchange::new(stream, app, request, head, self.next_id, &self.time);
        self.next_id = self.next_id.wrapping_add(1);
        self.become_state(stream.connection, State::Processing);
        let Ok(key) = self.exchanges.insert(exchange) else {
            return self.refuse(stream.connection, 503, "too many requests are in progress", b"");
        };
        input.advance(request.len);
        if let Some(client) = self.table.client(stream.connection) {
            client.exchange = key;
        }
        match request.framing {
            Framing::None => {
                self.keep_input(stream.connection, input);
                self.acquire(key, false);
            }
            Framing::Length(length) if length > self.shared.settings.max_body => self.refuse_body(key, 413, TOO_LARGE),
            framing => self.begin_body(key, framing, input),
        }
    }

    fn begin_body(&mut self, key: Key, framing: Framing, input: Block) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (stream, app, expects) = (exchange.stream, exchange.app as usize, exchange.request.expects);
        let ended = self.table.client(stream.connection).is_some_and(|client| client.ended);
        if expects && !ended {
            if self.shared.apps[app].dispatch.queue_is_full() {
                return self.refuse_body(key, 503, super::permit::QUEUE_FULL);
            }
            if input.is_empty() {
                self.stream_continue(stream);
            }
        }
        let buffered = self.shared.apps[app].settings.request_buffer as u64;
        if matches!(framing, Framing::Length(length) if length > buffered) && !ended {
            // It will not fit into memory: a permit is asked for at once, and the body streams.
            return self.hold_body(key, input);
        }
        self.rearm(key);
        if input.is_empty() && !ended { self.stream_want(stream) } else { self.read_body(stream.connection, input) }
    }

    /// The rest of a body waits until its worker is there.
    fn hold_body(&mut self, key: Key, input: Block) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.request.upload = Upload::Held;
        // It cannot be sent again, so that a kept connection that has just died would cost it.
        exchange.attempt.wants_fresh = true;
        let connection = exchange.stream.connection;
        self.keep_input(connection, input);
        self.acquire(key, false);
    }

    /// Whether a body's bytes are of use now.
    pub fn takes_body(&self, key: Key) -> bool {
        let upload = self.exchanges.lookup(key).map(|exchange| exchange.request.upload);
        matches!(upload, Some(Upload::Collecting | Upload::Streaming))
    }

    /// A run of the request's body; whether the exchange goes on.
    pub fn body_came(&mut self, key: Key, data: Block) -> bool {
        let (now, most) = (self.time.nanos(), self.shared.settings.max_body);
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return false };
        let request = &mut exchange.request;
        request.bytes += data.len() as u64;
        request.pace.moved(now);
        if request.bytes > most {
            self.refuse_body(key, 413, TOO_LARGE);
            return false;
        }
        if request.upload == Upload::Collecting {
            join_small(&self.memory.pool, &mut request.body, data);
        } else {
            let (link, chunked) = (exchange.link(), exchange.request.open);
            self.send_data(link, data, chunked);
        }
        true
    }

    /// All of the body that was here has been taken, and there is more to come.
    pub fn body_goes_on(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let stream = exchange.stream;
        if self.table.client(stream.connection).is_some_and(|client| client.ended) {
            // What is here was all there will be, and the end is not told a second time.
            self.count().client_gone.add(1);
            return self.client_left(stream.connection, How::Flushed);
        }
        if exchange.request.upload != Upload::Collecting {
            return self.continue_upload(key);
        }
        let most = self.shared.apps[exchange.app as usize].settings.request_buffer as u64;
        if exchange.request.bytes > most || !self.memory.has_room() {
            exchange.request.upload = Upload::Held;
            exchange.attempt.wants_fresh = true;
            return self.acquire(key, false);
        }
        self.memory.hold(key);
        self.rearm(key);
        self.stream_want(stream);
    }

    /// The body is whole.
    pub fn body_ended(&mut self, key: Key, trailers: &[u8]) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if exchange.request.upload == Upload::Collecting {
            exchange.request.upload = Upload::Whole;
            exchange.request.trailers = (!trailers.is_empty()).then(|| self.memory.pool.heap(trailers));
            return self.acquire(key, false);
        }
        let (connection, link) = (exchange.stream.connection, exchange.link());
        exchange.request.upload = Upload::Sent;
        // The worker has the whole request only now.
        exchange.times.given = now;
        if exchange.request.open {
            self.send_last_chunk(link, trailers);
        }
        self.heard(key);
        self.watch(connection);
    }

    /// Takes more of the body when the worker has taken what it was sent.
    pub fn continue_upload(&mut self, key: Key) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (stream, link) = (exchange.stream, exchange.link());
        if !matches!(exchange.request.upload, Upload::Streaming | Upload::Full) {
            return;
        }
        let was = exchange.request.upload;
        let full = self.link_is_full(link);
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if full {
            exchange.request.upload = Upload::Full;
            self.backend.await_room(link);
            return if was == Upload::Full { self.rearm(key) } else { self.heard(key) };
        }
        exchange.request.upload = Upload::Streaming;
        if was == Upload::Full {
            // Its pace was ours, and not its own.
            exchange.request.pace = Pace::new(now, exchange.request.bytes);
        }
        self.rearm(key);
        self.stream_want(stream);
    }

    /// The worker has taken some of what it was sent.
    pub fn upload_drained(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if matches!(exchange.phase, Phase::Tunnel { .. }) {
            return self.continue_tunnel(key);
        }
        if exchange.request.upload == Upload::Full {
            self.note_move(exchange);
            self.heard(key);
            self.continue_upload(key);
        }
    }

    /// The body cannot be finished. Before an answer it is refused; a worker that has one already sees a message that is visibly
    /// incomplete on a connection that closes, and the client, behind the head of an answer, that it was cut. Either way the
    /// client's connection closes: what stands behind such a body is never read as a request.
    pub fn refuse_body(&mut self, key: Key, status: u16, reason: &str) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if exchange.phase == Phase::Relaying {
            return self.finish(key, Ending::Cut { reason, fate: Fate::Broken });
        }
        let fate = if exchange.attempt.permit.is_some() { Fate::Broken } else { Fate::Unused };
        self.finish(key, Ending::Refused { status, detail: reason, fate });
    }

    /// Moves what an exchange keeps of its request to the heap, as it begins to wait for longer than pool blocks may.
    pub fn settle_request(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let (pool, request) = (&self.memory.pool, &mut exchange.request);
        if matches!(exchange.phase, Phase::Relaying) {
            return self.keep_for_log(key);
        }
        request.head = request.head.take().map(|head| head.settle(pool));
        for block in &mut request.body {
            *block = block.clone().settle(pool);
        }
    }

    /// Keeps of a request's head only what its access line will show.
    pub fn keep_for_log(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let Some(head) = exchange.request.head.take() else { return };
        let names: [&[u8]; 3] = [b"host", b"referer", b"user-agent"];
        let line = memchr::memchr(b'\n', &head).map_or(0, |end| end + 1);
        let mut kept = head[..line].to_vec();
        for (name, value) in names.iter().zip(find_lines(&head, names)) {
            // Writing to memory does not fail.
            let _ = kept.write_all(&[*name, &b": "[..], value, &b"\r\n"[..]].concat());
        }
        exchange.request.head = Some(self.memory.pool.heap(&kept));
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
    // A small one would keep a whole block.
    let small = data.len() < SMALL / 4;
    body.push(if small { data.settle(pool) } else { data });
}

pub(super) const TOO_LARGE: &str = "the body is larger than this server takes";
