//! Scripted clients that listen: over WebSockets, bare and told, by event streams and polls. They read slowly, stop for a while, say this and that, leave in every way
//! and come back with what they know; whatever they are sent is judged at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};

use production_server::backends::simulated::{End, Place};
use production_server::hub::Position;

use crate::simulation::line::Line;
use crate::simulation::wire::{Body, Framing, Head};

use super::frames::{self, BINARY, CLOSE, PING, TEXT, masked};
use super::places::Places;
use super::record::Record;
use super::visits::{Action, Leave, Manners, Plan, Resume, Way};

/// How long after a connection that came to nothing the next is made.
const AGAIN: Duration = Duration::from_millis(20);
/// Close codes.
const NORMAL: u16 = 1000;
const RESTART: u16 = 1012;
const GAP: u16 = 4409;

/// How far a connection is.
pub(super) enum Stage {
    /// The answer's head is to come.
    Head,
    Socket,
    /// A stream of events, and what of it was not read yet.
    Events(Body, Vec<u8>),
    /// A document: of a poll, or a refusal.
    Document(Head, Body),
}

/// A connection that is open.
pub(super) struct Live {
    pub end: End,
    pub plan: Plan,
    pub places: Places,
    pub out: Vec<u8>,
    pub input: Vec<u8>,
    pub stage: Stage,
    began: Instant,
    acts_at: Instant,
    /// Messages for the app.
    pub said: u32,
    /// Commands that are not answered, each with where its topic ended then.
    pub asked: VecDeque<(Action, u64)>,
    pub pings: VecDeque<u32>,
    /// The id that it was told last.
    pub last: Option<String>,
    /// It has said that it leaves, or is no client to be served.
    pub closes: bool,
    /// The server has said so, with that code.
    pub closed: Option<u16>,
}

/// A scripted client that listens.
pub struct Listener {
    pub(super) line: Line,
    pub(super) place: Place,
    pub(super) record: Rc<RefCell<Record>>,
    pub(super) app: bool,
    plans: Vec<Plan>,
    live: Option<Live>,
    /// Where it stood last in each topic, and the last id that it was told.
    left: BTreeMap<String, Position>,
    last: Option<String>,
    again_at: Option<Instant>,
    tries: u32,
}

impl Listener {
    pub fn new(line: &Line, place: &Place, record: &Rc<RefCell<Record>>, manners: &Manners) -> Listener {
        let count = line.between(1, manners.visits);
        let plans = (0..count).map(|at| Plan::draw(line, &record.borrow().topics(), manners, at == 0)).collect();
        Listener {
            line: line.clone(),
            place: place.clone(),
            record: record.clone(),
            app: manners.app,
            plans,
            live: None,
            left: BTreeMap::new(),
            last: None,
            again_at: None,
            tries: 0,
        }
    }

    /// Whether it has done all that it is to do but stay.
    pub fn is_done(&self) -> bool {
        self.plans.is_empty() && self.live.as_ref().is_none_or(|live| self.is_settled(live))
    }

    /// Whether nothing is left of it.
    pub fn is_gone(&self) -> bool {
        self.live.is_none()
    }

    /// It makes no visit more, and takes what comes.
    pub fn rests(&mut self) {
        self.plans.clear();
        self.live.iter_mut().for_each(|live| live.plan.deaf = None);
    }

    fn is_settled(&self, live: &Live) -> bool {
        let is_open = live.plan.way == Way::Poll || !matches!(live.stage, Stage::Head);
        let is_quiet = live.out.is_empty() && live.plan.actions.is_empty() && !self.is_deaf(live, self.line.now());
        live.plan.leave == Leave::Stays && is_open && is_quiet && self.is_answered(live)
    }

    fn is_answered(&self, live: &Live) -> bool {
        let record = self.record.borrow();
        let all = live.asked.is_empty() && (!self.app || record.is_answered(live.places.visit(), live.said));
        all || !record.calm
    }

    /// What it lacks still of what was published.
    pub fn lacks(&self) -> Option<String> {
        let live = self.live.as_ref()?;
        live.places.lacks(&self.record.borrow())
    }

    fn is_deaf(&self, live: &Live, now: Instant) -> bool {
        live.plan.deaf.is_some_and(|(from, long)| now >= live.began + from && now < live.began + from + long)
    }

    pub fn deadline(&self) -> Option<Instant> {
        let now = self.line.now();
        let live = self.live.as_ref();
        let deaf = live.and_then(|live| live.plan.deaf.map(|(from, long)| live.began + from + long));
        let acts = live.filter(|live| !live.plan.actions.is_empty()).map(|live| live.acts_at);
        let leaves = live.filter(|live| live.plan.leave != Leave::Stays).map(|live| live.began + live.plan.stays);
        [self.again_at, deaf, acts, leaves].into_iter().flatten().filter(|at| *at > now).min()
    }

