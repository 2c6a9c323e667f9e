//! Where the configuration file lies, and its text, read so that nothing that is named by mistake can block or fill the memory.

use std::cmp::Reverse;
use std::ffi::OsString;
use std::fs::{Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::arguments::{Refusal, WRONG_CONFIGURATION, quoted};
use super::super::environment::Environment;

/// Exit code for an input file that cannot be read (EX_NOINPUT of sysexits(3)).
pub const UNREADABLE: u8 = 66;
/// Exit code for what may not be used (EX_NOPERM of sysexits(3)).
const NOT_PERMITTED: u8 = 77;
/// The variable that names the file.
pub const VARIABLE: &str = "PRODUCTION_SERVER_CONFIG";
/// The file's name where none is said.
pub const NAME: &str = "production_server.toml";
/// What is written in the place of a path when no file is to be read.
pub const NONE: &str = "none";
/// The largest file that is read, in bytes.
pub const LARGEST: u64 = 1 << 20;
/// The shortest value that is hidden, in bytes: what is shorter is no secret, and stands in other words.
const LEAST_HIDDEN: usize = 4;

/// The text of a file and where it came from.
#[derive(Clone, Debug, Default)]
pub struct Text {
    /// As it was said, or where it was found.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
    /// What it does not say itself.
    hidden: Vec<Hidden>,
}

/// Something that came into a value from elsewhere, which may be a secret.
#[derive(Clone, Debug)]
struct Hidden {
    /// Where the value stands, in bytes of the text.
    at: Range<usize>,
    value: String,
    /// How the file has it: `${VARIABLE}`, or `file:PATH`.
    written: String,
}

impl Text {
    /// The text of a file.
    pub fn new(path: PathBuf, text: String) -> Text {
        Text { path, text, hidden: Vec::new() }
    }

    /// Keeps that the value at that place has something in it that is not to be printed.
    pub(super) fn hide(&mut self, at: &Range<usize>, value: &str, written: &str) {
        if value.len() >= LEAST_HIDDEN {
            self.hidden.push(Hidden { at: at.clone(), value: value.to_owned(), written: written.to_owned() });
        }
    }

    /// What is said of some places, with what came into their values from elsewhere as the file writes it.
    pub fn as_written(&self, said: &str, places: &[(Range<usize>, String)]) -> String {
        let is_meant = |hidden: &&Hidden| {
            places.iter().any(|(place, _)| place.start < hidden.at.end && hidden.at.start < place.end)
        };
        let mut hidden: Vec<&Hidden> = self.hidden.iter().filter(is_meant).collect();
        // Of two the shorter one may be a part of the other.
        hidden.sort_by_key(|hidden| Reverse(hidden.value.len()));
        hidden.iter().fold(said.to_owned(), |said, hidden| {
            // As it is, and as it is quoted: between marks of its own, `'` stands as it is.
            let (escaped, quoted) = (hidden.value.escape_debug().to_string(), format!("{:?}", hidden.value));
            let forms = [&hidden.value[..], &escaped, &quoted[1..quoted.len() - 1]];
            forms.iter().fold(said, |said, form| said.replace(form, &hidden.written))
        })
    }
}

/// The file that holds: the one that is named, else the first that is there. `None`: there is none, or none is wanted.
///
/// # Errors
/// A named file that is not there; one that is there and cannot be read.
pub fn find(named: Option<&OsString>, environment: &Environment) -> Result<Option<Text>, Refusal> {
    let place = named.map(|path| ("--config", path.as_os_str()));
    let place = place.or_else(|| environment.value(VARIABLE).map(|path| (VARIABLE, path)));
    if let Some((by, path)) = place {
        if path == NONE {
            return Ok(None);
        }
        let said = |what: String| format!("{by} {}: {what}", quoted(path));
        return read(Path::new(path))
            .and_then(filled)
            .map(Some)
            .map_err(|(what, exit_code)| Refusal { line: format!("error: {}", said(what)), exit_code });
    }
    for path in usual(environment) {
        if !is_there(&path) {
            continue;
        }
        let refuse = |what: String, exit_code| {
            Err(Refusal { line: format!("error: {}: {what}", quoted(path.as_os_str())), exit_code })
        };
        if planted(&path, environment) {
            let what = "it lies where everybody may write, and is another user's: name it with --config if you mean it";
            return refuse(what.to_owned(), NOT_PERMITTED);
        }
        return match read(&path).and_then(filled) {
            Ok(text) => Ok(Some(text)),
            Err((what, exit_code)) => refuse(what, exit_code),
        };
    }
    Ok(None)
}

/// Where a file is looked for, in this order.
pub fn usual(environment: &Environment) -> Vec<PathBuf> {
    let own = environment.value("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let own = own.or_else(|| environment.value("HOME").map(|home| Path::new(home).join(".config")));
    let own = own.map(|directory| directory.join("production_server").join(NAME));
    let system = PathBuf::from("/etc/production_server").join(NAME);
    std::iter::once(PathBuf::from(NAME)).chain(own).chain([system]).collect()
}

/// A directory that may not even be looked into, as another user's home after sudo(8), has no file for us.
fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

/// Whether somebody else may have put the file there for us to find: it is not ours or root's, in a directory such as /tmp.
fn planted(path: &Path, environment: &Environment) -> bool {
    const WRITABLE_BY_ALL: u32 = 0o002;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let open = std::fs::metadata(directory).is_ok_and(|directory| directory.mode() & WRITABLE_BY_ALL != 0);
    let owner = |metadata: Metadata| metadata.uid();
    open && std::fs::symlink_metadata(path).map(owner).is_ok_and(|owner| owner != 0 && owner != environment.user())
}

/// Reads a file of at most [`LARGEST`] bytes in UTF-8, or says what is wrong and with which exit code.
pub fn read(path: &Path) -> Result<Text, (String, u8)> {
    let cannot = |error: std::io::Error| {
        let what = match error.kind() {
            ErrorKind::NotFound => "there is no such file".to_owned(),
            ErrorKind::PermissionDenied => "this user may not read it".to_owned(),
            _ => format!("it cannot be read: {error}"),
        };
        (what, UNREADABLE)
    };
    // Opening a pipe that nobody writes to would wait for ever.
    let open = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    let file = open.map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    if metadata.is_dir() {
        return Err(("it is a directory: expected a file".to_owned(), UNREADABLE));
    }
    if !metadata.is_file() {
        return Err(("it is no regular file: expected one, and no pipe, socket or device".to_owned(), UNREADABLE));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > LARGEST {
        return Err(("it is larger than 1 MiB: expected a configuration file".to_owned(), WRONG_CONFIGURATION));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Text::new(path.to_owned(), text)),
        Err(error) => {
            let fine = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = fine.iter().filter(|byte| **byte == b'\n').count() + 1;
            let start = fine.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
            let column = String::from_utf8_lossy(&fine[start..]).chars().count() + 1;
            let byte = error.as_bytes()[fine.len()];
            let what = format!("line {line}, column {column}: the byte 0x{byte:02x} is not UTF-8");
            Err((what, WRONG_CONFIGURATION))
        }
    }
}

/// A file without a word: one that is just being written, or that a full disk has cut. To take it for a file that wants all defaults
/// would put the demo worker in a site's place. One of comments alone says that it wants them.
fn filled(text: Text) -> Result<Text, (String, u8)> {
    match text.text.trim_start_matches('\u{feff}').trim().is_empty() {
        true => Err((format!("it is empty: expected a configuration, or {NONE:?} in its place"), WRONG_CONFIGURATION)),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn environment(variables: &[(&str, &Path)]) -> Environment {
        variables.iter().map(|(name, path)| (OsString::from(name), OsString::from(path))).collect()
    }

    #[test]
    fn the_named_file_holds_and_else_the_first_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("production_server");
        std::fs::create_dir(&own).unwrap();
        let surroundings = environment(&[("XDG_CONFIG_HOME", folder.path())]);
        assert_eq!(find(None, &surroundings).unwrap().map(|text| text.path), None);
        std::fs::write(own.join(NAME), "# own").unwrap();
        assert_eq!(find(None, &surroundings).unwrap().unwrap().text, "# own");
        let named = folder.path().join("named.toml");
        std::fs::write(&named, "# named").unwrap();
        let by_variable = environment(&[("XDG_CONFIG_HOME", folder.path()), (VARIABLE, &named)]);
        assert_eq!(find(None, &by_variable).unwrap().unwrap().text, "# named");
        let flag = own.join(NAME).into_os_string();
        assert_eq!(find(Some(&flag), &by_variable).unwrap().unwrap().text, "# own");
        assert!(find(Some(&NONE.into()), &by_variable).unwrap().is_none());
        let home = environment(&[("HOME", folder.path())]);
        assert_eq!(usual(&home)[1], folder.path().join(".config/production_server").join(NAME));
    }

    #[test]
    fn what_is_no_file_is_refused_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let of = |path: &Path| read(path).unwrap_err();
        assert_eq!(of(&folder.path().join("nothing")), ("there is no such file".to_owned(), 66));
        assert!(of(folder.path()).0.contains("a directory") && of(folder.path()).1 == 66);
        assert!(of(&pipe).0.contains("no pipe") && of(&pipe).1 == 66);
        assert!(of(Path::new("/dev/zero")).0.contains("device"));
        let file = folder.path().join("file");
        std::fs::write(&file, vec![b'#'; LARGEST as usize + 1]).unwrap();
        assert_eq!(of(&file), ("it is larger than 1 MiB: expected a configuration file".to_owned(), 78));
        std::fs::write(&file, b"# \xc3\xa4\n\xc3\xa4\xff").unwrap();
        assert_eq!(of(&file), ("line 2, column 2: the byte 0xff is not UTF-8".to_owned(), 78));
        for nothing in ["", " \n\t\n", "\u{feff}\n"] {
            std::fs::write(&file, nothing).unwrap();
            let refused = find(Some(&file.clone().into_os_string()), &Environment::default()).unwrap_err();
            assert!(refused.exit_code == 78 && refused.line.contains("it is empty"), "{nothing:?}: {}", refused.line);
        }
    }

    #[test]
    fn a_file_that_anybody_could_have_put_there_is_not_taken_up() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("production_server");
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join(NAME), "# own").unwrap();
        std::fs::set_permissions(&own, PermissionsExt::from_mode(0o1777)).unwrap();
        let surroundings = environment(&[("XDG_CONFIG_HOME", folder.path())]);
        assert!(!planted(&own.join(NAME), &surroundings), "it is our own");
        assert!(find(None, &surroundings).unwrap().is_some());
        // Only root can make a file somebody else's.
        if std::os::unix::fs::chown(own.join(NAME), Some(54_321), None).is_ok() {
            assert_eq!(find(None, &surroundings).unwrap_err().exit_code, 77);
            std::fs::set_permissions(&own, PermissionsExt::from_mode(0o755)).unwrap();
            assert!(find(None, &surroundings).unwrap().is_some(), "in a directory of our own");
        }
    }
}
