//! One app: its fleet, its processes, its upstreams, and all else that is its own. What apps share is in [`Context`]; whatever becomes
//! of one leaves the others alone.
//!
//! - [`Unit::turn`] is what the app does in a turn of the supervisor's loop, in the one order that is right: the fleet hears of
//!   everything before it decides, and changed files come behind it, for it may have ended the roll that they wait for.
//! - An app may come, change and go while the server runs: `change` has what becomes of new settings, and of an app that leaves.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::checks::Checks;
use super::events::Events;
use super::guard::GuardKeeper;
use super::observer::Observer;
use super::pause::Pause;
use super::processes::{Observation, Processes};
use super::saturation::{self, Saturation};
use super::spawn::Launcher;
use super::upstreams::Upstreams;
use super::wake::{self, Ready, Waker};
use super::watch::Watcher;
use super::watch::limiter::ReloadLimiter;
use super::{
    AppState, ExitReason, LEAST_ROOM, LONGEST_SUFFIX, MOST_JOINED, Options, RunDirectory, RunDirectoryError,
    StartError, Status,
};
use crate::config::{self, HotReload, Settings};
use crate::control::SOCKET_NAME;
use crate::dispatch::{AppId, Dispatch, Notice, Snapshot};
use crate::fleet::{self, Ending, Fleet, Load, Member, Name, RestartRule, Scaler};
use crate::log::{Level, Log};
use crate::mailbox::Postboxes;
use crate::metrics::latency::Rates;

mod change;
mod health;

pub(super) use change::Leaving;
pub use change::policy;

/// A ready worker that nobody asks counts as one that serves after so long...
const PROVEN_AFTER: Duration = Duration::from_secs(10);
/// ...and while its code is being edited.
const PROVEN_AFTER_EDIT: Duration = Duration::from_secs(1);

/// What apps share: the ways to the rest of the server.
#[derive(Clone)]
pub(super) struct Context {
    /// The server's configuration as it is now. Its app is not looked at.
    pub settings: Rc<RefCell<Arc<Settings>>>,
    pub postboxes: Postboxes,
    pub log: Log,
    /// Its end removes sockets and lock.
    pub run: Rc<RunDirectory>,
    /// Counts the sockets of workers: an app may go and come again while workers of the first one still serve.
    pub sockets: Rc<Cell<u64>>,
    pub guard: GuardKeeper,
    pub events: Events,
    pub status: Arc<Status>,
    pub observer: Observer,
    pub waker: Waker,
    pub options: Rc<Options>,
}

impl Context {
    /// The server's configuration as it is now.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.borrow().clone()
    }

    /// The path of a worker's socket, which no other has had.
    ///
    /// # Errors
    /// When it is too long.
    pub fn next_socket(&self, label: &str) -> Result<PathBuf, RunDirectoryError> {
        self.sockets.set(self.sockets.get() + 1);
        self.run.socket(&format!("{label}.{}.sock", self.sockets.get()))
    }

    /// Another one, for all who share this.
    pub fn set_settings(&self, settings: Arc<Settings>) {
        *self.settings.borrow_mut() = settings;
    }

    /// Where the control socket is, or would be.
    pub fn control_path(&self) -> PathBuf {
        self.run.path().join(SOCKET_NAME)
    }
}

/// An app to be supervised.
#[derive(Clone, Debug)]
pub struct AppSetup {
    /// Its name in the loops; no other app of this process may have had it.
    pub id: AppId,
    /// Its part of the checked configuration.
    pub settings: Arc<config::App>,
    /// Its permits and its waiting line, with room for [`table_size`] workers.
    pub dispatch: Arc<Dispatch>,
}

/// How many workers may be wanted at most: what scaling is bounded by.
pub fn most_workers(app: &config::App) -> usize {
    let most = app.scaling.map_or(app.workers * 4, |scaling| scaling.max);
    most.clamp(LEAST_ROOM, 1024)
}

