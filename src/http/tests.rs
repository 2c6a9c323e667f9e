//! The rules of RFC 9110 and RFC 9112 as tables: one row per rule, what is refused and what is accepted.

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::date::Start;
use super::fields::{Fields, Kind, Kinds};
use super::head::{self, Form, HeadLimits, HeadSearch, Request, Response};
use super::origin::Origin;
use super::rewrite::{self, Answer, Forward, Front, Rewritten};
use super::{Framing, Method, Refusal, Version, date};
use crate::buffers::block::Writer;
use crate::config::Peers;

fn parse(bytes: &[u8]) -> Result<Option<(Request, Fields)>, Refusal> {
    let mut fields = Fields::new(100);
    head::request(bytes, &HeadLimits::default(), &mut fields).map(|request| request.map(|request| (request, fields)))
}

fn accepted(bytes: impl AsRef<[u8]>) -> (Request, Fields) {
    let bytes = bytes.as_ref();
    match parse(bytes) {
        Ok(Some(parsed)) => parsed,
        other => panic!("{:?}: {:?}", String::from_utf8_lossy(bytes), other.map(|_| "partial")),
    }
}

fn answered(bytes: &[u8], to: Method, upgrade: bool) -> Result<Option<(Response, Fields)>, Refusal> {
    let mut fields = Fields::new(100);
    let response = head::response(bytes, to, upgrade, &HeadLimits::default(), &mut fields);
    response.map(|response| response.map(|response| (response, fields)))
}

/// A head on HTTP/1.1 with a Host and these further lines.
fn with(lines: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{lines}\r\n\r\n").into_bytes()
}

#[test]
fn malformed_request_lines_are_refused() {
    const END: &str = "\r\nHost: a\r\n\r\n";
    let long_target = format!("GET /{} HTTP/1.1", "a".repeat(16 * 1024));
    let long_method = format!("{} / HTTP/1.1", "M".repeat(40));
    for (line, status, section) in [
        ("GET / HTTP/1", 400, "RFC 9112 §2.3"),
        ("GET / HTTP/01.01", 400, "RFC 9112 §2.3"),
        ("GET / HTTP/1.1.1", 400, "RFC 9112 §2.3"),
        ("GET / HTTP/1.10", 400, "RFC 9112 §2.3"),
        ("GET / HTTP/0.9", 400, "RFC 9112 §2.3"),
        ("GET / http/1.1", 400, "RFC 9112 §2.3"),
        ("GET / HTTP/1.1 ", 400, "RFC 9112 §2.3"),
        ("GET / HTTP/ 1.1", 400, "RFC 9112 §2.3"),
        ("GET / XTTP/1.1", 400, "RFC 9112 §2.3"),
        ("GET /", 400, "RFC 9112 §3"),
        ("GET / HTTP/2.0", 505, "RFC 9110 §15.6.6"),
        ("GET / HTTP/3.1", 505, "RFC 9110 §15.6.6"),
        ("GET  / HTTP/1.1", 400, "RFC 9112 §3"),
        ("GET /  HTTP/1.1", 400, "RFC 9112 §3"),
        ("GET\t/ HTTP/1.1", 400, "RFC 9112 §3"),
        ("GET /\tHTTP/1.1", 400, "RFC 9112 §2.3"),
        ("GET /a b HTTP/1.1", 400, "RFC 9112 §3"),
        (" GET / HTTP/1.1", 400, "RFC 9112 §3"),
        ("G@T / HTTP/1.1", 400, "RFC 9112 §3"),
        ("GET HTTP/1.1", 400, "RFC 9112 §2.3"),
        ("GET", 400, "RFC 9112 §3"),
        ("G\0T / HTTP/1.1", 400, "RFC 9112 §3"),
        ("GET /\0 HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET /\r HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET /\x7f HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET /12345678\x0112345678 HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET /é HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET /a#b HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET /123456789#123456789 HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET # HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET a HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET ftp://a/ HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET a:80 HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET * HTTP/1.1", 400, "RFC 9112 §3.2.4"),
        ("OPTIONS ** HTTP/1.1", 400, "RFC 9112 §3.2"),
        ("GET http:///a HTTP/1.1", 400, "RFC 9110 §4.2.1"),
        ("GET http://:80/ HTTP/1.1", 400, "RFC 9110 §4.2.1"),
        ("GET http://u@a/ HTTP/1.1", 400, "RFC 9110 §4.2.4"),
        ("GET http://a:b/ HTTP/1.1", 400, "RFC 9112 §3.2.2"),
        ("GET http://a\\b/ HTTP/1.1", 400, "RFC 9112 §3.2.2"),
        ("CONNECT a:443 HTTP/1.1", 501, "RFC 9110 §9.1"),
        (&long_method, 501, "RFC 9110 §9.1"),
        (&long_target, 414, "RFC 9110 §15.5.15"),
    ] {
        let refusal = parse(format!("{line}{END}").as_bytes()).err();
        assert_eq!(refusal.map(|refusal| (refusal.status, refusal.section)), Some((status, section)), "{line:?}");
    }
}

