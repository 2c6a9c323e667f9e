//! A recording worker: it keeps every byte that it gets, per connection, and answers by a script.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::client::fields;
use super::{DEADLINE, text, until};

/// What came over one connection.
#[derive(Clone, Default)]
pub struct Record {
    pub bytes: Vec<u8>,
    /// The server has ended or reset it.
    pub ended: bool,
}

type Records = Arc<Mutex<Vec<Record>>>;

/// A worker on a Unix socket, or a TCP port, of its own.
pub struct Worker {
    /// What `--upstream` takes.
    pub url: String,
    records: Records,
    stopped: Arc<AtomicBool>,
    unblock: Box<dyn Fn() + Send + Sync>,
    _folder: tempfile::TempDir,
}

/// The two kinds of sockets that a worker has.
trait Socket: Read + Write + Send {
    fn end(&self, how: Shutdown);
    /// Makes the close a reset, where the kind of socket has such.
    fn reset_at_close(&self);
}

impl Socket for UnixStream {
    fn end(&self, how: Shutdown) {
        // The server may have closed it before.
        let _ = self.shutdown(how);
    }

    fn reset_at_close(&self) {
        panic!("a Unix socket has no reset");
    }
}

impl Socket for TcpStream {
    fn end(&self, how: Shutdown) {
        let _ = self.shutdown(how);
    }

    fn reset_at_close(&self) {
        socket2::SockRef::from(self).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
}

impl Worker {
    /// A worker that does with each connection what the script says.
    pub fn new(script: impl Fn(&mut Incoming) + Send + Sync + 'static) -> Worker {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let url = format!("unix:{}", path.display());
        let accept = move || {
            let (stream, _) = listener.accept().ok()?;
            stream.set_read_timeout(Some(DEADLINE)).ok()?;
            stream.set_write_timeout(Some(DEADLINE)).ok()?;
            Some(Box::new(stream) as Box<dyn Socket>)
        };
        Worker::run(url, folder, script, accept, move || drop(UnixStream::connect(&path)))
    }

    /// The same on a TCP port.
    pub fn tcp(script: impl Fn(&mut Incoming) + Send + Sync + 'static) -> Worker {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accept = move || {
            let (stream, _) = listener.accept().ok()?;
            stream.set_read_timeout(Some(DEADLINE)).ok()?;
            stream.set_write_timeout(Some(DEADLINE)).ok()?;
            Some(Box::new(stream) as Box<dyn Socket>)
        };
        let unblock = move || drop(TcpStream::connect(address));
        Worker::run(format!("http://{address}"), tempfile::tempdir().unwrap(), script, accept, unblock)
    }

    /// Answers every request with the request itself, head and decoded body.
    pub fn echo() -> Worker {
        Worker::new(|incoming| {
            while let Some((head, body)) = incoming.request() {
                incoming.respond(&[head.as_bytes(), b"\r\n", &body].concat());
            }
        })
    }

    /// Answers every request with these bytes, whatever they are, and reads on.
    pub fn saying(answer: impl Into<Vec<u8>>) -> Worker {
        let answer = answer.into();
        Worker::new(move |incoming| {
            while incoming.request().is_some() {
                incoming.send(&answer);
            }
        })
    }

    /// Answers every request with these bytes and closes.
    pub fn saying_last(answer: impl Into<Vec<u8>>) -> Worker {
        let answer = answer.into();
        Worker::new(move |incoming| {
            if incoming.request().is_some() {
                incoming.send(&answer);
            }
        })
    }

    fn run(
        url: String,
        folder: tempfile::TempDir,
        script: impl Fn(&mut Incoming) + Send + Sync + 'static,
        accept: impl Fn() -> Option<Box<dyn Socket>> + Send + 'static,
        unblock: impl Fn() + Send + Sync + 'static,
    ) -> Worker {
        let (records, stopped): (Records, Arc<AtomicBool>) = Default::default();
        let (kept, stop, script) = (records.clone(), stopped.clone(), Arc::new(script));
        std::thread::spawn(move || {
            while let Some(socket) = accept() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let mut records = kept.lock().unwrap();
                let index = records.len();
                records.push(Record::default());
                let mut incoming = Incoming { socket, index, records: kept.clone(), input: Vec::new() };
                let script = script.clone();
                std::thread::spawn(move || script(&mut incoming));
            }
        });
        Worker { url, records, stopped, unblock: Box::new(unblock), _folder: folder }
    }

    /// Stops listening; connections end as the server ends them.
    pub fn vanish(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        (self.unblock)();
    }

    /// What came over each connection on which anything came: the server also looks whether it may connect.
    pub fn records(&self) -> Vec<Record> {
        let records = self.records.lock().unwrap();
        records.iter().filter(|record| !record.bytes.is_empty()).cloned().collect()
    }

    /// The connection over which the request for that path came.
    pub fn of(&self, path: &str) -> Option<Record> {
        let path = path.as_bytes();
        self.records().into_iter().find(|record| record.bytes.windows(path.len()).any(|window| window == path))
    }

    /// All bytes of all connections.
    pub fn everything(&self) -> Vec<u8> {
        self.records().into_iter().flat_map(|record| record.bytes).collect()
    }

    /// Nothing came.
    pub fn expect_nothing(&self, why: &str) {
        let bytes = self.everything();
        assert!(bytes.is_empty(), "{why}: the worker got {}", text(&bytes));
    }

    /// The server closes the connection that was used as the `index`th; what came over it.
    pub fn expect_closed(&self, index: usize) -> Vec<u8> {
        until("the server closes the connection to its worker", || {
            self.records().get(index).is_some_and(|record| record.ended)
        });
        self.records().swap_remove(index).bytes
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.vanish();
    }
}

