//! Where lines go: sockets that come and go, devices that are full, and settings that change under way.

use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::*;
use crate::config::SyslogAddress;

fn settings(target: LogTarget, format: AccessLogFormat) -> AccessLogSettings {
    AccessLogSettings::new(target, format)
}

/// Events to memory, and access lines there.
fn log_to(target: LogTarget, format: AccessLogFormat) -> (Log, Captured) {
    let (log, captured) = Log::captured().unwrap();
    log.configure(&settings(target, format), &EventLogSettings { format: EventFormat::Human, ..Default::default() })
        .unwrap();
    (log, captured)
}

fn say(log: &Log, target: &[u8]) {
    let mut access = log.access_log();
    access.record(&AccessRecord { target, ..record() });
    access.flush();
}

fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn listen(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

fn next(socket: &UnixDatagram) -> String {
    let mut bytes = vec![0; 70_000];
    let length = socket.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

/// The parts of a message of RFC 5424: priority, time, host, program, process, kind, and its text.
fn parts(message: &str) -> Vec<&str> {
    let (priority, rest) = message.strip_prefix('<').unwrap().split_once(">1 ").unwrap();
    let mut parts: Vec<&str> = rest.splitn(7, ' ').collect();
    assert_eq!(parts.remove(5), "-", "no structured data: {message}");
    parts.insert(0, priority);
    parts
}

#[test]
fn syslog_gets_a_message_for_each_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let socket = listen(&path);
    let target = LogTarget::Syslog(SyslogAddress::Unix(path));
    let (log, _) = log_to(target.clone(), AccessLogFormat::Human);
    say(&log, b"/x");
    let message = next(&socket);
    let found = parts(&message);
    let me = std::process::id().to_string();
    assert_eq!(
        (found[0], found[3], found[4], found[5]),
        ("30", "production_server", me.as_str(), "access"),
        "{message}"
    );
    assert_eq!(found[1], "2026-11-21T03:45:56.124690Z", "when it ended");
    assert!(found[6].ends_with("GET /x 192.0.2.7 #2"), "{message}");
    let events = EventLogSettings { target, ..EventLogSettings::default() };
    log.configure(&settings(LogTarget::Off, AccessLogFormat::Human), &events).unwrap();
    log.event(Level::Error, "worker\nended", &[("pid", &7), ("why", &"a \"b\"")]);
    let message = next(&socket);
    assert_eq!((parts(&message)[0], parts(&message)[5]), ("27", "event"));
    assert_eq!(parts(&message)[6], "worker ended pid=7 why=\"a \\\"b\\\"\"");
    let worker = WorkerName { label: "web.G3.2", app: "web", id: 2, pid: 4711, generation: 3 };
    log.worker_line(worker, Stream::Stdout, b"one\x1b[31m\ntwo");
    let message = next(&socket);
    assert_eq!(parts(&message)[4..], ["4711", "worker", "[web.G3.2 4711] one\\x1B[31m two"], "{message}");
}

#[test]
fn syslog_over_udp_gets_one_datagram_each_and_none_too_long() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LONG)).unwrap();
    let target = LogTarget::Syslog(SyslogAddress::Udp("127.0.0.1".to_owned(), socket.local_addr().unwrap().port()));
    let (log, _) = log_to(target, AccessLogFormat::Combined);
    say(&log, b"/x");
    say(&log, &[b'a'; 20_000]);
    let mut bytes = vec![0; 65_536];
    let length = socket.recv(&mut bytes).unwrap();
    let message = std::str::from_utf8(&bytes[..length]).unwrap();
    assert!(parts(message)[6].contains("\"GET /x HTTP/1.1\" 200 1536"), "{message}");
    assert_eq!(socket.recv(&mut bytes).unwrap(), 8192);
}

#[test]
fn a_syslog_that_is_away_holds_nobody_up_and_its_lines_are_counted() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("log");
    let (log, events) = log_to(LogTarget::Syslog(SyslogAddress::Unix(path.clone())), AccessLogFormat::Human);
    say(&log, b"/1");
    say(&log, b"/2");
    assert!(log.flush(LONG));
    assert_eq!(log.dropped(), 2);
    assert_eq!(events.text().matches("cannot write the log").count(), 1, "{}", events.text());
    for life in 1..=2 {
        let socket = listen(&path);
        say(&log, b"/3");
        assert!(next(&socket).contains("GET /3 "), "life {life}");
        // Whoever is started anew has another socket at the same path.
        drop(socket);
        std::fs::remove_file(&path).unwrap();
    }
    assert!(log.flush(LONG));
    assert_eq!(log.dropped(), 2);
    assert!(
        events.text().contains("log lines were dropped") && events.text().contains(" lines=2\n"),
        "{}",
        events.text()
    );
}

