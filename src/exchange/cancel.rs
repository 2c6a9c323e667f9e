//! How exchanges end early: deadlines, refusals, clients that leave.

use crate::backends::{Backend, How, Size};
use crate::buffers::slots::Key;
use crate::connection::{Loop, State};
use crate::dispatch::Outcome;
use crate::http::reply::{self, Format, Reply};
use crate::http::{Method, Version, body_len, find_lines};
use crate::log::AccessRecord;
use crate::planted::{self, Bug};

use super::start::id_text;
use super::{Exchange, Phase};

/// What is said while no worker is ready.
pub(super) const STARTING: &str = "the app is starting";

impl<B: Backend> Loop<B> {
    /// A deadline of an exchange has passed: which one depends on its phase.
    pub fn exchange_expired(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        match exchange.phase {
            Phase::Collecting => {
                self.count().timeouts.add(1);
                self.fail(key, 408, "the request's body did not arrive in time");
            }
            Phase::Queued => self.queue_expired(key),
            Phase::Backlog => self.backlog_expired(key),
            Phase::Verdict => self.hear_verdict(key, true),
            Phase::Awaiting => self.awaiting_expired(key),
            Phase::Relaying => self.relaying_expired(key),
            Phase::Tunnel => self.end_tunnel(key),
            Phase::Abandoned => debug_assert!(false, "an abandoned exchange has no client to wait for"),
        }
    }

