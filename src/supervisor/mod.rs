//! The supervisor: processes, signals, timers. The control plane, on the main thread.
//!
//! It is the loop around the fleet (what becomes of each worker) and the crew (the processes): it hears of what happens, tells the
//! fleet, and sleeps in one poll(2) over signals, workers' output, probes and wakes. It never blocks elsewhere. It tells the loops what
//! happens through the dispatch and their mailboxes; it never touches their state. It must run on a thread that lives as
//! long as the server: on Linux workers die with the thread that started them (PR_SET_PDEATHSIG, prctl(2)).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::config::{HotReload, Settings};
use crate::control::{ControlServer, SOCKET_NAME};
use crate::dispatch::{Dispatch, Notice};
use crate::fleet::{self, Ending, Fleet, Load, Member, Name, Release, RestartRule, Scaler};
use crate::log::{Level, Log};
use crate::mailbox::Postboxes;

mod advice;
mod crew;
pub mod endpoint;
pub mod exec;
pub mod given;
pub mod guard;
mod hearing;
pub mod inquiry;
pub mod inspect;
pub mod memory;
mod news;
pub mod notify;
mod orphans;
pub mod output;
mod pace;
pub mod probe;
pub mod process;
pub mod program;
mod report;
pub mod resolver;
pub mod run_directory;
pub mod signals;
pub mod spawn;
mod steward;
mod stop;
mod upstreams;
pub mod wake;
pub mod watch;

use crew::Crew;
use hearing::Heard;
use pace::Pace;
pub use report::About;
use report::Observed;
pub use run_directory::{RunDirectory, RunDirectoryError};
use signals::{Request, Requester, Requests};
use spawn::Launcher;
use stop::Stop;
use upstreams::{Listeners, Upstreams};
use wake::{Farewell, Sleeper, Waker};
use watch::Watcher;

/// The word that makes this binary the built-in worker.
pub const BUILT_IN: &str = "worker";
/// What the socket's name and number add to the length of a path at most: `.G99999.9999.9999999.sock`.
const LONGEST_SUFFIX: &str = ".G99999.9999.9999999.sock";
/// Workers that may be wanted at least, however few there are at the start.
const LEAST_ROOM: usize = 64;
/// Workers that may join by themselves.
const GUESTS: usize = 64;
/// A ready worker that nobody asks counts as one that serves after so long...
const PROVEN_AFTER: Duration = Duration::from_secs(10);
/// ...and while its code is being edited.
const PROVEN_AFTER_EDIT: Duration = Duration::from_secs(1);
/// Bytes read from a worker's pipe at once.
const READ_BUFFER: usize = 16 * 1024;

/// What differs between the server and a test that drives the supervisor by hand.
#[derive(Debug)]
pub struct Options {
    /// The binary that holds shim, guard and built-in worker.
    pub program: PathBuf,
    /// Soft and hard RLIMIT_NOFILE as the server found them, restored for workers; `None`: as it is.
    pub descriptors: Option<(u64, u64)>,
    /// Whether the process's signals are taken over. Otherwise [`Supervisor::requester`] makes the requests.
    pub signals: bool,
    /// How often a worker's memory is looked at, where it has a limit.
    pub memory_interval: Duration,
    /// How many bytes may still be used, as [`memory::headroom`].
    pub headroom: fn() -> Option<u64>,
    /// How the addresses of upstreams' names are found.
    pub resolve: resolver::Resolve,
    /// The server around the supervisor, for the control socket; `None`: there is no control socket.
    pub about: Option<About>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            program: spawn::this_program(),
            descriptors: None,
            signals: true,
            memory_interval: memory::INTERVAL,
            headroom: memory::headroom,
            resolve: resolver::by_system,
            about: None,
        }
    }
}

