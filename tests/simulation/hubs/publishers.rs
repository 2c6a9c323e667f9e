//! Scripted publishers: they post messages with and without an id, in pieces, ask again with the same id, and are judged by where they are told that these stand.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};

use production_server::backends::simulated::{End, Place};
use production_server::hub::Position;
use serde_json::Value;

use crate::simulation::line::Line;
use crate::simulation::wire::{Body, Framing, Head};

use super::frames::text;
use super::record::{Kind, Number, Record};

/// How often one message is tried at most.
const TRIES: u32 = 12;
/// How long after a connection that came to nothing the next is made.
const AGAIN: Duration = Duration::from_millis(20);

/// A message that is to be published.
#[derive(Clone)]
struct Post {
    number: Number,
    topic: String,
    id: Option<String>,
    kind: Kind,
    /// It is larger than a message may be.
    too_big: bool,
    tries: u32,
    after: Duration,
}

/// Those that all publishers have given an id, to be given again by another.
pub type Known = Rc<RefCell<Vec<(String, String, Kind, Number)>>>;

/// What publishers of a run do.
#[derive(Clone, Debug)]
pub struct Manners {
    /// Messages of each.
    pub count: usize,
    /// Bytes of one at most, and what the hub takes.
    pub longest: usize,
    pub limit: usize,
    /// The longest pause between two.
    pub pause: Duration,
}

struct Live {
    end: End,
    out: Vec<u8>,
    piece: usize,
    input: Vec<u8>,
    answer: Option<(Head, Body)>,
    /// The first of the posts is under way.
    asks: bool,
}

/// A scripted publisher.
pub struct Publisher {
    line: Line,
    place: Place,
    record: Rc<RefCell<Record>>,
    known: Known,
    posts: VecDeque<Post>,
    live: Option<Live>,
    next_at: Option<Instant>,
    refusals: u32,
}

impl Publisher {
    pub fn new(
        line: &Line,
        place: &Place,
        record: &Rc<RefCell<Record>>,
        known: &Known,
        manners: &Manners,
    ) -> Publisher {
        let mut publisher = Publisher {
            line: line.clone(),
            place: place.clone(),
            record: record.clone(),
            known: known.clone(),
            posts: VecDeque::new(),
            live: None,
            next_at: None,
            refusals: 0,
        };
        publisher.posts = (0..line.between(1, manners.count)).map(|_| publisher.draw(manners)).collect();
        publisher
    }

    fn draw(&self, manners: &Manners) -> Post {
        let (world, mut record, mut known) = (&self.line, self.record.borrow_mut(), self.known.borrow_mut());
        let after = Duration::from_micros(world.below(manners.pause.as_micros() as usize + 1) as u64);
        if !known.is_empty() && world.chance(150) {
            let (topic, id, kind, number) = known[world.below(known.len())].clone();
            return Post { number, topic, id: Some(id), kind, too_big: false, tries: 0, after };
        }
        let topics = record.topics();
        // The first has most of them, so that it comes to its bounds.
        let topic = topics[if world.chance(500) { 0 } else { world.below(topics.len()) }].clone();
        let kind = [Kind::Text, Kind::Json][world.below(2)];
        let too_big = world.chance(20);
        let length = if too_big { manners.limit } else { world.below(manners.longest) };
        let id = world.chance(400);
        // What has no id and is not answered may have been published or not.
        let must = record.calm && !too_big;
        let number = record.say(kind, length, std::slice::from_ref(&topic), &[], must);
        let id = id.then(|| format!("id-{number}"));
        if let (Some(id), false) = (&id, too_big) {
            known.push((topic.clone(), id.clone(), kind, number));
        }
        Post { number, topic, id, kind, too_big, tries: 0, after }
    }

    pub fn is_done(&self) -> bool {
        self.posts.is_empty() && self.live.is_none()
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.next_at.filter(|at| *at > self.line.now())
    }

    pub fn state(&self) -> String {
        format!("a publisher with {} to come, at work: {}", self.posts.len(), self.live.is_some())
    }

    pub fn step(&mut self) {
        let now = self.line.now();
        let Some(mut live) = self.live.take() else {
            if !self.posts.is_empty() && self.next_at.is_none_or(|at| at <= now) {
                self.connect(now);
            }
            return;
        };
        if !live.asks && self.next_at.is_none_or(|at| at <= now) {
            self.begin(&mut live);
        }
        if self.write(&mut live) && self.read(&mut live) && (live.asks || !self.posts.is_empty()) {
            self.live = Some(live);
        } else {
            self.end(live);
        }
    }

    fn connect(&mut self, now: Instant) {
        let Ok(end) = self.line.connect(&self.place) else {
            self.refusals += 1;
            if self.refusals > 100 {
                self.posts.clear();
            }
            self.next_at = Some(now + AGAIN);
            return;
        };
        let piece = [30, 1000, 100_000][self.line.below(3)];
        self.live = Some(Live { end, out: Vec::new(), piece, input: Vec::new(), answer: None, asks: false });
    }

