//! The configuration: one checked [`Settings`], made of flags, shorthands, the environment, a file and defaults.
//!
//! - `keys`: every key once, with its flag, its environment names, its default and how its value is read;
//! - `places`, `tables`: where each key stands in the configuration file, and what its tables hold;
//! - `file`: that file, from finding it to its values and problems, and `report`: how problems are shown;
//! - `show` and `schema`: what is configured, and what may be;
//! - `front`: what may stand in front of the server;
//! - `app`: what is said of one app;
//! - `arguments`: the command line, and its mistakes in one line;
//! - `health`: how workers and upstreams are found to be well;
//! - `hub`: what hubs may hold, and who may publish;
//! - `monitoring`: what is told to those who watch the server;
//! - `limits`: how often clients may ask;
//! - `load`: all places together, and `clashes`: what of them does not go together;
//! - `shell`: completions and the manual page;
//! - `conformance`: the words of that subcommand;
//! - `environment`: the variables;
//! - `error_page`: pages in the place of the server's own errors;
//! - `steering`: the words that speak to a server which runs already;
//! - `tls`: which listeners speak TLS, and with which certificates;
//! - `units`: durations, sizes, counts and addresses as people write them.
//!
//! Rules:
//! - A key's value is read by the same function wherever it comes from, and an error names the place and the value.
//! - Precedence: flag, shorthand, environment, file, default. A value that is overridden is not looked at, but for those of the file, of
//!   which every mistake is told.
//! - Nothing here binds or starts anything; all that is opened is the configuration file and the files that it names for values.

mod acme;
mod app;
mod arguments;
mod changes;
mod clashes;
mod compress;
mod conformance;
mod environment;
mod error_page;
mod file;
mod front;
mod health;
pub mod hub;
mod keys;
pub mod limits;
mod load;
mod logging;
mod monitoring;
mod places;
mod report;
pub mod route;
mod schema;
mod shell;
mod show;
mod steering;
mod tables;
mod tls;
mod units;

pub use acme::{Acme, Challenge};
pub use app::{
    Answering, App, AppTimeouts, Balance, Buffering, Buffers, Command, HotReload, Instead, Life, Program, Queue, Ready,
    ReadyBy, Recycle, Reloading, Restart, Scaling, Sharing, Upstream, WorkerSocket,
};
pub use units::{duration, show_duration, signal, signal_name};

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits::Policy;

pub use arguments::{HashPassword, Invocation, Refusal, WRONG_CONFIGURATION, WRONG_USAGE, command, read};
pub use changes::{Changed, Changes, Fate, diff};
pub use clashes::cannot_both_listen;
pub use compress::{Coding, Compressing};
pub use conformance::Conformance;
pub use environment::{Environment, HANDOVER, Search};
pub use error_page::ErrorPage;
pub use file::{File, NAME as FILE_NAME, Text};
pub use front::{Front, Peers};
pub use health::{Eject, Health};
pub use hub::{Bus, Dialect, History, Hub, Origin, Participant, Remote, Room, Secret};
pub use load::{Inputs, Loaded};
pub use logging::{
    AccessLogFormat, AccessLogSettings, DEV_LOG, EventFormat, EventLogSettings, JOURNAL, Level, LogTarget, Part,
    Pattern, PatternField, Redaction, Sampling, SyslogAddress,
};
pub use monitoring::{CloudWatch, Metrics, Statsd};
pub use places::{Reload, quoted as toml_string};
pub use report::{Problem, Severity};
pub use route::Route;
pub use schema::{manual, schema};
pub use show::Show;
pub use steering::{Ask, Change, MOST_WORKERS, PAUSE_DEFAULT, PAUSE_RANGE, ServerPlace, Steering};
pub use tls::{HTTPS, Managed, SpeakTls, Tls, TlsVersion};

