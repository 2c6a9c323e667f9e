//! The supervisor: processes, signals, timers. The control plane, on the main thread.
//!
//! It owns the worker processes, their output, the guard and the run directory, and tells the loops what happens through
//! the dispatch and their mailboxes; it never touches their state. It sleeps in one poll(2) over signals, workers'
//! output, probes and wakes, and never blocks elsewhere. It must run on a thread that lives as long as the server: on
//! Linux workers die with the thread that started them (PR_SET_PDEATHSIG, prctl(2)).
//!
//! - A **place** is one of the app's N workers. It is filled by one process at a time, and for the time of a
//!   replacement by two: the new one starts first, and only when it is ready the old one is drained.
//! - A process that has ended is announced to the loops before anything else is done about it: they wait for that word
//!   before they decide whether a request may be tried again.
//! - A process group is killed before its leader is reaped, so that its number cannot be another's by then.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::dispatch::{Dispatch, Notice, WorkerId};
use crate::log::{Level, Log};
use crate::mailbox::Postboxes;

pub mod endpoint;
pub mod exec;
pub mod guard;
pub mod inquiry;
pub mod inspect;
mod lifecycle;
pub mod memory;
pub mod notify;
pub mod output;
pub mod policy;
pub mod probe;
pub mod process;
pub mod run_directory;
pub mod signals;
pub mod spawn;
mod stop;
mod upstreams;
pub mod wake;

use guard::Guard;
use policy::{Jitter, RestartPolicy, RestartRule};
use process::Process;
pub use run_directory::{RunDirectory, RunDirectoryError};
use signals::{Request, Requester, Requests};
use spawn::Launcher;
use stop::Stop;
use upstreams::Watched;
use wake::{Sleeper, Waker};

/// The word that makes this binary the built-in worker.
pub const BUILT_IN: &str = "worker";
/// How long a worker may take to open its socket.
pub const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// How much longer than its rule a restart's delay may be, in per cent.
const RESTART_JITTER_PERCENT: u32 = 25;
/// The app's generation. It grows with rolling restarts.
const GENERATION: u32 = 1;
/// What the socket's name and number add to the length of a path at most: `.G99999.9999.999999.sock`.
const LONGEST_SUFFIX: &str = ".G99999.9999.999999.sock";
/// Bytes read from a worker's pipe at once.
const READ_BUFFER: usize = 16 * 1024;

/// What differs between the server and a test that drives the supervisor by hand.
#[derive(Debug)]
pub struct Options {
    /// The binary that holds shim, guard and built-in worker.
    pub program: PathBuf,
    /// How long a worker may take to open its socket.
    pub ready_timeout: Duration,
    /// Soft and hard RLIMIT_NOFILE as the server found them, restored for workers; `None`: as it is.
    pub descriptors: Option<(u64, u64)>,
    /// Whether the process's signals are taken over. Otherwise [`Supervisor::requester`] makes the requests.
    pub signals: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { program: spawn::this_program(), ready_timeout: READY_TIMEOUT, descriptors: None, signals: true }
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
    /// The workers crash before they answer anything, and are not started again.
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
    /// Workers replaced because they had served or lived enough.
    pub recycled: AtomicU64,
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
}

