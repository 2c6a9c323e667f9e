//! A source file as the rules of `tests/tidy.rs` read it: its code without comments, without what stands in strings, and without its
//! tests, wherever they are; line by line as in the file.

use std::path::Path;

/// One file of the tree.
pub struct Source {
    /// Its path in the tree, with slashes.
    pub path: String,
    /// The file as it is.
    pub text: String,
    /// All of it, with comments and the insides of strings blanked.
    pub bare: String,
    /// Of that the lines that are no tests; those that are one are empty.
    pub code: String,
    /// How many lines are no tests.
    pub length: usize,
}

impl Source {
    /// A file of that path with that text.
    pub fn new(path: &str, text: &str) -> Source {
        let bare = bare(text);
        let (code, length) = if is_test_file(path) { (String::new(), 0) } else { without_tests(&bare) };
        Source { path: path.to_owned(), text: text.to_owned(), bare, code, length }
    }

    /// The module of the crate's top level that a file of `src/` belongs to.
    pub fn module(&self) -> &str {
        let inside = self.path.trim_start_matches("src/");
        inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
    }

    /// How many modules lie between the crate and what stands in this file; 1 for a module of the top level.
    pub fn depth(&self) -> usize {
        let inside = self.path.trim_start_matches("src/").trim_end_matches(".rs");
        let parts = inside.split('/').count();
        if inside.ends_with("/mod") { parts - 1 } else { parts }
    }
}

