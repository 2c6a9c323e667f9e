//! The supervisor: processes, signals, timers. The control plane, on the main thread.
//!
//! It is a loop around the apps: each is a [`unit::Unit`] with all that is its own. What is the server's is here: signals, control socket,
//! guard, orphans, the stop. It sleeps in one poll(2) over signals, workers' output, probes and wakes, and never blocks elsewhere. It tells the event
//! loops what happens through the dispatches and their mailboxes; it never touches their state. It must run on a thread that lives as
//! long as the server: on Linux workers die with the thread that started them (PR_SET_PDEATHSIG, prctl(2)).

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::config::{self, Settings};
use crate::control::ControlServer;
use crate::dispatch::{AppId, Dispatch};
use crate::log::{Level, Log};
use crate::mailbox::Postboxes;

mod advice;
mod checks;
mod commands;
pub mod endpoint;
mod events;
pub mod exec;
pub mod guard;
mod heartbeat;
mod joined;
mod manager;
pub mod memory;
mod monitor;
pub mod notify;
mod observer;
mod orphans;
pub mod output;
mod pause;
pub mod pid_file;
pub mod probe;
pub mod process;
mod processes;
pub mod program;
pub mod reload;
mod removed;
pub mod resolver;
pub mod run_directory;
pub mod saturation;
pub mod signals;
pub mod spawn;
mod state;
mod status;
mod stop;
mod tally;
mod tickets;
pub mod unit;
pub mod upgrade;
mod upstreams;
pub mod wake;
pub mod watch;

use events::Events;
use guard::GuardKeeper;
use manager::Service;
use observer::Observer;
use orphans::{Mark, Orphans};
use pid_file::PidFile;
use reload::Reload;
use removed::Lookout;
pub use run_directory::{RunDirectory, RunDirectoryError};
use signals::{Request, Requester, Requests};
pub use state::{AppState, ExitReason, StartError, Status};
pub use status::About;
use status::Observed;
use stop::Stop;
use tickets::Tickets;
pub use unit::AppSetup;
use unit::{Context, Unit};
use upgrade::{Holdings, Upgrades};
use wake::{LoopExit, Ready, Sleeper, Waker};

/// The word that makes this binary the built-in worker.
pub const BUILT_IN: &str = "worker";
/// What the socket's name and number add to the length of a path at most: `.G99999.9999.9999999.sock`.
const LONGEST_SUFFIX: &str = ".G99999.9999.9999999.sock";
/// Workers that may be wanted at least, however few there are at the start.
const LEAST_ROOM: usize = 64;
/// Workers that may join by themselves.
const MOST_JOINED: usize = 64;
/// How long what is pushed last may take to leave, as where the file for it does not answer.
const LAST_PUSH: Duration = Duration::from_secs(2);
/// Bytes read from a worker's pipe at once.
const READ_BUFFER: usize = 16 * 1024;

/// What differs between the server and a test that drives the supervisor by hand.
#[derive(Debug)]
pub struct Options {
    /// The binary that holds shim, guard and built-in worker.
    pub program: PathBuf,
    /// Soft and hard RLIMIT_NOFILE as the server found them, restored for workers; `None`: as it is.
    pub descriptors: Option<(u64, u64)>,
    /// Variables of the user that the workers are, where that is not whoever started the server.
    pub user: Vec<(&'static str, OsString)>,
    /// Whether the process's signals are taken over. Otherwise [`Supervisor::requester`] makes the requests.
    pub signals: bool,
    /// How often a worker's memory is looked at, where it has a limit.
    pub memory_interval: Duration,
    /// How often it is looked whether requests wait while the workers idle.
    pub saturation_interval: Duration,
    /// For how long the machine's cores have idled, as [`crate::proc::idle_time`].
    pub idle_time: fn() -> Option<Duration>,
    /// How many bytes may still be used, as [`memory::headroom`].
    pub headroom: fn() -> Option<u64>,
    /// How the addresses of upstreams' names are found.
    pub resolve: resolver::Resolve,
    /// The server around the supervisor, for the control socket; `None`: there is no control socket.
    pub about: Option<About>,
    /// What is kept for a successor.
    pub holdings: Holdings,
    /// The file with this process's number.
    pub pid_file: Option<PidFile>,
    /// Whether the service manager that has started this process is told about it.
    pub manager: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            program: spawn::this_program(),
            descriptors: None,
            user: Vec::new(),
            signals: true,
            memory_interval: memory::INTERVAL,
            saturation_interval: saturation::INTERVAL,
            idle_time: crate::proc::idle_time,
            headroom: memory::headroom,
            resolve: resolver::by_system,
            about: None,
            holdings: Holdings::default(),
            pid_file: None,
            manager: false,
        }
    }
}

