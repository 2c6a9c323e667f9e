//! The fleet: the lives of one app's workers, decided without a process, a descriptor or a clock.
//!
//! It owns what is known of every worker and every decision about it: when one is started, trusted, replaced, drained, told to
//! stop and killed. Time is an argument, and what is decided happens through a [`Machine`]: real processes in production, simulated
//! ones under a seed. So what a test drives is what runs.
//!
//! - A **place** is one of the app's N workers, with a number of its own. It is filled by one worker at a time, and during a
//!   replacement by two: the new one starts first, and the old one is drained only when the new one serves.
//! - One mechanism replaces workers, whatever the reason (requests, lifetime, memory, reloads, deploy): a worker is marked as
//!   due, and [`Fleet::tick`] replaces those that are, as many at a time as the reason allows.
//! - A **roll** marks all places, in turn. Its first replacement is on trial: until it has answered a request, or was ready for
//!   a while and owes no answer, the old generation stays as it is; if it fails, the roll is aborted and nothing was lost.
//! - A worker that leaves is drained first, then told to stop (TERM), then killed. Each step has its deadline.
//!
//! `place.rs` has places and members, `replace.rs` what fills and replaces them, `revive.rs` what brings
//! back those that were given up, `roll.rs` the rolling restart, `scale.rs` the automatic
//! number of workers, `release.rs` the end of a pause, `joined.rs` those who come by themselves, `words.rs` what is heard after a worker's end, `policy.rs` the
//! delays between restarts. Beside the fleet stand `health.rs`, what checks say of a worker or an upstream, and `ejection.rs`, which
//! upstreams get requests.

mod ejection;
mod health;
mod joined;
mod place;
mod policy;
mod release;
mod replace;
mod revive;
mod roll;
mod scale;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;
use std::time::{Duration, Instant};

use crate::planted::{self, Bug};
pub use ejection::{Admission, Ejection, EjectionRule, Told};
pub use health::{HealthRule, Replacements, Streak};
pub use joined::{Joined, Version};
pub use place::{Member, Phase, Place, PlaceState};
pub use policy::{Decision, End, Jitter, RestartPolicy, RestartRule};
pub use release::Release;
use revive::Revival;
pub use roll::{Left, Roll, RollEnd, RollReport};
pub use scale::{Load, SAMPLE, Scaler};
pub use words::Word;

/// From TERM to KILL for a worker that was drained or does not answer.
pub const TERM_GRACE: Duration = Duration::from_secs(5);
/// From the dump signal to KILL for a worker that is stuck: time to write where it stands.
pub const DUMP_GRACE: Duration = Duration::from_secs(1);
/// For what ends with the server's stop at the latest.
pub const NO_DEADLINE: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// How often a replacement on trial is looked at.
const TRIAL_LOOK: Duration = Duration::from_millis(20);
/// When a worker cannot be started for lack of room in the dispatch's table.
const ROOM_RETRY: Duration = Duration::from_millis(100);
/// When a replacement does not fit beside the old worker.
const MEMORY_RETRY: Duration = Duration::from_secs(10);
/// A worker that burns CPU may take so many times the rule's time to get ready...
const MOST_PATIENCE: u32 = 4;
/// ...and is looked at so many times in each of these times.
const LOOKS: u32 = 4;
/// It burns CPU if it has used this much of a core since it was last looked at, in per cent: its share may be small on a busy machine.
const BURNS_PERCENT: u32 = 5;
/// How much longer than its rule a restart's delay may be, in per cent.
const RESTART_JITTER_PERCENT: u32 = 25;

/// The name of one worker's life. Never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(pub u64);

