//! Compression of answers: which, with what, and what the head of a compressed one says (RFC 9110 §8.4, §12.5.3).
//!
//! | file | what |
//! |---|---|
//! | `encoder` | the encoders, and how many of them a loop has |
//!
//! What a client accepts is read with its request, and an answer is judged when its head has come: [`Wish`] is what is kept between both.
//!
//! Rules:
//! - Whether `Vary` names Accept-Encoding follows from the answer alone, never from what the client accepts: so no cache can be told
//!   two things.
//! - A strong entity tag gets the coding as a suffix, which is taken off again where a request names it: so an app sees its own tags.
//! - Nothing is compressed that is a part, was coded already, or must not be changed (`no-transform`).

mod encoder;

use std::sync::Arc;

pub use encoder::{Contexts, Encoder, Flush};

use crate::config::{Coding, Compressing};
use crate::http::coding::choose;
use crate::http::fields::{Fields, list_items, trim};
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

/// What a request says about the coding of its answer.
#[derive(Debug)]
pub struct Wish {
    settings: Arc<Compressing>,
    /// What its client gets where the answer is worth it.
    coding: Option<Coding>,
    /// The suffix that was taken off an entity tag of it.
    tagged: Option<Coding>,
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
    /// What the request in hand says, and what becomes of its fields where it names a tag that a coding was put behind. `edits` is what
    /// becomes of them otherwise.
    pub fn read(
        settings: &Arc<Compressing>,
        input: &[u8],
        request: &Request,
        fields: &Fields,
        edits: Option<&Edits>,
    ) -> (Wish, Option<Edits>) {
        let offered: Vec<(Coding, u64)> =
            settings.codings.iter().flatten().zip(0..).map(|(coding, place)| (*coding, place)).collect();
        let accept = joined(input, fields, "accept-encoding");
        let bars = request.version == Version::Http10
            || request.method == Method::Head
            || lists(input, fields, "cache-control", b"no-transform")
            || (!settings.personal && has(fields, input, &["authorization", "cookie"]));
        let coding = if bars { None } else { choose(accept.as_deref(), &offered) };
        let mut wish = Wish { settings: settings.clone(), coding, tagged: None };
        let (mut names, mut lines) = (Vec::new(), Vec::new());
        for name in ["If-None-Match", "If-Match"] {
            let Some(value) = joined(input, fields, name) else { continue };
            if let Some((value, coding)) = untagged(&value) {
                wish.tagged = Some(coding);
                names.push(name);
                lines.extend_from_slice(&[name.as_bytes(), b": ", &value, b"\r\n"].concat());
            }
        }
        let edits = (!names.is_empty()).then(|| Edits::and(edits, &names, &lines));
        (wish, edits)
    }

    /// What becomes of the answer that `input` begins with. `edits` is what becomes of its fields otherwise.
    pub fn judge(&self, input: &[u8], response: &Response, fields: &Fields, edits: Option<&Edits>) -> Judged {
        let tag = fields.find_name(input, "etag").filter(|_| !edits.is_some_and(|edits| edits.removes(b"etag")));
        if response.status == 304 {
            let mut lines = vary(input, fields);
            let mut names = Vec::new();
            if let Some(line) = self.tagged.and_then(|coding| tagged(tag?, coding)) {
                names.push("ETag");
                lines.extend_from_slice(&line);
            }
            return Judged { coding: None, edits: Some(Edits::and(edits, &names, &lines)) };
        }
        if !self.is_worth_it(input, response, fields) {
            return Judged::default();
        }
        let mut lines = vary(input, fields);
        let Some(coding) = self.coding else {
            let edits = (!lines.is_empty()).then(|| Edits::and(edits, &[], &lines));
            return Judged { coding: None, edits };
        };
        // Parts of what is compressed cannot be had, and digests were made of something else.
        let mut names = vec!["Accept-Ranges", "Content-MD5", "Content-Digest", "Digest", "Repr-Digest"];
        lines.extend_from_slice(&[b"Content-Encoding: ", coding.name().as_bytes(), b"\r\n"].concat());
        if let Some(line) = tag.and_then(|tag| tagged(tag, coding)) {
            names.push("ETag");
            lines.extend_from_slice(&line);
        }
        Judged { coding: Some(coding), edits: Some(Edits::and(edits, &names, &lines)) }
    }

    /// The same, of a client that takes no coding.
    pub fn refused(self) -> Wish {
        Wish { coding: None, ..self }
    }

    /// Settings of the route that the request has taken.
    pub fn settings(&self) -> &Compressing {
        &self.settings
    }

