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
pub struct PidFile(PathBuf);

impl PidFile {
    /// Writes this process's number down, in the place of another's. What stands where the fresh file is made, a link of somebody else's
    /// even, is taken away and not written through.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(path: &Path) -> io::Result<PidFile> {
        place(path).map(|()| PidFile(path.to_owned()))
    }

    /// Writes it anew where it holds another's number, or is gone.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn take_back(&self) -> io::Result<()> {
        if self.is_ours() { Ok(()) } else { place(&self.0) }
    }

    fn is_ours(&self) -> bool {
        read(&self.0).unwrap_or_default().trim() == std::process::id().to_string()
    }
}

fn place(path: &Path) -> io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    fs::remove_file(&fresh).ok();
    let mut file = File::options().write(true).create_new(true).open(&fresh)?;
    let written = writeln!(file, "{}", std::process::id()).and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        fs::remove_file(&fresh).ok();
    }
    written
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if self.is_ours() {
            fs::remove_file(&self.0).ok();
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
        let file = PidFile::write(&path).unwrap();
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
}
