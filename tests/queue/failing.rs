//! Upstreams that fail, or fail their health checks: they are left out, and come back slowly.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::Value;

use super::*;

on_every_backend! {
    an_upstream_that_fails_in_a_row_is_left_out,
    an_answer_that_comes_too_late_is_no_success,
    an_upstream_that_was_left_out_comes_back_slowly,
    an_upstream_that_fails_its_health_checks_is_left_out_until_it_passes,
    where_no_upstream_is_well_all_serve,
    a_reload_changes_what_is_asked_and_how_often,
    a_stop_waits_for_no_check,
}

/// How an upstream answers.
const WELL: u8 = 0;
const UNAVAILABLE: u8 = 1;
const GONE: u8 = 2;
const SILENT: u8 = 3;
/// Only `/up` is answered otherwise: by 500.
const ILL: u8 = 4;

/// Two upstreams, of which the first answers as it is told.
struct Pair {
    folder: tempfile::TempDir,
    first: Worker,
    second: Worker,
    mood: Arc<AtomicU8>,
}

impl Pair {
    fn new() -> Pair {
        let folder = folder();
        let mood = Arc::new(AtomicU8::new(WELL));
        let told = mood.clone();
        let first = Worker::start(&folder.path().join("a"), move |question, stream| {
            let answer = match told.load(Ordering::SeqCst) {
                GONE => return false,
                SILENT => {
                    until("it is well again", || told.load(Ordering::SeqCst) != SILENT);
                    return false;
                }
                UNAVAILABLE => b"HTTP/1.1 503 Full\r\nContent-Length: 0\r\n\r\n".to_vec(),
                ILL if question.target == "/up" => b"HTTP/1.1 500 Ill\r\nContent-Length: 0\r\n\r\n".to_vec(),
                _ => ok("first"),
            };
            stream.write_all(&answer).is_ok()
        });
        let second = Worker::start(&folder.path().join("b"), |_, stream| stream.write_all(&ok("second")).is_ok());
        Pair { folder, first, second, mood }
    }

    fn server(&self, backend: &str, flags: &[&str]) -> Server {
        let plain = ["--balance", "round-robin", "-c", "4"];
        Server::in_front_of(backend, &[&self.first, &self.second], &[&plain[..], flags].concat())
    }

    fn is(&self, mood: u8) {
        self.mood.store(mood, Ordering::SeqCst);
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.is(WELL);
    }
}

/// The first upstream in the status document.
fn first(server: &Server) -> Value {
    server.apps()[0]["workers"][0].clone()
}

fn until_first_is(server: &Server, state: &str) -> Value {
    until(state, || first(server)["state"] == state);
    first(server)
}

/// Asks until the first upstream is left out.
fn fail(server: &Server) {
    until("it is left out", || {
        server.client().get("/");
        first(server)["state"] == "ejected"
    });
}

fn answers(server: &Server, count: usize) -> Vec<String> {
    (0..count).map(|_| server.client().get("/").text()).collect()
}

fn events(server: &Server, name: &str) -> Vec<Value> {
    let events = server.lines().into_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok());
    events.filter(|event| event["event"] == name).collect()
}

fn an_upstream_that_fails_in_a_row_is_left_out(backend: &str) {
    for mood in [UNAVAILABLE, GONE, SILENT] {
        let pair = Pair::new();
        // Where silence is the failure its time has to pass; one that is well has time enough even on a busy machine.
        let patience = if mood == SILENT { "300" } else { "10000" };
        let flags = ["--eject-time", "1h", "--eject-max", "1h", "--read-timeout-ms", patience];
        let server = pair.server(backend, &flags);
        assert!(answers(&server, 4).contains(&"first".to_owned()));
        pair.is(mood);
        fail(&server);
        let asked = pair.first.targets().len();
        assert_eq!(answers(&server, 10), vec!["second"; 10], "{mood}");
        assert_eq!((pair.first.targets().len(), first(&server)["ejections"].clone()), (asked, 1.into()), "{mood}");
        until("it is said", || !events(&server, "upstream-ejected").is_empty());
        let told = events(&server, "upstream-ejected");
        let name = format!("unix:{}", pair.first.path.display());
        assert_eq!(
            (told.len(), &told[0]["upstream"], &told[0]["for"]),
            (1, &name.into(), &"3600 s".into()),
            "{told:?}"
        );
        pair.is(WELL);
    }
    // One that has nobody beside it is not left out.
    let pair = Pair::new();
    let server = Server::in_front_of(backend, &[&pair.first], &["--eject-time", "1h", "--eject-max", "1h"]);
    pair.is(UNAVAILABLE);
    let statuses: Vec<u16> = (0..6).map(|_| server.client().get("/").status).collect();
    assert_eq!((statuses, first(&server)["state"].clone()), (vec![503; 6], "running".into()));
}

fn an_answer_that_comes_too_late_is_no_success(backend: &str) {
    let folder = folder();
    let (late, go) = Worker::gated(&folder.path().join("a"), "/late");
    let other = Worker::start(&folder.path().join("b"), |_, stream| stream.write_all(&ok("other")).is_ok());
    let flags = ["--balance", "round-robin", "--read-timeout-ms", "300", "--eject-time", "1h", "--eject-max", "1h"];
    let server = Server::in_front_of(backend, &[&late, &other], &flags);
    let mut failures = 0;
    for _ in 0..12 {
        if server.client().get("/late").status == 504 {
            failures += 1;
            go.send(()).unwrap();
            until("the answer has come", || server.status()["busy"] == 0);
        }
    }
    assert_eq!((failures, first(&server)["state"].clone()), (3, "ejected".into()));
}