/// What the fleet keeps to.
#[derive(Clone, Debug)]
pub struct Rule {
    /// How crashed workers come back.
    pub restart: RestartRule,
    /// After that many requests a worker is replaced; 0: never.
    pub requests: u64,
    /// But not before it has lived for so long: a busy worker that is replaced all the time never gets warm.
    pub requests_not_before: Duration,
    /// By how much that number varies between workers, in per cent.
    pub jitter_percent: u32,
    /// After that time a worker is replaced.
    pub lifetime: Option<Duration>,
    /// After that many reloads a worker is replaced; 0: never.
    pub reloads: u64,
    /// How long a worker may take to get ready; one that burns CPU all the while, up to four times as long.
    pub ready_timeout: Duration,
    /// Workers that may be on their way at once, at least 1.
    pub start_parallel: usize,
    /// After so long a ready worker counts as one that serves, though nobody has asked it for anything.
    pub proven_after: Duration,
    /// Whether workers are asked for their health: then a roll takes a new worker for one that serves when it has passed a check.
    pub checked: bool,
    /// How long a leaving worker may finish its requests.
    pub drain: Duration,
    /// Workers that a roll replaces at a time, at least 1.
    pub parallel: usize,
    /// Workers that may be missing where memory has no room for a replacement beside the old one.
    pub max_unavailable: usize,
    /// Sent to a stuck worker before it is killed.
    pub dump_signal: Option<i32>,
    /// Makes delays and limits differ from those of other servers.
    pub seed: u64,
}

/// Why a worker is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It has served its number of requests.
    Requests(u64),
    /// It has lived its time.
    Lifetime(Duration),
    /// It holds so many bytes of memory, more than it may.
    Memory(u64),
    /// It has loaded its code that often.
    Reloads(u64),
    /// A rolling restart replaces it.
    Deploy,
    /// Its rolling restart was aborted.
    Aborted,
    /// Fewer workers are wanted.
    ScaledDown,
    /// It said that it stops.
    Leaving,
    /// It did not get ready in time.
    NotReady,
    /// Its socket ceased to accept and did not come back.
    Unreachable,
    /// The file of its socket was removed.
    Displaced,
    /// A request's deadline passed, and it is stuck.
    Deadline(Duration),
    /// It fell silent, although it had promised to say that it lives.
    Watchdog(Duration),
    /// It has failed the health check too often.
    Health,
    /// The server stops.
    Shutdown,
}

impl Ending {
    /// Whether it served its purpose and goes as it should: no failure of its own.
    pub fn is_planned(self) -> bool {
        !matches!(
            self,
            Ending::NotReady | Ending::Unreachable | Ending::Deadline(_) | Ending::Watchdog(_) | Ending::Health
        )
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Requests(number) => write!(formatter, "recycle: {number} requests"),
            Ending::Lifetime(time) => write!(formatter, "recycle: lived {} s", time.as_secs()),
            Ending::Memory(bytes) => write!(formatter, "recycle: memory {} MiB", bytes >> 20),
            Ending::Reloads(number) => write!(formatter, "recycle: {number} reloads"),
            Ending::Deploy => formatter.write_str("deploy"),
            Ending::Aborted => formatter.write_str("deploy aborted"),
            Ending::ScaledDown => formatter.write_str("scale down"),
            Ending::Leaving => formatter.write_str("stops by itself"),
            Ending::NotReady => formatter.write_str("not ready in time"),
            Ending::Unreachable => formatter.write_str("socket no longer accepts"),
            Ending::Displaced => formatter.write_str("its socket was removed"),
            Ending::Deadline(time) => write!(formatter, "deadline {} s", time.as_secs_f32()),
            Ending::Health => formatter.write_str("failed the health check"),
            Ending::Watchdog(time) => write!(formatter, "watchdog: silent for {} s", time.as_secs_f32()),
            Ending::Shutdown => formatter.write_str("shutdown"),
        }
    }
}

/// A worker to be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// Its name from now on.
    pub name: Name,
    /// Its place's number, from 1.
    pub number: u32,
    /// The app's generation that it belongs to.
    pub generation: u32,
    /// After how many requests it is replaced; 0: never.
    pub limit: u64,
}

