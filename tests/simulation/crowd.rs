//! Crowds: dozens to hundreds of peers who wait, or keep others waiting, beside the ordinary clients of a run.
//!
//! The rule that they are to break: whoever waits, waits alone. The pool and the budget of such a run are small, so that a block that
//! waits for a peer starves the loop, and answers pause for memory; its timeouts are short, so that a clock that runs against the
//! wrong one strikes. Each peer either does its part, and then nobody may blame it, or is silent on purpose.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use production_server::backends::simulated::{Faults, Place, Random};
use production_server::config::Settings;
use production_server::event_loop::RESERVED_SHARE;

use super::checks::{Expects, Ledger};
use super::driver::Kind as RunKind;
use super::line::Line;
use super::peers::{Peer, Script};
use super::tasks::{Pace, Task};
use super::wire;

/// What the network holds in a direction: so much that peers are as fast as they mean to be, and no more than what a receive brings.
const CAPACITY: std::ops::RangeInclusive<usize> = 8192..=16_384;
/// Crowds of 1000 whose bytes take time to arrive.
const DELAYED: u32 = 100;
/// Bytes that a stalled head is charged with, at most.
const HEAD_BYTES: usize = 36 * 1024;
/// Bytes that ordinary clients keep waiting at a time, at most.
const ORDINARY_BYTES: usize = 150_000;
/// For how long nobody stalls who means to be served, whatever he waits with.
const STALL: usize = 1200;

/// What the peers of a crowd do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// They take a long answer slowly, after a while in which they take nothing.
    Readers,
    /// They take nothing of a long answer until it is too late.
    DeafReaders,
    /// They are deaf for a while to an event stream that goes on.
    Streams,
    /// They are deaf to it until it is too late.
    DeafStreams,
    /// They send a short body slowly, and stall in its middle.
    Uploads,
    /// The same with one that is too long to be collected.
    LongUploads,
    /// They never send the end of it.
    SilentUploads,
    /// They send a body at once that its worker reads slowly.
    Feeders,
    /// They are answered before they have sent their body.
    Early,
    /// They send through a tunnel, and one side does not read.
    Tunnels,
    /// They keep their connections after a short answer.
    Idle,
    /// They stall in the middle of a large head.
    Heads,
    /// They never send the end of it.
    SilentHeads,
}

/// All of them.
pub const KINDS: [Kind; 13] = [
    Kind::Readers,
    Kind::DeafReaders,
    Kind::Streams,
    Kind::DeafStreams,
    Kind::Uploads,
    Kind::LongUploads,
    Kind::SilentUploads,
    Kind::Feeders,
    Kind::Early,
    Kind::Tunnels,
    Kind::Idle,
    Kind::Heads,
    Kind::SilentHeads,
];

impl Kind {
    /// Whether one of them may keep a worker for as long as it likes, however much memory there is.
    fn holds_worker(self) -> bool {
        !matches!(self, Kind::Readers | Kind::DeafReaders) && self.moves_much()
    }

    /// Whether it moves more than there may be memory for.
    fn moves_much(self) -> bool {
        !matches!(self, Kind::Uploads | Kind::Idle | Kind::Heads | Kind::SilentHeads)
    }
}

/// What a crowd consists of.
#[derive(Clone, Debug)]
pub struct Plan {
    groups: Vec<(Kind, usize)>,
    /// Milliseconds between the instants at which its peers do something.
    tick: usize,
    /// There is memory for all that its peers wait for, so that they keep no worker.
    ample: bool,
    calm: bool,
}

impl Plan {
    /// A crowd of one to three kinds.
    pub fn draw(run: RunKind, random: &mut Random) -> Plan {
        let total = if random.chance(150) { random.between(80, 200) } else { random.between(24, 60) };
        let suits = |kind: &Kind| run != RunKind::Orderly || !kind.holds_worker();
        let kinds: Vec<Kind> = KINDS.into_iter().filter(suits).collect();
        let count = random.between(1, 3);
        let groups: Vec<_> = (0..count).map(|_| (kinds[random.below(kinds.len())], total / count)).collect();
        let ample = groups.iter().all(|(kind, _)| !kind.holds_worker()) && random.chance(500);
        let tick = [50, 100, 200][random.below(3)];
        Plan { groups, tick, ample: ample || run == RunKind::Orderly, calm: run != RunKind::Wild }
    }

