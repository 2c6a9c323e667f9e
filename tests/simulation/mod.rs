//! Real loops, exchanges and dispatch over a simulated network: many seeds, each a whole run with clients and workers that do
//! everything wrong that is known of such.
//!
//! A failing seed prints one line that repeats it with a trace: `SIMULATION_SEED=… cargo test simulation`.
//! `SIMULATION_SEEDS=…` runs that many.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;

mod checks;
mod clients;
mod driver;
mod supervisor;
mod wire;
mod workers;

use driver::Summary;
use production_server::backends::simulated::Trace;

/// Seeds that each test run tries.
const SEEDS: u64 = 256;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

/// Runs one seed; a failure says how to repeat it.
fn run(seed: u64, traced: bool) -> Summary {
    let trace = traced.then(|| Box::new(|line: &str| eprintln!("{line}")) as Trace);
    catch_unwind(AssertUnwindSafe(|| driver::run(seed, trace))).unwrap_or_else(|panic| {
        eprintln!("to repeat this: SIMULATION_SEED={seed} cargo test --test suite simulation -- --nocapture");
        resume_unwind(panic)
    })
}

#[test]
fn every_seed_keeps_the_rules() {
    if let Some(seed) = number("SIMULATION_SEED") {
        println!("{:?}", run(seed, true));
        return;
    }
    let mut total = Summary::default();
    for seed in 0..number("SIMULATION_SEEDS").unwrap_or(SEEDS) {
        let one = run(seed, false);
        total.requests += one.requests;
        total.answered += one.answered;
        total.retried += one.retried;
        total.deaths += one.deaths;
        total.rolls += one.rolls;
        total.rounds += one.rounds;
    }
    println!("{total:?}");
    assert!(total.answered * 2 > total.requests, "most requests are answered: {total:?}");
    assert!(total.retried > 20 && total.deaths > 100 && total.rolls > 100, "faults do happen: {total:?}");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let lines = |seed| {
        let lines = Rc::new(RefCell::new(Vec::new()));
        let kept = Rc::clone(&lines);
        // The heads of answers show the date, and that is the machine's own.
        let keep = move |line: &str| {
            if !line.contains(" gets Head ") {
                kept.borrow_mut().push(line.to_owned());
            }
        };
        driver::run(seed, Some(Box::new(keep)));
        lines.take()
    };
    for seed in [1, 4, 9, 10] {
        let (first, second) = (lines(seed), lines(seed));
        let differs = first.iter().zip(&second).find(|(first, second)| first != second);
        assert_eq!(differs, None, "seed {seed} is not the whole run");
        assert!(first.len() == second.len() && first.len() > 100);
    }
}

/// Each planted bug is found within as many seeds as an ordinary test run tries.
#[cfg(feature = "planted-bugs")]
mod planted_bugs {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use production_server::planted::{Bug, plant};

    use super::{SEEDS, driver};

    /// The first seed that finds a bug.
    fn finder(bug: Bug) -> Option<u64> {
        (0..SEEDS).find(|seed| {
            plant(Some(bug));
            let caught = catch_unwind(AssertUnwindSafe(|| driver::run(*seed, None))).is_err();
            plant(None);
            caught
        })
    }

    macro_rules! is_found {
        ($($name:ident: $bug:ident,)*) => {
            $(#[test]
            fn $name() {
                let seed = finder(Bug::$bug);
                println!("{:?} is found by seed {seed:?}", Bug::$bug);
                assert!(seed.is_some(), "no seed finds {:?}", Bug::$bug);
            })*
        };
    }

    is_found! {
        a_lost_grant_is_found: LostGrant,
        a_double_release_is_found: DoubleRelease,
        a_forgotten_cancel_is_found: ForgottenCancel,
        a_queue_jump_is_found: QueueJump,
        a_stale_worker_is_found: StaleWorker,
        a_leaked_block_is_found: LeakedBlock,
        a_late_retry_is_found: LateRetry,
        a_dirty_link_is_found: DirtyLink,
        a_clean_cut_is_found: CleanCut,
        a_forgotten_tunnel_is_found: ForgottenTunnel,
    }
}
