//! A message, and its forms on the wire: each is made once for all who get it, when the first of them does.
//!
//! What is published is kept as the WebSocket frame that carries it, whose end is the payload itself; so that form costs nothing. Others are
//! kept for as long as they are likely to be asked for again, and as there is room for them: they can be made anew, so that nobody who reads
//! makes a message go.

use std::fmt::Write;
use std::ops::{Range, RangeInclusive};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::ids::Position;
use super::lock;
use super::topic::About;
use crate::buffers::outbox::Piece;
use crate::planted::{self, Bug};
use crate::websocket::deflate::{Deflate, Deflater};
use crate::websocket::{Opcode, encode};

/// Which form.
const ENVELOPE: usize = 0;
const CHUNK: usize = 1;
const DEFLATED: usize = 2;
const DEFLATED_ENVELOPE: usize = 3;
/// Bytes of messages that are compressed: shorter ones are not worth it, and longer ones would hold a loop up for milliseconds, and all
/// others that send the same message.
const DEFLATED_SIZES: RangeInclusive<usize> = 1025..=256 * 1024;

/// What is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// Text.
    Text(&'a str),
    /// Any bytes.
    Binary(&'a [u8]),
    /// A value of JSON that is not a string, as it is written.
    Json(&'a str),
}

impl<'a> Payload<'a> {
    /// Its bytes.
    pub fn bytes(&self) -> &'a [u8] {
        match self {
            Payload::Text(text) | Payload::Json(text) => text.as_bytes(),
            Payload::Binary(bytes) => bytes,
        }
    }
}

/// How the bytes of a message are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Text.
    Text,
    /// Any bytes.
    Binary,
    /// A value of JSON.
    Json,
}

impl Kind {
    fn opcode(self) -> Opcode {
        if self == Kind::Binary { Opcode::Binary } else { Opcode::Text }
    }
}

/// What can be made of a message before it is known where it stands.
#[derive(Clone)]
pub(super) struct Draft {
    kind: Kind,
    frame: Arc<[u8]>,
    /// Subscribers that are not to get it, by their numbers, in order.
    except: Box<[u128]>,
}

impl Draft {
    pub(super) fn new(payload: Payload<'_>, except: &[u128]) -> Draft {
        let kind = match payload {
            Payload::Text(_) => Kind::Text,
            Payload::Binary(_) => Kind::Binary,
            Payload::Json(_) => Kind::Json,
        };
        let mut except: Box<[u128]> = except.into();
        except.sort_unstable();
        Draft { kind, frame: frame(kind.opcode(), payload.bytes()).into(), except }
    }
}

/// A message in its topic.
pub struct Message {
    position: Position,
    at: Duration,
    kind: Kind,
    about: Arc<About>,
    /// The payload as one frame of WebSocket: a head of 2 to 10 bytes, and the payload.
    frame: Arc<[u8]>,
    forms: Mutex<Forms>,
    /// Subscribers that do not get it, by their numbers, in order.
    except: Box<[u128]>,
}

/// What was made of a message, and is charged to its topic.
#[derive(Default)]
struct Forms {
    /// The envelope as a frame, the event of a stream as one chunk of HTTP/1, and the two frames deflated: empty where that makes them no
    /// smaller.
    made: [Option<Arc<[u8]>>; 4],
    /// The ring has it no more: nothing is kept.
    given_up: bool,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Message({} {:?}, {} bytes)", self.position, self.kind, self.payload().len())
    }
}

impl Message {
    /// A message that is in no ring yet.
    pub(super) fn new(about: Arc<About>, position: Position, at: Duration, draft: &Draft) -> Message {
        let Draft { kind, frame, except } = draft.clone();
        Message { position, at, kind, about, frame, forms: Mutex::default(), except }
    }

    /// Where it stands.
    pub fn position(&self) -> Position {
        self.position
    }

    /// When it was published, by the clock of whoever calls the hub.
    pub fn at(&self) -> Duration {
        self.at
    }

    /// How its bytes are meant.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The name of its topic.
    pub fn topic(&self) -> &str {
        self.about.name()
    }

    /// What was published.
    pub fn payload(&self) -> &[u8] {
        &self.frame[head_length(&self.frame)..]
    }

