//! The guard, kept: one that is gone is replaced, ever later and with a line of the log now and then when guards end again and again, and
//! told of all groups.
//!
//! One for all apps of a server. A guard that was killed is reaped when it has ended; nobody waits for it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::Guard;
use crate::log::{Level, Log};

/// How long after a guard's start another may be started: doubled each time, until one has lived for the longer one.
const LEAST_DELAY: Duration = Duration::from_millis(100);
const MOST_DELAY: Duration = Duration::from_secs(30);
/// How long a guard may take to leave.
const PATIENCE: Duration = Duration::from_millis(500);

/// See the module. Clones are of the same guard.
#[derive(Clone)]
pub(in crate::supervisor) struct GuardKeeper(Rc<RefCell<Kept>>);

struct Kept {
    program: PathBuf,
    sockets: PathBuf,
    log: Log,
    guard: Option<Guard>,
    /// The groups of all workers that live.
    groups: BTreeSet<u32>,
    /// Some app has workers.
    wanted: bool,
    /// When a guard was started last, and how long after that another may be.
    started: Instant,
    delay: Duration,
    /// When it was last said that a guard is gone, and how many have gone since that was not said of.
    told: Option<Instant>,
    untold: u32,
    /// Killed, or left alone, and not reaped yet.
    killed: Vec<Child>,
    /// When it was told to leave.
    dismissed: Option<Instant>,
}

impl GuardKeeper {
    /// For guards of that program that clear up those sockets. None is started yet.
    pub fn new(program: PathBuf, sockets: PathBuf, log: Log) -> GuardKeeper {
        let kept = Kept {
            program,
            sockets,
            log,
            guard: None,
            groups: BTreeSet::new(),
            wanted: false,
            started: Instant::now(),
            delay: LEAST_DELAY,
            told: None,
            untold: 0,
            killed: Vec::new(),
            dismissed: None,
        };
        GuardKeeper(Rc::new(RefCell::new(kept)))
    }

    /// There are workers to be guarded, from now on.
    ///
    /// # Errors
    /// When the first guard cannot be started.
    pub fn begin(&self) -> io::Result<()> {
        let mut kept = self.0.borrow_mut();
        if !std::mem::replace(&mut kept.wanted, true) {
            kept.started = Instant::now();
            kept.guard = Some(Guard::start(&kept.program, &kept.sockets)?);
        }
        Ok(())
    }

    /// A worker's process group is there.
    pub fn add(&self, group: u32) {
        let mut kept = self.0.borrow_mut();
        kept.groups.insert(group);
        // Where no guard could be started, there may be room for one by now.
        if kept.guard.as_mut().is_none_or(|guard| guard.add(group).is_err()) {
            kept.replace();
        }
    }

    /// A worker's process group is gone.
    pub fn remove(&self, group: u32) {
        let mut kept = self.0.borrow_mut();
        kept.groups.remove(&group);
        if kept.guard.as_mut().is_some_and(|guard| guard.remove(group).is_err()) {
            kept.replace();
        }
    }

    /// Replaces a guard that has ended, when it is time; `child`: some process has ended.
    pub fn watch(&self, child: bool, now: Instant) {
        let mut kept = self.0.borrow_mut();
        if child {
            kept.killed.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        }
        let gone = match &mut kept.guard {
            Some(guard) => child && guard.has_ended(),
            None => now >= kept.started + kept.delay,
        };
        if kept.wanted && gone {
            kept.replace();
        }
    }

    /// When another guard may be started, where there is none.
    pub fn due(&self) -> Option<Instant> {
        let kept = self.0.borrow();
        (kept.wanted && kept.guard.is_none()).then(|| kept.started + kept.delay)
    }

    /// The process ids of guards that are not reaped.
    pub fn ids(&self) -> Vec<u32> {
        let kept = self.0.borrow();
        kept.guard.iter().map(Guard::id).chain(kept.killed.iter().map(Child::id)).collect()
    }

    /// The server ends, and no worker is left: tells the guard to leave, and is asked again until it has. One that does not is killed.
    pub fn dismiss(&self, now: Instant) -> bool {
        let mut kept = self.0.borrow_mut();
        kept.wanted = false;
        let dismissed = *kept.dismissed.get_or_insert(now);
        let Some(guard) = &mut kept.guard else { return true };
        let listens = dismissed < now || guard.tell_to_leave();
        if !listens || now >= dismissed + PATIENCE {
            let killed = kept.guard.take().map(Guard::kill);
            kept.killed.extend(killed);
            return true;
        }
        guard.has_ended()
    }

    /// The server ends, and leaves processes behind: they are the guard's to end, once it can be.
    pub fn leave(&self) {
        let mut kept = self.0.borrow_mut();
        kept.wanted = false;
        let left = kept.guard.take().map(Guard::abandon);
        kept.killed.extend(left);
    }
}

impl Kept {
    fn replace(&mut self) {
        if let Some(old) = self.guard.take() {
            // It may only have been too slow to read. Left alone it would take the end of its lifeline for our death.
            self.killed.push(old.kill());
        }
        let lived = self.started.elapsed();
        if lived < self.delay {
            return;
        }
        if lived > MOST_DELAY {
            self.delay = LEAST_DELAY;
        }
        self.tell();
        self.delay = (self.delay * 2).min(MOST_DELAY);
        self.started = Instant::now();
        let started = Guard::start(&self.program, &self.sockets).and_then(|mut guard| {
            self.groups.iter().try_for_each(|group| guard.add(*group))?;
            Ok(guard)
        });
        match started {
            Ok(guard) => self.guard = Some(guard),
            Err(error) => self.log.event(Level::Error, format_args!("cannot start the guard process: {error}"), &[]),
        }
    }

    /// Says that a guard is gone, but not so soon after the last time; then it is said of all of them.
    fn tell(&mut self) {
        self.untold += 1;
        if self.told.is_some_and(|told| told.elapsed() < MOST_DELAY) {
            return;
        }
        let message = "the guard process is gone and is started again";
        self.log.event(Level::Warn, message, &[("times", &self.untold)]);
        (self.told, self.untold) = (Some(Instant::now()), 0);
    }
}
