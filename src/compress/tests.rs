//! The decision: what is compressed for whom, and what the head says then.

use super::*;
use crate::config::route::FieldEdits;
use crate::http::head::{self, HeadLimits};

fn settings(change: impl FnOnce(&mut Compressing)) -> Arc<Compressing> {
    let mut settings = Compressing { codings: Some(Coding::ALL.to_vec()), ..Compressing::default() };
    change(&mut settings);
    Arc::new(settings)
}

fn lines(edits: &Option<Edits>) -> String {
    edits.as_ref().map_or_else(String::new, |edits| String::from_utf8_lossy(edits.lines()).into_owned())
}

fn edits(remove: &[&str], set: &[(&str, &str)]) -> Option<Edits> {
    let set = set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Edits::of_response(&FieldEdits { remove: remove.iter().map(|name| (*name).to_owned()).collect(), set })
}

/// The wish of a request with these fields on a route that changes them so, and what becomes of its fields.
fn wish_edited(settings: &Arc<Compressing>, start: &str, asked: &str, edits: &Option<Edits>) -> (Wish, String) {
    let text = format!("{start}\r\nHost: a\r\n{asked}\r\n");
    let mut fields = Fields::new(100);
    let limits = HeadLimits::new(16 * 1024, 100);
    let request = head::request(text.as_bytes(), &limits, &mut fields).unwrap().unwrap();
    let wish = Wish::read(settings, text.as_bytes(), &request, &fields, edits.as_ref());
    let lines = lines(&wish.edits().cloned());
    (wish, lines)
}

fn wish(settings: &Arc<Compressing>, start: &str, asked: &str) -> (Wish, String) {
    wish_edited(settings, start, asked, &None)
}

/// What is said of an answer with these fields: the coding, and what changes, on a route that changes its fields so.
fn judged_edited(wish: &Wish, method: Method, answer: &str, edits: &Option<Edits>) -> (Option<Coding>, Option<Edits>) {
    let text = format!("HTTP/1.1 {answer}\r\n");
    let mut fields = Fields::new(100);
    let limits = HeadLimits::new(16 * 1024, 100);
    let response = head::response(text.as_bytes(), method, false, &limits, &mut fields).unwrap().unwrap();
    let judged = wish.judge(text.as_bytes(), &response, &fields, edits.as_ref());
    (judged.coding, judged.edits)
}

