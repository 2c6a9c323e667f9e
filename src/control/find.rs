//! Which server is meant: from what was said to a connection.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use super::client::{Trouble, UNREACHABLE, is_silence};
use super::{OWN_PART, SOCKET_NAME};
use crate::config::{Search, ServerPlace};

/// How long to wait for a place in the socket's backlog.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Exit codes of sysexits(3): EX_USAGE and EX_NOPERM.
const SEVERAL: u8 = 64;
const PERMISSION: u8 = 77;

/// A connection to the server that is meant.
///
/// # Errors
/// When none runs there, several may be meant, or the user may not.
pub fn connect(place: &ServerPlace) -> Result<UnixStream, Trouble> {
    match place {
        ServerPlace::Socket(path) => open(path).map_err(|error| trouble(path, &error)),
        ServerPlace::Directory(directory) => {
            let path = socket_in(directory);
            open(&path).map_err(|error| trouble(&path, &error))
        }
        ServerPlace::Likely(directory, searches) => {
            let path = socket_in(directory);
            match open(&path) {
                Err(error) if is_absent(&error) => only_one(&path, searches),
                connected => connected.map_err(|error| trouble(&path, &error)),
            }
        }
    }
}

/// The control socket of a run directory, which may lie in the server's own part of it.
fn socket_in(directory: &Path) -> PathBuf {
    let (path, own) = (directory.join(SOCKET_NAME), directory.join(OWN_PART).join(SOCKET_NAME));
    if !path.exists() && own.exists() { own } else { path }
}

/// The only server in the usual places; `likely` is where there is none.
fn only_one(likely: &Path, searches: &[Search]) -> Result<UnixStream, Trouble> {
    let mut found: Vec<(PathBuf, UnixStream)> = Vec::new();
    let mut refused = None;
    for directory in searches.iter().flat_map(directories) {
        let path = socket_in(&directory);
        match open(&path) {
            Ok(stream) => found.push((directory, stream)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused = Some(trouble(&path, &error)),
            Err(_) => {}
        }
    }
    if found.len() > 1 {
        let names: Vec<String> =
            found.iter().map(|(directory, _)| format!("\n  --run-dir {}", directory.display())).collect();
        return Err(Trouble::new(SEVERAL, format!("several servers run, say which one is meant:{}", names.concat())));
    }
    match found.pop() {
        Some((_, stream)) => Ok(stream),
        None => Err(refused.unwrap_or_else(|| trouble(likely, &io::ErrorKind::NotFound.into()))),
    }
}

/// The run directories of a place, in order.
fn directories(search: &Search) -> Vec<PathBuf> {
    let entries = fs::read_dir(&search.parent).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&search.prefix))
        .filter(|entry| {
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_dir);
            metadata.is_some_and(|metadata| search.owner.is_none_or(|owner| owner == metadata.uid()))
        })
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

fn open(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Of a Unix socket this bounds the connect, too.
    socket.set_write_timeout(Some(CONNECT_PATIENCE))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket)))
}

/// Whether the error says that no server is there.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused | io::ErrorKind::NotADirectory)
}

fn trouble(path: &Path, error: &io::Error) -> Trouble {
    let name = path.display();
    if is_absent(error) {
        return Trouble { absent: true, ..Trouble::new(UNREACHABLE, format!("no server runs at {name}")) };
    }
    let code = if error.kind() == io::ErrorKind::PermissionDenied { PERMISSION } else { UNREACHABLE };
    let silent = is_silence(error);
    Trouble { silent, ..Trouble::new(code, format!("cannot reach the server at {name}: {error}")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn listen(directory: &Path) -> UnixListener {
        fs::create_dir_all(directory).unwrap();
        UnixListener::bind(directory.join(SOCKET_NAME)).unwrap()
    }

    #[test]
    fn a_server_that_keeps_to_its_own_part_is_found() {
        let root = tempfile::tempdir().unwrap();
        let place = ServerPlace::Directory(root.path().to_owned());
        let nobody = connect(&place).unwrap_err();
        assert_eq!(nobody.line, format!("no server runs at {}", root.path().join(SOCKET_NAME).display()));
        let own = listen(&root.path().join(OWN_PART));
        connect(&place).unwrap();
        own.accept().unwrap();
    }

    #[test]
    fn without_a_word_the_only_server_is_meant() {
        let root = tempfile::tempdir().unwrap();
        let owner = fs::metadata(root.path()).unwrap().uid();
        let place = |name: &str| root.path().join(name);
        let search =
            |owner| Search { parent: root.path().to_owned(), prefix: "server-".to_owned(), owner: Some(owner) };
        let likely = |searches| ServerPlace::Likely(place("server-8080"), searches);
        let nobody = connect(&likely(vec![search(owner)])).unwrap_err();
        assert!(nobody.absent && nobody.code == UNREACHABLE);
        assert_eq!(nobody.line, format!("no server runs at {}", place("server-8080").join(SOCKET_NAME).display()));

        // One that is dead, one whose name is another's, and one that lives.
        drop(listen(&place("server-1")));
        let _other = listen(&place("other-1"));
        let living = listen(&place("server-2"));
        connect(&likely(vec![search(owner)])).unwrap();
        living.accept().unwrap();
        assert!(connect(&likely(vec![search(owner + 1)])).unwrap_err().absent, "another user's");

        let _second = listen(&place("server-3"));
        let several = connect(&likely(vec![search(owner)])).unwrap_err();
        assert_eq!(several.code, SEVERAL);
        let [two, three] = ["server-2", "server-3"].map(|name| place(name).display().to_string());
        let line = format!("several servers run, say which one is meant:\n  --run-dir {two}\n  --run-dir {three}");
        assert_eq!(several.line, line);

        // The likely one wins, however many others there are.
        let likely_one = listen(&place("server-8080"));
        connect(&likely(vec![search(owner)])).unwrap();
        likely_one.accept().unwrap();
    }
}
