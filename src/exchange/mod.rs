//! Exchanges: one request and its answer.
//!
//! An exchange owns the permit or the queue ticket, the worker's connection while it uses one, the request's bytes while they may
//! still be needed for another try, and the timings. It is an entry of its own, not a field of the connection, and its permit
//! lives in that entry and never on a stack frame, so that nothing can lose it.
//!
//! ```text
//! Collecting → Queued → Awaiting → Relaying → (removed)
//!      └─────────┴──────↗  │  ↖        └→ (client gone or deadline) Abandoned → (removed)
//!                          │   Backlog    a 101 instead of an answer: Tunnel → (removed)
//!                          └→ Verdict → Queued
//! ```
//!
//! Rules:
//! - The client is told of a failure at most once: [`Loop::fail`] detaches it from the exchange as it answers.
//! - A permit is given back at the worker's last byte, although the client may still drain, or when the worker's connection is
//!   closed. A busy worker whose client has left is never given more before that.

mod body;
mod cancel;
mod relay;
mod retry;
mod start;
mod tunnel;
mod upload;

use std::time::{Duration, Instant};

use crate::backends::Sock;
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::dispatch::{Permit, Ticket, WorkerId};
use crate::http::head::Request;
use crate::http::{Framing, Method, Version};

pub(crate) use body::{BodySkip, Reader, Skipped};
pub(crate) use relay::StreamHold;
pub use relay::Streams;

/// Where an exchange stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The request's body is coming in; no worker is asked for yet.
    Collecting,
    /// It waits for a permit.
    Queued,
    /// It has a permit, and the worker's backlog is full: connecting again soon.
    Backlog,
    /// The request has been sent or is being sent; no head of an answer yet.
    Awaiting,
    /// A kept connection ended under the request: waiting for word whether the worker died.
    Verdict,
    /// The answer is on its way to the client.
    Relaying,
    /// Bytes flow both ways until either side ends.
    Tunnel,
    /// The client is gone; the worker is still busy with the request.
    Abandoned,
}

/// One request and its answer.
pub(crate) struct Exchange {
    /// The client's connection; [`Key::NONE`] once abandoned.
    pub client: Sock,
    /// The worker's connection, or [`Key::NONE`].
    pub link: Sock,
    pub permit: Option<Permit>,
    pub ticket: Option<Ticket>,
    pub phase: Phase,

    pub method: Method,
    pub version: Version,
    /// The client wants its connection kept.
    pub keep_alive: bool,
    /// What the client itself said of that: whoever wants it kept may send the next request before it learns that it closes.
    pub may_go_on: bool,
    /// It asked for an upgrade to websocket.
    pub websocket: bool,
    /// The client waits for "100 Continue".
    pub expects: bool,

    /// The rewritten head, kept until the answer begins (with an access log until it ends).
    pub head: Option<Block>,
    /// The head ends without framing and blank line, which depend on how the body is sent.
    pub open: bool,
    /// What the request's body has been so far, while it is kept.
    pub body: Vec<Block>,
    pub body_bytes: u64,
    /// What is still to come of the request's body.
    pub upload: Reader,
    /// The body goes to the worker as it comes: the request is not whole in memory, and can't be sent again.
    pub streamed: bool,
    /// The client's receive waits for the worker's outbox.
    pub upload_paused: bool,

    /// It goes over a connection that has not carried a request before.
    pub fresh: bool,
    /// The one retry is spent.
    pub retried: bool,
    /// An interim answer was seen: the worker has begun.
    pub begun: bool,
    /// The next connection must be a new one.
    pub wants_fresh: bool,
    /// The worker that has it or had it last.
    pub worker: Option<WorkerId>,
    /// Prefer any other worker.
    pub exclude: Option<WorkerId>,
    /// [`Backend::offered`](crate::backends::Backend::offered) of the worker's connection before this request.
    pub sent_before: u64,

    /// What is still to come of the answer's body.
    pub answer: Reader,
    /// How the body is framed towards the client.
    pub encoding: Encoding,
    /// The worker's receive waits for the client's outbox.
    pub paused: bool,
    /// An event stream or unbuffered answer: the request's deadline no longer applies.
    pub stream: bool,
    /// Its place among the streams that hold a permit.
    pub stream_hold: Option<StreamHold>,
    /// The worker keeps its connection after this answer, for so many seconds when it says so.
    pub link_keeps: bool,
    pub link_timeout: Option<u32>,
    /// Blocks arrive full: the answer is long.
    pub long: bool,

    pub status: u16,
    /// Bytes of the answer's body, as queued for the client.
    pub bytes: u64,
    pub id: u64,
    pub started: Instant,
    /// When it first asked for a permit: the queue's clock.
    pub since: Instant,
    pub granted: Option<Instant>,
    /// When the worker's side was finished.
    pub finished: Option<Instant>,
    pub read_by: Instant,
    pub request_by: Instant,
}

/// How an answer's body is framed towards the client, seen from how the worker framed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// As it came.
    Same,
    /// The worker's chunks are taken off; the connection's end is the body's.
    Dechunk,
    /// The worker's end is the body's: chunks are put on.
    Chunk,
}

impl Exchange {
    /// A request whose head was rewritten to `head`, before anything else has happened to it; `deadline` is that of the whole
    /// request.
    #[inline]
    pub fn new(client: Sock, request: &Request, head: Block, id: u64, now: Instant, deadline: Duration) -> Exchange {
        Exchange {
            client,
            link: Key::NONE,
            permit: None,
            ticket: None,
            phase: Phase::Collecting,
            method: request.method,
            version: request.version,
            keep_alive: request.keep_alive,
            may_go_on: request.keep_alive,
            websocket: request.websocket,
            expects: request.expect_continue && request.framing != Framing::None,
            head: Some(head),
            open: request.framing == Framing::Chunked,
            body: Vec::new(),
            body_bytes: 0,
            upload: Reader::new(request.framing),
            streamed: false,
            upload_paused: false,
            fresh: false,
            retried: false,
            begun: false,
            wants_fresh: false,
            worker: None,
            exclude: None,
            sent_before: 0,
            answer: Reader::Done,
            encoding: Encoding::Same,
            paused: false,
            stream: false,
            stream_hold: None,
            link_keeps: false,
            link_timeout: None,
            long: false,
            status: 0,
            bytes: 0,
            id,
            started: now,
            since: now,
            granted: None,
            finished: None,
            read_by: now,
            request_by: now + deadline,
        }
    }

    /// Whether the whole request is in memory and no byte of an answer was seen, so that it could be sent again.
    pub fn is_whole(&self) -> bool {
        !self.streamed && !self.begun && self.upload.is_done() && self.head.is_some() && self.status == 0
    }

    /// Forgets the request's bytes: the answer has begun.
    pub fn release_request(&mut self, keep_head: bool) {
        if !keep_head {
            self.head = None;
        }
        // Asked first, because most requests have none, and dropping nothing is a call all the same.
        if self.body.capacity() > 0 {
            self.body = Vec::new();
        }
    }
}
