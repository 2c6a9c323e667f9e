//! What a request says about which representation it wants, and on what conditions (RFC 9110 §12.5.3, §13).

use std::borrow::Cow;
use std::ops::Range;

use super::ranges;
use crate::http::parse_date;

/// The fields of a request that decide what of a file is sent; lists that came in several lines are joined.
#[derive(Clone, Debug, Default)]
pub struct Asked<'a> {
    /// `Accept-Encoding`.
    pub accept_encoding: Option<Cow<'a, [u8]>>,
    /// `If-Match`.
    pub if_match: Option<Cow<'a, [u8]>>,
    /// `If-None-Match`.
    pub if_none_match: Option<Cow<'a, [u8]>>,
    /// `If-Modified-Since`.
    pub if_modified_since: Option<Cow<'a, [u8]>>,
    /// `If-Unmodified-Since`.
    pub if_unmodified_since: Option<Cow<'a, [u8]>>,
    /// `If-Range`.
    pub if_range: Option<Cow<'a, [u8]>>,
    /// `Range`.
    pub range: Option<Cow<'a, [u8]>>,
}

impl<'a> Asked<'a> {
    /// Reads them from a head that was parsed before.
    pub fn read(head: &'a [u8]) -> Asked<'a> {
        let mut asked = Asked::default();
        let mut rest = head;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let line = &rest[..end];
            rest = &rest[end + 1..];
            if !matches!(line.first(), Some(b'a' | b'A' | b'i' | b'I' | b'r' | b'R')) {
                continue;
            }
            let Some(colon) = memchr::memchr(b':', line) else { continue };
            if let Some(place) = asked.place(&line[..colon]) {
                let value = line[colon + 1..].trim_ascii();
                match place {
                    // Of a date two are none, and of ranges two that cannot be joined.
                    Some(before) => before.to_mut().extend([b", ", value].concat()),
                    None => *place = Some(Cow::Borrowed(value)),
                }
            }
        }
        asked
    }

    fn place(&mut self, name: &[u8]) -> Option<&mut Option<Cow<'a, [u8]>>> {
        let is = |known: &[u8]| name.eq_ignore_ascii_case(known);
        Some(match name.len() {
            5 if is(b"range") => &mut self.range,
            8 if is(b"if-match") => &mut self.if_match,
            8 if is(b"if-range") => &mut self.if_range,
            13 if is(b"if-none-match") => &mut self.if_none_match,
            15 if is(b"accept-encoding") => &mut self.accept_encoding,
            17 if is(b"if-modified-since") => &mut self.if_modified_since,
            19 if is(b"if-unmodified-since") => &mut self.if_unmodified_since,
            _ => return None,
        })
    }
}

/// What is known of the representation that was chosen.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Its entity tag, strong, with its quotes.
    pub etag: &'a [u8],
    /// When it was last changed, in seconds since 1970.
    pub modified: u64,
    /// Its bytes.
    pub size: u64,
}

/// What of it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// All: 200.
    Whole,
    /// Nothing, for the client has it: 304.
    NotModified,
    /// Nothing, for it is not what the client believes it to be: 412.
    Failed,
    /// One part: 206.
    Part(Range<u64>),
    /// Several: 206 as `multipart/byteranges`.
    Parts(Vec<Range<u64>>),
    /// Nothing, for there is no such part: 416.
    Unsatisfiable,
}

/// Decides by the order of RFC 9110 §13.2.2, for a GET or a HEAD; `gets`: it is a GET, of which alone there are parts.
pub fn decide(asked: &Asked<'_>, facts: &Facts<'_>, gets: bool) -> Decision {
    match (&asked.if_match, &asked.if_unmodified_since) {
        (Some(tags), _) if !names(tags, facts.etag, true) => return Decision::Failed,
        (None, Some(time)) if parse_date(time).is_some_and(|time| facts.modified > time) => return Decision::Failed,
        _ => {}
    }
    match (&asked.if_none_match, &asked.if_modified_since) {
        (Some(tags), _) if names(tags, facts.etag, false) => return Decision::NotModified,
        (None, Some(time)) if parse_date(time).is_some_and(|time| facts.modified <= time) => {
            return Decision::NotModified;
        }
        _ => {}
    }
    let Some(range) = asked.range.as_deref().filter(|_| gets) else { return Decision::Whole };
    if asked.if_range.as_ref().is_some_and(|if_range| !is_still(if_range, facts)) {
        return Decision::Whole;
    }
    match ranges::asked(range, facts.size) {
        ranges::Asked::Whole => Decision::Whole,
        ranges::Asked::Nothing => Decision::Unsatisfiable,
        ranges::Asked::One(part) => Decision::Part(part),
        ranges::Asked::Several(parts) => Decision::Parts(parts),
    }
}

/// Whether a list of entity tags names that one, which is strong; `*` names every one. `strongly`: a weak one is no match (RFC 9110
/// §8.8.3.2).
fn names(list: &[u8], etag: &[u8], strongly: bool) -> bool {
    let mut rest = list.trim_ascii();
    if rest == b"*" {
        return true;
    }
    while !rest.is_empty() {
        let weak = rest.starts_with(b"W/");
        let tag = if weak { &rest[2..] } else { rest };
        let Some(end) = tag.get(1..).and_then(|inside| memchr::memchr(b'"', inside)).filter(|_| tag[0] == b'"') else {
            return false;
        };
        if tag[..end + 2] == *etag && !(weak && strongly) {
            return true;
        }
        rest = tag[end + 2..].trim_ascii_start();
        match rest.first() {
            Some(b',') => rest = rest[1..].trim_ascii_start(),
            Some(_) => return false,
            None => {}
        }
    }
    false
}

