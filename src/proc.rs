//! What /proc tells of processes: the one parser of its files about them. Elsewhere than on Linux there is nothing to read, nothing
//! is known and nothing is said.
//!
//! - [`Stat`]: state, group, parent, flags and CPU time of a process;
//! - [`listening_addresses`]: where the processes of a group listen, for the message about a worker that opened another door than
//!   the one it was given.

use std::cell::OnceCell;
use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

/// The state of a listening socket in /proc/net/tcp (proc_net(5); TCP_LISTEN in the kernel's tcp_states.h).
const TCP_LISTEN: &str = "0A";
/// The flag of a listening socket in /proc/net/unix (__SO_ACCEPTCON).
const UNIX_LISTENING: u32 = 0x10000;
/// The flag of a task that is in its exit (PF_EXITING in the kernel's sched.h). It is set before any descriptor closes.
const EXITING: u32 = 0x4;

/// What /proc/PID/stat tells of a process (proc_pid_stat(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// One letter: `R`, `S`, `D`, `Z`, ...
    pub state: char,
    /// Its parent's process id.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// The kernel's PF_ flags.
    pub flags: u32,
    /// CPU time in clock ticks, of itself and of its children that have ended.
    pub ticks: u64,
    /// How many threads it has, those of a zombie's that have not ended yet included.
    pub threads: u32,
}

impl Stat {
    /// Whether it is in its exit.
    fn is_exiting(&self) -> bool {
        self.flags & EXITING != 0
    }

    /// That of a process; `None` when there is none of that number, or nothing can be known.
    pub fn of(process: u32) -> Option<Stat> {
        Stat::below(Path::new("/proc"), process)
    }

    /// The same, where `proc` is mounted.
    pub fn below(proc: &Path, process: u32) -> Option<Stat> {
        // One read tells all: fifty numbers and a short name, which may be no UTF-8.
        let mut bytes = [0; 2048];
        let length = fs::File::open(proc.join(format!("{process}/stat"))).ok()?.read(&mut bytes).ok()?;
        Stat::parse(&String::from_utf8_lossy(&bytes[..length]))
    }

    /// The fields stand behind the name, which may hold anything but ends at the last parenthesis.
    fn parse(text: &str) -> Option<Stat> {
        let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
        let state = fields.next()?.chars().next()?;
        let (parent, group) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        // Behind session, terminal and the terminal's group.
        let flags = fields.nth(3)?.parse().ok()?;
        // Behind four counts of page faults: utime, stime, cutime and cstime.
        let ticks = fields.by_ref().skip(4).take(4).map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
        // Behind priority and nice value.
        let threads = fields.nth(2)?.parse().ok()?;
        Some(Stat { state, parent, group, flags, ticks, threads })
    }

    /// Whether it runs code, or may again: it is no zombie.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }

    /// Whether it has ended as a whole, so that its parent is told: its first thread is a zombie before the others have ended, and what
    /// they hold is still held then.
    pub fn is_over(&self) -> bool {
        !self.is_alive() && self.threads <= 1
    }
}

