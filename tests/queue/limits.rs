//! Descriptors and connections run out: who is in is served, who is not waits without a cost, and is served in its turn.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

on_every_backend! {
    without_descriptors_nothing_spins_and_service_returns,
    a_low_limit_of_descriptors_is_kept_from_the_start,
    a_crowd_at_the_door_leaves_the_reserve_of_descriptors_alone,
    beyond_the_most_connections_one_waits_for_another_to_leave,
    two_loops_share_the_most_connections,
}

/// Processor time of a waiting server within a second, in hundredths: a fifth of a core is far from a loop that spins.
const IDLE_TICKS: u64 = 20;

/// Lets a second pass in which the server must have nothing to do.
fn assert_idle(server: &Server, what: &str) {
    let (before, start) = (server.processor_ticks(), Instant::now());
    while start.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(50));
    }
    let spent = server.processor_ticks() - before;
    assert!(spent < IDLE_TICKS, "{spent} ticks of processor time in a second while {what}");
}

/// A server with that limit of descriptors, of which some are taken by what it inherits.
fn with_few_descriptors(backend: &str, most: libc::rlim_t, taken: i32, flags: &[&str]) -> Server {
    let mut command = Command::new(PROGRAM);
    let prepare = move || {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: dup2 and setrlimit are safe between fork and exec, and the structure lives for the duration of the call.
        let done = unsafe {
            (0..taken).all(|number| libc::dup2(0, most as i32 - 1 - number) >= 0)
                && libc::setrlimit(libc::RLIMIT_NOFILE, &limit) == 0
        };
        if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
    };
    // SAFETY: the closure calls only what may be called between fork and exec.
    unsafe { command.pre_exec(prepare) };
    Server::start_as(command, backend, flags)
}

/// Sends a request on each of some new connections, whether the server takes them or not.
fn ask_all(server: &Server, count: usize) -> Vec<Client> {
    let mut clients: Vec<Client> = (0..count).map(|_| server.client()).collect();
    for client in &mut clients {
        client.begin("/late");
    }
    clients
}

fn answered(clients: &[Client]) -> usize {
    clients.iter().filter(|client| client.has_input()).count()
}

fn without_descriptors_nothing_spins_and_service_returns(backend: &str) {
    let folder = folder();
    let worker = Worker::mirror(&folder.path().join("w"));
    let upstream = format!("unix:{}", worker.path.display());
    // The server trusts that it may have 59 connections; the 90 that it inherits are not what it reckons with.
    let server = with_few_descriptors(backend, 128, 90, &["--upstream", &upstream]);
    let mut old = server.client();
    old.begin("/old");
    assert_eq!(old.answer().text(), "/old");
    let mut clients = ask_all(&server, 50);
    until("those for whom there is room are served", || answered(&clients) > 0);
    assert_idle(&server, "connections wait for descriptors");
    let served = answered(&clients);
    assert!(served < 40, "{served} served: descriptors were not short");
    old.begin("/again");
    assert_eq!(old.answer().text(), "/again");
    // Each that leaves makes room for another, until all have been served.
    while !clients.is_empty() {
        until("somebody is served", || answered(&clients) > 0);
        let position = clients.iter().position(Client::has_input).unwrap();
        let mut client = clients.swap_remove(position);
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "/late"));
    }
    old.begin("/last");
    assert_eq!(old.answer().text(), "/last");
}

fn a_low_limit_of_descriptors_is_kept_from_the_start(backend: &str) {
    let folder = folder();
    let worker = Worker::mirror(&folder.path().join("w"));
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -n 80; exec \"$0\" \"$@\"", PROGRAM]);
    let upstream = format!("unix:{}", worker.path.display());
    let server = Server::start_as(shell, backend, &["--upstream", &upstream]);
    server.says("RLIMIT_NOFILE allows 80");
    let mut clients = ask_all(&server, 60);
    until("the first are served", || answered(&clients) > 0);
    assert_idle(&server, "connections wait for others to leave");
    assert!(answered(&clients) < 60, "there was no limit");
    while !clients.is_empty() {
        until("somebody is served", || answered(&clients) > 0);
        let position = clients.iter().position(Client::has_input).unwrap();
        assert_eq!(clients.swap_remove(position).answer().status, 200);
    }
}

/// Those at the door are many times what may be in, and each time that some leave others are asked in.
fn a_crowd_at_the_door_leaves_the_reserve_of_descriptors_alone(backend: &str) {
    const DESCRIPTORS: usize = 256;
    let flags = ["--respond", "ok", "--loops", "2", "--admin", "127.0.0.1:0", "--header-timeout", "10m"];
    let server = with_few_descriptors(backend, DESCRIPTORS as libc::rlim_t, 0, &flags);
    server.says("RLIMIT_NOFILE allows 256");
    let said = server.lines().into_iter().find(|line| line.contains("max_connections is ")).unwrap();
    let most: usize = said.split("max_connections is ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let (alone, entered) = (server.descriptors(), || server.status()["total_connections"].as_u64().unwrap() as usize);
    let mut inside: Vec<Client> = (0..most).map(|_| server.client()).collect();
    until("as many are in as may be", || entered() == most);
    let _door: Vec<Client> = (0..3 * DESCRIPTORS).map(|_| server.client()).collect();
    for round in 1..=20 {
        inside.truncate(most - 3 * round);
        until("others take the places of those who have left", || entered() == most + 3 * round);
        let held = server.descriptors() - alone;
        assert!(held <= most + 24, "{held} descriptors for {most} clients");
    }
    assert!(!server.has_said("cannot accept connections"), "{:?}", server.lines());
}

fn beyond_the_most_connections_one_waits_for_another_to_leave(backend: &str) {
    most_connections(backend, "1");
}

fn two_loops_share_the_most_connections(backend: &str) {
    most_connections(backend, "2");
}

/// Seven are in and stay, in the middle of their requests; of the others one comes in for each that leaves.
fn most_connections(backend: &str, loops: &str) {
    let folder = folder();
    let worker = Worker::mirror(&folder.path().join("w"));
    let server = Server::in_front_of(backend, &[&worker], &["--max-connections", "8", "--loops", loops]);
    let mut inside: Vec<Client> = (0..7).map(|_| server.client()).collect();
    for client in &mut inside {
        client.begin("/in");
        assert_eq!(client.answer().text(), "/in");
        client.send("POST /still HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhal");
    }
    until("they are not idle", || server.status()["connection_states"]["processing"] == 7);
    let waiting = ask_all(&server, 12);
    until("the last place is taken", || answered(&waiting) >= 1);
    until("who is idle makes place", || answered(&waiting) == waiting.len());
    assert_idle(&server, "nobody waits");
    assert_eq!(server.status()["active_connections"], 8, "the limit is exact");
    let mut crowd: Vec<Client> = (0..12).map(|_| server.client()).collect();
    for client in &mut crowd {
        client.send("POST /in HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhal");
    }
    until("one of them is in", || server.status()["connection_states"]["processing"] == 8);
    assert_idle(&server, "connections wait for others to leave");
    assert_eq!(server.status()["active_connections"], 8, "the limit is exact");
    for client in &mut inside {
        client.send("ve");
        assert_eq!(client.answer().text(), "/still", "who is in must be served");
    }
    for client in &mut crowd {
        client.send("ve");
    }
    for client in &mut crowd {
        assert_eq!(client.answer().text(), "/in", "each gets its turn");
    }
    let mut after = server.client();
    after.begin("/after");
    assert_eq!(after.answer().text(), "/after");
}
