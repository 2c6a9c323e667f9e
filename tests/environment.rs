//! What a worker finds around itself: its variables, and the directory that it starts in. And what the server meets as it starts: signals that
//! it is not ready for, and a limit that leaves no file a byte.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{PROGRAM, Server, folder, python, until};

/// A command whose built-in worker leaves its variables in `environment.ID` first.
fn telling(directory: &Path) -> String {
    format!(
        "env > {0}/new.$WORKER_ID; mv {0}/new.$WORKER_ID {0}/environment.$WORKER_ID; exec {PROGRAM} worker",
        directory.display()
    )
}

fn variables(directory: &Path) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(directory.join("environment.1")).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[test]
fn what_is_meant_for_the_server_does_not_reach_its_workers() {
    let folder = folder();
    let mut command = Command::new(PROGRAM);
    let for_the_server = [
        ("RIP_MAX_QUEUE", "7"),
        ("PRODUCTION_SERVER_WORKERS", "1"),
        ("RUNTIME_DIRECTORY", "/nonexistent"),
        ("STATE_DIRECTORY", "/var/lib/app"),
        ("NOTIFY_SOCKET", "/nonexistent"),
    ];
    command.envs(for_the_server).env("DATABASE_URL", "db://");
    let server = Server::start_as(command, "epoll", &["--", "sh", "-c", &telling(folder.path())]);
    server.until_ready(1);
    let found = variables(folder.path());
    for (name, _) in for_the_server {
        assert!(!found.iter().any(|(found, _)| found == name), "{name} reached the worker");
    }
    for (name, value) in [("WEB_CONCURRENCY", "1"), ("DATABASE_URL", "db://"), ("WORKER_ID", "1")] {
        assert!(found.contains(&(name.to_owned(), value.to_owned())), "{name}: {found:?}");
    }
}

/// Two releases, each of which tells its name and then serves, and a link to the first.
struct Releases {
    folder: tempfile::TempDir,
    current: PathBuf,
}

