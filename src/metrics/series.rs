//! What is counted for each app and for each route: tables of one loop, and the names of their rows.
//!
//! A row is named by a number that the loops carry; its names come from the configuration and from nowhere else, so that nothing
//! that a client or a worker says makes a series. A name that comes back, after a reload for instance, gets the row that it had. A
//! loop allocates a row when it first counts in it, and never gives it back.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::Counter;
use super::latency::{Histogram, Latencies};

/// Rows of apps. The last one is that of all for which there is none left.
const MOST_APPS: usize = 256;
/// Rows of series. The last one is that of all for which there is none left.
const MOST_SERIES: usize = 4096;
/// Apps that are counted apart, at most, those of earlier configurations included.
pub const APPS_APART: usize = MOST_APPS - 1;
/// Series that are counted apart, at most, those of earlier configurations included, beside [`OWN`].
pub const SERIES_APART: usize = MOST_SERIES - 2;
/// The number of all further apps.
pub const OTHER_APPS: u16 = (MOST_APPS - 1) as u16;
/// The number of all further series.
pub const OTHER_SERIES: u16 = (MOST_SERIES - 1) as u16;
/// Rows of a series for each status: those from 100 to 599, and a power of two.
const STATUSES: usize = 512;
const FIRST_STATUS: u16 = 100;

/// The series of requests that no app got: refused before it was known whose they were, or answered with a document of the server's own.
pub const OWN: u16 = 0;

/// Rows that are made as they are first used. One thread uses a table, all may read it.
#[derive(Debug)]
pub struct Table<Row, const MOST: usize>(Box<[OnceLock<Box<Row>>]>);

impl<Row, const MOST: usize> Default for Table<Row, MOST> {
    fn default() -> Self {
        Table((0..MOST).map(|_| OnceLock::new()).collect())
    }
}

impl<Row: Default, const MOST: usize> Table<Row, MOST> {
    /// That row; the last one for all numbers beyond it.
    #[inline]
    pub fn row(&self, index: u16) -> &Row {
        self.0.get(usize::from(index)).unwrap_or_else(|| &self.0[MOST - 1]).get_or_init(Box::default)
    }

    /// That row, if anything was ever counted in it.
    pub fn get(&self, index: usize) -> Option<&Row> {
        self.0.get(index)?.get().map(|row| &**row)
    }

    /// All rows in which something was counted, with their numbers.
    pub fn rows(&self) -> impl Iterator<Item = (usize, &Row)> {
        self.0.iter().enumerate().filter_map(|(index, row)| Some((index, &**row.get()?)))
    }
}

/// What one loop counts for each app.
pub type Apps = Table<AppCounters, MOST_APPS>;
/// What one loop counts for each series.
pub type AllSeries = Table<SeriesCounters, MOST_SERIES>;

/// Why a request was given to a second worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum RetryReason {
    /// The worker said that it did not run it.
    Declined,
    /// The connection ended before anything of it was taken.
    NotTaken,
    /// A kept connection ended under an idempotent request, and the worker lives.
    ConnectionLost,
}

impl RetryReason {
    /// All of them.
    pub const ALL: [RetryReason; 3] = [RetryReason::Declined, RetryReason::NotTaken, RetryReason::ConnectionLost];

    /// The word in labels.
    pub const fn name(self) -> &'static str {
        match self {
            RetryReason::Declined => "declined",
            RetryReason::NotTaken => "not_taken",
            RetryReason::ConnectionLost => "connection_lost",
        }
    }
}

/// What one loop counts for one app. All of it happens seldom.
#[derive(Debug, Default)]
pub struct AppCounters {
    /// Requests refused because the waiting queue was full.
    pub queue_full: Counter,
    /// Requests that waited for a worker for too long.
    pub queue_timeouts: Counter,
    /// Requests held while no worker was ready, until the hold was over.
    pub hold_expired: Counter,
    /// Requests refused because the app has given up.
    pub app_failed: Counter,
    /// Upgrades refused because every worker had as many tunnels as it may.
    pub no_tunnel: Counter,
    /// Requests given to a second worker, by [`RetryReason`].
    pub retries: [Counter; 3],
    /// Connects to workers that were refused or took too long.
    pub connects_failed: Counter,
    /// Tunnels opened.
    pub tunnels: Counter,
    /// Connections opened to workers.
    pub worker_connections: Counter,
    /// Answers that had begun and could not be completed.
    pub cut: Counter,
    /// How long those waited that had to.
    pub waited: Histogram,
}