/// Workers that the dispatch's table should have room for: each place may hold a worker that serves, its
/// replacement, and some that are on their way out or remembered until their last permit is back.
pub fn table_size(app: &config::App) -> usize {
    most_workers(app) * 4 + app.instead.upstreams.len() + MOST_JOINED + 8
}

/// See the module.
pub(super) struct Unit {
    pub fleet: Fleet,
    pub processes: Processes,
    /// How many workers may be wanted at most, however the settings change: the dispatch's table does not grow.
    room: usize,
    /// How many workers the load asks for, and when that is looked at next.
    scaler: Option<(Scaler, Instant)>,
    pub upstreams: Upstreams,
    pub checks: Checks,
    /// Sees changed files, where they are to reach the workers.
    watcher: Option<Watcher>,
    reloads: ReloadLimiter,
    pub pause: Pause,
    /// The app's own rates.
    pub rates: Rates,
    /// It was added while the server ran.
    pub came_later: bool,
    /// It was taken out of the configuration, and ends.
    pub leaving: Option<Leaving>,
    /// A worker could not be reached: its socket's file may be gone.
    pub doubts_files: bool,
    saturation: Saturation,
    notices: Vec<Notice>,
}

impl Unit {
    /// Places that have a worker of ours which is ready. While one is replaced there may be two of them, and the place still is one.
    pub fn ready_workers(&self) -> usize {
        let running = self.fleet.members().iter().filter(|member| member.is_running());
        running.map(|member| member.number).collect::<BTreeSet<u32>>().len()
    }

    /// Prepares an app. Its workers are started by its first turn.
    ///
    /// # Errors
    /// When its command cannot be found, the run directory's path is too long for its sockets, or the kernel refuses.
    pub fn new(setup: AppSetup, context: &Context, now: Instant) -> Result<Unit, StartError> {
        let AppSetup { id, settings: app, dispatch } = setup;
        let launcher = launcher(&app, context)?;
        let ring = context.waker.clone();
        dispatch.on_notice(Box::new(move || ring.wake()));
        let deliver = context.postboxes.clone();
        dispatch.on_grant(Box::new(move |grant| deliver.grant(grant)));
        let mut workers = 0;
        if launcher.is_some() {
            context.run.socket(&format!("{}{LONGEST_SUFFIX}", app.name))?;
            workers = app.workers;
            context.guard.begin()?;
        }
        if let Some(advice) = launcher.as_ref().and_then(Launcher::advice) {
            context.log.event(Level::Warn, advice, &[("event", &"own-pool")]);
        }
        let upstreams = Upstreams::new(&app, &dispatch, context.options.resolve, context.waker.clone(), now)?;
        let scaling = app.scaling.filter(|_| launcher.is_some());
        let fleet = Fleet::new(rule(&app), workers, now);
        let (room, checks) = (most_workers(&app), Checks::new(&app.health));
        let mut unit = Unit {
            fleet,
            processes: Processes::new(id, app, dispatch, context.clone(), launcher),
            room,
            scaler: scaling.map(|scaling| (Scaler::new(scaling.min, scaling.max.min(room)), now)),
            upstreams,
            checks,
            watcher: None,
            reloads: ReloadLimiter::default(),
            pause: Pause::default(),
            rates: Rates::new(now),
            came_later: false,
            leaving: None,
            doubts_files: false,
            saturation: Saturation::new(context.options.saturation_interval, now),
            notices: Vec::new(),
        };
        unit.watch_files();
        Ok(unit)
    }

    pub fn id(&self) -> AppId {
        self.processes.id
    }

    pub fn app(&self) -> &config::App {
        &self.processes.app
    }

    pub fn name(&self) -> &str {
        &self.processes.app.name
    }

