//! Chunked bodies (RFC 9112 §7.1): one strict state machine that decodes them or passes them on.
//!
//! Accepted: hexadecimal sizes that fit in 63 bits, with leading zeros as long as the line stays short; extensions by
//! their grammar; CRLF and nothing else as a line's end. Refusals say 400; for a worker's answer the caller turns them
//! into 502 with [`Refusal::of_answer`].

use std::ops::Range;

use super::fields::list_items;
use super::names::{Kind, Kinds, classify, is_token};
use super::{Refusal, bad};
use crate::buffers::block::{Scratch, Writer};
use crate::buffers::outbox::Piece;

/// Bytes of a chunk's size line, with its extensions and without the CRLF.
pub const MOST_LINE_BYTES: u16 = 256;
/// Bytes of a trailer section.
pub const MOST_TRAILER_BYTES: usize = 8 * 1024;
/// Field lines of a trailer section.
const MOST_TRAILERS: usize = 64;

/// Bytes of size lines, line ends and trailers that are free.
pub const FREE_OVERHEAD: u64 = 1 << 20;
/// Further bytes of these that each byte of data pays for. A chunk of one byte has five, so that a sender of the smallest chunks is
/// served, and one whose extensions outweigh its data is not: it costs work and, by what it sends, nobody's body limit. nginx draws
/// its line for tiny frames of HTTP/2 in the same way.
pub const OVERHEAD_PER_BYTE: u64 = 8;

/// A decoder of one chunked body, which takes it in pieces of any size.
#[derive(Debug)]
pub struct Chunked {
    state: State,
    /// The digits of the current size line, then the bytes of the current chunk that are still to come.
    left: u64,
    /// Significant digits of the current size line.
    digits: u8,
    /// Bytes of the current size line.
    line: u16,
    /// How many bytes of `trailers` are the names of fields that do not pass, before those that have come.
    nominated: u32,
    /// Bytes besides the data that may still come.
    overhead_left: u64,
    /// The trailer section: raw while it arrives, behind the names that do not pass; filtered once the body is whole.
    pub(super) trailers: Vec<u8>,
}

/// What [`Chunked::decode`] made of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// The body's bytes among them, possibly none.
    pub data: Range<usize>,
    /// Whether the body is whole. What follows in the input is not part of it.
    pub done: bool,
}

/// What [`Chunked::relay`] made of a piece.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relay {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// The bytes among them to pass on as they are, possibly none.
    pub pass: Range<usize>,
    /// How many of the passed bytes are the body's, and not chunk framing.
    pub data: usize,
    /// Whether the body is whole; the last chunk was not passed on, see [`put_last_chunk`].
    pub done: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// At the begin of a size line, or behind zeros at its begin.
    #[default]
    Size,
    /// Behind a significant digit.
    Digits,
    /// Behind a `;`, before the extension's name.
    BeforeName,
    Name,
    /// Behind whitespace after an extension's name.
    AfterName,
    /// Behind a `=`, before the extension's value.
    BeforeValue,
    Value,
    Quoted,
    /// Behind a backslash in a quoted string.
    Escaped,
    /// Behind a quoted value, or whitespace after a value.
    AfterValue,
    /// Behind the CR of a size line.
    SizeEnd,
    Data,
    /// Behind a chunk's data, before its CR.
    DataCr,
    DataLf,
    /// At the begin of a trailer line.
    Trailer,
    TrailerLine,
    /// Behind the CR of a trailer line.
    TrailerEnd,
    /// Behind the CR of the empty line.
    LastLf,
    Done,
}

const SECTION: &str = "RFC 9112 §7.1";
const TOO_MUCH_OVERHEAD: Refusal = bad(SECTION, "chunks that are nearly all size lines and extensions");

impl Default for Chunked {
    fn default() -> Chunked {
        Chunked {
            state: State::default(),
            left: 0,
            digits: 0,
            line: 0,
            nominated: 0,
            overhead_left: FREE_OVERHEAD,
            trailers: Vec::new(),
        }
    }
}

