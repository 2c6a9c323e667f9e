//! The dispatch against a model that keeps plain lists and looks through all of them each time.
//!
//! Any sequence of calls must give the same answers as the model's, grant for grant and notice for notice: first come first
//! served but for the advantage of the own loop, turns by keys, the choice of each balance, tunnels, the bound, the clocks. Besides, whatever the model says, no one may wait whom an eligible
//! worker has room for, and each waiter must end exactly once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::tests::{at_nowhere, waiter_of};
use super::*;

const QUEUE_SIZE: usize = 4;
/// So many that several keys have several waiters.
const FAIR_QUEUE_SIZE: usize = 12;
const QUEUE_TIMEOUT: Duration = Duration::from_millis(200);
const HOLD: Duration = Duration::from_millis(500);
/// Ends a wait whatever the clocks say.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(800);
const REQUEST_LIMIT: u64 = 3;
const MAX_TUNNELS: u32 = 2;
const FAILURES: u32 = 3;
const LOOPS: u16 = 3;

#[derive(Clone, Debug)]
enum Step {
    Acquire { home: u16, exclude: Option<usize>, front: bool, tunnel: bool, age: u64, turn: u64 },
    Release { which: usize, outcome: Outcome, home: u16 },
    TunnelEnded(usize),
    Cancel(usize),
    Patience(usize),
    Add { app_generation: u32, ours: bool },
    Ready(usize),
    Drain(usize),
    Died(usize),
    Remove(usize),
    Unreachable(usize),
    Suspect(usize),
    Limit(usize, Option<u32>),
    Spare(usize),
    Unspare(usize),
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
        1 => Just(Outcome::Declined),
        1 => Just(Outcome::Broken),
        2 => Just(Outcome::Failed),
        1 => Just(Outcome::Late),
        1 => Just(Outcome::Malformed),
        1 => Just(Outcome::Lost),
        1 => Just(Outcome::Unreachable),
        3 => Just(Outcome::Tunnel),
    ];
    // Around what the own loop's waiters may be ahead.
    let instant = (0..4_u64).prop_map(|steps| steps * 500);
    let step = prop_oneof![
        16 => (
            0..LOOPS,
            prop::option::weighted(0.3, any.clone()),
            prop::bool::weighted(0.2),
            prop::bool::weighted(0.3),
            moment.clone(),
            // The first of them comes more often than the others together.
            prop_oneof![1 => Just(0), 4 => Just(1), 3 => 2..5_u64],
        )
            .prop_map(|(home, exclude, front, tunnel, age, turn)| {
                Step::Acquire { home, exclude, front, tunnel, age, turn }
            }),
        12 => (any.clone(), outcome, 0..LOOPS)
            .prop_map(|(which, outcome, home)| Step::Release { which, outcome, home }),
        2 => any.clone().prop_map(Step::TunnelEnded),
        3 => any.clone().prop_map(Step::Cancel),
        4 => any.clone().prop_map(Step::Patience),
        2 => (0..3_u32, prop::bool::weighted(0.7))
            .prop_map(|(app_generation, ours)| Step::Add { app_generation, ours }),
        5 => any.clone().prop_map(Step::Ready),
        1 => any.clone().prop_map(Step::Drain),
        1 => any.clone().prop_map(Step::Died),
        1 => any.clone().prop_map(Step::Remove),
        1 => any.clone().prop_map(Step::Unreachable),
        1 => any.clone().prop_map(Step::Suspect),
        1 => (any.clone(), prop::option::of(1..=4_u32)).prop_map(|(which, most)| Step::Limit(which, most)),
        2 => any.clone().prop_map(Step::Spare),
        2 => any.prop_map(Step::Unspare),
        1 => Just(Step::Fail),
        2 => Just(Step::Recover),
        3 => moment.prop_map(|millis| Step::Pass(millis * 1000)),
        6 => instant.prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..160)
}

