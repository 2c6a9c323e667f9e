//! A hub whose messages go over a bus: somebody else numbers what is published, and puts it in. The bus is behind a trait: here it is only
//! known that there may be one.
//!
//! As long as a hub is carried, nobody but its bus numbers in it, so that what the bus has found to be next is next until it has put it in.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::known::{self, Key};
use super::message::{Draft, Message};
use super::{Hub, Kind, Payload, Position, Published, Refused, Topic, lock};

/// By how many messages of a topic another server may be ahead, so that who comes from there is believed to have had what has not come here yet.
const MOST_AHEAD: u64 = 1000;

/// What is told to whoever has published.
pub type Answer = Box<dyn FnOnce(Result<Published, Refused>) + Send>;

/// Takes messages to who numbers them.
pub trait Carrier: Send + Sync {
    /// Takes one; its answer comes from any thread.
    ///
    /// # Errors
    /// [`Refused::Full`], and nothing has happened.
    fn carry(&self, notice: Notice) -> Result<(), Refused>;
}

/// A message on its way over the bus.
pub struct Notice {
    /// Its topic.
    pub topic: Box<str>,
    /// How its bytes are meant.
    pub kind: Kind,
    /// What is published; text where the kind says so.
    pub payload: Box<[u8]>,
    /// Its id.
    pub id: Option<Box<str>>,
    /// Subscribers of this process that are not to get it.
    pub except: Box<[u128]>,
    /// What is told to whoever has published.
    pub answer: Answer,
}

impl Notice {
    /// Bytes that it takes.
    pub fn cost(&self) -> usize {
        let id = self.id.as_ref().map_or(0, |id| id.len());
        size_of::<Notice>() + self.topic.len() + self.payload.len() + id + size_of_val(&*self.except)
    }

    /// What is published.
    pub fn said(&self) -> Payload<'_> {
        // The kind is that of what it was made of.
        payload(self.kind, &self.payload).unwrap_or(Payload::Binary(&self.payload))
    }
}

impl fmt::Debug for Notice {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Notice({:?}, {} bytes)", self.topic, self.payload.len())
    }
}

/// Bytes that are meant so; `None` where they cannot be.
pub fn payload(kind: Kind, bytes: &[u8]) -> Option<Payload<'_>> {
    let text = || std::str::from_utf8(bytes).ok();
    match kind {
        Kind::Binary => Some(Payload::Binary(bytes)),
        Kind::Text => text().map(Payload::Text),
        Kind::Json => {
            text().filter(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()).map(Payload::Json)
        }
    }
}

/// Where a message stands that somebody has numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Its position.
    pub position: Position,
    /// Nothing of its topic is between it and where those stand who have had all so far, though the numbers may say otherwise.
    pub first: bool,
}

impl Hub {
    /// From now on, until [`Hub::carry_no_more`], messages go over that bus.
    pub fn carry_by(&self, carrier: Arc<dyn Carrier>) {
        self.shared.set_ahead(MOST_AHEAD);
        *self.carrier.write().unwrap_or_else(PoisonError::into_inner) = Some(carrier);
        self.set_carried(true);
    }

    /// There is no bus any more: messages are numbered here.
    pub fn carry_no_more(&self) {
        self.shared.set_ahead(0);
        *self.carrier.write().unwrap_or_else(PoisonError::into_inner) = None;
        self.set_carried(false);
    }

