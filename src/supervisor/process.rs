//! One worker process: what is known of it, and where it stands in its life.

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use super::output::{Capture, LastLines};
use super::probe::Probe;
use crate::dispatch::WorkerId;

/// Where a process stands.
#[derive(Debug)]
pub enum Phase {
    /// Spawned; its socket has not accepted yet.
    Starting {
        /// Looks for the socket.
        probe: Probe,
        /// When patience ends.
        deadline: Instant,
    },
    /// It gets requests.
    Running,
    /// It refused a connection; its socket is looked at again.
    Checking {
        /// Looks for the socket.
        probe: Probe,
        /// When patience ends.
        deadline: Instant,
    },
    /// It gets no new requests and finishes what it has.
    Draining {
        /// When it is told to stop, finished or not.
        deadline: Instant,
    },
    /// It was sent TERM.
    Terminating {
        /// When KILL follows.
        kill_at: Instant,
    },
    /// It was sent KILL.
    Killed,
}

/// Why the supervisor ends a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It has served its number of requests.
    Requests(u64),
    /// It has lived its time.
    Lifetime(Duration),
    /// It did not open its socket in time.
    NotReady,
    /// Its socket ceased to accept and did not come back.
    Unreachable,
    /// The server stops.
    Shutdown,
}

impl Ending {
    /// Whether a replacement was there before it, or none is wanted.
    pub fn is_planned(self) -> bool {
        matches!(self, Ending::Requests(_) | Ending::Lifetime(_) | Ending::Shutdown)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Requests(number) => write!(formatter, "recycle: {number} requests"),
            Ending::Lifetime(time) => write!(formatter, "recycle: lived {} s", time.as_secs()),
            Ending::NotReady => formatter.write_str("not ready in time"),
            Ending::Unreachable => formatter.write_str("socket no longer accepts"),
            Ending::Shutdown => formatter.write_str("shutdown"),
        }
    }
}

/// The reason of an exit, as the log says it: `recycle: 10000 requests`, `crash: signal 11`, `exit: code 1`.
pub fn exit_reason(ending: Option<Ending>, status: ExitStatus) -> String {
    match (ending, status.signal(), status.code()) {
        (Some(ending), ..) => ending.to_string(),
        (None, Some(signal), _) => format!("crash: signal {signal}"),
        (None, None, code) => format!("exit: code {}", code.unwrap_or(-1)),
    }
}

/// A worker process.
#[derive(Debug)]
pub struct Process {
    /// Its place in the app.
    pub place: usize,
    /// Its name in the dispatch.
    pub id: WorkerId,
    /// "web.G1.2".
    pub label: String,
    /// Where it listens.
    pub socket: PathBuf,
    /// The child. Its process group has the same number.
    pub child: Child,
    /// Where it stands.
    pub phase: Phase,
    /// Why it was told to end, if it was.
    pub ending: Option<Ending>,
    /// After how many requests it is replaced; 0: never.
    pub limit: u64,
    /// When it was spawned.
    pub born: Instant,
    /// When its lifetime is over, until that was acted upon.
    pub expires: Option<Instant>,
    /// Its stdout.
    pub stdout: Capture,
    /// Its stderr.
    pub stderr: Capture,
    /// The last lines of its stderr.
    pub last_lines: LastLines,
}

impl Process {
    /// Its process group.
    pub fn group(&self) -> i32 {
        self.child.id() as i32
    }

    /// Whether it fills its place: it serves, or will.
    pub fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. } | Phase::Running | Phase::Checking { .. })
    }

    /// Whether it is on its way to its first readiness.
    pub fn is_starting(&self) -> bool {
        matches!(self.phase, Phase::Starting { .. })
    }

    /// When something about it is due.
    pub fn due(&self) -> Option<Instant> {
        match &self.phase {
            Phase::Starting { probe, deadline } | Phase::Checking { probe, deadline } => {
                Some(probe.next().min(*deadline))
            }
            Phase::Running => self.expires,
            Phase::Draining { deadline } => Some(*deadline),
            Phase::Terminating { kill_at } => Some(*kill_at),
            Phase::Killed => None,
        }
    }

    /// Whether it has ended. It stays a zombie, so that its number and its group's are not given to others yet.
    pub fn has_ended(&self) -> bool {
        let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        // SAFETY: the structure is zeroed, which is a valid value of it, and waitid fills it in; si_pid is valid for
        // the SIGCHLD that waitid reports, and 0 when nothing has ended.
        unsafe {
            libc::waitid(libc::P_PID, self.child.id() as libc::id_t, info.as_mut_ptr(), flags) == 0
                && info.assume_init_ref().si_pid() != 0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_said_in_few_words() {
        let status = ExitStatus::from_raw;
        assert_eq!(exit_reason(None, status(9)), "crash: signal 9");
        assert_eq!(exit_reason(None, status(1 << 8)), "exit: code 1");
        assert_eq!(exit_reason(Some(Ending::Requests(7)), status(15)), "recycle: 7 requests");
        assert_eq!(exit_reason(Some(Ending::Shutdown), status(0)), "shutdown");
    }
}
