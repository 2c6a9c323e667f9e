//! First come, first served; one permit, one request.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;

on_every_backend! {
    who_comes_first_is_served_first,
    a_client_that_floods_waits_behind_itself,
    clients_that_take_turns_are_told_apart_by_what_they_say,
    ten_thousand_requests_of_two_hundred_clients_are_each_answered_once,
    a_worker_freed_on_one_loop_serves_a_waiter_of_the_other,
    two_workers_are_both_used_before_anyone_waits,
    a_timed_out_request_keeps_its_worker_until_the_answer_is_done,
    a_worker_that_never_ends_an_abandoned_request_is_free_after_five_seconds,
}

fn who_comes_first_is_served_first(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/0");
    let server =
        Server::in_front_of(backend, &[&worker], &["--queue-timeout-ms", "60000", "--read-timeout-ms", "60000"]);
    let mut clients = Vec::new();
    for number in 0..60 {
        let mut client = server.client();
        client.begin(&format!("/{number}"));
        if number == 0 {
            until("the first is with the worker", || worker.targets().len() == 1);
        } else {
            until("the request waits", || server.status()["queue"]["depth"] == number);
        }
        clients.push(client);
    }
    go.send(()).unwrap();
    for (number, client) in clients.iter_mut().enumerate() {
        assert_eq!(client.answer().text(), format!("/{number}"));
    }
    let expected: Vec<String> = (0..60).map(|number| format!("/{number}")).collect();
    assert_eq!(worker.targets(), expected);
}

/// On two loops, each of which has some of the flood.
fn a_client_that_floods_waits_behind_itself(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/0");
    let flags =
        ["--fair-queue", "client_ip", "--loops", "2", "--queue-timeout-ms", "60000", "--read-timeout-ms", "60000"];
    let server = Server::in_front_of(backend, &[&worker], &flags);
    let begin = |client: &mut Client, target: &str, waiting: usize| {
        client.begin(target);
        until("the request waits", || server.status()["queue"]["depth"] == waiting);
    };
    let mut first = server.client();
    first.begin("/0");
    until("the first is with the worker", || worker.targets().len() == 1);
    let mut flood: Vec<Client> = (0..200).map(|_| server.client()).collect();
    flood.iter_mut().for_each(|client| client.begin("/flood"));
    until("all of the flood waits", || server.status()["queue"]["depth"] == 200);
    let mut others: Vec<Client> = (0..3).map(|_| Client::from("127.0.0.2", &server)).collect();
    for (number, client) in others.iter_mut().enumerate() {
        begin(client, &format!("/other-{number}"), 201 + number);
    }
    let mut third = Client::from("127.0.0.3", &server);
    begin(&mut third, "/third", 204);
    // One that leaves takes nobody's place.
    drop(others.remove(1));
    until("it has left", || server.status()["queue"]["depth"] == 203);
    go.send(()).unwrap();
    assert_eq!(third.answer().text(), "/third");
    for client in flood.iter_mut().chain(&mut others).chain([&mut first]) {
        assert_eq!(client.answer().status, 200);
    }
    let order = worker.targets();
    assert_eq!(order[..7], ["/0", "/flood", "/other-0", "/third", "/flood", "/other-2", "/flood"]);
    assert_eq!(order.len(), 1 + 203);
}

fn clients_that_take_turns_are_told_apart_by_what_they_say(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/0");
    let flags = ["--fair-queue", "field:X-Tenant", "--max-queue", "6", "--queue-timeout-ms", "60000"];
    let server = Server::in_front_of(backend, &[&worker], &[&flags[..], &["--read-timeout-ms", "60000"]].concat());
    let mut clients = Vec::new();
    for (number, tenant) in ["a", "a", "a", "a", "b", "b"].iter().enumerate() {
        let mut client = server.client();
        client.send(format!("GET /{number}-{tenant} HTTP/1.1\r\nHost: a\r\nX-Tenant: {tenant}\r\n\r\n"));
        match number {
            0 => until("the first is with the worker", || worker.targets().len() == 1),
            _ => until("the request waits", || server.status()["queue"]["depth"] == number),
        }
        clients.push(client);
    }
    // A place is left, and neither of them has it: it is for others.
    for tenant in ["a", "b"] {
        let request = format!("GET /more HTTP/1.1\r\nHost: a\r\nX-Tenant: {tenant}\r\n\r\n");
        assert_eq!(server.client().ask(&request).status, 503);
    }
    let mut client = server.client();
    client.begin("/nobody");
    until("it waits", || server.status()["queue"]["depth"] == 6);
    clients.push(client);
    go.send(()).unwrap();
    clients.iter_mut().for_each(|client| assert_eq!(client.answer().status, 200));
    assert_eq!(worker.targets(), ["/0-a", "/1-a", "/4-b", "/nobody", "/2-a", "/5-b", "/3-a"]);
}

