//! Whether a worker's command can be found and run, before anything is started, and what to say where it cannot.
//!
//! A command is words, as execvp(3) takes them, and no shell reads it. What people write for a shell (one quoted line, a variable in
//! front) is known by its look, and the message shows the line that works.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Characters that mean something to a shell, and nothing to a program.
const OF_SHELLS: &[char] = &['|', '&', ';', '<', '>', '(', ')', '$', '`', '"', '\'', '\\', '*', '?', '[', '~', '#'];

/// Whether a command can be found and run. A path is relative to `directory`, or where there is none, to where the server started.
///
/// # Errors
/// One sentence that names the program and what is wrong with it, and where that is known, the line that works.
pub fn check(command: &[OsString], directory: Option<&Path>) -> Result<(), String> {
    let program = command.first().map(OsString::as_os_str).unwrap_or_default();
    check_program(program, directory).map_err(|error| explain_as_shell(command, directory).unwrap_or(error))
}

fn check_program(program: &OsStr, directory: Option<&Path>) -> Result<(), String> {
    let name = program.to_string_lossy();
    if program.is_empty() {
        return Err("the worker's command is empty".to_owned());
    }
    if name.contains('/') {
        let path = &directory.unwrap_or(Path::new("")).join(program);
        return match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("cannot run `{name}`: there is no such file"))
            }
            Err(error) => Err(format!("cannot run `{name}`: {error}")),
            Ok(metadata) if metadata.is_dir() => Err(format!("cannot run `{name}`: it is a directory")),
            Ok(_) if !may_execute(path) => Err(format!("cannot run `{name}`: it is not executable (chmod +x)")),
            Ok(_) => Ok(()),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
    let mut candidates = std::env::split_paths(&path).map(|directory| directory.join(program));
    if candidates.any(|candidate| candidate.is_file() && may_execute(&candidate)) {
        return Ok(());
    }
    Err(format!("cannot run `{name}`: not found in PATH; install it, or give its path"))
}

fn may_execute(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path is a string that ends in NUL and outlives the call.
    unsafe { libc::access(path.as_ptr(), libc::X_OK) == 0 }
}

/// What to say about a command that cannot be run and that looks as if it were for a shell; `None`: it does not.
fn explain_as_shell(command: &[OsString], directory: Option<&Path>) -> Option<String> {
    let (first, others) = command.split_first()?;
    let first = first.to_str()?;
    let behind: String = others.iter().map(|word| format!(" {}", quoted(&word.to_string_lossy()))).collect();
    let words: Vec<&str> = first.split_whitespace().collect();
    if is_assignment(words.first()?) {
        let line = if first.contains(OF_SHELLS) { quoted(first) } else { words.join(" ") };
        let line = if line.starts_with('\'') { format!("sh -c {line}{behind}") } else { format!("env {line}{behind}") };
        return Some(format!("cannot run `{first}`: a variable is set by env or a shell: `-- {line}`"));
    }
    if words.len() < 2 {
        return None;
    }
    if first.contains(OF_SHELLS) || words[0] == "cd" {
        return Some(format!(
            "cannot run `{first}`: it is one word, and no shell reads it; with one: `-- sh -c {}{behind}`",
            quoted(first)
        ));
    }
    let line = words.join(" ");
    let missing = match check_program(OsStr::new(words[0]), directory) {
        Ok(()) => String::new(),
        Err(error) => format!("; and {error}"),
    };
    Some(format!("cannot run `{first}`: it is one word; without the quotes around it: `-- {line}{behind}`{missing}"))
}

/// `NAME=value`, as a shell takes it in front of a command.
fn is_assignment(word: &str) -> bool {
    let is_name = |name: &str| {
        name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
            && name.starts_with(|letter: char| letter.is_ascii_alphabetic() || letter == '_')
    };
    word.split_once('=').is_some_and(|(name, _)| is_name(name))
}

/// A word as it is written for a shell.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_alphanumeric() || "-_./:=,@%+{}".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(words: &[&str]) -> String {
        check(&words.iter().map(OsString::from).collect::<Vec<_>>(), None).unwrap_err()
    }

    #[test]
    fn a_command_that_cannot_run_is_named() {
        assert_eq!(check(&["sh".into()], None), Ok(()));
        assert_eq!(check(&["/bin/sh".into(), "-c".into(), "a; b".into()], None), Ok(()));
        assert!(refusal(&[]).contains("empty"));
        for (program, expected) in [
            ("no-such-command-here", "not found in PATH"),
            ("/no/such/file", "no such file"),
            ("/etc/passwd", "not executable"),
            ("/etc/", "directory"),
        ] {
            let said = refusal(&[program]);
            assert!(said.contains(expected) && said.contains(program), "{said}");
        }
    }

    #[test]
    fn a_command_in_quotes_is_shown_without_them() {
        for (words, expected) in [
            (&["sh server.js"][..], "it is one word; without the quotes around it: `-- sh server.js`"),
            (&["  sh   -x "], "`-- sh -x`"),
            (&["/bin/sh server.js"], "`-- /bin/sh server.js`"),
            (&["sh server.js", "--name", "a b"], "`-- sh server.js --name 'a b'`"),
            (&["cd app && exec sh x"], "no shell reads it; with one: `-- sh -c 'cd app && exec sh x'`"),
            (&["cd app"], "`-- sh -c 'cd app'`"),
            (&["sh x --name 'a b'"], r"`-- sh -c 'sh x --name '\''a b'\'''`"),
            (&["sh x > log"], "`-- sh -c 'sh x > log'`"),
            (&["MODE=x", "sh", "a b"], "a variable is set by env or a shell: `-- env MODE=x sh 'a b'`"),
            (&["MODE=x sh y"], "`-- env MODE=x sh y`"),
            (&["MODE=x sh y; z"], "`-- sh -c 'MODE=x sh y; z'`"),
        ] {
            let said = refusal(words);
            assert!(said.contains(expected) && said.starts_with("cannot run `"), "{said}");
            assert!(!said.contains("install it"), "{said}");
        }
        let missing = refusal(&["no-such-command-here x"]);
        assert!(missing.contains("without the quotes") && missing.contains("not found in PATH"), "{missing}");
    }

    #[test]
    fn a_program_with_a_blank_in_its_name_is_run() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("my server");
        std::fs::write(&path, "#!/bin/sh\n").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(check(&[path.into()], None), Ok(()));
        let relative = [OsString::from("./my server")];
        assert_eq!(check(&relative, Some(directory.path())), Ok(()));
        assert!(check(&relative, None).is_err());
    }
}
