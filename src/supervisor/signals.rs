//! Signals: the handlers only queue; the supervisor takes them out of the queue in its own time. Should it hang, as over a file system that
//! does not answer, the second signal to stop is the business of a thread that does nothing else.
//!
//! SIGPIPE is ignored for the whole process by the standard library's start-up code, and SIGXFSZ here; a write to a closed socket, or to a
//! file that may not become larger (RLIMIT_FSIZE), is an error and no signal. The commands of workers get all signals as they are by default.
//!
//! Until the handlers are there, signals wait that tell a server to go on otherwise and would end it ([`hold`]). Those that end it do.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use signal_hook::consts::signal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::wake::{self, Waker};

/// How long the server may take to end after it was told to at once: longer than everything takes that has a deadline by then.
const LAST_RESORT: Duration = Duration::from_millis(950);
/// The exit code of a server that hangs: `EX_SOFTWARE` (sysexits.h).
const HANGS: u8 = 70;
/// The exit code of this process should it be ended by the second signal: what is left to be done by then may be the log alone.
static CODE: AtomicU8 = AtomicU8::new(HANGS);

/// What waits until there are handlers.
const HELD: [i32; 5] = [SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU];

/// To be called before all else, while there is one thread: what would end a server that only starts waits for [`Requests::from_signals`], or
/// for [`release`] in a process that is none.
pub fn hold() {
    // SAFETY: SIG_IGN is a valid disposition for this signal, and no handler of ours is replaced.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    mask(libc::SIG_BLOCK);
}

/// Lets those go in this thread that have waited since [`hold`].
pub fn release() {
    mask(libc::SIG_UNBLOCK);
}

fn mask(how: i32) {
    let mut held = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is initialised by sigemptyset before anything else is done with it, and outlives the calls.
    unsafe {
        libc::sigemptyset(held.as_mut_ptr());
        HELD.iter().for_each(|signal| _ = libc::sigaddset(held.as_mut_ptr(), *signal));
        libc::pthread_sigmask(how, held.as_ptr(), std::ptr::null_mut());
    }
}

/// What somebody asks of the server, by a signal or otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// TERM, INT: stop gracefully; the second time, at once.
    Stop,
    /// QUIT: stop gracefully and write the state to the log first.
    StopWithDump,
    /// HUP: reload the configuration and reopen the logs.
    Reload,
    /// USR1: reopen the logs.
    ReopenLogs,
    /// USR2: rolling restart.
    Restart,
    /// TTIN: one worker more.
    More,
    /// TTOU: one worker less.
    Fewer,
    /// CHLD: a child may have ended.
    Child,
}

/// Where requests come from.
#[derive(Debug)]
pub struct Requests {
    delivery: SignalDelivery<UnixStream, SignalOnly>,
    injected: Option<mpsc::Receiver<Request>>,
}

/// Makes requests from another thread of this process.
#[derive(Clone, Debug)]
pub struct Requester {
    sender: mpsc::Sender<Request>,
    waker: Waker,
}

impl Requester {
    /// Makes a request; it is served in the supervisor's next turn.
    pub fn request(&self, request: Request) {
        if self.sender.send(request).is_ok() {
            self.waker.wake();
        }
    }
}

impl Requests {
    /// Takes over all signals that the server handles.
    ///
    /// # Errors
    /// When no pipe can be made or a handler cannot be installed.
    pub fn from_signals() -> io::Result<Requests> {
        let signals = [SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU, SIGCHLD];
        let requests = Requests { delivery: deliver(&signals)?, injected: None };
        keep_last_resort(&[SIGTERM, SIGINT, SIGQUIT])?;
        release();
        Ok(requests)
    }

    /// Takes over SIGCHLD alone; everything else is asked for through the [`Requester`]. For servers that live inside
    /// another program, such as a test.
    ///
    /// # Errors
    /// As [`Requests::from_signals`].
    pub fn injected(waker: &Waker) -> io::Result<(Requests, Requester)> {
        let (sender, receiver) = mpsc::channel();
        let requests = Requests { delivery: deliver(&[SIGCHLD])?, injected: Some(receiver) };
        Ok((requests, Requester { sender, waker: waker.clone() }))
    }

    /// The descriptor to be polled for reading.
    pub fn descriptor(&self) -> RawFd {
        self.delivery.get_read().as_raw_fd()
    }

    /// Takes what is queued. Equal signals that came before this call may be merged into one.
    pub fn take(&mut self, into: &mut Vec<Request>) {
        into.extend(self.delivery.pending().filter_map(request_of));
        into.extend(self.injected.iter().flat_map(mpsc::Receiver::try_iter));
    }
}

fn deliver(signals: &[i32]) -> io::Result<SignalDelivery<UnixStream, SignalOnly>> {
    let (read, write) = UnixStream::pair()?;
    SignalDelivery::with_pipe(read, write, SignalOnly, signals)
}

/// Workers and sockets are gone, and the server ends with that code.
pub(super) fn ends_with(code: u8) {
    CODE.store(code, Ordering::Relaxed);
}

/// Ends this process when it is told to stop twice and does not end: its workers are ended by the guard then.
fn keep_last_resort(signals: &[i32]) -> io::Result<()> {
    let (mut told, ring) = UnixStream::pair()?;
    for signal in signals {
        signal_hook::low_level::pipe::register(*signal, ring.try_clone()?)?;
    }
    let wait = move || {
        // A byte a signal; whoever sends both at once may have them merged, and sends another.
        if told.read_exact(&mut [0; 2]).is_ok() {
            thread::sleep(LAST_RESORT);
            let code = CODE.load(Ordering::Relaxed);
            if code == HANGS {
                say_last_word();
            }
            signal_hook::low_level::exit(code.into());
        }
    };
    thread::Builder::new().name("last resort".to_owned()).spawn(wait).map(drop)
}

/// Says why the server ends, unless that would have to be waited for.
fn say_last_word() {
    let mut stderr = io::stderr();
    let mut entry = [wake::entry(stderr.as_raw_fd(), libc::POLLOUT)];
    if wake::poll(&mut entry, Some(Duration::ZERO)).is_ok() && entry[0].revents == libc::POLLOUT {
        writeln!(stderr, "the server hangs and does not stop: it leaves now, and its guard ends the workers").ok();
    }
}

fn request_of(signal: i32) -> Option<Request> {
    Some(match signal {
        SIGTERM | SIGINT => Request::Stop,
        SIGQUIT => Request::StopWithDump,
        SIGHUP => Request::Reload,
        SIGUSR1 => Request::ReopenLogs,
        SIGUSR2 => Request::Restart,
        SIGTTIN => Request::More,
        SIGTTOU => Request::Fewer,
        SIGCHLD => Request::Child,
        _ => return None,
    })
}
