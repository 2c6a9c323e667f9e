//! What is said to a hub and by it, to the letter.

use serde_json::Value;

use super::super::wire::{
    self, BROADCAST, Command, HEARTBEAT, event_of_several, gap_event, listen, notify, preamble, published, subscribed,
    topics, unsubscribed,
};
use super::*;

#[test]
fn bodies_are_read_strictly_and_data_stays_as_it_was_written() {
    for (body, topic, payload, id) in [
        (r#"{"data":"x"}"#, BROADCAST, Payload::Text("x"), None),
        (
            r#" {"topic":"a","data":{"b": 1.0, "b":2e5} ,"id":"i"} "#,
            "a",
            Payload::Json(r#"{"b": 1.0, "b":2e5}"#),
            Some("i"),
        ),
        (r#"{"data":"a\u00e4\n"}"#, BROADCAST, Payload::Text("aä\n"), None),
        (r#"{"data":null}"#, BROADCAST, Payload::Json("null"), None),
        (
            r#"{"data":123456789012345678901234567890.10}"#,
            BROADCAST,
            Payload::Json("123456789012345678901234567890.10"),
            None,
        ),
        (r#"{"topic":"\u0061","binary":"AP8="}"#, "a", Payload::Binary(&[0, 0xff]), None),
    ] {
        let notify = notify(body.as_bytes()).unwrap();
        assert_eq!((&*notify.topic, notify.payload(), notify.id.as_deref()), (topic, payload, id), "{body}");
    }
    let long = format!(r#"{{"data":1,"id":"{}"}}"#, "i".repeat(129));
    let deep = format!(r#"{{"data":{}}}"#, "[".repeat(100_000));
    for (body, error) in [
        ("", "expected an object"),
        ("[\"a\",1]", "expected an object"),
        ("{\"data\":1", "EOF while parsing an object at line 1 column 9"),
        ("{\"data\":1} x", "trailing characters at line 1 column 12"),
        ("{\"topic\":\"a\"}", "expected one of `data` and `binary`"),
        ("{\"data\":1,\"binary\":\"\"}", "expected one of `data` and `binary`"),
        ("{\"data\":1,\"data\":2}", "duplicate field `data`"),
        ("{\"data\":1,\n\"dada\":2}", "unknown field `dada`"),
        ("{\"data\":1,\n\"dada\":2}", "line 2 column 6"),
        ("{\"data\":1,\"topic\":5}", "invalid type: integer `5`, expected a string"),
        ("{\"data\":1,\"id\":\"\"}", "id: expected 1 to 128 bytes, and it has 0"),
        (&long, "and it has 129"),
        (&deep, "expected value at line 1 column 100009"),
        ("{\"data\":\"\\ud800\"}", "data: "),
        ("{\"binary\":\"A\"}", "binary: no base64"),
        ("{\"data\":tru}", "expected ident"),
    ] {
        let found = notify(body.as_bytes()).unwrap_err();
        assert!(found.starts_with("the body: ") && found.contains(error), "{found}");
    }
    assert_eq!(notify(b"{\"data\":\"\xff\"}").unwrap_err(), "the body: no UTF-8 at byte 9");
    assert_eq!(notify(long.replace(&"i".repeat(129), &"i".repeat(128)).as_bytes()).unwrap().id.unwrap().len(), 128);
}

#[test]
fn whoever_publishes_is_told_where_it_stands() {
    let told = |duplicate| {
        let tell = LoopSet::default();
        published(&Published { position: at(4), subscribers: 12, duplicate, tell })
    };
    assert_eq!(told(false), r#"{"id":"0000000000007:4","subscribers":12}"#);
    assert_eq!(told(true), r#"{"id":"0000000000007:4","subscribers":12,"duplicate":true}"#);
}

#[test]
fn commands_are_read_strictly() {
    let subscribe = |topic: &str, from| Command::Subscribe { topic: topic.to_owned(), from };
    for (text, command) in [
        (r#"{"subscribe":"a"}"#, subscribe("a", From::Now)),
        (r#"{"subscribe":"a","last_event_id":""}"#, subscribe("a", From::Now)),
        (r#"{"last_event_id":"0000000000007:3","subscribe":"a"}"#, subscribe("a", From::After(at(3)))),
        (r#"{"subscribe":"a","last_event_id":"mine"}"#, subscribe("a", From::After(Position::NOWHERE))),
        (r#"{"unsubscribe":"a"}"#, Command::Unsubscribe { topic: "a".to_owned() }),
    ] {
        assert_eq!(wire::command(text), Ok(command), "{text}");
    }
    for text in [
        "",
        "hello",
        "{}",
        "[\"a\"]",
        r#"{"subscribe":1}"#,
        r#"{"subscribe":"a","unsubscribe":"a"}"#,
        r#"{"unsubscribe":"a","last_event_id":"x"}"#,
        r#"{"subscribe":"a","more":1}"#,
        r#"{"subscribe":"a","subscribe":"b"}"#,
        r#"{"subscribe":"a"}{"#,
    ] {
        assert!(wire::command(text).unwrap_err().starts_with("the message: "), "{text}");
    }
    let topic = "a\"\u{1}";
    let gap = Gap { from: at(1), to: at(3) };
    assert_eq!(subscribed(topic, at(3)), r#"{"type":"subscribed","topic":"a\"\u0001","id":"0000000000007:3"}"#);
    assert_eq!(unsubscribed("a"), r#"{"type":"unsubscribed","topic":"a"}"#);
    assert_eq!(wire::gap("a", &gap), r#"{"type":"gap","topic":"a","from":"0000000000007:1","to":"0000000000007:3"}"#);
    assert_eq!(wire::error(None, &"no \"x\""), r#"{"type":"error","reason":"no \"x\""}"#);
    assert_eq!(
        wire::error(Some("a"), &Refused::NoSuchTopic),
        r#"{"type":"error","topic":"a","reason":"there is no such topic"}"#
    );
}

#[test]
fn streams_of_events_are_written_as_they_are_read() {
    assert_eq!(HEARTBEAT, b":\n\n");
    let begin = |random| preamble(seconds(2), Duration::from_millis(500), random, &at(3));
    assert_eq!(begin(0), "retry: 2000\nid: 0000000000007:3\n\n");
    assert_eq!((begin(500), begin(501)), (begin(0).replace("2000", "2500"), begin(0)));
    let gap = Gap { from: at(1), to: at(3) };
    assert_eq!(
        gap_event("a\n", &gap, &gap.to),
        "id: 0000000000007:3\nevent: gap\ndata: {\"topic\":\"a\\n\",\"from\":\"0000000000007:1\",\"to\":\"0000000000007:3\"}\n\n"
    );
    let message = message(Payload::Text("x\ny"));
    let positions = Positions::new([(Tag::of("a"), at(1)), (Tag::of("b"), at(9))].into_iter());
    let whole = |chunked| {
        let (begin, tail) = event_of_several(&message, &positions, chunked);
        String::from_utf8([&begin, tail.bytes()].concat()).unwrap()
    };
    let event = format!("id: {positions}\ndata: x\ndata: y\n\n");
    assert_eq!((whole(false), whole(true)), (event.clone(), format!("{:x}\r\n{event}\r\n", event.len())));
}

#[test]
fn queries_name_topics_and_where_they_were_left() {
    let nowhere = From::After(Position::NOWHERE);
    for (query, field, expected) in [
        ("", None, vec![(BROADCAST, From::Now)]),
        ("token=x&topic", None, vec![("", From::Now)]),
        ("topic=a&topic=b", None, vec![("a", From::Now), ("b", From::Now)]),
        ("topic=b,a%2Cc&&topic=b", None, vec![("b", From::Now), ("a,c", From::Now)]),
        ("topic=a&last_event_id=0000000000007:5", None, vec![("a", From::After(at(5)))]),
        ("topic=a&last_event_id=0000000000007%3A5", Some("0000000000007:6"), vec![("a", From::After(at(6)))]),
        ("topic=a&last_event_id=0000000000007:5", Some(""), vec![("a", From::After(at(5)))]),
        ("topic=a,b", Some("0000000000007:b=7,a=6"), vec![("a", From::After(at(6))), ("b", From::After(at(7)))]),
        ("topic=a,b", Some("0000000000007:c=7,a=6"), vec![("a", From::After(at(6))), ("b", nowhere)]),
        ("topic=a", Some("0000000000007:c=7,a=6"), vec![("a", From::After(at(6)))]),
        ("topic=a,b", Some("0000000000007:6"), vec![("a", nowhere), ("b", nowhere)]),
        ("to%70ic=%c3%a4", Some("\u{ff}"), vec![("ä", nowhere)]),
    ] {
        let found = listen(query.as_bytes(), field.map(str::as_bytes), 2).unwrap();
        let expected: Vec<_> = expected.into_iter().map(|(topic, from)| (topic.to_owned(), from)).collect();
        assert_eq!(found.topics, expected, "{query}");
    }
    assert_eq!(listen(b"topic=a,b,c", None, 2).unwrap_err(), "the query: topic: there may be 2 at most");
    assert!(listen(b"topic=%ff", None, 2).unwrap_err().contains("no UTF-8"));
}

#[test]
fn the_document_of_topics_is_json() {
    let hub = hub(|_| ());
    hub.subscribe(Duration::ZERO, "b", 1, From::Now).unwrap();
    say(&hub, 0, "a\"", "x").unwrap();
    let document: Value = serde_json::from_str(&topics(&hub.counts(None, 10))).unwrap();
    let bytes = hub.counts(None, 1).topics[0].bytes;
    let expected = serde_json::json!({
        "topics": [
            { "topic": "a\"", "subscribers": 0, "messages": 1, "bytes": bytes, "id": "0000000000007:1" },
            { "topic": "b", "subscribers": 1, "messages": 0, "bytes": 0, "id": "0000000000007:0" },
        ],
        "all": 2,
        "memory": hub.memory(),
    });
    assert_eq!(document, expected);
}
