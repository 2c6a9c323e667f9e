//! Whether requests wait for a worker although the machine has CPU time left and the workers do not use theirs: they wait for others, and
//! would take more requests at once. The operator is told which flag to raise.
//!
//! The CPU time is as it was when it was last asked for (`super::observer`), so that what is measured lies one look behind.

use std::time::{Duration, Instant};

use crate::fleet::Name;

/// How often it is looked whether requests wait.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// Over how many looks they must wait and the workers idle. What comes and goes is no reason to change anything.
const LOOKS: u32 = 2;
/// Workers that use less than that of the time do not work all the time, in per cent...
const WORKS_PERCENT: u128 = 70;
/// ...and the machine has something left for them if that much of it idles.
const LEFT_PERCENT: u128 = 25;
/// How soon it is said again.
const AGAIN: Duration = Duration::from_secs(3600);

/// What is known at one look.
#[derive(Clone, Debug)]
pub(super) struct Look {
    /// CPU time used so far by each worker that serves.
    pub used: Vec<(Name, Duration)>,
    /// Time that the machine's cores have idled, all together.
    pub idle: Duration,
}

/// The looks at one app. See the module.
#[derive(Debug)]
pub(super) struct Saturation {
    interval: Duration,
    next: Instant,
    asked: Option<(Instant, Duration)>,
    first: Option<(Instant, Look)>,
    said: Option<Instant>,
}

impl Saturation {
    pub fn new(interval: Duration, now: Instant) -> Saturation {
        Saturation { interval, next: now + interval, asked: None, first: None, said: None }
    }

    /// When to look next.
    pub fn due(&self) -> Instant {
        self.next
    }

    /// Whether it is time to look; the next time is set then.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.interval;
        }
        due
    }

    /// Nobody waits.
    pub fn none_wait(&mut self) {
        (self.asked, self.first) = (None, None);
    }

    /// Requests wait, and the workers' CPU time is asked for now. `look`: that of the last time, and the machine's of now. The share of their
    /// time that the workers use, in per cent, if it is to be said.
    pub fn wait(&mut self, look: Look, cores: usize, now: Instant) -> Option<u128> {
        let (at, idle) = self.asked.replace((now, look.idle))?;
        let look = Look { idle, ..look };
        let Some((since, first)) = &self.first else {
            self.first = Some((at, look));
            return None;
        };
        let elapsed = at.saturating_duration_since(*since);
        if elapsed < self.interval * LOOKS {
            return None;
        }
        let before = |name: &Name| first.used.iter().find(|(known, _)| known == name).map(|(_, used)| *used);
        let grown = look.used.iter().filter_map(|(name, used)| Some(used.saturating_sub(before(name)?)));
        let grown: Vec<Duration> = grown.collect();
        let percent =
            |part: Duration, of: usize| (part.as_micros() * 100).checked_div(elapsed.as_micros() * of as u128);
        let works = percent(grown.iter().sum(), grown.len());
        let left = percent(idle.saturating_sub(first.idle), cores);
        self.first = Some((at, look));
        let idles = works.is_some_and(|works| works < WORKS_PERCENT) && left.is_some_and(|left| left >= LEFT_PERCENT);
        if !idles || self.said.is_some_and(|said| now < said + AGAIN) {
            return None;
        }
        self.said = Some(now);
        works
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Looks every ten seconds for as long as given, at two workers that use so many seconds in each, on four cores that idle as long.
    fn said(saturation: &mut Saturation, start: Instant, looks: u32, works: u32, idles: u32) -> Vec<u128> {
        let look = |at: u32| {
            let used = [1, 2].map(|name| (Name(name), SECOND * works * at.saturating_sub(1))).to_vec();
            saturation.wait(Look { used, idle: SECOND * idles * at }, 4, start + INTERVAL * at)
        };
        (0..looks).filter_map(look).collect()
    }

    #[test]
    fn it_is_said_once_and_only_where_workers_and_machine_idle() {
        let start = Instant::now();
        let new = || Saturation::new(INTERVAL, start);
        assert_eq!(said(&mut new(), start, 20, 3, 20), [30]);
        assert_eq!(said(&mut new(), start, 3, 3, 20), [], "not for long enough");
        assert_eq!(said(&mut new(), start, 20, 8, 20), [], "they work");
        assert_eq!(said(&mut new(), start, 20, 3, 5), [], "the machine has nothing left");
        let mut again = new();
        assert_eq!(said(&mut again, start, 20, 3, 20).len(), 1);
        assert_eq!(said(&mut again, start + AGAIN / 2, 20, 3, 20), []);
        assert_eq!(said(&mut again, start + AGAIN * 2, 20, 3, 20), [30]);
    }

    #[test]
    fn a_wait_that_ends_begins_anew() {
        let start = Instant::now();
        let mut saturation = Saturation::new(INTERVAL, start);
        for round in 0..10 {
            assert_eq!(said(&mut saturation, start + AGAIN * round, 3, 3, 20), []);
            saturation.none_wait();
        }
        assert!(
            !saturation.is_due(start) && saturation.is_due(start + INTERVAL) && !saturation.is_due(start + INTERVAL)
        );
    }

    #[test]
    fn workers_that_have_come_between_are_not_counted() {
        let start = Instant::now();
        let mut saturation = Saturation::new(INTERVAL, start);
        let look = |at: u32| Look { used: vec![(Name(u64::from(at)), SECOND)], idle: SECOND * 40 * at };
        assert!((0..20).all(|at| saturation.wait(look(at), 4, start + INTERVAL * at).is_none()));
    }
}
