//! Places, and the workers that fill them.

use std::time::{Duration, Instant};

use super::policy::{Jitter, RestartPolicy};
use super::{BURNS_PERCENT, Ending, LOOKS, MOST_PATIENCE, Name, RESTART_JITTER_PERCENT, Rule};

/// Where a worker stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Started; not ready yet.
    Starting {
        /// When patience ends.
        deadline: Instant,
    },
    /// It gets requests.
    Running,
    /// It refused a connection, and is looked at.
    Checking {
        /// When patience ends.
        deadline: Instant,
    },
    /// It gets no new requests and finishes what it has.
    Draining {
        /// When it is told to stop, finished or not.
        deadline: Instant,
    },
    /// It is stuck and was asked to say where.
    Dumped {
        /// When KILL follows.
        kill_at: Instant,
    },
    /// It was sent TERM.
    Terminating {
        /// When KILL follows.
        kill_at: Instant,
    },
    /// It was sent KILL.
    Killed,
}

/// A worker that lives.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub name: Name,
    /// The number of its place, which may be gone already.
    pub number: u32,
    /// The app's generation that it belongs to.
    pub generation: u32,
    /// Where it stands.
    pub phase: Phase,
    /// When it was started.
    pub born: Instant,
    /// When it got ready.
    pub ready_at: Option<Instant>,
    /// After how many requests it is replaced; 0: never.
    pub limit: u64,
    /// How often it has loaded its code again.
    pub reloads: u64,
    /// The limit of its own that it has reached, if it has, and when it is replaced for it at the earliest.
    pub(super) due: Option<(Ending, Instant)>,
    /// What is known of whether it serves.
    pub(super) trust: Trust,
    /// It was started beside one that serves, or because it was its place's turn in a roll: nobody's place waits for it.
    pub(super) beside: bool,
    /// It has said that it leaves, before it was known that it serves.
    pub(super) leaves: bool,
    /// Why it was told to end.
    pub(super) ending: Option<Ending>,
    /// When its lifetime is over, until that was acted upon.
    pub(super) expires: Option<Instant>,
    /// The CPU time it had used when it was last looked at because it was not ready, and when that was.
    pub(super) burned: (Duration, Instant),
}

impl Member {
    /// Whether it fills its place: it serves, or will.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Running | Phase::Checking { .. })
    }

    /// Whether it is on its way to its first readiness.
    pub fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    /// Whether it gets requests.
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Why it was told to end, if it was.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// Its state in the words of the life cycle.
    pub fn state(&self) -> PlaceState {
        match self.phase {
            Phase::Starting { .. } => PlaceState::Starting,
            Phase::Running | Phase::Checking { .. } => PlaceState::Running,
            _ => PlaceState::Stopping,
        }
    }

    /// A limit of its own is reached. What counts is the one that it is replaced for first.
    pub(super) fn mark(&mut self, ending: Ending, at: Instant) {
        if self.due.is_none_or(|(_, due)| at < due) {
            self.due = Some((ending, at));
        }
    }

    /// So many requests and no more, whatever was said of that before; 0: as many as come.
    pub(super) fn may_have(&mut self, limit: u64) {
        self.limit = limit;
        self.due = self.due.filter(|(ending, _)| !matches!(ending, Ending::Requests(_)));
    }

    /// It is not ready in time: whether it gets more, since it has burned CPU and the bound is not reached.
    pub(super) fn has_patience(&mut self, timeout: Duration, used: Option<Duration>, now: Instant) -> bool {
        let Some(used) = used else { return false };
        let ((before, since), bound) = (self.burned, self.born + timeout * MOST_PATIENCE);
        let burns = used.saturating_sub(before) * 100 >= now.duration_since(since) * BURNS_PERCENT;
        if burns && now < bound {
            self.burned = (used, now);
            self.phase = Phase::Starting { deadline: (now + timeout / LOOKS).min(bound) };
        }
        burns && now < bound
    }

    pub(super) fn expires(&self) -> Option<Instant> {
        self.expires
    }

    pub(super) fn phase_due(&self) -> Option<Instant> {
        match self.phase {
            Phase::Starting { deadline } | Phase::Checking { deadline } | Phase::Draining { deadline } => {
                Some(deadline)
            }
            Phase::Dumped { kill_at } | Phase::Terminating { kill_at } => Some(kill_at),
            Phase::Running | Phase::Killed => None,
        }
    }
}

