//! Messages that another has numbered, other epochs, and what is handed to a successor.

use super::*;

fn put(hub: &Hub, topic: &str, offset: u64) -> Result<Published, Refused> {
    hub.append(Duration::ZERO, topic, at(offset), Payload::Text(&offset.to_string()), None)
}

#[test]
fn what_another_has_numbered_stands_where_it_says() {
    let hub = hub(|settings| settings.history.count = 4);
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    assert!(!put(&hub, "a", 1).unwrap().duplicate);
    assert!(put(&hub, "a", 1).unwrap().duplicate);
    assert!(put(&hub, "a", 4).unwrap().tell.is_empty(), "it was told and has not heard");
    topic.heard(0);
    // A hole ends a reading, and is the gap of the next.
    let mut messages = Vec::new();
    let read = topic.read(at(0), usize::MAX, &mut messages);
    assert_eq!((read.at, read.gap, read.more, messages.len()), (at(1), None, true, 1));
    let gap = Some(Gap { from: at(1), to: at(3) });
    assert_eq!(read_all(&topic, at(1)), (gap, vec!["4".to_owned()]));
    assert_eq!(put(&hub, "a", 3).unwrap().tell.iter().collect::<Vec<_>>(), [0]);
    put(&hub, "a", 2).unwrap();
    assert_eq!(read_all(&topic, at(1)), (None, ["2", "3", "4"].map(str::to_owned).to_vec()), "the hole is filled");
    assert_eq!(say(&hub, 0, "a", "5").unwrap().position, at(5), "numbering goes on behind");
    // What was given up does not come back.
    assert!(put(&hub, "a", 1).unwrap().duplicate);
    assert_eq!(read_all(&topic, at(0)).1, ["2", "3", "4", "5"]);
    for offset in [0, u64::MAX, 1 << 63] {
        assert_eq!(put(&hub, "a", offset).unwrap_err(), Refused::NoSuchPosition);
    }
    let id = hub.append(Duration::ZERO, "a", at(6), Payload::Text("6"), Some("x"));
    assert!(!id.unwrap().duplicate);
    assert!(hub.publish(Duration::ZERO, "a", Payload::Text("6"), Some("x")).unwrap().duplicate, "ids are remembered");
}

#[test]
fn another_epoch_is_a_gap_for_all() {
    let hub = hub(|_| ());
    count_to(&hub, "a", 3);
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    let other = Position { epoch: Epoch(8), offset: 1 };
    assert_eq!(hub.append(Duration::ZERO, "a", other, Payload::Text("x"), None).unwrap_err(), Refused::NoSuchPosition);
    hub.begin(Epoch(8));
    assert_eq!((hub.epoch(), topic.bytes() > 0), (Epoch(8), true));
    assert_eq!(hub.append(Duration::ZERO, "a", other, Payload::Text("x"), None).unwrap().position, other);
    let gap = Gap { from: at(3), to: Position { offset: 0, ..other } };
    assert_eq!(read_all(&topic, at(3)), (Some(gap), vec!["x".to_owned()]));
    hub.begin(Epoch(8));
    assert_eq!(
        say(&hub, 0, "a", "y").unwrap().position,
        Position { offset: 2, ..other },
        "the same one changes nothing"
    );
}

