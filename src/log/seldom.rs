//! Lines that a crowd could cause: one for each message and second, whoever says it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most one line with the same message is written within that time.
const PAUSE: Duration = Duration::from_secs(1);

/// What was said when, over all threads.
#[derive(Default)]
pub(super) struct Seldom(Mutex<Vec<Said>>);

/// One message. There are as many as the program has texts for this.
struct Said {
    message: &'static str,
    at: Instant,
    left_out: u64,
}

impl Seldom {
    /// Whether that message may be written now, and then how many were left out since it last was.
    pub fn allow(&self, message: &'static str, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(said) = all.iter_mut().find(|said| said.message == message) else {
            all.push(Said { message, at: now, left_out: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(said.at) < PAUSE {
            said.left_out += 1;
            return None;
        }
        said.at = now;
        Some(std::mem::take(&mut said.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_has_one_line_a_second_and_message() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        assert_eq!(seldom.allow("a", at(0)), Some(0));
        assert_eq!(seldom.allow("a", at(0)), None);
        assert_eq!(seldom.allow("b", at(0)), Some(0), "another message has a line of its own");
        assert_eq!(seldom.allow("a", at(999)), None);
        assert_eq!(seldom.allow("a", at(1000)), Some(2));
        assert_eq!(seldom.allow("a", at(900)), None, "a clock of another thread may be behind");
        assert_eq!(seldom.allow("a", at(5000)), Some(1));
        assert_eq!(seldom.allow("a", at(6000)), Some(0));
    }
}
