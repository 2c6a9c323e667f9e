//! Another app is asked about a request before it passes (`forward_auth`).
//!
//! The question is an exchange of its own with that app's dispatch: it waits in its line, is retried, and has its deadlines. Whom it answers
//! is the client's connection, and so ends with it; but nothing of it is said to the client ([`Stream::is_question`]) until it is known
//! what the answer means. The client's request stays unread at the front of its input meanwhile.
//!
//! | the answer | the question | the request |
//! |---|---|---|
//! | 2xx | ends without a trace | is read again, with the fields that go to its own app |
//! | 401, 403, 3xx | becomes the exchange of the request, of which this is the answer | is taken from the input |
//! | anything else, or none in time | likewise, and has failed: 503 | likewise |
//!
//! It goes to the app itself and not by any route, so that it can never ask about itself.

use std::collections::HashMap;
use std::sync::Arc;

use crate::access::{Forward, TOLD};
use crate::backends::{Backend, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::config::route::is_same_to_apps;
use crate::connection::{Role, State, Stream, Table};
use crate::dispatch::Outcome;
use crate::exchange::{Ending, Exchange, Phase, Source};
use crate::http::fields::{Field, Fields, Kind};
use crate::http::head::{self, Request, Response, Reuse};
use crate::http::id::id_text;
use crate::http::reader::{Reader, RequestBody};
use crate::http::rewrite::{self, Forward as Told};
use crate::http::route::Edits;
use crate::http::{Framing, Method};
use crate::metrics::series::RetryReason;

use super::{Loop, Paid, Pass};

/// Bytes of an answer that are waited for, so that the connection can be kept, before the request goes on.
const WHOLE: usize = 64 * 1024;

/// What an app has said of a request.
#[derive(Debug)]
pub(crate) struct Word {
    /// Who, and to which question: as this configuration has it, and no later one that says the same.
    asked: Arc<Forward>,
    /// The lines that go to the request's own app.
    lines: Vec<u8>,
}

impl Word {
    /// Whether it is about that question.
    pub fn is_of(&self, forward: &Arc<Forward>) -> bool {
        Arc::ptr_eq(&self.asked, forward)
    }

    /// Adds what is said of who the client is to what is known already.
    pub fn tell(&self, identity: &mut Vec<u8>) {
        let known = !identity.is_empty();
        let told = |line: &&[u8]| TOLD.iter().any(|name| is_named(line, name));
        let lines = || self.lines.split_inclusive(|byte| *byte == b'\n');
        lines().filter(|line| !known || !told(line)).for_each(|line| identity.extend_from_slice(line));
        if !known && !identity.is_empty() && !lines().any(|line| is_named(line, TOLD[1])) {
            identity.extend_from_slice(format!("{}: forward\r\n", TOLD[1]).as_bytes());
        }
    }
}

/// What was said of requests that wait, or is being asked about them, by their connections. Beside these, which nearly never have any.
#[derive(Debug, Default)]
pub(crate) struct Words {
    all: HashMap<Sock, Word>,
    /// When there are so many, those of connections that are gone are forgotten.
    sweep: usize,
}

impl Words {
    /// Takes what there is of a connection's request.
    #[inline]
    pub fn take(&mut self, sock: Sock) -> Option<Word> {
        if self.all.is_empty() { None } else { self.all.remove(&sock) }
    }

    /// Keeps it.
    pub fn put(&mut self, sock: Sock, word: Word, table: &Table) {
        if self.all.len() >= self.sweep {
            self.all.retain(|sock, _| matches!(table.role(*sock), Role::Client(_)));
            self.sweep = 64.max(2 * self.all.len());
        }
        self.all.insert(sock, word);
    }
}

/// Whether a line of a head has that name.
pub(super) fn is_named(line: &[u8], name: &str) -> bool {
    line.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()))
        && line.get(name.len()) == Some(&b':')
}

