//! What replicas say to each other: frames of bytes over one stream. Bytes in, frames out, and the other way; nothing else.
//!
//! A frame is its length in four bytes, its kind in one, and what that kind has; all numbers little-endian, names with two bytes of length in
//! front, and what is published takes the rest.

use crate::config::hub::LARGEST_MESSAGE;
use crate::hub::{Key, Kind, Refused};

/// Bytes of a frame at most: the longest message that any replica may take, whatever this one takes, with two names and a few numbers.
pub const MOST: usize = LARGEST_MESSAGE as usize + 1024;

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Who joins: by which number it is known, what it has had of which epoch and under which leader, and its name for people.
    Hello {
        /// Drawn when it started.
        me: u64,
        /// The epoch of what it has.
        epoch: u64,
        /// The leader's term under which it got that.
        term: u64,
        /// For people.
        name: &'a str,
    },
    /// How far it has come in a topic.
    Have {
        /// Which.
        topic: &'a str,
        /// The last number.
        last: u64,
    },
    /// That was all of them.
    Haves,
    /// The leader lacks what is behind a number.
    Want {
        /// Of which topic.
        topic: &'a str,
        /// Behind which number.
        after: u64,
    },
    /// That was all of them: what was wanted comes next.
    Wants,
    /// That was all that was wanted.
    Given,
    /// The leader takes somebody in: what follows is of that epoch.
    Welcome {
        /// In which it numbers.
        epoch: u64,
        /// How manieth leader it is.
        term: u64,
        /// The highest number of topics that were forgotten.
        floor: u64,
    },
    /// An id that is known.
    Known {
        /// By what.
        key: Key,
        /// Where its message stands.
        epoch: u64,
        /// The same.
        offset: u64,
        /// How long ago that was, in microseconds.
        age: u64,
    },
    /// A topic has come as far as that.
    Stands {
        /// Which.
        topic: &'a str,
        /// The last number.
        last: u64,
    },
    /// All there is was sent: from here on it comes as it is published.
    Synced,
    /// Somebody wants something published.
    Publish {
        /// By what the answer is known.
        request: u64,
        /// What.
        said: Said<'a>,
    },
    /// Something was published.
    Message {
        /// By whom, and by what it is known there; 0: nobody knows.
        origin: u64,
        /// The same.
        request: u64,
        /// See [`crate::hub::Next`].
        first: bool,
        /// Its number.
        offset: u64,
        /// How long ago, in microseconds.
        age: u64,
        /// What.
        said: Said<'a>,
    },
    /// What was wanted published has that number.
    Numbered {
        /// Which.
        request: u64,
        /// The position.
        epoch: u64,
        /// The same.
        offset: u64,
        /// See [`crate::hub::Next`].
        first: bool,
        /// Another had its id, and nothing was published.
        duplicate: bool,
    },
    /// What was wanted published is not.
    Refused {
        /// Which.
        request: u64,
        /// Why.
        why: Refused,
    },
}

/// A message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said<'a> {
    /// Its topic.
    pub topic: &'a str,
    /// How its bytes are meant.
    pub kind: Kind,
    /// Its id; empty: it has none.
    pub id: &'a str,
    /// What is published.
    pub payload: &'a [u8],
}

/// What can be told of a refusal.
const REFUSALS: [Refused; 6] =
    [Refused::TooBig, Refused::NoSuchTopic, Refused::TooManyTopics, Refused::Full, Refused::Moved, Refused::Away];
const KINDS: [Kind; 3] = [Kind::Text, Kind::Binary, Kind::Json];