    /// Whether an answer is one of those that are compressed for clients that take it.
    fn is_worth_it(&self, input: &[u8], response: &Response, fields: &Fields) -> bool {
        let has_body = !matches!(response.status, 100..=199 | 204 | 205 | 206 | 304);
        let is_long = match response.framing {
            Framing::Length(length) => length >= self.settings.min.max(1),
            // The answer to HEAD may say how long the one to GET would be.
            Framing::None => fields
                .find_name(input, "content-length")
                .and_then(|length| std::str::from_utf8(length).ok()?.parse().ok())
                .is_none_or(|length: u64| length >= self.settings.min.max(1)),
            Framing::Chunked | Framing::UntilClose => true,
        };
        has_body
            && is_long
            && (!response.event_stream || self.settings.events)
            && self.has_type(response.logged.media_type.of(input))
            && !has(fields, input, &["content-encoding", "content-range"])
            && !lists(input, fields, "cache-control", b"no-transform")
            && (self.settings.personal || !has(fields, input, &["set-cookie"]))
    }

    fn has_type(&self, media_type: &[u8]) -> bool {
        let end = memchr::memchr(b';', media_type).unwrap_or(media_type.len());
        let media_type = String::from_utf8_lossy(trim(&media_type[..end])).to_ascii_lowercase();
        let is_events = media_type == "text/event-stream";
        let is = |known: &str| match known.strip_suffix('*') {
            Some(kind) => media_type.starts_with(kind),
            None => media_type == known,
        };
        (is_events && self.settings.events)
            || if self.settings.types.is_empty() {
                media_type.starts_with("text/")
                    || media_type.ends_with("+json")
                    || media_type.ends_with("+xml")
                    || USUAL.contains(&media_type.as_str())
            } else {
                self.settings.types.iter().any(|known| is(known))
            }
    }
}

/// A line of so many bytes in its value, so that the length of a head says nothing exact of the body behind it.
pub fn padding(bytes: usize) -> Vec<u8> {
    [b"X-Padding: ", &vec![b'0'; bytes][..], b"\r\n"].concat()
}

/// All values of a field, as one list; `None` without it.
fn joined(input: &[u8], fields: &Fields, name: &str) -> Option<Vec<u8>> {
    let named = fields.iter().filter(|field| field.name.of(input).eq_ignore_ascii_case(name.as_bytes()));
    let values: Vec<&[u8]> = named.map(|field| field.value.of(input)).collect();
    (!values.is_empty()).then(|| values.join(&b", "[..]))
}

fn has(fields: &Fields, input: &[u8], names: &[&str]) -> bool {
    names.iter().any(|name| fields.find_name(input, name).is_some())
}

/// Whether a list has that item, whatever its case.
fn lists(input: &[u8], fields: &Fields, name: &str, wanted: &[u8]) -> bool {
    joined(input, fields, name).is_some_and(|value| list_items(&value).any(|item| item.eq_ignore_ascii_case(wanted)))
}

/// The line that says that the answer depends on what the client accepts; empty where it is said already.
fn vary(input: &[u8], fields: &Fields) -> Vec<u8> {
    let is_said = lists(input, fields, "vary", b"accept-encoding") || lists(input, fields, "vary", b"*");
    if is_said { Vec::new() } else { b"Vary: Accept-Encoding\r\n".to_vec() }
}

/// The line with a strong entity tag that has a coding behind it; `None` for a weak one, which says nothing of bytes.
fn tagged(tag: &[u8], coding: Coding) -> Option<Vec<u8>> {
    let inside = tag.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    Some([b"ETag: \"", inside, b"-", coding.name().as_bytes(), b"\"\r\n"].concat())
}

/// A list of entity tags without the codings behind them, and the last of those; `None` where none has one.
fn untagged(list: &[u8]) -> Option<(Vec<u8>, Coding)> {
    let (mut value, mut found, mut rest) = (Vec::with_capacity(list.len()), None, list);
    // Quotes may not stand inside of tags, and commas may: so it is gone from quote to quote.
    while let Some(at) = memchr::memchr(b'"', rest) {
        let Some(end) = memchr::memchr(b'"', &rest[at + 1..]).map(|end| at + 1 + end) else { break };
        let tag = &rest[..end];
        let coding = Coding::ALL.iter().find_map(|coding| {
            let bare = tag.strip_suffix(coding.name().as_bytes())?.strip_suffix(b"-")?;
            (bare.len() > at).then_some((bare, *coding))
        });
        match coding {
            Some((bare, coding)) => {
                value.extend_from_slice(bare);
                found = Some(coding);
            }
            None => value.extend_from_slice(tag),
        }
        value.push(b'"');
        rest = &rest[end + 1..];
    }
    value.extend_from_slice(rest);
    found.map(|coding| (value, coding))
}

#[cfg(test)]
mod tests;
