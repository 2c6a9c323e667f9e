//! The clocks of clients.

use std::time::{Duration, Instant};

use super::*;

on_every_backend! {
    late_heads_and_bodies_are_refused_and_idle_connections_closed,
    a_tunnel_of_which_bytes_are_still_taken_is_not_idle,
}

fn late_heads_and_bodies_are_refused_and_idle_connections_closed(backend: &str) {
    let folder = folder();
    let worker = Worker::mirror(&folder.path().join("w"));
    let flags = ["--header-timeout", "300ms", "--idle-timeout", "300ms", "--body-timeout", "300ms"];
    let server = Server::in_front_of(backend, &[&worker], &flags);
    let least = Duration::from_millis(300);
    for part in ["GET /half HTTP/1.1\r\nHost", "POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf"] {
        let mut client = server.client();
        let start = Instant::now();
        client.send(part);
        assert_eq!(client.answer().status, 408, "{part:?}");
        assert!(start.elapsed() >= least, "{part:?} was refused after {:?}", start.elapsed());
        client.expect_end();
    }
    let mut idle = server.client();
    idle.begin("/idle");
    let start = Instant::now();
    assert_eq!(idle.answer().text(), "/idle");
    idle.expect_end();
    assert!(start.elapsed() >= least, "closed after {:?}", start.elapsed());
    assert_eq!(worker.targets(), ["/idle"]);
}

/// All that the worker has sent lies in the server's kernel at once; only what the client takes of it moves.
fn a_tunnel_of_which_bytes_are_still_taken_is_not_idle(backend: &str) {
    const BYTES: usize = 256 << 10;
    let worker = crate::support::Worker::new(|incoming| {
        if incoming.head().is_some() {
            incoming.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
            incoming.send([0; BYTES]);
            while let Some(bytes) = incoming.any() {
                incoming.send(bytes);
            }
        }
    });
    let server = Server::before(backend, &worker.url, &["--idle-timeout", "2s"]);
    let socket = std::net::TcpStream::connect(server.address).unwrap();
    socket2::SockRef::from(&socket).set_recv_buffer_size(16 << 10).unwrap();
    let mut client = crate::support::Client::over(socket, Vec::new());
    client.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(client.next_answer(false).status, 101);
    for _ in 0..32 {
        client.take(BYTES / 32);
        std::thread::sleep(Duration::from_millis(150));
    }
    client.send("still here");
    assert_eq!(client.take(10), b"still here");
    // Now nothing moves.
    client.expect_end();
}
