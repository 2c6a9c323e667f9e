//! Health checks of workers that take one connection at a time: who fails is replaced, who is busy is left alone.

use super::stuck::running;
use super::*;

on_every_backend! {
    a_worker_that_fails_its_health_checks_is_replaced_and_no_request_is_lost,
    a_worker_from_which_nothing_comes_gets_no_requests_and_is_killed,
    a_busy_worker_is_not_asked_and_not_harmed,
    where_all_are_unhealthy_the_app_serves_on,
    a_roll_waits_for_the_first_check_and_is_aborted_where_they_fail,
}

const SYNC: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/lives/sync.py");

/// Workers of `sync.py` that are asked for `/healthz` all the time.
fn asked_often(backend: &str, flags: &[&str]) -> Site {
    let often = ["--health-check", "/healthz", "--health-interval", "20ms", "--keepalive", "off"];
    Site::start(backend, &[&often[..], flags].concat(), |folder| {
        ["--", python(), SYNC, folder].map(str::to_owned).to_vec()
    })
}

fn health(app: &Value, pid: u32) -> Value {
    let workers = app["workers"].as_array().unwrap();
    workers.iter().find(|worker| worker["pid"] == pid).map_or(Value::Null, |worker| worker["health"].clone())
}

/// How often a worker was asked how it is.
fn times_asked(site: &Site, pid: u32) -> u64 {
    std::fs::metadata(site.folder.path().join(format!("asked.{pid}"))).map_or(0, |file| file.len())
}

/// Waits until another worker is in the place of that one.
fn until_replaced(site: &Site, pid: u32) {
    site.until("it is replaced", |app| running(app) == 2 && pids(app).len() == 2 && !pids(app).contains(&pid));
}

fn a_worker_that_fails_its_health_checks_is_replaced_and_no_request_is_lost(backend: &str) {
    let site = asked_often(backend, &["-w", "2", "--health-timeout", "10s"]);
    let before = site.settled(2);
    let app = site.until("all are asked", |app| before.iter().all(|pid| health(app, *pid) != Value::Null));
    assert_eq!(health(&app, before[0]), serde_json::json!({"healthy": true, "failures": 0, "reason": null}));
    let clients = Asking::begin(&site);
    site.make(&format!("ill.{}", before[0]));
    until_replaced(&site, before[0]);
    let answered = clients.end();
    assert!(answered.contains(&before[0]) && answered.contains(&before[1]), "{answered:?}");
    let exits = site.events("worker-exit", 1);
    assert_eq!((&exits[0]["pid"], &exits[0]["reason"]), (&before[0].into(), &"failed the health check".into()));
    let told = site.events("worker-unhealthy", 1);
    assert_eq!(told[0]["reason"], "GET /healthz was answered with 500", "{told:?}");
    let lines = site.server.lines();
    let at = |event: &str| (0..lines.len()).filter(|&index| lines[index].contains(event)).collect::<Vec<usize>>();
    assert!(at("worker-ready")[2] < at("worker-exit")[0], "the new one comes first: {lines:?}");
    let mut client = site.server.client();
    client.send("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let metrics = client.answer().text();
    for line in ["worker_exits_total{app=\"web\",reason=\"health\"} 1", "worker_healthy{app=\"web\",worker=\"1\"} 1"] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let failures = "production_server_worker_health_check_failures_total{app=\"web\",worker=\"1\"}";
    let failed = crate::support::exposition::read(&metrics, false)[failures];
    assert!(failed >= 3.0, "{failed}: those of the one before count on");
}

fn a_worker_from_which_nothing_comes_gets_no_requests_and_is_killed(backend: &str) {
    let flags = ["-w", "2", "--health-timeout", "300ms", "--dump-signal", "USR1", "--read-timeout-ms", "60000"];
    let site = asked_often(backend, &flags);
    let before = site.settled(2);
    site.make(&format!("mute.{}", before[0]));
    site.until("its silence is seen", |app| health(app, before[0])["failures"] != 0);
    let clients = Asking::begin(&site);
    until_replaced(&site, before[0]);
    let answered = clients.end();
    assert!(!answered.contains(&before[0]), "{answered:?}");
    let exits = site.events("worker-exit", 1);
    let (reason, signal) = (&exits[0]["reason"], &exits[0]["signal"]);
    // USR1 ends this one already.
    assert_eq!((&exits[0]["pid"], reason, signal), (&before[0].into(), &"failed the health check".into(), &10.into()));
    let told = site.events("worker-unhealthy", 1);
    assert_eq!(told[0]["reason"], "GET /healthz was not answered within 0.3 s", "{told:?}");
}

fn a_busy_worker_is_not_asked_and_not_harmed(backend: &str) {
    let site = asked_often(backend, &["-w", "2", "--health-timeout", "500ms", "--health-unhealthy", "1"]);
    let before = site.settled(2);
    let mut busy = site.begin("/hold/go");
    let free = site.pid();
    let held = before.iter().find(|pid| **pid != free).unwrap();
    let asked = times_asked(&site, free);
    // For longer than a check may take.
    until("the other was asked again and again", || times_asked(&site, free) >= asked + 30);
    site.make("go");
    assert_eq!(busy.answer().text(), held.to_string());
    assert!(!site.folder.path().join("crowded").exists(), "it was connected to while it was busy");
    let asked = times_asked(&site, *held);
    until("it is asked again", || times_asked(&site, *held) > asked + 1);
    let app = site.app();
    assert_eq!((pids(&app), health(&app, *held)["failures"].clone()), (before, 0.into()), "{app}");
}

fn where_all_are_unhealthy_the_app_serves_on(backend: &str) {
    let site = asked_often(backend, &["-w", "3", "--health-timeout", "10s"]);
    site.settled(3);
    let clients = Asking::begin(&site);
    site.make("ill");
    until("one was replaced, and the new one is no better", || {
        site.server.lines().iter().filter(|line| line.contains("worker-unhealthy")).count() >= 4
    });
    site.remove("ill");
    site.until("all are well", |app| {
        let pids = pids(app);
        pids.len() == 3 && pids.iter().all(|pid| health(app, *pid)["healthy"] == true)
    });
    clients.end();
}

/// What new workers answer to requests does not count where they are asked for their health.
fn a_roll_waits_for_the_first_check_and_is_aborted_where_they_fail(backend: &str) {
    let site = asked_often(backend, &["-w", "2", "--health-timeout", "10s"]);
    let before = site.settled(2);
    let clients = Asking::begin(&site);
    site.make("faulty");
    let (code, said) = site.word(&["restart", "--wait"]);
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("the new worker fails its health checks: GET /healthz was answered with 500"), "{said}");
    assert_eq!(site.settled(2), before, "the old ones serve on");
    site.remove("faulty");
    let (code, said) = site.word(&["restart", "--wait"]);
    assert_eq!(code, Some(0), "{said}");
    let after = site.settled(2);
    assert!(after.iter().all(|pid| !before.contains(pid) && times_asked(&site, *pid) > 0));
    clients.end();
}
