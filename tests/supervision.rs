//! The supervisor with real processes: the test plays the loops' part by hand.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use production_server::buffers::slots::Key;
use production_server::config::{self, Settings, Upstream};
use production_server::dispatch::{
    Acquire, Ask, Dispatch, Outcome, Permit, Policy, Snapshot, Standing, Waiter, WorkerId, WorkerSnapshot,
};
use production_server::log::{Captured, Log};
use production_server::mailbox::{Mailbox, Message, Postboxes, mailbox};
use production_server::supervisor::guard::Guard;
use production_server::supervisor::run_directory::RunDirectory;
use production_server::supervisor::signals::{Request, Requester};
use production_server::supervisor::unit::{policy, table_size};
use production_server::supervisor::{AppState, ExitReason, Hooks, Options, Status, Supervisor};

use crate::support::{DEADLINE, PROGRAM, Process, python, send_signal, until};

/// Looks again until `look` finds something, and fails with what was waited for.
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let mut found = None;
    until(what, || {
        found = look();
        found.is_some()
    });
    found.unwrap()
}

fn is_alive(process: u32) -> bool {
    Process::of(process).is_some()
}

/// A supervisor on a thread of its own, which lives as long as the server, as its rule demands.
pub(crate) struct Server {
    _directory: tempfile::TempDir,
    run: PathBuf,
    sockets: PathBuf,
    dispatch: Arc<Dispatch>,
    requester: Requester,
    status: Arc<Status>,
    mail: Mailbox<Message>,
    letters: Vec<Message>,
    loops_done: Arc<AtomicBool>,
    captured: Captured,
    log: Log,
    thread: JoinHandle<ExitReason>,
}

pub(crate) fn settings(command: &[&str], workers: usize) -> Settings {
    let mut settings = Settings::for_test();
    settings.app.workers = workers;
    settings.app.program.command = match command {
        [] => config::Command::BuiltIn,
        words => config::Command::Argv(words.iter().map(Into::into).collect()),
    };
    settings.app.life.restart.base = Duration::from_millis(1);
    settings.app.life.ready.timeout = DEADLINE;
    settings
}

fn dispatch_for(settings: &Settings) -> Arc<Dispatch> {
    let (queue_timeout, hold) = (DEADLINE, DEADLINE);
    let policy = Policy { queue_size: 8, queue_timeout, hold, max_tunnels: 10, ..policy(&settings.app) };
    Arc::new(Dispatch::new(policy, table_size(&settings.app), Instant::now()))
}

pub(crate) fn options() -> Options {
    Options {
        program: PROGRAM.into(),
        signals: false,
        memory_interval: Duration::from_millis(20),
        saturation_interval: Duration::from_millis(20),
        idle_time: || SystemTime::now().duration_since(UNIX_EPOCH).ok().map(|time| time * 64),
        ..Options::default()
    }
}

fn serve(settings: Settings) -> Server {
    serve_with(settings, options())
}

pub(crate) fn serve_with(settings: Settings, options: Options) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let run_path = directory.path().join("run");
    let run = RunDirectory::open(&run_path).unwrap();
    let sockets = run.sockets().to_path_buf();
    let dispatch = dispatch_for(&settings);
    let (postbox, mail) = mailbox(|| {});
    let (log, captured) = Log::captured().unwrap();
    let loops_done = Arc::new(AtomicBool::new(false));
    let (send, receive) = std::sync::mpsc::channel();
    let (theirs, done, their_log) = (Arc::clone(&dispatch), Arc::clone(&loops_done), log.clone());
    let thread = std::thread::spawn(move || {
        let postboxes = Postboxes::new(vec![postbox]);
        let started = Supervisor::start_with(Arc::new(settings), theirs, postboxes, their_log, run, options);
        let supervisor = started.unwrap();
        send.send((supervisor.requester().unwrap(), supervisor.status())).unwrap();
        supervisor.run(Hooks { loops_done: Box::new(|| done.load(Ordering::SeqCst)), every: None, reload: None })
    });
    let (requester, status) = receive.recv_timeout(DEADLINE).expect("the supervisor starts");
    let letters = Vec::new();
    Server {
        _directory: directory,
        run: run_path,
        sockets,
        dispatch,
        requester,
        status,
        mail,
        letters,
        loops_done,
        captured,
        log,
        thread,
    }
}