/// That nobody was there is told with the next message (udp(7)), which is sent all the same, and what is behind it.
#[cfg(target_os = "linux")]
#[test]
fn a_syslog_over_udp_that_was_away_misses_no_more_than_that() {
    // An address of its own, whose ports nobody else takes meanwhile.
    let socket = UdpSocket::bind("127.0.0.77:0").unwrap();
    let address = socket.local_addr().unwrap();
    let target = LogTarget::Syslog(SyslogAddress::Udp(address.ip().to_string(), address.port()));
    let (log, events) = log_to(target, AccessLogFormat::Human);
    let mut bytes = vec![0; 1024];
    let mut next = |socket: &UdpSocket| {
        socket.set_read_timeout(Some(LONG)).unwrap();
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    };
    say(&log, b"/1");
    assert!(next(&socket).contains("GET /1 "));
    drop(socket);
    say(&log, b"/2");
    assert!(log.flush(LONG));
    let socket = UdpSocket::bind(address).unwrap();
    let mut access = log.access_log();
    for number in 0..50 {
        access.record(&AccessRecord { target: format!("/{number}").as_bytes(), ..record() });
    }
    access.flush();
    for number in 0..50 {
        assert!(next(&socket).contains(&format!("GET /{number} ")));
    }
    say(&log, b"/3");
    assert!(next(&socket).contains("GET /3 "));
    assert!(log.flush(LONG));
    assert_eq!(log.dropped(), 1, "{}", events.text());
    assert_eq!(events.text().matches("cannot write the log").count(), 1, "{}", events.text());
    assert_eq!(events.text().matches("log lines were dropped").count(), 1, "{}", events.text());
}

/// A client chooses how long its target is, and has no say in whether its status and its address are known.
#[test]
fn a_long_request_costs_an_entry_of_the_journal_none_but_texts() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let socket = listen(&path);
    for format in ["human", "combined", "json"] {
        let (log, _) = log_to(LogTarget::Journald(path.clone()), AccessLogFormat::read(format).unwrap());
        let long = [b'"'; 15_000];
        let mut access = log.access_log();
        access.record(&AccessRecord { target: &long, method: &long, request_id: b"abc", ..record() });
        access.flush();
        let message = next(&socket);
        assert!(message.len() <= 64 * 1024 + 1 && message.ends_with('\n'), "{format}: {}", message.len());
        let lines: Vec<&str> = message.lines().collect();
        for line in
            ["HTTP_RESPONSE_STATUS_CODE=200", "CLIENT_ADDRESS=192.0.2.7", "REQUEST_ID=abc", "APP=web", "WORKER_ID=2"]
        {
            assert!(lines.contains(&line), "{format}: {line}");
        }
        assert!(lines.iter().any(|line| line.starts_with("MESSAGE=")), "{format}");
    }
}

