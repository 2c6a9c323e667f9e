//! Real loops, exchanges and dispatch over a simulated network: many seeds, each a whole run with clients and workers that do
//! everything wrong that is known of such.
//!
//! A failing seed prints one line that repeats it with a trace: `SIMULATION_SEED=… cargo test simulation`.
//! `SIMULATION_SEEDS=…` runs that many, from `SIMULATION_FIRST=…` on.

use std::cell::RefCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::available_parallelism;

mod checks;
mod clients;
mod crowd;
mod driver;
mod hubs;
mod line;
mod peers;
mod promises;
mod standstill;
mod supervisor;
mod tasks;
mod wire;
mod workers;

use driver::Summary;
use production_server::backends::simulated::Trace;

/// Seeds that each test run tries.
const SEEDS: u64 = 256;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
}

/// Failing seeds that a run shows at most.
const MOST_FAILURES: usize = 20;

/// Runs one seed; a failure says how to repeat it.
fn run(seed: u64, traced: bool) -> Option<Summary> {
    let trace = traced.then(|| Box::new(|line: &str| eprintln!("{line}")) as Trace);
    let outcome = catch_unwind(AssertUnwindSafe(|| driver::run(seed, trace)));
    if outcome.is_err() {
        eprintln!("to repeat this: SIMULATION_SEED={seed} cargo test --test suite simulation -- --nocapture");
    }
    outcome.ok()
}

#[test]
fn every_seed_keeps_the_rules() {
    if let Some(seed) = number("SIMULATION_SEED") {
        println!("{:?}", run(seed, true).expect("the seed keeps the rules"));
        return;
    }
    let first = number("SIMULATION_FIRST").unwrap_or(0);
    let count = number("SIMULATION_SEEDS").unwrap_or(SEEDS);
    let (total, failures) = run_all(first..first + count);
    println!("{total:#?}");
    assert!(failures.is_empty(), "seeds break the rules: {failures:?}");
    if count >= SEEDS {
        total.check_coverage();
    }
}

fn run_all(seeds: Range<u64>) -> (Summary, Vec<u64>) {
    let total = Mutex::new(Summary::default());
    let failures = run_each(seeds, |seed| {
        let outcome = run(seed, false);
        outcome.iter().for_each(|one| total.lock().unwrap().add(one));
        outcome.is_some()
    });
    (total.into_inner().unwrap(), failures)
}

/// Runs these seeds, as many at a time as there are processors: those that fail. A run is one thread's affair, whoever else runs beside it.
fn run_each(seeds: Range<u64>, run: impl Fn(u64) -> bool + Sync) -> Vec<u64> {
    let next = AtomicU64::new(seeds.start);
    let failures = Mutex::new(Vec::new());
    let work = || {
        while failures.lock().unwrap().len() < MOST_FAILURES {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            if !run(seed) {
                failures.lock().unwrap().push(seed);
            }
        }
    };
    let threads = available_parallelism().map_or(1, |count| count.get());
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let mut failures = failures.into_inner().unwrap();
    failures.sort_unstable();
    failures
}

impl Summary {
    fn add(&mut self, one: &Summary) {
        self.requests += one.requests;
        self.answered += one.answered;
        self.retried += one.retried;
        self.deaths += one.deaths;
        self.rolls += one.rolls;
        self.rounds += one.rounds;
        self.timed += one.timed;
        self.paused += one.paused;
        self.secure += one.secure;
        self.crowds += one.crowds;
        self.kinds.iter_mut().zip(one.kinds).for_each(|(sum, more)| *sum += more);
        self.overdraft = self.overdraft.max(one.overdraft);
        self.longest_wait = self.longest_wait.max(one.longest_wait);
    }

