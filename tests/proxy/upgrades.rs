//! WebSocket upgrades: a tunnel after a 101, an ordinary answer otherwise.

use crate::support::{Client, Server, Worker, on_every_backend_and_tls, pattern, until};

on_every_backend_and_tls! {
    a_tunnel_carries_bytes_both_ways
    bytes_right_behind_the_heads_belong_to_the_tunnel
    a_tunnel_carries_much_both_ways_at_once
    half_closes_pass_both_ways
    the_end_of_either_side_ends_the_tunnel
    what_a_side_has_sent_arrives_although_it_takes_no_more
    a_refused_upgrade_is_an_ordinary_answer
    a_tunnel_gives_its_permit_back
}

const UPGRADE: &str = "GET /chat HTTP/1.1\r\nHost: test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCHING: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// A worker that answers ordinary requests, and echoes on upgraded connections.
fn chat() -> Worker {
    Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            if !head.contains("Upgrade: websocket\r\n") {
                incoming.respond(b"plain");
                continue;
            }
            incoming.send(SWITCHING);
            while let Some(bytes) = incoming.any() {
                incoming.send(bytes);
            }
        }
    })
}

fn upgrade(client: &mut Client) {
    client.send(UPGRADE);
    let answer = client.next_answer(false);
    assert_eq!(answer.status, 101, "{}", answer.head);
    assert_eq!(answer.field("upgrade"), Some("websocket"));
    assert!(answer.field("connection").unwrap().eq_ignore_ascii_case("upgrade"));
    assert_eq!(answer.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!((answer.field("content-length"), answer.field("transfer-encoding")), (None, None));
}

fn a_tunnel_carries_bytes_both_ways(backend: &str) {
    let worker = chat();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    // Also behind ordinary requests on the same connection.
    assert_eq!(client.get("/plain").text(), "plain");
    upgrade(&mut client);
    for message in ["hello", "GET / HTTP/1.1\r\n\r\n", "\0\r\n\r\n0\r\n\r\n"] {
        client.send(message);
        assert_eq!(client.take(message.len()), message.as_bytes());
    }
    client.send_slowly("byte by byte");
    assert_eq!(client.take(12), b"byte by byte");
    client.finish();
    client.expect_end();
}

fn bytes_right_behind_the_heads_belong_to_the_tunnel(backend: &str) {
    let worker = Worker::new(|incoming| {
        if incoming.head().is_some() {
            incoming.send(format!("{SWITCHING}greeting"));
            while let Some(bytes) = incoming.any() {
                incoming.send(bytes);
            }
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    let early = "GET /server HTTP/1.1\r\nHost: test\r\n\r\n";
    client.send(format!("{UPGRADE}{early}"));
    assert_eq!(client.next_answer(false).status, 101);
    assert_eq!(client.take(8), b"greeting");
    assert_eq!(client.take(early.len()), early.as_bytes(), "they are no request any more");
}

fn a_tunnel_carries_much_both_ways_at_once(backend: &str) {
    let worker = chat();
    let server = Server::before(backend, &worker.url, &[]);
    let before = server.resident_bytes();
    let mut client = Client::of(&server);
    upgrade(&mut client);
    let bytes = pattern(8 << 20);
    let (mut sender, sent) = (client.second(), bytes.clone());
    let sending = std::thread::spawn(move || sender.send(&sent));
    assert!(client.take(bytes.len()) == bytes, "bytes were lost or swapped");
    sending.join().unwrap();
    let got = server.peak_bytes().saturating_sub(before);
    assert!(got < 8 << 20, "{got} bytes more resident");
}

fn half_closes_pass_both_ways(backend: &str) {
    // The worker ends first and still reads; then the client does.
    let worker = Worker::new(|incoming| {
        if incoming.head().is_some() {
            incoming.send(format!("{SWITCHING}bye"));
            incoming.finish();
            incoming.drain();
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    upgrade(&mut client);
    let (bytes, _) = client.rest();
    assert_eq!(bytes, b"bye");
    client.send("still here");
    until("the worker still gets bytes", || worker.everything().ends_with(b"still here"));
    client.finish();
    worker.expect_closed(0);
    // The client ends first and still reads.
    let worker = Worker::new(|incoming| {
        if incoming.head().is_some() {
            incoming.send(SWITCHING);
            incoming.drain();
            incoming.send(b"answer behind the end");
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    upgrade(&mut client);
    client.send("question");
    client.finish();
    assert_eq!(client.rest().0, b"answer behind the end");
    assert!(worker.expect_closed(0).ends_with(b"question"));
}

fn the_end_of_either_side_ends_the_tunnel(backend: &str) {
    let worker = chat();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    upgrade(&mut client);
    drop(client);
    worker.expect_closed(0);

    let worker = Worker::saying_last(SWITCHING);
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    upgrade(&mut client);
    client.expect_end();
}

/// The other side, which does not know yet, goes on sending.
fn what_a_side_has_sent_arrives_although_it_takes_no_more(backend: &str) {
    let worker = Worker::new(|incoming| {
        if incoming.head().is_some() {
            incoming.send(SWITCHING);
            incoming.take(2);
            incoming.take_no_more();
            incoming.send(pattern(8 << 20));
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    upgrade(&mut client);
    client.send("go");
    client.sip();
    for _ in 0..20 {
        client.send("still here");
        client.sip();
    }
    let (bytes, _) = client.rest();
    assert!(bytes == pattern(8 << 20), "{} bytes came", bytes.len());
}

fn a_refused_upgrade_is_an_ordinary_answer(backend: &str) {
    let worker = Worker::saying("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno");
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    for _ in 0..2 {
        let answer = client.ask(UPGRADE);
        assert_eq!((answer.status, answer.text().as_str()), (403, "no"));
        assert_eq!(answer.field("upgrade"), None);
    }
    client.expect_alive();
}

fn a_tunnel_gives_its_permit_back(backend: &str) {
    let worker = chat();
    let server = Server::before(backend, &worker.url, &["--concurrency", "1"]);
    let mut tunnels: Vec<_> = (0..5).map(|_| Client::of(&server)).collect();
    for client in &mut tunnels {
        upgrade(client);
    }
    let mut other = Client::of(&server);
    for _ in 0..3 {
        assert_eq!(other.get("/plain").text(), "plain");
    }
    for (index, client) in tunnels.iter_mut().enumerate() {
        let message = format!("message {index}");
        client.send(&message);
        assert_eq!(client.take(message.len()), message.as_bytes());
    }
    drop(tunnels);
    until("all tunnels end", || worker.records().iter().filter(|record| record.ended).count() >= 5);
    assert_eq!(other.get("/plain").text(), "plain");
}
