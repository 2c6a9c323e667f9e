//! Answers that are compressed on their way: every body that comes back is the one that was sent, whatever its form, its pieces and its
//! end, and whoever does not want it gets it as it is.

use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::tls::SUFFIX;
use crate::support::{Answer, Client, Incoming, Server, Worker, folder, on_every_backend_and_tls, until};

on_every_backend_and_tls! {
    every_form_of_a_body_comes_back
    long_bodies_come_back_to_slow_readers
    what_does_not_fit_into_memory_is_compressed_before_it_is_spooled
    what_comes_in_pieces_is_not_held_back
    an_answer_that_is_cut_does_not_look_whole
    whoever_comes_when_all_encoders_are_at_work_gets_it_plain
    tags_of_apps_stay_theirs
    what_a_route_changes_counts
    one_connection_has_coded_and_plain_answers
}

const CODINGS: [&str; 3] = ["zstd", "br", "gzip"];

/// Text that shrinks, in which no two places are the same.
fn text(bytes: usize) -> Vec<u8> {
    let mut text: Vec<u8> = (0..bytes / 7 + 1).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
    text.truncate(bytes);
    text
}

fn decoded(answer: &Answer) -> Vec<u8> {
    let (mut plain, body) = (Vec::new(), &answer.body[..]);
    match answer.field("content-encoding") {
        Some("gzip") => flate2::read::GzDecoder::new(body).read_to_end(&mut plain).map(|_| ()),
        Some("zstd") => zstd::stream::copy_decode(body, &mut plain),
        Some("br") => brotli::Decompressor::new(body, 4096).read_to_end(&mut plain).map(|_| ()),
        None => {
            plain.extend_from_slice(body);
            Ok(())
        }
        Some(other) => panic!("{other}"),
    }
    .unwrap();
    plain
}

fn ask(client: &mut Client, path: &str, more: &str) -> Answer {
    client.ask(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n{more}\r\n"))
}

fn accepting(coding: &str) -> String {
    format!("Accept-Encoding: {coding}\r\n")
}

/// Sends a body of so many bytes by its length, in chunks of that size, or up to the end of the connection.
fn send_body(incoming: &mut Incoming, form: &str, body: &[u8], piece: usize) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n";
    match form {
        "length" => {
            incoming.send(format!("{head}Content-Length: {}\r\n\r\n", body.len()));
            body.chunks(piece).all(|piece| incoming.send(piece));
        }
        "chunks" => {
            incoming.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n"));
            body.chunks(piece)
                .all(|piece| incoming.send([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()));
            incoming.send("0\r\n\r\n");
        }
        _ => {
            incoming.send(format!("{head}\r\n"));
            body.chunks(piece).all(|piece| incoming.send(piece));
            incoming.finish();
        }
    }
}

/// Answers `/FORM/BYTES/PIECE`.
fn worker() -> Worker {
    Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            let path = head.split(' ').nth(1).unwrap_or_default();
            let mut parts = path.split('/').skip(1);
            let form = parts.next().unwrap_or_default().to_owned();
            let mut number = || parts.next().and_then(|number| number.parse().ok()).unwrap_or(1000);
            let (bytes, piece) = (number(), number());
            send_body(incoming, &form, &text(bytes), piece);
            if form == "close" {
                return;
            }
        }
    })
}

