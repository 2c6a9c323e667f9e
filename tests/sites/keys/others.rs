//! The keys that roll an app, that open and close listeners, and that take another process.

use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::*;
use crate::module::Folder;
use crate::support::{DEADLINE, Process};

/// A key, and what it becomes; the app of its name runs a worker.
const ROLLS: &[Change<'static>] = &[
    ("command", "[WORKER, 'command', 'FOLDER', 'again']"),
    ("directory", "'FOLDER/by'"),
    ("environment", "{ VALUE = 'of the environment' }"),
    ("concurrency", "2"),
    ("ready.by", "'notify'"),
    ("ready.http", "'/up'"),
    ("socket", "'tcp'"),
    ("watchdog", "'700ms'"),
    ("module", "'FOLDER/handler.so'"),
];

fn name(key: &str) -> String {
    format!("roll-{}", key.replace('.', "-"))
}

pub fn begin(text: &mut Text) {
    for (key, _) in ROLLS {
        let app = name(key);
        if *key != "module" {
            text.set((&format!("apps.{app}.command"), &format!("[WORKER, '{}', 'FOLDER']", key.replace('.', "-"))));
        }
        text.set((&format!("apps.{app}.workers"), "1"));
        text.set((&format!("apps.{app}.timeouts.read"), LONG));
        apps::route_to(text, &app);
    }
}

