//! The status document: what one look at the server shows. Filled by the supervisor, read by people and by scripts.
//!
//! Rules: a member that is there stays there and keeps its meaning; new ones may be added. What is not known is `null` and never a
//! made-up zero. A reader fills in what an older server does not say.

use serde::{Deserialize, Serialize};

use crate::metrics::latency::Recent;
use crate::metrics::lives::Lives;

/// The whole document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The process that serves, and where.
    #[serde(flatten)]
    pub server: Server,
    /// What its loops have counted since its start, by name; see [`Counters`](crate::metrics::Counters).
    pub counters: serde_json::Map<String, serde_json::Value>,
    /// Log lines dropped since its start, because nobody read them.
    pub log_lines_dropped: u64,
    /// The last reload of the configuration; `null` when there was none.
    pub reload: Option<Reload>,
    /// The last upgrade of the binary that was asked of this process; `null` when there was none.
    pub upgrade: Option<Upgrade>,
    /// The certificates that its listeners show to clients which speak TLS.
    pub certificates: Vec<Certificate>,
    /// The certificate that comes by itself; `null` where there is none.
    pub acme: Option<Acme>,
    /// The sets of keys of tokens that are fetched.
    pub key_sets: Vec<KeySet>,
    /// The limits on how often clients may ask.
    pub limits: Vec<Limit>,
    /// The hubs.
    pub hubs: Vec<Hub>,
    /// Its apps.
    pub apps: Vec<App>,
    /// What was counted of the workers of apps that are gone.
    pub departed: Lives,
}

/// The process that serves, and where it is reached. Its members are the document's own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Server {
    /// The server's version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Since its start, in seconds.
    pub uptime_seconds: f64,
    /// What it does.
    pub state: State,
    /// What runs its loops: `epoll`, `kqueue` or `io_uring`.
    pub backend: String,
    /// Its event loops.
    pub loops: usize,
    /// The addresses that it listens on.
    pub listen: Vec<String>,
    /// Those where it tells about itself alone.
    pub admin: Vec<String>,
    /// The path of its control socket.
    pub control_socket: String,
}

/// A set of keys that is fetched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeySet {
    /// Where it lies.
    pub url: String,
    /// How many of its keys can be used.
    pub keys: usize,
    /// When what holds was fetched, in seconds since 1970; `null`: nothing holds yet.
    pub fetched: Option<i64>,
    /// Why it could not be fetched when that was tried last; `null` when it could.
    pub last_error: Option<String>,
}

/// A limit, and what came of it since the server's start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limit {
    /// Its name.
    pub name: String,
    /// Requests that had to wait.
    pub delayed: u64,
    /// Requests that were refused.
    pub refused: u64,
    /// Requests that would have been one or the other, in a dry run.
    pub spared: u64,
    /// Clients that were forgotten before their time, because too many others came.
    pub forgotten: u64,
    /// Who met it most, the busiest first.
    pub busiest: Vec<Busy>,
}

/// A hub, and what is in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hub {
    /// Its name.
    pub name: String,
    /// Topics that there are.
    pub topics: usize,
    /// How many listen: a client counts once for each topic. `null` where there are too many topics to be asked one by one.
    pub subscribers: Option<u64>,
    /// Messages that are kept; `null` likewise.
    pub messages: Option<u64>,
    /// Bytes that all of it takes.
    pub memory_bytes: usize,
    /// How it shares its messages; `null`: with nobody.
    pub bus: Option<Bus>,
}

/// What a hub shares its messages over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Bus {
    /// `directory`, `redis` or `nats`.
    pub kind: String,
    /// `leads` or `follows`; `connected`; `seeks`: whom to share with is being found; `away`: it cannot be found.
    pub state: String,
    /// The replicas that follow this one.
    pub peers: Vec<String>,
    /// Messages that wait for it.
    pub waiting: usize,
    /// Why it is away.
    pub problem: Option<String>,
}

