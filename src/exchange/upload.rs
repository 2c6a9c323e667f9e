//! Request bodies that are too large to be held: they stream to the worker as they come, with back-pressure.
//!
//! Chunks are decoded strictly and put on anew, so that what a worker sees is framed by us; a malformed or cut body ends in no
//! last chunk and a closed connection. The client's receive is armed while the worker's outbox is short.

use std::time::Duration;

use crate::backends::{Backend, How, Piece, Size, Sock};
use crate::buffers::block::{Block, SMALL};
use crate::buffers::slots::Key;
use crate::connection::Loop;
use crate::dispatch::Outcome;
use crate::http::body::put_chunk_line;

use super::{Phase, Reader};

/// How long a sender may make no progress while its request holds a permit.
const UPLOAD_STALL: Duration = Duration::from_secs(5);
/// Room for a chunk's size line: sixteen digits and the line's end.
const CHUNK_LINE: usize = 24;

impl<B: Backend> Loop<B> {
    /// Body bytes of a request that streams.
    pub fn upload(&mut self, key: Key, mut input: Block) {
        loop {
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
            let (link, chunked) = (exchange.link, exchange.open);
            match exchange.upload.take(&mut input) {
                Ok(Some(data)) => {
                    exchange.body_bytes += data.len() as u64;
                    if exchange.body_bytes > self.shared.settings.max_body {
                        return self.break_upload(key, 413, super::start::TOO_LARGE);
                    }
                    self.send_data(link, data, chunked);
                }
                Ok(None) => break,
                Err(refusal) => return self.break_upload(key, refusal.status, refusal.reason),
            }
        }
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (sock, link) = (exchange.client, exchange.link);
        if exchange.upload.is_done() {
            if exchange.open {
                self.send_last_chunk(key, link);
            }
            self.keep_input(sock, input);
            // The worker has the whole request only now.
            let request = self.shared.settings.app.timeouts.request;
            if let Some(exchange) = self.exchanges.lookup_mut(key) {
                exchange.request_by = self.now + request;
            }
            self.extend_read(key);
            return self.watch(sock);
        }
        self.continue_upload(key);
    }

    /// Takes more of the body when the worker has taken what it was sent.
    pub fn continue_upload(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (sock, link) = (exchange.client, exchange.link);
        if exchange.upload.is_done() || sock == Key::NONE {
            return;
        }
        let long = !matches!(exchange.upload, Reader::Length(left) if left <= SMALL as u64);
        let full = self.link_is_full(link);
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            exchange.upload_paused = full;
            // While the worker is the slow one its own deadline counts, otherwise the sender's.
            let wait = if full { self.shared.settings.app.timeouts.read } else { UPLOAD_STALL };
            exchange.read_by = self.now + wait;
            self.wheel.arm(sock.index, exchange.read_by);
        }
        if !full {
            self.backend.recv(sock, if long { Size::Large } else { Size::Small });
        }
    }

    /// The worker has taken what it was sent.
    pub fn link_drained(&mut self, sock: Sock) {
        let Some(key) = self.table.link(sock).map(|link| link.exchange) else { return };
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if exchange.phase == Phase::Tunnel {
            return self.tunnel_drained(key, sock);
        }
        if std::mem::take(&mut exchange.upload_paused) {
            self.continue_upload(key);
        }
    }

    /// Sends a run of a body to a worker, as a chunk where the body is chunked.
    pub fn send_data(&mut self, link: Sock, data: Block, chunked: bool) {
        if !chunked {
            return self.backend.send(link, data.into());
        }
        let line = self.scratch.write(CHUNK_LINE, |out| put_chunk_line(out, data.len()));
        self.backend.send(link, line.into());
        self.backend.send(link, data.into());
        self.backend.send(link, Piece::Static(b"\r\n"));
    }

    pub fn send_last_chunk(&mut self, key: Key, link: Sock) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let trailers = exchange.upload.trailers();
        let end = self.scratch.write(trailers.len() + 8, |out| {
            out.put(b"0\r\n");
            out.put(trailers);
            out.put(b"\r\n");
        });
        self.backend.send(link, end.into());
    }

    /// The body cannot be finished: the worker sees a message that is visibly incomplete on a connection that closes.
    pub fn break_upload(&mut self, key: Key, status: u16, reason: &str) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if exchange.phase == Phase::Relaying {
            // The worker has answered early: behind the head of an answer there is no room for another.
            return self.cut_answer(key, reason);
        }
        self.drop_link(key, How::Now);
        self.give_back(key, Outcome::Broken);
        self.refuse_body(key, status, reason);
    }

    /// Refuses a request for its body and closes: what stands behind such a body is never read as a request, even where the
    /// fault came to light at the body's end.
    pub fn refuse_body(&mut self, key: Key, status: u16, reason: &str) {
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            exchange.keep_alive = false;
        }
        self.fail(key, status, reason);
    }
}
