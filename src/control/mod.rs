//! The control socket: what can be asked of a running server, and how it is asked.
//!
//! - [`ControlServer`]: the socket and its connections, turned by the supervisor's poll loop;
//! - `requests`: from an HTTP request to a [`Command`], or to a sentence that says what is wrong;
//! - [`status`]: the status document;
//! - [`client`]: the other side, behind the words on the command line.
//!
//! Rules:
//! - Nothing here blocks, waits or starts anything. Whoever reads slowly loses events or its connection; whoever writes slowly
//!   loses its connection.
//! - A request is read and checked as a whole before anything of it is carried out: what is refused has changed nothing.
//! - What a command does is the [`CommandHandler`]'s affair; this module knows the words, their ranges and the wire.
//!
//! docs/control.md has the interface for people.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub mod client;
mod connection;
mod find;
mod requests;
mod server;
mod show;
pub mod status;

#[cfg(test)]
mod tests;

pub use crate::config::Change;
pub use crate::fleet::Version;
pub use server::{ControlServer, MOST_CONNECTIONS};

/// The name of the control socket in the run directory.
pub const SOCKET_NAME: &str = "control.sock";
/// The server's own part of a run directory that others may write to: lock, sockets and all lie there.
pub const OWN_PART: &str = "production_server";

/// What a body for [`Command::Join`] says.
///
/// # Errors
/// When it is none.
pub fn join_of(body: &[u8]) -> Result<Join, String> {
    match requests::worker(body)? {
        Command::Join(join) => Ok(join),
        _ => Err("expected op to be join".to_owned()),
    }
}

/// What is asked. `None` as an app stands for every app.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what docs/control.md says of their words")]
pub enum Command {
    /// The status document.
    Status,
    /// A rolling restart. With `wait` the answer is [`Answer::Wait`], so that it comes when the restart has ended.
    Restart { app: Option<String>, wait: bool },
    /// More or fewer workers. The bounds of `Change` are checked, what it leads to is not.
    Scale { app: Option<String>, change: Change },
    /// A signal to all workers, or to the one with that id; 1 to 31.
    Signal { app: Option<String>, worker: Option<u32>, signal: i32 },
    /// To read the configuration anew, and to load changed code, as `hot-reload` has it; of an app that is named the latter alone. With
    /// `wait` the answer comes when the rolling restarts that it causes have ended.
    Reload { app: Option<String>, wait: bool },
    /// To take no more connections and finish what is in flight.
    Drain,
    /// To end; with `now` without letting requests finish.
    Stop { now: bool },
    /// To hold requests until `Resume`, for so long at most.
    Pause { app: Option<String>, max: Duration },
    /// To let held requests go, spread over time.
    Resume { app: Option<String> },
    /// To hand the work over to a new process, of another binary if one is named. With `wait` the answer comes when it serves.
    Upgrade { program: Option<PathBuf>, wait: bool },
    /// To publish what a body says that a hub understands ([`crate::hub::wire::notify`]).
    Notify(Vec<u8>),
    /// The events from now on: answered by [`Answer::Stream`].
    Events,
    /// A worker that this server did not start offers itself.
    Join(Join),
    /// A worker that joined leaves. `None` as an app stands for the one in which it has joined, or the only one.
    Quit { app: Option<String>, worker_id: String },
}

impl Command {
    /// The app that it names, if it does.
    pub fn app(&self) -> Option<&str> {
        match self {
            Command::Restart { app, .. }
            | Command::Scale { app, .. }
            | Command::Signal { app, .. }
            | Command::Reload { app, .. }
            | Command::Pause { app, .. }
            | Command::Resume { app }
            | Command::Quit { app, .. }
            | Command::Join(Join { app, .. }) => app.as_deref(),
            Command::Upgrade { .. }
            | Command::Status
            | Command::Drain
            | Command::Stop { .. }
            | Command::Notify(_)
            | Command::Events => None,
        }
    }
}

/// A worker that offers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// The app that it offers itself to; `None`: the only one, or the one whose worker it is.
    pub app: Option<String>,
    /// What it calls itself: 1 to 128 printable characters. A number that was sent is here as its digits.
    pub worker_id: String,
    /// Its process, if it said so; never 0.
    pub pid: Option<u32>,
    /// Where it listens: an absolute path that a Unix socket can have.
    pub socket: PathBuf,
    /// The version of its code: the highest that has joined is served.
    pub version: Option<Version>,
}

/// What becomes of a command.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It is done, or under way: 200 with this document. Its member `message`, if it has one, is what the command line prints.
    Done(Value),
    /// Nothing was changed, or what was waited for has failed. The status is 400 to 599: 404 for what does not exist, 409 for what
    /// cannot be now or has been aborted, 422 for a configuration that is wrong, 503 for what this server cannot do.
    Refused {
        /// The status.
        status: u16,
        /// What is wrong and what would be right, in a sentence.
        message: String,
    },
    /// The connection is answered later, by [`ControlServer::answer`] with this ticket. Several may wait for one ticket.
    Wait(u64),
    /// Events from now on.
    Stream,
}

impl Answer {
    /// 200 with a sentence.
    pub fn done(message: impl Into<String>) -> Answer {
        Answer::Done(json!({ "message": message.into() }))
    }

    /// A refusal.
    pub fn refused(status: u16, message: impl Into<String>) -> Answer {
        Answer::Refused { status, message: message.into() }
    }

    /// 404: there is no such app.
    pub fn unknown_app(asked: &str, known: &[&str]) -> Answer {
        Answer::refused(404, format!("there is no app {asked:?}: expected {}", known.join(" or ")))
    }
}

/// Who carries commands out. On the supervisor's thread; must not block.
pub trait CommandHandler {
    /// Carries a command out, or begins to.
    fn carry_out(&mut self, command: Command, now: Instant) -> Answer;
}
