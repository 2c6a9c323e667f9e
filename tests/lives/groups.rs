//! All that a worker's command has started: apps behind shells, what goes into the background, what leaves its group.

use super::*;

on_every_backend! {
    an_app_behind_a_shell_is_told_to_end_and_has_its_time,
    an_app_whose_shell_somebody_else_has_ended_finishes_what_it_has,
    an_app_behind_a_shell_finishes_when_all_are_told_at_once,
    a_command_that_goes_into_the_background_is_named_and_ended,
    what_has_left_its_worker_ends_with_it,
    orphans_are_waited_for,
}

/// Serves its process id. On TERM it makes FOLDER/told-PID, and ends once FOLDER/go is there, with FOLDER/ended-PID. FOLDER/pid-PID is
/// there from the start. A request for /hold makes FOLDER/asked-PID and is answered once FOLDER/answer is there. Each further word of its command line is run in a session of its own.
const APP: &str = r#"
import http.server, os, signal, socketserver, subprocess, sys, threading, time
folder, commands = sys.argv[1], sys.argv[2:]
make = lambda name: open(os.path.join(folder, name), "w").close()
make(f"pid-{os.getpid()}")
def told(*_):
    make(f"told-{os.getpid()}")
    def leave():
        while not os.path.exists(os.path.join(folder, "go")): time.sleep(0.005)
        make(f"ended-{os.getpid()}")
        os._exit(0)
    threading.Thread(target=leave).start()
signal.signal(signal.SIGTERM, told)
for command in commands:
    child = subprocess.Popen(command, shell=True, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    make(f"child-{child.pid}")
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/hold":
            make(f"asked-{os.getpid()}")
            while not os.path.exists(os.path.join(folder, "answer")): time.sleep(0.005)
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def address_string(self): return "-"
    def log_message(self, *_): pass
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads, request_queue_size = True, 64
Server(os.environ["SOCKET_PATH"], Handler).serve_forever()
"#;

/// A server whose workers run a shell's line; `APP` in it stands for the app with its folder, `FOLDER` for that.
fn shell(backend: &str, flags: &[&str], line: &str) -> Site {
    Site::start(backend, flags, |folder| {
        std::fs::write(format!("{folder}/app.py"), APP).unwrap();
        let line = line.replace("APP", &format!("{} FOLDER/app.py FOLDER", python())).replace("FOLDER", folder);
        ["--", "sh", "-c", &line].map(str::to_owned).to_vec()
    })
}

impl Site {
    /// The process ids in the names of the files that begin so.
    pub fn named(&self, prefix: &str) -> Vec<u32> {
        let entries = std::fs::read_dir(self.folder.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter_map(|name| name.strip_prefix(prefix)?.parse().ok()).collect()
    }
}

/// Whether a process lives; a zombie does not.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

fn an_app_behind_a_shell_is_told_to_end_and_has_its_time(backend: &str) {
    let site = shell(backend, &["-w", "1"], "APP; true");
    site.settled(1);
    let app = site.pid();
    assert_eq!(site.word(&["restart"]).0, Some(0));
    until("the app is told", || site.named("told-") == [app]);
    let shell = site.until("another serves", |document| document["workers"].as_array().unwrap().len() == 2);
    assert!(lives(app), "its shell has ended and it was killed: {shell}");
    site.make("go");
    until("it has ended by itself", || site.named("ended-") == [app]);
    site.settled(1);
    assert_ne!(site.pid(), app);
}

/// A request that the app behind the shell works on; its answer waits for the file `answer`.
fn held(site: &Site, app: u32) -> Client {
    let running = site.begin("/hold");
    until("the app is asked", || site.named("asked-") == [app]);
    running
}

fn an_app_whose_shell_somebody_else_has_ended_finishes_what_it_has(backend: &str) {
    let site = shell(backend, &["-w", "1", "-c", "4"], "APP; true");
    let shell = site.settled(1)[0];
    let app = site.pid();
    let mut running = held(&site, app);
    crate::support::send_signal(shell, "TERM");
    // The one whose shell has gone is shown as well, for as long as it is at work.
    site.until("another serves", |document| {
        let workers = document["workers"].as_array().unwrap();
        workers.len() == 2 && workers.iter().any(|worker| worker["state"] == "running" && worker["pid"] != shell)
    });
    assert!(lives(app) && site.named("told-").is_empty() && site.pid() != app);
    site.make("answer");
    let answer = running.answer();
    assert_eq!((answer.status, answer.text()), (200, app.to_string()));
    until("the app is told", || site.named("told-") == [app]);
    assert!(lives(app));
    site.make("go");
    until("it has ended by itself", || site.named("ended-") == [app]);
    assert_eq!(site.events("worker-exit", 1)[0]["reason"], "TERM from outside");
}

/// As systemd does with `KillMode=control-group`.
fn an_app_behind_a_shell_finishes_when_all_are_told_at_once(backend: &str) {
    let mut site = shell(backend, &["-w", "1", "-c", "4", "--shutdown", "30s"], "APP; true");
    let shell = site.settled(1)[0];
    let app = site.pid();
    let mut running = held(&site, app);
    for process in [shell, app] {
        crate::support::send_signal(process, "TERM");
    }
    site.server.signal("TERM");
    until("the server stops", || site.server.has_said("stopping: requests may finish"));
    until("the shell has ended", || !lives(shell));
    site.make("answer");
    assert_eq!(running.answer().status, 200);
    site.make("go");
    assert_eq!(site.server.ended().code(), Some(0));
    assert!(site.named("ended-").contains(&app), "it was killed");
}

fn a_command_that_goes_into_the_background_is_named_and_ended(backend: &str) {
    let flags = ["-w", "1", "--restart-base", "10ms", "--give-up", "2/60s"];
    for setsid in ["setsid ", ""] {
        let line = format!("{setsid}APP & while ! ls FOLDER/pid-* >/dev/null 2>&1; do sleep 0.01; done");
        let site = shell(backend, &flags, &line);
        until("the daemon is named", || site.server.has_said("--nodaemon"));
        site.make("go");
        until("the daemons have ended", || {
            !site.named("pid-").is_empty() && !site.named("pid-").into_iter().any(lives)
        });
    }
}

fn what_has_left_its_worker_ends_with_it(backend: &str) {
    let site = shell(backend, &["-w", "1"], "exec APP 'sleep 1000'");
    let leader = site.settled(1)[0];
    let child = site.named("child-")[0];
    assert!(lives(child));
    Command::new("kill").args(["-KILL", &leader.to_string()]).status().unwrap();
    until("its child has ended, too", || !lives(child));
}

/// Children whose parents have ended come to the server, also while their worker lives.
fn orphans_are_waited_for(backend: &str) {
    let site = shell(backend, &["-w", "1"], "for i in 1 2 3 4 5; do sh -c 'sleep 0.05 &'; done; exec APP");
    site.settled(1);
    let server = site.ask("/status", &Value::Null).1["pid"].as_u64().unwrap();
    let zombies = || {
        let below = std::fs::read_to_string(format!("/proc/{server}/task/{server}/children")).unwrap();
        let zombie = |pid: &&str| !lives(pid.parse().unwrap());
        below.split_whitespace().filter(zombie).count()
    };
    until("no zombie is left", || zombies() == 0);
}
