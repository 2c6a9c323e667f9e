//! The configuration: one checked [`Settings`], made of flags, shorthands, the environment, a file and defaults.
//!
//! - `keys`: every key once, with its flag, its environment names, its default and how its value is read;
//! - `places`, `tables`: where each key stands in the configuration file, and what its tables hold;
//! - `file`: that file, from finding it to its values and problems, and `report`: how problems are shown;
//! - `show` and `schema`: what is configured, and what may be;
//! - `front`: what may stand in front of the server;
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
pub use units::{duration, show_duration, signal, signal_name};

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::limits::{By, Policy};

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
    /// Where to listen; at least one. Port 0 lets the kernel choose.
    pub listen: Vec<ListenAddress>,
    /// What holds for every Unix socket among them that is not in `unix_listen_of`.
    pub unix_listen: UnixListen,
    /// What holds for single ones.
    pub unix_listen_of: BTreeMap<PathBuf, UnixListen>,
    /// What stands in front of those that are not in `front_of`.
    pub front: Front,
    /// What stands in front of single ones.
    pub front_of: Vec<(ListenAddress, Front)>,
    /// Certificates that come by themselves.
    pub acme: Acme,
    /// Event loops, 1 to 1024.
    pub loops: usize,
    /// Which backend runs the loops.
    pub backend: BackendChoice,
    /// Client connections open at once, over all loops.
    pub max_connections: usize,
    /// Threads for what would block a loop, 1 to 64.
    pub helpers: usize,
    /// Whether loops are pinned to cores.
    pub pin: Pin,
    /// Deadlines of the client side.
    pub timeouts: Timeouts,
    /// How long a graceful stop may take.
    pub shutdown: Duration,
    /// How long a graceful stop says that the server is not ready before it closes its listeners.
    pub pre_stop_delay: Duration,
    /// Where the server tells about itself, and nothing else, to whoever can reach it.
    pub admin: Vec<ListenAddress>,
    /// Who is told what is counted.
    pub metrics: Metrics,
    /// How often the statistics are printed; zero turns them off, the last one at the exit too.
    pub stats_interval: Duration,
    /// Where sockets and the lock lie.
    pub run_dir: PathBuf,
    /// The file that holds the number of the serving process; `None`: no such file.
    pub pid_file: Option<PathBuf>,
    /// The user, by name or number, that the server becomes once its listeners are bound; `None`: it stays who it is.
    pub user: Option<String>,
    /// The group; `None`: that user's, or as it is.
    pub group: Option<String>,
    /// How long a new binary may take until it has all its workers and takes over.
    pub upgrade_timeout: Duration,
    /// Bytes that may be held on the heap for slow clients and waiting requests together.
    pub buffer_bytes: usize,
    /// Bytes of the disk that the spool may take; 0: there is none.
    pub spool_bytes: u64,
    /// Where its files are; `None`: in the run directory, or in `/var/tmp` where that is in memory.
    pub spool_dir: Option<PathBuf>,
    /// The largest request body, in bytes.
    pub max_body: u64,
    /// The largest head of a request or of a worker's answer, in bytes, 1 KiB to 1 MiB.
    pub max_head: usize,
    /// The most field lines of such a head, 10 to 10000.
    pub max_fields: usize,
    /// The access log.
    pub access_log: AccessLogSettings,
    /// Events and the lines of workers.
    pub event_log: EventLogSettings,
    /// How often clients may ask, each by its name.
    pub limits: Vec<Policy>,
    /// The hubs, each by its name.
    pub hubs: Vec<Hub>,
    /// Connections that each client address may have open; `None`: as many as there may be at all.
    pub connections_per_ip: Option<u32>,
    /// What is shown in the place of the server's own errors.
    pub error_pages: Vec<ErrorPage>,
    /// Where the loop answers `/server`, `/status` and the like itself.
    pub internal: Internal,
    /// The app behind the loops.
    pub app: App,
    /// The configuration file that was read.
    pub config: Option<PathBuf>,
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

