//! Watching an app's files for hot reload. Built on the `notify` crate: inotify(7) on Linux, FSEvents on macOS, kqueue(2)
//! on the BSDs.
//!
//! - `targets`: which files and directories, and what is left out.
//!
//! A thread of its own looks through the directories, however long that takes, and gathers what happens to the files into bursts: an editor, a build or a `git checkout` touches many
//! files many times, and that is one change. It ends [`QUIET`] after the last event, and [`LONGEST`] after the first one at the
//! latest. Only then the files are looked at: what came and went within the burst, and what was only read, is no change.
//!
//! Rules:
//! - The watcher's thread calls the supervisor's waker and nothing else of it; the supervisor fetches what has changed.
//! - What cannot be watched is said once, in one line, and the server goes on with the rest.
//! - Everything is bounded: the events that wait, the paths of a burst, the directories.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use notify::event::{EventKind, ModifyKind, RenameMode};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};

pub mod limiter;
mod targets;

use crate::config::{App, Bus, CloudWatch, Command, ListenAddress, LogTarget, Settings};
use targets::{MOST_DIRECTORIES, Plan, Targets};

/// A burst of changes is over after so long without one.
pub const QUIET: Duration = Duration::from_millis(100);
/// A burst that does not end is reported after so long.
pub const LONGEST: Duration = Duration::from_secs(2);
/// Paths named in a report.
pub const MOST_NAMED: usize = 16;
/// Paths that a burst remembers; of more it is only known that there were more.
const MOST_TOUCHED: usize = 4096;
/// Events that wait for the thread; of more it is only known that there were more.
const MOST_EVENTS: usize = 4096;
/// Attributes changed, and the time of modification is no older than this: somebody has touched the file.
const JUST_NOW: Duration = Duration::from_secs(10);
/// kqueue tells about a directory that a name in it came or went, and nothing about the files themselves.
const FILES_ONE_BY_ONE: bool = !cfg!(any(target_os = "linux", target_os = "android", target_os = "macos"));

/// What has changed, for the log. `Display` names the first path and the number of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Up to [`MOST_NAMED`] paths, relative to the working directory where they are in it.
    pub paths: Vec<PathBuf>,
    /// How many more there were, as far as known.
    pub more: usize,
}

impl Changes {
    fn add(&mut self, path: PathBuf) {
        if self.paths.contains(&path) {
            return;
        }
        if self.paths.len() < MOST_NAMED {
            self.paths.push(path);
        } else {
            self.more += 1;
        }
    }

    fn is_empty(&self) -> bool {
        self.paths.is_empty() && self.more == 0
    }

    pub(super) fn merge(&mut self, later: Changes) {
        later.paths.into_iter().for_each(|path| self.add(path));
        self.more += later.more;
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.paths.first() else { return formatter.write_str("more files than can be told apart") };
        first.display().fmt(formatter)?;
        match self.paths.len() - 1 + self.more {
            0 => Ok(()),
            others => write!(formatter, " and {others} more"),
        }
    }
}

/// Why nothing can be watched: one sentence for the operator.
#[derive(Debug)]
pub struct WatchError(String);

impl fmt::Display for WatchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for WatchError {}

/// What the thread hands over.
#[derive(Debug, Default)]
struct Report {
    changes: Option<Changes>,
    trouble: Option<String>,
    summary: Option<String>,
}

