//! Scripted clients: each opens connections one after the other and sends its requests in the way that its plan says.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::{Duration, Instant};

use production_server::backends::simulated::{End, Place};

use super::checks::{Ledger, Reply, RequestId};
use super::line::Line;
use super::wire::{self, Body, Framing, Head};

/// How long a client waits for "100 Continue" before it sends the body all the same.
const CONTINUE_PATIENCE: Duration = Duration::from_millis(500);
/// How long after a refused connect the next is tried, and how often.
const CONNECT_AGAIN: Duration = Duration::from_millis(20);
const CONNECT_TRIES: u32 = 50;

/// How a client leaves a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    /// When all is answered.
    Done,
    /// It finishes sending behind its last request and reads on.
    Finishes,
    /// It finishes sending in the middle, after so many bytes.
    FinishesAt(usize),
    /// It resets the connection after so many bytes written.
    ResetsAt(usize),
    /// It is gone after so many bytes read.
    GoneAt(usize),
    /// It is gone when it has waited so long since it last wrote.
    Impatient(Duration),
}

struct Request {
    id: RequestId,
    bytes: Vec<u8>,
    head: usize,
    is_head: bool,
    http10: bool,
    expects: bool,
    /// The client says, or its version says, that the connection ends with this one.
    last: bool,
    /// Bytes to be echoed through a websocket.
    tunnel: Option<usize>,
}

struct Plan {
    requests: Vec<Rc<Request>>,
    /// Requests that may be unanswered while the next is sent.
    depth: usize,
    /// Bytes written in a step, at most.
    piece: usize,
    /// Bytes read in a step, at most, and in how many steps of 1000.
    read: usize,
    reads: u32,
    leave: Leave,
}

struct Tunnel {
    number: u32,
    total: usize,
    sent: usize,
    came: usize,
}

/// A connection that is open.
struct Live {
    end: End,
    plan: Plan,
    /// The request being written, and how much of it was.
    writing: usize,
    offset: usize,
    answered: usize,
    written: usize,
    wrote_at: Instant,
    read: usize,
    input: Vec<u8>,
    answer: Option<(Head, Body)>,
    continued: bool,
    body_at: Option<Instant>,
    finished: bool,
    /// A write has failed: what a read says of the end is no longer to be trusted.
    broken: bool,
    /// The last answer said that the connection closes.
    closes: bool,
    tunnel: Option<Tunnel>,
}

impl Live {
    fn gone_at(&self) -> Option<Instant> {
        match self.plan.leave {
            Leave::Impatient(patience) => Some(self.wrote_at + patience),
            _ => None,
        }
    }
}

/// A scripted client.
pub struct Client {
    world: Line,
    ledger: Rc<RefCell<Ledger>>,
    place: Place,
    plans: Vec<Plan>,
    live: Option<Live>,
    again_at: Option<Instant>,
    tries: u32,
}

/// What clients of a run may do.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// They may leave early, and ask for tunnels.
    pub rude: bool,
    /// A few bodies are as long as that.
    pub long_body: usize,
    /// They begin each connection with a PROXY protocol header.
    pub proxied: bool,
}

impl Client {
    /// A client with a random plan.
    pub fn new(world: &Line, ledger: &Rc<RefCell<Ledger>>, place: &Place, manners: Manners) -> Client {
        let mut client = Client {
            world: world.clone(),
            ledger: Rc::clone(ledger),
            place: place.clone(),
            plans: Vec::new(),
            live: None,
            again_at: None,
            tries: 0,
        };
        client.plans = (0..world.between(1, 3)).map(|_| client.plan(manners)).collect();
        client
    }

    /// Whether it has nothing left to do.
    pub fn is_done(&self) -> bool {
        self.plans.is_empty() && self.live.is_none()
    }

    /// When it goes on by itself.
    pub fn deadline(&self) -> Option<Instant> {
        let live = self.live.as_ref();
        let [body_at, gone_at] = [live.and_then(|live| live.body_at), live.and_then(Live::gone_at)];
        [self.again_at, body_at, gone_at].into_iter().flatten().filter(|at| *at > self.world.now()).min()
    }

    /// For messages: what it waits for.
    pub fn state(&self) -> String {
        match &self.live {
            None => format!("{} connections to come", self.plans.len()),
            Some(live) => format!(
                "{}: {} of {} requests answered, writing {:?} at {}, leaves {:?}",
                live.end,
                live.answered,
                live.plan.requests.len(),
                live.plan.requests.get(live.writing).map(|request| request.id),
                live.offset,
                live.plan.leave
            ),
        }
    }

