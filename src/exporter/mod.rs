//! What the server counts, as those who watch it want to read it: each metric once, and a writer for each form.
//!
//! | file | what |
//! |---|---|
//! | `families` | every metric: its name, kind, labels and meaning, and where its numbers come from |
//! | `text` | Prometheus' text and OpenMetrics |
//! | `push` | StatsD's datagrams, and CloudWatch's embedded metric format |
//! | `health` | the checks behind `/livez` and `/readyz` |
//! | `manual` | docs/metrics.md |
//!
//! Rules:
//! - Pure functions of a [`Sample`]: no descriptor, no clock, no thread. The supervisor takes samples and carries texts away.
//! - A label's value is a name of the configuration, a number of ours, or a word of this program's: nothing that a client or a worker says.
//! - A name keeps its meaning, and is only ever added to.

pub mod families;
pub mod health;
pub mod manual;
pub mod push;
pub mod text;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::control::status::{App, Status, Worker};
use crate::metrics::Metrics;
use crate::metrics::latency::Latencies;

/// What is known at one moment.
pub struct Sample<'a> {
    /// What the supervisor knows; each app's name comes once, see [`united`].
    pub status: &'a Status,
    /// What the loops have counted.
    pub metrics: &'a Metrics,
    /// The CPU time of each loop, where the system tells it.
    pub loops: Vec<Option<LoopTime>>,
    /// When the server started, in seconds since 1970.
    pub started: f64,
    /// Whether the names of Bungate are told as well.
    pub bungate: bool,
}

/// The CPU time of one loop. A loop works or sleeps, and waits for nothing else: what it uses is what it is busy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoopTime {
    /// Since its start.
    pub used: Duration,
    /// Which share of the last seconds, 0 to 1.
    pub busy: f64,
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows while the server lives.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Times by how long they were.
    Histogram,
    /// A 1 whose labels tell something.
    Info,
}

impl Kind {
    /// The word for it in texts.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
            Kind::Info => "info",
        }
    }
}

/// One metric. See the module.
pub struct Family {
    /// Its whole name in Prometheus' text.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it says, in one sentence.
    pub help: &'static str,
    /// Whether it is told only on demand, as a name of Bungate.
    pub bungate: bool,
    /// Reads its points from a sample.
    pub read: fn(&Sample<'_>, &mut Points),
}

impl Family {
    /// The unit that its name ends with: `seconds`, `bytes` or `ratio`; empty for plain numbers.
    pub fn unit(&self) -> &'static str {
        let base = self.name.strip_suffix("_total").unwrap_or(self.name);
        ["seconds", "bytes", "ratio"].into_iter().find(|unit| base.ends_with(unit)).unwrap_or("")
    }
}

/// A value of a metric.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Of a counter or a gauge that counts.
    Whole(u64),
    /// Of others.
    Real(f64),
    /// Of a histogram.
    Times(Box<Latencies>),
}

/// One value with the values of its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    /// Label by label; one that is empty is left out.
    pub labels: Vec<(&'static str, String)>,
    /// The value.
    pub value: Value,
}

/// The points of one metric.
#[derive(Debug, Default)]
pub struct Points(pub Vec<Point>);

impl Points {
    fn add(&mut self, labels: &[(&'static str, &str)], value: Value) {
        let labels = labels.iter().filter(|(_, value)| !value.is_empty());
        self.0.push(Point { labels: labels.map(|(name, value)| (*name, (*value).to_owned())).collect(), value });
    }

    fn whole(&mut self, labels: &[(&'static str, &str)], value: u64) {
        self.add(labels, Value::Whole(value));
    }

    fn real(&mut self, labels: &[(&'static str, &str)], value: f64) {
        self.add(labels, Value::Real(value));
    }

    fn times(&mut self, labels: &[(&'static str, &str)], value: Latencies) {
        self.add(labels, Value::Times(Box::new(value)));
    }
}

/// With one app for each name, as a series needs it: one that is removed and still ends is told with the one of its name that has come
/// after it.
pub fn united(mut status: Status) -> Status {
    let mut apps: Vec<App> = Vec::with_capacity(status.apps.len());
    for app in status.apps {
        match apps.iter_mut().find(|known| known.name == app.name) {
            Some(known) => {
                let older = std::mem::replace(known, app);
                add(known, older);
            }
            None => apps.push(app),
        }
    }
    status.apps = apps;
    status
}

/// Adds what an older app of the same name still has, and what was counted of it.
fn add(app: &mut App, older: App) {
    app.queue.depth += older.queue.depth;
    app.lives.add(&older.lives);
    // Of those in one place the one with the most counts for all.
    for worker in &mut app.workers {
        let in_its_place = || older.workers.iter().filter(|older| older.id == worker.id);
        let most = |read: fn(&Worker) -> u64| in_its_place().map(read).max().unwrap_or(0);
        worker.before.requests_before += most(|older| older.before.requests_before);
        worker.before.restarts += most(|older| older.before.restarts);
        worker.before.failed_checks += most(|older| older.before.failed_checks);
        let ejections = most(|older| older.ejections.unwrap_or(0));
        worker.ejections = worker.ejections.map(|own| own + ejections);
    }
    app.workers.extend(older.workers);
}

/// Every metric that a sample has points of, with these.
pub fn collect(sample: &Sample<'_>) -> Vec<(&'static Family, Vec<Point>)> {
    let told = families::ALL.iter().flat_map(|group| group.1).filter(|family| sample.bungate || !family.bungate);
    let read = told.map(|family| {
        let mut points = Points::default();
        (family.read)(sample, &mut points);
        (family, points.0)
    });
    read.filter(|(_, points)| !points.is_empty()).collect()
}
