//! Compression of answers: which, with what, and what the head of a compressed one says (RFC 9110 §8.4, §12.5.3).
//!
//! | file | what |
//! |---|---|
//! | `encoder` | the encoders, and how many of them a loop has |
//!
//! What a client accepts is read with its request, and an answer is judged when its head has come: [`Wish`] is what is kept between both.
//!
//! Rules:
//! - What counts is what leaves: an answer's fields as its route changes them, a request's conditions as its route changes them.
//! - Whether `Vary` names Accept-Encoding follows from the answer alone, never from what the client accepts: so no cache can be told
//!   two things.
//! - A strong entity tag gets the coding as a suffix, and loses it again where a request asks whether it still holds and its answer would
//!   have that coding: so an app sees its own tags. Where it matters that no tag is mistaken, the one without stands beside the other.
//! - Nothing is compressed that is a part, was coded already, or must not be changed (`no-transform`).

mod encoder;

use std::sync::Arc;

pub use encoder::{Contexts, Encoder, Flush};

use crate::config::{Coding, Compressing};
use crate::http::coding::choose;
use crate::http::fields::{Fields, Kind, list_items, trim};
use crate::http::head::{Request, Response};
use crate::http::route::Edits;
use crate::http::{Framing, Method, Version};

/// What usually shrinks besides `text/*`, `*+json` and `*+xml`.
const USUAL: &[&str] = &[
    "application/javascript",
    "application/json",
    "application/manifest",
    "application/x-javascript",
    "application/x-ndjson",
    "application/xml",
    "application/wasm",
    "application/vnd.ms-fontobject",
    "font/otf",
    "font/ttf",
    "image/svg+xml",
    "image/vnd.microsoft.icon",
    "image/x-icon",
];

/// Conditions of a request that are longer are not looked into: its answer is whole then, where it could have been a 304.
const MOST_TAGS: usize = 1024;
/// What is said of bytes that the client does not get: parts of what is compressed cannot be had, and digests were made of something else.
const UNTRUE: [&str; 5] = ["Accept-Ranges", "Content-MD5", "Content-Digest", "Digest", "Repr-Digest"];

/// What a request says about the coding of its answer.
#[derive(Debug)]
pub struct Wish {
    settings: Arc<Compressing>,
    /// What its client gets where the answer is worth it.
    coding: Option<Coding>,
    /// What it accepts.
    accepts: Option<Vec<u8>>,
    /// Only the head is asked for.
    of_head: bool,
    /// The entity tags that its client has, as it named them.
    known: Box<[u8]>,
    /// What becomes of its fields, where that is not what its route says.
    edits: Option<Edits>,
}

/// What becomes of an answer.
#[derive(Debug, Default)]
pub struct Judged {
    /// What its body is to be compressed with.
    pub coding: Option<Coding>,
    /// What changes of its head.
    pub edits: Option<Edits>,
}

impl Wish {
    /// What the request in hand says. `edits` is what becomes of its fields by its route.
    pub fn read(
        settings: &Arc<Compressing>,
        input: &[u8],
        request: &Request,
        fields: &Fields,
        edits: Option<&Edits>,
    ) -> Wish {
        let came = Head { input, fields, edits: None };
        let bars = request.version == Version::Http10
            || came.lists("cache-control", b"no-transform")
            || (!settings.personal && came.has(&["authorization", "cookie"]));
        let accepts = came.joined("accept-encoding").filter(|_| !bars);
        let coding = choose(accepts.as_deref(), &offered(settings, &[]));
        let is_read = matches!(request.method, Method::Get | Method::Head);
        // What only reads has one representation; what changes something may name whichever its client has seen.
        let codings = if is_read { coding.as_slice() } else { settings.codings.as_deref().unwrap_or_default() };
        let (leaves, mut known) = (Head { edits, ..came }, Vec::new());
        let (mut names, mut lines) = (Vec::new(), Vec::new());
        for name in ["If-None-Match", "If-Match"] {
            let Some(tags) = leaves.joined(name).filter(|tags| tags.len() <= MOST_TAGS) else { continue };
            // An app's own tag that ends like ours may cost a 304, but must not let a change happen or fail.
            let beside = !is_read || name == "If-Match";
            if let Some(value) = with_bare(&tags, codings, beside, name == "If-None-Match") {
                names.push(name);
                lines.extend_from_slice(&[name.as_bytes(), b": ", &value, b"\r\n"].concat());
            }
            if name == "If-None-Match" && is_read && coding.is_some() {
                known = tags;
            }
        }
        let edits = (!names.is_empty()).then(|| Edits::and(edits, &names, &lines));
        let of_head = request.method == Method::Head;
        Wish { settings: settings.clone(), coding, accepts, of_head, known: known.into(), edits }
    }

    /// What becomes of the request's fields, where that is not what its route says.
    pub fn edits(&self) -> Option<&Edits> {
        self.edits.as_ref()
    }

