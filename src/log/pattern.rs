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
    let value = match field {
        PatternField::Status => return put_number(out, u64::from(record.status)),
        PatternField::Bytes => return put_number(out, record.bytes),
        PatternField::OneOf => return put_number(out, u64::from(shown.one_of)),
        PatternField::Worker => return put_known(out, record.worker.map(u64::from), put_number),
        PatternField::DurationMs => return put_milliseconds(out, record.took.duration_us),
        PatternField::QueueMs => return put_known(out, record.took.queue_us, put_milliseconds),
        PatternField::UpstreamMs => return put_known(out, record.took.upstream_us, put_milliseconds),
        PatternField::Time => {
            out.extend_from_slice(stamp.utc(second));
            put_millis_of_second(out, record.time_micros);
            return out.push(b'Z');
        }
        PatternField::LocalTime => return out.extend_from_slice(stamp.local(second)),
        PatternField::Client => return put_address(out, record.client),
        PatternField::User => return put_value(out, &user(shown.authorization).unwrap_or_default(), stop),
        PatternField::Method => record.method,
        PatternField::Target => shown.target,
        PatternField::Path => shown.path_and_query().0,
        PatternField::Query => shown.path_and_query().1,
        PatternField::Protocol => record.protocol.as_bytes(),
        PatternField::Host => shown.host,
        PatternField::App => record.app.as_bytes(),
        PatternField::RequestId => record.request_id,
        PatternField::Referer => shown.referer,
        PatternField::UserAgent => shown.user_agent,
        PatternField::Mark => shown.mark(),
        PatternField::Type => record.note.map_or(&b""[..], |note| &note.media_type),
    };
    put_value(out, value, stop);
}

/// A number, or `-` where there is none.
fn put_known(out: &mut Vec<u8>, number: Option<u64>, put: fn(&mut Vec<u8>, u64)) {
    match number {
        Some(number) => put(out, number),
        None => out.push(b'-'),
    }
}

/// A value, so that it ends neither its line nor, by `stop` or a space, its field.
fn put_value(out: &mut Vec<u8>, value: &[u8], stop: Option<u8>) {
    match stop {
        _ if value.is_empty() => out.push(b'-'),
        Some(stop) => put_escaped_but(out, value, stop),
        None => put_escaped(out, value),
    }
}
