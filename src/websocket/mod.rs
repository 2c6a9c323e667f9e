//! WebSocket over bytes (RFC 6455), with compressed messages (RFC 7692).
//!
//! | file | what |
//! |---|---|
//! | `handshake` | the request that asks for a socket, and the answer that opens it |
//! | `decode` | a client's frames, in pieces of any size, to messages |
//! | `encode` | our frames |
//! | `deflate` | permessage-deflate: what is agreed, and the two directions |
//!
//! Everything here is sans-IO: no descriptor, no clock, no thread.
//!
//! Rules:
//! - A client is hostile: what RFC 6455 does not allow fails the connection with the code that it names, as soon as it is seen.
//! - Memory follows the bytes that have come, never those that are announced, and ends at the limit of a message.
//! - Between two messages a socket holds nothing but a [`decode::Decoder`]: no context of a compression is kept, and one inflater
//!   and one deflater serve all sockets of a loop.

pub mod decode;
pub mod deflate;
pub mod encode;
pub mod handshake;

#[cfg(test)]
mod tests;

/// What a frame is (RFC 6455 §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    /// More of the message that was begun.
    Continuation = 0,
    /// Begins a message of UTF-8.
    Text = 1,
    /// Begins a message of bytes.
    Binary = 2,
    /// Ends the connection.
    Close = 8,
    /// Asks for a pong.
    Ping = 9,
    /// Answers a ping, or only says that one is there.
    Pong = 10,
}

impl Opcode {
    /// The opcode with that number; `None` for the reserved ones.
    const fn of(number: u8) -> Option<Opcode> {
        Some(match number {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return None,
        })
    }

    /// Whether such a frame may stand between the frames of a message (RFC 6455 §5.5).
    const fn is_control(self) -> bool {
        self as u8 & 8 != 0
    }
}

/// Bytes that a control frame carries at most (RFC 6455 §5.5).
pub const MOST_OF_CONTROL: usize = 125;

/// Makes room for so many bytes more: by doubling what there is, but beyond `most` bytes in all only for what has to be.
fn grow(bytes: &mut Vec<u8>, more: usize, most: usize) {
    let needed = bytes.len() + more;
    if needed > bytes.capacity() {
        let room = needed.max(most.min(bytes.capacity().saturating_mul(2)));
        bytes.reserve_exact(room - bytes.len());
    }
}
