//! What is refused, over the wire: the status, the connection's end, and that the worker got nothing of it.

use crate::support::{Client, Ending, Server, Worker, on_every_backend_and_tls, pattern, text, until};

on_every_backend_and_tls! {
    malformed_heads_are_refused
    targets_and_versions_are_refused
    heads_that_are_too_large_are_refused
    malformed_bodies_never_reach_a_worker
    refusals_hold_however_the_bytes_arrive
    a_body_that_breaks_while_it_streams_is_visibly_incomplete
    a_body_that_breaks_behind_an_early_answer_ends_it
    trailers_that_would_mislead_are_dropped
    a_refused_client_that_still_sends_reads_the_refusal
    a_client_that_is_watched_reads_its_refusal_and_may_go_on
    a_slow_head_is_refused
    a_slow_body_is_refused
    a_body_found_too_large_at_its_end_closes
    a_refusal_does_not_overtake_earlier_answers
}

/// What stands behind every refused message: it must never be answered.
const BEHIND: &str = "GET /behind HTTP/1.1\r\nHost: test\r\n\r\n";

/// A head of a GET with these lines, behind a Host.
fn get(lines: &str) -> String {
    format!("GET /refused HTTP/1.1\r\nHost: test\r\n{lines}\r\n")
}

/// A POST with these lines and this body.
fn post(lines: &str, body: &str) -> String {
    format!("POST /refused HTTP/1.1\r\nHost: test\r\n{lines}\r\n{body}")
}

/// Sends each message with a request behind it: one answer with the status, then the end, and nothing for the worker.
fn expect_refusals(backend: &str, cases: &[(u16, String)]) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--max-body", "4MiB"]);
    for (status, message) in cases {
        let mut client = Client::of(&server);
        client.send(format!("{message}{BEHIND}"));
        expect_refusal(&mut client, *status, message);
    }
    worker.expect_nothing("after all refusals");
    // The worker is well and still reached.
    assert_eq!(Client::of(&server).get("/fine").status, 200);
}

fn expect_refusal(client: &mut Client, status: u16, what: &str) {
    let answer = client.answer();
    let what = text(what.as_bytes());
    assert_eq!(answer.status, status, "{what}\n{}{}", answer.head, answer.text());
    assert_eq!(answer.field("connection"), Some("close"), "{what}");
    let (rest, ending) = client.rest();
    assert!(rest.is_empty(), "{what}: behind the refusal came {}", text(&rest));
    assert_eq!(ending, Ending::End, "{what}");
}

