//! Dispatch: which worker a request gets, and who waits while none has room. One for each app, shared by all loops.
//!
//! A permit is the right to have one request in flight on one worker; permits are global, connections are each loop's
//! own. All state stands under one small mutex. The rules of that lock:
//!
//! - nothing under it allocates, logs, does I/O or calls out; what has to follow is handed to the caller, or done here once the
//!   lock is open ([`Dispatch::on_notice`], [`Dispatch::on_grant`]);
//! - nothing under it panics but for a broken invariant of this module; a lock so poisoned ends the process with a message;
//! - each call leaves the state such that no waiter waits while an eligible worker has room, unless the gate is not open
//!   ([`Dispatch::pause`]). A waiter who would rather not
//!   have one worker waits for any other that is eligible, and takes that one when it is the last; it never holds up those
//!   behind it.
//!
//! `workers.rs` keeps the workers and whose turn it is, `queue.rs` the waiting line; `types.rs` has the words spoken
//! here.

mod queue;
mod types;
mod workers;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod properties;
#[cfg(all(test, not(loom)))]
mod tests;

use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use std::sync::{Mutex, MutexGuard};

use crate::buffers::slots::Key;
use crate::planted::{self, Bug};
use queue::Queue;
pub use types::{
    Acquire, Ask, Balance, Grant, Notice, Outcome, Patience, Permit, Phase, Policy, Snapshot, Target, Ticket, Waiter,
    WorkerId, WorkerSnapshot,
};
use workers::{DRAINED, STUCK, SUSPECT, THRESHOLD, UNREACHABLE, Workers};

/// Beyond the queue's size there is room reserved for this many waiters who rejoin, at most: as many as there are permits,
/// for who rejoins has just given one up.
const REJOINING: usize = 1 << 16;

/// While nobody knows when the state of the workers will change, a waiter asks again at the latest after this time.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(10);

/// A deadline that cannot be said as an [`Instant`] is this far away.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Numbers the dispatches, so that a permit knows where it belongs.
static DISPATCHES: AtomicU32 = AtomicU32::new(0);

/// What stands under the lock.
struct State {
    workers: Workers,
    queue: Queue,
    permits_out: u64,
    /// When the first worker became eligible, the last time that none was.
    last_ready: Instant,
    /// When the last one ceased to be.
    last_unready: Instant,
    failed: bool,
    gate: Gate,
    /// A notice came where none was: ring once the lock is open.
    ring: bool,
}

/// Whether requests get through to the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    Open,
    /// All wait.
    Closed,
    /// Those who waited are let go little by little, and who comes meanwhile stands behind them. A permit that comes back is handed
    /// on as always.
    Opening,
}

/// Permits, workers and the waiting line of one app.
pub struct Dispatch {
    state: Mutex<State>,
    policy: Policy,
    max_workers: usize,
    number: u32,
    ring: OnceLock<Box<dyn Fn() + Send + Sync>>,
    deliver: OnceLock<Box<dyn Fn(Grant) + Send + Sync>>,
}

impl std::fmt::Debug for Dispatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Dispatch").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// The loops' side.
impl Dispatch {
    /// A dispatch for at most `max_workers` workers at a time, those included that are on their way out.
    pub fn new(mut policy: Policy, max_workers: usize, now: Instant) -> Dispatch {
        policy.concurrency = policy.concurrency.max(1);
        let permits = max_workers.saturating_mul(policy.concurrency as usize);
        let state = State {
            workers: Workers::new(&policy, max_workers),
            queue: Queue::new(policy.queue_size, permits.min(REJOINING)),
            permits_out: 0,
            last_ready: now,
            last_unready: now,
            failed: false,
            gate: Gate::Open,
            ring: false,
        };
        Dispatch {
            state: Mutex::new(state),
            policy,
            max_workers,
            number: DISPATCHES.fetch_add(1, Ordering::Relaxed),
            ring: OnceLock::new(),
            deliver: OnceLock::new(),
        }
    }

    /// Asks for a worker: the one whose turn it is, or a place in the queue. `_now` decides nothing today; every call that may change
    /// who waits for whom takes the caller's clock.
    #[inline]
    pub fn acquire(&self, waiter: Waiter, ask: Ask, _now: Instant) -> Acquire {
        let exclude = ask.exclude.unwrap_or(Key::NONE);
        let mut state = self.lock();
        if state.failed {
            return Acquire::Failed;
        }
        if state.is_open()
            && let Some(index) = state.workers.choose(exclude)
        {
            return Acquire::Granted(self.permit(&mut state, index));
        }
        if ask.front {
            return Acquire::Queued(Ticket(state.queue.rejoin(waiter, exclude, ask.since)));
        }
        if state.queue.is_full() {
            return Acquire::Full;
        }
        Acquire::Queued(Ticket(state.queue.push(waiter, exclude, ask.since)))
    }

