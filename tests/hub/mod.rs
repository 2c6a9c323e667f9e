//! Hubs: who listens gets every message once and in order, or is told that some are missing.

mod acts;
mod apps;
mod attacks;
mod bus;
mod crowds;
mod pushpin;
mod servers;
mod upgrades;

use std::collections::HashSet;
use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::support::websocket::{BINARY, CLOSE, Frame, PING, PONG, Socket, TEXT, masked, request};
use crate::support::{Answer, Client, PROGRAM, Server, on_every_backend_and_tls, until};

on_every_backend_and_tls! {
    a_message_reaches_all_who_listen
    a_socket_is_told_topics_and_ids
    who_comes_back_gets_what_was_missed
    what_is_gone_is_said_to_be_missing
    events_come_as_a_stream
    a_stream_of_several_topics_comes_back_to_all
    a_poll_waits_for_messages
    topics_come_and_go_over_a_socket
    large_messages_are_deflated_for_those_who_take_it
    what_is_too_old_is_given_up
    the_same_id_is_one_message
    what_breaks_the_rules_is_closed
    who_may_do_what
    a_silent_socket_is_pinged_and_cut
    whoever_reads_nothing_holds_nobody_up
    a_stop_sends_all_away
    a_reload_closes_nothing
    loops_tell_each_other
    a_crowd_gets_every_message
    the_control_socket_publishes_too
}

pub fn hub(backend: &str, flags: &[&str]) -> Server {
    Server::start(backend, &[&["--respond", "hello", "--hub"], flags].concat())
}

/// Publishes, and gives what is said to that.
pub fn notify(client: &mut Client, notice: &Value) -> Value {
    let answer = post(client, "/api/v1/notify", &notice.to_string());
    assert_eq!(answer.status, 202, "{}", answer.text());
    serde_json::from_str(&answer.text()).unwrap()
}

