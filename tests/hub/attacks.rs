//! Hubs among clients and apps that leave at the wrong moment, read nothing, or lie.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::apps::{JSON, with_app};
use super::{event, hub, hub_of, notify, post, stream};
use crate::support::websocket::{PING, PONG, Socket, TEXT, masked, request};
use crate::support::{Client, PROGRAM, Server, Worker, fields, on_every_backend_and_tls, until};

on_every_backend_and_tls! {
    a_poll_is_told_what_is_missing
    a_poll_of_much_gets_it_in_parts
    what_is_not_kept_is_told_to_nobody
    who_listens_leaves_place_for_publishers
    pages_publish_with_a_key
    who_says_an_id_of_the_future_makes_nobody_deaf
    an_app_that_is_added_is_asked_of_all
    a_poll_that_is_answered_at_once_leaves_nothing
    a_stream_comes_back_to_behind_its_gap
    nobody_forges_what_happens_on_sockets
    who_reads_nothing_is_told_nothing_by_its_app
    who_reads_nothing_is_closed_when_others_tell_it_too_much
    a_deaf_stream_with_a_request_behind_it_is_cut
    who_is_let_in_during_a_stop_is_sent_away
    an_app_that_is_gone_takes_no_socket_with_it
    topics_that_nobody_uses_make_place
    parts_of_messages_cost_whoever_sends_them
    many_long_topics_fit_into_an_event
    who_leaves_while_the_app_decides_is_gone_for_the_app
}

fn a_poll_is_told_what_is_missing(backend: &str) {
    let server = hub(backend, &[]);
    let mut publisher = server.client();
    let first = notify(&mut publisher, &json!({"data": "first"}))["id"].as_str().unwrap().to_owned();
    (0..150).for_each(|number| drop(notify(&mut publisher, &json!({"data": number}))));
    let poll = |id: &str| -> Value {
        let answer = server.client().get(&format!("/api/v1/listen?last_event_id={id}"));
        serde_json::from_str(&answer.text()).unwrap()
    };
    let document = poll(&first);
    assert_eq!(document["gaps"][0]["from"], first, "{document}");
    assert_eq!(document["messages"].as_array().unwrap().len(), 100);
    // From another life, with nothing to be read behind it.
    let last = document["last_event_id"].as_str().unwrap().to_owned();
    assert_eq!(document["messages"][99]["id"], last);
    assert_eq!(poll("0000000000001:5")["gaps"].as_array().unwrap().len(), 1);
    assert_eq!(poll("x")["gaps"].as_array().unwrap().len(), 1);
}

fn a_poll_of_much_gets_it_in_parts(backend: &str) {
    let (server, _folder) = hub_of(backend, "", &[]);
    let mut publisher = server.client();
    let topics: Vec<String> = (0..40).map(|number| format!("t{number}")).collect();
    for (number, topic) in (0..120).zip(topics.iter().cycle()) {
        notify(&mut publisher, &json!({"topic": topic, "data": format!("{number} {}", "x".repeat(20_000))}));
    }
    let query = topics.join(",");
    let (mut last, mut got) = ("0000000000001:1".to_owned(), Vec::new());
    while got.len() < 120 {
        let answer = server.client().get(&format!("/api/v1/listen?topic={query}&last_event_id={last}"));
        assert!(answer.text().len() < 300_000, "{}", answer.text().len());
        let document: Value = serde_json::from_str(&answer.text()).unwrap();
        last = document["last_event_id"].as_str().unwrap().to_owned();
        let messages = document["messages"].as_array().unwrap();
        let number = |message: &Value| message["data"].as_str().unwrap().split(' ').next().unwrap().to_owned();
        got.extend(messages.iter().map(number));
    }
    got.sort_unstable();
    got.dedup();
    assert_eq!(got.len(), 120, "each of them came once");
}

