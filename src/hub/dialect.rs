//! How an app hears of what happens on sockets, and what its answers say: two dialects of one conversation.
//!
//! | dialect | an event | an answer |
//! |---|---|---|
//! | [`Dialect::Fields`] | what it is stands in `Sec-WebSocket-Frame`, and a message is the body | an object of JSON, whose members say what to do, as Rip's hub has them; any other body is a message to the socket |
//! | [`Dialect::Events`] | the body: `OPEN`, `TEXT 5` with five bytes behind it, … (`application/websocket-events`, the WebSocket-over-HTTP of Pushpin) | the same form; where it speaks GRIP, with control messages among the others |
//!
//! sans-IO: an event becomes lines of a head and a body, and an answer becomes [`Act`]s, in their order. What an app says is not trusted either: it is read
//! strictly, and what an app can have kept for a socket has a bound.

use std::borrow::Cow;
use std::fmt::Display;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::message::put_json_string;
use crate::config::Dialect;
use crate::config::route::is_same_to_apps;
use crate::http::find_lines;
use crate::websocket::Opcode;

/// The type of the second dialect's bodies.
const MEDIA: &str = "application/websocket-events";
/// What messages to a client begin with where an app speaks GRIP and names nothing else, and what control messages do.
const PREFIX: &[u8] = b"m:";
const CONTROL: &[u8] = b"c:";
/// Bytes of names and values that an app may have kept for one socket.
const MOST_META: usize = 4096;
/// The code of a close that says none (RFC 6455 §7.4.1), and of an end without a close (§7.1.5).
const NORMAL: u16 = 1000;
const NO_CODE: u16 = 1005;
const ABNORMAL: u16 = 1006;

/// What an app is told.
#[derive(Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Somebody wants to listen.
    Open,
    /// A message has come.
    Message {
        /// Text, and not bytes.
        text: bool,
        /// What was said.
        data: Vec<u8>,
    },
    /// The socket is gone, with that code; 1006 where there was none.
    Close(u16),
}

/// What an app's answer wants to be done.
#[derive(Debug, PartialEq, Eq)]
pub enum Act {
    /// The socket joins that topic.
    Join(String),
    /// It leaves that one.
    Leave(String),
    /// A frame goes to the socket: a message, a ping or a pong.
    Say(Opcode, Vec<u8>),
    /// A message, an object of JSON, goes to those topics and sockets, but not to the others.
    Spread {
        /// The message.
        text: String,
        /// Topics, and ids of sockets.
        to: Vec<String>,
        /// Ids of sockets.
        except: Vec<String>,
    },
    /// The socket is closed with a code and a reason.
    Close(u16, String),
    /// It is cut without a close.
    Cut,
    /// The app is told nothing more of it.
    Detach,
}

/// A name and its value.
type Kept = (Box<[u8]>, Box<[u8]>);
/// The name of an event, and its content.
type Event<'a> = (&'a [u8], &'a [u8]);

/// What an app of the second dialect has said of one socket.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Grip {
    /// What messages to the client begin with, where it speaks GRIP.
    prefix: Option<Box<[u8]>>,
    /// Names and values that it gets back with each event.
    meta: Vec<Kept>,
    /// It is told nothing more.
    pub detached: bool,
}

/// An answer, as a whole.
pub struct Reply<'a> {
    /// Its status, 200 to 299.
    pub status: u16,
    /// Its head, parsed before.
    pub head: &'a [u8],
    /// Its body, without any framing.
    pub body: &'a [u8],
}

impl Dialect {
    /// The lines that tell an event of the socket `id`, each with its end, and its body.
    pub fn event<'a>(self, occasion: &'a Occasion, id: &dyn Display, grip: Option<&Grip>) -> (Vec<u8>, Cow<'a, [u8]>) {
        match self {
            Dialect::Fields => of_fields(occasion),
            Dialect::Events => of_events(occasion, id, grip),
        }
    }

    /// Whether a client's request that asks to listen must not bring that field along, however an app would read its name: the event has it of its own.
    pub fn has_own(self, name: &[u8]) -> bool {
        let is = |own: &str| is_same_to_apps(name, own.as_bytes());
        let begins = |own: &str| name.get(..own.len()).is_some_and(|start| is_same_to_apps(start, own.as_bytes()));
        self == Dialect::Events && (is("Accept") || is("Content-Type") || begins("Meta-"))
    }

    /// What an answer wants to be done; what it says of the socket for later goes to `grip`. `opens`: it is the answer to [`Occasion::Open`], and lets
    /// the client in. An error says what is wrong with it.
    pub fn read(self, answer: &Reply<'_>, opens: bool, grip: &mut Option<Box<Grip>>) -> Result<Vec<Act>, String> {
        match self {
            Dialect::Fields => read_fields(answer),
            Dialect::Events => read_events(answer, opens, grip),
        }
    }
}