#[derive(Debug)]
struct ModelWorker {
    id: WorkerId,
    app_generation: u32,
    standing: Standing,
    ours: bool,
    in_flight: u32,
    served: u64,
    tunnels: u32,
    upgrading: u32,
    /// Orders the workers that are otherwise equal; see `Model::before`.
    stamp: i64,
    removed: bool,
    failures: u32,
    most: Option<u32>,
    spared: bool,
}

#[derive(Debug)]
struct ModelWaiter {
    waiter: Waiter,
    ticket: Ticket,
    exclude: Option<WorkerId>,
    tunnel: bool,
    since: Instant,
    came: Instant,
    front: bool,
    turn: u64,
}

impl ModelWorker {
    /// Whether nothing is under way in it that is waited for.
    fn is_done(&self) -> bool {
        self.in_flight == 0 && (self.tunnels == 0 || !self.ours || self.standing == Standing::Dead)
    }
}

impl ModelWaiter {
    /// Whether it stands for others, or they for it.
    fn takes_turns(&self, fair: bool) -> bool {
        fair && self.turn != 0 && !self.front && self.exclude.is_none()
    }

    /// Whether it came up to a millisecond later than another, by the clock that orders them.
    fn nearly_as_old(&self, other: &ModelWaiter) -> bool {
        let clock = |waiter: &ModelWaiter| if self.front { waiter.since } else { waiter.came };
        self.front == other.front && clock(self) <= clock(other) + HOME_ADVANTAGE
    }
}

struct Model {
    balance: Balance,
    concurrency: u32,
    workers: Vec<ModelWorker>,
    fair: bool,
    queue: Vec<ModelWaiter>,
    /// Those who wait for another of their key to go, as they came.
    behind: Vec<ModelWaiter>,
    last_ready: Instant,
    last_unready: Instant,
    failed: bool,
    stamp: i64,
    notices: Vec<Notice>,
}

impl Model {
    fn eligible(&self) -> usize {
        self.workers.iter().filter(|worker| worker.standing == Standing::Ready).count()
    }

    fn has_room(&self, worker: &ModelWorker) -> bool {
        worker.standing == Standing::Ready && worker.in_flight < self.capacity(worker)
    }

    fn capacity(&self, worker: &ModelWorker) -> u32 {
        self.concurrency.min(worker.most.unwrap_or(u32::MAX)) - u32::from(worker.spared)
    }

    fn failed(&mut self, id: WorkerId) {
        let Some(worker) = self.worker(id).filter(|worker| !worker.ours && worker.standing == Standing::Ready) else {
            return;
        };
        worker.failures += 1;
        if worker.failures == FAILURES || worker.most.is_some() {
            worker.failures = 0;
            self.notices.push(Notice::Failing(id));
        }
    }

    /// A worker may have another number of requests from now on; the grants that follow from it.
    fn share(&mut self, id: WorkerId, change: impl FnOnce(&mut ModelWorker)) -> Vec<(Waiter, WorkerId)> {
        let stamp = self.next_stamp();
        let Some(index) = self.workers.iter().position(|worker| worker.id == id) else { return Vec::new() };
        let had = self.has_room(&self.workers[index]);
        change(&mut self.workers[index]);
        if !had && self.has_room(&self.workers[index]) {
            self.workers[index].stamp = stamp;
        }
        std::iter::from_fn(|| self.hand_on(id, None)).collect()
    }

    fn suits(&self, worker: &ModelWorker, exclude: Option<WorkerId>, tunnel: bool) -> bool {
        self.has_room(worker) && self.would_do(worker, exclude, tunnel)
    }

    /// Whether a worker is worth waiting for.
    fn would_do(&self, worker: &ModelWorker, exclude: Option<WorkerId>, tunnel: bool) -> bool {
        let room = !tunnel || worker.tunnels + worker.upgrading < MAX_TUNNELS;
        worker.standing == Standing::Ready && room && (exclude != Some(worker.id) || self.eligible() == 1)
    }