impl ExitReason {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            ExitReason::Stopped => 0,
            ExitReason::NeverReady => 69,
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

/// One of the app's N workers, whoever fills it.
#[derive(Debug)]
struct Place {
    /// `WORKER_ID`, from 1.
    number: u32,
    /// Processes started for it so far; part of the socket's name.
    incarnation: u32,
    policy: RestartPolicy,
    /// Spreads the request limits.
    jitter: Jitter,
    /// When it is filled again if nobody fills it.
    start_at: Instant,
    /// When a replacement for the worker that fills it is to be started.
    replace_at: Option<Instant>,
    /// Why.
    replace_reason: Option<process::Ending>,
    /// Nobody is started for it any more.
    given_up: bool,
}

/// See the module.
pub struct Supervisor {
    settings: Arc<Settings>,
    dispatch: Arc<Dispatch>,
    postboxes: Postboxes,
    log: Log,
    /// Dropped last of all that it holds for others: its end removes sockets and lock.
    run: RunDirectory,
    ready_timeout: Duration,
    program: PathBuf,
    launcher: Option<Launcher>,
    guard: Option<Guard>,
    requests: Requests,
    requester: Option<Requester>,
    waker: Waker,
    sleeper: Sleeper,
    places: Vec<Place>,
    processes: Vec<Process>,
    upstreams: Vec<Watched>,
    status: Arc<Status>,
    ever_ready: bool,
    stop: Option<Stop>,
    exit: Option<ExitReason>,
    buffer: Box<[u8]>,
}

impl Supervisor {
    /// Workers that the dispatch's table should have room for: each place may hold a worker that serves, its
    /// replacement, and some that are on their way out or remembered until their last permit is back.
    pub fn table_size(settings: &Settings) -> usize {
        settings.app.workers * 4 + settings.app.upstreams.len() + 8
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
        let launcher = launcher(&settings, &options)?;
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
        let mut guard = None;
        let mut places = Vec::new();
        if launcher.is_some() {
            run.socket(&format!("{}{LONGEST_SUFFIX}", settings.app.name))?;
            guard = Some(Guard::start(&options.program, run.sockets())?);
            places = (1..=settings.app.workers as u32).map(|number| Place::new(number, &settings, now)).collect();
        }
        let upstreams = upstreams::watch_all(&settings, &dispatch, now)?;
        Ok(Supervisor {
            settings,
            dispatch,
            postboxes,
            log,
            run,
            ready_timeout: options.ready_timeout,
            program: options.program,
            launcher,
            guard,
            requests,
            requester,
            waker,
            sleeper,
            places,
            processes: Vec::new(),
            upstreams,
            status: Arc::default(),
            ever_ready: false,
            stop: None,
            exit: None,
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
        })
    }

    /// Wakes the supervisor, for instance when a loop has ended.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Makes requests in place of signals; `None` when the supervisor has the signals.
    pub fn requester(&self) -> Option<Requester> {
        self.requester.clone()
    }

