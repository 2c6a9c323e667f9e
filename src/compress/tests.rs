//! The decision: what is compressed for whom, and what the head says then.

use super::*;
use crate::http::fields::Fields;
use crate::http::head::{self, HeadLimits};

fn settings(change: impl FnOnce(&mut Compressing)) -> Arc<Compressing> {
    let mut settings = Compressing { codings: Some(Coding::ALL.to_vec()), ..Compressing::default() };
    change(&mut settings);
    Arc::new(settings)
}

fn lines(edits: &Option<Edits>) -> String {
    edits.as_ref().map_or_else(String::new, |edits| String::from_utf8_lossy(edits.lines()).into_owned())
}

/// The wish of a request with these fields, and what becomes of its fields.
fn wish(settings: &Arc<Compressing>, start: &str, asked: &str) -> (Wish, String) {
    let text = format!("{start}\r\nHost: a\r\n{asked}\r\n");
    let mut fields = Fields::new(100);
    let limits = HeadLimits::new(16 * 1024, 100);
    let request = head::request(text.as_bytes(), &limits, &mut fields).unwrap().unwrap();
    let (wish, edits) = Wish::read(settings, text.as_bytes(), &request, &fields, None);
    (wish, lines(&edits))
}

/// What is said of an answer with these fields: the coding, and the lines that come.
fn judged(wish: &Wish, method: Method, answer: &str) -> (Option<Coding>, String) {
    let text = format!("HTTP/1.1 {answer}\r\n");
    let mut fields = Fields::new(100);
    let limits = HeadLimits::new(16 * 1024, 100);
    let response = head::response(text.as_bytes(), method, false, &limits, &mut fields).unwrap().unwrap();
    let judged = wish.judge(text.as_bytes(), &response, &fields, None);
    (judged.coding, lines(&judged.edits))
}

const ALL: &str = "Accept-Encoding: gzip, deflate, br, zstd\r\n";
const GET: &str = "GET / HTTP/1.1";
const VARY: &str = "Vary: Accept-Encoding\r\n";

#[test]
fn the_answer_decides_whether_it_varies_and_the_client_what_it_gets() {
    use Coding::{Brotli, Gzip, Zstd};
    let html = "200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: 5000\r\n";
    let settings = settings(|_| ());
    for (start, asked, coding) in [
        (GET, ALL, Some(Zstd)),
        (GET, "Accept-Encoding: gzip\r\n", Some(Gzip)),
        (GET, "Accept-Encoding: gzip;q=0.8, br\r\n", Some(Brotli)),
        (GET, "Accept-Encoding: gzip;q=0.8\r\nAccept-Encoding: br\r\n", Some(Brotli)),
        (GET, "Accept-Encoding: zstd;q=0, *;q=0.1\r\n", Some(Brotli)),
        (GET, "Accept-Encoding: identity\r\n", None),
        (GET, "Accept-Encoding: identity, gzip;q=0.5\r\n", None),
        (GET, "Accept-Encoding: deflate\r\n", None),
        (GET, "Accept-Encoding: \r\n", None),
        (GET, "", None),
        ("POST / HTTP/1.1", &format!("{ALL}Content-Length: 0\r\n"), Some(Zstd)),
        ("GET / HTTP/1.0", ALL, None),
        (GET, &format!("{ALL}Cache-Control: max-age=0, no-transform\r\n"), None),
        (GET, &format!("{ALL}Cookie: a=b\r\n"), Some(Zstd)),
    ] {
        let (wish, changed) = wish(&settings, start, asked);
        let (found, lines) = judged(&wish, Method::Get, html);
        assert_eq!(found, coding, "{start} {asked}");
        let coded = coding.map_or_else(String::new, |coding| format!("Content-Encoding: {}\r\n", coding.name()));
        assert_eq!((lines, changed.as_str()), (format!("{VARY}{coded}"), ""), "{start} {asked}");
    }
    let (wish, _) = wish(&settings, "HEAD / HTTP/1.1", ALL);
    assert_eq!(judged(&wish, Method::Head, html), (None, VARY.to_owned()), "as the answer to GET would vary");
}

