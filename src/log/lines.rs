//! The formats of access lines, each as its readers expect it. None puts the end of the line.

use std::net::IpAddr;

use super::access::{AccessRecord, Shown};
use super::framing::Framing;
use super::text::{
    Calendar, MONTHS, Piece, put_apache, put_clock, put_date_time, put_escaped, put_json, put_milliseconds, put_number,
    put_padded, put_seconds,
};

/// Time stamps of one second, made when they are first asked for.
#[derive(Default)]
pub struct Stamp {
    clock: Cached,
    local: Cached,
    utc: Cached,
    rip: Cached,
}

/// One of them, and the second after that for which it holds; 0: none.
#[derive(Default)]
struct Cached(u64, Vec<u8>);

impl Cached {
    #[inline]
    fn of(&mut self, second: u64, make: fn(&mut Vec<u8>, u64)) -> &[u8] {
        if self.0 != second + 1 {
            self.0 = second + 1;
            self.1.clear();
            make(&mut self.1, second);
        }
        &self.1
    }
}

impl Stamp {
    /// `03:45:56` in UTC.
    pub fn clock(&mut self, second: u64) -> &[u8] {
        self.clock.of(second, |out, second| put_clock(out, &Calendar::of(second)))
    }

    /// `2026-11-21T03:45:56` in UTC.
    pub fn utc(&mut self, second: u64) -> &[u8] {
        self.utc.of(second, |out, second| put_date_time(out, second, b'T'))
    }

    /// `21/Nov/2026:03:45:56 +0000` in local time.
    pub fn local(&mut self, second: u64) -> &[u8] {
        self.local.of(second, |out, second| put_local_time(out, second, super::zone::offset(second)))
    }

    /// `2026-11-21 03:45:56` in local time, and behind it `+0000`, which stands behind the milliseconds.
    pub fn rip(&mut self, second: u64) -> &[u8] {
        self.rip.of(second, |out, second| {
            let offset = super::zone::offset(second);
            put_date_time(out, second.saturating_add_signed(i64::from(offset)), b' ');
            put_offset(out, offset);
        })
    }
}

fn put_local_time(out: &mut Vec<u8>, second: u64, offset: i32) {
    let at = Calendar::of(second.saturating_add_signed(i64::from(offset)));
    put_padded(out, at.day, 2);
    out.push(b'/');
    out.extend_from_slice(MONTHS[(at.month - 1) as usize].as_bytes());
    out.push(b'/');
    put_padded(out, at.year, 4);
    out.push(b':');
    put_clock(out, &at);
    out.push(b' ');
    put_offset(out, offset);
}

/// `+0100`: the bytes of an offset are [`OFFSET`].
fn put_offset(out: &mut Vec<u8>, offset: i32) {
    out.push(if offset < 0 { b'-' } else { b'+' });
    let minutes = offset.unsigned_abs() / 60;
    put_padded(out, minutes / 60, 2);
    put_padded(out, minutes % 60, 2);
}

const OFFSET: usize = 5;

/// The most bytes of a method, an id or a name among the fields of the journal that are never cut, before they are escaped.
const LONGEST_WORD: usize = 1024;

/// `.123`
pub fn put_millis_of_second(out: &mut Vec<u8>, micros: u64) {
    let millis = (micros / 1000 % 1000) as u32;
    out.push(b'.');
    put_padded(out, millis, 3);
}

