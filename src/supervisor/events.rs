//! Events: what happens to the app and its workers, as lines of the log and as JSON objects for those who listen on the control socket.
//!
//! Owns the objects that are still to be published, of all apps in one line and kept only until the supervisor's turn ends, and the
//! sentences of a fleet's events.

use std::cell::RefCell;
use std::fmt::Display;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::advice;
use super::probe::Probe;
use super::process::Process;
use crate::config;
use crate::fleet::{Event, RollEnd, RollReport};
use crate::log::{Level, Log};
use crate::proc;

const IN_BACKGROUND: &str = "the command went into the background: run it in the foreground, e.g. with --nodaemon";

/// Where events go. Clones are the same.
#[derive(Clone)]
pub(super) struct Events {
    log: Log,
    /// What has happened in this turn, oldest first.
    pending: Rc<RefCell<Vec<Value>>>,
}

/// An app's events.
pub(super) struct AppEvents {
    events: Events,
    app: Arc<config::App>,
    /// Rolls that have ended and were not told to those who wait for them.
    pub ended_rolls: Vec<RollReport>,
    /// The newest generation of which a worker has been ready.
    newest_ready: u32,
}

/// How a worker's process ended.
pub(super) struct WorkerExit<'a> {
    /// `None`: it could not be found out.
    pub status: Option<ExitStatus>,
    /// Why, in few words.
    pub reason: &'a str,
    /// Whether it was to end.
    pub planned: bool,
    /// Requests that it has answered.
    pub served: u64,
}

impl Events {
    pub fn new(log: Log) -> Events {
        Events { log, pending: Rc::default() }
    }

    /// Writes a line to the log, and keeps the event for those who listen.
    pub fn emit(&self, level: Level, event: &'static str, message: &str, fields: &[(&str, &dyn Display)]) {
        self.log.event(level, message, &[&[("event", &event as &dyn Display)], fields].concat());
        self.pending.borrow_mut().push(object(event, message, fields));
    }

    /// Takes what was emitted since the last call, oldest first. Who publishes it adds the time.
    pub fn take(&self) -> Vec<Value> {
        self.pending.take()
    }

    /// A process that had left its worker is ended; `went`: a worker that had ended well although nobody had told it to.
    pub fn orphan(&self, pid: u32, command: &str, went: Option<&str>) {
        let fields: [(&str, &dyn Display); 2] = [("pid", &pid), ("command", &command)];
        match went {
            Some(label) => {
                let fields = [&[("worker", &label as &dyn Display)], &fields[..]].concat();
                self.emit(Level::Error, "worker-in-background", IN_BACKGROUND, &fields);
            }
            None => {
                let message = "a process that had left its worker is ended with it";
                self.emit(Level::Info, "worker-escaped", message, &fields);
            }
        }
    }
}

impl AppEvents {
    pub fn new(events: Events, app: Arc<config::App>) -> AppEvents {
        AppEvents { events, app, ended_rolls: Vec::new(), newest_ready: 0 }
    }

    /// New settings hold.
    pub fn configure(&mut self, app: Arc<config::App>) {
        self.app = app;
    }

    /// As [`Events::emit`]. The app is named, where no worker's label does.
    pub fn emit(&mut self, level: Level, event: &'static str, message: &str, fields: &[(&str, &dyn Display)]) {
        let app = self.app.name.as_str();
        let names_it = |(name, value): &(&str, &dyn Display)| match *name {
            "app" => true,
            "worker" => value.to_string().strip_prefix(app).is_some_and(|rest| rest.starts_with('.')),
            _ => false,
        };
        let named = [("app", &app as &dyn Display)];
        let name: &[(&str, &dyn Display)] = if fields.iter().any(names_it) { &[] } else { &named };
        self.events.emit(level, event, message, &[fields, name].concat());
    }