impl Server {
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.dispatch.snapshot()
    }

    pub(crate) fn ready(&self) -> Vec<WorkerSnapshot> {
        self.snapshot().workers.into_iter().filter(|worker| worker.standing == Standing::Ready).collect()
    }

    pub(crate) fn until_ready(&self, count: usize) -> Vec<WorkerSnapshot> {
        eventually("workers get ready", || Some(self.ready()).filter(|ready| ready.len() == count))
    }

    fn log_text(&self) -> String {
        self.log.flush(DEADLINE);
        self.captured.text()
    }

    pub(crate) fn until_logged(&self, text: &str) -> String {
        eventually(text, || Some(self.log_text()).filter(|log| log.contains(text)))
    }

    /// The mail so far, once `wanted` is in it.
    fn until_told(&mut self, what: &str, wanted: impl Fn(&Message) -> bool) -> usize {
        eventually(what, || {
            let mut fresh = Vec::new();
            self.mail.take(&mut fresh);
            self.letters.append(&mut fresh);
            self.letters.iter().position(&wanted)
        })
    }

    fn standing(&self, id: WorkerId) -> Option<Standing> {
        self.snapshot().workers.into_iter().find(|worker| worker.id == id).map(|worker| worker.standing)
    }

    fn acquire(&self) -> Acquire {
        let waiter = Waiter { loop_index: 0, exchange: Key { index: 0, generation: 1 } };
        let ask = Ask { since: Instant::now(), exclude: None, front: false, tunnel: false, turn: 0 };
        self.dispatch.acquire(waiter, ask, Instant::now())
    }

    /// The right to one request, which must be free.
    pub(crate) fn permit(&self) -> Permit {
        match self.acquire() {
            Acquire::Granted(permit) => permit,
            other => panic!("no worker is free: {other:?}"),
        }
    }

    pub(crate) fn release(&self, permit: Permit, outcome: Outcome) {
        assert!(self.dispatch.release(permit, outcome, Instant::now(), 0).is_none());
    }

    /// One whole request through a worker, as a loop does it.
    fn request(&self, path: &str) -> String {
        let permit = self.permit();
        let target = self.dispatch.target(permit.worker()).unwrap();
        let answer = get(target.address.as_pathname().unwrap(), path);
        self.release(permit, Outcome::Answered);
        answer
    }

    pub(crate) fn stop(self) -> ExitReason {
        self.loops_done.store(true, Ordering::SeqCst);
        self.requester.request(Request::Stop);
        self.end()
    }

    /// Joins, and sees that nothing is left.
    fn end(self) -> ExitReason {
        let reason = self.thread.join().unwrap();
        assert!(!self.sockets.exists(), "the sockets' directory is left");
        assert!(!self.run.exists(), "the run directory is left");
        assert_eq!(self.status.state(), AppState::Stopped);
        reason
    }
}

fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn pid_of(server: &Server, id: WorkerId) -> u32 {
    let socket = server.dispatch.target(id).unwrap();
    let answer = get(socket.address.as_pathname().unwrap(), "/env");
    let json = answer.split_once("\r\n\r\n").unwrap().1;
    serde_json::from_str::<serde_json::Value>(json).unwrap()["pid"].as_u64().unwrap() as u32
}

#[test]
fn workers_get_ready_know_their_contract_and_leave_nothing_behind() {
    let server = serve(settings(&[], 2));
    let ready = server.until_ready(2);
    let pids: Vec<u32> = ready.iter().map(|worker| pid_of(&server, worker.id)).collect();
    for worker in &ready {
        let path = worker.target.address.as_pathname().unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions()) & 0o777, 0o600);
        let answer = get(path, "/env");
        let number = worker.target.number;
        for expected in [
            format!("\"WORKER_ID\":\"{number}\""),
            format!("\"CLUSTER_WORKER_ID\":\"{number}\""),
            "\"CLUSTER_WORKER\":\"true\"".to_owned(),
            "\"GENERATION\":\"1\"".to_owned(),
            "\"WORKER_CONCURRENCY\":\"1\"".to_owned(),
            format!("\"SOCKET_PATH\":\"{}\"", path.display()),
        ] {
            assert!(answer.contains(&expected), "{expected} in {answer}");
        }
        let limit = answer.split("\"MAX_REQUESTS\":\"").nth(1).and_then(|rest| rest.split('"').next()?.parse().ok());
        assert!((10_000..=11_000).contains(&limit.unwrap_or(0)), "{answer}");
        assert!(!answer.contains("\"PORT\""), "{answer}");
    }
    assert_eq!(server.status.state(), AppState::Running);
    assert_eq!(server.stop(), ExitReason::Stopped);
    assert!(!pids.iter().any(|&pid| is_alive(pid)), "a worker is left");
}