pub fn post(client: &mut Client, target: &str, body: &str) -> Answer {
    client.ask(&format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
}

fn a_message_reaches_all_who_listen(backend: &str) {
    let server = hub(backend, &[]);
    let mut sockets: Vec<_> = (0..3).map(|_| Socket::open(&server, "/api/v1/listen", "")).collect();
    let mut publisher = server.client();
    let said = notify(&mut publisher, &json!({"data": "hello"}));
    assert_eq!(said["subscribers"], 3);
    let as_written = r#"{"topic": "broadcast", "data": {"a":[1,2.50,null]}}"#;
    assert_eq!(post(&mut publisher, "/api/v1/notify", as_written).status, 202);
    notify(&mut publisher, &json!({"topic": "other", "data": "not for these"}));
    let raw =
        "POST /api/v1/notify?topic=broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n\0\u{1}\u{2}";
    assert_eq!(publisher.ask(raw).status, 202);
    for socket in &mut sockets {
        assert_eq!(socket.next().text(), "hello");
        assert_eq!(socket.next().text(), r#"{"a":[1,2.50,null]}"#);
        let bytes = socket.next();
        assert_eq!((bytes.head, &bytes.data[..]), (BINARY, &[0, 1, 2][..]));
    }
    // Large ones, too, whole and in order.
    let long = "x".repeat(60_000);
    for number in 0..20 {
        notify(&mut publisher, &json!({"data": format!("{number} {long}")}));
    }
    for socket in &mut sockets {
        for number in 0..20 {
            assert_eq!(socket.next().text(), format!("{number} {long}"));
        }
    }
    let status = server.status();
    assert_eq!((status["hub_messages"].clone(), status["hub_sockets"].clone()), (json!(24), json!(3)));
    sockets.pop().unwrap().send(CLOSE, &1000_u16.to_be_bytes());
    sockets.pop().unwrap().client.reset();
    until("two have left", || server.status()["hub_sockets"] == 1);
    let status = server.status();
    assert_eq!((&status["hub_closed"], &status["hub_closed_lost"]), (&json!(1), &json!(1)), "each end is counted");
    assert_eq!(notify(&mut publisher, &json!({"data": 1}))["subscribers"], 1);
}

fn a_socket_is_told_topics_and_ids(backend: &str) {
    let server = hub(backend, &[]);
    let mut socket = Socket::told(&server, "/api/v1/listen?topic=a&topic=b%2Fc");
    let mut publisher = server.client();
    let first = notify(&mut publisher, &json!({"topic": "b/c", "data": "one"}));
    let message = socket.next().json();
    assert_eq!(message, json!({"type": "message", "topic": "b/c", "id": first["id"], "data": "one"}));
    let raw = "POST /api/v1/notify?topic=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n\0\u{1}\u{2}";
    assert_eq!(publisher.ask(raw).status, 202);
    let message = socket.next().json();
    assert_eq!((message["topic"].clone(), message["binary"].clone()), (json!("a"), json!("AAEC")));
}

fn who_comes_back_gets_what_was_missed(backend: &str) {
    let server = hub(backend, &[]);
    let mut publisher = server.client();
    let ids: Vec<_> = (0..5).map(|number| notify(&mut publisher, &json!({"data": number}))["id"].clone()).collect();
    let id = |number: usize| ids[number].as_str().unwrap().to_owned();
    let mut query = Socket::open(&server, &format!("/api/v1/listen?last_event_id={}", id(1)), "");
    let mut field = Socket::told(&server, &format!("/api/v1/listen?last_event_id={}", id(3)));
    assert_eq!([query.next().text(), query.next().text(), query.next().text()], ["2", "3", "4"]);
    assert_eq!(field.next().json()["id"], ids[4]);
    // Who has everything waits for what comes.
    let mut last = Socket::open(&server, &format!("/api/v1/listen?last_event_id={}", id(4)), "");
    notify(&mut publisher, &json!({"data": "new"}));
    for socket in [&mut query, &mut last] {
        assert_eq!(socket.next().text(), "new");
    }
}

fn what_is_gone_is_said_to_be_missing(backend: &str) {
    let server = hub(backend, &[]);
    let mut publisher = server.client();
    let first = notify(&mut publisher, &json!({"data": "first"}))["id"].as_str().unwrap().to_owned();
    (0..150).for_each(|number| drop(notify(&mut publisher, &json!({"data": number}))));
    let target = format!("/api/v1/listen?last_event_id={first}");
    let mut told = Socket::told(&server, &target);
    let gap = told.next().json();
    assert_eq!(
        (gap["type"].clone(), gap["topic"].clone(), gap["from"].clone()),
        (json!("gap"), json!("broadcast"), json!(first))
    );
    let ids: Vec<_> = (50..150)
        .map(|number| {
            let message = told.next().json();
            assert_eq!(message["data"], number);
            message["id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_ne!(gap["to"], ids[0]);
    // Who gets bare messages cannot be told, and has to begin anew.
    assert_eq!(Socket::open(&server, &target, "").expect_close(), 4409);
    let polled: Value = serde_json::from_str(&server.client().get(&target).text()).unwrap();
    assert_eq!((polled["gaps"][0]["from"].clone(), polled["gaps"][0]["to"].clone()), (json!(first), gap["to"].clone()));
    assert_eq!(polled["messages"].as_array().unwrap().len(), 100);
    let mut other_life = Socket::told(&server, "/api/v1/listen?last_event_id=0000000000001:5");
    assert_eq!(other_life.next().json()["type"], "gap");
    let mut nonsense = Socket::told(&server, "/api/v1/listen?last_event_id=x");
    assert_eq!(nonsense.next().json()["type"], "gap");
    assert!(server.status()["hub_gaps"].as_u64().unwrap() >= 4);
}

/// One event of a stream: its lines.
pub fn event(client: &mut Client) -> Vec<String> {
    let size = usize::from_str_radix(&client.line().unwrap(), 16).unwrap();
    let chunk = String::from_utf8(client.take(size)).unwrap();
    assert_eq!(client.take(2), b"\r\n");
    chunk.lines().map(str::to_owned).collect()
}

pub fn stream(server: &Server, target: &str, lines: &str) -> Client {
    stream_from(server, target, lines).0
}

/// A stream of events, and the id with which it begins.
pub fn stream_from(server: &Server, target: &str, lines: &str) -> (Client, String) {
    let mut client = server.client();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{lines}\r\n"));
    let head = client.head().unwrap();
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("\r\nContent-Type: text/event-stream\r\n"), "{head}");
    let retry = event(&mut client);
    let wait: u64 = retry[0].strip_prefix("retry: ").unwrap().parse().unwrap();
    assert!((1000..=2000).contains(&wait), "{wait}");
    (client, retry[1].strip_prefix("id: ").unwrap().to_owned())
}

fn events_come_as_a_stream(backend: &str) {
    let server = hub(backend, &[]);
    let mut listener = stream(&server, "/api/v1/listen", "");
    let mut publisher = server.client();
    let one = notify(&mut publisher, &json!({"data": "a\nb"}))["id"].as_str().unwrap().to_owned();
    assert_eq!(event(&mut listener), [&format!("id: {one}"), "data: a", "data: b", ""]);
    notify(&mut publisher, &json!({"data": 7}));
    assert_eq!(event(&mut listener)[1], "data: 7");
    let mut back = stream(&server, "/api/v1/listen", &format!("Last-Event-ID: {one}\r\n"));
    assert_eq!(event(&mut back)[1], "data: 7");
    let mut lost = stream(&server, "/api/v1/listen", "Last-Event-ID: 0000000000001:5\r\n");
    assert_eq!(event(&mut lost)[1], "event: gap");
    assert_eq!(server.status()["hub_event_streams"], 3);
    // As the client likes it, in as many lines as it says so.
    for (accepts, media_type) in [
        ("Accept: text/event-stream;q=0, application/json\r\n", "application/json"),
        ("Accept: text/event-stream;q=0.1, application/json\r\n", "application/json"),
        ("Accept: application/json, text/event-stream\r\n", "text/event-stream"),
        ("Accept: application/json;q=0.5\r\nAccept: text/event-stream\r\n", "text/event-stream"),
        ("Accept: */*\r\n", "application/json"),
    ] {
        let mut client = server.client();
        let target = format!("/api/v1/listen?last_event_id={one}");
        client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n{accepts}\r\n"));
        let head = client.head().unwrap();
        assert!(head.contains(&format!("\r\nContent-Type: {media_type}\r\n")), "{accepts}{head}");
    }
    // An old client has no chunks.
    let mut old = server.client();
    old.send("GET /api/v1/listen HTTP/1.0\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n");
    let head = old.head().unwrap();
    assert!(!head.contains("chunked"), "{head}");
    notify(&mut publisher, &json!({"data": "plain"}));
    let mut seen = Vec::new();
    while !seen.ends_with(b"\ndata: plain\n\n") {
        seen.extend(old.take(1));
    }
    assert!(seen.starts_with(b"retry: "));
}

fn a_stream_of_several_topics_comes_back_to_all(backend: &str) {
    let server = hub(backend, &[]);
    let target = "/api/v1/listen?topic=a&topic=b";
    let mut listener = stream(&server, target, "");
    let mut publisher = server.client();
    notify(&mut publisher, &json!({"topic": "a", "data": "a1"}));
    assert_eq!(event(&mut listener)[1], "data: a1");
    notify(&mut publisher, &json!({"topic": "b", "data": "b1"}));
    let last = event(&mut listener);
    assert_eq!(last[1], "data: b1");
    drop(listener);
    notify(&mut publisher, &json!({"topic": "a", "data": "a2"}));
    notify(&mut publisher, &json!({"topic": "b", "data": "b2"}));
    let id = last[0].strip_prefix("id: ").unwrap();
    let mut back = stream(&server, target, &format!("Last-Event-ID: {id}\r\n"));
    let got: HashSet<_> = (0..2).map(|_| event(&mut back)[1].clone()).collect();
    assert_eq!(got, HashSet::from(["data: a2".to_owned(), "data: b2".to_owned()]));
}

fn a_poll_waits_for_messages(backend: &str) {
    let server = hub(backend, &[]);
    let mut publisher = server.client();
    let mut waiting = server.client();
    waiting.begin("/api/v1/listen?topic=a");
    until("it waits", || server.status()["hub_polls"] == 1);
    let id = notify(&mut publisher, &json!({"topic": "a", "data": "one"}))["id"].clone();
    let answer = waiting.answer();
    let document: Value = serde_json::from_str(&answer.text()).unwrap();
    assert_eq!((answer.status, answer.field("Cache-Control")), (200, Some("no-store")));
    assert_eq!(document["messages"], json!([{"type": "message", "topic": "a", "id": id, "data": "one"}]));
    // What came meanwhile is there at once, over the same connection.
    notify(&mut publisher, &json!({"topic": "a", "data": "two"}));
    notify(&mut publisher, &json!({"topic": "a", "data": "three"}));
    let last = document["last_event_id"].as_str().unwrap().to_owned();
    let next = waiting.get(&format!("/api/v1/listen?topic=a&last_event_id={last}"));
    let document: Value = serde_json::from_str(&next.text()).unwrap();
    let data: Vec<_> = document["messages"].as_array().unwrap().iter().map(|message| message["data"].clone()).collect();
    assert_eq!(data, ["two", "three"]);
    let lost = waiting.get("/api/v1/listen?topic=a&last_event_id=0000000000001:5");
    let document: Value = serde_json::from_str(&lost.text()).unwrap();
    let gap = &document["gaps"][0];
    assert_eq!((&gap["type"], &gap["from"]), (&json!("gap"), &json!("0000000000001:5")));
    assert_eq!((document["messages"].as_array().unwrap().len(), &server.status()["hub_gaps"]), (3, &json!(1)));
    until("nobody waits", || server.status()["hub_polls"] == 0);
    // A request behind one that waits has its turn when that is answered.
    waiting.send("GET /api/v1/listen HTTP/1.1\r\nHost: a\r\n\r\nGET /server HTTP/1.1\r\nHost: a\r\n\r\n");
    until("it waits", || server.status()["hub_polls"] == 1);
    notify(&mut publisher, &json!({"data": 1}));
    assert_eq!((waiting.answer().status, waiting.answer().text().as_str()), (200, "ok"));
}

fn topics_come_and_go_over_a_socket(backend: &str) {
    let server = hub(backend, &[]);
    let mut publisher = server.client();
    let first = notify(&mut publisher, &json!({"topic": "later", "data": 1}))["id"].clone();
    notify(&mut publisher, &json!({"topic": "later", "data": 2}));
    let mut socket = Socket::told(&server, "/api/v1/listen?topic=a");
    socket.say(&json!({"subscribe": "later", "last_event_id": first}));
    let said = socket.next().json();
    assert_eq!((said["type"].clone(), said["topic"].clone()), (json!("subscribed"), json!("later")));
    assert_eq!(socket.next().json()["data"], 2);
    notify(&mut publisher, &json!({"topic": "later", "data": 3}));
    assert_eq!(socket.next().json()["data"], 3);
    socket.say(&json!({"unsubscribe": "later"}));
    assert_eq!(socket.next().json(), json!({"type": "unsubscribed", "topic": "later"}));
    assert_eq!(notify(&mut publisher, &json!({"topic": "later", "data": 4}))["subscribers"], 0);
    assert_eq!(notify(&mut publisher, &json!({"topic": "a", "data": 5}))["subscribers"], 1);
    assert_eq!(socket.next().json()["data"], 5);
    // What is wrong is said, and the socket stays.
    for (command, reason) in [
        (json!({"subscribe": "a"}), "already"),
        (json!({"unsubscribe": "never"}), "not"),
        (json!({"subscribe": "a b"}), ""),
        (json!({"shout": "a"}), ""),
        (json!([]), ""),
    ] {
        socket.say(&command);
        let said = socket.next().json();
        assert_eq!(said["type"], "error", "{command}");
        assert!(said["reason"].as_str().unwrap().contains(reason), "{said}");
    }
    for number in 0..127 {
        socket.say(&json!({"subscribe": format!("t{number}")}));
        assert_eq!(socket.next().json()["type"], "subscribed", "{number}");
    }
    socket.say(&json!({"subscribe": "one more"}));
    assert_eq!(socket.next().json()["type"], "error");
    notify(&mut publisher, &json!({"topic": "t126", "data": "last"}));
    assert_eq!(socket.next().json()["data"], "last");
}

fn large_messages_are_deflated_for_those_who_take_it(backend: &str) {
    let server = hub(backend, &["--loops", "2"]);
    let offers = ["permessage-deflate", "permessage-deflate; client_max_window_bits; server_max_window_bits=15"];
    let mut sockets: Vec<_> = (0..8)
        .map(|number| {
            let lines = if number % 2 == 0 { "" } else { "Sec-WebSocket-Protocol: hub.v1\r\n" };
            let (socket, said) = Socket::deflating(&server, "/api/v1/listen", offers[number / 4], lines);
            assert!(said.is_some_and(|said| said.contains("server_no_context_takeover")), "each message stands alone");
            socket
        })
        .collect();
    let (mut narrow, said) =
        Socket::deflating(&server, "/api/v1/listen", "permessage-deflate; server_max_window_bits=10", "");
    assert!(said.unwrap().contains("server_max_window_bits=10"));
    let mut plain = Socket::open(&server, "/api/v1/listen", "");
    let mut publisher = server.client();
    let texts: Vec<_> = (0..10).map(|number| format!("{number} {}", "to and fro, ".repeat(4000))).collect();
    for text in &texts {
        notify(&mut publisher, &json!({"data": text}));
        notify(&mut publisher, &json!({"data": "short"}));
    }
    // As xorshift gives them.
    let step = |state: &u64| {
        Some([(13, 0), (0, 7), (17, 0)].iter().fold(*state, |it, (left, right)| it ^ ((it << left) >> right)))
    };
    let noise: Vec<u8> =
        std::iter::successors(Some(1), step).skip(20).map(|state: u64| state as u8).take(4000).collect();
    let raw = format!(
        "POST /api/v1/notify?topic=broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n",
        noise.len()
    );
    publisher.send([raw.as_bytes(), &noise].concat());
    assert_eq!(publisher.answer().status, 202);
    for (number, socket) in sockets.iter_mut().enumerate() {
        let data = |frame: &Frame| {
            if number % 2 == 0 { frame.text() } else { frame.json()["data"].as_str().unwrap().to_owned() }
        };
        for text in &texts {
            let frame = socket.next();
            assert!(frame.data.len() < text.len() / 20, "{}", frame.data.len());
            assert_eq!(data(&frame.inflated()), *text);
            assert_eq!(data(&socket.next()), "short");
        }
    }
    // What would be no smaller is left as it is.
    assert_eq!(sockets[0].next(), Frame { head: BINARY, data: noise });
    for socket in [&mut plain, &mut narrow] {
        assert_eq!([socket.next().text(), socket.next().text()], [texts[0].as_str(), "short"]);
    }
    // The other way, too: a client's command is inflated.
    let socket = &mut sockets[1];
    socket.next();
    let mut deflated = Vec::with_capacity(4096);
    let command = json!({"subscribe": "other"}).to_string();
    let mut stream = flate2::Compress::new(flate2::Compression::fast(), false);
    stream.compress_vec(command.as_bytes(), &mut deflated, flate2::FlushCompress::Sync).unwrap();
    socket.send(TEXT | 0x40, &deflated[..deflated.len() - 4]);
    assert_eq!(socket.next().json()["type"], "subscribed");
}

fn what_is_too_old_is_given_up(backend: &str) {
    let (server, _folder) = hub_of(backend, "history = { age = '1s' }", &[]);
    let mut publisher = server.client();
    let mut listener = Socket::told(&server, "/api/v1/listen?topic=kept");
    let bare = server.hubs()[0]["memory_bytes"].as_u64().unwrap();
    let long = "x".repeat(20_000);
    let ids: Vec<_> = (0..40)
        .map(|number| {
            let topic = if number % 2 == 0 { "kept" } else { "left" };
            notify(&mut publisher, &json!({"topic": topic, "data": long}))["id"].as_str().unwrap().to_owned()
        })
        .collect();
    (0..20).for_each(|_| assert_eq!(listener.next().json()["data"], long));
    // Without a word to the hub. Who listens keeps its topic, and that is all that is left.
    until("nothing is left", || {
        let hub = &server.hubs()[0];
        (&hub["messages"], &hub["topics"], &hub["subscribers"]) == (&json!(0), &json!(1), &json!(1))
            && hub["memory_bytes"].as_u64() <= Some(bare)
    });
    for (topic, id) in [("kept", &ids[0]), ("left", &ids[1])] {
        let missed = server.client().get(&format!("/api/v1/listen?topic={topic}&last_event_id={id}"));
        let missed: Value = serde_json::from_str(&missed.text()).unwrap();
        assert_eq!((&missed["messages"], &missed["gaps"][0]["from"]), (&json!([]), &json!(id)));
    }
    // Who has seen all has missed nothing, though it is gone; and numbers are not given again.
    let mut back = Socket::told(&server, &format!("/api/v1/listen?topic=left&last_event_id={}", ids[39]));
    let next = notify(&mut publisher, &json!({"topic": "left", "data": "next"}));
    assert_eq!(back.next().json()["data"], "next");
    assert!(!ids.contains(&next["id"].as_str().unwrap().to_owned()));
}

fn the_same_id_is_one_message(backend: &str) {
    let server = hub(backend, &[]);
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    let mut publisher = server.client();
    let first = notify(&mut publisher, &json!({"data": "once", "id": "order-7"}));
    let again = notify(&mut publisher, &json!({"data": "twice", "id": "order-7"}));
    assert_eq!((again["id"].clone(), again["duplicate"].clone()), (first["id"].clone(), json!(true)));
    notify(&mut publisher, &json!({"data": "next"}));
    assert_eq!([socket.next().text(), socket.next().text()], ["once", "next"]);
    assert_eq!(server.status()["hub_messages"], 2);
}

fn what_breaks_the_rules_is_closed(backend: &str) {
    let server = hub(backend, &[]);
    for (frame, code) in [
        (b"\x81\x05hello".to_vec(), 1002),
        (b"\xf1\x85\0\0\0\0hello".to_vec(), 1002),
        (b"\x83\x80\0\0\0\0".to_vec(), 1002),
        (b"\x09\x80\0\0\0\0".to_vec(), 1002),
        (b"\x81\xff\0\0\0\0\x40\0\0\0\0\0\0\0".to_vec(), 1009),
        (b"\x81\x82\0\0\0\0\xc0\xaf".to_vec(), 1007),
        (b"\x80\x80\0\0\0\0".to_vec(), 1002),
        (b"\x82\x81\0\0\0\0x".to_vec(), 1003),
    ] {
        let mut socket = Socket::open(&server, "/api/v1/listen", "");
        socket.client.send(&frame);
        assert_eq!(socket.expect_close(), code, "{frame:?}");
    }
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    socket.send(PING, b"are you there");
    let pong = socket.next();
    assert_eq!((pong.head, &pong.data[..]), (PONG, &b"are you there"[..]));
    socket.send(CLOSE, &1000_u16.to_be_bytes());
    assert_eq!(socket.expect_close(), 1000);
    // A frame that comes with the request, and a request byte by byte.
    let mut client = server.client();
    client
        .send([request("/api/v1/listen", "").into_bytes(), crate::support::websocket::masked(PING, b"early")].concat());
    client.head().unwrap();
    let mut socket = Socket { client };
    assert_eq!(socket.next().data, b"early");
    let long = "x".repeat(40_000);
    socket.client.send_slowly(crate::support::websocket::masked(PING, b"slow"));
    assert_eq!(socket.next().data, b"slow");
    socket.say(&json!({"subscribe": long}));
    assert_eq!(socket.next().json()["type"], "error");
    // In parts that come at once, with a ping between them.
    let parts = [
        (TEXT & 0x7f, &b"{\"unsubscribe\""[..]),
        (PING, b"between"),
        (0, b":"),
        (0x80, b"\"never\"}"),
        (PING, b"behind"),
    ];
    socket.client.send(parts.map(|(head, data)| masked(head, data)).concat());
    assert_eq!(socket.next().data, b"between");
    assert!(socket.next().json()["reason"].as_str().unwrap().contains("not listened to"));
    assert_eq!(socket.next().data, b"behind");
    let status = server.status();
    assert_eq!(status["hub_closed_protocol"].as_u64().unwrap() + status["hub_closed_size"].as_u64().unwrap(), 8);
    assert_eq!(status["hub_closed_size"], 1);
}

fn who_may_do_what(backend: &str) {
    let server = hub(backend, &[]);
    let mut client = server.client();
    let socket = |lines: &str| {
        let mut client = server.client();
        client.send(request("/api/v1/listen", lines));
        client.head().unwrap()[9..12].to_owned()
    };
    let scheme = if backend.ends_with("tls") { "https" } else { "http" };
    assert_eq!(socket(&format!("Origin: {scheme}://localhost\r\n")), "101");
    assert_eq!(socket("Origin: https://evil.example\r\n"), "403");
    assert_eq!(socket("Origin: null\r\n"), "403");
    // A page of another origin cannot have its visitor publish on his own machine, nor a name that points there.
    let body = r#"{"data":1}"#;
    let publish = |client: &mut Client, lines: &str, host: &str| {
        client
            .ask(&format!("POST /api/v1/notify HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Length: 10\r\n\r\n{body}"))
            .status
    };
    assert_eq!(publish(&mut client, "", "localhost"), 202);
    assert_eq!(publish(&mut client, "Origin: https://evil.example\r\n", "localhost"), 403);
    let mut client = server.client();
    assert_eq!(publish(&mut client, "", "rebound.example"), 401);
    let mut client = server.client();
    assert_eq!(publish(&mut client, "X-Forwarded-For: 10.0.0.1\r\n", "localhost"), 401);
    let mut client = server.client();
    for (request, status) in [
        ("GET /api/v1/notify HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("DELETE /api/v1/listen HTTP/1.1\r\nHost: localhost\r\n\r\n", 405),
        ("GET /api/v1/topics HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        ("GET /api/v1/listen?topic= HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        ("GET /api/v1/other HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
    ] {
        assert_eq!(client.ask(request).status, status, "{request}");
    }
    for (path, allowed) in [("listen", "GET"), ("topics", "GET, HEAD"), ("notify", "POST")] {
        let answer = client.ask(&format!("DELETE /api/v1/{path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
        assert_eq!((answer.status, answer.field("Allow")), (405, Some(allowed)), "{path}");
    }
    for (body, status) in [
        ("", 400),
        ("{", 400),
        (r#"{"data":1,"shout":2}"#, 400),
        (r#"{"topic":"a b","data":1}"#, 404),
        (r#"{"topic":"a"}"#, 400),
    ] {
        assert_eq!(post(&mut server.client(), "/api/v1/notify", body).status, status, "{body}");
    }
    let huge = json!({"data": "x".repeat(70_000)}).to_string();
    assert_eq!(post(&mut server.client(), "/api/v1/notify", &huge).status, 413);
    let old = "GET /api/v1/listen HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let answer = server.client().ask(old);
    assert_eq!((answer.status, answer.field("Sec-WebSocket-Version")), (426, Some("13")));
    assert_eq!(server.client().get("/").text(), "hello");
}

/// Settings that need a file.
pub fn hub_of(backend: &str, keys: &str, flags: &[&str]) -> (Server, tempfile::TempDir) {
    let folder = crate::support::folder();
    let file = folder.path().join("hub.toml");
    std::fs::write(&file, format!("[apps.web]\nrespond = 'hello'\n[hub.live]\n{keys}\n")).unwrap();
    (Server::start(backend, &[&["--config", file.to_str().unwrap()], flags].concat()), folder)
}

fn a_silent_socket_is_pinged_and_cut(backend: &str) {
    let (server, _folder) = hub_of(backend, "ping = '200ms'\npong = '300ms'\npoll = '200ms'", &[]);
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    for _ in 0..3 {
        let ping = socket.next_of_all();
        assert_eq!(ping.head, PING);
        socket.send(PONG, &ping.data);
    }
    let mut listener = stream(&server, "/api/v1/listen", "");
    assert_eq!(event(&mut listener), [":", ""]);
    assert_eq!(event(&mut listener), [":", ""]);
    let empty: Value = serde_json::from_str(&server.client().get("/api/v1/listen").text()).unwrap();
    assert_eq!(empty["messages"], json!([]));
    // One more ping, at most, is not answered.
    let (_, ending) = socket.client.rest();
    until("it is counted", || server.status()["hub_closed_silent"] == 1);
    let _ = ending;
    assert_eq!(server.status()["hub_sockets"], 0);
}

fn whoever_reads_nothing_holds_nobody_up(backend: &str) {
    let (server, _folder) = hub_of(backend, "ping = '10m'", &["--write-timeout", "60s"]);
    let mut deaf: Vec<_> = (0..20).map(|_| Socket::told(&server, "/api/v1/listen")).collect();
    let mut good = Socket::open(&server, "/api/v1/listen", "");
    let mut publisher = server.client();
    let long = "x".repeat(50_000);
    for number in 0..400 {
        notify(&mut publisher, &json!({"data": format!("{number} {long}")}));
        assert_eq!(good.next().text(), format!("{number} {long}"));
    }
    // Each of the deaf is told what it has missed, and goes on from there in order.
    for socket in &mut deaf[..5] {
        let (mut next, mut gaps) = (0_u64, 0);
        while next < 400 {
            let message = socket.next().json();
            if message["type"] == "gap" {
                let offset =
                    |name: &str| message[name].as_str().unwrap().split_once(':').unwrap().1.parse::<u64>().unwrap();
                assert_eq!(offset("from"), next);
                next = offset("to");
                gaps += 1;
            } else {
                let data = message["data"].as_str().unwrap();
                assert_eq!(data.split_once(' ').unwrap().0.parse::<u64>().unwrap(), next);
                next += 1;
            }
        }
        assert!(gaps > 0, "so much fits into no ring");
    }
    // Who has caught up is one of all again.
    notify(&mut publisher, &json!({"data": "next"}));
    deaf[..5].iter_mut().for_each(|socket| assert_eq!(socket.next().json()["data"], "next"));
    assert_eq!(good.next().text(), "next");
}

fn a_stop_sends_all_away(backend: &str) {
    let mut server = hub(backend, &[]);
    let mut sockets: Vec<_> = (0..20).map(|_| Socket::open(&server, "/api/v1/listen", "")).collect();
    let mut listener = stream(&server, "/api/v1/listen", "");
    let mut waiting = server.client();
    waiting.begin("/api/v1/listen");
    until("it waits", || server.status()["hub_polls"] == 1);
    // What is under way goes on.
    let mut late = server.client();
    late.send("POST /api/v1/notify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{");
    until("it is under way", || server.status()["connection_states"]["processing"] == 1);
    server.signal("TERM");
    for socket in &mut sockets {
        assert_eq!(socket.expect_close(), 1012);
    }
    let status = server.status();
    assert_eq!((&status["hub_closed_restart"], &status["hub_closed"]), (&json!(20), &json!(0)));
    late.send("\"data\":1}");
    assert_eq!(late.answer().status, 202);
    assert!(event(&mut listener)[0].starts_with("retry: "));
    assert_eq!(listener.line().as_deref(), Some("0"));
    assert_eq!(waiting.answer().status, 200);
    assert!(server.ended().success());
}

fn a_reload_closes_nothing(backend: &str) {
    let (server, folder) = hub_of(backend, "topics = ['a', 'b']", &[]);
    let mut socket = Socket::told(&server, "/api/v1/listen?topic=a");
    let mut publisher = server.client();
    let first = notify(&mut publisher, &json!({"topic": "a", "data": 1}));
    assert_eq!(socket.next().json()["data"], 1);
    assert_eq!(post(&mut publisher, "/api/v1/notify", r#"{"topic":"c","data":1}"#).status, 404);
    let file = folder.path().join("hub.toml");
    std::fs::write(&file, "[apps.web]\nrespond = 'other'\n[hub.live]\ntopics = ['a', 'c']\n").unwrap();
    let run = server.run().display().to_string();
    let reload = std::process::Command::new(PROGRAM).args(["reload", "--wait", "--run-dir", &run]).output().unwrap();
    assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
    assert_eq!(server.client().get("/").text(), "other");
    notify(&mut publisher, &json!({"topic": "c", "data": 1}));
    notify(&mut publisher, &json!({"topic": "a", "data": 2}));
    assert_eq!(socket.next().json()["data"], 2);
    let target = format!("/api/v1/listen?topic=a&last_event_id={}", first["id"].as_str().unwrap());
    assert_eq!(Socket::open(&server, &target, "").next().text(), "2");
    // What is said of clients' messages holds for who was there before, too.
    std::fs::write(&file, "[apps.web]\nrespond = 'other'\n[hub.live]\ntopics_per_socket = 1\nmessage = 30\n").unwrap();
    let reload = std::process::Command::new(PROGRAM).args(["reload", "--wait", "--run-dir", &run]).output().unwrap();
    assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
    socket.say(&json!({"subscribe": "x"}));
    assert!(socket.next().json()["reason"].as_str().unwrap().contains("one topic more"));
    socket.say(&json!({"subscribe": "a long name of a topic"}));
    assert_eq!(socket.expect_close(), 1009);
}

fn loops_tell_each_other(backend: &str) {
    let server = hub(backend, &["--loops", "3"]);
    let mut sockets: Vec<_> = (0..30).map(|_| Socket::told(&server, "/api/v1/listen")).collect();
    let mut publishers: Vec<_> = (0..6).map(|_| server.client()).collect();
    for number in 0..60 {
        let said = notify(&mut publishers[number % 6], &json!({"data": number}));
        assert_eq!(said["subscribers"], 30);
    }
    for socket in &mut sockets {
        for number in 0..60 {
            assert_eq!(socket.next().json()["data"], number);
        }
    }
}

fn a_crowd_gets_every_message(backend: &str) {
    let server = hub(backend, &["--loops", "2"]);
    let mut sockets: Vec<_> = (0..1000).map(|_| Socket::open(&server, "/api/v1/listen", "")).collect();
    let mut publisher = server.client();
    for number in 0..50 {
        notify(&mut publisher, &json!({"data": number}));
        if number % 10 == 5 {
            // Who leaves in the middle of it takes nothing from the others.
            drop(sockets.swap_remove(number * 7));
            sockets.swap_remove(number * 3).client.reset();
        }
    }
    for socket in &mut sockets {
        for number in 0..50 {
            assert_eq!(socket.next().text(), number.to_string());
        }
    }
    until("those that have left are gone", || server.status()["hub_sockets"] == 990);
}

fn the_control_socket_publishes_too(backend: &str) {
    let (server, _folder) = hub_of(backend, "[hub.other]\npath = '/other'", &[]);
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    let notify = |body: &str| {
        let mut control = std::os::unix::net::UnixStream::connect(server.run().join("control.sock")).unwrap();
        let request = format!(
            "POST /notify HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        control.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        control.read_to_string(&mut answer).unwrap();
        (answer[9..12].to_owned(), answer)
    };
    let (status, answer) = notify(r#"{"hub":"live","data":{"n":1.50}}"#);
    assert!(status == "200" && answer.contains("\"subscribers\":1"), "{answer}");
    assert_eq!(socket.next().text(), r#"{"n":1.50}"#);
    for (body, status) in [
        (r#"{"data":1}"#, "404"),
        (r#"{"hub":"none","data":1}"#, "404"),
        (r#"{"hub":"live"}"#, "400"),
        (r#"{"hub":"live","topic":"a b","data":1}"#, "422"),
    ] {
        assert_eq!(notify(body).0, status, "{body}");
    }
    assert_eq!(post(&mut server.client(), "/api/v1/notify", r#"{"hub":"live","data":1}"#).status, 400);
}
