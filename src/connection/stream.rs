//! Streams: whom an exchange answers, and the narrow surface over which it does.
//!
//! Everything that knows how a protocol writes an answer, keeps a connection or closes it is behind these calls:
//!
//! | call | says |
//! |---|---|
//! | [`Loop::stream_head`], [`Loop::stream_body`], [`Loop::stream_end`] | an answer, in this order |
//! | [`Loop::stream_interim`], [`Loop::stream_continue`] | a 1xx before it |
//! | [`Loop::stream_reply`] | a short answer of our own, head and body in one piece |
//! | [`Loop::stream_switch`] | a 101: from here on bytes pass as they are |
//! | [`Loop::stream_over`] | the answer is whole: the next request, or the connection's end |
//! | [`Loop::stream_abort`] | the answer cannot be completed, which the client must see |
//! | [`Loop::stream_leave`] | nothing more is to be said: the client has left, or must go |
//! | [`Loop::stream_want`] | more of the request's body is wanted |
//!
//! HTTP/1 is the one form today: a connection carries one stream at a time, whose number is 0.

use crate::backends::{Backend, How, Piece, Sock};
use crate::buffers::block::{Block, SMALL, Scratch};
use crate::buffers::slots::Key;
use crate::http::body::put_chunk_line;
use crate::http::head::{Request, Response};
use crate::http::id::id_text;
use crate::http::reader::Reader;
use crate::http::rewrite::{self, Answer, Rewritten};
use crate::http::{Framing, Version};

use super::{Client, Loop, State, Table, Task};

/// Room for a chunk's size line and what ends a chunk.
const CHUNK_LINE: usize = 24;

/// Whom an exchange answers: one request of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stream {
    pub connection: Sock,
    /// Which of the connection's; always 0 in HTTP/1.
    pub id: u32,
}

/// How the body of the answer in hand is framed towards an HTTP/1 client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BodyFraming {
    /// By its length, or there is none.
    Length,
    /// By chunks.
    Chunks,
    /// By the connection's end.
    UntilClose,
}

/// What HTTP/1 knows of the request that a connection has in hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Http1 {
    pub version: Version,
    /// The connection is kept after the answer.
    keep_alive: bool,
    /// What the client itself said of that: whoever wants it kept may send the next request before it learns that it closes.
    may_go_on: bool,
    framing: BodyFraming,
}

impl Http1 {
    /// Of a connection without a request.
    pub const NONE: Http1 =
        Http1 { version: Version::Http11, keep_alive: true, may_go_on: true, framing: BodyFraming::Length };

    pub fn new(request: &Request) -> Http1 {
        let (version, keep_alive) = (request.version, request.keep_alive);
        Http1 { version, keep_alive, may_go_on: keep_alive, framing: BodyFraming::Length }
    }

    pub fn is_old(self) -> bool {
        self.version == Version::Http10
    }

    /// Whether the client means to go on behind the request in hand.
    pub fn keeps_alive(self) -> bool {
        self.keep_alive
    }
}

impl Client {
    /// How the body of a worker's answer leaves, and is remembered to be framed.
    fn decide_framing(&mut self, framing: Framing) -> Rewritten {
        let rewritten = match (framing, self.http.is_old()) {
            (Framing::Chunked | Framing::UntilClose, true) => Rewritten::UntilClose,
            (Framing::UntilClose, false) => Rewritten::Chunked,
            _ => Rewritten::Same,
        };
        self.http.framing = match (rewritten, framing) {
            (Rewritten::UntilClose, _) => BodyFraming::UntilClose,
            (Rewritten::Chunked, _) | (_, Framing::Chunked) => BodyFraming::Chunks,
            _ => BodyFraming::Length,
        };
        self.http.keep_alive &= rewritten != Rewritten::UntilClose;
        rewritten
    }
}

impl<B: Backend> Loop<B> {
    /// Decides, as an answer begins, whether the connection is kept: not in a stop, not while the request's body is still coming in,
    /// and not while others wait to be let in, unless its next request is here already.
    pub fn decide_keep_alive(&mut self, connection: Sock) -> bool {
        let (draining, crowded) = (self.accepting.draining, self.shared.admission.is_crowded());
        let Some(client) = self.table.client(connection) else { return false };
        let away = draining || (crowded && client.input.is_none());
        client.http.keep_alive &= !away && client.body.is_none();
        client.http.keep_alive
    }

    /// The head of a worker's answer. The `body` bytes that follow it in `input` leave with it, as the whole of the body.
    pub fn stream_head(&mut self, stream: Stream, id: u64, input: &[u8], response: &Response, body: usize) {
        self.decide_keep_alive(stream.connection);
        let Some(client) = self.table.client(stream.connection) else { return };
        let framing = client.decide_framing(response.framing);
        let http = client.http;
        let piece = self.write_head(http, id, input, response, framing, body);
        self.become_state(stream.connection, State::WritingResponse);
        self.send_client(stream.connection, piece.into());
    }

