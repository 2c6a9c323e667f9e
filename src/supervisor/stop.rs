//! The end: loops drain first, then the workers are told to stop, then the rest is killed. Every step has its deadline.

use std::time::{Duration, Instant};

use super::{ExitReason, Supervisor};
use crate::log::Level;
use crate::mailbox::Message;

/// How often the loops are asked whether they have ended.
const ASK_AGAIN: Duration = Duration::from_millis(10);
/// How long after their deadline the loops may take to cut what is left.
const CUT_PATIENCE: Duration = Duration::from_millis(250);
/// From TERM to KILL at least, however late it is.
const LEAST_GRACE: Duration = Duration::from_secs(1);
/// From TERM to KILL when the server is to stop at once.
const HASTY_GRACE: Duration = Duration::from_millis(200);

/// A drain has no end of its own: a stop, or the last request, ends it.
const NO_DEADLINE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Where the stop stands.
#[derive(Debug)]
pub(super) enum Stop {
    /// The loops finish what runs.
    Loops { deadline: Instant, ask_at: Instant },
    /// The workers were sent TERM; KILL follows each by its own timer.
    Workers { hasty: bool },
}

impl Stop {
    pub(super) fn due(&self) -> Instant {
        match self {
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
                let seconds = format!("{} s", self.processes.settings.shutdown.as_secs_f32());
                self.processes.events.emit(
                    Level::Info,
                    "stop",
                    "stopping: requests may finish",
                    &[("within", &seconds)],
                );
                self.finish_requests(self.processes.settings.shutdown, now);
            }
            Some(Stop::Loops { .. }) if std::mem::take(&mut self.drains) => {
                self.finish_requests(self.processes.settings.shutdown, now);
            }
            Some(Stop::Workers { hasty: true }) => {}
            Some(_) => {
                self.processes.log.event(Level::Warn, "stopping at once", &[]);
                self.processes.postboxes.broadcast(|| Message::StopNow);
                // Whatever hangs is left behind, so that the server ends within a second.
                self.processes.kill_patience = HASTY_GRACE;
                self.fleet.stop(HASTY_GRACE, now, &mut self.processes);
                self.stop = Some(Stop::Workers { hasty: true });
            }
        }
    }

    /// Requests may finish, however long they take; then the server ends.
    pub(super) fn begin_drain(&mut self, now: Instant) {
        self.drains = true;
        self.processes.events.emit(Level::Info, "drain", "draining: the server ends when its last request has", &[]);
        self.finish_requests(NO_DEADLINE, now);
    }

    fn finish_requests(&mut self, within: Duration, now: Instant) {
        let deadline = now + within;
        self.watcher = None;
        self.fleet.hold_still(now, &mut self.processes);
        self.resume(now);
        self.processes.postboxes.broadcast(|| Message::Drain { deadline });
        self.stop = Some(Stop::Loops { deadline, ask_at: now });
    }

    /// A loop that ends unasked leaves connections, permits and its listeners' backlog behind: the server stops as gracefully as
    /// the others can, and whoever started it may start it again.
    pub(super) fn notice_lost_loops(&mut self, now: Instant) {
        if self.stop.is_none() && self.loop_exit.was_reported() {
            self.processes.log.event(
                Level::Error,
                "an event loop has ended although nobody asked it to: the server stops",
                &[],
            );
            self.exit = Some(ExitReason::LoopLost);
            self.begin_stop(now);
        }
    }

    /// Takes the next step if it is time. True: all is over.
    pub(super) fn advance_stop(&mut self, loops_done: &mut dyn FnMut() -> bool, now: Instant) -> bool {
        match &mut self.stop {
            None => false,
            Some(Stop::Loops { deadline, ask_at }) => {
                *ask_at = now + ASK_AGAIN;
                let deadline = *deadline;
                if loops_done() || now >= deadline + CUT_PATIENCE {
                    let grace = deadline.saturating_duration_since(now).max(LEAST_GRACE);
                    self.fleet.stop(grace, now, &mut self.processes);
                    self.stop = Some(Stop::Workers { hasty: false });
                }
                self.stop.is_some() && self.processes.workers.is_empty() && loops_done()
            }
            // The loops have been told twice over what to do; who drives them joins their threads after this.
            Some(Stop::Workers { .. }) => self.processes.workers.is_empty(),
        }
    }
}
