//! An app's worker processes: the fleet's decisions, carried out, and what is seen of the workers, for the fleet to know.
//!
//! It owns the processes and their output, and knows who is called what: a worker has
//! a name in the fleet, another in the dispatch, and a process id. It decides nothing about a worker's life.
//!
//! - A process that has ended is announced to the loops before anything else is done about it: they wait for that word
//!   before they decide whether a request may be tried again.
//! - A process group is killed before its leader is reaped, so that its number cannot be another's by then.
//! - What a process had said, written and answered before its end counts, though its end is seen first: all of it is read before the end
//!   is judged.

use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::events::{AppEvents, WorkerExit};
use super::guard::signal_group;
use super::joined::JoinedWorker;
use super::memory::MemoryWatch;
use super::notify::{self, Channel, NotifySocket, Watchdog};
use super::observer::Wish;
use super::output::{Capture, Output};
use super::probe::{Look, Probe};
use super::process::{End, Memory, Process, SETTLE, Told, Work, exit_reason, is_clean};
use super::removed::EndpointFile;
use super::spawn::{Launcher, Particulars};
use super::tally::Tally;
use super::unit::Context;
use super::upstreams::Listeners;
use super::wake::{self, Ready};
use super::{AppState, READ_BUFFER};
use crate::config::{self, ReadyBy};
use crate::dispatch::{AppId, Dispatch, Moves, Target, WorkerId, WorkerSnapshot};
use crate::fleet::{Ending, Event, Exit, Machine, Name, Start, Started, Word};
use crate::log::{Level, Stream, WorkerName};
use crate::mailbox::Message;
use crate::proc;
use crate::socket_file;

/// How long a process may take to end after KILL. One that is frozen, or in the middle of a system call that cannot be interrupted, takes
/// for ever; its place is filled again.
const KILL_PATIENCE: Duration = Duration::from_secs(5);

/// A worker that is not ready is looked at so often until its time is over...
const LOOKS_UNTIL_READY: u32 = 8;
/// ...and with such times between the looks.
const SHORTEST_LOOK: Duration = Duration::from_millis(10);
const LONGEST_LOOK: Duration = Duration::from_secs(1);

/// What is seen of a worker, or heard from it, and is for the fleet to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Observation {
    /// It says that it is ready, and that is what was waited for.
    Ready,
    /// It says that it leaves.
    Leaves,
    /// It was silent for longer than it had promised.
    Silent(Duration),
    /// It holds so many bytes, and has held too many for too long.
    Heavy(u64),
}

/// See the module.
pub(super) struct Processes {
    /// The app's name in the loops.
    pub id: AppId,
    pub app: Arc<config::App>,
    pub dispatch: Arc<Dispatch>,
    pub context: Context,
    launchers: Launchers,
    pub workers: Vec<Process>,
    /// How long a process may take to end after KILL; then it is left behind.
    pub kill_patience: Duration,
    /// Some process was left behind: it could not be killed.
    pub left_behind: bool,
    /// A worker has ended since [`Processes::take_reaped`]; which one, if it ended well although nobody had told it to.
    reaped: Option<Option<String>>,
    /// Workers that joined by themselves.
    pub joined: Vec<JoinedWorker>,
    pub events: AppEvents,
    pub tally: Tally,
    buffer: Box<[u8]>,
}

/// What starts the workers, by generation: a new one holds from the generation on that it was made for, so that workers of the old one
/// come back as they were until a roll is proven.
#[derive(Default)]
struct Launchers(Vec<(u32, Launcher)>);

impl Launchers {
    fn of(&self, generation: u32) -> Option<&Launcher> {
        let known = self.0.iter().rev().find(|(from, _)| *from <= generation).or(self.0.first());
        known.map(|(_, launcher)| launcher)
    }

    fn add(&mut self, from: u32, launcher: Launcher, oldest: u32) {
        self.0.retain(|(known, _)| *known != from);
        self.0.push((from, launcher));
        // Of those that no generation needs any more only the newest is for the oldest one.
        let needed = self.0.iter().rposition(|(known, _)| *known <= oldest).unwrap_or(0);
        self.0.drain(..needed);
    }
}

