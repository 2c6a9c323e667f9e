//! systemd's protocols, with a manager and sockets of the test's own.

use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;

use super::*;

on_every_backend! {
    the_manager_is_told_what_happens,
    a_reload_during_the_start_does_not_end_it,
    an_app_that_gives_up_keeps_the_others_from_nobody,
    sockets_that_the_manager_has_opened_are_served_and_handed_over,
}

/// A manager's socket, and all that it has heard.
struct Manager {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Manager {
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        Manager { socket, heard: Vec::new() }
    }

    /// Waits until it hears that, behind what it has heard before; where it stands.
    fn hears(&mut self, from: usize, word: &str) -> usize {
        let mut found = None;
        until(word, || {
            let mut buffer = [0; 4096];
            while let Ok(length) = self.socket.recv(&mut buffer) {
                self.heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
            }
            found = self.heard.iter().skip(from).position(|heard| heard.starts_with(word)).map(|at| at + from);
            found.is_some()
        });
        found.unwrap()
    }
}

fn the_manager_is_told_what_happens(backend: &str) {
    let outside = folder();
    let name = outside.path().join("notify");
    let mut manager = Manager::at(&name);
    let mut command = Command::new(PROGRAM);
    command.env("NOTIFY_SOCKET", &name).env("WATCHDOG_USEC", "600000");
    let line = Line::start_as(command, backend, &["-w", "2", "--loops", "2"]);
    let ready = manager.hears(0, "READY=1");
    assert!(manager.heard[..ready].iter().all(|word| !word.starts_with("STOPPING")), "{:?}", manager.heard);
    manager.hears(0, "STATUS=2 of 2 workers ready");
    // Loops that have nothing else to do answer as well.
    let mut at = 0;
    for _ in 0..3 {
        at = manager.hears(at, "WATCHDOG=1") + 1;
    }
    let environment = line.server.client().get("/env").text();
    assert!(!environment.contains("notify") && !environment.contains("WATCHDOG_USEC"), "{environment}");

    let mark = manager.heard.len();
    line.server.signal("HUP");
    let at = manager.hears(mark, "RELOADING=1\nMONOTONIC_USEC=");
    manager.hears(at, "READY=1");

    let mark = manager.heard.len();
    let after = line.upgraded();
    let at = manager.hears(mark, &format!("MAINPID={after}"));
    let ready = manager.hears(mark, "READY=1");
    assert!(at < ready, "nobody listens to the new process before: {:?}", &manager.heard[mark..]);
    manager.hears(ready, "WATCHDOG=1");
    let mark = manager.heard.len();
    let folder = line.folder.path().join("run");
    line.stop();
    assert!(!folder.exists());
    let stopping = manager.hears(mark, "STOPPING=1");
    manager.hears(stopping, "EXTEND_TIMEOUT_USEC=");
    let stops = manager.heard.iter().filter(|word| *word == "STOPPING=1").count();
    assert_eq!(stops, 1, "the old server is not the service's main process: {:?}", manager.heard);
}

fn a_reload_during_the_start_does_not_end_it(backend: &str) {
    let folder = folder();
    let (name, slow) = (folder.path().join("notify"), folder.path().join("slow"));
    fs::write(&slow, "").unwrap();
    let mut manager = Manager::at(&name);
    let mut command = Command::new(PROGRAM);
    command.env("NOTIFY_SOCKET", &name);
    let line = Line::start_in(folder, command, backend, &["-w", "1", "--", "sh", "-c", &failing::app()]);
    line.server.signal("HUP");
    until("it is reloaded", || line.server.has_said("SIGHUP: logs are being reopened"));
    // It tells what it does before and after.
    fs::remove_file(&slow).unwrap();
    let status = manager.hears(0, "STATUS=1 of 1 workers ready");
    let ready = manager.hears(0, "READY=1");
    let begins = manager.heard.iter().position(|word| word == "STATUS=0 of 1 workers ready").unwrap();
    let between = &manager.heard[begins..ready];
    assert!(ready + 1 == status, "{:?}", manager.heard);
    assert!(!between.iter().any(|word| word.starts_with("RELOADING")), "{between:?}");
    line.stop();
}

