//! HTTP/1.1 as the scripted clients and workers read it: simple, strict, and independent of the product's own parser.

use super::checks::RequestId;

/// Bytes after which a pattern repeats: a prime, so that no piece of a round size looks like the one before it.
const PERIOD: usize = 4093;

static PATTERN: [u8; PERIOD] = {
    let (mut bytes, mut at, mut state) = ([0; PERIOD], 0, 1u32);
    while at < PERIOD {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes[at] = (state >> 24) as u8;
        at += 1;
    }
    bytes
};

/// The body of the message with that number, from `at` on, in runs that end only where the pattern repeats.
fn runs(number: u32, at: usize) -> impl Iterator<Item = &'static [u8]> {
    let start = ((number as usize).wrapping_mul(131) + at) % PERIOD;
    std::iter::once(&PATTERN[start..]).chain(std::iter::repeat(&PATTERN[..]))
}

/// A run of the bytes that a message with that number has as its body.
pub fn patterned(number: u32, len: usize) -> Vec<u8> {
    patterned_from(number, 0, len)
}

/// Such a run that begins at `at`.
pub fn patterned_from(number: u32, at: usize, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    for run in runs(number, at) {
        if bytes.len() == len {
            break;
        }
        bytes.extend_from_slice(&run[..run.len().min(len - bytes.len())]);
    }
    bytes
}

/// Whether `bytes` are the beginning of that body.
pub fn is_patterned(number: u32, bytes: &[u8]) -> bool {
    is_patterned_from(number, 0, bytes)
}

/// Whether `bytes` are what stands at `at` in that body.
pub fn is_patterned_from(number: u32, at: usize, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    for run in runs(number, at) {
        if rest.is_empty() {
            break;
        }
        let (front, back) = rest.split_at(run.len().min(rest.len()));
        if front != &run[..front.len()] {
            return false;
        }
        rest = back;
    }
    true
}

/// A message's head.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its first line.
    pub line: String,
    fields: Vec<(String, String)>,
}

impl Head {
    /// Takes a whole head off the front of `input`.
    pub fn take(input: &mut Vec<u8>) -> Result<Option<Head>, String> {
        let Some(end) = end_of_head(input) else { return Ok(None) };
        let bytes: Vec<u8> = input.drain(..end + 4).collect();
        let text = String::from_utf8(bytes).map_err(|_| "a head that is no text".to_owned())?;
        let mut lines = text.trim_end().split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let fields: Option<Vec<_>> = lines
            .map(|line| line.split_once(':').map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())))
            .collect();
        let fields = fields.ok_or_else(|| format!("a head with a line that is no field: {text:?}"))?;
        Ok(Some(Head { line, fields }))
    }

    /// The only value of a field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut values = self.fields.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let first = values.next();
        assert!(values.next().is_none() || name == "via", "{name} stands twice in {self:?}");
        first
    }

    /// Whether `Connection` holds that word.
    pub fn connection_says(&self, word: &str) -> bool {
        self.field("connection").is_some_and(|value| value.split(',').any(|it| it.trim().eq_ignore_ascii_case(word)))
    }

    /// The status in an answer's first line.
    pub fn status(&self) -> Result<u16, String> {
        let status = self.line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        status.ok_or_else(|| format!("not an answer: {:?}", self.line))
    }

    /// The framing that the fields say; `None` where there is none.
    pub fn framing(&self) -> Result<Option<Framing>, String> {
        match (self.field("content-length"), self.field("transfer-encoding")) {
            (Some(_), Some(_)) => Err(format!("two framings: {self:?}")),
            (Some(length), None) => {
                let length = length.parse().map_err(|_| format!("a length that is no number: {length}"))?;
                Ok(Some(Framing::Length(length)))
            }
            (None, Some("chunked")) => Ok(Some(Framing::Chunked)),
            (None, Some(other)) => Err(format!("an unknown coding: {other}")),
            (None, None) => Ok(None),
        }
    }
}

/// The request and the delivery that an answer says it belongs to.
pub fn answer_of(head: &Head) -> Option<(RequestId, usize)> {
    let (id, number) = head.field("x-answer")?.split_once('.')?;
    Some((id.parse().ok()?, number.parse().ok()?))
}

