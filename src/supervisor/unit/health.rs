//! What becomes of health checks and of failures: unhealthy workers are replaced, upstreams get no requests for a while.

use std::fmt::Display;
use std::time::Instant;

use super::Unit;
use crate::dispatch::WorkerId;
use crate::fleet::{Ending, Member, Name, Told};
use crate::log::Level;
use crate::supervisor::checks::{Finding, Illness};
use crate::supervisor::upstreams::place_of;

impl Unit {
    /// Goes on with the checks, and does what they ask for.
    pub(super) fn look_at_health(&mut self, stops: bool, now: Instant) {
        if self.checks.are_on() && !stops && self.leaving.is_none() {
            let workers = self.processes.workers.iter().filter(|process| self.is_running(process.name));
            let asked: Vec<WorkerId> = workers.map(|process| process.id).chain(self.upstreams.found()).collect();
            self.checks.keep_to(asked, self.processes.ways(), now);
            for finding in self.checks.look(self.processes.ways(), now) {
                self.act_on_finding(&finding, now);
            }
            self.replace_unhealthy(now);
        }
        self.upstreams.admit(|id| self.checks.is_healthy(id), self.processes.ways(), now);
        for (told, upstream) in self.upstreams.take_told() {
            if let Told::Ejected(index, _) = told {
                self.processes.tally.ejected(place_of(index));
            }
            self.tell_of_upstream(told, upstream.as_deref());
        }
    }

    /// When a check is due, or a worker may be replaced that is unhealthy.
    pub(super) fn health_due(&self) -> Option<Instant> {
        let next = self.unhealthy_worker().and_then(|_| self.checks.replacements.next());
        next.into_iter().chain(self.checks.due()).min()
    }

    fn is_running(&self, name: Name) -> bool {
        self.fleet.member(name).is_some_and(Member::is_running)
    }

    /// The worker that is to be replaced next.
    fn unhealthy_worker(&self) -> Option<(Name, WorkerId, Illness)> {
        let ours = |(id, illness): (WorkerId, Illness)| Some((self.processes.name(id)?, id, illness));
        self.checks.unhealthy().filter_map(ours).find(|(name, ..)| self.is_running(*name))
    }

    fn act_on_finding(&mut self, finding: &Finding, now: Instant) {
        if !finding.passed
            && let Some(target) = self.processes.dispatch.target(finding.id)
        {
            self.processes.tally.failed_check(target.number);
        }
        let Some(name) = self.processes.name(finding.id) else { return };
        if finding.passed {
            self.fleet.checked(name, Ok(()), now, &mut self.processes);
            if let Some(member) = self.fleet.member(name) {
                self.checks.replacements.passed(member.born);
            }
        }
        let Some(healthy) = finding.change else { return };
        let label = self.processes.dispatch.target(finding.id).map(|target| target.label.clone()).unwrap_or_default();
        let reason = self.checks.health(finding.id).and_then(|health| health.reason).unwrap_or_default();
        if !healthy {
            let reason = format!("the new worker fails its health checks: {reason}");
            self.fleet.checked(name, Err(&reason), now, &mut self.processes);
        }
        match healthy {
            true => self.processes.events.emit(
                Level::Info,
                "worker-healthy",
                "the worker passes its health checks again",
                &[("worker", &label)],
            ),
            false => self.processes.events.emit(
                Level::Warn,
                "worker-unhealthy",
                "the worker fails its health checks, and is to be replaced",
                &[("worker", &label), ("reason", &reason)],
            ),
        }
    }

    /// Replaces one of the workers that are unhealthy, if it is time for one.
    fn replace_unhealthy(&mut self, now: Instant) {
        if !self.checks.replacements.may(now) {
            return;
        }
        let Some((name, id, illness)) = self.unhealthy_worker() else { return };
        self.checks.replacements.begin(now);
        self.checks.end(id);
        match illness {
            Illness::Unhealthy => self.fleet.replace(name, Ending::Health),
            // Nothing is lost with it, and it may still be able to say where it is stuck.
            Illness::Silent => self.fleet.stuck(name, Ending::Health, now, &mut self.processes),
        }
    }

    fn tell_of_upstream(&mut self, told: Told, upstream: Option<&str>) {
        let label = upstream.unwrap_or_default();
        let failures = self.app().eject.failures;
        let (time, reason);
        let mut fields: Vec<(&str, &dyn Display)> = Vec::new();
        fields.extend(upstream.map(|_| ("upstream", &label as &dyn Display)));
        let (level, event, message) = match told {
            Told::Ejected(_, left_out) => {
                time = format!("{} s", left_out.as_secs_f32());
                fields.extend([("failures", &failures as &dyn Display), ("for", &time)]);
                (Level::Warn, "upstream-ejected", "the upstream has failed too often, and gets no requests for a while")
            }
            Told::Unhealthy(index) => {
                let health = self.upstreams.id(index).and_then(|id| self.checks.health(id));
                reason = health.and_then(|health| health.reason).unwrap_or_default();
                fields.push(("reason", &reason));
                let message = "the upstream fails its health checks, and gets no requests while another is well";
                (Level::Warn, "upstream-unhealthy", message)
            }
            Told::Tried(_) => (Level::Info, "upstream-trial", "the upstream gets requests again, few at first"),
            Told::Restored(_) => (Level::Info, "upstream-restored", "the upstream gets as many requests as the others"),
            Told::NoneIsWell => (
                Level::Error,
                "upstreams-unwell",
                "no upstream is well: all that accept connections get requests all the same",
            ),
            Told::OneIsWell => {
                (Level::Info, "upstreams-well", "an upstream is well again, and the others are left out")
            }
        };
        self.processes.events.emit(level, event, message, &fields);
    }
}
