//! Answers that are produced bit by bit reach the client bit by bit.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use crate::support::{Client, Server, Worker, on_every_backend, pattern, through_tls, until};

on_every_backend! {
    pieces_arrive_before_the_next_is_made
    old_clients_get_their_pieces_at_once
    a_client_that_leaves_a_stream_ends_it
    a_stream_outlives_the_read_timeout
    slow_readers_hold_neither_the_worker_nor_much_memory
    heads_that_arrive_byte_by_byte_do_not_slow_another_client
    memory_for_slow_readers_ends_at_its_limit
    a_reader_without_progress_is_cut_and_a_slow_one_is_not
    a_slow_reader_of_an_endless_answer_is_bounded
    a_pipeline_whose_answers_nobody_reads_is_bounded
    a_pipeline_that_waits_for_its_reader_survives_a_half_close
    what_a_client_has_sent_through_a_tunnel_arrives_although_it_takes_no_more
}

// Without the one that takes the time: what it sees would be that of the relay.
through_tls! {
    pieces_arrive_before_the_next_is_made
    old_clients_get_their_pieces_at_once
    a_client_that_leaves_a_stream_ends_it
    a_stream_outlives_the_read_timeout
    slow_readers_hold_neither_the_worker_nor_much_memory
    memory_for_slow_readers_ends_at_its_limit
    a_reader_without_progress_is_cut_and_a_slow_one_is_not
    a_slow_reader_of_an_endless_answer_is_bounded
    a_pipeline_whose_answers_nobody_reads_is_bounded
    a_pipeline_that_waits_for_its_reader_survives_a_half_close
}

/// A worker that sends the head at once, and each piece when it is told to; the stream ends with the sender.
fn told(head: &'static str) -> (Worker, mpsc::Sender<Vec<u8>>) {
    let (sender, pieces) = mpsc::channel::<Vec<u8>>();
    let pieces = Arc::new(Mutex::new(pieces));
    let worker = Worker::new(move |incoming| {
        if incoming.request().is_some() {
            incoming.send(head);
            let pieces = pieces.lock().unwrap();
            while let Ok(piece) = pieces.recv() {
                incoming.send(piece);
            }
        }
    });
    (worker, sender)
}

fn pieces_arrive_before_the_next_is_made(backend: &str) {
    let heads = [
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX-Accel-Buffering: no\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n",
        "HTTP/1.0 200 OK\r\n\r\n",
    ];
    for head in heads {
        let (worker, tell) = told(head);
        let server = Server::before(backend, &worker.url, &[]);
        let mut client = Client::of(&server);
        client.send("GET /stream HTTP/1.1\r\nHost: test\r\n\r\n");
        // The head is there before the first piece is made.
        let got = client.head().unwrap();
        assert!(got.starts_with("HTTP/1.1 200 "), "{got}");
        assert_eq!(got.contains("X-Accel-Buffering: no"), head.contains("X-Accel"), "{got}");
        let chunked = !head.contains("Content-Length");
        assert_eq!(got.contains("Transfer-Encoding: chunked\r\n"), chunked, "{got}");
        for index in 0..5 {
            let piece = format!("data: {index}\n\n ");
            let framed = if head.contains("chunked") { format!("a\r\n{piece}\r\n") } else { piece.clone() };
            tell.send(framed.into_bytes()).unwrap();
            let expected = if chunked { format!("a\r\n{piece}\r\n") } else { piece };
            assert_eq!(String::from_utf8(client.take(expected.len())).unwrap(), expected, "{head}");
        }
        if head.contains("chunked") {
            tell.send(b"0\r\n\r\n".to_vec()).unwrap();
        }
        drop(tell);
        if chunked {
            assert_eq!(client.take(5), b"0\r\n\r\n");
        }
        client.expect_alive();
    }
}

fn old_clients_get_their_pieces_at_once(backend: &str) {
    for head in ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"] {
        let (worker, tell) = told(head);
        let server = Server::before(backend, &worker.url, &[]);
        let mut client = Client::of(&server);
        client.send("GET /stream HTTP/1.0\r\n\r\n");
        client.head().unwrap();
        for index in 0..5 {
            let piece = format!("piece {index}");
            let framed = if head.contains("chunked") { format!("7\r\n{piece}\r\n") } else { piece.clone() };
            tell.send(framed.into_bytes()).unwrap();
            assert_eq!(client.take(7), piece.as_bytes());
        }
        if head.contains("chunked") {
            tell.send(b"0\r\n\r\n".to_vec()).unwrap();
        }
        drop(tell);
        client.expect_end();
    }
}

