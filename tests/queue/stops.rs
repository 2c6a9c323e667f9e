//! How the server ends: killed, asked to, asked twice, or refused its port. Nothing of it may be left.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;
use crate::support::on_every_backend_and_tls;
use crate::support::tls::SUFFIX;

on_every_backend_and_tls! {
    a_killed_server_leaves_no_process_and_a_usable_run_directory,
    a_stop_answers_what_runs_and_leaves_nothing,
    the_deadline_of_a_stop_cuts_what_runs,
    a_second_stop_is_at_once,
    a_second_server_on_a_port_starts_nothing,
    who_speaks_for_others_gets_no_status_from_the_loop,
}

fn start_in(backend: &str, run_directory: &Path, flags: &[&str]) -> Server {
    let run_directory = run_directory.display().to_string();
    let mut all = vec!["--run-dir", run_directory.as_str()];
    all.extend(flags);
    Server::start(backend, &all)
}

fn ask_for_sleep(server: &Server, millis: u64) -> Client {
    let mut client = server.client();
    client.begin(&format!("/sleep?ms={millis}"));
    until("it is with the worker", || server.status()["busy"] == 1);
    client
}

fn a_killed_server_leaves_no_process_and_a_usable_run_directory(backend: &str) {
    let folder = folder();
    let run_directory = folder.path().join("r");
    let script = format!("sleep 1000 & exec {PROGRAM} worker --socket \"$SOCKET_PATH\"");
    let family = ["-w", "2", "--", "sh", "-c", &script];
    for (flags, least) in [(&["-w", "2"][..], 2), (&family, 4)] {
        let mut server = start_in(backend, &run_directory, flags);
        server.until_ready(2);
        let processes = server.descendants();
        assert!(processes.len() >= least, "{processes:?}");
        server.signal("KILL");
        server.ended();
        assert_gone(&processes, Duration::from_secs(2));
        // The next one is up without waiting for anything, and sweeps up behind the dead one when it goes.
        let mut next = start_in(backend, &run_directory, &["-w", "1"]);
        next.until_ready(1);
        let runs = std::fs::read_dir(&run_directory).unwrap().flatten().filter(|entry| entry.path().is_dir()).count();
        assert_eq!(runs, 1, "the dead server's sockets are still there");
        next.signal("TERM");
        assert_eq!(next.ended().code(), Some(0));
    }
}

fn a_stop_answers_what_runs_and_leaves_nothing(backend: &str) {
    let folder = folder();
    let run_directory = folder.path().join("r");
    let mut server = start_in(backend, &run_directory, &["-w", "2"]);
    server.until_ready(2);
    let processes = server.descendants();
    let mut idle = server.client();
    idle.begin("/ping");
    assert_eq!(idle.answer().text(), "pong");
    let mut running = ask_for_sleep(&server, 600);
    server.signal("TERM");
    idle.expect_end();
    until("new connections are refused", || TcpStream::connect(server.own).is_err());
    let answer = running.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "slept 600 ms\n"));
    assert_eq!(server.ended().code(), Some(0));
    assert_gone(&processes, Duration::from_secs(2));
    assert!(!run_directory.exists(), "the run directory is left");
}

fn the_deadline_of_a_stop_cuts_what_runs(backend: &str) {
    let folder = folder();
    let run_directory = folder.path().join("r");
    let mut server = start_in(backend, &run_directory, &["-w", "1", "--shutdown", "300ms"]);
    server.until_ready(1);
    let processes = server.descendants();
    let mut running = ask_for_sleep(&server, 20_000);
    let start = Instant::now();
    server.signal("TERM");
    let answer = running.whole_answer();
    assert!(answer.as_ref().is_none_or(|answer| answer.status >= 500), "{answer:?}");
    assert_eq!(server.ended().code(), Some(0));
    assert!(start.elapsed() >= Duration::from_millis(300), "cut after {:?} already", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_gone(&processes, Duration::from_secs(2));
    assert!(!run_directory.exists(), "the run directory is left");
}

fn a_second_stop_is_at_once(backend: &str) {
    let folder = folder();
    let run_directory = folder.path().join("r");
    let mut server = start_in(backend, &run_directory, &["-w", "1", "--shutdown", "25s"]);
    server.until_ready(1);
    let processes = server.descendants();
    let _running = ask_for_sleep(&server, 20_000);
    server.signal("TERM");
    until("the first stop is under way", || TcpStream::connect(server.own).is_err());
    let start = Instant::now();
    server.signal("TERM");
    server.ended();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_gone(&processes, Duration::from_secs(2));
    assert!(!run_directory.exists(), "the run directory is left");
}

fn a_second_server_on_a_port_starts_nothing(backend: &str) {
    let folder = folder();
    let server = Server::start(backend, &["-w", "1"]);
    server.until_ready(1);
    let started = folder.path().join("started");
    let second = Command::new(PROGRAM)
        .args(["--listen", &server.own.to_string(), "--backend", backend.trim_end_matches(SUFFIX)])
        .args(["--no-access-log", "--run-dir"])
        .arg(folder.path().join("other"))
        .args(["--", "touch"])
        .arg(&started)
        .output()
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(73), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains(&server.own.to_string()), "{said}");
    assert!(!started.exists() && !folder.path().join("other").exists(), "something was started");
    let mut client = server.client();
    client.begin("/ping");
    assert_eq!(client.answer().text(), "pong");
}

fn who_speaks_for_others_gets_no_status_from_the_loop(backend: &str) {
    let folder = folder();
    let worker = Worker::mirror(&folder.path().join("w"));
    let server = Server::in_front_of(backend, &[&worker], &[]);
    let status = "GET /status HTTP/1.1\r\nHost: localhost\r\n";
    assert!(server.client().ask(&format!("{status}\r\n")).text().starts_with("{\"status\":\"healthy\","));
    assert_eq!(worker.targets().len(), 0);
    for field in ["X-Forwarded-For: 127.0.0.1", "x-forwarded-for: 203.0.113.7"] {
        let answer = server.client().ask(&format!("{status}{field}\r\n\r\n"));
        assert_eq!((answer.status, answer.text().as_str()), (200, "/status"), "the app must answer for {field}");
    }
    // That it is up at all is no secret.
    let answer = server.client().ask("GET /server HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 203.0.113.7\r\n\r\n");
    assert_eq!(answer.text(), "ok");
    assert_eq!(worker.targets(), ["/status", "/status"]);
}