    /// Gives a permit back. The slot goes straight to the waiter who is first in turn for it, whom the caller is to tell.
    #[inline]
    pub fn release(&self, permit: Permit, outcome: Outcome, now: Instant) -> Option<Grant> {
        let (worker, home) = (permit.worker, permit.dispatch);
        mem::forget(permit);
        if outcome == Outcome::Unreachable {
            return self.release_unreachable(worker, home, now);
        }
        let mut state = self.lock();
        let Some(index) = self.come_home(&state, worker, home) else {
            drop(state);
            broken("a permit came back that was not out");
        };
        state.count(index, outcome, now);
        let grant = self.free(&mut state, index);
        self.unlock(state);
        grant
    }

    /// Takes a waiter out of the queue. `false`: its grant is in the mail (or the word that the app failed).
    pub fn cancel(&self, ticket: Ticket) -> bool {
        self.lock().queue.cancel(ticket.0)
    }

    /// Whether a waiter is still to wait, and until when. On [`Patience::QueueTimeout`] and [`Patience::HoldExpired`] its ticket
    /// is cancelled under the same lock, so that no grant can follow.
    ///
    /// While a worker is eligible the queue's clock runs, from when the waiter came or the first worker became eligible, whichever
    /// was later. While none is, the hold's clock runs likewise from when the last one ceased to be. While the gate is closed
    /// neither runs. Workers that come and go start these clocks again and again: `by` ends the wait in any case.
    pub fn patience(&self, ticket: Ticket, by: Instant, now: Instant) -> Patience {
        let mut state = self.lock();
        let Some(node) = state.queue.lookup(ticket.0) else {
            return Patience::Granted;
        };
        if state.gate == Gate::Closed {
            if now < by {
                return Patience::Until(by.min(after(now, SHORTEST_PATIENCE.max(self.policy.queue_timeout))));
            }
            state.queue.cancel(ticket.0);
            return Patience::HoldExpired;
        }
        let (queue_timeout, hold) = (self.policy.queue_timeout, self.policy.hold);
        let ready = state.workers.eligible() > 0;
        let (clock, allowed, other, expired) = if ready {
            (state.last_ready, queue_timeout, hold, Patience::QueueTimeout)
        } else {
            (state.last_unready, hold, queue_timeout, Patience::HoldExpired)
        };
        let deadline = after(clock.max(node.since), allowed).min(by);
        if now >= deadline {
            state.queue.cancel(ticket.0);
            return expired;
        }
        // Should the workers' state change right now, the other clock would run out that much later and no sooner: whoever asks
        // again by then is never late.
        Patience::Until(deadline.min(after(now, other.max(SHORTEST_PATIENCE))))
    }

    /// Says that a tunnel through a worker has ended.
    pub fn tunnel_ended(&self, worker: WorkerId) {
        let mut state = self.lock();
        if let Some(index) = state.workers.find(worker) {
            let worker = state.workers.at_mut(index);
            worker.tunnels = worker.tunnels.saturating_sub(1);
        }
    }

    /// Whether a worker may have one more tunnel. Several loops that ask at once may each open one.
    pub fn tunnel_room(&self, worker: WorkerId) -> bool {
        self.lock().workers.lookup(worker).is_some_and(|worker| worker.tunnels < self.policy.max_tunnels)
    }

    /// Where a worker is, or `None` once it is forgotten. The loops keep the answer; it does not change in a worker's life.
    pub fn target(&self, worker: WorkerId) -> Option<Arc<Target>> {
        self.lock().workers.lookup(worker)?.target.clone()
    }

    /// Whether a request that came now and would take any worker would be refused: none has room, and the queue is full.
    pub fn queue_is_full(&self) -> bool {
        let state = self.lock();
        state.queue.is_full() && !(state.gate == Gate::Open && state.workers.any_room())
    }

    /// Says that a worker let a request time out.
    pub fn suspect(&self, worker: WorkerId) {
        let mut state = self.lock();
        if let Some(index) = state.workers.find(worker) {
            state.tell(index, SUSPECT);
        }
        self.unlock(state);
    }