/// `03:45:56.123 200   1.234ms     512B GET /path 127.0.0.1 #2`
pub fn human(out: &mut Vec<u8>, stamp: &[u8], shown: &Shown<'_>, colour: bool) {
    let record = shown.record;
    let (dim, status, reset) = match record.status {
        _ if !colour => ("", "", ""),
        500.. => ("\x1b[2m", "\x1b[31m", "\x1b[0m"),
        400..=499 => ("\x1b[2m", "\x1b[33m", "\x1b[0m"),
        300..=399 => ("\x1b[2m", "\x1b[36m", "\x1b[0m"),
        _ => ("\x1b[2m", "\x1b[32m", "\x1b[0m"),
    };
    out.extend_from_slice(dim.as_bytes());
    out.extend_from_slice(stamp);
    put_millis_of_second(out, record.time_micros);
    out.extend_from_slice(reset.as_bytes());
    out.push(b' ');
    out.extend_from_slice(status.as_bytes());
    put_padded(out, u32::from(record.status), 3);
    out.extend_from_slice(reset.as_bytes());
    put_right(out, 11, |out| {
        put_milliseconds(out, record.took.duration_us);
        out.extend_from_slice(b"ms");
    });
    put_right(out, 9, |out| put_short_bytes(out, record.bytes));
    out.push(b' ');
    put_escaped(out, or_dash(record.method));
    out.push(b' ');
    put_escaped(out, or_dash(shown.target));
    out.push(b' ');
    out.extend_from_slice(dim.as_bytes());
    put_address(out, record.client);
    if let Some(worker) = record.worker {
        out.extend_from_slice(b" #");
        put_number(out, u64::from(worker));
    }
    if !shown.mark().is_empty() {
        out.extend_from_slice(b" mark=");
        put_escaped(out, shown.mark());
    }
    out.extend_from_slice(reset.as_bytes());
}

/// nginx's `combined`:
/// `$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent "$http_referer" "$http_user_agent"`.
pub fn combined(out: &mut Vec<u8>, stamp: &[u8], shown: &Shown<'_>) {
    let record = shown.record;
    put_address(out, record.client);
    out.extend_from_slice(b" - ");
    match user(shown.authorization) {
        Some(user) => put_escaped(out, &user),
        None => out.push(b'-'),
    }
    out.extend_from_slice(b" [");
    out.extend_from_slice(stamp);
    out.extend_from_slice(b"] \"");
    put_request(out, shown, put_escaped);
    out.extend_from_slice(b"\" ");
    put_padded(out, u32::from(record.status), 3);
    out.push(b' ');
    put_number(out, record.bytes);
    for field in [shown.referer, shown.user_agent] {
        out.extend_from_slice(b" \"");
        put_escaped(out, field);
        out.push(b'"');
    }
}

/// Apache's `common`: `%h %l %u %t "%r" %>s %b`. Its user is one that the server has authenticated, and ours authenticates nobody.
pub fn common(out: &mut Vec<u8>, stamp: &[u8], shown: &Shown<'_>) {
    put_address(out, shown.record.client);
    out.extend_from_slice(b" - - [");
    out.extend_from_slice(stamp);
    out.extend_from_slice(b"] \"");
    put_request(out, shown, put_apache);
    out.extend_from_slice(b"\" ");
    put_padded(out, u32::from(shown.record.status), 3);
    out.push(b' ');
    match shown.record.bytes {
        0 => out.push(b'-'),
        bytes => put_number(out, bytes),
    }
}

/// What a line for people, or for Rip's readers, has in the place of a word that there is not.
fn or_dash(word: &[u8]) -> &[u8] {
    if word.is_empty() { b"-" } else { word }
}

/// The request line as it was, or `-` where none was understood.
fn put_request(out: &mut Vec<u8>, shown: &Shown<'_>, put: fn(&mut Vec<u8>, &[u8])) {
    let record = shown.record;
    if record.method.is_empty() {
        return out.push(b'-');
    }
    put(out, record.method);
    out.push(b' ');
    put(out, shown.target);
    out.push(b' ');
    out.extend_from_slice(record.protocol.as_bytes());
}

/// The user of Basic credentials (RFC 7617), as nginx has it: `None` without a colon or a name.
pub fn user(authorization: &[u8]) -> Option<Vec<u8>> {
    if authorization == super::redact::HIDDEN {
        return None;
    }
    let (scheme, credentials) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut decoded = Vec::with_capacity(credentials.len());
    let (mut bits, mut count) = (0_u32, 0);
    for byte in credentials.trim_ascii_start().iter().take_while(|byte| **byte != b'=') {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            decoded.push((bits >> count) as u8);
        }
    }
    let colon = memchr::memchr(b':', &decoded).filter(|colon| *colon > 0)?;
    decoded.truncate(colon);
    Some(decoded)
}

/// One JSON object with OpenTelemetry's names for HTTP, and times in milliseconds.
pub fn json(out: &mut Vec<u8>, piece: &mut Piece, stamp: &[u8], shown: &Shown<'_>) {
    if shown.record.protocol.is_empty() {
        return json_any(out, stamp, shown);
    }
    json_plain(piece, stamp, shown);
    match piece.line() {
        Some(line) => out.extend_from_slice(line),
        None => json_any(out, stamp, shown),
    }
}

