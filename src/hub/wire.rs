//! What is said to a hub and by it: bodies, queries, commands over a socket, events. Text in, text out; what comes from outside is hostile.

use std::borrow::Cow;
use std::fmt::{Display, Write};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::json;
use serde_json::value::RawValue;

use super::message::put_json_string;
use super::{Counts, From, Gap, Message, Payload, Position, Positions, Published};
use crate::buffers::outbox::Piece;
use crate::http::query;

/// The topic of those who name none.
pub const BROADCAST: &str = "broadcast";
/// Bytes of a message's id at most.
pub const LONGEST_ID: usize = 128;
/// A comment, by which a silent stream of events shows that it lives.
pub const HEARTBEAT: &[u8] = b":\n\n";

/// A message that is to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notify<'a> {
    /// On which topic.
    pub topic: Cow<'a, str>,
    /// Its id, 1 to [`LONGEST_ID`] bytes.
    pub id: Option<Cow<'a, str>>,
    /// In which hub, where there are several to choose from.
    pub hub: Option<Cow<'a, str>>,
    data: Data<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Data<'a> {
    Text(Cow<'a, str>),
    Json(&'a str),
    Binary(Vec<u8>),
}

impl Notify<'_> {
    /// What is published.
    pub fn payload(&self) -> Payload<'_> {
        match &self.data {
            Data::Text(text) => Payload::Text(text),
            Data::Json(value) => Payload::Json(value),
            Data::Binary(bytes) => Payload::Binary(bytes),
        }
    }
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    topic: Option<Cow<'a, str>>,
    #[serde(borrow, default, deserialize_with = "present")]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    binary: Option<Cow<'a, str>>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    hub: Option<Cow<'a, str>>,
}

/// A value that is there, though it is `null`.
fn present<'a, D: Deserializer<'a>>(deserializer: D) -> Result<Option<&'a RawValue>, D::Error> {
    Deserialize::deserialize(deserializer).map(Some)
}

/// An object of JSON: of structures, the library would take an array of their values as well.
fn object<'a, T: Deserialize<'a>>(text: &'a str, of: &str) -> Result<T, String> {
    if !text.trim_ascii_start().starts_with('{') {
        return Err(format!("{of}: expected an object of JSON"));
    }
    serde_json::from_str(text).map_err(|error| format!("{of}: {error}"))
}

/// The body of a request that publishes: `{"topic"?, "data", "id"?}`. A string as `data` is published as its text, any other value as it is written,
/// and `"binary"` in base64 in the place of `"data"` as bytes.
///
/// # Errors
/// What is wrong, and where.
pub fn notify(body: &[u8]) -> Result<Notify<'_>, String> {
    let text =
        std::str::from_utf8(body).map_err(|error| format!("the body: no UTF-8 at byte {}", error.valid_up_to()))?;
    let Body { topic, data, binary, id, hub } = object(text, "the body")?;
    let id_length = id.as_ref().map_or(1, |id| id.len());
    if !(1..=LONGEST_ID).contains(&id_length) {
        return Err(format!("the body: id: expected 1 to {LONGEST_ID} bytes, and it has {id_length}"));
    }
    let data = match (data, binary) {
        (Some(value), None) => match value.get() {
            string if string.starts_with('"') => Data::Text(string_of(string)?),
            value => Data::Json(value),
        },
        (None, Some(text)) => {
            Data::Binary(STANDARD.decode(&*text).map_err(|error| format!("the body: binary: no base64: {error}"))?)
        }
        _ => return Err("the body: expected one of `data` and `binary`".to_owned()),
    };
    Ok(Notify { topic: topic.unwrap_or(Cow::Borrowed(BROADCAST)), id, hub, data })
}

/// A body that [`notify`] understands: a value of JSON, as it is written, for a topic of a hub.
pub fn notice(hub: &str, topic: &str, value: &str) -> String {
    let mut out = String::from("{\"hub\":");
    put_json_string(&mut out, hub);
    out.push_str(",\"topic\":");
    put_json_string(&mut out, topic);
    let _ = write!(out, ",\"data\":{value}}}");
    out
}

