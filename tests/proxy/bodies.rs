//! Request bodies of all sizes: held, streamed, refused, stalled, answered early.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Client, Server, Worker, on_every_backend_and_tls, pattern, text, until};

on_every_backend_and_tls! {
    a_slow_sender_does_not_use_up_its_workers_time
    bodies_of_all_sizes_arrive_whole
    large_bodies_wait_for_a_slow_worker
    a_held_body_takes_no_worker
    a_stalled_sender_gives_its_permit_up
    an_early_answer_is_passed_on
    an_early_answer_that_flows_waits_for_no_body
    an_early_answer_of_a_worker_that_closes_is_passed_on
    bodies_in_tiny_chunks_do_not_hold_others_up
    a_streamed_body_survives_an_unreachable_worker
    a_client_that_leaves_in_a_streamed_body_leaves_it_incomplete
}

const MIB: usize = 1 << 20;
/// Large bodies are not gathered on disk, but stream: tests/spool.rs has the others.
const STREAMS: &[&str] = &["--request-buffering", "memory"];

/// Sends a POST with that body, chunked or not, while receiving the answer.
fn post(client: &mut Client, body: &[u8], chunk: Option<usize>) -> Vec<u8> {
    let framing = match chunk {
        None => format!("Content-Length: {}", body.len()),
        Some(_) => "Transfer-Encoding: chunked".to_owned(),
    };
    let mut message = format!("POST /body HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n").into_bytes();
    match chunk {
        None => message.extend(body),
        Some(size) => {
            for chunk in body.chunks(size) {
                message.extend(format!("{:X}\r\n", chunk.len()).bytes());
                message.extend(chunk);
                message.extend(b"\r\n");
            }
            message.extend(b"0\r\n\r\n");
        }
    }
    let mut sender = client.second();
    let sending = std::thread::spawn(move || sender.try_send(&message));
    let answer = client.answer();
    assert!(sending.join().unwrap(), "the body was not taken");
    assert!(answer.status == 200 && answer.whole, "{}{}", answer.head, text(&answer.body));
    let head = answer.body.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    answer.body[head + 4..].to_vec()
}

fn bodies_of_all_sizes_arrive_whole(backend: &str) {
    let worker = Worker::echo();
    for flags in [&[], STREAMS] {
        let server = Server::before(backend, &worker.url, flags);
        let mut client = Client::of(&server);
        for size in [0, 1, 16 << 10, (16 << 10) + 1, 100_000, MIB - 1, MIB, MIB + 1, 3 * MIB] {
            let body = pattern(size);
            for chunk in [None, Some(64 << 10), Some(1000)] {
                let got = post(&mut client, &body, chunk);
                assert!(got == body, "{size} bytes, chunks of {chunk:?}: {} came back", got.len());
            }
        }
        let got = post(&mut client, &pattern(20 * MIB), None);
        assert!(got == pattern(20 * MIB));
        client.expect_alive();
    }
}

fn large_bodies_wait_for_a_slow_worker(backend: &str) {
    let go = Arc::new(AtomicBool::new(false));
    let may = go.clone();
    let worker = Worker::new(move |incoming| {
        if incoming.head().is_some() {
            while !may.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(5));
            }
            while !incoming.ends_with(b"\r\n0\r\n\r\n") && incoming.receive().is_some() {}
            incoming.respond(b"all of it");
        }
    });
    for chunked in [false, true] {
        go.store(false, Ordering::SeqCst);
        let server = Server::before(backend, &worker.url, STREAMS);
        let before = server.resident_bytes();
        let mut body = pattern(40 * MIB);
        let mut client = Client::of(&server);
        if chunked {
            client.send("POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n");
            body = [format!("{:x}\r\n", body.len()).as_bytes(), &body, b"\r\n0\r\n\r\n"].concat();
        } else {
            body.extend(b"\r\n0\r\n\r\n");
            client.send(format!("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n", body.len()));
        }
        let done = Arc::new(AtomicBool::new(false));
        let (mut sender, told) = (client.second(), done.clone());
        let sending = std::thread::spawn(move || {
            sender.send(&body);
            told.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(700));
        assert!(!done.load(Ordering::SeqCst), "40 MiB were taken from the client for a worker that reads nothing");
        let got = server.peak_bytes().saturating_sub(before);
        assert!(got < 8 * MIB, "{got} bytes more resident, chunked: {chunked}");
        go.store(true, Ordering::SeqCst);
        assert_eq!(client.answer().text(), "all of it");
        sending.join().unwrap();
        let got = server.peak_bytes().saturating_sub(before);
        assert!(got < 8 * MIB, "{got} bytes more resident, chunked: {chunked}");
    }
}

