//! Handshakes and what is negotiated in them.

use crate::http::Method;
use crate::http::fields::Fields;
use crate::http::head::{self, HeadLimits};
use crate::websocket::deflate::{Deflate, negotiate};
use crate::websocket::handshake::{Handshake, Refusal, handshake, switching};

/// What comes of a request with these lines besides those that are always there.
fn opening_of(method: &str, lines: &str) -> Result<Handshake, Refusal> {
    let bytes = format!("{method} /chat HTTP/1.1\r\nHost: a\r\n{lines}\r\n");
    let mut fields = Fields::new(100);
    let request = head::request(bytes.as_bytes(), &HeadLimits::default(), &mut fields).unwrap().unwrap();
    handshake(bytes.as_bytes(), &request, &fields)
}

const ASKS: &str = "Upgrade: websocket\r\nConnection: Upgrade\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";
const KEY: &str = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

fn opening(lines: &str) -> Result<Handshake, Refusal> {
    opening_of("GET", &[ASKS, VERSION, KEY, lines].concat())
}

#[test]
fn the_example_of_rfc_6455_is_opened() {
    let handshake = opening("Origin: http://example.com\r\nSec-WebSocket-Protocol: chat, superchat\r\n").unwrap();
    assert_eq!(&handshake.accept, b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!((&handshake.protocols[..], handshake.deflate), (&["chat".to_owned(), "superchat".to_owned()][..], None));
    let mut out = b"before".to_vec();
    switching(&mut out, &handshake, Some("chat"), b"");
    let expected = "beforeHTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn the_answer_is_a_head_with_all_that_was_agreed_upon() {
    for (offer, answer) in [
        ("permessage-deflate; client_max_window_bits", ""),
        ("permessage-deflate; server_max_window_bits=15", "; server_max_window_bits=15"),
        ("permessage-deflate; server_max_window_bits=9", "; server_max_window_bits=9"),
    ] {
        let handshake = opening(&format!("Sec-WebSocket-Extensions: {offer}\r\n")).unwrap();
        let mut out = Vec::new();
        switching(&mut out, &handshake, None, b"Date: now\r\nX-A: b\r\n");
        let mut fields = Fields::new(100);
        let head = head::response(&out, Method::Get, true, &HeadLimits::default(), &mut fields).unwrap().unwrap();
        assert_eq!((head.status, head.len), (101, out.len()));
        let value = |name| fields.find_name(&out, name).map(|value| String::from_utf8_lossy(value).into_owned());
        let extensions = format!("permessage-deflate; server_no_context_takeover; client_no_context_takeover{answer}");
        assert_eq!(value("sec-websocket-extensions"), Some(extensions));
        assert_eq!(
            [value("sec-websocket-protocol"), value("date"), value("x-a")],
            [None, Some("now".into()), Some("b".into())]
        );
    }
}

#[test]
fn requests_that_open_nothing() {
    let malformed = |outcome: Result<Handshake, Refusal>| matches!(outcome, Err(Refusal::Malformed(_)));
    assert!(opening("").is_ok());
    for lines in ["", "Upgrade: websocket\r\n", "Connection: Upgrade\r\n", "Upgrade: h2c\r\nConnection: Upgrade\r\n"] {
        let outcome = opening_of("GET", &[lines, VERSION, KEY].concat());
        assert_eq!(outcome, Err(Refusal::NotAnUpgrade), "{lines}");
    }
    assert_eq!(opening_of("POST", &[ASKS, VERSION, KEY].concat()), Err(Refusal::NotAnUpgrade));
    assert_eq!(opening("Content-Length: 1\r\n"), Err(Refusal::NotAnUpgrade));
    for version in ["", "Sec-WebSocket-Version: 8\r\n", "Sec-WebSocket-Version: 13, 8\r\n", &VERSION.repeat(2)] {
        assert_eq!(opening_of("GET", &[ASKS, version, KEY].concat()), Err(Refusal::Version), "{version}");
    }
    for key in [
        "",
        &KEY.repeat(2),
        "Sec-WebSocket-Key: \r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQQ==\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZ===\r\n",
        "Sec-WebSocket-Key: dGhlIHNhbXBs_SBub25jZQ==\r\n",
    ] {
        assert!(malformed(opening_of("GET", &[ASKS, VERSION, key].concat())), "{key}");
    }
    let protocols = |value: &str| opening(&format!("Sec-WebSocket-Protocol: {value}\r\n"));
    let many = |count: usize| (0..count).map(|number| format!("p{number},")).collect::<String>();
    for value in ["a b", "a, (b)", "a, b, a", "a\r\nSec-WebSocket-Protocol: a", "\u{e4}", &many(65)] {
        assert!(malformed(protocols(value)), "{value}");
    }
    assert_eq!(protocols("a,, b,\r\nSec-WebSocket-Protocol: A").unwrap().protocols, ["a", "b", "A"]);
    assert_eq!(protocols(&many(64)).unwrap().protocols.len(), 64);
    assert_eq!(protocols("").unwrap().protocols, [""; 0]);
    assert!(malformed(opening("Sec-WebSocket-Extensions: permessage-deflate;\r\n")));
}

/// What is agreed upon for these lines: the window; 0 for nothing, and 1 for lines that are malformed.
fn window(lines: &[&str]) -> u8 {
    match negotiate(lines.iter().map(|line| line.as_bytes())) {
        Ok(agreed) => agreed.map_or(0, |deflate: Deflate| deflate.server_max_window_bits),
        Err(_) => 1,
    }
}

#[test]
fn the_first_offer_is_taken_that_can_be_kept() {
    for (offer, expected) in [
        ("", 0),
        (",, ,", 0),
        ("permessage-deflate", 15),
        (" , permessage-deflate ,", 15),
        ("permessage-deflate; client_max_window_bits", 15),
        ("permessage-deflate;client_max_window_bits=8;server_max_window_bits=10", 10),
        ("permessage-deflate ; server_max_window_bits = \"12\" ; client_max_window_bits=\"1\\5\"", 12),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", 15),
        ("x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=9", 9),
        ("foo; bar=\"a\\b\"; baz, permessage-deflate", 15),
        // Declined, each for another reason.
        ("foo", 0),
        ("Permessage-Deflate", 0),
        ("permessage-bzip2; permessage-deflate", 0),
        ("permessage-deflate; unknown", 0),
        ("permessage-deflate; unknown=1", 0),
        ("permessage-deflate; server_no_context_takeover=1", 0),
        ("permessage-deflate; client_no_context_takeover=true", 0),
        ("permessage-deflate; server_max_window_bits", 0),
        ("permessage-deflate; server_max_window_bits=8", 0),
        ("permessage-deflate; server_max_window_bits=7", 0),
        ("permessage-deflate; server_max_window_bits=16", 0),
        ("permessage-deflate; server_max_window_bits=09", 0),
        ("permessage-deflate; server_max_window_bits=100", 0),
        ("permessage-deflate; server_max_window_bits=1x", 0),
        ("permessage-deflate; client_max_window_bits=7", 0),
        ("permessage-deflate; client_max_window_bits=16", 0),
        ("permessage-deflate; server_max_window_bits=10; server_max_window_bits=10", 0),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits=9", 0),
        ("permessage-deflate; server_no_context_takeover; server_no_context_takeover", 0),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", 0),
        // The next one is looked at.
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=11", 11),
        ("permessage-deflate; unknown, permessage-deflate", 15),
        ("permessage-deflate; server_max_window_bits=13, permessage-deflate; server_max_window_bits=11", 13),
        // Malformed.
        ("permessage-deflate;", 1),
        ("permessage-deflate; ;", 1),
        ("permessage-deflate foo", 1),
        ("permessage-deflate; a=", 1),
        ("permessage-deflate; a=\"", 1),
        ("permessage-deflate; a=\"\"", 1),
        ("permessage-deflate; a=\"b c\"", 1),
        ("permessage-deflate; a=\"b\\\"", 1),
        ("permessage-deflate; a=b=c", 1),
        ("permessage-deflate; =b", 1),
        ("permessage-deflate, (", 1),
        ("=", 1),
        ("; a", 1),
    ] {
        assert_eq!(window(&[offer]), expected, "{offer}");
    }
    assert_eq!(window(&["foo", "permessage-deflate; unknown", "permessage-deflate; server_max_window_bits=14"]), 14);
    assert_eq!(window(&["permessage-deflate", "("]), 1, "what is malformed is so behind an offer that is taken, too");
    assert_eq!(window(&[]), 0);
}
