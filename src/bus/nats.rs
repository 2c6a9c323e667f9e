//! A hub whose messages go over NATS (<https://docs.nats.io/reference/reference-protocols/nats-protocol>) to other machines. sans-IO: bytes in, bytes out.
//!
//! Core NATS remembers nothing and numbers nothing: each process numbers for itself, in an epoch of its own, what is published there and what it hears.
//!
//! Rules:
//! - What others publish while it is not connected it never hears, so that each connection begins a new epoch, and clients are told of a gap: with the first message that comes
//!   over it, or when the server has taken what it was told. Before that something may be missing, and behind it nothing.
//! - What is published here while it is not connected, or is too long for the server, is delivered here alone; and what was on its way over a connection that ends may be lost, or come
//!   late. So each process counts what it publishes: the count goes with each message, and alone over each new connection and where a message is too long. Who hears it and has not
//!   heard all of them begins a new epoch, too; what comes behind its count then is passed over.
//! - What comes and cannot be kept here is missing in its topic.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::frames::{self, Said};
use super::remote::{Out, Peer};
use crate::bus::random;
use crate::config::Remote;
use crate::hub::{Epoch, Hub, Notice, Published, Refused};
use crate::planted::{self, Bug};

/// Bytes of a line at most.
const LONGEST_LINE: usize = 64 << 10;
/// Bytes of a message at most.
const LONGEST: usize = 64 << 20;
/// Others whose counts are known at once: who has not been heard for the longest time is forgotten first.
const MOST_OTHERS: usize = 1024;
/// How often it is asked to say something, and how long it may say nothing.
const PING: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(3);

/// How far another has been heard.
struct Heard {
    /// Its count.
    count: u64,
    /// Over which connection, and when.
    connection: u64,
    at: Duration,
}

/// What goes in front of what is published: whose it is, how much that one has published with it, and whether anything is behind it.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    origin: u64,
    count: u64,
    is_message: bool,
}

impl Head {
    const BYTES: usize = 17;

    fn put(&self) -> Vec<u8> {
        [&self.origin.to_le_bytes()[..], &self.count.to_le_bytes(), &[u8::from(self.is_message)]].concat()
    }

    fn read(bytes: &[u8]) -> Option<(Head, &[u8])> {
        let (head, behind) = bytes.split_at_checked(Head::BYTES)?;
        let number = |at: usize| Some(u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?));
        let is_message = match head.last()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some((Head { origin: number(0)?, count: number(8)?, is_message }, behind))
    }
}

/// See the module.
pub struct Nats {
    hub: Arc<Hub>,
    said: Remote,
    subject: String,
    input: Vec<u8>,
    /// The server has taken what it was told.
    is_up: bool,
    is_open: bool,
    /// The how manieth connection it is.
    connection: u64,
    /// The last one with which an epoch has begun.
    begun: u64,
    /// As what others know this process, and how much it has published.
    me: u64,
    count: u64,
    others: HashMap<u64, Heard>,
    /// Bytes of a message that the server takes.
    most: usize,
    heard_at: Duration,
    pinged: Duration,
}

impl Nats {
    /// For that hub.
    pub fn new(now: Duration, hub: Arc<Hub>, said: &Remote) -> Nats {
        hub.set_carried(true);
        let subject = format!("production_server.hub.{}", hub.settings().name);
        Nats {
            hub,
            said: said.clone(),
            subject,
            input: Vec::new(),
            is_up: false,
            is_open: false,
            connection: 0,
            begun: 0,
            me: random(),
            count: 0,
            others: HashMap::new(),
            most: 1 << 20,
            heard_at: now,
            pinged: now,
        }
    }

