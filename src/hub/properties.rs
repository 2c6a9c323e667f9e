//! The hub against a plain record of all that was ever published.
//!
//! Whatever is called in whatever order: a subscriber gets everything behind its position once and in order, or a gap that covers exactly what is
//! not there for it; a message goes only when a bound says so, and the oldest first; a loop is told once until it has heard; and the account is what
//! the messages weigh.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;

use super::message::{heap_bytes, shared_bytes};
use super::topic::FORM_BYTES;
use super::*;
use crate::buffers::outbox::Piece;

const LOOPS: u16 = 3;
const TOPICS: usize = 5;
const AGE: u64 = 100;
const MOST_IDS: usize = 3;
const IDS_FOR: u64 = 60;
/// A ring grows by fours, and is charged for it only then.
const SLOTS: usize = 128;

fn settings() -> Settings {
    Settings {
        history: History { count: 4, bytes: 2200, age: Duration::from_millis(AGE) },
        message: 1000,
        most_topics: 4,
        memory: 4500,
        ids_for: Duration::from_millis(IDS_FOR),
        most_ids: MOST_IDS,
        ..Settings::new("test")
    }
}

#[derive(Clone, Debug)]
enum Step {
    Publish { topic: usize, size: usize, kind: u8, id: Option<u8> },
    Append { topic: usize, ahead: i64, size: usize },
    Subscribe { topic: usize, home: u16, from: Whence },
    Unsubscribe(usize),
    Heard(usize),
    Read { which: usize, most: usize },
    Form { topic: usize, message: usize, form: u8 },
    Sweep,
    Pass(u64),
    Begin,
}

#[derive(Clone, Debug)]
enum Whence {
    Now,
    /// Where that subscriber is.
    Of(usize),
    /// So far from the topic's end.
    Behind(i64),
    Elsewhere,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any = 0..64_usize;
    // The first one has nearly everything, so that it comes to its bounds.
    let topic = prop_oneof![3 => Just(0), 1 => 0..TOPICS];
    let size = prop_oneof![3 => 0..40_usize, 1 => 100..700_usize, 1 => 990..1010_usize];
    let from = prop_oneof![
        2 => Just(Whence::Now),
        2 => any.clone().prop_map(Whence::Of),
        2 => (-2..8_i64).prop_map(Whence::Behind),
        1 => Just(Whence::Elsewhere),
    ];
    let step = prop_oneof![
        12 => (topic.clone(), size.clone(), 0..3_u8, prop::option::weighted(0.3, 0..5_u8))
            .prop_map(|(topic, size, kind, id)| Step::Publish { topic, size, kind, id }),
        2 => (topic.clone(), -4..4_i64, size).prop_map(|(topic, ahead, size)| Step::Append { topic, ahead, size }),
        5 => (topic.clone(), 0..LOOPS, from).prop_map(|(topic, home, from)| Step::Subscribe { topic, home, from }),
        2 => any.clone().prop_map(Step::Unsubscribe),
        4 => any.clone().prop_map(Step::Heard),
        8 => (any.clone(), prop_oneof![Just(0), Just(300), Just(100_000)])
            .prop_map(|(which, most)| Step::Read { which, most }),
        4 => (topic, any, 0..3_u8).prop_map(|(topic, message, form)| Step::Form { topic, message, form }),
        2 => Just(Step::Sweep),
        4 => prop_oneof![4 => 0..30_u64, 1 => 50..250_u64].prop_map(Step::Pass),
        1 => Just(Step::Begin),
    ];
    prop::collection::vec(step, 1..200)
}

struct Subscriber {
    topic: Arc<Topic>,
    home: u16,
    at: Position,
}

struct World {
    hub: Hub,
    now: Duration,
    /// All that was ever published in this epoch, by topic and offset.
    all: BTreeMap<String, BTreeMap<u64, Vec<u8>>>,
    subscribers: Vec<Subscriber>,
    /// Loops that were told and have not heard.
    told: BTreeSet<(String, u16)>,
    ids: VecDeque<(usize, u8, Position, Duration)>,
    /// Makes payloads different.
    count: usize,
}