#[test]
fn malformed_field_lines_are_refused() {
    for (lines, section) in [
        ("a: b\r\n c", "RFC 9112 §5.2"),
        ("a: b\r\n\tc", "RFC 9112 §5.2"),
        ("a : b", "RFC 9112 §5.1"),
        ("a\t: b", "RFC 9112 §5.1"),
        (": b", "RFC 9110 §5.1"),
        ("a", "RFC 9112 §5"),
        ("a b: c", "RFC 9110 §5.1"),
        ("a(b): c", "RFC 9110 §5.1"),
        ("é: c", "RFC 9110 §5.1"),
        ("a: b\rc", "RFC 9112 §2.2"),
        ("a: b\r\rc", "RFC 9112 §2.2"),
        ("a\r: b", "RFC 9112 §2.2"),
        ("a: b\0c", "RFC 9110 §5.5"),
        ("a: \x01", "RFC 9110 §5.5"),
        ("a: \x7f", "RFC 9110 §5.5"),
        ("a\0: b", "RFC 9110 §5.1"),
    ] {
        let refusal = parse(&with(lines)).err();
        assert_eq!(refusal.map(|refusal| (refusal.status, refusal.section)), Some((400, section)), "{lines:?}");
    }
    let first_is_folded = parse(b"GET / HTTP/1.1\r\n Host: a\r\n\r\n").err();
    assert_eq!(first_is_folded.map(|refusal| refusal.section), Some("RFC 9112 §5.2"));
}

#[test]
fn ambiguous_framing_is_refused() {
    const LENGTH: &str = "RFC 9112 §6.3";
    const CODING: &str = "RFC 9112 §6.1";
    for (lines, status, section) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400, CODING),
        ("Transfer-Encoding: chunked\r\nContent-Length: 0", 400, CODING),
        ("Content-Length: 5\r\nContent-Length: 5", 400, LENGTH),
        ("Content-Length: 5\r\nContent-Length: 6", 400, LENGTH),
        ("Content-Length: 5, 5", 400, LENGTH),
        ("Content-Length:", 400, LENGTH),
        ("Content-Length: +5", 400, LENGTH),
        ("Content-Length: -5", 400, LENGTH),
        ("Content-Length: 0x5", 400, LENGTH),
        ("Content-Length: 5 5", 400, LENGTH),
        ("Content-Length: 5.0", 400, LENGTH),
        ("Content-Length: 99999999999999999999", 400, LENGTH),
        ("Content-Length: 9223372036854775808", 400, LENGTH),
        ("Transfer-Encoding:", 400, CODING),
        ("Transfer-Encoding: ,", 400, CODING),
        ("Transfer-Encoding: ,chunked", 400, CODING),
        ("Transfer-Encoding: chunked,", 400, CODING),
        ("Transfer-Encoding: gzip,,chunked", 400, CODING),
        ("Transfer-Encoding: chunked, chunked", 400, CODING),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400, CODING),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", 400, CODING),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding:", 400, CODING),
        ("Transfer-Encoding: chunked, gzip", 400, CODING),
        ("Transfer-Encoding: chunked;a=b", 400, CODING),
        ("Transfer-Encoding: \x0bchunked", 400, "RFC 9110 §5.5"),
        ("Transfer-Encoding: \"chunked\"", 400, CODING),
        ("Transfer-Encoding: chunked\u{e9}", 400, CODING),
        ("Transfer-Encoding: gzip chunked", 400, CODING),
        ("Transfer-Encoding: xchunked", 400, LENGTH),
        ("Transfer-Encoding: identity", 400, LENGTH),
        ("Transfer-Encoding: gzip", 400, LENGTH),
        ("Transfer-Encoding: gzip, chunked", 501, CODING),
        ("Transfer-Encoding: gzip;q=1, chunked", 501, CODING),
        ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked", 501, CODING),
    ] {
        let refusal = parse(&with(lines)).err();
        assert_eq!(refusal.map(|refusal| (refusal.status, refusal.section)), Some((status, section)), "{lines:?}");
    }
    let on_http10 = parse(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n").err();
    assert_eq!(on_http10.map(|refusal| (refusal.status, refusal.section)), Some((400, CODING)));
}

