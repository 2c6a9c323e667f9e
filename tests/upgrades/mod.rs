//! A server that is replaced by another process: by itself, by what cannot take its place, and under systemd's protocols.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::Value;

use crate::support::{Client, DEADLINE, PROGRAM, Process, Server, folder, on_every_backend, send_signal, until};

mod chains;
mod failing;
mod handing;
pub(crate) mod meanwhile;
mod package;
mod privileges;
mod systemd;

/// A server, and all that came after it. Whoever serves is killed at the end.
pub(crate) struct Line {
    pub server: Server,
    pub folder: tempfile::TempDir,
}

impl Line {
    fn start(backend: &str, flags: &[&str]) -> Line {
        Line::start_as(Command::new(PROGRAM), backend, flags)
    }

    fn start_as(command: Command, backend: &str, flags: &[&str]) -> Line {
        Line::start_in(folder(), command, backend, flags)
    }

    pub fn start_in(folder: tempfile::TempDir, command: Command, backend: &str, flags: &[&str]) -> Line {
        let (run, pid) = (path(&folder, "run"), path(&folder, "pid"));
        let own = ["--run-dir", &run, "--pid-file", &pid, "--shutdown", "10s"];
        let server = Server::start_as(command, backend, &[&own, flags].concat());
        let line = Line { server, folder };
        until("the control socket is there", || line.run().join("control.sock").exists());
        line
    }

    pub fn run(&self) -> PathBuf {
        self.folder.path().join("run")
    }

    pub fn status(&self) -> Value {
        ask(&self.run()).expect("somebody serves")
    }

    /// The process that serves.
    pub fn process(&self) -> u32 {
        self.status()["pid"].as_u64().unwrap() as u32
    }

    pub fn until_ready(&self, count: usize) {
        until("the workers are ready", || self.status()["apps"][0]["workers_ready"] == count);
    }

    /// What that word on the command line says, and its exit code.
    pub fn word(&self, words: &[&str]) -> (Option<i32>, String) {
        let output = Command::new(PROGRAM).args(words).arg("--run-dir").arg(self.run()).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    }

    /// An upgrade that must succeed: the process that serves afterwards.
    pub fn upgraded(&self) -> u32 {
        let before = self.process();
        let (code, said) = self.word(&["upgrade", "--wait"]);
        assert_eq!(code, Some(0), "{said}");
        let after = self.process();
        assert_ne!(before, after);
        assert_eq!(self.pid_file(), after, "the pid file follows");
        after
    }

    fn pid_file(&self) -> u32 {
        fs::read_to_string(self.folder.path().join("pid")).unwrap().trim().parse().unwrap()
    }

    /// An executable script in the folder.
    fn script(&self, name: &str, text: &str) -> String {
        let path = path(&self.folder, name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// Stops whoever serves, after which nothing is left.
    pub fn stop(self) {
        let (code, said) = self.word(&["stop"]);
        assert_eq!(code, Some(0), "{said}");
        self.gone();
    }

    /// Whoever serves stops by itself, after which nothing is left; the exit code of the first one.
    pub fn gone(mut self) -> Option<i32> {
        // The first one may be a zombie since long, or the one that was stopped.
        let code = self.server.ended().code();
        // The guard of one that was killed takes a moment.
        until("all processes are gone", || self.processes().is_empty());
        let left: Vec<PathBuf> =
            [self.run(), self.folder.path().join("pid")].into_iter().filter(|path| path.exists()).collect();
        let inside =
            fs::read_dir(self.run()).map(|entries| entries.flatten().map(|entry| entry.path()).collect::<Vec<_>>());
        assert!(left.is_empty(), "{left:?} is left: {inside:?}");
        code
    }

    /// All that were started with this run directory, and their workers.
    fn processes(&self) -> Vec<Process> {
        let mark = self.folder.path().display().to_string();
        Process::all().into_iter().filter(|process| process.command.contains(&mark)).collect()
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Guards end what is left of each: all of them hold the stderr that the rig reads to its end.
        for process in self.processes().iter().filter(|process| !process.command.contains("_guard")) {
            // SAFETY: a process of this test's own, told by the folder that it was started with.
            unsafe { libc::kill(process.id as i32, libc::SIGKILL) };
        }
    }
}

pub(crate) fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

/// The status document of whoever answers at that run directory.
fn ask(run: &Path) -> Option<Value> {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(run.join("control.sock")).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// Clients that ask all the time: half of them keep their connections, the others open one for each request.
struct Crowd {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<()>>,
}

impl Crowd {
    fn begin(line: &Line, keeping: usize, opening: usize) -> Crowd {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let address = line.server.address;
        let client = |keeps: bool| {
            let (stop, asked) = (stop.clone(), asked.clone());
            std::thread::spawn(move || {
                let mut client = None;
                while !stop.load(Ordering::Relaxed) {
                    let mut open = client.take().unwrap_or_else(|| Client::to(address));
                    let close = if keeps { "" } else { "Connection: close\r\n" };
                    let answer = open.ask(&format!("GET /ping HTTP/1.1\r\nHost: a\r\n{close}\r\n"));
                    assert_eq!((answer.status, answer.text().as_str()), (200, "pong"), "{}", answer.head);
                    asked.fetch_add(1, Ordering::Relaxed);
                    client = (keeps && !answer.has("connection: close")).then_some(open);
                    std::thread::sleep(Duration::from_millis(10));
                }
            })
        };
        let threads = (0..keeping + opening).map(|index| client(index < keeping)).collect();
        let crowd = Crowd { stop, asked, threads };
        crowd.goes_on(keeping + opening);
        crowd
    }

    /// Waits until so many further requests were answered.
    fn goes_on(&self, more: usize) {
        let before = self.asked.load(Ordering::Relaxed);
        until("requests are answered", || self.asked.load(Ordering::Relaxed) >= before + more);
    }

    /// How many requests were answered, which all must have been.
    fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a request has failed");
        }
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