fn a_held_body_takes_no_worker(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    // One worker, one request at a time, and many who dawdle.
    let mut slow: Vec<_> = (0..20).map(|_| Client::of(&server)).collect();
    for client in &mut slow {
        client.send("POST /slow HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf");
    }
    assert_eq!(Client::of(&server).get("/fast").status, 200);
    assert!(!worker.everything().windows(5).any(|window| window == b"/slow"));
    for client in &mut slow {
        client.send(" of it");
        assert!(client.answer().text().ends_with("\r\n\r\nhalf of it"));
    }
}

fn a_stalled_sender_gives_its_permit_up(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(
        backend,
        &worker.url,
        &[STREAMS, &["--queue-timeout-ms", "15000", "--body-timeout", "1s"]].concat(),
    );
    for (index, framing) in ["Content-Length: 3000000", "Transfer-Encoding: chunked"].into_iter().enumerate() {
        let mut stalled = Client::of(&server);
        stalled.send(format!("POST /stalled{index} HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n"));
        if framing.starts_with('T') {
            stalled.send("2dc6c0\r\n");
        }
        stalled.send(vec![b'x'; 2_000_000]);
        let path = format!("/stalled{index}");
        until("the worker has the beginning", || worker.of(&path).is_some());
        let started = Instant::now();
        assert_eq!(Client::of(&server).get("/next").status, 200);
        assert!(started.elapsed() < Duration::from_secs(8), "the next one waited {:?}", started.elapsed());
        let answer = stalled.answer();
        assert_eq!((answer.status, answer.field("connection")), (408, Some("close")));
        stalled.expect_end();
        until("the worker sees the end", || worker.of(&path).is_some_and(|record| record.ended));
    }
}

fn an_early_answer_is_passed_on(backend: &str) {
    let worker = Worker::new(|incoming| {
        while let Some(head) = incoming.head() {
            if head.starts_with("GET ") {
                incoming.respond(b"fine");
                continue;
            }
            incoming.send("HTTP/1.1 403 Forbidden\r\nContent-Length: 3\r\n\r\nno!");
            return incoming.drain();
        }
    });
    let server = Server::before(backend, &worker.url, STREAMS);
    for framing in ["Content-Length: 30000000", "Transfer-Encoding: chunked"] {
        let mut client = Client::of(&server);
        client.send(format!("POST /early HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n"));
        let mut sender = client.second();
        let body = [b"1c9c380\r\n".as_slice(), &pattern(2_000_000)].concat();
        let body = if framing.starts_with('T') { body } else { body[9..].to_vec() };
        let sending = std::thread::spawn(move || sender.try_send(&body));
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (403, "no!"));
        assert_eq!(answer.field("connection"), Some("close"));
        assert!(sending.join().unwrap(), "a client must be able to send on until it reads the answer");
        client.expect_end();
        assert_eq!(Client::of(&server).get("/next").text(), "fine");
    }
}

