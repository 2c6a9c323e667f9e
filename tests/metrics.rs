//! What the server counts agrees with what was done to it, in every form; and the checks that balancers ask for.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};

use crate::support::exposition::{self, Samples};
use crate::support::{Client, DEADLINE, Server, Worker, folder, on_every_backend, until};

on_every_backend! {
    counters_agree_with_what_was_done
    those_who_got_no_worker_are_counted_by_why
    the_documents_are_for_this_machine_and_the_admin_listener_for_all
    readiness_fails_first_at_a_stop
}

/// Scrapes: the samples, and the answer's media type.
fn scrape(address: SocketAddr, accept: &str) -> (Samples, String) {
    let mut client = Client::to(address);
    let answer = client.ask(&format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let kind = answer.field("content-type").unwrap().to_owned();
    (exposition::read(&answer.text(), kind.starts_with("application/openmetrics-text")), kind)
}

const OPEN: &str = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";

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

/// A worker for every outcome, by the path that is asked for.
fn worker() -> (Worker, mpsc::Sender<()>) {
    let (go, gate) = mpsc::channel::<()>();
    let (gate, busy) = (Mutex::new(gate), AtomicUsize::new(0));
    let worker = Worker::new(move |incoming| {
        while let Some((head, _)) = incoming.request() {
            let path = head.split(' ').nth(1).unwrap();
            match path {
                "/missing" => {
                    incoming.send("HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno");
                }
                "/die" => return,
                "/cut" => {
                    incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ncu");
                    return;
                }
                "/busy" if busy.fetch_add(1, Ordering::SeqCst) == 0 => {
                    incoming.send("HTTP/1.1 503 No\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n");
                }
                "/silent" => {
                    gate.lock().unwrap().recv_timeout(DEADLINE).unwrap();
                    return;
                }
                "/stream" => {
                    incoming.send(
                        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\ndata: 1\n\n",
                    );
                    return;
                }
                "/tunnel" => {
                    incoming
                        .send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n");
                    incoming.drain();
                    return;
                }
                _ => incoming.respond(b"ok"),
            }
        }
    });
    (worker, go)
}

/// One request, and the status of its answer.
fn ask(server: &Server, request: &str) -> u16 {
    server.client().ask(request).status
}

fn path(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n")
}

/// Does one thing of each kind to a server.
fn every_outcome(server: &Server, go: &mpsc::Sender<()>) {
    let mut kept = server.client();
    (0..3).for_each(|_| assert_eq!(kept.get("/ok").status, 200));
    assert_eq!(ask(server, &path("/missing")), 404);
    assert_eq!(ask(server, &path("/busy")), 200, "the second try");
    assert_eq!(ask(server, "POST /die HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\n\r\nx"), 502);
    let mut cut = server.client();
    cut.begin("/cut");
    assert!(cut.whole_answer().is_none());
    assert_eq!(ask(server, &path("/stream")), 200);
    assert_eq!(ask(server, &path("/silent")), 504);
    go.send(()).unwrap();
    assert_eq!(ask(server, "POST /ok HTTP/1.1\r\nHost: test\r\nContent-Length: 101\r\n\r\n"), 413);
    assert_eq!(ask(server, "GET /ok HTTP/1.1\r\nHost: test\r\nHost: test\r\n\r\n"), 400);
    let mut slow = server.client();
    slow.send("GET /ok HT");
    assert_eq!(slow.answer().status, 408);
    let mut leaves = server.client();
    leaves.begin("/silent");
    until("the worker has it", || server.status()["busy"] == 1);
    drop(leaves);
    until("the departure is seen", || server.status()["client_gone"] == 1);
    go.send(()).unwrap();
    let mut tunnel = server.client();
    tunnel.send("GET /tunnel HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(tunnel.next_answer(false).status, 101);
    tunnel.finish();
    tunnel.expect_end();
    let mut tunnel = Client::of(server);
    tunnel.send("GET /tunnel HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
    assert_eq!(tunnel.next_answer(false).status, 101);
    tunnel.reset();
    until("its end was seen", || server.status()["client_gone"] == 2);
    assert_eq!(ask(server, &path("/server")), 200, "of the server's own");
    until("all is over", || server.status()["queue"]["depth"] == 0 && server.status()["busy"] == 0);
}

/// What must have been counted of that.
const EXPECTED: &[(&str, f64)] = &[
    ("http_server_requests_total{app=\"web\",code=\"101\"}", 2.0),
    // Three, the second try, the answer that was cut, and the stream.
    ("http_server_requests_total{app=\"web\",code=\"200\"}", 6.0),
    ("http_server_requests_total{app=\"web\",code=\"404\"}", 1.0),
    ("http_server_requests_total{app=\"web\",code=\"413\"}", 1.0),
    ("http_server_requests_total{app=\"web\",code=\"499\"}", 1.0),
    ("http_server_requests_total{app=\"web\",code=\"502\"}", 1.0),
    ("http_server_requests_total{app=\"web\",code=\"504\"}", 1.0),
    ("http_server_requests_total{code=\"400\"}", 1.0),
    ("http_server_requests_total{code=\"408\"}", 1.0),
    // All of the app's but the stream, the tunnels and the one whose client left.
    ("http_server_request_duration_seconds_count{app=\"web\"}", 9.0),
    // All that asked for a worker, and each got one at once.
    ("production_server_queue_duration_seconds_count{app=\"web\"}", 12.0),
    ("production_server_queue_duration_seconds_bucket{app=\"web\",le=\"0.001\"}", 12.0),
    ("production_server_retries_total{app=\"web\",reason=\"declined\"}", 1.0),
    ("production_server_retries_total{app=\"web\",reason=\"not_taken\"}", 0.0),
    ("production_server_retries_total{app=\"web\",reason=\"connection_lost\"}", 0.0),
    ("production_server_queue_rejected_total{app=\"web\",reason=\"full\"}", 0.0),
    ("production_server_answers_cut_total{app=\"web\"}", 1.0),
    ("production_server_clients_gone_total", 2.0),
    // The silent worker, and the slow head.
    ("production_server_timeouts_total", 2.0),
    // 502, 504, 413, 400, 408, and the answer that was cut.
    ("production_server_errors_total", 6.0),
    ("production_server_tunnels_opened_total{app=\"web\"}", 2.0),
    ("production_server_tunnels", 0.0),
    ("production_server_panics_total", 0.0),
    ("production_server_queue_depth{app=\"web\"}", 0.0),
    ("production_server_workers{app=\"web\",state=\"running\"}", 1.0),
];

fn differences(samples: &Samples) -> Vec<String> {
    let wrong = EXPECTED.iter().filter(|(name, value)| samples.get(*name) != Some(value));
    wrong.map(|(name, value)| format!("{name}: expected {value}, found {:?}", samples.get(*name))).collect()
}

fn counters_agree_with_what_was_done(backend: &str) {
    let (worker, go) = worker();
    let statsd = UdpSocket::bind("127.0.0.1:0").unwrap();
    statsd.set_read_timeout(Some(DEADLINE)).unwrap();
    let folder = folder();
    let lines = folder.path().join("metrics.json");
    #[rustfmt::skip]
    let flags = [
        "--concurrency", "8", "--read-timeout-ms", "1000", "--header-timeout", "1s", "--max-body", "100",
        "--statsd", &statsd.local_addr().unwrap().to_string(), "--statsd-format", "datadog", "--statsd-interval", "100ms",
        "--cloudwatch", lines.to_str().unwrap(), "--cloudwatch-interval", "100ms", "--bungate-metrics",
    ];
    let server = Server::before(backend, &worker.url, &flags);
    server.until_ready(1);
    every_outcome(&server, &go);
    let (classic, kind) = scrape(server.address, "*/*");
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8");
    assert!(differences(&classic).is_empty(), "{:#?}", differences(&classic));
    let (open, kind) = scrape(server.address, OPEN);
    assert_eq!(kind, "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(differences(&open).is_empty(), "{:#?}", differences(&open));
    assert!(open["bungate_requests_total"] > 15.0 && open["bungate_workers_total"] == 1.0);
    assert!(classic["production_server_loop_cpu_seconds_total{loop=\"0\"}"] > 0.0 || cfg!(target_os = "macos"));
    statsd_agrees(&statsd);
    until("CloudWatch's lines agree", || cloudwatch_differences(&lines).is_empty());
}

/// What has been pushed by StatsD's protocol adds up to the same.
fn statsd_agrees(socket: &UdpSocket) {
    let mut sums = Samples::new();
    let mut buffer = [0; 2048];
    loop {
        let length = socket.recv(&mut buffer).unwrap_or_else(|_| panic!("{:#?}", pushed_differences(&sums, '.')));
        for line in std::str::from_utf8(&buffer[..length]).unwrap().lines() {
            let (name, rest) = line.split_once(':').unwrap();
            let mut parts = rest.split('|');
            let (value, kind) = (parts.next().unwrap().parse::<f64>().unwrap(), parts.next().unwrap());
            let tags = parts.next().and_then(|tags| tags.strip_prefix('#')).unwrap_or("");
            let labels: Vec<String> = tags
                .split(',')
                .filter_map(|tag| tag.split_once(':'))
                .map(|(name, value)| format!("{name}=\"{value}\""))
                .collect();
            let key = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
            match kind {
                "c" => *sums.entry(key).or_default() += value,
                "g" => *sums.entry(key).or_default() = value,
                _ => panic!("{line}"),
            }
        }
        if pushed_differences(&sums, '.').is_empty() {
            return;
        }
    }
}

/// The same, but for buckets, which are not pushed, and for counters that never grew, which are not either.
fn pushed_differences(sums: &Samples, joint: char) -> Vec<String> {
    let told = EXPECTED.iter().filter(|(name, _)| !name.contains("_bucket"));
    let found = told.map(|(name, value)| {
        let name = name.replace("_seconds_count", &format!("_seconds{joint}count"));
        let found = sums.get(&name).copied().unwrap_or(0.0);
        (name, *value, found)
    });
    found.filter(|(_, value, found)| value != found).map(|it| format!("{it:?}")).collect()
}

fn cloudwatch_differences(path: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let (mut sums, mut last): (Samples, BTreeMap<String, f64>) = Default::default();
    // The last line may be half written.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let document: serde_json::Value = serde_json::from_str(line).unwrap();
        let described = &document["_aws"]["CloudWatchMetrics"][0];
        let names = described["Dimensions"][0].as_array().unwrap();
        let labels: Vec<String> = names
            .iter()
            .map(|name| format!("{}={}", name.as_str().unwrap(), document[name.as_str().unwrap()]))
            .collect();
        for metric in described["Metrics"].as_array().unwrap() {
            let name = metric["Name"].as_str().unwrap();
            let key = if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) };
            let value = document[name].as_f64().unwrap();
            *sums.entry(key.clone()).or_default() += value;
            last.insert(key, value);
        }
    }
    // Gauges are told as they are.
    let gauges = last.iter().filter(|(name, _)| !name.contains("_total") && !name.contains("_count"));
    sums.extend(gauges.map(|(name, value)| (name.clone(), *value)));
    pushed_differences(&sums, '_')
}

fn those_who_got_no_worker_are_counted_by_why(backend: &str) {
    let (worker, go) = worker();
    #[rustfmt::skip]
    let flags = ["--max-queue", "1", "--queue-timeout-ms", "800"];
    let server = Server::before(backend, &worker.url, &flags);
    server.until_ready(1);
    let (mut first, mut waits) = (server.client(), server.client());
    first.begin("/silent");
    until("the worker has it", || server.status()["busy"] == 1);
    waits.begin("/ok");
    until("one waits", || server.status()["queue"]["depth"] == 1);
    let (samples, _) = scrape(server.address, "");
    assert_eq!(samples["production_server_queue_depth{app=\"web\"}"], 1.0);
    assert_eq!(samples["production_server_worker_requests_in_flight{app=\"web\",worker=\"1\"}"], 1.0);
    assert_eq!(ask(&server, &path("/ok")), 503, "the queue is full");
    assert_eq!(waits.answer().status, 504);
    go.send(()).unwrap();
    assert_eq!(first.answer().status, 502);
    let (samples, _) = scrape(server.address, "");
    for (name, value) in [
        ("production_server_queue_rejected_total{app=\"web\",reason=\"full\"}", 1.0),
        ("production_server_queue_rejected_total{app=\"web\",reason=\"timeout\"}", 1.0),
        ("production_server_queue_rejected_total{app=\"web\",reason=\"hold\"}", 0.0),
        ("http_server_requests_total{app=\"web\",code=\"502\"}", 1.0),
        ("http_server_requests_total{app=\"web\",code=\"503\"}", 1.0),
        ("http_server_requests_total{app=\"web\",code=\"504\"}", 1.0),
        // The first got its worker at once, another waited in vain. Who was refused at once did not wait.
        ("production_server_queue_duration_seconds_count{app=\"web\"}", 2.0),
        ("production_server_queue_duration_seconds_bucket{app=\"web\",le=\"0.5\"}", 1.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name}: {samples:#?}");
    }
    // Nobody is there at all.
    let folder = folder();
    let absent = format!("unix:{}", folder.path().join("absent.sock").display());
    let server = Server::before(backend, &absent, &["--hold", "100ms"]);
    assert_eq!(ask(&server, &path("/ok")), 503, "held in vain");
    let (samples, _) = scrape(server.address, "");
    for (name, value) in [
        ("production_server_queue_rejected_total{app=\"web\",reason=\"hold\"}", 1.0),
        ("http_server_requests_total{app=\"web\",code=\"503\"}", 1.0),
        ("production_server_queue_duration_seconds_count{app=\"web\"}", 1.0),
        ("production_server_workers{app=\"web\",state=\"running\"}", 0.0),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name}: {samples:#?}");
    }
    let (status, text) = get(server.address, "/readyz");
    assert_eq!((status, text.as_str()), (503, "[-] app web: no worker is ready\nfailed\n"));
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
