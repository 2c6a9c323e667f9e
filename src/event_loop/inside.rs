//! Documents about the inside of the server: who gets them, and their way from the desk to the client. And long texts of the
//! configuration's, which take the same way.
//!
//! `/server` and `/status` are answered by the loop at once. The others are made by the supervisor: the request becomes an exchange
//! without a worker, which waits until its document comes by mail, and then is fed by it as by any source of our own.

use crate::backends::{Backend, HIGH_MARK, Piece, Sock};
use crate::buffers::block::{Block, Writer};
use crate::buffers::slots::Key;
use crate::connection::{Role, State, Stream};
use crate::exchange::{Ending, Exchange, Hold, Phase, Source, Upload};
use crate::http::id::id_text;
use crate::http::{Method, head, is_loopback_host, reply};
use crate::mailbox::desk::{Document, Question, Reply};
use crate::metrics::ConnectionState;
use crate::metrics::series::OWN;

use super::{Leads, Loop, LoopRoute, Route};

/// Bytes of our own that are handed to a stream at a time.
const OWN_PIECE: usize = 64 * 1024;

/// Whether it is worth a look if a path with its query, without its prefix, names one of the documents.
#[inline]
pub(super) fn may_be_inside(name: &[u8]) -> bool {
    name.len() <= b"/health_check?verbose=true".len()
        && matches!(name, [b'/', b's', b'e' | b't', ..] | [b'/', b'm' | b'r' | b'h', b'e', ..] | [b'/', b'l', b'i', ..])
}

impl<B: Backend> Loop<B> {
    /// Which document of the server's own a request asks for, and gets: on an admin listener whoever can reach it, elsewhere who is on this
    /// machine. To others the path belongs to the app. `path` is without its prefix and with its
    /// query.
    pub(super) fn inside(&mut self, sock: Sock, input: &[u8], request: &head::Request, path: &[u8]) -> Option<Route> {
        let (name, query) = path.split_at(path.iter().position(|byte| *byte == b'?').unwrap_or(path.len()));
        let verbose = || is_verbose(query.strip_prefix(b"?").unwrap_or_default());
        let inside = match name {
            b"/server" if query.is_empty() && self.apps.has_failed() => {
                return Some(Route::Refuse(503, "the app has failed"));
            }
            b"/server" if query.is_empty() => return Some(Route::Text(b"ok")),
            b"/status" if query.is_empty() => Route::Status,
            b"/metrics" if self.apps.settings.telling.metrics.prometheus => {
                Route::Desk(Document::Metrics { open: wants_open_metrics(request.accept.of(input)) })
            }
            b"/livez" => Route::Desk(Document::Live { verbose: verbose() }),
            b"/readyz" => Route::Desk(Document::Ready { verbose: verbose() }),
            b"/health_check" => Route::Desk(Document::Health { verbose: verbose() }),
            _ => return None,
        };
        let attended = matches!(inside, Route::Status) || self.shared.desk.is_attended();
        let admin = self.table.client(sock).is_some_and(|client| client.admin);
        (attended && (admin || self.is_local(sock, input, request))).then_some(inside)
    }

    /// Whether the inside may be told: the peer is on this machine, speaks for nobody else, in the request or in a PROXY protocol
    /// header before it, and means this machine by the name that it asks for. Who comes over a Unix socket may be a proxy that says nothing of itself.
    pub(super) fn is_local(&self, sock: Sock, input: &[u8], request: &head::Request) -> bool {
        let Role::Client(client) = self.table.role(sock) else { return false };
        let peer = client.arrival.peer.address();
        !request.forwarded
            && !client.arrival.proxied
            && peer.is_some_and(|address| address.is_loopback())
            && is_loopback_host(request.authority.of(input))
    }

    /// Keeps what is behind a request, before the request becomes an exchange: its answer may be over at once, and then the next one is looked for.
    pub fn keep_rest(&mut self, sock: Sock, input: &Block, request: &head::Request) {
        self.keep_input(sock, input.slice(request.len..input.len()));
    }

    /// Asks the desk. `input` begins with the request's head.
    pub fn ask_desk(&mut self, stream: Stream, input: &Block, request: &head::Request, document: Document) {
        // No app has a part in it, but each exchange is some app's.
        let Some(app) = self.apps.any().cloned() else {
            let (refusal, head) =
                ((503, "no app is configured"), &input[request.method_span.start as usize..request.len]);
            return self.refuse_head(stream.connection, refusal, request.accept.of(input), head);
        };
        let kept = self.memory.pool.heap(&input[..request.len]);
        let mut exchange = Exchange::new(stream, app, OWN, request, kept, id_text(self.heads.next_id), &self.time);
        // It waits for nobody of the dispatch, and nothing but its document or its client's end moves it.
        (exchange.phase, exchange.request.upload) = (Phase::Asking, Upload::Sent);
        self.keep_rest(stream.connection, input, request);
        self.become_state(stream.connection, State::Processing);
        let Some(exchange) = self.begin_exchange(stream, exchange, input) else { return };
        self.watch(stream.connection);
        self.shared.desk.ask(Question { loop_index: self.index, exchange, document });
    }

