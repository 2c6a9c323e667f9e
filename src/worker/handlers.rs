//! The module in use, and its exchange for another when the file has changed.
//!
//! The file is looked at when a request comes, at most every [`INTERVAL`], and when the worker is told to (SIGHUP). Whoever
//! looks also loads; the others go on with what is there. A request holds the module that it began with; the last one to let
//! go of an old module ends it.
//!
//! A file is loaded when it has been left alone for [`INTERVAL`] and its content differs from what was looked at before. One
//! that cannot be loaded is told once, and the old one stays.

use std::fs::{File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant, SystemTime};

use super::answers::{self, Question};
use super::module::{Answer, Module, Scratch};

/// Between two looks at the file; and how long nobody may have written to it before it is loaded.
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// The largest file that is taken for a module, in bytes.
const MOST_MODULE: u64 = 1 << 30;
/// A body up to this is sent in one piece with its head.
const SMALL_BODY: usize = 16 * 1024;
/// Fields that belong to the framing, which is the worker's.
const OURS: [&[u8]; 8] = [
    b"connection",
    b"content-length",
    b"keep-alive",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
];

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
    device: u64,
    inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> io::Result<Stamp> {
        let (device, inode) = (metadata.dev(), metadata.ino());
        Ok(Stamp { modified: metadata.modified()?, length: metadata.len(), device, inode })
    }

    /// What equals no other: the file is to be read again before it is known.
    fn unsettled(self) -> Stamp {
        Stamp { length: u64::MAX, ..self }
    }

    /// Whether it may be written to right now. A time in the future says nothing.
    fn is_fresh(&self) -> bool {
        self.modified.elapsed().is_ok_and(|age| age < INTERVAL)
    }
}

/// What was found at the last look.
#[derive(Debug)]
struct Seen {
    /// `None`: the file could not be read.
    stamp: Option<Stamp>,
    /// The fingerprint of the content that is in use.
    content: u64,
    /// Modules loaded after the first.
    reloads: u64,
}

/// How a look at the file has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// All that is to be known is known.
    Settled,
    /// The file is changing; look again.
    Changing,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Handlers {
    path: PathBuf,
    begin: Instant,
    /// When a request looks at the file again, in milliseconds after `begin`.
    next_look: AtomicU64,
    /// `None` at the worker's end.
    current: Mutex<Option<Arc<Module>>>,
    /// Held during a look, and while a module is being loaded.
    seen: Mutex<Seen>,
    /// A thread is looking because of a signal.
    checking: AtomicBool,
}

impl Handlers {
    /// Loads the module for the first time.
    ///
    /// # Errors
    /// One sentence about why it cannot be used.
    pub(super) fn load(path: &Path) -> Result<Handlers, String> {
        let cannot = |reason: String| format!("cannot load the module {}: {reason}", path.display());
        let (stamp, bytes) = read(path).map_err(|error| cannot(error.to_string()))?;
        // The clock of files is coarse: two states of a file that was just written may have one time.
        let stamp = if stamp.is_fresh() { stamp.unsettled() } else { stamp };
        let module = Module::load(&bytes, name_of(path)).map_err(cannot)?;
        Ok(Handlers {
            path: path.to_path_buf(),
            begin: Instant::now(),
            next_look: AtomicU64::new(INTERVAL.as_millis() as u64),
            current: Mutex::new(Some(Arc::new(module))),
            seen: Mutex::new(Seen { stamp: Some(stamp), content: fingerprint(&bytes), reloads: 0 }),
            checking: AtomicBool::new(false),
        })
    }

    /// The module for a request that begins now. There is one until [`Handlers::end`].
    pub(super) fn current(&self) -> Option<Arc<Module>> {
        let now = self.begin.elapsed().as_millis() as u64;
        if now >= self.next_look.load(Ordering::Relaxed) {
            let seen = match self.seen.try_lock() {
                Ok(seen) => Some(seen),
                Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            };
            if let Some(mut seen) = seen {
                self.look(&mut seen);
                let after = self.begin.elapsed().as_millis() as u64;
                self.next_look.store(after + INTERVAL.as_millis() as u64, Ordering::Relaxed);
            }
        }
        self.module().clone()
    }

    /// Ends the module, once no request is there any more.
    pub(super) fn end(&self) {
        // A module that is being loaded comes first.
        let _seen = self.seen();
        let last = self.module().take();
        drop(last);
    }

    fn module(&self) -> MutexGuard<'_, Option<Arc<Module>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the file now, on a thread of its own: a module may take its time to start, and connections are still to be
    /// accepted.
    pub(super) fn check(self: &Arc<Handlers>) {
        if self.checking.swap(true, Ordering::SeqCst) {
            return;
        }
        let handlers = Arc::clone(self);
        let look = move || {
            loop {
                // Cleared before the look, so that a signal that comes behind it is not lost.
                handlers.checking.store(false, Ordering::SeqCst);
                let look = handlers.look(&mut handlers.seen());
                if look == Look::Settled || handlers.checking.swap(true, Ordering::SeqCst) {
                    return;
                }
                std::thread::sleep(INTERVAL);
            }
        };
        if std::thread::Builder::new().name("reload".to_owned()).spawn(look).is_err() {
            // The next request looks.
            self.checking.store(false, Ordering::SeqCst);
        }
    }

