//! From bytes to requests: reads heads, answers what the loop answers itself, refuses what is malformed, and hands the rest to
//! an exchange.
//!
//! Pipelined requests that the loop answers itself are all read in one go, and their answers leave in one gathered write. A
//! refusal closes the connection, and nothing behind it is ever read as a request.

use std::time::Duration;

use crate::backends::{Backend, How, Sock};
use crate::buffers::block::Block;
use crate::http::Framing;
use crate::http::head::{self, Request};
use crate::http::http1::Http1;
use crate::http::reader::RequestBody;

use super::{State, Stream};
use crate::event_loop::{Answered, Asked, Gate, Loop, Route, Task, Written};

/// What became of a look at the input.
enum Step {
    /// A request was answered: look for the next.
    Again,
    /// More bytes are needed.
    Wait,
    /// The request has gone to an exchange, or the connection is closing.
    Stop,
}

impl<B: Backend> Loop<B> {
    /// Reads as many requests from the client's input as can be answered now.
    pub fn read_requests(&mut self, sock: Sock) {
        let mut answered = false;
        loop {
            let Some(client) = self.table.client(sock) else { return };
            if client.state != State::ReadingRequest || client.entrance.stalled {
                if client.entrance.pass.waits() {
                    self.watch(sock);
                }
                return;
            }
            let Some(input) = client.input.take() else { break };
            let fresh = client.body.is_none() && client.search.is_fresh();
            if answered && self.stalls(sock) {
                self.keep_input(sock, input);
                break;
            }
            let input = if fresh { Ok(input) } else { self.go_on(sock, input) };
            let step = match input {
                Ok(input) => self.read_request(sock, input),
                Err(step) => step,
            };
            match step {
                Step::Again => answered = true,
                Step::Wait => break,
                Step::Stop => return,
            }
        }
        let Some(client) = self.table.client(sock) else { return };
        let (ended, skips, waits) = (client.ended, client.body.is_some(), client.input.is_some());
        if answered {
            let timeouts = &self.apps.settings.timeouts;
            let timeout = match (skips, waits) {
                (true, _) => timeouts.body,
                (false, true) => timeouts.header,
                (false, false) => self.patience(timeouts.idle),
            };
            self.arm(sock, timeout);
        }
        // Also with nothing more to be read yet: a client that sends one request a packet and reads no answer must wait, too.
        if self.stalls(sock) {
            return;
        }
        // A part of a head whose client has finished sending never becomes a request.
        if ended || (!waits && self.sends_away()) {
            return self.close_client(sock, How::Flushed);
        }
        self.backend.recv(sock, crate::backends::Size::Small);
    }

    /// Bytes behind a part of a head, or behind an answer whose request still has a body: what may hold a whole head, or what there is to be
    /// done instead of reading one.
    #[inline(never)]
    fn go_on(&mut self, sock: Sock, input: Block) -> Result<Block, Step> {
        let Some(client) = self.table.client(sock) else { return Err(Step::Stop) };
        if client.body.is_some() {
            return Err(self.skip_body(sock, input));
        }
        if !client.search.scan(&input) && input.len() < self.heads.limits.head {
            client.input = Some(input);
            return Err(Step::Wait);
        }
        Ok(input)
    }

    #[inline(always)]
    fn read_request(&mut self, sock: Sock, input: Block) -> Step {
        match head::request(&input, &self.heads.limits, &mut self.heads.fields) {
            Ok(Some(request)) => self.take_request(sock, input, &request),
            Ok(None) => self.wait_for_head(sock, input),
            Err(refusal) => {
                self.refuse_unread(sock, &input, (refusal.status, &refusal.to_string()));
                Step::Stop
            }
        }
    }

    /// Keeps a part of a head. Its deadline starts with its first byte and is not moved by further ones.
    fn wait_for_head(&mut self, sock: Sock, input: Block) -> Step {
        if !self.memory.has_reserve() {
            self.count().memory_refused.add(1);
            self.refuse_unread(sock, &input, (503, "the server has no memory left for requests that come in parts"));
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

    #[inline(always)]
    fn take_request(&mut self, sock: Sock, input: Block, request: &Request) -> Step {
        self.find_origin(sock, &input);
        let Some(client) = self.table.client(sock) else { return Step::Stop };
        client.search = Default::default();
        client.requested = true;
        client.http = Http1::new(request);
        if request.framing != Framing::None {
            client.body = RequestBody::behind(&self.heads.fields, request.framing);
        }
        let stream = Stream { connection: sock, id: 0 };
        let admin = client.admin;
        let route = self.route(sock, admin, &input, request);
        if self.apps.routes.is_guarded {
            match self.gate(sock, route, &input, request) {
                Gate::Open => {}
                Gate::Shut(written) => return self.answer_here(sock, route, input, request, written),
                Gate::Later(pass, after) => {
                    self.put_aside(sock, input, pass, after);
                    return Step::Stop;
                }
            }
        }
        self.count().requests.add(1);
        let written = match route {
            Route::App(route) => {
                self.forward(route, stream, input, request);
                return Step::Stop;
            }
            Route::Long(route) => {
                self.respond(route, stream, &input, request);
                None
            }
            Route::Files(route) => self.serve_file(route, stream, &input, request),
            Route::Hub(number) => match self.asked_of_hub(number, sock, &input, request) {
                Asked::Answer(written) => Some(written),
                Asked::Publish => {
                    self.begin_publication(number, stream, input, request);
                    return Step::Stop;
                }
                Asked::Listens => {
                    self.work.push_back(Task::Resume(sock));
                    None
                }
                Asked::Nothing => None,
            },
            Route::Desk(document) => {
                self.ask_desk(stream, &input, request, document);
                None
            }
            Route::Refuse(status, reason) => {
                let head = &input[request.method_span.start as usize..request.len];
                self.refuse_head(sock, (status, reason), request.accept.of(&input), head);
                return Step::Stop;
            }
            route => self.write_own(route, &input, request),
        };
        match written {
            Some(written) => self.answer_here(sock, route, input, request, written),
            None => Step::Stop,
        }
    }

    /// Whether the connection goes on after an answer of the loop itself.
    pub fn keeps_alive(&self, request: &Request) -> bool {
        // A client that waits for "100 Continue" may or may not send its body after a final answer (RFC 9110 §10.1.1).
        request.keep_alive && !self.accepting.draining && !request.expect_continue
    }

    /// Sends an answer of the loop itself: then the next request, once the body of this one is out of the way.
    #[inline(always)]
    fn answer_here(&mut self, sock: Sock, route: Route, mut input: Block, request: &Request, written: Written) -> Step {
        self.become_state(sock, State::WritingResponse);
        self.send_head(sock, written.head_and_body);
        if self.access.enabled() {
            let head = &input[request.method_span.start as usize..request.len];
            let Written { status, bytes, .. } = written;
            let answered = Answered { series: self.apps.routes.series(route), status, bytes, after: Duration::ZERO };
            self.log_answer(sock, head, self.heads.fields.shown_of(&input), &answered);
        }
        input.advance(request.len);
        if !self.keeps_alive(request) {
            self.close_answered(sock, request.keep_alive || !input.is_empty());
            return Step::Stop;
        }
        self.become_state(sock, State::ReadingRequest);
        if !input.is_empty()
            && let Some(client) = self.table.client(sock)
        {
            client.input = Some(input);
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
}
