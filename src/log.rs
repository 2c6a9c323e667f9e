//! The log: events and the workers' lines, and access lines, to streams, files, syslog or the journal.
//!
//! Rules:
//! - Nobody who logs ever waits for a reader. Every sink has a bounded backlog and a thread that writes it; what does not
//!   fit is dropped and counted, and said once it flows again.
//! - A flood of one worker's lines, or of access lines, costs lines of that source alone: never the server's events, nor those of
//!   another worker.
//! - What a crowd could cause is said at most once a second ([`Log::seldom`]).
//! - Events and access lines escape what came from the network, so that no request can forge a line.
//! - stdout and stderr that are the same terminal, pipe or file share one sink, so that lines are never torn.
//! - Everything but this process's own streams can be moved while it runs ([`Log::configure`]): what cannot be opened changes nothing.

mod access;
mod event;
mod framing;
mod lines;
mod output;
mod pattern;
mod redact;
mod routes;
mod seldom;
mod sink;
mod text;
mod worker;
mod zone;

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

pub use crate::config::Level;
pub use access::{AccessLog, AccessRecord, AnswerNote, Took};
pub(crate) use output::open_to_append;
use routes::Routes;
use sink::{Handle, Sink, Source};
pub use worker::WorkerName;

use crate::config::{AccessLogFormat, AccessLogSettings, EventFormat, EventLogSettings, LogTarget};

/// Which of a worker's outputs a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Its stdout.
    Stdout,
    /// Its stderr.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// The handle to the log. Cloning gives another handle; when the last one is gone the writers end.
#[derive(Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    routes: RwLock<Arc<Routes>>,
    /// Counts the changes of the routes, so that loops see one without a lock.
    version: AtomicU64,
    /// Held while the routes change.
    changing: Mutex<()>,
    /// Sinks that nothing goes to any more, and that may not have written everything.
    retired: Mutex<Vec<Weak<Sink>>>,
    /// Lines dropped by all sinks since the start.
    dropped: Arc<AtomicU64>,
    seldom: seldom::Seldom,
}

impl Inner {
    fn new() -> Arc<Inner> {
        zone::prepare();
        Arc::new(Inner {
            routes: RwLock::new(Arc::new(Routes::none())),
            version: AtomicU64::new(0),
            changing: Mutex::default(),
            retired: Mutex::default(),
            dropped: Arc::default(),
            seldom: Default::default(),
        })
    }

    fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }

    #[inline]
    fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// What a loop's access log follows.
    fn access(&self) -> (u64, Option<Arc<Handle>>, Arc<access::Look>) {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let sink = routes.access.as_ref().map(|place| Arc::clone(&place.sink));
        (self.version(), sink, Arc::clone(&routes.access_look))
    }

    fn change(&self, to: Routes) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *routes, Arc::new(to));
        self.version.fetch_add(1, Ordering::Relaxed);
        drop(routes);
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|sink| sink.strong_count() > 0);
        retired.extend(old.places().map(|place| Arc::downgrade(place.sink.sink())));
    }

    /// All sinks that may have something to write.
    fn sinks(&self) -> Vec<Arc<Sink>> {
        let mut sinks: Vec<Arc<Sink>> = self.routes().places().map(|place| Arc::clone(place.sink.sink())).collect();
        sinks.extend(self.retired.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade));
        sinks
    }
}

/// Where everything is to go, with all that takes opened.
pub struct Prepared(Routes);

impl Log {
    /// Opens the log of this process, with its stdout and stderr. An error names what cannot be opened.
    pub fn open(access: &AccessLogSettings, events: &EventLogSettings) -> io::Result<Log> {
        let log = Log(Inner::new());
        let streams = routes::own_streams(&Arc::downgrade(&log.0))?;
        log.0.change(Routes { streams: Some(streams), ..Routes::none() });
        log.configure(access, events)?;
        Ok(log)
    }

    /// A log that says nothing and has no thread.
    pub fn disabled() -> Log {
        Log(Inner::new())
    }

    /// A log to writers of the caller's own, without colours: stdout, stderr, and the access log if it is to be kept.
    pub fn to_writers(
        stdout: Box<dyn Write + Send>,
        stderr: Box<dyn Write + Send>,
        access: Option<(Box<dyn Write + Send>, AccessLogFormat)>,
        events: EventFormat,
    ) -> io::Result<Log> {
        // As if somebody read there: JSON only where it is asked for.
        let format = if events == EventFormat::Auto { EventFormat::Human } else { events };
        let log = Log(Inner::new());
        let weak = Arc::downgrade(&log.0);
        let streams = routes::streams(&weak, Some(stdout), stderr)?;
        log.0.change(Routes { streams: Some(streams), ..Routes::none() });
        log.configure(
            &AccessLogSettings::new(LogTarget::Off, AccessLogFormat::Human),
            &EventLogSettings { format, ..EventLogSettings::default() },
        )?;
        if let Some((writer, format)) = access {
            let sink =
                routes::start_sink(&weak, "access log", output::Output::Stream(writer), framing::Framing::Lines)?;
            log.access_to(sink, &AccessLogSettings::new(LogTarget::Off, format));
        }
        Ok(log)
    }

