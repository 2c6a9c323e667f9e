//! Those who waited during a pause are let go in steps, so that they do not reach the workers all at once.

use std::time::{Duration, Instant};

/// All are let go in so many steps...
const STEPS: usize = 50;
/// ...with this time between them: all within half a second.
const STEP: Duration = Duration::from_millis(10);

/// Who is still to be let go.
#[derive(Clone, Copy, Debug)]
pub struct Release {
    most: usize,
    at: Instant,
}

impl Release {
    /// So many wait, and a pause has ended.
    pub fn of(waiting: usize, now: Instant) -> Release {
        Release { most: waiting.div_ceil(STEPS), at: now }
    }

    /// When the next step is due.
    pub fn due(&self) -> Instant {
        self.at
    }

    /// How many are let go now at most; the next step follows, if there are more. `None`: it is not time yet.
    pub fn step(&mut self, now: Instant) -> Option<usize> {
        if now < self.at {
            return None;
        }
        self.at = now + STEP;
        Some(self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_let_go_within_half_a_second_and_in_no_step_more_than_a_fiftieth() {
        for waiting in [1, 49, 50, 51, 1000, 8192] {
            let start = Instant::now();
            let (mut release, mut left, mut now) = (Release::of(waiting, start), waiting, start);
            while left > 0 {
                now = release.due();
                let most = release.step(now).unwrap();
                assert!(most >= 1 && most <= waiting.div_ceil(50), "{most} of {waiting} at once");
                assert_eq!(release.step(now + Duration::from_millis(9)), None, "{waiting}: not before the next step");
                left = left.saturating_sub(most);
            }
            assert!(now - start < Duration::from_millis(500), "{waiting} took {:?}", now - start);
        }
    }
}
