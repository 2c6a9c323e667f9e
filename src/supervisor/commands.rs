//! What the control socket asks for, carried out.
//!
//! Every command is checked whole before anything changes, and none waits: a restart that is waited for is answered by a later turn.

use std::time::Instant;

use serde_json::json;

use super::Supervisor;
use crate::config::{HotReload, signal_name};
use crate::control::{Answer, Change, Command, CommandHandler, ControlServer};
use crate::fleet::{Member, Name, RollEnd, RollReport};
use crate::log::Level;

impl Supervisor {
    /// Lets the control socket have its turn, then tells those who wait what has come of it, and those who listen what has happened.
    pub(super) fn serve_control(&mut self, now: Instant) {
        let events = self.processes.events.take();
        let ended = std::mem::take(&mut self.processes.events.ended_rolls);
        let Some(mut control) = self.control.take() else { return };
        control.turn(self, now);
        for report in ended.iter().chain(&std::mem::take(&mut self.processes.events.ended_rolls)) {
            control.answer(report.id, answer_to(report));
        }
        for event in events.iter().chain(&self.processes.events.take()) {
            control.publish(event);
        }
        self.control = Some(control);
    }

    pub(super) fn control_due(&self) -> Option<Instant> {
        self.control.as_ref().and_then(ControlServer::due)
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
                self.fleet.scale_to(target, "asked for", now, &mut self.processes);
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
            self.processes.signal_leader(*name, signal);
        }
        Answer::Done(json!({
            "message": format!("SIG{} was sent to {} workers", signal_name(signal), names.len()), "workers": names.len()
        }))
    }

    /// HUP, and the word `reload`.
    pub(super) fn reload(&mut self, now: Instant) -> String {
        self.processes.log.reopen();
        format!("logs are reopened; {}", self.load_again(now).1)
    }

    /// Changed code reaches the workers, the way that was chosen for it. Only a worker that is ready is sent the signal: before, it
    /// may not have a handler for it, and be killed. The number of the roll that does it, if one does, and a sentence.
    pub(super) fn load_again(&mut self, now: Instant) -> (Option<u64>, String) {
        match self.processes.settings.app.hot_reload {
            _ if !self.starts_workers() => (None, "the app has no workers of its own".to_owned()),
            HotReload::None => (None, "hot reload is off (--hot-reload process or module)".to_owned()),
            HotReload::Process => {
                let roll = self.fleet.restart(now, &mut self.processes);
                (Some(roll), format!("rolling restart {roll} is under way"))
            }
            HotReload::Module => {
                let signal = self.processes.settings.app.reload_signal;
                let running = self.fleet.members().iter().filter(|member| member.is_running());
                let running: Vec<Name> = running.map(|member| member.name).collect();
                for name in &running {
                    self.processes.signal_leader(*name, signal);
                    self.fleet.reloaded(*name);
                }
                let (count, signal) = (running.len(), signal_name(signal));
                self.processes.events.emit(
                    Level::Info,
                    "reload",
                    "workers load their code again",
                    &[("workers", &count)],
                );
                (None, format!("{count} workers were sent SIG{signal} to load their code again"))
            }
        }
    }

    fn restart_for(&mut self, wait: bool, now: Instant) -> Answer {
        let roll = self.fleet.restart(now, &mut self.processes);
        match wait {
            true => Answer::Wait(roll),
            false => Answer::Done(json!({ "message": format!("rolling restart {roll} is under way"), "roll": roll })),
        }
    }
}

impl CommandHandler for Supervisor {
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
        let name = self.processes.settings.app.name.as_str();
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
        if matches!(command, Command::Join(_)) && self.processes.settings.app.respond.is_some() {
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
