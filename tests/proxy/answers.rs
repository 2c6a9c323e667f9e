//! A worker's answer is hostile input: what is malformed is a 502, what is cut never looks whole, and no connection that saw
//! either is used again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::support::tls::SUFFIX;
use crate::support::{Client, Ending, Server, Worker, on_every_backend_and_tls, pattern, text, until};

on_every_backend_and_tls! {
    malformed_answers_are_refused
    endless_heads_are_refused
    heads_above_a_limit_say_which_and_the_flags_raise_it
    surplus_bytes_end_the_workers_connection
    late_surplus_bytes_never_meet_the_next_request
    a_head_that_tells_no_length_ends_the_workers_connection
    a_worker_that_ends_without_an_answer_is_a_502
    cut_bodies_never_look_whole
    broken_chunks_never_look_whole
    a_cut_answer_to_an_old_client_is_a_reset
    what_a_stop_cuts_of_an_answer_to_an_old_client_is_a_reset
    answers_until_the_end_are_framed_anew
    chunks_are_taken_off_for_old_clients
    chunked_answers_keep_their_trailers
    answers_byte_by_byte_are_as_good_as_at_once
    a_flood_of_interim_answers_is_bounded
    a_silent_worker_is_a_504
    a_worker_on_tcp_is_as_good
}

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

