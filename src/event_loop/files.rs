//! Files that are served, as a loop does it: their way to the client.
//!
//! | file | what |
//! |---|---|
//! | `known` | what is known of files, what is being looked for, and who waits for it |
//!
//! What lies behind a name is found out by a helper, and believed for a moment: so a file that is asked for often costs the loop no call
//! but the one that reads it. A loop reads only what the kernel has in memory; the rest is read by a helper. A small file leaves with its head,
//! and its request needs no exchange; who has to wait for a helper, or gets more, has one.

mod known;

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::Arc;

use crate::backends::{Backend, HIGH_MARK, Handed, Size};
use crate::buffers::block::{Block, SMALL, Share};
use crate::buffers::slots::Key;
use crate::connection::{State, Stream};
use crate::dispatch::Outcome as End;
use crate::exchange::{Ending, Exchange, Hold, Phase, Source, Upload};
use crate::files::answer::{Named, Piece, Plan, Terms};
use crate::files::conditions::Asked;
use crate::files::open::{self, Look, Opened, Served};
use crate::helpers::Kind;
use crate::http::head::{Request, Response, Reuse};
use crate::http::id::id_text;
use crate::http::reply::{self, Direct, Reply};
use crate::http::route::{Edits, resolved};
use crate::http::{Framing, Method, Version, body_len, find_lines};
use crate::mailbox::Message;

use super::{Leads, Loop, LoopRoute, Written};
pub(crate) use known::KnownFiles;
pub use known::MOST_OPEN;
use known::{FRESH, Search, Waiter};

/// Bytes of a file that leave with its head at most.
const INLINE: u64 = 15 * 1024;
/// Bytes of a file that are sent without being read, at least: it takes a call more to know that they are in memory.
const DIRECT: u64 = 64 * 1024;
/// Bytes that a helper reads at a time.
const COLD: u64 = 128 * 1024;
/// What may be done with files.
const METHODS: &str = "GET, HEAD, OPTIONS";

/// What is left of a file to be sent.
#[derive(Debug)]
pub(crate) struct Sending {
    /// The one that was chosen: its siblings are open for nobody who reads slowly.
    file: Arc<Opened>,
    pieces: VecDeque<Piece>,
    /// A helper reads.
    asked: bool,
}

/// So many bytes of the first piece, which is one of the file, have been read.
fn advance(pieces: &mut VecDeque<Piece>, count: u64) {
    if let Some(Piece::Bytes(range)) = pieces.front_mut() {
        range.start = range.end.min(range.start + count);
        if range.is_empty() {
            pieces.pop_front();
        }
    }
}

/// What is answered.
enum Outcome {
    File(Arc<Served>, Plan),
    /// To the same with a slash at its end.
    Redirect(String),
    Methods,
    /// There is no such part of what has so many bytes.
    Beyond(u64),
    Error(u16, &'static str),
}

/// An answer that is ready to leave: its head with what of its body is in one block with it, the bytes of that, and the rest.
struct Ready {
    piece: Block,
    status: u16,
    bytes: u64,
    rest: Option<Box<Sending>>,
}

/// Whom an answer is for.
struct Whom<'a> {
    version: Version,
    keep_alive: bool,
    head_only: bool,
    accept: &'a [u8],
    id: Option<&'a [u8]>,
}

