//! What clients that listen are told, frame by frame, event by event, document by document: each is held against where they stand.

use serde_json::Value;

use production_server::hub::Position;

use crate::simulation::wire::Head;

use super::frames::{self, Event, PING, PONG, TEXT, masked, text};
use super::listeners::{Listener, Live};
use super::record::Record;
use super::visits::{Action, Leave, Way};

fn position(value: &Value, name: &str) -> Position {
    text(value, name).parse().unwrap_or_else(|_| panic!("no id: {value}"))
}

impl Listener {
    pub(super) fn frame(&self, live: &mut Live, head: u8, data: &[u8]) {
        match head {
            PING => live.out.extend(masked(PONG, data)),
            PONG => {
                let number = live.pings.pop_front().unwrap_or_else(|| panic!("a pong to no ping"));
                assert_eq!(data, number.to_be_bytes(), "the pong to another ping");
            }
            TEXT => self.said(live, data),
            _ => panic!("visit {} got a frame {head:x}: {data:?}", live.places.visit()),
        }
    }

    fn said(&self, live: &mut Live, data: &[u8]) {
        let record = &mut *self.record.borrow_mut();
        let visit = live.places.visit();
        if live.plan.way == Way::Bare
            && let Some(number) = record.read(data)
        {
            return live.places.bare_message(record, number);
        }
        let shown = || String::from_utf8_lossy(&data[..data.len().min(200)]).into_owned();
        let value: Value = serde_json::from_slice(data).unwrap_or_else(|_| panic!("visit {visit} got {}", shown()));
        if value.get("say").is_some() {
            return self.word(live, record, &value);
        }
        match text(&value, "type") {
            "message" => self.message(live, record, &value),
            "gap" => {
                let (from, to) = (position(&value, "from"), position(&value, "to"));
                live.places.gap(record, text(&value, "topic"), from, to);
            }
            "subscribed" => self.subscribed(live, record, text(&value, "topic"), position(&value, "id")),
            "unsubscribed" => {
                let topic = text(&value, "topic");
                let is_asked = matches!(live.asked.front(), Some((Action::Unsubscribe(asked), _)) if asked == topic);
                if is_asked {
                    live.asked.pop_front();
                }
                assert!(is_asked || self.app, "visit {visit} has not asked for that: {value}");
                live.places.leave(topic);
            }
            "error" if self.app => assert!(!record.calm, "visit {visit} is told of an error: {value}"),
            "error" => {
                let asked = live.asked.pop_front();
                let (asked, _) = asked.unwrap_or_else(|| panic!("visit {visit} has asked for nothing: {value}"));
                let fine = match asked {
                    Action::Subscribe(topic, _) => live.places.has(&topic) || !record.calm,
                    Action::Unsubscribe(topic) => !live.places.has(&topic),
                    _ => false,
                };
                assert!(fine, "visit {visit} is told of an error: {value}");
            }
            _ => panic!("visit {visit} got {value}"),
        }
    }

    /// Something that an app says to the socket.
    fn word(&self, live: &mut Live, record: &mut Record, value: &Value) {
        let number = value["say"].as_u64().unwrap_or_else(|| panic!("no word: {value}"));
        record.heard(live.places.visit(), number as u32);
        if live.plan.way != Way::Bare {
            return;
        }
        if let Some(topic) = value["left"].as_str() {
            live.places.leave(topic);
        }
        if let Some(topic) = value["joined"].as_str()
            && !live.places.has(topic)
        {
            live.places.joins(record, topic, None);
            live.places.has_begun(record);
        }
    }

    fn message(&self, live: &mut Live, record: &mut Record, envelope: &Value) {
        let (topic, at) = (text(envelope, "topic"), position(envelope, "id"));
        let payload = frames::payload(envelope);
        let number = record.read(&payload).unwrap_or_else(|| panic!("a message of nobody: {envelope}"));
        record.seen(number, topic, at);
        live.places.message(record, topic, at.offset, number);
    }

    fn subscribed(&self, live: &mut Live, record: &Record, topic: &str, at: Position) {
        let visit = live.places.visit();
        let is_asked = matches!(live.asked.front(), Some((Action::Subscribe(asked, _), _)) if asked == topic);
        let Some((Action::Subscribe(_, from), end)) = live.asked.pop_front_if(|_| is_asked) else {
            assert!(self.app, "visit {visit} has not asked for {topic}");
            return live.places.joins(record, topic, Some(at));
        };
        assert!(!live.places.has(topic), "visit {visit} listens to {topic} already");
        let is_now = at.epoch == record.epoch() && (end..=record.end(topic)).contains(&at.offset);
        match from {
            None => {
                assert!(is_now, "visit {visit} begins at {at} of {topic}, which ended at {end}");
                live.places.begin_after(record, topic, at);
            }
            Some(from) => live.places.begin_after(record, topic, from),
        }
    }

    pub(super) fn event(&self, live: &mut Live, event: &Event) {
        let record = &mut *self.record.borrow_mut();
        let (kind, data) = (event.kind.as_deref(), event.data.as_deref());
        match (kind, data) {
            (Some("gap"), Some(data)) => {
                let value: Value = serde_json::from_str(data).unwrap_or_else(|_| panic!("no gap: {data}"));
                let (from, to) = (position(&value, "from"), position(&value, "to"));
                live.places.gap(record, text(&value, "topic"), from, to);
            }
            (None, Some(data)) => {
                let number = record.read(data.as_bytes()).unwrap_or_else(|| panic!("a message of nobody: {event:?}"));
                let id = event.id.as_deref().unwrap_or_else(|| panic!("a message without an id: {event:?}"));
                let (topic, at) = live.places.told_by(record, id, number);
                record.seen(number, &topic, at);
                live.places.message(record, &topic, at.offset, number);
            }
            (None, None) => {}
            _ => panic!("visit {} got {event:?}", live.places.visit()),
        }
        if let Some(id) = &event.id {
            live.places.all_stand(record, id);
            live.last = Some(id.clone());
        }
    }

    /// A document has come, with that head. False: the connection is over.
    pub(super) fn document(&self, live: &mut Live, head: &Head, body: &[u8]) -> bool {
        if head.status() != Ok(200) {
            live.closes = true;
            return false;
        }
        let mut record = self.record.borrow_mut();
        let value: Value = serde_json::from_slice(body).unwrap_or_else(|_| panic!("no document: {head:?}"));
        let of = |name: &str| value[name].as_array().unwrap_or_else(|| panic!("no {name} in {value}")).clone();
        for gap in of("gaps") {
            live.places.gap(&mut record, text(&gap, "topic"), position(&gap, "from"), position(&gap, "to"));
        }
        for envelope in of("messages") {
            self.message(live, &mut record, &envelope);
        }
        let id = text(&value, "last_event_id").to_owned();
        live.places.all_stand(&record, &id);
        live.last = Some(id.clone());
        let goes_on = !head.connection_says("close") && !record.drains;
        drop(record);
        if !goes_on || live.plan.leave != Leave::Stays && self.line.chance(300) {
            live.closes = true;
            return false;
        }
        // The next one, from there.
        let (places, out) = self.request(&live.plan, Some(&id));
        (live.places, live.out) = (places, out);
        true
    }
}
