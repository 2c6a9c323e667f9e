//! A hub whose messages are numbered by Redis, for all machines. sans-IO: bytes in, bytes out.
//!
//! One script numbers a message in its topic, puts it into the hub's stream and tells all subscribers, at once. Over the second connection everybody hears it, the
//! publisher too, and puts it in then. Each entry has a number of the hub's own, one behind the other: where one is missing, and after each connection, what is
//! missing is read from the stream before anything else is put in.
//!
//! Rules:
//! - While Redis is away, what is published is delivered here, in an epoch of this process alone, and kept. When Redis is back, first what others have published meanwhile is
//!   read, and delivered in that epoch; then what was kept is published there, in its order; then, when nothing has come for a second, the hub goes on in the epoch of all. Who has had everything so far
//!   notices nothing; who comes back from another epoch is told of a gap.
//! - A Redis that was started anew may have lost what it had: it begins a new epoch. So does one whose stream does not reach back to what somebody has had.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::frames::Said;
use super::line::{Line, Waiting};
use super::remote::{Out, Peer};
use super::resp::{self, Value};
use super::wires::PUMP_MARK;
use super::{frames, random};
use crate::config::Remote;
use crate::hub::{Epoch, Hub, LoopSet, Next, Notice, Position, Published, Refused, payload};
use crate::planted::{self, Bug};
use entries::{Entry, Had, end_of};
use scripts::{BEGIN, PUBLISH, READ};

/// How long what is published waits for a Redis that is away, before it is delivered here alone.
const GRACE: Duration = Duration::from_millis(500);
/// How long nothing may have been numbered here before numbers are those of all again.
const QUIET: Duration = Duration::from_secs(1);
/// How often it is asked to say something, and how long it may say nothing.
const PING: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(3);
/// Entries of the stream at least that are kept.
const STREAM: usize = 10_000;
/// Entries that are asked for at once, at most, and after how many bytes of them no more come.
const RANGE: usize = 100;
const RANGE_BYTES: usize = 16 << 20;
/// Kept messages that are on their way at once.
const WINDOW: usize = 128;
/// Bytes of them: with one more of the longest, less than Redis lets wait for who hears them (`client-output-buffer-limit pubsub`, 32 MiB).
const WINDOW_BYTES: usize = 8 << 20;
/// Messages that are kept at most.
const MOST_KEPT: usize = 8192;
/// How long a topic's numbers are known after its last message, in milliseconds.
const NUMBERS_FOR: &[u8] = b"86400000";
/// Bytes of a reply that is not whole, at most: a range of entries ends with the one that makes it [`RANGE_BYTES`].
const MOST_INPUT: usize = 64 << 20;

/// Whether an epoch is to begin in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Force {
    No,
    Yes,
    /// Behind a number that is left out, so that all see that something is missing.
    Skip,
}

/// What is waited for over the first connection, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// Whatever it says to that.
    Nothing,
    Info,
    Begin,
    Range,
    Publish(u64),
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is no connection.
    Away,
    /// It finds out who numbers how.
    Asking,
    /// It reads what it has missed.
    Filling,
    /// It hears what is published.
    Live,
}

/// What is known of the two connections.
#[derive(Default)]
struct Link {
    /// What of a value has come.
    input: [Vec<u8>; 2],
    asked: VecDeque<Asked>,
    /// What is published is heard.
    hears: bool,
    /// Which life of which server it is.
    run: Vec<u8>,
    /// When something came last over each.
    heard_at: [Duration; 2],
    /// When they were last asked to say something.
    pinged: Duration,
}

/// See the module.
pub struct Redis {
    hub: Arc<Hub>,
    said: Remote,
    me: u64,
    keys: [Vec<u8>; 3],
    stage: Stage,
    /// Since when nothing goes to others.
    away: Option<Duration>,
    link: Link,
    /// The epoch of all, and the last entry of it that was put in; `None`: there was none yet.
    at: Option<(Epoch, u64)>,
    reading: Reading,
    /// Numbers are given here.
    local: bool,
    /// When the last one was.
    numbered: Duration,
    line: Line,
    /// What was delivered here, and is to be published there.
    kept: VecDeque<Waiting>,
    /// How many of them are on their way.
    pushed: usize,
    /// What is published again, for nobody knows whether it was, is put in once.
    had: Had,
}

