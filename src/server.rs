//! The server: start order and stop order. `loops` has the event loops' threads, `site` what they serve.
//!
//! Start: descriptors, log, backend, listeners, run directory, loops, and then the supervisor on this thread. Everything that can
//! fail for the user's reasons fails before a thread or a worker exists. Stop: the supervisor drains the loops and the
//! workers and returns; the loops are joined; the log is flushed.
//!
//! All listeners are opened here, behind a probe bind without SO_REUSEPORT: otherwise a second instance of the same user would
//! silently take its share of the connections.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use crate::acme;
use crate::apps::AppTable;
use crate::backends::Backend;
use crate::check;
use crate::config::{
    BackendChoice, CloudWatch, Config, Front, Inputs, ListenAddress, Loaded, Problem, Settings, Severity,
};
use crate::event_loop::Shared;
use crate::handover::Channel;
use crate::helpers::Helpers;
use crate::listener::refuse_newcomers;
use crate::log::{Level, Log, open_to_append};
use crate::mailbox::Message;
use crate::mailbox::desk::Desk;
use crate::metrics::{self, Metrics};
use crate::reactor::ListenerSetup;
use crate::socket_file::SocketFile;
use crate::spool::Spools;
use crate::supervisor::pid_file::PidFile;
use crate::supervisor::reload::Reload;
use crate::supervisor::upgrade::{Held, Holdings, Succession};
use crate::supervisor::{self, About, Supervisor};
use crate::tls::{self, Failure, Policies, Policy};

use held::Patience;
use inherit::Inherited;
use loops::LoopSet;
use reload::Reloader;

mod held;
mod inherit;
mod loops;
mod privileges;
mod reload;
mod renewal;
mod site;
mod unix;

/// Connections that wait to be accepted, at most; the kernel clamps it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How long a connection on which all is sent may still send before it is closed for good.
const LINGER: Duration = Duration::from_secs(2);
/// How soon accepting is tried again after descriptors ran out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// How long the loops may take to end once they were told to stop at once: lingering connections may take their time.
const LOOP_GRACE: Duration = Duration::from_secs(3);
/// How long the log may take to be written out at the end.
const LOG_FLUSH: Duration = Duration::from_secs(2);
/// How long each of both may take where the server is to end at once.
const HASTY_GRACE: Duration = Duration::from_millis(200);

/// Exit codes, of sysexits.h and PRODUCT's table.
pub mod exit {
    /// A clean stop.
    pub const OK: u8 = 0;
    /// Wrong flags.
    pub const USAGE: u8 = 64;
    /// An input file cannot be read.
    pub const NO_INPUT: u8 = 66;
    /// The app gave up before it was ever ready.
    pub const UNAVAILABLE: u8 = 69;
    /// An internal failure: a loop ended although nobody asked it to.
    pub const SOFTWARE: u8 = 70;
    /// The operating system refused something that every start needs.
    pub const SYSTEM: u8 = 71;
    /// Cannot bind, cannot make a socket.
    pub const CANNOT_CREATE: u8 = 73;
    /// Permission denied.
    pub const PERMISSION: u8 = 77;
    /// Invalid configuration.
    pub const CONFIG: u8 = 78;
}

/// A failure at the start: one line, and the exit code.
#[derive(Debug)]
pub struct StartError {
    /// What was wrong, and what to do.
    pub message: String,
    /// See [`exit`].
    pub code: u8,
}

/// Runs the server until it is stopped; the exit code. With a predecessor it takes that one's place.
/// `inputs` are what it was configured by, and is configured by anew when it is told to reload.
pub fn run(loaded: Loaded, inputs: Inputs, mut predecessor: Option<Channel>) -> u8 {
    match start(loaded, inputs, &mut predecessor) {
        Ok(code) => code,
        Err(error) => {
            if let Some(channel) = predecessor {
                channel.fail(&error.message);
            }
            // There is no other place to say it.
            let _ = writeln!(io::stderr(), "production_server: {}", error.message);
            error.code
        }
    }
}

