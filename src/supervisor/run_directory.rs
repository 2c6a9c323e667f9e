//! The run directory: locked by one server, with a fresh sub-directory for the sockets of each start.
//!
//! Rules:
//! - Nothing that a server of ours did not make is changed, locked against others or removed. What one has made is known by its owner
//!   and by a marker in it, a file of the name [`MARKER`].
//! - Nobody else may write where the sockets lie, since they could put one of theirs in a worker's place. In a directory that the
//!   operator has made for more users than this one, the server keeps to a sub-directory of its own ([`OWN_PART`]).
//! - The lock is flock(2) on a file in it that has nothing but this process's number in it. Where no server of ours has made the directory,
//!   a file of that name with anything else in it is somebody's: the directory is refused, and it stays as it is. The kernel
//!   takes the lock back however the server ends. Sockets that an earlier server left are
//!   removed only where a connect to them is refused at once: what answers, or might, is somebody's.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::LONGEST_SUFFIX;
use crate::control::{OWN_PART, SOCKET_NAME};
use crate::socket_file;

/// The longest path of a Unix socket in bytes: `sun_path` without its final NUL (unix(7): 108; macOS and the BSDs: 104).
pub const PATH_LIMIT: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
const LOCK_NAME: &str = "lock";
/// A certificate that was made for one run, for those who try the server.
pub const SELF_SIGNED: &str = "self-signed.pem";
/// How often a directory is made again that is removed right then.
const ATTEMPTS: usize = 16;
const PREFIX: &str = "run-";
/// Digits behind it.
const STAMP: usize = 8;
/// What a directory holds that a server of ours has made.
const MARKER: &str = ".production_server";

/// Why the run directory cannot be used: one sentence for the operator, and the exit code.
#[derive(Debug)]
pub struct RunDirectoryError {
    message: String,
    code: u8,
}

impl RunDirectoryError {
    fn new(code: u8, message: String) -> RunDirectoryError {
        RunDirectoryError { message, code }
    }

    /// 73: it cannot be made or another server has it; 77: it is not ours.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for RunDirectoryError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for RunDirectoryError {}

/// A locked run directory. Dropping it removes the sockets, their sub-directory, the lock and, if a server of ours made it
/// and nothing else lies in it, the directory. Where another server has the lock by then, that is left to it.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    sockets: PathBuf,
    /// `None` only while it is dropped.
    lock: RefCell<Option<File>>,
    /// The lock and the directory are this server's, and not those of the one before or after it.
    ours: Cell<bool>,
    /// How often the sockets' sub-directory was made again.
    remade: Cell<u32>,
}

impl RunDirectory {
    /// Makes the directory if need be, locks it, clears what dead servers left in it, and makes a fresh sub-directory.
    ///
    /// # Errors
    /// See [`RunDirectoryError::code`].
    pub fn open(path: &Path) -> Result<RunDirectory, RunDirectoryError> {
        let mut path = path.to_path_buf();
        make(&path)?;
        if check(&path)? == Access::Shared {
            path.push(OWN_PART);
        }
        let lock = lock_made(&path)?;
        clear_stale(&path);
        let sockets = make_fresh(&path).map_err(|error| cannot("make a directory in", &path, &error))?;
        Ok(RunDirectory { path, sockets, lock: RefCell::new(Some(lock)), ours: Cell::new(true), remade: Cell::new(0) })
    }

    /// The directory of a server that hands its work over, whose lock this process has inherited: with a sub-directory of its own, and all
    /// else as it is until [`RunDirectory::take_over`].
    ///
    /// # Errors
    /// See [`RunDirectoryError::code`].
    pub fn inherit(path: &Path, lock: OwnedFd) -> Result<RunDirectory, RunDirectoryError> {
        let lock = File::from(lock);
        if !has_name(&lock, path) {
            let message = format!("the lock in {} is not the one that was handed over", path.display());
            return Err(RunDirectoryError::new(73, message));
        }
        let sockets = make_fresh(path).map_err(|error| cannot("make a directory in", path, &error))?;
        let (path, ours) = (path.to_owned(), Cell::new(false));
        Ok(RunDirectory { path, sockets, lock: RefCell::new(Some(lock)), ours, remade: Cell::new(0) })
    }

