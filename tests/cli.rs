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
