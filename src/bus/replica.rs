//! One of the replicas on a machine: who numbers, and who follows. sans-IO: what it does to the world it does through [`Io`].
//!
//! One of them leads: it has the lock of the directory. It numbers what is published, by whichever replica, and **gives a message to the kernel for each
//! of the others before anybody gets it**, here or there, and before whoever published it is answered. So all that was ever seen of a message outlives
//! the leader, whatever becomes of it.
//!
//! Rules:
//! - A follower is **in step** when the kernel has taken all that there was for it. The leader keeps a record of who is, which outlives it, and changes the record
//!   before it goes on without somebody. Whoever is in the record has, or will read, all that anybody has: it may lead in the same epoch.
//! - A new leader numbers nothing until those in the record have told what they have, or have had time to. What it lacks it gets from them.
//! - Whoever leads without having been in step begins a new epoch, which clients are told by a gap. So does one that meets a follower which has had, under the leader before, what it
//!   does not know.
//! - A follower that reads nothing holds up nobody: it is out of step, and when too much waits for it, its stream ends. It comes back, says what it has, and gets the rest.
//! - What was given to a leader that is gone is given to the next one, by the same number: it is published once.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::frames::{self, Frame, Said};
use super::line::{Line, Waiting};
use super::wires::{PUMP_MARK, Recent, Wire};
use crate::hub::{Epoch, Hub, Key, LoopSet, Message, Next, Notice, Payload, Position, Published, Topic, payload};
use crate::planted::{self, Bug};

/// Bytes that may wait for one link, beyond two messages; then it is cut.
const MOST_WAITING: usize = 1 << 20;
/// How long a new leader waits for those that were in step.
const GRACE: Duration = Duration::from_millis(500);
/// How long those that were not in step leave the lock to those that were.
const DEFERENCE: Duration = Duration::from_secs(1);
/// The same of those that have nothing to lose: that have followed nobody yet.
const DEFERENCE_OF_NEW: Duration = Duration::from_millis(150);
/// Replicas of a hub on a machine, at most.
pub const MOST_REPLICAS: usize = 64;

/// What a replica does to the world. Links are known by numbers that are never used again.
pub trait Io {
    /// Gives the kernel bytes for a link: how many it has taken.
    fn write(&mut self, link: usize, bytes: &[u8]) -> usize;
    /// Cuts a link, of which nothing comes any more.
    fn cut(&mut self, link: usize);
    /// Has a record outlive this process.
    fn record(&mut self, record: &Record);
    /// Tells loops that there is something to read.
    fn tell(&mut self, topic: &Arc<Topic>, loops: LoopSet);
}

/// What outlives a leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// How manieth it was.
    pub term: u64,
    /// Who it was.
    pub leader: u64,
    /// In which epoch it numbered.
    pub epoch: u64,
    /// Who may go on in it.
    pub in_step: Vec<u64>,
}

/// What it is to the others.
#[derive(Debug)]
enum Role {
    /// It looks for the leader, since then.
    Seeking(Duration),
    /// It follows over that link.
    Following { link: usize, synced: bool },
    /// It leads.
    Leading(Leading),
}

#[derive(Debug)]
struct Leading {
    followers: BTreeMap<usize, Follower>,
    /// It numbers from then on at the latest; `None`: it does.
    until: Option<Duration>,
    /// Who was in step under the leader before and has not come yet.
    awaited: Vec<u64>,
    /// Where topics stood when it began to number, and all others at most.
    began: (HashMap<Box<str>, u64>, u64),
    recorded: Vec<u64>,
}

#[derive(Debug)]
struct Follower {
    me: u64,
    name: String,
    /// The epoch and the term of what it has.
    has: (u64, u64),
    haves: HashMap<Box<str>, u64>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// It says what it has.
    Saying,
    /// It gives what the leader lacks.
    Giving,
    /// The leader does not number yet.
    Waits,
    /// It gets what it lacks.
    Syncing(Sync),
    /// It gets what is published.
    Live,
}

