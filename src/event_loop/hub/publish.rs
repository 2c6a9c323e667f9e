//! Requests to a hub: who may ask for what, a request becomes a message, and answers that are one document.

use std::sync::Arc;

use crate::access::scheme;
use crate::apps::Served;
use crate::backends::{Backend, Sock};
use crate::buffers::block::{Block, Writer};
use crate::buffers::slots::Key;
use crate::connection::{Client, Role, State, Stream};
use crate::exchange::{Exchange, Phase, Source};
use crate::http::head::Request;
use crate::http::id::id_text;
use crate::http::query;
use crate::http::reply::Direct;
use crate::http::{Framing, Method, find_lines};
use crate::hub::{Payload, Published, Refused, wire};
use crate::mailbox::{self, desk};

use super::listen::{No, Wish, query_of};
use super::{Loop, Transport};
use crate::event_loop::{Answered, Leads, LoopRoute, Written};

/// Bytes of a notice beside its message: names, the id, escapes of JSON.
const AROUND: u64 = 16 * 1024;

impl Served {
    /// Bytes that the body of a request may have which is to be published.
    pub fn most_of_notice(&self) -> u64 {
        self.settings.room.message as u64 + AROUND
    }
}

impl Exchange {
    /// Bytes that its body may have, where that is to be published in a hub, and no app gets it.
    #[inline]
    pub fn most_of_notice(&self) -> Option<u64> {
        match &self.source {
            Source::Notice(served) => Some(served.most_of_notice()),
            _ => None,
        }
    }

    /// Bytes that its body may have.
    #[inline]
    pub fn most_of_body(&self) -> u64 {
        self.most_of_notice().unwrap_or(self.app.server.bounds.body)
    }

    /// Whether its client has announced more than that.
    pub(crate) fn announces_too_much(&self, client: Option<&Client>) -> bool {
        let left = self.most_of_body().saturating_sub(self.request.bytes);
        client.and_then(|client| client.body.as_ref()).is_some_and(|body| body.reader.announced() > left)
    }
}

/// Topics that are shown at once; `behind=NAME` asks for the next.
const MOST_SHOWN: usize = 1000;
/// Bytes of messages in one answer, but for the last of them. Who has not had all of them by then asks again.
const POLL_BYTES: usize = 256 * 1024;

/// What a request asks of a hub.
pub(crate) enum Asked {
    /// To listen, which it does by now.
    Listens,
    /// To publish what its body says.
    Publish,
    /// Something that is answered at once.
    Answer(Written),
    /// Nothing: the route is gone.
    Nothing,
}

/// What a 405 says, with the methods behind it.
const ASKED_WITH: &str = "this is asked for with ";

impl<B: Backend> Loop<B> {
    /// What a request on the route of a hub asks for. `input` begins with its head.
    #[cold]
    pub fn asked_of_hub(&mut self, number: usize, sock: Sock, input: &Block, request: &Request) -> Asked {
        let LoopRoute { leads: Leads::Hub(_, served), series, .. } = self.apps.routes.get(number) else {
            return Asked::Nothing;
        };
        let (served, series) = (served.clone(), *series);
        let (page, asked) = match self.page_of(&served, sock, input, request) {
            Ok(page) => {
                let asked = self.read_asked(&served, sock, (input, request), !page.is_empty());
                (page, asked)
            }
            Err(no) => (String::new(), Err(no)),
        };
        if let Ok(Some(_)) = asked {
            self.keep_rest(sock, input, request);
        }
        let asked = asked.and_then(|wish| match wish {
            Some(wish) if served.app.is_some() => {
                self.ask_to_open(sock, series, wish, input, request).map(|()| Some(0)).map_err(|no| self.no(&no))
            }
            Some(wish) => self.subscribe(sock, wish, series).map(Some).map_err(|no| self.no(&no)),
            None => Ok(None),
        });
        match asked {
            Ok(None) => Asked::Publish,
            Ok(Some(0)) => Asked::Listens,
            Ok(Some(status)) => {
                // How long it listens is nobody's latency.
                self.counters.of_series(series).ended(status);
                let head = &input[request.method_span.start as usize..request.len];
                let answered = Answered { series, status, ..Answered::default() };
                self.log_answer(sock, head, self.heads.fields.shown_of(input), &answered);
                Asked::Listens
            }
            Err(direct) => {
                let direct = direct.with_lines(page.as_bytes());
                self.counters.of_series(series).answered_here(direct.status());
                let keep_alive = self.keeps_alive(request);
                let date = &self.time.day.date;
                Asked::Answer(Written::new(&direct, &mut self.memory.scratch, date, request, keep_alive))
            }
        }
    }

