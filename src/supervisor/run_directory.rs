//! The run directory: locked by one server, with a fresh sub-directory for the sockets of each start.
//!
//! Rules: the directory is ours alone (0700, our user's), since whoever may write there could put a socket of theirs in a
//! worker's place. The lock is flock(2) on a file in it, which the kernel takes back however the server ends. Sockets that
//! an earlier server left are removed only after a connect to them has failed: what answers is somebody's.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// The longest path of a Unix socket in bytes: `sun_path` without its final NUL (unix(7): 108; macOS and the BSDs: 104).
pub const PATH_LIMIT: usize = if cfg!(target_os = "linux") { 107 } else { 103 };
const LOCK_NAME: &str = "lock";
const PREFIX: &str = "run-";

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

/// A locked run directory. Dropping it removes the sockets, their sub-directory, the lock and, if this server made it
/// and nothing else lies in it, the directory.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    sockets: PathBuf,
    made: bool,
    lock: File,
}

impl RunDirectory {
    /// Makes the directory if need be, locks it, clears what dead servers left in it, and makes a fresh sub-directory.
    ///
    /// # Errors
    /// See [`RunDirectoryError::code`].
    pub fn open(path: &Path) -> Result<RunDirectory, RunDirectoryError> {
        let made = make(path)?;
        check(path)?;
        let lock = lock(path)?;
        clear_stale(path);
        let sockets = make_fresh(path).map_err(|error| cannot("make a directory in", path, &error))?;
        Ok(RunDirectory { path: path.to_path_buf(), sockets, made, lock })
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
        remove_sockets(&self.sockets);
        // Removed while still locked; `lock` makes sure that nobody keeps a lock on a file that has no name any more.
        fs::remove_file(self.path.join(LOCK_NAME)).ok();
        if self.made {
            fs::remove_dir(&self.path).ok();
        }
        self.lock.flush().ok();
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

/// Removes the sockets in a sub-directory of the run directory, and the sub-directory when nothing else is in it.
pub fn remove_sockets(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            fs::remove_file(entry.path()).ok();
        }
    }
    fs::remove_dir(directory).ok();
}

/// Removes what lies at a worker's path before its start. False: a socket is there and answers, or it is no socket.
pub fn clear_path(path: &Path) -> bool {
    match fs::symlink_metadata(path) {
        Err(_) => true,
        Ok(metadata) => metadata.file_type().is_socket() && !answers(path) && fs::remove_file(path).is_ok(),
    }
}

/// Whether somebody listens on a socket. A full backlog (EAGAIN) is somebody.
fn answers(path: &Path) -> bool {
    match UnixStream::connect(path) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound),
    }
}

fn make(path: &Path) -> Result<bool, RunDirectoryError> {
    if path.exists() {
        return Ok(false);
    }
    let parents = path.parent().map_or(Ok(()), fs::create_dir_all);
    match parents.and_then(|()| DirBuilder::new().mode(0o700).create(path)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(cannot("make", path, &error)),
    }
}

/// The directory must be a real one, ours, and writable by nobody else.
fn check(path: &Path) -> Result<(), RunDirectoryError> {
    let metadata = fs::symlink_metadata(path).map_err(|error| cannot("look at", path, &error))?;
    let name = path.display();
    // SAFETY: geteuid has no arguments and cannot fail.
    let user = unsafe { libc::geteuid() };
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
    if metadata.mode() & 0o022 != 0 {
        fs::set_permissions(path, fs::Permissions::from_mode(0o700))
            .map_err(|error| cannot("protect", path, &error))?;
    }
    Ok(())
}

fn lock(directory: &Path) -> Result<File, RunDirectoryError> {
    let path = directory.join(LOCK_NAME);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    loop {
        let mut file = options.open(&path).map_err(|error| cannot("open the lock in", directory, &error))?;
        // SAFETY: flock takes plain numbers; the descriptor is open.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(taken(directory, &mut file));
        }
        // A server that ends removes the file while it holds the lock. Whoever opened it before has locked a file
        // without a name, and tries again.
        let ours = file.metadata().map(|metadata| metadata.ino()).ok();
        if fs::metadata(&path).map(|metadata| metadata.ino()).ok() == ours {
            let identity = format!("{}\n", std::process::id());
            let written = file.set_len(0).and_then(|()| file.write_all(identity.as_bytes()));
            return written.map(|()| file).map_err(|error| cannot("write the lock in", directory, &error));
        }
    }
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

/// Only the holder of the lock gets here, so that every sub-directory is that of a server which is gone.
fn clear_stale(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let ours = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
        if !ours || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        for socket in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            clear_path(&socket.path());
        }
        fs::remove_dir(entry.path()).ok();
    }
}

/// A name that no earlier start had: the guard of a killed server may still be at work in its own.
fn make_fresh(path: &Path) -> io::Result<PathBuf> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let mut stamp = since.as_micros() as u32;
    loop {
        let fresh = path.join(format!("{PREFIX}{stamp:08x}"));
        match DirBuilder::new().mode(0o700).create(&fresh) {
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
    use std::os::unix::net::UnixListener;

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
    fn only_this_user_can_get_in() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("run");
        let directory = RunDirectory::open(&path).unwrap();
        for made in [directory.path(), directory.sockets()] {
            assert_eq!(fs::metadata(made).unwrap().mode() & 0o777, 0o700);
        }
        drop(directory);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
        let directory = RunDirectory::open(&path).unwrap();
        assert_eq!(fs::metadata(directory.path()).unwrap().mode() & 0o777, 0o700);
        drop(directory);
        assert!(path.exists(), "a directory that was there before stays");
    }

    #[test]
    fn dead_sockets_of_earlier_servers_go_and_living_ones_stay() {
        let root = tempfile::tempdir().unwrap();
        let (old, living) = (root.path().join("run-1"), root.path().join("run-2"));
        fs::create_dir(&old).unwrap();
        fs::create_dir(&living).unwrap();
        drop(UnixListener::bind(old.join("web.sock")).unwrap());
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