impl<B: Backend> Loop<B> {
    /// Answers with a file, or begins to look for it. `input` begins with the request's head.
    pub fn serve_file(&mut self, route: usize, stream: Stream, input: &Block, request: &Request) -> Option<Written> {
        let LoopRoute { leads: Leads::Files(app, site), response: edits, series, .. } = self.apps.routes.get(route)
        else {
            return None;
        };
        let (app, site, edits, series) = (app.clone(), site.clone(), self.heads.edits(edits), *series);
        let target = request.target.path.of(input);
        let path = resolved(target);
        let head = &input[..request.len];
        let (look, name) = match (request.method, site.name(&path)) {
            (Method::Get | Method::Head, Some(name)) => self.apps.files.find(&site, name, self.time.nanos()),
            _ => (Some(Look::Missing), &b""[..]),
        };
        let outcome = match (request.method, look) {
            (Method::Options, _) => Outcome::Methods,
            (Method::Get | Method::Head, Some(look)) => {
                self.outcome(look, head, (request.method, target), (edits.as_deref(), None))
            }
            (Method::Get | Method::Head, None) => {
                let kept = self.memory.pool.heap(head);
                let mut exchange =
                    Exchange::new(stream, app, series, request, kept, id_text(self.heads.next_id), &self.time);
                (exchange.phase, exchange.request.upload) = (Phase::Asking, Upload::Sent);
                exchange.answer.edits = edits;
                self.keep_rest(stream.connection, input, request);
                self.become_state(stream.connection, State::Processing);
                let exchange = self.begin_exchange(stream, exchange, input)?;
                self.watch(stream.connection);
                let (name, target) = (name.into(), target.into());
                self.ask_for_file(Waiter { exchange, site: site.clone(), name, target, named: None });
                return None;
            }
            _ => Outcome::Error(405, "files are read, and nothing else can be done with them here"),
        };
        let whom = Whom {
            version: request.version,
            keep_alive: self.keeps_alive(request),
            head_only: request.method == Method::Head,
            accept: request.accept.of(input),
            id: None,
        };
        let ready = self.ready(outcome, site.cache(name), edits.as_deref(), None, &whom);
        let Some(rest) = ready.rest else {
            self.counters.of_series(series).answered_here(ready.status);
            return Some(Written { head_and_body: ready.piece, status: ready.status, bytes: ready.bytes });
        };
        self.keep_rest(stream.connection, input, request);
        self.decide_keep_alive(stream.connection);
        let kept = self.memory.pool.heap(head);
        let mut exchange = Exchange::new(stream, app, series, request, kept, id_text(self.heads.next_id), &self.time);
        (exchange.phase, exchange.request.upload) = (Phase::Relaying, Upload::Sent);
        (exchange.answer.status, exchange.answer.bytes) = (ready.status, ready.bytes);
        exchange.source = Source::File(rest);
        let key = self.begin_exchange(stream, exchange, input)?;
        self.become_state(stream.connection, State::WritingResponse);
        self.send_head(stream.connection, ready.piece);
        self.watch(stream.connection);
        self.pull(key);
        None
    }

    /// What is answered to a request with that head, where that lies behind its name.
    fn outcome(
        &self,
        look: Look,
        head: &[u8],
        (method, target): (Method, &[u8]),
        (edits, named): (Option<&Edits>, Option<&Named>),
    ) -> Outcome {
        match look {
            Look::File(served) => {
                let id = id_text(self.heads.next_id.rotate_left(32));
                let boundary = std::str::from_utf8(&id).unwrap_or("production_server");
                let is_read = matches!(method, Method::Get | Method::Head);
                let media_type = Named::media_type(named, edits, &served);
                let reads = (is_read, method == Method::Get);
                let plan = Plan::new(&served, &Asked::read(head), reads, (media_type, boundary));
                match plan.status {
                    412 => Outcome::Error(412, "the file is not the one that the request is about"),
                    416 => Outcome::Beyond(plan.file(&served).size),
                    _ => Outcome::File(served, plan),
                }
            }
            // What an app names is a file.
            Look::Directory if named.is_none() => Outcome::Redirect(with_slash(target)),
            Look::Directory | Look::Missing | Look::Outside => Outcome::Error(404, "there is no such file"),
            Look::Forbidden => Outcome::Error(403, "the server may not read this file"),
            Look::Unavailable => Outcome::Error(503, "the file cannot be read now"),
        }
    }

    /// Has a helper find out what lies behind a name, unless one does so already, or will.
    fn ask_for_file(&mut self, waiter: Waiter) {
        let exchange = waiter.exchange;
        match self.apps.files.wait(waiter) {
            Ok(is_first) => self.counters.helper_jobs.add(u64::from(is_first)),
            Err(()) => {
                self.counters.helper_jobs.add(1);
                self.counters.helper_refusals.add(1);
                self.finish(exchange, Ending::Failed { status: 503, reason: BUSY, outcome: Some(End::Unused) });
            }
        }
        self.look_for_files();
    }

