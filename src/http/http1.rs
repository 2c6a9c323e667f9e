//! What HTTP/1 makes of the request that a connection has in hand: how its answer's body is framed, and whether the connection is kept.

use super::head::Request;
use super::rewrite::Rewritten;
use super::{Framing, Version};

/// How the body of the answer in hand is framed towards an HTTP/1 client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// By its length, or there is none.
    Length,
    /// By chunks.
    Chunks,
    /// By the connection's end.
    UntilClose,
}

/// What HTTP/1 knows of the request that a connection has in hand.
#[derive(Clone, Copy, Debug)]
pub struct Http1 {
    pub version: Version,
    /// The connection is kept after the answer.
    pub keep_alive: bool,
    /// What the client itself said of that: whoever wants it kept may send the next request before it learns that it closes.
    pub may_go_on: bool,
    pub framing: BodyFraming,
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

    /// Whether the answer in hand ends with the connection, and so looks whole where it is cut by a plain end of that.
    pub fn ends_with_connection(self) -> bool {
        self.framing == BodyFraming::UntilClose
    }

    /// Whether the body of the answer in hand leaves in chunks.
    pub fn is_chunked(self) -> bool {
        self.framing == BodyFraming::Chunks
    }

    /// How the body of a worker's answer leaves, and is remembered to be framed.
    pub fn decide_framing(&mut self, framing: Framing) -> Rewritten {
        let rewritten = match (framing, self.is_old()) {
            (Framing::Chunked | Framing::UntilClose, true) => Rewritten::UntilClose,
            (Framing::UntilClose, false) => Rewritten::Chunked,
            _ => Rewritten::Same,
        };
        self.framing = match (rewritten, framing) {
            (Rewritten::UntilClose, _) => BodyFraming::UntilClose,
            (Rewritten::Chunked, _) | (_, Framing::Chunked) => BodyFraming::Chunks,
            _ => BodyFraming::Length,
        };
        self.keep_alive &= rewritten != Rewritten::UntilClose;
        rewritten
    }
}
