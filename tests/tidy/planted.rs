//! Each rule of `tests/tidy.rs` on a file that breaks it once, in places where rules have been blind before: in front of tests and behind
//! them; and on what is like a breach and is none.

use super::*;

const TESTS: &str =
    "#[cfg(test)]\nmod tests {\n    use crate::server::X;\n    fn a() {\n        b.unwrap();\n    }\n}\n";

/// The rule has one complaint, with those words, about `breach` wherever it stands in that file, and none about `fine`.
fn finds(rule: Rule, path: &str, complaint: &str, breach: &str, fine: &str) {
    for text in [format!("//! It.\n{breach}\n{TESTS}"), format!("//! It.\n{TESTS}{breach}\n{fine}\n")] {
        let found = rule(&Source::new(path, &text));
        assert!(found.len() == 1 && found[0].contains(complaint), "{complaint}: {found:?}\n{text}");
    }
    let text = format!("//! It.\n{fine}\n{TESTS}{fine}\n");
    assert_eq!(rule(&Source::new(path, &text)), [""; 0], "{text}");
}

#[test]
fn an_upward_use() {
    for (path, complaint, breach, fine) in [
        ("dispatch/mod.rs", "dispatch uses supervisor", "use crate::supervisor;", "use crate::buffers;"),
        ("dispatch/mod.rs", "dispatch uses fleet", "fn a(b: crate::fleet::B) {}", "// crate::fleet"),
        ("dispatch/mod.rs", "dispatch uses http", "use super::http;", "use super::buffers;"),
        ("dispatch/queue.rs", "dispatch uses http", "use super::super::http;", "use super::http;"),
        ("config/mod.rs", "config uses log", "use crate::log::Log;", "const A: &str = \"crate::log\";"),
        (
            "dispatch/mod.rs",
            "dispatch uses day",
            "use crate::{\n    buffers::{self, B},\n    day::{C, D},\n};",
            "use crate::{buffers::B, config};",
        ),
    ] {
        finds(upward_uses, &format!("src/{path}"), complaint, breach, fine);
    }
}

#[test]
fn a_module_without_a_layer() {
    assert_eq!(unknown_module(&Source::new("src/novelty/mod.rs", "")).len(), 1);
    assert_eq!(unknown_module(&Source::new("src/dispatch/novelty.rs", "")), [""; 0]);
}

#[test]
fn a_file_that_is_long_or_says_nothing() {
    finds(long_or_nameless, "src/log.rs", "lines", &"\n".repeat(MOST_LINES_OF_A_FILE), "");
    assert_eq!(long_or_nameless(&Source::new("src/log.rs", "use a;\n")), [": does not begin by saying what it is"]);
}

#[test]
fn a_long_function() {
    let of = |lines: usize| format!("fn a() {{\n    \"\n}}\n\";\n{}}}", "    a();\n".repeat(lines - 5));
    finds(
        long_functions,
        "src/log.rs",
        "71 lines: fn a() {",
        &of(MOST_LINES_OF_A_FUNCTION + 1),
        &of(MOST_LINES_OF_A_FUNCTION),
    );
    let odd = "pub(in crate::a) const unsafe fn a(\n    b: u8,\n) {\n".to_owned() + &"    a();\n".repeat(68) + "}";
    finds(long_functions, "tests/log.rs", "72 lines: pub(in crate::a) const unsafe fn a(", &odd, "fn a() {}");
}

#[test]
fn a_large_struct() {
    let fields = |count: usize| (0..count).map(|number| format!("    field_{number}: u8,\n")).collect::<String>();
    let (large, fine) = (format!("struct A {{\n{}}}", fields(16)), format!("struct A {{\n{}}}", fields(15)));
    finds(large_structs, "src/log.rs", "log.rs: A has 16 fields", &large, &fine);
}

#[test]
fn an_unwrap() {
    let unwraps_it = "fn a() {\n    b(\"http://\", c.unwrap());\n}";
    finds(unwraps, "src/log.rs", "unwrap", unwraps_it, "// .unwrap()");
    finds(unwraps, "src/log.rs", "todo", "fn a() {\n    todo!()\n}", "const A: &str = \"todo!()\";");
}

#[test]
fn an_unsafe_block() {
    let breach = "fn a() {\n    unsafe { b() }\n}";
    finds(unsafe_outside, "src/log.rs", "unsafe outside", breach, "// unsafe");
    finds(unsafe_unexplained, "tests/log.rs", "without a reason", breach, "// SAFETY: so.\nunsafe { b() }");
}

#[test]
fn a_file_of_tests_that_is_none() {
    assert!(declares_for_tests("#[cfg(test)]\nmod tests;", "tests"));
    assert!(!declares_for_tests("#[cfg(test)]\nmod models;\nmod tests;", "tests"));
}

#[test]
fn a_longer_road() {
    assert_eq!(Source::new("src/exchange/mod.rs", &format!("{TESTS}use a;\n")).length, 1);
}