fn malformed_heads_are_refused(backend: &str) {
    let framing = [
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Content-Length: 4\r\nContent-Length: 4\r\n",
        "Content-Length: 4\r\nContent-Length: 5\r\n",
        "Content-Length: 4, 4\r\n",
        "Content-Length: +4\r\n",
        "Content-Length: -4\r\n",
        "Content-Length: 0x4\r\n",
        "Content-Length: 4 4\r\n",
        "Content-Length:\r\n",
        "Content-Length: 18446744073709551617\r\n",
        "Content-Length: 9223372036854775808\r\n",
        "Transfer-Encoding:\r\n",
        "Transfer-Encoding: ,chunked\r\n",
        "Transfer-Encoding: chunked,\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked, gzip\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked;a=b\r\n",
        "Transfer-Encoding: \"chunked\"\r\n",
        "Transfer-Encoding: \x0bchunked\r\n",
        "Transfer-Encoding: chunked\x0b\r\n",
        "Transfer-Encoding: chunked\0\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Content-Length : 4\r\n",
        "Content-Length\t: 4\r\n",
        "Content-Length: 4\r\n Transfer-Encoding: chunked\r\n",
    ];
    let lines = [
        "X: a\r\n b\r\n",
        "X: a\r\n\tb\r\n",
        " X: a\r\n",
        "X : a\r\n",
        "X\r\n",
        ": a\r\n",
        "X: a\rb\r\n",
        "X: a\r\r\n",
        "X: a\0b\r\n",
        "X: a\x01b\r\n",
        "X: a\x7fb\r\n",
        "X\0: a\r\n",
        "X(: a\r\n",
        "X\u{e9}: a\r\n",
        "Connection: a b\r\n",
        "Host: other\r\n",
    ];
    let mut cases: Vec<_> = framing.iter().map(|lines| (400, post(lines, "0\r\n\r\n"))).collect();
    cases.extend(lines.iter().map(|lines| (400, get(lines))));
    cases.push((501, post("Transfer-Encoding: gzip, chunked\r\n", "0\r\n\r\n")));
    cases.push((417, post("Content-Length: 2\r\nExpect: 200-ok\r\n", "ab")));
    cases.push((417, get("Expect: something\r\n")));
    cases.push((400, "POST /refused HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into()));
    for host in ["a b", "a/b", "a@b", "a:b", "a:99999", "[::1", "[zz]", "a:80:80", "a%zz", "a\\b", "http://a"] {
        cases.push((400, format!("GET /refused HTTP/1.1\r\nHost: {host}\r\n\r\n")));
    }
    cases.push((400, "GET /refused HTTP/1.1\r\n\r\n".into()));
    cases.push((400, "GET /refused HTTP/1.1\r\nHost : test\r\n\r\n".into()));
    expect_refusals(backend, &cases);
}

fn targets_and_versions_are_refused(backend: &str) {
    let line = |line: &str| format!("{line}\r\nHost: test\r\n\r\n");
    let malformed = [
        "GET /refused HTTP/1",
        "GET /refused HTTP/01.01",
        "GET /refused HTTP/1.10",
        "GET /refused HTTP/0.9",
        "GET /refused http/1.1",
        "GET /refused HTTP/ 1.1",
        "GET /refused HTTP/1.1 ",
        "GET /refused  HTTP/1.1",
        "GET  /refused HTTP/1.1",
        " GET /refused HTTP/1.1",
        "GET\t/refused HTTP/1.1",
        "GET /refused",
        "GET",
        "GET /re fused HTTP/1.1",
        "GET /refused#fragment HTTP/1.1",
        "GET /ref\tused HTTP/1.1",
        "GET /ref\x7fused HTTP/1.1",
        "GET /ref\0used HTTP/1.1",
        "GET /ref\u{e9}used HTTP/1.1",
        "GET refused HTTP/1.1",
        "GET * HTTP/1.1",
        "GET http:///refused HTTP/1.1",
        "GET http://a@b/refused HTTP/1.1",
        "GET http://a b/refused HTTP/1.1",
        "GET ftp://a/refused HTTP/1.1",
        "G(T /refused HTTP/1.1",
        "{\"json\": 1}",
        "\x16\x03\x01\x02\0\x01\0\x01",
    ];
    let mut cases: Vec<_> = malformed.iter().map(|text| (400, line(text))).collect();
    cases.push((505, line("GET /refused HTTP/2.0")));
    cases.push((505, line("GET /refused HTTP/3.1")));
    cases.push((505, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into()));
    cases.push((501, line("CONNECT test:80 HTTP/1.1")));
    cases.push((405, "TRACE /refused HTTP/1.1\r\nHost: test\r\nMax-Forwards: 0\r\n\r\n".into()));
    expect_refusals(backend, &cases);
}

fn heads_that_are_too_large_are_refused(backend: &str) {
    let many = |count: usize, len: usize| {
        (0..count).map(|index| format!("X-{index}: {}\r\n", "v".repeat(len))).collect::<String>()
    };
    let mut cases = vec![
        (414, format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", "p".repeat(17_000))),
        // Its line never ends.
        (414, format!("GET /{}", "p".repeat(40_000))),
        (431, get(&format!("X: {}\r\n", "v".repeat(33_000)))),
        (431, get(&many(50, 800))),
        (431, get(&many(201, 1))),
        (431, get(&many(3000, 1))),
        (501, format!("{} /refused HTTP/1.1\r\nHost: test\r\n\r\n", "M".repeat(40))),
        (400, "\r\n".repeat(40)),
        (413, post("Content-Length: 4194305\r\n", "")),
        (413, post("Content-Length: 9223372036854775807\r\n", "")),
        (413, post("Content-Length: 4194305\r\nExpect: 100-continue\r\n", "")),
        // A chunk that says how large it is need not come.
        (413, post("Transfer-Encoding: chunked\r\n", "400001\r\n")),
        (413, post("Transfer-Encoding: chunked\r\n", "7fffffffffffffff;a=b\r\n")),
        (413, post("Transfer-Encoding: chunked\r\n", "2\r\nab\r\n3fffff\r\n")),
    ];
    // A field that does not end is refused long before its sender has finished.
    cases.push((431, format!("GET / HTTP/1.1\r\nHost: test\r\nX: {}", "v".repeat(100_000))));
    expect_refusals(backend, &cases);
}

/// Bodies with a fault that are held before a worker is asked for.
fn broken_chunks() -> Vec<String> {
    let bodies = [
        "4\nabcd\r\n0\r\n\r\n",
        "4 \r\nabcd\r\n0\r\n\r\n",
        " 4\r\nabcd\r\n0\r\n\r\n",
        "0x4\r\nabcd\r\n0\r\n\r\n",
        "+4\r\nabcd\r\n0\r\n\r\n",
        "-4\r\nabcd\r\n0\r\n\r\n",
        "g\r\nabcd\r\n0\r\n\r\n",
        "\r\nabcd\r\n0\r\n\r\n",
        "4\r\nabcdX\r\n0\r\n\r\n",
        "4\r\nabcd\n0\r\n\r\n",
        "4\r\nabcd\r0\r\n\r\n",
        "4\r\nabcd0\r\n\r\n",
        "4\rabcd\r\n0\r\n\r\n",
        "ffffffffffffffff0\r\nabcd\r\n0\r\n\r\n",
        "10000000000000004\r\nabcd\r\n0\r\n\r\n",
        "8000000000000000\r\nabcd",
        "4;\r\nabcd\r\n0\r\n\r\n",
        "4;a\nb\r\nabcd\r\n0\r\n\r\n",
        "4;a=\r\nabcd\r\n0\r\n\r\n",
        "4;a=\"b\r\nabcd\r\n0\r\n\r\n",
        "4;a\x00b\r\nabcd\r\n0\r\n\r\n",
        "0\r\nX : a\r\n\r\n",
        "0\r\n X: a\r\n\r\n",
        "0\r\nX: a\r\n b\r\n\r\n",
        "0\r\nX: a\nY: b\r\n\r\n",
        "0\r\nX: a\0\r\n\r\n",
        "0\r\nX: a\r\n\n",
        "0\r\nnothing\r\n\r\n",
    ];
    let mut all: Vec<String> = bodies.iter().map(|body| (*body).to_owned()).collect();
    all.push(format!("4;{}\r\nabcd\r\n0\r\n\r\n", "e".repeat(300)));
    all.push(format!("{}4\r\nabcd\r\n0\r\n\r\n", "0".repeat(300)));
    all.push(format!("0\r\nX: {}\r\n\r\n", "t".repeat(9000)));
    all.push(format!("0\r\n{}\r\n", "X: t\r\n".repeat(100)));
    all
}

fn malformed_bodies_never_reach_a_worker(backend: &str) {
    let mut cases: Vec<_> =
        broken_chunks().iter().map(|body| (400, post("Transfer-Encoding: chunked\r\n", body))).collect();
    let whole_and_broken = format!("8000\r\n{}\r\n4\r\nabcdX", "a".repeat(0x8000));
    cases.push((400, post("Transfer-Encoding: chunked\r\n", &whole_and_broken)));
    expect_refusals(backend, &cases);
}

fn refusals_hold_however_the_bytes_arrive(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let cases = [
        post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", ""),
        get("X: a\r\n b\r\n"),
        "GET /refused#f HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
        "GET /refused HTTP/1.1\r\n\r\n".to_owned(),
        post("Transfer-Encoding: chunked\r\n", "4\r\nabcdX"),
        post("Transfer-Encoding: chunked\r\n", "4\r\nabcd\r\n0\r\nX : y\r\n\r\n"),
    ];
    for message in &cases {
        let mut client = Client::of(&server);
        for byte in message.as_bytes() {
            // The refusal may come, and the connection end, before the last byte.
            if !client.try_send(&[*byte]) {
                break;
            }
        }
        client.try_send(BEHIND.as_bytes());
        expect_refusal(&mut client, 400, message);
    }
    worker.expect_nothing("byte by byte");
}

fn a_body_that_breaks_while_it_streams_is_visibly_incomplete(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--max-body", "4MiB", "--request-buffering", "memory"]);
    let head = "POST /broken HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let beginning = format!("200000\r\n{}\r\n", "a".repeat(0x20_0000));
    let too_much = format!("200001\r\n{}\r\n0\r\n\r\n", "b".repeat(0x20_0001));
    let announced = "7fffffffffffffff\r\n";
    for (index, (status, end)) in
        [(400, "4\r\nabcdX\r\n0\r\n\r\n"), (400, "x"), (413, &too_much), (413, announced)].into_iter().enumerate()
    {
        let mut client = Client::of(&server);
        client.send(format!("{head}{beginning}"));
        until("the worker gets the body", || {
            worker.records().get(index).is_some_and(|record| record.bytes.len() > 0x10_0000)
        });
        client.try_send(format!("{end}{BEHIND}").as_bytes());
        expect_refusal(&mut client, status, end);
        let got = worker.expect_closed(index);
        assert!(got.starts_with(b"POST /broken HTTP/1.1\r\n"), "{}", text(&got[..100]));
        assert!(!got.ends_with(b"0\r\n\r\n"), "the worker got a whole message");
        assert!(!got.windows(7).any(|window| window == b"/behind"));
    }
    assert_eq!(Client::of(&server).get("/after").status, 200);
}

fn a_body_that_breaks_behind_an_early_answer_ends_it(backend: &str) {
    let worker = Worker::new(|incoming| {
        if incoming.head().is_some() {
            incoming.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n");
            incoming.drain();
        }
    });
    let server = Server::before(backend, &worker.url, &["--request-buffering", "memory"]);
    let mut client = Client::of(&server);
    let beginning = format!("200000\r\n{}\r\n", "a".repeat(0x20_0000));
    client.send(format!("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n{beginning}"));
    assert!(client.head().unwrap().starts_with("HTTP/1.1 200 "));
    assert_eq!(client.take(10), b"5\r\nearly\r\n");
    client.send(format!("xyz\r\n{BEHIND}"));
    let (rest, _) = client.rest();
    assert!(rest.is_empty(), "behind a head there is no room for another: {}", text(&rest));
    let got = worker.expect_closed(0);
    assert!(!got.ends_with(b"0\r\n\r\n"));
    assert_eq!(Client::of(&server).get("/server").status, 200);
}

fn trailers_that_would_mislead_are_dropped(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let dropped =
        ["Content-Length: 3", "Transfer-Encoding: chunked", "Host: evil", "Authorization: evil", "Cookie: a=b"];
    // What is for this connection alone is so in a trailer, too (RFC 9110 §7.6.1).
    let trailers = format!("{}\r\nX-Checksum: 7\r\nx-hop: evil\r\n", dropped.join("\r\n"));
    let request = post(
        "Transfer-Encoding: chunked\r\nTrailer: X-Checksum\r\nConnection: TE, X-Hop\r\n",
        &format!("2\r\nab\r\n0\r\n{trailers}\r\n"),
    );
    let answer = Client::of(&server).ask(&request);
    assert_eq!(answer.status, 200);
    let body = answer.text();
    assert!(body.ends_with("\r\n\r\nabX-Checksum: 7\r\n"), "{body}");
    let all = String::from_utf8(worker.everything()).unwrap();
    assert!(!all.contains("evil") && !all.contains("a=b"), "{all}");
}

fn a_refused_client_that_still_sends_reads_the_refusal(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--max-body", "1MiB"]);
    let large = pattern(5 << 20);
    let chunked = format!("{:x}\r\n", large.len());
    let cases = [
        (413, post("Content-Length: 5242880\r\n", "")),
        (413, post("Transfer-Encoding: chunked\r\n", &chunked)),
        (400, post("Content-Length: 5242880\r\nContent-Length: 5242880\r\n", "")),
        (400, post("Transfer-Encoding: chunked\r\n", "4\r\nabcdX")),
        (417, post("Content-Length: 5242880\r\nExpect: nothing\r\n", "")),
    ];
    for (status, head) in cases {
        let mut client = Client::of(&server);
        client.send(&head);
        let mut sender = client.second();
        let body = large.clone();
        let sending = std::thread::spawn(move || sender.try_send(&body));
        // A client that reads only when it has sent all is the hard case.
        assert!(sending.join().unwrap(), "the server stopped reading a client that it had refused: {head}");
        client.finish();
        let answer = client.answer();
        assert_eq!(answer.status, status);
        client.expect_end();
    }
}

/// What comes behind the refusal is waited for, whether or not the server was listening for it already.
fn a_client_that_is_watched_reads_its_refusal_and_may_go_on(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--header-timeout", "300ms"]);
    let refused = get("Content-Length: 3000\r\nX : y\r\n");
    let cases = [
        // Its client is watched while the first is answered.
        (400, format!("{}{refused}", get(""))),
        (408, "GET / HTTP/1.1\r\nHost: te".to_owned()),
        (408, format!("{}GET / HT", get(""))),
    ];
    for (status, sent) in cases {
        let mut client = Client::of(&server);
        client.send(&sent);
        if sent.starts_with(&get("")) {
            assert_eq!(client.answer().status, 200);
        }
        expect_refusal(&mut client, status, &sent);
        for _ in 0..3 {
            assert!(client.try_send(&[b'x'; 1000]), "{sent}: the connection was reset");
        }
        client.finish();
    }
}

fn a_slow_head_is_refused(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--header-timeout", "300ms"]);
    for beginning in ["G", "GET / HTTP/1.1\r\nHost: te", "GET / HTTP/1.1\r\nHost: test\r\n", "\r\n"] {
        let mut client = Client::of(&server);
        client.send(beginning);
        expect_refusal(&mut client, 408, beginning);
    }
    // Behind an answered request as well.
    let mut client = Client::of(&server);
    client.expect_alive();
    client.send("GET / HT");
    expect_refusal(&mut client, 408, "the second head");
    worker.expect_nothing("slow heads");
}

fn a_slow_body_is_refused(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--body-timeout", "300ms"]);
    for request in [post("Content-Length: 5\r\n", "ab"), post("Transfer-Encoding: chunked\r\n", "5\r\nab")] {
        let mut client = Client::of(&server);
        client.send(&request);
        expect_refusal(&mut client, 408, &request);
    }
    worker.expect_nothing("slow bodies");
}

fn a_body_found_too_large_at_its_end_closes(backend: &str) {
    // The whole body is there, and a request behind it: the refusal closes nevertheless.
    let body = format!("100001\r\n{}\r\n0\r\n\r\n", "b".repeat(0x10_0001));
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--max-body", "1MiB"]);
    let mut client = Client::of(&server);
    client.send(post("Transfer-Encoding: chunked\r\n", &format!("{body}{BEHIND}")));
    expect_refusal(&mut client, 413, "one byte too much");
    worker.expect_nothing("too large");
}

fn a_refusal_does_not_overtake_earlier_answers(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    client.send(format!(
        "GET /1 HTTP/1.1\r\nHost: test\r\n\r\nGET /server HTTP/1.1\r\nHost: test\r\n\r\n{}{BEHIND}",
        get("X : y\r\n")
    ));
    assert!(client.answer().text().starts_with("GET /1 "));
    assert_eq!(client.answer().text(), "ok");
    expect_refusal(&mut client, 400, "behind two that are fine");
    let all = String::from_utf8(worker.everything()).unwrap();
    assert_eq!(all.matches("HTTP/1.1\r\n").count(), 1, "{all}");
}
