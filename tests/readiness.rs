//! What a worker is given and how it shows that it is ready, with real processes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

use production_server::config::{App, Command, ReadyBy, WorkerSocket};
use production_server::supervisor::endpoint::Endpoint;
use production_server::supervisor::notify::{Message, NotifySocket};
use production_server::supervisor::probe::{Look, Probe};
use production_server::supervisor::spawn::{Launcher, Particulars};
use production_server::supervisor::wake;

use crate::support::{Process, Server, send_signal, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_production_server");
const PATIENCE: Duration = Duration::from_secs(20);

/// A worker process that ends with the test.
struct Worker {
    directory: tempfile::TempDir,
    app: App,
    endpoint: Endpoint,
    notify: Option<NotifySocket>,
    child: Child,
}

impl Worker {
    /// Starts the app's worker through the shim, as the supervisor does.
    fn start(app: App) -> Worker {
        let directory = tempfile::tempdir().unwrap();
        let launcher =
            Launcher::new(&app, Path::new(PROGRAM), Some("/run/control.sock".into()), None).unwrap().unwrap();
        let mut endpoint = launcher.endpoint(directory.path().join("web.sock")).unwrap();
        let path = directory.path().join("web.note");
        let mut notify = launcher.listens_to_workers().then(|| NotifySocket::open(&path).unwrap());
        let spoken = notify.as_ref().map(|socket| socket.path().to_path_buf());
        let particulars = Particulars { number: 2, generation: 5, limit: 100, notify: spoken.as_deref() };
        let child = launcher.start(particulars, &mut endpoint).unwrap();
        notify.iter_mut().for_each(|socket| socket.belongs_to(child.id() as i32));
        Worker { directory, app, endpoint, notify, child }
    }

    fn built_in(change: impl FnOnce(&mut App)) -> Worker {
        let mut app = App::default();
        change(&mut app);
        Worker::start(app)
    }

    fn shell(script: &str, change: impl FnOnce(&mut App)) -> Worker {
        let mut app = App::default();
        app.program.command = Command::Argv(["sh", "-c", script].map(Into::into).to_vec());
        change(&mut app);
        Worker::start(app)
    }

    fn probe(&self) -> Probe {
        let address = self.endpoint.address().clone();
        Probe::of_readiness(&self.app.life.ready.by, address, self.endpoint.inherited(), Instant::now()).unwrap()
    }

    /// Looks until it is ready, as the supervisor would sleep and look.
    fn until_ready(&self) {
        let mut probe = self.probe();
        let deadline = Instant::now() + PATIENCE;
        while probe.look(Instant::now()) == Look::NotYet {
            assert!(Instant::now() < deadline, "not ready: {:?}", probe.reason());
            let mut entries: Vec<_> = probe.entry().into_iter().collect();
            wake::poll(&mut entries, Some(probe.next().saturating_duration_since(Instant::now()))).unwrap();
        }
    }

    /// Waits until it says that.
    fn until_said(&mut self, expected: &Message) {
        let deadline = Instant::now() + PATIENCE;
        let socket = self.notify.as_mut().unwrap();
        let mut said = Vec::new();
        while !said.contains(expected) {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it said {said:?}, and {} that did not count", socket.ignored());
            wake::poll(&mut [wake::entry(socket.descriptor(), libc::POLLIN)], Some(left)).unwrap();
            socket.read(|message| said.push(message));
        }
    }

    fn environment(&self) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.endpoint.path().unwrap()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(b"GET /env HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    /// What it writes to stdout until it closes it.
    fn output(&mut self) -> String {
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    fn signal(&self, signal: i32) {
        // SAFETY: kill takes plain numbers; the child is not reaped yet.
        assert_eq!(unsafe { libc::kill(-(self.child.id() as i32), signal) }, 0);
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("web.sock")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: as above; the group has the number of the child, which is reaped only now.
        unsafe { libc::kill(-(self.child.id() as i32), libc::SIGKILL) };
        self.child.wait().ok();
    }
}

#[test]
fn a_worker_that_inherits_its_socket_is_ready_when_it_accepts() {
    let mut worker = Worker::built_in(|app| app.program.socket = WorkerSocket::Inherit);
    worker.until_ready();
    let environment = worker.environment();
    let id = worker.child.id().to_string();
    let path = worker.path();
    for (name, expected) in [
        ("LISTEN_FDS", "1"),
        ("LISTEN_PID", id.as_str()),
        ("LISTEN_FDNAMES", "worker"),
        ("SOCKET_PATH", path.to_str().unwrap()),
        ("WORKER_ID", "2"),
        ("GENERATION", "5"),
        ("MAX_REQUESTS", "100"),
        ("CONTROL_SOCKET", "/run/control.sock"),
    ] {
        assert_eq!(environment[name], expected, "{name} in {environment}");
    }
    worker.signal(libc::SIGKILL);
    worker.child.wait().unwrap();
    let refused = UnixStream::connect(&path).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "nobody else holds the socket");
}

#[test]
fn a_worker_that_dies_before_it_accepts_was_never_ready() {
    let mut worker = Worker::shell("read -r line; sleep 1000", |app| app.program.socket = WorkerSocket::Inherit);
    let mut probe = worker.probe();
    for _ in 0..10 {
        assert_eq!(probe.look(probe.next()), Look::NotYet, "the kernel alone listens");
    }
    assert_eq!(probe.reason(), Some("it has not accepted a connection yet"));
    worker.signal(libc::SIGKILL);
    worker.child.wait().unwrap();
    // What the worker left behind in its group may close its copy a moment later.
    let deadline = Instant::now() + PATIENCE;
    while probe.reason() != Some("nobody listens there") {
        assert!(Instant::now() < deadline, "{:?}", probe.reason());
        assert_eq!(probe.look(probe.next()), Look::NotYet);
    }
}

#[test]
fn a_worker_on_a_port_is_asked_over_tcp() {
    let directory = tempfile::tempdir().unwrap();
    let run = directory.path().join("run");
    let words = [PROGRAM, "--listen", "127.0.0.1:{port}", "--respond", "ok", "--no-access-log", "--run-dir"];
    let mut words: Vec<_> = words.map(Into::into).to_vec();
    words.push(run.into());
    let mut app = App::default();
    app.program.command = Command::Argv(words);
    app.life.ready.by = ReadyBy::Http("/ready".to_owned());
    let worker = Worker::start(app);
    worker.until_ready();
    assert!(worker.endpoint.port().is_some() && !worker.path().exists());
    let mut stream = std::net::TcpStream::connect(worker.endpoint.address().as_socket().unwrap()).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
}

#[test]
fn a_worker_says_that_it_is_ready_and_that_it_leaves() {
    let mut worker = Worker::built_in(|app| app.life.ready.by = ReadyBy::Notify);
    worker.until_said(&Message::Ready);
    assert!(UnixStream::connect(worker.path()).is_ok(), "it spoke the truth");
    worker.signal(libc::SIGTERM);
    worker.until_said(&Message::Stopping);
    assert_eq!(worker.notify.as_ref().unwrap().ignored(), 0);
}

#[test]
fn the_watchdog_is_for_the_command_itself() {
    let script = "echo $$ $WATCHDOG_PID $WATCHDOG_USEC $NOTIFY_SOCKET; echo port=${PORT-none}";
    let mut worker = Worker::shell(script, |app| {
        app.life.watchdog = Some(Duration::from_secs(2));
        app.program.socket = WorkerSocket::Unix;
    });
    let (id, note) = (worker.child.id(), worker.directory.path().join("web.note"));
    assert_eq!(worker.output(), format!("{id} {id} 2000000 {}\nport=none\n", note.display()));
}

#[test]
fn a_port_takes_the_place_of_the_path() {
    let script = "echo $PORT {port} path=${SOCKET_PATH-none} $LISTEN_FDS";
    let mut worker = Worker::shell(script, |_| {});
    let port = worker.endpoint.port().unwrap();
    assert_eq!(worker.output(), format!("{port} {port} path=none\n"));
}

#[cfg(target_os = "linux")]
#[test]
fn the_memory_of_a_worker_is_that_of_its_whole_group() {
    // The shell's child holds it, not the shell.
    let script = "(held=$(head -c 30000000 /dev/zero | tr '\\0' x); echo ${#held}; exec 1>&-; read -r line < /dev/null; \
                  sleep 1000; echo $held > /dev/null) & wait";
    let worker = Worker::shell(script, |_| {});
    let deadline = Instant::now() + PATIENCE;
    loop {
        let held = production_server::supervisor::memory::proportional(worker.child.id());
        if held.is_some_and(|bytes| bytes > 28_000_000) {
            break;
        }
        assert!(Instant::now() < deadline, "{held:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The whole server with these flags, on one backend: what is looked at is the same on all.
fn server(flags: &[&str]) -> Server {
    Server::start("epoll", flags)
}

fn logged(server: &Server, text: &str) -> bool {
    server.lines().iter().any(|line| line.contains(text))
}

fn until_logged(server: &Server, text: &str) {
    until(text, || logged(server, text));
}

fn get(server: &Server, target: &str) -> (u16, String) {
    let answer = server.client().ask(&format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    (answer.status, answer.text())
}

/// The worker's process, once there is one other than these.
fn worker_of(server: &Server, but: &[Process]) -> Process {
    let mut found = None;
    until("there is a worker", || {
        let mut workers = server.descendants().into_iter().filter(|process| process.command.contains(" worker"));
        found = workers.find(|process| !but.contains(process));
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_server_asks_its_workers_on_tcp_and_serves_them() {
    let script = "exec \"$0\" --listen 127.0.0.1:{port} --respond hello --no-access-log --run-dir \"$1/$WORKER_ID\"";
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    let mut server = server(&["-w", "2", "--ready", "http:/ready", "--", "sh", "-c", script, PROGRAM, place]);
    until("both are ready", || server.status()["ready"] == 2);
    assert_eq!(get(&server, "/"), (200, "hello".to_owned()));
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_worker_that_is_not_ready_is_told_what_it_answered() {
    let server = server(&["-w", "1", "--ready", "http:/status/503", "--ready-timeout", "300ms"]);
    until_logged(&server, "with 2xx within 0.3 s (GET /status/503 was answered with 503)");
    until_logged(&server, "not ready in time");
}

#[test]
fn a_worker_is_ready_when_it_says_so_and_not_before() {
    let speaking = server(&["-w", "1", "--ready", "notify"]);
    assert_eq!(get(&speaking, "/ping"), (200, "pong".to_owned()));
    let flags = ["-w", "1", "--ready", "notify", "--ready-timeout", "300ms"];
    let silent = ["--", "sh", "-c", "unset NOTIFY_SOCKET; exec \"$0\" worker", PROGRAM];
    let silent = server(&[&flags[..], &silent].concat());
    until_logged(&silent, "the worker did not say READY=1 within 0.3 s");
    assert!(!logged(&silent, "worker ready"));
}

#[test]
fn workers_that_inherit_their_sockets_serve_die_and_come_back() {
    let mut server = server(&["-w", "1", "--socket", "inherit"]);
    let mut killed = Vec::new();
    for _ in 0..3 {
        assert_eq!(get(&server, "/ping"), (200, "pong".to_owned()));
        let worker = worker_of(&server, &killed);
        send_signal(worker.id, "KILL");
        killed.push(worker);
        // What comes before the server knows may still find a socket, and nobody to answer.
        let ended = || server.lines().iter().filter(|line| line.contains("worker ended")).count();
        until("the server knows", || ended() == killed.len());
    }
    assert_eq!(get(&server, "/ping"), (200, "pong".to_owned()), "held until there is another");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_worker_that_falls_silent_is_killed_and_replaced() {
    let server = server(&["-w", "1", "--watchdog", "1s"]);
    assert_eq!(get(&server, "/ping"), (200, "pong".to_owned()));
    let worker = worker_of(&server, &[]);
    assert!(!logged(&server, "watchdog"));
    send_signal(worker.id, "STOP");
    until_logged(&server, "watchdog: silent for 1 s");
    assert_eq!(get(&server, "/ping"), (200, "pong".to_owned()));
    assert!(!worker.is_alive());
}

#[test]
fn a_worker_that_says_that_it_stops_is_replaced_and_no_crash() {
    let mut server = server(&["-w", "1", "--ready", "notify"]);
    assert_eq!(get(&server, "/ping"), (200, "pong".to_owned()));
    send_signal(worker_of(&server, &[]).id, "TERM");
    until_logged(&server, "stops by itself");
    assert_eq!(get(&server, "/ping"), (200, "pong".to_owned()));
    assert!(!logged(&server, "crash") && !logged(&server, "exit: code"));
    assert_eq!(server.stop(), Some(0));
}
