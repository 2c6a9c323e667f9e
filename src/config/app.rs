//! What is configured of one app: what its workers run and how they live, how requests reach them, and what answers in their place.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::{Compressing, Eject, ErrorPage, Health, cores, route};
use crate::limits::By;

/// The app behind the loops.
#[derive(Clone, Debug)]
pub struct App {
    /// Its name in labels, sockets and documents.
    pub name: String,
    /// Whether the server counts as failed when this app has.
    pub required: bool,
    /// What its workers run.
    pub program: Program,
    /// How many workers at the start, 0 to 1024; 0: none but those that join by themselves.
    pub workers: usize,
    /// Between which numbers of workers the server scales by itself; `None`: it does not.
    pub scaling: Option<Scaling>,
    /// When their lives begin and end.
    pub life: Life,
    /// How changed files reach them.
    pub reload: Reloading,
    /// What answers in their place.
    pub instead: Instead,
    /// How requests are shared out.
    pub sharing: Sharing,
    /// The waiting queue.
    pub queue: Queue,
    /// Deadlines of the worker side.
    pub timeouts: AppTimeouts,
    /// Whether workers and upstreams are asked how they are.
    pub health: Health,
    /// When an upstream is left out for a while.
    pub eject: Eject,
    /// What of bodies is held.
    pub buffers: Buffers,
    /// How its clients are answered.
    pub answering: Answering,
}

/// What the workers run, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The command.
    pub command: Command,
    /// The shared object that the built-in worker answers with.
    pub module: Option<PathBuf>,
    /// Where workers start, as an absolute path that is resolved anew at each start; `None`: the server's own directory.
    pub directory: Option<PathBuf>,
    /// Variables for the workers, over those of the server's own environment; those of the worker contract win.
    pub environment: BTreeMap<String, String>,
    /// How a worker gets its socket.
    pub socket: WorkerSocket,
}

/// How requests are shared out to workers and upstreams.
#[derive(Clone, Copy, Debug)]
pub struct Sharing {
    /// Requests in flight per worker or upstream at once, 1 to 65535.
    pub concurrency: u32,
    /// Tunnels (WebSockets) through each worker or upstream at once; `u32::MAX`: as many as there are connections.
    pub max_tunnels: u32,
    /// Which worker gets the next request.
    pub balance: Balance,
    /// Whether connections to workers are kept.
    pub keepalive: bool,
}

/// When a worker's life begins and ends.
#[derive(Clone, Debug)]
pub struct Life {
    /// When a worker counts as ready.
    pub ready: Ready,
    /// When a worker is replaced.
    pub recycle: Recycle,
    /// How dead workers come back, and how living ones are replaced.
    pub restart: Restart,
    /// How often a worker is to say that it is alive (sd_watchdog_enabled(3)); `None`: as often as it says itself.
    pub watchdog: Option<Duration>,
    /// What is sent to a worker that is stuck, before SIGKILL; `None`: nothing.
    pub dump_signal: Option<i32>,
}

/// How changed files reach the workers.
#[derive(Clone, Debug)]
pub struct Reloading {
    /// By what.
    pub by: HotReload,
    /// Files and directories to watch; empty: found from the command.
    pub watch: Vec<PathBuf>,
    /// What tells a worker to load its code again.
    pub signal: i32,
}

/// What answers in the place of workers; when there is anything, no worker is started.
#[derive(Clone, Debug)]
pub struct Instead {
    /// Servers that something else runs.
    pub upstreams: Vec<Upstream>,
    /// The text that the loops answer every request with, when set.
    pub respond: Option<String>,
    /// The files that they answer with, when set.
    pub files: Option<route::Files>,
}

/// What of bodies is held.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    /// Bytes of a request body that are gathered before a worker is taken; beyond it the body streams.
    pub request: usize,
    /// What becomes of bodies that are larger.
    pub larger: Buffering,
    /// Bytes of an answer held for a slow reader.
    pub response: usize,
}

/// How clients are answered.
#[derive(Clone, Debug)]
pub struct Answering {
    /// How answers are compressed.
    pub compress: Compressing,
    /// What is shown in the place of the server's own errors, before what is shown everywhere.
    pub error_pages: Vec<ErrorPage>,
    /// Whether a client that has sent its whole request and then ends is served rather than cancelled.
    pub serve_half_closed: bool,
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

impl Default for App {
    /// The built-in worker with the default limits.
    fn default() -> App {
        App {
            name: "web".to_owned(),
            required: true,
            program: Program::default(),
            workers: cores().max(2),
            scaling: None,
            life: Life::default(),
            reload: Reloading { by: HotReload::None, watch: Vec::new(), signal: libc::SIGHUP },
            instead: Instead { upstreams: Vec::new(), respond: None, files: None },
            sharing: Sharing { concurrency: 1, max_tunnels: u32::MAX, balance: Balance::Lifo, keepalive: true },
            queue: Queue { size: 8192, timeout: Duration::from_secs(2), hold: Duration::from_secs(10), fair: None },
            timeouts: AppTimeouts {
                connect: Duration::from_millis(200),
                read: Duration::from_secs(5),
                request: Duration::from_secs(30),
                answer: None,
                abandon: Duration::from_secs(5),
            },
            health: Health::default(),
            eject: Eject::default(),
            buffers: Buffers { request: 1024 * 1024, larger: Buffering::Disk, response: 16 * 1024 * 1024 },
            answering: Answering {
                compress: Compressing::default(),
                error_pages: Vec::new(),
                serve_half_closed: false,
            },
        }
    }
}

impl Default for Program {
    /// The built-in worker, where the server is.
    fn default() -> Program {
        Program {
            command: Command::BuiltIn,
            module: None,
            directory: None,
            environment: BTreeMap::new(),
            socket: WorkerSocket::Auto,
        }
    }
}

impl Default for Life {
    fn default() -> Life {
        Life {
            ready: Ready { by: ReadyBy::Listen, timeout: Duration::from_secs(15) },
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
            watchdog: None,
            dump_signal: None,
        }
    }
}

impl App {
    /// Whether the loops answer in its place.
    pub fn is_answered_by_loops(&self) -> bool {
        self.instead.respond.is_some() || self.instead.files.is_some()
    }

    /// Whether the two say the same of how a worker is started and looked for: what is of the class
    /// [`Reload::Roll`](super::Reload::Roll).
    pub fn starts_like(&self, other: &App) -> bool {
        let of = |app: &App| (app.life.ready.by.clone(), app.life.watchdog, app.sharing.concurrency);
        self.program == other.program && of(self) == of(other)
    }
}