    /// The same, with what it means.
    pub fn said(&self) -> Payload<'_> {
        let bytes = self.payload();
        // It was text when it came.
        let text = || std::str::from_utf8(bytes).unwrap_or_default();
        match self.kind {
            Kind::Text => Payload::Text(text()),
            Kind::Binary => Payload::Binary(bytes),
            Kind::Json => Payload::Json(text()),
        }
    }

    /// Bytes of its plainest form.
    pub(super) fn size(&self) -> usize {
        self.frame.len()
    }

    /// For WebSocket (RFC 6455): one frame, text or binary, with what was published as it is.
    pub fn raw_frame(&self) -> Piece {
        Piece::shared(self.frame.clone())
    }

    /// For WebSocket with permessage-deflate and the largest window (RFC 7692): [`Message::raw_frame`] or, if `told`,
    /// [`Message::envelope_frame`], deflated where that is worth it. It is as it is where the work could not be kept: nobody does it twice.
    pub fn deflated_frame(&self, told: bool, deflater: &mut Deflater) -> Piece {
        let is_worth_it = DEFLATED_SIZES.contains(&self.payload().len());
        let deflated = is_worth_it.then(|| self.deflated(told, deflater)).flatten();
        match deflated.filter(|form| !form.is_empty()) {
            Some(form) => Piece::shared(form),
            None if told => self.envelope_frame(),
            None => self.raw_frame(),
        }
    }

    fn deflated(&self, told: bool, deflater: &mut Deflater) -> Option<Arc<[u8]>> {
        let (which, room) = (if told { DEFLATED_ENVELOPE } else { DEFLATED }, shared_bytes(self.size()));
        let mut forms = lock(&self.forms);
        if forms.made[which].is_none() && !forms.given_up && self.about.keep_form(room) {
            let envelope = told.then(|| self.envelope());
            let payload = envelope.as_ref().map_or_else(|| self.payload(), String::as_bytes);
            let opcode = if told { Opcode::Text } else { self.kind.opcode() };
            let (mut deflated, mut out) = (Vec::new(), Vec::new());
            deflater.message(payload, Deflate::default(), &mut deflated);
            encode::frame(&mut out, opcode, true, &deflated);
            // Longer than the message as it is: that is what is sent.
            out.truncate(if out.len() < self.size() { out.len() } else { 0 });
            self.about.drop_form(room - shared_bytes(out.len()));
            forms.made[which] = Some(out.into());
        }
        forms.made[which].clone()
    }

    /// For WebSocket: one frame of text, `{"type":"message","topic":…,"id":…,"data":…}`; bytes are `"binary"` in base64 instead of `"data"`.
    pub fn envelope_frame(&self) -> Piece {
        Piece::shared(self.form(ENVELOPE, || frame(Opcode::Text, self.envelope().as_bytes())))
    }

    /// The text of [`Message::envelope_frame`].
    pub fn envelope(&self) -> String {
        let mut out = String::with_capacity(self.size() + self.topic().len() + 96);
        out.push_str("{\"type\":\"message\",\"topic\":");
        put_json_string(&mut out, self.topic());
        let _ = write!(out, ",\"id\":\"{}\",", self.position);
        match self.said() {
            Payload::Text(text) => {
                out.push_str("\"data\":");
                put_json_string(&mut out, text);
            }
            Payload::Json(value) => {
                out.push_str("\"data\":");
                out.push_str(value);
            }
            Payload::Binary(bytes) => {
                out.push_str("\"binary\":\"");
                STANDARD.encode_string(bytes, &mut out);
                out.push('"');
            }
        }
        out.push('}');
        out
    }

    /// For streams of events (HTML Living Standard, 9.2): `id: …`, a line of data for each line, and an empty one. Bytes are an event `binary` in base64.
    pub fn event(&self) -> Piece {
        let chunk = self.chunk();
        let event = event_in(&chunk);
        Piece::Shared(chunk, event.start as u32..event.end as u32)
    }

    /// [`Message::event`] as one chunk of HTTP/1 (RFC 9112 §7.1).
    pub fn event_chunk(&self) -> Piece {
        Piece::shared(self.chunk())
    }

    /// [`Message::event`] without its id, for streams of several topics, which have another: that comes first. As the end of a chunk or
    /// of bytes without framing.
    pub(super) fn event_tail(&self, chunked: bool) -> Piece {
        let chunk = self.chunk();
        let event = event_in(&chunk);
        let id = memchr::memchr(b'\n', &chunk[event.start..]).map_or(0, |at| at + 1);
        let end = if chunked { chunk.len() } else { event.end };
        Piece::Shared(chunk, (event.start + id) as u32..end as u32)
    }

    fn chunk(&self) -> Arc<[u8]> {
        self.form(CHUNK, || {
            let mut event = format!("id: {}\n", self.position);
            match self.said() {
                Payload::Text(text) | Payload::Json(text) => put_data(&mut event, text),
                Payload::Binary(bytes) => {
                    event.push_str("event: binary\ndata: ");
                    STANDARD.encode_string(bytes, &mut event);
                    event.push('\n');
                }
            }
            event.push('\n');
            format!("{:x}\r\n{event}\r\n", event.len()).into_bytes()
        })
    }

    /// A form as it was made before, or as it is made now.
    fn form(&self, which: usize, make: impl FnOnce() -> Vec<u8>) -> Arc<[u8]> {
        let mut forms = lock(&self.forms);
        if let Some(form) = &forms.made[which] {
            return form.clone();
        }
        let form: Arc<[u8]> = make().into();
        if !forms.given_up && self.about.keep_form(shared_bytes(form.len())) {
            forms.made[which] = Some(form.clone());
        }
        form
    }

    /// Nobody is likely to ask for its forms again.
    pub(super) fn drop_forms(&self) {
        self.take_forms(&mut lock(&self.forms));
    }

    fn take_forms(&self, forms: &mut Forms) {
        let mut bytes = 0;
        for form in forms.made.iter_mut().filter_map(Option::take) {
            bytes += if planted::active(Bug::LeakedForm) { 0 } else { shared_bytes(form.len()) };
            self.about.leave(form);
        }
        self.about.drop_form(bytes);
    }

    /// What its topic is charged for it, without the forms that are made of it.
    pub(super) fn cost(&self) -> usize {
        let except = heap_bytes(size_of_val(&*self.except));
        shared_bytes(size_of::<Message>()) + shared_bytes(self.frame.len()) + except
    }

    /// Whether that subscriber, by its number, does not get it.
    #[inline]
    pub fn is_not_for(&self, subscriber: u128) -> bool {
        !self.except.is_empty() && self.except.binary_search(&subscriber).is_ok()
    }

    /// The forms that are kept.
    #[cfg(test)]
    pub(super) fn forms(&self) -> Vec<Arc<[u8]>> {
        lock(&self.forms).made.iter().flatten().cloned().collect()
    }

    /// The ring has it no more.
    pub(super) fn give_up(&self) {
        let mut forms = lock(&self.forms);
        forms.given_up = true;
        self.take_forms(&mut forms);
        self.about.leave(self.frame.clone());
        self.about.credit(self.cost());
    }
}

