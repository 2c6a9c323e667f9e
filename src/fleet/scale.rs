//! The automatic number of workers: one more when requests wait or all are busy, one fewer when far fewer would do.
//!
//! Up is quick and down is slow, and between the two lies a wide band in which nothing changes, so that a load that swings does
//! not start and stop workers all the time.

use std::time::{Duration, Instant};

/// What the dispatch looks like at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Requests that wait.
    pub queued: usize,
    /// How long the oldest of them has waited.
    pub oldest_wait: Duration,
    /// Requests in flight.
    pub in_flight: usize,
    /// Requests that a worker may have in flight.
    pub concurrency: usize,
    /// Workers wanted.
    pub workers: usize,
    /// Whether a worker is on its way: what it will change is not seen yet.
    pub changing: bool,
    /// Whether most places have no worker that serves. Where workers crash one more would as well, and none is added.
    pub short: bool,
}

/// How often the load is looked at.
pub const SAMPLE: Duration = Duration::from_millis(250);
/// A request that waits that long asks for another worker.
const WAIT: Duration = Duration::from_millis(100);
/// Workers so busy, in per cent, for [`UP_AFTER`] ask for another one.
const BUSY: usize = 90;
/// If one worker fewer were that busy at most, in per cent, for [`DOWN_AFTER`], it can go.
const IDLE: usize = 60;
const UP_AFTER: Duration = Duration::from_secs(1);
const DOWN_AFTER: Duration = Duration::from_secs(30);
/// Between two changes at least.
const INTERVAL: Duration = Duration::from_secs(2);

/// Decides about the number of workers.
#[derive(Debug)]
pub struct Scaler {
    min: usize,
    max: usize,
    changed: Option<Instant>,
    busy_since: Option<Instant>,
    idle_since: Option<Instant>,
}

impl Scaler {
    /// Between `min` and `max` workers.
    pub fn new(min: usize, max: usize) -> Scaler {
        Scaler { min, max, changed: None, busy_since: None, idle_since: None }
    }

    /// Looks at the load; the number of workers that it asks for, if that is another one.
    pub fn sample(&mut self, load: Load, now: Instant) -> Option<usize> {
        let capacity = load.workers * load.concurrency;
        let waits = load.queued > 0 && load.oldest_wait >= WAIT;
        let busy = waits || load.in_flight * 100 >= capacity * BUSY;
        let fewer = capacity.saturating_sub(load.concurrency);
        let idle = load.queued == 0 && load.in_flight * 100 <= fewer * IDLE;
        let since = |mark: &mut Option<Instant>, holds: bool| {
            *mark = holds.then(|| mark.unwrap_or(now));
            mark.map(|since| now.duration_since(since))
        };
        let (busy_for, idle_for) = (since(&mut self.busy_since, busy), since(&mut self.idle_since, idle));
        if load.workers < self.min || load.workers > self.max {
            return Some(load.workers.clamp(self.min, self.max));
        }
        if load.changing || self.changed.is_some_and(|changed| now.duration_since(changed) < INTERVAL) {
            return None;
        }
        let up = waits || busy_for.is_some_and(|time| time >= UP_AFTER);
        if up && load.short {
            return None;
        }
        let target = if up {
            // A quarter more, so that a large app does not climb one by one.
            (load.workers + load.workers.div_ceil(4)).min(self.max)
        } else if idle_for.is_some_and(|time| time >= DOWN_AFTER) {
            (load.workers - 1).max(self.min)
        } else {
            load.workers
        };
        if target == load.workers {
            return None;
        }
        self.changed = Some(now);
        (self.busy_since, self.idle_since) = (None, None);
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Load = Load {
        queued: 0,
        oldest_wait: Duration::ZERO,
        in_flight: 0,
        concurrency: 1,
        workers: 2,
        changing: false,
        short: false,
    };

    /// Samples for so long, with the workers following at once; the numbers of workers that were asked for, and when, in ms.
    fn follow(scaler: &mut Scaler, load: &mut Load, now: &mut Instant, time: Duration) -> Vec<(u128, usize)> {
        let (start, end) = (*now, *now + time);
        let mut asked = Vec::new();
        while *now < end {
            if let Some(target) = scaler.sample(*load, *now) {
                asked.push(((*now - start).as_millis(), target));
                load.workers = target;
            }
            *now += SAMPLE;
        }
        asked
    }

    #[test]
    fn waiting_requests_ask_for_more_up_to_the_most_with_pauses() {
        let (mut scaler, mut now) = (Scaler::new(2, 8), Instant::now());
        let mut load = Load { queued: 3, oldest_wait: WAIT, in_flight: 2, ..CALM };
        let asked = follow(&mut scaler, &mut load, &mut now, Duration::from_secs(20));
        assert_eq!(asked, [(0, 3), (2000, 4), (4000, 5), (6000, 7), (8000, 8)]);
    }

    #[test]
    fn full_workers_ask_for_more_after_a_second_and_a_short_burst_does_not() {
        let (mut scaler, mut now) = (Scaler::new(2, 8), Instant::now());
        let mut load = Load { in_flight: 2, ..CALM };
        assert_eq!(follow(&mut scaler, &mut load, &mut now, Duration::from_millis(900)), []);
        load.in_flight = 0;
        assert_eq!(follow(&mut scaler, &mut load, &mut now, Duration::from_millis(500)), []);
        load.in_flight = 2;
        assert_eq!(follow(&mut scaler, &mut load, &mut now, Duration::from_millis(1500)), [(1000, 3)]);
    }

    #[test]
    fn idle_workers_go_one_by_one_down_to_the_least() {
        let (mut scaler, mut now) = (Scaler::new(2, 8), Instant::now());
        let mut load = Load { workers: 4, ..CALM };
        let asked = follow(&mut scaler, &mut load, &mut now, Duration::from_secs(200));
        assert_eq!(asked, [(30_000, 3), (60_250, 2)]);
    }

    #[test]
    fn a_load_between_the_marks_changes_nothing() {
        let (mut scaler, mut now) = (Scaler::new(2, 8), Instant::now());
        let mut load = Load { workers: 4, in_flight: 3, ..CALM };
        assert_eq!(follow(&mut scaler, &mut load, &mut now, Duration::from_secs(600)), []);
    }

    #[test]
    fn nothing_changes_while_a_worker_is_on_its_way() {
        let (mut scaler, mut now) = (Scaler::new(2, 8), Instant::now());
        let mut load = Load { queued: 3, oldest_wait: WAIT, changing: true, ..CALM };
        assert_eq!(follow(&mut scaler, &mut load, &mut now, Duration::from_secs(60)), []);
    }

    #[test]
    fn where_most_places_have_nobody_who_serves_none_is_added_and_one_may_go() {
        let (mut scaler, mut now) = (Scaler::new(2, 8), Instant::now());
        let mut load = Load { queued: 3, oldest_wait: WAIT, workers: 4, short: true, ..CALM };
        assert_eq!(follow(&mut scaler, &mut load, &mut now, Duration::from_secs(60)), []);
        load.queued = 0;
        assert_eq!(follow(&mut scaler, &mut load, &mut now, Duration::from_secs(31)), [(30_000, 3)]);
    }

    #[test]
    fn a_number_out_of_bounds_is_brought_back() {
        let mut scaler = Scaler::new(2, 8);
        assert_eq!(scaler.sample(Load { workers: 9, ..CALM }, Instant::now()), Some(8));
        assert_eq!(scaler.sample(Load { workers: 1, ..CALM }, Instant::now()), Some(2));
    }
}
