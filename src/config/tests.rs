//! Precedence, shorthands, and every refusal with its exact line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
}

fn invocation(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Invocation, Refusal> {
    let arguments = std::iter::once("production_server").chain(arguments.iter().copied()).map(OsString::from);
    read(arguments, &environment(variables))
}

fn settings(arguments: &[&str], variables: &[(&str, &str)]) -> Settings {
    match invocation(arguments, variables) {
        Ok(Invocation::Run(loaded)) => loaded.config.server,
        other => panic!("{arguments:?} {variables:?}: {other:?}"),
    }
}

#[test]
fn the_command_line_is_sound() {
    command().debug_assert();
    for key in keys::all() {
        let mut settings = Settings::default();
        assert_eq!((key.set)(&mut settings, key.example), Ok(()), "the example of --{}", key.name);
    }
}

/// What the help states as defaults, read as values, gives what `Settings::default` holds.
#[test]
fn the_defaults_of_the_help_are_true() {
    let mut stated = Settings::default();
    stated.listening.at.clear();
    stated.loops.count = 0;
    stated.app.workers = 0;
    stated.app.queue.size = 0;
    stated.timeouts.idle = Duration::ZERO;
    for key in keys::all().filter(|key| !key.default.is_empty()) {
        assert_eq!((key.set)(&mut stated, key.default), Ok(()), "--{}", key.name);
    }
    assert_eq!(format!("{stated:?}"), format!("{:?}", Settings::default()));
}

#[test]
fn nothing_said_serves_the_built_in_worker_on_8080() {
    let settings = settings(&[], &[("XDG_RUNTIME_DIR", "/run/user/7")]);
    assert_eq!(settings.listening.at, [ListenAddress::Tcp("0.0.0.0:8080".parse().unwrap())]);
    assert_eq!(settings.app.program.command, Command::BuiltIn);
    assert!(settings.app.workers >= 2 && settings.loops.count >= 1);
    assert_eq!(settings.process.run_dir, PathBuf::from("/run/user/7/production_server-8080"));
    assert_eq!(settings.logs.access.target, LogTarget::Stdout);
    assert_eq!((settings.app.timeouts.answer, settings.app.sharing.max_tunnels), (None, u32::MAX));
}

/// (arguments, environment, queue size): flag, shorthand, environment of our own, of others, default.
#[test]
fn the_higher_place_wins() {
    let rip = ("RIP_MAX_QUEUE", "30");
    let own = ("PRODUCTION_SERVER_MAX_QUEUE", "20");
    assert_eq!(settings(&[], &[]).app.queue.size, 8192);
    assert_eq!(settings(&[], &[rip]).app.queue.size, 30);
    assert_eq!(settings(&[], &[rip, own]).app.queue.size, 20);
    assert_eq!(settings(&["--max-queue", "10"], &[rip, own]).app.queue.size, 10);
    assert_eq!(settings(&["--max-queue=10", "--max-queue=11"], &[]).app.queue.size, 11, "the last flag");
    assert_eq!(settings(&["--max-queue=10"], &[("RIP_MAX_QUEUE", "junk")]).app.queue.size, 10, "never looked at");

    let many = ("WEB_CONCURRENCY", "7");
    assert_eq!(settings(&[], &[many]).app.workers, 7);
    assert_eq!(settings(&["w:5"], &[many]).app.workers, 5);
    assert_eq!(settings(&["w:5", "-w", "3"], &[many]).app.workers, 3);
    assert_eq!(settings(&["-w3", "w:5"], &[many]).app.workers, 3, "order does not matter");
    assert_eq!(settings(&["w:auto"], &[many]).app.workers, cores().max(2));

    let listening = |arguments: &[&str], variables: &[(&str, &str)]| -> Vec<String> {
        settings(arguments, variables).listening.at.iter().map(ToString::to_string).collect()
    };
    assert_eq!(listening(&[], &[("PORT", "3000")]), ["0.0.0.0:3000"]);
    assert_eq!(listening(&["http:4000"], &[("PORT", "3000")]), ["0.0.0.0:4000"]);
    assert_eq!(listening(&["4000", "http:4001"], &[("PORT", "3000")]), ["0.0.0.0:4000", "0.0.0.0:4001"]);
    assert_eq!(listening(&["4000", "--listen", "[::1]:1", "--listen=unix:/s"], &[]), ["[::1]:1", "unix:/s"]);
    assert_eq!(listening(&[], &[("PRODUCTION_SERVER_LISTEN", "127.0.0.1:1, 2")]), ["127.0.0.1:1", "0.0.0.0:2"]);
    assert_eq!(listening(&[], &[("PORT", "")]), ["0.0.0.0:8080"], "set to nothing");
}

#[test]
fn every_key_is_read_from_flag_and_environment_alike() {
    for key in keys::all().filter(|key| !key.is_switch()) {
        let flag = format!("--{}={}", key.name, key.example);
        let from_flag = settings(&[&flag], &[]);
        let variable = key.variable();
        let from_environment = settings(&[], &[(variable.as_str(), key.example)]);
        assert_eq!(format!("{from_flag:?}"), format!("{from_environment:?}"), "{}", key.name);
    }
}

#[test]
fn flags_land_where_they_belong() {
    let said = settings(
        &[
            "run",
            "-c",
            "8",
            "--balance=least",
            "r:5,90s",
            "--hold",
            "0s",
            "--queue-timeout-ms=1500",
            "--max-body=10MB",
            "--max-head=64KiB",
            "--max-fields=500",
            "--max-tunnels=7",
            "--answer-timeout=10m",
            "--keepalive=off",
            "--pin",
            "off",
            "--internal=off",
            "--half-close=serve",
            "--shutdown=1m",
            "--run-dir",
            "/r",
            "--json-logging",
            "--access-log",
            "/a.log",
            "--",
            "node",
            "server.js",
            "--listen",
        ],
        &[],
    );
    assert_eq!((said.app.sharing.concurrency, said.app.sharing.balance), (8, Balance::Least));
    assert_eq!(said.app.life.recycle.requests, 5);
    assert_eq!(said.app.life.recycle.lifetime, Some(Duration::from_secs(90)));
    assert_eq!((said.app.queue.hold, said.app.queue.timeout), (Duration::ZERO, Duration::from_millis(1500)));
    assert_eq!(
        (said.bounds.body, said.app.sharing.keepalive, said.telling.internal),
        (10_000_000, false, Internal::Off)
    );
    assert_eq!((said.bounds.head, said.bounds.fields, said.app.sharing.max_tunnels), (65_536, 500, 7));
    assert_eq!(said.app.timeouts.answer, Some(Duration::from_secs(600)));
    assert!(said.app.answering.serve_half_closed);
    assert_eq!(
        (said.loops.pin, said.leaving.shutdown, said.process.run_dir),
        (Pin::Off, Duration::from_secs(60), PathBuf::from("/r"))
    );
    let target = LogTarget::File("/a.log".into());
    assert_eq!(said.logs.access, AccessLogSettings::new(target, AccessLogFormat::Json));
    let words: Vec<OsString> = ["node", "server.js", "--listen"].map(OsString::from).into();
    assert_eq!(said.app.program.command, Command::Argv(words), "what stands behind -- is the command's");
}

#[test]
fn the_access_log_follows_the_higher_place() {
    let target = |arguments: &[&str], variables: &[(&str, &str)]| settings(arguments, variables).logs.access.target;
    let off = ("PRODUCTION_SERVER_NO_ACCESS_LOG", "1");
    assert_eq!(target(&[], &[off]), LogTarget::Off);
    assert_eq!(target(&["--access-log", "-"], &[off]), LogTarget::Stdout);
    assert_eq!(target(&["--no-access-log"], &[("PRODUCTION_SERVER_ACCESS_LOG", "/a")]), LogTarget::Off);
    assert_eq!(target(&[], &[("PRODUCTION_SERVER_NO_ACCESS_LOG", "off")]), LogTarget::Stdout);
    let json = settings(&["--log-format", "json"], &[]);
    assert_eq!((json.logs.access.format, json.logs.events.format), (AccessLogFormat::Json, EventFormat::Json));
    let rip = settings(&["--json-logging"], &[]);
    assert_eq!((rip.logs.access.format, rip.logs.events.format), (AccessLogFormat::Json, EventFormat::Auto));
}

#[test]
fn upstreams_and_texts_start_no_worker() {
    let said = settings(&["--upstream", "unix:/a.sock", "--upstream=http://h:81", "c:64"], &[("WEB_CONCURRENCY", "4")]);
    assert_eq!(said.app.instead.upstreams, [Upstream::Unix("/a.sock".into()), Upstream::Tcp("h".to_owned(), 81)]);
    assert_eq!((said.app.program.command, said.app.sharing.concurrency), (Command::None, 64));
    let said = settings(&["--respond", "hello"], &[]);
    assert_eq!((said.app.program.command, said.app.instead.respond.as_deref()), (Command::None, Some("hello")));
}

#[test]
fn the_run_directory_follows_the_surroundings() {
    let run_dir = |arguments: &[&str], variables: &[(&str, &str)]| settings(arguments, variables).process.run_dir;
    assert_eq!(
        run_dir(&[], &[("RUNTIME_DIRECTORY", "/run/a:/run/b"), ("XDG_RUNTIME_DIR", "/x")]),
        PathBuf::from("/run/a")
    );
    assert_eq!(run_dir(&["9000"], &[("XDG_RUNTIME_DIR", "/x")]), PathBuf::from("/x/production_server-9000"));
    let temporary = run_dir(&["--listen=unix:/run/app.sock"], &[]).to_string_lossy().into_owned();
    assert!(temporary.starts_with("/tmp/production_server-") && temporary.ends_with("-app.sock"), "{temporary}");
}

#[test]
fn words_choose_what_is_done() {
    assert!(matches!(invocation(&["worker"], &[]), Ok(Invocation::Worker(rest)) if rest.is_empty()));
    let worker = invocation(&["worker", "--socket=/s"], &[]);
    assert!(matches!(worker, Ok(Invocation::Worker(rest)) if rest == ["--socket", "/s"]));
    assert!(matches!(invocation(&["_exec", "--", "-x"], &[]), Ok(Invocation::Exec(rest)) if rest == ["--", "-x"]));
    assert!(matches!(invocation(&["_guard", "/run"], &[]), Ok(Invocation::Guard(rest)) if rest == ["/run"]));
    for word in ["--version", "-V", "--help", "-h"] {
        assert!(matches!(invocation(&[word], &[]), Ok(Invocation::Print(_))), "{word}");
    }
}

#[test]
fn the_help_names_every_flag_default_and_variable() {
    let Ok(Invocation::Print(help)) = invocation(&["--help"], &[]) else { panic!("no help") };
    let help = help.to_string();
    let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for key in keys::all() {
        assert!(flat.contains(&format!("--{}", key.name)), "--{}", key.name);
        assert!(key.default.is_empty() || flat.contains(&format!("[default: {}]", key.default)), "{}", key.name);
        assert!(flat.contains(&key.variable()), "{}", key.variable());
        assert!(key.variables.iter().all(|name| flat.contains(name)), "{:?}", key.variables);
    }
    for section in ["Examples:", "Signals:", "Exit codes:", "App and workers:", "w:N|auto"] {
        assert!(help.contains(section), "{section}");
    }
}

#[test]
fn odd_variables_are_told_and_stop_nothing() {
    let variables = [
        ("PRODUCTION_SERVER_MAX_QUEU", "1"),
        ("PRODUCTION_SERVER_SERVICE_HOST", "h"),
        ("PRODUCTION_SERVER_PORT", "tcp://h:1"),
    ];
    let line = "PRODUCTION_SERVER_MAX_QUEU in the environment is not known and has no effect";
    assert_eq!(settings(&[], &variables).source.warnings, [line]);
    let line = "--listen-mode has no effect: no --listen unix:PATH is given";
    assert_eq!(settings(&["--listen-mode=0600"], &[]).source.warnings, [line]);
    assert!(settings(&["--listen-mode=0600", "--listen=unix:/s"], &[]).source.warnings.is_empty());
}

#[test]
fn modes_and_owners_of_unix_sockets_are_read() {
    let said = settings(&["--listen=unix:/s", "--listen-mode=660", "--listen-owner=33", "--listen-group=web"], &[]);
    let expected = UnixListen { mode: 0o660, owner: Some("33".to_owned()), group: Some("web".to_owned()) };
    assert_eq!(said.listening.unix, expected);
    for (text, mode) in [("0600", 0o600), ("0o777", 0o777), ("000", 0), ("0000", 0)] {
        assert_eq!(units::mode(text), Ok(mode), "{text}");
    }
    for text in ["", "0", "66", "0668", "1777", "00660", "u=rw", "0x180", "-600", "+60"] {
        assert_eq!(units::mode(text), Err("expected permissions of three octal digits".to_owned()), "{text}");
    }
    for text in ["0", "4294967294", "www-data", "0day", "user@realm"] {
        assert_eq!(units::account(text).as_deref(), Ok(text));
    }
    for text in ["", "4294967295", "99999999999", "a:b", "-1", "+1", "a/b", "a\0"] {
        assert!(units::account(text).is_err(), "{text}");
    }
}

/// Arguments, and the line that refuses them with 64.
const WRONG_ARGUMENTS: &[(&[&str], &str)] = &[
    (
        &["--max-queue", "abc"],
        "error: --max-queue \"abc\": expected a whole number from 0 to 1000000, as in --max-queue 8192",
    ),
    (
        &["--max-queue", "1000001"],
        "error: --max-queue \"1000001\": expected a whole number from 0 to 1000000, as in --max-queue 8192",
    ),
    (
        &["--max-queue", ""],
        "error: --max-queue \"\": expected a whole number from 0 to 1000000, as in --max-queue 8192",
    ),
    (&["--max-queue"], "error: --max-queue: expected a value, as in --max-queue 8192"),
    (&["--max-queu", "1"], "error: --max-queu is no flag: did you mean --max-queue?"),
    (&["--xyzzy"], "error: --xyzzy is no flag: see production_server --help"),
    (&["--no-access-log=1"], "error: --no-access-log: expected no value"),
    (&["-w", "0"], "error: --workers \"0\": expected a whole number from 1 to 1024, or auto, as in --workers 4"),
    (&["-c", "0"], "error: --concurrency \"0\": expected a whole number from 1 to 65535, as in --concurrency 1"),
    (&["--balance", "fifo"], "error: --balance \"fifo\": expected lifo, round-robin or least, as in --balance lifo"),
    (&["--pin", "maybe"], "error: --pin \"maybe\": expected on, off or auto, as in --pin auto"),
    (&["--keepalive", "2"], "error: --keepalive \"2\": expected on or off, as in --keepalive on"),
    (
        &["--shutdown", "5"],
        "error: --shutdown \"5\": expected a duration with its unit (ms, s, m, h) from 0s to 24h, as in --shutdown 5s",
    ),
    (
        &["--read-timeout-ms", "0"],
        "error: --read-timeout-ms \"0\": expected milliseconds from 1 to 3600000, as in --read-timeout-ms 5000",
    ),
    (
        &["--internal", "ops"],
        "error: --internal \"ops\": expected on, off, or a prefix that begins with a slash, as in --internal on",
    ),
    (
        &["--internal", "/ops/"],
        "error: --internal \"/ops/\": expected a prefix of letters, digits and -._~ between single slashes, \
         without one at its end, as in --internal on",
    ),
    (&["--half-close", "keep"], "error: --half-close \"keep\": expected cancel or serve, as in --half-close cancel"),
    (
        &["--max-body", "1XB"],
        "error: --max-body \"1XB\": expected a size (bytes, KiB, MiB, GiB, TiB, kB, MB, GB, TB) from 0 to 1TiB, as in --max-body 64MiB",
    ),
    (
        &["--max-head", "2MiB"],
        "error: --max-head \"2MiB\": expected a size (bytes, KiB, MiB, GiB, TiB, kB, MB, GB, TB) from 1KiB to 1MiB, as in --max-head 32KiB",
    ),
    (
        &["--max-fields", "9"],
        "error: --max-fields \"9\": expected a whole number from 10 to 10000, as in --max-fields 200",
    ),
    (
        &["--max-tunnels", "many"],
        "error: --max-tunnels \"many\": expected a whole number from 0 to 1000000, as in --max-tunnels 1000",
    ),
    (
        &["--answer-timeout", "0"],
        "error: --answer-timeout \"0\": expected a duration with its unit (ms, s, m, h) from 1ms to 24h, \
         as in --answer-timeout 10m",
    ),
    (
        &["--listen", "example.org:80"],
        "error: --listen \"example.org:80\": expected IP:PORT, a port, unix:PATH or systemd:NAME, as in --listen 0.0.0.0:8080",
    ),
    (
        &["--listen", "::1:80"],
        "error: --listen \"::1:80\": expected IP:PORT, a port, unix:PATH or systemd:NAME; an IPv6 address stands in brackets, as in --listen 0.0.0.0:8080",
    ),
    (&["--listen", "80", "--listen", "80"], "error: --listen: 0.0.0.0:80 is given twice: expected different addresses"),
    (
        &["--upstream", "app:80"],
        "error: --upstream \"app:80\": expected unix:PATH or http://HOST:PORT, as in --upstream unix:/run/app.sock",
    ),
    (
        &["--log-format", "xml"],
        "error: --log-format \"xml\": expected human, combined, common, json, rip, rip-json or a pattern such as \"{client} {method} {path} {status}\", as in --log-format json",
    ),
    (&["--run-dir", ""], "error: --run-dir \"\": expected a path, as in --run-dir /run/production_server"),
    (
        &["--hold", "\x1b[31m\n"],
        "error: --hold \"\\u{1b}[31m\\n\": expected a duration with its unit (ms, s, m, h) from 0s to 24h, as in --hold 10s",
    ),
    (&["w:many"], "error: shorthand \"w:many\": expected a whole number from 1 to 1024, or auto, as in w:4"),
    (&["c:"], "error: shorthand \"c:\": expected a whole number from 1 to 65535, as in c:1"),
    (&["r:x"], "error: shorthand \"r:x\": expected a whole number from 0 to 1000000000000, or auto, as in r:10000"),
    (
        &["r:5,60"],
        "error: shorthand \"r:5,60\": expected a duration with its unit (ms, s, m, h) from 1s to 8760h, as in r:10000,3600s",
    ),
    (&["http:99999"], "error: shorthand \"http:99999\": expected a port from 0 to 65535, as in http:8080"),
    (&["99999"], "error: shorthand \"99999\": expected a port from 0 to 65535, as in http:8080"),
    (
        &["node"],
        "error: \"node\" is no shorthand: expected w:N, c:N, r:N[,SECONDSs], http:PORT or a port; a command stands behind --",
    ),
    (&["--"], "error: no command stands behind --, as in production_server -- node server.js"),
    (&["--", ""], "error: the command behind -- is empty, as in production_server -- node server.js"),
    (&["--upstream=unix:/a", "--", "node"], "error: --upstream and a command exclude each other: expected one of them"),
    (&["--respond=x", "--", "node"], "error: --respond and a command exclude each other: expected one of them"),
    (
        &["--respond=x", "--upstream=unix:/a"],
        "error: --upstream and --respond exclude each other: expected one of them",
    ),
    (&["--upstream=unix:/a", "w:4"], "error: --upstream and w:4 exclude each other: no workers are started then"),
    (
        &["--respond=x", "--max-requests=4"],
        "error: --respond and --max-requests exclude each other: no workers are started then",
    ),
    (
        &["--no-access-log", "--access-log=-"],
        "error: --no-access-log and --access-log exclude each other: expected one of them",
    ),
    (
        &["--json-logging", "--log-format=human"],
        "error: --json-logging and --log-format exclude each other: expected one of them",
    ),
];

#[test]
fn wrong_arguments_are_refused_in_one_line() {
    for (arguments, line) in WRONG_ARGUMENTS {
        let refusal = invocation(arguments, &[]).expect_err(line);
        assert_eq!((refusal.line.as_str(), refusal.exit_code), (*line, 64), "{arguments:?}");
        assert!(!refusal.line.contains('\n'));
        if !arguments.contains(&"--") {
            let with_run: Vec<&str> = std::iter::once("run").chain(arguments.iter().copied()).collect();
            assert_eq!(invocation(&with_run, &[]).expect_err(line).line, *line, "with the word run");
        }
    }
    for arguments in [&["worker", "x"][..], &["w:2", "worker"], &["--loops=1", "run"], &["-w"], &["-q"], &["help"]] {
        let refusal = invocation(arguments, &[]).unwrap_err();
        assert!(refusal.line.starts_with("error: ") && !refusal.line.contains('\n'), "{arguments:?}: {}", refusal.line);
        assert_eq!(refusal.exit_code, 64);
    }
}

#[test]
fn wrong_variables_are_refused_in_one_line() {
    let cases = [
        (
            "RIP_MAX_QUEUE",
            "x",
            "RIP_MAX_QUEUE=\"x\" in the environment: expected a whole number from 0 to 1000000, as in RIP_MAX_QUEUE=8192",
        ),
        (
            "RIP_CONNECT_TIMEOUT_MS",
            "-1",
            "RIP_CONNECT_TIMEOUT_MS=\"-1\" in the environment: expected milliseconds from 1 to 3600000, as in RIP_CONNECT_TIMEOUT_MS=200",
        ),
        (
            "WEB_CONCURRENCY",
            "0",
            "WEB_CONCURRENCY=\"0\" in the environment: expected a whole number from 1 to 1024, or auto, as in WEB_CONCURRENCY=4",
        ),
        (
            "PORT",
            "tcp://10.0.0.1:80",
            "PORT=\"tcp://10.0.0.1:80\" in the environment: expected IP:PORT, a port, unix:PATH or systemd:NAME, as in PORT=8080",
        ),
        (
            "PRODUCTION_SERVER_NO_ACCESS_LOG",
            "maybe",
            "PRODUCTION_SERVER_NO_ACCESS_LOG=\"maybe\" in the environment: expected on or off, as in PRODUCTION_SERVER_NO_ACCESS_LOG=on",
        ),
        (
            "PRODUCTION_SERVER_LISTEN",
            "80,80",
            "PRODUCTION_SERVER_LISTEN in the environment: 0.0.0.0:80 is given twice: expected different addresses",
        ),
    ];
    for (name, value, line) in cases {
        let refusal = invocation(&[], &[(name, value)]).unwrap_err();
        assert_eq!((refusal.line, refusal.exit_code), (format!("error: {line}"), 78));
    }
    let refusal = invocation(&["--", "node"], &[("PRODUCTION_SERVER_UPSTREAM", "unix:/a")]).unwrap_err();
    let line =
        "error: PRODUCTION_SERVER_UPSTREAM in the environment and a command exclude each other: expected one of them";
    assert_eq!((refusal.line.as_str(), refusal.exit_code), (line, 78));
}

/// Arguments, environment, exit code, and the line: which it is depends on where the values came from that do not go together.
type Clash<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], u8, &'a str);

