//! What is counted of the workers of one app, by this server or by those before it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Workers that came and went. It only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Lives {
    /// Those that were started.
    pub starts: u64,
    /// Those of them that came in the place of another.
    pub replaced: u64,
    /// Those that ended unasked.
    pub crashes: u64,
    /// Those that have ended, by why.
    pub exits: BTreeMap<String, u64>,
}

/// [`Lives`], and what was done in each place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The workers.
    #[serde(flatten)]
    pub lives: Lives,
    /// Requests by the number of the place whose workers had them.
    pub places: BTreeMap<u32, u64>,
    /// How often each place was filled again.
    pub restarts: BTreeMap<u32, u64>,
    /// Health checks that the workers of each place have failed.
    pub failed_checks: BTreeMap<u32, u64>,
    /// How often the upstream of each place was left out for failing.
    pub ejections: BTreeMap<u32, u64>,
}

impl Lives {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Lives) {
        self.starts += other.starts;
        self.replaced += other.replaced;
        self.crashes += other.crashes;
        other.exits.iter().for_each(|(why, count)| *self.exits.entry(why.clone()).or_default() += count);
    }
}

impl Record {
    /// Adds what was counted elsewhere.
    pub fn add(&mut self, other: &Record) {
        self.lives.add(&other.lives);
        let both = [
            (&mut self.places, &other.places),
            (&mut self.restarts, &other.restarts),
            (&mut self.failed_checks, &other.failed_checks),
            (&mut self.ejections, &other.ejections),
        ];
        for (own, other) in both {
            other.iter().for_each(|(place, count)| *own.entry(*place).or_default() += count);
        }
    }
}
