//! The end: loops drain first, then the workers are told to stop, then the rest is killed. Every step has its deadline.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{ExitReason, Supervisor};
use crate::acme;
use crate::fleet::NO_DEADLINE;
use crate::log::Level;
use crate::mailbox::Message;
use crate::metrics::Counters;

/// How often the loops are asked whether they have ended.
const ASK_AGAIN: Duration = Duration::from_millis(10);
/// How long after their deadline the loops may take to cut what is left.
const CUT_PATIENCE: Duration = Duration::from_millis(250);
/// From TERM to KILL at least, however late it is.
const LEAST_GRACE: Duration = Duration::from_secs(1);
/// From TERM to KILL when the server is to stop at once.
pub(super) const HASTY_GRACE: Duration = Duration::from_millis(200);

/// Where the stop stands.
#[derive(Debug)]
pub(super) enum Stop {
    /// The server says that it is not ready, and serves on until then (`--pre-stop-delay`).
    Announced { until: Instant, within: Duration, drains: bool },
    /// The loops finish what runs. `drains`: nobody has asked for the server's end yet, and whoever does so first is no second one.
    /// `watched`: those who watch the server can still see that.
    Loops { deadline: Instant, ask_at: Instant, drains: bool, watched: bool },
    /// The workers were sent TERM; KILL follows each by its own timer.
    Workers { hasty: bool },
}

impl Stop {
    pub(super) fn due(&self) -> Instant {
        match self {
            Stop::Announced { until, .. } => *until,
            Stop::Loops { ask_at, .. } => *ask_at,
            // Only the loops can be missing here, or workers that have their own timers.
            Stop::Workers { .. } => Instant::now() + ASK_AGAIN,
        }
    }
}

impl Supervisor {
    /// The first request to stop is graceful, the second one at once. A drain that is stopped gets a deadline first.
    pub(super) fn begin_stop(&mut self, now: Instant) {
        match self.stop {
            None => {
                self.abandon_upgrade();
                self.fail_succession("it was told to stop");
                self.service.manager.stopping(now);
                let seconds = format!("{} s", self.context.settings().leaving.shutdown.as_secs_f32());
                self.context.events.emit(Level::Info, "stop", "stopping: requests may finish", &[("within", &seconds)]);
                self.announce_stop(self.context.settings().leaving.shutdown, false, now);
            }
            Some(Stop::Announced { drains: true, .. } | Stop::Loops { drains: true, .. }) => {
                self.finish_requests(self.context.settings().leaving.shutdown, false, now);
            }
            Some(Stop::Workers { hasty: true }) => {}
            Some(_) => {
                self.context.log.event(Level::Warn, "stopping at once", &[]);
                self.context.status.hurry();
                self.context.postboxes.broadcast(|| Message::StopNow);
                // Whatever hangs is left behind, so that the server ends within a second.
                for unit in &mut self.units {
                    unit.processes.kill_patience = HASTY_GRACE;
                    unit.fleet.stop(HASTY_GRACE, now, &mut unit.processes);
                }
                self.stop = Some(Stop::Workers { hasty: true });
            }
        }
    }

    /// Requests may finish, however long they take; then the server ends.
    pub(super) fn begin_drain(&mut self, now: Instant) {
        self.abandon_upgrade();
        self.fail_succession("it was told to stop");
        self.service.manager.stopping(now);
        self.context.events.emit(Level::Info, "drain", "draining: the server ends when its last request has", &[]);
        // It has no end of its own: a stop, or the last request, ends it.
        self.announce_stop(NO_DEADLINE, true, now);
    }

    /// Balancers that ask whether the server is ready get time to turn away, unless there is nothing to turn away from: loops are lost, no
    /// worker was ever ready, or another server serves.
    fn announce_stop(&mut self, within: Duration, drains: bool, now: Instant) {
        let delay = self.context.settings().leaving.pre_stop_delay;
        let served = !matches!(self.exit, Some(ExitReason::LoopLost | ExitReason::NeverReady));
        if delay.is_zero() || !served || self.upgrades.is_silent() {
            return self.finish_requests(within, drains, now);
        }
        self.stop = Some(Stop::Announced { until: now + delay, within, drains });
    }

