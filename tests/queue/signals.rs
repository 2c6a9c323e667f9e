//! Signals, sent to a server that runs: each does what it says, and whoever was there to be ended is gone.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;

on_every_backend! {
    hup_and_usr1_reopen_the_logs_and_disturb_nobody,
    quit_writes_the_state_down_and_stops,
    int_stops_as_term_does,
    a_guard_that_was_killed_is_replaced_and_does_its_duty,
}

fn is_guard(process: &&Process) -> bool {
    process.command.contains(" _guard ")
}

fn hup_and_usr1_reopen_the_logs_and_disturb_nobody(backend: &str) {
    let folder = folder();
    let (log, moved) = (folder.path().join("log"), folder.path().join("moved"));
    let mut server = Server::start(backend, &["-w", "1", "--access-log", log.to_str().unwrap()]);
    server.until_ready(1);
    let processes = server.descendants();
    let mut client = server.client();
    let mut ask = |status: u16| assert_eq!(client.get(&format!("/status/{status}")).status, status);
    let written = |path: &Path, status: u16| {
        let target = format!("/status/{status}\"");
        std::fs::read_to_string(path).is_ok_and(|text| text.contains(&target))
    };
    for (signal, before, after) in [("HUP", 201, 202), ("USR1", 203, 206)] {
        ask(before);
        until("the request is in the log", || written(&log, before));
        std::fs::rename(&log, &moved).unwrap();
        server.signal(signal);
        until("it says so", || server.has_said(&format!("SIG{signal}: ")));
        until("the log is there again", || log.exists());
        // Over the same connection, through the same worker.
        ask(after);
        until("the next request is in the new file", || written(&log, after));
        assert!(written(&moved, before) && !written(&moved, after), "the old file goes on");
    }
    assert!(processes.iter().all(Process::is_alive), "a process was replaced");
    drop(client);
    assert_eq!(server.stop(), Some(0));
    assert_gone(&processes, Duration::from_secs(2));
}

fn quit_writes_the_state_down_and_stops(backend: &str) {
    let mut server = Server::start(backend, &["-w", "2"]);
    server.until_ready(2);
    let processes = server.descendants();
    let mut running = server.client();
    running.begin("/sleep?ms=300");
    until("it is with a worker", || server.status()["busy"] == 1);
    server.signal("QUIT");
    assert_eq!(running.answer().text(), "slept 300 ms\n");
    assert_eq!(server.ended().code(), Some(0));
    assert_gone(&processes, Duration::from_secs(2));
    for worker in processes.iter().filter(|process| process.command.contains(" worker")) {
        let known = format!("\"pid\":{},\"phase\":\"Ready\"", worker.id);
        server.says(&known);
    }
    server.says("\"in_flight\":1");
    server.says("\"in_flight\":0");
}

fn int_stops_as_term_does(backend: &str) {
    let mut server = Server::start(backend, &["-w", "2"]);
    server.until_ready(2);
    let processes = server.descendants();
    let mut idle = server.client();
    assert_eq!(idle.get("/ping").text(), "pong");
    server.signal("INT");
    idle.expect_end();
    assert_eq!(server.ended().code(), Some(0));
    assert_gone(&processes, Duration::from_secs(2));
}

/// As often as it comes: the next one comes ever later, and one line tells of all.
#[test]
fn a_guard_that_is_killed_again_and_again_is_started_ever_later_and_told_of_once() {
    let start = Instant::now();
    let mut server = Server::start(if cfg!(backend_readiness) { "epoll" } else { "io_uring" }, &["-w", "1"]);
    server.until_ready(1);
    let mut killed: Vec<Process> = Vec::new();
    until("five of them were killed", || {
        let processes = server.descendants();
        if let Some(guard) = processes.iter().find(is_guard).filter(|guard| killed.iter().all(|old| old.id != guard.id))
        {
            send_signal(guard.id, "KILL");
            killed.push(guard.clone());
        }
        killed.len() == 5
    });
    // 100, 200, 400 and 800 ms lie between them at least.
    assert!(start.elapsed() >= Duration::from_millis(1500), "the last one came after {:?}", start.elapsed());
    assert_eq!(server.client().get("/ping").text(), "pong");
    assert_eq!(server.stop(), Some(0));
    let told = server.lines().iter().filter(|line| line.contains("the guard process is gone")).count();
    assert_eq!(told, 1, "{:?}", server.lines());
}

fn a_guard_that_was_killed_is_replaced_and_does_its_duty(backend: &str) {
    // The child of a worker is nobody's but the guard's: the kernel ends with the server only the server's own children.
    let script = format!("sleep 1000 & exec {PROGRAM} worker --socket \"$SOCKET_PATH\"");
    let mut server = Server::start(backend, &["-w", "1", "--", "sh", "-c", &script]);
    server.until_ready(1);
    let first = server.descendants();
    let guard = first.iter().find(is_guard).expect("there is a guard").clone();
    send_signal(guard.id, "KILL");
    until("it is replaced", || server.has_said("the guard process is gone and is started again"));
    let processes = server.descendants();
    assert!(processes.iter().any(|process| is_guard(&process) && *process != guard), "{processes:?}");
    assert!(processes.iter().any(|process| process.command.starts_with("sleep ")), "{processes:?}");
    assert_eq!(server.client().get("/ping").text(), "pong");
    server.signal("KILL");
    server.ended();
    assert_gone(&processes, Duration::from_secs(3));
}
