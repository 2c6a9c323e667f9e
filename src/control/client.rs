//! The words on the command line: asks a running server over its control socket, prints the answer, and ends with a code.
//!
//! This side may block: it is a process of its own. It gives up on a server that does not answer. While it waits for a restart or a stop,
//! it asks now and then whether the server still answers at all.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::status::Status;
use super::{find, show};
use crate::config::{self, Ask, Change, ServerPlace, Steering};
use crate::http::body::Chunked;
use crate::http::fields::Fields;
use crate::http::head::{self, HeadLimits};
use crate::http::{Framing, Method};
use crate::proc::Stat;

/// `status` found that nothing runs.
pub const NOTHING_RUNS: u8 = 3;
/// The request was wrong (EX_USAGE of sysexits(3)).
pub const WRONG_USAGE: u8 = 64;
/// The server cannot be reached (EX_UNAVAILABLE).
pub const UNREACHABLE: u8 = 69;
/// What came back makes no sense (EX_SOFTWARE).
pub const NONSENSE: u8 = 70;
/// The configuration file is wrong, and nothing has changed (EX_CONFIG).
pub const WRONG_CONFIGURATION: u8 = 78;
/// What was waited for has failed and nothing has changed (EX_TEMPFAIL).
pub const ABORTED: u8 = 75;

/// How long the server may take for an answer that it need not wait for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);
/// How long a process may take to vanish after it has closed its control socket: it writes its last log lines.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an answer, at most.
const MOST_ANSWER: u64 = 64 * 1024 * 1024;

/// Why there is no answer: one line and an exit code.
#[derive(Debug)]
pub struct Trouble {
    /// What is wrong.
    pub line: String,
    /// What the process ends with.
    pub code: u8,
    /// No server is there at all.
    pub absent: bool,
    /// It is there, and says nothing.
    pub silent: bool,
}

impl Trouble {
    /// Trouble with a server that is, or may be, there.
    pub fn new(code: u8, line: impl Into<String>) -> Trouble {
        Trouble { line: line.into(), code, absent: false, silent: false }
    }
}

/// Does what was asked for; the exit code. Answers go to stdout, everything else to stderr.
pub fn run(steering: &Steering) -> u8 {
    match speak(steering, &mut io::stdout().lock()) {
        Ok(()) => 0,
        Err(trouble) => {
            let code = match &steering.ask {
                Ask::Status { .. } if trouble.absent => NOTHING_RUNS,
                _ => trouble.code,
            };
            // There is no other place to say it.
            let _ = writeln!(io::stderr(), "production_server: {}", trouble.line);
            code
        }
    }
}

fn speak(steering: &Steering, out: &mut dyn Write) -> Result<(), Trouble> {
    let mut conversation = Conversation::new(find::connect(&steering.server)?);
    conversation.place = Some(steering.server.clone());
    match &steering.ask {
        Ask::Status { json } => {
            let body = conversation.ask("GET", "/status", None)?;
            let text = match serde_json::from_slice::<Status>(&body) {
                Ok(status) if !json => show::status(&status),
                _ => String::from_utf8_lossy(&body).into_owned(),
            };
            print(out, &text)
        }
        Ask::Events { json } => conversation.events(*json, out),
        Ask::Stop { now } => stop(&mut conversation, *now, EXIT_PATIENCE, out),
        ask => {
            let (path, body) = request(ask);
            conversation.waits = matches!(
                ask,
                Ask::Restart { wait: true, .. } | Ask::Reload { wait: true, .. } | Ask::Upgrade { wait: true, .. }
            );
            let answer = conversation.ask("POST", path, Some(body))?;
            print(out, &message(&answer))
        }
    }
}

