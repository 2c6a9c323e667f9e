//! The logs of a running server: what apps say for them, and targets that block.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, PROGRAM, Server, Worker, folder, on_every_backend, until};

on_every_backend! {
    what_an_app_says_for_the_log_stays_here
    a_log_that_nobody_reads_holds_no_request_up
    the_time_of_a_line_is_when_its_request_came
    the_app_of_a_line_is_the_one_that_the_request_is_counted_for
    a_refused_request_is_told_as_far_as_it_was_read
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

fn what_an_app_says_for_the_log_stays_here(backend: &str) {
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            let said = match head.split(' ').nth(1).unwrap_or_default() {
                "/silent" => "Rip-No-Log: 1\r\n",
                "/marked" => "rip-mark:  order 7\"\r\n",
                "/both" => "RIP-MARK: x\r\nRIP-NO-LOG: 1\r\n",
                "/stream" => "Rip-Mark: s\r\nContent-Type: text/event-stream\r\n",
                _ => "Rip-No-Log: 0\r\n",
            };
            incoming.send(format!("HTTP/1.1 200 OK\r\n{said}Content-Length: 2\r\n\r\nok"));
        }
    });
    let folder = folder();
    let log = folder.path().join("access.log");
    let flags = ["--access-log", log.to_str().unwrap(), "--redact-query", "token"];
    let server = Server::before(backend, &worker.url, &flags);
    let mut client = Client::of(&server);
    for path in ["/silent", "/marked", "/both", "/stream", "/plain?token=secret"] {
        let answer = client.get(path);
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        assert!(answer.all("rip-mark").is_empty() && answer.all("rip-no-log").is_empty(), "{path}");
    }
    until("the lines are written", || lines(&log).len() >= 3);
    let lines = lines(&log);
    let found: Vec<_> = lines.iter().map(|line| (line["url.path"].as_str().unwrap(), line["mark"].as_str())).collect();
    assert_eq!(found, [("/marked", Some("order 7\"")), ("/stream", Some("s")), ("/plain", None)]);
    assert_eq!(lines[2]["url.query"], "token=[redacted]");
}

fn the_time_of_a_line_is_when_its_request_came(backend: &str) {
    let let_go = Arc::new(AtomicBool::new(false));
    let worker = {
        let let_go = let_go.clone();
        Worker::new(move |incoming| {
            while let Some((head, _)) = incoming.request() {
                until("the request is let go", || !head.starts_with("GET /held ") || let_go.load(Ordering::Relaxed));
                incoming.respond(b"ok");
            }
        })
    };
    let folder = folder();
    let log = folder.path().join("access.log");
    let server = Server::before(backend, &worker.url, &["--access-log", log.to_str().unwrap(), "--concurrency", "2"]);
    let mut held = Client::of(&server);
    held.begin("/held");
    until("it is with the worker", || worker.of("/held").is_some());
    assert_eq!(Client::of(&server).get("/other").status, 200);
    // The times of lines have milliseconds.
    let answered = Instant::now();
    until("the clock goes on", || answered.elapsed() > Duration::from_millis(5));
    let_go.store(true, Ordering::Relaxed);
    assert_eq!(held.answer().status, 200);
    until("the lines are written", || lines(&log).len() >= 2);
    let times: Vec<_> =
        lines(&log).iter().map(|line| (line["url.path"].to_string(), line["time"].to_string())).collect();
    assert_eq!((times[0].0.as_str(), times[1].0.as_str()), ("\"/other\"", "\"/held\""));
    assert!(times[1].1 <= times[0].1, "{times:?}");
}

fn a_log_that_nobody_reads_holds_no_request_up(backend: &str) {
    const AT_ONCE: usize = 200;
    let folder = folder();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut command = Command::new(PROGRAM);
    command.env("PRODUCTION_SERVER_ACCESS_LOG", &pipe);
    let server = Server::start_as(command, backend, &["--respond", "ok", "--access-log", pipe.to_str().unwrap()]);
    let mut client = Client::of(&server);
    let request = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(2000)).repeat(AT_ONCE);
    let mut sent = 0;
    while server.status()["log_lines_dropped"] == 0 {
        client.send(&request);
        for _ in 0..AT_ONCE {
            assert_eq!(client.answer().status, 200);
        }
        sent += AT_ONCE;
        assert!(sent < 100_000, "nothing was dropped");
    }
    let reader = std::fs::File::open(&pipe).unwrap();
    let reader = thread::spawn(move || {
        let lines = BufReader::new(reader).lines().map_while(Result::ok);
        lines.take_while(|line| !line.contains("/last")).count()
    });
    // Until there is room again, it may be dropped as well.
    until("the line of a later request is written", || {
        assert_eq!(client.get("/last").status, 200);
        reader.is_finished()
    });
    let written = reader.join().unwrap();
    assert!((1..sent).contains(&written), "{written} of {sent}");
    until("it is said how many were lost", || server.has_said("log lines were dropped"));
}

