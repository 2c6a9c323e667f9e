//! An app that takes part in a hub, as the scripted workers have it: it lets clients in or not, answers what they say, and holds the server to its word that of
//! one socket there is one event at a time, in order, and an end.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Instant;

use production_server::backends::simulated::{End, World};

use crate::simulation::checks::{Expects, Ledger, RequestId};
use crate::simulation::wire::Head;

use super::record::{Kind, Record, Visit};

/// What an app answers.
pub struct Said {
    pub status: u16,
    pub kind: &'static str,
    pub body: Vec<u8>,
}

/// What the app knows of a socket.
#[derive(Debug)]
struct Socket {
    visit: Visit,
    /// The event that came last: its request, which delivery that is, and over which connection.
    last: (RequestId, usize, End),
    /// The client's message that came last.
    message: u32,
    topics: BTreeSet<String>,
    /// It was let in, as far as the app knows.
    is_in: bool,
    is_closed: bool,
}

/// The app, whichever worker is asked.
pub struct App {
    world: World,
    ledger: Rc<RefCell<Ledger>>,
    record: Rc<RefCell<Record>>,
    /// Events by what the server calls their requests.
    requests: BTreeMap<String, RequestId>,
    sockets: BTreeMap<String, Socket>,
    longest: usize,
}

impl App {
    pub fn new(world: &World, ledger: &Rc<RefCell<Ledger>>, record: &Rc<RefCell<Record>>, longest: usize) -> App {
        App {
            world: world.clone(),
            ledger: ledger.clone(),
            record: record.clone(),
            requests: BTreeMap::new(),
            sockets: BTreeMap::new(),
            longest,
        }
    }

    /// The number of the request that is an event; `None`: it is none.
    pub fn request_of(&mut self, head: &Head, now: Instant) -> Option<RequestId> {
        head.field("sec-websocket-frame")?;
        assert!(head.line.starts_with("POST /v1/realtime HTTP/1.1"), "{head:?}");
        let name = head.field("x-request-id").unwrap_or_default();
        let id = *self.requests.entry(name.to_owned()).or_insert_with(|| {
            let mut ledger = self.ledger.borrow_mut();
            let id = ledger.open_crowded(false, Expects::Anything);
            ledger.begun(id, now);
            id
        });
        Some(id)
    }

    /// An event has come to a worker.
    pub fn begins(&mut self, head: &Head, (id, number): (RequestId, usize), end: End) {
        let said = |name: &str| head.field(name).unwrap_or_default().to_owned();
        let (frame, name) = (said("sec-websocket-frame"), said("x-socket-id"));
        let mut record = self.record.borrow_mut();
        record.counts.events += 1;
        if frame == "open" {
            let target = said("x-socket-target");
            let visit = target.split_once("who=").and_then(|(_, who)| who.split('&').next()?.parse().ok());
            let visit = visit.unwrap_or_else(|| panic!("an unknown client: {head:?}"));
            let topics = target.split_once("topic=").and_then(|(_, topics)| topics.split('&').next());
            let topics = topics.into_iter().flat_map(|topics| topics.split(',')).map(str::to_owned).collect();
            record.opens(visit, &name);
            let new = Socket { visit, last: (id, number, end), message: 0, topics, is_in: false, is_closed: false };
            let before = self.sockets.insert(name.clone(), new);
            assert!(before.is_none_or(|before| before.last.0 == id), "{name} is opened twice");
            return;
        }
        let socket = self.sockets.get_mut(&name).unwrap_or_else(|| panic!("{name} was never opened: {head:?}"));
        let (last, other, connection) = socket.last;
        // What nobody waits for any more is no event in flight.
        let waits = self.world.other_is_open(connection) && !self.world.other_has_finished(connection);
        let is_running = self.ledger.borrow().is_running(last, other);
        assert!(!is_running || !waits, "two events of a socket at once: {frame} of {name} beside {last}: {socket:?}");
        assert!(!socket.is_closed || last == id, "{frame} of {name} comes behind its end");
        socket.last = (id, number, end);
        if frame == "close" {
            socket.is_closed = true;
        } else if record.calm {
            let groups = said("x-socket-groups");
            let groups: BTreeSet<String> =
                groups.split(',').filter(|it| !it.is_empty()).map(|it| it.replace("%2F", "/")).collect();
            assert_eq!(groups, socket.topics, "{name} listens to other topics than its app knows");
        }
    }

    /// What is answered to an event whose body is that.
    pub fn answer(&mut self, head: &Head, body: &[u8]) -> Said {
        // Nothing becomes of it on its way.
        let good = self.record.borrow().calm;
        let name = head.field("x-socket-id").unwrap_or_default().to_owned();
        let frame = head.field("sec-websocket-frame").unwrap_or_default();
        match frame {
            "open" => self.answer_open(&name, good),
            "close" => self.answer_close(good),
            _ => self.answer_message(&name, body, good),
        }
    }

