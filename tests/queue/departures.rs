//! Clients that leave: while they wait, while their request runs, in the middle of a body.

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::*;
use crate::support::on_every_backend_and_tls;

on_every_backend_and_tls! {
    who_leaves_the_queue_is_not_run,
    who_leaves_a_running_request_leaves_the_worker_its_time,
    who_has_left_holds_the_worker_no_longer_than_its_answer,
    a_stop_takes_the_permits_of_those_who_left,
    who_leaves_in_the_middle_of_a_body_reaches_no_worker,
    who_leaves_in_the_middle_of_a_streamed_body_leaves_no_dirty_connection,
    who_leaves_in_the_middle_of_an_answer_leaves_no_dirty_connection,
    a_half_closed_client_is_served_if_it_wants_no_more,
    what_ends_in_the_middle_of_a_message_is_over_at_once,
    what_ends_in_the_middle_of_a_message_behind_another_is_over_at_once,
}

/// Ends of a request that never becomes one, and answers that come before the connection's end.
const CUT: [(&str, usize); 9] = [
    ("GET /cut HTTP/1.1\r\nHos", 0),
    ("G", 0),
    ("\r\n", 0),
    ("POST /cut HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf", 0),
    ("POST /cut HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\nhalf", 0),
    ("POST /cut HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", 0),
    ("POST /cut HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n", 0),
    ("POST /server HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf", 1),
    ("POST /server HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", 1),
];

/// Deadlines that no test waits for: what ends, ends for another reason.
const ENDLESS: [&str; 8] =
    ["--header-timeout", "10m", "--body-timeout", "10m", "--idle-timeout", "10m", "--write-timeout", "10m"];

fn what_ends_in_the_middle_of_a_message_is_over_at_once(backend: &str) {
    let folder = folder();
    let worker = Worker::mirror(&folder.path().join("w"));
    let server = Server::in_front_of(backend, &[&worker], &ENDLESS);
    for kept in [false, true] {
        for (part, answers) in CUT {
            let mut client = server.client();
            if kept {
                client.begin("/kept");
                assert_eq!(client.answer().text(), "/kept");
            }
            client.send(part);
            client.stream.shutdown(std::net::Shutdown::Write).unwrap();
            for _ in 0..answers {
                assert_eq!(client.answer().status, 200, "{part:?}");
            }
            client.expect_end();
        }
    }
    assert!(worker.targets().iter().all(|target| target == "/kept"), "{:?}", worker.targets());
}

/// The client's end is known before the message's turn comes.
fn what_ends_in_the_middle_of_a_message_behind_another_is_over_at_once(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/slow");
    let server =
        Server::in_front_of(backend, &[&worker], &[&ENDLESS[..], &PATIENT, &["--half-close", "serve"]].concat());
    for (number, (part, answers)) in CUT.into_iter().enumerate() {
        let mut client = server.client();
        client.send(format!("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n{part}"));
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        until("the first is with the worker", || worker.targets().len() == number + 1);
        // The loop has seen what came before this answer was asked for.
        server.turn();
        go.send(()).unwrap();
        assert_eq!(client.answer().text(), "/slow");
        for _ in 0..answers {
            assert_eq!(client.answer().status, 200, "{part:?}");
        }
        client.expect_end();
    }
    assert!(worker.targets().iter().all(|target| target == "/slow"), "{:?}", worker.targets());
}

const PATIENT: [&str; 4] = ["--queue-timeout-ms", "60000", "--read-timeout-ms", "60000"];

