//! One place where lines go: a bounded backlog, and the thread that alone writes it out.
//!
//! Rules:
//! - A caller appends under a short lock and never waits for the writing. What would pass the limit is dropped and counted, for
//!   each source of its own.
//! - A flood costs its own source's lines: a part of the backlog is the server's alone, and of the rest a source may hold at most
//!   three times as much as is free, so that however many flood, there is room for one that does not.
//! - The writer takes the whole backlog at once and writes without the lock; two buffers change places, so that nothing
//!   is allocated once they have grown.
//! - A sink that closed (EPIPE) stays closed: its lines are counted as dropped and the process goes on.
//! - What fails is tried again with the next batch, and told once in a while: a full disk, a syslog that is away. A line that was written in
//!   part is lost and ended, so that the next one is whole; of messages only the one that fails is lost, while there is somebody to send to.
//! - The writer ends when the last handle of its sink is gone and all is written.
//! - Each sink has a writer of its own, so that a blocked stdout does not hold up what goes to stderr.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::framing::{Framing, first};
use super::output::Output;

/// Bytes that may wait for one sink: some seconds of access lines at full load, and nothing that memory would notice.
pub const BACKLOG: usize = 4 * 1024 * 1024;
/// Of those, what only the server's own lines may use.
const OWN_ROOM: usize = 512 * 1024;
/// What a source may hold, in parts of what is free beside it. A single one gets three quarters of the room; with two that flood,
/// a seventh stays free (Choudhury and Hahne, Dynamic Queue Length Thresholds, 1998).
const PARTS_OF_FREE: usize = 3;
/// After the first line wakes the writer, it waits so long for more, so that a busy server writes in large pieces and
/// its loops rarely have to wake anybody.
const GATHER: Duration = Duration::from_millis(5);
/// How much has come until then where lines come fast, in bytes; and how much longer they are gathered there.
const MANY: usize = 4 * 1024;
const GATHER_MANY: Duration = Duration::from_millis(20);
/// A backlog that is worth writing at once.
const ENOUGH: usize = 256 * 1024;
/// A sink that fails and recovers by turns tells of it at most so often.
const TOLD: Duration = Duration::from_secs(1);
/// How long the writer waits when somebody made the descriptor non-blocking and it is full.
const FULL_RETRY: Duration = Duration::from_millis(10);

/// Whose lines they are.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// The server's: events and statistics.
    Server,
    /// The access log's.
    Access,
    /// Those of the worker with that label.
    Worker(&'a str),
}

/// What the writer has to tell about its sink.
#[derive(Debug)]
pub enum Trouble {
    /// So many lines were dropped, and now it flows again; the label of the worker whose they were, if they all were.
    Dropped(Option<String>, u64),
    /// Writing failed; nothing more is said until it works again.
    Failed(io::Error),
    /// The reader is gone for good.
    Closed,
    /// The file could not be opened anew; the old one stays in use.
    NotReopened(io::Error),
}

/// The backlog of one place. See the module.
pub struct Sink {
    name: String,
    framing: Framing,
    /// Lines dropped by all sinks of this log since the start.
    dropped: Arc<AtomicU64>,
    state: Mutex<State>,
    work: Condvar,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    /// Bytes that the writer has taken and not written yet.
    in_flight: usize,
    server: Share,
    access: Share,
    /// The workers, by their labels, that have lines here, or lost some that nobody was told of.
    workers: HashMap<String, Share>,
    /// Whether the writer sleeps until it is woken.
    asleep: bool,
    closed: bool,
    reopen: bool,
    stop: bool,
    ended: bool,
}

/// One source's part of the backlog, in bytes.
#[derive(Default)]
struct Share {
    /// In what waits.
    pending: usize,
    /// In what the writer has taken.
    in_flight: usize,
    /// Lines dropped that nobody was told of.
    unsaid: u64,
}

impl Sink {
    /// A sink with its writer. What it drops is added to `dropped`. `tell` is called on the writer's thread, without a lock held.
    pub fn start(
        name: &str,
        output: Output,
        framing: Framing,
        dropped: Arc<AtomicU64>,
        tell: impl Fn(&Sink, Trouble) + Send + 'static,
    ) -> io::Result<Handle> {
        let sink = Arc::new(Sink {
            name: name.to_owned(),
            framing,
            dropped,
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
        });
        let writer = Writer {
            sink: Arc::clone(&sink),
            output,
            batch: Vec::new(),
            torn: false,
            failing: false,
            failed: None,
            said: None,
            tell,
        };
        thread::Builder::new().name(format!("log {name}")).spawn(move || writer.run())?;
        Ok(Handle(sink))
    }

    /// What stands around its messages.
    pub fn framing(&self) -> &Framing {
        &self.framing
    }

