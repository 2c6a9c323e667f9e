//! The whole server behind its control socket: what the words do to workers and requests.

use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, Output, Stdio};

use serde_json::{Value, json};

use super::rig::{Client, eventually, request};
use production_server::control::SOCKET_NAME;

/// A server with workers of its own, on a Unix socket.
struct Server {
    directory: tempfile::TempDir,
    child: Child,
}

impl Server {
    fn start(flags: &[&str], command: &[&str]) -> Server {
        let directory = tempfile::tempdir().unwrap();
        let listen = format!("unix:{}", directory.path().join("front").display());
        let mut process = Process::new(env!("CARGO_BIN_EXE_production_server"));
        process
            .args(["--listen", &listen, "--loops", "1", "--stats-interval", "0s", "--no-access-log", "--pin", "off"])
            .arg("--run-dir")
            .arg(directory.path().join("run"))
            .args(flags)
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if !command.is_empty() {
            process.arg("--").args(command);
        }
        let server = Server { child: process.spawn().unwrap(), directory };
        eventually("the server to run", || server.status().filter(|status| status["state"] == "running"));
        server
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("run").join(SOCKET_NAME)
    }

    fn word(&self, arguments: &[&str]) -> (Option<i32>, String) {
        let run = self.directory.path().join("run");
        let mut process = Process::new(env!("CARGO_BIN_EXE_production_server"));
        let Output { status, stdout, stderr } =
            process.args(arguments).arg("--run-dir").arg(run).env_clear().output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap())
    }

    fn status(&self) -> Option<Value> {
        let (code, document) = self.word(&["status", "--json"]);
        (code == Some(0)).then(|| serde_json::from_str(&document).unwrap())
    }

    fn app(&self) -> Value {
        self.status().unwrap()["apps"][0].clone()
    }

    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        eventually(what, || Some(self.app()).filter(&holds))
    }

    fn ask(&self, path: &str, body: &str) -> (u16, Value) {
        let mut client = Client::new(&self.socket());
        client.send(&request("POST", path, body));
        client.answer()
    }

    /// A connection for requests.
    fn front(&self) -> Client {
        Client::new(&self.directory.path().join("front"))
    }

    fn get(&self, path: &str) -> String {
        let mut client = self.front();
        client.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        client.rest()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Gone already where the test has stopped it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn running(app: &Value) -> usize {
    let workers = app["workers"].as_array().unwrap();
    workers.iter().filter(|worker| worker["state"] == "running" && worker["joined"] == false).count()
}

#[test]
fn workers_are_replaced_scaled_signalled_and_stopped() {
    let mut server = Server::start(&["-w", "2"], &[]);
    let app = server.until("both workers", |app| running(app) == 2);
    assert_eq!((&app["name"], &app["generation"], &app["roll"]), (&json!("web"), &json!(1), &Value::Null));
    assert!(server.get("/ping").ends_with("pong"));

    let (code, said) = server.word(&["restart", "web", "--wait"]);
    assert_eq!(code, Some(0), "{said}");
    let app = server.until("the old ones to be gone", |app| app["workers"].as_array().unwrap().len() == 2);
    assert_eq!((&app["generation"], &app["roll"]["state"], running(&app)), (&json!(2), &json!("done"), 2));
    for worker in app["workers"].as_array().unwrap() {
        assert_eq!((&worker["generation"], &worker["last_exit"]), (&json!(2), &json!("deploy")));
    }

    assert_eq!(server.word(&["scale", "+1"]).0, Some(0));
    let app = server.until("a third worker", |app| running(app) == 3);
    let second = app["workers"].as_array().unwrap().iter().find(|worker| worker["id"] == 2).unwrap()["pid"].clone();
    assert_eq!(server.word(&["signal", "web:2", "KILL"]).0, Some(0));
    let app = server.until("the killed one's successor", |app| {
        let successor = app["workers"].as_array().unwrap().iter().find(|worker| worker["id"] == 2);
        running(app) == 3 && successor.is_some_and(|worker| worker["pid"] != second)
    });
    let successor = app["workers"].as_array().unwrap().iter().find(|worker| worker["id"] == 2).unwrap();
    assert_eq!(successor["last_exit"], "crash: signal 9");
    assert_eq!(server.word(&["scale", "1"]).0, Some(0));
    server.until("one worker", |app| running(app) == 1 && app["workers"].as_array().unwrap().len() == 1);
    for (arguments, code) in [(&["restart", "api"][..], 64), (&["signal", "web:99", "HUP"], 64)] {
        assert_eq!(server.word(arguments).0, Some(code), "{arguments:?}");
    }
    assert!(server.get("/ping").ends_with("pong"));

    let process = server.status().unwrap()["pid"].as_u64().unwrap();
    assert_eq!(process, u64::from(server.child.id()));
    assert_eq!(server.word(&["stop"]).0, Some(0));
    assert_eq!(server.child.try_wait().unwrap().map(|status| status.code()), Some(Some(0)), "stop came back too early");
    assert!(!server.directory.path().join("run").exists());
    assert_eq!(server.word(&["status"]).0, Some(3));
}

#[test]
fn what_happens_is_counted_and_told() {
    let server = Server::start(&["-w", "1"], &[]);
    let mut events = Client::new(&server.socket());
    events.send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(events.head().starts_with("HTTP/1.1 200 "));
    for _ in 0..20 {
        assert!(server.get("/ping").ends_with("pong"));
    }
    let app = server.app();
    assert_eq!((&app["requests"]["total"], &app["latency_ms"]["count"]), (&json!(20), &json!(20)));
    assert_eq!(app["workers"][0]["requests"], 20);
    let times = ["p50", "p90", "p99", "max"].map(|name| app["latency_ms"][name].as_f64().unwrap());
    assert!(times.is_sorted() && times[0] > 0.0 && times[3] < 20_000.0, "{times:?}");
    assert_eq!(server.word(&["restart", "--wait"]).0, Some(0));
    let mut seen = Vec::new();
    while !seen.iter().any(|event| event == "worker-exit") {
        seen.push(events.event().unwrap()["event"].as_str().unwrap().to_owned());
    }
    let at =
        |name: &str| seen.iter().position(|event| event == name).unwrap_or_else(|| panic!("no {name} in {seen:?}"));
    assert!(at("roll-start") < at("worker-spawn") && at("worker-spawn") < at("worker-ready"), "{seen:?}");
    assert!(at("worker-ready") < at("worker-exit"), "{seen:?}");
}

#[test]
fn a_broken_deploy_is_told_to_who_waits_and_stays_in_the_status() {
    let directory = tempfile::tempdir().unwrap();
    let flag = directory.path().join("broken");
    let worker = format!(
        "if [ -e {} ]; then echo no such module >&2; exit 3; fi; exec {} worker",
        flag.display(),
        env!("CARGO_BIN_EXE_production_server")
    );
    let server = Server::start(&["-w", "2"], &["sh", "-c", &worker]);
    server.until("both workers", |app| running(app) == 2);
    std::fs::write(&flag, "").unwrap();
    let (code, said) = server.word(&["restart", "--wait"]);
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("no such module"), "{said}");
    let app = server.app();
    assert_eq!((&app["roll"]["state"], running(&app)), (&json!("aborted"), 2));
    assert!(app["roll"]["last_stderr"].to_string().contains("no such module"), "{app}");
    let (_, table) = server.word(&["status"]);
    assert!(table.contains("aborted") && table.contains("  stderr | no such module"), "{table}");
    assert!(server.get("/ping").ends_with("pong"));
    std::fs::remove_file(&flag).unwrap();
    assert_eq!(server.word(&["restart", "--wait"]).0, Some(0));
}

