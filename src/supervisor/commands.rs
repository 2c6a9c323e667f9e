//! What the control socket asks for, carried out: which apps it is about, and what each does.
//!
//! Every command is checked whole before anything changes, and none waits: a restart that is waited for is answered by a later turn.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::unit::Unit;
use super::{AppState, Hooks, Supervisor};
use crate::config::{HotReload, signal_name};
use crate::control::{Answer, Change, Command, CommandHandler, ControlServer};
use crate::fleet::{Member, Name};
use crate::hub::{Refused, wire};
use crate::log::Level;
use crate::mailbox::Message;

impl Supervisor {
    /// Lets the control socket have its turn, then tells those who wait what has come of it, and those who listen what has happened.
    pub(super) fn serve_control(&mut self, hooks: &mut Hooks<'_>, now: Instant) {
        if let Some(mut control) = self.control.take() {
            control.turn(&mut Handler { supervisor: self, hooks }, now);
            self.control = Some(control);
        }
        for index in 0..self.units.len() {
            let unit = &mut self.units[index];
            for report in std::mem::take(&mut unit.processes.events.ended_rolls) {
                let answers = self.tickets.ended(self.units[index].id(), self.units[index].name(), &report);
                self.answer(answers);
            }
        }
        for index in 0..self.units.len() {
            let unit = &self.units[index];
            if !self.tickets.awaits_start(unit.id()) {
                continue;
            }
            let serves = !unit.starts_workers() || unit.ready_workers() > 0;
            if serves || unit.state() == AppState::Failed {
                let answers = self.tickets.started(unit.id(), unit.name(), serves);
                self.answer(answers);
            }
        }
        let answers = std::mem::take(&mut self.upgrades.answers);
        self.answer(answers);
        let events = self.context.events.take();
        if let Some(control) = &mut self.control {
            events.iter().for_each(|event| control.publish(event));
        }
    }

    /// Answers those who wait.
    pub(super) fn answer(&mut self, answers: Vec<(u64, Answer)>) {
        let Some(control) = &mut self.control else { return };
        answers.into_iter().for_each(|(ticket, answer)| control.answer(ticket, answer));
    }

    pub(super) fn control_due(&self) -> Option<Instant> {
        self.control.as_ref().and_then(ControlServer::due)
    }

    /// The apps that are not about to leave, with their places.
    fn serving(&self) -> impl Iterator<Item = (usize, &Unit)> {
        self.units.iter().enumerate().filter(|(_, unit)| unit.leaving.is_none())
    }

    /// The place of the app of that name; `None`: none was named.
    fn find(&self, app: Option<&str>) -> Result<Option<usize>, Answer> {
        let Some(app) = app else { return Ok(None) };
        let found = self.serving().find(|(_, unit)| unit.name() == app).map(|(index, _)| index);
        let names = || self.serving().map(|(_, unit)| unit.name()).collect::<Vec<_>>();
        found.map(Some).ok_or_else(|| Answer::unknown_app(app, &names()))
    }

    /// The app of that name, or the only one.
    fn find_one(&self, app: Option<&str>) -> Result<usize, Answer> {
        let mut serving = self.serving().map(|(index, _)| index);
        match (self.find(app)?, serving.next(), serving.next()) {
            (Some(index), ..) | (None, Some(index), None) => Ok(index),
            (None, None, _) => Err(Answer::refused(409, "the server has no app")),
            (None, Some(_), Some(_)) => {
                let names: Vec<&str> = self.serving().map(|(_, unit)| unit.name()).collect();
                Err(Answer::refused(400, format!("there are several apps: expected one of {}", names.join(", "))))
            }
        }
    }

