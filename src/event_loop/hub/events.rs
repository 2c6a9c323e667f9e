//! An app takes part: what happens on a socket becomes a short request to it, and its answer says what is to be done. How the two are written is a dialect's
//! matter ([`crate::hub::dialect`]).
//!
//! | event | when |
//! |---|---|
//! | open | before the client is answered: what the app refuses, it is refused; with the fields of the client's request |
//! | a message | it has come |
//! | close | the socket is gone |
//!
//! Each is an exchange of the socket's own connection ([`Stream::is_event`]), one at a time: meanwhile nothing more is received. The last one of a
//! socket has no connection any more, and comes when the one before it is done.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::apps::{Served, TakesPart};
use crate::backends::{Backend, How, Piece, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::config::route::is_same_to_apps;
use crate::connection::{State, Stream};
use crate::dispatch::Outcome;
use crate::exchange::{Ending, Exchange, Phase, Upload};
use crate::http::Framing;
use crate::http::head::{self, HeadLimits, Request, Response};
use crate::http::id::id_text;
use crate::http::reader::Reader;
use crate::http::rewrite::{self, FRONT, Forward};
use crate::http::route::Edits;
use crate::hub::dialect::{Act, Grip, Occasion, Reply};
use crate::hub::{From, Hub, Positions, wire};
use crate::mailbox;
use crate::metrics::series::RetryReason;
use crate::planted::{self, Bug};
use crate::websocket::decode::Event;
use crate::websocket::{Opcode, encode};

use super::listen::{No, Wish};
use super::socket::code;
use super::{Cursor, Loop, Subscriber, Transport, framed};
use crate::event_loop::Task;
use crate::event_loop::account::{Answered, CLIENT_LEFT};
use crate::event_loop::forward::{is_whole, passes_to_another};
use crate::log::Level;

/// Bytes of an answer at most, with its head.
const LONGEST_ANSWER: usize = 256 * 1024;
/// Bytes that may wait for a socket before an event of another one says more to it.
const MOST_TOLD: usize = 1024 * 1024;

/// What an app is told of each event of a socket.
pub(super) struct Talk {
    /// Whose socket it is for the app: what it may name in its answers.
    pub id: SocketId,
    /// What the client has said while the app had its turn, and bytes of that.
    pub waiting: VecDeque<Event>,
    pub waiting_bytes: usize,
    /// The host that was asked for.
    authority: Box<[u8]>,
    /// The lines that tell who the client is.
    identity: Box<[u8]>,
    /// The lines of its request in which a proxy has said where it comes from, where one may.
    front: Box<[u8]>,
    /// What the app has said of the socket.
    grip: Option<Box<Grip>>,
}

impl Talk {
    /// Whether the app is told nothing more.
    pub fn is_over(&self) -> bool {
        self.grip.as_ref().is_some_and(|grip| grip.detached)
    }
}

/// A socket, in all loops. Nobody finds one by trying: a part of it is random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketId {
    loop_index: u16,
    sock: Sock,
    token: u64,
}

/// Bits of a socket's token.
const TOKEN_BITS: u32 = 48;

impl std::fmt::Display for SocketId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SocketId { loop_index, sock, token } = self;
        write!(formatter, "{loop_index:x}-{:x}-{:x}-{token:012x}", sock.index, sock.generation)
    }
}

impl SocketId {
    fn new(loop_index: u16, sock: Sock, random: u64) -> SocketId {
        SocketId { loop_index, sock, token: random >> (u64::BITS - TOKEN_BITS) }
    }

    fn read(text: &str) -> Option<SocketId> {
        let mut parts = text.split('-').map(|part| u64::from_str_radix(part, 16).ok());
        let mut next = || parts.next().flatten();
        let (loop_index, index, generation, token) = (next()?, next()?, next()?, next()?);
        let sock = Sock { index: index.try_into().ok()?, generation: generation.try_into().ok()? };
        let id = SocketId { loop_index: loop_index.try_into().ok()?, sock, token };
        (id.to_string() == text).then_some(id)
    }

