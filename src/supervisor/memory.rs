//! How much memory workers hold, how much more may be used, and when a worker holds too much.
//!
//! A worker's memory is that of its whole process group, counted as PSS (proc_pid_smaps(5): pages that several processes
//! share count for each by its share), so that forked children do not count their common pages twice. All of it is read
//! from /proc and the cgroup's files; elsewhere than on Linux nothing is known and nothing is done.
//!
//! Rules: reading is bounded. The kernel walks all pages of a process for its PSS, so that very large ones, and all that
//! come after [`PATIENCE`], are counted by their resident set, which costs nothing and is never less than the PSS.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::proc::Groups;

/// How long the PSS of one group is read before the resident set has to do.
const PATIENCE: Duration = Duration::from_millis(50);
/// The largest resident set whose PSS is read: the walk takes some 10 ms for each GiB of small pages.
const LARGEST_WALK: u64 = 4 << 30;
/// How often a worker's memory is looked at.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Samples in a row that must be over the limit: a peak between two garbage collections is no leak.
pub const SAMPLES: u32 = 3;

/// The memory of all processes of a group in bytes, as PSS, or as the resident set where there is no better. `None` when it
/// has no process, or nothing can be known.
pub fn proportional(group: u32) -> Option<u64> {
    proportional_of(Groups::now().processes_of(group))
}

/// The same for the processes of one group.
pub fn proportional_of(processes: impl Iterator<Item = u32>) -> Option<u64> {
    measure(Path::new("/proc"), processes)
}

fn measure(root: &Path, processes: impl Iterator<Item = u32>) -> Option<u64> {
    let deadline = Instant::now() + PATIENCE;
    processes.filter_map(|process| size(root, process, deadline)).reduce(u64::saturating_add)
}

/// The memory of one process in bytes.
fn size(root: &Path, process: u32, deadline: Instant) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(root.join(format!("{process}/{name}"))).ok();
    let resident = kibibytes(&read("status")?, "VmRSS:");
    if resident.is_some_and(|resident| resident > LARGEST_WALK) || Instant::now() >= deadline {
        return resident;
    }
    read("smaps_rollup").and_then(|text| kibibytes(&text, "Pss:")).or(resident)
}

/// A line such as `Pss:   4711 kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let mut fields = text.lines().find_map(|line| line.strip_prefix(name))?.split_ascii_whitespace();
    fields.next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// How many bytes may still be used before the system or the cgroup runs short: what the kernel calls available
/// (MemAvailable, proc_meminfo(5)), or what is left below the tightest limit of this process's cgroups, whose file cache
/// counts as free because the kernel takes it back first. `None` where that cannot be known.
pub fn headroom() -> Option<u64> {
    headroom_in(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
}

fn headroom_in(proc: &Path, cgroups: &Path) -> Option<u64> {
    let meminfo = fs::read_to_string(proc.join("meminfo")).unwrap_or_default();
    let available = kibibytes(&meminfo, "MemAvailable:");
    let groups = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    let left = groups.lines().filter_map(|line| left_in_line(line, cgroups));
    available.into_iter().chain(left).min()
}

/// A line of /proc/PID/cgroup, `hierarchy:controllers:path` (cgroups(7)): version 2 has 0 and no controllers.
fn left_in_line(line: &str, cgroups: &Path) -> Option<u64> {
    let mut fields = line.splitn(3, ':');
    let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let names = match (number, controllers) {
        ("0", "") => &VERSION_2,
        _ if controllers.split(',').any(|controller| controller == "memory") => &VERSION_1,
        _ => return None,
    };
    let root = cgroups.join(names.mount);
    // Every group above has a limit, too. In a container the path may be the host's: what is not there is passed over, and
    // the root of what is mounted is the container's own group.
    let inside = Path::new(path.trim_start_matches('/'));
    if inside.components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
        return left_in_group(&root, names);
    }
    inside.ancestors().filter_map(|group| left_in_group(&root.join(group), names)).min()
}