    /// The app has given up while this exchange waited for a worker; its ticket is void.
    pub fn app_failed(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key).filter(|exchange| exchange.phase == Phase::Queued) else {
            return;
        };
        exchange.ticket = None;
        self.fail(key, 503, super::start::GIVEN_UP);
    }

    fn awaiting_expired(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (client, due) = (exchange.client, exchange.read_by.min(exchange.request_by));
        if self.table.link(exchange.link).is_some_and(|link| link.is_connecting()) {
            self.count().timeouts.add(1);
            return self.unreachable(key);
        }
        if self.now < due {
            return self.wheel.arm(client.index, due);
        }
        self.count().timeouts.add(1);
        if !exchange.upload.is_done() && !exchange.upload_paused {
            return self.break_upload(key, 408, "the request's body stopped arriving");
        }
        self.suspect(key);
        self.fail(key, 504, "the worker did not answer in time");
    }

    fn relaying_expired(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let (sock, paused, stream) = (exchange.client, exchange.paused, exchange.stream);
        let due = if stream { exchange.read_by } else { exchange.read_by.min(exchange.request_by) };
        if self.backend.unsent(sock) > 0 {
            let sent = self.backend.sent(sock);
            let Some(client) = self.table.client(sock) else { return };
            let stuck = client.written == sent;
            client.written = sent;
            if stuck && paused {
                self.count().timeouts.add(1);
                return self.client_left(sock, How::Reset);
            }
        }
        if paused {
            return self.arm(sock, self.shared.settings.timeouts.write);
        }
        if self.now < due {
            return self.wheel.arm(sock.index, due);
        }
        self.count().timeouts.add(1);
        self.suspect(key);
        self.cut_answer(key, "the worker stopped in the middle of an answer");
    }

    /// Answers the client with an error, if no byte of an answer has left yet, and leaves the exchange without it.
    pub fn fail(&mut self, key: Key, status: u16, detail: &str) {
        self.count().errors.add(1);
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let sock = exchange.client;
        exchange.status = status;
        let keep_alive = exchange.keep_alive && exchange.upload.is_done() && !self.draining;
        let [accept] = find_lines(exchange.head.as_deref().unwrap_or_default(), [b"accept"]);
        let format = reply::negotiate(accept);
        let reply = Reply {
            status,
            detail,
            format,
            date: &self.clock.date,
            keep_alive,
            http10: exchange.version == Version::Http10,
            head_only: exchange.method == Method::Head,
            retry_after: matches!(status, 503 | 504).then_some(1),
            reload: format == Format::Html && detail == STARTING,
            request_id: Some(&id_text(exchange.id)),
        };
        let piece = self.scratch.write(reply::error_room(&reply), |out| reply::error(out, &reply));
        exchange.bytes += body_len(&piece) as u64;
        self.log_exchange(key);
        self.abandon(key);
        let Some(client) = self.table.client(sock) else { return };
        client.exchange = Key::NONE;
        self.become_state(sock, State::WritingResponse);
        self.send_client(sock, piece.into());
        if keep_alive {
            self.become_state(sock, State::ReadingRequest);
            self.await_request(sock);
        } else {
            self.close_sending_client(sock);
        }
    }

    /// Takes an exchange from its client. What a worker is still busy with stays until the worker is done.
    pub fn abandon(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.client = Key::NONE;
        if let Some(ticket) = exchange.ticket.take() {
            // If it was granted meanwhile, the permit is in the mail and goes back when it finds nobody.
            self.shared.dispatch.cancel(ticket);
        }
        match exchange.phase {
            Phase::Awaiting | Phase::Relaying if exchange.link != Key::NONE => self.abandon_link(key),
            Phase::Tunnel => return self.end_tunnel(key),
            _ => self.give_back(key, Outcome::Unused),
        }
        if self.exchanges.lookup(key).is_some_and(|exchange| exchange.phase != Phase::Abandoned) {
            self.exchanges.discard(key);
        }
    }

    /// With one request at a time a worker that is still busy must not be given the next: its connection is half-closed, and
    /// its answer discarded until it ends.
    fn abandon_link(&mut self, key: Key) {
        let isolated = self.shared.settings.app.concurrency == 1;
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let link = exchange.link;
        let delivered = self.backend.offered(link) > exchange.sent_before;
        if planted::active(Bug::DirtyLink) {
            exchange.link = Key::NONE;
            self.park(link, None);
            return self.give_back(key, Outcome::Unused);
        }
        if !isolated || exchange.stream || !delivered {
            self.drop_link(key, How::Now);
            return self.give_back(key, if delivered { Outcome::Broken } else { Outcome::Unused });
        }
        exchange.phase = Phase::Abandoned;
        exchange.release_request(false);
        self.backend.finish(link);
        self.backend.recv(link, Size::Small);
        self.arm(link, self.shared.settings.app.timeouts.abandon);
    }

    /// A worker has let a request time out. With the request's own deadline passed it may be stuck; the supervisor decides.
    fn suspect(&self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let Some(worker) = exchange.permit.as_ref().map(|permit| permit.worker()) else { return };
        self.shared.dispatch.suspect(worker);
        if let (Some(granted), true) = (exchange.granted, self.now >= exchange.request_by) {
            self.shared.dispatch.stuck(worker, granted, self.now);
        }
    }

    /// An abandoned request has not ended in time. If it had timed out before its client was told so, its worker is stuck: with one
    /// request at a time it has worked on nothing else.
    pub fn abandoned_expired(&mut self, key: Key) {
        if let Some(exchange) = self.exchanges.lookup(key)
            && let (Some(permit), Some(granted), 504) = (&exchange.permit, exchange.granted, exchange.status)
        {
            self.shared.dispatch.stuck(permit.worker(), granted, self.now);
        }
        self.abandoned_ended(key);
    }

    /// The worker is done with an abandoned request, or out of time.
    pub fn abandoned_ended(&mut self, key: Key) {
        self.drop_link(key, How::Now);
        self.give_back(key, Outcome::Broken);
        self.exchanges.discard(key);
    }

    /// Counts how long an exchange took, and writes its access line.
    pub fn log_exchange(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        // Streams and tunnels last as long as somebody listens.
        if !exchange.stream && exchange.status != 101 {
            self.count().latency.record(self.now.saturating_duration_since(exchange.started));
        }
        if !self.access.enabled() {
            return;
        }
        let Some(client) = self.table.client(exchange.client) else { return };
        let peer = (!client.peer.unix).then_some(client.peer.ip);
        let head: &[u8] = exchange.head.as_deref().unwrap_or_default();
        let mut words = head.split(|byte| *byte == b' ' || *byte == b'\r');
        let (method, target) = (words.next().unwrap_or(b"-"), words.next().unwrap_or(b"-"));
        let [host, referer, user_agent] = find_lines(head, [b"host", b"referer", b"user-agent"]);
        let micros =
            |from: std::time::Instant, to: std::time::Instant| to.saturating_duration_since(from).as_micros() as u64;
        let end = exchange.finished.unwrap_or(self.now);
        let worker = self.worker_of(exchange);
        self.access.record(&AccessRecord {
            time_micros: self.clock.micros(self.wheel.now_nanos()),
            client: peer,
            method,
            target,
            protocol: exchange.version.name(),
            host,
            status: exchange.status,
            bytes: exchange.bytes,
            duration_us: micros(exchange.started, self.now),
            queue_us: exchange.granted.map(|granted| micros(exchange.since, granted)),
            upstream_us: exchange.granted.map(|granted| micros(granted, end)),
            worker,
            request_id: &id_text(exchange.id),
            referer,
            user_agent,
        });
    }

    fn worker_of(&self, exchange: &Exchange) -> Option<u32> {
        let worker = exchange.worker?;
        self.seats
            .get(worker.index as usize)?
            .as_ref()
            .filter(|seat| seat.worker == worker)
            .map(|seat| seat.target.number)
    }

    /// The name of an exchange's worker, for messages.
    pub fn worker_label(&self, key: Key) -> String {
        let worker = self.exchanges.lookup(key).and_then(|exchange| exchange.worker);
        worker
            .and_then(|worker| self.shared.dispatch.target(worker))
            .map_or_else(|| "-".to_owned(), |target| target.label.clone())
    }
}
