//! The hubs of a server by their names: they outlive configurations.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{Epoch, Hub, Settings, Topic, lock};

/// The hubs of a server. One that no configuration has any more is forgotten. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hubs: Mutex<BTreeMap<String, Weak<Hub>>>,
    loops: usize,
    /// Since when times are counted.
    began: Instant,
}

impl Registry {
    /// Of a server with so many loops, that has no hub yet.
    pub fn new(loops: usize) -> Registry {
        Registry(Arc::new(Inner { hubs: Mutex::default(), loops, began: Instant::now() }))
    }

    /// The hub of that name, which is as it was if anybody still has it: those settings hold for it once [`Hub::configure`] says so.
    pub fn get(&self, settings: Settings) -> Arc<Hub> {
        let mut hubs = lock(&self.0.hubs);
        hubs.retain(|_, hub| hub.strong_count() > 0);
        if let Some(hub) = hubs.get(&settings.name).and_then(Weak::upgrade) {
            return hub;
        }
        let name = settings.name.clone();
        let hub = Arc::new(Hub::new(settings, Registry::new_epoch(), self.0.loops));
        hubs.insert(name, Arc::downgrade(&hub));
        hub
    }

    /// An epoch that begins now.
    pub fn new_epoch() -> Epoch {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Epoch::new(time.as_secs(), u64::from(time.subsec_nanos()))
    }

    /// All hubs that are in use, by name.
    pub fn all(&self) -> Vec<Arc<Hub>> {
        lock(&self.0.hubs).values().filter_map(Weak::upgrade).collect()
    }

    /// A time as hubs count it.
    pub fn since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.0.began)
    }
}

impl Hub {
    /// The topic of that name, if there is one.
    pub fn find(&self, name: &str) -> Option<Arc<Topic>> {
        self.table().topics.get(name).cloned()
    }
}
