//! Workers that are stuck in a request: the deadline, the dump, the kill and the successor.

use super::*;

on_every_backend! {
    a_worker_stuck_beyond_the_deadline_of_a_request_is_dumped_killed_and_replaced,
    a_worker_that_stays_silent_after_it_was_given_up_is_dumped_killed_and_replaced,
}

fn a_worker_stuck_beyond_the_deadline_of_a_request_is_dumped_killed_and_replaced(backend: &str) {
    let site = Site::python(
        backend,
        &["-w", "2", "--request-timeout", "1s", "--read-timeout-ms", "60000", "--dump-signal", "USR1"],
    );
    stuck(&site, "deadline 1 s");
}

/// The client has had its 504 for long when the worker is given up.
fn a_worker_that_stays_silent_after_it_was_given_up_is_dumped_killed_and_replaced(backend: &str) {
    let site = Site::python(
        backend,
        &["-w", "2", "--read-timeout-ms", "300", "--request-timeout", "2s", "--dump-signal", "USR1"],
    );
    stuck(&site, "deadline 2 s");
}

fn stuck(site: &Site, reason: &str) {
    let before = site.settled(2);
    let mut client = site.begin("/spin");
    let others = Asking::begin(site);
    assert_eq!(client.answer().status, 504);
    let after = site.until("the stuck one to be replaced", |app| {
        let now = pids(app);
        now.len() == 2 && now.iter().filter(|pid| before.contains(pid)).count() == 1 && running(app) == 2
    });
    // Those who asked meanwhile were answered, and by the other worker until the new one was there.
    let answered = others.end();
    let (ended, kept): (Vec<u32>, Vec<u32>) = before.iter().partition(|pid| !pids(&after).contains(pid));
    assert!(!answered.contains(&ended[0]) && answered.contains(&kept[0]), "{answered:?}");
    let exits = site.events("worker-exit", 1);
    assert_eq!(
        (&exits[0]["pid"], &exits[0]["reason"], &exits[0]["signal"]),
        (&ended[0].into(), &reason.into(), &9.into())
    );
    // The dump comes from that worker, once, and from nobody else.
    let lines = site.server.lines();
    let dumps: Vec<&String> = lines.iter().filter(|line| line.contains("] dumped by")).collect();
    assert!(dumps.len() == 1 && dumps[0].contains(&format!("dumped by {}", ended[0])), "{dumps:?}");
    let workers = after["workers"].as_array().unwrap();
    assert_eq!(workers.iter().filter(|worker| worker["last_exit"] == reason).count(), 1, "{after}");
    assert_eq!(site.server.status()["busy"], 0);
}

pub fn running(app: &Value) -> usize {
    app["workers"].as_array().unwrap().iter().filter(|worker| worker["state"] == "running").count()
}