    fn answer_open(&mut self, name: &str, good: bool) -> Said {
        let world = self.world.clone();
        let mut record = self.record.borrow_mut();
        let socket = self.sockets.get_mut(name).expect("it has begun");
        if world.chance(60) {
            record.refuses(socket.visit);
            return json(if good { 403 } else { [403, 404, 500, 503][world.below(4)] }, String::new());
        }
        socket.is_in = true;
        let mut members = Vec::new();
        if world.chance(400) {
            let topics = record.topics();
            let topic = &topics[world.below(topics.len())];
            if socket.topics.insert(topic.clone()) {
                record.lets_join_at_open(socket.visit, topic);
            }
            members.push(format!("\"+\":\"{topic}\""));
        }
        if world.chance(300) {
            // Those who do not listen over a socket are not told.
            let word = record.word(&[socket.visit], false);
            members.push(format!("\"say\":{word}"));
        }
        if members.is_empty() && world.chance(500) {
            return Said { status: 204, kind: "application/json", body: Vec::new() };
        }
        json(200, format!("{{{}}}", members.join(",")))
    }

    fn answer_close(&mut self, good: bool) -> Said {
        if self.world.chance(300) {
            let members = self.publication(good);
            return json(200, format!("{{{members}}}"));
        }
        json(200, "{}".to_owned())
    }

    /// Members that publish something.
    fn publication(&self, good: bool) -> String {
        let (world, mut record) = (&self.world, self.record.borrow_mut());
        let mut topics = record.topics();
        while topics.len() > 1 && world.chance(700) {
            topics.remove(world.below(topics.len()));
        }
        let mut except: Vec<String> = record.sockets().into_iter().map(|(_, socket)| socket).collect();
        except.retain(|_| world.chance(200));
        let length = world.below(self.longest);
        let number = record.say(Kind::Json, length, &topics, &except, good);
        let payload = String::from_utf8_lossy(record.payload(number)).into_owned();
        let (topics, except) = (format!("{topics:?}"), format!("{except:?}"));
        format!("\"@\":{topics},\">\":{except},{}", payload.trim_matches(['{', '}']))
    }

    fn answer_message(&mut self, name: &str, body: &[u8], good: bool) -> Said {
        let world = self.world.clone();
        let text = String::from_utf8_lossy(body).into_owned();
        let number = text.strip_prefix("k").and_then(|rest| rest.split(':').next()?.parse().ok());
        let number: u32 = number.unwrap_or_else(|| panic!("what nobody has said: {text}"));
        let socket = self.sockets.get_mut(name).expect("it has begun");
        let visit = socket.visit;
        let in_order = if good { number == socket.message + 1 } else { number >= socket.message };
        assert!(in_order, "message {number} of {name} comes behind {}", socket.message);
        socket.message = number;
        self.record.borrow_mut().answers(visit, number);
        match world.below(if good { 8 } else { 9 }) {
            0 => json(200, "{}".to_owned()),
            1 | 2 => {
                let members = self.publication(good);
                json(200, format!("{{{members}}}"))
            }
            3 | 4 => self.change(name, good),
            5 => {
                let word = self.record.borrow_mut().word(&[visit], good);
                Said { status: 200, kind: "text/plain", body: format!("{{\"say\":{word}}}").into_bytes() }
            }
            6 => self.tell_others(),
            7 => json(200, format!("{{\"!\":{}}}", 3000 + world.below(50))),
            _ => json(500, String::new()),
        }
    }

    /// Has a socket join a topic or leave one, and tells it so behind that.
    fn change(&mut self, name: &str, good: bool) -> Said {
        let mut record = self.record.borrow_mut();
        let topics = record.topics();
        let topic = &topics[self.world.below(topics.len())];
        let socket = self.sockets.get_mut(name).expect("it has begun");
        let word = record.word(&[socket.visit], good);
        if socket.topics.contains(topic) && self.world.chance(600) {
            socket.topics.remove(topic);
            return json(200, format!("{{\"-\":[\"{topic}\"],\"say\":{word},\"left\":\"{topic}\"}}"));
        }
        socket.topics.insert(topic.clone());
        record.lets_join(socket.visit, topic);
        json(200, format!("{{\"+\":[\"{topic}\"],\"say\":{word},\"joined\":\"{topic}\"}}"))
    }

    fn tell_others(&self) -> Said {
        let mut record = self.record.borrow_mut();
        let mut sockets = record.sockets();
        sockets.retain(|_| self.world.chance(300));
        let (visits, names): (Vec<Visit>, Vec<String>) = sockets.into_iter().unzip();
        let word = record.word(&visits, false);
        json(200, format!("{{\"@\":{names:?},\"say\":{word}}}"))
    }

    /// The app was told of the end of each socket that it has let in, if nothing was in the way of that.
    pub fn check_end(&self) {
        for (name, socket) in self.sockets.iter().filter(|(_, socket)| socket.is_in) {
            assert!(socket.is_closed, "the app was never told of the end of {name}: {socket:?}");
        }
    }
}

fn json(status: u16, body: String) -> Said {
    Said { status, kind: "application/json", body: body.into_bytes() }
}
