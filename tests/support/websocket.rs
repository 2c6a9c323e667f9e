//! A WebSocket client that is slow and simple: one frame at a time, masked with what it likes.

use serde_json::Value;

use super::{Client, Server, text};

/// A frame of the server's.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// The first byte: FIN, RSV and the opcode.
    pub head: u8,
    pub data: Vec<u8>,
}

/// FIN with an opcode.
pub const TEXT: u8 = 0x81;
pub const BINARY: u8 = 0x82;
pub const CLOSE: u8 = 0x88;
pub const PING: u8 = 0x89;
pub const PONG: u8 = 0x8a;

impl Frame {
    pub fn text(&self) -> String {
        assert_eq!(self.head, TEXT, "{self:?}");
        String::from_utf8(self.data.clone()).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text()).unwrap()
    }

    /// The same message, as it was before it was deflated.
    pub fn inflated(&self) -> Frame {
        assert_eq!(self.head & 0xf0, 0xc0, "FIN and RSV1: {self:?}");
        let mut data = Vec::with_capacity(1 << 20);
        let whole = [&self.data[..], &[0, 0, 0xff, 0xff]].concat();
        flate2::Decompress::new(false).decompress_vec(&whole, &mut data, flate2::FlushDecompress::Sync).unwrap();
        Frame { head: self.head & !0x40, data }
    }

    /// The code of a close.
    pub fn code(&self) -> u16 {
        assert_eq!(self.head, CLOSE, "{self:?}");
        u16::from_be_bytes([self.data[0], self.data[1]])
    }
}

/// A connection that has become a WebSocket.
pub struct Socket {
    pub client: Client,
}

impl Socket {
    /// One that takes deflated messages, and what the server says to that.
    pub fn deflating(server: &Server, target: &str, offer: &str, lines: &str) -> (Socket, Option<String>) {
        let mut client = server.client();
        client.send(request(target, &format!("Sec-WebSocket-Extensions: {offer}\r\n{lines}")));
        let head = client.head().unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        (Socket { client }, super::fields(&head, "sec-websocket-extensions").first().map(|it| (*it).to_owned()))
    }

    /// Opens one; `lines` are further fields, each with its end.
    pub fn open(server: &Server, target: &str, lines: &str) -> Socket {
        let mut client = server.client();
        client.send(request(target, lines));
        let head = client.head().unwrap_or_else(|| panic!("no answer: {}", text(b"")));
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
        Socket { client }
    }

    /// One whose messages come with their topics and ids.
    pub fn told(server: &Server, target: &str) -> Socket {
        Socket::open(server, target, "Sec-WebSocket-Protocol: other, hub.v1\r\n")
    }

    pub fn send(&mut self, head: u8, data: &[u8]) {
        self.client.send(masked(head, data));
    }

    pub fn say(&mut self, message: &Value) {
        self.send(TEXT, message.to_string().as_bytes());
    }

    /// The next frame that is no ping; those are answered.
    pub fn next(&mut self) -> Frame {
        loop {
            let frame = self.next_of_all();
            if frame.head != PING {
                return frame;
            }
            self.send(PONG, &frame.data);
        }
    }

    /// The next frame.
    pub fn next_of_all(&mut self) -> Frame {
        let head = self.client.take(2);
        assert_eq!(head[1] & 0x80, 0, "a server masks nothing");
        let length = match head[1] {
            126 => self.client.take(2),
            127 => self.client.take(8),
            short => vec![short],
        };
        let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        Frame { head: head[0], data: self.client.take(length) }
    }

    /// The close that comes next, and nothing behind it.
    pub fn expect_close(&mut self) -> u16 {
        let code = self.next().code();
        let (rest, _) = self.client.rest();
        assert!(rest.is_empty(), "{rest:?}");
        code
    }
}

/// What asks for a socket.
pub fn request(target: &str, lines: &str) -> String {
    format!(
        "GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{lines}\r\n"
    )
}

/// A client's frame.
pub fn masked(head: u8, data: &[u8]) -> Vec<u8> {
    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut frame = vec![head];
    match data.len() {
        short @ 0..126 => frame.push(0x80 | short as u8),
        middle @ 126..0x1_0000 => {
            frame.push(0x80 | 126);
            frame.extend((middle as u16).to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    frame.extend(data.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}