/// Where the empty line begins that ends a head.
fn end_of_head(input: &[u8]) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = memchr::memchr(b'\r', &input[from..]) {
        if input[from + at..].starts_with(b"\r\n\r\n") {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(usize),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// A body that comes in.
#[derive(Debug)]
pub struct Body {
    framing: Framing,
    /// What has come of it.
    pub bytes: Vec<u8>,
    /// Whether that is all.
    pub done: bool,
    /// Bytes of the current chunk that are still to come, with its line's end.
    chunk_left: usize,
    trailers: bool,
}

impl Body {
    /// Nothing of it has come yet.
    pub fn new(framing: Framing) -> Body {
        Body { framing, bytes: Vec::new(), done: framing == Framing::Length(0), chunk_left: 0, trailers: false }
    }

    /// Takes what belongs to the body off the front of `input`.
    pub fn feed(&mut self, input: &mut Vec<u8>) -> Result<(), String> {
        match self.framing {
            Framing::UntilClose => self.bytes.append(input),
            Framing::Length(length) => {
                let count = input.len().min(length - self.bytes.len());
                self.bytes.extend_from_slice(&input[..count]);
                input.drain(..count);
                self.done = self.bytes.len() == length;
            }
            Framing::Chunked => while !self.done && self.feed_chunk(input)? {},
        }
        Ok(())
    }

    /// The connection has ended: whether that is a clean end of the body.
    pub fn end(&mut self) -> bool {
        self.done |= self.framing == Framing::UntilClose;
        self.done
    }

    fn feed_chunk(&mut self, input: &mut Vec<u8>) -> Result<bool, String> {
        if self.chunk_left > 2 {
            let count = input.len().min(self.chunk_left - 2);
            self.bytes.extend_from_slice(&input[..count]);
            input.drain(..count);
            self.chunk_left -= count;
            return Ok(count > 0);
        }
        if self.chunk_left > 0 {
            if input.len() < 2 {
                return Ok(false);
            }
            if input.drain(..2).ne(*b"\r\n") {
                return Err("no line end behind a chunk".to_owned());
            }
            self.chunk_left = 0;
            return Ok(true);
        }
        let Some(end) = input.windows(2).position(|two| two == b"\r\n") else { return Ok(false) };
        let line: Vec<u8> = input.drain(..end + 2).collect();
        let line = std::str::from_utf8(&line[..end]).map_err(|_| "a chunk's line that is no text".to_owned())?;
        if self.trailers {
            self.done = line.is_empty();
            return Ok(true);
        }
        let size =
            usize::from_str_radix(line, 16).map_err(|_| format!("a chunk's size that is no number: {line:?}"))?;
        self.trailers = size == 0;
        self.chunk_left = if size == 0 { 0 } else { size + 2 };
        Ok(true)
    }
}

/// Puts chunks around a body, cut at the given sizes in turn.
pub fn chunked(body: &[u8], sizes: &[usize], trailer: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), body);
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (chunk, left) = rest.split_at((*size).clamp(1, rest.len()));
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
        rest = left;
    }
    out.extend_from_slice(format!("0\r\n{trailer}\r\n").as_bytes());
    out
}

#[test]
fn a_chunked_body_is_read_in_any_pieces() {
    let body = patterned(7, 300);
    let wire = chunked(&body, &[1, 90, 13], "X-Sum: 1\r\n");
    for piece in [1, 2, 50, 1000] {
        let (mut reader, mut input) = (Body::new(Framing::Chunked), Vec::new());
        for bytes in wire.chunks(piece) {
            assert!(!reader.done);
            input.extend_from_slice(bytes);
            reader.feed(&mut input).unwrap();
        }
        assert!(reader.done && reader.bytes == body && input.is_empty());
    }
    let mut cut = Body::new(Framing::Chunked);
    cut.feed(&mut wire[..wire.len() - 2].to_vec()).unwrap();
    assert!(!cut.end());
    assert!(Body::new(Framing::Chunked).feed(&mut b"3\r\nabcd\r\n".to_vec()).is_err());
}