/// Everything that the server needs to know to run. Checked: every number is within its range, and every index is that of something.
#[derive(Clone, Debug)]
pub struct Config {
    /// The process, and what holds for all clients.
    pub server: Settings,
    /// Where to listen; at least one.
    pub listeners: Vec<Listener>,
    /// Which requests go where; the first that matches. What none matches is answered with 404.
    pub routes: Vec<Route>,
    /// The apps, those behind a route's own upstreams included.
    pub apps: Vec<App>,
}

/// One address to listen on, and who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where. Port 0 lets the kernel choose.
    pub address: ListenAddress,
    /// Who may connect, where it is a Unix socket.
    pub access: UnixListen,
    /// What stands in front of it.
    pub front: Front,
}

/// What is said of the process, and of one app. Checked: every number is within its range.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub listening: Listening,
    /// Certificates that come by themselves.
    pub acme: Acme,
    /// What runs.
    pub loops: Loops,
    /// The process among others.
    pub process: Process,
    /// How it leaves.
    pub leaving: Leaving,
    /// What it tells of itself.
    pub telling: Telling,
    /// What it holds for clients.
    pub stores: Stores,
    /// What clients may at most.
    pub bounds: Bounds,
    /// Deadlines of the client side.
    pub timeouts: Timeouts,
    /// The logs.
    pub logs: Logs,
    /// How often clients may ask, each by its name.
    pub limits: Vec<Policy>,
    /// The hubs, each by its name.
    pub hubs: Vec<Hub>,
    /// What is shown in the place of the server's own errors.
    pub error_pages: Vec<ErrorPage>,
    /// The app behind the loops.
    pub app: App,
    /// Where this comes from.
    pub source: Provenance,
}

/// Where to listen, and who may connect.
#[derive(Clone, Debug)]
pub struct Listening {
    /// At least one. Port 0 lets the kernel choose.
    pub at: Vec<ListenAddress>,
    /// What holds for every Unix socket among them that is not in `unix_of`.
    pub unix: UnixListen,
    /// What holds for single ones.
    pub unix_of: BTreeMap<PathBuf, UnixListen>,
    /// What stands in front of those that are not in `front_of`.
    pub front: Front,
    /// What stands in front of single ones.
    pub front_of: Vec<(ListenAddress, Front)>,
}

/// The event loops, and what helps them.
#[derive(Clone, Copy, Debug)]
pub struct Loops {
    /// Event loops, 1 to 1024.
    pub count: usize,
    /// Which backend runs them.
    pub backend: BackendChoice,
    /// Whether they are pinned to cores.
    pub pin: Pin,
    /// Threads for what would block a loop, 1 to 64.
    pub helpers: usize,
}

/// What the process is to others on its machine.
#[derive(Clone, Debug)]
pub struct Process {
    /// Where sockets and the lock lie.
    pub run_dir: PathBuf,
    /// The file that holds the number of the serving process; `None`: no such file.
    pub pid_file: Option<PathBuf>,
    /// The user, by name or number, that the server becomes once its listeners are bound; `None`: it stays who it is.
    pub user: Option<String>,
    /// The group; `None`: that user's, or as it is.
    pub group: Option<String>,
}

/// How the process ends, or makes way for another.
#[derive(Clone, Copy, Debug)]
pub struct Leaving {
    /// How long a graceful stop may take.
    pub shutdown: Duration,
    /// How long a graceful stop says that the server is not ready before it closes its listeners.
    pub pre_stop_delay: Duration,
    /// How long a new binary may take until it has all its workers and takes over.
    pub upgrade_timeout: Duration,
}

/// What the server tells of itself, and where.
#[derive(Clone, Debug)]
pub struct Telling {
    /// Where it tells about itself, and nothing else, to whoever can reach it.
    pub admin: Vec<ListenAddress>,
    /// Where the loop answers `/server`, `/status` and the like itself.
    pub internal: Internal,
    /// Who is told what is counted.
    pub metrics: Metrics,
    /// How often the statistics are printed; zero turns them off, the last one at the exit too.
    pub stats_interval: Duration,
}