/// What became of a start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// It is on its way; [`Fleet::ready`] or [`Fleet::exited`] follows.
    Yes,
    /// There is no room for it just now.
    NoRoom,
    /// It cannot be started, and why.
    Failed(String),
}

/// What the fleet tells the operator and those who listen for events.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A worker is ready for the first time.
    Ready(Name),
    /// A worker could not be started.
    StartFailed(u32, String),
    /// A worker did not get ready in time; so many others were on their way.
    NotReady(Name, usize),
    /// A worker that was ready once refused a connection and did not come back in time.
    NotBack(Name),
    /// A worker's drain has taken too long: its requests are cut.
    Cut(Name),
    /// Workers of a place serve and keep ending: so many within a minute, and the next starts that much later. Told once a minute.
    Loops(u32, usize, Duration),
    /// A place is given up, for its workers crash before they answer anything, or an attempt to fill it was in vain. Then comes the next.
    GaveUp(u32, Duration),
    /// Replacements for a place crash; the old worker serves on.
    OldServesOn(u32),
    /// A replacement does not fit into memory beside the old worker; it waits.
    NoMemory(u32),
    /// All places are given up. One is tried again by itself now and then.
    AppFailed,
    /// A roll has begun: its number, generation and places.
    RollBegan(u64, u32, usize),
    /// A roll has ended.
    RollEnded(RollReport),
    /// The number of wanted workers has changed, and why.
    Scaled(usize, usize, &'static str),
}

/// What carries out the fleet's decisions. Nothing here calls back into the fleet.
pub trait Machine {
    /// Starts a worker.
    fn start(&mut self, start: Start) -> Started;
    /// The worker may get requests.
    fn open(&mut self, name: Name, now: Instant);
    /// No new requests for it, until [`Machine::open`].
    fn shut(&mut self, name: Name, now: Instant);
    /// No new requests for it ever; [`Fleet::drained`] is called when it has none left.
    fn drain(&mut self, name: Name, now: Instant);
    /// Looks at its socket again; [`Fleet::ready`] is called when it accepts.
    fn look(&mut self, name: Name, now: Instant);
    /// Takes its connections away and asks it to end.
    fn terminate(&mut self, name: Name, now: Instant);
    /// Sends it a signal.
    fn signal(&mut self, name: Name, signal: i32);
    /// Ends it at once, with all that it has started.
    fn kill(&mut self, name: Name);
    /// How much CPU time it has used, with all that it has started; `None`: nothing is known.
    fn cpu_time(&mut self, name: Name) -> Option<Duration>;
    /// Whether memory has room for one more worker like this one.
    fn fits_beside(&mut self, name: Name) -> bool;
    /// Whether it has answered a request.
    fn has_answered(&mut self, name: Name) -> bool;
    /// Whether a request waits for it, and not a byte has ever come from it.
    fn owes(&mut self, name: Name) -> bool;
    /// The one among them with the fewest requests and tunnels; of those with as many, the one whose last answer is the longest ago.
    fn least_missed(&mut self, among: &[Name]) -> Option<Name>;
    /// The app has failed: requests are refused at once.
    fn give_up(&mut self, now: Instant);
    /// The app is tried again.
    fn recover(&mut self);
    /// Tells.
    fn say(&mut self, event: Event);
}

/// How a process ended.
#[derive(Clone, Debug)]
pub struct Exit {
    /// Whether it had answered anything.
    pub answered: bool,
    /// Whether a request had waited for it, and not a byte had ever come from it.
    pub owed: bool,
    /// Whether it ended as a worker does that is told to: with code 0, or by TERM.
    pub clean: bool,
    /// What is to be said about it: code or signal, if it was not asked to end.
    pub how: String,
    /// The last lines of its stderr.
    pub last_lines: String,
}

/// The state of the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppState {
    /// No worker was ready yet.
    Starting,
    /// At least one worker has been ready.
    Running,
    /// The workers crash before they answer anything. Requests are refused, and one worker is tried now and then.
    Failed,
}

