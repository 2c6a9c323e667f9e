//! One worker process: what belongs to it, and how it ended. Where it stands in its life is the fleet's to know.

use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use std::os::unix::process::ExitStatusExt;

use super::endpoint::Endpoint;
use super::memory::MemoryWatch;
use super::notify::Channel;
use super::observer::{Observer, Wish};
use super::output::Output;
use super::probe::Probe;
use super::removed::EndpointFile;
use crate::dispatch::WorkerId;
use crate::fleet::{Ending, Name};

/// How often a group is looked at whose first process has ended, when no child says that it has.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// For how long the loops may read what a worker that is over has still answered, before it is judged by that.
pub const SETTLE: Duration = Duration::from_millis(500);

/// Whether a process ended as one does that is told to: with code 0, or by TERM.
pub fn is_clean(status: ExitStatus) -> bool {
    status.success() || status.signal() == Some(libc::SIGTERM)
}

/// The reason of an exit, as the log says it: `recycle: 10000 requests`, `crash: signal 11`, `exit: code 1`. A worker that was ready
/// and ends as if it were told to, which nobody here did, is no crash.
pub fn exit_reason(ending: Option<Ending>, was_ready: bool, status: ExitStatus) -> String {
    match (ending, status.signal(), status.code()) {
        (Some(ending), ..) => ending.to_string(),
        (None, Some(_), _) if was_ready && is_clean(status) => "TERM from outside".to_owned(),
        (None, None, _) if was_ready && is_clean(status) => "ended by itself: code 0".to_owned(),
        (None, Some(signal), _) => format!("crash: signal {signal}"),
        (None, None, code) => format!("exit: code {}", code.unwrap_or(-1)),
    }
}

/// A worker process.
#[derive(Debug)]
pub struct Process {
    /// Its name in the fleet.
    pub name: Name,
    /// Its name in the dispatch.
    pub id: WorkerId,
    /// `WORKER_ID`.
    pub number: u32,
    /// `GENERATION`.
    pub generation: u32,
    /// "web.G1.2".
    pub label: String,
    /// Where it listens.
    pub endpoint: Endpoint,
    /// The child. Its process group has the same number.
    pub child: Child,
    /// Looks for its socket, while that is in question.
    pub probe: Option<Probe>,
    /// Its notify socket, if it is given one.
    pub channel: Option<Channel>,
    /// Its memory.
    pub memory: Memory,
    /// When it was spawned.
    pub born: Instant,
    /// What it writes.
    pub output: Output,
    /// How it ends.
    pub end: End,
    /// What is known of its socket's file.
    pub file: EndpointFile,
    /// What was last seen of its work, while it is not ready, and when it is looked at next.
    pub work: Work,
}

/// The memory of a worker's group.
#[derive(Debug)]
pub struct Memory {
    /// Watches it, if it has a limit.
    pub watch: Option<MemoryWatch>,
    /// How much it was when it was last seen, in bytes.
    pub held: Option<u64>,
}

impl Memory {
    /// Takes in what was seen of it. Whether that is too much for too long.
    pub fn weigh(&mut self, seen: Option<u64>, now: Instant) -> bool {
        self.held = seen.or(self.held);
        self.watch.as_mut().is_some_and(|watch| watch.is_asked() && watch.sample(seen, now))
    }
}

/// What a process does that is not ready yet, as was last seen.
#[derive(Debug)]
pub struct Work {
    /// The process has been ready: nothing of this is looked at any more.
    pub opened: bool,
    /// When to look next.
    pub next: Instant,
    /// The CPU time of its group.
    pub cpu_time: Option<Duration>,
    /// Where its group listens.
    pub listens_on: Vec<String>,
}

impl Work {
    /// Nothing was seen yet.
    pub fn new(next: Instant) -> Work {
        Work { opened: false, next, cpu_time: None, listens_on: Vec::new() }
    }

    /// Whether the group listens on that port, as was last seen.
    pub fn listens_at(&self, port: u16) -> bool {
        let suffix = format!(":{port}");
        self.listens_on.iter().any(|address| !address.starts_with("unix:") && address.ends_with(&suffix))
    }
}

