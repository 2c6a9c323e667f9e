//! The spool: bytes that wait for a slow peer, and for which there is no memory, wait in files without a name.
//!
//! A [`Queue`] takes bytes at one end and gives them back at the other, in their order: those in the file first, then those that are still in
//! memory. It does nothing itself: it says what a helper is to write or read next ([`Job`]), and is told what came of it ([`Done`]).
//!
//! Rules:
//! - A loop never touches a file of the spool: helpers open, write and read it, and close it, for that gives its blocks back.
//! - A queue has at most one piece with a helper to be written, and one to be read.
//! - What all files may take of the disk (`spool_bytes`) is reserved before it is written, and given back as they are closed; one has at
//!   most a share of it ([`SHARE`]). A file that was read to its end is used again from its begin.
//! - An answer has room for the first of it reserved before it is begun ([`Queue::begin`]): of many that begin in the same moment, none finds only
//!   with bytes in hand that others have it all.
//! - Nothing of it is left behind, however the process ends: the files have no name (O_TMPFILE of open(2)), or lose it at once.
//! - Pieces are charged to the budget of the process while they are in memory, those to be written up to [`Spools::may_gather`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::buffers::block::{Budget, LARGE};
use crate::config::Settings;
use crate::metrics::InSpool;

/// So many bytes that are to be written are gathered while a helper is at the ones before; beyond it, whoever brings them waits.
pub const PIECE: usize = LARGE;
/// Fewer are not worth a write while more may come, and are not counted among those that are to be written.
const LEAST: usize = 16 * 1024;
/// What all pieces that are to be written may take, in bytes, in a budget that has room for it: see [`Spools::may_gather`].
const GATHERED: usize = 32 << 20;
/// The part of `buffer_bytes`, one in so many, that they may take in a smaller one: half of what is left to requests that wait.
const GATHERED_SHARE: usize = 6;
/// The part of `spool_bytes`, one in so many, that one queue may have.
pub const SHARE: u64 = 4;
/// What [`Queue::begin`] reserves, in bytes: as much as may come before the first of it is written, which is little, or almost a piece, and one
/// more block with its framing.
const FIRST: u64 = (2 * PIECE + LEAST) as u64;
/// Where the files are if the run directory is in memory.
const ON_DISK: &str = "/var/tmp";
/// How many names are tried for a file, where each needs one for a moment.
const ATTEMPTS: u32 = 16;

/// What all queues of the process have together. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Spools(Arc<Together>);

#[derive(Debug, Default)]
struct Together {
    /// What their files take.
    used: Arc<InSpool>,
    /// Bytes in pieces that are to be written.
    gathered: AtomicUsize,
}

impl Spools {
    /// Counted there.
    pub fn new(used: Arc<InSpool>) -> Spools {
        Spools(Arc::new(Together { used, gathered: AtomicUsize::new(0) }))
    }

    /// Whether there is room for a queue that will have so many bytes, in files that may take `limit`.
    pub fn has_room_for(&self, length: u64, limit: u64) -> bool {
        length <= limit / SHARE && self.0.used.bytes().saturating_add(length) <= limit
    }

    /// Whether more may be gathered to be written. Who may not, waits until others are written, and looks again by a timer.
    pub fn may_gather(&self, budget: &Budget) -> bool {
        let most = GATHERED.min(budget.limit() / GATHERED_SHARE);
        self.0.gathered.load(Ordering::Relaxed) + PIECE <= most
    }

    fn reserve(&self, more: u64, limit: u64) -> bool {
        self.0.used.add(more, limit)
    }
}

/// Bytes on their way to or from a file, charged to the budget.
#[derive(Debug)]
pub struct Piece {
    bytes: Vec<u8>,
    charged: usize,
    budget: Arc<Budget>,
    /// Where it is to be written.
    gathers: Option<Spools>,
}

impl Piece {
    fn new(budget: &Arc<Budget>, gathers: Option<Spools>) -> Piece {
        Piece { bytes: Vec::new(), charged: 0, budget: budget.clone(), gathers }
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes.reserve_exact(bytes.len());
        }
        self.bytes.extend_from_slice(bytes);
        self.charge(self.bytes.capacity());
    }

    fn charge(&mut self, bytes: usize) {
        self.budget.charge(bytes - self.charged);
        let before = self.gathered();
        self.charged = bytes;
        if let Some(spools) = &self.gathers {
            spools.0.gathered.fetch_add(self.gathered() - before, Ordering::Relaxed);
        }
    }

    /// What it counts among those that are to be written.
    fn gathered(&self) -> usize {
        if self.charged < LEAST { 0 } else { self.charged }
    }

    /// It waits where it is, and is in nobody's way to the disk.
    fn stop_gathering(&mut self) {
        if let Some(spools) = self.gathers.take() {
            spools.0.gathered.fetch_sub(self.gathered(), Ordering::Relaxed);
        }
    }
}