fn start(loaded: Loaded, inputs: Inputs, predecessor: &mut Option<Channel>) -> Result<u8, StartError> {
    let mut warnings = loaded.warnings();
    let mut config = loaded.config.clone();
    // Before anything else is opened: systemd's sockets are known by their numbers.
    let mut inherited = Inherited::take(predecessor.as_mut(), &loaded)?;
    let original_limit = fit_to_machine(&mut config, &mut warnings);
    let mut listeners = open_listeners(&config.server, &mut inherited)?;
    secure(&mut listeners, &loaded, &config.server)?;
    privileges::give_up(&config.server)?;
    find_what_is_named(&loaded)?;
    // Workers may start elsewhere, and are told paths in it.
    config.server.process.run_dir =
        std::path::absolute(&config.server.process.run_dir).unwrap_or(config.server.process.run_dir);
    (config.server.listening.at, config.server.telling.admin) = places(&listeners);
    let log = open_log(&config.server)?;
    let backend = choose_backend(&config.server, &log)?;
    let run_directory = inherited.run_directory(&config.server.process.run_dir)?;
    let show = self_signed_shown(&config.server, &listeners, &log);
    for warning in warnings.iter().chain(&inherited.warnings()) {
        log.event(Level::Warn, warning, &[]);
    }
    let settings = Arc::new(config.server.clone());
    let started = Instant::now();
    let (metrics, table) = counters_and_apps(&config, &inherited, &log, started);
    let (postboxes, mailboxes) = loops::post(settings.loops.count);
    let (desk, policies) = (Desk::default(), Policies::default());
    let helpers = start_helpers(&config)?;
    let about = About {
        backend: backend_name(backend),
        metrics: metrics.clone(),
        desk: desk.clone(),
        started,
        tls: policies.clone(),
    };
    let loop_listeners = loops::share_out(&listeners, &settings)?;
    let shared = (&postboxes, &log, &metrics, &helpers);
    let (held, configuration) = (predecessor.is_some(), loaded.path().map(Path::to_owned));
    let begin = begin(held, show, &log)?;
    let reloader = Reloader::new(loaded, inputs, config, table.clone(), &listeners, shared, policies);
    let options = supervisor::Options {
        descriptors: original_limit,
        user: privileges::variables(&settings),
        about: Some(about),
        holdings: holdings(&settings, listeners, configuration),
        pid_file: settings.process.pid_file.as_deref().filter(|_| !held).map(write_pid_file).transpose()?,
        manager: true,
        ..Default::default()
    };
    let apps = table.apps.iter().map(site::setup).collect();
    let supervisor =
        Supervisor::start_apps(settings.clone(), apps, postboxes.clone(), log.clone(), run_directory, options)
            .map_err(|error| StartError { message: error.to_string(), code: error.code() })?;
    let status = site::status_writer(reloader.table.clone(), started, supervisor.status());
    let shared = Arc::new(Shared {
        settings,
        postboxes,
        log,
        admission: Default::default(),
        scarcity: Default::default(),
        desk,
        helpers,
        spools: Spools::new(metrics.spool().clone()),
        status: Box::new(status),
    });
    let loop_exit = supervisor.loop_exit();
    let loops = LoopSet { shared, table, metrics, listeners: loop_listeners, held, mailboxes, loop_exit };
    let succeed = || predecessor.take().map(|channel| inherited.succession(channel, begin));
    serve_on(backend, loops, supervisor, reloader, succeed)
}

/// The counters, which go on where those of the server before stand, and the apps that are counted.
fn counters_and_apps(config: &Config, inherited: &Inherited, log: &Log, now: Instant) -> (Metrics, Arc<AppTable>) {
    let metrics = Metrics::new(config.server.loops.count);
    let table = Arc::new(site::table(config, &Arc::new(config.server.clone()), &metrics, now));
    inherited.count_on(&metrics);
    if let Some(warning) = site::counted_together(&table) {
        log.event(Level::Warn, &warning, &[]);
    }
    (metrics, table)
}