    /// The lines by which the page that asks may read its answer, where one asks and may.
    fn page_of(&self, served: &Served, sock: Sock, input: &[u8], request: &Request) -> Result<String, Direct> {
        let secure = matches!(self.table.role(sock), Role::Client(client) if client.arrival.secure);
        let authority = request.authority.of(input);
        let fields = self.heads.fields.iter().filter(|field| field.name.of(input).eq_ignore_ascii_case(b"origin"));
        let mut origins = fields.map(|field| field.value.of(input));
        let Some(origin) = origins.next() else { return Ok(String::new()) };
        let may = served.settings.origins.iter().any(|known| known.admits(origin, authority, secure));
        // No browser says two: whoever reads another one than this does would be deceived.
        if !may || origins.next().is_some() {
            self.count().hub_refused.add(1);
            return Err(self.no(&No::because(403, "pages of this origin may not use this hub")));
        }
        Ok(readable_by(origin))
    }

    /// What it asks for: to listen, or else to publish; or its answer.
    fn read_asked(
        &self,
        served: &Arc<Served>,
        sock: Sock,
        (input, request): (&[u8], &Request),
        is_of_page: bool,
    ) -> Result<Option<Wish>, Direct> {
        let path = request.target.path_bytes(input);
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let wants = match (name, request.method) {
            (b"listen", Method::Get) => {
                return self.wish(served, input, request).map(Some).map_err(|no| self.no(&no));
            }
            (b"notify", Method::Post) | (b"topics", Method::Get | Method::Head) => name,
            (b"listen", Method::Options) if is_of_page => return Err(preflight("GET")),
            (b"notify", Method::Options) if is_of_page => return Err(preflight("POST")),
            (b"topics", Method::Options) if is_of_page => return Err(preflight("GET, HEAD")),
            (b"listen", _) => return Err(self.no(&No(405, format!("{ASKED_WITH}GET")))),
            (b"topics", _) => return Err(self.no(&No(405, format!("{ASKED_WITH}GET, HEAD")))),
            (b"notify", _) => return Err(self.no(&No(405, format!("{ASKED_WITH}POST")))),
            _ => return Err(self.no(&No::because(404, "a hub has listen, notify and topics"))),
        };
        if !self.may_publish(sock, served, input, request) {
            self.count().hub_refused.add(1);
            return Err(self.no(&No::because(401, "this needs a key of the hub, or a client on this machine")));
        }
        let behind = query::pairs(query_of(request.target.path.of(input))).find(|(name, _)| *name == b"behind");
        let behind = behind.and_then(|(_, value)| String::from_utf8(query::decode(value)).ok());
        match wants {
            b"notify" => Ok(None),
            _ => Err(Direct::new(
                "application/json",
                wire::topics(&served.hub.counts(behind.as_deref(), MOST_SHOWN)).as_bytes(),
            )),
        }
    }

    /// What is said instead of what was asked for.
    pub(super) fn no(&self, No(status, reason): &No) -> Direct {
        let lines = match *status {
            401 => "WWW-Authenticate: Bearer realm=\"hub\"\r\n",
            405 => &format!("Allow: {}\r\n", reason.trim_start_matches(ASKED_WITH)),
            426 => "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
            503 => "Retry-After: 1\r\n",
            _ => "",
        };
        self.count().errors.add(1);
        let body = wire::error(None, reason);
        Direct::with(*status, &format!("Content-Type: application/json\r\n{lines}"), body.as_bytes())
    }

