//! Scripted workers: servers at a Unix path that answer as their temper says, die, and close connections at bad moments.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use production_server::backends::simulated::{End, Service, World};
use production_server::dispatch::WorkerId;

use super::checks::{Fate, Intent, Ledger, RequestId};
use super::hubs::{App, Said};
use super::tasks::{Pace, Task};
use super::wire::{self, Body, Framing, Head};

/// A worker that is being drained may still be given what was granted before, for so long.
const DRAIN_GRACE: Duration = Duration::from_millis(500);

/// Pauses end at multiples of that.
const GRAIN: Duration = Duration::from_millis(50);

/// What waits to be sent back through a tunnel, before no more is read.
const ECHO_BYTES: usize = 20_000;

/// No head that a worker writes is longer.
const MOST_HEAD: usize = 4096;

/// An answer of more bytes is cut anywhere: to look for the ends of its lines takes too long.
const LONG: usize = 50_000;

/// How often a worker does what a good one does not, in requests of 1000.
#[derive(Clone, Copy, Debug, Default)]
pub struct Temper {
    /// It says that it is busy or draining.
    pub declines: u32,
    /// It closes the connection at some point before the answer's end.
    pub drops: u32,
    /// It dies at some point before the answer's end.
    pub dies: u32,
    /// It answers garbage, or with surplus bytes.
    pub lies: u32,
    /// Surplus bytes are among its lies. Only where a receive brings all that is there: a server cannot know of those that
    /// come after an answer was whole.
    pub strays: bool,
    /// It never answers.
    pub hangs: u32,
    /// It answers before it has read the body.
    pub hurries: u32,
    /// It closes an idle connection soon.
    pub closes_idle: u32,
    /// For so many connections at a time there is always room in its backlog, so that nobody has to go to another for that.
    pub backlog: usize,
    /// The longest time that it takes to answer.
    pub thinks: Duration,
    /// The longest body of an ordinary answer, and of a few.
    pub body: usize,
    /// See there.
    pub long_body: usize,
}

/// What comes behind an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    Keep,
    Close,
    /// The process dies.
    Die,
    /// Nothing more happens on the connection until the other side ends it.
    Hang,
    Tunnel,
}

struct Answer {
    id: RequestId,
    number: usize,
    bytes: Vec<u8>,
    /// How much of that is its head, interim ones included; more than all of it where there is none.
    head: usize,
    written: usize,
    piece: usize,
    /// How much of it is the answer; behind that are surplus bytes, which leave together with it or not at all.
    whole: usize,
    not_before: Instant,
    /// How long after a piece the next is written.
    every: Duration,
    after: After,
    /// How the request's part is over when all is written.
    fate: Fate,
}

enum State {
    /// Reads a head.
    Idle,
    /// Reads the body of a request.
    Body(RequestId, usize, Head, Body),
    Answering(Answer),
    /// Nothing more comes; a cut answer is named whose body ends with the connection.
    Hanging(Option<(RequestId, usize)>),
    Tunnel(Vec<u8>),
}

struct Connection {
    end: End,
    input: Vec<u8>,
    state: State,
    served: usize,
    close_at: Option<Instant>,
    ended: bool,
    /// The request in hand, and what it asks for.
    name: Option<(RequestId, usize)>,
    task: Option<Task>,
    /// It is an event of a socket; its body, when all has come.
    event: Option<Vec<u8>>,
    /// A task that is read slowly goes on then.
    read_at: Option<Instant>,
}

impl Connection {
    fn new(end: End) -> Connection {
        Connection {
            end,
            input: Vec::new(),
            state: State::Idle,
            served: 0,
            close_at: None,
            ended: false,
            name: None,
            task: None,
            event: None,
            read_at: None,
        }
    }

    /// How the bytes are read that it waits for; `None` while there are none, or all are read as they come.
    fn slowly(&self) -> Option<Pace> {
        let pace = self.task.filter(|_| matches!(self.state, State::Body(..) | State::Tunnel(_)))?.reads;
        (pace != Pace::FULL).then_some(pace)
    }
}