fn every_form_of_a_body_comes_back(backend: &str) {
    let worker = worker();
    let server = Server::before(backend, &worker.url, &["--compress=on"]);
    for coding in CODINGS {
        for form in ["length", "chunks", "close"] {
            for (bytes, piece) in [(512, 512), (2000, 2000), (2049, 100), (20_000, 1500), (300_000, 65_536)] {
                let mut client = Client::of(&server);
                let answer = ask(&mut client, &format!("/{form}/{bytes}/{piece}"), &accepting(coding));
                assert!(answer.whole);
                assert_eq!(answer.field("content-encoding"), Some(coding), "{form} {bytes}");
                assert_eq!((answer.field("vary"), answer.field("content-length")), (Some("Accept-Encoding"), None));
                assert!((1..=32).contains(&answer.field("x-padding").unwrap().len()));
                assert!(decoded(&answer) == text(bytes), "{coding} {form} {bytes} {piece}");
                assert!(bytes < 2000 || answer.body.len() < bytes / 2, "{} of {bytes}", answer.body.len());
                client.expect_alive();
            }
        }
    }
    // Short ones, and clients that take nothing.
    let mut client = Client::of(&server);
    for (path, fields) in [("/length/511/511", accepting("gzip")), ("/length/5000/5000", String::new())] {
        let answer = ask(&mut client, path, &fields);
        assert_eq!(answer.field("content-encoding"), None);
        assert_eq!(answer.field("vary"), (path == "/length/5000/5000").then_some("Accept-Encoding"));
        assert!(answer.field("content-length").is_some());
    }
    let old = Client::of(&server).ask("GET /chunks/5000/100 HTTP/1.0\r\nAccept-Encoding: gzip\r\n\r\n");
    assert_eq!((old.field("content-encoding"), old.body.len()), (None, 5000));
    client.send("HEAD /length/5000/5000 HTTP/1.1\r\nHost: test\r\nAccept-Encoding: gzip\r\n\r\n");
    let head = client.next_answer(true);
    assert_eq!((head.field("content-encoding"), head.field("vary")), (Some("gzip"), Some("Accept-Encoding")));
    assert_eq!(head.field("content-length"), None);
    client.expect_alive();
    let status = server.status();
    for coding in CODINGS {
        assert_eq!(status[format!("compressed_{coding}")], 15, "{status}");
    }
}

fn long_bodies_come_back_to_slow_readers(backend: &str) {
    let worker = worker();
    let server = Server::before(backend, &worker.url, &["--compress=on"]);
    for coding in CODINGS {
        let mut client = Client::of(&server);
        client.send(format!("GET /chunks/4000000/50000 HTTP/1.1\r\nHost: test\r\n{}\r\n", accepting(coding)));
        (0..20).for_each(|_| client.sip());
        let answer = client.answer();
        assert!(answer.whole && decoded(&answer) == text(4_000_000), "{coding}");
    }
}

