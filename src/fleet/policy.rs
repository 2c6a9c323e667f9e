//! When a worker is started again: pure arithmetic over times that are handed in.
//!
//! One [`RestartPolicy`] for each place in the app. What counts is what an [`End`] shows: a worker that had settled is no crash
//! loop, its place is filled at once and all is forgotten. After any other the first start comes at once, the next after the base
//! delay, then twice that, and so on up to the longest delay, each with jitter on top so that workers that died together do not
//! come back together. Too many crashes of workers that never served, within the window or within an hour, and the place is given
//! up. Whatever was served, a place whose workers end too often gets the base delay at least.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The numbers of the policy.
#[derive(Clone, Copy, Debug)]
pub struct RestartRule {
    /// The first delay that is not zero, and how long a worker must have lived to be no part of a crash loop.
    pub base: Duration,
    /// The longest delay, jitter included.
    pub max: Duration,
    /// This many crashes of workers that never served...
    pub crashes: usize,
    /// ...within this time end the attempts.
    pub within: Duration,
    /// So do more than this many within an hour.
    pub max_restarts: usize,
}

/// For how long failures are remembered.
const MEMORY: Duration = Duration::from_secs(3600);
/// More ends than this...
const LOOP_ENDS: usize = 5;
/// ...within this time are a loop, whatever was served between them.
const LOOP_WITHIN: Duration = Duration::from_secs(10);
/// A loop is told of once in that time, with the number of ends in it.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// What the end of a worker shows about the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It never served, and did not end as it should.
    Crash,
    /// It had served, but had not lived for [`RestartRule::base`]; or it never served, and ended as it should once it was ready.
    Short,
    /// It had served, and lived for that long.
    Settled,
}

/// What to do about an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Start again at that time, which may be now.
    StartAt(Instant),
    /// The place is given up.
    GiveUp,
}

/// The history of one place.
#[derive(Clone, Debug)]
pub struct RestartPolicy {
    rule: RestartRule,
    jitter: Jitter,
    /// The ends since a worker had settled, of the last hour: when, and whether it was a crash.
    failures: VecDeque<(Instant, bool)>,
    /// All ends of the last minute.
    ends: VecDeque<Instant>,
    /// When a loop was told of.
    told: Option<Instant>,
}

impl RestartPolicy {
    /// A place without history.
    pub fn new(rule: RestartRule, jitter: Jitter) -> RestartPolicy {
        RestartPolicy { rule, jitter, failures: VecDeque::new(), ends: VecDeque::new(), told: None }
    }

    /// Another rule holds.
    pub fn keep_to(&mut self, rule: RestartRule) {
        self.rule = rule;
    }

    /// Decides about an end at `now`.
    pub fn ended(&mut self, end: End, now: Instant) -> Decision {
        self.ends.push_back(now);
        self.ends.retain(|&at| now.duration_since(at) <= TELL_EVERY);
        if end == End::Settled {
            self.failures.clear();
            let within = self.ends.iter().filter(|&&at| now.duration_since(at) <= LOOP_WITHIN).count();
            return Decision::StartAt(if within > LOOP_ENDS { now + self.rule.base } else { now });
        }
        self.failures.retain(|&(at, _)| now.duration_since(at) <= MEMORY);
        let delay = self.delay();
        self.failures.push_back((now, end == End::Crash));
        let crashes = self.failures.iter().filter(|(_, crash)| *crash);
        let recent = crashes.clone().filter(|(at, _)| now.duration_since(*at) <= self.rule.within).count();
        if end == End::Crash && (recent >= self.rule.crashes || crashes.count() > self.rule.max_restarts) {
            return Decision::GiveUp;
        }
        Decision::StartAt(now + delay)
    }

    /// Workers that serve keep ending, and the next start is late for it: how many have ended within a minute, if that is to be told.
    pub fn tell_loop(&mut self, now: Instant) -> Option<usize> {
        let due = self.told.is_none_or(|at| now.duration_since(at) >= TELL_EVERY);
        due.then(|| {
            self.told = Some(now);
            self.ends.len()
        })
    }