impl Bus {
    /// Whether messages go to others.
    pub fn is_up(&self) -> bool {
        !matches!(self.state.as_str(), "away" | "seeks")
    }
}

/// Who met a limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Busy {
    /// The client's address, or the beginning of whatever it is told apart by.
    pub key: String,
    /// How often, at most.
    pub count: u64,
}

/// A certificate of a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Certificate {
    /// The listener's address.
    pub listener: String,
    /// The names that it is for.
    pub names: Vec<String>,
    /// The file that it was read from.
    pub file: String,
    /// From when it holds, in seconds since 1970.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
    /// The same, as a day (RFC 3339).
    pub expires: String,
    /// Why no client takes it now; `null`: it holds.
    pub outdated: Option<String>,
}

/// A certificate that comes by itself (ACME), and how it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Acme {
    /// The names that it is for.
    pub names: Vec<String>,
    /// The authority's directory.
    pub authority: String,
    /// How names are proven.
    pub challenge: String,
    /// Until when the certificate holds, in seconds since 1970; `null` where there is none yet.
    pub not_after: Option<i64>,
    /// Who decides when the next one is ordered: `missing`, `third_of_life_left`, `renewal_information`, `late` or `emergency`.
    pub decided_by: String,
    /// When it is ordered, as far as is known, in seconds since 1970.
    pub next_attempt: i64,
    /// Why the last attempt has failed; `null` when it has not.
    pub last_error: Option<String>,
    /// Certificates that have come since the start.
    pub issued: u64,
    /// Attempts that have failed since the start.
    pub failed: u64,
}

/// A reload of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reload {
    /// What has come of it.
    pub state: ReloadState,
    /// When it was, in UTC (RFC 3339).
    pub at: String,
    /// What it has changed, each in one line.
    pub changes: Vec<String>,
    /// Why it has changed nothing.
    pub reason: Option<String>,
}

/// What has come of a reload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReloadState {
    /// The new configuration holds.
    #[default]
    Done,
    /// The old configuration holds.
    Failed,
}

/// An upgrade of the binary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Upgrade {
    /// How it stands.
    pub state: UpgradeState,
    /// The new binary.
    pub program: String,
    /// Its process; `null` when it could not be started.
    pub pid: Option<u32>,
    /// Its version, when it has said so.
    pub version: Option<String>,
    /// Why it has failed.
    pub reason: Option<String>,
}

/// How an upgrade stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpgradeState {
    /// The new server starts.
    #[default]
    Running,
    /// The new server serves; this one finishes its requests.
    Done,
    /// This server serves on.
    Failed,
}

/// What a server or an app does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// No worker was ready yet.
    #[default]
    Starting,
    /// It serves.
    Running,
    /// It takes no more connections and finishes what is in flight.
    Draining,
    /// It holds requests.
    Paused,
    /// It ends.
    Stopping,
    /// The workers crash before they answer anything, and are not started again.
    Failed,
}

/// One app.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct App {
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: State,
    /// Whether the server is ready only with it: it is required, and not one that has come by a reload and was not ready yet.
    pub needed: bool,
    /// The newest generation of its workers.
    pub generation: u32,
    /// Workers that came and went since the server's start.
    pub lives: Lives,
    /// Workers wanted.
    pub workers_wanted: usize,
    /// Workers ready for requests.
    pub workers_ready: usize,
    /// Workers that have a request.
    pub workers_busy: usize,
    /// The bounds of automatic scaling, where it is on.
    pub scaling: Option<Scaling>,
    /// Whether requests are held.
    pub paused: bool,
    /// The waiting line.
    pub queue: Queue,
    /// Requests that ended.
    pub requests: Requests,
    /// How long they took.
    pub latency_ms: Latency,
    /// The last rolling restart; `null` when there was none.
    pub roll: Option<Roll>,
    /// Its workers.
    pub workers: Vec<Worker>,
}

/// The bounds of automatic scaling.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Scaling {
    /// At least so many workers.
    pub min: usize,
    /// At most so many.
    pub max: usize,
}

