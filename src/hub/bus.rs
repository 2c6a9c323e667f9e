//! What a hub shares with other processes: messages that another has numbered, and all that it has as bytes for its successor.
//!
//! The bytes, all numbers little-endian:
//!
//! ```text
//! "hub" version(1)  epoch(8) floor(8)
//! topics(4)   of each: name(2+n) last(8) gone(8) messages(4)   of each: offset(8) kind(1) age(8) payload(4+n)
//! ids(4)      of each: key(16) epoch(8) offset(8) age(8)
//! ```
//!
//! Ages are in microseconds. They are taken as a whole or refused as a whole.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::de::IgnoredAny;

use super::known::{self, Key};
use super::message::Draft;
use super::{Epoch, Hub, LoopSet, Message, Next, Payload, Position, Published, Refused, Topic, is_name, lock};

/// Bytes of what apps publish that wait for the successor.
const MOST_HANDED_ON: usize = 16 << 20;
const MAGIC: &[u8; 4] = b"hub\x01";
/// Offsets of others end here, so that numbering can go on behind any of them.
const HIGHEST: u64 = u64::MAX / 2;

impl Hub {
    /// Numbers messages in another epoch from now on: all that was is gone, and whoever listens is told of a gap when it reads ([`Hub::tell_all`]).
    pub fn begin(&self, epoch: Epoch) {
        let mut table = self.table_to_change();
        if epoch != self.epoch() {
            table.floor = 0;
            self.shared.set_epoch(epoch, Epoch::NONE);
        }
    }

    /// The same, where nothing was lost between the two: whoever has had all so far goes on without a gap.
    pub fn go_on_in(&self, epoch: Epoch) {
        let mut table = self.table_to_change();
        let before = self.epoch();
        if epoch != before {
            table.floor = 0;
            self.shared.set_epoch(epoch, before);
        }
    }

    /// All topics that somebody listens to, and the loops that have to be told: there is something to read though no message has come.
    pub fn tell_all(&self) -> Vec<(Arc<Topic>, LoopSet)> {
        let topics: Vec<_> = self.table().topics.values().cloned().collect();
        let told = topics.into_iter().map(|topic| {
            let tell = topic.ring().tell();
            (topic, tell)
        });
        told.filter(|(_, tell)| !tell.is_empty()).collect()
    }

    /// Puts in a message that another has numbered in this epoch. One that is there already, or was, is a duplicate; where one is missing before it,
    /// that is a gap for those who have not read so far, until it comes. Its id is remembered and not asked for: who numbers looks for duplicates.
    ///
    /// # Errors
    /// As [`Hub::publish`], and [`Refused::NoSuchPosition`].
    pub fn append(
        &self,
        now: Duration,
        topic: &str,
        position: Position,
        payload: Payload<'_>,
        id: Option<&str>,
    ) -> Result<Published, Refused> {
        self.append_next(now, topic, Next { position, first: false }, payload, id, &[])
    }

    /// The same of one that may be the first of its topic, for all but some subscribers. If it is refused, it is missing, which those are told who listen.
    ///
    /// # Errors
    /// As there.
    pub fn append_next(
        &self,
        now: Duration,
        topic: &str,
        next: Next,
        payload: Payload<'_>,
        id: Option<&str>,
        except: &[u128],
    ) -> Result<Published, Refused> {
        let put = self.put_next(now, topic, next, payload, id, except);
        let Position { epoch, offset } = next.position;
        // What comes while a successor takes over is that one's.
        let is_missing = put.is_err_and(|refused| refused != Refused::Moved);
        if is_missing && epoch == self.epoch() && (1..=HIGHEST).contains(&offset) {
            self.reach(topic, offset);
        }
        put
    }

