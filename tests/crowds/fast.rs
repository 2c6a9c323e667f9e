//! Sixty-four clients that want answers and nothing else: whoever waits beside them must not be noticed.

use std::io::{ErrorKind, Write};
use std::time::Instant;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::support::{DEADLINE, Server, text};

pub const FAST: usize = 64;

/// What they ask for in turn, and what they get: of the worker, and of the loop itself.
const QUESTIONS: [(&str, &[u8]); 2] =
    [("GET /fast HTTP/1.1\r\nHost: a\r\n\r\n", b"fast"), ("GET /server HTTP/1.1\r\nHost: a\r\n\r\n", b"ok")];

struct Fast {
    stream: TcpStream,
    input: Vec<u8>,
    answers: usize,
}

/// New connections, and so many answers over each: all of them right, and all in time.
pub fn ask(server: &Server, each: usize) {
    let mut poll = Poll::new().unwrap();
    let mut clients: Vec<Fast> = (0..FAST)
        .map(|index| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            let interests = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(index), interests).unwrap();
            Fast { stream, input: Vec::new(), answers: 0 }
        })
        .collect();
    let mut events = Events::with_capacity(FAST);
    let end = Instant::now() + DEADLINE;
    let mut asked = [false; FAST];
    while clients.iter().any(|client| client.answers < each) {
        let left = end.saturating_duration_since(Instant::now());
        let answers: usize = clients.iter().map(|client| client.answers).sum();
        let least = clients.iter().map(|client| client.answers).min().unwrap();
        assert!(!left.is_zero(), "{answers} of {} answers came in {DEADLINE:?}, one client has {least}", FAST * each);
        poll.poll(&mut events, Some(left)).unwrap();
        for event in &events {
            let index = event.token().0;
            if !asked[index] && event.is_writable() {
                clients[index].stream.set_nodelay(true).unwrap();
                clients[index].question();
                asked[index] = true;
            }
            clients[index].receive(each);
        }
    }
}

impl Fast {
    fn question(&mut self) {
        let question = QUESTIONS[self.answers % 2].0.as_bytes();
        let sent = self.stream.write(question).unwrap();
        assert_eq!(sent, question.len(), "an empty socket takes a small request whole");
    }

    fn receive(&mut self, each: usize) {
        let mut buffer = [0; 4096];
        loop {
            match crate::support::read(&mut self.stream, &mut buffer) {
                Ok(0) => panic!("a fast client's connection ended after {} answers", self.answers),
                Ok(count) => self.input.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => return,
                Err(error) => panic!("a fast client's connection failed after {} answers: {error}", self.answers),
            }
            let Some(end) = memchr::memmem::find(&self.input, b"\r\n\r\n") else { continue };
            assert!(self.input.starts_with(b"HTTP/1.1 200 "), "{}", text(&self.input));
            let expected = QUESTIONS[self.answers % 2].1;
            if self.input.len() < end + 4 + expected.len() {
                continue;
            }
            assert_eq!(text(&self.input[end + 4..]), text(expected));
            self.input.clear();
            self.answers += 1;
            if self.answers < each {
                self.question();
            }
        }
    }
}