#[test]
fn requests_are_held_by_a_pause_and_go_on_after_it() {
    let server = Server::start(&["-w", "2"], &[]);
    assert_eq!(server.word(&["pause", "--max", "1h"]).0, Some(0));
    let mut held: Vec<Client> = (0..5).map(|_| server.front()).collect();
    for client in &mut held {
        client.send("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    let app = server.until("all to be held", |app| app["queue"]["depth"] == 5);
    assert_eq!((&app["paused"], &app["state"]), (&json!(true), &json!("paused")));
    assert_eq!(server.word(&["resume"]).0, Some(0));
    for client in &mut held {
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 200 ") && client.body(&head) == "pong", "{head}");
    }
    server.until("the pause to be over", |app| app["paused"] == false && app["queue"]["depth"] == 0);
    // A pause ends by itself, too.
    assert_eq!(server.word(&["pause", "--max", "100ms"]).0, Some(0));
    assert!(server.get("/ping").ends_with("pong"));
}

#[test]
fn a_pause_that_is_ended_twice_at_once_lets_all_go() {
    let server = Server::start(&["-w", "1"], &[]);
    assert_eq!(server.word(&["pause", "--max", "1h"]).0, Some(0));
    let mut held: Vec<Client> = (0..5).map(|_| server.front()).collect();
    for client in &mut held {
        client.send("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    server.until("all to be held", |app| app["queue"]["depth"] == 5);
    let mut operator = Client::new(&server.socket());
    operator.send(&request("POST", "/resume", "").repeat(2));
    assert_eq!((operator.answer().1["held"].clone(), operator.answer().1["held"].clone()), (json!(5), json!(0)));
    for client in &mut held {
        let head = client.head();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
}

/// A worker that this server did not start: the built-in one, started by the test.
fn stranger(socket: &Path) -> Child {
    let mut process = Process::new(env!("CARGO_BIN_EXE_production_server"));
    let child = process.arg("worker").env_clear().env("SOCKET_PATH", socket).spawn().unwrap();
    eventually("the stranger to listen", || std::os::unix::net::UnixStream::connect(socket).ok());
    child
}

#[test]
fn strangers_join_quit_and_are_dropped_when_they_are_gone() {
    let server = Server::start(&["-w", "1"], &[]);
    let place = |name: &str| server.directory.path().join(name);
    let join = |id: &str, socket: &Path, version: &str| {
        let body = json!({"op": "join", "workerId": id, "socket": socket, "version": version});
        server.ask("/worker", &body.to_string())
    };
    let joined = |app: &Value| app["workers"].as_array().unwrap().iter().filter(|one| one["joined"] == true).count();
    let (status, refused) = join("dead", &place("nobody.sock"), "1");
    assert_eq!((status, &refused["ok"]), (400, &json!(false)));
    assert_eq!(joined(&server.app()), 0);

    let mut one = stranger(&place("one.sock"));
    assert_eq!(join("one", &place("one.sock"), "1.9"), (200, json!({"ok": true})));
    assert_eq!(joined(&server.app()), 1);
    assert_eq!(server.ask("/worker", r#"{"op":"quit","workerId":"one"}"#), (200, json!({"ok": true})));
    server.until("it to leave", |app| joined(app) == 0);
    let (status, refused) = server.ask("/worker", r#"{"op":"quit","workerId":"one"}"#);
    assert_eq!((status, &refused["ok"]), (404, &json!(false)));

    assert_eq!(join("one", &place("one.sock"), "1.10").0, 200);
    assert_eq!(join("one", &place("one.sock"), "1.11").0, 200);
    server.until("one of that name", |app| joined(app) == 1);
    one.kill().unwrap();
    one.wait().unwrap();
    // Whoever serves next meets the dead one or not; the request is answered either way.
    eventually("the dead one to be dropped", || {
        assert!(server.get("/ping").ends_with("pong"));
        (joined(&server.app()) == 0).then_some(())
    });
}