#[test]
fn bad_hosts_and_expectations_are_refused() {
    const HOST: &str = "RFC 9112 §3.2";
    for (head, status, section) in [
        ("GET / HTTP/1.1", 400, HOST),
        ("GET http://a/ HTTP/1.1", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a", 400, HOST),
        ("GET / HTTP/1.0\r\nHost: a\r\nhost: b", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: a b", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: a/b", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: u@a", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: a:b", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: a:80:80", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: a:65536", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: a%2", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: a%zz", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: [::1", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: [::g]", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: [::1]a", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: ::1", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: é", 400, HOST),
        ("GET http://a/ HTTP/1.1\r\nHost: b c", 400, HOST),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok", 417, "RFC 9110 §10.1.1"),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue, x", 417, "RFC 9110 §10.1.1"),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: a b", 400, "RFC 9110 §7.6.1"),
        ("\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a", 400, "RFC 9112 §2.2"),
    ] {
        let refusal = parse(format!("{head}\r\n\r\n").as_bytes()).err();
        assert_eq!(refusal.map(|refusal| (refusal.status, refusal.section)), Some((status, section)), "{head:?}");
    }
    let options = (0..40).map(|number| format!("x{number},")).collect::<String>();
    let many_options = parse(&with(&format!("Connection: {options}"))).err();
    assert_eq!(many_options.map(|refusal| refusal.status), Some(400));
}

#[test]
fn limits_hold_for_whole_and_for_growing_heads() {
    let refused = |bytes: &[u8]| parse(bytes).map(|_| ()).map_err(|refusal| refusal.status);
    let many = |count: usize| (0..count).map(|number| format!("x{number}: y\r\n")).collect::<String>();
    assert_eq!(accepted(with(many(199).trim_end())).1.len(), 200);
    assert_eq!(refused(&with(many(200).trim_end())), Err(431));
    assert_eq!(refused(&with(many(400).trim_end())), Err(431));
    // Not plain, so that the other way through the lines is taken.
    assert_eq!(refused(&with(&many(199).replace("\r\n", "\n"))), Ok(()));
    assert_eq!(refused(&with(&many(200).replace("\r\n", "\n"))), Err(431));
    let large = "y".repeat(32 * 1024);
    assert_eq!(refused(&with(&format!("x: {}", &large[..32 * 1024 - 40]))), Ok(()));
    assert_eq!(refused(&with(&format!("x: {large}"))), Err(431));
    assert_eq!(refused(format!("GET / HTTP/1.1\r\nx: {large}").as_bytes()), Err(431));
    assert_eq!(refused(format!("GET / HTTP/1.1\r\nx: {}", &large[..30_000]).as_bytes()), Ok(()));
    assert_eq!(refused(format!("GET /{}", &large[..20_000]).as_bytes()), Err(414));
    assert_eq!(refused(large.as_bytes()), Err(501));
    assert_eq!(refused(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), Err(400));
}

#[test]
fn limits_may_be_anything_that_a_flag_may_say() {
    let parse = |bytes: &[u8], head, fields| {
        let mut list = Fields::default();
        head::request(bytes, &HeadLimits::new(head, fields), &mut list)
            .map(|request| request.map(|_| list.len()))
            .map_err(|refusal| refusal.status)
    };
    let lines =
        |count: usize, value: &str| (0..count).map(|number| format!("x{number}: {value}\r\n")).collect::<String>();
    let head = with(lines(9999, "y").trim_end());
    assert_eq!(parse(&head, 1 << 20, 10_000), Ok(Some(10_000)));
    assert_eq!(parse(&head, 1 << 20, 9999), Err(431));
    assert_eq!(parse(&head[..head.len() - 1], 1 << 20, 10_000), Ok(None));
    let head = with(lines(20, &"z".repeat(50_000)).trim_end());
    assert_eq!(parse(&head, 1 << 20, 200), Ok(Some(21)));
    assert_eq!(parse(&head, head.len() - 1, 200), Err(431));
    assert_eq!(parse(&head, head.len(), 200), Ok(Some(21)));
    assert_eq!(parse(&with(&"a: b\r\n".repeat(10)), 1024, 10), Err(431));
    assert_eq!(parse(format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "p".repeat(600)).as_bytes(), 1024, 10), Err(414));
}

#[test]
fn answers_above_a_limit_say_which() {
    let limits = HeadLimits::new(1024, 10);
    let exceeded = |lines: &str| {
        let bytes = format!("HTTP/1.1 200 OK\r\n{lines}");
        let refusal =
            head::response(bytes.as_bytes(), Method::Get, false, &limits, &mut Fields::default()).unwrap_err();
        assert_eq!(refusal.status, 502);
        limits.exceeded(&refusal)
    };
    let large = Some("the worker's head has more than 1024 bytes: raise --max-head".to_owned());
    assert_eq!(exceeded(&format!("a: {}\r\n\r\n", "b".repeat(1024))), large);
    assert_eq!(exceeded(&format!("a: {}", "b".repeat(1024))), large);
    let many = Some("the worker's head has more than 10 fields: raise --max-fields".to_owned());
    assert_eq!(exceeded(&("a: b\r\n".repeat(11) + "\r\n")), many);
    assert_eq!(exceeded(&"a: b\r\n".repeat(30)), many);
    assert_eq!(exceeded("a : b\r\n\r\n"), None);
}

#[test]
fn well_formed_heads_are_framed() {
    for (lines, framing) in [
        ("a: b", Framing::None),
        ("Content-Length: 0", Framing::None),
        ("Content-Length: 007", Framing::Length(7)),
        ("content-length:\t 7 \t", Framing::Length(7)),
        ("Content-Length: 9223372036854775807", Framing::Length(i64::MAX as u64)),
        ("Transfer-Encoding: chunked", Framing::Chunked),
        ("TRANSFER-ENCODING: Chunked", Framing::Chunked),
        ("Connection: Content-Length\r\nContent-Length: 7", Framing::Length(7)),
        ("a:\r\nb: \u{e9}\r\nc: d\te\r\n!#$%&'*+-.^_`|~09azAZ: x", Framing::None),
    ] {
        assert_eq!(accepted(with(lines)).0.framing, framing, "{lines:?}");
    }
    for host in [
        "",
        "a",
        "A.b-c_d~e",
        "1.2.3.4:80",
        "[::1]",
        "[::ffff:1.2.3.4]:65535",
        "a:",
        "%41b",
        "[v1.a:b]",
        "x!$&'()*+,;=",
    ] {
        let (request, _) = accepted(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(request.authority.len(), host.len(), "{host}");
    }
}

#[test]
fn request_lines_in_all_forms_are_read() {
    let cases: [(&str, Method, Form, &str, &str); 11] = [
        ("GET / HTTP/1.1", Method::Get, Form::Origin, "/", "h"),
        ("GET //a//b?c=/d?e&{}|\\^\"<> HTTP/1.1", Method::Get, Form::Origin, "//a//b?c=/d?e&{}|\\^\"<>", "h"),
        ("HEAD /a HTTP/1.9", Method::Head, Form::Origin, "/a", "h"),
        ("PUT /a HTTP/1.1", Method::Put, Form::Origin, "/a", "h"),
        ("PATCH /a HTTP/1.1", Method::Patch, Form::Origin, "/a", "h"),
        ("get /a HTTP/1.1", Method::Other, Form::Origin, "/a", "h"),
        ("M-SEARCH /a HTTP/1.1", Method::Other, Form::Origin, "/a", "h"),
        ("OPTIONS * HTTP/1.1", Method::Options, Form::Asterisk, "*", "h"),
        ("GET http://B:80/c?d HTTP/1.1", Method::Get, Form::Absolute, "/c?d", "B:80"),
        ("GET HTTPS://[::1]?d HTTP/1.1", Method::Get, Form::Absolute, "?d", "[::1]"),
        ("DELETE http://b HTTP/1.1", Method::Delete, Form::Absolute, "", "b"),
    ];
    for (line, method, form, path, authority) in cases {
        let bytes = format!("\r\n\n{line}\r\nHost: h\r\n\r\nrest").into_bytes();
        let (request, _) = accepted(&bytes);
        assert_eq!((request.method, request.target.form, request.version), (method, form, Version::Http11), "{line}");
        let texts = [request.target.path, request.authority].map(|span| String::from_utf8_lossy(span.of(&bytes)));
        assert_eq!((&*texts[0], &*texts[1]), (path, authority), "{line}");
        assert_eq!(request.len, bytes.len() - 4);
    }
    let bytes = b"GET http://a?b HTTP/1.0\nHost:\n\n";
    assert_eq!(accepted(bytes).0.target.path_bytes(bytes), b"/");
}

#[test]
fn persistence_and_expectations_follow_the_version() {
    let flags = |version: &str, lines: &str| {
        let (request, _) = accepted(format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n"));
        (request.keep_alive, request.expect_continue, request.websocket)
    };
    const SWITCH: &str = "Upgrade: h2c, WebSocket\r\nConnection: keep-alive, Upgrade\r\n";
    assert_eq!(flags("1.1", ""), (true, false, false));
    assert_eq!(flags("1.0", ""), (false, false, false));
    assert_eq!(flags("1.1", "Connection: foo, CLOSE\r\n"), (false, false, false));
    assert_eq!(flags("1.0", "Connection: Keep-Alive\r\n"), (true, false, false));
    assert_eq!(flags("1.0", "Connection: keep-alive\r\nConnection: close\r\n"), (false, false, false));
    assert_eq!(flags("1.1", "Expect: 100-Continue\r\nContent-Length: 1\r\n"), (true, true, false));
    assert_eq!(flags("1.1", "Expect: 100-continue\r\n"), (true, false, false));
    assert_eq!(flags("1.0", "Expect: 100-continue\r\nContent-Length: 1\r\n"), (false, false, false));
    assert_eq!(flags("1.1", SWITCH), (true, false, true));
    assert_eq!(flags("1.0", SWITCH), (true, false, false));
    assert_eq!(flags("1.1", "Upgrade: websocket\r\n"), (true, false, false));
    assert_eq!(flags("1.1", &format!("{SWITCH}Content-Length: 1\r\n")), (true, false, false));
}

#[test]
fn every_prefix_of_a_head_asks_for_more() {
    let head = b"\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX: \xe9\r\n\r\n";
    for end in 0..head.len() {
        assert!(matches!(parse(&head[..end]), Ok(None)), "{end}");
    }
    let (request, fields) = accepted(head);
    assert_eq!((request.len, fields.len()), (head.len(), 3));
    assert_eq!(fields.find_name(head, "x"), Some(&b"\xe9"[..]));
}

#[test]
fn the_search_finds_the_end_in_any_split() {
    for head in ["\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.0\n\n", "GET / HTTP/1.0\r\na: b\n\r\n"] {
        for step in 1..head.len() {
            let mut search = HeadSearch::new();
            let mut worth = Vec::new();
            let ends = (step..head.len()).step_by(step).chain([head.len()]);
            for end in ends {
                if search.scan(&head.as_bytes()[..end]) {
                    worth.push(end);
                }
            }
            assert_eq!(worth.last(), Some(&head.len()), "{head:?} by {step}");
            assert!(worth.len() <= 2, "once for the first line and once for the end: {worth:?}");
        }
    }
    let mut search = HeadSearch::new();
    let endless = vec![b'a'; 64 * 1024];
    let tries = |search: &mut HeadSearch| (1..endless.len()).filter(|end| search.scan(&endless[..*end])).count();
    assert_eq!(tries(&mut search), 11, "at each 4 KiB, then at each quarter more");
}

#[test]
fn hostile_answers_are_refused() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
        "HTTP/1.1 200 OK\r\nContent-Length: x",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, identity",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked",
        "HTTP/1.1 304 OK\r\nContent-Length: 5, 5",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade",
        "HTTP/1.1 200 O\0K",
        "HTTP/1.1 200 O\rK",
        "HTTP/1.1 200 OK\r\na: b\0",
        "HTTP/1.1 200 OK\r\na: b\rc",
        "HTTP/1.1 200 OK\r\na: b\r\n c: d",
        "HTTP/1.1 200 OK\r\na : b",
        "HTTP/1.1 200 OK\r\nno colon",
        "HTTP/1.1 99 OK",
        "HTTP/1.1 099 OK",
        "HTTP/1.1 600 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 2x0 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 200\tOK",
        "HTTP/2.0 200 OK",
        "HTTP/1 200 OK",
        "ICY 200 OK",
        "\r\nHTTP/1.1 200 OK",
        "garbage",
    ] {
        let refusal = answered(format!("{head}\r\n\r\n").as_bytes(), Method::Get, false).err();
        assert_eq!(refusal.map(|refusal| refusal.status), Some(502), "{head:?}");
    }
    let unasked = "HTTP/1.1 101 S\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n";
    assert_eq!(answered(unasked.as_bytes(), Method::Get, true).err().map(|refusal| refusal.status), Some(502));
    assert_eq!(answered(b"garbage without an end", Method::Get, false).err().map(|refusal| refusal.status), Some(502));
    let endless = [&b"HTTP/1.1 200 OK\r\na: "[..], &[b'b'; 33_000]].concat();
    assert_eq!(answered(&endless, Method::Get, false).err().map(|refusal| refusal.status), Some(502));
}

#[test]
fn answers_are_framed() {
    use Framing::{Chunked, Length, None as Nothing, UntilClose};
    for (head, to, framing, keep_alive) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5", Method::Get, Length(5), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0", Method::Get, Length(0), true),
        ("HTTP/1.1 200\r\nContent-Length: 5", Method::Get, Length(5), true),
        ("HTTP/1.1 200 \r\nContent-Length: 5\r\nConnection: close", Method::Get, Length(5), false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5", Method::Get, Length(5), false),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive", Method::Get, Length(5), true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", Method::Get, Chunked, true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", Method::Head, Nothing, true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5", Method::Head, Nothing, true),
        ("HTTP/1.1 200 OK", Method::Head, Nothing, true),
        ("HTTP/1.1 204 No Content", Method::Get, Nothing, true),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5", Method::Get, Nothing, true),
        ("HTTP/1.1 103 Early Hints\r\nLink: a", Method::Get, Nothing, true),
        ("HTTP/1.1 200 OK", Method::Get, UntilClose, false),
        ("HTTP/1.1 500 \u{e9}", Method::Post, UntilClose, false),
    ] {
        let bytes = format!("{head}\r\n\r\n").into_bytes();
        let (response, _) = answered(&bytes, to, false).unwrap().unwrap();
        assert_eq!((response.framing, response.keep_alive, response.len), (framing, keep_alive, bytes.len()), "{head}");
    }
}

