//! A control server on a thread of its own, and clients that speak plain bytes.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use production_server::control::status::{App, Server, State, Status};
use production_server::control::{Answer, Command, CommandHandler, ControlServer, SOCKET_NAME};
use production_server::supervisor::wake::{self, Sleeper, Waker};
use serde_json::{Value, json};

pub const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than a turn may take.
const LONG: Duration = Duration::from_millis(6);
/// The ticket of everything that this handler lets wait.
pub const TICKET: u64 = 7;

/// Looks again until `look` finds something, and fails with what was waited for.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Writes down what it is asked; knows one app, `web`, and one joined worker, `7`. A pause takes it [`LONG`].
struct Clerk {
    asked: Arc<Mutex<Vec<Command>>>,
    status: Status,
}

impl CommandHandler for Clerk {
    fn carry_out(&mut self, command: Command, _: Instant) -> Answer {
        let app = match &command {
            Command::Restart { app, .. } | Command::Scale { app, .. } | Command::Signal { app, .. } => app.clone(),
            Command::Reload { app, .. } | Command::Pause { app, .. } | Command::Resume { app } => app.clone(),
            _ => None,
        };
        if let Some(app) = app.filter(|app| app != "web") {
            return Answer::unknown_app(&app, &["web"]);
        }
        self.asked.lock().unwrap().push(command.clone());
        match command {
            Command::Status => Answer::Done(self.status.to_json()),
            Command::Events => Answer::Stream,
            Command::Restart { wait: true, .. } | Command::Join(_) => Answer::Wait(TICKET),
            Command::Quit { worker_id, .. } if worker_id != "7" => {
                Answer::refused(404, format!("no worker {worker_id:?} has joined"))
            }
            Command::Quit { .. } => Answer::Done(Value::Null),
            Command::Drain => Answer::refused(409, "the server stops already"),
            Command::Stop { .. } => Answer::done("the server stops"),
            Command::Resume { .. } => Answer::Done(json!({})),
            Command::Pause { .. } => {
                std::thread::sleep(LONG);
                Answer::done("it is under way")
            }
            _ => Answer::done("it is under way"),
        }
    }
}

enum Order {
    Answer(u64, Answer),
    Publish(Value),
    Close,
}

/// See the module.
pub struct Rig {
    pub directory: PathBuf,
    pub socket: PathBuf,
    /// Its end removes the directory, where that is the rig's own.
    _own: Option<tempfile::TempDir>,
    asked: Arc<Mutex<Vec<Command>>>,
    turns: Arc<AtomicU64>,
    orders: Sender<Order>,
    waker: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Rig {
    pub fn new() -> Rig {
        Rig::of_process(0)
    }

    /// A server in that run directory.
    pub fn at(directory: &Path) -> Rig {
        Rig::start(directory.to_owned(), None, 0)
    }

    /// A server whose status document names that process.
    pub fn of_process(pid: u32) -> Rig {
        let own = tempfile::tempdir().unwrap();
        Rig::start(own.path().to_owned(), Some(own), pid)
    }

    fn start(directory: PathBuf, own: Option<tempfile::TempDir>, pid: u32) -> Rig {
        let socket = directory.join(SOCKET_NAME);
        let server = ControlServer::open(&socket).unwrap();
        let app = App { name: "web".to_owned(), state: State::Running, workers_wanted: 2, ..App::default() };
        let process = Server { pid, state: State::Running, ..Server::default() };
        let status = Status { server: process, apps: vec![app], ..Status::default() };
        let asked = Arc::new(Mutex::new(Vec::new()));
        let clerk = Clerk { asked: asked.clone(), status };
        let (waker, sleeper) = wake::pair().unwrap();
        let (orders, receiver) = channel();
        let turns = Arc::new(AtomicU64::new(0));
        let counter = turns.clone();
        let thread = std::thread::spawn(move || serve(server, clerk, sleeper, receiver, &counter));
        Rig { directory, socket, _own: own, asked, turns, orders, waker, thread: Some(thread) }
    }

    /// What was asked since this was asked last.
    pub fn asked(&self) -> Vec<Command> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }

    /// How often the poll loop came round.
    pub fn turns(&self) -> u64 {
        self.turns.load(Ordering::SeqCst)
    }

