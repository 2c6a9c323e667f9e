//! Messages between threads: many posters, one receiver that sleeps in its backend and is woken by its bell.
//!
//! A post puts its message under a mutex held for one push, and rings at most once per sleep. The receiver says that it
//! is about to sleep with [`Mailbox::may_sleep`], which looks once more for mail after the flag was raised; so a post
//! either is seen by that look or sees the flag and rings. That argument is model-checked at the foot of this file.

use std::mem;
use std::sync::Arc as Shared;
use std::time::Instant;

#[cfg(loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, Ordering},
};
#[cfg(not(loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use crate::buffers::slots::Key;
use crate::dispatch::{Grant, WorkerId};

/// The receiver runs and will look for mail before it sleeps: nobody rings.
const AWAKE: u8 = 0;
/// The receiver sleeps or is about to: the next post rings.
const IDLE: u8 = 1;
/// The bell was rung for this sleep: nobody rings again.
const NOTIFIED: u8 = 2;

/// What a loop is told by the others and by the supervisor.
#[derive(Debug)]
pub enum Message {
    /// A slot for an exchange of this loop that was waiting for one.
    Grant(Grant),
    /// The app has given up: the exchange of this name, which was waiting, is to be answered 503.
    AppFailed(Key),
    /// The worker's process is gone.
    Died(WorkerId),
    /// Close the idle connections to this worker and forget it.
    Retire(WorkerId),
    /// Connections have become fewer than `max_connections`: accept again.
    Accept,
    /// Stop gracefully: finish what runs, cut what is left at the deadline.
    Drain {
        /// When the rest is cut.
        deadline: Instant,
    },
    /// Stop at once.
    StopNow,
}

/// What both ends share.
struct Hall<T> {
    letters: Mutex<Vec<T>>,
    /// Whether `letters` holds any; written under its lock. Lets an empty [`Mailbox::take`] go without the lock.
    filled: AtomicBool,
    /// [`AWAKE`], [`IDLE`] or [`NOTIFIED`].
    flag: AtomicU8,
    ring: Box<dyn Fn() + Send + Sync>,
}

impl<T> Hall<T> {
    fn lock(&self) -> MutexGuard<'_, Vec<T>> {
        match self.letters.lock() {
            Ok(letters) => letters,
            // Only a push or a swap happens under the lock. Had one of them panicked, messages would be lost, and lost
            // grants are requests that hang: better to end loudly.
            Err(_) => {
                eprintln!("production_server: a mailbox is broken: a thread panicked while it held the lock");
                std::process::abort()
            }
        }
    }
}

/// The posters' end.
pub struct Postbox<T>(Shared<Hall<T>>);

impl<T> Clone for Postbox<T> {
    fn clone(&self) -> Self {
        Postbox(Shared::clone(&self.0))
    }
}

impl<T> std::fmt::Debug for Postbox<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Postbox")
    }
}

impl<T> Postbox<T> {
    /// Posts one message, and rings when the receiver sleeps and was not yet rung for that sleep.
    pub fn post(&self, message: T) {
        let hall = &*self.0;
        let mut letters = hall.lock();
        letters.push(message);
        hall.filled.store(true, Ordering::Release);
        drop(letters);
        if hall.flag.compare_exchange(IDLE, NOTIFIED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            (hall.ring)();
        }
    }
}

/// The receiver's end; one thread's.
pub struct Mailbox<T>(Shared<Hall<T>>);

impl<T> std::fmt::Debug for Mailbox<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Mailbox")
    }
}

impl<T> Mailbox<T> {
    /// Moves all mail into `into`, in the order of posting. An empty `into` is swapped with the box's own vector, so that two
    /// vectors go to and fro and nothing allocates once they have grown.
    pub fn take(&self, into: &mut Vec<T>) {
        let hall = &*self.0;
        // A post that this load misses is found by `may_sleep`.
        if !hall.filled.load(Ordering::Acquire) {
            return;
        }
        let mut letters = hall.lock();
        hall.filled.store(false, Ordering::Relaxed);
        if into.is_empty() {
            mem::swap(&mut *letters, into);
        } else {
            into.append(&mut letters);
        }
    }

    /// Says that the receiver is about to sleep. `false`: mail waits, so it must not. After `true` every post rings once
    /// until [`Mailbox::awake`].
    pub fn may_sleep(&self) -> bool {
        let hall = &*self.0;
        hall.flag.store(IDLE, Ordering::Release);
        // The lock orders this look against each post: one that pushed before is seen here, one that pushes after has
        // the flag's new value before its eyes.
        let empty = hall.lock().is_empty();
        if !empty {
            hall.flag.store(AWAKE, Ordering::Release);
        }
        empty
    }

    /// Says that the receiver runs again: posts do not ring from now on.
    pub fn awake(&self) {
        self.0.flag.store(AWAKE, Ordering::Release);
    }
}

/// A mailbox whose posters wake the receiver by `ring`, which may be called from any thread.
pub fn mailbox<T>(ring: impl Fn() + Send + Sync + 'static) -> (Postbox<T>, Mailbox<T>) {
    let hall = Shared::new(Hall {
        letters: Mutex::new(Vec::new()),
        filled: AtomicBool::new(false),
        flag: AtomicU8::new(AWAKE),
        ring: Box::new(ring),
    });
    (Postbox(Shared::clone(&hall)), Mailbox(hall))
}

/// The postboxes of all loops, by loop index.
#[derive(Clone, Debug)]
pub struct Postboxes(Shared<[Postbox<Message>]>);

impl Postboxes {
    /// The postboxes of the loops 0, 1, 2, ….
    pub fn new(boxes: Vec<Postbox<Message>>) -> Postboxes {
        Postboxes(boxes.into())
    }

    /// How many loops there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no loop.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Posts one message to one loop. The index must be that of a loop.
    pub fn post(&self, loop_index: u16, message: Message) {
        self.0[usize::from(loop_index)].post(message);
    }

    /// Posts a grant to the loop whose exchange was waiting for it.
    pub fn grant(&self, grant: Grant) {
        self.post(grant.waiter.loop_index, Message::Grant(grant));
    }

    /// Posts to every loop a message of its own.
    pub fn broadcast(&self, message: impl Fn() -> Message) {
        self.0.iter().for_each(|postbox| postbox.post(message()));
    }
}