/// The numbers of all processes.
pub fn processes(proc: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// All processes at one moment, and whose they are. Those of a group are known without a file of theirs being read; the rest is read
/// when it is first asked for.
#[derive(Debug)]
pub struct Groups {
    /// Process and group.
    all: Vec<(u32, u32)>,
    stats: OnceCell<Vec<(u32, Stat)>>,
}

impl Groups {
    /// As things are now: one walk over the system's processes.
    pub fn now() -> Groups {
        let all = processes(Path::new("/proc"));
        Groups { all: all.filter_map(|process| Some((process, group_of(process)?))).collect(), stats: OnceCell::new() }
    }

    /// The processes of a group, and all that they have started: some package managers give the app a group of its own.
    pub fn members(&self, group: u32) -> Vec<u32> {
        self.of(group).into_iter().map(|(process, _)| process).collect()
    }

    /// The processes of a group alone.
    pub fn processes_of(&self, group: u32) -> impl Iterator<Item = u32> {
        self.all.iter().filter(move |(_, other)| *other == group).map(|(process, _)| *process)
    }

    fn stats(&self) -> &[(u32, Stat)] {
        let read = |(process, _): &(u32, u32)| Some((*process, Stat::of(*process)?));
        self.stats.get_or_init(|| self.all.iter().filter_map(read).collect())
    }

    fn of(&self, group: u32) -> Vec<(u32, Stat)> {
        let all = self.stats();
        let mut found: Vec<(u32, Stat)> = all.iter().filter(|(_, stat)| stat.group == group).copied().collect();
        let mut cursor = 0;
        while let Some((parent, _)) = found.get(cursor).copied() {
            let is_new =
                |child: &(u32, Stat)| child.1.parent == parent && !found.iter().any(|(known, _)| *known == child.0);
            let more: Vec<(u32, Stat)> = all.iter().filter(|child| is_new(child)).copied().collect();
            found.extend(more);
            cursor += 1;
        }
        found
    }

    /// Whether a process of that group, or one that they have started, lives, other than its first one.
    pub fn is_populated(&self, group: u32) -> bool {
        let lives = |process: u32| Stat::of(process).is_some_and(|stat| stat.is_alive());
        // Whoever has ended has no children any more: then nobody outside of the group belongs to it.
        self.processes_of(group).any(|process| process != group && lives(process))
            || lives(group) && self.of(group).iter().any(|(process, stat)| *process != group && stat.is_alive())
    }

    /// How much CPU time the processes of a group have used, with their children that have ended; `None`: nothing is known of any.
    pub fn cpu_time(&self, group: u32) -> Option<Duration> {
        let ticks: Vec<u64> = self.of(group).iter().map(|(_, stat)| stat.ticks).collect();
        if ticks.is_empty() { None } else { time_of(ticks.iter().sum()) }
    }
}

/// The group of a process; `None` when there is none of that number, or it is one of the kernel's own, which are in no group.
fn group_of(process: u32) -> Option<u32> {
    // SAFETY: getpgid takes a plain number.
    match unsafe { libc::getpgid(process as i32) } {
        0 => None,
        // A security module may refuse what the file tells (security_task_getpgid).
        -1 if io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH) => Some(Stat::of(process)?.group),
        group => u32::try_from(group).ok(),
    }
}

/// What that comes to on a thread of its own: reading about a process that hangs in the kernel, or from a file system that does not answer,
/// may last for ever, and whoever asks waits no longer than `patience`.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`] then; another one when there is no thread, or it has failed.
pub fn within<T: Send + 'static>(patience: Duration, read: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (tell, told) = mpsc::channel();
    // Nobody may listen any more.
    thread::Builder::new().name("reader".to_owned()).spawn(move || tell.send(read()).ok())?;
    told.recv_timeout(patience).map_err(|error| match error {
        RecvTimeoutError::Timeout => io::Error::new(io::ErrorKind::TimedOut, "no answer in time"),
        RecvTimeoutError::Disconnected => io::Error::other("the thread that was to look has failed"),
    })
}

/// For how long the system's cores have idled, all together (proc_stat(5)); `None` where that is not known.
pub fn idle_time() -> Option<Duration> {
    let mut start = [0; 256];
    let length = fs::File::open("/proc/stat").ok()?.read(&mut start).ok()?;
    idle_ticks(std::str::from_utf8(&start[..length]).ok()?).and_then(time_of)
}

/// Idle, and waiting for a disk.
fn idle_ticks(text: &str) -> Option<u64> {
    let mut fields = text.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace();
    let idle: u64 = fields.nth(3)?.parse().ok()?;
    Some(idle + fields.next()?.parse::<u64>().ok()?)
}

/// How much CPU time one process has used, with its children that have ended.
pub fn cpu_time(process: u32) -> Option<Duration> {
    time_of(Stat::of(process)?.ticks)
}

fn time_of(ticks: u64) -> Option<Duration> {
    // SAFETY: sysconf takes a plain number and has no other effect.
    let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|ticks| *ticks > 0)?;
    Some(Duration::from_millis(ticks * 1000 / per_second))
}

/// The addresses on which the processes of a group listen, as text: `127.0.0.1:3000`, `unix:/tmp/app.sock`.
pub fn listening_addresses(group: u32) -> Vec<String> {
    addresses_of(&Groups::now().members(group))
}

/// The same for these processes.
pub fn addresses_of(processes: &[u32]) -> Vec<String> {
    let inodes: HashSet<u64> = processes.iter().flat_map(|&process| sockets_of(process)).collect();
    if inodes.is_empty() {
        return Vec::new();
    }
    // Read below one of these processes, for they may live in a network namespace of their own; below one that still lives.
    let read = |process: &u32, name: &str| fs::read_to_string(format!("/proc/{process}/net/{name}")).ok();
    let table = |name: &str| processes.iter().find_map(|process| read(process, name)).unwrap_or_default();
    let mut found: Vec<String> = Vec::new();
    for name in ["tcp", "tcp6"] {
        found.extend(table(name).lines().filter_map(|line| tcp_listener(line, &inodes)));
    }
    found.extend(table("unix").lines().filter_map(|line| unix_listener(line, &inodes)));
    found.sort();
    found.dedup();
    found
}

