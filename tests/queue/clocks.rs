//! The clocks of clients, and workers that are killed.

use std::time::{Duration, Instant};

use super::*;

on_every_backend! {
    late_heads_and_bodies_are_refused_and_idle_connections_closed,
    a_killed_worker_takes_only_its_own_request_along,
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

fn a_killed_worker_takes_only_its_own_request_along(backend: &str) {
    let server = Server::start(backend, &["-w", "1"]);
    for method in ["GET", "POST"] {
        server.until_ready(1);
        let mut running = server.client();
        running.send(format!("{method} /sleep?ms=20000 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        until("it is with the worker", || server.status()["busy"] == 1);
        let mut waiting = server.client();
        waiting.begin("/ping");
        until("another waits", || server.status()["queue"]["depth"] == 1);
        let killed = server.workers();
        assert_eq!(killed.len(), 1, "{killed:?}");
        send_signal(killed[0].id, "KILL");
        assert_eq!(running.answer().status, 502, "{method}");
        // The one worker there is now answers at once: it was not given the request that killed its predecessor.
        assert_eq!(waiting.answer().text(), "pong");
        assert_eq!(server.status()["busy"], 0);
    }
}