/// What a follower lacks.
#[derive(Debug, Default)]
struct Sync {
    ids: Vec<(Key, Position, u64)>,
    topics: VecDeque<(Arc<Topic>, u64)>,
}

/// See the module.
#[derive(Debug)]
pub struct Replica {
    hub: Arc<Hub>,
    me: u64,
    name: String,
    role: Role,
    /// The term under which it has what it has; 0: it was alone.
    term: u64,
    wires: HashMap<usize, Wire>,
    line: Line,
    recent: Recent,
}

impl Replica {
    /// One of that number, which is nobody else's and not 0, and of that name, for people. The hub is carried from now on.
    pub fn new(now: Duration, hub: Arc<Hub>, me: u64, name: &str) -> Replica {
        hub.set_carried(true);
        let name = name.chars().take(200).collect();
        Replica {
            hub,
            me,
            name,
            role: Role::Seeking(now),
            term: 0,
            wires: HashMap::new(),
            line: Line::default(),
            recent: Recent::default(),
        }
    }

    /// Whether it looks for a leader.
    pub fn seeks(&self) -> bool {
        matches!(self.role, Role::Seeking(_))
    }

    /// Whether it leads.
    pub fn leads(&self) -> bool {
        matches!(self.role, Role::Leading(_))
    }

    /// Whether it takes part: it numbers, or has all that there is.
    pub fn is_settled(&self) -> bool {
        match &self.role {
            Role::Seeking(_) => false,
            Role::Following { synced, .. } => *synced,
            Role::Leading(leading) => leading.until.is_none(),
        }
    }

    /// Those that follow it, by their names.
    pub fn followers(&self) -> Vec<String> {
        match &self.role {
            Role::Leading(leading) => leading.followers.values().map(|follower| follower.name.clone()).collect(),
            _ => Vec::new(),
        }
    }

    /// Messages that wait to be numbered.
    pub fn waiting(&self) -> usize {
        self.line.len()
    }

    /// Bytes that wait for links.
    #[cfg(test)]
    pub fn left(&self) -> usize {
        self.wires.values().map(Wire::left).sum()
    }

    /// When something is due without anything happening.
    pub fn due(&self) -> Option<Duration> {
        let until = match &self.role {
            Role::Leading(leading) => leading.until,
            _ => None,
        };
        [until, self.line.due()].into_iter().flatten().min()
    }

    /// Whether it may take the lock if it can have it.
    pub fn may_lead(&self, now: Duration, record: &Record) -> bool {
        let Role::Seeking(since) = self.role else { return false };
        let deference = if self.term == 0 { DEFERENCE_OF_NEW } else { DEFERENCE };
        let is_in_step = record.in_step.contains(&self.me) || record.leader == self.me;
        is_in_step || *record == Record::default() || now >= since + deference
    }

    /// It has the lock, and leads from now on; the record is that of the leader before.
    pub fn lead(&mut self, now: Duration, record: &Record, io: &mut impl Io) {
        let goes_on = record.in_step.contains(&self.me) && record.epoch == self.hub.epoch().0;
        if self.term > 0 && !goes_on && record.leader != self.me {
            self.begin_epoch(now, io);
        }
        self.term = record.term + 1;
        let mut awaited = if goes_on { record.in_step.clone() } else { Vec::new() };
        awaited.retain(|other| *other != self.me);
        let until = Some(if awaited.is_empty() { now } else { now + GRACE });
        self.role = Role::Leading(Leading {
            followers: BTreeMap::new(),
            until,
            awaited,
            began: Default::default(),
            recorded: Vec::new(),
        });
        self.line.again();
        self.tick(now, io);
    }

    /// The leader can be reached over that link.
    pub fn follow(&mut self, link: usize, io: &mut impl Io) {
        self.wires.insert(link, Wire::default());
        self.role = Role::Following { link, synced: false };
        let hello = Frame::Hello { me: self.me, epoch: self.hub.epoch().0, term: self.term, name: &self.name.clone() };
        self.put(link, &hello);
        for (topic, last) in self.hub.lasts() {
            self.put(link, &Frame::Have { topic: topic.name(), last });
        }
        self.put(link, &Frame::Haves);
        self.flush(link, io);
    }