    pub fn answer(&self, ticket: u64, answer: Answer) {
        self.order(Order::Answer(ticket, answer));
    }

    pub fn publish(&self, event: Value) {
        self.order(Order::Publish(event));
    }

    /// Ends the server; its thread is gone afterwards.
    pub fn close(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.order(Order::Close);
            thread.join().unwrap();
        }
    }

    pub fn connect(&self) -> Client {
        Client::new(&self.socket)
    }

    /// Sends one request on a connection of its own; status and document.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut client = self.connect();
        client.send(&request(method, path, body));
        client.answer()
    }

    fn order(&self, order: Order) {
        self.orders.send(order).unwrap();
        self.waker.wake();
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.close();
        }
    }
}

/// The supervisor's loop, as far as the control socket is concerned.
fn serve(
    mut server: ControlServer,
    mut clerk: Clerk,
    mut sleeper: Sleeper,
    orders: Receiver<Order>,
    turns: &AtomicU64,
) {
    loop {
        let mut entries = vec![wake::entry(sleeper.descriptor(), libc::POLLIN)];
        server.poll_entries(&mut entries);
        let timeout = server.due().map(|due| due.saturating_duration_since(Instant::now()));
        wake::poll(&mut entries, timeout).unwrap();
        sleeper.clear();
        turns.fetch_add(1, Ordering::SeqCst);
        for order in orders.try_iter() {
            match order {
                Order::Answer(ticket, answer) => server.answer(ticket, answer),
                Order::Publish(event) => server.publish(&event),
                Order::Close => return server.close(),
            }
        }
        server.turn(&mut clerk, Instant::now());
    }
}

/// A request with a length.
pub fn request(method: &str, path: &str, body: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// A connection that speaks plain bytes. Reads give up after the patience.
pub struct Client {
    pub stream: UnixStream,
    input: Vec<u8>,
}

impl Client {
    pub fn new(path: &Path) -> Client {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Client { stream, input: Vec::new() }
    }

    pub fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    pub fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// The next head, up to its empty line.
    pub fn head(&mut self) -> String {
        self.until(b"\r\n\r\n")
    }

    /// The next answer: status and document.
    pub fn answer(&mut self) -> (u16, Value) {
        let head = self.head();
        let body = self.body(&head);
        (head[9..12].parse().unwrap(), serde_json::from_str(&body).unwrap())
    }

    /// The body that belongs to a head.
    pub fn body(&mut self, head: &str) -> String {
        let (_, length) = head.split_once("Content-Length: ").unwrap_or_else(|| panic!("no length in {head}"));
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        while self.input.len() < length {
            assert!(self.receive(), "the answer is cut");
        }
        String::from_utf8(self.input.drain(..length).collect()).unwrap()
    }

    /// What comes up to and with `end`.
    pub fn until(&mut self, end: &[u8]) -> String {
        loop {
            if let Some(at) = self.input.windows(end.len()).position(|window| window == end) {
                return String::from_utf8(self.input.drain(..at + end.len()).collect()).unwrap();
            }
            assert!(self.receive(), "the connection ended before {:?}", String::from_utf8_lossy(end));
        }
    }

    /// Everything up to the end of the connection.
    pub fn rest(&mut self) -> String {
        while self.receive() {}
        String::from_utf8(std::mem::take(&mut self.input)).unwrap()
    }

    /// The next event of a stream in chunks; `None` at its clean end.
    pub fn event(&mut self) -> Option<Value> {
        loop {
            let size = self.until(b"\r\n");
            let length = usize::from_str_radix(size.trim(), 16).unwrap();
            while self.input.len() < length + 2 {
                assert!(self.receive(), "the stream is cut");
            }
            let chunk: Vec<u8> = self.input.drain(..length + 2).collect();
            let chunk = chunk.strip_suffix(b"\r\n").unwrap();
            match chunk {
                b"" => return None,
                b"\n" => {}
                line => return Some(serde_json::from_slice(line.strip_suffix(b"\n").unwrap()).unwrap()),
            }
        }
    }

    /// False at the end of the connection.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 64 * 1024];
        let count = crate::support::read(&mut self.stream, &mut buffer).unwrap();
        self.input.extend_from_slice(&buffer[..count]);
        count > 0
    }
}