    fn choose(&self, exclude: Option<WorkerId>, tunnel: bool) -> Option<usize> {
        let rank = |worker: &ModelWorker| {
            let load = if self.balance == Balance::RoundRobin { 0 } else { worker.in_flight };
            let stamp = if self.balance == Balance::Lifo { -worker.stamp } else { worker.stamp };
            let tunnels = if tunnel { worker.tunnels + worker.upgrading } else { 0 };
            (u32::MAX - worker.app_generation, tunnels, load, stamp)
        };
        let suited = (0..self.workers.len()).filter(|&index| self.suits(&self.workers[index], exclude, tunnel));
        suited.min_by_key(|&index| rank(&self.workers[index]))
    }

    fn next_stamp(&mut self) -> i64 {
        self.stamp += 1;
        self.stamp
    }

    fn take(&mut self, index: usize, tunnel: bool) -> WorkerId {
        let stamp = self.next_stamp();
        let worker = &mut self.workers[index];
        worker.in_flight += 1;
        worker.upgrading += u32::from(tunnel);
        // LIFO puts one that was given a request behind those equal to it, and one whose request ended before them.
        worker.stamp = if self.balance == Balance::Lifo { -stamp } else { stamp };
        worker.id
    }

    /// A request on this worker ends; who gets its slot.
    fn release(&mut self, id: WorkerId, tunnel: bool, outcome: Outcome, home: u16) -> Option<(Waiter, WorkerId)> {
        let stamp = self.next_stamp();
        let (balance, concurrency) = (self.balance, self.concurrency);
        let capacity = self.workers.iter().find(|worker| worker.id == id).map(|worker| self.capacity(worker))?;
        let worker = self.worker(id)?;
        let was_full = worker.in_flight >= capacity;
        worker.in_flight -= 1;
        worker.upgrading -= u32::from(tunnel);
        worker.tunnels += u32::from(outcome == Outcome::Tunnel);
        let standing = worker.standing;
        let mut told = Vec::new();
        if matches!(outcome, Outcome::Answered | Outcome::Tunnel) {
            worker.failures = 0;
            told.extend(worker.most.map(|_| Notice::Recovers(id)));
        }
        if !matches!(outcome, Outcome::Unused | Outcome::Declined | Outcome::Unreachable) {
            worker.served += 1;
            if worker.served == REQUEST_LIMIT && matches!(standing, Standing::Ready | Standing::Unreachable) {
                told.push(Notice::Threshold(id));
            }
        }
        let room = worker.in_flight < capacity;
        if standing == Standing::Ready && room && (balance != Balance::RoundRobin || was_full) {
            let behind = balance == Balance::Lifo && outcome == Outcome::Declined;
            worker.stamp = if behind { -stamp } else { stamp };
        }
        if worker.spared && worker.in_flight + 1 == concurrency {
            told.push(Notice::Spared(id));
        }
        if matches!(standing, Standing::Draining | Standing::Dead) && worker.is_done() {
            told.push(Notice::Drained(id));
        }
        self.notices.extend(told);
        self.forget();
        self.hand_on(id, Some(home))
    }

    fn hand_on(&mut self, id: WorkerId, home: Option<u16>) -> Option<(Waiter, WorkerId)> {
        let index = self.workers.iter().position(|worker| worker.id == id)?;
        let suited = |waiter: &ModelWaiter| self.suits(&self.workers[index], waiter.exclude, waiter.tunnel);
        let home = home.filter(|_| !self.queue.iter().any(|waiter| waiter.takes_turns(self.fair)));
        let oldest = self.queue.iter().position(suited)?;
        let own = self.queue.iter().position(|waiter| Some(waiter.waiter.loop_index) == home && suited(waiter));
        let chosen = own.filter(|&own| self.queue[own].nearly_as_old(&self.queue[oldest])).unwrap_or(oldest);
        let waiter = &self.queue[chosen];
        let passed_over = self.queue[..chosen].iter().filter(|other| suited(other));
        for other in passed_over {
            assert!(waiter.nearly_as_old(other), "{other:?} is passed over by {waiter:?}");
        }
        let ModelWaiter { waiter, tunnel, .. } = self.take_out(chosen, false);
        Some((waiter, self.take(index, tunnel)))
    }

