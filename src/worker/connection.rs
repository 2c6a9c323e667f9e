//! One connection of the built-in worker: requests in, answers out, until either side ends it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use super::answers::{self, Question};
use super::handlers;
use super::module::Scratch;
use super::{Entry, Shared};
use crate::http::body::Chunked;
use crate::http::fields::Fields;
use crate::http::head::{self, HeadLimits};
use crate::http::{Framing, Refusal};

/// Room for a head, and for what comes with it. More is taken for a head that needs it, and given back after its request.
const BUFFER: usize = 64 * 1024;
/// The longest body that is taken.
const MOST_BODY: usize = 64 * 1024 * 1024;
/// A body's memory above this is given back after its request.
const KEPT_BODY: usize = 1024 * 1024;
/// What a server in front may let pass (`--max-head`, `--max-fields`) is taken, with what it adds: among others the host, twice.
const LIMITS: HeadLimits = HeadLimits { head: 4 << 20, target: 1 << 20, fields: 10_000 + 100 };

/// What goes wrong while a request is read.
enum Trouble {
    Io(io::Error),
    Refused(Refusal),
    TooLarge,
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Trouble {
        Trouble::Io(error)
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Trouble {
        Trouble::Refused(refusal)
    }
}

/// What was read and not yet used.
struct Input<'a> {
    stream: &'a UnixStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input<'_> {
    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
        debug_assert!(self.start <= self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.buffer.len() > BUFFER {
                self.buffer = vec![0; BUFFER];
            }
        }
    }

    /// Reads more. False: the peer has finished.
    fn fill(&mut self) -> io::Result<bool> {
        if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            if self.end == self.buffer.len() {
                // The limits of a head bound this.
                self.buffer.resize(2 * self.buffer.len(), 0);
            }
        }
        loop {
            match (&mut &*self.stream).read(&mut self.buffer[self.end..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(count) => {
                    self.end += count;
                    return Ok(count > 0);
                }
            }
        }
    }
}

/// A connection's memory for answers.
#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    scratch: Scratch,
}

/// Serves a connection to its end.
pub(super) fn serve(entry: &Entry, shared: &Shared) -> io::Result<()> {
    let stream = &entry.stream;
    let mut input = Input { stream, buffer: vec![0; BUFFER], start: 0, end: 0 };
    let mut fields = Fields::new(HeadLimits::default().fields);
    let mut body = Vec::new();
    let mut out = Out::default();
    loop {
        let served = one_request(&mut input, entry, shared, &mut fields, &mut body, &mut out);
        let keep = match served {
            Ok(keep) => keep,
            Err(Trouble::Io(error)) => return Err(error),
            Err(Trouble::Refused(refusal)) => return answers::refuse(stream, refusal.status, refusal.reason),
            Err(Trouble::TooLarge) => return answers::refuse(stream, 413, "the body is larger than 64 MiB"),
        };
        if !keep {
            return Ok(());
        }
        if body.capacity() > KEPT_BODY {
            body = Vec::new();
        }
        entry.busy.store(!input.bytes().is_empty(), Ordering::SeqCst);
        if shared.stopping.load(Ordering::SeqCst) {
            // What has arrived by now is still read and answered; then comes the end.
            stream.shutdown(Shutdown::Read).ok();
        }
    }
}

/// Reads a request and answers it. False: the connection is over.
fn one_request(
    input: &mut Input<'_>,
    entry: &Entry,
    shared: &Shared,
    fields: &mut Fields,
    body: &mut Vec<u8>,
    out: &mut Out,
) -> Result<bool, Trouble> {
    let request = loop {
        if !input.bytes().is_empty()
            && let Some(request) = head::request(input.bytes(), &LIMITS, fields)?
        {
            break request;
        }
        if !input.fill()? {
            return Ok(false);
        }
        entry.busy.store(true, Ordering::SeqCst);
    };
    let count = shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
    body.clear();
    // The head's spans stay valid while the body is read: it is copied only when a body follows, which is the rarer case.
    if request.framing == Framing::None {
        let keep = request.keep_alive && !shared.stopping.load(Ordering::SeqCst);
        let question = Question { head: input.bytes(), request: &request, fields, body, count, keep };
        let answered = answer(entry, shared, &question, out)?;
        input.consume(request.len);
        return Ok(answered && keep);
    }
    let head = input.bytes()[..request.len].to_vec();
    input.consume(request.len);
    if request.expect_continue {
        (&mut &entry.stream).write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if !read_body(input, request.framing, body)? {
        return Ok(false);
    }
    let keep = request.keep_alive && !shared.stopping.load(Ordering::SeqCst);
    let question = Question { head: &head, request: &request, fields, body, count, keep };
    Ok(answer(entry, shared, &question, out)? && keep)
}

/// Answers, through the module if there is one. False: the answer's end is the connection's end.
fn answer(entry: &Entry, shared: &Shared, question: &Question<'_>, out: &mut Out) -> io::Result<bool> {
    match &shared.handlers {
        Some(handlers) => handlers::answer(handlers, &entry.stream, question, &mut out.scratch, &mut out.bytes),
        None => answers::answer(entry, question, &mut out.bytes),
    }
}

/// Reads a body whole. False: the peer ended within it.
fn read_body(input: &mut Input<'_>, framing: Framing, body: &mut Vec<u8>) -> Result<bool, Trouble> {
    let Framing::Length(length) = framing else { return read_chunks(input, body) };
    let length = usize::try_from(length).ok().filter(|&length| length <= MOST_BODY).ok_or(Trouble::TooLarge)?;
    while body.len() < length {
        let take = input.bytes().len().min(length - body.len());
        body.extend_from_slice(&input.bytes()[..take]);
        input.consume(take);
        if body.len() < length && !input.fill()? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn read_chunks(input: &mut Input<'_>, body: &mut Vec<u8>) -> Result<bool, Trouble> {
    let mut chunked = Chunked::new();
    loop {
        if input.bytes().is_empty() && !input.fill()? {
            return Ok(false);
        }
        let progress = chunked.decode(input.bytes())?;
        if body.len() + progress.data.len() > MOST_BODY {
            return Err(Trouble::TooLarge);
        }
        body.extend_from_slice(&input.bytes()[progress.data]);
        input.consume(progress.consumed);
        if progress.done {
            return Ok(true);
        }
        if progress.consumed == 0 && !input.fill()? {
            return Ok(false);
        }
    }
}