/// What the supervisor asks of the rest of the server while it runs.
pub struct Hooks<'a> {
    /// Whether all loops have ended. Asked during a stop.
    pub loops_done: Box<dyn FnMut() -> bool + 'a>,
    /// Something to be done each [`Settings::stats_interval`], such as printing statistics. `None`: nothing.
    pub every: Option<Box<dyn FnMut() + 'a>>,
    /// What HUP does beside reopening the logs, and what came of it, for the log; `None`: each app loads its code again.
    pub reload: Option<Reload<'a>>,
}

/// See the module.
pub struct Supervisor {
    units: Vec<Unit>,
    context: Context,
    requests: Requests,
    requester: Option<Requester>,
    loop_exit: LoopExit,
    sleeper: Sleeper,
    control: Option<ControlServer>,
    /// Restarts that somebody waits for.
    tickets: Tickets,
    observed: Option<Observed>,
    /// What has left its worker and come here, where this process takes it.
    orphans: Option<Orphans>,
    /// Sees what was removed that is needed.
    lookout: Lookout,
    stop: Option<Stop>,
    exit: Option<ExitReason>,
    upgrades: Upgrades,
    service: Service,
}

impl Supervisor {
    /// Prepares everything and starts the guard, for the one app of these settings. Workers are started by [`Supervisor::run`].
    ///
    /// # Errors
    /// When the command cannot be found, the run directory's path is too long for sockets, or the kernel refuses.
    pub fn start_with(
        settings: Arc<Settings>,
        dispatch: Arc<Dispatch>,
        postboxes: Postboxes,
        log: Log,
        run: RunDirectory,
        options: Options,
    ) -> Result<Supervisor, StartError> {
        let app = AppSetup { id: AppId::default(), settings: Arc::new(settings.app.clone()), dispatch };
        Supervisor::start_apps(settings, vec![app], postboxes, log, run, options)
    }

    /// [`Supervisor::start_with`] for these apps; the one in the settings is not looked at.
    ///
    /// # Errors
    /// As there, for any of them.
    pub fn start_apps(
        settings: Arc<Settings>,
        apps: Vec<AppSetup>,
        postboxes: Postboxes,
        log: Log,
        run: RunDirectory,
        mut options: Options,
    ) -> Result<Supervisor, StartError> {
        let (waker, sleeper) = wake::pair()?;
        let (requests, requester) = match options.signals {
            true => (Requests::from_signals()?, None),
            false => Requests::injected(&waker).map(|(requests, requester)| (requests, Some(requester)))?,
        };
        let now = Instant::now();
        let about = options.about.clone();
        let observed = about.map(|about| Observed::new(about, &settings, &log, waker.clone()));
        // Inside of another program its children are not ours.
        let adopts = options.signals && observed.is_some();
        let upgrades = Upgrades::new(std::mem::take(&mut options.holdings), options.pid_file.take());
        let (control_path, service) = (run.control_path(), Service::new(options.manager));
        let context = Context {
            settings: Rc::new(RefCell::new(settings)),
            sockets: Rc::default(),
            postboxes,
            guard: GuardKeeper::new(options.program.clone(), run.sockets().to_path_buf(), log.clone()),
            events: Events::new(log.clone()),
            observer: Observer::new(log.clone(), waker.clone()),
            log,
            run: Rc::new(run),
            status: Arc::default(),
            waker,
            options: Rc::new(options),
        };
        let units: Result<Vec<Unit>, StartError> = apps.into_iter().map(|app| Unit::new(app, &context, now)).collect();
        let units = units?;
        let control = observed.is_some().then(|| ControlServer::open(&control_path));
        let control = control.transpose().map_err(|error| StartError {
            message: format!("cannot open the control socket {}: {error}", control_path.display()),
            code: 73,
        })?;
        Ok(Supervisor {
            units,
            requests,
            requester,
            loop_exit: LoopExit::new(&context.waker),
            context,
            sleeper,
            control,
            tickets: Tickets::default(),
            observed,
            orphans: adopts.then(Orphans::adopt),
            lookout: Lookout::new(now),
            stop: None,
            exit: None,
            upgrades,
            service,
        })
    }