/// What is known of whether a worker serves, beside what it has answered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Trust {
    /// It has passed a health check.
    pub passed: bool,
    /// It has let a request time out, and had answered none.
    pub late: bool,
    /// When it was last seen to owe an answer, while something depended on whether it serves.
    pub owed_at: Option<Instant>,
}

/// The life cycle of a worker as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaceState {
    /// Started; not ready yet.
    Starting,
    /// It gets requests.
    Running,
    /// It finishes its requests and ends.
    Stopping,
}

/// One of the app's N workers, whoever fills it.
#[derive(Debug)]
pub struct Place {
    /// `WORKER_ID`, from 1.
    pub number: u32,
    /// Workers that were started for it.
    pub(super) starts: u32,
    /// Who fills it: from its start until it has ended, or another has taken over, or it leaves for good reason.
    pub(super) serving: Option<Name>,
    /// Who is to take over.
    pub(super) next: Option<Name>,
    /// Why its last worker ended.
    pub last_exit: Option<String>,
    /// Nobody is started for it any more, but for an attempt now and then.
    pub given_up: bool,
    pub(super) policy: RestartPolicy,
    /// Spreads the request limits.
    pub(super) jitter: Jitter,
    /// When it is filled if nobody fills it; for one that was given up, when it was tried last.
    pub(super) start_at: Instant,
    /// Before that time no replacement is tried again.
    pub(super) retry_at: Instant,
    /// Its replacement lacks memory, and that was said.
    pub(super) short_of_memory: bool,
}

impl Place {
    pub(super) fn new(number: u32, rule: &Rule, now: Instant) -> Place {
        let seed = rule.seed ^ u64::from(number);
        Place {
            number,
            starts: 0,
            serving: None,
            next: None,
            last_exit: None,
            given_up: false,
            policy: RestartPolicy::new(rule.restart, Jitter::new(seed, RESTART_JITTER_PERCENT)),
            jitter: Jitter::new(!seed, rule.jitter_percent),
            start_at: now,
            retry_at: now,
            short_of_memory: false,
        }
    }

    /// What it remembers stays; another rule judges it.
    pub(super) fn keep_to(&mut self, rule: &Rule) {
        self.policy.keep_to(rule.restart);
        self.jitter = Jitter::new(!(rule.seed ^ u64::from(self.number)), rule.jitter_percent);
    }

    /// After how many requests its next worker is replaced, where that is so many or a little more; 0: never.
    pub(super) fn limit(&mut self, requests: u64) -> u64 {
        if requests == 0 { 0 } else { self.jitter.add(requests) }
    }

    /// How often it was filled again, for whatever reason.
    pub fn restarts(&self) -> u32 {
        self.starts.saturating_sub(1)
    }

    pub(super) fn holds(&self, name: Name) -> bool {
        self.serving == Some(name) || self.next == Some(name)
    }

    /// Lets go of a worker whose end is no loss any more: whoever was to take over does.
    pub(super) fn release(&mut self, name: Name) {
        if self.next == Some(name) {
            self.next = None;
        } else if self.serving == Some(name) {
            self.serving = self.next.take();
        }
    }

    /// Forgets its failures: it is filled at once.
    pub(super) fn start_afresh(&mut self, now: Instant) {
        self.policy.forget();
        self.given_up = false;
        self.start_at = now;
        self.retry_at = now;
    }
}
