//! Upgrades that succeed.

use std::net::{SocketAddr, UdpSocket};

use super::*;
use crate::support::exposition::{self, Samples};

on_every_backend! {
    nobody_notices_several_upgrades,
    a_request_that_runs_is_finished_by_the_server_that_has_it,
    a_server_that_is_killed_while_it_finishes_leaves_the_new_one_alone,
    the_number_of_loops_and_listeners_may_change,
    what_is_counted_goes_on_and_the_admin_listener_with_it,
    an_admin_listener_that_comes_takes_no_public_one,
    what_clients_have_used_of_limits_stays_used,
}

/// 64 clients that keep their connections and some that do not, over TCP: all requests of all of them are answered, counters only grow, pid
/// file and control socket follow.
fn nobody_notices_several_upgrades(backend: &str) {
    let line = Line::start(backend, &["-w", "2", "--loops", "2"]);
    line.until_ready(2);
    let crowd = Crowd::begin(&line, 64, 8);
    let (mut counted, mut processes) = (0, vec![line.process()]);
    for _ in 0..3 {
        processes.push(line.upgraded());
        let now = line.status()["counters"]["requests"].as_u64().unwrap();
        assert!(now >= counted && now > 0, "{now} after {counted}");
        counted = now;
        crowd.goes_on(100);
    }
    let answered = crowd.end() as u64;
    // Those before may still count.
    until("all answers are counted", || {
        let status = line.status();
        let totals = [&status["counters"]["requests"], &status["apps"][0]["requests"]["total"]];
        totals.iter().all(|total| total.as_u64().unwrap() >= answered)
    });
    assert_eq!(line.status()["counters"]["requests"].as_u64().unwrap(), answered);
    until("the servers before are gone", || processes[..3].iter().all(|process| Process::of(*process).is_none()));
    line.stop();
}

fn a_request_that_runs_is_finished_by_the_server_that_has_it(backend: &str) {
    let line = Line::start(backend, &["-w", "2"]);
    line.until_ready(2);
    let mut slow = line.server.client();
    slow.begin("/sleep?ms=1500");
    until("it runs", || line.status()["apps"][0]["workers_busy"] == 1);
    let before = line.process();
    // A connection that was opened and has asked nothing yet, and one that is kept: both may be about to ask.
    let (mut fresh, mut kept) = (line.server.client(), line.server.client());
    assert_eq!(kept.get("/ping").status, 200);
    line.upgraded();
    for client in [&mut fresh, &mut kept] {
        let answer = client.get("/ping");
        assert_eq!((answer.status, answer.text().as_str()), (200, "pong"));
        assert!(answer.has("connection: close"), "it is to come back to the new server: {}", answer.head);
    }
    assert!(Process::of(before).is_some());
    assert_eq!(slow.answer().status, 200);
    until("the old server is gone", || Process::of(before).is_none());
    line.stop();
}

fn a_server_that_is_killed_while_it_finishes_leaves_the_new_one_alone(backend: &str) {
    let line = Line::start(backend, &["-w", "2"]);
    line.until_ready(2);
    let mut slow = line.server.client();
    slow.begin("/sleep?ms=20000");
    until("it runs", || line.status()["apps"][0]["workers_busy"] == 1);
    let (before, workers) = (line.process(), line.server.workers());
    let after = line.upgraded();
    let crowd = Crowd::begin(&line, 4, 4);
    send_signal(before, "KILL");
    until("its workers are gone", || {
        workers.iter().filter(|worker| worker.parent == before).all(|worker| !worker.is_alive())
    });
    crowd.goes_on(50);
    crowd.end();
    assert_eq!((line.process(), line.pid_file()), (after, after));
    until("it is told", || line.server.has_said("has ended before its requests were finished"));
    // The run directory is still locked and works for the next one.
    line.upgraded();
    line.stop();
}

/// The command line of a server stays what it was, its configuration file need not.
fn the_number_of_loops_and_listeners_may_change(backend: &str) {
    let folder = folder();
    let (file, socket) = (path(&folder, "site.toml"), path(&folder, "site.sock"));
    let write = |loops: u32, more: &str| {
        fs::write(&file, format!("[server]\nloops = {loops}\n[[listen]]\naddress = \"127.0.0.1:0\"\n{more}")).unwrap()
    };
    write(3, "");
    let mut command = Command::new("sh");
    // The rig's own number of loops would win over the file's.
    command.args(["-c", "exec \"$0\" $(echo \"$@\" | sed -e 's/--loops 1//' -e 's/--listen 127.0.0.1:0//')", PROGRAM]);
    let line = Line::start_as(command, backend, &["-w", "1", "-f", &file]);
    line.until_ready(1);
    let crowd = Crowd::begin(&line, 4, 8);
    for (loops, more) in
        [(1, format!("[[listen]]\naddress = \"unix:{socket}\"\n")), (2, String::new()), (4, String::new())]
    {
        write(loops, &more);
        line.upgraded();
        assert_eq!(line.status()["loops"], loops);
        assert_eq!(line.status()["listen"].as_array().unwrap().len(), if more.is_empty() { 1 } else { 2 });
        crowd.goes_on(60);
    }
    crowd.end();
    until("the socket goes with the server that listened there", || !Path::new(&socket).exists());
    line.stop();
}