fn ten_thousand_requests_of_two_hundred_clients_are_each_answered_once(backend: &str) {
    let folder = folder();
    let worker = Worker::mirror(&folder.path().join("w"));
    let flags = ["--queue-timeout-ms", "60000", "--loops", "2"];
    let server = Server::in_front_of(backend, &[&worker], &flags);
    let address = server.address;
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            std::thread::spawn(move || {
                let mut clients: Vec<Client> = (0..25).map(|_| Client::to(address)).collect();
                for round in 0..50 {
                    for (number, client) in clients.iter_mut().enumerate() {
                        client.begin(&format!("/{thread}-{number}-{round}"));
                    }
                    for (number, client) in clients.iter_mut().enumerate() {
                        let answer = client.answer();
                        assert_eq!(answer.status, 200, "{answer:?}");
                        assert_eq!(answer.text(), format!("/{thread}-{number}-{round}"));
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut targets = worker.targets();
    assert_eq!(targets.len(), 10_000);
    targets.sort();
    targets.dedup();
    assert_eq!(targets.len(), 10_000, "a request was run twice");
}

fn a_worker_freed_on_one_loop_serves_a_waiter_of_the_other(backend: &str) {
    let folder = folder();
    // Held open for a moment each, so that nearly all have to wait.
    let worker = Worker::start(&folder.path().join("w"), |question, stream| {
        std::thread::sleep(Duration::from_millis(2));
        stream.write_all(&ok(&question.target)).is_ok()
    });
    let server = Server::in_front_of(backend, &[&worker], &["--loops", "2", "--queue-timeout-ms", "60000"]);
    let mut clients: Vec<Client> = (0..64).map(|_| server.client()).collect();
    for round in 0..5 {
        for (number, client) in clients.iter_mut().enumerate() {
            client.begin(&format!("/{round}-{number}"));
        }
        for (number, client) in clients.iter_mut().enumerate() {
            assert_eq!(client.answer().text(), format!("/{round}-{number}"));
        }
    }
    assert_eq!(worker.targets().len(), 5 * 64);
    // Each loop has one connection of its own: that both were used shows that the permit went across.
    // One more is the probe of the start, which brings nothing.
    assert_eq!(worker.connections(), 2 + 1, "both loops have asked the worker");
}

fn two_workers_are_both_used_before_anyone_waits(backend: &str) {
    let folder = folder();
    let together = Arc::new(AtomicUsize::new(0));
    let meet = |together: Arc<AtomicUsize>| {
        move |question: &Question, stream: &mut std::os::unix::net::UnixStream| {
            together.fetch_add(1, Ordering::SeqCst);
            // Each answers only once both are at work: one that idled while the other's request waited would hang.
            until("both workers are at work", || together.load(Ordering::SeqCst) >= 2);
            stream.write_all(&ok(&question.target)).is_ok()
        }
    };
    let first = Worker::start(&folder.path().join("a"), meet(together.clone()));
    let second = Worker::start(&folder.path().join("b"), meet(together.clone()));
    let flags = ["--loops", "2", "--read-timeout-ms", "60000"];
    let server = Server::in_front_of(backend, &[&first, &second], &flags);
    let (mut one, mut other) = (server.client(), server.client());
    one.begin("/1");
    other.begin("/2");
    assert_eq!(one.answer().status, 200);
    assert_eq!(other.answer().status, 200);
    assert_eq!((first.targets().len(), second.targets().len()), (1, 1));
}

fn a_timed_out_request_keeps_its_worker_until_the_answer_is_done(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/slow");
    let server = Server::in_front_of(backend, &[&worker], &["--read-timeout-ms", "200"]);
    let mut slow = server.client();
    slow.begin("/slow");
    let answer = slow.answer();
    assert_eq!(answer.status, 504);
    assert!(answer.has("retry-after: "), "{answer:?}");
    let mut next = server.client();
    next.begin("/next");
    until("the next request waits", || server.status()["queue"]["depth"] == 1);
    assert_eq!(worker.targets(), ["/slow"]);
    go.send(()).unwrap();
    assert_eq!(next.answer().text(), "/next");
    assert_eq!(worker.most(), 1);
    // The late answer was discarded with its connection.
    slow.begin("/again");
    assert_eq!(slow.answer().text(), "/again");
}

/// It is waited for as long as a request may take.
fn a_worker_that_never_ends_an_abandoned_request_is_free_after_five_seconds(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/slow");
    let server = Server::in_front_of(
        backend,
        &[&worker],
        &["--read-timeout-ms", "200", "--request-timeout", "5s", "--queue-timeout-ms", "20000"],
    );
    let mut slow = server.client();
    slow.begin("/slow");
    assert_eq!(slow.answer().status, 504);
    let start = std::time::Instant::now();
    let mut next = server.client();
    next.begin("/next");
    assert_eq!(next.answer().text(), "/next");
    let waited = start.elapsed();
    assert!(waited >= Duration::from_millis(4500) && waited < Duration::from_secs(9), "{waited:?}");
    go.send(()).unwrap();
}
