//! The keys of hubs: what is said anew holds for what is asked from then on.

use std::io::Read;
use std::net::TcpListener;
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::support::websocket::{PING, Socket};

const TOPIC: &str = "/keyed/listen?topic=a";

/// What of the answer to a request from this machine tells about it.
fn ask(rig: &Rig, line: &str, more: &str) -> (u16, Value) {
    let answer = rig.ask("localhost", line, more);
    (answer.status, serde_json::from_slice(&answer.body).unwrap_or_default())
}

fn notify(rig: &Rig, topic: &str, bytes: usize, more: &str) -> (u16, Value) {
    let body = json!({"topic": topic, "data": "x".repeat(bytes)}).to_string();
    ask(rig, "POST /keyed/notify", &format!("{more}Content-Length: {}\r\n\r\n{body}", body.len()))
}

fn socket(rig: &Rig) -> Socket {
    Socket::open(&rig.site.line.server, TOPIC, "")
}

/// What the status document says of the hub.
fn hub(rig: &Rig) -> Value {
    rig.site.line.status()["hubs"].as_array().unwrap().iter().find(|hub| hub["name"] == "keyed").cloned().unwrap()
}

pub fn live(rig: &mut Rig) {
    let topics = |rig: &Rig, path: &str| ask(rig, &format!("GET {path}/topics"), "").0;
    assert_eq!(topics(rig, "/api/v1"), 404);
    rig.change(&[("server.hub", "true")]);
    assert_eq!(topics(rig, "/api/v1"), 200);
    rig.change(&[("server.hub", "false"), ("hub.keyed.path", "'/keyed'")]);
    assert_eq!((topics(rig, "/api/v1"), topics(rig, "/keyed")), (404, 200));
    kept(rig);
    bounds(rig);
    sockets(rig);
    who(rig);
    takes_part(rig);
    shares(rig);
    rig.change(&[("routes[45].match.host", "'hubbed'"), ("routes[45].hub", "'keyed'")]);
    assert_eq!((rig.ask("hubbed", "GET /any/topics", "X-Api-Key: key\r\n").status, topics(rig, "/keyed")), (200, 404));
}

/// What there is for those who come back.
fn kept(rig: &mut Rig) {
    let first = notify(rig, "a", 1, "").1["id"].as_str().unwrap().to_owned();
    (0..4).for_each(|_| assert_eq!(notify(rig, "a", 1, "").0, 202));
    let back = |rig: &Rig| {
        let missed = ask(rig, &format!("GET {TOPIC}&last_event_id={first}"), "").1;
        (missed["messages"].as_array().unwrap().len(), missed["gaps"].as_array().unwrap().len())
    };
    assert_eq!(back(rig), (4, 0));
    rig.change(&[("hub.keyed.history.count", "2")]);
    notify(rig, "a", 1, "");
    assert_eq!(back(rig), (2, 1));
    // The newest is kept, however large it is.
    rig.change(&[("hub.keyed.history.bytes", "'1B'")]);
    notify(rig, "a", 1, "");
    assert_eq!(back(rig), (1, 1));
    // Before that one would wait for a long time.
    rig.change(&[("hub.keyed.poll", SHORT)]);
    assert_eq!(ask(rig, &format!("GET {TOPIC}"), "").1["messages"], json!([]));
    rig.change(&[("hub.keyed.history.age", SHORT)]);
    until("nothing is young enough", || hub(rig)["messages"] == 0);
    assert_eq!(back(rig), (0, 1));
    rig.change(&[("hub.keyed.history.age", LONG)]);
}

fn bounds(rig: &mut Rig) {
    assert_eq!(notify(rig, "c", 2000, "").0, 202);
    rig.change(&[("hub.keyed.topics", "['a', 'b*']"), ("hub.keyed.message", "'1KiB'")]);
    assert_eq!((notify(rig, "c", 1, "").0, notify(rig, "b", 1, "").0, notify(rig, "b", 2000, "").0), (404, 202, 413));
    rig.change(&[("hub.keyed.message", "'64KiB'"), ("hub.keyed.memory", "'1MiB'")]);
    let refused = |rig: &Rig| (0..30).filter(|number| notify(rig, &format!("b{number}"), 60_000, "").0 == 503).count();
    assert!((1..29).contains(&refused(rig)));
    rig.change(&[("hub.keyed.memory", "'64MiB'")]);
    assert_eq!(refused(rig), 0);
    rig.change(&[("hub.keyed.most_topics", "1")]);
    // Those that nobody uses make place, and no others.
    assert!((0..5).any(|number| notify(rig, &format!("b-{number}"), 1, "").0 == 503));
    assert_eq!(notify(rig, "b0", 1, "").0, 202);
    rig.change(&[("hub.keyed.most_topics", "1000")]);
    let both = |rig: &Rig| ask(rig, &format!("GET {TOPIC}&topic=b"), "").0;
    assert_eq!(both(rig), 200);
    rig.change(&[("hub.keyed.topics_per_socket", "1")]);
    assert_eq!(both(rig), 400);
}