fn what_does_not_fit_into_memory_is_compressed_before_it_is_spooled(backend: &str) {
    // Bytes that do not shrink, more than the kernel takes; where a relay stands before the client, that takes as much again.
    let mut state = 88_172_645_463_325_252_u64;
    let length = if backend.ends_with(SUFFIX) { 24 << 20 } else { 12 << 20 };
    let body: Vec<u8> = (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    let sent = body.clone();
    let worker = Worker::new(move |incoming| {
        while let Some((head, _)) = incoming.request() {
            send_body(incoming, if head.contains(" /chunks") { "chunks" } else { "length" }, &sent, 50_000);
        }
    });
    let server = Server::before(backend, &worker.url, &["--compress=zstd", "--buffer-bytes=2MiB"]);
    for path in ["/chunks", "/length"] {
        let mut client = Client::of(&server);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept-Encoding: zstd\r\n\r\n"));
        until("it is spooled, and the worker free", || {
            let status = server.status();
            status["spool_bytes"].as_u64() > Some(0) && status["busy"] == 0
        });
        let answer = client.answer();
        assert_eq!(answer.field("content-encoding"), Some("zstd"));
        assert!(answer.whole && decoded(&answer) == body, "{path}");
        client.expect_alive();
    }
}

fn what_comes_in_pieces_is_not_held_back(backend: &str) {
    let turn = std::sync::Arc::new(AtomicUsize::new(0));
    let told = turn.clone();
    let worker = Worker::new(move |incoming| {
        while let Some((head, _)) = incoming.request() {
            let kind = if head.contains("/events") { "text/event-stream" } else { "text/plain" };
            incoming.send(format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"));
            for number in 0..5 {
                until("it is read", || told.load(Ordering::SeqCst) == number);
                incoming.send(format!("f\r\ndata: event {number}\n\n\r\n"));
            }
            incoming.send("0\r\n\r\n");
        }
    });
    let server = Server::before(backend, &worker.url, &["--compress=on", "--compress-events=on"]);
    for path in ["/events", "/page"] {
        for coding in CODINGS {
            turn.store(0, Ordering::SeqCst);
            let mut client = Client::of(&server);
            client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\n{}\r\n", accepting(coding)));
            let head = client.head().unwrap();
            assert!(head.contains(&format!("Content-Encoding: {coding}")), "{head}");
            let mut body = Vec::new();
            for number in 0..5 {
                // Each event has come, whole, before the next is sent.
                let expected: String = (0..=number).map(|number| format!("data: event {number}\n\n")).collect();
                while so_far(coding, &body) != expected.as_bytes() {
                    let line = client.line().expect("the answer goes on");
                    let size = usize::from_str_radix(line.trim(), 16).unwrap();
                    body.extend_from_slice(&client.take(size));
                    client.take(2);
                }
                turn.store(number + 1, Ordering::SeqCst);
            }
        }
    }
}

/// What can be read of a body that has not ended.
fn so_far(coding: &str, body: &[u8]) -> Vec<u8> {
    let mut read: Box<dyn Read> = match coding {
        "gzip" => Box::new(flate2::read::GzDecoder::new(body)),
        "zstd" => Box::new(zstd::stream::read::Decoder::new(body).unwrap()),
        _ => Box::new(brotli::Decompressor::new(body, 4096)),
    };
    let (mut plain, mut byte) = (Vec::new(), [0]);
    while let Ok(1) = read.read(&mut byte) {
        plain.push(byte[0]);
    }
    plain
}

fn an_answer_that_is_cut_does_not_look_whole(backend: &str) {
    let worker = Worker::new(|incoming| {
        if incoming.request().is_some() {
            incoming.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 100000\r\n\r\n");
            incoming.send(text(50_000));
        }
    });
    let server = Server::before(backend, &worker.url, &["--compress=on"]);
    for coding in CODINGS {
        let mut client = Client::of(&server);
        client.send(format!("GET / HTTP/1.1\r\nHost: test\r\n{}\r\n", accepting(coding)));
        assert!(client.head().unwrap().contains("Content-Encoding"));
        let (rest, _) = client.rest();
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{coding}");
    }
}

fn whoever_comes_when_all_encoders_are_at_work_gets_it_plain(backend: &str) {
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            incoming.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n");
            if head.contains("/held") {
                incoming.send("3\r\nabc\r\n");
                return incoming.drain();
            }
            incoming.send("3\r\nabc\r\n0\r\n\r\n");
        }
    });
    let server = Server::before(backend, &worker.url, &["--compress=on", "--concurrency=100"]);
    let held: Vec<Client> = (0..16)
        .map(|_| {
            let mut client = Client::of(&server);
            client.send("GET /held HTTP/1.1\r\nHost: test\r\nAccept-Encoding: br\r\n\r\n");
            assert!(client.head().unwrap().contains("Content-Encoding: br"));
            client
        })
        .collect();
    let mut client = Client::of(&server);
    let answer = ask(&mut client, "/", &accepting("br"));
    assert_eq!((answer.field("content-encoding"), answer.text().as_str()), (None, "abc"));
    assert_eq!(answer.field("vary"), Some("Accept-Encoding"));
    assert_eq!(server.status()["compress_busy"], 1);
    // Whoever takes another coding gets that.
    for (accepts, coding) in
        [("br, gzip;q=0.5", Some("gzip")), ("br, zstd;q=0.2, gzip;q=0", Some("zstd")), ("br, *;q=0", None)]
    {
        let answer = ask(&mut client, "/", &accepting(accepts));
        assert_eq!((answer.field("content-encoding"), decoded(&answer)), (coding, b"abc".to_vec()), "{accepts}");
    }
    assert_eq!(server.status()["compress_busy"], 2);
    drop(held);
    until("an encoder is free again", || {
        ask(&mut client, "/", &accepting("br")).field("content-encoding") == Some("br")
    });
}