    /// The name for people, as in `stdout`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends whole lines, or drops and counts them.
    pub fn push(&self, source: Source<'_>, bytes: &[u8], lines: u64) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.lock();
        if !state.admits(source, bytes.len()) {
            state.share(source).unsaid += lines;
            self.count(lines);
            return;
        }
        state.pending.extend_from_slice(bytes);
        state.share(source).pending += bytes.len();
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.work.notify_one();
        }
    }

    /// Whether a line of about that many bytes would be taken; if not, it counts as dropped. Spares a flood's lines their making.
    pub fn would_take(&self, source: Source<'_>, bytes: usize) -> bool {
        let mut state = self.lock();
        let takes = state.admits(source, bytes);
        if !takes {
            state.share(source).unsaid += 1;
            self.count(1);
        }
        takes
    }

    fn count(&self, lines: u64) {
        self.dropped.fetch_add(lines, Ordering::Relaxed);
    }

    /// Asks for the file to be opened anew; what is not a file stays as it is.
    pub fn reopen(&self) {
        self.lock().reopen = true;
        self.work.notify_one();
    }

    /// Asks the writer to end once the backlog is written. Later lines are dropped.
    pub fn stop(&self) {
        self.lock().stop = true;
        self.work.notify_one();
    }

    /// Waits until everything is written, or the writer is gone, or the deadline is over. Answers whether it is written.
    pub fn flush(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        while !state.is_idle() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.ended {
                return false;
            }
            state = self.idle.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn admits(&self, source: Source<'_>, bytes: usize) -> bool {
        if self.closed || self.stop {
            return false;
        }
        let used = self.pending.len() + self.in_flight;
        let share = match source {
            Source::Server => return used + bytes <= BACKLOG,
            Source::Access => Some(&self.access),
            Source::Worker(label) => self.workers.get(label),
        };
        // What of the server's waits lies in its own room first.
        let own = self.server.pending.min(OWN_ROOM);
        let free = (BACKLOG - OWN_ROOM + own).saturating_sub(used);
        let held = share.map_or(0, |share| share.pending + share.in_flight);
        bytes <= free && held + bytes <= free * PARTS_OF_FREE
    }

    fn share(&mut self, source: Source<'_>) -> &mut Share {
        match source {
            Source::Server => &mut self.server,
            Source::Access => &mut self.access,
            Source::Worker(label) => self.workers.entry(label.to_owned()).or_default(),
        }
    }

    fn shares(&mut self) -> impl Iterator<Item = &mut Share> {
        [&mut self.server, &mut self.access].into_iter().chain(self.workers.values_mut())
    }

    /// What waits goes to the writer.
    fn hand_over(&mut self, batch: &mut Vec<u8>) {
        std::mem::swap(&mut self.pending, batch);
        self.in_flight = batch.len();
        self.shares().for_each(|share| share.in_flight = std::mem::take(&mut share.pending));
    }

    /// The lines dropped that nobody was told of, which the caller tells.
    fn take_unsaid(&mut self) -> Vec<(Option<String>, u64)> {
        let unnamed = [&mut self.server, &mut self.access].map(|share| (None, std::mem::take(&mut share.unsaid)));
        let of_worker =
            |(label, share): (&String, &mut Share)| (Some(label.clone()), std::mem::take(&mut share.unsaid));
        let all = unnamed.into_iter().chain(self.workers.iter_mut().map(of_worker));
        all.filter(|(_, lines)| *lines > 0).collect()
    }

    /// The writer is done with its batch. Workers that have nothing here any more are forgotten: labels come and go.
    fn written(&mut self) {
        self.in_flight = 0;
        self.shares().for_each(|share| share.in_flight = 0);
        self.workers.retain(|_, share| share.pending > 0 || share.unsaid > 0);
    }

    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.in_flight == 0 && !self.reopen
    }
}

/// Who may write to a sink. When the last handle is gone the sink stops.
pub struct Handle(Arc<Sink>);

impl Handle {
    /// The sink, for whoever waits for its end without holding it up.
    pub fn sink(&self) -> &Arc<Sink> {
        &self.0
    }
}

impl Deref for Handle {
    type Target = Sink;

    fn deref(&self) -> &Sink {
        &self.0
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.stop();
    }
}

struct Writer<T> {
    sink: Arc<Sink>,
    output: Output,
    batch: Vec<u8>,
    /// The last line that was written has no end.
    torn: bool,
    failing: bool,
    /// When it was told last that writing failed, and that lines were dropped.
    failed: Option<Instant>,
    said: Option<Instant>,
    tell: T,
}

/// What the writer is woken for.
struct Task {
    reopen: bool,
    stop: bool,
    unsaid: Vec<(Option<String>, u64)>,
}

