//! The log: events and the workers' lines to stderr and stdout, access lines to stdout or a file.
//!
//! Rules:
//! - Nobody who logs ever waits for a reader. Every sink has a bounded backlog and a thread that writes it; what does not
//!   fit is dropped and counted, and said once it flows again.
//! - A flood of one worker's lines, or of access lines, costs lines of that source alone: never the server's events, nor those of
//!   another worker.
//! - What a crowd could cause is said at most once a second ([`Log::seldom`]).
//! - Events and access lines escape what came from the network, so that no request can forge a line.
//! - stdout and stderr that are the same terminal, pipe or file share one sink, so that lines are never torn.

mod access;
mod seldom;
mod sink;
mod text;

use std::fmt::{Display, Write as _};
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use access::{AccessLog, AccessRecord};
use sink::{Output, Sink, Source, Trouble};

use crate::config::{AccessLogFormat, AccessLogSettings, AccessLogTarget, EventFormat};

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Part of a healthy life.
    Info,
    /// Odd; the server goes on.
    Warn,
    /// Something does not work.
    Error,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        }
    }

    /// Five columns for people, and their colour.
    fn column(self) -> (&'static str, &'static str) {
        match self {
            Level::Info => (" INFO", "\x1b[32m"),
            Level::Warn => (" WARN", "\x1b[33m"),
            Level::Error => ("ERROR", "\x1b[31m"),
        }
    }
}

/// Which of a worker's outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Its stdout; the line goes to ours.
    Stdout,
    /// Its stderr; the line goes to ours.
    Stderr,
}

/// How events and workers' lines look on one sink.
#[derive(Clone, Copy, Debug)]
struct Look {
    json: bool,
    colour: bool,
}

/// The handle to the log. Cloning gives another handle; when the last one is gone the writers end.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    stdout: Option<Arc<Sink>>,
    stderr: Option<Arc<Sink>>,
    access: Option<Arc<Sink>>,
    access_format: AccessLogFormat,
    access_colour: bool,
    event_look: Look,
    /// Workers' lines are wrapped in JSON only when JSON was asked for: by default people read them.
    worker_json: bool,
    stdout_colour: bool,
    stderr_colour: bool,
    seldom: seldom::Seldom,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.sinks().for_each(|sink| sink.stop());
    }
}

impl Inner {
    fn sinks(&self) -> impl Iterator<Item = &Arc<Sink>> {
        [&self.stdout, &self.stderr, &self.access].into_iter().flatten()
    }
}

impl Log {
    /// Opens the log of this process: stdout, stderr, and the access log's file if there is one. An error names the file
    /// that cannot be opened.
    pub fn open(access: &AccessLogSettings, events: EventFormat) -> io::Result<Log> {
        let (out, err) = (io::stdout().as_fd().try_clone_to_owned()?, io::stderr().as_fd().try_clone_to_owned()?);
        let (out_terminal, err_terminal) = (out.is_terminal(), err.is_terminal());
        let look = Look { json: events.is_json(err_terminal), colour: err_terminal && colours_wanted() };
        let (out, err) = (File::from(out), File::from(err));
        let same = is_same(&out, &err);
        let stderr = start_sink("stderr", Output::Stream(Box::new(err)), None, look)?;
        let stdout = if same {
            Arc::clone(&stderr)
        } else {
            start_sink("stdout", Output::Stream(Box::new(out)), Some(&stderr), look)?
        };
        let access_sink = match &access.target {
            AccessLogTarget::Off => None,
            AccessLogTarget::Stdout => Some(Arc::clone(&stdout)),
            AccessLogTarget::File(path) => {
                let named = |error| io::Error::other(format!("{}: {error}", path.display()));
                let output = Output::file(path).map_err(named)?;
                Some(start_sink(&path.display().to_string(), output, Some(&stderr), look)?)
            }
        };
        let stdout_colour = out_terminal && colours_wanted();
        Ok(Log(Arc::new(Inner {
            access_colour: stdout_colour && access.target == AccessLogTarget::Stdout,
            stdout: Some(stdout),
            stderr: Some(stderr),
            access: access_sink,
            access_format: access.format,
            event_look: look,
            worker_json: events == EventFormat::Json,
            stdout_colour,
            stderr_colour: look.colour,
            seldom: Default::default(),
        })))
    }

