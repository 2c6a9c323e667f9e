//! The bus: hubs that share their messages, with other replicas on the machine or with other machines. One thread for all of them; it ends with the server.
//!
//! | file | what |
//! |---|---|
//! | `replica` | sans-IO: one of the replicas on a machine, who numbers and who follows |
//! | `frames` | what replicas say to each other |
//! | `directory` | the lock, the socket and the links by which they do |
//! | `line`, `wires` | messages that wait to be numbered; what waits for a link |
//! | `remote` | connections to a server that machines share |
//! | `redis`, `resp`, `nats` | sans-IO: what is spoken with it |
//!
//! Rules: what is published in a hub with a bus goes to its bus as a [`Notice`](crate::hub::Notice), and comes back as an answer; nobody waits for it meanwhile. What is on
//! its way is charged to the hub, a quarter of its memory at most, and has a deadline.

mod directory;
mod frames;
mod line;
mod nats;
mod redis;
mod remote;
mod replica;
mod resp;
mod wires;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mio::{Events, Poll, Token, Waker};

use crate::config::{self, ListenAddress};
use crate::control::status;
use crate::hub::{self, Carrier, Epoch, Hub, Notice, Refused};
use crate::log::{Level, Log};
use crate::mailbox::{Mailbox, Postbox, Postboxes, mailbox};

use directory::Directory;
use nats::Nats;
use redis::Redis;
use remote::{Made, Peer, Remote};
use replica::Replica;

/// What wakes the thread for its mail.
const MAIL: usize = 0;
/// Messages of a hub that may wait for its bus.
const MOST_WAITING: usize = 8192;
/// How long a start waits for hubs to find who numbers.
const START_PATIENCE: Duration = Duration::from_secs(1);
/// How old a report may get while something happens.
const REPORT_EVERY: Duration = Duration::from_millis(100);

/// What the thread is told.
enum Order {
    /// These hubs have a bus.
    Configure(Vec<Wanted>),
    /// Something is to be published in that hub.
    Carry(Arc<str>, Notice),
    /// What came of connecting to the server of that hub.
    Connected(Arc<str>, Result<Vec<Made>, String>),
}

/// A hub that is to have a bus.
struct Wanted {
    name: Arc<str>,
    bus: config::Bus,
    hub: Arc<Hub>,
    /// What this replica is called.
    own: String,
    way: Arc<Way>,
}

static THREAD: OnceLock<Postbox<Order>> = OnceLock::new();
static REPORT: Mutex<BTreeMap<String, status::Bus>> = Mutex::new(BTreeMap::new());

fn reported() -> MutexGuard<'static, BTreeMap<String, status::Bus>> {
    REPORT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How the bus of a hub stands; `None`: it has none.
pub fn report(hub: &str) -> Option<status::Bus> {
    reported().get(hub).cloned()
}

/// A number for a socket that no other has.
fn next_token() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(MAIL + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What all have in a turn of the thread.
pub struct Turn<'a> {
    now: Duration,
    instant: Instant,
    registry: &'a mio::Registry,
    log: &'a Log,
}

/// The way of a hub to its bus.
struct Way {
    name: Arc<str>,
    hub: std::sync::Weak<Hub>,
    thread: Postbox<Order>,
    /// Messages under way, and their bytes.
    waiting: Arc<(AtomicUsize, AtomicUsize)>,
}