fn of_fields(occasion: &Occasion) -> (Vec<u8>, Cow<'_, [u8]>) {
    let (frame, data): (_, &[u8]) = match occasion {
        Occasion::Open => ("open\r\n".to_owned(), b""),
        Occasion::Message { text: true, data } => {
            ("text\r\nContent-Type: text/plain; charset=utf-8\r\n".to_owned(), data)
        }
        Occasion::Message { text: false, data } => {
            ("binary\r\nContent-Type: application/octet-stream\r\n".to_owned(), data)
        }
        Occasion::Close(code) => (format!("close\r\nX-Socket-Close: {code}\r\n"), b""),
    };
    (format!("Sec-WebSocket-Frame: {frame}").into_bytes(), data.into())
}

fn of_events<'a>(occasion: &'a Occasion, id: &dyn Display, grip: Option<&Grip>) -> (Vec<u8>, Cow<'a, [u8]>) {
    let mut lines = format!("Connection-Id: {id}\r\nContent-Type: {MEDIA}\r\nAccept: {MEDIA}\r\n").into_bytes();
    for (name, value) in grip.iter().flat_map(|grip| &grip.meta) {
        for part in [b"Meta-", &name[..], b": ", value, b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    let body = match occasion {
        Occasion::Open => {
            lines.extend_from_slice(b"Sec-WebSocket-Extensions: grip\r\n");
            b"OPEN\r\n".to_vec()
        }
        Occasion::Message { text, data } => one(if *text { "TEXT" } else { "BINARY" }, data),
        Occasion::Close(ABNORMAL) => b"DISCONNECT\r\n".to_vec(),
        Occasion::Close(NO_CODE) => b"CLOSE\r\n".to_vec(),
        Occasion::Close(code) => one("CLOSE", &code.to_be_bytes()),
    };
    (lines, body.into())
}

/// One event with content.
fn one(name: &str, content: &[u8]) -> Vec<u8> {
    [format!("{name} {:x}\r\n", content.len()).as_bytes(), content, b"\r\n"].concat()
}

fn read_fields(answer: &Reply<'_>) -> Result<Vec<Act>, String> {
    let &Reply { status, head, body } = answer;
    let [media] = find_lines(head, [b"content-type"]);
    let media = media.to_ascii_lowercase();
    // An empty answer is an empty message only where it says so: a framework's default is none.
    let is_said = [&b"text/plain"[..], b"application/octet-stream"].iter().any(|said| media.starts_with(said));
    if body.is_empty() && !(status == 200 && is_said) {
        return Ok(Vec::new());
    }
    if !media.starts_with(b"application/json") {
        let opcode = if media.starts_with(b"text/") { Opcode::Text } else { Opcode::Binary };
        return Ok(vec![message(opcode, body)?]);
    }
    let Ok(Members(said)) = serde_json::from_slice(body) else {
        return Err("the app's answer is no object of JSON".to_owned());
    };
    let (orders, said): (Vec<_>, Vec<_>) = said.into_iter().partition(|(name, _)| ORDERS.contains(&name.as_str()));
    // Of several the last one; `null` is none.
    let order = |member: &str| {
        let (_, value) = orders.iter().rfind(|(name, _)| name == member)?;
        // What is JSON, and has no place here (a number beyond all, say), is a value of no use, and still is one.
        let value = serde_json::from_str(value.get()).unwrap_or_else(|_| Value::Object(Map::new()));
        (!value.is_null()).then_some(value)
    };
    let names = |member: &str| order(member).map(|said| names(member, said)).transpose();
    let (joins, leaves, except, to) = (names("+")?, names("-")?, names(">")?, names("@")?);
    let close = order("!").map(of_close).transpose()?.flatten();
    let mut acts: Vec<Act> = joins.unwrap_or_default().into_iter().map(Act::Join).collect();
    acts.extend(leaves.unwrap_or_default().into_iter().map(Act::Leave));
    if !said.is_empty() {
        let text = object(&said);
        acts.push(match to {
            None => Act::Say(Opcode::Text, text.into_bytes()),
            Some(to) => Act::Spread { text, to, except: except.unwrap_or_default() },
        });
    }
    acts.extend(close);
    Ok(acts)
}

/// What `"!"` says: a code, an object with a code and a reason, or `true`; and `false` says nothing.
fn of_close(said: Value) -> Result<Option<Act>, String> {
    match said {
        Value::Bool(false) => return Ok(None),
        Value::Bool(true) | Value::Number(_) | Value::Object(_) => {}
        _ => return Err("the app's answer: \"!\": expected a code, or an object with a code and a reason".to_owned()),
    }
    let code = said.as_u64().or_else(|| said.get("code")?.as_u64()).and_then(|code| u16::try_from(code).ok());
    let code = code.filter(|code| matches!(code, 1000 | 3000..=4999)).unwrap_or(NORMAL);
    let reason = said.get("reason").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(Some(Act::Close(code, reason)))
}

/// The members of an answer that say what is to be done; all others are a message.
const ORDERS: [&str; 5] = ["+", "-", ">", "@", "!"];

/// The members of an object, in their order, each value as it is written: what an app says reaches clients as it has said it.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Members<'de>, D::Error> {
        struct OfObject;

        impl<'de> Visitor<'de> for OfObject {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(OfObject)
    }
}

/// An object of such members.
fn object(members: &[(String, &RawValue)]) -> String {
    let mut text = String::from("{");
    for (name, value) in members {
        if text.len() > 1 {
            text.push(',');
        }
        put_json_string(&mut text, name);
        text.push(':');
        text.push_str(value.get());
    }
    text.push('}');
    text
}

/// Names, as one string or as a list of such.
fn names(member: &str, said: Value) -> Result<Vec<String>, String> {
    let names = match said {
        Value::String(name) => Some(vec![name]),
        Value::Array(names) => names.iter().map(|name| name.as_str().map(str::to_owned)).collect(),
        _ => None,
    };
    names.ok_or_else(|| format!("the app's answer: \"{member}\": expected a name, or a list of names"))
}

/// A message to the socket itself.
fn message(opcode: Opcode, data: &[u8]) -> Result<Act, String> {
    match opcode == Opcode::Text && std::str::from_utf8(data).is_err() {
        true => Err("the app's answer is no UTF-8".to_owned()),
        false => Ok(Act::Say(opcode, data.to_vec())),
    }
}

fn read_events(answer: &Reply<'_>, opens: bool, grip: &mut Option<Box<Grip>>) -> Result<Vec<Act>, String> {
    let &Reply { head, body, .. } = answer;
    let [media, extensions] = find_lines(head, [b"content-type", b"sec-websocket-extensions"]);
    if !starts_with(media, MEDIA.as_bytes()) {
        // Who has nothing to say need not say of what type that is; but it has to say who may come.
        return match body.is_empty() && !opens {
            true => Ok(Vec::new()),
            false => Err(format!("the app's answer is not of the type {MEDIA}")),
        };
    }
    remember(head, extensions, opens, grip)?;
    let prefix = grip.as_deref().and_then(|grip| grip.prefix.as_deref());
    let mut events = parse(body)?.into_iter();
    if opens && events.next().is_none_or(|(name, _)| name != b"OPEN") {
        return Err("the app's answer does not begin with OPEN".to_owned());
    }
    let mut acts = Vec::new();
    for (name, content) in events {
        match name {
            b"TEXT" => acts.extend(of_app(Opcode::Text, content, prefix)?),
            b"BINARY" => acts.extend(of_app(Opcode::Binary, content, prefix)?),
            b"PING" => acts.push(Act::Say(Opcode::Ping, content.to_vec())),
            b"PONG" => acts.push(Act::Say(Opcode::Pong, content.to_vec())),
            b"CLOSE" => acts.push(close(content)),
            // It knows nothing of that socket, or wants it gone.
            b"DISCONNECT" => acts.push(Act::Cut),
            _ => return Err(format!("the app's answer has an unknown event, {}", String::from_utf8_lossy(name))),
        }
        if matches!(acts.last(), Some(Act::Close(..) | Act::Cut)) {
            break;
        }
    }
    if acts.contains(&Act::Detach) {
        grip.get_or_insert_default().detached = true;
    }
    Ok(acts)
}

/// Keeps what an answer's fields say of the socket.
fn remember(head: &[u8], extensions: &[u8], opens: bool, grip: &mut Option<Box<Grip>>) -> Result<(), String> {
    if opens && let Some(prefix) = prefix_of(extensions) {
        grip.get_or_insert_default().prefix = Some(prefix);
    }
    for line in head.split(|byte| *byte == b'\n') {
        let Some((name, value)) = memchr::memchr(b':', line).map(|at| (&line[..at], line[at + 1..].trim_ascii()))
        else {
            continue;
        };
        let Some(name) = name.get(9..).filter(|rest| !rest.is_empty() && starts_with(name, b"set-meta-")) else {
            continue;
        };
        let grip = grip.get_or_insert_default();
        grip.meta.retain(|(kept, _)| !kept.eq_ignore_ascii_case(name));
        if !value.is_empty() {
            grip.meta.push((name.into(), value.into()));
        }
        if grip.meta.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MOST_META {
            grip.meta.pop();
            return Err(format!("the app has more kept for a socket than {MOST_META} bytes, by Set-Meta"));
        }
    }
    Ok(())
}

/// The prefix of messages where an app says that it speaks GRIP: `grip; message-prefix="m:"`.
fn prefix_of(extensions: &[u8]) -> Option<Box<[u8]>> {
    let mut parts = extensions.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    if !parts.next()?.eq_ignore_ascii_case(b"grip") {
        return None;
    }
    let said = parts.find_map(|part| {
        let (name, value) = part.split_at_checked(memchr::memchr(b'=', part)?)?;
        let value = value[1..].trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        name.trim_ascii().eq_ignore_ascii_case(b"message-prefix").then_some(value)
    });
    Some(said.unwrap_or(PREFIX).into())
}

/// The events of a body, each with its content.
fn parse(mut body: &[u8]) -> Result<Vec<Event<'_>>, String> {
    let broken = || "the app's answer is no series of events".to_owned();
    let mut events = Vec::new();
    while !body.is_empty() {
        let end = memchr::memmem::find(body, b"\r\n").ok_or_else(broken)?;
        let (line, rest) = (&body[..end], &body[end + 2..]);
        let Some(space) = memchr::memchr(b' ', line) else {
            events.push((line, &b""[..]));
            body = rest;
            continue;
        };
        let digits = std::str::from_utf8(&line[space + 1..]).ok().filter(|digits| !digits.starts_with('+'));
        let length = digits.and_then(|digits| usize::from_str_radix(digits, 16).ok()).ok_or_else(broken)?;
        let (content, rest) = rest.split_at_checked(length).ok_or_else(broken)?;
        events.push((&line[..space], content));
        body = rest.strip_prefix(b"\r\n").ok_or_else(broken)?;
    }
    Ok(events)
}

