//! Signals: the handlers only queue; the supervisor takes them out of the queue in its own time.
//!
//! SIGPIPE is ignored for the whole process by the standard library's start-up code; a write to a closed socket is an
//! error and no signal.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use signal_hook::consts::signal::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTTIN, SIGTTOU, SIGUSR1, SIGUSR2};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;

use super::wake::Waker;

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
        Ok(Requests { delivery: deliver(&signals)?, injected: None })
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
