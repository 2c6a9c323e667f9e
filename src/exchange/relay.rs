//! The way back: a worker's answer is read, its head edited once, and its body lent to the client's outbox.
//!
//! A worker's answer is hostile input. What is malformed before the head has left is a 502; what breaks later ends the
//! client's connection without a clean end of the body.
//!
//! So that a slow reader does not hold a worker, the answer is received into memory up to `response_buffer`; blocks that would wait
//! are copied to the heap. Beyond it the worker's receive is not armed until the client has drained.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::backends::{Backend, HIGH_MARK, How, Piece, Size, Sock};
use crate::buffers::block::{Block, SMALL};
use crate::buffers::slots::Key;
use crate::connection::{Loop, State};
use crate::dispatch::Outcome;
use crate::http::body::put_chunk_line;
use crate::http::head::{self, Response};
use crate::http::rewrite::{self, Answer, Rewritten};
use crate::http::{Framing, Refusal, Version};
use crate::planted::{self, Bug};

use super::start::id_text;
use super::{Encoding, Phase, Reader};

/// A body up to this size that came whole with its head is copied behind it: one vector is cheaper than two.
const COPY_BYTES: usize = 2048;
const MALFORMED: &str = "a worker sent a malformed answer";
/// Room for a chunk's size line and what ends a chunk.
const CHUNK_LINE: usize = 24;

impl<B: Backend> Loop<B> {
    /// Bytes of an answer of which the head is not complete yet.
    pub fn answer_head(&mut self, key: Key, sock: Sock, block: Block) {
        let Some(before) = self.table.link(sock).map(|link| link.input.take()) else { return };
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if before.is_none() && self.backend.offered(sock) == exchange.sent_before {
            // They were on their way before anything of this request was: no answer to it, whatever they say.
            return self.lost_before_answer(key, false);
        }
        let mut input = match before {
            None => block,
            Some(before) => self.pool.heap_joined(&before, &block),
        };
        loop {
            let Some(exchange) = self.exchanges.lookup(key) else { return };
            let upgrade = exchange.websocket;
            match head::response(&input, exchange.method, upgrade, &self.limits, &mut self.fields) {
                Err(refusal) => return self.bad_answer(key, &refusal),
                Ok(None) => {
                    if let Some(link) = self.table.link(sock) {
                        link.input = (!input.is_empty()).then(|| input.settle(&self.pool));
                    }
                    return self.backend.recv(sock, Size::Small);
                }
                Ok(Some(response)) if response.status < 200 && response.status != 101 => {
                    self.inform(key, &input, &response);
                    input.advance(response.len);
                }
                Ok(Some(response)) => return self.begin_answer(key, input, &response),
            }
        }
    }