/// Watches until it is dropped; then its threads have ended.
#[derive(Debug)]
pub struct Watcher {
    report: Arc<Mutex<Report>>,
    inbox: Option<SyncSender<Message>>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Watches what the settings name: `watch`, else the files of the app's command; the module in any case. What
    /// the server writes itself is left out ([`own_files`]). Changes are seen from now on, those that are made before all is watched by the
    /// files' times; `on_change` is called from the watcher's thread whenever there is something to take.
    ///
    /// # Errors
    /// When there is nothing to watch, or the system cannot watch at all.
    pub fn start(app: &App, settings: &Settings, on_change: impl Fn() + Send + 'static) -> Result<Watcher, WatchError> {
        let command: &[OsString] = match &app.program.command {
            Command::Argv(argv) => argv,
            Command::BuiltIn | Command::None => &[],
        };
        let module: Vec<PathBuf> = app.program.module.iter().cloned().collect();
        let here = here(app);
        let targets = Targets::find(&app.reload.watch, command, &module, &own_files(settings), &here);
        Watcher::start_for(targets, here, on_change)
    }

    fn start_for(
        targets: Targets,
        here: PathBuf,
        on_change: impl Fn() + Send + 'static,
    ) -> Result<Watcher, WatchError> {
        if targets.paths().is_empty() {
            let message =
                "hot reload: the app's command names no file to watch: name files or directories with --watch";
            return Err(WatchError(message.to_owned()));
        }
        let (inbox, messages) = sync_channel(MOST_EVENTS);
        let lost = Arc::new(AtomicBool::new(false));
        let notify = notify::recommended_watcher(forward(inbox.clone(), Arc::clone(&lost)))
            .map_err(|error| WatchError(format!("hot reload: cannot watch files: {}", instances(&error))))?;
        let report = Arc::new(Mutex::new(Report::default()));
        let observer = Observer {
            notify,
            targets,
            plan: Plan::default(),
            watched: BTreeSet::new(),
            burst: Burst::default(),
            lost,
            real_here: here.clone(),
            here,
            said: BTreeSet::new(),
            changed_since: Some(SystemTime::now()),
            report: Arc::clone(&report),
            on_change: Box::new(on_change),
        };
        let thread = std::thread::Builder::new().name("watch".to_owned()).spawn(move || observer.run(&messages));
        let thread = thread.map_err(|error| WatchError(format!("hot reload: cannot start a thread: {error}")))?;
        Ok(Watcher { report, inbox: Some(inbox), thread: Some(thread) })
    }

    /// What has changed since the last call.
    pub fn take_changes(&self) -> Option<Changes> {
        self.report().changes.take()
    }

    /// What goes unwatched and why, in one line; each reason is told once.
    pub fn take_trouble(&self) -> Option<String> {
        self.report().trouble.take()
    }

    /// What is watched, for the log, once it is: `server.js, src (12 directories)`.
    pub fn take_summary(&self) -> Option<String> {
        self.report().summary.take()
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(inbox) = self.inbox.take() {
            inbox.send(Message::Stop).ok();
        }
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

/// What the thread gets.
#[derive(Debug)]
enum Message {
    Event(notify::Result<notify::Event>),
    Stop,
}

/// Runs on notify's own thread, for every event: reading is no news, and nothing waits here.
fn forward(inbox: SyncSender<Message>, lost: Arc<AtomicBool>) -> impl FnMut(notify::Result<notify::Event>) {
    move |event| {
        if matches!(&event, Ok(event) if matches!(event.kind, EventKind::Access(_))) {
            return;
        }
        if let Err(TrySendError::Full(_)) = inbox.try_send(Message::Event(event)) {
            // The full channel wakes the thread as well as this event would have.
            lost.store(true, Ordering::SeqCst);
        }
    }
}

/// What happened to a path during a burst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Touch {
    /// It did not exist when the burst began.
    created: bool,
    /// More than its attributes changed.
    content: bool,
}

/// Changes that belong together.
#[derive(Debug, Default)]
struct Burst {
    /// When the first and the last event came.
    times: Option<(Instant, Instant)>,
    touched: BTreeMap<PathBuf, Touch>,
    /// There was more than could be remembered.
    more: bool,
    /// Directories came or went.
    moved: bool,
}

impl Burst {
    fn begin(&mut self, now: Instant) {
        let first = self.times.map_or(now, |(first, _)| first);
        self.times = Some((first, now));
    }

