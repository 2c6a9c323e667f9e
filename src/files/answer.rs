//! The answer to a request for a file: what is sent of it, the head, and the pieces of the body in their order.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::conditions::{Asked, Decision, Facts, decide};
use super::open::{Opened, Served};
use super::ranges;
use crate::buffers::block::Writer;
use crate::http::Version;
use crate::http::coding::choose;
use crate::http::fields::{Fields, Kind};
use crate::http::head::Response;
use crate::http::reply::{connection, reason};
use crate::http::route::Edits;

/// A piece of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text of our own: the frame of a part.
    Text(Box<[u8]>),
    /// Bytes of the file.
    Bytes(Range<u64>),
}

/// What is sent of a file.
#[derive(Debug)]
pub struct Plan {
    /// 200, 206, 304, 412 or 416.
    pub status: u16,
    /// Which of the compressed siblings, or the file itself.
    pub coded: Option<usize>,
    /// Bytes of the body.
    pub length: u64,
    /// The body in its pieces; none where there is none.
    pub pieces: VecDeque<Piece>,
    /// The value of Content-Range.
    range: Option<String>,
    /// The boundary of several parts.
    boundary: Option<String>,
}

/// What else an answer's head says.
pub struct Terms<'a> {
    /// `Cache-Control`; empty for nothing.
    pub cache: &'a str,
    /// What the route changes of an answer.
    pub edits: Option<&'a Edits>,
    /// What an app has said that has named the file.
    pub named: Option<&'a Named>,
    /// The date now.
    pub date: &'a [u8; 29],
    /// The client's version, and whether its connection is kept.
    pub client: (Version, bool),
}

/// The fields of an app's answer that has named a file.
#[derive(Debug, Default)]
pub struct Named {
    /// Those that pass, each with its end.
    lines: Vec<u8>,
    /// What it has said that the file is.
    media_type: Option<Box<[u8]>>,
    /// It has said for how long it may be kept.
    has_cache: bool,
}

impl Named {
    /// The fields of that answer, whose head `input` begins with, and the name of the file where it has named one: as `X-Accel-Redirect`,
    /// or, when true, `X-Sendfile`.
    pub fn read<'a>(input: &'a [u8], response: &Response, fields: &Fields) -> Option<(&'a [u8], bool)> {
        let named = |name| fields.find_name(input, name).filter(|value| !value.is_empty());
        let file = named("x-accel-redirect").map(|path| (path, false));
        file.or_else(|| named("x-sendfile").map(|path| (path, true))).filter(|_| response.status == 200)
    }

    /// Keeps what passes of it, with the id of the request.
    pub fn keep(input: &[u8], fields: &Fields, edits: Option<&Edits>, id: &[u8]) -> Named {
        // What is said of the body is about another one; what is between two machines ends here.
        const OTHER: [&[u8]; 11] = [
            b"content-digest",
            b"content-md5",
            b"digest",
            b"repr-digest",
            b"content-encoding",
            b"content-range",
            b"etag",
            b"last-modified",
            b"accept-ranges",
            b"x-sendfile",
            b"trailer",
        ];
        let mut named = Named::default();
        for field in fields.iter() {
            let name = field.name.of(input);
            let is = |known: &&[u8]| name.eq_ignore_ascii_case(known);
            let own = matches!(
                field.kind,
                Kind::Nominated
                    | Kind::ContentLength
                    | Kind::TransferEncoding
                    | Kind::Connection
                    | Kind::KeepAlive
                    | Kind::ProxyConnection
                    | Kind::Te
                    | Kind::Upgrade
                    | Kind::Date
                    | Kind::XRequestId
                    | Kind::RipWorkerBusy
                    | Kind::RipWorkerDraining
                    | Kind::RipNoLog
                    | Kind::RipMark
            );
            let accel = name.len() > 8 && name[..8].eq_ignore_ascii_case(b"x-accel-");
            if own || accel || OTHER.iter().any(is) || edits.is_some_and(|edits| edits.removes(name)) {
                continue;
            }
            if field.kind == Kind::ContentType {
                named.media_type = Some(field.value.of(input).into());
                continue;
            }
            named.has_cache |= is(&&b"cache-control"[..]);
            named.line(name, field.value.of(input));
        }
        named.line(b"X-Request-Id", id);
        named
    }

    /// What a file is, where one of these has said so, or else by its name; `None`: that is to be said to nobody.
    pub fn media_type<'a>(named: Option<&'a Named>, edits: Option<&'a Edits>, served: &Served) -> Option<&'a [u8]> {
        let is_type = |name: &[u8]| name.eq_ignore_ascii_case(b"content-type");
        match edits.filter(|edits| edits.removes(b"content-type")) {
            Some(edits) => edits.set().filter(|(name, _)| is_type(name)).map(|(_, value)| value).last(),
            None => named.and_then(|named| named.media_type.as_deref()).or(Some(served.media_type.as_bytes())),
        }
    }

    fn line(&mut self, name: &[u8], value: &[u8]) {
        for part in [name, b": ", value, b"\r\n"] {
            self.lines.extend_from_slice(part);
        }
    }
}