    /// How many peers there are.
    pub fn len(&self) -> usize {
        self.groups.iter().map(|(_, count)| count).sum()
    }

    /// Which kinds take part, in the order of [`KINDS`].
    pub fn kinds(&self) -> [usize; KINDS.len()] {
        KINDS.map(|kind| usize::from(self.groups.iter().any(|(other, _)| *other == kind)))
    }

    fn count(&self, suits: impl Fn(Kind) -> bool) -> usize {
        self.groups.iter().filter(|(kind, _)| suits(*kind)).map(|(_, count)| count).sum()
    }

    /// Makes the settings of a run those of a run with this crowd.
    pub fn adjust(&self, settings: &mut Settings, faults: &mut Faults, random: &mut Random) {
        let seconds = Duration::from_secs;
        faults.capacity = faults.capacity.clamp(*CAPACITY.start(), *CAPACITY.end());
        if !random.chance(DELAYED) {
            // Bytes that arrive one after the other make a turn each. The other runs have enough of that.
            faults.delay = Duration::ZERO;
        }
        let timeouts = &mut settings.timeouts;
        (timeouts.header, timeouts.body, timeouts.write) = (seconds(5), seconds(2), seconds(4));
        timeouts.idle = seconds([6, 20][random.below(2)]);
        let app = &mut settings.app;
        app.buffers.response = [1 << 16, 1 << 18, 1 << 24][random.below(3)];
        settings.stores.buffer_bytes = [150_000, 300_000, 600_000][random.below(3)];
        if self.ample {
            (app.buffers.response, settings.stores.buffer_bytes) = (1 << 24, 1 << 28);
        } else if self.calm {
            settings.stores.buffer_bytes = self.least_budget(faults.capacity);
        }
        if self.calm {
            (app.timeouts.read, app.timeouts.request) = (seconds(2), seconds(30));
            app.queue.size = 1000;
        }
        // Who keeps a worker is not to keep it from others, unless the workers' side is what may go wrong.
        if !self.ample && (self.calm || random.chance(500)) {
            app.sharing.concurrency = self.len() as u32 + 40;
        }
    }

    /// The smallest budget with which nobody's waiting is refused. A part of it is left to requests; and when the rest is used up,
    /// everybody who moves much may still be brought what is on its way.
    fn least_budget(&self, capacity: usize) -> usize {
        let heads = self.count(|kind| matches!(kind, Kind::Heads | Kind::SilentHeads));
        RESERVED_SHARE * (self.count(Kind::moves_much) * capacity + heads * HEAD_BYTES + ORDINARY_BYTES)
    }

    /// How many connections there may be beside ordinary clients, where idle ones make room for others; `None` for all. Who waits
    /// outside has not come yet, so that an orderly run has room for all.
    pub fn crowded_doors(&self, run: RunKind) -> Option<usize> {
        let idle = self.count(|kind| kind == Kind::Idle);
        (idle > 0 && run != RunKind::Orderly).then(|| self.len() - idle / 3)
    }
}

/// A crowd.
pub struct Crowd {
    world: Line,
    ledger: Rc<RefCell<Ledger>>,
    place: Place,
    calm: bool,
    peers: Vec<Peer>,
}

impl Crowd {
    /// The peers of that plan.
    pub fn new(world: &Line, ledger: &Rc<RefCell<Ledger>>, place: &Place, plan: Option<&Plan>) -> Crowd {
        let (world, ledger, place) = (world.clone(), Rc::clone(ledger), place.clone());
        let mut crowd = Crowd { world, ledger, place, calm: false, peers: Vec::new() };
        let Some(plan) = plan else { return crowd };
        crowd.calm = plan.calm;
        for (kind, count) in &plan.groups {
            for _ in 0..*count {
                let script = crowd.script(*kind, plan.tick);
                crowd.peers.push(Peer::new(script, crowd.world.now()));
            }
        }
        crowd
    }