#[test]
fn the_journal_gets_fields() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let socket = listen(&path);
    let (log, _) = log_to(LogTarget::Journald(path.clone()), AccessLogFormat::Human);
    say(&log, b"/x?y=1");
    let message = next(&socket);
    let lines: Vec<&str> = message.lines().collect();
    for line in [
        "PRIORITY=6",
        "SYSLOG_IDENTIFIER=production_server",
        "LOG_KIND=access",
        "MESSAGE=03:45:56.123 200    1.234ms     1.5K GET /x?y=1 192.0.2.7 #2",
        "HTTP_REQUEST_METHOD=GET",
        "URL_PATH=/x",
        "URL_QUERY=y=1",
        "HTTP_RESPONSE_STATUS_CODE=200",
        "HTTP_RESPONSE_BODY_SIZE=1536",
        "CLIENT_ADDRESS=192.0.2.7",
        "DURATION_MS=1.234",
        "QUEUE_MS=0.056",
        "UPSTREAM_MS=1.000",
        "APP=web",
        "WORKER_ID=2",
        "REQUEST_ID=abc",
    ] {
        assert!(lines.contains(&line), "{line}\n{message}");
    }
    assert!(message.ends_with('\n') && lines.len() == 16, "{message}");
    let events = EventLogSettings { target: LogTarget::Journald(path), ..EventLogSettings::default() };
    log.configure(&settings(LogTarget::Off, AccessLogFormat::Human), &events).unwrap();
    log.event(Level::Warn, "odd", &[("last_stderr", &"a\nMESSAGE=b")]);
    let expected = "PRIORITY=4\nSYSLOG_IDENTIFIER=production_server\nLOG_KIND=event\nMESSAGE=odd last_stderr=\"a MESSAGE=b\"\n\
        EVENT_LAST_STDERR=a MESSAGE=b\n";
    assert_eq!(next(&socket), expected);
    log.worker_line(
        WorkerName { label: "web.G3.2", app: "web", id: 2, pid: 7, generation: 3 },
        Stream::Stderr,
        b"oh\n=",
    );
    let expected = "PRIORITY=4\nSYSLOG_IDENTIFIER=production_server\nLOG_KIND=worker\nWORKER=web.G3.2\nWORKER_APP=web\nWORKER_ID=2\n\
        WORKER_PID=7\nWORKER_GENERATION=3\nMESSAGE=[web.G3.2 7] oh =\nWORKER_STREAM=stderr\n";
    assert_eq!(next(&socket), expected);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_costs_its_lines_and_nothing_else() {
    let (log, events) = log_to(LogTarget::File("/dev/full".into()), AccessLogFormat::Combined);
    let began = Instant::now();
    for _ in 0..1000 {
        say(&log, b"/x");
    }
    assert!(log.flush(LONG));
    assert_eq!(log.dropped(), 1000);
    // Once a second at most, however long this machine has taken for the lines.
    let told = events.text().matches("cannot write the log sink=/dev/full error=").count();
    assert!((1..=1 + began.elapsed().as_secs() as usize).contains(&told), "{}", events.text());
    // Where there is room again, it is said what was lost.
    let directory = tempfile::tempdir().unwrap();
    let link = directory.path().join("access.log");
    std::os::unix::fs::symlink("/dev/full", &link).unwrap();
    let (log, events) = log_to(LogTarget::File(link.clone()), AccessLogFormat::Combined);
    say(&log, b"/lost");
    assert!(log.flush(LONG));
    std::fs::remove_file(&link).unwrap();
    log.reopen();
    say(&log, b"/kept");
    assert!(log.flush(LONG));
    assert!(std::fs::read_to_string(&link).unwrap().contains("/kept"));
    assert_eq!(log.dropped(), 1);
    assert!(events.text().contains(" lines=1\n"), "{}", events.text());
}

/// A disk with room for so many bytes.
#[derive(Clone, Default)]
struct Disk {
    room: Arc<std::sync::atomic::AtomicUsize>,
    text: Captured,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.room.load(Ordering::Relaxed).min(bytes.len());
        if length == 0 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.room.fetch_sub(length, Ordering::Relaxed);
        self.text.write_all(&bytes[..length])?;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_line_that_a_full_disk_has_torn_is_lost_alone() {
    let (disk, nowhere) = (Disk::default(), || Box::new(io::sink()));
    let access = Some((Box::new(disk.clone()) as Box<dyn Write + Send>, AccessLogFormat::read("{target}").unwrap()));
    let log = Log::to_writers(nowhere(), nowhere(), access, EventFormat::Human).unwrap();
    let write = |room: usize, targets: &[&str]| {
        disk.room.store(room, Ordering::Relaxed);
        let mut access = log.access_log();
        for target in targets {
            access.record(&AccessRecord { target: target.as_bytes(), ..record() });
        }
        access.flush();
        assert!(log.flush(LONG));
    };
    write(10, &["/first", "/torn", "/lost"]);
    write(0, &["/lost"]);
    write(1, &["/lost"]);
    write(100, &["/second"]);
    write(7, &["/third"]);
    write(100, &["/fourth"]);
    assert_eq!(disk.text.text(), "/first\n/to\n/second\n/third\n/fourth\n");
    assert_eq!(log.dropped(), 4, "each that is not whole");
}

#[cfg(target_os = "linux")]
#[test]
fn a_named_pipe_needs_no_reader() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pipe");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (log, events) = log_to(LogTarget::File(path.clone()), AccessLogFormat::Combined);
    let mut sent = 0;
    let mut access = log.access_log();
    while log.dropped() == 0 {
        access.record(&record());
        access.flush();
        sent += 1;
        assert!(sent < 1_000_000, "nothing was dropped");
    }
    // A reader that comes late reads what waits, and what was lost is said.
    let reader = std::fs::File::open(&path).unwrap();
    let lines = std::thread::spawn(move || {
        let mut lines = io::BufRead::lines(io::BufReader::new(reader));
        (&mut lines).map(Result::unwrap).position(|line| line.contains("/last")).unwrap() as u64
    });
    wait_for("the backlog is written", || log.flush(Duration::from_millis(10)));
    access.record(&AccessRecord { target: b"/last", ..record() });
    access.flush();
    assert_eq!(lines.join().unwrap() + log.dropped(), sent, "written or counted");
    assert!(log.flush(LONG));
    assert!(events.text().contains(&format!(" lines={}\n", log.dropped())), "{}", events.text());
}