impl<T: Fn(&Sink, Trouble)> Writer<T> {
    fn run(mut self) {
        while let Some(task) = self.next() {
            if task.reopen {
                self.reopen();
            }
            let whole = self.batch.is_empty() || self.write();
            let tells = whole && !task.unsaid.is_empty() && (task.stop || is_due(&mut self.said));
            let (said, unsaid) = if tells { (task.unsaid, Vec::new()) } else { (Vec::new(), task.unsaid) };
            for (whose, lines) in said {
                (self.tell)(&self.sink, Trouble::Dropped(whose, lines));
            }
            self.batch.clear();
            if self.batch.capacity() > BACKLOG / 4 {
                self.batch = Vec::new();
            }
            let mut state = self.sink.lock();
            // They are told when it flows again.
            for (whose, lines) in unsaid {
                let source = whose.as_deref().map_or(Source::Server, Source::Worker);
                state.share(source).unsaid += lines;
            }
            state.written();
            drop(state);
            self.sink.idle.notify_all();
        }
        self.sink.lock().ended = true;
        self.sink.idle.notify_all();
    }

    /// Sleeps until there is something to do; `None` once the sink is stopped and empty.
    fn next(&mut self) -> Option<Task> {
        let sink = &self.sink;
        let mut state = sink.lock();
        while state.is_idle() && !state.stop {
            state.asleep = true;
            state = sink.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.asleep = false;
        for (from, time) in [(0, GATHER), (MANY, GATHER_MANY)] {
            if !state.stop && !state.reopen && (from..ENOUGH).contains(&state.pending.len()) {
                state = sink.work.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        if state.is_idle() && state.stop {
            return None;
        }
        state.hand_over(&mut self.batch);
        // Without a batch there is no write that would show that it flows.
        let unsaid = if self.batch.is_empty() { Vec::new() } else { state.take_unsaid() };
        Some(Task { reopen: std::mem::take(&mut state.reopen), stop: state.stop, unsaid })
    }

    /// Writes the batch; answers whether all of it was taken.
    fn write(&mut self) -> bool {
        let (mut written, mut whole) = (0, true);
        while written < self.batch.len() {
            let outcome = match self.torn {
                true => self.output.stream().write(b"\n"),
                false => self.output.stream().write(&self.batch[written..]),
            };
            if let Some(error) = self.output.take_late() {
                whole = false;
                self.lose(1, error);
            }
            let error = match outcome {
                Ok(0) => ErrorKind::WriteZero.into(),
                Ok(_) if std::mem::take(&mut self.torn) => continue,
                Ok(count) => {
                    written += count;
                    self.sink.lock().in_flight = self.batch.len() - written;
                    continue;
                }
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Interrupted => {}
                ErrorKind::WouldBlock => thread::sleep(FULL_RETRY),
                _ => {
                    whole = false;
                    written += self.fail(written, error);
                }
            }
        }
        // Line-buffered or compressing outputs of a caller's own.
        let _ = self.output.stream().flush();
        if let Some(error) = self.output.take_late() {
            whole = false;
            self.lose(1, error);
        }
        self.failing = !whole;
        whole
    }

    /// What of the batch behind `written` is lost by an error, which is counted and said once: of messages one, where there is somebody to send the
    /// next one to, and else all of it. Answers its bytes.
    fn fail(&mut self, written: usize, error: io::Error) -> usize {
        let rest = &self.batch[written..];
        let one = first(rest).filter(|_| self.sink.framing.is_datagrams() && !self.output.is_away());
        let lost = one.map_or(rest.len(), |(_, behind)| rest.len() - behind.len());
        let lines = self.sink.framing.count(&rest[..lost]);
        self.torn |=
            !self.sink.framing.is_datagrams() && self.batch[..written].last().is_some_and(|last| *last != b'\n');
        self.lose(lines, error);
        lost
    }

    /// Counts lines that are lost by an error, and says so once.
    fn lose(&mut self, mut lines: u64, error: io::Error) {
        let closed = error.kind() == ErrorKind::BrokenPipe;
        {
            let mut state = self.sink.lock();
            if closed {
                state.closed = true;
                let pending = std::mem::take(&mut state.pending);
                state.shares().for_each(|share| share.pending = 0);
                lines += self.sink.framing.count(&pending);
            }
            state.server.unsaid += lines;
        }
        self.sink.count(lines);
        if !std::mem::replace(&mut self.failing, true) && is_due(&mut self.failed) {
            (self.tell)(&self.sink, if closed { Trouble::Closed } else { Trouble::Failed(error) });
        }
    }

    fn reopen(&mut self) {
        if let Err(error) = self.output.reopen() {
            (self.tell)(&self.sink, Trouble::NotReopened(error));
        }
        self.torn &= !self.output.is_empty();
    }
}

/// Whether something that is told at most once within [`TOLD`] may be told now; then it counts as told.
fn is_due(last: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let due = last.is_none_or(|last| now.saturating_duration_since(last) >= TOLD);
    if due {
        *last = Some(now);
    }
    due
}
