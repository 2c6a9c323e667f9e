//! Peers that say nothing, take nothing or hang, beside the supervisor: it goes on, one of them after the other.
//!
//! Each row of [`PEERS`] makes one such peer of the supervisor's. While it is silent, `status` is answered, one TERM ends the server in order,
//! and a second one ends it at once.

use std::any::Any;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use socket2::{Domain, SockAddr, Socket, Type};

use super::*;
use crate::support::send_signal;

/// What a second TERM may take: a second, and what a busy machine adds to it.
const AT_ONCE: Duration = Duration::from_millis(1800);
/// Short enough for a test, where nothing but its deadline ends a stop.
const QUICK: [&str; 4] = ["--shutdown", "1s", "-w", "1"];

/// A server beside a peer that is silent, with what keeps it so.
struct Beside {
    site: Site,
    _kept: Vec<Box<dyn Any>>,
}

struct Peer {
    name: &'static str,
    /// `None`: this machine cannot make one.
    begin: fn() -> Option<Beside>,
    /// One TERM ends the server as soon as its deadlines say, which are short.
    ends_soon: bool,
}

const fn peer(name: &'static str, begin: fn() -> Option<Beside>) -> Peer {
    Peer { name, begin, ends_soon: true }
}

const PEERS: &[Peer] = &[
    peer("a worker that is stopped", a_stopped_worker),
    Peer { ends_soon: false, ..peer("a worker in a frozen group", a_frozen_worker) },
    peer("a worker that is asked whether it is ready", a_worker_that_does_not_answer),
    peer("what has left a worker that is buried, and holds its socket", what_holds_a_dead_worker_s_socket),
    peer("a stopped process with a socket in the run directory", a_socket_left_in_the_run_directory),
    peer("an upstream whose backlog is full", an_upstream_with_a_full_backlog),
    peer("an upstream that takes no packet", an_upstream_that_takes_no_packet),
    peer("clients of the control socket", clients_of_the_control_socket),
    peer("a crowd at the control socket", a_crowd_at_the_control_socket),
    peer("a service manager that does not read", a_full_service_manager),
    peer("syslog and the journal, which do not read", full_logs),
    peer("a pipe as access log that nobody reads", a_full_pipe_as_log),
    peer("a pipe in the place of the pid file", a_pipe_as_pid_file),
    peer("a pipe in the place of the configuration file", a_pipe_as_configuration),
    peer("a pipe in the place of a worker's socket", a_pipe_as_socket),
    peer("a pipe in the place of the run directory's lock", a_pipe_as_lock),
    peer("a pipe for CloudWatch's lines", a_pipe_for_metrics),
    peer("a new server that does not say that it is one", a_new_server_that_says_nothing),
    peer("a guard that is stopped", a_stopped_guard),
    peer("a client that was refused and stays", a_refused_client),
];

#[test]
fn beside_each_silent_peer_status_is_answered_and_a_stop_is_in_order() {
    each(PEERS.iter().filter(|peer| peer.ends_soon), |server| {
        server.signal("TERM");
        assert_eq!(server.ended().code(), Some(0), "{:?}", server.lines());
    });
}

#[test]
fn beside_each_silent_peer_a_second_term_ends_the_server_at_once() {
    each(PEERS.iter(), |server| {
        server.signal("TERM");
        until("it has the first one", || server.has_said("stopping: requests may finish"));
        let second = Instant::now();
        server.signal("TERM");
        let (status, waited) = (server.ended(), second.elapsed());
        assert!(waited < AT_ONCE, "{waited:?} {:?}", server.lines());
        assert_eq!(status.code(), Some(0), "{:?}", server.lines());
    });
}

/// Looks at a server beside each of these, and says beside which something did not hold. A machine that is busy may make one late
/// that has a second to end; what hangs does so each time.
fn each<'a>(peers: impl Iterator<Item = &'a Peer>, look: impl Fn(&mut Server)) {
    let fails = |peer: &&Peer| {
        (0..3).all(|_| {
            let looked =
                std::panic::AssertUnwindSafe(|| begin(peer).into_iter().for_each(|mut it| look(&mut it.site.server)));
            std::panic::catch_unwind(looked).is_err()
        })
    };
    let failed: Vec<&str> = peers.filter(fails).map(|peer| peer.name).collect();
    assert!(failed.is_empty(), "beside {failed:?}");
}

fn begin(peer: &Peer) -> Option<Beside> {
    let beside = (peer.begin)();
    match &beside {
        Some(beside) => assert_eq!(beside.site.ask("/status", &Value::Null).0, 200, "{}", peer.name),
        None => eprintln!("this machine cannot make {}", peer.name),
    }
    beside
}