#[test]
fn what_is_not_worth_it_or_must_not_be_changed_is_left_alone() {
    let settings = settings(|_| ());
    let (wish, _) = wish(&settings, GET, ALL);
    for (answer, expected) in [
        ("200 OK\r\nContent-Type: application/json\r\nContent-Length: 512\r\n", true),
        ("200 OK\r\nContent-Type: application/json\r\nContent-Length: 511\r\n", false),
        ("200 OK\r\nContent-Type: application/json\r\nContent-Length: 0\r\n", false),
        ("200 OK\r\nContent-Type: application/problem+json\r\nTransfer-Encoding: chunked\r\n", true),
        ("200 OK\r\nContent-Type: TEXT/HTML\r\n", true),
        ("404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 5000\r\n", true),
        ("500 Oh\r\nContent-Type: text/html\r\nContent-Length: 5000\r\n", true),
        (
            "206 Partial Content\r\nContent-Type: text/html\r\nContent-Length: 5000\r\nContent-Range: bytes 0-4999/9999\r\n",
            false,
        ),
        ("416 Range\r\nContent-Type: text/html\r\nContent-Length: 5000\r\nContent-Range: bytes */9999\r\n", false),
        ("204 No Content\r\nContent-Type: text/html\r\n", false),
        ("200 OK\r\nContent-Type: image/png\r\nContent-Length: 5000\r\n", false),
        ("200 OK\r\nContent-Type: image/svg+xml\r\nContent-Length: 5000\r\n", true),
        ("200 OK\r\nContent-Type: application/wasm\r\nContent-Length: 5000\r\n", true),
        ("200 OK\r\nContent-Type: font/woff2\r\nContent-Length: 5000\r\n", false),
        ("200 OK\r\nContent-Type: text/event-stream\r\n", false),
        ("200 OK\r\nContent-Length: 5000\r\n", false),
        ("200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\nContent-Encoding: br\r\n", false),
        ("200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\nContent-Encoding: identity\r\n", false),
        ("200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\nCache-Control: public, No-Transform\r\n", false),
    ] {
        let (coding, lines) = judged(&wish, Method::Get, answer);
        assert_eq!(coding.is_some(), expected, "{answer}");
        assert_eq!(lines.contains("Vary"), expected, "{answer}");
    }
}

#[test]
fn what_is_set_holds() {
    let html = "200 OK\r\nContent-Type: text/html\r\nContent-Length: 100\r\n";
    let events = "200 OK\r\nContent-Type: text/event-stream\r\n";
    let cookie = "200 OK\r\nContent-Type: text/html\r\nSet-Cookie: a=b\r\n";
    let coded = |settings: &Arc<Compressing>, asked: &str, answer: &str| {
        judged(&wish(settings, GET, asked).0, Method::Get, answer).0.is_some()
    };
    assert!(coded(&settings(|settings| settings.min = 100), ALL, html));
    assert!(coded(&settings(|settings| settings.events = true), ALL, events));
    let types = settings(|settings| settings.types = vec!["text/css".to_owned(), "image/*".to_owned()]);
    for (media_type, expected) in [("text/css; charset=utf-8", true), ("image/png", true), ("text/html", false)] {
        assert_eq!(coded(&types, ALL, &format!("200 OK\r\nContent-Type: {media_type}\r\n")), expected, "{media_type}");
    }
    let impersonal = settings(|settings| settings.personal = false);
    for (asked, answer, expected) in [
        (ALL, cookie, false),
        (ALL, "200 OK\r\nContent-Type: text/html\r\n", true),
        (&format!("{ALL}Cookie: a=b\r\n"), "200 OK\r\nContent-Type: text/html\r\n", false),
        (&format!("{ALL}Authorization: Basic Og==\r\n"), "200 OK\r\nContent-Type: text/html\r\n", false),
    ] {
        assert_eq!(coded(&impersonal, asked, answer), expected, "{asked} {answer}");
    }
    assert!(coded(&settings(|_| ()), ALL, cookie));
    let only = settings(|settings| settings.codings = Some(vec![Coding::Gzip, Coding::Zstd]));
    assert_eq!(
        judged(&wish(&only, GET, ALL).0, Method::Get, cookie).0,
        Some(Coding::Gzip),
        "in the order that was given"
    );
}