/// Whether an If-Range field names this representation. By its tag alone: a date is as good only where it is known that there were no two
/// representations in that second (RFC 9110 §8.8.2.2, §13.1.5), and files are replaced quickly, and by others that were given their date. All have a
/// tag, so that no client has to name a date.
fn is_still(if_range: &[u8], facts: &Facts<'_>) -> bool {
    if_range == facts.etag
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETAG: &str = "\"abc-1\"";
    const MODIFIED: u64 = 784_111_777;
    const SAME: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
    const EARLIER: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const LATER: &str = "Sun, 06 Nov 1994 08:49:38 GMT";

    fn decision(fields: &[(&str, &str)], gets: bool) -> Decision {
        let lines: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("GET /a HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n{lines}\r\n");
        let facts = Facts { etag: ETAG.as_bytes(), modified: MODIFIED, size: 10 };
        decide(&Asked::read(head.as_bytes()), &facts, gets)
    }

    #[test]
    fn conditions_are_looked_at_in_their_order() {
        use Decision::{Failed, NotModified, Part, Parts, Unsatisfiable, Whole};
        let cases: &[(&[(&str, &str)], Decision)] = &[
            (&[], Whole),
            // If-None-Match.
            (&[("If-None-Match", ETAG)], NotModified),
            (&[("if-none-match", "W/\"abc-1\"")], NotModified),
            (&[("If-None-Match", "\"x\", \"abc-1\"")], NotModified),
            (&[("If-None-Match", "\"x,\",\"abc-1\"")], NotModified),
            (&[("If-None-Match", "\"x\""), ("If-None-Match", ETAG)], NotModified),
            (&[("If-None-Match", "*")], NotModified),
            (&[("If-None-Match", "\"abc\"")], Whole),
            (&[("If-None-Match", "abc-1")], Whole),
            (&[("If-None-Match", "\"abc-1")], Whole),
            (&[("If-None-Match", "")], Whole),
            (&[("If-None-Match", "\"x\" \"abc-1\"")], Whole),
            // If-Modified-Since, which counts where there is no If-None-Match.
            (&[("If-Modified-Since", SAME)], NotModified),
            (&[("If-Modified-Since", LATER)], NotModified),
            (&[("If-Modified-Since", EARLIER)], Whole),
            (&[("If-Modified-Since", "Sunday, 06-Nov-94 08:49:37 GMT")], NotModified),
            (&[("If-Modified-Since", "Sun Nov  6 08:49:37 1994")], NotModified),
            (&[("If-Modified-Since", "yesterday")], Whole),
            (&[("If-Modified-Since", SAME), ("If-Modified-Since", SAME)], Whole),
            (&[("If-None-Match", "\"x\""), ("If-Modified-Since", LATER)], Whole),
            (&[("If-None-Match", ETAG), ("If-Modified-Since", EARLIER)], NotModified),
            // If-Match and If-Unmodified-Since.
            (&[("If-Match", ETAG)], Whole),
            (&[("If-Match", "*")], Whole),
            (&[("If-Match", "\"x\"")], Failed),
            (&[("If-Match", "W/\"abc-1\"")], Failed),
            (&[("If-Unmodified-Since", SAME)], Whole),
            (&[("If-Unmodified-Since", EARLIER)], Failed),
            (&[("If-Unmodified-Since", "never")], Whole),
            (&[("If-Match", ETAG), ("If-Unmodified-Since", EARLIER)], Whole),
            (&[("If-Match", "\"x\""), ("If-None-Match", ETAG)], Failed),
            (&[("If-Match", ETAG), ("If-None-Match", ETAG)], NotModified),
            // Ranges.
            (&[("Range", "bytes=2-4")], Part(2..5)),
            (&[("Range", "bytes=0-0,-1")], Parts(vec![0..1, 9..10])),
            (&[("Range", "bytes=10-")], Unsatisfiable),
            (&[("Range", "bytes=2-4"), ("Range", "bytes=0-1")], Whole),
            (&[("Range", "bytes=2-4"), ("If-None-Match", ETAG)], NotModified),
            (&[("Range", "bytes=10-"), ("If-None-Match", ETAG)], NotModified),
            (&[("Range", "bytes=2-4"), ("If-Match", "\"x\"")], Failed),
            (&[("Range", "bytes=2-4"), ("If-Range", ETAG)], Part(2..5)),
            (&[("Range", "bytes=2-4"), ("If-Range", "W/\"abc-1\"")], Whole),
            (&[("Range", "bytes=2-4"), ("If-Range", "\"x\"")], Whole),
            (&[("Range", "bytes=10-"), ("If-Range", "\"x\"")], Whole),
            // Another file may have had that date.
            (&[("Range", "bytes=2-4"), ("If-Range", SAME)], Whole),
            (&[("Range", "bytes=2-4"), ("If-Range", LATER)], Whole),
            (&[("Range", "bytes=2-4"), ("If-Range", "nonsense")], Whole),
            (&[("If-Range", ETAG)], Whole),
        ];
        for (fields, expected) in cases {
            assert_eq!(decision(fields, true), *expected, "{fields:?}");
            // A HEAD has no parts.
            let of_head = if matches!(expected, Part(_) | Parts(_) | Unsatisfiable) { &Whole } else { expected };
            assert_eq!(decision(fields, false), *of_head, "HEAD, {fields:?}");
        }
    }
}
