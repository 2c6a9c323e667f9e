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
//!   have one worker waits for any other that is eligible, and takes that one when it is the last; one who wants a tunnel waits for a
//!   worker with room for it. Neither holds up those behind it;
//! - a slot goes to the oldest waiter whom it suits, but for these exceptions: those who rejoin stand first; a permit that comes back
//!   prefers its own loop's waiters to those who came up to a millisecond before them ([`Dispatch::release`]), unless some take turns by
//!   their keys ([`Ask::turn`]).
//!
//! `workers.rs` keeps the workers and whose turn it is, `load.rs` what each has to do, `queue.rs` the waiting line, `fair.rs` turns by keys;
//! `outcomes.rs` what the ends of requests say of a worker, `life.rs` whether its process lives, `slots.rs` who may have fewer requests than others; `types.rs` has the words spoken here.

mod fair;
mod life;
mod load;
mod moves;
mod outcomes;
mod queue;
mod slots;
mod streams;
mod types;
mod workers;

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod properties;
#[cfg(all(test, not(loom)))]
mod tests;

use std::hash::{BuildHasher, RandomState};
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
pub use life::Life;
pub use moves::Moves;
pub use queue::HOME_ADVANTAGE;
use queue::{Queue, Removed};
pub use streams::{StreamHold, Streams};
pub use types::{
    Acquire, AppId, Ask, Balance, Grant, Notice, Outcome, Patience, Permit, Policy, Snapshot, Standing, Target, Ticket,
    Waiter, WorkerId, WorkerSnapshot,
};
use types::{Claim, Wish};
use workers::{DRAINED, SPARED, STUCK, SUSPECT, UNREACHABLE, Workers};

/// Beyond the queue's size there is room reserved for this many waiters who rejoin, at most: as many as there are permits,
/// for who rejoins has just given one up.
const REJOINING: usize = 1 << 16;

/// While nobody knows when the state of the workers will change, a waiter asks again at the latest after this time.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(10);

/// A deadline that cannot be said as an [`Instant`] is this far away.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// Numbers the dispatches, so that a permit knows where it belongs.
static DISPATCHES: AtomicU32 = AtomicU32::new(0);

/// What stands under the lock: who works, who waits, and what is out.
struct Board {
    workers: Workers,
    queue: Queue,
    permits_out: u64,
    /// When the first worker became eligible, the last time that none was.
    last_ready: Instant,
    /// When the last one ceased to be.
    last_unready: Instant,
    failed: bool,
    gate: Gate,
    /// How long one may wait while workers are eligible, and while none is.
    queue_timeout: Duration,
    hold: Duration,
    /// So many failures in a row are told.
    failures: u32,
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
    board: Mutex<Board>,
    max_workers: usize,
    number: u32,
    /// What keys are hashed with, the same for all loops.
    secret: RandomState,
    streams: Streams,
    ring: OnceLock<Box<dyn Fn() + Send + Sync>>,
    deliver: OnceLock<Box<dyn Fn(Grant) + Send + Sync>>,
}

impl std::fmt::Debug for Dispatch {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Dispatch").field("number", &self.number).finish_non_exhaustive()
    }
}

/// The loops' side.
impl Dispatch {
    /// A dispatch for at most `max_workers` workers at a time, those included that are on their way out.
    pub fn new(mut policy: Policy, max_workers: usize, now: Instant) -> Dispatch {
        policy.concurrency = policy.concurrency.max(1);
        let permits = max_workers.saturating_mul(policy.concurrency as usize);
        let board = Board {
            workers: Workers::new(&policy, max_workers),
            queue: Queue::new(policy.queue_size, permits.min(REJOINING), policy.fair),
            permits_out: 0,
            last_ready: now,
            last_unready: now,
            failed: false,
            gate: Gate::Open,
            queue_timeout: policy.queue_timeout,
            hold: policy.hold,
            failures: policy.failures,
            ring: false,
        };
        Dispatch {
            board: Mutex::new(board),
            max_workers,
            number: DISPATCHES.fetch_add(1, Ordering::Relaxed),
            secret: RandomState::new(),
            streams: Streams::default(),
            ring: OnceLock::new(),
            deliver: OnceLock::new(),
        }
    }