impl Releases {
    fn new() -> Releases {
        let folder = folder();
        for release in ["1", "2"] {
            let directory = folder.path().join("releases").join(release);
            std::fs::create_dir_all(&directory).unwrap();
            let script = directory.join("serve");
            let seen = folder.path().join("seen");
            let text = format!("#!/bin/sh\necho {release} $PWD >> {}\nexec {PROGRAM} worker\n", seen.display());
            std::fs::write(&script, text).unwrap();
            std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        let current = folder.path().join("current");
        symlink("releases/1", &current).unwrap();
        Releases { folder, current }
    }

    /// What has started so far: the release, and where it thinks that it is.
    fn seen(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("seen")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Deploys the second release, and removes the first.
    fn deploy(&self, run: &str) {
        let restart = || Command::new(PROGRAM).args(["restart", "--wait", "--run-dir", run]).output().unwrap();
        let other = self.folder.path().join("next");
        symlink("releases/2", &other).unwrap();
        std::fs::rename(&other, &self.current).unwrap();
        let output = restart();
        assert!(output.status.success(), "{output:?}");
        std::fs::remove_dir_all(self.folder.path().join("releases/1")).unwrap();
        let output = restart();
        assert!(output.status.success(), "{output:?}");
    }

    /// Serves from `current` by that command, with these flags, through a deploy.
    fn survive(&self, command: Command, flags: &[&str]) {
        let run = self.folder.path().join("run").display().to_string();
        let flags = [flags, &["--run-dir", &run, "-w", "1", "--", "./serve"]].concat();
        let server = Server::start_as(command, "epoll", &flags);
        server.until_ready(1);
        let here = self.current.display();
        assert_eq!(self.seen(), [format!("1 {here}")]);
        self.deploy(&run);
        assert_eq!(self.seen()[1..], [format!("2 {here}"), format!("2 {here}")]);
        let real = std::fs::canonicalize(&self.current).unwrap();
        until("the log names the real directory", || server.has_said(&format!("\"directory\":\"{}\"", real.display())));
    }
}

#[test]
fn a_deploy_through_a_link_runs_the_new_release() {
    let releases = Releases::new();
    let mut command = Command::new(PROGRAM);
    command.current_dir(&releases.current).env("PWD", &releases.current);
    releases.survive(command, &[]);
}

#[test]
fn workers_start_in_the_directory_that_was_given() {
    let releases = Releases::new();
    let current = releases.current.display().to_string();
    releases.survive(Command::new(PROGRAM), &["--directory", &current]);
}

#[test]
fn another_path_in_pwd_is_not_believed() {
    let releases = Releases::new();
    let mut command = Command::new(PROGRAM);
    command.current_dir(releases.folder.path().join("releases/2")).env("PWD", &releases.current);
    let server = Server::start_as(command, "epoll", &["-w", "1", "--", "./serve"]);
    server.until_ready(1);
    assert!(releases.seen()[0].starts_with("2 "), "{:?}", releases.seen());
}

/// A server in Python that listens as those lines say, in `address`.
fn app_in_python(lines: &str) -> String {
    format!(
        "import os, socketserver\n\
         from http.server import BaseHTTPRequestHandler\n\
         class Handler(BaseHTTPRequestHandler):\n    \
             def do_GET(self):\n        \
                 self.send_response(200)\n        \
                 self.send_header('Content-Length', '2')\n        \
                 self.end_headers()\n        \
                 self.wfile.write(b'ok')\n    \
             def log_message(self, *_): pass\n    \
             def address_string(self): return ''\n\
         socketserver.TCPServer.allow_reuse_address = True\n\
         {lines}\n"
    )
}

const ON_PORT: &str = "socketserver.TCPServer(('127.0.0.1', int(os.environ['PORT'])), Handler).serve_forever()";
const ON_ALL: &str = "socketserver.TCPServer(('', int(os.environ['PORT'])), Handler).serve_forever()";
const ON_PATH: &str = "socketserver.UnixStreamServer(os.environ['SOCKET_PATH'], Handler).serve_forever()";
const ON_V6: &str = "import socket\nclass V6(socketserver.TCPServer):\n    address_family = socket.AF_INET6\n\
    V6(('::1', int(os.environ['PORT'])), Handler).serve_forever()";

/// Whether this machine has an IPv6 loopback address.
fn has_v6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

#[test]
fn a_worker_is_found_on_whichever_it_opens() {
    let folder = folder();
    for (number, lines) in [ON_PORT, ON_ALL, ON_PATH, ON_V6].into_iter().enumerate() {
        if lines == ON_V6 && !has_v6() {
            continue;
        }
        let app = folder.path().join(format!("app{number}.py"));
        std::fs::write(&app, app_in_python(lines)).unwrap();
        let script = format!("exec {} {}", python(), app.display());
        for ready in ["listen", "http:/"] {
            let server = Server::start("epoll", &["-w", "2", "--ready", ready, "--", "sh", "-c", &script]);
            server.until_ready(2);
            for _ in 0..3 {
                assert_eq!(server.client().get("/x").text(), "ok", "{lines}");
            }
        }
    }
}

#[test]
fn a_port_that_another_program_has_taken_is_not_the_workers() {
    let folder = folder();
    let app = folder.path().join("app.py");
    let port_file = folder.path().join("port");
    // It tells its port, and opens its path when somebody else listens on that port.
    let lines = format!(
        "import socket, time\n\
         open('{port}.new', 'w').write(os.environ['PORT'])\n\
         os.rename('{port}.new', '{port}')\n\
         while socket.socket().connect_ex(('127.0.0.1', int(os.environ['PORT']))):\n    \
             time.sleep(0.005)\n\
         time.sleep(0.5)\n\
         {ON_PATH}",
        port = port_file.display(),
    );
    std::fs::write(&app, app_in_python(&lines)).unwrap();
    let script = format!("exec {} {}", python(), app.display());
    let server = Server::start("epoll", &["-w", "1", "--", "sh", "-c", &script]);
    until("the port is told", || port_file.exists());
    let port: u16 = std::fs::read_to_string(&port_file).unwrap().parse().unwrap();
    // Ours: to the server it is a stranger's, and whoever is sent here gets no answer.
    let _taken = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    server.until_ready(1);
    assert_eq!(server.client().get("/x").text(), "ok");
}

#[test]
fn an_app_that_takes_its_port_for_a_number_is_told_the_flag() {
    let folder = folder();
    let app = folder.path().join("app.py");
    std::fs::write(&app, app_in_python("socketserver.TCPServer(('127.0.0.1', 0), Handler).serve_forever()")).unwrap();
    let script = format!("exec {} {}", python(), app.display());
    let told = |flags: &[&str]| {
        let command = ["-w", "1", "--", "sh", "-c", &script];
        let server = Server::start("epoll", &[flags, &command].concat());
        let mut line = None;
        until("it is told", || {
            line = server.lines().into_iter().find(|line| line.contains("worker-not-ready"));
            line.is_some()
        });
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        line["message"].as_str().unwrap().to_owned()
    };
    let message = told(&["--socket", "unix", "--ready-timeout", "100ms"]);
    assert!(message.ends_with("needs --socket tcp"), "{message}");
    // Time enough for it to listen.
    let message = told(&["--ready-timeout", "10s"]);
    assert!(message.contains("it listens on 127.0.0.1:") && message.ends_with("--port {port}"), "{message}");
}

#[test]
fn a_command_with_a_pool_of_its_own_gets_a_line_of_advice() {
    let folder = folder();
    let gunicorn = folder.path().join("gunicorn");
    symlink("/bin/sh", &gunicorn).unwrap();
    let script = format!("exec {PROGRAM} worker");
    let flags = ["-w", "1", "--", gunicorn.to_str().unwrap(), "-c", &script, "-w", "3"];
    let server = Server::start("epoll", &flags);
    server.until_ready(1);
    assert_eq!(server.lines().iter().filter(|line| line.contains("own-pool")).count(), 1);
    server.says("(gunicorn -w 3)");
}

/// Whether a process blocks HUP; `None`: it neither does nor handles it, or has ended.
#[cfg(target_os = "linux")]
fn blocks_hangup(process: u32) -> Option<bool> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let has = |name: &str| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).is_some_and(|mask| mask & 1 != 0)
    };
    match (has("SigBlk:"), has("SigCgt:")) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    }
}