/// The waiting line of an app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Queue {
    /// Requests that wait.
    pub depth: usize,
    /// Requests that may wait.
    pub size: usize,
    /// How long the one at the head has waited; `null` when none waits.
    pub oldest_wait_ms: Option<f64>,
    /// Workers that take requests, busy or idle.
    pub eligible: u32,
}

/// Requests of an app: those that its workers had, or that the loops have answered in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Requests {
    /// Since the server's start.
    pub total: u64,
    /// Over the last 10 to 20 seconds; `null` when that is not known yet.
    pub per_second: Option<f64>,
}

/// How long requests took, from their first byte to the last of their answer, in milliseconds. A value is at most 6.25 % above the
/// true one. Answers of the loop itself count as taking no time. Event streams and tunnels are left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Half of the requests took at most so long; `null` when there was none.
    pub p50: Option<f64>,
    /// 90 % took at most so long.
    pub p90: Option<f64>,
    /// 99 % took at most so long.
    pub p99: Option<f64>,
    /// All took at most so long.
    pub max: Option<f64>,
    /// How many there were.
    pub count: u64,
    /// Over how many of the last seconds; `null`: since the server's start.
    pub over_seconds: Option<f64>,
}

/// A rolling restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Roll {
    /// Its number, from 1.
    pub id: u64,
    /// The generation that it brings.
    pub generation: u32,
    /// How it stands.
    pub state: RollState,
    /// Workers replaced.
    pub replaced: usize,
    /// Workers to be replaced.
    pub total: usize,
    /// Why it was aborted.
    pub reason: Option<String>,
    /// The last lines that the worker which failed it wrote to stderr.
    pub last_stderr: Vec<String>,
}

/// How a rolling restart stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RollState {
    /// It is under way.
    #[default]
    Running,
    /// All workers are of its generation.
    Done,
    /// A replacement failed; the old workers serve on.
    Aborted,
}

/// One worker.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Worker {
    /// Its `WORKER_ID`; for one that joined, the server's own number for it.
    pub id: u32,
    /// Its process; `null` while there is none, or when one that joined did not say.
    pub pid: Option<u32>,
    /// Its generation.
    pub generation: u32,
    /// What it does.
    pub state: WorkerState,
    /// Whether it was started by somebody else and has joined.
    pub joined: bool,
    /// Its name in the logs, as in `web.G3.2`; for one that joined, its `workerId`.
    pub name: String,
    /// Where it listens.
    pub socket: String,
    /// Since its process was started, or since it has joined; `null` while there is none.
    pub uptime_seconds: Option<f64>,
    /// What it was given.
    #[serde(flatten)]
    pub work: Work,
    /// Those before it.
    #[serde(flatten)]
    pub before: Before,
    /// How often it was told to load changed code.
    pub reloads: u64,
    /// Memory of its process group (PSS); `null` when it was not measured.
    pub memory_bytes: Option<u64>,
    /// How it answers the health check; `null` when it is not asked.
    pub health: Option<Health>,
    /// How often it was given no more requests for a while because it had failed; `null` for workers that are replaced instead.
    pub ejections: Option<u64>,
    /// What it says of itself (`STATUS=` of sd_notify(3)).
    pub status_text: Option<String>,
}

/// What a worker was given. The members are the worker's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Work {
    /// Requests that it was given and that ran.
    pub requests: u64,
    /// Those that it has now.
    pub in_flight: u32,
    /// Tunnels through it.
    pub tunnels: u32,
}

/// What is known of those that were in a worker's place before it. The members are the worker's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Before {
    /// How often its place was filled again, for whatever reason.
    pub restarts: u64,
    /// Requests that the workers before it in its place were given and that ran.
    pub requests_before: u64,
    /// Health checks that have failed there, this worker's included.
    pub failed_checks: u64,
    /// Why the process before this one in its place ended; `null` when there was none.
    pub last_exit: Option<String>,
}