    /// What becomes of the answer that `input` begins with. `edits` is what becomes of its fields by its route.
    pub fn judge(&self, input: &[u8], response: &Response, fields: &Fields, edits: Option<&Edits>) -> Judged {
        let head = Head { input, fields, edits };
        let (mut names, mut lines) = (Vec::new(), head.vary());
        let mut coding = None;
        if response.status == 304 {
            if let Some(line) = self.known_tag(&head) {
                names.push("ETag");
                lines.extend_from_slice(&line);
            }
        } else if response.status == 206 {
            // Nothing becomes of it; but whoever keeps it must know when it is a part of what a request asks for (RFC 9110 §15.3.7).
            if !self.whole_is_worth_it(&head) {
                return Judged::default();
            }
        } else if !self.is_worth_it(response, &head) {
            return Judged::default();
        } else if let Some(chosen) = self.coding {
            coding = Some(chosen).filter(|_| !self.of_head);
            names.extend(UNTRUE);
            names.push("Content-Length");
            lines.extend_from_slice(&[b"Content-Encoding: ", chosen.name().as_bytes(), b"\r\n"].concat());
            if let Some(tag) = head.tag().and_then(|tag| coded_tag(tag, chosen)) {
                names.push("ETag");
                lines.extend_from_slice(&[b"ETag: ", &tag[..], b"\r\n"].concat());
            }
        }
        let changes = !names.is_empty() || !lines.is_empty();
        Judged { coding, edits: changes.then(|| Edits::and(edits, &names, &lines)) }
    }

    /// The same, of a client that takes none of these codings.
    #[cold]
    pub fn without(self, codings: &[Coding]) -> Wish {
        Wish { coding: choose(self.accepts.as_deref(), &offered(&self.settings, codings)), ..self }
    }

    /// The line of the tag in a 304, where it is not the app's: the tag of what the client has. Where it has named none, nobody knows whether what it
    /// would get now is compressed, and the tag is one for both.
    fn known_tag(&self, head: &Head<'_>) -> Option<Vec<u8>> {
        let tag = head.tag()?;
        let coded = coded_tag(tag, self.coding?)?;
        let knows = |tag: &[u8]| memchr::memmem::find(&self.known, tag).is_some();
        match () {
            () if knows(&coded) => Some([b"ETag: ", &coded[..], b"\r\n"].concat()),
            () if knows(tag) => None,
            () => Some([b"ETag: W/", tag, b"\r\n"].concat()),
        }
    }

    /// Settings of the route that the request has taken.
    pub fn settings(&self) -> &Compressing {
        &self.settings
    }

    /// Whether an answer is one of those that are compressed for clients that take it.
    fn is_worth_it(&self, response: &Response, head: &Head<'_>) -> bool {
        let has_body = !matches!(response.status, 100..=199 | 204 | 205 | 206 | 304);
        let is_long = match response.framing {
            Framing::Length(length) => length >= self.settings.min.max(1),
            // The answer to HEAD may say how long the one to GET would be.
            Framing::None => head
                .values("content-length")
                .next()
                .and_then(|length| std::str::from_utf8(length).ok()?.parse().ok())
                .is_none_or(|length: u64| length >= self.settings.min.max(1)),
            Framing::Chunked | Framing::UntilClose => true,
        };
        has_body
            && is_long
            && (!response.event_stream || self.settings.events)
            && self.has_type(head.values("content-type").next().unwrap_or_default())
            && !head.has(&["content-range"])
            && self.may_be_coded(head)
    }

    /// Whether that of which an answer has a part, or several, is one of those.
    fn whole_is_worth_it(&self, head: &Head<'_>) -> bool {
        let length = |range: &[u8]| std::str::from_utf8(range).ok()?.rsplit_once('/')?.1.trim().parse().ok();
        let is_long = head
            .values("content-range")
            .next()
            .and_then(length)
            .is_none_or(|length: u64| length >= self.settings.min.max(1));
        let media_type = head.values("content-type").next().unwrap_or_default();
        // Of what several parts are, nobody says anything here.
        let has_type =
            self.has_type(media_type) || media_type.to_ascii_lowercase().starts_with(b"multipart/byteranges");
        is_long && has_type && self.may_be_coded(head)
    }

    /// Whether nothing that is said of an answer keeps it from being compressed.
    fn may_be_coded(&self, head: &Head<'_>) -> bool {
        !head.has(&["content-encoding"])
            && !head.lists("cache-control", b"no-transform")
            && (self.settings.personal || !head.has(&["set-cookie"]))
    }

    fn has_type(&self, media_type: &[u8]) -> bool {
        let end = memchr::memchr(b';', media_type).unwrap_or(media_type.len());
        let media_type = String::from_utf8_lossy(trim(&media_type[..end])).to_ascii_lowercase();
        let is = |known: &str| match known.strip_suffix('*') {
            Some(kind) => media_type.starts_with(kind),
            None => media_type == known,
        };
        if media_type == "text/event-stream" {
            self.settings.events
        } else if self.settings.types.is_empty() {
            media_type.starts_with("text/")
                || media_type.ends_with("+json")
                || media_type.ends_with("+xml")
                || USUAL.contains(&media_type.as_str())
        } else {
            self.settings.types.iter().any(|known| is(known))
        }
    }
}

