//! Keys of tokens that lie at a URL. Who fetches them is above (`key_sets.rs`); here is what is known of them, which loops look at.
//!
//! Rules:
//! - Nobody waits here: a look takes a lock for as long as it takes to clone a pointer.
//! - What was good last holds until something better has come; a configuration that names the URL again begins with it.
//! - A token whose key is not known asks for an early look, and the caller of [`wait`] decides when that is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::tokens::{self, Key, Rules};

/// A set of keys at a URL, as one route trusts it.
pub struct Live {
    /// Where.
    pub url: String,
    /// How often it is looked at.
    pub refresh: Duration,
    rules: Rules,
    /// `None`: nobody has found any yet.
    keys: Mutex<Option<Arc<Vec<Key>>>>,
    missed: AtomicBool,
}

/// What is known of all.
#[derive(Default)]
struct All {
    live: Vec<Weak<Live>>,
    /// What was good last, by URL.
    good: BTreeMap<String, Arc<str>>,
    /// Something is to be looked at.
    rung: bool,
}

static ALL: Mutex<All> = Mutex::new(All { live: Vec::new(), good: BTreeMap::new(), rung: false });
static BELL: Condvar = Condvar::new();

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has whoever is in [`wait`] look now.
pub fn ring() {
    lock(&ALL).rung = true;
    BELL.notify_all();
}

impl Live {
    /// The set at that URL, to be trusted by these rules.
    pub(super) fn new(url: &str, rules: &Rules, refresh: Duration) -> Arc<Live> {
        let good = lock(&ALL).good.get(url).cloned();
        let keys = good.and_then(|text| tokens::set(&text, rules).ok()).map(Arc::new);
        let (url, rules, missed) = (url.to_owned(), rules.clone(), AtomicBool::new(false));
        let live = Arc::new(Live { url, refresh, rules, keys: Mutex::new(keys), missed });
        lock(&ALL).live.push(Arc::downgrade(&live));
        ring();
        live
    }

    /// The keys, as far as they are known.
    pub(super) fn keys(&self) -> Option<Arc<Vec<Key>>> {
        lock(&self.keys).clone()
    }

    /// Whether any are known.
    pub fn is_known(&self) -> bool {
        lock(&self.keys).is_some()
    }

    /// A token names a key that is not there.
    pub(super) fn miss(&self) {
        if !self.missed.swap(true, Ordering::Relaxed) {
            ring();
        }
    }

    /// Whether a token has named a key that was not there, since this was asked last.
    pub fn take_miss(&self) -> bool {
        self.missed.swap(false, Ordering::Relaxed)
    }

    /// Whether one has, and that still waits.
    pub fn is_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed)
    }

    /// Takes what was found over, if it is good; how many keys it has.
    ///
    /// # Errors
    /// What is wrong with it, in one line. What held holds.
    pub fn take(&self, text: &str) -> Result<usize, String> {
        let keys = tokens::set(text, &self.rules)?;
        let count = keys.len();
        *lock(&self.keys) = Some(Arc::new(keys));
        lock(&ALL).good.insert(self.url.clone(), text.into());
        Ok(count)
    }
}

/// Those that some configuration names.
pub fn live() -> Vec<Arc<Live>> {
    let mut all = lock(&ALL);
    all.live.retain(|live| live.strong_count() > 0);
    let found: Vec<Arc<Live>> = all.live.iter().filter_map(Weak::upgrade).collect();
    all.good.retain(|url, _| found.iter().any(|live| live.url == *url));
    found
}

/// Waits until something is to be looked at, or that time is over.
pub fn wait(time: Duration) {
    let all = lock(&ALL);
    let rung = BELL.wait_timeout_while(all, time, |all| !all.rung);
    let (mut all, _) = rung.unwrap_or_else(PoisonError::into_inner);
    all.rung = false;
}