/// A scripted worker.
pub struct Worker {
    /// Its number, never used again.
    pub number: u32,
    /// Its name at the dispatch.
    pub id: WorkerId,
    /// Where it listens.
    pub path: PathBuf,
    /// When the supervisor began to drain it.
    pub draining: Option<Instant>,
    /// It joined by itself: nobody learns that its process is gone.
    pub joined: bool,
    /// What it answers events of sockets with.
    pub app: Option<Rc<RefCell<App>>>,
    world: World,
    started: Instant,
    ledger: Rc<RefCell<Ledger>>,
    temper: Temper,
    concurrency: usize,
    service: Option<Service>,
    connections: Vec<Connection>,
    wants_to_die: bool,
}

impl Worker {
    /// A worker that does not listen yet.
    pub fn new(
        world: &World,
        ledger: &Rc<RefCell<Ledger>>,
        (number, id, path): (u32, WorkerId, PathBuf),
        temper: Temper,
        concurrency: u32,
    ) -> Worker {
        Worker {
            number,
            id,
            path,
            draining: None,
            joined: false,
            app: None,
            world: world.clone(),
            started: ledger.borrow().rules.started,
            ledger: Rc::clone(ledger),
            temper,
            concurrency: concurrency as usize,
            service: None,
            connections: Vec::new(),
            wants_to_die: false,
        }
    }

    /// Listens from now on.
    pub fn listen(&mut self) {
        let backlog = self.world.between(1, 8) + self.temper.backlog;
        self.service = Some(self.world.serve(&self.path, backlog));
    }

    /// Whether its process runs.
    pub fn is_alive(&self) -> bool {
        self.service.is_some()
    }

    /// When it goes on by itself.
    pub fn deadline(&self) -> Option<Instant> {
        let now = self.world.now();
        let of = |connection: &Connection| match &connection.state {
            State::Answering(answer) => Some(answer.not_before),
            State::Body(..) | State::Tunnel(_) => connection.read_at,
            State::Idle => connection.close_at,
            _ => None,
        };
        self.connections.iter().filter_map(of).filter(|at| *at > now).min()
    }

    /// The process is killed: its requests die with it, also those that it has not read.
    pub fn kill(&mut self) {
        let Some(service) = self.service.take() else { return };
        self.world.note(format_args!("worker {} dies", self.number));
        let connections = std::mem::take(&mut self.connections);
        let ends: Vec<End> = connections.iter().map(|connection| connection.end).collect();
        let unread = self.world.kill(service, &ends);
        let (waiting, read) = unread.split_at(unread.len() - ends.len());
        let fate = if self.joined { Fate::Dropped } else { Fate::Died };
        for bytes in waiting {
            self.lost(bytes, false, fate);
        }
        for (connection, unread) in connections.into_iter().zip(read) {
            self.forget(connection, unread, fate);
        }
    }

    /// Does one thing on each connection; whether the process still lives.
    pub fn step(&mut self) -> bool {
        let Some(service) = self.service else { return false };
        while let Some(end) = self.world.accept(service) {
            self.connections.push(Connection::new(end));
        }
        let mut index = 0;
        while index < self.connections.len() {
            let mut connection = self.connections.swap_remove(index);
            if self.serve(&mut connection) {
                self.connections.push(connection);
                let last = self.connections.len() - 1;
                self.connections.swap(index, last);
                index += 1;
            } else {
                let unread = self.world.close(connection.end);
                self.forget(connection, &unread, Fate::Dropped);
            }
            if self.wants_to_die {
                self.kill();
                return false;
            }
        }
        true
    }

    /// What becomes of the requests of a connection that is over.
    fn forget(&self, connection: Connection, unread: &[u8], fate: Fate) {
        match connection.state {
            State::Idle => self.lost(&[&connection.input, unread].concat(), connection.served > 0, fate),
            State::Body(id, number, _, body) => {
                let is_right = connection.event.is_some() || wire::is_patterned(id, &body.bytes);
                assert!(is_right, "request {id} came with another body");
                self.ledger.borrow_mut().ended(id, number, fate);
            }
            State::Answering(Answer { id, number, bytes, written, .. }) => {
                let mut ledger = self.ledger.borrow_mut();
                ledger.ended(id, number, fate);
                // Nobody can tell a body cut by a clean end of the connection from a shorter one.
                if reads_until_close(&bytes[..written]) {
                    ledger.shortened(id, number);
                }
            }
            State::Hanging(Some((id, number))) => self.ledger.borrow_mut().shortened(id, number),
            State::Hanging(None) | State::Tunnel(_) => {}
        }
    }

