//! What hot reload watches: the paths that were given, or those that the command names.
//!
//! Only directories are watched, never files: an editor that writes a new file and renames it over the old one would take
//! the watch away with the old file. A file, a link on the way to it, or a name that is not there yet is watched through
//! its parent directory, filtered by name. A directory is watched with everything below it but for what is heavy or noisy.
//!
//! All paths in a [`Plan`] are free of links, so that one directory never has two names.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Directories watched at most; the kernel's default limits are of that order, and each costs it about a kilobyte.
pub const MOST_DIRECTORIES: usize = 8192;
/// Links followed on the way to one path, as the kernel has it (path_resolution(7)).
const MOST_LINKS: usize = 40;
/// Directories that hold no source: dependencies, caches and what a build or a run makes.
const HEAVY: [&str; 7] = ["node_modules", "bower_components", "target", "__pycache__", "venv", "site-packages", "tmp"];
/// A file that marks its directory as a cache (bford.info/cachedir) or as a virtual environment of Python (PEP 405).
const MARKS: [&str; 2] = ["CACHEDIR.TAG", "pyvenv.cfg"];
/// Ends of names that editors, programs at work and databases leave.
const NOISY: [&str; 18] = [
    "~", ".swp", ".swx", ".tmp", ".temp", ".bak", ".log", ".pid", ".lock", ".sock", ".pyc", ".pyo", ".db", ".sqlite",
    ".sqlite3", "-journal", "-wal", "-shm",
];
/// Places that are the system's. Files in them are watched when they are named, but never all that is around them.
const SYSTEM: [&str; 10] = ["/bin", "/boot", "/dev", "/etc", "/lib", "/proc", "/run", "/sbin", "/sys", "/usr"];

/// What to watch, as it was asked for.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    /// Absolute paths of files and directories, whether they exist or not.
    paths: Vec<PathBuf>,
    /// Absolute paths of what is never looked at, such as the server's own files, with all below.
    left_out: Vec<PathBuf>,
}

/// What that means for the files as they lie now.
#[derive(Debug, Default)]
pub struct Plan {
    /// Directories to be watched, each by itself.
    pub directories: BTreeSet<PathBuf>,
    /// Paths that count whatever they are called.
    named: HashSet<PathBuf>,
    /// Directories below which everything counts that is not left out.
    trees: Vec<PathBuf>,
    left_out: Vec<PathBuf>,
    /// Whether there were more than [`MOST_DIRECTORIES`].
    pub cut: bool,
}

impl Targets {
    /// The paths that were given, else those of the command; and the files that are `added` in any case. Relative ones are
    /// relative to `here`, an absolute path whose links are followed anew by each plan.
    pub fn find(
        given: &[PathBuf],
        command: &[OsString],
        added: &[PathBuf],
        left_out: &[PathBuf],
        here: &Path,
    ) -> Targets {
        let mut paths: Vec<PathBuf> = given.iter().map(|path| here.join(path)).collect();
        if given.is_empty() && !command.is_empty() {
            paths = of_command(command, here);
        }
        paths.extend(added.iter().map(|path| here.join(path)));
        let left_out = left_out.iter().map(|path| real(&here.join(path), &mut HashSet::new())).collect();
        Targets { paths, left_out }
    }

    /// The paths that were asked for.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Looks at the files: follows links, and finds the directories below directories.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan { left_out: self.left_out.clone(), ..Plan::default() };
        for path in &self.paths {
            let end = real(path, &mut plan.named);
            if end.is_dir() && !plan.trees.contains(&end) {
                plan.trees.push(end);
            }
        }
        plan.directories = plan.named.iter().filter_map(|path| path.parent()).map(Path::to_path_buf).collect();
        plan.directories.retain(|directory| directory.is_dir());
        for tree in plan.trees.clone() {
            plan.walk(tree);
        }
        plan
    }
}

impl Plan {
    /// Whether what happens to that path may be a change: it was named, or it lies in a directory that was and is not left
    /// out.
    pub fn counts(&self, path: &Path) -> bool {
        if self.named.contains(path) {
            return true;
        }
        if self.is_left_out(path) || path.file_name().is_none_or(is_noisy) {
            return false;
        }
        self.trees.iter().any(|tree| {
            let inside = path.strip_prefix(tree).ok().and_then(Path::parent);
            inside.is_some_and(|inside| !inside.iter().any(is_heavy))
        })
    }