    /// Says that a worker let a request time out that it was given at `since`; if it has answered nothing from then on, it is stuck.
    /// One that the supervisor is going to end for it gets nothing more from this moment: what came to it before the supervisor's
    /// turn would die with it.
    pub fn stuck(&self, worker: WorkerId, since: Instant, now: Instant) {
        let grants = self.retreat(worker, now, 0, |state, index| {
            let stuck = state.workers.at(index);
            if stuck.answered_at.is_some_and(|at| at > since) {
                return;
            }
            let (phase, ours) = (stuck.phase, stuck.target.as_ref().is_some_and(|target| target.supervised));
            state.tell(index, STUCK);
            if ours && matches!(phase, Phase::Ready | Phase::Unreachable) {
                state.workers.enter(index, Phase::Draining);
            }
        });
        self.deliver(grants);
    }

    /// Whether a worker's process lives. `None`: it is not ours to know. A forgotten one counts as dead.
    pub fn is_alive(&self, worker: WorkerId) -> Option<bool> {
        let state = self.lock();
        let Some(worker) = state.workers.lookup(worker) else {
            return Some(false);
        };
        let supervised = worker.target.as_ref().is_some_and(|target| target.supervised);
        supervised.then_some(worker.phase != Phase::Dead)
    }

    /// Permits that were dropped and never released, in the whole process: each is a slot lost. Always 0, or there is a bug.
    pub fn lost_permits() -> u64 {
        types::LOST_PERMITS.load(Ordering::Relaxed)
    }
}

/// The supervisor's side.
impl Dispatch {
    /// Adds a worker, which is not eligible until [`Dispatch::ready`]. After `request_limit` requests a [`Notice::Threshold`] says
    /// that it is due; 0 counts as no limit. `None`: the table is full.
    pub fn add(&self, target: Target, app_generation: u32, request_limit: Option<u64>) -> Option<WorkerId> {
        let (target, lists) = (Arc::new(target), Workers::lists(&self.policy));
        let limit = request_limit.filter(|&limit| limit > 0);
        let mut state = self.lock();
        let added = state.workers.insert(target, app_generation, limit, lists);
        drop(state);
        // What the new worker's place still held of the last one is freed here, and not under the lock.
        added.map(|(id, _past)| id)
    }

    /// Makes a worker eligible and gives its slots to those who wait; the caller is to tell them. Does nothing for one that
    /// is ready, draining, dead or forgotten.
    pub fn ready(&self, worker: WorkerId, now: Instant) -> Vec<Grant> {
        let mut grants = self.room_for_grants();
        let mut state = self.lock();
        let Some(index) = state.workers.find(worker) else {
            return grants;
        };
        if matches!(state.workers.at(index).phase, Phase::Starting | Phase::Unreachable) {
            if state.workers.eligible() == 0 {
                state.last_ready = now;
            }
            state.workers.enter(index, Phase::Ready);
            grants.extend(std::iter::from_fn(|| self.hand_on(&mut state, index)));
        }
        grants
    }

    /// No new requests for this worker; [`Notice::Drained`] says when the last has ended, which may be at once. Not
    /// undone by [`Dispatch::ready`].
    pub fn drain(&self, worker: WorkerId, now: Instant) {
        let grants = self.retreat(worker, now, 0, |state, index| {
            if matches!(state.workers.at(index).phase, Phase::Draining | Phase::Dead) {
                return;
            }
            state.workers.enter(index, Phase::Draining);
            if state.workers.at(index).in_flight == 0 {
                state.tell(index, DRAINED);
            }
        });
        self.deliver(grants);
    }

    /// Says that a worker's process is gone. Permits for it are still taken back.
    pub fn died(&self, worker: WorkerId, now: Instant) {
        self.deliver(self.retreat(worker, now, 0, |state, index| state.workers.enter(index, Phase::Dead)));
    }

    /// Forgets a worker once its permits are back; until then it counts as dead. Notices about it that were not taken are dropped
    /// with it, and its tunnels are counted no longer.
    pub fn remove(&self, worker: WorkerId, now: Instant) {
        let grants = self.retreat(worker, now, 0, |state, index| {
            state.workers.enter(index, Phase::Dead);
            state.workers.at_mut(index).removed = true;
            state.workers.vacate(index);
        });
        self.deliver(grants);
    }

