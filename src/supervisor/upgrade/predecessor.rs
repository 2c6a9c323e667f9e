//! The old side of an upgrade: starts the new server, judges it, and leaves when it serves.
//!
//! ```text
//! STARTED ── hello of this protocol ──▶ GIVEN ── ready ──▶ GOING ── serving ──▶ OVER: this server drains and ends
//!    │                                    │                  │
//!    └────────────────────────────────────┴──────────────────┴── failed, ended, silent for too long ──▶ it is killed; nothing has changed
//! ```

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::control::Answer;
use crate::control::status::{self, UpgradeState};
use crate::handover::{
    Changed, Channel, Estate, Hello, HubPart, JoinedWorker, Message, PROTOCOL, RunDir, Taken, VARIABLE,
};
use crate::log::Level;
use crate::supervisor::exec::Instructions;
use crate::supervisor::pid_file::PidFile;
use crate::supervisor::{Supervisor, guard, program};
use crate::systemd::LISTEN_VARIABLES;
use crate::tls;

/// How long a program may take to say that it is a successor: one that is no server of this kind never will.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// How long a new server that has closed its end may take to end, so that its exit code is known.
const EXIT_PATIENCE: Duration = Duration::from_millis(500);
/// How long one that is killed may take to end where it may have taken what is this server's.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// How often it is told what this server still counts.
const COUNT_AGAIN: Duration = Duration::from_millis(100);
/// Tickets of those who wait for an upgrade, apart from those of rolling restarts.
const TICKETS: u64 = 1 << 63;

/// How far a new server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Started,
    Given,
    Going,
    Over,
}

/// A new server.
pub(super) struct Attempt {
    ticket: u64,
    program: PathBuf,
    child: Child,
    channel: Channel,
    phase: Phase,
    /// When the next thing is due: its word, or this server's.
    due: Instant,
    /// When it must serve at the latest.
    deadline: Instant,
    /// What it has said of itself.
    hello: Option<Hello>,
    /// It has closed its end: when it did.
    closed: Option<Instant>,
    /// It has a successor itself, which serves.
    has_next: bool,
    /// What the server before this one has told of its apps, since hubs were handed over.
    notices: Vec<String>,
}

impl Attempt {
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    fn hears(&self, what: fn(&Hello) -> bool) -> bool {
        self.hello.as_ref().is_some_and(what)
    }

    fn version(&self) -> Option<String> {
        self.hello.as_ref().map(|hello| hello.version.clone())
    }

    pub fn is_going(&self) -> bool {
        self.phase == Phase::Going
    }

    /// What an app has published at the server before this one: whether it is the new one's to publish, which then is told.
    pub fn takes(&mut self, notice: &str) -> bool {
        let takes = self.hears(|hello| hello.hears_hubs) && matches!(self.phase, Phase::Going | Phase::Over);
        if takes {
            self.notices.push(notice.to_owned());
        }
        takes
    }

    /// Ends it, and what it has started: a program between may have started the new server. Its workers end with that one: they are its
    /// guard's, and what escapes that comes to this process.
    fn kill(&mut self) {
        guard::signal_group(self.child.id() as i32, libc::SIGKILL);
        self.child.kill().ok();
    }

    pub fn entry(&self) -> Option<libc::pollfd> {
        self.closed.is_none().then(|| self.channel.poll_entry())
    }

    pub fn due(&self) -> Option<Instant> {
        match (self.phase, self.closed) {
            (Phase::Over, Some(_)) => None,
            (_, Some(since)) => Some(since + EXIT_PATIENCE),
            (_, None) => Some(self.due),
        }
    }
}

/// The program that this server was started as: the file at that path may have been replaced since, which is what an upgrade is for.
fn started_as() -> PathBuf {
    let word = std::env::args_os().next().map(PathBuf::from).unwrap_or_default();
    if word.components().count() > 1 {
        return std::path::absolute(&word).unwrap_or(word);
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(&word)).find(|path| path.is_file());
    found.or_else(|| std::env::current_exe().ok()).unwrap_or(word)
}

/// Starts it as this process was started, with what it inherits as its standard input; in a process group of its own, so that all can be ended
/// that it starts before it takes over.
fn spawn(
    shim: &Path,
    program: &Path,
    descriptors: Option<(u64, u64)>,
    stdin: std::os::fd::OwnedFd,
) -> io::Result<Child> {
    let words = std::iter::once(OsString::from(program)).chain(std::env::args_os().skip(1));
    let instructions = Instructions {
        parent: std::process::id(),
        outlives: true,
        descriptors,
        command: words.collect(),
        ..Instructions::default()
    };
    let mut command = Command::new(shim);
    command.arg0("production_server").args(instructions.to_arguments());
    for name in LISTEN_VARIABLES {
        command.env_remove(name);
    }
    command.env(VARIABLE, PROTOCOL.to_string()).stdin(Stdio::from(stdin)).process_group(0).spawn()
}