    /// Has helpers look for what is next in line, as far as there may be files open for it.
    fn look_for_files(&mut self) {
        while let Some(Search { key, site, name, gone }) = self.apps.files.next(self.time.nanos()) {
            let (told, postboxes, index) = (key.clone(), self.shared.postboxes.clone(), self.index);
            let work = move || {
                // To close the last descriptor of a file that is removed is to free its disk, which may take its time.
                drop(gone);
                open::look(&site, &name)
            };
            let tell = move |look| postboxes.post(index, Message::Found(told, look));
            if !self.shared.helpers.ask(Kind::Waits, work, tell) {
                self.counters.helper_refusals.add(1);
                for waiter in self.apps.files.give_up(&key) {
                    let busy = Ending::Failed { status: 503, reason: BUSY, outcome: Some(End::Unused) };
                    self.finish(waiter.exchange, busy);
                }
            }
        }
    }

    /// A helper has found out what lies behind a name, or has failed to.
    pub fn found(&mut self, key: &[u8], look: Option<Look>) {
        let now = self.time.nanos();
        let look = look.unwrap_or(Look::Unavailable);
        let has_failed = matches!(look, Look::Unavailable);
        let waiting = self.apps.files.found(key, look, now);
        self.time.files = self.time.files.min(now + FRESH);
        for waiter in waiting {
            self.concern(waiter.exchange);
            self.go_on_with_file(waiter);
        }
        if has_failed {
            // Whoever comes next may find a descriptor, or the root where it was.
            self.apps.files.forget_failure(key);
        }
        self.look_for_files();
    }

    /// Lets go of the files that are not believed any more; the next look is due while there are others.
    #[cold]
    pub fn let_go_of_files(&mut self) {
        let now = self.time.nanos();
        let gone = self.apps.files.forget_stale(now);
        self.time.files = if self.apps.files.is_empty() { u64::MAX } else { now + FRESH };
        if gone.iter().any(|look| matches!(look, Look::File(_))) {
            // To close the last descriptor of a file that is removed is to free its disk, which may take its time.
            self.shared.helpers.ask(Kind::Waits, move || drop(gone), |_| ());
        }
    }

    /// Answers an exchange that has waited, or has it wait for the name that takes the place of its own.
    fn go_on_with_file(&mut self, mut waiter: Waiter) {
        let key = waiter.exchange;
        if self.exchanges.lookup(key).is_none_or(|exchange| exchange.phase != Phase::Asking) {
            return;
        }
        let (look, name) = self.apps.files.find(&waiter.site, &waiter.name, self.time.nanos());
        waiter.name = Box::from(name);
        match look {
            Some(look) => self.answer_with_file(&waiter, look),
            None => self.ask_for_file(waiter),
        }
    }

    /// Answers an exchange whose name that lies behind.
    fn answer_with_file(&mut self, waiter: &Waiter, look: Look) {
        let (key, name) = (waiter.exchange, &*waiter.name);
        if matches!(look, Look::Outside) {
            let reason = "the app has named a file that is not below the root of its route";
            self.warn(key, "a file cannot be sent", reason, &[]);
            return self.finish(key, Ending::Failed { status: 502, reason, outcome: Some(End::Unused) });
        }
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (connection, method, id) = (exchange.stream.connection, exchange.request.method, exchange.request.id);
        let (head, edits) = (exchange.request.head.clone(), exchange.answer.edits.clone());
        let head: &[u8] = head.as_deref().unwrap_or_default();
        let asked = (method, &*waiter.target);
        let outcome = self.outcome(look, head, asked, (edits.as_deref(), waiter.named.as_ref()));
        let keep_alive = self.decide_keep_alive(connection);
        let Some(version) = self.table.client(connection).map(|client| client.http.version) else { return };
        let [accept] = find_lines(head, [b"accept"]);
        let id = self.accepting.id(key, &id).to_vec();
        let whom = Whom { version, keep_alive, head_only: method == Method::Head, accept, id: Some(&id) };
        let ready = self.ready(outcome, waiter.site.cache(name), edits.as_deref(), waiter.named.as_ref(), &whom);
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.phase = Phase::Relaying;
        exchange.request.release(self.access.enabled());
        (exchange.answer.status, exchange.answer.bytes) = (ready.status, ready.bytes);
        let goes_on = ready.rest.is_some();
        exchange.source = ready.rest.map_or(Source::None, Source::File);
        self.become_state(connection, State::WritingResponse);
        self.send_head(connection, ready.piece);
        if goes_on { self.pull(key) } else { self.finish(key, Ending::Answered { surplus: false }) }
    }

