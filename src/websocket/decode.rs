//! A client's frames, in pieces of any size, to messages (RFC 6455 §5).
//!
//! All that has come is taken at once, so that the block it came in can be used again. What is not whole is kept in a box that is gone
//! between two messages.

use std::mem;

use super::deflate::{self, Inflater};
use super::{MOST_OF_CONTROL, Opcode, grow};

/// How much a client may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a message, inflated: above it 1009.
    pub message: usize,
}

/// What a client has sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A message, from one frame or several.
    Message {
        /// Whether it is text; it is UTF-8 then.
        text: bool,
        /// Its bytes, inflated.
        data: Vec<u8>,
    },
    /// A ping: it is answered by a pong with the same payload.
    Ping(Vec<u8>),
    /// A pong.
    Pong(Vec<u8>),
    /// A close, with its code and reason where it has them. It is answered by a close, and nothing comes behind it.
    Close(Option<(u16, String)>),
}

/// Why the connection fails. Nothing that comes behind it is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    /// The framing is not that of RFC 6455.
    Protocol(&'static str),
    /// A text or a close's reason is not UTF-8.
    NotUtf8,
    /// A compressed message cannot be inflated.
    NotDeflate,
    /// A message is above its limit.
    TooBig,
}

impl Violation {
    /// The code of the close frame that is sent (RFC 6455 §7.4.1). Data that cannot be inflated are data that are not what the frame
    /// says that they are, which is 1007; the framing around them was right.
    pub const fn code(self) -> u16 {
        match self {
            Violation::Protocol(_) => 1002,
            Violation::NotUtf8 | Violation::NotDeflate => 1007,
            Violation::TooBig => 1009,
        }
    }

    /// What is wrong, in a few words.
    pub const fn reason(self) -> &'static str {
        match self {
            Violation::Protocol(reason) => reason,
            Violation::NotUtf8 => "a text that is not UTF-8",
            Violation::NotDeflate => "a compressed message that cannot be inflated",
            Violation::TooBig => "a message above the limit",
        }
    }
}

/// The longest header of a client's frame: two bytes, a length of eight, and the mask.
const MOST_OF_HEADER: usize = 14;

/// What a socket knows of its client's frames.
#[derive(Debug)]
pub struct Decoder {
    /// What has come of a frame's header.
    header: [u8; MOST_OF_HEADER],
    filled: u8,
    deflate: bool,
    /// There was a close or a violation.
    ended: bool,
    partial: Option<Box<Partial>>,
}

/// What is not whole.
#[derive(Debug, Default)]
struct Partial {
    /// The frame of which more payload is to come.
    frame: Option<Frame>,
    /// The message of which more is to come.
    message: Option<Message>,
    /// What has come of a control frame's payload.
    control: Vec<u8>,
}

/// A frame whose header is whole.
#[derive(Clone, Copy, Debug)]
struct Frame {
    opcode: Opcode,
    /// It ends its message.
    fin: bool,
    compressed: bool,
    /// The mask of the next byte and of those behind it.
    mask: [u8; 4],
    /// Bytes of its payload that are to come.
    left: usize,
}

#[derive(Debug)]
struct Message {
    text: bool,
    compressed: bool,
    /// As they came: not inflated.
    data: Vec<u8>,
    /// Bytes that are known to be whole characters.
    valid: usize,
}

impl Decoder {
    /// At the begin of a connection. `deflate`: permessage-deflate was agreed upon.
    pub const fn new(deflate: bool) -> Decoder {
        Decoder { header: [0; MOST_OF_HEADER], filled: 0, deflate, ended: false, partial: None }
    }

    /// Takes bytes from the front of `input`, which it unmasks in place. Returns how many, and what became whole with the last of
    /// them. To be called again with the rest, until nothing is left and nothing became whole.
    ///
    /// # Errors
    /// The connection has failed: a close is to be sent. What comes later is taken and dropped, as it is behind a close.
    pub fn take(
        &mut self,
        input: &mut [u8],
        limits: &Limits,
        inflater: &mut Inflater,
    ) -> Result<(usize, Option<Event>), Violation> {
        if self.ended {
            return Ok((input.len(), None));
        }
        let outcome = self.step(input, limits, inflater);
        if let Err(_) | Ok((_, Some(Event::Close(_)))) = outcome {
            self.ended = true;
            self.partial = None;
        }
        outcome
    }

