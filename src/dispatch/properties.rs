//! The dispatch against a model that keeps plain lists and looks through all of them each time.
//!
//! Any sequence of calls must give the same answers as the model's, grant for grant and notice for notice: first come first
//! served, the choice of each balance, the bound, the clocks. Besides, whatever the model says, no one may wait whom an eligible
//! worker has room for, and each waiter must end exactly once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::tests::{at_nowhere, waiter};
use super::*;

const QUEUE_SIZE: usize = 4;
const QUEUE_TIMEOUT: Duration = Duration::from_millis(200);
const HOLD: Duration = Duration::from_millis(500);
const REQUEST_LIMIT: u64 = 3;

#[derive(Clone, Debug)]
enum Step {
    Acquire { exclude: Option<usize>, front: bool, age: u64 },
    Release { which: usize, outcome: Outcome },
    Cancel(usize),
    Patience(usize),
    Add { app_generation: u32 },
    Ready(usize),
    Drain(usize),
    Died(usize),
    Remove(usize),
    Unreachable(usize),
    Suspect(usize),
    Fail,
    Recover,
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any = 0..64_usize;
    // Coarse, so that clocks are often equal and deadlines often met to the moment.
    let moment = (0..6_u64).prop_map(|steps| steps * 20);
    let outcome = prop_oneof![
        8 => Just(Outcome::Answered),
        1 => Just(Outcome::Unused),
        1 => Just(Outcome::Broken),
        1 => Just(Outcome::Unreachable),
        1 => Just(Outcome::Tunnel),
    ];
    let step = prop_oneof![
        16 => (prop::option::weighted(0.3, any.clone()), prop::bool::weighted(0.2), moment.clone())
            .prop_map(|(exclude, front, age)| Step::Acquire { exclude, front, age }),
        12 => (any.clone(), outcome).prop_map(|(which, outcome)| Step::Release { which, outcome }),
        3 => any.clone().prop_map(Step::Cancel),
        4 => any.clone().prop_map(Step::Patience),
        2 => (0..3_u32).prop_map(|app_generation| Step::Add { app_generation }),
        5 => any.clone().prop_map(Step::Ready),
        1 => any.clone().prop_map(Step::Drain),
        1 => any.clone().prop_map(Step::Died),
        1 => any.clone().prop_map(Step::Remove),
        1 => any.clone().prop_map(Step::Unreachable),
        1 => any.prop_map(Step::Suspect),
        1 => Just(Step::Fail),
        2 => Just(Step::Recover),
        4 => moment.prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..160)
}

#[derive(Debug)]
struct ModelWorker {
    id: WorkerId,
    app_generation: u32,
    phase: Phase,
    in_flight: u32,
    served: u64,
    /// Orders the workers that are otherwise equal; see `Model::before`.
    stamp: i64,
    removed: bool,
}

#[derive(Debug)]
struct ModelWaiter {
    waiter: Waiter,
    ticket: Ticket,
    exclude: Option<WorkerId>,
    since: Instant,
    front: bool,
}

struct Model {
    balance: Balance,
    concurrency: u32,
    workers: Vec<ModelWorker>,
    queue: Vec<ModelWaiter>,
    last_ready: Instant,
    last_unready: Instant,
    failed: bool,
    stamp: i64,
    notices: Vec<Notice>,
}

impl Model {
    fn eligible(&self) -> usize {
        self.workers.iter().filter(|worker| worker.phase == Phase::Ready).count()
    }

    fn has_room(&self, worker: &ModelWorker) -> bool {
        worker.phase == Phase::Ready && worker.in_flight < self.concurrency
    }

    fn suits(&self, worker: &ModelWorker, exclude: Option<WorkerId>) -> bool {
        self.has_room(worker) && (exclude != Some(worker.id) || self.eligible() == 1)
    }

    fn choose(&self, exclude: Option<WorkerId>) -> Option<usize> {
        let rank = |worker: &ModelWorker| {
            let load = if self.balance == Balance::RoundRobin { 0 } else { worker.in_flight };
            let stamp = if self.balance == Balance::Lifo { -worker.stamp } else { worker.stamp };
            (u32::MAX - worker.app_generation, load, stamp)
        };
        let suited = (0..self.workers.len()).filter(|&index| self.suits(&self.workers[index], exclude));
        suited.min_by_key(|&index| rank(&self.workers[index]))
    }