/// How a worker or an upstream answers the health check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// Whether it is well: it has not failed as often in a row as is too often.
    pub healthy: bool,
    /// Checks that it has failed since it is asked.
    pub failures: u64,
    /// What was wrong the last time; `null` when nothing was.
    pub reason: Option<String>,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// Its process runs and is not ready.
    #[default]
    Starting,
    /// It takes requests.
    Running,
    /// It has ended unasked and is started again at its time.
    Respawning,
    /// An upstream that has failed, or fails its health checks, and gets no requests while another is well.
    Ejected,
    /// It finishes what it has.
    Stopping,
    /// It has ended.
    Stopped,
    /// It has ended too often and is not started again.
    Failed,
}

impl State {
    /// All of them.
    pub const ALL: [State; 6] =
        [State::Starting, State::Running, State::Draining, State::Paused, State::Stopping, State::Failed];

    /// The word in the document.
    pub fn name(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Running => "running",
            State::Draining => "draining",
            State::Paused => "paused",
            State::Stopping => "stopping",
            State::Failed => "failed",
        }
    }
}

impl WorkerState {
    /// All of them.
    pub const ALL: [WorkerState; 7] = [
        WorkerState::Starting,
        WorkerState::Running,
        WorkerState::Respawning,
        WorkerState::Ejected,
        WorkerState::Stopping,
        WorkerState::Stopped,
        WorkerState::Failed,
    ];

    /// The word in the document.
    pub fn name(self) -> &'static str {
        match self {
            WorkerState::Starting => "starting",
            WorkerState::Running => "running",
            WorkerState::Respawning => "respawning",
            WorkerState::Ejected => "ejected",
            WorkerState::Stopping => "stopping",
            WorkerState::Stopped => "stopped",
            WorkerState::Failed => "failed",
        }
    }
}

impl From<&Recent> for Latency {
    fn from(recent: &Recent) -> Latency {
        let told = |share| recent.latencies.quantile(share).map(|took| took.as_secs_f64() * 1000.0);
        Latency {
            p50: told(0.5),
            p90: told(0.9),
            p99: told(0.99),
            max: told(1.0),
            count: recent.latencies.count(),
            over_seconds: recent.over.map(|over| over.as_secs_f64()),
        }
    }
}

impl Status {
    /// The document as JSON.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("a document of numbers, strings and string keys is always JSON")
    }
}

#[cfg(test)]
fn sample_before() -> Before {
    Before { restarts: 2, failed_checks: 3, last_exit: Some("recycle: 10000 requests".to_owned()), ..Before::default() }
}

/// A document with something of everything, for tests.
#[cfg(test)]
pub(crate) fn sample() -> Status {
    let worker = Worker {
        id: 1,
        pid: Some(4712),
        generation: 3,
        state: WorkerState::Running,
        name: "web.G3.1".to_owned(),
        socket: "/run/production_server/run-1/web.G3.1.7.sock".to_owned(),
        uptime_seconds: Some(123.4),
        work: Work { requests: 60_000, in_flight: 1, tunnels: 0 },
        before: sample_before(),
        memory_bytes: Some(26_214_400),
        ..Worker::default()
    };
    let joined = Worker {
        id: 2,
        pid: None,
        joined: true,
        name: "blue\u{1b}[31m-7".to_owned(),
        status_text: Some("warm".to_owned()),
        before: Before { last_exit: None, ..worker.before.clone() },
        memory_bytes: None,
        ..worker.clone()
    };
    let app = App {
        name: "web".to_owned(),
        state: State::Running,
        needed: true,
        generation: 3,
        lives: Lives {
            starts: 6,
            replaced: 4,
            crashes: 1,
            exits: [("recycle".to_owned(), 3), ("crash".to_owned(), 1)].into(),
        },
        workers_wanted: 2,
        workers_ready: 2,
        workers_busy: 1,
        scaling: Some(Scaling { min: 2, max: 8 }),
        paused: false,
        queue: Queue { depth: 3, size: 8192, oldest_wait_ms: Some(12.5), eligible: 2 },
        requests: Requests { total: 120_031, per_second: Some(512.34) },
        latency_ms: Latency {
            p50: Some(1.25),
            p90: Some(3.0),
            p99: Some(12.0),
            max: Some(80.0),
            count: 6103,
            over_seconds: Some(12.0),
        },
        roll: Some(sample_roll()),
        workers: vec![worker, joined],
    };
    Status {
        server: Server {
            version: "0.1.0".to_owned(),
            pid: 4711,
            uptime_seconds: 10_923.0,
            state: State::Running,
            backend: "epoll".to_owned(),
            loops: 2,
            listen: vec!["0.0.0.0:8080".to_owned()],
            admin: Vec::new(),
            control_socket: "/run/production_server/control.sock".to_owned(),
        },
        counters: sample_counters(),
        apps: vec![app],
        ..Status::default()
    }
}