    fn touch(&mut self, path: &Path, created: bool, content: bool, now: Instant) {
        self.begin(now);
        if let Some(touch) = self.touched.get_mut(path) {
            touch.content |= content;
        } else if self.touched.len() < MOST_TOUCHED {
            self.touched.insert(path.to_path_buf(), Touch { created, content });
        } else {
            self.more = true;
        }
    }

    fn due(&self) -> Option<Instant> {
        self.times.map(|(first, last)| (last + QUIET).min(first + LONGEST))
    }
}

/// What lies at a path at the end of a burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Changed,
    /// It has changed, and leads to another file perhaps.
    Link,
    Directory,
    Nothing,
}

/// The watcher's thread.
struct Observer {
    notify: RecommendedWatcher,
    targets: Targets,
    plan: Plan,
    /// Directories (and files, where they are watched one by one) with a watch on them.
    watched: BTreeSet<PathBuf>,
    burst: Burst,
    /// Events were lost on their way here.
    lost: Arc<AtomicBool>,
    here: PathBuf,
    /// The same without links, as of the last scan: as events name it.
    real_here: PathBuf,
    /// The troubles that were told.
    said: BTreeSet<&'static str>,
    /// Of what is found, only what has changed since then is news; `None`: all is.
    changed_since: Option<SystemTime>,
    report: Arc<Mutex<Report>>,
    on_change: Box<dyn Fn() + Send>,
}

impl Observer {
    fn run(mut self, messages: &Receiver<Message>) {
        self.begin();
        loop {
            let now = Instant::now();
            let received = match self.burst.due() {
                None => messages.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(due) if due <= now => Err(RecvTimeoutError::Timeout),
                Some(due) => messages.recv_timeout(due - now),
            };
            match received {
                Ok(Message::Event(event)) => self.note(event, Instant::now()),
                Err(RecvTimeoutError::Timeout) => self.settle(),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // notify's own thread ends some time after this; its last act is to drop its end of the channel.
        drop(self.notify);
        while messages.recv().is_ok() {}
    }

    /// Puts all under watch.
    fn begin(&mut self) {
        let mut changes = Changes::default();
        self.scan(Some(&mut changes));
        self.changed_since = None;
        let summary = self.summary();
        let mut report = self.report();
        report.summary = Some(summary);
        if !changes.is_empty() {
            report.changes.get_or_insert_default().merge(changes);
        }
        drop(report);
        (self.on_change)();
    }

    fn note(&mut self, event: notify::Result<notify::Event>, now: Instant) {
        let event = match event {
            Ok(event) => event,
            Err(error) => return self.trouble(&error),
        };
        if event.need_rescan() || self.lost.swap(false, Ordering::SeqCst) {
            self.burst.begin(now);
            self.burst.more = true;
        }
        let (created, content, gone) = match event.kind {
            EventKind::Access(_) => return,
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => (true, true, false),
            EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)) => (false, true, true),
            EventKind::Modify(ModifyKind::Metadata(_)) => (false, false, false),
            _ => (false, true, false),
        };
        for path in &event.paths {
            if gone && self.watched.contains(path) {
                // The watch has gone along, with those below. Should the name come back, it is watched anew.
                self.watched.retain(|watched| !watched.starts_with(path));
                self.burst.begin(now);
                self.burst.moved = true;
            } else if self.plan.counts(path) {
                self.burst.touch(path, created, content, now);
            }
        }
    }

    /// The burst is over: looks at what lies there now, and reports what has changed.
    fn settle(&mut self) {
        let mut burst = std::mem::take(&mut self.burst);
        burst.more |= self.lost.swap(false, Ordering::SeqCst);
        let mut changes = Changes { more: usize::from(burst.more), ..Changes::default() };
        let mut scan = burst.more || burst.moved || FILES_ONE_BY_ONE;
        for (path, touch) in burst.touched {
            let seen = look(&path, touch, self.plan.names(&path));
            scan |= matches!(seen, Seen::Directory | Seen::Link) || self.plan.names(&path);
            if matches!(seen, Seen::Changed | Seen::Link) {
                changes.add(self.shown(&path));
            }
        }
        if scan {
            self.scan(Some(&mut changes));
        }
        if !changes.is_empty() {
            self.report().changes.get_or_insert_default().merge(changes);
            (self.on_change)();
        }
    }

