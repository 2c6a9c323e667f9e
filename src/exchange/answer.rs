//! The way back: a worker's answer is read, its head edited once, and its body lent to the stream.
//!
//! A worker's answer is hostile input. What is malformed before the head has left is a 502; what breaks later ends the
//! client's stream without a clean end of the body.

use std::fmt::Display;

use crate::backends::{Backend, HIGH_MARK, Size, Sock};
use crate::buffers::block::{Block, SMALL};
use crate::buffers::slots::Key;
use crate::dispatch::Outcome;
use crate::event_loop::{Loop, send};
use crate::http::Refusal;
use crate::http::head::{self, Response, Reuse};
use crate::http::reader::Reader;
use crate::log::Level;
use crate::metrics::series::RetryReason;
use crate::planted::{self, Bug};

use super::{Ending, Exchange, Phase};

const MALFORMED: &str = "a worker sent a malformed answer";
/// A body up to this size that came whole with its head is copied behind it: one vector is cheaper than two.
const COPY_BYTES: usize = 2048;

impl<B: Backend> Loop<B> {
    /// Bytes of an answer of which the head is not complete yet.
    pub fn answer_head(&mut self, key: Key, sock: Sock, block: Block) {
        let Some(before) = self.table.link(sock).map(|link| link.input.take()) else { return };
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (method, upgrade) = (exchange.request.method, exchange.request.websocket);
        let (may_name, asks) = (exchange.answer.sendfile.is_some(), exchange.stream.is_own());
        if before.is_none() && self.backend.offered(sock) == exchange.attempt.sent_before {
            // They were on their way before anything of this request was: no answer to it, whatever they say.
            return self.lost_before_answer(key, false);
        }
        let mut input = self.memory.pool.joined(before, block);
        loop {
            match head::response(&input, method, upgrade, &self.heads.limits, &mut self.heads.fields) {
                Err(refusal) => return self.bad_answer(key, &refusal),
                Ok(None) => {
                    self.heard(key);
                    if let Some(link) = self.table.link(sock) {
                        link.input = (!input.is_empty()).then(|| input.settle(&self.memory.pool));
                    }
                    return self.backend.recv(sock, Size::Small);
                }
                Ok(Some(response)) if response.status < 200 && response.status != 101 => {
                    self.inform(key, &input, &response);
                    input.advance(response.len);
                }
                Ok(Some(response)) if may_name && self.send_named(key, &input, &response) => return,
                Ok(Some(response)) if asks => return self.own_answered(key, input, &response),
                Ok(Some(response)) => return self.begin_answer(key, input, &response),
            }
        }
    }