/// Reads certificates and keys, while the server still is who it was started as. One that has expired keeps no server from starting, for that would
/// take what else it serves along, and clients with a wrong clock; `renewal` says so.
fn secure(listeners: &mut [Listening], loaded: &Loaded, settings: &Settings) -> Result<(), StartError> {
    let wrong = |message| StartError { message, code: exit::CONFIG };
    without_errors(loaded, check::tls(loaded, |_| true))?;
    let mut secured = listeners.iter_mut().map(|listening| listening.secure(settings));
    secured.find_map(Result::err).map_or(Ok(()), |failure| Err(wrong(failure.to_string())))
}

/// Looks whether directories with files are there, as whom the server will look for the files in them, and whether what the file says of apps
/// can be run, while it is known where in the file that stands. What is said elsewhere is refused as their workers are prepared, with the exit
/// code of wrong flags.
fn find_what_is_named(loaded: &Loaded) -> Result<(), StartError> {
    without_errors(loaded, check::files(loaded))?;
    let in_file = check::apps(loaded).into_iter().filter(|problem| !problem.marks.is_empty());
    without_errors(loaded, in_file.collect())
}

/// Nothing is started with what does not work.
fn without_errors(loaded: &Loaded, findings: Vec<Problem>) -> Result<(), StartError> {
    let errors: Vec<_> = findings.into_iter().filter(|it| it.severity == Severity::Error).collect();
    if errors.is_empty() {
        return Ok(());
    }
    let message = loaded.report(&errors).trim_end().trim_start_matches("error: ").to_owned();
    Err(StartError { message, code: exit::CONFIG })
}

/// The helper threads, where something that is configured needs them.
fn start_helpers(config: &Config) -> Result<Helpers, StartError> {
    let helpers = Helpers::default();
    if config.needs_helpers() {
        let started = helpers.start(config.server.loops.helpers);
        started.map_err(|error| refused(format!("cannot start a helper thread: {error}"), &error, exit::SYSTEM))?;
    }
    Ok(helpers)
}

/// Puts a certificate that was made at the start where clients can be told to trust it, and says how.
fn self_signed_shown(
    settings: &Settings,
    listeners: &[Listening],
    log: &Log,
) -> impl Fn() -> Result<(), StartError> + use<> {
    let (path, log) = (settings.process.run_dir.join(supervisor::run_directory::SELF_SIGNED), log.clone());
    let port = |listening: &Listening| match listening.address {
        ListenAddress::Tcp(address) if listening.tls.is_some() => Some(address.port()),
        _ => None,
    };
    let port = listeners.iter().find_map(port).unwrap_or_default();
    move || {
        let Some(made) = tls::self_signed() else { return Ok(()) };
        if made.is_inherited && std::fs::read(&path).is_ok_and(|there| there == made.pem.as_bytes()) {
            return Ok(());
        }
        std::fs::write(&path, &made.pem).map_err(|error| {
            refused(format!("cannot write the certificate to {}: {error}", path.display()), &error, exit::CANNOT_CREATE)
        })?;
        let trial = format!("curl --cacert {} https://localhost:{port}/", shell_word(&path.display().to_string()));
        let fields: [(&str, &dyn std::fmt::Display); 2] = [("sha256", &made.fingerprint), ("try", &trial)];
        log.event(Level::Info, "a certificate was made for this run, signed by itself: for trials", &fields);
        log.print(format!("A certificate was made for this run (SHA-256 {}).\nTry it:  {trial}\n", made.fingerprint));
        Ok(())
    }
}

/// What a successor leaves to the server before it until it has taken over; any other server, which is not `held`, does it now.
fn begin(
    held: bool,
    show: impl Fn() -> Result<(), StartError> + 'static,
    log: &Log,
) -> Result<Box<dyn FnOnce()>, StartError> {
    if !held {
        return show().map(|()| Box::new(|| ()) as Box<dyn FnOnce()>);
    }
    acme::hold();
    let log = log.clone();
    Ok(Box::new(move || {
        acme::begin();
        if let Err(error) = show() {
            log.event(Level::Error, error.message, &[]);
        }
    }))
}