    /// Does all that is to be done now. `stops`: the server ends; `ready`: what there is to be read.
    pub fn turn(&mut self, ready: &Ready, stops: bool, now: Instant) {
        self.processes.read_output(ready);
        self.take_notices(now);
        for name in self.processes.look_for_sockets(now) {
            self.fleet.ready(name, now, &mut self.processes);
        }
        for (name, seen) in self.processes.observe(ready, now) {
            self.act_on_observation(name, seen, now);
        }
        self.upstreams.look(self.processes.ways(), now);
        self.look_at_health(stops, now);
        if !stops && self.leaving.is_none() {
            self.scale_by_load(now);
        }
        self.fleet.tick(now, &mut self.processes);
        if !stops && self.leaving.is_none() {
            self.look_at_files(now);
        }
        self.advance_pause(now);
        self.look_whether_workers_idle(now);
        self.advance_leaving(now);
    }

    /// When something is due by itself.
    pub fn due(&self, stops: bool) -> Option<Instant> {
        let sample = self.scaler.as_ref().map(|(_, next)| *next);
        // A server that stops loads nothing again.
        let changes = self.reloads.due().filter(|_| !stops);
        let leaving = self.leaving.as_ref().map(Leaving::due);
        let own = [self.fleet.due(), self.processes.due(), self.upstreams.due(), self.pause.due()];
        let saturation = self.starts_workers().then(|| self.saturation.due());
        let health = self.health_due().filter(|_| !stops && self.leaving.is_none());
        own.into_iter().chain([sample, changes, leaving, saturation, health]).flatten().min()
    }

    /// What is to be polled for.
    pub fn poll_entries(&self, into: &mut Vec<libc::pollfd>) {
        for process in &self.processes.workers {
            into.extend(process.output.descriptors().map(|descriptor| wake::entry(descriptor, libc::POLLIN)));
        }
        into.extend(self.processes.entries());
        into.extend(self.upstreams.entries());
        into.extend(self.checks.entries());
    }

    /// Waits for the processes that have ended; `child`: one of this process's children has.
    pub fn reap(&mut self, child: bool, now: Instant) {
        let over = self.processes.ended(child, now);
        for name in self.processes.forsaken(now) {
            self.fleet.forsaken(name, now, &mut self.processes);
        }
        for name in over {
            let words = self.processes.last_words(name, now);
            self.fleet.last_words(name, &words, now, &mut self.processes);
            let member = self.fleet.member(name);
            let (ending, ready_at) = member.map_or((None, None), |member| (member.ending(), member.ready_at));
            if let Some(exit) = self.processes.reap(name, ending, ready_at.is_some(), now) {
                self.fleet.exited(name, &exit, now, &mut self.processes);
            }
        }
    }

    /// The app's state; what the server is about is not asked.
    pub fn state(&self) -> AppState {
        match self.fleet.state() {
            fleet::AppState::Failed => AppState::Failed,
            fleet::AppState::Running => AppState::Running,
            fleet::AppState::Starting if self.upstreams.seen() => AppState::Running,
            fleet::AppState::Starting => AppState::Starting,
        }
    }

    /// Whether the server is ready only with this app: it is required, and not one that came while the server ran and was not ready yet.
    pub fn is_needed(&self) -> bool {
        self.app().required && !(self.came_later && self.state() == AppState::Starting)
    }

    /// Whether it has no worker that is ready, and the server serves without it.
    pub fn is_down(&self) -> bool {
        !self.app().required && self.starts_workers() && self.ready_workers() == 0
    }

    /// What the app's state is to the server's: whether one that is not needed serves, is nothing to it.
    pub fn state_for_server(&self) -> AppState {
        match self.state() {
            AppState::Failed | AppState::Starting if !self.is_needed() => AppState::Running,
            state => state,
        }
    }

    /// Why the server is to end now that this app has failed, if it is; `only`: the server has no other.
    pub fn ends_server(&self, only: bool) -> Option<ExitReason> {
        match self.fleet.ever_ready() {
            false if only => Some(ExitReason::NeverReady),
            _ => self.app().life.restart.give_up_exit.then_some(ExitReason::GaveUp),
        }
    }