    /// What a line says; `None`: the message behind it is not whole.
    fn line(&mut self, now: Duration, line: &str, rest: &[u8], out: &mut Out) -> Result<Option<usize>, String> {
        let (word, behind) = line.split_once([' ', '\t']).unwrap_or((line, ""));
        match word.to_ascii_uppercase().as_str() {
            "INFO" => self.greet(behind, out),
            "PING" => out.bytes[0].extend_from_slice(b"PONG\r\n"),
            "PONG" => {
                if !std::mem::replace(&mut self.is_up, true) {
                    self.hears(out);
                    self.say(None, out);
                }
            }
            "+OK" => {}
            "-ERR" => return Err(behind.chars().take(200).collect()),
            "MSG" => {
                let length = behind.split_ascii_whitespace().next_back().and_then(|word| word.parse::<usize>().ok());
                let length = length.filter(|length| *length <= LONGEST).ok_or("it announces a message of no length")?;
                let Some(message) = rest.get(..length + 2) else { return Ok(None) };
                if !message.ends_with(b"\r\n") {
                    return Err("a message does not end where it says".to_owned());
                }
                if !planted::active(Bug::LateEpoch) {
                    self.hears(out);
                }
                self.take_in(now, &message[..length], out);
                return Ok(Some(length + 2));
            }
            _ => return Err("it does not speak as NATS does".to_owned()),
        }
        Ok(Some(0))
    }

    fn greet(&mut self, info: &str, out: &mut Out) {
        let info: serde_json::Value = serde_json::from_str(info).unwrap_or_default();
        self.most = info["max_payload"].as_u64().and_then(|most| usize::try_from(most).ok()).unwrap_or(self.most);
        if self.is_open {
            // It says so again when its cluster changes.
            return;
        }
        self.is_open = true;
        let mut connect = json!({
            "verbose": false, "pedantic": false, "echo": false, "tls_required": self.said.tls,
            "lang": "rust", "version": env!("CARGO_PKG_VERSION"), "name": "production_server",
        });
        if let Some(password) = &self.said.password {
            match &self.said.user {
                Some(user) => (connect["user"], connect["pass"]) = (json!(user), json!(password.0)),
                None => connect["auth_token"] = json!(password.0),
            }
        }
        out.bytes[0].extend_from_slice(format!("CONNECT {connect}\r\nSUB {} 1\r\nPING\r\n", self.subject).as_bytes());
    }

    /// From here on everything is heard; of what was before that nobody knows.
    fn hears(&mut self, out: &mut Out) {
        if std::mem::replace(&mut self.begun, self.connection) != self.connection {
            self.begin(out);
        }
    }

    /// Something is missing, or may be.
    fn begin(&self, out: &mut Out) {
        self.hub.begin(Epoch(self.hub.epoch().0.wrapping_add(1 + (random() & 0xff_ffff))));
        out.tell.extend(self.hub.tell_all());
    }

    /// Another has said something.
    fn take_in(&mut self, now: Duration, bytes: &[u8], out: &mut Out) {
        // What cannot be read is not heard: the next of that one shows that it is missing.
        let Some((head, behind)) = Head::read(bytes) else { return };
        if head.origin == self.me {
            // It was on its way over a connection that has ended, and is read by the server now.
            return;
        }
        let said = frames::read_said(behind).filter(|_| head.is_message);
        if said.is_none() && head.is_message || !self.follows(now, &head, out) {
            return;
        }
        let Some(Said { topic, kind, id, payload }) = said else { return };
        let (id, answer) = (Some(id).filter(|id| !id.is_empty()).map(Box::from), Box::new(|_| ()));
        let notice = Notice { topic: topic.into(), kind, payload: payload.into(), id, except: Box::default(), answer };
        if let Err(why) = self.number(now, &notice, out)
            && !planted::active(Bug::UntoldRefusal)
        {
            self.hub.pass_over(topic, why);
        }
    }

