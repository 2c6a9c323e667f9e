//! The built-in worker, `production_server worker`: a small HTTP/1.1 server on a Unix socket, for a fresh machine, for
//! demonstrations and for load tests. It keeps to the worker contract like any other.
//!
//! One thread for each connection, which blocks in read(2): with few connections and one request at a time on each, that is
//! one read and one write for a request and nothing else. On TERM it stops accepting, ends idle connections, finishes
//! what is in flight and exits with 0. Where no further thread can be started, further connections are told that it is busy.
//!
//! With `--module FILE` (or `$MODULE`) a handler in a shared object answers in place of the demonstration, and is loaded again
//! when the file changes (`handlers`, `module`). HUP, USR1 and USR2 make it look at once.

mod answers;
mod connection;
mod contract;
mod handlers;
mod module;

use std::ffi::OsString;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use handlers::Handlers;

use crate::socket_file;
use crate::supervisor::{run_directory, wake};

/// Connections at once; more wait in the listener's backlog.
const MOST_CONNECTIONS: usize = 4096;
/// A connection's thread needs little more than its buffers, which are on the heap.
const STACK: usize = 128 * 1024;
/// A module may need more; `examples/module/production_server.h` promises so much.
const MODULE_STACK: usize = 1024 * 1024;
const USAGE: &str = "usage: production_server worker [--socket PATH] [--module FILE] (defaults: $SOCKET_PATH, $MODULE)";