#[test]
fn bodies_that_are_announced_and_must_not_come_are_told() {
    for (head, to, announces) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5", Method::Head, true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", Method::Head, true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0", Method::Head, false),
        ("HTTP/1.1 200 OK", Method::Head, true),
        ("HTTP/1.1 404 Not Found\r\nETag: a", Method::Head, true),
        ("HTTP/1.1 204 No Content", Method::Head, false),
        ("HTTP/1.1 304 Not Modified\r\nETag: a", Method::Head, false),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5", Method::Get, true),
        ("HTTP/1.1 304 Not Modified\r\nETag: a", Method::Get, false),
        ("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked", Method::Get, true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5", Method::Get, false),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked", Method::Get, false),
        ("HTTP/1.1 200 OK", Method::Get, false),
    ] {
        let (response, _) = answered(format!("{head}\r\n\r\n").as_bytes(), to, false).unwrap().unwrap();
        assert_eq!(response.announces_body, announces, "{head}");
    }
}

#[test]
fn what_workers_say_about_themselves_is_read() {
    let read = |head: &str| answered(format!("{head}\r\n\r\n").as_bytes(), Method::Get, true).unwrap().unwrap().0;
    assert!(read("HTTP/1.1 503 x\r\nRip-Worker-Busy: 1").busy);
    assert!(read("HTTP/1.1 503 x\r\nRip-Worker-Draining: 1").draining);
    assert!(!read("HTTP/1.1 200 x\r\nRip-Worker-Busy: 1").busy);
    assert!(!read("HTTP/1.1 503 x\r\nRip-Worker-Busy: 0").busy);
    assert!(
        read("HTTP/1.1 200 x\r\nRip-No-Log: 1").logged.silent && !read("HTTP/1.1 200 x\r\nRip-No-Log: 0").logged.silent
    );
    let mark = read("HTTP/1.1 200 x\r\nRip-Mark:  a b ").logged.mark;
    assert_eq!(mark.of(b"HTTP/1.1 200 x\r\nRip-Mark:  a b "), b"a b");
    assert!(read("HTTP/1.1 200 x\r\nX-Accel-Buffering: no").unbuffered);
    assert!(read("HTTP/1.1 200 x\r\nContent-Type: Text/Event-Stream; charset=utf-8").event_stream);
    assert!(!read("HTTP/1.1 200 x\r\nContent-Type: text/event-streams").event_stream);
    assert_eq!(read("HTTP/1.1 200 x\r\nKeep-Alive: max=3, Timeout=72").keep_alive_timeout, Some(72));
    assert_eq!(read("HTTP/1.1 200 x\r\nKeep-Alive: timeout=x").keep_alive_timeout, None);
    let switched = read("HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade");
    assert_eq!((switched.framing, switched.keep_alive), (Framing::None, false));
}