/// What the supervisor asks of the rest of the server while it runs.
pub struct Hooks<'a> {
    /// Whether all loops have ended. Asked during a stop.
    pub loops_done: Box<dyn FnMut() -> bool + 'a>,
    /// Something to be done at intervals, such as printing statistics. `None`: nothing.
    pub every: Option<(Duration, Box<dyn FnMut() + 'a>)>,
}

/// The app's state, as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AppState {
    /// No worker was ready yet.
    Starting,
    /// At least one worker has been ready.
    Running,
    /// The server stops.
    Stopping,
    /// All has ended.
    Stopped,
    /// The workers crash before they answer anything. Requests are refused, and one worker is tried now and then.
    Failed,
}

/// Counts and state that other threads may read at any time.
#[derive(Debug, Default)]
pub struct Status {
    state: AtomicU8,
    /// Workers started.
    pub starts: AtomicU64,
    /// Workers that ended unasked.
    pub crashes: AtomicU64,
    /// Workers wanted, those that join not counted.
    pub wanted: AtomicUsize,
}

impl Status {
    /// The app's state.
    pub fn state(&self) -> AppState {
        match self.state.load(Ordering::Relaxed) {
            0 => AppState::Starting,
            1 => AppState::Running,
            2 => AppState::Stopping,
            3 => AppState::Stopped,
            _ => AppState::Failed,
        }
    }

    fn enter(&self, state: AppState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

/// Why [`Supervisor::run`] has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It was asked to stop.
    Stopped,
    /// The app gave up before a worker was ever ready.
    NeverReady,
    /// The app has failed, and whoever started the server wants to know (`--give-up-exit`).
    GaveUp,
    /// An event loop ended although nobody had asked it to.
    LoopLost,
}

impl ExitReason {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            ExitReason::Stopped => 0,
            ExitReason::NeverReady | ExitReason::GaveUp => 69,
            ExitReason::LoopLost => 70,
        }
    }
}

/// Why the supervisor cannot start: one sentence for the operator, and the exit code.
#[derive(Debug)]
pub struct StartError {
    message: String,
    code: u8,
}

impl StartError {
    /// 64: the command cannot be run; 73: no process, pipe or socket can be made.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> StartError {
        StartError { message: format!("cannot start the supervisor: {error}"), code: 73 }
    }
}

impl From<RunDirectoryError> for StartError {
    fn from(error: RunDirectoryError) -> StartError {
        StartError { message: error.to_string(), code: error.code() }
    }
}

/// See the module.
pub struct Supervisor {
    fleet: Fleet,
    crew: Crew,
    scaler: Option<Scaler>,
    sample_at: Instant,
    /// Those who waited during a pause are let go.
    release: Option<Release>,
    requests: Requests,
    requester: Option<Requester>,
    waker: Waker,
    farewell: Farewell,
    sleeper: Sleeper,
    upstreams: Upstreams,
    /// Sees changed files, where they are to reach the workers.
    watcher: Option<Watcher>,
    pace: Pace,
    control: Option<ControlServer>,
    observed: Option<Observed>,
    /// When a pause ends by itself.
    pause_until: Option<Instant>,
    /// The stop under way was asked for as a drain: it has no deadline.
    drains: bool,
    stop: Option<Stop>,
    exit: Option<ExitReason>,
}

impl Supervisor {
    /// How many workers may be wanted at most: what scaling is bounded by.
    pub fn most_workers(settings: &Settings) -> usize {
        let most = settings.app.scaling.map_or(settings.app.workers * 4, |scaling| scaling.max);
        most.clamp(LEAST_ROOM, 1024)
    }

    /// Workers that the dispatch's table should have room for: each place may hold a worker that serves, its
    /// replacement, and some that are on their way out or remembered until their last permit is back.
    pub fn table_size(settings: &Settings) -> usize {
        Supervisor::most_workers(settings) * 4 + settings.app.upstreams.len() + GUESTS + 8
    }

