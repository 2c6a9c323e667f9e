//! What the built-in worker answers.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::Entry;
use crate::http::fields::Fields;
use crate::http::head::Request;
use crate::http::{Method, Version};

/// The longest that a request may ask the worker to sleep.
const LONGEST_SLEEP_MS: u64 = 10 * 60 * 1000;
/// What `/bytes` repeats; its length is no multiple of a power of two, so that a block put in a wrong place shows.
const PATTERN: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789\n";
/// Bytes written at once by `/bytes`.
const PORTION: usize = 64 * 1024;
const TEXT: &str = "text/plain; charset=utf-8";
/// The environment of the worker contract, as `/env` shows it.
const CONTRACT: [&str; 12] = [
    "SOCKET_PATH",
    "WORKER_ID",
    "CLUSTER_WORKER",
    "CLUSTER_WORKER_ID",
    "GENERATION",
    "MAX_REQUESTS",
    "WORKER_CONCURRENCY",
    "PORT",
    "CONTROL_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// A request, whole.
pub(super) struct Question<'a> {
    /// The bytes that the request's spans are of.
    pub head: &'a [u8],
    pub request: &'a Request,
    pub fields: &'a Fields,
    pub body: &'a [u8],
    /// Which request this is of the worker's.
    pub count: u64,
    /// Whether the connection stays open behind the answer.
    pub keep: bool,
}

impl Question<'_> {
    fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.find_name(self.head, name)
    }

    /// Whether the answer has no body, whatever it says about one.
    pub(super) fn is_head(&self) -> bool {
        self.request.method == Method::Head
    }
}

/// Answers. False: the answer's end is the connection's end.
pub(super) fn answer(entry: &Entry, question: &Question<'_>, out: &mut Vec<u8>) -> io::Result<bool> {
    let target = question.request.target.path.of(question.head);
    let (path, query) = match memchr::memchr(b'?', target) {
        Some(mark) => (&target[..mark], &target[mark + 1..]),
        None => (target, &b""[..]),
    };
    let stream = &entry.stream;
    match path {
        b"/ping" => reply(stream, question, out, 200, TEXT, b"pong"),
        b"/" | b"" => reply(stream, question, out, 200, "text/html; charset=utf-8", &page(question)),
        b"/echo" => echo(stream, question, out),
        b"/sleep" => {
            let millis = number(query, "ms", 1000).min(LONGEST_SLEEP_MS);
            std::thread::sleep(Duration::from_millis(millis));
            reply(stream, question, out, 200, TEXT, format!("slept {millis} ms\n").as_bytes())
        }
        b"/bytes" => bytes(stream, question, out, number(query, "n", 1024)),
        b"/stream" => stream_out(stream, question, out, number(query, "n", 5), number(query, "ms", 100)),
        b"/env" => reply(stream, question, out, 200, "application/json", &environment()),
        b"/crash" => std::process::abort(),
        _ => match path.strip_prefix(b"/status/").and_then(status_of) {
            Some(status) => reply(stream, question, out, status, TEXT, format!("status {status}\n").as_bytes()),
            None => reply(stream, question, out, 404, TEXT, b"the built-in worker has no such page; see /\n"),
        },
    }
}

/// Refuses what is no request, and ends the connection.
pub(super) fn refuse(stream: &UnixStream, status: u16, reason: &str) -> io::Result<()> {
    end_with(stream, &format!("HTTP/1.1 {status} Refused\r\n"), reason)
}

/// Says that a request has not run and may be tried elsewhere, and ends the connection; with the first bytes of the request read, so that whoever
/// sends them is not cut off from this answer.
pub(super) fn decline(mut stream: &UnixStream, reason: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_millis(100)))?;
    // Whether it is whole does not matter, nor whether it has come at all.
    let _ = stream.read(&mut [0; 16 * 1024]);
    end_with(stream, "HTTP/1.1 503 Busy\r\nRip-Worker-Busy: 1\r\n", reason)
}