    /// Wakes the supervisor.
    pub fn waker(&self) -> Waker {
        self.context.waker.clone()
    }

    /// How the event loops' threads tell that they end.
    pub fn loop_exit(&self) -> LoopExit {
        self.loop_exit.clone()
    }

    /// Makes requests in place of signals; `None` when the supervisor has the signals.
    pub fn requester(&self) -> Option<Requester> {
        self.requester.clone()
    }

    /// State and counts of all apps together, for other threads.
    pub fn status(&self) -> Arc<Status> {
        Arc::clone(&self.context.status)
    }

    /// Supervises until the server is to end. Afterwards no process, socket or sub-directory of this server is left.
    pub fn run(mut self, mut hooks: Hooks<'_>) -> ExitReason {
        let (mut requests, mut ready) = (Vec::new(), Ready::default());
        let mut last_tick = Instant::now();
        loop {
            let now = Instant::now();
            self.sleeper.clear();
            self.requests.take(&mut requests);
            // Those that have ended first: the word of it must not wait behind anything.
            let child = requests.contains(&Request::Child);
            self.reap(child, now);
            for request in requests.drain(..) {
                self.serve(request, &mut hooks, now);
            }
            let stops = self.stop.is_some();
            self.context.observer.turn();
            self.units.iter_mut().for_each(|unit| unit.turn(&ready, stops, now));
            self.look_for_removed(now);
            self.context.observer.forget();
            self.context.guard.watch(child, now);
            self.show_state(now);
            self.advance_upgrade(now);
            self.serve_control(&mut hooks, now);
            self.tell_manager(now);
            self.let_go_of_units();
            self.sample_rates(now);
            self.sweep_hubs(now);
            self.advance_listeners(now);
            self.serve_monitors(now);
            let interval = self.context.settings().telling.stats_interval;
            let mut next_tick = (hooks.every.is_some() && !interval.is_zero()).then(|| last_tick + interval);
            if let Some(tick) = hooks.every.as_mut().filter(|_| next_tick.is_some_and(|due| now >= due)) {
                tick();
                (last_tick, next_tick) = (now, Some(now + interval));
            }
            self.notice_lost_loops(now);
            if self.advance_stop(&mut hooks.loops_done, now) {
                break;
            }
            ready = self.sleep(next_tick);
        }
        self.finish()
    }

    fn finish(mut self) -> ExitReason {
        self.say_farewell();
        self.end_pushes(if self.context.status.is_hasty() { stop::HASTY_GRACE } else { LAST_PUSH });
        // Before the run directory goes: one with a socket in it would stay.
        drop(self.control.take());
        debug_assert!(self.units.iter().all(|unit| unit.processes.workers.is_empty()), "a worker process is left");
        let owned = self.owned();
        if let Some(orphans) = &mut self.orphans {
            let patience = if self.context.status.is_hasty() { stop::HASTY_GRACE } else { orphans::GRACE };
            orphans.end(&owned, self.upgrades.is_handed_over(), patience);
        }
        self.context.status.enter(AppState::Stopped);
        let exit = self.exit.unwrap_or(ExitReason::Stopped);
        signals::ends_with(exit.code());
        exit
    }

    /// Sleeps until there is something to do; what there is to be read.
    fn sleep(&mut self, next_tick: Option<Instant>) -> Ready {
        let mut entries = vec![
            wake::entry(self.requests.descriptor(), libc::POLLIN),
            wake::entry(self.sleeper.descriptor(), libc::POLLIN),
        ];
        self.units.iter().for_each(|unit| unit.poll_entries(&mut entries));
        if let Some(control) = &self.control {
            control.poll_entries(&mut entries);
        }
        entries.extend(self.upgrades.entries());
        let due = self.next_due().into_iter().chain(next_tick).min();
        let timeout = due.map(|due| due.saturating_duration_since(Instant::now()));
        if let Err(error) = wake::poll(&mut entries, timeout) {
            // Not expected from poll(2) with these arguments. Without a pause this would spin.
            self.context.log.event(Level::Error, format_args!("cannot wait for events: {error}"), &[]);
            std::thread::sleep(Duration::from_millis(100));
        }
        Ready::of(&entries)
    }