const FORWARD: Forward<'_> = Forward {
    peer: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
    unix: false,
    local_port: 8080,
    https: false,
    request_id: b"id1",
    start: Start::new(1_700_000_000_012_345),
    front: None,
    keep_alive: true,
    open: false,
    edits: None,
    identity: b"",
};
const ADDED: &str = "X-Forwarded-For: 192.0.2.10\r\nX-Real-IP: 192.0.2.10\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: h\r\n\
     X-Forwarded-Port: 8080\r\nX-Request-Id: id1\r\nX-Request-Start: t=1700000000.012\r\nVia: 1.1 production_server\r\n";

fn forwarded(head: &str, forward: &Forward<'_>) -> String {
    let (request, fields) = accepted(head);
    let mut room = vec![MaybeUninit::uninit(); rewrite::request_room(&request, &fields, forward)];
    let mut out = Writer::new(&mut room);
    rewrite::request(&mut out, head.as_bytes(), &request, &fields, forward);
    if forward.open {
        rewrite::request_end(&mut out, Framing::Length(12));
    }
    String::from_utf8_lossy(out.written()).into_owned()
}

#[test]
fn requests_are_forwarded_without_what_ends_here() {
    let dropped = "Connection: keep-alive, X-Mine, Host, Content-Length\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\n\
         Proxy-Connection: close\r\nTE: trailers\r\nHTTP2-Settings: x\r\nUpgrade: h2c\r\nExpect: 100-continue\r\n\
         X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 1\r\n\
         X-Forwarded-Ssl: on\r\nX-Real-IP: 6.6.6.6\r\nX-Request-Start: t=1\r\nX-Request-Id: theirs\r\nForwarded: for=6.6.6.6\r\n\
         X_Forwarded_For: 6.6.6.6\r\nProxy: evil\r\n";
    let kept = "Cookie: a=1\r\nCookie: b=2\r\nContent-Length: 3\r\nVia: 1.0 first\r\n";
    let head = format!("POST /a HTTP/1.1\r\nHost: h\r\n{dropped}{kept}\r\n");
    assert_eq!(forwarded(&head, &FORWARD), format!("POST /a HTTP/1.1\r\nHost: h\r\n{kept}{ADDED}\r\n"));
    let mixed = format!("POST /a HTTP/1.1\r\n{dropped}Host: h\r\n{kept}{dropped}\r\n")
        .replace("Connection: keep-alive", "TE: x, ");
    assert_eq!(forwarded(&mixed, &FORWARD).matches("X-Mine").count(), 2, "without Connection nothing is named away");
}

