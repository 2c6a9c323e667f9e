//! Known faults, planted where the tests must be able to find such a one.
//!
//! Of a release build nothing of it is part: [`active`] and [`strikes`] are constants there, and vanish. In a build with debug
//! assertions, as tests have, one fault sleeps in each place until `plant` wakes it for the calling thread (the simulation runs
//! one seed on one thread, so tests may run side by side).

/// A known fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// A released slot is given to a waiter who is never told.
    LostGrant,
    /// A released slot is freed twice: the worker gets a request too many.
    DoubleRelease,
    /// A cancelled waiter still gets a slot, and nobody brings it back.
    ForgottenCancel,
    /// Now and then the youngest waiter goes first.
    QueueJump,
    /// A draining or dead worker still gets requests.
    StaleWorker,
    /// A block is never given back to its pool.
    LeakedBlock,
    /// A request is sent again although an answer has begun, or although it may have run.
    LateRetry,
    /// The connection of a request whose client left is kept for the next one, although its answer is still to come.
    DirtyLink,
    /// An answer that is cut gets a clean end.
    CleanCut,
    /// The end of a tunnel is not told.
    ForgottenTunnel,
    /// A request's bytes stay in blocks of the pool for as long as it waits.
    WaitingBlock,
    /// The clock of a worker runs while its answer is held up by its client.
    BlamingClock,
    /// The ticket of a request that ends in the queue is not given back.
    ForgottenTicket,
    /// A replacement that failed is tried again before it is gone.
    SecondReplacement,
    /// The first replacement of a roll relieves an old worker as soon as it is ready.
    NoTrial,
    /// A roll goes on to the next place before the old worker is gone.
    HastyRoll,
    /// Workers are recycled in the middle of a roll.
    RecycleInRoll,
    /// A stuck worker gets requests until it is killed.
    StuckServes,
    /// Who is about to read the oldest message of a topic that has given up others does not get it.
    SkippedAtWrap,
    /// Who comes back to a topic begins one message too late.
    LateResume,
    /// Who has missed messages is not told.
    SilentGap,
    /// A subscriber that goes is left in one of its topics.
    ForgottenSubscriber,
    /// Who gets the place of a subscriber that has left is not told of it.
    StalePlace,
    /// The id of a message is not known again.
    ForgottenId,
    /// What a client says goes to its app while that has its turn.
    TwoEvents,
    /// An app is not told of the end of a socket.
    ForgottenEnd,
    /// What was made of a message for the wire is charged for ever.
    LeakedForm,
    /// Who is behind gets what is not for it.
    NotExcluded,
    /// A replica that has not got a message stays in the record of those that have.
    StaleRecord,
    /// What was given to a leader that is gone is published again by the next.
    PublishedAgain,
    /// A replica that comes does not learn which ids are known.
    UnlearnedIds,
    /// What is kept while Redis is away is taken for published as soon as it is sent.
    ForgottenKept,
    /// What comes over a new connection to NATS before the server has taken what it was told goes into the epoch before.
    LateEpoch,
    /// Who hears over NATS that messages were lost does not tell.
    UntoldLoss,
    /// What comes over NATS and cannot be kept is passed over.
    UntoldRefusal,
}

#[cfg(debug_assertions)]
mod awake {
    use std::cell::Cell;

    use super::Bug;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
        static OCCASIONS: Cell<u32> = const { Cell::new(0) };
    }

    /// Wakes one fault for this thread, or puts the one that is awake to sleep.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
        OCCASIONS.set(0);
    }

    /// Whether this fault is awake.
    pub fn active(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }

    /// Whether this fault is awake and this is one of every `one_in` occasions for it.
    pub fn strikes(bug: Bug, one_in: u32) -> bool {
        if !active(bug) {
            return false;
        }
        let occasion = OCCASIONS.get().wrapping_add(1);
        OCCASIONS.set(occasion);
        occasion.is_multiple_of(one_in)
    }
}

#[cfg(debug_assertions)]
pub use awake::{active, plant, strikes};

/// Whether this fault is awake: never, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn active(_bug: Bug) -> bool {
    false
}

/// Whether this fault strikes now: never, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub const fn strikes(_bug: Bug, _one_in: u32) -> bool {
    false
}
