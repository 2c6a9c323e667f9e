//! Metrics that are sent away: StatsD's datagrams, with or without Datadog's tags, and lines in CloudWatch's embedded metric format.
//!
//! What only grows is sent as what came since the last time, and times as their quantiles over the same while. Sources:
//! <https://github.com/statsd/statsd/blob/master/docs/metric_types.md>,
//! <https://docs.datadoghq.com/developers/dogstatsd/datagram_shell/>,
//! <https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value as Json, json};

use super::{Family, Kind, Point, Sample, Value, collect};
use crate::config::Statsd;
use crate::metrics::latency::Latencies;

/// Bytes of a datagram, at most: what fits into an Ethernet frame with IPv6.
const DATAGRAM: usize = 1432;
/// Metrics of one document of CloudWatch, at most.
const MOST_METRICS: usize = 100;
/// The quantiles that are told of times.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)];

/// What was told the last time.
#[derive(Debug, Default)]
pub struct Before {
    counts: BTreeMap<String, f64>,
    times: BTreeMap<String, Latencies>,
}

/// One number to be sent.
struct Number<'a> {
    family: &'static Family,
    /// What is told of times; empty for other metrics.
    part: &'static str,
    labels: &'a [(&'static str, String)],
    value: f64,
    /// Whether the value is what came since the last time.
    grew: bool,
}

impl Before {
    /// The numbers of a metric's points, and remembers them.
    fn numbers<'a>(&mut self, family: &'static Family, points: &'a [Point]) -> Vec<Number<'a>> {
        let mut numbers = Vec::new();
        for point in points {
            let (labels, key) = (&point.labels[..], format!("{}{:?}", family.name, point.labels));
            let number = |part, value, grew| Number { family, part, labels, value, grew };
            match &point.value {
                Value::Whole(value) if family.kind == Kind::Counter => {
                    numbers.push(number("", self.grown(key, *value as f64), true));
                }
                Value::Real(value) if family.kind == Kind::Counter => {
                    numbers.push(number("", self.grown(key, *value), true));
                }
                Value::Whole(value) => numbers.push(number("", *value as f64, false)),
                Value::Real(value) => numbers.push(number("", *value, false)),
                Value::Times(times) => {
                    let before = self.times.insert(key, (**times).clone());
                    let since = before.map_or_else(|| (**times).clone(), |before| times.since(&before));
                    numbers.push(number("count", since.count() as f64, true));
                    for (name, share) in QUANTILES {
                        if since.count() > 0
                            && let Some(took) = since.quantile(share)
                        {
                            numbers.push(number(name, took.as_secs_f64(), false));
                        }
                    }
                }
            }
        }
        numbers
    }

    fn grown(&mut self, key: String, value: f64) -> f64 {
        let before = self.counts.insert(key, value).unwrap_or(0.0);
        // One that begins anew, as a place's that was away, counts from zero.
        if value >= before { value - before } else { value }
    }
}

/// Datagrams for a StatsD server. Counters that have not grown are left out.
pub fn statsd(sample: &Sample<'_>, form: &Statsd, before: &mut Before) -> Vec<String> {
    let mut datagrams = vec![String::new()];
    let families = collect(sample);
    let alike = if form.datadog { Alike::default() } else { Alike::of(sample, &families) };
    for (family, points) in &families {
        for number in before.numbers(family, points) {
            if number.grew && number.value == 0.0 {
                continue;
            }
            let line = statsd_line(&number, form, &alike);
            let last = datagrams.len() - 1;
            if !datagrams[last].is_empty() && datagrams[last].len() + line.len() + 1 > DATAGRAM {
                datagrams.push(line);
                continue;
            }
            let current = &mut datagrams[last];
            if !current.is_empty() {
                current.push('\n');
            }
            current.push_str(&line);
        }
    }
    datagrams.retain(|datagram| !datagram.is_empty());
    datagrams
}