/// A connection from the server to a worker.
pub struct Incoming {
    socket: Box<dyn Socket>,
    /// Which of the worker's connections it is, from 0, those counted that brought nothing.
    pub index: usize,
    records: Records,
    input: Vec<u8>,
}

impl Incoming {
    /// The next request: its head without the empty line, and its body without framing. `None` at the end.
    pub fn request(&mut self) -> Option<(String, Vec<u8>)> {
        let head = self.head()?;
        let body = match (fields(&head, "content-length").first(), fields(&head, "transfer-encoding").first()) {
            (Some(length), _) => self.take(length.parse().unwrap())?,
            (_, Some(_)) => self.chunks()?,
            (None, None) => Vec::new(),
        };
        Some((head, body))
    }

    /// A head without its empty line; `None` at the end.
    pub fn head(&mut self) -> Option<String> {
        let mut from = 0;
        loop {
            if let Some(end) = self.input[from..].windows(4).position(|window| window == b"\r\n\r\n") {
                let head: Vec<u8> = self.input.drain(..from + end + 4).collect();
                return Some(String::from_utf8_lossy(&head[..head.len() - 2]).into_owned());
            }
            from = self.input.len().saturating_sub(3);
            self.receive()?;
        }
    }

    /// A chunked body, decoded, with its trailers lines behind it.
    fn chunks(&mut self) -> Option<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.line()?;
            let size = usize::from_str_radix(&line, 16).unwrap();
            if size == 0 {
                break;
            }
            body.extend(self.take(size)?);
            assert_eq!(self.take(2)?, b"\r\n");
        }
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Some(body);
            }
            body.extend((line + "\r\n").into_bytes());
        }
    }

    fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.input.windows(2).position(|window| window == b"\r\n") {
                let line: Vec<u8> = self.input.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            self.receive()?;
        }
    }

    /// So many bytes; `None` if the connection ends before.
    pub fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.input.len() < count {
            self.receive()?;
        }
        Some(self.input.drain(..count).collect())
    }

    /// Whether what was received and not taken ends so.
    pub fn ends_with(&self, end: &[u8]) -> bool {
        self.input.ends_with(end)
    }

    /// What has come, at least a byte; `None` at the end.
    pub fn any(&mut self) -> Option<Vec<u8>> {
        if self.input.is_empty() {
            self.receive()?;
        }
        Some(std::mem::take(&mut self.input))
    }

    /// Receives until the server ends the connection.
    pub fn drain(&mut self) {
        while self.receive().is_some() {}
    }

    /// Receives once: how many bytes came. `None` at the end.
    pub fn receive(&mut self) -> Option<usize> {
        let mut buffer = [0; 65536];
        let count = crate::support::read(&mut self.socket, &mut buffer).unwrap_or(0);
        let mut records = self.records.lock().unwrap();
        let record = &mut records[self.index];
        if count == 0 {
            record.ended = true;
            return None;
        }
        record.bytes.extend_from_slice(&buffer[..count]);
        drop(records);
        self.input.extend_from_slice(&buffer[..count]);
        Some(count)
    }

    /// Sends bytes as they are. The server may have closed the connection, which is the test's to see.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.socket.write_all(bytes.as_ref()).is_ok()
    }

    /// A whole answer with a length.
    pub fn respond(&mut self, body: &[u8]) {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        self.send([head.as_bytes(), body].concat());
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) {
        self.socket.end(Shutdown::Write);
    }

    /// Takes nothing more, which the server sees when it sends; its own half stays open.
    pub fn take_no_more(&mut self) {
        self.socket.end(Shutdown::Read);
    }

    /// The close at the script's end is a reset. Only on TCP.
    pub fn reset(&mut self) {
        self.socket.reset_at_close();
    }
}
