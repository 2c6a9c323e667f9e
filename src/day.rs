//! The time of day, as a loop tells it: from its own clock, compared with the system's once a second.

use crate::http::date::date;

/// The time of day, kept by the loop's own clock and compared with the system's once a second. Times are those of
/// [`Wheel::now_nanos`].
pub(crate) struct Day {
    at: u64,
    micros: u64,
    /// When the next second begins.
    next: u64,
    pub date: [u8; 29],
}

impl Day {
    pub fn new(now: u64) -> Day {
        let mut day = Day { at: now, micros: 0, next: now, date: date(0) };
        day.compare(now);
        day
    }

    /// Microseconds since the epoch at `now`.
    pub fn micros(&self, now: u64) -> u64 {
        self.micros + now.saturating_sub(self.at) / 1000
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
        self.next = now + (1_000_000_000 - u64::from(epoch.subsec_nanos()));
        self.date = date(epoch.as_secs());
    }
}