    /// Brings the watches in line with the files as they lie now. What is found in directories that were not watched before
    /// has changed.
    fn scan(&mut self, mut changes: Option<&mut Changes>) {
        self.plan = self.targets.plan();
        self.real_here = fs::canonicalize(&self.here).unwrap_or_else(|_| self.here.clone());
        if self.plan.cut {
            let line = format!("more than {MOST_DIRECTORIES} directories: changes in the others go unnoticed");
            self.say("directories", format!("hot reload: {line}; name fewer with --watch"));
        }
        let gone: Vec<PathBuf> = self.watched.iter().filter(|path| !self.is_wanted(path)).cloned().collect();
        for path in gone {
            self.notify.unwatch(&path).ok();
            self.watched.remove(&path);
        }
        let new: Vec<PathBuf> = self.plan.directories.difference(&self.watched).cloned().collect();
        let mut paths = self.notify.paths_mut();
        let mut troubles = Vec::new();
        for path in &new {
            match paths.add(path, RecursiveMode::NonRecursive) {
                Ok(()) => _ = self.watched.insert(path.clone()),
                Err(error) => troubles.push(error),
            }
        }
        troubles.extend(paths.commit().err());
        troubles.iter().for_each(|error| self.trouble(error));
        for path in new.iter().filter(|path| self.watched.contains(*path)).cloned().collect::<Vec<_>>() {
            self.list(&path, changes.as_deref_mut());
        }
        if FILES_ONE_BY_ONE {
            for path in self.plan.directories.clone() {
                self.list(&path, None);
            }
        }
    }

    fn is_wanted(&self, path: &Path) -> bool {
        self.plan.directories.contains(path) || (FILES_ONE_BY_ONE && self.plan.counts(path) && path.is_file())
    }

    /// Goes through a directory that was just put under watch.
    fn list(&mut self, directory: &Path, mut changes: Option<&mut Changes>) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) || !self.plan.counts(&path) {
                continue;
            }
            // What is from the future says nothing.
            let now = SystemTime::now();
            let is_new = |since, at: SystemTime| (since..=now).contains(&at);
            let is_news = |since| entry.metadata().and_then(|it| it.modified()).is_ok_and(|at| is_new(since, at));
            if let Some(changes) = changes.as_deref_mut().filter(|_| self.changed_since.is_none_or(is_news)) {
                changes.add(self.shown(&path));
            }
            if FILES_ONE_BY_ONE && !self.watched.contains(&path) {
                match self.notify.watch(&path, RecursiveMode::NonRecursive) {
                    Ok(()) => _ = self.watched.insert(path),
                    Err(error) => self.trouble(&error),
                }
            }
        }
    }

    fn shown(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.real_here).unwrap_or(path).to_path_buf()
    }

    fn summary(&self) -> String {
        let mut names: Vec<String> = Vec::new();
        for path in self.targets.paths() {
            let name = match path.strip_prefix(&self.here) {
                Ok(inside) if inside.as_os_str().is_empty() => ".".to_owned(),
                Ok(inside) => inside.display().to_string(),
                Err(_) => path.display().to_string(),
            };
            names.push(name);
        }
        let count = self.plan.directories.len();
        let plural = if count == 1 { "directory" } else { "directories" };
        format!("{} ({count} {plural})", names.join(", "))
    }

    fn trouble(&mut self, error: &notify::Error) {
        let (kind, reason) = match &error.kind {
            // It went between the look at it and the watch on it; that is an event of its own.
            notify::ErrorKind::PathNotFound => return,
            notify::ErrorKind::MaxFilesWatch => ("limit", limit_reached().to_owned()),
            _ => ("other", error.to_string()),
        };
        self.say(kind, format!("hot reload: cannot watch all files: {reason}; the changes of some go unnoticed"));
    }

    fn say(&mut self, kind: &'static str, line: String) {
        if self.said.insert(kind) {
            self.report().trouble = Some(line);
            (self.on_change)();
        }
    }

    fn report(&self) -> MutexGuard<'_, Report> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn limit_reached() -> &'static str {
    match cfg!(target_os = "linux") {
        true => "this user's limit of watches is used up (raise it with `sysctl fs.inotify.max_user_watches=524288`)",
        false => "the limit of watches is used up",
    }
}

