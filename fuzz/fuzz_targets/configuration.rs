//! A configuration file from anybody: it is read or refused, never with a panic, every refusal has a place in the file, and the report has
//! nothing in it that a terminal could take for a command.
#![no_main]

use libfuzzer_sys::fuzz_target;
use production_server::config::{Environment, File, Text};

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Files that it names would be read.
    if text.contains("file") {
        return;
    }
    let environment: Environment = [("HOME".into(), "/root".into())].into_iter().collect();
    let text = Text::new("fuzzed.toml".into(), text.to_owned());
    let file = File::parse(text.clone(), &environment);
    for problem in &file.problems {
        let (place, _) = problem.marks.first().expect("a problem without a place");
        assert!(place.start <= text.text.len(), "a place behind the end");
        assert!(!problem.title.contains(['\n', '\u{1b}']), "{:?}", problem.title);
    }
    let report = file.complaints();
    assert!(!report.contains(['\u{1b}', '\u{7}', '\u{8}', '\r']), "{report:?}");
    assert!(report.is_empty() || report.contains("fuzzed.toml"), "{report}");
    if !file.problems.is_empty() {
        assert!(!report.is_empty(), "a problem that is not told");
    }
});
