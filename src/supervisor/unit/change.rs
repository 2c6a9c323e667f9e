//! An app while the server runs: new settings, and its end.
//!
//! Settings that say how a worker is started reach the app by a roll, and workers of the old generation are started as before until
//! it is proven; all others hold from the next moment on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Unit, in_flight, launcher, rule};
use crate::config::{self, Balance};
use crate::dispatch::{self, Policy};
use crate::fleet::{Machine, Name, Scaler, TERM_GRACE};
use crate::log::Level;
use crate::supervisor::StartError;
use crate::supervisor::spawn::Launcher;

/// How often an app that leaves is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Where the end of an app stands.
#[derive(Clone, Copy, Debug)]
pub(in crate::supervisor) struct Leaving {
    look_at: Instant,
    /// When its requests are cut; `None`: they have ended, and its workers end.
    deadline: Option<Instant>,
}

impl Leaving {
    /// When it is looked at again.
    pub fn due(&self) -> Instant {
        self.look_at
    }
}

/// How an app's permits are dealt out.
pub fn policy(app: &config::App) -> Policy {
    Policy {
        balance: match app.sharing.balance {
            Balance::Lifo => dispatch::Balance::Lifo,
            Balance::RoundRobin => dispatch::Balance::RoundRobin,
            Balance::Least => dispatch::Balance::Least,
        },
        concurrency: app.sharing.concurrency,
        queue_size: app.queue.size,
        queue_timeout: app.queue.timeout,
        hold: app.queue.hold,
        max_tunnels: app.sharing.max_tunnels,
        failures: app.eject.failures,
        fair: app.queue.fair.is_some(),
    }
}

/// What says after how many requests a worker is replaced.
fn of_requests(app: &config::App) -> (u64, u32) {
    (app.life.recycle.requests, app.life.recycle.jitter_percent)
}

impl Unit {
    /// Takes new settings over; the number of the roll that brings them to the workers, if one does.
    ///
    /// # Errors
    /// When it would be another app (upstreams where there were workers, or the like), there is no room for so many workers, or its command
    /// cannot be run. Nothing has changed then.
    pub fn change(&mut self, new: Arc<config::App>, now: Instant) -> Result<Option<u64>, StartError> {
        let launcher = self.prepare(&new)?;
        Ok(self.adopt(new, launcher, now))
    }

    /// What starts the workers by new settings, where that is done in another way than by those that hold.
    ///
    /// # Errors
    /// As [`Unit::change`].
    pub fn prepare(&self, new: &config::App) -> Result<Option<Launcher>, StartError> {
        let old = &self.processes.app;
        let runs = |app: &config::App| app.program.command != config::Command::None;
        if old.name != new.name || runs(old) != runs(new) || old.instead.upstreams != new.instead.upstreams {
            let message = format!("the app {} would be another one: it is to be removed and added", old.name);
            return Err(StartError { message, code: 78 });
        }
        let most = new.scaling.map_or(new.workers, |scaling| scaling.max);
        if runs(new) && (old.workers, old.scaling) != (new.workers, new.scaling) && most > self.room {
            let message = format!(
                "this process has room for {} workers of the app {}, and not for {most}; `production_server upgrade` starts one that \
                 has it",
                self.room, old.name
            );
            return Err(StartError { message, code: 78 });
        }
        if old.starts_like(new) { Ok(None) } else { launcher(new, &self.processes.context) }
    }

