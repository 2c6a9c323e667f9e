//! The status document, filled: what the fleet, the processes, the dispatch and the counters know, at one moment.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Supervisor;
use super::heartbeat::Heartbeat;
use super::monitor::Monitor;
use super::stop::Stop;
use super::tally::Tally;
use super::unit::Unit;
use super::wake::Waker;
use crate::config::Settings;
use crate::control::status::{self, State, WorkerState};
use crate::dispatch::{Snapshot, Standing, WorkerSnapshot};
use crate::fleet::{self, Member, PlaceState, RollEnd};
use crate::hub::{self, Count, Counts, Hub, LoopSet};
use crate::limits::{Busy, Kept, Limit};
use crate::log::{Level, Log};
use crate::mailbox::Message as Mail;
use crate::mailbox::desk::Desk;
use crate::metrics::latency::{Latencies, Rates, Recent, WINDOW};
use crate::metrics::lives::{Lives, Record};
use crate::metrics::{Account, Metrics};
use crate::tls;

/// How often hubs give up what is too old.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// What the supervisor cannot know of the server around it.
#[derive(Clone, Debug)]
pub struct About {
    /// The name of the backend.
    pub backend: &'static str,
    /// The loops' counters.
    pub metrics: Metrics,
    /// Where the loops ask for documents.
    pub desk: Desk,
    /// When the server started.
    pub started: Instant,
    /// What listeners show to clients that speak TLS.
    pub tls: tls::Policies,
}

/// The same, with what is remembered of it.
pub(super) struct Observed {
    pub about: About,
    /// When the apps' rates were sampled last.
    sampled: Instant,
    /// The last reload of the configuration.
    pub reload: Option<status::Reload>,
    pub monitor: Monitor,
    pub heartbeat: Heartbeat,
    /// When hubs were swept last.
    swept: Instant,
    /// What was counted of the workers of apps that are gone, by the apps' names.
    pub departed: BTreeMap<String, Tally>,
    /// Lines of the log that nobody read of the servers before this one.
    pub dropped_before: u64,
}

impl Observed {
    /// `waker` wakes the supervisor for whoever asks.
    pub fn new(about: About, settings: &Settings, log: &Log, waker: Waker) -> Observed {
        about.desk.attend(Box::new(move || waker.wake()));
        let monitor =
            Monitor::new(about.desk.clone(), &settings.telling.metrics, settings.loops.count, log, about.started);
        let (heartbeat, departed) = (Heartbeat::default(), BTreeMap::new());
        let (swept, sampled) = (about.started, about.started);
        Observed { swept, sampled, about, monitor, heartbeat, departed, dropped_before: 0, reload: None }
    }

    /// When the apps' rates are to be sampled again.
    pub fn sample_due(&self) -> Instant {
        self.sampled + WINDOW
    }

    /// When what is too old in hubs is to be given up; `None`: there is no hub.
    pub fn sweep_due(&self) -> Option<Instant> {
        (!self.about.metrics.hubs().all().is_empty()).then(|| self.swept + SWEEP_EVERY)
    }

    fn departed(&self) -> Lives {
        let mut all = Lives::default();
        self.departed.values().for_each(|tally| all.add(&tally.all().lives));
        all
    }
}

fn limits(metrics: &Metrics) -> Vec<status::Limit> {
    let limit = |(name, limit): (String, Arc<Limit>)| {
        let [delayed, refused, spared, forgotten] = limit.counts();
        let busiest = limit.busiest().into_iter().map(|Busy { key, count }| status::Busy { key, count }).collect();
        status::Limit { name, delayed, refused, spared, forgotten, busiest }
    };
    metrics.limits().all().into_iter().map(limit).collect()
}

/// Topics of a hub that are asked one by one, at most: a few milliseconds of this thread.
const TOPICS_ASKED: usize = 1 << 16;

