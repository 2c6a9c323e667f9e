//! From a request to a command: paths, methods, members and their ranges.
//!
//! Pure functions over bytes. Each mistake is answered with what is wrong and what would be right.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{Change, Command, Join, Version};
use crate::config::{self, MOST_WORKERS, PAUSE_DEFAULT, PAUSE_RANGE};
use crate::hub;

/// The longest name of an app or a worker, in bytes.
const MOST_NAME: usize = 128;
/// The longest path of a Unix socket, without its NUL (unix(7): 108; macOS and the BSDs: 104).
const MOST_SOCKET: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Where the workers' own protocol is spoken: its answers have a form of their own.
pub const WORKER_PATH: &str = "/worker";

/// A request that is whole.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The method as it came.
    pub method: &'a [u8],
    /// The path without the query.
    pub path: &'a [u8],
    /// Whether a query follows.
    pub query: bool,
    /// The body.
    pub body: &'a [u8],
}

/// Why a request is refused.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// 400, 404 or 405.
    pub status: u16,
    /// What is wrong and what would be right.
    pub message: String,
    /// The method that would be right, when another was used (RFC 9110 §15.5.6).
    pub allow: Option<&'static str>,
}

type Reader = fn(&[u8]) -> Result<Command, String>;

/// Every path, with its method and what reads its body.
const PATHS: &[(&str, &str, Reader)] = &[
    ("/status", "GET", |_| Ok(Command::Status)),
    ("/events", "GET", |_| Ok(Command::Events)),
    ("/restart", "POST", restart),
    ("/scale", "POST", scale),
    ("/signal", "POST", signal),
    ("/reload", "POST", reload),
    ("/upgrade", "POST", upgrade),
    ("/drain", "POST", |body| read::<Nothing>(body).map(|_| Command::Drain)),
    ("/stop", "POST", |body| read::<Stop>(body).map(|stop| Command::Stop { now: stop.now })),
    ("/pause", "POST", pause),
    ("/resume", "POST", |body| Ok(Command::Resume { app: read::<OfApp>(body)?.app()? })),
    ("/notify", "POST", |body| hub::wire::notify(body).map(|_| Command::Notify(body.to_vec()))),
    (WORKER_PATH, "POST", worker),
];

/// Reads a request.
///
/// # Errors
/// When it asks for nothing that there is, or not as it should.
pub fn command(asked: &Asked<'_>) -> Result<Command, Fault> {
    let fault = |status, message| Fault { status, message, allow: None };
    let Some((path, method, reader)) = PATHS.iter().find(|(path, ..)| path.as_bytes() == asked.path) else {
        let known: Vec<&str> = PATHS.iter().map(|(path, ..)| *path).collect();
        let path = shown(asked.path);
        return Err(fault(404, format!("there is no {path}: expected one of {}", known.join(", "))));
    };
    if method.as_bytes() != asked.method {
        let message = format!("{path} is asked with {method}, not with {}", shown(asked.method));
        return Err(Fault { status: 405, message, allow: Some(method) });
    }
    if asked.query {
        return Err(fault(400, format!("{path} takes no query: what is wanted stands in the body as a JSON object")));
    }
    reader(asked.body).map_err(|message| fault(400, message))
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "a JSON object")]
struct Nothing {}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "a JSON object")]
struct OfApp {
    app: Option<String>,
}

impl OfApp {
    fn app(self) -> Result<Option<String>, String> {
        app_name(self.app)
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "a JSON object")]
struct Restart {
    app: Option<String>,
    wait: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "a JSON object")]
struct Scale {
    app: Option<String>,
    workers: Option<Value>,
    change: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "a JSON object")]
struct Signal {
    app: Option<String>,
    worker: Option<Value>,
    signal: Option<Value>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "a JSON object")]
struct Upgrade {
    program: Option<PathBuf>,
    wait: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "a JSON object")]
struct Stop {
    now: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default, expecting = "a JSON object")]
struct Pause {
    app: Option<String>,
    max: Option<String>,
}

/// A worker may tell more of itself than this server asks for.
#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase", expecting = "a JSON object")]
struct Worker {
    app: Option<String>,
    op: Option<String>,
    worker_id: Option<Value>,
    pid: Option<Value>,
    socket: Option<String>,
    version: Option<Value>,
}

/// Reads a body: a JSON object, or nothing for one without members.
fn read<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, String> {
    match body.trim_ascii_start().first() {
        None => Ok(T::default()),
        // Checked here because serde would take an array's elements for the members in their order.
        Some(b'{') => serde_json::from_slice(body).map_err(|error| format!("the body cannot be used: {error}")),
        Some(_) => Err("the body is no JSON object: expected one as in {\"app\":\"web\"}, or none".to_owned()),
    }
}

fn restart(body: &[u8]) -> Result<Command, String> {
    let Restart { app, wait } = read(body)?;
    Ok(Command::Restart { app: app_name(app)?, wait })
}

fn reload(body: &[u8]) -> Result<Command, String> {
    let Restart { app, wait } = read(body)?;
    Ok(Command::Reload { app: app_name(app)?, wait })
}

fn upgrade(body: &[u8]) -> Result<Command, String> {
    let Upgrade { program, wait } = read(body)?;
    match &program {
        Some(program) if !program.is_absolute() => Err("\"program\" is no absolute path".to_owned()),
        _ => Ok(Command::Upgrade { program, wait }),
    }
}