/// See the module.
#[derive(Debug)]
pub struct Fleet {
    rule: Rule,
    /// By number.
    places: Vec<Place>,
    /// Oldest first.
    members: Vec<Member>,
    joined: Vec<Joined>,
    last: Last,
    /// What a worker started outside of a roll belongs to.
    generation: u32,
    roll: Option<Roll>,
    /// The number of the roll that follows the one under way.
    queued_roll: Option<u64>,
    last_roll: Option<RollReport>,
    /// When those on trial are looked at next.
    look_at: Option<Instant>,
    /// When a place that was given up is tried next, if there is one.
    revival: Option<Revival>,
    /// When the next worker may be recycled: the last one's replacement has been ready for as long as it took to start.
    recycle_at: Instant,
    failed: bool,
    ever_ready: bool,
    course: Course,
}

/// What was given out last.
#[derive(Clone, Copy, Debug)]
struct Last {
    name: u64,
    roll: u64,
    generation: u32,
}

/// What the server is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Serve,
    /// Nothing is changed any more; who crashes is replaced, for requests still come to their end.
    Settle,
    /// All workers end.
    Stop,
}

impl Fleet {
    /// A fleet of so many places, to be filled by the first [`Fleet::tick`].
    pub fn new(rule: Rule, workers: usize, now: Instant) -> Fleet {
        let mut fleet = Fleet {
            rule,
            places: Vec::new(),
            members: Vec::new(),
            joined: Vec::new(),
            last: Last { name: 0, roll: 0, generation: 1 },
            generation: 1,
            roll: None,
            queued_roll: None,
            last_roll: None,
            look_at: None,
            revival: None,
            recycle_at: now,
            failed: false,
            ever_ready: false,
            course: Course::Serve,
        };
        fleet.add_places(workers, now);
        fleet
    }

    /// Keeps to another rule from now on, for all workers. Where another number of requests holds, each has another [`Member::limit`], which
    /// is to be counted against by whoever counts its requests.
    pub fn set_rule(&mut self, rule: Rule) {
        let limits = |rule: &Rule| (rule.requests, rule.jitter_percent);
        let others = limits(&self.rule) != limits(&rule);
        for place in &mut self.places {
            place.keep_to(&rule);
            let here = [place.serving, place.next];
            for member in self.members.iter_mut().filter(|member| others && here.contains(&Some(member.name))) {
                member.may_have(place.limit(rule.requests));
            }
        }
        if self.rule.lifetime != rule.lifetime {
            for member in &mut self.members {
                member.expires = member.ready_at.zip(rule.lifetime).map(|(ready, lifetime)| ready + lifetime);
            }
        }
        self.rule = rule;
    }

    /// The state of the app.
    pub fn state(&self) -> AppState {
        match (self.failed, self.ever_ready) {
            (true, _) => AppState::Failed,
            (false, true) => AppState::Running,
            (false, false) => AppState::Starting,
        }
    }

    /// Whether any worker has ever been ready.
    pub fn ever_ready(&self) -> bool {
        self.ever_ready
    }

    /// How many workers are wanted, those that join not counted.
    pub fn wanted(&self) -> usize {
        self.places.len()
    }

    /// The app's generation.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The places, by number.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The workers that live, oldest first; those that joined by themselves are [`Fleet::joined`].
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// One of them.
    pub fn member(&self, name: Name) -> Option<&Member> {
        self.position(name).map(|index| &self.members[index])
    }

    fn member_mut(&mut self, name: Name) -> Option<&mut Member> {
        self.position(name).map(|index| &mut self.members[index])
    }

    /// Names are given out in order, so that the members are sorted by them.
    fn position(&self, name: Name) -> Option<usize> {
        self.members.binary_search_by_key(&name, |member| member.name).ok()
    }

    /// The place of that number.
    pub fn place(&self, number: u32) -> Option<&Place> {
        self.places.binary_search_by_key(&number, |place| place.number).ok().map(|index| &self.places[index])
    }

