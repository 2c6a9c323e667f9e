//! Workers that do their work, however it looks: none is killed, and the log blames nobody. One that is stuck is replaced.
//!
//! These are about clocks, and so they last for some of them: a request timeout of a second, and less for the others.

use std::time::Duration;

use crate::support::{Client, Server, folder, on_every_backend, python, until};

on_every_backend! {
    a_quiet_stream_beside_a_lively_one
    an_answer_that_flows_for_longer_than_the_request_timeout
    a_client_that_drips_its_upload_after_an_early_answer
    a_worker_that_pauses_after_a_long_upload
    the_read_timeout_is_named_and_kills_nobody
    a_worker_that_is_silent_until_the_request_timeout_is_replaced
}

const WORKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/crowds/worker.py");
/// What a log says of a worker that is held to be at fault.
const BLAME: [&str; 5] = ["worker-exit", "timed out", "stuck", "the worker stopped", "did not answer"];

/// A server with one worker, the process of that worker, and the folder that the worker looks into.
struct Site {
    server: Server,
    pid: String,
    folder: tempfile::TempDir,
}

impl Site {
    fn open(backend: &str, flags: &[&str]) -> Site {
        let folder = folder();
        let path = folder.path().display().to_string();
        let server = Server::start(backend, &[&["-w", "1"], flags, &["--", python(), WORKER, &path]].concat());
        server.until_ready(1);
        let pid = server.client().get("/pid").text();
        Site { server, pid, folder }
    }

    /// The same worker still serves, and nobody says a word against it.
    fn the_worker_lives(&self) {
        assert_eq!(self.server.client().get("/pid").text(), self.pid, "{:?}", self.server.lines());
        for words in BLAME {
            assert!(!self.server.has_said(words), "{words}: {:?}", self.server.lines());
        }
    }
}

fn a_quiet_stream_beside_a_lively_one(backend: &str) {
    let flags = ["-c", "64", "--idle-timeout", "1s", "--request-timeout", "700ms", "--read-timeout-ms", "500"];
    let site = Site::open(backend, &flags);
    let (mut lively, mut quiet) = (site.server.client(), site.server.client());
    lively.begin("/lively");
    assert!(lively.head().unwrap().starts_with("HTTP/1.1 200 "));
    // It comes last, as on a page: what its worker answers after it began would save the worker.
    quiet.begin("/quiet");
    assert!(quiet.head().unwrap().starts_with("HTTP/1.1 200 "));
    // More than three times the idle timeout.
    for _ in 0..35 {
        assert_eq!(lively.line().as_deref(), Some("c"), "the lively stream was cut: {:?}", site.server.lines());
        assert_eq!(lively.take(14), b"data: tick\n\n\r\n");
    }
    site.the_worker_lives();
}

fn an_answer_that_flows_for_longer_than_the_request_timeout(backend: &str) {
    let flags = ["-c", "64", "--request-timeout", "1s", "--read-timeout-ms", "900"];
    let site = Site::open(backend, &flags);
    let mut client = site.server.client();
    client.begin("/rows/30");
    let answer = client.answer();
    assert!(answer.whole && answer.text() == "row\n".repeat(30), "{:?}, {:?}", answer.text(), site.server.lines());
    site.the_worker_lives();
}

const UPLOAD: usize = 2 << 20;

