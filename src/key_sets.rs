//! Who fetches sets of keys with which tokens are signed, where a configuration names them by URL: one thread that looks what is due, and one for
//! each fetch, so that a host that does not answer holds up no other's keys. They end with the server.
//!
//! A set is fetched when somebody first names it, then as often as is said, and once a minute at most in between, where a token names a key
//! that is not in it. One that cannot be had is tried again ever later, up to a minute apart; what was good last holds meanwhile. That is
//! said once, and once that it is over. Of one URL there is one fetch at a time, and [`MOST_AT_ONCE`] of all.

use std::collections::BTreeMap;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::access::{self, Live};
use crate::acme::document;
use crate::control::status::KeySet;
use crate::log::{Level, Log};

/// Between two looks that tokens with unknown keys have caused.
const EARLY: Duration = Duration::from_secs(60);
/// The longest time until a set that could not be had is tried again.
const LATEST: Duration = Duration::from_secs(60);
/// Fetches that are under way at once, at most: each takes a thread for as long as its host takes its time.
const MOST_AT_ONCE: usize = 32;
/// Without anything to look after.
const IDLE: Duration = Duration::from_secs(86_400);

static REPORT: Mutex<Vec<KeySet>> = Mutex::new(Vec::new());

/// How the sets of this process stand.
pub fn report() -> Vec<KeySet> {
    REPORT.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Begins to look after them, if there are any and nobody does yet.
pub fn start(log: &Log) {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if access::live().is_empty() || STARTED.swap(true, Ordering::SeqCst) {
        return;
    }
    let own = log.clone();
    let body = move || {
        let (mut known, results) = (BTreeMap::new(), Results::default());
        loop {
            access::wait(look(&mut known, &results, &own));
        }
    };
    if let Err(error) = std::thread::Builder::new().name("key-sets".to_owned()).spawn(body) {
        log.event(Level::Error, "cannot start the thread that fetches keys of tokens", &[("error", &error)]);
    }
}

/// Fetches a set as it is now.
///
/// # Errors
/// Why it cannot be had, in one line.
pub fn fetch(url: &str) -> Result<String, String> {
    document(url)
}

/// What has come of fetches, by their URLs.
type Results = Arc<Mutex<Vec<(String, Result<String, String>)>>>;

/// What is known of a URL.
#[derive(Default)]
struct Known {
    /// Somebody fetches it; and whether for a token with an unknown key.
    under_way: Option<bool>,
    /// When it was looked at last.
    at: Option<Instant>,
    /// When a token last caused that.
    early: Option<Instant>,
    /// Failures in a row.
    failures: u32,
    shown: KeySet,
}

impl Known {
    /// In which time it is due, for whoever names it.
    fn due(&self, users: &[Arc<Live>], now: Instant) -> Duration {
        let at = match (self.under_way, self.at) {
            // What comes of it has it looked at again.
            (Some(_), _) => return IDLE,
            (None, None) => return Duration::ZERO,
            (None, Some(at)) => at,
        };
        let refresh = users.iter().map(|live| live.refresh).min().unwrap_or(IDLE);
        let backoff = Duration::from_secs(1 << self.failures.saturating_sub(1).min(6)).min(LATEST);
        let unknown = users.iter().any(|live| !live.is_known());
        let mut due = at + if self.failures > 0 || unknown { refresh.min(backoff) } else { refresh };
        if users.iter().any(|live| live.is_missed()) {
            due = due.min(self.early.map_or(now, |early| early + EARLY));
        }
        due.saturating_duration_since(now)
    }
}

/// Takes what has come, and has fetched what is due; the time until something is.
fn look(known: &mut BTreeMap<String, Known>, results: &Results, log: &Log) -> Duration {
    let mut users: BTreeMap<String, Vec<Arc<Live>>> = BTreeMap::new();
    for live in access::live() {
        users.entry(live.url.clone()).or_default().push(live);
    }
    let came = std::mem::take(&mut *results.lock().unwrap_or_else(PoisonError::into_inner));
    for (url, outcome) in came {
        if let Some(one) = known.get_mut(&url) {
            match users.get(&url) {
                Some(users) => settle(&url, users, one, outcome, log),
                // Nobody names it any more.
                None => one.under_way = None,
            }
        }
    }
    known.retain(|url, one| users.contains_key(url) || one.under_way.is_some());
    let mut under_way = known.values().filter(|one| one.under_way.is_some()).count();
    let mut next = IDLE;
    for (url, users) in &users {
        let one = known.entry(url.clone()).or_default();
        let mut due = one.due(users, Instant::now());
        if due.is_zero() {
            // Where there are too many, it has its turn when one of them is done.
            due = IDLE;
            if under_way < MOST_AT_ONCE {
                under_way += 1;
                begin(url, users, one, results);
            }
        }
        next = next.min(due);
    }
    let shown = known.iter().filter(|(url, _)| users.contains_key(*url));
    let shown = shown.map(|(url, one)| KeySet { url: url.clone(), ..one.shown.clone() }).collect();
    *REPORT.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    next
}

/// Has a set fetched. What comes of it lies in `results` when the bell rings.
fn begin(url: &str, users: &[Arc<Live>], known: &mut Known, results: &Results) {
    // All of them, before it is fetched: what is missed from now on may be in what comes.
    let missed = users.iter().filter(|live| live.take_miss()).count() > 0;
    known.under_way = Some(missed);
    let tell = |results: &Results, url: String, outcome| {
        results.lock().unwrap_or_else(PoisonError::into_inner).push((url, outcome));
        access::ring();
    };
    let (own, theirs) = (url.to_owned(), results.clone());
    let body = move || {
        let outcome = catch_unwind(|| fetch(&own)).unwrap_or_else(|_| Err("fetching it has failed".to_owned()));
        tell(&theirs, own, outcome);
    };
    if let Err(error) = std::thread::Builder::new().name("key-set".to_owned()).spawn(body) {
        tell(results, url.to_owned(), Err(format!("no thread can be started: {error}")));
    }
}

/// Takes over what has come of a fetch.
fn settle(url: &str, users: &[Arc<Live>], known: &mut Known, outcome: Result<String, String>, log: &Log) {
    let found = outcome.and_then(|text| {
        // Each takes what is right by its own rules, whatever becomes of the others.
        let taken: Vec<Result<usize, String>> = users.iter().map(|live| live.take(&text)).collect();
        taken.into_iter().try_fold(0, |most, keys| Ok(most.max(keys?)))
    });
    let now = Instant::now();
    known.early = if known.under_way.take() == Some(true) { Some(now) } else { known.early };
    known.at = Some(now);
    match found {
        Ok(keys) => {
            if std::mem::take(&mut known.failures) > 0 {
                log.event(Level::Info, "keys of tokens can be fetched again", &[("url", &url)]);
            }
            let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
            (known.shown.keys, known.shown.fetched, known.shown.last_error) = (keys, Some(seconds), None);
        }
        Err(error) => {
            if known.failures == 0 {
                let message = "keys of tokens cannot be fetched; those that were good last hold";
                log.event(Level::Warn, message, &[("url", &url), ("error", &error)]);
            }
            known.failures += 1;
            known.shown.last_error = Some(error);
        }
    }
}