/// What it has to know to go on from where it is.
#[derive(Default)]
struct Reading {
    /// Behind which entry the epoch began.
    began: u64,
    /// The last entry that was heard of.
    heard: u64,
    /// What is read is what was before this process came.
    is_history: bool,
    /// Something is missing, and nobody who listens was told so yet.
    has_missed: bool,
}

impl Redis {
    /// For that hub.
    pub fn new(now: Duration, hub: Arc<Hub>, said: &Remote) -> Redis {
        hub.set_carried(true);
        let name = hub.settings().name.clone();
        let key = |end: &str| format!("production_server:{{{name}}}:{end}").into_bytes();
        Redis {
            keys: [key("meta"), key("stream"), key("live")],
            hub,
            said: said.clone(),
            me: random(),
            stage: Stage::Away,
            away: Some(now),
            link: Link::default(),
            at: None,
            reading: Reading::default(),
            local: false,
            numbered: now,
            line: Line::default(),
            kept: VecDeque::new(),
            pushed: 0,
            had: Had::default(),
        }
    }

    fn ask(&mut self, asked: Asked, words: &[&[u8]], out: &mut Out) {
        resp::put(&mut out.bytes[0], words);
        self.link.asked.push_back(asked);
    }

    /// Both connections are there, and what is needed of both is known.
    fn begin(&mut self, force: Force, out: &mut Out) {
        if !self.link.hears || self.link.run.is_empty() {
            return;
        }
        let (epoch, last) = self.at.map_or((String::new(), 0), |(epoch, last)| (epoch.to_string(), last));
        let drawn = Epoch(self.hub.epoch().0.wrapping_add(1 + (random() & 0xff_ffff))).to_string();
        let force: &[u8] = match force {
            Force::No => b"no",
            Force::Yes => b"yes",
            Force::Skip => b"skip",
        };
        let last = last.to_string();
        let [meta, stream, _] = self.keys.clone();
        let run = self.link.run.clone();
        let words: [&[u8]; 10] = [
            b"EVAL",
            BEGIN.as_bytes(),
            b"2",
            &meta,
            &stream,
            &run,
            drawn.as_bytes(),
            epoch.as_bytes(),
            last.as_bytes(),
            force,
        ];
        self.stage = Stage::Asking;
        self.ask(Asked::Begin, &words, out);
    }

    fn has_begun(&mut self, reply: &Value<'_>, out: &mut Out) -> Option<()> {
        let [epoch, began, seq, line] = reply.all() else { return None };
        let epoch: Epoch = std::str::from_utf8(epoch.bytes()).ok()?.parse().ok()?;
        let (began, seq) = (began.number()?, seq.number()?);
        (self.reading.is_history, self.reading.began) = (false, began);
        let follows = |(own, last): (Epoch, u64)| {
            let last_of = if own == epoch { Some(seq) } else { end_of(line.bytes(), own) };
            last_of.is_some_and(|end| last <= end)
        };
        match self.at {
            // All between is in the stream, and then it goes on in the other epoch.
            Some(at) if follows(at) => {}
            // It has had what the server has lost, and has not had what has those numbers now: all others have missed something, too.
            Some(_) => return self.miss(Force::Skip, out),
            // What was before this process came is nobody's gap.
            None if self.local && !self.reading.has_missed => self.at = Some((epoch, seq)),
            _ => {
                (self.local, self.reading.has_missed) = (false, false);
                self.hub.begin(epoch);
                self.hub.begin_behind(base());
                out.tell.extend(self.hub.tell_all());
                self.at = Some((epoch, began));
                self.reading.is_history = true;
                // What of ours was numbered before that is not heard of any more.
                self.again();
            }
        }
        self.fill(out);
        Some(())
    }

    /// Asks for what comes behind the last entry.
    fn fill(&mut self, out: &mut Out) {
        let after = format!("({}-1", self.at.map_or(0, |(_, last)| last));
        let (stream, count, bytes) = (self.keys[1].clone(), RANGE.to_string(), RANGE_BYTES.to_string());
        let words: [&[u8]; 7] =
            [b"EVAL", READ.as_bytes(), b"1", &stream, after.as_bytes(), count.as_bytes(), bytes.as_bytes()];
        self.stage = Stage::Filling;
        self.ask(Asked::Range, &words, out);
    }

