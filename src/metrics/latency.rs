//! How long requests took, and how many came of late: a histogram of fixed size for each loop, and two samples for whoever asks.
//!
//! Buckets are log-linear (as in HdrHistogram): below 32 units each unit has its own, above that every power of two is cut into
//! 16. The unit is 1024 ns, so that a shift makes it. A value is told as the upper end of its bucket: never too small, and too
//! large by 1/16 or by one unit at most.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Nanoseconds of a unit, as a power of two.
const UNIT_BITS: u32 = 10;
/// Buckets of a power of two, as a power of two.
const PART_BITS: u32 = 4;
/// Enough for every number of nanoseconds in 64 bits, and a power of two, so that no bounds are checked.
const BUCKETS: usize = 1024;

/// The bounds that are told to the world, in nanoseconds: how many requests took at most so long is known exactly for these.
pub const BOUNDS: [u64; 14] = [
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];

/// For each bucket the number of the bound that lies in it, from 1, and 0 where none does. No two lie in the same.
static CUT_BY: [u8; BUCKETS] = {
    let mut cut = [0; BUCKETS];
    let mut at = 0;
    while at < BOUNDS.len() {
        assert!(cut[bucket(BOUNDS[at])] == 0, "two bounds lie in one bucket");
        cut[bucket(BOUNDS[at])] = at as u8 + 1;
        at += 1;
    }
    cut
};

/// Times by how long they were. One thread writes, all may read.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    /// Of the bucket that a bound lies in, those that are not above it.
    below: [AtomicU64; BOUNDS.len()],
    nanos: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            counts: [const { AtomicU64::new(0) }; BUCKETS],
            below: [const { AtomicU64::new(0) }; BOUNDS.len()],
            nanos: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Counts a time of so many nanoseconds. Only the owner's thread may call it: two writers would lose counts.
    #[inline]
    pub fn record(&self, nanos: u64) {
        let add = |count: &AtomicU64, more| {
            count.store(count.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        };
        let bucket = bucket(nanos);
        add(&self.counts[bucket], 1);
        add(&self.nanos, nanos);
        let cut = usize::from(CUT_BY[bucket]);
        if cut != 0 && nanos <= BOUNDS[cut - 1] {
            add(&self.below[cut - 1], 1);
        }
    }

    /// Counts on from these. Only the owner's thread may call it.
    pub(super) fn set(&self, to: &Latencies) {
        let pairs = self.counts.iter().zip(&to.counts).chain(self.below.iter().zip(&to.below));
        pairs.for_each(|(count, value)| count.store(*value, Ordering::Relaxed));
        self.nanos.store(to.nanos, Ordering::Relaxed);
    }
}

/// The bucket of that many nanoseconds.
#[inline]
const fn bucket(nanos: u64) -> usize {
    let units = nanos >> UNIT_BITS;
    // With the lowest part's bit set, small numbers need no branch: they are their own bucket.
    let shift = (u64::BITS - 1 - PART_BITS) - (units | 1 << PART_BITS).leading_zeros();
    (((shift as u64) << PART_BITS) + (units >> shift)) as usize & (BUCKETS - 1)
}

/// Where a bucket ends, in nanoseconds.
fn upper_end(bucket: usize) -> u64 {
    let parts = 1 << PART_BITS;
    let shift = (bucket / parts).saturating_sub(1);
    let part = bucket - shift * parts;
    (part as u64 + 1) << (shift as u32 + UNIT_BITS)
}

/// How long requests took, of several loops together, at one moment or between two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Filled", into = "Filled")]
pub struct Latencies {
    counts: Box<[u64]>,
    below: [u64; BOUNDS.len()],
    nanos: u64,
}

/// Them as one process tells another: the buckets in which something is, and beside each bound, in nanoseconds, what is below it.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Filled {
    counts: Vec<(usize, u64)>,
    below: Vec<(u64, u64)>,
    nanos: u64,
}

impl From<Latencies> for Filled {
    fn from(all: Latencies) -> Filled {
        let filled = |&(_, count): &(usize, u64)| count > 0;
        let below = BOUNDS.into_iter().zip(all.below).filter(|(_, count)| *count > 0).collect();
        Filled { counts: all.counts.iter().copied().enumerate().filter(filled).collect(), below, nanos: all.nanos }
    }
}