    /// Somebody wants to follow over that link. Whether it may.
    pub fn accept(&mut self, link: usize) -> bool {
        let Role::Leading(leading) = &mut self.role else { return false };
        if leading.followers.len() >= MOST_REPLICAS {
            return false;
        }
        // From here on every number is given by this thread.
        self.hub.set_carried(true);
        self.wires.insert(link, Wire::default());
        let (name, haves) = (String::new(), HashMap::new());
        leading.followers.insert(link, Follower { me: 0, name, has: (0, 0), haves, stage: Stage::Saying });
        true
    }

    /// A link is gone.
    pub fn closed(&mut self, now: Duration, link: usize, io: &mut impl Io) {
        if self.wires.remove(&link).is_none() {
            return;
        }
        match &mut self.role {
            Role::Following { link: own, .. } if *own == link => {
                self.role = Role::Seeking(now);
                self.line.again();
            }
            Role::Leading(leading) => {
                if let Some(follower) = leading.followers.remove(&link) {
                    leading.awaited.retain(|other| *other != follower.me);
                }
                self.record(io);
                self.tick(now, io);
            }
            _ => {}
        }
    }

    /// A link takes more.
    pub fn drained(&mut self, now: Duration, link: usize, io: &mut impl Io) {
        self.flush(link, io);
        self.pump(now, link, io);
        self.record(io);
        self.give_away(now, io);
    }

