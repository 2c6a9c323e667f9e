//! A hub that goes over to another process: who listens comes back to it, with nothing lost and nothing twice.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use super::{event, stream};
use crate::support::websocket::{CLOSE, Socket, TEXT};
use crate::support::{PROGRAM, Process, Server, Worker, fields, folder, on_every_backend, until};
use crate::upgrades::{Line, path};

on_every_backend! {
    who_comes_back_after_an_upgrade_has_missed_nothing,
    a_replica_that_is_upgraded_costs_nobody_a_message,
    what_an_app_says_to_the_old_server_reaches_clients_of_the_new_one,
}

fn line(backend: &str, web: &str, hub: &str) -> Line {
    let folder = folder();
    let file = path(&folder, "hub.toml");
    std::fs::write(&file, format!("[apps.web]\n{web}\n[hub.live]\n{hub}\n")).unwrap();
    Line::start_in(folder, Command::new(PROGRAM), backend, &["--loops", "2", "--config", &file])
}

/// Publishes a number, however often that has to be asked for.
fn publish(server: &Server, number: usize) {
    let body = json!({"data": number, "id": number.to_string()}).to_string();
    let request =
        format!("POST /api/v1/notify HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    for _ in 0..1000 {
        let answer = server.client().ask(&request);
        if answer.status == 202 {
            return;
        }
        assert_eq!((answer.status, answer.field("Retry-After")), (503, Some("1")), "{}", answer.text());
        assert!(answer.has("connection: close"), "{}", answer.head);
    }
    panic!("nobody takes {number}");
}

/// Publishes at one server, over and over, while the line is upgraded: how many were published there by then.
fn publish_while_it_is_upgraded(line: &Line, at: &Server, from: usize) -> usize {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let mut next = from;
            while !is_over.load(Ordering::SeqCst) {
                publish(at, next);
                next += 1;
            }
            next
        });
        line.upgraded();
        is_over.store(true, Ordering::SeqCst);
        publisher.join().unwrap()
    })
}

/// Reads up to that number: each once and in order. Whoever is sent away comes back with the last id; how often.
fn read_to(socket: &mut Socket, server: &Server, count: usize) -> usize {
    let (mut next, mut last, mut moved) = (0, String::new(), 0);
    while next <= count {
        let frame = socket.next();
        if frame.head == CLOSE {
            assert_eq!(frame.code(), 1012);
            *socket = Socket::told(server, &format!("/api/v1/listen?last_event_id={last}"));
            moved += 1;
            continue;
        }
        let message = frame.json();
        assert_eq!((&message["type"], &message["data"]), (&json!("message"), &json!(next)), "{message}");
        last = message["id"].as_str().unwrap().to_owned();
        next += 1;
    }
    moved
}

fn who_comes_back_after_an_upgrade_has_missed_nothing(backend: &str) {
    const SOCKETS: usize = 1000;
    let line = line(backend, "respond = 'hello'", "history = { count = 100000, bytes = '16MiB' }\nping = '10m'");
    let server = &line.server;
    let mut sockets: Vec<_> = (0..SOCKETS).map(|_| Socket::told(server, "/api/v1/listen")).collect();
    let mut listener = stream(server, "/api/v1/listen", "");
    (0..20).for_each(|number| publish(server, number));
    let old = line.process();
    let count = publish_while_it_is_upgraded(&line, server, 20);
    // A publisher who does not know whether it was heard asks the new server again.
    publish(server, count - 1);
    publish(server, count);
    for socket in &mut sockets {
        assert!(read_to(socket, server, count) <= 1);
    }
    // An event stream is told when to come again, and comes with what it has seen.
    let (mut next, mut last) = (0, String::new());
    while next <= count {
        let lines = event(&mut listener);
        if lines[0].starts_with("retry: ") {
            last = lines[1].clone();
            assert_eq!(listener.line().as_deref(), Some("0"));
            let id = last.strip_prefix("id: ").unwrap();
            listener = stream(server, "/api/v1/listen", &format!("Last-Event-ID: {id}\r\n"));
            continue;
        }
        assert_eq!(lines[1], format!("data: {next}"));
        next += 1;
    }
    assert!(!last.is_empty(), "it was sent away");
    until("the old server is gone", || Process::of(old).is_none());
    line.stop();
}

fn a_replica_that_is_upgraded_costs_nobody_a_message(backend: &str) {
    let folder = folder();
    let keys =
        format!("history = {{ count = 100000, bytes = '16MiB' }}\nbus = {{ directory = '{}' }}", path(&folder, "bus"));
    let state = |server: &Server| server.hubs()[0]["bus"]["state"].as_str().unwrap_or_default().to_owned();
    let line = line(backend, "respond = 'hello'", &keys);
    until("it leads", || state(&line.server) == "leads");
    let file = path(&folder, "other.toml");
    std::fs::write(&file, format!("[apps.web]\nrespond = 'hello'\n[hub.live]\n{keys}\n")).unwrap();
    let other = Server::start(backend, &["--config", &file]);
    until("it follows", || state(&other) == "follows");
    let servers = [&line.server, &other];
    let mut sockets: Vec<_> =
        (0..60).map(|number| (servers[number % 2], Socket::told(servers[number % 2], "/api/v1/listen"))).collect();
    // First the one that numbers, then one that follows.
    let mut next = 0;
    for at in [&line.server, &other, &line.server] {
        let old = line.process();
        next = publish_while_it_is_upgraded(&line, at, next);
        until("the old server is gone", || Process::of(old).is_none());
    }
    publish(&other, next);
    for (server, socket) in &mut sockets {
        let moved = read_to(socket, server, next);
        assert_eq!(moved > 0, std::ptr::eq(*server, &line.server));
    }
    line.stop();
}

fn what_an_app_says_to_the_old_server_reaches_clients_of_the_new_one(backend: &str) {
    let may = Arc::new(AtomicBool::new(false));
    let may_answer = may.clone();
    let worker = Worker::new(move |incoming| {
        while let Some((head, _)) = incoming.request() {
            let is_text = fields(&head, "sec-websocket-frame").first() == Some(&"text");
            if is_text {
                until("it may answer", || may_answer.load(Ordering::SeqCst));
            }
            let body =
                if is_text { json!({"@": "/lobby", "said": "late"}) } else { json!({"+": "/lobby"}) }.to_string();
            incoming.send(
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            );
        }
    });
    let line = line(backend, &format!("upstream = ['{}']", worker.url), "app = 'web'");
    let old = line.process();
    let mut socket = Socket::open(&line.server, "/api/v1/listen", "");
    socket.send(TEXT, b"hi");
    until("the app has it", || String::from_utf8_lossy(&worker.everything()).contains("Sec-WebSocket-Frame: text"));
    line.upgraded();
    assert_eq!(socket.expect_close(), 1012);
    let mut back = Socket::open(&line.server, "/api/v1/listen", "");
    until("it listens", || {
        let hubs: Value = line.status()["hubs"].clone();
        hubs[0]["subscribers"] == 2
    });
    assert!(Process::of(old).is_some(), "it waits for the app");
    may.store(true, Ordering::SeqCst);
    assert_eq!(back.next().json(), json!({"said": "late"}));
    until("the old server is gone", || Process::of(old).is_none());
    line.stop();
}