    /// Writes what is answered, as far as it fits in one block and is in memory.
    fn ready(
        &mut self,
        outcome: Outcome,
        cache: &str,
        edits: Option<&Edits>,
        named: Option<&Named>,
        whom: &Whom<'_>,
    ) -> Ready {
        let date = &{ self.time.day.date };
        let direct = match outcome {
            Outcome::File(served, plan) => {
                let terms = Terms { cache, edits, named, date, client: (whom.version, whom.keep_alive) };
                return self.ready_file(served, plan, &terms, whom.head_only);
            }
            Outcome::Beyond(size) => {
                let lines = format!("\r\nContent-Range: bytes */{size}");
                return self.ready_error((416, "the file has no such part"), lines.as_bytes(), edits, whom);
            }
            Outcome::Error(status, detail) => return self.ready_error((status, detail), b"", edits, whom),
            Outcome::Redirect(to) => Direct::with(308, &format!("Location: {to}\r\n"), b""),
            Outcome::Methods => Direct::with(204, &format!("Allow: {METHODS}\r\n"), b""),
        };
        let direct = match edits {
            Some(edits) => direct.with_lines(edits.lines()),
            None => direct,
        };
        let piece = self.memory.scratch.write(direct.room(), |out| {
            direct.write(out, date, whom.version, whom.keep_alive, whom.head_only);
        });
        Ready { piece, status: direct.status(), bytes: 0, rest: None }
    }

    /// An error with further lines of its head, each behind the end of the one before it.
    #[cold]
    fn ready_error(
        &mut self,
        (status, detail): (u16, &str),
        lines: &[u8],
        edits: Option<&Edits>,
        whom: &Whom<'_>,
    ) -> Ready {
        let reply = Reply {
            format: reply::negotiate(whom.accept),
            keep_alive: whom.keep_alive,
            http10: whom.version == Version::Http10,
            head_only: whom.head_only,
            retry_after: (status == 503).then_some(1),
            request_id: whom.id,
            lines,
            allow: METHODS,
            ..Reply::new(status, detail, &self.time.day.date)
        };
        let reply = Reply { page: self.apps.page(&reply, edits), ..reply };
        let piece = self.memory.scratch.write(reply::error_room(&reply), |out| reply::error(out, &reply));
        let bytes = body_len(&piece) as u64;
        Ready { piece, status, bytes, rest: None }
    }

    fn ready_file(&mut self, served: Arc<Served>, mut plan: Plan, terms: &Terms<'_>, head_only: bool) -> Ready {
        let inline = match plan.pieces.front() {
            Some(Piece::Bytes(range)) if plan.pieces.len() == 1 && range.end - range.start <= INLINE => range.clone(),
            _ => 0..0,
        };
        let inline = if head_only { 0..0 } else { inline };
        let (mut bytes, count) = (0, (inline.end - inline.start) as usize);
        let file = plan.file(&served);
        let piece = self.memory.scratch.write(Plan::room(terms) + count, |out| {
            plan.head(out, &served, terms);
            // What is not in memory, or fails, is the helpers' to read.
            bytes = out.read(&file.file, inline.start, count).unwrap_or(0) as u64;
        });
        let (status, mut pieces) = (plan.status, std::mem::take(&mut plan.pieces));
        advance(&mut pieces, bytes);
        let goes_on = !head_only && !pieces.is_empty();
        let rest = goes_on.then(|| Box::new(Sending { file: plan.file(&served).clone(), pieces, asked: false }));
        Ready { piece, status, bytes, rest }
    }