    /// An interim answer: passed on to clients that know such, but for 100, which was answered by us.
    fn inform(&mut self, key: Key, input: &[u8], response: &Response) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.attempt.begun = true;
        let stream = exchange.stream;
        // A client that does not read would have a worker's flood of these held for it; none of them has to arrive.
        if response.status != 100 && !stream.is_own() && self.unsent(stream.connection) <= HIGH_MARK {
            self.stream_interim(stream, input, response);
        }
    }

    /// A malformed answer, or one whose head is above a limit: nothing of it reaches the client.
    fn bad_answer(&mut self, key: Key, refusal: &Refusal) {
        let limit = self.heads.limits.exceeded(refusal);
        let reason = limit.as_deref().unwrap_or(refusal.reason);
        let message = if limit.is_some() { "a worker's answer is above a limit" } else { MALFORMED };
        self.warn(key, message, reason, &[("section", &refusal.section)]);
        let reason = limit.as_deref().unwrap_or("the worker sent a malformed answer");
        self.finish(key, Ending::Failed { status: 502, reason, outcome: Some(Outcome::Malformed) });
    }

    #[inline(always)]
    pub fn begin_answer(&mut self, key: Key, mut input: Block, response: &Response) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if (response.busy || response.draining) && exchange.may_be_declined() {
            return self.retry(key, RetryReason::Declined);
        }
        exchange.answer.note = self.access.note(&input, response);
        if response.status == 101 {
            return self.begin_tunnel(key, input, response);
        }
        exchange.phase = Phase::Relaying;
        exchange.request.release(self.access.enabled());
        let answer = &mut exchange.answer;
        answer.status = response.status;
        answer.reader = Reader::behind(&self.heads.fields, response.framing);
        answer.stream = response.event_stream || response.unbuffered;
        answer.reuse = Reuse::after(response);
        let coded;
        let (exchange, response) = if answer.coded.is_none() {
            (exchange, response)
        } else {
            coded = self.begin_coding(key, &input, response);
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
            (exchange, &coded)
        };
        let (stream, id, edits) = (exchange.stream, exchange.request.id, exchange.answer.edits.take());
        // The size first: a length is the worker's word, and may be near 2^64.
        let whole = match exchange.answer.reader {
            Reader::Done => Some(0),
            _ if exchange.answer.coded.is_some() => None,
            Reader::Length(length) if length > COPY_BYTES as u64 => None,
            Reader::Length(length) => Some(length as usize).filter(|length| length + response.len <= input.len()),
            _ => None,
        };
        let body = whole.unwrap_or(0);
        exchange.answer.bytes += body as u64;
        if whole.is_some() {
            exchange.answer.reader = Reader::Done;
        }
        let endless = exchange.answer.stream;
        self.stream_head(stream, &id, &input, response, body, edits.as_deref());
        input.advance(response.len + body);
        if whole.is_some() {
            return self.finish(key, Ending::Answered { surplus: !input.is_empty() });
        }
        if endless {
            self.begin_stream(key);
        }
        self.forget_spooled_body(key);
        self.answer_body(key, input);
    }

    /// An answer that goes on for as long as somebody listens.
    fn begin_stream(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let app = &exchange.app;
        let streams = app.dispatch.streams();
        exchange.request.keep_for_log(&self.access, &self.memory.pool);
        exchange.answer.stream_hold = Some(streams.hold());
        // Says, at most once in ten seconds, that event streams hold all permits: to others the app then looks stuck.
        let permits = app.dispatch.snapshot().eligible as usize * app.settings.sharing.concurrency as usize;
        let held = streams.held();
        let second = self.time.day.micros(self.time.connections.now_nanos()) / 1_000_000;
        if held >= permits && streams.may_tell(second) {
            let fields: [(&str, &dyn Display); 2] = [("streams", &held), ("permits", &permits)];
            let message = "event streams hold all permits, other requests wait: raise --concurrency or --workers";
            self.shared.log.event(Level::Warn, message, &fields);
        }
    }

    /// Bytes of an answer's body.
    pub fn answer_body(&mut self, key: Key, mut input: Block) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.answer.long |= input.len() >= SMALL;
        let (stream, coded) = (exchange.stream, exchange.answer.coded.is_some());
        let chunked = matches!(exchange.answer.reader, Reader::Chunked(..));
        let chunks = self.stream_takes_chunks(stream);
        let relayed = if coded {
            self.relay_coded(key, &mut input)
        } else if chunked && chunks {
            self.relay_chunks(key, &mut input)
        } else {
            self.relay_runs(key, &mut input, chunks)
        };
        if let Err(refusal) = relayed {
            return self.fail(key, 502, refusal.reason);
        }
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if exchange.answer.reader.is_done() {
            return self.answer_whole(key, !input.is_empty());
        }
        self.note_move(exchange);
        self.heard(key);
        self.pull(key);
    }

    /// Passes chunks on as they came, checked; the end is written by us.
    fn relay_chunks(&mut self, key: Key, input: &mut Block) -> Result<(), Refusal> {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return Ok(()) };
        let Reader::Chunked(chunked, done) = &mut exchange.answer.reader else { return Ok(()) };
        while !*done && !input.is_empty() {
            let relay = chunked.relay(input)?;
            *done = relay.done;
            exchange.answer.bytes += relay.data as u64;
            let pass = input.slice(relay.pass);
            input.advance(relay.consumed);
            leak_by_plan(&pass);
            match &mut exchange.answer.spool {
                Some(queue) => queue.push_framed(&pass, relay.data),
                None => send(&mut self.secure, &mut self.backend, exchange.stream.connection, pass.into()),
            }
        }
        Ok(())
    }

    /// Passes the bare body on, in chunks of our own where it is to be `chunked`.
    fn relay_runs(&mut self, key: Key, input: &mut Block, chunked: bool) -> Result<(), Refusal> {
        loop {
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return Ok(()) };
            let Some(data) = exchange.answer.reader.take(input)? else { return Ok(()) };
            exchange.answer.bytes += data.len() as u64;
            let stream = exchange.stream;
            leak_by_plan(&data);
            match &mut exchange.answer.spool {
                Some(queue) => queue.push_run(&data, chunked),
                None => self.send_run(stream.connection, data, chunked),
            }
        }
    }

    /// The worker of an exchange has been heard, which saves it when another of its requests is silent.
    pub fn note_move(&self, exchange: &Exchange) {
        let Some(worker) = exchange.attempt.worker else { return };
        if let Some(seat) = self.apps.seat(exchange.app.id, worker) {
            seat.target.moves.note(self.time.now);
        }
    }
}

fn leak_by_plan(data: &Block) {
    if planted::strikes(Bug::LeakedBlock, 20) {
        std::mem::forget(data.clone());
    }
}
