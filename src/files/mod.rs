//! Files that are served: which one a path names, and what of it a request gets. Sans-IO, but for `open`, which helper threads call.
//!
//! | file | what |
//! |---|---|
//! | `mod` | a place with files, and the way from a path to a name in it |
//! | `conditions` | what a request says of the representation that it wants: codings, If-*, and what follows from it |
//! | `ranges` | ranges of bytes, and several of them in one answer |
//! | `media` | media types by the ending of a name |
//! | `answer` | the head of an answer, and the pieces that its body consists of |
//! | `open` | the file system: opening without leaving the root, with what has to be known of a file |
//!
//! Rules:
//! - What a path names is decided on the path that routes are compared with: decoded once, one slash for many, dots resolved. So what is
//!   kept from others by a route cannot be had by another spelling.
//! - Nothing outside of the root is ever opened: not by dots, by links that lead out, or by a directory that is renamed meanwhile. That is
//!   the kernel's work (openat2(2)), and where it cannot do it, no link is followed.
//! - Names that begin with a dot are nobody's concern, but for `.well-known` (RFC 8615). There are no listings.

pub mod answer;
pub mod conditions;
pub mod media;
pub mod open;
pub mod ranges;

use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::config::route::Files;
use crate::http::route;

use open::Look;

/// The longest path that is looked for: as long as the kernel takes one.
const LONGEST_PATH: usize = 4000;

/// A place with files.
#[derive(Debug)]
pub struct Site {
    /// No other has had it before.
    pub number: u32,
    /// What is configured of it.
    pub files: Files,
    /// Not everybody may have what lies here, so that nobody keeps it for others.
    is_private: bool,
}

impl Site {
    /// The place of those files.
    pub fn new(files: &Files) -> Site {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Site { number: NEXT.fetch_add(1, Ordering::Relaxed), files: files.clone(), is_private: false }
    }

    /// The same where not everybody may have what lies there.
    pub fn private(files: &Files) -> Site {
        Site { is_private: true, ..Site::new(files) }
    }

    /// What a path, which routes were compared with, names here: beginning with a slash, and ending with one where it is a directory's;
    /// empty where it is the directory's of all but its slash. `None`: nothing that anybody may have.
    pub fn name<'a>(&self, path: &'a [u8]) -> Option<&'a [u8]> {
        let inside = path.strip_prefix(self.files.prefix.as_bytes());
        let inside = inside.filter(|rest| matches!(rest.first(), None | Some(b'/'))).unwrap_or(path);
        is_name(inside).then_some(inside)
    }

    /// What a path names that an app has written itself: `X-Accel-Redirect`'s is one of the server's, `X-Sendfile`'s one of the file system, or
    /// of the root. One of the file system that is not below the root as it is configured may be below it as it is, which only the file
    /// system tells: it is a name with a slash more before it. An error: what is known of it already.
    ///
    /// # Errors
    /// [`Look::Outside`], where it leads out of the root; [`Look::Missing`], where it names nothing that anybody may have.
    pub fn name_of_app(&self, value: &[u8], file_system: bool) -> Result<Vec<u8>, Look> {
        let decoded;
        let value = if file_system {
            value
        } else {
            decoded = route::decoded(route::before_query(value));
            &decoded
        };
        let is_whole = value.starts_with(b"/");
        let (path, climbs) = route::without_dots(value);
        if climbs || (!file_system && !is_whole) {
            return Err(Look::Outside);
        }
        let name = match file_system {
            true if is_whole => match below(&path, self.files.root.as_os_str().as_bytes()) {
                Some(name) => Some(name).filter(|name| is_name(name)),
                None => return Ok([b"/", &path[..]].concat()),
            },
            true => Some(&path[..]).filter(|name| is_name(name)),
            false => self.name(&path),
        };
        let name = name.filter(|name| name.last().is_some_and(|last| *last != b'/'));
        name.map(<[u8]>::to_vec).ok_or(Look::Missing)
    }

    /// Whether that is what takes the place of others.
    pub fn is_fallback(&self, name: &[u8]) -> bool {
        self.files.fallback.as_ref().is_some_and(|fallback| fallback.as_bytes() == name)
    }

    /// What is served where nothing has that name, for paths of an app in the browser: such as name no file, for these have an ending.
    pub fn fallback(&self, name: &[u8]) -> Option<&[u8]> {
        let fallback = self.files.fallback.as_ref()?.as_bytes();
        let last = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        (!last.contains(&b'.') && !self.is_fallback(name)).then_some(fallback)
    }

    /// What `Cache-Control` says of that name; empty for nothing.
    pub fn cache(&self, name: &[u8]) -> &str {
        let forever = self.files.immutable.iter().any(|pattern| matches(pattern.as_bytes(), name));
        match (forever, self.is_private) {
            (true, false) => "public, max-age=31536000, immutable",
            (true, true) => "private, max-age=31536000, immutable",
            (false, _) => &self.files.cache,
        }
    }
}