    /// A worker's process has ended.
    pub fn exited(&mut self, process: &Process, exit: &WorkerExit<'_>, now: Instant) {
        let level = if exit.planned { Level::Info } else { Level::Error };
        let lived = format!("{:.1} s", now.duration_since(process.born).as_secs_f32());
        let last = process.output.last_lines.joined();
        let pid = process.child.id();
        let (code, signal) =
            (exit.status.and_then(|status| status.code()), exit.status.and_then(|status| status.signal()));
        let mut fields: Vec<(&str, &dyn Display)> =
            vec![("worker", &process.label), ("pid", &pid), ("reason", &exit.reason)];
        fields.extend(code.as_ref().map(|code| ("code", code as &dyn Display)));
        fields.extend(signal.as_ref().map(|signal| ("signal", signal as &dyn Display)));
        fields.extend([("served", &exit.served as &dyn Display), ("lived", &lived)]);
        let status = process.channel.as_ref().map_or("", |channel| &channel.status);
        let why: [(&str, &dyn Display, bool); 2] =
            [("last_status", &status, status.is_empty()), ("last_stderr", &last, last.is_empty())];
        let why = why.into_iter().filter(|(.., empty)| !exit.planned && !empty);
        fields.extend(why.map(|(name, value, _)| (name, value)));
        self.emit(level, "worker-exit", "worker ended", &fields);
    }

    /// A worker's first process had ended with code 0 by itself, and left others in its group, which are ended with it.
    pub fn left_others(&mut self, process: &Process) {
        let message = if process.work.opened {
            "the command has ended with code 0 and left others at work, which are ended with it: if it went into the background, \
             run it in the foreground, e.g. with --nodaemon"
        } else {
            IN_BACKGROUND
        };
        let pid = process.child.id();
        let fields: [(&str, &dyn Display); 2] = [("worker", &process.label), ("pid", &pid)];
        self.emit(Level::Error, "worker-in-background", message, &fields);
    }

    /// What the fleet tells. `process`: the worker that it is about, if it is about one that lives.
    pub fn of_fleet(&mut self, event: Event, process: Option<&Process>) {
        match event {
            Event::Ready(_) => self.ready(process),
            Event::StartFailed(number, why) => {
                let message = format!("cannot start a worker: {why}");
                self.emit(Level::Error, "worker-start-failed", &message, &[("worker", &number)]);
            }
            Event::NotReady(_, others) => self.not_ready(process, Some(others)),
            Event::NotBack(_) => self.not_ready(process, None),
            Event::Cut(_) => {
                let label = process.map_or("", |process| process.label.as_str());
                let message =
                    "the worker's requests and tunnels did not end in time: it is told to stop, which cuts them";
                self.emit(Level::Warn, "worker-cut", message, &[("worker", &label)]);
            }
            Event::Loops(number, ends, delay) => {
                let within = "60 s";
                let next = format!("{:.1} s", delay.as_secs_f32());
                let fields: [(&str, &dyn Display); 4] =
                    [("worker", &number), ("ends", &ends), ("within", &within), ("next_in", &next)];
                let message = "workers get ready and end again and again; the next is started later each time";
                self.emit(Level::Error, "worker-looping", message, &fields);
            }
            Event::GaveUp(number, next) => self.gave_up(number, next),
            Event::OldServesOn(number) => {
                let message = "the replacements for this worker crash; the old one serves on";
                self.emit(Level::Error, "worker-not-replaced", message, &[("worker", &number)]);
            }
            Event::NoMemory(number) => {
                let message = "memory has no room for a replacement beside the old worker; it waits (--max-unavailable \
                               permits that one is missing)";
                self.emit(Level::Warn, "worker-not-replaced", message, &[("worker", &number)]);
            }
            Event::AppFailed => {
                let app = self.app.name.clone();
                let message = "the app has failed: all its workers are given up, and one is tried again now and then";
                self.emit(Level::Error, "app-failed", message, &[("app", &app)]);
            }
            Event::RollBegan(roll, generation, places) => {
                let fields: [(&str, &dyn Display); 3] =
                    [("roll", &roll), ("generation", &generation), ("workers", &places)];
                self.emit(Level::Info, "roll-start", "rolling restart", &fields);
            }
            Event::RollEnded(report) => self.roll_ended(report),
            Event::Scaled(from, to, why) => {
                let fields: [(&str, &dyn Display); 3] = [("from", &from), ("to", &to), ("because", &why)];
                self.emit(Level::Info, "scale", "the number of workers changes", &fields);
            }
        }
    }