/// What was wrong, or did not come, is behind what was read.
fn a_refused_request_is_told_as_far_as_it_was_read(backend: &str) {
    let folder = folder();
    let log = folder.path().join("access.log");
    let flags = ["--respond", "ok", "--access-log", log.to_str().unwrap(), "--header-timeout", "300ms"];
    let server = Server::start(backend, &[&flags[..], &["--max-head", "2KiB", "--redact-query", "token"]].concat());
    let long = format!("GET /long HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(3000));
    let cases = [
        ("GET /none?token=x HTTP/1.1\r\n\r\n", 400, ["GET", "/none", "1.1", ""]),
        ("\r\nPOST /te HTTP/1.0\r\nHost: a:80\r\nTransfer-Encoding: x\r\n\r\n", 400, ["POST", "/te", "1.0", "a"]),
        ("GET /expects HTTP/1.1\r\nHost: a\r\nExpect: x\r\n\r\n", 417, ["GET", "/expects", "1.1", "a"]),
        ("GET /later HTTP/3.0\r\nHost: a\r\n\r\n", 505, ["GET", "/later", "3.0", "a"]),
        ("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n", 501, ["CONNECT", "a:1", "1.1", "a"]),
        ("GET /field HTTP/1.1\r\nX Y: 1\r\nHost: a\r\n\r\n", 400, ["GET", "/field", "1.1", "a"]),
        (&long, 431, ["GET", "/long", "1.1", "a"]),
        ("GET /slow HTTP/1.1\r\nHost: a\r\n", 408, ["GET", "/slow", "1.1", "a"]),
        ("GET /sl", 408, [""; 4]),
        ("\x16\x03\x01\x02\r\n\r\n", 400, [""; 4]),
        ("GET two words HTTP/1.1\r\nHost: a\r\n\r\n", 400, [""; 4]),
    ];
    for (index, (request, status, told)) in cases.into_iter().enumerate() {
        let mut client = server.client();
        client.send(request);
        assert_eq!(client.answer().status, status, "{request:?}");
        until("its line is written", || lines(&log).len() > index);
        let line = &lines(&log)[index];
        let names = ["http.request.method", "url.path", "network.protocol.version", "server.address"];
        let found = names.map(|name| line.get(name).map_or("", |value| value.as_str().unwrap()));
        assert_eq!((found, &line["http.response.status_code"]), (told, &status.into()), "{request:?}");
    }
    assert_eq!(lines(&log)[0]["url.query"], "token=[redacted]");
}

const SITE: &str = r#"
[server]
timeouts = { header = "300ms" }
[apps.first]
upstream = "WORKER"
[apps.second]
upstream = "WORKER"
[hub.talk]
[[routes]]
match.path = "/first"
app = "first"
[[routes]]
match.path = "/files/*"
static = { root = "FOLDER", prefix = "/files" }
[[routes]]
match.path = "/denied"
app = "second"
deny = ["127.0.0.1"]
[[routes]]
match.path = "/fixed"
respond = "fixed"
[[routes]]
app = "second"
"#;

/// Whoever answers it: the app, the loop in the place of one, or the server for itself.
fn the_app_of_a_line_is_the_one_that_the_request_is_counted_for(backend: &str) {
    let (folder, worker) = (folder(), Worker::saying("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
    let place = |name: &str| folder.path().join(name).display().to_string();
    let site = SITE.replace("WORKER", &worker.url).replace("FOLDER", folder.path().to_str().unwrap());
    std::fs::write(place("site.toml"), site).unwrap();
    std::fs::write(place("file"), "x".repeat(100)).unwrap();
    let log = folder.path().join("access.log");
    let server = Server::start(backend, &["-f", &place("site.toml"), "--access-log", log.to_str().unwrap()]);
    let asked = [
        ("GET /livez", "", 200, ""),
        ("GET /server", "", 200, ""),
        ("POST /api/v1/notify?topic=a", "Content-Length: 1\r\n", 202, ""),
        ("GET /first", "", 200, "first"),
        ("GET /other", "", 200, "second"),
        ("GET /files/file", "", 200, "static files"),
        ("GET /files/file", "Range: bytes=0-1\r\n", 206, "static files"),
        ("GET /files/file", "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT\r\n", 304, "static files"),
        ("GET /denied", "", 403, "second"),
        ("GET /fixed", "", 200, ""),
    ];
    for (request, fields, status, _) in asked {
        let body = if fields.starts_with("Content-Length") { "x" } else { "" };
        let mut client = server.client();
        client.send(format!("{request} HTTP/1.1\r\nHost: localhost\r\n{fields}\r\n{body}"));
        assert_eq!(client.answer().status, status, "{request}");
    }
    let mut late = server.client();
    late.send("GET /late HT");
    assert_eq!(late.answer().status, 408);
    until("the lines are written", || lines(&log).len() > asked.len());
    let lines = lines(&log);
    for ((request, _, status, app), line) in asked.iter().zip(&lines) {
        assert_eq!(line["http.response.status_code"], *status, "{request}: {line}");
        assert_eq!(line["app"].as_str().unwrap_or_default(), *app, "{request}: {line}");
    }
    let line = &lines[asked.len()];
    assert_eq!(
        (&line["http.response.status_code"], line["duration_ms"].as_f64()),
        (&408.into(), Some(300.0)),
        "{line}"
    );
}
