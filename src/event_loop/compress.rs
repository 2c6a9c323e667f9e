//! Answers that are compressed on their way to the client, as a loop does it.
//!
//! What a worker sends comes in small blocks then, one a turn and stream, so that a body that compresses well cannot keep the loop from
//! others. What comes out waits for the client as any answer does.

use std::hash::BuildHasher;
use std::sync::Arc;

use crate::backends::Backend;
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::compress::{Encoder, Flush, Wish, padding, true_trailers};
use crate::config::{Coding, Compressing};
use crate::http::fields::Fields;
use crate::http::head::{Request, Response};
use crate::http::reader::Reader;
use crate::http::route::Edits;
use crate::http::{Framing, Refusal};

use super::Loop;

/// What is put into one piece of a body at most, in bytes.
const PIECE: usize = 16 * 1024;

/// How an answer's body is compressed.
pub(crate) enum Coded {
    /// It may be, when it has come.
    Wish(Wish),
    /// It is.
    On(Encoder),
}

/// What a request on a route that compresses so says of the coding of its answer. `edits` is what becomes of its fields by its route.
#[cold]
#[inline(never)]
pub(crate) fn wish(
    settings: &Arc<Compressing>,
    input: &[u8],
    request: &Request,
    fields: &Fields,
    edits: Option<&Edits>,
) -> Box<Coded> {
    Box::new(Coded::Wish(Wish::read(settings, input, request, fields, edits)))
}

impl Coded {
    /// What becomes of the request's fields, where that is not what its route says.
    pub fn edits(&self) -> Option<&Edits> {
        if let Coded::Wish(wish) = self { wish.edits() } else { None }
    }
}

impl<B: Backend> Loop<B> {
    /// Judges the answer that `input` begins with, of an exchange whose answer may be compressed; the answer as it leaves.
    #[cold]
    pub fn begin_coding(&mut self, key: Key, input: &[u8], response: &Response) -> Response {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return *response };
        let Some(Coded::Wish(mut wish)) = exchange.answer.coded.take().map(|coded| *coded) else { return *response };
        let edits = exchange.answer.edits.take();
        let jitter = u64::from(wish.settings().jitter);
        let mut busy = Vec::new();
        let (judged, encoder) = loop {
            let judged = wish.judge(input, response, &self.heads.fields, edits.as_deref());
            let Some(coding) = judged.coding else { break (judged, None) };
            let encoder = self.apps.contexts.encoder(coding, wish.settings(), response.framing.length());
            if encoder.is_some() {
                break (judged, encoder);
            }
            // As if its client did not take that one.
            busy.push(coding);
            wish = wish.without(&busy);
        };
        if encoder.is_none() && !busy.is_empty() {
            self.counters.compress_busy.add(1);
        }
        let mut edits = judged.edits.map(Into::into).or(edits);
        if let Some(encoder) = &encoder {
            let counters = &self.counters;
            let counter = match encoder.coding() {
                Coding::Zstd => &counters.compressed_zstd,
                Coding::Brotli => &counters.compressed_br,
                Coding::Gzip => &counters.compressed_gzip,
            };
            counter.add(1);
            if let Some(bytes) = self.random().checked_rem(jitter) {
                let bytes = 1 + bytes as usize;
                edits = Some(Edits::and(edits.as_deref(), &[], &padding(bytes)).into());
            }
        }
        // How long it becomes is known when it has ended.
        let framing = if encoder.is_some() { Framing::UntilClose } else { response.framing };
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return *response };
        exchange.answer.edits = edits;
        exchange.answer.coded = encoder.map(|encoder| Box::new(Coded::On(encoder)));
        Response { framing, ..*response }
    }

    /// Passes bytes of a body on, compressed.
    pub fn relay_coded(&mut self, key: Key, input: &mut Block) -> Result<(), Refusal> {
        let mut out = std::mem::take(&mut self.heads.coded);
        let encoded = self.encode(key, input, &mut out);
        self.send_coded(key, &mut out);
        self.heads.coded = out;
        encoded
    }

    fn encode(&mut self, key: Key, input: &mut Block, out: &mut Vec<u8>) -> Result<(), Refusal> {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return Ok(()) };
        let answer = &mut exchange.answer;
        let Some(Coded::On(encoder)) = answer.coded.as_deref_mut() else { return Ok(()) };
        while let Some(data) = answer.reader.take(input)? {
            self.counters.compress_bytes_in.add(data.len() as u64);
            encoder.encode(&data, Flush::No, out).map_err(|_| FAILED)?;
        }
        // A body of unknown length may be one that is made while it is read: what has come is not held back.
        let grows = !matches!(answer.reader, Reader::Length(_)) && !answer.reader.is_done();
        let flush = if grows { Flush::Now } else { Flush::No };
        encoder.encode(b"", flush, out).map_err(|_| FAILED)
    }

    /// Sends what is left in the encoder of an answer that is whole; whether that was possible.
    #[cold]
    pub fn end_coding(&mut self, key: Key) -> bool {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return true };
        let Some(Coded::On(mut encoder)) = exchange.answer.coded.take().map(|coded| *coded) else { return true };
        if let Some(trailers) = exchange.answer.reader.trailers_mut() {
            *trailers = true_trailers(trailers);
        }
        let mut out = std::mem::take(&mut self.heads.coded);
        let is_whole = encoder.encode(b"", Flush::End, &mut out).is_ok();
        self.send_coded(key, &mut out);
        self.heads.coded = out;
        is_whole
    }

    /// Sends what has come out of an encoder.
    fn send_coded(&mut self, key: Key, out: &mut Vec<u8>) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.answer.bytes += out.len() as u64;
        let connection = exchange.stream.connection;
        self.counters.compress_bytes_out.add(out.len() as u64);
        for piece in out.chunks(PIECE) {
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
            match &mut exchange.answer.spool {
                Some(queue) => queue.push_run(piece, true),
                None => {
                    let block = self.memory.scratch.write(piece.len(), |room| room.put(piece));
                    self.send_run(connection, block, true);
                }
            }
        }
        out.clear();
        // One stream that was long leaves no room behind for all times.
        out.shrink_to(4 * PIECE);
    }

    /// A number that nobody outside can tell beforehand.
    pub(super) fn random(&mut self) -> u64 {
        self.heads.next_id = self.heads.next_id.wrapping_add(1);
        self.apps.contexts.random.hash_one(self.heads.next_id)
    }
}

/// An answer whose encoder has failed.
pub(super) const FAILED: Refusal = Refusal { status: 502, reason: "the answer could not be compressed", section: "" };
