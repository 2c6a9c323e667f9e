//! What workers' processes hold, use and listen on, looked at on a thread of its own: a walk over /proc takes as long as the system has
//! processes, the memory of large ones longer, and a process that hangs in the kernel may hold up whoever reads about it.
//!
//! Whoever wants to know something of a process group asks, goes on, and finds the answer in a later turn; the supervisor is woken
//! for it. All that was asked for while one look is under way is the next look: there is never more than one, over all apps.

use std::cell::RefCell;
use std::collections::HashMap;
use std::mem;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use super::memory;
use super::wake::Waker;
use crate::log::{Level, Log};
use crate::proc::{self, Groups};

/// What is to be found out about a process group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wish {
    /// How much memory it holds.
    pub memory: bool,
    /// Whether anybody but its first process lives.
    pub members: bool,
    /// How much CPU time it has used, and where it listens.
    pub work: bool,
}

/// What was found out. What was not asked for, or cannot be known, is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sight {
    /// Bytes, as [`memory::proportional`].
    pub memory: Option<u64>,
    /// Whether its memory was looked at.
    pub weighed: bool,
    /// Whether it has members beside its first process.
    pub populated: Option<bool>,
    pub cpu_time: Option<Duration>,
    /// The addresses, as [`proc::listening_addresses`].
    pub listens_on: Option<Vec<String>>,
}

type Wishes = HashMap<u32, Wish>;
type Sights = HashMap<u32, Sight>;

/// See the module. Clones are of the same observer.
#[derive(Clone)]
pub(super) struct Observer(Rc<RefCell<Inner>>);

struct Inner {
    log: Log,
    waker: Waker,
    /// The thread's mailbox, once there is one.
    thread: Option<(Sender<Wishes>, Receiver<Sights>)>,
    looks: bool,
    wishes: Wishes,
    sights: Sights,
    look: fn(&Wishes) -> Sights,
}

impl Observer {
    /// The thread is started with the first question.
    pub fn new(log: Log, waker: Waker) -> Observer {
        Observer::with(log, waker, look)
    }

    fn with(log: Log, waker: Waker, look: fn(&Wishes) -> Sights) -> Observer {
        let (wishes, sights) = (Wishes::new(), Sights::new());
        Observer(Rc::new(RefCell::new(Inner { log, waker, thread: None, looks: false, wishes, sights, look })))
    }

    /// Asks about a group. What was found and not taken is not forgotten.
    pub fn ask(&self, group: u32, wish: Wish) {
        let mut inner = self.0.borrow_mut();
        let known = inner.wishes.entry(group).or_default();
        known.memory |= wish.memory;
        known.members |= wish.members;
        known.work |= wish.work;
        inner.go_on();
    }

    /// Takes in what was found since the last call. True: something was.
    pub fn turn(&self) -> bool {
        self.0.borrow_mut().go_on()
    }

    /// What was found about a group.
    pub fn take(&self, group: u32) -> Option<Sight> {
        self.0.borrow_mut().sights.remove(&group)
    }

    /// Forgets what nobody has taken: it is about groups that have ended.
    pub fn forget(&self) {
        self.0.borrow_mut().sights.clear();
    }
}

impl Inner {
    fn go_on(&mut self) -> bool {
        let mut found = false;
        if let Some((_, seen)) = &self.thread {
            match seen.try_recv() {
                Ok(sights) => {
                    self.looks = false;
                    found = !sights.is_empty();
                    self.sights.extend(sights);
                }
                Err(TryRecvError::Empty) => {}
                // It has failed, and is started again with the next question.
                Err(TryRecvError::Disconnected) => (self.thread, self.looks) = (None, false),
            }
        }
        if !self.looks && !self.wishes.is_empty() {
            let wishes = mem::take(&mut self.wishes);
            if self.thread.is_none() {
                self.start();
            }
            self.looks = self.thread.as_ref().is_some_and(|(ask, _)| ask.send(wishes).is_ok());
        }
        found
    }