/// As a service manager may send them that reloads right after a start.
#[cfg(target_os = "linux")]
#[test]
fn signals_that_come_while_the_server_starts_wait_until_it_can_take_them() {
    let folder = folder();
    let (run, log) = (folder.path().join("run"), folder.path().join("events"));
    until("a server is met while it starts", || {
        std::fs::remove_file(&log).ok();
        let mut command = Command::new(PROGRAM);
        command.args(["--listen", "127.0.0.1:0", "--respond", "x", "--stats-interval", "0s", "--run-dir"]).arg(&run);
        command.arg("--event-log").arg(&log).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut server = command.spawn().unwrap();
        let mut blocks = None;
        until("it is the server", || {
            blocks = blocks_hangup(server.id());
            blocks.is_some() || server.try_wait().unwrap().is_some()
        });
        if blocks == Some(true) {
            ["HUP", "USR1", "USR2"].iter().for_each(|signal| crate::support::send_signal(server.id(), signal));
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            until("it does as it was told", || {
                assert_eq!(server.try_wait().unwrap(), None, "{}", said());
                said().contains("SIGHUP: ") && said().contains("SIGUSR1: ")
            });
        }
        until("it has handlers", || blocks_hangup(server.id()) != Some(true));
        crate::support::send_signal(server.id(), "TERM");
        server.wait().unwrap();
        blocks == Some(true)
    });
}

#[test]
fn where_no_file_may_have_a_byte_the_server_says_why_it_does_not_start() {
    let folder = folder();
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "ulimit -f 0; exec \"$0\" \"$@\"", PROGRAM, "--listen", "127.0.0.1:0", "--respond", "x"]);
    let output = limited.arg("--run-dir").arg(folder.path().join("run")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(said.contains("File too large"), "{said}");
}
