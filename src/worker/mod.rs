//! The built-in worker, `production_server worker`: a small HTTP/1.1 server on a Unix socket, for a fresh machine, for
//! demonstrations and for load tests. It keeps to the worker contract like any other.
//!
//! One thread for each connection, which blocks in read(2): with few connections and one request at a time on each, that is
//! one read and one write for a request and nothing else. On TERM it stops accepting, ends idle connections, finishes
//! what is in flight and exits with 0.

mod answers;
mod connection;

use std::ffi::OsString;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::supervisor::{given, run_directory, wake};

/// Connections at once; more wait in the listener's backlog.
const MOST_CONNECTIONS: usize = 4096;
/// A connection's thread needs little more than its buffers, which are on the heap.
const STACK: usize = 128 * 1024;

/// What all connections share.
#[derive(Debug, Default)]
struct Shared {
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

/// Runs the worker with the arguments behind `worker`: `--socket PATH`, else `$SOCKET_PATH`.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let path = match socket_path(arguments) {
        Ok(path) => path,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(64);
        }
    };
    match serve(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot serve on the Unix socket {}: {error}", path.display());
            ExitCode::from(73)
        }
    }
}

fn socket_path(mut arguments: impl Iterator<Item = OsString>) -> Result<PathBuf, String> {
    let usage = "usage: production_server worker [--socket PATH] (default: $SOCKET_PATH)";
    match (arguments.next(), arguments.next(), arguments.next()) {
        (None, ..) => std::env::var_os("SOCKET_PATH")
            .filter(|path| !path.is_empty())
            .map(PathBuf::from)
            .ok_or_else(|| format!("the built-in worker needs a socket to listen on\n{usage}")),
        (Some(flag), Some(path), None) if flag == "--socket" && !path.is_empty() => Ok(path.into()),
        (Some(flag), ..) => {
            Err(format!("the built-in worker does not understand `{}`\n{usage}", flag.to_string_lossy()))
        }
    }
}

fn serve(path: &Path) -> io::Result<()> {
    // Before anything is opened here that could take its number.
    let inherited = given::listener()?;
    let (waker, sleeper) = wake::pair()?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        waker.on_signal(signal)?;
    }
    let listener = inherited.map_or_else(|| open(path), Ok)?;
    listener.set_nonblocking(true)?;
    let shared = Arc::new(Shared::default());
    given::tell("READY=1");
    accept_until_stopped(&listener, &sleeper, &shared);
    given::tell("STOPPING=1");
    drop(listener);
    std::fs::remove_file(path).ok();
    finish(&shared);
    Ok(())
}

/// Opens the socket at a path where nobody answers.
fn open(path: &Path) -> io::Result<UnixListener> {
    run_directory::check_length(path).map_err(io::Error::other)?;
    if !run_directory::clear_path(path) {
        return Err(io::Error::other("it exists, and somebody answers on it"));
    }
    UnixListener::bind(path)
}

fn accept_until_stopped(listener: &UnixListener, sleeper: &wake::Sleeper, shared: &Arc<Shared>) {
    loop {
        let mut entries =
            [wake::entry(sleeper.descriptor(), libc::POLLIN), wake::entry(listener.as_raw_fd(), libc::POLLIN)];
        if wake::poll(&mut entries, None).is_err() || entries[0].revents != 0 {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => start(stream, shared),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            // Out of descriptors, most likely: some will come back. Without a pause this would spin.
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(10)),
        }
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
    let theirs = Arc::clone(shared);
    let run = move || {
        // A client that leaves is no news.
        connection::serve(&entry, &theirs).ok();
        forget(&theirs, place);
    };
    if std::thread::Builder::new().stack_size(STACK).spawn(run).is_err() {
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

/// Ends idle connections and waits for the busy ones, which look at `stopping` after their answer. Each connection either
/// sees that or is seen idle here, whichever comes first.
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
