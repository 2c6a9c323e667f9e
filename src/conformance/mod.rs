//! `production_server conformance -- COMMAND`: runs a command as one worker through the worker contract (docs/worker.md),
//! without a server, and prints a table of what it saw.
//!
//! - `bench`: the worker's process, started as the supervisor starts it, its output, and the one poll(2) of all waits;
//! - `talk`: requests and answers over its socket, parsed by the server's own parser;
//! - `checks`: the rows before the end, `endings`: the rows about TERM and what is left;
//! - `report`: the table.
//!
//! Rules: one thread; every wait has a deadline and ends at once on Ctrl-C or TERM; a worker that fails a row is replaced,
//! so that one fault does not spoil the rows behind it; when this ends, however it ends, no process and no file is left.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::config::Conformance;

mod bench;
mod checks;
mod endings;
mod report;
mod talk;

use bench::{Bench, Trouble};
use checks::Facts;
use report::{Finding, Report};

/// Exit code: at least one row failed.
const FAILED: u8 = 1;
/// Exit code: wrong usage, a command that is not there included.
const USAGE: u8 = 64;
/// Exit code: ended by Ctrl-C or TERM, as the shell has it for SIGINT.
const INTERRUPTED: u8 = 130;

/// One row of the table.
struct Check {
    name: &'static str,
    run: fn(&mut Bench, &mut Facts) -> Result<Finding, Trouble>,
    /// What to do when the worker breaks off instead of doing its part.
    advice: &'static str,
}

/// Goes through the contract. Exit codes: 0 no row failed, 1 one did, 64 wrong usage, 73 or 77 no place for the socket,
/// 130 interrupted.
pub fn main(wanted: Conformance) -> ExitCode {
    let mut bench = match Bench::new(&wanted, &directory()) {
        Ok(bench) => bench,
        Err((message, code)) => {
            eprintln!("{message}");
            return ExitCode::from(code);
        }
    };
    let mut report = Report::new(std::io::stdout());
    let outcome = run(&mut bench, &wanted, &mut report);
    let last_lines = bench.last_lines();
    // Before the last word, so that whoever waits for it finds nothing left.
    drop(bench);
    match outcome {
        Ok(()) => {
            report.close(&last_lines);
            ExitCode::from(if report.failed() > 0 { FAILED } else { 0 })
        }
        Err(Trouble::Halted) => {
            eprintln!("interrupted: the worker was killed");
            ExitCode::from(INTERRUPTED)
        }
        Err(trouble) => {
            eprintln!("error: {trouble}");
            ExitCode::from(FAILED)
        }
    }
}

/// A place of our own: the name holds our process id, and the run directory's lock does the rest.
fn directory() -> PathBuf {
    std::env::temp_dir().join(format!("production_server-conformance-{}", std::process::id()))
}

/// The rows in their order. An error is the end of the whole run; a worker's faults are rows.
fn run(bench: &mut Bench, wanted: &Conformance, report: &mut Report<impl std::io::Write>) -> Result<(), Trouble> {
    let mut facts = Facts { slow_path: wanted.slow_path.clone(), ..Facts::default() };
    if !checks::begin(bench, report)? {
        return Ok(());
    }
    for check in checks::SERVING.iter().chain(endings::ENDINGS) {
        let finding = match (check.run)(bench, &mut facts) {
            Err(Trouble::Halted) => return Err(Trouble::Halted),
            Err(Trouble::Machine(error)) => return Err(Trouble::Machine(error)),
            Err(trouble) => Finding::fail(bench.explain(&trouble)?, check.advice),
            Ok(finding) => finding,
        };
        let failed = finding.is_failure();
        report.row(check.name, &finding);
        if failed {
            bench.end()?;
        }
    }
    Ok(())
}