#[test]
fn a_killed_worker_is_announced_and_comes_back() {
    let mut server = serve(settings(&[], 1));
    let old = server.until_ready(1)[0].id;
    assert!(server.request("/ping").ends_with("pong"));
    send_signal(pid_of(&server, old), "KILL");
    let died =
        server.until_told("the word of the death", |message| matches!(message, Message::Died(_, id) if *id == old));
    let retired =
        server.until_told("the retirement", |message| matches!(message, Message::Retire(_, id) if *id == old));
    assert!(died < retired, "the loops wait for the first");
    let new = server.until_ready(1)[0].id;
    assert_ne!(new, old);
    assert!(server.request("/ping").ends_with("pong"));
    let log = server.until_logged("crash: signal 9");
    assert!(log.contains("served=1") || log.contains("served"), "{log}");
    assert_eq!(server.status.crashes.load(Ordering::Relaxed), 1);
    server.stop();
}

#[test]
fn what_a_worker_answered_last_counts_though_it_is_read_after_its_end() {
    let mut server = serve(settings(&[], 1));
    let old = server.until_ready(1)[0].id;
    let permit = server.permit();
    send_signal(pid_of(&server, old), "KILL");
    server.until_told("the word of the death", |message| matches!(message, Message::Died(_, id) if *id == old));
    assert!(!server.log_text().contains("crash: signal 9"), "it was judged before its answer was read");
    server.release(permit, Outcome::Answered);
    let log = server.until_logged("crash: signal 9");
    assert!(log.contains("served=1 ") || log.contains("\"served\":1,"), "{log}");
    server.stop();
}

#[test]
fn an_app_that_never_gets_ready_is_given_up_with_its_last_words() {
    let server = serve(settings(&["sh", "-c", "echo no database >&2; exit 3"], 2));
    let waiter = Waiter { loop_index: 0, exchange: Key { index: 5, generation: 1 } };
    let ask = Ask { since: Instant::now(), exclude: None, front: false, tunnel: false, turn: 0 };
    let queued = server.dispatch.acquire(waiter, ask, Instant::now());
    assert!(matches!(queued, Acquire::Queued(_)));
    let mut server = server;
    server.until_told("who waits is told", |message| matches!(message, Message::AppFailed(key) if key.index == 5));
    server.until_told("the loops are told", |message| matches!(message, Message::Drain { .. }));
    assert!(matches!(server.dispatch.acquire(waiter, ask, Instant::now()), Acquire::Failed));
    let log = server.until_logged("the app has failed");
    assert!(log.contains("exit: code 3") && log.contains("no database"), "{log}");
    assert_eq!(server.status.starts.load(Ordering::Relaxed), 10, "five for each place");
    server.loops_done.store(true, Ordering::SeqCst);
    let reason = server.end();
    assert_eq!((reason, reason.code()), (ExitReason::NeverReady, 69));
}

#[test]
fn a_worker_that_has_served_enough_is_replaced_without_a_gap() {
    let mut settings = settings(&[], 1);
    settings.app.life.recycle.requests = 3;
    settings.app.life.recycle.requests_not_before = Duration::ZERO;
    let mut server = serve(settings);
    let first = server.until_ready(1)[0].id;
    let old_pid = pid_of(&server, first);
    for _ in 0..3 {
        assert!(server.request("/ping").ends_with("pong"));
    }
    // It must be possible to get a worker at any moment of the replacement.
    let deadline = Instant::now() + DEADLINE;
    while server.snapshot().workers.iter().any(|worker| worker.id == first) {
        assert!(server.snapshot().eligible > 0, "nobody serves");
        assert!(Instant::now() < deadline, "the old worker stays");
    }
    assert_ne!(server.until_ready(1)[0].id, first);
    assert!(server.request("/ping").ends_with("pong"));
    server.until_told(
        "the loops let the old one go",
        |message| matches!(message, Message::Retire(_, id) if *id == first),
    );
    server.until_logged("recycle: 3 requests");
    until("the old process ends", || !is_alive(old_pid));
    assert_eq!(server.status.crashes.load(Ordering::Relaxed), 0, "that was no crash");
    server.stop();
}

