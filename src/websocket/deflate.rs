//! permessage-deflate (RFC 7692): which offer is taken, and the two directions.
//!
//! Both directions begin each message anew (`server_no_context_takeover`, `client_no_context_takeover`), whatever was offered: so no
//! socket holds a window, and a message that is compressed once serves all who agreed on the same window.

use flate2::{Compress, CompressError, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::decode::Violation;
use super::grow;
use crate::http::is_token;

/// What was agreed upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deflate {
    /// The logarithm of the window of what we send: 9 to 15.
    pub server_max_window_bits: u8,
    /// Whether the client has asked for it: only then it is told.
    asked: bool,
}

impl Default for Deflate {
    /// With the largest window.
    fn default() -> Deflate {
        Deflate { server_max_window_bits: 15, asked: false }
    }
}

const NAME: &[u8] = b"permessage-deflate";
const MALFORMED: &str = "a malformed Sec-WebSocket-Extensions";

/// The first offer that can be taken in the values of a request's Sec-WebSocket-Extensions lines. One with a parameter that is
/// unknown, has a value that it may not have, or comes twice is declined (RFC 7692 §5.1, §7), as is one that wants a window of 256 bytes, which
/// zlib cannot do.
///
/// # Errors
/// A value that is not in the form of RFC 6455 §9.1: what is wrong, in a few words.
pub fn negotiate<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<Option<Deflate>, &'static str> {
    let mut taken = None;
    for mut line in lines {
        loop {
            // Elements of a list may be empty (RFC 9110 §5.6.1.2).
            while eat(&mut line, b',') {}
            if line.is_empty() {
                break;
            }
            let mut offer = (token(&mut line)? == NAME).then(Offer::default);
            while eat(&mut line, b';') {
                let name = token(&mut line)?;
                let value = if eat(&mut line, b'=') { Some(value(&mut line)?) } else { None };
                offer = offer.and_then(|offer| offer.with(name, value.as_deref()));
            }
            if !line.is_empty() && !line.starts_with(b",") {
                return Err(MALFORMED);
            }
            taken = taken.or(offer.and_then(Offer::taken));
        }
    }
    Ok(taken)
}

/// The parameters of one offer.
#[derive(Default)]
struct Offer {
    server_no_context_takeover: bool,
    client_no_context_takeover: bool,
    server_max_window_bits: Option<u8>,
    client_max_window_bits: bool,
}

impl Offer {
    /// The offer with one more parameter; `None`: it has to be declined.
    fn with(mut self, name: &[u8], value: Option<&[u8]>) -> Option<Offer> {
        let again = match (name, value) {
            (b"server_no_context_takeover", None) => std::mem::replace(&mut self.server_no_context_takeover, true),
            (b"client_no_context_takeover", None) => std::mem::replace(&mut self.client_no_context_takeover, true),
            (b"server_max_window_bits", Some(bits)) => {
                self.server_max_window_bits.replace(window_bits(bits)?).is_some()
            }
            // A hint, and we make no use of it: the window of what we get is always the largest.
            (b"client_max_window_bits", bits) => {
                bits.map_or(Some(0), window_bits)?;
                std::mem::replace(&mut self.client_max_window_bits, true)
            }
            _ => return None,
        };
        (!again).then_some(self)
    }

    fn taken(self) -> Option<Deflate> {
        match self.server_max_window_bits {
            Some(8) => None,
            Some(server_max_window_bits) => Some(Deflate { server_max_window_bits, asked: true }),
            None => Some(Deflate::default()),
        }
    }
}

/// 8 to 15, without zeroes in front (RFC 7692 §7.1.2).
fn window_bits(value: &[u8]) -> Option<u8> {
    match value {
        [digit @ b'8'..=b'9'] => Some(digit - b'0'),
        [b'1', digit @ b'0'..=b'5'] => Some(10 + digit - b'0'),
        _ => None,
    }
}

/// Skips that byte and the whitespace around it; whether it was there.
fn eat(line: &mut &[u8], byte: u8) -> bool {
    *line = line.trim_ascii_start();
    let found = line.first() == Some(&byte);
    *line = line[usize::from(found)..].trim_ascii_start();
    found
}

fn token<'a>(line: &mut &'a [u8]) -> Result<&'a [u8], &'static str> {
    let end = line.iter().position(|byte| !is_token(*byte)).unwrap_or(line.len());
    let (token, rest) = line.split_at(end);
    *line = rest;
    if token.is_empty() { Err(MALFORMED) } else { Ok(token) }
}

/// A parameter's value: a token, which may be quoted (RFC 6455 §9.1).
fn value(line: &mut &[u8]) -> Result<Vec<u8>, &'static str> {
    let Some(quoted) = line.strip_prefix(b"\"") else { return token(line).map(<[u8]>::to_vec) };
    let (mut value, mut rest) = (Vec::new(), quoted);
    loop {
        rest = match rest {
            [b'"', rest @ ..] => {
                *line = rest;
                return if value.is_empty() { Err(MALFORMED) } else { Ok(value) };
            }
            [b'\\', byte, rest @ ..] | [byte, rest @ ..] if is_token(*byte) => {
                value.push(*byte);
                rest
            }
            _ => return Err(MALFORMED),
        };
    }
}