/// What may be held for clients.
#[derive(Clone, Debug)]
pub struct Stores {
    /// Bytes that may be held on the heap for slow clients and waiting requests together.
    pub buffer_bytes: usize,
    /// Bytes of the disk that the spool may take; 0: there is none.
    pub spool_bytes: u64,
    /// Where its files are; `None`: in the run directory, or in `/var/tmp` where that is in memory.
    pub spool_dir: Option<PathBuf>,
}

/// What clients may at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Client connections open at once, over all loops.
    pub connections: usize,
    /// For how many more there are descriptors, beside all else that the server opens.
    pub spare: usize,
    /// Connections that each client address may have open; `None`: as many as there may be at all.
    pub connections_per_ip: Option<u32>,
    /// The largest request body, in bytes.
    pub body: u64,
    /// The largest head of a request or of a worker's answer, in bytes, 1 KiB to 1 MiB.
    pub head: usize,
    /// The most field lines of such a head, 10 to 10000.
    pub fields: usize,
}

/// What is written down.
#[derive(Clone, Debug)]
pub struct Logs {
    /// The access log.
    pub access: AccessLogSettings,
    /// Events and the lines of workers.
    pub events: EventLogSettings,
}

/// Where a configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    /// The configuration file that was read.
    pub file: Option<PathBuf>,
    /// What is odd but no error, each one line, to be logged at the start.
    pub warnings: Vec<String>,
}

/// One address to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
    /// The sockets of that name that systemd has opened (sd_listen_fds(3)), or all that it has for the empty name.
    Systemd(String),
}

/// Who may connect to the Unix sockets that are listened on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixListen {
    /// The permission bits of the file, whatever the umask; 0 to 0o777. Connecting takes the right to write.
    pub mode: u32,
    /// The name or number of the user it is given to; `None`: whoever runs the server.
    pub owner: Option<String>,
    /// The name or number of the group.
    pub group: Option<String>,
}

impl Default for UnixListen {
    /// Everybody who may enter the directory may connect, as with nginx and systemd.
    fn default() -> UnixListen {
        UnixListen { mode: 0o666, owner: None, group: None }
    }
}

impl std::fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ListenAddress::Tcp(address) => address.fmt(formatter),
            ListenAddress::Unix(path) => write!(formatter, "unix:{}", path.display()),
            ListenAddress::Systemd(name) => write!(formatter, "systemd:{name}"),
        }
    }
}

/// Which backend runs the loops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendChoice {
    /// The one that the benchmarks show to be the faster, else the other.
    Auto,
    /// Readiness on Linux.
    Epoll,
    /// Readiness on macOS and the BSDs.
    Kqueue,
    /// Completions on Linux.
    IoUring,
}

/// Whether loops are pinned to cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Where no workers share the cores.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Where the loops answer documents of the server's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Internal {
    /// Nowhere: every path belongs to the app.
    Off,
    /// Under this prefix, which is empty or begins with a slash and ends without one: `/server` or `/ops/server`.
    Under(String),
}

impl Internal {
    /// The path behind the prefix: a name such as `/status`, if `path` lies under it at all.
    #[inline]
    pub fn name<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        match self {
            Internal::Off => None,
            Internal::Under(prefix) => path.strip_prefix(prefix.as_bytes()),
        }
    }
}

/// Deadlines of the client side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From a request's first byte to the end of its head.
    pub header: Duration,
    /// Since the last byte of a request body. The body ends as well when it falls below a mean rate of 1 KiB/s, whichever is first.
    pub body: Duration,
    /// Between two requests, and without a byte on event streams and tunnels.
    pub idle: Duration,
    /// Since the client last acknowledged something of an answer.
    pub write: Duration,
}