impl Supervisor {
    /// The word `upgrade`. The answer is its ticket, or why not.
    pub(in crate::supervisor) fn upgrade(&mut self, program: Option<PathBuf>, wait: bool, now: Instant) -> Answer {
        let program = program.unwrap_or_else(started_as);
        if let Some(attempt) = &self.upgrades.attempt {
            let process = attempt.child.id();
            return Answer::refused(409, format!("an upgrade is under way already: process {process} is starting"));
        }
        if std::process::id() == 1 {
            let message = "process 1 cannot be replaced by another: all that it has started would end with it";
            return Answer::refused(409, message);
        }
        if self.upgrades.is_silent() {
            return Answer::refused(409, "this server has not taken over yet");
        }
        if self.units.iter().any(|unit| unit.pause.due().is_some()) {
            return Answer::refused(409, "requests are held: resume first");
        }
        if let Err(what) = program::check(&[program.clone().into_os_string()], None) {
            return Answer::refused(409, format!("the new server cannot be run, nothing has changed: {what}"));
        }
        let started = Channel::pair().and_then(|(channel, stdin)| {
            let child = spawn(&self.context.options.program, &program, self.context.options.descriptors, stdin)?;
            Ok((channel, child))
        });
        let (channel, child) = match started {
            Ok(parts) => parts,
            Err(error) => return Answer::refused(503, format!("the new server cannot be started: {error}")),
        };
        self.upgrades.count += 1;
        let (ticket, process) = (TICKETS | self.upgrades.count, child.id());
        self.upgrades.children.push(process);
        let shown = program.display().to_string();
        self.upgrades.last =
            Some(status::Upgrade { program: shown.clone(), pid: Some(process), ..status::Upgrade::default() });
        let fields: [(&str, &dyn std::fmt::Display); 2] = [("program", &shown), ("pid", &process)];
        self.context.events.emit(Level::Info, "upgrade-start", "a new server is started to take over", &fields);
        let deadline = now + self.context.settings().leaving.upgrade_timeout;
        self.upgrades.attempt = Some(Attempt {
            ticket,
            program,
            child,
            channel,
            phase: Phase::Started,
            due: deadline.min(now + HELLO_PATIENCE),
            deadline,
            hello: None,
            closed: None,
            has_next: false,
            notices: Vec::new(),
        });
        match wait {
            true => Answer::Wait(ticket),
            false => Answer::Done(
                json!({ "message": format!("process {process} is starting to take over"), "pid": process }),
            ),
        }
    }

    pub(super) fn advance_attempt(&mut self, now: Instant) {
        let Some(mut attempt) = self.upgrades.attempt.take() else { return };
        let outcome = self.look_at(&mut attempt, now);
        match outcome {
            Ok(()) => self.upgrades.attempt = Some(attempt),
            Err(reason) => self.upgrade_failed(attempt, &reason),
        }
    }

    /// This server ends before the new one has taken over.
    pub(in crate::supervisor) fn abandon_upgrade(&mut self) {
        if let Some(attempt) = self.upgrades.attempt.take_if(|attempt| !attempt.is_over()) {
            self.upgrade_failed(attempt, "the running server is told to stop");
        }
    }

    fn look_at(&mut self, attempt: &mut Attempt, now: Instant) -> Result<(), String> {
        if attempt.phase == Phase::Over {
            self.tell_counts(attempt, now);
            return Ok(());
        }
        while attempt.closed.is_none() && !attempt.is_over() {
            match attempt.channel.hear() {
                Ok(Some(message)) => self.act_on(attempt, message, now)?,
                Ok(None) => break,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => attempt.closed = Some(now),
                Err(error) => return Err(format!("the new server cannot be understood: {error}")),
            }
        }
        if attempt.phase == Phase::Over {
            return Ok(());
        }
        if attempt.closed.is_none() && attempt.channel.flush().is_err() {
            attempt.closed = Some(now);
        }
        if let Ok(Some(status)) = attempt.child.try_wait() {
            return Err(format!("the new server {} before it was ready", ended(status)));
        }
        match attempt.closed {
            Some(since) if now >= since + EXIT_PATIENCE => Err("the new server has given up without a word".to_owned()),
            None if now >= attempt.due && attempt.phase == Phase::Started => {
                Err("the new program does not say that it is a server of this kind".to_owned())
            }
            None if now >= attempt.due => {
                let seconds = self.context.settings().leaving.upgrade_timeout.as_secs_f32();
                Err(format!("the new server was not ready within {seconds} s (--upgrade-timeout)"))
            }
            _ => Ok(()),
        }
    }

