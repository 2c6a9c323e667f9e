//! Counters of the loops, their totals, the box on stdout, and the short status document.
//!
//! Rules:
//! - Each loop owns one [`Counters`] and is the only one that writes it, with a relaxed load and store: no lock prefix on
//!   the request path. Any thread may read at any time; what it sees may be one update old, never torn.
//! - Counters only grow until the process ends; [`Gauge`]s go both ways.
//! - Each loop's counters stand on cache lines of their own, so that loops do not slow each other down.
//! - What is counted for an app or for a route stands in tables (`series`), whose rows are named by numbers that the loops carry.
//! - What a server has counted its successor counts on from (`account`).

mod account;
pub mod latency;
pub mod lives;
pub mod series;

pub use account::Account;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use crossbeam_utils::CachePadded;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::hub;
use crate::limits::Registry;

use latency::Latencies;
use series::{AllSeries, AppCounters, Apps, Names, Register, SeriesCounters};

/// A number that only grows. One thread writes, all may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Nothing yet.
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }

    /// Adds `more`. Only the owner's thread may call it: two writers would lose counts.
    #[inline]
    pub fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// The number now.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts on from there. Only the owner's thread may call it.
    fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// A number that goes up and down and never below zero. One thread writes, all may read.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more. Only the owner's thread may call it.
    #[inline]
    pub fn increment(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// One less. Only the owner's thread may call it.
    #[inline]
    pub fn decrement(&self) {
        let before = self.0.load(Ordering::Relaxed);
        debug_assert!(before > 0, "a gauge went below zero");
        self.0.store(before.saturating_sub(1), Ordering::Relaxed);
    }

    /// The number now.
    #[inline]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The public states of a client connection that a gauge counts. CLOSED is missing: nothing is left to count then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum ConnectionState {
    /// Accepted; no byte was read yet.
    Accepting,
    /// Waiting for a request or in the middle of one.
    ReadingRequest,
    /// The request waits for a worker or its answer.
    Processing,
    /// The answer is on its way.
    WritingResponse,
    /// Being shut down.
    Closing,
}

impl ConnectionState {
    /// All of them, in the order of a connection's life.
    pub const ALL: [ConnectionState; 5] = [
        ConnectionState::Accepting,
        ConnectionState::ReadingRequest,
        ConnectionState::Processing,
        ConnectionState::WritingResponse,
        ConnectionState::Closing,
    ];

    /// The name in documents, in lower case with underscores.
    pub const fn name(self) -> &'static str {
        match self {
            ConnectionState::Accepting => "accepting",
            ConnectionState::ReadingRequest => "reading_request",
            ConnectionState::Processing => "processing",
            ConnectionState::WritingResponse => "writing_response",
            ConnectionState::Closing => "closing",
        }
    }
}

