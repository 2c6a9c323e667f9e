//! The built server in a process of its own.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;

use super::DEADLINE;

/// A running server; killed when dropped.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    // Last, so that the folder goes when nobody uses it any more.
    _folder: tempfile::TempDir,
}

impl Server {
    /// Starts the server with one loop of that backend in front of `upstream`.
    pub fn before(backend: &str, upstream: &str, flags: &[&str]) -> Server {
        Server::start(backend, &[&["--upstream", upstream], flags].concat())
    }

    /// Starts the server with one loop of that backend, on a port of the kernel's choice, and waits until it listens.
    pub fn start(backend: &str, flags: &[&str]) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_production_server"));
        command
            .args(["--listen", "127.0.0.1:0", "--loops", "1", "--stats-interval", "0s", "--json-logging"])
            .args(["--no-access-log", "--pin", "off", "--backend", backend, "--run-dir"])
            .arg(folder.path().join("run"))
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
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
        let mut server = Server {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            child,
            lines,
            reader: Some(reader),
            _folder: folder,
        };
        server.address = address.unwrap_or_else(|_| panic!("the server does not listen: {:?}", server.lines()));
        assert!(!server.lines().iter().any(|line| line.contains("refuses io_uring")), "{:?}", server.lines());
        server
    }

    /// What it has written to stderr so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> usize {
        self.of_status("VmRSS:")
    }

    /// The most resident memory it has had, in bytes.
    pub fn peak_bytes(&self) -> usize {
        self.of_status("VmHWM:")
    }

    fn of_status(&self, key: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to kill, and the wait tells so.
        let _ = self.child.kill();
        let _ = self.child.wait();
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