/// The app behind the loops.
#[derive(Clone, Debug)]
pub struct App {
    /// Its name in labels, sockets and documents.
    pub name: String,
    /// What its workers run.
    pub command: Command,
    /// How many workers at the start, 0 to 1024; 0: none but those that join by themselves.
    pub workers: usize,
    /// Between which numbers of workers the server scales by itself; `None`: it does not.
    pub scaling: Option<Scaling>,
    /// Requests in flight per worker or upstream at once, 1 to 65535.
    pub concurrency: u32,
    /// Tunnels (WebSockets) through each worker or upstream at once; `u32::MAX`: as many as there are connections.
    pub max_tunnels: u32,
    /// Which worker gets the next request.
    pub balance: Balance,
    /// Deadlines of the worker side.
    pub timeouts: AppTimeouts,
    /// The waiting queue.
    pub queue: Queue,
    /// When a worker is replaced.
    pub recycle: Recycle,
    /// How dead workers come back, and how living ones are replaced.
    pub restart: Restart,
    /// Whether workers and upstreams are asked how they are.
    pub health: Health,
    /// How its answers are compressed.
    pub compress: Compressing,
    /// When an upstream is left out for a while.
    pub eject: Eject,
    /// When a worker counts as ready.
    pub ready: Ready,
    /// How a worker gets its socket.
    pub socket: WorkerSocket,
    /// Where workers start, as an absolute path that is resolved anew at each start; `None`: the server's own directory.
    pub directory: Option<PathBuf>,
    /// Variables for the workers, over those of the server's own environment; those of the worker contract win.
    pub environment: BTreeMap<String, String>,
    /// Whether the server counts as failed when this app has.
    pub required: bool,
    /// How often a worker is to say that it is alive (sd_watchdog_enabled(3)); `None`: as often as it says itself.
    pub watchdog: Option<Duration>,
    /// What is sent to a worker that is stuck, before SIGKILL; `None`: nothing.
    pub dump_signal: Option<i32>,
    /// How changed files reach the workers.
    pub hot_reload: HotReload,
    /// Files and directories to watch; empty: found from the command.
    pub watch: Vec<PathBuf>,
    /// What tells a worker to load its code again.
    pub reload_signal: i32,
    /// The shared object that the built-in worker answers with.
    pub module: Option<PathBuf>,
    /// Whether connections to workers are kept.
    pub keepalive: bool,
    /// Servers that something else runs; when there is one, no worker is started.
    pub upstreams: Vec<Upstream>,
    /// The text that the loops answer every request with, when set.
    pub respond: Option<String>,
    /// The files that they answer with, when set.
    pub files: Option<route::Files>,
    /// Bytes of a request body that are gathered before a worker is taken; beyond it the body streams.
    pub request_buffer: usize,
    /// What becomes of bodies that are larger.
    pub request_buffering: Buffering,
    /// Bytes of an answer held for a slow reader.
    pub response_buffer: usize,
    /// Whether a client that has sent its whole request and then ends is served rather than cancelled.
    pub serve_half_closed: bool,
    /// What is shown in the place of the server's own errors, before what is shown everywhere.
    pub error_pages: Vec<ErrorPage>,
}

/// Where a request's body is gathered before a worker is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffering {
    /// In memory, and what is larger in the spool.
    Disk,
    /// In memory; what is larger streams.
    Memory,
    /// Nowhere: all bodies stream.
    Off,
}

/// What the workers run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// The worker inside this binary.
    BuiltIn,
    /// A program and its arguments; never empty.
    Argv(Vec<OsString>),
    /// Nothing: the app is behind upstreams or answered by the loops.
    None,
}

/// Which of the free workers gets the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// The one freed last: its memory is warm.
    Lifo,
    /// Each in turn.
    RoundRobin,
    /// The one with the fewest requests in flight.
    Least,
}

/// Deadlines of the worker side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppTimeouts {
    /// To get connected.
    pub connect: Duration,
    /// Without a byte from a worker that is waited for: 504 before the answer's head, and the answer is cut behind it. Never a
    /// reason to kill the worker.
    pub read: Duration,
    /// From when the worker was given the request to the head of its answer. A worker that is silent until then, and on which
    /// nothing else moves, is stuck and is replaced.
    pub request: Duration,
    /// From the same moment to the end of the answer; `None`: as long as it takes.
    pub answer: Option<Duration>,
    /// For how long a worker whose client left keeps its permit while it is still busy.
    pub abandon: Duration,
}

/// The waiting queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Requests that may wait; 0 refuses at once when all workers are busy.
    pub size: usize,
    /// How long one may wait while workers are there.
    pub timeout: Duration,
    /// How long one is held while no worker is ready; zero refuses at once.
    pub hold: Duration,
    /// By what clients are told apart that take turns in it; `None`: who comes first is served first.
    pub fair: Option<By>,
}

/// By default no worker younger than this is replaced for the number of its requests: under load it would never get warm.
const WARM: Duration = Duration::from_secs(600);

