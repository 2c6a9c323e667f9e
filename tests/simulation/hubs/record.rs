//! What was published in a run and where it stands, seen by who looks into the hub after each turn: by that clients and publishers are judged.
//!
//! Every message has a number of its own, which stands in it. A number stands at one place of a topic, however often it was given to the hub.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use production_server::hub::{Epoch, Hub, Position};

/// The number of a message, or of what an app says to sockets.
pub type Number = u32;
/// A client that listens once: what it comes back with is another.
pub type Visit = u32;

/// A message that somebody gives to the hub.
struct Said {
    payload: Vec<u8>,
    topics: Vec<String>,
    /// Sockets that are not to get it.
    except: Vec<String>,
    /// It must be there at the end.
    must: bool,
}

/// What an app says to sockets.
struct Word {
    to: Vec<Visit>,
    heard: BTreeSet<Visit>,
}

/// What is known of a topic.
#[derive(Default)]
struct Story {
    messages: BTreeMap<u64, Number>,
    last: u64,
    /// What the hub has given up, up to here.
    gone: u64,
}

/// What a run amounted to, for the test of the tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub delivered: usize,
    pub gaps: usize,
    pub bare_gaps: usize,
    pub resumed: usize,
    pub duplicates: usize,
    pub events: usize,
    pub ended_by_drain: usize,
    pub cut: usize,
    pub unseen: u64,
}

/// All that was published, and to whom.
pub struct Record {
    hub: Arc<Hub>,
    pub calm: bool,
    /// The server ends.
    pub drains: bool,
    /// Nothing is kept for those who come back.
    pub keeps_none: bool,
    pub counts: Counts,
    topics: BTreeMap<String, Story>,
    said: Vec<Said>,
    placed: BTreeMap<(Number, String), u64>,
    words: Vec<Word>,
    /// What apps call the sockets of visits.
    sockets: BTreeMap<Visit, String>,
    /// What an app has let join, and of that what when it let in; and whom it has refused.
    joined: BTreeMap<Visit, BTreeSet<String>>,
    joined_at_open: BTreeMap<Visit, BTreeSet<String>>,
    refused: BTreeSet<Visit>,
    /// Messages of clients that were answered by their app, and words that are on their way to them.
    answered: BTreeMap<Visit, u32>,
    owed: BTreeMap<Visit, BTreeSet<Number>>,
    next_visit: Visit,
}

impl Record {
    pub fn new(hub: &Arc<Hub>, topics: &[String], calm: bool) -> Record {
        Record {
            hub: hub.clone(),
            calm,
            drains: false,
            keeps_none: hub.settings().history.count == 0,
            counts: Counts::default(),
            topics: topics.iter().map(|topic| (topic.clone(), Story::default())).collect(),
            said: Vec::new(),
            placed: BTreeMap::new(),
            words: Vec::new(),
            sockets: BTreeMap::new(),
            joined: BTreeMap::new(),
            joined_at_open: BTreeMap::new(),
            refused: BTreeSet::new(),
            answered: BTreeMap::new(),
            owed: BTreeMap::new(),
            next_visit: 0,
        }
    }

    pub fn epoch(&self) -> Epoch {
        self.hub.epoch()
    }

    pub fn visit(&mut self) -> Visit {
        self.next_visit += 1;
        self.next_visit
    }

    /// A message that somebody is going to publish, of that kind and about so many bytes: its number, and what it is.
    pub fn say(&mut self, kind: Kind, length: usize, topics: &[String], except: &[String], must: bool) -> Number {
        let number = self.said.len() as Number;
        let pad = "p".repeat(length);
        let payload = match kind {
            Kind::Json => format!("{{\"m\":{number},\"pad\":\"{pad}\"}}"),
            Kind::Text => format!("m{number}:{pad}"),
        };
        let said = Said { payload: payload.into_bytes(), topics: topics.to_vec(), except: except.to_vec(), must };
        self.said.push(said);
        number
    }

    pub fn payload(&self, number: Number) -> &[u8] {
        &self.said[number as usize].payload
    }

    /// The message that this is, to the letter.
    pub fn read(&self, payload: &[u8]) -> Option<Number> {
        let digits = payload.strip_prefix(b"{\"m\":").or_else(|| payload.strip_prefix(b"m"))?;
        let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
        let number: Number = std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?;
        (self.said.get(number as usize)?.payload == payload).then_some(number)
    }

    /// Looks at what is in the hub now.
    pub fn look(&mut self) {
        for count in self.hub.counts(None, usize::MAX).topics {
            let name = &*count.topic;
            let story = self.topics.get_mut(name).unwrap_or_else(|| panic!("a topic of nobody: {name}"));
            let (last, before) = (count.last.offset, story.last);
            story.gone = story.gone.max(last - count.messages as u64);
            if last <= before {
                continue;
            }
            story.last = last;
            let mut messages = Vec::new();
            if let Some(topic) = self.hub.find(name) {
                topic.kept_behind(before, usize::MAX, &mut messages);
            }
            self.counts.unseen += last - before - messages.len() as u64;
            for message in messages {
                let number = self.read(message.payload());
                let number = number.unwrap_or_else(|| panic!("{message:?} of {name} was published by nobody"));
                self.place(number, name, message.position());
            }
        }
    }