/// Puts a frame behind what is there.
pub fn put(out: &mut Vec<u8>, frame: &Frame<'_>) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    match frame {
        Frame::Hello { me, epoch, term, name } => {
            out.push(1);
            numbers(out, &[*me, *epoch, *term]);
            text(out, name);
        }
        Frame::Have { topic, last } => named(out, 2, topic, *last),
        Frame::Haves => out.push(3),
        Frame::Want { topic, after } => named(out, 4, topic, *after),
        Frame::Wants => out.push(5),
        Frame::Given => out.push(6),
        Frame::Welcome { epoch, term, floor } => {
            out.push(7);
            numbers(out, &[*epoch, *term, *floor]);
        }
        Frame::Known { key, epoch, offset, age } => {
            out.push(8);
            out.extend_from_slice(key);
            numbers(out, &[*epoch, *offset, *age]);
        }
        Frame::Stands { topic, last } => named(out, 9, topic, *last),
        Frame::Synced => out.push(10),
        Frame::Publish { request, said } => {
            out.push(11);
            numbers(out, &[*request]);
            message(out, said);
        }
        Frame::Message { origin, request, first, offset, age, said } => {
            out.push(12);
            numbers(out, &[*origin, *request, *offset, *age]);
            out.push(u8::from(*first));
            message(out, said);
        }
        Frame::Numbered { request, epoch, offset, first, duplicate } => {
            out.push(13);
            numbers(out, &[*request, *epoch, *offset]);
            out.push(u8::from(*first) | u8::from(*duplicate) << 1);
        }
        Frame::Refused { request, why } => {
            out.push(14);
            numbers(out, &[*request]);
            out.push(REFUSALS.iter().position(|known| known == why).unwrap_or(REFUSALS.len() - 1) as u8);
        }
    }
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

fn text(out: &mut Vec<u8>, text: &str) {
    // Names and ids have been looked at: they have 255 bytes at most.
    let text = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text);
}

fn named(out: &mut Vec<u8>, kind: u8, topic: &str, number: u64) {
    out.push(kind);
    numbers(out, &[number]);
    text(out, topic);
}

fn message(out: &mut Vec<u8>, said: &Said<'_>) {
    out.push(KINDS.iter().position(|kind| *kind == said.kind).unwrap_or_default() as u8);
    text(out, said.topic);
    text(out, said.id);
    out.extend_from_slice(said.payload);
}

/// A message alone, as bytes.
pub fn said(said: &Said<'_>) -> Vec<u8> {
    let mut out = Vec::with_capacity(said.payload.len() + said.topic.len() + said.id.len() + 8);
    message(&mut out, said);
    out
}

/// The same, read.
pub fn read_said(bytes: &[u8]) -> Option<Said<'_>> {
    Reader(bytes).said()
}