    pub fn state(&self) -> String {
        match &self.live {
            None => format!("a listener with {} visits to come", self.plans.len()),
            Some(live) => format!(
                "visit {} by {:?} over {}: leaves {:?}, {} actions left, {} unanswered, {} said, to write {}, settled: {}",
                live.places.visit(),
                live.plan.way,
                live.end,
                live.plan.leave,
                live.plan.actions.len(),
                live.asked.len(),
                live.said,
                live.out.len(),
                self.is_settled(live)
            ),
        }
    }

    pub fn step(&mut self) {
        let now = self.line.now();
        let Some(mut live) = self.live.take() else {
            if !self.plans.is_empty() && self.again_at.is_none_or(|at| at <= now) {
                self.connect(now);
            }
            return;
        };
        self.act(&mut live, now);
        let mut open = self.write(&mut live);
        if open && self.is_deaf(&live, now) {
            // It takes nothing.
        } else if open && self.line.chance(live.plan.reads) {
            open = self.read(&mut live);
        } else if open && self.line.is_readable(live.end) {
            // It will read in a moment, so nobody may take this for a standstill.
            self.line.touch();
        }
        if open && self.may_leave(&live, now) {
            open = self.leaves(&mut live);
        }
        if open {
            self.live = Some(live);
        } else {
            self.over(live);
        }
    }

    fn connect(&mut self, now: Instant) {
        self.again_at = None;
        let Ok(end) = self.line.connect(&self.place) else {
            self.tries += 1;
            self.again_at = Some(now + AGAIN);
            if self.tries > 100 {
                self.plans.clear();
            }
            return;
        };
        let Some(plan) = self.plans.pop() else { return };
        let id = self.id_of(&plan);
        let (places, out) = self.request(&plan, id.as_deref());
        let acts_at = now + plan.actions.front().map_or(Duration::ZERO, |(after, _)| *after);
        self.live = Some(Live {
            end,
            plan,
            places,
            out,
            input: Vec::new(),
            stage: Stage::Head,
            began: now,
            acts_at,
            said: 0,
            asked: VecDeque::new(),
            pings: VecDeque::new(),
            last: id,
            closes: false,
            closed: None,
        });
    }

    /// The id that a visit comes with.
    fn id_of(&self, plan: &Plan) -> Option<String> {
        let record = self.record.borrow();
        match plan.resume {
            Resume::Now => None,
            Resume::Last if self.last.is_some() => self.last.clone(),
            Resume::Last => match &plan.topics[..] {
                [topic] => self.left.get(topic).map(Position::to_string),
                topics => {
                    let known = topics.iter().filter_map(|topic| Some((topic, self.left.get(topic)?)));
                    let all = known.map(|(topic, at)| format!("{}={}", topic.replace('/', "%2F"), at.offset));
                    let all: Vec<_> = all.collect();
                    (!all.is_empty()).then(|| format!("{}:{}", record.epoch(), all.join(",")))
                }
            },
            Resume::Nonsense => Some("nonsense".to_owned()),
            Resume::Elsewhere => Some("00000000000a0:7".to_owned()),
            Resume::Beyond => Some(format!("{}:{}", record.epoch(), record.end(&plan.topics[0]) + 1000)),
        }
    }

    /// A visit begins: where it stands, and what it asks for.
    pub(super) fn request(&self, plan: &Plan, id: Option<&str>) -> (Places, Vec<u8>) {
        let mut record = self.record.borrow_mut();
        let visit = record.visit();
        record.counts.resumed += usize::from(id.is_some());
        let places = Places::new(&record, visit, &plan.topics, id);
        let as_field = id.is_some() && self.line.chance(500);
        let quoted = |id: &str| id.replace('%', "%25").replace('=', "%3D");
        let query = id.filter(|_| !as_field).map_or_else(String::new, |id| format!("&last_event_id={}", quoted(id)));
        let mut lines = id.filter(|_| as_field).map_or_else(String::new, |id| format!("Last-Event-ID: {id}\r\n"));
        match plan.way {
            Way::Bare | Way::Told => {
                lines += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
                          Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                lines += if plan.way == Way::Told { "Sec-WebSocket-Protocol: hub.v1\r\n" } else { "" };
                lines += if plan.deflates { "Sec-WebSocket-Extensions: permessage-deflate\r\n" } else { "" };
            }
            Way::Events => lines += "Accept: text/event-stream\r\n",
            Way::Poll => {}
        }
        let (topics, version) = (plan.topics.join(","), u8::from(!plan.http10));
        let head = format!(
            "GET /api/v1/listen?who={visit}&topic={topics}{query} HTTP/1.{version}\r\nHost: simulated\r\n{lines}\r\n"
        );
        self.line.note(format_args!("visit {visit}: {head}"));
        (places, head.into_bytes())
    }

