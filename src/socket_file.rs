//! Files of Unix sockets: when one may be removed, and when not.
//!
//! Rules:
//! - What is no socket is never removed.
//! - A socket is cleared away only when a connect to it is refused: nobody listens there.
//! - A server that hands its work over gives the file away with the socket ([`SocketFile::give_away`]).
//! - At the end only the own file goes, known by device, inode and birth: another server may have taken the path meanwhile.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use serde::{Deserialize, Serialize};

use socket2::{Domain, SockAddr, Socket, Type};

/// The file of a socket. Removed when dropped, if it is this process's to remove and still that one.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Identity,
    ours: bool,
}

/// What tells one file from another. Inodes are used again, so the birth counts where the file system knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
    /// Nanoseconds since 1970.
    born: Option<u64>,
}

/// Takes the right to connect from all but this user, where a socket lies at that path itself: where somebody has put a link there, what
/// it leads to is none of ours.
pub fn close_to_others(path: &Path) {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        let (mode, flag) = (Mode::S_IRUSR | Mode::S_IWUSR, FchmodatFlags::NoFollowSymlink);
        // Where the system cannot do it without following, the directory alone has to do.
        fchmodat(AT_FDCWD, path, mode, flag).ok();
    }
}

impl SocketFile {
    /// Takes over the file of a socket that was just bound there.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn of(path: &Path) -> io::Result<SocketFile> {
        let identity = identity(&fs::symlink_metadata(path)?);
        Ok(SocketFile { path: path.to_path_buf(), identity, ours: true })
    }

    /// The file of an inherited socket: another process's, until it is taken over.
    pub fn inherited(path: &Path, identity: Identity) -> SocketFile {
        SocketFile { path: path.to_path_buf(), identity, ours: false }
    }

    /// What tells it from another file that may come to lie there.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// From now on it is this process's to remove.
    pub fn take_over(&mut self) {
        self.ours = true;
    }

    /// From now on it is another's, who has the socket.
    pub fn give_away(&mut self) {
        self.ours = false;
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it lies there still, and nothing else.
    pub fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|metadata| identity(&metadata) == self.identity)
    }

    /// Removes it, unless something else lies there by now.
    pub fn remove(&self) {
        if self.is_there() {
            // Gone already is as good.
            fs::remove_file(&self.path).ok();
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.ours {
            self.remove();
        }
    }
}

/// Makes room for a socket at a path: removes one that nobody listens on.
///
/// # Errors
/// `AddrInUse` when somebody listens there, or may; `AlreadyExists` when something else than a socket lies there.
pub fn clear(path: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        let message = format!("{} is there and is no socket: move it away", path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    match answers(path) {
        false => fs::remove_file(path)
            .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }),
        true => Err(io::Error::new(io::ErrorKind::AddrInUse, format!("another server listens at {}", path.display()))),
    }
}

/// What lies at a path, whatever it is.
///
/// # Errors
/// When nothing does, or it may not be looked at.
pub fn identity_at(path: &Path) -> io::Result<Identity> {
    fs::symlink_metadata(path).map(|metadata| identity(&metadata))
}

fn identity(metadata: &Metadata) -> Identity {
    let since = metadata.created().ok().and_then(|born| born.duration_since(SystemTime::UNIX_EPOCH).ok());
    let born = since.and_then(|since| u64::try_from(since.as_nanos()).ok());
    Identity { device: metadata.dev(), inode: metadata.ino(), born }
}

/// Whether somebody may listen on a socket, found out without waiting: a full backlog (EAGAIN) is somebody, and so is what cannot be asked.
pub fn answers(path: &Path) -> bool {
    let is_nobody =
        |error: io::Error| matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
    !knock(path).is_err_and(is_nobody)
}

/// Whether somebody listens on a socket for certain, found out without waiting.
pub fn takes_connections(path: &Path) -> bool {
    !knock(path).is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
}

fn knock(path: &Path) -> io::Result<()> {
    let address = SockAddr::unix(path)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&address)
}

/// Leaves the file of a socket that nobody listens on, as a process that was killed does. Nobody ever has: a listener that was closed
/// may live on for a moment in a child that is just being started.
///
/// # Errors
/// When the file cannot be made.
pub fn leave_dead(path: &Path) -> io::Result<()> {
    Socket::new(Domain::UNIX, Type::STREAM, None)?.bind(&SockAddr::unix(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener};

    use super::*;

    #[test]
    fn a_socket_is_closed_to_others_and_nothing_that_a_link_leads_to() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        let mode = |name: &str| fs::metadata(place(name)).unwrap().mode() & 0o777;
        let _sockets = ["own", "shared"].map(|name| UnixListener::bind(place(name)).unwrap());
        fs::write(place("file"), "").unwrap();
        for name in ["own", "shared", "file"] {
            fs::set_permissions(place(name), fs::Permissions::from_mode(0o666)).unwrap();
        }
        symlink(place("shared"), place("link")).unwrap();
        ["own", "link", "file"].iter().for_each(|name| close_to_others(&place(name)));
        assert_eq!((mode("own"), mode("shared"), mode("file")), (0o600, 0o666, 0o666));
    }

    #[test]
    fn only_what_nobody_listens_on_is_cleared_away() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        clear(&place("nothing")).unwrap();

        leave_dead(&place("dead")).unwrap();
        clear(&place("dead")).unwrap();
        assert!(!place("dead").exists());

        let _alive = UnixListener::bind(place("alive")).unwrap();
        let _datagrams = UnixDatagram::bind(place("datagrams")).unwrap();
        fs::write(place("file"), "kept").unwrap();
        std::os::unix::fs::symlink(place("dead"), place("link")).unwrap();
        for (name, kind) in [
            ("alive", io::ErrorKind::AddrInUse),
            ("datagrams", io::ErrorKind::AddrInUse),
            ("file", io::ErrorKind::AlreadyExists),
            ("link", io::ErrorKind::AlreadyExists),
        ] {
            assert_eq!(clear(&place(name)).unwrap_err().kind(), kind, "{name}");
            assert!(fs::symlink_metadata(place(name)).is_ok(), "{name} is gone");
        }
    }

    #[test]
    fn the_own_file_goes_at_the_end_and_anothers_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        drop(SocketFile::of(&path).unwrap());
        assert!(!path.exists());
        drop(listener);

        let given = UnixListener::bind(&path).unwrap();
        let mut file = SocketFile::of(&path).unwrap();
        file.give_away();
        let mut inherited = SocketFile::inherited(&path, file.identity());
        drop((given, file));
        assert!(path.exists(), "it was given away");
        inherited.take_over();
        drop(inherited);
        assert!(!path.exists());

        let first = UnixListener::bind(&path).unwrap();
        let file = SocketFile::of(&path).unwrap();
        drop(first);
        fs::remove_file(&path).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        drop(file);
        assert!(path.exists(), "another's was removed");
        assert!(SocketFile::of(&folder.path().join("nothing")).is_err());
    }
}