fn an_early_answer_that_flows_waits_for_no_body(backend: &str) {
    let worker = Worker::new(|incoming| {
        incoming.head();
        incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n");
        for _ in 0..7 {
            std::thread::sleep(Duration::from_millis(100));
            incoming.send("x");
        }
    });
    let server = Server::before(backend, &worker.url, &["--request-buffering", "off", "--body-timeout", "300ms"]);
    let mut client = Client::of(&server);
    client.send("POST /early HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "xxxxxxx"));
}

fn an_early_answer_of_a_worker_that_closes_is_passed_on(backend: &str) {
    let worker = Worker::new(|incoming| {
        if incoming.head().is_some() {
            incoming.send("HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nno!");
        }
    });
    let server = Server::before(backend, &worker.url, STREAMS);
    for size in [2_000_000, 30_000_000] {
        let mut client = Client::of(&server);
        client.send(format!("POST /early HTTP/1.1\r\nHost: test\r\nContent-Length: {size}\r\n\r\n"));
        let mut sender = client.second();
        let sending = std::thread::spawn(move || sender.try_send(&pattern(2_000_000)));
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (413, "no!"), "{}", answer.head);
        assert!(sending.join().unwrap());
    }
}

fn bodies_in_tiny_chunks_do_not_hold_others_up(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let before = server.resident_bytes();
    let mut client = Client::of(&server);
    let body = pattern(300_000);
    let mut message = b"POST /tiny HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for byte in &body {
        message.extend([b'1', b'\r', b'\n', *byte, b'\r', b'\n']);
    }
    message.extend(b"0\r\n\r\n");
    let mut sender = client.second();
    let sending = std::thread::spawn(move || sender.send(&message));
    let mut other = Client::of(&server);
    let mut longest = Duration::ZERO;
    while !sending.is_finished() {
        let started = Instant::now();
        other.expect_alive();
        longest = longest.max(started.elapsed());
    }
    let answer = client.answer();
    assert!(answer.body.ends_with(&body), "{} bytes came back", answer.body.len());
    sending.join().unwrap();
    assert!(longest < Duration::from_millis(500), "another client waited {longest:?}");
    let got = server.peak_bytes().saturating_sub(before);
    assert!(got < 16 * MIB, "{got} bytes more resident for a body of 300,000");
}

fn a_streamed_body_survives_an_unreachable_worker(backend: &str) {
    let gone = Worker::saying_last("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let worker = Worker::echo();
    let flags = [STREAMS, &["--upstream", &worker.url, "--balance", "round-robin"]].concat();
    let server = Server::before(backend, &gone.url, &flags);
    let mut client = Client::of(&server);
    for _ in 0..4 {
        assert_eq!(client.get("/both").status, 200);
    }
    assert!(!gone.records().is_empty() && !worker.records().is_empty());
    gone.vanish();
    for chunk in [None, Some(10_000)] {
        let body = pattern(3 * MIB);
        for _ in 0..3 {
            let got = post(&mut client, &body, chunk);
            assert!(got == body, "{} bytes came back", got.len());
        }
    }
}

fn a_client_that_leaves_in_a_streamed_body_leaves_it_incomplete(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, STREAMS);
    for (index, framing) in ["Content-Length: 3000000", "Transfer-Encoding: chunked"].into_iter().enumerate() {
        let mut client = Client::of(&server);
        client.send(format!("POST /left HTTP/1.1\r\nHost: test\r\n{framing}\r\n\r\n"));
        if framing.starts_with('T') {
            client.send("2dc6c0\r\n");
        }
        client.send(vec![b'x'; 2_000_000]);
        until("the worker has the beginning", || worker.records().len() > index);
        drop(client);
        let got = worker.expect_closed(index);
        assert!(got.len() < 2_100_000 && !got.ends_with(b"0\r\n\r\n"), "{}", text(&got[got.len() - 20..]));
    }
    assert_eq!(Client::of(&server).get("/next").status, 200);
}

fn a_slow_sender_does_not_use_up_its_workers_time(backend: &str) {
    let worker = Worker::new(|incoming| {
        while incoming.request().is_some() {
            // Longer than the grain of the deadlines, shorter than the request's own.
            std::thread::sleep(std::time::Duration::from_millis(100));
            incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
        }
    });
    let flags = ["--request-timeout", "1s", "--read-timeout-ms", "900"];
    let server = Server::before(backend, &worker.url, &flags);
    let mut client = Client::of(&server);
    client.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nsl");
    // The body's own deadline allows for this; it is what the test is about.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    client.send("ow");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
}
