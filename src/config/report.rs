//! What is wrong with a configuration file, shown as a compiler would: the lines, carets below them, and what would be right. What variables and
//! files for secrets stand for is not printed.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::file::Text;

/// The most problems of one file that are shown; a file that is something else altogether has thousands.
const MOST_SHOWN: usize = 40;

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Nothing can be started.
    Error,
    /// It is odd.
    Warning,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// How much it matters.
    pub severity: Severity,
    /// What is wrong, in one line.
    pub title: String,
    /// Where, in bytes of the file, and what is said below it; the first is where it is, others belong to it. Empty: it lies
    /// outside of the file.
    pub marks: Vec<(Range<usize>, String)>,
    /// What would help, each one line.
    pub help: Vec<String>,
}

impl Problem {
    /// An error in one place.
    pub fn error(title: impl Into<String>, at: Range<usize>, label: impl Into<String>) -> Problem {
        Problem { severity: Severity::Error, title: title.into(), marks: vec![(at, label.into())], help: Vec::new() }
    }

    /// With one more place that belongs to it.
    pub fn and(mut self, at: Range<usize>, label: impl Into<String>) -> Problem {
        self.marks.push((at, label.into()));
        self
    }

    /// With a line of advice.
    pub fn help(mut self, line: impl Into<String>) -> Problem {
        self.help.push(line.into());
        self
    }

    fn place(&self) -> usize {
        self.marks.first().map_or(usize::MAX, |(range, _)| range.start)
    }
}

/// All problems of a file in the order of its lines, and their number. Ends with a newline unless there are none.
pub fn report(file: &Text, problems: &[Problem]) -> String {
    let mut problems: Vec<&Problem> = problems.iter().collect();
    problems.sort_by_key(|problem| problem.place());
    let mut out = String::new();
    for problem in problems.iter().take(MOST_SHOWN) {
        out.push_str(&one(file, problem));
        out.push_str("\n\n");
    }
    let count = |severity| problems.iter().filter(|problem| problem.severity == severity).count();
    let counted = |number, what| match number {
        0 => None,
        1 => Some(format!("1 {what}")),
        _ => Some(format!("{number} {what}s")),
    };
    let counts = [counted(count(Severity::Error), "error"), counted(count(Severity::Warning), "warning")];
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    if counts.is_empty() {
        return out;
    }
    let more = if problems.len() > MOST_SHOWN { format!(", the first {MOST_SHOWN} are shown") } else { String::new() };
    let place = if file.path.as_os_str().is_empty() { String::new() } else { format!("{}: ", shown_path(file)) };
    out.push_str(&format!("{place}{}{more}\n", counts.join(", ")));
    out
}

/// One problem without an end of line.
fn one(file: &Text, problem: &Problem) -> String {
    let level = match problem.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let shown = |said: &str| shown(&file.as_written(said, &problem.marks));
    let title = level.primary_title(shown(&problem.title));
    let mut group = if problem.marks.is_empty() {
        Group::with_title(title)
    } else {
        let mut snippet = Snippet::source(file.text.as_str()).path(shown_path(file));
        for (index, (range, label)) in problem.marks.iter().enumerate() {
            let kind = if index == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
            let label = (!label.is_empty()).then(|| shown(label));
            snippet = snippet.annotation(kind.span(within(&file.text, range)).label(label));
        }
        title.element(snippet)
    };
    for line in &problem.help {
        group = group.element(Level::HELP.message(shown(line)));
    }
    Renderer::plain().render(&[group])
}

/// A range that begins and ends between letters of the text, and stays on the line where it begins: a table is shown by its
/// first line.
fn within(text: &str, range: &Range<usize>) -> Range<usize> {
    let boundary = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let start = boundary(range.start);
    let line_end = text[start..].find(['\n', '\r']).map_or(text.len(), |length| start + length);
    let end = boundary(range.end).clamp(start, line_end.max(start));
    start..end
}

/// The file's path without anything that a terminal could take for a command.
pub fn shown_path(file: &Text) -> String {
    shown(&file.path.to_string_lossy())
}

/// The same for what is said of the file: it may repeat words of it.
pub fn shown(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

/// Line and column of a byte, both from 1, in letters.
pub fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = &text[..within(text, &(at..at)).start];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}