    /// A message stands there: somebody has seen it.
    fn place(&mut self, number: Number, topic: &str, at: Position) {
        assert_eq!(at.epoch, self.epoch(), "message {number} stands in another epoch");
        let said = &self.said[number as usize];
        assert!(said.topics.iter().any(|it| it == topic), "message {number} was not meant for {topic}");
        let story = self.topics.get_mut(topic).expect("a known topic");
        let there = *story.messages.entry(at.offset).or_insert(number);
        assert_eq!(there, number, "two messages stand at {at} of {topic}");
        let first = *self.placed.entry((number, topic.to_owned())).or_insert(at.offset);
        assert_eq!(first, at.offset, "message {number} stands twice in {topic}");
    }

    /// A publisher was told that its message stands there.
    pub fn published(&mut self, number: Number, topic: &str, at: Position, duplicate: bool) {
        self.counts.duplicates += usize::from(duplicate);
        self.place(number, topic, at);
    }

    /// A client has got a message, and was told where it stands.
    pub fn seen(&mut self, number: Number, topic: &str, at: Position) {
        self.place(number, topic, at);
    }

    pub fn end(&self, topic: &str) -> u64 {
        self.topics.get(topic).map_or(0, |story| story.last)
    }

    pub fn gone(&self, topic: &str) -> u64 {
        self.topics.get(topic).map_or(0, |story| story.gone)
    }

    /// Where a message stands in a topic.
    pub fn place_of(&self, number: Number, topic: &str) -> Option<u64> {
        self.placed.get(&(number, topic.to_owned())).copied()
    }

    pub fn topics(&self) -> Vec<String> {
        self.topics.keys().cloned().collect()
    }

    pub fn topics_of(&self, number: Number) -> &[String] {
        &self.said[number as usize].topics
    }

    /// For whom a message is.
    pub fn is_meant_for(&self, number: Number, topic: &str) -> bool {
        self.said[number as usize].topics.iter().any(|it| it == topic)
    }

    pub fn is_excluded(&self, visit: Visit, number: Number) -> bool {
        let socket = self.sockets.get(&visit);
        socket.is_some_and(|socket| self.said[number as usize].except.contains(socket))
    }

    /// The first message behind an offset, up to and with another one, that a visit is to get.
    pub fn first_for(&self, visit: Visit, topic: &str, after: u64, to: u64) -> Option<(u64, Number)> {
        if after >= to {
            return None;
        }
        let mut range = self.topics.get(topic)?.messages.range(after + 1..=to);
        range.find(|(_, number)| !self.is_excluded(visit, **number)).map(|(offset, number)| (*offset, *number))
    }

    // --- What apps do ---

    /// An app is asked about a visit, whose socket it knows by that name.
    pub fn opens(&mut self, visit: Visit, socket: &str) {
        self.sockets.insert(visit, socket.to_owned());
    }

    pub fn refuses(&mut self, visit: Visit) {
        self.refused.insert(visit);
    }

    pub fn is_refused(&self, visit: Visit) -> bool {
        self.refused.contains(&visit)
    }

    pub fn lets_join(&mut self, visit: Visit, topic: &str) {
        self.joined.entry(visit).or_default().insert(topic.to_owned());
    }

    /// What a visit may hear of though it has not asked for it.
    pub fn may_hear(&self, visit: Visit, topic: &str) -> bool {
        self.joined.get(&visit).is_some_and(|topics| topics.contains(topic))
    }

    pub fn lets_join_at_open(&mut self, visit: Visit, topic: &str) {
        self.lets_join(visit, topic);
        self.joined_at_open.entry(visit).or_default().insert(topic.to_owned());
    }

    pub fn joins_at_open(&self, visit: Visit, topic: &str) -> bool {
        self.joined_at_open.get(&visit).is_some_and(|topics| topics.contains(topic))
    }

    pub fn joins_any_at_open(&self, visit: Visit) -> bool {
        self.joined_at_open.contains_key(&visit)
    }

    /// Sockets that an app has let in, with their visits.
    pub fn sockets(&self) -> Vec<(Visit, String)> {
        self.sockets.iter().map(|(visit, socket)| (*visit, socket.clone())).collect()
    }

    /// A word to the sockets of these visits. `owed`: it must come.
    pub fn word(&mut self, to: &[Visit], owed: bool) -> Number {
        let number = self.words.len() as Number;
        self.words.push(Word { to: to.to_vec(), heard: BTreeSet::new() });
        for visit in to.iter().filter(|_| owed) {
            self.owed.entry(*visit).or_default().insert(number);
        }
        number
    }

    pub fn heard(&mut self, visit: Visit, number: Number) {
        let word = self.words.get_mut(number as usize).unwrap_or_else(|| panic!("nobody has said {number}"));
        assert!(word.to.contains(&visit), "visit {visit} has heard what was said to {:?}", word.to);
        assert!(word.heard.insert(visit), "visit {visit} has heard the word {number} twice");
        if let Some(owed) = self.owed.get_mut(&visit) {
            owed.remove(&number);
        }
    }

    /// An app has answered a message of a client.
    pub fn answers(&mut self, visit: Visit, number: u32) {
        self.answered.insert(visit, number);
    }

    /// Whether an app has answered all of so many, and all that it has said has come.
    pub fn is_answered(&self, visit: Visit, count: u32) -> bool {
        let answered = self.answered.get(&visit).copied().unwrap_or(0);
        answered >= count && self.owed.get(&visit).is_none_or(BTreeSet::is_empty)
    }

    /// All that had to be published was.
    pub fn check_end(&self) {
        if self.counts.unseen > 0 {
            return;
        }
        for (number, said) in self.said.iter().enumerate().filter(|(_, said)| said.must) {
            let missing = said.topics.iter().find(|topic| self.place_of(number as Number, topic).is_none());
            assert!(missing.is_none(), "message {number} was never published: {missing:?}");
        }
    }
}

/// How a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    Json,
}
