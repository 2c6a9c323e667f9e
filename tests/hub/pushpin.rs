//! Apps that speak `application/websocket-events`, as they do behind Pushpin.

use std::sync::{Arc, Mutex};

use serde_json::json;

use super::notify;
use crate::support::websocket::{BINARY, CLOSE, Frame, PONG, Socket, TEXT, request};
use crate::support::{Server, Worker, fields, on_every_backend, until};

on_every_backend! {
    an_app_hears_and_answers_in_events
    an_app_lets_in_by_open_alone
    an_app_ends_what_it_hears_or_all_of_a_socket
    what_an_app_answers_wrong_closes_nothing
}

const MEDIA: &str = "application/websocket-events";

fn event(name: &str, content: &[u8]) -> Vec<u8> {
    [format!("{name} {:x}\r\n", content.len()).as_bytes(), content, b"\r\n"].concat()
}

fn text(content: &str) -> Vec<u8> {
    event("TEXT", content.as_bytes())
}

/// An app that answers by a script: head and body, to further lines of the answer's head, and its body; or another status.
fn with_app(
    backend: &str,
    script: impl Fn(&str, &[u8]) -> Result<(&'static str, Vec<u8>), u16> + Send + Sync + 'static,
) -> (Server, Worker, tempfile::TempDir) {
    let worker = Worker::new(move |incoming| {
        while let Some((head, body)) = incoming.request() {
            let answer = match script(&head, &body) {
                Ok((lines, body)) => {
                    let begin = format!("HTTP/1.1 200 OK\r\nContent-Type: {MEDIA}\r\n");
                    [format!("{begin}{lines}Content-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat()
                }
                Err(status) => format!("HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno").into_bytes(),
            };
            incoming.send(&answer);
        }
    });
    let folder = crate::support::folder();
    let file = folder.path().join("hub.toml");
    let text =
        format!("[apps.web]\nupstream = ['{}']\n[hub.live]\napp = 'web'\ndialect = 'websocket-events'\n", worker.url);
    std::fs::write(&file, text).unwrap();
    (Server::start(backend, &["--config", file.to_str().unwrap()]), worker, folder)
}

/// The app of a test that speaks GRIP, and has `open` of its own.
fn grip(open: Vec<u8>) -> impl Fn(&str, &[u8]) -> Result<(&'static str, Vec<u8>), u16> {
    move |_, body| match body {
        b"OPEN\r\n" => Ok(("Sec-WebSocket-Extensions: grip\r\n", [b"OPEN\r\n", &open[..]].concat())),
        body if body.starts_with(b"TEXT ") || body.starts_with(b"BINARY ") => {
            let said = body.splitn(2, |byte| *byte == b'\n').nth(1).unwrap().strip_suffix(b"\r\n").unwrap();
            Ok(("", said.to_vec()))
        }
        _ => Ok(("", Vec::new())),
    }
}

fn an_app_hears_and_answers_in_events(backend: &str) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (kept, all) = (seen.clone(), seen.clone());
    let (server, _worker, _folder) = with_app(backend, move |head, body| {
        kept.lock().unwrap().push((head.to_owned(), body.to_vec()));
        if body == b"OPEN\r\n" {
            let events = [
                b"OPEN\r\n".to_vec(),
                text(r#"c:{"type": "subscribe", "channel": "room"}"#),
                text("m:welcome"),
                text("nobody's"),
            ];
            return Ok(("Sec-WebSocket-Extensions: grip\r\nSet-Meta-User: anna\r\n", events.concat()));
        }
        Ok(match body {
            b"TEXT 5\r\nhello\r\n" => ("", [text("m:and you"), event("BINARY", b"m:\0\xff")].concat()),
            b"TEXT 5\r\nleave\r\n" => ("Set-Meta-User:\r\n", text(r#"c:{"type": "unsubscribe", "channel": "room"}"#)),
            _ => ("", Vec::new()),
        })
    });
    let lines = "Cookie: who=anna\r\nMeta-User: eve\r\nConnection-Id: 7\r\nAccept: */*\r\n";
    let mut socket = Socket::open(&server, "/api/v1/listen?topic=a", lines);
    assert_eq!(socket.next().text(), "welcome");
    notify(&mut server.client(), &json!({"topic": "room", "data": "to the room"}));
    assert_eq!(socket.next().text(), "to the room");
    socket.send(TEXT, b"hello");
    assert_eq!(socket.next().text(), "and you");
    assert_eq!(socket.next(), Frame { head: BINARY, data: vec![0, 255] });
    socket.send(BINARY, b"\r\n\0");
    socket.send(TEXT, b"leave");
    until("it has left", || seen.lock().unwrap().len() == 4);
    socket.send(CLOSE, &[0x0f, 0xa0]);
    assert_eq!(socket.expect_close(), 4000);
    drop(Socket::open(&server, "/api/v1/listen", ""));
    until("all has been told", || seen.lock().unwrap().len() == 7);
    let seen = seen.lock().unwrap();
    let told: Vec<_> = seen.iter().map(|(_, body)| &body[..]).collect();
    let close = event("CLOSE", &[0x0f, 0xa0]);
    let expected: [&[u8]; 7] = [
        b"OPEN\r\n",
        b"TEXT 5\r\nhello\r\n",
        b"BINARY 3\r\n\r\n\0\r\n",
        b"TEXT 5\r\nleave\r\n",
        &close,
        b"OPEN\r\n",
        b"DISCONNECT\r\n",
    ];
    assert_eq!(told, expected);
    let open = &seen[0].0;
    assert!(open.starts_with("POST /v1/realtime HTTP/1.1\r\n") && open.contains("\r\nCookie: who=anna\r\n"), "{open}");
    assert_eq!(fields(open, "x-socket-target"), ["/api/v1/listen?topic=a"]);
    assert_eq!(fields(open, "sec-websocket-extensions"), ["grip"]);
    let of = |index: usize, name: &str| fields(&seen[index].0, name).concat();
    let id = of(0, "x-socket-id");
    for index in 0..5 {
        assert_eq!([of(index, "content-type"), of(index, "accept")], [MEDIA, MEDIA], "{index}");
        assert_eq!([of(index, "connection-id"), of(index, "x-socket-id")], [&id[..], &id], "{index}");
    }
    // What the app has kept comes back until it takes it away, and nothing that a client says so.
    let kept: Vec<_> = (0..5).map(|index| of(index, "meta-user")).collect();
    assert_eq!(kept, ["", "anna", "anna", "anna", ""]);
    // Nor does a request of a client bear the name of a socket.
    drop(seen);
    let forged = "POST /v1/realtime HTTP/1.1\r\nHost: localhost\r\nConnection-Id: 7\r\nContent-Length: 0\r\n\r\n";
    server.client().ask(forged);
    let seen = all.lock().unwrap();
    assert!(!seen.last().unwrap().0.to_lowercase().contains("connection-id"), "{seen:?}");
}

fn an_app_lets_in_by_open_alone(backend: &str) {
    let (server, _worker, _folder) = with_app(backend, |head, _| match &fields(head, "x-socket-target").concat()[..] {
        "/api/v1/listen?topic=403" => Err(403),
        "/api/v1/listen?topic=500" => Err(500),
        "/api/v1/listen?topic=empty" => Ok(("", Vec::new())),
        "/api/v1/listen?topic=text" => Ok(("", text("hello"))),
        "/api/v1/listen?topic=broken" => Ok(("", b"OPEN\r\nTEXT 9\r\nx\r\n".to_vec())),
        _ => Ok(("", b"OPEN\r\n".to_vec())),
    });
    for (topic, status) in [("403", 403), ("500", 503), ("empty", 502), ("text", 502), ("broken", 502), ("a", 101)] {
        let mut client = server.client();
        client.send(request(&format!("/api/v1/listen?topic={topic}"), ""));
        let head = client.head().unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{topic}: {head}");
    }
}

fn an_app_ends_what_it_hears_or_all_of_a_socket(backend: &str) {
    let (server, worker, _folder) = with_app(backend, grip(Vec::new()));
    let open = || Socket::open(&server, "/api/v1/listen?topic=a", "");
    let mut socket = open();
    socket.send(BINARY, &event("CLOSE", &[&4001_u16.to_be_bytes()[..], b"enough"].concat()));
    assert_eq!(socket.expect_close(), 4001);
    let mut socket = open();
    socket.send(TEXT, b"DISCONNECT\r\n");
    assert!(socket.client.rest().0.is_empty());
    let mut socket = open();
    socket.send(TEXT, &[text("m:before"), b"PING 1\r\nx\r\nPONG\r\n".to_vec(), text("m:behind")].concat());
    assert_eq!(socket.next_of_all().text(), "before");
    assert_eq!(socket.next_of_all(), Frame { head: crate::support::websocket::PING, data: b"x".to_vec() });
    assert_eq!(socket.next_of_all(), Frame { head: PONG, data: Vec::new() });
    assert_eq!(socket.next_of_all().text(), "behind");
    socket.send(TEXT, &[text(r#"c:{"type": "detach"}"#), text("m:bye")].concat());
    assert_eq!(socket.next().text(), "bye");
    // It listens on, and can say nothing to anybody any more.
    socket.send(TEXT, b"is anybody there?");
    socket.send(TEXT, br#"{"subscribe": "secret"}"#);
    socket.send(crate::support::websocket::PING, b"p");
    assert_eq!(socket.next().head, PONG);
    notify(&mut server.client(), &json!({"topic": "secret", "data": "not for it"}));
    notify(&mut server.client(), &json!({"topic": "a", "data": "hello"}));
    assert_eq!(socket.next().text(), "hello");
    socket.send(CLOSE, b"");
    socket.expect_close();
    let mut last = open();
    last.send(TEXT, &text("m:last"));
    assert_eq!(last.next().text(), "last");
    let everything = String::from_utf8_lossy(&worker.everything()).into_owned();
    assert!(!everything.contains("is anybody there?") && !everything.contains("subscribe\": \"secret"), "{everything}");
    // The end of the detached one is none of the app's business: two were ended by it, and each is told of as such.
    assert!(!everything.contains("CLOSE\r\n"), "{everything}");
}

fn what_an_app_answers_wrong_closes_nothing(backend: &str) {
    let (server, _worker, _folder) = with_app(backend, grip(Vec::new()));
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    for wrong in ["TEXT 5\r\nx", "WHAT\r\n", "OPEN\r\n", "TEXT 4\r\nc:{}\r\n", "\r\n"] {
        socket.send(TEXT, wrong.as_bytes());
        assert_eq!(socket.next().json()["type"], "error", "{wrong:?}");
    }
    assert_eq!(server.status()["hub_events_failed"], 5);
    socket.send(TEXT, &text("m:still there"));
    assert_eq!(socket.next().text(), "still there");
}