    /// Asks for a worker: the one whose turn it is, or a place in the queue. A request for a tunnel is refused at once where every worker
    /// that would do has as many as it may.
    #[inline]
    pub fn acquire(&self, waiter: Waiter, ask: Ask, now: Instant) -> Acquire {
        let wish = Wish { exclude: ask.exclude.unwrap_or(Key::NONE), tunnel: ask.tunnel };
        let mut board = self.lock();
        if board.failed {
            return Acquire::Failed;
        }
        if board.is_open() {
            if let Some(index) = board.workers.choose(wish) {
                return Acquire::Granted(self.permit(&mut board, index, wish.tunnel));
            }
            if wish.tunnel && board.workers.no_tunnel(wish.exclude) {
                return Acquire::NoTunnel;
            }
        }
        board.stand_in_line(waiter, ask, wish, now)
    }

    /// Gives a permit back. The slot goes straight to the waiter who is first in turn for it, whom the caller is to tell: the oldest of
    /// the loop `home`, which gives it back, unless one of another loop is older by more than a millisecond.
    #[inline]
    pub fn release(&self, permit: Permit, outcome: Outcome, now: Instant, home: u16) -> Option<Grant> {
        let claim = permit.surrender();
        if matches!(outcome, Outcome::Unreachable | Outcome::Lost) {
            return self.release_lost(claim, outcome, now, home);
        }
        let mut board = self.lock();
        let Some(index) = self.worker_of(&board, claim) else {
            drop(board);
            broken("a permit came back that was not out");
        };
        board.count(index, outcome, now);
        let grant = self.free(&mut board, index, claim, outcome == Outcome::Declined, home);
        self.unlock(board);
        grant
    }

    /// How many workers are eligible.
    pub fn eligible(&self) -> usize {
        self.lock().workers.eligible() as usize
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
        let mut board = self.lock();
        let Some(node) = board.queue.lookup(ticket.0) else {
            return Patience::Granted;
        };
        if board.gate == Gate::Closed {
            if now < by {
                return Patience::Until(by.min(after(now, SHORTEST_PATIENCE.max(board.queue_timeout))));
            }
            board.queue.cancel(ticket.0);
            return Patience::HoldExpired;
        }
        let (queue_timeout, hold) = (board.queue_timeout, board.hold);
        let ready = board.workers.eligible() > 0;
        let (clock, allowed, other, expired) = if ready {
            (board.last_ready, queue_timeout, hold, Patience::QueueTimeout)
        } else {
            (board.last_unready, hold, queue_timeout, Patience::HoldExpired)
        };
        let deadline = after(clock.max(node.since), allowed).min(by);
        if now >= deadline {
            board.queue.cancel(ticket.0);
            return expired;
        }
        // Should the workers' state change right now, the other clock would run out that much later and no sooner: whoever asks
        // again by then is never late.
        Patience::Until(deadline.min(after(now, other.max(SHORTEST_PATIENCE))))
    }

    /// Says that a tunnel through a worker has ended. A waiter for a tunnel who can have it now is told through [`Dispatch::on_grant`].
    pub fn tunnel_ended(&self, worker: WorkerId) {
        let mut board = self.lock();
        let Some(index) = board.workers.find(worker) else { return };
        let last = board.workers.at_mut(index).load.end_tunnel();
        let worker = board.workers.at(index);
        if last && worker.standing == Standing::Draining && worker.is_done() {
            board.tell(index, DRAINED);
        }
        let deliver = self.deliver.get().filter(|_| !board.queue.is_empty());
        let grant = deliver.and_then(|_| self.hand_on(&mut board, index, None));
        self.unlock(board);
        if let (Some(deliver), Some(grant)) = (deliver, grant) {
            deliver(grant);
        }
    }

    /// Where a worker is, or `None` once it is forgotten. The loops keep the answer; it does not change in a worker's life.
    pub fn target(&self, worker: WorkerId) -> Option<Arc<Target>> {
        self.lock().workers.lookup(worker)?.target.clone()
    }

    /// The [`Ask::turn`] of whatever tells clients apart.
    pub fn key(&self, bytes: &[u8]) -> u64 {
        self.secret.hash_one(bytes).max(1)
    }

    /// Whether a request that came now and would take any worker would be refused: none has room, and the queue is full for its
    /// [`Ask::turn`].
    pub fn queue_is_full(&self, turn: u64) -> bool {
        let board = self.lock();
        !(board.queue.takes(turn, false) || board.gate == Gate::Open && board.workers.any_room())
    }

    /// The app's event streams that hold permits.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Says that a worker let a request time out.
    pub fn suspect(&self, worker: WorkerId) {
        let mut board = self.lock();
        if let Some(index) = board.workers.find(worker) {
            board.tell(index, SUSPECT);
            board.failed(index);
        }
        self.unlock(board);
    }

