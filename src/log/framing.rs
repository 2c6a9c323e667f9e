//! What stands around the text of one message: nothing but a line's end, a syslog header (RFC 5424), or the journal's fields.
//!
//! A message for a datagram socket begins with its length, four bytes in this machine's order, so that the backlog of a sink is one
//! run of bytes whatever it holds; [`super::output::Output`] takes the length off.

use std::sync::Arc;

use super::text::{put_date_time, put_number, put_padded};
use super::worker::WorkerName;

/// The longest message in bytes: one UDP datagram may have 65,507, and few receivers take that.
const LONGEST_SYSLOG: usize = 8 * 1024;
/// What a Unix datagram socket takes by its default buffers, with room to spare.
const LONGEST_JOURNAL: usize = 64 * 1024;
/// Bytes of the length before a message.
pub const LENGTH: usize = 4;
/// The facility `daemon` (RFC 5424 §6.2.1).
const DAEMON: u8 = 3;
/// By this name receivers know the lines.
const NAME: &str = "production_server";

/// How grave a message is, as syslog numbers it (RFC 5424 §6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Error conditions.
    Error = 3,
    /// Warning conditions.
    Warning = 4,
    /// Informational messages.
    Info = 6,
}

/// What a message is about.
#[derive(Clone, Copy, Debug)]
pub struct Heading<'a> {
    /// How grave it is.
    pub severity: Severity,
    /// `event`, `access` or `worker`.
    pub kind: &'static str,
    /// When it happened, in microseconds since 1970-01-01T00:00:00Z.
    pub time_micros: u64,
    /// The worker that said it.
    pub worker: Option<WorkerName<'a>>,
}

/// What stands around messages.
#[derive(Clone, Debug)]
pub enum Framing {
    /// A line feed behind each.
    Lines,
    /// RFC 5424; what stands between the time and the process id: host and program.
    Syslog(Arc<str>),
    /// The journal's native protocol.
    Journal,
}

