//! Workers that join by themselves: nobody here started them, and nobody here ends them.
//!
//! The highest version that has joined wins: only its workers get requests, and those that say no version. Lower ones wait,
//! and serve again when all of the higher version have left.

use std::fmt;
use std::time::Instant;

use super::{Fleet, Machine, Name};

/// A worker's version: numbers from the most to the least important, as in `3` or `1.10.2`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<u64>);

impl Version {
    /// Reads whole numbers between dots. Trailing zeros say nothing: `1.0` is `1`.
    pub fn parse(text: &str) -> Option<Version> {
        if text.len() > 64 {
            return None;
        }
        let numbers: Option<Vec<u64>> = text.split('.').map(|number| number.parse().ok()).collect();
        numbers.map(|mut numbers| {
            while numbers.len() > 1 && numbers.last() == Some(&0) {
                numbers.pop();
            }
            Version(numbers)
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u64::to_string).collect();
        formatter.write_str(&numbers.join("."))
    }
}

/// A worker that joined.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Its name.
    pub name: Name,
    /// What it calls itself.
    pub worker_id: String,
    /// Its process, as it says.
    pub pid: Option<u32>,
    /// Its version.
    pub version: Option<Version>,
    /// When it joined.
    pub since: Instant,
}

impl Fleet {
    /// Those who joined, oldest first.
    pub fn joined(&self) -> &[Joined] {
        &self.joined
    }

    /// A name for somebody who is about to join.
    pub fn next_name(&mut self) -> Name {
        self.last.name += 1;
        Name(self.last.name)
    }

    /// Lets somebody in who was seen to accept connections. Whoever had the same id before is forgotten as if it had parted.
    pub fn join(&mut self, worker: Joined, now: Instant, machine: &mut impl Machine) {
        self.joined.retain(|other| other.worker_id != worker.worker_id);
        self.joined.push(worker);
        self.ever_ready = true;
        if std::mem::take(&mut self.failed) {
            machine.recover();
        }
        self.choose_version(now, machine);
    }

    /// Forgets somebody who quit or is gone; `None` if there was nobody of that name.
    pub fn part(&mut self, name: Name, now: Instant, machine: &mut impl Machine) -> Option<Joined> {
        let position = self.joined.iter().position(|worker| worker.name == name)?;
        let worker = self.joined.remove(position);
        self.choose_version(now, machine);
        self.fail_if_all_gave_up(now, machine);
        Some(worker)
    }

    /// Opens those of the highest version before the others are shut, so that there is always somebody.
    fn choose_version(&mut self, now: Instant, machine: &mut impl Machine) {
        let highest = self.joined.iter().filter_map(|worker| worker.version.as_ref()).max();
        let wins = |worker: &&Joined| worker.version.is_none() || worker.version.as_ref() == highest;
        for worker in self.joined.iter().filter(wins) {
            machine.open(worker.name, now);
        }
        for worker in self.joined.iter().filter(|worker| !wins(worker)) {
            machine.shut(worker.name, now);
        }
    }
}
