//! The documents of the server's own: who gets them, and where.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::support::{Client, Server, Worker, folder, on_every_backend_and_tls};

on_every_backend_and_tls! {
    the_inside_is_told_to_this_machine_only
    the_inside_is_told_to_who_means_this_machine
    the_documents_move_under_a_prefix
    the_documents_leave_their_paths_to_the_app
    half_closed_clients_are_served_when_that_is_asked_for
}

/// Who answers `/status` with these lines in the head: the loop, or the app.
fn answers_status(client: &mut Client, lines: &str) -> &'static str {
    status_of(client, &format!("Host: localhost\r\n{lines}"))
}

/// The same, with these lines alone.
fn status_of(client: &mut Client, lines: &str) -> &'static str {
    let answer = client.ask(&format!("GET /status HTTP/1.1\r\n{lines}\r\n"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    if answer.text().starts_with("GET /status ") {
        return "app";
    }
    let document: serde_json::Value = serde_json::from_str(&answer.text()).unwrap();
    let (port, uptime) = (&document["ports"]["http"], &document["uptime"]);
    let expected = serde_json::json!({
        "status": "healthy", "app": "web", "workers": 1, "ports": { "http": port }, "uptime": uptime,
    });
    assert!(document == expected && port.is_u64() && uptime.is_u64(), "{document}");
    "loop"
}

fn the_inside_is_told_to_this_machine_only(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    assert_eq!(answers_status(&mut client, "Accept: */*\r\n"), "loop");
    // Whoever asks through a proxy on this machine is a stranger.
    for line in [
        "Forwarded: for=192.0.2.1",
        "X-Forwarded-For: 192.0.2.1",
        "x-forwarded-proto: https",
        "X-Forwarded-Host: a",
        "X-Forwarded-Port: 443",
        "X-Forwarded-Server: front",
        "X_Forwarded_For: 192.0.2.1",
        "Via: 1.1 front",
        "X-Real-IP: 192.0.2.1",
        "X-Forwarded-For: 127.0.0.1",
        "Connection: x-forwarded-for\r\nX-Forwarded-For: 192.0.2.1",
    ] {
        assert_eq!(answers_status(&mut client, &format!("{line}\r\n")), "app", "{line}");
    }
    // `ok` tells nothing.
    let answer = client.ask("GET /server HTTP/1.1\r\nHost: test\r\nVia: 1.1 front\r\n\r\n");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
}

fn the_inside_is_told_to_who_means_this_machine(backend: &str) {
    let worker = Worker::echo();
    let folder = folder();
    let socket = folder.path().join("app.sock");
    let listen = format!("unix:{}", socket.display());
    let server = Server::before(backend, &worker.url, &["--listen", "127.0.0.1:0", "--listen", &listen]);
    let mut client = Client::of(&server);
    for (host, who) in [
        ("localhost", "loop"),
        ("LOCALHOST:8080", "loop"),
        (&server.address.to_string(), "loop"),
        ("[::1]:80", "loop"),
        // A page whose own name points to this machine.
        ("rebound.example.org", "app"),
        ("localhost.example.org", "app"),
        ("10.0.0.1", "app"),
        ("", "app"),
    ] {
        assert_eq!(status_of(&mut client, &format!("Host: {host}\r\n")), who, "{host}");
    }
    let mut stream = UnixStream::connect(&socket).unwrap();
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\r\n\r\nGET /status "), "a proxy may be behind it: {answer}");
}

fn the_documents_move_under_a_prefix(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--internal", "/ops/server"]);
    let mut client = Client::of(&server);
    assert_eq!(client.get("/ops/server/server").text(), "ok");
    let status = client.ask("GET /ops/server/status HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(status.text().starts_with('{'), "{}", status.text());
    assert_eq!(answers_status(&mut client, ""), "app");
    for path in
        ["/server", "/ops/server", "/ops/server/", "/ops/serverserver", "/ops/server/other", "/ops/server/server/"]
    {
        let text = client.get(path).text();
        assert!(text.starts_with(&format!("GET {path} ")), "{path}: {text}");
    }
}

fn the_documents_leave_their_paths_to_the_app(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--internal", "off"]);
    let mut client = Client::of(&server);
    assert_eq!(answers_status(&mut client, ""), "app");
    assert!(client.get("/server").text().starts_with("GET /server "));
}

fn half_closed_clients_are_served_when_that_is_asked_for(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--half-close", "serve"]);
    let mut client = Client::of(&server);
    client.send("GET /last HTTP/1.1\r\nHost: test\r\n\r\n");
    client.finish();
    let answer = client.next_answer(false);
    assert!(answer.text().starts_with("GET /last "), "{}", answer.text());
    client.expect_end();
}
