//! Limits: how often somebody may ask, whoever that is by a key of eight bytes.
//!
//! Each limit is a generic cell rate algorithm (GCRA, ITU-T I.371): of a key nothing is kept but the *theoretical arrival time* at which its
//! allowance would be whole again. So an entry of a key that has not asked for a while says nothing, and goes without loss.
//!
//! Rules:
//! - The memory of a limit is fixed: [`ENTRIES`] of 16 bytes, four to a row. Where a row is full, the entry with most allowance left goes;
//!   who floods has the least, and is never forgotten.
//! - Nothing here has a clock: the time is an argument, in nanoseconds since whenever, the same for all callers.
//! - A limit is known by its name and outlives its [`Policy`]: a reload that changes how much is allowed forgets nobody.
//! - Keys are hashed with a secret, so that nobody can choose a row. It goes over to the server after this one with what is remembered.

mod busiest;
mod crowd;
mod flight;
mod kept;

pub use busiest::{Busiest, Busy};
pub use crowd::Crowd;
pub use flight::{Flight, InFlight};
pub use kept::Kept;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Keys that are remembered at once, at most.
pub const ENTRIES: usize = 1 << 16;
/// Entries of a row.
const WAYS: usize = 4;
/// Rows under one lock, which is held for a look at one of them.
const ROWS: usize = 64;

/// So many in a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How many, at least 1.
    pub count: u64,
    /// In which time; with `count` at least 100 ns for each.
    pub per: Duration,
}

impl Rate {
    /// The time of one, in nanoseconds.
    fn interval(&self) -> u64 {
        u64::try_from(self.per.as_nanos() / u128::from(self.count.max(1))).unwrap_or(u64::MAX).max(1)
    }
}

/// What a limit counts by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// The client's address, up to so many bits of IPv4 and IPv6. Who has none, as on a Unix socket, is one with all who have none.
    Address {
        /// Of an IPv4 address, 1 to 32.
        v4: u8,
        /// Of an IPv6 address, 1 to 128.
        v6: u8,
    },
    /// The value of that field; without it, the address.
    Field(String),
    /// Who the client is by its credentials; without them, the address.
    User,
    /// Nothing: all requests are one.
    All,
}

/// Addresses one by one, and of IPv6 by the networks that providers give to customers.
pub const BY_ADDRESS: By = By::Address { v4: 32, v6: 64 };

/// What a limit allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// How often, in the long run.
    pub rate: Rate,
    /// How many may come at once, at least 1.
    pub burst: u64,
    /// How long a request may be made to wait instead of being refused.
    pub delay: Duration,
    /// What it counts by.
    pub by: By,
    /// The status of a refusal, 400 to 599.
    pub status: u16,
    /// Whether nobody is refused and what would have been is counted alone.
    pub dry_run: bool,
    /// Whether it holds for all requests, and not only on routes that name it.
    pub everywhere: bool,
    /// Whether answers to requests that it lets through say what is left.
    pub headers: bool,
}

impl Policy {
    /// So many in a time from each address, all of them at once if need be.
    pub fn new(name: &str, rate: Rate) -> Policy {
        Policy {
            name: name.to_owned(),
            rate,
            burst: rate.count,
            delay: Duration::ZERO,
            by: BY_ADDRESS,
            status: 429,
            dry_run: false,
            everywhere: false,
            headers: false,
        }
    }

    /// The time until a whole burst has come back, in nanoseconds.
    pub fn tolerance(&self) -> u64 {
        self.rate.interval().saturating_mul(self.burst)
    }

    /// When an allowance that is said to be whole again by then is so. What an earlier policy took from it is not more than all of this one.
    fn stands(&self, whole_at: Option<u64>, now: u64) -> u64 {
        let most = self.tolerance().saturating_add(self.delay.as_nanos() as u64);
        whole_at.map_or(now, |whole_at| whole_at.min(now.saturating_add(most)))
    }

    /// By how much one is too early whose allowance is whole again by then.
    fn late(&self, from: u64, now: u64) -> u64 {
        from.saturating_add(self.rate.interval()).saturating_sub(now.saturating_add(self.tolerance()))
    }

    /// Whether clients are told what is left: of what nobody is held to they are not.
    pub fn tells(&self) -> bool {
        self.headers && !self.dry_run
    }

    /// The value of `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers).
    pub fn field(&self) -> String {
        let seconds = Duration::from_nanos(self.tolerance()).as_secs_f64().ceil() as u64;
        format!("\"{}\";q={};w={}", self.name, self.burst, seconds.max(1))
    }
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passes.
    Pass,
    /// It passes when so many nanoseconds have gone by, and is counted already.
    Wait(u64),
    /// It does not pass, and is not counted; in so many nanoseconds the next one would.
    Refuse(u64),
}

