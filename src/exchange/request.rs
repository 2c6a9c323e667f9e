//! The request's side: a request becomes an exchange, and its body is collected before a worker is asked for, or streams to the
//! worker with back-pressure when it is too large for that.
//!
//! The connection decodes the body; what a worker sees is framed anew by us, so that a malformed or cut body ends in no last
//! chunk and a closed connection.

use crate::backends::{Backend, How, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::config::Buffering;
use crate::connection::{State, Stream};
use crate::event_loop::{Leads, Loop, LoopRoute, wish};
use crate::http::Framing;
use crate::http::body::last_chunk;
use crate::http::head::Request;
use crate::http::id::id_text;
use crate::http::rewrite::{self, Forward};

use super::{Answer, Attempt, Exchange, Pace, Phase, Upload};

impl<B: Backend> Loop<B> {
    /// Makes an exchange of a request for the app of that route. `input` begins with its head.
    pub fn forward(&mut self, route: usize, stream: Stream, mut input: Block, request: &Request) {
        let Some(client) = self.table.client(stream.connection) else { return };
        let LoopRoute { leads: Leads::App(app), request: edits, response, sendfile, compress, series, .. } =
            self.apps.routes.get(route)
        else {
            return;
        };
        client.body.iter_mut().for_each(|body| body.edits.clone_from(edits));
        let edits = edits.as_deref();
        let coded = compress.as_ref().map(|settings| wish(settings, &input, request, &self.heads.fields, edits));
        let edits = coded.as_ref().and_then(|coded| coded.edits()).or(edits);
        let listener = &self.accepting.listeners[client.listener as usize];
        let certificate = self.secure.as_ref().map_or("", |secure| secure.certificate(stream.connection));
        let own = id_text(self.heads.next_id);
        let id = self.heads.id(&input, &own);
        let start = self.time.day.start(self.time.nanos());
        let forward = Forward {
            keep_alive: app.settings.sharing.keepalive,
            open: request.framing == Framing::Chunked,
            edits,
            identity: &self.heads.identity,
            ..listener.forward(&client.arrival, (&self.heads.origin, certificate), id, start)
        };
        let room = rewrite::request_room(request, &self.heads.fields, &forward);
        let head = self.memory.scratch.write(room, |out| {
            rewrite::request(out, &input, request, &self.heads.fields, &forward);
        });
        let (edits, sendfile) = match response.is_some() || !self.heads.quota.is_empty() {
            true => (self.heads.edits(response), sendfile.clone()),
            false => (None, None),
        };
        let shown = self.shown(forward.edits.is_some(), request, &forward);
        let turn = self.turn(app, stream.connection, &input);
        let seat = self.heads.seat.take();
        let made = Exchange::new(stream, app.clone(), *series, request, head, own, &self.time);
        // Not one field after the other: it is large, and would be moved once more.
        let exchange = Exchange {
            request: super::Request { shown, ..made.request },
            attempt: Attempt { seat, turn, ..made.attempt },
            answer: Answer { coded, edits, sendfile, ..made.answer },
            ..made
        };
        self.become_state(stream.connection, State::Processing);
        let Some(key) = self.begin_exchange(stream, exchange, &input) else { return };
        input.advance(request.len);
        self.memory.hold(key);
        match request.framing {
            Framing::None => {
                self.keep_input(stream.connection, input);
                self.acquire(key, false);
            }
            Framing::Length(length) if length > self.apps.settings.bounds.body => self.fail(key, 413, TOO_LARGE),
            framing => self.begin_body(key, framing, input),
        }
    }

    /// Gives an exchange its entry and tells its client, or refuses its request where there is none. `head` is that of its request, as
    /// it came, or begins with it.
    #[inline(always)]
    pub fn begin_exchange(&mut self, stream: Stream, exchange: Exchange, head: &[u8]) -> Option<Key> {
        self.heads.next_id = self.heads.next_id.wrapping_add(1);
        let key = match self.exchanges.insert(exchange) {
            Ok(key) => key,
            Err(exchange) => {
                let head = exchange.request.head.as_deref().unwrap_or_default();
                self.refuse_head(stream.connection, (503, "too many requests are in progress"), b"", head);
                return None;
            }
        };
        self.keep_origin(key, head);
        if let Some(client) = self.table.client(stream.connection) {
            client.exchange = key;
        }
        Some(key)
    }

    fn begin_body(&mut self, key: Key, framing: Framing, input: Block) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (stream, expects) = (exchange.stream, exchange.request.expects);
        let streams = exchange.app.settings.buffers.larger == Buffering::Off;
        let large = framing.length().filter(|length| *length > exchange.app.settings.buffers.request as u64);
        let ended = self.table.client(stream.connection).is_some_and(|client| client.ended);
        if expects && !ended {
            if exchange.app.dispatch.queue_is_full(exchange.attempt.turn) {
                return self.fail(key, 503, super::permit::QUEUE_FULL);
            }
            if input.is_empty() {
                self.stream_continue(stream);
            }
        }
        if !ended && (streams || large.is_some_and(|length| !self.begin_spooled_body(key, Some(length)))) {
            // It is not to be collected: a permit is asked for at once, and what comes waits until the worker is there.
            self.keep_input(stream.connection, input);
            return self.hold_body(key);
        }
        self.collect_body(key, input);
    }

    /// Begins to collect a body, of which `input` is here.
    pub fn collect_body(&mut self, key: Key, input: Block) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let stream = exchange.stream;
        let ended = self.table.client(stream.connection).is_some_and(|client| client.ended);
        self.rearm(key);
        if input.is_empty() && !ended { self.stream_want(stream) } else { self.read_body(stream.connection, input) }
    }

    /// The rest of a body waits until its worker is there.
    pub fn hold_body(&mut self, key: Key) {
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            exchange.request.upload = Upload::Held;
            self.acquire(key, false);
        }
    }

    /// Whether a body's bytes are of use now.
    pub fn takes_body(&self, key: Key) -> bool {
        let upload = self.exchanges.lookup(key).map(|exchange| exchange.request.upload);
        matches!(upload, Some(Upload::Collecting | Upload::Streaming))
    }

    /// A run of the request's body; whether the exchange goes on.
    pub fn body_came(&mut self, key: Key, data: Block) -> bool {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return false };
        exchange.request.bytes += data.len() as u64;
        exchange.request.pace.moved(self.time.nanos());
        if exchange.request.bytes > exchange.most_of_body() {
            self.fail(key, 413, TOO_LARGE);
            return false;
        }
        let request = &mut exchange.request;
        if request.upload == Upload::Collecting {
            if let Some(body) = &mut request.spool {
                body.push(&data);
                return true;
            }
            self.memory.pool.append_run(&mut request.body, data);
            if request.body.last().is_some_and(|last| !last.on_heap()) {
                self.memory.hold(key);
            }
        } else {
            let (link, chunked) = (exchange.link(), exchange.request.open);
            self.send_run(link, data, chunked);
        }
        true
    }

    /// All of the body that was here has been taken, and there is more to come.
    pub fn body_goes_on(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let (stream, client) = (exchange.stream, self.table.client(exchange.stream.connection));
        if client.as_ref().is_some_and(|client| client.ended) {
            // What is here was all there will be, and the end is not told a second time.
            self.count().client_gone.add(1);
            return self.client_left(stream.connection, How::Flushed);
        }
        if exchange.announces_too_much(client.as_deref()) {
            return self.fail(key, 413, TOO_LARGE);
        }
        if exchange.request.upload != Upload::Collecting {
            return self.continue_upload(key);
        }
        if exchange.most_of_notice().is_some() {
            return self.notice_goes_on(key);
        }
        let most = exchange.app.settings.buffers.request as u64;
        let is_large = exchange.request.bytes > most || !self.memory.has_room();
        if exchange.request.spool.is_none() && is_large && !self.begin_spooled_body(key, None) {
            return self.hold_body(key);
        }
        if self.collect_spooled(key) {
            return;
        }
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
            if exchange.most_of_notice().is_some() {
                return self.publish(key);
            }
            self.collect_spooled(key);
            return self.acquire(key, false);
        }
        let (connection, link) = (exchange.stream.connection, exchange.link());
        exchange.request.upload = Upload::Sent;
        // The worker has the whole request only now, and what it takes from now on shows that it is at work.
        exchange.times.given = now;
        exchange.attempt.taken = self.backend.acknowledged(link);
        if exchange.request.open {
            self.backend.send(link, last_chunk(&mut self.memory.scratch, trailers));
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
    pub fn link_drained(&mut self, link: Sock) {
        let Some(key) = self.table.link(link).map(|link| link.exchange) else { return };
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if matches!(exchange.phase, Phase::Tunnel { .. }) {
            return self.continue_tunnel(key);
        }
        if exchange.request.upload == Upload::Full && exchange.request.spool.is_none() {
            self.note_move(exchange);
            self.heard(key);
            return self.continue_upload(key);
        }
        self.spooled_drained(key);
    }
}

pub(super) const TOO_LARGE: &str = "the body is larger than this server takes";