/// When a worker is replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recycle {
    /// After that many answers; 0: never.
    pub requests: u64,
    /// But not before it has lived for so long; zero where the number was asked for.
    pub requests_not_before: Duration,
    /// By how much the number varies between workers, in per cent, so that they do not all go at once.
    pub jitter_percent: u32,
    /// After that time.
    pub lifetime: Option<Duration>,
    /// When its process group holds more memory (PSS) than so many bytes.
    pub memory: Option<u64>,
    /// After that many hot reloads; 0: never.
    pub reloads: u64,
}

/// The bounds of automatic scaling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scaling {
    /// At least so many workers, 1 or more.
    pub min: usize,
    /// At most so many.
    pub max: usize,
}

/// When a worker counts as ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// What shows it.
    pub by: ReadyBy,
    /// How long it may take.
    pub timeout: Duration,
}

/// What shows that a worker is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadyBy {
    /// Its socket accepts.
    Listen,
    /// A GET of that path is answered with 2xx.
    Http(String),
    /// It says READY=1 (sd_notify(3)).
    Notify,
    /// It joins over the control socket.
    Join,
}

/// How a worker gets its socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkerSocket {
    /// It is given both a path and a port, and uses either; one that is known to take a path is given that alone.
    Auto,
    /// It opens a Unix socket at the path that it is given.
    Unix,
    /// It inherits a listening Unix socket as descriptor 3 (sd_listen_fds(3)).
    Inherit,
    /// It opens a loopback TCP port that it is given.
    Tcp,
}

/// How changed files reach the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HotReload {
    /// Not at all.
    None,
    /// By a rolling restart.
    Process,
    /// By the reload signal: the workers load their code again themselves.
    Module,
}

/// How dead workers come back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restart {
    /// The first delay after the immediate respawn; doubled each time.
    pub base: Duration,
    /// The longest delay.
    pub max: Duration,
    /// Crashes of workers that never served that make a place be given up.
    pub crashes: u32,
    /// Within that time.
    pub within: Duration,
    /// So do more of them than this within an hour.
    pub max_restarts: u32,
    /// Whether the server ends when the app has failed, to be started again by whoever started it.
    pub give_up_exit: bool,
    /// How long a leaving worker may finish its requests before SIGTERM.
    pub drain: Duration,
    /// Workers that may be on their way to readiness at once, whatever they are started for, 1 to 1024.
    pub start_parallel: usize,
    /// Workers that a rolling restart replaces at a time, at least 1.
    pub parallel: usize,
    /// Workers that may be missing while they are replaced; 0: the replacement always starts first.
    pub max_unavailable: usize,
}

/// A server that something else runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Upstream {
    /// The path of its Unix socket.
    Unix(PathBuf),
    /// Its host, a name or an address without brackets, and its port.
    Tcp(String, u16),
}

impl std::fmt::Display for Upstream {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Upstream::Unix(path) => write!(formatter, "unix:{}", path.display()),
            Upstream::Tcp(host, port) if host.contains(':') => write!(formatter, "http://[{host}]:{port}"),
            Upstream::Tcp(host, port) => write!(formatter, "http://{host}:{port}"),
        }
    }
}

impl Default for Settings {
    /// What holds when nothing is said, but for `run_dir`, which depends on the environment and the port.
    fn default() -> Settings {
        let cores = cores();
        Settings {
            listen: vec![ListenAddress::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 8080))],
            unix_listen: UnixListen::default(),
            unix_listen_of: BTreeMap::new(),
            front: Front::default(),
            front_of: Vec::new(),
            acme: Acme::default(),
            loops: cores,
            backend: BackendChoice::Auto,
            max_connections: 10_000,
            helpers: 2,
            pin: Pin::Auto,
            timeouts: Timeouts {
                header: Duration::from_secs(10),
                body: Duration::from_secs(30),
                idle: Duration::from_secs(60),
                write: Duration::from_secs(30),
            },
            shutdown: Duration::from_secs(5),
            pre_stop_delay: Duration::ZERO,
            admin: Vec::new(),
            metrics: Metrics::default(),
            stats_interval: Duration::from_secs(10),
            run_dir: PathBuf::from("/tmp/production_server"),
            pid_file: None,
            user: None,
            group: None,
            upgrade_timeout: Duration::from_secs(60),
            buffer_bytes: 256 * 1024 * 1024,
            spool_bytes: 1 << 30,
            spool_dir: None,
            max_body: 64 * 1024 * 1024,
            max_head: 32 * 1024,
            max_fields: 200,
            access_log: AccessLogSettings::new(LogTarget::Stdout, AccessLogFormat::Human),
            event_log: EventLogSettings::default(),
            limits: Vec::new(),
            hubs: Vec::new(),
            connections_per_ip: None,
            error_pages: Vec::new(),
            internal: Internal::Under(String::new()),
            app: App::default(),
            config: None,
            warnings: Vec::new(),
        }
    }
}