    /// The app of that name, or all; those that have workers of this server's, where there must be any.
    fn find_with_workers(&self, app: Option<&str>) -> Result<Vec<usize>, Answer> {
        let asked = self.find(app)?;
        let is_meant = |index: &usize| asked.is_none_or(|asked| asked == *index) && self.units[*index].starts_workers();
        let found: Vec<usize> = self.serving().map(|(index, _)| index).filter(is_meant).collect();
        if found.is_empty() {
            let names: Vec<&str> = match asked {
                Some(index) => vec![self.units[index].name()],
                None => self.serving().map(|(_, unit)| unit.name()).collect(),
            };
            let message = match &names[..] {
                [name] => format!("the app {name} has no workers that this server starts"),
                _ => "no app has workers that this server starts".to_owned(),
            };
            return Err(Answer::refused(409, message));
        }
        Ok(found)
    }

    fn restart(&mut self, app: Option<&str>, wait: bool, now: Instant) -> Result<Answer, Answer> {
        let mut rolls = Vec::new();
        for index in self.find_with_workers(app)? {
            let unit = &mut self.units[index];
            rolls.push((index, unit.fleet.restart(now, &mut unit.processes)));
        }
        if wait {
            let rolls = rolls.into_iter().map(|(index, roll)| (self.units[index].id(), roll)).collect();
            return Ok(Answer::Wait(self.tickets.open(rolls)));
        }
        if let [(_, roll)] = rolls[..] {
            return Ok(Answer::Done(
                json!({ "message": format!("rolling restart {roll} is under way"), "roll": roll }),
            ));
        }
        let name = |index: usize| self.units[index].name().to_owned();
        let by_app: Map<String, Value> = rolls.iter().map(|(index, roll)| (name(*index), json!(roll))).collect();
        let names: Vec<String> = rolls.iter().map(|(index, _)| name(*index)).collect();
        let message = format!("rolling restarts of {} are under way", names.join(", "));
        Ok(Answer::Done(json!({ "message": message, "rolls": by_app })))
    }

    fn signal(&mut self, app: Option<&str>, worker: Option<u32>, signal: i32) -> Result<Answer, Answer> {
        let chosen = match worker {
            // Each app has a worker of that number.
            Some(_) => {
                let index = self.find_one(app)?;
                self.find_with_workers(Some(self.units[index].name()))?
            }
            None => self.find_with_workers(app)?,
        };
        let mut sent = 0;
        for index in &chosen {
            match self.units[*index].signal_workers(worker, signal) {
                Err(refusal) if chosen.len() == 1 => return Err(refusal),
                Err(_) => {}
                Ok(count) => sent += count,
            }
        }
        Ok(Answer::Done(json!({
            "message": format!("SIG{} was sent to {sent} workers", signal_name(signal)), "workers": sent
        })))
    }

    fn pause(&mut self, app: Option<&str>, max: Duration, now: Instant) -> Result<Answer, Answer> {
        let asked = self.find(app)?;
        if self.upgrades.is_under_way() {
            return Err(Answer::refused(409, "the server is being handed over: pause when that is done"));
        }
        for (index, unit) in self.units.iter_mut().enumerate() {
            if unit.leaving.is_none() && asked.is_none_or(|asked| asked == index) {
                unit.pause(now + max);
            }
        }
        Ok(Answer::done(format!("requests are held, for {} s at most", max.as_secs_f32())))
    }

    fn resume(&mut self, app: Option<&str>, now: Instant) -> Result<Answer, Answer> {
        let asked = self.find(app)?;
        let meant = self.units.iter_mut().enumerate().filter(|(index, _)| asked.is_none_or(|asked| asked == *index));
        let waiting: usize = meant.map(|(_, unit)| unit.resume(now)).sum();
        Ok(Answer::Done(json!({ "message": format!("{waiting} requests were held and go on"), "held": waiting })))
    }

    /// The app of which a worker of that id has joined, or whose own worker has it; where none has, the app that it names, or the only one.
    fn find_of_worker(&self, app: Option<&str>, worker_id: &str) -> Result<usize, Answer> {
        let mut known = self.serving().filter(|(_, unit)| unit.has_joined(worker_id)).map(|(index, _)| index);
        match (app, known.next(), known.next()) {
            (None, Some(index), None) => Ok(index),
            _ => self.find_one(app),
        }
    }

