//! `production_server _guard`: one tiny process that ends the workers when the server is gone, however it went.
//!
//! The server holds the writing end of a pipe, the lifeline, and writes down which process groups it has. When the pipe
//! ends without a word of farewell, the server died: the guard sends TERM to each group, KILL half a second later, and
//! removes the sockets. Workers need no part in this (Node and gunicorn watch no pipe), and grandchildren, which the
//! kernel's parent-death signal misses, go with their group.
//!
//! Protocol, one line each: `+PGID` a group is there, `-PGID` it is gone, `q` leave without doing anything. The guard
//! lives in a process group of its own, ignores the signals that stop the server, and holds no descriptor but the
//! lifeline and stderr.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

mod keeper;

pub(super) use keeper::GuardKeeper;

use super::output::set_nonblocking;
use super::run_directory;

/// The word that selects the guard.
pub const WORD: &str = "_guard";
/// From TERM to KILL.
const GRACE: Duration = Duration::from_millis(500);
/// How long the guard looks whether the groups have gone after KILL.
const AFTERMATH: Duration = Duration::from_millis(1000);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// The server's handle to its guard.
#[derive(Debug)]
pub struct Guard {
    child: Child,
    lifeline: File,
}

impl Guard {
    /// Starts a guard of the given program for the sockets in `sockets`.
    ///
    /// # Errors
    /// When no process or pipe can be made.
    pub fn start(program: &Path, sockets: &Path) -> io::Result<Guard> {
        let mut child = Command::new(program)
            .arg0("production_server")
            .arg(WORD)
            .arg(sockets)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn()?;
        let lifeline = OwnedFd::from(child.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?);
        set_nonblocking(lifeline.as_fd())?;
        Ok(Guard { child, lifeline: File::from(lifeline) })
    }

    /// The guard's process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Tells the guard about a process group.
    ///
    /// # Errors
    /// When the guard is gone or does not read: it has to be replaced.
    pub fn add(&mut self, group: u32) -> io::Result<()> {
        self.lifeline.write_all(format!("+{group}\n").as_bytes())
    }

    /// Tells the guard that a process group is no more.
    ///
    /// # Errors
    /// As [`Guard::add`].
    pub fn remove(&mut self, group: u32) -> io::Result<()> {
        self.lifeline.write_all(format!("-{group}\n").as_bytes())
    }

    /// Whether the guard has ended by itself, which it should not.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the guard, before the lifeline is dropped, so that it never takes the silence for our death. The child is to be waited for.
    pub(super) fn kill(mut self) -> Child {
        self.child.kill().ok();
        self.child
    }

    /// Ends the lifeline without a word: the guard does its work.
    pub(super) fn abandon(self) -> Child {
        self.child
    }

    /// Ends the guard at once.
    pub fn discard(self) {
        self.kill().wait().ok();
    }

    /// Tells the guard to leave; false: it does not listen.
    pub(super) fn tell_to_leave(&mut self) -> bool {
        self.lifeline.write_all(b"q\n").is_ok()
    }

    /// Tells the guard to leave and waits for its end; one that does not listen is killed.
    pub fn dismiss(mut self) {
        let told = self.tell_to_leave();
        let deadline = Instant::now() + GRACE;
        while told && Instant::now() < deadline {
            if self.has_ended() {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.discard();
    }
}

/// Runs the guard with the arguments behind `_guard`: the directory of the sockets. Ends when the server does, or is
/// told to.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(sockets) = arguments.next().map(PathBuf::from) else {
        eprintln!("production_server _guard is called by the server itself");
        return ExitCode::from(64);
    };
    ignore_signals();
    close_others();
    let Some(groups) = watch(io::stdin().lock()) else { return ExitCode::SUCCESS };
    if !groups.is_empty() {
        // A closed stderr must not stop the work.
        writeln!(io::stderr(), "the server is gone: ending its workers ({} process groups)", groups.len()).ok();
    }
    end_groups(groups);
    run_directory::remove_sockets(&sockets);
    ExitCode::SUCCESS
}

/// Follows the lifeline to its end and returns the groups that are left; `None` after a farewell.
fn watch(mut lifeline: impl BufRead) -> Option<BTreeSet<i32>> {
    let mut groups = BTreeSet::new();
    let mut line = String::new();
    loop {
        line.clear();
        // A line without its end was cut by the server's death; a failing read is the end, too.
        if lifeline.read_line(&mut line).is_err() || !line.ends_with('\n') {
            return Some(groups);
        }
        let number = |text: &str| text.trim_end().parse::<i32>().ok().filter(|&group| group > 1);
        match line.split_at(1) {
            ("q", _) => return None,
            ("+", group) => groups.extend(number(group)),
            ("-", group) => {
                number(group).map(|group| groups.remove(&group));
            }
            _ => {}
        }
    }
}

fn end_groups(mut groups: BTreeSet<i32>) {
    for (signal, patience) in [(libc::SIGTERM, GRACE), (libc::SIGKILL, AFTERMATH)] {
        groups.retain(|&group| signal_group(group, signal));
        let deadline = Instant::now() + patience;
        while !groups.is_empty() && Instant::now() < deadline {
            std::thread::sleep(LOOK_AGAIN);
            groups.retain(|&group| signal_group(group, 0));
        }
    }
}

/// Sends a signal to a whole process group, and says whether anybody is in it. Signal 0 only asks. Nothing is sent for a number that
/// would mean our own group (0), all processes (1) or a single one (below; kill(2)).
pub fn signal_group(group: i32, signal: i32) -> bool {
    debug_assert!(group > 1, "group {group} is not a worker's");
    if group <= 1 {
        return false;
    }
    // SAFETY: kill takes and returns plain numbers.
    let done = unsafe { libc::kill(-group, signal) } == 0;
    done || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Sends a signal to one process, a child of ours that is not reaped yet, so that the number is still its own.
pub fn signal_process(process: i32, signal: i32) -> bool {
    debug_assert!(process > 1, "process {process} is not a worker");
    // SAFETY: kill takes and returns plain numbers.
    unsafe { libc::kill(process, signal) == 0 }
}

fn ignore_signals() {
    let stopping = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGPIPE];
    let asking = [libc::SIGUSR1, libc::SIGUSR2, libc::SIGTTIN, libc::SIGTTOU, libc::SIGTSTP];
    for signal in stopping.into_iter().chain(asking) {
        // SAFETY: SIG_IGN is a valid disposition for each of these.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Closes what the server may itself have inherited: nothing must stay open because of the guard.
fn close_others() {
    #[cfg(target_os = "linux")]
    // SAFETY: close_range(2) takes plain numbers; this process uses descriptors 0 to 2 only. Kernels before 5.9 refuse
    // the call, and the loop below does the same.
    if unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) } == 0 {
        return;
    }
    for descriptor in 3..1024 {
        // SAFETY: as above.
        unsafe { libc::close(descriptor) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lifeline_tells_which_groups_are_left() {
        assert_eq!(watch(&b"+10\n+11\n-10\n+12\n"[..]), Some(BTreeSet::from([11, 12])));
        assert_eq!(watch(&b"+10\n+1"[..]), Some(BTreeSet::from([10])), "a cut line is no message");
        assert_eq!(watch(&b"+10\nq\n+11\n"[..]), None);
        assert_eq!(
            watch(&b"+1\n+0\n+-5\nnonsense\n\n"[..]),
            Some(BTreeSet::new()),
            "never a group that is not a worker's"
        );
    }
}