/// What a message on its way has taken.
struct Charge {
    hub: Arc<Hub>,
    waiting: Arc<(AtomicUsize, AtomicUsize)>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.hub.credit(self.bytes);
        self.waiting.0.fetch_sub(1, Ordering::AcqRel);
        self.waiting.1.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

impl Carrier for Way {
    fn carry(&self, mut notice: Notice) -> Result<(), Refused> {
        let hub = self.hub.upgrade().ok_or(Refused::Away)?;
        let bytes = notice.cost();
        let most = hub.settings().memory / 4;
        hub.charge(bytes)?;
        let count = self.waiting.0.fetch_add(1, Ordering::AcqRel);
        let all = self.waiting.1.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let charge = Charge { hub, waiting: self.waiting.clone(), bytes };
        if count >= MOST_WAITING || all > most {
            return Err(Refused::Full);
        }
        let answer = std::mem::replace(&mut notice.answer, Box::new(|_| ()));
        notice.answer = Box::new(move |outcome| {
            drop(charge);
            answer(outcome);
        });
        self.thread.post(Order::Carry(self.name.clone(), notice));
        Ok(())
    }
}

/// Has hubs share their messages as is said. With `waits` it comes back when they have found who numbers, or a moment later.
///
/// # Errors
/// When there can be no such thread.
pub fn configure(
    server: &config::Settings,
    (hubs, postboxes, log): (&hub::Registry, &Postboxes, &Log),
    waits: bool,
) -> std::io::Result<()> {
    if THREAD.get().is_none() && server.hubs.iter().all(|hub| hub.bus.is_none()) {
        return Ok(());
    }
    let thread = start(hubs, postboxes, log)?;
    let port = server.listening.at.iter().find_map(|address| match address {
        ListenAddress::Tcp(address) => Some(address.port()),
        _ => None,
    });
    let pid = std::process::id();
    let own = port.map_or_else(|| format!("pid {pid}"), |port| format!("{port} (pid {pid})"));
    let mut wanted = Vec::new();
    for hub in hubs.all() {
        let name = hub.settings().name.clone();
        let said = server.hubs.iter().find(|said| said.name == name);
        let Some(bus) = said.and_then(|said| said.bus.clone()) else { continue };
        let name: Arc<str> = name.into();
        let (weak, waiting) = (Arc::downgrade(&hub), Arc::default());
        let way = Arc::new(Way { name: name.clone(), hub: weak, thread: thread.clone(), waiting });
        let mut known = reported();
        if !known.contains_key(&*name) {
            // From here on, before the thread knows of it.
            hub.carry_by(way.clone());
            known.insert(name.to_string(), status::Bus { state: "seeks".to_owned(), ..Default::default() });
        }
        wanted.push(Wanted { name, bus, hub, own: own.clone(), way });
    }
    thread.post(Order::Configure(wanted));
    let end = Instant::now() + START_PATIENCE;
    let seeks = || reported().values().any(|bus| bus.state == "seeks");
    while waits && seeks() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Nothing is published any more: the others are to go on without this one.
pub fn end() {
    let Some(thread) = THREAD.get() else { return };
    thread.post(Order::Configure(Vec::new()));
    let end = Instant::now() + REPORT_EVERY;
    while !reported().is_empty() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The thread, which is started when it is first wanted.
fn start(hubs: &hub::Registry, postboxes: &Postboxes, log: &Log) -> std::io::Result<Postbox<Order>> {
    if let Some(thread) = THREAD.get() {
        return Ok(thread.clone());
    }
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), Token(MAIL))?;
    let (postbox, mailbox) = mailbox(move || {
        // It cannot fail but for a kernel without memory; the next one rings again.
        waker.wake().ok();
    });
    let (hubs, postboxes, log) = (hubs.clone(), postboxes.clone(), log.clone());
    let body = move || Thread { poll, mailbox, hubs, postboxes, log, members: Vec::new(), reported: None }.run();
    std::thread::Builder::new().name("bus".to_owned()).spawn(body)?;
    Ok(THREAD.get_or_init(|| postbox).clone())
}

/// A hub, and its bus.
struct Member {
    wanted: Wanted,
    bus: Bus,
}

/// By what it is shared.
enum Bus {
    Directory(Box<Directory>),
    Remote(Box<Remote>),
}

impl Bus {
    fn due(&self, turn: &Turn<'_>) -> Option<Duration> {
        match self {
            Bus::Directory(directory) => directory.due(turn),
            Bus::Remote(remote) => remote.due(turn),
        }
    }

