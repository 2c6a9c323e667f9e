//! The clocks of clients.

use std::time::{Duration, Instant};

use super::*;

on_every_backend! {
    late_heads_and_bodies_are_refused_and_idle_connections_closed,
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
