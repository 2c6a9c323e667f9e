//! `check` looks at what a configuration means on this machine, and `init` writes a first one.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::tls::Pair;
use crate::support::until;

const PATH: (&str, &str) = ("PATH", "/usr/bin:/bin");

/// Runs the program in a folder, with nothing but a PATH in its environment.
fn program(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(crate::support::PROGRAM);
    command
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .envs([PATH, ("RUNTIME_DIRECTORY", "run")])
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(!folder.join("run").exists(), "{arguments:?}: something was started");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `check` says of a file, and its exit code.
fn check(folder: &Path, file: &str) -> (String, Option<i32>) {
    std::fs::write(folder.join("production_server.toml"), file).unwrap();
    let output = program(folder, &["check"]);
    (text(&output.stderr), output.status.code())
}

#[test]
fn what_would_not_work_here_is_said_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("directory")).unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let long = format!("server.run_dir = \"{}\"", "r".repeat(100));
    for (file, title, place, label) in [
        ("apps.web.command = [\"no-such-program\"]", "the command cannot be run", "1:20", "not found in PATH"),
        ("apps.web.command = [\"./file\"]", "the command cannot be run", "1:20", "not executable"),
        ("log.access = \"nowhere/access.log\"", "nowhere/access.log cannot be made", "1:14", "no directory nowhere"),
        ("log.access = \"directory\"", "the access log is a directory", "1:14", "expected a file"),
        ("log.events = \"nowhere/events.log\"", "nowhere/events.log cannot be made", "1:14", "no directory nowhere"),
        ("log.events = \"directory\"", "the event log is a directory", "1:14", "expected a file"),
        ("metrics.cloudwatch.to = \"nowhere/a\"", "nowhere/a cannot be made", "1:25", "no directory nowhere"),
        ("metrics.cloudwatch.to = \"directory\"", "the file of metrics is a directory", "1:25", "expected a file"),
        ("server.pid_file = \"directory\"", "the pid file is a directory", "1:19", "expected a file"),
        ("admin.listen = \"unix:nowhere/a\"", "nowhere/a cannot be made", "1:16", "no directory nowhere"),
        ("admin.listen = \"198.51.100.7:0\"", "198.51.100.7:0 is not an address", "1:16", "no interface"),
        (
            "admin.listen = \"127.0.0.1:81\"\nlisten = [{ address = \"0.0.0.0:81\" }]",
            "127.0.0.1:81 and the listener 0.0.0.0:81 clash",
            "1:16",
            "",
        ),
        (&long, "the run directory's path is too long", "1:18", "choose a shorter run directory"),
        ("server.run_dir = \"file/run\"", "the run directory cannot be made", "1:18", "file is no directory"),
        ("apps.web.module = \"absent.so\"", "there is no absent.so", "1:19", ""),
        ("apps.web.hot_reload = { watch = [\"absent\"] }", "there is no absent", "1:33", ""),
        (
            "apps.web = { command = [\"sh\"], directory = \"nowhere\" }",
            "there is no directory /",
            "1:44",
            "workers start there",
        ),
        ("hub.chat = {}\n[[routes]]\nstatic = \"nowhere\"", "there is no directory nowhere", "3:10", ""),
        ("listen = [{ address = \"unix:nowhere/a\" }]", "nowhere/a cannot be made", "1:23", "no directory nowhere"),
        ("listen = [{ address = \"unix:file\" }]", "cannot listen on unix:file", "1:23", "move it away"),
        ("listen = [{ address = \"198.51.100.7:0\" }]", "198.51.100.7:0 is not an address", "1:23", "no interface"),
        (
            "listen = [{ address = \"unix:a\", owner = \"nobody-at-all\" }]",
            "there is no user \"nobody-at-all\"",
            "",
            "",
        ),
    ] {
        let (said, code) = check(folder.path(), file);
        assert_eq!(code, Some(78), "{file}\n{said}");
        assert!(said.contains(title) && said.contains(label), "{file}\n{said}");
        assert!(said.contains(&format!(" --> production_server.toml:{place}\n")) || place.is_empty(), "{file}\n{said}");
    }
}