    fn begin(&mut self, live: &mut Live) {
        let Some(post) = self.posts.front_mut() else { return };
        post.tries += 1;
        let record = self.record.borrow();
        let payload = String::from_utf8_lossy(record.payload(post.number)).into_owned();
        let Post { topic, id, kind, .. } = post;
        let (query, media, body) = match (kind, self.line.chance(500)) {
            (Kind::Text, true) => {
                let id = id.as_ref().map_or_else(String::new, |id| format!("&id={id}"));
                (format!("?topic={topic}{id}"), "text/plain", payload)
            }
            (Kind::Json, true) => {
                let id = id.as_ref().map_or_else(String::new, |id| format!("&id={id}"));
                (format!("?topic={topic}{id}"), "application/json", payload)
            }
            (kind, _) => {
                let id = id.as_ref().map_or_else(String::new, |id| format!(",\"id\":\"{id}\""));
                let data = if *kind == Kind::Text { format!("{payload:?}") } else { payload };
                (String::new(), "application/json", format!("{{\"topic\":\"{topic}\"{id},\"data\":{data}}}"))
            }
        };
        live.out = format!(
            "POST /api/v1/notify{query} HTTP/1.1\r\nHost: simulated\r\nAuthorization: Bearer {}\r\nContent-Type: {media}\r\n\
             Content-Length: {}\r\n\r\n{body}",
            super::KEY,
            body.len()
        )
        .into_bytes();
        live.piece = live.piece.max(live.out.len() / 12);
        live.asks = true;
    }

    /// False: the connection is over.
    fn write(&self, live: &mut Live) -> bool {
        if live.out.is_empty() {
            return true;
        }
        match self.line.write(live.end, &live.out[..live.out.len().min(live.piece)]) {
            Ok(count) => drop(live.out.drain(..count)),
            Err(error) => return error.kind() == ErrorKind::WouldBlock,
        }
        true
    }

    fn read(&mut self, live: &mut Live) -> bool {
        match self.line.read(live.end, &mut live.input, 4096) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
        loop {
            if let Some((head, mut body)) = live.answer.take() {
                body.feed(&mut live.input).unwrap_or_else(|complaint| panic!("a publisher: {complaint}"));
                if !body.done {
                    live.answer = Some((head, body));
                    return true;
                }
                live.asks = false;
                let kept = !head.connection_says("close");
                if !self.answered(&head, &body.bytes) || !kept || !live.out.is_empty() {
                    return false;
                }
                continue;
            }
            let head = Head::take(&mut live.input).unwrap_or_else(|complaint| panic!("a publisher: {complaint}"));
            let Some(head) = head else { return true };
            assert!(live.asks, "an answer to nothing: {head:?}");
            let framing = head.framing().unwrap_or_else(|complaint| panic!("a publisher: {complaint}"));
            live.answer = Some((head, Body::new(framing.unwrap_or(Framing::Length(0)))));
        }
    }

    /// It was told what came of its message; whether the connection goes on.
    fn answered(&mut self, head: &Head, body: &[u8]) -> bool {
        let Some(post) = self.posts.pop_front() else { return false };
        self.next_at = Some(self.line.now() + post.after);
        let (status, said) = (head.status().unwrap_or(0), String::from_utf8_lossy(body).into_owned());
        let mut record = self.record.borrow_mut();
        if status == 202 {
            assert!(!post.too_big, "message {} is larger than it may be, and is published", post.number);
            let said: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{said}: {error}"));
            let at: Position = text(&said, "id").parse().unwrap_or_else(|_| panic!("no id: {said}"));
            let duplicate = said["duplicate"] == true;
            assert!(!duplicate || post.id.is_some(), "message {} has no id, and is a duplicate", post.number);
            record.published(post.number, &post.topic, at, duplicate);
            return true;
        }
        let as_it_should = post.too_big && status == 413;
        assert!(as_it_should || !record.calm, "message {} was refused: {status} {said}", post.number);
        let known = matches!(status, 400 | 408 | 413 | 500 | 502 | 503 | 504);
        assert!(known, "message {} got {status}: {said}", post.number);
        drop(record);
        if status == 503 && post.id.is_some() && post.tries < TRIES {
            self.posts.push_front(post);
        }
        true
    }

    fn end(&mut self, live: Live) {
        self.line.close(live.end);
        self.next_at = Some(self.line.now() + AGAIN);
        if !live.asks {
            return;
        }
        // Nobody knows whether it was published: with an id it is safe to ask again.
        let Some(mut post) = self.posts.pop_front() else { return };
        assert!(!self.record.borrow().calm || post.too_big, "message {} was not answered", post.number);
        if post.id.is_some() && !post.too_big && post.tries < TRIES {
            post.after = Duration::ZERO;
            self.posts.push_front(post);
        }
    }
}