    fn has_filled(&mut self, now: Duration, reply: &Value<'_>, out: &mut Out) -> Option<()> {
        let (entries, mut bytes) = (reply.all(), 0);
        for entry in entries {
            let [_, fields] = entry.all() else { return None };
            let [_, text] = fields.all() else { return None };
            bytes += text.bytes().len();
            let entry = Entry::read(text.bytes())?;
            let (_, last) = self.at?;
            if entry.seq > last + 1 && !self.reading.is_history {
                return self.miss(Force::Yes, out);
            }
            self.put_in(now, &entry, out);
        }
        let (_, last) = self.at?;
        let is_cut = entries.len() >= RANGE || bytes >= RANGE_BYTES;
        if is_cut || !entries.is_empty() && self.reading.heard > last {
            self.fill(out);
            return Some(());
        }
        if last < self.reading.began && !self.reading.is_history {
            return self.miss(Force::Yes, out);
        }
        self.reading.is_history = false;
        (self.stage, self.away) = (Stage::Live, None);
        self.push(out);
        self.give_away(now, out);
        Some(())
    }

    /// All that nobody has heard of yet is to be published again.
    fn again(&mut self) {
        self.line.again();
        self.kept.iter_mut().for_each(|kept| kept.sent = false);
        self.pushed = 0;
    }

    /// The stream does not have what comes next: nobody knows what that was.
    fn miss(&mut self, force: Force, out: &mut Out) -> Option<()> {
        self.begin(force, out);
        (self.at, self.local, self.reading.has_missed) = (None, false, true);
        Some(())
    }

    /// An entry is the next one.
    fn put_in(&mut self, now: Duration, entry: &Entry<'_>, out: &mut Out) {
        let Some((epoch, last)) = self.at.filter(|(_, last)| entry.seq > *last) else { return };
        if entry.epoch != epoch && !self.local && last < entry.seq {
            // Another has begun it; nothing is missing.
            self.hub.go_on_in(entry.epoch);
            self.hub.begin_behind(base());
        }
        self.at = Some((entry.epoch, entry.seq));
        let is_own = entry.origin == self.me;
        if is_own && let Some(at) = self.kept.iter().position(|kept| kept.request == entry.request) {
            // Everybody here has had it.
            if let Some(kept) = self.kept.remove(at) {
                self.hub.credit(kept.notice.cost());
                self.pushed -= usize::from(kept.sent);
            }
            return self.push(out);
        }
        let waiting = if is_own { self.line.take(entry.request) } else { None };
        if !self.had.is_first(entry.origin, entry.request) {
            let position = Position { epoch: entry.epoch, offset: entry.offset };
            if let Some(waiting) = waiting {
                let subscribers = self.hub.subscribers(&waiting.notice.topic);
                waiting.answer(Ok(Published { position, subscribers, duplicate: false, tell: LoopSet::default() }));
            }
            return;
        }
        let Said { topic, kind, id, payload: bytes } = entry.said;
        let Some(said) = payload(kind, bytes) else { return };
        let id = Some(id).filter(|id| !id.is_empty());
        let except = waiting.as_ref().map_or_else(Default::default, |waiting| waiting.notice.except.clone());
        let put = if self.local {
            self.numbered = now;
            let answer = Box::new(|_| ());
            let notice =
                Notice { topic: topic.into(), kind, payload: bytes.into(), id: id.map(Box::from), except, answer };
            // What is refused here, others have.
            self.hub.publish_carried(now, &notice).inspect_err(|why| self.hub.pass_over(topic, *why))
        } else {
            let position = Position { epoch: entry.epoch, offset: entry.offset };
            self.hub.append_next(now, topic, Next { position, first: !self.reading.is_history }, said, id, &except)
        };
        if let (Ok(put), Some(topic)) = (&put, self.hub.find(topic)) {
            out.tell.push((topic, put.tell));
        }
        if let Some(waiting) = waiting {
            waiting.answer(put);
        }
    }