    /// What helps an app that never got ready although it was given the path of a socket as its port.
    pub fn port_hint(&self) -> Option<&'static str> {
        let has_path = self.processes.launcher().is_some_and(Launcher::has_path_as_port);
        has_path.then_some("an app that takes $PORT for a number needs --socket tcp")
    }

    /// Whether the loops answer in the app's place.
    pub fn is_answered_by_loops(&self) -> bool {
        self.app().is_answered_by_loops()
    }

    /// Whether the app has workers of ours, and not only such as join.
    pub fn starts_workers(&self) -> bool {
        self.processes.launcher().is_some() && !self.fleet.places().is_empty()
    }

    /// How few and how many workers may be asked for: what automatic scaling was given, or what there is room for.
    pub fn worker_bounds(&self) -> (usize, usize) {
        match self.app().scaling {
            Some(scaling) => (scaling.min.min(self.room), scaling.max.min(self.room)),
            None => (1, self.room),
        }
    }

    /// One worker more or fewer, within those bounds.
    pub fn scale_by(&mut self, change: i32, why: &'static str, now: Instant) {
        let wanted = self.fleet.wanted().saturating_add_signed(change as isize);
        let (least, most) = self.worker_bounds();
        let target = wanted.clamp(least, most);
        self.fleet.scale_to(target, why, now, &mut self.processes);
    }

    /// The automatic number of workers.
    fn scale_by_load(&mut self, now: Instant) {
        let Some((scaler, next)) = self.scaler.as_mut().filter(|(_, next)| *next <= now) else { return };
        *next = now + fleet::SAMPLE;
        let snapshot = self.processes.dispatch.snapshot();
        let load = Load {
            queued: snapshot.queue_depth,
            oldest_wait: snapshot.oldest.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            in_flight: in_flight(&snapshot),
            concurrency: self.processes.app.sharing.concurrency as usize,
            workers: self.fleet.wanted(),
            changing: snapshot.paused
                || self.fleet.roll().is_some()
                || self.fleet.members().iter().any(fleet::Member::is_starting),
            short: self.fleet.is_short(),
        };
        if let Some(target) = scaler.sample(load, now) {
            self.fleet.scale_to(target, "load", now, &mut self.processes);
        }
    }

    /// Tells the operator when requests wait although the workers have time.
    fn look_whether_workers_idle(&mut self, now: Instant) {
        if !self.starts_workers() || !self.saturation.is_due(now) {
            return;
        }
        let snapshot = self.processes.dispatch.snapshot();
        let running = self.fleet.members().iter().filter(|member| member.is_running()).map(|member| member.name);
        let running: Vec<Name> = running.collect();
        if snapshot.queue_depth == 0 || snapshot.paused || running.is_empty() {
            return self.saturation.none_wait();
        }
        let used = self.processes.work_of(&running);
        let Some(idle) = (self.processes.context.options.idle_time)() else { return };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let Some(percent) = self.saturation.wait(saturation::Look { used, idle }, cores, now) else { return };
        let (app, workers) = (&self.processes.app, running.len());
        let message = format!(
            "requests wait for a worker while the workers use {percent} % of their CPU time: an app that works on several requests at \
             once takes more of them with -c (it is {}), any other needs more workers with -w (there are {workers})",
            app.sharing.concurrency
        );
        self.processes.events.emit(Level::Warn, "requests-wait", &message, &[("queued", &snapshot.queue_depth)]);
    }

    /// Watches the app's files, if changes are to reach the workers. Where the system cannot, the app goes on without.
    pub fn watch_files(&mut self) {
        self.stop_watching();
        let (app, context) = (&self.processes.app, &self.processes.context);
        if app.reload.by == HotReload::None || self.processes.launcher().is_none() {
            return;
        }
        let ring = context.waker.clone();
        match Watcher::start(app, &context.settings(), move || ring.wake()) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => context.log.event(Level::Warn, format_args!("hot reload is off: {error}"), &[]),
        }
    }

    /// A watcher ends behind what it is looking at, and nobody waits for that.
    fn stop_watching(&mut self) {
        let Some(watcher) = self.watcher.take() else { return };
        let end = std::thread::Builder::new().name("watcher-end".to_owned()).spawn(move || drop(watcher));
        if let Err(error) = end {
            let message = "there is no thread to end a watcher";
            self.processes.context.log.seldom(Level::Warn, message, &[("reason", &error)]);
        }
    }

    /// Nothing is replaced any more, and nothing that was held back is held any longer: requests come to their end.
    pub fn settle(&mut self, now: Instant) {
        self.stop_watching();
        self.checks.halt(self.processes.ways());
        self.fleet.hold_still(now, &mut self.processes);
        self.resume(now);
    }

    /// Changed files reach the workers.
    fn look_at_files(&mut self, now: Instant) {
        let Some(watcher) = &self.watcher else { return };
        if let Some(files) = watcher.take_summary() {
            self.processes.context.log.event(Level::Info, "hot reload: watching", &[("files", &files)]);
        }
        if let Some(trouble) = watcher.take_trouble() {
            self.processes.context.log.event(Level::Warn, trouble, &[]);
        }
        if let Some(changes) = watcher.take_changes() {
            self.reloads.note(changes, now);
        }
        self.reloads.ended(self.fleet.last_roll().map(|report| report.id), now);
        let Some(changes) = self.reloads.next(now) else { return };
        let changed = changes.to_string();
        self.processes.events.emit(Level::Info, "files-changed", "files have changed", &[("changed", &changed)]);
        let (roll, _) = self.load_again(now);
        self.reloads.began(roll, now);
        if let Some(suspect) = self.reloads.suspect() {
            let message = "hot reload: this file has changed before each of three reloads was over; if the app writes \
                it itself, name what is to be watched with --watch";
            let file = suspect.display();
            self.processes.events.emit(Level::Warn, "files-keep-changing", message, &[("file", &file)]);
        }
    }

    fn act_on_observation(&mut self, name: Name, seen: Observation, now: Instant) {
        match seen {
            // A worker that has been ready and is looked at again is known by its socket alone.
            Observation::Ready if self.fleet.member(name).is_some_and(Member::is_starting) => {
                if !self.processes.must_be_found(name, now) {
                    self.fleet.ready(name, now, &mut self.processes);
                }
            }
            Observation::Ready => {}
            Observation::Leaves => self.fleet.leaving(name, now, &mut self.processes),
            Observation::Silent(period) => {
                self.fleet.stuck(name, Ending::Watchdog(period), now, &mut self.processes);
            }
            Observation::Heavy(bytes) => self.fleet.replace(name, Ending::Memory(bytes)),
        }
    }

    fn take_notices(&mut self, now: Instant) {
        let mut notices = std::mem::take(&mut self.notices);
        self.processes.dispatch.notices(&mut notices);
        for notice in notices.drain(..) {
            self.act_on_notice(notice, now);
        }
        self.notices = notices;
    }

    fn act_on_notice(&mut self, notice: Notice, now: Instant) {
        let (Notice::Unreachable(id)
        | Notice::Threshold(id)
        | Notice::Drained(id)
        | Notice::Suspect(id)
        | Notice::Stuck(id)
        | Notice::Failing(id)
        | Notice::Recovers(id)
        | Notice::Spared(id)) = notice;
        let Some(name) = self.processes.name(id) else {
            match notice {
                Notice::Unreachable(id) => self.upstreams.unreachable(id, now),
                Notice::Drained(id) => {
                    let served = self.processes.served(id);
                    if self.upstreams.drained(id, &self.processes.dispatch, now) {
                        self.processes.keep_served(served);
                    }
                }
                Notice::Failing(id) => self.upstreams.failing(id, now),
                Notice::Recovers(id) => self.upstreams.recovers(id, now),
                _ => {}
            }
            return;
        };
        if matches!(notice, Notice::Unreachable(_) | Notice::Drained(_)) && self.remove_joined(name, now) {
            return;
        }
        match notice {
            Notice::Unreachable(_) => {
                self.fleet.unreachable(name, now, &mut self.processes);
                self.doubts_files = true;
            }
            Notice::Threshold(_) => {
                let limit = self.fleet.member(name).map_or(0, |member| member.limit);
                self.fleet.replace(name, Ending::Requests(limit));
            }
            Notice::Drained(_) => self.fleet.drained(name, now, &mut self.processes),
            Notice::Suspect(_) => {
                let label = self.processes.dispatch.target(id).map(|target| target.label.clone()).unwrap_or_default();
                let message = "a request to this worker has timed out";
                self.processes.context.log.event(Level::Warn, message, &[("worker", &label)]);
                let last = self.processes.process(name).map(|process| process.output.last_lines.joined());
                self.fleet.timed_out(name, &last.unwrap_or_default(), now, &mut self.processes);
            }
            Notice::Stuck(_) => {
                let time = self.app().timeouts.request;
                self.fleet.stuck(name, Ending::Deadline(time), now, &mut self.processes);
            }
            // The slot is taken by this turn's look at the checks; the others are of upstreams alone.
            Notice::Spared(_) | Notice::Failing(_) | Notice::Recovers(_) => {}
        }
    }

    /// Writes the app's state to the log.
    pub fn dump(&self, now: Instant) {
        let log = &self.processes.context.log;
        let snapshot = self.processes.dispatch.snapshot();
        let state = format!("{:?}", self.state());
        let fields: [(&str, &dyn std::fmt::Display); 5] = [
            ("app", &self.name()),
            ("state", &state),
            ("generation", &self.fleet.generation()),
            ("queued", &snapshot.queue_depth),
            ("eligible", &snapshot.eligible),
        ];
        log.event(Level::Info, "state", &fields);
        for worker in snapshot.workers {
            let name = self.processes.name(worker.id);
            let pid = name.and_then(|name| self.processes.process(name)).map_or(0, |process| process.child.id());
            let lived = name.and_then(|name| self.fleet.member(name)).map(|member| now.duration_since(member.born));
            let lived = format!("{:.1} s", lived.unwrap_or_default().as_secs_f32());
            let phase = format!("{:?}", worker.standing);
            let fields: [(&str, &dyn std::fmt::Display); 7] = [
                ("worker", &worker.target.label),
                ("pid", &pid),
                ("phase", &phase),
                ("lived", &lived),
                ("in_flight", &worker.in_flight),
                ("served", &worker.served),
                ("tunnels", &worker.tunnels),
            ];
            log.event(Level::Info, "state of a worker", &fields);
        }
    }
}