/// The names of one cgroup version's files.
struct Names {
    mount: &'static str,
    limit: &'static str,
    usage: &'static str,
    /// The lines of `memory.stat` that count the file cache, active and inactive.
    cache: [&'static str; 2],
}

const VERSION_2: Names =
    Names { mount: "", limit: "memory.max", usage: "memory.current", cache: ["active_file ", "inactive_file "] };
const VERSION_1: Names = Names {
    mount: "memory",
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    cache: ["total_active_file ", "total_inactive_file "],
};

/// What is left in one cgroup; `None` when it has no limit (`max`) or no such files.
fn left_in_group(group: &Path, names: &Names) -> Option<u64> {
    let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    let (limit, usage) = (number(names.limit)?, number(names.usage)?);
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let line = |name: &str| stat.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok());
    let cache: u64 = names.cache.iter().filter_map(|name| line(name)).fold(0, u64::saturating_add);
    Some(limit.saturating_sub(usage.saturating_sub(cache)))
}

/// Tells when one worker has held too much memory for too long.
#[derive(Clone, Debug)]
pub struct MemoryWatch {
    limit: u64,
    every: Duration,
    next: Instant,
    over: u32,
    last: Option<u64>,
    /// A sample was asked for, and has not come.
    asked: bool,
}

impl MemoryWatch {
    /// A watch for a worker that is to hold at most `limit` bytes, looked at every `every` ([`INTERVAL`]) from then on.
    pub fn new(limit: u64, every: Duration, now: Instant) -> MemoryWatch {
        MemoryWatch { limit, every, next: now + every, over: 0, last: None, asked: false }
    }

    /// A sample was asked for, and comes later.
    pub fn asked(&mut self, now: Instant) {
        self.next = now + self.every;
        self.asked = true;
    }

    /// Whether a sample was asked for that has not come. Others are not counted: those in a row are to be some time apart.
    pub fn is_asked(&self) -> bool {
        self.asked
    }