/// What a message of an app is, where it speaks GRIP: one to the client, without its prefix, or a control message; and nothing else.
fn of_app(opcode: Opcode, content: &[u8], prefix: Option<&[u8]>) -> Result<Option<Act>, String> {
    let Some(prefix) = prefix else { return message(opcode, content).map(Some) };
    if let Some(control) = content.strip_prefix(CONTROL)
        && opcode == Opcode::Text
    {
        return self::control(control);
    }
    content.strip_prefix(prefix).map(|content| message(opcode, content)).transpose()
}

/// A control message; those that are not known are not meant for us.
#[derive(serde::Deserialize)]
struct Control {
    r#type: String,
    #[serde(default)]
    channel: Option<String>,
}

fn control(text: &[u8]) -> Result<Option<Act>, String> {
    let wrong = |what: &dyn Display| format!("a control message of the app's answer: {what}");
    let Control { r#type, channel } = serde_json::from_slice(text).map_err(|error| wrong(&error))?;
    let channel = || channel.ok_or_else(|| wrong(&"it names no channel"));
    Ok(match r#type.as_str() {
        "subscribe" => Some(Act::Join(channel()?)),
        "unsubscribe" => Some(Act::Leave(channel()?)),
        "detach" => Some(Act::Detach),
        _ => None,
    })
}

