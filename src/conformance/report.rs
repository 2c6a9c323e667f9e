//! The table: one row a check, printed as it is found.

use std::fmt;
use std::io::Write;

/// Wide enough for the names of all checks.
const NAME_WIDTH: usize = 20;
/// Wide enough for the results.
const RESULT_WIDTH: usize = 7;

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As the contract has it.
    Pass,
    /// Neither right nor wrong; said because it explains what the server will see.
    Info,
    /// It works, and something should be set or known.
    Note,
    /// It could not be looked at.
    Skip,
    /// Requests would be lost or answered wrongly.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Verdict::Pass => "pass",
            Verdict::Info => "info",
            Verdict::Note => "note",
            Verdict::Skip => "skip",
            Verdict::Fail => "FAIL",
        })
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    verdict: Verdict,
    seen: String,
    /// What to do about it; empty when there is nothing to do.
    advice: String,
}

impl Finding {
    /// The contract is kept.
    pub fn pass(seen: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Pass, seen: seen.into(), advice: String::new() }
    }

    /// Good to know.
    pub fn info(seen: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Info, seen: seen.into(), advice: String::new() }
    }

    /// It works, with what `advice` says.
    pub fn note(seen: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Note, seen: seen.into(), advice: advice.into() }
    }

    /// Not looked at; `advice` says how it can be.
    pub fn skip(seen: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Skip, seen: seen.into(), advice: advice.into() }
    }

    /// The contract is broken.
    pub fn fail(seen: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Fail, seen: seen.into(), advice: advice.into() }
    }

    /// Whether the contract is broken.
    pub fn is_failure(&self) -> bool {
        self.verdict == Verdict::Fail
    }
}

/// Prints rows and counts them. A reader that has gone is no error: the exit code still says how it went.
pub struct Report<W> {
    out: W,
    counts: [usize; 5],
}

impl<W: Write> Report<W> {
    /// Prints the table's head.
    pub fn new(mut out: W) -> Report<W> {
        let (check, result) = ("check", "result");
        writeln!(out, "{check:NAME_WIDTH$}  {result:RESULT_WIDTH$} what was seen (→ what to do)").ok();
        Report { out, counts: [0; 5] }
    }

    /// Prints a row; what to do stands below what was seen.
    pub fn row(&mut self, name: &str, finding: &Finding) {
        debug_assert!(name.len() <= NAME_WIDTH, "{name} is wider than its column");
        self.counts[finding.verdict as usize] += 1;
        let Finding { verdict, seen, advice } = finding;
        writeln!(self.out, "{name:NAME_WIDTH$}  {verdict:RESULT_WIDTH$} {seen}").ok();
        if !advice.is_empty() {
            writeln!(self.out, "{:1$} → {advice}", "", NAME_WIDTH + RESULT_WIDTH + 2).ok();
        }
        self.out.flush().ok();
    }

    /// Rows that failed.
    pub fn failed(&self) -> usize {
        self.counts[Verdict::Fail as usize]
    }

    /// Prints the sums, and after a failure the worker's last words.
    pub fn close(&mut self, last_lines: &str) {
        let count = |verdict: Verdict| self.counts[verdict as usize];
        let (passed, failed) = (count(Verdict::Pass), count(Verdict::Fail));
        let (notes, skipped) = (count(Verdict::Note), count(Verdict::Skip));
        writeln!(self.out, "{passed} passed, {failed} failed, {notes} noted, {skipped} skipped").ok();
        if failed > 0 && !last_lines.is_empty() {
            writeln!(self.out, "the worker's last lines: {last_lines}").ok();
        }
        self.out.flush().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_stand_in_columns_and_are_counted() {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out);
        report.row("answer", &Finding::pass("200"));
        report.row("keep-alive", &Finding::note("closes", "use --keepalive off"));
        report.row("TERM", &Finding::fail("stays", "handle TERM"));
        assert_eq!(report.failed(), 1);
        report.close("boom");
        let expected = "\
check                 result  what was seen (→ what to do)
answer                pass    200
keep-alive            note    closes
                              → use --keepalive off
TERM                  FAIL    stays
                              → handle TERM
1 passed, 1 failed, 1 noted, 0 skipped
the worker's last lines: boom
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