    /// Makes and locks again what somebody has removed, as a logout does with `$XDG_RUNTIME_DIR`. Sockets that were in it are gone;
    /// [`RunDirectory::remade`] tells.
    ///
    /// # Errors
    /// See [`RunDirectoryError::code`]. What is there stays in use.
    pub fn mend(&self) -> Result<(), RunDirectoryError> {
        if self.ours.get() && !self.lock.borrow().as_ref().is_some_and(|lock| has_name(lock, &self.path)) {
            self.lock.replace(Some(lock_made(&self.path)?));
        }
        if !self.sockets.is_dir() {
            make_marked(&self.sockets).map_err(|error| cannot("make a directory in", &self.path, &error))?;
            self.remade.set(self.remade.get() + 1);
        }
        Ok(())
    }

    /// How often the directory of the sockets was made again, with none of them in it.
    pub fn remade(&self) -> u32 {
        self.remade.get()
    }

    /// Where the control socket lies that workers are told: beside their own sockets, as long as the directory is another server's.
    pub fn control_path(&self) -> PathBuf {
        if self.ours.get() { self.path.join(SOCKET_NAME) } else { self.sockets.join(SOCKET_NAME) }
    }

    /// The lock, for a successor. It holds as long as somebody has it (flock(2)).
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn lock(&self) -> io::Result<OwnedFd> {
        let lock = self.lock.borrow();
        let lock = lock.as_ref().ok_or_else(|| io::Error::other("the lock was given up"))?;
        lock.try_clone().map(OwnedFd::from)
    }

    /// From now on the lock and the directory are this server's.
    pub fn take_over(&self) {
        self.ours.set(true);
        // The number in it is for people.
        if let Some(lock) = &*self.lock.borrow() {
            sign(lock).ok();
        }
    }

    /// From now on they are the successor's; the sockets of this start stay this server's.
    pub fn give_away(&self) {
        self.ours.set(false);
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where this start's sockets lie.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// The path of one socket in it.
    ///
    /// # Errors
    /// With 73, when it is longer than the system allows for sockets.
    pub fn socket(&self, name: &str) -> Result<PathBuf, RunDirectoryError> {
        let path = self.sockets.join(name);
        check_length(&path)?;
        Ok(path)
    }
}

impl Drop for RunDirectory {
    fn drop(&mut self) {
        if self.ours.get() {
            remove_marked_sockets(&self.sockets);
            remove_locked(&self.path);
        } else {
            // Closed and not taken back: whoever serves by now has it as well.
            drop(self.lock.take());
            remove_sockets(&self.sockets);
        }
    }
}

/// Refuses a path that is longer than a socket's may be.
///
/// # Errors
/// With 73 and a sentence that names the path, its length and the limit.
pub fn check_length(path: &Path) -> Result<(), RunDirectoryError> {
    let length = path.as_os_str().len();
    if length <= PATH_LIMIT {
        return Ok(());
    }
    let path = path.display();
    let message = format!(
        "the socket path {path} has {length} bytes and the system allows {PATH_LIMIT}: choose a shorter run directory \
         with --run-dir"
    );
    Err(RunDirectoryError::new(73, message))
}

/// Whether the sockets of an app's workers would have paths in that run directory which the system allows.
///
/// # Errors
/// As [`check_length`].
pub fn check_room(run_directory: &Path, app: &str) -> Result<(), RunDirectoryError> {
    let run_directory = std::path::absolute(run_directory).unwrap_or_else(|_| run_directory.to_owned());
    check_length(&run_directory.join(format!("{PREFIX}{:0STAMP$}", 0)).join(format!("{app}{LONGEST_SUFFIX}")))
}

/// Whether a directory that is there may be the run directory of this user.
///
/// # Errors
/// See [`RunDirectoryError::code`].
pub fn look(path: &Path) -> Result<(), RunDirectoryError> {
    let own = path.join(OWN_PART);
    if check(path)? == Access::Shared && own.exists() { check_own(&own) } else { Ok(()) }
}

/// Removes the sockets of one start, with their sub-directory and, where no other server has it, the run directory.
pub fn remove_sockets(directory: &Path) {
    remove_marked_sockets(directory);
    let above = directory.parent().filter(|above| is_marked(above));
    if let Some((above, _lock)) = above.and_then(|above| Some((above, lock(above).ok()?))) {
        remove_locked(above);
    }
}

/// Removes the sockets in a sub-directory that a server of ours has made, and the sub-directory when nothing else is in it.
fn remove_marked_sockets(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            fs::remove_file(entry.path()).ok();
        }
    }
    remove_marked(directory);
}

