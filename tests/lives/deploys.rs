//! Rolling restarts that do not go as planned: a version that never gets ready, a server that is told to stop or is killed meanwhile,
//! requests that outlast the drain, workers that die in the middle.

use super::*;

on_every_backend! {
    a_version_that_never_gets_ready_is_withdrawn_and_the_old_one_serves_throughout,
    a_version_that_takes_requests_and_never_answers_is_withdrawn,
    a_restart_that_is_asked_for_again_is_joined_or_followed_by_one_more,
    a_server_that_is_told_to_stop_in_the_middle_finishes_its_requests_and_leaves_nothing,
    a_server_that_is_killed_in_the_middle_leaves_no_process,
    a_request_that_outlasts_the_drain_is_cut_and_that_is_said,
    an_answer_without_a_length_is_cut_when_its_worker_is_killed,
    requests_are_held_when_the_only_worker_dies_during_its_restart,
}

fn a_version_that_never_gets_ready_is_withdrawn_and_the_old_one_serves_throughout(backend: &str) {
    let site = Site::python(backend, &["-w", "2", "--ready-timeout", "5s"]);
    let before = site.settled(2);
    site.make("broken");
    let asking = Asking::begin(&site);
    let (code, said) = site.word(&["restart", "--wait"]);
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains("not ready in time") && said.contains("cannot reach the database"), "{said}");
    // The one that was tried goes by TERM, for which it is not asked twice.
    assert_eq!(site.settled(2), before);
    assert!(asking.end().iter().all(|pid| before.contains(pid)));
    let roll = site.app()["roll"].take();
    assert_eq!((&roll["state"], &roll["replaced"]), (&"aborted".into(), &0.into()));
    // The log is in order: what was tried is written before the end.
    site.events("roll-abort", 1);
    site.events("worker-spawn", 3);
    assert!(roll["reason"].as_str().unwrap().contains("not ready in time"), "{roll}");
    assert!(roll["last_stderr"].to_string().contains("cannot reach the database"), "{roll}");
    std::fs::remove_file(site.folder.path().join("broken")).unwrap();
    assert_eq!(site.word(&["restart", "--wait"]).0, Some(0));
    assert!(site.settled(2).iter().all(|pid| !before.contains(pid)));
}

fn a_version_that_takes_requests_and_never_answers_is_withdrawn(backend: &str) {
    let site = Site::python(backend, &["-w", "2", "--read-timeout-ms", "500", "--request-timeout", "1s"]);
    let before = site.settled(2);
    site.make("mute");
    site.server.signal("USR2");
    let mut roll = Value::Null;
    until("the restart to end", || {
        // The first that is answered with 504 ends it.
        asked(&mut site.server.client(), "/pid").ok();
        roll = site.app()["roll"].take();
        roll["state"] == "aborted" || roll["state"] == "done"
    });
    assert_eq!((&roll["state"], &roll["replaced"]), (&"aborted".into(), &0.into()), "{roll}");
    assert!(roll["reason"].as_str().unwrap().contains("a request to the new worker has timed out"), "{roll}");
    assert_eq!(site.settled(2), before);
    assert!(before.contains(&site.pid()));
}

fn a_restart_that_is_asked_for_again_is_joined_or_followed_by_one_more(backend: &str) {
    let site = Site::python(backend, &["-w", "2"]);
    let before = site.settled(2);
    let asking = Asking::begin(&site);
    site.make("slow");
    site.server.signal("USR2");
    until("the first replacement starts", || site.server.has_said("slow to start is"));
    // Three times more: one restart follows the one under way, and no more than one.
    for _ in 0..3 {
        site.server.signal("USR2");
        // Served by a turn of the supervisor before it answers this.
        site.app();
    }
    let app = site.app();
    assert_eq!((&app["roll"]["id"], &app["roll"]["state"], pids(&app).len()), (&1.into(), &"running".into(), 3));
    site.make("go");
    let app = site.until("both restarts", |app| app["roll"]["id"] == 2 && app["roll"]["state"] == "done");
    assert_eq!((app["workers"].as_array().unwrap().len(), &app["generation"]), (2, &3.into()));
    let answered = asking.end();
    assert!(
        before.iter().any(|pid| answered.contains(pid)) && answered.last().is_some_and(|pid| !before.contains(pid))
    );
    site.events("roll-end", 2);
    site.events("worker-spawn", 6);
}

/// In the middle of a restart: the replacement of the first worker does not get ready before it is allowed to.
fn in_the_middle(site: &Site) -> Vec<Process> {
    site.settled(2);
    site.make("slow");
    site.server.signal("USR2");
    until("the replacement starts", || site.server.has_said("slow to start is"));
    let all = site.server.descendants();
    assert!(all.iter().filter(|process| process.command.contains("worker.py")).count() == 3, "{all:?}");
    all
}

fn a_server_that_is_told_to_stop_in_the_middle_finishes_its_requests_and_leaves_nothing(backend: &str) {
    let mut site = Site::python(backend, &["-w", "2", "--shutdown", "20s"]);
    site.settled(2);
    let mut running = site.begin("/hold/answer");
    let all = in_the_middle(&site);
    site.server.signal("TERM");
    until("the server stops", || site.server.has_said("stopping: requests may finish"));
    site.make("answer");
    assert_eq!(running.answer().status, 200);
    assert_eq!(site.server.ended().code(), Some(0));
    assert_gone(&all, Duration::from_secs(2));
    assert!(!site.run().exists());
    // Two by the server's end, and one that was about to start.
    let exits = site.events("worker-exit", 3);
    let reasons = |reason| exits.iter().filter(|exit| exit["reason"] == reason).count();
    assert_eq!((reasons("shutdown"), reasons("deploy aborted")), (2, 1), "{exits:?}");
}

