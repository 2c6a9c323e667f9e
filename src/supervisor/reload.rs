//! A new configuration while the server runs: what of it is the supervisor's.
//!
//! Everything that can fail is done by [`Supervisor::prepare`], which changes nothing; [`Supervisor::apply`] cannot fail. What is told to
//! the loops beside it is the caller's.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::spawn::Launcher;
use super::unit::Unit;
use super::upgrade::Held;
use super::watch::own_files;
use super::{AppSetup, Hooks, StartError, Supervisor};
use crate::config::{self, HotReload, Settings};
use crate::control::status;
use crate::dispatch::AppId;
use crate::log::Level;

/// What a reload does beside reopening the logs and having changed code loaded; or why it changes nothing. It may add, change and remove
/// apps and listeners.
pub type Reload<'a> = Box<dyn FnMut(&mut Supervisor, Instant) -> Result<Reloaded, String> + 'a>;

/// What a reload has changed.
#[derive(Debug, Default)]
pub struct Reloaded {
    /// Each change in one line, for people.
    pub lines: Vec<String>,
    /// What metrics do not tell apart, and why the next process could not start, each in one line, for people.
    pub warnings: Vec<String>,
    /// Rolling restarts that it has begun.
    pub rolls: Vec<(AppId, u64)>,
    /// Apps that are new.
    pub added: Vec<AppId>,
}

/// What a reload has come to, code that was loaded again included.
pub(super) type Outcome = Result<Done, String>;

/// What a reload has done.
pub(super) struct Done {
    /// In one line, and the changes in further ones.
    pub message: String,
    pub rolls: Vec<(AppId, u64)>,
    pub added: Vec<AppId>,
}

/// What is to become of the supervisor's part.
#[derive(Debug)]
pub struct Wanted {
    /// The server's settings, as they are to hold.
    pub settings: Arc<Settings>,
    /// Apps that are to come; their ids are new.
    pub added: Vec<AppSetup>,
    /// Apps that stay, with new settings.
    pub changed: Vec<(AppId, Arc<config::App>)>,
    /// Apps that are to go.
    pub removed: Vec<AppId>,
}

/// The same, with nothing left that could fail.
pub struct Prepared {
    settings: Arc<Settings>,
    added: Vec<Unit>,
    changed: Vec<(AppId, Arc<config::App>, Option<Launcher>)>,
    removed: Vec<AppId>,
}

impl Supervisor {
    /// Makes everything that a new configuration takes. Nothing has changed when this fails, nor when what it returns is dropped.
    ///
    /// # Errors
    /// When a command cannot be run, paths of sockets are too long, the kernel refuses, or an app would be another one of the same name.
    pub fn prepare(&self, wanted: Wanted, now: Instant) -> Result<Prepared, StartError> {
        let Wanted { settings, added, changed, removed } = wanted;
        let mut ready = Prepared { settings, added: Vec::new(), changed: Vec::new(), removed };
        for (id, app) in changed {
            if let Some(unit) = self.units.iter().find(|unit| unit.id() == id && unit.leaving.is_none()) {
                let launcher = unit.prepare(&app)?;
                ready.changed.push((id, app, launcher));
            }
        }
        for app in added {
            ready.added.push(Unit::new(app, &self.context, now)?);
        }
        Ok(ready)
    }

    /// Lets it hold: the rolls that have begun. To be called when the loops have their new table.
    pub fn apply(&mut self, prepared: Prepared, now: Instant) -> Vec<(AppId, u64)> {
        let Prepared { settings, added, changed, removed } = prepared;
        let files_move = own_files(&settings) != own_files(&self.context.settings());
        self.context.set_settings(settings);
        let mut rolls = Vec::new();
        for (id, app, launcher) in changed {
            if let Some(unit) = self.units.iter_mut().find(|unit| unit.id() == id) {
                rolls.extend(unit.adopt(app, launcher, now).map(|roll| (id, roll)));
            }
        }
        removed.into_iter().for_each(|id| self.remove(id, now));
        added.into_iter().for_each(|unit| self.take_in(unit));
        if files_move {
            self.units.iter_mut().filter(|unit| unit.leaving.is_none()).for_each(Unit::watch_files);
        }
        rolls
    }

    /// From now on these are kept for a successor, too; `again`: and those that were to be closed and are not yet.
    pub fn hold(&mut self, listeners: Vec<Held>, again: &[u32]) {
        self.upgrades.holdings.listeners.extend(listeners);
        self.upgrades.holdings.revive(again);
    }

    /// From now on a successor must find that configuration file.
    pub fn is_configured_by(&mut self, path: Option<&Path>) {
        self.upgrades.holdings.configuration = path.map(Path::to_owned);
    }

    /// Listeners that are to be closed and still have their sockets.
    pub fn closing(&self) -> impl Iterator<Item = &Held> {
        self.upgrades.holdings.retired.iter().map(|retired| &retired.held).filter(|held| !held.sockets.is_empty())
    }