    fn next_stamp(&mut self) -> i64 {
        self.stamp += 1;
        self.stamp
    }

    fn take(&mut self, index: usize) -> WorkerId {
        let stamp = self.next_stamp();
        let worker = &mut self.workers[index];
        worker.in_flight += 1;
        // LIFO puts one that was given a request behind those equal to it, and one whose request ended before them.
        worker.stamp = if self.balance == Balance::Lifo { -stamp } else { stamp };
        worker.id
    }

    /// A request on this worker ends; who gets its slot.
    fn release(&mut self, id: WorkerId, outcome: Outcome) -> Option<(Waiter, WorkerId)> {
        let stamp = self.next_stamp();
        let (balance, concurrency) = (self.balance, self.concurrency);
        let worker = self.worker(id)?;
        let was_full = worker.in_flight == concurrency;
        worker.in_flight -= 1;
        let phase = worker.phase;
        let mut told = Vec::new();
        if matches!(outcome, Outcome::Answered | Outcome::Broken | Outcome::Tunnel) {
            worker.served += 1;
            if worker.served == REQUEST_LIMIT && matches!(phase, Phase::Ready | Phase::Unreachable) {
                told.push(Notice::Threshold(id));
            }
        }
        if phase == Phase::Ready && (balance != Balance::RoundRobin || was_full) {
            worker.stamp = stamp;
        }
        if phase == Phase::Draining && worker.in_flight == 0 {
            told.push(Notice::Drained(id));
        }
        self.notices.extend(told);
        self.forget();
        self.hand_on(id)
    }

    fn hand_on(&mut self, id: WorkerId) -> Option<(Waiter, WorkerId)> {
        let index = self.workers.iter().position(|worker| worker.id == id)?;
        let first = self.queue.iter().position(|waiter| self.suits(&self.workers[index], waiter.exclude))?;
        let waiter = self.queue.remove(first).waiter;
        Some((waiter, self.take(index)))
    }

    fn worker(&mut self, id: WorkerId) -> Option<&mut ModelWorker> {
        self.workers.iter_mut().find(|worker| worker.id == id)
    }

    fn forget(&mut self) {
        let gone = |worker: &ModelWorker| worker.removed && worker.in_flight == 0;
        let dead: Vec<_> = self.workers.iter().filter(|worker| gone(worker)).map(|worker| worker.id).collect();
        self.workers.retain(|worker| !gone(worker));
        self.notices.retain(|notice| !dead.contains(&subject(*notice)));
    }

    /// A worker changes its phase; the grants that follow from it.
    fn enter(&mut self, id: WorkerId, phase: Phase, now: Instant) -> Vec<(Waiter, WorkerId)> {
        let (eligible, stamp) = (self.eligible(), self.next_stamp());
        let Some(worker) = self.worker(id) else { return Vec::new() };
        worker.phase = phase;
        if phase == Phase::Ready {
            worker.stamp = stamp;
            if eligible == 0 {
                self.last_ready = now;
            }
            return std::iter::from_fn(|| self.hand_on(id)).collect();
        }
        if self.eligible() == eligible {
            return Vec::new();
        }
        match self.eligible() {
            0 => self.last_unready = now,
            1 => {
                let last = self.workers.iter().find(|worker| worker.phase == Phase::Ready).unwrap().id;
                return std::iter::from_fn(|| self.hand_on(last)).collect();
            }
            _ => (),
        }
        Vec::new()
    }
}

fn subject(notice: Notice) -> WorkerId {
    match notice {
        Notice::Unreachable(id)
        | Notice::Threshold(id)
        | Notice::Drained(id)
        | Notice::Suspect(id)
        | Notice::Stuck(id) => id,
    }
}

fn rank(notice: &Notice) -> (u32, u8) {
    let kind = match notice {
        Notice::Unreachable(_) => 0,
        Notice::Threshold(_) => 1,
        Notice::Drained(_) => 2,
        Notice::Suspect(_) => 3,
        Notice::Stuck(_) => 4,
    };
    (subject(*notice).index, kind)
}

