//! The bench: one worker at a time, started as the supervisor starts it, its output, and the one place where all waits.
//!
//! It owns the worker's process, the guard that ends it should this process be killed, and the directory of its socket.
//! Dropping it kills the worker's process group and removes the directory.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use signal_hook::consts::signal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use socket2::SockAddr;

use crate::config::{self, App, Command, Conformance, ReadyBy};
use crate::http::Refusal;
use crate::proc;
use crate::socket_file::leave_dead;
use crate::supervisor::endpoint::Endpoint;
use crate::supervisor::guard::{self, Guard};
use crate::supervisor::output::{Capture, LastLines};
use crate::supervisor::probe::{Look, Probe};
use crate::supervisor::spawn::{self, Launcher, Particulars};
use crate::supervisor::{RunDirectory, wake};

use super::USAGE;

/// Looks for what no descriptor tells about are this far apart.
pub const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// From the end of a worker's connections to the end of its process.
const EXIT_TIME: Duration = Duration::from_millis(100);
/// Exit code: no process, pipe or socket can be made.
const CANNOT_CREATE: u8 = 73;

/// What keeps a check from its finding.
#[derive(Debug)]
pub enum Trouble {
    /// Ctrl-C or TERM: the whole run is over.
    Halted,
    /// Something of our own failed: the whole run is over.
    Machine(io::Error),
    /// The worker could not be reached.
    Unreachable(io::Error),
    /// It did not open its socket, for the reason given.
    NotReady(String),
    /// It ended the connection before its answer was whole; the bytes of it that came.
    Ended(u64),
    /// The connection broke before the answer was whole.
    Broken(io::Error),
    /// No whole answer within that time.
    Late(Duration),
    /// The answer is not HTTP/1.1 as the server reads it.
    Malformed(Refusal),
}

impl fmt::Display for Trouble {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trouble::Halted => formatter.write_str("interrupted"),
            Trouble::Machine(error) => write!(formatter, "cannot go on: {error}"),
            Trouble::Unreachable(error) => write!(formatter, "cannot connect: {error}"),
            Trouble::NotReady(reason) => formatter.write_str(reason),
            Trouble::Ended(0) => formatter.write_str("the connection ended without an answer"),
            Trouble::Ended(bytes) => write!(formatter, "the connection ended within the answer, after {bytes} bytes"),
            Trouble::Broken(error) => write!(formatter, "the connection broke: {error}"),
            Trouble::Late(time) => write!(formatter, "no whole answer within {}", seconds(*time)),
            Trouble::Malformed(refusal) => write!(formatter, "not a valid answer: {refusal}"),
        }
    }
}