    /// Whether a request may publish: by a key, or from this machine.
    fn may_publish(&self, sock: Sock, served: &Served, input: &[u8], request: &Request) -> bool {
        let Some(keys) = &served.settings.keys else { return self.is_local(sock, input, request) };
        let bearer = self.heads.fields.find_name(input, "authorization").and_then(|value| scheme(value, "bearer"));
        let key = bearer.or_else(|| self.heads.fields.find_name(input, "x-api-key"));
        key.is_some_and(|key| keys.find(key).is_some())
    }

    /// Begins to collect the body of a request that publishes it.
    pub fn begin_publication(&mut self, number: usize, stream: Stream, mut input: Block, request: &Request) {
        let LoopRoute { leads: Leads::Hub(app, served), series, .. } = self.apps.routes.get(number) else { return };
        let most = served.most_of_notice();
        let (app, served, series) = (app.clone(), served.clone(), *series);
        let head = self.memory.pool.heap(&input[..request.len]);
        let mut exchange = Exchange::new(stream, app, series, request, head, id_text(self.heads.next_id), &self.time);
        exchange.source = Source::Notice(served);
        self.become_state(stream.connection, State::Processing);
        let Some(key) = self.begin_exchange(stream, exchange, &input) else { return };
        input.advance(request.len);
        match request.framing {
            // An empty message, or no document.
            Framing::None => {
                self.keep_input(stream.connection, input);
                self.publish(key);
            }
            Framing::Length(length) if length > most => self.fail(key, 413, TOO_BIG),
            _ => {
                if request.expect_continue && input.is_empty() {
                    self.stream_continue(stream);
                }
                self.collect_body(key, input);
            }
        }
    }

    /// A part of what is to be published has come, and there is more to come.
    pub fn notice_goes_on(&mut self, key: Key) {
        let Some(stream) = self.exchanges.lookup(key).map(|exchange| exchange.stream) else { return };
        // Those who take nothing go before a publisher is refused for what waits for them.
        if !self.memory.has_room() && !self.cut_slow() {
            self.count().memory_refused.add(1);
            return self.fail(key, 503, "the server has no memory left for requests that come in parts");
        }
        self.rearm(key);
        self.stream_want(stream);
    }

