//! The file system, as helper threads see it: files are opened without leaving their root, and what has to be known of them is read.
//!
//! Files are opened without waiting (a FIFO would have one wait for its other end), and only regular ones are served.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use super::media;
use super::{Site, below, is_name};
use crate::config::Coding;
use crate::http::date;

/// How often a name is looked for anew while somebody renames directories on the way.
#[cfg(target_os = "linux")]
const RACES: usize = 8;

/// A file that is open.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: File,
    /// Its bytes, when it was opened.
    pub size: u64,
    /// Its entity tag, strong, with its quotes: of the times of its last change, that which may be set and that which may not, its size, and its
    /// number in the file system. A file that is made anew may have the number, the size and the set time of the one before it.
    pub etag: Box<[u8]>,
    /// When it was last changed, in seconds since 1970, and never later than when it was opened.
    pub modified: u64,
    /// The same as HTTP writes it.
    pub date: [u8; 29],
}

/// A file with its siblings that were compressed before.
#[derive(Debug)]
pub struct Served {
    /// Its media type.
    pub media_type: &'static str,
    /// The file.
    pub plain: Arc<Opened>,
    /// Its siblings.
    pub coded: Vec<(Coding, Arc<Opened>)>,
}

/// What lies behind a name.
#[derive(Clone, Debug)]
pub enum Look {
    /// A file.
    File(Arc<Served>),
    /// A directory, of which the name lacks the slash at its end.
    Directory,
    /// Nothing that is served.
    Missing,
    /// Nothing below the root, where an app has named it in full.
    Outside,
    /// Something that this user may not read.
    Forbidden,
    /// It cannot be told now: a disk that fails, no descriptor left, a root that is not there.
    Unavailable,
}

/// Looks for a name ([`Site::name`]), or for a path of the file system with a slash more before it ([`Site::name_of_app`]). It may block for as long
/// as the file system likes.
pub fn look(site: &Site, name: &[u8]) -> Look {
    if name.is_empty() {
        return Look::Directory;
    }
    let root = match root(&site.files.root) {
        Ok(root) => root,
        Err(error) => return if error == Errno::EACCES { Look::Forbidden } else { Look::Unavailable },
    };
    if name.starts_with(b"//") {
        return in_full(site, &root, &name[1..]);
    }
    if name.ends_with(b"/") {
        let mut found = Look::Missing;
        for index in &site.files.index {
            found = file(&root, &[name, index.as_bytes()].concat());
            if !matches!(found, Look::Missing | Look::Directory) {
                return found;
            }
        }
        return if matches!(found, Look::Directory) { Look::Missing } else { found };
    }
    file(&root, name)
}

/// Looks for a path of the file system that is not below the root as it is configured, and may be below it as it is.
fn in_full(site: &Site, root: &OwnedFd, path: &[u8]) -> Look {
    let Ok(real) = site.files.root.canonicalize() else { return Look::Unavailable };
    match below(path, real.as_os_str().as_bytes()) {
        Some(name) if is_name(name) && !name.ends_with(b"/") => file(root, name),
        Some(_) => Look::Missing,
        None => Look::Outside,
    }
}