/// The path and the body that say a word.
fn request(ask: &Ask) -> (&'static str, Value) {
    let (path, app, members) = match ask {
        Ask::Restart { app, wait } => ("/restart", app, json!({ "wait": wait })),
        Ask::Scale { app, change: Change::To(workers) } => ("/scale", app, json!({ "workers": workers })),
        Ask::Scale { app, change: Change::By(change) } => ("/scale", app, json!({ "change": change })),
        Ask::Signal { app, worker, signal } => {
            let mut members = json!({ "signal": config::signal_name(*signal) });
            if let Some(worker) = worker {
                members["worker"] = (*worker).into();
            }
            ("/signal", app, members)
        }
        Ask::Reload { app, wait } => ("/reload", app, json!({ "wait": wait })),
        Ask::Pause { app, max } => ("/pause", app, json!({ "max": config::show_duration(*max) })),
        Ask::Resume { app } => ("/resume", app, json!({})),
        Ask::Upgrade { program, wait } => ("/upgrade", &None, json!({ "program": program, "wait": wait })),
        Ask::Drain => ("/drain", &None, json!({})),
        Ask::Stop { now } => ("/stop", &None, json!({ "now": now })),
        Ask::Status { .. } => ("/status", &None, json!({})),
        Ask::Events { .. } => ("/events", &None, json!({})),
    };
    let mut members = match members {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    if let Some(app) = app {
        members.insert("app".to_owned(), app.as_str().into());
    }
    (path, Value::Object(members))
}

/// Asks the server to stop, and comes back when its process is gone, or is still there so long after its control socket.
fn stop(conversation: &mut Conversation, now: bool, patience: Duration, out: &mut dyn Write) -> Result<(), Trouble> {
    let status = conversation.ask("GET", "/status", None)?;
    let process = serde_json::from_slice::<Status>(&status).map(|status| status.server.pid).unwrap_or(0);
    let (path, body) = request(&Ask::Stop { now });
    let answer = conversation.ask("POST", path, Some(body))?;
    print(out, &message(&answer))?;
    conversation.wait_for_end();
    let deadline = Instant::now() + patience;
    while Stat::of(process).is_some_and(|stat| !stat.is_over()) {
        if Instant::now() >= deadline {
            let line = format!("the server stops, but its process {process} has not ended within {patience:?}");
            return Err(Trouble::new(ABORTED, line));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// What the answer says to people.
fn message(answer: &[u8]) -> String {
    let message =
        serde_json::from_slice::<Value>(answer).ok().and_then(|value| Some(value["message"].as_str()?.to_owned()));
    format!("{}\n", show::lines(&message.unwrap_or_else(|| "ok".to_owned())))
}

fn print(out: &mut dyn Write, text: &str) -> Result<(), Trouble> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // A reader that has gone (`status | head`) is no error.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Trouble::new(NONSENSE, format!("cannot print the answer: {error}")))
        }
        _ => Ok(()),
    }
}

/// A connection to a server's control socket.
struct Conversation {
    stream: UnixStream,
    /// Received and not used.
    input: Vec<u8>,
    fields: Fields,
    /// How long the server may be silent.
    patience: Duration,
    /// Where it is.
    place: Option<ServerPlace>,
    /// What it is asked for takes its time: it may be silent for longer, as long as it still answers others.
    waits: bool,
}

impl Conversation {
    fn new(stream: UnixStream) -> Conversation {
        let fields = Fields::new(HeadLimits::default().fields);
        Conversation { stream, input: Vec::new(), fields, patience: ANSWER_PATIENCE, place: None, waits: false }
    }

    /// Asks, and returns the body of a 200.
    fn ask(&mut self, method: &str, path: &str, body: Option<Value>) -> Result<Vec<u8>, Trouble> {
        let head = self.begin(method, path, body)?;
        let body = match head.framing {
            Framing::Length(length) if length <= MOST_ANSWER => {
                while (self.input.len() as u64) < length {
                    self.receive()?;
                }
                let rest = self.input.split_off(length as usize);
                std::mem::replace(&mut self.input, rest)
            }
            Framing::None => Vec::new(),
            _ => return Err(nonsense("an answer without a length")),
        };
        if head.status == 200 { Ok(body) } else { Err(refusal(head.status, &body)) }
    }

    /// Sends a request and reads the head of its answer.
    fn begin(&mut self, method: &str, path: &str, body: Option<Value>) -> Result<head::Response, Trouble> {
        self.stream.set_read_timeout(Some(self.patience)).map_err(|error| lost(&error))?;
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        if method == "POST" {
            request.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
        }
        request.push_str("\r\n");
        request.push_str(&body);
        self.stream.write_all(request.as_bytes()).map_err(|error| lost(&error))?;
        let asked = if method == "POST" { Method::Post } else { Method::Get };
        loop {
            let head = head::response(&self.input, asked, false, &HeadLimits::default(), &mut self.fields);
            match head.map_err(|refusal| nonsense(&refusal.to_string()))? {
                Some(head) => {
                    self.input.drain(..head.len);
                    if head.status >= 200 {
                        return Ok(head);
                    }
                }
                None => self.receive()?,
            }
        }
    }

    fn receive(&mut self) -> Result<(), Trouble> {
        let mut buffer = [0; 16 * 1024];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(Trouble::new(UNREACHABLE, "the server has ended without an answer")),
                Ok(count) => {
                    self.input.extend_from_slice(&buffer[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if self.waits && is_silence(&error) && self.answers_others() => {}
                Err(error) => return Err(lost(&error)),
            }
        }
    }

    /// Whether the server answers on a connection of its own. One that is not there has ended, which is heard here, or another is just taking
    /// its place.
    fn answers_others(&self) -> bool {
        let Some(place) = &self.place else { return false };
        match find::connect(place) {
            Ok(stream) => {
                let mut other = Conversation { patience: self.patience, ..Conversation::new(stream) };
                !other.ask("GET", "/status", None).is_err_and(|trouble| trouble.silent)
            }
            Err(trouble) => !trouble.silent,
        }
    }

    /// Prints events until the server ends or nobody reads them.
    fn events(&mut self, json: bool, out: &mut dyn Write) -> Result<(), Trouble> {
        let head = self.begin("GET", "/events", None)?;
        if head.status != 200 {
            let body = match head.framing {
                Framing::Length(length) => {
                    while (self.input.len() as u64) < length.min(MOST_ANSWER) {
                        self.receive()?;
                    }
                    std::mem::take(&mut self.input)
                }
                _ => Vec::new(),
            };
            return Err(refusal(head.status, &body));
        }
        self.stream.set_read_timeout(None).map_err(|error| lost(&error))?;
        let mut chunks = Chunked::new();
        let mut line = Vec::new();
        loop {
            let input = std::mem::take(&mut self.input);
            let mut at = 0;
            while at < input.len() && !chunks.is_done() {
                let progress = chunks.decode(&input[at..]).map_err(|refusal| nonsense(&refusal.to_string()))?;
                line.extend_from_slice(&input[at..][progress.data]);
                at += progress.consumed;
            }
            while let Some(end) = memchr::memchr(b'\n', &line) {
                let rest = line.split_off(end + 1);
                let whole = std::mem::replace(&mut line, rest);
                if !put_event(&whole, json, out)? {
                    return Ok(());
                }
            }
            if chunks.is_done() {
                return Ok(());
            }
            self.receive()?;
        }
    }

    /// Waits until the server closes the connection, or hangs.
    fn wait_for_end(&mut self) {
        self.waits = true;
        // An error is an end, too.
        while self.receive().is_ok() {
            self.input.clear();
        }
    }
}

/// Prints one event; false when nobody reads any more.
fn put_event(line: &[u8], json: bool, out: &mut dyn Write) -> Result<bool, Trouble> {
    let text = match serde_json::from_slice::<Value>(line) {
        _ if line.trim_ascii().is_empty() => return Ok(true),
        Ok(event) if !json => show::event(&event),
        _ => String::from_utf8_lossy(line).into_owned(),
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Trouble::new(NONSENSE, format!("cannot print an event: {error}"))),
    }
}

/// What the server refused, in its own words.
fn refusal(status: u16, body: &[u8]) -> Trouble {
    let said = serde_json::from_slice::<Value>(body).ok().and_then(|value| Some(value["error"].as_str()?.to_owned()));
    let code = match status {
        409 => ABORTED,
        422 => WRONG_CONFIGURATION,
        400..=499 => WRONG_USAGE,
        _ => UNREACHABLE,
    };
    Trouble::new(
        code,
        said.map_or_else(|| format!("the server answers with status {status}"), |said| show::lines(&said)),
    )
}

fn lost(error: &io::Error) -> Trouble {
    if is_silence(error) {
        let line = format!("the server does not answer within {} s", ANSWER_PATIENCE.as_secs());
        return Trouble { silent: true, ..Trouble::new(UNREACHABLE, line) };
    }
    Trouble::new(UNREACHABLE, format!("the connection to the server broke: {error}"))
}

/// Whether nothing came for as long as was waited for it.
pub(super) fn is_silence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn nonsense(what: &str) -> Trouble {
    Trouble::new(NONSENSE, format!("the server's answer makes no sense: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers each request with the next of these bodies, and then ends the connection.
    fn answering(bodies: Vec<String>) -> Conversation {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            for body in bodies {
                let (mut request, mut byte) = (Vec::new(), [0]);
                while !request.ends_with(b"\r\n\r\n") && theirs.read(&mut byte).unwrap() == 1 {
                    request.push(byte[0]);
                }
                write!(theirs, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
            }
            // What is left of the last request, its body, must be read, or the end would be a reset.
            theirs.shutdown(std::net::Shutdown::Write).ok();
            theirs.read_to_end(&mut Vec::new()).ok();
        });
        Conversation::new(ours)
    }

    /// A restart that is waited for, at a server that answers it when it was asked for its status beside, or never.
    fn restart(answers: bool, patience: Duration) -> Result<Vec<u8>, Trouble> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let stream = UnixStream::connect(&path).unwrap();
        let mut asking = Conversation { patience, waits: true, ..Conversation::new(stream) };
        asking.place = Some(ServerPlace::Socket(path));
        let serving = std::thread::spawn(move || {
            let mut first = listener.accept().unwrap().0;
            let mut beside = listener.accept().unwrap().0;
            if answers {
                write!(beside, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{{}}").unwrap();
                write!(first, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone").unwrap();
            }
            // Until the other side has ended.
            first.read_to_end(&mut Vec::new()).ok();
        });
        let answer = asking.ask("POST", "/restart", Some(json!({ "wait": true })));
        drop(asking);
        serving.join().unwrap();
        answer
    }

    #[test]
    fn a_restart_is_waited_for_as_long_as_the_server_answers_others() {
        assert_eq!(restart(true, Duration::from_millis(500)).unwrap(), b"done");
        let trouble = restart(false, Duration::from_millis(50)).unwrap_err();
        assert_eq!((trouble.code, trouble.silent), (UNREACHABLE, true), "{}", trouble.line);
    }

    #[test]
    fn a_server_that_does_not_end_is_no_success() {
        let stopping = |pid: u32| {
            let mut status = crate::control::status::sample();
            status.server.pid = pid;
            let bodies = vec![status.to_json().to_string(), json!({ "message": "stopping" }).to_string()];
            stop(&mut answering(bodies), false, Duration::ZERO, &mut io::sink())
        };
        let trouble = stopping(std::process::id()).unwrap_err();
        assert_eq!(trouble.code, ABORTED);
        assert!(
            trouble.line.contains(&format!("its process {} has not ended", std::process::id())),
            "{}",
            trouble.line
        );
        assert!(stopping(u32::MAX).is_ok());
    }
}