    /// When the next sample is due.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// The last sample that was known, in bytes.
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Takes a sample of [`proportional`]. True: the worker is due, since this and those before it, [`SAMPLES`] in a row,
    /// were over the limit; it is said again with each further one. A sample that is not known changes nothing.
    pub fn sample(&mut self, bytes: Option<u64>, now: Instant) -> bool {
        self.next = now + self.every;
        self.asked = false;
        if let Some(bytes) = bytes {
            self.last = Some(bytes);
            self.over = if bytes > self.limit { self.over.saturating_add(1) } else { 0 };
        }
        self.over >= SAMPLES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(root: &Path, name: &str, text: &str) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn process(root: &Path, id: i32, resident: u64, share: Option<u64>) {
        write(root, &format!("{id}/status"), &format!("Name:\ta\nVmHWM:\t  99 kB\nVmRSS:\t  {resident} kB\n"));
        if let Some(share) = share {
            let text = format!(
                "5581-7ffd ---p 00000000 00:00 0 [rollup]\nRss: {resident} kB\nPss:  {share} kB\nPss_Dirty: 1 kB\n"
            );
            write(root, &format!("{id}/smaps_rollup"), &text);
        }
    }

    #[test]
    fn a_groups_processes_are_added_up() {
        let proc = tempfile::tempdir().unwrap();
        process(proc.path(), 10, 1000, Some(600));
        process(proc.path(), 11, 1000, Some(500));
        process(proc.path(), 12, 300, None);
        process(proc.path(), 13, 7, Some(7));
        process(proc.path(), 20, (LARGEST_WALK >> 10) + 1, Some(1));
        write(proc.path(), "30/status", "Name:\tk\n");
        write(proc.path(), "meminfo", "");
        let measured = |processes: &[u32]| measure(proc.path(), processes.iter().copied());
        let found = [&[10, 11, 12][..], &[13], &[20], &[30], &[40], &[], &[40, 13]].map(measured);
        let largest = Some(LARGEST_WALK + 1024);
        assert_eq!(found, [Some(1400 << 10), Some(7 << 10), largest, None, None, None, Some(7 << 10)]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn our_own_group_holds_what_we_hold() {
        // SAFETY: getpgrp has no arguments and cannot fail.
        let group = unsafe { libc::getpgrp() } as u32;
        let before = proportional(group).expect("this process has memory");
        let held = vec![1u8; 256 << 20];
        let after = proportional(group).unwrap();
        assert!(std::hint::black_box(held).len() == 256 << 20);
        assert!(after > before + (128 << 20), "{before} then {after}");
        assert_eq!(proportional(i32::MAX as u32), None);
        assert!(headroom().is_some_and(|bytes| bytes > 1 << 20));
    }

    const MEMINFO: &str = "MemTotal: 8000000 kB\nMemFree: 100 kB\nMemAvailable:    1000000 kB\n";

    #[test]
    fn the_tightest_limit_of_all_groups_above_holds() {
        let root = tempfile::tempdir().unwrap();
        let (proc, cgroups) = (root.path().join("proc"), root.path().join("cgroup"));
        assert_eq!(headroom_in(&proc, &cgroups), None);
        write(&proc, "meminfo", MEMINFO);
        assert_eq!(headroom_in(&proc, &cgroups), Some(1_000_000 << 10), "no cgroup");
        write(&proc, "self/cgroup", "0::/app.slice/web.service\n");
        write(&cgroups, "app.slice/web.service/memory.max", "max\n");
        write(&cgroups, "app.slice/web.service/memory.current", "5000\n");
        assert_eq!(headroom_in(&proc, &cgroups), Some(1_000_000 << 10), "no limit");
        write(&cgroups, "app.slice/memory.max", "100000\n");
        write(&cgroups, "app.slice/memory.current", "90000\n");
        assert_eq!(headroom_in(&proc, &cgroups), Some(10_000));
        write(&cgroups, "app.slice/memory.stat", "anon 1\ninactive_file 20000\nactive_file 300\nfile 99999\n");
        assert_eq!(headroom_in(&proc, &cgroups), Some(30_300), "the file cache can be taken back");
        write(&cgroups, "app.slice/web.service/memory.max", "4000\n");
        assert_eq!(headroom_in(&proc, &cgroups), Some(0), "over its limit");
    }

    #[test]
    fn a_container_sees_its_own_group_as_the_root() {
        let root = tempfile::tempdir().unwrap();
        let (proc, cgroups) = (root.path().join("proc"), root.path().join("cgroup"));
        write(&proc, "meminfo", MEMINFO);
        for path in ["/", "/../../other", "/docker/4711"] {
            write(&proc, "self/cgroup", &format!("0::{path}\n"));
            write(&cgroups, "memory.max", "70000\n");
            write(&cgroups, "memory.current", "30000\n");
            assert_eq!(headroom_in(&proc, &cgroups), Some(40_000), "{path}");
        }
    }

    #[test]
    fn version_one_has_its_own_names() {
        let root = tempfile::tempdir().unwrap();
        let (proc, cgroups) = (root.path().join("proc"), root.path().join("cgroup"));
        write(&proc, "meminfo", MEMINFO);
        write(&proc, "self/cgroup", "12:pids:/x\n5:cpu,memory:/web\n0::/\n");
        write(&cgroups, "memory/web/memory.limit_in_bytes", "60000\n");
        write(&cgroups, "memory/web/memory.usage_in_bytes", "50000\n");
        write(&cgroups, "memory/web/memory.stat", "inactive_file 1\ntotal_inactive_file 2000\ntotal_active_file 500\n");
        write(&cgroups, "memory/memory.limit_in_bytes", "9223372036854771712\n");
        write(&cgroups, "memory/memory.usage_in_bytes", "60000\n");
        assert_eq!(headroom_in(&proc, &cgroups), Some(12_500));
    }

    #[test]
    fn a_worker_is_due_after_three_samples_in_a_row() {
        let start = Instant::now();
        let every = Duration::from_secs(5);
        let mut watch = MemoryWatch::new(100, every, start);
        assert_eq!(watch.next(), start + every);
        let samples = [101, 101, 100, 101, 0, 101, 101, 101, 500];
        let due: Vec<bool> = samples.iter().map(|&bytes| watch.sample(Some(bytes), start)).collect();
        assert_eq!(due, [false, false, false, false, false, false, false, true, true]);
        let mut watch = MemoryWatch::new(100, every, start);
        let samples = [Some(101), None, Some(102), None, Some(103)];
        let due: Vec<bool> = samples.iter().map(|&bytes| watch.sample(bytes, start)).collect();
        assert_eq!(due, [false, false, false, false, true], "what is not known changes nothing");
        assert_eq!((watch.last(), watch.next()), (Some(103), start + every));
    }
}