    /// Whether all its peers are done.
    pub fn is_done(&self) -> bool {
        self.peers.iter().all(|peer| peer.deadline().is_none())
    }

    /// When one of them goes on.
    pub fn deadline(&self) -> Option<Instant> {
        self.peers.iter().filter_map(Peer::deadline).min()
    }

    /// For messages: who is not done.
    pub fn state(&self) -> Vec<String> {
        self.peers.iter().filter(|peer| peer.deadline().is_some()).map(Peer::describe).collect()
    }

    /// Lets those tick whose time it is.
    pub fn step(&mut self) {
        let now = self.world.now();
        for peer in self.peers.iter_mut().filter(|peer| peer.deadline().is_some_and(|at| at <= now)) {
            peer.tick(&self.world, &self.ledger, &self.place);
        }
    }

    fn script(&self, kind: Kind, tick: usize) -> Script {
        let world = &self.world;
        let mut script = match kind {
            Kind::Readers | Kind::DeafReaders | Kind::Streams | Kind::DeafStreams => self.reader(kind),
            Kind::Uploads | Kind::LongUploads | Kind::SilentUploads | Kind::Feeders | Kind::Early => self.sender(kind),
            Kind::Tunnels => self.tunneller(),
            Kind::Idle => self.idler(),
            Kind::Heads | Kind::SilentHeads => self.beginner(kind),
        };
        let ticks = if matches!(kind, Kind::Heads | Kind::SilentHeads) { 1 } else { world.between(1, 2) };
        script.every = milliseconds(ticks * tick);
        script.begins = milliseconds(world.below(1500 / tick) * tick);
        if world.chance(120) {
            script.quits = Some(milliseconds(world.between(1, 60) * tick));
        }
        script
    }

    /// A request of a client that does its part, at once.
    fn ask(&self, name: &'static str, method: &str, expects: Expects, fields: &str, body: usize) -> Script {
        let id = self.ledger.borrow_mut().open_crowded(method != "POST", expects);
        let mut request = format!("{method} /r/{id} HTTP/1.1\r\nHost: simulated\r\n{fields}").into_bytes();
        let bytes = wire::patterned(id, body);
        if body == 0 {
            request.extend_from_slice(b"\r\n");
        } else if self.world.chance(500) {
            request.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
            request.extend(wire::chunked(&bytes, &[self.world.between(50, 4000)], ""));
        } else {
            request.extend_from_slice(format!("Content-Length: {body}\r\n\r\n").as_bytes());
            request.extend(bytes);
        }
        Script {
            name,
            id,
            request,
            is_head: method == "HEAD",
            tunnel: None,
            begins: Duration::ZERO,
            every: Duration::ZERO,
            writes: usize::MAX,
            reads: usize::MAX,
            stall: None,
            deaf: Duration::ZERO,
            stays: Duration::ZERO,
            quits: None,
        }
    }

    fn reader(&self, kind: Kind) -> Script {
        let world = &self.world;
        let stream = matches!(kind, Kind::Streams | Kind::DeafStreams);
        let deaf = matches!(kind, Kind::DeafReaders | Kind::DeafStreams);
        let mut task = Task::answer(world.between(40_000, if self.calm { 300_000 } else { 150_000 }));
        if stream {
            task = Task { stream, writes: Pace::new(world.between(500, 5000), world.between(20, 400)), ..task };
            task.length = (task.writes.bytes * world.between(10, 40)).min(100_000);
        }
        let expects = if deaf { Expects::Anything } else { Expects::Answer };
        let name = if stream { "a stream's reader" } else { "a slow reader" };
        let mut script = self.ask(name, "GET", expects, &task.field(), 0);
        script.reads = world.between(4, 16) * 1024;
        // Three of the four looks of the write timeout go by at most.
        script.deaf = milliseconds(if deaf { world.between(5000, 9000) } else { world.below(2500) });
        script
    }

