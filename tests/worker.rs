//! The built-in worker as a process.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::{DEADLINE, PROGRAM, until};

struct Worker {
    _directory: tempfile::TempDir,
    path: PathBuf,
    child: Child,
}

impl Worker {
    fn start() -> Worker {
        Worker::start_as(|_, _| {})
    }

    /// With something done to its command before; the other is the folder of its socket.
    fn start_as(prepare: impl FnOnce(&mut Command, &Path)) -> Worker {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("worker.sock");
        let mut command = Command::new(PROGRAM);
        command.arg("worker").arg("--socket").arg(&path).env("WORKER_ID", "7").stderr(Stdio::null());
        prepare(&mut command, directory.path());
        let worker = Worker { _directory: directory, path, child: command.spawn().unwrap() };
        until("the worker listens", || UnixStream::connect(&worker.path).is_ok());
        worker
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream
    }

    /// Sends bytes and reads to the end of the connection.
    fn talk(&self, bytes: &str) -> String {
        let mut stream = self.connect();
        stream.write_all(bytes.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }

    fn term(&self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[test]
fn requests_are_answered_in_order_on_one_connection() {
    let worker = Worker::start();
    let answer = worker.talk(
        "GET /ping HTTP/1.1\r\nHost: a\r\n\r\nPOST /echo HTTP/1.1\r\nHost: a\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\n\
         helloPUT /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n\
         HEAD /bytes?n=9 HTTP/1.1\r\nHost: a\r\n\r\nGET /status/204 HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /bytes?n=40 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    let expected = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 4\r\n\r\npong\
                    HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello\
                    HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 5\r\n\r\nabcde\
                    HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 9\r\n\r\n\
                    HTTP/1.1 204 \r\nContent-Type: text/plain; charset=utf-8\r\n\r\n\
                    HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 40\r\nConnection: close\r\n\r\n\
                    abcdefghijklmnopqrstuvwxyz0123456789\nabc";
    assert_eq!(answer, expected);
}

/// `ab` counts an answer of another length than the first as failed.
#[test]
fn the_page_has_the_same_length_each_time_and_from_each_worker() {
    let workers = [Worker::start(), Worker::start()];
    let mut lengths = Vec::new();
    for worker in workers.iter().cycle().take(24) {
        let answer = worker.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(answer.contains("Worker       7 (process "), "{answer}");
        lengths.push(answer.len());
    }
    lengths.dedup();
    assert_eq!(lengths.len(), 1, "{lengths:?}");
}

#[test]
fn streams_are_chunked_for_1_1_events_on_demand_and_closed_for_1_0() {
    let worker = Worker::start();
    let answer = worker.talk("GET /stream?n=2&ms=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\n8\r\nchunk 1\n\r\n8\r\nchunk 2\n\r\n0\r\n\r\n"), "{answer}");
    let answer =
        worker.talk("GET /stream?n=1 HTTP/1.1\r\nHost: a\r\nAccept: text/event-stream\r\nConnection: close\r\n\r\n");
    assert!(answer.contains("text/event-stream") && answer.contains("data: 1\n\n"), "{answer}");
    let answer = worker.talk("GET /stream?n=1 HTTP/1.0\r\n\r\n");
    assert!(answer.ends_with("\r\n\r\nchunk 1\n") && !answer.contains("chunked"), "{answer}");
}

#[test]
fn pages_tell_about_the_worker_and_a_crash_cuts_its_own_request() {
    let mut worker = Worker::start();
    let page = worker.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    let words = page.split_whitespace().collect::<Vec<&str>>().join(" ");
    let told = format!("Worker 7 (process {}) has answered 1 requests.", worker.child.id());
    assert!(words.contains(&told), "{page}");
    assert!(worker.talk("GET / nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert_eq!(worker.talk("GET /crash HTTP/1.1\r\nHost: a\r\n\r\n"), "");
    assert!(!worker.child.wait().unwrap().success());
}

#[test]
fn term_lets_the_request_in_flight_finish_and_ends_idle_connections() {
    let mut worker = Worker::start();
    let mut idle = worker.connect();
    idle.write_all(b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut buffer = [0; 4096];
    assert!(idle.read(&mut buffer).unwrap() > 0);
    let mut busy = worker.connect();
    busy.write_all(b"GET /stream?n=2&ms=300 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    assert!(busy.read(&mut buffer).unwrap() > 0, "it has begun");
    worker.term();
    assert_eq!(idle.read(&mut buffer).unwrap(), 0, "the idle one ends");
    let mut rest = String::new();
    busy.read_to_string(&mut rest).unwrap();
    assert!(rest.ends_with("chunk 2\n\r\n0\r\n\r\n"), "{rest}");
    assert!(worker.child.wait().unwrap().success(), "it exits with 0");
    assert!(!worker.path.exists(), "and takes its socket along");
}

#[test]
fn without_threads_it_says_that_it_is_busy() {
    /// A user who runs nothing else, as which root has no privileges.
    const USER: u32 = 61_236;
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let worker = Worker::start_as(|command, directory| {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o777)).unwrap();
        if is_root {
            command.uid(USER).gid(USER);
        }
        let limit = || {
            let limit = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
            // SAFETY: the structure lives for the duration of the call.
            match unsafe { libc::setrlimit(libc::RLIMIT_NPROC, &limit) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: the closure calls only what may be called between fork and exec.
        unsafe { command.pre_exec(limit) };
    });
    for _ in 0..3 {
        let answer = worker.talk("GET /ping HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 503 Busy\r\nRip-Worker-Busy: 1\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nthis worker can start no thread for one more connection\n"), "{answer}");
    }
    worker.term();
    let mut worker = worker;
    assert!(worker.child.wait().unwrap().success(), "it exits with 0");
}

#[test]
fn without_a_socket_it_says_what_it_needs() {
    let output = Command::new(PROGRAM).arg("worker").env_remove("SOCKET_PATH").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("$SOCKET_PATH"));
    let worker = Worker::start();
    let output = Command::new(PROGRAM).args(["worker", "--socket"]).arg(&worker.path).output().unwrap();
    assert_eq!(output.status.code(), Some(73), "somebody answers there");
}