/// A word that a shell takes as it is.
fn shell_word(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-+:@".contains(&byte);
    if text.bytes().all(plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

fn open_log(settings: &Settings) -> Result<Log, StartError> {
    if let Some(CloudWatch::File(path)) = &settings.telling.metrics.cloudwatch {
        // It is opened again each time that something is written.
        open_to_append(path).map_err(|error| {
            let message = format!("cannot write metrics for CloudWatch to {}: {error}", path.display());
            refused(message, &error, exit::CANNOT_CREATE)
        })?;
    }
    Log::open(&settings.logs.access, &settings.logs.events)
        .map_err(|error| refused(format!("cannot open the log: {error}"), &error, exit::CANNOT_CREATE))
}

/// Becomes whom the server would become, for good: who looks at what it would find looks as that user.
///
/// # Errors
/// Why that cannot be.
pub fn become_user(settings: &Settings) -> Result<(), String> {
    privileges::become_user(settings).map_err(|error| error.message)
}

/// [`serve`] with the loops of that backend.
fn serve_on(
    backend: BackendChoice,
    loops: LoopSet,
    supervisor: Supervisor,
    reloader: Reloader,
    succeed: impl FnOnce() -> Option<Succession>,
) -> Result<u8, StartError> {
    let reloader = Some(reloader);
    match backend {
        #[cfg(backend_io_uring)]
        BackendChoice::IoUring => {
            serve::<crate::backends::io_uring::IoUring>(loops, backend, supervisor, reloader, succeed)
        }
        #[cfg(backend_readiness)]
        _ => serve::<crate::backends::readiness::Readiness>(loops, backend, supervisor, reloader, succeed),
        #[cfg(not(backend_readiness))]
        _ => serve::<crate::backends::io_uring::IoUring>(loops, backend, supervisor, reloader, succeed),
    }
}

/// Starts the loops, and supervises until the end. Without a reloader the configuration stays as it is. `succeed` tells in whose place this
/// server is; nothing can fail after that.
fn serve<B: Backend + 'static>(
    loops: LoopSet,
    backend: BackendChoice,
    mut supervisor: Supervisor,
    reloader: Option<Reloader>,
    succeed: impl FnOnce() -> Option<Succession>,
) -> Result<u8, StartError> {
    let (shared, metrics) = (loops.shared.clone(), loops.metrics.clone());
    let threads = loops.spawn::<B>()?;
    for (counters, thread) in metrics.loops().zip(&threads) {
        counters.clock.store(clock_of(thread), Ordering::Relaxed);
    }
    announce(&shared, backend);
    if let Some(succession) = succeed() {
        supervisor.succeed(succession);
    }
    Ok(supervise(&shared, &metrics, supervisor, reloader, threads))
}

/// The clock of a thread's CPU time, for clock_gettime(3); 0 where there is none.
#[cfg(any(target_os = "linux", target_os = "freebsd"))]
fn clock_of(thread: &loops::Thread) -> i64 {
    use std::os::unix::thread::JoinHandleExt;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the thread was started and not joined, so that its name is valid; the clock is written to the number given.
    match unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t() as _, &mut clock) } {
        0 => i64::from(clock),
        _ => 0,
    }
}

#[cfg(not(any(target_os = "linux", target_os = "freebsd")))]
fn clock_of(_: &loops::Thread) -> i64 {
    0
}

