//! The one way in which exchanges end.
//!
//! Whatever the reason, [`Loop::finish`] gives everything back in one order: the rest of the answer's framing, the worker's
//! connection and the permit, the ticket, the tunnel's and the stream's count, the log line and the counters, the entry with
//! its memory, and last the client's connection, which may go on with its next request.

use std::fmt::Display;

use crate::backends::{Backend, How};
use crate::buffers::slots::Key;
use crate::connection::{State, Stream};
use crate::dispatch::{Outcome, Ticket};
use crate::event_loop::Loop;
use crate::http::body::last_chunk;
use crate::http::reply::{self, Format, Reply};
use crate::http::{Method, body_len, find_lines};
use crate::log::Level;
use crate::planted::{self, Bug};

use super::Phase;

/// What is said while no worker is ready.
pub(super) const STARTING: &str = "the app is starting";

/// How an exchange ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ending<'a> {
    /// The worker's answer is whole; `surplus`: more bytes came behind it.
    Answered { surplus: bool },
    /// No answer, or no whole one. Where none has begun, we answer in the worker's place: a status of 400 to 599 and a sentence for
    /// the reader; else the answer is cut, which the client must see. `outcome` is how the request ended for the worker, whose
    /// connection closes; without one it may still be at it, and gets nothing more before it is done.
    Failed { status: u16, reason: &'a str, outcome: Option<Outcome> },
    /// The client has left, or must go; or a tunnel is over.
    Left { how: How },
}

impl<B: Backend> Loop<B> {
    /// Ends an exchange that cannot go on. A worker that has a part of the request sees a message that is visibly incomplete, on a
    /// connection that closes.
    pub fn fail(&mut self, key: Key, status: u16, reason: &str) {
        self.finish(key, Ending::Failed { status, reason, outcome: Some(Outcome::Broken) });
    }

    /// Ends an exchange. The name is dead afterwards; so may be its client's connection.
    pub fn finish(&mut self, key: Key, ending: Ending<'_>) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (stream, phase, spools) = (exchange.stream, exchange.phase, exchange.has_spools());
        let begun = exchange.has_begun();
        let (stream, ending, event) =
            if stream.is_own() { self.own_ends(key, stream, ending) } else { (stream, ending, false) };
        let cut = begun && matches!(ending, Ending::Failed { .. });
        match ending {
            _ if event => {}
            Ending::Answered { .. } => self.end_body(key, stream),
            Ending::Failed { reason, .. } if cut => self.tell_of_cut(key, reason),
            Ending::Failed { status, reason, .. } => self.send_refusal(key, status, reason),
            Ending::Left { .. } => self.take_back_unsent(key, stream),
        }
        match ending {
            _ if matches!(phase, Phase::Tunnel { .. }) => self.end_tunnel(key),
            Ending::Answered { surplus } => self.keep_worker(key, surplus),
            Ending::Failed { outcome: Some(outcome), .. } => self.drop_worker(key, outcome),
            Ending::Failed { outcome: None, .. } => self.leave_worker(key, true),
            Ending::Left { .. } => self.leave_worker(key, false),
        }
        if spools {
            self.close_spool(key);
            self.close_spooled_body(key);
        }
        if let Phase::Queued { ticket, .. } = phase {
            self.leave_queue(key, ticket);
        }
        // A tunnel's line is written when it begins.
        if !matches!(phase, Phase::Tunnel { .. }) {
            self.account(key, matches!(ending, Ending::Left { .. }));
        }
        if planted::active(Bug::CleanCut) && cut {
            self.end_body(key, stream);
        }
        self.exchanges.discard(key);
        match ending {
            _ if event => self.event_over(key, stream.connection, &ending),
            Ending::Failed { .. } if cut => self.stream_abort(stream),
            Ending::Answered { .. } | Ending::Failed { .. } => self.stream_over(stream),
            Ending::Left { how } => self.stream_leave(stream, how),
        }
    }

