//! The clocks of clients, and workers that are killed.

use std::time::{Duration, Instant};

use super::*;

on_both_backends! {
    late_heads_and_bodies_are_refused_and_idle_connections_closed,
    a_killed_worker_takes_only_its_own_request_along,
}

fn late_heads_and_bodies_are_refused_and_idle_connections_closed(backend: &str) {
    let folder = folder();
    let worker = Worker::mirror(&folder.path().join("w"));
    let flags = ["--header-timeout", "300ms", "--idle-timeout", "300ms", "--body-timeout", "300ms"];
    let server = Server::before(backend, &[&worker], &flags);
    let least = Duration::from_millis(300);
    for part in ["GET /half HTTP/1.1\r\nHost", "POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf"] {
        let mut client = server.client();
        let start = Instant::now();
        client.send(part);
        assert_eq!(client.answer().status, 408, "{part:?}");
        assert!(start.elapsed() >= least, "{part:?} was refused after {:?}", start.elapsed());
        assert!(client.is_ended());
    }
    let mut idle = server.client();
    idle.get("/idle");
    let start = Instant::now();
    assert_eq!(idle.answer().text(), "/idle");
    assert!(idle.is_ended(), "an idle connection ends without a word");
    assert!(start.elapsed() >= least, "closed after {:?}", start.elapsed());
    assert_eq!(worker.targets(), ["/idle"]);
}

fn a_killed_worker_takes_only_its_own_request_along(backend: &str) {
    let server = Server::start(backend, &["-w", "1"]);
    let is_worker = |process: &Process| process.command.contains(" worker");
    for method in ["GET", "POST"] {
        until("the worker is ready", || server.status()["ready"] == 1);
        let mut running = server.client();
        running.send(&format!("{method} /sleep?ms=20000 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        until("it is with the worker", || server.status()["busy"] == 1);
        let mut waiting = server.client();
        waiting.get("/ping");
        until("another waits", || server.status()["queue"]["depth"] == 1);
        let killed: Vec<Process> = server.descendants().into_iter().filter(is_worker).collect();
        assert_eq!(killed.len(), 1, "{killed:?}");
        send_signal(killed[0].id, "KILL");
        assert_eq!(running.answer().status, 502, "{method}");
        // The one worker there is now answers at once: it was not given the request that killed its predecessor.
        assert_eq!(waiting.answer().text(), "pong");
        assert_eq!(server.status()["busy"], 0);
    }
}
