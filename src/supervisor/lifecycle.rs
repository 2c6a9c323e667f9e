//! The life of a worker: spawned, ready, replaced, drained, told to stop, reaped, and started again.

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::SockAddr;

use super::guard::signal_group;
use super::output::{Capture, LastLines};
use super::policy::Decision;
use super::probe::{Look, Probe};
use super::process::{Ending, Phase, Process, exit_reason};
use super::spawn::Particulars;
use super::{AppState, ExitReason, GENERATION, Place, Supervisor, inspect, run_directory};
use crate::dispatch::{Target, WorkerId};
use crate::log::{Level, Stream};
use crate::mailbox::Message;

/// From TERM to KILL for a worker that was drained or does not answer.
const TERM_GRACE: Duration = Duration::from_secs(5);
/// When a worker cannot even be spawned for lack of room in the dispatch's table.
const ROOM_RETRY: Duration = Duration::from_millis(100);
/// A quarter of the workers is replaced at a time at most, so that recycling does not take the machine.
const REPLACED_AT_ONCE: usize = 4;

impl Supervisor {
    /// The process that fills a place, if one does; the one that serves before the one that starts.
    pub(super) fn active(&self, number: u32) -> Option<usize> {
        let of_place = |process: &&Process| process.place + 1 == number as usize && process.is_active();
        let mut found = self.processes.iter().enumerate().filter(|(_, process)| of_place(process));
        let first = found.next()?;
        Some(found.find(|(_, process)| first.1.is_starting() && !process.is_starting()).unwrap_or(first).0)
    }

    /// Whether a replacement for this place may be started now: none is on its way, and not too many are elsewhere.
    pub(super) fn may_replace(&self, place: &Place) -> bool {
        let starting = self.processes.iter().filter(|process| process.is_starting());
        let here = starting.clone().any(|process| process.place + 1 == place.number as usize);
        !here && starting.count() < self.places.len().div_ceil(REPLACED_AT_ONCE)
    }

    /// Starts a process for every place that has none and is due, and the replacements that are due.
    pub(super) fn fill_places(&mut self, now: Instant) {
        if self.stop.is_some() {
            return;
        }
        for index in 0..self.places.len() {
            let place = &self.places[index];
            if place.given_up {
                continue;
            }
            match self.active(place.number) {
                None if place.start_at <= now => self.spawn(index, now),
                Some(_) if place.replace_at.is_some_and(|at| at <= now) && self.may_replace(place) => {
                    self.spawn(index, now)
                }
                _ => {}
            }
        }
    }

    fn spawn(&mut self, index: usize, now: Instant) {
        let place = &mut self.places[index];
        place.incarnation += 1;
        let limit = place.jitter.add(self.settings.app.recycle.requests);
        let (number, incarnation) = (place.number, place.incarnation);
        match self.try_spawn(index, number, incarnation, limit, now) {
            Ok(true) => {}
            Ok(false) => {
                let place = &mut self.places[index];
                place.start_at = now + ROOM_RETRY;
                place.replace_at = place.replace_at.map(|_| now + ROOM_RETRY);
            }
            Err(message) => {
                self.log.event(Level::Error, format_args!("cannot start a worker: {message}"), &[("worker", &number)]);
                self.failed_start(index, now);
            }
        }
    }

    /// False: the dispatch has no room just now.
    fn try_spawn(
        &mut self,
        place: usize,
        number: u32,
        incarnation: u32,
        limit: u64,
        now: Instant,
    ) -> Result<bool, String> {
        let Some(launcher) = &self.launcher else { return Ok(false) };
        let name = &self.settings.app.name;
        let label = format!("{name}.G{GENERATION}.{number}");
        let socket = self.run.socket(&format!("{label}.{incarnation}.sock")).map_err(|error| error.to_string())?;
        let mut endpoint = launcher.endpoint(socket.clone()).map_err(|error| error.to_string())?;
        let address = endpoint.address().clone();
        let target = Target { address: address.clone(), label: label.clone(), unix: true, supervised: true, number };
        let Some(id) = self.dispatch.add(target, GENERATION, (limit > 0).then_some(limit)) else { return Ok(false) };
        let particulars = Particulars { number, generation: GENERATION, limit, notify: None };
        let spawned = launcher.start(particulars, &mut endpoint).and_then(|mut child| {
            let captures = child.stdout.take().zip(child.stderr.take()).ok_or(std::io::ErrorKind::BrokenPipe)?;
            Ok((Capture::new(captures.0.into())?, Capture::new(captures.1.into())?, child))
        });
        let (stdout, stderr, child) = match spawned {
            Ok(parts) => parts,
            Err(error) => {
                self.dispatch.died(id, now);
                self.dispatch.remove(id, now);
                return Err(error.to_string());
            }
        };
        self.status.starts.fetch_add(1, Ordering::Relaxed);
        self.log.event(Level::Info, "worker started", &[("worker", &label), ("pid", &child.id())]);
        let group = child.id();
        let phase = Phase::Starting { probe: Probe::of_worker(address, now), deadline: now + self.ready_timeout };
        let last_lines = LastLines::default();
        let (ending, expires) = (None, None);
        let process = Process {
            place,
            id,
            label,
            socket,
            child,
            phase,
            ending,
            limit,
            born: now,
            expires,
            stdout,
            stderr,
            last_lines,
        };
        self.processes.push(process);
        if self.guard.as_mut().is_some_and(|guard| guard.add(group).is_err()) {
            self.replace_guard();
        }
        Ok(true)
    }