fn hub(hub: &Hub) -> status::Hub {
    let Counts { all, memory, .. } = hub.counts(None, 0);
    let topics = (all <= TOPICS_ASKED).then(|| hub.counts(None, TOPICS_ASKED).topics);
    let sum = |read: fn(&Count) -> u64| topics.as_ref().map(|topics| topics.iter().map(read).sum());
    status::Hub {
        name: hub.settings().name.clone(),
        topics: all,
        subscribers: sum(|topic| u64::from(topic.subscribers)),
        messages: sum(|topic| topic.messages as u64),
        memory_bytes: memory,
        bus: crate::bus::report(&hub.settings().name),
    }
}

fn certificate((listener, shown): (String, tls::Shown)) -> status::Certificate {
    let (file, expires) = (shown.path.display().to_string(), tls::day(shown.not_after));
    let outdated = shown.outdated().map(|failure| failure.what);
    let tls::Shown { names, not_before, not_after, .. } = shown;
    status::Certificate { listener, names, file, not_before, not_after, expires, outdated }
}

impl Supervisor {
    /// Keeps a sample for the rates, when it is due.
    pub(super) fn sample_rates(&mut self, now: Instant) {
        let Some(observed) = self.observed.as_mut().filter(|observed| observed.sample_due() <= now) else { return };
        observed.sampled = now;
        let metrics = &observed.about.metrics;
        self.units.iter_mut().for_each(|unit| drop(unit.sample_rates(Some(metrics), now)));
    }

    /// Has hubs give up what is too old, when that is due.
    pub(super) fn sweep_hubs(&mut self, now: Instant) {
        let due = |observed: &&mut Observed| observed.sweep_due().is_some_and(|due| due <= now);
        let Some(observed) = self.observed.as_mut().filter(due) else { return };
        observed.swept = now;
        let hubs = observed.about.metrics.hubs();
        hubs.all().iter().for_each(|hub| hub.sweep(hubs.since(now)));
    }

    /// All that is known; what of it takes the system time to tell, as it was last seen.
    pub(super) fn status_document(&mut self, now: Instant) -> status::Status {
        let stops = self.stop.as_ref().map(|stop| match stop {
            Stop::Announced { drains: true, .. } | Stop::Loops { drains: true, .. } => State::Draining,
            _ => State::Stopping,
        });
        let observed = self.observed.as_ref();
        let apps: Vec<status::App> = self.units.iter_mut().map(|unit| unit.status(stops, observed, now)).collect();
        let about = self.observed.as_ref().map(|observed| &observed.about);
        let settings = self.context.settings();
        status::Status {
            server: status::Server {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                uptime_seconds: about.map_or(0.0, |about| now.duration_since(about.started).as_secs_f64()),
                state: stops.unwrap_or_else(|| {
                    // What is removed says nothing of the server any more.
                    let stay = self.units.iter().zip(&apps).filter(|(unit, _)| unit.leaving.is_none());
                    state_of_all(stay.map(|(unit, app)| match app.state {
                        State::Failed | State::Starting if !unit.is_needed() => State::Running,
                        state => state,
                    }))
                }),
                backend: about.map_or_else(String::new, |about| about.backend.to_owned()),
                loops: settings.loops.count,
                listen: settings.listening.at.iter().map(ToString::to_string).collect(),
                admin: settings.telling.admin.iter().map(ToString::to_string).collect(),
                control_socket: self.context.control_path().display().to_string(),
            },
            counters: about.map(|about| counters(&about.metrics)).unwrap_or_default(),
            log_lines_dropped: self.log_lines_dropped(),
            reload: self.observed.as_ref().and_then(|observed| observed.reload.clone()),
            upgrade: self.upgrades.status(),
            certificates: about
                .map(|about| about.tls.shown())
                .unwrap_or_default()
                .into_iter()
                .map(certificate)
                .collect(),
            apps,
            limits: about.map(|about| limits(&about.metrics)).unwrap_or_default(),
            hubs: about
                .map(|about| about.metrics.hubs().all().iter().map(|one| hub(one)).collect())
                .unwrap_or_default(),
            acme: crate::acme::report(),
            key_sets: crate::key_sets::report(),
            departed: self.observed.as_ref().map(Observed::departed).unwrap_or_default(),
        }
    }