/// How a process ends: how it was told to, and how far that is.
#[derive(Debug, Default)]
pub struct End {
    /// How it was told to.
    pub told: Told,
    /// Since when it is over, and this has been announced.
    pub over_since: Option<Instant>,
    /// How it has ended, as the system has said; it is not reaped yet.
    pub ended: Option<Ended>,
    /// Whether its group has other members, as was last seen once it had ended.
    pub populated: Option<bool>,
    /// When to look for them again.
    look_at: Option<Instant>,
    /// It had, when it had ended.
    had_others: bool,
    /// It has ended by itself and has left others, and the fleet knows.
    forsaken: bool,
    /// A request had waited for it when it was over, and not a byte had ever come from it.
    pub owed: bool,
}

/// How the first process of a worker has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// When that was seen.
    at: Instant,
    way: Way,
    /// Nobody here had told it to.
    by_itself: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// With code 0.
    Zero,
    /// By TERM.
    Term,
    /// In another way.
    Other,
}

/// How a worker was told to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Told {
    /// Not at all.
    #[default]
    Nothing,
    /// By TERM, and so was its whole group: whoever is in it has the time until KILL, also when the first process has gone before, as
    /// shells and package managers do.
    Term,
    /// By KILL, then.
    Kill {
        /// When.
        at: Instant,
    },
}

impl Process {
    /// Its process group.
    pub fn group(&self) -> i32 {
        self.child.id() as i32
    }

    /// Whether it is over; see [`End`].
    pub(super) fn is_over(&mut self, child: bool, patience: Duration, observer: &Observer, now: Instant) -> bool {
        let group = Group { number: self.child.id(), was_ready: self.work.opened };
        self.end.is_over(group, child, patience, observer, now)
    }

    /// Whether it has ended, as the system says now.
    pub fn has_ended(&self) -> bool {
        self.end.ended.is_some() || way_of(self.child.id()).is_some()
    }

    /// Whether it has ended by itself and left others in its group that may still be at work. True once.
    pub fn is_forsaken(&mut self, now: Instant) -> bool {
        let due = self.end.forsaken_at(self.work.opened).is_some_and(|at| at <= now);
        let is_new = due && !self.end.forsaken;
        self.end.forsaken |= is_new;
        is_new
    }

    /// Asks about what is due: its memory where that has a limit, and while it is not ready, what it does.
    pub(super) fn ask(&mut self, observer: &Observer, every: Duration, now: Instant) {
        let mut wish = Wish::default();
        if let Some(watch) = self.memory.watch.as_mut().filter(|watch| watch.next() <= now) {
            watch.asked(now);
            wish.memory = true;
        }
        if self.is_on_its_way() && self.work.next <= now {
            self.work.next = now + every;
            wish.work = true;
        }
        if wish != Wish::default() {
            observer.ask(self.child.id(), wish);
        }
    }

    /// Whether it is not ready yet, and may still become so.
    fn is_on_its_way(&self) -> bool {
        !self.work.opened && self.end.told == Told::Nothing
    }

    /// When its probe, its watchdog or a sample of its memory is due, or its end is to be looked at.
    pub fn due(&self, patience: Duration) -> Option<Instant> {
        let probe = self.probe.as_ref().map(Probe::next);
        let watchdog = self.channel.as_ref().and_then(|channel| channel.watchdog.due());
        let memory = self.memory.watch.as_ref().map(MemoryWatch::next);
        let end = self.end.due(patience, self.work.opened, self.born);
        let work = self.is_on_its_way().then_some(self.work.next);
        [probe, watchdog, memory, work, end].into_iter().flatten().min()
    }
}

/// A worker's process group.
struct Group {
    /// Its number, which is that of its first process.
    number: u32,
    /// The worker has been ready.
    was_ready: bool,
}

impl End {
    /// Whether its first process has ended with code 0.
    pub fn is_well(&self) -> bool {
        self.ended.is_some_and(|ended| ended.way == Way::Zero)
    }

