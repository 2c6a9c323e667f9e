//! What is exported, in each form, and that the documents about it are true.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::config::Statsd;
use crate::control::status::{self, State};

/// A sample with something of everything: a loop that has answered requests of every kind.
fn with_sample<T>(bungate: bool, read: impl FnOnce(&Sample<'_>) -> T) -> T {
    let metrics = Metrics::new(2);
    let app = metrics.app("web");
    let series = metrics.series(Some(app), "");
    let counters = metrics.of_loop(1);
    let web = counters.of_series(series);
    for (status, millis) in [(200, 3), (200, 5), (404, 5), (502, 700), (504, 60_000)] {
        web.ended(status);
        web.took.record(millis * 1_000_000);
    }
    web.at_once.add(4);
    counters.of_series(crate::metrics::series::OWN).ended(400);
    let of_app = counters.app(app);
    of_app.queue_full.add(2);
    of_app.retries[0].add(1);
    of_app.waited.record(20_000_000);
    counters.bytes_sent.add(1234);
    let mut status = status::sample();
    status.apps[0].workers[0].health = Some(status::Health { healthy: true, failures: 3, reason: None });
    status.apps[0].workers[0].ejections = Some(1);
    status.certificates = vec![status::Certificate { names: vec!["shop.example".to_owned()], ..Default::default() }];
    let name = "login".to_owned();
    status.limits = vec![status::Limit { name, refused: 7, ..Default::default() }];
    let name = "chat".to_owned();
    let bus =
        status::Bus { state: "leads".to_owned(), peers: vec!["8081".to_owned()], waiting: 2, ..Default::default() };
    status.hubs = vec![status::Hub { name, topics: 3, memory_bytes: 4096, bus: Some(bus), ..Default::default() }];
    status.acme = Some(status::Acme { issued: 1, next_attempt: 1_800_000_000, ..Default::default() });
    let time = LoopTime { used: Duration::from_millis(1500), busy: 0.25 };
    let sample = Sample { status: &status, metrics: &metrics, loops: vec![None, Some(time)], started: 1.5e9, bungate };
    read(&sample)
}

#[test]
fn the_classic_text_is_as_scrapers_read_it() {
    let text = with_sample(false, text::classic);
    for line in [
        "# TYPE http_server_requests_total counter",
        "http_server_requests_total{code=\"400\"} 1",
        "http_server_requests_total{app=\"web\",code=\"200\"} 2",
        "# TYPE http_server_request_duration_seconds histogram",
        "http_server_request_duration_seconds_bucket{app=\"web\",le=\"0.0025\"} 0",
        "http_server_request_duration_seconds_bucket{app=\"web\",le=\"0.005\"} 3",
        "http_server_request_duration_seconds_bucket{app=\"web\",le=\"1.0\"} 4",
        "http_server_request_duration_seconds_bucket{app=\"web\",le=\"30.0\"} 4",
        "http_server_request_duration_seconds_bucket{app=\"web\",le=\"+Inf\"} 5",
        "http_server_request_duration_seconds_sum{app=\"web\"} 60.713",
        "http_server_request_duration_seconds_count{app=\"web\"} 5",
        "# TYPE production_server_build_info gauge",
        "production_server_build_info{version=\"0.1.0\",backend=\"epoll\"} 1",
        "production_server_loop_busy_ratio{loop=\"1\"} 0.25",
        "production_server_bytes_sent_total 1234",
        "production_server_rate_limited_total{limit=\"login\",action=\"refused\"} 7",
        "production_server_hub_topics{hub=\"chat\"} 3",
        "production_server_hub_memory_bytes{hub=\"chat\"} 4096",
        "production_server_hub_bus_up{hub=\"chat\"} 1",
        "production_server_hub_bus_followers{hub=\"chat\"} 1",
        "production_server_hub_bus_waiting{hub=\"chat\"} 2",
        "production_server_app_state{app=\"web\",state=\"running\"} 1",
        "production_server_app_state{app=\"web\",state=\"failed\"} 0",
        "production_server_queue_duration_seconds_bucket{app=\"web\",le=\"0.001\"} 4",
        "production_server_queue_duration_seconds_count{app=\"web\"} 5",
        "production_server_queue_rejected_total{app=\"web\",reason=\"full\"} 2",
        "production_server_queue_rejected_total{app=\"web\",reason=\"hold\"} 0",
        "production_server_retries_total{app=\"web\",reason=\"declined\"} 1",
        "production_server_workers{app=\"web\",state=\"running\"} 2",
        "production_server_worker_exits_total{app=\"web\",reason=\"crash\"} 1",
        "production_server_worker_memory_bytes{app=\"web\",worker=\"1\"} 26214400",
    ] {
        assert!(text.lines().any(|own| own == line), "{line} is missing:\n{text}");
    }
    assert!(!text.contains("bungate_") && !text.contains("# EOF") && !text.contains("# UNIT"));
}

#[test]
fn open_metrics_names_families_without_what_their_samples_add() {
    let text = with_sample(true, text::open);
    for part in [
        "# TYPE http_server_requests counter\n",
        "\nhttp_server_requests_total{app=\"web\",code=\"404\"} 1\n",
        "# TYPE http_server_request_duration_seconds histogram\n# UNIT http_server_request_duration_seconds seconds\n",
        "# TYPE production_server_build info\n",
        "\nproduction_server_build_info{version=",
        "# TYPE production_server_bytes_sent counter\n",
        "# TYPE bungate_workers_total unknown\n",
        "# TYPE bungate_requests counter\n",
        "\nbungate_requests_total 6\n",
    ] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
    assert!(text.ends_with("\n# EOF\n"));
}

#[test]
fn names_and_labels_follow_the_conventions() {
    let mut names = BTreeSet::new();
    for family in families::ALL.iter().flat_map(|group| group.1) {
        let name = family.name;
        assert!(names.insert(name), "{name} twice");
        let prefixes: &[&str] = if family.bungate { &["bungate_"] } else { &["http_server_", "production_server_"] };
        assert!(prefixes.iter().any(|prefix| name.starts_with(prefix)), "{name}");
        let ends_well = family.bungate || name.ends_with("_total") == (family.kind == Kind::Counter);
        assert!(ends_well && name.ends_with("_info") == (family.kind == Kind::Info), "{name}");
        assert!(family.kind != Kind::Histogram || family.unit() == "seconds", "{name}");
        assert!(family.help.ends_with('.') && !family.help.contains('\n'), "{name}: {}", family.help);
        assert!(!family.labels.iter().any(|label| ["le", "job", "instance"].contains(label)), "{name}");
    }
    with_sample(true, |sample| {
        for (family, points) in collect(sample) {
            for point in points {
                assert!(
                    point.labels.iter().all(|(label, _)| family.labels.contains(label)),
                    "{}: {point:?}",
                    family.name
                );
            }
        }
    });
    let told = with_sample(true, |sample| collect(sample).len());
    assert_eq!(told, names.len(), "the sample has points of every metric");
}

#[test]
fn statsd_gets_what_came_since_the_last_time() {
    let mut form = Statsd { datadog: false, prefix: "site1.".to_owned(), tags: Vec::new(), interval: Duration::ZERO };
    let mut before = push::Before::default();
    let lines = |datagrams: Vec<String>| -> Vec<String> {
        assert!(datagrams.iter().all(|datagram| datagram.len() <= 1432 && !datagram.ends_with('\n')));
        datagrams.iter().flat_map(|datagram| datagram.lines()).map(str::to_owned).collect()
    };
    let first = lines(with_sample(false, |sample| push::statsd(sample, &form, &mut before)));
    for line in [
        "site1.http_server_requests_total.web.200:2|c",
        "site1.http_server_requests_total.400:1|c",
        "site1.http_server_request_duration_seconds.web.count:5|c",
        "site1.production_server_queue_depth.web:3|g",
        "site1.production_server_loop_busy_ratio.1:0.25|g",
    ] {
        assert!(first.iter().any(|own| own == line), "{line} is missing: {first:#?}");
    }
    assert!(first.iter().any(|line| line.starts_with("site1.http_server_request_duration_seconds.web.p50:0.005")));
    let second = lines(with_sample(false, |sample| push::statsd(sample, &form, &mut before)));
    assert!(!second.iter().any(|line| line.ends_with("|c")), "nothing has grown: {second:#?}");
    assert!(second.iter().any(|line| line == "site1.production_server_queue_depth.web:3|g"));
    (form.datadog, form.tags) = (true, vec!["env:prod".to_owned()]);
    let tagged = lines(with_sample(false, |sample| push::statsd(sample, &form, &mut push::Before::default())));
    let line = "site1.http_server_requests_total:2|c|#app:web,code:200,env:prod";
    assert!(tagged.iter().any(|own| own == line), "{line} is missing: {tagged:#?}");
}

#[test]
fn routes_whose_names_would_be_the_same_have_names_of_their_own() {
    let metrics = Metrics::new(1);
    let web = metrics.app("web");
    let [dot, line, other] = ["/x.y", "/x_y", "/z"].map(|route| metrics.series(Some(web), route));
    let names = || {
        let status = status::sample();
        let sample = Sample { status: &status, metrics: &metrics, loops: Vec::new(), started: 0.0, bungate: false };
        let form = Statsd { datadog: false, prefix: String::new(), tags: Vec::new(), interval: Duration::ZERO };
        let told = push::statsd(&sample, &form, &mut push::Before::default()).join("\n");
        let of_requests = told.lines().filter_map(|line| line.strip_prefix("http_server_requests_total.web."));
        of_requests.map(|line| line.split(".200:").next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    // Also before the other of two has had a request.
    let counters = metrics.of_loop(0);
    [dot, other].iter().for_each(|series| counters.of_series(*series).ended(200));
    let before = names();
    assert_eq!(before, ["_x_y-74ec16b7", "_z"]);
    counters.of_series(line).ended(200);
    let after = names();
    assert_eq!((&after[0], &after[2], after.len()), (&before[0], &before[1], 3));
    assert!(after[1].starts_with("_x_y-") && after[1] != after[0], "{after:?}");
}

#[test]
fn cloudwatch_gets_one_document_for_each_set_of_labels() {
    let mut before = push::Before::default();
    let lines = with_sample(false, |sample| push::cloudwatch(sample, "site", 1_700_000_000_123, &mut before));
    let documents: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for document in &documents {
        let described = &document["_aws"]["CloudWatchMetrics"][0];
        assert_eq!(
            (&document["_aws"]["Timestamp"], &described["Namespace"]),
            (&1_700_000_000_123_u64.into(), &"site".into())
        );
        for dimension in described["Dimensions"][0].as_array().unwrap() {
            assert!(document[dimension.as_str().unwrap()].is_string(), "{document}");
        }
        let metrics = described["Metrics"].as_array().unwrap();
        assert!(!metrics.is_empty() && metrics.len() <= 100);
        for metric in metrics {
            assert!(document[metric["Name"].as_str().unwrap()].is_number(), "{metric} in {document}");
        }
    }
    let of_web = documents.iter().find(|document| {
        document["app"] == "web"
            && document["_aws"]["CloudWatchMetrics"][0]["Dimensions"][0] == serde_json::json!(["app"])
    });
    let of_web = of_web.unwrap();
    assert_eq!(
        (&of_web["production_server_queue_depth"], &of_web["http_server_request_duration_seconds_count"]),
        (&3.0.into(), &5.0.into())
    );
}

#[test]
fn what_was_counted_of_an_app_that_is_gone_is_in_the_sums() {
    with_sample(true, |sample| {
        let mut status = sample.status.clone();
        let gone = status.apps.pop().unwrap();
        status.departed = gone.lives;
        let sample = Sample { status: &status, loops: Vec::new(), ..*sample };
        let text = text::classic(&sample);
        for line in ["bungate_workers_restarts_total 4", "bungate_workers_crashed_total 1"] {
            assert!(text.lines().any(|own| own == line), "{line} is missing:\n{text}");
        }
    });
}

#[test]
fn readiness_names_what_is_missing() {
    with_sample(false, |sample| {
        let (status, text) = health::tell(&health::ready(sample, false), false);
        assert_eq!((status, text.as_str()), (200, "ok\n"));
        let (status, text) = health::tell(&health::ready(sample, true), true);
        assert_eq!((status, text.as_str()), (503, "[-] listeners: the server stops\n[+] app web: ok\nfailed\n"));
        let mut unready = sample.status.clone();
        unready.apps[0].workers_ready = 0;
        let sample = Sample { status: &unready, loops: Vec::new(), ..*sample };
        let (status, text) = health::tell(&health::ready(&sample, false), false);
        assert_eq!((status, text.as_str()), (503, "[-] app web: no worker is ready\nfailed\n"));
    });
    with_sample(false, |sample| {
        let mut without = sample.status.clone();
        without.apps[0].workers_ready = 0;
        without.apps[0].needed = false;
        let sample = Sample { status: &without, loops: Vec::new(), ..*sample };
        assert_eq!(health::tell(&health::ready(&sample, false), false), (200, "ok\n".to_owned()));
        let told = "[+] listeners: ok\n[~] app web: no worker is ready, which does not count\nok\n";
        assert_eq!(health::tell(&health::ready(&sample, false), true), (200, told.to_owned()));
    });
    let (status, text) = health::tell(&health::live(&[true, false]), true);
    assert_eq!(
        (status, text.as_str()),
        (503, "[+] loop 0: ok\n[-] loop 1: it has not turned within a second\nfailed\n")
    );
}

#[test]
fn an_app_that_ends_is_not_looked_at_for_readiness() {
    with_sample(false, |sample| {
        let mut status = sample.status.clone();
        let gone = App { name: "gone".to_owned(), state: State::Stopping, workers_ready: 0, ..status.apps[0].clone() };
        status.apps.push(gone);
        let text = |status: &Status, leaving| {
            let sample = Sample { status, loops: Vec::new(), ..*sample };
            health::tell(&health::ready(&sample, leaving), true)
        };
        assert_eq!(text(&status, false), (200, "[+] listeners: ok\n[+] app web: ok\nok\n".to_owned()));
        // Where all of them do, the server stops.
        assert_eq!(text(&status, true).0, 503);
        assert!(text(&status, true).1.contains("app gone: no worker is ready"));
    });
}

#[test]
fn an_app_and_an_older_one_of_its_name_are_told_as_one() {
    with_sample(false, |sample| {
        let mut status = sample.status.clone();
        let mut older = App { state: State::Stopping, ..status.apps[0].clone() };
        let work = status::Work { requests: 7, ..older.workers[0].work };
        older.workers.push(status::Worker { id: 9, work, ..older.workers[0].clone() });
        status.apps.insert(0, older);
        let of_one = text::classic(sample);
        let both = text::classic(&Sample { status: &united(status), loops: sample.loops.clone(), ..*sample });
        let value = |text: &str, name: &str| {
            let found: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(name)).collect();
            assert_eq!(found.len(), 1, "{name}: {found:?}");
            found[0].trim().parse::<u64>().unwrap()
        };
        let before = sample.status.apps[0].workers[0].before.requests_before;
        for (name, expected) in [
            ("queue_depth{app=\"web\"}", 2 * value(&of_one, "production_server_queue_depth{app=\"web\"}")),
            ("queue_limit{app=\"web\"}", value(&of_one, "production_server_queue_limit{app=\"web\"}")),
            ("app_state{app=\"web\",state=\"running\"}", 1),
            ("worker_starts_total{app=\"web\"}", 2 * sample.status.apps[0].lives.starts),
            ("worker_exits_total{app=\"web\",reason=\"crash\"}", 2),
            ("worker_requests_total{app=\"web\",worker=\"9\"}", before + 7),
            (
                "worker_requests_total{app=\"web\",worker=\"1\"}",
                2 * value(&of_one, "production_server_worker_requests_total{app=\"web\",worker=\"1\"}"),
            ),
        ] {
            assert_eq!(value(&both, &format!("production_server_{name}")), expected, "{name}\n{both}");
        }
    });
}

/// A file beside the sources, which `UPDATE_REPORTS=1` writes anew.
fn must_be(path: &str, expected: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_REPORTS").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == expected, "{} is stale: run this test with UPDATE_REPORTS=1", path.display());
}

#[test]
fn the_document_about_metrics_is_up_to_date() {
    must_be("docs/metrics.md", &manual::manual());
}

#[test]
fn the_dashboard_shows_the_metrics_that_there_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/grafana.json");
    let text = std::fs::read_to_string(path).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    for panel in panels {
        // Grafana shows one of two queries of the same name.
        let names: Vec<_> = panel["targets"].as_array().into_iter().flatten().map(|query| &query["refId"]).collect();
        let twice = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name));
        assert!(twice.is_none(), "{}: {twice:?}", panel["title"]);
    }
    let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    let mut shown = BTreeSet::new();
    for query in queries {
        let expression = query["expr"].as_str().unwrap();
        let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        for word in words.filter(|word| word.starts_with("http_server_") || word.starts_with("production_server_")) {
            let known = families::ALL.iter().flat_map(|group| group.1).find(|family| {
                let parts: &[&str] =
                    if family.kind == Kind::Histogram { &["_bucket", "_sum", "_count"] } else { &[""] };
                parts.iter().any(|part| word.strip_suffix(part) == Some(family.name))
            });
            let family = known.unwrap_or_else(|| panic!("{word} of the dashboard is not exported: {expression}"));
            for label in ["app", "code", "reason", "state", "worker", "loop", "route", "transport", "hub", "le"] {
                let by = format!("by ({label}");
                let exists = family.labels.contains(&label) || (label == "le" && family.kind == Kind::Histogram);
                assert!(exists || !expression.contains(&by), "{word} has no label {label}: {expression}");
            }
            shown.insert(family.name);
        }
    }
    // How many loops there are is seen where each has a line; and the names of Bungate are others for the same.
    shown.insert("production_server_loops");
    let ours = families::ALL.iter().flat_map(|group| group.1).map(|family| family.name);
    let hidden: Vec<_> = ours.filter(|name| !name.starts_with("bungate_") && !shown.contains(name)).collect();
    assert!(hidden.is_empty(), "the dashboard does not show {hidden:?}");
}