    fn put_next(
        &self,
        now: Duration,
        topic: &str,
        Next { position, first }: Next,
        payload: Payload<'_>,
        id: Option<&str>,
        except: &[u128],
    ) -> Result<Published, Refused> {
        let (settings, now) = (self.settings(), super::clock(now));
        if payload.bytes().len() > settings.message {
            return Err(Refused::TooBig);
        }
        if !(1..=HIGHEST).contains(&position.offset) {
            return Err(Refused::NoSuchPosition);
        }
        let (key, draft) = (id.map(|id| known::key(topic, id)), Draft::new(payload, except));
        self.with_floor(topic, &settings, position.offset - 1, |topic, ring| {
            if self.closed.load(Ordering::Acquire) {
                return Err(Refused::Moved);
            }
            if ring.epoch != position.epoch {
                return Err(Refused::NoSuchPosition);
            }
            topic.expire(ring, now, &settings.history);
            ring.goes_on_at(position.offset, first);
            let (duplicate, mut tell) = (ring.has_had(position.offset), LoopSet::default());
            if !duplicate {
                let message = Message::new(topic.about.clone(), position, now, &draft);
                tell = topic.add(ring, message, &settings.history).inspect_err(|_| {
                    // The next one is behind it in any case.
                    ring.last = ring.last.max(position.offset);
                    ring.fresh = false;
                })?;
            }
            if let Some(key) = key {
                lock(&self.known).insert(key, position, now, settings.most_ids);
            }
            Ok(Published { position, subscribers: ring.subscribers, duplicate, tell })
        })?
    }

    /// All messages, where each topic stands, and the ids that are known, as bytes for a successor. Nothing is published here from now on
    /// ([`Refused::Moved`]), or a number would be given twice; what there is can still be read.
    pub fn snapshot(&self, now: Duration) -> Vec<u8> {
        let now = super::clock(now);
        self.closed.store(true, Ordering::Release);
        let (topics, floor) = {
            let table = self.table();
            (table.topics.values().cloned().collect::<Vec<_>>(), table.floor)
        };
        let mut out = MAGIC.to_vec();
        put_numbers(&mut out, &[self.epoch().0, floor]);
        put_length(&mut out, topics.len());
        for topic in topics {
            let ring = topic.ring();
            out.extend_from_slice(&(topic.name().len() as u16).to_le_bytes());
            out.extend_from_slice(topic.name().as_bytes());
            put_numbers(&mut out, &[ring.last, ring.gone]);
            let own = ring.own();
            put_length(&mut out, own.len());
            for message in own {
                put_numbers(&mut out, &[message.position().offset]);
                out.push(match message.said() {
                    Payload::Text(_) => 0,
                    Payload::Binary(_) => 1,
                    Payload::Json(_) => 2,
                });
                put_numbers(&mut out, &[age(now, message.at())]);
                put_length(&mut out, message.payload().len());
                out.extend_from_slice(message.payload());
            }
        }
        let known = lock(&self.known);
        put_length(&mut out, known.all().len());
        for (key, position, at) in known.all() {
            out.extend_from_slice(key);
            put_numbers(&mut out, &[position.epoch.0, position.offset, age(now, at)]);
        }
        out
    }

    /// Keeps for the successor what an app has published here since: whether there was room for it.
    pub fn hand_on(&self, topic: &str, value: &str) -> bool {
        let name = self.settings().name.clone();
        let mut left = lock(&self.handed_on);
        let room = left.iter().map(String::len).sum::<usize>() + value.len() <= MOST_HANDED_ON;
        if room {
            left.push(super::wire::notice(&name, topic, value));
        }
        room
    }

    /// All of that, as [`wire::notify`](super::wire::notify) understands it.
    pub fn handed_on(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.handed_on))
    }

    /// No successor has taken over: messages are published here again.
    pub fn reopen(&self) {
        self.closed.store(false, Ordering::Release);
    }

    /// Goes on with what a predecessor had, in its epoch, as far as the settings have room for it. Messages that were published here before are
    /// gone, which those who listen already are told. The topics of those, and the loops that have to be told.
    ///
    /// # Errors
    /// What is wrong with the bytes: nothing has changed then.
    pub fn restore(&self, now: Duration, bytes: &[u8]) -> Result<Vec<(Arc<Topic>, LoopSet)>, String> {
        let image = Image::parse(bytes).ok_or("the bytes are no snapshot of a hub that this version understands")?;
        let (settings, now) = (self.settings(), super::clock(now));
        let at = |age: u64| now.saturating_sub(Duration::from_micros(age));
        self.begin(image.epoch);
        let mut told = Vec::new();
        let mut floor = image.floor;
        for known in &image.topics {
            let restored = self.with(known.name, (&settings, false), |topic, ring| {
                topic.begin(ring, image.epoch);
                (ring.last, ring.gone) = (known.last, known.gone);
                let mut tell = LoopSet::default();
                for (offset, payload, age) in &known.messages {
                    let position = Position { epoch: image.epoch, offset: *offset };
                    let message = Message::new(topic.about.clone(), position, at(*age), &Draft::new(*payload, &[]));
                    // What there is no room for is a gap.
                    tell.extend(topic.add(ring, message, &settings.history).unwrap_or_default());
                }
                (topic.clone(), tell)
            });
            match restored {
                Ok((topic, tell)) => told.push((topic, tell)),
                // No such topic any more, or no room for it: should it come again, it goes on behind.
                Err(_) => floor = floor.max(known.last),
            }
        }
        told.retain(|(_, tell)| !tell.is_empty());
        let mut table = self.table_to_change();
        table.floor = table.floor.max(floor);
        drop(table);
        let mut ids = lock(&self.known);
        for (key, position, age) in image.ids {
            ids.insert(key, position, at(age), settings.most_ids);
        }
        Ok(told)
    }
}

