//! How long requests took, and how many came of late: a histogram of fixed size for each loop, and two samples for whoever asks.
//!
//! Buckets are log-linear (as in HdrHistogram): below 32 units each unit has its own, above that every power of two is cut into
//! 16. The unit is 1024 ns, so that a shift makes it. A value is told as the upper end of its bucket: never too small, and too
//! large by 1/16 or by one unit at most.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Nanoseconds of a unit, as a power of two.
const UNIT_BITS: u32 = 10;
/// Buckets of a power of two, as a power of two.
const PART_BITS: u32 = 4;
/// Enough for every number of nanoseconds in 64 bits, and a power of two, so that no bounds are checked.
const BUCKETS: usize = 1024;

/// The requests of one loop by how long they took. That loop's thread writes, all may read.
#[derive(Debug)]
pub struct Histogram([AtomicU64; BUCKETS]);

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram([const { AtomicU64::new(0) }; BUCKETS])
    }
}

impl Histogram {
    /// Counts a request that took so many nanoseconds. Only the owner's thread may call it: two writers would lose counts.
    #[inline]
    pub fn record(&self, nanos: u64) {
        let count = &self.0[bucket(nanos)];
        count.store(count.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

/// The bucket of that many nanoseconds.
#[inline]
fn bucket(nanos: u64) -> usize {
    let units = nanos >> UNIT_BITS;
    // With the lowest part's bit set, small numbers need no branch: they are their own bucket.
    let shift = (u64::BITS - 1 - PART_BITS) - (units | 1 << PART_BITS).leading_zeros();
    ((u64::from(shift) << PART_BITS) + (units >> shift)) as usize & (BUCKETS - 1)
}

/// Where a bucket ends, in nanoseconds.
fn upper_end(bucket: usize) -> u64 {
    let parts = 1 << PART_BITS;
    let shift = (bucket / parts).saturating_sub(1);
    let part = bucket - shift * parts;
    (part as u64 + 1) << (shift as u32 + UNIT_BITS)
}

/// How long requests took, of several loops together, at one moment or between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latencies(Box<[u64]>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(vec![0; BUCKETS].into_boxed_slice())
    }
}

impl Latencies {
    /// Adds one loop's.
    pub fn add(&mut self, histogram: &Histogram) {
        for (sum, count) in self.0.iter_mut().zip(&histogram.0) {
            *sum += count.load(Ordering::Relaxed);
        }
    }

    /// Adds requests that were answered in the turn in which they were read: the loop's clock stood still meanwhile. The loops do not
    /// record them, since their number is known: where the loops answer everything it is that of all requests.
    pub fn add_at_once(&mut self, count: u64) {
        self.0[0] += count;
    }

    /// Adds to one bucket; one that does not exist is passed over.
    pub fn add_to(&mut self, bucket: usize, count: u64) {
        if let Some(sum) = self.0.get_mut(bucket) {
            *sum += count;
        }
    }

    /// The buckets in which something is.
    pub fn filled(&self) -> Vec<(usize, u64)> {
        self.0.iter().copied().enumerate().filter(|(_, count)| *count > 0).collect()
    }

    /// Those that came since an earlier moment.
    pub fn since(&self, earlier: &Latencies) -> Latencies {
        Latencies(self.0.iter().zip(&earlier.0).map(|(now, then)| now.saturating_sub(*then)).collect())
    }

    /// How many requests there were.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// How long at most that share of the requests took, from 0 to 1; `None` when there was none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((count as f64 * share).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let found = self.0.iter().position(|in_bucket| {
            seen += in_bucket;
            seen >= rank
        });
        found.map(|bucket| Duration::from_nanos(upper_end(bucket)))
    }
}

/// For how long a sample is at least looked back.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Over less than this no rate is told: it would be an accident.
const SHORTEST: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
struct Sample {
    at: Instant,
    requests: u64,
    latencies: Latencies,
}

/// Two samples of what only grows, and what came between the older one and now. With a sample every [`WINDOW`] that is what came in the
/// last 10 to 20 seconds; with fewer it is what came since the last but one.
#[derive(Clone, Debug)]
pub struct Rates {
    older: Sample,
    newer: Sample,
}

/// What came of late.
#[derive(Clone, Debug, PartialEq)]
pub struct Recent {
    /// Requests in a second; `None` when it is too early to tell.
    pub per_second: Option<f64>,
    /// How long requests took: those since the older sample, or when none came since then, all since the start.
    pub latencies: Latencies,
    /// Over which time; `None`: since the start.
    pub over: Option<Duration>,
}

impl Rates {
    /// Before the first request.
    pub fn new(now: Instant) -> Rates {
        Rates::after(now, 0, Latencies::default())
    }