#[test]
fn a_worker_that_holds_too_much_memory_is_replaced_without_a_gap() {
    let mut settings = settings(&[], 1);
    settings.app.life.recycle.memory = Some(1024);
    let server = serve(settings);
    server.until_ready(1);
    let log = eventually("it is replaced", || {
        assert!(server.snapshot().eligible > 0, "nobody serves");
        Some(server.log_text()).filter(|log| log.contains("recycle: memory"))
    });
    assert!(!log.contains("crash"), "{log}");
    assert_eq!(server.stop(), ExitReason::Stopped);
}

#[test]
fn a_request_in_flight_keeps_the_old_worker_until_it_ends() {
    let mut settings = settings(&[], 1);
    settings.app.life.recycle.requests = 1;
    settings.app.life.recycle.requests_not_before = Duration::ZERO;
    settings.app.sharing.concurrency = 2;
    let server = serve(settings);
    let first = server.until_ready(1)[0].id;
    let pid = pid_of(&server, first);
    let held = server.permit();
    assert_eq!(held.worker(), first);
    // A second request at a time, and its worker has served enough.
    server.request("/ping");
    until("the replacement is ready", || server.ready().iter().any(|worker| worker.id != first));
    until("the old one drains", || server.standing(first) == Some(Standing::Draining));
    let second = server.permit();
    assert_ne!(second.worker(), first, "one that drains gets nothing new");
    server.release(second, Outcome::Unused);
    assert!(is_alive(pid), "it has a request in flight");
    server.release(held, Outcome::Answered);
    until("the old process ends", || !is_alive(pid));
    server.stop();
}

#[test]
fn a_request_that_does_not_end_is_cut_when_the_time_of_a_drain_is_over() {
    let mut settings = settings(&[], 1);
    settings.app.life.recycle.requests = 1;
    settings.app.life.recycle.requests_not_before = Duration::ZERO;
    settings.app.sharing.concurrency = 2;
    settings.app.life.restart.drain = Duration::from_millis(300);
    let mut server = serve(settings);
    let first = server.until_ready(1)[0].id;
    let pid = pid_of(&server, first);
    let held = server.permit();
    let since = Instant::now();
    server.request("/ping");
    until("the old process ends", || !is_alive(pid));
    assert!(since.elapsed() >= Duration::from_millis(300), "it ended after {:?} already", since.elapsed());
    server.until_logged("did not end in time: it is told to stop, which cuts them");
    server.until_told("the loops let it go", |message| matches!(message, Message::Retire(_, id) if *id == first));
    server.until_logged("recycle: 1 requests");
    // Its name stays until the permit is back.
    assert_eq!(server.standing(first), Some(Standing::Dead));
    server.release(held, Outcome::Broken);
    assert_eq!(server.standing(first), None);
    assert!(server.request("/ping").ends_with("pong"));
    server.stop();
}

#[test]
fn a_worker_that_has_lived_long_enough_is_replaced_without_a_gap() {
    let mut settings = settings(&[], 1);
    settings.app.life.recycle.lifetime = Some(Duration::from_millis(400));
    let since = Instant::now();
    let server = serve(settings);
    let first = server.until_ready(1)[0].id;
    let pid = pid_of(&server, first);
    until("the first one ends", || {
        assert!(server.snapshot().eligible > 0, "nobody serves");
        !is_alive(pid)
    });
    assert!(since.elapsed() >= Duration::from_millis(400), "it lived for {:?} only", since.elapsed());
    assert!(server.request("/ping").ends_with("pong"));
    server.until_logged("recycle: lived 0 s");
    until("the next one ends in its turn", || server.log_text().matches("recycle: lived").count() >= 2);
    assert_eq!(server.status.crashes.load(Ordering::Relaxed), 0, "that was no crash");
    server.stop();
}