impl Processes {
    pub fn new(
        id: AppId,
        app: Arc<config::App>,
        dispatch: Arc<Dispatch>,
        context: Context,
        launcher: Option<Launcher>,
    ) -> Processes {
        let events = AppEvents::new(context.events.clone(), Arc::clone(&app));
        Processes {
            id,
            app,
            dispatch,
            context,
            launchers: Launchers(launcher.map(|launcher| (0, launcher)).into_iter().collect()),
            workers: Vec::new(),
            kill_patience: KILL_PATIENCE,
            left_behind: false,
            reaped: None,
            joined: Vec::new(),
            events,
            tally: Tally::default(),
            buffer: vec![0; READ_BUFFER].into_boxed_slice(),
        }
    }

    /// What starts new workers, if the app has any.
    pub fn launcher(&self) -> Option<&Launcher> {
        self.launchers.of(u32::MAX)
    }

    /// The generation from which on the newest settings start the workers.
    pub fn newest_launcher(&self) -> Option<u32> {
        self.launchers.0.last().map(|(from, _)| *from)
    }

    /// From that generation on workers are started by this one; `oldest` is the oldest one that is still started.
    pub fn launch_by(&mut self, from: u32, launcher: Launcher, oldest: u32) {
        self.launchers.add(from, launcher, oldest);
    }

    /// New settings hold, but for how workers are started.
    pub fn configure(&mut self, app: Arc<config::App>, now: Instant) {
        if self.app.life.recycle.memory != app.life.recycle.memory {
            let every = self.context.options.memory_interval;
            for process in &mut self.workers {
                process.memory.watch = app.life.recycle.memory.map(|limit| MemoryWatch::new(limit, every, now));
            }
        }
        self.events.configure(Arc::clone(&app));
        self.app = app;
    }

    /// Workers are due after that many requests from now on; 0: never.
    pub fn limit_requests(&self, limit: impl Fn(Name) -> Option<u64>) {
        for process in &self.workers {
            limit(process.name).into_iter().for_each(|limit| self.dispatch.limit_requests(process.id, limit));
        }
    }

