//! What an app's answers do, whichever way a client listens: what is refused begins nothing, what is joined is part of what a client comes back with, and
//! what is said comes before an end.

use serde_json::{Value, json};

use super::apps::{JSON, with_app};
use super::notify;
use crate::support::websocket::{Socket, TEXT, request};
use crate::support::{Server, Worker, fields, on_every_backend, until};

on_every_backend! {
    what_is_no_socket_is_refused_by_a_close
    an_app_is_told_the_end_of_whom_it_has_let_in
    a_topic_that_is_none_is_not_asked_about
    a_poll_comes_back_to_what_its_app_has_joined
    last_words_come_before_the_end
    an_answer_that_is_broken_is_not_waited_for
}

/// The heads of all events of that kind that an app has had.
fn heads(worker: &Worker, frame: &str) -> Vec<String> {
    let all = String::from_utf8_lossy(&worker.everything()).into_owned();
    let events = all.split("POST /v1/realtime ").skip(1);
    events.filter(|head| fields(head, "sec-websocket-frame") == [frame]).map(str::to_owned).collect()
}

/// The status of who asks for that, and what its answer is.
fn ask(server: &Server, accept: &str) -> (u16, String) {
    let mut client = server.client();
    let answer = client.ask(&format!(
        "GET /api/v1/listen?topic=a HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    ));
    (answer.status, answer.text())
}

fn what_is_no_socket_is_refused_by_a_close(backend: &str) {
    let (server, worker, _folder) = with_app(backend, "", |frame, head, _| match frame {
        "open" if fields(head, "cookie").is_empty() => {
            Ok((JSON, json!({"@": "gate", "refused": 1, "!": {"code": 4401, "reason": "no"}}).to_string().into_bytes()))
        }
        _ => Ok((JSON, b"{}".to_vec())),
    });
    let mut gate = Socket::open(&server, "/api/v1/listen?topic=gate", "Cookie: anna\r\n");
    for (accept, count) in [("text/event-stream", 1), ("application/json", 2)] {
        let (status, said) = ask(&server, accept);
        assert_eq!(status, 403, "{accept}: {said}");
        assert_eq!(gate.next().text(), r#"{"refused":1}"#, "the others are told");
        until("the app is told of the end", || heads(&worker, "close").len() == count);
    }
    assert!(heads(&worker, "close").iter().all(|head| fields(head, "x-socket-close") == ["4401"]));
    assert_eq!(notify(&mut server.client(), &json!({"topic": "a", "data": 1}))["subscribers"], 0);
    assert_eq!(Socket::open(&server, "/api/v1/listen", "").expect_close(), 4401);
}

fn an_app_is_told_the_end_of_whom_it_has_let_in(backend: &str) {
    let (server, worker, _folder) = with_app(backend, "", |frame, _, _| match frame {
        "open" => Ok((JSON, b"[1]".to_vec())),
        _ => Ok((JSON, b"{}".to_vec())),
    });
    assert_eq!(ask(&server, "application/json").0, 502);
    until("the app is told of the end", || heads(&worker, "close").len() == 1);
    let of = |frame| fields(&heads(&worker, frame)[0], "x-socket-id")[0].to_owned();
    assert_eq!(of("open"), of("close"));
}

fn a_topic_that_is_none_is_not_asked_about(backend: &str) {
    let (server, worker, _folder) = with_app(backend, "topics = ['chat.*']", |_, _, _| Ok((JSON, b"{}".to_vec())));
    let mut client = server.client();
    client.send(request("/api/v1/listen?topic=chat.1,other", ""));
    assert_eq!(client.answer().status, 404);
    let _socket = Socket::open(&server, "/api/v1/listen?topic=chat.1", "");
    assert_eq!(heads(&worker, "open").len(), 1);
}

fn a_poll_comes_back_to_what_its_app_has_joined(backend: &str) {
    let (server, _worker, _folder) = with_app(backend, "poll = '50ms'", |frame, _, _| match frame {
        "open" => Ok((JSON, br#"{"+":["lobby","hall"]}"#.to_vec())),
        _ => Ok((JSON, Vec::new())),
    });
    let mut publisher = server.client();
    let mut say = |topic: &str, data: &str| drop(notify(&mut publisher, &json!({"topic": topic, "data": data})));
    let (mut last, mut got) = (String::new(), Vec::new());
    for round in 0..6 {
        let answer = server.client().get(&format!("/api/v1/listen?topic=a&last_event_id={last}")).text();
        let document: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(document["gaps"], json!([]), "{document}");
        last = document["last_event_id"].as_str().unwrap().to_owned();
        assert_eq!(last.matches('~').count(), 3, "{last}");
        let messages = document["messages"].as_array().unwrap();
        got.extend(messages.iter().map(|message| message["data"].as_str().unwrap().to_owned()));
        ["a", "lobby", "hall"].iter().filter(|_| round < 4).for_each(|topic| say(topic, &format!("{round} {topic}")));
    }
    let mut expected: Vec<_> =
        (0..4).flat_map(|round| ["a", "lobby", "hall"].map(|topic| format!("{round} {topic}"))).collect();
    got.sort_unstable();
    expected.sort_unstable();
    assert_eq!(got, expected);
}

fn last_words_come_before_the_end(backend: &str) {
    let (server, _worker, _folder) = with_app(backend, "", |frame, head, body| match (frame, body) {
        ("text", b"itself") => {
            let id = fields(head, "x-socket-id")[0];
            Ok((JSON, json!({"@": [id], "last": 1, "!": 4001}).to_string().into_bytes()))
        }
        ("text", _) => Ok((JSON, json!({"@": ["lobby"], "last": 1, "!": 4001}).to_string().into_bytes())),
        ("open", _) => Ok((JSON, br#"{"+":"lobby"}"#.to_vec())),
        _ => Ok((JSON, Vec::new())),
    });
    for to in ["itself", "all"] {
        let mut socket = Socket::open(&server, "/api/v1/listen", "");
        socket.send(TEXT, to.as_bytes());
        assert_eq!(socket.next().text(), r#"{"last":1}"#, "to {to}");
        assert_eq!(socket.expect_close(), 4001);
    }
}

fn an_answer_that_is_broken_is_not_waited_for(backend: &str) {
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            let head_of = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
            let is_text = fields(&head, "sec-websocket-frame") == ["text"];
            let rest = if is_text { "Transfer-Encoding: chunked\r\n\r\nzz\r\n" } else { "Content-Length: 0\r\n\r\n" };
            incoming.send(format!("{head_of}{rest}").as_bytes());
        }
    });
    let folder = crate::support::folder();
    let file = folder.path().join("hub.toml");
    let text = format!("[apps.web]\nupstream = ['{}']\n[hub.live]\napp = 'web'\n", worker.url);
    std::fs::write(&file, text).unwrap();
    let server = Server::start(backend, &["--config", file.to_str().unwrap()]);
    let mut socket = Socket::open(&server, "/api/v1/listen", "");
    socket.send(TEXT, b"hi");
    let said = socket.next().json();
    assert!(said["reason"].as_str().unwrap().contains("is broken"), "before its deadline: {said}");
}