    fn plan(&self, manners: Manners) -> Plan {
        let world = &self.world;
        let count = world.between(1, 6);
        let mut requests: Vec<_> = (0..count).map(|_| Rc::new(self.request(manners))).collect();
        let last = requests.iter().position(|request| request.last || request.tunnel.is_some());
        requests.truncate(last.map_or(count, |last| last + 1));
        if let Some(first) = requests.first_mut().and_then(Rc::get_mut).filter(|_| manners.proxied) {
            let header = self.proxy_header();
            first.head += header.len();
            first.bytes.splice(..0, header);
        }
        let total: usize = requests.iter().map(|request| request.bytes.len()).sum();
        let slow = world.chance(150) && total < 1500;
        let leave = match world.below(if manners.rude { 13 } else { 8 }) {
            // Whoever ends before an answer is taken for one who has left, unless the connection ends with that answer anyway.
            0 if manners.rude || requests.last().is_some_and(|request| request.last) => Leave::Finishes,
            8 => Leave::FinishesAt(world.between(1, total)),
            9 => Leave::ResetsAt(world.between(1, total)),
            10 => Leave::GoneAt(world.between(1, 2000)),
            11 | 12 => Leave::Impatient(Duration::from_micros(world.below(40_000) as u64)),
            _ => Leave::Done,
        };
        Plan {
            depth: if world.chance(400) && (manners.rude || leave == Leave::Done) { world.between(2, 6) } else { 1 },
            piece: if slow { 1 } else { [if total < 8000 { 60 } else { 700 }, 700, 20_000][world.below(3)] },
            read: [100, 4096, 65_536][world.below(3)],
            reads: [200, 1000][world.below(2)],
            requests,
            leave,
        }
    }

    /// A header of the PROXY protocol, of either version and of any length.
    fn proxy_header(&self) -> Vec<u8> {
        match self.world.below(3) {
            0 => b"PROXY UNKNOWN\r\n".to_vec(),
            1 => b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n".to_vec(),
            _ => {
                let padding = vec![0; self.world.below(3000)];
                let behind = (12 + 3 + padding.len() as u16).to_be_bytes();
                let fixed = [b"\r\n\r\n\0\r\nQUIT\n\x21\x11".as_slice(), &behind].concat();
                let padded = [&[4][..], &(padding.len() as u16).to_be_bytes(), &padding].concat();
                [fixed, vec![203, 0, 113, 7, 192, 0, 2, 1, 0xdc, 4, 1, 0xbb], padded].concat()
            }
        }
    }

    fn request(&self, manners: Manners) -> Request {
        let world = &self.world;
        let method = ["GET", "GET", "GET", "HEAD", "PUT", "DELETE", "POST", "POST"][world.below(8)];
        let http10 = world.chance(120);
        let tunnel = (manners.rude && method == "GET" && !http10 && world.chance(120)).then(|| world.between(0, 5000));
        let id = self.ledger.borrow_mut().open(method != "POST");
        let mut head = format!("{method} /r/{id} HTTP/1.{}\r\nHost: simulated\r\n", u8::from(!http10));
        let mut last = http10;
        if tunnel.is_some() {
            head += "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        } else if world.chance(150) {
            head += if http10 { "Connection: keep-alive\r\n" } else { "Connection: close\r\n" };
            last = !http10;
        }
        if world.chance(200) {
            head += &format!("X-Padding: {}\r\n", "p".repeat(world.below(2000)));
        }
        let (mut body, mut expects) = (Vec::new(), false);
        if matches!(method, "POST" | "PUT") {
            let len = if world.chance(80) { world.below(manners.long_body + 1) } else { world.below(1500) };
            body = wire::patterned(id, len);
            expects = !http10 && world.chance(150);
            if expects {
                head += "Expect: 100-continue\r\n";
            }
            if !http10 && world.chance(400) {
                head += "Transfer-Encoding: chunked\r\n";
                let sizes = [world.between(1, 40), world.between(20, 3000)];
                body = wire::chunked(&body, &sizes, ["", "X-Sum: 7\r\n"][world.below(2)]);
            } else {
                head += &format!("Content-Length: {len}\r\n");
            }
        }
        head += "\r\n";
        let (is_head, length) = (method == "HEAD", head.len());
        let bytes = [head.into_bytes(), body].concat();
        Request { id, bytes, head: length, is_head, http10, expects, last, tunnel }
    }

