//! A stand-in for the cipher, for the simulation: records as TLS has them, in plain sight and without a proof, so that a seed's run is the
//! same each time and costs little. Sessions in debug builds only have it, and no configuration leads to it.
//!
//! A record is its type, two bytes of length and that many bytes. The first is [`HELLO`], which the other side sends back.

use super::{Opened, RECORD_BYTES, Reason};

/// The types of records.
pub const HELLO: u8 = super::HANDSHAKE;
/// See there.
pub const DATA: u8 = 23;
/// Nothing more will be sent.
pub const END: u8 = 21;
/// What a record has besides.
pub const HEADER_BYTES: usize = 3;

/// One side of a connection.
#[derive(Default)]
pub struct StandIn {
    /// The other side has said hello.
    pub ready: bool,
    ended: bool,
}

/// A record of at most [`RECORD_BYTES`].
pub fn record(kind: u8, plain: &[u8]) -> Vec<u8> {
    let length = (plain.len() as u16).to_be_bytes();
    [&[kind, length[0], length[1]], plain].concat()
}

impl StandIn {
    /// As [`super::Session::open`].
    pub fn open(&mut self, input: &[u8], plain: &mut Vec<u8>, reply: &mut Vec<u8>) -> Opened {
        let mut opened = Opened { used: 0, ended: false, failure: None };
        while let Some(([kind, high, low], rest)) = input[opened.used..].split_first_chunk() {
            let length = usize::from(u16::from_be_bytes([*high, *low]));
            let Some(payload) = rest.get(..length) else { break };
            match *kind {
                HELLO if !self.ready => {
                    self.ready = true;
                    reply.extend(record(HELLO, b""));
                }
                DATA if self.ready && length <= RECORD_BYTES => plain.extend_from_slice(payload),
                END => opened.ended = true,
                _ => {
                    opened.failure = Some(Reason::Malformed);
                    break;
                }
            }
            opened.used += HEADER_BYTES + length;
        }
        opened
    }

    /// As [`super::Session::seal`].
    pub fn seal(&mut self, plain: &[u8], room: &mut [u8]) -> usize {
        assert!(!self.ended, "bytes are sent behind the end");
        put(room, &record(DATA, plain))
    }

    /// As [`super::Session::close`].
    pub fn close(&mut self, room: &mut [u8]) -> usize {
        match std::mem::replace(&mut self.ended, true) {
            true => 0,
            false => put(room, &record(END, b"")),
        }
    }
}

fn put(room: &mut [u8], record: &[u8]) -> usize {
    room[..record.len()].copy_from_slice(record);
    record.len()
}
