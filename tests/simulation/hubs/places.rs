//! Where a client that listens stands in each of its topics, by what it was sent: every message behind that once and in order, or a gap that says exactly
//! what is not there for it.

use std::collections::{BTreeMap, BTreeSet};

use production_server::hub::{Position, Positions};

use super::record::{Number, Record, Visit};

/// A place in a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Between these two: nobody has told it where exactly.
    Between(u64, u64),
    /// It has said that it comes from there, which is nowhere in this hub: a gap from there comes first of all.
    From(Position),
}

#[derive(Clone, Copy, Debug)]
struct Stand {
    place: Place,
    /// Nothing has come of the topic yet.
    fresh: bool,
}

/// Where a visit stands.
pub struct Places {
    visit: Visit,
    all: BTreeMap<String, Stand>,
    /// It has come with an id.
    came_back: Option<String>,
    /// Topics that its app has had it join when it let it in, as far as they were seen to begin; and those that it has left since.
    begun: BTreeSet<String>,
    left: BTreeSet<String>,
}

/// Where one stands in a topic that comes with that id, among so many topics.
fn said_of(id: &str, topic: &str, alone: bool) -> Position {
    let single = id.parse().ok().filter(|_| alone);
    single.unwrap_or_else(|| id.parse::<Positions>().map_or(Position::NOWHERE, |positions| positions.of(topic)))
}

impl Places {
    /// Of a visit to these topics, which comes with that id or begins now.
    pub fn new(record: &Record, visit: Visit, topics: &[String], id: Option<&str>) -> Places {
        let [begun, left] = [BTreeSet::new(), BTreeSet::new()];
        let mut places = Places { visit, all: BTreeMap::new(), came_back: id.map(str::to_owned), begun, left };
        for topic in topics {
            match id {
                Some(id) => places.begin_after(record, topic, said_of(id, topic, topics.len() == 1)),
                None => places.begin(topic, record.end(topic), u64::MAX),
            }
        }
        places
    }

    pub fn visit(&self) -> Visit {
        self.visit
    }

    /// It begins in a topic, somewhere between these two.
    pub fn begin(&mut self, topic: &str, from: u64, to: u64) {
        self.all.insert(topic.to_owned(), Stand { place: Place::Between(from, to), fresh: true });
    }

    /// It begins in a topic, behind that.
    pub fn begin_after(&mut self, record: &Record, topic: &str, at: Position) {
        // From beyond the end is nowhere, too.
        let is_there = at.epoch == record.epoch() && at.offset <= record.end(topic);
        let place = if is_there { Place::Between(at.offset, at.offset) } else { Place::From(at) };
        self.all.insert(topic.to_owned(), Stand { place, fresh: true });
    }

    /// What begins now has begun by now.
    pub fn has_begun(&mut self, record: &Record) {
        for (topic, stand) in &mut self.all {
            if let Place::Between(_, to) = &mut stand.place {
                *to = (*to).min(record.end(topic));
            }
        }
    }

    pub fn has(&self, topic: &str) -> bool {
        self.all.contains_key(topic)
    }

    pub fn topics(&self) -> Vec<String> {
        self.all.keys().cloned().collect()
    }

    pub fn leave(&mut self, topic: &str) {
        self.all.remove(topic);
        self.left.insert(topic.to_owned());
    }

    fn may_hear(&self, record: &Record, topic: &str) -> bool {
        record.may_hear(self.visit, topic) && !self.left.contains(topic)
    }

    /// Its app has had it join a topic: from where it has left that, if it has come back just now, else from there.
    pub fn joins(&mut self, record: &Record, topic: &str, at: Option<Position>) {
        self.left.remove(topic);
        let is_first = record.joins_at_open(self.visit, topic) && self.begun.insert(topic.to_owned());
        match (self.came_back.clone().filter(|_| is_first), at) {
            (Some(id), _) => self.begin_after(record, topic, said_of(&id, topic, false)),
            (None, Some(at)) => self.begin_after(record, topic, at),
            (None, None) => self.begin(topic, 0, u64::MAX),
        }
    }

