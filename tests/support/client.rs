//! A raw client: it sends what it is told to, and cuts what comes into answers.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::{DEADLINE, Server, text};

/// A connection to a server.
pub struct Client {
    pub stream: TcpStream,
    /// Received and not yet used.
    input: Vec<u8>,
    /// What the last receive in vain said, for messages.
    ending: String,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In order.
    End,
    /// By a reset.
    Reset,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and field lines, with their ends and without the empty line.
    pub head: String,
    /// The body without its framing.
    pub body: Vec<u8>,
    /// The trailer lines of a chunked body, with their ends.
    pub trailers: String,
    /// Whether the body ended as its framing says. One that ends with the connection is whole if that ends in order.
    pub whole: bool,
}

impl Answer {
    /// All values of a field.
    pub fn all(&self, name: &str) -> Vec<&str> {
        fields(&self.head, name)
    }

    /// The value of a field that is there at most once.
    pub fn field(&self, name: &str) -> Option<&str> {
        let all = self.all(name);
        assert!(all.len() <= 1, "{name} is there {} times:\n{}", all.len(), self.head);
        all.first().copied()
    }

    /// Whether the head has that line, or one that begins so.
    pub fn has(&self, line: &str) -> bool {
        self.head.to_lowercase().contains(&line.to_lowercase())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// All values of a field in a head.
pub fn fields<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    head.split("\r\n")
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
        .collect()
}

impl Client {
    pub fn of(server: &Server) -> Client {
        Client::to(server.address)
    }

    pub fn to(address: SocketAddr) -> Client {
        Client::reach(address).unwrap()
    }

    /// Of a server that may turn it away, as soon as it is there: the connect itself may then have failed.
    pub fn reach(address: SocketAddr) -> std::io::Result<Client> {
        TcpStream::connect_timeout(&address, DEADLINE).map(|stream| Client::over(stream, Vec::new()))
    }

    /// From another address of this machine, as in `127.0.0.2`.
    pub fn from(address: &str, server: &Server) -> Client {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(address.parse().unwrap(), 0).into()).unwrap();
        socket.connect(&server.address.into()).unwrap();
        Client::over(socket.into(), Vec::new())
    }

    /// Goes without a goodbye.
    pub fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// A connection that is there already, with what has been received over it.
    pub fn over(stream: TcpStream, input: Vec<u8>) -> Client {
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.set_write_timeout(Some(DEADLINE)).unwrap();
        Client { stream, input, ending: String::new() }
    }

    /// Another handle of the same connection, to send while this one receives.
    pub fn second(&self) -> Client {
        Client { stream: self.stream.try_clone().unwrap(), input: Vec::new(), ending: String::new() }
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    /// Sends as far as the peer lets it; whether all went out.
    pub fn try_send(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).is_ok()
    }

