//! The status document and events as people read them: a few lines and a table, as wide as what is in them.
//!
//! Whatever came from a worker is shown without control characters: it must not steer the reader's terminal.

use std::fmt::Write;

use serde_json::Value;

use super::status::{Acme, App, Hub, KeySet, Latency, Limit, Reload, ReloadState, Roll, RollState, Status, Worker};
use crate::metrics::human_bytes;

/// What stands for a value that is not known.
const NONE: &str = "-";

/// The status document.
pub fn status(status: &Status) -> String {
    let mut text = format!(
        "production_server {}  {}  pid {}  up {}  on {}  {}, {} {}\n",
        plain(&status.server.version),
        status.server.state.name(),
        status.server.pid,
        span(Some(status.server.uptime_seconds)),
        plain(&status.server.listen.join(", ")),
        plain(&status.server.backend),
        status.server.loops,
        if status.server.loops == 1 { "loop" } else { "loops" },
    );
    for one in &status.certificates {
        let (names, expires) = (plain(&one.names.join(", ")), plain(&one.expires));
        let holds = one.outdated.as_deref().map_or_else(|| format!("until {expires}"), plain);
        // Writing to a String cannot fail.
        let _ = writeln!(text, "certificate  {names}  on {}  {holds}  {}", plain(&one.listener), plain(&one.file));
    }
    counted(&mut text, status);
    status.limits.iter().for_each(|one| limit(&mut text, one));
    status.hubs.iter().for_each(|one| hub(&mut text, one));
    status.key_sets.iter().for_each(|one| key_set(&mut text, one));
    if let Some(Reload { state: ReloadState::Failed, at, reason, .. }) = &status.reload {
        let reason = lines(reason.as_deref().unwrap_or(NONE));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "the configuration could not be reloaded at {}, the old one holds: {}",
            plain(at),
            reason.trim_end()
        );
    }
    if let Some(one) = &status.acme {
        acme(&mut text, one);
    }
    for one in &status.apps {
        text.push('\n');
        app(&mut text, one);
    }
    text
}

/// Now, in seconds since 1970.
fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

fn key_set(text: &mut String, set: &KeySet) {
    let age = set.fetched.map_or_else(|| "none yet".to_owned(), |at| span(Some((now() - at).max(0) as f64)));
    let error = set
        .last_error
        .as_ref()
        .map_or_else(String::new, |error| format!("  the last attempt has failed: {}", plain(error)));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "keys     {}  {} of them  age {age}{error}", plain(&set.url), set.keys);
}

fn acme(text: &mut String, acme: &Acme) {
    let now = now();
    let until = |time: i64| span(Some((time - now).max(0) as f64));
    let holds = acme.not_after.map_or_else(|| "none yet".to_owned(), |time| format!("ends in {}", until(time)));
    let (names, decided_by) = (plain(&acme.names.join(", ")), plain(&acme.decided_by));
    // Writing to a String cannot fail.
    let _ = writeln!(text, "certificate  {names}  {holds}  next order in {} ({decided_by})", until(acme.next_attempt));
    if let Some(error) = &acme.last_error {
        let _ = writeln!(text, "certificate  the last attempt has failed: {}", plain(error));
    }
}

fn limit(text: &mut String, limit: &Limit) {
    let counts = [("refused", limit.refused), ("delayed", limit.delayed), ("spared", limit.spared)];
    let mut parts: Vec<String> =
        counts.iter().filter(|(_, count)| *count > 0).map(|(name, count)| format!("{name} {count}")).collect();
    let busiest = limit.busiest.iter().take(3).map(|busy| format!("{} {}", plain(&busy.key), busy.count));
    parts.extend(busiest);
    if !parts.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "limit  {}  {}", plain(&limit.name), parts.join("  "));
    }
}

fn hub(text: &mut String, hub: &Hub) {
    let Hub { name, topics, subscribers, messages, memory_bytes, bus } = hub;
    let (subscribers, messages) = (or_none(*subscribers), or_none(*messages));
    let memory = human_bytes(*memory_bytes as u64);
    let bus = bus.as_ref().map_or_else(String::new, |bus| {
        let mut parts = vec![format!("  bus {} {}", bus.kind, bus.state)];
        parts.extend((!bus.peers.is_empty()).then(|| format!("peers {}", plain(&bus.peers.join(", ")))));
        parts.extend((bus.waiting > 0).then(|| format!("waiting {}", bus.waiting)));
        parts.extend(bus.problem.as_ref().map(|problem| plain(problem).to_string()));
        parts.join("  ")
    });
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "hub  {}  topics {topics}  subscribers {subscribers}  messages {messages}  {memory}{bus}",
        plain(name)
    );
}