    /// Answers with a long text of our own, which is handed out as the client takes it. `input` begins with the request's head.
    pub fn respond(&mut self, route: usize, stream: Stream, input: &Block, request: &head::Request) {
        self.keep_rest(stream.connection, input, request);
        let keep_alive = self.decide_keep_alive(stream.connection);
        let LoopRoute { leads: Leads::Long(app, direct), series, .. } = self.apps.routes.get(route) else { return };
        let Some(client) = self.table.client(stream.connection) else { return };
        let version = client.http.version;
        let kept = self.memory.pool.heap(&input[..request.len]);
        let mut exchange =
            Exchange::new(stream, app.clone(), *series, request, kept, id_text(self.heads.next_id), &self.time);
        (exchange.phase, exchange.request.upload) = (Phase::Relaying, Upload::Sent);
        (exchange.answer.status, exchange.source) = (direct.status(), Source::Own(direct.body().clone(), 0));
        let (date, direct) = (&self.time.day.date, direct.with_lines(&self.heads.quota));
        let piece = self.memory.scratch.write(direct.room(), |out| direct.write(out, date, version, keep_alive, true));
        let Some(key) = self.begin_exchange(stream, exchange, input) else { return };
        self.become_state(stream.connection, State::WritingResponse);
        self.send_head(stream.connection, piece);
        self.watch(stream.connection);
        self.pull(key);
    }

    /// Hands bytes of our own to the stream until it is full or they are all.
    pub fn pull_own(&mut self, key: Key) {
        loop {
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
            let connection = exchange.stream.connection;
            let Source::Own(bytes, at) = &mut exchange.source else { return };
            let end = (*at + OWN_PIECE).min(bytes.len());
            let piece = Piece::Shared(bytes.clone(), *at as u32..end as u32);
            exchange.answer.bytes += (end - *at) as u64;
            *at = end;
            let whole = end == bytes.len();
            self.send(connection, piece);
            if whole {
                return self.finish(key, Ending::Answered { surplus: false });
            }
            if self.unsent(connection) > HIGH_MARK {
                if let Some(exchange) = self.exchanges.lookup_mut(key) {
                    exchange.answer.hold = Hold::Client;
                }
                return self.backend.await_room(connection);
            }
        }
    }

    /// A document has come, for an exchange that may be gone.
    pub fn document_came(&mut self, reply: Reply) {
        let key = reply.exchange;
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if exchange.phase != Phase::Asking {
            return;
        }
        let (connection, head_only) = (exchange.stream.connection, exchange.request.method == Method::Head);
        let keep_alive = self.decide_keep_alive(connection);
        let Some(client) = self.table.client(connection) else { return };
        let version = client.http.version;
        let document = reply::Document {
            status: reply.status,
            content_type: reply.content_type,
            lines: &reply.lines,
            length: reply.body.len(),
        };
        let date = &self.time.day.date;
        let write = |out: &mut Writer<'_>| document.head(out, date, version, keep_alive);
        let piece = self.memory.scratch.write(document.room(), write);
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        (exchange.phase, exchange.answer.status) = (Phase::Relaying, reply.status);
        exchange.source = Source::Own(reply.body, 0);
        self.become_state(connection, ConnectionState::WritingResponse);
        self.send_head(connection, piece);
        match head_only {
            true => self.finish(key, Ending::Answered { surplus: false }),
            false => self.pull(key),
        }
    }
}

/// Whether a query has the word `verbose`.
fn is_verbose(query: &[u8]) -> bool {
    query
        .split(|byte| *byte == b'&')
        .any(|word| matches!(word, b"verbose" | b"verbose=" | b"verbose=1" | b"verbose=true"))
}

/// Whether an Accept field prefers OpenMetrics to the classic text. Prometheus sends both with weights, and a browser neither.
fn wants_open_metrics(accept: &[u8]) -> bool {
    reply::prefers(std::iter::once(accept), "application/openmetrics-text", "text/plain")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_the_one_that_the_scraper_prefers() {
        let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
            text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, open) in [
            (prometheus, true),
            ("", false),
            ("*/*", false),
            ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;version=1.0.0;q=0.2", false),
            ("application/openmetrics-text;q=0", false),
            ("Application/OpenMetrics-Text", true),
            ("text/html,application/xhtml+xml,*/*;q=0.8", false),
        ] {
            assert_eq!(wants_open_metrics(accept.as_bytes()), open, "{accept}");
        }
    }

    #[test]
    fn verbose_is_a_word_of_the_query() {
        for (query, verbose) in
            [("verbose", true), ("a=1&verbose", true), ("verbose=1", true), ("verbosely", false), ("", false)]
        {
            assert_eq!(is_verbose(query.as_bytes()), verbose, "{query}");
        }
    }
}
