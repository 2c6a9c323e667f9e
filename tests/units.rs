//! Several apps behind one supervisor, each with built-in workers or what looks like some: what becomes of one leaves the others alone,
//! and apps come, change and go while the server runs. The test plays the loops' part by hand.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use production_server::buffers::slots::Key;
use production_server::config::{self, Settings};
use production_server::control::SOCKET_NAME;
use production_server::dispatch::{
    Acquire, AppId, Ask, Dispatch, Outcome, Permit, Standing, Waiter, WorkerId, WorkerSnapshot,
};
use production_server::log::{Captured, Log};
use production_server::mailbox::{Mailbox, Message, Postboxes, mailbox};
use production_server::metrics::Metrics;
use production_server::supervisor::reload::Reloaded;
use production_server::supervisor::run_directory::RunDirectory;
use production_server::supervisor::signals::{Request, Requester};
use production_server::supervisor::unit::{policy, table_size};
use production_server::supervisor::{About, AppSetup, ExitReason, Hooks, Options, Supervisor};
use serde_json::Value;

use crate::support::{DEADLINE, Process, python, send_signal, until};

const WEB: AppId = AppId(0);
const API: AppId = AppId(1);

/// What the supervisor's thread is to do in its next turn.
type Order = Box<dyn FnOnce(&mut Supervisor) -> String + Send>;

struct Server {
    _directory: tempfile::TempDir,
    run: PathBuf,
    requester: Requester,
    orders: Arc<Mutex<Vec<Order>>>,
    done: mpsc::Receiver<String>,
    mail: Mailbox<Message>,
    loops_done: Arc<AtomicBool>,
    captured: Captured,
    log: Log,
    thread: JoinHandle<ExitReason>,
}

fn app(name: &str, workers: usize) -> config::App {
    let mut app = Settings::for_test().app;
    app.name = name.to_owned();
    app.workers = workers;
    app.program.command = config::Command::BuiltIn;
    app.life.restart.base = std::time::Duration::from_millis(1);
    app.life.ready.timeout = DEADLINE;
    app
}

fn dispatch(app: &config::App) -> Arc<Dispatch> {
    Arc::new(Dispatch::new(policy(app), table_size(app), Instant::now()))
}

fn serve(apps: Vec<(AppId, config::App, Arc<Dispatch>)>) -> Server {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run");
    let run = RunDirectory::open(&path).unwrap();
    let run_path = run.path().to_path_buf();
    let (postbox, mail) = mailbox(|| {});
    let (log, captured) = Log::captured().unwrap();
    let loops_done = Arc::new(AtomicBool::new(false));
    let orders: Arc<Mutex<Vec<Order>>> = Arc::default();
    let (send, receive) = mpsc::channel();
    let (said, done) = mpsc::channel();
    let (theirs, their_orders, their_log) = (Arc::clone(&loops_done), Arc::clone(&orders), log.clone());
    let thread = std::thread::spawn(move || {
        let about = About {
            backend: "epoll",
            metrics: Metrics::new(1),
            desk: Default::default(),
            started: Instant::now(),
            tls: Default::default(),
        };
        let options = Options { about: Some(about), ..crate::supervision::options() };
        let set_up = |(id, app, dispatch)| AppSetup { id, settings: Arc::new(app), dispatch };
        let apps = apps.into_iter().map(set_up).collect();
        let boxes = Postboxes::new(vec![postbox]);
        let settings = Arc::new(Settings::for_test());
        let supervisor = Supervisor::start_apps(settings, apps, boxes, their_log, run, options).unwrap();
        send.send(supervisor.requester().unwrap()).unwrap();
        supervisor.run(Hooks {
            loops_done: Box::new(|| theirs.load(Ordering::SeqCst)),
            every: None,
            reload: Some(Box::new(|supervisor, _| {
                for order in std::mem::take(&mut *their_orders.lock().unwrap()) {
                    said.send(order(supervisor)).unwrap();
                }
                Ok(Reloaded::default())
            })),
        })
    });
    let requester = receive.recv_timeout(DEADLINE).expect("the supervisor starts");
    Server { _directory: directory, run: run_path, requester, orders, done, mail, loops_done, captured, log, thread }
}

impl Server {
    /// Has the supervisor's thread do something; what it says of it.
    fn order(&self, order: impl FnOnce(&mut Supervisor) -> String + Send + 'static) -> String {
        self.orders.lock().unwrap().push(Box::new(order));
        self.requester.request(Request::Reload);
        self.done.recv_timeout(DEADLINE).expect("the order is carried out")
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        ask(&self.run, method, path, body)
    }