/// The codings that a route has besides those, each with its place.
fn offered(settings: &Compressing, besides: &[Coding]) -> Vec<(Coding, u64)> {
    let codings = settings.codings.iter().flatten().copied().zip(0..);
    codings.filter(|(coding, _)| !besides.contains(coding)).collect()
}

/// A line of so many bytes in its value, so that the length of a head says nothing exact of the body behind it.
pub fn padding(bytes: usize) -> Vec<u8> {
    [b"X-Padding: ", &vec![b'0'; bytes][..], b"\r\n"].concat()
}

/// The trailers of a body that was compressed: those that are still true of it.
pub fn true_trailers(trailers: &[u8]) -> Vec<u8> {
    let is_true = |line: &&[u8]| {
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        !UNTRUE.iter().any(|untrue| untrue.as_bytes().eq_ignore_ascii_case(trim(name)))
    };
    trailers.split_inclusive(|byte| *byte == b'\n').filter(is_true).collect::<Vec<_>>().concat()
}

/// The fields of a head as they leave: without those that are for this connection alone, and as its route changes them.
#[derive(Clone, Copy)]
struct Head<'a> {
    input: &'a [u8],
    fields: &'a Fields,
    edits: Option<&'a Edits>,
}

impl<'a> Head<'a> {
    fn values(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let Head { input, fields, edits } = *self;
        let stays = !edits.is_some_and(|edits| edits.removes(name.as_bytes()));
        let came = fields
            .iter()
            .filter(move |field| stays && field.kind != Kind::Nominated)
            .map(move |field| (field.name.of(input), field.value.of(input)));
        let set = edits.into_iter().flat_map(Edits::set);
        came.chain(set).filter(move |(known, _)| known.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// All values of a field, as one list; `None` without it.
    fn joined(&self, name: &str) -> Option<Vec<u8>> {
        let values: Vec<&[u8]> = self.values(name).collect();
        (!values.is_empty()).then(|| values.join(&b", "[..]))
    }

    fn has(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.values(name).next().is_some())
    }

    /// Whether a list has that item, whatever its case.
    fn lists(&self, name: &str, wanted: &[u8]) -> bool {
        self.values(name).any(|value| list_items(value).any(|item| item.eq_ignore_ascii_case(wanted)))
    }

    fn tag(&self) -> Option<&'a [u8]> {
        self.values("etag").next()
    }

    /// The line that says that the answer depends on what the client accepts; empty where it is said already.
    fn vary(&self) -> Vec<u8> {
        let is_said = self.lists("vary", b"accept-encoding") || self.lists("vary", b"*");
        if is_said { Vec::new() } else { b"Vary: Accept-Encoding\r\n".to_vec() }
    }
}

/// A strong entity tag with a coding behind it; `None` for a weak one, which says nothing of bytes.
fn coded_tag(tag: &[u8], coding: Coding) -> Option<Vec<u8>> {
    let inside = tag.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    Some([b"\"", inside, b"-", coding.name().as_bytes(), b"\""].concat())
}

/// A list of entity tags in which those with one of these codings behind them stand without it, and as they are `beside`; `None` where none
/// has one. `weakly`: weak ones, too, for somebody in between may have made them so, and they are compared without that (RFC 9110 §13.1.2).
fn with_bare(list: &[u8], codings: &[Coding], beside: bool, weakly: bool) -> Option<Vec<u8>> {
    let (mut value, mut found, mut rest) = (Vec::with_capacity(list.len()), false, list);
    // Quotes may not stand inside of tags, and commas may: so it is gone from quote to quote.
    while let Some(at) = memchr::memchr(b'"', rest) {
        let Some(end) = memchr::memchr(b'"', &rest[at + 1..]).map(|end| at + 1 + end) else { break };
        let inside = &rest[at + 1..end];
        let bare = |coding: &Coding| inside.strip_suffix(coding.name().as_bytes())?.strip_suffix(b"-");
        let is_weak = rest[..at].ends_with(b"W/");
        let bare = codings.iter().find_map(bare).filter(|_| weakly || !is_weak);
        value.extend_from_slice(&rest[..at]);
        if let Some(bare) = bare {
            found = true;
            value.extend_from_slice(&[b"\"", bare, b"\""].concat());
            value.extend_from_slice(match (beside, is_weak) {
                (false, _) => b"",
                (true, false) => b", ",
                (true, true) => b", W/",
            });
        }
        if bare.is_none() || beside {
            value.extend_from_slice(&rest[at..=end]);
        }
        rest = &rest[end + 1..];
    }
    value.extend_from_slice(rest);
    found.then_some(value)
}

#[cfg(test)]
mod tests;