    /// The ways to those who are to know what becomes of an upstream.
    pub fn ways(&self) -> Listeners<'_> {
        let Context { postboxes, log, .. } = &self.context;
        Listeners { app: self.id, dispatch: &self.dispatch, postboxes, log }
    }

    /// Whether a worker has ended since the last call, and which one, if it ended well although nobody had told it to.
    pub fn take_reaped(&mut self) -> Option<Option<String>> {
        self.reaped.take()
    }

    pub fn process(&self, name: Name) -> Option<&Process> {
        self.workers.iter().find(|process| process.name == name)
    }

    fn process_mut(&mut self, name: Name) -> Option<&mut Process> {
        self.workers.iter_mut().find(|process| process.name == name)
    }

    /// A worker's name in the dispatch.
    pub fn id(&self, name: Name) -> Option<WorkerId> {
        let ours = self.process(name).map(|process| process.id);
        ours.or_else(|| self.joined.iter().find(|worker| worker.name == name).map(|worker| worker.id))
    }

    /// A worker's name in the fleet.
    pub fn name(&self, id: WorkerId) -> Option<Name> {
        let ours = self.workers.iter().find(|process| process.id == id).map(|process| process.name);
        ours.or_else(|| self.joined.iter().find(|worker| worker.id == id).map(|worker| worker.name))
    }

    /// The place of a worker that the dispatch knows, and the requests that it was given there and that ran.
    pub fn served(&self, id: WorkerId) -> Option<(u32, u64)> {
        let known = self.dispatch.snapshot();
        known.worker(id).map(|worker| (worker.target.number, worker.served))
    }

    /// Those stay counted when the worker is forgotten.
    pub fn keep_served(&mut self, served: Option<(u32, u64)>) {
        if let Some((place, requests)) = served {
            self.tally.served(place, requests);
        }
    }

    /// Sends a signal to a worker's first process alone: what it started may not know it.
    pub fn signal_leader(&self, name: Name, signal: i32) {
        if let Some(process) = self.process(name) {
            // SAFETY: kill takes plain numbers. The child is not reaped yet, so the number is its own.
            unsafe { libc::kill(process.group(), signal) };
        }
    }

    fn count_start(&mut self, place: u32) {
        self.context.status.starts.fetch_add(1, Ordering::Relaxed);
        self.tally.started(place);
    }

    fn try_start(&mut self, start: Start) -> Result<bool, String> {
        let Start { name, number, generation, limit } = start;
        let Some(launcher) = self.launchers.of(generation) else { return Ok(false) };
        let now = Instant::now();
        let label = format!("{}.G{generation}.{number}", self.app.name);
        self.context.run.mend().map_err(|error| error.to_string())?;
        let socket = self.context.next_socket(&label).map_err(|error| error.to_string())?;
        let speaks = launcher.listens_to_workers().then(|| NotifySocket::open(&socket.with_extension("note")));
        let mut notify = speaks.transpose().map_err(|error| error.to_string())?;
        let mut endpoint = launcher.endpoint(socket).map_err(|error| error.to_string())?;
        let address = endpoint.address().clone();
        let target = Target {
            address: address.clone(),
            label: label.clone(),
            unix: endpoint.is_unix(),
            supervised: true,
            number,
            moves: Arc::new(Moves::new(now)),
        };
        let Some(id) = self.dispatch.add_of(target, generation, (limit > 0).then_some(limit), launcher.concurrency())
        else {
            // Closed first: a socket that still listens would be taken for another's, and stay.
            drop(endpoint.take_listener());
            endpoint.clear();
            return Ok(false);
        };
        let particulars = Particulars { number, generation, limit, notify: notify.as_ref().map(NotifySocket::path) };
        let (stdout, stderr, child) = match launcher.start(particulars, &mut endpoint).and_then(capture) {
            Ok(parts) => parts,
            Err(error) => {
                self.dispatch.died(id, now);
                self.dispatch.remove(id, now);
                endpoint.clear();
                return Err(error.to_string());
            }
        };
        self.count_start(number);
        let group = child.id();
        self.dispatch.runs_as(id, group);
        self.events.emit(Level::Info, "worker-spawn", "worker started", &[("worker", &label), ("pid", &group)]);
        if let Some(socket) = &mut notify {
            socket.belongs_to(group as i32);
        }
        let look_every = self.look_every();
        let app = &self.app;
        self.workers.push(Process {
            probe: Probe::of_readiness(&app.life.ready.by, address, endpoint.inherited(), now)
                .map(|probe| probe.or_at(endpoint.others().iter().cloned())),
            channel: notify.map(|socket| Channel::new(socket, app.life.watchdog)),
            memory: Memory {
                watch: (app.life.recycle.memory)
                    .map(|limit| MemoryWatch::new(limit, self.context.options.memory_interval, now)),
                held: None,
            },
            name,
            id,
            number,
            generation,
            label,
            endpoint,
            child,
            born: now,
            output: Output::new(stdout, stderr),
            end: End::default(),
            file: EndpointFile::made_in(&self.context.run),
            work: Work::new(now + look_every),
        });
        self.context.guard.add(group);
        Ok(true)
    }

    /// Looks for the sockets that are in question; those that accept.
    pub fn look_for_sockets(&mut self, now: Instant) -> Vec<Name> {
        let mut found = Vec::new();
        for process in &mut self.workers {
            let Some(probe) = &mut process.probe else { continue };
            if probe.look(now) != Look::Listening {
                continue;
            }
            if proc::is_dying(process.child.id()) {
                // Its listener is only what it closes last. The word of its end is on the way.
                probe.later(now);
                continue;
            }
            let address = probe.address().clone();
            let port = address.as_socket().filter(|_| process.endpoint.may_leave_port()).map(|address| address.port());
            if let Some(port) = port.filter(|_| cfg!(target_os = "linux"))
                && !process.work.listens_at(port)
            {
                // It may be a stranger's by now. Whether the group has it is seen by the next look.
                self.context.observer.ask(process.child.id(), Wish { work: true, ..Wish::default() });
                probe.later(now);
                continue;
            }
            process.probe = None;
            if process.endpoint.settle(&address) {
                self.dispatch.locate(process.id, address);
            }
            found.push(process.name);
        }
        found
    }

    /// A worker says that it is ready. Whether it has to be looked for first, since it may listen at several places.
    pub fn must_be_found(&mut self, name: Name, now: Instant) -> bool {
        let Some(process) = self.process_mut(name).filter(|process| !process.endpoint.others().is_empty()) else {
            return false;
        };
        let probe = Probe::of_worker(process.endpoint.address().clone(), now);
        process.probe = Some(probe.or_at(process.endpoint.others().iter().cloned()));
        true
    }

    /// Announces the processes that are over; those of them that are to be reaped now: the loops have read what they still answered, or
    /// had the time to. `child`: one of this process's children has ended.
    pub fn ended(&mut self, child: bool, now: Instant) -> Vec<Name> {
        let patience = self.kill_patience;
        for process in &mut self.workers {
            if process.end.over_since.is_none() && process.is_over(child, patience, &self.context.observer, now) {
                process.end.over_since = Some(now);
                process.end.owed = self.dispatch.snapshot().worker(process.id).is_some_and(WorkerSnapshot::owes);
                if process.end.is_well() {
                    self.dispatch.ended_well(process.id);
                }
                self.dispatch.died(process.id, now);
                self.context.postboxes.broadcast(|| Message::Died(self.id, process.id));
                // Whom it leaves behind goes too, while the zombie still keeps the group's number from others.
                signal_group(process.group(), libc::SIGKILL);
            }
        }
        let over = self.workers.iter().filter_map(|process| Some((process, process.end.over_since?)));
        let over: Vec<(&Process, Instant)> = over.collect();
        if over.is_empty() {
            return Vec::new();
        }
        let known = self.dispatch.snapshot();
        let is_read = |process: &Process| {
            process.end.ended.is_none() || known.worker(process.id).is_none_or(|worker| worker.in_flight == 0)
        };
        let due = over.into_iter().filter(|(process, since)| is_read(process) || now >= *since + SETTLE);
        due.map(|(process, _)| process.name).collect()
    }

    /// Those that have ended by themselves and left others in their groups, which may still be at work. Each is told once.
    pub fn forsaken(&mut self, now: Instant) -> Vec<Name> {
        let left = self.workers.iter_mut().filter_map(|process| process.is_forsaken(now).then_some(process.name));
        left.collect()
    }

    /// When a process is to be looked at again.
    pub fn due(&self) -> Option<Instant> {
        self.workers.iter().filter_map(|process| process.due(self.kill_patience)).min()
    }

    /// Reaps a process that is over, clears up behind it, and says why it ended.
    pub fn reap(&mut self, name: Name, ending: Option<Ending>, was_ready: bool, now: Instant) -> Option<Exit> {
        let position = self.workers.iter().position(|process| process.name == name)?;
        let mut process = self.workers.swap_remove(position);
        let id = process.id;
        let status = match process.has_ended() {
            true => process.child.wait(),
            false => Err(io::Error::other("it could not be killed, and is left behind")),
        };
        let went = process.end.went();
        let before = self.reaped.take().flatten();
        self.reaped = Some(went.map(|_| process.label.clone()).or(before));
        self.left_behind |= status.is_err();
        if status.is_ok() {
            self.context.guard.remove(process.child.id());
        }
        self.finish_output(&mut process);
        let known = self.dispatch.snapshot();
        let known = known.worker(id);
        let (served, answered) = known.map_or((0, false), |worker| (worker.served, worker.answered_at.is_some()));
        self.context.postboxes.broadcast(|| Message::Retire(self.id, id));
        self.dispatch.remove(id, now);
        process.endpoint.clear();
        let clean = status.as_ref().is_ok_and(|status| is_clean(*status));
        let is_crash = ending.map_or(!(was_ready && clean), |ending| !ending.is_planned());
        if is_crash {
            self.context.status.crashes.fetch_add(1, Ordering::Relaxed);
        }
        self.tally.ended(process.number, ending, is_crash, served);
        let (how, reason) = match &status {
            Ok(status) => (exit_reason(None, was_ready, *status), exit_reason(ending, was_ready, *status)),
            Err(error) => (error.to_string(), error.to_string()),
        };
        let exit = WorkerExit { status: status.ok(), reason: &reason, planned: !is_crash, served };
        self.events.exited(&process, &exit, now);
        // Who goes into the background does so while it starts. A worker that ends later may well leave helpers.
        let is_young = now.duration_since(process.born) <= self.app.life.ready.timeout;
        if went == Some(true) && is_young && self.context.status.state() != AppState::Stopping {
            self.events.left_others(&process);
        }
        Some(Exit { answered, owed: process.end.owed, clean, how, last_lines: process.output.last_lines.joined() })
    }

    /// Takes in what was seen of workers, reads what they say, and asks about what is due.
    pub fn observe(&mut self, ready: &Ready, now: Instant) -> Vec<(Name, Observation)> {
        let mut seen = Vec::new();
        let waited_for = self.app.life.ready.by == ReadyBy::Notify;
        let look_every = self.look_every();
        self.take_sights(&mut seen, now);
        for process in &mut self.workers {
            process.ask(&self.context.observer, look_every, now);
            let Some(channel) = &mut process.channel else { continue };
            let Channel { socket, watchdog, status } = channel;
            if ready.has(socket.descriptor()) {
                socket.read(|message| {
                    let word = heard(message, watchdog, status, waited_for, now);
                    seen.extend(word.map(|word| (process.name, word)));
                });
            }
            seen.extend(expired(watchdog, now).map(|silent| (process.name, silent)));
        }
        for (name, observation) in &seen {
            self.tell_silence(*name, *observation);
        }
        seen
    }

    /// What a worker that is over had still said, in order: it counts, though its end was seen first. To be asked before it is reaped,
    /// while the system still knows who it was that spoke.
    pub fn last_words(&mut self, name: Name, now: Instant) -> Vec<Word> {
        let waited_for = self.app.life.ready.by == ReadyBy::Notify;
        let channel = self.process_mut(name).and_then(|process| process.channel.as_mut());
        let Some(Channel { socket, watchdog, status }) = channel else { return Vec::new() };
        let mut seen = Vec::new();
        socket.finish(|message| seen.extend(heard(message, watchdog, status, waited_for, now)));
        // Its watchdog is not asked: whoever has ended says nothing any more.
        let words = seen.into_iter().filter_map(|observation| {
            self.tell_silence(name, observation);
            match observation {
                Observation::Ready => Some(Word::Ready),
                Observation::Leaves => Some(Word::Leaves),
                Observation::Silent(period) => Some(Word::Stuck(Ending::Watchdog(period))),
                Observation::Heavy(_) => None,
            }
        });
        words.collect()
    }

    fn tell_silence(&mut self, name: Name, observation: Observation) {
        let Observation::Silent(period) = observation else { return };
        let Some(process) = self.workers.iter().find(|process| process.name == name) else { return };
        let pid = process.child.id();
        let fields: [(&str, &dyn Display); 2] = [("worker", &process.label), ("pid", &pid)];
        let message =
            format!("the worker has not said WATCHDOG=1 for {} s, and is taken for stuck", period.as_secs_f32());
        self.events.emit(Level::Error, "worker-silent", &message, &fields);
    }

    /// How often a worker is looked at that is not ready yet.
    fn look_every(&self) -> Duration {
        (self.app.life.ready.timeout / LOOKS_UNTIL_READY).clamp(SHORTEST_LOOK, LONGEST_LOOK)
    }

    /// Has the memory of all workers looked at, as `status` shows it.
    pub fn ask_for_memory(&self) {
        for process in &self.workers {
            self.context.observer.ask(process.child.id(), Wish { memory: true, ..Wish::default() });
        }
    }

    /// How much CPU time these have used with all that they have started, as was last seen; the next look is for the next question.
    pub fn work_of(&self, names: &[Name]) -> Vec<(Name, Duration)> {
        let asked = self.workers.iter().filter(|process| names.contains(&process.name));
        let told = asked.filter_map(|process| {
            self.context.observer.ask(process.child.id(), Wish { work: true, ..Wish::default() });
            Some((process.name, process.work.cpu_time?))
        });
        told.collect()
    }

    /// What was seen of the processes since the last turn.
    fn take_sights(&mut self, seen: &mut Vec<(Name, Observation)>, now: Instant) {
        for process in &mut self.workers {
            let Some(sight) = self.context.observer.take(process.child.id()) else { continue };
            process.end.populated = sight.populated.or(process.end.populated);
            process.work.cpu_time = sight.cpu_time.or(process.work.cpu_time);
            process.work.listens_on = sight.listens_on.unwrap_or_else(|| std::mem::take(&mut process.work.listens_on));
            if sight.weighed && process.memory.weigh(sight.memory, now) {
                seen.push((process.name, Observation::Heavy(sight.memory.unwrap_or(0))));
            }
        }
    }

    /// Whether memory has room for another worker like this one; so, where nothing is known.
    pub fn has_room_beside(&self, name: Name) -> bool {
        let process = self.process(name);
        // Before it was ever weighed, its first process alone tells.
        let held = process.and_then(|process| process.memory.held.or_else(|| proc::resident(process.child.id())));
        held.zip((self.context.options.headroom)()).is_none_or(|(held, free)| held <= free)
    }

    /// What the supervisor sleeps on for probes and channels.
    pub fn entries(&self) -> impl Iterator<Item = libc::pollfd> {
        let channels = self.workers.iter().filter_map(|process| process.channel.as_ref());
        let channels = channels.map(|channel| wake::entry(channel.socket.descriptor(), libc::POLLIN));
        self.workers.iter().filter_map(|process| process.probe.as_ref()?.entry()).chain(channels)
    }

    pub fn read_output(&mut self, ready: &Ready) {
        for process in &mut self.workers {
            if !process.output.descriptors().any(|descriptor| ready.has(descriptor)) {
                continue;
            }
            let Process { output: Output { stdout, stderr, last_lines }, label, number, generation, child, .. } =
                process;
            let (app, id, generation) = (&self.app.name, *number, *generation);
            let from = WorkerName { label, app, id, pid: child.id(), generation };
            let log = &self.context.log;
            stdout.read(&mut self.buffer, |line| log.worker_line(from, Stream::Stdout, line));
            stderr.read(&mut self.buffer, |line| {
                log.worker_line(from, Stream::Stderr, line);
                last_lines.push(line);
            });
        }
    }

    fn finish_output(&mut self, process: &mut Process) {
        let Process { output: Output { stdout, stderr, last_lines }, label, number, generation, child, .. } = process;
        let (app, id, generation) = (&self.app.name, *number, *generation);
        let from = WorkerName { label, app, id, pid: child.id(), generation };
        let log = &self.context.log;
        stdout.finish(&mut self.buffer, |line| log.worker_line(from, Stream::Stdout, line));
        stderr.finish(&mut self.buffer, |line| {
            log.worker_line(from, Stream::Stderr, line);
            last_lines.push(line);
        });
    }
}

