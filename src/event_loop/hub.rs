//! Hubs, as a loop has them: who listens to which topics here, and the way of messages to them.
//!
//! A topic's messages lie in one ring that all loops share ([`crate::hub`]); who listens has a **cursor**, the number of the message that comes next.
//! When something was published, each loop with subscribers is told by mail, once however much it was, and goes around: it reads the ring once for
//! all that keep up, and hands every one the same bytes, so many in a turn. Whoever is behind is left out, and goes on by its own cursor when its outbox has
//! drained. So a slow reader costs nothing but its cursor; what has left the ring by then is missing, and said to be.
//!
//! | file | what |
//! |---|---|
//! | `events` | an app takes part: what happens on sockets becomes short requests to it |
//! | `listen` | a request becomes a subscriber |
//! | `socket` | what clients say over WebSockets; pings, deadlines, the end |
//! | `publish` | a request becomes a message |

mod events;
mod listen;
mod publish;
mod socket;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::apps::{AppTable, Served, To};
use crate::backends::{Backend, HIGH_MARK, How, Piece, Sock};
use crate::connection::{Client, Role};
use crate::hub::{Gap, Message, Position, Positions, Published, Read, Tag, Topic, wire};
use crate::mailbox;
use crate::metrics::Gauge;
use crate::planted::{self, Bug};
use crate::websocket::decode::Decoder;
use crate::websocket::deflate::{Deflater, Inflater};

use super::Loop;
use events::{Events, Talk};
pub(crate) use publish::Asked;
use socket::code;

/// Subscribers that are served in one turn.
const A_TURN: usize = 256;
/// Bytes of messages that are read of a ring at once.
const BATCH_BYTES: usize = 256 * 1024;
/// Bytes that wait for a subscriber who is behind, at most, before it gets the next message.
const BEHIND_MARK: usize = 16 * 1024;

/// Clients that are cut at once because they take nothing.
const CUT_AT_ONCE: usize = 8;

/// A client that listens.
pub(crate) struct Subscriber {
    served: Arc<Served>,
    transport: Transport,
    cursors: Vec<Cursor>,
    /// It has asked for one topic, and listens to that and nothing else ever since: what it comes back with is the position there.
    alone: bool,
    /// Something has come from it since its clock was looked at last.
    heard: bool,
    /// It was pinged, and has not answered.
    pinged: bool,
    /// Messages wait for its outbox to drain.
    waits: bool,
    /// It stands in the line of those that were slow.
    slow: bool,
    /// How often its outbox has drained.
    drained: u32,
    /// It is to go when its clock has run out.
    leaves: bool,
    /// By which number what is asked for it is counted.
    series: u16,
    /// With what code it is closed.
    code: u16,
    /// What an app is told of it with each event, where one takes part, until it is told of the end.
    talk: Option<Box<Talk>>,
}

/// How it listens.
enum Transport {
    Socket {
        decoder: Decoder,
        /// Large messages come deflated.
        deflates: bool,
        /// Messages come with their topics and ids.
        told: bool,
    },
    /// Server-sent events.
    Events,
    /// One answer, with the next messages; and the origin of the page that asks, where there is one.
    Poll(Option<Box<[u8]>>),
}

/// What a subscriber has had of a topic.
struct Cursor {
    /// The topic's number in the loop.
    topic: u32,
    /// Where the subscriber stands among those of the topic.
    place: u32,
    /// The message that it has had last.
    at: Position,
    /// Up to where all behind that is missing for it, whatever the topic has, until it is told so.
    missed: Option<Box<Position>>,
    /// What stands for the topic in what it comes back with.
    tag: Tag,
}

impl Cursor {
    /// Of one who begins there. What it has missed is told when it reads.
    fn new((topic, place): (u32, u32), name: &str, at: Position, gap: Option<Gap>) -> Cursor {
        let (at, missed) = gap.map_or((at, None), |gap| (gap.from, Some(Box::new(gap.to))));
        Cursor { topic, place, at, missed, tag: Tag::of(name) }
    }