    /// Says what is to be said next.
    fn act(&self, live: &mut Live, now: Instant) {
        if !matches!(live.stage, Stage::Socket) || live.closes || now < live.acts_at {
            return;
        }
        let Some((_, action)) = live.plan.actions.pop_front() else { return };
        live.acts_at = now + live.plan.actions.front().map_or(Duration::ZERO, |(after, _)| *after);
        let record = self.record.borrow();
        let frame = match &action {
            Action::Say(length) => {
                live.said += 1;
                masked([TEXT, BINARY][self.line.below(2)], format!("k{}:{}", live.said, "s".repeat(*length)).as_bytes())
            }
            Action::Ping => {
                let number = live.plan.actions.len() as u32;
                live.pings.push_back(number);
                masked(PING, &number.to_be_bytes())
            }
            Action::Nonsense => {
                live.closes = true;
                b"\x81\x01A".to_vec()
            }
            Action::Subscribe(topic, None) => masked(TEXT, format!("{{\"subscribe\":\"{topic}\"}}").as_bytes()),
            Action::Subscribe(topic, Some(_)) => {
                let id = self.left.get(topic).map_or_else(|| "nowhere".to_owned(), Position::to_string);
                let text = format!("{{\"subscribe\":\"{topic}\",\"last_event_id\":\"{id}\"}}");
                masked(TEXT, text.as_bytes())
            }
            Action::Unsubscribe(topic) => masked(TEXT, format!("{{\"unsubscribe\":\"{topic}\"}}").as_bytes()),
        };
        let action = match action {
            Action::Subscribe(topic, Some(_)) => {
                let at = self.left.get(&topic).copied().unwrap_or(Position::NOWHERE);
                Action::Subscribe(topic, Some(at))
            }
            action => action,
        };
        if let Action::Subscribe(topic, _) | Action::Unsubscribe(topic) = &action {
            let end = record.end(topic);
            live.asked.push_back((action, end));
        }
        live.out.extend(frame);
        self.line.touch();
    }

    /// False: the connection is over.
    fn write(&self, live: &mut Live) -> bool {
        if live.out.is_empty() {
            return true;
        }
        let piece = live.plan.piece.max(live.out.len() / 12);
        match self.line.write(live.end, &live.out[..live.out.len().min(piece)]) {
            Ok(count) => drop(live.out.drain(..count)),
            // What was said before is read first.
            Err(error) => {
                if error.kind() != ErrorKind::WouldBlock {
                    live.out.clear();
                    live.closes = true;
                }
            }
        }
        true
    }

