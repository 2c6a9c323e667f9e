//! Pages that are shown in the place of the server's own errors: files that are read once, with the configuration.

use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The longest page, in bytes.
const LONGEST: u64 = 64 * 1024;

/// Endings of such files, each with its media type.
const TYPES: [(&str, &str); 4] = [
    ("html", "text/html; charset=utf-8"),
    ("htm", "text/html; charset=utf-8"),
    ("json", JSON),
    ("txt", "text/plain; charset=utf-8"),
];

const JSON: &str = "application/json";

/// A page.
#[derive(Clone, PartialEq, Eq)]
pub struct ErrorPage {
    /// The status that it is shown with, 400 to 599.
    pub status: u16,
    /// The file that it was read from.
    pub path: PathBuf,
    /// Its media type.
    pub media_type: &'static str,
    /// Its bytes, or why they cannot be had.
    pub body: Result<Arc<[u8]>, String>,
}

impl ErrorPage {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        self.body.as_deref().unwrap_or_default()
    }

    /// Whether it is for programs.
    pub fn is_json(&self) -> bool {
        self.media_type == JSON
    }
}

impl fmt::Debug for ErrorPage {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.status, self.path.display())
    }
}

/// Reads `STATUS=FILE`; the file is read when all is known.
pub(super) fn error_page(text: &str) -> Result<ErrorPage, String> {
    let (status, path) = text.split_once('=').ok_or("expected a status and the path of a file")?;
    let status = super::units::count(status, 400..=599).map_err(|_| "expected a status from 400 to 599")?;
    let path = Path::new(path);
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
    let media_type = TYPES.iter().find(|(known, _)| *known == ending).map(|(_, media_type)| *media_type);
    let media_type = media_type.ok_or("expected the path of a file that ends with .html, .json or .txt")?;
    Ok(ErrorPage { status: status as u16, path: path.to_owned(), media_type, body: Err(String::new()) })
}

impl ErrorPage {
    /// Reads its file.
    pub(super) fn read(&mut self) {
        self.body = contents(&self.path);
    }
}

fn contents(path: &Path) -> Result<Arc<[u8]>, String> {
    let cannot = |error: std::io::Error| error.to_string();
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if metadata.is_dir() {
        return Err("it is a directory: expected a file".to_owned());
    }
    if !metadata.is_file() {
        return Err("expected a file in its proper sense: no pipe, socket or device".to_owned());
    }
    if metadata.len() > LONGEST {
        return Err("expected a file of at most 64 KiB".to_owned());
    }
    let mut body = Vec::new();
    std::fs::File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut body)).map_err(cannot)?;
    Ok(body.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_read_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("a.html"), "page").unwrap();
        std::fs::write(path("long.html"), vec![b'a'; 64 * 1024 + 1]).unwrap();
        std::fs::create_dir(path("folder.html")).unwrap();
        nix::unistd::mkfifo(&folder.path().join("pipe.html"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (name, expected) in [
            ("a.html", Ok("page")),
            ("missing.html", Err("No such file")),
            ("long.html", Err("64 KiB")),
            ("folder.html", Err("a directory")),
            ("pipe.html", Err("no pipe")),
        ] {
            let mut page = error_page(&format!("404={}", path(name))).unwrap();
            page.read();
            match (&page.body, expected) {
                (Ok(body), Ok(text)) => assert_eq!(**body, *text.as_bytes()),
                (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
                (body, _) => panic!("{name}: {body:?}"),
            }
        }
        assert!(error_page("599=a.json").unwrap().is_json());
        assert!(!error_page("404=a.html").unwrap().is_json());
        for (text, what) in [
            ("200=a.html", "400 to 599"),
            ("600=a.html", "400 to 599"),
            ("x=a.html", "400 to 599"),
            ("404=a.png", ".html"),
            ("404=", ".html"),
            ("404", "a status"),
        ] {
            let error = error_page(text).unwrap_err();
            assert!(error.starts_with("expected") && error.contains(what), "{error}");
        }
    }
}
