//! Messages between threads: many posters, one receiver that sleeps in its backend and is woken by its bell.
//!
//! A post puts its message under a mutex held for one push, and rings at most once per sleep. The receiver says that it
//! is about to sleep with [`Mailbox::may_sleep`], which looks once more for mail after the flag was raised; so a post
//! either is seen by that look or sees the flag and rings. That argument is model-checked at the foot of this file.

pub mod desk;

use std::mem;
use std::sync::Arc as Shared;
use std::time::Instant;

#[cfg(loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, Ordering, fence},
};
#[cfg(not(loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU8, Ordering, fence},
};

use crate::access::Checked;
use crate::apps::AppTable;
use crate::buffers::slots::Key;
use crate::dispatch::{AppId, Grant, WorkerId};
use crate::files::open::Look;
use crate::hub::{Hub, Topic};
use crate::listener::ListenerSetup;
use crate::spool::{Done, Way};

/// The receiver runs and will look for mail before it sleeps: nobody rings.
const AWAKE: u8 = 0;
/// The receiver sleeps or is about to: the next post rings.
const IDLE: u8 = 1;
/// The bell was rung for this sleep: nobody rings again.
const NOTIFIED: u8 = 2;

/// Connections that are to be closed in whose places others may come in, in this loop or in those that are asked after it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// How many.
    pub places: usize,
    /// So many loops are still to be asked.
    pub loops: u16,
    /// Some were idle, but not for long enough.
    pub fresh: bool,
}

/// What a loop is told by the others and by the supervisor.
#[derive(Debug)]
pub enum Message {
    /// A slot for an exchange of this loop that was waiting for one.
    Grant(Grant),
    /// The app has given up: the exchange of this name, which was waiting, is to be answered 503.
    AppFailed(Key),
    /// The process of this app's worker is gone.
    Died(AppId, WorkerId),
    /// Close the idle connections to this app's worker and forget it.
    Retire(AppId, WorkerId),
    /// A new configuration: it holds for what begins from now on.
    Configure(Shared<AppTable>),
    /// Accept on these as well.
    Listen(Vec<ListenerSetup>),
    /// The listener of this id is not configured any more, and nobody waits in its backlog: close it.
    CloseListener(u32),
    /// Connections have become fewer than `max_connections`: accept again.
    Accept,
    /// Little is left to `max_connections`: take no more of them from the kernel than there are places.
    FewPlaces,
    /// Handshakes of TLS that had no turn in the last one have theirs.
    ShakeHands,
    /// Another process has given up accepting on the same sockets: the kernel may have told it alone of a client that still waits, so ask
    /// for clients anew.
    AcceptAnew,
    /// The limit on connections is reached, and another loop has no idle ones to close: close some.
    CloseIdle(Wanted),
    /// Memory has come back: answers that stopped for the lack of it may go on.
    Memory,
    /// What has come of the check of the password of the request that this connection has put aside.
    Checked(Key, Checked),
    /// The document that an exchange of this loop has asked for.
    Document(desk::Reply),
    /// What lies behind a name that was asked about, by its key; `None`: it could not be found out.
    Found(Box<[u8]>, Option<Look>),
    /// Bytes of a file that a loop could not read without waiting, for that exchange; `None`: nobody can read them.
    Read(Key, Option<Vec<u8>>),
    /// What came of a piece of the spool that a helper was to write or read for that exchange; `None`: it has panicked.
    Spooled(Key, Way, Option<Done>),
    /// Something was published in a topic that clients of this loop listen to.
    Published(Shared<Topic>),
    /// An app has something to be sent to that WebSocket, as a frame: if its token is that one, and it is one of that hub.
    Say(Key, u64, Shared<Hub>, Shared<[u8]>),
    /// Subscribers that had no turn in the last one have theirs.
    HandOut,
    /// Show that the loop turns: by this number, see [`crate::metrics::Counters::beat`].
    Beat(u64),
    /// Stop gracefully: finish what runs, cut what is left at the deadline.
    Drain {
        /// When the rest is cut.
        deadline: Instant,
    },
    /// Another process accepts on the same sockets from now on: finish what runs as in a drain, but send nobody away who may just be
    /// asking for something. What is left at the deadline is cut.
    HandOver {
        /// When the rest is cut.
        deadline: Instant,
    },
    /// No loop has anything left to drain: who watches the server is let in no more.
    CloseAdmin,
    /// Stop at once.
    StopNow,
}