/// Removes what dead servers have left in a run directory, the lock, which the caller holds, and the directory, if a server of ours has
/// made it and nothing else lies in it.
fn remove_locked(directory: &Path) {
    clear_stale(directory);
    // `lock` makes sure that nobody keeps a lock on a file that has no name any more.
    fs::remove_file(directory.join(LOCK_NAME)).ok();
    if is_marked(directory) {
        fs::remove_file(directory.join(SELF_SIGNED)).ok();
        remove_marked(directory);
    }
}

/// Removes a marked directory in which nothing is left; one that is not empty keeps its marker.
fn remove_marked(directory: &Path) {
    let others = fs::read_dir(directory).map(|mut entries| {
        entries.any(|entry| entry.map_or(true, |entry| entry.file_name().as_bytes() != MARKER.as_bytes()))
    });
    if others.is_ok_and(|others| !others) {
        fs::remove_file(directory.join(MARKER)).ok();
        fs::remove_dir(directory).ok();
    }
}

/// Makes a directory of ours, and marks it; one that is there stays as it is.
fn make(path: &Path) -> Result<(), RunDirectoryError> {
    if path.exists() {
        return Ok(());
    }
    let parents = path.parent().map_or(Ok(()), fs::create_dir_all);
    match parents.and_then(|()| make_marked(path)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(cannot("make", path, &error)),
        _ => Ok(()),
    }
}

fn make_marked(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path.join(MARKER)).map(drop)
}

/// Whether a server of ours, run by this user, has made the directory.
fn is_marked(path: &Path) -> bool {
    let ours = |metadata: fs::Metadata| metadata.uid() == user();
    let marker = fs::symlink_metadata(path.join(MARKER)).is_ok_and(|metadata| metadata.is_file() && ours(metadata));
    marker && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir() && ours(metadata))
}