    /// Whether the path was asked for itself, or is a link on the way to one that was.
    pub fn names(&self, path: &Path) -> bool {
        self.named.contains(path)
    }

    fn is_left_out(&self, path: &Path) -> bool {
        self.left_out.iter().any(|out| path.starts_with(out) || is_numbered(path, out))
    }

    fn walk(&mut self, tree: PathBuf) {
        let mut waiting = vec![tree];
        while let Some(directory) = waiting.pop() {
            if self.directories.len() >= MOST_DIRECTORIES && !self.directories.contains(&directory) {
                self.cut = true;
                return;
            }
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_symlink()) && self.counts(&path) {
                    self.follow(&path);
                }
                // Links to directories are not followed: they may lead anywhere, back here too.
                let inner = entry.file_type().is_ok_and(|kind| kind.is_dir()) && !is_heavy(&entry.file_name());
                if inner && !self.is_left_out(&path) && !MARKS.iter().any(|mark| path.join(mark).exists()) {
                    waiting.push(path);
                }
            }
            self.directories.insert(directory);
        }
    }

    /// A link in a tree leads to a file: that is watched as if it lay there, wherever it is, but for what is the system's.
    fn follow(&mut self, link: &Path) {
        let mut named = HashSet::new();
        let end = real(link, &mut named);
        if !end.is_file() || self.is_left_out(&end) || end.file_name().is_none_or(is_noisy) || is_systems(&end) {
            return;
        }
        let around: Vec<PathBuf> = named.iter().filter_map(|path| path.parent()).map(Path::to_path_buf).collect();
        if self.directories.len() + around.len() > MOST_DIRECTORIES {
            self.cut = true;
            return;
        }
        self.directories.extend(around);
        self.named.extend(named);
    }
}

/// The path without links in it. Each link that was met, the first name that does not exist, and the end go into `named`.
fn real(path: &Path, named: &mut HashSet<PathBuf>) -> PathBuf {
    let parts = |path: &Path| -> Vec<OsString> {
        let usual = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
        usual.map(|part| part.as_os_str().to_owned()).rev().collect()
    };
    let mut at = PathBuf::from("/");
    let mut rest = parts(path);
    let mut links = 0;
    while let Some(part) = rest.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        let next = at.join(part);
        match fs::read_link(&next) {
            Ok(target) if links < MOST_LINKS => {
                links += 1;
                named.insert(next);
                if target.is_absolute() {
                    at = PathBuf::from("/");
                }
                rest.extend(parts(&target));
            }
            _ => {
                if !next.exists() {
                    named.insert(next.clone());
                }
                at = next;
            }
        }
    }
    named.insert(at.clone());
    at
}

/// Whether a path is that of a file with a number or a date behind it, as logs get that are rotated: `access.1`, `access-20260101.gz`.
fn is_numbered(path: &Path, file: &Path) -> bool {
    let rest = path.as_os_str().as_bytes().strip_prefix(file.as_os_str().as_bytes());
    matches!(rest, Some([b'.' | b'-', b'0'..=b'9', ..]))
}

fn is_heavy(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".") || HEAVY.iter().any(|heavy| name == *heavy)
}

/// Hidden files are noise, but for those that hold an app's settings. What is called like a heavy directory is one that
/// was just made or removed.
fn is_noisy(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let noisy = bytes.starts_with(b"#") || NOISY.iter().any(|end| bytes.ends_with(end.as_bytes()));
    noisy || (is_heavy(name) && !bytes.starts_with(b".env"))
}