    fn start(&mut self) {
        let ((ask, asked), (tell, told)) = (channel::<Wishes>(), channel());
        let (waker, look) = (self.waker.clone(), self.look);
        let body = move || {
            for wishes in asked {
                let known = tell.send(look(&wishes));
                waker.wake();
                if known.is_err() {
                    return;
                }
            }
        };
        match thread::Builder::new().name("observer".to_owned()).spawn(body) {
            Ok(_) => self.thread = Some((ask, told)),
            Err(error) => {
                let message = "there is no thread to look at workers' processes";
                self.log.seldom(Level::Warn, message, &[("reason", &error)]);
            }
        }
    }
}

/// One look: one walk over all processes, and what is asked for of those that belong to the groups.
fn look(wishes: &Wishes) -> Sights {
    let groups = Groups::now();
    let sight = |(&group, wish): (&u32, &Wish)| {
        let work = wish.work.then(|| (groups.cpu_time(group), proc::addresses_of(&groups.members(group))));
        let sight = Sight {
            memory: wish.memory.then(|| memory::proportional_of(groups.processes_of(group))).flatten(),
            weighed: wish.memory,
            populated: wish.members.then(|| groups.is_populated(group)),
            cpu_time: work.as_ref().and_then(|(cpu_time, _)| *cpu_time),
            listens_on: work.map(|(_, addresses)| addresses),
        };
        (group, sight)
    };
    wishes.iter().map(sight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::wake::{self, Sleeper};
    use std::time::Instant;

    fn until_found(observer: &Observer, sleeper: &mut Sleeper, group: u32) -> Sight {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            observer.turn();
            if let Some(sight) = observer.take(group) {
                return sight;
            }
            assert!(Instant::now() < deadline, "nothing was found");
            let mut entries = [wake::entry(sleeper.descriptor(), libc::POLLIN)];
            wake::poll(&mut entries, Some(Duration::from_secs(1))).unwrap();
            sleeper.clear();
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_was_asked_for_is_found_and_wakes() {
        let (waker, mut sleeper) = wake::pair().unwrap();
        let observer = Observer::new(Log::disabled(), waker);
        // SAFETY: getpgrp has no arguments and cannot fail.
        let group = unsafe { libc::getpgrp() } as u32;
        observer.ask(group, Wish { memory: true, ..Wish::default() });
        let sight = until_found(&observer, &mut sleeper, group);
        assert!(sight.weighed && sight.memory.is_some_and(|bytes| bytes > 1 << 20), "{sight:?}");
        assert_eq!((sight.populated, sight.cpu_time, sight.listens_on), (None, None, None), "nobody asked");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        observer.ask(group, Wish { members: true, work: true, ..Wish::default() });
        let sight = until_found(&observer, &mut sleeper, group);
        let address = listener.local_addr().unwrap().to_string();
        assert!(sight.listens_on.unwrap().contains(&address));
        assert!(sight.cpu_time.is_some() && !sight.weighed);
    }

    /// A look that lasts until the test lets it go on, as over a process that hangs in the kernel.
    fn slow_look(wishes: &Wishes) -> Sights {
        if wishes.contains_key(&1) {
            while !GO.load(std::sync::atomic::Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(1));
            }
        }
        let seen = |wish: &Wish| Sight { weighed: wish.memory, populated: Some(wish.members), ..Sight::default() };
        wishes.iter().map(|(group, wish)| (*group, seen(wish))).collect()
    }

    static GO: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

    #[test]
    fn nobody_waits_for_a_look_and_what_is_asked_meanwhile_is_one_more() {
        let (waker, mut sleeper) = wake::pair().unwrap();
        let observer = Observer::with(Log::disabled(), waker, slow_look);
        observer.ask(1, Wish::default());
        for group in 2..5 {
            observer.ask(group, Wish { memory: true, ..Wish::default() });
        }
        observer.ask(2, Wish { members: true, ..Wish::default() });
        assert!(!observer.turn() && observer.take(2).is_none(), "the first look is under way");
        GO.store(true, std::sync::atomic::Ordering::SeqCst);
        until_found(&observer, &mut sleeper, 1);
        let sight = until_found(&observer, &mut sleeper, 2);
        assert!(sight.weighed && sight.populated == Some(true), "both questions are one");
        assert!([3, 4].iter().all(|group| observer.take(*group).is_some()), "all by the same look");
        observer.forget();
    }
}
