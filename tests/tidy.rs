//! Guards what a compiler does not: the layers of the map in `src/lib.rs`, the length of files and functions, how much one thing
//! knows, unwraps outside of tests, and where `unsafe` may stand.
//!
//! Each rule is a function from one file to complaints, and looks at the whole file; `tidy/planted.rs` shows that it does.

mod planted;
mod source;

use source::{Source, indent, is_for_tests, is_test_file};

const MOST_LINES_OF_A_FILE: usize = 800;
const MOST_LINES_OF_A_FUNCTION: usize = 70;
/// Who waits for whom was once spread over the 42 fields of one struct: nobody could see that all cases were thought of.
const MOST_FIELDS: usize = 15;
/// Lines of the road of a request, `src/connection` and `src/exchange`, without tests: what it does more is to replace something.
const MOST_LINES_OF_THE_ROAD: usize = 3240;

/// Each module with the modules of the crate that it may use. What is not named here may be used by all.
const LAYERS: &[(&str, &[&str])] = &[
    ("buffers", &["kernel"]),
    ("planted", &[]),
    ("access", &[]),
    ("limits", &[]),
    ("config", &["access", "limits"]),
    ("compress", &["buffers", "http"]),
    ("websocket", &["http"]),
    ("check", &["files", "key_sets", "socket_file", "spool", "supervisor", "tls"]),
    ("init", &["supervisor"]),
    ("hash_password", &["access"]),
    ("metrics", &["config", "hub", "limits"]),
    ("log", &["config", "http", "metrics"]),
    ("backends", &["buffers", "kernel"]),
    ("http", &["buffers"]),
    ("hub", &["buffers", "http", "websocket"]),
    ("bus", &["control", "hub", "mailbox", "socket_file", "tls"]),
    ("day", &["http"]),
    ("dispatch", &["buffers"]),
    ("acme", &["control", "http", "tls"]),
    ("key_sets", &["access", "acme", "control"]),
    ("apps", &["access", "dispatch", "files", "http", "hub", "limits"]),
    ("files", &["buffers", "http"]),
    ("listener", &["tls"]),
    ("tls", &[]),
    ("mailbox", &["access", "apps", "buffers", "dispatch", "files", "hub", "listener", "spool"]),
    ("helpers", &["kernel"]),
    ("spool", &["buffers"]),
    (
        "event_loop",
        &[
            "access",
            "apps",
            "backends",
            "buffers",
            "compress",
            "connection",
            "day",
            "dispatch",
            "exchange",
            "files",
            "helpers",
            "http",
            "hub",
            "limits",
            "listener",
            "mailbox",
            "proc",
            "spool",
            "tls",
            "websocket",
        ],
    ),
    ("connection", &["apps", "backends", "buffers", "dispatch", "event_loop", "exchange", "http", "limits", "mailbox"]),
    (
        "exchange",
        &[
            "apps",
            "backends",
            "buffers",
            "connection",
            "dispatch",
            "event_loop",
            "files",
            "http",
            "limits",
            "mailbox",
            "spool",
        ],
    ),
    (
        "reactor",
        &[
            "apps",
            "backends",
            "buffers",
            "connection",
            "day",
            "dispatch",
            "event_loop",
            "exchange",
            "http",
            "listener",
            "mailbox",
        ],
    ),
    ("worker", &["buffers", "http", "socket_file", "supervisor"]),
    ("conformance", &["http", "kernel", "proc", "socket_file", "supervisor"]),
    ("fleet", &[]),
    ("proc", &[]),
    ("kernel", &[]),
    ("socket_file", &[]),
    ("systemd", &[]),
    ("handover", &["socket_file", "tls"]),
    ("control", &["buffers", "fleet", "http", "hub", "proc", "socket_file"]),
    ("exporter", &["control"]),
    (
        "supervisor",
        &[
            "acme",
            "buffers",
            "bus",
            "control",
            "dispatch",
            "exporter",
            "fleet",
            "handover",
            "hub",
            "key_sets",
            "limits",
            "listener",
            "mailbox",
            "proc",
            "socket_file",
            "systemd",
            "tls",
        ],
    ),
];
/// Usable by all; they use only each other, as listed above.
const FOR_ALL: &[&str] = &["config", "metrics", "log", "planted"];

/// Where `unsafe` may stand: the rooms, the few calls into libc around them, and the calls into a module of the built-in
/// worker, which are those of a C interface.
const UNSAFE_ROOMS: &[&str] = &[
    "backends",
    "buffers",
    "handover.rs",
    "kernel.rs",
    "log/zone.rs",
    "proc.rs",
    "supervisor",
    "server.rs",
    "server/privileges.rs",
    "systemd.rs",
    "worker/contract.rs",
    "worker/module.rs",
];