/// Its messages: offset, cost, time.
fn kept(topic: &Topic) -> Vec<(u64, usize, Duration)> {
    let ring = topic.ring();
    ring.messages.iter().map(|message| (message.position().offset, message.cost(), message.at())).collect()
}

fn offsets(kept: &[(u64, usize, Duration)]) -> Vec<u64> {
    kept.iter().map(|(offset, ..)| *offset).collect()
}

impl World {
    fn new() -> World {
        World {
            hub: Hub::new(settings(), Epoch(1), usize::from(LOOPS)),
            now: Duration::from_secs(1),
            all: BTreeMap::new(),
            subscribers: Vec::new(),
            told: BTreeSet::new(),
            ids: VecDeque::new(),
            count: 0,
        }
    }

    /// What messages and topics take, without forms.
    fn used(&self) -> usize {
        self.hub.shared.memory.load(Ordering::Relaxed)
    }

    fn there(&self, name: &str) -> Option<Arc<Topic>> {
        self.hub.table().topics.get(name).cloned()
    }

    fn payload(&mut self, size: usize, kind: u8) -> (Vec<u8>, u8) {
        self.count += 1;
        let mut bytes = format!("{:07}", self.count).into_bytes();
        // A line's end, a quote and a control: forms are longer than what they are made of.
        bytes.extend([b'\n', b'"', 7, b'a'].iter().cycle().take(size.saturating_sub(7)));
        if kind == 2 {
            bytes.iter_mut().filter(|byte| !byte.is_ascii_digit()).for_each(|byte| *byte = b'1');
            bytes[0] = b'1';
        }
        (bytes, kind)
    }

    /// What is left of these after their time.
    fn expired(&self, mut kept: Vec<(u64, usize, Duration)>) -> Vec<(u64, usize, Duration)> {
        let now = clock(self.now);
        while kept.first().is_some_and(|(_, _, at)| now - *at >= Duration::from_millis(AGE)) {
            kept.remove(0);
        }
        self.trimmed(kept)
    }

    /// The oldest go until the topic is within its own bounds, but for the last.
    fn trimmed(&self, mut kept: Vec<(u64, usize, Duration)>) -> Vec<(u64, usize, Duration)> {
        let History { count, bytes, .. } = settings().history;
        while kept.len() > 1 && (kept.len() > count || kept.iter().map(|(_, cost, _)| cost).sum::<usize>() > bytes) {
            kept.remove(0);
        }
        kept
    }

    /// What became of a topic's messages: those that its own bounds leave, or fewer, if the hub's memory was used up.
    fn check_kept(&self, topic: &Topic, by_bounds: &[(u64, usize, Duration)], newest: usize) {
        let left = kept(topic);
        let missing = by_bounds.len().checked_sub(left.len()).expect("something is kept beyond its time");
        assert_eq!(offsets(&left), offsets(&by_bounds[missing..]), "not the oldest went");
        if missing > 0 {
            assert!(self.used() + by_bounds[missing - 1].1 + SLOTS > settings().memory, "there was room for it");
            assert!(left.len() >= newest, "what nobody has read yet went");
        }
    }