/// What is remembered of a key: when its allowance is whole again. One whose time has come says nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    key: u64,
    /// The theoretical arrival time.
    whole_at: u64,
}

/// Rows under one lock.
type Shard = Mutex<Box<[[Entry; WAYS]]>>;

/// A limit: who has used how much of it, and what came of it.
pub struct Limit {
    secret: [AtomicU64; 2],
    shards: Box<[Shard]>,
    /// Requests that passed late.
    pub delayed: AtomicU64,
    /// Requests that were refused.
    pub refused: AtomicU64,
    /// Requests that would have been refused or delayed, in a dry run.
    pub spared: AtomicU64,
    /// Keys that were forgotten before their allowance was whole.
    pub forgotten: AtomicU64,
    /// The same four of the servers before this one.
    before: [AtomicU64; 4],
    /// Who was refused most.
    busiest: Mutex<Busiest>,
}

impl Default for Limit {
    fn default() -> Limit {
        let shard = || Mutex::new(vec![[Entry::default(); WAYS]; ROWS].into_boxed_slice());
        let random = RandomState::new();
        Limit {
            secret: [0, 1].map(|half| AtomicU64::new(random.hash_one(half))),
            shards: (0..ENTRIES / WAYS / ROWS).map(|_| shard()).collect(),
            delayed: AtomicU64::default(),
            refused: AtomicU64::default(),
            spared: AtomicU64::default(),
            forgotten: AtomicU64::default(),
            before: Default::default(),
            busiest: Mutex::default(),
        }
    }
}

impl std::fmt::Debug for Limit {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Limit").field("refused", &self.refused).finish_non_exhaustive()
    }
}

/// A lock whose data is whole, whoever panicked while it was held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Limit {
    /// The key of whatever tells clients apart.
    pub fn key(&self, bytes: &[u8]) -> u64 {
        let [one, other] = self.secret.each_ref().map(|half| half.load(Ordering::Relaxed));
        #[expect(deprecated, reason = "the standard library's other hashers tell nobody their secret")]
        let mut hasher = std::hash::SipHasher::new_with_keys(one, other);
        hasher.write(bytes);
        hasher.finish()
    }

    /// Does something with the row that a key belongs to.
    fn in_row<T>(&self, key: u64, look: impl FnOnce(&mut [Entry; WAYS]) -> T) -> T {
        let row = key as usize;
        look(&mut lock(&self.shards[row / ROWS % self.shards.len()])[row % ROWS])
    }

    /// Requests that passed late, that were refused, and that would have been, and keys that were forgotten; of this server and those
    /// before it.
    pub fn counts(&self) -> [u64; 4] {
        let own = [&self.delayed, &self.refused, &self.spared, &self.forgotten];
        std::array::from_fn(|at| own[at].load(Ordering::Relaxed) + self.before[at].load(Ordering::Relaxed))
    }

    /// What those before it have counted; replaces what was said before.
    pub fn inherit(&self, counts: [u64; 4]) {
        self.before.iter().zip(counts).for_each(|(before, count)| before.store(count, Ordering::Relaxed));
    }

    /// Takes one from a key's allowance, at that time.
    pub fn take(&self, key: u64, policy: &Policy, now: u64) -> Verdict {
        self.in_row(key, |row| self.take_from(row, key, policy, now))
    }

    /// Whether there is nothing to take from a key's allowance, at that time; and then, in how many nanoseconds there is.
    pub fn refuses(&self, key: u64, policy: &Policy, now: u64) -> Option<u64> {
        self.in_row(key, |row| {
            let known = row.iter().find(|entry| entry.key == key && entry.whole_at > now);
            let late = policy.late(policy.stands(known.map(|entry| entry.whole_at), now), now);
            (late > policy.delay.as_nanos() as u64).then_some(late)
        })
    }

    fn take_from(&self, row: &mut [Entry; WAYS], key: u64, policy: &Policy, now: u64) -> Verdict {
        let known = row.iter().position(|entry| entry.key == key && entry.whole_at > now);
        let place = known.unwrap_or_else(|| {
            let most_left = row.iter().enumerate().min_by_key(|(_, entry)| entry.whole_at);
            most_left.map_or(0, |(place, _)| place)
        });
        let entry = &mut row[place];
        let from = policy.stands(known.map(|_| entry.whole_at), now);
        let late = policy.late(from, now);
        if late > policy.delay.as_nanos() as u64 {
            if known.is_some() {
                entry.whole_at = from;
            }
            return Verdict::Refuse(late);
        }
        if known.is_none() && entry.whole_at > now {
            self.forgotten.fetch_add(1, Ordering::Relaxed);
        }
        *entry = Entry { key, whole_at: from.saturating_add(policy.rate.interval()) };
        if late > 0 { Verdict::Wait(late) } else { Verdict::Pass }
    }

    /// Gives one back that was taken from a key's allowance.
    pub fn give_back(&self, key: u64, policy: &Policy) {
        self.in_row(key, |row| {
            // Beside it may lie what says nothing any more.
            let entries = row.iter_mut().filter(|entry| entry.key == key);
            if let Some(entry) = entries.max_by_key(|entry| entry.whole_at) {
                entry.whole_at = entry.whole_at.saturating_sub(policy.rate.interval());
            }
        });
    }

    fn whole_at(&self, key: u64) -> Option<u64> {
        self.in_row(key, |row| row.iter().filter(|entry| entry.key == key).map(|entry| entry.whole_at).max())
    }

    /// How many more of a key could come at once, and in how many nanoseconds its allowance is whole again.
    pub fn left(&self, key: u64, policy: &Policy, now: u64) -> (u64, u64) {
        let used = self.whole_at(key).map_or(0, |whole_at| whole_at.saturating_sub(now));
        (policy.tolerance().saturating_sub(used) / policy.rate.interval(), used)
    }

    /// Counts what became of a request that did not just pass, for whoever asks who is busiest. `shown` names the key.
    pub fn note(&self, key: u64, policy: &Policy, verdict: Verdict, shown: impl FnOnce() -> String) {
        let counter = match verdict {
            Verdict::Pass => return,
            _ if policy.dry_run => &self.spared,
            Verdict::Wait(_) => &self.delayed,
            Verdict::Refuse(_) => &self.refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        // Another loop is at it: one of a flood may be missed.
        if let Ok(mut busiest) = self.busiest.try_lock() {
            busiest.count(key, shown);
        }
    }

    /// Who was refused or delayed most, the busiest first.
    pub fn busiest(&self) -> Vec<Busy> {
        lock(&self.busiest).shown()
    }
}

