//! One HTTP request to a worker that may not be ready, and what its answer means. Non-blocking throughout.
//!
//! Owns one connection for one question. Rules: what comes back is hostile input, so that head, body and time are bounded;
//! an answer within these bounds is read to its end, so that the worker never sees its answer refused; and every way to
//! fail has a sentence that tells the operator what was asked and what came.

use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use socket2::{SockAddr, Socket};

use super::connect;

/// How long connect, request and answer may take together while a worker is not ready.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// The longest head that is understood, interim answers (1xx) included.
const HEAD_LIMIT: usize = 8 * 1024;
/// Bytes of the body that are looked at: more than the longest word that says "not ready".
const WORD_ROOM: usize = 64;
/// Bytes of an answer that are read before it is judged by its beginning.
const ANSWER_LIMIT: usize = 64 * 1024;
/// Fields of an answer's head.
const MOST_FIELDS: usize = 64;
/// Bodies that say "not ready" whatever the status is: Rip's workers answer `ok`, `not-ready` or `draining`.
const REFUSALS: [&[u8]; 2] = [b"not-ready", b"draining"];

/// What is asked, and what counts as a yes.
#[derive(Debug)]
pub struct Check {
    bytes: Vec<u8>,
    /// `GET /ready`, for messages.
    label: String,
    /// Whether any answer will do, even the connection's orderly end.
    any: bool,
    /// The status codes of a yes.
    statuses: RangeInclusive<u16>,
    /// How long connect, request and answer may take together.
    patience: Duration,
}

impl Check {
    /// Whether a GET of `path` is answered with 2xx and no body that says otherwise.
    pub fn get(path: &str) -> Check {
        Check::get_from(path, "localhost")
    }

    /// The same of that host.
    pub fn get_from(path: &str, host: &str) -> Check {
        Check::new("GET", path, host, false)
    }

    /// Whether anybody is there who reads requests at all. `OPTIONS *` (RFC 9110 §9.3.7) is about the server and not about
    /// any resource of the app's: a ping, safe by definition.
    pub fn ping() -> Check {
        Check::new("OPTIONS", "*", "localhost", true)
    }

    fn new(method: &str, target: &str, host: &str, any: bool) -> Check {
        let label = format!("{method} {target}");
        let rest = "User-Agent: production_server\r\nAccept: */*\r\nConnection: close\r\n\r\n";
        let bytes = format!("{label} HTTP/1.1\r\nHost: {host}\r\n{rest}").into_bytes();
        Check { bytes, label, any, statuses: 200..=299, patience: PATIENCE }
    }

    /// The same for other status codes, and within another time.
    pub fn expecting(self, statuses: RangeInclusive<u16>, patience: Duration) -> Check {
        Check { statuses, patience, ..self }
    }
}

/// What has come of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing yet: poll and look again.
    Pending,
    /// It is ready.
    Yes,
    /// It is not, and why.
    No(String),
    /// Nobody could be asked, and why.
    Nobody(String),
}

#[derive(Debug)]
enum Stage {
    Connecting,
    /// So many bytes of the question are sent.
    Sending(usize),
    Reading,
}

/// How the answer's connection stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    /// The other side has ended it, or enough was read.
    Orderly,
    /// It broke, or took too long.
    Broken,
}

/// One question on its way. Dropping it closes the connection.
#[derive(Debug)]
pub struct HttpProbe {
    socket: Socket,
    question: Rc<Check>,
    stage: Stage,
    /// The answer's beginning.
    answer: Vec<u8>,
    /// Its bytes so far, those included that were not kept.
    received: usize,
    deadline: Instant,
}

impl HttpProbe {
    /// Connects. The rest is done by [`HttpProbe::advance`].
    ///
    /// # Errors
    /// With the sentence that says why nobody can be asked.
    pub fn begin(address: &SockAddr, question: &Rc<Check>, now: Instant) -> Result<HttpProbe, String> {
        let socket = connect(address).map_err(|error| refusal(&error))?;
        let answer = Vec::with_capacity(512);
        let (question, deadline) = (Rc::clone(question), now + question.patience);
        Ok(HttpProbe { socket, question, stage: Stage::Connecting, answer, received: 0, deadline })
    }

    /// When the question is given up.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// It has no longer than that.
    pub fn end_by(&mut self, end: Instant) {
        self.deadline = self.deadline.min(end);
    }

    /// Whether the time is over and not a byte has come.
    pub fn is_silent(&self, now: Instant) -> bool {
        self.received == 0 && now >= self.deadline
    }

    /// The descriptor to be polled, and for what.
    pub fn interest(&self) -> (RawFd, i16) {
        let events = if matches!(self.stage, Stage::Reading) { libc::POLLIN } else { libc::POLLOUT };
        (self.socket.as_raw_fd(), events)
    }

