//! Hot reload through the whole server: files change under load, and the new code answers without a failed request.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::module::Folder;
use crate::support::{Client, DEADLINE, PROGRAM, Server, folder, on_every_backend, python, until};

/// What the supervisor rests between two rolls that files cause, and how long a burst of changes may pause.
const REST: Duration = Duration::from_secs(2);
const QUIET: Duration = Duration::from_millis(100);
/// A worker in Python that serves what a file says, and reads it again on HUP.
const READER: &str = "
import http.server, os, signal, socketserver, sys
def load(*_):
    global code
    with open(sys.argv[1]) as file:
        code = file.read().encode()
load()
signal.signal(signal.SIGHUP, load)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = code
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Front(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
Front(os.environ['SOCKET_PATH'], Handler).serve_forever()
";

/// A server, and the run directory that the test chose for it.
struct Front {
    server: Server,
    run: PathBuf,
}

impl Front {
    fn start(backend: &str, run: &Path, flags: &[&str]) -> Front {
        Front::start_as(Command::new(PROGRAM), backend, run, flags)
    }

    fn start_as(command: Command, backend: &str, run: &Path, flags: &[&str]) -> Front {
        let flags = [&["--run-dir", run.to_str().unwrap(), "--max-requests", "0"], flags].concat();
        let front = Front { server: Server::start_as(command, backend, &flags), run: run.to_owned() };
        until("all workers run", || front.app()["workers_ready"] == front.app()["workers_wanted"]);
        front
    }

    fn word(&self, words: &[&str]) -> String {
        let output = Command::new(PROGRAM).args(words).arg("--run-dir").arg(&self.run).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// The app in the status document.
    fn app(&self) -> Value {
        let document: Value = serde_json::from_str(&self.word(&["status", "--json"])).unwrap();
        document["apps"][0].clone()
    }

    /// Waits until the roll of that number has ended so; the app then.
    fn rolled(&self, id: u64, state: &str) -> Value {
        let mut app = Value::Null;
        until(&format!("roll {id} is {state}"), || {
            app = self.app();
            app["roll"]["id"] == id && app["roll"]["state"] == state
        });
        app
    }

    /// A member of each worker, by number.
    fn of_workers(&self, member: &str) -> Vec<Value> {
        let app = self.app();
        app["workers"].as_array().unwrap().iter().map(|worker| worker[member].clone()).collect()
    }

    /// What the lines about changed files name, one for each time.
    fn changes(&self) -> Vec<String> {
        let lines = self.server.lines();
        let events = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let told = events.filter(|event| event["message"] == "files have changed");
        told.map(|event| event["changed"].as_str().unwrap().to_owned()).collect()
    }

    fn body(&self, path: &str) -> String {
        let answer = self.server.client().get(path);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.text()
    }
}

/// Clients that ask on until they are stopped, some over kept connections and one with a connection for each request. Every
/// answer must be whole and 200.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    fn on(server: &Server, path: &'static str) -> Load {
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let address = server.address;
        let thread = |kept: bool| {
            let (stop, answers) = (stop.clone(), answers.clone());
            std::thread::spawn(move || {
                let mut client = Client::to(address);
                while !stop.load(Ordering::SeqCst) {
                    let answer = client.get(path);
                    assert!(answer.status == 200 && answer.whole, "{answer:?}");
                    answers.fetch_add(1, Ordering::SeqCst);
                    if !kept {
                        client = Client::to(address);
                    }
                    // Others use this machine, too.
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        };
        let threads = [true, true, false].map(thread).into();
        let load = Load { stop, answers, threads };
        load.goes_on();
        load
    }

    /// Waits for some more answers.
    fn goes_on(&self) {
        let before = self.answers.load(Ordering::SeqCst);
        until("answers come", || {
            let failed = self.threads.iter().any(JoinHandle::is_finished);
            failed || self.answers.load(Ordering::SeqCst) >= before + 20
        });
    }

    /// Ends it; none may have failed.
    fn end(self) {
        self.goes_on();
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("no request fails");
        }
    }
}

/// An app in a directory of its own: a script that starts the built-in worker, with its version in a variable that `/env` shows.
struct App(tempfile::TempDir);

impl App {
    fn new() -> App {
        let app = App(folder());
        app.write(&app.version(1));
        app
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn version(&self, number: u32) -> String {
        format!("PORT=v{number} exec {PROGRAM} worker\n")
    }

    fn write(&self, text: &str) {
        fs::write(self.path("app.sh"), text).unwrap();
    }

    /// As editors do it: a new file, put in the place of the old one.
    fn rename_over(&self, text: &str) {
        fs::write(self.path("app.sh.next"), text).unwrap();
        fs::rename(self.path("app.sh.next"), self.path("app.sh")).unwrap();
    }

    fn serve(&self, backend: &str, flags: &[&str]) -> Front {
        let script = self.path("app.sh").display().to_string();
        let command = ["-w", "2", "--hot-reload=process", "--", "sh", &script];
        Front::start(backend, &self.path("run"), &[flags, &command].concat())
    }

    fn shown(&self) -> String {
        fs::canonicalize(self.path("app.sh")).unwrap().display().to_string()
    }
}

fn is_version(front: &Front, number: u32) -> bool {
    front.body("/env").contains(&format!("\"PORT\":\"v{number}\""))
}

on_every_backend! {
    a_file_that_is_renamed_over_rolls_once_without_an_error,
    a_module_that_is_overwritten_answers_from_the_same_processes,
}

fn a_file_that_is_renamed_over_rolls_once_without_an_error(backend: &str) {
    let app = App::new();
    let front = app.serve(backend, &[]);
    assert!(is_version(&front, 1));
    let load = Load::on(&front.server, "/env");
    app.rename_over(&app.version(2));
    let status = front.rolled(1, "done");
    assert!(is_version(&front, 2), "old code answers after the roll");
    assert_eq!((&status["generation"], &status["roll"]["replaced"]), (&2.into(), &2.into()));
    // Had the one change caused two rolls, this one would not be the second.
    front.word(&["restart", "--wait"]);
    assert_eq!(front.app()["roll"]["id"], 2);
    load.end();
    assert_eq!(front.changes(), [app.shown()]);
    assert_eq!(front.of_workers("last_exit"), ["deploy", "deploy"]);
}

#[test]
fn a_burst_of_writes_is_one_roll_and_what_is_left_out_is_none() {
    let app = App::new();
    for directory in ["node_modules/left", ".git/objects", "lib"] {
        fs::create_dir_all(app.path(directory)).unwrap();
    }
    let log = app.path("access.txt").display().to_string();
    let front = app.serve("auto", &["--access-log", &log]);
    let load = Load::on(&front.server, "/env");
    until("the access log is written to", || fs::metadata(app.path("access.txt")).is_ok_and(|file| file.len() > 0));
    for name in ["node_modules/left/pad.js", ".git/objects/ab", ".git/HEAD", "run/own", "server.log", "app.sh.swp"] {
        fs::write(app.path(name), "noise").unwrap();
    }
    // Their events come before those of what follows; had they counted, they would be the first change, or be named in it.
    let start = Instant::now();
    for round in 0..50 {
        app.write(&format!("# {round}\n{}", app.version(2)));
        fs::write(app.path("lib/part.sh"), round.to_string()).unwrap();
    }
    // Only a machine that lets this thread wait may cut the burst in two.
    let most = 1 + start.elapsed().as_nanos() / QUIET.as_nanos();
    until("the new code answers", || is_version(&front, 2));
    until("the roll is over", || front.app()["roll"]["state"] == "done");
    let expected = format!("{} and 1 more", app.shown());
    let changes = front.changes();
    assert!(!changes.is_empty() && changes.len() as u128 <= most, "{changes:?} in a burst of {:?}", start.elapsed());
    if most == 1 {
        assert_eq!(changes, [expected]);
        assert_eq!(front.app()["roll"]["id"], 1);
    }
    load.end();
}

#[test]
fn a_broken_file_keeps_the_old_code_and_its_fix_rolls() {
    let app = App::new();
    let front = app.serve("auto", &[]);
    let before = front.of_workers("pid");
    let load = Load::on(&front.server, "/env");
    app.write("echo no such module: express >&2; exit 3\n");
    let status = front.rolled(1, "aborted");
    assert_eq!(status["roll"]["reason"], "exit: code 3", "{status}");
    assert!(status["roll"]["last_stderr"].to_string().contains("no such module: express"), "{status}");
    assert_eq!((front.of_workers("pid"), is_version(&front, 1)), (before, true), "the old workers serve on");
    assert!(front.word(&["status"]).contains("aborted"));
    app.write(&app.version(3));
    front.rolled(2, "done");
    assert!(is_version(&front, 3));
    load.end();
}

#[test]
fn the_word_and_the_signal_do_what_a_change_does() {
    let app = App::new();
    let front = app.serve("auto", &[]);
    let load = Load::on(&front.server, "/env");
    front.word(&["reload"]);
    front.rolled(1, "done");
    front.server.signal("HUP");
    front.rolled(2, "done");
    load.end();
    assert!(front.changes().is_empty());
}

#[test]
fn an_app_that_writes_into_its_own_tree_rolls_with_rests_and_the_file_is_named() {
    let app = App::new();
    let data = app.path("data.txt");
    app.write(&format!("echo $$ > {}; {}", data.display(), app.version(1)));
    // The files are watched before the first worker starts, so that its write is a change.
    let front = app.serve("auto", &[]);
    let load = Load::on(&front.server, "/env");
    until("the first roll", || !front.changes().is_empty());
    let first = Instant::now();
    until("the third roll", || front.changes().len() >= 3);
    assert!(first.elapsed() > REST * 2 - QUIET, "three rolls within {:?}", first.elapsed());
    until("a warning", || front.server.has_said("name what is to be watched with --watch"));
    let warning = front.server.lines().into_iter().find(|line| line.contains("with --watch")).unwrap();
    assert!(warning.contains("data.txt\""), "{warning}");
    load.end();
}

/// A server whose workers answer with that folder's module, by the probe's name.
fn serve_module(backend: &str, folder: &Folder, max_reloads: &str) -> Front {
    let module = folder.path("handler.so").display().to_string();
    let flags = ["-w", "2", "--hot-reload", "module", "--module", &module, "--max-reloads", max_reloads];
    Front::start(backend, &folder.path("run"), &flags)
}

/// What each worker answers, asked at its own socket.
fn of_each(front: &Front) -> Vec<String> {
    let ask = |socket: &Value| {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(socket.as_str().unwrap()).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer.rsplit("\r\n\r\n").next().unwrap().to_owned())
    };
    front.of_workers("socket").iter().map(|socket| ask(socket).unwrap_or_default()).collect()
}

fn a_module_that_is_overwritten_answers_from_the_same_processes(backend: &str) {
    let folder = Folder::new();
    let versions = ["v1", "v2", "v3"].map(|name| folder.probe(name, &[]));
    folder.replace(&versions[0]);
    let front = serve_module(backend, &folder, "2");
    let pids = front.of_workers("pid");
    assert_eq!((of_each(&front), front.of_workers("reloads")), (vec!["v1".into(); 2], vec![0.into(), 0.into()]));
    let load = Load::on(&front.server, "/");

    folder.overwrite(&versions[1]);
    until("both workers were told", || front.of_workers("reloads") == [1, 1]);
    until("every worker answers with the new module", || of_each(&front) == ["v2", "v2"]);
    assert_eq!(front.of_workers("pid"), pids, "a reload is no restart");

    folder.overwrite(&versions[2]);
    until("both workers are replaced", || {
        front.of_workers("last_exit") == ["recycle: 2 reloads", "recycle: 2 reloads"]
    });
    until("the new ones have the module", || of_each(&front) == ["v3", "v3"]);
    assert!(front.of_workers("pid").iter().all(|pid| !pids.contains(pid)));
    assert_eq!(front.of_workers("reloads"), [0, 0]);
    load.end();
    assert_eq!(front.app()["roll"], Value::Null, "a reload is no roll");
}

#[test]
fn a_broken_module_keeps_the_old_one_and_is_in_the_log() {
    let folder = Folder::new();
    folder.replace(&folder.probe("v1", &[]));
    let front = serve_module("auto", &folder, "0");
    let pids = front.of_workers("pid");
    let load = Load::on(&front.server, "/");
    folder.overwrite(&folder.probe("broken", &["-DSTART_FAILS"]));
    until("both workers say what is wrong", || {
        let lines = front.server.lines();
        let said = |line: &&String| line.contains("cannot load") && line.contains("ps_start returned 3");
        lines.iter().filter(said).count() == 2
    });
    assert_eq!((of_each(&front), front.of_workers("pid")), (vec!["v1".into(); 2], pids.clone()));
    folder.overwrite(&folder.probe("v2", &[]));
    until("the repaired module answers", || of_each(&front) == ["v2", "v2"]);
    assert_eq!(front.of_workers("pid"), pids);
    load.end();
}

#[test]
fn a_command_is_sent_its_signal_for_a_change_the_word_and_the_signal_alike() {
    let folder = folder();
    let code = folder.path().join("code.txt");
    fs::write(&code, "one").unwrap();
    let path = code.display().to_string();
    let flags = ["-w", "2", "--hot-reload=module", "--watch", &path, "--", python(), "-c", READER, &path];
    let front = Front::start("auto", &folder.path().join("run"), &flags);
    let pids = front.of_workers("pid");
    let load = Load::on(&front.server, "/");
    assert_eq!(of_each(&front), ["one", "one"]);
    fs::write(&code, "two").unwrap();
    until("a change is told", || front.of_workers("reloads") == [1, 1]);
    until("both have loaded it", || of_each(&front) == ["two", "two"]);
    assert!(front.word(&["reload"]).contains("2 workers were sent SIGHUP"));
    assert_eq!(front.of_workers("reloads"), [2, 2]);
    front.server.signal("HUP");
    until("the signal is passed on", || front.of_workers("reloads") == [3, 3]);
    assert_eq!(front.of_workers("pid"), pids);
    load.end();
}

#[test]
fn the_variables_turn_it_on_and_bound_it() {
    let app = App::new();
    let mut command = Command::new(PROGRAM);
    command.env("RIP_HOT_RELOAD", "module").env("RIP_MAX_RELOADS", "1");
    let script = app.path("app.sh").display().to_string();
    // The built-in worker takes HUP as a word to look at its module, of which it has none here.
    let front = Front::start_as(command, "auto", &app.path("run"), &["-w", "1", "--", "sh", &script]);
    front.server.says("hot reload: watching");
    let before = front.of_workers("pid");
    app.write(&app.version(2));
    until("the worker is replaced", || front.of_workers("last_exit") == ["recycle: 1 reloads"]);
    until("its successor is alone", || front.of_workers("pid").len() == 1);
    assert_ne!(front.of_workers("pid"), before);
    assert!(is_version(&front, 2));
}