    /// Takes one out of the line: the next of its key stands in its place if it has waited `in_vain`, and else at the end.
    fn take_out(&mut self, place: usize, in_vain: bool) -> ModelWaiter {
        let gone = self.queue.remove(place);
        let same = |other: &ModelWaiter| other.turn == gone.turn && other.tunnel == gone.tunnel;
        if gone.takes_turns(self.fair)
            && let Some(next) = self.behind.iter().position(same)
        {
            let next = self.behind.remove(next);
            self.queue.insert(if in_vain { place } else { self.queue.len() }, next);
        }
        gone
    }

    /// Takes out the one of that number among all, who has waited in vain.
    fn give_up(&mut self, which: usize) -> ModelWaiter {
        let place = which % (self.queue.len() + self.behind.len());
        match place.checked_sub(self.queue.len()) {
            Some(behind) => self.behind.remove(behind),
            None => self.take_out(place, true),
        }
    }

    fn all(&self) -> impl Iterator<Item = &ModelWaiter> {
        self.queue.iter().chain(&self.behind)
    }

    /// Whether the line takes one more with that key.
    fn takes(&self, turn: u64, tunnel: bool) -> bool {
        let size = if self.fair { FAIR_QUEUE_SIZE } else { QUEUE_SIZE };
        let left = size.saturating_sub(self.all().count());
        let same = |other: &&ModelWaiter| other.turn == turn && other.tunnel == tunnel && other.takes_turns(self.fair);
        left > 0 && self.all().filter(same).count() < left
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

    /// A worker changes its standing; the grants that follow from it.
    fn enter(&mut self, id: WorkerId, standing: Standing, now: Instant) -> Vec<(Waiter, WorkerId)> {
        let (eligible, stamp) = (self.eligible(), self.next_stamp());
        let Some(worker) = self.worker(id) else { return Vec::new() };
        worker.standing = standing;
        if standing == Standing::Ready {
            worker.stamp = stamp;
            if eligible == 0 {
                self.last_ready = now;
            }
            return std::iter::from_fn(|| self.hand_on(id, None)).collect();
        }
        if self.eligible() == eligible {
            return Vec::new();
        }
        match self.eligible() {
            0 => self.last_unready = now,
            1 => {
                let last = self.workers.iter().find(|worker| worker.standing == Standing::Ready).unwrap().id;
                return std::iter::from_fn(|| self.hand_on(last, None)).collect();
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
        | Notice::Stuck(id)
        | Notice::Failing(id)
        | Notice::Recovers(id)
        | Notice::Spared(id) => id,
    }
}

fn rank(notice: &Notice) -> (u32, u8) {
    let kind = match notice {
        Notice::Unreachable(_) => 0,
        Notice::Threshold(_) => 1,
        Notice::Drained(_) => 2,
        Notice::Suspect(_) => 3,
        Notice::Stuck(_) => 4,
        Notice::Failing(_) => 5,
        Notice::Recovers(_) => 6,
        Notice::Spared(_) => 7,
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
    fn new(balance: Balance, concurrency: u32, fair: bool) -> Run {
        let now = Instant::now();
        let policy = Policy {
            balance,
            concurrency,
            queue_size: if fair { FAIR_QUEUE_SIZE } else { QUEUE_SIZE },
            queue_timeout: QUEUE_TIMEOUT,
            hold: HOLD,
            max_tunnels: MAX_TUNNELS,
            failures: FAILURES,
            fair,
        };
        let dispatch = Dispatch::new(policy, 5, now);
        let delivered = Arc::new(Mutex::new(Vec::new()));
        let letters = Arc::clone(&delivered);
        dispatch.on_grant(Box::new(move |grant| letters.lock().unwrap().push(grant)));
        let model = Model {
            balance,
            concurrency,
            workers: Vec::new(),
            fair,
            queue: Vec::new(),
            behind: Vec::new(),
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
            Step::Acquire { home, exclude, front, tunnel, age, turn } => {
                let exclude = exclude.and_then(|which| self.worker_id(which));
                // An age before the run's first moment may not be sayable.
                let since = self.now.checked_sub(Duration::from_millis(age)).unwrap_or(self.now);
                self.acquire(home, Ask { since, exclude, front, tunnel, turn });
            }
            Step::Release { which, outcome, home } => self.release(which, outcome, home),
            Step::TunnelEnded(which) => {
                if let Some(id) = self.worker_id(which) {
                    self.dispatch.tunnel_ended(id);
                    let worker = self.model.worker(id).unwrap();
                    let last = worker.tunnels == 1;
                    worker.tunnels = worker.tunnels.saturating_sub(1);
                    let drained = last && worker.standing == Standing::Draining && worker.is_done();
                    self.model.notices.extend(drained.then_some(Notice::Drained(id)));
                    let expected = self.model.hand_on(id, None);
                    let delivered = self.take_delivered();
                    self.granted(delivered, expected.into_iter().collect());
                }
            }
            Step::Cancel(which) if !self.model.queue.is_empty() => {
                let gone = self.model.give_up(which);
                assert!(self.dispatch.cancel(gone.ticket));
                assert!(!self.dispatch.cancel(gone.ticket), "a ticket was cancelled twice");
                self.end(gone.waiter, End::Cancelled);
            }
            Step::Patience(which) if !self.model.queue.is_empty() => {
                self.patience(which % self.model.all().count());
            }
            Step::Add { app_generation, ours } => self.add(app_generation, ours),
            Step::Fail => {
                let told = self.dispatch.fail();
                let model = &mut self.model;
                let next = || (!model.queue.is_empty()).then(|| model.take_out(0, false).waiter);
                let expected: Vec<_> = std::iter::from_fn(next).collect();
                assert_eq!(told, expected);
                told.into_iter().for_each(|waiter| self.end(waiter, End::Refused));
                self.model.failed = true;
            }
            Step::Recover => {
                self.dispatch.recover();
                self.model.failed = false;
            }
            Step::Pass(micros) => self.now += Duration::from_micros(micros),
            Step::Cancel(_) | Step::Patience(_) => (),
            Step::Ready(which)
            | Step::Drain(which)
            | Step::Died(which)
            | Step::Remove(which)
            | Step::Unreachable(which)
            | Step::Suspect(which)
            | Step::Limit(which, _)
            | Step::Spare(which)
            | Step::Unspare(which) => {
                if let Some(id) = self.worker_id(which) {
                    self.change(&step, id);
                }
            }
        }
        self.check();
    }

    fn acquire(&mut self, home: u16, ask: Ask) {
        self.asked += 1;
        let waiter = waiter_of(home, self.asked);
        let Ask { since, exclude, front, tunnel, turn } = ask;
        let answer = self.dispatch.acquire(waiter, ask, self.now);
        let model = &mut self.model;
        if model.failed {
            assert!(matches!(answer, Acquire::Failed), "{answer:?}");
            return self.end(waiter, End::Refused);
        }
        let hopeless = model.eligible() > 0 && !model.workers.iter().any(|it| model.would_do(it, exclude, tunnel));
        match (model.choose(exclude, tunnel), answer) {
            (Some(index), Acquire::Granted(permit)) => {
                let expected = model.take(index, tunnel);
                let got = permit.worker();
                self.permits.push(permit);
                assert_eq!(got, expected);
                self.end(waiter, End::Granted);
            }
            (None, Acquire::NoTunnel) => {
                assert!(tunnel && hopeless);
                self.end(waiter, End::Refused);
            }
            (None, Acquire::Full) => {
                assert!(!front && !hopeless && !model.takes(turn, tunnel));
                // One who would take any worker might still be served by the one that was excluded.
                let full = !model.takes(turn, false) && model.choose(None, false).is_none();
                assert_eq!(self.dispatch.queue_is_full(turn), full);
                self.end(waiter, End::Refused);
            }
            (None, Acquire::Queued(ticket)) => {
                assert!(!hopeless && (front || model.takes(turn, tunnel)), "the bound is passed");
                let place = match front {
                    true => model.queue.iter().position(|other| !other.front || other.since > since),
                    false => None,
                };
                let waiting = ModelWaiter { waiter, ticket, exclude, tunnel, since, came: self.now, front, turn };
                let same = |other: &&ModelWaiter| {
                    other.turn == turn && other.tunnel == tunnel && other.takes_turns(model.fair)
                };
                if waiting.takes_turns(model.fair) && model.all().any(|other| same(&other)) {
                    model.behind.push(waiting);
                } else {
                    model.queue.insert(place.unwrap_or(model.queue.len()), waiting);
                }
            }
            (expected, answer) => panic!("{answer:?} instead of {expected:?}"),
        }
    }

    fn release(&mut self, which: usize, outcome: Outcome, home: u16) {
        if self.permits.is_empty() {
            return;
        }
        let permit = self.permits.swap_remove(which % self.permits.len());
        let (id, tunnel) = (permit.worker(), permit.0.tunnel());
        let grant = self.dispatch.release(permit, outcome, self.now, home);
        let mut expected = Vec::new();
        let ready = self.model.worker(id).filter(|worker| worker.standing == Standing::Ready);
        let gone = ready.as_ref().is_some_and(|worker| match outcome {
            Outcome::Unreachable => true,
            Outcome::Lost => worker.ours && worker.in_flight == 1,
            _ => false,
        });
        let is_ready = ready.is_some();
        if is_ready && matches!(outcome, Outcome::Failed | Outcome::Malformed | Outcome::Lost | Outcome::Unreachable) {
            self.model.failed(id);
        }
        if gone {
            self.model.notices.push(Notice::Unreachable(id));
            expected = self.model.enter(id, Standing::Unreachable, self.now);
        }
        expected.extend(self.model.release(id, tunnel, outcome, home));
        let rest = self.take_delivered();
        self.granted(grant.into_iter().chain(rest), expected);
    }

    fn patience(&mut self, which: usize) {
        let (model, now) = (&mut self.model, self.now);
        let waiting = model.all().nth(which).unwrap();
        let (deadline, expired) = match model.eligible() {
            0 => (waiting.since.max(model.last_unready) + HOLD, Patience::HoldExpired),
            _ => (waiting.since.max(model.last_ready) + QUEUE_TIMEOUT, Patience::QueueTimeout),
        };
        let by = waiting.since + REQUEST_TIMEOUT;
        let deadline = deadline.min(by);
        match self.dispatch.patience(waiting.ticket, by, now) {
            Patience::Until(again) => {
                assert!(now < deadline && now < again && again <= deadline);
                // Whatever changes, a clock that starts from now on runs out no sooner than that.
                assert!(again <= now + QUEUE_TIMEOUT.max(HOLD));
            }
            answer => {
                assert!(now >= deadline, "{answer:?} came early");
                assert_eq!(answer, expired);
                let gone = model.give_up(which);
                assert_eq!(self.dispatch.patience(gone.ticket, by, now), Patience::Granted);
                self.end(gone.waiter, End::TimedOut);
            }
        }
    }

    fn add(&mut self, app_generation: u32, ours: bool) {
        let target = Target { supervised: ours, ..at_nowhere("any") };
        let added = self.dispatch.add(target, app_generation, Some(REQUEST_LIMIT));
        assert_eq!(added.is_none(), self.model.workers.len() == 5, "the table's limit");
        if let Some(id) = added {
            self.model.workers.push(ModelWorker {
                id,
                app_generation,
                standing: Standing::Starting,
                ours,
                in_flight: 0,
                served: 0,
                tunnels: 0,
                upgrading: 0,
                stamp: 0,
                removed: false,
                failures: 0,
                most: None,
                spared: false,
            });
        }
    }

    fn change(&mut self, step: &Step, id: WorkerId) {
        let now = self.now;
        let worker = self.model.worker(id).unwrap();
        let (standing, in_flight, ours) = (worker.standing, worker.in_flight, worker.ours);
        let done = worker.is_done();
        let mut grants = Vec::new();
        let mut expected = Vec::new();
        match step {
            Step::Ready(_) => {
                grants = self.dispatch.ready(id, now);
                if matches!(standing, Standing::Starting | Standing::Unreachable) {
                    expected = self.model.enter(id, Standing::Ready, now);
                }
            }
            Step::Drain(_) => {
                self.dispatch.drain(id, now);
                if !matches!(standing, Standing::Draining | Standing::Dead) {
                    expected = self.model.enter(id, Standing::Draining, now);
                    self.model.notices.extend(done.then_some(Notice::Drained(id)));
                }
            }
            Step::Died(_) => {
                self.dispatch.died(id, now);
                expected = self.model.enter(id, Standing::Dead, now);
                assert_eq!(self.dispatch.is_alive(id), ours.then_some(false));
            }
            Step::Remove(_) => {
                self.dispatch.remove(id, now);
                self.model.worker(id).unwrap().removed = true;
                expected = self.model.enter(id, Standing::Dead, now);
                self.model.forget();
                assert_eq!(self.dispatch.target(id).is_some(), in_flight > 0);
            }
            Step::Unreachable(_) => {
                self.dispatch.unreachable(id, now);
                if standing == Standing::Ready {
                    expected = self.model.enter(id, Standing::Unreachable, now);
                }
            }
            Step::Limit(_, most) => {
                grants = self.dispatch.limit(id, *most);
                expected = self.model.share(id, |worker| worker.most = *most);
            }
            Step::Spare(_) => {
                assert_eq!(self.dispatch.spare(id), Some(in_flight < self.model.concurrency));
                expected = self.model.share(id, |worker| worker.spared = true);
            }
            Step::Unspare(_) => {
                grants = self.dispatch.unspare(id);
                expected = self.model.share(id, |worker| worker.spared = false);
            }
            _ => {
                self.dispatch.suspect(id);
                self.model.notices.push(Notice::Suspect(id));
                self.model.failed(id);
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
        self.model.notices.dedup();
        assert_eq!(notices, self.model.notices);
        self.model.notices.clear();
        let model = &self.model;
        for waiter in model.all() {
            let idle = model.workers.iter().find(|worker| model.suits(worker, waiter.exclude, waiter.tunnel));
            assert!(idle.is_none(), "{waiter:?} waits while there is {idle:?}");
            assert!(!self.ends.contains_key(&waiter.waiter), "{waiter:?} waits and has ended");
        }
        let snapshot = self.dispatch.snapshot();
        assert_eq!((snapshot.queue_depth, snapshot.workers.len()), (model.all().count(), model.workers.len()));
        for worker in &snapshot.workers {
            let expected = model.workers.iter().find(|expected| expected.id == worker.id).unwrap();
            let (got, expected) = (
                (worker.standing, worker.in_flight, worker.served, worker.tunnels, worker.app_generation),
                (expected.standing, expected.in_flight, expected.served, expected.tunnels, expected.app_generation),
            );
            assert_eq!(got, expected);
        }
        self.dispatch.check_invariants();
    }

    /// All permits come back, all who wait leave: then nothing is left, and everyone has ended once.
    fn close(mut self) {
        while !self.permits.is_empty() {
            self.step(Step::Release { which: 0, outcome: Outcome::Answered, home: 0 });
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
        fair in any::<bool>(),
        steps in steps(),
    ) {
        let mut run = Run::new(balance, concurrency, fair);
        for app_generation in [0, 1] {
            run.step(Step::Add { app_generation, ours: true });
            run.step(Step::Ready(app_generation as usize));
        }
        steps.into_iter().for_each(|step| run.step(step));
        run.close();
    }
}