    /// Whether it is over: it has ended, and where its group was told to, that has, too; or it was killed and does not end, for
    /// longer than `patience`. `child`: some process has ended. The members of its group are seen by the observer.
    fn is_over(&mut self, group: Group, child: bool, patience: Duration, observer: &Observer, now: Instant) -> bool {
        if let Told::Kill { at } = self.told
            && now >= at + patience
        {
            return true;
        }
        // No process ends without a word, which is asked about once.
        if self.ended.is_none() && child {
            let by_itself = self.told == Told::Nothing;
            self.ended = way_of(group.number).map(|way| Ended { at: now, way, by_itself });
        }
        let Some(ended) = self.ended else { return false };
        self.had_others |= self.populated == Some(true);
        let waits = match self.told {
            Told::Kill { .. } => false,
            Told::Term => true,
            // One that was never ready has served nobody: what is left of it is only to be known.
            Told::Nothing if !group.was_ready => ended.way == Way::Zero && now < ended.at + SETTLE,
            Told::Nothing => ended.way != Way::Other,
        };
        if !waits || self.populated == Some(false) || (self.populated.is_some() && !self.may_serve(group.was_ready)) {
            return true;
        }
        if child || self.look_at.is_none_or(|at| now >= at) {
            self.look_at = Some(now + LOOK_AGAIN);
            observer.ask(group.number, Wish { members: true, ..Wish::default() });
        }
        false
    }

    /// Whether what is left of its group may still serve, or is to have time for its end.
    fn may_serve(&self, was_ready: bool) -> bool {
        was_ready || self.told == Told::Term
    }

    /// When the fleet is to know that the first process has ended by itself and others are left, if it is: when they were seen, or
    /// nothing is seen of them for too long.
    fn forsaken_at(&self, was_ready: bool) -> Option<Instant> {
        let ended = self.ended.filter(|ended| was_ready && ended.way != Way::Other && !self.forsaken)?;
        if self.told != Told::Nothing || self.over_since.is_some() {
            return None;
        }
        match self.populated {
            Some(true) => Some(ended.at),
            Some(false) => None,
            None => Some(ended.at + SETTLE),
        }
    }

    /// Whether it has ended with code 0, though nobody here had told it to; and whether it had left others in its group then.
    pub fn went(&self) -> Option<bool> {
        let went = self.ended.is_some_and(|ended| ended.by_itself && ended.way == Way::Zero);
        went.then_some(self.had_others)
    }

    /// When to look whether it has ended, or after that whether its answers are read. `at_once`: some time that is over.
    fn due(&self, patience: Duration, was_ready: bool, at_once: Instant) -> Option<Instant> {
        if let Some(since) = self.over_since {
            return Some(since + SETTLE);
        }
        if let Told::Kill { at } = self.told {
            return Some(at + patience);
        }
        self.ended?;
        match self.populated {
            // That nobody is left was seen behind this turn's look for those that are over.
            Some(false) => Some(at_once),
            Some(true) if !self.may_serve(was_ready) => Some(at_once),
            _ => self.look_at.into_iter().chain(self.forsaken_at(was_ready)).min(),
        }
    }
}

/// How a process of ours has ended, if it has. It stays a zombie, so that its number and its group's are not given to others yet.
fn way_of(process: u32) -> Option<Way> {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: the structure is zeroed, which is a valid value of it, and waitid fills it in; si_pid and si_status are valid for
    // the SIGCHLD that waitid reports, and si_pid is 0 when nothing has ended.
    let (pid, code, status) = unsafe {
        if libc::waitid(libc::P_PID, process as libc::id_t, info.as_mut_ptr(), flags) != 0 {
            return None;
        }
        let info = info.assume_init_ref();
        (info.si_pid(), info.si_code, info.si_status())
    };
    (pid != 0).then_some(match (code, status) {
        (libc::CLD_EXITED, 0) => Way::Zero,
        (libc::CLD_KILLED, libc::SIGTERM) => Way::Term,
        _ => Way::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_said_in_few_words() {
        let status = ExitStatus::from_raw;
        for was_ready in [false, true] {
            assert_eq!(exit_reason(None, was_ready, status(9)), "crash: signal 9");
            assert_eq!(exit_reason(None, was_ready, status(1 << 8)), "exit: code 1");
            assert_eq!(exit_reason(Some(Ending::Requests(7)), was_ready, status(15)), "recycle: 7 requests");
            assert_eq!(exit_reason(Some(Ending::Shutdown), was_ready, status(0)), "shutdown");
        }
        assert_eq!(exit_reason(None, false, status(0)), "exit: code 0");
        assert_eq!(exit_reason(None, false, status(15)), "crash: signal 15");
        assert_eq!(exit_reason(None, true, status(0)), "ended by itself: code 0");
        assert_eq!(exit_reason(None, true, status(15)), "TERM from outside");
    }
}