    /// Whether it is shared with other processes, though there may be none.
    pub fn has_bus(&self) -> bool {
        self.carrier.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Whether messages go over the bus, or are numbered by whoever publishes them, as long as nobody else is on it.
    pub fn set_carried(&self, carried: bool) {
        if carried {
            self.was_carried.store(true, Ordering::Release);
        }
        self.carried.store(carried, Ordering::Release);
    }

    /// Publishes over the bus.
    ///
    /// # Errors
    /// Why nothing comes of it; else the answer tells.
    pub fn carry(
        &self,
        topic: &str,
        payload: Payload<'_>,
        id: Option<&str>,
        except: &[u128],
        answer: Answer,
    ) -> Result<(), Refused> {
        let settings = self.settings();
        if payload.bytes().len() > settings.message {
            return Err(Refused::TooBig);
        }
        if !settings.has_topic(topic) {
            return Err(Refused::NoSuchTopic);
        }
        let carrier = self.carrier.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or(Refused::Away)?;
        let kind = match payload {
            Payload::Text(_) => Kind::Text,
            Payload::Binary(_) => Kind::Binary,
            Payload::Json(_) => Kind::Json,
        };
        let (payload, id) = (payload.bytes().into(), id.map(Box::from));
        carrier.carry(Notice { topic: topic.into(), kind, payload, id, except: except.into(), answer })
    }

    /// Publishes what has come over the bus, where nobody else numbers.
    ///
    /// # Errors
    /// As [`Hub::publish`].
    pub fn publish_carried(&self, now: Duration, notice: &Notice) -> Result<Published, Refused> {
        let never = AtomicBool::new(false);
        self.publish_unless((now, &notice.topic), notice.said(), notice.id.as_deref(), &notice.except, &never)
    }

    /// Which number a message of that topic gets next, if it can be put in; or where the one stands that has its id.
    ///
    /// # Errors
    /// As [`Hub::publish`].
    pub fn next(
        &self,
        now: Duration,
        topic: &str,
        payload: Payload<'_>,
        id: Option<&str>,
    ) -> Result<Result<Next, Position>, Refused> {
        let (settings, now) = (self.settings(), super::clock(now));
        if payload.bytes().len() > settings.message {
            return Err(Refused::TooBig);
        }
        let (key, floor) = (id.map(|id| known::key(topic, id)), self.floor_of_numbers());
        self.with(topic, (&settings, false), |topic, ring| {
            if self.closed.load(Ordering::Acquire) {
                return Err(Refused::Moved);
            }
            if let Some(known) = key.and_then(|key| lock(&self.known).get(&key, now, settings.ids_for)) {
                return Ok(Err(known));
            }
            topic.expire(ring, now, &settings.history);
            ring.numbers_behind(floor);
            let position = Position { epoch: ring.epoch, offset: ring.last + 1 };
            let message = Message::new(topic.about.clone(), position, now, &Draft::new(payload, &[]));
            topic.has_room(ring, message.cost(), &settings.history)?;
            Ok(Ok(Next { position, first: ring.fresh }))
        })?
    }

    /// All topics in which something was numbered, with their last numbers.
    pub fn lasts(&self) -> Vec<(Arc<Topic>, u64)> {
        let topics: Vec<_> = self.table().topics.values().cloned().collect();
        let last = |topic: Arc<Topic>| {
            let ring = topic.ring();
            let last = (!ring.fresh).then_some(ring.last);
            drop(ring);
            Some((topic, last?))
        };
        topics.into_iter().filter_map(last).collect()
    }

    /// The highest number of all topics that were forgotten in this epoch.
    pub fn floor(&self) -> u64 {
        self.table().floor
    }

    /// Behind which number a topic begins that was given no place when it was made.
    pub(super) fn floor_of_numbers(&self) -> u64 {
        if self.was_carried.load(Ordering::Acquire) { self.floor() } else { 0 }
    }

    /// Topics that are made from now on are numbered behind that.
    pub fn raise_floor(&self, floor: u64) {
        let mut table = self.table_to_change();
        table.floor = table.floor.max(floor);
    }

    /// Topics of which nothing is known in this epoch begin behind that number.
    pub fn begin_behind(&self, base: u64) {
        self.shared.set_base(base);
        self.raise_floor(base);
    }

    /// The next message of a topic cannot be put in, for that reason: it is missing for those who listen. What comes while a successor takes over is
    /// that one's.
    pub fn pass_over(&self, topic: &str, why: Refused) {
        if let Some(topic) = self.find(topic).filter(|_| why != Refused::Moved) {
            self.reach(topic.name(), topic.last() + 1);
        }
    }

    /// A topic has come as far as that, in this epoch, whether its messages are here or not.
    pub fn reach(&self, topic: &str, last: u64) {
        let settings = self.settings();
        // Somebody may listen to one that is there and that may not be there any more.
        let known = || self.find(topic).map_or_else(|| self.topic(topic, &settings, false, last), Ok);
        let reached = self.with_topic(known, |_, ring| {
            if ring.fresh && ring.last > last {
                ring.goes_on_at(last + 1, false);
            }
            (ring.last, ring.fresh) = (ring.last.max(last), false);
        });
        if reached.is_err() {
            self.raise_floor(last);
        }
    }

    /// Ids that are known, with where their messages stand and how long ago that was, in microseconds.
    pub fn ids(&self, now: Duration) -> Vec<(Key, Position, u64)> {
        let now = super::clock(now);
        let known = lock(&self.known);
        known.all().map(|(key, position, at)| (*key, position, super::bus::age(now, at))).collect()
    }

    /// Learns of an id that another knows.
    pub fn learn(&self, now: Duration, key: Key, position: Position, age: u64) {
        let at = super::clock(now).saturating_sub(Duration::from_micros(age));
        lock(&self.known).insert(key, position, at, self.settings().most_ids);
    }

    /// The key by which an id is known.
    pub fn key_of(topic: &str, id: &str) -> Key {
        known::key(topic, id)
    }

    /// Takes so many bytes of the hub's memory for what waits for its bus.
    ///
    /// # Errors
    /// [`Refused::Full`].
    pub fn charge(&self, bytes: usize) -> Result<(), Refused> {
        self.shared.take(bytes)
    }

    /// Gives them back.
    pub fn credit(&self, bytes: usize) {
        self.shared.give_back(bytes);
    }

    /// How many listen to a topic.
    pub fn subscribers(&self, topic: &str) -> u32 {
        self.find(topic).map_or(0, |topic| topic.ring().subscribers)
    }
}

impl Topic {
    /// Its last number.
    pub fn last(&self) -> u64 {
        self.ring().last
    }
}

impl Message {
    /// How long ago it was published, in microseconds.
    pub fn age(&self, now: Duration) -> u64 {
        super::bus::age(super::clock(now), self.at())
    }
}
