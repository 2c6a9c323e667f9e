//! Hubs that share their messages over Redis and NATS, which go away and come back.

use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::{notify, post};
use crate::sites::reload::free_ports;
use crate::support::tls::localhost;
use crate::support::websocket::Socket;
use crate::support::{PROGRAM, Server, on_every_backend, until};

on_every_backend! {
    machines_share_over_redis
    redis_goes_away_and_comes_back
    redis_is_given_and_gives_what_is_long
    what_one_machine_does_not_take_is_said_there
    a_redis_that_has_forgotten_begins_an_epoch
    redis_is_spoken_to_with_a_password_and_tls
    redis_knows_its_users
    nats_is_spoken_to_with_tls
    machines_share_over_nats
    a_wrong_password_is_told
    a_password_that_is_mended_loses_nothing
    a_quiet_topic_is_told_of_a_new_epoch
}

/// A program that others share.
struct Shared {
    child: Child,
    port: u16,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

fn free_port() -> u16 {
    let [port] = free_ports();
    port
}

impl Shared {
    /// Starts it, and waits until it listens; `port` is in its arguments.
    fn start(program: &str, port: u16, folder: &Path, arguments: &[&str]) -> Shared {
        let mut command = Command::new(program);
        command.args(arguments).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{program}, of Debian's packages: {error}"));
        let shared = Shared { child, port };
        until("it listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        shared
    }

    fn redis(port: u16, folder: &Path, more: &[&str]) -> Shared {
        let text = port.to_string();
        Shared::start("redis-server", port, folder, &[&["--port", &text, "--bind", "127.0.0.1"], more].concat())
    }

    fn nats(port: u16, folder: &Path, more: &[&str]) -> Shared {
        let text = port.to_string();
        Shared::start("nats-server", port, folder, &[&["-a", "127.0.0.1", "-p", &text], more].concat())
    }
}

/// A server whose hub has that bus.
fn server(backend: &str, folder: &Path, name: &str, bus: &str) -> Server {
    server_with(backend, folder, name, &format!("bus = {{ {bus} }}"))
}

fn server_with(backend: &str, folder: &Path, name: &str, keys: &str) -> Server {
    let file = folder.join(format!("{name}.toml"));
    std::fs::write(&file, format!("[apps.web]\nrespond = 'hello'\n[hub.live]\n{keys}\n")).unwrap();
    Server::start(backend, &["--config", file.to_str().unwrap()])
}

fn two(backend: &str, folder: &Path, bus: &str) -> [Server; 2] {
    let servers = ["0", "1"].map(|name| server(backend, folder, name, bus));
    servers.iter().for_each(is_connected);
    servers
}

fn state(server: &Server) -> String {
    server.hubs()[0]["bus"]["state"].as_str().unwrap_or_default().to_owned()
}

fn is_connected(server: &Server) {
    until("it is connected", || state(server) == "connected");
}

fn data(socket: &mut Socket) -> Value {
    let message = socket.next().json();
    assert_eq!(message["type"], "message", "{message}");
    message["data"].clone()
}

/// The epoch and the number at which the topic stands.
fn topic_id(server: &Server) -> (String, String) {
    let answer = server.client().ask("GET /api/v1/topics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let document: Value = serde_json::from_str(&answer.text()).unwrap();
    let (epoch, number) = document["topics"][0]["id"].as_str().unwrap().split_once(':').unwrap();
    (epoch.to_owned(), number.to_owned())
}

fn machines_share_over_redis(backend: &str) {
    let folder = crate::support::folder();
    let redis = Shared::redis(free_port(), folder.path(), &["--save", ""]);
    let bus = format!("url = 'redis://127.0.0.1:{}'", redis.port);
    let servers = two(backend, folder.path(), &bus);
    let mut sockets: Vec<_> = servers.iter().map(|server| Socket::told(server, "/api/v1/listen")).collect();
    let mut publishers: Vec<_> = servers.iter().map(Server::client).collect();
    let ids: Vec<_> = (0..40)
        .map(|number| notify(&mut publishers[number % 2], &json!({"data": number}))["id"].as_str().unwrap().to_owned())
        .collect();
    for socket in &mut sockets {
        for (number, id) in ids.iter().enumerate() {
            let message = socket.next().json();
            assert_eq!((&message["data"], &message["id"]), (&json!(number), &json!(id)));
        }
    }
    let first = notify(&mut publishers[0], &json!({"data": "once", "id": "x"}));
    let again = notify(&mut publishers[1], &json!({"data": "twice", "id": "x"}));
    assert_eq!((&again["id"], &again["duplicate"]), (&first["id"], &json!(true)));
    sockets.iter_mut().for_each(|socket| assert_eq!(data(socket), "once"));
    // Who comes back at the other machine, or at one that has begun meanwhile, gets what was missed.
    let late = server(backend, folder.path(), "2", &bus);
    is_connected(&late);
    for server in [&servers[1], &late] {
        let mut back = Socket::told(server, &format!("/api/v1/listen?last_event_id={}", ids[37]));
        assert_eq!([data(&mut back), data(&mut back), data(&mut back)], [json!(38), json!(39), json!("once")]);
    }
}

fn redis_goes_away_and_comes_back(backend: &str) {
    let folder = crate::support::folder();
    let (port, save) = (free_port(), ["--appendonly", "yes", "--appendfsync", "always"]);
    let redis = Shared::redis(port, folder.path(), &save);
    let servers = two(backend, folder.path(), &format!("url = 'redis://127.0.0.1:{port}'"));
    let mut sockets: Vec<_> = servers.iter().map(|server| Socket::told(server, "/api/v1/listen")).collect();
    let mut publishers: Vec<_> = servers.iter().map(Server::client).collect();
    let first = notify(&mut publishers[0], &json!({"data": "first"}))["id"].as_str().unwrap().to_owned();
    sockets.iter_mut().for_each(|socket| assert_eq!(data(socket), "first"));
    drop(redis);
    until("they notice", || servers.iter().all(|server| state(server) == "away"));
    // What is published meanwhile is delivered at once, where it is published.
    for number in 0..20 {
        for (at, publisher) in publishers.iter_mut().enumerate() {
            notify(publisher, &json!({"data": format!("{at} {number}")}));
            assert_eq!(data(&mut sockets[at]), format!("{at} {number}"));
        }
    }
    let _redis = Shared::redis(port, folder.path(), &save);
    servers.iter().for_each(is_connected);
    // And then everywhere else, in its order, and nothing twice.
    for (at, socket) in sockets.iter_mut().enumerate() {
        for number in 0..20 {
            assert_eq!(data(socket), format!("{} {number}", 1 - at));
        }
    }
    notify(&mut publishers[1], &json!({"data": "last"}));
    sockets.iter_mut().for_each(|socket| assert_eq!(data(socket), "last"));
    // When nothing has come for a while the numbers are those of all again.
    until("one id is everybody's", || {
        let ids: Vec<_> = servers.iter().map(topic_id).collect();
        ids[0].0 == ids[1].0 && ids[0].1 != ids[1].1
    });
    let next = notify(&mut publishers[0], &json!({"data": "next"}));
    for socket in &mut sockets {
        let message = socket.next().json();
        assert_eq!((&message["data"], &message["id"]), (&json!("next"), &next["id"]));
    }
    // Whoever comes back from before has all of it, or is told.
    let mut back = Socket::told(&servers[0], &format!("/api/v1/listen?last_event_id={first}"));
    assert_eq!(back.next().json()["type"], "gap");
}

/// More bytes are kept while Redis is away than may wait for a connection, and there are more of them then than a reply may have.
fn redis_is_given_and_gives_what_is_long(backend: &str) {
    let folder = crate::support::folder();
    let (port, files) = (free_port(), folder.path());
    let keys = format!("message = '16MiB'\nmemory = '512MiB'\nbus = {{ url = 'redis://127.0.0.1:{port}' }}");
    let first = server_with(backend, files, "0", &keys);
    let long = "x".repeat(12_000_000);
    let publish = || assert_eq!(post(&mut first.client(), "/api/v1/notify?topic=long", &long).status, 202);
    (0..4).for_each(|_| publish());
    let _redis = Shared::redis(port, files, &["--save", ""]);
    is_connected(&first);
    (0..2).for_each(|_| publish());
    let second = server_with(backend, files, "1", &keys);
    is_connected(&second);
    let mut socket = Socket::told(&second, "/api/v1/listen?topic=long");
    publish();
    let bytes = socket.next().json()["binary"].as_str().map(str::len);
    assert_eq!(bytes, Some(16_000_000), "what is long comes whole, in base64");
    notify(&mut first.client(), &json!({"topic": "long", "data": "short"}));
    assert_eq!(data(&mut socket), "short");
}

fn what_one_machine_does_not_take_is_said_there(backend: &str) {
    let folder = crate::support::folder();
    let redis = Shared::redis(free_port(), folder.path(), &["--save", ""]);
    let bus = format!("url = 'redis://127.0.0.1:{}'", redis.port);
    let large = server(backend, folder.path(), "0", &bus);
    let small = server_with(backend, folder.path(), "1", &format!("message = '2KiB'\nbus = {{ {bus} }}"));
    [&large, &small].into_iter().for_each(is_connected);
    let mut socket = Socket::told(&small, "/api/v1/listen");
    let mut publisher = large.client();
    let ids = ["1", &"x".repeat(10_000), "3"].map(|text| notify(&mut publisher, &json!({"data": text}))["id"].clone());
    assert_eq!(data(&mut socket), "1");
    let gap = socket.next().json();
    assert_eq!((&gap["type"], &gap["from"], &gap["to"]), (&json!("gap"), &ids[0], &ids[1]));
    assert_eq!(data(&mut socket), "3");
}

fn a_redis_that_has_forgotten_begins_an_epoch(backend: &str) {
    let folder = crate::support::folder();
    let port = free_port();
    let redis = Shared::redis(port, folder.path(), &["--save", ""]);
    let servers = two(backend, folder.path(), &format!("url = 'redis://127.0.0.1:{port}'"));
    let mut socket = Socket::told(&servers[1], "/api/v1/listen");
    let mut publisher = servers[0].client();
    let before: Vec<_> = (0..5).map(|number| notify(&mut publisher, &json!({"data": number}))["id"].clone()).collect();
    (0..5).for_each(|number| assert_eq!(data(&mut socket), number));
    drop(redis);
    until("they notice", || servers.iter().all(|server| state(server) != "connected"));
    let _redis = Shared::redis(port, folder.path(), &["--save", ""]);
    servers.iter().for_each(is_connected);
    let after = notify(&mut publisher, &json!({"data": "new"}));
    let epoch = |id: &Value| id.as_str().unwrap().split(':').next().unwrap().to_owned();
    assert_ne!(epoch(&before[0]), epoch(&after["id"]));
    let next = socket.next().json();
    assert_eq!(
        if next["type"] == "gap" { socket.next().json()["id"].clone() } else { next["id"].clone() },
        after["id"]
    );
    // Nothing was lost between the two, and who comes back has what is left of both.
    let mut back = Socket::told(&servers[0], &format!("/api/v1/listen?last_event_id={}", before[3].as_str().unwrap()));
    assert_eq!([data(&mut back), data(&mut back)], [json!(4), json!("new")]);
}

fn redis_is_spoken_to_with_a_password_and_tls(backend: &str) {
    let folder = crate::support::folder();
    let (certificate, key) = localhost().write(folder.path(), "redis");
    let port = free_port();
    let text = port.to_string();
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let arguments = ["--port", "0", "--tls-port", &text, "--tls-cert-file", certificate, "--tls-key-file", key];
    let access = ["--tls-auth-clients", "no", "--bind", "127.0.0.1", "--save", "", "--requirepass", "hunter2"];
    let _redis = Shared::start("redis-server", port, folder.path(), &[&arguments[..], &access].concat());
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "hunter2\n").unwrap();
    let secret = secret.display();
    let bus =
        format!("url = 'rediss://localhost:{port}', password = {{ file = '{secret}' }}, ca_file = '{certificate}'");
    let servers = two(backend, folder.path(), &bus);
    let mut socket = Socket::told(&servers[1], "/api/v1/listen");
    let long = "x".repeat(60_000);
    for number in 0..10 {
        notify(&mut servers[0].client(), &json!({"data": format!("{number} {long}")}));
        assert_eq!(data(&mut socket), format!("{number} {long}"));
    }
    // Nobody is believed whom no authority has sworn for.
    let other =
        server(backend, folder.path(), "other", &format!("url = 'rediss://localhost:{port}', password = 'hunter2'"));
    until("it does not trust it", || state(&other) == "away");
    notify(&mut other.client(), &json!({"data": "here alone"}));
}

fn redis_knows_its_users(backend: &str) {
    let folder = crate::support::folder();
    let port = free_port();
    // What the hub needs, and nothing else.
    let hers = "anna on >hunter2 ~production_server:* &production_server:* -@all +eval +xrange +subscribe +ping +info \
        +hget +hset +hincrby +get +set +incr +pexpire +xadd +publish +del +time";
    let arguments = ["--save", "", "--user", "default", "off", "--user"];
    let arguments: Vec<&str> = arguments.into_iter().chain(hers.split_whitespace()).collect();
    let _redis = Shared::redis(port, folder.path(), &arguments);
    let servers =
        two(backend, folder.path(), &format!("url = 'redis://127.0.0.1:{port}', user = 'anna', password = 'hunter2'"));
    let mut socket = Socket::told(&servers[1], "/api/v1/listen");
    notify(&mut servers[0].client(), &json!({"data": "hello", "id": "1"}));
    assert_eq!(data(&mut socket), "hello");
    let bob = server(
        backend,
        folder.path(),
        "bob",
        &format!("url = 'redis://127.0.0.1:{port}', user = 'bob', password = 'x'"),
    );
    until("why it is away is said", || {
        bob.hubs()[0]["bus"]["problem"].as_str().is_some_and(|it| it.contains("WRONGPASS"))
    });
}

fn nats_is_spoken_to_with_tls(backend: &str) {
    let folder = crate::support::folder();
    let (certificate, key) = localhost().write(folder.path(), "nats");
    let port = free_port();
    let (certificate, key) = (certificate.to_str().unwrap(), key.to_str().unwrap());
    let _nats =
        Shared::nats(port, folder.path(), &["--tls", "--tlscert", certificate, "--tlskey", key, "--auth", "hunter2"]);
    let url = format!("url = 'tls://localhost:{port}', password = 'hunter2'");
    let servers = two(backend, folder.path(), &format!("{url}, ca_file = '{certificate}'"));
    let mut socket = Socket::told(&servers[1], "/api/v1/listen");
    let long = "x".repeat(60_000);
    for number in 0..10 {
        notify(&mut servers[0].client(), &json!({"data": format!("{number} {long}")}));
        assert_eq!(data(&mut socket), format!("{number} {long}"));
    }
    // Nobody is believed whom no authority has sworn for.
    let other = server(backend, folder.path(), "other", &url);
    until("it does not trust it", || state(&other) == "away");
    let plain = server(backend, folder.path(), "plain", &url.replace("tls://", "nats://"));
    until("it does not speak without", || state(&plain) == "away");
}

fn machines_share_over_nats(backend: &str) {
    let folder = crate::support::folder();
    let port = free_port();
    let nats = Shared::nats(port, folder.path(), &["--user", "anna", "--pass", "hunter2"]);
    let servers =
        two(backend, folder.path(), &format!("url = 'nats://127.0.0.1:{port}', user = 'anna', password = 'hunter2'"));
    let mut sockets: Vec<_> = servers.iter().map(|server| Socket::told(server, "/api/v1/listen")).collect();
    let mut publishers: Vec<_> = servers.iter().map(Server::client).collect();
    for number in 0..40 {
        let said = notify(&mut publishers[number % 2], &json!({"data": number, "id": number.to_string()}));
        for (at, socket) in sockets.iter_mut().enumerate() {
            let message = socket.next().json();
            assert_eq!(message["data"], number);
            assert_eq!(message["id"] == said["id"], at == number % 2, "each server numbers for itself");
        }
    }
    assert_eq!(notify(&mut publishers[0], &json!({"data": 1, "id": "1"}))["duplicate"], true, "it was published there");
    drop(nats);
    until("they notice", || servers.iter().all(|server| state(server) == "away"));
    notify(&mut publishers[0], &json!({"data": "here alone"}));
    assert_eq!(data(&mut sockets[0]), "here alone");
    let _nats = Shared::nats(port, folder.path(), &["--user", "anna", "--pass", "hunter2"]);
    servers.iter().for_each(is_connected);
    notify(&mut publishers[0], &json!({"data": "back"}));
    for socket in &mut sockets {
        let mut next = socket.next().json();
        assert_eq!(next["type"], "gap", "nobody knows what was missed");
        while next["type"] == "gap" {
            next = socket.next().json();
        }
        assert_eq!(next["data"], "back");
    }
}

fn a_quiet_topic_is_told_of_a_new_epoch(backend: &str) {
    let folder = crate::support::folder();
    let port = free_port();
    let nats = Shared::nats(port, folder.path(), &[]);
    let servers = two(backend, folder.path(), &format!("url = 'nats://127.0.0.1:{port}'"));
    let mut socket = Socket::told(&servers[1], "/api/v1/listen?topic=quiet");
    let mut bare = Socket::open(&servers[1], "/api/v1/listen?topic=quiet", "");
    let mut poll = servers[1].client();
    poll.send("GET /api/v1/listen?topic=quiet HTTP/1.1\r\nHost: a\r\n\r\n");
    drop(nats);
    until("they notice", || servers.iter().all(|server| state(server) == "away"));
    notify(&mut servers[0].client(), &json!({"topic": "quiet", "data": "lost for the other"}));
    let _nats = Shared::nats(port, folder.path(), &[]);
    assert_eq!(socket.next().json()["type"], "gap");
    assert_eq!(bare.expect_close(), 4409);
    let document: Value = serde_json::from_str(&poll.answer().text()).unwrap();
    assert_eq!(document["gaps"].as_array().unwrap().len(), 1, "{document}");
}

fn a_password_that_is_mended_loses_nothing(backend: &str) {
    let folder = crate::support::folder();
    let redis = Shared::redis(free_port(), folder.path(), &["--save", "", "--requirepass", "old"]);
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "old\n").unwrap();
    let servers = two(
        backend,
        folder.path(),
        &format!("url = 'redis://127.0.0.1:{}', password = {{ file = '{}' }}", redis.port, secret.display()),
    );
    let mut sockets: Vec<_> = servers.iter().map(|server| Socket::told(server, "/api/v1/listen")).collect();
    notify(&mut servers[0].client(), &json!({"data": "first"}));
    sockets.iter_mut().for_each(|socket| assert_eq!(data(socket), "first"));
    let mut owner = TcpStream::connect(("127.0.0.1", redis.port)).unwrap();
    let orders =
        "AUTH old\r\nCONFIG SET requirepass new\r\nCLIENT KILL TYPE normal SKIPME yes\r\nCLIENT KILL TYPE pubsub\r\n";
    owner.write_all(orders.as_bytes()).unwrap();
    until("it lets nobody in", || servers.iter().all(|server| state(server) == "away"));
    for number in 0..3 {
        notify(&mut servers[0].client(), &json!({"data": number}));
        assert_eq!(data(&mut sockets[0]), number);
    }
    std::fs::write(&secret, "new\n").unwrap();
    for server in servers.iter().rev() {
        let run = server.run().display().to_string();
        let reload = Command::new(PROGRAM).args(["reload", "--wait", "--run-dir", &run]).output().unwrap();
        assert!(reload.status.success(), "{}", String::from_utf8_lossy(&reload.stderr));
    }
    (0..3).for_each(|number| assert_eq!(data(&mut sockets[1]), number));
    notify(&mut servers[0].client(), &json!({"data": "after"}));
    sockets.iter_mut().for_each(|socket| assert_eq!(data(socket), "after"));
}

fn a_wrong_password_is_told(backend: &str) {
    let folder = crate::support::folder();
    let redis = Shared::redis(free_port(), folder.path(), &["--save", "", "--requirepass", "hunter2"]);
    let other =
        server(backend, folder.path(), "0", &format!("url = 'redis://127.0.0.1:{}', password = 'x'", redis.port));
    until("it is said", || other.hubs()[0]["bus"]["problem"].as_str().is_some_and(|why| why.contains("WRONGPASS")));
    assert!(!other.lines().iter().any(|line| line.contains("hunter2")));
    let mut publisher = other.client();
    let mut socket = Socket::told(&other, "/api/v1/listen");
    notify(&mut publisher, &json!({"data": "here alone"}));
    assert_eq!(data(&mut socket), "here alone");
    assert_eq!(post(&mut publisher, "/api/v1/notify", r#"{"topic":"a b","data":1}"#).status, 404);
}
