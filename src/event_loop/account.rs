//! What is counted of an exchange as it ends, and its line in the access log.

use std::net::IpAddr;
use std::time::Duration;

use crate::backends::{Backend, Sock};
use crate::buffers::slots::Key;
use crate::buffers::wheel::nanos;
use crate::connection::Stream;
use crate::exchange::Exchange;
use crate::http::fields::Shown;
use crate::http::head::{self, Request};
use crate::http::rewrite::{self, Forward};
use crate::log::{AccessRecord, Took};
use crate::metrics::Counter;
use crate::metrics::series::AppCounters;

use super::Loop;
use super::front::access_record;

/// What became of a request that no exchange carries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answered {
    /// By which number it is counted.
    pub series: u16,
    pub status: u16,
    /// Of the body.
    pub bytes: u64,
    /// Since its first byte; zero where it was answered in the turn in which that came.
    pub after: Duration,
}

/// The status in the access line of a request whose client left before it was answered, as nginx has it.
pub(super) const CLIENT_LEFT: u16 = 499;

impl<B: Backend> Loop<B> {
    /// How long an exchange waited for its first worker.
    fn waited(&self, exchange: &Exchange) -> Duration {
        let until = exchange.times.granted.map_or(self.time.now, |granted| self.time.instant(granted));
        until.saturating_duration_since(exchange.times.asked)
    }

    /// Counts a request to an app for which no worker was there in time, and why.
    pub fn waited_in_vain(&self, app: u16, counter: fn(&AppCounters) -> &Counter) {
        counter(self.count().app(app)).add(1);
        self.count().timeouts.add(1);
    }

    /// What the access line of a request will show of the head that its worker gets, if there is to be a line and the head is not edited.
    pub fn shown(&self, edited: bool, request: &Request, forward: &Forward<'_>) -> Option<Shown> {
        let is_known = self.access.enabled() && !edited;
        is_known.then(|| self.heads.fields.shown(request.copy.start, rewrite::dropped(request, forward))).flatten()
    }

    /// Counts how an exchange ended and how long it took, and writes its access line.
    pub fn account(&mut self, key: Key, left: bool) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let now = self.time.nanos();
        let status = if left && exchange.answer.status == 0 { CLIENT_LEFT } else { exchange.answer.status };
        let series = self.count().of_series(exchange.series);
        series.ended(status);
        // Streams and tunnels last as long as somebody listens.
        if !exchange.answer.stream && status != 101 && !left {
            series.took.record(now - exchange.times.started);
        }
        if exchange.times.queued {
            self.count().app(exchange.app.count).waited.record(nanos(self.waited(exchange)));
        } else if exchange.times.granted.is_some() {
            series.at_once.add(1);
        }
        if !self.access.enabled() {
            return;
        }
        let waited = self.waited(exchange);
        let Some(client) = self.table.client(exchange.stream.connection) else { return };
        let head: &[u8] = exchange.request.head.as_deref().unwrap_or_default();
        let times = &exchange.times;
        let duration_us = (now - times.started) / 1000;
        let end = times.finished.unwrap_or(now);
        let seat = exchange.attempt.worker.and_then(|worker| self.apps.seat(exchange.app.id, worker));
        self.access.record(&AccessRecord {
            status,
            bytes: exchange.answer.bytes,
            took: Took {
                duration_us,
                queue_us: (times.queued || times.granted.is_some()).then_some(waited.as_micros() as u64),
                upstream_us: times.granted.map(|granted| (end - granted) / 1000),
            },
            app: self.apps.shown_app(exchange.series),
            note: exchange.answer.note.as_deref(),
            worker: seat.map(|seat| seat.target.number),
            request_id: self.accepting.id(key, &exchange.request.id),
            shown: exchange.request.shown.and_then(|shown| shown.of(head)),
            ..access_record(
                head,
                client.http.version.name(),
                self.accepting.client(key, &client.arrival),
                self.time.day.micros(now).saturating_sub(duration_us),
            )
        });
    }

    /// What waits in memory for a client that has left has not been sent to it. Between its bytes lies as much framing as between all.
    #[cold]
    pub fn take_back_unsent(&mut self, key: Key, stream: Stream) {
        let (unsent, has_chunks) = (self.unsent(stream.connection) as u64, self.stream_takes_chunks(stream));
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let answer = &mut exchange.answer;
        let framing = if has_chunks { answer.reader.overhead(answer.bytes) } else { 0 };
        let of_body = u128::from(unsent) * u128::from(answer.bytes) / u128::from(answer.bytes + framing).max(1);
        answer.bytes = answer.bytes.saturating_sub(u64::try_from(of_body).unwrap_or(u64::MAX));
    }

    /// Writes the access line of a request that no exchange carries, but that was understood; `shown` is what of its head the line shows, where
    /// that is known.
    pub fn log_answer(&mut self, sock: Sock, head: &[u8], shown: Option<[&[u8]; 3]>, answered: &Answered) {
        if self.access.enabled() {
            let told = self.heads.origin.trusted.then_some(self.heads.origin.client);
            self.log_head(sock, (head, None, told), shown, answered);
        }
    }

    /// The same of one that was not, and of which `input` is there. Nobody's word counts for where it comes from.
    #[cold]
    pub fn log_refusal(&mut self, sock: Sock, input: &[u8], answered: &Answered) {
        if self.access.enabled() {
            let (head, protocol) = head::shown(input, &self.heads.limits).unwrap_or_default();
            self.log_head(sock, (head, Some(protocol), None), None, answered);
        }
    }

    fn log_head(
        &mut self,
        sock: Sock,
        (head, protocol, told): (&[u8], Option<&str>, Option<Option<IpAddr>>),
        shown: Option<[&[u8]; 3]>,
        answered: &Answered,
    ) {
        let Some(client) = self.table.client(sock) else { return };
        let protocol = protocol.unwrap_or(client.http.version.name());
        let address = told.unwrap_or(client.arrival.peer.address());
        let began = self.time.nanos().saturating_sub(nanos(answered.after));
        let record = access_record(head, protocol, address, self.time.day.micros(began));
        self.access.record(&AccessRecord {
            status: answered.status,
            bytes: answered.bytes,
            took: Took { duration_us: answered.after.as_micros() as u64, ..Took::default() },
            app: self.apps.shown_app(answered.series),
            shown,
            ..record
        });
    }
}