    /// Reads what comes next, and does not move.
    fn read(&mut self, topic: &Topic, most_bytes: usize, into: &mut Vec<Arc<Message>>) -> Read {
        let Some(to) = self.missed.take() else { return topic.read(self.at, most_bytes, into) };
        let read = topic.read(*to, most_bytes, into);
        let gap = Gap { from: self.at, to: read.gap.map_or(*to, |gap| gap.to) };
        Read { gap: Some(gap), ..read }
    }
}

/// A topic that somebody listens to in this loop.
struct LocalTopic {
    topic: Arc<Topic>,
    subscribers: Vec<Sock>,
    /// The messages of the round that is under way.
    batch: Vec<Arc<Message>>,
    /// Which message was read of the ring last.
    at: Position,
    /// How many subscribers the round has not come to yet. It goes from the last to the first, so that who takes the place of one that leaves has
    /// had it already, or comes twice, which its cursor knows.
    left: usize,
    /// It stands in the line of those that have something for their subscribers.
    busy: bool,
}

/// The hubs of a loop.
#[derive(Default)]
pub(crate) struct Hubs {
    /// By their numbers.
    topics: Vec<Option<Box<LocalTopic>>>,
    free: Vec<u32>,
    /// Their numbers by where they lie.
    numbers: HashMap<*const Topic, u32>,
    busy: VecDeque<u32>,
    /// It has told itself to go on.
    told: bool,
    /// Where messages are read for one subscriber.
    read: Vec<Arc<Message>>,
    inflater: Option<Box<Inflater>>,
    deflater: Deflater,
    /// How many listen.
    subscribers: usize,
    /// Those that wait for their outboxes, or have, and how often those had drained when they came to this line: who does not take anything comes to
    /// its front.
    slow: VecDeque<(Sock, u32)>,
    /// Bytes of clients' messages that are not whole yet, or wait for their app.
    partial: usize,
    events: Events,
    /// When the server's end cuts those that have not left.
    pub leave_by: Option<Instant>,
    /// What the configuration says of each hub.
    served: Vec<Arc<Served>>,
}

impl Hubs {
    /// What the configuration says now of a hub; what it said last, if it says nothing of it any more.
    fn newest(&self, served: Arc<Served>) -> Arc<Served> {
        self.served.iter().find(|now| Arc::ptr_eq(&now.hub, &served.hub)).cloned().unwrap_or(served)
    }

    /// Whether no app is still to be told of sockets that are gone.
    pub fn is_quiet(&self) -> bool {
        self.events.is_quiet()
    }

    fn topic(&mut self, number: u32) -> Option<&mut LocalTopic> {
        self.topics.get_mut(number as usize)?.as_deref_mut()
    }

    /// Adds a subscriber to a topic, which stands there: the topic's number, and the subscriber's place.
    fn add(&mut self, topic: Arc<Topic>, at: Position, sock: Sock) -> (u32, u32) {
        let place = Arc::as_ptr(&topic);
        let number = self.numbers.get(&place).copied().unwrap_or_else(|| {
            let local = LocalTopic { topic, subscribers: Vec::new(), batch: Vec::new(), at, left: 0, busy: false };
            let number = self.free.pop().unwrap_or_else(|| {
                self.topics.push(None);
                (self.topics.len() - 1) as u32
            });
            self.topics[number as usize] = Some(Box::new(local));
            self.numbers.insert(place, number);
            number
        });
        let place = self.topic(number).map_or(0, |local| {
            local.subscribers.push(sock);
            local.subscribers.len() - 1
        });
        (number, place as u32)
    }

    /// Takes a subscriber out of a topic: the topic, and who has its place now.
    fn remove(&mut self, number: u32, place: u32) -> Option<(Arc<Topic>, Option<Sock>)> {
        let local = self.topic(number)?;
        local.subscribers.swap_remove(place as usize);
        let moved = local.subscribers.get(place as usize).copied();
        local.left = local.left.min(local.subscribers.len());
        let topic = local.topic.clone();
        if local.subscribers.is_empty() {
            self.numbers.remove(&Arc::as_ptr(&topic));
            self.busy.retain(|busy| *busy != number);
            self.topics[number as usize] = None;
            self.free.push(number);
        }
        Some((topic, moved))
    }
}