/// A rule: what it has against one file, each with `:LINE: ` or `: ` in front.
type Rule = fn(&Source) -> Vec<String>;

/// All of a rule's complaints about the files of those folders.
fn check(folders: &[&str], rule: Rule) {
    let files = folders.iter().flat_map(|folder| source::all(folder));
    let complaints: Vec<String> = files
        .flat_map(|file| rule(&file).into_iter().map(move |complaint| format!("{}{complaint}", file.path)))
        .collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn layers_point_down() {
    check(&["src"], upward_uses);
}

fn upward_uses(file: &Source) -> Vec<String> {
    let module = file.module();
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else { return Vec::new() };
    let is_fine = |used: &str| {
        used == module || allowed.contains(&used) || (FOR_ALL.contains(&used) && !FOR_ALL.contains(&module))
    };
    let to_the_top = "super::".repeat(file.depth());
    let mut complaints = Vec::new();
    for root in ["crate::", to_the_top.as_str()] {
        for (at, _) in file.code.match_indices(root) {
            let (before, behind) = (&file.code[..at], &file.code[at + root.len()..]);
            if before.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':') {
                continue;
            }
            for used in first_names(behind).into_iter().filter(|used| !is_fine(used)) {
                complaints.push(format!(":{}: {module} uses {used}", before.matches('\n').count() + 1));
            }
        }
    }
    complaints
}

/// The modules that a path of the crate's root begins with: one, or in braces several. Types and functions are none.
fn first_names(path: &str) -> Vec<&str> {
    let name = |text: &'_ str| {
        let end = text.find(|letter: char| !(letter.is_ascii_lowercase() || letter == '_')).unwrap_or(text.len());
        (
            end,
            text[end..].starts_with("::")
                || text[end..].trim_start().starts_with([',', '}', ';'])
                || text[end..].starts_with(" as "),
        )
    };
    let Some(group) = path.strip_prefix('{') else {
        let (end, _) = name(path);
        return if end == 0 { Vec::new() } else { vec![&path[..end]] };
    };
    let (mut names, mut depth, mut begins) = (Vec::new(), 0, true);
    for (at, letter) in group.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => begins = true,
            _ if begins && !letter.is_whitespace() => {
                begins = false;
                let (end, whole) = name(&group[at..]);
                if end > 0 && whole {
                    names.push(&group[at..at + end]);
                }
            }
            _ => {}
        }
    }
    names
}

#[test]
fn every_module_has_its_layer_and_every_layer_its_module() {
    check(&["src"], unknown_module);
    let modules: Vec<String> = source::all("src").iter().map(|file| file.module().to_owned()).collect();
    for (name, allowed) in LAYERS {
        for name in std::iter::once(name).chain(*allowed) {
            assert!(modules.iter().any(|module| module == name), "the layers name {name}, and there is no such module");
        }
    }
}

fn unknown_module(file: &Source) -> Vec<String> {
    let module = file.module();
    let known = LAYERS.iter().map(|(name, _)| *name).chain(["lib", "main", "server"]).any(|name| name == module);
    if known { Vec::new() } else { vec![format!(": the module {module} has no layer in tests/tidy.rs")] }
}

#[test]
fn files_are_short_and_say_what_they_are() {
    check(&["src", "tests", "benches", "fuzz/fuzz_targets"], long_or_nameless);
}

fn long_or_nameless(file: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let lines = file.text.lines().count();
    if lines > MOST_LINES_OF_A_FILE {
        complaints.push(format!(": {lines} lines"));
    }
    if !file.text.starts_with("//!") {
        complaints.push(": does not begin by saying what it is".to_owned());
    }
    complaints
}

#[test]
fn functions_are_short() {
    check(&["src", "tests"], long_functions);
}

fn long_functions(file: &Source) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut open: Option<(usize, usize, &str)> = None;
    for (number, line) in file.bare.lines().enumerate() {
        if open.is_none() && is_function(line) && !line.trim_end().ends_with(['}', ';']) {
            open = Some((number, indent(line), line.trim()));
        } else if let Some((start, depth, name)) = open
            && indent(line) == depth
            && line.trim_start().starts_with('}')
        {
            let lines = number - start + 1;
            if lines > MOST_LINES_OF_A_FUNCTION {
                complaints.push(format!(":{}: {lines} lines: {name}", start + 1));
            }
            open = None;
        }
    }
    complaints
}