/// The last answer of a connection, of whose head that is the begin.
fn end_with(mut stream: &UnixStream, begin: &str, reason: &str) -> io::Result<()> {
    let length = reason.len() + 1;
    let head = format!("{begin}Content-Type: {TEXT}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(format!("{head}{reason}\n").as_bytes())
}

fn reply(
    mut stream: &UnixStream,
    question: &Question<'_>,
    out: &mut Vec<u8>,
    status: u16,
    kind: &str,
    body: &[u8],
) -> io::Result<bool> {
    head(question, out, status, kind, Some(body.len() as u64));
    if !question.is_head() && !bodyless(status) {
        out.extend_from_slice(body);
    }
    stream.write_all(out).map(|()| true)
}

/// Answers that something inside has failed. The connection stays.
pub(super) fn failed(stream: &UnixStream, question: &Question<'_>, out: &mut Vec<u8>, body: &[u8]) -> io::Result<bool> {
    reply(stream, question, out, 500, TEXT, body)
}

/// 204 and 304 never have a body (RFC 9112 §6.3).
pub(super) fn bodyless(status: u16) -> bool {
    matches!(status, 204 | 304)
}

/// Writes a head into `out`, which is cleared. No length means chunked on 1.1, and until close on 1.0.
fn head(question: &Question<'_>, out: &mut Vec<u8>, status: u16, kind: &str, length: Option<u64>) {
    out.clear();
    status_line(out, status);
    out.extend_from_slice(b"\r\nContent-Type: ");
    out.extend_from_slice(kind.as_bytes());
    framing(question, out, status, length);
}

/// Writes the status line, without its end.
pub(super) fn status_line(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
    out.extend_from_slice(if status == 200 { b" OK" } else { b" " });
}

/// Writes the end of the line before, the fields of the framing, and the head's end.
pub(super) fn framing(question: &Question<'_>, out: &mut Vec<u8>, status: u16, length: Option<u64>) {
    match length {
        _ if bodyless(status) => {}
        Some(length) => {
            out.extend_from_slice(b"\r\nContent-Length: ");
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
        }
        None if question.request.version == Version::Http11 => out.extend_from_slice(b"\r\nTransfer-Encoding: chunked"),
        None => {}
    }
    let unframed = length.is_none() && question.request.version == Version::Http10;
    if !question.keep || unframed {
        out.extend_from_slice(b"\r\nConnection: close\r\n\r\n");
    } else if question.request.version == Version::Http10 {
        out.extend_from_slice(b"\r\nConnection: keep-alive\r\n\r\n");
    } else {
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// The page at `/`. Its numbers have a fixed width, because `ab` counts an answer of another length than the first as failed.
fn page(question: &Question<'_>) -> Vec<u8> {
    let worker = std::env::var("WORKER_ID").unwrap_or_else(|_| "(alone)".to_owned());
    let (process, count) = (std::process::id(), question.count);
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>production_server</title>\n\
         <h1>It works.</h1>\n<p>Worker {:>7} (process {process:>10}) has answered {count:>20} requests.</p>\n\
         <p>Try <a href=\"/ping\">/ping</a>, <a href=\"/env\">/env</a>, <a href=\"/bytes?n=100\">/bytes?n=100</a>, \
         <a href=\"/stream?n=5&amp;ms=500\">/stream</a>, <a href=\"/sleep?ms=500\">/sleep?ms=500</a>, /echo with a body, \
         <a href=\"/status/418\">/status/418</a>, or <a href=\"/crash\">/crash</a>, which ends this worker.</p>\n\
         <p>Your own app: <code>production_server -- node server.js</code></p>\n</html>\n",
        worker.replace(['<', '>', '&'], "")
    )
    .into_bytes()
}

fn echo(stream: &UnixStream, question: &Question<'_>, out: &mut Vec<u8>) -> io::Result<bool> {
    let kind = question.field("content-type").and_then(|kind| std::str::from_utf8(kind).ok());
    reply(stream, question, out, 200, kind.unwrap_or("application/octet-stream"), question.body)
}

fn bytes(mut stream: &UnixStream, question: &Question<'_>, out: &mut Vec<u8>, count: u64) -> io::Result<bool> {
    head(question, out, 200, "application/octet-stream", Some(count));
    let mut left = if question.is_head() { 0 } else { count };
    let mut offset = 0;
    loop {
        let portion = left.min(PORTION as u64) as usize;
        let end = out.len() + portion;
        while out.len() < end {
            let rest = &PATTERN[offset..];
            let take = rest.len().min(end - out.len());
            out.extend_from_slice(&rest[..take]);
            offset = (offset + take) % PATTERN.len();
        }
        stream.write_all(out)?;
        out.clear();
        left -= portion as u64;
        if left == 0 {
            return Ok(true);
        }
    }
}

/// Chunks with pauses between them; events for who asks for an event stream.
fn stream_out(
    mut stream: &UnixStream,
    question: &Question<'_>,
    out: &mut Vec<u8>,
    count: u64,
    pause_ms: u64,
) -> io::Result<bool> {
    let events = question.field("accept").is_some_and(|accept| accept.starts_with(b"text/event-stream"));
    let chunked = question.request.version == Version::Http11;
    head(question, out, 200, if events { "text/event-stream" } else { TEXT }, None);
    stream.write_all(out)?;
    if question.is_head() {
        return Ok(chunked);
    }
    for index in 1..=count {
        let text = if events { format!("data: {index}\n\n") } else { format!("chunk {index}\n") };
        out.clear();
        match chunked {
            true => write!(out, "{:x}\r\n{text}\r\n", text.len())?,
            false => out.extend_from_slice(text.as_bytes()),
        }
        stream.write_all(out)?;
        if index < count {
            std::thread::sleep(Duration::from_millis(pause_ms.min(LONGEST_SLEEP_MS)));
        }
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n")?;
    }
    Ok(chunked)
}

fn environment() -> Vec<u8> {
    let mut shown = serde_json::Map::new();
    for name in CONTRACT {
        if let Some(value) = std::env::var_os(name) {
            shown.insert(name.to_owned(), value.to_string_lossy().into());
        }
    }
    shown.insert("pid".to_owned(), std::process::id().into());
    serde_json::Value::Object(shown).to_string().into_bytes()
}

fn number(query: &[u8], name: &str, default: u64) -> u64 {
    let pairs = query.split(|&byte| byte == b'&').filter_map(|pair| std::str::from_utf8(pair).ok()?.split_once('='));
    pairs.into_iter().find(|pair| pair.0 == name).and_then(|pair| pair.1.parse().ok()).unwrap_or(default)
}

fn status_of(text: &[u8]) -> Option<u16> {
    std::str::from_utf8(text).ok()?.parse().ok().filter(|status| (200..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_and_wrong_ones_mean_the_default() {
        for (query, expected) in [("n=7", 7), ("m=1&n=7&n=8", 7), ("", 5), ("n=", 5), ("n=-1", 5), ("nn=7", 5)] {
            assert_eq!(number(query.as_bytes(), "n", 5), expected, "{query}");
        }
    }

    #[test]
    fn only_final_statuses_can_be_asked_for() {
        assert_eq!(
            [&b"200"[..], b"599", b"100", b"600", b"abc", b"-5"].map(status_of),
            [Some(200), Some(599), None, None, None, None]
        );
    }
}
