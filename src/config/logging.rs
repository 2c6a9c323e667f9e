//! What is written to the log, where it goes and how it looks.

mod pattern;

pub use pattern::{Part, Pattern, PatternField};

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

/// How much an event matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Part of a healthy life.
    Info,
    /// Odd; the server goes on.
    Warn,
    /// Something does not work.
    Error,
}

/// The access log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLogSettings {
    /// Where it goes.
    pub target: LogTarget,
    /// How a line looks.
    pub format: AccessLogFormat,
    /// What is hidden, whatever the format.
    pub redact: Redaction,
    /// Of which answers not all are logged. The first rule that has a status decides; a status without one is always logged.
    pub sampling: Vec<Sampling>,
}

impl AccessLogSettings {
    /// A log of every request, with nothing hidden.
    pub fn new(target: LogTarget, format: AccessLogFormat) -> AccessLogSettings {
        AccessLogSettings { target, format, redact: Redaction::default(), sampling: Vec::new() }
    }
}

/// Events of the server, and the lines of its workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLogSettings {
    /// Where they go. With stderr, the lines that workers write to stdout go to stdout; else all go there.
    pub target: LogTarget,
    /// How they look.
    pub format: EventFormat,
    /// Events below it are not written. Lines of workers are no events.
    pub level: Level,
}

impl Default for EventLogSettings {
    fn default() -> EventLogSettings {
        EventLogSettings { target: LogTarget::Stderr, format: EventFormat::Auto, level: Level::Info }
    }
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Nowhere.
    Off,
    /// To stdout.
    Stdout,
    /// To stderr.
    Stderr,
    /// To the end of a file, or into a named pipe.
    File(PathBuf),
    /// To syslog (RFC 5424), a datagram a line.
    Syslog(SyslogAddress),
    /// To the journal, by its own protocol, at that socket.
    Journald(PathBuf),
}

/// Where a syslog listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogAddress {
    /// A Unix datagram socket.
    Unix(PathBuf),
    /// A host, a name or an address without brackets, and a UDP port (RFC 5426).
    Udp(String, u16),
}

/// The local syslog's socket.
pub const DEV_LOG: &str = "/dev/log";
/// The journal's socket.
pub const JOURNAL: &str = "/run/systemd/journal/socket";
/// The port of syslog over UDP (RFC 5426 §3.3).
const SYSLOG_PORT: u16 = 514;

impl LogTarget {
    /// Reads `-`, `stdout`, `stderr`, `syslog`, `syslog:PATH`, `syslog:HOST[:PORT]`, `journald`, `journald:PATH` or the path of a file.
    ///
    /// # Errors
    /// What would have been right, beginning with "expected".
    pub fn read(text: &str) -> Result<LogTarget, String> {
        const EXPECTED: &str = "expected a path, stdout, stderr, syslog, syslog:PATH, syslog:HOST:PORT or journald";
        let path = |text: &str| {
            let fits = text.starts_with('/') && !text.contains('\0');
            if fits { Ok(PathBuf::from(text)) } else { Err(format!("expected the path of a socket behind {text:?}")) }
        };
        match text {
            "-" | "stdout" => Ok(LogTarget::Stdout),
            "stderr" => Ok(LogTarget::Stderr),
            "syslog" => Ok(LogTarget::Syslog(SyslogAddress::Unix(DEV_LOG.into()))),
            "journald" => Ok(LogTarget::Journald(JOURNAL.into())),
            _ if text.is_empty() || text.contains('\0') => Err(EXPECTED.to_owned()),
            _ => match text.split_once(':') {
                Some(("syslog", rest)) if rest.starts_with('/') => {
                    Ok(LogTarget::Syslog(SyslogAddress::Unix(path(rest)?)))
                }
                Some(("syslog", rest)) => udp(rest)
                    .map(LogTarget::Syslog)
                    .ok_or_else(|| "expected a path, or a host and a port from 1 to 65535, behind syslog:".to_owned()),
                Some(("journald", rest)) => {
                    path(rest).map(LogTarget::Journald).map_err(|_| "expected a path behind journald:".into())
                }
                _ => Ok(LogTarget::File(text.into())),
            },
        }
    }
}

