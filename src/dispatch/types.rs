//! The words that the loops, the supervisor and the dispatch speak with each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Moves;
use crate::buffers::slots::Key;

/// A worker's name: which place in the table, and which of its lives. A dead name finds nothing, and is never used again.
pub type WorkerId = Key;

/// An app's name, which the loops put before those of its workers: two apps may each have a worker of the same name. It is never
/// used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AppId(pub u16);

/// Permits that were dropped and never released, in the whole process.
pub(super) static LOST_PERMITS: AtomicU64 = AtomicU64::new(0);

/// Who waits for a worker: an exchange of a loop.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Waiter {
    /// The loop's index.
    pub loop_index: u16,
    /// The exchange's name in that loop.
    pub exchange: Key,
}

/// The right to have one request in flight on one worker. It must go back through `release`.
#[must_use = "a permit goes back through release()"]
#[derive(Debug)]
pub struct Permit(pub(super) Claim);

/// What a permit stands for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Claim {
    pub worker: WorkerId,
    /// The number of its dispatch, and below it one bit for [`Claim::tunnel`]: in three whole words a permit is moved at no cost.
    origin: u32,
}

impl Claim {
    #[inline]
    pub fn new(worker: WorkerId, dispatch: u32, tunnel: bool) -> Claim {
        Claim { worker, origin: dispatch << 1 | u32::from(tunnel) }
    }

    /// Whether it is on a worker of that dispatch. (Numbers come again after 2^31 dispatches.)
    #[inline]
    pub fn is_of(&self, dispatch: u32) -> bool {
        self.origin >> 1 == dispatch & (u32::MAX >> 1)
    }

    /// It was asked for by a request that wants a tunnel, and counts among its worker's tunnels until it comes back.
    #[inline]
    pub fn tunnel(&self) -> bool {
        self.origin & 1 == 1
    }
}

impl Permit {
    /// The worker it is for.
    #[inline]
    pub fn worker(&self) -> WorkerId {
        self.0.worker
    }

    /// Ends the permit, for it has come back.
    #[inline]
    pub(super) fn surrender(self) -> Claim {
        let claim = self.0;
        std::mem::forget(self);
        claim
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        LOST_PERMITS.fetch_add(1, Ordering::Relaxed);
        debug_assert!(std::thread::panicking(), "a permit for worker {:?} was dropped, not released", self.0.worker);
    }
}

/// A place in the queue, to be used once: the name of a waiter who waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket(pub(super) Key);

/// A slot that became free, and the waiter who gets it.
#[must_use = "a grant goes to its waiter"]
#[derive(Debug)]
pub struct Grant {
    /// Whose it is.
    pub waiter: Waiter,
    /// The slot.
    pub permit: Permit,
}

/// The answer to a request for a worker.
#[must_use = "a permit goes back through release(), a ticket is cancelled or granted"]
#[derive(Debug)]
pub enum Acquire {
    /// Here it is.
    Granted(Permit),
    /// None has room: a [`Grant`] will come, unless the ticket is cancelled or times out.
    Queued(Ticket),
    /// None has room and the queue is full: 503.
    Full,
    /// The request wants a tunnel, and every eligible worker has as many as it may: 503.
    NoTunnel,
    /// The app has given up: 503 at once.
    Failed,
}

/// How a request ended, as far as its worker is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// A whole answer; counts towards recycling.
    Answered,
    /// The same, but one that says that it cannot: 502, 503 or 504.
    Failed,
    /// The same, but nobody waited for it any more.
    Late,
    /// Nothing reached the worker.
    Unused,
    /// The worker said that it did not run the request: the others are asked before it is asked again.
    Declined,
    /// The connection died, or time ran out; counts towards recycling, for the request may have run.
    Broken,
    /// The same: what came is no answer.
    Malformed,
    /// The connection ended before a byte of an answer. Counts as broken; and if nothing else was in flight on a supervised worker,
    /// no new requests for it until `ready`: a process that is dying closes its sockets one by one and its listener last, so until the
    /// supervisor has looked it may still seem to listen. With others in flight it stays, for one lost connection among many
    /// says little about the process.
    Lost,
    /// The connect was refused, or the socket does not exist: no new requests for this worker until `ready`.
    Unreachable,
    /// The worker switched protocols (101): the slot is free, and the tunnel counts until `tunnel_ended`.
    Tunnel,
}

/// How a worker is chosen among those of the newest generation with room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum Balance {
    /// The fewest requests in flight, ties to the one freed last: its memory is warm, and the surplus ones rest.
    #[default]
    Lifo,
    /// Each in its turn.
    RoundRobin,
    /// The fewest requests in flight, ties to the one that has rested longest.
    Least,
}

/// What a dispatch keeps to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// How a worker is chosen.
    pub balance: Balance,
    /// Requests in flight on one worker, at most; 0 counts as 1.
    pub concurrency: u32,
    /// Waiters, at most. Those who rejoin are let in beyond it.
    pub queue_size: usize,
    /// How long a request waits while workers are eligible.
    pub queue_timeout: Duration,
    /// How long a request waits while none is.
    pub hold: Duration,
    /// Tunnels through one worker, at most; `u32::MAX` for no limit.
    pub max_tunnels: u32,
    /// Failures in a row of a server that something else runs, until [`Notice::Failing`] is told; 0: it never is.
    pub failures: u32,
    /// Those who wait take turns by their keys ([`Ask::turn`]).
    pub fair: bool,
}

