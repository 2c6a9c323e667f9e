//! What the control socket asks for, carried out: the supervisor as its steward, and the workers that join through it.
//!
//! Every command is checked whole before anything changes, and none waits: a restart that is waited for is answered by a later turn.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use socket2::SockAddr;

use super::probe::{Look, Probe};
use super::{Supervisor, run_directory};
use crate::config::{HotReload, ReadyBy, signal_name};
use crate::control::{Answer, Change, Command, ControlServer, Join, Steward};
use crate::dispatch::{Moves, Target, WorkerId};
use crate::fleet::{Guest, Machine, Member, Name, RollEnd, RollReport};
use crate::log::Level;
use crate::mailbox::Message;

/// A worker that joined: its names in the fleet and in the dispatch, and where it listens.
#[derive(Debug)]
pub(super) struct Visitor {
    pub name: Name,
    pub id: WorkerId,
    pub socket: std::path::PathBuf,
}

impl Supervisor {
    /// Lets the control socket have its turn, then tells those who wait what has come of it, and those who listen what has happened.
    pub(super) fn attend(&mut self, now: Instant) {
        let news = self.crew.news.take();
        let ended = std::mem::take(&mut self.crew.ended_rolls);
        let Some(mut control) = self.control.take() else { return };
        control.turn(self, now);
        for report in ended.iter().chain(&std::mem::take(&mut self.crew.ended_rolls)) {
            control.answer(report.id, answer_to(report));
        }
        for event in news.iter().chain(&self.crew.news.take()) {
            control.publish(event);
        }
        self.control = Some(control);
    }

    pub(super) fn control_due(&self) -> Option<Instant> {
        self.control.as_ref().and_then(ControlServer::due)
    }

    /// A pause that has lasted for as long as was asked ends.
    pub(super) fn end_pause(&mut self, now: Instant) {
        if self.pause_until.is_some_and(|until| until <= now) {
            self.crew.log.event(Level::Warn, "the pause has lasted as long as it may and ends", &[]);
            self.resume(now);
        }
    }

    fn scale(&mut self, change: Change, now: Instant) -> Answer {
        let wanted = self.fleet.wanted();
        let target = match change {
            Change::To(target) => i64::from(target),
            Change::By(more) => wanted as i64 + i64::from(more),
        };
        let (least, most) = self.worker_bounds();
        match usize::try_from(target) {
            Ok(target) if (least..=most).contains(&target) => {
                self.fleet.scale_to(target, "asked for", now, &mut self.crew);
                Answer::Done(json!({
                    "message": format!("{wanted} workers before, {target} now"), "from": wanted, "to": target
                }))
            }
            _ => Answer::refused(
                400,
                format!("{target} workers are asked for: expected {least} to {most}, there are {wanted}"),
            ),
        }
    }

    fn signal_workers(&mut self, worker: Option<u32>, signal: i32) -> Answer {
        let alive = |member: &&Member| worker.is_none_or(|number| number == member.number);
        let names: Vec<Name> = self.fleet.members().iter().filter(alive).map(|member| member.name).collect();
        if names.is_empty() {
            let known: Vec<String> = self.fleet.places().iter().map(|place| place.number.to_string()).collect();
            let message = match worker {
                Some(number) => format!("worker {number} does not run: expected one of {}", known.join(", ")),
                None => "no worker runs".to_owned(),
            };
            return Answer::refused(404, message);
        }
        for name in &names {
            self.crew.signal_leader(*name, signal);
        }
        Answer::Done(json!({
            "message": format!("SIG{} was sent to {} workers", signal_name(signal), names.len()), "workers": names.len()
        }))
    }

    /// HUP, and the word `reload`.
    pub(super) fn reload(&mut self, now: Instant) -> String {
        self.crew.log.reopen();
        format!("logs are reopened; {}", self.load_again(now).1)
    }

