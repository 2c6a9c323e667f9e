//! More and fewer workers, by signals and by the word.

use super::*;

on_every_backend! {
    signals_add_and_take_workers_within_bounds,
    a_busy_worker_that_is_one_too_many_finishes_its_request_first,
    a_worker_that_is_one_too_many_keeps_its_tunnels_until_they_end,
    a_worker_that_is_busy_stays_where_others_are_not,
    what_is_counted_of_a_place_is_still_known_when_it_comes_again,
}

fn what_is_counted_of_a_place_is_still_known_when_it_comes_again(backend: &str) {
    let site = Site::python(backend, &["-w", "2", "--restart-base", "10ms"]);
    let before = site.settled(2);
    let restarts = |app: &Value| {
        let workers = app["workers"].as_array().unwrap();
        workers.iter().map(|worker| worker["restarts"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    before.iter().for_each(|pid| crate::support::send_signal(*pid, "KILL"));
    let is_new = |app: &Value| {
        let pid = |worker: &Value| worker["pid"].as_u64().map(|pid| pid as u32);
        app["workers"].as_array().unwrap().iter().all(|it| pid(it).is_some_and(|pid| !before.contains(&pid)))
    };
    site.until("both are filled again", |app| is_new(app) && restarts(app) == [1, 1]);
    site.settled(2);
    assert_eq!(site.word(&["scale", "1"]).0, Some(0));
    site.until("one place is gone", |app| restarts(app) == [1]);
    assert_eq!(site.word(&["scale", "2"]).0, Some(0));
    site.settled(2);
    let mut told = restarts(&site.app());
    told.sort_unstable();
    assert_eq!(told, [1, 2]);
}

fn signals_add_and_take_workers_within_bounds(backend: &str) {
    let site = Site::python(backend, &["-w", "1"]);
    let first = site.settled(1);
    let asking = Asking::begin(&site);
    site.server.signal("TTIN");
    let two = site.settled(2);
    site.server.signal("TTIN");
    let three = site.settled(3);
    assert!(two.contains(&first[0]) && two.iter().all(|pid| three.contains(pid)), "{first:?} {two:?} {three:?}");
    for left in [2, 1] {
        site.server.signal("TTOU");
        site.settled(left);
    }
    let last = site.settled(1);
    // The last one stays, however often it is asked for.
    site.server.signal("TTOU");
    assert_eq!((site.settled(1), &site.app()["workers_wanted"]), (last.clone(), &1.into()));
    assert!(three.contains(&last[0]), "nobody was started to have fewer");
    asking.end();
    site.events("worker-spawn", 3);
    assert!(site.events("worker-exit", 2).iter().all(|exit| exit["reason"] == "scale down"));
}

fn a_busy_worker_that_is_one_too_many_finishes_its_request_first(backend: &str) {
    let site = Site::python(backend, &["-w", "2", "--read-timeout-ms", "60000", "--request-timeout", "60s"]);
    let before = site.settled(2);
    let mut running = [site.begin("/hold/answer"), site.begin("/hold/answer")];
    // This one waits for whoever is free first.
    let mut waiting = site.server.client();
    waiting.begin("/pid");
    site.until("it waits", |app| app["queue"]["depth"] == 1);
    let (code, said) = site.word(&["scale", "1"]);
    assert_eq!(code, Some(0), "{said}");
    let app = site.until("one leaves", |app| app["workers_wanted"] == 1);
    let leaving = app["workers"].as_array().unwrap().iter().find(|worker| worker["state"] == "stopping").cloned();
    let leaving = leaving.unwrap_or_else(|| panic!("nobody leaves: {app}"))["pid"].as_u64().unwrap() as u32;
    assert_eq!(pids(&app), before, "it is not gone before its request");
    site.make("answer");
    let mut answered: Vec<u32> = running.iter_mut().map(|client| client.answer().text().parse().unwrap()).collect();
    answered.sort_unstable();
    let mut both = before.clone();
    both.sort_unstable();
    assert_eq!(answered, both);
    let stays = site.settled(1)[0];
    assert_ne!(stays, leaving);
    assert_eq!(waiting.answer().text(), stays.to_string(), "who leaves gets no more requests");
    site.events("worker-exit", 1);
    site.events("worker-cut", 0);
}

fn a_worker_that_is_one_too_many_keeps_its_tunnels_until_they_end(backend: &str) {
    let site = Site::python(backend, &["-w", "2", "-c", "4", "--idle-timeout", "10m"]);
    let before = site.settled(2);
    let mut tunnels = [0, 1].map(|_| {
        let mut client = site.server.client();
        client.send("GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
        assert_eq!(client.next_answer(false).status, 101);
        client
    });
    let (code, said) = site.word(&["scale", "1"]);
    assert_eq!(code, Some(0), "{said}");
    let states = |app: &serde_json::Value, state: &str| {
        app["workers"].as_array().unwrap().iter().filter(|worker| worker["state"] == state).count()
    };
    site.until("one leaves", |app| states(app, "stopping") == 1);
    for _ in 0..3 {
        for client in &mut tunnels {
            client.send("hello");
            assert_eq!(client.take(5), b"hello");
        }
    }
    assert_eq!(pids(&site.app()), before, "it is not gone before its tunnel");
    drop(tunnels);
    site.settled(1);
    site.events("worker-exit", 1);
    site.events("worker-cut", 0);
}

fn a_worker_that_is_busy_stays_where_others_are_not(backend: &str) {
    let site = Site::python(backend, &["-w", "3", "--read-timeout-ms", "60000", "--request-timeout", "60s"]);
    site.settled(3);
    let mut held = site.begin("/hold/long");
    // The others have answered later than this one.
    let mut others = [site.begin("/hold/short"), site.begin("/hold/short")];
    site.make("short");
    others.iter_mut().for_each(|client| assert_eq!(client.answer().status, 200));
    for left in [2, 1] {
        assert_eq!(site.word(&["scale", "-1"]).0, Some(0));
        site.settled(left);
    }
    let stays = site.settled(1)[0];
    site.make("long");
    assert_eq!(held.answer().text(), stays.to_string());
    site.events("worker-exit", 2);
}

/// With so many, whatever costs each worker a look at all others shows.
#[test]
fn two_hundred_workers_start_serve_are_replaced_and_stop() {
    const COUNT: usize = 200;
    let mut site = Site::start("epoll", &["-w", "200"], |_| Vec::new());
    let before = site.settled(COUNT);
    let rolled = std::thread::scope(|scope| {
        let rolled = scope.spawn(|| site.word(&["restart", "--wait"]));
        let run = |app: &serde_json::Value| {
            app["workers"].as_array().unwrap().iter().filter(|worker| worker["state"] == "running").count()
        };
        let both = site.until("the first new one serves", |app| run(app) == COUNT + 1);
        assert_eq!(both["workers_ready"], COUNT, "a place with two of them is one");
        // As many requests as workers: one is for the new one, whose answer ends its trial.
        let mut clients: Vec<Client> = (0..=COUNT).map(|_| site.server.client()).collect();
        clients.iter_mut().for_each(|client| client.begin("/sleep?ms=1000"));
        assert!(clients.iter_mut().all(|client| client.answer().status == 200));
        rolled.join().unwrap()
    });
    assert_eq!(rolled, (Some(0), "rolling restart 1 is done: 200 of 200 workers are new\n".to_owned()));
    let after = site.settled(COUNT);
    assert!(!after.iter().any(|pid| before.contains(pid)), "{before:?} {after:?}");
    let start = std::time::Instant::now();
    assert_eq!(pids(&site.app()), after);
    println!("the status of 200 workers: {:?}", start.elapsed());
    let all = site.server.descendants();
    assert!(all.len() >= COUNT && site.events("worker-exit", COUNT).iter().all(|exit| exit["reason"] == "deploy"));
    assert_eq!(site.server.stop(), Some(0));
    assert_gone(&all, DEADLINE);
    assert!(!site.run().exists(), "the run directory is left");
}