    /// A request that came and was never looked at.
    fn lost(&self, bytes: &[u8], reused: bool, fate: Fate) {
        let text = String::from_utf8_lossy(bytes);
        let target = text.split_once(" /r/").and_then(|(_, rest)| rest.split_once(' '));
        if let Some(id) = target.and_then(|(id, _)| id.parse().ok()) {
            let mut ledger = self.ledger.borrow_mut();
            let number = ledger.delivered(id, self.number, reused, self.world.now());
            ledger.ended(id, number, fate);
        }
    }

    /// False: the connection is to be closed.
    fn serve(&mut self, connection: &mut Connection) -> bool {
        let now = self.world.now();
        if matches!(connection.state, State::Idle) && connection.close_at.is_some_and(|at| at <= now) {
            return false;
        }
        let open = self.take_in(connection, now) && self.go_on(connection, now);
        self.note_silence(connection, now);
        open
    }

    /// Reads what is there; of a task, what its pace allows. False: the connection has failed.
    fn take_in(&self, connection: &mut Connection, now: Instant) -> bool {
        let pace = connection.slowly();
        if pace.is_some() && connection.read_at.is_some_and(|at| at > now) {
            return true;
        }
        if matches!(&connection.state, State::Tunnel(out) if out.len() > ECHO_BYTES) {
            return true;
        }
        let Some(pace) = pace else { return self.take_piece(connection, [50, 4096, 65_536][self.world.below(3)]) };
        let before = connection.input.len();
        while !connection.ended && connection.input.len() - before < pace.bytes {
            let came = connection.input.len();
            if !self.take_piece(connection, pace.bytes - (came - before)) {
                return false;
            }
            if connection.input.len() == came {
                break;
            }
        }
        if let (true, Some((id, number))) = (connection.input.len() > before, connection.name) {
            connection.read_at = Some(self.after(pace.every));
            self.ledger.borrow_mut().speaks(id, number, now);
        }
        true
    }