    /// Changed code reaches the workers, the way that was chosen for it. Only a worker that is ready is sent the signal: before, it
    /// may not have a handler for it, and be killed. The number of the roll that does it, if one does, and a sentence.
    pub(super) fn load_again(&mut self, now: Instant) -> (Option<u64>, String) {
        match self.crew.settings.app.hot_reload {
            _ if !self.starts_workers() => (None, "the app has no workers of its own".to_owned()),
            HotReload::None => (None, "hot reload is off (--hot-reload process or module)".to_owned()),
            HotReload::Process => {
                let roll = self.fleet.restart(now, &mut self.crew);
                (Some(roll), format!("rolling restart {roll} is under way"))
            }
            HotReload::Module => {
                let signal = self.crew.settings.app.reload_signal;
                let running = self.fleet.members().iter().filter(|member| member.is_running());
                let running: Vec<Name> = running.map(|member| member.name).collect();
                for name in &running {
                    self.crew.signal_leader(*name, signal);
                    self.fleet.reloaded(*name);
                }
                let (count, signal) = (running.len(), signal_name(signal));
                self.crew.tell(Level::Info, "reload", "workers load their code again", &[("workers", &count)]);
                (None, format!("{count} workers were sent SIG{signal} to load their code again"))
            }
        }
    }

    fn join(&mut self, join: Join, now: Instant) -> Answer {
        if let Err(error) = run_directory::check_length(&join.socket) {
            return Answer::refused(400, error.to_string());
        }
        let address = match SockAddr::unix(&join.socket) {
            Ok(address) => address,
            Err(error) => return Answer::refused(400, format!("{}: {error}", join.socket.display())),
        };
        if Probe::of_worker(address.clone(), now).look(now) != Look::Listening {
            let message = format!("nobody accepts connections at {}: listen first, then join", join.socket.display());
            return Answer::refused(400, message);
        }
        if let Some(name) = self.own_worker(&join) {
            if self.crew.settings.app.ready.by == ReadyBy::Join
                && self.fleet.member(name).is_some_and(Member::is_starting)
            {
                self.fleet.ready(name, now, &mut self.crew);
            }
            return Answer::done("welcome");
        }
        if self.crew.processes.iter().any(|process| process.number.to_string() == join.worker_id) {
            let message =
                format!("worker {} is one of this server's own: another workerId is expected", join.worker_id);
            return Answer::refused(400, message);
        }
        let before = self.guest(&join.worker_id);
        let name = self.fleet.next_name();
        let generation = self.fleet.generation();
        let target = Target {
            address,
            label: format!("{}.joined.{}", self.crew.settings.app.name, join.worker_id),
            unix: true,
            supervised: false,
            number: name.0 as u32,
            moves: Arc::new(Moves::new(now)),
        };
        if self.crew.guests.len() >= super::GUESTS + usize::from(before.is_some()) {
            return Answer::refused(503, format!("{} workers have joined, and no more may", super::GUESTS));
        }
        let Some(id) = self.crew.dispatch.add(target, generation, None) else {
            return Answer::refused(503, "there is no room for another worker just now");
        };
        self.crew.guests.push(Visitor { name, id, socket: join.socket });
        let version = join.version.as_ref().map_or_else(|| "none".to_owned(), ToString::to_string);
        let fields: [(&str, &dyn std::fmt::Display); 2] = [("worker", &join.worker_id), ("version", &version)];
        self.crew.tell(Level::Info, "worker-join", "a worker has joined", &fields);
        let guest = Guest { name, worker_id: join.worker_id, pid: join.pid, version: join.version, since: now };
        self.fleet.join(guest, now, &mut self.crew);
        // Only now, so that there is no moment without it: if it was the only worker, all who wait would be refused.
        if let Some(before) = before {
            self.dismiss(before, now);
        }
        Answer::done("welcome")
    }

    /// The worker of ours that joins, if it is one: it says its own number and socket.
    fn own_worker(&self, join: &Join) -> Option<Name> {
        let ours = |process: &&super::process::Process| {
            process.number.to_string() == join.worker_id && process.endpoint.path() == Some(join.socket.as_path())
        };
        self.crew.processes.iter().find(ours).map(|process| process.name)
    }

    fn guest(&self, worker_id: &str) -> Option<Name> {
        self.fleet.guests().iter().find(|guest| guest.worker_id == worker_id).map(|guest| guest.name)
    }

    fn quit(&mut self, worker_id: &str, now: Instant) -> Answer {
        if let Some(name) = self.guest(worker_id) {
            self.fleet.part(name, now, &mut self.crew);
            self.crew.tell(Level::Info, "worker-quit", "a worker has quit", &[("worker", &worker_id)]);
            // Forgotten when the last of its requests has ended.
            self.crew.drain(name, now);
            return Answer::done("farewell");
        }
        let ours = self.crew.processes.iter().find(|process| process.number.to_string() == worker_id);
        match ours.map(|process| process.name) {
            Some(name) => {
                self.fleet.leaving(name, now, &mut self.crew);
                Answer::done("farewell")
            }
            None => Answer::refused(404, format!("no worker {worker_id:?} has joined")),
        }
    }