macro_rules! counters {
    ($($(#[doc = $text:literal])+ $name:ident,)+ of apps: $($(#[doc = $app_text:literal])+ $app_name:ident: $read:expr,)+) => {
        /// What one loop counts. Written by that loop's thread only.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[doc = $text])+ pub $name: Counter,)+
            /// Client connections open now.
            pub active_connections: Gauge,
            /// Tunnels (after `101 Switching Protocols`) open now.
            pub active_tunnels: Gauge,
            /// WebSockets of hubs open now.
            pub hub_sockets: Gauge,
            /// Event streams of hubs open now.
            pub hub_event_streams: Gauge,
            /// Requests that wait for messages of hubs now.
            pub hub_polls: Gauge,
            /// Client connections by state; see [`Counters::moved`].
            pub states: [Gauge; 5],
            /// What is counted for each app.
            pub apps: Apps,
            /// What is counted for each series.
            pub series: AllSeries,
            /// The number of the last beat that it has answered (`Message::Beat`).
            pub beat: AtomicU64,
            /// It has no client left in a stop but those who watch the server.
            pub drained: AtomicBool,
            /// The clock of its thread's CPU time, for clock_gettime(3); 0: not known.
            pub clock: AtomicI64,
        }

        impl Counters {
            /// What is counted for no app in particular, by name.
            fn named(&self) -> Vec<(&'static str, &Counter)> {
                vec![$((stringify!($name), &self.$name),)+]
            }
        }

        /// The sum over all loops and apps at one moment.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct Totals {
            $($(#[doc = $text])+ pub $name: u64,)+
            $($(#[doc = $app_text])+ pub $app_name: u64,)+
            /// Client connections open now.
            pub active_connections: u64,
            /// Tunnels (after `101 Switching Protocols`) open now.
            pub active_tunnels: u64,
            /// WebSockets of hubs open now.
            pub hub_sockets: u64,
            /// Event streams of hubs open now.
            pub hub_event_streams: u64,
            /// Requests that wait for messages of hubs now.
            pub hub_polls: u64,
            /// Bytes of the disk that the spool takes now.
            pub spool_bytes: u64,
            /// Client connections by state, in the order of [`ConnectionState::ALL`].
            #[serde(rename = "connection_states", serialize_with = "states_by_name")]
            pub states: [u64; 5],
        }

        impl Totals {
            /// Adds one loop's counters.
            pub fn add(&mut self, counters: &Counters) {
                $(self.$name += counters.$name.value();)+
                for (_, app) in counters.apps.rows() {
                    $(self.$app_name += { let read: fn(&AppCounters) -> u64 = $read; read(app) };)+
                }
                self.active_connections += counters.active_connections.value();
                self.active_tunnels += counters.active_tunnels.value();
                self.hub_sockets += counters.hub_sockets.value();
                self.hub_event_streams += counters.hub_event_streams.value();
                self.hub_polls += counters.hub_polls.value();
                for (total, state) in self.states.iter_mut().zip(&counters.states) {
                    *total += state.value();
                }
            }
        }
    };
}

counters! {
    /// Client connections accepted.
    total_connections,
    /// Requests that came, those that were refused before they were understood included: once none is under way, as many as the
    /// statuses of all series count.
    requests,
    /// Bytes received from clients.
    bytes_received,
    /// Bytes queued for clients.
    bytes_sent,
    /// Requests that the server refused, answers cut, and bodies that broke behind their answers.
    errors,
    /// Deadlines that passed: of slow heads, bodies and readers, of workers without an answer, of quiet streams, and of waiting.
    timeouts,
    /// Panics caught at the loop's boundary.
    panics,
    /// Idle connections closed because `max_connections` was near.
    idle_closed,
    /// Times that accepting paused for lack of descriptors.
    accept_pauses,
    /// Times that an answer was not read on from its worker because `buffer_bytes` was used up.
    paused_for_memory,
    /// Requests refused because `buffer_bytes` was used up.
    memory_refused,
    /// Answers and request bodies that went on into the spool.
    spooled,
    /// Those that could not, or not to their end, because it was full or its disk failed.
    spool_refused,
    /// Pieces of work that loops had for the helper threads.
    helper_jobs,
    /// Those of them that were refused because too many waited.
    helper_refusals,
    /// Files that changed or failed while they were sent: the answer was cut.
    files_cut,
    /// Answers that were compressed with Zstandard.
    compressed_zstd,
    /// Answers that were compressed with Brotli.
    compressed_br,
    /// Answers that were compressed with gzip.
    compressed_gzip,
    /// Answers that left as they were because too many others were being compressed.
    compress_busy,
    /// Bytes of bodies before they were compressed.
    compress_bytes_in,
    /// The same bodies afterwards.
    compress_bytes_out,
    /// Connections closed because their peer may not speak for others with the PROXY protocol.
    proxy_protocol_refused,
    /// Connections closed because they did not begin with a header of the PROXY protocol.
    proxy_protocol_invalid,
    /// Connections closed because that header did not come in time.
    proxy_protocol_late,
    /// TLS handshakes that were done in full.
    tls_handshakes,
    /// TLS handshakes that went on where an earlier session had ended.
    tls_resumed,
    /// TLS clients that asked for a name which no certificate has.
    tls_unknown_name,
    /// TLS clients without a version, a cipher or a protocol in common with the server.
    tls_nothing_in_common,
    /// TLS clients whose own certificate was missing or not accepted.
    tls_client_certificate,
    /// TLS clients that did not go on: most do not trust the certificate.
    tls_refused,
    /// Connections that were to begin with a TLS handshake and began with something else that is malformed.
    tls_failed,
    /// Connections that began with a request without TLS where TLS is spoken.
    tls_plain,
    /// Connections closed because their TLS handshake took too long.
    tls_late,
    /// Connections that ended before their TLS handshake was done.
    tls_left,
    /// TLS connections closed because what came on them later was malformed.
    tls_broken,
    /// Requests refused because their client's address is not allowed.
    denied,
    /// Requests that came in by their credentials.
    auth_passed,
    /// Requests refused because their credentials were missing or wrong.
    auth_refused,
    /// Requests refused because too many credentials waited to be checked.
    auth_busy,
    /// Requests about which an app was asked that had no answer.
    auth_unanswered,
    /// Connections closed because their address had as many as it may.
    crowded_out,
    /// Messages published in hubs, those that came a second time left out.
    hub_messages,
    /// Messages that were handed to subscribers of hubs.
    hub_deliveries,
    /// Times that a subscriber of a hub was told that messages are missing.
    hub_gaps,
    /// Events of hubs that apps were told of.
    hub_events,
    /// Those that had no answer, one that refuses them, or one that cannot be read.
    hub_events_failed,
    /// Requests to hubs refused for their origin or the lack of a key.
    hub_refused,
    /// WebSockets of hubs closed by their clients, or at their clients' word.
    hub_closed,
    /// WebSockets of hubs closed because the server ends.
    hub_closed_restart,
    /// WebSockets of hubs closed because what came over them breaks the rules.
    hub_closed_protocol,
    /// WebSockets of hubs closed because a message was too large, or too many were on their way.
    hub_closed_size,
    /// WebSockets of hubs closed because messages are missing.
    hub_closed_gap,
    /// WebSockets of hubs cut because what waited for them was too much.
    hub_closed_slow,
    /// WebSockets of hubs that ended without a close, a ping unanswered.
    hub_closed_silent,
    /// WebSockets of hubs that ended without a close otherwise.
    hub_closed_lost,
    /// Requests whose client left before it had the whole answer, or did not take it in time.
    client_gone,
    of apps:
    /// Requests given to a second worker.
    retries: AppCounters::all_retries,
    /// Requests refused because the waiting queue was full.
    queue_full: |app| app.queue_full.value(),
    /// Requests that waited for a worker for too long.
    queue_timeouts: |app| app.queue_timeouts.value(),
    /// Requests held while no worker was ready, until the hold was over.
    hold_expired: |app| app.hold_expired.value(),
    /// Tunnels opened.
    tunnels: |app| app.tunnels.value(),
    /// Connections opened to workers.
    worker_connections: |app| app.worker_connections.value(),
    /// Connects to workers that were refused or took too long.
    connects_failed: |app| app.connects_failed.value(),
    /// Answers that had begun and could not be completed.
    cut: |app| app.cut.value(),
}

impl Counters {
    /// Counts a connection's move between two states; `None` stands for "not there": before ACCEPTING and after CLOSING.
    #[inline]
    pub fn moved(&self, from: Option<ConnectionState>, to: Option<ConnectionState>) {
        if let Some(from) = from {
            self.states[from as usize].decrement();
        }
        if let Some(to) = to {
            self.states[to as usize].increment();
        }
    }

    /// What is counted for that app ([`Metrics::app`]).
    #[inline]
    pub fn app(&self, index: u16) -> &AppCounters {
        self.apps.row(index)
    }

    /// What is counted for that series ([`Metrics::series`]).
    #[inline]
    pub fn of_series(&self, index: u16) -> &SeriesCounters {
        self.series.row(index)
    }

    /// Connections in that state now.
    pub fn in_state(&self, state: ConnectionState) -> u64 {
        self.states[state as usize].value()
    }
}

/// The counters of one loop, as that loop holds them.
pub type OwnCounters = Arc<CachePadded<Counters>>;

/// The counters of all loops, and the names of what they count for apps and routes. Cloning gives another handle.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<All>);

#[derive(Debug)]
struct All {
    loops: Box<[OwnCounters]>,
    /// What the servers before this one have counted, as if they were one more loop.
    before: Counters,
    register: Register,
    /// What is remembered of clients by the limits, beside what comes of it.
    limits: Registry,
    /// The hubs, and what is in them.
    hubs: hub::Registry,
    spool: Arc<InSpool>,
}

/// What the files of the spool take of the disk.
#[derive(Debug, Default)]
pub struct InSpool(AtomicU64);

impl InSpool {
    /// Bytes that they take now, or are about to.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Takes so many more, unless they would be more than `limit` then; whether it has.
    pub fn add(&self, more: u64, limit: u64) -> bool {
        let added = |bytes: u64| bytes.checked_add(more).filter(|sum| *sum <= limit);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added).is_ok()
    }

    /// Gives so many back.
    pub fn give_back(&self, bytes: u64) {
        self.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Counters for that many loops, all zero.
    pub fn new(loops: usize) -> Metrics {
        let hubs = hub::Registry::new(loops);
        let loops = (0..loops).map(|_| OwnCounters::default()).collect();
        Metrics(Arc::new(All {
            loops,
            before: Counters::default(),
            register: Register::default(),
            limits: Registry::default(),
            hubs,
            spool: Arc::default(),
        }))
    }

    /// One loop's counters. Panics if there is no such loop, which is a mistake of ours.
    pub fn of_loop(&self, index: usize) -> &OwnCounters {
        &self.0.loops[index]
    }

    /// The counters of each loop, in order.
    pub fn loops(&self) -> impl ExactSizeIterator<Item = &Counters> {
        self.0.loops.iter().map(|own| &***own)
    }

    /// Whatever has counted: the loops, and the servers before this one.
    fn all(&self) -> impl Iterator<Item = &Counters> {
        self.loops().chain([&self.0.before])
    }

    /// The hubs that are in use.
    pub fn hubs(&self) -> &hub::Registry {
        &self.0.hubs
    }

    /// The limits that are in use.
    pub fn limits(&self) -> &Registry {
        &self.0.limits
    }

    /// What the spool takes of the disk.
    pub fn spool(&self) -> &Arc<InSpool> {
        &self.0.spool
    }

    /// The number by which loops count for the app of that name: the one that it has, or a new one.
    pub fn app(&self, name: &str) -> u16 {
        self.0.register.app(name)
    }

    /// The number by which loops count for a route, to an app or to none. Its pattern is empty where it takes all.
    pub fn series(&self, app: Option<u16>, route: &str) -> u16 {
        self.0.register.series(app, route)
    }

    /// The names behind those numbers.
    pub fn names(&self) -> Names {
        self.0.register.names()
    }

    /// Takes back all names that have come since there were those. No loop may know the numbers of the others.
    pub fn forget_names_beyond(&self, known: &Names) {
        self.0.register.forget_beyond(known);
    }

    /// What was counted for an app, as `read` finds it.
    pub fn of_app(&self, app: u16, read: fn(&AppCounters) -> u64) -> u64 {
        self.all().filter_map(|counters| counters.apps.get(app.into())).map(read).sum()
    }

    /// How many requests of a series have ended with each status.
    pub fn statuses(&self, series: u16) -> BTreeMap<u16, u64> {
        let mut sum = BTreeMap::new();
        for (status, count) in self.rows(series).flat_map(SeriesCounters::statuses) {
            *sum.entry(status).or_default() += count;
        }
        sum
    }

    /// How long the requests of a series took.
    pub fn took(&self, series: u16) -> Latencies {
        let mut took = Latencies::default();
        self.rows(series).for_each(|row| row.add_took(&mut took));
        took
    }

    /// How long the requests of all series of an app took.
    pub fn took_by_app(&self, app: u16) -> Latencies {
        let mut took = Latencies::default();
        for series in self.0.register.series_of(app) {
            self.rows(series).for_each(|row| row.add_took(&mut took));
        }
        took
    }

    /// How many requests of an app have ended.
    pub fn ended_by_app(&self, app: u16) -> u64 {
        self.0.register.series_of(app).into_iter().flat_map(|series| self.statuses(series).into_values()).sum()
    }

    /// How long the requests of an app waited for a worker.
    pub fn waited(&self, app: u16) -> Latencies {
        let mut waited = Latencies::default();
        self.all().filter_map(|counters| counters.apps.get(app.into())).for_each(|row| waited.add(&row.waited));
        for series in self.0.register.series_of(app) {
            self.rows(series).for_each(|row| waited.add_at_once(row.at_once.value()));
        }
        waited
    }

    fn rows(&self, series: u16) -> impl Iterator<Item = &SeriesCounters> {
        self.all().filter_map(move |counters| counters.series.get(series.into()))
    }

    /// How long the requests of all loops took.
    pub fn latencies(&self) -> Latencies {
        let mut latencies = Latencies::default();
        for counters in self.all() {
            counters.series.rows().for_each(|(_, row)| row.add_took(&mut latencies));
        }
        latencies
    }

    /// The sum over all loops.
    pub fn total(&self) -> Totals {
        let mut totals = Totals { spool_bytes: self.0.spool.bytes(), ..Totals::default() };
        self.all().for_each(|counters| totals.add(counters));
        totals
    }
}

const RULE: &str = "═══════════════════════════════════════════════════════════";

/// The box for stdout, with a line end behind it.
pub fn stats_box(totals: &Totals) -> String {
    let lines = [
        ("Total connections:", totals.total_connections.to_string()),
        ("Active connections:", totals.active_connections.to_string()),
        ("Requests handled:", totals.requests.to_string()),
        ("Bytes received:", human_bytes(totals.bytes_received)),
        ("Bytes sent:", human_bytes(totals.bytes_sent)),
        ("Errors:", totals.errors.to_string()),
        ("Timeouts:", totals.timeouts.to_string()),
    ];
    let mut text = format!("{RULE}\n  SERVER STATISTICS\n{RULE}\n");
    for (name, value) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name:<20}{value}");
    }
    text + RULE + "\n"
}

/// Bytes with two decimals in the largest fitting unit (of 1024), as in `12.34 MB`; whole bytes below 1 KB.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // 1023.995 would be printed as 1024.00.
    while value >= 1023.995 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

/// The word that the status document opens with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As many workers as wanted are ready.
    Healthy,
    /// Some, but not all of the workers are ready.
    Degraded,
    /// No worker was ready yet, or all are being replaced.
    Starting,
    /// The app has given up.
    Failed,
}

impl Health {
    /// The health of an app with `ready` of `wanted` workers.
    pub fn of(ready: usize, wanted: usize, failed: bool) -> Health {
        match ready {
            _ if failed => Health::Failed,
            ready if ready >= wanted => Health::Healthy,
            0 => Health::Starting,
            _ => Health::Degraded,
        }
    }
}

/// What `/status` tells over HTTP. The document of the control socket has more.
#[derive(Clone, Debug)]
pub struct Status {
    /// How it goes.
    pub health: Health,
    /// The app's name.
    pub app: String,
    /// Workers wanted.
    pub workers: usize,
    /// The first TCP port that is listened on.
    pub http_port: Option<u16>,
    /// Since the start of the server.
    pub uptime: Duration,
}

/// The document of `/status` in JSON, without a line end; its times are in whole seconds.
pub fn status_json(status: &Status) -> String {
    #[derive(Serialize)]
    struct Document<'a> {
        status: Health,
        app: &'a str,
        workers: usize,
        ports: Ports,
        uptime: u64,
    }
    #[derive(Serialize)]
    struct Ports {
        #[serde(skip_serializing_if = "Option::is_none")]
        http: Option<u16>,
    }
    let document = Document {
        status: status.health,
        app: &status.app,
        workers: status.workers,
        ports: Ports { http: status.http_port },
        uptime: status.uptime.as_secs(),
    };
    serde_json::to_string(&document).expect("a document of numbers, strings and string keys is always JSON")
}