/// How a waiter ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    Granted,
    Cancelled,
    TimedOut,
    Refused,
}

struct Run {
    dispatch: Dispatch,
    model: Model,
    now: Instant,
    permits: Vec<Permit>,
    delivered: Arc<Mutex<Vec<Grant>>>,
    ends: HashMap<Waiter, End>,
    asked: u32,
}

impl Run {
    fn new(balance: Balance, concurrency: u32) -> Run {
        let now = Instant::now();
        let policy = Policy {
            balance,
            concurrency,
            queue_size: QUEUE_SIZE,
            queue_timeout: QUEUE_TIMEOUT,
            hold: HOLD,
            max_tunnels: 2,
        };
        let dispatch = Dispatch::new(policy, 5, now);
        let delivered = Arc::new(Mutex::new(Vec::new()));
        let letters = Arc::clone(&delivered);
        dispatch.on_grant(Box::new(move |grant| letters.lock().unwrap().push(grant)));
        let model = Model {
            balance,
            concurrency,
            workers: Vec::new(),
            queue: Vec::new(),
            last_ready: now,
            last_unready: now,
            failed: false,
            stamp: 0,
            notices: Vec::new(),
        };
        Run { dispatch, model, now, permits: Vec::new(), delivered, ends: HashMap::new(), asked: 0 }
    }

    fn end(&mut self, waiter: Waiter, end: End) {
        assert_eq!(self.ends.insert(waiter, end), None, "{waiter:?} ended twice");
    }

    /// Grants that were made must be those of the model.
    fn granted(&mut self, grants: impl IntoIterator<Item = Grant>, expected: Vec<(Waiter, WorkerId)>) {
        let grants: Vec<_> = grants.into_iter().collect();
        let got: Vec<_> = grants.iter().map(|grant| (grant.waiter, grant.permit.worker())).collect();
        for grant in grants {
            self.end(grant.waiter, End::Granted);
            self.permits.push(grant.permit);
        }
        assert_eq!(got, expected);
    }

    fn take_delivered(&mut self) -> Vec<Grant> {
        std::mem::take(&mut *self.delivered.lock().unwrap())
    }

