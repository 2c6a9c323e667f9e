//! Exchanges: one request and its answer.
//!
//! An exchange answers a [`Stream`], is fed by a [`Source`], waits on a timer of its own, and ends in one place
//! (`ending.rs`). It owns the permit or the queue ticket, the worker's connection while it uses one, the request's bytes while
//! they may still be needed for another try, and the timings. It is an entry of its own, not a field of the connection, and its
//! permit lives in that entry and never on a stack frame, so that nothing can lose it.
//!
//! ```text
//! Collecting → Asking → Queued → Awaiting → Relaying → (ended)
//!      └─────────┴────────┴──────↗ │  ↖
//!                                  │   Backlog            a 101 instead of an answer: Tunnel → (ended)
//!                                  └→ Verdict → Asking
//! ```
//!
//! | file | what |
//! |---|---|
//! | `request` | a request becomes an exchange; its body is collected, or streams |
//! | `permit` | a permit is asked for, waited for, given back; the request leaves for the worker |
//! | `answer` | the worker's answer is read and passed on |
//! | `source` | where an answer's bytes come from, and when more are pulled |
//! | `retry` | what is done when a worker's connection fails |
//! | `tunnel` | bytes both ways, after a 101 |
//! | `clock` | who is waited for, until when, and what happens then |
//! | `ending` | the one way in which exchanges end |
//!
//! Rules:
//! - Who is waited for is derived from the state by [`Exchange::waits`], and never stored beside it.
//! - The client is told of a failure at most once, as the exchange ends.
//! - A permit is given back at the worker's last byte, although the client may still drain. A worker that may be busy with a
//!   request whose client has left gets nothing more before it is done (`connection/leftover.rs`).

mod answer;
mod clock;
mod ending;
mod permit;
mod request;
mod retry;
mod source;
mod tunnel;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::apps::App;
use crate::backends::Sock;
use crate::buffers::block::Block;
use crate::connection::Stream;
use crate::dispatch::{Permit, StreamHold, Ticket, WorkerId};
use crate::event_loop::{Coded, SpooledBody, Time, Unspooled};
use crate::files::Site;
use crate::http::Method;
use crate::http::head::{self, Reuse};
use crate::http::id::Id;
use crate::http::reader::Reader;
use crate::http::route::Edits;
use crate::limits::InFlight;
use crate::log::AnswerNote;
use crate::spool::Queue;

pub(crate) use clock::Pace;
pub(crate) use ending::Ending;
pub(crate) use source::Source;

/// A time, in nanoseconds since the loop's start ([`Time::nanos`](crate::event_loop::Time::nanos)).
pub(crate) type Nanos = u64;

/// Where an exchange stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The request's body is coming in; no worker is asked for yet.
    Collecting,
    /// It is about to ask for a permit, or waits for a document of the server's own and has none to ask for.
    Asking,
    /// It waits for a permit; whether for too long is looked at then.
    Queued { ticket: Ticket, look: Nanos },
    /// It has a permit, and the worker's backlog is full: connecting again soon, until then.
    Backlog { again: Nanos, until: Nanos },
    /// The request has been sent or is being sent; no head of an answer yet.
    Awaiting,
    /// A connection ended under the request or its answer: waiting for word whether the worker died.
    Verdict { until: Nanos },
    /// The answer is on its way to the client.
    Relaying,
    /// Bytes flow both ways until both are `over`: the way from the client (true) or the one from the worker is already.
    Tunnel { over: Option<bool> },
}

/// How a request's body gets to the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Upload {
    /// It is being collected.
    Collecting,
    /// All of it is in memory, or in a file, so that the request can be sent again.
    Whole,
    /// It is too large for that and will stream, once the worker is there.
    Held,
    /// It streams, and more of it is expected from the client.
    Streaming,
    /// It streams, and the worker has to take what it was sent before more is read from the client.
    Full,
    /// It has streamed to its end.
    Sent,
}

/// What is asked for.
pub(crate) struct Request {
    pub id: Id,
    pub method: Method,
    /// It asked for an upgrade to websocket.
    pub websocket: bool,
    /// The client waits for "100 Continue".
    pub expects: bool,
    /// The rewritten head, kept until the answer begins (with an access log until it ends).
    pub head: Option<Block>,
    /// The head ends without framing and blank line, which depend on how the body is sent.
    pub open: bool,
    /// What the body has been so far, while it is kept.
    pub body: Vec<Block>,
    /// All of it, where it is collected in a file.
    pub spool: Option<Box<SpooledBody>>,
    /// Its trailers, ready to be sent.
    pub trailers: Option<Block>,
    /// Bytes of the body that have come.
    pub bytes: u64,
    pub upload: Upload,
    /// How the client keeps up with its body.
    pub pace: Pace,
    /// What its access line shows of the head, where that is known.
    pub shown: Option<crate::http::fields::Shown>,
}