/// Whether a process has begun to die. Its descriptors close one by one then, and its listener may be the last: a connect
/// that succeeds says nothing of it any more. A zombie and one that is gone count, too.
pub fn is_dying(process: u32) -> bool {
    cfg!(target_os = "linux") && Stat::of(process).is_none_or(|stat| stat.is_exiting())
}

/// Whether a process, which is not gone, is seen to die: not so where nothing can be seen of it.
pub fn is_seen_to_die(process: u32) -> bool {
    Stat::of(process).is_some_and(|stat| stat.is_exiting())
}

/// The memory that one process alone has in use, in bytes: its resident set, pages that it shares included (proc_pid_statm(5)).
pub fn resident(process: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{process}/statm")).ok()?;
    // SAFETY: sysconf takes a plain number and has no other effect.
    let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    statm.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()?.checked_mul(page)
}

/// The directory in which a process is, behind all links. The system keeps it with the process: no file system is asked.
pub fn directory(process: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{process}/cwd")).ok()
}

fn sockets_of(process: u32) -> Vec<u64> {
    let entries = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

/// A line of /proc/net/tcp or tcp6: `sl local remote st tx:rx tr:when retrnsmt uid timeout inode …`.
fn tcp_listener(line: &str, inodes: &HashSet<u64>) -> Option<String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let ours = fields.get(9).and_then(|inode| inode.parse().ok()).is_some_and(|inode| inodes.contains(&inode));
    if !ours || fields[3] != TCP_LISTEN {
        return None;
    }
    let (address, port) = fields[1].split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Each group of eight digits is a 32-bit word in the machine's order.
    let words: Option<Vec<[u8; 4]>> = (0..address.len() / 8)
        .map(|index| Some(u32::from_str_radix(address.get(index * 8..index * 8 + 8)?, 16).ok()?.to_ne_bytes()))
        .collect();
    let bytes = words?.concat();
    match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => Some(SocketAddr::from((Ipv4Addr::from(four), port)).to_string()),
        Err(_) => {
            let sixteen = <[u8; 16]>::try_from(bytes.as_slice()).ok()?;
            Some(SocketAddr::from((Ipv6Addr::from(sixteen), port)).to_string())
        }
    }
}