/// A time as the table says it.
pub fn seconds(time: Duration) -> String {
    match time.as_millis() {
        millis if millis < 1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// A running worker.
struct Life {
    child: Child,
    endpoint: Endpoint,
    stdout: Capture,
    stderr: Capture,
    exit: Option<ExitStatus>,
}

/// See the file.
pub struct Bench {
    launcher: Launcher,
    patience: Duration,
    interrupted: Arc<AtomicBool>,
    sleeper: wake::Sleeper,
    life: Option<Life>,
    lives: u32,
    /// How long the first worker took to get ready.
    start_time: Duration,
    last_lines: LastLines,
    buffer: Box<[u8]>,
    // Behind the worker: it ends first. The guard goes before the directory that it would clear.
    guard: Option<Guard>,
    run: RunDirectory,
}

impl Bench {
    /// Makes the directory, the guard and the signal handlers. Nothing of the worker runs yet.
    ///
    /// # Errors
    /// A sentence and an exit code.
    pub fn new(wanted: &Conformance, directory: &Path) -> Result<Bench, (String, u8)> {
        let cannot = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| (format!("error: cannot {what}: {error}"), CANNOT_CREATE)
        };
        let program = spawn::this_program();
        let launcher = launcher(wanted, &program).map_err(|message| (message, USAGE))?;
        let run = RunDirectory::open(directory).map_err(|error| (format!("error: {error}"), error.code()))?;
        let (waker, sleeper) = wake::pair().map_err(cannot("make a pair of sockets"))?;
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            // The flag first: handlers run in the order of their registration, and the wake must find it set.
            signal_hook::flag::register(signal, Arc::clone(&interrupted)).map_err(cannot("handle signals"))?;
            waker.on_signal(signal).map_err(cannot("handle signals"))?;
        }
        waker.on_signal(SIGCHLD).map_err(cannot("handle signals"))?;
        let guard = Guard::start(&program, run.sockets()).map_err(cannot("start the guard"))?;
        Ok(Bench {
            launcher,
            patience: wanted.timeout,
            interrupted,
            sleeper,
            life: None,
            lives: 0,
            start_time: Duration::ZERO,
            last_lines: LastLines::default(),
            buffer: vec![0; 16 * 1024].into_boxed_slice(),
            guard: Some(guard),
            run,
        })
    }

    /// Whether the worker was given a listening socket.
    pub fn is_inherited(&self) -> bool {
        self.life.as_ref().is_some_and(|life| life.endpoint.inherited().is_some())
    }

    /// Whether the worker may choose between a Unix socket and a TCP port, and has not yet.
    pub fn is_undecided(&self) -> bool {
        self.life.as_ref().is_some_and(|life| !life.endpoint.others().is_empty())
    }

    /// Whether the worker opens a TCP port.
    pub fn is_tcp(&self) -> bool {
        self.life.as_ref().is_some_and(|life| !life.endpoint.is_unix())
    }

    /// How long a worker may take to get ready.
    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// How long the first worker took to get ready.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// Starts a worker; returns its process id. `stale`: a socket file that nobody listens on lies at its path.
    ///
    /// # Errors
    /// When no process can be made, which is our trouble and not the worker's.
    pub fn start(&mut self, stale: bool) -> Result<u32, Trouble> {
        self.end()?;
        self.lives += 1;
        let socket = self.run.socket(&format!("web.G1.{}.sock", self.lives));
        let socket = socket.map_err(|error| Trouble::Machine(io::Error::other(error)))?;
        let life = launch(&self.launcher, socket, stale).map_err(Trouble::Machine)?;
        let id = life.child.id();
        self.life = Some(life);
        let told = self.guard.as_mut().map_or(Ok(()), |guard| guard.add(id));
        told.map_err(Trouble::Machine)?;
        Ok(id)
    }

    /// Waits until the worker's socket accepts; says how long that took.
    ///
    /// # Errors
    /// When it does not within `patience`, with what is there instead.
    pub fn until_ready(&mut self, patience: Duration) -> Result<Duration, Trouble> {
        let begun = Instant::now();
        let end = begun + patience;
        let Some(life) = &self.life else { return Err(Trouble::NotReady("it does not run".to_owned())) };
        let (address, inherited) = (life.endpoint.address().clone(), life.endpoint.inherited());
        let probe = Probe::of_readiness(&ReadyBy::Listen, address, inherited, begun)
            .map(|probe| probe.or_at(life.endpoint.others().iter().cloned()));
        let Some(mut probe) = probe else { return Err(Trouble::NotReady("it is not asked".to_owned())) };
        loop {
            let now = Instant::now();
            if let Some(status) = self.exit() {
                return Err(Trouble::NotReady(format!("{} before it listened", ended_how(status))));
            }
            let listens = probe.look(now) == Look::Listening;
            if listens && !self.settle(probe.address()) {
                probe.later(now);
            } else if listens {
                let took = begun.elapsed();
                if self.start_time.is_zero() {
                    self.start_time = took.max(Duration::from_millis(1));
                }
                return Ok(took);
            }
            if now >= end {
                return Err(Trouble::NotReady(self.elsewhere(patience)));
            }
            let interest = probe.descriptor().map(|descriptor| (descriptor, probe.events()));
            self.turn(interest, probe.next().min(end))?;
        }
    }

    /// Somebody listens there. Whether it is the worker: a port that it may leave alone may be a stranger's by now.
    fn settle(&mut self, address: &SockAddr) -> bool {
        let Some(life) = &mut self.life else { return false };
        let port = address.as_socket().filter(|_| life.endpoint.may_leave_port() && cfg!(target_os = "linux"));
        let is_its_own = |port: SocketAddr| {
            let suffix = format!(":{}", port.port());
            let found = proc::listening_addresses(life.child.id());
            found.iter().any(|known| !known.starts_with("unix:") && known.ends_with(&suffix))
        };
        let settled = port.is_none_or(is_its_own);
        if settled {
            life.endpoint.settle(address);
        }
        settled
    }

    /// Where it listens instead of where it should.
    fn elsewhere(&self, patience: Duration) -> String {
        let Some(life) = &self.life else { return String::new() };
        let found = proc::listening_addresses(life.child.id());
        let instead = match &found[..] {
            [] => "its processes listen nowhere".to_owned(),
            some => format!("its processes listen on {}", some.join(", ")),
        };
        if life.endpoint.inherited().is_some() {
            return format!("nobody accepts on descriptor 3 after {}; {instead}", seconds(patience));
        }
        format!("nobody listens on {} after {}; {instead}", self.door(), seconds(patience))
    }

    /// A worker that serves: the one that runs, or a new one.
    ///
    /// # Errors
    /// When a new one does not get ready.
    pub fn ensure(&mut self) -> Result<(), Trouble> {
        if self.exit().is_none() && self.life.is_some() {
            return Ok(());
        }
        self.start(false)?;
        self.until_ready(self.patience).map(|_| ())
    }

    /// Where the worker listens, for messages.
    pub fn door(&self) -> String {
        self.life.as_ref().map_or_else(|| "its socket".to_owned(), |life| life.endpoint.to_string())
    }

    /// The worker's address.
    ///
    /// # Errors
    /// When none runs.
    pub fn address(&self) -> Result<SockAddr, Trouble> {
        let none = || Trouble::Unreachable(io::ErrorKind::NotConnected.into());
        self.life.as_ref().map(|life| life.endpoint.address().clone()).ok_or_else(none)
    }

    /// The path of the worker's socket file, whether it is there or not; `None` for one that listens on a port.
    pub fn socket_path(&self) -> Option<&Path> {
        self.life.as_ref().filter(|life| life.endpoint.is_unix()).and_then(|life| life.endpoint.path())
    }

    /// Sends a signal to the worker's first process, as the supervisor does.
    pub fn signal(&mut self, signal: i32) {
        if self.exit().is_none()
            && let Some(life) = &self.life
        {
            guard::signal_process(life.child.id() as i32, signal);
        }
    }

    /// How the worker's first process ended, if it has.
    pub fn exit(&mut self) -> Option<ExitStatus> {
        let life = self.life.as_mut()?;
        if life.exit.is_none() {
            life.exit = life.child.try_wait().ok().flatten();
        }
        life.exit
    }

    /// Whether somebody of the worker's process group is there. Ask when its first process has ended: until it is reaped
    /// it counts itself.
    pub fn has_company(&self) -> bool {
        self.life.as_ref().is_some_and(|life| guard::signal_group(life.child.id() as i32, 0))
    }

    /// Kills the worker's process group, if there is one, and takes its last output.
    ///
    /// # Errors
    /// When the guard is gone.
    pub fn end(&mut self) -> Result<(), Trouble> {
        let Some(mut life) = self.life.take() else { return Ok(()) };
        let id = life.child.id();
        // A group that still has somebody in it keeps its number, also when its leader is reaped. An empty one is asked
        // first, and signalled only if somebody is there.
        if life.exit.is_none() || guard::signal_group(id as i32, 0) {
            guard::signal_group(id as i32, libc::SIGKILL);
        }
        life.child.wait().ok();
        life.stdout.finish(&mut self.buffer, |_| {});
        life.stderr.finish(&mut self.buffer, |line| self.last_lines.push(line));
        life.endpoint.clear();
        self.guard.as_mut().map_or(Ok(()), |guard| guard.remove(id)).map_err(Trouble::Machine)
    }

    /// The last lines that workers wrote to stderr.
    pub fn last_lines(&self) -> String {
        self.last_lines.joined()
    }

    /// Does something whose last lines are not kept.
    pub fn quietly<T>(&mut self, task: impl FnOnce(&mut Bench) -> T) -> T {
        let before = std::mem::take(&mut self.last_lines);
        let done = task(self);
        self.last_lines = before;
        done
    }

    /// What went wrong, and whether the worker has gone over it.
    ///
    /// # Errors
    /// As [`Bench::turn`].
    pub fn explain(&mut self, trouble: &Trouble) -> Result<String, Trouble> {
        let cut = matches!(trouble, Trouble::Ended(_) | Trouble::Broken(_) | Trouble::Unreachable(_));
        // A process closes its sockets a little before its end can be seen.
        let gone = cut && self.until(EXIT_TIME, |bench| bench.exit().is_some())?;
        Ok(match self.exit().filter(|_| gone) {
            Some(status) => format!("{trouble}; the worker {}", ended_how(status)),
            None => trouble.to_string(),
        })
    }

    /// Sleeps until the socket has one of its events (true), the worker's output moved, a child ended, or `until`.
    ///
    /// # Errors
    /// [`Trouble::Halted`] when this process was told to end.
    pub fn turn(&mut self, socket: Option<(RawFd, i16)>, until: Instant) -> Result<bool, Trouble> {
        let pipes = self.life.as_ref().map(|life| [life.stdout.descriptor(), life.stderr.descriptor()]);
        let mut entries = vec![wake::entry(self.sleeper.descriptor(), libc::POLLIN)];
        entries.extend(pipes.into_iter().flatten().flatten().map(|pipe| wake::entry(pipe, libc::POLLIN)));
        entries.extend(socket.map(|(descriptor, events)| wake::entry(descriptor, events)));
        let timeout = until.saturating_duration_since(Instant::now());
        wake::poll(&mut entries, Some(timeout)).map_err(Trouble::Machine)?;
        if entries[0].revents != 0 {
            self.sleeper.clear();
        }
        if self.interrupted.load(Ordering::SeqCst) {
            return Err(Trouble::Halted);
        }
        if let Some(life) = &mut self.life {
            life.stdout.read(&mut self.buffer, |_| {});
            life.stderr.read(&mut self.buffer, |line| self.last_lines.push(line));
        }
        Ok(socket.is_some() && entries.last().is_some_and(|entry| entry.revents != 0))
    }

    /// Waits for so long, or until `done` says so.
    ///
    /// # Errors
    /// As [`Bench::turn`].
    pub fn until(&mut self, patience: Duration, mut done: impl FnMut(&mut Bench) -> bool) -> Result<bool, Trouble> {
        let end = Instant::now() + patience;
        loop {
            if done(self) {
                return Ok(true);
            }
            let now = Instant::now();
            if now >= end {
                return Ok(false);
            }
            self.turn(None, end.min(now + LOOK_AGAIN))?;
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.end().ok();
        if let Some(guard) = self.guard.take() {
            guard.dismiss();
        }
    }
}

/// How a process ended, in words.
pub fn ended_how(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => format!("ended by signal {signal}"),
        (None, code) => format!("exited with code {}", code.unwrap_or(-1)),
    }
}