    /// The body of a request is whole, and is published.
    pub fn publish(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let Source::Notice(served) = std::mem::take(&mut exchange.source) else { return };
        exchange.phase = Phase::Asking;
        let head = exchange.request.head.clone();
        let head: &[u8] = head.as_deref().unwrap_or_default();
        let body = exchange.request.body.iter().map(|block| &block[..]).collect::<Vec<_>>().concat();
        exchange.request.body = Vec::new();
        let now = served.since(self.time.now);
        let [origin] = find_lines(head, [b"origin"]);
        let page = if origin.is_empty() { String::new() } else { readable_by(origin) };
        let answer = || {
            let (postboxes, loop_index, page) = (self.shared.postboxes.clone(), self.index, page.clone());
            Box::new(move |outcome: Result<Published, Refused>| {
                let reply = reply(key, told(outcome), page);
                postboxes.post(loop_index, mailbox::Message::Document(reply));
            })
        };
        let publish =
            |topic: &str, payload: Payload<'_>, id: Option<&str>| match served.hub.publish(now, topic, payload, id) {
                Err(Refused::Carried) => served.hub.carry(topic, payload, id, &[], answer()).map(|()| None),
                published => published.map(|published| Some((topic.to_owned(), published))),
            };
        match noticed(head, &body, publish) {
            // The bus has it, and answers by mail.
            Ok(Ok(None)) => self.count().hub_messages.add(1),
            Ok(Ok(Some((topic, published)))) => {
                self.published_here(&served, &topic, &published);
                self.document_came(reply(key, told(Ok(published)), page));
            }
            Ok(Err(refused)) => {
                self.count().errors.add(1);
                // Where the hub has gone to another process, who asks again is to come to that one.
                if let Some(client) = self.exchanges.lookup(key).and_then(|it| self.table.client(it.stream.connection))
                {
                    client.http.keep_alive &= refused != Refused::Moved;
                }
                self.document_came(reply(key, told(Err(refused)), page));
            }
            Err((status, reason)) => {
                self.count().errors.add(1);
                self.document_came(reply(key, (status, wire::error(None, &reason)), page));
            }
        }
    }

    /// Publishes what an app says, which is JSON, to all but some subscribers.
    pub(super) fn publish_of_app(
        &mut self,
        served: &Served,
        topic: &str,
        text: &str,
        except: &[u128],
    ) -> Result<(), Refused> {
        let (now, payload) = (served.since(self.time.now), Payload::Json(text));
        match served.hub.publish_except(now, topic, payload, None, except) {
            Err(Refused::Carried) => {
                self.count().hub_messages.add(1);
                served.hub.carry(topic, payload, None, except, Box::new(|_| ()))
            }
            // Another process publishes it.
            Err(Refused::Moved) if served.hub.hand_on(topic, text) => Ok(()),
            published => published.map(|published| self.published_here(served, topic, &published)),
        }
    }

    /// Answers a client that waits for the next messages, if there are any, or if it has waited long enough.
    pub(super) fn answer_poll(&mut self, sock: Sock, waited: bool) {
        let Some(Polled { document, messages, gaps }) = self.poll(sock) else { return };
        let is_empty = messages == 0 && gaps == 0;
        if is_empty && !waited {
            return;
        }
        let Some(subscriber) = self.table.client(sock).and_then(|client| client.subscriber.as_ref()) else { return };
        let Transport::Poll(origin) = &subscriber.transport else { return };
        let origin = origin.as_deref().map_or_else(String::new, readable_by);
        // Those who take nothing go before who asks is refused for what waits for them.
        let direct = if is_empty || self.memory.has_room() || self.cut_slow() {
            self.counters.hub_deliveries.add(messages);
            self.counters.hub_gaps.add(gaps);
            let lines = format!("Content-Type: application/json\r\nCache-Control: no-store\r\n{origin}");
            Direct::with(200, &lines, document.as_bytes())
        } else {
            self.count().memory_refused.add(1);
            self.no(&No::because(503, "the server has no memory left for answers")).with_lines(origin.as_bytes())
        };
        let keep_alive = self.decide_keep_alive(sock);
        let Some(client) = self.table.client(sock) else { return };
        let version = client.http.version;
        let mut head = vec![std::mem::MaybeUninit::uninit(); direct.room()];
        let mut out = Writer::new(&mut head);
        direct.write(&mut out, &self.time.day.date, version, keep_alive, false);
        let answer = self.memory.pool.heap(out.written());
        self.stop_subscriber(sock);
        self.send_head(sock, answer);
        self.stream_over(Stream { connection: sock, id: 0 });
    }

    /// What there is for a client that waits for the next messages. It has been told of them then.
    fn poll(&mut self, sock: Sock) -> Option<Polled> {
        let random = self.random() as usize;
        let subscriber = self.table.client(sock)?.subscriber.as_mut()?;
        let (me, topics) = (subscriber.number(), subscriber.cursors.len());
        let (mut said, mut gaps, mut count) = (vec![Vec::new(); topics], Vec::new(), 0);
        let mut left = POLL_BYTES;
        // Another topic is the first each time, so that none is always behind the others where not all of them fit.
        for (turn, at) in (0..topics).map(|turn| (turn, (turn + random % topics) % topics)) {
            let cursor = &mut subscriber.cursors[at];
            let Some(local) = self.hubs.topics.get(cursor.topic as usize).and_then(Option::as_ref) else { continue };
            if left == 0 {
                break;
            }
            self.hubs.read.clear();
            let read = cursor.read(&local.topic, left / (topics - turn), &mut self.hubs.read);
            gaps.extend(read.gap.map(|gap| wire::gap(local.topic.name(), &gap)));
            cursor.at = read.gap.map_or(cursor.at, |gap| gap.to);
            for message in &self.hubs.read {
                if left == 0 {
                    break;
                }
                cursor.at = message.position();
                if !message.is_not_for(me) {
                    let text = message.envelope();
                    left = left.saturating_sub(text.len());
                    said[at].push(text);
                    count += 1;
                }
            }
            cursor.at = if left == 0 { cursor.at } else { read.at };
        }
        let (messages, at) = (said.concat().join(","), subscriber.positions());
        let document =
            format!("{{\"messages\":[{messages}],\"gaps\":[{}],\"last_event_id\":\"{at}\"}}\n", gaps.join(","));
        Some(Polled { document, messages: count, gaps: gaps.len() as u64 })
    }
}