fn a_client_that_leaves_a_stream_ends_it(backend: &str) {
    let (worker, tell) = told("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    client.send("GET /stream HTTP/1.1\r\nHost: test\r\n\r\n");
    client.head().unwrap();
    drop(client);
    drop(tell);
    // Its one permit is free: the next is served.
    let mut client = Client::of(&server);
    client.send("GET /next HTTP/1.1\r\nHost: test\r\n\r\n");
    assert!(client.head().unwrap().starts_with("HTTP/1.1 200 "));
}

/// Both deadlines are long enough for the head on a busy machine. That a stream is not cut shows only when they are over for long.
fn a_stream_outlives_the_read_timeout(backend: &str) {
    let (worker, tell) = told("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n");
    let flags = ["--read-timeout-ms", "1000", "--request-timeout", "1500ms"];
    let server = Server::before(backend, &worker.url, &flags);
    let mut client = Client::of(&server);
    client.send("GET /stream HTTP/1.1\r\nHost: test\r\n\r\n");
    client.head().unwrap();
    std::thread::sleep(Duration::from_millis(2200));
    tell.send(b"late".to_vec()).unwrap();
    assert_eq!(client.take(9), b"4\r\nlate\r\n");
    drop(tell);
    assert_eq!(client.take(5), b"0\r\n\r\n");
}

/// A worker of one request at a time: `/large` is that body, all else is small.
fn large_or_small(body: &[u8]) -> Worker {
    let large = body.to_vec();
    Worker::new(move |incoming| {
        while let Some((head, _)) = incoming.request() {
            incoming.respond(if head.starts_with("GET /large") { &large } else { b"small" });
        }
    })
}

fn slow_readers_hold_neither_the_worker_nor_much_memory(backend: &str) {
    const READERS: usize = 4;
    let body = pattern(10 << 20);
    let worker = large_or_small(&body);
    let server = Server::before(backend, &worker.url, &[]);
    let mut other = Client::of(&server);
    assert_eq!(other.get("/small").text(), "small");
    let before = server.resident_bytes();
    let mut slow: Vec<_> = (0..READERS).map(|_| Client::of(&server)).collect();
    for client in &mut slow {
        client.begin("/large");
        assert!(client.head().unwrap().contains("Content-Length: 10485760\r\n"));
    }
    // A byte of each answer goes by, and a whole request of somebody else through the one worker.
    let mut slowest = Duration::ZERO;
    for _ in 0..200 {
        slow.iter_mut().for_each(Client::sip);
        let started = Instant::now();
        assert_eq!(other.get("/small").text(), "small");
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "behind slow readers a request took {slowest:?}");
    let got = server.peak_bytes().saturating_sub(before);
    assert!(got < READERS * body.len() * 5 / 4 + (8 << 20), "{got} bytes more resident");
    for client in &mut slow {
        assert!(client.take(body.len()) == body);
        client.expect_alive();
    }
}

fn heads_that_arrive_byte_by_byte_do_not_slow_another_client(backend: &str) {
    let worker = large_or_small(b"large");
    let server = Server::before(backend, &worker.url, &["--queue-timeout-ms", "60000"]);
    let mut other = Client::of(&server);
    let mut slow: Vec<_> = (0..200).map(|_| Client::of(&server)).collect();
    let mut slowest = Duration::ZERO;
    for byte in b"GET /large HTTP/1.1\r\nHost: test\r\n\r\n" {
        for client in &mut slow {
            client.send([*byte]);
        }
        let started = Instant::now();
        assert_eq!(other.get("/small").text(), "small");
        slowest = slowest.max(started.elapsed());
    }
    assert!(slowest < Duration::from_secs(2), "behind slow heads a request took {slowest:?}");
    for client in &mut slow {
        assert_eq!(client.answer().text(), "large");
    }
}

fn memory_for_slow_readers_ends_at_its_limit(backend: &str) {
    const LIMIT: usize = 16 << 20;
    let body = pattern(10 << 20);
    let worker = large_or_small(&body);
    let flags = ["--buffer-bytes", "16MiB", "--spool-bytes", "0", "--queue-timeout-ms", "60000"];
    let server = Server::before(backend, &worker.url, &flags);
    let before = server.resident_bytes();
    let mut slow = Vec::new();
    for index in 0..6 {
        let mut client = Client::of(&server);
        client.begin(&format!("/large/{index}"));
        slow.push(client);
        // Each is with the worker or in the line before the next one asks, so that they are served in this order: the second holds
        // the worker until the first is read, and whoever waits for it cannot be the first to be read.
        until("it is with the worker or in the line", || {
            let begun = (0..=index).filter(|other| worker.of(&format!("/large/{other}")).is_some()).count();
            server.status()["queue"]["depth"] == index + 1 - begun
        });
    }
    // One after the other is read to its end: that makes room for the next.
    for client in &mut slow {
        assert!(client.answer().body == body);
    }
    let got = server.peak_bytes().saturating_sub(before);
    assert!(got < LIMIT + (8 << 20), "{got} bytes more resident");
}

fn a_reader_without_progress_is_cut_and_a_slow_one_is_not(backend: &str) {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let body = pattern(10 << 20);
    let worker = large_or_small(&body);
    let server = Server::before(backend, &worker.url, &["--write-timeout", "1s"]);
    let (mut slow, mut stuck) = (Client::of(&server), Client::of(&server));
    for client in [&mut slow, &mut stuck] {
        client.begin("/large");
        client.head().unwrap();
    }
    let started = Instant::now();
    let mut cut = None;
    // The one takes 2 MiB a second, and so more than four timeouts for all of it.
    for portion in body.chunks(1 << 18) {
        assert!(slow.take(portion.len()) == portion, "the slow one got other bytes");
        std::thread::sleep(TIMEOUT / 8);
        if cut.is_none() && server.status()["active_connections"] == 1 {
            cut = Some(started.elapsed());
        }
    }
    slow.expect_alive();
    let cut = cut.expect("the one that reads nothing is cut");
    assert!(cut >= TIMEOUT, "cut after {cut:?} already");
    let (rest, _) = stuck.rest();
    assert!(rest.len() < body.len() && body.starts_with(&rest), "it got all {} bytes", rest.len());
}

fn a_slow_reader_of_an_endless_answer_is_bounded(backend: &str) {
    // Up to 32 MiB may be on their way to the disk.
    for (spool, most) in [("0", 32 << 20), ("1GiB", 64 << 20)] {
        let worker = Worker::new(|incoming| {
            if incoming.request().is_some() {
                incoming.send("HTTP/1.1 200 OK\r\n\r\n");
                let piece = pattern(1 << 20);
                for _ in 0..200 {
                    if !incoming.send(&piece) {
                        return;
                    }
                }
            }
        });
        let server = Server::before(backend, &worker.url, &["--write-timeout", "1s", "--spool-bytes", spool]);
        let before = server.resident_bytes();
        let mut client = Client::of(&server);
        client.read_little();
        client.send("GET /endless HTTP/1.1\r\nHost: test\r\n\r\n");
        client.head().unwrap();
        // It makes no progress: the write timeout ends it, and with it the worker's connection, unless all was spooled before.
        until("the worker is let go", || server.status()["busy"] == 0);
        let got = server.peak_bytes().saturating_sub(before);
        assert!(got < most, "{got} bytes more resident, spool {spool}");
    }
}

fn a_pipeline_whose_answers_nobody_reads_is_bounded(backend: &str) {
    let body = pattern(60_000);
    let worker = Worker::new(move |incoming| {
        while incoming.request().is_some() {
            incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n");
            incoming.send(&body);
        }
    });
    let server = Server::before(backend, &worker.url, &["--write-timeout", "1s"]);
    let before = server.resident_bytes();
    let mut client = Client::of(&server);
    client.read_little();
    // 120 MB of answers are asked for in a few packets, and none is read until the write timeout ends it.
    client.send("GET /p HTTP/1.1\r\nHost: test\r\n\r\n".repeat(2000));
    client.head().unwrap();
    until("the client is cut", || server.status()["active_connections"] == 0);
    let got = server.peak_bytes().saturating_sub(before);
    assert!(got < 32 << 20, "{got} bytes more resident");
}

fn a_pipeline_that_waits_for_its_reader_survives_a_half_close(backend: &str) {
    let body = pattern(8 << 20);
    let large = body.clone();
    let worker = Worker::new(move |incoming| {
        while let Some(request) = incoming.request() {
            let body = if format!("{request:?}").contains("large") { &large[..] } else { b"small" };
            incoming.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
            incoming.send(body);
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    client.send("GET /large HTTP/1.1\r\nHost: test\r\n\r\nGET /server HTTP/1.1\r\nHost: test\r\n\r\n");
    // The worker's only place is free again: its part of the large answer is over, the reader's is not.
    until("the worker has the large one", || !worker.records().is_empty());
    assert_eq!(Client::of(&server).get("/small").text(), "small");
    client.finish();
    assert!(client.answer().body == body, "the large answer is not whole");
    assert_eq!(client.answer().text(), "ok");
    client.expect_end();
}

/// On a Unix socket, where receiving can be ended alone.
fn what_a_client_has_sent_through_a_tunnel_arrives_although_it_takes_no_more(backend: &str) {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let worker = Worker::new(move |incoming| {
        if incoming.head().is_some() {
            incoming.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
            // It reads once all of this has gone.
            for piece in pattern(8 << 20).chunks(1 << 10) {
                incoming.send(piece);
                count.fetch_add(1, Ordering::Relaxed);
            }
            incoming.take(10);
        }
    });
    let folder = crate::support::folder();
    let listen = format!("unix:{}", folder.path().join("app.sock").display());
    let flags = ["--listen", "127.0.0.1:0", "--listen", &listen, "--write-timeout", "1s"];
    let _server = Server::before(backend, &worker.url, &flags);
    let mut client = UnixStream::connect(folder.path().join("app.sock")).unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").unwrap();
    let mut before = 0;
    until("more waits for it than it may, and the worker can send no more", || {
        std::thread::sleep(Duration::from_millis(100));
        let now = sent.load(Ordering::Relaxed);
        now > 0 && std::mem::replace(&mut before, now) == now
    });
    client.shutdown(Shutdown::Read).unwrap();
    client.write_all(b"last words").unwrap();
    until("they arrive", || worker.everything().ends_with(b"last words"));
}