/// What is told at an admin listener.
fn scrape(admin: SocketAddr) -> Samples {
    let answer = Client::to(admin).ask("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!(answer.status, 200, "{}", answer.text());
    exposition::read(&answer.text(), false)
}

/// Counters that have fallen. The CPU time of loops is that of a process.
fn fallen(before: &Samples, after: &Samples) -> Vec<String> {
    let grows = |name: &str| {
        let name = name.split('{').next().unwrap_or_default();
        ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end)) && !name.contains("_loop_cpu_")
    };
    let fallen = before.iter().filter(|(name, value)| grows(name) && after.get(*name).is_none_or(|now| now < *value));
    fallen.map(|(name, value)| format!("{name}: {value}, then {:?}", after.get(name))).collect()
}

/// How many answers of 200 the app's workers have given, as pushed by StatsD's protocol so far.
fn pushed(socket: &UdpSocket, sum: &mut u64) -> u64 {
    let mut buffer = [0; 2048];
    while let Ok(length) = socket.recv(&mut buffer) {
        for line in String::from_utf8_lossy(&buffer[..length]).lines() {
            if let Some(rest) = line.strip_prefix("http_server_requests_total:")
                && rest.contains("app:")
                && rest.contains("code:200")
            {
                *sum += rest.split('|').next().unwrap().parse::<u64>().unwrap();
            }
        }
    }
    *sum
}

/// No counter falls when the server is replaced, whoever has counted: loops, apps, routes, workers' lives. What the old server still counts
/// as it finishes is told by the new one, and what is pushed is pushed by one of them, once.
fn what_is_counted_goes_on_and_the_admin_listener_with_it(backend: &str) {
    let statsd = UdpSocket::bind("127.0.0.1:0").unwrap();
    statsd.set_nonblocking(true).unwrap();
    let target = statsd.local_addr().unwrap().to_string();
    #[rustfmt::skip]
    let line = Line::start(backend, &[
        "-w", "2", "--admin", "127.0.0.1:0", "--bungate-metrics",
        "--statsd", &target, "--statsd-format", "datadog", "--statsd-interval", "100ms",
    ]);
    line.until_ready(2);
    let admin: SocketAddr = line.status()["admin"][0].as_str().unwrap().parse().unwrap();
    let app = line.status()["apps"][0]["name"].as_str().unwrap().to_owned();
    let named = |name: &str, labels: &str| format!("{name}{{app=\"{app}\"{labels}}}");
    let (answered, took) =
        (named("http_server_requests_total", ",code=\"200\""), named("http_server_request_duration_seconds_count", ""));
    let waited = named("production_server_queue_duration_seconds_count", "");
    let (starts, stopped) = (
        named("production_server_worker_starts_total", ""),
        named("production_server_worker_exits_total", ",reason=\"shutdown\""),
    );
    let (mut sum, mut expected) = (0, 0);
    for upgrade in 1..=2 {
        (0..10).for_each(|_| assert_eq!(line.server.client().get("/ping").status, 200));
        let mut slow = line.server.client();
        slow.begin("/sleep?ms=700");
        until("it runs", || line.status()["apps"][0]["workers_busy"] == 1);
        let (old, before) = (line.process(), scrape(admin));
        line.upgraded();
        assert_eq!(line.status()["admin"][0].as_str(), Some(admin.to_string().as_str()));
        assert_eq!(fallen(&before, &scrape(admin)), Vec::<String>::new());
        assert_eq!(slow.answer().status, 200);
        expected += 11;
        until("the old server is gone", || Process::of(old).is_none());
        let exits = 2.0 * f64::from(upgrade);
        let wanted = [
            (&answered, expected as f64),
            (&took, expected as f64),
            (&waited, expected as f64),
            (&starts, exits + 2.0),
            (&stopped, exits),
        ];
        let mut last = Samples::new();
        until("all that the old server has counted is told", || {
            let now = scrape(admin);
            assert_eq!(fallen(&last, &now), Vec::<String>::new());
            last = now;
            wanted.iter().all(|(name, value)| last.get(*name) == Some(value))
        });
        let served = last.iter().filter(|(name, _)| name.starts_with("production_server_worker_requests_total{"));
        assert_eq!(served.map(|(_, count)| count).sum::<f64>(), expected as f64);
        until("all is pushed", || pushed(&statsd, &mut sum) >= expected);
    }
    assert_eq!(line.status()["apps"][0]["requests"]["total"].as_u64(), Some(expected));
    assert_eq!((pushed(&statsd, &mut sum), sum), (expected, expected), "each is pushed once");
    line.stop();
}