/// The files that a command names, and the directory around the first of them.
///
/// A program counts when its path is given: the file alone, and what is around it if it is a script. Arguments count when
/// they are files, or modules of Python (`app:app`, `-m app`), in the working directory or in a directory that is itself an
/// argument (`--chdir src`). When nothing of the app is named (`npm start`), the working directory is watched.
fn of_command(command: &[OsString], here: &Path) -> Vec<PathBuf> {
    let words = words_of(command);
    let mut bases = vec![here.to_path_buf()];
    bases.extend(words.iter().map(|word| here.join(word)).filter(|path| path.is_dir()));
    let mut found = Vec::new();
    let mut tree = None;
    let program = here.join(&command[0]);
    if command[0].as_bytes().contains(&b'/') && program.is_file() && !is_systems(&program) {
        tree = program.parent().map(Path::to_path_buf).filter(|_| is_script(&program));
        found.push(program);
    }
    let mut previous = OsStr::new("");
    for word in &words {
        let named = bases.iter().find_map(|base| file_of(word, base, previous == "-m"));
        previous = word;
        let Some((file, around)) = named else { continue };
        if tree.is_none() && !is_too_much(&around, here) {
            tree = Some(around);
        }
        found.push(file);
    }
    if found.is_empty() && !is_too_much(here, here) {
        tree = Some(here.to_path_buf());
    }
    found.extend(tree);
    found
}

/// The arguments, and behind each `--flag=value` its value.
fn words_of(command: &[OsString]) -> Vec<OsString> {
    let mut words = Vec::new();
    for argument in &command[1..] {
        words.push(argument.clone());
        let bytes = argument.as_bytes();
        if let Some(at) = memchr::memchr(b'=', bytes).filter(|_| bytes.starts_with(b"-")) {
            words.push(OsStr::from_bytes(&bytes[at + 1..]).to_owned());
        }
    }
    words
}

/// The file that a word means, and the directory around it.
fn file_of(word: &OsStr, base: &Path, is_module: bool) -> Option<(PathBuf, PathBuf)> {
    let file = base.join(word);
    if !word.is_empty() && file.is_file() {
        let around = file.parent()?.to_path_buf();
        return Some((file, around));
    }
    let text = word.to_str()?;
    let module = match text.split_once(':') {
        Some((module, _)) => module,
        None if is_module => text,
        None => return None,
    };
    let legal = |part: &str| !part.is_empty() && part.chars().all(|letter| letter.is_alphanumeric() || letter == '_');
    if !module.split('.').all(legal) {
        return None;
    }
    let path = base.join(module.replace('.', "/"));
    let candidates = [path.with_extension("py"), path.join("__init__.py"), path.join("__main__.py")];
    candidates.into_iter().find(|file| file.is_file()).map(|file| (file, base.to_path_buf()))
}

fn is_script(path: &Path) -> bool {
    let mut start = [0; 2];
    File::open(path).and_then(|mut file| file.read_exact(&mut start)).is_ok() && &start == b"#!"
}

fn is_systems(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path.starts_with(system))
}