    /// A log that says nothing and has no thread.
    pub fn disabled() -> Log {
        Log(Arc::new(Inner {
            stdout: None,
            stderr: None,
            access: None,
            access_format: AccessLogFormat::Human,
            access_colour: false,
            event_look: Look { json: false, colour: false },
            worker_json: false,
            stdout_colour: false,
            stderr_colour: false,
            seldom: Default::default(),
        }))
    }

    /// A log to writers of the caller's own, without colours: stdout, stderr, and the access log if it is to be kept.
    pub fn to_writers(
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
        access: Option<(Box<dyn Write + Send>, AccessLogFormat)>,
        events: EventFormat,
    ) -> io::Result<Log> {
        let look = Look { json: events == EventFormat::Json, colour: false };
        let stderr = start_sink("stderr", Output::Stream(stderr), None, look)?;
        let stdout = start_sink("stdout", Output::Stream(stdout), Some(&stderr), look)?;
        let (access, access_format) = match access {
            Some((writer, format)) => {
                (Some(start_sink("access log", Output::Stream(writer), Some(&stderr), look)?), format)
            }
            None => (None, AccessLogFormat::Human),
        };
        Ok(Log(Arc::new(Inner {
            stdout: Some(stdout),
            stderr: Some(stderr),
            access,
            access_format,
            access_colour: false,
            event_look: look,
            worker_json: look.json,
            stdout_colour: false,
            stderr_colour: false,
            seldom: Default::default(),
        })))
    }

    /// A log into memory, for tests: events and workers' lines of both streams, as text for people.
    pub fn captured() -> io::Result<(Log, Captured)> {
        let captured = Captured::default();
        let log = Log::to_writers(Box::new(captured.clone()), Box::new(captured.clone()), None, EventFormat::Human)?;
        Ok((log, captured))
    }

    /// Says what happened, with its circumstances. Never blocks.
    pub fn event(&self, level: Level, message: impl Display, fields: &[(&str, &dyn Display)]) {
        if let Some(sink) = &self.0.stderr {
            push_event(sink, self.0.event_look, level, &message, fields);
        }
    }

    /// The same, for what a crowd could cause: at most one line with that message within a second in the whole process. The next
    /// one tells how many were left out since, in the field `left_out`. Never blocks.
    pub fn seldom(&self, level: Level, message: &'static str, fields: &[(&str, &dyn Display)]) {
        if self.0.stderr.is_none() {
            return;
        }
        match self.0.seldom.allow(message, Instant::now()) {
            None => {}
            Some(0) => self.event(level, message, fields),
            Some(left_out) => self.event(level, message, &[fields, &[("left_out", &left_out)]].concat()),
        }
    }

    /// Passes on one line of a worker (without its line end) with its label, as in `[web.1] listening`.
    pub fn worker_line(&self, label: &str, stream: Stream, line: &[u8]) {
        let inner = &self.0;
        let (sink, colour) = match stream {
            Stream::Stdout => (&inner.stdout, inner.stdout_colour),
            Stream::Stderr => (&inner.stderr, inner.stderr_colour),
        };
        let Some(sink) = sink else { return };
        let source = Source::Worker(label);
        if !sink.would_take(source, line.len()) {
            return;
        }
        let mut out = Vec::with_capacity(line.len() + label.len() + 96);
        if inner.worker_json {
            put_json_opening(&mut out, Level::Info);
            text::put_json(&mut out, line);
            out.extend_from_slice(b"\",\"worker\":\"");
            text::put_json(&mut out, label.as_bytes());
            let name = if stream == Stream::Stdout { "stdout" } else { "stderr" };
            out.extend_from_slice(format!("\",\"stream\":\"{name}\"}}\n").as_bytes());
        } else {
            put_label(&mut out, label, colour);
            // A line feed inside would make a line that seems to be ours.
            out.extend(line.iter().map(|&byte| if byte == b'\n' || byte == b'\r' { b' ' } else { byte }));
            out.push(b'\n');
        }
        sink.push(source, &out, 1);
    }

