//! Our frames: always whole, never masked (RFC 6455 §5.1).

use super::{MOST_OF_CONTROL, Opcode};

/// The longest header of a frame of ours, in bytes.
pub const MOST_OF_HEADER: usize = 10;

/// Puts a frame behind what is in `out`. `compressed`: the payload is what [`Deflater::message`] made of it.
///
/// [`Deflater::message`]: super::deflate::Deflater::message
pub fn frame(out: &mut Vec<u8>, opcode: Opcode, compressed: bool, payload: &[u8]) {
    out.reserve(MOST_OF_HEADER + payload.len());
    out.push(0x80 | (u8::from(compressed) << 6) | opcode as u8);
    match payload.len() {
        length @ ..=125 => out.push(length as u8),
        length @ ..=0xffff => {
            out.push(126);
            out.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// Puts a close frame behind what is in `out`. A reason that is too long is cut. 1005 stands for no code at all, as it does where
/// one is read (RFC 6455 §7.1.5): the frame is empty then.
pub fn close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(MOST_OF_CONTROL - 2)];
    match code {
        1005 => frame(out, Opcode::Close, false, b""),
        code => frame(out, Opcode::Close, false, &[&code.to_be_bytes(), reason.as_bytes()].concat()),
    }
}

/// Puts a ping behind what is in `out`, with 125 bytes of `payload` at most.
pub fn ping(out: &mut Vec<u8>, payload: &[u8]) {
    frame(out, Opcode::Ping, false, &payload[..payload.len().min(MOST_OF_CONTROL)]);
}

/// Puts a pong behind what is in `out`, with 125 bytes of `payload` at most; it answers the ping that had the same.
pub fn pong(out: &mut Vec<u8>, payload: &[u8]) {
    frame(out, Opcode::Pong, false, &payload[..payload.len().min(MOST_OF_CONTROL)]);
}