    /// Does one thing or a few.
    pub fn step(&mut self) {
        let now = self.world.now();
        let Some(mut live) = self.live.take() else {
            if !self.plans.is_empty() && self.again_at.is_none_or(|at| at <= now) {
                self.connect(now);
            }
            return;
        };
        let mut open = self.leave_early(&mut live) && self.write(&mut live, now);
        if open && self.world.chance(live.plan.reads) {
            open = self.read(&mut live);
        } else if open && self.world.is_readable(live.end) {
            // It will read in a moment, so nobody may take this for a standstill.
            self.world.touch();
        }
        if open {
            self.live = Some(live);
        }
    }

    fn connect(&mut self, now: Instant) {
        self.again_at = None;
        let Ok(end) = self.world.connect(&self.place) else {
            self.tries += 1;
            self.again_at = Some(now + CONNECT_AGAIN);
            if self.tries > CONNECT_TRIES {
                self.plans.clear();
                self.again_at = None;
            }
            return;
        };
        let Some(plan) = self.plans.pop() else { return };
        self.live = Some(Live {
            end,
            plan,
            writing: 0,
            offset: 0,
            answered: 0,
            written: 0,
            wrote_at: now,
            read: 0,
            input: Vec::new(),
            answer: None,
            continued: false,
            body_at: None,
            finished: false,
            broken: false,
            closes: false,
            tunnel: None,
        });
    }

    /// Writes a piece, if it is time to. False: it has left.
    fn write(&self, live: &mut Live, now: Instant) -> bool {
        if live.finished || live.broken || live.closes {
            return true;
        }
        if let Some(tunnel) = &mut live.tunnel {
            let most = (tunnel.sent + live.plan.piece).min(tunnel.total);
            if tunnel.sent < most {
                let piece = wire::patterned_from(tunnel.number, tunnel.sent, most - tunnel.sent);
                match self.world.write(live.end, &piece) {
                    Ok(count) => tunnel.sent += count,
                    Err(error) => live.broken = error.kind() != ErrorKind::WouldBlock,
                }
            }
            return true;
        }
        let Some(request) = live.plan.requests.get(live.writing).cloned() else {
            if live.plan.leave == Leave::Finishes {
                self.world.finish(live.end);
                live.finished = true;
            }
            return true;
        };
        if live.writing - live.answered >= live.plan.depth || waits_for_continue(live, &request, now) {
            return true;
        }
        let limit = match live.plan.leave {
            Leave::FinishesAt(at) | Leave::ResetsAt(at) => at - live.written,
            _ => usize::MAX,
        };
        let most = request.bytes.len().min(live.offset + live.plan.piece.min(limit));
        let most = if request.expects && live.offset < request.head { most.min(request.head) } else { most };
        let (id, whole) = (request.id, request.bytes.len());
        if live.offset == 0 {
            self.ledger.borrow_mut().begun(id, now);
            self.world.note(format_args!("{}: request {id}: {}", live.end, text(&request.bytes[..request.head])));
        }
        match self.world.write(live.end, &request.bytes[live.offset..most]) {
            Ok(count) => (live.offset, live.written, live.wrote_at) = (live.offset + count, live.written + count, now),
            Err(error) => live.broken = error.kind() != ErrorKind::WouldBlock,
        }
        if live.offset == whole {
            if live.answered == live.writing {
                self.ledger.borrow_mut().whole(id, now);
            }
            (live.writing, live.offset, live.continued, live.body_at) = (live.writing + 1, 0, false, None);
        }
        self.leave_early(live)
    }

    fn leave_early(&self, live: &mut Live) -> bool {
        match live.plan.leave {
            Leave::FinishesAt(at) if live.written >= at => {
                self.world.finish(live.end);
                live.finished = true;
                true
            }
            Leave::ResetsAt(at) if live.written >= at => {
                self.world.reset(live.end);
                self.account(live, true);
                false
            }
            Leave::Impatient(_) if live.gone_at().is_some_and(|at| at <= self.world.now()) => {
                self.world.close(live.end);
                self.account(live, true);
                false
            }
            Leave::GoneAt(at) if live.read >= at => {
                self.world.close(live.end);
                self.account(live, true);
                false
            }
            _ => true,
        }
    }

    /// Reads what is there. False: the connection is over.
    fn read(&self, live: &mut Live) -> bool {
        let before = live.input.len();
        let over = match self.world.read(live.end, &mut live.input, live.plan.read) {
            Ok(0) => Some(!live.broken),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
            Err(_) => Some(false),
        };
        live.read += live.input.len() - before;
        if let Err(complaint) = self.parse(live, over == Some(true)) {
            panic!("{} at {}: {complaint}", live.plan.requests[0].id, self.describe(live));
        }
        if !self.leave_early(live) {
            return false;
        }
        let tunnel_over = live.tunnel.as_ref().is_some_and(|tunnel| tunnel.came == tunnel.total);
        let complete = live.answered == live.plan.requests.len() && live.tunnel.is_none();
        if over.is_some() || tunnel_over || (complete && self.world.chance(500)) {
            self.world.close(live.end);
            self.account(live, false);
            return false;
        }
        true
    }