/// Each app is rolled by its key, and all others are left alone.
pub fn rolls(rig: &mut Rig) {
    let modules = Folder::new();
    std::fs::copy(modules.probe("v1", &[]), rig.file("handler.so")).unwrap();
    // A new worker is on trial until it has answered.
    let (stop, address) = (Arc::new(AtomicBool::new(false)), rig.site.line.server.address);
    let told = stop.clone();
    let asking = std::thread::spawn(move || {
        while !told.load(Ordering::Relaxed) {
            for (key, _) in ROLLS {
                let (status, text) = get(&mut Client::to(address), &name(key), "/");
                assert!(status < 500, "{key}: {status} {text}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let keys: Vec<String> = ROLLS.iter().map(|(key, _)| format!("apps.{}.{key}", name(key))).collect();
    let changes: Vec<Change<'_>> = keys.iter().zip(ROLLS).map(|(key, (_, value))| (key.as_str(), *value)).collect();
    for key in &keys {
        assert_eq!(rig.class(key), "roll", "{key}");
    }
    rig.change(&changes);
    stop.store(true, Ordering::Relaxed);
    asking.join().unwrap();
    let told = |key: &str, line: usize| {
        let text = rig.get(&name(key), "/").1;
        text.lines().nth(line).unwrap_or_default().to_owned()
    };
    assert_eq!(told("command", 4), "['again']");
    assert!(told("directory", 1).ends_with("/by"));
    assert_eq!(told("environment", 2), "of the environment");
    assert_eq!((told("socket", 3), told("command", 3)), ("False".to_owned(), "True".to_owned()));
    assert!(rig.get(&name("module"), "/").1.contains("v1"), "{}", rig.get(&name("module"), "/").1);
    let _both = [rig.begin(&name("concurrency"), "/hang"), rig.begin(&name("concurrency"), "/hang")];
    until("it has two", || rig.site.app(&name("concurrency"))["workers"][0]["in_flight"] == 2);
    assert!(rig.file("ready-http.asked").exists());
    // It listens, and is not ready until it says so.
    let ready = || rig.site.app(&name("ready.by"))["workers_ready"].clone();
    std::fs::remove_file(rig.file("ready-by.listens")).unwrap();
    rig.tell("ready-by.quiet", true);
    rig.site.word(&["scale", &name("ready.by"), "2"]);
    until("it listens", || rig.file("ready-by.listens").exists());
    assert_eq!(ready(), 1);
    rig.tell("ready-by.quiet", false);
    until("it is ready", || ready() == 2);
    let before = rig.pids(&name("watchdog"));
    rig.tell("watchdog.silent", true);
    until("it is replaced", || rig.pids(&name("watchdog")).is_disjoint(&before));
    rig.tell("watchdog.silent", false);
}

/// They come with an address and go with it; who may connect changes under those that are connected.
pub fn listeners(rig: &mut Rig) {
    let owners = if std::fs::metadata("/proc/self").unwrap().uid() == 0 { ["'1'", "'1'"] } else { ["", ""] };
    let connect = |rig: &Rig, name: &str| UnixStream::connect(rig.file(name));
    let said = rig.change(&[("listen[1].address", "'unix:FOLDER/one.sock'")]);
    assert!(said.contains("one.sock: opened"), "{said}");
    let mut kept = connect(rig, "one.sock").unwrap();
    kept.set_read_timeout(Some(DEADLINE)).unwrap();
    // Without a request it would be sent away soon.
    kept.write_all(b"GET / HTTP/1.1\r\nHost: respond\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"new") {
        let mut byte = [0];
        kept.read_exact(&mut byte).unwrap();
        answer.extend(byte);
    }
    let said =
        rig.change(&[("listen[1].mode", "'0600'"), ("listen[1].owner", owners[0]), ("listen[1].group", owners[1])]);
    assert!(said.contains("one.sock: mode and owner"), "{said}");
    let metadata = rig.file("one.sock").metadata().unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    if !owners[0].is_empty() {
        assert_eq!((metadata.uid(), metadata.gid()), (1, 1));
    }
    let said = rig.change(&[("listen[1].address", "'unix:FOLDER/two.sock'")]);
    assert!(said.contains("one.sock: closed") && said.contains("two.sock: opened"), "{said}");
    assert!(connect(rig, "one.sock").is_err() && connect(rig, "two.sock").is_ok());
    assert!(over(&mut kept, "GET / HTTP/1.1\r\nHost: respond\r\n").ends_with("new"), "who is connected stays");
}

/// A last request over a connection, and its answer.
fn over(stream: &mut UnixStream, head: &str) -> String {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    write!(stream, "{head}Connection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Takes back what would keep the test out of the next process, or would have it elsewhere.
fn make_ready(rig: &mut Rig) {
    for (key, value) in [
        ("server.redirect_https", ""),
        ("server.proxy_protocol.from", ""),
        ("server.proxy_protocol.timeout", ""),
        ("server.run_dir", "'FOLDER/run'"),
        ("server.upgrade_timeout", "'30s'"),
        // A busy machine starts no worker in 50 ms.
        ("apps.ready-timeout.ready.timeout", LONG),
    ] {
        rig.text.set((key, value));
    }
    rig.write();
    rig.site.word(&["reload", "--wait"]);
}

/// They are named and left until an upgrade brings them in.
pub fn restarts(rig: &mut Rig) {
    let collector = UdpSocket::bind("127.0.0.1:0").unwrap();
    collector.set_read_timeout(Some(DEADLINE)).unwrap();
    let (address, me) = (format!("'{}'", collector.local_addr().unwrap()), std::fs::metadata("/proc/self").unwrap());
    let (user, group) = (format!("'{}'", me.uid()), format!("'{}'", me.gid()));
    let [port] = crate::sites::reload::free_ports();
    let admin = format!("'127.0.0.1:{port}'");
    let is_epoll = rig.text.root["server.backend"].contains("epoll");
    // Who may come to a listener of its own, before it is said what stands in front of it.
    rig.change(&[
        ("listen[2].address", "'unix:FOLDER/fronted.sock'"),
        ("listen[3].address", "'unix:FOLDER/trusted.sock'"),
        ("listen[5].address", "'unix:FOLDER/redirected.sock'"),
    ]);
    let of_server = [
        ("server.loops", "2"),
        ("server.backend", if is_epoll { "'auto'" } else { "'epoll'" }),
        ("server.pin", "true"),
        ("server.max_connections", "20"),
        ("server.helpers", "3"),
        ("server.buffer_bytes", "'16MiB'"),
        ("server.run_dir", "'FOLDER/elsewhere'"),
        ("server.trusted_proxies", "'loopback'"),
        ("server.forwarded", "'write'"),
        ("server.redirect_https", "true"),
        ("server.proxy_protocol.from", "'10.0.0.0/8'"),
        ("server.proxy_protocol.timeout", "'1s'"),
        ("server.pid_file", "'FOLDER/other.pid'"),
        ("server.user", user.as_str()),
        ("server.group", group.as_str()),
    ];
    let of_others = [
        ("listen[2].proxy_protocol.from", "'unix'"),
        ("listen[2].proxy_protocol.timeout", SHORT),
        ("listen[3].trusted_proxies", "'unix'"),
        ("listen[3].forwarded", "'write'"),
        ("listen[5].redirect_https", "'8443'"),
        ("metrics.statsd.address", address.as_str()),
        ("metrics.statsd.format", "'datadog'"),
        ("metrics.statsd.prefix", "'keys.'"),
        ("metrics.statsd.tags", "['of:keys']"),
        ("metrics.statsd.interval", SHORT),
        ("metrics.cloudwatch.to", "'FOLDER/cloudwatch'"),
        ("metrics.cloudwatch.namespace", "'keys'"),
        ("metrics.cloudwatch.interval", SHORT),
        ("admin.listen", admin.as_str()),
    ];
    let changes = [&of_server[..], &of_others[..]].concat();
    for (key, _) in &changes {
        assert_eq!(rig.class(key), "restart", "{key}");
    }
    named_and_left(rig, &changes);
    make_ready(rig);
    let before = rig.site.line.process();
    rig.site.word(&["upgrade", "--wait"]);
    until("the old server is gone", || Process::of(before).is_none());
    upgraded(rig, &collector, is_epoll);
}

/// It is said until it holds.
fn named_and_left(rig: &mut Rig, changes: &[Change<'_>]) {
    let look = |rig: &Rig| {
        let status = rig.site.line.status();
        ["pid", "loops", "backend", "listen", "admin", "control_socket"].map(|name| status[name].clone())
    };
    let before = look(rig);
    for _ in 0..2 {
        let said = rig.change(changes);
        for socket in ["fronted", "trusted", "redirected"] {
            let left = format!("{socket}.sock: what stands in front of it (takes another process");
            assert!(said.contains(&left), "{said}");
        }
        assert_eq!(look(rig), before);
    }
    let unchanged = over(&mut UnixStream::connect(rig.file("trusted.sock")).unwrap(), FORWARDED);
    assert!(!unchanged.contains("Forwarded: for=") && !rig.file("other.pid").exists(), "{unchanged}");
}

const FORWARDED: &str = "GET / HTTP/1.1\r\nHost: half_close\r\nX-Forwarded-For: 192.0.2.7\r\n";

/// What needed another process has one.
fn upgraded(rig: &mut Rig, collector: &UdpSocket, is_epoll: bool) {
    let status = rig.site.line.status();
    assert_eq!(status["loops"], 2);
    assert!(is_epoll || status["backend"] == "epoll", "{status}");
    let pid = std::fs::read_to_string(rig.file("other.pid")).unwrap();
    assert_eq!(pid.trim(), status["pid"].to_string());
    let admin: SocketAddr = status["admin"][0].as_str().unwrap().parse().unwrap();
    assert_eq!(Client::to(admin).get("/livez").status, 200);
    let threads = std::fs::read_dir(format!("/proc/{pid}/task", pid = pid.trim())).unwrap().flatten();
    let pinned = threads.filter(|thread| {
        let status = std::fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        allowed.is_some_and(|cores| cores.trim().bytes().all(|byte| byte.is_ascii_digit()))
    });
    assert!(pinned.count() >= 2, "each loop has a core");
    let counter = |name: &str| rig.site.line.status()["counters"][name].as_u64().unwrap();
    let closed = counter("idle_closed");
    let idle: Vec<Client> = std::iter::repeat_with(|| {
        let mut client = rig.client();
        assert_eq!(client.ask("GET / HTTP/1.1\r\nHost: respond\r\n\r\n").status, 200);
        client
    })
    .take(25)
    .collect();
    let places = || counter("idle_closed") >= closed + 5 && counter("active_connections") <= 20;
    until("those who are idle make place", places);
    drop(idle);
    let mut packet = [0; 65536];
    let received = crate::support::read(&mut Packets(collector), &mut packet).unwrap();
    let text = String::from_utf8_lossy(&packet[..received]);
    assert!(text.starts_with("keys.") && text.contains("|#") && text.contains("of:keys"), "{text}");
    let lines = || std::fs::read_to_string(rig.file("cloudwatch")).unwrap_or_default();
    until("metrics are written", || lines().lines().count() > 1);
    assert!(lines().contains("\"Namespace\":\"keys\""), "{}", lines());
    // By TCP as the server says it, at the sockets as they say it.
    let by_server = rig.ask("half_close", "GET /", "X-Forwarded-For: 192.0.2.7\r\n").text();
    let by_listener = over(&mut UnixStream::connect(rig.file("trusted.sock")).unwrap(), FORWARDED);
    for answer in [by_server, by_listener] {
        assert!(answer.contains("Forwarded: for=192.0.2.7"), "{answer}");
    }
    let header = "PROXY TCP4 192.0.2.9 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: half_close\r\n";
    let fronted = || UnixStream::connect(rig.file("fronted.sock")).unwrap();
    assert!(over(&mut fronted(), header).contains("192.0.2.9"));
    let mut redirected = UnixStream::connect(rig.file("redirected.sock")).unwrap();
    let answer = over(&mut redirected, "GET /a HTTP/1.1\r\nHost: respond\r\n");
    assert!(answer.contains("\r\nLocation: https://respond:8443/a\r\n"), "{answer}");
    let mut silent = fronted();
    silent.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(silent.read(&mut [0; 8]).unwrap(), 0, "one that says nothing is sent away");
}

/// Packets as a stream that is read.
struct Packets<'a>(&'a UdpSocket);

impl Read for Packets<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.recv(buffer)
    }
}