    fn stand(&mut self, record: &Record, topic: &str) -> &mut Stand {
        if !self.all.contains_key(topic) {
            let visit = self.visit;
            assert!(self.may_hear(record, topic), "visit {visit} hears of {topic}, which it does not listen to");
            self.joins(record, topic, None);
        }
        self.all.get_mut(topic).expect("it is there by now")
    }

    /// A message has come.
    pub fn message(&mut self, record: &mut Record, topic: &str, offset: u64, number: Number) {
        let visit = self.visit;
        assert!(!record.is_excluded(visit, number), "visit {visit} got {number}, which is not for it");
        let stand = self.stand(record, topic);
        let Place::Between(from, to) = stand.place else {
            panic!("visit {visit} got {number} of {topic} before it was told of its gap: {stand:?}")
        };
        assert!(offset > from, "visit {visit} got {number} of {topic} again, or too late: {offset} behind {from}");
        if let Some((missing, other)) = record.first_for(visit, topic, to, offset - 1) {
            panic!(
                "visit {visit} lacks {other} of {topic}, at {missing}, before {offset}, and nobody said so: {stand:?}"
            );
        }
        *stand = Stand { place: Place::Between(offset, offset), fresh: false };
        record.counts.delivered += 1;
    }

    /// A message has come, and nobody has told of which topic it is.
    pub fn bare_message(&mut self, record: &mut Record, number: Number) {
        let topics: Vec<String> = {
            let mut topics = self.topics();
            topics.extend(record.topics_of(number).iter().filter(|it| self.may_hear(record, it)).cloned());
            topics.into_iter().filter(|topic| record.is_meant_for(number, topic)).collect()
        };
        let is_next = |topic: &&String| {
            let at = record.place_of(number, topic);
            match self.all.get(*topic).map(|stand| stand.place) {
                Some(Place::Between(from, _)) => at.is_none_or(|at| at > from),
                _ => true,
            }
        };
        let Some(topic) = topics.iter().find(is_next).or(topics.first()) else {
            panic!("visit {} got {number}, which is of none of its topics", self.visit)
        };
        match record.place_of(number, topic) {
            Some(offset) => self.message(record, topic, offset, number),
            // It came and went unseen.
            None => {
                let Stand { place, .. } = self.stand(record, topic);
                if let Place::Between(_, to) = place {
                    *to = u64::MAX;
                }
            }
        }
    }

    /// In which topic a message stands, and where, by the id that comes with it.
    pub fn told_by(&self, record: &Record, id: &str, number: Number) -> (String, Position) {
        let alone = id.parse::<Position>().is_ok();
        let said = |topic: &String| {
            let at = said_of(id, topic, alone);
            let is_there = record.place_of(number, topic).is_none_or(|offset| offset == at.offset);
            (record.is_meant_for(number, topic) && at != Position::NOWHERE && is_there).then_some((topic.clone(), at))
        };
        // In none of the others does anything new stand there.
        let is_new = |(topic, at): &(String, Position)| match self.all.get(topic).map(|stand| stand.place) {
            Some(Place::Between(_, to)) if to != u64::MAX => at.offset > to,
            _ => true,
        };
        let topics: Vec<String> = if alone { self.topics() } else { record.topics() };
        let all: Vec<_> = topics.iter().filter_map(said).collect();
        let found = all.iter().find(|one| is_new(one)).or(all.first()).cloned();
        found.unwrap_or_else(|| panic!("visit {} got {number} with {id}, and it stands nowhere there", self.visit))
    }

    /// It was told where it stands.
    pub fn stands(&mut self, record: &Record, topic: &str, at: Position) {
        let visit = self.visit;
        let stand = self.stand(record, topic);
        let Place::Between(from, to) = stand.place else {
            // Until it is told of its gap nothing is said of it, or what it has said itself.
            assert!(stand.place == Place::From(at) || at == Position::NOWHERE, "visit {visit}: {topic} at {at}");
            return;
        };
        assert_eq!(at.epoch, record.epoch(), "visit {visit}: {topic} stands in another epoch");
        assert!(at.offset >= from, "visit {visit} was at {from} of {topic}, and is told {at}");
        if let Some((missing, number)) = record.first_for(visit, topic, to, at.offset) {
            panic!(
                "visit {visit} is told that it stands at {at} of {topic}, and lacks {number} at {missing}: {stand:?}"
            );
        }
        stand.place = Place::Between(at.offset, at.offset);
    }