    fn next_due(&self) -> Option<Instant> {
        let units = self.units.iter().filter_map(|unit| unit.due(self.stop.is_some()));
        let stop = self.stop.as_ref().map(Stop::due);
        let rates = self.observed.as_ref().map(|observed| observed.sample_due());
        let monitor = self.observed.as_ref().and_then(|observed| observed.monitor.due());
        let hubs = self.observed.as_ref().and_then(Observed::sweep_due);
        let orphans = self.orphans.as_ref().and_then(Orphans::due);
        let outside = [self.upgrades.due(), self.service.manager.due(), monitor, hubs].into_iter().flatten().min();
        let others =
            [stop, rates, orphans, self.control_due(), self.context.guard.due(), outside, Some(self.lookout.due())];
        units.chain(others.into_iter().flatten()).min()
    }

    /// Waits for the processes that have ended, and looks after what has left its worker; `child`: one of this process's children has
    /// ended.
    fn reap(&mut self, child: bool, now: Instant) {
        self.units.iter_mut().for_each(|unit| unit.reap(child, now));
        let reaped = self.units.iter_mut().filter_map(|unit| unit.processes.take_reaped()).reduce(Option::or);
        let due = self.orphans.as_ref().and_then(Orphans::due).is_some_and(|due| now >= due);
        let Some(mut orphans) = self.orphans.take_if(|_| child || due || reaped.is_some()) else { return };
        let lives = |mark: &Mark| {
            let mut workers = self.units.iter().flat_map(|unit| &unit.processes.workers);
            workers.any(|process| mark.is_of(&process.endpoint))
        };
        let told = orphans.look(&self.owned(), lives, now);
        self.orphans = Some(orphans);
        let went = reaped.flatten();
        for (pid, command) in told {
            self.context.events.orphan(pid, &command, went.as_deref());
        }
    }

    /// The children that have an owner.
    fn owned(&self) -> Vec<u32> {
        let workers = self.units.iter().flat_map(|unit| &unit.processes.workers);
        let known = workers.map(|process| process.child.id()).chain(self.context.guard.ids());
        known.chain(self.upgrades.children.iter().copied()).collect()
    }

    fn serve(&mut self, request: Request, hooks: &mut Hooks<'_>, now: Instant) {
        match request {
            Request::Stop => self.begin_stop(now),
            Request::StopWithDump => {
                self.units.iter().for_each(|unit| unit.dump(now));
                self.begin_stop(now);
            }
            Request::Reload => {
                let (level, done) = match self.stop {
                    Some(_) => (Level::Info, "the server stops; nothing is loaded again".to_owned()),
                    None if self.upgrades.is_under_way() => {
                        (Level::Warn, "the server is being handed over; nothing is loaded again".to_owned())
                    }
                    None => match self.reload(None, hooks, now) {
                        Ok(done) => (Level::Info, done.message),
                        Err(_) => {
                            (Level::Error, "the configuration cannot be reloaded; nothing has changed".to_owned())
                        }
                    },
                };
                self.context.log.event(level, format_args!("SIGHUP: {}", done.lines().next().unwrap_or_default()), &[]);
            }
            Request::ReopenLogs => {
                self.context.log.reopen();
                self.context.log.event(Level::Info, "SIGUSR1: logs are being reopened", &[]);
            }
            Request::Restart => self.roll_all(now),
            Request::More => self.scale_by(1, "SIGTTIN", now),
            Request::Fewer => self.scale_by(-1, "SIGTTOU", now),
            Request::Child => {}
        }
    }

    fn roll_all(&mut self, now: Instant) {
        if self.stop.is_some() {
            return;
        }
        let mut any = false;
        for unit in self.units.iter_mut().filter(|unit| unit.leaving.is_none() && unit.starts_workers()) {
            unit.fleet.restart(now, &mut unit.processes);
            any = true;
        }
        if !any {
            let message = "the app has no workers that this server starts; nothing is done";
            self.context.log.event(Level::Warn, message, &[]);
        }
    }

    /// One worker more or fewer, where there is one app.
    fn scale_by(&mut self, change: i32, why: &'static str, now: Instant) {
        if self.stop.is_some() {
            return;
        }
        let mut with_workers = self.units.iter_mut().filter(|unit| unit.leaving.is_none() && unit.starts_workers());
        let refusal = match (with_workers.next(), with_workers.next()) {
            (Some(unit), None) => return unit.scale_by(change, why, now),
            (Some(_), Some(_)) => format!("{why} names no app, and there are several; `scale APP +1` does"),
            (None, _) => "the app has no workers that this server starts; nothing is done".to_owned(),
        };
        self.context.log.event(Level::Warn, refusal, &[]);
    }

