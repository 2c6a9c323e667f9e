//! What worlds by seed have in common: dice, which seeds are tried, and whether one of them finds a planted fault.

use std::panic::{catch_unwind, resume_unwind};

#[cfg(debug_assertions)]
use crate::planted::{Bug, plant};

/// Seeds within which a planted fault is found.
#[cfg(debug_assertions)]
const FINDS_WITHIN: u64 = 256;

/// Numbers that hang on the seed alone.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn draw(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % below
    }
}

/// Tries that many seeds, or those that `SIMULATION_FIRST` and `SIMULATION_SEEDS` say: what came of each.
pub fn try_all<T>(count: u64, run: fn(u64) -> T) -> Vec<T> {
    let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse().ok());
    let (first, count) = (number("SIMULATION_FIRST").unwrap_or(1), number("SIMULATION_SEEDS").unwrap_or(count));
    let one = |seed| {
        catch_unwind(|| run(seed)).unwrap_or_else(|panic| {
            eprintln!("SIMULATION_FIRST={seed} SIMULATION_SEEDS=1 repeats this");
            resume_unwind(panic)
        })
    };
    (first..first + count).map(one).collect()
}

/// Each of these faults has to be found.
#[cfg(debug_assertions)]
pub fn find_all<T>(bugs: &[Bug], run: fn(u64) -> T) {
    for bug in bugs {
        let found = (1..=FINDS_WITHIN).find(|seed| {
            plant(Some(*bug));
            let outcome = catch_unwind(|| run(*seed));
            plant(None);
            outcome.is_err()
        });
        println!("{bug:?} is found by seed {found:?}");
        assert!(found.is_some(), "no seed finds {bug:?}");
    }
}
