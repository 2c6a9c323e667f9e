//! Field lines: the reusable list of them.
//!
//! Lines are split by httparse, which refuses folded lines, whitespace before the colon, empty names, bare CR, NUL and the
//! other controls, and accepts a bare LF as a line's end. Heads in which all is plain, and those are nearly all, are spared
//! that: a search with wide words splits them, and takes nothing that httparse would split otherwise. Whatever is out of the
//! ordinary, incomplete or wrong is left to httparse.

pub use super::names::{Kind, Kinds};

use super::names::{classify, is_token, usual_kind};
use super::{Refusal, Span, bad};
use crate::buffers::scan::{Piece, end_of};

/// One field line.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The name as it came.
    pub name: Span,
    /// The value without the whitespace around it.
    pub value: Span,
    /// The whole line with its end.
    pub line: Span,
    /// What the name means to us.
    pub kind: Kind,
}

/// The field lines of the head that was parsed last. Kept and reused by its owner, so that parsing does not allocate.
#[derive(Debug, Default)]
pub struct Fields {
    list: Vec<Field>,
    present: Kinds,
    /// Whether a line ends without CR.
    pub(crate) bare_line_feed: bool,
    /// Room for httparse's view of a head with many lines, always empty between two heads. Kept: a head that arrives in pieces is
    /// looked at again and again.
    spare: Vec<httparse::Header<'static>>,
    /// What `Connection` names in the last head that names something, each behind a comma.
    nominated: Vec<u8>,
    /// The host that was found legal last: nearly all requests of a server name the same.
    legal_host: Vec<u8>,
}

/// Where in a head the lines of `Host`, `Referer` and `User-Agent` lie: the begin of each name, and its value, empty for one that is not there.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shown([(u32, Span); 3]);

impl Shown {
    const NAMES: [&[u8]; 3] = [b"host", b"referer", b"user-agent"];

    /// The values in that head; `None` where it has other lines in these places.
    #[inline]
    pub fn of<'a>(&self, head: &'a [u8]) -> Option<[&'a [u8]; 3]> {
        let mut values = [&b""[..]; 3];
        for ((value, (start, span)), name) in values.iter_mut().zip(&self.0).zip(Shown::NAMES) {
            if !span.is_empty() {
                let line = head.get(*start as usize..span.end as usize)?;
                let (known, rest) = line.split_at_checked(name.len())?;
                if !known.eq_ignore_ascii_case(name) || rest.first() != Some(&b':') {
                    return None;
                }
                *value = line.get((span.start - start) as usize..)?;
            }
        }
        Some(values)
    }
}

impl Fields {
    /// An empty list with room for `capacity` lines.
    pub fn new(capacity: usize) -> Fields {
        Fields { list: Vec::with_capacity(capacity), ..Fields::default() }
    }

