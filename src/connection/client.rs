//! What happens to a client's connection: bytes, its end, failures, timeouts.
//!
//! While a request is being answered the receive stays armed, so that a departure is seen; what comes meanwhile is kept on the
//! heap up to [`PIPELINE_BYTES`]. The connection's timer has three uses, one at a time:
//!
//! | clock | runs | past it |
//! |---|---|---|
//! | `--header-timeout` | from the first byte of a head on, however the rest trickles in | 408 |
//! | `--idle-timeout` | between two requests | the connection closes |
//! | `--write-timeout` | while the peer is behind, since it last acknowledged something worth the name | it is cut |

use std::time::Duration;

use crate::backends::{Backend, HIGH_MARK, How, Progress, Side, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::exchange::{Ending, Phase, Upload};
use crate::http::head::HeadSearch;
use crate::http::http1::Http1;
use crate::http::reader::RequestBody;

use super::{State, Stream};
use crate::event_loop::{Arrival, Entrance, Loop, Subscriber, Task};

/// Pipelined bytes kept for a client whose request is being answered; beyond this its receive stays unarmed.
const PIPELINE_BYTES: usize = 16 * 1024;

/// A client's connection.
pub(crate) struct Client {
    pub state: State,
    /// The peer has finished sending.
    pub ended: bool,
    /// Whether it may go on.
    pub entrance: Entrance,
    /// The peer has not taken all that the kernel was offered: the write clock runs, or will once the head's does not.
    pub behind: bool,
    /// It has sent a request.
    pub requested: bool,
    /// Whether the peer takes what it is sent, while it is behind.
    pub progress: Progress,
    /// The request in hand.
    pub http: Http1,
    /// Which of the loop's listeners accepted it.
    pub listener: u16,
    /// That one serves the documents of the server's own and nothing else.
    pub admin: bool,
    pub arrival: Arrival,
    /// The request that is being answered, or [`Key::NONE`].
    pub exchange: Key,
    /// Bytes received and not yet used: a part of a head, or requests that wait for their turn.
    pub input: Option<Block>,
    /// How far `input` was searched for the end of a head.
    pub search: HeadSearch,
    /// The request's body, while more of it is to come.
    pub body: Option<Box<RequestBody>>,
    /// What it has subscribed to, while that is what its request has asked for.
    pub subscriber: Option<Box<Subscriber>>,
}

impl Client {
    pub fn new(listener: u16, admin: bool, arrival: Arrival) -> Client {
        Client {
            state: State::Accepting,
            ended: false,
            entrance: Entrance::default(),
            behind: false,
            requested: false,
            progress: Progress::default(),
            http: Http1::NONE,
            listener,
            admin,
            arrival,
            exchange: Key::NONE,
            input: None,
            search: HeadSearch::default(),
            body: None,
            subscriber: None,
        }
    }

    /// Whether it is kept after the answer that begins now.
    #[inline]
    pub fn decide_keep_alive(&mut self, draining: bool, crowded: bool) -> bool {
        let away = draining || (crowded && self.input.is_none());
        self.http.keep_alive &= !away && self.body.is_none();
        self.http.keep_alive
    }

    /// Whether something is under way for it, so that what comes in has to wait.
    #[inline]
    pub fn is_answered(&self) -> bool {
        self.exchange != Key::NONE || self.subscriber.is_some()
    }

    /// Whether it stands between two requests, or before its first.
    pub fn is_idle(&self) -> bool {
        self.state == State::ReadingRequest && self.input.is_none() && self.body.is_none() && !self.behind
    }
}

impl<B: Backend> Loop<B> {
    /// Bytes of a client have come, as they were before TLS sealed them.
    #[inline(always)]
    pub fn plain_received(&mut self, sock: Sock, block: Block) {
        let Some(client) = self.table.client(sock) else { return };
        match client.state {
            State::Closing => {}
            State::Accepting => self.read_proxy_header(sock, block),
            State::ReadingRequest => {
                match client.input {
                    None => client.input = Some(block),
                    Some(_) => self.keep_input(sock, block),
                }
                self.read_requests(sock);
            }
            State::Processing | State::WritingResponse => {
                let (key, body) = (client.exchange, client.body.is_some());
                if client.subscriber.is_some() {
                    return self.subscriber_received(sock, block);
                }
                match self.exchanges.lookup(key).map(|exchange| exchange.phase) {
                    Some(Phase::Tunnel { .. }) => self.tunnel_to_worker(key, block),
                    Some(_) if body => self.read_body(sock, block),
                    Some(_) => {
                        self.keep_input(sock, block);
                        self.watch(sock);
                    }
                    None => {}
                }
            }
        }
    }

    /// Decodes bytes of a request's body and hands them to its exchange. What it cannot use yet waits, and no more is received.
    pub fn read_body(&mut self, sock: Sock, mut input: Block) {
        let Some(key) = self.table.client(sock).map(|client| client.exchange) else { return };
        if !self.takes_body(key) {
            return self.keep_input(sock, input);
        }
        loop {
            let Some(body) = self.table.client(sock).and_then(|client| client.body.as_mut()) else { return };
            let taken = body.reader.take(&mut input);
            let done = body.reader.is_done();
            match taken {
                Ok(Some(data)) => {
                    if !self.body_came(key, data) {
                        return;
                    }
                }
                Ok(None) if done => break,
                Ok(None) => return self.body_goes_on(key),
                Err(refusal) => return self.fail(key, refusal.status, refusal.reason),
            }
        }
        let body = self.table.client(sock).and_then(|client| client.body.take());
        self.keep_input(sock, input);
        self.body_ended(key, &body.as_ref().map(|body| body.trailers()).unwrap_or_default());
    }

    /// Keeps the receive armed while a request is being answered, so that the client's departure is seen.
    pub fn watch(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        if client.input.as_ref().is_none_or(|input| input.len() < PIPELINE_BYTES) {
            self.backend.recv(sock, Size::Small);
        }
    }

    /// Puts bytes behind those that wait already.
    pub fn keep_input(&mut self, sock: Sock, block: Block) {
        if block.is_empty() {
            return;
        }
        let Some(client) = self.table.client(sock) else { return };
        let input = self.memory.pool.joined(client.input.take(), block);
        client.input = Some(input.settle(&self.memory.pool));
    }

    /// What had to wait can be looked at: a body for which there is room, or the next requests.
    pub fn resume_client(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        if client.subscriber.is_some() {
            return self.subscriber_resumed(sock);
        }
        if client.exchange == Key::NONE || client.body.is_none() {
            self.read_requests(sock);
            let begins = self.table.client(sock).is_some_and(|client| client.ended && client.is_answered());
            return if begins {
                self.heed_end(sock)
            };
        }
        match client.input.take() {
            Some(input) => self.read_body(sock, input),
            None => self.stream_want(Stream { connection: sock, id: 0 }),
        }
    }

    /// The client has finished sending, which inside of TLS is said twice.
    pub fn client_ended(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        if std::mem::replace(&mut client.ended, true) {
            return;
        }
        if client.state == State::Accepting {
            return self.never_began(sock, true);
        }
        self.heed_end(sock);
    }

    /// Whether a client that has finished sending wants what it has asked for: the last of its requests is to say so.
    fn heed_end(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        if client.subscriber.is_some() {
            return self.close_client(sock, How::Flushed);
        }
        let (key, closes, waits) = (client.exchange, !client.http.keep_alive, client.input.is_some());
        let more = waits && client.body.is_none() && !client.entrance.pass.waits();
        let Some(exchange) = self.exchanges.lookup(key) else {
            if client.entrance.outlasts_end(closes) && waits {
                // Once it is their turn whole requests are answered, and then the connection closes.
                return self.work.push_back(Task::Resume(sock));
            }
            // Nothing is being answered. Answers of earlier requests may still be on their way.
            return self.close_client(sock, How::Flushed);
        };
        let wants = closes || more || exchange.is_over() || exchange.app.settings.answering.serve_half_closed;
        match exchange.phase {
            Phase::Tunnel { .. } => _ = self.tunnel_way_ended(key, true),
            // Whether all of a body is here that waits for its worker, is seen when it is read.
            _ if (exchange.is_uploaded() || exchange.request.upload == Upload::Held) && wants => {}
            _ => {
                self.count().client_gone.add(1);
                self.client_left(sock, How::Flushed);
            }
        }
    }

    /// The client is gone, or must go: its exchange is cancelled, its connection closed.
    pub fn client_left(&mut self, sock: Sock, how: How) {
        let Some(client) = self.table.client(sock) else { return };
        if client.subscriber.is_some() || self.leaves_opening(sock) {
            return self.close_client(sock, how);
        }
        let Some(client) = self.table.client(sock) else { return };
        let key = std::mem::replace(&mut client.exchange, Key::NONE);
        self.finish(key, Ending::Left { how });
        self.close_client(sock, how);
    }

    pub fn client_failed(&mut self, sock: Sock, side: Side) {
        let Some(client) = self.table.client(sock) else { return };
        let (key, closing) = (client.exchange, client.state == State::Closing);
        if closing && side != Side::Send {
            return;
        }
        if side == Side::Send {
            // It takes no more, which no clock has to find out.
            client.behind = false;
            if self.tunnel_way_ended(key, false) {
                return;
            }
        }
        self.count().client_gone.add(u64::from(key != Key::NONE));
        self.client_left(sock, How::Now);
    }

    /// Some of the outbox has left.
    pub fn client_drained(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        // Whether it has caught up is seen when the write clock is looked at.
        let (key, stalled) = (client.exchange, client.entrance.stalled);
        if client.subscriber.is_some() {
            return self.subscriber_drained(sock);
        }
        if stalled && !self.stalls(sock) {
            self.work.push_back(Task::Resume(sock));
        }
        if key != Key::NONE {
            self.answer_drained(key);
        }
    }

    /// The client's deadline has passed: which one it was depends on what it is doing.
    pub fn client_expired(&mut self, sock: Sock) {
        let is_behind = self.unsent(sock) > 0 || self.backend.is_behind(sock);
        let Some(client) = self.table.client(sock) else { return };
        match client.state {
            State::Closing => return,
            State::Accepting => return self.never_began(sock, false),
            _ => {}
        }
        if client.entrance.pass.waits() {
            return self.waited_enough(sock);
        }
        let caught_up = client.behind && !is_behind;
        client.behind &= is_behind;
        if client.behind && (client.input.is_none() || client.is_answered() || client.entrance.stalled) {
            return self.look_at_write(sock);
        }
        if client.subscriber.is_some() {
            return self.subscriber_expired(sock);
        }
        if client.exchange != Key::NONE {
            // Its exchange has timers of its own.
            return;
        }
        if caught_up && client.is_idle() {
            return self.arm(sock, self.patience(self.apps.settings.timeouts.idle));
        }
        let (requested, started, skips) = (client.requested, client.input.is_some(), client.body.is_some());
        // An idle connection at its end is no failure; one that never sent anything is a timeout.
        self.count().timeouts.add(u64::from(skips || started || !requested));
        match started {
            // Its request is answered: a second answer would be taken for that of the next one.
            _ if skips => self.close_client(sock, How::Flushed),
            true => self.refuse_late(sock),
            false => self.close_answered(sock, false),
        }
    }

    /// The next request may come: waits for it, for the next one already here, or closes.
    pub fn await_request(&mut self, sock: Sock) {
        self.time.connections.arm_after(sock.index, self.patience(self.apps.settings.timeouts.idle));
        let sends_away = self.sends_away();
        let Some(client) = self.table.client(sock) else { return };
        (client.search, client.http) = (HeadSearch::default(), Http1::NONE);
        let (waits, behind) = (client.input.is_some(), client.behind);
        let over = !waits && (client.ended || sends_away);
        if behind {
            self.watch_write(sock);
        }
        if !over && self.stalls(sock) {
            // A pipeline whose answers nobody reads must not fill the memory: the drain resumes.
            return;
        }
        if waits {
            self.work.push_back(Task::Resume(sock));
        } else if over {
            self.close_answered(sock, false);
        } else {
            self.backend.recv(sock, Size::Small);
        }
    }

    /// A graceful stop has begun: a connection between two requests closes, others after their answer.
    pub fn client_drains(&mut self, sock: Sock) {
        let away = self.sends_away();
        let Some(client) = self.table.client(sock) else { return };
        match client.state {
            State::Accepting if away => self.close_client(sock, How::Now),
            State::ReadingRequest if client.input.is_none() && client.body.is_none() => self.drain_idle(sock),
            _ if client.subscriber.is_some() => self.subscriber_drains(sock),
            _ => {}
        }
    }

    /// Whether so much waits to be sent that no further request is read now; the drain will resume.
    #[inline(always)]
    pub fn stalls(&mut self, sock: Sock) -> bool {
        let stalls = self.unsent(sock) > HIGH_MARK;
        if stalls {
            self.backend.await_room(sock);
        }
        if let Some(client) = self.table.client(sock) {
            client.entrance.stalled = stalls || client.entrance.pass.waits();
        }
        stalls
    }

    /// Sets a connection's timer.
    #[inline]
    pub fn arm(&mut self, sock: Sock, after: Duration) {
        self.time.connections.arm_after(sock.index, after);
    }
}