/// Memory has no room for another worker.
fn full() -> Options {
    Options { headroom: || Some(1), ..options() }
}

#[test]
fn without_room_for_both_a_restart_is_aborted_and_the_old_workers_serve_on() {
    let server = serve_with(settings(&[], 2), full());
    let before: Vec<WorkerId> = server.until_ready(2).iter().map(|worker| worker.id).collect();
    server.requester.request(Request::Restart);
    let log = server.until_logged("rolling restart aborted; the old workers serve on");
    assert!(log.contains("memory has no room for a replacement beside the old worker"), "{log}");
    assert_eq!(server.ready().iter().map(|worker| worker.id).collect::<Vec<_>>(), before);
    assert_eq!(log.matches("worker started").count(), 2, "{log}");
    assert!(server.request("/ping").ends_with("pong"));
    server.stop();
}

#[test]
fn without_room_for_both_the_old_worker_goes_first_if_one_may_be_missing() {
    let mut settings = settings(&[], 2);
    settings.app.life.restart.max_unavailable = 1;
    let server = serve_with(settings, full());
    let before: Vec<u32> = server.until_ready(2).iter().map(|worker| pid_of(&server, worker.id)).collect();
    server.requester.request(Request::Restart);
    let log = eventually("the restart ends", || {
        // Never more than there were, and never less than one.
        let ready = server.ready();
        assert!((1..=2).contains(&ready.len()), "{ready:?}");
        Some(server.log_text()).filter(|log| log.contains("rolling restart done"))
    });
    assert_eq!((log.matches("worker started").count(), log.matches("reason=deploy").count()), (4, 2), "{log}");
    // Stop first: each successor is started behind the end of the one before it.
    let at = |words: &str, count: usize| log.match_indices(words).nth(count).map(|(at, _)| at);
    assert!(
        at("worker ended", 0) < at("worker started", 2) && at("worker ended", 1) < at("worker started", 3),
        "{log}"
    );
    assert!(at("worker ready", 2) < at("worker ended", 1), "the second one goes when the first is back: {log}");
    let after = server.until_ready(2);
    assert!(after.iter().all(|worker| !before.contains(&pid_of(&server, worker.id))));
    server.stop();
}

#[test]
fn the_only_worker_s_restart_without_room_for_both_holds_who_asks_meanwhile() {
    let mut settings = settings(&[], 1);
    settings.app.life.restart.max_unavailable = 1;
    let mut server = serve_with(settings, full());
    let old = server.until_ready(1)[0].id;
    let pid = pid_of(&server, old);
    // The old one has a request, so that the restart is in its middle for as long as this test likes.
    let running = server.permit();
    server.requester.request(Request::Restart);
    until("the old one drains", || server.standing(old) == Some(Standing::Draining));
    assert!(matches!(server.acquire(), Acquire::Queued(_)), "nobody is there, and it is held");
    assert!(is_alive(pid));
    server.release(running, Outcome::Answered);
    let granted = server.until_told("the held one gets a worker", |message| matches!(message, Message::Grant(_)));
    assert!(!is_alive(pid), "the new one was started behind the end of the old one");
    let Message::Grant(grant) = server.letters.swap_remove(granted) else { unreachable!("it was looked for") };
    assert_ne!(grant.permit.worker(), old);
    server.release(grant.permit, Outcome::Answered);
    server.until_logged("rolling restart done");
    server.stop();
}

#[test]
fn a_stop_with_a_dump_writes_the_state_down_first() {
    let server = serve(settings(&[], 2));
    let mut expected = Vec::new();
    for worker in server.until_ready(2) {
        expected.push((worker.target.label.clone(), pid_of(&server, worker.id)));
    }
    let held = server.permit();
    server.loops_done.store(true, Ordering::SeqCst);
    server.requester.request(Request::StopWithDump);
    let log = server.until_logged("shutdown");
    for (label, pid) in expected {
        let line = log.lines().find(|line| line.contains("state of a worker") && line.contains(&label)).unwrap();
        assert!(line.contains(&pid.to_string()) && line.contains("Ready"), "{line}");
    }
    assert!(
        log.lines().any(|line| line.contains("state") && line.contains("Running") && line.contains("eligible")),
        "{log}"
    );
    server.release(held, Outcome::Broken);
    assert_eq!(server.end(), ExitReason::Stopped);
}