    fn act_on(&mut self, attempt: &mut Attempt, message: Message, now: Instant) -> Result<(), String> {
        let lost = |error: io::Error| format!("the new server cannot be reached: {error}");
        match (attempt.phase, message) {
            (Phase::Started, Message::Hello(hello)) => {
                let Hello { protocol, version, .. } = &hello;
                if *protocol != PROTOCOL {
                    return Err(format!(
                        "the new server (version {version}) speaks version {protocol} of the handover, and this one {PROTOCOL}"
                    ));
                }
                attempt.hello = Some(hello);
                let (estate, descriptors) =
                    self.estate().map_err(|error| format!("what is to be handed over cannot be copied: {error}"))?;
                (attempt.phase, attempt.due) = (Phase::Given, attempt.deadline);
                attempt.channel.say_with(&Message::Estate(Box::new(estate)), descriptors).map_err(lost)
            }
            (Phase::Given, Message::Ready) => {
                attempt.phase = Phase::Going;
                // The new server pushes from where its account begins.
                self.finish_pushes(now);
                let hears_limits = attempt.hears(|hello| hello.hears_limits);
                for limit in if hears_limits { self.kept_limits(now) } else { Vec::new() } {
                    let told = serde_json::to_value(limit).map_err(io::Error::from).map_err(lost)?;
                    attempt.channel.say(&Message::Limit(told)).map_err(lost)?;
                }
                if attempt.hears(|hello| hello.hears_changes) {
                    let changed = Changed { joined: self.joined_workers(), ticket_keys: tls::ticket_keys() };
                    attempt.channel.say(&Message::Changed(changed)).map_err(lost)?;
                }
                if attempt.hears(|hello| hello.hears_hubs) {
                    self.hand_over_hubs(now, |name, bytes| {
                        HubPart::of(name, bytes).try_for_each(|part| attempt.channel.say(&Message::Hub(part)))
                    })
                    .map_err(lost)?;
                }
                attempt.channel.say(&Message::Go(self.account())).map_err(lost)
            }
            (Phase::Going, Message::Serving(taken)) => {
                self.hand_over(attempt, &taken, now);
                Ok(())
            }
            (_, Message::Failed { reason }) => Err(format!("the new server cannot start: {reason}")),
            (phase, message) => {
                let message = serde_json::to_string(&message).unwrap_or_default();
                Err(format!("the new server says {message} in the phase {phase:?}"))
            }
        }
    }

    /// What is handed over, and the descriptors that belong to it.
    fn estate(&self) -> io::Result<(Estate, Vec<std::os::fd::OwnedFd>)> {
        let mut descriptors = vec![self.context.run.lock()?];
        let (listeners, sockets) = self.upgrades.holdings.copies()?;
        descriptors.extend(sockets);
        let (configured, path) = (self.upgrades.holdings.run_dir.clone(), self.context.run.path().to_owned());
        let estate = Estate {
            run_dir: Some(RunDir { configured, path }),
            listeners,
            account: self.account(),
            lives: self.context.status.lives(),
            joined: self.joined_workers(),
            down: self.units.iter().filter(|unit| unit.is_down()).map(|unit| unit.name().to_owned()).collect(),
            configuration: self.upgrades.holdings.configuration.clone(),
            ticket_keys: tls::ticket_keys(),
            self_signed: tls::hand_over_self_signed(),
            hears_of_next: true,
            // SAFETY: it has no arguments and cannot fail.
            process_group: Some(unsafe { libc::getpgrp() }),
        };
        Ok((estate, descriptors))
    }

    /// The workers that have joined, each as it would join again.
    pub(super) fn joined_workers(&self) -> Vec<JoinedWorker> {
        let mut joined = Vec::new();
        for unit in self.units.iter().filter(|unit| unit.leaving.is_none()) {
            for worker in &unit.processes.joined {
                let Some(known) = unit.fleet.joined().iter().find(|known| known.name == worker.name) else { continue };
                let version = known.version.as_ref().map(ToString::to_string);
                joined.push(JoinedWorker {
                    join: json!({
                        "op": "join", "app": unit.name(), "workerId": known.worker_id, "pid": known.pid,
                        "socket": worker.socket, "version": version
                    }),
                });
            }
        }
        joined
    }

