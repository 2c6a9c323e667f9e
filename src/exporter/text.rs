//! Prometheus' text (version 0.0.4) and OpenMetrics (1.0.0).
//!
//! Sources: <https://prometheus.io/docs/instrumenting/exposition_formats/>,
//! <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>. There are no exemplars: in the classic form one
//! makes a scrape fail as a whole.

use std::fmt::Write;

use super::{Family, Kind, Point, Sample, Value, collect};
use crate::metrics::latency::BOUNDS;

/// The media type of the classic form.
pub const CLASSIC_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The media type of OpenMetrics.
pub const OPEN_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The classic form.
pub fn classic(sample: &Sample<'_>) -> String {
    let mut out = String::with_capacity(32 * 1024);
    for (family, points) in collect(sample) {
        // Writing to a String cannot fail, here and below. The classic form has no word for `info`.
        let kind = if family.kind == Kind::Info { Kind::Gauge } else { family.kind };
        let _ = writeln!(out, "# HELP {} {}", family.name, escaped(family.help, false));
        let _ = writeln!(out, "# TYPE {} {}", family.name, kind.name());
        points.iter().for_each(|point| put_point(&mut out, family.name, point));
    }
    out
}

/// OpenMetrics.
pub fn open(sample: &Sample<'_>) -> String {
    let mut out = String::with_capacity(32 * 1024);
    for (family, points) in collect(sample) {
        let name = base_name(family);
        let kind =
            if family.kind == Kind::Gauge && family.name.ends_with("_total") { "unknown" } else { family.kind.name() };
        let _ = writeln!(out, "# TYPE {name} {kind}");
        if !family.unit().is_empty() {
            let _ = writeln!(out, "# UNIT {name} {}", family.unit());
        }
        let _ = writeln!(out, "# HELP {name} {}", escaped(family.help, true));
        points.iter().for_each(|point| put_point(&mut out, family.name, point));
    }
    out.push_str("# EOF\n");
    out
}

/// The name of a family in OpenMetrics, to which its samples add what they are.
fn base_name(family: &Family) -> &'static str {
    let suffix = match family.kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge | Kind::Histogram => "",
    };
    family.name.strip_suffix(suffix).unwrap_or(family.name)
}

fn put_point(out: &mut String, name: &str, point: &Point) {
    match &point.value {
        Value::Whole(value) => {
            put_name(out, name, "", point, None);
            let _ = writeln!(out, " {value}");
        }
        Value::Real(value) => {
            put_name(out, name, "", point, None);
            let _ = writeln!(out, " {value}");
        }
        Value::Times(times) => {
            let count = times.count();
            for (bound, at_most) in BOUNDS.into_iter().zip(times.at_most()) {
                put_name(out, name, "_bucket", point, Some(&bound_name(bound)));
                let _ = writeln!(out, " {at_most}");
            }
            put_name(out, name, "_bucket", point, Some("+Inf"));
            let _ = writeln!(out, " {count}");
            put_name(out, name, "_sum", point, None);
            let _ = writeln!(out, " {}", times.nanos() as f64 / 1e9);
            put_name(out, name, "_count", point, None);
            let _ = writeln!(out, " {count}");
        }
    }
}

/// A bound in seconds, with a fraction always, as OpenMetrics asks for it.
fn bound_name(nanos: u64) -> String {
    format!("{:?}", nanos as f64 / 1e9)
}

fn put_name(out: &mut String, name: &str, suffix: &str, point: &Point, bound: Option<&str>) {
    let _ = write!(out, "{name}{suffix}");
    let own = point.labels.iter().map(|(name, value)| (*name, value.as_str()));
    let mut opening = '{';
    for (name, value) in own.chain(bound.map(|bound| ("le", bound))) {
        let _ = write!(out, "{opening}{name}=\"{}\"", escaped(value, true));
        opening = ',';
    }
    if opening == ',' {
        out.push('}');
    }
}

/// A text with its backslashes and line ends escaped; in labels, and in all of OpenMetrics, quotes as well.
fn escaped(text: &str, quotes: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if quotes => out.push_str("\\\""),
            _ => out.push(letter),
        }
    }
    out
}
