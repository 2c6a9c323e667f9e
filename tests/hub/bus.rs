//! Hubs of several replicas that share their messages by a directory: who listens anywhere gets what is published anywhere, whatever becomes of the replicas.

use std::path::Path;

use serde_json::{Value, json};

use super::{notify, post};
use crate::support::websocket::Socket;
use crate::support::{PROGRAM, Server, on_every_backend, until};

on_every_backend! {
    replicas_share_their_messages
    a_killed_leader_costs_nobody_a_message
    a_killed_follower_costs_nobody_anything
    a_frozen_follower_holds_up_nobody
    who_comes_back_at_another_replica_gets_what_was_missed
    a_replica_that_begins_gets_what_there_is
    a_frozen_leader_is_said_to_be_away
    a_reload_takes_a_bus_away_and_gives_one
    a_directory_of_others_is_not_used
    replicas_that_take_messages_of_different_lengths_go_on
}

/// A server whose hub shares its messages in that directory.
fn replica(backend: &str, folder: &Path, name: &str) -> Server {
    replica_with(backend, folder, name, "")
}

fn replica_with(backend: &str, folder: &Path, name: &str, keys: &str) -> Server {
    let file = folder.join(format!("{name}.toml"));
    let text = format!(
        "[apps.web]\nrespond = 'hello'\n[hub.live]\n{keys}\nbus = {{ directory = '{}' }}\n",
        folder.join("bus").display()
    );
    std::fs::write(&file, text).unwrap();
    Server::start(backend, &["--config", file.to_str().unwrap()])
}

fn state(server: &Server) -> String {
    server.hubs()[0]["bus"]["state"].as_str().unwrap_or_default().to_owned()
}

/// So many replicas, the leader first, when all have found each other.
fn replicas(backend: &str, folder: &Path, count: usize) -> Vec<Server> {
    let first = replica(backend, folder, "0");
    until("one leads", || state(&first) == "leads");
    let mut all = vec![first];
    for number in 1..count {
        all.push(replica(backend, folder, &number.to_string()));
        until("it follows", || state(&all[number]) == "follows");
        until("the leader knows", || all[0].hubs()[0]["bus"]["peers"].as_array().unwrap().len() == number);
    }
    all
}

fn data(socket: &mut Socket) -> Value {
    let message = socket.next().json();
    assert_eq!(message["type"], "message", "{message}");
    message["data"].clone()
}