/// What the server does as the user that it becomes is looked at as that user.
#[test]
fn what_another_user_would_not_reach_is_said() {
    use std::os::unix::fs::{PermissionsExt, chown};
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: only root may become somebody else");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &str, mode| {
        std::fs::set_permissions(folder.path().join(path), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for name in ["closed", "closed/inside", "mine", "own"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("closed/program"), "#!/bin/sh\n").unwrap();
    for (path, bits) in [("", 0o755), ("closed/program", 0o755), ("closed", 0o700), ("own", 0o700), ("mine", 0o700)] {
        mode(path, bits);
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().expect("a user named nobody");
    chown(folder.path().join("own"), Some(nobody.uid.as_raw()), None).unwrap();
    let listen = "listen = [{ address = \"127.0.0.1:0\" }]\n";
    for (line, title) in [
        ("log.access = \"closed/a\"", "the user nobody may not write in closed"),
        ("log.events = \"closed/inside/a\"", "the user nobody may not look at closed/inside"),
        ("server.pid_file = \"closed/a\"", "the user nobody may not write in closed"),
        ("metrics.cloudwatch.to = \"closed/a\"", "the user nobody may not write in closed"),
        ("server.spool_dir = \"closed\"", "no file can be made in closed"),
        ("apps.web.static = \"closed\"", "the directory closed cannot be read"),
        ("apps.web.command = [\"./closed/program\"]", "the command cannot be run"),
        ("apps.web = { command = [\"sh\"], directory = \"closed\" }", "may not be in the directory"),
        ("apps.web.module = \"closed/program\"", "closed/program cannot be read"),
        ("server.run_dir = \"closed/run\"", "the run directory cannot be made"),
        ("server.run_dir = \"mine\"", "the run directory cannot be used"),
    ] {
        let of =
            |run: &str| if line.contains("run_dir") { String::new() } else { format!("server.run_dir = \"{run}\"\n") };
        let (said, code) = check(folder.path(), &format!("{listen}{}{line}\n", of("mine")));
        assert_eq!((said.as_str(), code), ("", Some(0)), "{line}");
        let (said, code) = check(folder.path(), &format!("server.user = \"nobody\"\n{listen}{}{line}\n", of("own")));
        assert_eq!(code, Some(78), "{line}\n{said}");
        assert!(said.contains(title) && said.contains("1 error"), "{line}\n{said}");
    }
    let (said, code) = check(folder.path(), &format!("server = {{ user = \"nobody\", run_dir = \"own\" }}\n{listen}"));
    assert_eq!((said.as_str(), code), ("", Some(0)));
}

/// Metrics that nobody would ever see are told as the log is that cannot be opened.
#[test]
fn a_start_needs_the_file_of_metrics() {
    let folder = tempfile::tempdir().unwrap();
    for path in ["nowhere/a", "."] {
        let file = format!("listen = [{{ address = \"127.0.0.1:0\" }}]\nmetrics.cloudwatch.to = \"{path}\"\n");
        assert_eq!(check(folder.path(), &file).1, Some(78), "{path}");
        let output = program(folder.path(), &["run"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(73), "{said}");
        assert!(said.contains(&format!("cannot write metrics for CloudWatch to {path}: ")), "{said}");
    }
}

/// As `check` says it, and not as what was given on the command line.
#[test]
fn a_start_says_where_in_the_file_its_program_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = "listen = [{ address = \"127.0.0.1:0\" }]\n[apps.web]\n";
    for (line, title, place) in [
        ("command = [\"no-such-program\"]", "the command cannot be run", "3:11"),
        ("directory = \"nowhere\"\ncommand = [\"sh\"]", "there is no directory /", "3:13"),
    ] {
        let (checked, code) = check(folder.path(), &format!("{file}{line}\n"));
        assert_eq!(code, Some(78));
        let output = program(folder.path(), &["run"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(title) && said.contains(&format!(" --> production_server.toml:{place}\n")), "{said}");
        assert!(checked.contains(title), "{checked}");
    }
    let output = program(folder.path(), &["run", "-f", "none", "--listen", "127.0.0.1:0", "--", "no-such-program"]);
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn a_port_in_use_is_said_with_who_uses_it() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let (said, code) = check(folder.path(), &format!("[[listen]]\naddress = \"127.0.0.1:{port}\"\n"));
    assert_eq!(code, Some(78), "{said}");
    assert!(said.contains(&format!("error: 127.0.0.1:{port} is in use\n --> production_server.toml:2:11\n")), "{said}");
    if cfg!(target_os = "linux") {
        assert!(said.contains(&format!("(process {})", std::process::id())), "{said}");
    }
    // The same from a flag, where there is no line to show.
    let output = program(folder.path(), &["-t", "-f", "none", "--listen", &format!("127.0.0.1:{port}")]);
    assert_eq!(output.status.code(), Some(78));
    assert!(text(&output.stderr).starts_with(&format!("error: --listen: 127.0.0.1:{port} is in use\n")), "{output:?}");
    // Another test's program may hold the port for a moment: as a copy of this process that is not that program yet, or for its own.
    drop(taken);
    until("the port is free again", || {
        let (said, code) = check(folder.path(), &format!("[[listen]]\naddress = \"127.0.0.1:{port}\"\n"));
        (said.as_str(), code) == ("", Some(0))
    });
}

#[test]
fn what_is_only_odd_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let listen = "listen = [{ address = \"127.0.0.1:0\" }]\n";
    let two = "upstreams = [\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"]";
    let memory = "apps.web = { workers = 1000, recycle = { memory = \"10000GiB\" } }";
    for (file, title) in [
        (format!("{listen}apps.web.command = [\"sh\", \"absent.js\"]"), "warning: there is no absent.js here"),
        (format!("{listen}{memory}"), "warning: 1000 workers may take"),
        (format!("{listen}server.buffer_bytes = \"1000GiB\""), "warning: buffer_bytes may take 1024000 MiB"),
        (format!("{listen}apps.web.health.interval = \"1s\""), "nobody is asked without a path: --health-check"),
        (format!("{listen}apps.web = {{ health = \"/a\", respond = \"\" }}"), "the loop itself answers"),
        (
            format!("{listen}apps.web = {{ upstream = \"http://127.0.0.1:1\", eject.after = 5 }}"),
            "only upstreams are left out, and only where there are several",
        ),
        (
            format!("{listen}[[routes]]\nmatch.path = \"/a\"\n{two}\n[[routes]]\n{two}\nhealth = \"/a\""),
            "an earlier route says otherwise of the same upstreams, and that holds",
        ),
        (
            format!("{listen}hub.chat = {{}}\n[[routes]]\nmatch.path = \"/api/v1/listen\"\nrespond = \"\""),
            "the hub `chat` is served there: say another `path` of it",
        ),
        (
            format!("{listen}hub.chat.path = \"/chat\"\n[[routes]]\nhub = \"chat\""),
            "a route is to this hub, and it is served there alone",
        ),
    ] {
        let (said, code) = check(folder.path(), &file);
        assert!(said.contains(title) || !cfg!(target_os = "linux"), "{file}\n{said}");
        assert_eq!(code, Some(0), "{said}");
    }
}

#[test]
fn init_writes_a_file_that_is_valid_and_never_writes_over_one() {
    let apps: [(&[(&str, &str)], &str); 3] = [
        (&[("package.json", r#"{"scripts": {"start": "sh server.js"}}"#)], "the script start in package.json"),
        (&[("Procfile", "web: sh ./start ${PORT} \"a b\"\n"), ("start", "")], "Procfile"),
        (&[], "the built-in demo worker"),
    ];
    for (files, why) in apps {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let output = program(folder.path(), &["init"]);
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{files:?}");
        assert!(text(&output.stdout).contains(why), "{output:?}");
        let path = folder.path().join("production_server.toml");
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.contains(why));
        let shown = program(folder.path(), &["config", "show"]);
        assert_eq!((shown.status.code(), text(&shown.stderr).as_str()), (Some(0), ""), "{written}");
        // Each line that is commented out is right when it is not.
        let uncommented: Vec<String> =
            written.lines().map(|line| line.strip_prefix("# ").unwrap_or(line).to_owned()).collect();
        let is_code = |line: &&String| {
            line.starts_with('[') || line.split_once(" = ").is_some_and(|(name, _)| !name.contains(' '))
        };
        let mut seen = Vec::new();
        let lines = uncommented.iter().filter(is_code).filter(|line| {
            let name = line.split(" = ").next().unwrap();
            let fresh = !seen.contains(&name);
            seen.push(name);
            fresh
        });
        let all = folder.path().join("all.toml");
        std::fs::write(&all, lines.cloned().collect::<Vec<_>>().join("\n")).unwrap();
        let shown = program(folder.path(), &["config", "show", "-f", "all.toml"]);
        assert_eq!((shown.status.code(), text(&shown.stderr).as_str()), (Some(0), ""));
        let again = program(folder.path(), &["init"]);
        let said = "error: production_server.toml is here already, and stays as it is\n";
        assert_eq!((again.status.code(), text(&again.stderr).as_str()), (Some(73), said));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), written);
    }
}

/// With its line in the file. (That a server starts with it, tests of TLS show.)
#[test]
fn a_certificate_that_does_not_hold_is_said_with_its_place() {
    let folder = tempfile::tempdir().unwrap();
    for (from, until, what, hint) in [
        (2019, 2020, "a.pem: the certificate has expired on 2020-01-01", "renew it"),
        (2219, 2220, "a.pem: the certificate does not hold before 2219-01-01", "is the clock of this machine right?"),
    ] {
        Pair::of_years(&["a.test"], from, until).write(folder.path(), "a");
        let file = "listen = [{ address = \"127.0.0.1:0\" }]\ntls.cert = \"a.pem\"\ntls.key = \"a.key\"\n";
        let (said, code) = check(folder.path(), file);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains(&format!("error: {what}\n --> production_server.toml:2:13\n")), "{said}");
        assert!(said.contains(hint), "{said}");
    }
}