    /// Lines of the log that nobody read, those of the servers before this one included.
    pub(super) fn log_lines_dropped(&self) -> u64 {
        self.observed.as_ref().map_or(0, |observed| observed.dropped_before) + self.context.log.dropped()
    }

    /// All that was counted, for a successor.
    pub(super) fn account(&self) -> Account {
        let Some(observed) = &self.observed else { return Account::default() };
        let mut account = observed.about.metrics.account();
        account.lives = observed.departed.iter().map(|(name, tally)| (name.clone(), tally.all())).collect();
        // One that is removed and still ends may have the name of one that has come.
        for unit in &self.units {
            account.lives.entry(unit.name().to_owned()).or_default().add(&unit.record());
        }
        account.log_lines_dropped = self.log_lines_dropped();
        account
    }

    /// What is remembered of clients by the limits, each for itself.
    pub(super) fn kept_limits(&self, now: Instant) -> Vec<Kept> {
        self.observed.as_ref().map_or_else(Vec::new, |observed| observed.about.metrics.limits().keep(now).collect())
    }

    /// What the server before this one has remembered of clients by one of its limits.
    pub(super) fn inherit_limit(&self, told: Value, now: Instant) {
        let Some(observed) = &self.observed else { return };
        if let Err(what) = observed.about.metrics.limits().restore(told, now) {
            let message = "what clients have used of a limit is not known to this server: it begins anew";
            let fields: [(&str, &dyn std::fmt::Display); 1] = [("error", &what)];
            self.context.log.event(Level::Warn, message, &fields);
        }
    }

    /// The hubs that are this server's alone: what is in the others a new one gets from where all get it.
    fn hubs(&self) -> Vec<Arc<Hub>> {
        let mut hubs = self.observed.as_ref().map_or_else(Vec::new, |observed| observed.about.metrics.hubs().all());
        hubs.retain(|hub| !hub.has_bus());
        hubs
    }

    /// Tells what is in each hub, under its name. From then on nothing is published here.
    pub(super) fn hand_over_hubs<E>(
        &self,
        now: Instant,
        mut tell: impl FnMut(&str, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(observed) = &self.observed else { return Ok(()) };
        let now = observed.about.metrics.hubs().since(now);
        self.hubs().iter().try_for_each(|hub| tell(&hub.settings().name, &hub.snapshot(now)))
    }

    /// What was in a hub of the server before this one.
    pub(super) fn inherit_hub(&self, name: &str, bytes: &[u8], now: Instant) {
        let Some(observed) = &self.observed else { return };
        let Some(hub) = self.hubs().into_iter().find(|hub| hub.settings().name == name) else { return };
        match hub.restore(observed.about.metrics.hubs().since(now), bytes) {
            Ok(told) => self.tell_loops(told),
            Err(what) => {
                let message =
                    "what was in a hub is not known to this server: its clients are told that messages are missing";
                let fields: [(&str, &dyn std::fmt::Display); 2] = [("hub", &name), ("error", &what)];
                self.context.log.event(Level::Warn, message, &fields);
            }
        }
    }

    /// Says to loops that topics have something for those who listen there.
    fn tell_loops(&self, told: Vec<(Arc<hub::Topic>, LoopSet)>) {
        for (topic, tell) in told {
            tell.iter().for_each(|loop_index| self.context.postboxes.post(loop_index, Mail::Published(topic.clone())));
        }
    }

    /// What apps have published since hubs were handed over.
    pub(super) fn handed_on(&self) -> Vec<String> {
        self.hubs().iter().flat_map(|hub| hub.handed_on()).collect()
    }

    /// No other server has taken over, but one may have published already: hubs begin anew.
    pub(super) fn reopen_hubs(&self, now: Instant) {
        for hub in self.hubs() {
            hub.begin(hub::Registry::new_epoch());
            hub.reopen();
            self.tell_loops(hub.tell_all());
        }
        for notice in self.handed_on() {
            self.publish_notice(&notice, now);
        }
    }

    /// Publishes what an app has said to another process, or before this one went on.
    pub(super) fn publish_notice(&self, notice: &str, now: Instant) {
        if let Err(answer) = self.notify(notice.as_bytes(), now) {
            let message = "what an app says to a hub is not published";
            self.context.log.seldom(Level::Warn, message, &[("reason", &format_args!("{answer:?}"))]);
        }
    }

    /// What the servers before this one have counted; replaces what was said before.
    pub(super) fn inherit_counts(&mut self, mut account: Account) {
        let Some(observed) = &mut self.observed else { return };
        observed.about.metrics.inherit(&account);
        observed.dropped_before = account.log_lines_dropped;
        for unit in &mut self.units {
            let record = account.lives.remove(unit.name());
            record.into_iter().for_each(|record| unit.processes.tally.inherit(record));
            // What came before is nothing that came of late.
            let (total, took) = unit.counted(Some(&observed.about.metrics));
            unit.rates = Rates::after(Instant::now(), total, took);
        }
        for (name, record) in account.lives {
            observed.departed.entry(name).or_default().inherit(record);
        }
    }
}

/// The state of all apps together: the one that an operator is to know first.
fn state_of_all(apps: impl Iterator<Item = State>) -> State {
    let rank = |state: &State| match state {
        State::Failed => 0,
        State::Paused => 1,
        State::Starting => 2,
        _ => 3,
    };
    apps.min_by_key(rank).unwrap_or(State::Running)
}

impl Unit {
    /// Requests that the app's workers have had, or that the loops have answered in its place, and how many of them a second lately, with how
    /// long all took that were the app's.
    fn sample_rates(&mut self, metrics: Option<&Metrics>, now: Instant) -> (u64, Recent) {
        let (total, took) = self.counted(metrics);
        (total, self.rates.sample(now, total, took))
    }

