//! The log against readers that do not read, that leave, and that read JSON.

use std::io::{Read, pipe};
use std::net::{IpAddr, Ipv4Addr};

use super::*;

mod formats;
mod targets;

const LONG: Duration = Duration::from_secs(20);

fn record<'a>() -> AccessRecord<'a> {
    AccessRecord {
        time_micros: 1_795_232_756_123_456,
        client: Some(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 7))),
        method: b"GET",
        target: b"/a?b=1",
        protocol: "HTTP/1.1",
        head: b"GET /a?b=1 HTTP/1.1\r\nHost: example.org\r\nUser-Agent: curl/8\r\n\r\n",
        status: 200,
        bytes: 1536,
        took: Took { duration_us: 1234, queue_us: Some(56), upstream_us: Some(1000) },
        worker: Some(2),
        app: "web",
        request_id: b"abc",
        note: None,
        shown: None,
    }
}

fn name(label: &str) -> WorkerName<'_> {
    WorkerName { label, app: "web", id: 1, pid: 0, generation: 1 }
}

fn access_line(format: AccessLogFormat, record: &AccessRecord<'_>) -> String {
    let captured = Captured::default();
    let nowhere = || Box::new(io::sink());
    let log =
        Log::to_writers(nowhere(), nowhere(), Some((Box::new(captured.clone()), format)), EventFormat::Human).unwrap();
    let mut access = log.access_log();
    assert!(access.enabled());
    access.record(record);
    access.flush();
    assert!(log.flush(LONG));
    captured.text()
}

#[test]
fn access_lines_look_as_their_readers_expect() {
    let human = "03:45:56.123 200    1.234ms     1.5K GET /a?b=1 192.0.2.7 #2\n";
    assert_eq!(access_line(AccessLogFormat::Human, &record()), human);
    let combined = "192.0.2.7 - - [21/Nov/2026:03:45:56 +0000] \"GET /a?b=1 HTTP/1.1\" 200 1536 \"-\" \"curl/8\"\n";
    assert_eq!(access_line(AccessLogFormat::Combined, &record()), combined);
    let json: serde_json::Value = serde_json::from_str(&access_line(AccessLogFormat::Json, &record())).unwrap();
    let expected = serde_json::json!({
        "time": "2026-11-21T03:45:56.123Z", "http.request.method": "GET", "url.path": "/a", "url.query": "b=1",
        "http.response.status_code": 200, "client.address": "192.0.2.7", "duration_ms": 1.234, "queue_ms": 0.056,
        "upstream_ms": 1.0, "worker.id": 2, "request.id": "abc", "http.response.body.size": 1536,
        "app": "web", "server.address": "example.org", "network.protocol.version": "1.1", "user_agent.original": "curl/8",
    });
    assert_eq!(json, expected);
}

#[test]
fn clients_of_a_unix_socket_have_no_address() {
    let unix = AccessRecord { client: None, ..record() };
    assert!(access_line(AccessLogFormat::Human, &unix).ends_with(" GET /a?b=1 unix: #2\n"));
    assert!(access_line(AccessLogFormat::Combined, &unix).starts_with("unix: - - ["));
    let json: serde_json::Value = serde_json::from_str(&access_line(AccessLogFormat::Json, &unix)).unwrap();
    assert_eq!(json["client.address"], "unix:");
    let v6 = AccessRecord { client: Some("2001:db8::1".parse().unwrap()), ..record() };
    assert!(access_line(AccessLogFormat::Combined, &v6).starts_with("2001:db8::1 - - ["));
}

#[test]
fn a_blocked_reader_blocks_nobody_and_the_drops_are_told_once_it_reads() {
    let (mut reader, writer) = pipe().unwrap();
    let events = Captured::default();
    let access = Some((Box::new(writer) as Box<dyn Write + Send>, AccessLogFormat::Combined));
    let log = Log::to_writers(Box::new(io::sink()), Box::new(events.clone()), access, EventFormat::Human).unwrap();
    let mut access = log.access_log();
    let mut sent = 0;
    // The pipe holds 64 KiB and the backlog 4 MiB; if a full pipe blocked this loop, the test would never end.
    while log.dropped() == 0 {
        access.record(&record());
        access.flush();
        sent += 1;
        assert!(sent < 1_000_000, "nothing was dropped");
    }
    assert!(!log.flush(Duration::from_millis(1)), "the reader has not read");
    log.event(Level::Info, "others go on", &[]);
    let deadline = Instant::now() + LONG;
    while !events.text().contains("others go on") {
        assert!(Instant::now() < deadline, "a blocked access log held the events up");
        std::thread::yield_now();
    }
    let lines = std::thread::spawn(move || {
        let mut text = Vec::new();
        reader.read_to_end(&mut text).unwrap();
        assert!(text.ends_with(b"\n"));
        memchr::memchr_iter(b'\n', &text).count() as u64
    });
    assert!(log.flush(LONG), "it recovers");
    access.record(&record());
    sent += 1;
    access.flush();
    assert!(log.flush_and_stop(LONG));
    let dropped = log.dropped();
    assert!(
        events.text().contains(&format!("log lines were dropped sink=\"access log\" lines={dropped}")),
        "{}",
        events.text()
    );
    drop((access, log));
    assert_eq!(lines.join().unwrap() + dropped, sent, "every line was written or counted");
}

