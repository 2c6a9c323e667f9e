//! A topic: a ring of messages that is the only queue, and which loops read it.
//!
//! Rules:
//! - All under one small mutex. A reader is a position that its loop keeps: nothing here knows of it, and whoever falls behind what the ring
//!   has, or comes from elsewhere, is told so by a [`Gap`]: what lies between two positions is read or told, never passed over.
//! - A loop that was told of messages is not told again until it has [heard](Topic::heard): it says so before it reads, so that what comes
//!   between the two is told anew.
//! - Offsets ascend. Where some are missing, as another may have numbered them, a reading ends before the hole, and the next begins with its gap.
//! - Where an epoch follows another without a loss, what is left of that stays before its own messages, so that who has not read it yet still may.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::ids::{Epoch, From, Gap, Position};
use super::message::{Message, heap_bytes, shared_bytes};
use super::{History, LoopSet, Refused, lock};
use crate::planted::{self, Bug};

/// Bytes that a message costs whoever sends it beyond its frame, when readings are measured: what its forms say besides.
pub(super) const FORM_BYTES: usize = 64;

/// What all topics of a hub share.
pub(super) struct Shared {
    /// Bytes of all topics and their messages.
    pub memory: AtomicUsize,
    /// Bytes of forms that were made of them.
    pub forms: AtomicUsize,
    /// How many there may be of each.
    pub most_memory: AtomicUsize,
    /// In which epoch messages are numbered. A ring of another one is emptied when it is next looked at.
    epoch: AtomicU64,
    /// Bytes that topics have given up and that clients who are slow to take them may have still, as was last seen.
    left_bytes: AtomicUsize,
    left: Mutex<Left>,
    /// The epoch behind whose last message this one begins, so that nobody who has had all of it misses anything; 0: there is none.
    behind: AtomicU64,
    /// Behind which number rings begin in it.
    base: AtomicU64,
    /// How far beyond its end of a topic somebody may be who comes from another server that numbers the same.
    ahead: AtomicU64,
}

/// What topics have given up, until nobody else has it.
#[derive(Default)]
struct Left {
    frames: Vec<Arc<[u8]>>,
    /// How many bytes there were after it was last looked through.
    seen: usize,
}

/// What clients may have that topics have given up, as a part of the memory for topics.
const LEFT_SHARE: usize = 2;
/// Bytes that are given up before it is looked again whether anybody has them.
const LOOK_AFTER: usize = 1 << 20;

impl Shared {
    pub(super) fn new(epoch: Epoch) -> Shared {
        let [memory, forms, most_memory, left_bytes] = [const { AtomicUsize::new(0) }; 4];
        Shared {
            memory,
            forms,
            most_memory,
            epoch: AtomicU64::new(epoch.0),
            left_bytes,
            left: Mutex::default(),
            behind: AtomicU64::new(0),
            base: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
        }
    }

    /// A topic has given that up. It is kept in sight until nobody else has it.
    pub(super) fn leave(&self, frame: Arc<[u8]>) {
        if Arc::strong_count(&frame) == 1 {
            return;
        }
        let mut left = lock(&self.left);
        let bytes = self.left_bytes.load(Ordering::Relaxed) + shared_bytes(frame.len());
        left.frames.push(frame);
        self.left_bytes.store(bytes, Ordering::Relaxed);
        if bytes > 2 * left.seen + LOOK_AFTER {
            self.look_through(&mut left);
        }
    }

    fn look_through(&self, left: &mut Left) {
        left.frames.retain(|frame| Arc::strong_count(frame) > 1);
        left.seen = left.frames.iter().map(|frame| shared_bytes(frame.len())).sum();
        self.left_bytes.store(left.seen, Ordering::Relaxed);
    }

    /// Whether clients have more than they may of what topics have given up.
    pub(super) fn is_overrun(&self) -> bool {
        let most = self.most_memory.load(Ordering::Relaxed) / LEFT_SHARE;
        if self.left_bytes.load(Ordering::Relaxed) > most {
            self.look_through(&mut lock(&self.left));
        }
        self.left_bytes.load(Ordering::Relaxed) > most
    }

