//! Trouble around the app that passes: slow starts all at once, an outage behind it, crash loops, operators that end workers, and a stop that
//! tells the workers as well.

use super::stuck::running;
use super::*;

on_every_backend! {
    heavy_workers_come_up_a_few_at_a_time,
    who_is_late_is_told_of_with_those_that_started_beside_it,
    an_outage_behind_the_app_ends_when_it_ends,
    a_server_that_is_to_end_when_its_app_has_failed_does,
    workers_that_die_after_each_answer_are_started_ever_later,
    workers_that_an_operator_ends_have_not_crashed,
    a_stop_that_tells_all_processes_at_once_fails_no_request,
}

/// How many workers were on their way at most, as the log tells it.
fn most_on_their_way(site: &Site) -> usize {
    let (mut starting, mut most) = (0_usize, 0);
    for line in site.server.lines().iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        match line["event"].as_str() {
            Some("worker-spawn") => starting += 1,
            Some("worker-ready") => starting -= 1,
            _ => {}
        }
        most = most.max(starting);
    }
    most
}

fn heavy_workers_come_up_a_few_at_a_time(backend: &str) {
    let flags = ["-w", "6", "--start-parallel", "2", "--ready-timeout", "60s"];
    let site = Site::python_with(backend, &flags, &["heavy"]);
    let before = site.settled(6);
    site.events("worker-spawn", 6);
    assert!(!site.server.has_said("worker-not-ready"));
    // The same after all have died.
    for pid in &before {
        kill(*pid, "KILL");
    }
    let after =
        site.until("all are back", |app| running(app) == 6 && pids(app).iter().all(|pid| !before.contains(pid)));
    site.events("worker-ready", 12);
    assert_eq!((most_on_their_way(&site), pids(&after).len()), (2, 6));
}

fn who_is_late_is_told_of_with_those_that_started_beside_it(backend: &str) {
    let flags = ["-w", "3", "--start-parallel", "2", "--ready-timeout", "1s"];
    let site = Site::python_with(backend, &flags, &["slow"]);
    until("one is late", || site.server.has_said("worker-not-ready"));
    let lines = site.server.lines();
    let late: Vec<&String> = lines.iter().filter(|line| line.contains("worker-not-ready")).collect();
    assert!(late[0].contains("1 other was starting beside it (--start-parallel)"), "{late:?}");
}

/// Fails at once, and is tried again soon.
const HASTY: [&str; 6] = ["--restart-base", "10ms", "--restart-max", "200ms", "--give-up", "3/60s"];

fn kill(pid: u32, signal: &str) {
    Command::new("kill").args([&format!("-{signal}"), &pid.to_string()]).status().unwrap();
}

/// Everything that the app needs is away, and its workers die.
fn outage(site: &Site) {
    let before = site.settled(2);
    assert!(before.contains(&site.pid()));
    site.make("absent");
    before.into_iter().for_each(|pid| kill(pid, "KILL"));
}

fn an_outage_behind_the_app_ends_when_it_ends(backend: &str) {
    let site = Site::python(backend, &[&["-w", "2"], &HASTY[..]].concat());
    outage(&site);
    site.until("the app has failed", |app| app["state"] == "failed");
    let mut client = site.server.client();
    assert_eq!(client.get("/pid").status, 503);
    let answer = site.server.client().get("/server");
    assert!(answer.status == 503 && answer.text().contains("the app has failed"), "{}", answer.text());
    until("it is tried again", || {
        site.server.lines().iter().filter(|line| line.contains("worker-failed")).count() >= 4
    });
    site.remove("absent");
    site.until("a worker serves", |app| app["state"] == "running");
    assert_eq!(asked(&mut site.server.client(), "/pid").map(|_| ()), Ok(()), "the one that is ready gets requests");
    site.settled(2);
    assert_eq!(site.server.client().get("/server").text(), "ok");
    site.events("app-failed", 1);
}

fn a_server_that_is_to_end_when_its_app_has_failed_does(backend: &str) {
    let mut site = Site::python(backend, &[&["-w", "2", "--give-up-exit"], &HASTY[..]].concat());
    outage(&site);
    assert_eq!(site.server.ended().code(), Some(69));
    site.server.says("the app has failed; the server ends (--give-up-exit)");
}

fn workers_that_die_after_each_answer_are_started_ever_later(backend: &str) {
    let flags = ["-w", "1", "--restart-base", "60s", "--restart-max", "60s", "--give-up", "3/60s"];
    let site = Site::python(backend, &flags);
    for _ in 0..2 {
        site.settled(1);
        let mut client = site.server.client();
        assert_eq!(client.get("/last").status, 200);
        until("it has died", || site.server.status()["ready"] == 0 || site.app()["workers"][0]["restarts"] == 1);
    }
    let told = site.events("worker-looping", 1);
    assert_eq!((&told[0]["worker"], &told[0]["ends"]), (&1.into(), &2.into()), "{told:?}");
    let app = site.app();
    assert_eq!((&app["state"], &app["workers"][0]["state"]), (&"running".into(), &"respawning".into()), "{app}");
    site.events("worker-spawn", 2);
}

fn workers_that_an_operator_ends_have_not_crashed(backend: &str) {
    let flags = ["-w", "2", "--restart-base", "10ms", "--restart-max", "20ms", "--give-up", "3/60s"];
    for (file, reason) in [("plain", "TERM from outside"), ("none", "ended by itself: code 0")] {
        let site = Site::python_with(backend, &flags, &[file]);
        for _ in 0..8 {
            let first = site.settled(2)[0];
            kill(first, "TERM");
            site.until("it is replaced", |app| running(app) == 2 && !pids(app).contains(&first));
        }
        let exits = site.events("worker-exit", 8);
        assert!(exits.iter().all(|exit| exit["reason"] == reason && exit["level"] == "info"), "{exits:?}");
        assert!(!site.server.has_said("worker-failed"));
    }
}

/// What systemd does by default (KillMode=control-group). Twenty requests are under way or wait.
fn a_stop_that_tells_all_processes_at_once_fails_no_request(backend: &str) {
    let flags = ["-w", "2", "--shutdown", "60s", "--queue-timeout-ms", "30000", "--request-timeout", "60s"];
    let python = Site::python_with(backend, &flags, &["patient"]);
    let built_in = Site::start(backend, &flags, |_| Vec::new());
    for (mut site, path) in [(python, "/pid"), (built_in, "/sleep?ms=10")] {
        site.settled(2);
        // Connections to the workers that they would wait for.
        let mut clients: Vec<Client> = (0..20).map(|_| site.server.client()).collect();
        clients.iter_mut().for_each(|client| assert_eq!(client.get(path).status, 200));
        let all = site.server.workers();
        clients.iter_mut().for_each(|client| client.begin(path));
        site.server.signal("TERM");
        all.iter().for_each(|process| kill(process.id, "TERM"));
        for client in &mut clients {
            let answer = client.answer();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!(site.server.ended().code(), Some(0));
    }
}
