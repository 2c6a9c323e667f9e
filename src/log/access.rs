//! The access log of one loop: lines gather in a buffer of the loop's own and go to the sink at the end of a turn.
//!
//! A line costs no allocation and no system call: the time stamp is made once a second, numbers go through tables, and
//! the buffer keeps its memory.

use std::net::IpAddr;
use std::sync::Arc;

use super::sink::{Sink, Source};
use super::text::{
    Calendar, MONTHS, put_clock, put_date_time, put_escaped, put_json, put_milliseconds, put_number, put_padded,
};
use crate::config::AccessLogFormat;

/// A buffer that large is handed over within the turn.
const FULL: usize = 64 * 1024;

/// One answered request. An empty slice stands for a field that the request did not have.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessRecord<'a> {
    /// When its first byte came, in microseconds since 1970-01-01T00:00:00Z.
    pub time_micros: u64,
    /// Who asked; `None`: somebody on a Unix socket, who has no address, and is written as `unix:`, as nginx does.
    pub client: Option<IpAddr>,
    /// The method as it came.
    pub method: &'a [u8],
    /// The request target as it came.
    pub target: &'a [u8],
    /// The protocol as in a request line: `HTTP/1.1`.
    pub protocol: &'static str,
    /// The authority that was asked for.
    pub host: &'a [u8],
    /// The answer's status.
    pub status: u16,
    /// Bytes of the answer's body that were sent.
    pub bytes: u64,
    /// From the first byte of the request to the last of the answer, in microseconds.
    pub duration_us: u64,
    /// Spent waiting for a worker, in microseconds, if a worker was asked for.
    pub queue_us: Option<u64>,
    /// From the worker's start on it to its last byte, in microseconds.
    pub upstream_us: Option<u64>,
    /// Which worker answered.
    pub worker: Option<u32>,
    /// The request's id.
    pub request_id: &'a [u8],
    /// The Referer field.
    pub referer: &'a [u8],
    /// The User-Agent field.
    pub user_agent: &'a [u8],
}

/// One loop's access log.
pub struct AccessLog {
    sink: Option<Arc<Sink>>,
    format: AccessLogFormat,
    colour: bool,
    buffer: Vec<u8>,
    lines: u64,
    /// The second that `stamp` stands for.
    second: u64,
    stamp: Vec<u8>,
}

impl AccessLog {
    pub(super) fn new(sink: Option<Arc<Sink>>, format: AccessLogFormat, colour: bool) -> AccessLog {
        let buffer = if sink.is_some() { Vec::with_capacity(FULL) } else { Vec::new() };
        AccessLog { sink, format, colour, buffer, lines: 0, second: u64::MAX, stamp: Vec::with_capacity(32) }
    }

    /// Whether anything is kept; if not, the caller need not gather a record.
    #[inline]
    pub fn enabled(&self) -> bool {
        self.sink.is_some()
    }

    /// Adds a line.
    pub fn record(&mut self, record: &AccessRecord<'_>) {
        if self.sink.is_none() {
            return;
        }
        self.stamp_of(record.time_micros / 1_000_000);
        match self.format {
            AccessLogFormat::Human => put_human(&mut self.buffer, &self.stamp, record, self.colour),
            AccessLogFormat::Combined => put_combined(&mut self.buffer, &self.stamp, record),
            AccessLogFormat::Json => put_json_line(&mut self.buffer, &self.stamp, record),
        }
        self.lines += 1;
        if self.buffer.len() >= FULL {
            self.flush();
        }
    }

    /// Hands what has gathered to the log's thread, or drops and counts it. To be called at the end of a turn.
    #[inline]
    pub fn flush(&mut self) {
        if self.lines > 0 {
            self.hand_over();
        }
    }

    fn hand_over(&mut self) {
        if let Some(sink) = &self.sink {
            sink.push(Source::Access, &self.buffer, self.lines);
        }
        self.buffer.clear();
        self.lines = 0;
    }