    /// Hands more of a file to the stream, until that is full or nothing is left.
    pub fn pull_file(&mut self, key: Key) {
        loop {
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
            let connection = exchange.stream.connection;
            let Source::File(sending) = &mut exchange.source else { return };
            if sending.asked {
                return;
            }
            if let Some(Piece::Bytes(range)) = sending.pieces.front()
                && range.end - range.start >= DIRECT
            {
                match self.send_directly(key) {
                    Some(true) => continue,
                    Some(false) => return,
                    None => {}
                }
            }
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
            let Source::File(sending) = &mut exchange.source else { return };
            let block = match sending.pieces.front_mut() {
                None => return self.finish(key, Ending::Answered { surplus: false }),
                Some(Piece::Text(text)) => {
                    let text = std::mem::take(text);
                    sending.pieces.pop_front();
                    self.memory.pool.heap(&text)
                }
                Some(Piece::Bytes(range)) => {
                    let (at, left) = (range.start, range.end - range.start);
                    let size = self.memory.size(left > SMALL as u64);
                    let pool = &self.memory.pool;
                    let block = pool.take(size, Share::Client).or_else(|| pool.take(Size::Small, Share::Client));
                    let mut block = block.unwrap_or_else(|| pool.heap_with_room(b"", SMALL));
                    match block.read(&sending.file.file, at, usize::try_from(left).unwrap_or(usize::MAX)) {
                        Ok(0) => return self.cut_file(key, SHORTER),
                        Ok(count) => advance(&mut sending.pieces, count as u64),
                        Err(error) if is_cold(&error) => return self.read_cold(key, at, left.min(COLD)),
                        Err(_) => return self.cut_file(key, UNREADABLE),
                    }
                    block
                }
            };
            exchange.answer.bytes += block.len() as u64;
            self.send(connection, block.into());
            if self.unsent(connection) > HIGH_MARK {
                if let Some(exchange) = self.exchanges.lookup_mut(key) {
                    exchange.answer.hold = Hold::Client;
                }
                return self.backend.await_room(connection);
            }
        }
    }

    /// Sends bytes of a file's next piece from where the kernel has them, if that can be done: whether there may be more at once.
    fn send_directly(&mut self, key: Key) -> Option<bool> {
        let connection = self.exchanges.lookup(key)?.stream.connection;
        if self.is_secure(connection) {
            return None;
        }
        let exchange = self.exchanges.lookup_mut(key)?;
        let Source::File(sending) = &mut exchange.source else { return None };
        let Some(Piece::Bytes(range)) = sending.pieces.front() else { return None };
        let handed = self.backend.send_file(connection, &sending.file.file, range.start, range.end - range.start);
        match handed {
            Handed::Unable => return None,
            Handed::Ended => self.cut_file(key, SHORTER),
            Handed::Sent(0) => exchange.answer.hold = Hold::Client,
            Handed::Sent(count) => {
                advance(&mut sending.pieces, count);
                exchange.answer.bytes += count;
                return Some(true);
            }
        }
        Some(false)
    }

