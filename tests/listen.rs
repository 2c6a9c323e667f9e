//! Listening on Unix sockets: mode and owner, what is removed, and what never is.

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::support::{DEADLINE, PROGRAM, Server, folder, until};

const NOBODY: u32 = 65_534;

/// Who runs the tests.
fn user() -> (u32, u32) {
    let metadata = fs::metadata("/proc/self").unwrap();
    (metadata.uid(), metadata.gid())
}

/// A server on that socket, and on a port besides, which the rig waits for.
fn serve(socket: &Path, flags: &[&str]) -> Server {
    serve_as(Command::new(PROGRAM), socket, flags)
}

fn serve_as(command: Command, socket: &Path, flags: &[&str]) -> Server {
    let listen = format!("unix:{}", socket.display());
    let own = ["--respond", "hello", "--listen", "127.0.0.1:0", "--listen", &listen];
    Server::start_as(command, "auto", &[&own, flags].concat())
}

/// A start that must fail: its exit code and what it says.
fn fails(mut command: Command, socket: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let run = folder();
    fs::set_permissions(run.path(), Permissions::from_mode(0o777)).unwrap();
    command.arg("--respond=a").arg(format!("--listen=unix:{}", socket.display()));
    let Output { status, stderr, .. } =
        command.arg("--run-dir").arg(run.path().join("run")).args(flags).output().unwrap();
    (status.code(), String::from_utf8(stderr).unwrap())
}

fn hello(socket: &Path) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello"), "{answer}");
}

/// (mode, user, group) of a file.
fn rights(path: &Path) -> (u32, u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

#[test]
fn the_mode_is_as_said_whatever_the_umask() {
    let folder = folder();
    let socket = folder.path().join("app.sock");
    let (user, group) = user();
    for (umask, flags, mode) in [
        ("077", &[][..], 0o666),
        ("000", &["--listen-mode", "0660"][..], 0o660),
        ("022", &["--listen-mode=600"], 0o600),
    ] {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$0\" \"$@\""), PROGRAM]);
        let mut server = serve_as(shell, &socket, flags);
        assert_eq!(rights(&socket), (mode, user, group), "umask {umask}, {flags:?}");
        hello(&socket);
        assert_eq!(server.stop(), Some(0));
        assert!(!socket.exists(), "the socket is left behind");
    }
}

#[test]
fn the_socket_is_given_to_a_user_and_a_group() {
    let folder = folder();
    let socket = folder.path().join("app.sock");
    let (user, group) = user();
    if user != 0 {
        // Only root may give things away; to oneself is allowed to all.
        let flags = [&format!("--listen-owner={user}")[..], &format!("--listen-group={group}")];
        let _server = serve(&socket, &flags);
        assert_eq!(rights(&socket), (0o666, user, group));
        return;
    }
    let named = nix::unistd::User::from_name("nobody").unwrap().expect("a user named nobody").uid.as_raw();
    for (flags, owner) in [
        (&["--listen-owner", "nobody", "--listen-mode=0600"][..], (0o600, named, group)),
        (&["--listen-owner=4001", "--listen-group=4002"], (0o666, 4001, 4002)),
        (&["--listen-group", "daemon"], (0o666, 0, daemon_group())),
    ] {
        let mut server = serve(&socket, flags);
        assert_eq!(rights(&socket), owner, "{flags:?}");
        hello(&socket);
        assert_eq!(server.stop(), Some(0));
        assert!(!socket.exists(), "the socket is left behind");
    }
}

fn daemon_group() -> u32 {
    nix::unistd::Group::from_name("daemon").unwrap().expect("a group named daemon").gid.as_raw()
}

#[test]
fn who_comes_over_a_unix_socket_has_no_address() {
    let folder = folder();
    let (socket, log) = (folder.path().join("app.sock"), folder.path().join("access.log"));
    let server = serve(&socket, &["--access-log", log.to_str().unwrap()]);
    hello(&socket);
    server.client().get("/over-tcp");
    let lines = || fs::read_to_string(&log).unwrap_or_default();
    until("both are logged", || lines().lines().count() == 2);
    for (line, address) in lines().lines().zip(["unix:", "127.0.0.1"]) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["client.address"], address, "{line}");
    }
}