impl Framing {
    /// RFC 5424 with this machine's name.
    pub fn syslog() -> Framing {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok()).unwrap_or_default();
        // PRINTUSASCII, 1 to 255 of them (RFC 5424 §6).
        let host: String = host.chars().filter(char::is_ascii_graphic).take(255).collect();
        Framing::Syslog(format!("{} {NAME}", if host.is_empty() { "-" } else { &host }).into())
    }

    /// Whether messages are datagrams.
    pub fn is_datagrams(&self) -> bool {
        !matches!(self, Framing::Lines)
    }

    /// Begins a message. Its text follows, then [`Framing::end`], which gets what this returns.
    pub fn begin(&self, out: &mut Vec<u8>, heading: &Heading<'_>) -> usize {
        let start = self.head(out, heading);
        self.text(out);
        start
    }

    /// Begins the text of a message, behind its head and the fields that are never to be cut.
    pub fn text(&self, out: &mut Vec<u8>) {
        if matches!(self, Framing::Journal) {
            out.extend_from_slice(b"\nMESSAGE=");
        }
    }

    /// Begins a message; fields may follow, then [`Framing::text`].
    pub fn head(&self, out: &mut Vec<u8>, heading: &Heading<'_>) -> usize {
        let start = out.len();
        match self {
            Framing::Lines => {}
            Framing::Syslog(about) => {
                out.extend_from_slice(&[0; LENGTH]);
                out.push(b'<');
                put_number(out, u64::from(DAEMON * 8 + heading.severity as u8));
                out.extend_from_slice(b">1 ");
                put_date_time(out, heading.time_micros / 1_000_000, b'T');
                out.push(b'.');
                put_padded(out, (heading.time_micros % 1_000_000) as u32, 6);
                out.extend_from_slice(b"Z ");
                out.extend_from_slice(about.as_bytes());
                out.push(b' ');
                let process = heading.worker.map(|worker| worker.pid).filter(|pid| *pid != 0);
                put_number(out, u64::from(process.unwrap_or_else(std::process::id)));
                out.push(b' ');
                out.extend_from_slice(heading.kind.as_bytes());
                // No structured data: there is no enterprise number for it.
                out.extend_from_slice(b" - ");
            }
            Framing::Journal => {
                out.extend_from_slice(&[0; LENGTH]);
                out.extend_from_slice(b"PRIORITY=");
                put_number(out, heading.severity as u64);
                out.extend_from_slice(b"\nSYSLOG_IDENTIFIER=");
                out.extend_from_slice(NAME.as_bytes());
                out.extend_from_slice(b"\nLOG_KIND=");
                out.extend_from_slice(heading.kind.as_bytes());
                if let Some(worker) = heading.worker {
                    out.extend_from_slice(b"\nWORKER=");
                    out.extend_from_slice(worker.label.as_bytes());
                    out.extend_from_slice(b"\nWORKER_APP=");
                    out.extend_from_slice(worker.app.as_bytes());
                    for (name, number) in [("ID", worker.id), ("PID", worker.pid), ("GENERATION", worker.generation)] {
                        out.extend_from_slice(b"\nWORKER_");
                        out.extend_from_slice(name.as_bytes());
                        out.push(b'=');
                        put_number(out, u64::from(number));
                    }
                }
            }
        }
        start
    }

    /// Adds a field of the journal before or behind the text; nothing elsewhere. Of what stands behind, the end is cut where a message is too long. `name` is made capital, its dots underscores; `put` appends the value,
    /// without line feeds.
    pub fn field(&self, out: &mut Vec<u8>, prefix: &str, name: &str, put: impl FnOnce(&mut Vec<u8>)) {
        if !matches!(self, Framing::Journal) {
            return;
        }
        out.push(b'\n');
        out.extend_from_slice(prefix.as_bytes());
        let capital = |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_uppercase() } else { b'_' };
        out.extend(name.bytes().map(capital));
        out.push(b'=');
        put(out);
    }

    /// The most bytes of a message.
    fn longest(&self) -> usize {
        match self {
            Framing::Lines => usize::MAX,
            Framing::Syslog(_) => LONGEST_SYSLOG,
            Framing::Journal => LONGEST_JOURNAL,
        }
    }

    /// Whether what began at `start` is longer than a message may be.
    #[inline]
    pub fn is_too_long(&self, out: &[u8], start: usize) -> bool {
        (out.len() - start).saturating_sub(LENGTH) > self.longest()
    }

    /// Ends a message that began at `start`. What is longer than receivers take is cut, between two characters.
    pub fn end(&self, out: &mut Vec<u8>, start: usize) {
        if matches!(self, Framing::Lines) {
            return out.push(b'\n');
        }
        if self.is_too_long(out, start) {
            let mut end = start + LENGTH + self.longest();
            // Not in the middle of a character of UTF-8, whose other bytes all begin with the bits 10.
            while end > start + LENGTH && out[end] & 0xc0 == 0x80 {
                end -= 1;
            }
            out.truncate(end);
        }
        if matches!(self, Framing::Journal) {
            out.push(b'\n');
        }
        let length = (out.len() - start - LENGTH) as u32;
        out[start..start + LENGTH].copy_from_slice(&length.to_ne_bytes());
    }

    /// How many messages stand in a run of whole ones.
    pub fn count(&self, mut bytes: &[u8]) -> u64 {
        if !self.is_datagrams() {
            return memchr::memchr_iter(b'\n', bytes).count() as u64;
        }
        let mut count = 0;
        while let Some((message, rest)) = first(bytes) {
            count += u64::from(!message.is_empty());
            bytes = rest;
        }
        count
    }
}

/// The first message of a run of them, without its length, and the rest.
pub fn first(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH>()?;
    rest.split_at_checked(u32::from_ne_bytes(*length) as usize)
}
