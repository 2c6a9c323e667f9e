//! Which of an app's upstreams get requests. Decided without a descriptor and without a clock.
//!
//! - One gets requests that accepts connections, passes its health checks, if there are any, and is not left out for failing.
//! - One that has failed too often is left out for a time, which doubles with each time in a row. Then it is on trial: it may have one
//!   request at once, and twice as many after each answer; its first failure ends the trial. So is one that passes its checks again.
//! - Where none is left that is well, nothing tells a good one from a bad one: all that accept connections get requests, as many as ever.
//! - One that has no other beside it is never left out.

use std::time::{Duration, Instant};

/// How long those that fail are left out.
#[derive(Clone, Copy, Debug)]
pub struct EjectionRule {
    /// The first time.
    pub first: Duration,
    /// The longest time.
    pub longest: Duration,
    /// As many requests at once end a trial.
    pub concurrency: u32,
}

/// What is told of an upstream; each has its number, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It has failed too often, and is left out for so long.
    Ejected(usize, Duration),
    /// It has failed its health checks.
    Unhealthy(usize),
    /// It is on trial.
    Tried(usize),
    /// It is as good as the others again.
    Restored(usize),
    /// None is well: all that accept connections get requests.
    NoneIsWell,
    /// One is well again, and the others are left out.
    OneIsWell,
}

/// Whether an upstream gets requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// No.
    Shut,
    /// So many at once; `None`: as many as it may have.
    Open(Option<u32>),
}

/// Where an upstream stands that accepts connections and passes its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trust {
    Full,
    /// It may have so many requests at once.
    Trial(u32),
    /// It gets none until then.
    Ejected(Instant),
}

#[derive(Clone, Debug)]
struct Seat {
    accepts: bool,
    healthy: bool,
    trust: Trust,
    /// For how long it was left out the last time.
    last: Duration,
    /// Since when it is trusted.
    since: Instant,
    ejections: u64,
    /// What was last told of it to those who give requests.
    admission: Admission,
}

impl Seat {
    fn is_well(&self) -> bool {
        self.accepts && self.healthy && self.trust == Trust::Full
    }
}

/// See the module.
#[derive(Debug)]
pub struct Ejection {
    rule: EjectionRule,
    seats: Vec<Seat>,
    none_is_well: bool,
    told: Vec<Told>,
}

impl Ejection {
    /// So many upstreams, of which none is known to accept connections.
    pub fn new(rule: EjectionRule, count: usize, now: Instant) -> Ejection {
        let seat = Seat {
            accepts: false,
            healthy: true,
            trust: Trust::Full,
            last: Duration::ZERO,
            since: now,
            ejections: 0,
            admission: Admission::Shut,
        };
        Ejection { rule, seats: vec![seat; count], none_is_well: false, told: Vec::new() }
    }

    /// Another rule holds from the next decision on.
    pub fn set_rule(&mut self, rule: EjectionRule) {
        self.rule = rule;
    }

    /// It accepts connections.
    pub fn found(&mut self, index: usize) {
        self.seats[index].accepts = true;
    }

    /// It does not, and gets no requests already.
    pub fn lost(&mut self, index: usize) {
        let seat = &mut self.seats[index];
        (seat.accepts, seat.admission) = (false, Admission::Shut);
    }

    /// What its health checks say.
    pub fn set_healthy(&mut self, index: usize, healthy: bool) {
        let seat = &mut self.seats[index];
        if std::mem::replace(&mut seat.healthy, healthy) == healthy {
            return;
        }
        if !healthy {
            return self.told.push(Told::Unhealthy(index));
        }
        if seat.trust == Trust::Full {
            self.try_out(index);
        }
    }

    /// It has failed too often in a row, or once on trial.
    pub fn failed(&mut self, index: usize, now: Instant) {
        let (rule, alone) = (self.rule, self.seats.len() == 1);
        let seat = &mut self.seats[index];
        if alone || matches!(seat.trust, Trust::Ejected(_)) {
            return;
        }
        // One that was trusted for as long as it was left out before begins anew.
        let again = !seat.last.is_zero()
            && (seat.trust != Trust::Full || now.saturating_duration_since(seat.since) < seat.last);
        seat.last = if again { (seat.last * 2).min(rule.longest) } else { rule.first };
        seat.trust = Trust::Ejected(now + seat.last);
        seat.ejections += 1;
        self.told.push(Told::Ejected(index, seat.last));
    }

