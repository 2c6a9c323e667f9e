//! Workers that this server did not start, over the real control socket.

use serde_json::json;

use super::*;
use crate::support::Worker;

on_every_backend! {
    the_highest_version_that_has_joined_serves_alone,
    who_waits_while_there_is_nobody_is_served_by_whoever_joins,
    who_joins_again_with_the_same_id_takes_its_own_place,
}

/// A worker of the test's own that says who it is, and closes: once it has vanished, nobody reaches it any more.
fn named(name: &'static str) -> Worker {
    Worker::saying_last(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len()))
}

fn join(site: &Site, id: &str, worker: &Worker, version: &str) -> (u16, Value) {
    let socket = worker.url.strip_prefix("unix:").unwrap();
    site.ask("/worker", &json!({"op": "join", "workerId": id, "socket": socket, "version": version, "pid": 1}))
}

fn quit(site: &Site, id: &str) -> u16 {
    site.ask("/worker", &json!({"op": "quit", "workerId": id})).0
}

fn joined(app: &Value) -> Vec<&str> {
    let all = app["workers"].as_array().unwrap().iter().filter(|worker| worker["joined"] == true);
    all.map(|worker| worker["name"].as_str().unwrap().rsplit('.').next().unwrap()).collect()
}

/// Nobody accepts at its socket any more.
fn vanish(worker: &Worker) {
    worker.vanish();
    let socket = worker.url.strip_prefix("unix:").unwrap();
    until("nobody accepts there", || UnixStream::connect(socket).is_err());
}

/// Who answers twenty requests over connections new and kept.
fn who(site: &Site) -> Vec<String> {
    let mut kept = site.server.client();
    let mut names: Vec<String> =
        (0..10).flat_map(|_| [kept.get("/").text(), site.server.client().get("/").text()]).collect();
    names.dedup();
    names
}

fn the_highest_version_that_has_joined_serves_alone(backend: &str) {
    let site = Site::empty(backend, &[]);
    let (one, two, dead) = (named("one"), named("two"), named("dead"));
    vanish(&dead);
    let (status, refused) = join(&site, "dead", &dead, "9");
    assert_eq!((status, &refused["ok"]), (400, &json!(false)));
    assert!(joined(&site.app()).is_empty());

    assert_eq!(join(&site, "1", &one, "1"), (200, json!({"ok": true})));
    assert_eq!(who(&site), ["one"]);
    assert_eq!(join(&site, "2", &two, "2"), (200, json!({"ok": true})));
    assert_eq!((who(&site), joined(&site.app()).len()), (vec!["two".to_owned()], 2));
    // A lower one that comes later does not get in between, and leaves without being missed.
    let old = named("old");
    assert_eq!(join(&site, "0", &old, "1.9.9").0, 200);
    assert_eq!((who(&site), quit(&site, "0")), (vec!["two".to_owned()], 200));
    assert_eq!(quit(&site, "2"), 200);
    assert_eq!(who(&site), ["one"]);
    site.until("who has quit is forgotten", |app| joined(app) == ["1"]);
    assert_eq!((quit(&site, "2"), quit(&site, "1")), (404, 200));
    old.expect_nothing("it never was of the highest version");
}

fn who_waits_while_there_is_nobody_is_served_by_whoever_joins(backend: &str) {
    let site = Site::empty(backend, &["--hold", "25s"]);
    let mut held: Vec<Client> = (0..5).map(|_| site.server.client()).collect();
    for client in &mut held {
        client.begin("/");
    }
    site.until("they are held", |app| app["queue"]["depth"] == 5);
    let one = named("one");
    assert_eq!(join(&site, "1", &one, "1").0, 200);
    for client in &mut held {
        assert_eq!(client.answer().text(), "one");
    }
    // It dies; the next request finds that out, is held, and served by the next one that joins.
    vanish(&one);
    let mut next = site.server.client();
    next.begin("/");
    site.until("it is dropped", |app| joined(app).is_empty());
    let two = named("two");
    assert_eq!(join(&site, "2", &two, "1").0, 200);
    assert_eq!(next.answer().text(), "two");
}

fn who_joins_again_with_the_same_id_takes_its_own_place(backend: &str) {
    let site = Site::empty(backend, &[]);
    let (one, again, low) = (named("one"), named("again"), named("low"));
    assert_eq!(join(&site, "w", &one, "1").0, 200);
    assert_eq!(who(&site), ["one"]);
    assert_eq!(join(&site, "w", &again, "1").0, 200);
    assert_eq!((who(&site), joined(&site.app())), (vec!["again".to_owned()], vec!["w"]));
    // One that comes back at the same socket, with a lower version than before, is taken at its word.
    assert_eq!(join(&site, "other", &low, "0.5").0, 200);
    assert_eq!(who(&site), ["again"]);
    assert_eq!(join(&site, "w", &again, "0.4").0, 200);
    assert_eq!(who(&site), ["low"]);
    // Whoever cannot be connected to is refused, and who was there before stays.
    vanish(&again);
    assert_eq!(join(&site, "other", &again, "7").0, 400);
    assert_eq!(who(&site), ["low"]);
}
