//! What clients say over WebSockets, and how subscribers end: pings and deadlines, closes, the server's own end.
//!
//! | clock | runs | past it |
//! |---|---|---|
//! | `ping` | since something came of a WebSocket | it is pinged; an event stream is sent a comment |
//! | `pong` | since the ping | it is cut |
//! | `poll` | since the request for one answer | that has no messages |
//! | a part of the stop | from when the server began to end | 1012, or the end of the stream |
//!
//! While its peer is behind, the write clock runs instead, as for every client.

use std::time::Duration;

use crate::backends::{Backend, HIGH_MARK, How, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::connection::Stream;
use crate::hub::dialect::Occasion;
use crate::hub::wire::{self, Command};
use crate::hub::{Gap, Topic};
use crate::planted::{self, Bug};
use crate::websocket::decode::{Event, Limits};
use crate::websocket::{Opcode, encode};

use super::listen::RETRY;
use super::{Cursor, Loop, Subscriber, Transport, framed};

/// How many subscribers are sent away in a second at the server's end, by each loop, while there is time.
const LEAVE_A_SECOND: u64 = 2000;
/// Over what time so many subscribers are sent away, so that none is left when all are cut.
fn spread(subscribers: usize, left: Duration) -> Duration {
    Duration::from_millis(subscribers as u64 * 1000 / LEAVE_A_SECOND).min(left / 4 * 3)
}

/// The part of the budget that messages of clients may take in a loop before they are whole.
const PARTIAL_SHARE: usize = 8;

/// Why a socket is closed that is welcome as soon as it comes again.
const COME_AGAIN: &str = "the server restarts: come again";

/// Bytes of messages of a client that wait for its app before nothing more is received.
const MOST_WAITING: usize = 16 * 1024;

/// What an event takes while it waits.
pub(super) fn bytes_of(event: &Event) -> usize {
    size_of::<Event>() + if let Event::Message { data, .. } = event { data.capacity() } else { 0 }
}

impl Subscriber {
    /// Whether so much of it waits for its app that nothing more is received.
    fn is_held(&self) -> bool {
        self.talk.as_ref().is_some_and(|talk| talk.waiting_bytes >= MOST_WAITING)
    }
}

/// The close codes of hubs (RFC 6455 §7.4; those from 4000 on are ours). From 4500 on a client is not to come again.
pub(super) mod code {
    pub const NORMAL: u16 = 1000;
    /// Said to nobody: the connection ended without a close.
    pub const ABNORMAL: u16 = 1006;
    pub const RESTART: u16 = 1012;
    pub const OVERLOAD: u16 = 1013;
    pub const PROTOCOL: u16 = 1002;
    pub const NOT_UTF8: u16 = 1007;
    pub const TOO_BIG: u16 = 1009;
    pub const UNSUPPORTED: u16 = 1003;
    /// It does not take what it is sent, and what waits for it is too much.
    pub const SLOW: u16 = 4408;
    pub const GAP: u16 = 4409;
}

impl<B: Backend> Loop<B> {
    /// Something has come from a client that listens.
    pub fn subscriber_received(&mut self, sock: Sock, mut block: Block) {
        let Some(client) = self.table.client(sock) else { return };
        let Some(subscriber) = &mut client.subscriber else { return };
        (subscriber.heard, subscriber.pinged) = (true, false);
        let is_socket = matches!(subscriber.transport, Transport::Socket { .. });
        if !is_socket || client.input.is_some() || subscriber.is_held() {
            // The next request, which has its turn when this one is answered; or what comes while much waits for the app already, or before the
            // client has taken what was said to it.
            self.keep_input(sock, block);
            return self.watch(sock);
        }
        if block.unshared().is_none() {
            block = self.memory.pool.heap(&block);
        }
        loop {
            let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.as_mut()) else {
                return;
            };
            let limits = Limits { message: subscriber.served.settings.room.message };
            let Transport::Socket { decoder, .. } = &mut subscriber.transport else { return };
            let inflater = self.hubs.inflater.get_or_insert_default();
            let bytes = block.unshared().unwrap_or_default();
            let before = decoder.held();
            let taken = decoder.take(bytes, &limits, inflater);
            self.hubs.partial = self.hubs.partial + decoder.held() - before;
            match taken {
                Ok((count, event)) => {
                    block.advance(count);
                    match event {
                        Some(event) => self.socket_said(sock, event),
                        None if block.is_empty() => break,
                        // A part of a message, with the next one behind it.
                        None => continue,
                    }
                    let subscriber = self.table.client(sock).and_then(|client| client.subscriber.as_ref());
                    if subscriber.is_some_and(|subscriber| subscriber.is_held()) {
                        // The app has its turn first.
                        return self.keep_input(sock, block);
                    }
                }
                Err(violation) => return self.close_socket(sock, violation.code(), violation.reason()),
            }
        }
        let most = self.memory.pool.budget().limit() / PARTIAL_SHARE;
        if self.hubs.partial > most {
            return self.close_socket(sock, code::OVERLOAD, "too many messages are on their way");
        }
        self.listen_on(sock);
    }

    /// Receives more, unless its peer does not take what it is sent.
    pub(super) fn listen_on(&mut self, sock: Sock) {
        let unsent = self.unsent(sock);
        if self.table.client(sock).is_none_or(|client| client.subscriber.is_none()) {
            return;
        }
        if unsent > HIGH_MARK { self.backend.await_room(sock) } else { self.watch(sock) }
    }

    /// What it has said before, and what came behind its request, if anything, can be looked at.
    pub fn subscriber_resumed(&mut self, sock: Sock) {
        while self.unsent(sock) <= HIGH_MARK
            && let Some(event) = self.next_waiting(sock)
        {
            self.act_on(sock, event);
        }
        let is_full = self.unsent(sock) > HIGH_MARK;
        let Some(client) = self.table.client(sock) else { return };
        let takes =
            |subscriber: &Subscriber| matches!(subscriber.transport, Transport::Socket { .. }) && !subscriber.is_held();
        let may = !is_full && client.subscriber.as_deref().is_some_and(takes);
        match client.input.take_if(|_| may) {
            Some(input) => self.subscriber_received(sock, input),
            None => self.listen_on(sock),
        }
    }

    /// What it has said first of all that waits for its app, unless that has its turn.
    fn next_waiting(&mut self, sock: Sock) -> Option<Event> {
        let client = self.table.client(sock).filter(|client| client.exchange == Key::NONE)?;
        let talk = client.subscriber.as_mut()?.talk.as_mut()?;
        let event = talk.waiting.pop_front()?;
        talk.waiting_bytes -= bytes_of(&event);
        self.hubs.partial -= bytes_of(&event);
        Some(event)
    }

    /// A client has said something. Pings are answered at once, whatever the app has to do; all else keeps its order.
    fn socket_said(&mut self, sock: Sock, event: Event) {
        let mut frame = Vec::new();
        match event {
            Event::Pong(_) => return,
            Event::Ping(data) => {
                encode::pong(&mut frame, &data);
                return self.say(sock, &frame);
            }
            _ => {}
        }
        let Some(client) = self.table.client(sock) else { return };
        let talk = client.subscriber.as_mut().and_then(|subscriber| subscriber.talk.as_mut());
        match talk {
            Some(talk)
                if (client.exchange != Key::NONE || !talk.waiting.is_empty()) && !planted::active(Bug::TwoEvents) =>
            {
                talk.waiting_bytes += bytes_of(&event);
                self.hubs.partial += bytes_of(&event);
                talk.waiting.push_back(event);
            }
            _ => self.act_on(sock, event),
        }
    }

    fn act_on(&mut self, sock: Sock, event: Event) {
        match event {
            Event::Pong(_) | Event::Ping(_) => {}
            Event::Close(said) => {
                let code = said.map_or(code::NORMAL, |(code, _)| code);
                self.close_socket(sock, code, "");
            }
            Event::Message { text, data } if self.has_app(sock) => {
                if self.is_asked(sock) {
                    self.tell_app(sock, &Occasion::Message { text, data });
                } else {
                    // It was to go in a moment.
                    self.close_socket(sock, code::RESTART, COME_AGAIN);
                }
            }
            Event::Message { text: true, data } => self.command(sock, &String::from_utf8_lossy(&data)),
            Event::Message { text: false, .. } => {
                self.close_socket(sock, code::UNSUPPORTED, "this hub takes no binary messages of clients");
            }
        }
    }

    /// Whether an app takes part in its hub now.
    fn has_app(&mut self, sock: Sock) -> bool {
        let subscriber = self.table.client(sock).and_then(|client| client.subscriber.as_ref());
        subscriber.is_some_and(|subscriber| subscriber.served.app.is_some())
    }

    /// Whether an app has let it in.
    fn is_asked(&mut self, sock: Sock) -> bool {
        let subscriber = self.table.client(sock).and_then(|client| client.subscriber.as_ref());
        subscriber.is_some_and(|subscriber| subscriber.talk.is_some())
    }

    /// Does what a client says over its socket.
    fn command(&mut self, sock: Sock, text: &str) {
        let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.as_mut()) else { return };
        let served = subscriber.served.clone();
        let answer = match wire::command(text) {
            Err(reason) => wire::error(None, &reason),
            Ok(Command::Subscribe { topic, .. }) if subscriber.topic_at(&self.hubs, &topic).is_some() => {
                wire::error(Some(&topic), &"is listened to already")
            }
            Ok(Command::Subscribe { topic, .. })
                if subscriber.cursors.len() >= served.settings.room.topics_per_socket =>
            {
                wire::error(Some(&topic), &"is one topic more than a client may listen to")
            }
            Ok(Command::Subscribe { topic, from }) => {
                subscriber.alone = false;
                match served.hub.subscribe(served.since(self.time.now), &topic, self.index, from) {
                    Err(refused) => wire::error(Some(&topic), &refused),
                    Ok(subscribed) => {
                        let place = self.hubs.add(subscribed.topic, subscribed.end, sock);
                        subscriber.cursors.push(Cursor::new(place, &topic, subscribed.at, subscribed.gap));
                        self.say_text(sock, &wire::subscribed(&topic, subscribed.at));
                        return self.catch_up(sock);
                    }
                }
            }
            Ok(Command::Unsubscribe { topic }) => {
                self.leave(sock, &served, &topic).unwrap_or_else(|| wire::error(Some(&topic), &"is not listened to"))
            }
        };
        self.say_text(sock, &answer);
    }

    pub(super) fn say_text(&mut self, sock: Sock, text: &str) {
        let mut frame = Vec::with_capacity(text.len() + 10);
        encode::frame(&mut frame, Opcode::Text, false, text.as_bytes());
        self.say(sock, &frame);
    }

    /// Sends a subscriber bytes of its own.
    pub(super) fn say(&mut self, sock: Sock, bytes: &[u8]) {
        let block = self.memory.pool.heap(bytes);
        self.send(sock, block.into());
    }

    /// Tells a subscriber that messages are missing; whether it goes on. Who gets bare messages has no other way to learn it than its end.
    pub(super) fn tell_gap(&mut self, sock: Sock, topic: &Topic, gap: &Gap) -> bool {
        self.count().hub_gaps.add(1);
        let Some(client) = self.table.client(sock) else { return false };
        let chunked = client.http.is_chunked();
        let Some(subscriber) = &client.subscriber else { return false };
        match subscriber.transport {
            Transport::Socket { told: true, .. } => {
                let text = wire::gap(topic.name(), gap);
                self.say_text(sock, &text);
            }
            Transport::Socket { .. } => {
                self.close_socket(sock, code::GAP, "messages are missing: load your state anew");
                return false;
            }
            Transport::Events => {
                let event = wire::gap_event(topic.name(), gap, &subscriber.positions());
                self.say(sock, &framed(event.as_bytes(), chunked));
            }
            // It stands in the document.
            Transport::Poll(_) => {}
        }
        true
    }

    /// Counts the end of a WebSocket. `pinged`: it has not answered a ping.
    pub(super) fn count_end(&self, code: u16, pinged: bool) {
        let counters = self.count();
        match code {
            code::RESTART => counters.hub_closed_restart.add(1),
            code::TOO_BIG | code::OVERLOAD => counters.hub_closed_size.add(1),
            code::GAP => counters.hub_closed_gap.add(1),
            code::SLOW => counters.hub_closed_slow.add(1),
            code::ABNORMAL if pinged => counters.hub_closed_silent.add(1),
            code::ABNORMAL => counters.hub_closed_lost.add(1),
            code::PROTOCOL | code::UNSUPPORTED | code::NOT_UTF8 => counters.hub_closed_protocol.add(1),
            _ => counters.hub_closed.add(1),
        }
    }

    /// Ends a WebSocket, with that code.
    pub(super) fn close_socket(&mut self, sock: Sock, code: u16, reason: &str) {
        if let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.as_mut()) {
            subscriber.code = code;
        }
        let mut frame = Vec::new();
        encode::close(&mut frame, code, reason);
        self.say(sock, &frame);
        self.close_client(sock, How::Flushed);
    }

    /// A subscriber's clock has run out.
    pub fn subscriber_expired(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        let chunked = client.http.is_chunked();
        let Some(subscriber) = &mut client.subscriber else { return };
        let settings = &subscriber.served.settings;
        let (ping, pong) = (settings.ping, settings.pong);
        let heard = std::mem::take(&mut subscriber.heard);
        match subscriber.transport {
            _ if subscriber.leaves => return self.send_away(sock),
            // Nothing is received until the app has had its turn.
            Transport::Socket { .. } if subscriber.is_held() => return self.arm(sock, ping),
            Transport::Poll(_) => return self.answer_poll(sock, true),
            Transport::Events => {
                self.say(sock, &framed(wire::HEARTBEAT, chunked));
                return self.arm(sock, ping);
            }
            Transport::Socket { .. } if heard => return self.arm(sock, ping),
            Transport::Socket { .. } if subscriber.pinged => return self.client_left(sock, How::Reset),
            Transport::Socket { .. } => subscriber.pinged = true,
        }
        let mut frame = Vec::new();
        encode::ping(&mut frame, b"");
        self.say(sock, &frame);
        self.arm(sock, pong);
    }

    /// The server ends, or an app takes part from now on: a subscriber is to go, not all in the same moment.
    pub fn subscriber_drains(&mut self, sock: Sock) {
        let left = self.hubs.leave_by.map_or(Duration::MAX, |by| by.saturating_duration_since(self.time.now));
        let most = spread(self.hubs.subscribers, left).as_millis().max(1);
        let spread = Duration::from_millis((u128::from(self.random()) % most) as u64);
        let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.as_mut()) else { return };
        subscriber.leaves = true;
        self.arm(sock, spread);
    }

    fn send_away(&mut self, sock: Sock) {
        let random = self.random();
        let Some(client) = self.table.client(sock) else { return };
        let chunked = client.http.is_chunked();
        let Some(subscriber) = &client.subscriber else { return };
        match subscriber.transport {
            Transport::Socket { .. } => self.close_socket(sock, code::RESTART, COME_AGAIN),
            Transport::Poll(_) => self.answer_poll(sock, true),
            Transport::Events => {
                let end: &[u8] = if chunked { b"0\r\n\r\n" } else { b"" };
                let goodbye = wire::preamble(RETRY, RETRY, random, &subscriber.positions());
                let goodbye = [&framed(goodbye.as_bytes(), chunked), end].concat();
                self.say(sock, &goodbye);
                self.stop_subscriber(sock);
                self.stream_over(Stream { connection: sock, id: 0 });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_sent_away_before_all_are_cut() {
        let seconds = Duration::from_secs;
        assert_eq!(spread(1000, seconds(30)), Duration::from_millis(500));
        assert_eq!(spread(100_000, seconds(60)), seconds(45));
        assert_eq!(spread(100_000, Duration::MAX), seconds(50));
        assert_eq!(spread(100_000, Duration::ZERO), Duration::ZERO);
    }
}