impl std::ops::Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.budget.credit(self.charged);
        self.stop_gathering();
    }
}

/// A file without a name, opened by whoever writes to it first. Its part of the disk is given back as it is dropped, which closes it: to be
/// left to a helper.
#[derive(Debug)]
pub struct Store {
    file: OnceLock<File>,
    /// Bytes of the disk that are reserved for it. Only its loop writes this.
    reserved: AtomicU64,
    spools: Spools,
}

impl Store {
    /// Reserves what it takes to write up to there.
    fn reserve(&self, end: u64, limit: u64) -> bool {
        let reserved = self.reserved.load(Ordering::Relaxed);
        if end <= reserved {
            return true;
        }
        let granted = end <= limit / SHARE && self.spools.reserve(end - reserved, limit);
        if granted {
            self.reserved.store(end, Ordering::Relaxed);
        }
        granted
    }

    fn write(&self, settings: &Settings, at: u64, bytes: &[u8]) -> io::Result<()> {
        let file = match self.file.get() {
            Some(file) => file,
            // One piece is written at a time.
            None => {
                let opened = open(&directory(settings))?;
                self.file.get_or_init(|| opened)
            }
        };
        file.write_all_at(bytes, at)
    }

    fn read(&self, at: u64, count: usize, into: &mut Vec<u8>) -> io::Result<()> {
        into.resize(count, 0);
        let file = self.file.get().ok_or(io::ErrorKind::NotFound)?;
        file.read_exact_at(into, at)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.file.take());
        self.spools.0.used.give_back(*self.reserved.get_mut());
    }
}

/// Where the files are.
fn directory(settings: &Settings) -> PathBuf {
    match &settings.stores.spool_dir {
        Some(directory) => directory.clone(),
        None if is_in_memory(&settings.process.run_dir) => PathBuf::from(ON_DISK),
        None => settings.process.run_dir.clone(),
    }
}

/// Whether what lies in that directory lies in memory.
#[cfg(target_os = "linux")]
fn is_in_memory(directory: &Path) -> bool {
    use nix::sys::statfs::{TMPFS_MAGIC, statfs};
    statfs(directory).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC)
}

#[cfg(not(target_os = "linux"))]
fn is_in_memory(_: &Path) -> bool {
    false
}

/// Opens a new file without a name in that directory. It may block.
///
/// # Errors
/// What open(2) and unlink(2) say.
pub fn open(directory: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        let flags = libc::O_TMPFILE | libc::O_EXCL;
        match options().custom_flags(flags).open(directory) {
            // A file system or a kernel that does not know it.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {}
            outcome => return outcome,
        }
    }
    open_and_unlink(directory)
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// The same where a file has to have a name for a moment.
fn open_and_unlink(directory: &Path) -> io::Result<File> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let mut last = io::ErrorKind::AlreadyExists.into();
    for _ in 0..ATTEMPTS {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".production_server-spool-{}-{number}", std::process::id()));
        match options().create_new(true).open(&path) {
            Ok(file) => return fs::remove_file(&path).map(|()| file),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Something that a helper is to do with a queue's file.
#[derive(Debug)]
pub struct Job {
    store: Arc<Store>,
    at: u64,
    work: Work,
}

#[derive(Debug)]
enum Work {
    Write(Piece, Arc<Settings>),
    Read(Piece, usize),
}

/// What came of it.
#[derive(Debug)]
pub enum Done {
    /// The piece is in the file.
    Written,
    /// It is not, and here it is again.
    NotWritten(Piece, io::Error),
    /// The bytes that were asked for.
    Read(Piece),
    /// They cannot be read.
    NotRead(io::Error),
}

impl Job {
    /// Does it. It may block for as long as the file system likes.
    pub fn run(self) -> Done {
        match self.work {
            Work::Write(piece, settings) => match self.store.write(&settings, self.at, &piece) {
                Ok(()) => Done::Written,
                Err(error) => Done::NotWritten(piece, error),
            },
            Work::Read(mut piece, count) => match self.store.read(self.at, count, &mut piece.bytes) {
                Ok(()) => Done::Read(piece),
                Err(error) => Done::NotRead(error),
            },
        }
    }
}

/// Which of an exchange's queues it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// That of the answer.
    Answer,
    /// That of the request's body.
    Request,
}