    fn status_of(&self, name: &str) -> Value {
        let (_, document) = self.ask("GET", "/status", "");
        document["apps"].as_array().unwrap().iter().find(|app| app["name"] == name).cloned().unwrap_or(Value::Null)
    }

    fn until_logged(&self, text: &str) -> String {
        let mut log = String::new();
        until(text, || {
            self.log.flush(DEADLINE);
            log = self.captured.text();
            log.contains(text)
        });
        log
    }

    /// The mail since the last call.
    fn mail(&self) -> Vec<Message> {
        let mut mail = Vec::new();
        self.mail.take(&mut mail);
        mail
    }

    fn stop(self) -> ExitReason {
        self.loops_done.store(true, Ordering::SeqCst);
        self.requester.request(Request::Stop);
        self.thread.join().unwrap()
    }
}

/// One request to the control socket in that run directory: the status and the document.
fn ask(run: &Path, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(run.join(SOCKET_NAME)).unwrap();
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all((head + body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap_or(Value::Null))
}

fn ready(dispatch: &Dispatch) -> Vec<WorkerSnapshot> {
    dispatch.snapshot().workers.into_iter().filter(|worker| worker.standing == Standing::Ready).collect()
}

fn until_ready(dispatch: &Dispatch, count: usize) -> Vec<WorkerId> {
    until("workers get ready", || ready(dispatch).len() == count);
    let mut ids: Vec<WorkerId> = ready(dispatch).iter().map(|worker| worker.id).collect();
    ids.sort_by_key(|id| (id.index, id.generation));
    ids
}

fn acquire(dispatch: &Dispatch, exchange: u32) -> Acquire {
    let waiter = Waiter { loop_index: 0, exchange: Key { index: exchange, generation: 1 } };
    let now = Instant::now();
    dispatch.acquire(waiter, Ask { since: now, exclude: None, front: false, tunnel: false, turn: 0 }, now)
}

fn permit(dispatch: &Dispatch) -> Permit {
    match acquire(dispatch, 0) {
        Acquire::Granted(permit) => permit,
        other => panic!("no worker is free: {other:?}"),
    }
}

/// One whole request, as a loop does it.
fn request(dispatch: &Dispatch, path: &str) -> String {
    let permit = permit(dispatch);
    let target = dispatch.target(permit.worker()).unwrap();
    let answer = get(target.address.as_pathname().unwrap(), path);
    assert!(dispatch.release(permit, Outcome::Answered, Instant::now(), 0).is_none());
    answer
}

fn get(socket: &Path, path: &str) -> String {
    let mut stream = UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The processes of those that are ready, and answer.
fn pids(dispatch: &Dispatch) -> Vec<u32> {
    let pid = |worker: &WorkerSnapshot| {
        let mut stream = UnixStream::connect(worker.target.address.as_pathname()?).ok()?;
        stream.write_all(b"GET /env HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let document: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()?;
        Some(document["pid"].as_u64()? as u32)
    };
    ready(dispatch).iter().filter_map(pid).collect()
}

#[test]
fn what_becomes_of_one_app_leaves_the_other_alone() {
    let (one, other) = (app("web", 1), app("api", 2));
    let (web, api) = (dispatch(&one), dispatch(&other));
    let server = serve(vec![(WEB, one, web.clone()), (API, other, api.clone())]);
    let (_, before) = (until_ready(&web, 1), until_ready(&api, 2));
    let names =
        |dispatch: &Dispatch| ready(dispatch).iter().map(|worker| worker.target.label.clone()).collect::<Vec<_>>();
    assert!(names(&web).iter().all(|name| name.starts_with("web.G1.")), "{:?}", names(&web));
    assert!(names(&api).iter().all(|name| name.starts_with("api.G1.")), "{:?}", names(&api));
    let socket = ready(&api)[0].target.address.as_pathname().unwrap().to_path_buf();
    assert!(socket.file_name().unwrap().to_str().unwrap().starts_with("api.G1."), "{socket:?}");

    // Scaled.
    let (status, refused) = server.ask("POST", "/scale", r#"{"workers":3}"#);
    assert_eq!(status, 400, "{refused}");
    assert!(refused["error"].as_str().unwrap_or_default().contains("web, api"), "{refused}");
    assert_eq!(server.ask("POST", "/scale", r#"{"app":"web","workers":3}"#).0, 200);
    until_ready(&web, 3);
    let (status, unknown) = server.ask("POST", "/scale", r#"{"app":"shop","workers":3}"#);
    assert_eq!(status, 404);
    assert!(unknown["error"].as_str().unwrap_or_default().contains("web or api"), "{unknown}");

    // Rolled, and waited for: a ticket is of its app's roll.
    let run = server.run.clone();
    let answered = std::thread::scope(|scope| {
        let asked = scope.spawn(move || ask(&run, "POST", "/restart", r#"{"app":"web","wait":true}"#));
        while !asked.is_finished() {
            request(&web, "/ping");
        }
        asked.join().unwrap()
    });
    assert_eq!((answered.0, &answered.1["roll"]), (200, &Value::from(1)), "{answered:?}");
    assert!(names(&web).iter().all(|name| name.starts_with("web.G2.")), "{:?}", names(&web));
    assert_eq!(until_ready(&api, 2), before, "the other app's workers are the same");
    assert_eq!(
        (server.status_of("web")["generation"].as_u64(), server.status_of("api")["generation"].as_u64()),
        (Some(2), Some(1))
    );

    // All at once.
    let (status, both) = server.ask("POST", "/restart", "");
    assert_eq!((status, &both["rolls"]), (200, &serde_json::json!({"web": 2, "api": 1})), "{both}");
    until("both are rolled", || {
        for dispatch in [&web, &api] {
            request(dispatch, "/ping");
        }
        names(&web).iter().all(|name| name.starts_with("web.G3."))
            && names(&api).iter().all(|name| name.starts_with("api.G2."))
    });

    // Killed.
    let (victim, others) = (pids(&web)[0], pids(&api));
    send_signal(victim, "KILL");
    until("the dead one is replaced", || pids(&web).len() == 3 && !pids(&web).contains(&victim));
    assert_eq!(pids(&api), others);
    assert_eq!(server.stop(), ExitReason::Stopped);
    assert!(others.into_iter().all(|pid| Process::of(pid).is_none()), "a worker is left");
}

#[test]
fn an_app_that_crashes_fails_alone_and_one_that_is_to_end_the_server_does() {
    let (one, mut other) = (app("web", 1), app("api", 1));
    other.program.command =
        config::Command::Argv(["sh", "-c", "echo no database >&2; exit 3"].map(Into::into).to_vec());
    other.life.restart.max = DEADLINE;
    let (web, api) = (dispatch(&one), dispatch(&other));
    let server = serve(vec![(WEB, one, web.clone()), (API, other, api.clone())]);
    let queued = acquire(&api, 5);
    assert!(matches!(queued, Acquire::Queued(_)), "{queued:?}");
    let before = until_ready(&web, 1);
    let log = server.until_logged("the app has failed");
    assert!(log.contains("no database") && log.contains("app=api"), "{log}");
    until("who waits is told", || {
        server.mail().iter().any(|message| matches!(message, Message::AppFailed(key) if key.index == 5))
    });
    assert!(api.has_failed() && !web.has_failed());
    assert!(request(&web, "/ping").ends_with("pong"));
    assert_eq!(until_ready(&web, 1), before);
    let (_, document) = server.ask("GET", "/status", "");
    assert_eq!((&document["state"], &document["apps"][0]["state"]), (&Value::from("failed"), &Value::from("running")));
    assert_eq!(document["apps"][1]["state"], "failed");
    // It was never ready; the server ends for it only once that is asked for.
    let mut gives_up = app("api", 1);
    gives_up.program.command =
        config::Command::Argv(["sh", "-c", "echo no database >&2; exit 3"].map(Into::into).to_vec());
    gives_up.life.restart.give_up_exit = true;
    gives_up.life.restart.max = DEADLINE;
    let said = server.order(move |supervisor| {
        format!("{:?}", supervisor.change(API, Arc::new(gives_up), Instant::now()).map_err(|error| error.to_string()))
    });
    assert_eq!(said, "Ok(None)", "nothing is rolled");
    server.until_logged("the server ends (--give-up-exit)");
    server.loops_done.store(true, Ordering::SeqCst);
    assert_eq!(server.thread.join().unwrap(), ExitReason::GaveUp);
}

#[test]
fn an_app_comes_and_goes_while_the_server_runs() {
    let one = app("web", 1);
    let web = dispatch(&one);
    let server = serve(vec![(WEB, one, web.clone())]);
    let before = until_ready(&web, 1);
    let other = app("api", 2);
    let api = dispatch(&other);
    let setup = AppSetup { id: API, settings: Arc::new(other), dispatch: api.clone() };
    let said = server.order(move |supervisor| format!("{:?}", supervisor.add(setup, Instant::now()).is_ok()));
    assert_eq!(said, "true");
    until_ready(&api, 2);
    let held = permit(&api);
    let workers = pids(&api);

    server.order(|supervisor| {
        supervisor.remove(API, Instant::now());
        "told".to_owned()
    });
    server.until_logged("the app is removed");
    assert_eq!(server.ask("POST", "/restart", r#"{"app":"api"}"#).0, 404, "it is nobody's to be asked for");
    assert_eq!(server.status_of("api")["state"], "stopping");
    assert_eq!(ready(&api).len(), 2, "its requests may finish");
    let answer = get(api.target(held.worker()).unwrap().address.as_pathname().unwrap(), "/ping");
    assert!(answer.ends_with("pong"), "{answer}");
    assert!(api.release(held, Outcome::Answered, Instant::now(), 0).is_none());
    drop(api);
    server.until_logged("the app is gone");
    assert!(workers.into_iter().all(|pid| Process::of(pid).is_none()), "a worker of it is left");
    assert_eq!(server.status_of("api"), Value::Null);
    assert_eq!(until_ready(&web, 1), before);
    assert!(request(&web, "/ping").ends_with("pong"));
    server.stop();
}

#[test]
fn an_app_takes_new_settings_over() {
    let mut settings = app("web", 2);
    settings.queue.size = 1;
    let web = dispatch(&settings);
    let server = serve(vec![(WEB, settings.clone(), web.clone())]);
    let before = until_ready(&web, 2);
    let change = |settings: &config::App| {
        let settings = Arc::new(settings.clone());
        server.order(move |supervisor| {
            let changed = supervisor.change(WEB, settings, Instant::now());
            changed.map_or_else(|error| error.to_string(), |roll| format!("{roll:?}"))
        })
    };
    // Live: nobody is replaced.
    settings.queue.size = 3;
    settings.life.restart.crashes = 7;
    settings.sharing.balance = config::Balance::RoundRobin;
    assert_eq!(change(&settings), "None");
    let held = [permit(&web), permit(&web)];
    assert!((10..13).all(|exchange| matches!(acquire(&web, exchange), Acquire::Queued(_))));
    assert!(matches!(acquire(&web, 13), Acquire::Full));
    let (_, document) = server.ask("GET", "/status", "");
    assert_eq!(document["apps"][0]["queue"]["size"], 3);
    for permit in held {
        let now = Instant::now();
        let mut grant = web.release(permit, Outcome::Answered, now, 0);
        while let Some(next) = grant {
            grant = web.release(next.permit, Outcome::Answered, now, 0);
        }
    }
    assert_eq!(until_ready(&web, 2), before);
    settings.workers = 3;
    assert_eq!(change(&settings), "None");
    until_ready(&web, 3);

    // By a roll: more requests at once, of the new workers.
    settings.sharing.concurrency = 2;
    assert_eq!(change(&settings), "Some(1)");
    until("all are new", || {
        request(&web, "/ping");
        let ready = ready(&web);
        ready.len() == 3 && ready.iter().all(|worker| worker.app_generation == 2)
    });
    let held: Vec<Permit> = (0..6).map(|_| permit(&web)).collect();
    assert!(matches!(acquire(&web, 20), Acquire::Queued(ticket) if web.cancel(ticket)));
    held.into_iter().for_each(|permit| {
        web.release(permit, Outcome::Answered, Instant::now(), 0);
    });
    assert!(request(&web, "/env").contains("\"WORKER_CONCURRENCY\":\"2\""));

    // One that cannot be is refused and changes nothing; one that does not come up is aborted, and who dies comes back as it was.
    let mut broken = settings.clone();
    broken.program.command = config::Command::Argv(vec!["no-such-command-here".into()]);
    assert!(change(&broken).contains("cannot run `no-such-command-here`"));
    let mut other = settings.clone();
    other.name = "shop".to_owned();
    assert!(change(&other).contains("would be another one"));
    broken.program.command =
        config::Command::Argv([python(), "-c", "import sys; sys.exit('broken deploy')"].map(Into::into).to_vec());
    assert_eq!(change(&broken), "Some(2)");
    server.until_logged("rolling restart aborted");
    let victim = pids(&web)[0];
    send_signal(victim, "KILL");
    until("it comes back as it was", || pids(&web).len() == 3 && !pids(&web).contains(&victim));
    assert!(request(&web, "/ping").ends_with("pong"));
    server.stop();
}

/// Reads orders from a FIFO: a word that it says, or the code that it ends with.
const SPEAKER: &str = r#"
import os, socket, sys
note = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
note.connect(os.environ["NOTIFY_SOCKET"])
# Both ends: it never sees the end of a writer, and misses nothing between two.
orders = os.fdopen(os.open(sys.argv[1], os.O_RDWR), "r")
for order in iter(orders.readline, ""):
    if order.startswith("exit "):
        os.write(2, b"its last line")
        os._exit(int(order[5:]))
    note.send(order.strip().encode())
"#;

/// Gives an order to [`SPEAKER`], once there is one that takes it.
fn say(orders: &Path, text: &str) {
    let mut open = std::fs::OpenOptions::new();
    open.write(true).custom_flags(libc::O_NONBLOCK);
    let mut fifo = None;
    until("there is a worker that takes orders", || {
        fifo = open.open(orders).ok();
        fifo.is_some()
    });
    fifo.unwrap().write_all(format!("{text}\n").as_bytes()).unwrap();
}

/// Waits for the end of a child, which is left as it is, and until the word of it has come.
fn until_ended(child: u32) {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: the structure is zeroed, which is a valid value of it, and waitid fills it in; raise takes a plain number, and the signal
    // has a handler, or means nothing.
    unsafe {
        assert_eq!(libc::waitid(libc::P_PID, child as libc::id_t, info.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT), 0);
        assert_eq!(libc::raise(libc::SIGCHLD), 0);
    }
}

#[test]
fn what_a_worker_has_said_before_its_end_counts_though_its_end_is_seen_first() {
    let folder = tempfile::tempdir().unwrap();
    let orders = folder.path().join("orders");
    assert!(std::process::Command::new("mkfifo").arg(&orders).status().unwrap().success());
    let mut one = app("web", 1);
    one.program.command =
        config::Command::Argv([python(), "-c", SPEAKER, orders.to_str().unwrap()].map(Into::into).to_vec());
    (one.life.ready.by, one.life.watchdog) = (config::ReadyBy::Notify, Some(DEADLINE));
    // Where it listens is known: its word alone counts.
    one.program.socket = config::WorkerSocket::Inherit;
    let web = dispatch(&one);
    let server = serve(vec![(WEB, one, web.clone())]);
    let mut seen = Vec::new();
    let mut next = || {
        let mut pid = None;
        until("there is another worker", || {
            let workers = server.status_of("web")["workers"].as_array().cloned().unwrap_or_default();
            let pids = workers.iter().filter_map(|worker| worker["pid"].as_u64());
            pid = pids.map(|pid| pid as u32).find(|pid| !seen.contains(pid));
            pid.is_some()
        });
        seen.extend(pid);
        pid.unwrap()
    };
    // It speaks and ends while the supervisor does not get its turn, and in the next one both are there at once.
    let ends = |child: u32, text: &'static str| {
        let orders = orders.clone();
        server.order(move |_| {
            say(&orders, text);
            until_ended(child);
            String::new()
        });
        let ended = format!("pid={child} reason=");
        let log = server.until_logged(&ended);
        log.lines().find(|line| line.contains(&ended)).unwrap().to_owned()
    };

    // One that has served.
    let child = next();
    say(&orders, "READY=1");
    until_ready(&web, 1);
    let served = permit(&web);
    assert!(web.release(served, Outcome::Answered, Instant::now(), 0).is_none());
    let end = ends(child, "STOPPING=1\nexit 0");
    assert!(end.contains("stops by itself"), "{end}");

    // One that has not: it was ready, and that is no crash.
    let end = ends(next(), "READY=1\nSTOPPING=1\nexit 0");
    assert!(end.contains("ended by itself: code 0"), "{end}");
    let end = ends(next(), "READY=1\nWATCHDOG=trigger\nexit 0");
    assert!(end.contains("watchdog: silent"), "{end}");

    // One whose first answer is known only after it has said that it stops.
    let child = next();
    say(&orders, "READY=1");
    until_ready(&web, 1);
    let held = permit(&web);
    say(&orders, "STOPPING=1");
    let stands = || web.snapshot().workers.iter().any(|worker| worker.standing == Standing::Draining);
    until("it is drained", stands);
    assert!(web.release(held, Outcome::Answered, Instant::now(), 0).is_none());
    let log = server.until_logged(&format!("pid={child} reason="));
    assert_eq!(log.matches("stops by itself").count(), 2, "{log}");

    // What it writes and says of a failure.
    let end = ends(next(), "STATUS=no database\nexit 3");
    let told = ["exit: code 3", "its last line", "no database"];
    assert!(told.iter().all(|text| end.contains(text)), "{end}");
    server.stop();
}