    /// Says that a worker let a request time out that it was given at `since`; if it has neither answered any nor sent a byte from then
    /// on, it is stuck.
    /// One that the supervisor is going to end for it gets nothing more from this moment: what came to it before the supervisor's
    /// turn would die with it.
    pub fn stuck(&self, worker: WorkerId, since: Instant, now: Instant) {
        let grants = self.retreat(worker, now, 0, |board, index| {
            let stuck = board.workers.at(index);
            let moved = stuck.target.as_ref().is_some_and(|target| target.moves.since(since));
            if moved || stuck.record.answered_at.is_some_and(|at| at > since) {
                return;
            }
            let ours = stuck.is_supervised() && matches!(stuck.standing, Standing::Ready | Standing::Unreachable);
            board.tell(index, STUCK);
            if ours {
                board.workers.enter(index, Standing::Draining);
            }
        });
        self.deliver(grants);
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
        let concurrency = self.lock().workers.concurrency();
        self.add_of(target, app_generation, request_limit, concurrency)
    }

    /// [`Dispatch::add`] for a worker that may have so many requests at once, at least 1. All of a generation have the number of its
    /// first one, as long as there is one.
    pub fn add_of(
        &self,
        target: Target,
        app_generation: u32,
        request_limit: Option<u64>,
        concurrency: u32,
    ) -> Option<WorkerId> {
        let (target, lists) = (Arc::new(target), Workers::lists(concurrency));
        let limit = request_limit.filter(|&limit| limit > 0);
        let mut board = self.lock();
        let added = board.workers.insert(target, app_generation, limit, lists);
        drop(board);
        // What the new worker's place still held of the last one is freed here, and not under the lock.
        added.map(|(id, _past)| id)
    }

    /// Says where a worker listens after all. Only before it has ever been ready: nobody has asked for its target by then.
    pub fn locate(&self, worker: WorkerId, address: socket2::SockAddr) {
        let Some(known) = self.target(worker) else { return };
        let unix = address.is_unix();
        let moved = Arc::new(Target { address, unix, ..Target::clone(&known) });
        let mut board = self.lock();
        let index = board.workers.find(worker);
        let place = index.map(|index| board.workers.at_mut(index));
        let _past =
            place.filter(|place| place.standing == Standing::Starting).and_then(|place| place.target.replace(moved));
        drop(board);
    }

    /// Other rules hold from now on, for those who wait as well: they learn of shorter times when they next ask, which is no later than
    /// the old ones are over. A lower limit of the queue refuses those who come, and nobody who waits. The number of requests at once
    /// belongs to the workers of a generation, and is that of the next.
    pub fn set_policy(&self, policy: Policy) {
        let spare = Queue::spare(policy.queue_size, REJOINING, policy.fair);
        let mut board = self.lock();
        board.workers.set_policy(&policy);
        let past = board.queue.set_limit(policy.queue_size, spare);
        (board.queue_timeout, board.hold, board.failures) = (policy.queue_timeout, policy.hold, policy.failures);
        drop(board);
        // What the queue does not need is freed here, and not under the lock.
        drop(past);
    }

    /// Makes a worker eligible and gives its slots to those who wait; the caller is to tell them. Does nothing for one that
    /// is ready, draining, dead or forgotten.
    pub fn ready(&self, worker: WorkerId, now: Instant) -> Vec<Grant> {
        let mut grants = self.room_for_grants();
        let mut board = self.lock();
        let Some(index) = board.workers.find(worker) else {
            return grants;
        };
        if matches!(board.workers.at(index).standing, Standing::Starting | Standing::Unreachable) {
            if board.workers.eligible() == 0 {
                board.last_ready = now;
            }
            board.workers.enter(index, Standing::Ready);
            grants.extend(std::iter::from_fn(|| self.hand_on(&mut board, index, None)));
        }
        grants
    }

    /// No new requests for this worker; [`Notice::Drained`] says when the last has ended, and the last tunnel through a process of ours,
    /// which may be at once. Not undone by [`Dispatch::ready`].
    pub fn drain(&self, worker: WorkerId, now: Instant) {
        let grants = self.retreat(worker, now, 0, |board, index| {
            if matches!(board.workers.at(index).standing, Standing::Draining | Standing::Dead) {
                return;
            }
            board.workers.enter(index, Standing::Draining);
            if board.workers.at(index).is_done() {
                board.tell(index, DRAINED);
            }
        });
        self.deliver(grants);
    }