/// What a worker's message is to the fleet.
fn heard(
    message: notify::Message,
    watchdog: &mut Watchdog,
    status: &mut String,
    waited_for: bool,
    now: Instant,
) -> Option<Observation> {
    watchdog.take(&message, now);
    match message {
        notify::Message::Ready if waited_for => Some(Observation::Ready),
        notify::Message::Stopping => Some(Observation::Leaves),
        notify::Message::WatchdogTrigger => expired(watchdog, now),
        notify::Message::Status(text) => {
            *status = text;
            None
        }
        _ => None,
    }
}

/// Whether its time is over, which is seen once.
fn expired(watchdog: &mut Watchdog, now: Instant) -> Option<Observation> {
    let period = watchdog.has_expired(now).then(|| watchdog.period().unwrap_or_default())?;
    *watchdog = Watchdog::new(None);
    Some(Observation::Silent(period))
}

/// A child with what it writes.
fn capture(mut child: std::process::Child) -> io::Result<(Capture, Capture, std::process::Child)> {
    let (stdout, stderr) = child.stdout.take().zip(child.stderr.take()).ok_or(io::ErrorKind::BrokenPipe)?;
    Ok((Capture::new(stdout.into())?, Capture::new(stderr.into())?, child))
}

impl Machine for Processes {
    fn start(&mut self, start: Start) -> Started {
        match self.try_start(start) {
            Ok(true) => Started::Yes,
            Ok(false) => Started::NoRoom,
            Err(message) => Started::Failed(message),
        }
    }