    /// Takes a worker out of the choice until [`Dispatch::ready`], as a refused connect does, but without a notice.
    pub fn unreachable(&self, worker: WorkerId, now: Instant) {
        let grants = self.retreat(worker, now, 0, |state, index| {
            if state.workers.at(index).phase == Phase::Ready {
                state.workers.enter(index, Phase::Unreachable);
            }
        });
        self.deliver(grants);
    }

    /// The app has given up: [`Dispatch::acquire`] answers [`Acquire::Failed`] from now on. Those who wait are taken out of the queue
    /// and returned, to be told.
    pub fn fail(&self) -> Vec<Waiter> {
        let mut waiters = Vec::with_capacity(self.lock().queue.capacity());
        let mut state = self.lock();
        state.failed = true;
        while let Some(index) = state.queue.first() {
            waiters.push(state.queue.remove(index).0);
        }
        waiters
    }

    /// The app is tried again: requests wait for it as usual.
    pub fn recover(&self) {
        self.lock().failed = false;
    }

    /// Holds all requests back: they wait without an end of their own, until [`Dispatch::resume`]. Those in flight go on.
    pub fn pause(&self) {
        self.lock().gate = Gate::Closed;
    }

    /// Requests get through again: those who wait by and by, with [`Dispatch::let_go`]. The queue's clock begins anew for them.
    /// Returns how many wait; for 0 all is as before already.
    pub fn resume(&self, now: Instant) -> usize {
        let mut state = self.lock();
        if state.gate != Gate::Closed {
            return 0;
        }
        state.gate = if state.queue.is_empty() { Gate::Open } else { Gate::Opening };
        state.last_ready = now;
        state.last_unready = now;
        state.queue.len()
    }

    /// Lets go of up to so many who wait, after [`Dispatch::resume`]; the caller is to tell them. False: nobody is left whom a
    /// worker has room for, and the gate is open again.
    pub fn let_go(&self, most: usize) -> (Vec<Grant>, bool) {
        let mut grants = Vec::with_capacity(most);
        let mut state = self.lock();
        if state.gate != Gate::Opening {
            return (grants, false);
        }
        while grants.len() < most {
            // Whose turn it is, as for everybody; or another, where all who wait would rather not have that one.
            let Some(first) = state.workers.choose(Key::NONE) else { break };
            let Some(grant) = self.hand_on(&mut state, first).or_else(|| self.hand_on_any(&mut state)) else { break };
            grants.push(grant);
        }
        let more = grants.len() == most;
        if !more {
            state.gate = Gate::Open;
        }
        (grants, more)
    }

    /// Takes the notices that wait, worker by worker.
    pub fn notices(&self, into: &mut Vec<Notice>) {
        loop {
            let mut some = [None; 16];
            let mut state = self.lock();
            some.fill_with(|| state.workers.next_notice());
            drop(state);
            into.extend(some.iter().flatten());
            if some.contains(&None) {
                return;
            }
        }
    }

    /// Has `ring` called, by any thread and outside the lock, when a notice comes where none waited. To be set once, before the first
    /// worker is added; later calls change nothing.
    pub fn on_notice(&self, ring: Box<dyn Fn() + Send + Sync>) {
        // A second one is refused: loops may be calling the first at this moment.
        let _ = self.ring.set(ring);
    }

    /// Has `deliver` called, by any thread and outside the lock, with grants that come of a call which cannot return them: when all
    /// workers but one cease to be eligible, those who were waiting for any but this one get it. To be set once, before the
    /// first worker is added; without it they wait for a permit to come back.
    pub fn on_grant(&self, deliver: Box<dyn Fn(Grant) + Send + Sync>) {
        // As above.
        let _ = self.deliver.set(deliver);
    }

    /// The state of the queue and of each worker.
    pub fn snapshot(&self) -> Snapshot {
        let mut workers = Vec::with_capacity(self.max_workers);
        let state = self.lock();
        workers.extend(state.workers.iter().filter_map(|(id, worker)| {
            Some(WorkerSnapshot {
                id,
                target: Arc::clone(worker.target.as_ref()?),
                app_generation: state.workers.app_generation(worker),
                phase: worker.phase,
                in_flight: worker.in_flight,
                served: worker.served,
                broken: worker.broken,
                tunnels: worker.tunnels,
                answered_at: worker.answered_at,
            })
        }));
        let (queue_depth, eligible, failed) = (state.queue.len(), state.workers.eligible(), state.failed);
        let (oldest, paused) = (state.queue.iter().map(|node| node.since).min(), state.gate != Gate::Open);
        drop(state);
        Snapshot { queue_depth, oldest, paused, eligible, failed, workers }
    }