    /// Forgets a guest that has left, or that refuses connections: nobody here can know whether it comes back. True if it was one.
    pub(super) fn dismiss(&mut self, name: Name, now: Instant) -> bool {
        let Some(position) = self.crew.guests.iter().position(|visitor| visitor.name == name) else { return false };
        if let Some(guest) = self.fleet.part(name, now, &mut self.crew) {
            let message = "a worker that had joined is gone";
            self.crew.tell(Level::Warn, "worker-gone", message, &[("worker", &guest.worker_id)]);
        }
        let visitor = self.crew.guests.swap_remove(position);
        self.crew.postboxes.broadcast(|| Message::Retire(self.crew.app, visitor.id));
        self.crew.dispatch.remove(visitor.id, now);
        true
    }

    fn restart_for(&mut self, wait: bool, now: Instant) -> Answer {
        let roll = self.fleet.restart(now, &mut self.crew);
        match wait {
            true => Answer::Wait(roll),
            false => Answer::Done(json!({ "message": format!("rolling restart {roll} is under way"), "roll": roll })),
        }
    }
}

impl Steward for Supervisor {
    fn carry_out(&mut self, command: Command, now: Instant) -> Answer {
        if let Some(refusal) = self.refusal(&command) {
            return refusal;
        }
        match command {
            Command::Status => Answer::Done(self.status_document(now).to_json()),
            Command::Restart { wait, .. } => self.restart_for(wait, now),
            Command::Scale { change, .. } => self.scale(change, now),
            Command::Signal { worker, signal, .. } => self.signal_workers(worker, signal),
            Command::Reload { .. } => Answer::done(self.reload(now)),
            Command::Drain => {
                self.begin_drain(now);
                Answer::done("the server takes no more connections, finishes what is in flight, and ends")
            }
            Command::Stop { now: at_once } => {
                self.begin_stop(now);
                if at_once {
                    self.begin_stop(now);
                }
                Answer::done("the server stops")
            }
            Command::Pause { max, .. } => {
                self.pause(now + max);
                Answer::done(format!("requests are held, for {} s at most", max.as_secs_f32()))
            }
            Command::Resume { .. } => {
                let waiting = self.resume(now);
                Answer::Done(json!({ "message": format!("{waiting} requests were held and go on"), "held": waiting }))
            }
            Command::Events => Answer::Stream,
            Command::Join(join) => self.join(join, now),
            Command::Quit { worker_id } => self.quit(&worker_id, now),
        }
    }
}

/// What cannot be done as things are.
impl Supervisor {
    fn refusal(&self, command: &Command) -> Option<Answer> {
        let name = self.crew.settings.app.name.as_str();
        let app = match command {
            Command::Restart { app, .. }
            | Command::Scale { app, .. }
            | Command::Signal { app, .. }
            | Command::Reload { app }
            | Command::Pause { app, .. }
            | Command::Resume { app } => app.as_deref(),
            _ => None,
        };
        if let Some(app) = app.filter(|app| *app != name) {
            return Some(Answer::unknown_app(app, &[name]));
        }
        let own = matches!(command, Command::Restart { .. } | Command::Scale { .. } | Command::Signal { .. });
        if own && !self.starts_workers() {
            return Some(Answer::refused(409, format!("the app {name} has no workers that this server starts")));
        }
        let harmless = matches!(
            command,
            Command::Status | Command::Events | Command::Stop { .. } | Command::Signal { .. } | Command::Quit { .. }
        );
        if self.stop.is_some() && !harmless {
            return Some(Answer::refused(409, "the server stops"));
        }
        if matches!(command, Command::Join(_)) && self.crew.settings.app.respond.is_some() {
            return Some(Answer::refused(409, "the loops answer every request themselves (--respond)"));
        }
        None
    }
}

fn answer_to(report: &RollReport) -> Answer {
    match &report.end {
        RollEnd::Done => Answer::Done(json!({
            "message": format!("rolling restart {} is done: {} of {} workers are new", report.id, report.done, report.total),
            "roll": report.id,
            "generation": report.generation,
        })),
        RollEnd::Aborted { reason, last_lines } => {
            let said = if last_lines.is_empty() { String::new() } else { format!("; its last words: {last_lines}") };
            let message =
                format!("rolling restart {} was aborted, the old workers serve on: {reason}{said}", report.id);
            Answer::refused(409, message)
        }
    }
}