    fn describe(&self, live: &Live) -> String {
        format!("{} with {} answered of {}", live.end, live.answered, live.plan.requests.len())
    }

    /// Takes answers off the input.
    fn parse(&self, live: &mut Live, ended: bool) -> Result<(), String> {
        loop {
            if let Some(tunnel) = &mut live.tunnel {
                let fine = wire::is_patterned_from(tunnel.number, tunnel.came, &live.input);
                tunnel.came += live.input.len();
                live.input.clear();
                let kept = fine && tunnel.came <= tunnel.sent;
                return if kept { Ok(()) } else { Err("a tunnel brought other bytes than went in".to_owned()) };
            }
            let sent = live.writing + usize::from(live.offset > 0);
            if live.answered >= sent {
                return if live.input.is_empty() {
                    Ok(())
                } else {
                    Err(format!("an answer to nothing: {:?}", text(&live.input)))
                };
            }
            let request = Rc::clone(&live.plan.requests[live.answered]);
            let Some((head, mut body)) = live.answer.take() else {
                let Some(head) = Head::take(&mut live.input)? else { return Ok(()) };
                self.begin_answer(live, &request, head)?;
                continue;
            };
            body.feed(&mut live.input)?;
            if ended {
                body.end();
            }
            if !body.done {
                live.answer = Some((head, body));
                return Ok(());
            }
            self.finish_answer(live, &request, &head, &body)?;
        }
    }

    fn begin_answer(&self, live: &mut Live, request: &Request, head: Head) -> Result<(), String> {
        let status = head.status()?;
        self.world.note(format_args!("{}: request {} gets {head:?}", live.end, request.id));
        match status {
            100 if request.expects => live.continued = true,
            101 if request.tunnel.is_some() => {
                let reply = Reply::new(status, wire::answer_of(&head), b"");
                self.ledger.borrow_mut().answered(request.id, &reply, self.world.now());
                live.answered += 1;
                let total = request.tunnel.unwrap_or_default();
                live.tunnel = Some(Tunnel { number: request.id, total, sent: 0, came: 0 });
            }
            103 if !request.http10 => {}
            100..200 => return Err(format!("an interim answer that nobody wants: {head:?}")),
            _ => {
                // A refusal of a head that the server never had whole has its body, whatever the method, and no number.
                let known = live.writing > live.answered && head.field("x-request-id").is_some();
                let bodiless = (request.is_head && known) || matches!(status, 204 | 304);
                let framing = head.framing()?.unwrap_or(Framing::UntilClose);
                if request.http10 && framing == Framing::Chunked && !bodiless {
                    return Err("chunks for HTTP/1.0".to_owned());
                }
                let framing = if bodiless { Framing::Length(0) } else { framing };
                live.answer = Some((head, Body::new(framing)));
            }
        }
        Ok(())
    }

    fn finish_answer(&self, live: &mut Live, request: &Request, head: &Head, body: &Body) -> Result<(), String> {
        let answer = wire::answer_of(head);
        if answer.is_some() && !wire::is_patterned(!request.id, &body.bytes) {
            return Err(format!("the answer to {} has another body", request.id));
        }
        let reply = Reply::new(head.status()?, answer, &body.bytes);
        self.ledger.borrow_mut().answered(request.id, &reply, self.world.now());
        live.answered += 1;
        let kept = !request.http10 || head.connection_says("keep-alive");
        live.closes = request.last || !kept || head.connection_says("close");
        if head.field("date").is_none() {
            return Err(format!("an answer without a date: {head:?}"));
        }
        // Whoever is told that the connection closes sends no more, and is answered no more.
        Ok(())
    }

    /// Says of each request of a connection that is over what became of it.
    fn account(&self, live: &Live, by_client: bool) {
        let mut ledger = self.ledger.borrow_mut();
        let left = by_client || live.closes || !matches!(live.plan.leave, Leave::Done | Leave::Finishes);
        for request in &live.plan.requests[live.answered..] {
            ledger.cut(request.id, left);
        }
    }
}

fn waits_for_continue(live: &mut Live, request: &Request, now: Instant) -> bool {
    if !request.expects || live.continued || live.offset != request.head || request.head == request.bytes.len() {
        return false;
    }
    now < *live.body_at.get_or_insert(now + CONTINUE_PATIENCE)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned()
}
