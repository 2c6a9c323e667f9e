//! What is asked of the old server, or happens there, while the new one starts.

use std::net::TcpListener;
use std::os::unix::net::UnixListener;

use serde_json::json;

use super::failing::app;
use super::*;

on_every_backend! {
    a_pause_has_to_wait,
    workers_that_join_and_quit_are_known_to_the_new_server,
    a_certificate_signed_by_itself_stays,
    no_certificate_is_ordered_before_it_takes_over,
}

/// A new server is started, whose workers are not ready before [`takes_over`]: its process.
pub(crate) fn starts(line: &Line) -> u32 {
    fs::write(line.folder.path().join("slow"), "").unwrap();
    let (code, said) = line.word(&["upgrade"]);
    assert_eq!(code, Some(0), "{said}");
    let process = line.status()["upgrade"]["pid"].as_u64().unwrap() as u32;
    until("its workers start", || Process::below(process).iter().any(|process| process.command.contains("dirname")));
    process
}

pub(crate) fn takes_over(line: &Line, process: u32) {
    fs::remove_file(line.folder.path().join("slow")).unwrap();
    until("it serves", || ask(&line.run()).is_some_and(|status| status["pid"] == process));
}

/// Flags of an app whose workers wait while the file `slow` is there.
pub(crate) fn slow_app() -> [String; 6] {
    ["-w", "1", "--", "sh", "-c", &app()].map(str::to_owned)
}

fn start(backend: &str, flags: &[&str]) -> Line {
    let app = slow_app();
    let line = Line::start(backend, &[flags, &app.each_ref().map(String::as_str)].concat());
    line.until_ready(1);
    line
}

fn a_pause_has_to_wait(backend: &str) {
    let line = start(backend, &[]);
    let new = starts(&line);
    let (code, said) = line.word(&["pause"]);
    assert!(code == Some(75) && said.contains("pause when that is done"), "{code:?} {said}");
    assert_eq!(line.server.client().get("/ping").status, 200);
    takes_over(&line, new);
    assert_eq!(line.word(&["pause"]).0, Some(0));
    assert_eq!(line.status()["apps"][0]["paused"], true);
    assert_eq!(line.word(&["resume"]).0, Some(0));
    line.stop();
}

/// Where those listen that have joined.
fn joined(line: &Line) -> Vec<PathBuf> {
    let status = line.status();
    let workers = status["apps"][0]["workers"].as_array().unwrap().iter().filter(|worker| worker["joined"] == true);
    let mut all: Vec<PathBuf> = workers.map(|worker| worker["socket"].as_str().unwrap().into()).collect();
    all.sort();
    all
}

fn workers_that_join_and_quit_are_known_to_the_new_server(backend: &str) {
    let line = start(backend, &[]);
    let sockets = ["a", "b", "c", "d"].map(|name| line.folder.path().join(name));
    let _listeners = sockets.each_ref().map(|path| UnixListener::bind(path).unwrap());
    let tell = |body: Value| {
        let answer = tell(&line.run(), "/worker", &body);
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    };
    let join =
        |id: &str, socket: usize| tell(json!({"op": "join", "workerId": id, "socket": sockets[socket], "pid": 1}));
    join("stays", 0);
    join("moves", 1);
    join("goes", 2);
    let new = starts(&line);
    tell(json!({"op": "quit", "workerId": "goes"}));
    join("moves", 2);
    join("comes", 3);
    takes_over(&line, new);
    until("it has exactly those", || joined(&line) == [0, 2, 3].map(|at: usize| sockets[at].clone()));
    line.stop();
}

/// Says something to the control socket there.
fn tell(run: &Path, target: &str, body: &Value) -> String {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(run.join("control.sock")).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let (body, head) = (body.to_string(), "Host: a\r\nConnection: close\r\n");
    let length = body.len();
    write!(stream, "POST {target} HTTP/1.1\r\n{head}Content-Length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Whoever was told to trust it need not be told again, whatever comes of the upgrade.
fn a_certificate_signed_by_itself_stays(backend: &str) {
    let line = start(backend, &["--tls", "self-signed"]);
    let pem = || fs::read_to_string(line.run().join("self-signed.pem")).unwrap();
    let made = pem();
    let new = starts(&line);
    assert_eq!(pem(), made);
    send_signal(new, "KILL");
    until("it is told", || line.status()["upgrade"]["state"] == "failed");
    assert_eq!(pem(), made);
    let new = starts(&line);
    takes_over(&line, new);
    // By then it has shown its own.
    line.server.says("the server before this one has ended");
    assert_eq!(pem(), made);
    let lines = line.server.lines();
    assert_eq!(
        lines.iter().filter(|line| line.contains("a certificate was made for this run")).count(),
        1,
        "{lines:?}"
    );
    assert_eq!(line.word(&["stop"]).0, Some(0));
    until("all processes are gone", || line.processes().is_empty());
    assert!(!line.run().join("self-signed.pem").exists(), "it is gone with the server for which it was made");
}

/// The test is the authority, which the old server does not know of.
fn no_certificate_is_ordered_before_it_takes_over(backend: &str) {
    let authority = TcpListener::bind("127.0.0.1:0").unwrap();
    authority.set_nonblocking(true).unwrap();
    let folder = folder();
    let (file, state) = (path(&folder, "site.toml"), path(&folder, "acme"));
    fs::write(&file, "# Nothing but defaults.\n").unwrap();
    let app = slow_app();
    let flags = [&["-f", file.as_str()][..], &app.each_ref().map(String::as_str)].concat();
    let line = Line::start_in(folder, Command::new(PROGRAM), backend, &flags);
    line.until_ready(1);
    let url = format!("https://{}/directory", authority.local_addr().unwrap());
    let wanted = format!(
        "[acme]\ndomains = ['a.example']\nemail = 'a@a.example'\nurl = '{url}'\n\
         directory = '{state}'\n"
    );
    fs::write(&file, wanted).unwrap();
    let new = starts(&line);
    assert!(authority.accept().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock));
    takes_over(&line, new);
    until("it asks for one", || authority.accept().is_ok());
    drop(authority);
    line.stop();
}
