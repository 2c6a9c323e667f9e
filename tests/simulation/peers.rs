//! A peer of a crowd: one connection with one request, and a client that does one small thing at each of its ticks.
//!
//! What it does is all in its [`Script`], so that a slow reader, an upload that stalls and an idle connection are the same code with
//! other numbers. Peers of one crowd have their ticks at the same instants, so that hundreds of them cost no more turns than one.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use production_server::backends::simulated::{End, Place};

use super::checks::{Ledger, Reply, RequestId};
use super::line::Line;
use super::wire::{self, Body, Framing, Head};

/// How often a refused connect is tried again, a tick later.
const CONNECT_TRIES: u32 = 200;

/// What a peer does.
#[derive(Clone, Debug)]
pub struct Script {
    /// Which kind it is of, for messages.
    pub name: &'static str,
    /// Its request's number and bytes.
    pub id: RequestId,
    /// See there.
    pub request: Vec<u8>,
    /// The method is HEAD.
    pub is_head: bool,
    /// Bytes to be sent and brought back through a tunnel.
    pub tunnel: Option<usize>,
    /// When it connects, from the run's start on.
    pub begins: Duration,
    /// The time between two of its ticks.
    pub every: Duration,
    /// Bytes that it writes at a tick, at most.
    pub writes: usize,
    /// Bytes that it reads at a tick, at most.
    pub reads: usize,
    /// After so many bytes of its request it stops sending for so long.
    pub stall: Option<(usize, Duration)>,
    /// For so long after its request it reads nothing.
    pub deaf: Duration,
    /// For so long after its answer it keeps the connection.
    pub stays: Duration,
    /// It is gone so long after it connected.
    pub quits: Option<Duration>,
}

struct Tunnel {
    total: usize,
    sent: usize,
    came: usize,
}

struct Live {
    end: End,
    since: Instant,
    sent: usize,
    /// It sends nothing before that.
    stalled_until: Option<Instant>,
    /// Its request is sent, or its tunnel has begun.
    whole_at: Option<Instant>,
    input: Vec<u8>,
    answer: Option<(Head, Body)>,
    /// Bytes of the answer's body that were compared.
    compared: usize,
    answered_at: Option<Instant>,
    tunnel: Option<Tunnel>,
    /// A write has failed.
    broken: bool,
}

/// What became of a peer at a tick.
#[derive(PartialEq, Eq)]
enum Step {
    GoesOn,
    /// The peer has gone, or has what it came for.
    Leaves,
    /// The server has ended the connection.
    Ended,
}

/// A peer.
pub struct Peer {
    script: Script,
    live: Option<Live>,
    /// Its next tick; `None` when it has nothing left to do.
    next: Option<Instant>,
    tries: u32,
}

impl Peer {
    /// One that waits for its time.
    pub fn new(script: Script, started: Instant) -> Peer {
        let next = Some(started + script.begins);
        Peer { script, live: None, next, tries: 0 }
    }

    /// When it goes on.
    pub fn deadline(&self) -> Option<Instant> {
        self.next
    }

    /// For messages.
    pub fn describe(&self) -> String {
        let Script { name, id, .. } = self.script;
        match &self.live {
            None => format!("{name} {id} is not connected, next {:?}", self.next),
            Some(live) => {
                let (sent, came) = (live.sent, live.compared);
                format!("{name} {id} at {}: {sent} of {} bytes sent, {came} came", live.end, self.script.request.len())
            }
        }
    }

    /// Does what is due at a tick.
    pub fn tick(&mut self, world: &Line, ledger: &RefCell<Ledger>, place: &Place) {
        let now = world.now();
        self.next = Some(now + self.script.every);
        let Some(live) = &mut self.live else { return self.connect(world, place, now) };
        let mut step = write(live, &self.script, world, ledger, now);
        if step == Step::GoesOn {
            step = read(live, &self.script, world, ledger, now);
        }
        if step == Step::GoesOn {
            return;
        }
        world.close(live.end);
        if live.answered_at.is_none() {
            ledger.borrow_mut().cut(self.script.id, step == Step::Leaves);
        }
        world.note(format_args!("{} is over", self.describe()));
        (self.live, self.next) = (None, None);
    }

    fn connect(&mut self, world: &Line, place: &Place, now: Instant) {
        self.tries += 1;
        if self.tries > CONNECT_TRIES {
            self.next = None;
        }
        let Ok(end) = world.connect(place) else { return };
        world.note(format_args!("{end}: {} {}", self.script.name, self.script.id));
        self.live = Some(Live {
            end,
            since: now,
            sent: 0,
            stalled_until: None,
            whole_at: None,
            input: Vec::new(),
            answer: None,
            compared: 0,
            answered_at: None,
            tunnel: None,
            broken: false,
        });
    }
}

