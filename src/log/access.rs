//! The access log of one loop: lines gather in a buffer of the loop's own and go to the sink at the end of a turn.
//!
//! - A line costs no allocation and no system call: the time stamp is made once a second, numbers go through tables, and
//!   the buffer keeps its memory.
//! - Of a request's head only those lines are looked for that the format shows.
//! - Where the log goes and how it looks may change at any time: a loop sees that at the end of its turn, by one number.

use std::net::IpAddr;
use std::sync::Arc;

use super::Inner;
use super::framing::{Framing, Heading, Severity};
use super::lines::{self, Stamp};
use super::pattern;
use super::redact::Hidden;
use super::sink::{Handle, Source};
use super::text::Piece;
use crate::config::{AccessLogFormat, AccessLogSettings, Part, PatternField, Sampling};
use crate::http::head::{Logged, Response};
use crate::http::{find_lines, find_present};

/// A buffer that large is handed over within the turn.
const FULL: usize = 64 * 1024;

/// One answered request. An empty slice stands for what the request did not have.
#[derive(Clone, Copy, Debug, Default)]
pub struct AccessRecord<'a> {
    /// When its first byte came, in microseconds since 1970-01-01T00:00:00Z.
    pub time_micros: u64,
    /// Who asked; `None`: somebody on a Unix socket, who has no address, and is written as `unix:`, as nginx does.
    pub client: Option<IpAddr>,
    /// The method as it came; empty, as target and protocol are, where no start line was understood.
    pub method: &'a [u8],
    /// The request target as it came.
    pub target: &'a [u8],
    /// The protocol as in a request line: `HTTP/1.1`.
    pub protocol: &'a str,
    /// The request's head: its fields are looked for here.
    pub head: &'a [u8],
    /// The values of `Host`, `Referer` and `User-Agent`, where they are known.
    pub shown: Option<[&'a [u8]; 3]>,
    /// The answer's status.
    pub status: u16,
    /// Bytes of the answer's body that were sent.
    pub bytes: u64,
    /// How long that took.
    pub took: Took,
    /// The app that was asked.
    pub app: &'a str,
    /// Which worker answered.
    pub worker: Option<u32>,
    /// The request's id.
    pub request_id: &'a [u8],
    /// What the answer said for the log.
    pub note: Option<&'a AnswerNote>,
}

/// How long a request took, and what of that time went where, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Took {
    /// From the first byte of the request to the last of the answer.
    pub duration_us: u64,
    /// Spent waiting for a worker, if a worker was asked for.
    pub queue_us: Option<u64>,
    /// From the worker's start on it to its last byte.
    pub upstream_us: Option<u64>,
}

/// What an answer says that only the log wants: kept where the format shows it, or the app asked for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnswerNote {
    /// No line is to be written (`Rip-No-Log: 1`).
    pub silent: bool,
    /// What the app wants its line to say (`Rip-Mark`); possibly empty.
    pub mark: Box<[u8]>,
    /// The media type without its parameters; possibly empty.
    pub media_type: Box<[u8]>,
}

/// The most bytes of each text where a line is too long: escaped as they may be, all of them are shorter than any message.
const SHORTENED: usize = 128;

fn shortened(text: &[u8]) -> &[u8] {
    &text[..text.len().min(SHORTENED)]
}

impl AnswerNote {
    fn shortened(&self) -> AnswerNote {
        let [mark, media_type] = [&self.mark, &self.media_type].map(|text| shortened(text).into());
        AnswerNote { mark, media_type, ..*self }
    }
}

impl<'a> AccessRecord<'a> {
    fn shortened(&self) -> AccessRecord<'a> {
        AccessRecord { method: shortened(self.method), request_id: shortened(self.request_id), ..*self }
    }
}

/// How lines look, for all loops.
pub(super) struct Look {
    format: AccessLogFormat,
    framing: Framing,
    colour: bool,
    hidden: Hidden,
    sampling: Vec<Sampling>,
    /// Whether a line shows the answer's media type.
    shows_answer: bool,
    /// The request fields that a line shows, as a head would have them.
    names: Vec<Box<[u8]>>,
}