    /// With the first of a generation comes where it really runs, behind all links, and whether it has a pool of its own.
    fn ready(&mut self, process: Option<&Process>) {
        let Some(process) = process else { return };
        let took = format!("{} ms", process.born.elapsed().as_millis());
        let (label, pid, generation) = (&process.label, process.child.id(), process.generation);
        let is_first = generation > self.newest_ready;
        self.newest_ready = self.newest_ready.max(generation);
        let directory = is_first.then(|| proc::directory(pid)).flatten();
        let directory = directory.map(|directory| directory.display().to_string());
        let mut fields: Vec<(&str, &dyn Display)> = vec![("worker", label), ("pid", &pid), ("took", &took)];
        fields.extend(directory.as_ref().map(|directory| ("directory", directory as &dyn Display)));
        self.emit(Level::Info, "worker-ready", "worker ready", &fields);
        let concurrency = self.app.sharing.concurrency;
        if let Some(advice) = is_first.then(|| advice::about_children(pid, concurrency)).flatten() {
            self.emit(Level::Warn, "own-pool", &advice, &[("worker", label)]);
        }
    }

    /// The socket did not come, while so many others were on their way, or not come back: says all that can be known.
    fn not_ready(&mut self, process: Option<&Process>, starting: Option<usize>) {
        let now = Instant::now();
        let timeout = self.app.life.ready.timeout;
        let Some(process) = process else { return };
        let listens_on = &process.work.listens_on;
        let elsewhere = match listens_on.join(", ") {
            none if none.is_empty() => "nothing".to_owned(),
            some => some,
        };
        let (pid, last) = (process.child.id(), process.output.last_lines.joined());
        let reason = process.probe.as_ref().and_then(Probe::reason);
        let message = match starting {
            // Longer than it was given, for one that burned CPU.
            Some(others) => {
                let took = timeout.max(Duration::from_secs(now.duration_since(process.born).as_secs()));
                let mut message = process.endpoint.not_ready(&self.app.life.ready.by, took, reason);
                match others {
                    0 => {}
                    1 => message += "; 1 other was starting beside it (--start-parallel)",
                    _ => message += &format!("; {others} others were starting beside it (--start-parallel)"),
                }
                message + &process.endpoint.remedy(listens_on)
            }
            None => process.endpoint.not_back(timeout, reason),
        };
        let fields: [(&str, &dyn Display); 4] =
            [("worker", &process.label), ("pid", &pid), ("listens_on", &elsewhere), ("last_stderr", &last)];
        self.emit(Level::Error, "worker-not-ready", &message, &fields);
    }

    fn roll_ended(&mut self, report: RollReport) {
        let replaced = format!("{} of {}", report.done, report.total);
        let mut fields: Vec<(&str, &dyn Display)> =
            vec![("roll", &report.id), ("generation", &report.generation), ("replaced", &replaced)];
        match &report.end {
            RollEnd::Done => self.emit(Level::Info, "roll-end", "rolling restart done", &fields),
            RollEnd::Aborted { reason, last_lines } => {
                fields.push(("reason", reason));
                if !last_lines.is_empty() {
                    fields.push(("last_stderr", last_lines));
                }
                let message = format!("rolling restart aborted; {}", report.left);
                self.emit(Level::Error, "roll-abort", &message, &fields);
            }
        }
        self.ended_rolls.push(report);
    }

    fn gave_up(&mut self, number: u32, next: Duration) {
        let restart = &self.app.life.restart;
        let (crashes, within) = (restart.crashes, format!("{} s", restart.within.as_secs_f32()));
        let next = format!("{} s", next.as_secs());
        let fields: [(&str, &dyn Display); 4] =
            [("worker", &number), ("crashes", &crashes), ("within", &within), ("next_in", &next)];
        self.emit(
            Level::Error,
            "worker-failed",
            "a worker crashes before it answers anything, and is given up; one is tried again now and then",
            &fields,
        );
    }
}

/// An event with its message for people, and its fields. Numbers stay numbers.
fn object(event: &str, message: &str, fields: &[(&str, &dyn Display)]) -> Value {
    let mut object = Map::new();
    object.insert("event".to_owned(), event.into());
    object.insert("message".to_owned(), message.into());
    for (name, value) in fields {
        let text = value.to_string();
        let value = text.parse::<i64>().map_or_else(|_| Value::from(text.clone()), Value::from);
        object.insert((*name).to_owned(), value);
    }
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_an_object_with_its_fields() {
        let event = object("worker-exit", "worker ended", &[("worker", &"web.G1.2"), ("code", &3)]);
        assert_eq!((&event["event"], &event["code"]), (&Value::from("worker-exit"), &Value::from(3)));
        assert_eq!((&event["message"], &event["worker"]), (&Value::from("worker ended"), &Value::from("web.G1.2")));
    }
}