fn judged(wish: &Wish, method: Method, answer: &str) -> (Option<Coding>, String) {
    let (coding, edits) = judged_edited(wish, method, answer, &None);
    (coding, lines(&edits))
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
    // The head alone is as that of GET, but nothing is compressed for it.
    let (wish, _) = wish(&settings, "HEAD / HTTP/1.1", ALL);
    for length in ["Content-Length: 5000\r\n", ""] {
        let answer = format!("200 OK\r\nContent-Type: text/html\r\n{length}ETag: \"a\"\r\n");
        let (coding, edits) = judged_edited(&wish, Method::Head, &answer, &None);
        assert!(coding.is_none() && edits.as_ref().unwrap().removes(b"content-length"));
        assert_eq!(lines(&edits), format!("{VARY}Content-Encoding: zstd\r\nETag: \"a-zstd\"\r\n"));
    }
    let short = "200 OK\r\nContent-Type: text/html\r\nContent-Length: 100\r\n";
    assert_eq!(judged(&wish, Method::Head, short), (None, String::new()));
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
fn a_part_varies_where_the_whole_does() {
    let (wish, _) = wish(&settings(|_| ()), GET, ALL);
    for (fields, expected) in [
        ("Content-Type: text/html\r\nContent-Range: bytes 0-4999/9999\r\n", VARY),
        ("Content-Type: text/html\r\nContent-Range: bytes 0-99/9999\r\n", VARY),
        ("Content-Type: text/html\r\nContent-Range: bytes 0-99/*\r\n", VARY),
        ("Content-Type: multipart/byteranges; boundary=a\r\n", VARY),
        ("Content-Type: text/html\r\nContent-Range: bytes 0-99/511\r\n", ""),
        ("Content-Type: image/png\r\nContent-Range: bytes 0-4999/9999\r\n", ""),
        ("Content-Type: text/html\r\nContent-Range: bytes 0-9/9999\r\nContent-Encoding: gzip\r\n", ""),
        ("Content-Type: text/html\r\nContent-Range: bytes 0-9/9999\r\nVary: Accept-Encoding\r\n", ""),
    ] {
        let answer = format!("206 Partial Content\r\n{fields}ETag: \"a\"\r\nContent-Length: 10\r\n");
        assert_eq!(judged(&wish, Method::Get, &answer), (None, expected.to_owned()), "{fields}");
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
fn entity_tags_get_the_coding_and_apps_see_their_own() {
    let settings = settings(|_| ());
    let answer = "200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\nETag: ";
    let (first, _) = wish(&settings, GET, ALL);
    let tag = |tag: &str| judged(&first, Method::Get, &format!("{answer}{tag}\r\n")).1;
    assert!(tag("\"abc\"").ends_with("ETag: \"abc-zstd\"\r\n"));
    assert!(tag("\"\"").ends_with("ETag: \"-zstd\"\r\n"));
    for weak in ["W/\"abc\"", "abc", "\"abc"] {
        assert!(!tag(weak).contains("ETag"), "{weak}");
    }
    let put = "PUT / HTTP/1.1";
    for (start, asked, alone, beside) in [
        (GET, "\"abc-zstd\"", "\"abc\"", "\"abc\", \"abc-zstd\""),
        // Another representation than this request's own.
        (GET, "\"abc-gzip\"", "", ""),
        ("HEAD / HTTP/1.1", "\"abc-zstd\"", "\"abc\"", "\"abc\", \"abc-zstd\""),
        // Who changes something may have seen any.
        (put, "\"abc-gzip\"", "\"abc\", \"abc-gzip\"", "\"abc\", \"abc-gzip\""),
        // Weak ones are named by If-None-Match alone.
        (GET, "W/\"abc-zstd\"", "W/\"abc\"", ""),
        (put, "W/\"abc-gzip\"", "W/\"abc\", W/\"abc-gzip\"", ""),
        (GET, "\"a\", \"b-zstd\" , W/\"c-zstd\"", "\"a\", \"b\" , W/\"c\"", "\"a\", \"b\", \"b-zstd\" , W/\"c-zstd\""),
        (GET, "\"a,-b-zstd\"", "\"a,-b\"", "\"a,-b\", \"a,-b-zstd\""),
        (GET, "\"-zstd\"", "\"\"", "\"\", \"-zstd\""),
        (GET, "\"abc\"", "", ""),
        (GET, "*", "", ""),
        (GET, "\"zstd\"", "", ""),
        (GET, "\"abc-zstd", "", ""),
        (GET, &format!("\"{}-zstd\"", "a".repeat(MOST_TAGS)), "", ""),
    ] {
        for (name, value) in [("If-None-Match", alone), ("If-Match", beside)] {
            let (_, lines) = wish(&settings, start, &format!("{ALL}{name}: {asked}\r\n"));
            let expected = if value.is_empty() { String::new() } else { format!("{name}: {value}\r\n") };
            assert_eq!(lines, expected, "{start} {asked}");
        }
    }
    let (_, lines) = wish(&settings, GET, "If-None-Match: \"abc-zstd\"\r\n");
    assert_eq!(lines, "", "who takes no coding has none of our tags");
}

#[test]
fn the_tag_of_a_304_is_that_of_what_the_client_has() {
    let settings = settings(|_| ());
    for (asked, own, expected) in [
        ("If-None-Match: \"abc-zstd\"\r\n", "\"abc\"", "ETag: \"abc-zstd\"\r\n"),
        ("If-None-Match: W/\"abc-zstd\"\r\n", "\"abc\"", "ETag: \"abc-zstd\"\r\n"),
        ("If-None-Match: \"abc\", \"abc-zstd\"\r\n", "\"abc\"", "ETag: \"abc-zstd\"\r\n"),
        ("If-None-Match: \"old-gzip\"\r\nIf-None-Match: \"abc-zstd\"\r\n", "\"abc\"", "ETag: \"abc-zstd\"\r\n"),
        ("If-None-Match: \"abc\"\r\n", "\"abc\"", ""),
        ("If-None-Match: W/\"abc\"\r\n", "\"abc\"", ""),
        // A tag of the app's own that ends like one of ours.
        ("If-None-Match: \"abc-zstd\"\r\n", "\"abc-zstd\"", ""),
        // Nobody knows what the client has.
        ("If-Modified-Since: Thu, 01 Jan 1970 00:00:00 GMT\r\n", "\"abc\"", "ETag: W/\"abc\"\r\n"),
        ("If-None-Match: *\r\n", "\"abc\"", "ETag: W/\"abc\"\r\n"),
        ("If-None-Match: W/\"abc\"\r\n", "W/\"abc\"", ""),
    ] {
        let (wish, _) = wish(&settings, GET, &format!("{ALL}{asked}"));
        let answer = format!("304 Not Modified\r\nETag: {own}\r\n");
        assert_eq!(judged(&wish, Method::Get, &answer), (None, format!("{VARY}{expected}")), "{asked}");
    }
    let (plain, _) = wish(&settings, GET, "If-None-Match: \"abc-gzip\"\r\n");
    assert_eq!(judged(&plain, Method::Get, "304 Not Modified\r\nETag: \"abc-gzip\"\r\n").1, VARY);
}

#[test]
fn what_counts_is_what_leaves() {
    let settings = settings(|_| ());
    let (asked, _) = wish(&settings, GET, ALL);
    let html = "200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\n";
    let varies = format!("{html}Vary: Accept-Encoding\r\nETag: \"app\"\r\n");
    let coded = "Content-Encoding: zstd\r\n";
    for (answer, remove, set, expected) in [
        (
            &varies[..],
            &[][..],
            &[("Vary", "Origin")][..],
            Some(format!("Vary: Origin\r\n{VARY}{coded}ETag: \"app-zstd\"\r\n")),
        ),
        (&varies, &["Vary", "ETag"], &[], Some(format!("{VARY}{coded}"))),
        (html, &[], &[("etag", "\"route\"")], Some(format!("{VARY}{coded}ETag: \"route-zstd\"\r\n"))),
        (html, &[], &[("Accept-Ranges", "bytes"), ("X-A", "b")], Some(format!("X-A: b\r\n{VARY}{coded}"))),
        (html, &[], &[("Cache-Control", "no-transform")], None),
        (html, &[], &[("Content-Encoding", "br")], None),
        (html, &[], &[("Content-Type", "image/png")], None),
        (&format!("{html}Cache-Control: no-transform\r\n"), &["Cache-Control"], &[], Some(format!("{VARY}{coded}"))),
        // What is for this connection alone says nothing.
        (
            &format!("{html}Connection: Vary, ETag\r\nVary: Accept-Encoding\r\nETag: \"a\"\r\n"),
            &[],
            &[],
            Some(format!("{VARY}{coded}")),
        ),
    ] {
        let edits = edits(remove, set);
        let (coding, changed) = judged_edited(&asked, Method::Get, answer, &edits);
        assert_eq!(coding.is_some(), expected.is_some(), "{answer} {set:?}");
        assert_eq!(changed.is_some().then(|| lines(&changed)), expected, "{answer} {set:?}");
    }
    // The conditions that an app gets are those of its route.
    let conditions = format!("{ALL}If-None-Match: \"a-zstd\"\r\nIf-Match: \"b-zstd\"\r\n");
    let removed = edits(&["If-None-Match", "X-B"], &[("If-Match", "\"c-zstd\""), ("X-A", "b")]);
    let (_, changed) = wish_edited(&settings, GET, &conditions, &removed);
    assert_eq!(changed, "X-A: b\r\nIf-Match: \"c\", \"c-zstd\"\r\n");
    let nominated = format!("{ALL}Connection: If-None-Match\r\nIf-None-Match: \"a-zstd\"\r\n");
    assert_eq!(wish(&settings, GET, &nominated).1, "");
}

#[test]
fn what_is_true_of_other_bytes_does_not_stay() {
    let (wish, _) = wish(&settings(|_| ()), GET, ALL);
    let answer = "200 OK\r\nContent-Type: text/html\r\nContent-Length: 5000\r\nAccept-Ranges: bytes\r\n";
    let edits = judged_edited(&wish, Method::Get, answer, &None).1.unwrap();
    for name in UNTRUE {
        assert!(edits.removes(name.to_ascii_lowercase().as_bytes()), "{name}");
    }
    assert!(!edits.removes(b"content-type"));
    let trailers = b"X-Sum: 1\r\ncontent-digest: a\r\nRepr-Digest : b\r\nServer-Timing: a;dur=1\r\n";
    assert_eq!(true_trailers(trailers), b"X-Sum: 1\r\nServer-Timing: a;dur=1\r\n");
}

/// What a client accepts, and what it gets.
const ACCEPTS: [(&str, Option<&str>); 12] = [
    ("", None),
    ("gzip", Some("gzip")),
    ("gzip;q=0", None),
    ("gzip;q=0.000", None),
    ("gzip;q=00", None),
    ("gzip;q=.0", None),
    ("gzip; Q = 0", None),
    ("br;q=0.5, gzip;q=0.6", Some("gzip")),
    ("gzip, br, zstd", Some("zstd")),
    ("br, *;q=0", Some("br")),
    ("*", Some("zstd")),
    ("identity, br;q=0.9", None),
];
const METHODS: [(&str, Method); 3] = [("GET", Method::Get), ("HEAD", Method::Head), ("POST", Method::Post)];
const TYPES: [(&str, bool); 4] =
    [("text/html; charset=utf-8", true), ("application/json", true), ("image/png", false), ("", false)];
const LENGTHS: [(&str, bool); 3] =
    [("Content-Length: 511", false), ("Content-Length: 512", true), ("Transfer-Encoding: chunked", true)];
const STATUSES: [(u16, bool); 6] = [(200, true), (201, true), (404, true), (206, false), (204, false), (304, false)];
const CONTROLS: [(&str, bool); 3] = [("", true), ("max-age=60, No-Transform", false), ("max-age=60", true)];
const TAGS: [(&str, bool); 3] = [("", false), ("\"v\"", true), ("W/\"v\"", false)];

/// All that decides, with all else, against rules that are written another way.
#[test]
fn the_decision_is_the_one_of_the_table() {
    let settings = settings(|_| ());
    let sizes = [ACCEPTS.len(), METHODS.len(), TYPES.len(), LENGTHS.len(), STATUSES.len(), CONTROLS.len(), TAGS.len()];
    for case in 0..sizes.iter().product() {
        let mut rest: usize = case;
        let [accept, method, kind, length, status, control, tag] = sizes.map(|size| {
            let digit = rest % size;
            rest /= size;
            digit
        });
        let ((accept, best), (start, method)) = (ACCEPTS[accept], METHODS[method]);
        let ((media_type, shrinks), (length, is_long)) = (TYPES[kind], LENGTHS[length]);
        let ((status, has_body), (control, may_change), (tag, is_strong)) =
            (STATUSES[status], CONTROLS[control], TAGS[tag]);
        let mut answer = format!("{status} A\r\n{length}\r\n");
        for (name, value) in [("Content-Type", media_type), ("Cache-Control", control), ("ETag", tag)] {
            if !value.is_empty() {
                answer += &format!("{name}: {value}\r\n");
            }
        }
        let is_worth_it = shrinks && is_long && has_body && may_change;
        let mut changes = String::new();
        // What it is a part of is of no known length.
        let is_part_of_such = status == 206 && shrinks && may_change;
        if is_worth_it || status == 304 || is_part_of_such {
            changes += VARY;
        }
        if let Some(coding) = best.filter(|_| is_worth_it) {
            changes += &format!("Content-Encoding: {coding}\r\n");
            if is_strong {
                changes += &format!("ETag: \"v-{coding}\"\r\n");
            }
        } else if status == 304 && is_strong && best.is_some() {
            changes += "ETag: W/\"v\"\r\n";
        }
        let coding = best.filter(|_| is_worth_it && method != Method::Head);
        let (wish, _) = wish(&settings, &format!("{start} / HTTP/1.1"), &format!("Accept-Encoding: {accept}\r\n"));
        let (found, lines) = judged(&wish, method, &answer);
        assert_eq!((found.map(Coding::name), lines), (coding, changes), "{accept} {start} {answer}");
    }
}