impl Default for Settings {
    /// What holds when nothing is said, but for `run_dir`, which depends on the environment and the port.
    fn default() -> Settings {
        Settings {
            listening: Listening {
                at: vec![ListenAddress::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080))],
                unix: UnixListen::default(),
                unix_of: BTreeMap::new(),
                front: Front::default(),
                front_of: Vec::new(),
            },
            acme: Acme::default(),
            loops: Loops { count: cores(), backend: BackendChoice::Auto, pin: Pin::Auto, helpers: 2 },
            process: Process {
                run_dir: PathBuf::from("/tmp/production_server"),
                pid_file: None,
                user: None,
                group: None,
            },
            leaving: Leaving {
                shutdown: Duration::from_secs(5),
                pre_stop_delay: Duration::ZERO,
                upgrade_timeout: Duration::from_secs(60),
            },
            telling: Telling {
                admin: Vec::new(),
                internal: Internal::Under(String::new()),
                metrics: Metrics::default(),
                stats_interval: Duration::from_secs(10),
            },
            stores: Stores { buffer_bytes: 256 * 1024 * 1024, spool_bytes: 1 << 30, spool_dir: None },
            bounds: Bounds {
                connections: 10_000,
                spare: 0,
                connections_per_ip: None,
                body: 64 * 1024 * 1024,
                head: 32 * 1024,
                fields: 200,
            },
            timeouts: Timeouts {
                header: Duration::from_secs(10),
                body: Duration::from_secs(30),
                idle: Duration::from_secs(60),
                write: Duration::from_secs(30),
            },
            logs: Logs {
                access: AccessLogSettings::new(LogTarget::Stdout, AccessLogFormat::Human),
                events: EventLogSettings::default(),
            },
            limits: Vec::new(),
            hubs: Vec::new(),
            error_pages: Vec::new(),
            app: App::default(),
            source: Provenance::default(),
        }
    }
}

impl Config {
    /// Whether anything is configured that helper threads are needed for.
    pub fn needs_helpers(&self) -> bool {
        let has_passwords = |route: &Route| route.access.auth.as_ref().is_some_and(|auth| auth.passwords.is_some());
        self.server.stores.spool_bytes > 0 || self.serves_files() || self.routes.iter().any(has_passwords)
    }

    /// Whether files are served.
    pub fn serves_files(&self) -> bool {
        let of_route = |route: &Route| route.sendfile.is_some() || matches!(route.to, route::Target::Files(..));
        self.apps.iter().any(|app| app.instead.files.is_some()) || self.routes.iter().any(of_route)
    }
}

impl Listening {
    /// What stands in front of a listener.
    pub fn front_at(&self, address: &ListenAddress) -> &Front {
        self.front_of.iter().find(|(other, _)| other == address).map_or(&self.front, |(_, front)| front)
    }

    /// Who may connect to the Unix socket at a path.
    pub fn unix_at(&self, path: &Path) -> &UnixListen {
        self.unix_of.get(path).unwrap_or(&self.unix)
    }
}

impl Settings {
    /// Settings for a test: one loop on a loopback port that the kernel chooses, no access log, no statistics, and a run
    /// directory that the test replaces by its own.
    pub fn for_test() -> Settings {
        let mut settings = Settings::default();
        settings.listening.at = vec![ListenAddress::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))];
        (settings.loops.count, settings.loops.pin) = (1, Pin::Off);
        settings.bounds.connections = 1024;
        settings.telling.stats_interval = Duration::ZERO;
        // It needs helpers.
        settings.stores.spool_bytes = 0;
        settings.logs.access = AccessLogSettings::new(LogTarget::Off, AccessLogFormat::Human);
        settings.process.run_dir = std::env::temp_dir().join(format!("production_server-test-{}", std::process::id()));
        settings.app.workers = 2;
        settings
    }
}

/// The processors that this process may use: its affinity and its cgroup's quota (v1 and v2) hold.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests;