fn supervise(
    shared: &Arc<Shared>,
    metrics: &Metrics,
    supervisor: Supervisor,
    reloader: Option<Reloader>,
    threads: Vec<loops::Thread>,
) -> u8 {
    let table = reloader.as_ref().map(|reloader| reloader.table.clone());
    let reload =
        |mut reloader: Reloader| -> Reload<'_> { Box::new(move |supervisor, now| reloader.reload(supervisor, now)) };
    let print = || shared.log.print(metrics::stats_box(&metrics.total()));
    let hooks = supervisor::Hooks {
        loops_done: Box::new(|| threads.iter().all(JoinHandle::is_finished)),
        every: Some(Box::new(print)),
        reload: reloader.map(reload),
    };
    let status = supervisor.status();
    let mut code = supervisor.run(hooks).code();
    let grace = |grace| if status.is_hasty() { HASTY_GRACE } else { grace };
    shared.postboxes.broadcast(|| Message::StopNow);
    let ends = loops::join(threads, grace(LOOP_GRACE));
    if ends.left > 0 {
        shared.log.event(
            Level::Error,
            "event loops did not stop in time and are left behind",
            &[("loops", &ends.left)],
        );
    }
    crate::bus::end();
    let left = shared.helpers.stop(grace(LOOP_GRACE));
    if left > 0 {
        // A disk that hangs is no failure of ours.
        shared.log.event(Level::Warn, "helper threads did not stop in time and are left behind", &[("helpers", &left)]);
    }
    if ends != loops::Ends::default() {
        code = exit::SOFTWARE;
    }
    let settings = table.map_or_else(|| shared.settings.clone(), |table| table.get().settings.clone());
    if !settings.telling.stats_interval.is_zero() {
        shared.log.print(metrics::stats_box(&metrics.total()));
    }
    shared.log.flush_and_stop(grace(LOG_FLUSH));
    code
}

/// One address and its sockets: one for each loop where the kernel balances between them, else one that all share.
struct Listening {
    /// See [`ListenerSetup::id`]; set by whoever gives them out.
    id: u32,
    /// As it is configured.
    asked: ListenAddress,
    /// Where it is.
    address: ListenAddress,
    sockets: Vec<OwnedFd>,
    /// The file of a Unix socket that a server has made: this one, or the one before it.
    file: Option<SocketFile>,
    /// Whether it serves the documents of the server's own and nothing else.
    admin: bool,
    /// What TLS demands there, where it is spoken.
    tls: Option<Arc<Policy>>,
}

impl Listening {
    /// Reads what TLS needs there, where it is spoken.
    fn secure(&mut self, settings: &Settings) -> Result<(), Failure> {
        let tls = self.front(settings).tls;
        if tls.is_spoken(matches!(self.address, ListenAddress::Unix(_))) {
            self.tls = Some(Arc::new(Policy::new(tls::prepare(&tls)?)));
        }
        Ok(())
    }

    /// What stands in front of it: balancers and proxies stand in front of what is public.
    fn front(&self, settings: &Settings) -> Front {
        if self.admin { Front::default() } else { settings.listening.front_at(&self.asked).clone() }
    }

    /// The sockets of one of so many loops. There may be more of them than loops, or fewer, when they were inherited: each has at least
    /// one loop, and each loop at least one of them.
    fn of_loop(&self, index: usize, loops: usize, front: &Arc<Front>) -> io::Result<Vec<ListenerSetup>> {
        let port = match &self.address {
            ListenAddress::Tcp(address) => address.port(),
            ListenAddress::Unix(_) | ListenAddress::Systemd(_) => 0,
        };
        let (count, admin) = (self.sockets.len(), self.admin);
        let own = if count <= loops { index % count..index % count + 1 } else { index..count };
        let setup = |socket: &OwnedFd| {
            let (id, asked, descriptor) = (self.id, self.asked.clone(), socket.try_clone()?);
            Ok(ListenerSetup { id, asked, descriptor, port, tls: self.tls.clone(), admin, front: front.clone() })
        };
        self.sockets[own].iter().step_by(loops).map(setup).collect()
    }
}

/// Where a listener is, and what it was asked to be.
#[derive(Clone)]
struct Place {
    id: u32,
    asked: ListenAddress,
    address: ListenAddress,
    admin: bool,
    /// What stood in front of it as it was opened, which stays; but for whose requests are taken.
    front: Front,
    tls: Option<Arc<Policy>>,
}

impl Place {
    fn of(listening: &Listening, settings: &Settings) -> Place {
        let Listening { id, asked, address, admin, .. } = listening;
        let (asked, address, front) = (asked.clone(), address.clone(), listening.front(settings));
        Place { id: *id, asked, address, admin: *admin, front, tls: listening.tls.clone() }
    }
}