    /// It has answered a request on trial.
    pub fn recovers(&mut self, index: usize, now: Instant) {
        let most = self.rule.concurrency;
        let seat = &mut self.seats[index];
        let Trust::Trial(allowed) = seat.trust else { return };
        match allowed.saturating_mul(2) {
            allowed if allowed < most => seat.trust = Trust::Trial(allowed),
            _ => {
                (seat.trust, seat.since) = (Trust::Full, now);
                self.told.push(Told::Restored(index));
            }
        }
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        for index in 0..self.seats.len() {
            if matches!(self.seats[index].trust, Trust::Ejected(until) if until <= now) {
                self.try_out(index);
            }
        }
    }

    /// When something is due.
    pub fn due(&self) -> Option<Instant> {
        let until = |seat: &Seat| match seat.trust {
            Trust::Ejected(until) => Some(until),
            _ => None,
        };
        self.seats.iter().filter_map(until).min()
    }

    fn try_out(&mut self, index: usize) {
        self.seats[index].trust = Trust::Trial(1);
        self.told.push(Told::Tried(index));
    }

    /// Who is to be treated otherwise than was last said here.
    pub fn changes(&mut self) -> Vec<(usize, Admission)> {
        // While none accepts connections there is nothing to tell.
        if self.seats.iter().any(|seat| seat.accepts) {
            let none = !self.seats.iter().any(Seat::is_well);
            if std::mem::replace(&mut self.none_is_well, none) != none {
                self.told.push(if none { Told::NoneIsWell } else { Told::OneIsWell });
            }
        }
        let mut changes = Vec::new();
        for (index, seat) in self.seats.iter_mut().enumerate() {
            let admission = match seat.trust {
                _ if !seat.accepts => Admission::Shut,
                Trust::Trial(most) if seat.healthy => Admission::Open(Some(most)),
                Trust::Full if seat.healthy => Admission::Open(None),
                _ if self.none_is_well => Admission::Open(None),
                _ => Admission::Shut,
            };
            if std::mem::replace(&mut seat.admission, admission) != admission {
                changes.push((index, admission));
            }
        }
        changes
    }

    /// What is to be told, once.
    pub fn take_told(&mut self) -> Vec<Told> {
        std::mem::take(&mut self.told)
    }

    /// Whether one is left out as long as another is well, for failing or for its health checks.
    pub fn is_ejected(&self, index: usize) -> bool {
        let seat = &self.seats[index];
        !seat.healthy || matches!(seat.trust, Trust::Ejected(_))
    }

    /// How often it was left out for failing.
    pub fn ejections(&self, index: usize) -> u64 {
        self.seats[index].ejections
    }
}

#[cfg(test)]
mod tests {
    use super::Admission::{Open, Shut};
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const RULE: EjectionRule =
        EjectionRule { first: Duration::from_secs(10), longest: Duration::from_secs(35), concurrency: 4 };

    /// So many that accept connections, and the time.
    fn accepting(count: usize) -> (Ejection, Instant) {
        let now = Instant::now();
        let mut ejection = Ejection::new(RULE, count, now);
        (0..count).for_each(|index| ejection.found(index));
        let open: Vec<_> = (0..count).map(|index| (index, Open(None))).collect();
        assert_eq!(ejection.changes(), open);
        assert_eq!((ejection.changes(), ejection.take_told()), (Vec::new(), Vec::new()));
        (ejection, now)
    }

    #[test]
    fn one_that_fails_is_left_out_and_comes_back_slowly() {
        let (mut ejection, mut now) = accepting(2);
        ejection.failed(0, now);
        assert_eq!(ejection.changes(), [(0, Shut)]);
        assert_eq!(ejection.take_told(), [Told::Ejected(0, SECOND * 10)]);
        // What it still answers says nothing.
        ejection.failed(0, now);
        ejection.recovers(0, now);
        assert_eq!(ejection.due(), Some(now + SECOND * 10));
        ejection.tick(now + SECOND * 9);
        assert_eq!((ejection.changes(), ejection.is_ejected(0), ejection.ejections(0)), (Vec::new(), true, 1));
        now += SECOND * 10;
        ejection.tick(now);
        assert_eq!((ejection.changes(), ejection.take_told()), (vec![(0, Open(Some(1)))], vec![Told::Tried(0)]));
        ejection.recovers(0, now);
        assert_eq!(ejection.changes(), [(0, Open(Some(2)))]);
        ejection.recovers(0, now);
        assert_eq!((ejection.changes(), ejection.take_told()), (vec![(0, Open(None))], vec![Told::Restored(0)]));
        assert_eq!(ejection.due(), None);
    }