    pub(super) fn act_on_timers(&mut self, now: Instant) {
        for index in 0..self.processes.len() {
            let process = &mut self.processes[index];
            match &mut process.phase {
                Phase::Starting { probe, deadline } | Phase::Checking { probe, deadline } => {
                    let late = now >= *deadline;
                    let listens = probe.look(now) == Look::Listening;
                    if listens && inspect::is_dying(process.child.id()) {
                        // Its listener is only what it closes last. The word of its end is on the way.
                        probe.later(now);
                    } else if listens {
                        self.became_ready(index, now);
                    } else if late {
                        self.never_came(index, now);
                    }
                }
                Phase::Running if process.expires.is_some_and(|at| at <= now) => {
                    process.expires = None;
                    let id = process.id;
                    self.plan_replacement(id, now);
                }
                Phase::Draining { deadline } if *deadline <= now => {
                    let message = "the worker's requests did not end in time and are cut";
                    self.log.event(Level::Warn, message, &[("worker", &process.label)]);
                    self.terminate(index, TERM_GRACE, now);
                }
                Phase::Terminating { kill_at } if *kill_at <= now => self.kill(index),
                _ => {}
            }
        }
    }

    fn became_ready(&mut self, index: usize, now: Instant) {
        let process = &mut self.processes[index];
        let first = process.is_starting();
        process.phase = Phase::Running;
        let (id, place, pid) = (process.id, process.place, process.child.id());
        if first {
            // The directory is closed to others already; this is the second lock on the door.
            fs::set_permissions(&process.socket, fs::Permissions::from_mode(0o600)).ok();
            process.expires = self.settings.app.recycle.lifetime.map(|lifetime| now + lifetime);
            let took = format!("{} ms", now.duration_since(process.born).as_millis());
            let fields: [(&str, &dyn Display); 3] = [("worker", &process.label), ("pid", &pid), ("took", &took)];
            self.log.event(Level::Info, "worker ready", &fields);
        }
        if !self.ever_ready {
            self.ever_ready = true;
            self.status.enter(AppState::Running);
        }
        for grant in self.dispatch.ready(id, now) {
            self.postboxes.grant(grant);
        }
        if first {
            self.retire_others(place, index, now);
        }
    }

    /// The replacement is ready: who filled the place before it is drained.
    fn retire_others(&mut self, place: usize, replacement: usize, now: Instant) {
        let reason = self.places[place].replace_reason.take();
        self.places[place].replace_at = None;
        let drain = self.settings.app.restart.drain;
        for (index, process) in self.processes.iter_mut().enumerate() {
            if index == replacement || process.place != place || !process.is_active() {
                continue;
            }
            process.ending = reason;
            process.phase = Phase::Draining { deadline: now + drain };
            self.status.recycled.fetch_add(1, Ordering::Relaxed);
            self.dispatch.drain(process.id, now);
        }
    }