/// An app's close: its code, if it is one that may be sent (RFC 6455 §7.4), and its reason.
fn close(content: &[u8]) -> Act {
    let Some((code, reason)) = content.split_first_chunk::<2>() else { return Act::Close(NORMAL, String::new()) };
    let code = u16::from_be_bytes(*code);
    let may = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
    Act::Close(if may { code } else { NORMAL }, String::from_utf8_lossy(reason).into_owned())
}

fn starts_with(text: &[u8], start: &[u8]) -> bool {
    text.get(..start.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(lines: &str) -> String {
        format!("HTTP/1.1 200 OK\r\n{lines}\r\n")
    }

    fn read(lines: &str, body: &[u8], opens: bool, grip: &mut Option<Box<Grip>>) -> Result<Vec<Act>, String> {
        let head = head(lines);
        Dialect::Events.read(&Reply { status: 200, head: head.as_bytes(), body }, opens, grip)
    }

    fn say(text: &str) -> Act {
        Act::Say(Opcode::Text, text.as_bytes().to_vec())
    }

    const TYPE: &str = "Content-Type: application/websocket-events\r\n";

    #[test]
    fn events_are_told_as_pushpin_tells_them() {
        let told = |occasion: &Occasion, grip: Option<&Grip>| {
            let (lines, body) = Dialect::Events.event(occasion, &"1-2", grip);
            (String::from_utf8(lines).unwrap(), body.into_owned())
        };
        let lines = "Connection-Id: 1-2\r\nContent-Type: application/websocket-events\r\nAccept: application/websocket-events\r\n";
        let open = told(&Occasion::Open, None);
        assert_eq!(open, (format!("{lines}Sec-WebSocket-Extensions: grip\r\n"), b"OPEN\r\n".to_vec()));
        let text = |text, data: &[u8]| Occasion::Message { text, data: data.to_vec() };
        assert_eq!(told(&text(true, b"hello, you there"), None).1, b"TEXT 10\r\nhello, you there\r\n");
        assert_eq!(told(&text(false, b"\r\n\0"), None).1, b"BINARY 3\r\n\r\n\0\r\n");
        assert_eq!(told(&text(true, b""), None).1, b"TEXT 0\r\n\r\n");
        assert_eq!(told(&Occasion::Close(1000), None).1, b"CLOSE 2\r\n\x03\xe8\r\n");
        assert_eq!(told(&Occasion::Close(1005), None).1, b"CLOSE\r\n");
        assert_eq!(told(&Occasion::Close(1006), None).1, b"DISCONNECT\r\n");
        let kept = Grip { meta: vec![(b"User".as_slice().into(), b"anna".as_slice().into())], ..Grip::default() };
        assert_eq!(told(&text(true, b"x"), Some(&kept)).0, format!("{lines}Meta-User: anna\r\n"));
    }

    #[test]
    fn what_an_app_says_in_json_is_said_as_it_is_written() {
        let answer = |body: &str| {
            let head = head("Content-Type: application/json; charset=utf-8\r\n");
            Dialect::Fields.read(&Reply { status: 200, head: head.as_bytes(), body: body.as_bytes() }, false, &mut None)
        };
        let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(1000), "]".repeat(1000));
        for same in [
            r#"{"n":12345678901234567890123,"f":0.10000000000000000001,"e":1e400,"z":1.0}"#,
            r#"{"b":2,"a":{"d" : 1, "c":"\u00e9"}}"#,
            r#"{"a\"b":null}"#,
            &deep,
        ] {
            assert_eq!(answer(same), Ok(vec![say(same)]));
        }
        let text = r#"{"n":1e400,"a":1}"#.to_owned();
        let spread = Act::Spread { text, to: vec!["x".to_owned()], except: vec!["1".to_owned(), "2".to_owned()] };
        let acts =
            vec![Act::Join("b".to_owned()), Act::Leave("c".to_owned()), spread, Act::Close(3999, "no".to_owned())];
        let body =
            r#"{"n":1e400, "+":"a","+":"b","-":["c"],"@":"x", ">":["1","2"],"a":1,"!":{"code":3999,"reason":"no"}}"#;
        assert_eq!(answer(body), Ok(acts));
        assert_eq!(answer(r#"{"!":1e400}"#), Ok(vec![Act::Close(NORMAL, String::new())]));
        assert_eq!(answer(""), Ok(vec![]));
        let nothing = r#"{"+":null,"-":null,"@":null,">":null,"!":null,"a":1}"#;
        assert_eq!(answer(nothing), Ok(vec![say(r#"{"a":1}"#)]));
        assert_eq!(answer(r#"{"!":false}"#), Ok(vec![]));
        assert_eq!(answer(r#"{"!":true}"#), Ok(vec![Act::Close(NORMAL, String::new())]));
        for (member, wrong) in
            [("+", "5"), ("-", r#"["c",5]"#), ("@", "{}"), (">", "true"), ("!", r#""bye""#), ("!", "[]")]
        {
            let said = answer(&format!(r#"{{"{member}":{wrong},"a":1}}"#)).unwrap_err();
            assert!(said.contains(member), "{said}");
        }
        for wrong in [" ", "[]", "1", "{", r#"{"a":1}x"#, r#"{"a":}"#, r#"{"a":NaN}"#, "{\"a\":\"\n\"}"] {
            let said = answer(wrong);
            assert!(said.is_err(), "{wrong:?}: {said:?}");
        }
    }

    #[test]
    fn fields_of_events_are_their_own_however_they_are_written() {
        for own in ["Accept", "content_type", "Meta-User", "meta_user", "META-"] {
            assert!(Dialect::Events.has_own(own.as_bytes()), "{own}");
            assert!(!Dialect::Fields.has_own(own.as_bytes()), "{own}");
        }
        assert!(!Dialect::Events.has_own(b"Metadata") && !Dialect::Events.has_own(b"X-Meta-User"));
    }

    #[test]
    fn an_app_lets_in_by_open_alone() {
        let mut grip = None;
        for (lines, body) in [
            ("", &b"OPEN\r\n"[..]),
            (TYPE, b""),
            (TYPE, b"TEXT 1\r\nx\r\n"),
            (TYPE, b"open\r\n"),
            (TYPE, b"OPEN"),
            ("Content-Type: text/plain\r\n", b"OPEN\r\n"),
        ] {
            assert!(read(lines, body, true, &mut grip).is_err(), "{lines:?} {body:?}");
        }
        assert_eq!(read(TYPE, b"OPEN\r\nTEXT 2\r\nhi\r\n", true, &mut grip), Ok(vec![say("hi")]));
        assert_eq!(grip, None);
        assert_eq!(read("", b"", false, &mut grip), Ok(vec![]));
    }

    #[test]
    fn control_messages_stand_among_the_others() {
        let mut grip = None;
        let lines = format!("{TYPE}Sec-WebSocket-Extensions: grip\r\n");
        let join = br#"c:{"type": "subscribe", "channel": "a"}"#;
        let body = [b"OPEN\r\n".to_vec(), one("TEXT", join), one("TEXT", b"m:hi"), one("TEXT", b"nobody's")].concat();
        assert_eq!(read(&lines, &body, true, &mut grip), Ok(vec![Act::Join("a".to_owned()), say("hi")]));
        let leave = one("TEXT", br#"c:{"type": "unsubscribe", "channel": "a"}"#);
        assert_eq!(read(TYPE, &leave, false, &mut grip), Ok(vec![Act::Leave("a".to_owned())]));
        let unknown = one("TEXT", br#"c:{"type": "keep-alive", "timeout": 30}"#);
        assert_eq!(read(TYPE, &unknown, false, &mut grip), Ok(vec![]));
        let bytes = one("BINARY", b"m:\0");
        assert_eq!(read(TYPE, &bytes, false, &mut grip), Ok(vec![Act::Say(Opcode::Binary, vec![0])]));
        let prefix = grip.as_ref().and_then(|grip| grip.prefix.clone());
        assert_eq!(prefix.as_deref(), Some(PREFIX));
        for wrong in [&b"c:{}"[..], b"c:", br#"c:{"type": "subscribe"}"#] {
            assert!(read(TYPE, &one("TEXT", wrong), false, &mut grip).is_err(), "{wrong:?}");
        }
        assert!(!grip.as_ref().is_some_and(|grip| grip.detached));
        assert_eq!(read(TYPE, &one("TEXT", br#"c:{"type": "detach"}"#), false, &mut grip), Ok(vec![Act::Detach]));
        assert!(grip.is_some_and(|grip| grip.detached));
    }

    #[test]
    fn an_app_names_its_own_prefix() {
        for (extension, prefix) in [
            ("grip", Some("m:")),
            ("grip; message-prefix=\"\"", Some("")),
            ("GRIP;message-prefix=\"> \"", Some("> ")),
            ("grip; message-prefix=x", Some("x")),
            ("permessage-deflate", None),
            ("", None),
        ] {
            assert_eq!(prefix_of(extension.as_bytes()).as_deref(), prefix.map(str::as_bytes), "{extension}");
        }
        // Without a prefix all that is no control message goes to the client.
        let mut grip = None;
        let lines = format!("{TYPE}Sec-WebSocket-Extensions: grip; message-prefix=\"\"\r\n");
        assert_eq!(read(&lines, b"OPEN\r\nTEXT 2\r\nhi\r\n", true, &mut grip), Ok(vec![say("hi")]));
    }

    #[test]
    fn what_an_app_has_kept_comes_back_and_has_a_bound() {
        let mut grip = None;
        let kept = |grip: &Option<Box<Grip>>| {
            let (lines, _) = Dialect::Events.event(&Occasion::Open, &1, grip.as_deref());
            let lines = String::from_utf8(lines).unwrap();
            lines.lines().filter(|line| line.starts_with("Meta-")).map(str::to_owned).collect::<Vec<_>>()
        };
        let lines = format!("{TYPE}Set-Meta-User: anna\r\nset-meta-room: 7\r\nSet-Meta-: x\r\n");
        assert_eq!(read(&lines, b"OPEN\r\n", true, &mut grip), Ok(vec![]));
        assert_eq!(kept(&grip), ["Meta-User: anna", "Meta-room: 7"]);
        assert_eq!(read(&format!("{TYPE}Set-Meta-user: bob\r\nSet-Meta-Room:\r\n"), b"", false, &mut grip), Ok(vec![]));
        assert_eq!(kept(&grip), ["Meta-user: bob"]);
        let much = format!("{TYPE}Set-Meta-A: {}\r\n", "x".repeat(MOST_META));
        assert!(read(&much, b"", false, &mut grip).unwrap_err().contains("4096"));
        assert_eq!(kept(&grip), ["Meta-user: bob"]);
    }

    #[test]
    fn an_app_ends_a_socket() {
        let acts = |body: &[u8]| read(TYPE, body, false, &mut None);
        let closed = |code, reason: &str| Ok(vec![Act::Close(code, reason.to_owned())]);
        assert_eq!(acts(b"CLOSE\r\nTEXT 1\r\nx\r\n"), closed(1000, ""));
        assert_eq!(acts(b"CLOSE 5\r\n\x0f\xa0bye\r\n"), closed(4000, "bye"));
        assert_eq!(acts(b"CLOSE 2\r\n\x03\xee\r\n"), closed(1000, ""));
        assert_eq!(acts(b"CLOSE 2\r\n\x03\xf0\r\n"), closed(1008, ""));
        assert_eq!(acts(b"DISCONNECT\r\n"), Ok(vec![Act::Cut]));
        assert_eq!(acts(b"PING\r\nPONG 1\r\nx\r\n").unwrap().len(), 2);
    }

    #[test]
    fn broken_events_are_said_to_be() {
        for body in [
            &b"TEXT"[..],
            b"TEXT 5\r\nhell",
            b"TEXT 5\r\nhello",
            b"TEXT 5\r\nhello\n",
            b"TEXT 4\r\nhello\r\n",
            b"TEXT -1\r\n\r\n",
            b"TEXT +1\r\nx\r\n",
            b"TEXT ffffffffffffffffff\r\nx\r\n",
            b"TEXT 1 \r\nx\r\n",
            b"TEXT \r\nx\r\n",
            b"WHAT\r\n",
            b"\r\n",
            b"TEXT 1\r\n\xff\r\n",
        ] {
            assert!(read(TYPE, body, false, &mut None).is_err(), "{body:?}");
        }
        assert!(read("Content-Type: application/json\r\n", b"{}", false, &mut None).is_err());
    }
}