#[test]
fn the_log_moves_while_loops_write() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let file = |name: &str| LogTarget::File(path(name));
    let (log, _) = log_to(file("0"), AccessLogFormat::read("{target} 0").unwrap());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let events = EventLogSettings::default();
    let sent = std::thread::scope(|scope| {
        let loops: Vec<_> = (0..2)
            .map(|_| {
                let (mut access, stop) = (log.access_log(), &stop);
                scope.spawn(move || {
                    let mut sent = 0;
                    while !stop.load(Ordering::Relaxed) {
                        access.record(&AccessRecord { target: b"/x", ..record() });
                        access.flush();
                        sent += 1;
                        std::thread::yield_now();
                    }
                    sent
                })
            })
            .collect();
        for change in 1..=20 {
            let name = (change % 3).to_string();
            let format = AccessLogFormat::read(&format!("{{target}} {change}")).unwrap();
            log.configure(&settings(file(&name), format), &events).unwrap();
            let last = format!("/x {change}\n");
            wait_for("the loops have followed", || std::fs::read_to_string(path(&name)).unwrap().contains(&last));
        }
        stop.store(true, Ordering::Relaxed);
        loops.into_iter().map(|one| one.join().unwrap()).sum::<usize>()
    });
    assert!(log.flush_and_stop(LONG));
    let written: usize =
        (0..3).map(|name| std::fs::read_to_string(path(&name.to_string())).unwrap().lines().count()).sum();
    assert_eq!((written as u64 + log.dropped(), log.dropped()), (sent as u64, 0), "no line is lost by a change");
}

#[test]
fn what_cannot_be_opened_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("access.log");
    let (log, captured) = log_to(LogTarget::File(file.clone()), AccessLogFormat::Human);
    let nowhere = LogTarget::File(directory.path().join("no/such"));
    let events = EventLogSettings { level: Level::Error, format: EventFormat::Json, ..EventLogSettings::default() };
    let error = log.configure(&settings(nowhere.clone(), AccessLogFormat::Json), &events).unwrap_err();
    assert!(error.to_string().contains("no/such"), "{error}");
    let events = EventLogSettings { target: nowhere, ..events };
    assert!(log.configure(&settings(LogTarget::Off, AccessLogFormat::Json), &events).is_err());
    say(&log, b"/still");
    log.event(Level::Info, "still", &[]);
    assert!(log.flush(LONG));
    assert!(std::fs::read_to_string(&file).unwrap().contains(" GET /still "));
    assert!(captured.text().ends_with("  INFO still\n"), "{}", captured.text());
}

#[test]
fn events_below_the_level_are_not_written_and_what_stays_keeps_its_sink() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("events.log");
    let (log, captured) = log_to(LogTarget::Off, AccessLogFormat::Human);
    let target = LogTarget::File(file.clone());
    let events = EventLogSettings { target: target.clone(), level: Level::Warn, ..EventLogSettings::default() };
    // Both in one file: one sink, so that no line is torn.
    log.configure(&settings(target, AccessLogFormat::Human), &events).unwrap();
    let routes = log.0.routes();
    assert!(Arc::ptr_eq(&routes.events.as_ref().unwrap().sink, &routes.access.as_ref().unwrap().sink));
    log.event(Level::Info, "healthy", &[]);
    log.event(Level::Warn, "odd", &[]);
    log.worker_line(name("web.G1.1"), Stream::Stdout, b"said");
    log.configure(&settings(LogTarget::Off, AccessLogFormat::Human), &events).unwrap();
    assert!(Arc::ptr_eq(&routes.events.as_ref().unwrap().sink, &log.0.routes().events.as_ref().unwrap().sink));
    log.event(Level::Error, "broken", &[]);
    assert!(log.flush(LONG));
    let text = std::fs::read_to_string(&file).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    let json: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!((&json["level"], &json["message"]), (&"warn".into(), &"odd".into()), "a file is no terminal");
    assert_eq!(lines[1], "[web.G1.1] said");
    assert_eq!(captured.text(), "");
}

#[test]
fn lines_of_workers_say_whose_they_are() {
    let worker = WorkerName { label: "web.G3.2", app: "web", id: 2, pid: 4711, generation: 3 };
    let say = |log: &Log| log.worker_line(worker, Stream::Stdout, b"hello");
    assert_eq!(event_line(EventFormat::Human, say), "[web.G3.2 4711] hello\n");
    let json: serde_json::Value = serde_json::from_str(&event_line(EventFormat::Json, say)).unwrap();
    assert_eq!((&json["app"], &json["worker.id"], &json["pid"]), (&"web".into(), &2.into(), &4711.into()));
    assert_eq!((&json["generation"], &json["worker"]), (&3.into(), &"web.G3.2".into()));
}
