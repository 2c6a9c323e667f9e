//! Requests of every outcome, and what must have been counted of them, in every form.

use std::cell::Cell;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Instant;

use super::forms::{self, OPEN, Pushed, scrape};
use crate::support::exposition::Samples;
use crate::support::websocket::{CLOSE, Socket};
use crate::support::{Client, DEADLINE, PROGRAM, Server, Worker, folder, on_every_backend, until};

on_every_backend! {
    counters_agree_with_what_was_done
}

const SITE: &str = r#"
[server]
max_body = "2MiB"
max_head = "2KiB"
timeouts = { header = "1s", body = "1s", idle = "1s", write = "1s" }

[[listen]]
address = "unix:{folder}/strict"
proxy_protocol = { from = ["unix"], timeout = "100ms" }
[[listen]]
address = "unix:{folder}/closed"
proxy_protocol = { from = ["10.0.0.0/8"] }

[apps.web]
upstream = "{worker}"
concurrency = 8
request_buffering = "memory"
timeouts = { read = "1s" }
[apps.narrow]
upstream = "{worker}"
queue = { size = 1, timeout = "500ms" }
timeouts = { read = "10s" }
[apps.absent]
upstream = "unix:{folder}/absent"
queue = { hold = "100ms" }
[apps.closed]
upstream = "{worker}"
max_tunnels = 0
[apps.gone]
command = ["false"]
workers = 1
required = false
restart = { base = "1ms", max = "1h", give_up = { crashes = 2, within = "60s" } }

[hub.talk]
[hub.silent]
path = "/silent"
ping = "50ms"
pong = "50ms"

[[routes]]
match.path = "/narrow/*"
app = "narrow"
[[routes]]
match.path = "/absent/*"
app = "absent"
[[routes]]
match.path = "/closed/*"
app = "closed"
[[routes]]
match.path = "/gone/*"
app = "gone"
[[routes]]
match.path = "/fixed"
respond = "fixed"
[[routes]]
match.path = "/empty"
respond = { status = 204 }
[[routes]]
match.path = "/old"
redirect = { to = "/fixed", status = 308 }
[[routes]]
match.host = "test"
app = "web"
"#;