    fn open(&mut self, name: Name, now: Instant) {
        let Some(id) = self.id(name) else { return };
        if let Some(process) = self.process_mut(name)
            && !std::mem::replace(&mut process.work.opened, true)
        {
            let group = process.child.id();
            self.context.observer.ask(group, Wish { memory: true, ..Wish::default() });
        }
        if let Some(Process { endpoint, file, .. }) = self.process_mut(name)
            && let Some(path) = endpoint.path()
        {
            // The directory is closed to others already; this is the second lock on the door.
            socket_file::close_to_others(path);
            file.is_ready_at(path);
        }
        for grant in self.dispatch.ready(id, now) {
            self.context.postboxes.grant(grant);
        }
    }

    fn shut(&mut self, name: Name, now: Instant) {
        if let Some(id) = self.id(name) {
            self.dispatch.unreachable(id, now);
        }
    }

    fn drain(&mut self, name: Name, now: Instant) {
        if let Some(id) = self.id(name) {
            self.dispatch.drain(id, now);
        }
    }

    fn look(&mut self, name: Name, now: Instant) {
        let Some(process) = self.process_mut(name) else { return };
        let mut probe = Probe::of_worker(process.endpoint.address().clone(), now);
        // It may be a child of the process that we know, and dying: its listener is given the time to close.
        probe.later(now);
        process.probe = Some(probe);
        let label = process.label.clone();
        let message = "the worker refused a connection or lost a request; its socket is looked at";
        self.context.log.event(Level::Warn, message, &[("worker", &label)]);
    }