    fn publish(&mut self, number: usize, size: usize, kind: u8, id: Option<u8>) {
        let name = format!("topic{number}");
        let (bytes, kind) = self.payload(size, kind);
        let before = self.there(&name);
        let known = before.as_deref().map(|topic| self.expired(kept(topic))).unwrap_or_default();
        let text = std::str::from_utf8(&bytes).unwrap();
        let payload = [Payload::Text(text), Payload::Binary(&bytes), Payload::Json(text)][usize::from(kind)];
        let id_text = id.map(|id| id.to_string());
        let published = self.hub.publish(self.now, &name, payload, id_text.as_deref());
        let fresh = |at: &Duration| self.now - *at < Duration::from_millis(IDS_FOR);
        let first = self.ids.iter().find(|(topic, other, _, at)| *topic == number && Some(*other) == id && fresh(at));
        let published = match published {
            Ok(published) => published,
            Err(refused) => return self.check_refused(refused, &name, bytes.len(), &known),
        };
        assert!(bytes.len() <= settings().message);
        assert_eq!(published.duplicate, first.is_some());
        if let Some((_, _, position, _)) = first {
            assert_eq!((published.position, published.tell.is_empty()), (*position, true));
            return;
        }
        let topic = self.there(&name).expect("it was published to");
        self.added(&topic, published, bytes, known);
        if let Some(id) = id {
            self.remember(number, id, published.position);
        }
        let all = &self.all[&name];
        assert_eq!(all.last_key_value().unwrap().0, &published.position.offset, "a number was given twice");
    }

    fn remember(&mut self, number: usize, id: u8, position: Position) {
        let now = self.now;
        self.ids.retain(|(.., at)| now - *at < Duration::from_millis(IDS_FOR));
        if self.ids.len() == MOST_IDS {
            self.ids.pop_front();
        }
        self.ids.push_back((number, id, position, self.now));
    }

    fn check_crowded(&self, name: &str, least: usize) {
        assert!(self.there(name).is_none());
        let table = self.hub.table();
        assert!((least..=settings().most_topics).contains(&table.topics.len()));
        assert!(table.topics.values().all(|topic| !topic.ring().is_idle()), "one could have been forgotten");
    }

    fn check_refused(&self, refused: Refused, name: &str, bytes: usize, known: &[(u64, usize, Duration)]) {
        let topic = self.there(name);
        match refused {
            Refused::TooBig => assert!(bytes > settings().message),
            Refused::TooManyTopics => self.check_crowded(name, settings().most_topics),
            Refused::Full => {
                let cost = shared_bytes(size_of::<Message>()) + shared_bytes(bytes + 4);
                let own = topic.as_deref().map(kept).unwrap_or_default();
                assert_eq!(offsets(&own), offsets(&known[known.len() - own.len()..]));
                let free: usize = own.iter().rev().skip(1).map(|(_, cost, _)| cost).sum();
                let base = if topic.is_none() { Topic::base_bytes(name, usize::from(LOOPS)) } else { 0 };
                assert!(self.used() + cost + base - free + SLOTS > settings().memory, "there was room for it");
            }
            other => panic!("{other:?}"),
        }
    }

    /// A message has come to a topic that had these.
    fn added(&mut self, topic: &Topic, published: Published, bytes: Vec<u8>, mut had: Vec<(u64, usize, Duration)>) {
        let name = topic.name().to_owned();
        let Position { epoch, offset } = published.position;
        assert_eq!(epoch, self.hub.epoch());
        let cost =
            shared_bytes(size_of::<Message>()) + shared_bytes(bytes.len() + if bytes.len() < 126 { 2 } else { 4 });
        self.all.entry(name.clone()).or_default().insert(offset, bytes);
        let place = had.partition_point(|(other, ..)| *other < offset);
        had.insert(place, (offset, cost, clock(self.now)));
        let had = self.trimmed(had);
        self.check_kept(topic, &had, 2.min(had.len()));
        let here: Vec<u16> = self.listeners(&name);
        let tell = here.iter().copied().filter(|home| self.told.insert((name.clone(), *home)));
        assert_eq!(published.tell.iter().collect::<Vec<_>>(), tell.collect::<Vec<_>>());
        let count = self.subscribers.iter().filter(|subscriber| subscriber.topic.name() == name).count();
        assert_eq!(published.subscribers as usize, count);
    }

