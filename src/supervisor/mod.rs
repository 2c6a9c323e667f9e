//! The supervisor: processes, signals, timers. The control plane, on the main thread.
//!
//! It is the loop around the fleet (what becomes of each worker) and the worker processes: it sees what happens, tells the
//! fleet, and sleeps in one poll(2) over signals, workers' output, probes and wakes. It never blocks elsewhere. It tells the loops what
//! happens through the dispatch and their mailboxes; it never touches their state. It must run on a thread that lives as
//! long as the server: on Linux workers die with the thread that started them (PR_SET_PDEATHSIG, prctl(2)).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::config::{HotReload, Settings};
use crate::control::{ControlServer, SOCKET_NAME};
use crate::dispatch::{Dispatch, Notice};
use crate::fleet::{self, Ending, Fleet, Load, Member, Name, RestartRule, Scaler};
use crate::log::{Level, Log};
use crate::mailbox::Postboxes;

mod advice;
mod commands;
pub mod endpoint;
mod events;
pub mod exec;
pub mod guard;
mod joined;
pub mod memory;
pub mod notify;
mod orphans;
pub mod output;
mod pause;
pub mod probe;
pub mod process;
mod processes;
pub mod program;
pub mod resolver;
pub mod run_directory;
pub mod signals;
pub mod spawn;
mod state;
mod status;
mod stop;
mod upstreams;
pub mod wake;
pub mod watch;

use pause::Pause;
use processes::{Observation, Processes};
pub use run_directory::{RunDirectory, RunDirectoryError};
use signals::{Request, Requester, Requests};
use spawn::Launcher;
pub use state::{AppState, ExitReason, StartError, Status};
pub use status::About;
use status::Observed;
use stop::Stop;
use upstreams::{Listeners, Upstreams};
use wake::{LoopExit, Sleeper, Waker};
use watch::Watcher;
use watch::limiter::ReloadLimiter;

/// The word that makes this binary the built-in worker.
pub const BUILT_IN: &str = "worker";
/// What the socket's name and number add to the length of a path at most: `.G99999.9999.9999999.sock`.
const LONGEST_SUFFIX: &str = ".G99999.9999.9999999.sock";
/// Workers that may be wanted at least, however few there are at the start.
const LEAST_ROOM: usize = 64;
/// Workers that may join by themselves.
const MOST_JOINED: usize = 64;
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

