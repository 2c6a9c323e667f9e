//! What each form in which the counters are told says: samples under the names of Prometheus' text, whatever the form calls them.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use serde_json::Value;

use crate::support::Client;
use crate::support::exposition::{self, Samples};

/// What a scraper sends that prefers OpenMetrics.
pub const OPEN: &str = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";

/// Scrapes: the samples, and the answer's media type.
pub fn scrape(client: &mut Client, accept: &str) -> (Samples, String) {
    let answer = client.ask(&format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let kind = answer.field("content-type").unwrap().to_owned();
    (exposition::read(&answer.text(), kind.starts_with("application/openmetrics-text")), kind)
}

fn key(name: &str, labels: &[String]) -> String {
    if labels.is_empty() { name.to_owned() } else { format!("{name}{{{}}}", labels.join(",")) }
}

/// What has been pushed by StatsD's protocol, added up.
pub struct Pushed {
    pub address: String,
    pub sums: Samples,
    datagrams: mpsc::Receiver<Vec<u8>>,
}

impl Pushed {
    /// Somebody who always listens: what waits in a socket for too long is lost.
    pub fn new() -> Pushed {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let (sender, datagrams) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok(length) = socket.recv(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Pushed { address, sums: Samples::new(), datagrams }
    }

    /// Takes one more datagram; if none comes, `differences` tells what is missed.
    pub fn take(&mut self, end: Instant, differences: impl Fn(&Samples) -> Vec<String>) {
        let left = end.saturating_duration_since(Instant::now());
        let datagram = self.datagrams.recv_timeout(left).unwrap_or_else(|_| panic!("{:#?}", differences(&self.sums)));
        for line in std::str::from_utf8(&datagram).unwrap().lines() {
            let (name, rest) = line.split_once(':').unwrap();
            let mut parts = rest.split('|');
            let (value, kind) = (parts.next().unwrap().parse::<f64>().unwrap(), parts.next().unwrap());
            let tags = parts.next().and_then(|tags| tags.strip_prefix('#')).unwrap_or("");
            let tags = tags.split(',').filter_map(|tag| tag.split_once(':'));
            let labels: Vec<String> = tags.map(|(name, value)| format!("{name}=\"{value}\"")).collect();
            let sum = self.sums.entry(key(name, &labels)).or_default();
            match kind {
                "c" => *sum += value,
                "g" => *sum = value,
                _ => panic!("{line}"),
            }
        }
    }
}

/// The name of a sample where Datadog's tags tell the labels.
pub fn tagged(sample: &str) -> String {
    sample.replace("_seconds_count", "_seconds.count")
}

/// The name of a sample where the values of the labels are parts of it.
pub fn dotted(sample: &str) -> String {
    let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
    let values = labels.split('"').skip(1).step_by(2);
    let plain = |value: &str| value.replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-', "_");
    let values: String = values.map(|value| format!(".{}", plain(value))).collect();
    match name.strip_suffix("_count") {
        Some(name) => format!("{name}{values}.count"),
        None => format!("{name}{values}"),
    }
}

/// What CloudWatch's lines say, added up; gauges as they were told last.
pub fn cloudwatch(path: &Path) -> Samples {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let (mut sums, mut last): (Samples, BTreeMap<String, f64>) = Default::default();
    // The last line may be half written.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let document: Value = serde_json::from_str(line).unwrap();
        let described = &document["_aws"]["CloudWatchMetrics"][0];
        let names = described["Dimensions"][0].as_array().unwrap().iter().map(|name| name.as_str().unwrap());
        let labels: Vec<String> = names.map(|name| format!("{name}={}", document[name])).collect();
        for metric in described["Metrics"].as_array().unwrap() {
            let name = metric["Name"].as_str().unwrap();
            let value = document[name].as_f64().unwrap();
            *sums.entry(key(name, &labels)).or_default() += value;
            last.insert(key(name, &labels), value);
        }
    }
    let counts =
        |name: &str| name.split('{').next().is_some_and(|name| name.ends_with("_total") || name.ends_with("_count"));
    let gauges = last.into_iter().filter(|(name, _)| !counts(name) || name.starts_with("bungate_workers_total"));
    sums.extend(gauges);
    sums
}

/// Numbers of the status document, each with the metric and the label of the samples that it is the sum of.
const STATUS: &[(&str, &str, &str)] = &[
    ("total_connections", "production_server_connections_accepted_total", ""),
    ("requests", "http_server_requests_total", ""),
    ("errors", "production_server_errors_total", ""),
    ("timeouts", "production_server_timeouts_total", ""),
    ("panics", "production_server_panics_total", ""),
    ("idle_closed", "production_server_idle_connections_closed_total", ""),
    ("accept_pauses", "production_server_accept_pauses_total", ""),
    ("paused_for_memory", "production_server_memory_pauses_total", ""),
    ("memory_refused", "production_server_memory_refusals_total", ""),
    ("spooled", "production_server_spooled_total", ""),
    ("spool_refused", "production_server_spool_refusals_total", ""),
    ("spool_bytes", "production_server_spool_bytes", ""),
    ("helper_jobs", "production_server_helper_jobs_total", ""),
    ("helper_refusals", "production_server_helper_refusals_total", ""),
    ("denied", "production_server_denied_total", ""),
    ("auth_passed", "production_server_auth_total", "result=\"passed\""),
    ("auth_refused", "production_server_auth_total", "result=\"refused\""),
    ("auth_busy", "production_server_auth_total", "result=\"busy\""),
    ("auth_unanswered", "production_server_auth_total", "result=\"unanswered\""),
    ("crowded_out", "production_server_connections_refused_total", "reason=\"address\""),
    ("hub_messages", "production_server_hub_messages_total", ""),
    ("hub_deliveries", "production_server_hub_deliveries_total", ""),
    ("hub_gaps", "production_server_hub_gaps_total", ""),
    ("hub_refused", "production_server_hub_refused_total", ""),
    ("hub_events", "production_server_hub_events_total", "result=\"told\""),
    ("hub_events_failed", "production_server_hub_events_total", "result=\"failed\""),
    ("hub_closed", "production_server_hub_closed_total", "reason=\"client\""),
    ("hub_closed_restart", "production_server_hub_closed_total", "reason=\"restart\""),
    ("hub_closed_protocol", "production_server_hub_closed_total", "reason=\"protocol\""),
    ("hub_closed_size", "production_server_hub_closed_total", "reason=\"size\""),
    ("hub_closed_gap", "production_server_hub_closed_total", "reason=\"gap\""),
    ("hub_closed_slow", "production_server_hub_closed_total", "reason=\"slow\""),
    ("hub_closed_silent", "production_server_hub_closed_total", "reason=\"silent\""),
    ("hub_closed_lost", "production_server_hub_closed_total", "reason=\"lost\""),
    ("hub_sockets", "production_server_hub_sockets", "transport=\"websocket\""),
    ("hub_event_streams", "production_server_hub_sockets", "transport=\"events\""),
    ("hub_polls", "production_server_hub_sockets", "transport=\"poll\""),
    ("files_cut", "production_server_files_cut_total", ""),
    ("compressed_zstd", "production_server_compressed_total", "coding=\"zstd\""),
    ("compressed_br", "production_server_compressed_total", "coding=\"br\""),
    ("compressed_gzip", "production_server_compressed_total", "coding=\"gzip\""),
    ("compress_busy", "production_server_compression_busy_total", ""),
    ("compress_bytes_in", "production_server_compression_in_bytes_total", ""),
    ("compress_bytes_out", "production_server_compression_out_bytes_total", ""),
    ("proxy_protocol_refused", "production_server_connections_refused_total", "reason=\"peer\""),
    ("proxy_protocol_invalid", "production_server_connections_refused_total", "reason=\"invalid\""),
    ("proxy_protocol_late", "production_server_connections_refused_total", "reason=\"late\""),
    ("tls_handshakes", "production_server_tls_handshakes_total", "result=\"full\""),
    ("tls_resumed", "production_server_tls_handshakes_total", "result=\"resumed\""),
    ("tls_unknown_name", "production_server_tls_handshakes_total", "result=\"unknown_name\""),
    ("tls_nothing_in_common", "production_server_tls_handshakes_total", "result=\"nothing_in_common\""),
    ("tls_client_certificate", "production_server_tls_handshakes_total", "result=\"client_certificate\""),
    ("tls_refused", "production_server_tls_handshakes_total", "result=\"refused\""),
    ("tls_failed", "production_server_tls_handshakes_total", "result=\"malformed\""),
    ("tls_plain", "production_server_tls_handshakes_total", "result=\"plain\""),
    ("tls_late", "production_server_tls_handshakes_total", "result=\"late\""),
    ("tls_left", "production_server_tls_handshakes_total", "result=\"left\""),
    ("tls_broken", "production_server_tls_broken_total", ""),
    ("client_gone", "production_server_clients_gone_total", ""),
    ("retries", "production_server_retries_total", ""),
    ("queue_full", "production_server_queue_rejected_total", "reason=\"full\""),
    ("queue_timeouts", "production_server_queue_rejected_total", "reason=\"timeout\""),
    ("hold_expired", "production_server_queue_rejected_total", "reason=\"hold\""),
    ("tunnels", "production_server_tunnels_opened_total", ""),
    ("worker_connections", "production_server_worker_connections_opened_total", ""),
    ("connects_failed", "production_server_worker_connect_failures_total", ""),
    ("cut", "production_server_answers_cut_total", ""),
    ("active_tunnels", "production_server_tunnels", ""),
    ("active_connections", "production_server_connections", ""),
    ("log_lines_dropped", "production_server_log_lines_dropped_total", ""),
];

/// Where the counters of a status document, all of them but those of bytes, are not the sums of those samples.
pub fn status_differences(status: &Value, samples: &Samples) -> Vec<String> {
    let other = ["connection_states", "ready", "busy", "queue", "bytes_received", "bytes_sent"];
    let names = status.as_object().unwrap().keys().filter(|name| !other.contains(&name.as_str()));
    let wrong = names.filter_map(|name| {
        let known = STATUS.iter().find(|(number, ..)| number == name);
        let (_, metric, label) = known.unwrap_or_else(|| panic!("{name} of the status document is in no metric"));
        let fits = |key: &str| key.split('{').next() == Some(*metric) && key.contains(label);
        let sum: f64 = samples.iter().filter(|(key, _)| fits(key)).map(|(_, value)| value).sum();
        (status[name] != sum as u64).then(|| format!("{name}: {} is not {sum}", status[name]))
    });
    wrong.collect()
}

/// The numbers of a box of statistics, in its order; those of bytes are left out.
pub fn boxed(text: &str) -> Vec<u64> {
    let last = text.split("SERVER STATISTICS").last().unwrap_or_default();
    last.lines().filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).collect()
}