fn scale(body: &[u8]) -> Result<Command, String> {
    let Scale { app, workers, change } = read(body)?;
    let most = i64::from(MOST_WORKERS);
    let change = match (workers, change) {
        (Some(workers), None) => Change::To(whole("workers", &workers, 0, most)? as u32),
        (None, Some(change)) => match whole("change", &change, -most, most)? {
            0 => return Err("\"change\" is 0: expected how many workers more, or below zero how many fewer".to_owned()),
            by => Change::By(by as i32),
        },
        _ => {
            return Err(
                "expected either \"workers\", as in {\"workers\":4}, or \"change\", as in {\"change\":-1}".to_owned()
            );
        }
    };
    Ok(Command::Scale { app: app_name(app)?, change })
}

fn signal(body: &[u8]) -> Result<Command, String> {
    let Signal { app, worker, signal } = read(body)?;
    let example = "as in {\"signal\":\"HUP\"}";
    let text = match &signal {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => return Err(format!("expected \"signal\" with a signal's name or number, {example}")),
    };
    let signal = config::signal(&text).map_err(|expected| format!("\"signal\" is {}: {expected}", quoted(&text)))?;
    let worker = worker.map(|id| whole("worker", &id, 1, i64::from(u32::MAX))).transpose()?;
    Ok(Command::Signal { app: app_name(app)?, worker: worker.map(|id| id as u32), signal })
}

fn pause(body: &[u8]) -> Result<Command, String> {
    let Pause { app, max } = read(body)?;
    let max: Duration = match max {
        None => PAUSE_DEFAULT,
        Some(text) => config::duration(&text, PAUSE_RANGE)
            .map_err(|expected| format!("\"max\" is {}: {expected}, as in \"30s\"", quoted(&text)))?,
    };
    Ok(Command::Pause { app: app_name(app)?, max })
}

pub(super) fn worker(body: &[u8]) -> Result<Command, String> {
    let mut worker: Worker = read(body)?;
    let app = app_name(worker.app.take())?;
    let example = r#"as in {"op":"join","workerId":"7","pid":4711,"socket":"/run/app.7.sock","version":"1.2"}"#;
    let worker_id = match &worker.worker_id {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) if number.is_u64() => number.to_string(),
        _ => return Err(format!("expected \"workerId\" with a string or a whole number, {example}")),
    };
    name("workerId", &worker_id)?;
    match worker.op.as_deref() {
        Some("quit") => Ok(Command::Quit { app, worker_id }),
        Some("join") => {
            let socket =
                worker.socket.ok_or_else(|| format!("expected \"socket\" with the path of a socket, {example}"))?;
            let fits = socket.starts_with('/') && socket.len() <= MOST_SOCKET && !socket.contains('\0');
            if !fits {
                let socket = quoted(&socket);
                return Err(format!(
                    "\"socket\" is {socket}: expected an absolute path of at most {MOST_SOCKET} bytes"
                ));
            }
            let pid = worker.pid.map(|pid| whole("pid", &pid, 1, i64::from(i32::MAX))).transpose()?;
            let version = worker.version.map(|version| {
                read_version(&version)
                    .map_err(|expected| format!("\"version\" is {}: {expected}", cut(&version.to_string())))
            });
            Ok(Command::Join(Join {
                app,
                worker_id,
                pid: pid.map(|pid| pid as u32),
                socket: socket.into(),
                version: version.transpose()?,
            }))
        }
        _ => Err(format!("expected \"op\" with \"join\" or \"quit\", {example}")),
    }
}

/// A version: a string of dotted numbers, or a whole number. `1.10` as a number is refused: it is the same number as `1.1`.
fn read_version(value: &Value) -> Result<Version, &'static str> {
    let version = match value {
        Value::String(text) if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => Version::parse(text),
        Value::Number(number) => number.as_u64().and_then(|number| Version::parse(&number.to_string())),
        _ => None,
    };
    version.ok_or("expected a whole number, or a string of numbers with dots between, as in \"1.10.2\"")
}

/// A whole number within a range.
fn whole(member: &str, value: &Value, from: i64, to: i64) -> Result<i64, String> {
    value.as_i64().filter(|number| (from..=to).contains(number)).ok_or_else(|| {
        format!("\"{member}\" is {}: expected a whole number from {from} to {to}", cut(&value.to_string()))
    })
}

fn app_name(app: Option<String>) -> Result<Option<String>, String> {
    app.map(|app| name("app", &app).map(|()| app)).transpose()
}

fn name(member: &str, text: &str) -> Result<(), String> {
    let fits = !text.is_empty() && text.len() <= MOST_NAME && !text.chars().any(char::is_control);
    if fits {
        return Ok(());
    }
    Err(format!("\"{member}\" is {}: expected 1 to {MOST_NAME} printable characters", quoted(text)))
}

/// A text in quotes, escaped, and not longer than a line bears.
fn quoted(text: &str) -> String {
    cut(&format!("{text:?}"))
}

fn shown(bytes: &[u8]) -> String {
    cut(&bytes.escape_ascii().to_string())
}

fn cut(text: &str) -> String {
    const LONGEST: usize = 80;
    let short: String = text.chars().take(LONGEST).collect();
    if short.len() < text.len() { short + "…" } else { short }
}
