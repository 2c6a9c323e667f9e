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
pub struct Guest {
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
    pub fn guests(&self) -> &[Guest] {
        &self.guests
    }

    /// A name for somebody who is about to join.
    pub fn next_name(&mut self) -> Name {
        self.last.name += 1;
        Name(self.last.name)
    }

    /// Lets somebody in who was seen to accept connections. Whoever had the same id before is forgotten as if it had parted.
    pub fn join(&mut self, guest: Guest, now: Instant, machine: &mut impl Machine) {
        self.guests.retain(|other| other.worker_id != guest.worker_id);
        self.guests.push(guest);
        self.ever_ready = true;
        if std::mem::take(&mut self.failed) {
            machine.recover();
        }
        self.choose_version(now, machine);
    }

    /// Forgets somebody who quit or is gone; `None` if there was nobody of that name.
    pub fn part(&mut self, name: Name, now: Instant, machine: &mut impl Machine) -> Option<Guest> {
        let position = self.guests.iter().position(|guest| guest.name == name)?;
        let guest = self.guests.remove(position);
        self.choose_version(now, machine);
        self.fail_if_all_gave_up(now, machine);
        Some(guest)
    }

    /// Opens those of the highest version before the others are shut, so that there is always somebody.
    fn choose_version(&mut self, now: Instant, machine: &mut impl Machine) {
        let highest = self.guests.iter().filter_map(|guest| guest.version.as_ref()).max();
        let wins = |guest: &&Guest| guest.version.is_none() || guest.version.as_ref() == highest;
        for guest in self.guests.iter().filter(wins) {
            machine.open(guest.name, now);
        }
        for guest in self.guests.iter().filter(|guest| !wins(guest)) {
            machine.shut(guest.name, now);
        }
    }
}