    fn read(&self, live: &mut Live) -> bool {
        match self.line.read(live.end, &mut live.input, live.plan.read) {
            Ok(0) => {
                self.ended(live);
                return false;
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => {
                self.cut(live);
                return false;
            }
        }
        self.parse(live)
    }

    /// Takes what has come off the input. False: the connection is over.
    fn parse(&self, live: &mut Live) -> bool {
        loop {
            match std::mem::replace(&mut live.stage, Stage::Head) {
                Stage::Head => {
                    let head = Head::take(&mut live.input);
                    let head = head.unwrap_or_else(|complaint| panic!("{}: {complaint}", self.state()));
                    let Some(head) = head else { return true };
                    live.stage = self.begins(live, head);
                }
                Stage::Socket => {
                    live.stage = Stage::Socket;
                    while let Some((head, data)) = frames::take_frame(&mut live.input) {
                        if head == CLOSE {
                            return self.was_closed(live, &data);
                        }
                        self.frame(live, head, &data);
                    }
                    return true;
                }
                Stage::Events(mut body, mut rest) => {
                    body.feed(&mut live.input).unwrap_or_else(|complaint| panic!("a stream: {complaint}"));
                    rest.append(&mut body.bytes);
                    while let Some(event) = frames::take_event(&mut rest) {
                        self.event(live, &event);
                    }
                    let is_over = body.done;
                    live.stage = Stage::Events(body, rest);
                    if is_over {
                        self.ended(live);
                    }
                    return !is_over;
                }
                Stage::Document(head, mut body) => {
                    body.feed(&mut live.input).unwrap_or_else(|complaint| panic!("a document: {complaint}"));
                    if !body.done {
                        live.stage = Stage::Document(head, body);
                        return true;
                    }
                    if !self.document(live, &head, &body.bytes) {
                        return false;
                    }
                }
            }
        }
    }

    fn begins(&self, live: &mut Live, head: Head) -> Stage {
        let status = head.status().unwrap_or(0);
        let framing = head.framing().unwrap_or_else(|complaint| panic!("a listener: {complaint}"));
        let record = self.record.borrow();
        let visit = live.places.visit();
        if status == 101 {
            assert!(matches!(live.plan.way, Way::Bare | Way::Told), "visit {visit} got a socket: {head:?}");
            let told = head.field("sec-websocket-protocol") == Some("hub.v1");
            assert_eq!(told, live.plan.way == Way::Told, "visit {visit}: {head:?}");
            assert_eq!(head.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
            live.places.has_begun(&record);
            return Stage::Socket;
        }
        if status == 200 && live.plan.way == Way::Events {
            assert_eq!(head.field("content-type"), Some("text/event-stream"), "visit {visit}");
            live.places.has_begun(&record);
            return Stage::Events(Body::new(framing.unwrap_or(Framing::UntilClose)), Vec::new());
        }
        let is_poll = status == 200 && live.plan.way == Way::Poll;
        let is_refused = record.is_refused(visit) || !record.calm || record.drains;
        assert!(is_poll || is_refused, "visit {visit} was refused: {head:?}");
        assert!(is_poll || (400..600).contains(&status), "visit {visit} got another answer: {head:?}");
        Stage::Document(head, Body::new(framing.unwrap_or(Framing::UntilClose)))
    }

    /// The server closes its socket. False: it is over.
    fn was_closed(&self, live: &mut Live, data: &[u8]) -> bool {
        let code = data.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
        let mut record = self.record.borrow_mut();
        let visit = live.places.visit();
        live.closed = Some(code);
        match code {
            GAP => {
                assert_eq!(live.plan.way, Way::Bare, "visit {visit} might have been told of its gap");
                live.places.ended_by_gap(&mut record);
            }
            NORMAL => assert!(live.closes, "visit {visit} has not closed"),
            RESTART => {
                assert!(record.drains, "the server does not restart");
                record.counts.ended_by_drain += 1;
            }
            3000..3100 => assert!(self.app, "there is no app that closes sockets"),
            1002 => assert!(live.closes && !record.calm, "visit {visit} has done nothing wrong"),
            _ => assert!(!record.calm, "visit {visit} was closed with {code} although nothing was wrong"),
        }
        false
    }

    /// The connection has ended.
    fn ended(&self, live: &mut Live) {
        let record = self.record.borrow();
        let is_stream = matches!(&live.stage, Stage::Events(body, _) if body.done || live.plan.http10);
        // One whose request is still on its way.
        let is_new = matches!(live.stage, Stage::Head);
        let fine = live.closes || live.closed.is_some() || (is_stream || is_new) && record.drains;
        assert!(fine || !record.calm, "nothing was wrong, and this has ended: visit {}", live.places.visit());
        drop(record);
        let mut record = self.record.borrow_mut();
        record.counts.ended_by_drain += usize::from(is_stream && record.drains);
    }

    fn cut(&self, live: &Live) {
        let mut record = self.record.borrow_mut();
        let fine = live.closes || live.closed.is_some() || !record.calm || record.drains;
        assert!(fine, "nothing was wrong, and this was cut: visit {}", live.places.visit());
        record.counts.cut += 1;
    }

    fn may_leave(&self, live: &Live, now: Instant) -> bool {
        let is_time = live.plan.leave != Leave::Stays && now >= live.began + live.plan.stays && !live.closes;
        let has_said = live.out.is_empty() && live.plan.actions.is_empty() && self.is_answered(live);
        is_time && (has_said || !self.record.borrow().calm)
    }

    /// False: it has left.
    fn leaves(&self, live: &mut Live) -> bool {
        match live.plan.leave {
            Leave::Closes if matches!(live.stage, Stage::Socket) => {
                live.out.extend(masked(CLOSE, &NORMAL.to_be_bytes()));
                live.closes = true;
                self.line.touch();
                true
            }
            Leave::Resets => {
                self.line.reset(live.end);
                false
            }
            _ => false,
        }
    }

    fn over(&mut self, live: Live) {
        self.line.close(live.end);
        let record = self.record.borrow();
        for topic in live.places.topics() {
            if let Some(at) = live.places.known(&record, &topic) {
                self.left.insert(topic, at);
            }
        }
        drop(record);
        let told = matches!(live.plan.way, Way::Events | Way::Poll);
        self.last = live.last.filter(|_| told);
        self.again_at = Some(self.line.now() + AGAIN);
    }
}