    /// Prepares everything and starts the guard. Workers are started by [`Supervisor::run`].
    ///
    /// # Errors
    /// When the command cannot be found, the run directory's path is too long for sockets, or the kernel refuses.
    pub fn start(
        settings: Arc<Settings>,
        dispatch: Arc<Dispatch>,
        postboxes: Postboxes,
        log: Log,
        run: RunDirectory,
    ) -> Result<Supervisor, StartError> {
        Supervisor::start_with(settings, dispatch, postboxes, log, run, Options::default())
    }

    /// [`Supervisor::start`] with options.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(
        settings: Arc<Settings>,
        dispatch: Arc<Dispatch>,
        postboxes: Postboxes,
        log: Log,
        run: RunDirectory,
        options: Options,
    ) -> Result<Supervisor, StartError> {
        let launcher = launcher(&settings, &run, &options)?;
        let (waker, sleeper) = wake::pair()?;
        let (requests, requester) = match options.signals {
            true => (Requests::from_signals()?, None),
            false => Requests::injected(&waker).map(|(requests, requester)| (requests, Some(requester)))?,
        };
        let ring = waker.clone();
        dispatch.on_notice(Box::new(move || ring.wake()));
        let deliver = postboxes.clone();
        dispatch.on_grant(Box::new(move |grant| deliver.grant(grant)));
        let now = Instant::now();
        let mut workers = 0;
        if launcher.is_some() {
            run.socket(&format!("{}{LONGEST_SUFFIX}", settings.app.name))?;
            workers = settings.app.workers;
        }
        let upstreams = Upstreams::new(&settings, &dispatch, options.resolve, waker.clone(), now)?;
        let scaling = settings.app.scaling.filter(|_| launcher.is_some());
        let observed = options.about.clone().map(Observed::new);
        let fleet = Fleet::new(rule(&settings), workers, now);
        if let Some(advice) = launcher.as_ref().and_then(Launcher::advice) {
            log.event(Level::Warn, advice, &[("event", &"own-pool")]);
        }
        let crew = Crew::new(settings, dispatch, postboxes, log, run, options, launcher)?;
        let watcher = watch_files(&crew, &waker);
        let control = observed.is_some().then(|| ControlServer::open(&crew.control_path()));
        let control = control.transpose().map_err(|error| StartError {
            message: format!("cannot open the control socket {}: {error}", crew.control_path().display()),
            code: 73,
        })?;
        Ok(Supervisor {
            fleet,
            crew,
            scaler: scaling.map(|scaling| Scaler::new(scaling.min, scaling.max)),
            sample_at: now,
            release: None,
            requests,
            requester,
            farewell: Farewell::new(&waker),
            waker,
            sleeper,
            upstreams,
            watcher,
            pace: Pace::default(),
            control,
            observed,
            pause_until: None,
            drains: false,
            stop: None,
            exit: None,
        })
    }

    /// Wakes the supervisor.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// How the event loops' threads tell that they end.
    pub fn farewell(&self) -> Farewell {
        self.farewell.clone()
    }

    /// Makes requests in place of signals; `None` when the supervisor has the signals.
    pub fn requester(&self) -> Option<Requester> {
        self.requester.clone()
    }

    /// State and counts, for other threads.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.crew.status)
    }

    /// Supervises until the server is to end. Afterwards no process, socket or sub-directory of this server is left.
    pub fn run(mut self, mut hooks: Hooks<'_>) -> ExitReason {
        let mut requests = Vec::new();
        let mut notices = Vec::new();
        let mut next_tick = hooks.every.as_ref().map(|(interval, _)| Instant::now() + *interval);
        loop {
            let now = Instant::now();
            self.sleeper.clear();
            self.requests.take(&mut requests);
            // The dead first: their news must not wait behind anything.
            self.reap(requests.contains(&Request::Child), now);
            for request in requests.drain(..) {
                self.serve(request, now);
            }
            self.crew.read_output();
            self.crew.dispatch.notices(&mut notices);
            for notice in notices.drain(..) {
                self.act_on(notice, now);
            }
            for name in self.crew.look_for_sockets(now) {
                self.fleet.ready(name, now, &mut self.crew);
            }
            for (name, heard) in self.crew.hear(now) {
                self.take_notice(name, heard, now);
            }
            let Crew { app, dispatch, postboxes, log, .. } = &self.crew;
            self.upstreams.look(Listeners { app: *app, dispatch, postboxes, log }, now);
            self.scale_by_load(now);
            self.fleet.tick(now, &mut self.crew);
            // Behind the tick, which may have ended the roll that changes wait for.
            self.look_at_files(now);
            self.end_pause(now);
            self.let_go(now);
            self.crew.watch_guard();
            self.show_state(now);
            self.attend(now);
            self.sample_rates(now);
            if let (Some(due), Some((interval, tick))) = (&mut next_tick, &mut hooks.every)
                && now >= *due
            {
                tick();
                *due = now + *interval;
            }
            self.notice_lost_loops(now);
            if self.advance_stop(&mut hooks.loops_done, now) {
                break;
            }
            self.sleep(next_tick);
        }
        self.finish()
    }

    fn finish(mut self) -> ExitReason {
        // Before the crew goes: a run directory with a socket in it would stay.
        drop(self.control.take());
        debug_assert!(self.crew.processes.is_empty(), "a worker process is left");
        let owned = self.crew.owned();
        if let Some(orphans) = &mut self.crew.orphans {
            orphans.end(&owned);
        }
        // What was left behind is the guard's to end, once it can be.
        if let Some(guard) = self.crew.guard.take()
            && !self.crew.left_behind
        {
            guard.dismiss();
        }
        self.crew.status.enter(AppState::Stopped);
        self.exit.unwrap_or(ExitReason::Stopped)
    }

    fn sleep(&mut self, next_tick: Option<Instant>) {
        let mut entries = vec![
            wake::entry(self.requests.descriptor(), libc::POLLIN),
            wake::entry(self.sleeper.descriptor(), libc::POLLIN),
        ];
        for process in &self.crew.processes {
            for capture in [&process.stdout, &process.stderr] {
                entries.extend(capture.descriptor().map(|descriptor| wake::entry(descriptor, libc::POLLIN)));
            }
        }
        entries.extend(self.crew.entries());
        if let Some(control) = &self.control {
            control.poll_entries(&mut entries);
        }
        entries.extend(self.upstreams.entries());
        let due = self.next_due().into_iter().chain(next_tick).min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        if let Err(error) = wake::poll(&mut entries, timeout) {
            // Not expected from poll(2) with these arguments. Without a pause this would spin.
            self.crew.log.event(Level::Error, format_args!("cannot wait for events: {error}"), &[]);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let probes = hearing::due(&self.crew.processes);
        let upstreams = self.upstreams.due();
        let stop = self.stop.as_ref().map(Stop::due);
        let sample = self.scaler.is_some().then_some(self.sample_at);
        let release = self.release.map(|release| release.due());
        let rates = self.observed.as_ref().map(|observed| observed.rates.due());
        // A server that stops loads nothing again.
        let changes = self.pace.due().filter(|_| self.stop.is_none());
        let others = [self.control_due(), self.pause_until, rates, changes];
        let own = [self.fleet.due(), self.crew.due(), probes, upstreams, stop, sample, release];
        own.into_iter().chain(others).flatten().min()
    }

    /// Buries the dead.
    fn reap(&mut self, child: bool, now: Instant) {
        for name in self.crew.ended(child, now) {
            let member = self.fleet.member(name);
            let (ending, ready_at) = member.map_or((None, None), |member| (member.ending(), member.ready_at));
            if let Some(exit) = self.crew.bury(name, ending, ready_at.is_some(), now) {
                self.fleet.exited(name, &exit, now, &mut self.crew);
            }
        }
        self.crew.look_at_orphans(child, now);
    }

    fn serve(&mut self, request: Request, now: Instant) {
        match request {
            Request::Stop => self.begin_stop(now),
            Request::StopWithDump => {
                self.dump(now);
                self.begin_stop(now);
            }
            Request::Reload => {
                let done = self.reload(now);
                self.crew.log.event(Level::Info, format_args!("SIGHUP: {done}"), &[]);
            }
            Request::ReopenLogs => {
                self.crew.log.reopen();
                self.crew.log.event(Level::Info, "SIGUSR1: logs are reopened", &[]);
            }
            Request::Restart => self.roll(now),
            Request::More => self.scale_by(1, "SIGTTIN", now),
            Request::Fewer => self.scale_by(-1, "SIGTTOU", now),
            Request::Child => {}
        }
    }

    fn roll(&mut self, now: Instant) {
        if self.stop.is_none() && self.has_workers() {
            self.fleet.restart(now, &mut self.crew);
        }
    }

    /// Whether the app has workers of ours, and not only such as join.
    fn starts_workers(&self) -> bool {
        self.crew.launcher.is_some() && !self.fleet.places().is_empty()
    }

    /// The same; says so if not.
    fn has_workers(&self) -> bool {
        let has = self.starts_workers();
        if !has {
            let message = "the app has no workers that this server starts; nothing is done";
            self.crew.log.event(Level::Warn, message, &[]);
        }
        has
    }

    /// How few and how many workers may be asked for: what automatic scaling was given, or what there is room for.
    fn worker_bounds(&self) -> (usize, usize) {
        let settings = &self.crew.settings;
        settings
            .app
            .scaling
            .map_or_else(|| (1, Supervisor::most_workers(settings)), |scaling| (scaling.min, scaling.max))
    }

    /// One worker more or fewer, within those bounds.
    fn scale_by(&mut self, change: i32, why: &'static str, now: Instant) {
        if self.stop.is_some() || !self.has_workers() {
            return;
        }
        let wanted = self.fleet.wanted().saturating_add_signed(change as isize);
        let (least, most) = self.worker_bounds();
        let target = wanted.clamp(least, most);
        self.fleet.scale_to(target, why, now, &mut self.crew);
    }

    /// The automatic number of workers.
    fn scale_by_load(&mut self, now: Instant) {
        let Some(scaler) = self.scaler.as_mut().filter(|_| self.sample_at <= now && self.stop.is_none()) else {
            return;
        };
        self.sample_at = now + fleet::SAMPLE;
        let snapshot = self.crew.dispatch.snapshot();
        let load = Load {
            queued: snapshot.queue_depth,
            oldest_wait: snapshot.oldest.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            in_flight: snapshot.workers.iter().map(|worker| worker.in_flight as usize).sum(),
            concurrency: self.crew.settings.app.concurrency as usize,
            workers: self.fleet.wanted(),
            changing: snapshot.paused
                || self.fleet.roll().is_some()
                || self.fleet.members().iter().any(fleet::Member::is_starting),
        };
        if let Some(target) = scaler.sample(load, now) {
            self.fleet.scale_to(target, "load", now, &mut self.crew);
        }
    }

    /// Holds requests back.
    fn pause(&mut self, until: Instant) {
        self.crew.dispatch.pause();
        self.release = None;
        self.pause_until = Some(until);
        self.crew.tell(Level::Info, "pause", "requests are held", &[]);
    }

    /// Lets them through again, those who waited in steps. Returns how many those are.
    fn resume(&mut self, now: Instant) -> usize {
        let waiting = self.crew.dispatch.resume(now);
        if self.pause_until.take().is_some() {
            self.crew.tell(Level::Info, "resume", "requests go on", &[("held", &waiting)]);
        }
        // Asked for twice, those who are being let go by the first go on.
        if waiting > 0 {
            self.release = Some(Release::of(waiting, now));
        }
        waiting
    }

    fn let_go(&mut self, now: Instant) {
        let Some(most) = self.release.as_mut().and_then(|release| release.step(now)) else { return };
        let (grants, more) = self.crew.dispatch.let_go(most);
        for grant in grants {
            self.crew.postboxes.grant(grant);
        }
        self.release = self.release.filter(|_| more);
    }

    /// Changed files reach the workers.
    fn look_at_files(&mut self, now: Instant) {
        let Some(watcher) = self.watcher.as_ref().filter(|_| self.stop.is_none()) else { return };
        if let Some(trouble) = watcher.take_trouble() {
            self.crew.log.event(Level::Warn, trouble, &[]);
        }
        if let Some(changes) = watcher.take_changes() {
            self.pace.note(changes, now);
        }
        self.pace.ended(self.fleet.last_roll().map(|report| report.id), now);
        let Some(changes) = self.pace.next(now) else { return };
        let changed = changes.to_string();
        self.crew.tell(Level::Info, "files-changed", "files have changed", &[("changed", &changed)]);
        let (roll, _) = self.load_again(now);
        self.pace.began(roll, now);
        if let Some(suspect) = self.pace.suspect() {
            let message = "hot reload: this file has changed before each of three reloads was over; if the app writes \
                it itself, name what is to be watched with --watch";
            let file = suspect.display();
            self.crew.tell(Level::Warn, "files-keep-changing", message, &[("file", &file)]);
        }
    }

    fn take_notice(&mut self, name: Name, heard: Heard, now: Instant) {
        match heard {
            // A worker that has been ready and is looked at again is known by its socket alone.
            Heard::Ready if self.fleet.member(name).is_some_and(Member::is_starting) => {
                if !self.crew.must_be_found(name, now) {
                    self.fleet.ready(name, now, &mut self.crew);
                }
            }
            Heard::Ready => {}
            Heard::Leaves => self.fleet.leaving(name, now, &mut self.crew),
            Heard::Silent(period) => self.fleet.stuck(name, Ending::Watchdog(period), now, &mut self.crew),
            Heard::Heavy(bytes) => self.fleet.replace(name, Ending::Memory(bytes)),
        }
    }

    fn act_on(&mut self, notice: Notice, now: Instant) {
        let (Notice::Unreachable(id)
        | Notice::Threshold(id)
        | Notice::Drained(id)
        | Notice::Suspect(id)
        | Notice::Stuck(id)) = notice;
        let Some(name) = self.crew.name(id) else {
            match notice {
                Notice::Unreachable(id) => self.upstreams.unreachable(id, now),
                Notice::Drained(id) => self.upstreams.drained(id, &self.crew.dispatch, now),
                _ => {}
            }
            return;
        };
        if matches!(notice, Notice::Unreachable(_) | Notice::Drained(_)) && self.dismiss(name, now) {
            return;
        }
        match notice {
            Notice::Unreachable(_) => self.fleet.unreachable(name, now, &mut self.crew),
            Notice::Threshold(_) => {
                let limit = self.fleet.member(name).map_or(0, |member| member.limit);
                self.fleet.replace(name, Ending::Requests(limit));
            }
            Notice::Drained(_) => self.fleet.drained(name, now, &mut self.crew),
            Notice::Suspect(_) => {
                let label = self.crew.dispatch.target(id).map(|target| target.label.clone()).unwrap_or_default();
                self.crew.log.event(Level::Warn, "a request to this worker has timed out", &[("worker", &label)]);
            }
            Notice::Stuck(_) => {
                let time = self.crew.settings.app.timeouts.request;
                self.fleet.stuck(name, Ending::Deadline(time), now, &mut self.crew);
            }
        }
    }

    /// Makes the app's state known, and ends a server whose app never came up.
    fn show_state(&mut self, now: Instant) {
        let state = match (&self.stop, self.fleet.state()) {
            (Some(_), _) => AppState::Stopping,
            (None, fleet::AppState::Failed) => AppState::Failed,
            (None, fleet::AppState::Running) => AppState::Running,
            (None, fleet::AppState::Starting) if self.upstreams.seen() => AppState::Running,
            (None, fleet::AppState::Starting) => AppState::Starting,
        };
        self.crew.status.enter(state);
        self.crew.status.wanted.store(self.fleet.wanted(), Ordering::Relaxed);
        if state == AppState::Failed && (!self.fleet.ever_ready() || self.crew.settings.app.restart.give_up_exit) {
            let app: &dyn std::fmt::Display = &self.crew.settings.app.name;
            let (message, reason) = match self.fleet.ever_ready() {
                true => ("the app has failed; the server ends (--give-up-exit)", ExitReason::GaveUp),
                false => ("no worker was ever ready; the server ends", ExitReason::NeverReady),
            };
            let hint = "an app that takes $PORT for a number needs --socket tcp";
            let has_path = self.crew.launcher.as_ref().is_some_and(Launcher::has_path_as_port);
            let mut fields = vec![("app", app)];
            if reason == ExitReason::NeverReady && has_path {
                fields.push(("hint", &hint));
            }
            self.crew.log.event(Level::Error, message, &fields);
            self.exit = Some(reason);
            self.begin_stop(now);
        }
    }

    fn dump(&self, now: Instant) {
        let snapshot = self.crew.dispatch.snapshot();
        let state = format!("{:?}", self.crew.status.state());
        let fields: [(&str, &dyn std::fmt::Display); 5] = [
            ("app", &self.crew.settings.app.name),
            ("state", &state),
            ("generation", &self.fleet.generation()),
            ("queued", &snapshot.queue_depth),
            ("eligible", &snapshot.eligible),
        ];
        self.crew.log.event(Level::Info, "state", &fields);
        for worker in snapshot.workers {
            let name = self.crew.name(worker.id);
            let pid = name.and_then(|name| self.crew.process(name)).map_or(0, |process| process.child.id());
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
            self.crew.log.event(Level::Info, "state of a worker", &fields);
        }
    }
}