    /// Bytes that topics have given up and somebody has still.
    pub(super) fn left(&self) -> usize {
        self.look_through(&mut lock(&self.left));
        self.left_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    pub(super) fn set_base(&self, base: u64) {
        self.base.store(base, Ordering::Release);
    }

    pub(super) fn set_ahead(&self, most: u64) {
        self.ahead.store(most, Ordering::Release);
    }

    pub(super) fn ahead(&self) -> u64 {
        self.ahead.load(Ordering::Acquire)
    }

    pub(super) fn set_epoch(&self, epoch: Epoch, behind: Epoch) {
        self.set_base(0);
        // Whoever sees the new epoch sees what it is behind.
        self.behind.store(behind.0, Ordering::Release);
        self.epoch.store(epoch.0, Ordering::Release);
    }

    /// Takes so many bytes for a topic or message, if they are there.
    pub(super) fn take(&self, bytes: usize) -> Result<(), Refused> {
        take(&self.memory, bytes, self.most_memory.load(Ordering::Relaxed)).then_some(()).ok_or(Refused::Full)
    }

    /// Gives them back.
    pub(super) fn give_back(&self, bytes: usize) {
        give_back(&self.memory, bytes);
    }
}

/// Counts so many more, if they are not more than that then; whether they were not.
fn take(used: &AtomicUsize, bytes: usize, most: usize) -> bool {
    let fits = used.fetch_add(bytes, Ordering::AcqRel) + bytes <= most;
    if !fits {
        give_back(used, bytes);
    }
    fits
}

fn give_back(used: &AtomicUsize, bytes: usize) {
    let before = used.fetch_sub(bytes, Ordering::AcqRel);
    debug_assert!(before >= bytes, "more is given back than was taken");
}

/// A topic's name and account: what its messages know of it.
pub(super) struct About {
    name: Arc<str>,
    /// Bytes of its messages.
    messages: AtomicUsize,
    /// Bytes of forms that were made of them.
    forms: AtomicUsize,
    shared: Arc<Shared>,
}

impl About {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is room for a form, which is charged then.
    pub(super) fn keep_form(&self, bytes: usize) -> bool {
        let fits = take(&self.shared.forms, bytes, self.shared.most_memory.load(Ordering::Relaxed));
        if fits {
            self.forms.fetch_add(bytes, Ordering::AcqRel);
        }
        fits
    }

    /// What was made of a message, or its frame, is given up.
    pub(super) fn leave(&self, frame: Arc<[u8]>) {
        self.shared.leave(frame);
    }

    pub(super) fn drop_form(&self, bytes: usize) {
        give_back(&self.forms, bytes);
        give_back(&self.shared.forms, bytes);
    }

    /// A message is gone.
    pub(super) fn credit(&self, bytes: usize) {
        give_back(&self.messages, bytes);
        self.shared.give_back(bytes);
    }
}

/// Subscribers of one loop.
#[derive(Clone, Copy, Debug, Default)]
struct Listener {
    subscribers: u32,
    /// It was told of messages, and has not heard yet.
    told: bool,
}

/// What stands under the lock.
pub(super) struct Ring {
    pub epoch: Epoch,
    /// First those of the epoch that this one follows, then its own.
    pub messages: VecDeque<Arc<Message>>,
    /// How many those are.
    earlier: usize,
    /// The offset from which numbering goes on: that of the newest message, if there was any.
    pub last: u64,
    /// The highest offset that was given up: nothing comes back at or below it.
    pub gone: u64,
    /// Nothing was ever numbered in it.
    pub fresh: bool,
    /// Places at which nobody has missed anything of what comes behind that offset.
    same: (Vec<Position>, u64),
    /// Up to which offset somebody may stand beyond the end who has had nothing of what comes: it was thought that numbers would go on behind that.
    placed: u64,
    listeners: Box<[Listener]>,
    pub subscribers: u32,
    /// Since when it is seen without subscribers and messages.
    idle_since: Option<Duration>,
    /// It is no more: whoever has found it before looks again.
    pub forgotten: bool,
    /// Bytes of the ring itself, which the hub is charged.
    slots: usize,
}

/// A topic of a hub.
pub struct Topic {
    pub(super) about: Arc<About>,
    ring: Mutex<Ring>,
}

impl std::fmt::Debug for Topic {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Topic").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// What came of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Read {
    /// Where the reader stands now.
    pub at: Position,
    /// What it has missed before the messages that it got.
    pub gap: Option<Gap>,
    /// Whether there is more.
    pub more: bool,
}

impl Topic {
    pub(super) fn new(name: Arc<str>, shared: Arc<Shared>, loops: usize, floor: u64) -> Topic {
        let ring = Ring {
            epoch: shared.epoch(),
            messages: VecDeque::new(),
            earlier: 0,
            last: floor,
            gone: floor,
            fresh: true,
            same: (Vec::new(), floor),
            placed: 0,
            listeners: vec![Listener::default(); loops].into_boxed_slice(),
            subscribers: 0,
            idle_since: None,
            forgotten: false,
            slots: 0,
        };
        let [messages, forms] = [const { AtomicUsize::new(0) }; 2];
        let about = Arc::new(About { name, messages, forms, shared });
        Topic { about, ring: Mutex::new(ring) }
    }

