//! The server as a process, clients on plain sockets, and workers whose every move is scripted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// How long a test waits for what must happen.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A folder of the test's own, short enough for the path of a socket.
pub fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("queue").tempdir().unwrap()
}

/// Looks at a condition until it holds.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A running server; killed when dropped.
pub struct Server {
    pub address: SocketAddr,
    pub child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    _folder: tempfile::TempDir,
}

impl Server {
    /// One loop of that backend in front of Unix sockets.
    pub fn before(backend: &str, workers: &[&Worker], flags: &[&str]) -> Server {
        let upstreams: Vec<String> = workers.iter().map(|worker| format!("unix:{}", worker.path.display())).collect();
        let mut all: Vec<&str> = upstreams.iter().flat_map(|upstream| ["--upstream", upstream]).collect();
        all.extend(flags);
        let server = Server::start(backend, &all);
        let listening = workers.iter().filter(|worker| worker.path.exists()).count();
        until("the upstreams are known to answer", || server.status()["ready"] == listening);
        server
    }

    pub fn start(backend: &str, flags: &[&str]) -> Server {
        Server::start_as(Command::new(PROGRAM), backend, flags)
    }

    /// With a program before it, as a shell that sets limits. Flags of the test's own replace those of the rig.
    pub fn start_as(mut command: Command, backend: &str, flags: &[&str]) -> Server {
        let folder = folder();
        let run_directory = folder.path().join("run").display().to_string();
        command.args(["--stats-interval", "0s", "--json-logging", "--no-access-log", "--pin", "off"]);
        command.args(["--backend", backend]);
        for (flag, value) in [("--listen", "127.0.0.1:0"), ("--run-dir", &run_directory), ("--loops", "1")] {
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
        std::thread::spawn(move || {
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
        let mut server = Server { address: unknown, child, lines, _folder: folder };
        server.address = address.unwrap_or_else(|_| panic!("the server does not listen: {:?}", server.lines()));
        let fell_back = server.lines().iter().any(|line| line.contains("refuses io_uring"));
        assert!(!fell_back, "{:?}", server.lines());
        server
    }

    /// Asks it to stop, and waits for its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        let asked = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status().unwrap();
        assert!(asked.success());
        let mut code = None;
        until("the server has stopped", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.and_then(|code| code.code())
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    pub fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// The document about its inside.
    pub fn status(&self) -> serde_json::Value {
        let answer = self.client().ask("GET /status HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"))
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

    fn of_process(&self, file: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }

    /// Whether all its threads stand still after a STOP.
    pub fn is_stopped(&self) -> bool {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().flatten();
        threads.map(|thread| std::fs::read_to_string(thread.path().join("stat")).unwrap()).all(|stat| {
            let fields = &stat[stat.rfind(')').unwrap()..];
            fields.starts_with(") T")
        })
    }

    /// Its processor time so far, in ticks of a hundredth of a second.
    pub fn processor_ticks(&self) -> u64 {
        let stat = self.of_process("stat");
        let fields: Vec<&str> = stat[stat.rfind(')').unwrap()..].split(' ').collect();
        fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap()
    }

    /// All processes below it: workers, theirs, and whoever watches over them.
    pub fn descendants(&self) -> Vec<Process> {
        let all = Process::all();
        let mut found = vec![self.child.id()];
        let mut next = 0;
        while next < found.len() {
            let parent = found[next];
            found.extend(all.iter().filter(|process| process.parent == parent).map(|process| process.id));
            next += 1;
        }
        all.into_iter().filter(|process| found[1..].contains(&process.id)).collect()
    }
}

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_production_server");

pub fn send_signal(process: u32, signal: &str) {
    let done = Command::new("kill").args(["-s", signal, &process.to_string()]).status().unwrap();
    assert!(done.success());
}

/// A process that a number alone does not tell, for numbers are given again.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    pub id: u32,
    pub parent: u32,
    /// Its command line, with spaces between the words.
    pub command: String,
    started: u64,
}

impl Process {
    /// All that run now; zombies do not.
    fn all() -> Vec<Process> {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries.filter_map(|entry| Process::of(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    fn of(id: u32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let fields: Vec<&str> = stat[stat.rfind(')')? + 1..].split_whitespace().collect();
        if matches!(fields[0], "Z" | "X") {
            return None;
        }
        let command = std::fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?.replace('\0', " ");
        Some(Process { id, parent: fields[1].parse().ok()?, command, started: fields[19].parse().ok()? })
    }

    pub fn is_alive(&self) -> bool {
        Process::of(self.id).is_some_and(|now| now.started == self.started)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may be gone already; then there is nothing to kill, and the wait tells so.
        let _ = self.child.kill();
        let _ = self.child.wait();
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

/// An answer as a client sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn has(&self, line: &str) -> bool {
        self.head.to_lowercase().contains(&line.to_lowercase())
    }
}

/// A client's connection.
pub struct Client {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    pub fn connect(address: SocketAddr) -> Client {
        Client::over(TcpStream::connect(address).unwrap())
    }

    pub fn over(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, bytes: &str) {
        self.stream.write_all(bytes.as_bytes()).unwrap();
    }

    pub fn get(&mut self, target: &str) {
        self.send(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }

    pub fn post(&mut self, target: &str, body: &str) {
        self.send(&format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }

    pub fn ask(&mut self, request: &str) -> Answer {
        self.send(request);
        self.answer()
    }

    /// The next answer, which must come whole.
    pub fn answer(&mut self) -> Answer {
        self.try_answer().expect("the connection ended without an answer")
    }

    /// The next answer; none if the connection ends before its end.
    pub fn try_answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end + 4;
            }
            self.more()?;
        };
        let head = String::from_utf8(self.buffer[..end].to_vec()).unwrap();
        self.buffer.drain(..end);
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = match length(&head) {
            Some(length) => {
                while self.buffer.len() < length {
                    self.more()?;
                }
                self.buffer.drain(..length).collect()
            }
            None if head.to_lowercase().contains("transfer-encoding: chunked") => self.chunks()?,
            None => {
                while self.more().is_some() {}
                std::mem::take(&mut self.buffer)
            }
        };
        Some(Answer { status, head, body })
    }

    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let end = loop {
                match find(&self.buffer, b"\r\n") {
                    Some(end) => break end,
                    None => self.more()?,
                }
            };
            let line = String::from_utf8(self.buffer.drain(..end + 2).collect()).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            while self.buffer.len() < size + 2 {
                self.more()?;
            }
            body.extend(self.buffer.drain(..size + 2).take(size));
            if size == 0 {
                return Some(body);
            }
        }
    }

    fn more(&mut self) -> Option<()> {
        let mut bytes = [0; 64 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => None,
            Ok(count) => {
                self.buffer.extend_from_slice(&bytes[..count]);
                Some(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no more bytes: {error}; so far {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// Whether the server ends the connection without another byte.
    pub fn is_ended(&mut self) -> bool {
        self.more().is_none() && self.buffer.is_empty()
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

fn length(head: &str) -> Option<usize> {
    let head = head.to_lowercase();
    head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
}

/// A request as a worker sees it.
pub struct Question {
    pub method: String,
    pub target: String,
    pub head: String,
    pub body: Vec<u8>,
    /// Which connection of the worker brought it, from 0.
    pub connection: usize,
    /// Which request of its connection it is, from 0.
    pub number: usize,
}

/// The answer of a worker that has nothing special to say.
pub fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

type Handler = dyn Fn(&Question, &mut UnixStream) -> bool + Send + Sync;

#[derive(Default)]
struct Record {
    targets: Mutex<Vec<String>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    listens: AtomicBool,
    stopped: AtomicBool,
}

/// A worker on a Unix socket. Its handler answers on the stream and says whether to keep the connection.
pub struct Worker {
    pub path: PathBuf,
    record: Arc<Record>,
}

impl Worker {
    pub fn start(path: &Path, handler: impl Fn(&Question, &mut UnixStream) -> bool + Send + Sync + 'static) -> Worker {
        let worker = Worker::absent(path);
        worker.listen(handler);
        worker
    }

    /// One that answers every request with its target.
    pub fn mirror(path: &Path) -> Worker {
        Worker::start(path, |question, stream| stream.write_all(&ok(&question.target)).is_ok())
    }

    /// One that does not listen yet.
    pub fn absent(path: &Path) -> Worker {
        Worker { path: path.to_owned(), record: Arc::default() }
    }

    pub fn listen(&self, handler: impl Fn(&Question, &mut UnixStream) -> bool + Send + Sync + 'static) {
        let listener = UnixListener::bind(&self.path).unwrap();
        self.record.listens.store(true, Ordering::SeqCst);
        let (record, handler): (_, Arc<Handler>) = (self.record.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                if record.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let connection = record.connections.fetch_add(1, Ordering::SeqCst);
                let (record, handler) = (record.clone(), handler.clone());
                std::thread::spawn(move || {
                    record.open.fetch_add(1, Ordering::SeqCst);
                    serve(stream, connection, &record, &*handler);
                    record.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
    }

    /// No longer listens, and its socket's file is gone. One that never listened leaves what lies at its path.
    pub fn stop(&self) {
        if !self.record.listens.load(Ordering::SeqCst) || self.record.stopped.swap(true, Ordering::SeqCst) {
            return;
        }
        // Wakes the thread that accepts.
        drop(UnixStream::connect(&self.path));
        let _ = std::fs::remove_file(&self.path);
    }

    /// What it was asked for, in the order of arrival.
    pub fn targets(&self) -> Vec<String> {
        self.record.targets.lock().unwrap().clone()
    }

    /// How many connections have brought it anything or may still.
    pub fn connections(&self) -> usize {
        self.record.connections.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.record.open.load(Ordering::SeqCst)
    }

    /// The most requests that it ever had at once.
    pub fn most(&self) -> usize {
        self.record.most.load(Ordering::SeqCst)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(mut stream: UnixStream, connection: usize, record: &Record, handler: &Handler) {
    let mut buffer = Vec::new();
    for number in 0.. {
        let Some(mut question) = read_question(&mut stream, &mut buffer) else { return };
        (question.connection, question.number) = (connection, number);
        record.targets.lock().unwrap().push(question.target.clone());
        let running = record.running.fetch_add(1, Ordering::SeqCst) + 1;
        record.most.fetch_max(running, Ordering::SeqCst);
        // The place is free before the answer can be: the handler's last write must not race with the next request.
        let guard = Running(record);
        let keep = handler(&question, &mut stream);
        drop(guard);
        if !keep {
            return;
        }
    }
}

struct Running<'a>(&'a Record);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

fn read_question(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> Option<Question> {
    let mut bytes = [0; 16 * 1024];
    let mut more = |buffer: &mut Vec<u8>| match stream.read(&mut bytes) {
        Ok(0) | Err(_) => None,
        Ok(count) => {
            buffer.extend_from_slice(&bytes[..count]);
            Some(())
        }
    };
    let end = loop {
        match find(buffer, b"\r\n\r\n") {
            Some(end) => break end + 4,
            None => more(buffer)?,
        }
    };
    let head = String::from_utf8(buffer.drain(..end).collect()).unwrap();
    let length = length(&head).unwrap_or(0);
    while buffer.len() < length {
        more(buffer)?;
    }
    let body = buffer.drain(..length).collect();
    let mut words = head.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    Some(Question { method, target, head, body, connection: 0, number: 0 })
}