fn udp(text: &str) -> Option<SyslogAddress> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, port.strip_prefix(':').or_else(|| port.is_empty().then_some(port))?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    let port = if port.is_empty() { SYSLOG_PORT } else { port.parse().ok().filter(|port| *port != 0)? };
    let plain = |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte));
    let known = host.parse::<IpAddr>().is_ok() || (!host.is_empty() && plain(host));
    // What looks like an IPv4 address and is none is no name either.
    let numbers = host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    (known && (!numbers || host.parse::<Ipv4Addr>().is_ok())).then(|| SyslogAddress::Udp(host.to_owned(), port))
}

impl fmt::Display for LogTarget {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogTarget::Off => formatter.write_str("nowhere"),
            LogTarget::Stdout => formatter.write_str("stdout"),
            LogTarget::Stderr => formatter.write_str("stderr"),
            LogTarget::File(path) => path.display().fmt(formatter),
            LogTarget::Syslog(SyslogAddress::Unix(path)) => write!(formatter, "syslog:{}", path.display()),
            LogTarget::Syslog(SyslogAddress::Udp(host, port)) if host.contains(':') => {
                write!(formatter, "syslog:[{host}]:{port}")
            }
            LogTarget::Syslog(SyslogAddress::Udp(host, port)) => write!(formatter, "syslog:{host}:{port}"),
            LogTarget::Journald(path) => write!(formatter, "journald:{}", path.display()),
        }
    }
}

/// How a line of the access log looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// Short and aligned, coloured on a terminal.
    Human,
    /// nginx's combined format, byte for byte.
    Combined,
    /// Apache's common format, byte for byte.
    Common,
    /// One JSON object a line, with OpenTelemetry's names.
    Json,
    /// The line for people of the Rip server.
    Rip,
    /// The JSON line of the Rip server.
    RipJson,
    /// A pattern of the operator's own.
    Pattern(Arc<Pattern>),
}

/// The formats with a name.
pub const FORMATS: &[(&str, AccessLogFormat)] = &[
    ("human", AccessLogFormat::Human),
    ("combined", AccessLogFormat::Combined),
    ("common", AccessLogFormat::Common),
    ("json", AccessLogFormat::Json),
    ("rip", AccessLogFormat::Rip),
    ("rip-json", AccessLogFormat::RipJson),
];

impl AccessLogFormat {
    /// Reads the name of a format, or a pattern, which has a `{` in it.
    ///
    /// # Errors
    /// What would have been right, beginning with "expected".
    pub fn read(text: &str) -> Result<AccessLogFormat, String> {
        if text.contains(['{', '}']) {
            return Pattern::read(text)
                .map(|pattern| AccessLogFormat::Pattern(Arc::new(pattern)))
                .map_err(|error| error.message);
        }
        let found = FORMATS.iter().find(|(name, _)| text.eq_ignore_ascii_case(name));
        found.map(|(_, format)| format.clone()).ok_or_else(|| {
            let names: Vec<&str> = FORMATS.iter().map(|(name, _)| *name).collect();
            format!("expected {} or a pattern such as \"{{client}} {{method}} {{path}} {{status}}\"", names.join(", "))
        })
    }
}

/// How events look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFormat {
    /// Text on a terminal, in syslog and in the journal, JSON otherwise.
    Auto,
    /// Text.
    Human,
    /// One JSON object a line; lines of the workers, too.
    Json,
}

/// What access lines do not show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redaction {
    /// Names of request fields in small letters.
    pub fields: Vec<String>,
    /// Names of query parameters, in small letters and not percent-encoded.
    pub query: Vec<String>,
}

/// How many of the answers with some statuses are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// The lowest status.
    pub from: u16,
    /// The highest one.
    pub to: u16,
    /// One of so many; 0: none.
    pub one_of: u32,
}

