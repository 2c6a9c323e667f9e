//! One connection to the control socket: bytes in, requests out, answers in, bytes out. Never blocks.
//!
//! A connection reads a request, is answered, and reads the next. While an answer has not left, nothing more is read, so that
//! nobody can pile work or memory up. The deadlines are those of a machine that speaks to itself: five seconds without progress
//! are a peer that is stuck.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::requests::WORKER_PATH;
use super::{Answer, Command};
use crate::http::body::Chunked;
use crate::http::fields::Fields;
use crate::http::head::{self, HeadLimits, HeadSearch};
use crate::http::{Framing, Method, Version, date, reply};

/// Bytes of a request's body, at most: 413 beyond it.
pub const MOST_BODY: usize = 64 * 1024;
/// How long a request may take to arrive, an answer to make progress, and a kept connection to say something.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How long the rest of a refused request is read and thrown away, so that its sender comes to read the refusal.
pub const LINGER: Duration = Duration::from_secs(2);
/// Bytes that wait for one reader of events, at most. What comes then is dropped and counted.
pub const STREAM_BUFFER: usize = 256 * 1024;
/// Bytes read at once, and thrown away at most in a turn while lingering.
const READ: usize = 16 * 1024;
/// Received bytes that are kept while an answer is waited for.
const MOST_AHEAD: usize = 16 * 1024;
/// A buffer that grew beyond this is given back.
const MOST_KEPT: usize = 64 * 1024;

/// A whole request.
#[derive(Debug, Default)]
pub struct Request {
    /// The method as it came.
    pub method: Vec<u8>,
    /// The path without the query.
    pub path: Vec<u8>,
    /// Whether a query follows.
    pub query: bool,
    /// The body.
    pub body: Vec<u8>,
}

/// A request whose body is on its way.
struct Incoming {
    request: Request,
    framing: BodyFraming,
}

enum BodyFraming {
    Length(usize),
    Chunked(Chunked),
}

/// How the request that is being answered wants its answer.
#[derive(Clone, Copy, Debug, Default)]
struct Form {
    keep_alive: bool,
    http10: bool,
    head_only: bool,
    worker: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between two requests, in one, or sending an answer.
    Open,
    /// Its answer comes with this ticket.
    Waiting(u64),
    /// It gets events; so many were dropped and not told.
    Streaming {
        dropped: u64,
    },
    /// It closes when its answer has left.
    Ending,
    /// The answer has left; what still comes is thrown away.
    Lingering,
    Closed,
}

/// See the module.
pub struct Connection {
    stream: UnixStream,
    state: State,
    input: Vec<u8>,
    search: HeadSearch,
    incoming: Option<Incoming>,
    form: Form,
    /// A byte of a request has come.
    begun: bool,
    /// There is input that was not looked at yet.
    unread: bool,
    /// The peer sends no more.
    ended: bool,
    /// Kept until the server ends.
    held: bool,
    served: u32,
    output: Vec<u8>,
    written: usize,
    /// When it last made progress.
    since: Instant,
}

impl Connection {
    /// A connection that was just accepted, and does not block.
    pub fn new(stream: UnixStream, now: Instant) -> Connection {
        Connection {
            stream,
            state: State::Open,
            input: Vec::new(),
            search: HeadSearch::new(),
            incoming: None,
            form: Form::default(),
            begun: false,
            unread: false,
            ended: false,
            held: false,
            served: 0,
            output: Vec::new(),
            written: 0,
            since: now,
        }
    }

    /// Whether nothing more happens on it.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether it waits for that ticket's answer; `None`: for any.
    pub fn waits(&self, ticket: Option<u64>) -> bool {
        matches!(self.state, State::Waiting(own) if ticket.is_none_or(|ticket| ticket == own))
    }

    /// Whether it gets events.
    pub fn is_stream(&self) -> bool {
        matches!(self.state, State::Streaming { .. })
    }

    /// Since when it is open with nothing to do, after at least one request: such a one makes room for others.
    pub fn idle_since(&self) -> Option<Instant> {
        let idle = self.state == State::Open && self.served > 0 && !self.begun && self.is_flushed() && !self.held;
        idle.then_some(self.since)
    }

    /// Since when a request is waited for that is not whole: from its first byte on, or since it was accepted, if not a byte has ever come.
    pub fn unwhole_since(&self) -> Option<Instant> {
        let waits = self.begun || self.served == 0;
        (self.state == State::Open && waits && !self.unread && self.is_flushed() && !self.held).then_some(self.since)
    }

    /// Closes without a word.
    pub fn close(&mut self) {
        self.state = State::Closed;
    }