    /// Says that a worker's process is gone. Permits for it are still taken back.
    pub fn died(&self, worker: WorkerId, now: Instant) {
        self.deliver(self.retreat(worker, now, 0, |board, index| board.workers.enter(index, Standing::Dead)));
    }

    /// Forgets a worker once its permits are back; until then it counts as dead. Notices about it that were not taken are dropped
    /// with it, and its tunnels are counted no longer.
    pub fn remove(&self, worker: WorkerId, now: Instant) {
        let grants = self.retreat(worker, now, 0, |board, index| {
            board.workers.enter(index, Standing::Dead);
            board.workers.at_mut(index).removed = true;
            board.workers.vacate(index);
        });
        self.deliver(grants);
    }

    /// Takes a worker out of the choice until [`Dispatch::ready`], as a refused connect does, but without a notice.
    pub fn unreachable(&self, worker: WorkerId, now: Instant) {
        let grants = self.retreat(worker, now, 0, |board, index| {
            if board.workers.at(index).standing == Standing::Ready {
                board.workers.enter(index, Standing::Unreachable);
            }
        });
        self.deliver(grants);
    }

    /// The app has given up: [`Dispatch::acquire`] answers [`Acquire::Failed`] from now on. Those who wait are taken out of the queue
    /// and returned, to be told.
    pub fn fail(&self) -> Vec<Waiter> {
        let mut waiters = Vec::with_capacity(self.lock().queue.capacity());
        let mut board = self.lock();
        board.failed = true;
        while let Some(index) = board.queue.first() {
            waiters.push(board.queue.remove(index).waiter);
        }
        waiters
    }

    /// Whether the app has given up.
    pub fn has_failed(&self) -> bool {
        self.lock().failed
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
        let mut board = self.lock();
        if board.gate != Gate::Closed {
            return 0;
        }
        board.gate = if board.queue.is_empty() { Gate::Open } else { Gate::Opening };
        board.last_ready = now;
        board.last_unready = now;
        board.queue.len()
    }

    /// Lets go of up to so many who wait, after [`Dispatch::resume`]; the caller is to tell them. False: nobody is left whom a
    /// worker has room for, and the gate is open again.
    pub fn let_go(&self, most: usize) -> (Vec<Grant>, bool) {
        let mut grants = Vec::with_capacity(most);
        let mut board = self.lock();
        if board.gate != Gate::Opening {
            return (grants, false);
        }
        while grants.len() < most {
            let Some((waiting, index)) = board.oldest_with_worker() else { break };
            grants.extend(self.grant(&mut board, waiting, index));
        }
        let more = grants.len() == most;
        if !more {
            board.gate = Gate::Open;
        }
        (grants, more)
    }