    /// Whether what that one says is new. If what was before it has not been heard here, an epoch begins.
    fn follows(&mut self, now: Duration, head: &Head, out: &mut Out) -> bool {
        let heard = self.others.get(&head.origin);
        let (count, connection) = heard.map_or((0, 0), |heard| (heard.count, heard.connection));
        if head.is_message && head.count <= count {
            // It was on its way over a connection that has ended: it was told that it is missing.
            return false;
        }
        // What was missed before this connection was told with it, and whatever was said before a message over another connection of that one, was told with that.
        let is_known = !head.is_message || connection == self.connection;
        let last = head.count - u64::from(head.is_message);
        if is_known && last > count && !planted::active(Bug::UntoldLoss) {
            self.begin(out);
        }
        let heard = Heard { count: head.count.max(count), connection: self.connection, at: now };
        if self.others.len() >= MOST_OTHERS
            && !self.others.contains_key(&head.origin)
            && let Some(oldest) = self.others.iter().min_by_key(|(_, heard)| heard.at).map(|(origin, _)| *origin)
        {
            self.others.remove(&oldest);
        }
        self.others.insert(head.origin, heard);
        true
    }

    /// Tells the others how much was published here, and what was published last.
    fn say(&self, said: Option<Said<'_>>, out: &mut Out) {
        let mut body = Head { origin: self.me, count: self.count, is_message: said.is_some() }.put();
        body.extend(said.map(|said| frames::said(&said)).unwrap_or_default());
        if body.len() > self.most {
            // It is missing for all others, and those who have not heard of this process yet would not see that by the next count.
            body = Head { origin: self.me, count: self.count, is_message: false }.put();
        }
        out.bytes[0].extend_from_slice(format!("PUB {} {}\r\n", self.subject, body.len()).as_bytes());
        out.bytes[0].extend_from_slice(&body);
        out.bytes[0].extend_from_slice(b"\r\n");
    }

    fn number(&mut self, now: Duration, notice: &Notice, out: &mut Out) -> Result<Published, Refused> {
        let published = self.hub.publish_carried(now, notice)?;
        if let Some(topic) = self.hub.find(&notice.topic) {
            out.tell.push((topic, published.tell));
        }
        Ok(published)
    }
}

impl Peer for Nats {
    fn connections(&self) -> usize {
        1
    }

    fn opened(&mut self, now: Duration, _: &mut Out) {
        (self.heard_at, self.pinged) = (now, now);
        (self.is_open, self.is_up) = (false, false);
        self.connection += 1;
        self.input.clear();
    }

    fn received(&mut self, now: Duration, _: usize, bytes: &[u8], out: &mut Out) -> Result<(), String> {
        self.heard_at = now;
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(end) = memchr::memchr(b'\n', &input[at..]) {
            let line = std::str::from_utf8(&input[at..at + end]).map_err(|_| "it does not speak as NATS does")?;
            let behind = at + end + 1;
            let Some(taken) = self.line(now, line.trim_end(), &input[behind..], out)? else { break };
            at = behind + taken;
        }
        input.drain(..at);
        let is_message = input.get(..4).is_some_and(|start| start.eq_ignore_ascii_case(b"MSG "));
        if input.len() > if is_message { LONGEST + LONGEST_LINE } else { LONGEST_LINE } {
            return Err("it says too much at once".to_owned());
        }
        self.input = input;
        Ok(())
    }

    fn is_told(&mut self, said: &Remote) {
        self.said = said.clone();
    }

    fn lost(&mut self, _: Duration) {
        (self.is_up, self.is_open) = (false, false);
    }

    fn carry(&mut self, now: Duration, notice: Notice, out: &mut Out) {
        let outcome = self.number(now, &notice, out);
        if outcome.as_ref().is_ok_and(|published| !published.duplicate) {
            self.count += 1;
            if self.is_up {
                let id = notice.id.as_deref().unwrap_or_default();
                self.say(Some(Said { topic: &notice.topic, kind: notice.kind, id, payload: &notice.payload }), out);
            }
        }
        (notice.answer)(outcome);
    }