    /// Makes the state known, and ends a server whose only app never came up, or one of whose apps is not to be waited for.
    fn show_state(&mut self, now: Instant) {
        let stops = self.stop.is_some();
        let state =
            if stops { AppState::Stopping } else { state::of_all(self.units.iter().map(Unit::state_for_server)) };
        self.context.status.enter(state);
        let wanted = self.units.iter().map(|unit| unit.fleet.wanted()).sum();
        self.context.status.wanted.store(wanted, Ordering::Relaxed);
        let only = self.units.len() == 1;
        let mut failed = self.units.iter().filter(|unit| !stops && unit.state() == AppState::Failed);
        let Some((unit, reason)) = failed.find_map(|unit| Some((unit, unit.ends_server(only)?))) else { return };
        let (message, hint) = match reason {
            ExitReason::NeverReady => ("no worker was ever ready; the server ends", unit.port_hint()),
            _ => ("the app has failed; the server ends (--give-up-exit)", None),
        };
        let mut fields: Vec<(&str, &dyn std::fmt::Display)> = vec![("app", &unit.processes.app.name)];
        fields.extend(hint.as_ref().map(|hint| ("hint", hint as &dyn std::fmt::Display)));
        self.context.log.event(Level::Error, message, &fields);
        let last = unit.fleet.places().iter().find_map(|place| place.last_exit.clone());
        self.fail_succession(&last.map_or_else(|| message.to_owned(), |last| format!("{message} ({last})")));
        self.exit = Some(reason);
        self.begin_stop(now);
    }
}

/// Apps that come, change and go while the server runs. The loops' table of apps is not touched: whoever calls this sends it.
impl Supervisor {
    /// Adds an app; its workers are started in this turn. Requests may be sent to it from then on: they wait for the first worker.
    ///
    /// # Errors
    /// When its command cannot be run, its sockets' paths are too long or the kernel refuses. Nothing has changed then.
    pub fn add(&mut self, app: AppSetup, now: Instant) -> Result<(), StartError> {
        let unit = Unit::new(app, &self.context, now)?;
        self.take_in(unit);
        Ok(())
    }

    fn take_in(&mut self, mut unit: Unit) {
        unit.came_later = true;
        // What is told of the name goes on from where it was.
        let departed = self.observed.as_mut().and_then(|observed| observed.departed.remove(unit.name()));
        departed.iter().for_each(|tally| unit.processes.tally.add(tally));
        unit.processes.events.emit(Level::Info, "app-added", "an app is added", &[]);
        self.units.push(unit);
    }

    /// Has an app take new settings over: the live ones at once, and what says how its workers are started by a rolling restart,
    /// whose number is returned. False names find nothing.
    ///
    /// # Errors
    /// When they are of another app (of another name, with other upstreams, with upstreams where it had workers), or its command cannot
    /// be run. Nothing has changed then.
    pub fn change(&mut self, id: AppId, settings: Arc<config::App>, now: Instant) -> Result<Option<u64>, StartError> {
        match self.units.iter_mut().find(|unit| unit.id() == id && unit.leaving.is_none()) {
            Some(unit) => unit.change(settings, now),
            None => Ok(None),
        }
    }

    /// Lets go of an app: what it is doing may come to its end, within the time that its workers have for a drain; then they are told to
    /// stop. To be called when the loops are told to send it nothing more. It ends as soon as nobody else has its dispatch.
    pub fn remove(&mut self, id: AppId, now: Instant) {
        self.units.iter_mut().filter(|unit| unit.id() == id).for_each(|unit| unit.leave(now));
    }

    /// Forgets apps that have left, and tells those who wait for them.
    fn let_go_of_units(&mut self) {
        while let Some(position) = self.units.iter().position(Unit::has_left) {
            let unit = self.units.remove(position);
            self.let_go_of(unit);
        }
    }

    fn let_go_of(&mut self, mut unit: Unit) {
        unit.processes.events.emit(Level::Info, "app-removed", "the app is gone", &[]);
        let other = self.units.iter_mut().find(|other| other.name() == unit.name());
        if let Some(other) = other {
            other.processes.tally.add(&unit.processes.tally);
        } else if let Some(observed) = &mut self.observed {
            observed.departed.entry(unit.name().to_owned()).or_default().add(&unit.processes.tally);
        }
        let answers = self.tickets.gone(unit.id(), unit.name());
        self.answer(answers);
        self.context.waker.wake();
    }
}