    fn terminate(&mut self, name: Name, now: Instant) {
        let Some(process) = self.process_mut(name) else { return };
        process.probe = None;
        let (id, group) = (process.id, process.group());
        process.end.told = Told::Term;
        self.dispatch.drain(id, now);
        self.context.postboxes.broadcast(|| Message::Retire(self.id, id));
        // The app may be behind a shell or a package manager that ends without telling it.
        signal_group(group, libc::SIGTERM);
        self.signal_leader(name, libc::SIGTERM);
    }

    fn signal(&mut self, name: Name, signal: i32) {
        self.signal_leader(name, signal);
    }

    fn kill(&mut self, name: Name) {
        if let Some(process) = self.process_mut(name) {
            if !matches!(process.end.told, Told::Kill { .. }) {
                process.end.told = Told::Kill { at: Instant::now() };
            }
            signal_group(process.group(), libc::SIGKILL);
            // It may have joined another group, which is not ours to kill.
            self.signal_leader(name, libc::SIGKILL);
        }
    }

    fn cpu_time(&mut self, name: Name) -> Option<Duration> {
        let process = self.process(name)?;
        // Its first process is asked once more: that is one file, and the last look may be late.
        let own = proc::cpu_time(process.child.id());
        process.work.cpu_time.max(own)
    }