    /// Bytes on the heap for what is not whole.
    pub fn held(&self) -> usize {
        self.partial.as_deref().map_or(0, |partial| {
            let message = partial.message.as_ref().map_or(0, |message| message.data.capacity());
            size_of::<Partial>() + message + partial.control.capacity()
        })
    }

    fn step(
        &mut self,
        input: &mut [u8],
        limits: &Limits,
        inflater: &mut Inflater,
    ) -> Result<(usize, Option<Event>), Violation> {
        let mut at = 0;
        let begun = self.partial.as_mut().and_then(|partial| partial.frame.take());
        let frame = if begun.is_some() { begun } else { self.header(input, &mut at, limits)? };
        let Some(mut frame) = frame else { return Ok((at, None)) };
        let end = at + frame.left.min(input.len() - at);
        let bytes = &mut input[at..end];
        unmask(bytes, &mut frame.mask);
        frame.left -= bytes.len();
        let event = match frame.opcode.is_control() {
            true => self.control(&frame, bytes)?,
            false => self.data(&frame, bytes, limits, inflater)?,
        };
        if frame.left > 0 {
            self.partial.get_or_insert_default().frame = Some(frame);
        } else if self.partial.as_ref().is_some_and(|partial| partial.message.is_none()) {
            self.partial = None;
        }
        Ok((end, event))
    }

    /// Takes what there is of a frame's header; `None` until it is whole.
    fn header(&mut self, input: &[u8], at: &mut usize, limits: &Limits) -> Result<Option<Frame>, Violation> {
        if !self.fill(2, input, at) {
            return Ok(None);
        }
        let [first, second, ..] = self.header;
        let message = self.partial.as_ref().and_then(|partial| partial.message.as_ref());
        let (opcode, compressed) =
            judge(first, second, self.deflate, message.is_some()).map_err(Violation::Protocol)?;
        let short = second & 0x7f;
        let (extended, least) = match short {
            126 => (2, 126),
            127 => (8, 0x1_0000),
            _ => (0, 0),
        };
        if opcode.is_control() && usize::from(short) > MOST_OF_CONTROL {
            return Err(Violation::Protocol("a control frame of more than 125 bytes"));
        }
        let (had, is_compressed) = message.map_or((0, compressed), |message| (message.data.len(), message.compressed));
        if !self.fill(2 + extended + 4, input, at) {
            return Ok(None);
        }
        let length = match extended {
            0 => u64::from(short),
            _ => self.header[2..2 + extended].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        };
        if length < least || length >> 63 != 0 {
            return Err(Violation::Protocol("a length that is not written in the shortest way"));
        }
        let most = if is_compressed { deflate::bound(limits.message) } else { limits.message };
        let left = usize::try_from(length).map_err(|_| Violation::TooBig)?;
        if !opcode.is_control() && left > most.saturating_sub(had) {
            return Err(Violation::TooBig);
        }
        let mut mask = [0; 4];
        mask.copy_from_slice(&self.header[2 + extended..2 + extended + 4]);
        self.filled = 0;
        Ok(Some(Frame { opcode, fin: first & 0x80 != 0, compressed, mask, left }))
    }

    /// Takes more of the header, up to `len` bytes of it. Returns whether they are there.
    fn fill(&mut self, len: usize, input: &[u8], at: &mut usize) -> bool {
        let filled = usize::from(self.filled);
        let more = len.saturating_sub(filled).min(input.len() - *at);
        self.header[filled..filled + more].copy_from_slice(&input[*at..*at + more]);
        self.filled += more as u8;
        *at += more;
        filled + more >= len
    }

    /// Takes more of a control frame's payload.
    fn control(&mut self, frame: &Frame, bytes: &[u8]) -> Result<Option<Event>, Violation> {
        if frame.left > 0 {
            self.partial.get_or_insert_default().control.extend_from_slice(bytes);
            return Ok(None);
        }
        let mut payload = self.partial.as_mut().map_or_else(Vec::new, |partial| mem::take(&mut partial.control));
        payload.extend_from_slice(bytes);
        Ok(Some(match frame.opcode {
            Opcode::Ping => Event::Ping(payload),
            Opcode::Pong => Event::Pong(payload),
            _ => Event::Close(close(&payload)?),
        }))
    }

