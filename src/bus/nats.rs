//! A hub whose messages go over NATS (<https://docs.nats.io/reference/reference-protocols/nats-protocol>) to other machines. sans-IO: bytes in, bytes out.
//!
//! Core NATS remembers nothing and numbers nothing: each process numbers for itself, in an epoch of its own, what is published there and what it hears. What others publish while it
//! is not connected it never hears, so that each connection but the first begins a new epoch, and clients are told of a gap. What is published here meanwhile
//! is delivered here alone.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::frames::{self, Said};
use super::remote::{Out, Peer};
use crate::bus::random;
use crate::config::Remote;
use crate::hub::{Epoch, Hub, Notice};

/// Bytes of a line at most.
const LONGEST_LINE: usize = 64 << 10;
/// Bytes of a message at most.
const LONGEST: usize = 64 << 20;
/// How often it is asked to say something, and how long it may say nothing.
const PING: Duration = Duration::from_secs(1);
const SILENCE: Duration = Duration::from_secs(3);

/// See the module.
pub struct Nats {
    hub: Arc<Hub>,
    said: Remote,
    subject: String,
    input: Vec<u8>,
    /// The server has taken what it was told.
    is_up: bool,
    is_open: bool,
    had_connection: bool,
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
            had_connection: false,
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
                if !std::mem::replace(&mut self.is_up, true) && std::mem::replace(&mut self.had_connection, true) {
                    // Nobody knows what was published meanwhile.
                    self.hub.begin(Epoch(self.hub.epoch().0.wrapping_add(1 + (random() & 0xff_ffff))));
                }
            }
            "+OK" => {}
            "-ERR" => return Err(behind.chars().take(200).collect()),
            "MSG" => {
                let length = behind.split_ascii_whitespace().next_back().and_then(|word| word.parse::<usize>().ok());
                let length = length.filter(|length| *length <= LONGEST).ok_or("it announces a message of no length")?;
                let Some(message) = rest.get(..length + 2) else { return Ok(None) };
                if let Some(said) = frames::read_said(&message[..length]) {
                    self.take_in(now, &said, out);
                }
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

    /// Another has published.
    fn take_in(&mut self, now: Duration, said: &Said<'_>, out: &mut Out) {
        let id = Some(said.id).filter(|id| !id.is_empty()).map(Box::from);
        let answer = Box::new(|_| ());
        let (topic, payload) = (said.topic.into(), said.payload.into());
        let notice = Notice { topic, kind: said.kind, payload, id, except: Box::default(), answer };
        self.number(now, &notice, out).ok();
    }

    fn number(
        &mut self,
        now: Duration,
        notice: &Notice,
        out: &mut Out,
    ) -> Result<crate::hub::Published, crate::hub::Refused> {
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

    fn lost(&mut self, _: Duration) {
        (self.is_up, self.is_open) = (false, false);
    }

    fn carry(&mut self, now: Duration, notice: Notice, out: &mut Out) {
        let outcome = self.number(now, &notice, out);
        if self.is_up && outcome.as_ref().is_ok_and(|published| !published.duplicate) {
            let id = notice.id.as_deref().unwrap_or_default();
            let said = Said { topic: &notice.topic, kind: notice.kind, id, payload: &notice.payload };
            let body = frames::said(&said);
            if body.len() <= self.most {
                out.bytes[0].extend_from_slice(format!("PUB {} {}\r\n", self.subject, body.len()).as_bytes());
                out.bytes[0].extend_from_slice(&body);
                out.bytes[0].extend_from_slice(b"\r\n");
            }
        }
        (notice.answer)(outcome);
    }

    fn tick(&mut self, now: Duration, out: &mut Out) -> Result<(), String> {
        if !self.is_open {
            return Ok(());
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

    #[test]
    fn it_is_spoken_as_the_protocol_says() {
        let (mut nats, mut out) = nats();
        let said = frames::said(&Said { topic: "a", kind: Kind::Text, id: "x", payload: b"hello" });
        let message =
            [format!("MSG production_server.hub.chat 1 {}\r\n", said.len()).as_bytes(), &said, b"\r\n"].concat();
        let all = [b"INFO {\"max_payload\":100}\r\nPING\r\nPONG\r\n+OK\r\n", &message[..], &message].concat();
        // Byte by byte.
        for byte in &all {
            nats.received(NOW, 0, &[*byte], &mut out).unwrap();
        }
        let sent = String::from_utf8(out.bytes[0].clone()).unwrap();
        assert!(sent.starts_with("CONNECT {") && sent.contains("\"echo\":false"), "{sent}");
        assert!(sent.ends_with("\r\nSUB production_server.hub.chat 1\r\nPING\r\nPONG\r\n"), "{sent}");
        assert!(nats.is_up());
        assert_eq!((nats.hub.find("a").unwrap().last(), nats.hub.epoch()), (1, Epoch(7)), "the second is a duplicate");
        nats.lost(NOW);
        nats.opened(NOW, &mut out);
        nats.received(NOW, 0, b"INFO {}\r\nPONG\r\n", &mut out).unwrap();
        assert_ne!(nats.hub.epoch(), Epoch(7), "nobody knows what was missed");
    }

    #[test]
    fn what_no_server_says_ends_the_connection() {
        let long = vec![b'x'; LONGEST_LINE + 1];
        for bytes in
            [&b"HTTP/1.1 400\r\n"[..], b"MSG a 1 99999999999\r\n", b"MSG a 1 x\r\n", b"\xff\n", b"-ERR 'no'\r\n", &long]
        {
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