/// Watches the app's files, if changes are to reach the workers. Where the system cannot, the server goes on without.
fn watch_files(crew: &Crew, waker: &Waker) -> Option<Watcher> {
    if crew.settings.app.hot_reload == HotReload::None || crew.launcher.is_none() {
        return None;
    }
    let ring = waker.clone();
    match Watcher::start(&crew.settings, move || ring.wake()) {
        Ok(watcher) => {
            crew.log.event(Level::Info, "hot reload: watching", &[("files", &watcher.summary())]);
            Some(watcher)
        }
        Err(error) => {
            crew.log.event(Level::Warn, format_args!("hot reload is off: {error}"), &[]);
            None
        }
    }
}

/// What the fleet keeps to.
fn rule(settings: &Settings) -> fleet::Rule {
    let (restart, recycle) = (&settings.app.restart, &settings.app.recycle);
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
        ready_timeout: settings.app.ready.timeout,
        start_parallel: restart.start_parallel,
        proven_after: match settings.app.hot_reload {
            HotReload::None => PROVEN_AFTER,
            // Who edits waits for the next roll until this one is over.
            HotReload::Process | HotReload::Module => PROVEN_AFTER_EDIT,
        },
        drain: restart.drain,
        parallel: restart.parallel,
        max_unavailable: restart.max_unavailable,
        dump_signal: settings.app.dump_signal,
        seed: u64::from(std::process::id()) << 32,
    }
}

/// What starts the workers, if there are any, with the app's command checked.
fn launcher(settings: &Settings, run: &RunDirectory, options: &Options) -> Result<Option<Launcher>, StartError> {
    let control = options.about.is_some().then(|| run.path().join(SOCKET_NAME));
    Launcher::new(&settings.app, &options.program, control, options.descriptors)
        .map_err(|message| StartError { message, code: 64 })
}
