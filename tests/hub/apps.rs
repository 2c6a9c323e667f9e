//! Apps that take part in a hub: they are told of what happens on sockets, and say what is to be done.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::{event, notify, stream};
use crate::support::websocket::{BINARY, CLOSE, Socket, TEXT, masked, request};
use crate::support::{Server, Worker, fields, on_every_backend_and_tls, until};

on_every_backend_and_tls! {
    an_app_is_told_of_what_happens_on_sockets
    an_app_says_who_gets_what
    an_app_says_who_may_come
    topics_that_an_app_joins_are_no_part_of_an_id
    one_event_of_a_socket_at_a_time
    an_app_that_fails_closes_nothing
}

/// An app that answers each event by a script: what the event was, its head and its body, to the content type and the body of the answer, or
/// another status.
pub fn with_app(
    backend: &str,
    keys: &str,
    script: impl Fn(&str, &str, &[u8]) -> Result<(&'static str, Vec<u8>), u16> + Send + Sync + 'static,
) -> (Server, Worker, tempfile::TempDir) {
    let worker = Worker::new(move |incoming| {
        while let Some((head, body)) = incoming.request() {
            let Some(frame) = fields(&head, "sec-websocket-frame").first().map(|frame| (*frame).to_owned()) else {
                incoming.respond(b"a page");
                continue;
            };
            assert!(head.starts_with("POST /v1/realtime HTTP/1.1\r\n"), "{head}");
            let answer = match script(&frame, &head, &body) {
                Ok((media, body)) => {
                    let head =
                        format!("HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nContent-Length: {}\r\n\r\n", body.len());
                    [head.as_bytes(), &body].concat()
                }
                Err(0) => return,
                Err(status) => format!("HTTP/1.1 {status} No\r\nContent-Length: 2\r\n\r\nno").into_bytes(),
            };
            incoming.send(&answer);
        }
    });
    let folder = crate::support::folder();
    let file = folder.path().join("hub.toml");
    let text = format!("[apps.web]\nupstream = ['{}']\n[hub.live]\napp = 'web'\n{keys}\n", worker.url);
    std::fs::write(&file, text).unwrap();
    (Server::start(backend, &["--config", file.to_str().unwrap()]), worker, folder)
}

pub const JSON: &str = "application/json";

fn an_app_is_told_of_what_happens_on_sockets(backend: &str) {
    let (server, worker, _folder) = with_app(backend, "", |frame, head, body| match frame {
        "open" => {
            assert!(head.contains("\r\nCookie: who=anna\r\n"), "{head}");
            assert!(head.contains("\r\nX-Socket-Target: /api/v1/listen?topic=a\r\n"), "{head}");
            assert!(!head.to_lowercase().contains("sec-websocket-key"), "{head}");
            Ok((JSON, br#"{"welcome": "anna"}"#.to_vec()))
        }
        "text" => Ok(("text/plain", body.to_vec())),
        "binary" => Ok(("application/octet-stream", body.to_vec())),
        _ => Ok((JSON, Vec::new())),
    });
    let mut socket = Socket::open(&server, "/api/v1/listen?topic=a", "Cookie: who=anna\r\n");
    assert_eq!(socket.next().text(), r#"{"welcome":"anna"}"#);
    socket.send(TEXT, "grüße".as_bytes());
    assert_eq!(socket.next().text(), "grüße");
    socket.send(BINARY, &[0, 255, 1]);
    let frame = socket.next();
    assert_eq!((frame.head, &frame.data[..]), (BINARY, &[0, 255, 1][..]));
    socket.send(TEXT, b"");
    // An empty answer says nothing, and the next one comes.
    let long = "x".repeat(60_000);
    socket.send(TEXT, long.as_bytes());
    assert_eq!(socket.next().text(), long);
    socket.send(CLOSE, &[&3007_u16.to_be_bytes()[..], b"bye"].concat());
    assert_eq!(socket.expect_close(), 3007);
    until("the app is told of the end", || {
        String::from_utf8_lossy(&worker.everything()).contains("Sec-WebSocket-Frame: close")
    });
    let all = String::from_utf8_lossy(&worker.everything()).into_owned();
    assert!(all.contains("X-Socket-Close: 3007\r\n"), "{all}");
    for frame in ["text", "close"] {
        let behind = all.split(&format!("Sec-WebSocket-Frame: {frame}\r\n")).nth(1).unwrap();
        assert!(behind.split("\r\n\r\n").next().unwrap().contains("X-Socket-Groups: a\r\n"), "{behind}");
    }
    let id = fields(&all, "x-socket-id")[0].to_owned();
    assert!(fields(&all, "x-socket-id").iter().all(|other| *other == id));
    let mut gone = Socket::open(&server, "/api/v1/listen?topic=a", "Cookie: who=anna\r\n");
    gone.next();
    gone.client.reset();
    until("the app is told of that end, too", || {
        String::from_utf8_lossy(&worker.everything()).contains("X-Socket-Close: 1006")
    });
    until("nothing is left", || server.status()["active_connections"] == 0);
    assert_eq!(server.client().get("/").text(), "a page");
}

/// The messages of that kind that a socket gets next.
fn texts(socket: &mut Socket, count: usize) -> Vec<String> {
    (0..count).map(|_| socket.next().text()).collect()
}

fn an_app_says_who_gets_what(backend: &str) {
    let (server, _worker, _folder) = with_app(backend, "", |frame, head, body| {
        let id = fields(head, "x-socket-id")[0].to_owned();
        let said = String::from_utf8_lossy(body).into_owned();
        let answer = match (frame, said.as_str()) {
            ("open", _) => json!({"+": ["/lobby", "anna"], "id": id}),
            (_, "all") => json!({"@": ["/lobby"], "chat": {"text": "to all"}}),
            (_, "others") => json!({"@": "/lobby", ">": [id], "chat": "to others"}),
            (_, "leave") => json!({"-": ["/lobby"], "left": true}),
            (_, "close") => json!({"!": {"code": 4001, "reason": "enough"}}),
            (_, "nothing") => json!({}),
            (_, other) => json!({"@": [other], "direct": 1}),
        };
        Ok((JSON, answer.to_string().into_bytes()))
    });
    let mut sockets: Vec<_> = (0..3).map(|_| Socket::open(&server, "/api/v1/listen?topic=own", "")).collect();
    let ids: Vec<String> =
        sockets.iter_mut().map(|socket| socket.next().json()["id"].as_str().unwrap().to_owned()).collect();
    sockets[0].send(TEXT, b"all");
    for socket in &mut sockets {
        assert_eq!(texts(socket, 1), [r#"{"chat":{"text":"to all"}}"#]);
    }
    sockets[0].send(TEXT, b"others");
    for socket in &mut sockets[1..] {
        assert_eq!(texts(socket, 1), [r#"{"chat":"to others"}"#]);
    }
    sockets[1].send(TEXT, ids[0].as_bytes());
    // What was not for it has not come before.
    assert_eq!(texts(&mut sockets[0], 1), [r#"{"direct":1}"#]);
    sockets[2].send(TEXT, b"leave");
    assert_eq!(texts(&mut sockets[2], 1), [r#"{"left":true}"#]);
    sockets[2].send(TEXT, b"nothing");
    sockets[0].send(TEXT, b"all");
    texts(&mut sockets[0], 1);
    sockets[0].send(TEXT, b"anna");
    assert_eq!(texts(&mut sockets[2], 1), [r#"{"direct":1}"#], "it has left the lobby, and is still anna");
    // Who is not there is nobody's fault.
    sockets[0].send(TEXT, b"0-7fff-1");
    sockets[0].send(TEXT, b"ffff-7fff-1");
    sockets[0].send(TEXT, b"close");
    texts(&mut sockets[0], 1);
    assert_eq!(sockets[0].expect_close(), 4001);
    // What others publish reaches them, too.
    let mut publisher = server.client();
    assert_eq!(notify(&mut publisher, &json!({"topic": "/lobby", "data": "news"}))["subscribers"], 1);
    assert_eq!(texts(&mut sockets[1], 3)[2], "news");
}

fn an_app_says_who_may_come(backend: &str) {
    let (server, _worker, _folder) = with_app(backend, "", |frame, head, _| match (frame, head) {
        ("open", head) if head.contains("Cookie: anna") => Ok((JSON, b"{}".to_vec())),
        ("open", head) if head.contains("Cookie: broken") => Err(500),
        ("open", _) => Err(403),
        _ => Ok((JSON, Vec::new())),
    });
    let status = |lines: &str, accept: &str| {
        let mut client = server.client();
        match accept {
            "" => client.send(request("/api/v1/listen", lines)),
            accept => client.send(format!("GET /api/v1/listen HTTP/1.1\r\nHost: a\r\nAccept: {accept}\r\n{lines}\r\n")),
        }
        client.head().unwrap()[9..12].to_owned()
    };
    for accept in ["", "text/event-stream", "application/json"] {
        assert_eq!(status("", accept), "403", "{accept}");
        assert_eq!(status("Cookie: broken\r\n", accept), "503", "{accept}");
    }
    assert_eq!(status("Cookie: anna\r\n", "text/event-stream"), "200");
    let mut socket = Socket::open(&server, "/api/v1/listen", "Cookie: anna\r\n");
    notify(&mut server.client(), &json!({"data": 1}));
    assert_eq!(socket.next().text(), "1");
    let mut refused = server.client();
    refused.send(request("/api/v1/listen", "").as_bytes());
    assert_eq!(refused.answer().status, 403);
    assert_eq!(refused.get("/").text(), "a page", "the connection goes on");
}

/// Who comes back names the topics that it has named before, and not those that the app has it join.
fn topics_that_an_app_joins_are_no_part_of_an_id(backend: &str) {
    let (server, _worker, _folder) = with_app(backend, "", |_, _, _| Ok((JSON, br#"{"+": ["own"]}"#.to_vec())));
    let mut listener = stream(&server, "/api/v1/listen", "");
    let mut publisher = server.client();
    until("the app has it join", || notify(&mut publisher, &json!({"topic": "own", "data": 1}))["subscribers"] == 1);
    let one = notify(&mut publisher, &json!({"data": "one"}))["id"].as_str().unwrap().to_owned();
    notify(&mut publisher, &json!({"data": "two"}));
    let mut last = event(&mut listener);
    while last[1] != "data: one" {
        last = event(&mut listener);
    }
    assert_eq!(last[0], format!("id: {one}"));
    let mut back = stream(&server, "/api/v1/listen", &format!("Last-Event-ID: {one}\r\n"));
    assert_eq!(event(&mut back)[1], "data: two");
}

fn one_event_of_a_socket_at_a_time(backend: &str) {
    let (seen, at_once) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let (kept, counted) = (seen.clone(), at_once.clone());
    let (server, _worker, _folder) = with_app(backend, "", move |frame, _, body| {
        if frame == "text" {
            assert_eq!(counted.fetch_add(1, Ordering::SeqCst), 0, "two at once");
            kept.lock().unwrap().push(String::from_utf8_lossy(body).into_owned());
            std::thread::sleep(std::time::Duration::from_millis(1));
            counted.fetch_sub(1, Ordering::SeqCst);
        }
        Ok((JSON, Vec::new()))
    });
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    let all: Vec<u8> = (0..100).flat_map(|number| masked(TEXT, format!("{number}").as_bytes())).collect();
    socket.client.send(&all);
    // In mid-flow it leaves: what it has said before is still to reach the app, as far as it was read, and its end comes last.
    until("most have come", || seen.lock().unwrap().len() > 50);
    until("all have come", || seen.lock().unwrap().len() == 100);
    let expected: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(*seen.lock().unwrap(), expected);
}

fn an_app_that_fails_closes_nothing(backend: &str) {
    let (server, worker, _folder) = with_app(backend, "", |frame, _, body| match (frame, body) {
        ("text", b"die") => Err(0),
        ("text", b"fail") => Err(500),
        ("text", b"nonsense") => Ok((JSON, b"{".to_vec())),
        ("text", body) => Ok(("text/plain", body.to_vec())),
        _ => Ok((JSON, b"{}".to_vec())),
    });
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    for said in ["die", "fail", "nonsense"] {
        socket.send(TEXT, said.as_bytes());
        assert_eq!(socket.next().json()["type"], "error", "{said}");
        socket.send(TEXT, b"still there");
        assert_eq!(socket.next().text(), "still there");
    }
    drop(worker);
    notify(&mut server.client(), &json!({"data": "topics go on"}));
    assert_eq!(socket.next().text(), "topics go on");
}