/// What both ends share.
struct Channel<T> {
    letters: Mutex<Vec<T>>,
    /// Whether `letters` holds any; written under its lock. A loop that nobody writes to looks at nothing else.
    filled: AtomicBool,
    /// [`AWAKE`], [`IDLE`] or [`NOTIFIED`].
    flag: AtomicU8,
    ring: Box<dyn Fn() + Send + Sync>,
}

impl<T> Channel<T> {
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
pub struct Postbox<T>(Shared<Channel<T>>);

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
        let channel = &*self.0;
        let mut letters = channel.lock();
        letters.push(message);
        channel.filled.store(true, Ordering::Release);
        drop(letters);
        // The other half of the one in `may_sleep`.
        fence(Ordering::SeqCst);
        if channel.flag.compare_exchange(IDLE, NOTIFIED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            (channel.ring)();
        }
    }
}

/// The receiver's end; one thread's.
pub struct Mailbox<T>(Shared<Channel<T>>);

impl<T> std::fmt::Debug for Mailbox<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Mailbox")
    }
}

impl<T> Mailbox<T> {
    /// Moves all mail into `into`, in the order of posting. An empty `into` is swapped with the box's own vector, so that two
    /// vectors go to and fro and nothing allocates once they have grown. Whether there was any.
    #[inline]
    pub fn take(&self, into: &mut Vec<T>) -> bool {
        // A post that this load misses is found by `may_sleep`.
        let any = self.0.filled.load(Ordering::Acquire);
        if any {
            self.take_all(into);
        }
        any
    }

    fn take_all(&self, into: &mut Vec<T>) {
        let channel = &*self.0;
        let mut letters = channel.lock();
        channel.filled.store(false, Ordering::Relaxed);
        if into.is_empty() {
            mem::swap(&mut *letters, into);
        } else {
            into.append(&mut letters);
        }
    }

    /// Says that the receiver is about to sleep. `false`: mail waits, so it must not. After `true` every post rings once
    /// until [`Mailbox::awake`].
    pub fn may_sleep(&self) -> bool {
        let channel = &*self.0;
        channel.flag.store(IDLE, Ordering::Release);
        // Orders this look against each post, which has the same between what it writes and its look at the flag: one that comes before is
        // seen here, one that comes after has the flag's new value before its eyes.
        fence(Ordering::SeqCst);
        let empty = !channel.filled.load(Ordering::Acquire);
        if !empty {
            channel.flag.store(AWAKE, Ordering::Release);
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
    let channel = Shared::new(Channel {
        letters: Mutex::new(Vec::new()),
        filled: AtomicBool::new(false),
        flag: AtomicU8::new(AWAKE),
        ring: Box::new(ring),
    });
    (Postbox(Shared::clone(&channel)), Mailbox(channel))
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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// A mailbox, and how often it rang.
    fn counted<T>() -> (Postbox<T>, Mailbox<T>, Shared<AtomicUsize>) {
        let rings = Shared::new(AtomicUsize::new(0));
        let counter = Shared::clone(&rings);
        let (postbox, mailbox) = mailbox(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        });
        (postbox, mailbox, rings)
    }

    #[test]
    fn mail_comes_in_the_order_of_posting() {
        let (postbox, mailbox, rings) = counted();
        postbox.post(1);
        postbox.post(2);
        let mut mail = vec![0];
        mailbox.take(&mut mail);
        postbox.post(3);
        mailbox.take(&mut mail);
        mailbox.take(&mut mail);
        assert_eq!(mail, [0, 1, 2, 3]);
        assert_eq!(rings.load(Ordering::Relaxed), 0, "nobody rings for one who is awake");
    }

    #[test]
    fn it_rings_once_a_sleep() {
        let (postbox, mailbox, rings) = counted();
        let mut mail = Vec::new();
        for sleep in 1..=3 {
            assert!(mailbox.may_sleep());
            postbox.post(1);
            postbox.clone().post(2);
            assert_eq!(rings.load(Ordering::Relaxed), sleep);
            mailbox.awake();
            postbox.post(3);
            assert_eq!(rings.load(Ordering::Relaxed), sleep);
            assert!(!mailbox.may_sleep(), "mail waits");
            postbox.post(4);
            assert_eq!(rings.load(Ordering::Relaxed), sleep);
            mailbox.take(&mut mail);
            assert_eq!(mail, [1, 2, 3, 4]);
            mail.clear();
        }
    }

    #[test]
    fn two_vectors_go_to_and_fro() {
        let (postbox, mailbox, _) = counted();
        let mut mail = Vec::new();
        let mut turn = || {
            (0..100).for_each(|number| postbox.post(number));
            mailbox.take(&mut mail);
            assert_eq!(mail.len(), 100);
            mail.clear();
            (mail.as_ptr(), mail.capacity())
        };
        let warm = [turn(), turn()];
        assert_eq!([turn(), turn()], warm, "once warm, nothing is allocated");
    }

    #[test]
    fn nothing_is_lost_between_real_threads() {
        const POSTS: usize = 20_000;
        let (bell, sleeper) = mpsc::channel();
        let (postbox, mailbox) = mailbox(move || bell.send(()).unwrap());
        std::thread::scope(|scope| {
            for poster in 0..2 {
                let postbox = postbox.clone();
                scope.spawn(move || (0..POSTS).for_each(|number| postbox.post((poster, number))));
            }
            let (mut mail, mut next) = (Vec::new(), [0, 0]);
            while next != [POSTS; 2] {
                if mailbox.may_sleep() {
                    sleeper.recv_timeout(Duration::from_secs(20)).expect("a wake-up was lost");
                    mailbox.awake();
                }
                mailbox.take(&mut mail);
                for (poster, number) in mail.drain(..) {
                    assert_eq!(number, next[poster]);
                    next[poster] += 1;
                }
            }
        });
    }

    #[test]
    fn each_loop_has_its_own_box() {
        let (first, first_mail) = mailbox(|| ());
        let (second, second_mail) = mailbox(|| ());
        let boxes = Postboxes::new(vec![first, second]);
        boxes.post(1, Message::AppFailed(Key { index: 7, generation: 1 }));
        boxes.broadcast(|| Message::StopNow);
        let [mut one, mut two] = [Vec::new(), Vec::new()];
        first_mail.take(&mut one);
        second_mail.take(&mut two);
        assert!(matches!(one[..], [Message::StopNow]));
        assert!(matches!(two[..], [Message::AppFailed(Key { index: 7, .. }), Message::StopNow]));
    }
}

/// The command that runs these models stands in `dispatch/models.rs`.
#[cfg(all(test, loom))]
mod models {
    use loom::sync::{Arc, Condvar};
    use loom::thread;

