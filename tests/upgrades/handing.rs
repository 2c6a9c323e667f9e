//! Upgrades that succeed.

use super::*;

on_every_backend! {
    nobody_notices_several_upgrades,
    a_request_that_runs_is_finished_by_the_server_that_has_it,
    a_server_that_is_killed_while_it_finishes_leaves_the_new_one_alone,
    the_number_of_loops_and_listeners_may_change,
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
    // The last one before may still count.
    until("all answers are counted", || line.status()["counters"]["requests"].as_u64().unwrap() >= answered);
    let status = line.status();
    assert_eq!(status["counters"]["requests"].as_u64().unwrap(), answered);
    assert!(status["apps"][0]["requests"]["total"].as_u64().unwrap() >= answered);
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