#[test]
fn requests_are_normalised() {
    for (head, line_and_host) in [
        ("GET / HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n"),
        ("\r\nGET /?a HTTP/1.9\r\nHost: h\r\n\r\n", "GET /?a HTTP/1.1\r\nHost: h\r\n"),
        ("GET / HTTP/1.1\nHost:h\na:\n\n", "GET / HTTP/1.1\r\nHost: h\r\na: \r\n"),
        ("GET http://h/b?c HTTP/1.1\r\nHost: other\r\n\r\n", "GET /b?c HTTP/1.1\r\nHost: h\r\n"),
        ("GET http://h?c HTTP/1.1\r\nHost: h\r\n\r\n", "GET /?c HTTP/1.1\r\nHost: h\r\n"),
        ("GET http://h HTTP/1.1\r\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n"),
        ("OPTIONS http://h HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: h\r\n"),
        ("OPTIONS http://h/ HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS / HTTP/1.1\r\nHost: h\r\n"),
        ("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: h\r\n"),
        (
            "OPTIONS / HTTP/1.1\r\nMax-Forwards: 3\r\nHost: h\r\n\r\n",
            "OPTIONS / HTTP/1.1\r\nHost: h\r\nMax-Forwards: 2\r\n",
        ),
        ("GET / HTTP/1.1\r\nMax-Forwards: 3\r\nHost: h\r\n\r\n", "GET / HTTP/1.1\r\nMax-Forwards: 3\r\nHost: h\r\n"),
    ] {
        assert_eq!(forwarded(head, &FORWARD), format!("{line_and_host}{ADDED}\r\n"), "{head:?}");
    }
    let without_host = ADDED.replace("X-Forwarded-Host: h\r\n", "").replace("1.1", "1.0");
    let old = forwarded("GET / HTTP/1.0\r\n\r\n", &FORWARD);
    assert_eq!(old, format!("GET / HTTP/1.1\r\nHost: \r\n{without_host}\r\n"));
}

/// What a worker gets of a head from a peer that is trusted, with everything else that is.
fn from_trusted(head: &str, forward: &Forward<'_>, trust: &str) -> String {
    let (_, fields) = accepted(head);
    let (mut origin, mut peers) = (Origin::default(), Peers::default());
    peers.add(trust).unwrap();
    origin.read(head.as_bytes(), &fields, (!forward.unix).then_some(forward.peer), &peers);
    assert!(origin.trusted);
    let front = Front { origin: Some(&origin), ..forward.front.unwrap_or_default() };
    forwarded(head, &Forward { front: Some(front), ..*forward })
}