/// What all connections share.
#[derive(Debug, Default)]
struct Shared {
    /// What answers, if it is a module.
    handlers: Option<Arc<Handlers>>,
    requests: AtomicU64,
    stopping: AtomicBool,
    open: Mutex<Open>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Open {
    count: usize,
    /// Idle connections by place, for their end. A place is `None` while it is free.
    streams: Vec<Option<Arc<Entry>>>,
}

/// One open connection.
#[derive(Debug)]
struct Entry {
    stream: UnixStream,
    /// Between its first byte and the end of its answer, a request is in flight.
    busy: AtomicBool,
}

impl Shared {
    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the worker is told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    socket: PathBuf,
    module: Option<PathBuf>,
}

/// Runs the worker with the arguments behind `worker`: `--socket PATH`, else `$SOCKET_PATH`; `--module FILE`, else `$MODULE`,
/// else the demonstration.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let options = match options(arguments, |name| std::env::var_os(name)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

/// Why the worker cannot serve.
struct Failure {
    message: String,
    code: u8,
}

fn options(
    mut arguments: impl Iterator<Item = OsString>,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<Options, String> {
    let named = |name: &str| variable(name).filter(|path| !path.is_empty()).map(PathBuf::from);
    let (mut socket, mut module) = (None, None);
    while let Some(flag) = arguments.next() {
        let place = match flag.to_str() {
            Some("--socket") => &mut socket,
            Some("--module") => &mut module,
            _ => return Err(format!("the built-in worker does not understand `{}`", flag.to_string_lossy())),
        };
        let path = arguments.next().filter(|path| !path.is_empty());
        let path = path.ok_or_else(|| format!("`{}` needs a path", flag.to_string_lossy()))?;
        if place.replace(PathBuf::from(path)).is_some() {
            return Err(format!("`{}` is given twice", flag.to_string_lossy()));
        }
    }
    let socket = socket.or_else(|| named("SOCKET_PATH")).ok_or("the built-in worker needs a socket to listen on")?;
    Ok(Options { socket, module: module.or_else(|| named("MODULE")) })
}

fn serve(options: &Options) -> Result<(), Failure> {
    let path = &options.socket;
    let cannot = |error: io::Error| Failure {
        message: format!("cannot serve on the Unix socket {}: {error}", path.display()),
        code: 73,
    };
    // Before anything is opened here that could take its number.
    let inherited = contract::listener().map_err(cannot)?;
    let (stop, stopped) = wake::pair().map_err(cannot)?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        stop.on_signal(signal).map_err(cannot)?;
    }
    let (check, mut checks) = wake::pair().map_err(cannot)?;
    for signal in [signal_hook::consts::SIGHUP, signal_hook::consts::SIGUSR1, signal_hook::consts::SIGUSR2] {
        check.on_signal(signal).map_err(cannot)?;
    }
    let handlers = options.module.as_deref().map(Handlers::load).transpose();
    let handlers = handlers.map_err(|message| Failure { message, code: 78 })?.map(Arc::new);
    let listener = inherited.map_or_else(|| open(path), Ok).map_err(cannot)?;
    listener.set_nonblocking(true).map_err(cannot)?;
    let shared = Arc::new(Shared { handlers, ..Shared::default() });
    contract::tell("READY=1");
    accept_until_stopped(&listener, &stopped, &mut checks, &shared);
    contract::tell("STOPPING=1");
    take_the_rest(&listener, &shared);
    drop(listener);
    std::fs::remove_file(path).ok();
    finish(&shared);
    if let Some(handlers) = &shared.handlers {
        handlers.end();
    }
    Ok(())
}

/// Opens the socket at a path where nobody answers.
fn open(path: &Path) -> io::Result<UnixListener> {
    run_directory::check_length(path).map_err(io::Error::other)?;
    socket_file::clear(path)?;
    UnixListener::bind(path)
}

fn accept_until_stopped(
    listener: &UnixListener,
    stopped: &wake::Sleeper,
    checks: &mut wake::Sleeper,
    shared: &Arc<Shared>,
) {
    let mut heartbeat = contract::Heartbeat::from_environment();
    loop {
        let descriptors = [stopped.descriptor(), checks.descriptor(), listener.as_raw_fd()];
        let mut entries = descriptors.map(|descriptor| wake::entry(descriptor, libc::POLLIN));
        if wake::poll(&mut entries, heartbeat.beat(Instant::now())).is_err() || entries[0].revents != 0 {
            return;
        }
        if entries[1].revents != 0 {
            checks.clear();
            if let Some(handlers) = &shared.handlers {
                handlers.check();
            }
        }
        match listener.accept() {
            Ok((stream, _)) => start(stream, shared),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Out of descriptors, most likely: some will come back. Without a pause this would spin.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
    }
}

/// Takes in those who have been connected by the kernel already: they may have sent their requests, and would be cut. Who comes now is
/// refused, and goes elsewhere. (Where a listener cannot be shut, there is a moment left in which one may come too late.)
fn take_the_rest(listener: &UnixListener, shared: &Arc<Shared>) {
    socket2::SockRef::from(listener).shutdown(Shutdown::Read).ok();
    while let Ok((stream, _)) = listener.accept() {
        start(stream, shared);
    }
}

fn start(stream: UnixStream, shared: &Arc<Shared>) {
    // macOS and the BSDs hand the listener's flag down.
    if stream.set_nonblocking(false).is_err() {
        return;
    }
    let entry = Arc::new(Entry { stream, busy: AtomicBool::new(false) });
    let mut open = shared.open();
    while open.count >= MOST_CONNECTIONS {
        open = shared.changed.wait(open).unwrap_or_else(PoisonError::into_inner);
    }
    let place = open.streams.iter().position(Option::is_none).unwrap_or(open.streams.len());
    if place == open.streams.len() {
        open.streams.push(None);
    }
    open.streams[place] = Some(Arc::clone(&entry));
    open.count += 1;
    drop(open);
    let (theirs, ours) = (Arc::clone(shared), Arc::clone(&entry));
    let run = move || {
        // A client that leaves is no news.
        connection::serve(&entry, &theirs).ok();
        forget(&theirs, place);
    };
    let stack = if shared.handlers.is_some() { MODULE_STACK } else { STACK };
    if std::thread::Builder::new().stack_size(stack).spawn(run).is_err() {
        // Too many processes, or too little memory. Those who have their threads are served on.
        answers::decline(&ours.stream, "this worker can start no thread for one more connection").ok();
        forget(shared, place);
    }
}

fn forget(shared: &Shared, place: usize) {
    let mut open = shared.open();
    if let Some(entry) = open.streams[place].take() {
        entry.stream.shutdown(Shutdown::Both).ok();
    }
    open.count -= 1;
    shared.changed.notify_all();
}

/// Lets nothing more in on idle connections, and waits for the busy ones, which do the same after their answer, for they look at
/// `stopping` then. Each connection either sees that or is seen idle here, whichever comes first.
fn finish(shared: &Shared) {
    shared.stopping.store(true, Ordering::SeqCst);
    let mut open = shared.open();
    for entry in open.streams.iter().flatten() {
        if !entry.busy.load(Ordering::SeqCst) {
            // What has arrived is still read and answered; then comes the end.
            entry.stream.shutdown(Shutdown::Read).ok();
        }
    }
    while open.count > 0 {
        open = shared.changed.wait(open).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_win_over_the_environment() {
        let read = |arguments: &[&str], environment: &[(&str, &str)]| {
            let variable =
                |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
            options(arguments.iter().map(OsString::from), variable)
        };
        let told = |socket: &str, module: Option<&str>| {
            Ok(Options { socket: PathBuf::from(socket), module: module.map(PathBuf::from) })
        };
        let environment = [("SOCKET_PATH", "e.sock"), ("MODULE", "e.so")];
        assert_eq!(read(&[], &environment), told("e.sock", Some("e.so")));
        assert_eq!(read(&["--module", "a.so", "--socket", "a.sock"], &environment), told("a.sock", Some("a.so")));
        assert_eq!(read(&["--socket", "a.sock"], &[("MODULE", "")]), told("a.sock", None));
        for (arguments, said) in [
            (&[][..], "needs a socket"),
            (&["--socket"], "needs a path"),
            (&["--socket", ""], "needs a path"),
            (&["--socket", "a", "--socket", "b"], "twice"),
            (&["--port", "1"], "`--port`"),
        ] {
            let error = read(arguments, &[]).unwrap_err();
            assert!(error.contains(said), "{arguments:?}: {error}");
        }
    }
}