fn user() -> u32 {
    // SAFETY: geteuid has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Who may write to a directory of ours.
#[derive(PartialEq, Eq)]
enum Access {
    /// Nobody else.
    Own,
    /// Others, who cannot take away what this user makes there, or whom the operator trusts as much.
    Shared,
}

/// The server's part of a shared directory is a real directory, this user's, and open to nobody else.
fn check_own(path: &Path) -> Result<(), RunDirectoryError> {
    let metadata = fs::symlink_metadata(path).map_err(|error| cannot("look at", path, &error))?;
    if metadata.is_dir() && metadata.uid() == user() && metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    let message = format!(
        "{} is not this server's own directory (a directory of user {}, mode 0700): choose another with --run-dir",
        path.display(),
        user()
    );
    Err(RunDirectoryError::new(77, message))
}

/// The directory must be a real one, and ours.
fn check(path: &Path) -> Result<Access, RunDirectoryError> {
    let metadata = fs::symlink_metadata(path).map_err(|error| cannot("look at", path, &error))?;
    let (name, user) = (path.display(), user());
    if metadata.file_type().is_symlink() || !metadata.is_dir() {
        // A link that the operator made is fine as long as it is not in a place where anybody may put one.
        let target = fs::metadata(path).map_err(|error| cannot("look at", path, &error))?;
        if !target.is_dir() {
            return Err(RunDirectoryError::new(73, format!("the run directory {name} is not a directory")));
        }
        if metadata.uid() != user && metadata.uid() != 0 {
            return Err(RunDirectoryError::new(77, format!("the run directory {name} is another user's link")));
        }
    }
    let metadata = fs::metadata(path).map_err(|error| cannot("look at", path, &error))?;
    if metadata.uid() != user {
        let owner = metadata.uid();
        let message =
            format!("the run directory {name} belongs to user {owner}, not to {user}: choose another with --run-dir");
        return Err(RunDirectoryError::new(77, message));
    }
    let (open_to_all, sticky) = (metadata.mode() & 0o002 != 0, metadata.mode() & 0o1000 != 0);
    if open_to_all && !sticky {
        let mode = metadata.mode() & 0o7777;
        let message = format!(
            "everybody may write to the run directory {name} (mode {mode:04o}) and could replace the sockets in it: take that \
             right away (chmod o-w), or choose another with --run-dir"
        );
        return Err(RunDirectoryError::new(77, message));
    }
    Ok(if metadata.mode() & 0o022 == 0 { Access::Own } else { Access::Shared })
}

/// Whether the lock is the one that a directory has, and not one that was removed from it.
fn has_name(lock: &File, directory: &Path) -> bool {
    let inode = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let held = lock.metadata().map(inode).ok();
    held.is_some() && fs::metadata(directory.join(LOCK_NAME)).map(inode).ok() == held
}

/// Whether a file may be the lock of a server of ours: it has nothing but the number of a process in it, as ours have from their first moment.
fn is_signed(mut file: &File) -> bool {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(32).read_to_string(&mut text));
    let number = text.strip_suffix('\n').unwrap_or_default();
    read.is_ok() && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Makes a lock that is signed from its first moment, where there are hard links, if none is there.
fn make_lock(path: &Path) -> io::Result<()> {
    let fresh = path.with_extension(std::process::id().to_string());
    fs::remove_file(&fresh).ok();
    let signed = |path: &Path| {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        // On a full disk one that is not signed would be nobody's for good.
        sign(&file).inspect_err(|_| drop(fs::remove_file(path)))
    };
    let linked = signed(&fresh).and_then(|()| fs::hard_link(&fresh, path));
    fs::remove_file(&fresh).ok();
    let there = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
    match linked {
        Err(error) if there(&error) => Ok(()),
        // A file system without hard links.
        Err(_) => signed(path).or_else(|error| if there(&error) { Ok(()) } else { Err(error) }),
        Ok(()) => Ok(()),
    }
}

/// Locks a directory that is made if need be: whoever had it last may be removing it.
fn lock_made(directory: &Path) -> Result<File, RunDirectoryError> {
    let attempt = || {
        make(directory)?;
        if directory.ends_with(OWN_PART) || check(directory)? == Access::Shared {
            check_own(directory)?;
        }
        lock(directory)
    };
    let mut attempts = 0..ATTEMPTS;
    loop {
        match attempt() {
            Err(_) if !directory.exists() && attempts.next().is_some() => {}
            locked => return locked,
        }
    }
}

fn lock(directory: &Path) -> Result<File, RunDirectoryError> {
    let path = directory.join(LOCK_NAME);
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW);
    loop {
        let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound && directory.is_dir();
        let mut file = match options.open(&path) {
            Err(error) if is_missing(&error) => match make_lock(&path) {
                // Whoever had the directory may have just removed it.
                Err(error) if !is_missing(&error) => return Err(cannot("open the lock in", directory, &error)),
                _ => continue,
            },
            opened => opened.map_err(|error| cannot("open the lock in", directory, &error))?,
        };
        if !is_marked(directory) && !is_signed(&file) {
            let name = path.display();
            let message =
                format!("{name} is no lock of a production_server's: choose another directory with --run-dir");
            return Err(RunDirectoryError::new(73, message));
        }
        // SAFETY: flock takes plain numbers; the descriptor is open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(taken(directory, &mut file));
        }
        // A server that ends removes the file while it holds the lock. Whoever opened it before has locked a file
        // without a name, and tries again.
        if has_name(&file, directory) {
            return sign(&file).map(|()| file).map_err(|error| cannot("write the lock in", directory, &error));
        }
    }
}