#[test]
fn a_successor_goes_on_where_its_predecessor_has_ended() {
    let old = hub(|settings| settings.history.count = 3);
    count_to(&old, "a", 5);
    old.publish(seconds(290), "b", Payload::Binary(&[0xff, 0]), Some("id")).unwrap();
    old.publish(seconds(290), "b", Payload::Json("[1]"), None).unwrap();
    old.subscribe(Duration::ZERO, "quiet", 0, From::Now).unwrap();
    put(&old, "holes", 3).unwrap();
    let bytes = old.snapshot(seconds(290));
    // From here on it numbers nothing.
    assert_eq!(say(&old, 290, "a", "6").unwrap_err(), Refused::Moved);
    assert_eq!(put(&old, "a", 6).unwrap_err(), Refused::Moved);
    assert_eq!(read_all(&old.subscribe(seconds(290), "a", 0, From::Now).unwrap().topic, at(4)).1, ["5"]);

    // The clock of another process begins with it.
    let new = Hub::new(Settings::new("test"), Epoch(99), 3);
    say(&new, 0, "a", "too early").unwrap();
    let early = new.subscribe(Duration::ZERO, "a", 2, From::Now).unwrap();
    let told = new.restore(seconds(1), &bytes).unwrap();
    let told: Vec<_> = told.iter().map(|(topic, tell)| (topic.name(), tell.iter().collect::<Vec<_>>())).collect();
    assert_eq!(told, [("a", vec![2])]);
    let gap = Gap { from: early.at, to: at(2) };
    assert_eq!(read_all(&early.topic, early.at), (Some(gap), ["3", "4", "5"].map(str::to_owned).to_vec()));
    let back = new.subscribe(seconds(1), "a", 0, From::After(at(4))).unwrap();
    assert_eq!((back.gap, read_all(&back.topic, back.at).1), (None, vec!["5".to_owned()]));
    assert_eq!(say(&new, 1, "a", "6").unwrap().position, at(6));
    assert_eq!(new.subscribe(seconds(1), "quiet", 0, From::After(at(0))).unwrap().gap, None);
    let holes = new.subscribe(seconds(1), "holes", 0, From::After(at(1))).unwrap();
    assert_eq!(holes.gap, Some(Gap { from: at(1), to: at(2) }));
    let mut messages = Vec::new();
    new.subscribe(seconds(1), "b", 0, From::Now).unwrap().topic.read(at(0), usize::MAX, &mut messages);
    let said: Vec<_> = messages.iter().map(|message| message.said()).collect();
    assert_eq!(said, [Payload::Binary(&[0xff, 0]), Payload::Json("[1]")]);
    new.sweep(seconds(11));
    let topics = new.counts(None, 9).topics;
    let count = |topic: &str| topics.iter().find(|count| &*count.topic == topic).unwrap().messages;
    assert_eq!((count("a"), count("b")), (1, 2), "messages are as old as they were");
    let again = |second: u64| new.publish(seconds(second), "b", Payload::Text("x"), Some("id")).unwrap().duplicate;
    assert!(again(300) && !again(301), "and so are ids");

    old.reopen();
    assert_eq!(say(&old, 290, "a", "6").unwrap().position, at(6));
}

#[test]
fn what_there_is_no_room_for_is_a_gap_for_the_successors_clients() {
    let old = hub(|_| ());
    count_to(&old, "a", 10);
    count_to(&old, "b", 20);
    count_to(&old, "c", 30);
    let bytes = old.snapshot(Duration::ZERO);
    let new = hub(|settings| {
        settings.history.count = 3;
        settings.most_topics = 2;
    });
    new.restore(Duration::ZERO, &bytes).unwrap();
    let back = new.subscribe(Duration::ZERO, "a", 0, From::After(at(2))).unwrap();
    assert_eq!(back.gap, Some(Gap { from: at(2), to: at(7) }));
    new.configure(Settings::new("test"));
    assert_eq!(say(&new, 0, "c", "x").unwrap().position, at(31), "no number is given twice");
    assert!(new.restore(Duration::ZERO, b"hub\x02").unwrap_err().contains("no snapshot"));
}

