//! The hub: topics that anybody may publish to, and those who listen. One for each that is configured, shared by all loops.
//!
//! sans-IO: no descriptor, no thread, and no clock: the time is an argument, counted since whenever, the same for all callers. A topic is one ring of
//! messages behind its own small mutex, and that ring is the only queue: a subscriber is a [`Position`] that its loop keeps, of the message that it has
//! read last, and nothing is copied for it. Who publishes is given the loops that have to be told ([`Published::tell`]), and they read for themselves.
//!
//! Rules:
//! - Every subscriber gets every message of its topic once and in order, or a [`Gap`] that says which it has missed. Where it begins is found
//!   under the lock under which messages are numbered, so that nothing falls between what was and what is.
//! - Memory is bounded, whatever is published and listened to: messages by count, bytes and age for each topic, and by bytes in all. What does
//!   not fit is refused, and never takes the place of another topic's. What is made of messages for the wire has as much again, so that nobody who
//!   reads makes a message go, or another be refused.
//! - Numbers are never given twice in an [`Epoch`]: a topic that was forgotten goes on behind all that were.
//! - Locks are taken in this order: the table of topics, a topic, the known ids. Under them memory is taken and given back, and nothing waits.

mod bus;
mod carry;
pub mod dialect;
mod ids;
mod known;
mod message;
mod names;
mod registry;
mod topic;
pub mod wire;

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

pub use carry::{Answer, Carrier, Next, Notice, payload};
pub use ids::{Epoch, From, Gap, Malformed, Position, Positions, Tag};
pub use known::Key;
pub use message::{Kind, Message, Payload};
pub use names::{Pattern, is_name};
pub use registry::Registry;
pub use topic::{Read, Topic};

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use known::Known;
use message::Draft;
use topic::{Ring, Shared};

/// The fields in which an app is told of what happens on sockets: they come from nobody else.
pub const EVENT_FIELDS: [&str; 6] =
    ["Sec-WebSocket-Frame", "X-Socket-Id", "X-Socket-Groups", "X-Socket-Close", "X-Socket-Target", "Connection-Id"];

/// Loops at most.
pub const MOST_LOOPS: usize = 1024;
/// For how long forms of a message are kept: until all who listen have it. Who comes back later is one of few.
const FORMS_FOR: Duration = Duration::from_secs(10);
/// The part of the topics that only publishers may make.
const PUBLISHERS_SHARE: usize = 4;
/// Topics that one [`Hub::sweep`] looks at.
const SWEPT: usize = 256;
/// Topics that are looked at for one to forget when there is no room for another.
const PRESSED: usize = 256;

/// What a hub keeps of each topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct History {
    /// Messages: who falls farther behind than that has a gap. 0: none for those who come back, and [`LIVE`] for those who listen.
    pub count: usize,
    /// Bytes of messages, each with about 200 for itself; the newest message is kept in any case.
    pub bytes: usize,
    /// How long a message is kept, and a topic that has none and that nobody listens to.
    pub age: Duration,
}

/// By how many messages who listens may fall behind where none are kept for those who come back.
pub const LIVE: usize = 100;

impl History {
    /// Messages of a topic at most.
    pub(crate) fn most(&self) -> usize {
        if self.count == 0 { LIVE } else { self.count }
    }
}

/// What a hub is made of. See [`Settings::default`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Which topics there are.
    pub topics: Vec<Pattern>,
    /// What is kept of each.
    pub history: History,
    /// Bytes of a message at most.
    pub message: usize,
    /// Topics at once, at most.
    pub most_topics: usize,
    /// Bytes of all topics and messages at most. The forms that are made of messages for those who get them may take as much again: what does
    /// not fit is made anew for each.
    pub memory: usize,
    /// For how long the id of a message is known.
    pub ids_for: Duration,
    /// Ids that are known at once, at most; each takes about 100 bytes.
    pub most_ids: usize,
}

impl Settings {
    /// The defaults: all topics.
    pub fn new(name: &str) -> Settings {
        Settings {
            name: name.to_owned(),
            topics: Pattern::new("*").into_iter().collect(),
            history: History { count: 100, bytes: 1 << 20, age: Duration::from_secs(300) },
            message: 64 << 10,
            most_topics: 10_000,
            memory: 64 << 20,
            ids_for: Duration::from_secs(300),
            most_ids: 1 << 16,
        }
    }