#[test]
fn stopping_waits_for_the_loops_before_it_tells_the_workers() {
    let mut server = serve(settings(&[], 1));
    let worker = server.until_ready(1)[0].id;
    let pid = pid_of(&server, worker);
    server.requester.request(Request::Stop);
    server.until_told("the loops drain", |message| matches!(message, Message::Drain { .. }));
    assert!(is_alive(pid) && server.request("/ping").ends_with("pong"), "it serves while the loops drain");
    assert!(!server.letters.iter().any(|message| matches!(message, Message::Retire(..))));
    server.loops_done.store(true, Ordering::SeqCst);
    assert_eq!(server.end(), ExitReason::Stopped);
    assert!(!is_alive(pid));
}

#[test]
fn a_second_stop_is_at_once_though_the_loops_and_the_workers_do_not_listen() {
    let mut settings = settings(&["sh", "-c", "trap '' TERM; sleep 1000 & wait; sleep 1000"], 1);
    settings.leaving.shutdown = DEADLINE * 10;
    let mut server = serve(settings);
    server.until_logged("worker started");
    server.requester.request(Request::Stop);
    server.until_told("the first", |message| matches!(message, Message::Drain { .. }));
    server.requester.request(Request::Stop);
    server.until_told("the second", |message| matches!(message, Message::StopNow));
    let since = Instant::now();
    assert_eq!(server.end(), ExitReason::Stopped);
    assert!(since.elapsed() < DEADLINE, "neither deadline was waited for");
}

#[test]
fn a_worker_that_has_left_its_group_is_killed_all_the_same() {
    let script = "import os,signal,time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
                  os.setpgid(0, os.getpgid(os.getppid()))\nprint('moved', flush=True)\ntime.sleep(1000)";
    let server = serve(settings(&[python(), "-c", script], 1));
    server.until_logged("moved");
    server.requester.request(Request::Stop);
    server.requester.request(Request::Stop);
    let since = Instant::now();
    assert_eq!(server.end(), ExitReason::Stopped);
    assert!(since.elapsed() < DEADLINE);
}

#[test]
fn an_app_whose_workers_join_starts_none_whatever_is_asked() {
    let server = serve(settings(&[], 0));
    server.requester.request(Request::Restart);
    server.requester.request(Request::More);
    eventually("both to be refused", || (server.log_text().matches("nothing is done").count() == 2).then_some(()));
    assert!(server.snapshot().workers.is_empty() && !server.log_text().contains("rolling restart"));
    server.stop();
}

#[test]
fn a_worker_that_opens_another_door_is_told_which() {
    let script = "import socket,sys,time\ns=socket.socket();s.bind(('127.0.0.1',0));s.listen()\n\
                  print('port',s.getsockname()[1],file=sys.stderr,flush=True);time.sleep(1000)";
    let mut settings = settings(&[python(), "-c", script], 1);
    settings.app.life.ready.timeout = Duration::from_millis(1500);
    let server = serve(settings);
    let log = server.until_logged("did not open the Unix socket");
    let port: String = log.split("port ").nth(1).unwrap().chars().take_while(char::is_ascii_digit).collect();
    assert!(log.contains(&format!("127.0.0.1:{port}")), "{log}");
    assert!(log.contains(server.sockets.to_str().unwrap()) && log.contains("$SOCKET_PATH"), "{log}");
    server.until_logged("not ready in time");
    server.stop();
}

#[test]
fn a_worker_that_refuses_connections_is_looked_at_and_replaced() {
    let script = include_str!("support/deaf_worker.py");
    let mut settings = settings(&[python(), "-c", script], 1);
    settings.app.life.ready.timeout = Duration::from_secs(3);
    let server = serve(settings);
    let worker = server.until_ready(1)[0].clone();
    let lose = |id| {
        let permit = server.permit();
        assert_eq!(permit.worker(), id);
        server.release(permit, Outcome::Unreachable);
    };
    lose(worker.id);
    assert_eq!(server.until_ready(1)[0].id, worker.id, "it was there after all");
    let path = worker.target.address.as_pathname().unwrap();
    UnixStream::connect(path).unwrap().write_all(b"close").unwrap();
    until("it refuses connections", || UnixStream::connect(path).is_err());
    lose(worker.id);
    server.until_logged("socket no longer accepts");
    assert_ne!(server.until_ready(1)[0].id, worker.id);
    server.stop();
}