    /// As a number.
    pub fn number(self) -> u128 {
        let sock = u128::from(self.sock.index) << 32 | u128::from(self.sock.generation);
        u128::from(self.token) << (u128::BITS - TOKEN_BITS) | u128::from(self.loop_index) << 64 | sock
    }
}

/// Events that are under way, and are to be followed by something.
#[derive(Default)]
pub(super) struct Events {
    /// What is done once the app has let a client in.
    opening: HashMap<Sock, Opening>,
    /// Those whose sockets are gone.
    free: HashMap<Key, Free>,
}

/// A client that waits for the app's word.
struct Opening {
    wish: Wish,
    talk: Talk,
    /// The head of its request, for the access log.
    head: Box<[u8]>,
}

/// An event whose socket is gone.
struct Free {
    served: Arc<Served>,
    /// What comes after it.
    then: Option<Exchange>,
    /// It asks whether the client may come: where not, nothing comes after it.
    opens: bool,
}

impl Events {
    /// Whether no app is still to be told of sockets that are gone.
    pub fn is_quiet(&self) -> bool {
        self.free.is_empty()
    }
}

impl Stream {
    /// Whether what is answered is no request of the client, but what an app is told of its socket.
    #[inline]
    pub fn is_event(self) -> bool {
        self.id == EVENT
    }

    pub(super) fn of_event(connection: Sock) -> Stream {
        Stream { connection, id: EVENT }
    }
}

const EVENT: u32 = 2;

impl<B: Backend> Loop<B> {
    /// Asks the app whether a client may listen, whose request `input` begins with.
    pub(super) fn ask_to_open(
        &mut self,
        sock: Sock,
        series: u16,
        wish: Wish,
        input: &[u8],
        request: &Request,
    ) -> Result<(), No> {
        let id = SocketId::new(self.index, sock, self.random());
        let mut front = Vec::new();
        if self.accepting.tolds.is_some() {
            for field in self.heads.fields.iter().filter(|field| FRONT.has(field.kind)) {
                for part in [field.name.of(input), b": ", field.value.of(input), b"\r\n"] {
                    front.extend_from_slice(part);
                }
            }
        }
        let talk = Talk {
            id,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            authority: request.authority.of(input).into(),
            identity: self.heads.identity.as_slice().into(),
            front: front.into(),
            grip: None,
        };
        let dialect = wish.served().app.as_ref().map(|part| part.dialect).unwrap_or_default();
        let mut fields =
            format!("X-Socket-Target: {}\r\n", String::from_utf8_lossy(request.target.path.of(input))).into_bytes();
        for field in self.heads.fields.iter() {
            let name = field.name.of(input);
            let handshake = name.get(..14).is_some_and(|start| is_same_to_apps(start, b"Sec-WebSocket-"));
            // What it answers is read here, and not by the client.
            let is_own = is_same_to_apps(name, b"Accept-Encoding") || dialect.has_own(name);
            let is_own = is_own || self.apps.routes.is_told(name);
            if passes_to_another(field, name) && !handshake && !is_own {
                fields.extend_from_slice(&[name, b": ", field.value.of(input), b"\r\n"].concat());
            }
        }
        let served = wish.served().clone();
        let exchange = self.event(sock, &served, series, &talk, "", &Occasion::Open, &fields);
        let Some((exchange, text)) = exchange else {
            return Err(No::because(503, "the app of this hub is not there"));
        };
        self.become_state(sock, State::Processing);
        let Some(key) = self.begin_exchange(exchange.stream, exchange, &text) else { return Ok(()) };
        let head = if self.access.enabled() {
            input[request.method_span.start as usize..request.len].into()
        } else {
            Box::default()
        };
        self.hubs.events.opening.insert(sock, Opening { wish, talk, head });
        self.acquire(key, false);
        Ok(())
    }