    /// An interim answer: passed on to clients that know such, but for 100, which was answered by us.
    fn inform(&mut self, key: Key, input: &[u8], response: &Response) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.begun = true;
        exchange.read_by = self.now + self.shared.settings.app.timeouts.read;
        if response.status == 100 || exchange.version == Version::Http10 {
            return;
        }
        let client = exchange.client;
        if self.backend.unsent(client) > HIGH_MARK {
            // A client that does not read would have a worker's flood of these held for it; none of them has to arrive.
            return;
        }
        let room = rewrite::informational_room(response, &self.fields);
        let piece = self.scratch.write(room, |out| rewrite::informational(out, input, response, &self.fields));
        self.send_client(client, piece.into());
    }

    /// A malformed answer, or one whose head is above a limit: nothing of it reaches the client.
    fn bad_answer(&mut self, key: Key, refusal: &Refusal) {
        let label = self.worker_label(key);
        let limit = self.limits.exceeded(refusal);
        let fields: [(&str, &dyn std::fmt::Display); 3] = [
            ("worker", &label),
            ("reason", limit.as_ref().map_or(&refusal.reason as &dyn std::fmt::Display, |limit| limit)),
            ("section", &refusal.section),
        ];
        let message = if limit.is_some() { "a worker's answer is above a limit" } else { MALFORMED };
        self.shared.log.seldom(crate::log::Level::Warn, message, &fields);
        self.drop_link(key, How::Now);
        self.give_back(key, Outcome::Broken);
        self.fail(key, 502, limit.as_deref().unwrap_or("the worker sent a malformed answer"));
    }

    fn begin_answer(&mut self, key: Key, input: Block, response: &Response) {
        let keep_head = self.access.enabled();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if (response.busy || response.draining) && exchange.is_whole() && !exchange.retried {
            return self.declined(key);
        }
        if response.status == 101 {
            return self.begin_tunnel(key, input, response);
        }
        exchange.phase = Phase::Relaying;
        exchange.status = response.status;
        exchange.release_request(keep_head);
        exchange.answer = Reader::new(response.framing);
        exchange.stream = response.event_stream || response.unbuffered;
        exchange.stream_hold = exchange.stream.then(|| self.shared.streams.hold());
        exchange.link_keeps = response.keep_alive;
        exchange.link_timeout = response.keep_alive_timeout;
        exchange.keep_alive &= !self.draining && exchange.upload.is_done();
        let old = exchange.version == Version::Http10;
        let rewritten;
        (exchange.encoding, rewritten) = match (response.framing, old) {
            (Framing::Chunked, true) => (Encoding::Dechunk, Rewritten::UntilClose),
            (Framing::UntilClose, false) => (Encoding::Chunk, Rewritten::Chunked),
            (Framing::UntilClose, true) => (Encoding::Same, Rewritten::UntilClose),
            _ => (Encoding::Same, Rewritten::Same),
        };
        exchange.keep_alive &= rewritten != Rewritten::UntilClose;
        if exchange.stream {
            self.tell_of_streams();
        }
        self.send_answer_head(key, input, response, rewritten);
    }

    /// Says, at most once in ten seconds, that event streams hold all permits: to others the app then looks stuck.
    fn tell_of_streams(&mut self) {
        let app = &self.shared.settings.app;
        let permits = self.shared.dispatch.snapshot().eligible as usize * app.concurrency as usize;
        let streams = self.shared.streams.held();
        if streams >= permits && self.shared.streams.may_tell(self.clock.micros(self.wheel.now_nanos()) / 1_000_000) {
            let fields: [(&str, &dyn std::fmt::Display); 2] = [("streams", &streams), ("permits", &permits)];
            let message = "event streams hold all permits, other requests wait: raise --concurrency or --workers";
            self.shared.log.event(crate::log::Level::Warn, message, &fields);
        }
    }

    fn send_answer_head(&mut self, key: Key, mut input: Block, response: &Response, rewritten: Rewritten) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let sock = exchange.client;
        let answer = Answer {
            date: &self.clock.date,
            request_id: &id_text(exchange.id),
            client: exchange.version,
            keep_alive: exchange.keep_alive,
            framing: rewritten,
            upgrade: false,
        };
        let whole = match exchange.answer {
            // The size first: a length is the worker's word, and may be near 2^64.
            Reader::Length(length) => length <= COPY_BYTES as u64 && length as usize + response.len <= input.len(),
            _ => false,
        };
        let body = if let (true, Reader::Length(length)) = (whole, &exchange.answer) { *length as usize } else { 0 };
        let room = rewrite::response_room(response, &self.fields, &answer) + body;
        let piece = self.scratch.write(room, |out| {
            rewrite::response(out, &input, response, &self.fields, &answer);
            out.put(&input[response.len..response.len + body]);
        });
        if whole {
            exchange.answer = Reader::Done;
        }
        exchange.bytes += body as u64;
        input.advance(response.len + body);
        self.become_state(sock, State::WritingResponse);
        self.send_client(sock, piece.into());
        if whole { self.finish_answer(key, !input.is_empty()) } else { self.answer_body(key, input) }
    }

    /// Bytes of an answer's body.
    pub fn answer_body(&mut self, key: Key, mut input: Block) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.long |= input.len() >= SMALL;
        let relayed = match (exchange.encoding, &exchange.answer) {
            (Encoding::Same, Reader::Chunked(..)) => self.relay_chunks(key, &mut input),
            (encoding, _) => self.relay_runs(key, &mut input, encoding == Encoding::Chunk),
        };
        if let Err(refusal) = relayed {
            return self.cut_answer(key, refusal.reason);
        }
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if exchange.answer.is_done() {
            return self.finish_answer(key, !input.is_empty());
        }
        self.extend_read(key);
        self.continue_answer(key);
    }

    /// Passes chunks on as they came, checked; the end is written by us.
    fn relay_chunks(&mut self, key: Key, input: &mut Block) -> Result<(), Refusal> {
        while !input.is_empty() {
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return Ok(()) };
            let Reader::Chunked(chunked, done) = &mut exchange.answer else { return Ok(()) };
            if *done {
                return Ok(());
            }
            let relay = chunked.relay(input)?;
            *done = relay.done;
            let pass = input.slice(relay.pass);
            input.advance(relay.consumed);
            self.lend(key, pass);
            if relay.done {
                self.end_chunks(key);
            }
        }
        Ok(())
    }

    fn end_chunks(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let trailers = exchange.answer.trailers();
        if trailers.is_empty() {
            let client = exchange.client;
            return self.send_client(client, Piece::Static(b"0\r\n\r\n"));
        }
        let end = self.scratch.write(trailers.len() + 8, |out| {
            out.put(b"0\r\n");
            out.put(trailers);
            out.put(b"\r\n");
        });
        let client = exchange.client;
        self.send_client(client, end.into());
    }

    /// Passes the bare body on, with chunks put on where the client needs them.
    fn relay_runs(&mut self, key: Key, input: &mut Block, chunk: bool) -> Result<(), Refusal> {
        loop {
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return Ok(()) };
            let Some(data) = exchange.answer.take(input)? else { return Ok(()) };
            if !chunk {
                self.lend(key, data);
                continue;
            }
            let client = exchange.client;
            let line = self.scratch.write(CHUNK_LINE, |out| put_chunk_line(out, data.len()));
            self.lend(key, line);
            self.lend(key, data);
            self.send_client(client, Piece::Static(b"\r\n"));
        }
    }

    /// Lends bytes to the client's outbox; where many wait there already, they are copied, so that no block waits.
    fn lend(&mut self, key: Key, data: Block) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.bytes += data.len() as u64;
        let client = exchange.client;
        let waits = self.backend.unsent(client) > 2 * HIGH_MARK || (self.pool.scarce() && data.wasteful());
        let data = if waits { data.settle(&self.pool) } else { data };
        if planted::strikes(Bug::LeakedBlock, 20) {
            std::mem::forget(data.clone());
        }
        self.send_client(client, data.into());
    }

    /// Arms the worker's next receive, unless so much waits for the client that the worker must wait, too.
    fn continue_answer(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let unsent = self.backend.unsent(exchange.client);
        // Below the high mark no drain would follow, and the answer would stand still.
        let full = unsent > self.shared.settings.app.response_buffer.max(HIGH_MARK)
            || (unsent > HIGH_MARK && !self.pool.budget().fits(unsent));
        exchange.paused = full;
        if full {
            return;
        }
        let left = match exchange.answer {
            Reader::Length(left) => left,
            _ if exchange.long => u64::MAX,
            _ => 0,
        };
        let size = if left > SMALL as u64 { Size::Large } else { Size::Small };
        self.backend.recv(exchange.link, size);
    }

    /// The client has taken what waited for it.
    pub fn answer_drained(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        match exchange.phase {
            Phase::Tunnel => {
                let client = exchange.client;
                self.tunnel_drained(key, client);
            }
            Phase::Relaying if std::mem::take(&mut exchange.paused) => {
                // The worker was held up for the client's sake: its own deadlines begin anew.
                exchange.request_by = self.now + self.shared.settings.app.timeouts.request;
                self.extend_read(key);
                self.continue_answer(key);
            }
            _ => {}
        }
    }

    /// The worker's part is over: its permit goes back, its connection is kept or closed; then the client's next request.
    pub fn finish_answer(&mut self, key: Key, surplus: bool) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.finished = Some(self.now);
        let link = std::mem::replace(&mut exchange.link, Key::NONE);
        let kept = exchange.link_keeps && exchange.upload.is_done() && !surplus;
        let timeout = exchange.link_timeout;
        if kept && self.backend.unsent(link) == 0 {
            self.park(link, timeout)
        } else {
            self.close_link(link, How::Now)
        }
        self.give_back(key, Outcome::Answered);
        self.log_exchange(key);
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (sock, keep_alive) = (exchange.client, exchange.keep_alive);
        let is_last = exchange.upload.is_done() && !exchange.may_go_on;
        self.exchanges.discard(key);
        let Some(client) = self.table.client(sock) else { return };
        client.exchange = Key::NONE;
        if keep_alive {
            self.become_state(sock, State::ReadingRequest);
            self.await_request(sock);
        } else if is_last {
            self.close_answered(sock);
        } else {
            // The client is still sending, or may have begun the next request: its bytes must not reset the answer.
            self.close_sending_client(sock);
        }
    }

    /// An answer that cannot be completed: the client must see that it was cut.
    pub fn cut_answer(&mut self, key: Key, reason: &str) {
        self.count().errors.add(1);
        let label = self.worker_label(key);
        let fields: [(&str, &dyn std::fmt::Display); 2] = [("worker", &label), ("reason", &reason)];
        self.shared.log.seldom(crate::log::Level::Warn, "an answer was cut", &fields);
        self.drop_link(key, How::Now);
        self.give_back(key, Outcome::Broken);
        self.log_exchange(key);
        if planted::active(Bug::CleanCut) {
            self.end_chunks(key);
        }
        let Some(exchange) = self.exchanges.remove(key) else { return };
        if let Some(client) = self.table.client(exchange.client) {
            client.exchange = Key::NONE;
        }
        // By its length or its chunks a cut body shows; one that ends with the connection would look whole.
        let looks_whole = exchange.encoding == Encoding::Dechunk || matches!(exchange.answer, Reader::UntilClose);
        let looks_whole = looks_whole && exchange.encoding != Encoding::Chunk;
        self.close_client(exchange.client, if looks_whole { How::Reset } else { How::Flushed });
    }

    /// The worker's end, where that is the end of the body.
    pub fn end_answer(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.answer = Reader::Done;
        exchange.link_keeps = false;
        let (client, chunked) = (exchange.client, exchange.encoding == Encoding::Chunk);
        if chunked {
            self.send_client(client, Piece::Static(b"0\r\n\r\n"));
        }
        self.finish_answer(key, false);
    }

    /// The worker has made progress: its read deadline moves.
    pub fn extend_read(&mut self, key: Key) {
        let settings = &self.shared.settings;
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let wait = if exchange.stream { settings.timeouts.idle } else { settings.app.timeouts.read };
        exchange.read_by = self.now + wait;
        // A worker that never pauses would else move the deadline past the request's own for ever.
        let left = exchange.request_by.saturating_duration_since(self.now);
        let due = if exchange.stream { wait } else { wait.min(left) };
        self.wheel.arm_after(exchange.client.index, due);
    }
}

/// How many event streams hold a permit, in all loops.
#[derive(Default)]
pub struct Streams {
    held: Arc<AtomicUsize>,
    /// The second in which it was last said that they hold all permits.
    told: AtomicU64,
}

/// Counts as one stream as long as it lives.
pub(crate) struct StreamHold(Arc<AtomicUsize>);

/// Seconds between two lines about streams that hold all permits.
const TELL_SECONDS: u64 = 10;

impl Streams {
    fn hold(&self) -> StreamHold {
        self.held.fetch_add(1, Ordering::Relaxed);
        StreamHold(self.held.clone())
    }

    fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    fn may_tell(&self, second: u64) -> bool {
        let told = self.told.load(Ordering::Relaxed);
        second >= told + TELL_SECONDS
            && self.told.compare_exchange(told, second, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl Drop for StreamHold {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
