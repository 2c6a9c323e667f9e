//! The built binary's answers to its command line. Its library's tests have every line; these show that the process
//! says them in the right place, ends with the right code, and starts nothing.

use std::process::{Command, Output};

/// Runs the binary with nothing in its environment but what is given, in a run directory that it must not touch.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let run_dir = directory.path().join("run");
    let output = Command::new(crate::support::PROGRAM)
        .args(arguments)
        .env_clear()
        .env("RUNTIME_DIRECTORY", &run_dir)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(!run_dir.exists(), "{arguments:?} {variables:?}: something was started");
    output
}

#[test]
fn a_mistake_is_one_line_on_stderr_and_nothing_is_started() {
    let queue = "expected a whole number from 0 to 1000000";
    /// Arguments, environment, exit code, and what stderr says.
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], i32, String);
    let cases: [Case<'_>; 5] = [
        (&["--max-queue=x"], &[], 64, format!("error: --max-queue \"x\": {queue}, as in --max-queue 8192\n")),
        (&["--max-queu=1"], &[], 64, "error: --max-queu is no flag: did you mean --max-queue?\n".to_owned()),
        (
            &["run", "c:x"],
            &[],
            64,
            "error: shorthand \"c:x\": expected a whole number from 1 to 65535, as in c:1\n".to_owned(),
        ),
        (
            &[],
            &[("RIP_MAX_QUEUE", "x")],
            78,
            format!("error: RIP_MAX_QUEUE=\"x\" in the environment: {queue}, as in RIP_MAX_QUEUE=8192\n"),
        ),
        (
            &["--respond=a", "--", "node"],
            &[],
            64,
            "error: --respond and a command exclude each other: expected one of them\n".to_owned(),
        ),
    ];
    for (arguments, variables, code, line) in cases {
        let output = run(arguments, variables);
        assert_eq!(String::from_utf8_lossy(&output.stderr), line, "{arguments:?}");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(code), 0), "{arguments:?}");
    }
}

#[test]
fn a_text_that_cannot_be_written_is_an_error() {
    for arguments in [&["--help"][..], &["--version"], &["man"], &["completions", "bash"], &["config", "schema"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Command::new(crate::support::PROGRAM).args(arguments).env_clear().stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.starts_with("error: cannot write to stdout: ") && said.lines().count() == 1,
            "{arguments:?}: {said}"
        );
        assert_eq!(output.status.code(), Some(71), "{arguments:?}");
        // A reader that has gone is none.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(crate::support::PROGRAM).args(arguments).env_clear().stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{arguments:?}");
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    let version = run(&["--version"], &[]);
    let expected = format!("production_server {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (String::from_utf8_lossy(&version.stdout).as_ref(), version.status.code()),
        (expected.as_str(), Some(0))
    );
    let (short, long) = (run(&["-h"], &[]), run(&["--help"], &[]));
    for help in [&short, &long] {
        assert_eq!((help.status.code(), help.stderr.len()), (Some(0), 0));
        assert!(String::from_utf8_lossy(&help.stdout).contains("Usage: production_server [run] [FLAGS]"));
    }
    assert!(short.stdout.len() < long.stdout.len());
    assert!(String::from_utf8_lossy(&long.stdout).contains("Exit codes:"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_first_configuration_is_written_whether_anybody_reads_what_is_said_of_it_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    for expected in [0, 73] {
        let mut init = Command::new(crate::support::PROGRAM);
        init.arg("init").current_dir(folder.path()).stdout(full()).stderr(full());
        assert_eq!(init.status().unwrap().code(), Some(expected), "0: written; 73: it is there already");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// The flags that a text names, each at most once.
fn flags(text: &str) -> std::collections::BTreeSet<String> {
    let name = |rest: &str| rest.chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '-').collect();
    let starts = text
        .match_indices("--")
        .filter(|(at, _)| !text[..*at].ends_with(|before: char| before != ' ' && before != '`'));
    let names: std::collections::BTreeSet<String> =
        starts.map(|(at, dashes)| name(&text[at + dashes.len()..])).collect();
    names.into_iter().filter(|name| name.len() > 1).collect()
}

#[test]
fn the_readme_has_every_flag_of_the_help_and_no_other() {
    let readme = include_str!("../README.md");
    let (_, section) = readme.split_once("\n## Flags\n").unwrap();
    let rows: Vec<&str> = section.lines().take_while(|line| !line.starts_with("## ")).collect();
    let documented: Vec<String> = rows
        .iter()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.split(" | ").next().unwrap().into())
        .collect();
    let help = String::from_utf8(run(&["--help"], &[]).stdout).unwrap();
    // The line of a flag begins with it; elsewhere flags are only mentioned.
    let lines = help.lines().map(str::trim).filter(|line| line.starts_with('-'));
    let known: Vec<String> = lines.map(|line| line.replace(", --", " --")).collect();
    let mut known = flags(&known.join("\n").replace('\n', " "));
    assert!(known.remove("help") && known.remove("version") && known.len() > 40, "{known:?}");
    assert_eq!(flags(&documented.join(" ")), known);
}
