//! The queue's bounds and clocks, and the hold while no worker is ready.

use std::io::Write;
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use super::*;

on_every_backend! {
    a_full_queue_refuses_at_once_and_a_long_wait_ends,
    a_worker_that_joins_drains_the_queue,
    a_request_is_held_until_a_worker_comes,
    after_the_hold_the_answer_is_in_the_form_that_was_asked_for,
    no_wait_is_longer_than_the_hold_and_no_answer_than_a_request_may_take,
    who_waited_long_still_has_time_for_an_answer,
}

fn who_waited_long_still_has_time_for_an_answer(backend: &str) {
    let folder = folder();
    let worker = Worker::start(&folder.path().join("w"), |question, stream| {
        // Each takes more than half of the time that a request has.
        std::thread::sleep(Duration::from_millis(1100));
        stream.write_all(&ok(&question.target)).is_ok()
    });
    let server = Server::in_front_of(backend, &[&worker], &["--queue-timeout-ms", "600000", "--request-timeout", "2s"]);
    let mut first = server.client();
    first.begin("/first");
    until("the first is with the worker", || worker.targets().len() == 1);
    let mut second = server.client();
    second.begin("/second");
    assert_eq!(first.answer().text(), "/first");
    assert_eq!(second.answer().text(), "/second");
}

fn no_wait_is_longer_than_the_hold_and_no_answer_than_a_request_may_take(backend: &str) {
    let folder = folder();
    let worker = Worker::absent(&folder.path().join("w"));
    let flags = ["--queue-timeout-ms", "600000", "--hold", "400ms", "--request-timeout", "400ms"];
    let server = Server::in_front_of(backend, &[&worker], &flags);
    let start = Instant::now();
    let mut held = server.client();
    held.begin("/held");
    assert_eq!(held.answer().status, 503);
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    worker.listen(move |_, stream| {
        gate.lock().unwrap().recv().unwrap();
        stream.write_all(&ok("late")).is_ok()
    });
    until("the worker is ready", || server.status()["ready"] == 1);
    let mut first = server.client();
    first.begin("/first");
    until("the first is with the worker", || worker.targets().len() == 1);
    let mut waits = server.client();
    waits.begin("/waits");
    assert_eq!(first.answer().status, 504, "the worker did not answer in time");
    assert_eq!(waits.answer().status, 504, "nor became it free");
    go.send(()).unwrap();
}

fn a_full_queue_refuses_at_once_and_a_long_wait_ends(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("w"), "/");
    let flags = ["--max-queue", "8", "--queue-timeout-ms", "1500", "--read-timeout-ms", "60000"];
    let server = Server::in_front_of(backend, &[&worker], &flags);
    let mut first = server.client();
    first.begin("/first");
    until("the first is with the worker", || worker.targets().len() == 1);
    let mut waiting: Vec<Client> = (0..8).map(|_| server.client()).collect();
    let start = Instant::now();
    for client in &mut waiting {
        client.begin("/waits");
    }
    let mut depth = 0;
    while depth < 8 && start.elapsed() < Duration::from_secs(1) {
        depth = server.status()["queue"]["depth"].as_u64().unwrap();
    }
    let mut refused = server.client();
    refused.begin("/refused");
    let answer = refused.answer();
    assert!(start.elapsed() < Duration::from_millis(1500), "the machine is too slow for this test's clock");
    assert_eq!(answer.status, 503);
    assert!(answer.has("retry-after: "), "{answer:?}");
    for client in &mut waiting {
        let answer = client.answer();
        assert_eq!(answer.status, 504);
        assert!(answer.has("retry-after: "), "{answer:?}");
    }
    assert!(start.elapsed() >= Duration::from_millis(1500), "{:?}", start.elapsed());
    let status = server.status();
    assert_eq!((&status["queue_full"], &status["queue_timeouts"]), (&1.into(), &8.into()), "{status}");
    go.send(()).unwrap();
    assert_eq!(first.answer().text(), "/first");
    // The same connections are served again.
    waiting[0].begin("/again");
    go.send(()).unwrap();
    assert_eq!(waiting[0].answer().status, 200);
    assert_eq!(worker.targets(), ["/first", "/again"]);
}

