//! How events and the lines of workers look.

use std::fmt::{Display, Write as _};
use std::time::{SystemTime, UNIX_EPOCH};

use super::framing::{Framing, Heading, Severity};
use super::text;
use super::worker::WorkerName;
use super::{Level, Stream};

/// How events and workers' lines look on one sink.
#[derive(Clone, Copy, Debug, Default)]
pub struct Look {
    pub json: bool,
    pub colour: bool,
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

    fn severity(self) -> Severity {
        match self {
            Level::Info => Severity::Info,
            Level::Warn => Severity::Warning,
            Level::Error => Severity::Error,
        }
    }
}

/// Microseconds since 1970-01-01T00:00:00Z.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// One event, whole.
pub fn event(
    framing: &Framing,
    look: Look,
    level: Level,
    message: &dyn Display,
    fields: &[(&str, &dyn Display)],
) -> Vec<u8> {
    let mut line = Vec::with_capacity(256);
    let now = now();
    let heading = Heading { severity: level.severity(), kind: "event", time_micros: now, worker: None };
    let start = framing.begin(&mut line, &heading);
    if look.json {
        put_json_opening(&mut line, now, level);
        text::put_json(&mut line, show(message).as_bytes());
        line.push(b'"');
        for (name, value) in fields {
            line.extend_from_slice(b",\"");
            text::put_json(&mut line, name.as_bytes());
            line.extend_from_slice(b"\":");
            put_json_value(&mut line, &show(value));
        }
        line.push(b'}');
    } else {
        let (column, colour) = level.column();
        let (dim, colour, reset) = if look.colour { ("\x1b[2m", colour, "\x1b[0m") } else { ("", "", "") };
        // Syslog and the journal say themselves when it was, and how grave.
        if !framing.is_datagrams() {
            line.extend_from_slice(dim.as_bytes());
            put_time(&mut line, now, b' ');
            line.extend_from_slice(format!("{reset} {colour}{column}{reset} ").as_bytes());
        }
        text::put_text(&mut line, &show(message));
        for (name, value) in fields {
            line.extend_from_slice(format!(" {dim}{name}={reset}").as_bytes());
            put_human_value(&mut line, &show(value));
        }
    }
    for (name, value) in fields {
        framing.field(&mut line, "EVENT_", name, |out| text::put_text(out, &show(value)));
    }
    framing.end(&mut line, start);
    line
}

fn show(value: &dyn Display) -> String {
    let mut text = String::new();
    // Writing to a String fails only if a Display implementation says so; what it wrote before is still worth saying.
    let _ = write!(text, "{value}");
    text
}

/// One line of a worker, whole.
pub fn worker_line(framing: &Framing, look: Look, worker: WorkerName<'_>, stream: Stream, line: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(line.len() + worker.label.len() + 160);
    let now = now();
    let severity = if stream == Stream::Stdout { Severity::Info } else { Severity::Warning };
    let start = framing.begin(&mut out, &Heading { severity, kind: "worker", time_micros: now, worker: Some(worker) });
    if look.json {
        put_json_opening(&mut out, now, Level::Info);
        text::put_json(&mut out, line);
        for (name, value) in [("worker", worker.label), ("app", worker.app), ("stream", stream.name())] {
            out.extend_from_slice(format!("\",\"{name}\":\"").as_bytes());
            text::put_json(&mut out, value.as_bytes());
        }
        out.push(b'"');
        for (name, number) in [("worker.id", worker.id), ("pid", worker.pid), ("generation", worker.generation)] {
            out.extend_from_slice(format!(",\"{name}\":{number}").as_bytes());
        }
        out.push(b'}');
    } else {
        put_label(&mut out, worker, look.colour);
        if framing.is_datagrams() {
            text::put_text(&mut out, &String::from_utf8_lossy(line));
        } else {
            // A line feed inside would make a line that seems to be ours.
            out.extend(line.iter().map(|&byte| if byte == b'\n' || byte == b'\r' { b' ' } else { byte }));
        }
    }
    framing.field(&mut out, "WORKER_", "stream", |out| out.extend_from_slice(stream.name().as_bytes()));
    framing.end(&mut out, start);
    out
}

/// `{"time":"…","level":"…","message":"`
fn put_json_opening(out: &mut Vec<u8>, now: u64, level: Level) {
    out.extend_from_slice(b"{\"time\":\"");
    put_time(out, now, b'T');
    out.extend_from_slice(b"\",\"level\":\"");
    out.extend_from_slice(level.name().as_bytes());
    out.extend_from_slice(b"\",\"message\":\"");
}

/// `2026-11-21T03:45:56.123Z`
pub fn put_time(out: &mut Vec<u8>, micros: u64, separator: u8) {
    text::put_date_time(out, micros / 1_000_000, separator);
    out.push(b'.');
    text::put_padded(out, (micros / 1000 % 1000) as u32, 3);
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

/// `[web.G1.2 4711] `: app, generation, number and process, each worker in a colour of its own on a terminal.
fn put_label(out: &mut Vec<u8>, worker: WorkerName<'_>, colour: bool) {
    const COLOURS: [&str; 6] = ["\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[31m"];
    let (start, end) = if colour {
        let sum: usize = worker.label.bytes().map(usize::from).sum();
        (COLOURS[sum % COLOURS.len()], "\x1b[0m")
    } else {
        ("", "")
    };
    out.extend_from_slice(format!("{start}[{}", worker.label).as_bytes());
    if worker.pid != 0 {
        out.extend_from_slice(format!(" {}", worker.pid).as_bytes());
    }
    out.extend_from_slice(format!("]{end} ").as_bytes());
}
