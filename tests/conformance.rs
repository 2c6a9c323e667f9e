//! `production_server conformance` as a program: workers that keep the contract, workers that break it in one way each, and
//! what is left when it ends. The workers are `support/faulty_worker.py`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::support::{python, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_production_server");
const FAULTY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/faulty_worker.py");

/// A run in a temporary directory of its own, whose path is in the command line of all its workers.
struct Run {
    folder: tempfile::TempDir,
}

impl Run {
    fn new() -> Run {
        Run { folder: tempfile::tempdir().unwrap() }
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("conformance").args(flags).env("TMPDIR", self.folder.path()).env_remove("PORT");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn faulty(&self, fault: &str, flags: &[&str]) -> Command {
        let mut command = self.command(flags);
        command.args(["--", python(), FAULTY, fault]).arg(self.folder.path());
        command
    }

    /// No process that was started in this run is there, and no file.
    fn assert_nothing_is_left(&self) {
        until("all processes of the run are gone", || with_word(self.folder.path()).is_empty());
        let files: Vec<_> = std::fs::read_dir(self.folder.path()).unwrap().flatten().collect();
        assert!(files.is_empty(), "{files:?}");
    }
}

/// Processes with this word in their command line. (Zombies have none.)
fn with_word(word: &Path) -> Vec<String> {
    let word = word.to_str().unwrap().as_bytes();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let found = lines.filter(|line| line.windows(word.len()).any(|piece| piece == word));
    found.map(|line| line.escape_ascii().to_string()).collect()
}

/// The rows by result: `(name, what was seen)`.
fn rows(output: &Output, result: &str) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let row = |line: &str| {
        let (name, rest) = line.split_at_checked(20)?;
        let seen = rest.trim_start().strip_prefix(result)?;
        Some((name.trim_end().to_owned(), seen.trim().to_owned()))
    };
    text.lines().filter_map(row).collect()
}

fn names(output: &Output, result: &str) -> Vec<String> {
    rows(output, result).into_iter().map(|(name, _)| name).collect()
}