/// What [`json_any`] writes, of a request in which nothing is to be escaped.
fn json_plain(line: &mut Piece, stamp: &[u8], shown: &Shown<'_>) {
    let record = shown.record;
    line.begin();
    line.fixed(b"{\"time\":\"");
    line.short(stamp);
    line.fixed(b".");
    line.three_digits((record.time_micros / 1000 % 1000) as u32);
    line.fixed(b"Z\",\"http.request.method\":\"");
    line.text(record.method);
    let (path, query) = shown.path_and_query();
    line.fixed(b"\",\"url.path\":\"");
    line.text(path);
    line.fixed(b"\",\"http.response.status_code\":");
    line.three_digits(u32::from(record.status));
    line.fixed(b",\"client.address\":\"");
    match record.client.map(|address| address.to_canonical()) {
        Some(IpAddr::V4(address)) => {
            for (at, octet) in address.octets().into_iter().enumerate() {
                if at > 0 {
                    line.fixed(b".");
                }
                line.number(u64::from(octet));
            }
        }
        None => line.fixed(b"unix:"),
        Some(address) => {
            let mut text = Vec::with_capacity(48);
            put_address(&mut text, Some(address));
            line.short(&text);
        }
    }
    line.fixed(b"\",\"duration_ms\":");
    line.milliseconds(record.took.duration_us);
    if let Some(micros) = record.took.queue_us {
        line.fixed(b",\"queue_ms\":");
        line.milliseconds(micros);
    }
    if let Some(micros) = record.took.upstream_us {
        line.fixed(b",\"upstream_ms\":");
        line.milliseconds(micros);
    }
    if let Some(worker) = record.worker {
        line.fixed(b",\"worker.id\":");
        line.number(u64::from(worker));
    }
    line.fixed(b",\"http.response.body.size\":");
    line.number(record.bytes);
    if shown.one_of > 1 {
        line.fixed(b",\"one_of\":");
        line.number(u64::from(shown.one_of));
    }
    member(line, b",\"request.id\":\"", record.request_id);
    member(line, b",\"app\":\"", record.app.as_bytes());
    member(line, b",\"url.query\":\"", query);
    let (host, port) = host_and_port(shown.host);
    member(line, b",\"server.address\":\"", host);
    if let Some(port) = port {
        line.fixed(b",\"server.port\":");
        line.number(u64::from(port));
    }
    member(line, b",\"network.protocol.version\":\"", version(record).as_bytes());
    member(line, b",\"http.request.header.referer\":\"", shown.referer);
    member(line, b",\"user_agent.original\":\"", shown.user_agent);
    member(line, b",\"mark\":\"", shown.mark());
    line.fixed(b"}");
}

/// What a Host field says: the name or address, that of IPv6 without its brackets, and the port. What is no such pair is a name.
#[inline]
fn host_and_port(host: &[u8]) -> (&[u8], Option<u16>) {
    let Some(colon) = memchr::memrchr(b':', host) else { return (host, None) };
    if let [b'[', inside @ .., b']'] = host {
        return (inside, None);
    }
    let (name, number) = (&host[..colon], &host[colon + 1..]);
    let port = number.iter().try_fold(0, |port: u16, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        port.checked_mul(10)?.checked_add(u16::from(digit))
    });
    let port = port.map(|port| Some(port).filter(|_| !number.is_empty()));
    match (name, port) {
        ([b'[', inside @ .., b']'], Some(port)) => (inside, port),
        (name, Some(port)) if !name.contains(&b':') => (name, port),
        _ => (host, None),
    }
}

#[inline]
fn member<const N: usize>(line: &mut Piece, name: &[u8; N], value: &[u8]) {
    if !value.is_empty() {
        line.fixed(name);
        line.text(value);
        line.fixed(b"\"");
    }
}

fn version<'a>(record: &AccessRecord<'a>) -> &'a str {
    record.protocol.strip_prefix("HTTP/").unwrap_or(record.protocol)
}