    fn listeners(&self, name: &str) -> Vec<u16> {
        let here = self.subscribers.iter().filter(|subscriber| subscriber.topic.name() == name);
        here.map(|subscriber| subscriber.home).collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn append(&mut self, number: usize, ahead: i64, size: usize) {
        let name = format!("topic{number}");
        let Some(topic) = self.there(&name) else { return };
        let (bytes, _) = self.payload(size.min(900), 1);
        let before = kept(&topic);
        let known = self.expired(before.clone());
        let (offset, gone) = {
            let ring = topic.ring();
            let offset = ring.last.saturating_add_signed(ahead);
            if ring.fresh && offset <= ring.last {
                // Where others number, nobody listens to it there.
                return;
            }
            (offset, ring.gone)
        };
        let position = Position { epoch: self.hub.epoch(), offset };
        let appended = self.hub.append(self.now, &name, position, Payload::Binary(&bytes), None);
        match appended {
            _ if offset == 0 => assert_eq!(appended, Err(Refused::NoSuchPosition)),
            Err(refused) => self.check_refused(refused, &name, bytes.len(), &known),
            Ok(published) => {
                let there = known.iter().any(|(other, ..)| *other == offset);
                let left = offsets(&kept(&topic));
                let went = before.into_iter().filter(|(other, ..)| !left.contains(other)).map(|(other, ..)| other);
                let gone = went.fold(gone, u64::max);
                assert_eq!(topic.ring().gone, gone);
                assert!(!published.duplicate || published.tell.is_empty());
                if there || offset <= gone {
                    assert!(published.duplicate || offset <= gone, "{offset} is there twice");
                    assert_eq!(
                        left.iter().filter(|other| **other == offset).count(),
                        usize::from(left.contains(&offset))
                    );
                } else {
                    self.added(&topic, published, bytes, known);
                }
            }
        }
    }

    /// What a reader gets from there, by looking at everything: what it has missed, and what follows.
    fn expected(&self, topic: &Topic, after: Position) -> (Position, Option<Gap>, Vec<u64>) {
        let kept = offsets(&kept(topic));
        let end = topic.ring().end();
        let from = match after.epoch == end.epoch {
            true if after.offset > end.offset => return (end, Some(Gap { from: after, to: end }), Vec::new()),
            true => after.offset,
            false => 0,
        };
        let behind: Vec<u64> = kept.into_iter().filter(|offset| *offset > from).collect();
        let to = Position { epoch: end.epoch, offset: behind.first().map_or(end.offset, |first| first - 1) };
        let row = (to.offset + 1..).zip(&behind).take_while(|(expected, found)| expected == *found);
        let row = row.map(|(offset, _)| offset).collect();
        (to, (to != after).then_some(Gap { from: after, to }), row)
    }

    fn subscribe(&mut self, number: usize, home: u16, whence: &Whence) {
        let name = format!("topic{number}");
        let before = self.there(&name);
        let end = before.as_deref().map_or(0, |topic| topic.ring().last);
        let epoch = self.hub.epoch();
        let from = match whence {
            Whence::Now => From::Now,
            Whence::Behind(far) => From::After(Position { epoch, offset: end.saturating_add_signed(-far) }),
            Whence::Elsewhere => From::After(Position { epoch: Epoch(77), offset: 3 }),
            Whence::Of(which) => match self.subscribers.get(which % self.subscribers.len().max(1)) {
                Some(subscriber) => From::After(subscriber.at),
                None => From::Now,
            },
        };
        let known = before.as_deref().map(|topic| self.expired(kept(topic))).unwrap_or_default();
        match self.hub.subscribe(self.now, &name, home, from) {
            // Who only listens leaves one to those who publish.
            Err(Refused::TooManyTopics) => self.check_crowded(&name, settings().most_topics - 1),
            Err(refused) => self.check_refused(refused, &name, 0, &known),
            Ok(Subscribed { topic, at, gap, end, more }) => {
                self.check_kept(&topic, &known, 1.min(known.len()));
                let expected = match from {
                    From::Now => (topic.ring().end(), None),
                    From::After(position) => {
                        let (at, gap, _) = self.expected(&topic, position);
                        (at, gap)
                    }
                };
                assert_eq!((at, gap), expected);
                assert_eq!((end, more), (topic.ring().end(), at != end));
                self.subscribers.push(Subscriber { topic, home, at });
            }
        }
    }

    fn unsubscribe(&mut self, which: usize) {
        if self.subscribers.is_empty() {
            return;
        }
        let Subscriber { topic, home, .. } = self.subscribers.swap_remove(which % self.subscribers.len());
        self.hub.unsubscribe(&topic, home);
        if !self.listeners(topic.name()).contains(&home) {
            self.told.remove(&(topic.name().to_owned(), home));
        }
    }

    fn read(&mut self, which: usize, most: usize) {
        if self.subscribers.is_empty() {
            return;
        }
        let which = which % self.subscribers.len();
        let (topic, after) = (self.subscribers[which].topic.clone(), self.subscribers[which].at);
        let before = kept(&topic);
        let mut messages = Vec::new();
        let read = topic.read(after, most, &mut messages);
        assert_eq!(kept(&topic), before);
        let (to, gap, row) = self.expected(&topic, after);
        assert_eq!(read.gap, gap);
        let got: Vec<u64> = messages.iter().map(|message| message.position().offset).collect();
        assert_eq!(got, row[..got.len()], "in order, and none left out");
        assert!(!got.is_empty() || row.is_empty(), "at least one");
        let size = |message: &Arc<Message>| message.raw_frame().bytes().len() + FORM_BYTES;
        let sizes: Vec<usize> = messages.iter().map(size).collect();
        assert!(got.len() < 2 || sizes.iter().sum::<usize>() <= most, "more than was asked for");
        for message in &messages {
            assert_eq!(message.payload(), self.all[topic.name()][&message.position().offset], "not what was published");
        }
        let at = Position { offset: got.last().copied().unwrap_or(to.offset), ..to };
        assert_eq!((read.at, read.more), (at, at != topic.ring().end()));
        // Of what it has not got, nothing is said to be missing that is there.
        if let Some(gap) = gap {
            let here = offsets(&kept(&topic));
            let missed = |offset: &u64| gap.from.epoch != gap.to.epoch || *offset > gap.from.offset;
            assert!(!here.iter().any(|offset| missed(offset) && *offset <= gap.to.offset), "{gap:?} of {here:?}");
        }
        self.subscribers[which].at = read.at;
    }

    fn form(&self, number: usize, which: usize, form: u8) {
        let Some(topic) = self.there(&format!("topic{number}")) else { return };
        let messages: Vec<_> = topic.ring().messages.iter().cloned().collect();
        let Some(message) = messages.get(which % messages.len().max(1)) else { return };
        match form {
            0 => message.envelope_frame(),
            1 => message.event(),
            _ => message.event_chunk(),
        };
        // Made once, unless there is no room for it.
        let again = if form == 0 { message.envelope_frame() } else { message.event_chunk() };
        let Piece::Shared(again, _) = again else { panic!("{again:?}") };
        let is_kept = message.forms().iter().any(|form| Arc::ptr_eq(form, &again));
        let forms = self.hub.shared.forms.load(Ordering::Relaxed);
        assert!(is_kept || forms + shared_bytes(again.len()) > settings().memory);
    }

    fn sweep(&self) {
        let topics: Vec<_> = self.hub.table().topics.values().cloned().collect();
        let before: Vec<_> = topics.iter().map(|topic| self.expired(kept(topic))).collect();
        self.hub.sweep(self.now);
        for (topic, before) in topics.iter().zip(before) {
            self.check_kept(topic, &before, 1.min(before.len()));
            let is_there = self.there(topic.name()).is_some();
            assert!(is_there || topic.ring().is_idle(), "it was forgotten though it is used");
        }
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Publish { topic, size, kind, id } => self.publish(*topic, *size, *kind, *id),
            Step::Append { topic, ahead, size } => self.append(*topic, *ahead, *size),
            Step::Subscribe { topic, home, from } => self.subscribe(*topic, *home, from),
            Step::Unsubscribe(which) => self.unsubscribe(*which),
            Step::Heard(which) => {
                if let Some(subscriber) = self.subscribers.get(which % self.subscribers.len().max(1)) {
                    let end = subscriber.topic.heard(subscriber.home);
                    assert_eq!(end, subscriber.topic.ring().end());
                    self.told.remove(&(subscriber.topic.name().to_owned(), subscriber.home));
                }
            }
            Step::Read { which, most } => self.read(*which, *most),
            Step::Form { topic, message, form } => self.form(*topic, *message, *form),
            Step::Sweep => self.sweep(),
            Step::Pass(millis) => self.now += Duration::from_millis(*millis),
            Step::Begin => {
                self.hub.begin(Epoch(self.hub.epoch().0 + 1));
                self.all.clear();
            }
        }
        self.check_account();
    }