    /// The same for a worker that this server has not started: the new server does not hear of it any more that takes over at any moment.
    fn find_of_stranger(&self, app: Option<&str>, worker_id: &str) -> Result<usize, Answer> {
        match self.upgrades.is_going() {
            true => Err(Answer::refused(503, "another server takes over at this moment: tell that one")),
            false => self.find_of_worker(app, worker_id),
        }
    }

    /// Publishes in a hub: the one that is named, or the only one.
    pub(super) fn notify(&self, body: &[u8], now: Instant) -> Result<Answer, Answer> {
        let Some(metrics) = self.observed.as_ref().map(|observed| &observed.about.metrics) else {
            return Err(Answer::refused(503, "no hub is known here"));
        };
        let notice = wire::notify(body).map_err(|reason| Answer::refused(400, reason))?;
        let hubs = metrics.hubs().all();
        let names: Vec<String> = hubs.iter().map(|hub| hub.settings().name.clone()).collect();
        let at = match (&notice.hub, &names[..]) {
            (Some(name), names) => names.iter().position(|known| known == name),
            (None, [_]) => Some(0),
            (None, _) => None,
        };
        let Some(hub) = at.and_then(|at| hubs.get(at)) else {
            let known = if names.is_empty() {
                "there is no hub".to_owned()
            } else {
                format!("hub: expected one of {}", names.join(", "))
            };
            return Err(Answer::refused(404, known));
        };
        let (payload, id) = (notice.payload(), notice.id.as_deref());
        let refuse =
            |refused: Refused| Answer::refused(if refused == Refused::Moved { 503 } else { 422 }, refused.to_string());
        let published = match hub.publish(metrics.hubs().since(now), &notice.topic, payload, id) {
            Err(Refused::Carried) => {
                // The supervisor waits for nobody.
                hub.carry(&notice.topic, payload, id, &[], Box::new(|_| ())).map_err(refuse)?;
                return Ok(Answer::Done(serde_json::json!({ "carried": true })));
            }
            published => published.map_err(refuse)?,
        };
        for topic in hub.find(&notice.topic).iter() {
            for loop_index in published.tell.iter() {
                self.context.postboxes.post(loop_index, Message::Published(topic.clone()));
            }
        }
        let document = serde_json::from_str(&wire::published(&published));
        Ok(Answer::Done(document.unwrap_or_default()))
    }

    fn carry_out(&mut self, command: Command, hooks: &mut Hooks<'_>, now: Instant) -> Result<Answer, Answer> {
        let harmless = matches!(
            command,
            Command::Status | Command::Events | Command::Stop { .. } | Command::Signal { .. } | Command::Quit { .. }
        );
        if self.stop.is_some() && !harmless {
            self.find(command.app())?;
            return Err(Answer::refused(409, "the server stops"));
        }
        Ok(match command {
            Command::Status => Answer::Done(self.fresh_status(now).to_json()),
            Command::Restart { app, wait } => self.restart(app.as_deref(), wait, now)?,
            Command::Scale { app, change } => {
                let index = self.find_one(app.as_deref())?;
                self.find_with_workers(Some(self.units[index].name()))?;
                self.units[index].scale(change, now)
            }
            Command::Signal { app, worker, signal } => self.signal(app.as_deref(), worker, signal)?,
            Command::Reload { app, wait } => {
                let app = self.find(app.as_deref())?;
                if app.is_none() && self.upgrades.is_under_way() {
                    return Err(Answer::refused(409, "the server is being handed over: reload when that is done"));
                }
                match self.reload(app, hooks, now) {
                    Ok(done) if wait && !(done.rolls.is_empty() && done.added.is_empty()) => {
                        Answer::Wait(self.tickets.open_reload(done.message, done.rolls, &done.added))
                    }
                    Ok(done) => Answer::done(done.message),
                    Err(reason) => Answer::refused(422, reason),
                }
            }
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
            Command::Pause { app, max } => self.pause(app.as_deref(), max, now)?,
            Command::Resume { app } => self.resume(app.as_deref(), now)?,
            Command::Upgrade { program, wait } => self.upgrade(program, wait, now),
            Command::Events => Answer::Stream,
            Command::Notify(body) => self.notify(&body, now)?,
            Command::Join(join) => {
                let own = self.serving().find(|(_, unit)| unit.own_worker(&join).is_some()).map(|(index, _)| index);
                let index = own.map_or_else(|| self.find_of_stranger(join.app.as_deref(), &join.worker_id), Ok)?;
                let unit = &mut self.units[index];
                if unit.is_answered_by_loops() {
                    return Err(Answer::refused(
                        409,
                        "the loops answer every request themselves (--respond, --static)",
                    ));
                }
                unit.join(join, now)
            }
            Command::Quit { worker_id, app } => {
                let own = self.find_of_worker(app.as_deref(), &worker_id)?;
                let is_own = !self.units[own].is_joined(&worker_id);
                let index = if is_own { own } else { self.find_of_stranger(app.as_deref(), &worker_id)? };
                self.units[index].quit(&worker_id, now)
            }
        })
    }
}