    /// Whether there may be a topic of that name.
    pub fn has_topic(&self, name: &str) -> bool {
        is_name(name) && self.topics.iter().any(|pattern| pattern.takes(name))
    }
}

/// Why the hub does not do what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The message has more bytes than one may have.
    TooBig,
    /// No topic may have that name.
    NoSuchTopic,
    /// There are as many topics as there may be, and each is used.
    TooManyTopics,
    /// Memory is used up, and the topic has nothing to give up for it.
    Full,
    /// What is published has to go to a successor ([`Hub::snapshot`]).
    Moved,
    /// Nothing can stand there: it is of another epoch, or no offset.
    NoSuchPosition,
    /// It is not numbered here: [`Hub::carry`] takes it to who does.
    Carried,
    /// Nobody has numbered it in time.
    Away,
}

impl fmt::Display for Refused {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Refused::TooBig => "the message is too big",
            Refused::NoSuchTopic => "there is no such topic",
            Refused::TooManyTopics => "there are too many topics",
            Refused::Full => "the hub's memory is used up",
            Refused::Moved => "the hub is being handed over",
            Refused::NoSuchPosition => "there is no such position",
            Refused::Carried => "the message goes over the bus",
            Refused::Away => "the bus of this hub does not answer",
        })
    }
}

impl std::error::Error for Refused {}

/// A set of loops, by their indexes.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct LoopSet([u64; MOST_LOOPS / 64]);

impl LoopSet {
    /// Puts one in.
    pub fn insert(&mut self, loop_index: u16) {
        self.0[usize::from(loop_index) / 64] |= 1 << (loop_index % 64);
    }

    /// Whether none is in it.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Puts all of another in.
    pub fn extend(&mut self, other: LoopSet) {
        self.0.iter_mut().zip(other.0).for_each(|(word, more)| *word |= more);
    }

    /// All that are in it, in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        let bits = |word: u64| std::iter::successors(Some(word), |left| Some(left & left.wrapping_sub(1)));
        let words = (0..).step_by(64).zip(self.0);
        words.flat_map(move |(first, word)| {
            bits(word).take_while(|left| *left != 0).map(move |left| first + left.trailing_zeros() as u16)
        })
    }
}

impl fmt::Debug for LoopSet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.iter()).finish()
    }
}

/// What came of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Published {
    /// Where it stands; that of the first, if it is a duplicate.
    pub position: Position,
    /// How many listen to its topic.
    pub subscribers: u32,
    /// A message with that id was published already: nothing happened.
    pub duplicate: bool,
    /// The loops that have to be told that there is something to read.
    pub tell: LoopSet,
}

/// Where a subscriber begins.
#[derive(Clone, Debug)]
pub struct Subscribed {
    /// What it reads.
    pub topic: Arc<Topic>,
    /// From where.
    pub at: Position,
    /// What it has missed before.
    pub gap: Option<Gap>,
    /// Where the topic stands, whatever the subscriber has said.
    pub end: Position,
    /// Whether there is something to read already.
    pub more: bool,
}

/// A topic, as those are told who ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count {
    /// Its name.
    pub topic: Arc<str>,
    /// How many listen to it.
    pub subscribers: u32,
    /// Messages that are kept.
    pub messages: usize,
    /// Bytes of these, with the forms that were made of them.
    pub bytes: usize,
    /// Where it stands.
    pub last: Position,
}

/// The topics of a hub, or the first of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// In the order of their names.
    pub topics: Vec<Count>,
    /// How many there are in all.
    pub all: usize,
    /// Bytes that all of them take.
    pub memory: usize,
}

/// The table of topics.
#[derive(Default)]
struct Table {
    topics: BTreeMap<Arc<str>, Arc<Topic>>,
    /// The highest offset of any topic that was forgotten in this epoch: new ones begin behind it.
    floor: u64,
    /// Up to where it was searched for one to forget.
    pressed: Option<Arc<str>>,
}

