//! When a certificate is ordered: sans-IO, with the time as an argument, in seconds since 1970.
//!
//! The planner knows the certificate that is held, the window that the authority suggests for its renewal (ARI, RFC 9773) and what became of
//! earlier attempts, and says what is to be done next. A certificate is renewed when a third of its life is left, or at a random time in the
//! window. Within the last twentieth of its life the window has nothing to say any more.
//!
//! Brakes hold whatever the reason for an order is, also over restarts, for what they count is kept on disk by whoever has the planner:
//!
//! - A certificate is demanded of the authority twice a day at most, for one set of names.
//! - Three validations an hour may fail. One that has begun counts as failed until it has succeeded.
//! - After a failure the next attempt waits as [`LADDER`] says.
//! - A certificate is never replaced by one that ends earlier.

use serde::{Deserialize, Serialize};

const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Certificates that are demanded in a day, at most.
pub const ORDERS_A_DAY: usize = 2;
/// Validations that may fail in an hour.
pub const FAILURES_AN_HOUR: usize = 3;
/// How long the next attempt waits after so many failures in a row, in minutes; the last one holds for all further ones. As certmagic does.
pub const LADDER: [i64; 25] =
    [1, 2, 2, 5, 10, 10, 10, 20, 20, 20, 20, 30, 30, 30, 30, 30, 30, 60, 60, 120, 120, 180, 180, 180, 360];
/// After so long without success there is one attempt a day.
const PATIENCE: i64 = 30 * DAY;
/// A wait that the authority demands is not believed beyond this.
const LONGEST_WAIT: i64 = 7 * DAY;
/// How soon after the last attempt a server that has just started makes another, whatever the ladder says.
const AFTER_RESTART: i64 = MINUTE;
/// How often the authority is asked for a window, at the most and at the least.
const ARI_INTERVALS: (i64, i64) = (10 * MINUTE, DAY);

/// From when until when a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// From when.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
}

impl Span {
    fn life(self) -> i64 {
        self.not_after.saturating_sub(self.not_before).max(1)
    }

    /// When that part of its life is left.
    fn left(self, part: i64) -> i64 {
        self.not_after.saturating_sub(self.life() / part)
    }
}

/// Why a certificate is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is none for these names.
    Missing,
    /// A third of its life is left.
    Third,
    /// The authority has suggested it.
    Suggested,
    /// A twentieth of its life is left, whatever the authority suggests.
    Late,
    /// A fiftieth is left, or nothing.
    Emergency,
}

impl Reason {
    /// It in documents and log lines.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Missing => "missing",
            Reason::Third => "third_of_life_left",
            Reason::Suggested => "renewal_information",
            Reason::Late => "late",
            Reason::Emergency => "emergency",
        }
    }
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Order a certificate.
    Order(Reason),
    /// Ask the authority when it suggests the renewal.
    PollAri,
    /// Nothing before that time.
    Wait(i64),
}

/// What is counted, and kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Brakes {
    /// When certificates were demanded, within the last day.
    orders: Vec<i64>,
    /// When validations failed or have begun, within the last hour.
    validations: Vec<i64>,
    /// Attempts in a row without success.
    failures: usize,
    /// When the last one began or ended.
    tried: i64,
    /// When the first of them began.
    failing_since: i64,
    /// Before when the authority wants to hear of no other.
    not_before: i64,
}

impl Brakes {
    /// Forgets what is over. A time to come is of a clock that was wrong, and counts as if it were now.
    fn tidy(&mut self, now: i64) {
        let Brakes { orders, validations, tried, failing_since, not_before, .. } = self;
        for time in orders.iter_mut().chain(validations.iter_mut()).chain([tried, failing_since]) {
            *time = (*time).min(now);
        }
        orders.retain(|time| *time > now - DAY);
        validations.retain(|time| *time > now - HOUR);
        *not_before = (*not_before).min(now + LONGEST_WAIT);
    }

    /// Before when there is no other attempt.
    fn earliest(&self, fresh: bool) -> i64 {
        let nth_last = |times: &[i64], count: usize, period| match times.len().checked_sub(count) {
            Some(index) => times[index] + period,
            None => i64::MIN,
        };
        let ladder = match self.failures {
            0 => i64::MIN,
            _ if fresh => self.tried + AFTER_RESTART,
            _ if self.tried - self.failing_since > PATIENCE => self.tried + DAY,
            failures => self.tried + LADDER[failures.min(LADDER.len()) - 1] * MINUTE,
        };
        let orders = nth_last(&self.orders, ORDERS_A_DAY, DAY);
        ladder.max(orders).max(nth_last(&self.validations, FAILURES_AN_HOUR, HOUR)).max(self.not_before)
    }
}

/// See the module. For one set of names.
#[derive(Debug)]
pub struct Planner {
    brakes: Brakes,
    held: Option<Span>,
    /// The window that the authority suggests, and the time in it that was taken.
    window: Option<((i64, i64), i64)>,
    /// When it is asked for the next time.
    poll_at: i64,
    /// Nothing was tried since the start.
    fresh: bool,
}