fn what_is_not_kept_is_told_to_nobody(backend: &str) {
    let (server, _folder) = hub_of(backend, "history = 0", &[]);
    let mut publisher = server.client();
    let first = notify(&mut publisher, &json!({"data": "first"}))["id"].as_str().unwrap().to_owned();
    let last = notify(&mut publisher, &json!({"data": "missed"}))["id"].clone();
    let target = format!("/api/v1/listen?last_event_id={first}");
    let mut socket = Socket::told(&server, &target);
    let gap = socket.next().json();
    assert_eq!((&gap["type"], &gap["from"], &gap["to"]), (&json!("gap"), &json!(first), &last));
    let document: Value = serde_json::from_str(&server.client().get(&target).text()).unwrap();
    assert_eq!((&document["gaps"][0]["to"], &document["messages"]), (&last, &json!([])));
    let mut listener = stream(&server, "/api/v1/listen", &format!("Last-Event-ID: {first}\r\n"));
    assert_eq!(event(&mut listener)[1], "event: gap");
    notify(&mut publisher, &json!({"data": "next"}));
    assert_eq!(socket.next().json()["data"], "next");
    assert_eq!(event(&mut listener)[1], "data: next");
    let mut bare = Socket::open(&server, &target, "");
    assert_eq!(bare.expect_close(), 4409);
}

fn who_listens_leaves_place_for_publishers(backend: &str) {
    let keys = "most_topics = 8\nhistory = { count = 10, bytes = '1MiB', age = '1s' }";
    let (server, _folder) = hub_of(backend, keys, &[]);
    let mut publisher = server.client();
    (0..8).for_each(|number| drop(notify(&mut publisher, &json!({"topic": format!("old{number}"), "data": 1}))));
    // Those that are old make place for six, and no more: the rest is for who publishes.
    let mut sockets = Vec::new();
    let mut listen = || {
        let mut client = server.client();
        client.send(request(&format!("/api/v1/listen?topic=new{}", sockets.len()), ""));
        let is_in = client.head().unwrap().starts_with("HTTP/1.1 101 ");
        sockets.extend(is_in.then_some(client));
        sockets.len()
    };
    until("there is place", || listen() == 6);
    (0..3).for_each(|_| assert_eq!(listen(), 6));
    notify(&mut publisher, &json!({"topic": "fresh", "data": 1}));
}