    /// Where it stands in all topics, as an id says.
    pub fn all_stand(&mut self, record: &Record, id: &str) {
        if let (Ok(at), [topic]) = (id.parse(), &self.topics()[..]) {
            return self.stands(record, topic, at);
        }
        let positions: Positions = id.parse().unwrap_or_else(|_| panic!("no id: {id}"));
        let is_elsewhere = self.all.values().any(|stand| matches!(stand.place, Place::From(_)));
        for topic in record.topics() {
            let at = positions.of(&topic);
            // An id is of one epoch, and may be of that from which it comes.
            if at != Position::NOWHERE || self.has(&topic) && !is_elsewhere {
                self.stands(record, &topic, at);
            }
        }
    }

    /// It was told that messages are missing.
    pub fn gap(&mut self, record: &mut Record, topic: &str, from: Position, to: Position) {
        let (visit, keeps_none) = (self.visit, record.keeps_none);
        let (gone, epoch, end) = (record.gone(topic), record.epoch(), record.end(topic));
        let stand = self.stand(record, topic);
        match stand.place {
            Place::From(said) => assert_eq!(from, said, "visit {visit} is told of a gap in {topic} from elsewhere"),
            Place::Between(low, high) => {
                let is_there = from.epoch == epoch && from.offset >= low;
                assert!(is_there, "visit {visit} is told of a gap in {topic} from {from}: {stand:?}");
                if let Some((missing, number)) = record.first_for(visit, topic, high, from.offset) {
                    panic!(
                        "visit {visit} lacks {number} at {missing} of {topic} before its gap from {from}: {stand:?}"
                    );
                }
            }
        }
        assert!(from != to && to.epoch == epoch, "visit {visit} is told of a gap in {topic} from {from} to {to}");
        let at_once = stand.fresh && keeps_none && to.offset <= end;
        let is_beyond = from.epoch == epoch && from.offset > to.offset && to.offset <= end;
        let is_exact = to.offset <= gone || at_once || is_beyond;
        assert!(is_exact, "visit {visit} is told of a gap in {topic} from {from} to {to}, and only {gone} are gone");
        *stand = Stand { place: Place::Between(to.offset, to.offset), fresh: false };
        record.counts.gaps += 1;
    }

    /// Its socket, which is bare, was closed because messages are missing.
    pub fn ended_by_gap(&self, record: &mut Record) {
        let lacks = |(topic, stand): (&String, &Stand)| match stand.place {
            Place::From(_) => true,
            Place::Between(from, _) => {
                from < record.gone(topic) || record.keeps_none && stand.fresh && from < record.end(topic)
            }
        };
        let joins = self.came_back.is_some() && record.joins_any_at_open(self.visit);
        assert!(joins || self.all.iter().any(lacks), "visit {} lacks nothing: {:?}", self.visit, self.all);
        record.counts.bare_gaps += 1;
    }

    /// What it lacks still, if anything, though it has had time enough.
    pub fn lacks(&self, record: &Record) -> Option<String> {
        self.all.iter().find_map(|(topic, stand)| {
            let Place::Between(_, to) = stand.place else {
                return Some(format!("visit {} was never told of its gap in {topic}: {stand:?}", self.visit));
            };
            let (at, number) = record.first_for(self.visit, topic, to, record.end(topic))?;
            Some(format!("visit {} never got {number} of {topic}, at {at}: {stand:?}", self.visit))
        })
    }

    /// Where it stands in one of its topics for certain, as an id says it.
    pub fn known(&self, record: &Record, topic: &str) -> Option<Position> {
        match self.all.get(topic)?.place {
            Place::Between(from, to) if from == to => Some(Position { epoch: record.epoch(), offset: from }),
            _ => None,
        }
    }
}