    fn worker_id(&self, which: usize) -> Option<WorkerId> {
        let workers = &self.model.workers;
        (!workers.is_empty()).then(|| workers[which % workers.len()].id)
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Acquire { exclude, front, age } => self.acquire(exclude, front, age),
            Step::Release { which, outcome } => self.release(which, outcome),
            Step::Cancel(which) if !self.model.queue.is_empty() => {
                let gone = self.model.queue.remove(which % self.model.queue.len());
                assert!(self.dispatch.cancel(gone.ticket));
                assert!(!self.dispatch.cancel(gone.ticket), "a ticket was cancelled twice");
                self.end(gone.waiter, End::Cancelled);
            }
            Step::Patience(which) if !self.model.queue.is_empty() => {
                self.patience(which % self.model.queue.len());
            }
            Step::Add { app_generation } => self.add(app_generation),
            Step::Fail => {
                let told = self.dispatch.fail();
                let expected: Vec<_> = self.model.queue.drain(..).map(|waiter| waiter.waiter).collect();
                assert_eq!(told, expected);
                told.into_iter().for_each(|waiter| self.end(waiter, End::Refused));
                self.model.failed = true;
            }
            Step::Recover => {
                self.dispatch.recover();
                self.model.failed = false;
            }
            Step::Pass(millis) => self.now += Duration::from_millis(millis),
            Step::Cancel(_) | Step::Patience(_) => (),
            Step::Ready(which)
            | Step::Drain(which)
            | Step::Died(which)
            | Step::Remove(which)
            | Step::Unreachable(which)
            | Step::Suspect(which) => {
                if let Some(id) = self.worker_id(which) {
                    self.change(&step, id);
                }
            }
        }
        self.check();
    }

    fn acquire(&mut self, exclude: Option<usize>, front: bool, age: u64) {
        self.asked += 1;
        let waiter = waiter(self.asked);
        let exclude = exclude.and_then(|which| self.worker_id(which));
        // An age before the run's first moment may not be sayable.
        let since = self.now.checked_sub(Duration::from_millis(age)).unwrap_or(self.now);
        let answer = self.dispatch.acquire(waiter, Ask { since, exclude, front }, self.now);
        let model = &mut self.model;
        if model.failed {
            assert!(matches!(answer, Acquire::Failed), "{answer:?}");
            return self.end(waiter, End::Refused);
        }
        match (model.choose(exclude), answer) {
            (Some(index), Acquire::Granted(permit)) => {
                let expected = model.take(index);
                let got = permit.worker();
                self.permits.push(permit);
                assert_eq!(got, expected);
                self.end(waiter, End::Granted);
            }
            (None, Acquire::Full) => {
                assert!(!front && model.queue.len() >= QUEUE_SIZE);
                // One who would take any worker might still be served by the one that was excluded.
                assert_eq!(self.dispatch.queue_is_full(), model.choose(None).is_none());
                self.end(waiter, End::Refused);
            }
            (None, Acquire::Queued(ticket)) => {
                assert!(front || model.queue.len() < QUEUE_SIZE, "the bound is passed");
                let place = match front {
                    true => model.queue.iter().position(|other| !other.front || other.since > since),
                    false => None,
                };
                let waiting = ModelWaiter { waiter, ticket, exclude, since, front };
                model.queue.insert(place.unwrap_or(model.queue.len()), waiting);
            }
            (expected, answer) => panic!("{answer:?} instead of {expected:?}"),
        }
    }

    fn release(&mut self, which: usize, outcome: Outcome) {
        if self.permits.is_empty() {
            return;
        }
        let permit = self.permits.swap_remove(which % self.permits.len());
        let id = permit.worker();
        let grant = self.dispatch.release(permit, outcome, self.now);
        let mut expected = Vec::new();
        if outcome == Outcome::Unreachable {
            let ready = self.model.worker(id).is_some_and(|worker| worker.phase == Phase::Ready);
            if ready {
                self.model.notices.push(Notice::Unreachable(id));
                expected = self.model.enter(id, Phase::Unreachable, self.now);
            }
        }
        expected.extend(self.model.release(id, outcome));
        let rest = self.take_delivered();
        self.granted(grant.into_iter().chain(rest), expected);
    }

    fn patience(&mut self, which: usize) {
        let (model, now) = (&mut self.model, self.now);
        let waiting = &model.queue[which];
        let (deadline, expired) = match model.eligible() {
            0 => (waiting.since.max(model.last_unready) + HOLD, Patience::HoldExpired),
            _ => (waiting.since.max(model.last_ready) + QUEUE_TIMEOUT, Patience::QueueTimeout),
        };
        match self.dispatch.patience(waiting.ticket, now) {
            Patience::Until(again) => {
                assert!(now < deadline && now < again && again <= deadline);
                // Whatever changes, a clock that starts from now on runs out no sooner than that.
                assert!(again <= now + QUEUE_TIMEOUT.max(HOLD));
            }
            answer => {
                assert!(now >= deadline, "{answer:?} came early");
                assert_eq!(answer, expired);
                let gone = model.queue.remove(which);
                assert_eq!(self.dispatch.patience(gone.ticket, now), Patience::Granted);
                self.end(gone.waiter, End::TimedOut);
            }
        }
    }

    fn add(&mut self, app_generation: u32) {
        let added = self.dispatch.add(at_nowhere("any"), app_generation, Some(REQUEST_LIMIT));
        assert_eq!(added.is_none(), self.model.workers.len() == 5, "the table's limit");
        if let Some(id) = added {
            self.model.workers.push(ModelWorker {
                id,
                app_generation,
                phase: Phase::Starting,
                in_flight: 0,
                served: 0,
                stamp: 0,
                removed: false,
            });
        }
    }

    fn change(&mut self, step: &Step, id: WorkerId) {
        let now = self.now;
        let (phase, in_flight) = self.model.worker(id).map(|worker| (worker.phase, worker.in_flight)).unwrap();
        let mut grants = Vec::new();
        let mut expected = Vec::new();
        match step {
            Step::Ready(_) => {
                grants = self.dispatch.ready(id, now);
                if matches!(phase, Phase::Starting | Phase::Unreachable) {
                    expected = self.model.enter(id, Phase::Ready, now);
                }
            }
            Step::Drain(_) => {
                self.dispatch.drain(id, now);
                if !matches!(phase, Phase::Draining | Phase::Dead) {
                    expected = self.model.enter(id, Phase::Draining, now);
                    self.model.notices.extend((in_flight == 0).then_some(Notice::Drained(id)));
                }
            }
            Step::Died(_) => {
                self.dispatch.died(id, now);
                expected = self.model.enter(id, Phase::Dead, now);
                assert_eq!(self.dispatch.is_alive(id), Some(false));
            }
            Step::Remove(_) => {
                self.dispatch.remove(id, now);
                self.model.worker(id).unwrap().removed = true;
                expected = self.model.enter(id, Phase::Dead, now);
                self.model.forget();
                assert_eq!(self.dispatch.target(id).is_some(), in_flight > 0);
            }
            Step::Unreachable(_) => {
                self.dispatch.unreachable(id, now);
                if phase == Phase::Ready {
                    expected = self.model.enter(id, Phase::Unreachable, now);
                }
            }
            _ => {
                self.dispatch.suspect(id);
                self.model.notices.push(Notice::Suspect(id));
            }
        }
        grants.extend(self.take_delivered());
        self.granted(grants, expected);
    }

    /// What holds after each step.
    fn check(&mut self) {
        let mut notices = Vec::new();
        self.dispatch.notices(&mut notices);
        self.model.notices.sort_by_key(rank);
        assert_eq!(notices, self.model.notices);
        self.model.notices.clear();
        let model = &self.model;
        for waiter in &model.queue {
            let idle = model.workers.iter().find(|worker| model.suits(worker, waiter.exclude));
            assert!(idle.is_none(), "{waiter:?} waits while there is {idle:?}");
            assert!(!self.ends.contains_key(&waiter.waiter), "{waiter:?} waits and has ended");
        }
        let snapshot = self.dispatch.snapshot();
        assert_eq!((snapshot.queue_depth, snapshot.workers.len()), (model.queue.len(), model.workers.len()));
        for worker in &snapshot.workers {
            let expected = model.workers.iter().find(|expected| expected.id == worker.id).unwrap();
            let (got, expected) = (
                (worker.phase, worker.in_flight, worker.served, worker.app_generation),
                (expected.phase, expected.in_flight, expected.served, expected.app_generation),
            );
            assert_eq!(got, expected);
        }
        self.dispatch.check_invariants();
    }

    /// All permits come back, all who wait leave: then nothing is left, and everyone has ended once.
    fn close(mut self) {
        while !self.permits.is_empty() {
            self.step(Step::Release { which: 0, outcome: Outcome::Answered });
        }
        while !self.model.queue.is_empty() {
            self.step(Step::Cancel(0));
        }
        assert_eq!(self.ends.len(), self.asked as usize, "someone never ended");
        let snapshot = self.dispatch.snapshot();
        assert_eq!(snapshot.queue_depth, 0);
        assert!(snapshot.workers.iter().all(|worker| worker.in_flight == 0));
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // A failed run leaves permits behind, and must say what failed and not that.
        self.permits.drain(..).for_each(std::mem::forget);
        self.delivered.lock().unwrap().drain(..).for_each(std::mem::forget);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn every_call_answers_as_the_model_does(
        balance in prop_oneof![3 => Just(Balance::Lifo), 1 => Just(Balance::RoundRobin), 1 => Just(Balance::Least)],
        concurrency in 1..=4_u32,
        steps in steps(),
    ) {
        let mut run = Run::new(balance, concurrency);
        for app_generation in [0, 1] {
            run.step(Step::Add { app_generation });
            run.step(Step::Ready(app_generation as usize));
        }
        steps.into_iter().for_each(|step| run.step(step));
        run.close();
    }
}