/// The line of any request.
#[cold]
fn json_any(out: &mut Vec<u8>, stamp: &[u8], shown: &Shown<'_>) {
    let record = shown.record;
    // One look at the room for all that is no text of the request's.
    out.reserve(512 + shown.target.len());
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(stamp);
    put_millis_of_second(out, record.time_micros);
    out.extend_from_slice(b"Z\"");
    let (path, query) = shown.path_and_query();
    // An empty path is one that a target has where there is one.
    if !record.protocol.is_empty() {
        out.extend_from_slice(b",\"http.request.method\":\"");
        put_json(out, record.method);
        out.extend_from_slice(b"\",\"url.path\":\"");
        put_json(out, path);
        out.push(b'"');
    }
    out.extend_from_slice(b",\"http.response.status_code\":");
    put_padded(out, u32::from(record.status), 3);
    out.extend_from_slice(b",\"client.address\":\"");
    put_address(out, record.client);
    out.extend_from_slice(b"\",\"duration_ms\":");
    put_milliseconds(out, record.took.duration_us);
    for (name, micros) in
        [(&b",\"queue_ms\":"[..], record.took.queue_us), (b",\"upstream_ms\":", record.took.upstream_us)]
    {
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
    if shown.one_of > 1 {
        out.extend_from_slice(b",\"one_of\":");
        put_number(out, u64::from(shown.one_of));
    }
    let (host, port) = host_and_port(shown.host);
    put_members(
        out,
        [
            (b",\"request.id\":\"", record.request_id),
            (b",\"app\":\"", record.app.as_bytes()),
            (b",\"url.query\":\"", query),
            (b",\"server.address\":\"", host),
        ],
    );
    if let Some(port) = port {
        out.extend_from_slice(b",\"server.port\":");
        put_number(out, u64::from(port));
    }
    put_members(
        out,
        [
            (b",\"network.protocol.version\":\"", version(record).as_bytes()),
            (b",\"http.request.header.referer\":\"", shown.referer),
            (b",\"user_agent.original\":\"", shown.user_agent),
            (b",\"mark\":\"", shown.mark()),
        ],
    );
    out.push(b'}');
}

/// Those of a JSON object's members that are not empty; each with what stands before its value.
fn put_members<const N: usize>(out: &mut Vec<u8>, members: [(&[u8], &[u8]); N]) {
    for (name, value) in members {
        if !value.is_empty() {
            out.extend_from_slice(name);
            put_json(out, value);
            out.push(b'"');
        }
    }
}

/// The Rip server's line for people: `2026-11-21 03:45:56.123 +0000 1.2 ms │ 200 html 1.5kB │ GET /path │ mark`.
pub fn rip(out: &mut Vec<u8>, stamp: &[u8], shown: &Shown<'_>) {
    let record = shown.record;
    let (date, offset) = stamp.split_at(stamp.len() - OFFSET);
    out.extend_from_slice(date);
    put_millis_of_second(out, record.time_micros);
    out.push(b' ');
    out.extend_from_slice(offset);
    out.push(b' ');
    put_scaled(out, record.took.duration_us as f64 / 1e6, "s");
    out.extend_from_slice(" │ ".as_bytes());
    put_padded(out, u32::from(record.status), 3);
    out.push(b' ');
    let media_type = record.note.map_or(&b""[..], |note| &note.media_type);
    let start = out.len();
    put_escaped(out, short_type(media_type));
    while out.len() < start + 4 {
        out.push(b' ');
    }
    out.push(b' ');
    put_scaled(out, record.bytes as f64, "B");
    out.extend_from_slice(" │ ".as_bytes());
    put_escaped(out, or_dash(record.method));
    out.push(b' ');
    put_escaped(out, or_dash(shown.path_and_query().0));
    if !shown.mark().is_empty() {
        out.extend_from_slice(" │ ".as_bytes());
        put_escaped(out, shown.mark());
    }
}

/// The short names that Rip has for subtypes.
fn short_type(media_type: &[u8]) -> &[u8] {
    const SHORT: &[(&str, &str)] = &[
        ("javascript", "js"),
        ("plain", "text"),
        ("jpeg", "jpg"),
        ("svg+xml", "svg"),
        ("x-icon", "icon"),
        ("vnd.microsoft.icon", "icon"),
        ("woff", "font"),
        ("woff2", "font"),
        ("ttf", "font"),
        ("otf", "font"),
        ("mpeg", "mp3"),
        ("gzip", "gz"),
        ("octet-stream", "bin"),
        ("x-rip", "rip"),
    ];
    let sub = memchr::memchr(b'/', media_type).map_or(media_type, |slash| &media_type[slash + 1..]);
    let sub = &sub[..memchr::memchr(b'/', sub).unwrap_or(sub.len())];
    SHORT.iter().find(|(long, _)| long.as_bytes() == sub).map_or(sub, |(_, short)| short.as_bytes())
}

/// A number with a unit's prefix in six columns, as Rip writes it: `1.2 ms`, ` 56 µs`, `  0  B`.
fn put_scaled(out: &mut Vec<u8>, mut value: f64, unit: &str) {
    const PREFIXES: [&str; 9] = ["T", "G", "M", "k", " ", "m", "µ", "n", "p"];
    if value <= 0.0 {
        out.extend_from_slice(b"  0 ");
        return out.extend_from_slice(unit.as_bytes());
    }
    let mut prefix = 4;
    while value < 0.995 && prefix < PREFIXES.len() - 1 {
        value *= 1000.0;
        prefix += 1;
    }
    while value >= 999.5 && prefix > 0 {
        value /= 1000.0;
        prefix -= 1;
    }
    let tenths = (value * 10.0).round() / 10.0;
    let number = if tenths >= 10.0 { format!("{:3}", value.round()) } else { format!("{tenths:3.1}") };
    out.extend_from_slice(number.as_bytes());
    out.extend_from_slice(PREFIXES[prefix].as_bytes());
    out.extend_from_slice(unit.as_bytes());
}

/// The Rip server's JSON line.
pub fn rip_json(out: &mut Vec<u8>, stamp: &[u8], shown: &Shown<'_>) {
    let record = shown.record;
    out.extend_from_slice(b"{\"t\":\"");
    out.extend_from_slice(stamp);
    put_millis_of_second(out, record.time_micros);
    out.extend_from_slice(b"Z\",\"ip\":\"");
    put_address(out, record.client);
    out.extend_from_slice(b"\",\"app\":\"");
    put_json(out, record.app.as_bytes());
    out.extend_from_slice(b"\",\"method\":\"");
    put_json(out, or_dash(record.method));
    out.extend_from_slice(b"\",\"path\":\"");
    put_json(out, or_dash(shown.path_and_query().0));
    out.extend_from_slice(b"\",\"status\":");
    put_padded(out, u32::from(record.status), 3);
    out.extend_from_slice(b",\"totalSeconds\":");
    put_seconds(out, record.took.duration_us);
    out.extend_from_slice(b",\"workerSeconds\":");
    put_seconds(out, record.took.upstream_us.unwrap_or(0));
    put_members(out, [(b",\"type\":\"", record.note.map_or(&[], |note| &note.media_type))]);
    out.extend_from_slice(b",\"length\":");
    put_number(out, record.bytes);
    put_members(out, [(b",\"mark\":\"", shown.mark())]);
    out.push(b'}');
}

/// The fields of a journal's entry before its message: OpenTelemetry's names in capitals. Nothing of them is as long as a client likes.
pub fn journal_head(out: &mut Vec<u8>, framing: &Framing, shown: &Shown<'_>) {
    let record = shown.record;
    let words: [(&str, &[u8]); 3] =
        [("app", record.app.as_bytes()), ("http.request.method", record.method), ("request.id", record.request_id)];
    for (name, value) in words {
        let value = &value[..value.len().min(LONGEST_WORD)];
        if !value.is_empty() {
            framing.field(out, "", name, |out| put_escaped(out, value));
        }
    }
    let worker = record.worker.map(|worker| ("worker.id", u64::from(worker)));
    let status = [("http.response.status_code", u64::from(record.status)), ("http.response.body.size", record.bytes)];
    for (name, number) in status.into_iter().chain(worker) {
        framing.field(out, "", name, |out| put_number(out, number));
    }
    framing.field(out, "", "client.address", |out| put_address(out, record.client));
    let times = [("duration_ms", Some(record.took.duration_us)), ("queue_ms", record.took.queue_us)];
    for (name, micros) in times.into_iter().chain([("upstream_ms", record.took.upstream_us)]) {
        if let Some(micros) = micros {
            framing.field(out, "", name, |out| put_milliseconds(out, micros));
        }
    }
}

/// Those behind it, the longest last.
pub fn journal_texts(out: &mut Vec<u8>, framing: &Framing, shown: &Shown<'_>) {
    let (path, query) = shown.path_and_query();
    for (name, value) in [("mark", shown.mark()), ("url.path", path), ("url.query", query)] {
        if value.is_empty() {
            continue;
        }
        framing.field(out, "", name, |out| put_escaped(out, value));
    }
}

/// An address without the formatter's detour for the usual kind.
pub fn put_address(out: &mut Vec<u8>, address: Option<IpAddr>) {
    match address.map(|address| address.to_canonical()) {
        None => out.extend_from_slice(b"unix:"),
        Some(IpAddr::V4(address)) => {
            let (mut text, mut length) = ([0; 16], 0);
            for octet in address.octets() {
                for (least, unit) in [(100, 100), (10, 10), (0, 1)] {
                    if octet >= least {
                        text[length] = b'0' + octet / unit % 10;
                        length += 1;
                    }
                }
                text[length] = b'.';
                length += 1;
            }
            out.extend_from_slice(&text[..length - 1]);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn text(put: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        put(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_scaled_as_rip_does() {
        // What its `scale` (packages/server/serving/logging.rip) answers, with padding.
        for (value, unit, shown) in [
            (0.0, "s", "  0 s"),
            (1.0, "s", "1.0 s"),
            (0.0123, "s", " 12ms"),
            (0.0001234, "s", "123µs"),
            (0.00995, "s", " 10ms"),
            (0.0099, "s", "9.9ms"),
            (0.00125, "s", "1.3ms"),
            (99.4, "s", " 99 s"),
            (12_345_678.0, "B", " 12MB"),
            (0.0995, "s", "100ms"),
            (61.0, "s", " 61 s"),
            (1536.0, "B", "1.5kB"),
            (999.0, "B", "999 B"),
            (999.5, "B", "1.0kB"),
            (5.0, "B", "5.0 B"),
        ] {
            assert_eq!(text(|out| put_scaled(out, value, unit)), shown, "{value}");
        }
    }

    #[test]
    fn a_host_is_a_name_and_a_port() {
        for (host, name, port) in [
            ("Ex.org:80", "Ex.org", Some(80)),
            ("ex.org", "ex.org", None),
            ("ex.org:", "ex.org", None),
            ("[::1]:8080", "::1", Some(8080)),
            ("[::1]", "::1", None),
            ("[::1]:x", "[::1]:x", None),
            ("192.0.2.1:0080", "192.0.2.1", Some(80)),
            ("ex.org:65536", "ex.org:65536", None),
            ("ex.org:+1", "ex.org:+1", None),
            ("::1", "::1", None),
            ("[redacted]", "[redacted]", None),
            (":80", "", Some(80)),
            ("", "", None),
        ] {
            assert_eq!(host_and_port(host.as_bytes()), (name.as_bytes(), port), "{host}");
        }
    }

    #[test]
    fn local_time_has_its_offset() {
        let at = 1_795_232_756;
        assert_eq!(text(|out| put_local_time(out, at, 0)), "21/Nov/2026:03:45:56 +0000");
        assert_eq!(text(|out| put_local_time(out, at, -12_600)), "21/Nov/2026:00:15:56 -0330");
        assert_eq!(text(|out| put_local_time(out, at, 20_700)), "21/Nov/2026:09:30:56 +0545");
    }

    #[test]
    fn users_are_read_as_nginx_does() {
        let user = |text: &str| user(text.as_bytes()).map(|user| String::from_utf8(user).unwrap());
        assert_eq!(user("Basic YWxpY2U6czNjcmV0").as_deref(), Some("alice"));
        assert_eq!(user("basic  YTpi").as_deref(), Some("a"));
        assert_eq!(user("BASIC QWxhZGRpbjpvcGVuIHNlc2FtZQ==").as_deref(), Some("Aladdin"));
        for none in
            ["", "Basic", "Basic ", "Basic YWxpY2U=", "Basic OnBhc3M=", "Bearer YTpi", "Basic a b", "[redacted]"]
        {
            assert_eq!(user(none), None, "{none}");
        }
    }
}
