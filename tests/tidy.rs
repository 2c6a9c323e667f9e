//! Guards what a compiler does not: the layers of the map in `src/lib.rs`, the length of files and functions, how much one thing
//! knows, unwraps outside of tests, and where `unsafe` may stand.

use std::path::{Path, PathBuf};

const MOST_LINES_OF_A_FILE: usize = 800;
const MOST_LINES_OF_A_FUNCTION: usize = 70;
/// Who waits for whom was once spread over the 42 fields of one struct: nobody could see that all cases were thought of.
const MOST_FIELDS: usize = 15;
/// Lines of the road of a request, `src/connection` and `src/exchange`, without tests: what it does more is to replace something.
const MOST_LINES_OF_THE_ROAD: usize = 4240;

/// Structs with more than [`MOST_FIELDS`], each with its reason.
const LARGE_STRUCTS: &[(&str, &str)] = &[
    ("config/mod.rs: Settings", "a field for each setting"),
    ("config/mod.rs: App", "a field for each setting"),
    ("control/status.rs: Worker", "a field for each member of the document"),
    ("http/head.rs: Request", "what one pass over a head finds, never changed afterwards"),
    ("http/head.rs: Seen", "flags of that pass, which live on its stack"),
    ("http/seen.rs: Seen", "flags of that pass, which live on its stack"),
    ("dispatch/workers.rs: Worker", "a row of the table behind the one mutex"),
    ("backends/readiness.rs: Readiness", "known; to be taken apart when it is next worked on"),
    ("supervisor/mod.rs: Supervisor", "known; to be taken apart when it is next worked on"),
    ("supervisor/crew.rs: Crew", "known; to be taken apart when it is next worked on"),
];

/// Each module with the modules of the crate that it may use. What is not named here may be used by all.
const LAYERS: &[(&str, &[&str])] = &[
    ("buffers", &[]),
    ("planted", &[]),
    ("config", &[]),
    ("check", &["socket_file", "supervisor"]),
    ("init", &["supervisor"]),
    ("metrics", &["config"]),
    ("log", &["config", "metrics"]),
    ("backends", &["buffers"]),
    ("http", &["buffers"]),
    ("day", &["http"]),
    ("dispatch", &["buffers"]),
    ("mailbox", &["buffers", "dispatch"]),
    ("connection", &["backends", "buffers", "day", "dispatch", "exchange", "http", "mailbox"]),
    ("exchange", &["backends", "buffers", "connection", "dispatch", "http", "mailbox"]),
    ("reactor", &["backends", "buffers", "connection", "day", "dispatch", "exchange", "http", "mailbox"]),
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
    let inside = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap();
    let among_tests = inside.components().any(|part| part.as_os_str() == "tests");
    among_tests || matches!(name, "tests" | "properties" | "models")
}

/// The text before the tests at the end of a file: before the first module inside of it that is for tests alone. One that lies in a
/// file of its own is declared anywhere, and so are single items for tests; they end nothing.
fn without_tests(text: &str) -> &str {
    let marks = ["\n#[cfg(test)]", "\n#[cfg(all(test"];
    let mut places: Vec<usize> = marks.iter().flat_map(|mark| text.match_indices(mark)).map(|(at, _)| at).collect();
    places.sort_unstable();
    let opens_module = |at: &usize| {
        let item = text[at + 1..].lines().find(|line| !line.starts_with("#["));
        item.is_some_and(|line| line.split(' ').any(|word| word == "mod") && line.ends_with('{'))
    };
    let end = places.into_iter().find(opens_module).unwrap_or(text.len());
    &text[..end]
}