impl Chunked {
    /// A decoder at the begin of a body.
    pub fn new() -> Chunked {
        Chunked::default()
    }

    /// Before anything has come: has the fields of these names, which are separated by commas, not pass in the trailer section either, for
    /// the head's `Connection` says that they are for its connection alone (RFC 9110 §7.6.1).
    #[cold]
    pub fn nominate(&mut self, names: &[u8]) {
        debug_assert!(self.trailers.is_empty(), "names come before the body");
        self.nominated = names.len() as u32;
        self.trailers.extend_from_slice(names);
    }

    /// Whether the body is whole.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Bytes of the chunk in hand that are still to come.
    pub fn announced(&self) -> u64 {
        if self.state == State::Data { self.left } else { 0 }
    }

    /// Bytes that were no data, behind so many that were.
    pub fn overhead(&self, data: u64) -> u64 {
        FREE_OVERHEAD.saturating_add(data.saturating_mul(OVERHEAD_PER_BYTE)).saturating_sub(self.overhead_left)
    }

    /// Decodes until the input ends, the body ends, or a second run of data begins.
    ///
    /// # Errors
    /// When the body is malformed, or nearly all overhead; this decoder is of no use then.
    pub fn decode(&mut self, input: &[u8]) -> Result<Progress, Refusal> {
        let mut at = 0;
        let mut data = 0..0;
        while at < input.len() && self.state != State::Done {
            if self.state != State::Data {
                let count = match self.usual_line(&input[at..]) {
                    Some(count) => count,
                    None => self.step(input[at]).map(|()| 1)?,
                };
                self.spend(count)?;
                at += count;
                continue;
            }
            if !data.is_empty() {
                break;
            }
            let count = self.take_data(input.len() - at);
            data = at..at + count;
            at += count;
        }
        Ok(Progress { consumed: at, data, done: self.state == State::Done })
    }

    /// Goes over the input until it ends, the body ends, or a second run of bytes to pass on begins. Not passed on are
    /// leading zeros of sizes, and everything from the last chunk on: so a body that is cut never ends in a last chunk.
    ///
    /// # Errors
    /// When the body is malformed, or nearly all overhead; nothing of the piece may be passed on then.
    pub fn relay(&mut self, input: &[u8]) -> Result<Relay, Refusal> {
        let mut at = 0;
        let mut data = 0;
        let mut pass = 0..0;
        while at < input.len() && self.state != State::Done {
            if self.state == State::Data {
                let count = self.take_data(input.len() - at);
                pass = extended(pass, at, count);
                at += count;
                data += count;
                continue;
            }
            let before = self.state;
            if (pass.is_empty() || pass.end == at)
                && let Some(count) = self.usual_line(&input[at..])
            {
                self.spend(count)?;
                pass = extended(pass, at, count);
                at += count;
                continue;
            }
            let digit = matches!(input[at], b'1'..=b'9' | b'a'..=b'f' | b'A'..=b'F');
            if before == State::Size && digit && !pass.is_empty() && pass.end != at {
                // Zeros lie between what is passed and this size: the next call's run begins here.
                break;
            }
            let within = self.digits > 0;
            self.step(input[at])?;
            self.spend(1)?;
            let passes = match before {
                State::Size => self.digits > 0,
                State::DataCr | State::DataLf => true,
                State::Trailer | State::TrailerLine | State::TrailerEnd | State::LastLf => false,
                // A size line without a significant digit is the last chunk's.
                _ => within,
            };
            if passes {
                pass = extended(pass, at, 1);
            }
            at += 1;
        }
        Ok(Relay { consumed: at, pass, data, done: self.state == State::Done })
    }

    /// The trailer fields that may be passed on, each line with its CRLF and without the empty line behind them. To be
    /// asked for when the body is whole; empty before.
    pub fn trailers(&self) -> &[u8] {
        if self.state == State::Done { &self.trailers } else { &[] }
    }

    fn take_data(&mut self, available: usize) -> usize {
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(available);
        self.left -= count as u64;
        self.overhead_left = self.overhead_left.saturating_add(count as u64 * OVERHEAD_PER_BYTE);
        if self.left == 0 {
            self.state = State::DataCr;
        }
        count
    }