#[cfg(test)]
fn sample_roll() -> Roll {
    Roll {
        id: 4,
        generation: 4,
        state: RollState::Aborted,
        replaced: 0,
        total: 2,
        reason: Some("the replacement of worker 1 exited with code 1 before it was ready".to_owned()),
        last_stderr: vec!["Error: Cannot find module 'express'".to_owned()],
    }
}

#[cfg(test)]
fn sample_counters() -> serde_json::Map<String, serde_json::Value> {
    let counters = [("requests", 120_031), ("timeouts", 12), ("retries", 1), ("panics", 0)];
    counters.into_iter().map(|(name, count)| (name.to_owned(), count.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_document_has_the_members_that_its_readers_know() {
        let document = sample().to_json();
        let keys = |value: &serde_json::Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
        let sorted = |mut names: Vec<&str>| -> Vec<String> {
            names.sort_unstable();
            names.into_iter().map(str::to_owned).collect()
        };
        #[rustfmt::skip]
        let top = vec![
            "version", "pid", "uptime_seconds", "state", "backend", "loops", "listen", "admin", "control_socket", "counters",
            "log_lines_dropped", "reload", "upgrade", "certificates", "acme", "key_sets", "limits", "hubs", "apps", "departed",
        ];
        assert_eq!(keys(&document), sorted(top));
        let app = &document["apps"][0];
        #[rustfmt::skip]
        let of_app = vec![
            "name", "state", "needed", "generation", "lives", "workers_wanted", "workers_ready", "workers_busy", "scaling", "paused", "queue", "requests", "latency_ms",
            "roll", "workers",
        ];
        assert_eq!(keys(app), sorted(of_app));
        assert_eq!(app["queue"], json!({"depth": 3, "size": 8192, "oldest_wait_ms": 12.5, "eligible": 2}));
        assert_eq!(app["scaling"], json!({"min": 2, "max": 8}));
        assert_eq!(app["roll"]["state"], "aborted");
        #[rustfmt::skip]
        let of_worker = vec![
            "id", "pid", "generation", "state", "joined", "name", "socket", "uptime_seconds", "restarts", "requests", "requests_before", "in_flight",
            "tunnels", "reloads", "memory_bytes", "health", "failed_checks", "ejections", "last_exit", "status_text",
        ];
        assert_eq!(keys(&app["workers"][0]), sorted(of_worker));
        assert!(app["workers"][1]["pid"].is_null());
    }

    #[test]
    fn a_document_reads_back_and_an_older_one_is_filled_in() {
        let text = sample().to_json().to_string();
        assert_eq!(serde_json::from_str::<Status>(&text).unwrap(), sample());
        let older: Status =
            serde_json::from_str(r#"{"pid":7,"state":"paused","new":1,"apps":[{"name":"web"}]}"#).unwrap();
        assert_eq!((older.server.pid, older.server.state, older.apps[0].name.as_str()), (7, State::Paused, "web"));
    }
}