    /// Lets go of listeners: nobody new gets in, who waits in their backlog is accepted, then the loops close them.
    pub fn close_listeners(&mut self, ids: &[u32], now: Instant) {
        self.upgrades.holdings.retire(ids, now);
        self.advance_listeners(now);
    }

    /// Has the loops close listeners whose backlog is empty.
    pub(super) fn advance_listeners(&mut self, now: Instant) {
        for (id, address, left) in self.upgrades.holdings.quiet(now) {
            self.context.postboxes.broadcast(|| crate::mailbox::Message::CloseListener(id));
            let fields: [(&str, &dyn std::fmt::Display); 1] = [("address", &address)];
            let events = &self.context.events;
            if left {
                let message = "a listener closes, although clients wait that could not be accepted";
                events.emit(Level::Warn, "listener-closed", message, &fields);
            } else {
                events.emit(Level::Info, "listener-closed", "a listener is closed", &fields);
            }
        }
    }

    /// HUP, and the word `reload`: of one app, where it is named. An error says why nothing has changed.
    pub(super) fn reload(&mut self, app: Option<usize>, hooks: &mut Hooks<'_>, now: Instant) -> Outcome {
        // A server that starts is ready when its workers are.
        let told_ready = self.service.told_ready;
        if told_ready {
            self.service.manager.reloading(now);
        }
        let done = self.reload_now(app, hooks, now);
        if told_ready {
            self.service.manager.ready(now);
        }
        done
    }

    fn reload_now(&mut self, app: Option<usize>, hooks: &mut Hooks<'_>, now: Instant) -> Outcome {
        self.context.log.reopen();
        self.mend_pid_file();
        let mut done = vec!["logs are being reopened".to_owned()];
        let mut changed = Reloaded::default();
        if let (Some(reload), None) = (&mut hooks.reload, app) {
            let outcome = reload(self, now);
            self.remember(&outcome);
            changed = outcome?;
            match changed.lines.len() {
                0 => done.push("the configuration is as it was".to_owned()),
                1 => done.push("1 change of the configuration".to_owned()),
                count => done.push(format!("{count} changes of the configuration")),
            }
        }
        let mut rolls = changed.rolls;
        let several = app.is_none() && self.units.iter().filter(|unit| unit.leaving.is_none()).count() > 1;
        for (index, unit) in self.units.iter_mut().enumerate() {
            let id = unit.id();
            let is_fresh = rolls.iter().any(|(rolled, _)| *rolled == id) || changed.added.contains(&id);
            if unit.leaving.is_some() || is_fresh || app.is_some_and(|app| app != index) {
                continue;
            }
            if app.is_none()
                && let Some(roll) = unit.catch_up(now)
            {
                rolls.push((id, roll));
                let line = "workers that still have older settings are replaced";
                done.push(if several { format!("{}: {line}", unit.name()) } else { line.to_owned() });
                continue;
            }
            // Where nobody has asked for it, nothing is said of it.
            if app.is_none() && unit.app().reload.by == HotReload::None && hooks.reload.is_some() {
                continue;
            }
            let (roll, line) = unit.load_again(now);
            rolls.extend(roll.map(|roll| (id, roll)));
            done.push(if several { format!("{}: {line}", unit.name()) } else { line });
        }
        let mut message = done.join("; ");
        for line in &changed.lines {
            message.push_str("\n  ");
            message.push_str(line);
        }
        for warning in &changed.warnings {
            message.push_str("\n  warning: ");
            message.push_str(warning);
        }
        Ok(Done { message, rolls, added: changed.added })
    }

    /// What the status document says of the last reload of the configuration, and what the log does.
    fn remember(&mut self, outcome: &Result<Reloaded, String>) {
        let (reload, level, message) = match outcome {
            Ok(reloaded) => {
                let changes = reloaded.lines.clone();
                (status::Reload { changes, ..status::Reload::default() }, Level::Info, "the configuration is reloaded")
            }
            Err(reason) => {
                let reason = Some(reason.clone());
                let failed = status::Reload { state: status::ReloadState::Failed, reason, ..status::Reload::default() };
                (failed, Level::Error, "the configuration cannot be reloaded; nothing has changed")
            }
        };
        for change in &reload.changes {
            self.context.log.event(Level::Info, "configuration changed", &[("change", change)]);
        }
        let mut fields: Vec<(&str, &dyn std::fmt::Display)> = Vec::new();
        let count = reload.changes.len();
        match &reload.reason {
            Some(reason) => fields.push(("error", reason)),
            None => fields.push(("changes", &count)),
        }
        self.context.events.emit(level, "configuration", message, &fields);
        if let Some(observed) = &mut self.observed {
            observed.reload = Some(status::Reload { at: crate::log::timestamp(), ..reload });
        }
    }
}