#[cfg(target_os = "linux")]
#[test]
fn requests_that_wait_while_the_workers_idle_are_told_of() {
    let server = serve(settings(&[], 1));
    server.until_ready(1);
    let permit = server.permit();
    let Acquire::Queued(ticket) = server.acquire() else { panic!("a worker is free") };
    let line = server.until_logged("requests wait for a worker while the workers use");
    assert!(line.contains("-c (it is 1)") && line.contains("-w (there are 1)"), "{line}");
    server.dispatch.cancel(ticket);
    server.release(permit, Outcome::Unused);
    server.stop();
}

#[test]
fn an_upstream_is_found_lost_and_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("up.sock");
    let mut settings = settings(&[], 1);
    settings.app.program.command = config::Command::None;
    settings.app.instead.upstreams = vec![Upstream::Unix(path.clone())];
    let server = serve(settings);
    server.until_logged("does not accept connections");
    let listener = UnixListener::bind(&path).unwrap();
    let id = server.until_ready(1)[0].id;
    drop(listener);
    std::fs::remove_file(&path).unwrap();
    server.release(server.permit(), Outcome::Unreachable);
    assert!(server.ready().is_empty());
    let _listener = UnixListener::bind(&path).unwrap();
    assert_eq!(server.until_ready(1)[0].id, id);
    server.stop();
}

#[test]
fn a_reload_during_the_stop_starts_nothing() {
    let mut settings = settings(&[], 1);
    settings.app.reload.by = config::HotReload::Process;
    let mut server = serve(settings);
    server.until_ready(1);
    server.requester.request(Request::Stop);
    server.until_told("the loops are told", |message| matches!(message, Message::Drain { .. }));
    server.requester.request(Request::Reload);
    let log = server.until_logged("nothing is loaded again");
    assert!(!log.contains("rolling restart"), "{log}");
    assert_eq!(server.status.starts.load(Ordering::Relaxed), 1);
    server.stop();
}

#[test]
fn a_command_that_does_not_exist_starts_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let run = RunDirectory::open(&directory.path().join("run")).unwrap();
    let settings = settings(&["no-such-command-here"], 1);
    let dispatch = dispatch_for(&settings);
    let started =
        Supervisor::start_with(Arc::new(settings), dispatch, Postboxes::new(vec![]), Log::disabled(), run, options());
    let error = started.err().expect("it is refused");
    assert_eq!(error.code(), 64);
    assert!(error.to_string().contains("cannot run `no-such-command-here`: not found in PATH"), "{error}");
}

fn shim(arguments: &[&str], stdin: Stdio) -> Output {
    let parent = std::process::id().to_string();
    let mut command = Command::new(PROGRAM);
    command.args(["_exec", "--parent", &parent]).args(arguments).stdin(stdin);
    command.output().unwrap()
}

#[test]
fn the_shim_says_why_a_command_cannot_run() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = script.to_str().unwrap();
    for (command, code, expected) in [
        ("no-such-command-here", 127, "not found in PATH"),
        ("/no/such/file", 127, "there is no such file"),
        ("/etc/passwd", 126, "permission denied"),
        (script, 126, "interpreter"),
    ] {
        let output = shim(&["--", command], Stdio::null());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(command) && said.contains(expected) && said.lines().count() == 1, "{said}");
    }
    assert_eq!(shim(&[], Stdio::null()).status.code(), Some(64));
    let output = Command::new(PROGRAM).args(["_exec", "--parent", "1", "--", "echo", "ran"]).output().unwrap();
    assert!(output.stdout.is_empty() && !output.status.success(), "whose parent is gone does not start");
}