    fn write_head(
        &mut self,
        http: Http1,
        id: u64,
        input: &[u8],
        response: &Response,
        framing: Rewritten,
        body: usize,
    ) -> Block {
        let fields = &self.heads.fields;
        let upgrade = response.status == 101;
        let answer = Answer {
            date: &self.time.day.date,
            request_id: &id_text(id),
            client: http.version,
            keep_alive: http.keep_alive || upgrade,
            framing,
            upgrade,
        };
        let room = rewrite::response_room(response, fields, &answer) + body;
        self.memory.scratch.write(room, |out| {
            rewrite::response(out, input, response, fields, &answer);
            out.put(&input[response.len..response.len + body]);
        })
    }

    /// Whether an answer's chunks may be passed on with their framing.
    pub fn stream_takes_chunks(&mut self, stream: Stream) -> bool {
        self.table.client(stream.connection).is_some_and(|client| client.http.framing == BodyFraming::Chunks)
    }

    /// A run of an answer's body.
    pub fn stream_body(&mut self, stream: Stream, data: Block) {
        if !self.stream_takes_chunks(stream) {
            return self.send_client(stream.connection, data.into());
        }
        let line = self.memory.scratch.write(CHUNK_LINE, |out| put_chunk_line(out, data.len()));
        self.send_client(stream.connection, line.into());
        self.send_client(stream.connection, data.into());
        self.send_client(stream.connection, Piece::Static(b"\r\n"));
    }

    /// The end of an answer's body, with its trailers, ready to be sent. Apart from the loop, because the trailers are the exchange's.
    #[inline]
    pub fn stream_end(backend: &mut B, scratch: &mut Scratch, table: &mut Table, stream: Stream, trailers: &[u8]) {
        let connection = stream.connection;
        if table.client(connection).is_none_or(|client| client.http.framing != BodyFraming::Chunks) {
            return;
        }
        if trailers.is_empty() {
            return backend.send(connection, Piece::Static(b"0\r\n\r\n"));
        }
        let end = scratch.write(trailers.len() + 8, |out| {
            out.put(b"0\r\n");
            out.put(trailers);
            out.put(b"\r\n");
        });
        backend.send(connection, end.into());
    }

    /// An interim answer, to clients that know such.
    pub fn stream_interim(&mut self, stream: Stream, input: &[u8], response: &Response) {
        if self.table.client(stream.connection).is_none_or(|client| client.http.is_old()) {
            return;
        }
        let fields = &self.heads.fields;
        let room = rewrite::informational_room(response, fields);
        let piece = self.memory.scratch.write(room, |out| rewrite::informational(out, input, response, fields));
        self.send_client(stream.connection, piece.into());
    }

    /// Tells the client to send the body that it has announced.
    pub fn stream_continue(&mut self, stream: Stream) {
        self.send_client(stream.connection, Piece::Static(b"HTTP/1.1 100 Continue\r\n\r\n"));
    }

    /// The 101 that was asked for.
    pub fn stream_switch(&mut self, stream: Stream, id: u64, input: &[u8], response: &Response) {
        let Some(client) = self.table.client(stream.connection) else { return };
        let http = client.http;
        let piece = self.write_head(http, id, input, response, Rewritten::Same, 0);
        self.become_state(stream.connection, State::WritingResponse);
        self.send_client(stream.connection, piece.into());
    }

    /// An answer of our own; [`Loop::decide_keep_alive`] was asked for it.
    pub fn stream_reply(&mut self, stream: Stream, piece: Block) {
        self.become_state(stream.connection, State::WritingResponse);
        self.send_client(stream.connection, piece.into());
        self.stream_over(stream);
    }

    /// The answer is whole. The exchange is gone; the next request may come, or the connection closes.
    pub fn stream_over(&mut self, stream: Stream) {
        let connection = stream.connection;
        let Some(client) = self.table.client(connection) else { return };
        client.exchange = Key::NONE;
        let http = std::mem::replace(&mut client.http, Http1::NONE);
        if http.keep_alive {
            self.become_state(connection, State::ReadingRequest);
            self.await_request(connection);
        } else if client.body.is_none() && !http.may_go_on {
            self.close_answered(connection);
        } else {
            // The client is still sending, or may have begun the next request: its bytes must not reset the answer.
            self.close_sending_client(connection);
        }
    }

    /// The answer has begun and cannot be completed. By its length or its chunks a cut body shows; one that ends with the
    /// connection would look whole, and ends in a reset.
    pub fn stream_abort(&mut self, stream: Stream) {
        let framing = self.table.client(stream.connection).map(|client| client.http.framing);
        let looks_whole = framing == Some(BodyFraming::UntilClose);
        self.stream_leave(stream, if looks_whole { How::Reset } else { How::Flushed });
    }

    /// The exchange has nothing more to say to the client, whose connection closes.
    pub fn stream_leave(&mut self, stream: Stream, how: How) {
        if let Some(client) = self.table.client(stream.connection) {
            client.exchange = Key::NONE;
        }
        self.close_client(stream.connection, how);
    }

    /// Has more of the request's body brought: what waits here already, or what the client sends next.
    pub fn stream_want(&mut self, stream: Stream) {
        let Some(client) = self.table.client(stream.connection) else { return };
        if client.input.is_some() {
            return self.work.push_back(Task::Resume(stream.connection));
        }
        let long = match &client.body {
            Some(body) => !matches!(body.reader, Reader::Length(left) if left <= SMALL as u64),
            None => false,
        };
        let size = self.memory.size(long);
        self.backend.recv(stream.connection, size);
    }
}