#[test]
fn only_a_module_inside_a_file_ends_its_code() {
    let tests = "\n#[cfg(test)]\nmod tests {\n}\n";
    for code in [
        "use a;\n",
        "use a;\n\n#[cfg(test)]\nmod tests;\n\nfn code() {}\n",
        "#[cfg(test)]\nmod tests;\nmod other;\n",
        "fn code() {}\n\n#[cfg(test)]\npub fn sample() {\n}\n\nfn more() {}\n",
        "#[cfg(all(test, loom))]\nmod models;\nfn code() {}\n",
    ] {
        assert_eq!(without_tests(code), code);
        assert_eq!(without_tests(&format!("{code}{tests}")), code);
        assert_eq!(
            without_tests(&format!("{code}\n#[cfg(all(test, not(loom)))]\n#[rustfmt::skip]\nmod tests {{\n}}\n")),
            code
        );
    }
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
fn no_struct_knows_too_much() {
    let mut complaints = Vec::new();
    for (path, text) in sources("src").into_iter().filter(|(path, _)| !is_test_file(path)) {
        let lines: Vec<&str> = without_tests(&text).lines().collect();
        for (number, line) in lines.iter().enumerate() {
            let Some(name) = name_of_type(line) else { continue };
            let (fields, place) = (fields_below(&lines[number..]), relative(&path));
            let known = format!("{}: {name}", place.trim_start_matches("src/"));
            if fields > MOST_FIELDS && !LARGE_STRUCTS.iter().any(|(large, _)| *large == known) {
                complaints.push(format!("{place}:{}: {name} has {fields} fields", number + 1));
            }
        }
    }
    complain(&complaints);
}

/// The name of the struct or enum that a line opens.
fn name_of_type(line: &str) -> Option<&str> {
    let mut words = line.split([' ', '<', '(']).skip_while(|word| !matches!(*word, "struct" | "enum"));
    words.next().filter(|_| line.ends_with('{') && !line.trim_start().starts_with("//"))?;
    words.next()
}

/// The named fields of the type that the first line opens; of an enum's variants, the most that one has.
fn fields_below(lines: &[&str]) -> usize {
    let depth = |line: &str| line.len() - line.trim_start().len();
    let outside = depth(lines[0]);
    let body = lines[1..].iter().take_while(|line| line.is_empty() || depth(line) > outside);
    let (mut most, mut of_struct, mut of_variant) = (0, 0, 0);
    for line in body {
        let name = line.trim_start();
        let name = name.strip_prefix("pub").map_or(name, |rest| rest.split_once(' ').map_or(rest, |(_, name)| name));
        let named = name.split_once(": ").is_some_and(|(name, _)| {
            !name.is_empty()
                && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
        });
        match depth(line) - outside.min(depth(line)) {
            4 if named => of_struct += 1,
            4 => of_variant = 0,
            8 if named => of_variant += 1,
            _ => {}
        }
        most = most.max(of_struct).max(of_variant);
    }
    most
}

#[test]
fn fields_are_counted() {
    let text = "pub(crate) struct A<B: C> {\n    /// Not one: this.\n    a: u8,\n    pub b_2: u8,\n    pub(super) c: u8,\n\n    d: Map<\n        u8,\n    >,\n}\nfn e: u8";
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((name_of_type(lines[0]), fields_below(&lines)), (Some("A"), 4));
    let text =
        "enum A {\n    B,\n    C {\n        a: u8,\n        b: u8,\n    },\n    D {\n        c: u8,\n    },\n}\n";
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((name_of_type(lines[0]), fields_below(&lines)), (Some("A"), 2));
    assert_eq!(name_of_type("struct A;"), None);
    assert_eq!(name_of_type("/// A struct that {"), None);
}

#[test]
fn the_road_of_a_request_does_not_grow() {
    let road = ["src/connection", "src/exchange"].iter().flat_map(|folder| sources(folder));
    let lines: usize =
        road.filter(|(path, _)| !is_test_file(path)).map(|(_, text)| without_tests(&text).lines().count()).sum();
    assert!(lines <= MOST_LINES_OF_THE_ROAD, "{lines} lines, and {MOST_LINES_OF_THE_ROAD} are the bound");
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
