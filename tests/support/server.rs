//! The built server in a process of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use super::process::{Process, send_signal};
use super::tls::{self, Relay};
use super::{Client, DEADLINE, PROGRAM, folder, until};

/// A running server; killed when dropped.
pub struct Server {
    /// Where it is reached.
    pub address: SocketAddr,
    /// Where it listens: there, unless tests reach it through TLS.
    pub own: SocketAddr,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    run: PathBuf,
    /// Where tests reach it that know nothing of TLS, and it speaks nothing else.
    relay: Option<Relay>,
    // Last, so that the folder goes when nobody uses it any more.
    _folder: tempfile::TempDir,
}

impl Server {
    /// One loop of that backend in front of `upstream`.
    pub fn before(backend: &str, upstream: &str, flags: &[&str]) -> Server {
        Server::start(backend, &[&["--upstream", upstream], flags].concat())
    }

    /// One loop of that backend, on a port of the kernel's choice; it listens.
    pub fn start(backend: &str, flags: &[&str]) -> Server {
        Server::start_as(Command::new(PROGRAM), backend, flags)
    }

    /// With a program before it, as a shell that sets limits. Flags of the test's own replace those of the rig.
    pub fn start_as(mut command: Command, backend: &str, flags: &[&str]) -> Server {
        let folder = folder();
        let said = flags.iter().position(|flag| *flag == "--run-dir").and_then(|flag| flags.get(flag + 1));
        let run = said.map_or_else(|| folder.path().join("run"), PathBuf::from);
        let run_directory = run.display().to_string();
        let plain = backend.strip_suffix(tls::SUFFIX);
        if plain.is_some() {
            let (certificate, key) = tls::localhost().write(folder.path(), "localhost");
            command.arg("--tls-cert").arg(certificate).arg("--tls-key").arg(key);
        }
        let (secure, backend) = (plain.is_some(), plain.unwrap_or(backend));
        command.args(["--json-logging", "--pin", "off", "--backend", backend]);
        if !flags.contains(&"--access-log") {
            command.arg("--no-access-log");
        }
        let own =
            [("--listen", "127.0.0.1:0"), ("--run-dir", &run_directory), ("--loops", "1"), ("--stats-interval", "0s")];
        for (flag, value) in own {
            if !flags.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.args(flags).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        for variable in ["PORT", "WEB_CONCURRENCY"] {
            command.env_remove(variable);
        }
        let mut child = command.spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (sender, address) = mpsc::channel();
        let kept = lines.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                if let Some(address) = listening(&line) {
                    // The test may have given up already.
                    let _ = sender.send(address);
                }
                kept.lock().unwrap().push(line);
            }
        });
        let address = address.recv_timeout(DEADLINE);
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut server = Server {
            address: unknown,
            own: unknown,
            child,
            lines,
            reader: Some(reader),
            run,
            relay: None,
            _folder: folder,
        };
        server.address = address.unwrap_or_else(|_| panic!("the server does not listen: {:?}", server.lines()));
        server.own = server.address;
        if secure {
            let relay = Relay::to(server.address);
            server.address = relay.address;
            server.relay = Some(relay);
        }
        assert!(!server.has_said("refuses io_uring"), "{:?}", server.lines());
        server
    }

    /// What it has written to stderr so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Whether a line of its stderr holds that.
    pub fn has_said(&self, words: &str) -> bool {
        self.lines.lock().unwrap().iter().any(|line| line.contains(words))
    }

    /// Waits until it has said that: its lines come a moment after what they tell of.
    pub fn says(&self, words: &str) {
        until(words, || self.has_said(words));
    }

    pub fn client(&self) -> Client {
        Client::to(self.address)
    }

    /// What it says about its inside, on the control socket: the counters, and what the tests look for of the app.
    pub fn status(&self) -> serde_json::Value {
        let document = self.document();
        let (app, mut status) = (&document["apps"][0], document["counters"].clone());
        status["log_lines_dropped"] = document["log_lines_dropped"].clone();
        for (name, value) in [("ready", "workers_ready"), ("busy", "workers_busy"), ("queue", "queue")] {
            status[name] = app[value].clone();
        }
        status
    }

    /// The apps in that document.
    pub fn apps(&self) -> serde_json::Value {
        self.document()["apps"].take()
    }

    /// The certificates in that document.
    pub fn certificates(&self) -> Vec<serde_json::Value> {
        self.document()["certificates"].as_array().unwrap().clone()
    }

    /// The limits in that document.
    pub fn limits(&self) -> Vec<serde_json::Value> {
        self.document()["limits"].as_array().unwrap().clone()
    }

    /// The hubs in that document.
    pub fn hubs(&self) -> Vec<serde_json::Value> {
        self.document()["hubs"].as_array().unwrap().clone()
    }

    /// Its run directory.
    pub fn run(&self) -> &std::path::Path {
        &self.run
    }

    fn document(&self) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.run.join("control.sock")).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(b"GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
    }

    /// Waits for an answer of the loop itself: it has then seen what came to it before.
    pub fn turn(&self) {
        assert_eq!(self.client().get("/server").text(), "ok");
    }

    /// Waits until so many workers are ready.
    pub fn until_ready(&self, count: usize) {
        until("the workers are ready", || self.status()["ready"] == count);
    }

    pub fn signal(&self, signal: &str) {
        send_signal(self.child.id(), signal);
    }

    /// Its exit, which must come.
    pub fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the server ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Asks it to stop, and waits for its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        self.ended().code()
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> usize {
        self.bytes_of("VmRSS:")
    }

    /// The most resident memory it has had, in bytes.
    pub fn peak_bytes(&self) -> usize {
        self.bytes_of("VmHWM:")
    }

    /// Its open descriptors.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    fn bytes_of(&self, key: &str) -> usize {
        let status = self.of_process("status");
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    }

    /// Its processor time so far, in ticks of a hundredth of a second.
    pub fn processor_ticks(&self) -> u64 {
        let stat = self.of_process("stat");
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
        fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
    }

    /// Whether all its threads stand still after a STOP.
    pub fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().flatten();
        threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap()).all(|stat| {
            let fields = &stat[stat.rfind(')').unwrap()..];
            fields.starts_with(") T")
        })
    }

    fn of_process(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// All processes below it: workers, theirs, and whoever watches over them.
    pub fn descendants(&self) -> Vec<Process> {
        Process::below(self.child.id())
    }

    /// Its workers' processes: the built-in ones.
    pub fn workers(&self) -> Vec<Process> {
        self.descendants().into_iter().filter(|process| process.command.contains(" worker")).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to kill, and the wait tells so.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.relay = None;
        // Ends when the guard has, who ends the workers and holds the same stderr.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
        let lines = self.lines();
        if std::thread::panicking() {
            eprintln!("the server's stderr:\n{}", lines.join("\n"));
        } else {
            assert!(!lines.iter().any(|line| line.contains("panic")), "the server panicked:\n{}", lines.join("\n"));
        }
    }
}

/// The address in the line that says where it listens.
fn listening(line: &str) -> Option<SocketAddr> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    (line["message"] == "listening").then(|| line["address"].as_str()?.parse().ok())?
}
