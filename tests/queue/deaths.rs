//! Workers that die or are replaced under their requests: who is answered, and who is not.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;

on_every_backend! {
    a_killed_worker_takes_only_its_own_request_along,
    when_all_workers_are_killed_those_who_wait_are_served_by_their_successors,
    a_request_that_kills_its_worker_is_not_given_to_another,
    a_kill_costs_one_request_at_most,
    recycling_after_every_five_requests_fails_none,
}

/// A request that stays with its worker for longer than the test.
fn begin_long(server: &Server, method: &str) -> Client {
    let busy = server.status()["busy"].as_u64().unwrap();
    let mut client = server.client();
    client.send(format!("{method} /sleep?ms=60000 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
    until("it is with a worker", || server.status()["busy"] == busy + 1);
    client
}

/// A request that finds all workers busy, as one of `depth`.
fn begin_waiting(server: &Server, depth: usize) -> Client {
    let mut client = server.client();
    client.begin("/ping");
    until("it waits", || server.status()["queue"]["depth"] == depth);
    client
}

/// How many workers the server says to have ended for that reason.
fn ended(server: &Server, reason: &str) -> usize {
    let lines = server.lines();
    lines.iter().filter(|line| line.contains("\"worker ended\"") && line.contains(reason)).count()
}

fn a_killed_worker_takes_only_its_own_request_along(backend: &str) {
    let server = Server::start(backend, &["-w", "1"]);
    for method in ["GET", "POST"] {
        server.until_ready(1);
        let mut running = begin_long(&server, method);
        let mut waiting = begin_waiting(&server, 1);
        let killed = server.workers();
        assert_eq!(killed.len(), 1, "{killed:?}");
        send_signal(killed[0].id, "KILL");
        assert_eq!(running.answer().status, 502, "{method}");
        // The one worker there is now answers at once: it was not given the request that killed its predecessor.
        assert_eq!(waiting.answer().text(), "pong");
        assert_eq!(server.status()["busy"], 0);
    }
}

fn when_all_workers_are_killed_those_who_wait_are_served_by_their_successors(backend: &str) {
    let server = Server::start(backend, &["-w", "2", "--loops", "2"]);
    server.until_ready(2);
    let mut running = [begin_long(&server, "GET"), begin_long(&server, "POST")];
    let mut waiting: Vec<Client> = (1..=6).map(|depth| begin_waiting(&server, depth)).collect();
    let killed = server.workers();
    assert_eq!(killed.len(), 2, "{killed:?}");
    for worker in &killed {
        send_signal(worker.id, "KILL");
    }
    for client in &mut running {
        assert_eq!(client.answer().status, 502);
    }
    for client in &mut waiting {
        assert_eq!(client.answer().text(), "pong");
    }
    assert_gone(&killed, Duration::from_secs(2));
    server.until_ready(2);
    assert_eq!((ended(&server, "crash: signal 9"), &server.status()["busy"]), (2, &0.into()));
    // The clients' connections have survived it.
    assert_eq!(running[0].get("/ping").text(), "pong");
}

fn a_request_that_kills_its_worker_is_not_given_to_another(backend: &str) {
    let server = Server::start(backend, &["-w", "2"]);
    let mut deaths = 0;
    for method in ["GET", "POST"] {
        for kept in [false, true] {
            server.until_ready(2);
            let before = server.workers();
            let mut client = server.client();
            if kept {
                // The worker that was freed last is asked next, over the connection that was kept.
                assert_eq!(client.get("/ping").text(), "pong");
            }
            let answer = client.ask(&format!("{method} /crash HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
            assert_eq!(answer.status, 502, "{method}, kept: {kept}");
            deaths += 1;
            until("its end is known", || ended(&server, "crash: signal 6") == deaths);
            let left: Vec<Process> = before.into_iter().filter(Process::is_alive).collect();
            assert_eq!(left.len(), 1, "{method}, kept: {kept}: the other worker was given the poison, too");
            assert_eq!(client.get("/ping").text(), "pong");
        }
    }
    assert_eq!(server.status()["retries"], 0);
}

/// Clients that ask over kept connections until they are told to stop; each counts what it got by status.
fn ask_on(
    server: &Server,
    clients: usize,
    request: &'static str,
    stop: &'static AtomicBool,
) -> Vec<JoinHandle<[usize; 2]>> {
    let address = server.address;
    let ask = move || {
        let mut client = Client::to(address);
        let mut counts = [0, 0];
        while !stop.load(Ordering::Relaxed) {
            match client.ask(request).status {
                200 => counts[0] += 1,
                502 => counts[1] += 1,
                other => panic!("an answer of {other}"),
            }
        }
        counts
    };
    (0..clients).map(|_| std::thread::spawn(ask)).collect()
}

fn total(threads: Vec<JoinHandle<[usize; 2]>>) -> [usize; 2] {
    let counts = threads.into_iter().map(|thread| thread.join().unwrap());
    counts.fold([0, 0], |sum, count| [sum[0] + count[0], sum[1] + count[1]])
}

fn a_kill_costs_one_request_at_most(backend: &str) {
    const KILLS: usize = 8;
    let server = Server::start(backend, &["-w", "3", "--loops", "2", "--max-requests", "0"]);
    server.until_ready(3);
    let stop: &'static AtomicBool = Box::leak(Box::default());
    let request = "POST /ping HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi";
    let threads = ask_on(&server, 8, request, stop);
    for kill in 1..=KILLS {
        until("all workers are ready", || server.status()["ready"] == 3);
        send_signal(server.workers()[kill % 3].id, "KILL");
        until("its end is known", || ended(&server, "crash: signal 9") == kill);
    }
    stop.store(true, Ordering::Relaxed);
    let [answered, lost] = total(threads);
    assert!(lost <= KILLS, "{KILLS} kills cost {lost} requests");
    assert!(answered > 100, "{answered} answered: that was no load");
}

fn recycling_after_every_five_requests_fails_none(backend: &str) {
    let server = Server::start(backend, &["w:2", "r:5", "--loops", "2"]);
    server.until_ready(2);
    let mut seen: HashSet<u32> = HashSet::new();
    let stop: &'static AtomicBool = Box::leak(Box::default());
    let threads = ask_on(&server, 8, "GET /ping HTTP/1.1\r\nHost: a\r\n\r\n", stop);
    until("workers have been recycled", || {
        seen.extend(server.workers().iter().map(|worker| worker.id));
        ended(&server, "recycle: 5 requests") >= 10
    });
    stop.store(true, Ordering::Relaxed);
    let [answered, lost] = total(threads);
    assert!(answered > 50 && lost == 0, "{answered} answered, {lost} lost");
    assert!(seen.len() > 4, "the workers stayed the same: {seen:?}");
    assert_eq!((ended(&server, "crash"), &server.status()["retries"]), (0, &0.into()));
}