    fn sender(&self, kind: Kind) -> Script {
        let world = &self.world;
        let long = match kind {
            Kind::Uploads => world.between(3000, 30_000),
            Kind::LongUploads | Kind::SilentUploads => world.between(3000, 80_000),
            _ => world.between(30_000, 120_000),
        };
        let mut task = Task::answer(world.below(3000));
        if kind == Kind::Feeders {
            task.reads = self.slow_reads(long);
        }
        if kind == Kind::Early {
            task = Task { early: true, ..Task::answer(world.below(60_000)) };
        }
        let (name, expects) = match kind {
            Kind::SilentUploads => ("a silent upload", Expects::Blame),
            Kind::Feeders => ("a feeder", Expects::Answer),
            Kind::Early => ("an early one", Expects::Anything),
            _ => ("an upload", Expects::Answer),
        };
        let mut script = self.ask(name, ["POST", "PUT"][world.below(2)], expects, &task.field(), long);
        if kind == Kind::Feeders {
            return script;
        }
        script.writes = world.between(2, 6) * 1024;
        // Its head alone is what many a client sends first.
        let head = script.request.windows(4).position(|four| four == b"\r\n\r\n").map_or(1, |at| at + 4);
        let at = if world.chance(300) { head } else { world.between(1, script.request.len() - 1) };
        let pause = if kind == Kind::SilentUploads { world.between(4000, 9000) } else { world.below(STALL) };
        script.stall = Some((at, milliseconds(pause)));
        script
    }

    /// How a worker reads that many bytes. In a calm run it is done well before it is waited for, or has been seen at it before.
    fn slow_reads(&self, bytes: usize) -> Pace {
        let world = &self.world;
        let piece = world.between(2, 8) * 1024;
        // The first read brings all that the network holds.
        let later = bytes.saturating_sub(*CAPACITY.end());
        let soon = later < 4 * piece || world.chance(500);
        let pause = match (self.calm, soon) {
            (true, true) => world.between(200, 1000) * piece / bytes,
            (true, false) => world.between(4000, 8000) * piece / later,
            (false, _) => world.between(20, 300),
        };
        Pace::new(piece, pause.clamp(1, 1000))
    }

    fn tunneller(&self) -> Script {
        let world = &self.world;
        let mut task = Task::answer(0);
        if world.chance(500) {
            task.reads = Pace::new(world.between(1, 8) * 1024, world.between(20, 1000));
        }
        let upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
        let fields = format!("{upgrade}{}", task.field());
        let mut script = self.ask("a tunnel", "GET", Expects::Anything, &fields, 0);
        script.tunnel = Some(world.between(10_000, 100_000));
        script.writes = world.between(2, 16) * 1024;
        script.deaf = milliseconds(if world.chance(500) { world.between(1000, 6000) } else { 0 });
        script.quits = Some(milliseconds(world.between(2000, 15_000)));
        script
    }

    fn idler(&self) -> Script {
        let mut script = self.ask("an idle one", "GET", Expects::Anything, &Task::answer(100).field(), 0);
        script.stays = milliseconds(self.world.between(1000, 9000));
        script
    }

    fn beginner(&self, kind: Kind) -> Script {
        let world = &self.world;
        let mut fields = Task::answer(100).field();
        let length = world.between(8000, 31_000);
        while fields.len() < length {
            let padding = world.between(100, 2000).min(length - fields.len());
            fields += &format!("X-Padding-{}: {}\r\n", fields.len(), "p".repeat(padding));
        }
        fields.truncate(length);
        fields.truncate(fields.rfind("\r\n").map_or(0, |end| end + 2));
        let silent = kind == Kind::SilentHeads;
        let expects = if silent { Expects::Blame } else { Expects::Answer };
        let mut script = self.ask("a large head", "GET", expects, &fields, 0);
        script.writes = 16 * 1024;
        let at = world.between(1, script.request.len() - 1);
        script.stall = Some((at, milliseconds(if silent { world.between(6000, 9000) } else { world.below(STALL) })));
        script
    }
}

fn milliseconds(count: usize) -> Duration {
    Duration::from_millis(count as u64)
}