    /// Publishes what was kept, as much at a time as the server takes; then the hub goes on in the epoch of all.
    fn push(&mut self, out: &mut Out) {
        if self.stage != Stage::Live || !self.local && self.kept.is_empty() {
            return;
        }
        let mut kept = std::mem::take(&mut self.kept);
        let mut bytes: usize =
            kept.iter().take_while(|waiting| waiting.sent).map(|waiting| waiting.notice.cost()).sum();
        for waiting in kept.iter_mut().filter(|waiting| !waiting.sent) {
            let is_much = bytes >= WINDOW_BYTES || out.waiting(0) >= PUMP_MARK;
            if self.pushed >= WINDOW || self.pushed > 0 && is_much {
                break;
            }
            waiting.sent = true;
            bytes += waiting.notice.cost();
            self.pushed += 1;
            self.publish(waiting.request, &waiting.notice, out);
        }
        self.kept = kept;
    }

    /// Whether the hub may go on in the epoch of all: everything is shared, and nothing was numbered here for a while, so that nobody who listens is behind.
    fn may_join(&self) -> bool {
        self.stage == Stage::Live && self.local && self.kept.is_empty()
    }

    fn join(&mut self) {
        if let Some((epoch, _)) = self.at {
            self.local = false;
            self.hub.go_on_in(epoch);
            self.hub.begin_behind(base());
        }
    }

    fn publish(&mut self, request: u64, notice: &Notice, out: &mut Out) {
        let settings = self.hub.settings();
        let id = notice.id.as_deref().unwrap_or_default();
        let said = Said { topic: &notice.topic, kind: notice.kind, id, payload: &notice.payload };
        let body = frames::said(&said);
        let id = match &notice.id {
            Some(id) => {
                let name = Hub::key_of(&notice.topic, id).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
                [&self.keys[0][..], b":id:", name.as_bytes()].concat()
            }
            None => Vec::new(),
        };
        let (me, number) = (self.me.to_string(), request.to_string());
        let most = STREAM.max(settings.history.count).to_string();
        let ids = settings.ids_for.as_millis().to_string();
        let [meta, stream, channel] = self.keys.clone();
        let words: [&[u8]; 14] = [
            b"EVAL",
            PUBLISH.as_bytes(),
            b"2",
            &meta,
            &stream,
            notice.topic.as_bytes(),
            &id,
            &body,
            me.as_bytes(),
            number.as_bytes(),
            most.as_bytes(),
            NUMBERS_FOR,
            ids.as_bytes(),
            &channel,
        ];
        self.ask(Asked::Publish(request), &words, out);
    }

    /// What the script has said to a message.
    fn has_published(&mut self, request: u64, reply: &Value<'_>, out: &mut Out) -> Option<()> {
        let [outcome, position] = reply.all() else { return None };
        if outcome.bytes() == b"done" {
            return Some(());
        }
        if outcome.bytes() != b"known" {
            return None;
        }
        let position: Position = std::str::from_utf8(position.bytes()).ok()?.parse().ok()?;
        if let Some(at) = self.kept.iter().position(|kept| kept.request == request)
            && let Some(kept) = self.kept.remove(at)
        {
            self.hub.credit(kept.notice.cost());
            self.pushed -= usize::from(kept.sent);
            self.push(out);
        }
        if let Some(waiting) = self.line.take(request) {
            let subscribers = self.hub.subscribers(&waiting.notice.topic);
            waiting.answer(Ok(Published { position, subscribers, duplicate: true, tell: LoopSet::default() }));
        }
        Some(())
    }

    fn give_away(&mut self, now: Duration, out: &mut Out) {
        while self.stage == Stage::Live
            && out.waiting(0) < PUMP_MARK
            && let Some(waiting) = self.line.unsent()
        {
            waiting.sent = true;
            let request = waiting.request;
            let Notice { topic, id, .. } = &waiting.notice;
            let refused = match self.hub.next(now, topic, waiting.notice.said(), id.as_deref()) {
                Ok(Ok(_)) => None,
                Ok(Err(position)) => {
                    let subscribers = self.hub.subscribers(topic);
                    Some(Ok(Published { position, subscribers, duplicate: true, tell: LoopSet::default() }))
                }
                Err(refused) => Some(Err(refused)),
            };
            let Some(waiting) = self.line.take(request) else { continue };
            match refused {
                Some(outcome) => waiting.answer(outcome),
                None => {
                    self.publish(request, &waiting.notice, out);
                    self.line.put_back(waiting);
                }
            }
        }
    }