    fn look(&self, seen: &mut Seen) -> Look {
        if self.module().is_none() {
            return Look::Settled;
        }
        let stamp = match stamp_of(&self.path) {
            Ok(stamp) if seen.stamp == Some(stamp) => return Look::Settled,
            Ok(stamp) if stamp.is_fresh() => return Look::Changing,
            Ok(stamp) => stamp,
            Err(error) => return self.refuse(seen, None, &error.to_string()),
        };
        let bytes = match read(&self.path) {
            Ok((read, bytes)) if read == stamp => bytes,
            Ok(_) => return Look::Changing,
            Err(error) => return self.refuse(seen, Some(stamp), &error.to_string()),
        };
        let content = fingerprint(&bytes);
        if content == seen.content {
            seen.stamp = Some(stamp);
            return Look::Settled;
        }
        match Module::load(&bytes, name_of(&self.path)) {
            Ok(module) => {
                *seen = Seen { stamp: Some(stamp), content, reloads: seen.reloads + 1 };
                let old = self.module().replace(Arc::new(module));
                eprintln!("{} is loaded again (reload {})", self.path.display(), seen.reloads);
                drop(old);
            }
            Err(reason) => return self.refuse(seen, Some(stamp), &reason),
        }
        Look::Settled
    }

    fn refuse(&self, seen: &mut Seen, stamp: Option<Stamp>, reason: &str) -> Look {
        if seen.stamp != stamp {
            seen.stamp = stamp;
            eprintln!("cannot load {}: {reason}; the module that was loaded before goes on", self.path.display());
        }
        Look::Settled
    }
}

fn stamp_of(path: &Path) -> io::Result<Stamp> {
    Stamp::of(&path.metadata()?)
}

/// The file's content, and its stamp if that was the same before and after.
fn read(path: &Path) -> io::Result<(Stamp, Vec<u8>)> {
    let file = File::open(path)?;
    let before = Stamp::of(&file.metadata()?)?;
    if before.length > MOST_MODULE {
        return Err(io::Error::other("it is larger than 1 GiB"));
    }
    let mut bytes = Vec::with_capacity(before.length as usize);
    (&file).take(MOST_MODULE).read_to_end(&mut bytes)?;
    let after = Stamp::of(&file.metadata()?)?;
    Ok((if before == after { before } else { after.unsettled() }, bytes))
}

fn fingerprint(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

fn name_of(path: &Path) -> &std::ffi::OsStr {
    path.file_name().unwrap_or_default()
}

/// Has a module answer a request, and sends what it answers.
pub(super) fn answer(
    handlers: &Handlers,
    stream: &UnixStream,
    question: &Question<'_>,
    scratch: &mut Scratch,
    out: &mut Vec<u8>,
) -> io::Result<bool> {
    let Some(module) = handlers.current() else {
        return answers::failed(stream, question, out, b"the worker has ended\n");
    };
    let answer = module.handle(question, scratch);
    match answer.check() {
        Ok((status, body)) => send(stream, question, out, status, &answer, body),
        Err(what) => {
            module.complain(&what);
            answers::failed(stream, question, out, b"the module's answer is wrong\n")
        }
    }
}

fn send(
    mut stream: &UnixStream,
    question: &Question<'_>,
    out: &mut Vec<u8>,
    status: u16,
    answer: &Answer<'_>,
    body: &[u8],
) -> io::Result<bool> {
    out.clear();
    answers::status_line(out, status);
    for (name, value) in answer.fields() {
        if !OURS.iter().any(|ours| name.eq_ignore_ascii_case(ours)) {
            for part in [b"\r\n", name, b": ", value] {
                out.extend_from_slice(part);
            }
        }
    }
    answers::framing(question, out, status, Some(body.len() as u64));
    if question.is_head() || answers::bodyless(status) {
        return stream.write_all(out).map(|()| true);
    }
    if body.len() <= SMALL_BODY {
        out.extend_from_slice(body);
        return stream.write_all(out).map(|()| true);
    }
    stream.write_all(out)?;
    stream.write_all(body).map(|()| true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_apart_by_its_stamp_and_left_alone_while_it_is_fresh() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("m.so");
        std::fs::write(&path, "1234").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let old = SystemTime::now() - Duration::from_secs(60);
        file.set_modified(old).unwrap();
        let first = stamp_of(&path).unwrap();
        assert!(!first.is_fresh());
        assert_eq!(read(&path).unwrap(), (first, b"1234".to_vec()));
        // Another file of the same length and time, renamed over it.
        let other = directory.path().join("other");
        std::fs::write(&other, "5678").unwrap();
        File::options().write(true).open(&other).unwrap().set_modified(old).unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_ne!(stamp_of(&path).unwrap(), first);
        let far = SystemTime::now() + Duration::from_secs(3600);
        File::options().write(true).open(&path).unwrap().set_modified(far).unwrap();
        assert!(!stamp_of(&path).unwrap().is_fresh(), "a clock that is wrong must not keep it from being loaded");
        assert!(Stamp { modified: SystemTime::now(), ..first }.is_fresh());
    }

    #[test]
    fn a_module_that_cannot_be_loaded_at_the_start_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.so");
        let said = Handlers::load(&path).unwrap_err();
        assert!(said.contains("none.so") && said.contains("No such file"), "{said}");
        std::fs::write(&path, "text").unwrap();
        assert!(Handlers::load(&path).unwrap_err().contains("no shared object"));
    }
}