impl Planner {
    /// For what was counted before, and what is held.
    pub fn new(brakes: Brakes, held: Option<Span>) -> Planner {
        Planner { brakes, held, window: None, poll_at: i64::MIN, fresh: true }
    }

    /// What is to be kept on disk.
    pub fn brakes(&self) -> &Brakes {
        &self.brakes
    }

    /// What is to be done.
    pub fn next(&mut self, now: i64) -> Step {
        self.brakes.tidy(now);
        let (reason, due) = self.due(now);
        let earliest = self.brakes.earliest(self.fresh);
        match due <= now {
            true if earliest <= now => Step::Order(reason),
            true => Step::Wait(earliest),
            false if self.poll_at <= now => Step::PollAri,
            false => Step::Wait(due.min(self.poll_at)),
        }
    }

    /// Why and when a certificate is ordered the next time, if the brakes let it.
    fn due(&self, now: i64) -> (Reason, i64) {
        let Some(held) = self.held else { return (Reason::Missing, now) };
        let late = held.left(20);
        match self.window {
            _ if held.left(50) <= now => (Reason::Emergency, held.left(50)),
            _ if late <= now => (Reason::Late, late),
            Some((_, chosen)) if chosen < late => (Reason::Suggested, chosen),
            Some(_) => (Reason::Late, late),
            None => (Reason::Third, held.left(3)),
        }
    }

    /// When an order is made next, as far as can be told now, and why.
    pub fn outlook(&self, now: i64) -> (Reason, i64) {
        let (reason, due) = self.due(now);
        (reason, due.max(self.brakes.earliest(self.fresh)).max(now))
    }

    /// An attempt begins. It has failed unless [`Planner::obtained`] says otherwise, also if nothing is heard of it any more.
    pub fn begin(&mut self, now: i64) {
        if self.brakes.failures == 0 {
            self.brakes.failing_since = now;
        }
        self.brakes.failures += 1;
        self.brakes.tried = now;
        self.fresh = false;
    }

    /// A validation begins; whether it may.
    pub fn validation_begins(&mut self, now: i64) -> bool {
        self.brakes.tidy(now);
        let may = self.brakes.validations.len() < FAILURES_AN_HOUR;
        if may {
            self.brakes.validations.push(now);
        }
        may
    }

    /// The last one that has begun has succeeded.
    pub fn validation_succeeded(&mut self) {
        self.brakes.validations.pop();
    }

    /// A certificate is about to be demanded; whether it may. From here on it counts, whatever becomes of it.
    pub fn order_begins(&mut self, now: i64) -> bool {
        self.brakes.tidy(now);
        let may = self.brakes.orders.len() < ORDERS_A_DAY;
        if may {
            self.brakes.orders.push(now);
        }
        may
    }

    /// It was not demanded after all, for what is to be kept of it cannot be.
    pub fn order_withdrawn(&mut self) {
        self.brakes.orders.pop();
    }

    /// The attempt has failed; `retry_after`: seconds for which the authority wants to hear of no other.
    pub fn failed(&mut self, now: i64, retry_after: Option<i64>) {
        self.brakes.tried = now;
        if let Some(seconds) = retry_after {
            self.brakes.not_before = now.saturating_add(seconds.clamp(0, LONGEST_WAIT));
        }
    }

    /// Whether a certificate may take the place of the one that is held.
    pub fn accepts(&self, span: Span) -> bool {
        self.held.is_none_or(|held| held.not_after <= span.not_after)
    }

    /// A certificate has come; whether it is to be held from now on. If not, the attempt has failed.
    pub fn obtained(&mut self, now: i64, span: Span) -> bool {
        if !self.accepts(span) {
            self.failed(now, None);
            return false;
        }
        (self.held, self.window, self.poll_at) = (Some(span), None, i64::MIN);
        (self.brakes.failures, self.brakes.not_before) = (0, 0);
        true
    }

    /// The authority suggests to renew the certificate that is held between two times; `random` chooses one. It is to be asked again after
    /// so many seconds. A window that ends before it begins is none.
    pub fn suggested(&mut self, now: i64, (start, end): (i64, i64), retry_after: Option<i64>, random: u32) {
        self.poll_at = now + retry_after.unwrap_or(ARI_INTERVALS.1 / 4).clamp(ARI_INTERVALS.0, ARI_INTERVALS.1);
        if end <= start {
            self.window = None;
        } else if self.window.is_none_or(|(known, _)| known != (start, end)) {
            let offset = (i128::from(end.saturating_sub(start)) * i128::from(random)) >> 32;
            self.window = Some(((start, end), start.saturating_add(i64::try_from(offset).unwrap_or(0))));
        }
    }

    /// The authority does not suggest anything ever. It is asked again when there is another certificate.
    pub fn never_suggests(&mut self) {
        self.poll_at = i64::MAX;
    }

    /// The authority suggests nothing now, or was not reached. What it has suggested before holds.
    pub fn suggests_nothing(&mut self, now: i64, retry_after: Option<i64>) {
        self.poll_at = now + retry_after.unwrap_or(HOUR).clamp(ARI_INTERVALS.0, ARI_INTERVALS.1);
    }
}

#[cfg(test)]
mod tests;
