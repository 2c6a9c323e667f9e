//! Workers whose every move is scripted: a handler is called with each request and the stream to answer on.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use crate::support::{Server, fields};

impl Server {
    /// One loop of that backend in front of workers; it knows which of them listen.
    pub fn in_front_of(backend: &str, workers: &[&Worker], flags: &[&str]) -> Server {
        let upstreams: Vec<String> = workers.iter().map(|worker| format!("unix:{}", worker.path.display())).collect();
        let mut all: Vec<&str> = upstreams.iter().flat_map(|upstream| ["--upstream", upstream]).collect();
        all.extend(flags);
        let server = Server::start(backend, &all);
        server.until_ready(workers.iter().filter(|worker| worker.path.exists()).count());
        server
    }
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
    running: Running,
}

impl Question {
    /// The worker is done with it, but for the writing: where the answer's end frees the worker for a request on another connection,
    /// this has to come before it.
    pub fn ends(&self) {
        self.running.end();
    }
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

    /// One that does the same, but waits for a word before it answers targets that begin so.
    pub fn gated(path: &Path, held: &'static str) -> (Worker, mpsc::Sender<()>) {
        let (go, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let worker = Worker::start(path, move |question, stream| {
            if question.target.starts_with(held) {
                // The test may be over.
                let _ = gate.lock().unwrap().recv();
            }
            question.ends();
            stream.write_all(&ok(&question.target)).is_ok()
        });
        (worker, go)
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

fn serve(mut stream: UnixStream, connection: usize, record: &Arc<Record>, handler: &Handler) {
    let mut buffer = Vec::new();
    for number in 0.. {
        let Some(mut question) = read_question(&mut stream, &mut buffer) else { return };
        (question.connection, question.number) = (connection, number);
        record.targets.lock().unwrap().push(question.target.clone());
        question.running = Running::begin(record);
        let keep = handler(&question, &mut stream);
        question.ends();
        if !keep {
            return;
        }
    }
}

/// Counts as one request that the worker is at, until it ends.
struct Running(Mutex<Option<Arc<Record>>>);

impl Running {
    fn begin(record: &Arc<Record>) -> Running {
        let running = record.running.fetch_add(1, Ordering::SeqCst) + 1;
        record.most.fetch_max(running, Ordering::SeqCst);
        Running(Mutex::new(Some(record.clone())))
    }

    fn end(&self) {
        if let Some(record) = self.0.lock().unwrap().take() {
            record.running.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

fn read_question(stream: &mut UnixStream, buffer: &mut Vec<u8>) -> Option<Question> {
    let mut bytes = [0; 16 * 1024];
    let mut fill = |buffer: &mut Vec<u8>, enough: &dyn Fn(&[u8]) -> Option<usize>| loop {
        if let Some(end) = enough(buffer) {
            return Some(buffer.drain(..end).collect::<Vec<u8>>());
        }
        match crate::support::read(&mut *stream, &mut bytes) {
            Ok(0) | Err(_) => return None,
            Ok(count) => buffer.extend_from_slice(&bytes[..count]),
        }
    };
    let head = fill(buffer, &|bytes| bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|end| end + 4))?;
    let head = String::from_utf8(head).unwrap();
    let length = fields(&head, "content-length").first().map_or(0, |length| length.parse().unwrap());
    let body = fill(buffer, &|bytes| (bytes.len() >= length).then_some(length))?;
    let mut words = head.split(' ').map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    Some(Question { method, target, head, body, connection: 0, number: 0, running: Running(Mutex::default()) })
}