impl Default for App {
    /// The built-in worker with the default limits.
    fn default() -> App {
        App {
            name: "web".to_owned(),
            command: Command::BuiltIn,
            workers: cores().max(2),
            scaling: None,
            concurrency: 1,
            max_tunnels: u32::MAX,
            balance: Balance::Lifo,
            timeouts: AppTimeouts {
                connect: Duration::from_millis(200),
                read: Duration::from_secs(5),
                request: Duration::from_secs(30),
                answer: None,
                abandon: Duration::from_secs(5),
            },
            queue: Queue { size: 8192, timeout: Duration::from_secs(2), hold: Duration::from_secs(10), fair: None },
            recycle: Recycle {
                requests: 10_000,
                requests_not_before: WARM,
                jitter_percent: 10,
                lifetime: None,
                memory: None,
                reloads: 10,
            },
            restart: Restart {
                base: Duration::from_secs(1),
                max: Duration::from_secs(30),
                crashes: 5,
                within: Duration::from_secs(60),
                max_restarts: 10,
                give_up_exit: false,
                drain: Duration::from_secs(30),
                start_parallel: cores(),
                parallel: 1,
                max_unavailable: 0,
            },
            health: Health::default(),
            compress: Compressing::default(),
            eject: Eject::default(),
            ready: Ready { by: ReadyBy::Listen, timeout: Duration::from_secs(15) },
            socket: WorkerSocket::Auto,
            directory: None,
            environment: BTreeMap::new(),
            required: true,
            watchdog: None,
            dump_signal: None,
            hot_reload: HotReload::None,
            watch: Vec::new(),
            reload_signal: libc::SIGHUP,
            module: None,
            keepalive: true,
            upstreams: Vec::new(),
            respond: None,
            files: None,
            request_buffer: 1024 * 1024,
            request_buffering: Buffering::Disk,
            response_buffer: 16 * 1024 * 1024,
            serve_half_closed: false,
            error_pages: Vec::new(),
        }
    }
}

impl App {
    /// Whether the loops answer in its place.
    pub fn is_answered_by_loops(&self) -> bool {
        self.respond.is_some() || self.files.is_some()
    }

    /// Whether the two say the same of how a worker is started and looked for: what is of the class [`Reload::Roll`].
    pub fn starts_like(&self, other: &App) -> bool {
        let of = |app: &App| {
            let (command, module, directory) = (app.command.clone(), app.module.clone(), app.directory.clone());
            let environment = app.environment.clone();
            (command, module, directory, environment, app.socket, app.ready.by.clone(), app.watchdog, app.concurrency)
        };
        of(self) == of(other)
    }
}

impl Config {
    /// Whether anything is configured that helper threads are needed for.
    pub fn needs_helpers(&self) -> bool {
        let has_passwords = |route: &Route| route.access.auth.as_ref().is_some_and(|auth| auth.passwords.is_some());
        self.server.spool_bytes > 0 || self.serves_files() || self.routes.iter().any(has_passwords)
    }

    /// Whether files are served.
    pub fn serves_files(&self) -> bool {
        let of_route = |route: &Route| route.sendfile.is_some() || matches!(route.to, route::Target::Files(..));
        self.apps.iter().any(|app| app.files.is_some()) || self.routes.iter().any(of_route)
    }
}

impl Settings {
    /// What stands in front of a listener.
    pub fn front_at(&self, address: &ListenAddress) -> &Front {
        self.front_of.iter().find(|(other, _)| other == address).map_or(&self.front, |(_, front)| front)
    }

    /// Who may connect to the Unix socket at a path.
    pub fn unix_listen_at(&self, path: &Path) -> &UnixListen {
        self.unix_listen_of.get(path).unwrap_or(&self.unix_listen)
    }

    /// Settings for a test: one loop on a loopback port that the kernel chooses, no access log, no statistics, and a run
    /// directory that the test replaces by its own.
    pub fn for_test() -> Settings {
        Settings {
            listen: vec![ListenAddress::Tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))],
            loops: 1,
            max_connections: 1024,
            pin: Pin::Off,
            stats_interval: Duration::ZERO,
            // It needs helpers.
            spool_bytes: 0,
            access_log: AccessLogSettings::new(LogTarget::Off, AccessLogFormat::Human),
            run_dir: std::env::temp_dir().join(format!("production_server-test-{}", std::process::id())),
            app: App { workers: 2, ..App::default() },
            ..Settings::default()
        }
    }
}

/// The processors that this process may use: its affinity and its cgroup's quota (v1 and v2) hold.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[cfg(test)]
mod tests;