    /// Goes as far as it gets without blocking. After anything but [`Outcome::Pending`] it is to be dropped.
    pub fn advance(&mut self, now: Instant) -> Outcome {
        let connecting = matches!(self.stage, Stage::Connecting);
        match self.exchange() {
            Err(error) if connecting && matches!(self.stage, Stage::Connecting) => Outcome::Nobody(refusal(&error)),
            // An answer may have come before the connection broke, as from a server that does not read to the end.
            Err(error) => self.judged(End::Broken).unwrap_or_else(|| self.no(&format!("failed: {error}"))),
            Ok(true) => self.judged(End::Orderly).unwrap_or_else(|| self.no("got no answer, and the connection's end")),
            Ok(false) if now < self.deadline => self.judged(End::NotYet).unwrap_or(Outcome::Pending),
            Ok(false) if matches!(self.stage, Stage::Connecting) => {
                Outcome::Nobody("a connection to it is not answered".to_owned())
            }
            Ok(false) => {
                let late = || self.no(&format!("was not answered within {} s", self.question.patience.as_secs_f32()));
                self.judged(End::Broken).unwrap_or_else(late)
            }
        }
    }

    fn no(&self, what: &str) -> Outcome {
        Outcome::No(format!("{} {what}", self.question.label))
    }

    /// Connects, sends, reads. True: nothing more will come, or is wanted.
    fn exchange(&mut self) -> io::Result<bool> {
        if matches!(self.stage, Stage::Connecting) {
            if let Some(error) = self.socket.take_error()? {
                return Err(error);
            }
            if self.socket.peer_addr().is_err() {
                return Ok(false);
            }
            self.stage = Stage::Sending(0);
        }
        while let Stage::Sending(sent) = self.stage {
            match self.socket.write(&self.question.bytes[sent..]) {
                Ok(count) if sent + count == self.question.bytes.len() => self.stage = Stage::Reading,
                Ok(count) => self.stage = Stage::Sending(sent + count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut buffer = [0; 8 * 1024];
        while self.received < ANSWER_LIMIT {
            match self.socket.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(count) => {
                    self.received += count;
                    let room = (HEAD_LIMIT + WORD_ROOM).saturating_sub(self.answer.len());
                    self.answer.extend_from_slice(&buffer[..count.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// What the answer means; `None` when that cannot be told yet, or, at the end, when nothing came at all.
    fn judged(&self, end: End) -> Option<Outcome> {
        if self.question.any {
            return (self.received > 0 || end == End::Orderly).then_some(Outcome::Yes);
        }
        if self.received == 0 {
            return None;
        }
        Some(match judge(&self.answer, self.received, end != End::NotYet, &self.question.statuses)? {
            Ok(()) => Outcome::Yes,
            Err(what) => self.no(&what),
        })
    }
}

/// Why a connect failed, in words that say what to look for.
pub fn refusal(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "its socket is not there".to_owned(),
        io::ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        io::ErrorKind::ConnectionReset => "its socket was closed".to_owned(),
        io::ErrorKind::WouldBlock => "its queue of connections is full".to_owned(),
        _ => format!("connecting failed: {error}"),
    }
}

/// Whether an answer says "ready", of which `bytes` is the beginning and `received` the length so far. `None`: more of it
/// is needed; never so when it is `over`.
fn judge(mut bytes: &[u8], received: usize, over: bool, statuses: &RangeInclusive<u16>) -> Option<Result<(), String>> {
    let length = bytes.len();
    let (status, size, body) = loop {
        let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        match response.parse(bytes) {
            Err(error) => return Some(Err(format!("was answered with something that is no HTTP/1.1 answer: {error}"))),
            Ok(httparse::Status::Partial) if length >= HEAD_LIMIT => {
                return Some(Err(format!("was answered with a head of more than {} KiB", HEAD_LIMIT / 1024)));
            }
            Ok(httparse::Status::Partial) if over => return Some(Err("was not answered whole".to_owned())),
            Ok(httparse::Status::Partial) => return None,
            Ok(httparse::Status::Complete(head)) => {
                let status = response.code.unwrap_or(0);
                let size = size(status, response.headers);
                bytes = &bytes[head..];
                if !matches!(status, 100 | 102..=199) {
                    break (status, size, bytes);
                }
            }
        }
    };
    let (text, complete) = match size {
        Size::Known(expected) => (&body[..body.len().min(expected)], received - (length - body.len()) >= expected),
        Size::Chunked => first_chunk(body),
        Size::UntilClose => (body, false),
    };
    if !complete && !over {
        return None;
    }
    let text = text.trim_ascii();
    Some(match REFUSALS.iter().find(|word| text == **word) {
        Some(word) => Err(format!("was answered with {status} and `{}`", String::from_utf8_lossy(word))),
        None if statuses.contains(&status) => Ok(()),
        None => Err(format!("was answered with {status}")),
    })
}

/// How an answer's end is told (RFC 9112 §6.3).
enum Size {
    Known(usize),
    Chunked,
    UntilClose,
}

fn size(status: u16, fields: &[httparse::Header<'_>]) -> Size {
    let field = |name: &str| fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value);
    if matches!(status, 204 | 304) {
        return Size::Known(0);
    }
    if field("transfer-encoding").is_some_and(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"chunked")) {
        return Size::Chunked;
    }
    let length = field("content-length").and_then(|value| std::str::from_utf8(value).ok()?.trim().parse().ok());
    length.map_or(Size::UntilClose, Size::Known)
}

/// The data of the first chunk, as far as it is there, and whether the last chunk follows it directly. A body of several
/// chunks is read to the connection's end.
fn first_chunk(bytes: &[u8]) -> (&[u8], bool) {
    let Ok(httparse::Status::Complete((line, length))) = httparse::parse_chunk_size(bytes) else { return (&[], false) };
    if length == 0 {
        return (&[], true);
    }
    let rest = &bytes[line..];
    let (data, rest) = rest.split_at(usize::try_from(length).unwrap_or(usize::MAX).min(rest.len()));
    // No trailer is waited for: the zero ends what matters.
    (data, rest.starts_with(b"\r\n0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(answer: &[u8]) -> Option<Result<(), String>> {
        judge(answer, answer.len(), false, &(200..=299))
    }

    /// What an answer means when it is whole and the connection over.
    fn meaning(answer: &[u8]) -> Result<(), String> {
        judge(answer, answer.len(), true, &(200..=299)).expect("an answer that is over is judged")
    }

    fn reply(status: &str, body: &str) -> Vec<u8> {
        format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
    }

    #[test]
    fn the_status_and_the_words_of_the_body_decide() {
        for (status, body) in
            [("200 OK", "ok"), ("200 OK", ""), ("204 No Content", ""), ("299 x", "not-ready!"), ("200", "x")]
        {
            assert_eq!(meaning(&reply(status, body)), Ok(()), "{status} {body}");
        }
        for (status, body, expected) in [
            ("503 Service Unavailable", "ok", "was answered with 503"),
            ("404 Not Found", "", "was answered with 404"),
            ("302 Found", "", "was answered with 302"),
            ("101 Switching Protocols", "", "was answered with 101"),
            ("200 OK", "not-ready", "was answered with 200 and `not-ready`"),
            ("200 OK", " draining\r\n", "was answered with 200 and `draining`"),
            ("503 Service Unavailable", "draining", "was answered with 503 and `draining`"),
        ] {
            assert_eq!(meaning(&reply(status, body)), Err(expected.to_owned()), "{status} {body}");
        }
    }

    #[test]
    fn every_framing_is_understood() {
        let ready = |answer: &str| meaning(answer.as_bytes());
        assert_eq!(ready("HTTP/1.0 200 OK\r\n\r\nok"), Ok(()));
        let refused = "was answered with 200 and `not-ready`".to_owned();
        assert_eq!(ready("HTTP/1.0 200 OK\r\n\r\nnot-ready\n"), Err(refused.clone()));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(ready(&format!("{chunked}9\r\nnot-ready\r\n0\r\n\r\n")), Err(refused.clone()));
        assert_eq!(ready(&format!("{chunked}2\r\nok\r\n0\r\n\r\n")), Ok(()));
        assert_eq!(ready(&format!("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n{chunked}0\r\n\r\n")), Ok(()));
        assert_eq!(ready("HTTP/1.1 100 Continue\r\n\r\n"), Err("was not answered whole".to_owned()));
    }

    #[test]
    fn it_is_judged_only_when_it_is_whole() {
        for answer in [
            reply("200 OK", "not-ready"),
            reply("200 OK", "ok"),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nnot-ready\r\n0".to_vec(),
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n".to_vec(),
        ] {
            for cut in 0..answer.len() {
                assert_eq!(look(&answer[..cut]), None, "{cut} bytes of {:?}", String::from_utf8_lossy(&answer));
            }
            assert!(look(&answer).is_some(), "{:?}", String::from_utf8_lossy(&answer));
        }
    }

    #[test]
    fn hostile_answers_are_no_answers() {
        let endless = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; HEAD_LIMIT]].concat();
        assert_eq!(look(&endless), Some(Err("was answered with a head of more than 8 KiB".to_owned())));
        let interim = b"HTTP/1.1 102 Processing\r\n\r\n".repeat(HEAD_LIMIT / 27 + 1);
        assert_eq!(look(&interim), Some(Err("was answered with a head of more than 8 KiB".to_owned())));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(MOST_FIELDS + 1));
        for garbage in
            [&b"\x16\x03\x01\x02\x00"[..], b"SSH-2.0-OpenSSH\r\n", b"HTTP/2 200\r\n\r\n", b"\0", many.as_bytes()]
        {
            let said = look(garbage).expect("garbage is not waited for").unwrap_err();
            assert!(said.contains("no HTTP/1.1 answer"), "{said}");
        }
        let huge = "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\nok";
        assert_eq!(look(huge.as_bytes()), None, "a length that is no number is none");
        let chunk = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nok";
        assert_eq!(meaning(chunk), Ok(()));
    }
}