fn tags_of_apps_stay_theirs(backend: &str) {
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            let tag = if head.contains(" /own ") { "\"v1-gzip\"" } else { "\"v1\"" };
            let knows = |line: &str| line.to_lowercase().starts_with("if-none-match:") && line.contains(tag);
            if head.lines().any(knows) || head.contains("If-Modified-Since") {
                incoming.send(format!("HTTP/1.1 304 Not Modified\r\nETag: {tag}\r\n\r\n"));
            } else {
                let kind = if head.contains(" /own ") { "image/png" } else { "text/plain" };
                let fields =
                    format!("Content-Type: {kind}\r\nETag: {tag}\r\nAccept-Ranges: bytes\r\nContent-Length: 600");
                incoming.send([format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n").as_bytes(), &text(600)].concat());
            }
        }
    });
    let server = Server::before(backend, &worker.url, &["--compress=on"]);
    let mut client = Client::of(&server);
    let all = [("zstd", "\"v1-zstd\""), ("br", "\"v1-br\""), ("gzip", "\"v1-gzip\""), ("identity", "\"v1\"")];
    for (coding, tag) in all {
        let answer = ask(&mut client, "/", &accepting(coding));
        assert_eq!((answer.field("etag"), answer.field("accept-ranges").is_some()), (Some(tag), coding == "identity"));
        for (known, named) in all {
            let again = ask(&mut client, "/", &format!("{}If-None-Match: {named}\r\n", accepting(coding)));
            // What is known of another representation says nothing of this one; but a plain one may have been sent in its place.
            let status = if known == coding || known == "identity" { 304 } else { 200 };
            let expected = if status == 304 { named } else { tag };
            assert_eq!((again.status, again.field("etag")), (status, Some(expected)), "{coding} {known}");
            assert_eq!(again.field("vary"), Some("Accept-Encoding"));
        }
        let unknown = ask(&mut client, "/", &format!("{}If-Modified-Since: now\r\n", accepting(coding)));
        let weak = if coding == "identity" { "\"v1\"" } else { "W/\"v1\"" };
        assert_eq!((unknown.status, unknown.field("etag")), (304, Some(weak)));
        let own = ask(&mut client, "/own", &format!("{}If-None-Match: \"v1-gzip\"\r\n", accepting(coding)));
        // It may cost a 304.
        let status = if coding == "gzip" { 200 } else { 304 };
        assert_eq!((own.status, own.field("etag")), (status, Some("\"v1-gzip\"")), "{coding}");
    }
}

fn what_a_route_changes_counts(backend: &str) {
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            let fields = "Content-Type: text/plain\r\nVary: Accept-Encoding\r\nTransfer-Encoding: chunked";
            let digest = "Content-Digest: sha-256=:AA==:\r\nServer-Timing: a;dur=1\r\n";
            let conditions = head.to_lowercase().matches("if-none-match").count();
            incoming.send(format!(
                "HTTP/1.1 200 OK\r\n{fields}\r\n\r\n4\r\nhas \r\n1\r\n{conditions}\r\n0\r\n{digest}\r\n"
            ));
        }
    });
    let routes = ["vary", "frozen", "removed", "plain"]
        .map(|name| {
            let change = match name {
                "vary" => "response_fields = { set = { Vary = \"Origin\" } }",
                "frozen" => "response_fields = { set = { Cache-Control = \"no-transform\" } }",
                "removed" => "request_fields = { remove = [\"If-None-Match\"] }",
                _ => "compress = \"off\"",
            };
            format!("[[routes]]\nmatch = {{ path = \"/{name}\" }}\napp = \"app\"\n{change}\n")
        })
        .concat();
    let text = format!("[apps.app]\nupstream = [\"{}\"]\ncompress = \"on\"\n{routes}", worker.url);
    let folder = folder();
    let path = folder.path().join("site.toml");
    std::fs::write(&path, text).unwrap();
    let server = Server::start(backend, &["-f", path.to_str().unwrap()]);
    let mut client = Client::of(&server);
    for (path, coded, has) in [("/vary", true, 1), ("/frozen", false, 1), ("/removed", true, 0), ("/plain", false, 1)] {
        let answer = ask(&mut client, path, &format!("{}If-None-Match: \"a-gzip\"\r\n", accepting("gzip")));
        assert_eq!(answer.field("content-encoding").is_some(), coded, "{path}");
        assert_eq!(decoded(&answer), format!("has {has}").into_bytes(), "{path}");
        assert!(answer.all("vary").iter().any(|value| value.contains("Accept-Encoding")), "{path}: {}", answer.head);
        let trailers = &answer.trailers;
        assert!(trailers.contains("Server-Timing"), "{trailers}");
        assert_eq!(trailers.contains("Digest"), !coded, "{path}");
    }
}

fn one_connection_has_coded_and_plain_answers(backend: &str) {
    let worker = worker();
    let server = Server::before(backend, &worker.url, &["--compress=zstd", "--compress=gzip", "--compress-min=100B"]);
    let mut client = Client::of(&server);
    let asked = ["gzip", "identity", "zstd", "br", "gzip;q=0", "gzip"];
    let requests: String = asked
        .iter()
        .map(|coding| format!("GET /length/3000/3000 HTTP/1.1\r\nHost: test\r\n{}\r\n", accepting(coding)))
        .collect();
    client.send(requests);
    for coding in asked {
        let answer = client.answer();
        let expected = Some(coding).filter(|coding| ["gzip", "zstd"].contains(coding));
        assert_eq!(answer.field("content-encoding"), expected);
        assert!(decoded(&answer) == text(3000));
    }
}