fn a_worker_that_joins_drains_the_queue(backend: &str) {
    let folder = folder();
    let (busy, go) = Worker::gated(&folder.path().join("a"), "/");
    let late = Worker::absent(&folder.path().join("b"));
    let flags = ["--queue-timeout-ms", "60000", "--read-timeout-ms", "60000"];
    let server = Server::in_front_of(backend, &[&busy, &late], &flags);
    let mut first = server.client();
    first.begin("/first");
    until("the first is with the worker", || busy.targets().len() == 1);
    let mut waiting: Vec<Client> = (0..8).map(|_| server.client()).collect();
    for (number, client) in waiting.iter_mut().enumerate() {
        client.begin(&format!("/{number}"));
        until("the request waits", || server.status()["queue"]["depth"] == number + 1);
    }
    late.listen(|question, stream| stream.write_all(&ok(&question.target)).is_ok());
    for (number, client) in waiting.iter_mut().enumerate() {
        assert_eq!(client.answer().text(), format!("/{number}"));
    }
    assert_eq!(late.targets(), (0..8).map(|number| format!("/{number}")).collect::<Vec<_>>());
    go.send(()).unwrap();
    assert_eq!(first.answer().text(), "/first");
}

fn a_request_is_held_until_a_worker_comes(backend: &str) {
    let folder = folder();
    let worker = Worker::absent(&folder.path().join("w"));
    let server = Server::in_front_of(backend, &[&worker], &["--queue-timeout-ms", "300", "--hold", "60s"]);
    let mut clients: Vec<Client> = (0..5).map(|_| server.client()).collect();
    let start = Instant::now();
    for client in &mut clients {
        client.begin_post("/held", "body");
    }
    until("all are held", || server.status()["queue"]["depth"] == 5);
    // Longer than the queue's own clock, which stands still as long as no worker is ready.
    until("the queue's time is over", || start.elapsed() > Duration::from_millis(700));
    assert_eq!(server.status()["queue"]["depth"], 5);
    worker.listen(|question, stream| {
        stream.write_all(&ok(&format!("{} {}", question.method, question.body.len()))).is_ok()
    });
    for client in &mut clients {
        assert_eq!(client.answer().text(), "POST 4");
    }
    assert_eq!(worker.targets().len(), 5);
}

fn after_the_hold_the_answer_is_in_the_form_that_was_asked_for(backend: &str) {
    let folder = folder();
    let worker = Worker::absent(&folder.path().join("w"));
    let server = Server::in_front_of(backend, &[&worker], &["--hold", "300ms"]);
    let request = |accept: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n\r\n");
    let start = Instant::now();
    let page = server.client().ask(&request("text/html,application/xhtml+xml;q=0.9"));
    assert!(start.elapsed() >= Duration::from_millis(300), "{:?}", start.elapsed());
    assert_eq!(page.status, 503);
    assert!(page.has("content-type: text/html") && page.has("retry-after: "), "{page:?}");
    assert!(page.text().contains("http-equiv=\"refresh\"") || page.has("\r\nrefresh: "), "{page:?}");
    let json = server.client().ask(&request("application/json"));
    assert_eq!(json.status, 503);
    assert!(json.has("content-type: application/json") && json.has("retry-after: "), "{json:?}");
    serde_json::from_slice::<serde_json::Value>(&json.body).unwrap();
    let text = server.client().ask(&request("text/plain"));
    assert_eq!(text.status, 503);
    assert!(text.has("content-type: text/plain") && text.has("retry-after: "), "{text:?}");
    let status = server.status();
    assert_eq!(status["hold_expired"], 3, "{status}");
}