    /// Forgets all failures: somebody asked for a fresh start.
    pub fn forget(&mut self) {
        self.failures.clear();
        self.ends.clear();
    }

    fn delay(&mut self) -> Duration {
        let Some(doublings) = self.failures.len().checked_sub(1) else { return Duration::ZERO };
        let factor = 1u32.checked_shl(doublings as u32).unwrap_or(u32::MAX);
        let plain = self.rule.base.saturating_mul(factor).min(self.rule.max);
        self.jitter.stretch(plain).min(self.rule.max)
    }
}

/// A small deterministic source of spread; not for secrets.
#[derive(Clone, Debug)]
pub struct Jitter {
    state: u64,
    percent: u32,
}

impl Jitter {
    /// Spreads by up to `percent`, differently for each seed.
    pub fn new(seed: u64, percent: u32) -> Jitter {
        // The odd constant of splitmix64 keeps a seed of zero from staying zero.
        Jitter { state: seed.wrapping_add(0x9e37_79b9_7f4a_7c15), percent }
    }

    /// No spread at all.
    pub fn none() -> Jitter {
        Jitter::new(0, 0)
    }

    /// `plain`, longer by 0 up to `percent` of it.
    pub fn stretch(&mut self, plain: Duration) -> Duration {
        let most = plain.as_micros() as u64 / 100 * u64::from(self.percent);
        plain + Duration::from_micros(self.below(most + 1))
    }

    /// `plain`, larger by 0 up to `percent` of it.
    pub fn add(&mut self, plain: u64) -> u64 {
        let most = (u128::from(plain) * u128::from(self.percent) / 100) as u64;
        plain.saturating_add(self.below(most.saturating_add(1)))
    }