/// Writes down whose lock it is.
fn sign(mut lock: &File) -> io::Result<()> {
    let text = format!("{}\n", std::process::id());
    lock.rewind()?;
    lock.write_all(text.as_bytes())?;
    lock.set_len(text.len() as u64)
}

fn taken(directory: &Path, file: &mut File) -> RunDirectoryError {
    let mut holder = String::new();
    file.rewind().and_then(|()| file.take(32).read_to_string(&mut holder)).ok();
    let holder = match holder.trim() {
        "" => String::new(),
        process => format!(" (process {process})"),
    };
    let directory = directory.display();
    let message = format!(
        "another production_server{holder} is using the run directory {directory}: stop it, or choose another with --run-dir"
    );
    RunDirectoryError::new(73, message)
}

/// Only the holder of the lock gets here, so that every sub-directory that is marked is that of a server which is gone.
fn clear_stale(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let stamp = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        let ours =
            stamp.is_some_and(|stamp| stamp.len() == STAMP && stamp.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if !ours || !is_marked(&path) {
            continue;
        }
        for socket in fs::read_dir(&path).into_iter().flatten().flatten() {
            if socket.file_type().is_ok_and(|kind| kind.is_socket()) {
                // What answers stays.
                socket_file::clear(&socket.path()).ok();
            }
        }
        remove_marked(&path);
    }
}

