//! What is said to a hub: it is refused with a reason, or published so that each way of reading finds what was said, whatever stands in it; and a
//! snapshot is taken whole or refused.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use production_server::hub::wire::{self, event_of_several};
use production_server::hub::{Epoch, From, Hub, Payload, Position, Positions, Settings, Tag};
use serde::de::IgnoredAny;

/// What an EventSource makes of an event: its last id, its name, its data (HTML Living Standard, 9.2.6).
fn dispatched(event: &str) -> (String, String, String) {
    let (mut id, mut name, mut data) = <(String, String, String)>::default();
    let lines = event.replace("\r\n", "\n").replace('\r', "\n");
    assert!(lines.ends_with("\n\n") && lines.matches("\n\n").count() == 1, "one event");
    for line in lines.lines().filter(|line| !line.is_empty()) {
        let (field, value) = line.split_once(':').unwrap();
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => id = value.to_owned(),
            "event" => name = value.to_owned(),
            "data" => data.extend([value, "\n"]),
            _ => panic!("{line:?}"),
        }
    }
    (id, name, data.strip_suffix('\n').unwrap().to_owned())
}

fn publish(body: &[u8]) {
    let Ok(notify) = wire::notify(body).inspect_err(|error| assert!(!error.is_empty())) else { return };
    let hub = Hub::new(Settings::new("fuzz"), Epoch(1), 1);
    let now = Duration::ZERO;
    let Ok(published) = hub.publish(now, &notify.topic, notify.payload(), notify.id.as_deref()) else { return };
    let after = From::After(Position { offset: 0, ..published.position });
    let subscribed = hub.subscribe(now, &notify.topic, 0, after).unwrap();
    let mut messages = Vec::new();
    let read = subscribed.topic.read(subscribed.at, 0, &mut messages);
    assert!(read.gap.is_none() && !read.more && read.at == published.position);
    let message = &messages[0];
    assert_eq!(message.said(), notify.payload());
    serde_json::from_str::<IgnoredAny>(&message.envelope()).unwrap();
    let event = message.event();
    let (id, name, data) = dispatched(std::str::from_utf8(event.bytes()).unwrap());
    assert_eq!(id.parse(), Ok(published.position));
    match notify.payload() {
        Payload::Text(text) | Payload::Json(text) => {
            assert_eq!((name.as_str(), data), ("", text.replace("\r\n", "\n").replace('\r', "\n")));
        }
        Payload::Binary(bytes) => assert_eq!((name.as_str(), data.len()), ("binary", bytes.len().div_ceil(3) * 4)),
    }
    let at = Positions::new([(Tag::of("a"), read.at), (Tag::of("b"), read.at)].into_iter());
    let (begin, tail) = event_of_several(message, &at, false);
    let whole = String::from_utf8([&begin, tail.bytes()].concat()).unwrap();
    assert_eq!(dispatched(&whole).0, at.to_string());
    let other = Hub::new(Settings::new("fuzz"), Epoch(2), 1);
    other.restore(now, &hub.snapshot(now)).unwrap();
    assert_eq!(other.counts(None, 9).topics[0].messages, 1);
}

fuzz_target!(|bytes: &[u8]| {
    publish(bytes);
    let text = String::from_utf8_lossy(bytes);
    let _ = wire::command(&text).inspect_err(|error| assert!(error.starts_with("the message: ")));
    let (query, field) = bytes.split_at(bytes.len() / 2);
    if let Ok(listen) = wire::listen(query, Some(field), 8) {
        assert!((1..=8).contains(&listen.topics.len()));
    }
    if let Ok(position) = text.parse::<Position>() {
        assert_eq!(position.to_string(), text);
    }
    if let Ok(positions) = text.parse::<Positions>() {
        assert_eq!(positions.to_string().parse(), Ok(positions));
    }
    let hub = Hub::new(Settings { memory: 4096, ..Settings::new("fuzz") }, Epoch(1), 1);
    let restored = hub.restore(Duration::ZERO, bytes);
    assert!(restored.is_ok() || hub.memory() == 0);
    assert!(hub.memory() <= 8192);
});
