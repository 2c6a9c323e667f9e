//! Hubs among crowds that take nothing. Not through TLS: the tests' own takes for its clients what they leave.

use serde_json::json;

use super::{hub_of, notify};
use crate::support::on_every_backend;
use crate::support::websocket::{Socket, request};

on_every_backend! {
    a_crowd_that_reads_nothing_has_a_bound
}

/// Each of the deaf has begun at another message, and would keep that.
fn a_crowd_that_reads_nothing_has_a_bound(backend: &str) {
    let (server, _folder) =
        hub_of(backend, "memory = '4MiB'\nping = '10m'", &["--write-timeout", "10m", "--buffer-bytes", "16MiB"]);
    let mut fast: Vec<_> = (0..4).map(|_| Socket::open(&server, "/api/v1/listen", "")).collect();
    let mut publisher = server.client();
    let (mut deaf, mut before) = (Vec::new(), 0);
    for number in 0..1000 {
        let mut client = server.client();
        client.read_little();
        client.send(request("/api/v1/listen", ""));
        client.head().unwrap();
        deaf.push(client);
        let text = format!("{number} {}", "x".repeat(50_000));
        notify(&mut publisher, &json!({"data": text}));
        fast.iter_mut().for_each(|socket| assert_eq!(socket.next().text(), text));
        if number == 100 {
            before = server.peak_bytes();
        }
    }
    let status = server.status();
    assert!(status["hub_closed_slow"].as_u64().unwrap() > 0, "{status}");
    assert_eq!(status["hub_sockets"].as_u64().unwrap() + status["hub_closed_slow"].as_u64().unwrap(), 1004);
    let grown = server.peak_bytes() - before;
    assert!(grown < 24 << 20, "{grown}");
}