#[test]
fn vary_is_said_once() {
    let (wish, _) = wish(&settings(|_| ()), GET, ALL);
    let answer = |vary: &str| {
        let text = format!("200 OK\r\nContent-Type: text/html\r\nVary: {vary}\r\nContent-Length: 5000\r\n");
        judged(&wish, Method::Get, &text).1.contains(VARY)
    };
    assert!(!answer("accept-encoding") && !answer("Cookie, Accept-Encoding") && !answer("*"));
    assert!(answer("Cookie") && answer("X-Accept-Encoding"));
}

#[test]
fn entity_tags_get_the_coding_and_lose_it_again() {
    let settings = settings(|_| ());
    let answer = "200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\nETag: ";
    let (first, _) = wish(&settings, GET, ALL);
    let tag = |tag: &str| judged(&first, Method::Get, &format!("{answer}{tag}\r\n")).1;
    assert!(tag("\"abc\"").ends_with("ETag: \"abc-zstd\"\r\n"));
    assert!(tag("\"\"").ends_with("ETag: \"-zstd\"\r\n"));
    for weak in ["W/\"abc\"", "abc", "\"abc"] {
        assert!(!tag(weak).contains("ETag"), "{weak}");
    }
    for (asked, expected) in [
        ("\"abc-zstd\"", Some("\"abc\"")),
        ("\"abc-gzip\"", Some("\"abc\"")),
        ("\"a\", \"b-br\" , W/\"c-gzip\"", Some("\"a\", \"b\" , W/\"c\"")),
        ("\"a,-b-gzip\"", Some("\"a,-b\"")),
        ("\"abc\"", None),
        ("*", None),
        ("\"gzip\"", None),
        ("\"-gzip\"", Some("\"\"")),
        ("\"abc-gzip", None),
    ] {
        for name in ["If-None-Match", "If-Match"] {
            let (_, lines) = wish(&settings, GET, &format!("{ALL}{name}: {asked}\r\n"));
            let expected = expected.map_or_else(String::new, |value| format!("{name}: {value}\r\n"));
            assert_eq!(lines, expected, "{asked}");
        }
    }
    // The answer names the tag that its client knows.
    let (again, _) = wish(&settings, GET, &format!("{ALL}If-None-Match: \"abc-gzip\"\r\n"));
    let (coding, lines) = judged(&again, Method::Get, "304 Not Modified\r\nETag: \"abc\"\r\n");
    assert_eq!((coding, lines), (None, format!("{VARY}ETag: \"abc-gzip\"\r\n")));
    let (plain, _) = wish(&settings, GET, &format!("{ALL}If-None-Match: \"abc\"\r\n"));
    assert_eq!(judged(&plain, Method::Get, "304 Not Modified\r\nETag: \"abc\"\r\n").1, VARY);
}

#[test]
fn digests_of_something_else_do_not_stay() {
    let (wish, _) = wish(&settings(|_| ()), GET, ALL);
    let text = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\nAccept-Ranges: bytes\r\n\r\n";
    let mut fields = Fields::new(100);
    let limits = HeadLimits::new(16 * 1024, 100);
    let response = head::response(text.as_bytes(), Method::Get, false, &limits, &mut fields).unwrap().unwrap();
    let edits = wish.judge(text.as_bytes(), &response, &fields, None).edits.unwrap();
    for name in ["accept-ranges", "content-md5", "digest", "content-digest", "repr-digest"] {
        assert!(edits.removes(name.as_bytes()), "{name}");
    }
    assert!(!edits.removes(b"content-type"));
}
