//! What goes over a WebSocket and comes in a stream of events, as scripted clients write and read it: simple, strict, and not the product's own.

use serde_json::Value;

pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;
/// Of a first byte: the message is deflated.
const DEFLATED: u8 = 0x40;

/// A client's frame.
pub fn masked(head: u8, data: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![head];
    match data.len() {
        short @ 0..126 => frame.push(0x80 | short as u8),
        long => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(long).expect("a client says less than that").to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(data.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Takes a whole frame of the server's off the front of the input: its first byte, and what is in it.
pub fn take_frame(input: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let [head, second, ..] = input[..] else { return None };
    assert_eq!(second & 0x80, 0, "a server masks nothing");
    let extended = match second {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let digits = input.get(2..2 + extended)?;
    let length = match extended {
        0 => usize::from(second),
        _ => digits.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)),
    };
    let begin = 2 + extended;
    let data = input.get(begin..begin + length)?.to_vec();
    input.drain(..begin + length);
    if head & DEFLATED == 0 {
        return Some((head, data));
    }
    let mut plain = Vec::with_capacity(1 << 17);
    let whole = [&data[..], &[0, 0, 0xff, 0xff]].concat();
    let mut inflater = flate2::Decompress::new(false);
    inflater.decompress_vec(&whole, &mut plain, flate2::FlushDecompress::Sync).expect("what a deflater has made");
    Some((head & !DEFLATED, plain))
}

/// An event of a stream.
#[derive(Debug, Default)]
pub struct Event {
    pub id: Option<String>,
    pub kind: Option<String>,
    pub data: Option<String>,
}

/// Takes a whole event off the front of the input; one without anything is a comment.
pub fn take_event(input: &mut Vec<u8>) -> Option<Event> {
    let end = input.windows(2).position(|two| two == b"\n\n")?;
    let text = String::from_utf8(input.drain(..end + 2).collect()).expect("an event is text");
    let mut event = Event::default();
    for line in text.trim_end_matches('\n').split('\n').filter(|line| !line.starts_with(':')) {
        let (name, value) = line.split_once(": ").unwrap_or_else(|| panic!("no line of an event: {line:?}"));
        let place = match name {
            "id" => &mut event.id,
            "event" => &mut event.kind,
            "data" => &mut event.data,
            "retry" => continue,
            _ => panic!("no line of an event: {line:?}"),
        };
        assert!(place.replace(value.to_owned()).is_none(), "{name} stands twice in {text:?}");
    }
    Some(event)
}

/// The text of a member.
pub fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_else(|| panic!("no {name} in {value}"))
}

/// What a message in its envelope is.
pub fn payload(envelope: &Value) -> Vec<u8> {
    match &envelope["data"] {
        Value::String(text) => text.clone().into_bytes(),
        Value::Null => panic!("no message: {envelope}"),
        value => value.to_string().into_bytes(),
    }
}
