//! Guards what a compiler does not: the layers of the map in `src/lib.rs`, the length of files and functions, unwraps outside of
//! tests, and where `unsafe` may stand.

use std::path::{Path, PathBuf};

const MOST_LINES_OF_A_FILE: usize = 800;
const MOST_LINES_OF_A_FUNCTION: usize = 70;

/// Each module with the modules of the crate that it may use. What is not named here may be used by all.
const LAYERS: &[(&str, &[&str])] = &[
    ("buffers", &[]),
    ("planted", &[]),
    ("config", &[]),
    ("metrics", &["config"]),
    ("log", &["config", "metrics"]),
    ("backends", &["buffers"]),
    ("http", &["buffers"]),
    ("dispatch", &["buffers"]),
    ("mailbox", &["buffers", "dispatch"]),
    ("connection", &["backends", "buffers", "dispatch", "exchange", "http", "mailbox"]),
    ("exchange", &["backends", "buffers", "connection", "dispatch", "http", "mailbox"]),
    ("reactor", &["backends", "buffers", "connection", "dispatch", "exchange", "http", "mailbox"]),
    ("worker", &["buffers", "http", "supervisor"]),
    ("conformance", &["http", "supervisor"]),
    ("fleet", &[]),
    ("socket_file", &[]),
    ("control", &["buffers", "fleet", "http", "socket_file"]),
    ("supervisor", &["buffers", "control", "dispatch", "fleet", "mailbox"]),
];
/// Usable by all; they use only each other, as listed above.
const FOR_ALL: &[&str] = &["config", "metrics", "log", "planted"];

/// Where `unsafe` may stand: the rooms, the few calls into libc around them, and the calls into a module of the built-in
/// worker, which are those of a C interface.
const UNSAFE_ROOMS: &[&str] = &["backends", "buffers", "supervisor", "server.rs", "worker/module.rs"];

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, into: &mut Vec<(PathBuf, String)>) {
        let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                into.push((path, text));
            }
        }
    }
    let mut into = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut into);
    assert!(!into.is_empty(), "no sources in {folder}");
    into
}

fn relative(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string()
}

/// The module of the crate's top level that a file of `src/` belongs to.
fn module_of(path: &Path) -> String {
    let inside = path.strip_prefix(Path::new(env!("CARGO_MANIFEST_DIR")).join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// Whether a file holds nothing but tests.
fn is_test_file(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    matches!(name, "tests" | "properties" | "models")
}

/// The text before the tests at the end of a file.
fn without_tests(text: &str) -> &str {
    let end = text.find("\n#[cfg(test)]").or_else(|| text.find("\n#[cfg(all(test")).unwrap_or(text.len());
    &text[..end]
}

fn complain(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn layers_point_down() {
    let mut complaints = Vec::new();
    for (path, text) in sources("src") {
        let module = module_of(&path);
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else { continue };
        for (number, line) in without_tests(&text).lines().enumerate() {
            if line.trim_start().starts_with("//") {
                continue;
            }
            for (at, _) in line.match_indices("crate::") {
                let used: String =
                    line[at + 7..].chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '_').collect();
                let fine = used.is_empty()
                    || used == module
                    || allowed.contains(&used.as_str())
                    || (FOR_ALL.contains(&used.as_str()) && !FOR_ALL.contains(&module.as_str()));
                if !fine {
                    complaints.push(format!("{}:{}: {module} uses {used}", relative(&path), number + 1));
                }
            }
        }
    }
    complain(&complaints);
}

#[test]
fn every_module_has_its_layer() {
    let known: Vec<&str> = LAYERS.iter().map(|(name, _)| *name).chain(["lib", "main", "server"]).collect();
    let mut complaints = Vec::new();
    for (path, _) in sources("src") {
        let module = module_of(&path);
        if !known.contains(&module.as_str()) {
            complaints.push(format!("{}: the module {module} has no layer in tests/tidy.rs", relative(&path)));
        }
    }
    complain(&complaints);
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut complaints = Vec::new();
    for (path, text) in ["src", "tests", "benches"].iter().flat_map(|folder| sources(folder)) {
        let lines = text.lines().count();
        if lines > MOST_LINES_OF_A_FILE {
            complaints.push(format!("{}: {lines} lines", relative(&path)));
        }
        if !text.starts_with("//!") {
            complaints.push(format!("{}: does not begin by saying what it is", relative(&path)));
        }
    }
    complain(&complaints);
}

#[test]
fn functions_are_short() {
    let mut complaints = Vec::new();
    for (path, text) in ["src", "tests"].iter().flat_map(|folder| sources(folder)) {
        let mut open: Option<(usize, usize, String)> = None;
        for (number, line) in text.lines().enumerate() {
            let indent = line.len() - line.trim_start().len();
            if open.is_none() && is_function(line) && !line.trim_end().ends_with(['}', ';']) {
                open = Some((number, indent, line.trim().to_owned()));
            } else if let Some((start, depth, name)) = &open
                && indent == *depth
                && line.trim_start().starts_with('}')
            {
                let lines = number - start + 1;
                if lines > MOST_LINES_OF_A_FUNCTION {
                    complaints.push(format!("{}:{}: {lines} lines: {name}", relative(&path), start + 1));
                }
                open = None;
            }
        }
    }
    complain(&complaints);
}

fn is_function(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "fn");
    at.is_some_and(|at| {
        words[..at].iter().all(|word| {
            word.starts_with("pub")
                || matches!(*word, "const" | "unsafe" | "extern" | "\"C\"" | "in" | "crate)" | "super)")
        })
    })
}

#[test]
fn nothing_unwraps_outside_of_tests() {
    let mut complaints = Vec::new();
    for (path, text) in sources("src").into_iter().filter(|(path, _)| !is_test_file(path)) {
        for (number, line) in without_tests(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if [".unwrap()", "todo!(", "unimplemented!(", "dbg!("].iter().any(|word| code.contains(word)) {
                complaints.push(format!("{}:{}: {}", relative(&path), number + 1, line.trim()));
            }
        }
    }
    complain(&complaints);
}

#[test]
fn unsafe_stays_in_its_rooms_and_says_why() {
    let mut complaints = Vec::new();
    for (path, text) in sources("src") {
        let inside = relative(&path);
        let room = UNSAFE_ROOMS.iter().any(|room| inside.starts_with(&format!("src/{room}")));
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap();
            if !code.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == "unsafe") {
                continue;
            }
            if !room && !is_test_file(&path) {
                complaints.push(format!("{inside}:{}: unsafe outside of its rooms", number + 1));
            }
            let above = lines[number.saturating_sub(6)..number].join("\n");
            if !above.contains("SAFETY") && !above.contains("# Safety") && !code.contains("unsafe fn") {
                complaints.push(format!("{inside}:{}: unsafe without a reason", number + 1));
            }
        }
    }
    complain(&complaints);
}