impl Place {
    /// Whether the other may stand in front of it without its being opened anew.
    fn may_become(&self, front: &Front) -> bool {
        self.front.may_become(front, matches!(self.address, ListenAddress::Unix(_)))
    }
}

impl From<Listening> for Held {
    fn from(listening: Listening) -> Held {
        let Listening { id, asked, address, sockets, file, admin, tls: _ } = listening;
        Held { id, asked: asked.to_string(), address: address.to_string(), sockets, file, admin }
    }
}

/// What is kept for a successor.
fn holdings(settings: &Settings, listeners: Vec<Listening>, configuration: Option<PathBuf>) -> Holdings {
    let listeners = listeners.into_iter().map(Held::from).collect();
    Holdings { run_dir: settings.process.run_dir.clone(), configuration, listeners, ..Holdings::default() }
}

/// Where is listened, and where the admin listens.
fn places(listeners: &[Listening]) -> (Vec<ListenAddress>, Vec<ListenAddress>) {
    let of = |admin: bool| listeners.iter().filter(move |it| it.admin == admin).map(|it| it.address.clone());
    (of(false).collect(), of(true).collect())
}

fn write_pid_file(path: &Path) -> Result<PidFile, StartError> {
    let cannot = |error: io::Error| {
        let message = format!("cannot write the pid file {}: {error}", path.display());
        refused(message, &error, exit::CANNOT_CREATE)
    };
    PidFile::write(path).map_err(cannot)
}

/// Opens all listeners that nobody else has opened for this process.
fn open_listeners(settings: &Settings, inherited: &mut Inherited) -> Result<Vec<Listening>, StartError> {
    let patience = Patience::of_a_start();
    let mut open = |asked: &ListenAddress, admin| match inherited.listeners(asked, admin)? {
        Some(found) => Ok(found),
        None => listen(settings, asked, false, patience).map(|listening| vec![listening]),
    };
    // Those of the admin first: a listener may ask for whatever sockets systemd has opened beside those that are asked for by name.
    let mut listeners = Vec::new();
    for asked in &settings.telling.admin {
        listeners.extend(open(asked, true)?.into_iter().map(|listening| Listening { admin: true, ..listening }));
    }
    for asked in &settings.listening.at {
        listeners.extend(open(asked, false)?);
    }
    (0..).zip(&mut listeners).for_each(|(id, listening)| listening.id = id);
    Ok(listeners)
}

/// Opens a listener. `shared`: this process listens on that port already, and so may others of its own.
fn listen(
    settings: &Settings,
    address: &ListenAddress,
    shared: bool,
    patience: Patience,
) -> Result<Listening, StartError> {
    match address {
        ListenAddress::Tcp(address) => {
            let all = [&settings.listening.at[..], &settings.telling.admin].concat();
            let only_v6 = only_v6(*address, &all);
            let opened = patience.open(|| listen_tcp(*address, only_v6, settings.loops.count, shared));
            opened.map_err(|error| {
                let hint = match error.kind() {
                    io::ErrorKind::AddrInUse => "; another program listens there: stop it or choose another address",
                    io::ErrorKind::PermissionDenied => "; ports below 1024 need privileges",
                    io::ErrorKind::AddrNotAvailable => "; no interface of this machine has that address",
                    _ => "",
                };
                refused(format!("cannot listen on {address}: {error}{hint}"), &error, exit::CANNOT_CREATE)
            })
        }
        ListenAddress::Unix(path) => {
            let access = settings.listening.unix_at(path);
            unix::listen(path, access.mode, unix::Owner::find(access)?, patience)
        }
        // The inherited sockets are looked at first, and say what is missing.
        ListenAddress::Systemd(name) => {
            Err(StartError { message: format!("systemd has opened no socket {name}"), code: exit::CANNOT_CREATE })
        }
    }
}