    /// Panics if the state contradicts itself, or someone waits whom an eligible worker has room for. For debug builds: takes time in
    /// proportion to workers and waiters.
    pub fn check_invariants(&self) {
        let state = self.lock();
        let fault = state.fault();
        // Opened first, so that the panic does not poison it.
        drop(state);
        if let Some(fault) = fault {
            panic!("dispatch: {fault}");
        }
    }
}

/// The inside.
impl Dispatch {
    fn lock(&self) -> MutexGuard<'_, State> {
        match self.state.lock() {
            Ok(state) => state,
            Err(_) => {
                eprintln!("production_server: the dispatch is broken: a thread panicked while it held the lock");
                std::process::abort()
            }
        }
    }

    /// Opens the lock, and rings if a notice came.
    #[inline]
    fn unlock(&self, mut state: MutexGuard<'_, State>) {
        let ring = mem::take(&mut state.ring);
        drop(state);
        if ring && let Some(ring) = self.ring.get() {
            ring();
        }
    }

    /// A permit for a worker that has room.
    #[inline]
    fn permit(&self, state: &mut State, index: u32) -> Permit {
        state.workers.take(index);
        state.permits_out += 1;
        Permit { worker: state.workers.id(index), dispatch: self.number }
    }

    /// The worker of a permit that came back, or `None` for one that cannot be out.
    #[inline]
    fn come_home(&self, state: &State, worker: WorkerId, home: u32) -> Option<u32> {
        let index = state.workers.find(worker)?;
        (home == self.number && state.workers.at(index).in_flight > 0).then_some(index)
    }

    /// Frees one slot of a worker and hands it on.
    #[inline]
    fn free(&self, state: &mut State, index: u32) -> Option<Grant> {
        state.permits_out -= 1;
        state.workers.give_back(index);
        if state.queue.is_empty() || !state.workers.has_room(index) || state.gate == Gate::Closed {
            state.settle(index);
            return None;
        }
        let grant = self.hand_on(state, index);
        if grant.is_some() && planted::strikes(Bug::DoubleRelease, 5) {
            state.workers.give_back(index);
        }
        grant
    }

    /// Gives a slot of a worker, if it has room, to the first in the queue who takes it.
    #[inline]
    fn hand_on(&self, state: &mut State, index: u32) -> Option<Grant> {
        if !state.workers.has_room(index) || state.gate == Gate::Closed {
            return None;
        }
        let waiting = state.queue.first_for(state.workers.id(index), state.workers.choosy())?;
        let (waiter, departed) = state.queue.remove(waiting);
        if planted::strikes(Bug::LostGrant, 5) {
            return None;
        }
        let permit = self.permit(state, index);
        if departed {
            mem::forget(permit);
            return None;
        }
        Some(Grant { waiter, permit })
    }

    /// Gives a slot of any worker that has room to the first in the queue who takes it.
    #[cold]
    fn hand_on_any(&self, state: &mut State) -> Option<Grant> {
        let mut at = 0;
        loop {
            let index = state.workers.with_room().find(|index| *index >= at)?;
            if let Some(grant) = self.hand_on(state, index) {
                return Some(grant);
            }
            at = index + 1;
        }
    }

    /// A permit comes back because its worker refused to be connected to.
    #[cold]
    fn release_unreachable(&self, worker: WorkerId, home: u32, now: Instant) -> Option<Grant> {
        let (mut astray, mut handed) = (false, None);
        let mut grants = self.retreat(worker, now, 1, |state, index| {
            if self.come_home(state, worker, home).is_none() {
                astray = true;
                return;
            }
            if state.workers.at(index).phase == Phase::Ready {
                state.workers.enter(index, Phase::Unreachable);
                state.tell(index, UNREACHABLE);
            }
            // None, for the worker is not eligible; but a grant must not be lost even if that is wrong.
            handed = self.free(state, index);
        });
        if astray {
            broken("a permit came back that was not out");
        }
        debug_assert!(handed.is_none() || planted::active(Bug::StaleWorker), "a slot out of reach was handed on");
        grants.extend(handed);
        let first = if grants.is_empty() { None } else { Some(grants.remove(0)) };
        self.deliver(grants);
        first
    }

    /// Does something that may end a worker's eligibility. If that leaves one eligible worker, those who would rather
    /// not have had it take it now: the caller is to tell them. It can tell `at_hand` of them itself, the others go through
    /// [`Dispatch::on_grant`].
    fn retreat(
        &self,
        worker: WorkerId,
        now: Instant,
        at_hand: usize,
        action: impl FnOnce(&mut State, u32),
    ) -> Vec<Grant> {
        let most = if self.deliver.get().is_some() { usize::MAX } else { at_hand };
        let mut grants = self.room_for_grants();
        let mut state = self.lock();
        let eligible = state.workers.eligible();
        if let Some(index) = state.workers.find(worker) {
            action(&mut state, index);
        }
        if state.workers.eligible() < eligible {
            if state.workers.eligible() == 0 {
                state.last_unready = now;
            } else if state.workers.eligible() == 1
                && let Some(last) = state.workers.any_eligible()
            {
                grants.extend(std::iter::from_fn(|| self.hand_on(&mut state, last)).take(most));
            }
        }
        self.unlock(state);
        grants
    }

    /// Room for all grants that one worker can bring, made before the lock is held for them. (Waiters who come in between may
    /// make it grow under the lock; that takes a worker's change of phase at that very moment, and does no harm.)
    fn room_for_grants(&self) -> Vec<Grant> {
        let waiting = self.lock().queue.len();
        Vec::with_capacity(waiting.min(self.policy.concurrency as usize))
    }

    fn deliver(&self, grants: Vec<Grant>) {
        match self.deliver.get() {
            Some(deliver) => grants.into_iter().for_each(deliver),
            None => debug_assert!(grants.is_empty(), "grants that nobody can deliver were made"),
        }
    }
}