#[test]
fn the_shim_gives_a_clean_state_and_an_inherited_listener() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
    let script = "test -S /proc/self/fd/3 && test $LISTEN_PID = $$ && echo $LISTEN_FDS $LISTEN_FDNAMES && ulimit -n && \
                  readlink /proc/self/fd/0 && grep -E 'SigIgn|SigBlk' /proc/self/status && \
                  for n in 4 5 6 7 8 9 10 11 12; do test -e /proc/$$/fd/$n && echo open $n; done; echo end";
    let arguments = ["--descriptors", "200:300", "--socket-on-stdin", "--", "sh", "-c", script];
    let output = shim(&arguments, Stdio::from(OwnedFd::from(listener)));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..3], ["1 worker", "200", "/dev/null"], "{said}{}", String::from_utf8_lossy(&output.stderr));
    for line in &lines[3..5] {
        let mask = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
        // Those above 31 are the C library's own and the real-time ones, which a program has no business with here.
        assert_eq!(mask & 0x7fff_ffff, 0, "{said}");
    }
    assert_eq!(lines[5..], ["end"], "nothing but 0 to 3 is open: {said}");
}

#[test]
fn the_guard_ends_whole_groups_when_its_lifeline_ends() {
    let directory = tempfile::tempdir().unwrap();
    let sockets = directory.path().join("sockets");
    std::fs::create_dir(&sockets).unwrap();
    let _listener = UnixListener::bind(sockets.join("web.sock")).unwrap();
    // One that goes at TERM, and one that ignores it with its children, whose leader has left it behind.
    let mut children: Vec<_> = ["sleep 1000 & sleep 1000", "trap '' TERM; sleep 1000 & sleep 1000"]
        .iter()
        .map(|script| {
            let mut command = Command::new("sh");
            command.args(["-c", script]).process_group(0).stdin(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let mut guard = Guard::start(Path::new(PROGRAM), &sockets).unwrap();
    for child in &children {
        guard.add(child.id()).unwrap();
    }
    for signal in ["TERM", "INT", "HUP"] {
        // It may not have got to ignoring them yet: it is asked only once it runs the guard's code.
        eventually("the guard ignores signals", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", guard.id())).unwrap();
            let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?.trim().to_owned();
            (u64::from_str_radix(&ignored, 16).unwrap() & (1 << 14) != 0).then_some(())
        });
        send_signal(guard.id(), signal);
    }
    assert!(!guard.has_ended());
    let since = Instant::now();
    // What the kernel does with the lifeline when the server is killed.
    drop(guard);
    for child in &mut children {
        eventually("the leader ends", || child.try_wait().unwrap());
        until("its group ends", || !Process::all().iter().any(|process| process.group == child.id()));
    }
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    until("the sockets go", || !sockets.exists());
}

#[test]
fn a_guard_that_is_dismissed_or_killed_does_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    let mut guard = Guard::start(Path::new(PROGRAM), directory.path()).unwrap();
    guard.add(child.id()).unwrap();
    let id = guard.id();
    guard.dismiss();
    assert!(!is_alive(id) && child.try_wait().unwrap().is_none() && directory.path().exists());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_guard_that_does_not_read_is_dismissed_without_harm() {
    let directory = tempfile::tempdir().unwrap();
    let mut child = Command::new("sleep").arg("1000").process_group(0).spawn().unwrap();
    let mut guard = Guard::start(Path::new(PROGRAM), directory.path()).unwrap();
    guard.add(child.id()).unwrap();
    let id = guard.id();
    // SAFETY: kill takes plain numbers; the guard is a child of ours that is not reaped.
    unsafe { libc::kill(id as i32, libc::SIGSTOP) };
    while guard.add(child.id()).is_ok() {}
    guard.dismiss();
    assert!(!is_alive(id) && child.try_wait().unwrap().is_none() && directory.path().exists());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_worker_dies_with_the_server_that_was_killed() {
    let script = format!("{PROGRAM} _exec --parent $$ -- sleep 1000 & echo $!; wait");
    let mut command = Command::new("sh");
    let mut server = command.args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(server.stdout.take().unwrap()), &mut line).unwrap();
    let worker: u32 = line.trim().parse().unwrap();
    eventually("the shim has become the command", || {
        let command = std::fs::read(format!("/proc/{worker}/cmdline")).unwrap();
        command.starts_with(b"sleep\0").then_some(())
    });
    let since = Instant::now();
    server.kill().unwrap();
    server.wait().unwrap();
    until("the worker ends", || !is_alive(worker));
    assert!(since.elapsed() < Duration::from_secs(2));
}