    /// Takes more of a message's frame.
    fn data(
        &mut self,
        frame: &Frame,
        bytes: &[u8],
        limits: &Limits,
        inflater: &mut Inflater,
    ) -> Result<Option<Event>, Violation> {
        let begun = self.partial.as_mut().and_then(|partial| partial.message.take());
        let mut message = begun.unwrap_or_else(|| Message {
            text: frame.opcode == Opcode::Text,
            compressed: frame.compressed,
            data: Vec::new(),
            valid: 0,
        });
        message.extend(bytes, limits)?;
        if frame.fin && frame.left == 0 {
            return message.end(limits, inflater).map(Some);
        }
        self.partial.get_or_insert_default().message = Some(message);
        Ok(None)
    }
}

/// What a frame is by its first two bytes, and whether it begins a compressed message. `inside`: a message was begun and has not ended.
fn judge(first: u8, second: u8, deflate: bool, inside: bool) -> Result<(Opcode, bool), &'static str> {
    let (fin, compressed) = (first & 0x80 != 0, first & 0x40 != 0);
    let opcode = Opcode::of(first & 0x0f).ok_or("a reserved opcode")?;
    let begins = matches!(opcode, Opcode::Text | Opcode::Binary);
    if first & 0x30 != 0 || (compressed && !(deflate && begins)) {
        return Err("a reserved bit");
    }
    if opcode.is_control() && !fin {
        return Err("a control frame in fragments");
    }
    if begins && inside {
        return Err("a new message inside of another");
    }
    if opcode == Opcode::Continuation && !inside {
        return Err("a continuation of nothing");
    }
    if second & 0x80 == 0 {
        return Err("a frame without a mask");
    }
    Ok((opcode, compressed))
}

/// What a close frame says (RFC 6455 §5.5.1, §7.4).
fn close(payload: &[u8]) -> Result<Option<(u16, String)>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return if payload.is_empty() { Ok(None) } else { Err(Violation::Protocol("half of a close code")) };
    };
    let code = u16::from_be_bytes(*code);
    // Those of RFC 6455, those that were registered later, and those for libraries and applications.
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::Protocol("a close code that may not be sent"));
    }
    let reason = String::from_utf8(reason.to_vec()).map_err(|_| Violation::NotUtf8)?;
    Ok(Some((code, reason)))
}

impl Message {
    fn extend(&mut self, bytes: &[u8], limits: &Limits) -> Result<(), Violation> {
        grow(&mut self.data, bytes.len(), limits.message);
        self.data.extend_from_slice(bytes);
        if !self.text || self.compressed {
            return Ok(());
        }
        // A character that is not whole yet is looked at again, the others are not.
        match std::str::from_utf8(&self.data[self.valid..]) {
            Ok(_) => self.valid = self.data.len(),
            Err(error) if error.error_len().is_none() => self.valid += error.valid_up_to(),
            Err(_) => return Err(Violation::NotUtf8),
        }
        Ok(())
    }

    fn end(self, limits: &Limits, inflater: &mut Inflater) -> Result<Event, Violation> {
        let Message { text, compressed, mut data, valid } = self;
        if compressed {
            data = inflater.message(&data, limits.message)?;
        }
        let is_text = || if compressed { std::str::from_utf8(&data).is_ok() } else { valid == data.len() };
        if text && !is_text() {
            return Err(Violation::NotUtf8);
        }
        Ok(Event::Message { text, data })
    }
}

/// Takes the mask off (RFC 6455 §5.3), eight bytes at a time, and turns it to where the next byte begins.
fn unmask(bytes: &mut [u8], mask: &mut [u8; 4]) {
    let [a, b, c, d] = *mask;
    let twice = [a, b, c, d, a, b, c, d];
    let (words, rest) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ u64::from_ne_bytes(twice)).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(twice) {
        *byte ^= mask;
    }
    mask.rotate_left(rest.len() % 4);
}