#[test]
fn the_built_in_worker_passes_everything() {
    let run = Run::new();
    let output = run.command(&["--slow-path", "/sleep?ms=1500"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.ends_with("14 passed, 0 failed, 0 noted, 0 skipped\n"), "{text}");
    run.assert_nothing_is_left();
}

#[test]
fn a_worker_without_a_fault_passes_everything() {
    let run = Run::new();
    let output = run.faulty("none", &["--slow-path", "/slow"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.ends_with("14 passed, 0 failed, 0 noted, 0 skipped\n"), "{text}");
    run.assert_nothing_is_left();
}

#[test]
fn an_answer_that_ends_with_its_connection_is_whole() {
    let run = Run::new();
    let output = run.faulty("refuses until the close", &["--slow-path", "/slow"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("refuses a request without Host (400)") && output.status.success(), "{text}");
    run.assert_nothing_is_left();
}

#[test]
fn the_worker_on_the_page_keeps_to_it() {
    let page = include_str!("../docs/worker.md");
    let (_, rest) = page.split_once("```python\n").unwrap();
    let run = Run::new();
    let code = rest.split_once("```").unwrap().0;
    let output = run.command(&["--", python(), "-c", code]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("13 passed, 0 failed, 0 noted, 1 skipped"), "{text}");
    run.assert_nothing_is_left();
}

#[test]
fn a_worker_may_inherit_its_socket_or_be_given_a_port() {
    // With auto it has both, and this one takes the port.
    for (kind, place, skipped) in
        [("inherit", "the inherited Unix socket /", 1), ("tcp", "127.0.0.1:", 2), ("auto", "127.0.0.1:", 2)]
    {
        let run = Run::new();
        let output = run.faulty("none", &["--slow-path", "/slow", "--socket", kind]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.ends_with(&format!("14 passed, 0 failed, 0 noted, {skipped} skipped\n")), "{text}");
        let ready = &rows(&output, "pass")[1];
        assert!(ready.0 == "ready" && ready.1.contains(place), "{ready:?}");
        run.assert_nothing_is_left();
    }
}

#[test]
fn each_fault_fails_its_row_and_no_other() {
    let faults: [(&str, &[&str], &str); 10] = [
        ("closes without a word", &["keep-alive"], "the connection"),
        ("drops the second", &["two at once"], "the connection"),
        ("body after HEAD", &["HEAD"], "3 bytes of a body"),
        ("leaves the body", &["body of 1 MiB", "body in chunks"], "200, 3 bytes"),
        ("one read", &["request in pieces"], "400"),
        ("dies with its client", &["client leaves"], "exited with code 9"),
        ("ignores TERM", &["TERM while idle", "TERM in flight"], "still there"),
        ("orphan", &["nothing left"], "outlive"),
        ("cuts on TERM", &["TERM in flight"], "ended by signal 15"),
        ("says close", &[], ""),
    ];
    // Two at a time: more would keep each other from answering in time where there are few cores.
    for pair in faults.chunks(2) {
        std::thread::scope(|scope| {
            for (fault, expected, said) in pair {
                scope.spawn(move || {
                    let run = Run::new();
                    let output = run.faulty(fault, &["--slow-path", "/slow"]).output().unwrap();
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    assert_eq!(names(&output, "FAIL"), *expected, "{fault}:\n{text}");
                    assert!(rows(&output, "FAIL").iter().all(|(_, seen)| seen.contains(said)), "{fault}:\n{text}");
                    assert_eq!(output.status.code(), Some(i32::from(!expected.is_empty())), "{fault}");
                    run.assert_nothing_is_left();
                });
            }
        });
    }
}

#[test]
fn what_works_with_a_setting_is_noted() {
    let notes = [
        ("blocks", "idle connection", "--keepalive off"),
        ("says close", "keep-alive", "--keepalive off"),
        ("short time", "keep-alive time", "5 s or more"),
    ];
    for (fault, row, advice) in notes {
        let run = Run::new();
        let output = run.faulty(fault, &[]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!((names(&output, "note"), output.status.code()), (vec![row.to_owned()], Some(0)), "{fault}:\n{text}");
        assert!(text.contains(advice), "{fault}:\n{text}");
        run.assert_nothing_is_left();
    }
}

#[test]
fn a_busy_worker_is_understood() {
    let run = Run::new();
    let output = run.faulty("says busy", &["--slow-path", "/slow"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let passed = rows(&output, "pass");
    let seen = &passed.iter().find(|(name, _)| name == "two at once").unwrap_or_else(|| panic!("{text}")).1;
    assert!(seen.starts_with("503 with Rip-Worker-Busy") && output.status.success(), "{text}");
    run.assert_nothing_is_left();
}

#[test]
fn a_worker_that_does_not_get_ready_says_why_and_where_it_listens_instead() {
    for (fault, seen) in [("exits", "exited with code 1 before it listened"), ("other door", "listen on 127.0.0.1:")] {
        let run = Run::new();
        let output = run.faulty(fault, &["--timeout", "2s"]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!((names(&output, "FAIL"), output.status.code()), (vec!["ready".to_owned()], Some(1)), "{text}");
        assert!(text.contains(seen) && text.contains("$SOCKET_PATH"), "{text}");
        assert_eq!(text.contains("the worker's last lines: no database"), fault == "exits", "{text}");
        run.assert_nothing_is_left();
    }
}

#[test]
fn nonsense_is_named_with_its_rule() {
    let run = Run::new();
    let output = run.faulty("talks nonsense", &[]).output().unwrap();
    let failed = rows(&output, "FAIL");
    assert_eq!(failed[0].0, "answer");
    assert!(failed[0].1.contains("not a valid answer") && failed[0].1.contains("RFC 9112"), "{failed:?}");
    run.assert_nothing_is_left();
}

/// Starts a run against a worker that never answers, and waits until it stands at that.
fn stuck(run: &Run) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child = run.faulty("never answers", &[]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("ready")), "it comes to its second row");
    assert!(!with_word(run.folder.path()).is_empty(), "its worker runs");
    (child, lines)
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    for name in ["-INT", "-TERM"] {
        let run = Run::new();
        let (mut child, mut lines) = stuck(&run);
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(lines.next(), None, "no further row");
        run.assert_nothing_is_left();
    }
}

#[test]
fn a_killed_run_leaves_no_process() {
    let run = Run::new();
    let (mut child, _lines) = stuck(&run);
    signal(&child, "-KILL");
    child.wait().unwrap();
    until("all processes of the run are gone", || with_word(run.folder.path()).is_empty());
}

#[test]
fn wrong_usage_is_one_line_and_starts_nothing() {
    for (arguments, said) in [
        (&["--timeout", "soon"][..], "error: --timeout \"soon\": expected a duration"),
        (&["--socket", "udp"], "error: --socket \"udp\": expected unix, auto, inherit or tcp"),
        (&["--sockt", "tcp"], "did you mean --socket?"),
        (&["--"], "error: no command stands behind --"),
        (&["--", "no-such-command-here"], "not found in PATH"),
    ] {
        let run = Run::new();
        let output = run.command(arguments).output().unwrap();
        let line = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), output.stdout.len(), line.lines().count()), (Some(64), 0, 1), "{line}");
        assert!(line.contains(said), "{line}");
        run.assert_nothing_is_left();
    }
}