fn a_server_that_is_killed_in_the_middle_leaves_no_process(backend: &str) {
    let mut site = Site::python(backend, &["-w", "2"]);
    let all = in_the_middle(&site);
    site.server.signal("KILL");
    site.server.ended();
    let (workers, others): (Vec<Process>, Vec<Process>) =
        all.into_iter().partition(|process| process.command.contains("worker.py"));
    assert_gone(&workers, Duration::from_secs(2));
    // The guard stays for a moment to see that they have gone.
    until("the guard ends", || !others.iter().any(Process::is_alive));
}

fn a_request_that_outlasts_the_drain_is_cut_and_that_is_said(backend: &str) {
    let site = Site::python(
        backend,
        &["-w", "2", "--drain", "200ms", "--read-timeout-ms", "60000", "--request-timeout", "60s"],
    );
    let before = site.settled(2);
    let mut silent = site.begin("/hold/never");
    let mut begun = site.begin("/begun/never");
    // Both workers are busy; whoever asks now waits for the new ones.
    let mut waiting = site.server.client();
    waiting.begin("/pid");
    let (code, said) = site.word(&["restart", "--wait"]);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(silent.answer().status, 502);
    let cut = begun.next_answer(false);
    assert_eq!((cut.status, cut.whole), (200, false), "{cut:?}");
    assert!(waiting.answer().text().parse().is_ok_and(|pid: u32| !before.contains(&pid)));
    site.events("worker-cut", 2);
    assert!(site.settled(2).iter().all(|pid| !before.contains(pid)));
    assert!(site.events("worker-exit", 2).iter().all(|exit| exit["reason"] == "deploy"));
    assert_eq!(site.server.status()["busy"], 0);
}

/// Such an answer ends with its connection, which says nothing of whether it is whole.
fn an_answer_without_a_length_is_cut_when_its_worker_is_killed(backend: &str) {
    let site = Site::python(backend, &["-w", "1", "-c", "4", "--drain", "100ms", "--restart-base", "10ms"]);
    let begin = |path: &str| {
        let mut client = site.server.client();
        client.begin(path);
        until("its answer has begun", || client.has_input());
        client
    };
    let old = site.settled(1)[0];
    let mut whole = begin("/open/end");
    site.make("end");
    let answer = whole.answer();
    assert_eq!((answer.status, answer.text()), (200, format!("{old}{old}")), "a worker that lives is believed");
    let mut last = begin("/exit/end");
    let answer = last.answer();
    assert_eq!((answer.status, answer.text()), (200, format!("{old}{old}")), "one that ends well has done its work");
    let killed = site.until("another one serves", |app| pids(app).len() == 1 && pids(app)[0] != old);
    let killed = pids(&killed)[0];
    assert_eq!(site.settled(1), [killed]);
    let mut cut = begin("/open/never");
    crate::support::send_signal(killed, "KILL");
    let answer = cut.next_answer(false);
    assert_eq!((answer.status, answer.whole), (200, false), "{answer:?}");
    // Nor is it whole where the server itself ends the worker.
    site.until("another one serves", |app| pids(app).len() == 1 && pids(app)[0] != killed);
    site.settled(1);
    site.make("plain");
    let (code, said) = site.word(&["restart", "--wait"]);
    assert_eq!(code, Some(0), "{said}");
    site.settled(1);
    let mut cut = begin("/open/never");
    let (code, said) = site.word(&["restart", "--wait"]);
    assert_eq!(code, Some(0), "{said}");
    let answer = cut.next_answer(false);
    assert_eq!((answer.status, answer.whole), (200, false), "{answer:?}");
}

fn requests_are_held_when_the_only_worker_dies_during_its_restart(backend: &str) {
    let site = Site::python(backend, &["-w", "1", "--hold", "25s"]);
    let old = site.settled(1)[0];
    site.make("slow");
    site.server.signal("USR2");
    until("the replacement starts", || site.server.has_said("slow to start is"));
    assert_eq!(site.pid(), old, "the old one serves until the new one can");
    crate::support::send_signal(old, "KILL");
    site.until("the old one is gone", |app| !pids(app).contains(&old));
    let mut held: Vec<Client> = (0..5).map(|_| site.server.client()).collect();
    for client in &mut held {
        client.begin("/pid");
    }
    site.until("they are held", |app| app["queue"]["depth"] == 5);
    site.make("go");
    let new = site.settled(1)[0];
    for client in &mut held {
        assert_eq!(client.answer().text(), new.to_string());
    }
    let app = site.until("the restart to end", |app| app["roll"]["state"] != "running");
    assert_eq!((&app["roll"]["state"], &app["workers"][0]["last_exit"]), (&"done".into(), &"crash: signal 9".into()));
    site.events("roll-end", 1);
    // Nobody is started twice.
    site.events("worker-spawn", 2);
}
