//! What is counted of workers' lives: starts, ends by reason, and the requests of those that are gone.

use std::collections::BTreeMap;

use crate::control::status::Lives;
use crate::fleet::Ending;

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
    "deadline",
    "watchdog",
    "health",
    "shutdown",
];

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Tally {
    starts: u64,
    replaced: u64,
    crashes: u64,
    exits: BTreeMap<&'static str, u64>,
    /// The places that were ever filled, with the requests of the workers that have left them.
    places: BTreeMap<u32, u64>,
}

impl Tally {
    /// A worker was started in that place.
    pub fn started(&mut self, place: u32) {
        self.starts += 1;
        self.replaced += u64::from(self.places.contains_key(&place));
        self.places.entry(place).or_default();
    }

    /// A worker has ended that had that place, and requests that ran.
    pub fn ended(&mut self, place: u32, ending: Option<Ending>, crash: bool, requests: u64) {
        *self.exits.entry(reason(ending, crash)).or_default() += 1;
        self.crashes += u64::from(crash);
        *self.places.entry(place).or_default() += requests;
    }

    /// For the status document: with each reason that there is, so that those which never came can be told, too.
    pub fn told(&self) -> Lives {
        let exits = REASONS.iter().map(|reason| ((*reason).to_owned(), self.exits.get(reason).copied().unwrap_or(0)));
        Lives { starts: self.starts, replaced: self.replaced, crashes: self.crashes, exits: exits.collect() }
    }

    /// The requests of those that have left a place.
    pub fn requests_before(&self, place: u32) -> u64 {
        self.places.get(&place).copied().unwrap_or(0)
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
        let exits = told.exits;
        assert_eq!(exits.len(), REASONS.len());
        assert_eq!(exits.values().sum::<u64>(), 6);
        assert_eq!((exits["crash"], exits["exit"], exits["health"], exits["memory"]), (1, 1, 1, 0));
    }
}