    /// Makes the time stamp anew when the second has changed.
    fn stamp_of(&mut self, second: u64) {
        if self.second == second {
            return;
        }
        self.second = second;
        self.stamp.clear();
        match self.format {
            AccessLogFormat::Human => put_clock(&mut self.stamp, &Calendar::of(second)),
            AccessLogFormat::Combined => put_combined_time(&mut self.stamp, second),
            AccessLogFormat::Json => put_date_time(&mut self.stamp, second, b'T'),
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.flush();
    }
}

/// `21/Nov/2026:03:45:56 +0000`
fn put_combined_time(out: &mut Vec<u8>, second: u64) {
    let at = Calendar::of(second);
    put_padded(out, at.day, 2);
    out.push(b'/');
    out.extend_from_slice(MONTHS[(at.month - 1) as usize].as_bytes());
    out.push(b'/');
    put_padded(out, at.year, 4);
    out.push(b':');
    put_clock(out, &at);
    out.extend_from_slice(b" +0000");
}

/// `03:45:56.123 200   1.234ms     512B GET /path 127.0.0.1 #2`
fn put_human(out: &mut Vec<u8>, stamp: &[u8], record: &AccessRecord<'_>, colour: bool) {
    let (dim, status, reset) = match record.status {
        _ if !colour => ("", "", ""),
        500.. => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
        400..=499 => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
        300..=399 => ("\x1b[2m", "\x1b[36m", "\x1b[0m"),
        _ => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
    };
    out.extend_from_slice(dim.as_bytes());
    out.extend_from_slice(stamp);
    out.push(b'.');
    put_padded(out, (record.time_micros / 1000 % 1000) as u32, 3);
    out.extend_from_slice(reset.as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.as_bytes());
    put_padded(out, u32::from(record.status), 3);
    out.extend_from_slice(reset.as_bytes());
    put_right(out, 11, |out| {
        put_milliseconds(out, record.duration_us);
        out.extend_from_slice(b"ms");
    });
    put_right(out, 9, |out| put_short_bytes(out, record.bytes));
    out.push(b' ');
    put_escaped(out, record.method);
    out.push(b' ');
    put_escaped(out, record.target);
    out.push(b' ');
    out.extend_from_slice(dim.as_bytes());
    put_address(out, record.client);
    if let Some(worker) = record.worker {
        out.extend_from_slice(b" #");
        put_number(out, u64::from(worker));
    }
    out.extend_from_slice(reset.as_bytes());
    out.push(b'\n');
}

/// nginx's `combined`, which is Apache's with `0` for an empty body:
/// `$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"`.
fn put_combined(out: &mut Vec<u8>, stamp: &[u8], record: &AccessRecord<'_>) {
    put_address(out, record.client);
    out.extend_from_slice(b" - - [");
    out.extend_from_slice(stamp);
    out.extend_from_slice(b"] \"");
    if record.method.is_empty() {
        // No request line was understood.
        out.push(b'-');
    } else {
        put_escaped(out, record.method);
        out.push(b' ');
        put_escaped(out, record.target);
        out.push(b' ');
        out.extend_from_slice(record.protocol.as_bytes());
    }
    out.extend_from_slice(b"\" ");
    put_padded(out, u32::from(record.status), 3);
    out.push(b' ');
    put_number(out, record.bytes);
    for field in [record.referer, record.user_agent] {
        out.extend_from_slice(b" \"");
        put_escaped(out, if field.is_empty() { b"-" } else { field });
        out.push(b'"');
    }
    out.push(b'\n');
}

/// One JSON object with OpenTelemetry's names for HTTP, and times in milliseconds.
fn put_json_line(out: &mut Vec<u8>, stamp: &[u8], record: &AccessRecord<'_>) {
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(stamp);
    out.push(b'.');
    put_padded(out, (record.time_micros / 1000 % 1000) as u32, 3);
    out.extend_from_slice(b"Z\",\"http.request.method\":\"");
    put_json(out, record.method);
    let (path, query) = match memchr::memchr(b'?', record.target) {
        Some(mark) => (&record.target[..mark], &record.target[mark + 1..]),
        None => (record.target, &b""[..]),
    };
    out.extend_from_slice(b"\",\"url.path\":\"");
    put_json(out, path);
    out.extend_from_slice(b"\",\"http.response.status_code\":");
    put_number(out, u64::from(record.status));
    out.extend_from_slice(b",\"client.address\":\"");
    put_address(out, record.client);
    out.extend_from_slice(b"\",\"duration_ms\":");
    put_milliseconds(out, record.duration_us);
    for (name, micros) in [(&b",\"queue_ms\":"[..], record.queue_us), (b",\"upstream_ms\":", record.upstream_us)] {
        if let Some(micros) = micros {
            out.extend_from_slice(name);
            put_milliseconds(out, micros);
        }
    }
    if let Some(worker) = record.worker {
        out.extend_from_slice(b",\"worker.id\":");
        put_number(out, u64::from(worker));
    }
    out.extend_from_slice(b",\"http.response.body.size\":");
    put_number(out, record.bytes);
    let version = record.protocol.strip_prefix("HTTP/").unwrap_or(record.protocol);
    let texts: [(&str, &[u8]); 6] = [
        ("request.id", record.request_id),
        ("url.query", query),
        ("server.address", record.host),
        ("network.protocol.version", version.as_bytes()),
        ("http.request.header.referer", record.referer),
        ("user_agent.original", record.user_agent),
    ];
    for (name, value) in texts.into_iter().filter(|(_, value)| !value.is_empty()) {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":\"");
        put_json(out, value);
        out.push(b'"');
    }
    out.extend_from_slice(b"}\n");
}

/// An address without the formatter's detour for the usual kind.
fn put_address(out: &mut Vec<u8>, address: Option<IpAddr>) {
    match address.map(|address| address.to_canonical()) {
        None => out.extend_from_slice(b"unix:"),
        Some(IpAddr::V4(address)) => {
            let [first, rest @ ..] = address.octets();
            put_number(out, u64::from(first));
            for octet in rest {
                out.push(b'.');
                put_number(out, u64::from(octet));
            }
        }
        Some(IpAddr::V6(address)) => {
            // Writing to a Vec cannot fail.
            let _ = std::io::Write::write_fmt(out, format_args!("{address}"));
        }
    }
}

/// `512B`, `12.3K`, `1.0M`: at most six columns up to terabytes.
fn put_short_bytes(out: &mut Vec<u8>, bytes: u64) {
    let mut unit = 0;
    let mut tenths = bytes.saturating_mul(10);
    while tenths >= 10_240 && unit < 4 {
        tenths /= 1024;
        unit += 1;
    }
    put_number(out, tenths / 10);
    if unit > 0 {
        out.push(b'.');
        put_number(out, tenths % 10);
    }
    out.push(b"BKMGT"[unit]);
}

/// Puts something at the right of a column. What is wider than the column gets one space before it.
fn put_right(out: &mut Vec<u8>, width: usize, put: impl Fn(&mut Vec<u8>)) {
    const SPACES: &[u8; 16] = b"                ";
    let start = out.len();
    put(out);
    let length = out.len() - start;
    let spaces = width.min(SPACES.len()).saturating_sub(length).max(1);
    out.extend_from_slice(&SPACES[..spaces]);
    out[start..].rotate_right(spaces);
}