/// What there is for a client that asks for one answer: as a document, and how much that has of what.
struct Polled {
    document: String,
    messages: u64,
    gaps: u64,
}

/// The lines that have a browser give an answer to a page of that origin (<https://fetch.spec.whatwg.org/#http-responses>).
pub(super) fn readable_by(origin: &[u8]) -> String {
    format!("Access-Control-Allow-Origin: {}\r\nVary: Origin\r\n", String::from_utf8_lossy(origin))
}

/// What a browser is told that asks whether a page may ask for something (<https://fetch.spec.whatwg.org/#cors-preflight-fetch>).
fn preflight(methods: &str) -> Direct {
    let fields = "Authorization, X-Api-Key, Content-Type, Last-Event-ID";
    let methods = format!("Access-Control-Allow-Methods: {methods}\r\n");
    Direct::with(
        204,
        &format!("{methods}Access-Control-Allow-Headers: {fields}\r\nAccess-Control-Max-Age: 600\r\n"),
        b"",
    )
}

/// A document for an exchange, with further lines of its head.
fn reply(exchange: Key, (status, text): (u16, String), lines: String) -> desk::Reply {
    desk::Reply { exchange, status, content_type: "application/json", lines, body: Arc::from(text.as_bytes()) }
}

const TOO_BIG: &str = "the message is larger than this hub takes";

/// The status and the document for whoever has published.
fn told(outcome: Result<Published, Refused>) -> (u16, String) {
    let status = match &outcome {
        Ok(_) => 202,
        Err(Refused::TooBig) => 413,
        Err(Refused::NoSuchTopic) => 404,
        Err(_) => 503,
    };
    (status, outcome.map_or_else(|refused| wire::error(None, &refused), |published| wire::published(&published)))
}

/// Has published what a request says: a JSON document with topic and data, or the body itself under the topic that the query names.
fn noticed<T>(
    head: &[u8],
    body: &[u8],
    publish: impl FnOnce(&str, Payload<'_>, Option<&str>) -> T,
) -> Result<T, (u16, String)> {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let target = line.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    let said =
        |name: &[u8]| query::pairs(query_of(target)).find(|pair| pair.0 == name).map(|pair| query::decode(pair.1));
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).map_err(|_| (400, "the query: no UTF-8".to_owned()));
    let (topic, id) = (said(b"topic").map(text).transpose()?, said(b"id").map(text).transpose()?);
    let Some(topic) = topic else {
        let notice = wire::notify(body).map_err(|reason| (400, reason))?;
        if notice.hub.is_some() {
            return Err((400, "the body: hub: the path says which it is".to_owned()));
        }
        return Ok(publish(&notice.topic, notice.payload(), notice.id.as_deref()));
    };
    let [content_type] = find_lines(head, [b"content-type"]);
    let is_of =
        |media: &str| content_type.get(..media.len()).is_some_and(|start| start.eq_ignore_ascii_case(media.as_bytes()));
    let payload = match std::str::from_utf8(body) {
        Ok(text) if is_of("application/json") => Payload::Json(wire::value(text).map_err(|reason| (400, reason))?),
        Ok(text) if is_of("text/") => Payload::Text(text),
        _ => Payload::Binary(body),
    };
    if id.as_ref().is_some_and(|id| !(1..=wire::LONGEST_ID).contains(&id.len())) {
        return Err((400, format!("the query: id: expected 1 to {} bytes", wire::LONGEST_ID)));
    }
    Ok(publish(&topic, payload, id.as_deref()))
}