impl Subscriber {
    /// What it is sent for a message: what is its own, and what it shares with others. Its cursor is at the message already.
    fn form(&self, message: &Message, chunked: bool, deflater: &mut Deflater) -> (Option<Vec<u8>>, Piece) {
        match (&self.transport, chunked) {
            (Transport::Socket { told, deflates: true, .. }, _) => (None, message.deflated_frame(*told, deflater)),
            (Transport::Socket { told: true, .. }, _) => (None, message.envelope_frame()),
            (Transport::Socket { .. }, _) => (None, message.raw_frame()),
            _ if !self.alone => {
                let (own, rest) = wire::event_of_several(message, &self.positions(), chunked);
                (Some(own), rest)
            }
            (_, true) => (None, message.event_chunk()),
            (_, false) => (None, message.event()),
        }
    }

    /// Where it stands, as it may say when it comes back.
    fn positions(&self) -> String {
        match &self.cursors[..] {
            [cursor] if self.alone => cursor.at.to_string(),
            cursors => Positions::new(cursors.iter().map(|cursor| (cursor.tag, cursor.at))).to_string(),
        }
    }

    /// Which number app and hub know it by; 0 where no app does.
    fn number(&self) -> u128 {
        self.talk.as_ref().map_or(0, |talk| talk.id.number())
    }

    /// The topics that it listens to, as a list in a field.
    fn groups(&self, hubs: &Hubs) -> String {
        let of = |cursor: &Cursor| Some(wire::encoded(hubs.topics.get(cursor.topic as usize)?.as_ref()?.topic.name()));
        self.cursors.iter().filter_map(of).collect::<Vec<_>>().join(",")
    }

    /// Which of its cursors is that of the topic of that name.
    fn topic_at(&self, hubs: &Hubs, name: &str) -> Option<usize> {
        let is_it = |local: &LocalTopic| local.topic.name() == name;
        let of = |cursor: &Cursor| hubs.topics.get(cursor.topic as usize)?.as_deref();
        self.cursors.iter().position(|cursor| of(cursor).is_some_and(is_it))
    }

    fn cursor(&mut self, topic: u32) -> Option<&mut Cursor> {
        self.cursors.iter_mut().find(|cursor| cursor.topic == topic)
    }
}

impl<B: Backend> Loop<B> {
    /// Something was published: the loops that have subscribers are told.
    fn published_here(&self, served: &Served, topic: &str, published: &Published) {
        self.count().hub_messages.add(u64::from(!published.duplicate));
        for topic in served.hub.find(topic).iter() {
            for loop_index in published.tell.iter() {
                self.shared.postboxes.post(loop_index, mailbox::Message::Published(topic.clone()));
            }
        }
    }