    /// Delivers here what waits, and keeps it.
    fn deliver_here(&mut self, now: Duration, out: &mut Out) {
        if !self.local {
            self.local = true;
            let epoch = Epoch(self.hub.epoch().0.wrapping_add(1 + (random() & 0xff_ffff)));
            match self.at {
                Some(_) => self.hub.go_on_in(epoch),
                None if self.reading.has_missed => {
                    self.hub.begin(epoch);
                    out.tell.extend(self.hub.tell_all());
                }
                // Nobody else has numbered in its own.
                None => {}
            }
        }
        while let Some(mut waiting) = self.line.pop() {
            self.numbered = now;
            let outcome = self.hub.publish_carried(now, &waiting.notice);
            if let (Ok(published), Some(topic)) = (&outcome, self.hub.find(&waiting.notice.topic)) {
                out.tell.push((topic, published.tell));
            }
            waiting.tell(outcome);
            if outcome.is_ok_and(|published| !published.duplicate) {
                waiting.sent = false;
                self.keep(waiting);
            }
        }
    }

    fn keep(&mut self, waiting: Waiting) {
        let cost = waiting.notice.cost();
        if self.kept.len() >= MOST_KEPT || self.hub.charge(cost) == Err(Refused::Full) {
            // The oldest goes: whoever listens elsewhere misses most of it by now.
            match self.kept.pop_front() {
                Some(oldest) => self.hub.credit(oldest.notice.cost()),
                None => return,
            }
            if self.hub.charge(cost).is_err() {
                return;
            }
        }
        self.kept.push_back(waiting);
    }

    fn hear(&mut self, now: Duration, value: &Value<'_>, out: &mut Out) -> Result<(), String> {
        if let Value::Error(words) = value {
            return Err(String::from_utf8_lossy(words).chars().take(200).collect());
        }
        let words: Vec<&[u8]> = value.all().iter().map(Value::bytes).collect();
        match words[..] {
            [b"subscribe", ..] => {
                self.link.hears = true;
                self.begin(Force::No, out);
            }
            [b"message", _, text] => {
                let entry = Entry::read(text).ok_or("it has an entry that no hub has made")?;
                self.reading.heard = self.reading.heard.max(entry.seq);
                match (self.stage, self.at) {
                    (Stage::Live, Some((_, last))) if entry.seq == last + 1 => self.put_in(now, &entry, out),
                    (Stage::Live, Some((_, last))) if entry.seq > last => self.fill(out),
                    // The server has lost what was there, and gives the numbers anew.
                    (Stage::Live, Some((epoch, _))) if entry.epoch != epoch => self.begin(Force::No, out),
                    _ => {}
                }
            }
            // To AUTH and PING.
            _ => {}
        }
        Ok(())
    }

    fn answered(&mut self, now: Duration, value: &Value<'_>, out: &mut Out) -> Result<(), String> {
        let asked = self.link.asked.pop_front().ok_or("it says what nobody has asked for")?;
        if let Value::Error(words) = value {
            return Err(String::from_utf8_lossy(words).chars().take(200).collect());
        }
        let understood = match asked {
            Asked::Nothing => Some(()),
            Asked::Info => {
                let line = value.bytes().split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"run_id:"));
                self.link.run = line.unwrap_or(b"unknown").trim_ascii().to_vec();
                self.begin(Force::No, out);
                Some(())
            }
            Asked::Begin => self.has_begun(value, out),
            Asked::Range => self.has_filled(now, value, out),
            Asked::Publish(request) => self.has_published(request, value, out),
        };
        understood.ok_or_else(|| "it answers what no Redis with this hub does".to_owned())
    }
}

impl Peer for Redis {
    fn connections(&self) -> usize {
        2
    }