impl Table {
    /// The topics behind that name.
    fn behind(&self, name: Option<&Arc<str>>, most: usize) -> Vec<Arc<Topic>> {
        let from = name.map_or(Bound::Unbounded, Bound::Excluded);
        self.topics.range::<Arc<str>, _>((from, Bound::Unbounded)).take(most).map(|(_, topic)| topic.clone()).collect()
    }

    /// Forgets a topic that nobody uses: how many bytes that gives back.
    fn forget(&mut self, topic: &Topic, loops: usize) -> usize {
        let mut ring = topic.ring();
        if ring.forgotten || !ring.is_idle() {
            return 0;
        }
        ring.forgotten = true;
        self.floor = self.floor.max(ring.last);
        self.topics.remove(topic.name());
        ring.slots() + Topic::base_bytes(topic.name(), loops)
    }
}

/// Topics and their messages.
pub struct Hub {
    settings: RwLock<Arc<Settings>>,
    table: RwLock<Table>,
    known: Mutex<Known>,
    shared: Arc<Shared>,
    /// What is published goes to a successor.
    closed: AtomicBool,
    /// What apps have published since, until it is told.
    handed_on: Mutex<Vec<String>>,
    /// What is published goes over a bus.
    carried: AtomicBool,
    /// It did at some time, so that there are topics which were given no place.
    was_carried: AtomicBool,
    carrier: RwLock<Option<Arc<dyn Carrier>>>,
    /// Up to where the last sweep went.
    swept: Mutex<Option<Arc<str>>>,
    loops: usize,
}

impl fmt::Debug for Hub {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Hub").field("name", &self.settings().name).finish_non_exhaustive()
    }
}

/// A lock whose data is whole, whoever panicked while it was held.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A time as the hub counts it: so that what a predecessor has published was before it, though the caller's clock began after that.
fn clock(now: Duration) -> Duration {
    now.saturating_add(Duration::from_secs(366 * 24 * 3600))
}

impl Hub {
    /// A hub for so many loops, at most [`MOST_LOOPS`], that numbers its messages in that epoch.
    ///
    /// # Panics
    /// When there are more loops.
    pub fn new(settings: Settings, epoch: Epoch, loops: usize) -> Hub {
        assert!(loops <= MOST_LOOPS, "more loops than a hub can tell");
        let hub = Hub {
            settings: RwLock::new(Arc::new(settings.clone())),
            table: RwLock::default(),
            known: Mutex::default(),
            shared: Arc::new(Shared::new(epoch)),
            closed: AtomicBool::new(false),
            handed_on: Mutex::default(),
            carried: AtomicBool::new(false),
            was_carried: AtomicBool::new(false),
            carrier: RwLock::default(),
            swept: Mutex::default(),
            loops,
        };
        hub.configure(settings);
        hub
    }

    /// Other settings: topics, messages and subscribers stay, what is too much now goes with the next sweeps.
    pub fn configure(&self, settings: Settings) {
        self.shared.most_memory.store(settings.memory, Ordering::Relaxed);
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }

    /// Its settings.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// In which epoch messages are numbered.
    pub fn epoch(&self) -> Epoch {
        self.shared.epoch()
    }

    /// Bytes that topics, messages and the forms that were made of them take.
    pub fn memory(&self) -> usize {
        self.shared.memory.load(Ordering::Acquire) + self.shared.forms.load(Ordering::Acquire)
    }

    /// Bytes that topics have given up, and that somebody has still who is slow to take them.
    pub fn left(&self) -> usize {
        self.shared.left()
    }

    /// Keeps in sight what is said to several clients until all have taken it.
    pub fn lend(&self, frame: Arc<[u8]>) {
        self.shared.leave(frame);
    }

