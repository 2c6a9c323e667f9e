//! Upgrades that fail: the old server stays, and says why.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use super::*;

on_every_backend! {
    what_is_no_server_of_this_kind_changes_nothing,
    a_new_server_that_cannot_start_says_why,
    a_new_server_that_is_killed_changes_nothing,
    an_app_that_was_down_and_is_not_required_stops_no_upgrade,
    nonsense_about_a_limit_stops_no_upgrade,
    what_a_new_server_has_taken_is_taken_back,
}

fn refused(line: &Line, program: &str, reason: &str) {
    let before = line.process();
    let (code, said) = line.word(&["upgrade", program, "--wait"]);
    assert_eq!(code, Some(75), "{said}");
    assert!(said.contains(reason), "{said}");
    let status = line.status();
    assert_eq!((status["pid"].as_u64(), line.pid_file()), (Some(u64::from(before)), before));
}

fn what_is_no_server_of_this_kind_changes_nothing(backend: &str) {
    let line = Line::start(backend, &["-w", "2", "--upgrade-timeout", "1s"]);
    line.until_ready(2);
    let crowd = Crowd::begin(&line, 16, 4);
    let hello = |protocol: u32| format!(r#"printf '{{"hello":{{"protocol":{protocol},"version":"9.9"}}}}\n' >&0"#);
    for (name, text, reason) in [
        ("exits", "exit 1".to_owned(), "exited with code 1 before it was ready"),
        (
            "sleeps",
            format!("sleep 1000 & echo $! > {}; wait", path(&line.folder, "inner")),
            "does not say that it is a server of this kind",
        ),
        ("babbles", "echo nonsense >&0; exec sleep 1000".to_owned(), "cannot be understood"),
        (
            "newer",
            format!("{}; exec sleep 1000", hello(999)),
            "(version 9.9) speaks version 999 of the handover, and this one 1",
        ),
        ("stalls", format!("{}; exec sleep 1000", hello(1)), "was not ready within 1 s (--upgrade-timeout)"),
        ("hasty", format!("{}; echo '{{\"serving\":{{}}}}' >&0; exec sleep 1000", hello(1)), "in the phase Given"),
    ] {
        let program = line.script(name, &text);
        refused(&line, &program, reason);
        let upgrade = &line.status()["upgrade"];
        assert_eq!((&upgrade["state"], &upgrade["program"]), (&"failed".into(), &program.as_str().into()));
        assert!(upgrade["reason"].as_str().unwrap().contains(reason), "{upgrade}");
    }
    let inner: u32 = fs::read_to_string(line.folder.path().join("inner")).unwrap().trim().parse().unwrap();
    until("what was started is ended", || Process::of(inner).is_none());
    refused(&line, &path(&line.folder, "nothing"), "there is no such file");
    line.server.says("the upgrade has failed; this server serves on");
    crowd.end();
    line.stop();
}

fn a_new_server_that_cannot_start_says_why(backend: &str) {
    let line = Line::start(backend, &["-w", "2", "--give-up", "1/60s", "--", "sh", "-c", &app()]);
    line.until_ready(2);
    let crowd = Crowd::begin(&line, 4, 4);
    // What the new binary is started with is not what it understands.
    let other = line.script("other", &format!("exec {PROGRAM} --no-such-flag \"$@\""));
    refused(&line, &other, "the new server cannot start: error: --no-such-flag is no flag");
    let other = line.script("taken", &format!("exec {PROGRAM} --listen {} \"$@\"", "192.0.2.1:1"));
    refused(&line, &other, "the new server cannot start: cannot listen on 192.0.2.1:1");
    crowd.end();
    line.stop();
}

/// An app that is not required, and had no worker that was ready, is none that a new server is waited for.
fn an_app_that_was_down_and_is_not_required_stops_no_upgrade(backend: &str) {
    let folder = folder();
    let file = path(&folder, "site.toml");
    let down = "required = false\ncommand = ['sh', '-c', 'exit 3']\nrestart = { give_up = '1/60s' }\n";
    let routes = "[[routes]]\nmatch = { path = '/b/*' }\napp = 'down'\n[[routes]]\napp = 'web'\n";
    fs::write(&file, format!("[apps.web]\nworkers = 1\n[apps.down]\nworkers = 1\n{down}{routes}")).unwrap();
    let line = Line::start_in(folder, Command::new(PROGRAM), backend, &["-f", &file]);
    let app = |name: &str| {
        let status = line.status();
        status["apps"].as_array().unwrap().iter().find(|app| app["name"] == name).unwrap().clone()
    };
    until("the one is ready", || app("web")["workers_ready"] == 1);
    until("the other has given up", || app("down")["state"] == "failed");
    line.upgraded();
    assert_eq!(app("web")["workers_ready"], 1);
    line.stop();
}

/// The workers start only where no file `slow` lies beside the server's own files.
pub(super) fn app() -> String {
    format!("while test -e \"$(dirname \"$SOCKET_PATH\")/../../slow\"; do sleep 0.1; done; exec {PROGRAM} worker")
}

fn a_new_server_that_is_killed_changes_nothing(backend: &str) {
    let line = Line::start(backend, &["-w", "2", "--", "sh", "-c", &app()]);
    line.until_ready(2);
    let crowd = Crowd::begin(&line, 8, 4);
    let (slow, before) = (line.folder.path().join("slow"), line.process());
    fs::write(&slow, "").unwrap();
    // What is killed is the new server, or only what has started it.
    let wrapper = line.script("wrapper", &format!("{PROGRAM} \"$@\"\nexit 1"));
    for program in [&[PROGRAM][..], &[&wrapper]] {
        killed_changes_nothing(&line, program, before);
    }
    fs::remove_file(&slow).unwrap();
    crowd.goes_on(20);
    line.upgraded();
    crowd.goes_on(20);
    crowd.end();
    // A stop in the middle of another ends both.
    fs::write(&slow, "").unwrap();
    line.word(&["upgrade"]);
    line.stop();
}

fn killed_changes_nothing(line: &Line, program: &[&str], before: u32) {
    let (code, said) = line.word(&[&["upgrade"], program].concat());
    assert_eq!(code, Some(0), "{said}");
    let process = line.status()["upgrade"]["pid"].as_u64().unwrap() as u32;
    let mut started: Vec<Process> = Vec::new();
    until("its workers start", || {
        started = Process::below(process).into_iter().filter(|other| other.command.contains("dirname")).collect();
        started.len() >= 2
    });
    let (code, said) = line.word(&["upgrade", "--wait"]);
    assert!(code == Some(75) && said.contains("under way already"), "{said}");
    send_signal(process, "KILL");
    until("it is told", || line.status()["upgrade"]["state"] == "failed");
    let upgrade = line.status()["upgrade"].take();
    assert!(upgrade["reason"].as_str().unwrap().contains("killed by signal 9"), "{upgrade}");
    until("its workers end with it", || !started.iter().any(Process::is_alive));
    assert_eq!((line.process(), line.pid_file()), (before, before));
}

/// What becomes of one that has put a control socket and a number of its own in the places of the old server's, and does not say that it serves.
fn what_a_new_server_has_taken_is_taken_back(backend: &str) {
    let line = Line::start(backend, &["-w", "1", "--upgrade-timeout", "5s"]);
    line.until_ready(1);
    // The second server has a control socket of two names.
    for _ in 0..2 {
        for (end, reason) in [
            ("os.kill(os.getpid(), 9)", "was killed by signal 9"),
            ("time.sleep(1000)", "was not ready within 5 s (--upgrade-timeout)"),
        ] {
            refused(&line, &taker(&line, end), reason);
            // It had come so far.
            fs::remove_file(line.folder.path().join("taken")).unwrap();
        }
        let (code, said) = line.word(&["reload"]);
        assert_eq!(code, Some(0), "{said}");
        line.upgraded();
    }
    line.stop();
}

/// A program that is told to go, takes all that a server takes then, and comes to that end.
fn taker(line: &Line, end: &str) -> String {
    let code = format!(
        r#"
import os, socket, sys, time
channel = socket.socket(fileno=os.dup(0))
channel.sendall(b'{{"hello":{{"protocol":1,"version":"9.9"}}}}\n"ready"\n')
said = b''
while b'"go"' not in said:
    said += channel.recv(65536) or sys.exit(1)
os.chdir(sys.argv[1])
taken = socket.socket(socket.AF_UNIX)
taken.bind('run/taken')
taken.listen()
os.rename('run/taken', 'run/control.sock')
open('pid', 'w').write('1')
open('taken', 'w').write('both')
{end}
"#
    );
    let file = path(&line.folder, "taker.py");
    fs::write(&file, code).unwrap();
    line.script("taker", &format!("exec {} {file} {}", crate::support::python(), line.folder.path().display()))
}

/// The test is the server before this one.
fn nonsense_about_a_limit_stops_no_upgrade(backend: &str) {
    let folder = folder();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut command = Command::new(PROGRAM);
    command.args(["--respond", "in", "--rate-limit", "1/h", "--listen", "127.0.0.1:0", "--no-access-log"]);
    command.args(["--run-dir", &path(&folder, "run"), "--backend", backend, "--loops", "1"]);
    command.env("PRODUCTION_SERVER_HANDOVER", "1").stdin(OwnedFd::from(theirs)).stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(ours.try_clone().unwrap()).lines().map(Result::unwrap);
    let hello = lines.next().unwrap();
    assert!(hello.contains("\"hears_limits\":true") && hello.contains("\"hears_hubs\":true"), "{hello}");
    ours.write_all(b"{\"estate\":{}}\n").unwrap();
    assert_eq!(lines.next().unwrap(), "\"ready\"");
    ours.write_all(b"{\"limit\":7}\n{\"limit\":{\"name\":\"rate-limit\",\"entries\":\"\"}}\n{\"go\":{}}\n").unwrap();
    let serving = lines.next().unwrap();
    assert!(serving.starts_with("{\"serving\":"), "{serving}");
    ours.write_all(b"{\"farewell\":{}}\n").unwrap();
    send_signal(child.id(), "TERM");
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{said}");
    assert_eq!(said.matches("what clients have used of a limit is not known to this server").count(), 2, "{said}");
}