/// Whether an address is `[::]:PORT` beside an IPv4 address with that port. Alone it takes IPv4 as well, where the system does so by
/// default, as Linux does; both together would be refused as if another program listened.
fn only_v6(address: SocketAddr, all: &[ListenAddress]) -> bool {
    let is_v4 = |other: &ListenAddress| matches!(other, ListenAddress::Tcp(other) if other.is_ipv4() && other.port() == address.port());
    address.is_ipv6() && address.ip().is_unspecified() && address.port() != 0 && all.iter().any(is_v4)
}

fn listen_tcp(address: SocketAddr, only_v6: bool, loops: usize, shared: bool) -> io::Result<Listening> {
    let asked = ListenAddress::Tcp(address);
    let balances = cfg!(any(target_os = "linux", target_os = "freebsd"));
    let probe = tcp_socket(address, only_v6)?;
    if balances {
        // It is closed again, and whom it had let in would be reset.
        refuse_newcomers(&probe);
        if shared {
            share_port(&probe)?;
        }
    }
    probe.bind(&address.into())?;
    // Only a listening socket conflicts with another instance's on every kernel.
    probe.listen(1)?;
    let address = probe.local_addr()?.as_socket().unwrap_or(address);
    let mut sockets = Vec::new();
    if balances {
        drop(probe);
        for _ in 0..loops {
            let socket = tcp_socket(address, only_v6)?;
            share_port(&socket)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            sockets.push(socket.into());
        }
    } else {
        probe.listen(BACKLOG)?;
        sockets.push(probe.into());
    }
    Ok(Listening { id: 0, asked, address: ListenAddress::Tcp(address), sockets, file: None, admin: false, tls: None })
}

fn tcp_socket(address: SocketAddr, only_v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    // Linux hands these down to accepted sockets; elsewhere the backend sets what it needs.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10));
    socket.set_tcp_keepalive(&keepalive)?;
    Ok(socket)
}

#[cfg(target_os = "freebsd")]
fn share_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port_lb(true)
}

#[cfg(not(target_os = "freebsd"))]
fn share_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

/// Raises RLIMIT_NOFILE to its hard limit and returns what it was, for the workers get that back.
fn raise_descriptor_limit() -> Option<(u64, u64)> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes to the struct that it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return None;
    }
    // Not of the same type on every platform.
    #[allow(clippy::unnecessary_cast)]
    let original = (limit.rlim_cur as u64, limit.rlim_max as u64);
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: setrlimit only reads the struct. Where it is refused the old limit stays and connections are clamped.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
    Some(original)
}

/// How many descriptors this process may have; `None`: as many as it likes.
fn descriptors() -> Option<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit writes to the struct that it is given.
    let is_known = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0;
    let bounded = is_known && limit.rlim_cur != libc::RLIM_INFINITY;
    bounded.then(|| usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX))
}

/// Never promises more connections than there are descriptors: each client may need a second one, to a worker.
fn clamp_connections(config: &mut Config) {
    let Some(descriptors) = descriptors() else {
        config.server.bounds.spare = usize::MAX;
        return;
    };
    let most = site::most_connections(config, descriptors);
    let settings = &mut config.server;
    settings.bounds.spare = most.saturating_sub(settings.bounds.connections);
    if settings.bounds.connections > most {
        settings.source.warnings.push(format!(
            "max_connections is {most} and not {}: RLIMIT_NOFILE allows {descriptors} descriptors; raise it with `ulimit -n`",
            settings.bounds.connections
        ));
        settings.bounds.connections = most;
    }
}

/// Takes what the machine has, and bounds by it what was asked for. RLIMIT_NOFILE as it was, for the workers.
fn fit_to_machine(config: &mut Config, warnings: &mut Vec<String>) -> Option<(u64, u64)> {
    let original_limit = raise_descriptor_limit();
    let known = config.server.source.warnings.len();
    clamp_connections(config);
    let settings = &mut config.server;
    warn_of_memory(settings);
    warnings.extend(settings.source.warnings.drain(known..));
    original_limit
}