/// A log whose stdout and stderr are one pipe, as under a service manager; what was read of it.
fn one_pipe() -> (Log, impl FnOnce(Log) -> String) {
    let (mut reader, writer) = pipe().unwrap();
    let log = Log::disabled();
    let streams = routes::streams(&Arc::downgrade(&log.0), None, Box::new(writer)).unwrap();
    log.0.change(Routes { streams: Some(streams), ..Routes::none() });
    let events = EventLogSettings { format: EventFormat::Human, ..EventLogSettings::default() };
    log.configure(&AccessLogSettings::new(LogTarget::Stdout, AccessLogFormat::Human), &events).unwrap();
    let read = move |log: Log| {
        let reading = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        assert!(log.flush(LONG));
        // What was dropped is told with the next write, and that one is written, too.
        log.event(Level::Info, "the end", &[]);
        assert!(log.flush(LONG));
        assert!(log.flush_and_stop(LONG));
        drop(log);
        reading.join().unwrap()
    };
    (log, read)
}

/// Says lines until the log has dropped some of them; how many were said.
fn flood(log: &Log, mut say: impl FnMut()) -> u64 {
    let dropped = log.dropped();
    let mut said = 0;
    while log.dropped() < dropped + 100 {
        say();
        said += 1;
        assert!(said < 1_000_000, "nothing was dropped");
    }
    said
}

#[test]
fn a_flood_of_a_worker_costs_nobody_elses_lines() {
    let (log, read) = one_pipe();
    let mut access = log.access_log();
    let line = [b'x'; 1000];
    let first = flood(&log, || log.worker_line(name("web.1"), Stream::Stderr, &line));
    let first_dropped = log.dropped();
    let second = flood(&log, || log.worker_line(name("web.2"), Stream::Stdout, &line));
    let second_dropped = log.dropped() - first_dropped;
    let crowd = flood(&log, || {
        access.record(&record());
        access.flush();
    });
    assert!(
        first - first_dropped > 2 * (second - second_dropped),
        "each has its part of what is free, and a first one most"
    );
    assert!(second - second_dropped > 100 && crowd > 100);
    let events = 1000;
    for number in 0..events {
        log.event(Level::Error, "worker ended", &[("number", &number)]);
        log.worker_line(name(&format!("web.{}", 3 + number % 8)), Stream::Stderr, b"quiet");
    }
    let all_dropped = log.dropped();
    drop(access);
    let text = read(log);
    assert_eq!(text.matches("worker ended number=").count(), events, "no event is lost");
    assert_eq!(text.matches("] quiet").count(), events, "nor a line of a worker that says little");
    // Where the flood takes long it is told more than once.
    let told = |label: &str| {
        let is_meant = |whose: &str| whose.trim_start_matches(" worker=") == label;
        let told = text.lines().filter_map(|line| line.split_once("log lines were dropped sink=stderr lines="));
        let told = told
            .map(|(_, rest)| rest.split_at(rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len())));
        told.filter(|(_, whose)| is_meant(whose)).map(|(lines, _)| lines.parse::<u64>().unwrap()).sum::<u64>()
    };
    for (label, dropped, said) in [("web.1", first_dropped, first), ("web.2", second_dropped, second)] {
        assert_eq!(told(label), dropped, "{label}");
        assert_eq!(text.matches(&format!("[{label}] xxx")).count() as u64 + dropped, said, "written or counted");
    }
    let crowd_dropped = all_dropped - first_dropped - second_dropped;
    assert_eq!(told(""), crowd_dropped);
}

#[test]
fn a_reader_that_leaves_is_told_once_and_counted() {
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let events = Captured::default();
    let log = Log::to_writers(Box::new(writer), Box::new(events.clone()), None, EventFormat::Human).unwrap();
    log.print("one\ntwo\n".to_owned());
    assert!(log.flush(LONG));
    log.print("three\n".to_owned());
    assert!(log.flush(LONG));
    assert_eq!(log.dropped(), 3);
    assert_eq!(events.text().matches("reader is gone").count(), 1);
}