/// What an allocation behind an `Arc` takes of the heap: two counts, what it is for, and the allocator's own word, in steps of 16 bytes.
pub(super) fn shared_bytes(bytes: usize) -> usize {
    heap_bytes(bytes + 2 * size_of::<usize>())
}

/// What an allocation takes of the heap.
pub(super) fn heap_bytes(bytes: usize) -> usize {
    if bytes == 0 { 0 } else { (bytes + size_of::<usize>()).next_multiple_of(16).max(32) }
}

/// A frame that carries a payload as it is.
fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    encode::frame(&mut out, opcode, false, payload);
    out
}

/// Bytes before the payload of a frame that was made here.
fn head_length(frame: &[u8]) -> usize {
    match frame.get(1) {
        Some(127) => 10,
        Some(126) => 4,
        _ => 2,
    }
}

/// Where the event lies in its chunk.
fn event_in(chunk: &[u8]) -> Range<usize> {
    let start = memchr::memchr(b'\n', chunk).map_or(0, |at| at + 1);
    start..chunk.len() - 2
}

/// A string of JSON.
pub(super) fn put_json_string(out: &mut String, text: &str) {
    // Of a string that fails never.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// A line of data for each line of the text, wherever one may end (`\n`, `\r\n`, `\r`).
pub(super) fn put_data(out: &mut String, text: &str) {
    let mut rest = text;
    loop {
        let end = rest.find(['\r', '\n']);
        let (line, behind) = end.map_or((rest, None), |end| (&rest[..end], Some(&rest[end..])));
        let _ = writeln!(out, "data: {line}");
        let Some(behind) = behind else { return };
        rest = behind.strip_prefix("\r\n").unwrap_or_else(|| &behind[1..]);
    }
}