/// A name that no earlier start had: the guard of a killed server may still be at work in its own.
fn make_fresh(path: &Path) -> io::Result<PathBuf> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mut stamp = since.as_micros() as u32;
    loop {
        let fresh = path.join(format!("{PREFIX}{stamp:0STAMP$x}"));
        match make_marked(&fresh) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => stamp = stamp.wrapping_add(1),
            made => return made.map(|()| fresh),
        }
    }
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> RunDirectoryError {
    let code = if error.kind() == io::ErrorKind::PermissionDenied { 77 } else { 73 };
    let name = OsStr::to_string_lossy(path.as_os_str());
    RunDirectoryError::new(
        code,
        format!("cannot {what} the run directory {name}: {error}; choose another with --run-dir"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use crate::socket_file::leave_dead;

    #[test]
    fn a_second_server_is_refused_and_a_third_may_follow_the_first() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        let first = RunDirectory::open(&path).unwrap();
        let refused = RunDirectory::open(&path).unwrap_err();
        assert_eq!(refused.code(), 73);
        let said = refused.to_string();
        assert!(said.contains(&format!("(process {})", std::process::id())) && said.contains("--run-dir"), "{said}");
        let sockets = first.sockets().to_path_buf();
        drop(first);
        assert!(!path.exists(), "nothing is left behind");
        let third = RunDirectory::open(&path).unwrap();
        assert_ne!(third.sockets(), sockets);
    }

    #[test]
    fn the_last_one_removes_the_directory_whoever_that_is() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        for successor_goes_first in [false, true] {
            let first = RunDirectory::open(&path).unwrap();
            let second = RunDirectory::inherit(&path, first.lock().unwrap()).unwrap();
            first.give_away();
            second.take_over();
            let worker = UnixListener::bind(first.sockets().join("a.sock")).unwrap();
            let (early, late) = if successor_goes_first { (second, first) } else { (first, second) };
            drop(early);
            assert!(path.exists());
            drop(worker);
            drop(late);
            assert!(!path.exists(), "{successor_goes_first}: {:?}", fs::read_dir(&path).map(Iterator::count));
        }
        // Killed, with its guard at work after the next one has ended.
        let sockets = RunDirectory::open(&path).unwrap().sockets().to_owned();
        make(&path).unwrap();
        make_marked(&sockets).unwrap();
        remove_sockets(&sockets);
        assert!(!path.exists());
        // Not from under another.
        let next = RunDirectory::open(&path).unwrap();
        make_marked(&sockets).unwrap();
        remove_sockets(&sockets);
        assert!(next.sockets().exists() && !sockets.exists());
        assert_eq!(RunDirectory::open(&path).unwrap_err().code(), 73);
    }

    #[test]
    fn what_was_removed_is_made_and_locked_again() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        let run = RunDirectory::open(&path).unwrap();
        run.mend().unwrap();
        assert_eq!(run.remade(), 0);
        fs::remove_file(path.join(LOCK_NAME)).unwrap();
        run.mend().unwrap();
        assert_eq!((run.remade(), RunDirectory::open(&path).unwrap_err().code()), (0, 73));
        fs::remove_dir_all(&path).unwrap();
        fs::write(&path, "in the way").unwrap();
        assert_eq!((run.mend().unwrap_err().code(), run.remade()), (73, 0));
        fs::remove_file(&path).unwrap();
        run.mend().unwrap();
        assert!(run.sockets().is_dir() && run.remade() == 1);
        assert_eq!(RunDirectory::open(&path).unwrap_err().code(), 73);
        // Somebody else came first.
        fs::remove_dir_all(&path).unwrap();
        let other = RunDirectory::open(&path).unwrap();
        assert_eq!(run.mend().unwrap_err().code(), 73);
        drop(other);
        run.mend().unwrap();
        drop(run);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_is_handed_over_stays_locked_and_is_removed_by_the_last() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        let first = RunDirectory::open(&path).unwrap();
        let failed = RunDirectory::inherit(&path, first.lock().unwrap()).unwrap();
        assert_ne!(failed.sockets(), first.sockets());
        let left = failed.sockets().to_owned();
        drop(failed);
        assert!(!left.exists() && first.sockets().exists(), "a successor that fails takes its own alone");
        let second = RunDirectory::inherit(&path, first.lock().unwrap()).unwrap();
        second.take_over();
        first.give_away();
        drop(first);
        assert!(second.sockets().exists());
        assert_eq!(RunDirectory::open(&path).unwrap_err().code(), 73, "the lock is still held");
        let stranger = OwnedFd::from(File::open("/dev/null").unwrap());
        assert_eq!(RunDirectory::inherit(&path, stranger).unwrap_err().code(), 73);
        drop(second);
        assert!(!path.exists(), "nothing is left behind");
    }

    #[test]
    fn only_this_user_can_get_in() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        let directory = RunDirectory::open(&path).unwrap();
        for made in [directory.path(), directory.sockets()] {
            assert_eq!(fs::metadata(made).unwrap().mode() & 0o777, 0o700);
        }
    }

    /// Whatever its mode, a directory of the operator's keeps it, and all that is in it; the server takes a part of its own where
    /// others may write, and none where they could take that away.
    #[test]
    fn a_directory_that_was_there_stays_as_it_is() {
        for (mode, own) in
            [(0o755, Some("")), (0o700, Some("")), (0o2775, Some(OWN_PART)), (0o1777, Some(OWN_PART)), (0o777, None)]
        {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join("run");
            for others in ["run-parts", "run-empty", "run-0123abcd"] {
                fs::create_dir_all(path.join(others)).unwrap();
            }
            leave_dead(&path.join("run-parts/other.sock")).unwrap();
            leave_dead(&path.join("run-0123abcd/other.sock")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let whole = || {
                assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode, "the mode of {mode:o} was changed");
                for kept in ["run-parts/other.sock", "run-empty", "run-0123abcd/other.sock"] {
                    assert!(path.join(kept).exists(), "{kept} is gone from a directory of mode {mode:o}");
                }
            };
            match (RunDirectory::open(&path), own) {
                (Ok(directory), Some(own)) => {
                    assert_eq!(directory.path(), if own.is_empty() { path.clone() } else { path.join(own) });
                    whole();
                    drop(directory);
                    assert!(
                        !path.join(OWN_PART).exists() && !path.join(LOCK_NAME).exists(),
                        "{mode:o}: something was left"
                    );
                }
                (Err(refused), None) => assert!(refused.code() == 77 && refused.to_string().contains("chmod o-w")),
                (opened, _) => panic!("{mode:o}: {opened:?}"),
            }
            whole();
        }
    }

    #[test]
    fn a_lock_of_somebody_else_s_is_refused_and_stays() {
        let root = tempfile::tempdir().unwrap();
        let lock = root.path().join(LOCK_NAME);
        for theirs in ["", "pid 4711 of another program\n", "4711"] {
            fs::write(&lock, theirs).unwrap();
            let refused = RunDirectory::open(root.path()).unwrap_err();
            assert!(refused.code() == 73 && refused.to_string().contains("--run-dir"), "{refused}");
            assert_eq!(fs::read_to_string(&lock).unwrap(), theirs);
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "nothing was left beside it");
        // One that an earlier server has left is taken, and removed at the end.
        fs::write(&lock, "4711\n").unwrap();
        let directory = RunDirectory::open(root.path()).unwrap();
        assert_eq!(fs::read_to_string(&lock).unwrap(), format!("{}\n", std::process::id()));
        drop(directory);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }

    /// Somebody else was there first, with a link or a directory that is too open.
    #[test]
    fn a_part_of_its_own_that_is_not_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), root.path().join(OWN_PART)).unwrap();
        assert_eq!(RunDirectory::open(root.path()).unwrap_err().code(), 77);
        fs::remove_file(root.path().join(OWN_PART)).unwrap();
        fs::create_dir(root.path().join(OWN_PART)).unwrap();
        fs::set_permissions(root.path().join(OWN_PART), fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(RunDirectory::open(root.path()).unwrap_err().code(), 77);
    }

    /// A stopped process holds a socket whose backlog is full: connect(2) would wait for it for ever.
    #[test]
    fn a_full_backlog_holds_nobody_up() {
        let root = tempfile::tempdir().unwrap();
        let old = root.path().join("run-00000001");
        make_marked(&old).unwrap();
        let listener = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        let address = socket2::SockAddr::unix(old.join("web.sock")).unwrap();
        listener.bind(&address).unwrap();
        listener.listen(0).unwrap();
        let mut waiting = Vec::new();
        loop {
            let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            if socket.connect(&address).is_err() {
                break;
            }
            waiting.push(socket);
        }
        let directory = RunDirectory::open(root.path()).unwrap();
        assert!(old.join("web.sock").exists(), "whoever listens there may come back");
        drop(directory);
    }

    /// After a kill -9 the directory that the server had made is known as its own by the next one, which removes it at its end.
    #[test]
    fn what_an_earlier_server_made_is_still_ours() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        std::mem::forget(RunDirectory::open(&path).unwrap());
        // The lock went with the process; here its descriptor lives on.
        fs::remove_file(path.join(LOCK_NAME)).unwrap();
        drop(RunDirectory::open(&path).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn dead_sockets_of_earlier_servers_go_and_living_ones_stay() {
        let root = tempfile::tempdir().unwrap();
        let (old, living) = (root.path().join("run-00000001"), root.path().join("run-00000002"));
        make_marked(&old).unwrap();
        make_marked(&living).unwrap();
        leave_dead(&old.join("web.sock")).unwrap();
        let listener = UnixListener::bind(living.join("web.sock")).unwrap();
        fs::write(root.path().join("mine.txt"), "x").unwrap();
        let _directory = RunDirectory::open(root.path()).unwrap();
        assert!(!old.exists(), "nobody listens there");
        assert!(living.join("web.sock").exists(), "somebody listens there");
        assert!(root.path().join("mine.txt").exists());
        drop(listener);
    }

    #[test]
    fn a_path_too_long_for_a_socket_is_named_with_its_length() {
        let root = tempfile::tempdir().unwrap();
        let directory = RunDirectory::open(root.path()).unwrap();
        let room = PATH_LIMIT - directory.sockets().as_os_str().len() - 1;
        assert!(directory.socket(&"x".repeat(room)).is_ok());
        UnixListener::bind(directory.socket(&"x".repeat(room)).unwrap()).expect("the limit is the system's");
        let refused = directory.socket(&"x".repeat(room + 1)).unwrap_err();
        assert_eq!(refused.code(), 73);
        assert!(refused.to_string().contains(&format!("has {} bytes", PATH_LIMIT + 1)), "{refused}");
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("file");
        fs::write(&path, "x").unwrap();
        assert_eq!(RunDirectory::open(&path).unwrap_err().code(), 73);
    }
}