    /// A number below `end`, which is not zero.
    fn below(&mut self, end: u64) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((u128::from(mixed ^ (mixed >> 31)) * u128::from(end)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: RestartRule = RestartRule {
        base: Duration::from_secs(1),
        max: Duration::from_secs(30),
        crashes: 5,
        within: Duration::from_secs(60),
        max_restarts: 10,
    };

    fn delays(policy: &mut RestartPolicy, now: &mut Instant, alive: Duration, exits: usize) -> Vec<Option<u128>> {
        (0..exits)
            .map(|_| {
                *now += alive;
                match policy.ended(End::Crash, *now) {
                    Decision::GiveUp => None,
                    Decision::StartAt(at) => {
                        let delay = at - *now;
                        *now = at;
                        Some(delay.as_millis())
                    }
                }
            })
            .collect()
    }

    #[test]
    fn a_crash_loop_has_this_schedule_and_is_given_up() {
        let mut now = Instant::now();
        let start = now;
        let mut policy = RestartPolicy::new(RULE, Jitter::none());
        let seen = delays(&mut policy, &mut now, Duration::from_millis(100), 5);
        assert_eq!(seen, [Some(0), Some(1000), Some(2000), Some(4000), None]);
        assert_eq!(now - start, Duration::from_millis(7500));
    }

    #[test]
    fn slow_crashes_back_off_up_to_the_longest_delay_and_go_on() {
        let mut now = Instant::now();
        let mut policy = RestartPolicy::new(RULE, Jitter::none());
        let seen = delays(&mut policy, &mut now, Duration::from_secs(20), 9);
        let expected = [0, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000].map(Some);
        assert_eq!(seen, expected, "never five within a minute");
    }

    #[test]
    fn too_many_in_a_row_are_the_end_however_slow() {
        let mut now = Instant::now();
        let mut policy = RestartPolicy::new(RestartRule { max_restarts: 3, ..RULE }, Jitter::none());
        let seen = delays(&mut policy, &mut now, Duration::from_secs(100), 4);
        assert_eq!(seen, [Some(0), Some(1000), Some(2000), None]);
    }

    #[test]
    fn the_window_counts_its_edge() {
        let start = Instant::now();
        let mut policy = RestartPolicy::new(RULE, Jitter::none());
        for second in [0, 10, 20, 30] {
            assert_ne!(policy.ended(End::Crash, start + Duration::from_secs(second)), Decision::GiveUp);
        }
        assert_eq!(policy.ended(End::Crash, start + Duration::from_secs(60)), Decision::GiveUp);
        let mut policy = RestartPolicy::new(RULE, Jitter::none());
        for second in [0, 10, 20, 30] {
            policy.ended(End::Crash, start + Duration::from_secs(second));
        }
        let late = start + Duration::from_millis(60_001);
        assert_eq!(policy.ended(End::Crash, late), Decision::StartAt(late + Duration::from_secs(8)));
    }

    #[test]
    fn an_answer_resets_everything() {
        let mut now = Instant::now();
        let mut policy = RestartPolicy::new(RULE, Jitter::none());
        delays(&mut policy, &mut now, Duration::ZERO, 4);
        assert_eq!(policy.ended(End::Settled, now), Decision::StartAt(now), "a worker that served comes back at once");
        let seen = delays(&mut policy, &mut now, Duration::ZERO, 5);
        assert_eq!(seen, [Some(0), Some(1000), Some(2000), Some(4000), None]);
    }

    #[test]
    fn who_served_and_did_not_live_long_backs_off_and_is_never_given_up() {
        let mut now = Instant::now();
        let mut policy = RestartPolicy::new(RULE, Jitter::none());
        let mut seen = Vec::new();
        for _ in 0..200 {
            let Decision::StartAt(at) = policy.ended(End::Short, now) else { panic!("given up") };
            seen.push((at - now).as_millis());
            now = at + Duration::from_millis(20);
        }
        assert_eq!(seen[..8], [0, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert!(policy.failures.len() < 130, "an hour is remembered");
        assert_eq!(policy.ended(End::Settled, now), Decision::StartAt(now));
        assert_eq!(policy.ended(End::Short, now), Decision::StartAt(now), "one that lived resets it");
    }

    #[test]
    fn more_than_five_ends_in_ten_seconds_have_a_floor_and_it_is_told_once_a_minute() {
        let mut now = Instant::now();
        let mut policy = RestartPolicy::new(RULE, Jitter::none());
        let mut told = Vec::new();
        for second in 0..120 {
            let floor = Duration::from_secs(u64::from(second >= 5));
            assert_eq!(policy.ended(End::Settled, now), Decision::StartAt(now + floor), "{second}");
            if !floor.is_zero() {
                told.extend(policy.tell_loop(now));
            }
            now += Duration::from_secs(1);
        }
        assert_eq!(told, [6, 61]);
    }

    #[test]
    fn an_hour_is_remembered_and_not_a_life() {
        let mut now = Instant::now();
        let mut policy = RestartPolicy::new(RestartRule { max_restarts: 3, ..RULE }, Jitter::none());
        for _ in 0..50 {
            assert_ne!(policy.ended(End::Crash, now), Decision::GiveUp);
            now += Duration::from_secs(1201);
        }
    }

    #[test]
    fn jitter_only_lengthens_and_stays_within_its_share_and_the_longest_delay() {
        let mut distinct = std::collections::HashSet::new();
        for seed in 0..200 {
            let mut now = Instant::now();
            let mut policy = RestartPolicy::new(RULE, Jitter::new(seed, 25));
            let seen = delays(&mut policy, &mut now, Duration::from_secs(20), 8);
            for (delay, plain) in seen.iter().zip([0, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]) {
                let delay = delay.unwrap();
                assert!(delay >= plain && delay <= (plain * 5 / 4).min(30_000), "{delay} for {plain}");
                distinct.insert(delay);
            }
        }
        assert!(distinct.len() > 100, "the spread spreads: {}", distinct.len());
    }

    #[test]
    fn request_limits_are_spread_upwards_by_a_tenth() {
        let seen: Vec<u64> = (0..500).map(|seed| Jitter::new(seed, 10).add(1000)).collect();
        assert!(seen.iter().all(|limit| (1000..=1100).contains(limit)));
        assert!(seen.iter().any(|&limit| limit < 1010) && seen.iter().any(|&limit| limit > 1090));
        assert_eq!((Jitter::new(1, 10).add(5), Jitter::new(1, 10).add(0)), (5, 0));
    }
}