/// Where a worker is, and what it is called.
#[derive(Clone, Debug)]
pub struct Target {
    /// What to connect to.
    pub address: socket2::SockAddr,
    /// "web.G1.2", or an upstream's address as it was given.
    pub label: String,
    /// Whether it is a Unix socket.
    pub unix: bool,
    /// Whether it is a child process of ours.
    pub supervised: bool,
    /// Its `WORKER_ID`.
    pub number: u32,
    /// When it was last heard from.
    pub moves: Arc<Moves>,
}

/// What becomes of a waiter's patience.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Patience {
    /// Wait on, and ask again then; that may be before the deadline, because the state of the workers decides which it is.
    Until(Instant),
    /// Waited too long for a busy worker: 504. The ticket is cancelled.
    QueueTimeout,
    /// Waited too long while no worker was ready: 503. The ticket is cancelled.
    HoldExpired,
    /// The ticket is used: its grant (or the word that the app failed) is in the mail.
    Granted,
}

/// What the supervisor should know. Each is said once until it is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notice {
    /// A connect was refused; the worker is not eligible until `ready`.
    Unreachable(WorkerId),
    /// It has reached its request limit: it serves on until it is drained, and is to be replaced.
    Threshold(WorkerId),
    /// It is draining or dead, and no request is in flight on it any more, nor a tunnel through it, unless it is dead or not ours.
    Drained(WorkerId),
    /// It let a request time out.
    Suspect(WorkerId),
    /// It let a request time out, and has neither answered another nor sent a byte since that one began.
    Stuck(WorkerId),
    /// It has failed as often in a row as is too often, or once on trial ([`super::Dispatch::limit`]).
    Failing(WorkerId),
    /// It has answered a request on trial.
    Recovers(WorkerId),
    /// The slot is free that is kept from requests ([`super::Dispatch::spare`]).
    Spared(WorkerId),
}

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ask {
    /// The request's clock: when it was ready to be forwarded for the first time.
    pub since: Instant,
    /// A worker to be passed over while any other is eligible, whether or not that one has room.
    pub exclude: Option<WorkerId>,
    /// Rejoin the head of the queue, among the others there by the age of `since`; never [`Acquire::Full`].
    pub front: bool,
    /// The request wants a tunnel (it asks for an upgrade): only a worker with room for one more will do.
    pub tunnel: bool,
    /// Where [`Policy::fair`] holds, who takes turns with others while they wait ([`super::Dispatch::key`]); 0: nobody.
    pub turn: u64,
}

/// Which workers will do for a request.
#[derive(Clone, Copy)]
pub(super) struct Wish {
    /// The worker it would rather not get, or [`Key::NONE`].
    pub exclude: WorkerId,
    /// It must have room for one more tunnel.
    pub tunnel: bool,
}

/// For which wishes a slot of a worker will do.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    pub worker: WorkerId,
    /// Who would rather not have the worker may pass it over, for there is another to wait for.
    pub refusable: bool,
    /// The worker has room for one more tunnel.
    pub tunnel: bool,
}

impl Slot {
    /// Whether the worker will do. Whether its room will do is told by the line of a waiter.
    #[inline]
    pub fn suits(&self, exclude: WorkerId) -> bool {
        !(self.refusable && exclude == self.worker)
    }
}

/// Where a worker stands. Only a ready one is eligible for requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Standing {
    /// Not seen ready yet.
    Starting,
    /// Eligible, busy or idle.
    Ready,
    /// A connect was refused; the supervisor has not looked at it yet.
    Unreachable,
    /// Finishing what it has.
    Draining,
    /// Its process is gone.
    Dead,
}

/// The state of one worker, for `status`.
#[derive(Clone, Debug)]
pub struct WorkerSnapshot {
    /// Its name.
    pub id: WorkerId,
    /// Where it is and what it is called.
    pub target: Arc<Target>,
    /// The app generation it belongs to.
    pub app_generation: u32,
    /// Where it stands.
    pub standing: Standing,
    /// Requests in flight.
    pub in_flight: u32,
    /// Requests that it was given and that ran.
    pub served: u64,
    /// Those of them whose connection died or that timed out.
    pub broken: u64,
    /// Open tunnels.
    pub tunnels: u32,
    /// When it last answered a request; `None`: it has answered none.
    pub answered_at: Option<Instant>,
}

impl WorkerSnapshot {
    /// Whether a request waits for it, from which not a byte has ever come.
    pub fn owes(&self) -> bool {
        self.in_flight > 0 && self.answered_at.is_none() && !self.target.moves.ever()
    }
}

impl Snapshot {
    /// One of the workers.
    pub fn worker(&self, id: WorkerId) -> Option<&WorkerSnapshot> {
        self.workers.iter().find(|worker| worker.id == id)
    }
}

/// The state of a dispatch, for `status`.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// How many requests wait.
    pub queue_depth: usize,
    /// Since when the first of them waits.
    pub oldest: Option<Instant>,
    /// Whether requests are held back by [`super::Dispatch::pause`], or are being let go.
    pub paused: bool,
    /// How many workers are eligible, busy or idle.
    pub eligible: u32,
    /// Whether the app has given up.
    pub failed: bool,
    /// The workers, by their places in the table.
    pub workers: Vec<WorkerSnapshot>,
}