/// A value of JSON that is published as it is written.
///
/// # Errors
/// What is wrong with it.
pub fn value(text: &str) -> Result<&str, String> {
    let value: &RawValue = serde_json::from_str(text).map_err(|error| format!("the body: {error}"))?;
    Ok(value.get())
}

/// The text of a string of JSON, where it is if it has no escapes.
fn string_of(string: &str) -> Result<Cow<'_, str>, String> {
    if let Ok(text) = serde_json::from_str::<&str>(string) {
        return Ok(Cow::Borrowed(text));
    }
    serde_json::from_str(string).map(Cow::Owned).map_err(|error| format!("the body: data: {error}"))
}

/// The answer to who has published: `{"id":"epoch:offset","subscribers":N}`, and `"duplicate":true` where nothing happened.
pub fn published(published: &Published) -> String {
    let duplicate = if published.duplicate { ",\"duplicate\":true" } else { "" };
    format!("{{\"id\":\"{}\",\"subscribers\":{}{duplicate}}}", published.position, published.subscribers)
}

/// What a client says over its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// `{"subscribe":TOPIC,"last_event_id"?:ID}`.
    Subscribe {
        /// To what.
        topic: String,
        /// From where.
        from: From,
    },
    /// `{"unsubscribe":TOPIC}`.
    Unsubscribe {
        /// From what.
        topic: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    subscribe: Option<String>,
    unsubscribe: Option<String>,
    last_event_id: Option<String>,
}

/// A command of a client.
///
/// # Errors
/// What is wrong, and where: to be told to the client.
pub fn command(text: &str) -> Result<Command, String> {
    match object(text, "the message")? {
        Said { subscribe: Some(topic), unsubscribe: None, last_event_id } => {
            let last = last_event_id.filter(|id| !id.is_empty());
            let from = last.map_or(From::Now, |id| From::After(id.parse().unwrap_or(Position::NOWHERE)));
            Ok(Command::Subscribe { topic, from })
        }
        Said { subscribe: None, unsubscribe: Some(topic), last_event_id: None } => Ok(Command::Unsubscribe { topic }),
        _ => Err("the message: expected `subscribe`, with or without `last_event_id`, or `unsubscribe`".to_owned()),
    }
}

/// `{"type":KIND,"topic":TOPIC` and what follows.
fn answer(kind: &str, topic: Option<&str>, members: &[(&str, &dyn Display)]) -> String {
    let mut out = format!("{{\"type\":\"{kind}\"");
    if let Some(topic) = topic {
        out.push_str(",\"topic\":");
        put_json_string(&mut out, topic);
    }
    for (name, value) in members {
        let _ = write!(out, ",\"{name}\":");
        put_json_string(&mut out, &value.to_string());
    }
    out.push('}');
    out
}

/// The answer to [`Command::Subscribe`]: `{"type":"subscribed","topic","id"}`, with the id behind which the topic is read.
pub fn subscribed(topic: &str, at: Position) -> String {
    answer("subscribed", Some(topic), &[("id", &at)])
}

/// The answer to [`Command::Unsubscribe`]: `{"type":"unsubscribed","topic"}`.
pub fn unsubscribed(topic: &str) -> String {
    answer("unsubscribed", Some(topic), &[])
}

/// Messages that a client has missed: `{"type":"gap","topic","from","to"}`.
pub fn gap(topic: &str, gap: &Gap) -> String {
    answer("gap", Some(topic), &[("from", &gap.from), ("to", &gap.to)])
}

/// Why a client does not get what it asked for: `{"type":"error","topic"?,"reason"}`.
pub fn error(topic: Option<&str>, reason: &dyn Display) -> String {
    answer("error", topic, &[("reason", reason)])
}

/// How a stream of events begins: after what time a client is to come back that loses it, `jitter` at most added by any random number, and its first id, so that
/// it comes back to here though it has got nothing yet.
pub fn preamble(retry: Duration, jitter: Duration, random: u64, at: &dyn Display) -> String {
    let more = u128::from(random) % (jitter.as_millis() + 1);
    format!("retry: {}\nid: {at}\n\n", retry.as_millis() + more)
}