    /// Those requests, and how long they took. They are the app's own also where it is the only one: another may come.
    fn counted(&self, metrics: Option<&Metrics>) -> (u64, Latencies) {
        let of_loops = metrics.filter(|_| self.is_answered_by_loops());
        let total = match of_loops {
            Some(metrics) => metrics.ended_by_app(metrics.app(self.name())),
            None => self.record().places.values().sum(),
        };
        let took = metrics.map_or_else(Latencies::default, |metrics| metrics.took_by_app(metrics.app(self.name())));
        (total, took)
    }

    /// What was counted of the app's workers, the requests of those that live included.
    fn record(&self) -> Record {
        let mut record = self.processes.tally.all();
        // Those of workers that are gone are in it, though the dispatch may remember them for a while.
        let is_there = |worker: &WorkerSnapshot| {
            self.processes.name(worker.id).is_some() || self.upstreams.known().any(|id| id == worker.id)
        };
        for worker in self.processes.dispatch.snapshot().workers.iter().filter(|worker| is_there(worker)) {
            *record.places.entry(worker.target.number).or_default() += worker.served;
        }
        record
    }

    /// What the app is about; `stops`: what the server is, if it ends.
    fn state_now(&self, stops: Option<State>, snapshot: &Snapshot) -> State {
        match (stops, self.fleet.state()) {
            (Some(state), _) => state,
            (None, _) if self.leaving.is_some() => State::Stopping,
            (None, fleet::AppState::Failed) => State::Failed,
            (None, _) if snapshot.paused => State::Paused,
            (None, fleet::AppState::Running) => State::Running,
            (None, fleet::AppState::Starting) if self.upstreams.seen() || self.is_answered_by_loops() => State::Running,
            (None, fleet::AppState::Starting) => State::Starting,
        }
    }