/// What a path of the file system names below a directory: beginning with a slash, and empty where it is the directory. `None`: it is not below it.
fn below<'a>(path: &'a [u8], directory: &[u8]) -> Option<&'a [u8]> {
    // Of one that is relative nobody knows here where it is.
    let (directory, _) = directory.starts_with(b"/").then(|| route::without_dots(directory))?;
    let inside = path.strip_prefix(directory.strip_suffix(b"/").unwrap_or(&directory))?;
    matches!(inside.first(), None | Some(b'/')).then_some(inside)
}

/// Whether that is a path to something that may be served.
fn is_name(path: &[u8]) -> bool {
    let mut segments = path.split(|byte| *byte == b'/');
    let first = segments.next();
    let mut segments = segments.peekable();
    let well_known = segments.peek() == Some(&&b".well-known"[..]);
    let is_fine = |(index, segment): (usize, &[u8])| {
        !segment.contains(&0) && (segment.first() != Some(&b'.') || (index == 0 && well_known))
    };
    // An empty segment is the end of a directory's path, and nothing else.
    let count = path.iter().filter(|byte| **byte == b'/').count();
    first == Some(b"")
        && path.len() <= LONGEST_PATH
        && segments
            .enumerate()
            .all(|(index, segment)| is_fine((index, segment)) && (!segment.is_empty() || index + 1 == count))
}

