//! Helpers: a few threads for what would block a loop: opening and reading files, password hashes, questions to other machines.
//!
//! A loop gives away a piece of work and goes on; what came of it is told by the helper that did it, which for a loop means by mail
//! ([`Shared::ask_helper`](crate::event_loop::Shared::ask_helper)).
//!
//! Rules:
//! - The lines are bounded, one for each [`Kind`]. What finds its line full is refused at once, and never waits.
//! - Neither what computes nor what spools ever has all threads, where there are two or more; of both, and of what waits, one after
//!   the other has its turn. So a flood of passwords holds up no file and no upload.
//! - Every piece of work that was taken on is answered, but for those in line when the server stops: also one that panics, with `None`.
//! - Loops have the processor before helpers: what is hashed, read or written for some keeps nobody else waiting.
//! - No thread runs before [`Helpers::start`], which whoever sees that something configured needs them calls.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::kernel;

/// What a piece of work does most of its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It waits: for a disk, for another machine.
    Waits,
    /// It computes, as a password hash does.
    Computes,
    /// It writes or reads the spool: a disk that cannot keep up holds those who write.
    Spools,
}

/// How many kinds there are.
const KINDS: usize = 3;

impl Kind {
    /// How many may stand in its line: so many that a burst of requests for files that are not open yet finds room; and of hashes, of
    /// which one may take a quarter of a second, no more than are worth waiting for. Who has bytes spooled asks for one piece at a time.
    pub const fn room(self) -> usize {
        match self {
            Kind::Waits => 1024,
            Kind::Computes => 32,
            Kind::Spools => usize::MAX,
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// The helpers of a server. Cloning gives another handle.
#[derive(Clone, Default)]
pub struct Helpers(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    /// Something was put in line, or a thread that others may not have is free again, or all is over.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// By kind.
    lines: [VecDeque<Job>; KINDS],
    /// Whose turn it is where several lines have something.
    turn: usize,
    /// How many of each kind are at work.
    busy: [usize; KINDS],
    threads: Vec<JoinHandle<()>>,
    stopped: bool,
}

impl State {
    /// What one of the threads does next, and of which kind it is.
    fn next(&mut self) -> Option<(usize, Job)> {
        let most = self.threads.len().saturating_sub(1).max(1);
        let mut order = (0..KINDS).map(|more| (self.turn + more) % KINDS);
        let kind = order.find(|kind| {
            let allowed = *kind == Kind::Waits as usize || self.busy[*kind] < most;
            allowed && !self.lines[*kind].is_empty()
        })?;
        self.turn = (kind + 1) % KINDS;
        self.busy[kind] += 1;
        Some((kind, self.lines[kind].pop_front()?))
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No work is done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What each thread does until the end.
    fn help(&self) {
        kernel::give_way();
        let mut state = self.lock();
        while !state.stopped {
            let Some((kind, job)) = state.next() else {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            // It tells of the work's own panic; what is left is one of whoever is told.
            let _ = catch_unwind(AssertUnwindSafe(job));
            state = self.lock();
            state.busy[kind] -= 1;
            if kind != Kind::Waits as usize {
                // Another of its kind may have been kept from a thread that sleeps.
                self.changed.notify_one();
            }
        }
    }
}

impl Helpers {
    /// Has so many threads run, at least one, unless some run already.
    pub fn start(&self, threads: usize) -> io::Result<()> {
        let mut state = self.0.lock();
        while state.threads.len() < threads.max(1) && !state.stopped {
            let inner = self.0.clone();
            let name = format!("helper-{}", state.threads.len());
            let thread = std::thread::Builder::new().name(name).spawn(move || inner.help())?;
            state.threads.push(thread);
        }
        Ok(())
    }

    /// Has one of them do some work and tell what came of it: `None` if it has panicked. `false`: its line is full, or nobody is there
    /// to do it, and nothing happens.
    pub fn ask<T>(
        &self,
        kind: Kind,
        work: impl FnOnce() -> T + Send + 'static,
        tell: impl FnOnce(Option<T>) + Send + 'static,
    ) -> bool {
        let mut state = self.0.lock();
        if state.threads.is_empty() || state.stopped || state.lines[kind as usize].len() >= kind.room() {
            return false;
        }
        state.lines[kind as usize].push_back(Box::new(move || tell(catch_unwind(AssertUnwindSafe(work)).ok())));
        drop(state);
        self.0.changed.notify_one();
        true
    }

    /// Ends the threads, each after the work in its hands, and forgets what stands in line. How many did not end in time, and are left
    /// behind: the process ends without them.
    pub fn stop(&self, grace: Duration) -> usize {
        let mut state = self.0.lock();
        state.stopped = true;
        let lines = std::mem::take(&mut state.lines);
        let threads = std::mem::take(&mut state.threads);
        drop(state);
        drop(lines);
        self.0.changed.notify_all();
        let end = Instant::now() + grace;
        while threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        threads.iter().filter(|thread| !thread.is_finished()).count()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// Work that says that it has begun, and lasts until it is told to end.
    fn held(helpers: &Helpers, kind: Kind) -> (Receiver<()>, Sender<()>) {
        let (begun, begins) = mpsc::channel();
        let (end, ends) = mpsc::channel();
        let work = move || {
            begun.send(()).unwrap();
            let _ = ends.recv();
        };
        assert!(helpers.ask(kind, work, |_| ()));
        (begins, end)
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn helpers_give_way_to_loops() {
        let helpers = Helpers::default();
        helpers.start(1).unwrap();
        let (sender, receiver) = mpsc::channel();
        assert!(helpers.ask(Kind::Waits, kernel::niceness, move |nice| sender.send(nice).unwrap()));
        let own = kernel::niceness();
        assert_eq!(receiver.recv_timeout(LONG), Ok(Some((own + kernel::GIVES_WAY).min(19))));
        assert_eq!(kernel::niceness(), own, "the other threads stay as they were");
        assert_eq!(helpers.stop(LONG), 0);
    }

    #[test]
    fn what_is_asked_for_is_told_and_a_panic_too() {
        let helpers = Helpers::default();
        assert!(!helpers.ask(Kind::Waits, || (), |_| ()), "nobody is there");
        helpers.start(2).unwrap();
        helpers.start(2).unwrap();
        assert_eq!(helpers.0.lock().threads.len(), 2);
        let (teller, told) = mpsc::channel();
        for kind in [Kind::Waits, Kind::Computes] {
            let (first, second) = (teller.clone(), teller.clone());
            assert!(helpers.ask(kind, || 7, move |result| first.send(result).unwrap()));
            assert_eq!(told.recv_timeout(LONG), Ok(Some(7)));
            assert!(helpers.ask(kind, || panic!("planned"), move |result| second.send(result).unwrap()));
            assert_eq!(told.recv_timeout(LONG), Ok(None));
        }
        assert_eq!(helpers.stop(LONG), 0);
        assert!(!helpers.ask(Kind::Waits, || (), |_| ()), "it is over");
    }

    #[test]
    fn the_line_is_bounded_and_what_stands_in_it_ends_with_the_server() {
        let helpers = Helpers::default();
        helpers.start(1).unwrap();
        let (begins, end) = held(&helpers, Kind::Waits);
        begins.recv_timeout(LONG).unwrap();
        let (teller, told) = mpsc::channel();
        for kind in [Kind::Waits, Kind::Computes] {
            for _ in 0..kind.room() {
                let teller = teller.clone();
                assert!(helpers.ask(kind, || (), move |result| teller.send(result).unwrap()));
            }
            assert!(!helpers.ask(kind, || (), |_| ()), "{kind:?} has no bound");
        }
        drop(teller);
        assert_eq!(helpers.stop(Duration::ZERO), 1, "its work goes on");
        drop(end);
        assert_eq!(told.recv_timeout(LONG), Err(mpsc::RecvTimeoutError::Disconnected), "nobody did the rest");
    }

    #[test]
    fn what_computes_or_spools_leaves_a_thread_to_the_rest() {
        for (kind, others) in
            [(Kind::Computes, [Kind::Waits, Kind::Spools]), (Kind::Spools, [Kind::Waits, Kind::Computes])]
        {
            let helpers = Helpers::default();
            helpers.start(2).unwrap();
            let (first_begins, first_end) = held(&helpers, kind);
            let (second_begins, _second_end) = held(&helpers, kind);
            first_begins.recv_timeout(LONG).unwrap();
            for _ in 0..50 {
                for other in others {
                    let (begins, end) = held(&helpers, other);
                    begins.recv_timeout(LONG).unwrap_or_else(|_| panic!("{kind:?} has all threads"));
                    drop(end);
                }
            }
            assert_eq!(second_begins.try_recv(), Err(mpsc::TryRecvError::Empty));
            drop(first_end);
            second_begins.recv_timeout(LONG).expect("the other has its turn once the first is done");
        }
    }

    #[test]
    fn where_all_threads_are_at_work_the_kinds_have_their_turns() {
        let helpers = Helpers::default();
        helpers.start(2).unwrap();
        let (begins, _computed) = held(&helpers, Kind::Computes);
        begins.recv_timeout(LONG).unwrap();
        let (begins, spooled) = held(&helpers, Kind::Spools);
        begins.recv_timeout(LONG).unwrap();
        let (_next_begins, _next) = held(&helpers, Kind::Spools);
        let (waits, _waited) = held(&helpers, Kind::Waits);
        drop(spooled);
        waits.recv_timeout(LONG).expect("what spools goes before what waits for ever");
    }
}