    fn status(&mut self, stops: Option<State>, observed: Option<&Observed>, now: Instant) -> status::App {
        let snapshot = &self.processes.dispatch.snapshot();
        let (total, recent) = self.sample_rates(observed.map(|observed| &observed.about.metrics), now);
        let requests = status::Requests { total, per_second: recent.per_second };
        let app = self.app();
        let waited = snapshot.oldest.map(|since| now.saturating_duration_since(since).as_secs_f64() * 1000.0);
        status::App {
            name: app.name.clone(),
            state: self.state_now(stops, snapshot),
            needed: self.is_needed(),
            generation: self.fleet.generation(),
            lives: self.processes.tally.told(),
            workers_wanted: self.fleet.wanted() + app.instead.upstreams.len(),
            workers_ready: ready_places(snapshot),
            workers_busy: snapshot.workers.iter().filter(|worker| is_busy(worker)).count(),
            scaling: app.scaling.map(|scaling| status::Scaling { min: scaling.min, max: scaling.max }),
            paused: snapshot.paused,
            queue: status::Queue {
                depth: snapshot.queue_depth,
                size: app.queue.size,
                oldest_wait_ms: waited,
                eligible: snapshot.eligible,
            },
            requests,
            latency_ms: status::Latency::from(&recent),
            roll: self.status_of_roll(),
            workers: self.status_of_workers(snapshot, now),
        }
    }

    /// The roll under way, else the last one.
    fn status_of_roll(&self) -> Option<status::Roll> {
        if let Some(roll) = self.fleet.roll() {
            let (id, generation, replaced, total) = (roll.id, roll.generation, roll.done, roll.total);
            return Some(status::Roll { id, generation, replaced, total, ..status::Roll::default() });
        }
        let report = self.fleet.last_roll()?;
        let mut roll = status::Roll {
            id: report.id,
            generation: report.generation,
            state: status::RollState::Done,
            replaced: report.done,
            total: report.total,
            ..status::Roll::default()
        };
        if let RollEnd::Aborted { reason, last_lines } = &report.end {
            roll.state = status::RollState::Aborted;
            roll.reason = Some(reason.clone());
            roll.last_stderr = last_lines.split(" | ").filter(|line| !line.is_empty()).map(str::to_owned).collect();
        }
        Some(roll)
    }

    fn status_of_workers(&self, snapshot: &Snapshot, now: Instant) -> Vec<status::Worker> {
        // As was last seen; the next look is for the next document.
        self.processes.ask_for_memory();
        let weight = |name| self.processes.process(name)?.memory.held;
        let mut workers: Vec<status::Worker> = Vec::new();
        for member in self.fleet.members() {
            workers.push(self.status_of_member(member, snapshot, weight(member.name), now));
        }
        // A place that nobody fills is shown, too.
        for place in self.fleet.places() {
            if self.fleet.members().iter().any(|member| member.number == place.number) {
                continue;
            }
            let state = if place.given_up { WorkerState::Failed } else { WorkerState::Respawning };
            let (before, empty) = (self.before(place.number), status::Worker::default());
            workers.push(status::Worker { id: place.number, state, before, ..empty });
        }
        workers.sort_by_key(|worker| (worker.id, worker.generation));
        workers.extend(self.fleet.joined().iter().map(|joined| self.status_of_joined(joined, snapshot, now)));
        let upstream = |worker: &&WorkerSnapshot| self.upstreams.known().any(|id| id == worker.id);
        workers.extend(snapshot.workers.iter().filter(upstream).map(|worker| self.status_of_upstream(worker)));
        workers
    }

    /// Those that were in that place before.
    fn before(&self, number: u32) -> status::Before {
        let place = self.fleet.places().iter().find(|place| place.number == number);
        status::Before {
            restarts: self.processes.tally.restarts(number),
            requests_before: self.processes.tally.requests_before(number),
            failed_checks: self.processes.tally.failed_checks(number),
            last_exit: place.and_then(|place| place.last_exit.clone()),
        }
    }

    /// The same of one that is not ours, and has no place in the fleet.
    fn before_of_others(&self, worker: Option<&WorkerSnapshot>) -> status::Before {
        worker.map_or_else(status::Before::default, |worker| status::Before {
            requests_before: self.processes.tally.requests_before(worker.target.number),
            failed_checks: self.processes.tally.failed_checks(worker.target.number),
            ..status::Before::default()
        })
    }