/// Why a stream is not read any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// The first frame of what has come, with how many bytes it takes; `None`: it is not whole. `most`: bytes of one.
///
/// # Errors
/// When no replica says that.
pub fn take(input: &[u8], most: usize) -> Result<Option<(Frame<'_>, usize)>, Broken> {
    let Some(length) = input.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length == 0 || length > most {
        return Err(Broken);
    }
    let Some(body) = input.get(4..4 + length) else { return Ok(None) };
    let mut reader = Reader(&body[1..]);
    let frame = reader.frame(body[0]).ok_or(Broken)?;
    if reader.0.is_empty() { Ok(Some((frame, 4 + length))) } else { Err(Broken) }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn frame(&mut self, kind: u8) -> Option<Frame<'a>> {
        Some(match kind {
            1 => Frame::Hello { me: self.number()?, epoch: self.number()?, term: self.number()?, name: self.text()? },
            2 => {
                let last = self.number()?;
                Frame::Have { topic: self.text()?, last }
            }
            3 => Frame::Haves,
            4 => {
                let after = self.number()?;
                Frame::Want { topic: self.text()?, after }
            }
            5 => Frame::Wants,
            6 => Frame::Given,
            7 => Frame::Welcome { epoch: self.number()?, term: self.number()?, floor: self.number()? },
            8 => Frame::Known {
                key: *self.bytes(16)?.first_chunk()?,
                epoch: self.number()?,
                offset: self.number()?,
                age: self.number()?,
            },
            9 => {
                let last = self.number()?;
                Frame::Stands { topic: self.text()?, last }
            }
            10 => Frame::Synced,
            11 => Frame::Publish { request: self.number()?, said: self.said()? },
            12 => {
                let (origin, request) = (self.number()?, self.number()?);
                let (offset, age) = (self.number()?, self.number()?);
                let first = self.byte()? != 0;
                Frame::Message { origin, request, first, offset, age, said: self.said()? }
            }
            13 => {
                let (request, epoch, offset) = (self.number()?, self.number()?, self.number()?);
                let flags = self.byte()?;
                Frame::Numbered { request, epoch, offset, first: flags & 1 != 0, duplicate: flags & 2 != 0 }
            }
            14 => Frame::Refused { request: self.number()?, why: *REFUSALS.get(usize::from(self.byte()?))? },
            _ => return None,
        })
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.bytes(1)?[0])
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.bytes(8)?.first_chunk()?))
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = u16::from_le_bytes(*self.bytes(2)?.first_chunk()?);
        std::str::from_utf8(self.bytes(usize::from(length))?).ok()
    }

    fn said(&mut self) -> Option<Said<'a>> {
        let kind = *KINDS.get(usize::from(self.byte()?))?;
        let (topic, id) = (self.text()?, self.text()?);
        let payload = std::mem::take(&mut self.0);
        crate::hub::payload(kind, payload)?;
        Some(Said { topic, kind, id, payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Frame<'static>> {
        let said = Said { topic: "a", kind: Kind::Json, id: "x", payload: b"{}" };
        vec![
            Frame::Hello { me: 1, epoch: 2, term: 3, name: "8080" },
            Frame::Have { topic: "a", last: 7 },
            Frame::Haves,
            Frame::Want { topic: "b", after: 0 },
            Frame::Wants,
            Frame::Given,
            Frame::Welcome { epoch: 1, term: 2, floor: 3 },
            Frame::Known { key: [7; 16], epoch: 1, offset: 2, age: 3 },
            Frame::Stands { topic: "c", last: u64::MAX },
            Frame::Synced,
            Frame::Publish { request: 9, said },
            Frame::Message { origin: 1, request: 2, first: true, offset: 3, age: 4, said },
            Frame::Numbered { request: 1, epoch: 2, offset: 3, first: false, duplicate: true },
            Frame::Refused { request: 1, why: Refused::Full },
        ]
    }

    #[test]
    fn frames_come_as_they_were_put() {
        let mut bytes = Vec::new();
        all().iter().for_each(|frame| put(&mut bytes, frame));
        let mut rest = &bytes[..];
        for frame in all() {
            let (taken, length) = take(rest, 100).unwrap().unwrap();
            assert_eq!(taken, frame);
            for short in 0..length {
                assert_eq!(take(&rest[..short], 100), Ok(None), "{frame:?}");
            }
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
    }

    /// Whatever a byte is changed to, the frame is another, or none.
    #[test]
    fn what_no_replica_says_is_no_frame() {
        for frame in all() {
            let mut bytes = Vec::new();
            put(&mut bytes, &frame);
            for at in 0..bytes.len() {
                for byte in 0..=255 {
                    let mut changed = bytes.clone();
                    changed[at] = byte;
                    let taken = take(&changed, 100);
                    assert!(changed != bytes || taken == Ok(Some((frame, bytes.len()))));
                }
            }
            let length = bytes.len() - 4;
            assert_eq!(take(&bytes, length - 1), Err(Broken), "it is too long");
            bytes.push(0);
            bytes[..4].copy_from_slice(&(length as u32 + 1).to_le_bytes());
            assert!(take(&bytes, 100).is_err(), "a byte is left, or is no JSON");
        }
        assert_eq!(take(&[0; 5], 100), Err(Broken));
        assert_eq!(take(&[255; 5], 100), Err(Broken));
        let no_text = Said { topic: "a", kind: Kind::Text, id: "", payload: b"\xff" };
        let mut bytes = Vec::new();
        put(&mut bytes, &Frame::Publish { request: 1, said: no_text });
        assert_eq!(take(&bytes, 100), Err(Broken));
    }
}