    /// Takes the notices that wait, worker by worker.
    pub fn notices(&self, into: &mut Vec<Notice>) {
        loop {
            let mut some = [None; 16];
            let mut board = self.lock();
            some.fill_with(|| board.workers.next_notice());
            drop(board);
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
    /// workers but one cease to be eligible, those who were waiting for any but this one get it; and when a tunnel ends, one who waits
    /// for a tunnel. To be set once, before the
    /// first worker is added; without it they wait for a permit to come back.
    pub fn on_grant(&self, deliver: Box<dyn Fn(Grant) + Send + Sync>) {
        // As above.
        let _ = self.deliver.set(deliver);
    }

    /// The state of the queue and of each worker.
    pub fn snapshot(&self) -> Snapshot {
        let mut workers = Vec::with_capacity(self.max_workers);
        let board = self.lock();
        workers.extend(board.workers.iter().filter_map(|(id, worker)| {
            Some(WorkerSnapshot {
                id,
                target: Arc::clone(worker.target.as_ref()?),
                app_generation: board.workers.app_generation(worker),
                standing: worker.standing,
                in_flight: worker.load.in_flight,
                served: worker.record.served,
                broken: worker.record.broken,
                tunnels: worker.load.tunnels,
                answered_at: worker.record.answered_at,
            })
        }));
        let (queue_depth, eligible, failed) = (board.queue.len(), board.workers.eligible(), board.failed);
        let (oldest, paused) = (board.queue.iter().map(|node| node.since).min(), board.gate != Gate::Open);
        drop(board);
        Snapshot { queue_depth, oldest, paused, eligible, failed, workers }
    }

    /// Panics if the state contradicts itself, or someone waits whom an eligible worker has room for. For debug builds: takes time in
    /// proportion to workers and waiters.
    pub fn check_invariants(&self) {
        let board = self.lock();
        let fault = board.fault();
        // Opened first, so that the panic does not poison it.
        drop(board);
        if let Some(fault) = fault {
            panic!("dispatch: {fault}");
        }
    }
}

/// The inside.
impl Dispatch {
    fn lock(&self) -> MutexGuard<'_, Board> {
        match self.board.lock() {
            Ok(board) => board,
            Err(_) => {
                eprintln!("production_server: the dispatch is broken: a thread panicked while it held the lock");
                std::process::abort()
            }
        }
    }

    /// Opens the lock, and rings if a notice came.
    #[inline]
    fn unlock(&self, mut board: MutexGuard<'_, Board>) {
        let ring = mem::take(&mut board.ring);
        drop(board);
        if ring && let Some(ring) = self.ring.get() {
            ring();
        }
    }

    /// A permit for a worker that has room.
    #[inline]
    fn permit(&self, board: &mut Board, index: u32, tunnel: bool) -> Permit {
        board.permits_out += 1;
        Permit(Claim::new(board.workers.take(index, tunnel), self.number, tunnel))
    }

    /// The worker of a permit that came back, or `None` for one that cannot be out.
    #[inline]
    fn worker_of(&self, board: &Board, claim: Claim) -> Option<u32> {
        let index = board.workers.find(claim.worker)?;
        (claim.is_of(self.number) && board.workers.at(index).load.in_flight > 0).then_some(index)
    }

    /// Frees one slot of a worker and hands it on.
    #[inline]
    fn free(&self, board: &mut Board, index: u32, claim: Claim, declined: bool, home: u16) -> Option<Grant> {
        board.permits_out -= 1;
        let eligible = board.workers.give_back(index, claim.tunnel(), declined);
        if board.workers.has_spared(index) {
            board.tell(index, SPARED);
        }
        if !eligible && !board.workers.has_room(index) {
            board.conclude(index);
            return None;
        }
        if board.queue.is_empty() || board.gate == Gate::Closed {
            return None;
        }
        let grant = self.hand_on(board, index, Some(home));
        if grant.is_some() && planted::strikes(Bug::DoubleRelease, 5) {
            board.workers.give_back(index, false, false);
        }
        grant
    }

    /// Gives a slot of a worker, if it has room, to whose turn it is: the oldest whom it suits, or with `home` that loop's oldest.
    #[inline]
    fn hand_on(&self, board: &mut Board, index: u32, home: Option<u16>) -> Option<Grant> {
        if !board.workers.has_room(index) || board.gate == Gate::Closed {
            return None;
        }
        let waiting = board.queue.first_for(&board.workers.slot(index), home)?;
        self.grant(board, waiting, index)
    }

    /// Gives a slot of a worker to one who waits.
    #[inline]
    fn grant(&self, board: &mut Board, waiting: u32, index: u32) -> Option<Grant> {
        let Removed { waiter, tunnel, departed } = board.queue.remove(waiting);
        if planted::strikes(Bug::LostGrant, 5) {
            return None;
        }
        let permit = self.permit(board, index, tunnel);
        if departed {
            mem::forget(permit);
            return None;
        }
        Some(Grant { waiter, permit })
    }

    /// A permit comes back because its worker refused to be connected to, or lost the request.
    #[cold]
    fn release_lost(&self, claim: Claim, outcome: Outcome, now: Instant, home: u16) -> Option<Grant> {
        let (mut astray, mut gone, mut handed) = (true, false, None);
        let mut grants = self.retreat(claim.worker, now, 1, |board, index| {
            if self.worker_of(board, claim).is_none() {
                return;
            }
            astray = false;
            board.count(index, outcome, now);
            let lost = board.workers.at(index);
            gone = outcome == Outcome::Unreachable || (lost.load.in_flight == 1 && lost.is_supervised());
            if gone && lost.standing == Standing::Ready {
                if outcome == Outcome::Unreachable {
                    board.failed(index);
                }
                board.workers.enter(index, Standing::Unreachable);
                board.tell(index, UNREACHABLE);
            }
            // Nobody gets the slot of one that is gone; but a grant must not be lost even if that is wrong.
            handed = self.free(board, index, claim, false, home);
        });
        if astray {
            broken("a permit came back that was not out");
        }
        let fine = !gone || handed.is_none() || planted::active(Bug::StaleWorker);
        debug_assert!(fine, "a slot out of reach was handed on");
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
        action: impl FnOnce(&mut Board, u32),
    ) -> Vec<Grant> {
        let most = if self.deliver.get().is_some() { usize::MAX } else { at_hand };
        let mut grants = self.room_for_grants();
        let mut board = self.lock();
        let eligible = board.workers.eligible();
        if let Some(index) = board.workers.find(worker) {
            action(&mut board, index);
        }
        if board.workers.eligible() < eligible {
            if board.workers.eligible() == 0 {
                board.last_unready = now;
            } else if board.workers.eligible() == 1
                && let Some(last) = board.workers.any_eligible()
            {
                grants.extend(std::iter::from_fn(|| self.hand_on(&mut board, last, None)).take(most));
            }
        }
        self.unlock(board);
        grants
    }

    /// Room for all grants that one worker can bring, made before the lock is held for them. (Waiters who come in between may
    /// make it grow under the lock; that takes a worker whose standing changes at that very moment, and does no harm.)
    fn room_for_grants(&self) -> Vec<Grant> {
        let board = self.lock();
        let most = board.queue.len().min(board.workers.most_concurrency() as usize);
        drop(board);
        Vec::with_capacity(most)
    }

    fn deliver(&self, grants: Vec<Grant>) {
        match self.deliver.get() {
            Some(deliver) => grants.into_iter().for_each(deliver),
            None => debug_assert!(grants.is_empty(), "grants that nobody can deliver were made"),
        }
    }
}

impl Board {
    /// Whether who comes now may be given a worker at once. A gate that opens is open when nobody waits any more.
    #[inline]
    fn is_open(&mut self) -> bool {
        if self.gate == Gate::Opening && self.queue.is_empty() {
            self.gate = Gate::Open;
        }
        self.gate == Gate::Open
    }