    /// Prints text to stdout as it is: whole lines, with their ends.
    pub fn print(&self, text: String) {
        if let Some(sink) = &self.0.stdout {
            sink.push(Source::Server, text.as_bytes(), memchr::memchr_iter(b'\n', text.as_bytes()).count() as u64);
        }
    }

    /// One loop's access log.
    pub fn access_log(&self) -> AccessLog {
        AccessLog::new(self.0.access.clone(), self.0.access_format, self.0.access_colour)
    }

    /// Opens files anew by their paths, after somebody has moved them away.
    pub fn reopen(&self) {
        self.0.sinks().for_each(|sink| sink.reopen());
    }

    /// Lines dropped since the start, over all sinks.
    pub fn dropped(&self) -> u64 {
        let mut counted: Vec<&Arc<Sink>> = Vec::with_capacity(3);
        for sink in self.0.sinks() {
            if !counted.iter().any(|other| Arc::ptr_eq(sink, other)) {
                counted.push(sink);
            }
        }
        counted.iter().map(|sink| sink.dropped()).sum()
    }

    /// Waits until everything said so far is written, but not beyond `timeout`. Answers whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.0.sinks().all(|sink| sink.flush(deadline))
    }

    /// Writes what is left and ends the writers, but does not wait beyond `timeout` for a reader that does not read.
    /// Answers whether everything is written. What is said later is dropped.
    pub fn flush_and_stop(&self, timeout: Duration) -> bool {
        self.0.sinks().for_each(|sink| sink.stop());
        self.flush(timeout)
    }
}

impl EventFormat {
    fn is_json(self, terminal: bool) -> bool {
        match self {
            EventFormat::Auto => !terminal,
            EventFormat::Human => false,
            EventFormat::Json => true,
        }
    }
}

/// What a log wrote into memory. Cloning gives another handle to the same bytes.
#[derive(Clone, Debug, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// What was written so far; [`Log::flush`] first to see everything.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A sink whose troubles are told on `events`, or on itself if there is none.
fn start_sink(name: &str, output: Output, events: Option<&Arc<Sink>>, look: Look) -> io::Result<Arc<Sink>> {
    let events = events.cloned();
    Sink::start(name, output, move |own, trouble| {
        let to = events.as_deref().unwrap_or(own);
        let sink = ("sink", &own.name() as &dyn Display);
        match trouble {
            Trouble::Dropped(whose, lines) => {
                let mut fields = vec![sink, ("lines", &lines as &dyn Display)];
                fields.extend(whose.as_ref().map(|label| ("worker", label as &dyn Display)));
                push_event(to, look, Level::Warn, &"log lines were dropped", &fields);
            }
            Trouble::Failed(error) => {
                push_event(to, look, Level::Error, &"cannot write the log", &[sink, ("error", &error)]);
            }
            Trouble::Closed => {
                push_event(to, look, Level::Warn, &"the log's reader is gone, its lines are dropped", &[sink]);
            }
            Trouble::NotReopened(error) => {
                let message = "cannot reopen the log, the old file stays in use";
                push_event(to, look, Level::Error, &message, &[sink, ("error", &error)]);
            }
        }
    })
}

