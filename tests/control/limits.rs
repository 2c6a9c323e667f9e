//! What is too much, too slow or senseless.

use std::io::{ErrorKind, Read, Write};
use std::time::Instant;

use production_server::control::{Answer, Command};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::rig::{PATIENCE, Rig, TICKET, eventually, request};

const TEN_MEBIBYTES: usize = 10 * 1024 * 1024;

#[test]
fn a_body_of_ten_mebibytes_is_refused_at_once_and_its_sender_can_read_why() {
    let rig = Rig::new();
    let mut early = rig.connect();
    early.send(&format!("POST /worker HTTP/1.1\r\nHost: x\r\nContent-Length: {TEN_MEBIBYTES}\r\n\r\n"));
    let answer = early.rest();
    assert!(answer.starts_with("HTTP/1.1 413 Content Too Large\r\n"), "{answer}");
    assert!(answer.contains("\r\nConnection: close\r\n") && answer.contains("at most 65536 bytes"), "{answer}");
    assert!(answer.contains("\"ok\":false"), "{answer}");

    // This one sends all of it before it looks at the answer.
    let mut stubborn = rig.connect();
    stubborn.send(&request("POST", "/restart", &"x".repeat(TEN_MEBIBYTES)));
    assert_eq!(stubborn.answer().0, 413);
    let mut chunked = rig.connect();
    chunked.send("POST /restart HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    chunked.send(&format!("{TEN_MEBIBYTES:x}\r\n{}", " ".repeat(TEN_MEBIBYTES)));
    assert_eq!(chunked.answer().0, 413);
    assert_eq!(rig.asked(), []);
    assert_eq!(rig.ask("GET", "/status", "").0, 200);
}

#[test]
fn a_body_may_have_64_kib_and_no_byte_more() {
    let rig = Rig::new();
    let fits = format!("{{{}}}", " ".repeat(64 * 1024 - 2));
    assert_eq!(rig.ask("POST", "/reload", &fits).0, 200);
    assert_eq!(rig.ask("POST", "/reload", &format!("{fits} ")).0, 413);
    assert_eq!(rig.asked().len(), 1);
}

#[test]
fn a_head_that_is_too_large_is_refused() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.send(&format!("GET /status HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(33 * 1024)));
    assert!(client.rest().starts_with("HTTP/1.1 431 "));
    let mut malformed = rig.connect();
    malformed.send("POST /stop HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}");
    assert!(malformed.rest().starts_with("HTTP/1.1 400 "));
    assert_eq!(rig.asked(), []);
}

#[test]
fn slow_writers_are_cut_and_hold_nobody_up() {
    let rig = Rig::new();
    let started = Instant::now();
    let mut slow = rig.connect();
    slow.send("POST /stop HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{");
    let mut silent = rig.connect();
    let mut cut = rig.connect();
    cut.send("POST /stop HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{");
    cut.finish();
    assert_eq!(rig.ask("GET", "/status", "").0, 200, "meanwhile others are served");
    let (status, document) = cut.answer();
    assert_eq!((status, document["error"].as_str()), (400, Some("the request ended before it was whole")));
    assert!(started.elapsed().as_secs() < 5, "an end is no slowness");
    // A byte now and then does not help.
    slow.send(" ");
    let answer = slow.rest();
    assert!(answer.starts_with("HTTP/1.1 408 Request Timeout\r\n") && answer.contains("within 5 s"), "{answer}");
    assert_eq!(silent.rest(), "");
    let waited = started.elapsed();
    assert!(waited.as_secs() >= 5 && waited < PATIENCE, "{waited:?}");
    assert_eq!(rig.asked(), [Command::Status]);
}

#[test]
fn who_does_not_read_its_answers_is_cut() {
    let rig = Rig::new();
    let mut client = rig.connect();
    client.stream.set_nonblocking(true).unwrap();
    let one = request("GET", "/status", "");
    // Until neither side takes any more: the server's answers fill the socket, and then it reads no more requests.
    eventually("the connection to be cut", || {
        let error = (0..1000).find_map(|_| client.stream.write(one.as_bytes()).err())?;
        matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset).then_some(())
    });
    assert_eq!(rig.ask("GET", "/status", "").0, 200);
}

#[test]
fn a_hundred_connections_at_once_are_all_served() {
    let rig = Rig::new();
    let mut idle: Vec<_> = (0..60).map(|_| rig.connect()).collect();
    for client in &mut idle {
        client.send(&request("POST", "/resume", ""));
        assert_eq!(client.answer().0, 200);
    }
    let mut clients: Vec<_> = (0..100).map(|_| rig.connect()).collect();
    for client in &mut clients {
        client.send("GET /status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.answer().0, 200);
    }
    let served = rig.asked().iter().filter(|command| **command == Command::Status).count();
    assert_eq!(served, 100);
    // Of the idle ones enough were closed to make room.
    for client in &mut idle {
        client.stream.set_nonblocking(true).unwrap();
    }
    let closed = idle.iter().filter(|client| matches!((&client.stream).read(&mut [0]), Ok(0))).count();
    assert!(closed >= 1, "{closed}");
}

/// Each connection that has said nothing could be kept for five seconds.
#[test]
fn those_that_say_nothing_make_room_for_those_that_ask() {
    for said in ["", "GET /sta", "POST /scale HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n{"] {
        let rig = Rig::new();
        let slow = |_| {
            let client = rig.connect();
            // On a machine that is busy it may have made room already.
            (&client.stream).write_all(said.as_bytes()).ok();
            client
        };
        let slow: Vec<_> = (0..700).map(slow).collect();
        assert_eq!(rig.ask("GET", "/status", "").0, 200);
        // Nobody is cut but for others.
        let last = slow.last().unwrap();
        last.stream.set_nonblocking(true).unwrap();
        assert!((&last.stream).read(&mut [0]).is_err(), "the last one is still there");
    }
}

/// What is left over for want of time in a turn has its turn without anything new having come. Here each command takes longer than a turn may.
#[test]
fn many_requests_on_many_connections_are_carried_out_over_many_turns() {
    let rig = Rig::new();
    let mut clients: Vec<_> = (0..40).map(|_| rig.connect()).collect();
    for client in &mut clients {
        client.send(&request("POST", "/pause", "").repeat(4));
    }
    for client in &mut clients {
        for _ in 0..4 {
            assert_eq!(client.answer().0, 200);
        }
    }
    assert_eq!(rig.asked().len(), 160);
    assert!(rig.turns() >= 160, "{} turns", rig.turns());
}

#[test]
fn those_that_wait_leave_room_for_those_that_do_not() {
    let rig = Rig::new();
    let mut waiting: Vec<_> = (0..17).map(|_| rig.connect()).collect();
    for client in &mut waiting {
        client.send(&request("POST", "/restart", r#"{"wait":true}"#));
    }
    let mut refused = waiting.pop().unwrap();
    let (status, document) = refused.answer();
    assert_eq!(
        (status, document["error"].as_str()),
        (503, Some("16 connections wait for an answer already, and no more may"))
    );
    let mut streams: Vec<_> = (0..16).map(|_| rig.connect()).collect();
    for client in &mut streams {
        client.send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(client.head().starts_with("HTTP/1.1 200 OK\r\n"));
    }
    let (status, document) = rig.ask("GET", "/events", "");
    assert_eq!(
        (status, document["error"].as_str()),
        (503, Some("16 connections read events already, and no more may"))
    );
    assert_eq!(rig.ask("POST", "/stop", "").0, 200);
    rig.answer(TICKET, Answer::done("done"));
    for client in &mut waiting {
        assert_eq!(client.answer().0, 200);
    }
}

/// Whatever comes, the server stays: each piece of garbage is answered with an error or with nothing, never carried out.
#[test]
fn garbage_changes_nothing() {
    let rig = Rig::new();
    let pieces = prop::collection::vec(
        prop_oneof![
            prop::collection::vec(any::<u8>(), 0..40),
            prop::sample::select(vec![
                "POST /nothing HTTP/1.1\r\n",
                "GET /status HTTP/1.1\r\n",
                "Host: x\r\n",
                "Content-Length: 5\r\n",
                "\r\n",
                "{\"now\":",
                "\0",
                "Transfer-Encoding: chunked\r\n",
                "Expect: 100-continue\r\n",
                "5\r\n",
                "HTTP/1.1",
                "Content-Length: 18446744073709551616\r\n",
            ])
            .prop_map(|text| text.as_bytes().to_vec()),
        ],
        0..12,
    );
    let mut runner = TestRunner::new(Config { cases: 128, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&pieces, |pieces| {
        let mut client = rig.connect();
        // The server may have refused and be done before all is sent.
        let sent = pieces.iter().try_for_each(|piece| client.stream.write_all(piece));
        if sent.is_ok() {
            client.stream.shutdown(std::net::Shutdown::Write).ok();
        }
        let mut answer = Vec::new();
        client.stream.read_to_end(&mut answer).ok();
        prop_assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 "));
        Ok(())
    });
    outcome.unwrap();
    let asked = rig.asked();
    assert!(asked.iter().all(|command| *command == Command::Status), "{asked:?}");
    assert_eq!(rig.ask("GET", "/status", "").0, 200);
}