impl Plan {
    /// Decides what a request gets of a file. `conditional`: the request is a GET or a HEAD, of which alone conditions and parts are
    /// looked at; `media_type`: what each of several parts is said to be; `boundary`: what stands between them, which no file has in it.
    pub fn new(
        served: &Served,
        asked: &Asked<'_>,
        (conditional, gets): (bool, bool),
        (media_type, boundary): (Option<&[u8]>, &str),
    ) -> Plan {
        let there: Vec<_> = served.coded.iter().map(|(coding, file)| (*coding, file.size)).collect();
        let coding = if there.is_empty() { None } else { choose(asked.accept_encoding.as_deref(), &there) };
        let coded = coding.and_then(|coding| there.iter().position(|(other, _)| *other == coding));
        let mut plan = Plan { status: 200, coded, length: 0, pieces: VecDeque::new(), range: None, boundary: None };
        let file = plan.file(served);
        let (size, facts) = (file.size, Facts { etag: &file.etag, modified: file.modified, size: file.size });
        let decision = if conditional { decide(asked, &facts, gets) } else { Decision::Whole };
        match decision {
            Decision::Whole => {
                plan.length = size;
                plan.pieces.extend((size > 0).then_some(Piece::Bytes(0..size)));
            }
            Decision::NotModified => plan.status = 304,
            Decision::Failed => plan.status = 412,
            Decision::Unsatisfiable => plan.status = 416,
            Decision::Part(part) => {
                plan.status = 206;
                plan.length = part.end - part.start;
                plan.range = Some(format!("bytes {}-{}/{size}", part.start, part.end - 1));
                plan.pieces.push_back(Piece::Bytes(part));
            }
            Decision::Parts(parts) => {
                plan.status = 206;
                let (before, behind) = ranges::frame(&parts, size, media_type, boundary);
                for (text, part) in before.into_iter().zip(parts) {
                    plan.length += text.len() as u64 + part.end - part.start;
                    plan.pieces.extend([Piece::Text(text), Piece::Bytes(part)]);
                }
                plan.length += behind.len() as u64;
                plan.pieces.push_back(Piece::Text(behind));
                plan.boundary = Some(boundary.to_owned());
            }
        }
        plan
    }