impl State {
    /// Whether who comes now may be given a worker at once. A gate that opens is open when nobody waits any more.
    #[inline]
    fn is_open(&mut self) -> bool {
        if self.gate == Gate::Opening && self.queue.is_empty() {
            self.gate = Gate::Open;
        }
        self.gate == Gate::Open
    }

    /// Counts a request that ended.
    #[inline]
    fn count(&mut self, index: u32, outcome: Outcome, now: Instant) {
        let worker = self.workers.at_mut(index);
        match outcome {
            Outcome::Unused | Outcome::Unreachable => return,
            Outcome::Answered => worker.answered_at = Some(now),
            Outcome::Broken => worker.broken += 1,
            Outcome::Tunnel => {
                worker.tunnels += 1;
                worker.answered_at = Some(now);
            }
        }
        worker.served += 1;
        // One that is draining or dead is being replaced already.
        let replaceable = matches!(worker.phase, Phase::Ready | Phase::Unreachable);
        if worker.served == worker.request_limit && replaceable {
            self.tell(index, THRESHOLD);
        }
    }

    /// Sees to a worker that got nothing new when one of its requests ended.
    #[inline]
    fn settle(&mut self, index: u32) {
        let worker = self.workers.at(index);
        if worker.in_flight > 0 || worker.phase == Phase::Ready {
            return;
        }
        if worker.phase == Phase::Draining {
            self.tell(index, DRAINED);
        }
        self.workers.vacate(index);
    }

    fn tell(&mut self, index: u32, notice: u8) {
        self.ring |= self.workers.tell(index, notice);
    }

    /// What is wrong, if anything.
    fn fault(&self) -> Option<&'static str> {
        let in_flight: u64 = self.workers.iter().map(|(_, worker)| u64::from(worker.in_flight)).sum();
        if in_flight != self.permits_out {
            return Some("the requests in flight are not the permits that are out");
        }
        if self.failed && !self.queue.is_empty() {
            return Some("someone waits for an app that has failed");
        }
        let open = self.gate == Gate::Open;
        if open && self.queue.iter().any(|node| self.workers.choose(node.exclude).is_some()) {
            return Some("someone waits whom an eligible worker has room for");
        }
        self.workers.fault().or_else(|| self.queue.fault())
    }
}

/// A time later than another, or never.
fn after(start: Instant, time: Duration) -> Instant {
    start.checked_add(time).unwrap_or_else(|| start + NEVER)
}

/// Ends on a broken invariant, with the lock open: tests see a panic, production the end of the process, for a dispatch that miscounts
/// would stall or overload the workers without a sign.
#[cold]
fn broken(what: &str) -> ! {
    if cfg!(debug_assertions) {
        panic!("dispatch: {what}");
    }
    eprintln!("production_server: the dispatch is broken: {what}");
    std::process::abort()
}