impl Look {
    /// The values of `Host`, `Referer`, `User-Agent` and `Authorization`, as far as the format shows them, and whether the second and
    /// the third are not there at all.
    fn fields_of<'a>(&self, record: &AccessRecord<'a>) -> ([&'a [u8]; 4], [bool; 2]) {
        match &self.format {
            AccessLogFormat::Json => {
                let found = || find_lines(record.head, [b"host", b"referer", b"user-agent"]);
                let [host, referer, user_agent] = record.shown.unwrap_or_else(found);
                ([host, referer, user_agent, b""], [false; 2])
            }
            AccessLogFormat::Combined => {
                let found = find_present(record.head, [b"referer", b"user-agent", b"authorization"]);
                let absent = [found[0].is_none(), found[1].is_none()];
                let [referer, user_agent, authorization] = found.map(Option::unwrap_or_default);
                ([b"", referer, user_agent, authorization], absent)
            }
            AccessLogFormat::Pattern(_) if !self.names.is_empty() => {
                (find_lines(record.head, [b"host", b"referer", b"user-agent", b"authorization"]), [false; 2])
            }
            _ => ([b""; 4], [false; 2]),
        }
    }

    pub fn new(settings: &AccessLogSettings, framing: Framing, colour: bool) -> Look {
        let format = settings.format.clone();
        let names: &[&str] = match &format {
            AccessLogFormat::Combined => &["authorization", "referer", "user-agent"],
            AccessLogFormat::Json => &["host", "referer", "user-agent"],
            _ => &[],
        };
        let mut names: Vec<Box<[u8]>> = names.iter().map(|name| name.as_bytes().into()).collect();
        let mut shows_answer = matches!(format, AccessLogFormat::Rip | AccessLogFormat::RipJson);
        if let AccessLogFormat::Pattern(pattern) = &format {
            for part in &pattern.parts {
                match part {
                    Part::Header(name, _) => names.push(name.as_bytes().into()),
                    Part::Field(field, _) => {
                        shows_answer |= *field == PatternField::Type;
                        names.extend(pattern::header_of(*field).map(|name| name.as_bytes().into()));
                    }
                    Part::Text(_) => {}
                }
            }
        }
        let hidden = Hidden::new(&settings.redact);
        Look { format, framing, colour, hidden, sampling: settings.sampling.clone(), shows_answer, names }
    }
}

/// What all formats work on: a record with its fields found, and hidden what is to be hidden.
pub(super) struct Shown<'a> {
    pub record: &'a AccessRecord<'a>,
    pub target: &'a [u8],
    pub host: &'a [u8],
    pub referer: &'a [u8],
    pub user_agent: &'a [u8],
    /// The value of the Authorization field.
    pub authorization: &'a [u8],
    /// Of how many such requests this one is logged.
    pub one_of: u32,
}

impl<'a> Shown<'a> {
    /// The target's path and query.
    pub fn path_and_query(&self) -> (&'a [u8], &'a [u8]) {
        match memchr::memchr(b'?', self.target) {
            Some(mark) => (&self.target[..mark], &self.target[mark + 1..]),
            None => (self.target, &b""[..]),
        }
    }

    fn shortened(&self) -> Shown<'a> {
        let [target, host, referer, user_agent] =
            [self.target, self.host, self.referer, self.user_agent].map(shortened);
        Shown { target, host, referer, user_agent, ..*self }
    }

    /// What the app wants its line to say.
    pub fn mark(&self) -> &'a [u8] {
        self.record.note.map_or(&[], |note| &note.mark)
    }
}

/// One loop's access log.
pub struct AccessLog {
    log: Arc<Inner>,
    /// Which change of the settings this follows.
    version: u64,
    sink: Option<Arc<Handle>>,
    look: Arc<Look>,
    buffer: Vec<u8>,
    lines: u64,
    stamp: Stamp,
    /// How many of each rule of the sampling were seen.
    seen: Vec<u32>,
    /// Memory for targets and referers in which something is hidden.
    scratch: [Vec<u8>; 2],
    /// Memory for a line that is being made.
    piece: Box<Piece>,
}

impl AccessLog {
    pub(super) fn new(log: Arc<Inner>) -> AccessLog {
        let (version, sink, look) = log.access();
        let seen = vec![0; look.sampling.len()];
        let buffer = if sink.is_some() { Vec::with_capacity(FULL) } else { Vec::new() };
        let stamp = Stamp::default();
        AccessLog {
            log,
            version,
            sink,
            look,
            buffer,
            lines: 0,
            stamp,
            seen,
            scratch: Default::default(),
            piece: Box::default(),
        }
    }

    /// Whether anything is kept; if not, the caller need not gather a record.
    #[inline]
    pub fn enabled(&self) -> bool {
        self.sink.is_some()
    }

    /// What of an answer's head, with which `bytes` begin, is to be kept for its line, if anything.
    #[inline]
    pub fn note(&self, bytes: &[u8], response: &Response) -> Option<Box<AnswerNote>> {
        let Logged { silent, mark, media_type } = response.logged;
        if self.sink.is_none() || !(silent || !mark.is_empty() || self.look.shows_answer) {
            return None;
        }
        let media_type = media_type.of(bytes);
        let end = memchr::memchr(b';', media_type).unwrap_or(media_type.len());
        let media_type = media_type[..end].trim_ascii().into();
        Some(Box::new(AnswerNote { silent, mark: mark.of(bytes).into(), media_type }))
    }

    /// The lines of a request's head that its access line will show, with its first line, in the form of a head: for requests that
    /// last long.
    pub fn digest(&self, head: &[u8]) -> Vec<u8> {
        let line = memchr::memchr(b'\n', head).map_or(0, |end| end + 1);
        let mut kept = head[..line].to_vec();
        for name in &self.look.names {
            let [value] = find_lines(head, [name]);
            kept.extend([name, &b": "[..], value, b"\r\n"].into_iter().flatten());
        }
        kept
    }