    /// When so much was counted already.
    pub fn after(now: Instant, requests: u64, latencies: Latencies) -> Rates {
        let start = Sample { at: now, requests, latencies };
        Rates { older: start.clone(), newer: start }
    }

    /// When the next sample is due.
    pub fn due(&self) -> Instant {
        self.newer.at + WINDOW
    }

    /// Takes the totals as they are now and tells what came of late. May be called more often than is due.
    pub fn sample(&mut self, now: Instant, requests: u64, latencies: Latencies) -> Recent {
        if now >= self.due() {
            let sample = Sample { at: now, requests, latencies: latencies.clone() };
            self.older = std::mem::replace(&mut self.newer, sample);
        }
        let over = now.saturating_duration_since(self.older.at);
        let came = requests.saturating_sub(self.older.requests);
        let per_second = (over >= SHORTEST).then(|| came as f64 / over.as_secs_f64());
        let recent = latencies.since(&self.older.latencies);
        if recent.count() > 0 {
            Recent { per_second, latencies: recent, over: Some(over) }
        } else {
            Recent { per_second, latencies, over: None }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: impl IntoIterator<Item = Duration>) -> Latencies {
        let histogram = Histogram::default();
        values.into_iter().for_each(|took| histogram.record(took.as_nanos() as u64));
        let mut sum = Latencies::default();
        sum.add(&histogram);
        sum
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        assert_eq!((bucket(0), bucket(1023), bucket(1024)), (0, 0, 1));
        let last = bucket(u64::MAX);
        assert!(last < BUCKETS);
        for index in 0..last {
            let end = upper_end(index);
            assert_eq!((bucket(end - 1), bucket(end)), (index, index + 1), "bucket {index}");
        }
    }

    proptest! {
        #[test]
        fn a_value_is_told_never_too_small_and_hardly_too_large(nanos in prop_oneof![0..1_000_000u64, any::<u64>()]) {
            prop_assume!(nanos < 1 << 62);
            let told = upper_end(bucket(nanos));
            prop_assert!(told > nanos && told <= nanos + (nanos / 16).max(1 << UNIT_BITS), "{} is told as {}", nanos, told);
        }

        #[test]
        fn quantiles_are_those_of_the_sorted_values(mut values in prop::collection::vec(0..10_000_000_000u64, 1..200), share in 0.0..=1.0f64) {
            let told = of(values.iter().map(|nanos| Duration::from_nanos(*nanos))).quantile(share).unwrap().as_nanos() as u64;
            values.sort_unstable();
            let rank = ((values.len() as f64 * share).ceil() as usize).max(1);
            prop_assert_eq!(told, upper_end(bucket(values[rank - 1])));
        }
    }

    #[test]
    fn loops_are_merged_and_nothing_is_made_up() {
        assert_eq!((Latencies::default().count(), Latencies::default().quantile(0.5)), (0, None));
        let (first, second) = (Histogram::default(), Histogram::default());
        (0..90).for_each(|_| first.record(1_000_000));
        (0..9).for_each(|_| second.record(100_000_000));
        let mut sum = Latencies::default();
        sum.add(&first);
        sum.add(&second);
        sum.add_at_once(1);
        assert_eq!(sum.count(), 100);
        let told = |share| sum.quantile(share).unwrap().as_secs_f64() * 1000.0;
        assert!(told(0.0) < 0.01 && (1.0..1.07).contains(&told(0.5)), "{} {}", told(0.0), told(0.5));
        assert!((100.0..107.0).contains(&told(0.99)) && told(0.99) == told(1.0), "{}", told(0.99));
    }

    #[test]
    fn rates_are_those_of_the_last_ten_to_twenty_seconds() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let slow = || of(std::iter::repeat_n(Duration::from_secs(1), 1000));
        let mut rates = Rates::new(start);
        assert_eq!(rates.sample(start, 0, Latencies::default()).per_second, None, "too early to tell");
        assert_eq!(rates.sample(at(5.0), 1000, slow()).per_second, Some(200.0));
        assert_eq!(rates.sample(at(10.0), 1000, slow()).per_second, Some(100.0));
        let later = rates.sample(at(20.0), 1000, slow());
        assert_eq!((later.per_second, later.over), (Some(0.0), None), "nothing came in the last ten seconds");
        assert_eq!(later.latencies.count(), 1000);
        let mut both = slow();
        let quick = Histogram::default();
        (0..30).for_each(|_| quick.record(1_000_000));
        both.add(&quick);
        let last = rates.sample(at(25.0), 1030, both);
        assert_eq!(
            (last.per_second, last.over, last.latencies.count()),
            (Some(2.0), Some(Duration::from_secs(15)), 30)
        );
        assert!(last.latencies.quantile(1.0).unwrap() < Duration::from_millis(2));
        assert_eq!(rates.due(), at(30.0));
    }
}