impl Sampling {
    /// Reads `2xx:1/100`, `404:0` or `5xx:all`.
    ///
    /// # Errors
    /// What would have been right, beginning with "expected".
    pub fn read(text: &str) -> Result<Sampling, String> {
        const EXPECTED: &str = "expected a status or its class, a colon, and of how many one: 1/N, all or 0";
        let (status, share) = text.split_once(':').ok_or(EXPECTED)?;
        let status = status.trim();
        let (from, to) = match status.as_bytes() {
            [class @ b'1'..=b'5', b'x' | b'X', b'x' | b'X'] => {
                let first = u16::from(class - b'0') * 100;
                (first, first + 99)
            }
            [b'1'..=b'5', ..] if status.len() == 3 => {
                let status = status.parse().map_err(|_| EXPECTED)?;
                (status, status)
            }
            _ => return Err(EXPECTED.to_owned()),
        };
        let one_of = match share.trim() {
            "all" => 1,
            "none" | "0" => 0,
            share => {
                let of = share.strip_prefix("1/").and_then(|of| of.parse().ok());
                of.filter(|of| (1..=1_000_000).contains(of)).ok_or(EXPECTED)?
            }
        };
        Ok(Sampling { from, to, one_of })
    }
}

/// Reads the name of a field for [`Redaction::fields`].
///
/// # Errors
/// What would have been right, beginning with "expected".
pub fn field_name(text: &str) -> Result<String, String> {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if text.is_empty() || !text.bytes().all(token) {
        return Err("expected the name of a header field".to_owned());
    }
    Ok(text.to_ascii_lowercase())
}

/// Reads the name of a parameter for [`Redaction::query`].
///
/// # Errors
/// What would have been right, beginning with "expected".
pub fn parameter_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(['&', ';', '=', '%', '?', '#']) || text.contains(char::is_control) {
        return Err("expected the name of a query parameter, not encoded".to_owned());
    }
    Ok(text.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_and_shown() {
        let udp = |host: &str, port| LogTarget::Syslog(SyslogAddress::Udp(host.to_owned(), port));
        for (text, target, shown) in [
            ("-", LogTarget::Stdout, "stdout"),
            ("stderr", LogTarget::Stderr, "stderr"),
            ("a.log", LogTarget::File("a.log".into()), "a.log"),
            ("./syslog", LogTarget::File("./syslog".into()), "./syslog"),
            ("syslog", LogTarget::Syslog(SyslogAddress::Unix("/dev/log".into())), "syslog:/dev/log"),
            ("syslog:/run/log", LogTarget::Syslog(SyslogAddress::Unix("/run/log".into())), "syslog:/run/log"),
            ("syslog:192.0.2.1", udp("192.0.2.1", 514), "syslog:192.0.2.1:514"),
            ("syslog:logs.example:5514", udp("logs.example", 5514), "syslog:logs.example:5514"),
            ("syslog:[2001:db8::1]:5514", udp("2001:db8::1", 5514), "syslog:[2001:db8::1]:5514"),
            ("journald", LogTarget::Journald(JOURNAL.into()), "journald:/run/systemd/journal/socket"),
            ("journald:/x", LogTarget::Journald("/x".into()), "journald:/x"),
        ] {
            assert_eq!((LogTarget::read(text), target.to_string().as_str()), (Ok(target), shown));
        }
        for text in ["", "syslog:", "syslog:300.1.1.1", "syslog:h:0", "syslog:h:70000", "syslog:a b", "journald:x"] {
            assert!(LogTarget::read(text).unwrap_err().starts_with("expected"), "{text}");
        }
    }

    #[test]
    fn samplings_are_read() {
        let read = |text| Sampling::read(text).map(|rule| (rule.from, rule.to, rule.one_of));
        assert_eq!(read("2xx:1/100"), Ok((200, 299, 100)));
        assert_eq!(read("404:0"), Ok((404, 404, 0)));
        assert_eq!(read(" 5XX : all "), Ok((500, 599, 1)));
        for text in ["", "2xx", "6xx:all", "20x:all", "2xx:2/100", "2xx:1/0", "2xx:10", "2000:0", "2xx:-1"] {
            assert!(read(text).unwrap_err().starts_with("expected"), "{text}");
        }
    }

    #[test]
    fn names_to_hide_are_read_in_small_letters() {
        assert_eq!(field_name("X-Token").as_deref(), Ok("x-token"));
        assert_eq!(parameter_name("Api Key").as_deref(), Ok("api key"));
        assert!(field_name("a b").is_err() && field_name("").is_err());
        assert!(parameter_name("a=b").is_err() && parameter_name("%61").is_err() && parameter_name("").is_err());
    }
}