    /// The socket did not come (or come back): says all that can be known, and ends the process.
    fn never_came(&mut self, index: usize, now: Instant) {
        let process = &mut self.processes[index];
        let starting = process.is_starting();
        process.ending = Some(if starting { Ending::NotReady } else { Ending::Unreachable });
        let elsewhere = match inspect::listening_addresses(process.child.id()).join(", ") {
            none if none.is_empty() => "nothing".to_owned(),
            some => some,
        };
        let last = process.last_lines.joined();
        let seconds = format!("{} s", self.ready_timeout.as_secs_f32());
        let socket = process.socket.display();
        let message = format!(
            "the worker did not {} the Unix socket {socket} within {seconds}: it is to listen on the path in \
             $SOCKET_PATH or {{socket}}",
            if starting { "open" } else { "accept any more on" }
        );
        let fields: [(&str, &dyn Display); 4] = [
            ("worker", &process.label),
            ("pid", &process.child.id()),
            ("listens_on", &elsewhere),
            ("last_stderr", &last),
        ];
        self.log.event(Level::Error, message, &fields);
        self.terminate(index, TERM_GRACE, now);
    }

    /// A connect was refused: its socket is looked at again before it gets more.
    pub(super) fn check_again(&mut self, id: WorkerId, now: Instant) {
        let Some(process) = self.processes.iter_mut().find(|process| process.id == id) else {
            return self.upstream_unreachable(id, now);
        };
        if matches!(process.phase, Phase::Running)
            && let Ok(address) = SockAddr::unix(&process.socket)
        {
            let message = "the worker refused a connection or lost a request; its socket is looked at";
            self.log.event(Level::Warn, message, &[("worker", &process.label)]);
            let deadline = now + self.ready_timeout;
            let mut probe = Probe::of_worker(address, now);
            // It may be a child of the process that we know, and dying: its listener is given the time to close.
            probe.later(now);
            process.phase = Phase::Checking { probe, deadline };
        }
    }

    /// A worker is due: its replacement is started first.
    pub(super) fn plan_replacement(&mut self, id: WorkerId, now: Instant) {
        let Some(process) = self.processes.iter().find(|process| process.id == id && process.is_active()) else {
            return;
        };
        let place = &mut self.places[process.place];
        if place.replace_at.is_none() {
            place.replace_at = Some(now);
            let lifetime = self.settings.app.recycle.lifetime;
            let expired = lifetime.filter(|&lifetime| now.duration_since(process.born) >= lifetime);
            place.replace_reason = Some(expired.map_or(Ending::Requests(process.limit), Ending::Lifetime));
        }
    }

    pub(super) fn drained(&mut self, id: WorkerId, now: Instant) {
        let draining = |process: &Process| process.id == id && matches!(process.phase, Phase::Draining { .. });
        if let Some(index) = self.processes.iter().position(draining) {
            self.terminate(index, TERM_GRACE, now);
        }
    }

    /// Takes the worker's connections away from the loops and sends TERM; KILL follows.
    pub(super) fn terminate(&mut self, index: usize, grace: Duration, now: Instant) {
        let process = &mut self.processes[index];
        let id = process.id;
        process.phase = Phase::Terminating { kill_at: now + grace };
        self.dispatch.drain(id, now);
        self.postboxes.broadcast(|| Message::Retire(id));
        // SAFETY: kill takes plain numbers. The child is not reaped yet, so the number is its own.
        unsafe { libc::kill(process.group(), libc::SIGTERM) };
    }

    pub(super) fn kill(&mut self, index: usize) {
        let process = &mut self.processes[index];
        process.phase = Phase::Killed;
        signal_group(process.group(), libc::SIGKILL);
    }

    /// Reaps every process that has ended.
    pub(super) fn reap(&mut self, now: Instant) {
        let mut index = 0;
        while index < self.processes.len() {
            if self.processes[index].has_ended() {
                let process = self.processes.swap_remove(index);
                self.ended(process, now);
            } else {
                index += 1;
            }
        }
    }

    fn ended(&mut self, mut process: Process, now: Instant) {
        let id = process.id;
        self.dispatch.died(id, now);
        self.postboxes.broadcast(|| Message::Died(id));
        // Whom it leaves behind goes too, while the zombie still keeps the group's number from others.
        signal_group(process.group(), libc::SIGKILL);
        let status = process.child.wait();
        if self.guard.as_mut().is_some_and(|guard| guard.remove(process.child.id()).is_err()) {
            self.replace_guard();
        }
        self.finish_output(&mut process);
        let served =
            self.dispatch.snapshot().workers.iter().find(|worker| worker.id == id).map_or(0, |worker| worker.served);
        self.postboxes.broadcast(|| Message::Retire(id));
        self.dispatch.remove(id, now);
        run_directory::clear_path(&process.socket);
        let reason = status.map_or_else(|error| error.to_string(), |status| exit_reason(process.ending, status));
        self.report(&process, &reason, served, now);
        if self.stop.is_none() && !process.ending.is_some_and(Ending::is_planned) {
            self.status.crashes.fetch_add(1, Ordering::Relaxed);
            self.lost(process.place, served > 0, now);
        }
    }