/// Messages that the client of a stream of events has missed, as the event `gap`. From here on it comes back to behind them.
pub fn gap_event(topic: &str, gap: &Gap, at: &dyn Display) -> String {
    let mut out = format!("id: {at}\nevent: gap\ndata: {{\"topic\":");
    put_json_string(&mut out, topic);
    let _ = write!(out, ",\"from\":\"{}\",\"to\":\"{}\"}}\n\n", gap.from, gap.to);
    out
}

/// From here on a client comes back to there: an event of nothing else.
pub fn id_event(at: &dyn Display) -> String {
    format!("id: {at}\n\n")
}

/// A message as an event of a stream of several topics, whose id says where all of them stand: its begin, and what all streams share of it.
pub fn event_of_several(message: &Message, at: &dyn Display, chunked: bool) -> (Vec<u8>, Piece) {
    let tail = message.event_tail(chunked);
    let id = format!("id: {at}\n");
    // The tail of a chunk has the line behind it already.
    let begin = if chunked { format!("{:x}\r\n{id}", id.len() + tail.bytes().len() - 2) } else { id };
    (begin.into_bytes(), tail)
}

/// A topic's name as one of a list in a field: what is no visible letter of ASCII, the comma and `%` are encoded.
pub fn encoded(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b',' | b'%');
    let put = |mut out: String, byte: u8| {
        let _ = if plain(byte) { write!(out, "{}", char::from(byte)) } else { write!(out, "%{byte:02X}") };
        out
    };
    name.bytes().fold(String::new(), put)
}

/// What somebody wants to listen to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The topics, each once, and from where.
    pub topics: Vec<(String, From)>,
    /// Who comes back says where it was, in other topics as well.
    pub left_at: Option<Positions>,
}

/// What a request to listen asks for: `topic=a&topic=b` or `topic=a,b`, [`BROADCAST`] if none is named, and `last_event_id`. The field `Last-Event-ID` is
/// newer than what stands in the target, and has precedence.
///
/// # Errors
/// What is wrong with the query.
pub fn listen(query: &[u8], last_event_id: Option<&[u8]>, most_topics: usize) -> Result<Listen, String> {
    let mut topics: Vec<String> = Vec::new();
    let mut last = Vec::new();
    for (name, value) in query::pairs(query) {
        match &*query::decode(name) {
            b"last_event_id" => last = query::decode(value),
            b"topic" => {
                for topic in value.split(|byte| *byte == b',') {
                    let topic = String::from_utf8(query::decode(topic));
                    let topic = topic.map_err(|_| "the query: topic: what is encoded is no UTF-8".to_owned())?;
                    if !topics.contains(&topic) {
                        topics.push(topic);
                    }
                    if topics.len() > most_topics {
                        return Err(format!("the query: topic: there may be {most_topics} at most"));
                    }
                }
            }
            _ => {}
        }
    }
    if topics.is_empty() {
        topics.push(BROADCAST.to_owned());
    }
    let last = String::from_utf8_lossy(last_event_id.filter(|id| !id.is_empty()).unwrap_or(&last)).into_owned();
    // What cannot be understood says nothing of any topic, so that each has its gap.
    let nothing = Positions::new(std::iter::empty());
    let left_at = (!last.is_empty()).then(|| last.parse::<Positions>().unwrap_or(nothing));
    let alone = last.parse().ok().filter(|_| topics.len() == 1);
    let from =
        |topic: &str| left_at.as_ref().map_or(From::Now, |at| From::After(alone.unwrap_or_else(|| at.of(topic))));
    let topics = topics.into_iter().map(|topic| (from(&topic), topic)).map(|(from, topic)| (topic, from)).collect();
    Ok(Listen { topics, left_at })
}

/// The document of those who ask which topics there are: of each its name, who listens, what is kept, and where it stands.
pub fn topics(counts: &Counts) -> String {
    let topic = |count: &super::Count| {
        json!({
            "topic": &*count.topic,
            "subscribers": count.subscribers,
            "messages": count.messages,
            "bytes": count.bytes,
            "id": count.last.to_string(),
        })
    };
    let topics: Vec<_> = counts.topics.iter().map(topic).collect();
    json!({ "topics": topics, "all": counts.all, "memory": counts.memory }).to_string()
}