    /// What a topic costs its hub without any message.
    pub(super) fn base_bytes(name: &str, loops: usize) -> usize {
        // An entry of a tree, whose nodes are at least half full.
        let entry = 2 * (size_of::<Arc<str>>() + size_of::<Arc<Topic>>());
        let own = shared_bytes(size_of::<Topic>()) + shared_bytes(size_of::<About>());
        own + shared_bytes(name.len()) + heap_bytes(loops * size_of::<Listener>()) + entry
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.about.name
    }

    pub(super) fn name_shared(&self) -> &Arc<str> {
        &self.about.name
    }

    /// Whether clients that are slow to take what they are sent have more than they may of what topics of its hub have given up.
    pub fn is_overrun(&self) -> bool {
        self.about.shared.is_overrun()
    }

    /// Bytes of its messages, with the forms that were made of them.
    pub fn bytes(&self) -> usize {
        self.about.messages.load(Ordering::Acquire) + self.about.forms.load(Ordering::Acquire)
    }

    /// What stands under the lock, in the epoch that the hub is in.
    pub(super) fn ring(&self) -> MutexGuard<'_, Ring> {
        let mut ring = lock(&self.ring);
        let epoch = self.about.shared.epoch();
        if ring.epoch != epoch {
            let (end, follows) = (ring.end(), ring.epoch.0 == self.about.shared.behind.load(Ordering::Acquire));
            // Who has had nothing of it yet is where it stood before that.
            let mut same = if ring.fresh { std::mem::take(&mut ring.same.0) } else { Vec::new() };
            if follows {
                same.push(end);
                // Of two epochs before it nothing is kept; of one in which nothing was numbered there is nothing.
                let passed = if ring.fresh { 0 } else { ring.earlier };
                self.give_up(&mut ring, passed);
                self.begin_behind(&mut ring, epoch, same);
            } else {
                self.begin(&mut ring, epoch);
            }
        }
        ring
    }

    /// Begins anew in an epoch.
    pub(super) fn begin(&self, ring: &mut Ring, epoch: Epoch) {
        self.give_up(ring, ring.messages.len());
        self.begin_behind(ring, epoch, Vec::new());
    }

    /// Begins in an epoch behind what there is. At those places nobody has missed anything.
    fn begin_behind(&self, ring: &mut Ring, epoch: Epoch, same: Vec<Position>) {
        let base = self.about.shared.base.load(Ordering::Acquire);
        (ring.epoch, ring.last, ring.gone, ring.fresh, ring.placed) = (epoch, base, base, true, 0);
        // Nothing was numbered in the one between, and these are of the epoch that there is again.
        let is_again = ring.messages.back().is_some_and(|last| last.position().epoch == epoch);
        (ring.earlier, ring.same) = (if is_again { 0 } else { ring.messages.len() }, (same, base));
    }