    fn place_mut(&mut self, number: u32) -> Option<&mut Place> {
        self.places.binary_search_by_key(&number, |place| place.number).ok().map(|index| &mut self.places[index])
    }

    /// When something is due by itself.
    pub fn due(&self) -> Option<Instant> {
        let members = self.members.iter().filter_map(|member| member.phase_due());
        if self.course == Course::Stop {
            return members.min();
        }
        let expiries = self.members.iter().filter_map(Member::expires);
        let wish = |place: &Place| self.wish(place).filter(|wish| self.may_have(place.number, wish));
        let places = self.places.iter().filter_map(wish).map(|wish| wish.at);
        let attempt = self.attempt().filter(|_| self.may_start(false)).map(|(at, _)| at);
        members.chain(expiries).chain(places).chain(attempt).chain(self.look_at).min()
    }

    /// Does what is due: deadlines of workers, then the roll, then starts and replacements.
    pub fn tick(&mut self, now: Instant, machine: &mut impl Machine) {
        for index in 0..self.members.len() {
            self.act_on_deadline(index, now, machine);
        }
        if self.course == Course::Stop {
            return;
        }
        self.judge_trials(now, machine);
        self.advance_roll(now, machine);
        self.fill_places(now, machine);
    }

    fn act_on_deadline(&mut self, index: usize, now: Instant, machine: &mut impl Machine) {
        let member = &mut self.members[index];
        let name = member.name;
        if member.expires.is_some_and(|at| at <= now) {
            member.expires = None;
            if let (Some(lifetime), true) = (self.rule.lifetime, member.is_active()) {
                member.mark(Ending::Lifetime(lifetime), now);
            }
        }
        if member.phase_due().is_none_or(|at| at > now) {
            return;
        }
        match member.phase {
            Phase::Starting { .. } => {
                let used = machine.cpu_time(name);
                if !member.has_patience(self.rule.ready_timeout, used, now) {
                    member.ending = Some(Ending::NotReady);
                    machine.say(Event::NotReady(name, self.starting() - 1));
                    self.terminate(index, TERM_GRACE, now, machine);
                }
            }
            Phase::Checking { .. } => {
                member.ending = Some(Ending::Unreachable);
                machine.say(Event::NotBack(name));
                self.terminate(index, TERM_GRACE, now, machine);
            }
            Phase::Draining { .. } => {
                machine.say(Event::Cut(name));
                self.terminate(index, TERM_GRACE, now, machine);
            }
            Phase::Dumped { .. } | Phase::Terminating { .. } => {
                member.phase = Phase::Killed;
                machine.kill(name);
            }
            Phase::Running | Phase::Killed => {}
        }
    }

    fn terminate(&mut self, index: usize, grace: Duration, now: Instant, machine: &mut impl Machine) {
        let member = &mut self.members[index];
        member.phase = Phase::Terminating { kill_at: now + grace };
        machine.terminate(member.name, now);
    }

    /// A worker gets no new requests, may finish what it has, and ends.
    fn leave(&mut self, name: Name, ending: Ending, now: Instant, machine: &mut impl Machine) {
        let deadline = now + self.rule.drain;
        let Some(index) = self.position(name) else { return };
        let member = &mut self.members[index];
        if !member.is_active() {
            return;
        }
        member.ending.get_or_insert(ending);
        match member.phase {
            Phase::Starting { .. } => self.terminate(index, TERM_GRACE, now, machine),
            _ => {
                member.phase = Phase::Draining { deadline };
                machine.drain(name, now);
            }
        }
    }
}