    /// Pays for bytes that are no data.
    #[inline]
    fn spend(&mut self, count: usize) -> Result<(), Refusal> {
        self.overhead_left = self.overhead_left.checked_sub(count as u64).ok_or(TOO_MUCH_OVERHEAD)?;
        Ok(())
    }

    /// Takes in one step what nearly all lines are: the CRLF behind a chunk's data, or a whole size line of digits alone,
    /// of which the first is not zero. Returns its length, or `None` with nothing taken.
    #[inline]
    fn usual_line(&mut self, input: &[u8]) -> Option<usize> {
        match (self.state, input) {
            (State::DataCr, [b'\r', b'\n', ..]) => {
                self.state = State::Size;
                Some(2)
            }
            (State::Size, [b'1'..=b'9' | b'a'..=b'f' | b'A'..=b'F', ..]) if self.line == 0 => {
                let mut size = 0;
                for (index, byte) in input.iter().enumerate().take(9) {
                    size = match byte {
                        b'0'..=b'9' => size << 4 | u64::from(byte - b'0'),
                        b'a'..=b'f' | b'A'..=b'F' => size << 4 | u64::from((byte | 0x20) - b'a' + 10),
                        b'\r' if input.get(index + 1) == Some(&b'\n') => {
                            self.left = size;
                            self.state = State::Data;
                            return Some(index + 2);
                        }
                        _ => return None,
                    };
                }
                None
            }
            _ => None,
        }
    }

    /// Takes one byte that is not a chunk's data.
    #[inline]
    fn step(&mut self, byte: u8) -> Result<(), Refusal> {
        self.state = match (self.state, byte) {
            (State::Size | State::Digits, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => self.digit(byte)?,
            (State::Digits, b'\r') => State::SizeEnd,
            (State::SizeEnd, b'\n') => self.size_line_ends(),
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            (State::DataCr | State::DataLf, _) => return Err(bad(SECTION, "a chunk's data without CRLF behind it")),
            (State::Trailer | State::TrailerLine | State::TrailerEnd | State::LastLf, _) => self.trailer(byte)?,
            // `line` counts zeros as well, so it tells whether any digit was there.
            (State::Size, b'\r') if self.line > 0 => State::SizeEnd,
            (State::Size, b';') if self.line > 0 => State::BeforeName,
            (State::Size | State::Digits, _) if byte != b';' || self.line == 0 => {
                return Err(bad(SECTION, "a malformed chunk size"));
            }
            _ => self.extension(byte)?,
        };
        Ok(())
    }

    #[inline]
    fn digit(&mut self, byte: u8) -> Result<State, Refusal> {
        self.count()?;
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            _ => (byte | 0x20) - b'a' + 10,
        };
        if self.digits == 0 && digit == 0 {
            return Ok(State::Size);
        }
        if self.left > (i64::MAX as u64) >> 4 {
            return Err(bad(SECTION, "a chunk size that overflows"));
        }
        self.left = self.left << 4 | u64::from(digit);
        self.digits += 1;
        Ok(State::Digits)
    }

    fn count(&mut self) -> Result<(), Refusal> {
        self.line = self.line.saturating_add(1);
        if self.line > MOST_LINE_BYTES { Err(bad("RFC 9112 §7.1.1", "a chunk line that is too long")) } else { Ok(()) }
    }

    fn size_line_ends(&mut self) -> State {
        self.line = 0;
        if self.digits == 0 {
            return State::Trailer;
        }
        self.digits = 0;
        State::Data
    }