    /// The loop of that index is about to read, and may be told again: where the topic stands.
    pub fn heard(&self, loop_index: u16) -> Position {
        let mut ring = self.ring();
        ring.listeners[usize::from(loop_index)].told = false;
        ring.end()
    }

    /// Puts behind `into` what comes after a position: messages of about so many bytes, at least one if there is any, and none behind a hole.
    pub fn read(&self, after: Position, most_bytes: usize, into: &mut Vec<Arc<Message>>) -> Read {
        let ring = self.ring();
        let (mut index, mut at, gap) = ring.find(after, self.about.shared.ahead());
        if planted::active(Bug::SkippedAtWrap) && index == 0 && ring.gone > 0 && gap.is_none() && at.offset < ring.last
        {
            (index, at.offset) = (1, at.offset + 1);
        }
        let mut left = most_bytes;
        for (number, message) in ring.messages.range(index..).enumerate() {
            let size = message.size() + FORM_BYTES;
            let next = Position { offset: at.offset + 1, ..at };
            if message.position() != next || (number > 0 && size > left) {
                break;
            }
            left = left.saturating_sub(size);
            at = message.position();
            into.push(message.clone());
        }
        Read { at, gap, more: at.epoch != ring.epoch || at.offset < ring.last }
    }

    /// Puts behind `into` what is kept behind an offset, whatever is missing between: messages of about so many bytes, at least one if there is any.
    /// Whether there is more.
    pub fn kept_behind(&self, offset: u64, most_bytes: usize, into: &mut Vec<Arc<Message>>) -> bool {
        let ring = self.ring();
        let mut left = most_bytes;
        for (number, message) in ring.messages.range(ring.place_of(offset.saturating_add(1))..).enumerate() {
            let size = message.size() + FORM_BYTES;
            if number > 0 && size > left {
                return true;
            }
            left = left.saturating_sub(size);
            into.push(message.clone());
        }
        false
    }

    pub(super) fn unsubscribe(&self, loop_index: u16) {
        let mut ring = self.ring();
        let listener = &mut ring.listeners[usize::from(loop_index)];
        debug_assert!(listener.subscribers > 0, "a subscriber that never was");
        if listener.subscribers > 0 {
            listener.subscribers -= 1;
            listener.told &= listener.subscribers > 0;
            ring.subscribers -= 1;
        }
    }

    /// Puts in a message that is not there yet: which loops are to be told.
    ///
    /// # Errors
    /// [`Refused::Full`], and nothing was given up.
    pub(super) fn add(&self, ring: &mut Ring, message: Message, history: &History) -> Result<LoopSet, Refused> {
        let (offset, cost) = (message.position().offset, message.cost());
        self.make_room(ring, cost, history)?;
        if ring.has_had(offset) {
            // It would have been the oldest.
            self.about.shared.give_back(cost);
            return Ok(LoopSet::default());
        }
        // The hub's memory was taken when room was made.
        self.about.messages.fetch_add(cost, Ordering::AcqRel);
        let place = ring.place_of(offset);
        ring.messages.insert(place, Arc::new(message));
        (ring.last, ring.fresh) = (ring.last.max(offset), false);
        ring.idle_since = None;
        self.settle_slots(ring);
        Ok(ring.tell())
    }

    /// Whether there is room for one more message of so many bytes, or would be made.
    pub(super) fn has_room(&self, ring: &mut Ring, cost: usize, history: &History) -> Result<(), Refused> {
        self.make_room(ring, cost, history)?;
        self.about.shared.give_back(cost);
        Ok(())
    }

