//! What the service manager is told, and when: this server's part in systemd's protocol, whose words are in `crate::systemd`.
//!
//! The watchdog's sign of life is that of the loops: each is asked to answer, and the next sign is sent only when all have. A supervisor that
//! hangs sends none either.

use std::time::Instant;

use super::heartbeat::turning;
use super::unit::Unit;
use super::{AppState, Supervisor};
use crate::systemd::Manager;

/// This server as the manager's service.
#[derive(Debug, Default)]
pub(super) struct Service {
    pub manager: Manager,
    /// The last beat that the loops were asked for on its behalf.
    beat: u64,
    /// The manager is still to be asked for.
    is_new: bool,
    pub told_ready: bool,
}

impl Service {
    /// `managed`: whether the manager that has started this process is told about it.
    pub fn new(managed: bool) -> Service {
        Service { is_new: managed, ..Service::default() }
    }
}

impl Supervisor {
    /// Tells the manager what has changed, and that the server lives.
    pub(super) fn tell_manager(&mut self, now: Instant) {
        if self.upgrades.is_silent() || self.upgrades.is_handed_over() {
            return;
        }
        if std::mem::take(&mut self.service.is_new) {
            let (manager, trouble) = Manager::of(&|name| std::env::var_os(name), now);
            self.service.manager = manager;
            if let Some(trouble) = trouble {
                self.context.log.event(crate::log::Level::Warn, trouble, &[]);
            }
        }
        if !self.service.manager.is_there() {
            return;
        }
        let serves = self.serves();
        match (&self.stop, self.service.told_ready) {
            (Some(_), _) => self.service.manager.wait_for_us(now),
            (None, false) if serves => {
                self.service.told_ready = true;
                self.service.manager.ready(now);
            }
            // Where nothing more is to be expected, the manager's own patience ends the start.
            (None, false) if !self.has_decided() => self.service.manager.wait_for_us(now),
            (None, false) => {}
            (None, true) => {}
        }
        self.service.manager.status(self.line_about_us(), now);
        let Some(observed) = &mut self.observed else { return };
        // Loops that are told to end answer nothing more.
        let alive =
            self.stop.is_some() || turning(&observed.about.metrics, self.service.beat).into_iter().all(|turns| turns);
        if self.service.manager.turn(alive, now) {
            self.service.beat = observed.heartbeat.ask(&self.context.postboxes);
        }
    }

    /// Whether the first requests would be answered: by workers of ours, or as far as that is nothing that this server can bring about. An
    /// app that has given up keeps those that serve from nobody.
    fn serves(&self) -> bool {
        let serves = |unit: &Unit| !unit.starts_workers() || unit.fleet.ever_ready();
        let mut required = self.units.iter().filter(|unit| unit.processes.app.required).peekable();
        self.has_decided() && (required.peek().is_none() || required.any(serves))
    }

    /// Whether each app that is waited for has been ready, or has given up.
    fn has_decided(&self) -> bool {
        let mut required = self.units.iter().filter(|unit| unit.processes.app.required);
        required.all(|unit| !unit.starts_workers() || unit.fleet.ever_ready() || unit.state() == AppState::Failed)
    }

    fn line_about_us(&self) -> String {
        if self.stop.is_some() {
            return "stopping: requests may finish".to_owned();
        }
        let own = || self.units.iter().filter(|unit| unit.starts_workers());
        let (ready, wanted) =
            own().fold((0, 0), |(ready, wanted), unit| (ready + unit.ready_workers(), wanted + unit.fleet.wanted()));
        if wanted == 0 { "serving".to_owned() } else { format!("{ready} of {wanted} workers ready") }
    }
}