pub(super) fn age(now: Duration, at: Duration) -> u64 {
    u64::try_from(now.saturating_sub(at).as_micros()).unwrap_or(u64::MAX)
}

fn put_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| out.extend_from_slice(&number.to_le_bytes()));
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    out.extend_from_slice(&(length as u32).to_le_bytes());
}

/// What a snapshot says.
struct Image<'a> {
    epoch: Epoch,
    floor: u64,
    topics: Vec<TopicImage<'a>>,
    ids: Vec<(Key, Position, u64)>,
}

struct TopicImage<'a> {
    name: &'a str,
    last: u64,
    gone: u64,
    messages: Vec<(u64, Payload<'a>, u64)>,
}

impl<'a> Image<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Image<'a>> {
        let mut reader = Reader(bytes.strip_prefix(MAGIC)?);
        let (epoch, floor) = (Epoch(reader.number()?), reader.offset()?);
        let mut topics = Vec::new();
        let mut names = HashSet::new();
        for _ in 0..reader.length()? {
            let topic = TopicImage::parse(&mut reader)?;
            if !names.insert(topic.name) {
                return None;
            }
            topics.push(topic);
        }
        let mut ids = Vec::new();
        for _ in 0..reader.length()? {
            let key = *reader.take(16)?.first_chunk()?;
            let position = Position { epoch: Epoch(reader.number()?), offset: reader.offset()? };
            ids.push((key, position, reader.number()?));
        }
        reader.0.is_empty().then_some(Image { epoch, floor, topics, ids })
    }
}

impl<'a> TopicImage<'a> {
    fn parse(reader: &mut Reader<'a>) -> Option<TopicImage<'a>> {
        let length = usize::from(u16::from_le_bytes(*reader.take(2)?.first_chunk()?));
        let name = std::str::from_utf8(reader.take(length)?).ok().filter(|name| is_name(name))?;
        let (last, gone) = (reader.offset()?, reader.offset()?);
        let mut messages: Vec<(u64, Payload<'a>, u64)> = Vec::new();
        let mut before = gone;
        for _ in 0..reader.length()? {
            let offset = reader.offset()?;
            let kind = reader.take(1)?[0];
            let age = reader.number()?;
            let length = reader.length()?;
            let payload = payload_of(kind, reader.take(length)?)?;
            if offset <= before {
                return None;
            }
            before = offset;
            messages.push((offset, payload, age));
        }
        (before <= last).then_some(TopicImage { name, last, gone, messages })
    }
}

fn payload_of(kind: u8, bytes: &[u8]) -> Option<Payload<'_>> {
    let text = || std::str::from_utf8(bytes).ok();
    match kind {
        0 => text().map(Payload::Text),
        1 => Some(Payload::Binary(bytes)),
        2 => text().filter(|text| serde_json::from_str::<IgnoredAny>(text).is_ok()).map(Payload::Json),
        _ => None,
    }
}

/// What is left of the bytes.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    fn offset(&mut self) -> Option<u64> {
        self.number().filter(|offset| *offset <= HIGHEST)
    }

    /// How much follows: no more is believed than there are bytes.
    fn length(&mut self) -> Option<usize> {
        let length = u32::from_le_bytes(*self.take(4)?.first_chunk()?) as usize;
        (length <= self.0.len()).then_some(length)
    }
}