#[test]
fn trusted_proxies_are_believed() {
    let head = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nX-Forwarded-For: 10.0.0.1\r\n\
         X-Forwarded-Proto: https\r\nX-Forwarded-Prefix: /p\r\nForwarded: for=10.0.0.1\r\nX-Real-IP: 6.6.6.6\r\n\
         X-Request-Id: theirs\r\nX-Request-Start: t=12\r\nTraceparent: 00-1-2-03\r\nX_Forwarded_For: 6.6.6.6\r\n\r\n";
    let written = from_trusted(head, &FORWARD, "10.0.0.0/8,192.0.2.10");
    let told = "X-Forwarded-For: 203.0.113.9, 10.0.0.1, 192.0.2.10\r\nX-Real-IP: 203.0.113.9\r\nX-Forwarded-Proto: https\r\n\
         X-Forwarded-Host: h\r\nX-Forwarded-Port: 443\r\nX-Request-Id: id1\r\nVia: 1.1 production_server\r\n";
    let kept = "X-Forwarded-Prefix: /p\r\nX-Request-Start: t=12\r\nTraceparent: 00-1-2-03\r\n";
    assert_eq!(written, format!("GET / HTTP/1.1\r\nHost: h\r\n{kept}{told}\r\n"));
    // Of what a client has said nothing is left.
    let lines = "Forwarded: for=6.6.6.6;host=evil.example\r\nForwarded: for=203.0.113.9;proto=https\r\nX-Forwarded-Ssl: off\r\n\
         X-Forwarded-Proto: https\r\n";
    let written = from_trusted(&format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n"), &FORWARD, "192.0.2.10");
    assert_eq!(written.matches("Forwarded: for=203.0.113.9;proto=https;host=\"h\", for=192.0.2.10\r\n").count(), 1);
    assert!(!written.contains("6.6.6.6") && !written.contains("evil") && !written.contains("Ssl"), "{written}");
    // What was not said is ours.
    let written = from_trusted("GET / HTTP/1.1\r\nHost: h\r\n\r\n", &FORWARD, "192.0.2.10");
    assert_eq!(written, format!("GET / HTTP/1.1\r\nHost: h\r\n{ADDED}\r\n"));
    // From others traces pass as well, unless it is known who may say so.
    let traced = "GET / HTTP/1.1\r\nHost: h\r\ntraceparent: 00-1-2-03\r\ntracestate: a=b\r\n\r\n";
    assert_eq!(forwarded(traced, &FORWARD).matches("\r\ntrace").count(), 2);
    assert_eq!(
        forwarded(traced, &Forward { front: Some(Front::default()), ..FORWARD }).matches("\r\ntrace").count(),
        0
    );
}

#[test]
fn forwarded_is_written_when_it_is_asked_for() {
    let front = Front { writes_forwarded: true, ..Front::default() };
    let forward = Forward { front: Some(front), ..FORWARD };
    let head = |lines: &str| format!("GET / HTTP/1.1\r\nHost: h:81\r\n{lines}\r\n");
    let line = |written: String| {
        let lines: Vec<&str> = written.lines().filter_map(|line| line.strip_prefix("Forwarded: ")).collect();
        assert_eq!(lines.len(), 1, "{written}");
        lines[0].to_owned()
    };
    let spoofed = head("Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 6.6.6.6\r\n");
    assert_eq!(line(forwarded(&spoofed, &forward)), "for=192.0.2.10;proto=http;host=\"h:81\"");
    let lines = "X-Forwarded-For: ::, 10.0.0.1\r\nX-Forwarded-Proto: HTTPS\r\nX-Forwarded-Host: shop.example\r\n";
    let written = line(from_trusted(&head(lines), &forward, "10.0.0.0/8,192.0.2.10"));
    let expected = "for=\"[::]\";proto=https;host=\"shop.example\", for=10.0.0.1, for=192.0.2.10";
    assert_eq!(written, expected);
    let unix = Forward { unix: true, ..forward };
    assert_eq!(
        line(from_trusted(&head(lines), &unix, "10.0.0.0/8,unix")),
        expected.replace(", for=192.0.2.10", ", for=unknown")
    );
    // The room is enough for the shortest entries, which become the longest.
    let many = format!("X-Forwarded-For: {}\r\n", "::,".repeat(40));
    assert_eq!(line(from_trusted(&head(&many), &forward, "::/0,192.0.2.10")).matches("for=\"[::]\"").count(), 32);
}

#[test]
fn addresses_and_connections_are_told() {
    const GET: &str = "GET / HTTP/1.1\r\nHost: h\r\n\r\n";
    let mapped = Ipv4Addr::new(10, 0, 255, 1).to_ipv6_mapped();
    for (peer, text) in [
        (IpAddr::V6(Ipv6Addr::LOCALHOST), "::1"),
        (IpAddr::V6(mapped), "10.0.255.1"),
        (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 0xffff)), "2001:db8:1:2:3:4:5:ffff"),
    ] {
        let written = forwarded(GET, &Forward { peer, ..FORWARD });
        assert!(written.contains(&format!("\r\nX-Forwarded-For: {text}\r\nX-Real-IP: {text}\r\n")), "{written}");
    }
    let unix = forwarded(GET, &Forward { unix: true, local_port: 0, https: true, keep_alive: false, ..FORWARD });
    assert!(!unix.contains("-For:") && !unix.contains("Real-IP") && !unix.contains("-Port:"), "{unix}");
    assert!(unix.contains("X-Forwarded-Proto: https\r\n") && unix.ends_with("\r\nConnection: close\r\n\r\n"), "{unix}");
    let websocket =
        "GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: k\r\n\r\n";
    let tunnel = forwarded(websocket, &FORWARD);
    assert!(tunnel.contains("\r\nSec-WebSocket-Key: k\r\n"), "{tunnel}");
    assert!(tunnel.ends_with("\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"), "{tunnel}");
    let chunked = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n";
    assert!(forwarded(chunked, &FORWARD).ends_with("\r\nTransfer-Encoding: chunked\r\n\r\n"));
    let open = forwarded(chunked, &Forward { open: true, ..FORWARD });
    assert!(open.ends_with("\r\nContent-Length: 12\r\n\r\n") && !open.contains("hunked"), "{open}");
}

fn passed(head: &str, to: Method, answer: &Answer<'_>) -> String {
    let (response, fields) = answered(head.as_bytes(), to, true).unwrap().unwrap();
    let mut room = vec![MaybeUninit::uninit(); rewrite::response_room(&response, &fields, answer)];
    let mut out = Writer::new(&mut room);
    rewrite::response(&mut out, head.as_bytes(), &response, &fields, answer);
    String::from_utf8_lossy(out.written()).into_owned()
}