    fn take_piece(&self, connection: &mut Connection, most: usize) -> bool {
        match self.world.read(connection.end, &mut connection.input, most) {
            Ok(0) => connection.ended = true,
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
        true
    }

    /// When a pause of that length is over: the pauses of a crowd end together, so that it costs few turns.
    fn after(&self, pause: Duration) -> Instant {
        let now = self.world.now();
        let grains = (now - self.started + pause).as_millis().div_ceil(GRAIN.as_millis()) as u32;
        if pause.is_zero() { now } else { self.started + GRAIN * grains }
    }

    /// Tells the ledger whether the request in hand waits for this worker now, or this worker for the other side.
    fn note_silence(&self, connection: &Connection, now: Instant) {
        let Some((id, number)) = connection.name else { return };
        let pauses = match &connection.state {
            State::Body(..) => connection.slowly().is_some() && connection.read_at.is_some_and(|at| at > now),
            State::Answering(answer) => answer.not_before > now,
            State::Hanging(_) => true,
            State::Idle | State::Tunnel(_) => false,
        };
        let mut ledger = self.ledger.borrow_mut();
        if pauses { ledger.pauses(id, number, now) } else { ledger.speaks(id, number, now) }
    }

    fn go_on(&mut self, connection: &mut Connection, now: Instant) -> bool {
        match std::mem::replace(&mut connection.state, State::Hanging(None)) {
            State::Idle => self.read_head(connection),
            State::Body(id, number, head, body) => self.read_body(connection, (id, number), head, body),
            State::Answering(answer) => self.write(connection, answer, now),
            State::Hanging(cut) => {
                connection.state = State::Hanging(cut);
                connection.input.clear();
                !connection.ended
            }
            State::Tunnel(out) => self.tunnel(connection, out),
        }
    }

    fn read_head(&mut self, connection: &mut Connection) -> bool {
        let head = match Head::take(&mut connection.input) {
            Ok(Some(head)) => head,
            Ok(None) => {
                connection.state = State::Idle;
                return !connection.ended;
            }
            Err(complaint) => panic!("worker {}: {complaint}", self.number),
        };
        let target = head.line.split(' ').nth(1).and_then(|target| target.strip_prefix("/r/"));
        let event = self.app.as_ref().and_then(|app| app.borrow_mut().request_of(&head, self.world.now()));
        let id = target.and_then(|id| id.parse().ok()).or(event);
        let Some(id) = id else { panic!("an unknown request: {head:?}") };
        assert_eq!(head.field("expect"), None, "worker {}: it is the server that continues", self.number);
        assert!(head.field("x-request-id").is_some() && head.field("host") == Some("simulated"), "{head:?}");
        // What the server has closed again already is no load that it has put on.
        if self.world.other_is_open(connection.end) {
            self.check_load(id);
        }
        let number = self.ledger.borrow_mut().delivered(id, self.number, connection.served > 0, self.world.now());
        self.world.note(format_args!("worker {} begins {id}.{number}", self.number));
        (connection.name, connection.task) = (Some((id, number)), Task::of(&head));
        connection.event = event.map(|_| Vec::new());
        if let Some(app) = self.app.as_ref().filter(|_| event.is_some()) {
            app.borrow_mut().begins(&head, (id, number), connection.end);
        }
        (connection.close_at, connection.read_at) = (None, None);
        if connection.task.is_some_and(|task| task.reads != Pace::FULL) {
            self.ledger.borrow_mut().reads_slowly(id, number);
        }
        let framing = match head.framing() {
            Ok(framing) => framing.unwrap_or(Framing::Length(0)),
            Err(complaint) => panic!("worker {}, request {id}: {complaint}", self.number),
        };
        let hurries = self.world.chance(self.temper.hurries) || connection.task.is_some_and(|task| task.early);
        if hurries && framing != Framing::Length(0) && event.is_none() {
            self.answer(connection, (id, number), &head, true);
            return true;
        }
        self.read_body(connection, (id, number), head, Body::new(framing))
    }

    /// A worker never has more requests than it takes at a time, nor new ones when it is being drained. Of several at a time those
    /// are not counted whose answer nobody waits for any more.
    fn check_load(&self, id: RequestId) {
        let left = |end| self.concurrency > 1 && self.world.other_has_finished(end);
        let busy = |connection: &&Connection| {
            let busy = matches!(connection.state, State::Body(..) | State::Answering(_));
            busy && self.world.other_is_open(connection.end) && !left(connection.end)
        };
        let load = self.connections.iter().filter(busy).count();
        assert!(load < self.concurrency, "worker {} got request {id} although it has {load}", self.number);
        let late = self.draining.is_some_and(|since| self.world.now() > since + DRAIN_GRACE);
        assert!(!late, "worker {} got request {id} although it is being drained", self.number);
    }

    fn read_body(&mut self, connection: &mut Connection, name: (RequestId, usize), head: Head, mut body: Body) -> bool {
        if let Err(complaint) = body.feed(&mut connection.input) {
            panic!("worker {}, request {}: {complaint}", self.number, name.0);
        }
        if body.done {
            match &mut connection.event {
                Some(event) => *event = std::mem::take(&mut body.bytes),
                None => {
                    assert!(wire::is_patterned(name.0, &body.bytes), "request {} came with another body", name.0);
                }
            }
            self.answer(connection, name, &head, false);
            return true;
        }
        connection.state = State::Body(name.0, name.1, head, body);
        !connection.ended
    }

    /// Decides what to answer.
    fn answer(&mut self, connection: &mut Connection, (id, number): (RequestId, usize), head: &Head, early: bool) {
        let world = self.world.clone();
        let temper = self.temper;
        let think = Duration::from_micros(world.below(temper.thinks.as_micros() as usize + 1) as u64);
        let mut answer = Answer {
            id,
            number,
            bytes: Vec::new(),
            head: usize::MAX,
            written: 0,
            whole: usize::MAX,
            piece: [7, 500, 100_000][world.below(3)],
            not_before: world.now() + think,
            every: Duration::ZERO,
            after: if early { After::Close } else { After::Keep },
            fate: Fate::Answered,
        };
        let mut intent = if world.chance(temper.declines) {
            answer.fate = Fate::Declined;
            let said = ["Rip-Worker-Busy", "Rip-Worker-Draining"][world.below(2)];
            let length = if head.line.starts_with("HEAD") { 0 } else { 4 };
            answer.bytes =
                format!("HTTP/1.1 503 Busy\r\nX-Answer: {id}.{number}\r\n{said}: 1\r\nContent-Length: 4\r\n\r\n")
                    .into();
            answer.bytes.extend(wire::patterned(!id, length));
            Intent { status: 503, body: length, broken: false, shortened: false }
        } else if head.field("upgrade").is_some() && world.chance(800) {
            answer.after = After::Tunnel;
            answer.bytes = format!(
                "HTTP/1.1 101 Switching Protocols\r\nX-Answer: {id}.{number}\r\nUpgrade: websocket\r\n\
                 Connection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            )
            .into();
            Intent { status: 101, body: 0, broken: false, shortened: false }
        } else if let (Some(body), Some(app)) = (&connection.event, &self.app) {
            let said = app.borrow_mut().answer(head, body);
            self.event_answer(&mut answer, said)
        } else if let Some(task) = connection.task {
            self.task_answer(&mut answer, head, &task)
        } else {
            self.ordinary_answer(&mut answer, head)
        };
        if answer.fate == Fate::Declined {
            // It has not run, whatever becomes of these words on their way.
            self.ledger.borrow_mut().ended(id, number, Fate::Declined);
        } else if answer.after != After::Tunnel {
            self.spoil(&mut answer, &mut intent);
        }
        self.ledger.borrow_mut().intends(id, number, intent);
        answer.head = head_length(&answer.bytes);
        connection.state = State::Answering(answer);
    }

    /// What the app says to an event.
    fn event_answer(&self, answer: &mut Answer, said: Said) -> Intent {
        let (name, kind, length) = (format!("{}.{}", answer.id, answer.number), said.kind, said.body.len());
        let mut out = format!("HTTP/1.1 {} Said\r\nX-Answer: {name}\r\nContent-Type: {kind}\r\n", said.status);
        let body = if said.status == 204 {
            Vec::new()
        } else if self.world.chance(300) {
            out += "Transfer-Encoding: chunked\r\n";
            wire::chunked(&said.body, &[self.world.between(1, 30), self.world.between(20, 5000)], "")
        } else {
            out += &format!("Content-Length: {length}\r\n");
            said.body
        };
        if self.world.chance(100) {
            out += "Connection: close\r\n";
            answer.after = After::Close;
        }
        answer.bytes = [out.as_bytes(), b"\r\n", &body].concat();
        answer.piece = answer.piece.max(length / 20);
        Intent { status: said.status, body: length, broken: false, shortened: false }
    }

    fn ordinary_answer(&self, answer: &mut Answer, head: &Head) -> Intent {
        let world = &self.world;
        let is_head = head.line.starts_with("HEAD");
        let status = [200, 200, 200, 200, 404, 204, 304][world.below(7)];
        let len =
            if world.chance(60) { world.below(self.temper.long_body + 1) } else { world.below(self.temper.body + 1) };
        let name = format!("{}.{}", answer.id, answer.number);
        let mut out = String::new();
        if world.chance(100) {
            out += ["HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"][world.below(2)];
        }
        out += &format!("HTTP/1.1 {status} Said\r\nX-Answer: {name}\r\n");
        if answer.after == After::Close || world.chance(100) {
            out += "Connection: close\r\n";
            answer.after = After::Close;
        } else if world.chance(100) {
            out += &format!("Keep-Alive: timeout={}\r\n", world.between(1, 5));
        }
        let bodiless = matches!(status, 204 | 304);
        let body = if bodiless { Vec::new() } else { wire::patterned(!answer.id, len) };
        let framing = if bodiless { 3 } else { world.below(if is_head { 2 } else { 3 }) };
        let wire_body = match framing {
            0 => {
                out += &format!("Content-Length: {len}\r\n");
                body
            }
            1 => {
                out += "Transfer-Encoding: chunked\r\n";
                let sizes = [world.between(1, 30), world.between(20, 5000)];
                wire::chunked(&body, &sizes, ["", "X-Sum: 7\r\n"][world.below(2)])
            }
            2 => {
                answer.after = After::Close;
                body
            }
            _ => Vec::new(),
        };
        out += "\r\n";
        answer.bytes = out.into_bytes();
        let shown = if bodiless || is_head { 0 } else { len };
        if !is_head {
            answer.bytes.extend(wire_body);
        }
        Intent { status, body: shown, broken: false, shortened: false }
    }

    /// What a crowd's request asks for.
    fn task_answer(&self, answer: &mut Answer, head: &Head, task: &Task) -> Intent {
        (answer.piece, answer.every) = (task.writes.bytes.min(100_000), task.writes.every);
        let name = format!("{}.{}", answer.id, answer.number);
        let kind = if task.stream { "text/event-stream" } else { "application/octet-stream" };
        let mut out = format!("HTTP/1.1 200 Said\r\nX-Answer: {name}\r\nContent-Type: {kind}\r\n");
        if answer.after == After::Close {
            out += "Connection: close\r\n";
        }
        let body = wire::patterned(!answer.id, task.length);
        let is_head = head.line.starts_with("HEAD");
        let wire_body = match self.world.below(if task.early { 2 } else { 3 }) {
            0 if !task.stream => {
                out += &format!("Content-Length: {}\r\n", task.length);
                body
            }
            2 if !is_head => {
                answer.after = After::Close;
                body
            }
            _ => {
                out += "Transfer-Encoding: chunked\r\n";
                wire::chunked(&body, &[self.world.between(100, 3000), 20_000], "")
            }
        };
        out += "\r\n";
        answer.bytes = out.into_bytes();
        let shown = if is_head { 0 } else { task.length };
        if !is_head {
            answer.bytes.extend(wire_body);
        }
        Intent { status: 200, body: shown, broken: false, shortened: false }
    }

    /// Makes a bad answer of a good one.
    fn spoil(&self, answer: &mut Answer, intent: &mut Intent) {
        let (world, temper) = (&self.world, self.temper);
        let whole = answer.bytes.len();
        let cut = self.place_to_cut(&answer.bytes);
        if world.chance(temper.lies) {
            match world.below(4) {
                0 => answer.bytes = b"HTTP/1.1 2x0 What\r\n\r\n".to_vec(),
                1 => answer.bytes = (0..world.between(1, 300)).map(|_| world.below(256) as u8).collect(),
                2 => answer.bytes.splice(9..9, *b"\0").for_each(drop),
                _ => {
                    // Surplus bytes are no part of a good answer; the connection must not be used again.
                    if temper.strays && whole < 4096 && !reads_until_close(&answer.bytes) {
                        answer.bytes.extend_from_slice(b"HTTP/1.1 200 Stray\r\nContent-Length: 0\r\n\r\n");
                        (answer.piece, answer.whole) = (usize::MAX, whole);
                        answer.after = if answer.after == After::Close { After::Close } else { After::Hang };
                    }
                    return;
                }
            }
            intent.broken = true;
            answer.after = After::Close;
        } else if world.chance(temper.drops) {
            answer.bytes.truncate(cut);
            (answer.after, answer.fate) = (After::Close, Fate::Dropped);
            intent.broken = !reads_until_close(&answer.bytes);
        } else if world.chance(temper.dies) {
            answer.bytes.truncate(cut);
            (answer.after, answer.fate) = (After::Die, Fate::Died);
            intent.broken = !reads_until_close(&answer.bytes);
        } else if world.chance(temper.hangs) {
            answer.bytes.truncate(cut);
            answer.after = After::Hang;
            intent.broken = !reads_until_close(&answer.bytes);
        }
        if answer.fate != Fate::Answered && !intent.broken {
            // Nobody can tell a body cut at its end by a clean close from a shorter one.
            let head = answer.bytes.windows(4).rposition(|four| four == b"\r\n\r\n").map_or(0, |at| at + 4);
            intent.body = intent.body.min(answer.bytes.len() - head);
        }
    }

    /// Somewhere before an answer's end: anywhere, or behind a line, where a cut is easiest to overlook.
    fn place_to_cut(&self, bytes: &[u8]) -> usize {
        if bytes.len() > LONG {
            return self.world.below(bytes.len());
        }
        let lines: Vec<usize> = (2..bytes.len()).filter(|end| bytes[end - 2..*end] == *b"\r\n").collect();
        if lines.is_empty() || self.world.chance(300) {
            return self.world.below(bytes.len());
        }
        lines[self.world.below(lines.len())]
    }

    fn write(&mut self, connection: &mut Connection, mut answer: Answer, now: Instant) -> bool {
        if answer.not_before <= now && answer.written < answer.bytes.len() {
            let most = answer.written.saturating_add(answer.piece).min(answer.bytes.len());
            match self.world.write(connection.end, &answer.bytes[answer.written..most]) {
                Ok(count) => {
                    if count < answer.bytes.len() - answer.written {
                        answer.bytes.truncate(answer.whole);
                    }
                    answer.written = (answer.written + count).min(answer.bytes.len());
                    answer.not_before = self.after(answer.every);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => {
                    connection.state = State::Answering(answer);
                    return false;
                }
            }
            let mut ledger = self.ledger.borrow_mut();
            ledger.speaks(answer.id, answer.number, now);
            if answer.written > 0 && answer.fate != Fate::Declined {
                ledger.wrote(answer.id, answer.number, answer.written >= answer.head, now);
            }
        }
        if answer.written < answer.bytes.len() || (answer.written == 0 && answer.not_before > now) {
            connection.state = State::Answering(answer);
            return true;
        }
        self.ledger.borrow_mut().ended(answer.id, answer.number, answer.fate);
        connection.served += 1;
        match answer.after {
            After::Keep => {
                (connection.state, connection.name, connection.task) = (State::Idle, None, None);
                if self.world.chance(self.temper.closes_idle) {
                    connection.close_at = Some(now + Duration::from_micros(self.world.below(20_000) as u64));
                }
                !connection.ended
            }
            After::Close => false,
            After::Die => {
                self.wants_to_die = true;
                true
            }
            After::Hang => {
                let cut = reads_until_close(&answer.bytes).then_some((answer.id, answer.number));
                connection.state = State::Hanging(cut);
                true
            }
            After::Tunnel => {
                connection.state = State::Tunnel(Vec::new());
                true
            }
        }
    }

    /// Sends back what comes.
    fn tunnel(&self, connection: &mut Connection, mut out: Vec<u8>) -> bool {
        out.append(&mut connection.input);
        if !out.is_empty() {
            match self.world.write(connection.end, &out) {
                Ok(count) => drop(out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => return false,
            }
        }
        let over = connection.ended && out.is_empty();
        connection.state = State::Tunnel(out);
        !over
    }
}

/// How long the head of an answer is, with the interim ones before it; more than anything where it has none.
fn head_length(answer: &[u8]) -> usize {
    let most = answer.len().min(MOST_HEAD);
    let mut bytes = answer[..most].to_vec();
    while let Ok(Some(head)) = Head::take(&mut bytes) {
        if head.status().is_ok_and(|status| status >= 200 || status == 101) {
            return most - bytes.len();
        }
    }
    usize::MAX
}

/// Whether an answer's body ends with the connection: its head is whole and has no framing.
fn reads_until_close(answer: &[u8]) -> bool {
    let mut bytes = answer.to_vec();
    while let Ok(Some(head)) = Head::take(&mut bytes) {
        let status = head.status().unwrap_or(0);
        if status >= 200 {
            return !matches!(status, 204 | 304) && matches!(head.framing(), Ok(None));
        }
    }
    false
}
