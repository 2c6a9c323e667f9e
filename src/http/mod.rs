//! HTTP/1.1 over bytes: parsing, framing, rewriting, body decoding and our own answers.
//!
//! Everything here is sans-IO: no descriptor, no clock, no thread. Both sides are hostile: a client's request is refused
//! with the status that RFC 9110 and RFC 9112 name, a worker's answer with 502. What one function accepts is framed in
//! exactly one way, and what is written from it is framed the same way for every reader behind us.
//!
//! Nothing allocates on the warm path: field lists are reused by their owner, and output goes to a [`Writer`] with room
//! that was computed before.
//!
//! [`Writer`]: crate::buffers::block::Writer

use std::fmt;

pub mod body;
pub mod coding;
pub mod date;
pub mod fields;
pub mod head;
mod host;
pub(crate) mod http1;
pub mod id;
mod names;
pub mod origin;
pub mod proxy_protocol;
pub mod query;
pub mod reader;
pub mod reply;
pub mod rewrite;
pub mod route;
mod search;
mod seen;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use date::{date, parse_date};
pub use host::is_loopback_host;
pub(crate) use names::is_token;

/// The protocol version of a message, as far as it changes what we do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0: no chunked coding, closes unless asked otherwise, needs no Host.
    Http10,
    /// HTTP/1.1, and every later minor version of 1 (RFC 9110 §2.5).
    Http11,
}

impl Version {
    /// The version as heads and logs write it.
    pub const fn name(self) -> &'static str {
        match self {
            Version::Http10 => "HTTP/1.0",
            Version::Http11 => "HTTP/1.1",
        }
    }
}

/// A request method. Names are case-sensitive (RFC 9110 §9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET, RFC 9110 §9.3.1.
    Get,
    /// HEAD, RFC 9110 §9.3.2.
    Head,
    /// POST, RFC 9110 §9.3.3.
    Post,
    /// PUT, RFC 9110 §9.3.4.
    Put,
    /// DELETE, RFC 9110 §9.3.5.
    Delete,
    /// PATCH, RFC 5789.
    Patch,
    /// OPTIONS, RFC 9110 §9.3.7.
    Options,
    /// TRACE, RFC 9110 §9.3.8.
    Trace,
    /// CONNECT, RFC 9110 §9.3.6. Requests with it are refused.
    Connect,
    /// Any other token.
    Other,
}

impl Method {
    /// Whether a repeated request means the same as one (RFC 9110 §9.2.2). Unknown methods count as not.
    pub fn is_idempotent(self) -> bool {
        self.is_safe() || matches!(self, Method::Put | Method::Delete)
    }

    /// Whether the request asks for nothing but an answer (RFC 9110 §9.2.1).
    pub fn is_safe(self) -> bool {
        matches!(self, Method::Get | Method::Head | Method::Options | Method::Trace)
    }
}

/// Where a piece of a message lies in its bytes: from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
}

impl Span {
    /// The span of `start..end`. Offsets are below 4 GiB because heads are limited.
    pub(crate) fn new(start: usize, end: usize) -> Span {
        debug_assert!(start <= end && end <= u32::MAX as usize);
        Span { start: start as u32, end: end as u32 }
    }

    /// The bytes of this span.
    ///
    /// # Panics
    /// When `bytes` are not those that the span was made from.
    #[inline]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.start as usize..self.end as usize]
    }

    /// Bytes in this span.
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether no byte is in this span.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// How a message's body ends (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// The body has this many bytes.
    Length(u64),
    /// The body is in chunks.
    Chunked,
    /// The body ends with the connection. Answers only.
    UntilClose,
}

impl Framing {
    /// The body's length, where the head tells it.
    pub fn length(self) -> Option<u64> {
        if let Framing::Length(length) = self { Some(length) } else { None }
    }
}

/// Why a message is refused. Nothing behind it on the connection may be read as another message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The status to answer with: 4xx or 5xx for a request, 502 for a worker's answer.
    pub status: u16,
    /// Where the rule is written, like `RFC 9112 §6.3`.
    pub section: &'static str,
    /// What is wrong, in a few words.
    pub reason: &'static str,
}

impl Refusal {
    /// The same refusal, told to a client about a worker's answer.
    pub fn of_answer(self) -> Refusal {
        Refusal { status: 502, ..self }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} ({})", self.reason, self.section)
    }
}

impl std::error::Error for Refusal {}

/// A refusal of a malformed message: 400.
pub(crate) const fn bad(section: &'static str, reason: &'static str) -> Refusal {
    Refusal { status: 400, section, reason }
}

/// How many bytes follow the head in an answer of our own.
pub fn body_len(answer: &[u8]) -> usize {
    memchr::memmem::find(answer, b"\r\n\r\n").map_or(0, |end| answer.len() - end - 4)
}

/// The values of the first lines with these names in a head that was parsed before; empty for names that it lacks. For access
/// lines and error pages, where the parsed fields are gone.
pub fn find_lines<'a, const N: usize>(head: &'a [u8], names: [&[u8]; N]) -> [&'a [u8]; N] {
    find_present(head, names).map(Option::unwrap_or_default)
}

/// The same, and whether it has them at all. `names` are in small letters.
pub fn find_present<'a, const N: usize>(head: &'a [u8], names: [&[u8]; N]) -> [Option<&'a [u8]>; N] {
    let mut values = [None; N];
    let mut rest = head;
    while let Some(end) = memchr::memchr(b'\n', rest) {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        let Some(first) = line.first().map(u8::to_ascii_lowercase) else { continue };
        for (value, name) in values.iter_mut().zip(names) {
            let named = name.first() == Some(&first)
                && line.get(name.len()) == Some(&b':')
                && line[..name.len()].eq_ignore_ascii_case(name);
            if named && value.is_none_or(<[u8]>::is_empty) {
                *value = Some(line[name.len() + 1..].trim_ascii());
            }
        }
    }
    values
}
