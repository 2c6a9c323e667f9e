//! What somebody removes under a server that runs: its run directory, as a logout does with `$XDG_RUNTIME_DIR`, its control socket, a
//! worker's socket, the pid file. A socket in whose place something else lies is removed as well.
//!
//! Rules:
//! - It is looked for when a worker cannot be reached, and else now and then: whoever keeps a connection notices nothing, and the next
//!   connect must not be the first to.
//! - What can be made again is; a worker whose socket is gone is reached by nobody and is replaced, which counts as no failure of its own.

use std::io;
use std::ops::BitOr;
use std::path::Path;
use std::time::{Duration, Instant};

use super::processes::Processes;
use super::unit::Unit;
use super::{RunDirectory, Supervisor};
use crate::fleet::{Member, Name};
use crate::log::Level;
use crate::socket_file::{self, Identity};

/// How often it is looked whether all is there.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long a worker may take to put its socket's file back, as one does that loads itself again.
const PATIENCE: Duration = Duration::from_secs(1);

/// When to look, and what is known.
#[derive(Debug)]
pub(super) struct Lookout {
    due: Instant,
    /// How often the run directory had been made again.
    remade: u32,
    /// What was said to be in the way, until it is not.
    trouble: Option<String>,
}

impl Lookout {
    pub fn new(now: Instant) -> Lookout {
        Lookout { due: now + LOOK_AGAIN, remade: 0, trouble: None }
    }

    pub fn due(&self) -> Instant {
        self.due
    }
}

/// What is known of the file of a worker's socket.
#[derive(Debug)]
pub struct EndpointFile {
    /// How often the run directory had been made again before.
    remade: u32,
    missing_since: Option<Instant>,
    /// What lay there when the worker was ready.
    seen: Option<Identity>,
}

impl EndpointFile {
    /// That of a worker which is started now.
    pub fn made_in(run: &RunDirectory) -> EndpointFile {
        EndpointFile { remade: run.remade(), missing_since: None, seen: None }
    }

    /// The worker is ready, with what lies there now.
    pub fn is_ready_at(&mut self, path: &Path) {
        self.seen = socket_file::identity_at(path).ok();
    }

    /// Whether a connect leads somewhere: to what lay there, or to another socket that somebody listens on, as that of a worker that has opened
    /// it anew.
    fn is_there(&mut self, path: &Path) -> bool {
        match socket_file::identity_at(path) {
            Err(error) => error.kind() != io::ErrorKind::NotFound,
            Ok(found) if self.seen.is_none_or(|seen| seen == found) => true,
            Ok(found) => {
                let answers = socket_file::takes_connections(path);
                if answers {
                    self.seen = Some(found);
                }
                answers
            }
        }
    }
}

impl Supervisor {
    /// Writes the pid file where it is missing, unless another server writes it.
    pub(super) fn mend_pid_file(&mut self) {
        if self.stop.is_some() || self.upgrades.is_going() || self.upgrades.is_silent() {
            return;
        }
        let Some(file) = &mut self.upgrades.pid_file else { return };
        match file.mend() {
            Ok(false) => {}
            Ok(true) => self.context.log.event(Level::Warn, "the pid file was missing: it is written again", &[]),
            Err(error) => {
                let message = "the pid file was removed and cannot be written again yet";
                self.context.log.event(Level::Error, message, &[("error", &error)]);
            }
        }
    }

    /// Looks for what is missing, when it is time to, and makes it again.
    pub(super) fn look_for_removed(&mut self, now: Instant) {
        let doubts = self.units.iter_mut().map(|unit| std::mem::take(&mut unit.doubts_files)).fold(false, BitOr::bitor);
        if now < self.lookout.due && !doubts && self.context.run.remade() == self.lookout.remade {
            return;
        }
        self.lookout.due = now + LOOK_AGAIN;
        self.mend_pid_file();
        let mended = self.context.run.mend().map_err(|error| error.to_string());
        let reopened = mended.and_then(|()| {
            let reopened = self.control.as_mut().map_or(Ok(false), |control| control.reopen());
            reopened.map_err(|error| format!("the control socket was removed and cannot be opened again: {error}"))
        });
        self.tell_removed(&reopened);
        self.lookout.remade = self.context.run.remade();
        if self.units.iter_mut().map(|unit| unit.replace_unreachable(now)).fold(false, BitOr::bitor) {
            self.lookout.due = now + PATIENCE;
        }
    }

    fn tell_removed(&mut self, reopened: &Result<bool, String>) {
        let (events, path) = (&self.context.events, self.context.run.path().display());
        if self.context.run.remade() != self.lookout.remade {
            let message = "the run directory was removed: it is made again, and the workers start anew. One in $XDG_RUNTIME_DIR goes when \
                its user logs out: `loginctl enable-linger` keeps it, and --run-dir names another";
            events.emit(Level::Error, "run-directory-removed", message, &[("directory", &path)]);
        } else if let Ok(true) = reopened {
            events.emit(
                Level::Warn,
                "control-socket-removed",
                "the control socket was removed: it is opened again",
                &[],
            );
        }
        let trouble = reopened.as_ref().err().cloned();
        if let Some(trouble) = trouble.as_ref().filter(|trouble| self.lookout.trouble.as_ref() != Some(trouble)) {
            events.emit(Level::Error, "run-directory-removed", trouble, &[("directory", &path)]);
        }
        self.lookout.trouble = trouble;
    }
}

impl Unit {
    /// Replaces the workers whose sockets are gone. Whether one is missing that may come back.
    fn replace_unreachable(&mut self, now: Instant) -> bool {
        let active: Vec<Member> = self.fleet.members().iter().filter(|member| member.is_active()).cloned().collect();
        let mut waits = false;
        for member in active {
            match self.processes.unreachable_from(member.name, member.is_starting(), now) {
                Some(at) if at <= now => self.fleet.displaced(member.name, now, &mut self.processes),
                Some(_) => waits = true,
                None => {}
            }
        }
        waits
    }
}

impl Processes {
    /// From when on a worker is taken to be reached by nobody any more, if the file of its socket is gone. One that `starts` may not have
    /// made it yet.
    fn unreachable_from(&mut self, name: Name, starts: bool, now: Instant) -> Option<Instant> {
        let remade = self.context.run.remade();
        let process = self.workers.iter_mut().find(|process| process.name == name)?;
        let path = process.endpoint.path().filter(|_| process.endpoint.is_unix());
        // The socket on which it tells how it fares went as well.
        if process.file.remade != remade && (path.is_some() || process.channel.is_some()) {
            return Some(now);
        }
        let file = &mut process.file;
        let Some(path) = path.filter(|_| !starts).filter(|path| !file.is_there(path)) else {
            process.file.missing_since = None;
            return None;
        };
        let since = *process.file.missing_since.get_or_insert(now);
        if since == now {
            let message =
                "the worker's socket was removed or replaced; the worker is replaced unless it opens it again";
            let path = path.display();
            self.events.emit(
                Level::Warn,
                "worker-socket-removed",
                message,
                &[("worker", &process.label), ("path", &path)],
            );
        }
        Some(since + PATIENCE)
    }
}