    /// Takes new settings over that were prepared; the number of the roll that brings them to the workers, if one does.
    pub fn adopt(&mut self, new: Arc<config::App>, launcher: Option<Launcher>, now: Instant) -> Option<u64> {
        let old = Arc::clone(&self.processes.app);
        let starts_otherwise = !old.starts_like(&new);
        self.processes.configure(Arc::clone(&new), now);
        self.processes.dispatch.set_policy(policy(&new));
        self.fleet.set_rule(rule(&new));
        if of_requests(&old) != of_requests(&new) {
            self.processes.limit_requests(|name| self.fleet.member(name).map(|member| member.limit));
        }
        self.upstreams.configure(&new);
        self.checks.configure(&new.health, now);
        if old.sharing.concurrency != new.sharing.concurrency {
            self.upstreams.renew(self.processes.ways(), now);
        }
        self.set_size(&old, now);
        let mut roll = None;
        if let Some(launcher) = launcher {
            let by = self.fleet.restart(now, &mut self.processes);
            let from = self.fleet.generation_of(by);
            self.processes.launch_by(from, launcher, self.fleet.generation());
            roll = Some(by);
        }
        let watches = |app: &config::App| (app.reload.by, app.reload.watch.clone());
        if starts_otherwise || watches(&old) != watches(&new) {
            self.watch_files();
        }
        roll
    }

    /// The roll that brings the newest settings to workers that have older ones: the one under way, or another where the last was given up.
    /// `None`: they have them.
    pub fn catch_up(&mut self, now: Instant) -> Option<u64> {
        let newest = self.processes.newest_launcher().filter(|from| *from > self.fleet.generation())?;
        match self.fleet.roll() {
            Some(roll) if roll.generation >= newest => Some(roll.id),
            _ => Some(self.fleet.restart(now, &mut self.processes)),
        }
    }

    /// As many workers as are configured now, where that is another number than before, within the bounds.
    fn set_size(&mut self, old: &config::App, now: Instant) {
        let new = Arc::clone(&self.processes.app);
        if self.processes.launcher().is_none() || (old.workers, old.scaling) == (new.workers, new.scaling) {
            return;
        }
        let (least, most) = self.worker_bounds();
        let wanted = self.fleet.wanted();
        let target = match new.scaling {
            Some(_) => wanted.clamp(least, most),
            None => new.workers.min(most),
        };
        self.scaler = new.scaling.map(|_| (Scaler::new(least, most), now));
        self.fleet.scale_to(target, "configured", now, &mut self.processes);
    }

    /// The app is not configured any more: what it is doing comes to its end, within the time that its workers have for a drain, and
    /// then they are told to stop.
    pub fn leave(&mut self, now: Instant) {
        if self.leaving.is_some() {
            return;
        }
        self.settle(now);
        self.leaving = Some(Leaving { look_at: now, deadline: Some(now + self.app().life.restart.drain) });
        self.processes.events.emit(Level::Info, "app-leaving", "the app is removed: its requests may finish", &[]);
    }

    /// Goes on with the app's end. Requests of it may come for as long as somebody else has its dispatch.
    pub(super) fn advance_leaving(&mut self, now: Instant) {
        let Some(leaving) = self.leaving.as_mut().filter(|leaving| leaving.look_at <= now) else { return };
        leaving.look_at = now + LOOK_AGAIN;
        let Some(deadline) = leaving.deadline else { return };
        let snapshot = self.processes.dispatch.snapshot();
        let busy = in_flight(&snapshot) > 0 || snapshot.queue_depth > 0;
        if (busy || Arc::strong_count(&self.processes.dispatch) > 1) && now < deadline {
            return;
        }
        leaving.deadline = None;
        self.processes.give_up(now);
        self.fleet.stop(TERM_GRACE, now, &mut self.processes);
        let joined: Vec<Name> = self.processes.joined.iter().map(|worker| worker.name).collect();
        for name in joined {
            self.remove_joined(name, now);
        }
        let served: Vec<_> = self.upstreams.known().map(|id| self.processes.served(id)).collect();
        self.upstreams.end(self.processes.ways(), now);
        served.into_iter().for_each(|served| self.processes.keep_served(served));
    }

    /// Whether nothing of the app is left.
    pub fn has_left(&self) -> bool {
        self.leaving.is_some_and(|leaving| leaving.deadline.is_none()) && self.processes.workers.is_empty()
    }
}