fn pages_publish_with_a_key(backend: &str) {
    let folder = crate::support::folder();
    let (keys, file) = (folder.path().join("keys"), folder.path().join("hub.toml"));
    // Of `secret`, by sha256sum(1).
    let hash = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";
    std::fs::write(&keys, format!("shop:{hash}\n")).unwrap();
    let said = format!("origins = ['https://shop.example']\nkeys = '{}'", keys.display());
    let route =
        format!("[[routes]]\nmatch.path = '/guarded/*'\nhub = 'guarded'\nauth = {{ keys = '{}' }}\n", keys.display());
    let hubs = format!("[hub.live]\n{said}\n[hub.guarded]\norigins = ['https://shop.example']\n");
    std::fs::write(&file, format!("[apps.web]\nrespond = 'hello'\n{hubs}{route}")).unwrap();
    let server = Server::start(backend, &["--config", file.to_str().unwrap()]);
    let ask = |method: &str, name: &str, lines: &str, body: &str| {
        let length = body.len();
        let place = if name.starts_with('/') { "" } else { "/api/v1/" };
        let head = format!("{method} {place}{name} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n");
        let mut client = server.client();
        client.send(format!("{head}{lines}\r\n{body}"));
        let head = client.head().unwrap();
        let allowed = fields(&head, "access-control-allow-origin").concat();
        (head[9..12].to_owned(), allowed, fields(&head, "access-control-allow-methods").concat())
    };
    let page = "Origin: https://shop.example\r\n";
    let key = &format!("{page}X-Api-Key: secret\r\n");
    let origin = "https://shop.example";
    let answer = |status: &str, methods: &str| (status.to_owned(), origin.to_owned(), methods.to_owned());
    assert_eq!(ask("OPTIONS", "notify", page, ""), answer("204", "POST"));
    assert_eq!(ask("OPTIONS", "listen", page, ""), answer("204", "GET"));
    assert_eq!(ask("POST", "notify", key, r#"{"data":1}"#), answer("202", ""));
    assert_eq!(ask("POST", "notify", key, "{"), answer("400", ""));
    assert_eq!(ask("POST", "notify?topic=a", key, ""), answer("202", ""));
    assert_eq!(ask("POST", "notify", page, r#"{"data":1}"#), answer("401", ""));
    assert_eq!(ask("GET", "topics", key, ""), answer("200", ""));
    let nobodys = |status: &str| (status.to_owned(), String::new(), String::new());
    // Nothing is shown of a user when a browser asks.
    assert_eq!(ask("OPTIONS", "/guarded/notify", page, ""), answer("204", "POST"));
    assert_eq!(ask("POST", "/guarded/notify", key, r#"{"data":1}"#), answer("202", ""));
    assert_eq!(ask("POST", "/guarded/notify", page, r#"{"data":1}"#), nobodys("401"));
    assert_eq!(ask("OPTIONS", "notify", "", ""), nobodys("405"));
    assert_eq!(ask("OPTIONS", "notify", "Origin: https://other.example\r\n", ""), nobodys("403"));
    assert_eq!(ask("OPTIONS", "notify", &format!("{page}Origin: https://other.example\r\n"), ""), nobodys("403"));
}

fn a_poll_that_is_answered_at_once_leaves_nothing(backend: &str) {
    let (mut server, worker, _folder) = with_app(backend, "", |_, _, _| Ok((JSON, Vec::new())));
    let mut publisher = server.client();
    let first = notify(&mut publisher, &json!({"data": 1}))["id"].as_str().unwrap().to_owned();
    notify(&mut publisher, &json!({"data": 2}));
    let mut client = server.client();
    let document: Value =
        serde_json::from_str(&client.get(&format!("/api/v1/listen?last_event_id={first}")).text()).unwrap();
    assert_eq!(document["messages"][0]["data"], 2);
    until("the app is told of the end", || {
        String::from_utf8_lossy(&worker.everything()).contains("Sec-WebSocket-Frame: close")
    });
    assert_eq!(client.get("/").text(), "a page", "the connection goes on");
    // One that is closed at once for what it has missed, too.
    (0..150).for_each(|number| drop(notify(&mut publisher, &json!({"data": number}))));
    let mut socket = Socket::open(&server, &format!("/api/v1/listen?last_event_id={first}"), "");
    assert_eq!(socket.expect_close(), 4409);
    until("the app is told of that end", || {
        String::from_utf8_lossy(&worker.everything()).contains("X-Socket-Close: 4409")
    });
    assert_eq!(server.stop(), Some(0));
}

fn a_stream_comes_back_to_behind_its_gap(backend: &str) {
    let (server, _folder) = hub_of(backend, "", &["--write-timeout", "60s"]);
    let mut deaf = stream(&server, "/api/v1/listen", "");
    let mut publisher = server.client();
    let long = "x".repeat(50_000);
    (0..400).for_each(|number| drop(notify(&mut publisher, &json!({"data": format!("{number} {long}")}))));
    let gap = loop {
        let event = event(&mut deaf);
        if event.get(1).is_some_and(|line| line == "event: gap") {
            break event;
        }
    };
    let said: Value = serde_json::from_str(gap[2].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(gap[0], format!("id: {}", said["to"].as_str().unwrap()), "what comes behind the gap is not had yet");
}

fn nobody_forges_what_happens_on_sockets(backend: &str) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let (server, worker, _folder) = with_app(backend, "", move |frame, head, _| {
        kept.lock().unwrap().push((frame.to_owned(), head.to_owned()));
        Ok((JSON, b"{}".to_vec()))
    });
    let lies = "Sec-WebSocket-Frame: text\r\nX-Socket-Id: 0-1-1\r\nx_socket_groups: admins\r\nX-Socket-Close: 1000\r\nX-Socket-Target: /lie\r\nSec_WebSocket_Extensions: lie\r\n";
    let mut client = server.client();
    let forged = format!(
        "POST /v1/realtime HTTP/1.1\r\nHost: a\r\n{lies}Sec_WebSocket_Frame: text\r\nContent-Length: 2\r\n\r\nhi"
    );
    assert_eq!(client.ask(&forged).text(), "a page", "it is no event");
    let trailed = "POST /v1/realtime HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Socket-Id: 0-1-1\r\n\r\n";
    assert_eq!(client.ask(trailed).text(), "a page");
    let all = String::from_utf8_lossy(&worker.everything()).to_lowercase();
    assert!(!all.contains("x-socket") && !all.contains("x_socket") && !all.contains("-frame"), "{all}");
    let socket = Socket::open(&server, "/api/v1/listen", &format!("{lies}Accept-Encoding: gzip\r\n"));
    let (frame, head) = seen.lock().unwrap().remove(0);
    assert_eq!(frame, "open");
    let head = head.to_lowercase().replace('_', "-");
    for (name, count) in [
        ("sec-websocket-frame", 1),
        ("x-socket-id", 1),
        ("x-socket-groups", 0),
        ("x-socket-close", 0),
        ("x-socket-target", 1),
        ("sec-websocket-extensions", 0),
        ("accept-encoding", 0),
    ] {
        assert_eq!(fields(&head, name).len(), count, "{name}: {head}");
    }
    drop(socket);
}

fn who_reads_nothing_is_told_nothing_by_its_app(backend: &str) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let (server, _worker, _folder) = with_app(backend, "", move |frame, _, body| match (frame, body) {
        ("text", b"echo") => Ok(("text/plain", body.to_vec())),
        ("text", _) => {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(("text/plain", vec![b'x'; 200_000]))
        }
        _ => Ok((JSON, b"{}".to_vec())),
    });
    let before = server.peak_bytes();
    let mut deaf = Socket::open(&server, "/api/v1/listen", "");
    let mut other = Socket::open(&server, "/api/v1/listen", "");
    let all: Vec<u8> = (0..300).flat_map(|_| masked(TEXT, b"x")).collect();
    deaf.client.send(&all);
    for _ in 0..1000 {
        other.send(TEXT, b"echo");
        assert_eq!(other.next().text(), "echo");
    }
    let most = 100;
    assert!(asked.load(Ordering::SeqCst) < most, "{asked:?}");
    for _ in 0..300 {
        assert_eq!(deaf.next().data.len(), 200_000);
    }
    let grown = server.peak_bytes() - before;
    assert!(grown < 30 << 20, "{grown}");
}

fn who_reads_nothing_is_closed_when_others_tell_it_too_much(backend: &str) {
    let (server, _worker, _folder) = with_app(backend, "", |frame, head, body| match frame {
        "open" => Ok((JSON, json!({"id": fields(head, "x-socket-id")[0]}).to_string().into_bytes())),
        "text" => {
            let to = String::from_utf8_lossy(body).into_owned();
            Ok((JSON, json!({"@": [to], "text": "x".repeat(100_000)}).to_string().into_bytes()))
        }
        _ => Ok((JSON, Vec::new())),
    });
    let mut deaf = Socket::open(&server, "/api/v1/listen", "");
    let id = deaf.next().json()["id"].as_str().unwrap().to_owned();
    let mut other = Socket::open(&server, "/api/v1/listen", "");
    other.next();
    let before = server.peak_bytes();
    for _ in 0..300 {
        other.send(TEXT, id.as_bytes());
    }
    until("the deaf one is closed", || server.status()["hub_closed_gap"] == 1);
    until("all is said", || server.status()["hub_events"].as_u64().unwrap() >= 303);
    let grown = server.peak_bytes() - before;
    assert!(grown < 12 << 20, "{grown}");
    // It gets what it was told before, and then its close.
    loop {
        let frame = deaf.next();
        if frame.head != TEXT {
            assert_eq!(frame.code(), 4409);
            break;
        }
    }
}

fn a_deaf_stream_with_a_request_behind_it_is_cut(backend: &str) {
    let (server, _folder) = hub_of(backend, "ping = '100ms'", &["--write-timeout", "1s"]);
    let mut deaf = stream(&server, "/api/v1/listen", "");
    deaf.send("G");
    let mut publisher = server.client();
    let long = "x".repeat(60_000);
    (0..400).for_each(|number| drop(notify(&mut publisher, &json!({"data": format!("{number} {long}")}))));
    until("it is cut", || server.status()["hub_event_streams"] == 0);
}

/// A client about which its app is asked, which answers when it may.
fn undecided(backend: &str) -> (Server, Worker, tempfile::TempDir, Client, Arc<AtomicBool>) {
    let (asked, may) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (was_asked, may_answer) = (asked.clone(), may.clone());
    let (server, worker, folder) = with_app(backend, "", move |frame, _, _| {
        if frame == "open" {
            was_asked.store(true, Ordering::SeqCst);
            until("it may answer", || may_answer.load(Ordering::SeqCst));
        }
        Ok((JSON, Vec::new()))
    });
    let mut client = server.client();
    client.send(request("/api/v1/listen", ""));
    until("the app is asked", || asked.load(Ordering::SeqCst));
    (server, worker, folder, client, may)
}

fn who_is_let_in_during_a_stop_is_sent_away(backend: &str) {
    let (mut server, _worker, _folder, mut client, may) = undecided(backend);
    server.signal("TERM");
    until("the stop has begun", || {
        server.has_said("stopping") || server.lines().iter().any(|line| line.contains("SIGTERM"))
    });
    may.store(true, Ordering::SeqCst);
    let head = client.head().unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut socket = Socket { client };
    assert_eq!(socket.expect_close(), 1012);
    assert!(server.ended().success());
}

fn reload(server: &Server) {
    let run = server.run().display().to_string();
    let reload = std::process::Command::new(PROGRAM).args(["reload", "--wait", "--run-dir", &run]).output().unwrap();
    assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
}

fn an_app_that_is_gone_takes_no_socket_with_it(backend: &str) {
    let (asked, may) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let (was_asked, may_answer) = (asked.clone(), may.clone());
    let (server, _worker, folder) = with_app(backend, "", move |frame, _, body| {
        if frame == "text" {
            was_asked.fetch_add(1, Ordering::SeqCst);
            until("it may answer", || may_answer.load(Ordering::SeqCst));
        }
        Ok((if frame == "text" { "text/plain" } else { JSON }, body.to_vec()))
    });
    let mut stays = Socket::open(&server, "/api/v1/listen", "");
    let mut goes = Socket::open(&server, "/api/v1/listen", "");
    let mut is_closed = Socket::open(&server, "/api/v1/listen", "");
    goes.send(TEXT, b"hi");
    until("the app has it", || asked.load(Ordering::SeqCst) == 1);
    let file = folder.path().join("hub.toml");
    std::fs::write(&file, "[apps.other]\nrespond = 'other'\n[hub.live]\n").unwrap();
    reload(&server);
    goes.client.reset();
    until("it is gone", || server.status()["hub_sockets"] == 2);
    may.store(true, Ordering::SeqCst);
    stays.send(TEXT, b"hi");
    assert_eq!(stays.next().json()["type"], "error");
    notify(&mut server.client(), &json!({"data": "news"}));
    assert_eq!(stays.next().text(), "news");
    assert_eq!(is_closed.next().text(), "news");
    is_closed.client.reset();
    until("it is gone", || server.status()["hub_sockets"] == 1);
    assert_eq!(server.client().get("/").text(), "other");
    assert_eq!(server.status()["panics"], 0);
}

fn who_says_an_id_of_the_future_makes_nobody_deaf(backend: &str) {
    let server = hub(backend, &["--loops", "1"]);
    let mut publisher = server.client();
    let first = notify(&mut publisher, &json!({"data": "first"}))["id"].as_str().unwrap().to_owned();
    let (epoch, _) = first.split_once(':').unwrap();
    let mut ahead = Socket::told(&server, &format!("/api/v1/listen?last_event_id={epoch}:2"));
    assert_eq!(ahead.next().json()["type"], "gap");
    let mut others = [Socket::told(&server, "/api/v1/listen"), Socket::told(&server, "/api/v1/listen")];
    notify(&mut publisher, &json!({"data": "next"}));
    others.iter_mut().chain([&mut ahead]).for_each(|socket| assert_eq!(socket.next().json()["data"], "next"));
}

fn an_app_that_is_added_is_asked_of_all(backend: &str) {
    let (server, worker, folder) = with_app(backend, "", |frame, _, body| match frame {
        "text" => Ok(("text/plain", body.to_vec())),
        _ => Ok((JSON, b"{}".to_vec())),
    });
    let say = |keys: &str| {
        let text = format!("[apps.web]\nupstream = ['{}']\n[hub.live]\n{keys}\n", worker.url);
        std::fs::write(folder.path().join("hub.toml"), text).unwrap();
        reload(&server);
    };
    let mut asked = Socket::told(&server, "/api/v1/listen");
    say("");
    asked.say(&json!({"subscribe": "news"}));
    assert_eq!(asked.next().json()["type"], "subscribed");
    let mut unasked = Socket::told(&server, "/api/v1/listen");
    let mut events = stream(&server, "/api/v1/listen", "");
    say("app = 'web'");
    assert_eq!(unasked.expect_close(), 1012);
    assert!(event(&mut events)[0].starts_with("retry: "), "it is told when to come again");
    assert_eq!(events.line().as_deref(), Some("0"));
    let mut back = Socket::told(&server, "/api/v1/listen");
    for socket in [&mut asked, &mut back] {
        socket.send(TEXT, br#"{"subscribe":"a"}"#);
        assert_eq!(socket.next().text(), r#"{"subscribe":"a"}"#, "the app has it");
    }
}

fn topics_that_nobody_uses_make_place(backend: &str) {
    let (server, _folder) =
        hub_of(backend, "most_topics = 2\nhistory = { count = 10, bytes = '1MiB', age = '1s' }", &[]);
    let mut publisher = server.client();
    for topic in ["a", "b"] {
        notify(&mut publisher, &json!({"topic": topic, "data": 1}));
    }
    let third = r#"{"topic":"c","data":1}"#;
    assert_eq!(post(&mut publisher, "/api/v1/notify", third).status, 503);
    until("there is place", || post(&mut publisher, "/api/v1/notify", third).status == 202);
}

fn parts_of_messages_cost_whoever_sends_them(backend: &str) {
    let (server, _folder) = hub_of(backend, "ping = '10m'", &["--buffer-bytes", "8MiB"]);
    let mut good = Socket::open(&server, "/api/v1/listen", "");
    let part = masked(TEXT, &[b'x'; 60_000]);
    let parts: Vec<_> = (0..40)
        .map(|_| {
            let mut socket = Socket::open(&server, "/api/v1/listen", "");
            socket.client.try_send(&part[..50_000]);
            socket
        })
        .collect();
    until("there are too many", || server.status()["hub_closed_size"].as_u64().unwrap() > 0);
    for _ in 0..10 {
        good.send(PING, b"still here");
        assert_eq!(good.next().head, PONG);
    }
    drop(parts);
}

fn many_long_topics_fit_into_an_event(backend: &str) {
    let topics: Vec<String> = (0..120).map(|number| format!("{number}{}", "ü".repeat(100))).collect();
    let joins = topics.clone();
    let (server, worker, _folder) = with_app(backend, "", move |frame, head, body| match frame {
        "open" => Ok((JSON, json!({"+": joins}).to_string().into_bytes())),
        "text" => {
            assert_eq!(fields(head, "x-socket-groups")[0].split(',').count(), 121);
            Ok(("text/plain", body.to_vec()))
        }
        _ => Ok((JSON, Vec::new())),
    });
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    socket.send(TEXT, b"hi");
    assert_eq!(socket.next().text(), "hi");
    socket.client.reset();
    until("the app is told of the end", || {
        String::from_utf8_lossy(&worker.everything()).contains("X-Socket-Close: 1006")
    });
}

fn who_leaves_while_the_app_decides_is_gone_for_the_app(backend: &str) {
    let (mut server, worker, _folder, client, may) = undecided(backend);
    client.reset();
    until("it is gone", || server.status()["active_connections"] == 0);
    may.store(true, Ordering::SeqCst);
    until("the app is told of the end", || {
        String::from_utf8_lossy(&worker.everything()).contains("X-Socket-Close: 1006")
    });
    assert_eq!(server.stop(), Some(0));
}