fn with(site: Site, kept: Vec<Box<dyn Any>>) -> Option<Beside> {
    Some(Beside { site, _kept: kept })
}

fn site(flags: &[&str]) -> Site {
    Site::start(backend(), &[&QUICK[..], flags].concat(), |_| Vec::new())
}

/// Nothing here goes through a loop.
fn backend() -> &'static str {
    if cfg!(backend_readiness) { "epoll" } else { "io_uring" }
}

/// A server in that folder, whose process is prepared by the caller.
fn site_in(folder: tempfile::TempDir, command: Command, flags: &[&str]) -> Site {
    let run = folder.path().join("run").display().to_string();
    let flags = [&["--run-dir", &run], flags].concat();
    Site { server: Server::start_as(command, backend(), &flags), folder }
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).display().to_string()
}

fn pipe(path: &Path) {
    let name = CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: mkfifo only reads the text that it is given.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0, "{}", std::io::Error::last_os_error());
}

fn pipe_instead(path: &Path) {
    fs::remove_file(path).unwrap();
    pipe(path);
}

/// Listens and accepts nothing; no further connection finds room.
fn full_listener(socket: Socket, address: &SockAddr) -> Vec<Box<dyn Any>> {
    socket.bind(address).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap();
    let mut kept: Vec<Box<dyn Any>> = vec![Box::new(socket)];
    for _ in 0..8 {
        let client = Socket::new(address.domain(), Type::STREAM, None).unwrap();
        client.set_nonblocking(true).unwrap();
        // The last of them wait in vain.
        client.connect(&address).ok();
        kept.push(Box::new(client));
    }
    kept
}

/// A datagram socket that takes no more.
fn full_datagrams(path: &Path) -> Vec<Box<dyn Any>> {
    let theirs = UnixDatagram::bind(path).unwrap();
    let ours = UnixDatagram::unbound().unwrap();
    ours.set_nonblocking(true).unwrap();
    while ours.send_to(b"full", path).is_ok() {}
    vec![Box::new(theirs)]
}

fn a_stopped_worker() -> Option<Beside> {
    let site = site(&["--health-check", "/ping", "--health-interval", "100ms"]);
    send_signal(site.settled(1)[0], "STOP");
    with(site, Vec::new())
}

/// A group of the freezer's; thawed and removed when dropped.
struct Frozen {
    folder: std::path::PathBuf,
    state: (&'static str, &'static str),
}

impl Frozen {
    fn with(process: u32) -> Option<Frozen> {
        let name = format!("silence-{}", std::process::id());
        let ways = [
            ("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"),
            ("/sys/fs/cgroup", "cgroup.freeze", "1", "0"),
        ];
        ways.into_iter().find_map(|(root, file, freeze, thaw)| {
            let folder = Path::new(root).join(&name);
            fs::create_dir(&folder).ok()?;
            let frozen = Frozen { folder, state: (file, thaw) };
            let write = |file: &str, text: &str| fs::write(frozen.folder.join(file), text).ok();
            write("cgroup.procs", &process.to_string()).and_then(|()| write(file, freeze))?;
            Some(frozen)
        })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        fs::write(self.folder.join(self.state.0), self.state.1).ok();
        until("the frozen one has ended", || fs::remove_dir(&self.folder).is_ok());
    }
}

fn a_frozen_worker() -> Option<Beside> {
    let site = site(&[]);
    let frozen = Frozen::with(site.settled(1)[0])?;
    with(site, vec![Box::new(frozen)])
}

/// The worker takes connections, and that is all it does.
fn a_worker_that_does_not_answer() -> Option<Beside> {
    const APP: &str = "import os, socket, signal\nlistener = socket.socket(socket.AF_UNIX)\n\
        listener.bind(os.environ['SOCKET_PATH'])\nlistener.listen(0)\nprint('listens', flush=True)\nsignal.pause()";
    let flags = [&QUICK[..], &["--ready", "http:/ready", "--event-log", "stderr"]].concat();
    let site = Site::start(backend(), &flags, |_| ["--", python(), "-c", APP].map(str::to_owned).to_vec());
    until("it listens", || !site.app()["workers"].as_array().unwrap().is_empty());
    with(site, Vec::new())
}

/// The worker is gone; a child of its own in another session holds its listening socket, whose backlog is full, and is stopped.
fn what_holds_a_dead_worker_s_socket() -> Option<Beside> {
    const APP: &str = r#"
import os, signal, socket, sys
path = os.environ["SOCKET_PATH"]
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen(0)
if os.fork() == 0:
    os.setsid()
    clients = []
    try:
        while True:
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            client.connect(path)
            clients.append(client)
    except BlockingIOError:
        pass
    open(os.path.join(sys.argv[1], f"full-{os.getpid()}"), "w").close()
    os.kill(os.getpid(), signal.SIGSTOP)
signal.pause()
"#;
    let site = Site::start(backend(), &QUICK, |folder| ["--", python(), "-c", APP, folder].map(str::to_owned).to_vec());
    let worker = site.settled(1)[0];
    until("its backlog is full", || !site.named("full-").is_empty());
    send_signal(worker, "KILL");
    until("it is buried", || site.server.has_said("worker-exit"));
    with(site, Vec::new())
}