impl From<Filled> for Latencies {
    /// What does not exist here is passed over.
    fn from(filled: Filled) -> Latencies {
        let mut all = Latencies { nanos: filled.nanos, ..Latencies::default() };
        for (bucket, count) in filled.counts {
            all.counts.get_mut(bucket).into_iter().for_each(|sum| *sum = count);
        }
        for (bound, count) in filled.below {
            BOUNDS.iter().position(|known| *known == bound).into_iter().for_each(|at| all.below[at] = count);
        }
        all
    }
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { counts: vec![0; BUCKETS].into_boxed_slice(), below: [0; BOUNDS.len()], nanos: 0 }
    }
}

impl Latencies {
    /// Adds one loop's.
    pub fn add(&mut self, histogram: &Histogram) {
        for (sum, count) in self.counts.iter_mut().zip(&histogram.counts) {
            *sum += count.load(Ordering::Relaxed);
        }
        for (sum, count) in self.below.iter_mut().zip(&histogram.below) {
            *sum += count.load(Ordering::Relaxed);
        }
        self.nanos = self.nanos.wrapping_add(histogram.nanos.load(Ordering::Relaxed));
    }

    /// Adds those of others.
    pub fn merge(&mut self, other: &Latencies) {
        let both = self.counts.iter_mut().zip(&other.counts).chain(self.below.iter_mut().zip(&other.below));
        both.for_each(|(sum, count)| *sum += count);
        self.nanos = self.nanos.wrapping_add(other.nanos);
    }

    /// Adds requests that were answered in the turn in which they were read: the loop's clock stood still meanwhile. The loops do not
    /// record them, since their number is known: where the loops answer everything it is that of all requests.
    pub fn add_at_once(&mut self, count: u64) {
        self.counts[0] += count;
    }

    /// Those that came since an earlier moment.
    pub fn since(&self, earlier: &Latencies) -> Latencies {
        let mut since = self.clone();
        let both = since.counts.iter_mut().zip(&earlier.counts).chain(since.below.iter_mut().zip(&earlier.below));
        both.for_each(|(now, then)| *now = now.saturating_sub(*then));
        since.nanos = self.nanos.saturating_sub(earlier.nanos);
        since
    }

    /// How many requests there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long they took together, in nanoseconds.
    pub fn nanos(&self) -> u64 {
        self.nanos
    }

    /// How many took at most as long as each of [`BOUNDS`] says. Never more for a lower bound than for a higher one, nor than
    /// [`Latencies::count`], even when the loops were at work as they were read.
    pub fn at_most(&self) -> [u64; BOUNDS.len()] {
        let (mut sum, mut next) = (0, 0);
        std::array::from_fn(|at| {
            let cut = bucket(BOUNDS[at]);
            sum += self.counts[next..cut].iter().sum::<u64>();
            next = cut;
            sum + self.below[at].min(self.counts[cut])
        })
    }

    /// How long at most that share of the requests took, from 0 to 1; `None` when there was none.
    pub fn quantile(&self, share: f64) -> Option<Duration> {
        let count = self.count();
        let rank = ((count as f64 * share).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let found = self.counts.iter().position(|in_bucket| {
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

    proptest! {
        #[test]
        fn bounds_are_exact(values in prop::collection::vec(prop_oneof![
            0..50_000_000_000u64,
            (0..BOUNDS.len(), -2..3i64).prop_map(|(at, by)| BOUNDS[at].saturating_add_signed(by)),
            (0..BOUNDS.len(), 0..2_000u64).prop_map(|(at, by)| BOUNDS[at] / 1000 * (999 + by / 1000) + by),
        ], 0..200)) {
            let told = of(values.iter().map(|nanos| Duration::from_nanos(*nanos)));
            for (bound, count) in BOUNDS.into_iter().zip(told.at_most()) {
                let expected = values.iter().filter(|nanos| **nanos <= bound).count() as u64;
                prop_assert_eq!(count, expected, "at most {} ns", bound);
            }
            prop_assert_eq!((told.count(), told.nanos()), (values.len() as u64, values.iter().sum()));
            let mut twice = told.clone();
            twice.merge(&told);
            prop_assert_eq!(twice.since(&told), told);
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