/// What a queue gives back next.
#[derive(Debug)]
pub enum Front {
    /// There is nothing in it.
    Nothing,
    /// A helper is at it.
    Busy,
    /// These bytes, which never were in the file.
    Memory(Piece),
    /// A helper is to read them.
    File(Job),
}

/// Bytes that wait, in their order.
#[derive(Debug)]
pub struct Queue {
    store: Arc<Store>,
    budget: Arc<Budget>,
    /// What has come and was given to no helper yet.
    tail: Piece,
    /// From where on the file is to be read, and up to where it has been written.
    read: u64,
    written: u64,
    /// How many bytes were ever put into it, and how many of them are data, and not the framing of chunks.
    pushed: u64,
    data: u64,
    /// Bytes that a helper writes or reads now.
    writing: u64,
    reading: u64,
    /// The disk has taken no more.
    full: bool,
    /// It was said that there was no room.
    refused: bool,
    /// What was given back may be asked for again.
    keeps: bool,
    /// Of such a queue: what was in memory has been given back, too.
    given: bool,
    /// What a helper reads now is not wanted any more.
    stale: bool,
}

impl Queue {
    /// Nothing waits yet, and there is no file.
    pub fn new(spools: &Spools, budget: &Arc<Budget>) -> Queue {
        Queue {
            store: Arc::new(Store { file: OnceLock::new(), reserved: AtomicU64::new(0), spools: spools.clone() }),
            budget: budget.clone(),
            tail: Piece::new(budget, Some(spools.clone())),
            read: 0,
            written: 0,
            pushed: 0,
            data: 0,
            writing: 0,
            reading: 0,
            full: false,
            refused: false,
            keeps: false,
            given: false,
            stale: false,
        }
    }

    /// The same with room for the first of it in the files, which may take `limit` bytes; `None`: there is not as much.
    pub fn begin(spools: &Spools, budget: &Arc<Budget>, limit: u64) -> Option<Queue> {
        let queue = Queue::new(spools, budget);
        let first = FIRST.min(limit / SHARE);
        (first >= PIECE as u64 && queue.store.reserve(first, limit)).then_some(queue)
    }

    /// One that can be read again from its begin ([`Queue::rewind`]), of which nothing is taken before all has come.
    pub fn keeping(spools: &Spools, budget: &Arc<Budget>) -> Queue {
        Queue { keeps: true, ..Queue::new(spools, budget) }
    }

    /// Of such a queue: it gives back all from the begin.
    pub fn rewind(&mut self) {
        debug_assert!(self.keeps, "it has forgotten what it gave back");
        self.read = 0;
        self.given = false;
        self.stale = self.reading > 0;
    }

    /// Puts bytes behind the others.
    pub fn push(&mut self, bytes: &[u8]) {
        self.push_framed(bytes, bytes.len());
    }

    /// The same of bytes of which so many are data.
    pub fn push_framed(&mut self, bytes: &[u8], data: usize) {
        self.tail.push(bytes);
        self.pushed += bytes.len() as u64;
        self.data += data as u64;
    }

    /// Puts a run of a body behind the others, as a chunk where the body is `chunked`.
    pub fn push_run(&mut self, data: &[u8], chunked: bool) {
        if !chunked {
            return self.push(data);
        }
        self.push_framed(format!("{:x}\r\n", data.len()).as_bytes(), 0);
        self.push(data);
        self.push_framed(b"\r\n", 0);
    }

    /// How many bytes wait.
    pub fn len(&self) -> u64 {
        let tail = if self.given { 0 } else { self.tail.len() };
        self.written - self.read + self.writing + tail as u64
    }

    /// How many of them are data, as far as that can be told without another look at them: as many of a hundred as of all that ever came.
    pub fn data(&self) -> u64 {
        let of_all = u128::from(self.len()) * u128::from(self.data) / u128::from(self.pushed.max(1));
        u64::try_from(of_all).unwrap_or(u64::MAX)
    }

    /// Whether none do.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether more may be put into it. What is not to be written is in nobody's way to the disk, and need not wait for others there.
    pub fn takes_more(&self) -> bool {
        self.tail.len() < PIECE && (self.tail.gathers.is_none() || self.store.spools.may_gather(&self.budget))
    }

