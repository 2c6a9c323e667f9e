//! The one thread that fetches sets of keys with which tokens are signed, where a configuration names them by URL. It ends with the server.
//!
//! A set is fetched when somebody first names it, then as often as is said, and once a minute at most in between, where a token names a key
//! that is not in it. One that cannot be had is tried again ever later, up to a minute apart; what was good last holds meanwhile. That is
//! said once, and once that it is over.

use std::collections::BTreeMap;
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
        let mut known = BTreeMap::new();
        loop {
            access::wait(look(&mut known, &own));
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

/// What is known of a URL.
#[derive(Default)]
struct Known {
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
        let Some(at) = self.at else { return Duration::ZERO };
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

/// Fetches what is due; the time until something is.
fn look(known: &mut BTreeMap<String, Known>, log: &Log) -> Duration {
    let mut users: BTreeMap<String, Vec<Arc<Live>>> = BTreeMap::new();
    for live in access::live() {
        users.entry(live.url.clone()).or_default().push(live);
    }
    known.retain(|url, _| users.contains_key(url));
    let mut next = IDLE;
    for (url, users) in &users {
        let one = known.entry(url.clone()).or_default();
        if one.due(users, Instant::now()).is_zero() {
            refresh(url, users, one, log);
        }
        next = next.min(one.due(users, Instant::now()));
    }
    let shown = known.values().map(|known| known.shown.clone()).collect();
    *REPORT.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    next
}

fn refresh(url: &str, users: &[Arc<Live>], known: &mut Known, log: &Log) {
    // All of them, before it is fetched: what is missed from now on may be in what comes.
    let missed = users.iter().filter(|live| live.take_miss()).count() > 0;
    let found = fetch(url).and_then(|text| {
        // Each takes what is right by its own rules, whatever becomes of the others.
        let taken: Vec<Result<usize, String>> = users.iter().map(|live| live.take(&text)).collect();
        taken.into_iter().try_fold(0, |most, keys| Ok(most.max(keys?)))
    });
    let now = Instant::now();
    known.early = if missed { Some(now) } else { known.early };
    known.at = Some(now);
    known.shown.url = url.to_owned();
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