    fn fits_beside(&mut self, name: Name) -> bool {
        self.has_room_beside(name)
    }

    fn has_answered(&mut self, name: Name) -> bool {
        let snapshot = self.dispatch.snapshot();
        self.id(name).and_then(|id| snapshot.worker(id)).is_some_and(|worker| worker.answered_at.is_some())
    }

    fn owes(&mut self, name: Name) -> bool {
        let snapshot = self.dispatch.snapshot();
        self.id(name).and_then(|id| snapshot.worker(id)).is_some_and(WorkerSnapshot::owes)
    }

    fn least_missed(&mut self, among: &[Name]) -> Option<Name> {
        let snapshot = self.dispatch.snapshot();
        let known = |name: &Name| self.id(*name).and_then(|id| snapshot.worker(id));
        let busy = |worker: &WorkerSnapshot| worker.in_flight + worker.tunnels;
        // Of those that have answered nothing yet the newest goes.
        among.iter().copied().min_by_key(|name| {
            let worker = known(name);
            (worker.map(busy), worker.and_then(|worker| worker.answered_at), std::cmp::Reverse(*name))
        })
    }

    fn give_up(&mut self, _now: Instant) {
        for waiter in self.dispatch.fail() {
            self.context.postboxes.post(waiter.loop_index, Message::AppFailed(waiter.exchange));
        }
    }

    fn recover(&mut self) {
        self.dispatch.recover();
    }

    fn say(&mut self, event: Event) {
        let about = match &event {
            Event::Ready(name) | Event::NotReady(name, _) | Event::NotBack(name) | Event::Cut(name) => Some(*name),
            _ => None,
        };
        let process = about.and_then(|name| self.workers.iter().find(|process| process.name == name));
        self.events.of_fleet(event, process);
    }
}