/// Counters that say that something was in the way, in the order in which they are shown.
const TROUBLES: &[&str] = &[
    "errors",
    "timeouts",
    "panics",
    "retries",
    "queue_full",
    "queue_timeouts",
    "hold_expired",
    "client_gone",
    "accept_pauses",
    "paused_for_memory",
    "memory_refused",
    "spool_refused",
    "helper_refusals",
    "denied",
    "auth_refused",
    "auth_busy",
    "auth_unanswered",
    "crowded_out",
    "hub_gaps",
    "hub_refused",
    "hub_events_failed",
    "hub_closed_protocol",
    "hub_closed_size",
    "hub_closed_slow",
    "hub_closed_silent",
    "files_cut",
    "compress_busy",
    "proxy_protocol_refused",
    "proxy_protocol_invalid",
    "proxy_protocol_late",
    "tls_unknown_name",
    "tls_nothing_in_common",
    "tls_client_certificate",
    "tls_refused",
    "tls_failed",
    "tls_plain",
    "tls_late",
    "tls_broken",
];

/// What was in the way since the start, as far as anything was.
fn counted(text: &mut String, status: &Status) {
    let counters = TROUBLES.iter().map(|name| (*name, status.counters.get(*name).and_then(Value::as_u64).unwrap_or(0)));
    let all = counters.chain([("log_lines_dropped", status.log_lines_dropped)]).filter(|(_, count)| *count > 0);
    let all: Vec<String> = all.map(|(name, count)| format!("{name} {count}")).collect();
    if !all.is_empty() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "counted  {}", all.join("  "));
    }
}

fn app(text: &mut String, app: &App) {
    let mut parts = vec![plain(&app.name), app.state.name().to_owned(), format!("generation {}", app.generation)];
    parts.push(match app.scaling {
        Some(scaling) => {
            format!("workers {}/{} (scales {}..{})", app.workers_ready, app.workers_wanted, scaling.min, scaling.max)
        }
        None => format!("workers {}/{}", app.workers_ready, app.workers_wanted),
    });
    if app.paused {
        parts.push("requests are held".to_owned());
    }
    let oldest = app.queue.oldest_wait_ms.map(|wait| format!(", oldest {}", milliseconds(Some(wait))));
    parts.push(format!("queue {}/{}{}", app.queue.depth, app.queue.size, oldest.unwrap_or_default()));
    parts.push(match app.requests.per_second {
        Some(rate) => format!("requests {} ({rate:.1}/s)", app.requests.total),
        None => format!("requests {}", app.requests.total),
    });
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "{}", parts.join("  "));
    latency(text, &app.latency_ms);
    if let Some(last) = &app.roll {
        roll(text, last);
    }
    if !app.workers.is_empty() {
        table(text, &app.workers);
    }
}