    fn event(&mut self, turn: &Turn<'_>, token: usize, writable: bool) -> bool {
        match self {
            Bus::Directory(directory) => directory.event(turn, token, writable),
            Bus::Remote(remote) => remote.event(turn, token),
        }
    }

    fn tick(&mut self, turn: &Turn<'_>) {
        match self {
            Bus::Directory(directory) => directory.tick(turn),
            Bus::Remote(remote) => remote.tick(turn),
        }
    }

    fn carry(&mut self, turn: &Turn<'_>, notice: Notice) {
        match self {
            Bus::Directory(directory) => directory.carry(turn, notice),
            Bus::Remote(remote) => remote.carry(turn, notice),
        }
    }
}

impl Member {
    /// Whether it goes on, by what is wanted now; what of that is another way to the same server it takes over.
    fn stays(&mut self, turn: &Turn<'_>, wanted: &[Wanted]) -> bool {
        let of_hub = wanted.iter().find(|one| one.name == self.wanted.name);
        match (of_hub, &mut self.bus) {
            (Some(one), _) if one.bus == self.wanted.bus => true,
            (Some(one), Bus::Remote(remote)) if one.bus.is_same(&self.wanted.bus) => {
                self.wanted.bus = one.bus.clone();
                if let config::Bus::Redis(said) | config::Bus::Nats(said) = &one.bus {
                    remote.is_told(turn, said);
                }
                true
            }
            (_, Bus::Remote(remote)) if remote.peer.waiting() > 0 => {
                let fields: [(&str, &dyn std::fmt::Display); 2] =
                    [("hub", &self.wanted.name), ("messages", &remote.peer.waiting())];
                turn.log.event(Level::Warn, "a hub leaves its bus before that has had all messages", &fields);
                false
            }
            _ => false,
        }
    }

    /// How it stands.
    fn report(&self) -> status::Bus {
        match &self.bus {
            Bus::Directory(directory) => {
                let (replica, problem) = (directory.replica(), directory.problem.clone());
                let state = match () {
                    () if problem.is_some() => "away",
                    () if !replica.is_settled() => "seeks",
                    () if replica.leads() => "leads",
                    () => "follows",
                };
                let (peers, waiting) = (replica.followers(), replica.waiting());
                status::Bus { kind: "directory".to_owned(), state: state.to_owned(), peers, waiting, problem }
            }
            Bus::Remote(remote) => {
                let kind = if matches!(self.wanted.bus, config::Bus::Redis(_)) { "redis" } else { "nats" };
                let problem = remote.problem.clone();
                let state = match () {
                    () if remote.peer.is_up() => "connected",
                    () if problem.is_some() => "away",
                    () => "seeks",
                };
                let (peers, waiting) = (Vec::new(), remote.peer.waiting());
                status::Bus { kind: kind.to_owned(), state: state.to_owned(), peers, waiting, problem }
            }
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Others go on numbering in the epoch that it was in.
        let hub = &self.wanted.hub;
        hub.go_on_in(Epoch(hub.epoch().0 + 1 + (random() & 0xffff)));
        hub.carry_no_more();
        reported().remove(&*self.wanted.name);
    }
}

struct Thread {
    poll: Poll,
    mailbox: Mailbox<Order>,
    hubs: hub::Registry,
    postboxes: Postboxes,
    log: Log,
    members: Vec<Member>,
    /// When it told last how everything stands; `None`: that has changed since.
    reported: Option<Instant>,
}

impl Thread {
    fn run(mut self) {
        let (mut events, mut mail) = (Events::with_capacity(256), Vec::new());
        loop {
            let timeout = self.timeout();
            let timeout = if self.mailbox.may_sleep() { timeout } else { Some(Duration::ZERO) };
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != std::io::ErrorKind::Interrupted
            {
                self.log.event(Level::Error, "the bus cannot wait for what happens", &[("error", &error)]);
                std::thread::sleep(REPORT_EVERY);
            }
            self.mailbox.awake();
            self.mailbox.take(&mut mail);
            for order in mail.drain(..) {
                self.carry_out(order);
            }
            let Thread { poll, members, log, hubs, .. } = &mut self;
            let instant = Instant::now();
            let turn = Turn { now: hubs.since(instant), instant, registry: poll.registry(), log };
            for event in &events {
                let (token, writable) = (event.token().0, event.is_writable());
                members.iter_mut().any(|member| member.bus.event(&turn, token, writable));
            }
            members.iter_mut().for_each(|member| member.bus.tick(&turn));
            self.tell(instant);
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let instant = Instant::now();
        let turn = Turn { now: self.hubs.since(instant), instant, registry: self.poll.registry(), log: &self.log };
        let due = self.members.iter().filter_map(|member| member.bus.due(&turn)).min();
        let report = self.reported.map(|at| (at + REPORT_EVERY).saturating_duration_since(instant));
        due.into_iter().chain(report).min()
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Carry(name, notice) => {
                let (turn, member) = self.turn(&name);
                match member {
                    Some(member) => member.bus.carry(&turn, notice),
                    // It has no bus any more.
                    None => (notice.answer)(Err(Refused::Away)),
                }
            }
            Order::Connected(name, made) => {
                let (turn, member) = self.turn(&name);
                if let Some(Member { bus: Bus::Remote(remote), .. }) = member {
                    remote.connected(&turn, made);
                }
            }
            Order::Configure(wanted) => {
                let Thread { poll, hubs, log, members, .. } = self;
                let instant = Instant::now();
                let turn = Turn { now: hubs.since(instant), instant, registry: poll.registry(), log };
                members.retain_mut(|member| member.stays(&turn, &wanted));
                for one in wanted {
                    if self.members.iter().all(|member| member.wanted.name != one.name) {
                        self.join(one);
                    }
                }
            }
        }
    }