fn a_socket_left_in_the_run_directory() -> Option<Beside> {
    let folder = folder();
    let left = folder.path().join("run/run-0badcafe");
    fs::create_dir_all(&left).unwrap();
    for directory in [&left, &folder.path().join("run")] {
        fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        fs::write(directory.join(".production_server"), "").unwrap();
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let kept = full_listener(socket, &SockAddr::unix(left.join("web.G1.1.1.sock")).unwrap());
    let site = site_in(folder, Command::new(PROGRAM), &QUICK);
    site.settled(1);
    with(site, kept)
}

fn before_upstream(url: &str) -> Site {
    let flags = ["--shutdown", "1s", "--upstream", url, "--health-check", "/", "--health-interval", "100ms"];
    site_in(folder(), Command::new(PROGRAM), &flags)
}

fn an_upstream_with_a_full_backlog() -> Option<Beside> {
    let place = folder();
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    let mut kept = full_listener(socket, &SockAddr::unix(place.path().join("full.sock")).unwrap());
    let site = before_upstream(&format!("unix:{}", path(place.path(), "full.sock")));
    kept.push(Box::new(place));
    with(site, kept)
}

fn an_upstream_that_takes_no_packet() -> Option<Beside> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    let kept = full_listener(socket, &any.into());
    let address = kept[0].downcast_ref::<Socket>().unwrap().local_addr().unwrap().as_socket().unwrap();
    with(before_upstream(&format!("http://{address}")), kept)
}

/// Some say nothing, some say half of a request, some ask and do not read.
fn clients_of_the_control_socket() -> Option<Beside> {
    let site = site(&[]);
    site.settled(1);
    let one = "GET /status HTTP/1.1\r\nHost: a\r\n\r\n";
    let said =
        [String::new(), "POST /stop HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n".to_owned(), one.repeat(2000)];
    let kept = (0..45).map(|index| {
        let mut stream = UnixStream::connect(site.run().join("control.sock")).unwrap();
        stream.set_nonblocking(true).unwrap();
        // Where the server reads no more, the rest is not sent.
        stream.write_all(said[index % said.len()].as_bytes()).ok();
        Box::new(stream) as Box<dyn Any>
    });
    let kept = kept.collect();
    with(site, kept)
}

fn a_crowd_at_the_control_socket() -> Option<Beside> {
    crate::support::descriptor_limit();
    let site = site(&[]);
    site.settled(1);
    let connect = |_| Box::new(UnixStream::connect(site.run().join("control.sock")).unwrap()) as Box<dyn Any>;
    let kept = (0..2000).map(connect).collect();
    with(site, kept)
}

fn a_full_service_manager() -> Option<Beside> {
    let folder = folder();
    let socket = folder.path().join("notify");
    let kept = full_datagrams(&socket);
    let mut command = Command::new(PROGRAM);
    command.env("NOTIFY_SOCKET", &socket).env("WATCHDOG_USEC", "200000");
    let site = site_in(folder, command, &QUICK);
    site.settled(1);
    with(site, kept)
}

fn full_logs() -> Option<Beside> {
    let place = folder();
    let (access, events) = (place.path().join("syslog"), place.path().join("journal"));
    let mut kept = full_datagrams(&access);
    kept.extend(full_datagrams(&events));
    let flags = ["--access-log", &format!("syslog:{}", access.display())];
    let site = site(&flags);
    site.settled(1);
    assert_eq!(site.server.client().get("/ping").text(), "pong");
    kept.push(Box::new(place));
    with(site, kept)
}

fn a_full_pipe_as_log() -> Option<Beside> {
    let place = folder();
    let log = place.path().join("log");
    pipe(&log);
    let flags = libc::O_NONBLOCK;
    let mut held = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&log).unwrap();
    while held.write(&[b'x'; 4096]).is_ok() {}
    let site = site(&["--access-log", log.to_str().unwrap()]);
    site.settled(1);
    assert_eq!(site.server.client().get("/ping").text(), "pong");
    site.server.signal("USR1");
    with(site, vec![Box::new(held), Box::new(place)])
}

fn a_pipe_as_pid_file() -> Option<Beside> {
    let place = folder();
    let file = place.path().join("pid");
    let site = site(&["--pid-file", file.to_str().unwrap()]);
    site.settled(1);
    pipe_instead(&file);
    with(site, vec![Box::new(place)])
}

