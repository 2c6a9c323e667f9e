//! What the supervisor shows of itself to the rest of the server: the app's state, and why it cannot start or has ended.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use super::RunDirectoryError;

/// The app's state, as `status` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum AppState {
    /// No worker was ready yet.
    Starting,
    /// At least one worker has been ready.
    Running,
    /// The server stops.
    Stopping,
    /// All has ended.
    Stopped,
    /// The workers crash before they answer anything. Requests are refused, and one worker is tried now and then.
    Failed,
}

/// Counts and state that other threads may read at any time.
#[derive(Debug, Default)]
pub struct Status {
    state: AtomicU8,
    /// Workers started.
    pub starts: AtomicU64,
    /// Workers that ended unasked.
    pub crashes: AtomicU64,
    /// Workers wanted, those that join not counted.
    pub wanted: AtomicUsize,
    hasty: AtomicBool,
}

impl Status {
    /// The app's state.
    pub fn state(&self) -> AppState {
        match self.state.load(Ordering::Relaxed) {
            0 => AppState::Starting,
            1 => AppState::Running,
            2 => AppState::Stopping,
            3 => AppState::Stopped,
            _ => AppState::Failed,
        }
    }

    /// Whether the server is to end at once, and nothing may take its time any more.
    pub fn is_hasty(&self) -> bool {
        self.hasty.load(Ordering::Relaxed)
    }

    pub(super) fn hurry(&self) {
        self.hasty.store(true, Ordering::Relaxed);
    }

    /// Workers started and crashed so far.
    pub fn lives(&self) -> (u64, u64) {
        (self.starts.load(Ordering::Relaxed), self.crashes.load(Ordering::Relaxed))
    }

    /// Counts those of the servers before this one, too.
    pub(super) fn add_lives(&self, (starts, crashes): (u64, u64)) {
        self.starts.fetch_add(starts, Ordering::Relaxed);
        self.crashes.fetch_add(crashes, Ordering::Relaxed);
    }

    pub(super) fn enter(&self, state: AppState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }
}

/// Why [`super::Supervisor::run`] has come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// It was asked to stop.
    Stopped,
    /// The app gave up before a worker was ever ready.
    NeverReady,
    /// The app has failed, and whoever started the server wants to know (`--give-up-exit`).
    GaveUp,
    /// An event loop ended although nobody had asked it to.
    LoopLost,
}

impl ExitReason {
    /// The process's exit code.
    pub fn code(self) -> u8 {
        match self {
            ExitReason::Stopped => 0,
            ExitReason::NeverReady | ExitReason::GaveUp => 69,
            ExitReason::LoopLost => 70,
        }
    }
}

/// Why the supervisor cannot start: one sentence for the operator, and the exit code.
#[derive(Debug)]
pub struct StartError {
    pub(super) message: String,
    pub(super) code: u8,
}

impl StartError {
    /// 64: the command cannot be run; 73: no process, pipe or socket can be made.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl std::fmt::Display for StartError {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for StartError {}

impl From<io::Error> for StartError {
    fn from(error: io::Error) -> StartError {
        StartError { message: format!("cannot start the supervisor: {error}"), code: 73 }
    }
}

impl From<RunDirectoryError> for StartError {
    fn from(error: RunDirectoryError) -> StartError {
        StartError { message: error.to_string(), code: error.code() }
    }
}

/// The state of all apps together: the one that an operator is to know first.
pub(super) fn of_all(apps: impl Iterator<Item = AppState>) -> AppState {
    let rank = |state: &AppState| match state {
        AppState::Failed => 0,
        AppState::Starting => 1,
        _ => 2,
    };
    apps.min_by_key(rank).unwrap_or(AppState::Running)
}
