//! A format of the operator's own: text with names in braces, as in `{client} "{method} {path}" {status}`.

use std::ops::Range;

use crate::config::file::near;

/// What a pattern puts into a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternField {
    /// When the request came, in UTC: `2026-11-21T03:45:56.123Z`.
    Time,
    /// The same in local time as nginx and Apache write it: `21/Nov/2026:03:45:56 +0000`.
    LocalTime,
    /// The client's address, or `unix:`.
    Client,
    /// The user of `Authorization: Basic`.
    User,
    /// The method.
    Method,
    /// The request target: path and query.
    Target,
    /// The path.
    Path,
    /// What stands behind `?`.
    Query,
    /// `HTTP/1.1`.
    Protocol,
    /// The host that was asked for.
    Host,
    /// The status; 499 when the client left before.
    Status,
    /// Bytes of the answer's body that were sent.
    Bytes,
    /// From the request's first byte to the answer's last, in milliseconds with three decimals.
    DurationMs,
    /// How long it waited for a worker.
    QueueMs,
    /// How long the worker took.
    UpstreamMs,
    /// The app's name.
    App,
    /// The worker's number.
    Worker,
    /// The request's id.
    RequestId,
    /// The Referer field.
    Referer,
    /// The User-Agent field.
    UserAgent,
    /// What the app said in `Rip-Mark`.
    Mark,
    /// The answer's media type without its parameters.
    Type,
    /// Of how many such answers this one is logged (`sample`).
    OneOf,
}

/// The names that may stand in braces, and what each shows.
pub const NAMES: &[(&str, PatternField, &str)] = &[
    ("time", PatternField::Time, "when the request came, in UTC: `2026-11-21T03:45:56.123Z`"),
    (
        "time_local",
        PatternField::LocalTime,
        "the same in local time as nginx and Apache write it: `21/Nov/2026:03:45:56 +0000`",
    ),
    ("client", PatternField::Client, "the client's address, or `unix:`"),
    ("user", PatternField::User, "the user of `Authorization: Basic`"),
    ("method", PatternField::Method, "the method"),
    ("target", PatternField::Target, "the request target: path and query"),
    ("path", PatternField::Path, "the path"),
    ("query", PatternField::Query, "what stands behind `?`"),
    ("protocol", PatternField::Protocol, "`HTTP/1.1`"),
    ("host", PatternField::Host, "the host that was asked for"),
    ("status", PatternField::Status, "the status; 499 when the client left before"),
    ("bytes", PatternField::Bytes, "bytes of the answer's body that were sent"),
    (
        "duration_ms",
        PatternField::DurationMs,
        "from the request's first byte to the answer's last, in milliseconds with three decimals",
    ),
    ("queue_ms", PatternField::QueueMs, "how long it waited for a worker"),
    ("upstream_ms", PatternField::UpstreamMs, "how long the worker took"),
    ("app", PatternField::App, "the app's name"),
    ("worker", PatternField::Worker, "the worker's number"),
    ("request_id", PatternField::RequestId, "the request's id"),
    ("referer", PatternField::Referer, "the Referer field"),
    ("user_agent", PatternField::UserAgent, "the User-Agent field"),
    ("mark", PatternField::Mark, "what the app said in `Rip-Mark`"),
    ("type", PatternField::Type, "the answer's media type without its parameters"),
    ("one_of", PatternField::OneOf, "of how many such answers this one is logged (`sample`)"),
];

/// What stands before the name of a request field in braces.
const HEADER: &str = "header:";
/// The longest pattern, in bytes.
const LONGEST: usize = 4096;

/// One part of a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text as it stands there.
    Text(String),
    /// One of [`NAMES`]. Outside of quotes, spaces and that byte are escaped in it, so that no value ends its field.
    Field(PatternField, Option<u8>),
    /// A request field, by its name in small letters; likewise.
    Header(String, Option<u8>),
}

/// A pattern that was read. It has at least one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// Its parts in their order.
    pub parts: Vec<Part>,
}

/// What is wrong with a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PatternError {
    /// What would have been right, beginning with "expected".
    pub message: String,
    /// Where in the text.
    pub at: Range<usize>,
}

/// Outside of quotes: what would end the field.
pub const SPACE: u8 = b' ';