/// The root, to look for names in. A link on the way to it is followed anew each time, so that it can be switched over.
pub fn root(path: &Path) -> nix::Result<OwnedFd> {
    nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

fn file(root: &OwnedFd, name: &[u8]) -> Look {
    let plain = match open(root, name) {
        Ok(Some(plain)) => plain,
        Ok(None) => return Look::Directory,
        Err(error) => return failed(error),
    };
    let media_type = media::type_of(name);
    let mut coded = Vec::new();
    if media::is_compressible(media_type) {
        for coding in Coding::ALL {
            let sibling = open(root, &[name, coding.ending().as_bytes()].concat()).ok().flatten();
            coded.extend(sibling.map(|sibling| (coding, Arc::new(sibling))));
        }
    }
    Look::File(Arc::new(Served { media_type, plain: Arc::new(plain), coded }))
}

fn failed(error: Errno) -> Look {
    match error {
        Errno::ENOENT
        | Errno::ENOTDIR
        | Errno::ELOOP
        | Errno::EXDEV
        | Errno::ENAMETOOLONG
        | Errno::EINVAL
        | Errno::ENXIO => Look::Missing,
        Errno::EACCES | Errno::EPERM => Look::Forbidden,
        _ => Look::Unavailable,
    }
}

/// Opens what has that name below the root; `None`: it is a directory.
fn open(root: &OwnedFd, name: &[u8]) -> nix::Result<Option<Opened>> {
    let name = name.strip_prefix(b"/").unwrap_or(name);
    let file = File::from(beneath(root, name)?);
    let unavailable = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    let metadata = file.metadata().map_err(unavailable)?;
    if metadata.is_dir() {
        return Ok(None);
    }
    if !metadata.is_file() {
        return Err(Errno::ENOENT);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let modified = u64::try_from(metadata.mtime()).unwrap_or(0).min(now);
    let (size, number) = (metadata.len(), metadata.ino());
    let set = (metadata.mtime(), metadata.mtime_nsec());
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    let etag = format!("\"{:x}.{:x}-{:x}.{:x}-{size:x}-{number:x}\"", set.0, set.1, changed.0, changed.1);
    Ok(Some(Opened { file, size, etag: etag.into_bytes().into(), modified, date: date(modified) }))
}

const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

/// Opens what has that name below the root, and nothing else.
#[cfg(target_os = "linux")]
fn beneath(root: &OwnedFd, name: &[u8]) -> nix::Result<OwnedFd> {
    use nix::fcntl::{OpenHow, ResolveFlag, openat2};
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    for _ in 0..RACES {
        match openat2(root, name, OpenHow::new().flags(FLAGS).resolve(resolve)) {
            // Somebody renames a directory on the way.
            Err(Errno::EAGAIN) => {}
            // A kernel before 5.6, or a filter that does not know the call.
            Err(Errno::ENOSYS | Errno::EPERM) => return by_steps(root, name),
            outcome => return outcome,
        }
    }
    Err(Errno::EAGAIN)
}

#[cfg(not(target_os = "linux"))]
fn beneath(root: &OwnedFd, name: &[u8]) -> nix::Result<OwnedFd> {
    by_steps(root, name)
}

/// The same where the kernel cannot keep to the root: one directory after the other, and no link is followed.
fn by_steps(root: &OwnedFd, name: &[u8]) -> nix::Result<OwnedFd> {
    let mut directory: Option<OwnedFd> = None;
    let mut segments = name.split(|byte| *byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        if matches!(segment, b"" | b"." | b"..") {
            return Err(Errno::ENOENT);
        }
        let kind = if segments.peek().is_some() { OFlag::O_DIRECTORY } else { OFlag::empty() };
        let above = directory.as_ref().unwrap_or(root).as_fd();
        directory = Some(openat(above, segment, FLAGS | OFlag::O_NOFOLLOW | kind, Mode::empty())?);
    }
    directory.ok_or(Errno::ENOENT)
}

/// Reads so many bytes from a place of a file on, or as many as there are. It may block.
pub fn read(file: &File, at: u64, count: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count];
    let mut filled = 0;
    while filled < count {
        match file.read_at(&mut bytes[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::config::route::Files;

    /// A folder with a secret beside the root, and links of all kinds in it.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let root = path.join("root");
        for directory in ["root/a/b", "outside"] {
            std::fs::create_dir_all(path.join(directory)).unwrap();
        }
        for (name, text) in [("root/a/b/c.txt", "inside"), ("root/index.html", "home"), ("outside/secret", "secret")] {
            std::fs::write(path.join(name), text).unwrap();
        }
        symlink(path.join("outside"), root.join("absolute")).unwrap();
        symlink("../outside", root.join("relative")).unwrap();
        symlink("../outside/secret", root.join("file")).unwrap();
        symlink("a/b", root.join("inside")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("..", root.join("up")).unwrap();
        symlink("a/../..", root.join("winding")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRWXU).unwrap();
        folder
    }

    fn text(outcome: nix::Result<OwnedFd>) -> Result<String, Errno> {
        let file = File::from(outcome?);
        read(&file, 0, 100).map(|bytes| String::from_utf8(bytes).unwrap()).map_err(|_| Errno::EISDIR)
    }

    #[test]
    fn links_do_not_lead_out() {
        let folder = folder();
        let root = root(&folder.path().join("root")).unwrap();
        for (way, follows) in [(beneath as fn(&OwnedFd, &[u8]) -> _, cfg!(target_os = "linux")), (by_steps, false)] {
            assert_eq!(text(way(&root, b"a/b/c.txt")).as_deref(), Ok("inside"));
            assert_eq!(text(way(&root, b"inside/c.txt")).is_ok(), follows);
            for name in [
                "absolute/secret",
                "relative/secret",
                "file",
                "up/outside/secret",
                "winding/outside/secret",
                "inside/../../../outside/secret",
                "../outside/secret",
                "a/../../outside/secret",
                "loop",
                "loop/x",
                "/etc/passwd",
                "a/b/c.txt/",
                "a/b/c.txt/d",
                "missing",
                "",
            ] {
                assert!(text(way(&root, name.as_bytes())).is_err(), "{name}");
            }
        }
    }

    #[test]
    fn what_is_found_is_told() {
        let folder = folder();
        let root = folder.path().join("root");
        std::fs::write(root.join("index.html.gz"), "zipped").unwrap();
        std::fs::write(root.join("a/b/c.txt.zst"), "pressed").unwrap();
        let site = Site::new(&Files { root: root.clone(), ..Files::default() });
        let Look::File(home) = look(&site, b"/") else { panic!("the index is missing") };
        assert_eq!((home.media_type, home.plain.size), ("text/html; charset=utf-8", 4));
        assert_eq!(
            home.coded.iter().map(|(coding, file)| (*coding, file.size)).collect::<Vec<_>>(),
            [(Coding::Gzip, 6)]
        );
        let tags = [&home.plain.etag, &home.coded[0].1.etag];
        assert_ne!(tags[0], tags[1]);
        let Look::File(again) = look(&site, b"/index.html") else { panic!("it is there") };
        assert_eq!(&again.plain.etag, tags[0]);
        std::fs::write(root.join("index.html"), "else").unwrap();
        let Look::File(changed) = look(&site, b"/") else { panic!("it is there") };
        assert_ne!(&changed.plain.etag, tags[0]);
        for name in ["/a", "/a/b", ""] {
            assert!(matches!(look(&site, name.as_bytes()), Look::Directory), "{name}");
        }
        for name in
            ["/a/", "/x", "/fifo", "/a/b/c.txt/", "/index.html/x", "/relative/secret", &format!("/{}", "x".repeat(300))]
        {
            assert!(matches!(look(&site, name.as_bytes()), Look::Missing), "{name}");
        }
        let gone = Site::new(&Files { root: root.join("gone"), ..Files::default() });
        assert!(matches!(look(&gone, b"/"), Look::Unavailable));
        assert_eq!(read(&home.plain.file, 1, 2).unwrap(), b"ls");
        assert_eq!(read(&home.plain.file, 2, 100).unwrap(), b"se");
    }

    /// Of the same size, at the same place, and with the time of the one before it.
    #[test]
    fn a_file_that_was_given_another_ones_time_has_a_tag_of_its_own() {
        let folder = folder();
        let path = folder.path().join("root/index.html");
        let site = Site::new(&Files { root: folder.path().join("root"), ..Files::default() });
        let tag = || {
            let Look::File(found) = look(&site, b"/index.html") else { panic!("it is there") };
            found.plain.etag.clone()
        };
        let time = std::fs::metadata(&path).unwrap().modified().unwrap();
        let (before, changed) = (tag(), std::fs::metadata(&path).unwrap());
        // The clock of file systems goes in steps.
        while (changed.ctime(), changed.ctime_nsec()) == {
            let now = std::fs::metadata(&path).unwrap();
            (now.ctime(), now.ctime_nsec())
        } {
            std::fs::write(&path, "emoh").unwrap();
            std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        }
        assert_ne!(tag(), before);
    }

    #[test]
    fn a_path_in_full_is_below_the_root_as_it_is() {
        let folder = folder();
        let real = folder.path().canonicalize().unwrap();
        symlink("root", folder.path().join("current")).unwrap();
        let site = Site::new(&Files { root: folder.path().join("current"), ..Files::default() });
        let look = |path: &str| look(&site, format!("/{}/{path}", real.display()).as_bytes());
        assert!(matches!(look("root/a/b/c.txt"), Look::File(_)));
        for missing in ["root", "root/", "root/a/", "root/x", "root/.a", "root/../outside/secret"] {
            assert!(matches!(look(missing), Look::Missing), "{missing}");
        }
        for outside in ["outside/secret", "rooted/x", ""] {
            assert!(matches!(look(outside), Look::Outside), "{outside}");
        }
        assert!(matches!(look("root/a"), Look::Directory));
    }
}