fn is_function(line: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "fn");
    at.is_some_and(|at| {
        words[..at].iter().all(|word| {
            word.starts_with("pub")
                || word.starts_with('"')
                || word.ends_with(')')
                || matches!(*word, "const" | "unsafe" | "extern" | "in")
        })
    })
}

#[test]
fn no_struct_knows_too_much() {
    check(&["src"], large_structs);
}

fn large_structs(file: &Source) -> Vec<String> {
    let large = fields_of_types(file).into_iter().filter(|(_, _, fields)| *fields > MOST_FIELDS);
    large.map(|(line, name, fields)| format!(":{line}: {name} has {fields} fields")).collect()
}

/// Each type of a file: its line, its name behind the file's, its fields.
fn fields_of_types(file: &Source) -> Vec<(usize, String, usize)> {
    let lines: Vec<&str> = file.code.lines().collect();
    let place = file.path.trim_start_matches("src/");
    let types = lines.iter().enumerate().filter_map(|(number, line)| Some((number, name_of_type(line)?)));
    types.map(|(number, name)| (number + 1, format!("{place}: {name}"), fields_below(&lines[number..]))).collect()
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
    let road = ["src/connection", "src/exchange"].iter().flat_map(|folder| source::all(folder));
    let lines: usize = road.map(|file| file.length).sum();
    assert!(lines <= MOST_LINES_OF_THE_ROAD, "{lines} lines, and {MOST_LINES_OF_THE_ROAD} are the bound");
}

#[test]
fn nothing_unwraps_outside_of_tests() {
    check(&["src"], unwraps);
}

fn unwraps(file: &Source) -> Vec<String> {
    const WORDS: [&str; 6] = [".unwrap()", ".unwrap_err()", "todo!(", "unimplemented!(", "dbg!(", "unwrap_unchecked("];
    let lines = file.code.lines().enumerate();
    let found = lines.filter(|(_, line)| WORDS.iter().any(|word| line.contains(word)));
    found.map(|(number, line)| format!(":{}: {}", number + 1, line.trim())).collect()
}

#[test]
fn unsafe_stays_in_its_rooms_and_says_why() {
    check(&["src"], unsafe_outside);
    check(&["src", "tests", "benches"], unsafe_unexplained);
}

fn uses_unsafe(file: &Source) -> impl Iterator<Item = (usize, &str)> {
    let is_it =
        |line: &str| line.split(|letter: char| !letter.is_alphanumeric() && letter != '_').any(|word| word == "unsafe");
    file.bare.lines().enumerate().filter(move |(_, line)| is_it(line))
}

fn unsafe_outside(file: &Source) -> Vec<String> {
    if is_test_file(&file.path) || UNSAFE_ROOMS.iter().any(|room| file.path.starts_with(&format!("src/{room}"))) {
        return Vec::new();
    }
    uses_unsafe(file).map(|(number, _)| format!(":{}: unsafe outside of its rooms", number + 1)).collect()
}

fn unsafe_unexplained(file: &Source) -> Vec<String> {
    let lines: Vec<&str> = file.text.lines().collect();
    let is_explained = |number: usize| {
        let above = lines[number.saturating_sub(6)..number].join("\n");
        above.contains("SAFETY") || above.contains("# Safety")
    };
    let unexplained = uses_unsafe(file).filter(|(number, code)| !is_explained(*number) && !code.contains("unsafe fn"));
    unexplained.map(|(number, _)| format!(":{}: unsafe without a reason", number + 1)).collect()
}

/// What a file's name says of it is true: a file that the rules leave alone as tests is compiled for tests alone.
#[test]
fn files_of_tests_are_declared_as_tests() {
    let files = source::all("src");
    for file in files.iter().filter(|file| is_test_file(&file.path)) {
        let (folder, name) = file.path.rsplit_once('/').unwrap();
        let parents = [format!("{folder}.rs"), format!("{folder}/mod.rs"), "src/lib.rs".to_owned()];
        let named = |path| files.iter().find(|other| other.path == path);
        let parent = parents.iter().find_map(|path| named(path.as_str())).expect("a module has a parent");
        let name = name.trim_end_matches(".rs");
        assert!(
            is_test_file(&parent.path) || declares_for_tests(&parent.bare, name),
            "{}: looks like tests, and {} does not declare it under #[cfg(test)]",
            file.path,
            parent.path
        );
    }
}

fn declares_for_tests(parent: &str, name: &str) -> bool {
    let lines: Vec<&str> = parent.lines().collect();
    lines.windows(2).any(|pair| is_for_tests(pair[0]) && pair[1].ends_with(&format!("mod {name};")))
}