fn in_flight(snapshot: &Snapshot) -> usize {
    snapshot.workers.iter().map(|worker| worker.in_flight as usize).sum()
}

/// What the fleet keeps to.
fn rule(app: &config::App) -> fleet::Rule {
    let (restart, recycle) = (&app.life.restart, &app.life.recycle);
    fleet::Rule {
        restart: RestartRule {
            base: restart.base,
            max: restart.max,
            crashes: restart.crashes as usize,
            within: restart.within,
            max_restarts: restart.max_restarts as usize,
        },
        requests: recycle.requests,
        requests_not_before: recycle.requests_not_before,
        jitter_percent: recycle.jitter_percent,
        lifetime: recycle.lifetime,
        reloads: recycle.reloads,
        ready_timeout: app.life.ready.timeout,
        start_parallel: restart.start_parallel,
        proven_after: match app.reload.by {
            HotReload::None => PROVEN_AFTER,
            // Who edits waits for the next roll until this one is over.
            HotReload::Process | HotReload::Module => PROVEN_AFTER_EDIT,
        },
        checked: app.health.path.is_some(),
        drain: restart.drain,
        parallel: restart.parallel,
        max_unavailable: restart.max_unavailable,
        dump_signal: app.life.dump_signal,
        seed: u64::from(std::process::id()) << 32,
    }
}

/// What starts the workers, if there are any, with the app's command checked.
fn launcher(app: &config::App, context: &Context) -> Result<Option<Launcher>, StartError> {
    let options = &context.options;
    let control = options.about.is_some().then(|| context.run.control_path());
    let launcher = Launcher::new(app, &options.program, control, options.descriptors);
    let launcher = launcher.map_err(|message| StartError { message, code: 64 })?;
    Ok(launcher.map(|launcher| launcher.of_user(options.user.clone())))
}
