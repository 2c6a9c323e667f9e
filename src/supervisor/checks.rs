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
use std::time::{Duration, Instant};

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
    settings: config::Health,
    /// Who was to be asked when that was last said.
    wanted: Vec<WorkerId>,
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
    question: Rc<Check>,
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

/// How a check stands.
enum Progress {
    UnderWay,
    /// It was busy for so long that it is not asked this time.
    Missed,
    /// It has been answered, or what was wrong.
    Over(Result<(), String>),
}

impl Checks {
    pub fn new(settings: &config::Health) -> Checks {
        Checks {
            settings: settings.clone(),
            wanted: Vec::new(),
            all: Vec::new(),
            jitter: Jitter::new(u64::from(std::process::id()), JITTER_PERCENT),
            replacements: Replacements::default(),
        }
    }

    /// Asks otherwise from now on; what is under way comes to its end, within the time that holds now.
    pub fn configure(&mut self, settings: &config::Health, now: Instant) {
        if self.settings == *settings {
            return;
        }
        self.settings = settings.clone();
        for one in &mut self.all {
            one.question = question(settings, &one.target).unwrap_or_else(|| Rc::clone(&one.question));
            one.next = one.next.min(now + settings.interval);
            match &mut one.stage {
                Stage::Rests => {}
                Stage::Busy(until) => *until = (*until).min(now + settings.timeout),
                Stage::Asked(probe) => probe.end_by(now + settings.timeout),
            }
        }
    }

    /// Whether anybody is asked.
    pub fn are_on(&self) -> bool {
        self.settings.path.is_some() || !self.all.is_empty()
    }

    /// Who is to be asked from now on: the others are let go of.
    pub fn keep_to(&mut self, wanted: Vec<WorkerId>, ways: Listeners<'_>, now: Instant) {
        let wanted = if self.settings.path.is_some() { wanted } else { Vec::new() };
        if wanted == self.wanted {
            return;
        }
        for one in self.all.extract_if(.., |one| !wanted.contains(&one.id)) {
            if !matches!(one.stage, Stage::Rests) || one.kept {
                ways.give_back(one.id);
            }
        }
        for id in &wanted {
            let known = self.all.iter().any(|one| one.id == *id);
            let target = ways.dispatch.target(*id).filter(|_| !known);
            let new = target.and_then(|target| Checked::new(*id, target, &self.settings, now));
            self.all.extend(new);
        }
        self.wanted = wanted;
    }