    /// Tells the app of what has happened on a socket.
    pub(super) fn tell_app(&mut self, sock: Sock, occasion: &Occasion) {
        let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.as_mut()) else { return };
        let Some(talk) = subscriber.talk.take_if(|talk| !talk.is_over()) else { return };
        let (served, series) = (subscriber.served.clone(), subscriber.series);
        let groups = subscriber.groups(&self.hubs);
        let exchange = self.event(sock, &served, series, &talk, &groups, occasion, b"");
        if let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.as_mut()) {
            subscriber.talk = Some(talk);
        }
        let Some((exchange, text)) = exchange else { return self.event_failed(sock, "the app is not there") };
        let Ok(key) = self.exchanges.insert(exchange) else {
            return self.close_socket(sock, code::OVERLOAD, "too many requests are in progress");
        };
        self.keep_origin(key, &text);
        if let Some(client) = self.table.client(sock) {
            client.exchange = key;
        }
        self.acquire(key, false);
    }

    /// A socket is about to go: an event of it that is under way goes on without it, and the app is told.
    pub(super) fn tell_end(&mut self, sock: Sock) {
        let Some(client) = self.table.client(sock) else { return };
        let Some(subscriber) = &mut client.subscriber else { return };
        let (served, series, code) = (subscriber.served.clone(), subscriber.series, subscriber.code);
        let Some(talk) = subscriber.talk.take() else { return };
        self.hubs.partial -= talk.waiting_bytes;
        let groups = subscriber.groups(&self.hubs);
        let before = std::mem::replace(&mut client.exchange, Key::NONE);
        let is_told = !talk.is_over() && !planted::active(Bug::ForgottenEnd);
        let close = is_told.then(|| self.event(sock, &served, series, &talk, &groups, &Occasion::Close(code), b""));
        self.follow(before, served, close.flatten().map(|(close, _)| close), false);
    }

    /// A client leaves while it waits for the app's word. The app that has the question may let it in, and is then told that it is gone. Whether it is so.
    pub fn leaves_opening(&mut self, sock: Sock) -> bool {
        if !self.hubs.events.opening.contains_key(&sock) {
            return false;
        }
        let Some(key) = self.table.client(sock).map(|client| client.exchange) else { return false };
        let asked = self.exchanges.lookup(key).filter(|exchange| exchange.phase == Phase::Awaiting);
        let Some(series) = asked.map(|exchange| exchange.series) else { return false };
        let Some(Opening { wish, talk, head }) = self.hubs.events.opening.remove(&sock) else { return false };
        let served = wish.served().clone();
        let close = self.event(sock, &served, series, &talk, "", &Occasion::Close(code::ABNORMAL), b"");
        let close = close.map(|(close, _)| close);
        self.count().of_series(series).ended(CLIENT_LEFT);
        self.log_answer(sock, &head, None, &Answered { series, status: CLIENT_LEFT, ..Answered::default() });
        if let Some(client) = self.table.client(sock) {
            client.exchange = Key::NONE;
        }
        self.follow(key, served, close, true);
        true
    }

    /// A socket is gone: its last event comes when the one before it is done.
    fn follow(&mut self, before: Key, served: Arc<Served>, mut close: Option<Exchange>, opens: bool) {
        if let Some(close) = &mut close {
            close.stream.connection = Sock::NONE;
        }
        match (self.exchanges.lookup_mut(before), close) {
            (Some(exchange), then) => {
                exchange.stream.connection = Sock::NONE;
                self.hubs.events.free.insert(before, Free { served, then, opens });
            }
            (None, Some(close)) => self.begin_last(served, close),
            (None, None) => {}
        }
    }

    fn begin_last(&mut self, served: Arc<Served>, close: Exchange) {
        // Where there are as many exchanges as there may be, the app has more to do than to hear of this.
        if let Ok(key) = self.exchanges.insert(close) {
            self.hubs.events.free.insert(key, Free { served, then: None, opens: false });
            self.acquire(key, false);
        }
    }

    /// What comes after an event whose socket is gone; whose it was.
    fn go_on_without(&mut self, key: Key, refused: bool) -> Option<Arc<Served>> {
        let Free { served, then, opens } = self.hubs.events.free.remove(&key)?;
        if let Some(close) = then.filter(|_| !(opens && refused)) {
            self.begin_last(served.clone(), close);
        }
        Some(served)
    }

    /// An event has ended without an answer, if it was one; one that was to let a client in becomes the exchange of its request, and is answered
    /// as that. Whether it was one of another kind.
    pub fn event_unanswered(&mut self, key: Key, ending: &Ending<'_>) -> bool {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return false };
        if !exchange.stream.is_event() {
            return false;
        }
        let sock = exchange.stream.connection;
        if self.hubs.events.opening.remove(&sock).is_some() {
            exchange.stream.id = 0;
            return false;
        }
        if let Ending::Failed { status, .. } = ending {
            exchange.answer.status = *status;
        }
        self.count().requests.add(1);
        self.count().hub_events_failed.add(u64::from(!matches!(ending, Ending::Left { .. })));
        true
    }

    /// What becomes of the socket of an event that has ended so.
    pub fn event_over(&mut self, key: Key, sock: Sock, ending: &Ending<'_>) {
        let reason = if let Ending::Failed { reason, .. } = ending { reason } else { "" };
        if self.go_on_without(key, false).is_some() {
            return;
        }
        if let Some(client) = self.table.client(sock) {
            client.exchange = Key::NONE;
        }
        self.event_failed(sock, reason);
        self.work.push_back(Task::Resume(sock));
    }

    /// The request that tells an app of something, and its head as a client would have sent it.
    #[allow(clippy::too_many_arguments)]
    fn event(
        &mut self,
        sock: Sock,
        served: &Served,
        series: u16,
        talk: &Talk,
        groups: &str,
        occasion: &Occasion,
        fields: &[u8],
    ) -> Option<(Exchange, Vec<u8>)> {
        let TakesPart { app, path, dialect } = served.app.as_ref()?;
        let app = self.apps.get(*app)?.clone();
        let (lines, data) = dialect.event(occasion, &talk.id, talk.grip.as_deref());
        let groups = if groups.is_empty() { String::new() } else { format!("X-Socket-Groups: {groups}\r\n") };
        let (host, length) = (String::from_utf8_lossy(&talk.authority), data.len());
        let begin = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n");
        let own = format!("X-Socket-Id: {}\r\n{groups}Content-Length: {length}\r\n", talk.id);
        let rest = if *occasion == Occasion::Open { fields } else { &talk.front };
        let text = [begin.as_bytes(), &lines, own.as_bytes(), rest, b"\r\n"].concat();
        // It is as long as the names of its topics are, and what its app has kept: what a client may send is no measure of it.
        let count = memchr::memchr_iter(b'\n', &text).count();
        let limits = HeadLimits::new(2 * text.len(), count);
        let request = head::request(&text, &limits, &mut self.heads.fields).ok().flatten()?;
        self.find_origin(sock, &text);
        let client = self.table.client(sock)?;
        let listener = &self.accepting.listeners[client.listener as usize];
        let certificate = self.secure.as_ref().map_or("", |secure| secure.certificate(sock));
        let own = id_text(self.heads.next_id);
        self.heads.next_id = self.heads.next_id.wrapping_add(1);
        let start = self.time.day.start(self.time.nanos());
        let told = Forward {
            keep_alive: app.settings.sharing.keepalive,
            edits: Some(&Edits::default()),
            identity: &talk.identity,
            ..listener.forward(&client.arrival, (&self.heads.origin, certificate), &own, start)
        };
        let room = rewrite::request_room(&request, &self.heads.fields, &told);
        let head = self.memory.scratch.write(room, |out| {
            rewrite::request(out, &text, &request, &self.heads.fields, &told);
        });
        let head = head.settle(&self.memory.pool);
        let mut exchange = Exchange::new(Stream::of_event(sock), app, series, &request, head, own, &self.time);
        exchange.request.upload = Upload::Whole;
        exchange.request.bytes = length as u64;
        if length > 0 {
            exchange.request.body.push(self.memory.pool.heap(&data));
        }
        self.count().hub_events.add(1);
        Some((exchange, text))
    }

    /// The head of the answer to an event has come; `input` begins with it.
    #[cold]
    pub fn event_answered(&mut self, key: Key, input: Block, response: &Response) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if (response.busy || response.draining) && exchange.may_be_declined() {
            return self.retry(key, RetryReason::Declined);
        }
        let Some(is_here) = is_whole(&input, response) else {
            let reason = "the answer to an event of a hub is broken";
            return self.finish(key, Ending::Failed { status: 502, reason, outcome: Some(Outcome::Malformed) });
        };
        if !is_here {
            if response.framing == Framing::UntilClose || input.len() >= LONGEST_ANSWER {
                let reason = "the answer to an event of a hub is too long, or does not tell its length";
                return self.finish(key, Ending::Failed { status: 502, reason, outcome: Some(Outcome::Malformed) });
            }
            let link = exchange.link();
            self.heard(key);
            if let Some(link) = self.table.link(link) {
                link.input = Some(input.settle(&self.memory.pool));
            }
            return self.backend.recv(link, Size::Small);
        }
        let (sock, series) = (exchange.stream.connection, exchange.series);
        let (status, body) = (response.status, body_of(&input, response));
        let head = input[..response.len].to_vec();
        self.release_asked(key, input, response);
        if let Some(exchange) = self.exchanges.lookup_mut(key) {
            exchange.answer.status = status;
            exchange.answer.bytes = body.len() as u64;
        }
        let answer = Reply { status, head: &head, body: &body };
        let is_good = (200..300).contains(&status);
        let (served, acts) = match self.hubs.events.opening.remove(&sock) {
            Some(opening) => {
                let served = opening.wish.served().clone();
                let Some(acts) = self.let_in((key, sock), opening, series, &answer) else { return };
                (Some(served), Ok(acts))
            }
            None => {
                let gone = self.go_on_without(key, !is_good);
                let subscriber = self.table.client(sock).and_then(|client| client.subscriber.as_mut());
                let served = gone.or_else(|| subscriber.as_ref().map(|subscriber| subscriber.served.clone()));
                let talk = subscriber.and_then(|subscriber| subscriber.talk.as_mut());
                let mut nobody = None;
                let grip = talk.map_or(&mut nobody, |talk| &mut talk.grip);
                let acts = served.as_ref().map_or(Ok(Vec::new()), |served| read(served, &answer, false, grip));
                (served, acts)
            }
        };
        self.count().requests.add(1);
        self.account(key, false);
        self.exchanges.discard(key);
        if let Some(client) = self.table.client(sock) {
            client.exchange = Key::NONE;
        }
        let Some(served) = served else { return };
        match acts {
            Ok(acts) => acts.into_iter().for_each(|act| self.carry_out(sock, &served, act)),
            Err(reason) => {
                self.count().hub_events_failed.add(1);
                self.event_failed(sock, &reason);
            }
        }
        self.work.push_back(Task::Resume(sock));
    }

    /// Has a client listen, if that is what the app has said, and gives what else it has said. Else its request is answered by that exchange.
    fn let_in(
        &mut self,
        (key, sock): (Key, Sock),
        opening: Opening,
        series: u16,
        answer: &Reply<'_>,
    ) -> Option<Vec<Act>> {
        let Opening { wish, mut talk, head } = opening;
        // It may be answered at once, or closed, and is not to take the question for an event that is under way.
        if let Some(client) = self.table.client(sock) {
            client.exchange = Key::NONE;
        }
        let opened = match read(wish.served(), answer, true, &mut talk.grip) {
            Ok(acts) => self.welcome(sock, wish, talk, series, acts),
            Err(_) if !(200..300).contains(&answer.status) => Err(refusal(answer.status)),
            Err(reason) => {
                self.refuse_taken(sock, wish.served(), &talk, series, code::ABNORMAL);
                Err(No(502, reason))
            }
        };
        match opened {
            Ok((status, acts)) => {
                // How long it listens is nobody's latency.
                self.count().of_series(series).ended(status);
                self.log_answer(sock, &head, None, &Answered { series, status, ..Answered::default() });
                Some(acts)
            }
            Err(No(status, reason)) => {
                if let Some(exchange) = self.exchanges.lookup_mut(key) {
                    exchange.stream.id = 0;
                }
                let ending = Ending::Failed { status, reason: &reason, outcome: Some(Outcome::Unused) };
                self.finish(key, ending);
                None
            }
        }
    }

    /// Has a client listen whom its app lets in, to what it asks for and to what the app has it join, before it is told anything of either: its status, and
    /// what else is to be done.
    fn welcome(
        &mut self,
        sock: Sock,
        mut wish: Wish,
        talk: Talk,
        series: u16,
        acts: Vec<Act>,
    ) -> Result<(u16, Vec<Act>), No> {
        let (served, left_at) = (wish.served().clone(), wish.left_at());
        let end_of = |act: &Act| match act {
            Act::Close(code, _) => Some(*code),
            Act::Cut => Some(code::ABNORMAL),
            _ => None,
        };
        if let Some(code) = acts.iter().find_map(end_of).filter(|_| !wish.is_for_socket()) {
            // Of what is no socket nothing is closed: it does not begin.
            self.refuse_taken(sock, &served, &talk, series, code);
            let for_others = acts.into_iter().filter(|act| matches!(act, Act::Spread { .. }));
            for_others.for_each(|act| self.carry_out(sock, &served, act));
            return Err(refusal(403));
        }
        let begun = self.find_begin(&wish);
        let begun = begun.inspect_err(|_| self.refuse_taken(sock, &served, &talk, series, code::ABNORMAL))?;
        let status = self.take_in(sock, wish, begun, series, Some(talk));
        let mut others = Vec::new();
        for act in acts {
            let told = match act {
                Act::Join(topic) => self.join(sock, &served, &topic, left_at.as_ref()),
                Act::Leave(topic) => self.leave(sock, &served, &topic),
                other => {
                    others.push(other);
                    None
                }
            };
            told.iter().for_each(|text| self.tell_change(sock, text, true));
        }
        self.begin_to_tell(sock);
        Ok((status, others))
    }

    /// A client is refused whom its app takes for one that is in: the app is told of the end.
    fn refuse_taken(&mut self, sock: Sock, served: &Arc<Served>, talk: &Talk, series: u16, code: u16) {
        if !talk.is_over() {
            let close = self.event(sock, served, series, talk, "", &Occasion::Close(code), b"");
            self.follow(Key::NONE, served.clone(), close.map(|(close, _)| close), false);
        }
    }

    /// Tells a client that what it has said did not reach the app.
    fn event_failed(&mut self, sock: Sock, reason: &str) {
        if self.is_socket(sock) {
            self.say_text(sock, &wire::error(None, &reason));
        }
    }

    /// Does what an app's answer wants. `sock` may be gone.
    fn carry_out(&mut self, sock: Sock, served: &Arc<Served>, act: Act) {
        let is_socket = self.is_socket(sock);
        match act {
            Act::Join(topic) => {
                if let Some(text) = self.join(sock, served, &topic, None) {
                    self.tell_change(sock, &text, false);
                    self.catch_up(sock);
                }
            }
            Act::Leave(topic) => {
                if let Some(text) = self.leave(sock, served, &topic) {
                    self.tell_change(sock, &text, false);
                }
            }
            Act::Spread { text, to, except } => self.spread(sock, served, &text, &to, &except),
            Act::Say(opcode, data) if is_socket => {
                let mut frame = Vec::with_capacity(data.len() + encode::MOST_OF_HEADER);
                match opcode {
                    Opcode::Ping => encode::ping(&mut frame, &data),
                    Opcode::Pong => encode::pong(&mut frame, &data),
                    _ => {
                        encode::frame(&mut frame, opcode, false, &data);
                        self.count().hub_deliveries.add(1);
                    }
                }
                self.say(sock, &frame);
            }
            Act::Close(code, reason) if is_socket => {
                // What was said in the same breath comes before it.
                self.catch_up(sock);
                if self.is_socket(sock) {
                    self.close_socket(sock, code, &reason);
                }
            }
            Act::Cut if is_socket => self.client_left(sock, How::Reset),
            // Who listens in another way has nothing of a socket; what is over was noted when it was read.
            Act::Say(..) | Act::Close(..) | Act::Cut | Act::Detach => {}
        }
    }

    /// Whether it is a WebSocket that listens.
    fn is_socket(&mut self, sock: Sock) -> bool {
        let is_socket = |subscriber: &Subscriber| matches!(subscriber.transport, Transport::Socket { .. });
        self.table.client(sock).and_then(|client| client.subscriber.as_deref()).is_some_and(is_socket)
    }

    /// Sends a message of an app to whom it names.
    fn spread(&mut self, sock: Sock, served: &Arc<Served>, text: &str, to: &[String], except: &[String]) {
        let except: Vec<u128> = except.iter().filter_map(|id| SocketId::read(id)).map(SocketId::number).collect();
        // One for all: however many they are, it is there once.
        let mut frame = Vec::with_capacity(text.len() + 10);
        encode::frame(&mut frame, Opcode::Text, false, text.as_bytes());
        let frame: Arc<[u8]> = frame.into();
        served.hub.lend(frame.clone());
        for target in to {
            if let Some(id) = SocketId::read(target) {
                if except.contains(&id.number()) {
                    continue;
                }
                if id.loop_index == self.index {
                    // At once: what the app wants next may be its end.
                    self.told_by_app((id.sock, id.token), &served.hub, frame.clone());
                } else if usize::from(id.loop_index) < self.shared.postboxes.len() {
                    let said = mailbox::Message::Say(id.sock, id.token, served.hub.clone(), frame.clone());
                    self.shared.postboxes.post(id.loop_index, said);
                }
                continue;
            }
            if let Err(refused) = self.publish_of_app(served, target, text, &except) {
                let fields: [(&str, &dyn std::fmt::Display); 2] = [("topic", target), ("reason", &refused)];
                self.shared.log.seldom(Level::Warn, "what an app says to a hub is not published", &fields);
                self.event_failed(sock, &format!("the app's message is not published: {refused}"));
            }
        }
    }

    /// Has a subscriber listen to a topic more: from where it has left that when it comes back, else from now on. Who comes back and cannot say where it was
    /// there is told of a gap, but for a topic that is named as the socket itself. What it is to be told before it reads, if it does listen now.
    fn join(&mut self, sock: Sock, served: &Served, name: &str, left_at: Option<&Positions>) -> Option<String> {
        let now = served.since(self.time.now);
        let subscriber = self.table.client(sock).and_then(|client| client.subscriber.as_mut())?;
        if subscriber.topic_at(&self.hubs, name).is_some() {
            return None;
        }
        if subscriber.cursors.len() >= served.settings.room.topics_per_socket {
            self.not_joined(sock, name, &"it is one topic more than a client may listen to");
            return None;
        }
        // What bears its own name has begun with it.
        let is_new = SocketId::read(name).is_some_and(|id| id.number() == subscriber.number());
        let from = left_at.filter(|_| !is_new).map_or(From::Now, |positions| From::After(positions.of(name)));
        let subscribed = match served.hub.subscribe(now, name, self.index, from) {
            Ok(subscribed) => subscribed,
            Err(refused) => {
                self.not_joined(sock, name, &refused);
                return None;
            }
        };
        let place = self.hubs.add(subscribed.topic, subscribed.end, sock);
        subscriber.cursors.push(Cursor::new(place, name, subscribed.at, subscribed.gap));
        subscriber.alone = false;
        Some(wire::subscribed(name, subscribed.at))
    }

    /// A socket does not listen to what its app has said.
    fn not_joined(&mut self, sock: Sock, name: &str, reason: &dyn std::fmt::Display) {
        let fields: [(&str, &dyn std::fmt::Display); 2] = [("topic", &name), ("reason", reason)];
        self.shared.log.seldom(Level::Warn, "a topic that an app has a client join is not joined", &fields);
        if self.is_socket(sock) {
            self.say_text(sock, &wire::error(Some(name), &format!("the app's topic is not joined: {reason}")));
        }
    }

    /// Has a subscriber listen to a topic no more: what it is to be told, if it did.
    pub(super) fn leave(&mut self, sock: Sock, served: &Served, name: &str) -> Option<String> {
        let subscriber = self.table.client(sock).and_then(|client| client.subscriber.as_mut())?;
        let at = subscriber.topic_at(&self.hubs, name)?;
        subscriber.alone = false;
        let cursor = subscriber.cursors.swap_remove(at);
        self.leave_topic(served, &cursor);
        Some(wire::unsubscribed(name))
    }

    /// Tells a client what it listens to now, so that it can say so when it comes back; as far as it can be told. `begins`: it is told of all at once next.
    fn tell_change(&mut self, sock: Sock, text: &str, begins: bool) {
        let Some(client) = self.table.client(sock) else { return };
        let chunked = client.http.is_chunked();
        let Some(subscriber) = &client.subscriber else { return };
        match subscriber.transport {
            Transport::Socket { told: true, .. } => self.say_text(sock, text),
            Transport::Events if !begins => {
                let event = wire::id_event(&subscriber.positions());
                self.say(sock, &framed(event.as_bytes(), chunked));
            }
            _ => {}
        }
    }

    /// An app has something for a socket of that hub, which may be gone. No back-pressure reaches who says it: one that does not take it is closed.
    pub fn told_by_app(&mut self, (sock, token): (Sock, u64), hub: &Arc<Hub>, frame: Arc<[u8]>) {
        let is_meant = |subscriber: &Subscriber| {
            let is_it = subscriber.talk.as_ref().is_some_and(|talk| talk.id.token == token);
            is_it
                && Arc::ptr_eq(&subscriber.served.hub, hub)
                && matches!(subscriber.transport, Transport::Socket { .. })
        };
        if !self.table.client(sock).and_then(|client| client.subscriber.as_deref()).is_some_and(is_meant) {
            return;
        }
        if hub.is_overrun() {
            self.cut_slow();
        }
        if self.unsent(sock) > MOST_TOLD {
            return self.close_socket(sock, code::GAP, "messages are missing: load your state anew");
        }
        self.count().hub_deliveries.add(1);
        self.send(sock, Piece::shared(frame));
        if self.is_full(sock) {
            self.catch_up(sock);
        }
    }
}

/// What a client is told that the app does not let in.
fn refusal(status: u16) -> No {
    match status {
        400..=499 => No::because(status, "the app does not let you in"),
        _ => No::because(503, "the app of this hub has no answer"),
    }
}

/// What an answer wants, if it is one that says so.
fn read(served: &Served, answer: &Reply<'_>, opens: bool, grip: &mut Option<Box<Grip>>) -> Result<Vec<Act>, String> {
    if !(200..300).contains(&answer.status) {
        return Err(format!("the app has answered {}", answer.status));
    }
    served.app.as_ref().map(|part| part.dialect).unwrap_or_default().read(answer, opens, grip)
}

/// The body of an answer that is here as a whole; `input` begins with its head.
fn body_of(input: &Block, response: &Response) -> Vec<u8> {
    let (mut rest, mut reader) = (input.clone(), Reader::new(response.framing));
    rest.advance(response.len);
    let mut body = Vec::new();
    while let Ok(Some(run)) = reader.take(&mut rest) {
        body.extend_from_slice(&run);
    }
    body
}
