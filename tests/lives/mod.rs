//! Workers' lives on the whole server: stuck ones, restarts that fail or are ended, scaling, and workers that join.
//!
//! A worker is `worker.py` or the built-in one; what a request waits for is a file that the test makes, so that no test depends on a
//! time. What has to last (a deadline, a drain) is told by the server's own answer.

mod deploys;
mod groups;
mod healing;
mod health;
mod joins;
mod removed;
mod scaling;
mod silence;
mod stuck;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::support::{
    Client, DEADLINE, PROGRAM, Process, Server, assert_gone, folder, on_every_backend, python, until,
};

const WORKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lives/worker.py");

/// A server with a run directory that the test knows, and the folder that its workers look into.
struct Site {
    // First, so that the server is gone before its directory.
    server: Server,
    folder: tempfile::TempDir,
}

impl Site {
    /// No workers but those that join.
    fn empty(backend: &str, flags: &[&str]) -> Site {
        Site::start(backend, &[&["--workers", "join"], flags].concat(), |_| Vec::new())
    }

    /// `worker.py`.
    fn python(backend: &str, flags: &[&str]) -> Site {
        Site::start(backend, flags, |folder| ["--", python(), WORKER, folder].map(str::to_owned).to_vec())
    }

    /// `worker.py`, with files in its folder from the start.
    fn python_with(backend: &str, flags: &[&str], files: &[&str]) -> Site {
        Site::start(backend, flags, |folder| {
            files.iter().for_each(|name| std::fs::write(format!("{folder}/{name}"), "").unwrap());
            ["--", python(), WORKER, folder].map(str::to_owned).to_vec()
        })
    }

    fn start(backend: &str, flags: &[&str], command: impl Fn(&str) -> Vec<String>) -> Site {
        let folder = folder();
        let run = folder.path().join("run").display().to_string();
        let command = command(&folder.path().display().to_string());
        // No worker is replaced but for what the test is about.
        let mut all = vec!["--run-dir", &run, "--max-requests", "0"];
        all.extend(flags);
        all.extend(command.iter().map(String::as_str));
        Site { server: Server::start(backend, &all), folder }
    }

    /// Makes the file that something waits for.
    fn make(&self, name: &str) {
        std::fs::write(self.folder.path().join(name), "").unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.folder.path().join(name)).unwrap();
    }

    fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    /// A word of the command line: its exit code and what it has written.
    fn word(&self, words: &[&str]) -> (Option<i32>, String) {
        word(&self.run(), words)
    }

    /// A request to the control socket: status and document.
    fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let mut stream = UnixStream::connect(self.run().join("control.sock")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let (method, body) = if body.is_null() { ("GET", String::new()) } else { ("POST", body.to_string()) };
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    /// The app in the status document.
    fn app(&self) -> Value {
        self.ask("/status", &Value::Null).1["apps"][0].take()
    }

    /// Waits until the app is so, and gives it.
    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut app = Value::Null;
        until(what, || {
            app = self.app();
            holds(&app)
        });
        app
    }

    /// Waits until there are so many workers and all serve; their process ids, by worker number.
    fn settled(&self, count: usize) -> Vec<u32> {
        let app = self.until("all workers serve", |app| {
            let workers = app["workers"].as_array().unwrap();
            workers.len() == count && workers.iter().all(|worker| worker["state"] == "running")
        });
        pids(&app)
    }

    /// The process id of whoever answers a request.
    fn pid(&self) -> u32 {
        asked(&mut self.server.client(), "/pid").unwrap()
    }

    /// A request that stays in its worker until the file `name` is made; it is with a worker when this returns.
    fn begin(&self, path: &str) -> Client {
        let busy = self.server.status()["busy"].as_u64().unwrap();
        let mut client = self.server.client();
        client.begin(path);
        until("the request is with a worker", || self.server.status()["busy"] == busy + 1);
        client
    }

    /// The events of that name in the log, which is written behind the server's back: so many have to come.
    fn events(&self, name: &str, count: usize) -> Vec<Value> {
        let mut events = Vec::new();
        until("the events are logged", || {
            let lines = self.server.lines();
            let lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            events = lines.filter(|line| line["event"] == name).collect();
            events.len() >= count
        });
        assert_eq!(events.len(), count, "{name}: {events:?}");
        events
    }
}

fn word(run: &std::path::Path, words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(PROGRAM).args(words).arg("--run-dir").arg(run).env_clear().output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

fn pids(app: &Value) -> Vec<u32> {
    app["workers"].as_array().unwrap().iter().map(|worker| worker["pid"].as_u64().unwrap() as u32).collect()
}

/// The process id in a 200; otherwise the status.
fn asked(client: &mut Client, path: &str) -> Result<u32, u16> {
    let answer = client.get(path);
    if answer.status == 200 { Ok(answer.text().parse().unwrap()) } else { Err(answer.status) }
}

/// A client that asks again and again; each answer has to be a 200.
struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<u32>>,
}

impl Asking {
    fn begin(site: &Site) -> Asking {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, mut client) = (stop.clone(), site.server.client());
        let thread = std::thread::spawn(move || {
            let mut seen = Vec::new();
            while !told.load(Ordering::SeqCst) {
                seen.push(asked(&mut client, "/pid").expect("no request fails"));
                // A request every few milliseconds tells as much as thousands, and leaves the machine to the others.
                std::thread::sleep(Duration::from_millis(2));
            }
            seen
        });
        Asking { stop, thread }
    }

    /// The processes that have answered, one after the other.
    fn end(self) -> Vec<u32> {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().expect("every request was answered")
    }
}
