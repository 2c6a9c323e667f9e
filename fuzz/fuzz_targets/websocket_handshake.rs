//! A request that asks for a socket, from anybody: it is refused, or the answer is a head with the lines that were agreed upon, and a
//! message comes back from the window that was.
#![no_main]

use libfuzzer_sys::fuzz_target;
use production_server::http::Method;
use production_server::http::fields::Fields;
use production_server::http::head::{HeadLimits, request, response};
use production_server::websocket::deflate::{Deflater, Inflater};
use production_server::websocket::handshake::{handshake, switching};

const ALWAYS: &str = "Host: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n";
const NAMES: [&str; 4] =
    ["Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol", "Sec-WebSocket-Key", "Sec-WebSocket-Version"];

fuzz_target!(|bytes: &[u8]| {
    let mut text = format!("GET / HTTP/1.1\r\n{ALWAYS}").into_bytes();
    if bytes.len() % 8 != 0 {
        text.extend(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
    }
    for line in bytes.split(|byte| matches!(byte, b'\r' | b'\n')).take(20) {
        let Some((which, value)) = line.split_first() else { continue };
        text.extend([NAMES[usize::from(*which) % NAMES.len()].as_bytes(), b": ", value, b"\r\n"].concat());
    }
    text.extend(b"\r\n");
    let (limits, mut fields) = (HeadLimits::new(16 * 1024, 100), Fields::new(100));
    let Ok(Some(asked)) = request(&text, &limits, &mut fields) else { return };
    let Ok(agreed) = handshake(&text, &asked, &fields) else { return };
    for (at, protocol) in agreed.protocols.iter().enumerate() {
        assert!(!protocol.is_empty() && !agreed.protocols[..at].contains(protocol));
    }
    let mut out = Vec::new();
    let protocol = agreed.protocols.last().map(String::as_str);
    switching(&mut out, &agreed, protocol, b"X-A: b\r\n");
    let answer = response(&out, Method::Get, true, &limits, &mut fields).expect("it is legal").expect("it is whole");
    assert_eq!((answer.status, answer.len), (101, out.len()));
    let value = |name| fields.find_name(&out, name);
    assert_eq!(value("sec-websocket-protocol"), protocol.map(str::as_bytes));
    assert_eq!(value("sec-websocket-extensions").is_some(), agreed.deflate.is_some());
    assert_eq!(fields.len(), 4 + usize::from(protocol.is_some()) + usize::from(agreed.deflate.is_some()));
    if let Some(deflate) = agreed.deflate {
        assert!((9..=15).contains(&deflate.server_max_window_bits));
        let mut payload = Vec::new();
        Deflater::default().message(bytes, deflate, &mut payload);
        assert_eq!(Inflater::default().message(&payload, bytes.len()).as_deref(), Ok(bytes));
    }
});