    fn report(&self, process: &Process, reason: &str, served: u64, now: Instant) {
        let planned = process.ending.is_some_and(Ending::is_planned);
        let level = if planned { Level::Info } else { Level::Error };
        let lived = format!("{:.1} s", now.duration_since(process.born).as_secs_f32());
        let last = process.last_lines.joined();
        let pid = process.child.id();
        let fields: [(&str, &dyn Display); 6] = [
            ("worker", &process.label),
            ("pid", &pid),
            ("reason", &reason),
            ("served", &served),
            ("lived", &lived),
            ("last_stderr", &last),
        ];
        let shown = if planned || last.is_empty() { fields.len() - 1 } else { fields.len() };
        self.log.event(level, "worker ended", &fields[..shown]);
    }

    /// A process that filled a place, or was to, is gone unasked.
    fn lost(&mut self, index: usize, answered: bool, now: Instant) {
        match self.active(self.places[index].number) {
            // The one that serves died while its replacement starts: the replacement fills the place.
            Some(other) if self.processes[other].is_starting() => {}
            Some(_) => self.failed_start(index, now),
            None => {
                self.places[index].replace_at = None;
                self.decide(index, answered, now);
            }
        }
    }

    /// A start failed. Where the old worker still serves it goes on, and the replacement is tried again later.
    fn failed_start(&mut self, index: usize, now: Instant) {
        if self.active(self.places[index].number).is_none() {
            return self.decide(index, false, now);
        }
        let place = &mut self.places[index];
        let at = match place.policy.exited(false, now) {
            Decision::StartAt(at) => at,
            Decision::GiveUp => {
                place.policy.forget();
                let message = "the replacements for this worker crash; the old one serves on";
                self.log.event(Level::Error, message, &[("worker", &place.number)]);
                now + self.settings.app.restart.max
            }
        };
        place.replace_at = Some(at);
    }

    fn decide(&mut self, index: usize, answered: bool, now: Instant) {
        let place = &mut self.places[index];
        match place.policy.exited(answered, now) {
            Decision::StartAt(at) => place.start_at = at,
            Decision::GiveUp => {
                place.given_up = true;
                self.gave_up(index, now);
            }
        }
    }

    fn gave_up(&mut self, index: usize, now: Instant) {
        let restart = &self.settings.app.restart;
        let (crashes, within) = (restart.crashes, format!("{} s", restart.within.as_secs_f32()));
        let number = self.places[index].number;
        let fields: [(&str, &dyn Display); 3] = [("worker", &number), ("crashes", &crashes), ("within", &within)];
        self.log.event(Level::Error, "a worker crashes before it answers anything, and is given up", &fields);
        if !self.places.iter().all(|place| place.given_up) {
            return;
        }
        self.status.enter(AppState::Failed);
        for waiter in self.dispatch.fail() {
            self.postboxes.post(waiter.loop_index, Message::AppFailed(waiter.exchange));
        }
        let app: &dyn Display = &self.settings.app.name;
        self.log.event(Level::Error, "the app has failed: all its workers are given up", &[("app", app)]);
        if !self.ever_ready {
            self.log.event(Level::Error, "no worker was ever ready; the server ends", &[("app", app)]);
            self.exit = Some(ExitReason::NeverReady);
            self.begin_stop(now);
        }
    }

    pub(super) fn read_output(&mut self) {
        for process in &mut self.processes {
            let Process { stdout, stderr, last_lines, label, .. } = process;
            stdout.read(&mut self.buffer, |line| self.log.worker_line(label, Stream::Stdout, line));
            stderr.read(&mut self.buffer, |line| {
                self.log.worker_line(label, Stream::Stderr, line);
                last_lines.push(line);
            });
        }
    }

    fn finish_output(&mut self, process: &mut Process) {
        let Process { stdout, stderr, last_lines, label, .. } = process;
        stdout.finish(&mut self.buffer, |line| self.log.worker_line(label, Stream::Stdout, line));
        stderr.finish(&mut self.buffer, |line| {
            self.log.worker_line(label, Stream::Stderr, line);
            last_lines.push(line);
        });
    }
}