/// What the fleet is told.
impl Fleet {
    /// A worker is ready: for the first time, or again after it was looked at.
    pub fn ready(&mut self, name: Name, now: Instant, machine: &mut impl Machine) {
        let lifetime = self.rule.lifetime;
        let Some(member) = self.member_mut(name) else { return };
        let first = match member.phase {
            Phase::Starting { .. } => true,
            Phase::Checking { .. } => false,
            _ => return,
        };
        member.phase = Phase::Running;
        if first {
            member.ready_at = Some(now);
            member.expires = lifetime.map(|lifetime| now + lifetime);
            machine.say(Event::Ready(name));
        }
        machine.open(name, now);
        self.ever_ready = true;
        if std::mem::take(&mut self.failed) {
            machine.recover();
        }
        if first {
            self.filled(name, now, machine);
        }
    }

    /// A connect to a worker was refused: it is looked at, and given up if it does not come back. While the server stops, whoever told
    /// it to may have told its workers as well: this one leaves, and those who wait are not to wait for it.
    pub fn unreachable(&mut self, name: Name, now: Instant, machine: &mut impl Machine) {
        if self.course == Course::Settle {
            return self.leaves_for_good(name, now, machine);
        }
        let deadline = now + self.rule.ready_timeout;
        if let Some(member) = self.member_mut(name).filter(|member| member.phase == Phase::Running) {
            member.phase = Phase::Checking { deadline };
            machine.look(name, now);
        }
    }

    /// A worker is due to be replaced: a limit of its own is reached.
    pub fn replace(&mut self, name: Name, ending: Ending) {
        let not_before = self.rule.requests_not_before;
        if let Some(member) = self.member_mut(name).filter(|member| member.is_active()) {
            let limited = matches!(ending, Ending::Requests(_));
            member.mark(ending, if limited { member.born + not_before } else { member.born });
        }
    }

    /// A worker says that it leaves by itself. It gets no more requests, and its place is filled at once, since it may be gone
    /// before a replacement is ready. One that has not served yet is judged when it ends, so that workers that only come and go are
    /// not started without end. A start that comes to nothing is judged at its exit anyway.
    pub fn leaving(&mut self, name: Name, now: Instant, machine: &mut impl Machine) {
        let deadline = now + self.rule.drain;
        let proven = self.is_proven(name, now, machine);
        let Some(member) = self.member_mut(name).filter(|member| member.is_active() && !member.is_starting()) else {
            return;
        };
        if !proven {
            member.leaves = true;
            member.phase = Phase::Draining { deadline };
            return machine.drain(name, now);
        }
        self.prove(name, now);
        self.leaves_for_good(name, now, machine);
    }

    /// The first process of a worker that was ready has ended as if it had been told to, which nobody here did, and it has left others in
    /// its group, as shells and package managers do: those may still be at work. So it is as if it had been told to: it gets no more
    /// requests, finishes what it has, and then all of it is told to stop. Its place is filled at once if it has shown that it serves;
    /// else, and while a roll depends on it, it is judged when all have ended.
    pub fn forsaken(&mut self, name: Name, now: Instant, machine: &mut impl Machine) {
        // Where the server stops, it says how long requests may take.
        let within = if self.course == Course::Serve { self.rule.drain } else { NO_DEADLINE };
        let tried = self.member(name).is_some_and(|member| self.is_on_trial(member));
        let proven = !tried && self.is_proven(name, now, machine);
        let Some(member) = self.member_mut(name).filter(|member| member.is_active() && !member.is_starting()) else {
            return;
        };
        member.phase = Phase::Draining { deadline: now + within };
        let member = member.clone();
        machine.drain(name, now);
        if proven {
            self.prove(name, now);
            self.vacated(&member, now, machine);
        }
    }

    fn leaves_for_good(&mut self, name: Name, now: Instant, machine: &mut impl Machine) {
        let Some(member) = self.member(name).filter(|member| member.is_active()).cloned() else { return };
        self.leave(name, Ending::Leaving, now, machine);
        self.vacated(&member, now, machine);
    }

