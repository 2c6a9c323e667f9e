//! The file with the number of the process that serves. It is replaced whole, so that no reader ever sees half of a number, and removed at
//! the end by the process whose number it holds: after an upgrade that is another.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// More bytes than a process's number has.
const LONGEST: u64 = 32;

/// See the module.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    /// Whether this process's number was written there, and nothing has failed since.
    placed: bool,
    /// Whether it ever was.
    was_placed: bool,
}

impl PidFile {
    /// Writes this process's number down, in the place of another's. What stands where the fresh file is made, a link of somebody else's
    /// even, is taken away and not written through.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(path: &Path) -> io::Result<PidFile> {
        let mut file = PidFile::at(path);
        file.place().map(|()| file)
    }

    /// The file there, not written yet.
    pub fn at(path: &Path) -> PidFile {
        PidFile { path: path.to_owned(), placed: false, was_placed: false }
    }

    /// Writes it anew where it holds another's number, or is gone.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn take_back(&mut self) -> io::Result<()> {
        if self.is_ours() { Ok(()) } else { self.place() }
    }

    /// Writes it where that has failed before, or where somebody has removed it; whether it did. A number of another's that has come
    /// there since stays.
    ///
    /// # Errors
    /// When a file that was removed cannot be written; the second time that is no news.
    pub fn mend(&mut self) -> io::Result<bool> {
        let is_gone = fs::symlink_metadata(&self.path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        if self.was_placed && !is_gone {
            return Ok(false);
        }
        if self.placed { self.place().map(|()| true) } else { Ok(self.place().is_ok()) }
    }

    fn place(&mut self) -> io::Result<()> {
        let placed = place(&self.path);
        self.placed = placed.is_ok();
        self.was_placed |= self.placed;
        placed
    }

    fn is_ours(&self) -> bool {
        read(&self.path).unwrap_or_default().trim() == std::process::id().to_string()
    }
}

fn place(path: &Path) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    fs::remove_file(&fresh).ok();
    // For all to read and for nobody else to write, whatever the umask: whoever reads it sends a signal to that number.
    let mut file = File::options().write(true).create_new(true).mode(0o644).open(&fresh)?;
    let written = writeln!(file, "{}", std::process::id()).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        fs::remove_file(&fresh).ok();
    }
    written
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.is_ours() {
            fs::remove_file(&self.path).ok();
        }
    }
}

/// What lies there by now may be anything: a pipe that nobody writes to would be waited for at the end, for ever.
fn read(path: &Path) -> io::Result<String> {
    let mut held = String::new();
    File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?.take(LONGEST).read_to_string(&mut held)?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_one_whose_number_it_holds_removes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("server.pid");
        fs::write(&path, "1\n").unwrap();
        let file = PidFile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        drop(file);
        assert!(!path.exists());
        let mut file = PidFile::write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o022, 0);
        fs::write(&path, "1\n").unwrap();
        file.take_back().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        fs::write(&path, "1\n").unwrap();
        drop(file);
        assert!(path.exists(), "another's was removed");
        assert!(PidFile::write(&folder.path().join("nowhere/server.pid")).is_err());
        let others = folder.path().join("others");
        let fresh = folder.path().join(format!("server.pid.{}", std::process::id()));
        std::os::unix::fs::symlink(&others, fresh).unwrap();
        drop(PidFile::write(&path).unwrap());
        assert!(!others.exists(), "written through a link");
        fs::write(&path, "1\n").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_that_could_not_be_written_or_was_removed_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("later/server.pid");
        let mut file = PidFile::at(&path);
        assert!(file.take_back().is_err());
        assert!(!file.mend().unwrap(), "there is no directory yet, and that was said");
        fs::create_dir(folder.path().join("later")).unwrap();
        fs::write(&path, "1\n").unwrap();
        assert!(file.mend().unwrap(), "that of the server before this one");
        assert!(file.is_ours() && !file.mend().unwrap());
        fs::remove_file(&path).unwrap();
        assert!(file.mend().unwrap() && file.is_ours());
        fs::write(&path, "1\n").unwrap();
        assert!(!file.mend().unwrap(), "another's");
        fs::remove_dir_all(path.parent().unwrap()).unwrap();
        assert!(file.mend().is_err() && !file.mend().unwrap(), "it is said once");
    }
}
