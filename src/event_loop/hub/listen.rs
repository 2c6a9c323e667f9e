//! A request becomes a subscriber: over a WebSocket, as a stream of events, or for one answer.
//!
//! | the client asks | it gets |
//! |---|---|
//! | for an upgrade to `websocket` | a WebSocket; with the subprotocol `hub.v1` each message comes with its topic and id |
//! | for `text/event-stream`, and not rather for JSON | server-sent events, until it leaves |
//! | for anything else | one JSON document, as soon as there are messages, or when it has waited for `poll` |
//!
//! Subscribing, and finding out where what is to be sent again begins, is one step under the topic's lock, so that nothing is published
//! between the two.

use std::sync::Arc;
use std::time::Duration;

use crate::backends::{Backend, Sock};
use crate::connection::State;
use crate::http::Framing;
use crate::http::fields::Kind;
use crate::http::head::Request;
use crate::http::reply;
use crate::hub::wire::{self, Listen};
use crate::hub::{Positions, Refused, Subscribed};
use crate::websocket::decode::Decoder;
use crate::websocket::handshake::{Handshake, Refusal, handshake, switching};

use super::events::Talk;
use super::publish::readable_by;
use super::socket::code;
use super::{Cursor, Loop, Subscriber, Transport, framed};
use crate::apps::Served;

/// The subprotocol in which messages come with their topics and ids.
const TOLD: &str = "hub.v1";
/// For how long a client that was cut off waits before it comes again. It is told a time between this and twice as long, so that not all come at
/// once.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// What a request to listen asks for.
pub(super) struct Wish {
    served: Arc<Served>,
    way: Way,
    listen: Listen,
    /// The origin that the page is of, where it is another than ours.
    origin: Option<Vec<u8>>,
}

impl Wish {
    pub fn served(&self) -> &Arc<Served> {
        &self.served
    }

    /// Whether it asks for a WebSocket.
    pub fn is_for_socket(&self) -> bool {
        matches!(self.way, Way::Socket(_))
    }

    /// Where it was in all topics, if it comes back.
    pub fn left_at(&mut self) -> Option<Positions> {
        self.listen.left_at.take()
    }
}

enum Way {
    Socket(Box<Handshake>),
    Events,
    Poll,
}

/// Why it does not: the status, and what to do.
pub(super) struct No(pub u16, pub String);

impl No {
    pub fn because(status: u16, reason: &str) -> No {
        No(status, reason.to_owned())
    }
}

/// The query of a path.
pub(super) fn query_of(target: &[u8]) -> &[u8] {
    memchr::memchr(b'?', target).map_or(&b""[..], |at| &target[at + 1..])
}

impl<B: Backend> Loop<B> {
    /// Reads what a request to listen asks for. `input` begins with its head.
    pub(super) fn wish(&self, served: &Arc<Served>, input: &[u8], request: &Request) -> Result<Wish, No> {
        if request.framing != Framing::None {
            return Err(No::because(400, "who listens sends no body"));
        }
        let fields = &self.heads.fields;
        let last = fields.find_name(input, "last-event-id");
        let listen =
            wire::listen(query_of(request.target.path.of(input)), last, served.settings.room.topics_per_socket)
                .map_err(|reason| No(400, reason))?;
        let settings = served.hub.settings();
        if listen.topics.iter().any(|(name, _)| !settings.has_topic(name)) {
            return Err(No(404, Refused::NoSuchTopic.to_string()));
        }
        let way = match handshake(input, request, fields) {
            Ok(mut handshake) => {
                handshake.deflate = handshake.deflate.filter(|_| served.settings.deflate);
                Way::Socket(Box::new(handshake))
            }
            Err(Refusal::Version) => {
                return Err(No::because(426, "this server speaks version 13 of the WebSocket protocol"));
            }
            Err(Refusal::Malformed(reason)) => return Err(No::because(400, reason)),
            Err(Refusal::NotAnUpgrade) => {
                let accepts = fields.iter().filter(|field| field.kind == Kind::Accept);
                let accepts = accepts.map(|field| field.value.of(input));
                let events = reply::prefers(accepts, "text/event-stream", "application/json");
                if events { Way::Events } else { Way::Poll }
            }
        };
        let origin = fields.find_name(input, "origin").map(<[u8]>::to_vec);
        Ok(Wish { served: served.clone(), way, listen, origin })
    }

    /// Has a client listen, and answers it: the status.
    pub(super) fn subscribe(&mut self, sock: Sock, wish: Wish, series: u16) -> Result<u16, No> {
        let begun = self.find_begin(&wish)?;
        let status = self.take_in(sock, wish, begun, series, None);
        self.begin_to_tell(sock);
        Ok(status)
    }