fn an_upstream_that_was_left_out_comes_back_slowly(backend: &str) {
    let pair = Pair::new();
    let server = pair.server(backend, &["--eject-time", "20ms", "--eject-max", "40ms"]);
    pair.is(UNAVAILABLE);
    fail(&server);
    until("it has failed on trial", || {
        server.client().get("/");
        first(&server)["ejections"].as_u64() >= Some(2)
    });
    // A single failure was too much there.
    let (asked, ejections) = (pair.first.targets().len() as u64, first(&server)["ejections"].as_u64().unwrap());
    assert!(asked <= 3 + ejections, "{asked} requests, {ejections} times left out");
    pair.is(WELL);
    until("it serves as before", || {
        server.client().get("/");
        !events(&server, "upstream-restored").is_empty()
    });
    let before = pair.first.targets().len();
    assert!(answers(&server, 4).contains(&"first".to_owned()));
    assert!(pair.first.targets().len() > before);
    assert!(events(&server, "upstream-trial").len() >= 2);
}

const ASKED: [&str; 6] = ["--health-check", "/up", "--health-interval", "10ms", "--health-timeout", "10s"];

fn an_upstream_that_fails_its_health_checks_is_left_out_until_it_passes(backend: &str) {
    let pair = Pair::new();
    let server = pair.server(backend, &ASKED);
    assert!(answers(&server, 4).contains(&"first".to_owned()));
    pair.is(ILL);
    let left_out = until_first_is(&server, "ejected");
    assert_eq!(left_out["health"]["healthy"], false, "{left_out}");
    assert_eq!(left_out["health"]["reason"], "GET /up was answered with 500", "{left_out}");
    assert_eq!(left_out["ejections"], 0, "{left_out}");
    assert_eq!(answers(&server, 10), vec!["second"; 10]);
    until("it is said", || !events(&server, "upstream-unhealthy").is_empty());
    assert_eq!(events(&server, "upstream-unhealthy").len(), 1);
    pair.is(WELL);
    until_first_is(&server, "running");
    until("it serves again", || server.client().get("/").text() == "first");
    until("it serves as before", || {
        server.client().get("/");
        !events(&server, "upstream-restored").is_empty()
    });
    assert_eq!(first(&server)["health"]["healthy"], true);
}

fn where_no_upstream_is_well_all_serve(backend: &str) {
    let pair = Pair::new();
    pair.second.stop();
    let other = Worker::start(&pair.folder.path().join("c"), |question, stream| {
        let answer = if question.target == "/up" {
            b"HTTP/1.1 500 Ill\r\nContent-Length: 0\r\n\r\n".to_vec()
        } else {
            ok("other")
        };
        stream.write_all(&answer).is_ok()
    });
    pair.is(ILL);
    let flags = [&["--balance", "round-robin"][..], &ASKED].concat();
    let server = Server::in_front_of(backend, &[&pair.first, &other], &flags);
    until("none is well", || !events(&server, "upstreams-unwell").is_empty());
    until("both serve", || {
        let some = answers(&server, 4);
        some.contains(&"first".to_owned()) && some.contains(&"other".to_owned())
    });
    pair.is(WELL);
    until("one is", || {
        server.client().get("/");
        !events(&server, "upstreams-well").is_empty()
    });
    until("the other is left out", || server.status()["ready"] == 1);
    assert_eq!(answers(&server, 6), vec!["first"; 6]);
}

fn a_reload_changes_what_is_asked_and_how_often(backend: &str) {
    let pair = Pair::new();
    let file = pair.folder.path().join("site.toml");
    let write = |health: &str| {
        let upstreams =
            [&pair.first, &pair.second].map(|worker| format!("'unix:{}'", worker.path.display())).join(", ");
        std::fs::write(&file, format!("[[routes]]\nupstreams = [{upstreams}]\n{health}\n")).unwrap();
    };
    pair.is(ILL);
    write("health = { path = '/up', interval = '1h' }");
    let server = Server::start(backend, &["--config", &file.display().to_string()]);
    until("it was asked once", || first(&server)["health"]["failures"] == 1);
    assert_eq!(first(&server)["state"], "running");
    let reload = |health: &str| {
        write(health);
        server.signal("HUP");
    };
    reload("health = { path = '/up', interval = '10ms', timeout = '10s' }");
    until_first_is(&server, "ejected");
    let (old, new) = (r#"interval = \"1h\" } -> {"#, r#"interval = \"10ms\", timeout = \"10s\" }"#);
    until("it is told what is other", || server.lines().iter().any(|line| line.contains(old) && line.contains(new)));
    reload("health = { path = '/up', interval = '10ms', status = '500' }");
    until_first_is(&server, "running");
    reload("health = { path = '/else', interval = '10ms' }");
    until("the other path is asked for", || pair.first.targets().contains(&"/else".to_owned()));
    reload("");
    until("nobody is asked", || first(&server)["health"].is_null());
}

fn a_stop_waits_for_no_check(backend: &str) {
    let folder = folder();
    let (worker, go) = Worker::gated(&folder.path().join("a"), "/up");
    let flags = ["--health-check", "/up", "--health-interval", "1h", "--health-timeout", "1h", "--shutdown", "60s"];
    let mut server = Server::in_front_of(backend, &[&worker], &[&flags[..], &["--queue-timeout-ms", "60000"]].concat());
    until("it is asked", || worker.targets() == ["/up"]);
    let mut client = server.client();
    client.begin("/waits");
    until("the check has the only slot", || server.status()["queue"]["depth"] == 1);
    server.signal("TERM");
    assert_eq!(client.answer().text(), "/waits");
    assert_eq!(server.ended().code(), Some(0));
    go.send(()).unwrap();
}