/// What starts the workers: the supervisor's own launcher, for an app that is all defaults but for its command.
fn launcher(wanted: &Conformance, program: &Path) -> Result<Launcher, String> {
    let command = match &wanted.command[..] {
        [] => Command::BuiltIn,
        words => Command::Argv(words.to_vec()),
    };
    let runs = config::Program { command, socket: wanted.socket, ..config::Program::default() };
    let app = App { program: runs, ..App::default() };
    let launcher = Launcher::new(&app, program, None, None).map_err(|message| format!("error: {message}"))?;
    launcher.ok_or_else(|| "error: there is no command".to_owned())
}

/// Starts a worker: the one place that knows how the supervisor does it.
fn launch(launcher: &Launcher, socket: PathBuf, stale: bool) -> io::Result<Life> {
    let mut endpoint = launcher.endpoint(socket)?;
    if let Some(path) = endpoint.path().filter(|_| stale) {
        leave_dead(path)?;
    }
    let particulars = Particulars { number: 1, generation: 1, limit: 0, notify: None };
    let mut child = launcher.start(particulars, &mut endpoint)?;
    let capture = |pipe: Option<OwnedFd>| Capture::new(pipe.ok_or(io::ErrorKind::BrokenPipe)?);
    let stdout = child.stdout.take().map(OwnedFd::from);
    let stderr = child.stderr.take().map(OwnedFd::from);
    let pipes = capture(stdout).and_then(|stdout| Ok((stdout, capture(stderr)?)));
    match pipes {
        Ok((stdout, stderr)) => Ok(Life { child, endpoint, stdout, stderr, exit: None }),
        Err(error) => {
            guard::signal_group(child.id() as i32, libc::SIGKILL);
            child.wait().ok();
            Err(error)
        }
    }
}