    use super::*;

    /// A bell that one can sleep on. Loom fails a model in which all threads that are left sleep.
    struct Bell {
        rung: Mutex<(bool, usize)>,
        changed: Condvar,
    }

    impl Bell {
        fn ring(&self) {
            let mut rung = self.rung.lock().expect("no thread panics");
            *rung = (true, rung.1 + 1);
            self.changed.notify_one();
        }

        fn sleep(&self) {
            let mut rung = self.rung.lock().expect("no thread panics");
            while !rung.0 {
                rung = self.changed.wait(rung).expect("no thread panics");
            }
            rung.0 = false;
        }
    }

    /// Posters, so many messages from each, and a receiver that sleeps until it has all of them.
    fn all_mail_arrives(posters: usize, messages: usize) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(4);
        builder.check(move || {
            let bell = Arc::new(Bell { rung: Mutex::new((false, 0)), changed: Condvar::new() });
            let ringer = Arc::clone(&bell);
            let (postbox, mailbox) = mailbox(move || ringer.ring());
            let start = |_| {
                let postbox = postbox.clone();
                thread::spawn(move || (0..messages).for_each(|number| postbox.post(number)))
            };
            let running: Vec<_> = (0..posters).map(start).collect();
            let (mut mail, mut sleeps) = (Vec::new(), 0);
            while mail.len() < posters * messages {
                sleeps += 1;
                if mailbox.may_sleep() {
                    bell.sleep();
                    mailbox.awake();
                }
                mailbox.take(&mut mail);
            }
            running.into_iter().for_each(|poster| poster.join().expect("no thread panics"));
            let rings = bell.rung.lock().expect("no thread panics").1;
            assert!(rings <= sleeps, "{rings} rings for {sleeps} sleeps");
        });
    }

    #[test]
    fn loom_a_post_races_with_the_sleep() {
        all_mail_arrives(1, 2);
    }

    #[test]
    fn loom_two_posters_race_with_the_sleep() {
        all_mail_arrives(2, 1);
    }
}