    fn status_of_upstream(&self, worker: &WorkerSnapshot) -> status::Worker {
        let ejected = self.upstreams.is_ejected(worker.id);
        status::Worker {
            id: worker.target.number,
            before: self.before_of_others(Some(worker)),
            state: match (worker.standing, ejected) {
                (_, Some(true)) => WorkerState::Ejected,
                (Standing::Ready, _) => WorkerState::Running,
                _ => WorkerState::Starting,
            },
            name: worker.target.label.clone(),
            socket: worker.target.label.clone(),
            health: self.checks.health(worker.id),
            ejections: Some(self.processes.tally.ejections(worker.target.number)),
            work: counted(Some(worker)),
            ..status::Worker::default()
        }
    }

    fn status_of_member(
        &self,
        member: &Member,
        snapshot: &Snapshot,
        memory_bytes: Option<u64>,
        now: Instant,
    ) -> status::Worker {
        let process = self.processes.process(member.name);
        let known = process.and_then(|process| snapshot.worker(process.id));
        status::Worker {
            id: member.number,
            pid: process.map(|process| process.child.id()),
            generation: member.generation,
            state: match member.state() {
                PlaceState::Starting => WorkerState::Starting,
                PlaceState::Running => WorkerState::Running,
                PlaceState::Stopping => WorkerState::Stopping,
            },
            name: process.map_or_else(String::new, |process| process.label.clone()),
            socket: process.map_or_else(String::new, |process| match process.endpoint.path() {
                Some(path) => path.display().to_string(),
                None => process.endpoint.to_string(),
            }),
            uptime_seconds: Some(now.duration_since(member.born).as_secs_f64()),
            work: counted(known),
            before: self.before(member.number),
            reloads: member.reloads,
            memory_bytes,
            health: process.and_then(|process| self.checks.health(process.id)),
            status_text: process
                .and_then(|process| process.channel.as_ref())
                .map(|channel| channel.status.clone())
                .filter(|text| !text.is_empty()),
            ..status::Worker::default()
        }
    }

    fn status_of_joined(&self, joined: &fleet::Joined, snapshot: &Snapshot, now: Instant) -> status::Worker {
        let worker = self.processes.joined.iter().find(|worker| worker.name == joined.name);
        let known = worker.and_then(|worker| snapshot.worker(worker.id));
        let serves = known.is_some_and(|worker| worker.standing == Standing::Ready);
        status::Worker {
            id: known.map_or(0, |worker| worker.target.number),
            pid: joined.pid,
            generation: known.map_or(0, |worker| worker.app_generation),
            state: if serves { WorkerState::Running } else { WorkerState::Starting },
            joined: true,
            work: counted(known),
            before: self.before_of_others(known),
            name: joined.worker_id.clone(),
            socket: worker.map_or_else(String::new, |worker| worker.socket.display().to_string()),
            uptime_seconds: Some(now.duration_since(joined.since).as_secs_f64()),
            status_text: joined.version.as_ref().map(|version| format!("version {version}")),
            ..status::Worker::default()
        }
    }
}

/// What the loops have counted, by name.
fn counters(metrics: &Metrics) -> serde_json::Map<String, serde_json::Value> {
    match serde_json::to_value(metrics.total()) {
        Ok(serde_json::Value::Object(counters)) => counters,
        _ => serde_json::Map::new(),
    }
}

/// Places with a worker that takes requests, and upstreams and workers of others that do. A place that has two while one is replaced is one.
fn ready_places(snapshot: &Snapshot) -> usize {
    let ready = snapshot.workers.iter().filter(|worker| worker.standing == Standing::Ready);
    let (ours, others): (Vec<_>, Vec<_>) = ready.partition(|worker| worker.target.supervised);
    ours.into_iter().map(|worker| worker.target.number).collect::<BTreeSet<_>>().len() + others.len()
}

/// Whether a worker that takes requests, or did until it was to leave, has one.
fn is_busy(worker: &WorkerSnapshot) -> bool {
    matches!(worker.standing, Standing::Ready | Standing::Draining) && worker.in_flight > 0
}

/// What the dispatch counts of a worker.
fn counted(known: Option<&WorkerSnapshot>) -> status::Work {
    known.map_or_else(status::Work::default, |known| status::Work {
        requests: known.served,
        in_flight: known.in_flight,
        tunnels: known.tunnels,
    })
}