    /// Gives up what has to go for one more message of so many bytes, and takes those of the hub's memory.
    fn make_room(&self, ring: &mut Ring, cost: usize, history: &History) -> Result<(), Refused> {
        let memory = &self.about.shared.memory;
        let most = self.about.shared.most_memory.load(Ordering::Relaxed);
        let used = memory.fetch_add(cost, Ordering::AcqRel) + cost;
        let (mut own, length) = (self.about.messages.load(Ordering::Acquire) + cost, ring.messages.len());
        let (mut freed, mut given) = (0, 0);
        for message in &ring.messages {
            let too_many = length - given >= history.most() || own > history.bytes;
            // What nobody may have read yet stays, unless it is the topic's own bounds that it has to give way to.
            let too_much = used.saturating_sub(freed) > most && given + 1 < length;
            if !too_many && !too_much {
                break;
            }
            freed += message.cost();
            own -= message.cost();
            given += 1;
        }
        if used.saturating_sub(freed) > most {
            self.about.shared.give_back(cost);
            return Err(Refused::Full);
        }
        self.give_up(ring, given);
        Ok(())
    }

    /// Gives up what is too old, too many or too much, but of the last two never the newest.
    pub(super) fn expire(&self, ring: &mut Ring, now: Duration, history: &History) {
        let old = ring.published_before(now.saturating_sub(history.age));
        self.give_up(ring, old.max(ring.messages.len().saturating_sub(history.most())));
        while ring.messages.len() > 1 && self.about.messages.load(Ordering::Acquire) > history.bytes {
            self.give_up(ring, 1);
        }
    }

    /// Drops what was made of messages that were published before that time.
    pub(super) fn drop_forms(&self, ring: &Ring, before: Duration) {
        let old = ring.published_before(before);
        ring.messages.range(..old).for_each(|message| message.drop_forms());
    }

    fn give_up(&self, ring: &mut Ring, count: usize) {
        if count == 0 {
            return;
        }
        for message in ring.messages.drain(..count) {
            // The numbers of another epoch are none of this one.
            let is_earlier = ring.earlier > 0;
            ring.earlier -= usize::from(is_earlier);
            if !is_earlier {
                ring.gone = ring.gone.max(message.position().offset);
            }
            message.give_up();
        }
        // Whoever has had a thousand messages once does not keep room for them.
        if ring.messages.len() < ring.messages.capacity() / 4 {
            ring.messages.shrink_to(2 * ring.messages.len());
        }
        self.settle_slots(ring);
    }

    fn settle_slots(&self, ring: &mut Ring) {
        let slots = heap_bytes(ring.messages.capacity() * size_of::<Arc<Message>>());
        self.about.shared.memory.fetch_add(slots, Ordering::AcqRel);
        self.about.shared.give_back(ring.slots);
        ring.slots = slots;
    }
}

impl Ring {
    /// The loops that are to be told, and know nothing of it yet.
    pub fn tell(&mut self) -> LoopSet {
        let mut tell = LoopSet::default();
        for (index, listener) in (0..).zip(&mut self.listeners) {
            if listener.subscribers > 0 && !listener.told {
                listener.told = true;
                tell.insert(index);
            }
        }
        tell
    }

    /// Where the topic stands: behind its newest message.
    pub fn end(&self) -> Position {
        Position { epoch: self.epoch, offset: self.last }
    }

    /// Where a reader begins, which is a subscriber of that loop from now on.
    /// `keeps`: what was published before is for those who come back. `ahead`: see [`Ring::is_ahead`].
    pub fn subscribe(&mut self, loop_index: u16, from: From, keeps: bool, ahead: u64) -> (Position, Option<Gap>) {
        self.listeners[usize::from(loop_index)].subscribers += 1;
        self.subscribers += 1;
        self.idle_since = None;
        match from {
            From::Now => (self.end(), None),
            From::After(position) if !keeps && !self.is_ahead(position, ahead) => {
                let (from, to) = (position, self.end());
                (to, (from != to).then_some(Gap { from, to }))
            }
            From::After(position) => {
                let (_, mut at, gap) = self.find(position, ahead);
                at.offset += u64::from(planted::active(Bug::LateResume) && at.offset < self.last);
                (at, gap)
            }
        }
    }

    /// Whether somebody has had there, at another server, what comes here in a moment: up to so many messages. What it has had is passed by when it comes.
    fn is_ahead(&self, at: Position, most: u64) -> bool {
        let beyond = at.offset.saturating_sub(self.last);
        at.epoch == self.epoch && !self.fresh && at.offset > self.placed && (1..=most).contains(&beyond)
    }