    /// The runs are what they are meant to be: a change that keeps the faults or the crowds away would else be a green test.
    fn check_coverage(&self) {
        assert!(self.answered * 2 > self.requests, "most requests are answered");
        // Tunnels and event streams are not timed, and refusals without an exchange are not.
        assert!(self.timed as usize * 2 > self.answered, "most requests are timed");
        assert!(self.retried > 20 && self.deaths > 100 && self.rolls > 100, "faults do happen");
        assert!(self.crowds > 40 && self.kinds.iter().all(|runs| *runs > 5), "crowds of each kind take part");
        assert!(self.secure > 40 || cfg!(not(debug_assertions)), "some speak TLS");
        assert!(self.paused > 20, "answers are paused for memory");
    }
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

/// Each planted bug is found within as many seeds as an ordinary test run tries, and by the rule that it breaks.
#[cfg(debug_assertions)]
mod planted_bugs {
    use std::any::Any;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use production_server::planted::{Bug, plant};

    use super::{SEEDS, driver};

    /// The first seed that finds a bug and says so in one of these ways.
    fn finder<T>(bug: Bug, ways: &[&str], run: impl Fn(u64) -> T) -> Option<u64> {
        (0..SEEDS).find(|seed| {
            plant(Some(bug));
            let outcome = catch_unwind(AssertUnwindSafe(|| run(*seed)));
            plant(None);
            outcome.is_err_and(|panic| ways.iter().any(|way| text(&*panic).contains(way)))
        })
    }

    fn text(panic: &(dyn Any + Send)) -> &str {
        let formatted = panic.downcast_ref::<String>().map(String::as_str);
        formatted.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or_default()
    }

    macro_rules! is_found {
        ($run:expr; $($name:ident: $bug:ident by $ways:expr,)*) => {
            $(#[test]
            fn $name() {
                let seed = finder(Bug::$bug, &$ways, $run);
                println!("{:?} is found by seed {seed:?}", Bug::$bug);
                assert!(seed.is_some(), "no seed finds {:?}", Bug::$bug);
            })*
        };
    }

    is_found! {
        |seed| driver::run(seed, None);
        a_lost_grant_is_found: LostGrant by [""],
        a_double_release_is_found: DoubleRelease by [""],
        a_forgotten_cancel_is_found: ForgottenCancel by [""],
        a_queue_jump_is_found: QueueJump by [""],
        a_stale_worker_is_found: StaleWorker by [""],
        a_leaked_block_is_found: LeakedBlock by [""],
        a_late_retry_is_found: LateRetry by [""],
        a_dirty_link_is_found: DirtyLink by [""],
        a_clean_cut_is_found: CleanCut by [""],
        a_forgotten_tunnel_is_found: ForgottenTunnel by [""],
        a_waiting_block_is_found: WaitingBlock by ["keep blocks of a pool that is pressed", "blocks wait for somebody"],
        a_blaming_clock_is_found: BlamingClock by ["and did its work", "no worker was silent", "was cut although"],
        a_forgotten_ticket_is_found: ForgottenTicket by ["not those of the requests that wait"],
        a_second_replacement_is_found: SecondReplacement by ["a second replacement"],
        a_roll_without_a_trial_is_found: NoTrial by ["nobody of the new generation has served"],
        a_hasty_roll_is_found: HastyRoll by ["places at a time"],
        a_recycled_worker_in_a_roll_is_found: RecycleInRoll by ["recycled in the middle of a roll"],
        a_stuck_worker_with_requests_is_found: StuckServes by ["requests still go to"],
    }

    is_found! {
        |seed| driver::run_hub(seed, None);
        a_message_skipped_at_a_wrap_is_found: SkippedAtWrap by ["lacks", "never got"],
        a_late_resume_is_found: LateResume by ["lacks", "never got"],
        a_silent_gap_is_found: SilentGap by ["lacks", "before it was told of its gap", "never told of its gap"],
        a_forgotten_subscriber_is_found: ForgottenSubscriber by ["do not know each other", "subscribers are left"],
        a_stale_place_is_found: StalePlace by ["do not know each other"],
        a_forgotten_id_is_found: ForgottenId by ["stands twice"],
        two_events_at_once_are_found: TwoEvents by ["does not know it", "two events of a socket at once"],
        a_forgotten_end_is_found: ForgottenEnd by ["never told of the end"],
        a_leaked_form_is_found: LeakedForm by ["topics or bytes are left"],
        a_message_to_who_is_excluded_is_found: NotExcluded by ["which is not for it"],
    }
}
