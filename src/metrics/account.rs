//! What a server has counted, as it tells its successor, which counts on from there: nothing that only grows may fall because the program
//! was replaced. Names are those of the configuration, for the numbers of rows are each process's own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Metrics;
use super::latency::Latencies;
use super::lives::Record;

/// See the module. A name that is not known here is passed over, and one that is missing counts as 0.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    counters: BTreeMap<String, u64>,
    apps: BTreeMap<String, AppAccount>,
    series: Vec<SeriesAccount>,
    /// Of each limit ([`Limit::counts`](crate::limits::Limit::counts)).
    limits: BTreeMap<String, [u64; 4]>,
    /// Of each app's workers, of those that are gone, too.
    pub lives: BTreeMap<String, Record>,
    /// Lines of the log that nobody read.
    pub log_lines_dropped: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct AppAccount {
    counters: BTreeMap<String, u64>,
    waited: Latencies,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct SeriesAccount {
    app: Option<String>,
    route: String,
    statuses: BTreeMap<u16, u64>,
    took: Latencies,
}

impl AppAccount {
    fn add(&mut self, other: &AppAccount) {
        for (name, count) in &other.counters {
            *self.counters.entry(name.clone()).or_default() += count;
        }
        self.waited.merge(&other.waited);
    }
}

impl SeriesAccount {
    /// Whose it is stays unsaid.
    fn add(&mut self, other: &SeriesAccount) {
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        self.took.merge(&other.took);
    }
}

impl Metrics {
    /// All that the loops of this server and of those before it have counted so far, for a successor.
    pub fn account(&self) -> Account {
        let mut account = Account::default();
        for (name, count) in self.all().flat_map(|counters| counters.named()) {
            *account.counters.entry(name.to_owned()).or_default() += count.value();
        }
        let names = self.names();
        for (name, index) in names.apps.iter().zip(0..) {
            let app = account.apps.entry(name.clone()).or_default();
            for row in self.all().filter_map(|counters| counters.apps.get(index.into())) {
                for (name, count) in row.named() {
                    *app.counters.entry(name.to_owned()).or_default() += count.value();
                }
            }
            app.waited = self.waited(index);
        }
        for (name, index) in names.series.iter().zip(0..) {
            let app = name.app.and_then(|app| names.apps.get(usize::from(app)).cloned());
            let (statuses, took) = (self.statuses(index), self.took(index));
            account.series.push(SeriesAccount { app, route: name.route.clone(), statuses, took });
        }
        account.limits = self.limits().all().into_iter().map(|(name, limit)| (name, limit.counts())).collect();
        account
    }

    /// What the servers before this one have counted, their own predecessors' counts included; replaces what was said before. Only one thread
    /// may call it.
    pub fn inherit(&self, account: &Account) {
        let before = &self.0.before;
        for (name, counter) in before.named() {
            counter.set(account.counters.get(name).copied().unwrap_or(0));
        }
        // Several share a number where there is none left.
        let mut apps: BTreeMap<u16, AppAccount> = BTreeMap::new();
        for (name, app) in &account.apps {
            apps.entry(self.app(name)).or_default().add(app);
        }
        for (index, app) in &apps {
            let row = before.app(*index);
            for (name, counter) in row.named() {
                counter.set(app.counters.get(name).copied().unwrap_or(0));
            }
            row.waited.set(&app.waited);
        }
        for (name, limit) in self.limits().all() {
            limit.inherit(account.limits.get(&name).copied().unwrap_or_default());
        }
        let mut all: BTreeMap<u16, SeriesAccount> = BTreeMap::new();
        for series in &account.series {
            let index = self.series(series.app.as_ref().map(|app| self.app(app)), &series.route);
            all.entry(index).or_default().add(series);
        }
        for (index, series) in &all {
            before.of_series(*index).set(&series.statuses, &series.took);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::super::series::OTHER_APPS;
    use super::*;

    /// What is counted of the app `web` and its only series: refusals by a full queue, answers of 200, times and waits.
    fn told(metrics: &Metrics) -> (u64, u64, u64, u64, u64) {
        let app = metrics.app("web");
        let series = metrics.series(Some(app), "");
        let statuses = metrics.statuses(series);
        let counted = (metrics.took(series).count(), metrics.waited(app).count());
        let full = metrics.of_app(app, |app| app.queue_full.value());
        (metrics.total().requests, full, statuses.get(&200).copied().unwrap_or(0), counted.0, counted.1)
    }

    #[test]
    fn those_that_share_a_number_are_counted_together() {
        let first = Metrics::new(1);
        for name in ["old", "older"] {
            let app = first.app(name);
            let series = first.series(Some(app), "/x");
            first.of_loop(0).app(app).queue_full.add(2);
            first.of_loop(0).of_series(series).ended(200);
            first.of_loop(0).of_series(series).took.record(5_000_000);
        }
        let second = Metrics::new(1);
        let own: Vec<u16> = (0..300).map(|number| second.app(&format!("new{number}"))).collect();
        // Twice: what is told later replaces what was told before.
        (0..2).for_each(|_| second.inherit(&first.account()));
        assert_eq!(own[254..256], [254, OTHER_APPS], "those of the configuration came first");
        assert_eq!(second.of_app(OTHER_APPS, |app| app.queue_full.value()), 4);
        let series = second.series(Some(OTHER_APPS), "/x");
        assert_eq!(second.statuses(series).into_iter().collect::<Vec<_>>(), [(200, 2)]);
        assert_eq!(second.took(series).count(), 2);
    }

    #[test]
    fn counts_go_on_where_the_server_before_has_ended() {
        let first = Metrics::new(2);
        let web = first.app("web");
        let series = first.series(Some(web), "");
        let old = first.of_loop(1);
        old.requests.add(3);
        old.app(web).queue_full.add(2);
        old.app(web).waited.record(7_000_000);
        old.of_series(series).ended(200);
        old.of_series(series).direct.add(4);
        old.of_series(series).at_once.add(5);
        old.of_series(series).took.record(5_000_000);
        let limit = first.limits().get("login");
        limit.refused.store(2, Ordering::Relaxed);
        let told_by_first = told(&first);
        assert_eq!(told_by_first, (3, 2, 5, 5, 6));

        let second = Metrics::new(1);
        let next = second.limits().get("login");
        next.refused.store(3, Ordering::Relaxed);
        let (other, of_other) = (second.app("other"), second.series(Some(0), ""));
        second.of_loop(0).app(other).queue_full.add(9);
        second.of_loop(0).of_series(of_other).ended(200);
        second.inherit(&first.account());
        assert_eq!(told(&second), told_by_first, "rows are known by their names");
        assert_eq!(second.took(second.series(Some(second.app("web")), "")).at_most()[2], 5, "5 ms are at most 5 ms");
        second.of_loop(0).requests.add(1);
        old.requests.add(2);
        let text = serde_json::to_string(&first.account()).unwrap();
        second.inherit(&serde_json::from_str(&text).unwrap());
        assert_eq!(told(&second), (6, 2, 5, 5, 6), "what was said before is replaced");
        assert_eq!((next.counts(), second.account().limits["login"]), ([0, 5, 0, 0], [0, 5, 0, 0]));
        assert_eq!(second.latencies().count(), 5);

        let third = Metrics::new(1);
        let _last = third.limits().get("login");
        third.inherit(&second.account());
        assert_eq!(told(&third), told(&second), "and goes on to the next");
        assert_eq!(third.account(), second.account());
    }

    #[test]
    fn what_another_version_counts_is_passed_over() {
        let metrics = Metrics::new(1);
        let newer = r#"{"counters":{"requests":1,"of_a_later_version":9},"more":[],
            "series":[{"route":"","statuses":{"200":7,"1000":3},"took":{"counts":[[100000,1]],"below":[[77,1]]}}]}"#;
        metrics.inherit(&serde_json::from_str(newer).unwrap());
        assert_eq!((metrics.total().requests, metrics.latencies().count()), (1, 0));
        assert_eq!(metrics.statuses(super::super::series::OWN).into_iter().collect::<Vec<_>>(), [(200, 7)]);
    }
}
