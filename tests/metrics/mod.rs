//! What the server counts agrees with what was done to it, in every form; and the checks that balancers ask for.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, mpsc};

use crate::support::{Client, PROGRAM, Server, Worker, exposition, folder, on_every_backend, until};

mod forms;
mod outcomes;

on_every_backend! {
    the_documents_are_for_this_machine_and_the_admin_listener_for_all
    readiness_fails_first_at_a_stop
    who_watches_is_answered_until_the_drain_is_over
    what_came_since_the_last_interval_is_pushed_at_a_stop
}

/// The address of the admin listener, as the server says it.
fn admin(server: &Server) -> SocketAddr {
    until("the server says where", || server.has_said("listening for those who watch"));
    let line = server.lines().into_iter().find(|line| line.contains("listening for those who watch"));
    let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
    line["address"].as_str().unwrap().parse().unwrap()
}

fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = Client::to(address).ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    (answer.status, answer.text())
}

fn the_documents_are_for_this_machine_and_the_admin_listener_for_all(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--admin", "127.0.0.1:0", "--max-connections", "1"]);
    server.until_ready(1);
    let admin = admin(&server);
    for path in ["/metrics", "/livez", "/readyz", "/health_check", "/status"] {
        let mut client = Client::of(&server);
        let own = client.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert!(own.status == 200 && !own.text().starts_with("GET "), "{path}: {}", own.text());
        // The connection goes on, and what was sent behind a question is answered behind its answer.
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(client.answer().status, 200);
        assert!(client.answer().text().starts_with("GET /next "));
        let forwarded = client.ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nVia: 1.1 front\r\n\r\n"));
        assert!(
            forwarded.text().starts_with(&format!("GET {path} ")),
            "{path} belongs to the app: {}",
            forwarded.text()
        );
        let through = Client::to(admin)
            .ask(&format!("GET {path} HTTP/1.1\r\nHost: ops.example\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"));
        assert!(through.status == 200 && !through.text().starts_with("GET "), "{path}: {}", through.text());
        let mut head = Client::to(admin);
        head.send(format!("HEAD {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        assert_eq!(head.next_answer(true).status, 200, "{path}");
        head.send("GET /server HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(head.answer().text(), "ok");
    }
    assert_eq!(get(admin, "/app"), (404, Client::to(admin).ask("GET /app HTTP/1.1\r\nHost: a\r\n\r\n").text()));
    assert_eq!(get(admin, "/livez?verbose"), (200, "[+] loop 0: ok\nok\n".to_owned()));
    assert_eq!(get(admin, "/readyz?verbose"), (200, "[+] listeners: ok\n[+] app web: ok\nok\n".to_owned()));
    assert_eq!(get(admin, "/health_check?verbose").1, "[+] loop 0: ok\n[+] listeners: ok\n[+] app web: ok\nok\n");
    // Off for the public, and still there for those who watch.
    // What stands in front of the public listeners does not stand in front of it.
    let flags = ["--admin", "127.0.0.1:0", "--proxy-protocol", "10.0.0.0/8", "--trusted-proxies", "loopback"];
    let server = Server::before(backend, &worker.url, &flags);
    assert_eq!(get(self::admin(&server), "/metrics").0, 200);
    let server = Server::before(backend, &worker.url, &["--admin", "127.0.0.1:0", "--internal", "off"]);
    assert!(get(server.address, "/metrics").1.starts_with("GET /metrics "));
    assert_eq!(get(self::admin(&server), "/metrics").0, 200);
    let server = Server::before(backend, &worker.url, &["--metrics", "off"]);
    assert!(get(server.address, "/metrics").1.starts_with("GET /metrics "));
}

fn readiness_fails_first_at_a_stop(backend: &str) {
    let worker = Worker::echo();
    let mut server = Server::before(backend, &worker.url, &["--pre-stop-delay", "700ms"]);
    server.until_ready(1);
    assert_eq!(get(server.address, "/readyz").0, 200);
    server.signal("TERM");
    until("it says that it leaves", || {
        get(server.address, "/readyz") == (503, "[-] listeners: the server stops\nfailed\n".to_owned())
    });
    // New connections are served on.
    assert_eq!(server.client().get("/still").status, 200);
    assert_eq!(get(server.address, "/livez").0, 200);
    assert_eq!(server.ended().code(), Some(0));
    // A second signal does not wait.
    let mut server = Server::before(backend, &worker.url, &["--pre-stop-delay", "10m"]);
    server.until_ready(1);
    server.signal("TERM");
    until("it says that it leaves", || get(server.address, "/readyz").0 == 503);
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
}

/// They see it from begin to end, and nobody of them holds it up, whatever they do or leave.
fn who_watches_is_answered_until_the_drain_is_over(backend: &str) {
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let worker = Worker::new(move |incoming| {
        while incoming.request().is_some() {
            gate.lock().unwrap().recv().ok();
            incoming.respond(b"done");
        }
    });
    let flags = ["--admin", "127.0.0.1:0", "--loops", "2", "--header-timeout", "10m"];
    let mut server = Server::before(backend, &worker.url, &flags);
    server.until_ready(1);
    let admin = admin(&server);
    let mut busy = server.client();
    busy.begin("/slow");
    until("it is busy", || server.status()["busy"] == 1);
    let mut early = Client::to(admin);
    until("it is let in", || server.status()["active_connections"] == 2);
    // Without a deadline of its own.
    let mut drain = Command::new(PROGRAM).arg("drain").arg("--run-dir").arg(server.run()).spawn().unwrap();
    until("it says that it leaves", || get(admin, "/readyz").0 == 503);
    for _ in 0..8 {
        assert_eq!(get(admin, "/readyz"), (503, "[-] listeners: the server stops\nfailed\n".to_owned()));
        assert_eq!(get(admin, "/livez").0, 200);
    }
    // Who had come before and has not asked yet is no less a watcher.
    assert_eq!(early.get("/readyz").status, 503);
    let (status, text) = get(admin, "/metrics");
    assert_eq!(status, 200);
    assert_eq!(
        exposition::read(&text, false)["production_server_worker_requests_in_flight{app=\"web\",worker=\"1\"}"],
        1.0
    );
    let (mut silent, mut half) = (Client::to(admin), Client::to(admin));
    half.send("GET /live");
    assert_eq!(get(admin, "/livez").0, 200);
    go.send(()).unwrap();
    assert_eq!(busy.answer().text(), "done");
    assert_eq!(server.ended().code(), Some(0));
    assert!(drain.wait().unwrap().success());
    silent.rest();
    half.rest();
    assert!(Client::reach(admin).is_err());
}

fn what_came_since_the_last_interval_is_pushed_at_a_stop(backend: &str) {
    let mut pushed = forms::Pushed::new();
    let folder = folder();
    let file = folder.path().join("metrics.json");
    #[rustfmt::skip]
    let flags = [
        "--respond", "ok", "--statsd", &pushed.address, "--statsd-interval", "1h",
        "--cloudwatch", file.to_str().unwrap(), "--cloudwatch-interval", "1h",
    ];
    let mut server = Server::start(backend, &flags);
    let mut client = server.client();
    (0..7).for_each(|_| assert_eq!(client.get("/x").status, 200));
    let started = || {
        let text = get(server.address, "/metrics").1;
        exposition::read(&text, false)["production_server_start_time_seconds"].to_bits()
    };
    assert_eq!(started(), started(), "it has started once");
    assert!(std::fs::read_to_string(&file).unwrap_or_default().is_empty());
    server.signal("TERM");
    assert_eq!(server.ended().code(), Some(0));
    let name = "http_server_requests_total{app=\"web\",code=\"200\"}";
    let dotted = forms::dotted(name);
    let end = std::time::Instant::now() + crate::support::DEADLINE;
    while !pushed.sums.contains_key(&dotted) {
        pushed.take(end, |sums| vec![format!("{sums:?}")]);
    }
    assert_eq!(pushed.sums[&dotted], 7.0);
    assert_eq!(forms::cloudwatch(Path::new(&file))[name], 7.0);
}