    /// `*( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )`, but no whitespace right behind the size.
    #[cold]
    fn extension(&mut self, byte: u8) -> Result<State, Refusal> {
        self.count()?;
        let space = matches!(byte, b' ' | b'\t');
        Ok(match self.state {
            State::Digits if byte == b';' => State::BeforeName,
            State::BeforeName if space => State::BeforeName,
            State::BeforeName | State::Name if is_token(byte) => State::Name,
            State::Name | State::AfterName if space => State::AfterName,
            State::Name | State::AfterName if byte == b'=' => State::BeforeValue,
            State::BeforeValue if space => State::BeforeValue,
            State::BeforeValue if byte == b'"' => State::Quoted,
            State::BeforeValue | State::Value if is_token(byte) => State::Value,
            State::Quoted if byte == b'"' => State::AfterValue,
            State::Quoted if byte == b'\\' => State::Escaped,
            State::Quoted | State::Escaped if is_quotable(byte) => State::Quoted,
            State::Value | State::AfterValue if space => State::AfterValue,
            State::Name | State::AfterName | State::Value | State::AfterValue if byte == b';' => State::BeforeName,
            State::Name | State::Value | State::AfterValue if byte == b'\r' => State::SizeEnd,
            _ => return Err(bad("RFC 9112 §7.1.1", "a malformed chunk extension")),
        })
    }

    #[cold]
    fn trailer(&mut self, byte: u8) -> Result<State, Refusal> {
        // The usual section is empty: nothing is kept, so that nothing is allocated for it.
        match (self.state, byte) {
            (State::Trailer, b'\r') => return Ok(State::LastLf),
            (State::LastLf, b'\n') => return self.filter_trailers().map(|()| State::Done),
            _ => {}
        }
        if self.trailers.len() >= MOST_TRAILER_BYTES + self.nominated as usize {
            return Err(bad("RFC 9112 §7.1.2", "a trailer section that is too large"));
        }
        self.trailers.push(byte);
        Ok(match (self.state, byte) {
            (State::TrailerLine, b'\r') => State::TrailerEnd,
            (State::TrailerEnd, b'\n') => State::Trailer,
            (State::Trailer | State::TrailerLine, b'\n') | (State::TrailerEnd | State::LastLf, _) => {
                return Err(bad("RFC 9112 §2.2", "a trailer line that does not end in CRLF"));
            }
            _ => State::TrailerLine,
        })
    }

    /// Keeps the lines that may be passed on.
    fn filter_trailers(&mut self) -> Result<(), Refusal> {
        let nominated = self.nominated as usize;
        let mut raw = std::mem::take(&mut self.trailers);
        if raw.len() == nominated {
            return Ok(());
        }
        raw.extend_from_slice(b"\r\n");
        let (nominated, section) = raw.split_at(nominated);
        let mut headers = [httparse::EMPTY_HEADER; MOST_TRAILERS];
        let Ok(httparse::Status::Complete((_, headers))) = httparse::parse_headers(section, &mut headers) else {
            return Err(bad("RFC 9112 §7.1.2", "a malformed trailer section"));
        };
        let may_pass = |name: &[u8]| {
            trailer_may_pass(name) && !list_items(nominated).any(|nominated| nominated.eq_ignore_ascii_case(name))
        };
        for header in headers.iter().filter(|header| may_pass(header.name.as_bytes())) {
            for part in [header.name.as_bytes(), b": ", header.value, b"\r\n"] {
                self.trailers.extend_from_slice(part);
            }
        }
        Ok(())
    }
}

fn extended(run: Range<usize>, at: usize, count: usize) -> Range<usize> {
    if run.is_empty() {
        return at..at + count;
    }
    debug_assert_eq!(run.end, at, "a run of passed bytes has no gap");
    run.start..at + count
}

/// `qdtext` and what may be escaped in a quoted string (RFC 9110 §5.6.4).
fn is_quotable(byte: u8) -> bool {
    byte == b'\t' || (byte >= 0x20 && byte != 0x7f)
}