    /// Whether the disk has taken no more, and nothing is written any more.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Whether a helper reads of it.
    pub fn is_read(&self) -> bool {
        self.reading > 0
    }

    /// Whether nothing of what waits is in the file, or on its way to it or from it.
    pub fn is_in_memory(&self) -> bool {
        let of_file = if self.keeps { self.written } else { self.written - self.read };
        of_file == 0 && self.writing == 0 && self.reading == 0
    }

    /// What a helper is to write next, if anything; a little only if that is `all`. There may be no room for it on the disk.
    pub fn write(&mut self, settings: &Arc<Settings>, all: bool) -> Option<Result<Job, NoRoom>> {
        if self.writing > 0 || self.tail.is_empty() || self.full || self.given {
            return None;
        }
        if self.tail.len() < LEAST && !all && self.takes_more() {
            return None;
        }
        if self.is_in_memory() {
            (self.read, self.written) = (0, 0);
        }
        let count = self.tail.len() as u64;
        if !self.store.reserve(self.written + count, settings.stores.spool_bytes) {
            let first = !std::mem::replace(&mut self.refused, true);
            self.tail.stop_gathering();
            return Some(Err(NoRoom { first }));
        }
        self.writing = count;
        let piece = self.take_tail();
        Some(Ok(Job { store: self.store.clone(), at: self.written, work: Work::Write(piece, settings.clone()) }))
    }

    /// Takes what it gives back next; of the file so many bytes at most.
    pub fn front(&mut self, most: usize) -> Front {
        let in_file = self.written - self.read;
        if self.reading > 0 || (in_file == 0 && self.writing > 0) {
            return Front::Busy;
        }
        if in_file == 0 && self.keeps {
            if self.tail.is_empty() || std::mem::replace(&mut self.given, true) {
                return Front::Nothing;
            }
            let mut copy = Piece::new(&self.budget, None);
            copy.push(&self.tail);
            return Front::Memory(copy);
        }
        if in_file == 0 {
            return if self.tail.is_empty() { Front::Nothing } else { Front::Memory(self.take_tail()) };
        }
        self.reading = in_file.min(most as u64);
        let count = self.reading as usize;
        let mut piece = Piece::new(&self.budget, None);
        piece.charge(count);
        Front::File(Job { store: self.store.clone(), at: self.read, work: Work::Read(piece, count) })
    }

    /// Takes all that waits in memory, where nothing waits elsewhere.
    pub fn take_tail(&mut self) -> Piece {
        let empty = Piece::new(&self.budget, (!self.full).then(|| self.store.spools.clone()));
        std::mem::replace(&mut self.tail, empty)
    }

    /// A helper is done: the bytes that it has read.
    ///
    /// # Errors
    /// What was asked for cannot be read, or a helper has panicked: bytes are missing.
    pub fn told(&mut self, done: Option<Done>) -> Result<Told, Option<io::Error>> {
        match done {
            Some(Done::Written) => {
                self.written += std::mem::take(&mut self.writing);
                Ok(Told::Nothing)
            }
            Some(Done::NotWritten(mut piece, error)) => {
                piece.push(&self.tail);
                piece.stop_gathering();
                self.tail = piece;
                (self.writing, self.full) = (0, true);
                Ok(Told::Full(error))
            }
            Some(Done::Read(piece)) => {
                let count = std::mem::take(&mut self.reading);
                if std::mem::take(&mut self.stale) {
                    return Ok(Told::Nothing);
                }
                self.read += count;
                Ok(Told::Bytes(piece))
            }
            Some(Done::NotRead(error)) => Err(Some(error)),
            None => Err(None),
        }
    }

    /// Its file, to be closed by a helper; `None`: there is none, and no helper is about to open one.
    pub fn into_store(self) -> Option<Arc<Store>> {
        let is_closed = Arc::strong_count(&self.store) == 1 && self.store.file.get().is_none();
        (!is_closed).then_some(self.store)
    }
}

/// The files have as much of the disk as they may.
#[derive(Debug)]
pub struct NoRoom {
    /// That queue has not met it before.
    pub first: bool,
}

/// What a queue makes of a helper's word.
#[derive(Debug)]
pub enum Told {
    /// It has noted it.
    Nothing,
    /// Nothing more can be written.
    Full(io::Error),
    /// These are its next bytes.
    Bytes(Piece),
}

#[cfg(test)]
mod tests;