/// inotify_init(2) fails with EMFILE when the user has too many instances, or the process too many descriptors.
fn instances(error: &notify::Error) -> String {
    match &error.kind {
        notify::ErrorKind::Io(cause) if cause.raw_os_error() == Some(libc::EMFILE) => {
            format!("{cause} (see `sysctl fs.inotify.max_user_instances` and `ulimit -n`)")
        }
        _ => error.to_string(),
    }
}

/// Tells whether a path that something happened to has changed.
fn look(path: &Path, touch: Touch, named: bool) -> Seen {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        // What came and went is nobody's change. A file that was asked for is missing while it is being replaced; when it
        // stays away there is nothing to be started with it.
        return if touch.created || named { Seen::Nothing } else { Seen::Changed };
    };
    if metadata.is_dir() {
        return Seen::Directory;
    }
    if !metadata.is_file() && !metadata.is_symlink() {
        return Seen::Nothing;
    }
    let just_now = |modified: SystemTime| modified.elapsed().map_or(true, |age| age < JUST_NOW);
    let changed = touch.content || metadata.modified().is_ok_and(just_now);
    match changed {
        true if metadata.is_symlink() => Seen::Link,
        true => Seen::Changed,
        false => Seen::Nothing,
    }
}

/// Where the workers start: what the command's relative paths are relative to. Links in it are kept, for they may be switched to another
/// release.
fn here(app: &App) -> PathBuf {
    let start = app.program.directory.clone().map_or_else(std::env::current_dir, std::path::absolute);
    start.unwrap_or_else(|_| PathBuf::from("/"))
}

/// Files and directories that the server writes itself: a change of theirs is none of the app's. Their relative paths are relative to
/// where the server was started, which may be elsewhere than its workers.
pub fn own_files(settings: &Settings) -> Vec<PathBuf> {
    let file = |target: &LogTarget| match target {
        LogTarget::File(path) => Some(path.clone()),
        _ => None,
    };
    let cloudwatch = match &settings.telling.metrics.cloudwatch {
        Some(CloudWatch::File(path)) => Some(path.clone()),
        _ => None,
    };
    let acme = settings.acme.is_wanted().then(|| settings.acme.directory.clone());
    let buses = settings.hubs.iter().filter_map(|hub| match &hub.bus {
        Some(Bus::Directory(path)) => Some(path.clone()),
        _ => None,
    });
    let listeners = settings.listening.at.iter().chain(&settings.telling.admin);
    let sockets = listeners.filter_map(|address| match address {
        ListenAddress::Unix(path) => Some(path.clone()),
        _ => None,
    });
    let single = [
        Some(settings.process.run_dir.clone()),
        settings.process.pid_file.clone(),
        settings.stores.spool_dir.clone(),
        file(&settings.logs.access.target),
        file(&settings.logs.events.target),
        cloudwatch,
        acme,
    ];
    let all = single.into_iter().flatten().chain(buses).chain(sockets);
    all.map(|path| std::path::absolute(&path).unwrap_or(path)).collect()
}

#[cfg(test)]
mod tests;