    fn tick(&mut self, now: Duration, out: &mut Out) -> Result<(), String> {
        if !self.is_open {
            return Ok(());
        }
        if out.left[0] > 0 {
            // While it has not taken all that was said to it, it cannot answer.
            self.heard_at = now;
        }
        if now >= self.heard_at + SILENCE {
            return Err("it does not answer".to_owned());
        }
        if now >= self.pinged + PING {
            self.pinged = now;
            out.bytes[0].extend_from_slice(b"PING\r\n");
        }
        Ok(())
    }

    fn due(&self) -> Option<Duration> {
        self.is_open.then_some(self.pinged + PING)
    }

    fn is_up(&self) -> bool {
        self.is_up
    }

    fn waiting(&self) -> usize {
        0
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::{Kind, Settings};

    const NOW: Duration = Duration::from_secs(1);

    fn nats() -> (Nats, Out) {
        let hub = Arc::new(Hub::new(Settings::new("chat"), Epoch(7), 1));
        let said = Remote { host: "a".to_owned(), port: 1, tls: false, user: None, password: None, ca_file: None };
        let (mut nats, mut out) = (Nats::new(NOW, hub, &said), Out::default());
        nats.opened(NOW, &mut out);
        (nats, out)
    }

    /// What comes when another has published so much, and that last.
    fn heard(origin: u64, count: u64, text: Option<&str>) -> Vec<u8> {
        let head = Head { origin, count, is_message: text.is_some() };
        let said = text.map(|text| Said { topic: "a", kind: Kind::Text, id: text, payload: text.as_bytes() });
        let body = [head.put(), said.map(|said| frames::said(&said)).unwrap_or_default()].concat();
        [format!("MSG production_server.hub.chat 1 {}\r\n", body.len()).as_bytes(), &body, b"\r\n"].concat()
    }

    /// Another connection, over which that comes first.
    fn again(nats: &mut Nats, bytes: &[u8], out: &mut Out) {
        nats.lost(NOW);
        nats.opened(NOW, out);
        nats.received(NOW, 0, &[b"INFO {}\r\n", bytes].concat(), out).unwrap();
    }

    #[test]
    fn it_is_spoken_as_the_protocol_says() {
        let (mut nats, mut out) = nats();
        let greeting = b"INFO {\"max_payload\":100}\r\nPING\r\nPONG\r\n+OK\r\n";
        let all = [&greeting[..], &heard(1, 1, Some("x")), &heard(1, 2, Some("x"))].concat();
        // Byte by byte.
        for byte in &all {
            nats.received(NOW, 0, &[*byte], &mut out).unwrap();
        }
        let sent = out.bytes[0].clone();
        assert!(sent.starts_with(b"CONNECT {"));
        let own = Head { origin: nats.me, count: 0, is_message: false }.put();
        let behind = [
            b"\r\nSUB production_server.hub.chat 1\r\nPING\r\nPONG\r\nPUB production_server.hub.chat 17\r\n",
            &own[..],
            b"\r\n",
        ];
        assert!(sent.ends_with(&behind.concat()), "{}", String::from_utf8_lossy(&sent));
        assert!(nats.is_up());
        assert_eq!(nats.hub.find("a").unwrap().last(), 1, "the second is a duplicate");
        assert_eq!(Head::read(&own), Some((Head { origin: nats.me, count: 0, is_message: false }, &[][..])));
    }

    #[test]
    fn an_epoch_begins_wherever_something_may_be_missing() {
        let (mut nats, mut out) = nats();
        again(&mut nats, b"PONG\r\n", &mut out);
        let mut epoch = Epoch(7);
        let mut begins = |nats: &Nats| std::mem::replace(&mut epoch, nats.hub.epoch()) != nats.hub.epoch();
        assert!(begins(&nats), "somebody may have listened before it was connected");
        for (bytes, begun, why) in [
            (heard(1, 5, Some("1")), false, "what was before that one was heard is nobody's"),
            (heard(1, 6, Some("2")), false, "nothing is missing"),
            (heard(1, 8, Some("3")), true, "one is missing"),
            (heard(1, 7, Some("4")), false, "it was told that it is missing"),
            (heard(1, 8, None), false, "it has another connection"),
            (heard(1, 9, None), true, "one was lost with the one before"),
            (heard(2, 0, None), false, "another has begun"),
            (heard(3, 1, None), true, "another has published before it was connected"),
        ] {
            nats.received(NOW, 0, &bytes, &mut out).unwrap();
            assert_eq!(begins(&nats), begun, "{why}");
        }
        let texts: Vec<_> = nats.hub.ids(NOW).into_iter().map(|(key, ..)| key).collect();
        assert_eq!(texts, ["1", "2", "3"].map(|text| Hub::key_of("a", text)), "none comes out of its order");
        let own = nats.me;
        nats.received(NOW, 0, &heard(own, 1, Some("own")), &mut out).unwrap();
        assert!(!begins(&nats) && nats.hub.ids(NOW).len() == 3, "its own comes over a connection that has ended");
        again(&mut nats, &heard(1, 20, Some("5")), &mut out);
        assert!(begins(&nats), "what comes before the server has answered comes over another connection as well");
        nats.received(NOW, 0, b"PONG\r\n", &mut out).unwrap();
        nats.received(NOW, 0, &heard(2, 3, Some("6")), &mut out).unwrap();
        assert!(!begins(&nats), "all before that is told");
    }

    #[test]
    fn what_is_too_long_for_the_server_is_told_of() {
        let (mut nats, mut out) = nats();
        again(&mut nats, b"INFO {\"max_payload\":100}\r\nPONG\r\n", &mut out);
        for (length, count) in [(10, 1), (100, 2)] {
            out.bytes[0].clear();
            let (topic, payload) = ("a".into(), vec![b'x'; length].into());
            let answer = Box::new(|outcome: Result<Published, Refused>| assert!(outcome.is_ok()));
            let notice = Notice { topic, kind: Kind::Binary, payload, id: None, except: Box::default(), answer };
            nats.carry(NOW, notice, &mut out);
            let head = Head { origin: nats.me, count, is_message: length == 10 }.put();
            let is_told = out.bytes[0].windows(head.len()).any(|some| some == head);
            assert!(is_told && out.bytes[0].len() < 200, "{length}");
        }
    }

    #[test]
    fn others_are_remembered_within_bounds() {
        let (mut nats, mut out) = nats();
        for origin in 0..2 * MOST_OTHERS as u64 {
            nats.received(NOW + Duration::from_millis(origin), 0, &heard(origin, 1, Some("x")), &mut out).unwrap();
        }
        assert_eq!(nats.others.len(), MOST_OTHERS);
        assert!(!nats.others.contains_key(&0) && nats.others.contains_key(&(2 * MOST_OTHERS as u64 - 1)));
    }

    #[test]
    fn what_no_server_says_ends_the_connection() {
        let long = vec![b'x'; LONGEST_LINE + 1];
        for bytes in [
            &b"HTTP/1.1 400\r\n"[..],
            b"MSG a 1 99999999999\r\n",
            b"MSG a 1 x\r\n",
            b"MSG a 1 1\r\nabc",
            b"\xff\n",
            b"-ERR 'no'\r\n",
            &long,
        ] {
            let (mut nats, mut out) = nats();
            assert!(
                nats.received(NOW, 0, bytes, &mut out).is_err(),
                "{}",
                String::from_utf8_lossy(&bytes[..bytes.len().min(20)])
            );
        }
        let (mut nats, mut out) = nats();
        nats.received(NOW, 0, b"INFO no json\r\nMSG a 1 3\r\n\xff\xff\xff\r\n", &mut out).unwrap();
        assert!(nats.tick(NOW + SILENCE, &mut out).is_err(), "it says nothing");
    }
}