    /// What poll(2) is to wait for; `None`: nothing, and a descriptor with nothing to wait for would still report a hang-up, for
    /// ever.
    pub fn poll_entry(&self) -> Option<libc::pollfd> {
        let reads = !self.ended
            && match self.state {
                State::Open => self.is_flushed(),
                State::Waiting(_) => self.input.len() < MOST_AHEAD,
                State::Streaming { .. } | State::Lingering => true,
                State::Ending | State::Closed => false,
            };
        let writes = !self.is_flushed();
        let events = if reads { libc::POLLIN } else { 0 } | if writes { libc::POLLOUT } else { 0 };
        (events != 0).then(|| libc::pollfd { fd: self.stream.as_raw_fd(), events, revents: 0 })
    }

    /// Whether it can go on at once, without anything from outside.
    pub fn is_eager(&self) -> bool {
        self.state == State::Open && self.unread && self.is_flushed()
    }

    /// When its patience is over.
    pub fn due(&self) -> Option<Instant> {
        match self.state {
            State::Waiting(_) | State::Streaming { .. } | State::Closed => None,
            State::Open if self.held && self.is_flushed() => None,
            State::Lingering => Some(self.since + LINGER),
            State::Open | State::Ending => Some(self.since + PATIENCE),
        }
    }

    /// Ends what has made no progress for too long.
    pub fn expire(&mut self, now: Instant) {
        if self.due().is_none_or(|due| due > now) {
            return;
        }
        if self.state == State::Open && self.begun && self.is_flushed() {
            let seconds = PATIENCE.as_secs();
            return self.refuse(408, &format!("the request was not whole within {seconds} s"), now);
        }
        self.state = State::Closed;
    }

    /// Sends what waits, reads what came, and returns a request when one is whole and the one before it is answered.
    pub fn next_request(&mut self, fields: &mut Fields, now: Instant) -> Option<Request> {
        self.flush(now);
        if self.state == State::Lingering {
            self.discard();
            return None;
        }
        if self.state == State::Closed || (self.state == State::Open && !self.is_flushed()) {
            return None;
        }
        self.receive(now);
        if self.state != State::Open {
            return None;
        }
        match self.take_request(fields) {
            Ok(Some(request)) => {
                self.served = self.served.saturating_add(1);
                self.unread = !self.input.is_empty();
                self.begun = self.unread;
                self.since = now;
                Some(request)
            }
            Ok(None) => {
                self.unread = false;
                if self.ended && self.begun {
                    self.refuse(400, "the request ended before it was whole", now);
                } else if self.ended {
                    self.state = State::Closed;
                }
                None
            }
            Err((status, message)) => {
                self.refuse(status, &message, now);
                None
            }
        }
    }

    /// Answers the last request.
    pub fn answer(&mut self, answer: &Answer, now: Instant) {
        self.since = now;
        match answer {
            Answer::Done(value) => self.put_answer(200, None, self.document(value)),
            Answer::Refused { status, message } => self.put_refusal(*status, None, message),
            Answer::Wait(ticket) => self.state = State::Waiting(*ticket),
            Answer::Stream => self.begin_stream(),
        }
    }

    /// Refuses the last request, which used the wrong method where `allow` is there.
    pub fn refuse_whole(&mut self, status: u16, allow: Option<&str>, message: &str, now: Instant) {
        self.since = now;
        self.put_refusal(status, allow, message);
    }

    /// The connection stays open until the server ends: who asked for the end can see it.
    pub fn hold(&mut self) {
        self.held = true;
    }

    /// Gives a line with its end to a reader of events, or counts it as dropped.
    pub fn publish(&mut self, line: &[u8]) {
        let State::Streaming { dropped } = &mut self.state else { return };
        let pending = self.output.len() - self.written;
        // Once something was dropped, it is told before anything else follows; see `tell_dropped`.
        if *dropped > 0 || pending + line.len() + 16 > STREAM_BUFFER {
            *dropped += 1;
            return;
        }
        self.put_line(line);
    }

    /// The server ends: what waits is told so, and what can be sent without waiting is sent.
    pub fn end(&mut self, now: Instant) {
        match self.state {
            State::Waiting(_) => {
                self.form.keep_alive = false;
                self.put_refusal(503, None, "the server has ended");
            }
            State::Streaming { .. } if !self.form.http10 => self.output.extend_from_slice(b"0\r\n\r\n"),
            _ => {}
        }
        self.flush(now);
        self.state = State::Closed;
    }

