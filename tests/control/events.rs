//! The stream of events: in order, to all readers, and never held up by one.

use serde_json::json;

use super::rig::{Client, Rig, eventually, request};

fn reader(rig: &Rig) -> Client {
    let mut client = rig.connect();
    client.send("GET /events HTTP/1.1\r\nHost: x\r\n\r\n");
    let head = client.head();
    assert!(head.contains("\r\nContent-Type: application/x-ndjson\r\n"), "{head}");
    assert!(head.contains("\r\nTransfer-Encoding: chunked\r\n"), "{head}");
    client
}

#[test]
fn events_come_in_order_with_their_time_and_end_cleanly() {
    let mut rig = Rig::new();
    rig.publish(json!({"event": "before anybody listens"}));
    let mut readers = [reader(&rig), reader(&rig)];
    for number in 0..100 {
        rig.publish(json!({"event": "worker-exit", "number": number}));
    }
    rig.publish(json!({"event": "timed", "time": "then"}));
    for client in &mut readers {
        for number in 0..100 {
            let event = client.event().unwrap();
            assert_eq!((&event["event"], &event["number"]), (&json!("worker-exit"), &json!(number)));
            let time = event["time"].as_str().unwrap();
            assert!(time.len() == 24 && time.ends_with('Z') && time.as_bytes()[10] == b'T', "{time}");
        }
        assert_eq!(client.event().unwrap(), json!({"event": "timed", "time": "then"}));
    }
    rig.close();
    for client in &mut readers {
        assert_eq!(client.event(), None);
        assert_eq!(client.rest(), "");
    }
}

#[test]
fn a_reader_of_an_old_version_gets_bare_lines() {
    let mut rig = Rig::new();
    let mut client = rig.connect();
    client.send("GET /events HTTP/1.0\r\n\r\n");
    let head = client.head();
    assert!(!head.contains("chunked") && head.contains("\r\nConnection: close\r\n"), "{head}");
    rig.publish(json!({"event": "one", "time": "t"}));
    assert_eq!(client.until(b"\n"), "{\"event\":\"one\",\"time\":\"t\"}\n");
    rig.close();
    assert_eq!(client.rest(), "");
}

#[test]
fn a_reader_that_is_stuck_loses_events_and_is_told_how_many() {
    let rig = Rig::new();
    let (mut stuck, mut brisk) = (reader(&rig), reader(&rig));
    let padding = "x".repeat(1000);
    let most = 3000;
    for number in 0..most {
        rig.publish(json!({"event": "tick", "number": number, "padding": padding}));
        let event = brisk.event().unwrap();
        assert_eq!(event["number"], number, "one that reads loses nothing");
    }
    // Some events lie in the socket and in the server, then many are missing, and then it goes on with the newest.
    let mut next = 0;
    let lost = loop {
        let event = stuck.event().unwrap();
        if event["event"] == "dropped" {
            break event["count"].as_u64().unwrap();
        }
        assert_eq!(event["number"], next);
        next += 1;
    };
    assert_eq!(next + lost, most, "every event came or was counted");
    assert!(next * 1000 < 2 * 1024 * 1024, "{next} events were kept for one reader");
    rig.publish(json!({"event": "tick", "number": most}));
    assert_eq!(stuck.event().unwrap()["number"], most);
}

/// One that comes again until there is room: that another has left is noticed when the server comes to it.
fn admitted(rig: &Rig) -> Client {
    eventually("room for a reader", || {
        let mut client = rig.connect();
        client.send(&request("GET", "/events", ""));
        client.head().starts_with("HTTP/1.1 200").then_some(client)
    })
}

#[test]
fn readers_that_left_make_room_without_an_event() {
    let rig = Rig::new();
    for _ in 0..4 {
        drop((0..16).map(|_| admitted(&rig)).collect::<Vec<Client>>());
    }
    // One that has only finished sending stays.
    let mut half = admitted(&rig);
    half.finish();
    assert_eq!(rig.ask("GET", "/status", "").0, 200);
    rig.publish(json!({"event": "one"}));
    assert_eq!(half.event().unwrap()["event"], "one");
}
