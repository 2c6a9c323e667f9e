//! What is counted of workers' lives: starts, ends by reason, and by place what is to be told on of those that are gone: it only grows.

use std::collections::BTreeMap;

use crate::fleet::Ending;
use crate::metrics::lives::{Lives, Record};

/// Why workers end, in the words of labels.
const REASONS: &[&str] = &[
    "requests",
    "lifetime",
    "memory",
    "reloads",
    "deploy",
    "deploy_aborted",
    "scale_down",
    "leaving",
    "exit",
    "crash",
    "not_ready",
    "unreachable",
    "displaced",
    "deadline",
    "watchdog",
    "health",
    "shutdown",
];

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally {
    own: Record,
    /// What the servers before this one have counted.
    before: Record,
}

impl Tally {
    /// A worker was started in that place.
    pub fn started(&mut self, place: u32) {
        self.own.lives.starts += 1;
        // Of requests there may be some of a worker that has joined, whose number is no place's.
        let again = u64::from(self.own.restarts.contains_key(&place));
        self.own.lives.replaced += again;
        *self.own.restarts.entry(place).or_default() += again;
    }

    /// A worker has ended that had that place, and requests that ran.
    pub fn ended(&mut self, place: u32, ending: Option<Ending>, crash: bool, requests: u64) {
        *self.own.lives.exits.entry(reason(ending, crash).to_owned()).or_default() += 1;
        self.own.lives.crashes += u64::from(crash);
        self.served(place, requests);
    }

    /// One that had that place is forgotten, and had requests that ran.
    pub fn served(&mut self, place: u32, requests: u64) {
        *self.own.places.entry(place).or_default() += requests;
    }

    /// The worker or the upstream of that place has failed a health check.
    pub fn failed_check(&mut self, place: u32) {
        *self.own.failed_checks.entry(place).or_default() += 1;
    }

    /// The upstream of that place is left out for failing.
    pub fn ejected(&mut self, place: u32) {
        *self.own.ejections.entry(place).or_default() += 1;
    }

    /// What the servers before this one have counted; replaces what was said before.
    pub fn inherit(&mut self, before: Record) {
        self.before = before;
    }

    /// Adds what was counted of an app that had the same name and is gone.
    pub fn add(&mut self, other: &Tally) {
        self.own.add(&other.own);
        self.before.add(&other.before);
    }

    /// All that was counted.
    pub fn all(&self) -> Record {
        let mut all = self.before.clone();
        all.add(&self.own);
        all
    }

    /// For the status document: with each reason that there is, so that those which never came can be told, too.
    pub fn told(&self) -> Lives {
        let mut lives = self.all().lives;
        for reason in REASONS {
            lives.exits.entry((*reason).to_owned()).or_default();
        }
        lives
    }

    /// The requests of those that have left a place.
    pub fn requests_before(&self, place: u32) -> u64 {
        self.of_place(place, |record| &record.places)
    }

    /// How often a place was filled again.
    pub fn restarts(&self, place: u32) -> u64 {
        self.of_place(place, |record| &record.restarts)
    }

    /// Health checks that have failed there.
    pub fn failed_checks(&self, place: u32) -> u64 {
        self.of_place(place, |record| &record.failed_checks)
    }

    /// How often the upstream there was left out for failing.
    pub fn ejections(&self, place: u32) -> u64 {
        self.of_place(place, |record| &record.ejections)
    }

    fn of_place(&self, place: u32, counts: fn(&Record) -> &BTreeMap<u32, u64>) -> u64 {
        [&self.own, &self.before].into_iter().filter_map(|record| counts(record).get(&place)).sum()
    }
}

fn reason(ending: Option<Ending>, crash: bool) -> &'static str {
    match ending {
        None if crash => "crash",
        None => "exit",
        Some(Ending::Requests(_)) => "requests",
        Some(Ending::Lifetime(_)) => "lifetime",
        Some(Ending::Memory(_)) => "memory",
        Some(Ending::Reloads(_)) => "reloads",
        Some(Ending::Deploy) => "deploy",
        Some(Ending::Aborted) => "deploy_aborted",
        Some(Ending::ScaledDown) => "scale_down",
        Some(Ending::Leaving) => "leaving",
        Some(Ending::NotReady) => "not_ready",
        Some(Ending::Unreachable) => "unreachable",
        Some(Ending::Displaced) => "displaced",
        Some(Ending::Deadline(_)) => "deadline",
        Some(Ending::Watchdog(_)) => "watchdog",
        Some(Ending::Health) => "health",
        Some(Ending::Shutdown) => "shutdown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_end_has_its_reason_and_a_place_keeps_its_requests() {
        let mut tally = Tally::default();
        let endings =
            [None, Some(Ending::Requests(7)), Some(Ending::Deploy), Some(Ending::Health), Some(Ending::Shutdown)];
        for (index, ending) in endings.into_iter().enumerate() {
            tally.started(1);
            tally.ended(1, ending, index == 0, 10);
        }
        tally.started(2);
        tally.ended(2, None, false, 1);
        let told = tally.told();
        assert_eq!((told.starts, told.replaced, told.crashes), (6, 4, 1));
        assert_eq!((tally.requests_before(1), tally.requests_before(2), tally.requests_before(3)), (50, 1, 0));
        assert_eq!((tally.restarts(1), tally.restarts(2), tally.restarts(3)), (4, 0, 0));
        let exits = told.exits;
        assert_eq!(exits.len(), REASONS.len());
        assert_eq!(exits.values().sum::<u64>(), 6);
        assert_eq!((exits["crash"], exits["exit"], exits["health"], exits["memory"]), (1, 1, 1, 0));

        (0..2).for_each(|_| tally.failed_check(1));
        tally.ejected(2);
        let mut next = Tally::default();
        next.inherit(tally.all());
        next.started(1);
        next.ended(1, Some(Ending::Deploy), false, 7);
        next.inherit(tally.all());
        let told = next.told();
        assert_eq!((told.starts, told.replaced, told.crashes, told.exits["deploy"]), (7, 4, 1, 2));
        assert_eq!((next.requests_before(1), next.requests_before(2)), (57, 1));
        next.failed_check(1);
        assert_eq!((next.restarts(1), next.failed_checks(1), next.ejections(2)), (4, 3, 1));

        // One of the same name goes on from where it is, and what the server before this one says last replaces what it said.
        let mut again = Tally::default();
        again.started(1);
        again.add(&next);
        assert_eq!((again.told().starts, again.requests_before(1)), (8, 57));
        assert_eq!((again.restarts(1), again.failed_checks(1), again.ejections(2)), (4, 3, 1));
        again.inherit(tally.all());
        assert_eq!((again.told().starts, again.requests_before(1)), (8, 57));
    }
}
