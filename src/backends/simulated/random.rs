//! The simulation's source of chance and the faults that it draws.
//!
//! All chance of a run comes from one [`Random`], so that a seed is a whole run: nothing else may be asked for chance, and
//! nothing whose order differs between runs (hash maps, threads) may decide in what order it is asked.

use std::time::Duration;

/// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014): small, fast, and good from
/// any seed, 0 included.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that repeats for the same seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next 64 bits.
    pub fn next_bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`; 0 for a bound of 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The product's high half is even enough here: bounds are far below 2^64.
        ((u128::from(self.next_bits()) * bound as u128) >> 64) as usize
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        debug_assert!(low <= high, "an empty range has no number");
        low + self.below(high - low + 1)
    }

    /// True in `per_mille` of 1000 cases. Asks for chance even where the answer is certain, so that switching one fault
    /// off does not shift all the others of a seed.
    pub fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1000) < per_mille as usize
    }

    /// A duration up to `most`, in whole microseconds.
    pub fn duration(&mut self, most: Duration) -> Duration {
        Duration::from_micros(self.below(most.as_micros() as usize + 1) as u64)
    }

    /// Puts the items into a random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// How often each thing goes wrong, in cases of 1000, and how large the network's buffers and delays are.
#[derive(Clone, Debug)]
pub struct Faults {
    /// A send takes only a part, down to one byte.
    pub short_write: u32,
    /// A receive brings only a part, down to one byte.
    pub short_receive: u32,
    /// A TCP connection is reset at both ends while it is used.
    pub reset: u32,
    /// A connect is refused although somebody listens.
    pub refuse: u32,
    /// A Unix connect finds the backlog full although it is not.
    pub backlog_full: u32,
    /// A receive finds no block although the pool has some.
    pub starve: u32,
    /// An accept fails with EMFILE.
    pub accept: u32,
    /// A connect fails with EMFILE.
    pub descriptors: u32,
    /// A turn ends after a few events although more sockets have some.
    pub small_batch: u32,
    /// A wait returns before anything has happened.
    pub early_wake: u32,
    /// An event that was there before its socket was closed is still handed out.
    pub stale_event: u32,
    /// A Close comes late, by up to [`Faults::delay`].
    pub late_close: u32,
    /// The longest way of bytes over TCP. Unix sockets have none.
    pub delay: Duration,
    /// Bytes that a direction of a connection holds before a send would block.
    pub capacity: usize,
}

impl Faults {
    /// Nothing goes wrong, nothing takes time, and buffers hold 208 KiB as Linux' Unix sockets do by default.
    pub const NONE: Faults = Faults {
        short_write: 0,
        short_receive: 0,
        reset: 0,
        refuse: 0,
        backlog_full: 0,
        starve: 0,
        accept: 0,
        descriptors: 0,
        small_batch: 0,
        early_wake: 0,
        stale_event: 0,
        late_close: 0,
        delay: Duration::ZERO,
        capacity: 208 * 1024,
    };

    /// Intensities for one seed. Each fault is off, rare or frequent independently of the others, so that among many seeds
    /// some show one fault alone.
    pub fn draw(random: &mut Random) -> Faults {
        let mut of = |rare: u32, frequent: u32| match random.below(4) {
            0 | 1 => 0,
            2 => rare,
            _ => frequent,
        };
        Faults {
            short_write: of(50, 700),
            short_receive: of(50, 700),
            reset: of(1, 6),
            refuse: of(5, 60),
            backlog_full: of(20, 200),
            starve: of(20, 300),
            accept: of(20, 200),
            descriptors: of(5, 50),
            small_batch: of(100, 600),
            early_wake: of(50, 300),
            stale_event: of(200, 900),
            late_close: of(100, 800),
            delay: Duration::from_micros(u64::from(of(300, 20_000))),
            capacity: 1 << random.between(9, 18),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_generator_is_the_published_one() {
        let mut random = Random::new(1_234_567);
        let first: Vec<u64> = std::iter::repeat_with(|| random.next_bits()).take(3).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn numbers_stay_in_their_range_and_reach_its_ends() {
        let mut random = Random::new(7);
        let drawn: Vec<usize> = (0..1000).map(|_| random.between(3, 6)).collect();
        assert!(drawn.iter().all(|number| (3..=6).contains(number)));
        assert!((3..=6).all(|number| drawn.contains(&number)));
        assert!((0..1000).all(|_| !random.chance(0)) && (0..1000).all(|_| random.chance(1000)));
    }

    #[test]
    fn shuffling_keeps_every_item() {
        let mut items: Vec<u32> = (0..50).collect();
        Random::new(3).shuffle(&mut items);
        assert_ne!(items, (0..50).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..50).collect::<Vec<_>>());
    }
}