    /// What all have in a turn that begins now, and the hub of that name.
    fn turn(&mut self, name: &Arc<str>) -> (Turn<'_>, Option<&mut Member>) {
        let Thread { poll, hubs, log, members, .. } = self;
        let instant = Instant::now();
        let turn = Turn { now: hubs.since(instant), instant, registry: poll.registry(), log };
        (turn, members.iter_mut().find(|member| member.wanted.name == *name))
    }

    fn join(&mut self, wanted: Wanted) {
        let (now, hub, ways) = (self.hubs.since(Instant::now()), wanted.hub.clone(), self.postboxes.clone());
        hub.carry_by(wanted.way.clone());
        let remote = |said, greets, peer: Box<dyn Peer>| {
            let ways = (wanted.way.thread.clone(), ways.clone());
            Bus::Remote(Box::new(Remote::new((&wanted.name, said), greets, peer, ways)))
        };
        let bus = match &wanted.bus {
            config::Bus::Directory(path) => {
                let replica = Replica::new(now, hub, random(), &wanted.own);
                Bus::Directory(Box::new(Directory::new(path, &wanted.name, replica, ways.clone())))
            }
            config::Bus::Redis(said) => remote(said, false, Box::new(Redis::new(now, hub, said))),
            config::Bus::Nats(said) => remote(said, true, Box::new(Nats::new(now, hub, said))),
        };
        self.members.push(Member { wanted, bus });
    }

    /// Says how everything stands, now and then.
    fn tell(&mut self, now: Instant) {
        if self.reported.is_some_and(|at| now < at + REPORT_EVERY) {
            return;
        }
        let before = self.reported.take();
        let mut known = reported();
        let mut changed = false;
        for member in &self.members {
            let said = member.report();
            let old = known.insert(member.wanted.name.to_string(), said.clone());
            changed |= old != Some(said);
        }
        // As long as something changes it is looked at again soon.
        self.reported = (changed || before.is_none()).then_some(now);
    }
}

/// A number that is nobody else's, and not 0.
fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without it, the time and the process tell one from another.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes = ((time.as_nanos() as u64) ^ u64::from(std::process::id()) << 32).to_le_bytes();
    }
    u64::from_le_bytes(bytes) | 1
}