fn replicas_share_their_messages(backend: &str) {
    let folder = crate::support::folder();
    let mut servers = replicas(backend, folder.path(), 3);
    let mut sockets: Vec<_> = servers.iter().map(|server| Socket::told(server, "/api/v1/listen")).collect();
    let mut publishers: Vec<_> = servers.iter().map(Server::client).collect();
    let mut ids = Vec::new();
    for number in 0..60 {
        let said = notify(&mut publishers[number % 3], &json!({"data": number}));
        assert_eq!(said["subscribers"], 1);
        ids.push(said["id"].clone());
    }
    for socket in &mut sockets {
        for (number, id) in ids.iter().enumerate() {
            let message = socket.next().json();
            assert_eq!((&message["data"], &message["id"]), (&json!(number), id));
        }
    }
    // The same id at two replicas is one message, and all are told so.
    let first = notify(&mut publishers[1], &json!({"data": "once", "id": "x"}));
    for publisher in &mut publishers {
        let again = notify(publisher, &json!({"data": "twice", "id": "x"}));
        assert_eq!((&again["id"], &again["duplicate"]), (&first["id"], &json!(true)));
    }
    let raw =
        "POST /api/v1/notify?topic=broadcast HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n\0\u{1}\u{2}";
    assert_eq!(publishers[2].ask(raw).status, 202);
    for socket in &mut sockets {
        assert_eq!(data(socket), "once");
        assert_eq!(socket.next().json()["binary"], "AAEC");
    }
    assert_eq!(post(&mut publishers[1], "/api/v1/notify", r#"{"topic":"a b","data":1}"#).status, 404);
    let run = servers[1].run().display().to_string();
    let control = std::process::Command::new("curl")
        .args(["-s", "--unix-socket", &format!("{run}/control.sock"), "http://localhost/notify"])
        .args(["-d", r#"{"data":"by the control socket"}"#])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&control.stdout).contains("carried"), "{control:?}");
    sockets.iter_mut().for_each(|socket| assert_eq!(data(socket), "by the control socket"));
    // In the end the last one is alone, and nothing is left of the others.
    drop(publishers);
    drop(sockets);
    assert_eq!(servers.remove(0).stop(), Some(0));
    until("another leads", || servers.iter().any(|server| state(server) == "leads"));
    assert_eq!(servers.remove(0).stop(), Some(0));
    until("the last one leads", || state(&servers[0]) == "leads");
    let mut last = servers[0].client();
    assert_eq!(notify(&mut last, &json!({"data": "x", "id": "x"}))["duplicate"], true, "ids are remembered");
    drop(last);
    assert_eq!(servers.remove(0).stop(), Some(0));
    assert!(!folder.path().join("bus/live.sock").exists());
}

/// Publishes so many messages through that server.
fn storm(server: &Server, name: &str, count: usize, mut between: impl FnMut(usize)) {
    let mut publisher = server.client();
    for number in 0..count {
        notify(&mut publisher, &json!({"data": format!("{name} {number}"), "id": format!("{name} {number}")}));
        between(number);
    }
}

/// All that comes until one message, and that each of `names` came whole and in order.
fn expect_all(socket: &mut Socket, names: &[&str], count: usize) {
    let mut next = vec![0; names.len()];
    loop {
        let got = data(socket);
        let got = got.as_str().unwrap();
        if got == "the end" {
            break;
        }
        let (name, number) = got.rsplit_once(' ').unwrap();
        let at = names.iter().position(|known| *known == name).unwrap();
        assert_eq!(number.parse::<usize>().unwrap(), next[at], "{got}");
        next[at] += 1;
    }
    assert_eq!(next, vec![count; names.len()]);
}

fn a_killed_leader_costs_nobody_a_message(backend: &str) {
    let folder = crate::support::folder();
    let servers = replicas(backend, folder.path(), 3);
    let mut sockets: Vec<_> = servers[1..].iter().map(|server| Socket::told(server, "/api/v1/listen")).collect();
    let first = notify(&mut servers[0].client(), &json!({"data": "first"}));
    sockets.iter_mut().for_each(|socket| assert_eq!(data(socket), "first"));
    std::thread::scope(|scope| {
        let other = &servers[2];
        scope.spawn(move || storm(other, "b", 200, |_| ()));
        storm(&servers[1], "a", 200, |number| {
            if number == 100 {
                servers[0].signal("KILL");
            }
        });
    });
    until("another leads", || servers[1..].iter().any(|server| state(server) == "leads"));
    let mut publisher = servers[2].client();
    let last = notify(&mut publisher, &json!({"data": "the end"}));
    sockets.iter_mut().for_each(|socket| expect_all(socket, &["a", "b"], 200));
    // It goes on in the same epoch.
    let epoch = |said: &Value| said["id"].as_str().unwrap().split(':').next().unwrap().to_owned();
    assert_eq!(epoch(&first), epoch(&last));
}

fn a_killed_follower_costs_nobody_anything(backend: &str) {
    let folder = crate::support::folder();
    let servers = replicas(backend, folder.path(), 2);
    let mut socket = Socket::told(&servers[0], "/api/v1/listen");
    storm(&servers[0], "a", 100, |number| {
        if number == 50 {
            servers[1].signal("KILL");
        }
    });
    notify(&mut servers[0].client(), &json!({"data": "the end"}));
    expect_all(&mut socket, &["a"], 100);
    until("it is alone", || servers[0].hubs()[0]["bus"]["peers"] == json!([]));
}

fn a_frozen_follower_holds_up_nobody(backend: &str) {
    let folder = crate::support::folder();
    let servers = replicas(backend, folder.path(), 2);
    let mut sockets: Vec<_> = servers.iter().map(|server| Socket::told(server, "/api/v1/listen")).collect();
    notify(&mut servers[0].client(), &json!({"data": "first"}));
    sockets.iter_mut().for_each(|socket| assert_eq!(data(socket), "first"));
    servers[1].signal("STOP");
    until("it stands still", || servers[1].is_stopped());
    // More than any socket holds, and than waits for anybody.
    let long = "x".repeat(40_000);
    let mut publisher = servers[0].client();
    for number in 0..150 {
        notify(&mut publisher, &json!({"data": format!("{number} {long}")}));
        assert_eq!(data(&mut sockets[0]), format!("{number} {long}"));
    }
    servers[1].signal("CONT");
    // What was too much is said to be missing, and what there is comes in order.
    let mut last = -1;
    let mut gaps = 0;
    while last < 149 {
        let message = sockets[1].next().json();
        if message["type"] == "gap" {
            gaps += 1;
            continue;
        }
        let number: i64 = message["data"].as_str().unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(number == last + 1 || number > last && gaps > 0, "{number} behind {last}");
        last = number;
    }
    until("it follows again", || state(&servers[1]) == "follows");
    notify(&mut servers[1].client(), &json!({"data": "the end"}));
    sockets.iter_mut().for_each(|socket| assert_eq!(data(socket), "the end"));
}

fn who_comes_back_at_another_replica_gets_what_was_missed(backend: &str) {
    let folder = crate::support::folder();
    let servers = replicas(backend, folder.path(), 2);
    let mut publisher = servers[0].client();
    let ids: Vec<_> = (0..10).map(|number| notify(&mut publisher, &json!({"data": number}))["id"].clone()).collect();
    until("all is there", || servers[1].hubs()[0]["messages"] == 10);
    servers[0].signal("KILL");
    let target = format!("/api/v1/listen?last_event_id={}", ids[4].as_str().unwrap());
    let mut back = Socket::told(&servers[1], &target);
    (5..10).for_each(|number| assert_eq!(data(&mut back), number));
    notify(&mut servers[1].client(), &json!({"data": "next"}));
    assert_eq!(data(&mut back), "next");
}

fn a_replica_that_begins_gets_what_there_is(backend: &str) {
    let folder = crate::support::folder();
    let mut servers = replicas(backend, folder.path(), 1);
    let mut publisher = servers[0].client();
    // Alone it numbers for itself.
    let first = notify(&mut publisher, &json!({"topic": "a", "data": 1, "id": "x"}))["id"].clone();
    notify(&mut publisher, &json!({"topic": "a", "data": 2}));
    notify(&mut publisher, &json!({"topic": "b", "data": 3}));
    servers.push(replica(backend, folder.path(), "1"));
    until("it follows", || state(&servers[1]) == "follows");
    let mut back =
        Socket::told(&servers[1], &format!("/api/v1/listen?topic=a&last_event_id={}", first.as_str().unwrap()));
    assert_eq!(data(&mut back), 2);
    let again = notify(&mut servers[1].client(), &json!({"topic": "a", "data": 1, "id": "x"}));
    assert_eq!((&again["id"], &again["duplicate"]), (&first, &json!(true)));
    notify(&mut servers[1].client(), &json!({"topic": "a", "data": 4}));
    assert_eq!(data(&mut back), 4);
}

fn a_frozen_leader_is_said_to_be_away(backend: &str) {
    let folder = crate::support::folder();
    let servers = replicas(backend, folder.path(), 2);
    let mut socket = Socket::told(&servers[1], "/api/v1/listen");
    servers[0].signal("STOP");
    until("it stands still", || servers[0].is_stopped());
    let answer = post(&mut servers[1].client(), "/api/v1/notify", r#"{"data":"in vain"}"#);
    assert_eq!(answer.status, 503, "{}", answer.text());
    assert_eq!(servers[1].client().get("/").text(), "hello", "nothing else waits for it");
    servers[0].signal("KILL");
    // What was given to it, and nobody waits for any more, is not published by the next one.
    notify(&mut servers[1].client(), &json!({"data": "next"}));
    assert_eq!(data(&mut socket), "next");
}

fn a_reload_takes_a_bus_away_and_gives_one(backend: &str) {
    let folder = crate::support::folder();
    let servers = replicas(backend, folder.path(), 2);
    let file = folder.path().join("1.toml");
    let with = std::fs::read_to_string(&file).unwrap();
    let reload = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let run = servers[1].run().display().to_string();
        let done = std::process::Command::new(PROGRAM).args(["reload", "--wait", "--run-dir", &run]).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let mut sockets: Vec<_> = servers.iter().map(|server| Socket::told(server, "/api/v1/listen")).collect();
    reload("[apps.web]\nrespond = 'hello'\n[hub.live]\n");
    until("it has none", || servers[1].hubs()[0]["bus"].is_null());
    notify(&mut servers[1].client(), &json!({"data": "here alone"}));
    assert_eq!(data(&mut sockets[1]), "here alone");
    until("the other is alone", || servers[0].hubs()[0]["bus"]["peers"] == json!([]));
    notify(&mut servers[0].client(), &json!({"data": "there alone"}));
    assert_eq!(data(&mut sockets[0]), "there alone");
    reload(&with);
    until("it follows", || state(&servers[1]) == "follows");
    // It was numbered otherwise meanwhile, which is said at the next message.
    notify(&mut servers[1].client(), &json!({"data": "both"}));
    assert_eq!(data(&mut sockets[0]), "both");
    let mut next = sockets[1].next().json();
    while next["data"] != "both" {
        assert!(next["type"] == "gap" || next["data"] == "there alone", "{next}");
        next = sockets[1].next().json();
    }
}

fn a_directory_of_others_is_not_used(backend: &str) {
    use std::os::unix::fs::PermissionsExt;
    let folder = crate::support::folder();
    let bus = folder.path().join("bus");
    std::fs::create_dir(&bus).unwrap();
    std::fs::set_permissions(&bus, std::fs::Permissions::from_mode(0o755)).unwrap();
    let server = replica(backend, folder.path(), "0");
    until("it says so", || server.has_said("give it the mode 0700"));
    assert_eq!(state(&server), "away");
    std::fs::set_permissions(&bus, std::fs::Permissions::from_mode(0o700)).unwrap();
    until("it is used then", || state(&server) == "leads");
    notify(&mut server.client(), &json!({"data": 1}));
}

fn replicas_that_take_messages_of_different_lengths_go_on(backend: &str) {
    let long = json!({"data": "x".repeat(100_000)}).to_string();
    for (most_of_leader, most_of_follower) in [("256KiB", "64KiB"), ("64KiB", "256KiB")] {
        let folder = crate::support::folder();
        let leader = replica_with(backend, folder.path(), "0", &format!("message = '{most_of_leader}'"));
        until("it leads", || state(&leader) == "leads");
        let mut publisher = leader.client();
        let is_taken = most_of_leader == "256KiB";
        // What there is already is longer than who joins takes.
        assert_eq!(post(&mut leader.client(), "/api/v1/notify", &long).status, if is_taken { 202 } else { 413 });
        let follower = replica_with(backend, folder.path(), "1", &format!("message = '{most_of_follower}'"));
        until("it follows", || state(&follower) == "follows");
        let mut socket = Socket::told(&follower, "/api/v1/listen");
        let mut other = follower.client();
        notify(&mut publisher, &json!({"data": 1}));
        assert_eq!(data(&mut socket), 1);
        // One connection for each: it ends where the request is refused by its length.
        let (at, status) = if is_taken { (&leader, 202) } else { (&follower, 413) };
        assert_eq!(post(&mut at.client(), "/api/v1/notify", &long).status, status);
        notify(&mut other, &json!({"data": 2}));
        if is_taken {
            assert_eq!(socket.next().json()["type"], "gap");
        }
        assert_eq!(data(&mut socket), 2);
        notify(&mut publisher, &json!({"data": 3}));
        assert_eq!(data(&mut socket), 3);
        assert_eq!((state(&leader), state(&follower)), ("leads".to_owned(), "follows".to_owned()));
    }
}