    /// What a reader at that position gets next: the index of the message, the position before it, and what it has missed. `ahead`: see [`Ring::is_ahead`].
    fn find(&self, after: Position, ahead: u64) -> (usize, Position, Option<Gap>) {
        let of_its_epoch = |message: &&Arc<Message>| message.position().epoch == after.epoch;
        if after.epoch != self.epoch && self.messages.range(..self.earlier).next().as_ref().is_some_and(of_its_epoch) {
            let index =
                self.messages.range(..self.earlier).take_while(|it| it.position().offset <= after.offset).count();
            if let Some(message) = self.messages.range(..self.earlier).nth(index) {
                let at = Position { offset: message.position().offset - 1, ..after };
                return (index, at, (at != after).then_some(Gap { from: after, to: at }));
            }
        }
        let is_same = self.same.0.contains(&after);
        let after = if is_same { Position { epoch: self.epoch, offset: self.same.1 } } else { after };
        if self.is_ahead(after, ahead) {
            return (self.messages.len(), after, None);
        }
        // All of another epoch was published after what that reader knows.
        let is_own = after.epoch == self.epoch;
        let index = if is_own { self.place_of(after.offset.saturating_add(1)) } else { self.earlier };
        let before = self.messages.get(index).map_or(self.last, |message| message.position().offset - 1);
        let at = Position { epoch: self.epoch, offset: before };
        // Who comes from the future of this epoch has its gap as well, and is given nothing again.
        (index, at, (at != after).then_some(Gap { from: after, to: at }))
    }

    /// Another numbers what comes next by that offset. `first`: nothing of the topic was numbered between where it stands and there, so that whoever
    /// stands there misses nothing.
    pub fn goes_on_at(&mut self, offset: u64, first: bool) {
        let (end, before) = (self.end(), offset - 1);
        let (is_behind, is_ahead) = (end.offset < before, end.offset > before);
        if !(first && is_behind || self.fresh && is_ahead) {
            return;
        }
        if !(self.fresh && first) {
            self.same.0.clear();
        }
        self.same.0.extend(first.then_some(end));
        self.placed = if is_ahead { self.placed.max(end.offset) } else { self.placed };
        (self.last, self.same.1) = (before, before);
        if self.fresh {
            self.gone = before;
        }
    }

    /// Is numbered here: behind that if nothing of it was numbered yet.
    pub fn numbers_behind(&mut self, floor: u64) {
        if self.fresh && self.last < floor {
            self.goes_on_at(floor + 1, true);
        }
    }

    /// How many of the oldest were published at that time or before it.
    fn published_before(&self, time: Duration) -> usize {
        self.messages.iter().take_while(|message| message.at() <= time).count()
    }

    /// Where a message of that offset stands, or would.
    fn place_of(&self, offset: u64) -> usize {
        let is_before = |at: Position| at.epoch != self.epoch || at.offset < offset;
        self.messages.partition_point(|message| is_before(message.position()))
    }

    /// The messages of this epoch.
    pub fn own(&self) -> impl ExactSizeIterator<Item = &Arc<Message>> {
        self.messages.range(self.earlier..)
    }

    /// Whether a message of that offset is there, or was, or is too old to come.
    pub fn has_had(&self, offset: u64) -> bool {
        let there = self.messages.get(self.place_of(offset)).is_some_and(|other| other.position().offset == offset);
        there || offset <= self.gone
    }

    /// Whether nobody reads it and it has nothing.
    pub fn is_idle(&self) -> bool {
        self.subscribers == 0 && self.messages.is_empty()
    }

    /// Whether it has been idle for so long, as far as was seen.
    pub fn is_idle_for(&mut self, now: Duration, long: Duration) -> bool {
        if !self.is_idle() {
            self.idle_since = None;
            return false;
        }
        now.saturating_sub(*self.idle_since.get_or_insert(now)) >= long
    }

    /// What the hub is charged for the ring itself.
    pub fn slots(&self) -> usize {
        self.slots
    }
}