    /// Has a helper read what is not in memory.
    fn read_cold(&mut self, key: Key, at: u64, count: u64) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let Source::File(sending) = &mut exchange.source else { return };
        let opened = sending.file.clone();
        let work = move || open::read(&opened.file, at, count as usize);
        let message = move |bytes: Option<std::io::Result<Vec<u8>>>| Message::Read(key, bytes.and_then(Result::ok));
        sending.asked = self.shared.ask_helper((self.index, &self.counters), Kind::Waits, work, message);
        if !sending.asked {
            // Too many wait for them: it is looked at again in a moment, as an answer is for which there is no memory.
            exchange.answer.hold = Hold::Memory;
            self.rearm(key);
        }
    }

    /// A helper has read bytes of a file, or could not.
    pub fn file_read(&mut self, key: Key, bytes: Option<Vec<u8>>) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let connection = exchange.stream.connection;
        let Source::File(sending) = &mut exchange.source else { return };
        sending.asked = false;
        match bytes {
            None => self.cut_file(key, UNREADABLE),
            Some(bytes) if bytes.is_empty() => self.cut_file(key, SHORTER),
            Some(bytes) => {
                advance(&mut sending.pieces, bytes.len() as u64);
                exchange.answer.bytes += bytes.len() as u64;
                let block = self.memory.pool.heap(&bytes);
                self.send(connection, block.into());
                self.pull(key);
            }
        }
    }

    /// A file is not what its head has said: the client must see that it is not whole.
    fn cut_file(&mut self, key: Key, reason: &str) {
        self.count().files_cut.add(1);
        self.fail(key, 500, reason);
    }

    /// Where a worker's answer, whose head `input` begins with, names a file: sends that in its place, and the worker is free. Whether it
    /// does.
    pub fn send_named(&mut self, key: Key, input: &[u8], response: &Response) -> bool {
        let Some((value, file_system)) = Named::read(input, response, &self.heads.fields) else { return false };
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return false };
        let Some(site) = exchange.answer.sendfile.take() else { return false };
        exchange.answer.note = self.access.note(input, response);
        let id = self.accepting.id(key, &exchange.request.id);
        let named = Named::keep(input, &self.heads.fields, exchange.answer.edits.as_deref(), id);
        let behind = (input.len() - response.len) as u64;
        let whole = match response.framing {
            Framing::None => behind == 0,
            framing => framing.length() == Some(behind),
        };
        exchange.answer.reuse = Reuse::after(response);
        exchange.answer.reuse.keeps &= whole;
        let connection = exchange.stream.connection;
        let name = site.name_of_app(value, file_system);
        self.keep_worker(key, false);
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            (exchange.phase, exchange.source) = (Phase::Asking, Source::None);
            (exchange.request.upload, exchange.answer.reuse.keeps) = (Upload::Sent, false);
        }
        self.close_spooled_body(key);
        self.watch(connection);
        let (name, look) = name.map_or_else(|look| (Vec::new(), Some(look)), |name| (name, None));
        let waiter = Waiter { exchange: key, site, name: name.into(), target: b"/"[..].into(), named: Some(named) };
        match look {
            Some(look) => self.answer_with_file(&waiter, look),
            None => self.go_on_with_file(waiter),
        }
        true
    }
}

const BUSY: &str = "too many files are being looked for";
const SHORTER: &str = "the file became shorter while it was sent";
const UNREADABLE: &str = "the file cannot be read any more";

/// Whether bytes are not in memory, or on a file system that does not tell.
fn is_cold(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
        || matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}

/// The path of a target with a slash at its end, as a Location has it: never one that begins with two, which would lead to another host.
fn with_slash(target: &[u8]) -> String {
    let query = memchr::memchr(b'?', target).map_or(&b""[..], |at| &target[at..]);
    let mut to = String::new();
    for byte in resolved(target).iter() {
        match byte {
            b'/' | b'-' | b'.' | b'_' | b'~' => to.push(char::from(*byte)),
            byte if byte.is_ascii_alphanumeric() => to.push(char::from(*byte)),
            byte => to.push_str(&format!("%{byte:02X}")),
        }
    }
    let query: String = query.iter().filter(|byte| byte.is_ascii_graphic()).map(|byte| char::from(*byte)).collect();
    format!("{to}/{query}")
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn a_redirect_stays_on_its_host() {
        for (target, expected) in [
            ("/a", "/a/"),
            ("/a?b=c&d", "/a/?b=c&d"),
            ("//evil.example", "/evil.example/"),
            ("/%2f/evil.example", "/evil.example/"),
            ("/a%0d%0aSet-Cookie:x", "/a%0D%0ASet-Cookie%3Ax/"),
            ("/\\evil.example", "/%5Cevil.example/"),
            ("/caf%C3%A9", "/caf%C3%A9/"),
        ] {
            assert_eq!(with_slash(target.as_bytes()), expected, "{target}");
        }
    }
}
