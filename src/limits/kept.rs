//! What is remembered of a limit, in the form in which one server tells the next.
//!
//! Clients are known by hashes (SipHash-2-4) of what tells them apart, under a secret that goes with them; of each it is said how long it
//! takes until its allowance is whole again, so that the clocks of both need not agree. What cannot be understood changes nothing.

use std::sync::atomic::Ordering;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::{ENTRIES, Entry, Limit, Registry, lock};

/// The number of this form: it changes where another server would be wrong about what is said.
const FORM: u32 = 1;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The limit's name.
    pub name: String,
    form: u32,
    secret: [u64; 2],
    /// Pairs of a hash and a time in nanoseconds, each of eight bytes, the least first; in base64.
    entries: String,
}

impl Limit {
    fn keep(&self, name: String, now: u64) -> Kept {
        let mut bytes = Vec::new();
        for shard in &self.shards {
            for entry in lock(shard).iter().flatten().filter(|entry| entry.whole_at > now) {
                bytes.extend_from_slice(&entry.key.to_le_bytes());
                bytes.extend_from_slice(&(entry.whole_at - now).to_le_bytes());
            }
        }
        let secret = self.secret.each_ref().map(|half| half.load(Ordering::Relaxed));
        Kept { name, form: FORM, secret, entries: STANDARD.encode(bytes) }
    }

    fn restore(&self, kept: &Kept, now: u64) -> Result<(), String> {
        if kept.form != FORM {
            return Err(format!("it is told in form {}, and this server knows {FORM}", kept.form));
        }
        let bytes = STANDARD.decode(&kept.entries).map_err(|error| error.to_string())?;
        let (entries, rest) = bytes.as_chunks::<16>();
        if !rest.is_empty() || entries.len() > ENTRIES {
            return Err(format!("{} bytes are no entries of a limit", bytes.len()));
        }
        for (half, told) in self.secret.iter().zip(kept.secret) {
            half.store(told, Ordering::Relaxed);
        }
        for entry in entries {
            let number = |at: usize| entry[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let (key, whole_at) = (number(0), now.saturating_add(number(8)));
            self.in_row(key, |row| {
                let known = row.iter().position(|entry| entry.key == key);
                let place = known.or_else(|| (0..row.len()).min_by_key(|place| row[*place].whole_at));
                if let Some(place) = place.map(|place| &mut row[place]).filter(|place| place.whole_at < whole_at) {
                    *place = Entry { key, whole_at };
                }
            });
        }
        Ok(())
    }
}

impl Registry {
    /// What is remembered of all limits that are in use, at that time.
    pub fn keep(&self, now: Instant) -> impl Iterator<Item = Kept> {
        let now = self.nanos(now);
        self.all().into_iter().map(move |(name, limit)| limit.keep(name, now))
    }

    /// Takes over what the server before this one has remembered of a limit, before anybody has met it here. Of one that is not in use
    /// nothing is.
    ///
    /// # Errors
    /// What cannot be understood. Nothing has changed then.
    pub fn restore(&self, told: serde_json::Value, now: Instant) -> Result<(), String> {
        let kept: Kept = serde_json::from_value(told).map_err(|error| error.to_string())?;
        let limit = self.all().into_iter().find(|(name, _)| *name == kept.name);
        limit.map_or(Ok(()), |(_, limit)| limit.restore(&kept, self.nanos(now)))
    }
}