impl AppCounters {
    /// What only grows, by name.
    pub(super) fn named(&self) -> [(&'static str, &Counter); 12] {
        let [declined, not_taken, connection_lost] = &self.retries;
        [
            ("queue_full", &self.queue_full),
            ("queue_timeouts", &self.queue_timeouts),
            ("hold_expired", &self.hold_expired),
            ("app_failed", &self.app_failed),
            ("no_tunnel", &self.no_tunnel),
            ("retries_declined", declined),
            ("retries_not_taken", not_taken),
            ("retries_connection_lost", connection_lost),
            ("connects_failed", &self.connects_failed),
            ("tunnels", &self.tunnels),
            ("worker_connections", &self.worker_connections),
            ("cut", &self.cut),
        ]
    }

    /// Requests given to a second worker, for whatever reason.
    pub fn all_retries(&self) -> u64 {
        self.retries.iter().map(Counter::value).sum()
    }
}

/// What one loop counts for one series: an app's route.
#[derive(Debug)]
pub struct SeriesCounters {
    statuses: [Counter; STATUSES],
    /// Requests that the loop answered with 200 in the turn in which it read them: one number says all of them.
    pub direct: Counter,
    /// The same with any other status, which are counted by their statuses as well.
    direct_others: Counter,
    /// Requests that got a worker without waiting.
    pub at_once: Counter,
    /// How long requests took, but for event streams, tunnels, and those whose client left.
    pub took: Histogram,
}

impl Default for SeriesCounters {
    fn default() -> SeriesCounters {
        SeriesCounters {
            statuses: [const { Counter::new() }; STATUSES],
            direct: Counter::new(),
            direct_others: Counter::new(),
            at_once: Counter::new(),
            took: Histogram::default(),
        }
    }
}

impl SeriesCounters {
    /// Counts a request that ended with that status.
    #[inline]
    pub fn ended(&self, status: u16) {
        self.statuses[usize::from(status.wrapping_sub(FIRST_STATUS)) & (STATUSES - 1)].add(1);
    }

    /// The loop has answered a request itself, in the turn in which it read it.
    #[inline]
    pub fn answered_here(&self, status: u16) {
        if status == 200 {
            return self.direct.add(1);
        }
        self.ended(status);
        self.direct_others.add(1);
    }

    /// How many requests ended with each status, where any did.
    pub fn statuses(&self) -> impl Iterator<Item = (u16, u64)> {
        let direct = self.direct.value();
        let counted = self.statuses.iter().zip(FIRST_STATUS..).map(move |(count, status)| match status {
            200 => (status, count.value() + direct),
            _ => (status, count.value()),
        });
        counted.filter(|(_, count)| *count > 0)
    }

    /// Adds how long its requests took.
    pub fn add_took(&self, sum: &mut Latencies) {
        sum.add(&self.took);
        sum.add_at_once(self.direct.value() + self.direct_others.value());
    }

    /// Counts on from there. Only the owner's thread may call it.
    pub(super) fn set(&self, statuses: &BTreeMap<u16, u64>, took: &Latencies) {
        for (count, status) in self.statuses.iter().zip(FIRST_STATUS..) {
            count.set(statuses.get(&status).copied().unwrap_or(0));
        }
        self.took.set(took);
    }
}

/// Whose a series is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeriesName {
    /// The app's number in [`Names::apps`]; `None` for [`OWN`].
    pub app: Option<u16>,
    /// The route's pattern; empty where the app has no routes.
    pub route: String,
}

/// The names of all rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Of the apps.
    pub apps: Vec<String>,
    /// Of the series.
    pub series: Vec<SeriesName>,
}

/// The names, to be added to while the loops run.
#[derive(Debug)]
pub(super) struct Register(Mutex<Names>);

impl Default for Register {
    fn default() -> Register {
        Register(Mutex::new(Names { apps: Vec::new(), series: vec![SeriesName::default()] }))
    }
}