    /// The lines in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, Field> {
        self.list.iter()
    }

    /// Lines in the list.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the head had no field line.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The first line of that kind.
    #[inline]
    pub fn find(&self, kind: Kind) -> Option<&Field> {
        if self.present.has(kind) { self.list.iter().find(|field| field.kind == kind) } else { None }
    }

    /// Where the lines lie that access lines show, once those of the kinds `dropped` are taken out of the head, and what is before `start`. `None`
    /// without a line of `Host`.
    pub fn shown(&self, start: u32, dropped: Kinds) -> Option<Shown> {
        let (mut shown, mut gone) = (Shown::default(), start);
        for field in &self.list {
            let place = match field.kind {
                Kind::Host => 0,
                Kind::Referer => 1,
                Kind::UserAgent => 2,
                _ => Shown::NAMES.len(),
            };
            if dropped.has(field.kind) {
                gone += field.line.len() as u32;
            } else if let Some(line) = shown.0.get_mut(place).filter(|line| line.1.is_empty()) {
                let Span { start, end } = field.value;
                *line = (field.name.start - gone, Span { start: start - gone, end: end - gone });
            }
        }
        (!shown.0[0].1.is_empty()).then_some(shown)
    }

    /// What they show of the head `bytes`, where that is known.
    #[inline]
    pub fn shown_of<'a>(&self, bytes: &'a [u8]) -> Option<[&'a [u8]; 3]> {
        let [host, others @ ..] = [Kind::Host, Kind::Referer, Kind::UserAgent].map(|kind| self.find(kind));
        let value = |field: Option<&Field>| field.map_or(&b""[..], |field| field.value.of(bytes));
        Some([host?.value.of(bytes), value(others[0]), value(others[1])])
    }

    /// The first line whose name is `name`, whatever its case. For names without a [`Kind`].
    pub fn find_name<'a>(&self, bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
        let named = |field: &&Field| field.name.of(bytes).eq_ignore_ascii_case(name.as_bytes());
        self.list.iter().find(named).map(|field| field.value.of(bytes))
    }

    /// The kinds of which there is at least one line.
    #[inline]
    pub fn present(&self) -> Kinds {
        self.present
    }

    /// The names that `Connection` makes the fields of this connection alone, separated by commas.
    #[inline]
    pub(crate) fn nominated(&self) -> &[u8] {
        if self.present.has(Kind::Nominated) { &self.nominated } else { b"" }
    }

    /// Whether that host was found legal just before.
    #[inline]
    pub(crate) fn knows_host(&self, host: &[u8]) -> bool {
        self.legal_host == host
    }

    /// Remembers a legal host, within the memory that is there already.
    pub(crate) fn remember_host(&mut self, host: &[u8]) {
        const MOST: usize = 64;
        if host.len() <= MOST {
            self.legal_host.clear();
            self.legal_host.reserve_exact(MOST);
            self.legal_host.extend_from_slice(host);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.present = Kinds::default();
        self.bare_line_feed = false;
    }

    /// Reads the field lines that begin at `start`, up to and with the empty line. Returns the offset behind it, or `None`
    /// when more bytes are needed.
    pub(crate) fn parse(&mut self, bytes: &[u8], start: usize, most: usize) -> Result<Option<usize>, Refusal> {
        match self.parse_plain(bytes, start, most) {
            Some(end) => Ok(Some(end)),
            None => self.parse_any(bytes, start, most),
        }
    }

    /// Reads lines that are plain, as nearly all are: whole, ending with CRLF, names and values of bytes that nobody objects
    /// to. `None` for anything else, which is for httparse to judge.
    fn parse_plain(&mut self, bytes: &[u8], start: usize, most: usize) -> Option<usize> {
        let mut present = Kinds::default();
        let mut line = start;
        loop {
            let stop = end_of(Piece::Name, bytes, line)?;
            let (name_end, kind) = match bytes[stop] {
                b':' => (stop, usual_kind(&bytes[line..stop])),
                b'\r' if stop == line => {
                    self.present = present;
                    return (bytes.get(line + 1) == Some(&b'\n')).then_some(line + 2);
                }
                _ => unusual_name(bytes, line, stop)?,
            };
            if name_end == line || self.list.len() >= most {
                return None;
            }
            let mut value = name_end + 1;
            while let Some(b' ' | b'\t') = bytes.get(value) {
                value += 1;
            }
            let mut value_end = end_of(Piece::Value, bytes, value)?;
            while bytes[value_end] == b'\t' {
                value_end = end_of(Piece::Value, bytes, value_end + 1)?;
            }
            if !bytes[value_end..].starts_with(b"\r\n") {
                return None;
            }
            let line_end = value_end + 2;
            // A byte of a value that is not above a space is whitespace, and before an empty value there is its name's colon.
            while bytes[value_end - 1] <= b' ' && value_end > value {
                value_end -= 1;
            }
            present.insert(kind);
            self.list.push(Field {
                name: Span::new(line, name_end),
                value: Span::new(value, value_end),
                line: Span::new(line, line_end),
                kind,
            });
            line = line_end;
        }
    }

    #[cold]
    fn parse_any(&mut self, bytes: &[u8], start: usize, most: usize) -> Result<Option<usize>, Refusal> {
        self.list.clear();
        /// Enough for a browser's head, and cheap to clear.
        const USUAL: usize = 24;
        let mut headers = [httparse::EMPTY_HEADER; USUAL];
        match httparse::parse_headers(&bytes[start..], &mut headers) {
            Ok(httparse::Status::Complete((len, headers))) => self.take(bytes, start, len, headers, most),
            Ok(httparse::Status::Partial) => Ok(None),
            Err(httparse::Error::TooManyHeaders) => self.parse_many(bytes, start, most),
            Err(_) => Err(diagnose(&bytes[start..])),
        }
    }

    #[cold]
    fn parse_many(&mut self, bytes: &[u8], start: usize, most: usize) -> Result<Option<usize>, Refusal> {
        let mut headers = emptied(std::mem::take(&mut self.spare));
        // There are no more fields than line ends, and clearing room for all that are allowed may be dear.
        let lines = memchr::memchr_iter(b'\n', &bytes[start..]).count() + 1;
        headers.resize(lines.min(most), httparse::EMPTY_HEADER);
        let outcome = match httparse::parse_headers(&bytes[start..], &mut headers) {
            Ok(httparse::Status::Complete((len, headers))) => self.take(bytes, start, len, headers, most),
            Ok(httparse::Status::Partial) => Ok(None),
            Err(httparse::Error::TooManyHeaders) => Err(TOO_MANY_FIELDS),
            Err(_) => Err(diagnose(&bytes[start..])),
        };
        self.spare = emptied(headers);
        outcome
    }

    /// Takes over what httparse has found: `len` bytes at `start`, with the empty line.
    fn take(
        &mut self,
        bytes: &[u8],
        start: usize,
        len: usize,
        headers: &[httparse::Header<'_>],
        most: usize,
    ) -> Result<Option<usize>, Refusal> {
        if headers.len() > most {
            return Err(TOO_MANY_FIELDS);
        }
        let base = bytes.as_ptr() as usize;
        let end = start + len;
        let empty_line = if len >= 2 && bytes[end - 2] == b'\r' { 2 } else { 1 };
        let mut bare = empty_line == 1;
        let mut present = Kinds::default();
        let mut line_start = start;
        // Each line ends where the next one's name begins.
        let next_names = headers.iter().skip(1).map(|next| next.name.as_ptr() as usize - base);
        let line_ends = next_names.chain([end - empty_line]);
        self.list.extend(headers.iter().zip(line_ends).map(|(header, line_end)| {
            let name = header.name.as_bytes();
            bare |= bytes[line_end - 2] != b'\r';
            let kind = classify(name);
            present.insert(kind);
            // httparse gives an empty value an address of its own, outside of `bytes`.
            let value = if header.value.is_empty() { 0 } else { header.value.as_ptr() as usize - base };
            let field = Field {
                name: Span::new(line_start, line_start + name.len()),
                value: Span::new(value, value + header.value.len()),
                line: Span::new(line_start, line_end),
                kind,
            };
            line_start = line_end;
            field
        }));
        self.bare_line_feed |= bare;
        self.present = present;
        Ok(Some(end))
    }

    /// Whether httparse splits these lines in the same way as the plain way does; `None` where that one leaves them to it.
    #[cfg(any(test, fuzzing))]
    pub fn plain_agrees(bytes: &[u8], start: usize, most: usize) -> Option<bool> {
        let (mut plain, mut any) = (Fields::default(), Fields::default());
        let end = plain.parse_plain(bytes, start, most)?;
        let same_end = any.parse_any(bytes, start, most) == Ok(Some(end));
        // Where an empty value lies means nothing.
        let value = |field: &Field| if field.value.is_empty() { Span::default() } else { field.value };
        let parts = |field: &Field| (field.name, value(field), field.line, field.kind);
        let same = plain.present == any.present && plain.bare_line_feed == any.bare_line_feed;
        Some(same_end && same && plain.iter().map(parts).eq(any.iter().map(parts)))
    }

    /// Marks the lines that a `Connection` field names. Host, the framing and what we write ourselves cannot be named
    /// away.
    #[cold]
    pub(crate) fn nominate(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut options = 0;
        self.nominated.clear();
        self.present.insert(Kind::Nominated);
        for index in 0..self.list.len() {
            if self.list[index].kind != Kind::Connection {
                continue;
            }
            for option in list_items(self.list[index].value.of(bytes)) {
                options += 1;
                if options > MOST_OPTIONS {
                    return Err(bad("RFC 9110 §7.6.1", "too many connection options"));
                }
                self.nominated.push(b',');
                self.nominated.extend_from_slice(option);
                self.nominate_one(bytes, option);
            }
        }
        Ok(())
    }

    fn nominate_one(&mut self, bytes: &[u8], option: &[u8]) {
        for field in &mut self.list {
            if NOMINABLE.has(field.kind) && field.name.of(bytes).eq_ignore_ascii_case(option) {
                field.kind = Kind::Nominated;
            }
        }
    }
}

/// The same memory, for headers that borrow from other bytes.
fn emptied<'to>(mut headers: Vec<httparse::Header<'_>>) -> Vec<httparse::Header<'to>> {
    headers.clear();
    // The standard library collects a vector's own iterator in place where the layout is the same.
    headers.into_iter().map(|_| httparse::EMPTY_HEADER).collect()
}

