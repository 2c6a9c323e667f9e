//! Workers that join by themselves, through the control socket: their way in, and out again.
//!
//! Owns what they are called in the fleet and in the dispatch. Their processes are somebody else's.

use std::sync::Arc;
use std::time::Instant;

use socket2::SockAddr;

use super::probe::{Look, Probe};
use super::run_directory;
use super::unit::Unit;
use crate::config::ReadyBy;
use crate::control::{Answer, Join};
use crate::dispatch::{Moves, Target, WorkerId};
use crate::fleet::{Joined, Machine, Member, Name};
use crate::log::Level;
use crate::mailbox::Message;

/// A worker that joined: its names in the fleet and in the dispatch, and where it listens.
#[derive(Debug)]
pub(super) struct JoinedWorker {
    pub name: Name,
    pub id: WorkerId,
    pub socket: std::path::PathBuf,
}

impl Unit {
    pub(super) fn join(&mut self, join: Join, now: Instant) -> Answer {
        if let Err(error) = run_directory::check_length(&join.socket) {
            return Answer::refused(400, error.to_string());
        }
        let address = match SockAddr::unix(&join.socket) {
            Ok(address) => address,
            Err(error) => return Answer::refused(400, format!("{}: {error}", join.socket.display())),
        };
        if Probe::of_worker(address.clone(), now).look(now) != Look::Listening {
            let message = format!("nobody accepts connections at {}: listen first, then join", join.socket.display());
            return Answer::refused(400, message);
        }
        if let Some(name) = self.own_worker(&join) {
            if self.processes.app.life.ready.by == ReadyBy::Join
                && self.fleet.member(name).is_some_and(Member::is_starting)
            {
                self.fleet.ready(name, now, &mut self.processes);
            }
            return Answer::done("welcome");
        }
        if self.processes.workers.iter().any(|process| process.number.to_string() == join.worker_id) {
            let message =
                format!("worker {} is one of this server's own: another workerId is expected", join.worker_id);
            return Answer::refused(400, message);
        }
        let before = self.joined(&join.worker_id);
        let name = self.fleet.next_name();
        let generation = self.fleet.generation();
        let target = Target {
            address,
            label: format!("{}.joined.{}", self.processes.app.name, join.worker_id),
            unix: true,
            supervised: false,
            number: name.0 as u32,
            moves: Arc::new(Moves::new(now)),
        };
        if self.processes.joined.len() >= super::MOST_JOINED + usize::from(before.is_some()) {
            return Answer::refused(503, format!("{} workers have joined, and no more may", super::MOST_JOINED));
        }
        let Some(id) = self.processes.dispatch.add(target, generation, None) else {
            return Answer::refused(503, "there is no room for another worker just now");
        };
        self.processes.joined.push(JoinedWorker { name, id, socket: join.socket });
        let version = join.version.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        let fields: [(&str, &dyn std::fmt::Display); 2] = [("worker", &join.worker_id), ("version", &version)];
        self.processes.events.emit(Level::Info, "worker-join", "a worker has joined", &fields);
        let joined = Joined { name, worker_id: join.worker_id, pid: join.pid, version: join.version, since: now };
        self.fleet.join(joined, now, &mut self.processes);
        // Only now, so that there is no moment without it: if it was the only worker, all who wait would be refused.
        if let Some(before) = before {
            self.remove_joined(before, now);
        }
        Answer::done("welcome")
    }

    /// The worker of ours that joins, if it is one: it says its own number and socket.
    pub(super) fn own_worker(&self, join: &Join) -> Option<Name> {
        let ours = |process: &&super::process::Process| {
            process.number.to_string() == join.worker_id && process.endpoint.path() == Some(join.socket.as_path())
        };
        self.processes.workers.iter().find(ours).map(|process| process.name)
    }

    /// Whether a worker of that id has joined, or one of ours has it as its number.
    pub(super) fn has_joined(&self, worker_id: &str) -> bool {
        let ours = |process: &super::process::Process| process.number.to_string() == worker_id;
        self.joined(worker_id).is_some() || self.processes.workers.iter().any(ours)
    }

    /// Whether a worker of that id has joined.
    pub(super) fn is_joined(&self, worker_id: &str) -> bool {
        self.joined(worker_id).is_some()
    }

    fn joined(&self, worker_id: &str) -> Option<Name> {
        self.fleet.joined().iter().find(|joined| joined.worker_id == worker_id).map(|joined| joined.name)
    }

    pub(super) fn quit(&mut self, worker_id: &str, now: Instant) -> Answer {
        if let Some(name) = self.joined(worker_id) {
            self.fleet.part(name, now, &mut self.processes);
            self.processes.events.emit(Level::Info, "worker-quit", "a worker has quit", &[("worker", &worker_id)]);
            // Forgotten when the last of its requests has ended.
            self.processes.drain(name, now);
            return Answer::done("farewell");
        }
        let ours = self.processes.workers.iter().find(|process| process.number.to_string() == worker_id);
        match ours.map(|process| process.name) {
            Some(name) => {
                self.fleet.leaving(name, now, &mut self.processes);
                Answer::done("farewell")
            }
            None => Answer::refused(404, format!("no worker {worker_id:?} has joined")),
        }
    }

    /// Forgets one that has left, or that refuses connections: nobody here can know whether it comes back. True if it was one.
    pub(super) fn remove_joined(&mut self, name: Name, now: Instant) -> bool {
        let Some(position) = self.processes.joined.iter().position(|worker| worker.name == name) else { return false };
        if let Some(joined) = self.fleet.part(name, now, &mut self.processes) {
            let message = "a worker that had joined is gone";
            self.processes.events.emit(Level::Warn, "worker-gone", message, &[("worker", &joined.worker_id)]);
        }
        let worker = self.processes.joined.swap_remove(position);
        self.processes.context.postboxes.broadcast(|| Message::Retire(self.processes.id, worker.id));
        let served = self.processes.served(worker.id);
        self.processes.dispatch.remove(worker.id, now);
        self.processes.keep_served(served);
        true
    }
}
