//! What the service manager is told, and when: this server's part in systemd's protocol, whose words are in `crate::systemd`.
//!
//! The watchdog's sign of life is that of the loops: each is asked to answer, and the next sign is sent only when all have. A supervisor that
//! hangs sends none either.

use std::time::Instant;

use super::Supervisor;
use crate::mailbox::{Message, Postboxes};
use crate::metrics::Metrics;
use crate::systemd::Manager;

/// What each loop had answered when it was asked last.
#[derive(Debug, Default)]
struct Heartbeat(Vec<u64>);

/// This server as the manager's service.
#[derive(Debug, Default)]
pub(super) struct Service {
    pub manager: Manager,
    heartbeat: Heartbeat,
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

impl Heartbeat {
    /// Whether all loops have answered since they were asked. Before that nobody is missing.
    fn is_whole(&self, metrics: &Metrics) -> bool {
        metrics.loops().zip(&self.0).all(|(counters, asked)| counters.beats.value() > *asked)
    }

    fn ask(&mut self, metrics: &Metrics, postboxes: &Postboxes) {
        self.0 = metrics.loops().map(|counters| counters.beats.value()).collect();
        postboxes.broadcast(|| Message::Beat);
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
            (None, false) => self.service.manager.wait_for_us(now),
            (None, true) => {}
        }
        self.service.manager.status(self.line_about_us(), now);
        let Some(metrics) = self.observed.as_ref().map(|observed| &observed.about.metrics) else { return };
        // Loops that are told to end answer nothing more.
        let alive = self.stop.is_some() || self.service.heartbeat.is_whole(metrics);
        if self.service.manager.turn(alive, now) {
            self.service.heartbeat.ask(metrics, &self.context.postboxes);
        }
    }

    /// Whether the first requests would be answered: by workers of ours, or as far as that is nothing that this server can bring about.
    fn serves(&self) -> bool {
        let mut waited_for = self.units.iter().filter(|unit| unit.processes.app.required);
        waited_for.all(|unit| !unit.starts_workers() || unit.fleet.ever_ready())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loop_that_does_not_answer_is_enough() {
        let metrics = Metrics::new(2);
        let postboxes = Postboxes::new(Vec::new());
        let mut heartbeat = Heartbeat::default();
        assert!(heartbeat.is_whole(&metrics), "nobody was asked");
        heartbeat.ask(&metrics, &postboxes);
        assert!(!heartbeat.is_whole(&metrics));
        metrics.of_loop(0).beats.add(1);
        assert!(!heartbeat.is_whole(&metrics), "the second loop is silent");
        metrics.of_loop(1).beats.add(1);
        assert!(heartbeat.is_whole(&metrics));
        heartbeat.ask(&metrics, &postboxes);
        assert!(!heartbeat.is_whole(&metrics), "an old answer is none to a new question");
    }
}