/// All Rust files of a folder of the tree, in order.
pub fn all(folder: &str) -> Vec<Source> {
    fn walk(folder: &Path, into: &mut Vec<Source>) {
        let mut entries: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let relative = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap().display().to_string();
                into.push(Source::new(&relative, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let mut into = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut into);
    assert!(!into.is_empty(), "no sources in {folder}");
    into
}

/// Whether a file holds nothing but tests, by its name. That those of `src/` are compiled for tests alone is a rule of its own.
pub fn is_test_file(path: &str) -> bool {
    let mut parts = path.split('/').map(|part| part.trim_end_matches(".rs")).rev();
    let name = parts.next().unwrap_or_default();
    matches!(name, "tests" | "properties" | "models") || parts.any(|part| part == "tests")
}

/// The text with spaces in place of comments and of what stands in strings and characters; the lines stay where they are.
pub fn bare(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let inside_word = out.chars().next_back().is_some_and(|letter| letter.is_alphanumeric() || letter == '_');
        let (kept, length) = match first {
            '/' if rest.starts_with("//") => (0, rest.find('\n').unwrap_or(rest.len())),
            '/' if rest.starts_with("/*") => (0, end_of_comment(rest)),
            '"' => (1, end_of_string(rest)),
            'r' | 'b' if !inside_word && opens_string(rest) => match raw_opening(rest) {
                Some((opening, closing)) => {
                    let end = rest[opening..].find(&closing).map_or(rest.len(), |at| opening + at + closing.len());
                    (opening, end)
                }
                None => (2, 1 + end_of_string(&rest[1..])),
            },
            '\'' => match end_of_character(rest) {
                Some(end) => (1, end),
                None => (1, 1),
            },
            other => (other.len_utf8(), other.len_utf8()),
        };
        out.push_str(&rest[..kept]);
        out.extend(rest[kept..length].chars().map(|letter| if letter == '\n' { '\n' } else { ' ' }));
        if first == '"' && length > 1 {
            // The end of a string tells a line with nothing but its end from an empty one.
            out.pop();
            out.push('"');
        }
        rest = &rest[length..];
    }
    out
}

fn opens_string(rest: &str) -> bool {
    let behind = rest.trim_start_matches(['r', 'b']).trim_start_matches('#');
    rest.len() - rest.trim_start_matches(['r', 'b']).len() <= 2 && behind.starts_with('"')
}

/// The length of a raw string's opening, and what closes it; `None`: it is no raw one.
fn raw_opening(rest: &str) -> Option<(usize, String)> {
    let letters = rest.len() - rest.trim_start_matches(['r', 'b']).len();
    if !rest[..letters].contains('r') {
        return None;
    }
    let hashes = rest[letters..].len() - rest[letters..].trim_start_matches('#').len();
    Some((letters + hashes + 1, format!("\"{}", "#".repeat(hashes))))
}

fn end_of_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    let bytes = rest.as_bytes();
    while at < bytes.len() {
        match &bytes[at..bytes.len().min(at + 2)] {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// Behind the end of the string that begins at the quotation mark in front.
fn end_of_string(rest: &str) -> usize {
    let mut escaped = false;
    for (at, letter) in rest.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Behind the end of a character in quotes; `None`: it is a lifetime or a label.
fn end_of_character(rest: &str) -> Option<usize> {
    let mut letters = rest.char_indices().skip(1);
    match letters.next()?.1 {
        '\\' => rest[2..].char_indices().skip(1).find(|(_, letter)| *letter == '\'').map(|(at, _)| at + 3),
        _ => letters.next().filter(|(_, letter)| *letter == '\'').map(|(at, _)| at + 1),
    }
}

/// What is compiled for tests alone, as the attribute in front of it says.
pub fn is_for_tests(line: &str) -> bool {
    let line = line.trim_start();
    line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(all(test,")
}

/// Bare text without the items that are tests, and how many lines that leaves.
fn without_tests(bare: &str) -> (String, usize) {
    let lines: Vec<&str> = bare.lines().collect();
    let (mut out, mut length, mut at) = (String::with_capacity(bare.len()), 0, 0);
    while at < lines.len() {
        let end = if is_for_tests(lines[at]) { end_of_item(&lines, at) } else { at };
        if !is_for_tests(lines[at]) {
            out.push_str(lines[at]);
            length += 1;
        }
        out.extend(std::iter::repeat_n('\n', end + 1 - at));
        at = end + 1;
    }
    (out, length)
}

pub fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

/// The last line of the item that the attributes at `start` belong to: its end, as rustfmt sets it.
fn end_of_item(lines: &[&str], start: usize) -> usize {
    let depth = indent(lines[start]);
    let is_attribute = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with("#[");
    let item = start + lines[start..].iter().take_while(|line| is_attribute(line)).count();
    let ends = |(number, line): (usize, &&str)| {
        let (inner, line) = (indent(line), line.trim());
        let closes = line.ends_with([';', '}', ',']);
        // The first line, or one that closes what it opened; `) -> X {` and `where` end nothing, nor does the end of a string.
        closes
            && (number == 0
                || (inner == depth && line.starts_with(['}', ')', ']']))
                || (inner > depth && !lines[item].trim_end().ends_with(['{', '(', '['])))
    };
    let behind = lines.get(item..).unwrap_or_default();
    behind
        .iter()
        .enumerate()
        .find(|(number, line)| ends((*number, line)))
        .map_or(lines.len() - 1, |(number, _)| item + number)
}

#[test]
fn code_is_told_from_comments_strings_and_characters() {
    for (text, expected) in [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c\n */ d */ e", "a          \n          e"),
        (r#"a("b // \" c", d)"#, r#"a("          ", d)"#),
        ("a(r\"\\\", b) // \"", "a(r\"  , b)     "),
        ("a(br#\"b\"c\"#, d)", "a(br#\"     , d)"),
        ("a('\"', 'b', '\\'', '\\u{7f}', b'\"')", "a('  '  '   '       b'  )"),
        ("fn a<'b>(c: &'b str) -> &'b str", "fn a<'b>(c: &'b str) -> &'b str"),
        ("let bar = \"}\";", "let bar = \" \";"),
    ] {
        let got = bare(text);
        assert_eq!(got.lines().count(), text.lines().count(), "{text}");
        let plain =
            |text: &str| text.chars().filter(|letter| !letter.is_whitespace() && *letter != ',').collect::<String>();
        assert_eq!(plain(&got), plain(expected), "{text}\n{got}");
    }
}

#[test]
fn tests_are_left_out_wherever_they_are_and_nothing_else() {
    let item = |inside: &str| format!("#[cfg(test)]\n{inside}\n");
    for tests in [
        item("mod tests;"),
        item("mod tests {\n    use a;\n\n    fn b(\n        c: u8,\n    ) -> u8 {\n        \"\n}\n\"\n    }\n}"),
        item("#[path = \"x\"]\nmod tests {\n}"),
        item("pub fn sample() -> u8 {\n    5\n}"),
        item("pub fn sample(\n    a: u8,\n) -> u8\nwhere\n    A: B,\n{\n    5\n}"),
        item("const A: &[u8] = &[\n    1,\n    2,\n];"),
        item("const A: u8 =\n    5;"),
        item("use a::{\n    b,\n    c,\n};"),
        item("mod tests {\n}").replace("cfg(test)", "cfg(all(test, not(loom)))"),
    ] {
        let text = format!("use before;\n{tests}use behind;\n");
        let code = Source::new("src/a.rs", &text);
        let left: Vec<&str> = code.code.lines().filter(|line| !line.is_empty()).collect();
        assert_eq!(left, ["use before;", "use behind;"], "{text}");
        assert_eq!(code.code.lines().count(), text.lines().count(), "{text}");
        assert_eq!(code.length, 2);
    }
    let inside = "struct A {\n    a: u8,\n    #[cfg(test)]\n    b: u8,\n    c: u8,\n}\n";
    assert_eq!(Source::new("src/a.rs", inside).code, "struct A {\n    a: u8,\n\n\n    c: u8,\n}\n");
    let both = "#[cfg(any(test, fuzzing))]\npub fn a() {\n}\n";
    assert_eq!(Source::new("src/a.rs", both).code, both);
}