    /// A new configuration holds for those who listen already, too.
    pub fn configure_hubs(&mut self, table: &AppTable) {
        let hubs = table
            .routes
            .ways
            .iter()
            .filter_map(|way| if let To::Hub(_, served) = &way.to { Some(served) } else { None });
        self.hubs.served = hubs.cloned().collect();
        if self.hubs.subscribers == 0 {
            return;
        }
        let listens = |(sock, role)| matches!(role, &Role::Client(Client { subscriber: Some(_), .. })).then_some(sock);
        let socks: Vec<Sock> = self.table.roles().filter_map(listens).collect();
        for sock in socks {
            let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.as_mut()) else {
                continue;
            };
            subscriber.served = self.hubs.newest(subscriber.served.clone());
            if subscriber.served.app.is_some() && subscriber.talk.is_none() && !subscriber.leaves {
                // It came before the app took part, and is to come again, so that the app is asked.
                self.subscriber_drains(sock);
            }
        }
    }

    /// Something was published in a topic that somebody listens to here.
    pub fn published(&mut self, topic: &Arc<Topic>) {
        let Some(number) = self.hubs.numbers.get(&Arc::as_ptr(topic)).copied() else { return };
        if let Some(local) = self.hubs.topic(number)
            && !std::mem::replace(&mut local.busy, true)
        {
            self.hubs.busy.push_back(number);
            self.go_around();
        }
    }

    /// Hands out what was published, to so many subscribers at a time that others have their turns, too.
    pub fn hand_out(&mut self) {
        self.hubs.told = false;
        let mut turns = A_TURN;
        while turns > 0
            && let Some(number) = self.hubs.busy.front().copied()
        {
            let loop_index = self.index;
            let is_full = !self.memory.has_room();
            let Some(local) = self.hubs.topic(number) else { break };
            if local.left == 0 && (is_full || local.topic.is_overrun()) {
                self.cut_slow();
            }
            let Some(local) = self.hubs.topic(number) else { continue };
            if local.left == 0 {
                local.batch.clear();
                local.topic.heard(loop_index);
                let read = local.topic.read(local.at, BATCH_BYTES, &mut local.batch);
                local.at = read.at;
                local.left = local.subscribers.len();
                if local.batch.is_empty() && read.gap.is_none() {
                    local.busy = false;
                    self.hubs.busy.pop_front();
                    continue;
                }
            }
            let batch = std::mem::take(&mut local.batch);
            while turns > 0
                && let Some(local) = self.hubs.topic(number)
                && local.left > 0
            {
                local.left -= 1;
                turns -= 1;
                let sock = local.subscribers[local.left];
                self.table.subject = sock;
                self.hand(sock, number, &batch);
            }
            if let Some(local) = self.hubs.topic(number) {
                local.batch = batch;
            }
            // The next topic has its turn, unless this one is gone, and not the first any more.
            if self.hubs.busy.pop_front_if(|first| *first == number).is_some() {
                self.hubs.busy.push_back(number);
            }
        }
        self.go_around();
    }

    /// Has what is left of the rounds go on in the next turn.
    fn go_around(&mut self) {
        if !self.hubs.busy.is_empty() && !std::mem::replace(&mut self.hubs.told, true) {
            self.shared.postboxes.post(self.index, mailbox::Message::HandOut);
        }
    }

    /// Sends a subscriber what of a round it has not had, unless it is behind.
    fn hand(&mut self, sock: Sock, number: u32, batch: &[Arc<Message>]) {
        let is_full = self.is_full(sock);
        let Some(client) = self.table.client(sock) else { return };
        let chunked = client.http.is_chunked();
        let Some(subscriber) = &mut client.subscriber else { return };
        if subscriber.waits {
            return;
        }
        let polls = matches!(subscriber.transport, Transport::Poll(_));
        let Some(cursor) = subscriber.cursor(number) else { return };
        // Numbers may go on below where it stands, where another has begun to give them.
        let is_beyond = batch.last().is_some_and(|last| last.position().offset < cursor.at.offset);
        let follows = |message: &Arc<Message>| {
            let Position { epoch, offset } = message.position();
            epoch == cursor.at.epoch && offset <= cursor.at.offset + 1
        };
        if is_full || polls || is_beyond || !batch.first().is_some_and(follows) {
            // By its own cursor, and perhaps not now.
            return self.catch_up(sock);
        }
        let had = cursor.at.offset;
        let me = subscriber.number();
        let mut pieces = 0;
        for message in batch.iter().filter(|message| message.position().offset > had) {
            let Some(client) = self.table.client(sock) else { return };
            let Some(subscriber) = &mut client.subscriber else { return };
            if let Some(cursor) = subscriber.cursor(number) {
                cursor.at = message.position();
            }
            if message.is_not_for(me) {
                continue;
            }
            let form = subscriber.form(message, chunked, &mut self.hubs.deflater);
            self.give(sock, form);
            pieces += 1;
            if self.is_full(sock) {
                self.count().hub_deliveries.add(pieces);
                return self.catch_up(sock);
            }
        }
        self.count().hub_deliveries.add(pieces);
    }

    /// Whether so much waits for a subscriber that it gets nothing more now.
    fn is_full(&mut self, sock: Sock) -> bool {
        let behind = self.table.client(sock).is_some_and(|client| client.behind);
        self.unsent(sock) > if behind { BEHIND_MARK } else { HIGH_MARK }
    }

    /// Sends a subscriber what it has not had yet, as far as it takes it.
    fn catch_up(&mut self, sock: Sock) {
        let mut at = 0;
        loop {
            let is_full = self.is_full(sock);
            let Some(client) = self.table.client(sock) else { return };
            let chunked = client.http.is_chunked();
            let Some(subscriber) = &mut client.subscriber else { return };
            if matches!(subscriber.transport, Transport::Poll(_)) {
                return self.answer_poll(sock, false);
            }
            subscriber.waits = is_full;
            if is_full {
                let (is_new, drained) = (!std::mem::replace(&mut subscriber.slow, true), subscriber.drained);
                if is_new {
                    self.line_up(sock, drained);
                }
                return self.backend.await_room(sock);
            }
            let Some(cursor) = subscriber.cursors.get_mut(at) else { return };
            let Some(local) = self.hubs.topics.get(cursor.topic as usize).and_then(Option::as_ref) else { return };
            let topic = local.topic.clone();
            self.hubs.read.clear();
            let read = cursor.read(&topic, BEHIND_MARK, &mut self.hubs.read);
            if let Some(gap) = read.gap.filter(|_| !planted::active(Bug::SilentGap)) {
                // Told first, so that a client that comes back from there has what is behind it sent again.
                subscriber.cursors[at].at = gap.to;
                if !self.tell_gap(sock, &topic, &gap) {
                    return;
                }
            }
            let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.as_mut()) else {
                return;
            };
            let mut forms = Vec::with_capacity(self.hubs.read.len());
            for message in &self.hubs.read {
                subscriber.cursors[at].at = message.position();
                if message.is_not_for(subscriber.number()) && !planted::active(Bug::NotExcluded) {
                    continue;
                }
                forms.push(subscriber.form(message, chunked, &mut self.hubs.deflater));
            }
            subscriber.cursors[at].at = read.at;
            self.count().hub_deliveries.add(forms.len() as u64);
            at += usize::from(!read.more);
            for form in forms {
                self.give(sock, form);
            }
        }
    }

    /// Sends a message.
    fn give(&mut self, sock: Sock, (own, shared): (Option<Vec<u8>>, Piece)) {
        if let Some(own) = own {
            let own = self.memory.pool.heap(&own);
            self.send(sock, own.into());
        }
        self.send(sock, shared);
    }

    /// Puts one behind those that are slow, and takes out of their line those that are gone, now and then.
    #[cold]
    fn line_up(&mut self, sock: Sock, drained: u32) {
        if self.hubs.slow.len() > 2 * self.hubs.subscribers + A_TURN {
            let table = &mut self.table;
            let mut is_there =
                |sock| table.client(sock).and_then(|it| it.subscriber.as_ref()).is_some_and(|it| it.slow);
            self.hubs.slow.retain(|(sock, _)| is_there(*sock));
        }
        self.hubs.slow.push_back((sock, drained));
    }

    /// Clients that take nothing have more than they may of what topics have given up, or all have of the memory for what waits: cuts some of them, those first that have taken nothing for
    /// the longest time. Whether there were any.
    #[cold]
    pub(super) fn cut_slow(&mut self) -> bool {
        let mut cut = 0;
        for _ in 0..self.hubs.slow.len() {
            let Some((sock, before)) = self.hubs.slow.pop_front() else { break };
            let client = self.table.client(sock).and_then(|client| client.subscriber.as_mut());
            let Some(subscriber) = client else { continue };
            match (subscriber.waits, subscriber.drained) {
                (false, _) => subscriber.slow = false,
                (true, drained) if drained != before => self.hubs.slow.push_back((sock, drained)),
                _ => {
                    subscriber.code = code::SLOW;
                    self.client_left(sock, How::Reset);
                    cut += 1;
                    if cut == CUT_AT_ONCE {
                        break;
                    }
                }
            }
        }
        cut > 0
    }

    /// Its outbox has drained.
    pub fn subscriber_drained(&mut self, sock: Sock) {
        if let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.as_mut()) {
            subscriber.drained = subscriber.drained.wrapping_add(1);
        }
        self.catch_up(sock);
        self.subscriber_resumed(sock);
    }

    /// A client that listens is gone, or goes.
    #[cold]
    pub fn stop_subscriber(&mut self, sock: Sock) {
        self.tell_end(sock);
        let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.take()) else { return };
        self.hubs.subscribers -= 1;
        if let Transport::Socket { decoder, .. } = &subscriber.transport {
            self.hubs.partial -= decoder.held();
            self.count_end(subscriber.code, subscriber.pinged);
        }
        self.gauge(&subscriber.transport).decrement();
        let left = usize::from(planted::strikes(Bug::ForgottenSubscriber, 2));
        for cursor in subscriber.cursors.iter().skip(left) {
            self.leave_topic(&subscriber.served, cursor);
        }
    }

    /// How many listen in that way.
    fn gauge(&self, transport: &Transport) -> &Gauge {
        match transport {
            Transport::Socket { .. } => &self.counters.hub_sockets,
            Transport::Events => &self.counters.hub_event_streams,
            Transport::Poll(_) => &self.counters.hub_polls,
        }
    }

    fn leave_topic(&mut self, served: &Served, cursor: &Cursor) {
        let Some((topic, moved)) = self.hubs.remove(cursor.topic, cursor.place) else { return };
        served.hub.unsubscribe(&topic, self.index);
        if let Some(moved) = moved.filter(|_| !planted::active(Bug::StalePlace))
            && let Some(client) = self.table.client(moved)
            && let Some(subscriber) = &mut client.subscriber
            && let Some(other) = subscriber.cursor(cursor.topic)
        {
            other.place = cursor.place;
        }
    }
}