fn sockets(rig: &mut Rig) {
    let server = |rig: &Rig| Socket::deflating(&rig.site.line.server, TOPIC, "permessage-deflate", "").1;
    assert!(server(rig).is_some());
    rig.change(&[("hub.keyed.deflate", "false"), ("hub.keyed.ping", LONG)]);
    assert!(server(rig).is_none());
    let mut quiet = socket(rig);
    rig.change(&[("hub.keyed.ping", SHORT), ("hub.keyed.pong", LONG)]);
    let mut pinged = socket(rig);
    assert_eq!(pinged.next_of_all().head, PING);
    rig.change(&[("hub.keyed.pong", SHORT)]);
    let mut cut = socket(rig);
    assert_eq!(cut.next_of_all().head, PING);
    cut.client.rest();
    // Who was there before is as it was, and nobody is sent away.
    assert_eq!(notify(rig, "a", 1, "").0, 202);
    assert_eq!((quiet.next().text(), pinged.next().text()), ("x".to_owned(), "x".to_owned()));
}

/// Who may listen, and who may publish.
fn who(rig: &mut Rig) {
    let status = |rig: &Rig| ask(rig, &format!("GET {TOPIC}"), "Origin: https://shop.example\r\n").0;
    assert_eq!(status(rig), 403);
    rig.change(&[("hub.keyed.origins", "['same', 'https://shop.example']")]);
    assert_eq!(status(rig), 200);
    rig.change(&[("hub.keyed.keys", "'FOLDER/keys'")]);
    assert_eq!((notify(rig, "a", 1, "").0, notify(rig, "a", 1, "X-Api-Key: key\r\n").0), (401, 202));
}

/// Which app takes part, and where it is asked.
fn takes_part(rig: &mut Rig) {
    let told = |rig: &Rig, path: &str| {
        drop(socket(rig));
        let line = format!("POST {path} HTTP/1.1\r\n");
        rig.upstreams.iter().any(|worker| String::from_utf8_lossy(&worker.everything()).contains(&line))
    };
    assert!(!told(rig, "/v1/realtime"));
    rig.change(&[("hub.keyed.app", "'upstream'")]);
    assert!(told(rig, "/v1/realtime") && !told(rig, "/told"));
    rig.change(&[("hub.keyed.events", "'/told'")]);
    assert!(told(rig, "/told"));
    rig.change(&[("hub.keyed.dialect", "'websocket-events'")]);
    let asked = rig.ask("localhost", &format!("GET {TOPIC}"), "");
    assert_eq!(asked.status, 502, "an app that does not speak it lets nobody in");
    assert!(rig.upstreams.iter().any(|it| String::from_utf8_lossy(&it.everything()).contains("OPEN\r\n")));
    rig.change(&[("hub.keyed.dialect", "'fields'"), ("hub.keyed.app", "")]);
}

/// With whom it is shared.
fn shares(rig: &mut Rig) {
    let bus = |rig: &Rig, what: &str| hub(rig)["bus"][what].as_str().unwrap_or_default().to_owned();
    rig.change(&[("hub.keyed.bus.directory", "'FOLDER/bus'")]);
    until("it leads", || bus(rig, "state") == "leads");
    // Not Redis, but somebody who hears what that would be told.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let told = |word: &str| {
        until(word, || {
            let Ok((mut peer, _)) = listener.accept() else { return false };
            peer.set_nonblocking(false).unwrap();
            peer.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let mut bytes = [0; 4096];
            let count = peer.read(&mut bytes).unwrap_or(0);
            String::from_utf8_lossy(&bytes[..count]).contains(word)
        });
    };
    rig.change(&[("hub.keyed.bus.directory", ""), ("hub.keyed.bus.url", &format!("'redis://{address}'"))]);
    told("\r\n");
    rig.change(&[("hub.keyed.bus.password", "'hunter2'")]);
    told("hunter2");
    rig.change(&[("hub.keyed.bus.user", "'anna'")]);
    told("anna");
    let secure = format!("'rediss://{address}'");
    rig.change(&[("hub.keyed.bus.url", &secure), ("hub.keyed.bus.ca_file", "'FOLDER/none.pem'")]);
    until("it lacks its file", || bus(rig, "problem").contains("none.pem"));
    let keys = ["url", "user", "password", "ca_file"].map(|key| format!("hub.keyed.bus.{key}"));
    rig.change(&keys.each_ref().map(|key| (key.as_str(), "")));
    assert!(hub(rig)["bus"].is_null());
}