#[test]
fn stopping_does_not_wait_for_a_reader_that_does_not_read() {
    let (reader, writer) = pipe().unwrap();
    let log = Log::to_writers(Box::new(writer), Box::new(io::sink()), None, EventFormat::Human).unwrap();
    log.print("x".repeat(1024 * 1024) + "\n");
    assert!(!log.flush_and_stop(Duration::from_millis(20)));
    drop(reader);
}

#[test]
fn files_are_opened_anew_where_they_were() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let (path, moved) = (directory.path().join("access.log"), directory.path().join("access.log.1"));
    let settings = AccessLogSettings::new(LogTarget::File(path.clone()), AccessLogFormat::Combined);
    let log = Log::open(&settings, &EventLogSettings::default()).unwrap();
    let mut access = log.access_log();
    let mut write = |target| {
        access.record(&AccessRecord { target, ..record() });
        access.flush();
        assert!(log.flush(LONG));
    };
    write(b"/first");
    std::fs::rename(&path, &moved).unwrap();
    write(b"/second");
    log.reopen();
    assert!(log.flush(LONG));
    write(b"/third");
    let (old, new) = (std::fs::read_to_string(&moved).unwrap(), std::fs::read_to_string(&path).unwrap());
    assert!(old.contains("/first") && old.contains("/second") && !old.contains("/third"));
    assert!(new.contains("/third") && new.lines().count() == 1);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o137, 0, "at most 0640");
    let nowhere = LogTarget::File(directory.path().join("no/such"));
    let error =
        Log::open(&AccessLogSettings { target: nowhere, ..settings }, &EventLogSettings::default()).err().unwrap();
    assert!(error.to_string().contains("no/such: No such file"), "{error}");
}

fn event_line(events: EventFormat, say: impl Fn(&Log)) -> String {
    let captured = Captured::default();
    let log = Log::to_writers(Box::new(captured.clone()), Box::new(captured.clone()), None, events).unwrap();
    say(&log);
    assert!(log.flush(LONG));
    captured.text()
}

#[test]
fn events_are_text_for_people_and_json_for_machines() {
    let say = |log: &Log| {
        log.event(
            Level::Warn,
            "worker\nleft",
            &[("pid", &42), ("why", &"signal \"9\""), ("id", &"007"), ("label", &"web.1")],
        );
    };
    let human = event_line(EventFormat::Human, say);
    assert_eq!(&human[24..], "  WARN worker left pid=42 why=\"signal \\\"9\\\"\" id=007 label=web.1\n");
    let json: serde_json::Value = serde_json::from_str(&event_line(EventFormat::Json, say)).unwrap();
    assert_eq!((&json["level"], &json["message"]), (&"warn".into(), &"worker\nleft".into()));
    assert_eq!((&json["pid"], &json["why"], &json["id"]), (&42.into(), &"signal \"9\"".into(), &"007".into()));
}

#[test]
fn what_a_crowd_causes_is_said_once_a_second_and_counted() {
    let (log, captured) = Log::captured().unwrap();
    let (mut said, deadline) = (0, Instant::now() + LONG);
    while captured.text().lines().count() < 2 {
        assert!(Instant::now() < deadline, "{}", captured.text());
        log.seldom(Level::Warn, "an answer was cut", &[("worker", &"web.1")]);
        said += 1;
        assert!(log.flush(LONG));
    }
    let text = captured.text();
    let [first, second] = text.lines().collect::<Vec<&str>>()[..] else { panic!("{text}") };
    assert!(first.ends_with("  WARN an answer was cut worker=web.1"), "{text}");
    assert!(second.ends_with(&format!("  WARN an answer was cut worker=web.1 left_out={}", said - 2)), "{text}");
}

#[test]
fn lines_of_workers_carry_their_label() {
    let say = |log: &Log| log.worker_line(name("web.1"), Stream::Stderr, b"ready \xff\nagain");
    assert_eq!(event_line(EventFormat::Auto, say), "[web.1] ready \u{fffd} again\n");
    let json: serde_json::Value = serde_json::from_str(&event_line(EventFormat::Json, say)).unwrap();
    assert_eq!((&json["worker"], &json["stream"]), (&"web.1".into(), &"stderr".into()));
    assert_eq!(json["message"], "ready \u{fffd}\nagain");
}

#[test]
fn a_disabled_log_takes_everything_and_keeps_nothing() {
    let log = Log::disabled();
    log.event(Level::Error, "lost", &[]);
    log.print("lost\n".to_owned());
    let mut access = log.access_log();
    access.record(&record());
    access.flush();
    assert!(!access.enabled() && log.flush_and_stop(LONG) && log.dropped() == 0);
}