    /// Bytes have come over a link.
    pub fn received(&mut self, now: Duration, link: usize, bytes: &[u8], io: &mut impl Io) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        let mut input = std::mem::take(&mut wire.input);
        input.extend_from_slice(bytes);
        let mut at = 0;
        while self.wires.contains_key(&link) {
            let understood = match frames::take(&input[at..], frames::MOST) {
                Ok(None) => break,
                Ok(Some((frame, length))) => {
                    at += length;
                    self.hear(now, link, frame, io)
                }
                Err(frames::Broken) => None,
            };
            if understood.is_none() {
                io.cut(link);
                return self.closed(now, link, io);
            }
        }
        input.drain(..at);
        if let Some(wire) = self.wires.get_mut(&link) {
            wire.input = input;
        }
        self.give_away(now, io);
    }

    /// Something is to be published.
    pub fn carry(&mut self, now: Duration, notice: Notice, io: &mut impl Io) {
        self.line.push(now, notice);
        self.give_away(now, io);
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Duration, io: &mut impl Io) {
        if let Role::Leading(leading) = &mut self.role
            && leading.until.is_some_and(|until| now >= until || leading.awaited.is_empty())
            && !leading.followers.values().any(|it| matches!(it.stage, Stage::Giving) && leading.until > Some(now))
        {
            leading.until = None;
            let topics = self.hub.lasts().into_iter().map(|(topic, last)| (topic.name().into(), last));
            leading.began = (topics.collect(), self.hub.floor());
            let waits: Vec<usize> = leading.followers.keys().copied().collect();
            self.record_anew(io);
            for link in waits {
                self.sync(now, link, io);
            }
        }
        self.give_away(now, io);
        self.line.expire(now);
        if let Role::Leading(Leading { followers, until: None, .. }) = &self.role
            && followers.is_empty()
            && self.line.len() == 0
        {
            // Alone: whoever publishes numbers for itself.
            self.hub.set_carried(false);
        }
    }

    /// Another epoch, which is nobody's yet; whoever listens is told of the gap.
    fn begin_epoch(&mut self, now: Duration, io: &mut impl Io) {
        let drawn = (now.as_nanos() as u64 ^ self.me).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 36;
        self.hub.begin(Epoch(self.hub.epoch().0 + 1 + drawn));
        self.recent = Recent::default();
        self.tell_all(io);
    }

    fn tell_all(&self, io: &mut impl Io) {
        self.hub.tell_all().iter().for_each(|(topic, tell)| io.tell(topic, *tell));
    }

    /// What a frame asks for; `None`: it breaks the rules.
    fn hear(&mut self, now: Duration, link: usize, frame: Frame<'_>, io: &mut impl Io) -> Option<()> {
        match &self.role {
            Role::Following { link: own, .. } if *own == link => self.hear_leader(now, link, frame, io),
            Role::Leading(_) => self.hear_follower(now, link, frame, io),
            _ => None,
        }
    }

    fn hear_leader(&mut self, now: Duration, link: usize, frame: Frame<'_>, io: &mut impl Io) -> Option<()> {
        match frame {
            Frame::Want { topic, after } => {
                if let Some(topic) = self.hub.find(topic) {
                    self.give(now, link, &topic, after);
                }
            }
            Frame::Wants => {
                self.put(link, &Frame::Given);
                self.flush(link, io);
            }
            Frame::Welcome { epoch, term, floor } => {
                self.hub.begin(Epoch(epoch));
                self.hub.raise_floor(floor);
                self.term = term;
            }
            Frame::Known { key, epoch, offset, age } if !planted::active(Bug::UnlearnedIds) => {
                self.hub.learn(now, key, Position { epoch: Epoch(epoch), offset }, age);
            }
            Frame::Known { .. } => {}
            Frame::Stands { topic, last } => self.hub.reach(topic, last),
            Frame::Synced => {
                if let Role::Following { synced, .. } = &mut self.role {
                    *synced = true;
                }
                // Another epoch may have begun with that.
                self.tell_all(io);
            }
            Frame::Message { .. } => self.take_in(now, frame, io),
            Frame::Numbered { request, epoch, offset, first, duplicate } => {
                let position = Position { epoch: Epoch(epoch), offset };
                let waiting = self.line.take(request)?;
                self.numbered(now, waiting, Next { position, first }, duplicate, io);
            }
            Frame::Refused { request, why } => self.line.take(request)?.answer(Err(why)),
            _ => return None,
        }
        Some(())
    }

    /// Puts in what another has numbered.
    fn take_in(&mut self, now: Duration, frame: Frame<'_>, io: &mut impl Io) {
        let Frame::Message { origin, request, first, offset, age, said } = frame else { return };
        let Some(payload) = payload(said.kind, said.payload) else { return };
        let position = Position { epoch: self.hub.epoch(), offset };
        let id = Some(said.id).filter(|id| !id.is_empty());
        let at = now.saturating_sub(Duration::from_micros(age));
        self.recent.put(origin, request, said.topic, offset);
        // What there is no room for, or is too long here, is missing, and whoever reads is told so.
        if let Ok(published) = self.hub.append_next(at, said.topic, Next { position, first }, payload, id, &[])
            && let Some(topic) = self.hub.find(said.topic)
        {
            io.tell(&topic, published.tell);
        }
    }

    /// What this replica wanted published has its number.
    fn numbered(&mut self, now: Duration, waiting: Waiting, next: Next, duplicate: bool, io: &mut impl Io) {
        let Notice { topic, id, except, .. } = &waiting.notice;
        let find = || self.hub.find(topic);
        let subscribers = || self.hub.subscribers(topic);
        let published = Published { position: next.position, subscribers: 0, duplicate, tell: LoopSet::default() };
        if duplicate {
            let subscribers = subscribers();
            return waiting.answer(Ok(Published { subscribers, ..published }));
        }
        let put = self.hub.append_next(now, topic, next, waiting.notice.said(), id.as_deref(), except);
        let mut outcome = published;
        if let Ok(put) = put {
            outcome.subscribers = put.subscribers;
            find().iter().for_each(|topic| io.tell(topic, put.tell));
        }
        waiting.answer(Ok(outcome));
    }

    /// Gives what is kept of a topic behind a number, and where it stands.
    fn give(&mut self, now: Duration, link: usize, topic: &Arc<Topic>, after: u64) {
        let mut messages = Vec::new();
        topic.kept_behind(after, usize::MAX, &mut messages);
        messages.iter().for_each(|message| self.put_kept(now, link, message));
        self.put(link, &Frame::Stands { topic: topic.name(), last: topic.last() });
    }

    fn put_kept(&mut self, now: Duration, link: usize, message: &Message) {
        let offset = message.position().offset;
        let (origin, request) = self.recent.origin(message.topic(), offset);
        let said = Said { topic: message.topic(), kind: message.kind(), id: "", payload: message.payload() };
        let age = message.age(now);
        self.put(link, &Frame::Message { origin, request, first: false, offset, age, said });
    }

    fn hear_follower(&mut self, now: Duration, link: usize, frame: Frame<'_>, io: &mut impl Io) -> Option<()> {
        let Role::Leading(leading) = &mut self.role else { return None };
        let numbers = leading.until.is_none();
        let follower = leading.followers.get_mut(&link)?;
        match (frame, &follower.stage) {
            (Frame::Hello { me, epoch, term, name }, Stage::Saying) if follower.me == 0 && me != 0 => {
                (follower.me, follower.has, follower.name) = (me, (epoch, term), name.to_owned());
            }
            (Frame::Have { topic, last }, Stage::Saying) if follower.me != 0 => {
                if follower.haves.len() > self.hub.settings().most_topics {
                    return None;
                }
                if follower.has.0 == self.hub.epoch().0 {
                    follower.haves.insert(topic.into(), last);
                }
            }
            (Frame::Haves, Stage::Saying) if follower.me != 0 => self.has_said(now, link, numbers, io),
            (Frame::Message { .. }, Stage::Giving) => self.take_in(now, frame, io),
            (Frame::Stands { topic, last }, Stage::Giving) => self.hub.reach(topic, last),
            (Frame::Given, Stage::Giving) => self.has_given(now, link, io),
            (Frame::Publish { request, said }, Stage::Live) => self.publish_for(now, link, request, said, io),
            _ => return None,
        }
        Some(())
    }

    /// A follower has said what it has.
    fn has_said(&mut self, now: Duration, link: usize, numbers: bool, io: &mut impl Io) {
        let Role::Leading(leading) = &mut self.role else { return };
        let Some(follower) = leading.followers.get_mut(&link) else { return };
        let is_of_epoch = follower.has.0 == self.hub.epoch().0;
        let haves = || follower.haves.iter().map(|(topic, last)| (&**topic, *last));
        let knows_more = |(topic, last): (&str, u64)| {
            let own = self.hub.find(topic).map_or_else(|| self.hub.floor(), |topic| topic.last());
            (last > own).then(|| (topic.to_owned(), own))
        };
        let lacks: Vec<_> = if is_of_epoch { haves().filter_map(knows_more).collect() } else { Vec::new() };
        let (topics, floor) = &leading.began;
        let is_known = |(topic, last): (&str, u64)| last <= topics.get(topic).copied().unwrap_or(*floor).max(*floor);
        let is_sound = match (follower.has.1, self.term.saturating_sub(follower.has.1)) {
            (0, _) | (_, 0) => lacks.is_empty() || !numbers,
            (_, 1) => !numbers || haves().all(is_known),
            _ => false,
        };
        if is_of_epoch && !is_sound {
            // It may have had what nobody else knows, under numbers that others have by now.
            return self.begin_anew(now, io);
        }
        if numbers {
            follower.stage = Stage::Waits;
            return self.sync(now, link, io);
        }
        follower.stage = Stage::Giving;
        for (topic, after) in &lacks {
            self.put(link, &Frame::Want { topic, after: *after });
        }
        self.put(link, &Frame::Wants);
        self.flush(link, io);
    }

    /// All that a new leader lacked has come from a follower.
    fn has_given(&mut self, now: Duration, link: usize, io: &mut impl Io) {
        let Role::Leading(leading) = &mut self.role else { return };
        if let Some(follower) = leading.followers.get_mut(&link) {
            follower.stage = Stage::Waits;
            leading.awaited.retain(|other| *other != follower.me);
        }
        if leading.until.is_none() {
            return self.sync(now, link, io);
        }
        self.tick(now, io);
    }

    /// Another epoch, of which all followers hear when they come back.
    fn begin_anew(&mut self, now: Duration, io: &mut impl Io) {
        self.begin_epoch(now, io);
        let Role::Leading(leading) = &mut self.role else { return };
        leading.began = Default::default();
        let links: Vec<usize> = std::mem::take(&mut leading.followers).into_keys().collect();
        for link in links {
            self.wires.remove(&link);
            io.cut(link);
        }
        self.record_anew(io);
        self.tick(now, io);
    }

    /// Begins to give a follower what it lacks, if the leader numbers by now.
    fn sync(&mut self, now: Duration, link: usize, io: &mut impl Io) {
        let (term, epoch, floor) = (self.term, self.hub.epoch().0, self.hub.floor());
        let Role::Leading(Leading { followers, until: None, .. }) = &mut self.role else { return };
        let Some(follower) = followers.get_mut(&link).filter(|it| matches!(it.stage, Stage::Waits)) else { return };
        let haves = std::mem::take(&mut follower.haves);
        let lacks = |(topic, last): (Arc<Topic>, u64)| {
            let has = haves.get(topic.name()).copied().unwrap_or_default();
            (has < last).then_some((topic, has))
        };
        let topics = self.hub.lasts().into_iter().filter_map(lacks).collect();
        follower.stage = Stage::Syncing(Sync { ids: self.hub.ids(now), topics });
        self.put(link, &Frame::Welcome { epoch, term, floor });
        self.pump(now, link, io);
        self.record(io);
    }

    /// Gives a follower more of what it lacks, as far as it takes it.
    fn pump(&mut self, now: Duration, link: usize, io: &mut impl Io) {
        loop {
            self.flush(link, io);
            let Role::Leading(leading) = &mut self.role else { return };
            let Some(follower) = leading.followers.get_mut(&link) else { return };
            let Stage::Syncing(sync) = &mut follower.stage else { return };
            if self.wires.get(&link).is_none_or(|wire| wire.left() > PUMP_MARK) {
                return;
            }
            // The oldest first, as they are forgotten.
            let ids: Vec<_> = sync.ids.drain(..sync.ids.len().min(512)).collect();
            let mut messages = Vec::new();
            let mut stands = None;
            if ids.is_empty()
                && let Some((topic, after)) = sync.topics.front_mut()
            {
                if topic.kept_behind(*after, PUMP_MARK, &mut messages) {
                    *after = messages.last().map_or(*after, |message| message.position().offset);
                } else {
                    stands = sync.topics.pop_front().map(|(topic, _)| topic);
                }
            } else if ids.is_empty() {
                follower.stage = Stage::Live;
                self.put(link, &Frame::Synced);
                return self.flush(link, io);
            }
            for (key, Position { epoch, offset }, age) in ids {
                self.put(link, &Frame::Known { key, epoch: epoch.0, offset, age });
            }
            messages.iter().for_each(|message| self.put_kept(now, link, message));
            if let Some(topic) = stands {
                self.put(link, &Frame::Stands { topic: topic.name(), last: topic.last() });
            }
        }
    }

    /// A follower wants something published.
    fn publish_for(&mut self, now: Duration, link: usize, request: u64, said: Said<'_>, io: &mut impl Io) {
        let Role::Leading(leading) = &self.role else { return };
        let Some(me) = leading.followers.get(&link).map(|follower| follower.me) else { return };
        let Some(payload) = payload(said.kind, said.payload) else { return };
        let epoch = self.hub.epoch().0;
        let numbered = |offset, first, duplicate| Frame::Numbered { request, epoch, offset, first, duplicate };
        if let Some((_, offset)) = self.recent.by.get(&(me, request))
            && !planted::active(Bug::PublishedAgain)
        {
            // Under the leader before, and it has the message.
            let frame = numbered(*offset, false, false);
            self.put(link, &frame);
            return self.flush(link, io);
        }
        let id = Some(said.id).filter(|id| !id.is_empty());
        match self.hub.next(now, said.topic, payload, id) {
            Ok(Ok(next)) => {
                self.recent.put(me, request, said.topic, next.position.offset);
                self.put(link, &numbered(next.position.offset, next.first, false));
                let outcome = self.spread(now, (link, me, request), said, payload, next, &[], io);
                outcome.iter().for_each(|(topic, published)| io.tell(topic, published.tell));
            }
            Ok(Err(position)) => {
                let (epoch, offset) = (position.epoch.0, position.offset);
                self.put(link, &Frame::Numbered { request, epoch, offset, first: false, duplicate: true });
                self.flush(link, io);
            }
            Err(why) => {
                self.put(link, &Frame::Refused { request, why });
                self.flush(link, io);
            }
        }
    }

    /// Gives a message to all followers, and then puts it in. `from`: the link that has its own frame of it already.
    #[allow(clippy::too_many_arguments, reason = "a message and where it comes from")]
    fn spread(
        &mut self,
        now: Duration,
        (from, origin, request): (usize, u64, u64),
        said: Said<'_>,
        payload: Payload<'_>,
        next: Next,
        except: &[u128],
        io: &mut impl Io,
    ) -> Option<(Arc<Topic>, Published)> {
        let (first, offset) = (next.first, next.position.offset);
        let id = Some(said.id).filter(|id| !id.is_empty());
        let Role::Leading(leading) = &self.role else { return None };
        let of = |(link, follower): (&usize, &Follower)| {
            (*link, matches!(follower.stage, Stage::Live), matches!(follower.stage, Stage::Syncing(_)))
        };
        let links: Vec<_> = leading.followers.iter().map(of).collect();
        for (link, is_live, syncs) in &links {
            if *is_live && *link != from {
                self.put(*link, &Frame::Message { origin, request, first, offset, age: 0, said });
            } else if *syncs && let Some(id) = id {
                let key = Hub::key_of(said.topic, id);
                self.put(*link, &Frame::Known { key, epoch: next.position.epoch.0, offset, age: 0 });
            }
            self.flush(*link, io);
        }
        // Whoever has not got it is out of step before anybody gets it from here.
        self.record(io);
        let put = self.hub.append_next(now, said.topic, next, payload, id, except).ok();
        let topic = self.hub.find(said.topic)?;
        let Role::Leading(leading) = &mut self.role else { return None };
        for follower in leading.followers.values_mut() {
            if let Stage::Syncing(sync) = &mut follower.stage
                && !sync.topics.iter().any(|(queued, _)| Arc::ptr_eq(queued, &topic))
            {
                sync.topics.push_back((topic.clone(), offset - 1));
            }
        }
        Some((topic, put?))
    }

    /// Gives what waits to who numbers it.
    fn give_away(&mut self, now: Duration, io: &mut impl Io) {
        match &self.role {
            Role::Seeking(_) => {}
            Role::Following { link, synced } => {
                let (link, synced) = (*link, *synced);
                while synced
                    && self.wires.get(&link).is_some_and(|wire| wire.left() <= PUMP_MARK)
                    && let Some(waiting) = self.line.unsent()
                {
                    waiting.sent = true;
                    let Notice { topic, kind, payload, id, .. } = &waiting.notice;
                    let said = Said { topic, kind: *kind, id: id.as_deref().unwrap_or_default(), payload };
                    let frame = Frame::Publish { request: waiting.request, said };
                    if let Some(wire) = self.wires.get_mut(&link) {
                        wire.put(&frame);
                    }
                    self.flush(link, io);
                }
            }
            Role::Leading(leading) if leading.until.is_none() => {
                while let Some(waiting) = self.line.pop() {
                    self.publish_own(now, waiting, io);
                }
            }
            Role::Leading(_) => {}
        }
    }

    /// The leader publishes for itself.
    fn publish_own(&mut self, now: Duration, waiting: Waiting, io: &mut impl Io) {
        let Role::Leading(leading) = &self.role else { return };
        let notice = &waiting.notice;
        let before = self.recent.by.get(&(self.me, waiting.request)).map(|(_, offset)| *offset);
        if let Some(offset) = before {
            // Under the leader before, and it has come from another follower.
            let position = Position { epoch: self.hub.epoch(), offset };
            return self.numbered(now, waiting, Next { position, first: false }, false, io);
        }
        if leading.followers.is_empty() {
            let published = self.hub.publish_carried(now, notice);
            if let (Ok(published), Some(topic)) = (&published, self.hub.find(&notice.topic)) {
                io.tell(&topic, published.tell);
            }
            return waiting.answer(published);
        }
        let id = notice.id.as_deref();
        match self.hub.next(now, &notice.topic, notice.said(), id) {
            Ok(Ok(next)) => {
                let Notice { topic, kind, payload, except, .. } = notice;
                let said = Said { topic, kind: *kind, id: id.unwrap_or_default(), payload };
                let whose = (usize::MAX, self.me, waiting.request);
                let outcome = self.spread(now, whose, said, notice.said(), next, except, io);
                let none =
                    Published { position: next.position, subscribers: 0, duplicate: false, tell: LoopSet::default() };
                let published = outcome.as_ref().map_or(none, |(_, published)| *published);
                outcome.iter().for_each(|(topic, published)| io.tell(topic, published.tell));
                waiting.answer(Ok(published));
            }
            Ok(Err(position)) => {
                let subscribers = self.hub.subscribers(&notice.topic);
                let tell = LoopSet::default();
                waiting.answer(Ok(Published { position, subscribers, duplicate: true, tell }));
            }
            Err(why) => waiting.answer(Err(why)),
        }
    }

    fn put(&mut self, link: usize, frame: &Frame<'_>) {
        if let Some(wire) = self.wires.get_mut(&link) {
            wire.put(frame);
        }
    }

    /// Gives the kernel what it takes.
    fn flush(&mut self, link: usize, io: &mut impl Io) {
        let Some(wire) = self.wires.get_mut(&link) else { return };
        wire.flush(|bytes| io.write(link, bytes));
    }

    /// Has the record say who is in step, and cuts who is too far behind.
    fn record(&mut self, io: &mut impl Io) {
        let Role::Leading(leading) = &mut self.role else { return };
        if leading.until.is_some() {
            return;
        }
        let left = |link: &usize| self.wires.get(link).map_or(usize::MAX, Wire::left);
        let is_in_step = |(link, it): (&usize, &Follower)| {
            let has_all = left(link) == 0 || planted::active(Bug::StaleRecord);
            (matches!(it.stage, Stage::Live) && has_all).then_some(it.me)
        };
        let in_step: Vec<u64> = leading.followers.iter().filter_map(is_in_step).collect();
        // Two of the longest messages that it was given, whether they are longer than one may be by now or not.
        let most = |link: &usize| MOST_WAITING + 2 * self.wires.get(link).map_or(0, |wire| wire.longest);
        let late: Vec<usize> = leading.followers.keys().copied().filter(|link| left(link) > most(link)).collect();
        for link in late {
            leading.followers.remove(&link);
            self.wires.remove(&link);
            io.cut(link);
        }
        if in_step != leading.recorded {
            leading.recorded = in_step;
            self.write_record(io);
        }
    }

    /// The record of a leader that begins.
    fn record_anew(&mut self, io: &mut impl Io) {
        if let Role::Leading(leading) = &mut self.role {
            leading.recorded = Vec::new();
        }
        self.write_record(io);
    }

    fn write_record(&mut self, io: &mut impl Io) {
        let Role::Leading(leading) = &self.role else { return };
        let in_step = leading.recorded.clone();
        io.record(&Record { term: self.term, leader: self.me, epoch: self.hub.epoch().0, in_step });
    }
}