fn a_pipe_as_configuration() -> Option<Beside> {
    let place = folder();
    let file = place.path().join("production_server.toml");
    fs::write(&file, "# Nothing but defaults.\n").unwrap();
    let site = site(&["--config", file.to_str().unwrap()]);
    site.settled(1);
    pipe_instead(&file);
    site.server.signal("HUP");
    until("it is looked at", || site.server.has_said("it is no regular file"));
    with(site, vec![Box::new(place)])
}

fn a_pipe_as_socket() -> Option<Beside> {
    let site = site(&[]);
    let worker = site.settled(1)[0];
    let sockets =
        fs::read_dir(site.run()).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let mut socket = fs::read_dir(sockets).unwrap().map(|entry| entry.unwrap().path());
    pipe_instead(&socket.find(|path| path.extension().is_some_and(|end| end == "sock")).unwrap());
    // It is looked for, asked, and buried.
    site.server.client().begin("/ping");
    send_signal(worker, "KILL");
    until("it is buried", || site.server.has_said("worker-exit"));
    with(site, Vec::new())
}

fn a_pipe_as_lock() -> Option<Beside> {
    let site = site(&[]);
    let worker = site.settled(1)[0];
    let mut lock = fs::read_dir(site.run()).unwrap().map(|entry| entry.unwrap().path());
    pipe_instead(&lock.find(|path| path.ends_with("lock")).unwrap());
    send_signal(worker, "KILL");
    until("it is buried", || site.server.has_said("worker-exit"));
    with(site, Vec::new())
}

fn a_pipe_for_metrics() -> Option<Beside> {
    let place = folder();
    let lines = place.path().join("lines");
    pipe(&lines);
    let site = site(&["--cloudwatch", lines.to_str().unwrap(), "--cloudwatch-interval", "10ms"]);
    site.settled(1);
    with(site, vec![Box::new(place)])
}

fn a_new_server_that_says_nothing() -> Option<Beside> {
    let site = site(&[]);
    site.settled(1);
    let program = site.folder.path().join("silent");
    fs::write(&program, "#!/bin/sh\nexec sleep 1000\n").unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let (code, said) = site.word(&["upgrade", program.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    with(site, Vec::new())
}

fn a_stopped_guard() -> Option<Beside> {
    let site = site(&[]);
    site.settled(1);
    let processes = site.server.descendants();
    let guard = processes.iter().find(|process| process.command.contains(" _guard ")).unwrap();
    send_signal(guard.id, "STOP");
    with(site, Vec::new())
}

/// Its connection lingers, so that it can read why.
fn a_refused_client() -> Option<Beside> {
    let site = site(&[]);
    site.settled(1);
    let mut client = site.server.client();
    client.send("no request\r\n\r\n");
    assert_eq!(client.answer().status, 400);
    with(site, vec![Box::new(client)])
}

/// A file that cannot be opened for as long as its lease lasts, three quarters of a minute, stands for a file system that does not answer.
#[test]
fn a_server_that_hangs_ends_by_the_second_term_and_its_workers_with_it() {
    const HOLDER: &str = "import fcntl, os, signal, sys\nfile = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n\
        fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGWINCH)\nfcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n\
        print('held', flush=True)\nsys.stdin.read()";
    let place = folder();
    let (file, log) = (place.path().join("production_server.toml"), place.path().join("log"));
    let mut holder = Command::new(python());
    let holder = holder.args(["-c", HOLDER]).arg(&log).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut holder = holder.spawn().unwrap();
    holder.stdout.take().unwrap().read_exact(&mut [0; 5]).unwrap();
    fs::write(&file, "# Nothing but defaults.\n").unwrap();
    let mut site = site(&["--config", file.to_str().unwrap()]);
    let processes = site.server.descendants();
    site.settled(1);
    fs::write(&file, format!("[log]\nevents = {log:?}\n")).unwrap();
    site.server.signal("HUP");
    let mut asks = UnixStream::connect(site.run().join("control.sock")).unwrap();
    asks.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    asks.write_all(b"GET /status HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(asks.read(&mut [0]).is_err(), "it hangs");
    // Two at once may be one to the system.
    let first = Instant::now();
    until("it ends", || {
        let ended = site.server.has_ended();
        if !ended {
            site.server.signal("TERM");
        }
        ended
    });
    assert!(first.elapsed() < AT_ONCE, "{:?}", first.elapsed());
    assert_eq!(site.server.ended().code(), Some(70));
    site.server.says("the server hangs and does not stop");
    assert_gone(&processes, Duration::from_secs(3));
    drop(holder.stdin.take());
    holder.wait().unwrap();
}
