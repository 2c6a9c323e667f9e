//! Access lines by a pattern of the operator's own. What a request lacks is `-`.

use super::access::Shown;
use super::lines::{Stamp, put_address, put_millis_of_second, user};
use super::redact::Hidden;
use super::text::{put_escaped, put_escaped_but, put_milliseconds, put_number};
use crate::config::{Part, PatternField};
use crate::http::find_lines;

/// The request field that a pattern's name stands for, if it does.
pub fn header_of(field: PatternField) -> Option<&'static str> {
    match field {
        PatternField::Host => Some("host"),
        PatternField::Referer => Some("referer"),
        PatternField::UserAgent => Some("user-agent"),
        PatternField::User => Some("authorization"),
        _ => None,
    }
}

/// Appends a line without its end.
pub fn put(out: &mut Vec<u8>, stamp: &mut Stamp, shown: &Shown<'_>, parts: &[Part], hidden: &Hidden) {
    for part in parts {
        match part {
            Part::Text(text) => out.extend_from_slice(text.as_bytes()),
            Part::Field(field, stop) => put_field(out, stamp, shown, *field, *stop),
            Part::Header(name, stop) => {
                let [value] = find_lines(shown.record.head, [name.as_bytes()]);
                let mut scratch = Vec::new();
                let value = hidden.field(name, value);
                // A referer shows its query under this name, too.
                let value = if name == "referer" { hidden.query_of(value, &mut scratch) } else { value };
                put_value(out, value, *stop);
            }
        }
    }
}

fn put_field(out: &mut Vec<u8>, stamp: &mut Stamp, shown: &Shown<'_>, field: PatternField, stop: Option<u8>) {
    let record = shown.record;
    let second = record.time_micros / 1_000_000;
    let (path, query) = shown.path_and_query();
    let mut number = |number: Option<u64>| match number {
        Some(number) => put_number(out, number),
        None => out.push(b'-'),
    };
    match field {
        PatternField::Status => return number(Some(u64::from(record.status))),
        PatternField::Bytes => return number(Some(record.bytes)),
        PatternField::Worker => return number(record.worker.map(u64::from)),
        PatternField::OneOf => return number(Some(u64::from(shown.one_of))),
        _ => {}
    }
    let mut milliseconds = |micros: Option<u64>| match micros {
        Some(micros) => put_milliseconds(out, micros),
        None => out.push(b'-'),
    };
    match field {
        PatternField::DurationMs => return milliseconds(Some(record.duration_us)),
        PatternField::QueueMs => return milliseconds(record.queue_us),
        PatternField::UpstreamMs => return milliseconds(record.upstream_us),
        PatternField::Time => {
            out.extend_from_slice(stamp.utc(second));
            put_millis_of_second(out, record.time_micros);
            return out.push(b'Z');
        }
        PatternField::LocalTime => return out.extend_from_slice(stamp.local(second)),
        PatternField::Client => return put_address(out, record.client),
        PatternField::User => {
            let user = user(shown.authorization).unwrap_or_default();
            return put_value(out, &user, stop);
        }
        _ => {}
    }
    let value = match field {
        PatternField::Method => record.method,
        PatternField::Target => shown.target,
        PatternField::Path => path,
        PatternField::Query => query,
        PatternField::Protocol => record.protocol.as_bytes(),
        PatternField::Host => shown.host,
        PatternField::App => record.app.as_bytes(),
        PatternField::RequestId => record.request_id,
        PatternField::Referer => shown.referer,
        PatternField::UserAgent => shown.user_agent,
        PatternField::Mark => shown.mark(),
        PatternField::Type => record.note.map_or(&b""[..], |note| &note.media_type),
        _ => b"",
    };
    put_value(out, value, stop);
}

/// A value, so that it ends neither its line nor, by `stop` or a space, its field.
fn put_value(out: &mut Vec<u8>, value: &[u8], stop: Option<u8>) {
    match stop {
        _ if value.is_empty() => out.push(b'-'),
        Some(stop) => put_escaped_but(out, value, stop),
        None => put_escaped(out, value),
    }
}