    fn finish_requests(&mut self, within: Duration, drains: bool, now: Instant) {
        let deadline = now + within;
        self.begin_last_requests(deadline, drains, now);
        self.context.postboxes.broadcast(|| Message::Drain { deadline });
    }

    /// Another server accepts on the same sockets: requests may finish, and no client is sent away that may just be asking.
    pub(super) fn begin_handed_over_stop(&mut self, now: Instant) {
        let deadline = now + self.context.settings().leaving.shutdown;
        self.begin_last_requests(deadline, true, now);
        self.context.postboxes.broadcast(|| Message::HandOver { deadline });
    }

    fn begin_last_requests(&mut self, deadline: Instant, drains: bool, now: Instant) {
        self.units.iter_mut().for_each(|unit| unit.settle(now));
        acme::retire();
        // A copy that nobody accepts from would keep clients waiting; where another serves, it has its own.
        self.upgrades.holdings.close();
        self.stop = Some(Stop::Loops { deadline, ask_at: now, drains, watched: true });
    }

    /// A loop that ends unasked leaves connections, permits and its listeners' backlog behind: the server stops as gracefully as
    /// the others can, and whoever started it may start it again.
    pub(super) fn notice_lost_loops(&mut self, now: Instant) {
        if self.stop.is_none() && self.loop_exit.was_reported() {
            self.context.log.event(
                Level::Error,
                "an event loop has ended although nobody asked it to: the server stops",
                &[],
            );
            self.exit = Some(ExitReason::LoopLost);
            self.fail_succession("an event loop has ended although nobody asked it to");
            self.begin_stop(now);
        }
    }

    /// Takes the next step if it is time. True: all is over.
    pub(super) fn advance_stop(&mut self, loops_done: &mut dyn FnMut() -> bool, now: Instant) -> bool {
        let drained = matches!(self.stop, Some(Stop::Loops { watched: true, .. })) && self.have_loops_drained();
        match &mut self.stop {
            None => false,
            Some(Stop::Announced { until, within, drains }) => {
                let (until, within, drains) = (*until, *within, *drains);
                if now >= until {
                    self.finish_requests(within, drains, now);
                }
                false
            }
            Some(Stop::Loops { deadline, ask_at, watched, .. }) => {
                *ask_at = now + ASK_AGAIN;
                if drained && std::mem::take(watched) {
                    self.context.postboxes.broadcast(|| Message::CloseAdmin);
                }
                let deadline = *deadline;
                if loops_done() || now >= deadline + CUT_PATIENCE {
                    let grace = deadline.saturating_duration_since(now).max(LEAST_GRACE);
                    self.units.iter_mut().for_each(|unit| unit.fleet.stop(grace, now, &mut unit.processes));
                    self.stop = Some(Stop::Workers { hasty: false });
                }
                self.may_end() && loops_done() && self.guard_has_left(now)
            }
            // The loops have been told twice over what to do; who drives them joins their threads after this.
            Some(Stop::Workers { .. }) => self.may_end() && self.guard_has_left(now),
        }
    }

    /// Whether no loop has a client left but those who watch the server, or one is gone, and would never say so.
    fn have_loops_drained(&self) -> bool {
        let drained = |counters: &Counters| counters.drained.load(Ordering::Acquire);
        let metrics = self.observed.as_ref().map(|observed| &observed.about.metrics);
        self.loop_exit.was_reported() || metrics.is_none_or(|metrics| metrics.loops().all(drained))
    }

    /// No worker is left, and nobody has anything to tell to another server by way of this one.
    fn may_end(&self) -> bool {
        let passes_on = self.upgrades.passes_on() && !self.context.status.is_hasty();
        self.units.iter().all(|unit| unit.processes.workers.is_empty()) && !passes_on
    }

    /// The last step: the guard leaves, unless some process is left to it that could not be killed.
    fn guard_has_left(&mut self, now: Instant) -> bool {
        if self.units.iter().any(|unit| unit.processes.left_behind) {
            self.context.guard.leave();
            return true;
        }
        self.context.guard.dismiss(now)
    }
}