    fn check_account(&self) {
        let (mut used, mut forms) = (0, 0);
        for topic in self.hub.table().topics.values() {
            let ring = topic.ring();
            let before = (used, forms);
            for message in &ring.messages {
                let raw = message.raw_frame();
                used += shared_bytes(size_of::<Message>()) + shared_bytes(raw.bytes().len());
                forms += message.forms().iter().map(|form| shared_bytes(form.len())).sum::<usize>();
            }
            assert_eq!(topic.bytes(), used - before.0 + forms - before.1);
            used += heap_bytes(ring.messages.capacity() * size_of::<Arc<Message>>());
            used += Topic::base_bytes(topic.name(), usize::from(LOOPS));
        }
        assert_eq!((self.used(), self.hub.memory()), (used, used + forms));
        assert!(used <= settings().memory + SLOTS * TOPICS && forms <= settings().memory);
    }

    /// All that is left is read, and in the end the hub is as empty as it began.
    fn end(&mut self) {
        for which in 0..self.subscribers.len() {
            for _ in 0..20 {
                self.read(which, 0);
            }
            let subscriber = &self.subscribers[which];
            assert_eq!(subscriber.at, subscriber.topic.ring().end(), "it comes to the end");
        }
        while !self.subscribers.is_empty() {
            self.unsubscribe(0);
        }
        for _ in 0..3 {
            self.now += Duration::from_millis(AGE);
            self.hub.sweep(self.now);
        }
        assert_eq!((self.hub.counts(None, 100).all, self.hub.memory()), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]
    #[test]
    fn every_message_comes_once_and_in_order_or_is_said_to_be_missing(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.take(step);
        }
        world.end();
    }