/// Both are asked for in the same words, as ports of the kernel's choice: each keeps its own, and whichever is new gets one.
fn an_admin_listener_that_comes_takes_no_public_one(backend: &str) {
    let folder = folder();
    let file = path(&folder, "site.toml");
    let write = |more: &str| fs::write(&file, format!("apps.web.respond = 'ok'\n{more}")).unwrap();
    write("");
    let line = Line::start_in(folder, Command::new(PROGRAM), backend, &["-f", &file]);
    let mut admin = serde_json::Value::Null;
    for more in ["admin.listen = '127.0.0.1:0'", "admin.listen = '127.0.0.1:0'\nserver.loops = 2", ""] {
        write(more);
        line.upgraded();
        assert_eq!(line.server.client().get("/").text(), "ok", "the public one is where it was");
        let now = line.status()["admin"].get(0).cloned().unwrap_or_default();
        assert!(
            now.is_null() == more.is_empty() && (admin.is_null() || now.is_null() || now == admin),
            "{admin} {now}"
        );
        admin = now;
    }
    line.stop();
}

/// As many idle clients as get in, and a crowd at the control socket that says nothing: a deploy still has all the descriptors it takes.
#[test]
fn who_says_nothing_leaves_descriptors_for_a_roll_a_reload_and_an_upgrade() {
    crate::support::descriptor_limit();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 320; exec \"$0\" \"$@\"", PROGRAM]);
    let backend = if cfg!(backend_readiness) { "epoll" } else { "io_uring" };
    let line = Line::start_as(shell, backend, &["-w", "4"]);
    line.until_ready(4);
    let lines = line.server.lines();
    let most = lines.iter().find_map(|line| line.split("max_connections is ").nth(1)?.split(' ').next()?.parse().ok());
    let clients: Vec<Client> = (2..most.unwrap()).map(|_| line.server.client()).collect();
    until("all of them are in", || line.server.descriptors() > clients.len());
    // A roll goes on as soon as its first worker has answered.
    let crowd = Crowd::begin(&line, 1, 0);
    let control = line.run().join("control.sock");
    let silent: Vec<_> = (0..700).map(|_| std::os::unix::net::UnixStream::connect(&control).unwrap()).collect();
    for words in [&["reload"][..], &["restart", "--wait"]] {
        let (code, said) = line.word(words);
        assert_eq!(code, Some(0), "{words:?}: {said}");
    }
    line.upgraded();
    assert!(!line.server.lines().iter().any(|line| line.contains("os error 24")), "{:?}", line.server.lines());
    crowd.end();
    drop((clients, silent));
    line.stop();
}

fn what_clients_have_used_of_limits_stays_used(backend: &str) {
    let folder = folder();
    let file = path(&folder, "site.toml");
    let write = |long: &str| {
        let site = format!(
            "[limits.{long}]\nrate = '1/h'\n[limits.short]\nrate = '1/2s'\n\
             [[routes]]\nmatch.path = '/long'\nrespond = 'in'\nlimits = '{long}'\n\
             [[routes]]\nmatch.path = '/short'\nrespond = 'in'\nlimits = 'short'\n"
        );
        fs::write(&file, site).unwrap();
    };
    write("long");
    let line = Line::start_in(folder, Command::new(PROGRAM), backend, &["-f", &file]);
    let ask = |path: &str| line.server.client().get(path).status;
    let refused = || {
        line.status()["limits"].as_array().unwrap().iter().find(|limit| limit["name"] == "long").unwrap()["refused"]
            .clone()
    };
    assert_eq!((ask("/long"), ask("/short")), (200, 200));
    for count in 1..=2 {
        assert_eq!(ask("/long"), 429);
        line.upgraded();
        assert_eq!(ask("/long"), 429, "the next server knows it");
        assert_eq!(refused(), 2 * count, "and counts on from there");
        until("its time has come", || ask("/short") == 200);
    }
    // One of another name is another limit.
    write("other");
    line.upgraded();
    assert_eq!((ask("/long"), ask("/long")), (200, 429));
    line.stop();
}
