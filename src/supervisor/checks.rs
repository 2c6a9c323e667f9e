//! Active health checks of an app's workers or upstreams: each is asked for a path now and then, and what comes back is told.
//!
//! - A check is a request like any other to whoever is asked: it gets a slot of its own ([`Dispatch::spare`]), so that a worker which takes
//!   one request at a time has never two, and is not judged by an answer that it had no time for. One that is busy is waited for, for
//!   as long as a check may take; then it is not asked this time: those who wait for its answer judge it.
//! - From where nothing came at all, the check may still be at work: its slot stays kept until something comes, as long as others answer.
//! - At most a quarter of all are asked at once, so that checks that hang do not hang the app.
//! - Nothing blocks: the connections are in the supervisor's poll(2), time and bytes are bounded.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::probe::http::{Check, HttpProbe, Outcome};
use super::upstreams::Listeners;
use super::wake;
use crate::config;
use crate::control::status;
use crate::dispatch::{Target, WorkerId};
use crate::fleet::{HealthRule, Jitter, Replacements, Streak};

/// How much longer than it is set an interval may be, in per cent.
const JITTER_PERCENT: u32 = 10;
/// The share of all that may be asked at once is one of so many.
const SHARE: usize = 4;

/// What a check has shown.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub id: WorkerId,
    pub passed: bool,
    /// Whether it is healthy, where that has changed.
    pub change: Option<bool>,
}

/// What one that fails its checks is to be ended for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Illness {
    /// It answers, but not well.
    Unhealthy,
    /// Nothing at all comes from it.
    Silent,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Checks {
    /// What is asked; `None`: nothing is.
    question: Option<Rc<Check>>,
    settings: config::Health,
    all: Vec<Checked>,
    jitter: Jitter,
    /// When the next worker that is unhealthy may be replaced.
    pub replacements: Replacements,
}

/// One that is asked.
#[derive(Debug)]
struct Checked {
    id: WorkerId,
    target: Arc<Target>,
    streak: Streak,
    stage: Stage,
    next: Instant,
    /// Since when its checks have brought nothing at all; `None`: the last one has.
    silent_since: Option<Instant>,
    /// Its slot is kept though it is not asked.
    kept: bool,
    /// Its end was asked for.
    ended: bool,
}

#[derive(Debug)]
enum Stage {
    Rests,
    /// It has no slot free, and is waited for until then.
    Busy(Instant),
    Asked(HttpProbe),
}

impl Checks {
    pub fn new(settings: &config::Health) -> Checks {
        let seed = u64::from(std::process::id());
        let mut checks = Checks {
            question: None,
            settings: config::Health::default(),
            all: Vec::new(),
            jitter: Jitter::new(seed, JITTER_PERCENT),
            replacements: Replacements::default(),
        };
        checks.ask_as(settings);
        checks
    }

    fn ask_as(&mut self, settings: &config::Health) {
        let question = |path: &String| Check::get(path).expecting(settings.status.clone(), settings.patience());
        self.question = settings.path.as_ref().map(|path| Rc::new(question(path)));
        self.settings = settings.clone();
    }

    /// Asks otherwise from now on; what is under way comes to its end.
    pub fn configure(&mut self, settings: &config::Health, now: Instant) {
        if self.settings != *settings {
            self.ask_as(settings);
            self.all.iter_mut().for_each(|one| one.next = one.next.min(now + settings.interval));
        }
    }

    /// Whether anybody is asked.
    pub fn are_on(&self) -> bool {
        self.question.is_some() || !self.all.is_empty()
    }

    /// Who is to be asked from now on: the others are let go of.
    pub fn keep_to(&mut self, wanted: &[WorkerId], ways: Listeners<'_>, now: Instant) {
        let wanted = if self.question.is_some() { wanted } else { &[] };
        for one in self.all.extract_if(.., |one| !wanted.contains(&one.id)) {
            if !matches!(one.stage, Stage::Rests) || one.kept {
                ways.give_back(one.id);
            }
        }
        for &id in wanted {
            if self.all.iter().all(|one| one.id != id)
                && let Some(target) = ways.dispatch.target(id)
            {
                let (streak, stage) = (Streak::default(), Stage::Rests);
                self.all.push(Checked {
                    id,
                    target,
                    streak,
                    stage,
                    next: now,
                    silent_since: None,
                    kept: false,
                    ended: false,
                });
            }
        }
    }

    /// Goes on with the checks that are under way, and begins those that are due.
    pub fn look(&mut self, ways: Listeners<'_>, now: Instant) -> Vec<Finding> {
        let mut findings = Vec::new();
        let Some(question) = self.question.clone() else { return findings };
        let most = self.all.len().div_ceil(SHARE);
        let mut asked = self.all.iter().filter(|one| !matches!(one.stage, Stage::Rests)).count();
        for one in &mut self.all {
            let result = match &mut one.stage {
                Stage::Rests if one.next > now || asked >= most => continue,
                Stage::Rests | Stage::Busy(_) => {
                    let waited = matches!(one.stage, Stage::Busy(_));
                    asked += usize::from(!waited);
                    one.begin(&question, &self.settings, ways, now)
                }
                Stage::Asked(probe) => result(probe.advance(now)),
            };
            let Some(result) = result else { continue };
            let silent = matches!(&one.stage, Stage::Asked(probe) if probe.is_silent(now));
            let since = now.checked_sub(self.settings.patience()).unwrap_or(now);
            one.silent_since = silent.then(|| one.silent_since.unwrap_or(since));
            one.rest(now + self.jitter.stretch(self.settings.interval), ways);
            if let Some(result) = result {
                let rule = HealthRule { unhealthy: self.settings.unhealthy, healthy: self.settings.healthy };
                let passed = result.is_ok();
                findings.push(Finding { id: one.id, passed, change: one.streak.note(result, rule) });
            }
        }
        // Where nobody answers, they may all answer to something else.
        let some_answer = self.all.iter().any(|one| one.silent_since.is_none());
        for one in self.all.iter_mut().filter(|one| matches!(one.stage, Stage::Rests)) {
            one.keep(one.silent_since.is_some() && some_answer, ways);
        }
        findings
    }

