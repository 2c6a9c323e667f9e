//! The configuration file as the program takes it: every bad file in tests/config/bad has its report beside it, to the letter, and
//! starts nothing. `UPDATE_REPORTS=1 cargo test --test suite configuration` writes the reports anew; the difference is to be read.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(name)
}

/// The files with that ending, in order.
fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == ending)).collect();
    files.sort();
    files
}

/// Runs the program in a folder, with nothing in its environment but what is given.
fn program(folder: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(crate::support::PROGRAM);
    command.args(arguments).current_dir(folder).env_clear().envs(variables.iter().copied()).stdin(Stdio::null());
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn every_bad_file_has_its_report_and_starts_nothing() {
    let bad = folder("bad");
    let update = std::env::var_os("UPDATE_REPORTS").is_some();
    let (mut complaints, files) = (Vec::new(), files(&bad, "toml"));
    assert!(files.len() >= 80, "{} files", files.len());
    for file in files {
        let name = file.file_name().unwrap().to_str().unwrap();
        let run = tempfile::tempdir().unwrap();
        let directory = run.path().join("run");
        let variables = [("RUNTIME_DIRECTORY", directory.to_str().unwrap()), ("ODD_VALUE", "odd")];
        let output = program(&bad, &["run", "--config", name], &variables);
        assert!(!directory.exists(), "{name}: something was started");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(78), 0), "{name}");
        let (said, expected) = (text(&output.stderr), file.with_extension("txt"));
        assert!(!said.chars().any(|letter| letter.is_control() && letter != '\n'), "{name}: {said:?}");
        if update {
            std::fs::write(&expected, &said).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != said {
            complaints.push(format!("{name}:\n{said}"));
        }
    }
    assert!(complaints.is_empty(), "not as {}/*.txt have it:\n\n{}", bad.display(), complaints.join("\n"));
    let reports = self::files(&bad, "txt");
    assert!(reports.iter().all(|report| report.with_extension("toml").exists()), "a report without its file");
}

#[test]
fn what_is_no_configuration_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("directory")).unwrap();
    assert!(Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
    std::fs::write(path("binary"), b"[server]\nloops = \xff\n").unwrap();
    std::os::unix::fs::symlink(path("circle"), path("circle")).unwrap();
    // Sparse: 100 MiB take no room.
    std::fs::File::create(path("large")).unwrap().set_len(100 << 20).unwrap();
    for (name, code, said) in [
        ("directory", 66, "error: --config \"directory\": it is a directory: expected a file\n"),
        ("pipe", 66, "error: --config \"pipe\": it is no regular file: expected one, and no pipe, socket or device\n"),
        ("nothing", 66, "error: --config \"nothing\": there is no such file\n"),
        ("large", 78, "error: --config \"large\": it is larger than 1 MiB: expected a configuration file\n"),
        ("binary", 78, "error: --config \"binary\": line 2, column 9: the byte 0xff is not UTF-8\n"),
    ] {
        for words in [&["--config", name][..], &["run", "-f", name], &["-t", "-f", name]] {
            let output = program(folder.path(), words, &[("RUNTIME_DIRECTORY", "run")]);
            assert_eq!((text(&output.stderr).as_str(), output.status.code()), (said, Some(code)), "{words:?}");
            assert!(!path("run").exists(), "{name}: something was started");
        }
    }
    let output = program(folder.path(), &["-f", "circle"], &[]);
    assert!(output.status.code() == Some(66) && text(&output.stderr).contains("it cannot be read"), "{output:?}");
    let by_variable = program(folder.path(), &[], &[("PRODUCTION_SERVER_CONFIG", "nothing")]);
    let said = "error: PRODUCTION_SERVER_CONFIG \"nothing\": there is no such file\n";
    assert_eq!((text(&by_variable.stderr).as_str(), by_variable.status.code()), (said, Some(66)));
    let mut file = std::fs::File::create(path("production_server.toml")).unwrap();
    file.write_all(b"[server]\nloops = 0\n").unwrap();
    let output = program(folder.path(), &[], &[]);
    assert_eq!(output.status.code(), Some(78), "the file of the directory is found");
    assert!(text(&output.stderr).contains(" --> production_server.toml:2:9\n"), "{}", text(&output.stderr));
    file.set_permissions(PermissionsExt::from_mode(0o644)).unwrap();
}

#[test]
fn good_files_are_valid_and_start_nothing_when_checked() {
    let good = folder("good");
    for file in files(&good, "toml") {
        let name = file.file_name().unwrap().to_str().unwrap();
        let run = tempfile::tempdir().unwrap();
        let directory = run.path().join("run");
        for words in [&["check", "--config", name][..], &["-t", "-f", name], &["run", "-tf", name]] {
            // Whether the usual ports are in use here says nothing of the file.
            let variables =
                [("RUNTIME_DIRECTORY", directory.to_str().unwrap()), ("PRODUCTION_SERVER_LISTEN", "127.0.0.1:0")];
            let output = program(&good, words, &variables);
            assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{name}");
            assert!(!directory.exists(), "{name}: something was started");
        }
    }
}