    /// Puts a waiter in the line, if it takes one more. Apart from [`Dispatch::acquire`], which mostly finds a worker.
    #[inline(never)]
    fn stand_in_line(&mut self, waiter: Waiter, ask: Ask, wish: Wish, now: Instant) -> Acquire {
        if ask.front {
            return Acquire::Queued(Ticket(self.queue.rejoin(waiter, wish, ask.since, now)));
        }
        if !self.queue.takes(ask.turn, wish.tunnel) {
            return Acquire::Full;
        }
        Acquire::Queued(Ticket(self.queue.push(waiter, wish, ask.since, now, ask.turn)))
    }

    /// Sees to a worker that may get nothing new when one of its requests ended.
    #[cold]
    fn conclude(&mut self, index: u32) {
        let worker = self.workers.at(index);
        debug_assert!(worker.standing != Standing::Ready || worker.load.has_less(), "an eligible worker without room");
        if worker.load.in_flight > 0 || worker.standing == Standing::Ready {
            return;
        }
        if matches!(worker.standing, Standing::Draining | Standing::Dead) && worker.is_done() {
            self.tell(index, DRAINED);
        }
        self.workers.vacate(index);
    }

    /// The oldest of those whom a worker has room for, and the worker whose turn it is for that one.
    fn oldest_with_worker(&self) -> Option<(u32, u32)> {
        let found = [false, true].map(|tunnel| {
            // Where not even who takes any finds one, nobody does.
            self.workers.choose(Wish { exclude: Key::NONE, tunnel })?;
            self.queue.line(tunnel).find_map(|(waiting, node)| Some((waiting, self.workers.choose(node.wish)?)))
        });
        let oldest = self.queue.older(found.map(|pair| pair.map(|(waiting, _)| waiting)))?;
        found.into_iter().flatten().find(|(waiting, _)| *waiting == oldest)
    }

    fn tell(&mut self, index: u32, notice: u8) {
        self.ring |= self.workers.tell(index, notice);
    }

    /// What is wrong, if anything.
    fn fault(&self) -> Option<&'static str> {
        let in_flight: u64 = self.workers.iter().map(|(_, worker)| u64::from(worker.load.in_flight)).sum();
        if in_flight != self.permits_out {
            return Some("the requests in flight are not the permits that are out");
        }
        if self.failed && !self.queue.is_empty() {
            return Some("someone waits for an app that has failed");
        }
        let open = self.gate == Gate::Open;
        if open && self.queue.iter().any(|node| self.workers.choose(node.wish).is_some()) {
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