    /// Adds a line, unless the app or the sampling leaves it out.
    pub fn record(&mut self, record: &AccessRecord<'_>) {
        if self.sink.is_none() || record.note.is_some_and(|note| note.silent) {
            return;
        }
        let Some(one_of) = self.sample(record.status) else { return };
        self.put(record, one_of);
        self.lines += 1;
        if self.buffer.len() >= FULL {
            self.hand_over();
        }
    }

    fn put(&mut self, record: &AccessRecord<'_>, one_of: u32) {
        let (look, mut record) = (&*self.look, *record);
        let ([mut host, mut referer, mut user_agent, mut authorization], absent) = look.fields_of(&record);
        let mut target = record.target;
        let [of_target, of_referer] = &mut self.scratch;
        if look.hidden.any() {
            target = look.hidden.query_of(target, of_target);
            referer = look.hidden.field("referer", look.hidden.query_of(referer, of_referer));
            record.request_id = look.hidden.field("x-request-id", record.request_id);
            user_agent = look.hidden.field("user-agent", user_agent);
            host = look.hidden.field("host", host);
            // The user's name comes from there.
            authorization = look.hidden.field("authorization", authorization);
        }
        // nginx writes a field that is there and empty as it is.
        let or_dash = |value, absent| if absent { &b"-"[..] } else { value };
        let (referer, user_agent) = (or_dash(referer, absent[0]), or_dash(user_agent, absent[1]));
        let record = &record;
        let shown = Shown { record, target, host, referer, user_agent, authorization, one_of };
        let second = record.time_micros / 1_000_000;
        // When the answer ended: nginx' time is when it writes a line, as that of a message is when it was made (RFC 5424 §6.2.3).
        let ended = record.time_micros.saturating_add(record.took.duration_us);
        let out = &mut self.buffer;
        let heading = Heading { severity: Severity::Info, kind: "access", time_micros: ended, worker: None };
        let start = look.framing.head(out, &heading);
        if matches!(look.framing, Framing::Journal) {
            lines::journal_head(out, &look.framing, &shown);
        }
        look.framing.text(out);
        let text = out.len();
        match &look.format {
            AccessLogFormat::Human => lines::human(out, self.stamp.clock(second), &shown, look.colour),
            AccessLogFormat::Combined => lines::combined(out, self.stamp.local(ended / 1_000_000), &shown),
            AccessLogFormat::Common => lines::common(out, self.stamp.local(second), &shown),
            AccessLogFormat::Json => lines::json(out, &mut self.piece, self.stamp.utc(second), &shown),
            AccessLogFormat::Rip => lines::rip(out, self.stamp.rip(second), &shown),
            AccessLogFormat::RipJson => lines::rip_json(out, self.stamp.utc(second), &shown),
            AccessLogFormat::Pattern(parts) => pattern::put(out, &mut self.stamp, &shown, &parts.parts, &look.hidden),
        }
        let is_json = matches!(look.format, AccessLogFormat::Json | AccessLogFormat::RipJson);
        if is_json && look.framing.is_too_long(out, start) {
            // An object that is cut anywhere is none.
            out.truncate(text);
            let utc = self.stamp.utc(second);
            let note = record.note.map(AnswerNote::shortened);
            let record = AccessRecord { note: note.as_ref(), ..record.shortened() };
            let shown = Shown { record: &record, ..shown.shortened() };
            match look.format {
                AccessLogFormat::Json => lines::json(out, &mut self.piece, utc, &shown),
                _ => lines::rip_json(out, utc, &shown),
            }
        }
        if matches!(look.framing, Framing::Journal) {
            lines::journal_texts(out, &look.framing, &shown);
        }
        look.framing.end(out, start);
    }

    /// One line, without a sink.
    #[cfg(test)]
    pub(super) fn line(mut self, look: Look, record: &AccessRecord<'_>) -> Vec<u8> {
        self.look = Arc::new(look);
        self.put(record, 1);
        std::mem::take(&mut self.buffer)
    }

    /// Whether an answer with that status is to be logged, and then of how many it is one.
    fn sample(&mut self, status: u16) -> Option<u32> {
        let Some(rule) = self.look.sampling.iter().position(|rule| (rule.from..=rule.to).contains(&status)) else {
            return Some(1);
        };
        let one_of = self.look.sampling[rule].one_of;
        if one_of == 0 {
            return None;
        }
        let seen = &mut self.seen[rule];
        let first = *seen == 0;
        *seen = (*seen + 1) % one_of;
        first.then_some(one_of)
    }

    /// Hands what has gathered to the log's thread, or drops and counts it, and looks whether the log has changed. To be called at
    /// the end of a turn.
    #[inline]
    pub fn flush(&mut self) {
        if self.lines > 0 {
            self.hand_over();
        }
        if self.log.version() != self.version {
            self.renew();
        }
    }

    fn hand_over(&mut self) {
        if let Some(sink) = &self.sink {
            sink.push(Source::Access, &self.buffer, self.lines);
        }
        self.buffer.clear();
        self.lines = 0;
    }

    #[cold]
    fn renew(&mut self) {
        (self.version, self.sink, self.look) = self.log.access();
        self.seen = vec![0; self.look.sampling.len()];
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        self.hand_over();
    }
}