/// See the module.
pub struct Supervisor {
    fleet: Fleet,
    processes: Processes,
    scaler: Option<Scaler>,
    sample_at: Instant,
    requests: Requests,
    requester: Option<Requester>,
    waker: Waker,
    loop_exit: LoopExit,
    sleeper: Sleeper,
    upstreams: Upstreams,
    /// Sees changed files, where they are to reach the workers.
    watcher: Option<Watcher>,
    reloads: ReloadLimiter,
    control: Option<ControlServer>,
    observed: Option<Observed>,
    pause: Pause,
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
        Supervisor::most_workers(settings) * 4 + settings.app.upstreams.len() + MOST_JOINED + 8
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
        let processes = Processes::new(settings, dispatch, postboxes, log, run, options, launcher)?;
        let watcher = watch_files(&processes, &waker);
        let control = observed.is_some().then(|| ControlServer::open(&processes.control_path()));
        let control = control.transpose().map_err(|error| StartError {
            message: format!("cannot open the control socket {}: {error}", processes.control_path().display()),
            code: 73,
        })?;
        Ok(Supervisor {
            fleet,
            processes,
            scaler: scaling.map(|scaling| Scaler::new(scaling.min, scaling.max)),
            sample_at: now,
            requests,
            requester,
            loop_exit: LoopExit::new(&waker),
            waker,
            sleeper,
            upstreams,
            watcher,
            reloads: ReloadLimiter::default(),
            control,
            observed,
            pause: Pause::default(),
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
    pub fn loop_exit(&self) -> LoopExit {
        self.loop_exit.clone()
    }

    /// Makes requests in place of signals; `None` when the supervisor has the signals.
    pub fn requester(&self) -> Option<Requester> {
        self.requester.clone()
    }

    /// State and counts, for other threads.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.processes.status)
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
            // Those that have ended first: the word of it must not wait behind anything.
            self.reap(requests.contains(&Request::Child), now);
            for request in requests.drain(..) {
                self.serve(request, now);
            }
            self.processes.read_output();
            self.processes.dispatch.notices(&mut notices);
            for notice in notices.drain(..) {
                self.act_on_notice(notice, now);
            }
            for name in self.processes.look_for_sockets(now) {
                self.fleet.ready(name, now, &mut self.processes);
            }
            for (name, seen) in self.processes.observe(now) {
                self.act_on_observation(name, seen, now);
            }
            let Processes { dispatch, postboxes, log, .. } = &self.processes;
            self.upstreams.look(Listeners { dispatch, postboxes, log }, now);
            self.scale_by_load(now);
            self.fleet.tick(now, &mut self.processes);
            // Behind the tick, which may have ended the roll that changes wait for.
            self.look_at_files(now);
            self.advance_pause(now);
            self.processes.watch_guard();
            self.show_state(now);
            self.serve_control(now);
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
        // Before the processes go: a run directory with a socket in it would stay.
        drop(self.control.take());
        debug_assert!(self.processes.workers.is_empty(), "a worker process is left");
        let owned = self.processes.owned();
        if let Some(orphans) = &mut self.processes.orphans {
            orphans.end(&owned);
        }
        // What was left behind is the guard's to end, once it can be.
        if let Some(guard) = self.processes.guard.take()
            && !self.processes.left_behind
        {
            guard.dismiss();
        }
        self.processes.status.enter(AppState::Stopped);
        self.exit.unwrap_or(ExitReason::Stopped)
    }

    fn sleep(&mut self, next_tick: Option<Instant>) {
        let mut entries = vec![
            wake::entry(self.requests.descriptor(), libc::POLLIN),
            wake::entry(self.sleeper.descriptor(), libc::POLLIN),
        ];
        for process in &self.processes.workers {
            for capture in [&process.stdout, &process.stderr] {
                entries.extend(capture.descriptor().map(|descriptor| wake::entry(descriptor, libc::POLLIN)));
            }
        }
        entries.extend(self.processes.entries());
        if let Some(control) = &self.control {
            control.poll_entries(&mut entries);
        }
        entries.extend(self.upstreams.entries());
        let due = self.next_due().into_iter().chain(next_tick).min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        if let Err(error) = wake::poll(&mut entries, timeout) {
            // Not expected from poll(2) with these arguments. Without a pause this would spin.
            self.processes.log.event(Level::Error, format_args!("cannot wait for events: {error}"), &[]);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let upstreams = self.upstreams.due();
        let stop = self.stop.as_ref().map(Stop::due);
        let sample = self.scaler.is_some().then_some(self.sample_at);
        let rates = self.observed.as_ref().map(|observed| observed.rates.due());
        // A server that stops loads nothing again.
        let changes = self.reloads.due().filter(|_| self.stop.is_none());
        let others = [self.control_due(), self.pause.due(), rates, changes];
        let own = [self.fleet.due(), self.processes.due(), upstreams, stop, sample];
        own.into_iter().chain(others).flatten().min()
    }

    /// Waits for the processes that have ended.
    fn reap(&mut self, child: bool, now: Instant) {
        for name in self.processes.ended(child, now) {
            let member = self.fleet.member(name);
            let (ending, ready_at) = member.map_or((None, None), |member| (member.ending(), member.ready_at));
            if let Some(exit) = self.processes.reap(name, ending, ready_at.is_some(), now) {
                self.fleet.exited(name, &exit, now, &mut self.processes);
            }
        }
        self.processes.look_at_orphans(child, now);
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
                self.processes.log.event(Level::Info, format_args!("SIGHUP: {done}"), &[]);
            }
            Request::ReopenLogs => {
                self.processes.log.reopen();
                self.processes.log.event(Level::Info, "SIGUSR1: logs are reopened", &[]);
            }
            Request::Restart => self.roll(now),
            Request::More => self.scale_by(1, "SIGTTIN", now),
            Request::Fewer => self.scale_by(-1, "SIGTTOU", now),
            Request::Child => {}
        }
    }

    fn roll(&mut self, now: Instant) {
        if self.stop.is_none() && self.has_workers() {
            self.fleet.restart(now, &mut self.processes);
        }
    }

    /// Whether the app has workers of ours, and not only such as join.
    fn starts_workers(&self) -> bool {
        self.processes.launcher.is_some() && !self.fleet.places().is_empty()
    }

    /// The same; says so if not.
    fn has_workers(&self) -> bool {
        let has = self.starts_workers();
        if !has {
            let message = "the app has no workers that this server starts; nothing is done";
            self.processes.log.event(Level::Warn, message, &[]);
        }
        has
    }

    /// How few and how many workers may be asked for: what automatic scaling was given, or what there is room for.
    fn worker_bounds(&self) -> (usize, usize) {
        let settings = &self.processes.settings;
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
        self.fleet.scale_to(target, why, now, &mut self.processes);
    }