impl Stream {
    /// Whether what is answered is no request of the client, but something that the server asks because of it.
    #[inline]
    pub fn is_own(self) -> bool {
        self.id != 0
    }

    /// Whether that is what another app is asked about a request.
    #[inline]
    pub fn is_question(self) -> bool {
        self.id == QUESTION
    }
}

impl<B: Backend> Loop<B> {
    /// As whose stream an exchange of the server's own ends, how, and whether it is an event of a hub.
    #[cold]
    pub fn own_ends<'a>(&mut self, key: Key, stream: Stream, ending: Ending<'a>) -> (Stream, Ending<'a>, bool) {
        if stream.is_question() {
            return (stream, self.unanswered(key, ending), false);
        }
        let event = self.event_unanswered(key, &ending);
        (self.exchanges.lookup(key).map_or(stream, |exchange| exchange.stream), ending, event)
    }

    /// Asks about the request that a client's input begins with.
    pub fn inquire(&mut self, sock: Sock) {
        let Some(input) = self.table.client(sock).and_then(|client| client.input.clone()) else { return };
        let Some((guard, series)) = self.heads.route.and_then(|route| self.apps.routes.guard(route)) else { return };
        let Some((app, forward)) = &guard.forward else { return };
        let app = self.apps.get(*app).cloned();
        let Ok(Some(request)) = head::request(&input, &self.heads.limits, &mut self.heads.fields) else { return };
        let routes = &self.apps.routes;
        let question = question(&input, &request, &self.heads.fields, &forward.path, |name| routes.is_told(name));
        let lines = [
            b"X-Forwarded-Method: ",
            request.method_span.of(&input),
            b"\r\nX-Forwarded-Uri: ",
            request.target.path.of(&input),
            b"\r\n",
        ];
        let lines = lines.concat();
        let asked_about = &input[request.method_span.start as usize..request.len];
        let read = head::request(&question, &self.heads.limits, &mut self.heads.fields);
        let (Some(app), Ok(Some(request))) = (app, read) else {
            // A head that is at its limit may be beyond it with another path.
            return self.refuse_head(sock, (503, NO_WORD), b"", asked_about);
        };
        self.find_origin(sock, &question);
        let Some(client) = self.table.client(sock) else { return };
        let listener = &self.accepting.listeners[client.listener as usize];
        let certificate = self.secure.as_ref().map_or("", |secure| secure.certificate(sock));
        let own = id_text(self.heads.next_id);
        let id = self.heads.id(&question, &own);
        let start = self.time.day.start(self.time.nanos());
        let told = Told {
            keep_alive: app.settings.sharing.keepalive,
            edits: Some(&Edits::default()),
            identity: &lines,
            ..listener.forward(&client.arrival, (&self.heads.origin, certificate), id, start)
        };
        let room = rewrite::request_room(&request, &self.heads.fields, &told);
        let head = self.memory.scratch.write(room, |out| {
            rewrite::request(out, &question, &request, &self.heads.fields, &told);
        });
        self.heads.words.put(sock, Word { asked: forward.clone(), lines: Vec::new() }, &self.table);
        let stream = Stream { connection: sock, id: QUESTION };
        let turn = self.turn(&app, sock, &question);
        let mut exchange = Exchange::new(stream, app, series, &request, head, own, &self.time);
        exchange.attempt.turn = turn;
        let edits = self.heads.route.and_then(|route| self.apps.routes.response(route));
        exchange.answer.edits = self.heads.edits(&edits);
        self.become_state(sock, State::Processing);
        let Some(key) = self.begin_exchange(stream, exchange, &question) else { return };
        self.memory.hold(key);
        self.acquire(key, false);
    }

    /// The head of an answer has come to something that the server itself has asked; `input` begins with it.
    #[cold]
    #[inline(never)]
    pub fn own_answered(&mut self, key: Key, input: Block, response: &Response) {
        match self.exchanges.lookup(key).is_some_and(|exchange| exchange.stream.is_event()) {
            true => self.event_answered(key, input, response),
            false => self.begin_word(key, input, response),
        }
    }

    fn begin_word(&mut self, key: Key, input: Block, response: &Response) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let may_be_declined = exchange.may_be_declined();
        match response.status {
            // It says that it has not looked at it: another worker may.
            _ if (response.busy || response.draining) && may_be_declined => self.retry(key, RetryReason::Declined),
            200..=299 => self.pass_by_word(key, input, response),
            401 | 403 | 300..=303 | 305..=399 => {
                self.count().auth_refused.add(1);
                self.answer_for_request(key);
                let is_head =
                    self.exchanges.lookup(key).is_some_and(|exchange| exchange.request.method == Method::Head);
                let announces_body = !matches!(response.framing, Framing::None | Framing::Length(0));
                // What is said of a HEAD request has no body.
                let bare = Response { framing: Framing::None, announces_body, ..*response };
                self.begin_answer(key, input, if is_head { &bare } else { response });
            }
            status => {
                self.warn(key, "an app that is asked about requests has no answer", &status.to_string(), &[]);
                self.release_asked(key, input, response);
                self.finish(key, Ending::Failed { status: 503, reason: NO_WORD, outcome: Some(Outcome::Unused) });
            }
        }
    }

    /// The request passes, once the whole answer has come, or as much of it as is waited for.
    fn pass_by_word(&mut self, key: Key, input: Block, response: &Response) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (sock, link) = (exchange.stream.connection, exchange.link());
        let is_to_come = is_whole(&input, response) == Some(false);
        if is_to_come && response.framing != Framing::UntilClose && input.len() < WHOLE {
            self.heard(key);
            if let Some(link) = self.table.link(link) {
                link.input = Some(input.settle(&self.memory.pool));
            }
            return self.backend.recv(link, crate::backends::Size::Small);
        }
        let Some(client) = self.table.client(sock) else { return };
        if let Some(word) = self.heads.words.all.get_mut(&sock) {
            for name in &word.asked.copy {
                for field in self.heads.fields.iter() {
                    if field.name.of(&input).eq_ignore_ascii_case(name.as_bytes()) {
                        word.lines
                            .extend_from_slice(&[name.as_bytes(), b": ", field.value.of(&input), b"\r\n"].concat());
                    }
                }
            }
        }
        client.exchange = Key::NONE;
        self.release_asked(key, input, response);
        self.exchanges.discard(key);
        self.become_state(sock, State::ReadingRequest);
        self.let_pass(sock, Pass::Paid(Paid::Some));
    }

    /// The worker that was asked has answered: it is free, or is left alone with the rest of its answer.
    pub fn release_asked(&mut self, key: Key, mut input: Block, response: &Response) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.answer.status = response.status;
        exchange.answer.reuse = Reuse::after(response);
        input.advance(response.len);
        let mut reader = Reader::new(response.framing);
        while let Ok(Some(_)) = reader.take(&mut input) {}
        if reader.is_done() {
            self.keep_worker(key, !input.is_empty());
        } else {
            (exchange.phase, exchange.answer.reader) = (Phase::Relaying, reader);
            self.leave_worker(key, false);
        }
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            (exchange.phase, exchange.source) = (Phase::Asking, Source::None);
            exchange.answer.status = 0;
        }
    }

    /// A question ends without an answer that means anything: what is to be said instead.
    pub fn unanswered<'a>(&mut self, key: Key, ending: Ending<'a>) -> Ending<'a> {
        if let Ending::Failed { reason, .. } = ending
            && reason != NO_WORD
        {
            self.warn(key, "an app that is asked about requests has no answer", reason, &[]);
        }
        self.answer_for_request(key);
        match ending {
            Ending::Failed { outcome, .. } => {
                self.count().auth_unanswered.add(1);
                Ending::Failed { status: 503, reason: NO_WORD, outcome }
            }
            other => other,
        }
    }

    /// Who is asked about a client's request has taken too long.
    pub fn heard_nothing(&mut self, sock: Sock) {
        let Some(key) = self.table.client(sock).map(|client| client.exchange) else { return };
        self.count().timeouts.add(1);
        if self.exchanges.lookup(key).is_none() {
            return self.refuse(sock, 503, NO_WORD);
        }
        let reason = "it took longer than `forward_auth.timeout`";
        self.finish(key, Ending::Failed { status: 503, reason, outcome: None });
    }

    /// A question becomes the exchange of the request that it is about, which its client's input begins with.
    fn answer_for_request(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.stream.id = 0;
        let sock = exchange.stream.connection;
        self.heads.words.take(sock);
        let Some(client) = self.table.client(sock) else { return };
        (client.entrance.pass, client.entrance.stalled) = (Pass::Fresh, false);
        let Some(mut input) = client.input.take() else { return };
        let mut fields = Fields::default();
        let Ok(Some(request)) = head::request(&input, &self.heads.limits, &mut fields) else {
            // The limits of heads have changed meanwhile: where the next request begins is not known.
            client.http.keep_alive = false;
            return;
        };
        let head = &input[request.method_span.start as usize..request.len];
        exchange.request.method = request.method;
        (exchange.request.head, exchange.request.shown) = (Some(self.memory.pool.heap(head)), None);
        input.advance(request.len);
        client.body = RequestBody::behind(&fields, request.framing);
        if let Some(body) = &mut client.body {
            while let Ok(true) = body.skip(&mut input) {}
            if body.reader.is_done() {
                client.body = None;
            }
        }
        client.input = (!input.is_empty()).then_some(input);
        self.count().requests.add(1);
    }
}