fn heads_above_a_limit_say_which_and_the_flags_raise_it(backend: &str) {
    // As long cookies, tickets and policies make them: larger than a block of the pool.
    let lines = |count: usize, len: usize| {
        (0..count).map(|index| format!("Set-Cookie: c{index}={}\r\n", "x".repeat(len))).collect::<String>()
    };
    let worker = Worker::new(move |incoming| {
        while let Some((head, _)) = incoming.request() {
            let numbers = head.split(['/', 'x', ' ']).filter_map(|word| word.parse().ok()).collect::<Vec<usize>>();
            incoming.send(format!("HTTP/1.1 200 OK\r\n{}Content-Length: 2\r\n\r\nhi", lines(numbers[0], numbers[1])));
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    for (count, len) in [(7, 4000), (1, 30_000), (190, 9)] {
        let answer = client.get(&format!("/{count}x{len}"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "hi"), "{count} of {len}");
        assert_eq!(answer.all("set-cookie").len(), count);
        let request = format!("GET /1x1 HTTP/1.1\r\nHost: test\r\n{}\r\n", lines(count, len).replace("Set-", ""));
        assert_eq!(client.ask(&request).status, 200, "{count} of {len}");
    }
    for (path, said) in [
        ("/9x4000", "the worker's head has more than 32768 bytes: raise --max-head"),
        ("/300x9", "the worker's head has more than 200 fields: raise --max-fields"),
    ] {
        let answer = client.get(path);
        assert!(answer.status == 502 && answer.text().contains(said), "{}", answer.text());
        // One line a second and message is enough for a crowd.
        until("the log says it", || client.get(path).status == 502 && server.has_said(said));
    }
    assert!(!server.has_said("malformed"), "{:?}", server.lines());
    let server = Server::before(backend, &worker.url, &["--max-head", "1MiB", "--max-fields", "10000"]);
    let mut client = Client::of(&server);
    for (count, len) in [(200, 4000), (9000, 9), (1, 900_000)] {
        let answer = client.get(&format!("/{count}x{len}"));
        assert_eq!((answer.status, answer.all("set-cookie").len()), (200, count), "{count} of {len}");
        let request = format!("GET /1x1 HTTP/1.1\r\nHost: test\r\n{}\r\n", lines(count, len).replace("Set-", ""));
        assert_eq!(client.ask(&request).status, 200, "{count} of {len}");
    }
}

fn malformed_answers_are_refused(backend: &str) {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\nContent-Length: 0\r\n\r\n", "v".repeat(33_000));
    let many = format!("HTTP/1.1 200 OK\r\n{}Content-Length: 0\r\n\r\n", "X: v\r\n".repeat(200));
    let said = [
        "garbage\r\n\r\n",
        "\r\n\r\n",
        "\0\0\0\0\0\0\0\0",
        "SSH-2.0-OpenSSH_9.6\r\n",
        "HTTP/1.1\r\n\r\n",
        "HTTP/1.1 \r\n\r\n",
        "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 2000 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 099 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 2x0 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1  200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/01.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "http/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 O\rK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 O\0K\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nab",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : a\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nX : a\r\n\r\n",
        &long,
        &many,
    ];
    for said in said {
        // A worker that goes on speaking: everything depends on its connection being left.
        let worker = Worker::saying(said);
        let server = Server::before(backend, &worker.url, &[]);
        let mut client = Client::of(&server);
        for round in 0..2 {
            let answer = client.ask(GET);
            assert_eq!(answer.status, 502, "{}: {}", text(said.as_bytes()), answer.head);
            let got = worker.expect_closed(round);
            assert_eq!(got.windows(4).filter(|window| window == b"GET ").count(), 1, "a connection was used again");
        }
        client.expect_alive();
    }
}

fn endless_heads_are_refused(backend: &str) {
    for beginning in ["HTTP/1.1 200 ", "HTTP/1.1 200 OK\r\nX: ", "HTTP/1.1 200 OK\r\n"] {
        let worker = Worker::new(move |incoming| {
            if incoming.request().is_some() {
                incoming.send(beginning);
                while incoming.send(
                    "X-More: of the same\r\n".replace("\r\n", if beginning.ends_with('\n') { "\r\n" } else { "" }),
                ) {}
            }
        });
        let server = Server::before(backend, &worker.url, &[]);
        assert_eq!(Client::of(&server).ask(GET).status, 502, "{beginning}");
    }
}

fn surplus_bytes_end_the_workers_connection(backend: &str) {
    let injected = "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ninjected";
    let cases = [
        ("GET", format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi{injected}")),
        ("GET", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi\r\n".to_owned()),
        ("GET", format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n{injected}")),
        ("HEAD", format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{injected}", injected.len())),
        ("GET", format!("HTTP/1.1 204 No Content\r\n\r\n{injected}")),
        ("GET", format!("HTTP/1.1 304 Not Modified\r\nContent-Length: {}\r\n\r\n{injected}", injected.len())),
        ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned()),
    ];
    for (method, said) in cases {
        let worker = Worker::saying(said.as_str());
        let server = Server::before(backend, &worker.url, &[]);
        let mut client = Client::of(&server);
        for round in 0..3 {
            let answer = client.ask(&format!("{method} / HTTP/1.1\r\nHost: test\r\n\r\n"));
            assert!(answer.status < 400 && answer.body.len() <= 2, "{said}: {}", answer.head);
            worker.expect_closed(round);
        }
        client.expect_alive();
        assert_eq!(worker.records().len(), 3, "each request had a connection of its own");
    }
}

fn late_surplus_bytes_never_meet_the_next_request(backend: &str) {
    let worker = Worker::new(|incoming| {
        let first = incoming.index == 0 || incoming.request().is_none();
        if first {
            return;
        }
        incoming.respond(b"first");
        std::thread::sleep(Duration::from_millis(100));
        incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\ninjected");
        incoming.drain();
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    for round in 0..2 {
        assert_eq!(client.ask(GET).text(), "first");
        worker.expect_closed(round);
    }
}

/// The body that its client must not get may come at any time, until the connection ends.
fn a_head_that_tells_no_length_ends_the_workers_connection(backend: &str) {
    for (said, kept) in [
        ("HTTP/1.1 200 OK\r\n\r\n", false),
        ("HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\n\r\n", false),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
        ("HTTP/1.1 304 Not Modified\r\n\r\n", true),
    ] {
        let worker = Worker::saying(said);
        let server = Server::before(backend, &worker.url, &[]);
        let mut client = Client::of(&server);
        for round in 0..2 {
            client.send("HEAD / HTTP/1.1\r\nHost: test\r\n\r\n");
            let answer = client.next_answer(true);
            assert_eq!(answer.status, said[9..12].parse::<u16>().unwrap());
            if !kept {
                worker.expect_closed(round);
            }
        }
        assert_eq!(worker.records().len(), if kept { 1 } else { 2 }, "{said}");
    }
}

fn a_worker_that_ends_without_an_answer_is_a_502(backend: &str) {
    for said in ["", "HTTP/1.1 200 OK\r\nContent-Len", "HTTP/1.1 100 Continue\r\n\r\n", "HT"] {
        let worker = Worker::saying_last(said);
        let server = Server::before(backend, &worker.url, &[]);
        let mut client = Client::of(&server);
        for method in ["GET", "POST"] {
            let answer = client.ask(&format!("{method} / HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n"));
            assert_eq!(answer.status, 502, "{method} {said:?}");
        }
        client.expect_alive();
        assert_eq!(worker.records().len(), 2, "on a fresh connection nothing is tried again");
    }
}

fn cut_bodies_never_look_whole(backend: &str) {
    let body = text(&pattern(5000));
    let cases = [
        format!("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n{body}"),
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n".to_owned(),
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4000\r\n{body}"),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX: y\r\n".to_owned(),
    ];
    for said in cases {
        let worker = Worker::saying_last(said.as_str());
        let server = Server::before(backend, &worker.url, &[]);
        let mut client = Client::of(&server);
        client.send(format!("{GET}{GET}"));
        let answer = client.answer();
        assert_eq!(answer.status, 200);
        assert!(!answer.whole, "{}: came as if whole", text(said.as_bytes()));
        let (rest, _) = client.rest();
        assert!(rest.is_empty(), "behind a cut answer came {}", text(&rest));
        assert_eq!(Client::of(&server).get("/server").status, 200);
    }
}

fn broken_chunks_never_look_whole(backend: &str) {
    for broken in [
        "xyz\r\n",
        "2\r\nhiX",
        "2 \r\nhi\r\n",
        "2\nhi\r\n",
        "ffffffffffffffffff\r\n",
        "0\r\nX : y\r\n\r\n",
        "-1\r\n",
        "\0",
    ] {
        for apart in [false, true] {
            let worker = Worker::new(move |incoming| {
                while incoming.request().is_some() {
                    incoming.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n");
                    if apart {
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    incoming.send(format!("{broken}0\r\n\r\n"));
                }
            });
            let server = Server::before(backend, &worker.url, &[]);
            let mut client = Client::of(&server);
            client.send(GET);
            let answer = client.answer();
            assert!(!answer.whole, "{broken:?} came as if whole");
            assert!(answer.body.len() <= 2, "{broken:?}: {}", answer.text());
            assert!(client.rest().0.is_empty());
            worker.expect_closed(0);
            assert_eq!(Client::of(&server).get("/server").status, 200);
        }
    }
}

fn a_cut_answer_to_an_old_client_is_a_reset(backend: &str) {
    // The connection's end is the body's for such a client: only a reset tells that it was cut.
    let worker = Worker::saying_last("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n");
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.rest().1, Ending::Reset);
    // A worker's reset in the middle of an answer until the end.
    let worker = Worker::tcp(|incoming| {
        if incoming.head().is_some() {
            incoming.send("HTTP/1.1 200 OK\r\n\r\nhalf of it");
            // The reset must not overtake what was sent.
            std::thread::sleep(Duration::from_millis(100));
            incoming.reset();
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.rest().1, Ending::Reset);
    let answer = Client::of(&server).ask(GET);
    assert!(!answer.whole && answer.body == b"half of it", "{}", answer.text());
}

/// While the worker is at it, and when the whole answer waits for its client.
fn what_a_stop_cuts_of_an_answer_to_an_old_client_is_a_reset(backend: &str) {
    // More than the kernel takes for a client that takes little, and less than is held for one.
    const LONG: usize = 14 << 20;
    let given = Arc::new(AtomicBool::new(false));
    let gives = given.clone();
    let worker = Worker::new(move |incoming| {
        let Some((head, _)) = incoming.request() else { return };
        incoming.send("HTTP/1.1 200 OK\r\n\r\nbegun");
        if head.starts_with("GET /long") {
            gives.store(incoming.send(pattern(LONG)), Ordering::SeqCst);
            incoming.finish();
        }
        incoming.drain();
    });
    let flags = ["--shutdown", "100ms", "--concurrency", "2", "--spool-bytes", "0"];
    let mut server = Server::before(backend, &worker.url, &flags);
    // What a relay takes besides would be too much.
    let mut long = (!backend.ends_with(SUFFIX)).then(|| Client::of(&server));
    if let Some(long) = &mut long {
        long.read_little();
        long.send("GET /long HTTP/1.0\r\n\r\n");
        until("the worker has given it", || given.load(Ordering::SeqCst) && server.status()["busy"] == 0);
    }
    let mut begun = Client::of(&server);
    begun.send("GET /begun HTTP/1.0\r\n\r\n");
    begun.head().unwrap();
    assert_eq!(begun.take(5), b"begun");
    server.signal("TERM");
    assert_eq!(begun.rest().1, Ending::Reset);
    assert_eq!(server.ended().code(), Some(0));
    assert!(long.is_none_or(|mut long| long.rest().1 == Ending::Reset));
}

fn answers_until_the_end_are_framed_anew(backend: &str) {
    let body = pattern(300_000);
    let said = [b"HTTP/1.1 200 OK\r\n\r\n".as_slice(), &body].concat();
    for said in [said.clone(), [b"HTTP/1.0 200 OK\r\nConnection: keep-alive".as_slice(), &said[15..]].concat()] {
        let worker = Worker::saying_last(said);
        let server = Server::before(backend, &worker.url, &[]);
        let mut client = Client::of(&server);
        for _ in 0..2 {
            let answer = client.ask(GET);
            assert_eq!(answer.field("transfer-encoding"), Some("chunked"));
            assert!(answer.whole && answer.body == body, "{} bytes", answer.body.len());
        }
        client.expect_alive();
        for keep in ["", "Connection: keep-alive\r\n"] {
            let mut old = Client::of(&server);
            let answer = old.ask(&format!("GET / HTTP/1.0\r\n{keep}\r\n"));
            assert_eq!((answer.field("transfer-encoding"), answer.field("content-length")), (None, None));
            assert_ne!(answer.field("connection"), Some("keep-alive"));
            assert!(answer.whole && answer.body == body, "{} bytes", answer.body.len());
        }
    }
    let worker = Worker::saying_last("HTTP/1.1 200 OK\r\n\r\n");
    let server = Server::before(backend, &worker.url, &[]);
    let answer = Client::of(&server).ask(GET);
    assert!(answer.whole && answer.body.is_empty());
}

fn chunks_are_taken_off_for_old_clients(backend: &str) {
    let body = pattern(200_000);
    let mut said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n".to_vec();
    for chunk in body.chunks(3333) {
        said.extend(format!("{:x};ext=1\r\n", chunk.len()).bytes());
        said.extend(chunk);
        said.extend(b"\r\n");
    }
    said.extend(b"0\r\nX-End: 1\r\n\r\n");
    let worker = Worker::saying(said);
    let server = Server::before(backend, &worker.url, &[]);
    for keep in ["", "Connection: keep-alive\r\n"] {
        let answer = Client::of(&server).ask(&format!("GET / HTTP/1.0\r\n{keep}\r\n"));
        assert_eq!(answer.field("transfer-encoding"), None);
        assert_ne!(answer.field("connection"), Some("keep-alive"));
        assert!(answer.whole && answer.body == body, "{} bytes", answer.body.len());
    }
    let answer = Client::of(&server).ask(GET);
    assert!(answer.whole && answer.body == body);
    assert_eq!(worker.records().len(), 1, "the worker's connection is kept");
}

fn chunked_answers_keep_their_trailers(backend: &str) {
    let worker = Worker::saying(
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nConnection: X-Hop\r\n\r\n\
         0005;a=b\r\nhello\r\n000;last\r\nX-Sum: 42\r\nContent-Length: 3\r\nSet-Cookie: evil=1\r\nX-Hop: evil\r\n\r\n",
    );
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    for _ in 0..3 {
        let answer = client.ask(GET);
        assert!(answer.whole);
        assert_eq!((answer.text().as_str(), answer.field("trailer")), ("hello", Some("X-Sum")));
        assert!(
            answer.trailers.contains("X-Sum: 42\r\n") && !answer.trailers.contains("Length"),
            "{}",
            answer.trailers
        );
        assert!(!answer.trailers.contains("evil"), "{}", answer.trailers);
    }
    assert_eq!(worker.records().len(), 1);
}

fn answers_byte_by_byte_are_as_good_as_at_once(backend: &str) {
    let said = [
        "HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n02;x=\"y\"\r\nlo\r\n0\r\nX-T: u\r\n\r\n",
    ];
    let worker = Worker::new(move |incoming| {
        while let Some((head, _)) = incoming.request() {
            let which: usize = head[5..6].parse().unwrap();
            for byte in said[which].as_bytes() {
                incoming.send([*byte]);
            }
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    for which in 0..said.len() {
        client.send(format!("GET /{which} HTTP/1.1\r\nHost: test\r\n\r\n"));
        if which == 1 {
            assert_eq!(client.next_answer(false).status, 103);
        }
        let answer = client.answer();
        assert!(answer.whole && answer.body == b"hello", "{which}: {}", answer.text());
    }
    assert_eq!(worker.records().len(), 1);
}

fn a_flood_of_interim_answers_is_bounded(backend: &str) {
    let through = Arc::new(AtomicBool::new(false));
    let told = through.clone();
    let worker = Worker::new(move |incoming| {
        if incoming.request().is_some() {
            let hints = format!("HTTP/1.1 103 Early Hints\r\nLink: {}\r\n\r\n", "l".repeat(4000)).repeat(16);
            for _ in 0..1600 {
                incoming.send(&hints);
            }
            incoming.respond(b"at last");
            told.store(true, Ordering::SeqCst);
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let before = server.resident_bytes();
    let mut client = Client::of(&server);
    client.send(GET);
    // 100 MB of hints for a client that does not read them.
    until("the worker is through", || through.load(Ordering::SeqCst));
    let got = server.peak_bytes() - before;
    assert!(got < 24 << 20, "{got} bytes more resident");
    let last = std::iter::repeat_with(|| client.next_answer(false)).find(|answer| answer.status != 103).unwrap();
    assert_eq!((last.status, last.text().as_str()), (200, "at last"));
}

fn a_silent_worker_is_a_504(backend: &str) {
    let worker = Worker::new(|incoming| incoming.drain());
    let server = Server::before(backend, &worker.url, &["--read-timeout-ms", "300"]);
    let mut client = Client::of(&server);
    let answer = client.ask(GET);
    assert_eq!(answer.status, 504);
    assert!(answer.field("retry-after").is_some(), "{}", answer.head);
    client.expect_alive();
    // One that stops in the middle: the client sees that the answer is cut.
    let worker = Worker::new(|incoming| {
        if incoming.request().is_some() {
            incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
            incoming.drain();
        }
    });
    let server = Server::before(backend, &worker.url, &["--read-timeout-ms", "300"]);
    let answer = Client::of(&server).ask(GET);
    assert!(!answer.whole && answer.body == b"half", "{}", answer.text());
    worker.expect_closed(0);
}

fn a_worker_on_tcp_is_as_good(backend: &str) {
    let worker = Worker::tcp(|incoming| {
        while let Some((head, body)) = incoming.request() {
            incoming.respond(&[head.as_bytes(), &body].concat());
        }
    });
    let server = Server::before(backend, &worker.url, &["--request-buffering", "memory"]);
    let mut client = Client::of(&server);
    for _ in 0..3 {
        assert!(client.get("/over-tcp").text().starts_with("GET /over-tcp HTTP/1.1\r\nHost: test\r\n"));
    }
    let body = pattern(3 << 20);
    client.send(format!("POST /large HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len()));
    client.send(&body);
    assert!(client.answer().body.ends_with(&body));
    // A body that streams cannot be sent again, and goes over a connection of its own.
    assert_eq!(worker.records().len(), 2);
    drop(worker);
    let named = Worker::tcp(|incoming| {
        while incoming.request().is_some() {
            incoming.respond(b"named")
        }
    });
    let url = named.url.replace("127.0.0.1", "localhost");
    let server = Server::before(backend, &url, &[]);
    assert_eq!(Client::of(&server).get("/").text(), "named");
}