    /// The file that is sent.
    pub fn file<'a>(&self, served: &'a Served) -> &'a Arc<Opened> {
        self.coded.and_then(|index| served.coded.get(index)).map_or(&served.plain, |(_, file)| file)
    }

    /// Bytes that [`Plan::head`] writes at most.
    pub fn room(terms: &Terms<'_>) -> usize {
        let lines = terms.edits.map_or(0, |edits| edits.lines().len());
        let named =
            |named: &Named| named.lines.len() + named.media_type.as_ref().map_or(0, |media_type| media_type.len());
        1024 + terms.cache.len() + lines + terms.named.map_or(0, named)
    }

    /// Writes the head, where what is sent is no error.
    pub fn head(&self, out: &mut Writer<'_>, served: &Served, terms: &Terms<'_>) {
        let file = self.file(served);
        let line = |out: &mut Writer<'_>, name: &str, value: &[u8]| {
            if !terms.edits.is_some_and(|edits| edits.removes(name.as_bytes())) {
                out.put_all([name.as_bytes(), b": ", value, b"\r\n"]);
            }
        };
        out.put(b"HTTP/1.1 ");
        out.put_decimal(u64::from(self.status));
        out.put_all([b" ", reason(self.status).as_bytes(), b"\r\n"]);
        if self.status != 304 {
            out.put(b"Content-Length: ");
            out.put_decimal(self.length);
            out.put(b"\r\n");
        }
        if matches!(self.status, 200 | 206) {
            match &self.boundary {
                Some(boundary) => {
                    out.put_all([b"Content-Type: multipart/byteranges; boundary=", boundary.as_bytes(), b"\r\n"])
                }
                None => {
                    let named = terms.named.and_then(|named| named.media_type.as_deref());
                    line(out, "Content-Type", named.unwrap_or(served.media_type.as_bytes()));
                }
            }
            if let Some((coding, _)) = self.coded.and_then(|index| served.coded.get(index)) {
                out.put_all([b"Content-Encoding: ", coding.name().as_bytes(), b"\r\n"]);
            }
            line(out, "Accept-Ranges", b"bytes");
        }
        if let Some(range) = &self.range {
            out.put_all([b"Content-Range: ", range.as_bytes(), b"\r\n"]);
        }
        if matches!(self.status, 200 | 206 | 304) {
            line(out, "ETag", &file.etag);
            line(out, "Last-Modified", &file.date);
            if !terms.cache.is_empty() && !terms.named.is_some_and(|named| named.has_cache) {
                line(out, "Cache-Control", terms.cache.as_bytes());
            }
        }
        if !served.coded.is_empty() {
            line(out, "Vary", b"Accept-Encoding");
        }
        out.put(terms.named.map_or(b"", |named| &named.lines));
        match terms.edits {
            // What the route says of the file, it says of each part.
            Some(edits) if self.boundary.is_some() => {
                for (name, value) in edits.set().filter(|(name, _)| !name.eq_ignore_ascii_case(b"content-type")) {
                    out.put_all([name, b": ", value, b"\r\n"]);
                }
            }
            edits => out.put(edits.map_or(b"", |edits| edits.lines())),
        }
        out.put_all([b"Date: ", terms.date]);
        out.put(connection(terms.client.0, terms.client.1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::block::{Budget, Pool, Scratch};
    use crate::config::Coding;
    use crate::config::route::FieldEdits;
    use crate::http::date;

    fn opened(size: u64, etag: &str) -> Arc<Opened> {
        let file = std::fs::File::open("/dev/null").unwrap();
        Arc::new(Opened { file, size, etag: etag.as_bytes().into(), modified: 784_111_777, date: date(784_111_777) })
    }

    fn answer(coded: bool, fields: &str, terms: &Terms<'_>) -> (String, Vec<Piece>) {
        let coded = if coded { vec![(Coding::Gzip, opened(4, "\"z\""))] } else { Vec::new() };
        let served = Served { media_type: "text/plain", plain: opened(10, "\"p\""), coded };
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let media_type = Named::media_type(terms.named, terms.edits, &served);
        let plan = Plan::new(&served, &Asked::read(head.as_bytes()), (true, true), (media_type, "B"));
        let mut scratch = Scratch::new(Pool::new(4, 0, Budget::new(0)));
        let bytes = scratch.write(Plan::room(terms), |out| plan.head(out, &served, terms)).to_vec();
        (String::from_utf8(bytes).unwrap(), plan.pieces.into_iter().collect())
    }

    const DATE: [u8; 29] = *b"Sun, 06 Nov 1994 08:49:40 GMT";

    fn terms<'a>() -> Terms<'a> {
        Terms { cache: "", edits: None, named: None, date: &DATE, client: (Version::Http11, true) }
    }

    #[test]
    fn heads_say_what_is_sent() {
        let end = "Date: Sun, 06 Nov 1994 08:49:40 GMT\r\n\r\n";
        let changed = "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
        let (head, pieces) = answer(false, "", &terms());
        assert_eq!(
            head,
            format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Type: text/plain\r\nAccept-Ranges: bytes\r\nETag: \"p\"\r\n{changed}{end}"
            )
        );
        assert_eq!(pieces, [Piece::Bytes(0..10)]);
        let (head, pieces) = answer(true, "Accept-Encoding: gzip\r\nRange: bytes=1-9\r\n", &terms());
        assert_eq!(
            head,
            format!(
                "HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n\
                 Accept-Ranges: bytes\r\nContent-Range: bytes 1-3/4\r\nETag: \"z\"\r\n{changed}Vary: Accept-Encoding\r\n{end}"
            )
        );
        assert_eq!(pieces, [Piece::Bytes(1..4)]);
        let of_cache = Terms { cache: "no-cache", ..terms() };
        let (head, pieces) = answer(true, "If-None-Match: \"p\"\r\n", &of_cache);
        assert_eq!(
            head,
            format!(
                "HTTP/1.1 304 Not Modified\r\nETag: \"p\"\r\n{changed}Cache-Control: no-cache\r\nVary: Accept-Encoding\r\n{end}"
            )
        );
        assert!(pieces.is_empty());
        let (head, pieces) = answer(false, "Range: bytes=0-1,8-\r\n", &terms());
        assert!(head.contains("Content-Type: multipart/byteranges; boundary=B\r\n"), "{head}");
        let sum: usize = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.len(),
                Piece::Bytes(range) => (range.end - range.start) as usize,
            })
            .sum();
        assert!(head.contains(&format!("Content-Length: {sum}\r\n")), "{head}");
    }

    #[test]
    fn parts_are_what_the_whole_would_be() {
        let fields = |set: &[(&str, &str)], remove: &[&str]| FieldEdits {
            set: set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            remove: remove.iter().map(|name| (*name).to_owned()).collect(),
        };
        let set = Edits::of_response(&fields(&[("content-type", "text/x-route"), ("X-Set", "yes")], &[]));
        let removes = Edits::of_response(&fields(&[], &["Content-Type"]));
        let named = Named { media_type: Some(b"text/x-app"[..].into()), ..Named::default() };
        for (edits, named, expected) in [
            (None, None, Some("text/plain")),
            (None, Some(&named), Some("text/x-app")),
            (set.as_ref(), None, Some("text/x-route")),
            (set.as_ref(), Some(&named), Some("text/x-route")),
            (removes.as_ref(), None, None),
        ] {
            let terms = Terms { edits, named, ..terms() };
            let types = |text: &str| {
                let lines = text.lines().filter_map(|line| line.split_once(": "));
                let types = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-type"));
                types.map(|(_, value)| value.to_owned()).collect::<Vec<_>>()
            };
            let expected: Vec<String> = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(types(&answer(false, "", &terms).0), expected);
            let (head, pieces) = answer(false, "Range: bytes=0-1,8-\r\n", &terms);
            assert_eq!(types(&head), ["multipart/byteranges; boundary=B"]);
            assert_eq!(head.contains("X-Set: yes\r\n"), edits.is_some() && edits == set.as_ref());
            let Piece::Text(text) = &pieces[0] else { panic!("{pieces:?}") };
            assert_eq!(types(&String::from_utf8_lossy(text)), expected);
        }
    }
}