/// Says so when what may be held for slow clients is more than there is: in a container, than its limit leaves.
fn warn_of_memory(settings: &mut Settings) {
    let buffers = settings.stores.buffer_bytes as u64;
    if let Some(left) = supervisor::memory::headroom().filter(|left| *left < buffers) {
        let warning = "buffer_bytes may take";
        settings.source.warnings.push(format!(
            "{warning} {} MiB, and {} MiB of memory are left",
            buffers >> 20,
            left >> 20
        ));
    }
}

/// Which backend runs: the one that was asked for, or for `auto` the faster one that the kernel grants.
fn choose_backend(settings: &Settings, log: &Log) -> Result<BackendChoice, StartError> {
    let readiness = if cfg!(target_os = "linux") { BackendChoice::Epoll } else { BackendChoice::Kqueue };
    let not_compiled = |name: &str| StartError {
        message: format!("the backend {name} is not compiled in; see `--backend auto`"),
        code: exit::CONFIG,
    };
    let wants = match settings.loops.backend {
        BackendChoice::Auto if cfg!(backend_io_uring) && cfg!(not(backend_readiness)) => BackendChoice::IoUring,
        BackendChoice::Auto => AUTO.unwrap_or(readiness),
        choice => choice,
    };
    match wants {
        BackendChoice::IoUring if cfg!(backend_io_uring) => match probe_io_uring(settings) {
            Ok(()) => Ok(BackendChoice::IoUring),
            Err(error) if cfg!(backend_readiness) => {
                log.event(
                    Level::Warn,
                    "the kernel refuses io_uring, epoll is used",
                    &[("error", &error), ("likely", &likely_cause())],
                );
                Ok(readiness)
            }
            Err(error) => Err(refused(format!("the kernel refuses io_uring: {error}"), &error, exit::SYSTEM)),
        },
        BackendChoice::IoUring => Err(not_compiled("io_uring")),
        choice if choice == readiness && cfg!(backend_readiness) => Ok(readiness),
        BackendChoice::Epoll => Err(not_compiled("epoll")),
        _ => Err(not_compiled("kqueue")),
    }
}

/// What `auto` takes where both are compiled in; `None` is readiness. The README's table has the reason.
const AUTO: Option<BackendChoice> = None;

#[cfg(backend_io_uring)]
fn probe_io_uring(settings: &Settings) -> io::Result<()> {
    use crate::buffers::block::{Budget, Pool};
    let pool = Pool::new(64, 1, Budget::new(0));
    crate::backends::io_uring::IoUring::new(loops::options(settings, 16, pool)).map(drop)
}

#[cfg(not(backend_io_uring))]
fn probe_io_uring(_settings: &Settings) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

fn likely_cause() -> &'static str {
    match std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").as_deref().map(str::trim) {
        Ok("1" | "2") => "kernel.io_uring_disabled",
        Ok(_) => "a seccomp filter, as containers have",
        Err(_) => "a kernel before 5.19 or one without io_uring",
    }
}

fn refused(message: String, error: &io::Error, code: u8) -> StartError {
    let code = if error.kind() == io::ErrorKind::PermissionDenied { exit::PERMISSION } else { code };
    StartError { message, code }
}

fn backend_name(backend: BackendChoice) -> &'static str {
    match backend {
        BackendChoice::IoUring => "io_uring",
        BackendChoice::Kqueue => "kqueue",
        _ => "epoll",
    }
}

fn announce(shared: &Shared, backend: BackendChoice) {
    let settings = &shared.settings;
    if let Some(path) = &settings.source.file {
        shared.log.event(Level::Info, "configuration", &[("file", &path.display())]);
    }
    for address in &settings.listening.at {
        let fields: [(&str, &dyn std::fmt::Display); 3] =
            [("address", address), ("loops", &settings.loops.count), ("backend", &backend_name(backend))];
        shared.log.event(Level::Info, "listening", &fields);
    }
    for address in &settings.telling.admin {
        shared.log.event(Level::Info, "listening for those who watch the server", &[("address", address)]);
    }
}

#[cfg(test)]
mod tests;