#[test]
fn values_that_clash_are_refused_by_where_they_came_from() {
    let request = ("PRODUCTION_SERVER_REQUEST_TIMEOUT", "100ms");
    let connect = ("RIP_CONNECT_TIMEOUT_MS", "300");
    let cases: [Clash<'_>; 6] = [
        (
            &["--request-timeout=100ms"],
            &[],
            64,
            "--connect-timeout-ms (200ms) is longer than --request-timeout (100ms): expected it to be shorter",
        ),
        (
            &[],
            &[request],
            78,
            "--connect-timeout-ms (200ms) is longer than PRODUCTION_SERVER_REQUEST_TIMEOUT in the environment (100ms): \
             expected it to be shorter",
        ),
        (
            &["--request-timeout=100ms"],
            &[connect],
            78,
            "RIP_CONNECT_TIMEOUT_MS in the environment (300ms) is longer than --request-timeout (100ms): \
             expected it to be shorter",
        ),
        (
            &["--connect-timeout-ms=31000"],
            &[("PORT", "1")],
            64,
            "--connect-timeout-ms (31s) is longer than --request-timeout (30s): expected it to be shorter",
        ),
        (
            &["--upstream=unix:/a"],
            &[("PRODUCTION_SERVER_RESPOND", "x")],
            78,
            "--upstream and PRODUCTION_SERVER_RESPOND in the environment exclude each other: expected one of them",
        ),
        (&["80", "http:80"], &[], 64, "80: 0.0.0.0:80 is given twice: expected different addresses"),
    ];
    for (arguments, variables, code, line) in cases {
        let refusal = invocation(arguments, variables).expect_err(line);
        assert_eq!((refusal.line, refusal.exit_code), (format!("error: {line}"), code), "{arguments:?} {variables:?}");
    }
}