/// Whether a trailer field may be passed on (RFC 9110 §6.5.1): nothing that changes framing, routing, authentication, the
/// request's or the content's meaning, and nothing hop-by-hop. What we act upon ourselves in heads is never taken from a
/// trailer.
fn trailer_may_pass(name: &[u8]) -> bool {
    const HARMLESS: Kinds = Kinds::of(&[Kind::Other]);
    const FORBIDDEN: &[&str] = &[
        "age",
        "authorization",
        "cache-control",
        "clear-site-data",
        "content-encoding",
        "content-location",
        "content-range",
        "content-security-policy",
        "expires",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "location",
        "origin",
        "pragma",
        "proxy-authenticate",
        "proxy-authentication-info",
        "proxy-authorization",
        "range",
        "retry-after",
        "set-cookie",
        "strict-transport-security",
        "trailer",
        "vary",
        "warning",
        "www-authenticate",
        "x-http-method-override",
    ];
    HARMLESS.has(classify(name))
        && !name.contains(&b'_')
        // Who somebody is, and what happens on its socket, is for us to tell.
        && !["x-auth-", "x-socket-", "sec-websocket-"].iter().any(|own| {
            name.get(..own.len()).is_some_and(|start| start.eq_ignore_ascii_case(own.as_bytes()))
        })
        && !FORBIDDEN.iter().any(|forbidden| name.eq_ignore_ascii_case(forbidden.as_bytes()))
}

/// Bytes that [`put_chunk_line`] writes at most.
pub const CHUNK_LINE_ROOM: usize = 18;

/// Writes the size line of a chunk of `len` bytes; the caller puts the data and CRLF behind it. 0 is the last chunk's and
/// only [`put_last_chunk`] writes that.
pub fn put_chunk_line(out: &mut Writer<'_>, len: usize) {
    debug_assert!(len > 0, "a chunk without data would end the body");
    let digits = (len.max(1).ilog2() / 4 + 1) as usize;
    let mut text = [0; 16];
    for (index, place) in text[..digits].iter_mut().rev().enumerate() {
        *place = b"0123456789abcdef"[len >> (4 * index) & 15];
    }
    out.put(&text[..digits]);
    out.put(b"\r\n");
}

/// Ends a body: the last chunk, `trailers` as [`Chunked::trailers`] gives them, and the empty line. Writes 5 bytes more
/// than the trailers have.
pub fn put_last_chunk(out: &mut Writer<'_>, trailers: &[u8]) {
    out.put(b"0\r\n");
    out.put(trailers);
    out.put(b"\r\n");
}

