//! From bytes to requests: reads heads, answers what the loop answers itself, refuses what is malformed, and hands the rest to
//! an exchange.
//!
//! Pipelined requests that the loop answers itself are all read in one go, and their answers leave in one gathered write. A
//! refusal closes the connection, and nothing behind it is ever read as a request.

use std::borrow::Cow;
use std::rc::Rc;

use crate::apps::{App, Taken, To};
use crate::backends::{Backend, How, Sock};
use crate::buffers::block::{Block, SMALL, Writer};
use crate::http::head::{self, Request};
use crate::http::http1::Http1;
use crate::http::reader::RequestBody;
use crate::http::reply::{self, Direct, Reply};
use crate::http::{Framing, Method, body_len};
use crate::mailbox::desk::Document;
use crate::metrics::series::OWN;

use super::{State, Stream};
use crate::event_loop::{Inside, Loop, may_be_inside};

/// What became of a look at the input.
enum Step {
    /// A request was answered: look for the next.
    Again,
    /// More bytes are needed.
    Wait,
    /// The request has gone to an exchange, or the connection is closing.
    Stop,
}

/// What is said where no route takes a request. The connection goes on, for its next request may find one.
const NOBODY: &[u8] = b"no route takes this request\n";

/// Who answers a request.
enum Route {
    Text(&'static [u8]),
    /// The loop, in the place of an app.
    Respond(Rc<App>, Taken),
    /// The loop, with what the route says.
    Fixed(Taken),
    Nobody,
    Status,
    Desk(Document),
    Refuse(u16, &'static str),
    App(Rc<App>, Taken),
}

impl<B: Backend> Loop<B> {
    /// Reads as many requests from the client's input as can be answered now.
    pub fn read_requests(&mut self, sock: Sock) {
        let mut answered = false;
        loop {
            let Some(client) = self.table.client(sock) else { return };
            if client.state != State::ReadingRequest || client.stalled {
                return;
            }
            let Some(input) = client.input.take() else { break };
            if answered && self.stalls(sock) {
                self.keep_input(sock, input);
                break;
            }
            match self.read_request(sock, input) {
                Step::Again => answered = true,
                Step::Wait => break,
                Step::Stop => return,
            }
        }
        if answered {
            let Some(client) = self.table.client(sock) else { return };
            let timeouts = &self.apps.settings.timeouts;
            let timeout = match (&client.body, &client.input) {
                (Some(_), _) => timeouts.body,
                (None, Some(_)) => timeouts.header,
                (None, None) => self.patience(timeouts.idle),
            };
            self.arm(sock, timeout);
        }
        // Also with nothing more to be read yet: a client that sends one request a packet and reads no answer must wait, too.
        if self.stalls(sock) {
            return;
        }
        let Some(client) = self.table.client(sock) else { return };
        // A part of a head whose client has finished sending never becomes a request.
        if client.ended || (client.input.is_none() && self.sends_away()) {
            return self.close_client(sock, How::Flushed);
        }
        self.backend.recv(sock, crate::backends::Size::Small);
    }

    fn read_request(&mut self, sock: Sock, input: Block) -> Step {
        let Some(client) = self.table.client(sock) else { return Step::Stop };
        if client.body.is_some() {
            return self.skip_body(sock, input);
        }
        if !client.search.is_fresh() && !client.search.scan(&input) && input.len() < self.heads.limits.head {
            client.input = Some(input);
            return Step::Wait;
        }
        match head::request(&input, &self.heads.limits, &mut self.heads.fields) {
            Ok(Some(request)) => self.take_request(sock, input, &request),
            Ok(None) => self.wait_for_head(sock, input),
            Err(refusal) => {
                self.refuse(sock, refusal.status, &refusal.to_string());
                Step::Stop
            }
        }
    }

    /// Keeps a part of a head. Its deadline starts with its first byte and is not moved by further ones.
    fn wait_for_head(&mut self, sock: Sock, input: Block) -> Step {
        if !self.memory.has_reserve() {
            self.count().memory_refused.add(1);
            self.refuse(sock, 503, "the server has no memory left for requests that come in parts");
            return Step::Stop;
        }
        let input = input.settle(&self.memory.pool);
        let Some(client) = self.table.client(sock) else { return Step::Stop };
        if client.search.is_fresh() {
            self.time.connections.arm_after(sock.index, self.apps.settings.timeouts.header);
        }
        client.search.scan(&input);
        client.input = Some(input);
        Step::Wait
    }

    fn take_request(&mut self, sock: Sock, mut input: Block, request: &Request) -> Step {
        self.count().requests.add(1);
        self.find_origin(sock, &input);
        if let Some(client) = self.table.client(sock) {
            client.search = Default::default();
            client.requested = true;
            client.http = Http1::new(request);
            if request.framing != Framing::None {
                client.body = RequestBody::new(request.framing);
            }
        }
        match self.route(sock, &input, request) {
            Route::App(app, route) => {
                self.forward(app, route, Stream { connection: sock, id: 0 }, input, request);
                Step::Stop
            }
            Route::Refuse(status, reason) => {
                let head = &input[request.method_span.start as usize..request.len];
                self.refuse_head(sock, (status, reason), request.accept.of(&input), head);
                Step::Stop
            }
            Route::Respond(app, route) if responds_at_length(&app, &route, request) => {
                self.respond(app, &route, Stream { connection: sock, id: 0 }, &input, request);
                input.advance(request.len);
                self.keep_input(sock, input);
                Step::Stop
            }
            Route::Desk(document) => {
                self.ask_desk(Stream { connection: sock, id: 0 }, &input, request, document);
                input.advance(request.len);
                self.keep_input(sock, input);
                Step::Stop
            }
            route => {
                self.answer_here(sock, &input, request, &route);
                input.advance(request.len);
                self.after_answer(sock, input, request)
            }
        }
    }

    fn route(&mut self, sock: Sock, input: &[u8], request: &Request) -> Route {
        let path = request.path.of(input);
        let admin = !self.apps.settings.admin.is_empty() && self.is_admin(sock);
        let name = if admin { Some(path) } else { self.apps.settings.internal.name(path) };
        if let Some(name) = name.filter(|name| may_be_inside(name)) {
            match self.inside(sock, input, request, name) {
                Some(Inside::Server) if self.apps.has_failed() => return Route::Refuse(503, "the app has failed"),
                Some(Inside::Server) => return Route::Text(b"ok"),
                Some(Inside::Status) => return Route::Status,
                Some(Inside::Desk(document)) => return Route::Desk(document),
                None => {}
            }
        }
        if admin {
            return Route::Refuse(404, "this address tells about the server and has no app");
        }
        if request.method == Method::Connect {
            return Route::Refuse(405, "CONNECT is for forward proxies; this server is an origin");
        }
        let (authority, method) = (request.authority.of(input), request.method_span.of(input));
        let Some(taken) = self.apps.route(authority, path, method) else { return Route::Nobody };
        let To::App(id, _) = taken.way().to else { return Route::Fixed(taken) };
        let Some(app) = self.apps.get(id).cloned() else { return Route::Nobody };
        if app.direct.is_some() {
            return Route::Respond(app, taken);
        }
        match request.max_forwards {
            Some(0) if request.method == Method::Options => Route::Text(b""),
            Some(0) if request.method == Method::Trace => Route::Refuse(405, "TRACE ends here and is not answered"),
            _ => Route::App(app, taken),
        }
    }

    fn keeps_alive(&self, request: &Request) -> bool {
        // A client that waits for "100 Continue" may or may not send its body after a final answer (RFC 9110 §10.1.1).
        request.keep_alive && !self.accepting.draining && !request.expect_continue
    }

    fn answer_here(&mut self, sock: Sock, input: &[u8], request: &Request, route: &Route) {
        let keep_alive = self.keeps_alive(request);
        let version = request.version;
        let head_only = request.method == Method::Head;
        let (authority, target) = (request.authority.of(input), request.path.of(input));
        let made = |content_type, body| Cow::Owned(Direct::new(content_type, body));
        let direct = match route {
            Route::Status => made("application/json", (self.shared.status)().as_bytes()),
            Route::Text(text) => made("text/plain; charset=utf-8", text),
            Route::Nobody => Cow::Owned(Direct::with(404, "Content-Type: text/plain\r\n", NOBODY)),
            Route::Respond(app, taken) => taken.answer(Some(app), authority, target),
            Route::Fixed(taken) => taken.answer(None, authority, target),
            Route::Refuse(..) | Route::Desk(_) | Route::App(..) => return,
        };
        let series = match route {
            Route::Respond(_, taken) | Route::Fixed(taken) => taken.way().series,
            _ => OWN,
        };
        let status = direct.status();
        self.count().of_series(series).answered_here(status);
        let date = &self.time.day.date;
        let write = |out: &mut Writer<'_>| direct.write(out, date, version, keep_alive, head_only);
        let piece = self.memory.scratch.write(direct.room(), write);
        let bytes = if head_only { 0 } else { direct.body().len() as u64 };
        self.become_state(sock, State::WritingResponse);
        self.backend.send(sock, piece.into());
        self.log_answer(sock, &input[request.method_span.start as usize..request.len], status, bytes);
    }

    /// After an answer of the loop itself: the next request, once the body of this one is out of the way.
    fn after_answer(&mut self, sock: Sock, rest: Block, request: &Request) -> Step {
        if !self.keeps_alive(request) {
            // A client that did not ask for the end may have begun its next request: its bytes must not reset the answer.
            if rest.is_empty() && request.framing == Framing::None && !request.keep_alive {
                self.close_answered(sock);
            } else {
                self.close_client(sock, How::Flushed);
            }
            return Step::Stop;
        }
        self.become_state(sock, State::ReadingRequest);
        if !rest.is_empty()
            && let Some(client) = self.table.client(sock)
        {
            client.input = Some(rest);
        }
        Step::Again
    }

    /// Reads and forgets the body behind an answer that has left. One that is malformed or too long to be read for nothing ends the
    /// connection.
    fn skip_body(&mut self, sock: Sock, mut input: Block) -> Step {
        let Some(client) = self.table.client(sock) else { return Step::Stop };
        let Some(body) = &mut client.body else { return Step::Again };
        loop {
            match body.skip(&mut input) {
                Ok(true) => {}
                Ok(false) if body.reader.is_done() => {
                    client.body = None;
                    self.keep_input(sock, input);
                    return Step::Again;
                }
                Ok(false) => return Step::Wait,
                Err(_) => {
                    self.count().errors.add(1);
                    self.close_client(sock, How::Flushed);
                    return Step::Stop;
                }
            }
        }
    }

    /// Answers with an error and closes, lingering, so that a client that is still sending reads the refusal.
    pub fn refuse(&mut self, sock: Sock, status: u16, detail: &str) {
        self.refuse_head(sock, (status, detail), b"", b"");
    }

    /// [`Loop::refuse`] of a request that was understood: it stands in the access log with its head.
    pub fn refuse_head(&mut self, sock: Sock, (status, detail): (u16, &str), accept: &[u8], head: &[u8]) {
        self.count().errors.add(1);
        self.count().of_series(OWN).ended(status);
        let reply = Reply { format: reply::negotiate(accept), ..Reply::new(status, detail, &self.time.day.date) };
        let piece = self.memory.scratch.write(reply::error_room(&reply), |out| reply::error(out, &reply));
        let bytes = body_len(&piece) as u64;
        if let Some(client) = self.table.client(sock)
            && client.state == State::ReadingRequest
        {
            self.become_state(sock, State::WritingResponse);
        }
        self.backend.send(sock, piece.into());
        self.log_answer(sock, head, status, bytes);
        self.close_client(sock, How::Flushed);
    }
}

/// Whether the text of `--respond` is too long for one piece.
fn responds_at_length(app: &App, route: &Taken, request: &Request) -> bool {
    route.direct(app).is_some_and(|direct| direct.room() > SMALL) && request.method != Method::Head
}