    /// Writes the end of an answer's body.
    fn end_body(&mut self, key: Key, stream: Stream) {
        if self.stream_takes_chunks(stream)
            && let Some(exchange) = self.exchanges.lookup(key)
        {
            let end = last_chunk(&mut self.memory.scratch, exchange.answer.reader.trailers());
            self.send(stream.connection, end);
        }
    }

    /// The worker is done: its permit and its connection are free.
    pub fn keep_worker(&mut self, key: Key, surplus: bool) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.times.finished.get_or_insert(now);
        let (link, timeout) = (exchange.link(), exchange.answer.reuse.timeout);
        let kept = exchange.answer.reuse.keeps && exchange.is_uploaded() && exchange.request.has_left() && !surplus;
        let outcome = if matches!(exchange.answer.status, 502..=504) { Outcome::Failed } else { Outcome::Answered };
        let (app, permit, most) = (&exchange.app, exchange.attempt.permit.take(), exchange.app.idle_links());
        let release = |permit| app.dispatch.release(permit, outcome, self.time.now, self.index);
        let freed = permit.and_then(release);
        if kept && self.backend.unsent(link) == 0 {
            self.park(link, most, timeout)
        } else {
            self.close_link(link, How::Now)
        }
        self.pass_on(freed);
    }

    /// Ends the use of a worker: its connection closes, its permit goes back.
    pub fn drop_worker(&mut self, key: Key, outcome: Outcome) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let link = std::mem::take(&mut exchange.source).link();
        self.close_link(link, How::Now);
        self.give_back(key, outcome);
    }

    fn leave_queue(&mut self, key: Key, ticket: Ticket) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if !planted::active(Bug::ForgottenTicket) && !exchange.app.dispatch.cancel(ticket) {
            // The permit is in the mail, and goes back when it finds nobody.
            self.apps.expect_mail(key, exchange.app.clone());
        }
    }

    /// Our own answer to the exchange's request.
    fn send_refusal(&mut self, key: Key, status: u16, detail: &str) {
        self.count().errors.add(1);
        let connection = self.exchanges.lookup(key).map_or(Key::NONE, |exchange| exchange.stream.connection);
        let keep_alive = self.decide_keep_alive(connection);
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.answer.status = status;
        let http10 = self.table.client(connection).is_some_and(|client| client.http.is_old());
        let [accept] = find_lines(exchange.request.head.as_deref().unwrap_or_default(), [b"accept"]);
        let format = reply::negotiate(accept);
        let reply = Reply {
            format,
            keep_alive,
            http10,
            head_only: exchange.request.method == Method::Head,
            retry_after: matches!(status, 503 | 504).then_some(1),
            reload: format == Format::Html && detail == STARTING,
            request_id: Some(self.accepting.id(key, &exchange.request.id)),
            ..Reply::new(status, detail, &self.time.day.date)
        };
        let reply = Reply { page: self.apps.page(&reply, exchange.answer.edits.as_deref()), ..reply };
        let piece = self.memory.scratch.write(reply::error_room(&reply), |out| reply::error(out, &reply));
        exchange.answer.bytes += body_len(&piece) as u64;
        self.become_state(connection, State::WritingResponse);
        self.send_head(connection, piece);
    }

    fn tell_of_cut(&mut self, key: Key, reason: &str) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let waits = exchange.waits().name();
        self.count().errors.add(1);
        self.count().app(exchange.app.count).cut.add(1);
        self.warn(key, "an answer was cut", reason, &[("waited_for", &waits)]);
    }

    /// Says what was wrong with an exchange, and with which worker.
    pub fn warn(&self, key: Key, message: &'static str, reason: &str, more: &[(&str, &dyn Display)]) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let target = exchange.attempt.worker.and_then(|worker| exchange.app.dispatch.target(worker));
        let label = target.as_ref().map_or("-", |target| target.label.as_str());
        let fields: [(&str, &dyn Display); 2] = [("worker", &label), ("reason", &reason)];
        self.shared.log.seldom(Level::Warn, message, &[&fields, more].concat());
    }
}