/// The end of a chunked body with these trailers.
#[inline]
pub(crate) fn last_chunk(scratch: &mut Scratch, trailers: &[u8]) -> Piece {
    if trailers.is_empty() {
        return Piece::Static(b"0\r\n\r\n");
    }
    scratch.write(trailers.len() + 5, |out| put_last_chunk(out, trailers)).into()
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Outcome {
        bytes: Vec<u8>,
        trailers: Vec<u8>,
        consumed: usize,
        done: bool,
    }

    type Step = fn(&mut Chunked, &[u8]) -> Result<(usize, Range<usize>, bool), Refusal>;
    const DECODE: Step =
        |chunked, input| chunked.decode(input).map(|progress| (progress.consumed, progress.data, progress.done));
    const RELAY: Step = |chunked, input| chunked.relay(input).map(|relay| (relay.consumed, relay.pass, relay.done));

    /// Runs over `bytes`, cut where `cuts` says, cyclically.
    fn run(bytes: &[u8], cuts: &[usize], step: Step) -> Result<Outcome, Refusal> {
        let mut chunked = Chunked::new();
        let mut outcome = Outcome { bytes: Vec::new(), trailers: Vec::new(), consumed: 0, done: false };
        let mut cuts = cuts.iter().cycle();
        let mut rest = bytes;
        while !rest.is_empty() && !outcome.done {
            let (mut piece, behind) = rest.split_at((*cuts.next().unwrap_or(&usize::MAX)).clamp(1, rest.len()));
            rest = behind;
            while !piece.is_empty() && !outcome.done {
                let (consumed, range, done) = step(&mut chunked, piece)?;
                assert!(consumed > 0, "no progress in {piece:?}");
                outcome.bytes.extend_from_slice(&piece[range]);
                outcome.consumed += consumed;
                outcome.done = done;
                piece = &piece[consumed..];
            }
        }
        outcome.trailers = chunked.trailers().to_vec();
        Ok(outcome)
    }

    fn encode(chunks: &[Vec<u8>], trailers: &[u8]) -> Vec<u8> {
        let mut room = vec![MaybeUninit::uninit(); 1 << 16];
        let mut out = Writer::new(&mut room);
        for chunk in chunks {
            put_chunk_line(&mut out, chunk.len());
            out.put(chunk);
            out.put(b"\r\n");
        }
        put_last_chunk(&mut out, trailers);
        out.written().to_vec()
    }

    /// Well-formed bodies with everything that the grammar allows.
    fn body() -> impl Strategy<Value = (Vec<u8>, Vec<u8>)> {
        let chunk = (0usize..4, any::<bool>(), prop::collection::vec(any::<u8>(), 1..40), extension());
        (prop::collection::vec(chunk, 0..6), 1usize..5, extension(), any::<bool>()).prop_map(
            |(chunks, zeros, last_extension, trailer)| {
                let (mut wire, mut data) = (Vec::new(), Vec::new());
                for (zeros, upper, bytes, extension) in chunks {
                    let size = if upper { format!("{:X}", bytes.len()) } else { format!("{:x}", bytes.len()) };
                    wire.extend_from_slice(format!("{}{size}{extension}\r\n", "0".repeat(zeros)).as_bytes());
                    wire.extend_from_slice(&bytes);
                    wire.extend_from_slice(b"\r\n");
                    data.extend_from_slice(&bytes);
                }
                let trailers = if trailer { "X-Sum: 1\r\nHost: evil\r\n" } else { "" };
                wire.extend_from_slice(format!("{}{last_extension}\r\n{trailers}\r\n", "0".repeat(zeros)).as_bytes());
                (wire, data)
            },
        )
    }

    fn extension() -> impl Strategy<Value = &'static str> {
        prop::sample::select(vec!["", "", ";a", ";a=b", "; a = b;c", ";a=\"x y\\\"z;\"", ";a=\"\" ;b"])
    }

    fn cuts() -> impl Strategy<Value = Vec<usize>> {
        prop::collection::vec(1usize..24, 1..5)
    }

    proptest! {
        #[test]
        fn any_split_decodes_to_the_same((wire, data) in body(), cuts in cuts()) {
            let decoded = run(&wire, &cuts, DECODE).unwrap();
            prop_assert_eq!((&decoded.bytes, decoded.consumed, decoded.done), (&data, wire.len(), true));
            prop_assert_eq!(decoded, run(&wire, &[], DECODE).unwrap());
        }

        #[test]
        fn any_split_of_any_bytes_meets_the_same_end(wire in "[0-9a;=\" \r\n]{0,40}", cuts in cuts()) {
            prop_assert_eq!(run(wire.as_bytes(), &cuts, DECODE), run(wire.as_bytes(), &[], DECODE));
            prop_assert_eq!(run(wire.as_bytes(), &cuts, RELAY), run(wire.as_bytes(), &[], RELAY));
        }

        #[test]
        fn what_is_encoded_decodes_to_itself(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..600), 0..8),
        ) {
            let decoded = run(&encode(&chunks, b"X-Sum: 1\r\n"), &[], DECODE).unwrap();
            prop_assert_eq!((decoded.bytes, decoded.done), (chunks.concat(), true));
            prop_assert_eq!(decoded.trailers, b"X-Sum: 1\r\n");
        }

        #[test]
        fn what_is_relayed_decodes_to_the_same((wire, data) in body(), cuts in cuts()) {
            let mut relayed = run(&wire, &cuts, RELAY).unwrap();
            prop_assert_eq!((relayed.consumed, relayed.done), (wire.len(), true));
            let open = run(&relayed.bytes, &[], DECODE).unwrap();
            prop_assert_eq!((&open.bytes, open.done), (&data, false));
            relayed.bytes.extend_from_slice(&encode(&[], &relayed.trailers));
            let again = run(&relayed.bytes, &[], DECODE).unwrap();
            prop_assert_eq!((again.bytes, again.trailers, again.done), (data, relayed.trailers, true));
        }

        #[test]
        fn no_part_of_a_body_is_relayed_with_its_end((wire, _) in body(), cuts in cuts()) {
            for end in 0..wire.len() {
                let relayed = run(&wire[..end], &cuts, RELAY).unwrap();
                prop_assert!(!relayed.done);
                prop_assert!(!run(&relayed.bytes, &[], DECODE).unwrap().done, "a clean end after {end} bytes");
            }
        }
    }

    #[test]
    fn malformed_bodies_are_refused() {
        let long = format!("1;{}\r\n", "a".repeat(300));
        let zeros = format!("{}1\r\nx\r\n", "0".repeat(300));
        let trailers = format!("0\r\n{}\r\n", "a: bbbbbbbbbbbbbbbbbbbb\r\n".repeat(400));
        for (wire, section) in [
            ("\r\n", SECTION),
            (";a\r\n", SECTION),
            ("g\r\n", SECTION),
            ("+1\r\n", SECTION),
            ("0x1\r\n", SECTION),
            (" 1\r\n", SECTION),
            ("1 \r\nx", SECTION),
            ("0 \r\n\r\n", SECTION),
            ("1 ;a\r\nx", SECTION),
            ("1_0\r\n", SECTION),
            ("1\nx", SECTION),
            ("0\n\n", SECTION),
            ("1\r\rx", "RFC 9112 §7.1.1"),
            ("8000000000000000\r\n", SECTION),
            ("10000000000000001\r\n", SECTION),
            ("1\r\nxx\r\n", SECTION),
            ("1\r\nx\n", SECTION),
            ("1\r\nx\rx", SECTION),
            ("1;\r\n", "RFC 9112 §7.1.1"),
            ("1;=b\r\n", "RFC 9112 §7.1.1"),
            ("1;a=\r\n", "RFC 9112 §7.1.1"),
            ("1;a b\r\n", "RFC 9112 §7.1.1"),
            ("1;a=\"b\r\n", "RFC 9112 §7.1.1"),
            ("1;a=\"b\"c\r\n", "RFC 9112 §7.1.1"),
            ("1;a\n", "RFC 9112 §7.1.1"),
            ("1;a\0\r\n", "RFC 9112 §7.1.1"),
            (&long, "RFC 9112 §7.1.1"),
            (&zeros, "RFC 9112 §7.1.1"),
            ("0\r\na: b\n\r\n", "RFC 9112 §2.2"),
            ("0\r\na: b\rc\r\n\r\n", "RFC 9112 §2.2"),
            ("0\r\n\n", "RFC 9112 §2.2"),
            ("0\r\na\r\n\r\n", "RFC 9112 §7.1.2"),
            ("0\r\na : b\r\n\r\n", "RFC 9112 §7.1.2"),
            ("0\r\na: b\r\n c\r\n\r\n", "RFC 9112 §7.1.2"),
            (&trailers, "RFC 9112 §7.1.2"),
        ] {
            for step in [DECODE, RELAY] {
                let refusal = run(wire.as_bytes(), &[], step).err();
                assert_eq!(refusal.map(|refusal| (refusal.status, refusal.section)), Some((400, section)), "{wire:?}");
            }
        }
    }

    #[test]
    fn trailers_lose_what_they_may_not_carry() {
        let forbidden = "Content-Length: 1\r\nTRANSFER-ENCODING: chunked\r\nHost: a\r\nAuthorization: b\r\nset-cookie: c\r\n\
             Connection: close\r\nX-Forwarded-For: d\r\nX_Real_IP: e\r\nContent-Type: f\r\nTrailer: g\r\nIf-Match: h\r\n\
             X-Request-Id: i\r\nDate: j\r\nRip-Worker-Busy: 1\r\nRip-No-Log: 1\r\nRip-Mark: m\r\nCookie: k\r\nContent-Encoding: l\r\nX-Auth-User: n\r\n\
             X-Socket-Id: o\r\nSec-WebSocket-Frame: p\r\n";
        let wire = format!("0\r\nX-Sum:1\r\n{forbidden}Server-Timing: a;dur=1\r\n\r\n");
        let decoded = run(wire.as_bytes(), &[3], DECODE).unwrap();
        assert_eq!(decoded.trailers, b"X-Sum: 1\r\nServer-Timing: a;dur=1\r\n");
    }

    #[test]
    fn chunks_that_are_nearly_all_overhead_are_refused() {
        let extension = format!("1;a={}\r\nx\r\n", "e".repeat(200));
        let paid = FREE_OVERHEAD as usize / (extension.len() - 1 - OVERHEAD_PER_BYTE as usize);
        for step in [DECODE, RELAY] {
            for cuts in [&[][..], &[1000], &[7, 1460]] {
                assert!(run(extension.repeat(paid).as_bytes(), cuts, step).is_ok());
                let refusal = run(extension.repeat(paid + 1).as_bytes(), cuts, step).err();
                assert_eq!(refusal, Some(TOO_MUCH_OVERHEAD));
            }
            // The smallest chunks are no attack, however many come; and what large ones pay for is not forgotten.
            assert!(run("1\r\nx\r\n".repeat(1_000_000).as_bytes(), &[16_384], step).is_ok());
            let large = [format!("{:x}\r\n", 4 << 20).as_bytes(), &[b'x'; 4 << 20], b"\r\n"].concat();
            assert!(run(&[large, extension.repeat(2 * paid).into_bytes()].concat(), &[16_384], step).is_ok());
        }
    }

    #[test]
    fn what_is_data_of_the_relayed_bytes_is_told() {
        let wire = "1\r\na\r\n0002;x=y\r\nbc\r\n000\r\nX: y\r\n\r\n";
        for cut in 1..wire.len() {
            let (mut chunked, mut data) = (Chunked::new(), 0);
            for mut piece in wire.as_bytes().chunks(cut) {
                while !piece.is_empty() {
                    let relay = chunked.relay(piece).unwrap();
                    assert!(relay.data <= relay.pass.len());
                    data += relay.data;
                    piece = &piece[relay.consumed..];
                }
            }
            assert_eq!((data, chunked.is_done()), (3, true), "cut {cut}");
        }
    }

    #[test]
    fn fields_of_one_connection_are_none_of_the_trailers() {
        for step in [DECODE, RELAY] {
            for (section, passed) in
                [("", ""), ("X-Hop: 1\r\n", ""), ("A: 1\r\nx-hop: 2\r\nX-Hopper: 3\r\n", "A: 1\r\nX-Hopper: 3\r\n")]
            {
                let mut chunked = Chunked::new();
                chunked.nominate(b",te,X-Hop");
                let wire = format!("1\r\na\r\n0\r\n{section}\r\n");
                let mut rest = wire.as_bytes();
                while !rest.is_empty() {
                    let (consumed, ..) = step(&mut chunked, rest).unwrap();
                    assert!(chunked.trailers().is_empty() || consumed == rest.len());
                    rest = &rest[consumed..];
                }
                assert_eq!((chunked.trailers(), chunked.is_done()), (passed.as_bytes(), true));
            }
        }
    }

    #[test]
    fn many_chunks_of_a_block_are_one_run() {
        let chunks = encode(&[vec![b'a'; 1000], vec![b'b'; 1000], vec![b'c'; 1000]], b"");
        let relay = Chunked::new().relay(&chunks).unwrap();
        assert_eq!(relay, Relay { consumed: chunks.len(), pass: 0..chunks.len() - 5, data: 3000, done: true });
    }

    #[test]
    fn chunk_lines_are_hexadecimal() {
        for len in [1, 15, 16, 255, 256, 0xabcdef, usize::MAX] {
            let mut room = [MaybeUninit::uninit(); CHUNK_LINE_ROOM];
            let mut out = Writer::new(&mut room);
            put_chunk_line(&mut out, len);
            assert_eq!(out.written(), format!("{len:x}\r\n").as_bytes());
        }
    }
}