#[test]
fn a_snapshot_that_contradicts_itself_is_refused() {
    let hub = hub(|_| ());
    count_to(&hub, "a", 2);
    count_to(&hub, "b", 1);
    let good = hub.snapshot(Duration::ZERO);
    let refuses = |change: &dyn Fn(&mut Vec<u8>)| {
        let (mut bytes, new) = (good.clone(), self::hub(|_| ()));
        change(&mut bytes);
        new.restore(Duration::ZERO, &bytes).is_err() && new.memory() == 0
    };
    // Behind 24 bytes of head the name with its length, then three words and a count of four bytes, then the messages of 22 bytes each.
    let (name, last, gone, first, second) = (26, 27, 35, 47, 69);
    assert!(good[name] == b'a' && good[last] == 2 && good[first] == 1 && good[second] == 2 && !refuses(&|_| ()));
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let changes: [(&str, Change<'_>); 10] = [
        ("an offset twice", &|bytes| bytes[second] = 1),
        ("an offset that is gone", &|bytes| bytes[gone] = 1),
        ("a message behind the last", &|bytes| bytes[last] = 1),
        ("an offset too high", &|bytes| bytes[last + 7] = 0xff),
        ("an unknown kind", &|bytes| bytes[first + 8] = 3),
        ("text that is none", &|bytes| bytes[first + 21] = 0xff),
        ("JSON that is none", &|bytes| (bytes[first + 8], bytes[first + 21]) = (2, b'}')),
        ("a name twice", &|bytes| bytes[name] = b'b'),
        ("a name that is none", &|bytes| bytes[name] = b' '),
        ("bytes behind it", &|bytes| bytes.push(0)),
    ];
    for (what, change) in changes {
        assert!(refuses(change), "{what}");
    }
}

/// What an app publishes while the hub goes over is kept for the other process, in the form in which that one publishes.
#[test]
fn what_an_app_says_meanwhile_is_handed_on() {
    let hub = hub(|_| ());
    hub.snapshot(Duration::ZERO);
    assert_eq!(say(&hub, 0, "a", "x").unwrap_err(), Refused::Moved);
    assert!(hub.hand_on("/lobby \"1\"", r#"{"n":1.50}"#));
    let handed = hub.handed_on();
    let notice = super::super::wire::notify(handed[0].as_bytes()).unwrap();
    assert_eq!((&*notice.topic, notice.hub.as_deref(), handed.len()), ("/lobby \"1\"", Some("test"), 1));
    assert_eq!(notice.payload(), Payload::Json(r#"{"n":1.50}"#));
    assert!(hub.handed_on().is_empty());
    let long = format!("\"{}\"", "x".repeat(9 << 20));
    assert!(hub.hand_on("a", &long) && !hub.hand_on("a", &long), "it has a bound");
    hub.reopen();
    say(&hub, 0, "a", "x").unwrap();
}

/// Where others number, a topic of which nothing is known may go on at any number, also at that of one that was forgotten.
#[test]
fn nobody_stands_where_a_message_may_come() {
    for first in [true, false] {
        let hub = hub(|_| ());
        hub.set_carried(true);
        hub.raise_floor(6);
        let reader = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap();
        let next = Next { position: at(6), first };
        hub.append_next(Duration::ZERO, "a", next, Payload::Text("six"), None, &[]).unwrap();
        let (gap, texts) = read_all(&reader.topic, reader.at);
        assert_eq!((gap.is_none(), texts), (first, vec!["six".to_owned()]), "it comes, or is behind a gap");
    }
    let hub = hub(|_| ());
    hub.set_carried(true);
    hub.raise_floor(6);
    let reader = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap();
    hub.set_carried(false);
    assert_eq!(say(&hub, 0, "a", "x").unwrap().position, at(7), "numbered behind all");
    assert_eq!(read_all(&reader.topic, reader.at), (None, vec!["x".to_owned()]));
}

/// A bus that takes nothing.
struct Nobody;

impl Carrier for Nobody {
    fn carry(&self, _: Notice) -> Result<(), Refused> {
        Err(Refused::Full)
    }
}

#[test]
fn who_was_at_a_server_that_is_ahead_misses_nothing_and_has_nothing_twice() {
    let hub = hub(|_| ());
    let come = |from: Position| hub.subscribe(Duration::ZERO, "a", 0, From::After(from)).unwrap();
    for offset in 1..=5 {
        put(&hub, "a", offset).unwrap();
    }
    let gap = |from: u64, to: u64| Some(Gap { from: at(from), to: at(to) });
    assert_eq!(come(at(7)).gap, gap(7, 5), "without a bus nobody is ahead");
    hub.carry_by(Arc::new(Nobody));
    let ahead = come(at(7));
    assert_eq!((ahead.at, ahead.gap, ahead.end, ahead.more), (at(7), None, at(5), false));
    let read = |after: Position| {
        let mut messages = Vec::new();
        let read = ahead.topic.read(after, usize::MAX, &mut messages);
        (read.at, read.gap, messages.len())
    };
    for offset in 6..=7 {
        assert_eq!(read(at(7)), (at(7), None, 0));
        put(&hub, "a", offset).unwrap();
    }
    assert_eq!(read(at(7)), (at(7), None, 0));
    put(&hub, "a", 8).unwrap();
    assert_eq!(read(at(7)), (at(8), None, 1));
    for far in [at(2000), at(u64::MAX), Position { epoch: Epoch(8), offset: 9 }] {
        assert_eq!(come(far).gap, Some(Gap { from: far, to: at(if far.epoch == EPOCH { 8 } else { 0 }) }), "{far}");
    }
    hub.carry_no_more();
    assert_eq!(come(at(9)).gap, gap(9, 8));
}

/// Who listens before anything is numbered stands where numbers were thought to go on, and has had nothing of what comes below that.
#[test]
fn who_was_placed_too_far_is_not_ahead() {
    let hub = hub(|_| ());
    hub.carry_by(Arc::new(Nobody));
    hub.begin_behind(10);
    hub.set_carried(false);
    let placed = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap();
    assert_eq!(placed.at, at(10));
    put(&hub, "a", 8).unwrap();
    assert_eq!(read_all(&placed.topic, placed.at), (Some(Gap { from: at(10), to: at(8) }), vec![]));
}

#[test]
fn what_is_refused_that_another_has_numbered_is_missing_for_those_who_listen() {
    let hub = hub(|settings| settings.message = 10);
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    let next = |offset: u64, text: &str| {
        let next = Next { position: at(offset), first: true };
        hub.append_next(Duration::ZERO, "a", next, Payload::Text(text), None, &[]).map(|put| put.position)
    };
    let gap = |from: u64, to: u64| Some(Gap { from: at(from), to: at(to) });
    assert_eq!(next(1, "1"), Ok(at(1)));
    assert_eq!(next(2, "longer than that"), Err(Refused::TooBig));
    assert_eq!(next(3, "3"), Ok(at(3)));
    assert_eq!(read_all(&topic, at(1)), (gap(1, 2), vec!["3".to_owned()]));
    // A topic that is there, and that the settings have not.
    let with = |pattern: &str| {
        let settings = hub.settings();
        let topics = vec![Pattern::new(pattern).unwrap()];
        hub.configure(Settings { topics, ..(*settings).clone() });
    };
    with("b");
    assert_eq!(next(4, "4"), Err(Refused::NoSuchTopic));
    with("*");
    // And a number that is nobody's is no gap, if nothing is between.
    assert_eq!(next(6, "6"), Ok(at(6)));
    assert_eq!(read_all(&topic, at(3)), (gap(3, 5), vec!["6".to_owned()]));
    assert_eq!(next(9, "9"), Ok(at(9)));
    assert_eq!(read_all(&topic, at(6)), (None, vec!["9".to_owned()]));
    hub.pass_over("a", Refused::TooBig);
    hub.pass_over("nobody's", Refused::TooBig);
    assert_eq!(next(11, "11"), Ok(at(11)));
    assert_eq!(read_all(&topic, at(9)), (gap(9, 10), vec!["11".to_owned()]));
}
