//! The opening handshake (RFC 6455 §4.2).

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::deflate::{Deflate, negotiate};
use crate::http::fields::{Fields, list_items};
use crate::http::head::Request;
use crate::http::is_token;

/// What a request asks for that may become a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The value of Sec-WebSocket-Accept.
    pub accept: [u8; 28],
    /// The subprotocols that the client offers, the one that it likes best first. Each is a token, and none is there twice.
    pub protocols: Vec<String>,
    /// The compression that is agreed upon, if [`switching`] says so.
    pub deflate: Option<Deflate>,
}

/// Why a request becomes no socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It does not want version 13: 426 with `Sec-WebSocket-Version: 13` (RFC 6455 §4.4).
    Version,
    /// It breaks a rule of RFC 6455 §4.1: 400.
    Malformed(&'static str),
    /// It asks for no socket.
    NotAnUpgrade,
}

/// What the key is hashed with (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Subprotocols that a client may offer, so that looking for one that is there twice stays cheap.
const MOST_PROTOCOLS: usize = 64;

/// Reads the handshake in a request's head. Who may open a socket, by its Origin or otherwise, is not asked here.
///
/// # Errors
/// What to answer instead.
pub fn handshake(input: &[u8], request: &Request, fields: &Fields) -> Result<Handshake, Refusal> {
    if !request.websocket {
        return Err(Refusal::NotAnUpgrade);
    }
    let lines = |name: &'static str| {
        let named = move |value: &[u8]| value.eq_ignore_ascii_case(name.as_bytes());
        fields.iter().filter(move |field| named(field.name.of(input))).map(|field| field.value.of(input))
    };
    let only = |name: &'static str| {
        let mut lines = lines(name);
        lines.next().filter(|_| lines.next().is_none())
    };
    if only("Sec-WebSocket-Version") != Some(b"13") {
        return Err(Refusal::Version);
    }
    let key = only("Sec-WebSocket-Key").filter(|key| key_is_legal(key));
    let key = key.ok_or(Refusal::Malformed("not one Sec-WebSocket-Key of 16 bytes in base64"))?;
    Ok(Handshake {
        accept: accept(key),
        protocols: protocols(lines("Sec-WebSocket-Protocol"))?,
        deflate: negotiate(lines("Sec-WebSocket-Extensions")).map_err(Refusal::Malformed)?,
    })
}

/// Puts the answer that opens the socket behind what is in `out`. `protocol` is one of those that were offered. `extra` are whole
/// lines, each with its end.
pub fn switching(out: &mut Vec<u8>, handshake: &Handshake, protocol: Option<&str>, extra: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    out.extend_from_slice(b"Sec-WebSocket-Accept: ");
    out.extend_from_slice(&handshake.accept);
    if let Some(protocol) = protocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(protocol.as_bytes());
    }
    if let Some(deflate) = handshake.deflate {
        out.extend_from_slice(b"\r\nSec-WebSocket-Extensions: ");
        deflate.write(out);
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(extra);
    out.extend_from_slice(b"\r\n");
}

/// Whether this is 16 bytes in base64. What the last four bits are that no byte needs is all the same.
fn key_is_legal(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    matches!(key, [digits @ .., b'=', b'='] if digits.len() == 22 && digits.iter().all(digit))
}

fn accept(key: &[u8]) -> [u8; 28] {
    let mut context = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    context.update(key);
    context.update(GUID);
    let mut accept = [0; 28];
    let written = STANDARD.encode_slice(context.finish(), &mut accept);
    debug_assert_eq!(written, Ok(accept.len()));
    accept
}

fn protocols<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<Vec<String>, Refusal> {
    let mut offered = Vec::new();
    for item in lines.flat_map(list_items) {
        if !item.iter().all(|byte| is_token(*byte)) {
            return Err(Refusal::Malformed("a subprotocol that is not a token"));
        }
        let name = String::from_utf8_lossy(item).into_owned();
        if offered.contains(&name) {
            return Err(Refusal::Malformed("a subprotocol that is offered twice"));
        }
        if offered.len() >= MOST_PROTOCOLS {
            return Err(Refusal::Malformed("too many subprotocols"));
        }
        offered.push(name);
    }
    Ok(offered)
}