#[test]
fn bytes_that_are_no_text_are_refused_and_paths_of_commands_are_not() {
    let odd = OsString::from_vec(b"\xff".to_vec());
    let arguments = |words: [&str; 2]| words.map(OsString::from).into_iter().chain([odd.clone()]);
    let refusal = read(arguments(["production_server", "--run-dir"]), &environment(&[])).unwrap_err();
    assert_eq!(refusal.line, "error: --run-dir \"\u{fffd}\": expected UTF-8, as in --run-dir /run/production_server");
    let Ok(Invocation::Run(loaded)) = read(arguments(["production_server", "--"]), &environment(&[])) else { panic!() };
    assert_eq!(loaded.config.apps[0].program.command, Command::Argv(vec![odd]));
}

#[test]
fn limits_of_workers_are_read() {
    let app = |arguments: &[&str]| settings(arguments, &[]).app;
    let scaled = app(&["w:2..8"]);
    assert_eq!((scaled.workers, scaled.scaling), (2, Some(Scaling { min: 2, max: 8 })));
    let plain = app(&["w:2..8", "-w", "3"]);
    assert_eq!((plain.workers, plain.scaling), (3, None), "the higher place takes the range back");
    assert_eq!(app(&["--ready", "http:/up"]).life.ready.by, ReadyBy::Http("/up".to_owned()));
    assert_eq!(app(&["--dump-signal", "sigquit"]).life.dump_signal, Some(libc::SIGQUIT));
    assert_eq!(app(&["--reload-signal", "10"]).reload.signal, 10);
    assert_eq!(app(&["--watchdog", "30s"]).life.watchdog, Some(Duration::from_secs(30)));
    let restart = app(&["--give-up", "3/10s"]).life.restart;
    assert_eq!((restart.crashes, restart.within), (3, Duration::from_secs(10)));
    for (arguments, expected) in [
        (["-w", "8..2"], "MIN..MAX"),
        (["-w", "0..2"], "MIN..MAX"),
        (["--ready", "http:nowhere"], "http:/PATH"),
        (["--dump-signal", "SIGFOO"], "a signal such as HUP"),
        (["--give-up", "5"], "as in 5/60s"),
        (["--watchdog", "0s"], "as in --watchdog 30s"),
        (["--socket", "pipe"], "unix, inherit or tcp"),
    ] {
        let refusal = invocation(&arguments, &[]).unwrap_err();
        assert!(refusal.line.contains(expected) && refusal.exit_code == 64, "{}", refusal.line);
    }
}

#[test]
fn signals_have_names_and_numbers() {
    for (number, name) in [(libc::SIGHUP, "HUP"), (libc::SIGTERM, "TERM"), (31, "31")] {
        assert_eq!(signal_name(number), name);
        assert_eq!(signal(name), Ok(number));
    }
    assert!(signal("0").is_err() && signal("32").is_err() && signal("").is_err());
}