    fn opened(&mut self, now: Duration, out: &mut Out) {
        self.link = Link { heard_at: [now; 2], pinged: now, ..Link::default() };
        (self.stage, self.reading.heard) = (Stage::Asking, 0);
        if let Some(password) = &self.said.password {
            let user = self.said.user.as_deref().map(str::as_bytes);
            let words: Vec<&[u8]> =
                [b"AUTH"].into_iter().map(|word| &word[..]).chain(user).chain([password.0.as_bytes()]).collect();
            resp::put(&mut out.bytes[0], &words);
            resp::put(&mut out.bytes[1], &words);
            self.link.asked.push_back(Asked::Nothing);
        }
        self.ask(Asked::Info, &[b"INFO", b"server"], out);
        resp::put(&mut out.bytes[1], &[b"SUBSCRIBE", &self.keys[2]]);
    }

    fn received(&mut self, now: Duration, connection: usize, bytes: &[u8], out: &mut Out) -> Result<(), String> {
        self.link.heard_at[connection] = now;
        let mut input = std::mem::take(&mut self.link.input[connection]);
        input.extend_from_slice(bytes);
        let mut at = 0;
        while let Some((value, length)) = resp::take(&input[at..]).map_err(|_| "it does not speak as Redis does")? {
            at += length;
            match connection {
                0 => self.answered(now, &value, out)?,
                _ => self.hear(now, &value, out)?,
            }
        }
        input.drain(..at);
        if input.len() > MOST_INPUT {
            return Err("it says too much at once".to_owned());
        }
        self.link.input[connection] = input;
        Ok(())
    }

    fn is_told(&mut self, said: &Remote) {
        self.said = said.clone();
    }

    fn lost(&mut self, now: Duration) {
        self.stage = Stage::Away;
        self.away.get_or_insert(now);
        if planted::active(Bug::ForgottenKept) {
            self.kept.retain(|kept| !kept.sent);
        }
        self.again();
    }

    fn carry(&mut self, now: Duration, notice: Notice, out: &mut Out) {
        self.line.push(now, notice);
        if self.local {
            // Behind what is kept, there as here.
            self.deliver_here(now, out);
            self.push(out);
        } else {
            self.give_away(now, out);
        }
    }

    fn tick(&mut self, now: Duration, out: &mut Out) -> Result<(), String> {
        if self.away.is_some_and(|since| now >= since + GRACE) && self.line.len() > 0 {
            self.deliver_here(now, out);
        }
        self.line.expire(now);
        if self.may_join() && now >= self.numbered + QUIET {
            self.join();
        }
        if self.stage == Stage::Away {
            return Ok(());
        }
        self.push(out);
        self.give_away(now, out);
        // While it has not taken all that was said to it, it cannot answer.
        let asked = self.link.heard_at.iter_mut().zip(out.left);
        asked.filter(|(_, left)| *left > 0).for_each(|(heard, _)| *heard = now);
        if self.link.heard_at.iter().any(|heard| now >= *heard + SILENCE) {
            return Err("it does not answer".to_owned());
        }
        if now >= self.link.pinged + PING {
            self.link.pinged = now;
            self.ask(Asked::Nothing, &[b"PING"], out);
            resp::put(&mut out.bytes[1], &[b"PING"]);
        }
        Ok(())
    }

    fn due(&self) -> Option<Duration> {
        let grace = self.away.filter(|_| self.line.len() > 0).map(|since| since + GRACE);
        let ping = (self.stage != Stage::Away).then_some(self.link.pinged + PING);
        let joins = self.may_join().then_some(self.numbered + QUIET);
        [grace, ping, joins, self.line.due()].into_iter().flatten().min()
    }

    fn has_more(&self) -> bool {
        self.stage == Stage::Live && self.line.has_unsent()
    }

    fn is_up(&self) -> bool {
        self.stage == Stage::Live && self.kept.is_empty()
    }

    fn waiting(&self) -> usize {
        self.line.len() + self.kept.len()
    }
}

/// Behind which number topics of which nothing is known begin: nobody else says such a number.
fn base() -> u64 {
    1 << 56 | random() >> 16
}