    /// Those that are unhealthy and are not known to end, the one that was asked first coming first.
    pub fn unhealthy(&self) -> impl Iterator<Item = (WorkerId, Illness)> {
        let ill = self.all.iter().filter(|one| !one.streak.is_healthy() && !one.ended);
        ill.map(|one| {
            let silent = one.silent_since.is_some_and(|since| !one.target.moves.since(since));
            (one.id, if silent { Illness::Silent } else { Illness::Unhealthy })
        })
    }

    /// Its end is asked for.
    pub fn end(&mut self, id: WorkerId) {
        self.all.iter_mut().filter(|one| one.id == id).for_each(|one| one.ended = true);
    }

    /// Whether one is healthy, as far as it is asked.
    pub fn is_healthy(&self, id: WorkerId) -> bool {
        self.all.iter().find(|one| one.id == id).is_none_or(|one| one.streak.is_healthy())
    }

    /// Nobody is asked any more, and all slots are given back.
    pub fn halt(&mut self, ways: Listeners<'_>) {
        self.question = None;
        for one in &mut self.all {
            one.silent_since = None;
            one.rest(one.next, ways);
        }
    }

    /// What is known of one; `None`: it is not asked.
    pub fn health(&self, id: WorkerId) -> Option<status::Health> {
        let streak = &self.all.iter().find(|one| one.id == id)?.streak;
        let reason = streak.reason().map(str::to_owned);
        Some(status::Health { healthy: streak.is_healthy(), failures: streak.failures(), reason })
    }

    /// When something is due, whatever the descriptors do.
    pub fn due(&self) -> Option<Instant> {
        let most = self.all.len().div_ceil(SHARE);
        let full = self.all.iter().filter(|one| !matches!(one.stage, Stage::Rests)).count() >= most;
        let due = self.all.iter().filter_map(|one| match &one.stage {
            Stage::Rests => Some(one.next).filter(|_| !full),
            Stage::Busy(until) => Some(*until),
            Stage::Asked(probe) => Some(probe.deadline()),
        });
        due.min()
    }

    /// What is to be polled for.
    pub fn entries(&self) -> impl Iterator<Item = libc::pollfd> {
        self.all.iter().filter_map(|one| match &one.stage {
            Stage::Asked(probe) => {
                let (descriptor, events) = probe.interest();
                Some(wake::entry(descriptor, events))
            }
            _ => None,
        })
    }
}

/// What has come of a check, as far as anything has.
fn result(outcome: Outcome) -> Option<Option<Result<(), String>>> {
    match outcome {
        Outcome::Pending => None,
        Outcome::Yes => Some(Some(Ok(()))),
        Outcome::No(reason) | Outcome::Nobody(reason) => Some(Some(Err(reason))),
    }
}

impl Checked {
    /// Asks, if there is a slot for it. `Some(None)`: it was busy for too long.
    fn begin(
        &mut self,
        question: &Rc<Check>,
        settings: &config::Health,
        ways: Listeners<'_>,
        now: Instant,
    ) -> Option<Option<Result<(), String>>> {
        match (ways.dispatch.spare(self.id), &self.stage) {
            (Some(true), _) => {}
            (Some(false), Stage::Busy(until)) if now < *until => return None,
            (Some(false), Stage::Rests) => {
                self.stage = Stage::Busy(now + settings.patience());
                return None;
            }
            _ => return Some(None),
        }
        match HttpProbe::begin(&self.target.address, question, now) {
            Ok(mut probe) => {
                let outcome = probe.advance(now);
                self.stage = Stage::Asked(probe);
                result(outcome)
            }
            Err(reason) => Some(Some(Err(reason))),
        }
    }

    fn rest(&mut self, next: Instant, ways: Listeners<'_>) {
        self.next = next;
        self.stage = Stage::Rests;
        self.kept = true;
        self.keep(self.silent_since.is_some(), ways);
    }

    /// Keeps its slot while it rests, or gives it back.
    fn keep(&mut self, kept: bool, ways: Listeners<'_>) {
        match std::mem::replace(&mut self.kept, kept) {
            false if kept => drop(ways.dispatch.spare(self.id)),
            true if !kept => ways.give_back(self.id),
            _ => {}
        }
    }
}

impl Listeners<'_> {
    /// A worker's slot that was kept from requests is theirs again.
    fn give_back(&self, id: WorkerId) {
        self.dispatch.unspare(id).into_iter().for_each(|grant| self.postboxes.grant(grant));
    }
}