/// A worker for every outcome, by the last part of the path that is asked for; some wait for a word.
fn worker() -> (Worker, mpsc::Sender<()>) {
    let (go, gate) = mpsc::channel::<()>();
    let (gate, busy, flaky) = (Mutex::new(gate), AtomicUsize::new(0), AtomicUsize::new(0));
    let worker = Worker::new(move |incoming| {
        while let Some(head) = incoming.head() {
            let path = head.split(' ').nth(1).unwrap().rsplit('/').next().unwrap().to_owned();
            if path == "early" {
                incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok");
                return incoming.drain();
            }
            let length = crate::support::fields(&head, "content-length").first().map_or(0, |it| it.parse().unwrap());
            if incoming.take(length).is_none() {
                return;
            }
            let answer = |status: &str, fields: &str, body: &str| {
                format!("HTTP/1.1 {status} Of Test\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
            };
            match path.as_str() {
                "missing" => incoming.send(answer("404", "", "no")),
                "moved" => incoming.send(answer("302", "Location: /ok\r\n", "")),
                "error" => incoming.send(answer("500", "", "no")),
                "none" => incoming.send("HTTP/1.1 204 No\r\n\r\n"),
                "same" => incoming.send("HTTP/1.1 304 No\r\n\r\n"),
                "interim" => incoming.send(format!("HTTP/1.1 103 Early\r\n\r\n{}", answer("200", "", "ok"))),
                "rubbish" => incoming.send("HTTX/1.1 200 OK\r\n\r\n"),
                "head" => incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
                "large" => incoming.send(answer("200", "", &"x".repeat(16 << 20))),
                "die" => return,
                "upload" => return incoming.drain(),
                "flaky" if flaky.fetch_add(1, Ordering::SeqCst) == 0 => return,
                "deaf" => {
                    incoming.take_no_more();
                    incoming.send(answer("200", "", "ok"));
                    // Held open, or the end would be seen before the next request.
                    return gate.lock().unwrap().recv_timeout(DEADLINE).unwrap();
                }
                "cut" => {
                    incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ncu");
                    return;
                }
                "half" => {
                    incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nha");
                    return incoming.drain();
                }
                "busy" if busy.fetch_add(1, Ordering::SeqCst) == 0 => {
                    incoming.send(answer("503", "Rip-Worker-Busy: 1\r\n", ""))
                }
                "silent" => return gate.lock().unwrap().recv_timeout(DEADLINE).unwrap(),
                "stream" => {
                    incoming.send(
                        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: 1\n\n",
                    );
                    return;
                }
                "quiet" => {
                    incoming.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n");
                    return incoming.drain();
                }
                "tunnel" => {
                    incoming
                        .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
                    return incoming.drain();
                }
                _ => incoming.send(answer("200", "", "ok")),
            };
        }
    });
    (worker, go)
}

/// A server, and how many connections it has been asked for.
struct Script<'a> {
    server: &'a Server,
    go: mpsc::Sender<()>,
    connections: Cell<u32>,
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

const TUNNEL: &str = "HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";

impl Script<'_> {
    fn client(&self) -> Client {
        self.connections.set(self.connections.get() + 1);
        self.server.client()
    }

    fn send(&self, request: &str) -> Client {
        let mut client = self.client();
        client.send(request);
        client
    }

    /// Requests over connections of their own, each with the status that is expected.
    fn expect(&self, requests: &[(&str, u16)]) {
        for (request, status) in requests {
            let mut client = self.send(request);
            let mut answers = std::iter::repeat_with(|| client.next_answer(request.starts_with("HEAD")));
            let last = answers.find(|answer| answer.status >= 200).unwrap();
            assert_eq!(last.status, *status, "{}: {}", request.lines().next().unwrap(), last.text());
        }
    }

    fn until(&self, number: &str, value: u64) {
        until(number, || self.server.status()[number] == value);
    }

    fn until_busy(&self, app: &str) {
        let busy =
            || self.server.apps().as_array().unwrap().iter().any(|it| it["name"] == app && it["workers_busy"] == 1);
        until("a worker has it", busy);
    }

    /// Every byte is counted, in both directions.
    fn bytes(&self) {
        let mut client = self.client();
        let request = "GET /server HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let answer = client.ask(request);
        let sent = answer.head.len() + "\r\n".len() + answer.body.len();
        self.until("bytes_sent", sent as u64);
        self.until("bytes_received", request.len() as u64);
    }

    /// What ends with a whole answer.
    fn answered(&self) {
        let mut kept = self.client();
        (0..3).for_each(|_| assert_eq!(kept.get("/ok").status, 200));
        kept.send([get("/ok"), get("/fixed"), get("/missing")].concat());
        assert_eq!([kept.answer().status, kept.answer().status, kept.answer().status], [200, 200, 404]);
        let body = "Host: test\r\nContent-Length: 3\r\n\r\n";
        self.expect(&[
            (&get("/moved"), 302),
            (&get("/error"), 500),
            (&get("/none"), 204),
            (&get("/same"), 304),
            (&get("/interim"), 200),
            ("HEAD /head HTTP/1.1\r\nHost: test\r\n\r\n", 200),
            (&format!("POST /ok HTTP/1.1\r\n{body}abc"), 200),
            ("POST /early HTTP/1.1\r\nHost: test\r\nContent-Length: 2000000\r\n\r\na", 200),
            (&format!("POST /ok HTTP/1.1\r\nConnection: close\r\n{body}abc"), 200),
            (&get("/busy"), 200),
            (&get("/stream"), 200),
            (&get("/fixed"), 200),
            ("HEAD /fixed HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            (&get("/empty"), 204),
            (&get("/old"), 308),
            ("GET /nobody HTTP/1.1\r\nHost: other\r\n\r\n", 404),
            ("GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
            ("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ]);
        let mut waits = self.send(&format!("POST /ok HTTP/1.1\r\nExpect: 100-continue\r\n{body}"));
        assert_eq!(waits.next_answer(false).status, 100);
        waits.send("abc");
        assert_eq!(waits.answer().status, 200);
        // The connection that was used last is the first to be used again.
        self.expect(&[(&get("/ok"), 200), (&get("/flaky"), 200), (&get("/deaf"), 200), (&get("/ok"), 200)]);
        self.go.send(()).unwrap();
    }

    /// What the server refuses by itself.
    fn refused(&self) {
        let (long, body) = ("x".repeat(3000), "x".repeat((2 << 20) + 1));
        self.expect(&[
            ("GET /ok HTTP/1.1\r\nHost: test\r\nHost: test\r\n\r\n", 400),
            ("POST /ok HTTP/1.1\r\nHost: test\r\nContent-Length: 2097153\r\n\r\n", 413),
            (
                &format!("POST /upload HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n300000\r\n{body}"),
                413,
            ),
            ("POST /ok HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\nno\r\n", 400),
            (&format!("GET /{long} HTTP/1.1\r\nHost: test\r\n\r\n"), 414),
            (&format!("GET /ok HTTP/1.1\r\nHost: test\r\nX-Long: {long}\r\n\r\n"), 431),
            (&format!("{} /ok HTTP/1.1\r\nHost: test\r\n\r\n", "M".repeat(40)), 501),
            ("GET /ok HTTP/2.0\r\nHost: test\r\n\r\n", 505),
            ("CONNECT test:80 HTTP/1.1\r\nHost: test:80\r\n\r\n", 501),
            ("TRACE /ok HTTP/1.1\r\nHost: test\r\nMax-Forwards: 0\r\n\r\n", 405),
            ("GET /ok HT", 408),
            ("POST /ok HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\na", 408),
        ]);
        // One that never says anything.
        self.client().expect_end();
    }

    /// What ends because no worker is there for it, or one fails.
    fn failed(&self) {
        self.expect(&[
            ("POST /die HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx", 502),
            (&get("/rubbish"), 502),
            (&get("/silent"), 504),
            (&get("/absent/ok"), 503),
            (&get("/gone/ok"), 503),
            (&format!("GET /closed/tunnel {TUNNEL}"), 503),
        ]);
        self.go.send(()).unwrap();
        assert!(self.send(&get("/cut")).whole_answer().is_none());
        assert!(self.send(&get("/quiet")).whole_answer().is_none());
        // The only worker is busy: one may wait for it and waits in vain, one leaves while it waits.
        let mut first = self.send(&get("/narrow/silent"));
        self.until_busy("narrow");
        let mut waits = self.send(&get("/narrow/ok"));
        until("one waits", || self.server.apps()[1]["queue"]["depth"] == 1);
        self.expect(&[(&get("/narrow/ok"), 503)]);
        assert_eq!(waits.answer().status, 504);
        let leaves = self.send(&get("/narrow/ok"));
        until("one waits", || self.server.apps()[1]["queue"]["depth"] == 1);
        drop(leaves);
        self.until("client_gone", 1);
        self.go.send(()).unwrap();
        assert_eq!(first.answer().status, 502);
    }

    /// Whoever leaves, and whoever has to.
    fn left(&self) {
        let leaves = self.send(&get("/silent"));
        self.until_busy("web");
        drop(leaves);
        self.until("client_gone", 2);
        self.go.send(()).unwrap();
        let mut leaves = self.send(&get("/half"));
        leaves.head().unwrap();
        drop(leaves);
        self.until("client_gone", 3);
        let mut tunnel = self.send(&format!("GET /tunnel {TUNNEL}"));
        assert_eq!(tunnel.next_answer(false).status, 101);
        tunnel.finish();
        tunnel.expect_end();
        let mut tunnel = self.send(&format!("GET /tunnel {TUNNEL}"));
        assert_eq!(tunnel.next_answer(false).status, 101);
        tunnel.reset();
        self.until("client_gone", 4);
        let mut slow = self.client();
        slow.read_little();
        let before = self.server.status()["timeouts"].as_u64().unwrap();
        slow.send(get("/large"));
        self.until("timeouts", before + 1);
        self.until("client_gone", 5);
    }

    /// What is said to hubs, and by them.
    fn hubs(&self) {
        let publish = |id: &str, more: &str| {
            let body = format!(r#"{{"topic":"a","data":"x","id":"{id}"}}"#);
            let length = body.len();
            format!("POST /api/v1/notify HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {length}\r\n\r\n{body}")
        };
        let open = |target: &str, more: &str| {
            self.connections.set(self.connections.get() + 1);
            Socket::open(self.server, target, more)
        };
        let told = "Sec-WebSocket-Protocol: hub.v1\r\n";
        let (a, lost) = ("/api/v1/listen?topic=a", "/api/v1/listen?topic=a&last_event_id=0000000000001:1");
        // Two listen to two messages, one of which came twice; one gets both and is told that others are missing, and one cannot be told.
        let mut stream = self.send(&format!("GET {a} HTTP/1.1\r\nHost: test\r\nAccept: text/event-stream\r\n\r\n"));
        assert!(stream.head().unwrap().starts_with("HTTP/1.1 200 "));
        let mut socket = open(a, "");
        self.expect(&[(&publish("1", ""), 202), (&publish("1", ""), 202), (&publish("2", ""), 202)]);
        assert_eq!([socket.next().text(), socket.next().text()], ["x", "x"]);
        let mut late = open(lost, told);
        assert_eq!(
            (0..3).map(|_| late.next().json()["type"].take()).collect::<Vec<_>>(),
            ["gap", "message", "message"]
        );
        assert_eq!(open(lost, "").expect_close(), 4409);
        // A poll has both at once, and what was missing before them.
        self.expect(&[(&get(lost), 200)]);
        // Two whose origin, and who, is not to publish.
        self.expect(&[
            (&publish("3", "Origin: https://other.example\r\n"), 403),
            (&publish("3", "Via: 1.1 front\r\n"), 401),
        ]);
        for (frame, code) in [(&b"\x81\0"[..], 1002), (b"\x81\xff\0\0\0\0\x40\0\0\0\0\0\0\0", 1009)] {
            let mut socket = open(a, "");
            socket.client.send(frame);
            assert_eq!(socket.expect_close(), code);
        }
        for mut socket in [socket, late] {
            socket.send(CLOSE, &1000_u16.to_be_bytes());
            assert_eq!(socket.expect_close(), 1000);
        }
        open("/silent/listen", "").client.rest();
        drop(stream);
        self.until("hub_event_streams", 0);
    }

    /// Connections that do not begin as they must.
    fn turned_away(&self, folder: &Path) {
        for (name, said) in [("closed", ""), ("strict", "GET / HTTP/1.1\r\n\r\n"), ("strict", "PROXY TCP4")] {
            self.connections.set(self.connections.get() + 1);
            let mut stream = UnixStream::connect(folder.join(name)).unwrap();
            // It may be closed before this is written.
            let _ = stream.write_all(said.as_bytes());
            std::io::copy(&mut stream, &mut std::io::sink()).ok();
        }
    }
}

/// What must have been counted, with whatever there is of each of these metrics: one that is not 0 and not here is a mistake.
const EXPECTED: &[(&str, &[(&str, u32)])] = &[
    (
        "http_server_requests_total",
        &[
            (r#"app="web",route="test/*",code="101""#, 2),
            // Those that were answered whole, after a second try or early; cut; left or not read by their client; and two streams.
            (r#"app="web",route="test/*",code="200""#, 20),
            (r#"app="web",route="test/*",code="204""#, 1),
            (r#"app="web",route="test/*",code="302""#, 1),
            (r#"app="web",route="test/*",code="304""#, 1),
            (r#"app="web",route="test/*",code="400""#, 1),
            (r#"app="web",route="test/*",code="404""#, 1),
            (r#"app="web",route="test/*",code="408""#, 1),
            (r#"app="web",route="test/*",code="413""#, 2),
            (r#"app="web",route="test/*",code="499""#, 1),
            (r#"app="web",route="test/*",code="500""#, 1),
            (r#"app="web",route="test/*",code="502""#, 2),
            (r#"app="web",route="test/*",code="504""#, 1),
            (r#"app="narrow",route="/narrow/*",code="499""#, 1),
            (r#"app="narrow",route="/narrow/*",code="502""#, 1),
            (r#"app="narrow",route="/narrow/*",code="503""#, 1),
            (r#"app="narrow",route="/narrow/*",code="504""#, 1),
            (r#"app="absent",route="/absent/*",code="503""#, 1),
            (r#"app="gone",route="/gone/*",code="503""#, 1),
            (r#"app="closed",route="/closed/*",code="503""#, 1),
            (r#"route="/fixed",code="200""#, 3),
            (r#"route="/empty",code="204""#, 1),
            (r#"route="/old",code="308""#, 1),
            // Those of hubs: five sockets, a stream and a poll, and one socket that says nothing.
            (r#"route="/api/v1/listen",code="101""#, 5),
            (r#"route="/api/v1/listen",code="200""#, 2),
            (r#"route="/api/v1/notify",code="202""#, 3),
            (r#"route="/api/v1/notify",code="401""#, 1),
            (r#"route="/api/v1/notify",code="403""#, 1),
            (r#"route="/silent/listen",code="101""#, 1),
            // Of the server's own, and those of no app.
            (r#"code="200""#, 3),
            (r#"code="400""#, 1),
            (r#"code="404""#, 1),
            (r#"code="405""#, 1),
            (r#"code="408""#, 1),
            (r#"code="414""#, 1),
            (r#"code="431""#, 1),
            (r#"code="501""#, 2),
            (r#"code="505""#, 1),
        ],
    ),
    (
        "http_server_request_duration_seconds_count",
        &[
            // Without two tunnels, two streams, and three whose client left, one of them before there was a status, or did not read.
            (r#"app="web",route="test/*""#, 28),
            (r#"app="narrow",route="/narrow/*""#, 3),
            (r#"app="absent",route="/absent/*""#, 1),
            (r#"app="gone",route="/gone/*""#, 1),
            (r#"app="closed",route="/closed/*""#, 1),
            (r#"route="/fixed""#, 3),
            (r#"route="/empty""#, 1),
            (r#"route="/old""#, 1),
            // Those that were refused, too. Whoever listens is not told of here.
            (r#"route="/api/v1/notify""#, 5),
        ],
    ),
    (
        "production_server_queue_duration_seconds_count",
        &[
            // All but those refused before a worker was asked for: 400, 408 and both 413.
            (r#"app="web""#, 31),
            // Who was refused at once did not wait.
            (r#"app="narrow""#, 3),
            (r#"app="absent""#, 1),
        ],
    ),
    ("production_server_connections_accepted_total", &[("", CONNECTIONS)]),
    ("production_server_connections", &[]),
    (
        "production_server_connections_refused_total",
        &[(r#"reason="peer""#, 1), (r#"reason="invalid""#, 1), (r#"reason="late""#, 1)],
    ),
    // The listeners of this script do not speak TLS: tests/tls.rs has what is counted there.
    ("production_server_tls_handshakes_total", &[]),
    ("production_server_tls_broken_total", &[]),
    ("production_server_idle_connections_closed_total", &[]),
    ("production_server_accept_pauses_total", &[]),
    ("production_server_memory_pauses_total", &[]),
    ("production_server_memory_refusals_total", &[]),
    // What waits for slow clients here fits into memory: tests/spool.rs has what does not.
    ("production_server_spooled_total", &[]),
    ("production_server_spool_refusals_total", &[]),
    ("production_server_spool_bytes", &[]),
    // Everybody gets in here: tests/access has what is counted of those who do not.
    ("production_server_rate_limited_total", &[]),
    ("production_server_rate_limit_forgotten_total", &[]),
    ("production_server_denied_total", &[]),
    ("production_server_auth_total", &[]),
    // No app needs helpers.
    ("production_server_helper_jobs_total", &[]),
    ("production_server_helper_refusals_total", &[]),
    ("production_server_files_cut_total", &[]),
    // Nothing is compressed here: tests/compress.rs has what is counted then.
    ("production_server_compressed_total", &[]),
    ("production_server_compression_busy_total", &[]),
    ("production_server_compression_in_bytes_total", &[]),
    ("production_server_compression_out_bytes_total", &[]),
    ("production_server_hub_sockets", &[]),
    ("production_server_hub_topics", &[(r#"hub="talk""#, 1), (r#"hub="silent""#, 1)]),
    ("production_server_hub_messages_total", &[("", 2)]),
    ("production_server_hub_deliveries_total", &[("", 8)]),
    ("production_server_hub_gaps_total", &[("", 3)]),
    ("production_server_hub_refused_total", &[("", 2)]),
    // No app takes part: tests/hub has what is counted then.
    ("production_server_hub_events_total", &[]),
    (
        "production_server_hub_closed_total",
        &[
            (r#"reason="client""#, 2),
            (r#"reason="protocol""#, 1),
            (r#"reason="size""#, 1),
            (r#"reason="gap""#, 1),
            (r#"reason="silent""#, 1),
        ],
    ),
    ("production_server_log_lines_dropped_total", &[]),
    ("production_server_panics_total", &[]),
    // Twelve refused, nine that failed, two answers cut, and two refused by a hub.
    ("production_server_errors_total", &[("", 25)]),
    // Of a head, of a body, of a client that says nothing, of a worker, of a hold, of a stream, of a place in the line, of a reader.
    ("production_server_timeouts_total", &[("", 8)]),
    // In the line, with a worker, in the middle of an answer, by a reset of a tunnel, and one that took nothing of its answer.
    ("production_server_clients_gone_total", &[("", 5)]),
    ("production_server_tunnels_opened_total", &[(r#"app="web""#, 2)]),
    ("production_server_tunnels", &[]),
    ("production_server_answers_cut_total", &[(r#"app="web""#, 2)]),
    (
        "production_server_retries_total",
        &[
            (r#"app="web",reason="declined""#, 1),
            (r#"app="web",reason="not_taken""#, 1),
            (r#"app="web",reason="connection_lost""#, 1),
        ],
    ),
    (
        "production_server_queue_rejected_total",
        &[
            (r#"app="narrow",reason="full""#, 1),
            (r#"app="narrow",reason="timeout""#, 1),
            (r#"app="absent",reason="hold""#, 1),
            (r#"app="gone",reason="failed""#, 1),
            (r#"app="closed",reason="tunnels""#, 1),
        ],
    ),
    ("production_server_queue_depth", &[]),
    (
        "production_server_app_state",
        &[
            (r#"app="web",state="running""#, 1),
            (r#"app="narrow",state="running""#, 1),
            (r#"app="closed",state="running""#, 1),
            (r#"app="absent",state="starting""#, 1),
            (r#"app="gone",state="failed""#, 1),
        ],
    ),
    (
        "production_server_worker_requests_total",
        // As many as asked for a worker, and that whose connection was lost once more: it may have run. Neither was one that was
        // declined nor one that was not taken.
        &[(r#"app="web",worker="1""#, 32), (r#"app="narrow",worker="1""#, 1)],
    ),
    ("production_server_worker_requests_in_flight", &[]),
    ("production_server_worker_tunnels", &[]),
    ("production_server_worker_starts_total", &[(r#"app="gone""#, 2)]),
    ("production_server_worker_exits_total", &[(r#"app="gone",reason="crash""#, 2)]),
    ("production_server_worker_restarts_total", &[(r#"app="gone",worker="1""#, 1)]),
    ("bungate_requests_total", &[("", 72)]),
    // These, and the twelve of the server's own and of no app.
    ("bungate_request_duration_seconds_count", &[("", 56)]),
    ("bungate_workers_total", &[("", 3)]),
    ("bungate_workers_crashed_total", &[("", 2)]),
    ("bungate_workers_restarts_total", &[("", 1)]),
];

/// The script counts how often it connects.
const CONNECTIONS: u32 = u32::MAX;

/// The table, with the names that a form has for the samples.
fn expected(script: &Script<'_>, name_in_form: fn(&str) -> String) -> Samples {
    let samples = EXPECTED.iter().flat_map(|(name, samples)| samples.iter().map(move |sample| (name, sample)));
    let named = samples.map(|(name, (labels, value))| {
        let value = if *value == CONNECTIONS { script.connections.get() } else { *value };
        let sample = if labels.is_empty() { (*name).to_owned() } else { format!("{name}{{{labels}}}") };
        (name_in_form(&sample), f64::from(value))
    });
    named.collect()
}

/// Where what a form says is not what the table says.
fn differences(expected: &Samples, told: &Samples, name_in_form: fn(&str) -> String) -> Vec<String> {
    let metrics: Vec<String> = EXPECTED.iter().map(|(name, _)| name_in_form(name)).collect();
    let of_table = |sample: &&String| {
        let metric = |name: &String| {
            // Where labels are parts of the name, `count` stands behind them.
            let (name, last) = name.strip_suffix(".count").map_or((name.as_str(), ""), |name| (name, ".count"));
            sample.strip_prefix(name).is_some_and(|rest| {
                rest.ends_with(last)
                    && (rest.len() == last.len() || rest.starts_with(['{', '.']))
                    && !rest.contains(".p")
                    || rest.starts_with(last) && rest[last.len()..].starts_with('{')
            })
        };
        metrics.iter().any(metric)
    };
    let told_of: std::collections::BTreeSet<&String> = told.keys().filter(of_table).chain(expected.keys()).collect();
    let pairs = told_of.into_iter().map(|name| {
        let value = |samples: &Samples| samples.get(name).copied().unwrap_or(0.0);
        (name, value(expected), value(told))
    });
    pairs.filter(|(_, expected, told)| expected != told).map(|it| format!("{it:?}")).collect()
}

fn agree(what: &str, script: &Script<'_>, told: &Samples, name_in_form: fn(&str) -> String) {
    let differences = differences(&expected(script, name_in_form), told, name_in_form);
    assert!(differences.is_empty(), "{what}: (sample, expected, told) {differences:#?}");
}

fn counters_agree_with_what_was_done(backend: &str) {
    for (format, name_in_form) in [("datadog", forms::tagged as fn(&str) -> String), ("plain", forms::dotted)] {
        let (worker, go) = worker();
        let mut pushed = Pushed::new();
        let folder = folder();
        let place = |name: &str| folder.path().join(name).display().to_string();
        let site = SITE.replace("{worker}", &worker.url).replace("{folder}", folder.path().to_str().unwrap());
        std::fs::write(place("site.toml"), site).unwrap();
        let (strict, closed) = (format!("unix:{}", place("strict")), format!("unix:{}", place("closed")));
        #[rustfmt::skip]
        let flags = [
            "-f", &place("site.toml"), "--listen", "127.0.0.1:0", "--listen", &strict, "--listen", &closed,
            "--statsd", &pushed.address, "--statsd-format", format, "--statsd-interval", "100ms",
            "--cloudwatch", &place("metrics.json"), "--cloudwatch-interval", "100ms", "--bungate-metrics",
            "--stats-interval", "100ms",
        ];
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("exec \"$0\" \"$@\" >{}", place("stdout")), PROGRAM]);
        let server = Server::start_as(command, backend, &flags);
        until("the app has failed", || server.apps()[4]["state"] == "failed");
        let script = Script { server: &server, go, connections: Cell::new(0) };
        script.bytes();
        script.answered();
        script.refused();
        script.failed();
        script.left();
        script.hubs();
        script.turned_away(folder.path());
        until("all is over", || server.status()["active_connections"] == 0 && server.status()["tunnels"] == 2);
        let status = server.status();
        let expected = expected(&script, name_in_form);
        let end = Instant::now() + DEADLINE;
        while !differences(&expected, &pushed.sums, name_in_form).is_empty() {
            pushed.take(end, |sums| differences(&expected, sums, name_in_form));
        }
        let told = || forms::cloudwatch(Path::new(&place("metrics.json")));
        let same = |name: &str| name.to_owned();
        until("CloudWatch's lines are there", || told().get("bungate_requests_total") == Some(&72.0));
        agree("CloudWatch", &script, &told(), same);
        let numbers = ["total_connections", "active_connections", "requests", "errors", "timeouts"];
        let numbers: Vec<u64> = numbers.iter().map(|name| status[name].as_u64().unwrap()).collect();
        let boxed = || forms::boxed(&std::fs::read_to_string(place("stdout")).unwrap());
        until("the box says the same", || boxed() == numbers);
        // Whoever scrapes is counted from the next time on.
        let mut scraper = script.client();
        let (mut classic, kind) = scrape(&mut scraper, "*/*");
        assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
        assert_eq!(classic.remove("production_server_connections{state=\"processing\"}"), Some(1.0));
        agree("Prometheus", &script, &classic, same);
        let (mut open, kind) = scrape(&mut scraper, OPEN);
        assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
        assert_eq!(open.remove("production_server_connections{state=\"processing\"}"), Some(1.0));
        for (name, more) in [("http_server_requests_total{code=\"200\"}", 1.0), ("bungate_requests_total", 1.0)] {
            *open.get_mut(name).unwrap() -= more;
        }
        *open.get_mut("bungate_request_duration_seconds_count").unwrap() -= 1.0;
        agree("OpenMetrics", &script, &open, same);
        assert!(classic["production_server_loop_cpu_seconds_total{loop=\"0\"}"] > 0.0 || cfg!(target_os = "macos"));
        *classic.get_mut("production_server_connections_accepted_total").unwrap() -= 1.0;
        classic.retain(|name, _| !name.starts_with("production_server_bytes_"));
        let differences = forms::status_differences(&status, &classic);
        assert!(differences.is_empty(), "{differences:#?}");
    }
}