#[cfg(debug_assertions)]
impl<B: Backend> Loop<B> {
    /// What must hold between two turns, for tests: subscribers and topics know each other's places, and what clients have said and nobody has heard is
    /// counted. Looks at all of them.
    pub fn check_hubs(&mut self) {
        let mut places = Vec::new();
        for (number, local) in self.hubs.topics.iter().enumerate() {
            let subscribers = local.iter().flat_map(|local| &local.subscribers).enumerate();
            places.extend(subscribers.map(|(place, sock)| (*sock, number as u32, place as u32)));
        }
        let mut cursors = Vec::new();
        let (mut subscribers, mut partial) = (0, 0);
        for (sock, role) in self.table.roles() {
            let Role::Client(Client { subscriber: Some(subscriber), .. }) = role else { continue };
            subscribers += 1;
            cursors.extend(subscriber.cursors.iter().map(|cursor| (sock, cursor.topic, cursor.place)));
            partial += subscriber.talk.as_ref().map_or(0, |talk| talk.waiting_bytes);
            partial += match &subscriber.transport {
                Transport::Socket { decoder, .. } => decoder.held(),
                _ => 0,
            };
        }
        let in_order = |(sock, topic, place): &(Sock, u32, u32)| (*topic, *place, sock.index, sock.generation);
        places.sort_unstable_by_key(in_order);
        cursors.sort_unstable_by_key(in_order);
        debug_assert!(places == cursors, "topics and subscribers do not know each other: {places:?}, {cursors:?}");
        debug_assert_eq!(subscribers, self.hubs.subscribers, "subscribers are counted wrong");
        debug_assert_eq!(partial, self.hubs.partial, "what clients have said is counted wrong");
    }
}

/// Bytes of a body, as a chunk where it leaves in such.
fn framed(bytes: &[u8], chunked: bool) -> Vec<u8> {
    match chunked {
        true => [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat(),
        false => bytes.to_vec(),
    }
}