/// A body that streams, and whose first bytes come so slowly that they alone outlast the request timeout of a second.
fn upload(client: &mut Client, path: &str) {
    client.send(format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {UPLOAD}\r\n\r\n"));
    for _ in 0..15 {
        std::thread::sleep(Duration::from_millis(100));
        client.send([b'x'; 1024]);
    }
    client.send(vec![b'x'; UPLOAD - 15 * 1024]);
}

fn a_client_that_drips_its_upload_after_an_early_answer(backend: &str) {
    // A long body streams where it is not gathered on the disk.
    let memory = ["--request-buffering", "memory"];
    let flags = [&["-c", "64", "--request-timeout", "1s", "--read-timeout-ms", "800"], &memory[..]].concat();
    let site = Site::open(backend, &flags);
    let mut client = site.server.client();
    client.send(format!("POST /early HTTP/1.1\r\nHost: a\r\nContent-Length: {UPLOAD}\r\n\r\n"));
    client.send(vec![b'x'; UPLOAD - 2]);
    assert!(client.head().unwrap().starts_with("HTTP/1.1 200 "));
    // Longer than all deadlines of the worker's side; for the client's there is --body-timeout.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(5500));
        client.send("x");
    }
    let expected = format!("5\r\nearly\r\n{:x}\r\n {UPLOAD} bytes\r\n0\r\n\r\n", format!(" {UPLOAD} bytes").len());
    let got = client.take(expected.len());
    assert_eq!(String::from_utf8_lossy(&got), expected, "{:?}", site.server.lines());
    site.the_worker_lives();
}

fn a_worker_that_pauses_after_a_long_upload(backend: &str) {
    let flags = ["-c", "64", "--request-timeout", "1s", "--read-timeout-ms", "900"];
    for path in ["/pause/600", "/stop/600"] {
        let site = Site::open(backend, &flags);
        let mut client = site.server.client();
        upload(&mut client, path);
        let answer = client.answer();
        assert_eq!(
            (answer.status, answer.text()),
            (200, format!("{UPLOAD} bytes")),
            "{path}: {:?}",
            site.server.lines()
        );
        site.the_worker_lives();
    }
    // Too long for the client, also for one whose worker was seen to take more of the request when its time was over; but the worker has
    // the time of a request from when it was waited for.
    let site = Site::open(backend, &["-c", "64", "--request-timeout", "1s", "--read-timeout-ms", "300"]);
    let mut client = site.server.client();
    upload(&mut client, "/stop/900");
    assert_eq!(client.next_answer(false).status, 504);
    assert_eq!(site.server.client().get("/pid").text(), site.pid, "{:?}", site.server.lines());
    assert!(!site.server.has_said("worker-exit"), "{:?}", site.server.lines());
}

fn the_read_timeout_is_named_and_kills_nobody(backend: &str) {
    const FLAG: &str = "--read-timeout-ms";
    for concurrency in ["1", "64"] {
        let site = Site::open(backend, &["-c", concurrency, FLAG, "500"]);
        let mut client = site.server.client();
        client.begin("/hold/word");
        let answer = client.answer();
        assert_eq!(answer.status, 504);
        assert!(answer.text().contains(FLAG), "{}", answer.text());
        until("the log names the flag, too", || site.server.has_said(FLAG));
        // The worker is still at it, and finishes what it has begun.
        std::fs::write(site.folder.path().join("word"), "").unwrap();
        until("the worker finishes its request", || site.folder.path().join("word.done").exists());
        assert_eq!(site.server.client().get("/pid").text(), site.pid, "{:?}", site.server.lines());
        assert!(!site.server.has_said("worker-exit"), "{:?}", site.server.lines());
    }
}

fn a_worker_that_is_silent_until_the_request_timeout_is_replaced(backend: &str) {
    for (concurrency, read) in [("1", "300"), ("64", "300"), ("64", "60000")] {
        let flags = ["-c", concurrency, "--read-timeout-ms", read, "--request-timeout", "1s", "--hold", "30s"];
        let site = Site::open(backend, &flags);
        let mut client = site.server.client();
        client.begin("/hold/never");
        assert_eq!(client.answer().status, 504);
        // Nobody asks it anything meanwhile: one that answers others is not stuck.
        until("it is ended", || site.server.has_said("worker-exit"));
        let successor = site.server.client().get("/pid");
        assert_eq!(successor.status, 200, "-c {concurrency}: {:?}", site.server.lines());
        assert_ne!(successor.text(), site.pid);
    }
}
