//! Health checks: what a row of them makes of whoever is asked, and when an unhealthy worker may be replaced.

use std::time::{Duration, Instant};

/// After a worker was replaced, the next one that is unhealthy waits for so long, unless the new one passes...
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// ...then for twice as long, up to this.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How many checks in a row decide.
#[derive(Clone, Copy, Debug)]
pub struct HealthRule {
    /// So many failures make one unhealthy; at least 1.
    pub unhealthy: u32,
    /// So many successes make it healthy again; at least 1.
    pub healthy: u32,
}

/// What the checks of one say. It counts as healthy before the first.
#[derive(Clone, Debug)]
pub struct Streak {
    healthy: bool,
    /// Results in a row that say the opposite.
    against: u32,
    failures: u64,
    reason: Option<String>,
}

impl Default for Streak {
    fn default() -> Streak {
        Streak { healthy: true, against: 0, failures: 0, reason: None }
    }
}

impl Streak {
    /// Takes a check's result in, with what was wrong; whether it is healthy, where that has changed.
    pub fn note(&mut self, result: Result<(), String>, rule: HealthRule) -> Option<bool> {
        let passed = result.is_ok();
        self.failures += u64::from(!passed);
        self.reason = result.err();
        if passed == self.healthy {
            self.against = 0;
            return None;
        }
        self.against += 1;
        if self.against < if passed { rule.healthy } else { rule.unhealthy } {
            return None;
        }
        (self.healthy, self.against) = (passed, 0);
        Some(passed)
    }

    /// Whether it has not failed too often in a row.
    pub fn is_healthy(&self) -> bool {
        self.healthy
    }

    /// Checks that have failed.
    pub fn failures(&self) -> u64 {
        self.failures
    }

    /// What was wrong the last time, if anything was.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }
}

/// When the next unhealthy worker may be replaced.
///
/// One after the other: as soon as a worker that was started since then has passed a check, replacing helps, and the next one follows.
/// Until then the cause may well be elsewhere, as where the database is away, and each waits for twice as long as the one before: an app
/// whose workers are all unhealthy is not ended by that, and serves what it can.
#[derive(Clone, Copy, Debug, Default)]
pub struct Replacements {
    last: Option<Instant>,
    wait: Duration,
}

impl Replacements {
    /// From when on a worker may be replaced; `None`: at once.
    pub fn next(&self) -> Option<Instant> {
        self.last.map(|last| last + self.wait)
    }

    /// Whether one may be.
    pub fn may(&self, now: Instant) -> bool {
        self.next().is_none_or(|next| next <= now)
    }

    /// One is.
    pub fn begin(&mut self, now: Instant) {
        self.wait = (self.wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
        self.last = Some(now);
    }

    /// A worker that was started at `born` has passed a check.
    pub fn passed(&mut self, born: Instant) {
        if self.last.is_some_and(|last| born >= last) {
            *self = Replacements::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: HealthRule = HealthRule { unhealthy: 3, healthy: 2 };

    fn results(streak: &mut Streak, results: &str) -> Vec<Option<bool>> {
        let result = |letter| if letter == '+' { Ok(()) } else { Err("was answered with 500".to_owned()) };
        results.chars().map(|letter| streak.note(result(letter), RULE)).collect()
    }

    #[test]
    fn a_row_decides_and_one_result_between_begins_it_anew() {
        let mut streak = Streak::default();
        assert_eq!(results(&mut streak, "--+--+"), [None; 6]);
        assert_eq!((streak.is_healthy(), streak.failures(), streak.reason()), (true, 4, None));
        assert_eq!(results(&mut streak, "----"), [None, None, Some(false), None]);
        assert_eq!((streak.is_healthy(), streak.reason()), (false, Some("was answered with 500")));
        assert_eq!(results(&mut streak, "+-+-++"), [None, None, None, None, None, Some(true)]);
        assert_eq!(results(&mut streak, "+"), [None]);
        assert_eq!((streak.is_healthy(), streak.failures()), (true, 10));
    }

    #[test]
    fn replacing_that_does_not_help_comes_ever_later_and_one_that_passes_ends_the_wait() {
        let start = Instant::now();
        let (mut replacements, mut now, mut waits) = (Replacements::default(), start, Vec::new());
        for _ in 0..8 {
            assert!(replacements.may(now));
            replacements.begin(now);
            let next = replacements.next().unwrap();
            assert!(!replacements.may(next - Duration::from_millis(1)));
            waits.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300]);
        replacements.begin(now);
        replacements.passed(now - Duration::from_secs(1));
        assert!(!replacements.may(now), "an older worker says nothing of the new one");
        replacements.passed(now + Duration::from_secs(1));
        assert!(replacements.may(now));
        replacements.begin(now);
        assert_eq!(replacements.next(), Some(now + FIRST_WAIT), "begun anew");
    }
}
