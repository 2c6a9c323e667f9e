//! The time of day, as a loop tells it: from its own clock, compared with the system's once a second.

use crate::http::date::{Start, date};

/// In nanoseconds.
const SECOND: u64 = 1_000_000_000;

/// The time of day, kept by the loop's own clock and compared with the system's once a second. Times are those of
/// [`Wheel::now_nanos`].
pub(crate) struct Day {
    at: u64,
    micros: u64,
    /// When the next second begins.
    next: u64,
    pub date: [u8; 29],
    /// The second's begin, as workers are told when a request has arrived.
    second: Start,
}

impl Day {
    pub fn new(now: u64) -> Day {
        let mut day = Day { at: now, micros: 0, next: now, date: date(0), second: Start::new(0) };
        day.compare(now);
        day
    }

    /// Microseconds since the epoch at `now`.
    pub fn micros(&self, now: u64) -> u64 {
        self.micros + now.saturating_sub(self.at) / 1000
    }

    /// When a request has arrived that came at `now`, in the second up to which the date was brought.
    #[inline]
    pub fn start(&self, now: u64) -> Start {
        self.second.with_millis((SECOND - self.next.saturating_sub(now).clamp(1, SECOND)) / 1_000_000)
    }

    /// Brings the date up to `now`.
    #[inline]
    pub fn tick(&mut self, now: u64) {
        if now >= self.next {
            self.compare(now);
        }
    }

    #[cold]
    fn compare(&mut self, now: u64) {
        let epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        self.at = now;
        self.micros = epoch.as_micros() as u64;
        self.next = now + (SECOND - u64::from(epoch.subsec_nanos()));
        self.date = date(epoch.as_secs());
        self.second = Start::new(epoch.as_secs() * 1_000_000);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_is_the_time_of_day() {
        let mut day = Day::new(0);
        for now in (0..3 * SECOND).step_by(777_777) {
            day.tick(now);
            // The loop's clock runs faster than the system's here, with which it is compared as each of its seconds ends.
            let micros =
                |text: &Start| String::from_utf8_lossy(text.text()).replace('.', "").parse::<u64>().unwrap() * 1000;
            let (told, counted) = (micros(&day.start(now)), day.micros(now));
            assert!(told.abs_diff(counted) <= 1001, "{told} is told at {counted}");
        }
    }
}