    /// The automatic number of workers.
    fn scale_by_load(&mut self, now: Instant) {
        let Some(scaler) = self.scaler.as_mut().filter(|_| self.sample_at <= now && self.stop.is_none()) else {
            return;
        };
        self.sample_at = now + fleet::SAMPLE;
        let snapshot = self.processes.dispatch.snapshot();
        let load = Load {
            queued: snapshot.queue_depth,
            oldest_wait: snapshot.oldest.map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            in_flight: snapshot.workers.iter().map(|worker| worker.in_flight as usize).sum(),
            concurrency: self.processes.settings.app.concurrency as usize,
            workers: self.fleet.wanted(),
            changing: snapshot.paused
                || self.fleet.roll().is_some()
                || self.fleet.members().iter().any(fleet::Member::is_starting),
        };
        if let Some(target) = scaler.sample(load, now) {
            self.fleet.scale_to(target, "load", now, &mut self.processes);
        }
    }

    /// Changed files reach the workers.
    fn look_at_files(&mut self, now: Instant) {
        let Some(watcher) = self.watcher.as_ref().filter(|_| self.stop.is_none()) else { return };
        if let Some(trouble) = watcher.take_trouble() {
            self.processes.log.event(Level::Warn, trouble, &[]);
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
            Observation::Silent(period) => self.fleet.stuck(name, Ending::Watchdog(period), now, &mut self.processes),
            Observation::Heavy(bytes) => self.fleet.replace(name, Ending::Memory(bytes)),
        }
    }

    fn act_on_notice(&mut self, notice: Notice, now: Instant) {
        let (Notice::Unreachable(id)
        | Notice::Threshold(id)
        | Notice::Drained(id)
        | Notice::Suspect(id)
        | Notice::Stuck(id)) = notice;
        let Some(name) = self.processes.name(id) else {
            match notice {
                Notice::Unreachable(id) => self.upstreams.unreachable(id, now),
                Notice::Drained(id) => self.upstreams.drained(id, &self.processes.dispatch, now),
                _ => {}
            }
            return;
        };
        if matches!(notice, Notice::Unreachable(_) | Notice::Drained(_)) && self.remove_joined(name, now) {
            return;
        }
        match notice {
            Notice::Unreachable(_) => self.fleet.unreachable(name, now, &mut self.processes),
            Notice::Threshold(_) => {
                let limit = self.fleet.member(name).map_or(0, |member| member.limit);
                self.fleet.replace(name, Ending::Requests(limit));
            }
            Notice::Drained(_) => self.fleet.drained(name, now, &mut self.processes),
            Notice::Suspect(_) => {
                let label = self.processes.dispatch.target(id).map(|target| target.label.clone()).unwrap_or_default();
                self.processes.log.event(Level::Warn, "a request to this worker has timed out", &[("worker", &label)]);
            }
            Notice::Stuck(_) => {
                let time = self.processes.settings.app.timeouts.request;
                self.fleet.stuck(name, Ending::Deadline(time), now, &mut self.processes);
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
        self.processes.status.enter(state);
        self.processes.status.wanted.store(self.fleet.wanted(), Ordering::Relaxed);
        if state == AppState::Failed && (!self.fleet.ever_ready() || self.processes.settings.app.restart.give_up_exit) {
            let app: &dyn std::fmt::Display = &self.processes.settings.app.name;
            let (message, reason) = match self.fleet.ever_ready() {
                true => ("the app has failed; the server ends (--give-up-exit)", ExitReason::GaveUp),
                false => ("no worker was ever ready; the server ends", ExitReason::NeverReady),
            };
            let hint = "an app that takes $PORT for a number needs --socket tcp";
            let has_path = self.processes.launcher.as_ref().is_some_and(Launcher::has_path_as_port);
            let mut fields = vec![("app", app)];
            if reason == ExitReason::NeverReady && has_path {
                fields.push(("hint", &hint));
            }
            self.processes.log.event(Level::Error, message, &fields);
            self.exit = Some(reason);
            self.begin_stop(now);
        }
    }

    fn dump(&self, now: Instant) {
        let snapshot = self.processes.dispatch.snapshot();
        let state = format!("{:?}", self.processes.status.state());
        let fields: [(&str, &dyn std::fmt::Display); 5] = [
            ("app", &self.processes.settings.app.name),
            ("state", &state),
            ("generation", &self.fleet.generation()),
            ("queued", &snapshot.queue_depth),
            ("eligible", &snapshot.eligible),
        ];
        self.processes.log.event(Level::Info, "state", &fields);
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
            self.processes.log.event(Level::Info, "state of a worker", &fields);
        }
    }
}

/// Watches the app's files, if changes are to reach the workers. Where the system cannot, the server goes on without.
fn watch_files(processes: &Processes, waker: &Waker) -> Option<Watcher> {
    if processes.settings.app.hot_reload == HotReload::None || processes.launcher.is_none() {
        return None;
    }
    let ring = waker.clone();
    match Watcher::start(&processes.settings, move || ring.wake()) {
        Ok(watcher) => {
            processes.log.event(Level::Info, "hot reload: watching", &[("files", &watcher.summary())]);
            Some(watcher)
        }
        Err(error) => {
            processes.log.event(Level::Warn, format_args!("hot reload is off: {error}"), &[]);
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