/// Whether a pattern, in which `*` stands for anything, is that of a name.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let mut parts = pattern.split(|byte| *byte == b'*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let mut parts: Vec<&[u8]> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = memchr::memmem::find(rest, part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::route::resolved;

    fn site(prefix: &str) -> Site {
        let files = Files { root: "/srv/www".into(), prefix: prefix.to_owned(), ..Files::default() };
        Site::new(&files)
    }

    /// What a target of a request names.
    fn name(target: &str, prefix: &str) -> Option<String> {
        let path = resolved(target.as_bytes());
        site(prefix).name(&path).map(|name| String::from_utf8_lossy(name).into_owned())
    }

    #[test]
    fn paths_become_names() {
        for (target, prefix, expected) in [
            ("/", "", "/"),
            ("/a/b.txt?c", "", "/a/b.txt"),
            ("//a///b", "", "/a/b"),
            ("/a/./b", "", "/a/b"),
            ("/a/", "", "/a/"),
            ("/a%20b", "", "/a b"),
            ("/%25", "", "/%"),
            ("/%zz", "", "/%zz"),
            ("/a%2Fb", "", "/a/b"),
            ("/caf%c3%a9", "", "/café"),
            ("/.well-known/security.txt", "", "/.well-known/security.txt"),
            ("/static/a", "/static", "/a"),
            ("/static/", "/static", "/"),
            ("/static", "/static", ""),
            ("/statically", "/static", "/statically"),
            ("/other", "/static", "/other"),
            ("/a..b", "", "/a..b"),
            ("/a.", "", "/a."),
        ] {
            assert_eq!(name(target, prefix).as_deref(), Some(expected), "{target} behind {prefix:?}");
        }
    }

    /// A path that tries to leave, or to reach what is hidden, names nothing, or something inside.
    #[test]
    fn no_path_leaves_the_root() {
        const PATHS: &[&str] = &[
            "/..",
            "/../",
            "/../etc/passwd",
            "/../../../../etc/passwd",
            "/a/../../etc/passwd",
            "/a/b/../../../etc/passwd",
            "/./../etc/passwd",
            "/.././etc/passwd",
            "//../etc/passwd",
            "/..//etc/passwd",
            "/%2e%2e/etc/passwd",
            "/%2E%2E/etc/passwd",
            "/.%2e/etc/passwd",
            "/%2e./etc/passwd",
            "/..%2fetc/passwd",
            "/..%2Fetc%2Fpasswd",
            "/%2e%2e%2fetc%2fpasswd",
            "/a%2f..%2f..%2fetc/passwd",
            "/%2f%2e%2e%2fetc/passwd",
            "/%252e%252e/etc/passwd",
            "/%252e%252e%252fetc/passwd",
            "/..%252fetc/passwd",
            "/..%00/etc/passwd",
            "/a%00.txt",
            "/%00",
            "/..\\etc\\passwd",
            "/..%5cetc%5cpasswd",
            "/%c0%ae%c0%ae/etc/passwd",
            "/%e0%80%ae%e0%80%ae/etc/passwd",
            "/%uff0e%uff0e/etc/passwd",
            "/....//etc/passwd",
            "/.../etc/passwd",
            "/a/..",
            "/a/../",
            "/a/../..",
            "/static/../../etc/passwd",
            "/static/..%2f..%2fetc/passwd",
            "/static../etc/passwd",
            "/.git/config",
            "/a/.env",
            "/%2egit/config",
            "/.htpasswd",
            "/a/.well-known/x",
            "/.well-known/.hidden",
            "/.well-knownx",
            "/..;/etc/passwd",
        ];
        assert!(PATHS.len() >= 40);
        for path in PATHS {
            for prefix in ["", "/static"] {
                let Some(name) = name(path, prefix) else { continue };
                let mut segments = name.split('/').skip(1);
                let hidden = |segment: &str| segment.starts_with('.') && segment != ".well-known";
                assert!(!segments.any(hidden) && !name.contains('\0'), "{path} names {name}");
                assert!(name.is_empty() || name.starts_with('/'), "{path} names {name}");
            }
        }
        for hidden in
            ["/.git/config", "/a/.env", "/%2egit/x", "/.well-known/.x", "/a/.well-known/x", "/a%00.txt", "/...", "/"]
        {
            assert_eq!(name(hidden, "").is_none(), hidden != "/", "{hidden}");
        }
        assert_eq!(name(&format!("/{}", "a".repeat(LONGEST_PATH)), ""), None);
    }

    #[test]
    fn an_app_names_files_of_the_root_alone() {
        let of = |value: &str, file_system| match site("/internal").name_of_app(value.as_bytes(), file_system) {
            Ok(name) => String::from_utf8(name).unwrap(),
            Err(look) => format!("{look:?}"),
        };
        for (value, expected) in [
            ("/internal/a.pdf", "/a.pdf"),
            ("/internal/a%20b.pdf?x", "/a b.pdf"),
            ("/a.pdf", "/a.pdf"),
            ("/internal/../etc/passwd", "/etc/passwd"),
            ("/internal/.env", "Missing"),
            ("/internal/a/", "Missing"),
            ("/internal", "Missing"),
            ("/../a.pdf", "Outside"),
            ("/internal/%2e%2e/../a.pdf", "Outside"),
            ("a.pdf", "Outside"),
            ("", "Missing"),
        ] {
            assert_eq!(of(value, false), expected, "X-Accel-Redirect: {value}");
        }
        for (value, expected) in [
            ("/srv/www/a.pdf", "/a.pdf"),
            ("/srv/www/a%20b.pdf", "/a%20b.pdf"),
            ("a/b.pdf", "/a/b.pdf"),
            ("./a.pdf", "/a.pdf"),
            ("a/../b.pdf", "/b.pdf"),
            ("/srv/www/a/../b.pdf", "/b.pdf"),
            ("/srv/www/./b.pdf", "/b.pdf"),
            ("/srv/www//x", "/x"),
            ("/srv//www/a/b", "/a/b"),
            // What only the file system tells.
            ("/a.pdf", "//a.pdf"),
            ("/etc/passwd", "//etc/passwd"),
            ("/srv/www/../x", "//srv/x"),
            ("/srv/www/a/../../x", "//srv/x"),
            ("/srv/wwwx", "//srv/wwwx"),
            ("../x", "Outside"),
            ("a/../../x", "Outside"),
            ("/../srv/www/x", "Outside"),
            ("/srv/www", "Missing"),
            ("/srv/www/", "Missing"),
            ("/srv/www/a/", "Missing"),
            ("/srv/www/.env", "Missing"),
            ("", "Missing"),
        ] {
            assert_eq!(of(value, true), expected, "X-Sendfile: {value}");
        }
    }

    #[test]
    fn what_browsers_navigate_to_falls_back() {
        let files = Files { fallback: Some("/index.html".to_owned()), ..Files::default() };
        let site = Site::new(&files);
        for (name, falls) in [
            ("/", true),
            ("/users/7", true),
            ("/a/", true),
            ("/app.js", false),
            ("/a.b/c", true),
            ("/index.html", false),
        ] {
            assert_eq!(site.fallback(name.as_bytes()).is_some(), falls, "{name}");
        }
        assert_eq!(self::site("").fallback(b"/users/7"), None);
    }

    #[test]
    fn patterns_say_what_never_changes() {
        for (pattern, name, expected) in [
            ("/assets/*", "/assets/a.js", true),
            ("/assets/*", "/assets", false),
            ("*.woff2", "/a/b.woff2", true),
            ("*.woff2", "/a/b.woff", false),
            ("/app-*.js", "/app-1a2b.js", true),
            ("/app-*.js", "/app-.css", false),
            ("/a*b*c", "/a-b-b-c", true),
            ("/a*b*c", "/a-c-b", false),
            ("/a", "/a", true),
            ("/a", "/ab", false),
            ("/aa*a", "/aa", false),
            ("*", "/anything", true),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
        let immutable = vec!["/assets/*".to_owned()];
        let files = Files { immutable, cache: "no-cache".to_owned(), ..Files::default() };
        for (site, whose) in [(Site::new(&files), "public"), (Site::private(&files), "private")] {
            assert_eq!(site.cache(b"/assets/x"), format!("{whose}, max-age=31536000, immutable"));
            assert_eq!(site.cache(b"/x"), "no-cache");
        }
    }
}