/// The network of an address, as so many bytes.
pub fn network(address: Option<IpAddr>, v4: u8, v6: u8) -> [u8; 17] {
    let (family, bits, kept) = match address.map(|address| address.to_canonical()) {
        Some(IpAddr::V4(address)) => (4, u128::from(address.to_bits()) << 96, v4),
        Some(IpAddr::V6(address)) => (6, address.to_bits(), v6),
        None => (0, 0, 0),
    };
    let mask = u128::MAX.checked_shl(128 - u32::from(kept.min(128))).unwrap_or(0);
    let mut bytes = [family; 17];
    bytes[1..].copy_from_slice(&(bits & mask).to_be_bytes());
    bytes
}

/// How long a client is told to stay away: what it has to, and up to a tenth of that more, so that not all come back at once. In whole
/// seconds; `random` is any number.
pub fn retry_after(nanos: u64, random: u64) -> u32 {
    let jitter = u128::from(nanos) * u128::from(random % 1024) / 10_240;
    let seconds = (u128::from(nanos) + jitter).div_ceil(1_000_000_000);
    u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
}

/// What has that name and is in use, or a new one.
fn kept<T: Default>(all: &Mutex<BTreeMap<String, Weak<T>>>, name: &str) -> Arc<T> {
    let mut all = lock(all);
    all.retain(|_, one| one.strong_count() > 0);
    if let Some(one) = all.get(name).and_then(Weak::upgrade) {
        return one;
    }
    let one = Arc::new(T::default());
    all.insert(name.to_owned(), Arc::downgrade(&one));
    one
}

/// The limits of a server by their names. One that no configuration uses any more is forgotten. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limits: Mutex<BTreeMap<String, Weak<Limit>>>,
    flights: Mutex<BTreeMap<String, Weak<Flight>>>,
    /// Since when times are counted.
    epoch: Instant,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry(Arc::new(Inner { limits: Mutex::default(), flights: Mutex::default(), epoch: Instant::now() }))
    }
}

impl Registry {
    /// The limit of that name, which is as it was if anybody still has it.
    pub fn get(&self, name: &str) -> Arc<Limit> {
        kept(&self.0.limits, name)
    }

    /// How many requests of the route of that name are in flight, as known to whoever still has it.
    pub fn flight(&self, route: &str) -> Arc<Flight> {
        kept(&self.0.flights, route)
    }

    /// All limits that are in use, by name.
    pub fn all(&self) -> Vec<(String, Arc<Limit>)> {
        let limits = lock(&self.0.limits);
        limits.iter().filter_map(|(name, limit)| Some((name.clone(), limit.upgrade()?))).collect()
    }

    /// A time as limits count it.
    pub fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0.epoch).as_nanos()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