impl Pattern {
    /// Reads a pattern. `{{` and `}}` stand for the braces themselves.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn read(text: &str) -> Result<Pattern, PatternError> {
        let wrong = |message: &str, at: Range<usize>| Err(PatternError { message: message.to_owned(), at });
        if text.len() > LONGEST {
            return wrong("expected a pattern of at most 4096 bytes", 0..text.len());
        }
        let (mut parts, mut literal, mut quoted) = (Vec::new(), String::new(), false);
        let mut letters = text.char_indices().peekable();
        while let Some((start, letter)) = letters.next() {
            match letter {
                '{' | '}' if letters.next_if(|(_, next)| *next == letter).is_some() => literal.push(letter),
                '}' => return wrong("expected `{` before this `}`, or `}}` for the letter", start..start + 1),
                '{' => {
                    let inside =
                        text[start + 1..].find(['{', '}']).filter(|at| text.as_bytes()[start + 1 + at] == b'}');
                    let Some(length) = inside.map(|at| at + 1) else {
                        return wrong("expected a `}` behind this `{`, or `{{` for the letter", start..start + 1);
                    };
                    let end = start + length;
                    if !literal.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut literal)));
                    }
                    // The byte that ends the field, unless quotes do.
                    let next = text.as_bytes().get(end + 1).copied().filter(|next| !next.is_ascii_alphanumeric());
                    let stop = (!quoted).then(|| next.filter(|next| b"|,;<>()[]'`~^".contains(next)).unwrap_or(SPACE));
                    parts.push(part(&text[start + 1..end], start + 1..end, stop)?);
                    while letters.next_if(|(at, _)| *at <= end).is_some() {}
                }
                _ if letter.is_control() && letter != '\t' => {
                    return wrong("expected no control characters in a pattern", start..start + letter.len_utf8());
                }
                _ => {
                    quoted ^= letter == '"';
                    literal.push(letter);
                }
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Text(literal));
        }
        if !parts.iter().any(|part| !matches!(part, Part::Text(_))) {
            return wrong("expected a name in braces, as in {status}", 0..text.len());
        }
        Ok(Pattern { parts })
    }
}

fn part(name: &str, at: Range<usize>, stop: Option<u8>) -> Result<Part, PatternError> {
    if let Some(header) = name.strip_prefix(HEADER) {
        let at = at.start + HEADER.len()..at.end.max(at.start + HEADER.len());
        return super::field_name(header)
            .map(|header| Part::Header(header, stop))
            .map_err(|message| PatternError { message, at });
    }
    if let Some((_, field, _)) = NAMES.iter().find(|(known, ..)| *known == name) {
        return Ok(Part::Field(*field, stop));
    }
    let name = crate::config::report::shown(name);
    let names = || NAMES.iter().map(|(known, ..)| *known);
    let message = match near(&name, names()) {
        Some(close) => format!("expected a known name in braces, not {{{name}}}: did you mean {{{close}}}?"),
        None => {
            let all: Vec<&str> = names().collect();
            format!("expected a known name in braces, not {{{name}}}: {{{}}} or {{header:NAME}}", all.join("}, {"))
        }
    };
    // An empty name has nothing to point at but its braces.
    let at = if at.is_empty() { at.start - 1..at.end + 1 } else { at };
    Err(PatternError { message, at })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read() {
        let parts = Pattern::read("{client} {{x}} \"{path}\"|{header:X-A}|").unwrap().parts;
        let text = |text: &str| Part::Text(text.to_owned());
        let expected = [
            Part::Field(PatternField::Client, Some(b' ')),
            text(" {x} \""),
            Part::Field(PatternField::Path, None),
            text("\"|"),
            Part::Header("x-a".to_owned(), Some(b'|')),
            text("|"),
        ];
        assert_eq!(parts, expected);
        for (name, field, _) in NAMES {
            let read = Pattern::read(&format!("{{{name}}}")).unwrap().parts;
            assert_eq!(read, [Part::Field(*field, Some(SPACE))]);
        }
    }

    #[test]
    fn the_page_about_logs_has_every_name() {
        let page = include_str!("../../../docs/logs.md");
        for (name, _, help) in NAMES {
            assert!(page.contains(&format!("| `{{{name}}}` | {help} |")), "{name}");
        }
        for (name, _) in super::super::FORMATS {
            assert!(page.contains(&format!("`{name}`")), "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, at, message) in [
            ("{client} {stauts}", 10..16, "did you mean {status}?"),
            ("{zzzzzzz}", 1..8, "or {header:NAME}"),
            ("a{}", 1..3, "not {}"),
            ("{header:a b}", 8..11, "the name of a header field"),
            ("{header:}", 8..8, "the name of a header field"),
            ("{path", 0..1, "expected a `}`"),
            ("{path\" {status}", 0..1, "expected a `}`"),
            ("x }", 2..3, "expected `{`"),
            ("text {{}}", 0..9, "a name in braces"),
            ("{path}\n", 6..7, "no control characters"),
        ] {
            let error = Pattern::read(text).unwrap_err();
            assert_eq!(error.at, at, "{text}");
            assert!(error.message.starts_with("expected") && error.message.contains(message), "{}", error.message);
        }
        assert!(Pattern::read(&"{path}".repeat(1000)).is_err());
    }
}