/// Writes a piece of the request or of what goes through the tunnel.
fn write(live: &mut Live, script: &Script, world: &Line, ledger: &RefCell<Ledger>, now: Instant) -> Step {
    if script.quits.is_some_and(|after| now >= live.since + after) {
        return Step::Leaves;
    }
    if live.broken || live.stalled_until.is_some_and(|until| now < until) {
        return Step::GoesOn;
    }
    let piece = match &live.tunnel {
        Some(tunnel) => {
            let most = tunnel.total.min(tunnel.sent + script.writes);
            wire::patterned_from(script.id, tunnel.sent, most - tunnel.sent)
        }
        None => {
            let stall = script.stall.filter(|(at, _)| *at > live.sent).map_or(usize::MAX, |(at, _)| at);
            let most = script.request.len().min(live.sent.saturating_add(script.writes)).min(stall);
            script.request[live.sent..most].to_vec()
        }
    };
    // Who has been answered early sends nothing more.
    if piece.is_empty() || (live.answered_at.is_some() && live.tunnel.is_none()) {
        return Step::GoesOn;
    }
    if live.sent == 0 {
        ledger.borrow_mut().begun(script.id, now);
    }
    let count = write_all(live, world, &piece);
    if let Some(tunnel) = &mut live.tunnel {
        tunnel.sent += count;
        return Step::GoesOn;
    }
    live.sent += count;
    if let Some((at, pause)) = script.stall
        && at == live.sent
    {
        live.stalled_until = Some(now + pause);
    }
    if live.sent == script.request.len() {
        live.whole_at = Some(now);
    }
    Step::GoesOn
}

/// Writes as much of a piece as the network takes, however small the parts in which it does.
fn write_all(live: &mut Live, world: &Line, piece: &[u8]) -> usize {
    let mut count = 0;
    while count < piece.len() {
        match world.write(live.end, &piece[count..]) {
            Ok(more) => count += more,
            Err(error) => {
                live.broken = error.kind() != ErrorKind::WouldBlock;
                break;
            }
        }
    }
    count
}

/// Reads a piece and looks at it.
fn read(live: &mut Live, script: &Script, world: &Line, ledger: &RefCell<Ledger>, now: Instant) -> Step {
    if live.whole_at.is_some_and(|whole| now < whole + script.deaf) {
        return Step::GoesOn;
    }
    let (before, mut over) = (live.input.len(), None);
    while over.is_none() && live.input.len() - before < script.reads {
        let left = script.reads - (live.input.len() - before);
        over = match world.read(live.end, &mut live.input, left) {
            Ok(0) => Some(!live.broken),
            Ok(_) => None,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(_) => Some(false),
        };
    }
    if let Err(complaint) = parse(live, script, ledger, over == Some(true), now) {
        panic!("{} {} at {}: {complaint}", script.name, script.id, live.end);
    }
    let stayed = live.answered_at.is_some_and(|at| live.tunnel.is_none() && now >= at + script.stays);
    let back = live.tunnel.as_ref().is_some_and(|tunnel| tunnel.came == tunnel.total);
    match over {
        Some(_) => Step::Ended,
        None if back || stayed => Step::Leaves,
        None => Step::GoesOn,
    }
}

/// Takes what has come for what it should be.
fn parse(live: &mut Live, script: &Script, ledger: &RefCell<Ledger>, ended: bool, now: Instant) -> Result<(), String> {
    loop {
        if let Some(tunnel) = &mut live.tunnel {
            let fine = wire::is_patterned_from(script.id, tunnel.came, &live.input);
            tunnel.came += live.input.len();
            live.input.clear();
            let kept = fine && tunnel.came <= tunnel.sent;
            return if kept { Ok(()) } else { Err("a tunnel brought other bytes than went in".to_owned()) };
        }
        if live.answered_at.is_some() {
            return if live.input.is_empty() { Ok(()) } else { Err("bytes behind the answer".to_owned()) };
        }
        let Some((head, mut body)) = live.answer.take() else {
            let Some(head) = Head::take(&mut live.input)? else { return Ok(()) };
            begin_answer(live, script, ledger, head, now)?;
            continue;
        };
        body.feed(&mut live.input)?;
        if ended {
            body.end();
        }
        let answer = wire::answer_of(&head);
        if answer.is_some() && !wire::is_patterned_from(!script.id, live.compared, &body.bytes[live.compared..]) {
            return Err("the answer has another body".to_owned());
        }
        live.compared = body.bytes.len();
        if !body.done {
            live.answer = Some((head, body));
            return Ok(());
        }
        let reply = Reply::new(head.status()?, answer, &body.bytes);
        ledger.borrow_mut().answered(script.id, &reply, now);
        live.answered_at = Some(now);
    }
}

fn begin_answer(
    live: &mut Live,
    script: &Script,
    ledger: &RefCell<Ledger>,
    head: Head,
    now: Instant,
) -> Result<(), String> {
    match head.status()? {
        101 if script.tunnel.is_some() => {
            let reply = Reply::new(101, wire::answer_of(&head), b"");
            ledger.borrow_mut().answered(script.id, &reply, now);
            (live.answered_at, live.whole_at) = (Some(now), Some(now));
            live.tunnel = script.tunnel.map(|total| Tunnel { total, sent: 0, came: 0 });
        }
        status @ 100..200 => return Err(format!("an interim answer that nobody wants: {status}")),
        status => {
            let bodiless = script.is_head || matches!(status, 204 | 304);
            let framing = head.framing()?.unwrap_or(Framing::UntilClose);
            live.answer = Some((head, Body::new(if bodiless { Framing::Length(0) } else { framing })));
        }
    }
    Ok(())
}