/// Options of `Connection` in one head, so that marking what they name stays cheap.
const MOST_OPTIONS: usize = 32;
pub(super) const TOO_MANY_FIELDS: Refusal =
    Refusal { status: 431, section: "RFC 6585 §5", reason: "too many field lines" };

/// What `Connection` may declare to be hop-by-hop: what we neither need for framing or routing nor write ourselves.
const NOMINABLE: Kinds = Kinds::of(&[
    Kind::Other,
    Kind::Accept,
    Kind::Cookie,
    Kind::Referer,
    Kind::UserAgent,
    Kind::ContentType,
    Kind::MaxForwards,
    Kind::Traceparent,
    Kind::Tracestate,
    Kind::RipWorkerBusy,
    Kind::RipWorkerDraining,
    Kind::RipNoLog,
    Kind::RipMark,
]);

/// The elements of a comma-separated list (RFC 9110 §5.6.1), without empty ones and the whitespace around them.
pub(crate) fn list_items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim).filter(|item| !item.is_empty())
}

/// `bytes` without optional whitespace at both ends (RFC 9110 §5.6.3).
pub(crate) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

/// The end and kind of a name that has other bytes in it than [`usual_kind`] takes; `None` unless it is a token before a colon.
#[cold]
fn unusual_name(bytes: &[u8], start: usize, from: usize) -> Option<(usize, Kind)> {
    let len = bytes[from..].iter().position(|byte| !is_token(*byte))?;
    let end = from + len;
    (bytes[end] == b':').then(|| (end, classify(&bytes[start..end])))
}