    /// Access lines to a sink that no setting names.
    fn access_to(&self, sink: Arc<Handle>, settings: &AccessLogSettings) {
        let look = Arc::new(access::Look::new(settings, sink.framing().clone(), false));
        let place = routes::Place { target: LogTarget::Off, sink, terminal: false };
        self.0.change(Routes { access: Some(place), access_look: look, ..(*self.0.routes()).clone() });
    }

    /// A log into memory, for tests: events and workers' lines of both streams, as text for people.
    pub fn captured() -> io::Result<(Log, Captured)> {
        let captured = Captured::default();
        let log = Log::to_writers(Box::new(captured.clone()), Box::new(captured.clone()), None, EventFormat::Human)?;
        Ok((log, captured))
    }

    /// Lets everything go where these settings say, and look so, from now on. What stays where it was keeps its sink, so that nothing is
    /// torn or lost; what is left has its backlog written before it closes. Loops follow at the end of their turn.
    ///
    /// # Errors
    /// Something cannot be opened, which the error names. Then nothing has changed.
    pub fn configure(&self, access: &AccessLogSettings, events: &EventLogSettings) -> io::Result<()> {
        let _changing = self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.prepare(access, events).map(|prepared| self.adopt(prepared))
    }

    /// The part of [`Log::configure`] that may fail, and last where a file system does not answer. Nothing has changed until
    /// [`Log::adopt`], before which nobody else may change anything.
    ///
    /// # Errors
    /// As there.
    pub fn prepare(&self, access: &AccessLogSettings, events: &EventLogSettings) -> io::Result<Prepared> {
        self.0.routes().changed(&Arc::downgrade(&self.0), access, events).map(Prepared)
    }

    /// Lets everything go where it was prepared to.
    pub fn adopt(&self, prepared: Prepared) {
        self.0.change(prepared.0);
    }

    /// Says what happened, with its circumstances. Never blocks.
    pub fn event(&self, level: Level, message: impl Display, fields: &[(&str, &dyn Display)]) {
        let routes = self.0.routes();
        if let Some(place) = routes.events.as_ref().filter(|_| level >= routes.level) {
            let line = event::event(place.sink.framing(), routes.event_look, level, &message, fields);
            place.sink.push(Source::Server, &line, 1);
        }
    }

    /// The same, for what a crowd could cause: at most one line with that message within a second in the whole process. The next
    /// one tells how many were left out since, in the field `left_out`. Never blocks.
    pub fn seldom(&self, level: Level, message: &'static str, fields: &[(&str, &dyn Display)]) {
        if self.0.routes().events.is_none() {
            return;
        }
        match self.0.seldom.allow(message, Instant::now()) {
            None => {}
            Some(0) => self.event(level, message, fields),
            Some(left_out) => self.event(level, message, &[fields, &[("left_out", &left_out)]].concat()),
        }
    }

    /// Passes on one line of a worker (without its line end) with its name, as in `[web.G1.2 4711] listening`.
    pub fn worker_line(&self, worker: WorkerName<'_>, stream: Stream, line: &[u8]) {
        let routes = self.0.routes();
        let Some(places) = &routes.workers else { return };
        let (place, look) = &places[usize::from(stream == Stream::Stderr)];
        let source = Source::Worker(worker.label);
        if place.sink.would_take(source, line.len()) {
            place.sink.push(source, &event::worker_line(place.sink.framing(), *look, worker, stream, line), 1);
        }
    }

    /// Prints text to stdout as it is: whole lines, with their ends.
    pub fn print(&self, text: String) {
        if let Some([stdout, _]) = &self.0.routes().streams {
            let lines = memchr::memchr_iter(b'\n', text.as_bytes()).count() as u64;
            stdout.sink.push(Source::Server, text.as_bytes(), lines);
        }
    }

    /// One loop's access log.
    pub fn access_log(&self) -> AccessLog {
        AccessLog::new(Arc::clone(&self.0))
    }

    /// Opens files anew by their paths, after somebody has moved them away.
    pub fn reopen(&self) {
        self.0.routes().places().for_each(|place| place.sink.reopen());
    }

    /// Lines dropped since the start, over all sinks.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Waits until everything said so far is written, but not beyond `timeout`. Answers whether it is.
    pub fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        self.0.sinks().iter().all(|sink| sink.flush(deadline))
    }

    /// Writes what is left and ends the writers, but does not wait beyond `timeout` for a reader that does not read.
    /// Answers whether everything is written. What is said later is dropped.
    pub fn flush_and_stop(&self, timeout: Duration) -> bool {
        self.0.sinks().iter().for_each(|sink| sink.stop());
        self.flush(timeout)
    }
}

/// What a log wrote into memory. Cloning gives another handle to the same bytes.
#[derive(Clone, Debug, Default)]
pub struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    /// What was written so far; [`Log::flush`] first to see everything.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The time in UTC to the millisecond, as in `2026-11-21T03:45:56.123Z` (RFC 3339).
pub fn timestamp() -> String {
    let mut text = Vec::with_capacity(24);
    event::put_time(&mut text, event::now(), b'T');
    text.escape_ascii().to_string()
}

#[cfg(test)]
mod tests;