impl Deflate {
    /// Puts the extension behind what is in `out`, as the answer says it.
    pub fn write(self, out: &mut Vec<u8>) {
        out.extend_from_slice(NAME);
        out.extend_from_slice(b"; server_no_context_takeover; client_no_context_takeover");
        if self.asked {
            out.extend_from_slice(b"; server_max_window_bits=");
            out.extend_from_slice(itoa::Buffer::new().format(self.server_max_window_bits).as_bytes());
        }
    }
}

/// What a sender takes off the end of a message, and the receiver puts there again (RFC 7692 §7.2.1): an empty block without its first byte.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// The tail, and a last block that is empty: only behind blocks that are whole it is the end.
const END: [u8; 9] = [0, 0, 0xff, 0xff, 1, 0, 0, 0xff, 0xff];
/// The first level with a code of its own for each message: a third less than the one before it, for twice its time, and a message is
/// compressed once for all who get it.
const LEVEL: Compression = Compression::new(2);
/// Room that there is at least for what comes out.
const ROOM: usize = 256;

/// How long a message may be before it is inflated: no compressor makes more of what it cannot compress (zlib's `deflateBound`, in its
/// worst case).
pub(super) const fn bound(message: usize) -> usize {
    message.saturating_add(message / 8 + message / 64 + 64)
}

/// Inflates what clients send, one message after the other. A loop has one.
#[derive(Debug)]
pub struct Inflater(Decompress);

impl Default for Inflater {
    fn default() -> Inflater {
        Inflater(Decompress::new(false))
    }
}

impl Inflater {
    /// Inflates a message.
    ///
    /// # Errors
    /// [`Violation::NotDeflate`], and [`Violation::TooBig`] as soon as more than `most` bytes have come out.
    pub fn message(&mut self, payload: &[u8], most: usize) -> Result<Vec<u8>, Violation> {
        // Whoever flushes once more at the end of a message in fragments has nothing to take the tail from.
        let has_tail = payload.is_empty() || payload.ends_with(&TAIL);
        let end = if has_tail { &END[TAIL.len()..] } else { &END };
        let (mut out, mut is_end) = (Vec::new(), false);
        grow(&mut out, most.saturating_add(1).min(payload.len().saturating_mul(3)), most);
        self.0.reset(false);
        for mut piece in [payload, end] {
            while !piece.is_empty() {
                // One byte more than may come shows that too much comes.
                let room = most.saturating_add(1) - out.len();
                if out.len() == out.capacity() {
                    grow(&mut out, room.min(ROOM), most);
                }
                let (read, written) = (self.0.total_in(), out.len());
                let inflated = self.0.decompress_vec(piece, &mut out, FlushDecompress::None);
                let status = inflated.map_err(|_| Violation::NotDeflate)?;
                let read = (self.0.total_in() - read) as usize;
                if out.len() > most {
                    return Err(Violation::TooBig);
                }
                is_end = status == Status::StreamEnd;
                if is_end {
                    // The last block of its sender's stream may be followed by another stream (RFC 7692 §7.2.3.4).
                    self.0.reset(false);
                } else if read == 0 && out.len() == written {
                    return Err(Violation::NotDeflate);
                }
                piece = &piece[read..];
            }
        }
        if is_end { Ok(out) } else { Err(Violation::NotDeflate) }
    }
}

/// Compresses what we send, one message after the other. A loop has one.
#[derive(Debug, Default)]
pub struct Deflater {
    /// For each size of the window from 9 on, made when it is needed first.
    streams: [Option<Compress>; 7],
}

impl Deflater {
    /// Compresses a message; what comes out is put behind what is in `out`, and is the payload of a frame that says so. It may be
    /// longer than the message.
    pub fn message(&mut self, payload: &[u8], deflate: Deflate, out: &mut Vec<u8>) {
        let bits = deflate.server_max_window_bits.clamp(9, 15);
        let stream = self.streams[usize::from(bits - 9)]
            .get_or_insert_with(|| Compress::new_with_window_bits(LEVEL, false, bits));
        let start = out.len();
        if compress(stream, payload, out).is_err() || !out[start..].ends_with(&TAIL) {
            out.truncate(start);
            store(payload, out);
        }
        out.truncate(out.len() - TAIL.len());
    }
}

fn compress(stream: &mut Compress, mut payload: &[u8], out: &mut Vec<u8>) -> Result<(), CompressError> {
    stream.reset();
    loop {
        out.reserve(ROOM + payload.len() / 2);
        let before = stream.total_in();
        stream.compress_vec(payload, out, FlushCompress::Sync)?;
        payload = &payload[(stream.total_in() - before) as usize..];
        // What did not fit comes with the next call.
        if payload.is_empty() && out.len() < out.capacity() {
            return Ok(());
        }
    }
}

/// The message in blocks that are not compressed (RFC 1951 §3.2.4), and an empty one. It needs nothing that could fail.
pub(super) fn store(payload: &[u8], out: &mut Vec<u8>) {
    for block in payload.chunks(usize::from(u16::MAX)).chain([&b""[..]]) {
        let length = block.len() as u16;
        out.push(0);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
}