    #[test]
    fn the_time_doubles_up_to_the_longest_and_begins_anew_for_one_that_was_trusted_as_long() {
        let (mut ejection, mut now) = accepting(2);
        let mut times = Vec::new();
        let mut fail = |ejection: &mut Ejection, now: &mut Instant| {
            ejection.failed(0, *now);
            let Some(Told::Ejected(0, time)) = ejection.take_told().pop() else { panic!("not left out") };
            times.push(time.as_secs());
            *now += time;
            ejection.tick(*now);
            ejection.take_told();
        };
        (0..3).for_each(|_| fail(&mut ejection, &mut now));
        let restore = |ejection: &mut Ejection, now| (0..2).for_each(|_| ejection.recovers(0, now));
        restore(&mut ejection, now);
        now += SECOND * 34;
        fail(&mut ejection, &mut now);
        restore(&mut ejection, now);
        now += SECOND * 35;
        fail(&mut ejection, &mut now);
        assert_eq!(times, [10, 20, 35, 35, 10]);
        assert_eq!(ejection.ejections(0), 5);
    }

    #[test]
    fn where_none_is_well_all_that_accept_get_requests() {
        let (mut ejection, now) = accepting(3);
        ejection.failed(0, now);
        ejection.failed(1, now + SECOND);
        assert_eq!(ejection.changes(), [(0, Shut), (1, Shut)]);
        ejection.take_told();
        ejection.failed(2, now + SECOND * 2);
        assert_eq!(ejection.changes(), [(0, Open(None)), (1, Open(None))], "the last one stays open");
        assert_eq!(ejection.take_told(), [Told::Ejected(2, SECOND * 10), Told::NoneIsWell]);
        // A trial is one though there is nobody else, and until it is over the others stay.
        ejection.tick(now + SECOND * 10);
        assert_eq!(ejection.changes(), [(0, Open(Some(1)))]);
        (0..2).for_each(|_| ejection.recovers(0, now + SECOND * 10));
        assert_eq!(ejection.changes(), [(0, Open(None)), (1, Shut), (2, Shut)]);
        assert_eq!(ejection.take_told(), [Told::Tried(0), Told::Restored(0), Told::OneIsWell]);
        // The one that is well goes away.
        ejection.lost(0);
        assert_eq!(ejection.changes(), [(1, Open(None)), (2, Open(None))]);
        ejection.found(0);
        assert_eq!(ejection.changes(), [(0, Open(None)), (1, Shut), (2, Shut)]);
    }

    #[test]
    fn one_that_fails_its_checks_gets_none_until_it_passes_and_then_few() {
        let (mut ejection, now) = accepting(2);
        ejection.set_healthy(1, false);
        ejection.set_healthy(1, false);
        assert_eq!((ejection.changes(), ejection.take_told()), (vec![(1, Shut)], vec![Told::Unhealthy(1)]));
        assert!(ejection.is_ejected(1) && ejection.due().is_none());
        // Left out for failing as well: both must be over.
        ejection.failed(1, now);
        ejection.tick(now + SECOND * 10);
        assert_eq!(ejection.changes(), []);
        ejection.set_healthy(1, true);
        assert_eq!(ejection.changes(), [(1, Open(Some(1)))]);
        // Both unhealthy, as when what they need is away.
        ejection.set_healthy(1, false);
        ejection.set_healthy(0, false);
        assert_eq!(ejection.changes(), [(1, Open(None))]);
        assert_eq!(ejection.take_told().last(), Some(&Told::NoneIsWell));
        ejection.set_healthy(0, true);
        assert_eq!(ejection.changes(), [(0, Open(Some(1)))]);
        (0..2).for_each(|_| ejection.recovers(0, now));
        assert_eq!(ejection.changes(), [(0, Open(None)), (1, Shut)]);
    }

    #[test]
    fn one_alone_is_never_left_out() {
        let (mut ejection, now) = accepting(1);
        ejection.failed(0, now);
        ejection.set_healthy(0, false);
        assert_eq!((ejection.changes(), ejection.ejections(0)), (Vec::new(), 0));
        ejection.lost(0);
        assert_eq!(ejection.changes(), []);
        ejection.found(0);
        assert_eq!(ejection.changes(), [(0, Open(None))]);
        assert_eq!(ejection.take_told(), [Told::Unhealthy(0), Told::NoneIsWell]);
    }
}