    /// The new server serves. From here on there is no way back.
    fn hand_over(&mut self, attempt: &mut Attempt, taken: &Taken, now: Instant) {
        let process = attempt.child.id();
        // Before the next word to the new server: from then on it speaks to the service manager itself.
        self.service.manager.hand_over(process, now);
        if taken.run_dir {
            self.context.run.give_away();
        }
        self.upgrades.holdings.give_away(&taken.listeners);
        (attempt.phase, attempt.due) = (Phase::Over, now);
        let version = attempt.version().unwrap_or_default();
        let shown = attempt.program.display().to_string();
        if let Some(last) = &mut self.upgrades.last {
            (last.state, last.version) = (UpgradeState::Done, attempt.version());
        }
        let fields: [(&str, &dyn std::fmt::Display); 3] =
            [("program", &shown), ("pid", &process), ("version", &version)];
        let message = "the new server serves; this one finishes its requests and ends";
        self.context.events.emit(Level::Info, "upgrade-done", message, &fields);
        let message = format!(
            "process {process} serves, version {version}; process {} finishes its requests",
            std::process::id()
        );
        self.upgrades.answers.push((attempt.ticket, Answer::Done(json!({ "message": message, "pid": process }))));
        self.begin_handed_over_stop(now);
        self.upgrades.tell_of_next();
        self.tell_counts(attempt, now);
    }

    fn tell_counts(&mut self, attempt: &mut Attempt, now: Instant) {
        if attempt.closed.is_some() {
            return;
        }
        let mut there = loop {
            match attempt.channel.hear() {
                Ok(Some(message)) => attempt.has_next |= message == Message::HandedOver,
                heard => break heard.is_ok(),
            }
        };
        if there && now >= attempt.due {
            attempt.due = now + COUNT_AGAIN;
            self.tell_notices(attempt);
            there = attempt.channel.say(&Message::Counted(self.account())).is_ok();
        }
        if there {
            return;
        }
        attempt.closed = Some(now);
        let process = attempt.child.id();
        if attempt.has_next {
            let message = "the new server has ended before this one; the one after it serves, and does not hear what this one still counts";
            return self.context.log.event(Level::Warn, message, &[("pid", &process)]);
        }
        let message = "the new server has ended while this one finished its requests; nobody serves";
        self.context.events.emit(Level::Error, "upgrade-lost", message, &[("pid", &process)]);
    }

    fn tell_notices(&self, attempt: &mut Attempt) {
        for notice in self.handed_on().into_iter().chain(std::mem::take(&mut attempt.notices)) {
            // That it is gone is seen by what is said behind them.
            attempt.channel.say(&Message::Notice(notice)).ok();
        }
    }

    /// The last word to the new server, when all requests are finished.
    pub(in crate::supervisor) fn say_farewell(&mut self) {
        let account = self.account();
        if let Some(mut attempt) = self.upgrades.attempt.take_if(|attempt| attempt.is_over()) {
            self.tell_notices(&mut attempt);
            // It may be gone; this server ends anyway.
            attempt.channel.say(&Message::Farewell(account)).ok();
            self.upgrades.attempt = Some(attempt);
        }
    }

    /// The new server was told to go, and has ended without a word that it serves: what it may have taken by then is this server's again.
    fn take_back(&mut self, attempt: &mut Attempt) {
        // What still runs of it takes nothing any more.
        attempt.channel.await_end(END_PATIENCE);
        let now = Instant::now();
        self.context.run.take_over();
        let control = self.control.as_mut().map_or(Ok(()), |control| control.take_back(now));
        let pid_file = self.upgrades.pid_file.as_mut().map_or(Ok(()), PidFile::take_back);
        for (outcome, message) in [
            (control, "the control socket cannot be put back in its place"),
            (pid_file, "the pid file cannot be written anew"),
        ] {
            if let Err(error) = outcome {
                self.context.log.event(Level::Error, message, &[("error", &error)]);
            }
        }
        if attempt.hears(|hello| hello.hears_hubs) {
            self.reopen_hubs(now);
            attempt.notices.iter().for_each(|notice| self.publish_notice(notice, now));
        }
    }

    fn upgrade_failed(&mut self, mut attempt: Attempt, reason: &str) {
        self.hold_pushes(false);
        let process = attempt.child.id();
        // The child may only have started the new server, which is to know that this one has not ended.
        attempt.channel.say(&Message::Failed { reason: reason.to_owned() }).ok();
        attempt.kill();
        if attempt.is_going() {
            self.take_back(&mut attempt);
        }
        // From now on it is reaped as any stray child is.
        self.upgrades.children.retain(|other| *other != process);
        if let Some(last) = &mut self.upgrades.last {
            (last.state, last.version) = (UpgradeState::Failed, attempt.version());
            last.reason = Some(reason.to_owned());
        }
        let shown = attempt.program.display().to_string();
        let fields: [(&str, &dyn std::fmt::Display); 3] = [("program", &shown), ("pid", &process), ("reason", &reason)];
        let message = "the upgrade has failed; this server serves on";
        self.context.events.emit(Level::Error, "upgrade-failed", message, &fields);
        let message = format!("the upgrade to {shown} has failed, the old server serves on: {reason}");
        self.upgrades.answers.push((attempt.ticket, Answer::refused(409, message)));
    }
}

/// How a process ended, in words.
fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}
