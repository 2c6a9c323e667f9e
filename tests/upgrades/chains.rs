//! Upgrades that follow each other before the servers before have ended.

use super::*;

on_every_backend! {
    a_server_stays_until_the_one_before_it_has_ended,
    a_server_that_is_killed_in_the_middle_takes_nobody_along,
}

/// A client of a server that is replaced twice meanwhile: half of its request is sent.
struct Chain {
    line: Line,
    client: Client,
    servers: [u32; 3],
}

fn chain(backend: &str) -> Chain {
    // No machine is so slow that the first one cuts the client before it has sent all.
    let line = Line::start(backend, &["-w", "1", "--shutdown", "60s", "--body-timeout", "60s"]);
    line.until_ready(1);
    let mut client = line.server.client();
    assert_eq!(client.get("/ping").status, 200);
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nha");
    let servers = [line.process(), line.upgraded(), line.upgraded()];
    let group = |process: u32| Process::of(process).map(|process| process.group);
    until("it is in the group of the one before it", || group(servers[2]) == group(servers[0]));
    Chain { line, client, servers }
}

impl Chain {
    /// The first server's client gets its answer, and all servers before the last end.
    fn ends(&mut self) {
        self.client.send("lf");
        let answer = self.client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "half"));
        let before = &self.servers[..2];
        until("the servers before are gone", || before.iter().all(|process| Process::of(*process).is_none()));
        assert_eq!(self.line.server.client().get("/ping").text(), "pong");
        assert_eq!((self.line.process(), self.line.pid_file()), (self.servers[2], self.servers[2]));
        assert!(!self.line.server.has_said("nobody serves"), "{:?}", self.line.server.lines());
    }
}

/// What the first one still counts reaches the last one by way of the one between.
fn a_server_stays_until_the_one_before_it_has_ended(backend: &str) {
    let mut chain = chain(backend);
    // Its own work is done long before; a client that it has would be told.
    until("the workers of the second one end", || {
        !Process::below(chain.servers[1]).iter().any(|process| process.parent == chain.servers[1] && is_worker(process))
    });
    assert!(chain.servers.iter().all(|process| Process::of(*process).is_some()), "each stays with the one before it");
    chain.ends();
    until("all is counted", || chain.line.status()["counters"]["requests"] == 3);
    chain.line.upgraded();
    chain.line.stop();
}

fn is_worker(process: &Process) -> bool {
    process.command.contains(" worker")
}

/// The last one comes to the first one, whose child it is not.
fn a_server_that_is_killed_in_the_middle_takes_nobody_along(backend: &str) {
    let mut chain = chain(backend);
    send_signal(chain.servers[1], "KILL");
    chain.line.server.says("has ended before its requests were finished");
    chain.line.server.says("does not hear what this one still counts");
    let parent = Process::of(chain.servers[2]).unwrap().parent;
    assert!(parent != chain.servers[1] && (cfg!(not(target_os = "linux")) || parent == chain.servers[0]));
    chain.ends();
    chain.line.stop();
}
