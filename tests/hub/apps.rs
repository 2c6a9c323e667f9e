//! Apps that take part in a hub: they are told of what happens on sockets, and say what is to be done.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;

use super::{event, notify, stream, stream_from};
use crate::support::websocket::{BINARY, CLOSE, Frame, PING, PONG, Socket, TEXT, masked, request};
use crate::support::{Client, Server, Worker, fields, on_every_backend_and_tls, until};

on_every_backend_and_tls! {
    an_app_is_told_of_what_happens_on_sockets
    nobody_says_to_an_app_what_another_app_says_of_clients
    an_app_says_who_gets_what
    an_app_says_who_may_come
    who_comes_back_comes_back_to_what_an_app_has_joined
    a_topic_that_is_left_takes_nothing_from_the_others
    an_app_reaches_sockets_of_its_own_hub_alone
    what_is_said_to_many_is_there_once
    a_ping_is_answered_while_the_app_has_its_turn
    all_events_name_the_client_that_a_proxy_has_named
    one_event_of_a_socket_at_a_time
    an_app_that_fails_closes_nothing
    a_topic_that_is_not_joined_is_said
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
                Err(1) => b"HTTP/1.1 503 No\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n".to_vec(),
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
    assert_eq!(socket.next().text(), "", "an empty text is a message");
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

/// On a route of a hub that asks nobody, too.
fn nobody_says_to_an_app_what_another_app_says_of_clients(backend: &str) {
    let asks = "[[routes]]\nmatch.path = '/asks'\napp = 'web'\nforward_auth = { app = 'web', copy = ['X-Tenant'] }\n\
                [[routes]]\nmatch.path = '/hub/*'\nhub = 'live'\n[[routes]]\napp = 'web'";
    let (server, worker, _folder) = with_app(backend, asks, |_, _, _| Ok((JSON, br#"{"welcome": "anna"}"#.to_vec())));
    let claims = "X-Tenant: mine\r\nX_Tenant: mine\r\nX-Auth-User: mine\r\nX-Socket-Id: mine\r\nX-Other: own\r\n";
    let mut socket = Socket::open(&server, "/hub/listen?topic=a", claims);
    assert_eq!(socket.next().text(), r#"{"welcome":"anna"}"#);
    let told = String::from_utf8_lossy(&worker.everything()).into_owned();
    assert!(told.contains("\r\nX-Other: own\r\n") && !told.contains("mine"), "{told}");
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
    let (server, worker, _folder) = with_app(backend, "", |frame, head, _| match (frame, head) {
        ("open", head) if head.contains("Cookie: busy") => Err(1),
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
        assert_eq!(status("Cookie: busy\r\n", accept), "503", "{accept}");
    }
    // Who is alone and has not looked at it is asked once more.
    assert_eq!(String::from_utf8_lossy(&worker.everything()).matches("Cookie: busy").count(), 6);
    assert_eq!(status("Cookie: anna\r\n", "text/event-stream"), "200");
    let mut socket = Socket::open(&server, "/api/v1/listen", "Cookie: anna\r\n");
    notify(&mut server.client(), &json!({"data": 1}));
    assert_eq!(socket.next().text(), "1");
    let mut refused = server.client();
    refused.send(request("/api/v1/listen", "").as_bytes());
    assert_eq!(refused.answer().status, 403);
    assert_eq!(refused.get("/").text(), "a page", "the connection goes on");
}

/// The events of a stream up to that one, without those that only say where it is.
fn events_until(listener: &mut Client, last: &str) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    while all.last().is_none_or(|event: &Vec<String>| !event.iter().any(|line| line == last)) {
        all.extend(Some(event(listener)).filter(|event| event.iter().any(|line| line.starts_with("data: "))));
    }
    all
}

fn datas(events: &[Vec<String>]) -> Vec<&str> {
    let mut datas: Vec<_> = events.iter().flatten().filter_map(|line| line.strip_prefix("data: ")).collect();
    datas.sort_unstable();
    datas
}

/// Topics that the app has a client join are a part of what it comes back with, and said to be missing where they are not.
fn who_comes_back_comes_back_to_what_an_app_has_joined(backend: &str) {
    let (server, _worker, _folder) = with_app(backend, "", |_, _, _| Ok((JSON, br#"{"+": ["own"]}"#.to_vec())));
    let (mut listener, begin) = stream_from(&server, "/api/v1/listen", "");
    // Where it is in both, though nothing has come.
    assert_eq!(begin.matches('~').count(), 2, "{begin}");
    let mut publisher = server.client();
    let mut say = |topic: &str, data: &str| {
        notify(&mut publisher, &json!({"topic": topic, "data": data}))["id"].as_str().unwrap().to_owned()
    };
    let alone = say("broadcast", "one");
    say("own", "own one");
    let seen = [events_until(&mut listener, "data: own one")].concat();
    drop(listener);
    say("own", "own two");
    say("broadcast", "two");
    let back = |id: &str| stream(&server, "/api/v1/listen", &format!("Last-Event-ID: {id}\r\n"));
    let last = seen.last().unwrap()[0].strip_prefix("id: ").unwrap();
    let mut listener = back(last);
    let mut got = events_until(&mut listener, "data: own two");
    assert_eq!(datas(&got), ["own two", "two"]);
    // A client may name the topics itself.
    let (epoch, offset) = alone.split_once(':').unwrap();
    got = events_until(&mut back(&format!("{epoch}:own=1,broadcast={offset}")), "data: own two");
    assert_eq!(datas(&got), ["own two", "two"]);
    got = events_until(&mut back(&alone), "data: own two");
    let gaps: Vec<_> = got.iter().filter(|event| event.contains(&"event: gap".to_owned())).collect();
    assert!(gaps.len() == 1 && gaps[0].concat().contains("\"topic\":\"own\""), "{got:?}");
    let mut told = Socket::told(&server, "/api/v1/listen");
    assert_eq!(told.next().json()["topic"], "own", "it is told what it listens to");
}

/// An id of several topics knows them by their names: one that was left moves no other.
fn a_topic_that_is_left_takes_nothing_from_the_others(backend: &str) {
    let (server, _worker, _folder) = with_app(backend, "", |_, _, _| Ok((JSON, br#"{"-": ["b"]}"#.to_vec())));
    let target = "/api/v1/listen?topic=a,b,c,d";
    let mut listener = stream(&server, target, "");
    let mut publisher = server.client();
    let mut say = |topic: &str, data: &str| drop(notify(&mut publisher, &json!({"topic": topic, "data": data})));
    until("it has left", || server.hubs()[0]["subscribers"] == 3);
    ["a", "d", "c"].iter().for_each(|topic| say(topic, topic));
    let seen = events_until(&mut listener, "data: c");
    let last = seen.last().unwrap()[0].strip_prefix("id: ").unwrap().to_owned();
    drop(listener);
    ["d", "c", "a"].iter().for_each(|topic| say(topic, &format!("{topic} two")));
    let mut listener = stream(&server, target, &format!("Last-Event-ID: {last}\r\n"));
    let (mut got, mut messages) = (Vec::new(), Vec::new());
    while messages.len() < 3 {
        got.push(event(&mut listener));
        messages.extend(got.last().filter(|event| event.iter().any(|line| line.ends_with(" two"))).cloned());
    }
    assert_eq!(datas(&messages), ["a two", "c two", "d two"]);
    assert!(
        got.iter().flatten().all(|line| !line.contains("\"topic\":") || line.contains("\"topic\":\"b\"")),
        "{got:?}"
    );
}

/// An app that sends what follows the first space to the socket or topic that is named before it, and tells each socket its id.
fn post_office(backend: &str, keys: &str) -> (Server, Worker, tempfile::TempDir) {
    with_app(backend, keys, |frame, head, body| match frame {
        "open" => Ok((JSON, json!({"id": fields(head, "x-socket-id")[0]}).to_string().into_bytes())),
        "text" => {
            let said = String::from_utf8_lossy(body).into_owned();
            let (to, text) = said.split_once(' ').unwrap();
            Ok((JSON, json!({"@": to.split(',').collect::<Vec<_>>(), "said": text}).to_string().into_bytes()))
        }
        _ => Ok((JSON, Vec::new())),
    })
}

fn open_with_id(server: &Server, target: &str) -> (Socket, String) {
    let mut socket = Socket::open(server, target, "");
    let id = socket.next().json()["id"].as_str().unwrap().to_owned();
    (socket, id)
}

fn an_app_reaches_sockets_of_its_own_hub_alone(backend: &str) {
    let (server, _worker, _folder) = post_office(backend, "[hub.other]\napp = 'web'\npath = '/other'");
    let (mut one, id) = open_with_id(&server, "/api/v1/listen");
    let (mut other, other_id) = open_with_id(&server, "/other/listen");
    let (place, token) = id.rsplit_once('-').unwrap();
    assert_eq!(token.len(), 12);
    let guessed = format!("{place}-{:012x}", u64::from_str_radix(token, 16).unwrap() ^ 1);
    for (to, text) in [(&other_id, "of another hub"), (&guessed, "guessed"), (&id, "its own")] {
        one.send(TEXT, format!("{to} {text}").as_bytes());
    }
    assert_eq!(one.next().json()["said"], "its own");
    other.send(TEXT, format!("{other_id} its own").as_bytes());
    assert_eq!(other.next().json()["said"], "its own");
}

fn what_is_said_to_many_is_there_once(backend: &str) {
    let (server, _worker, _folder) = post_office(backend, "message = '1MiB'");
    let (_deaf, id) = open_with_id(&server, "/api/v1/listen");
    let (mut other, _) = open_with_id(&server, "/api/v1/listen");
    let before = server.peak_bytes();
    other.send(TEXT, format!("{} {}", vec![id.as_str(); 3000].join(","), "x".repeat(100_000)).as_bytes());
    until("the deaf one is closed", || server.status()["hub_closed_gap"] == 1);
    let grown = server.peak_bytes() - before;
    assert!(grown < 30 << 20, "{grown}");
}

fn a_ping_is_answered_while_the_app_has_its_turn(backend: &str) {
    let may = Arc::new(AtomicBool::new(false));
    let may_answer = may.clone();
    let (server, _worker, _folder) = with_app(backend, "", move |frame, _, body| {
        if frame == "text" && body == b"one" {
            until("it may answer", || may_answer.load(Ordering::SeqCst));
        }
        Ok((if frame == "text" { "text/plain" } else { JSON }, body.to_vec()))
    });
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    let long = "x".repeat(20_000);
    for (head, data) in [(TEXT, "one"), (PING, "a"), (TEXT, "two"), (PING, "b"), (TEXT, ""), (TEXT, &long), (PING, "c")]
    {
        socket.send(head, data.as_bytes());
    }
    let mut next = || socket.next();
    for data in ["a", "b"] {
        assert_eq!(next(), Frame { head: PONG, data: data.into() });
    }
    // What the app is to be told keeps its order, and beyond a measure nothing more is received.
    may.store(true, Ordering::SeqCst);
    let mut rest: Vec<_> = (0..5).map(|_| next()).collect();
    let pong = rest.iter().position(|frame| frame.head == PONG).unwrap();
    assert_eq!(rest.remove(pong).data, b"c");
    assert_eq!(rest.iter().map(Frame::text).collect::<Vec<_>>(), ["one", "two", "", &long]);
}

fn all_events_name_the_client_that_a_proxy_has_named(backend: &str) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let (server, _worker, _folder) =
        with_app(backend, "[server]\ntrusted_proxies = ['127.0.0.1']", move |frame, head, _| {
            let told = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"];
            let told = told.map(|name| fields(head, name).concat());
            kept.lock().unwrap().push((frame.to_owned(), told));
            Ok((JSON, Vec::new()))
        });
    let lines = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n";
    let mut socket = Socket::open(&server, "/api/v1/listen", lines);
    socket.send(TEXT, b"hi");
    until("the app has it", || seen.lock().unwrap().len() == 2);
    socket.send(CLOSE, b"");
    until("the app is told of the end", || seen.lock().unwrap().len() == 3);
    let seen = seen.lock().unwrap();
    assert_eq!([&seen[0].0, &seen[1].0, &seen[2].0], ["open", "text", "close"]);
    assert!(seen[0].1[0].starts_with("203.0.113.7"), "{seen:?}");
    assert!(seen.iter().all(|(_, told)| *told == seen[0].1), "{seen:?}");
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
        ("text", b"nothing") => Ok((JSON, Vec::new())),
        ("text", b"long") => Ok(("text/plain", vec![b'x'; 300_000])),
        ("text", b"too big") => Ok((JSON, json!({"@": "a", "x": "x".repeat(100_000)}).to_string().into_bytes())),
        ("text", body) => Ok(("text/plain", body.to_vec())),
        _ => Ok((JSON, b"{}".to_vec())),
    });
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    socket.send(TEXT, b"nothing");
    for said in ["die", "fail", "nonsense", "long", "too big"] {
        socket.send(TEXT, said.as_bytes());
        assert_eq!(socket.next().json()["type"], "error", "{said}");
        socket.send(TEXT, b"still there");
        assert_eq!(socket.next().text(), "still there");
    }
    drop(worker);
    notify(&mut server.client(), &json!({"data": "topics go on"}));
    assert_eq!(socket.next().text(), "topics go on");
}

fn a_topic_that_is_not_joined_is_said(backend: &str) {
    let keys = "topics = ['chat.*', 'broadcast']\ntopics_per_socket = 2";
    let (server, _worker, _folder) = with_app(backend, keys, |frame, _, body| match frame {
        "text" => Ok((JSON, json!({"+": String::from_utf8_lossy(body)}).to_string().into_bytes())),
        _ => Ok((JSON, b"{}".to_vec())),
    });
    let mut socket = Socket::told(&server, "/api/v1/listen");
    for (name, kind, reason) in [
        ("lobby", "error", "there is no such topic"),
        ("chat.1", "subscribed", ""),
        ("chat.1", "", ""),
        ("chat.2", "error", "one topic more"),
    ] {
        socket.send(TEXT, name.as_bytes());
        if !kind.is_empty() {
            let said = socket.next().json();
            assert_eq!(said["type"], kind, "{said}");
            assert!(said["reason"].as_str().unwrap_or_default().contains(reason), "{said}");
        }
    }
}
