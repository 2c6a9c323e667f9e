//! A pause: requests are held back, and let go again in steps, so that they do not reach the workers all at once.

use std::time::Instant;

use super::unit::Unit;
use crate::fleet::Release;
use crate::log::Level;

/// Whether requests are held, and who is still to be let go.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// When the pause ends by itself, while there is one.
    until: Option<Instant>,
    /// Those who waited are let go.
    release: Option<Release>,
}

impl Pause {
    /// When something is to be done.
    pub fn due(&self) -> Option<Instant> {
        self.until.into_iter().chain(self.release.as_ref().map(Release::due)).min()
    }
}

impl Unit {
    /// Holds requests back.
    pub(super) fn pause(&mut self, until: Instant) {
        self.processes.dispatch.pause();
        self.pause = Pause { until: Some(until), release: None };
        self.processes.events.emit(Level::Info, "pause", "requests are held", &[]);
    }

    /// Lets them through again, those who waited in steps. Returns how many those are.
    pub(super) fn resume(&mut self, now: Instant) -> usize {
        let waiting = self.processes.dispatch.resume(now);
        if self.pause.until.take().is_some() {
            self.processes.events.emit(Level::Info, "resume", "requests go on", &[("held", &waiting)]);
        }
        // Asked for twice, those who are being let go by the first go on.
        if waiting > 0 {
            self.pause.release = Some(Release::of(waiting, now));
        }
        waiting
    }

    /// What is due: a pause that has lasted for as long as was asked ends; the next of those who waited are let go.
    pub(super) fn advance_pause(&mut self, now: Instant) {
        if self.pause.until.is_some_and(|until| until <= now) {
            self.processes.context.log.event(Level::Warn, "the pause has lasted as long as it may and ends", &[]);
            self.resume(now);
        }
        let Some(most) = self.pause.release.as_mut().and_then(|release| release.step(now)) else { return };
        let (grants, more) = self.processes.dispatch.let_go(most);
        for grant in grants {
            self.processes.context.postboxes.grant(grant);
        }
        if !more {
            self.pause.release = None;
        }
    }
}
