//! Processes that have left their worker: started by one, in a session or group of their own or behind a parent that has ended, they
//! come to this process, which is a child subreaper (prctl(2), Linux 3.4) or process 1.
//!
//! Rules:
//! - Whatever ends here is reaped; workers and the guard are not touched, they have owners of their own.
//! - Whose it is, is known by its environment: the socket or port that its worker was given belongs to one life of one worker. It lives
//!   as long as that worker does: then come TERM and KILL. What carries no such mark is left alone until the server ends; and for good
//!   where another one serves in its place: it may be that one, whose own parent has ended.
//! - A mark that this process carries itself, since a worker has started it, is not one of its workers'.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::guard::signal_process;
use crate::proc;

/// From TERM to KILL, and how long the end of all may take that are left at the server's.
pub const GRACE: Duration = Duration::from_secs(2);
/// How long to wait for what /proc says of one: its environment and its command lie in its memory, which a process that hangs in the kernel
/// may hold locked. One of which nothing is known carries no mark.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a worker's processes are known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    path: Option<Vec<u8>>,
    port: Option<Vec<u8>>,
}

impl Mark {
    /// Whether it is that of the worker which was given this place.
    pub fn is_of(&self, endpoint: &Endpoint) -> bool {
        match (endpoint.path(), endpoint.port()) {
            (Some(path), _) => self.path.as_deref() == Some(path.as_os_str().as_encoded_bytes()),
            (None, Some(port)) => self.port.as_deref() == Some(port.to_string().as_bytes()),
            (None, None) => false,
        }
    }

    /// From /proc/PID/environ; `None` when the process is no worker's, or gone.
    fn of(process: u32) -> Option<Mark> {
        let environment = fs::read(format!("/proc/{process}/environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let value = |name: &[u8]| {
            let found = variables.clone().find_map(|variable| variable.strip_prefix(name));
            found.map(<[u8]>::to_vec)
        };
        let mark = Mark { path: value(b"SOCKET_PATH="), port: value(b"PORT=") };
        variables.any(|variable| variable.starts_with(b"WORKER_ID=")).then_some(mark)
    }
}

struct Orphan {
    mark: Option<Mark>,
    kill_at: Option<Instant>,
}

/// See the module.
pub struct Orphans {
    known: HashMap<u32, Orphan>,
    /// What this process carries, and all have that it starts which are no workers.
    own: Option<Mark>,
}

impl Orphans {
    /// Has what workers leave behind come to this process, where the kernel can.
    pub fn adopt() -> Orphans {
        #[cfg(target_os = "linux")]
        // SAFETY: plain numbers; a kernel that does not know the option refuses it.
        unsafe {
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1 as libc::c_ulong, 0, 0, 0);
        }
        Orphans { known: HashMap::new(), own: Mark::of(std::process::id()) }
    }

    /// Reaps those that have ended, and tells those to end whose worker has; which ones, with the first words of their commands. `owned`
    /// are the children that others wait for.
    pub fn look(&mut self, owned: &[u32], lives: impl Fn(&Mark) -> bool, now: Instant) -> Vec<(u32, String)> {
        let children: Vec<u32> = children().into_iter().filter(|child| !owned.contains(child)).collect();
        self.known.retain(|process, _| children.contains(process));
        let mut told = Vec::new();
        for process in children {
            if reap(process) {
                self.known.remove(&process);
                continue;
            }
            let orphan = self.orphan(process);
            match orphan.kill_at {
                Some(at) if now >= at => {
                    signal_process(process as i32, libc::SIGKILL);
                    orphan.kill_at = Some(now + GRACE);
                }
                None if orphan.mark.as_ref().is_some_and(|mark| !lives(mark)) => {
                    // First: one that has ended has no command line.
                    let command = proc::within(PATIENCE, move || command(process)).unwrap_or_default();
                    signal_process(process as i32, libc::SIGTERM);
                    orphan.kill_at = Some(now + GRACE);
                    told.push((process, command));
                }
                _ => {}
            }
        }
        told
    }

    /// When one of them is to be killed.
    pub fn due(&self) -> Option<Instant> {
        self.known.values().filter_map(|orphan| orphan.kill_at).min()
    }

    /// What is known of one.
    fn orphan(&mut self, process: u32) -> &mut Orphan {
        let Orphans { known, own } = self;
        known.entry(process).or_insert_with(|| {
            let mark = proc::within(PATIENCE, move || Mark::of(process)).ok().flatten();
            Orphan { mark: mark.filter(|mark| own.as_ref() != Some(mark)), kill_at: None }
        })
    }

    /// The server ends: so does all that has come to it, and what comes to it by that, unless it does not end within `patience`. Where it
    /// `is_replaced` by another server, only what its workers have left does.
    pub fn end(&mut self, owned: &[u32], is_replaced: bool, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let mut left = children();
            left.retain(|child| !owned.contains(child) && !reap(*child));
            left.retain(|child| !is_replaced || self.orphan(*child).mark.is_some());
            if left.is_empty() || Instant::now() > deadline {
                return;
            }
            for process in left {
                signal_process(process as i32, libc::SIGKILL);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Waits for a child of ours if it has ended.
fn reap(process: u32) -> bool {
    // SAFETY: waitpid takes numbers, and a null pointer where the status is of no interest.
    unsafe { libc::waitpid(process as libc::pid_t, std::ptr::null_mut(), libc::WNOHANG) != 0 }
}

/// The children of this process, whichever thread they came to (proc_tid_children(5)).
fn children() -> Vec<u32> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

/// Its program, and what that is to run where it comes first; of one that has no command left, as one that has ended, the name of its program.
fn command(process: u32) -> String {
    let of = |name: &str| fs::read(Path::new("/proc").join(process.to_string()).join(name)).unwrap_or_default();
    match shown(&of("cmdline")) {
        told if told.is_empty() => String::from_utf8_lossy(&of("comm")).trim_end().to_owned(),
        told => told,
    }
}

/// A program and, where it comes first, what it is to run; options and what stands behind them may be secrets. `line` is as in proc_pid_cmdline(5).
fn shown(line: &[u8]) -> String {
    let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let program = words.next().unwrap_or_default().into_owned();
    match words.next().filter(|word| !word.is_empty() && !word.starts_with('-')) {
        Some(first) => format!("{program} {first}"),
        None => program,
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn of_a_command_no_options_are_told() {
        for (line, told) in [
            (&b"node\0server.js\0--password=secret\0"[..], "node server.js"),
            (b"./app\0--password\0secret\0", "./app"),
            (b"sh\0-c\0exec secret\0", "sh"),
            (b"nginx: worker process\0\0\0", "nginx: worker process"),
            (b"", ""),
        ] {
            assert_eq!(shown(line), told);
        }
    }

    #[test]
    fn a_process_that_has_ended_is_named_as_well() {
        let mut child = Command::new("cat").arg("/dev/stdin").stdin(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let until = |expected: &str| {
            while command(child.id()) != expected {
                assert!(Instant::now() < deadline, "{:?} is not {expected:?}", command(child.id()));
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        until("cat /dev/stdin");
        signal_process(child.id() as i32, libc::SIGTERM);
        until("cat");
        child.wait().unwrap();
    }
}