/// On the command line, each is shown with the flag that names it.
#[test]
fn files_of_tls_are_said_with_their_flags() {
    let folder = tempfile::tempdir().unwrap();
    let (pair, other) = (Pair::of(&["a.test"]), Pair::of(&["a.test"]));
    pair.write(folder.path(), "a");
    other.write(folder.path(), "b");
    std::fs::create_dir(folder.path().join("directory")).unwrap();
    let (begin, end) = ("-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n");
    let chain = format!("{}{begin}MIIBszCCAVmgAwIBAgIU\n{end}", pair.certificate_pem);
    std::fs::write(folder.path().join("chain.pem"), chain).unwrap();
    let cert = ["--tls-cert", "a.pem"];
    for (flags, said) in [
        (&cert[..], "--tls-cert: certificates and keys do not go together: 1 and 0"),
        (&["--tls-key", "a.key"], "--tls-key: certificates and keys do not go together: 0 and 1"),
        (
            &[&cert[..], &["--tls-key", "b.key"]].concat(),
            "--tls-key: b.key: the key is not that of the certificate in a.pem",
        ),
        (&[&cert[..], &["--tls-key", "directory"]].concat(), "--tls-key: directory: it is a directory"),
        (&[&cert[..], &["--tls-key", "none.key"]].concat(), "--tls-key: none.key: it cannot be read: No such file"),
        (
            &["--tls-certificate", "chain.pem:a.key"],
            "--tls-certificate: chain.pem: certificate 2 of 2 in it cannot be read",
        ),
        (&["--tls-certificate", "a.pem:a.pem"], "--tls-certificate: a.pem: there is no private key in it"),
        (
            &[&cert[..], &["--tls-key", "a.key", "--tls-client-ca", "b.key"]].concat(),
            "--tls-client-ca: b.key: there is no certificate in it",
        ),
    ] {
        for command in ["check", "run"] {
            let output = program(folder.path(), &[&[command, "--respond", "hello"], flags].concat());
            let stderr = text(&output.stderr);
            assert_eq!(
                (stderr.contains(said), output.status.code()),
                (true, Some(78)),
                "{command} {flags:?}: {stderr}"
            );
        }
    }
}
