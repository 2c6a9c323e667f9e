//! The words on the command line, as processes: what they ask, print, and end with.

use std::fs::Permissions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command as Process, Output, Stdio};
use std::time::Duration;

use production_server::control::{Answer, Change, Command, ControlServer, SOCKET_NAME};
use production_server::socket_file::leave_dead;
use serde_json::json;

use super::rig::{Rig, TICKET, eventually};

/// The binary with nothing in its environment but a place without servers.
fn process(arguments: &[&str], runtime: &Path) -> Process {
    let mut process = Process::new(env!("CARGO_BIN_EXE_production_server"));
    process.args(arguments).env_clear().env("XDG_RUNTIME_DIR", runtime).stdin(Stdio::null());
    process
}

/// Runs a word against the rig's server.
fn run(rig: &Rig, arguments: &[&str]) -> Output {
    let arguments = [arguments, &["--run-dir", rig.directory.to_str().unwrap()]].concat();
    process(&arguments, &rig.directory).output().unwrap()
}

fn start(rig: &Rig, arguments: &[&str]) -> Running {
    let arguments = [arguments, &["--run-dir", rig.directory.to_str().unwrap()]].concat();
    let mut process = process(&arguments, &rig.directory);
    Running(process.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

/// A word that has not come back yet. Leaves nothing behind when a test fails.
struct Running(Child);

impl Running {
    fn end(mut self) -> (Option<i32>, String) {
        let status = eventually("the word to end", || self.0.try_wait().unwrap());
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.0.stderr.take().unwrap(), &mut said).unwrap();
        (status.code(), said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn told(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn every_word_asks_what_it_says() {
    let rig = Rig::new();
    let web = || Some("web".to_owned());
    let signal = |app, worker, signal| Command::Signal { app, worker, signal };
    let cases: Vec<(&[&str], Command, &str)> = vec![
        (&["restart"], Command::Restart { app: None, wait: false }, "it is under way\n"),
        (&["restart", "web"], Command::Restart { app: web(), wait: false }, "it is under way\n"),
        (&["scale", "4"], Command::Scale { app: None, change: Change::To(4) }, "it is under way\n"),
        (&["scale", "+2"], Command::Scale { app: None, change: Change::By(2) }, "it is under way\n"),
        (&["scale", "-1"], Command::Scale { app: None, change: Change::By(-1) }, "it is under way\n"),
        (&["scale", "web", "-1"], Command::Scale { app: web(), change: Change::By(-1) }, "it is under way\n"),
        (&["signal", "HUP"], signal(None, None, libc::SIGHUP), "it is under way\n"),
        (&["signal", "web", "usr1"], signal(web(), None, libc::SIGUSR1), "it is under way\n"),
        (&["signal", "web:2", "SIGTERM"], signal(web(), Some(2), libc::SIGTERM), "it is under way\n"),
        (&["signal", ":2", "9"], signal(None, Some(2), libc::SIGKILL), "it is under way\n"),
        (&["reload"], Command::Reload { app: None, wait: false }, "it is under way\n"),
        (&["pause"], Command::Pause { app: None, max: Duration::from_secs(30) }, "it is under way\n"),
        (
            &["pause", "web", "--max", "1.5s"],
            Command::Pause { app: web(), max: Duration::from_millis(1500) },
            "it is under way\n",
        ),
        (&["resume", "web"], Command::Resume { app: web() }, "ok\n"),
    ];
    for (arguments, command, printed) in cases {
        let output = run(&rig, arguments);
        assert_eq!(told(&output), (Some(0), printed.to_owned(), String::new()), "{arguments:?}");
        assert_eq!(rig.asked(), [command], "{arguments:?}");
    }
}

#[test]
fn status_is_a_table_or_the_document() {
    let rig = Rig::new();
    let (code, text, _) = told(&run(&rig, &["status"]));
    assert_eq!(code, Some(0));
    assert!(text.starts_with("production_server ") && text.contains("\n\nweb  running  "), "{text}");
    let (code, text, _) = told(&run(&rig, &["status", "--json"]));
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &document["apps"][0]["name"]), (Some(0), &json!("web")));
}

#[test]
fn refusals_have_their_codes() {
    let rig = Rig::new();
    let line = |text: &str| format!("production_server: {text}\n");
    let cases: Vec<(&[&str], i32, &str)> = vec![
        (&["restart", "api"], 64, "there is no app \"api\": expected web"),
        (&["drain"], 75, "the server stops already"),
    ];
    for (arguments, code, said) in cases {
        assert_eq!(told(&run(&rig, arguments)), (Some(code), String::new(), line(said)), "{arguments:?}");
    }
}

#[test]
fn wrong_words_are_refused_before_anything_is_asked() {
    let rig = Rig::new();
    let scale = ", as in scale 4 or scale +1\n";
    let cases: Vec<(&[&str], String)> = vec![
        (&["scale"], format!("error: scale: expected a number of workers{scale}")),
        (&["scale", "web", "many"], format!("error: scale: \"many\": expected a whole number from 0 to 1024{scale}")),
        (&["scale", "-0"], format!("error: scale: \"-0\": expected a whole number from 1 to 1024{scale}")),
        (&["scale", "+1025"], format!("error: scale: \"+1025\": expected a whole number from 1 to 1024{scale}")),
        (&["signal"], "error: signal: expected a signal, as in signal web:2 HUP\n".to_owned()),
        (
            &["signal", "web:x", "HUP"],
            "error: signal: expected a worker's id behind the colon, as in signal web:2 HUP\n".to_owned(),
        ),
        (
            &["pause", "--max", "30"],
            "error: --max \"30\": expected a duration with its unit (ms, s, m, h) from 100ms to 1h, as in --max 30s\n"
                .to_owned(),
        ),
        (&["restart", "--wiat"], "error: --wiat is no flag: did you mean --wait?\n".to_owned()),
        (&["status", "w:4"], "error: \"w:4\": expected a port, as in 3000 or http:3000\n".to_owned()),
    ];
    for (arguments, line) in cases {
        assert_eq!(told(&run(&rig, arguments)), (Some(64), String::new(), line), "{arguments:?}");
    }
    assert_eq!(rig.asked(), []);
}

#[test]
fn nothing_runs_is_3_for_status_and_69_for_the_others() {
    let nowhere = tempfile::tempdir().unwrap();
    let path = nowhere.path().join(SOCKET_NAME);
    let directory = nowhere.path().to_str().unwrap();
    let line = format!("production_server: no server runs at {}\n", path.display());
    // No file, and then the file of a server that is dead.
    for dead in [false, true] {
        if dead {
            leave_dead(&path).unwrap();
        }
        for (word, code) in [("status", 3), ("events", 69), ("stop", 69), ("restart", 69)] {
            let output = process(&[word, "--run-dir", directory], nowhere.path()).output().unwrap();
            assert_eq!(told(&output), (Some(code), String::new(), line.clone()), "{word}");
        }
    }
    let port = format!("{directory}/production_server-3999/{SOCKET_NAME}");
    for arguments in [&["status", "3999"][..], &["status", "http:3999"], &["restart", "--listen", "3999"]] {
        let output = process(arguments, nowhere.path()).output().unwrap();
        assert_eq!(told(&output).2, format!("production_server: no server runs at {port}\n"), "{arguments:?}");
    }
}

#[test]
fn a_server_of_somebody_else_is_77() {
    let directory = tempfile::tempdir().unwrap();
    let closed = directory.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    let _listener = UnixListener::bind(closed.join(SOCKET_NAME)).unwrap();
    let mut process = process(&["status", "--run-dir", closed.to_str().unwrap()], directory.path());
    if std::fs::metadata(&closed).unwrap().uid() == 0 {
        // Nothing is closed to root: somebody else looks, with a program that anybody may run.
        let program = directory.path().join("program");
        std::fs::copy(env!("CARGO_BIN_EXE_production_server"), &program).unwrap();
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).unwrap();
        std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        process = Process::new(&program);
        process.args(["status", "--run-dir", closed.to_str().unwrap()]).uid(65_534).gid(65_534);
    }
    std::fs::set_permissions(&closed, Permissions::from_mode(0o600)).unwrap();
    let output = process.output().unwrap();
    std::fs::set_permissions(&closed, Permissions::from_mode(0o700)).unwrap();
    let (code, _, said) = told(&output);
    assert_eq!(code, Some(77), "{said}");
    assert!(said.contains("cannot reach the server at") && said.contains("Permission denied"), "{said}");
}

/// Only places that were said: what else runs on this machine is none of this test's business.
#[test]
fn the_server_is_found_where_run_would_put_it() {
    let runtime = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let directory = runtime.path().join(name);
        std::fs::create_dir(&directory).unwrap();
        directory
    };
    place("production_server-8080");
    let (first, second) = (Rig::at(&place("production_server-3000")), Rig::at(&place("production_server-3001")));
    let directory = second.directory.to_str().unwrap();
    let socket = first.socket.to_str().unwrap();
    /// Arguments, environment, and who is meant.
    type Case<'a> = (&'a [&'a str], &'a [(&'a str, &'a str)], &'a Rig);
    let cases: [Case<'_>; 9] = [
        (&["reload"], &[("PORT", "3000")], &first),
        (&["reload"], &[("PRODUCTION_SERVER_LISTEN", "127.0.0.1:3001")], &second),
        (&["reload"], &[("PRODUCTION_SERVER_RUN_DIR", directory), ("PORT", "3000")], &second),
        (&["reload"], &[("RUNTIME_DIRECTORY", directory), ("PORT", "3000")], &second),
        (&["reload", "--listen", "127.0.0.1:3000"], &[("PORT", "3001")], &first),
        (&["status", "3000"], &[("PORT", "3001")], &first),
        (&["status", "http:3001"], &[], &second),
        (&["reload", "--run-dir", directory], &[("PORT", "3000")], &second),
        (&["reload", "--socket", socket], &[("PRODUCTION_SERVER_RUN_DIR", directory)], &first),
    ];
    for (arguments, variables, rig) in cases {
        let output = process(arguments, runtime.path()).envs(variables.iter().copied()).output().unwrap();
        let (code, _, said) = told(&output);
        assert_eq!((code, said.as_str()), (Some(0), ""), "{arguments:?} {variables:?}");
        assert_eq!(
            (rig.asked().len(), first.asked().len() + second.asked().len()),
            (1, 0),
            "{arguments:?} {variables:?}"
        );
    }
    let output = process(&["status", "8080"], runtime.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "a port that was said is not replaced by another");
}

#[test]
fn a_restart_that_is_waited_for_ends_with_its_outcome() {
    let rig = Rig::new();
    for (answer, code, said) in [
        (Answer::done("generation 2 serves"), 0, ""),
        (Answer::refused(409, "the replacement exited"), 75, "production_server: the replacement exited\n"),
    ] {
        let word = start(&rig, &["restart", "--wait"]);
        eventually("the request", || rig.asked().pop());
        rig.answer(TICKET, answer);
        assert_eq!(word.end(), (Some(code), said.to_owned()));
    }
    let word = start(&rig, &["restart", "web", "--wait"]);
    eventually("the request", || rig.asked().pop());
    let mut rig = rig;
    rig.close();
    assert_eq!(word.end(), (Some(69), "production_server: the server has ended\n".to_owned()));
}

#[test]
fn stop_comes_back_when_the_server_is_gone() {
    let process =
        Running(Process::new("sleep").arg("600").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let mut rig = Rig::of_process(process.0.id());
    let mut word = start(&rig, &["stop", "--now"]);
    let mut printed = BufReader::new(word.0.stdout.take().unwrap());
    let mut line = String::new();
    printed.read_line(&mut line).unwrap();
    assert_eq!(line, "the server stops\n");
    assert_eq!(rig.asked(), [Command::Status, Command::Stop { now: true }]);
    assert!(word.0.try_wait().unwrap().is_none(), "its control socket is still there");
    rig.close();
    assert!(word.0.try_wait().unwrap().is_none(), "its process is still there");
    drop(process);
    assert_eq!(word.end(), (Some(0), String::new()));
}

#[test]
fn events_are_printed_until_the_server_ends_or_nobody_reads() {
    let mut rig = Rig::new();
    let event = json!({"event": "worker-spawn", "time": "t", "worker": 1});
    let mut people = start(&rig, &["events"]);
    let mut script = start(&rig, &["events", "--json"]);
    let mut gone = start(&rig, &["events"]);
    let mut lines = [&mut people, &mut script].map(|word| BufReader::new(word.0.stdout.take().unwrap()).lines());
    let mut readers = 0;
    eventually("all three", || {
        readers += rig.asked().len();
        (readers == 3).then_some(())
    });
    drop(gone.0.stdout.take());
    rig.publish(event.clone());
    let [people_lines, script_lines] = &mut lines;
    let read = |lines: &mut dyn Iterator<Item = std::io::Result<String>>, until: &str| {
        lines.map(Result::unwrap).find(|line| line.contains(until)).expect("the event")
    };
    assert_eq!(read(people_lines, "worker-spawn"), "t  worker-spawn  worker=1");
    assert_eq!(read(script_lines, "worker-spawn"), event.to_string());
    eventually("the one without a reader", || {
        rig.publish(json!({"event": "more"}));
        gone.0.try_wait().unwrap()
    });
    assert_eq!(gone.end(), (Some(0), String::new()));
    rig.close();
    assert_eq!(people.end(), (Some(0), String::new()));
    assert_eq!(script.end(), (Some(0), String::new()));
}

#[test]
fn a_server_that_answers_nonsense_is_named_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(SOCKET_NAME);
    let listener = UnixListener::bind(&path).unwrap();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        std::io::Read::read(&mut stream, &mut [0; 1024]).unwrap();
        std::io::Write::write_all(&mut stream, b"220 mail.example.org ESMTP\r\n\r\n").unwrap();
    });
    let output =
        process(&["status", "--run-dir", directory.path().to_str().unwrap()], directory.path()).output().unwrap();
    thread.join().unwrap();
    let (code, _, said) = told(&output);
    assert_eq!(code, Some(70));
    assert!(said.starts_with("production_server: the server's answer makes no sense: "), "{said}");
    // A path that no socket can have is a mistake, not a server that is away.
    assert!(ControlServer::open(&directory.path().join("x".repeat(200))).is_err());
}
