//! Crowds: thousands that wait beside 64 fast clients. Whoever waits, waits alone: nobody else notices, the memory has its bound,
//! those who wait get what is theirs, and when they have left, all is given back.
//!
//! Rules:
//! - Nothing here measures a time. A loop that stands still is found by the deadline of what all others want from it meanwhile.
//! - One crowd at a time: each takes a fair part of the descriptors, and of the machine. How many come is [`peers`].
//! - Clocks of the server are set far off where they are not what a case is about, for these machines are slow.

mod actor;
mod answers;
mod budget;
mod connections;
mod fast;
mod healthy;
mod peers;
mod requests;
mod slow;
mod tunnels;
mod worker;

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::support::{Client, Server, on_every_backend, until};

use fast::FAST;
use peers::{Crowd, Habit};
use worker::CrowdWorker;

/// How many come to each door, where the limit of descriptors allows it.
const PEERS: usize = 4000;
/// How many of a crowd are looked at closely.
const SPOT: usize = 48;
/// Answers to each of the fast clients.
const ROUNDS: usize = 100;
/// `--buffer-bytes` in MiB: far less than what most crowds would take.
const BUFFER: usize = 256;
/// What the server may take beside that.
const MARGIN: usize = 64;

/// A server with two loops before the worker, while nobody else has a crowd.
struct Scene {
    server: Server,
    worker: CrowdWorker,
    /// `--buffer-bytes` in MiB.
    buffer: usize,
    /// Descriptors and connections of the server before anybody came.
    descriptors: usize,
    connections: u64,
    _alone: MutexGuard<'static, ()>,
}

impl Scene {
    fn open(backend: &str, flags: &[&str]) -> Scene {
        Scene::with(backend, BUFFER, flags)
    }

    /// With so much memory for others, in MiB.
    fn with(backend: &str, buffer: usize, flags: &[&str]) -> Scene {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let worker = CrowdWorker::start();
        let memory = format!("{buffer}MiB");
        let mut all =
            vec!["--upstream", &worker.url, "--loops", "2", "--concurrency", "8192", "--buffer-bytes", &memory];
        // Of two flags with one name the last counts.
        all.extend(["--write-timeout", "5m", "--read-timeout-ms", "300000", "--request-timeout", "5m"]);
        // These are about the memory; tests/spool.rs is about what goes beyond it.
        all.extend(["--spool-bytes", "0"]);
        all.extend(flags);
        let server = Server::start(backend, &all);
        server.until_ready(1);
        let (descriptors, connections) = (server.descriptors(), connections(&server));
        Scene { server, worker, buffer, descriptors, connections, _alone: alone }
    }

    fn enter(&self, habit: Habit) -> Crowd {
        Crowd::enter(&self.server, peers(), habit)
    }

    /// The fast clients have their answers, whoever else is there.
    fn others_notice_nothing(&self) {
        fast::ask(&self.server, ROUNDS);
        self.memory_keeps_its_bound();
    }

    fn memory_keeps_its_bound(&self) {
        let (peak, bound) = (self.server.peak_bytes() >> 20, self.buffer + MARGIN);
        assert!(peak < bound, "{peak} MiB were resident, and {bound} are the bound");
    }

    /// Waits until so many clients are left.
    fn until_left(&self, count: usize) {
        until("the others' connections are closed", || connections(&self.server) == self.connections + count as u64);
    }

    /// All have left, and what was held for them is free.
    fn all_is_given_back(&self) {
        self.until_left(0);
        // The idle connections to the worker are kept.
        until("the descriptors are given back", || {
            self.server.descriptors() <= self.descriptors + self.worker.tally().open + 16
        });
        self.memory_is_free(self.buffer << 19);
        self.others_notice_nothing();
    }

    /// Answers of so many bytes together are taken from the worker although nobody reads them.
    fn memory_is_free(&self, bytes: usize) {
        const SIZE: usize = 8 << 20;
        let done = self.worker.tally().large_done;
        let readers = Crowd::enter(&self.server, bytes / SIZE, Habit::asking(|_| get(&format!("/large/{SIZE}"))));
        until("the server has taken all of the answers", || self.worker.tally().large_done == done + readers.size);
        readers.leave();
        self.until_left(0);
    }
}

/// Open connections of clients, with the one that asks, where it is one.
fn connections(server: &Server) -> u64 {
    server.status()["active_connections"].as_u64().unwrap()
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")
}

/// How many peers a crowd has: each takes two descriptors of the server and, as its worker is here, two of this process, beside what
/// other tests have open. `CROWD_PEERS=N` asks for another number.
fn peers() -> usize {
    let wanted = std::env::var("CROWD_PEERS").map_or(PEERS, |number| number.parse().unwrap());
    let room = (crate::support::descriptor_limit().saturating_sub(3000) / 2).max(100);
    if room < wanted {
        eprintln!("a crowd of {room} and not of {wanted}: RLIMIT_NOFILE allows no more");
    }
    room.min(wanted)
}