    #[test]
    fn positions_are_read_as_they_are_written(epoch: u64, offset: u64, others in prop::collection::vec(any::<u64>(), 1..5)) {
        let position = Position { epoch: Epoch(epoch), offset };
        prop_assert_eq!(position.to_string().parse(), Ok(position));
        let cursors: Vec<_> = others.iter().map(|offset| Position { offset: *offset, ..position }).collect();
        let names: Vec<_> = (0..cursors.len()).map(|number| number.to_string()).collect();
        let text = Positions::new(names.iter().map(|name| Tag::of(name)).zip(cursors.iter().copied())).to_string();
        let read: Positions = text.parse().unwrap();
        prop_assert_eq!(names.iter().map(|name| read.of(name)).collect::<Vec<_>>(), cursors);
    }

    #[test]
    fn what_is_no_snapshot_is_refused_whole(at: prop::sample::Index, byte: u8, cut: bool) {
        let hub = Hub::new(settings(), Epoch(9), 1);
        for text in ["1", "{\"b\":1}"] {
            hub.publish(Duration::ZERO, "topic", Payload::Json(text), Some(text)).ok();
            hub.publish(Duration::ZERO, text, Payload::Text(text), None).ok();
        }
        let mut bytes = hub.snapshot(Duration::ZERO);
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        let other = Hub::new(settings(), Epoch(1), 1);
        let restored = other.restore(Duration::ZERO, &bytes);
        prop_assert!(restored.is_err() || !cut);
        prop_assert_eq!(restored.is_err(), other.counts(None, 10).all == 0);
    }
}