impl Unit {
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

    /// Sends a signal to all workers, or that one; how many those are.
    fn signal_workers(&mut self, worker: Option<u32>, signal: i32) -> Result<usize, Answer> {
        let alive = |member: &&Member| worker.is_none_or(|number| number == member.number);
        let names: Vec<Name> = self.fleet.members().iter().filter(alive).map(|member| member.name).collect();
        if names.is_empty() {
            let known: Vec<String> = self.fleet.places().iter().map(|place| place.number.to_string()).collect();
            let message = match worker {
                Some(number) => format!("worker {number} does not run: expected one of {}", known.join(", ")),
                None => "no worker runs".to_owned(),
            };
            return Err(Answer::refused(404, message));
        }
        for name in &names {
            self.processes.signal_leader(*name, signal);
        }
        Ok(names.len())
    }

    /// Changed code reaches the workers, the way that was chosen for it. Only a worker that is ready is sent the signal: before, it
    /// may not have a handler for it, and be killed. The number of the roll that does it, if one does, and a sentence.
    pub(super) fn load_again(&mut self, now: Instant) -> (Option<u64>, String) {
        match self.app().reload.by {
            _ if !self.starts_workers() => (None, "the app has no workers of its own".to_owned()),
            HotReload::None => (None, "hot reload is off (--hot-reload process or module)".to_owned()),
            HotReload::Process => {
                let roll = self.fleet.restart(now, &mut self.processes);
                (Some(roll), format!("rolling restart {roll} is under way"))
            }
            HotReload::Module => {
                let signal = self.app().reload.signal;
                let running = self.fleet.members().iter().filter(|member| member.is_running());
                let running: Vec<Name> = running.map(|member| member.name).collect();
                for name in &running {
                    self.processes.signal_leader(*name, signal);
                    self.fleet.reloaded(*name);
                }
                let (count, signal) = (running.len(), signal_name(signal));
                let message = "workers load their code again";
                self.processes.events.emit(Level::Info, "reload", message, &[("workers", &count)]);
                (None, format!("{count} workers were sent SIG{signal} to load their code again"))
            }
        }
    }
}

/// The supervisor while the control socket has its turn.
struct Handler<'a, 'b> {
    supervisor: &'a mut Supervisor,
    hooks: &'a mut Hooks<'b>,
}

impl CommandHandler for Handler<'_, '_> {
    fn carry_out(&mut self, command: Command, now: Instant) -> Answer {
        self.supervisor.carry_out(command, self.hooks, now).unwrap_or_else(|refusal| refusal)
    }
}