#[test]
fn an_unknown_owner_is_one_line_and_nothing_is_left() {
    let folder = folder();
    let socket = folder.path().join("app.sock");
    for (flag, kind) in [("--listen-owner", "user"), ("--listen-group", "group")] {
        let (code, said) = fails(Command::new(PROGRAM), &socket, &[flag, "nobody-of-that-name"]);
        let line =
            format!("production_server: {flag} \"nobody-of-that-name\": there is no such {kind} on this machine\n");
        assert_eq!((code, said), (Some(78), line));
        assert!(!socket.exists());
    }
}

#[test]
fn a_socket_that_may_not_be_given_away_is_not_opened() {
    let folder = folder();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let socket = folder.path().join("app.sock");
    let mut command = Command::new(PROGRAM);
    if user().0 == 0 {
        // Somebody without rights, who may at least run the program from here.
        let program = folder.path().join("server");
        fs::hard_link(PROGRAM, &program).or_else(|_| fs::copy(PROGRAM, &program).map(|_| ())).unwrap();
        command = Command::new(program);
        command.uid(NOBODY).gid(NOBODY).env_clear();
    }
    let (code, said) = fails(command, &socket, &["--listen-owner=0"]);
    assert_eq!(code, Some(77), "{said}");
    assert!(said.starts_with(&format!("production_server: cannot listen on unix:{}: ", socket.display())), "{said}");
    assert!(said.contains("only root may give a socket to another user") && said.lines().count() == 1, "{said}");
    assert!(!socket.exists(), "a socket is left that has the wrong owner");
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let folder = folder();
    let socket = folder.path().join("app.sock");
    fs::write(&socket, "precious").unwrap();
    let (code, said) = fails(Command::new(PROGRAM), &socket, &[]);
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("is there and is no socket: move it away") && said.lines().count() == 1, "{said}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");

    fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(folder.path().join("elsewhere"), &socket).unwrap();
    assert_eq!(fails(Command::new(PROGRAM), &socket, &[]).0, Some(73));
    assert!(fs::symlink_metadata(&socket).unwrap().is_symlink());
}

#[test]
fn an_address_that_is_in_use_for_a_moment_is_waited_for() {
    let folder = folder();
    let socket = folder.path().join("app.sock");
    let leaving = UnixListener::bind(&socket).unwrap();
    // It is gone once the server has seen that it is there.
    let gone = std::thread::spawn(move || drop(leaving.accept().unwrap()));
    let _server = serve(&socket, &[]);
    gone.join().unwrap();
    hello(&socket);
}

#[test]
fn a_dead_servers_socket_is_taken_over_and_a_living_ones_is_not() {
    let folder = folder();
    let socket = folder.path().join("app.sock");
    let first = serve(&socket, &[]);
    first.signal("KILL");
    drop(first);
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket(), "nobody was there to remove it");

    let mut second = serve(&socket, &[]);
    hello(&socket);
    let (code, said) = fails(Command::new(PROGRAM), &socket, &[]);
    assert_eq!(code, Some(73), "{said}");
    assert!(said.contains("another server listens at") && said.lines().count() == 1, "{said}");
    hello(&socket);
    assert_eq!(second.stop(), Some(0));
    assert!(!socket.exists());
}

#[test]
fn another_servers_socket_stays_at_the_exit() {
    let folder = folder();
    let socket = folder.path().join("app.sock");
    let mut server = serve(&socket, &[]);
    fs::remove_file(&socket).unwrap();
    let other = UnixListener::bind(&socket).unwrap();
    assert_eq!(server.stop(), Some(0));
    let _client = UnixStream::connect(&socket).expect("the other one still listens there");
    drop(other);
}

#[test]
fn a_start_that_fails_later_takes_its_socket_away() {
    let folder = folder();
    let socket = folder.path().join("app.sock");
    let no_directory = folder.path().join("file");
    fs::write(&no_directory, "").unwrap();
    let mut command = Command::new(PROGRAM);
    command.arg("--respond=a").arg(format!("--listen=unix:{}", socket.display()));
    let output = command.arg("--run-dir").arg(&no_directory).output().unwrap();
    assert!(!output.status.success());
    until("the socket is gone", || !socket.exists());
}