    /// Sends byte by byte, each in a packet of its own.
    pub fn send_slowly(&mut self, bytes: impl AsRef<[u8]>) {
        for byte in bytes.as_ref() {
            self.send([*byte]);
        }
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Sends a GET; its answer is left for later.
    pub fn begin(&mut self, target: &str) {
        self.send(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    }

    /// Sends a POST; its answer is left for later.
    pub fn begin_post(&mut self, target: &str, body: &str) {
        self.send(format!("POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    }

    /// Sends a whole request and gives its answer.
    pub fn ask(&mut self, request: &str) -> Answer {
        self.send(request);
        final_answer(self.next_answer(request.starts_with("HEAD")))
    }

    /// GET of a path over the kept connection.
    pub fn get(&mut self, path: &str) -> Answer {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
    }

    /// The final answer to a request that was no HEAD. An interim one is a mistake here.
    pub fn answer(&mut self) -> Answer {
        final_answer(self.next_answer(false))
    }

    /// The next answer; none if the connection ends before its end.
    pub fn whole_answer(&mut self) -> Option<Answer> {
        self.try_answer(false).filter(|answer| answer.whole)
    }

    /// The next answer, interim ones included.
    pub fn next_answer(&mut self, to_head: bool) -> Answer {
        let answer = self.try_answer(to_head);
        answer.unwrap_or_else(|| panic!("no answer but {} and {}", text(&self.input), self.ending))
    }

    fn try_answer(&mut self, to_head: bool) -> Option<Answer> {
        let head = self.head()?;
        let status = head.get(9..12).and_then(|status| status.parse().ok());
        let status: u16 =
            status.filter(|_| head.starts_with("HTTP/1.1 ")).unwrap_or_else(|| panic!("not HTTP: {head}"));
        let mut answer = Answer { status, head, body: Vec::new(), trailers: String::new(), whole: true };
        if to_head || matches!(status, 100..=199 | 204 | 304) {
            return Some(answer);
        }
        let length = answer.field("content-length").map(|length| length.parse::<usize>().unwrap());
        let coding = answer.field("transfer-encoding").map(str::to_owned);
        match (length, coding.as_deref()) {
            (Some(length), None) => {
                answer.whole = self.fill(length);
                let length = length.min(self.input.len());
                answer.body = self.input.drain(..length).collect();
            }
            (None, Some("chunked")) => self.chunks(&mut answer),
            (None, None) => {
                let (body, ending) = self.rest();
                answer.body = body;
                answer.whole = ending == Ending::End;
            }
            _ => panic!("framing that nobody can read:\n{}", answer.head),
        }
        Some(answer)
    }

    fn chunks(&mut self, answer: &mut Answer) {
        loop {
            let Some(line) = self.line() else { break answer.whole = false };
            let size = line.split(';').next().unwrap_or_default();
            let size = usize::from_str_radix(size, 16).unwrap_or_else(|_| panic!("a chunk of size {line:?}"));
            if size == 0 {
                break;
            }
            if !self.fill(size + 2) {
                let rest: Vec<u8> = self.input.drain(..).take(size).collect();
                answer.body.extend(rest);
                break answer.whole = false;
            }
            answer.body.extend(self.input.drain(..size));
            let end: Vec<u8> = self.input.drain(..2).collect();
            assert_eq!(end, b"\r\n", "a chunk without its end");
        }
        while answer.whole {
            match self.line() {
                None => answer.whole = false,
                Some(line) if line.is_empty() => break,
                Some(line) => answer.trailers += &(line + "\r\n"),
            }
        }
    }

    /// One line without its end; `None` if the connection ends before.
    pub fn line(&mut self) -> Option<String> {
        let end = self.find(b"\r\n")?;
        let line: Vec<u8> = self.input.drain(..end + 2).collect();
        Some(String::from_utf8_lossy(&line[..end]).into_owned())
    }

    /// A head without its empty line; `None` if the connection ends before.
    pub fn head(&mut self) -> Option<String> {
        let end = self.find(b"\r\n\r\n")?;
        let head: Vec<u8> = self.input.drain(..end + 4).collect();
        Some(String::from_utf8_lossy(&head[..end + 2]).into_owned())
    }

    /// So many bytes exactly.
    pub fn take(&mut self, count: usize) -> Vec<u8> {
        assert!(self.fill(count), "the connection ended after {} of {count} bytes", self.input.len());
        self.input.drain(..count).collect()
    }

    /// All up to the connection's end.
    pub fn rest(&mut self) -> (Vec<u8>, Ending) {
        let ending = loop {
            match self.receive() {
                Ok(0) => break Ending::End,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => break Ending::Reset,
                Err(error) => panic!("{error}"),
            }
        };
        (std::mem::take(&mut self.input), ending)
    }

    /// Nothing more comes, and the connection ends in order.
    pub fn expect_end(&mut self) {
        let (rest, ending) = self.rest();
        assert!(rest.is_empty(), "more came: {}", text(&rest));
        assert_eq!(ending, Ending::End);
    }

    /// Nothing comes for that long, and the connection stays.
    pub fn expect_silence(&mut self, time: Duration) {
        assert!(self.input.is_empty(), "{}", text(&self.input));
        self.stream.set_read_timeout(Some(time)).unwrap();
        let outcome = self.stream.peek(&mut [0]);
        assert!(outcome.as_ref().is_err_and(is_timeout), "{outcome:?}");
        self.stream.set_read_timeout(Some(DEADLINE)).unwrap();
    }

    /// Whether something has come that was not taken yet, or the connection's end; takes nothing.
    pub fn has_input(&self) -> bool {
        self.stream.set_nonblocking(true).unwrap();
        let seen = self.stream.peek(&mut [0]);
        self.stream.set_nonblocking(false).unwrap();
        !self.input.is_empty() || seen.is_ok()
    }

    /// Whether the connection is still of use: a request over it is answered by the loop itself.
    pub fn expect_alive(&mut self) {
        assert_eq!(self.get("/server").text(), "ok");
    }

    /// Takes no more than one byte from the kernel. Like all that came it is kept for whoever asks next.
    pub fn sip(&mut self) {
        let mut byte = [0];
        self.stream.read_exact(&mut byte).unwrap();
        self.input.extend_from_slice(&byte);
    }

    /// A small receive buffer, so that the server feels at once that this client does not read. (Whoever wants to read much in
    /// the end has no patience for such: the kernel sends into it by timer.)
    pub fn read_little(&mut self) {
        socket2::SockRef::from(&self.stream).set_recv_buffer_size(4096).unwrap();
    }

    fn find(&mut self, needle: &[u8]) -> Option<usize> {
        let mut from = 0;
        loop {
            let found = self.input[from..].windows(needle.len()).position(|window| window == needle);
            if let Some(found) = found {
                return Some(from + found);
            }
            from = self.input.len().saturating_sub(needle.len() - 1);
            match self.receive() {
                Ok(count) if count > 0 => {}
                end => {
                    self.ending = format!("{end:?}");
                    return None;
                }
            }
        }
    }

    fn fill(&mut self, count: usize) -> bool {
        while self.input.len() < count {
            if !matches!(self.receive(), Ok(count) if count > 0) {
                return false;
            }
        }
        true
    }

    fn receive(&mut self) -> std::io::Result<usize> {
        let mut buffer = [0; 65536];
        let read = crate::support::read(&mut self.stream, &mut buffer);
        assert!(!read.as_ref().is_err_and(is_timeout), "nothing came for {DEADLINE:?} after {}", text(&self.input));
        let count = read?;
        self.input.extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

fn final_answer(answer: Answer) -> Answer {
    assert!(answer.status >= 200 || answer.status == 101, "an interim answer:\n{}", answer.head);
    answer
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