    /// Writes what the kernel takes.
    pub fn flush(&mut self, now: Instant) {
        while self.written < self.output.len() {
            match self.stream.write(&self.output[self.written..]) {
                Ok(0) => return self.state = State::Closed,
                Ok(count) => {
                    self.written += count;
                    self.since = now;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return self.state = State::Closed,
            }
        }
        if self.written == self.output.len() {
            self.output.clear();
            self.output.shrink_to(MOST_KEPT);
            self.written = 0;
            if self.state == State::Ending {
                self.begin_linger(now);
            }
        } else if self.written > MOST_KEPT {
            self.output.drain(..self.written);
            self.written = 0;
        }
        self.tell_dropped();
    }

    fn is_flushed(&self) -> bool {
        self.written == self.output.len()
    }

    /// The answer has left. Bytes that nobody has read would reset the connection before the peer reads its answer.
    fn begin_linger(&mut self, now: Instant) {
        // A peer that is gone already is as good as one that was told.
        self.stream.shutdown(Shutdown::Write).ok();
        self.since = now;
        let sending = self.begun || !self.input.is_empty();
        self.state = if sending && !self.ended { State::Lingering } else { State::Closed };
    }

    fn discard(&mut self) {
        let mut buffer = [0; READ];
        for _ in 0..4 {
            match self.stream.read(&mut buffer) {
                Ok(0) => return self.state = State::Closed,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return self.state = State::Closed,
            }
        }
    }

    fn receive(&mut self, now: Instant) {
        if self.ended || self.state == State::Ending {
            return;
        }
        let full = match self.state {
            State::Waiting(_) => self.input.len() >= MOST_AHEAD,
            // The rest of what came earlier is looked at first.
            _ => self.unread,
        };
        if full {
            return;
        }
        let mut buffer = [0; READ];
        match self.stream.read(&mut buffer) {
            Ok(0) => {
                self.ended = true;
                if self.is_stream() {
                    // A peer that only finished sending sees an empty line; one that is gone shows now, and not at the next event.
                    self.put_line(b"\n");
                    self.flush(now);
                }
            }
            Ok(_) if self.is_stream() => {}
            Ok(count) => {
                if !self.begun {
                    self.begun = true;
                    self.since = now;
                }
                self.input.extend_from_slice(&buffer[..count]);
                self.unread = true;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => self.state = State::Closed,
        }
    }

    fn take_request(&mut self, fields: &mut Fields) -> Result<Option<Request>, (u16, String)> {
        if self.incoming.is_none() {
            if !self.search.scan(&self.input) {
                return Ok(None);
            }
            self.form = Form::default();
            match head::request(&self.input, &HeadLimits::default(), fields) {
                Ok(Some(head)) => self.take_head(&head)?,
                Ok(None) => return Ok(None),
                Err(refusal) => return Err((refusal.status, refusal.to_string())),
            }
        }
        let Some(incoming) = &mut self.incoming else { return Ok(None) };
        if !take_body(incoming, &mut self.input)? {
            return Ok(None);
        }
        Ok(self.incoming.take().map(|incoming| incoming.request))
    }

    fn take_head(&mut self, head: &head::Request) -> Result<(), (u16, String)> {
        self.search = HeadSearch::new();
        let path = head.target.path_bytes(&self.input).to_vec();
        self.form = Form {
            keep_alive: head.keep_alive,
            http10: head.version == Version::Http10,
            head_only: head.method == Method::Head,
            worker: path == WORKER_PATH.as_bytes(),
        };
        let request = Request {
            method: head.method_span.of(&self.input).to_vec(),
            path,
            query: head.target.whole.of(&self.input).contains(&b'?'),
            body: Vec::new(),
        };
        self.input.drain(..head.len);
        let framing = match head.framing {
            Framing::Length(length) => {
                let length = usize::try_from(length).ok().filter(|length| *length <= MOST_BODY);
                BodyFraming::Length(length.ok_or_else(body_too_large)?)
            }
            Framing::Chunked => BodyFraming::Chunked(Chunked::new()),
            Framing::None | Framing::UntilClose => BodyFraming::Length(0),
        };
        if head.expect_continue && self.input.is_empty() {
            self.output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        }
        self.incoming = Some(Incoming { request, framing });
        Ok(())
    }

    /// Refuses what is not a whole request, and closes: nothing behind it can be trusted to begin a request.
    fn refuse(&mut self, status: u16, message: &str, now: Instant) {
        self.incoming = None;
        self.form.keep_alive = false;
        self.begun = true;
        self.since = now;
        self.put_refusal(status, None, message);
    }

    fn put_refusal(&mut self, status: u16, allow: Option<&str>, message: &str) {
        let worker = self.form.worker;
        // The workers' protocol knows 400 and 404.
        let status = match status {
            404 | 405 | 408 | 413 | 431 => status,
            _ if worker => 400,
            400..=599 => status,
            _ => 500,
        };
        let document = if worker { json!({ "ok": false, "error": message }) } else { json!({ "error": message }) };
        self.put_answer(status, allow, document);
    }

    /// The document of a command that was carried out. The workers' protocol has one answer for all of them.
    fn document(&self, value: &Value) -> Value {
        match value {
            _ if self.form.worker => json!({ "ok": true }),
            Value::Null => json!({}),
            document => document.clone(),
        }
    }

    fn put_answer(&mut self, status: u16, allow: Option<&str>, document: Value) {
        let mut body = document.to_string();
        body.push('\n');
        self.put_head(status, "application/json", Some(body.len()), allow);
        if !self.form.head_only {
            self.output.extend_from_slice(body.as_bytes());
        }
        self.state = if self.form.keep_alive { State::Open } else { State::Ending };
    }

    fn begin_stream(&mut self) {
        self.form.keep_alive = false;
        self.input = Vec::new();
        self.put_head(200, "application/x-ndjson", None, None);
        self.state = State::Streaming { dropped: 0 };
    }

    /// Writes a head; without a length the body is in chunks, or ends with the connection on HTTP/1.0.
    fn put_head(&mut self, status: u16, content_type: &str, length: Option<usize>, allow: Option<&str>) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let reason = if status == 409 { "Conflict" } else { reply::reason(status) };
        let mut head =
            format!("HTTP/1.1 {status} {reason}\r\nContent-Type: {content_type}\r\nCache-Control: no-store\r\n");
        head.push_str(&format!("Date: {}\r\n", date(since.as_secs()).escape_ascii()));
        match length {
            Some(length) => head.push_str(&format!("Content-Length: {length}\r\n")),
            None if self.form.http10 => {}
            None => head.push_str("Transfer-Encoding: chunked\r\n"),
        }
        if let Some(allow) = allow {
            head.push_str(&format!("Allow: {allow}\r\n"));
        }
        match (self.form.keep_alive, self.form.http10) {
            (false, _) => head.push_str("Connection: close\r\n"),
            (true, true) => head.push_str("Connection: keep-alive\r\n"),
            (true, false) => {}
        }
        head.push_str("\r\n");
        self.output.extend_from_slice(head.as_bytes());
    }

    /// Puts a line of events out, as a chunk where the reader understands chunks.
    fn put_line(&mut self, line: &[u8]) {
        if self.form.http10 {
            return self.output.extend_from_slice(line);
        }
        self.output.extend_from_slice(format!("{:x}\r\n", line.len()).as_bytes());
        self.output.extend_from_slice(line);
        self.output.extend_from_slice(b"\r\n");
    }

    /// A reader that has caught up a good deal is told how much it has missed.
    fn tell_dropped(&mut self) {
        let State::Streaming { dropped } = &mut self.state else { return };
        if *dropped == 0 || self.output.len() - self.written > STREAM_BUFFER / 2 {
            return;
        }
        let count = std::mem::take(dropped);
        let line = format!("{}\n", json!({ "event": "dropped", "count": count }));
        self.put_line(line.as_bytes());
    }
}

/// Takes what belongs to the body from the input; whether the body is whole.
fn take_body(incoming: &mut Incoming, input: &mut Vec<u8>) -> Result<bool, (u16, String)> {
    let body = &mut incoming.request.body;
    match &mut incoming.framing {
        BodyFraming::Length(length) => {
            let count = (*length - body.len()).min(input.len());
            body.extend(input.drain(..count));
            Ok(body.len() == *length)
        }
        BodyFraming::Chunked(decoder) => {
            let mut at = 0;
            while at < input.len() && !decoder.is_done() {
                let rest = &input[at..];
                let progress = decoder.decode(rest).map_err(|refusal| (refusal.status, refusal.to_string()))?;
                body.extend_from_slice(&rest[progress.data]);
                at += progress.consumed;
                if body.len() > MOST_BODY {
                    return Err(body_too_large());
                }
            }
            input.drain(..at);
            Ok(decoder.is_done())
        }
    }
}

fn body_too_large() -> (u16, String) {
    (413, format!("the body is too large: expected at most {MOST_BODY} bytes"))
}

/// Whether the answer to a command may be [`Answer::Wait`].
pub fn may_wait(command: &Command) -> bool {
    matches!(command, Command::Restart { wait: true, .. } | Command::Join(_))
}