#[test]
fn the_file_of_the_readme_is_valid_as_it_stands() {
    let readme = include_str!("../README.md");
    let (_, section) = readme.split_once("\n## Configuration file\n").unwrap();
    let (_, file) = section.split_once("```toml\n").unwrap();
    let (file, _) = file.split_once("```").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("production_server.toml");
    std::fs::write(&path, file).unwrap();
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = program(repository, &["check", "-f", path.to_str().unwrap()], &[("PATH", "/usr/bin:/bin")]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn the_manual_is_made_of_the_tables_and_not_stale() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let manual = production_server::config::manual();
    if std::env::var_os("UPDATE_REPORTS").is_some() {
        std::fs::write(&path, &manual).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(
        written == manual,
        "docs/configuration.md is stale: UPDATE_REPORTS=1 cargo test --test suite configuration"
    );
}

#[test]
fn the_schema_has_every_key_and_the_ranges_of_its_setter() {
    let folder = tempfile::tempdir().unwrap();
    let output = program(folder.path(), &["config", "schema"], &[]);
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0));
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let at = |path: &str| schema.pointer(path).unwrap_or_else(|| panic!("{path}"));
    let app = "/properties/apps/additionalProperties/properties";
    assert_eq!(at(&format!("{app}/queue/properties/size/anyOf/0/maximum")), 1_000_000);
    assert_eq!(at(&format!("{app}/queue/properties/size/default")), 8192);
    assert_eq!(at(&format!("{app}/balance/anyOf/0/enum")), &serde_json::json!(["lifo", "round-robin", "least"]));
    assert_eq!(at(&format!("{app}/ready/anyOf/1/properties/timeout/default")), "15s");
    assert_eq!(at("/properties/listen/items/required/0"), "address");
    // In whatever case, as the server reads them.
    let sizes = at("/properties/server/properties/max_body/anyOf/0/pattern").as_str().unwrap();
    assert!(sizes.contains("|[tT]|[tT][iI][bB]|[tT][bB])?|"), "{sizes}");
    assert_eq!(at("/properties/server/properties/max_connections/anyOf/0/minimum"), 1);
    assert_eq!(at("/properties/log/properties/access/anyOf/0/anyOf/1/const"), false);
    let hub = "/properties/hub/additionalProperties/properties";
    assert_eq!(at(&format!("{hub}/most_topics/anyOf/0/maximum")), 10_000_000);
    assert_eq!(at(&format!("{hub}/history/anyOf/1/properties/count/x-reload")), "live");
    assert_eq!(at("/properties/routes/items/oneOf/5/required/0"), "hub");
    assert_eq!(at("/additionalProperties"), false);
}

/// What `config show` prints is a file that makes the same configuration.
#[test]
fn what_is_shown_says_the_same_again() {
    let good = folder("good");
    let cases: [&[&str]; 13] = [
        &["-f", "forms.toml"],
        &["-f", "hub.toml"],
        &["-f", "none", "--hub"],
        &["-f", "whole.toml"],
        &["-f", "whole.toml", "w:3", "--watch=a", "--watch=b c", "--queue-timeout-ms=250", "--hold=0"],
        &["-f", "none", "--no-access-log", "--listen=unix:/run/x", "--listen-mode=640", "--", "node", "a \"b"],
        &["-f", "none", "--upstream=unix:/a", "--upstream=unix:/b", "--json-logging", "--ready=http:/up"],
        // Of keys that have one effect, one holds.
        &["-f", "whole.toml", "--no-access-log"],
        &["-f", "no_access.toml", "--access-log=/tmp/access.log", "--log-format=combined"],
        &["-f", "no_access.toml", "--json-logging"],
        &["-f", "no_access.toml", "--access-log-format=json"],
        &["-f", "no_access.toml", "--log-format=human", "--access-log-format=rip"],
        &["-f", "whole.toml", "--json-logging", "--event-log-format=human"],
    ];
    for words in cases {
        let show = |more: &[&str], words: &[&str]| {
            let all: Vec<&str> = ["config", "show"].iter().chain(more).chain(words).copied().collect();
            let output = program(&good, &all, &[("RUNTIME_DIRECTORY", "/run/shown")]);
            assert_eq!((text(&output.stderr).as_str(), output.status.code()), ("", Some(0)), "{all:?}");
            text(&output.stdout)
        };
        let again = tempfile::tempdir().unwrap();
        let path = again.path().join("again.toml");
        for options in [&[][..], &["--effective"], &["--origin"], &["--effective", "--origin"]] {
            std::fs::write(&path, show(options, words)).unwrap();
            let shown = show(&["--effective"], &["-f", path.to_str().unwrap()]);
            assert_eq!(shown, show(&["--effective"], words), "{options:?} {words:?}");
        }
    }
}