    /// Where a client begins in each topic that it asks for.
    pub(super) fn find_begin(&self, wish: &Wish) -> Result<Vec<Subscribed>, No> {
        let hub = &wish.served.hub;
        let mut begun = Vec::with_capacity(wish.listen.topics.len());
        let now = wish.served.since(self.time.now);
        for (name, from) in &wish.listen.topics {
            match hub.subscribe(now, name, self.index, *from) {
                Ok(subscribed) => begun.push(subscribed),
                Err(refused) => {
                    begun.iter().for_each(|Subscribed { topic, .. }| hub.unsubscribe(topic, self.index));
                    let status = if refused == Refused::NoSuchTopic { 404 } else { 503 };
                    return Err(No(status, refused.to_string()));
                }
            }
        }
        Ok(begun)
    }

    /// A client that begins there listens, and is sent the head of its answer: the status. What comes behind that is told by [`Loop::begin_to_tell`].
    pub(super) fn take_in(
        &mut self,
        sock: Sock,
        wish: Wish,
        begun: Vec<Subscribed>,
        series: u16,
        talk: Option<Talk>,
    ) -> u16 {
        let Wish { served, way, origin, .. } = wish;
        // It may have waited for the app's word while that was changed.
        let served = self.hubs.newest(served);
        let begin = |Subscribed { topic, at, gap, end, .. }| {
            let place = self.hubs.add(Arc::clone(&topic), end, sock);
            Cursor::new(place, topic.name(), at, gap)
        };
        let cursors: Vec<_> = begun.into_iter().map(begin).collect();
        self.become_state(sock, State::WritingResponse);
        let transport = self.answer_subscriber(sock, way, origin.as_deref());
        let status = if matches!(transport, Transport::Socket { .. }) { 101 } else { 200 };
        self.hubs.subscribers += 1;
        self.gauge(&transport).increment();
        let after = match transport {
            Transport::Poll(_) => served.settings.poll,
            _ => served.settings.ping,
        };
        let subscriber = Subscriber {
            served,
            transport,
            alone: cursors.len() == 1,
            cursors,
            heard: false,
            pinged: false,
            waits: false,
            slow: false,
            drained: 0,
            leaves: false,
            series,
            code: code::ABNORMAL,
            talk: talk.map(Box::new),
        };
        if let Some(client) = self.table.client(sock) {
            client.subscriber = Some(Box::new(subscriber));
        }
        self.arm(sock, after);
        if self.accepting.draining {
            self.subscriber_drains(sock);
        }
        status
    }

    /// Tells a client that has just begun to listen where it is, where it is to know that, and all that it has not had.
    pub(super) fn begin_to_tell(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        let chunked = client.http.is_chunked();
        let Some(subscriber) = &client.subscriber else { return };
        if matches!(subscriber.transport, Transport::Events) {
            let at = subscriber.positions();
            let begin = wire::preamble(RETRY, RETRY, self.random(), &at);
            self.say(sock, &framed(begin.as_bytes(), chunked));
        }
        self.catch_up(sock);
    }

    /// Sends the head of the answer to a client that listens.
    fn answer_subscriber(&mut self, sock: Sock, way: Way, origin: Option<&[u8]>) -> Transport {
        let date = self.time.day.date;
        let mut head = Vec::with_capacity(256);
        let transport = match way {
            Way::Socket(handshake) => {
                let told = handshake.protocols.iter().any(|protocol| protocol == TOLD);
                let lines = [b"Date: ", &date[..], b"\r\n"].concat();
                switching(&mut head, &handshake, told.then_some(TOLD), &lines);
                // What is deflated is deflated once for all, in the window that nearly all of them have.
                let deflates = handshake.deflate.is_some_and(|deflate| deflate.server_max_window_bits == 15);
                Transport::Socket { decoder: Decoder::new(handshake.deflate.is_some()), deflates, told }
            }
            Way::Poll => return Transport::Poll(origin.map(Box::from)),
            Way::Events => {
                let keep_alive = self.decide_keep_alive(sock);
                let Some(client) = self.table.client(sock) else { return Transport::Events };
                // It ends as an answer without a length does.
                client.http.decide_framing(Framing::UntilClose);
                let chunked = client.http.is_chunked();
                client.http.keep_alive &= keep_alive;
                head.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\nX-Accel-Buffering: no\r\n");
                if chunked {
                    head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
                }
                if let Some(origin) = origin {
                    head.extend_from_slice(readable_by(origin).as_bytes());
                }
                head.extend_from_slice(
                    &[b"Date: ", &date[..], reply::connection(client.http.version, client.http.keep_alive)].concat(),
                );
                Transport::Events
            }
        };
        let head = self.memory.pool.heap(&head);
        self.send_head(sock, head);
        transport
    }
}