fn latency(text: &mut String, latency: &Latency) {
    if latency.count == 0 {
        return;
    }
    let over = latency.over_seconds.map_or_else(|| "since the start".to_owned(), |over| format!("last {over:.0} s"));
    let values = [("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99), ("max", latency.max)];
    let values: Vec<String> = values.iter().map(|(name, value)| format!("{name} {}", milliseconds(*value))).collect();
    let _ = writeln!(text, "latency  {}  ({} requests, {over})", values.join("  "), latency.count);
}

fn roll(text: &mut String, roll: &Roll) {
    let progress = format!("{} of {}", roll.replaced, roll.total);
    match roll.state {
        RollState::Done => {}
        RollState::Running => {
            let _ = writeln!(text, "restart  to generation {} under way: {progress} replaced", roll.generation);
        }
        RollState::Aborted => {
            let reason = roll.reason.as_deref().unwrap_or("no reason is known");
            let generation = roll.generation;
            let _ =
                writeln!(text, "restart  to generation {generation} aborted, {progress} replaced: {}", plain(reason));
            for line in &roll.last_stderr {
                let _ = writeln!(text, "  stderr | {}", plain(line));
            }
        }
    }
}

/// A column: its title, whether it is for numbers, and what stands in it.
type Column = (&'static str, bool, fn(&Worker) -> String);

const COLUMNS: &[Column] = &[
    ("WORKER", false, |worker| if worker.joined { plain(&worker.name) } else { worker.id.to_string() }),
    ("PID", true, |worker| or_none(worker.pid)),
    ("GENERATION", true, |worker| worker.generation.to_string()),
    ("STATE", false, |worker| {
        let joined = if worker.joined { " (joined)" } else { "" };
        format!("{}{joined}", worker.state.name())
    }),
    ("UP", true, |worker| span(worker.uptime_seconds)),
    ("RESTARTS", true, |worker| worker.before.restarts.to_string()),
    ("REQUESTS", true, |worker| worker.work.requests.to_string()),
    ("IN FLIGHT", true, |worker| worker.work.in_flight.to_string()),
    ("TUNNELS", true, |worker| worker.work.tunnels.to_string()),
    ("RELOADS", true, |worker| worker.reloads.to_string()),
    ("MEMORY", true, |worker| worker.memory_bytes.map_or_else(|| NONE.to_owned(), human_bytes)),
    ("HEALTH", false, |worker| match &worker.health {
        None => NONE.to_owned(),
        Some(health) if health.healthy && health.reason.is_none() => "ok".to_owned(),
        Some(health) => plain(health.reason.as_deref().unwrap_or("unhealthy")),
    }),
    ("EJECTIONS", true, |worker| worker.ejections.unwrap_or(0).to_string()),
    ("LAST EXIT", false, |worker| plain(worker.before.last_exit.as_deref().unwrap_or(NONE))),
    ("SAYS", false, |worker| plain(worker.status_text.as_deref().unwrap_or(NONE))),
];

/// Columns that are left out when nothing stands in them.
const OPTIONAL: &[&str] = &["TUNNELS", "RELOADS", "HEALTH", "EJECTIONS", "SAYS"];

fn table(text: &mut String, workers: &[Worker]) {
    let mut columns: Vec<(bool, Vec<String>)> = Vec::new();
    for (title, right, cell) in COLUMNS {
        let cells: Vec<String> = workers.iter().map(cell).collect();
        if OPTIONAL.contains(title) && cells.iter().all(|cell| cell == NONE || cell == "0") {
            continue;
        }
        columns.push((*right, std::iter::once((*title).to_owned()).chain(cells).collect()));
    }
    for row in 0..=workers.len() {
        let mut line = String::new();
        for (right, cells) in &columns {
            let width = cells.iter().map(|cell| cell.chars().count()).max().unwrap_or(0);
            let _ = if *right {
                write!(line, "{:>width$}  ", cells[row])
            } else {
                write!(line, "{:<width$}  ", cells[row])
            };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}

/// One event as a line: when, what, in words, and the rest as names and values.
pub fn event(event: &Value) -> String {
    let Some(members) = event.as_object() else { return format!("{}\n", plain(&event.to_string())) };
    let word = |name: &str| members.get(name).and_then(Value::as_str).map_or_else(|| NONE.to_owned(), plain);
    let mut line = format!("{}  {}", word("time"), word("event"));
    if let Some(message) = members.get("message").and_then(Value::as_str) {
        let _ = write!(line, "  {}", plain(message));
    }
    let rest = members.iter().filter(|(name, _)| !matches!(name.as_str(), "time" | "event" | "message"));
    for (name, value) in rest {
        let value = match value {
            Value::Null => continue,
            Value::String(text) if !text.is_empty() && !text.contains([' ', '"', '=']) => plain(text),
            other => plain(&other.to_string()),
        };
        let _ = write!(line, "  {}={value}", plain(name));
    }
    line.push('\n');
    line
}

/// A text of several lines, without other control characters.
pub fn lines(text: &str) -> String {
    text.lines().map(plain).collect::<Vec<_>>().join("\n")
}

/// A text without control characters.
pub fn plain(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

fn or_none<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

fn milliseconds(value: Option<f64>) -> String {
    match value {
        None => NONE.to_owned(),
        Some(value) if value >= 10_000.0 => format!("{:.1} s", value / 1000.0),
        Some(value) if value >= 100.0 => format!("{value:.0} ms"),
        Some(value) => format!("{value:.2} ms"),
    }
}

/// A time in its two largest units, from seconds.
fn span(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds.filter(|seconds| *seconds >= 0.0) else { return NONE.to_owned() };
    let whole = seconds as u64;
    let (days, hours, minutes) = (whole / 86_400, whole / 3600 % 24, whole / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) if whole < 10 => format!("{seconds:.1} s"),
        (0, 0, 0) => format!("{whole} s"),
        (0, 0, _) => format!("{minutes}m {}s", whole % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::status::{Health, WorkerState, sample};
    use serde_json::json;

    #[test]
    fn the_table_is_the_one_that_people_read() {
        let expected = "\
production_server 0.1.0  running  pid 4711  up 3h 2m  on 0.0.0.0:8080  epoll, 2 loops
counted  timeouts 12  retries 1

web  running  generation 3  workers 2/2 (scales 2..8)  queue 3/8192, oldest 12.50 ms  requests 120031 (512.3/s)
latency  p50 1.25 ms  p90 3.00 ms  p99 12.00 ms  max 80.00 ms  (6103 requests, last 12 s)
restart  to generation 4 aborted, 0 of 2 replaced: the replacement of worker 1 exited with code 1 before it was ready
  stderr | Error: Cannot find module 'express'
WORKER        PID  GENERATION  STATE                UP  RESTARTS  REQUESTS  IN FLIGHT    MEMORY  LAST EXIT                SAYS
1            4712           3  running           2m 3s         2     60000          1  25.00 MB  recycle: 10000 requests  -
blue\u{fffd}[31m-7     -           3  running (joined)  2m 3s         2     60000          1         -  -                        warm
";
        assert_eq!(status(&sample()), expected);
    }

    #[test]
    fn health_and_ejections_are_shown_where_there_are_any() {
        let mut document = sample();
        let workers = &mut document.apps[0].workers;
        let reason = Some("GET /up was answered with 500".to_owned());
        workers[0].health = Some(Health { healthy: true, failures: 0, reason: None });
        workers[1].health = Some(Health { healthy: false, failures: 3, reason });
        (workers[1].state, workers[1].ejections) = (WorkerState::Ejected, Some(2));
        let text = status(&document);
        let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("WORKER")).collect();
        assert!(lines[0].contains("  HEALTH ") && lines[0].contains("  EJECTIONS  "), "{text}");
        assert!(lines[1].contains("  ok  "), "{text}");
        assert!(lines[2].contains("ejected") && lines[2].contains("  GET /up was answered with 500  "), "{text}");
    }

    #[test]
    fn a_server_without_workers_has_no_table_and_no_latencies() {
        let mut document = sample();
        document.server.loops = 1;
        document.counters.clear();
        let app = &mut document.apps[0];
        (app.roll, app.scaling, app.workers, app.paused) = (None, None, Vec::new(), true);
        (app.latency_ms, app.requests.per_second, app.queue.oldest_wait_ms) = (Latency::default(), None, None);
        let expected = "\
production_server 0.1.0  running  pid 4711  up 3h 2m  on 0.0.0.0:8080  epoll, 1 loop

web  running  generation 3  workers 2/2  requests are held  queue 3/8192  requests 120031
";
        assert_eq!(status(&document), expected);
    }

    #[test]
    fn events_are_lines() {
        let exit = json!({
            "time": "2026-11-21T03:45:56.123Z", "event": "worker-exit", "message": "worker ended", "app": "web", "worker": 2, "code": null,
            "reason": "crash: signal 11", "text": "a\u{1b}[2Jb",
        });
        let line = event(&exit);
        assert!(line.starts_with("2026-11-21T03:45:56.123Z  worker-exit  worker ended  app=web  "), "{line}");
        for part in ["  worker=2", "  reason=\"crash: signal 11\"", "  text=a\u{fffd}[2Jb"] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains("code") && line.ends_with('\n'));
        assert_eq!(event(&json!([1])), "[1]\n");
    }

    #[test]
    fn times_are_shown_in_two_units() {
        let cases = [(0.25, "0.2 s"), (59.9, "59 s"), (61.0, "1m 1s"), (7260.0, "2h 1m"), (90_000.0, "1d 1h")];
        for (seconds, text) in cases {
            assert_eq!(span(Some(seconds)), text);
        }
        assert_eq!((span(None), milliseconds(None)), (NONE.to_owned(), NONE.to_owned()));
        assert_eq!(milliseconds(Some(123.4)), "123 ms");
        assert_eq!(milliseconds(Some(12_345.0)), "12.3 s");
    }
}