/// Which rule the lines at `bytes` break; for the refusal's text alone.
#[cold]
fn diagnose(bytes: &[u8]) -> Refusal {
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let content = line.strip_suffix(b"\n").map_or(line, |line| line.strip_suffix(b"\r").unwrap_or(line));
        if matches!(content.first(), Some(b' ' | b'\t')) {
            return bad("RFC 9112 §5.2", "a folded field line");
        }
        if content.contains(&b'\r') {
            return bad("RFC 9112 §2.2", "a bare CR");
        }
        if content.is_empty() {
            break;
        }
        let colon = content.iter().position(|byte| *byte == b':').unwrap_or(content.len());
        if colon > 0 && content[..colon].ends_with(b" ") || content[..colon].ends_with(b"\t") {
            return bad("RFC 9112 §5.1", "whitespace between a field's name and its colon");
        }
        if colon == 0 && !content.is_empty() || !content[..colon].iter().all(|byte| is_token(*byte)) {
            return bad("RFC 9110 §5.1", "a field name that is not a token");
        }
        if content[colon..].iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
            return bad("RFC 9110 §5.5", "a control character in a field value");
        }
    }
    bad("RFC 9112 §5", "a field line without a colon")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_with_many_lines_reuse_their_memory() {
        let lines = |count: usize| (0..count).map(|number| format!("x-{number}: y\n")).collect::<String>();
        let (mut fields, head) = (Fields::default(), lines(5000) + "\n");
        assert_eq!(fields.parse(head.as_bytes(), 0, 5000), Ok(Some(head.len())));
        assert_eq!(fields.len(), 5000);
        let before = (fields.list.as_ptr(), fields.spare.as_ptr(), fields.spare.capacity());
        assert!(before.2 >= 5000);
        for _ in 0..2 {
            fields.clear();
            assert_eq!(fields.parse(&head.as_bytes()[..head.len() - 1], 0, 5000), Ok(None));
            fields.clear();
            assert_eq!(fields.parse(head.as_bytes(), 0, 5000), Ok(Some(head.len())));
        }
        assert_eq!((fields.list.as_ptr(), fields.spare.as_ptr(), fields.spare.capacity()), before);
        fields.clear();
        assert_eq!(fields.parse(head.as_bytes(), 0, 4999), Err(TOO_MANY_FIELDS));
    }
}