/// Whether all of an answer is here; `input` begins with its head. `None`: its body is broken, and never will be.
pub(super) fn is_whole(input: &Block, response: &Response) -> Option<bool> {
    let mut body = input.clone();
    body.advance(response.len);
    let mut reader = Reader::new(response.framing);
    loop {
        match reader.take(&mut body) {
            Ok(Some(_)) => {}
            Ok(None) => return Some(reader.is_done()),
            Err(_) => return None,
        }
    }
}

/// What is asked about a request: its fields, but for those that are about its body, say under which conditions it is to be answered, or are
/// the server's and any asked app's own to say: `is_told`.
fn question(input: &[u8], request: &Request, fields: &Fields, path: &str, is_told: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let authority = request.authority.of(input);
    let mut text =
        [b"GET ", path.as_bytes(), b" ", request.version.name().as_bytes(), b"\r\nHost: ", authority].concat();
    text.extend_from_slice(b"\r\n");
    for field in fields.iter() {
        let name = field.name.of(input);
        if !is_told(name) && passes_to_another(field, name) {
            text.extend_from_slice(&[name, b": ", field.value.of(input), b"\r\n"].concat());
        }
    }
    text.extend_from_slice(b"\r\n");
    text
}

/// Whether a field of a request says something to another app that is asked about it: those about its body and about the conditions of its answer
/// do not, nor what only this server may say.
pub(super) fn passes_to_another(field: &Field, name: &[u8]) -> bool {
    const OTHER: [&str; 15] = [
        "host",
        "connection",
        "upgrade",
        "content-length",
        "transfer-encoding",
        "trailer",
        "expect",
        "range",
        "if-match",
        "if-none-match",
        "if-modified-since",
        "if-unmodified-since",
        "if-range",
        "x-forwarded-method",
        "x-forwarded-uri",
    ];
    let mut own = TOLD.iter().copied().chain(OTHER);
    field.kind != Kind::Nominated && !own.any(|own| is_same_to_apps(name, own.as_bytes()))
}

/// The number of the stream on which another app is asked about a request.
const QUESTION: u32 = 1;

const NO_WORD: &str = "it is not known whether this request may pass: try again in a moment";