/// What holds is shown once, and by its value.
#[test]
fn of_keys_with_one_effect_the_one_that_holds_is_shown() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("site.toml");
    type Words = &'static [&'static str];
    type Variables = &'static [(&'static str, &'static str)];
    let none: Variables = &[];
    let cases: [(&str, Words, Variables, Words); 7] = [
        ("access = '/tmp/x'", &["--no-access-log"], none, &["to = false"]),
        ("access = false", &["--access-log", "/tmp/y"], none, &["to = \"/tmp/y\""]),
        ("access = false", &[], &[("PRODUCTION_SERVER_NO_ACCESS_LOG", "off")], &["to = \"-\""]),
        ("access.format = 'common'", &["--json-logging"], none, &["access_json = true", "to = \"-\""]),
        ("access.format = 'common'", &["--log-format", "json"], none, &["format = \"json\"", "to = \"-\""]),
        ("format = 'combined'", &["--json-logging"], none, &["format = 'combined'", "to = \"-\"", "format = \"json\""]),
        ("events.format = 'json'", &["--log-format", "human"], none, &["format = \"human\"", "to = \"-\""]),
    ];
    for (log, flags, variables, expected) in cases {
        std::fs::write(&path, format!("[log]\n{log}\n")).unwrap();
        let file = path.to_str().unwrap();
        let words = [&["config", "show", "--effective", "-f", file], flags].concat();
        let shown = text(&program(folder.path(), &words, variables).stdout);
        let keys = ["to =", "format =", "access_json ="];
        let of_access = shown.split("[log.events]").next().unwrap();
        let (_, of_access) = of_access.split_once("[log]").unwrap();
        let lines: Vec<&str> = of_access.lines().filter(|line| keys.iter().any(|key| line.starts_with(key))).collect();
        assert_eq!(lines, expected, "{log} {flags:?}: {shown}");
        assert!(!shown.contains("format = 'json'"), "what does not hold: {shown}");
        std::fs::write(&path, &shown).unwrap();
        let again = text(&program(folder.path(), &["config", "show", "--effective", "-f", file], none).stdout);
        assert_eq!(again.replace('\'', "\""), shown.replace('\'', "\""), "{log} {flags:?}");
    }
}

#[test]
fn origins_are_told_and_secrets_are_not() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("secret"), "hush\n").unwrap();
    let file = "[apps.shop]\nrespond = { file = \"secret\" }\nqueue = { size = 5 }\nrestart.give_up = \"3/10s\"\n";
    std::fs::write(folder.path().join("production_server.toml"), file).unwrap();
    let variables = [("RIP_QUEUE_TIMEOUT_MS", "300"), ("PORT", "3000")];
    let output = program(folder.path(), &["config", "show", "--origin", "c:2", "--hold=1s"], &variables);
    let expected = [
        ("[[listen]]", ""),
        ("address = \"0.0.0.0:3000\"", "environment: PORT"),
        ("[apps.shop]", ""),
        ("concurrency = 2", "shorthand: c:2"),
        ("respond = { file = \"secret\" }", "production_server.toml:2:11"),
        ("[apps.shop.queue]", ""),
        ("size = 5", "production_server.toml:3:18"),
        ("timeout = \"300ms\"", "environment: RIP_QUEUE_TIMEOUT_MS"),
        ("hold = \"1s\"", "flag"),
        ("[apps.shop.restart]", ""),
        ("give_up = \"3/10s\"", "production_server.toml:4:19"),
    ];
    let shown = text(&output.stdout);
    let lines: Vec<(&str, &str)> = shown
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| line.split_once(" # ").map_or((line, ""), |(value, origin)| (value.trim_end(), origin)))
        .collect();
    assert_eq!(lines, expected);
    let output = program(folder.path(), &["config", "show", "--effective", "--json"], &variables);
    let entries: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of = |key: &str| entries.iter().find(|entry| entry["key"] == key).unwrap_or_else(|| panic!("{key}"));
    assert_eq!(of("apps.shop.queue.size")["value"], 5);
    assert_eq!(of("apps.shop.respond")["value"]["file"], "secret");
    assert_eq!(
        (of("server.loops")["value"].as_str(), of("server.loops")["origin"].as_str()),
        (Some("auto"), Some("default"))
    );
    assert!(!text(&output.stdout).contains("hush"));
}
