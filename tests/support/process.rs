//! Processes as /proc shows them, and signals to them.

use std::process::Command;
use std::time::{Duration, Instant};

use super::until;

pub fn send_signal(process: u32, signal: &str) {
    let done = Command::new("kill").args(["-s", signal, &process.to_string()]).status().unwrap();
    assert!(done.success());
}

/// Every one of these must be gone soon.
pub fn assert_gone(processes: &[Process], limit: Duration) {
    let start = Instant::now();
    until("every process is gone", || !processes.iter().any(Process::is_alive));
    assert!(start.elapsed() < limit, "the last process ended after {:?}", start.elapsed());
}

/// A process that a number alone does not tell, for numbers are given again.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub id: u32,
    pub parent: u32,
    /// Its command line, with spaces between the words.
    pub command: String,
    /// Its process group.
    pub group: u32,
    started: u64,
}

impl Process {
    /// All that run now; zombies do not.
    pub fn all() -> Vec<Process> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| Process::of(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// All that descend from that one.
    pub fn below(root: u32) -> Vec<Process> {
        let all = Process::all();
        let mut found = vec![root];
        let mut next = 0;
        while next < found.len() {
            let parent = found[next];
            found.extend(all.iter().filter(|process| process.parent == parent).map(|process| process.id));
            next += 1;
        }
        all.into_iter().filter(|process| found[1..].contains(&process.id)).collect()
    }

    pub fn of(id: u32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        if matches!(fields[0], "Z" | "X") {
            return None;
        }
        let command = std::fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?.replace('\0', " ");
        let number = |index: usize| fields[index].parse().ok();
        Some(Process { id, parent: number(1)?, group: number(2)?, command, started: fields[19].parse().ok()? })
    }

    pub fn is_alive(&self) -> bool {
        Process::of(self.id).is_some_and(|now| now.started == self.started)
    }
}