#[test]
fn answers_are_passed_without_what_ends_here() {
    let date = date(0);
    let same = Answer {
        date: &date,
        request_id: b"id1",
        client: Version::Http11,
        keep_alive: true,
        framing: Rewritten::Same,
        upgrade: false,
        edits: None,
    };
    const OURS: &str = "X-Request-Id: id1\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
    let dropped = "Connection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nTE: x\r\nUpgrade: h2c\r\nX-Request-Id: w\r\n\
         Rip-Worker-Busy: 1\r\nRip-Worker-Draining: 1\r\nRip-No-Log: 1\r\nRip-Mark: m\r\nProxy-Connection: x\r\n";
    let head = format!(
        "HTTP/1.1 200 OK\r\nServer: w\r\n{dropped}X-Accel-Buffering: no\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 5\r\n\r\n"
    );
    let lines = "Server: w\r\nX-Accel-Buffering: no\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n";
    let rewritten =
        |framing, client, keep_alive| passed(&head, Method::Get, &Answer { framing, client, keep_alive, ..same });
    assert_eq!(
        rewritten(Rewritten::Same, Version::Http11, true),
        format!("HTTP/1.1 200 OK\r\n{lines}Content-Length: 5\r\n{OURS}\r\n")
    );
    assert_eq!(
        rewritten(Rewritten::Chunked, Version::Http11, false),
        format!("HTTP/1.1 200 OK\r\n{lines}{OURS}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
    );
    assert_eq!(
        rewritten(Rewritten::Length(9), Version::Http10, true),
        format!("HTTP/1.1 200 OK\r\n{lines}{OURS}Content-Length: 9\r\nConnection: keep-alive\r\n\r\n")
    );
    assert_eq!(
        rewritten(Rewritten::UntilClose, Version::Http10, false),
        format!("HTTP/1.1 200 OK\r\n{lines}{OURS}\r\n")
    );
    for (head, to, expected) in [
        (
            "HTTP/1.0 200\nDate: x\nContent-Length: 5\n\n",
            Method::Get,
            "HTTP/1.1 200 \r\nDate: x\r\nContent-Length: 5\r\nX-Request-Id: id1\r\n\r\n".to_owned(),
        ),
        (
            "HTTP/1.1 304 N\r\nContent-Length: 5\r\n\r\n",
            Method::Get,
            format!("HTTP/1.1 304 N\r\nContent-Length: 5\r\n{OURS}\r\n"),
        ),
        ("HTTP/1.1 204 N\r\nContent-Length: 5\r\n\r\n", Method::Get, format!("HTTP/1.1 204 N\r\n{OURS}\r\n")),
        ("HTTP/1.1 200 O\r\nTransfer-Encoding: chunked\r\n\r\n", Method::Head, format!("HTTP/1.1 200 O\r\n{OURS}\r\n")),
        (
            "HTTP/1.1 200 O\r\nTransfer-Encoding: CHUNKED\r\n\r\n",
            Method::Get,
            format!("HTTP/1.1 200 O\r\n{OURS}Transfer-Encoding: chunked\r\n\r\n"),
        ),
    ] {
        assert_eq!(passed(head, to, &same), expected, "{head:?}");
    }
    let switch = "HTTP/1.1 101 S\r\nUpgrade: WebSocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: k\r\n\r\n";
    assert_eq!(
        passed(switch, Method::Get, &Answer { upgrade: true, ..same }),
        format!("HTTP/1.1 101 S\r\nSec-WebSocket-Accept: k\r\n{OURS}Connection: upgrade\r\nUpgrade: websocket\r\n\r\n")
    );
}

#[test]
fn interim_answers_are_passed() {
    let head = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\nConnection: x\r\nContent-Length: 3\r\n\r\n";
    let (response, fields) = answered(head, Method::Get, false).unwrap().unwrap();
    let mut room = vec![MaybeUninit::uninit(); rewrite::informational_room(&response, &fields)];
    let mut out = Writer::new(&mut room);
    rewrite::informational(&mut out, head, &response, &fields);
    assert_eq!(out.written(), b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
    assert!(fields.find(Kind::ContentLength).is_some());
}

/// The lines that an access line shows are found again in the head that a worker gets, however many lines before them are dropped.
#[test]
fn what_is_logged_is_known_without_a_search() {
    let head = "\r\nGET /a HTTP/1.1\r\nConnection: keep-alive\r\nhost: h\r\nX-Real-IP: 1\r\nUSER-AGENT:  curl \r\nVia: 1.1 a\r\n\r\n";
    let (request, fields) = accepted(head);
    let dropped = Kinds::of(&[Kind::Connection, Kind::XRealIp]);
    let shown = fields.shown(request.copy.start, dropped).unwrap();
    let rewritten = b"GET /a HTTP/1.1\r\nhost: h\r\nUSER-AGENT:  curl \r\nVia: 1.1 a\r\nX-Real-IP: 2\r\n\r\n";
    assert_eq!(shown.of(rewritten), Some([&b"h"[..], b"", b"curl"]));
    assert_eq!(fields.shown_of(head.as_bytes()).map(|[host, ..]| host), Some(&b"h"[..]));
    for other in [&b""[..], b"GET / HTTP/1.1\r\nhost: h\r\nUSER-AGENT:  curl \r\n\r\n", &rewritten[..40]] {
        assert_eq!(shown.of(other), None);
    }
    let (request, fields) = accepted("GET / HTTP/1.0\r\nUser-Agent: curl\r\n\r\n");
    assert!(fields.shown(request.copy.start, Kinds::default()).is_none());
}