/// A line of /proc/net/unix: `num refcount protocol flags type st inode path`.
fn unix_listener(line: &str, inodes: &HashSet<u64>) -> Option<String> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let inode: u64 = fields.get(6)?.parse().ok()?;
    let flags = u32::from_str_radix(fields[3], 16).ok()?;
    let listens = inodes.contains(&inode) && flags & UNIX_LISTENING != 0;
    listens.then(|| format!("unix:{}", fields.get(7).unwrap_or(&"(unnamed)")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_ever_for_what_is_read() {
        let long = Duration::from_secs(20);
        assert_eq!(within(long, || 7).unwrap(), 7);
        let (keep, never) = mpsc::channel::<()>();
        let late = within(Duration::from_millis(10), move || never.recv().is_ok()).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        drop(keep);
        let failed = within(long, || -> u8 { std::panic::resume_unwind(Box::new("planned")) }).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::Other);
    }

    #[test]
    fn the_fields_stand_behind_a_name_that_may_hold_anything() {
        let stat = |name: &str| Stat::parse(&format!("7 ({name}) S 1 42 42 0 -1 4194308 9 9 9 9 1 2 3 4 20 0 6 0"));
        for name in ["sh", "a b", ") R 9 9 (", ""] {
            let expected = Stat { state: 'S', parent: 1, group: 42, flags: 4_194_308, ticks: 10, threads: 6 };
            assert_eq!(stat(name), Some(expected), "{name}");
        }
        assert_eq!(Stat::parse("7 (cut"), None);
        assert_eq!(Stat::parse("7 (cut) S 1"), None);
        assert!(!Stat { state: 'Z', ..stat("sh").unwrap() }.is_alive() && stat("sh").unwrap().is_alive());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_machine_tells_for_how_long_its_cores_have_idled() {
        assert_eq!(idle_ticks("cpu  10 2 3 400 50 6 7 8 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n"), Some(450));
        assert_eq!(idle_ticks("intr 1 2 3 4 5 6"), None);
        assert!(idle_time().is_some());
    }

    /// Its first thread ends and another stays, as for a moment in each exit: the parent is told nothing yet.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_over_with_its_last_thread() {
        let script = "import ctypes, sys, threading\nthreading.Thread(target=sys.stdin.read).start()\nctypes.CDLL(None).pthread_exit(None)";
        let mut child = std::process::Command::new("python3")
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let id = child.id();
        let until = |holds: &dyn Fn(Stat) -> bool| {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while !holds(Stat::of(id).unwrap()) {
                assert!(std::time::Instant::now() < deadline, "{:?}", Stat::of(id));
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        until(&|stat| !stat.is_alive());
        let stat = Stat::of(id).unwrap();
        assert!(!stat.is_over() && child.try_wait().unwrap().is_none(), "{stat:?}");
        child.kill().unwrap();
        until(&|stat| stat.is_over());
        assert!(child.try_wait().unwrap().is_some());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_cpu_time_of_a_group_grows_as_it_works() {
        use std::os::unix::process::CommandExt;
        let mut child =
            std::process::Command::new("sh").args(["-c", "while :; do :; done"]).process_group(0).spawn().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while Groups::now().cpu_time(child.id()).unwrap() < Duration::from_millis(50) {
            assert!(std::time::Instant::now() < deadline, "it burns CPU");
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(Groups::now().cpu_time(child.id()), None);
    }

    /// As pnpm has it: the app is in a session of its own, below the process that the worker began with.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_a_group_has_started_is_its_own_in_whatever_group_it_is() {
        use std::os::unix::process::CommandExt;
        let line = "setsid sleep 1000 & wait";
        let mut leader = std::process::Command::new("sh").args(["-c", line]).process_group(0).spawn().unwrap();
        let group = leader.id();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        let app = loop {
            assert!(std::time::Instant::now() < deadline, "the app is not found");
            let elsewhere = |process: &u32| Stat::of(*process).is_some_and(|stat| stat.group != group);
            if let Some(app) = Groups::now().members(group).into_iter().find(elsewhere) {
                break app;
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        assert!(Groups::now().is_populated(group));
        // The child of a child of ours that is not reaped: both numbers are still theirs.
        crate::supervisor::guard::signal_process(app as i32, libc::SIGKILL);
        leader.wait().unwrap();
        assert!(!Groups::now().is_populated(group));
    }

    #[test]
    fn lines_of_the_tables_are_read() {
        let inodes = HashSet::from([4711]);
        let line =
            "   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000   0 4711 1 0 100 0";
        if cfg!(target_endian = "little") {
            assert_eq!(tcp_listener(line, &inodes).as_deref(), Some("127.0.0.1:3000"));
            let line =
                line.replace("0100007F", "00000000000000000000000001000000").replace("00000000:0000 0A", "0:0 0A");
            assert_eq!(tcp_listener(&line, &inodes).as_deref(), Some("[::1]:3000"));
        }
        assert_eq!(tcp_listener(&line.replace(" 0A ", " 01 "), &inodes), None, "connected, not listening");
        assert_eq!(tcp_listener(&line.replace("4711", "4712"), &inodes), None, "somebody else's");
        let line = "ffff: 00000002 00000000 00010000 0001 01 4711 /tmp/app.sock";
        assert_eq!(unix_listener(line, &inodes).as_deref(), Some("unix:/tmp/app.sock"));
        assert_eq!(unix_listener(&line.replace("00010000", "00000000"), &inodes), None);
        assert_eq!(tcp_listener("", &inodes), None);
        assert_eq!(unix_listener("Num RefCount", &inodes), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_dying_are_told_from_the_living() {
        assert!(!is_dying(std::process::id()));
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(!is_dying(child.id()));
        child.kill().unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !is_dying(child.id()) {
            assert!(std::time::Instant::now() < deadline, "it was killed, and does not seem to die");
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(is_dying(child.id()), "one that is gone");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn our_own_listeners_are_found() {
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let _unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // SAFETY: getpgrp has no arguments and cannot fail.
        let found = listening_addresses(unsafe { libc::getpgrp() } as u32);
        assert!(found.contains(&tcp.local_addr().unwrap().to_string()), "{found:?}");
        assert!(found.contains(&format!("unix:{}", path.display())), "{found:?}");
        let processes = [u32::MAX, std::process::id()];
        assert_eq!(
            addresses_of(&processes),
            addresses_of(&processes[1..]),
            "one that has ended says nothing of the others"
        );
    }
}