    /// Whether clients have more than they may of what topics have given up or was lent.
    pub fn is_overrun(&self) -> bool {
        self.shared.is_overrun()
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_to_change(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The topic of that name, which is made if there is room for it: numbered behind all that were forgotten, but not from above `floor`. Who only
    /// listens leaves a quarter of the places to those who publish.
    fn topic(&self, name: &str, settings: &Settings, listens: bool, floor: u64) -> Result<Arc<Topic>, Refused> {
        if !settings.has_topic(name) {
            return Err(Refused::NoSuchTopic);
        }
        if let Some(topic) = self.table().topics.get(name) {
            return Ok(topic.clone());
        }
        let mut table = self.table_to_change();
        if let Some(topic) = table.topics.get(name) {
            return Ok(topic.clone());
        }
        let most = settings.most_topics - if listens { settings.most_topics / PUBLISHERS_SHARE } else { 0 };
        self.make_place(&mut table, most);
        if table.topics.len() >= most {
            return Err(Refused::TooManyTopics);
        }
        self.shared.take(Topic::base_bytes(name, self.loops))?;
        let name: Arc<str> = name.into();
        let topic = Arc::new(Topic::new(name.clone(), self.shared.clone(), self.loops, table.floor.min(floor)));
        table.topics.insert(name, topic.clone());
        Ok(topic)
    }

    /// Does something under the lock of the topic of that name, which is made if there is room for it.
    fn with<T>(
        &self,
        name: &str,
        (settings, listens): (&Settings, bool),
        act: impl FnMut(&Arc<Topic>, &mut Ring) -> T,
    ) -> Result<T, Refused> {
        self.with_topic(|| self.topic(name, settings, listens, u64::MAX), act)
    }

    /// [`Hub::with`] for what another has numbered, with the floor of [`Hub::topic`].
    fn with_floor<T>(
        &self,
        name: &str,
        settings: &Settings,
        floor: u64,
        act: impl FnMut(&Arc<Topic>, &mut Ring) -> T,
    ) -> Result<T, Refused> {
        self.with_topic(|| self.topic(name, settings, false, floor), act)
    }

    fn with_topic<T>(
        &self,
        topic: impl Fn() -> Result<Arc<Topic>, Refused>,
        mut act: impl FnMut(&Arc<Topic>, &mut Ring) -> T,
    ) -> Result<T, Refused> {
        loop {
            let topic = topic()?;
            let mut ring = topic.ring();
            // Between the two it may have been forgotten.
            if !ring.forgotten {
                return Ok(act(&topic, &mut ring));
            }
        }
    }

    /// Forgets as many of the next topics that nobody uses as it takes for there to be fewer than so many, though they might have been kept for a while.
    fn make_place(&self, table: &mut Table, most: usize) {
        let mut goes_on = true;
        while goes_on && table.topics.len() >= most {
            let from = table.pressed.take();
            let mut some = table.behind(from.as_ref(), PRESSED);
            if from.is_some() {
                some.extend(table.behind(None, PRESSED - some.len()));
            }
            goes_on = false;
            for topic in &some {
                let bytes = table.forget(topic, self.loops);
                table.pressed = Some(topic.name_shared().clone());
                self.shared.give_back(bytes);
                goes_on |= bytes > 0;
                if table.topics.len() < most {
                    break;
                }
            }
        }
    }

    /// Publishes a message, unless one with the same id was published on that topic a short time ago.
    ///
    /// # Errors
    /// Why it is not published: nothing has changed then.
    pub fn publish(
        &self,
        now: Duration,
        topic: &str,
        payload: Payload<'_>,
        id: Option<&str>,
    ) -> Result<Published, Refused> {
        self.publish_except(now, topic, payload, id, &[])
    }

    /// [`Hub::publish`] to all but some subscribers, which their loops know by these numbers.
    ///
    /// # Errors
    /// As there.
    pub fn publish_except(
        &self,
        now: Duration,
        topic: &str,
        payload: Payload<'_>,
        id: Option<&str>,
        except: &[u128],
    ) -> Result<Published, Refused> {
        self.publish_unless((now, topic), payload, id, except, &self.carried)
    }

    /// [`Hub::publish_except`], unless that is set.
    fn publish_unless(
        &self,
        (now, topic): (Duration, &str),
        payload: Payload<'_>,
        id: Option<&str>,
        except: &[u128],
        carried: &AtomicBool,
    ) -> Result<Published, Refused> {
        let (settings, now) = (self.settings(), clock(now));
        if payload.bytes().len() > settings.message {
            return Err(Refused::TooBig);
        }
        let (key, draft, floor) =
            (id.map(|id| known::key(topic, id)), Draft::new(payload, except), self.floor_of_numbers());
        self.with(topic, (&settings, false), |topic, ring| {
            if self.closed.load(Ordering::Acquire) {
                return Err(Refused::Moved);
            }
            if carried.load(Ordering::Acquire) {
                return Err(Refused::Carried);
            }
            let known = key.and_then(|key| lock(&self.known).get(&key, now, settings.ids_for));
            let subscribers = ring.subscribers;
            if let Some(position) = known {
                return Ok(Published { position, subscribers, duplicate: true, tell: LoopSet::default() });
            }
            topic.expire(ring, now, &settings.history);
            ring.numbers_behind(floor);
            let position = Position { epoch: ring.epoch, offset: ring.last + 1 };
            let message = Message::new(topic.about.clone(), position, now, &draft);
            let tell = topic.add(ring, message, &settings.history)?;
            if let Some(key) = key {
                lock(&self.known).insert(key, position, now, settings.most_ids);
            }
            Ok(Published { position, subscribers, duplicate: false, tell })
        })?
    }

    /// One more subscriber of that loop, and where it begins to read: both at once, so that nothing is published between them.
    ///
    /// # Errors
    /// Why there is nothing to subscribe to.
    ///
    /// # Panics
    /// When the hub was not made for so many loops.
    pub fn subscribe(&self, now: Duration, topic: &str, loop_index: u16, from: From) -> Result<Subscribed, Refused> {
        let (settings, now) = (self.settings(), clock(now));
        // Where somebody else numbers, it may go on anywhere: at a number that no message has.
        let floor = if self.carried.load(Ordering::Acquire) { 0 } else { u64::MAX };
        self.with_topic(
            || self.topic(topic, &settings, true, floor),
            |topic, ring| {
                topic.expire(ring, now, &settings.history);
                let (at, gap) = ring.subscribe(loop_index, from, settings.history.count > 0, self.shared.ahead());
                let end = ring.end();
                let more = at.epoch != end.epoch || at.offset < end.offset;
                Subscribed { topic: topic.clone(), at, gap, end, more }
            },
        )
    }

    /// One subscriber of that loop less.
    ///
    /// # Panics
    /// When the hub was not made for so many loops.
    pub fn unsubscribe(&self, topic: &Topic, loop_index: u16) {
        topic.unsubscribe(loop_index);
    }

    /// Who is there: at most so many topics, those behind that name.
    pub fn counts(&self, behind: Option<&str>, most: usize) -> Counts {
        let (topics, all) = {
            let table = self.table();
            (table.behind(behind.map(Arc::from).as_ref(), most), table.topics.len())
        };
        let count = |topic: Arc<Topic>| {
            let ring = topic.ring();
            let (subscribers, messages, last) = (ring.subscribers, ring.messages.len(), ring.end());
            Count { topic: topic.name_shared().clone(), subscribers, messages, bytes: topic.bytes(), last }
        };
        Counts { topics: topics.into_iter().map(count).collect(), all, memory: self.memory() }
    }

    /// Gives up what is too old, drops what was made of messages for the wire a while ago, and forgets topics that nobody has used for the age of messages. Looks at a few hundred topics each time, from
    /// where the last time ended: to be called about once a second, by anybody.
    pub fn sweep(&self, now: Duration) {
        let (settings, now) = (self.settings(), clock(now));
        // One at a time is enough.
        let Ok(mut swept) = self.swept.try_lock() else { return };
        let topics = self.table().behind(swept.as_ref(), SWEPT);
        *swept = topics.last().filter(|_| topics.len() == SWEPT).map(|topic| topic.name_shared().clone());
        let is_over = |topic: &Arc<Topic>| {
            let mut ring = topic.ring();
            topic.expire(&mut ring, now, &settings.history);
            topic.drop_forms(&ring, now.saturating_sub(FORMS_FOR));
            ring.is_idle_for(now, settings.history.age)
        };
        let over: Vec<_> = topics.into_iter().filter(is_over).collect();
        if over.is_empty() {
            return;
        }
        let mut table = self.table_to_change();
        for topic in over {
            let bytes = table.forget(&topic, self.loops);
            self.shared.give_back(bytes);
        }
    }
}