    /// State and counts, for other threads.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
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
            self.reap(now);
            for request in requests.drain(..) {
                self.serve(request, now);
            }
            self.read_output();
            self.dispatch.notices(&mut notices);
            for notice in notices.drain(..) {
                self.heed(notice, now);
            }
            self.act_on_timers(now);
            self.look_at_upstreams(now);
            self.fill_places(now);
            self.watch_guard();
            if let (Some(due), Some((interval, tick))) = (&mut next_tick, &mut hooks.every)
                && now >= *due
            {
                tick();
                *due = now + *interval;
            }
            if self.advance_stop(&mut hooks.loops_done, now) {
                break;
            }
            self.sleep(next_tick);
        }
        self.finish()
    }

    fn finish(mut self) -> ExitReason {
        debug_assert!(self.processes.is_empty(), "a worker process is left");
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
        self.status.enter(AppState::Stopped);
        self.exit.unwrap_or(ExitReason::Stopped)
    }

    fn sleep(&mut self, next_tick: Option<Instant>) {
        let mut entries = vec![
            wake::entry(self.requests.descriptor(), libc::POLLIN),
            wake::entry(self.sleeper.descriptor(), libc::POLLIN),
        ];
        for process in &self.processes {
            for capture in [&process.stdout, &process.stderr] {
                entries.extend(capture.descriptor().map(|descriptor| wake::entry(descriptor, libc::POLLIN)));
            }
        }
        entries.extend(self.upstreams.iter().filter_map(Watched::descriptor).map(|fd| wake::entry(fd, libc::POLLOUT)));
        let due = self.next_due().into_iter().chain(next_tick).min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        if let Err(error) = wake::poll(&mut entries, timeout) {
            // Not expected from poll(2) with these arguments. Without a pause this would spin.
            self.log.event(Level::Error, format_args!("cannot wait for events: {error}"), &[]);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn next_due(&self) -> Option<Instant> {
        let processes = self.processes.iter().filter_map(Process::due);
        let upstreams = self.upstreams.iter().filter_map(Watched::due);
        let stop = self.stop.as_ref().map(Stop::due);
        let places = self.places.iter().filter(|_| self.stop.is_none()).filter_map(|place| self.place_due(place));
        processes.chain(upstreams).chain(stop).chain(places).min()
    }

    fn place_due(&self, place: &Place) -> Option<Instant> {
        match self.active(place.number) {
            _ if place.given_up => None,
            None => Some(place.start_at),
            // A replacement that waits for another to get ready is started by that event and needs no timer.
            Some(_) => place.replace_at.filter(|_| self.may_replace(place)),
        }
    }

    fn serve(&mut self, request: Request, now: Instant) {
        let say = |message: &str| self.log.event(Level::Warn, message, &[]);
        match request {
            Request::Stop => self.begin_stop(now),
            Request::StopWithDump => {
                self.dump();
                self.begin_stop(now);
            }
            Request::Reload => {
                self.log.reopen();
                say("SIGHUP: logs are reopened; there is no configuration file to be reloaded");
            }
            Request::ReopenLogs => {
                self.log.reopen();
                self.log.event(Level::Info, "SIGUSR1: logs are reopened", &[]);
            }
            Request::Restart => say("SIGUSR2: rolling restarts are not available yet; nothing is done"),
            Request::More => say("SIGTTIN: changing the number of workers is not available yet; nothing is done"),
            Request::Fewer => say("SIGTTOU: changing the number of workers is not available yet; nothing is done"),
            Request::Child => {}
        }
    }

    fn heed(&mut self, notice: Notice, now: Instant) {
        match notice {
            Notice::Unreachable(id) => self.check_again(id, now),
            Notice::Threshold(id) => self.plan_replacement(id, now),
            Notice::Drained(id) => self.drained(id, now),
            Notice::Suspect(id) => {
                let label = self.dispatch.target(id).map(|target| target.label.clone()).unwrap_or_default();
                self.log.event(Level::Warn, "a request to this worker has timed out", &[("worker", &label)]);
            }
        }
    }

    fn dump(&self) {
        let snapshot = self.dispatch.snapshot();
        let state = format!("{:?}", self.status.state());
        let fields: [(&str, &dyn std::fmt::Display); 4] = [
            ("app", &self.settings.app.name),
            ("state", &state),
            ("queued", &snapshot.queue_depth),
            ("eligible", &snapshot.eligible),
        ];
        self.log.event(Level::Info, "state", &fields);
        let processes: HashMap<WorkerId, u32> =
            self.processes.iter().map(|process| (process.id, process.child.id())).collect();
        for worker in snapshot.workers {
            let (phase, pid) = (format!("{:?}", worker.phase), processes.get(&worker.id).copied().unwrap_or(0));
            let fields: [(&str, &dyn std::fmt::Display); 6] = [
                ("worker", &worker.target.label),
                ("pid", &pid),
                ("phase", &phase),
                ("in_flight", &worker.in_flight),
                ("served", &worker.served),
                ("tunnels", &worker.tunnels),
            ];
            self.log.event(Level::Info, "state of a worker", &fields);
        }
    }

    /// A guard that has ended is replaced and told about all groups.
    fn watch_guard(&mut self) {
        if self.guard.as_mut().is_some_and(Guard::has_ended) {
            self.replace_guard();
        }
    }

    fn replace_guard(&mut self) {
        let message = "the guard process is gone and is started again";
        self.log.event(Level::Warn, message, &[]);
        let started = Guard::start(&self.program, self.run.sockets()).and_then(|mut guard| {
            self.processes.iter().try_for_each(|process| guard.add(process.child.id()))?;
            Ok(guard)
        });
        match started {
            Ok(guard) => self.guard = Some(guard),
            Err(error) => {
                self.log.event(Level::Error, format_args!("cannot start the guard process: {error}"), &[]);
                self.guard = None;
            }
        }
    }
}

impl Place {
    fn new(number: u32, settings: &Settings, now: Instant) -> Place {
        let restart = &settings.app.restart;
        let rule = RestartRule {
            base: restart.base,
            max: restart.max,
            crashes: restart.crashes as usize,
            within: restart.within,
        };
        let seed = u64::from(std::process::id()) << 32 | u64::from(number);
        Place {
            number,
            incarnation: 0,
            policy: RestartPolicy::new(rule, Jitter::new(seed, RESTART_JITTER_PERCENT)),
            jitter: Jitter::new(!seed, settings.app.recycle.jitter_percent),
            start_at: now,
            replace_at: None,
            replace_reason: None,
            given_up: false,
        }
    }
}

/// What starts the workers, if there are any, with the app's command checked.
fn launcher(settings: &Settings, options: &Options) -> Result<Option<Launcher>, StartError> {
    Launcher::new(&settings.app, &options.program, None, options.descriptors)
        .map_err(|message| StartError { message, code: 64 })
}
