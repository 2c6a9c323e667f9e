//! Values that lie elsewhere: `${VARIABLE}` in strings, and files for secrets, `{ file = "PATH" }` or `"file:PATH"`.
//!
//! A relative path is looked for where the server is started, as every path on the command line.

use std::path::Path;

use super::super::environment::Environment;
use super::find;

/// The largest file that a value is read from, in bytes.
const LARGEST_VALUE: usize = 64 * 1024;
/// What a string begins with that names a file.
pub const FILE: &str = "file:";

/// A string of the file with its variables put in. `${NAME:-text}` has the text where NAME is not set or empty, and `$${` is `${`. `put_in` gets each
/// value that came from elsewhere, and how it is written.
///
/// # Errors
/// The variable that is not set, or what is wrong with the braces.
pub fn expand(text: &str, environment: &Environment, mut put_in: impl FnMut(&str, &str)) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        if rest[..at].ends_with('$') {
            out.push_str(&rest[..at]);
            out.push('{');
            rest = &rest[at + 2..];
            continue;
        }
        out.push_str(&rest[..at]);
        let inside = &rest[at + 2..];
        let end = inside.find('}').ok_or("`${` without its `}`; `$${` stands for the characters themselves")?;
        let (name, default) = match inside[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&inside[..end], None),
        };
        let letters = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
        if name.is_empty() || name.starts_with(|letter: char| letter.is_ascii_digit()) || !name.chars().all(letters) {
            return Err("expected the name of a variable between `${` and `}`, as in ${HOME}".to_owned());
        }
        match (environment.value(name).map(|value| value.to_str()), default) {
            (Some(Some(value)), _) => {
                put_in(value, &rest[at..at + 2 + end + 1]);
                out.push_str(value);
            }
            (Some(None), _) => return Err(format!("{name} in the environment is not UTF-8")),
            (None, Some(default)) => out.push_str(default),
            (None, None) => return Err(format!("{name} is not set in the environment, or is empty")),
        }
        rest = &inside[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

/// What a file says, without the end of its last line.
///
/// # Errors
/// Why it cannot be had.
pub fn contents(path: &str) -> Result<String, String> {
    if path.is_empty() || path.contains('\0') {
        return Err("expected the path of a file".to_owned());
    }
    let text = find::read(Path::new(path)).map_err(|(what, _)| format!("{path}: {what}"))?.text;
    if text.len() > LARGEST_VALUE {
        return Err(format!("{path}: it is larger than 64 KiB: expected a file with one value"));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    #[test]
    fn variables_are_put_in() {
        let environment: Environment = [("A", "1"), ("B_2", "two"), ("E", "")]
            .map(|(name, value)| (name.into(), OsString::from(value)))
            .into_iter()
            .collect();
        for (text, expected) in [
            ("plain $A $", "plain $A $"),
            ("${A}${B_2}!", "1two!"),
            ("${X:-none} ${A:-none} ${E:-}", "none 1 "),
            ("$${A} costs $$5", "${A} costs $$5"),
            ("ä${A}ö", "ä1ö"),
        ] {
            assert_eq!(expand(text, &environment, |_, _| ()).as_deref(), Ok(expected), "{text}");
        }
        for (text, error) in [
            ("${X}", "X is not set"),
            ("${E}", "E is not set"),
            ("${A", "without its"),
            ("${}", "the name of a variable"),
            ("${1A}", "the name of a variable"),
            ("${A B}", "the name of a variable"),
            ("${${A}}", "the name of a variable"),
        ] {
            assert!(expand(text, &environment, |_, _| ()).unwrap_err().contains(error), "{text}");
        }
    }

    #[test]
    fn a_file_is_one_value() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let of = |text: &str| {
            std::fs::write(&path, text).unwrap();
            contents(path.to_str().unwrap())
        };
        assert_eq!(of("value\n").as_deref(), Ok("value"));
        assert_eq!(of(" two\nlines\r\n").as_deref(), Ok(" two\nlines"));
        assert!(of(&"x".repeat(LARGEST_VALUE + 1)).unwrap_err().contains("larger than 64 KiB"));
        assert!(contents("").is_err());
        assert!(contents(folder.path().to_str().unwrap()).unwrap_err().contains("a directory"));
    }
}