fn states_by_name<S: Serializer>(states: &[u64; 5], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(states.len()))?;
    for state in ConnectionState::ALL {
        map.serialize_entry(state.name(), &states[state as usize])?;
    }
    map.end()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Totals {
        Totals {
            total_connections: 15234,
            active_connections: 87,
            requests: 89421,
            bytes_received: 12_939_428,
            bytes_sent: 47_888_465,
            errors: 3,
            timeouts: 12,
            ..Totals::default()
        }
    }

    #[test]
    fn the_box_is_the_one_that_readers_know() {
        let expected = "\
═══════════════════════════════════════════════════════════
  SERVER STATISTICS
═══════════════════════════════════════════════════════════
  Total connections:  15234
  Active connections: 87
  Requests handled:   89421
  Bytes received:     12.34 MB
  Bytes sent:         45.67 MB
  Errors:             3
  Timeouts:           12
═══════════════════════════════════════════════════════════
";
        assert_eq!(stats_box(&sample()), expected);
    }

    #[test]
    fn bytes_are_shown_in_the_largest_fitting_unit() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KB"),
            (1536, "1.50 KB"),
            (1024 * 1024 - 1, "1.00 MB"),
            (1024 * 1024, "1.00 MB"),
            (5 * 1024 * 1024 * 1024, "5.00 GB"),
            (u64::MAX, "16.00 EB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn totals_sum_the_loops_and_read_from_another_thread() {
        let metrics = Metrics::new(2);
        metrics.of_loop(0).requests.add(3);
        metrics.of_loop(1).requests.add(4);
        metrics.of_loop(1).active_connections.increment();
        metrics.of_loop(1).moved(None, Some(ConnectionState::Accepting));
        metrics.of_loop(1).moved(Some(ConnectionState::Accepting), Some(ConnectionState::ReadingRequest));
        let other = metrics.clone();
        let totals = std::thread::spawn(move || other.total()).join().unwrap();
        assert_eq!((totals.requests, totals.active_connections, totals.states), (7, 1, [0, 1, 0, 0, 0]));
        metrics.of_loop(1).moved(Some(ConnectionState::ReadingRequest), None);
        assert_eq!(metrics.total().states, [0; 5]);
        assert_eq!(metrics.of_loop(1).in_state(ConnectionState::ReadingRequest), 0);
    }

    #[test]
    fn each_loop_writes_its_own_cache_lines() {
        let metrics = Metrics::new(2);
        let (first, second) = (&raw const **metrics.of_loop(0) as usize, &raw const **metrics.of_loop(1) as usize);
        let line = align_of::<CachePadded<u8>>();
        assert!(
            line >= 64 && first % line == 0 && second % line == 0 && second.abs_diff(first) >= size_of::<Counters>()
        );
    }

    #[test]
    fn health_follows_the_workers() {
        let cases = [
            (2, 2, false, Health::Healthy),
            (3, 2, false, Health::Healthy),
            (1, 2, false, Health::Degraded),
            (0, 2, false, Health::Starting),
            (0, 0, false, Health::Healthy),
            (1, 2, true, Health::Failed),
        ];
        for (ready, wanted, failed, health) in cases {
            assert_eq!(Health::of(ready, wanted, failed), health, "{ready} of {wanted}, failed: {failed}");
        }
    }

    #[test]
    fn the_status_document_is_the_one_that_readers_know() {
        let status = Status {
            health: Health::Healthy,
            app: "my \"app\"".to_owned(),
            workers: 4,
            http_port: Some(5002),
            uptime: Duration::from_millis(3_600_900),
        };
        let expected = r#"{"status":"healthy","app":"my \"app\"","workers":4,"ports":{"http":5002},"uptime":3600}"#;
        assert_eq!(status_json(&status), expected);
        let unix = status_json(&Status { http_port: None, ..status });
        assert!(unix.contains(r#""ports":{},"#), "{unix}");
    }

    #[test]
    fn totals_are_told_by_name() {
        let value = serde_json::to_value(sample()).unwrap();
        assert_eq!(value["connection_states"]["processing"], 0);
        assert_eq!((&value["requests"], &value["bytes_sent"]), (&89421.into(), &47_888_465.into()));
        assert!(["accept_pauses", "paused_for_memory", "memory_refused"].iter().all(|name| value[name] == 0));
    }
}