/// Whether a directory holds far more than an app, or others' code.
fn is_too_much(directory: &Path, here: &Path) -> bool {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let shared = [Some(PathBuf::from("/")), Some(std::env::temp_dir()), home];
    let inside = directory.strip_prefix(here).unwrap_or(Path::new(""));
    let directory = &fs::canonicalize(directory).unwrap_or_else(|_| directory.to_path_buf());
    is_systems(directory) || shared.iter().flatten().any(|much| much == directory) || inside.iter().any(is_heavy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, names: &[&str]) {
        for name in names {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
    }

    /// A directory whose path has no hidden part, unlike those of `tempfile` by default.
    fn root() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::Builder::new().prefix("watch").tempdir().unwrap();
        let path = fs::canonicalize(directory.path()).unwrap();
        (directory, path)
    }

    fn named_by(command: &str, root: &Path) -> Vec<String> {
        let command: Vec<OsString> = command.split(' ').map(OsString::from).collect();
        let found = of_command(&command, root);
        found.iter().map(|path| path.strip_prefix(root).unwrap_or(path).display().to_string()).collect()
    }

    #[test]
    fn a_command_names_its_files_and_the_directory_of_the_first() {
        let (_kept, root) = root();
        touch(&root, &["server.js", "lib/other.js", "app.py", "pkg/web.py", "tool/__main__.py", "sub/wsgi.py"]);
        touch(&root, &["worker", "config.ru", "node_modules/.bin/next"]);
        fs::write(root.join("start.sh"), "#!/bin/sh\n").unwrap();
        for (command, expected) in [
            ("node server.js", &["server.js", ""][..]),
            ("node lib/other.js server.js", &["lib/other.js", "server.js", "lib"]),
            ("uvicorn --uds {socket} app:app", &["app.py", ""]),
            ("gunicorn --chdir sub wsgi:application", &["sub/wsgi.py", "sub"]),
            ("gunicorn --chdir=sub wsgi:application", &["sub/wsgi.py", "sub"]),
            ("uvicorn pkg.web:app", &["pkg/web.py", ""]),
            ("python3 -m tool", &["tool/__main__.py", ""]),
            ("puma -C --rackup=config.ru", &["config.ru", ""]),
            ("./worker", &["worker"]),
            ("./start.sh", &["start.sh", ""]),
            ("npm start", &[""]),
            ("/bin/sh -c true", &[""]),
            ("node node_modules/.bin/next", &["node_modules/.bin/next"]),
        ] {
            let expected: Vec<String> = expected.iter().map(|&path| path.to_owned()).collect();
            assert_eq!(named_by(command, &root), expected, "{command}");
        }
        assert_eq!(named_by("nginx -c /etc/passwd", &root), ["/etc/passwd"], "nothing around the system's files");
    }

    #[test]
    fn heavy_directories_and_noise_are_left_out_unless_they_are_named() {
        let (_kept, root) = root();
        touch(&root, &["app.js", "src/deep/a.js", "node_modules/x/i.js", ".git/HEAD", "target/debug/x", "run/lock"]);
        touch(&root, &["mine/pyvenv.cfg", "mine/lib/a.py"]);
        let targets = Targets::find(&[".".into()], &[], &[], &["run".into()], &root);
        let plan = targets.plan();
        let inside: Vec<_> = plan.directories.iter().filter_map(|path| path.strip_prefix(&root).ok()).collect();
        assert_eq!(inside, [Path::new(""), Path::new("src"), Path::new("src/deep")]);
        for (path, counts) in [
            ("app.js", true),
            ("src/deep/new.js", true),
            (".env", true),
            ("src/.a.js.swp", false),
            ("src/a.js~", false),
            ("src/.hidden", false),
            ("app.log", false),
            ("node_modules/x/i.js", false),
            ("node_modules", false),
            ("run/lock", false),
            ("db.sqlite3-wal", false),
        ] {
            assert_eq!(plan.counts(&root.join(path)), counts, "{path}");
        }
        assert!(!plan.counts(&root.parent().unwrap().join("elsewhere")));
        let named = Targets::find(&["target/debug".into(), "app.log".into()], &[], &[], &[], &root).plan();
        assert!(named.counts(&root.join("target/debug/x")) && named.counts(&root.join("app.log")));
        assert!(!named.counts(&root.join("app.js")), "only what was named");
    }

    #[test]
    fn links_and_names_that_do_not_exist_yet_are_watched_by_their_parents() {
        let (_kept, root) = root();
        touch(&root, &["releases/1/app.js", "releases/2/app.js"]);
        std::os::unix::fs::symlink("releases/1", root.join("current")).unwrap();
        let targets = Targets::find(&["current/app.js".into(), "later/handler.so".into()], &[], &[], &[], &root);
        let plan = targets.plan();
        for named in ["current", "releases/1/app.js", "later"] {
            assert!(plan.names(&root.join(named)), "{named}");
        }
        let expected: BTreeSet<PathBuf> = [root.clone(), root.join("releases/1")].into();
        assert_eq!(plan.directories, expected);
        std::os::unix::fs::symlink("loop", root.join("loop")).unwrap();
        assert!(Targets::find(&["loop/x".into()], &[], &[], &[], &root).plan().names(&root.join("loop")));
    }

    #[test]
    fn the_module_is_watched_besides_and_a_given_path_replaces_the_command() {
        let (_kept, root) = root();
        touch(&root, &["server.js", "src/a.js", "handler.so"]);
        let command = ["node".into(), "server.js".into()];
        let plan = Targets::find(&["src".into()], &command, &["handler.so".into()], &[], &root).plan();
        assert!(plan.counts(&root.join("handler.so")) && plan.counts(&root.join("src/b.js")));
        assert!(!plan.counts(&root.join("server.js")));
        assert!(Targets::find(&[], &[], &[], &[], &root).paths().is_empty(), "without a command there is nothing");
    }
}