/// What was tried to have it answered.
#[derive(Default)]
pub(crate) struct Attempt {
    pub permit: Option<Permit>,
    /// Its place among those that its route may have under way.
    pub seat: Option<InFlight>,
    /// With whom it takes turns while it waits ([`Ask::turn`](crate::dispatch::Ask::turn)).
    pub turn: u64,
    /// The one retry is spent.
    pub retried: bool,
    /// How many fresh connections have ended since, of which none took anything.
    pub untaken: u8,
    /// How many workers have declined it.
    pub declined: u16,
    /// An interim answer was seen: the worker has begun.
    pub begun: bool,
    /// The worker that has it or had it last.
    pub worker: Option<WorkerId>,
    /// Prefer any other worker.
    pub exclude: Option<WorkerId>,
    /// [`Backend::offered`](crate::backends::Backend::offered) of the worker's connection before this request.
    pub sent_before: u64,
    /// [`Backend::acknowledged`](crate::backends::Backend::acknowledged) of it when it was last asked whether it takes the request.
    pub taken: u64,
}

/// What holds an answer up on our side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Nothing: its source is read.
    #[default]
    Not,
    /// As much as may wait for one client waits for this one.
    Client,
    /// The memory for all is used up.
    Memory,
}

/// What comes back.
#[derive(Default)]
pub(crate) struct Answer {
    /// What is still to come of the body.
    pub reader: Reader,
    pub hold: Hold,
    /// What waits in a file for the client, and what comes behind it.
    pub spool: Option<Box<Queue>>,
    pub unspooled: Unspooled,
    /// It stands in the list of those that stopped for lack of memory.
    pub starved: bool,
    /// An event stream or unbuffered answer: only the idle timeout applies.
    pub stream: bool,
    /// Its place among the streams that hold a permit.
    pub stream_hold: Option<StreamHold>,
    /// Of the worker's connection.
    pub reuse: Reuse,
    /// Blocks arrive full: the answer is long.
    pub long: bool,
    /// What its route changes of it, until its head has been written.
    pub edits: Option<Rc<Edits>>,
    /// How its body is compressed; `None`: not at all.
    pub coded: Option<Box<Coded>>,
    /// The files that the worker may name in its place.
    pub sendfile: Option<Arc<Site>>,
    /// What it said for the log.
    pub note: Option<Box<AnswerNote>>,
    /// 0 before it has one.
    pub status: u16,
    /// Bytes of the body that went to the client, without framing.
    pub bytes: u64,
}

/// When things happened to an exchange.
pub(crate) struct Times {
    pub started: Nanos,
    /// When it first asked for a permit: the queue's clock, which the dispatch compares between loops.
    pub asked: Instant,
    pub granted: Option<Nanos>,
    /// It had to wait for its first permit.
    pub queued: bool,
    /// From when on the worker has had the whole request: `--request-timeout` counts from here.
    pub given: Nanos,
    /// Since when the worker has been waited for without a byte from it.
    pub heard: Nanos,
    /// When the worker's side was finished.
    pub finished: Option<Nanos>,
}

/// One request and its answer.
pub(crate) struct Exchange {
    /// Whom it answers.
    pub stream: Stream,
    /// Whose it is, and what it is served with, as that was when it began.
    pub app: Rc<App>,
    /// By which number it is counted ([`Metrics::series`](crate::metrics::Metrics::series)).
    pub series: u16,
    pub phase: Phase,
    /// What feeds the answer.
    pub source: Source,
    pub request: Request,
    pub attempt: Attempt,
    pub answer: Answer,
    pub times: Times,
}

impl Exchange {
    /// A request whose head was rewritten to `head`, before anything else has happened to it.
    #[inline]
    pub fn new(
        stream: Stream,
        app: Rc<App>,
        series: u16,
        request: &head::Request,
        head: Block,
        id: Id,
        time: &Time,
    ) -> Exchange {
        use crate::http::Framing;
        let now = time.nanos();
        let upload = if request.framing == Framing::None { Upload::Whole } else { Upload::Collecting };
        Exchange {
            stream,
            series,
            app,
            phase: Phase::Collecting,
            source: Source::None,
            request: Request {
                id,
                method: request.method,
                websocket: request.websocket,
                expects: request.expect_continue && request.framing != Framing::None,
                head: Some(head),
                open: request.framing == Framing::Chunked,
                body: Vec::new(),
                spool: None,
                trailers: None,
                bytes: 0,
                upload,
                pace: Pace::new(now, 0),
                shown: None,
            },
            attempt: Attempt::default(),
            answer: Answer::default(),
            times: Times {
                started: now,
                asked: time.now,
                granted: None,
                queued: false,
                given: now,
                heard: now,
                finished: None,
            },
        }
    }

    /// The worker's connection, or [`Sock::NONE`].
    #[inline]
    pub fn link(&self) -> Sock {
        self.source.link()
    }

    /// Whether the whole request is here and no byte of an answer was seen, so that it could be sent again.
    pub fn is_whole(&self) -> bool {
        self.request.upload == Upload::Whole
            && !self.attempt.begun
            && self.request.head.is_some()
            && self.answer.status == 0
    }

    /// Whether its worker may send it away to another: each of them may, once. One that is alone is asked again.
    pub fn may_be_declined(&self) -> bool {
        self.is_whole() && usize::from(self.attempt.declined) + 1 < self.app.dispatch.eligible().max(2)
    }

    /// Whether a part of its answer has left, so that it can only be cut.
    #[inline]
    pub fn has_begun(&self) -> bool {
        match self.phase {
            Phase::Relaying => true,
            Phase::Verdict { .. } => self.answer.status != 0,
            _ => false,
        }
    }

    /// Whether the worker has, or will get without the client, the whole request.
    pub fn is_uploaded(&self) -> bool {
        matches!(self.request.upload, Upload::Whole | Upload::Sent)
    }
}