fn push_event(sink: &Sink, look: Look, level: Level, message: &dyn Display, fields: &[(&str, &dyn Display)]) {
    let mut line = Vec::with_capacity(256);
    let mut scratch = String::new();
    // Writing to a String fails only if a Display implementation says so; what it wrote before is still worth saying.
    let mut show = |value: &dyn Display| {
        scratch.clear();
        let _ = write!(scratch, "{value}");
        std::mem::take(&mut scratch)
    };
    if look.json {
        put_json_opening(&mut line, level);
        text::put_json(&mut line, show(message).as_bytes());
        line.push(b'"');
        for (name, value) in fields {
            line.extend_from_slice(b",\"");
            text::put_json(&mut line, name.as_bytes());
            line.extend_from_slice(b"\":");
            put_json_value(&mut line, &show(value));
        }
        line.extend_from_slice(b"}\n");
    } else {
        let (column, colour) = level.column();
        let (dim, colour, reset) = if look.colour { ("\x1b[2m", colour, "\x1b[0m") } else { ("", "", "") };
        line.extend_from_slice(dim.as_bytes());
        put_now(&mut line, b' ');
        line.extend_from_slice(format!("{reset} {colour}{column}{reset} ").as_bytes());
        text::put_text(&mut line, &show(message));
        for (name, value) in fields {
            line.extend_from_slice(format!(" {dim}{name}={reset}").as_bytes());
            put_human_value(&mut line, &show(value));
        }
        line.push(b'\n');
    }
    sink.push(Source::Server, &line, 1);
}

/// `{"time":"…","level":"…","message":"`
fn put_json_opening(out: &mut Vec<u8>, level: Level) {
    out.extend_from_slice(b"{\"time\":\"");
    put_now(out, b'T');
    out.extend_from_slice(b"\",\"level\":\"");
    out.extend_from_slice(level.name().as_bytes());
    out.extend_from_slice(b"\",\"message\":\"");
}

/// The time in UTC to the millisecond, as in `2026-11-21T03:45:56.123Z` (RFC 3339).
pub fn timestamp() -> String {
    let mut text = Vec::with_capacity(24);
    put_now(&mut text, b'T');
    text.escape_ascii().to_string()
}

/// The time in UTC to the millisecond, as in `2026-11-21T03:45:56.123Z`.
fn put_now(out: &mut Vec<u8>, separator: u8) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    text::put_date_time(out, now.as_secs(), separator);
    out.push(b'.');
    text::put_padded(out, now.subsec_millis(), 3);
    out.push(b'Z');
}

/// Whole numbers stay numbers, as far as every JSON reader keeps them exactly; the rest is a string.
fn put_json_value(out: &mut Vec<u8>, value: &str) {
    let digits = value.strip_prefix('-').unwrap_or(value);
    let number = (1..=15).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    if number {
        return out.extend_from_slice(value.as_bytes());
    }
    out.push(b'"');
    text::put_json(out, value.as_bytes());
    out.push(b'"');
}

/// Quoted where a reader could not see its end otherwise.
fn put_human_value(out: &mut Vec<u8>, value: &str) {
    if !value.is_empty() && !value.contains([' ', '"', '=', '\n', '\t', '\r']) {
        return text::put_text(out, value);
    }
    out.push(b'"');
    text::put_text(out, &value.replace('\\', "\\\\").replace('"', "\\\""));
    out.push(b'"');
}

/// `[web.1] `, each label in a colour of its own on a terminal.
fn put_label(out: &mut Vec<u8>, label: &str, colour: bool) {
    const COLOURS: [&str; 6] = ["\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[31m"];
    let (start, end) = if colour {
        let sum: usize = label.bytes().map(usize::from).sum();
        (COLOURS[sum % COLOURS.len()], "\x1b[0m")
    } else {
        ("", "")
    };
    out.extend_from_slice(format!("{start}[{label}]{end} ").as_bytes());
}

/// Whether colours are welcome on a terminal: <https://no-color.org>, and terminals that say that they have none.
fn colours_wanted() -> bool {
    let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    !no_colour && std::env::var_os("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Whether two descriptors are the same terminal, pipe or file.
fn is_same(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
