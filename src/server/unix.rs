//! Listening on a Unix socket: its place, its mode and its owner.
//!
//! Mode and owner are set between bind(2) and listen(2). Until the socket listens every connect is refused, so that at no time
//! anybody else gets in.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

use nix::unistd::{Group, User};
use socket2::{Domain, SockAddr, Socket, Type};

use super::held::Patience;
use super::{BACKLOG, Listening, StartError, exit, refused};
use crate::config::{ListenAddress, UnixListen};
use crate::socket_file::{self, SocketFile};

/// Who the sockets are given to, as numbers; `None`: whoever runs the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Owner {
    user: Option<u32>,
    group: Option<u32>,
}

impl Owner {
    /// Gives a file to them.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn own(self, path: &Path) -> io::Result<()> {
        if self == Owner::default() { Ok(()) } else { lchown(path, self.user, self.group) }
    }

    /// Where nobody is named who was named `before`: whom the socket would belong to had it been made now.
    pub(super) fn or_maker(self, before: &UnixListen, path: &Path) -> Owner {
        let user = before.owner.is_some().then(|| nix::unistd::geteuid().as_raw());
        let group = before.group.is_some().then(|| group_of_new(path));
        Owner { user: self.user.or(user), group: self.group.or(group) }
    }

    /// Looks names up. A text that is a number is that number, known here or not.
    ///
    /// # Errors
    /// One line about a name that nobody has, with exit code 78.
    pub(super) fn find(unix: &UnixListen) -> Result<Owner, StartError> {
        let by_name = |name: &str| User::from_name(name).map(|user| user.map(|user| user.uid.as_raw()));
        let user = look_up("--listen-owner", "user", unix.owner.as_deref(), by_name)?;
        let by_name = |name: &str| Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw()));
        let group = look_up("--listen-group", "group", unix.group.as_deref(), by_name)?;
        Ok(Owner { user, group })
    }

    /// Puts the numbers in place of the names, so that [`Owner::find`] has nothing to look up. Names that nobody has stay.
    pub(super) fn number(unix: &mut UnixListen) {
        if let Ok(Owner { user, group }) = Owner::find(unix) {
            (unix.owner, unix.group) = (user.map(|user| user.to_string()), group.map(|group| group.to_string()));
        }
    }
}

/// The group of a file that is made there (inode(7), S_ISGID).
fn group_of_new(path: &Path) -> u32 {
    let directory = path.parent().and_then(|parent| fs::metadata(parent).ok());
    let inherited = directory.filter(|directory| directory.mode() & 0o2000 != 0).map(|directory| directory.gid());
    inherited.unwrap_or_else(|| nix::unistd::getegid().as_raw())
}

fn look_up(
    flag: &str,
    kind: &str,
    name: Option<&str>,
    by_name: impl FnOnce(&str) -> nix::Result<Option<u32>>,
) -> Result<Option<u32>, StartError> {
    let Some(name) = name else { return Ok(None) };
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let message = match by_name(name) {
        Ok(Some(number)) => return Ok(Some(number)),
        Ok(None) => format!("{flag} {name:?}: there is no such {kind} on this machine"),
        Err(error) => format!("{flag} {name:?}: the {kind} cannot be looked up: {error}"),
    };
    Err(StartError { message, code: exit::CONFIG })
}

/// Listens at a path. What a dead server left there goes; anything else stays, and is an error.
pub(super) fn listen(path: &Path, mode: u32, owner: Owner, patience: Patience) -> Result<Listening, StartError> {
    let cannot = |error: io::Error, hint: &str| {
        let message = format!("cannot listen on unix:{}: {error}{hint}", path.display());
        refused(message, &error, exit::CANNOT_CREATE)
    };
    patience.open(|| socket_file::clear(path)).map_err(|error| cannot(error, ""))?;
    let bound = SockAddr::unix(path).and_then(|address| {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address)?;
        Ok((socket, SocketFile::of(path)?))
    });
    // From here on the file goes with `file`, also when something fails.
    let (socket, file) = bound.map_err(|error| cannot(error, ""))?;
    let hint = "; only root may give a socket to another user, and others only to a group of their own";
    owner.own(path).map_err(|error| cannot(error, hint))?;
    let protected = fs::set_permissions(path, Permissions::from_mode(mode));
    protected.and_then(|()| socket.listen(BACKLOG)).map_err(|error| cannot(error, ""))?;
    let address = ListenAddress::Unix(path.to_owned());
    let (asked, sockets) = (address.clone(), vec![socket.into()]);
    Ok(Listening { id: 0, asked, address, sockets, file: Some(file), admin: false, tls: None })
}