fn who_leaves_the_queue_is_not_run(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/slow");
    let server = Server::in_front_of(backend, &[&worker], &PATIENT);
    let mut first = server.client();
    first.begin("/slow");
    until("the first is with the worker", || worker.targets().len() == 1);
    let mut clients: Vec<Client> = (0..6).map(|_| server.client()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.begin(&format!("/{number}"));
        until("the request waits", || server.status()["queue"]["depth"] == number + 1);
    }
    // Every second one leaves: one of them by a reset, the others by an end.
    for (number, client) in clients.iter().enumerate().filter(|(number, _)| number % 2 == 0) {
        if number == 2 {
            socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
    }
    let mut staying: Vec<_> = clients.into_iter().enumerate().filter(|(number, _)| number % 2 == 1).collect();
    until("those who left are out of the queue", || server.status()["queue"]["depth"] == 3);
    go.send(()).unwrap();
    assert_eq!(first.answer().text(), "/slow");
    for (number, client) in &mut staying {
        assert_eq!(client.answer().text(), format!("/{number}"));
    }
    assert_eq!(worker.targets(), ["/slow", "/1", "/3", "/5"]);
}

fn a_stop_takes_the_permits_of_those_who_left(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/slow");
    let mut server = Server::in_front_of(backend, &[&worker], &PATIENT);
    let mut leaving = server.client();
    leaving.begin("/slow");
    until("it is with the worker", || worker.targets().len() == 1);
    drop(leaving);
    until("the departure is seen", || server.status()["client_gone"] == 1);
    // The worker still has the request; the loop ends with its connection and its permit in hand.
    assert_eq!(server.stop(), Some(0), "{:?}", server.lines());
    drop(go);
}

fn who_leaves_a_running_request_leaves_the_worker_its_time(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/slow");
    let server = Server::in_front_of(backend, &[&worker], &PATIENT);
    for round in 0..3 {
        let mut leaving = server.client();
        leaving.begin("/slow");
        until("it is with the worker", || worker.targets().len() == 2 * round + 1);
        drop(leaving);
        let mut next = server.client();
        next.begin("/next");
        until("the next waits", || server.status()["queue"]["depth"] == 1);
        assert_eq!(worker.targets().len(), 2 * round + 1, "a busy worker was given more");
        go.send(()).unwrap();
        assert_eq!(next.answer().text(), "/next");
    }
    assert_eq!(worker.most(), 1);
}

/// The end of an answer that nobody waits for is known by its framing, and not by the connection's end.
fn who_has_left_holds_the_worker_no_longer_than_its_answer(backend: &str) {
    let folder = folder();
    let (answer, answered) = mpsc::channel::<()>();
    let (leave, left) = mpsc::channel::<()>();
    let gates = Mutex::new((answered, left));
    let worker = Worker::start(&folder.path().join("w"), move |question, stream| {
        if question.target != "/slow" {
            return stream.write_all(&ok(&question.target)).is_ok();
        }
        let gates = gates.lock().unwrap();
        gates.0.recv().unwrap();
        stream.write_all(&ok("too late")).unwrap();
        // Its connection stays open.
        gates.1.recv().unwrap();
        false
    });
    let server = Server::in_front_of(backend, &[&worker], &PATIENT);
    let mut leaving = server.client();
    leaving.begin("/slow");
    until("it is with the worker", || worker.targets().len() == 1);
    drop(leaving);
    let mut next = server.client();
    next.begin("/next");
    until("the next waits", || server.status()["queue"]["depth"] == 1);
    answer.send(()).unwrap();
    assert_eq!(next.answer().text(), "/next");
    leave.send(()).unwrap();
}

fn who_leaves_in_the_middle_of_a_body_reaches_no_worker(backend: &str) {
    let folder = folder();
    let (worker, _go) = Worker::gated(&folder.path().join("w"), "/slow");
    let server = Server::in_front_of(backend, &[&worker], &PATIENT);
    let mut leaving = server.client();
    leaving.send("POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nhalf of it");
    until("it is being read", || server.status()["connection_states"]["processing"] == 1);
    drop(leaving);
    until("it is gone", || server.status()["active_connections"] == 0);
    let mut next = server.client();
    next.begin("/next");
    assert_eq!(next.answer().text(), "/next");
    assert_eq!(worker.targets(), ["/next"]);
}

fn who_leaves_in_the_middle_of_a_streamed_body_leaves_no_dirty_connection(backend: &str) {
    let folder = folder();
    let (worker, _go) = Worker::gated(&folder.path().join("w"), "/slow");
    let server = Server::in_front_of(backend, &[&worker], &[&PATIENT[..], &["--request-buffering", "memory"]].concat());
    let mut first = server.client();
    first.begin("/first");
    assert_eq!(first.answer().text(), "/first");
    let mut leaving = server.client();
    leaving.send("POST /half HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n");
    leaving.send("x".repeat(1_500_000));
    until("the worker has it", || server.status()["busy"] == 1);
    drop(leaving);
    first.begin("/next");
    assert_eq!(first.answer().text(), "/next");
    // The half request is never whole, so that the worker's script never saw it; its connection was not used again.
    assert_eq!(worker.targets(), ["/first", "/next"]);
    assert_eq!(server.status()["busy"], 0);
}

fn who_leaves_in_the_middle_of_an_answer_leaves_no_dirty_connection(backend: &str) {
    let folder = folder();
    let cut = Arc::new(Mutex::new(0));
    let count = cut.clone();
    let worker = Worker::start(&folder.path().join("w"), move |question, stream| {
        if question.target != "/endless" {
            return stream.write_all(&ok(&question.target)).is_ok();
        }
        let mut going = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n").is_ok();
        while going {
            std::thread::sleep(Duration::from_millis(2));
            going = stream.write_all(&[b'x'; 1000]).is_ok();
        }
        *count.lock().unwrap() += 1;
        false
    });
    let server = Server::in_front_of(backend, &[&worker], &PATIENT);
    for round in 1..=3 {
        let mut leaving = server.client();
        leaving.begin("/endless");
        leaving.stream.read_exact(&mut [0; 200]).unwrap();
        drop(leaving);
        let mut next = server.client();
        next.begin("/next");
        assert_eq!(next.answer().text(), "/next");
        until("the worker sees that nobody reads", || *cut.lock().unwrap() == round);
    }
}

fn a_half_closed_client_is_served_if_it_wants_no_more(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/slow");
    let server = Server::in_front_of(backend, &[&worker], &PATIENT);
    let mut last = server.client();
    last.send("GET /slow HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    last.stream.shutdown(std::net::Shutdown::Write).unwrap();
    until("it is with the worker", || worker.targets().len() == 1);
    let mut old = server.client();
    old.send("GET /old HTTP/1.0\r\n\r\n");
    old.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut kept = server.client();
    kept.begin("/kept");
    kept.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(kept.whole_answer().is_none(), "one who would have kept its connection has left");
    go.send(()).unwrap();
    assert_eq!(last.answer().text(), "/slow");
    assert_eq!(old.answer().text(), "/old");
    assert_eq!(worker.targets(), ["/slow", "/old"]);
}