    /// Somebody has removed the file that leads to a worker, and nobody reaches it any more: no failure of its own. It finishes what it
    /// has, or does not start at all, and its place is filled at once.
    pub fn displaced(&mut self, name: Name, now: Instant, machine: &mut impl Machine) {
        let Some(number) = self.member(name).filter(|member| member.is_active()).map(|member| member.number) else {
            return;
        };
        self.leave(name, Ending::Displaced, now, machine);
        if let Some(place) = self.place_mut(number).filter(|place| place.holds(name)) {
            place.release(name);
            if !place.given_up {
                (place.start_at, place.retry_at) = (now, now);
            }
        }
    }

    /// A worker loads its code again; after too many times it is replaced.
    pub fn reloaded(&mut self, name: Name) {
        let limit = self.rule.reloads;
        let Some(member) = self.member_mut(name).filter(|member| member.is_active()) else { return };
        member.reloads += 1;
        if limit > 0 && member.reloads >= limit {
            member.mark(Ending::Reloads(member.reloads), member.born);
        }
    }

    /// A worker has no request left. One that was forsaken while the server stops has until the stop's own end.
    pub fn drained(&mut self, name: Name, now: Instant, machine: &mut impl Machine) {
        let stops = self.course != Course::Serve;
        let waits = |member: &Member| stops && member.ending.is_none() && !member.leaves;
        let draining = |index: &usize| {
            let member = &self.members[*index];
            matches!(member.phase, Phase::Draining { .. }) && !waits(member)
        };
        if let Some(index) = self.position(name).filter(draining) {
            self.terminate(index, TERM_GRACE, now, machine);
        }
    }

    /// A worker is stuck: it is made to say where, if it can, and is killed.
    pub fn stuck(&mut self, name: Name, ending: Ending, now: Instant, machine: &mut impl Machine) {
        let dump = self.rule.dump_signal;
        let Some(member) = self.member_mut(name) else { return };
        if !(member.is_active() || matches!(member.phase, Phase::Draining { .. })) {
            return;
        }
        member.ending.get_or_insert(ending);
        if !planted::active(Bug::StuckServes) {
            machine.drain(name, now);
        }
        match dump {
            Some(signal) => {
                member.phase = Phase::Dumped { kill_at: now + DUMP_GRACE };
                machine.signal(name, signal);
            }
            None => {
                member.phase = Phase::Killed;
                machine.kill(name);
            }
        }
    }

    /// A worker's process has ended. Returns why, if it was asked to.
    pub fn exited(&mut self, name: Name, exit: &Exit, now: Instant, machine: &mut impl Machine) -> Option<Ending> {
        let index = self.position(name)?;
        let member = self.members.remove(index);
        if self.course == Course::Stop {
            return member.ending;
        }
        let reason = member.ending.map_or_else(|| exit.how.clone(), |ending| ending.to_string());
        if let Some(place) = self.place_mut(member.number) {
            place.last_exit = Some(reason.clone());
        }
        self.lost(&member, exit, &reason, now, machine);
        member.ending
    }

    /// Ends all workers: TERM now and KILL after the grace, or sooner where that was under way. No other is started.
    pub fn stop(&mut self, grace: Duration, now: Instant, machine: &mut impl Machine) {
        self.course = Course::Stop;
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            member.ending.get_or_insert(Ending::Shutdown);
            match &mut member.phase {
                Phase::Killed => {}
                Phase::Terminating { kill_at } | Phase::Dumped { kill_at } => *kill_at = (*kill_at).min(now + grace),
                _ => self.terminate(index, grace, now, machine),
            }
        }
    }

    /// The server is about to stop: the roll under way is over, and no worker is replaced any more but one that crashes, for the
    /// requests that are still there are to be answered.
    pub fn hold_still(&mut self, now: Instant, machine: &mut impl Machine) {
        if self.course == Course::Serve {
            self.course = Course::Settle;
        }
        let queued = self.queued_roll.take();
        self.abort_roll("the server stops", "", now, machine);
        if let Some(id) = queued {
            self.abort_queued_roll(id, "the server stops", machine);
        }
    }
}