    /// Goes on with the checks that are under way, and begins those that are due.
    pub fn look(&mut self, ways: Listeners<'_>, now: Instant) -> Vec<Finding> {
        let mut findings = Vec::new();
        let (most, mut asked) = (self.most(), self.asked());
        let rule = HealthRule { unhealthy: self.settings.unhealthy, healthy: self.settings.healthy };
        let patience = self.settings.timeout;
        // Where checks take longer than all may together, those come first that have waited longest.
        self.all.sort_by_key(|one| one.next);
        for one in &mut self.all {
            let progress = match &mut one.stage {
                Stage::Rests if one.next > now || asked >= most => continue,
                // Its turn comes again when another's is over.
                Stage::Busy(_) if asked >= most => {
                    one.rest(one.next, ways);
                    continue;
                }
                Stage::Rests | Stage::Busy(_) => {
                    let begun = one.begin(patience, ways, now);
                    asked += usize::from(matches!(one.stage, Stage::Asked(_)));
                    begun
                }
                Stage::Asked(probe) => progress(probe.advance(now)),
            };
            if let Progress::UnderWay = progress {
                continue;
            }
            let silent = matches!(&one.stage, Stage::Asked(probe) if probe.is_silent(now));
            let since = now.checked_sub(patience).unwrap_or(now);
            one.silent_since = silent.then(|| one.silent_since.unwrap_or(since));
            one.rest(now + self.jitter.stretch(self.settings.interval), ways);
            if let Progress::Over(result) = progress {
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

    /// How many may be asked at once.
    fn most(&self) -> usize {
        self.all.len().div_ceil(SHARE)
    }

    /// How many are.
    fn asked(&self) -> usize {
        self.all.iter().filter(|one| matches!(one.stage, Stage::Asked(_))).count()
    }

    /// When something is due, whatever the descriptors do.
    pub fn due(&self) -> Option<Instant> {
        let full = self.asked() >= self.most();
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

/// What is asked of one; `None`: nothing is.
fn question(settings: &config::Health, target: &Target) -> Option<Rc<Check>> {
    let host = target.label.strip_prefix("http://").filter(|_| !target.unix).unwrap_or("localhost");
    let question = Check::get_from(settings.path.as_ref()?, host);
    Some(Rc::new(question.expecting(settings.status.clone(), settings.timeout)))
}

fn progress(outcome: Outcome) -> Progress {
    match outcome {
        Outcome::Pending => Progress::UnderWay,
        Outcome::Yes => Progress::Over(Ok(())),
        Outcome::No(reason) | Outcome::Nobody(reason) => Progress::Over(Err(reason)),
    }
}

impl Checked {
    fn new(id: WorkerId, target: Arc<Target>, settings: &config::Health, now: Instant) -> Option<Checked> {
        Some(Checked {
            id,
            question: question(settings, &target)?,
            target,
            streak: Streak::default(),
            stage: Stage::Rests,
            next: now,
            silent_since: None,
            kept: false,
            ended: false,
        })
    }

    /// Asks, if there is a slot for it or comes to be one within that time.
    fn begin(&mut self, patience: Duration, ways: Listeners<'_>, now: Instant) -> Progress {
        match (ways.dispatch.spare(self.id), &self.stage) {
            (Some(true), _) => {}
            (Some(false), Stage::Busy(until)) if now < *until => return Progress::UnderWay,
            (Some(false), Stage::Rests) => {
                self.stage = Stage::Busy(now + patience);
                return Progress::UnderWay;
            }
            _ => return Progress::Missed,
        }
        match HttpProbe::begin(&self.target.address, &self.question, now) {
            Ok(mut probe) => {
                let outcome = probe.advance(now);
                self.stage = Stage::Asked(probe);
                progress(outcome)
            }
            Err(reason) => Progress::Over(Err(reason)),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dispatch::{Acquire, AppId, Ask, Dispatch, Moves, Notice, Outcome as End, Permit, Waiter};
    use crate::log::Log;
    use crate::mailbox::Postboxes;
    use crate::supervisor::unit::policy;
    use socket2::SockAddr;
    use std::os::unix::net::UnixListener;

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// Workers that listen and never answer, and who asks them.
    struct Rig {
        _folder: tempfile::TempDir,
        _listeners: Vec<UnixListener>,
        dispatch: Dispatch,
        postboxes: Postboxes,
        log: Log,
        checks: Checks,
        ids: Vec<WorkerId>,
        now: Instant,
    }

    impl Rig {
        fn new(count: usize, interval: Duration) -> Rig {
            let (folder, now) = (tempfile::tempdir().unwrap(), Instant::now());
            let dispatch = Dispatch::new(policy(&config::App::default()), count, now);
            let (mut listeners, mut ids) = (Vec::new(), Vec::new());
            for number in 0..count {
                let path = folder.path().join(number.to_string());
                listeners.push(UnixListener::bind(&path).unwrap());
                let (address, moves) = (SockAddr::unix(&path).unwrap(), Arc::new(Moves::new(now)));
                let label = number.to_string();
                let target = Target { address, label, unix: true, supervised: true, number: number as u32, moves };
                ids.push(dispatch.add(target, 1, None).unwrap());
                assert!(dispatch.ready(ids[number], now).is_empty());
            }
            let (path, timeout) = (Some("/up".to_owned()), MILLISECOND * 10);
            let settings = config::Health { path, interval, timeout, ..config::Health::default() };
            let (checks, postboxes, log) =
                (Checks::new(&settings), Postboxes::new(Vec::new()), Log::captured().unwrap().0);
            Rig { _folder: folder, _listeners: listeners, dispatch, postboxes, log, checks, ids, now }
        }

        fn look(&mut self) -> Vec<Finding> {
            let (dispatch, postboxes, log) = (&self.dispatch, &self.postboxes, &self.log);
            let ways = Listeners { dispatch, app: AppId(0), postboxes, log };
            self.checks.keep_to(self.ids.clone(), ways, self.now);
            self.checks.look(ways, self.now)
        }

        /// A request's slot, if one is free.
        fn take(&self) -> Option<Permit> {
            let waiter = Waiter { loop_index: 0, exchange: self.ids[0] };
            let ask = Ask { since: self.now, exclude: None, front: false, tunnel: false, turn: 0 };
            match self.dispatch.acquire(waiter, ask, self.now) {
                Acquire::Granted(permit) => Some(permit),
                Acquire::Queued(ticket) => {
                    assert!(self.dispatch.cancel(ticket));
                    None
                }
                other => panic!("{other:?}"),
            }
        }

        fn give_back(&self, permit: Permit) {
            assert!(self.dispatch.release(permit, End::Answered, self.now, 0).is_none());
        }

        /// Goes on to the next moment at which something is due.
        fn pass(&mut self) {
            self.now = self.now.max(self.checks.due().unwrap());
        }
    }

    #[test]
    fn a_quarter_is_asked_at_once_and_whoever_has_waited_longest_first() {
        let mut rig = Rig::new(8, MILLISECOND * 12);
        let mut findings = Vec::new();
        // Eight checks of 10 ms, two at a time, take longer than that.
        while findings.len() < 40 {
            findings.extend(rig.look().into_iter().map(|finding| finding.id));
            assert!(rig.checks.asked() <= 2);
            rig.pass();
        }
        for id in &rig.ids {
            let times = findings.iter().filter(|other| *other == id).count();
            assert!((4..=6).contains(&times), "{times} of {} checks", findings.len());
        }
    }

    #[test]
    fn a_shorter_time_holds_for_a_check_under_way_and_a_longer_one_does_not() {
        for (timeout, passes) in [(MILLISECOND * 2, MILLISECOND * 2), (MILLISECOND * 500, MILLISECOND * 10)] {
            let mut rig = Rig::new(1, MILLISECOND * 40);
            assert_eq!((rig.look(), rig.checks.asked()), (Vec::new(), 1));
            let settings = config::Health { timeout, ..rig.checks.settings.clone() };
            rig.checks.configure(&settings, rig.now);
            assert_eq!(rig.checks.due(), Some(rig.now + passes), "{timeout:?}");
            rig.pass();
            assert_eq!(rig.look().len(), 1, "its time is over");
        }
    }

    #[test]
    fn one_that_is_busy_is_asked_when_it_is_not_and_missed_when_that_takes_too_long() {
        let mut rig = Rig::new(1, MILLISECOND * 40);
        for (end, expected) in [(false, 0), (true, 1)] {
            let permit = rig.take().expect("it is free");
            assert_eq!((rig.look(), rig.checks.asked()), (Vec::new(), 0), "it has its request");
            let begun = rig.now;
            if !end {
                rig.pass();
                assert_eq!((rig.look(), rig.now), (Vec::new(), begun + MILLISECOND * 10));
                rig.pass();
                assert!(rig.now >= begun + MILLISECOND * 50, "the next time");
            }
            rig.give_back(permit);
            let mut notices = Vec::new();
            rig.dispatch.notices(&mut notices);
            assert_eq!(notices, [Notice::Spared(rig.ids[0])][..expected]);
        }
        assert_eq!((rig.look(), rig.checks.asked()), (Vec::new(), 1));
        assert!(rig.take().is_none(), "it has the check");
        rig.pass();
        let passed = false;
        assert_eq!(rig.look(), [Finding { id: rig.ids[0], passed, change: None }]);
        assert_eq!(rig.checks.health(rig.ids[0]).unwrap().failures, 1);
    }

    #[test]
    fn the_slot_of_one_from_which_nothing_came_stays_kept_while_another_answers() {
        let mut rig = Rig::new(2, MILLISECOND * 40);
        rig.look();
        rig.pass();
        let silent = rig.look()[0].id;
        let free = |rig: &Rig| {
            let free: Vec<Permit> = std::iter::from_fn(|| rig.take()).collect();
            let workers: Vec<WorkerId> = free.iter().map(Permit::worker).collect();
            free.into_iter().for_each(|permit| rig.give_back(permit));
            workers
        };
        assert!(!free(&rig).contains(&silent));
        while rig.look().is_empty() {
            assert!(!free(&rig).contains(&silent));
            rig.pass();
        }
        assert_eq!(free(&rig).len(), 2, "the other has not answered either");
    }

    #[test]
    fn one_from_which_nothing_comes_is_stuck_unless_it_moves_otherwise() {
        let mut rig = Rig::new(1, MILLISECOND * 40);
        let mut change = None;
        while change.is_none() {
            change = rig.look().first().and_then(|finding| finding.change);
            rig.pass();
        }
        assert_eq!(change, Some(false));
        let id = rig.ids[0];
        assert_eq!(rig.checks.unhealthy().collect::<Vec<_>>(), [(id, Illness::Silent)]);
        rig.dispatch.target(id).unwrap().moves.note(rig.now);
        assert_eq!(rig.checks.unhealthy().collect::<Vec<_>>(), [(id, Illness::Unhealthy)]);
        rig.checks.end(id);
        assert_eq!(rig.checks.unhealthy().count(), 0);
        // Without a path nobody is asked, and the slot is free.
        rig.checks.configure(&config::Health::default(), rig.now);
        rig.look();
        assert!(!rig.checks.are_on() && rig.checks.due().is_none());
        let permit = rig.take().expect("it is free");
        rig.give_back(permit);
    }
}
