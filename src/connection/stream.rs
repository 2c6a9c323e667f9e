//! Streams: whom an exchange answers, and the narrow surface over which it does.
//!
//! Everything that knows how a protocol writes an answer, keeps a connection or closes it is behind these calls:
//!
//! | call | says |
//! |---|---|
//! | [`Loop::stream_head`], [`Loop::send_run`], [`last_chunk`](crate::http::body::last_chunk) | an answer, in this order; behind a 101 bytes pass as they are |
//! | [`Loop::stream_interim`], [`Loop::stream_continue`] | a 1xx before it |
//! | [`Loop::stream_over`] | the answer is whole: the next request, or the connection's end |
//! | [`Loop::stream_abort`] | the answer cannot be completed, which the client must see |
//! | [`Loop::stream_leave`] | nothing more is to be said: the client has left, or must go |
//! | [`Loop::stream_want`] | more of the request's body is wanted |
//!
//! HTTP/1 is the one form today: a connection carries one stream at a time, whose number is 0.

use crate::backends::{Backend, How, Piece, Sock};
use crate::buffers::block::{Block, SMALL};
use crate::buffers::slots::Key;
use crate::http::body::{CHUNK_LINE_ROOM, put_chunk_line};
use crate::http::head::Response;
use crate::http::id::Id;
use crate::http::reader::Reader;
use crate::http::rewrite::{self, Answer, Rewritten};
use crate::http::route::Edits;

use super::State;
use crate::event_loop::{Loop, Task};

/// Whom an exchange answers: one request of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stream {
    pub connection: Sock,
    /// Which of the connection's; in HTTP/1 always 0, but for [`Stream::is_own`].
    pub id: u32,
}

impl<B: Backend> Loop<B> {
    /// Decides, as an answer begins, whether the connection is kept: not in a stop, not while the request's body is still coming in,
    /// and not while others wait to be let in, unless its next request is here already.
    pub fn decide_keep_alive(&mut self, connection: Sock) -> bool {
        let (draining, crowded) = (self.accepting.draining, self.shared.admission.is_crowded());
        self.table.client(connection).is_some_and(|client| client.decide_keep_alive(draining, crowded))
    }

    /// The head of a worker's answer, with the `body` bytes that follow it in `input` and are the whole of its body; or the 101 that was
    /// asked for. Its route may change its fields.
    pub fn stream_head(
        &mut self,
        Stream { connection, .. }: Stream,
        id: &Id,
        input: &[u8],
        response: &Response,
        body: usize,
        edits: Option<&Edits>,
    ) {
        let upgrade = response.status == 101;
        let (draining, crowded) = (self.accepting.draining, self.shared.admission.is_crowded());
        let Some(client) = self.table.client(connection) else { return };
        if !upgrade {
            client.decide_keep_alive(draining, crowded);
        }
        let framing = if upgrade { Rewritten::Same } else { client.http.decide_framing(response.framing) };
        let answer = Answer {
            date: &self.time.day.date,
            request_id: self.accepting.id(client.exchange, id),
            client: client.http.version,
            keep_alive: upgrade || client.http.keep_alive,
            framing,
            upgrade,
            edits,
        };
        let fields = &self.heads.fields;
        let room = rewrite::response_room(response, fields, &answer) + body;
        let piece = self.memory.scratch.write(room, |out| {
            rewrite::response(out, input, response, fields, &answer);
            out.put(&input[response.len..response.len + body]);
        });
        self.become_state(connection, State::WritingResponse);
        self.send_head(connection, piece);
    }

    /// Whether an answer's body leaves in chunks, so that those of the worker may be passed on with their framing.
    pub fn stream_takes_chunks(&mut self, stream: Stream) -> bool {
        self.table.client(stream.connection).is_some_and(|client| client.http.is_chunked())
    }

    /// Sends a run of a body, of an answer or of a request: as a chunk where the body is `chunked`.
    pub fn send_run(&mut self, sock: Sock, data: Block, chunked: bool) {
        if !chunked {
            return self.send(sock, data.into());
        }
        let line = self.memory.scratch.write(CHUNK_LINE_ROOM, |out| put_chunk_line(out, data.len()));
        self.send(sock, line.into());
        self.send(sock, data.into());
        self.send(sock, Piece::Static(b"\r\n"));
    }

    /// An interim answer, to clients that know such.
    pub fn stream_interim(&mut self, stream: Stream, input: &[u8], response: &Response) {
        if self.table.client(stream.connection).is_none_or(|client| client.http.is_old()) {
            return;
        }
        let fields = &self.heads.fields;
        let room = rewrite::informational_room(response, fields);
        let piece = self.memory.scratch.write(room, |out| rewrite::informational(out, input, response, fields));
        self.send(stream.connection, piece.into());
    }

    /// Tells the client to send the body that it has announced.
    pub fn stream_continue(&mut self, stream: Stream) {
        self.send(stream.connection, Piece::Static(b"HTTP/1.1 100 Continue\r\n\r\n"));
    }

    /// The answer is whole. The exchange is gone; the next request may come, or the connection closes.
    pub fn stream_over(&mut self, stream: Stream) {
        let connection = stream.connection;
        let Some(client) = self.table.client(connection) else { return };
        client.exchange = Key::NONE;
        let http = client.http;
        if http.keep_alive {
            self.become_state(connection, State::ReadingRequest);
            self.await_request(connection);
        } else {
            self.close_answered(connection, http.may_go_on);
        }
    }

    /// The answer has begun and cannot be completed.
    pub fn stream_abort(&mut self, stream: Stream) {
        self.cut_session(stream.connection);
        self.stream_leave(stream, How::Flushed);
    }

    /// The exchange has nothing more to say to the client, whose connection closes. By its length or its chunks a cut body shows; one
    /// that ends with the connection would look whole, and ends in a reset.
    pub fn stream_leave(&mut self, stream: Stream, how: How) {
        let Some(client) = self.table.client(stream.connection) else { return };
        client.exchange = Key::NONE;
        let looks_whole = client.http.ends_with_connection();
        self.close_client(stream.connection, if looks_whole { How::Reset } else { how });
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
