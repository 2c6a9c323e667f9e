//! What is done when a worker's connection fails: the whole table, over real sockets.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use production_server::socket_file::leave_dead;

use super::*;
use crate::support::Clogged;

on_every_backend! {
    what_was_never_delivered_is_sent_again_whatever_the_method,
    a_kept_connection_that_a_living_worker_ends_costs_a_get_nothing_and_a_post_its_answer,
    a_fresh_connection_that_dies_is_not_tried_again,
    a_busy_worker_hands_the_request_on,
    a_draining_worker_hands_the_request_on,
    refusals_of_every_worker_are_passed_on,
    a_worker_that_is_gone_is_passed_over_and_costs_no_retry,
    a_full_backlog_does_not_hold_a_request_from_an_idle_worker,
    a_full_backlog_of_the_only_worker_is_waited_for_and_then_refused,
    a_silent_worker_is_a_504,
    an_answer_that_never_ends_is_cut,
    a_connect_that_takes_too_long_is_given_up,
    the_keep_alive_time_of_a_worker_is_obeyed,
    without_keep_alive_each_request_has_a_connection,
    stray_bytes_on_a_kept_connection_retire_it,
    stray_bytes_that_meet_a_request_are_not_its_answer,
}

/// The server stands still while both arrive, the request first, and then finds them in one turn.
fn stray_bytes_that_meet_a_request_are_not_its_answer(backend: &str) {
    for stray in ["HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray", "HTTP/1.1 2", "rubbish\r\n\r\n"] {
        let folder = folder();
        let (give, take) = std::sync::mpsc::channel();
        let give = Mutex::new(give);
        let worker = Worker::start(&folder.path().join("w"), move |question, stream| {
            if question.target == "/first" {
                give.lock().unwrap().send(stream.try_clone().unwrap()).unwrap();
            }
            stream.write_all(&ok(&format!("{} {}", question.connection, question.target))).is_ok()
        });
        let server = Server::in_front_of(backend, &[&worker], &[]);
        let mut client = server.client();
        client.begin("/first");
        let first: usize = client.answer().text().strip_suffix(" /first").unwrap().parse().unwrap();
        let mut kept: UnixStream = take.recv().unwrap();
        // Another turn has come and gone: the connection is kept.
        server.turn();
        server.signal("STOP");
        until("the server stands still", || server.is_stopped());
        client.begin_post("/second", "body");
        kept.write_all(stray.as_bytes()).unwrap();
        server.signal("CONT");
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (200, format!("{} /second", first + 1)), "{stray:?}");
        assert_eq!(worker.targets(), ["/first", "/second"]);
        assert_eq!(server.status()["retries"], 1);
    }
}

/// Ends its first connection when it gets its second request, without an answer; answers everything else.
fn ends_once(folder: &std::path::Path, name: &str) -> Worker {
    Worker::start(&folder.join(name), |question, stream| {
        if question.connection <= 1 && question.number == 1 {
            return false;
        }
        stream.write_all(&ok(&format!("{} {}", question.connection, question.target))).is_ok()
    })
}

fn what_was_never_delivered_is_sent_again_whatever_the_method(backend: &str) {
    let folder = folder();
    let (held, gate) = mpsc::channel::<()>();
    let (gate, shut) = (Mutex::new(gate), Arc::new(AtomicBool::new(false)));
    let done = shut.clone();
    // Takes no more after its first answer, but does not end its own half: only a write shows it, by EPIPE.
    let worker = Worker::start(&folder.path().join("w"), move |question, stream| {
        let written = stream.write_all(&ok(&question.target)).is_ok();
        if question.target == "/first" {
            stream.shutdown(std::net::Shutdown::Read).unwrap();
            done.store(true, Ordering::SeqCst);
            // Held open to the end of the test, or the end would be seen before the next request.
            let _ = gate.lock().unwrap().recv();
        }
        written
    });
    let server = Server::in_front_of(backend, &[&worker], &[]);
    let mut client = server.client();
    client.begin("/first");
    assert_eq!(client.answer().text(), "/first");
    until("the worker takes no more", || shut.load(Ordering::SeqCst));
    client.begin_post("/second", "body");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (200, "/second"));
    assert_eq!(worker.targets(), ["/first", "/second"]);
    assert_eq!(server.status()["retries"], 1);
    drop(held);
}