mod entries;
mod scripts;

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::Settings;

    const NOW: Duration = Duration::from_secs(1);

    fn redis() -> Redis {
        let hub = Arc::new(Hub::new(Settings::new("chat"), Epoch(7), 1));
        let said = Remote { host: "a".to_owned(), port: 1, tls: false, user: None, password: None, ca_file: None };
        Redis::new(NOW, hub, &said)
    }

    fn notice(text: &str) -> Notice {
        let (topic, kind) = ("a".into(), crate::hub::Kind::Text);
        Notice {
            topic,
            kind,
            payload: text.as_bytes().into(),
            id: None,
            except: Box::default(),
            answer: Box::new(|_| ()),
        }
    }

    #[test]
    fn what_no_redis_says_ends_the_connection() {
        for (connection, bytes) in [
            (0, &b"+OK\r\n+OK\r\n"[..]),
            (0, b"x"),
            (0, b"-ERR no\r\n"),
            (1, b"*3\r\n+message\r\n+x\r\n+y\r\n"),
            (1, b"\r\n"),
        ] {
            let (mut redis, mut out) = (redis(), Out::default());
            redis.opened(NOW, &mut out);
            let heard = redis.received(NOW, connection, &[bytes, b"\r\n\r\n"].concat(), &mut out);
            assert!(heard.is_err(), "{}", String::from_utf8_lossy(bytes));
        }
        let (mut redis, mut out) = (redis(), Out::default());
        redis.opened(NOW, &mut out);
        assert!(redis.tick(NOW + SILENCE, &mut out).is_err(), "it says nothing");
    }

    #[test]
    fn what_was_kept_leaves_as_it_is_taken() {
        let (mut redis, mut out) = (redis(), Out::default());
        (0..4).for_each(|_| redis.carry(NOW, notice(&"x".repeat(PUMP_MARK / 2)), &mut out));
        redis.tick(NOW + GRACE, &mut out).unwrap();
        assert_eq!(redis.kept.len(), 4);
        redis.stage = Stage::Live;
        for (left, pushed, why) in [
            (PUMP_MARK, 1, "one in any case"),
            (PUMP_MARK, 1, "it is on its way"),
            (0, 3, "as many as are taken"),
            (0, 4, "the rest"),
        ] {
            let mut out = Out { left: [left, 0], ..Out::default() };
            redis.push(&mut out);
            assert_eq!(redis.pushed, pushed, "{why}");
        }
    }

    #[test]
    fn what_is_refused_here_is_missing_whoever_numbers() {
        for local in [false, true] {
            let (mut redis, mut out) = (redis(), Out::default());
            let listener = redis.hub.subscribe(NOW, "a", 0, crate::hub::From::Now).unwrap();
            (redis.at, redis.local) = (Some((Epoch(7), 0)), local);
            let long = "x".repeat(redis.hub.settings().message + 1);
            for (seq, text) in [(1, "1"), (2, &long), (3, "3")] {
                let said = Said { topic: "a", kind: crate::hub::Kind::Text, id: "", payload: text.as_bytes() };
                let entry = Entry { epoch: Epoch(7), seq, offset: seq, origin: 1, request: seq, said };
                redis.put_in(NOW, &entry, &mut out);
            }
            let mut messages = Vec::new();
            let read = listener.topic.read(listener.at, usize::MAX, &mut messages);
            assert_eq!((read.at.offset, read.gap, messages.len()), (1, None, 1), "{local}");
            let read = listener.topic.read(read.at, usize::MAX, &mut messages);
            assert_eq!((read.gap.map(|gap| gap.to.offset), messages.len()), (Some(2), 2), "{local}");
        }
    }

    #[test]
    fn what_is_published_while_it_is_away_is_delivered_here_and_kept_within_bounds() {
        let (mut redis, mut out) = (redis(), Out::default());
        redis.carry(NOW, notice("1"), &mut out);
        assert_eq!((redis.waiting(), redis.due()), (1, Some(NOW + GRACE)));
        redis.tick(NOW + GRACE, &mut out).unwrap();
        assert_eq!((redis.kept.len(), redis.hub.find("a").unwrap().last()), (1, 1));
        let before = redis.hub.memory();
        for number in 0..MOST_KEPT + 10 {
            redis.carry(NOW + GRACE, notice(&number.to_string()), &mut out);
        }
        assert_eq!((redis.kept.len(), redis.line.len()), (MOST_KEPT, 0));
        assert!(redis.hub.memory() > before + MOST_KEPT * size_of::<Notice>(), "it is charged");
    }
}
