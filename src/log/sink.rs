//! One place where lines go: a bounded backlog, and the thread that alone writes it out.
//!
//! Rules:
//! - A caller appends under a short lock and never waits for the writing. What would pass the limit is dropped and counted.
//! - The writer takes the whole backlog at once and writes without the lock; two buffers change places, so that nothing
//!   is allocated once they have grown.
//! - A sink that closed (EPIPE) stays closed: its lines are counted as dropped and the process goes on.
//! - Each sink has a writer of its own, so that a blocked stdout does not hold up what goes to stderr.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes that may wait for one sink: some seconds of access lines at full load, and nothing that memory would notice.
pub const BACKLOG: usize = 4 * 1024 * 1024;
/// After the first line wakes the writer, it waits so long for more, so that a busy server writes in large pieces and
/// its loops rarely have to wake anybody.
const GATHER: Duration = Duration::from_millis(5);
/// A backlog that is worth writing at once.
const ENOUGH: usize = 64 * 1024;
/// How long the writer waits when somebody made the descriptor non-blocking and it is full.
const FULL_RETRY: Duration = Duration::from_millis(10);

/// Where the bytes go.
pub enum Output {
    /// A descriptor or anything else that can be written.
    Stream(Box<dyn Write + Send>),
    /// A file that can be reopened by its path.
    File(PathBuf, File),
}

impl Output {
    /// A file opened for appending, made with mode 0640.
    pub fn file(path: &Path) -> io::Result<Output> {
        Ok(Output::File(path.to_owned(), open(path)?))
    }

    fn stream(&mut self) -> &mut dyn Write {
        match self {
            Output::Stream(stream) => stream,
            Output::File(_, file) => file,
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// What the writer has to tell about its sink.
#[derive(Debug)]
pub enum Trouble {
    /// So many lines were dropped, and now it flows again.
    Dropped(u64),
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
    state: Mutex<State>,
    work: Condvar,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    pending: Vec<u8>,
    /// Bytes that the writer has taken and not written yet.
    in_flight: usize,
    /// Lines dropped since the start.
    dropped: u64,
    /// Lines dropped that nobody was told of.
    unsaid: u64,
    /// Whether the writer sleeps until it is woken.
    asleep: bool,
    closed: bool,
    reopen: bool,
    stop: bool,
    ended: bool,
}

impl Sink {
    /// A sink with its writer. `tell` is called on the writer's thread, without a lock held.
    pub fn start(name: &str, output: Output, tell: impl Fn(&Sink, Trouble) + Send + 'static) -> io::Result<Arc<Sink>> {
        let sink = Arc::new(Sink {
            name: name.to_owned(),
            state: Mutex::default(),
            work: Condvar::new(),
            idle: Condvar::new(),
        });
        let writer = Writer { sink: Arc::clone(&sink), output, batch: Vec::new(), failing: false, tell };
        thread::Builder::new().name(format!("log {name}")).spawn(move || writer.run())?;
        Ok(sink)
    }

    /// The name for people, as in `stdout`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Appends whole lines, or drops and counts them.
    pub fn push(&self, bytes: &[u8], lines: u64) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.lock();
        if state.closed || state.stop || state.pending.len() + state.in_flight + bytes.len() > BACKLOG {
            state.dropped += lines;
            state.unsaid += lines;
            return;
        }
        state.pending.extend_from_slice(bytes);
        if std::mem::take(&mut state.asleep) {
            drop(state);
            self.work.notify_one();
        }
    }

    /// Lines dropped since the start.
    pub fn dropped(&self) -> u64 {
        self.lock().dropped
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
    fn is_idle(&self) -> bool {
        self.pending.is_empty() && self.in_flight == 0 && !self.reopen
    }
}

struct Writer<T> {
    sink: Arc<Sink>,
    output: Output,
    batch: Vec<u8>,
    failing: bool,
    tell: T,
}

/// What the writer is woken for.
struct Task {
    reopen: bool,
    unsaid: u64,
}

impl<T: Fn(&Sink, Trouble)> Writer<T> {
    fn run(mut self) {
        while let Some(task) = self.next() {
            if task.reopen {
                self.reopen();
            }
            let whole = self.batch.is_empty() || self.write();
            if whole && task.unsaid > 0 {
                (self.tell)(&self.sink, Trouble::Dropped(task.unsaid));
            }
            self.batch.clear();
            if self.batch.capacity() > BACKLOG / 4 {
                self.batch = Vec::new();
            }
            let mut state = self.sink.lock();
            state.in_flight = 0;
            if !whole {
                // They are told when it flows again.
                state.unsaid += task.unsaid;
            }
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
        if !state.stop && !state.reopen && state.pending.len() < ENOUGH {
            state = sink.work.wait_timeout(state, GATHER).unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.is_idle() && state.stop {
            return None;
        }
        std::mem::swap(&mut state.pending, &mut self.batch);
        state.in_flight = self.batch.len();
        // Without a batch there is no write that would show that it flows.
        let unsaid = if self.batch.is_empty() { 0 } else { std::mem::take(&mut state.unsaid) };
        Some(Task { reopen: std::mem::take(&mut state.reopen), unsaid })
    }

    /// Writes the batch; answers whether all of it was taken.
    fn write(&mut self) -> bool {
        let mut written = 0;
        while written < self.batch.len() {
            let error = match self.output.stream().write(&self.batch[written..]) {
                Ok(0) => ErrorKind::WriteZero.into(),
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
                    self.fail(written, error);
                    return false;
                }
            }
        }
        // Line-buffered or compressing outputs of a caller's own.
        let _ = self.output.stream().flush();
        self.failing = false;
        true
    }

    /// Counts what of the batch is lost and says so once.
    fn fail(&mut self, written: usize, error: io::Error) {
        let lines = memchr::memchr_iter(b'\n', &self.batch[written..]).count() as u64;
        let closed = error.kind() == ErrorKind::BrokenPipe;
        {
            let mut state = self.sink.lock();
            state.dropped += lines;
            state.unsaid += lines;
            if closed {
                state.closed = true;
                let pending = std::mem::take(&mut state.pending);
                let more = memchr::memchr_iter(b'\n', &pending).count() as u64;
                state.dropped += more;
                state.unsaid += more;
            }
        }
        if !std::mem::replace(&mut self.failing, true) {
            (self.tell)(&self.sink, if closed { Trouble::Closed } else { Trouble::Failed(error) });
        }
    }

    fn reopen(&mut self) {
        if let Output::File(path, file) = &mut self.output {
            match open(path) {
                Ok(new) => *file = new,
                Err(error) => (self.tell)(&self.sink, Trouble::NotReopened(error)),
            }
        }
    }
}