fn a_kept_connection_that_a_living_worker_ends_costs_a_get_nothing_and_a_post_its_answer(backend: &str) {
    for (method, expected) in [("GET", 200), ("POST", 502)] {
        let folder = folder();
        let worker = ends_once(folder.path(), "w");
        let server = Server::in_front_of(backend, &[&worker], &[]);
        let mut client = server.client();
        client.begin("/first");
        assert_eq!(client.answer().status, 200);
        let answer = client.ask(&format!("{method} /second HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(answer.status, expected, "{answer:?}");
        let tries = if method == "GET" { 2 } else { 1 };
        assert_eq!(worker.targets().iter().filter(|target| *target == "/second").count(), tries);
        client.begin("/third");
        assert_eq!(client.answer().status, 200);
    }
}

fn a_fresh_connection_that_dies_is_not_tried_again(backend: &str) {
    let folder = folder();
    let first = Worker::start(&folder.path().join("a"), |_, _| false);
    let second = Worker::start(&folder.path().join("b"), |_, _| false);
    let server = Server::in_front_of(backend, &[&first, &second], &[]);
    let mut client = server.client();
    client.begin("/poison");
    assert_eq!(client.answer().status, 502);
    assert_eq!(first.targets().len() + second.targets().len(), 1);
    assert_eq!(server.status()["retries"], 0);
}

fn declines(backend: &str, field: &'static str) {
    let folder = folder();
    let answer = format!("HTTP/1.1 503 No\r\n{field}: 1\r\nContent-Length: 4\r\n\r\nbusy");
    for (balance, place) in ["round-robin", "lifo", "least"].into_iter().zip([1, 0, 3]) {
        // All but one decline, wherever that one is in turn.
        let mut workers: Vec<Worker> = (0..3)
            .map(|number| {
                let answer = answer.clone();
                let declines = move |_: &Question, stream: &mut UnixStream| stream.write_all(answer.as_bytes()).is_ok();
                Worker::start(&folder.path().join(format!("{balance}{number}")), declines)
            })
            .collect();
        workers.insert(place, Worker::mirror(&folder.path().join(format!("{balance}-free"))));
        let server = Server::in_front_of(backend, &workers.iter().collect::<Vec<_>>(), &["--balance", balance]);
        let mut client = server.client();
        for number in 0..20 {
            client.begin_post(&format!("/{number}"), "body");
            let answer = client.answer();
            assert_eq!((answer.status, answer.text()), (200, format!("/{number}")), "{balance}");
        }
        assert_eq!(workers[place].targets().len(), 20);
        workers.remove(place);
        assert!(workers.iter().any(|busy| !busy.targets().is_empty()), "no busy worker was ever asked");
    }
}

fn a_busy_worker_hands_the_request_on(backend: &str) {
    declines(backend, "Rip-Worker-Busy");
}

fn a_draining_worker_hands_the_request_on(backend: &str) {
    declines(backend, "Rip-Worker-Draining");
}

fn refusals_of_every_worker_are_passed_on(backend: &str) {
    let folder = folder();
    let declining = |_: &Question, stream: &mut UnixStream| {
        stream.write_all(b"HTTP/1.1 503 No\r\nRip-Worker-Busy: 1\r\nContent-Length: 4\r\n\r\nbusy").is_ok()
    };
    let first = Worker::start(&folder.path().join("a"), declining);
    let second = Worker::start(&folder.path().join("b"), declining);
    let server = Server::in_front_of(backend, &[&first, &second], &[]);
    let mut client = server.client();
    client.begin("/");
    let answer = client.answer();
    assert_eq!((answer.status, answer.text().as_str()), (503, "busy"));
    assert_eq!((first.targets().len(), second.targets().len()), (1, 1));
}

fn a_worker_that_is_gone_is_passed_over_and_costs_no_retry(backend: &str) {
    let folder = folder();
    let gone = Worker::mirror(&folder.path().join("a"));
    let here = Worker::mirror(&folder.path().join("b"));
    let refused = Worker::mirror(&folder.path().join("c"));
    let server = Server::in_front_of(backend, &[&gone, &here, &refused], &["--balance", "round-robin"]);
    gone.stop();
    // A file that nobody listens at: refused, where the other is not found.
    refused.stop();
    leave_dead(&refused.path).unwrap();
    let mut client = server.client();
    for number in 0..9 {
        client.begin_post(&format!("/{number}"), "body");
        assert_eq!(client.answer().text(), format!("/{number}"));
    }
    assert_eq!(here.targets().len(), 9);
    let status = server.status();
    assert_eq!((&status["retries"], &status["ready"]), (&0.into(), &1.into()), "{status}");
}

fn a_full_backlog_does_not_hold_a_request_from_an_idle_worker(backend: &str) {
    let folder = folder();
    let mut clogged = Clogged::new(&folder.path().join("a"));
    let clogged_worker = Worker::absent(&folder.path().join("a"));
    let free = Worker::mirror(&folder.path().join("b"));
    let server = Server::in_front_of(
        backend,
        &[&clogged_worker, &free],
        &["--balance", "round-robin", "--connect-timeout-ms", "5000"],
    );
    clogged.fill();
    let mut client = server.client();
    for number in 0..6 {
        let start = Instant::now();
        client.begin_post(&format!("/{number}"), "body");
        let answer = client.answer();
        assert_eq!((answer.status, answer.text()), (200, format!("/{number}")));
        assert!(start.elapsed() < Duration::from_secs(4), "it waited for the full backlog");
    }
}

fn a_full_backlog_of_the_only_worker_is_waited_for_and_then_refused(backend: &str) {
    let folder = folder();
    let path = folder.path().join("a");
    let mut clogged = Clogged::new(&path);
    let worker = Worker::absent(&path);
    let server = Server::in_front_of(backend, &[&worker], &["--connect-timeout-ms", "1000"]);
    clogged.fill();
    let start = Instant::now();
    let mut client = server.client();
    client.begin("/refused");
    let answer = client.answer();
    assert_eq!(answer.status, 503);
    assert!(answer.has("retry-after: "), "{answer:?}");
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    // And one whose worker accepts again in time.
    client.begin("/served");
    until("it holds the worker's permit", || server.status()["busy"] == 1);
    std::thread::spawn(move || {
        drop(clogged.waiting);
        loop {
            let mut stream = clogged.listener.accept().unwrap().0;
            let mut bytes = [0; 4096];
            while let Ok(count) = stream.read(&mut bytes) {
                if count == 0 || stream.write_all(&ok("served")).is_err() {
                    break;
                }
            }
        }
    });
    assert_eq!(client.answer().text(), "served");
}

fn a_silent_worker_is_a_504(backend: &str) {
    let folder = folder();
    let worker = Worker::start(&folder.path().join("w"), |question, stream| {
        if question.target == "/silent" {
            // Until the server ends the connection.
            let _ = stream.read(&mut [0; 1]);
            return false;
        }
        stream.write_all(&ok(&question.target)).is_ok()
    });
    let server = Server::in_front_of(backend, &[&worker], &["--read-timeout-ms", "400"]);
    let mut client = server.client();
    let start = Instant::now();
    client.begin("/silent");
    let answer = client.answer();
    assert_eq!(answer.status, 504);
    assert!(answer.has("retry-after: "), "{answer:?}");
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
    client.begin("/next");
    assert_eq!(client.answer().text(), "/next");
    assert_eq!(worker.targets(), ["/silent", "/next"]);
}

fn an_answer_that_never_ends_is_cut(backend: &str) {
    let folder = folder();
    let worker = Worker::start(&folder.path().join("w"), |_, stream| {
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut going = stream.write_all(head).is_ok();
        while going {
            std::thread::sleep(Duration::from_millis(50));
            going = stream.write_all(b"1\r\nx\r\n").is_ok();
        }
        false
    });
    let server = Server::in_front_of(
        backend,
        &[&worker],
        &["--answer-timeout", "1s", "--request-timeout", "60s", "--read-timeout-ms", "60000"],
    );
    let mut client = server.client();
    let start = Instant::now();
    client.begin("/");
    let other = client.stream.try_clone().unwrap();
    std::thread::spawn(move || {
        // Were it never cut, the test would read for ever.
        std::thread::sleep(DEADLINE);
        let _ = other.shutdown(std::net::Shutdown::Both);
    });
    assert!(client.whole_answer().is_none(), "an answer that was cut looked whole");
    assert!(start.elapsed() >= Duration::from_secs(1) && start.elapsed() < Duration::from_secs(10));
}

fn a_connect_that_takes_too_long_is_given_up(backend: &str) {
    // A TCP listener whose backlog is full drops what asks for a connection: nothing comes back.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(1).unwrap();
    let listener: TcpListener = socket.into();
    let address = listener.local_addr().unwrap();
    let folder = folder();
    let here = Worker::mirror(&folder.path().join("w"));
    let (slow, fast) = (format!("http://{address}"), format!("unix:{}", here.path.display()));
    let flags = ["--upstream", &slow, "--upstream", &fast, "--balance", "round-robin", "--connect-timeout-ms", "300"];
    let server = Server::start(backend, &flags);
    server.until_ready(2);
    let mut waiting = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
        waiting.push(stream);
    }
    let mut client = server.client();
    for number in 0..4 {
        client.begin_post(&format!("/{number}"), "body");
        assert_eq!(client.answer().text(), format!("/{number}"));
    }
    assert_eq!(here.targets().len(), 4);
}

fn the_keep_alive_time_of_a_worker_is_obeyed(backend: &str) {
    let folder = folder();
    let worker = Worker::start(&folder.path().join("w"), |question, stream| {
        let answer = "HTTP/1.1 200 OK\r\nKeep-Alive: timeout=2\r\nContent-Length: 1\r\n\r\n";
        stream.write_all(format!("{answer}{}", question.number).as_bytes()).is_ok()
    });
    let server = Server::in_front_of(backend, &[&worker], &[]);
    let mut client = server.client();
    client.begin("/");
    assert_eq!(client.answer().text(), "0");
    let start = Instant::now();
    client.begin("/");
    assert_eq!(client.answer().text(), "1");
    until("the connection is given up a second before the worker's time", || worker.open() == 0);
    assert!(start.elapsed() < Duration::from_millis(1900), "{:?}", start.elapsed());
    client.begin("/");
    assert_eq!(client.answer().text(), "0");
}

fn without_keep_alive_each_request_has_a_connection(backend: &str) {
    let folder = folder();
    let asked_to_close = Arc::new(AtomicBool::new(true));
    let seen = asked_to_close.clone();
    let worker = Worker::start(&folder.path().join("w"), move |question, stream| {
        seen.fetch_and(question.head.to_lowercase().contains("connection: close"), Ordering::SeqCst);
        // It would keep its connection, though.
        stream.write_all(&ok(&question.number.to_string())).is_ok()
    });
    let server = Server::in_front_of(backend, &[&worker], &["--keepalive", "off"]);
    let mut client = server.client();
    for _ in 0..5 {
        client.begin("/");
        assert_eq!(client.answer().text(), "0");
    }
    assert!(asked_to_close.load(Ordering::SeqCst));
    until("no connection stays", || worker.open() == 0);
}

fn stray_bytes_on_a_kept_connection_retire_it(backend: &str) {
    let folder = folder();
    let streams = Arc::new(Mutex::new(Vec::new()));
    let kept = streams.clone();
    let worker = Worker::start(&folder.path().join("w"), move |question, stream| {
        kept.lock().unwrap().push(stream.try_clone().unwrap());
        stream.write_all(&ok(&question.target)).is_ok()
    });
    let server = Server::in_front_of(backend, &[&worker], &[]);
    let mut client = server.client();
    client.begin("/first");
    assert_eq!(client.answer().text(), "/first");
    streams.lock().unwrap()[0].write_all(&ok("of nobody")).unwrap();
    until("the connection is retired", || worker.open() == 0);
    client.begin("/second");
    assert_eq!(client.answer().text(), "/second");
}