impl Register {
    /// The app's number: the one that it has, or a new one.
    pub fn app(&self, name: &str) -> u16 {
        self.with(|names| position_or_add(&mut names.apps, name.to_owned(), MOST_APPS, "others".to_owned()))
    }

    /// The number of the series of that route, to an app or to none: the one that it has, or a new one.
    pub fn series(&self, app: Option<u16>, route: &str) -> u16 {
        let own = |route: &str| SeriesName { app, route: route.to_owned() };
        self.with(|names| {
            let others = SeriesName { app, route: "others".to_owned() };
            position_or_add(&mut names.series, own(route), MOST_SERIES, others)
        })
    }

    /// Takes back all names that have come since there were those. Nobody may count by the numbers of the others.
    pub fn forget_beyond(&self, known: &Names) {
        self.with(|names| {
            names.apps.truncate(known.apps.len());
            names.series.truncate(known.series.len());
        });
    }

    /// The numbers of all series of that app.
    pub fn series_of(&self, app: u16) -> Vec<u16> {
        let of = |names: &mut Names| {
            let all = names.series.iter().zip(0..);
            all.filter(|(name, _)| name.app == Some(app)).map(|(_, series)| series).collect()
        };
        self.with(of)
    }

    /// All names there are.
    pub fn names(&self) -> Names {
        self.with(|names| names.clone())
    }

    fn with<T>(&self, act: impl FnOnce(&mut Names) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where a name stands. The last place is that of all for which there is none left.
fn position_or_add<T: PartialEq>(all: &mut Vec<T>, name: T, most: usize, others: T) -> u16 {
    let place = all.iter().position(|known| *known == name).unwrap_or_else(|| {
        if all.len() < most {
            all.push(if all.len() + 1 < most { name } else { others });
        }
        all.len() - 1
    });
    place as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_row_and_those_without_one_share_the_last() {
        let register = Register::default();
        let web = register.app("web");
        let (all, api) = (register.series(Some(web), ""), register.series(Some(web), "/api/*"));
        assert_eq!((web, all, api), (0, 1, 2));
        assert_eq!((register.app("web"), register.series(Some(web), "/api/*")), (web, api));
        let api_of_other = register.series(Some(register.app("other")), "/api/*");
        assert_eq!(api_of_other, 3, "another app's route is another series");
        let last = (0..2 * MOST_APPS).map(|at| register.app(&format!("app{at}"))).last();
        assert_eq!(last, Some(MOST_APPS as u16 - 1));
        let names = register.names();
        assert_eq!((names.apps.len(), names.apps[MOST_APPS - 1].as_str()), (MOST_APPS, "others"));
        assert_eq!(names.series[2], SeriesName { app: Some(web), route: "/api/*".to_owned() });
    }

    #[test]
    fn whatever_the_loop_answers_at_once_has_its_status_and_no_time() {
        let row = SeriesCounters::default();
        [200, 200, 204, 403, 503].into_iter().for_each(|status| row.answered_here(status));
        // One that listens, and one that took a while.
        row.ended(101);
        row.ended(502);
        row.took.record(7_000_000);
        assert_eq!(row.statuses().collect::<Vec<_>>(), [(101, 1), (200, 2), (204, 1), (403, 1), (502, 1), (503, 1)]);
        let mut took = Latencies::default();
        row.add_took(&mut took);
        assert_eq!((took.count(), took.at_most()[0]), (6, 5));
    }

    #[test]
    fn rows_are_made_when_they_are_counted_in() {
        let table = AllSeries::default();
        assert_eq!(table.rows().count(), 0);
        for status in [200, 200, 404, 100, 599, 599] {
            table.row(7).ended(status);
        }
        table.row(u16::MAX).ended(503);
        let rows: Vec<_> = table.rows().map(|(index, row)| (index, row.statuses().collect::<Vec<_>>())).collect();
        let expected = [(7, vec![(100, 1), (200, 2), (404, 1), (599, 2)]), (MOST_SERIES - 1, vec![(503, 1)])];
        assert_eq!(rows, expected);
        assert!(table.get(6).is_none() && table.get(7).is_some() && table.get(MOST_SERIES).is_none());
    }
}