/// Parts of names that several values of a label would have.
#[derive(Default)]
struct Alike(BTreeSet<(&'static str, String)>);

impl Alike {
    /// Among the values of these points, and the names of all apps and routes: what a route is called does not change because another one
    /// gets its first request.
    fn of(sample: &Sample<'_>, families: &[(&'static Family, Vec<Point>)]) -> Alike {
        let names = sample.metrics.names();
        let apps = names.apps.iter().map(|app| ("app", app));
        let routes = names.series.iter().map(|series| ("route", &series.route));
        let labels = families.iter().flat_map(|(_, points)| points).flat_map(|point| &point.labels);
        let values: BTreeSet<(&'static str, &str)> = labels
            .map(|(label, value)| (*label, value))
            .chain(apps)
            .chain(routes)
            .map(|(label, value)| (label, value.as_str()))
            .collect();
        let (mut seen, mut alike) = (BTreeSet::new(), BTreeSet::new());
        for (label, value) in values {
            let part = (label, plain(value));
            if !seen.insert(part.clone()) {
                alike.insert(part);
            }
        }
        Alike(alike)
    }

    /// The part of a name that stands for a value: where it would be another's too, with a checksum of the value behind it.
    fn part(&self, label: &'static str, value: &str) -> String {
        let plain = plain(value);
        let key = (label, plain);
        if self.0.contains(&key) { format!("{}-{:08x}", key.1, checksum(value)) } else { key.1 }
    }
}

/// A label's value with the letters that may stand in a name of StatsD.
fn plain(value: &str) -> String {
    value.replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-', "_")
}

/// FNV-1a of 32 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): the same in each version and on each machine.
fn checksum(value: &str) -> u32 {
    value.bytes().fold(0x811c_9dc5, |sum, byte| (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn statsd_line(number: &Number<'_>, form: &Statsd, alike: &Alike) -> String {
    let mut name = format!("{}{}", form.prefix, number.family.name);
    if !form.datadog {
        for (label, value) in number.labels {
            name.push('.');
            name.push_str(&alike.part(label, value));
        }
    }
    if !number.part.is_empty() {
        name.push('.');
        name.push_str(number.part);
    }
    let mut line = format!("{name}:{}|{}", number.value, if number.grew { "c" } else { "g" });
    if form.datadog {
        let plain = |value: &str| value.replace(|letter: char| letter.is_control() || ",|#".contains(letter), "_");
        let own = number.labels.iter().map(|(name, value)| format!("{name}:{}", plain(value)));
        let tags: Vec<String> = own.chain(form.tags.iter().cloned()).collect();
        if !tags.is_empty() {
            line.push_str("|#");
            line.push_str(&tags.join(","));
        }
    }
    line
}

/// Lines in CloudWatch's embedded metric format, each with its end: one document for each set of labels. `millis` is the time in
/// milliseconds since 1970.
pub fn cloudwatch(sample: &Sample<'_>, namespace: &str, millis: u64, before: &mut Before) -> String {
    let mut documents: BTreeMap<Vec<(&str, String)>, Vec<Metric>> = BTreeMap::new();
    for (family, points) in collect(sample) {
        for number in before.numbers(family, &points) {
            let part = if number.part.is_empty() { String::new() } else { format!("_{}", number.part) };
            let unit = match (number.part, family.unit()) {
                ("count", _) => "Count",
                (_, "seconds") => "Seconds",
                (_, "bytes") => "Bytes",
                (_, "ratio") => "None",
                _ => "Count",
            };
            let metric = (format!("{}{part}", family.name), unit, number.value);
            documents.entry(number.labels.to_vec()).or_default().push(metric);
        }
    }
    let mut lines = String::new();
    for (labels, metrics) in documents {
        for metrics in metrics.chunks(MOST_METRICS) {
            lines.push_str(&document(namespace, millis, &labels, metrics).to_string());
            lines.push('\n');
        }
    }
    lines
}

/// A metric of CloudWatch: its name, its unit, its value.
type Metric = (String, &'static str, f64);

fn document(namespace: &str, millis: u64, labels: &[(&str, String)], metrics: &[Metric]) -> Json {
    let names: Vec<&str> = labels.iter().map(|(name, _)| *name).collect();
    let described: Vec<Json> = metrics.iter().map(|(name, unit, _)| json!({ "Name": name, "Unit": unit })).collect();
    let mut members = Map::new();
    members.insert(
        "_aws".to_owned(),
        json!({
            "Timestamp": millis,
            "CloudWatchMetrics": [{ "Namespace": namespace, "Dimensions": [names], "Metrics": described }],
        }),
    );
    members.extend(labels.iter().map(|(name, value)| ((*name).to_owned(), Json::from(value.as_str()))));
    members.extend(metrics.iter().map(|(name, _, value)| (name.clone(), Json::from(*value))));
    Json::Object(members)
}