/// Both are required: what can be served is, and the manager's start does not last for ever.
fn an_app_that_gives_up_keeps_the_others_from_nobody(backend: &str) {
    let folder = folder();
    let (name, file) = (folder.path().join("notify"), path(&folder, "site.toml"));
    let bad = "command = ['sh', '-c', 'exit 3']\nrestart = { base = '1ms', max = '1ms', give_up = '2/10s' }\n";
    let routes = "[[routes]]\nmatch = { path = '/b/*' }\napp = 'bad'\n[[routes]]\napp = 'web'\n";
    fs::write(&file, format!("[apps.web]\nworkers = 1\n[apps.bad]\nworkers = 1\n{bad}{routes}")).unwrap();
    let mut manager = Manager::at(&name);
    let mut command = Command::new(PROGRAM);
    command.env("NOTIFY_SOCKET", &name);
    let line = Line::start_in(folder, command, backend, &["-f", &file]);
    manager.hears(0, "READY=1");
    let status = line.status();
    let failed = status["apps"].as_array().unwrap().iter().find(|app| app["name"] == "bad").unwrap();
    assert_eq!(failed["state"], "failed", "{status}");
    line.stop();
}

/// A program that becomes the server with these sockets as descriptors 3 and up, as systemd does.
fn activated(sockets: Vec<OwnedFd>, names: &str) -> Command {
    const FAR: i32 = 100;
    let script = format!(
        "import os, sys\ncount = {}\nfor index in range(count):\n    os.dup2({FAR} + index, 3 + index)\n    \
         os.close({FAR} + index)\nos.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count), LISTEN_FDNAMES='{names}')\n\
         os.execv(sys.argv[1], sys.argv[1:])",
        sockets.len()
    );
    let mut command = Command::new("python3");
    command.args(["-c", &script, PROGRAM]);
    let pass = move || {
        for (index, socket) in sockets.iter().enumerate() {
            // SAFETY: dup2 takes plain numbers and is async-signal-safe.
            if unsafe { libc::dup2(socket.as_raw_fd(), FAR + index as i32) } < 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure only calls dup2.
    unsafe { command.pre_exec(pass) };
    command
}

fn sockets_that_the_manager_has_opened_are_served_and_handed_over(backend: &str) {
    let outside = folder();
    let path = outside.path().join("web.sock");
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = UnixListener::bind(&path).unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, elsewhere) = (tcp.local_addr().unwrap(), other.local_addr().unwrap());
    let own = |socket: &TcpListener| OwnedFd::from(socket.try_clone().unwrap());
    let sockets = || vec![own(&tcp), unix.try_clone().unwrap().into(), own(&other)];
    // Of one name there may be several.
    let line = Line::start_as(
        activated(sockets(), "web:web:other"),
        backend,
        &["-w", "1", "--loops", "2", "--listen", "systemd:web"],
    );
    assert_eq!(line.server.address, address);
    line.until_ready(1);
    line.server.says("systemd has opened the socket other, and no listener asks for it");
    let served = || {
        let stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut answer = [0; 12];
        std::io::Write::write_all(&mut &stream, b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        std::io::Read::read_exact(&mut &stream, &mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        assert_eq!(Client::to(address).get("/ping").text(), "pong");
    };
    served();
    // The service manager has them still: nobody is refused, whoever serves.
    let crowd = Crowd::begin(&line, 4, 4);
    line.upgraded();
    served();
    line.upgraded();
    crowd.goes_on(20);
    crowd.end();
    line.stop();
    assert!(path.exists(), "what systemd has made it removes");
    // Without a name all are meant.
    let line = Line::start_as(activated(sockets(), "web:web:other"), backend, &["-w", "1", "--listen", "systemd:"]);
    line.until_ready(1);
    assert_eq!(Client::to(elsewhere).get("/ping").text(), "pong");
    served();
    line.stop();
    let mut nobody = activated(vec![own(&tcp)], "web");
    let run = outside.path().join("run");
    nobody.args(["--listen", "systemd:other", "--run-dir"]).arg(run);
    let output = nobody.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(73), "{said}");
    assert!(said.contains("systemd has opened no socket of that name; it has opened web"), "{said}");
}
