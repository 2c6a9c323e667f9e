//! The hub at times that the tests name, its bounds, and what it hands over; `tests/threads.rs` has it between threads, `tests/wire.rs` what is said.

mod bus;
mod threads;
mod wire;

use super::message::{heap_bytes, shared_bytes};
use super::*;
use crate::buffers::outbox::Piece;
use crate::websocket::deflate::{Deflater, Inflater};

const EPOCH: Epoch = Epoch(7);

fn at(offset: u64) -> Position {
    Position { epoch: EPOCH, offset }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn hub(change: impl FnOnce(&mut Settings)) -> Hub {
    let mut settings = Settings::new("test");
    change(&mut settings);
    Hub::new(settings, EPOCH, 2)
}

/// Publishes a text, at that second.
fn say(hub: &Hub, second: u64, topic: &str, text: &str) -> Result<Published, Refused> {
    hub.publish(seconds(second), topic, Payload::Text(text), None)
}

/// Says the numbers from 1 on.
fn count_to(hub: &Hub, topic: &str, most: u64) {
    for number in 1..=most {
        assert_eq!(say(hub, 0, topic, &number.to_string()).unwrap().position, at(number));
    }
}

/// All that a subscriber at that position gets, with what it has missed before.
fn read_all(topic: &Topic, after: Position) -> (Option<Gap>, Vec<String>) {
    let mut messages = Vec::new();
    let read = topic.read(after, usize::MAX, &mut messages);
    assert!(!read.more && read.at == topic.heard(0));
    (read.gap, messages.iter().map(|message| String::from_utf8(message.payload().to_vec()).unwrap()).collect())
}

fn bytes(piece: &Piece) -> &str {
    std::str::from_utf8(piece.bytes()).unwrap()
}

/// The only message of a new topic.
fn message(payload: Payload<'_>) -> Arc<Message> {
    let hub = hub(|_| ());
    hub.publish(Duration::ZERO, "news", payload, None).unwrap();
    let mut messages = Vec::new();
    hub.subscribe(Duration::ZERO, "news", 0, From::Now).unwrap().topic.read(at(0), 0, &mut messages);
    messages.remove(0)
}

#[test]
fn whoever_comes_back_gets_what_it_has_missed_or_is_told() {
    let hub = hub(|settings| settings.history.count = 3);
    count_to(&hub, "a", 5);
    let gap = |from: Position, to: u64| Some(Gap { from, to: at(to) });
    let elsewhere = Position { epoch: Epoch(8), offset: 4 };
    for (from, expected_gap, expected) in [
        (at(4), None, &["5"][..]),
        (at(2), None, &["3", "4", "5"]),
        (at(5), None, &[]),
        (at(1), gap(at(1), 2), &["3", "4", "5"]),
        (at(0), gap(at(0), 2), &["3", "4", "5"]),
        // Of another epoch nobody knows what it has seen; of the future it may have seen all of this.
        (elsewhere, gap(elsewhere, 2), &["3", "4", "5"]),
        (at(6), gap(at(6), 5), &[]),
        (Position { offset: u64::MAX, ..at(0) }, gap(Position { offset: u64::MAX, ..at(0) }, 5), &[]),
    ] {
        let subscribed = hub.subscribe(Duration::ZERO, "a", 0, From::After(from)).unwrap();
        assert_eq!((subscribed.gap, subscribed.more), (expected_gap, !expected.is_empty()), "{from}");
        assert_eq!(
            read_all(&subscribed.topic, subscribed.at),
            (None, expected.iter().map(|&text| text.into()).collect())
        );
    }
    let subscribed = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap();
    assert_eq!((subscribed.at, subscribed.gap, subscribed.more), (at(5), None, false));
    // It falls behind, and is told when it reads.
    for number in 6..=9 {
        say(&hub, 0, "a", &number.to_string()).unwrap();
    }
    let expected = ["7", "8", "9"].map(str::to_owned).to_vec();
    assert_eq!(read_all(&subscribed.topic, subscribed.at), (gap(at(5), 6), expected));
}

#[test]
fn a_reading_ends_at_about_so_many_bytes_and_has_one_message_at_least() {
    let hub = hub(|_| ());
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    for _ in 0..10 {
        say(&hub, 0, "a", &"x".repeat(1000)).unwrap();
    }
    for (most, expected) in [(0, 1), (1000, 1), (2200, 2), (5000, 4), (100_000, 10)] {
        let mut messages = Vec::new();
        let read = topic.read(at(0), most, &mut messages);
        assert_eq!((messages.len() as u64, read.at, read.more), (expected, at(expected), expected < 10), "{most}");
    }
}

#[test]
fn a_loop_is_told_once_until_it_has_heard() {
    let hub = hub(|_| ());
    let tell = |topic: &str| say(&hub, 0, topic, "x").unwrap().tell.iter().collect::<Vec<_>>();
    let topic = hub.subscribe(Duration::ZERO, "a", 1, From::Now).unwrap().topic;
    assert_eq!((tell("a"), tell("a"), tell("b")), (vec![1], vec![], vec![]));
    assert_eq!(topic.heard(1), at(2));
    hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap();
    assert_eq!((tell("a"), tell("a")), (vec![0, 1], vec![]));
    hub.unsubscribe(&topic, 1);
    topic.heard(0);
    topic.heard(1);
    assert_eq!((tell("a"), say(&hub, 0, "a", "x").unwrap().subscribers), (vec![0], 1));
    // Whoever leaves and comes again has not been told.
    hub.unsubscribe(&topic, 0);
    assert!(tell("a").is_empty());
    hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap();
    assert_eq!(tell("a"), [0]);
}

#[test]
fn the_same_id_in_five_minutes_is_one_message() {
    let hub = hub(|settings| settings.most_ids = 3);
    let publish = |second: u64, topic: &str, id: &str| {
        let published = hub.publish(seconds(second), topic, Payload::Text("x"), Some(id)).unwrap();
        (published.position.offset, published.duplicate)
    };
    hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap();
    assert_eq!((publish(0, "a", "1"), publish(299, "a", "1")), ((1, false), (1, true)));
    assert_eq!(
        (publish(299, "b", "1"), publish(299, "a", "2")),
        ((1, false), (2, false)),
        "of another topic, and another"
    );
    // Not said again, the first one is known for five minutes from when it came.
    assert_eq!((publish(300, "a", "1"), publish(301, "a", "1")), ((3, false), (3, true)));
    // Three are known: the oldest makes room.
    assert_eq!((publish(302, "a", "3"), publish(303, "b", "1")), ((4, false), (2, false)));
    assert_eq!(
        (publish(304, "a", "1"), publish(304, "a", "3"), publish(304, "a", "2")),
        ((3, true), (4, true), (5, false))
    );
    let read = hub.subscribe(seconds(304), "a", 0, From::After(at(2))).unwrap();
    assert_eq!(read_all(&read.topic, read.at).1.len(), 3, "as many as were published");
}

#[test]
fn messages_go_by_their_age() {
    let hub = hub(|settings| settings.history.age = seconds(10));
    say(&hub, 0, "a", "1").unwrap();
    say(&hub, 5, "a", "2").unwrap();
    let topic = hub.subscribe(seconds(9), "a", 0, From::Now).unwrap().topic;
    assert_eq!(read_all(&topic, at(0)).1, ["1", "2"]);
    hub.sweep(seconds(10));
    assert_eq!(read_all(&topic, at(0)), (Some(Gap { from: at(0), to: at(1) }), vec!["2".to_owned()]));
    hub.sweep(seconds(15));
    assert_eq!(read_all(&topic, at(0)), (Some(Gap { from: at(0), to: at(2) }), vec![]));
    // By whoever comes or publishes, too.
    say(&hub, 20, "a", "3").unwrap();
    assert_eq!(
        hub.subscribe(seconds(30), "a", 0, From::After(at(2))).unwrap().gap,
        Some(Gap { from: at(2), to: at(3) })
    );
}

#[test]
fn a_topic_is_forgotten_when_nobody_uses_it_and_its_numbers_are_not_given_again() {
    let hub = hub(|settings| settings.history.age = seconds(10));
    count_to(&hub, "a", 3);
    let topic = hub.subscribe(seconds(1), "b", 0, From::Now).unwrap().topic;
    hub.sweep(seconds(10));
    assert_eq!(hub.counts(None, 9).all, 2, "seen without messages just now");
    hub.sweep(seconds(19));
    assert_eq!(hub.counts(None, 9).all, 2, "who lost its connection comes back to where it was");
    hub.sweep(seconds(20));
    assert_eq!(hub.counts(None, 9).all, 1);
    hub.unsubscribe(&topic, 0);
    hub.sweep(seconds(21));
    hub.sweep(seconds(31));
    assert_eq!((hub.counts(None, 9).all, hub.memory()), (0, 0));
    assert_eq!(say(&hub, 40, "a", "4").unwrap().position, at(4));
    let back = hub.subscribe(seconds(40), "b", 0, From::After(at(0))).unwrap();
    assert_eq!(back.gap, Some(Gap { from: at(0), to: at(3) }), "nobody knows any more that nothing was said");
}

#[test]
fn whatever_is_asked_for_memory_is_bounded() {
    let hub = hub(|settings| {
        settings.most_topics = 100;
        settings.memory = 1 << 20;
        settings.topics = ["chat.*", "x"].map(|text| Pattern::new(text).unwrap()).to_vec();
    });
    let outside = ["chat", "y", "", "chat.a b", "chat.\u{7}", "chat.*", &format!("chat.{}", "a".repeat(251))];
    for name in outside {
        assert_eq!(say(&hub, 0, name, "").unwrap_err(), Refused::NoSuchTopic, "{name:?}");
    }
    assert_eq!(say(&hub, 0, "chat.a", &"x".repeat(65_537)).unwrap_err(), Refused::TooBig);
    assert_eq!(hub.memory(), 0, "what is refused leaves nothing");
    // One client asks for ten thousand topics.
    let subscribed: Vec<_> = (0..10_000)
        .filter_map(|number| hub.subscribe(Duration::ZERO, &format!("chat.{number}"), 0, From::Now).ok())
        .collect();
    assert_eq!((subscribed.len(), hub.counts(None, 0).all), (75, 75), "a quarter is for those who publish");
    for number in 0..25 {
        say(&hub, 0, &format!("chat.p{number}"), "").unwrap();
    }
    assert_eq!(say(&hub, 0, "chat.new", "").unwrap_err(), Refused::TooManyTopics);
    subscribed[25..].iter().for_each(|subscribed| hub.unsubscribe(&subscribed.topic, 0));
    assert!(
        (0..50).all(|number| say(&hub, 0, &format!("chat.new{number}"), "").is_ok()),
        "unused ones make room at once"
    );
    assert_eq!(say(&hub, 0, "chat.new50", "").unwrap_err(), Refused::TooManyTopics);
    // Others publish all they can.
    let mut results = Vec::new();
    for number in 0..2000 {
        let topic = subscribed[number % 25].topic.name();
        results.push(say(&hub, 0, topic, &"x".repeat(60_000)).map(|_| ()));
        assert!(hub.memory() <= 1 << 20);
    }
    let refused = results.iter().filter(|result| **result == Err(Refused::Full)).count();
    assert!(refused > 100, "{refused}");
    // Who has some gives up its own, the newest excepted, and no other's.
    let counts = hub.counts(None, 100).topics;
    let rich = counts.iter().find(|count| count.messages > 1).map(|count| count.topic.to_string());
    let others = counts.iter().filter(|count| Some(&*count.topic) != rich.as_deref()).cloned().collect::<Vec<_>>();
    if let Some(rich) = rich {
        assert!(say(&hub, 0, &rich, &"x".repeat(60_000)).is_ok());
    }
    let after = hub.counts(None, 100).topics;
    assert!(others.iter().all(|count| after.contains(count)));
}

#[test]
fn a_newest_message_stays_where_memory_is_used_up() {
    let hub = hub(|settings| settings.memory = 50_000);
    let big = "x".repeat(30_000);
    say(&hub, 0, "a", &big).unwrap();
    assert_eq!(say(&hub, 0, "a", &big).unwrap_err(), Refused::Full, "somebody may not have read it yet");
    assert_eq!(say(&hub, 0, "b", &big).unwrap_err(), Refused::Full);
    for _ in 0..3 {
        say(&hub, 0, "a", "small").unwrap();
    }
    say(&hub, 0, "a", &big).unwrap();
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    let lengths: Vec<_> = read_all(&topic, at(0)).1.iter().map(String::len).collect();
    assert_eq!(lengths, [5, 5, 5, 30_000], "the oldest made room");
}

#[test]
fn other_settings_hold_from_now_on_and_nobody_is_sent_away() {
    let hub = hub(|_| ());
    count_to(&hub, "a", 10);
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    let mut settings = Settings::new("test");
    settings.history.count = 4;
    settings.topics = vec![Pattern::new("b").unwrap()];
    hub.configure(settings);
    assert_eq!(say(&hub, 0, "a", "x").unwrap_err(), Refused::NoSuchTopic);
    hub.sweep(Duration::ZERO);
    assert_eq!(
        read_all(&topic, at(5)),
        (Some(Gap { from: at(5), to: at(6) }), ["7", "8", "9", "10"].map(str::to_owned).to_vec())
    );
    hub.configure(Settings::new("test"));
    assert_eq!(say(&hub, 0, "a", "x").unwrap().tell.iter().collect::<Vec<_>>(), [0]);
}

#[test]
fn forms_are_made_once_and_kept_for_a_while() {
    let hub = hub(|settings| settings.memory = 100_000);
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    let bare = hub.memory();
    say(&hub, 0, "a", &"x".repeat(30_000)).unwrap();
    let mut messages = Vec::new();
    topic.read(at(0), 0, &mut messages);
    let message = &messages[0];
    let (before, own) = (hub.memory(), topic.bytes());
    let envelope = message.envelope_frame();
    let weight = shared_bytes(envelope.bytes().len());
    assert_eq!((hub.memory(), topic.bytes()), (before + weight, own + weight));
    let is_same = |one: &Piece, other: &Piece| one.bytes().as_ptr() == other.bytes().as_ptr();
    assert!(is_same(&envelope, &message.envelope_frame()) && is_same(&message.raw_frame(), &message.raw_frame()));
    assert!(is_same(&message.event_chunk(), &message.event_chunk()));
    // The event lies in its chunk.
    let both = hub.memory();
    let (event, chunk) = (message.event(), message.event_chunk());
    assert!(event.bytes() == &chunk.bytes()[6..chunk.bytes().len() - 2] && hub.memory() == both);
    hub.sweep(seconds(9));
    assert_eq!(hub.memory(), both);
    hub.sweep(seconds(10));
    assert_eq!((hub.memory(), topic.bytes()), (before, own));
    assert!(message.envelope_frame().bytes() == envelope.bytes());
    // What there is no room for is made for each.
    for _ in 0..3 {
        say(&hub, 0, "a", &"x".repeat(30_000)).unwrap();
    }
    topic.read(at(1), usize::MAX, &mut messages);
    let before = hub.memory();
    let forms: Vec<_> = messages.iter().map(|message| (message.envelope_frame(), message.event())).collect();
    assert!(hub.memory() > before && hub.memory() <= 200_000);
    let kept =
        |(message, (envelope, _)): &(&Arc<Message>, &(Piece, Piece))| is_same(envelope, &message.envelope_frame());
    assert!((1..messages.len()).contains(&messages.iter().zip(&forms).filter(kept).count()));
    assert!(forms.iter().all(|(envelope, event)| envelope.bytes().len() > 30_000 && event.bytes().len() > 30_000));
    // Nor is it for one that is gone, and what was is given back.
    hub.unsubscribe(&topic, 0);
    hub.sweep(seconds(300));
    assert_eq!(topic.bytes(), 0);
    messages[0].event();
    assert!((topic.bytes(), hub.memory()) <= (0, bare));
}

#[test]
fn what_is_deflated_is_deflated_once_where_there_is_room_for_it() {
    let (hub, mut deflater) = (hub(|settings| settings.memory = 100_000), Deflater::default());
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    // Bytes that nothing can be made of, as xorshift gives them.
    let mut state = 1_u64;
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    let noise: Vec<u8> = (0..2000).map(|_| noise()).collect();
    let (short, long) = ("x".repeat(1024), "x".repeat(1025));
    for payload in [Payload::Text(&short), Payload::Text(&long), Payload::Binary(&noise)] {
        hub.publish(Duration::ZERO, "a", payload, None).unwrap();
    }
    let mut messages = Vec::new();
    topic.read(at(0), usize::MAX, &mut messages);
    let [short, long, noise] = &messages[..] else { panic!("{messages:?}") };
    assert_eq!(short.deflated_frame(false, &mut deflater).bytes(), short.raw_frame().bytes());
    assert_eq!(short.deflated_frame(true, &mut deflater).bytes(), short.envelope_frame().bytes());
    // What is left as it is, is not tried again.
    assert_eq!(noise.deflated_frame(false, &mut deflater).bytes(), noise.raw_frame().bytes());
    assert_eq!(noise.forms().iter().map(|form| form.len()).collect::<Vec<_>>(), [0]);
    let inflated = |frame: &Piece, opcode: u8| {
        assert_eq!(frame.bytes()[0], 0xc0 | opcode);
        Inflater::default().message(&frame.bytes()[2..], 1 << 20).unwrap()
    };
    let before = (hub.memory(), topic.bytes());
    let (raw, told) = (long.deflated_frame(false, &mut deflater), long.deflated_frame(true, &mut deflater));
    assert_eq!(inflated(&raw, 1), long.payload());
    assert_eq!(inflated(&told, 1), long.envelope().as_bytes());
    let weight = shared_bytes(raw.bytes().len()) + shared_bytes(told.bytes().len());
    assert_eq!((hub.memory(), topic.bytes()), (before.0 + weight, before.1 + weight));
    for (told, frame) in [(false, &raw), (true, &told)] {
        let again = long.deflated_frame(told, &mut deflater);
        assert_eq!(again.bytes().as_ptr(), frame.bytes().as_ptr());
    }
    let bytes = vec![7; 5000];
    assert_eq!(inflated(&message(Payload::Binary(&bytes)).deflated_frame(false, &mut deflater), 2), bytes);
    hub.sweep(seconds(10));
    assert!(long.forms().is_empty());
    // Where nothing can be kept, it is not made for each.
    hub.configure(Settings { memory: 1, ..Settings::new("test") });
    assert_eq!(long.deflated_frame(false, &mut deflater).bytes(), long.raw_frame().bytes());
}

#[test]
fn a_message_is_written_for_each_way() {
    let text = message(Payload::Text("a\"b\r\nc\rd\n"));
    assert_eq!(text.raw_frame().bytes(), b"\x81\x09a\"b\r\nc\rd\n");
    let envelope =
        "{\"type\":\"message\",\"topic\":\"news\",\"id\":\"0000000000007:1\",\"data\":\"a\\\"b\\r\\nc\\rd\\n\"}";
    assert_eq!(
        (text.envelope().as_str(), &text.envelope_frame().bytes()[..2]),
        (envelope, &[0x81, envelope.len() as u8][..])
    );
    assert_eq!(&text.envelope_frame().bytes()[2..], envelope.as_bytes());
    let event = "id: 0000000000007:1\ndata: a\"b\ndata: c\ndata: d\ndata: \n\n";
    assert_eq!(bytes(&text.event()), event);
    assert_eq!(bytes(&text.event_chunk()), format!("{:x}\r\n{event}\r\n", event.len()));

    let json = message(Payload::Json("{\"a\": [1.0,\n2]}"));
    assert_eq!(bytes(&json.event()), "id: 0000000000007:1\ndata: {\"a\": [1.0,\ndata: 2]}\n\n");
    assert!(json.envelope().ends_with(",\"data\":{\"a\": [1.0,\n2]}}"));
    assert_eq!(json.raw_frame().bytes()[0], 0x81);

    let binary = message(Payload::Binary(&[0, 0xff, 10]));
    assert_eq!(binary.raw_frame().bytes(), [0x82, 3, 0, 0xff, 10]);
    assert!(binary.envelope().ends_with(",\"binary\":\"AP8K\"}"));
    assert_eq!(bytes(&binary.event()), "id: 0000000000007:1\nevent: binary\ndata: AP8K\n\n");
    assert_eq!(bytes(&message(Payload::Text("")).event()), "id: 0000000000007:1\ndata: \n\n");

    for (length, head) in [(125, &[0x81, 125][..]), (126, &[0x81, 126, 0, 126]), (65_535, &[0x81, 126, 0xff, 0xff])] {
        let text = "x".repeat(length);
        let message = message(Payload::Text(&text));
        assert_eq!(message.raw_frame().bytes(), [head, text.as_bytes()].concat());
        assert_eq!(message.payload(), text.as_bytes());
    }
    let long = "x".repeat(65_536);
    let message = message(Payload::Text(&long));
    assert_eq!(message.raw_frame().bytes(), [&[0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0][..], long.as_bytes()].concat());
    assert_eq!(message.payload(), long.as_bytes());
}

/// What is charged is what the allocator gives, but for the rest of a free piece of memory that would be too small for
/// a piece of its own: glibc gives those 16 bytes along (`MINSIZE` in its malloc.c).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn the_account_is_what_memory_is_taken() {
    // Two counts lie before what an `Arc` points to.
    let taken = |pointer: *const u8| {
        // SAFETY: the pointer is that of an allocation of the system's allocator, which is alive.
        unsafe { libc::malloc_usable_size(pointer.wrapping_sub(16).cast_mut().cast()) + 8 }
    };
    for length in [0, 1, 7, 8, 9, 100, 1000, 4096, 65_536] {
        let text = "\n".repeat(length);
        let message = message(Payload::Text(&text));
        message.envelope_frame();
        message.event();
        let raw = message.raw_frame();
        let mut all = vec![Arc::as_ptr(&message).cast(), raw.bytes().as_ptr()];
        let forms = message.forms();
        all.extend(forms.iter().map(|form| Arc::as_ptr(form).cast::<u8>()));
        let taken: usize = all.into_iter().map(taken).sum();
        let charged = message.cost() + forms.iter().map(|form| shared_bytes(form.len())).sum::<usize>();
        assert_eq!(forms.len(), 2);
        assert!(charged.abs_diff(taken) <= 4 * 16, "{length}: {charged} are charged, {taken} are taken");
    }
    let vector: Vec<u64> = Vec::with_capacity(100);
    // SAFETY: as above.
    let taken = unsafe { libc::malloc_usable_size(vector.as_ptr().cast_mut().cast()) } + 8;
    assert!(taken == heap_bytes(800) || taken == heap_bytes(800) + 16, "{taken}");
}

#[test]
fn names_and_patterns() {
    for (pattern, name, takes) in [
        ("*", "anything", true),
        ("chat.*", "chat.", true),
        ("chat.*", "chat.a.b", true),
        ("chat.*", "chat", false),
        ("chat.*", "xchat.a", false),
        ("user/*/inbox", "user/1/inbox", true),
        ("user/*/inbox", "user/1/2/inbox", true),
        ("user/*/inbox", "user/1/inbox/x", false),
        ("*a*b*", "xxaxxbxx", true),
        ("*a*b*", "xxbxxaxx", false),
        ("*ab", "aab", true),
        ("*ab", "aba", false),
        ("a", "a", true),
        ("a", "ab", false),
        ("ä*", "äö", true),
    ] {
        assert_eq!(Pattern::new(pattern).unwrap().takes(name), takes, "{pattern} {name}");
    }
    let star = format!("{}b", "a*".repeat(127));
    assert!(!Pattern::new(&star).unwrap().takes(&"a".repeat(255)), "and soon");
    for text in ["", "a b", "a\n", "\u{85}", "a\u{2028}", &"a".repeat(256)] {
        assert!(Pattern::new(text).is_err() && !is_name(text), "{text:?}");
    }
    assert!(is_name(&"a".repeat(255)) && !is_name("a*") && is_name("ünïcode,&\"'"));
    assert!(Pattern::new("a b").unwrap_err().contains("\"a b\" is no pattern of topics"));
}

#[test]
fn positions_are_read_strictly() {
    let position = Position { epoch: Epoch(u64::MAX), offset: 0 };
    assert_eq!(position.to_string(), "fzzzzzzzzzzzz:0");
    assert_eq!("fzzzzzzzzzzzz:0".parse(), Ok(position));
    assert_eq!("0000000000007:18446744073709551615".parse(), Ok(Position { epoch: EPOCH, offset: u64::MAX }));
    for text in [
        "",
        ":",
        "0000000000007",
        "0000000000007:",
        "000000000007:1",
        "00000000000007:1",
        "g000000000007:1",
        "000000000000u:1",
        "000000000000Z:1",
        "0000000000007:01",
        "0000000000007:+1",
        "0000000000007:-1",
        "0000000000007:18446744073709551616",
        "0000000000007:1 ",
        " 0000000000007:1",
        "0000000000007:1,2",
        "0000000000007:1:2",
    ] {
        assert!(text.parse::<Position>().is_err(), "{text}");
    }
    let later = Epoch::new(1_800_000_001, 0);
    assert!(later > Epoch::new(1_800_000_000, u64::MAX) && Epoch::new(0, 1) != Epoch::new(0, 2));

    // Of several topics: by their tags or names, in any order.
    let cursors = [(Tag::of("a"), at(1)), (Tag::of("ä,b"), at(u64::MAX))];
    let text = Positions::new(cursors.into_iter()).to_string();
    assert_eq!(text.len(), "0000000000007:~tttttttttt=1,~tttttttttt=18446744073709551615".len());
    let read = |text: &str, topic| text.parse::<Positions>().map(|positions| positions.of(topic));
    for text in [text.as_str(), "0000000000007:%C3%A4%2Cb=18446744073709551615,a=1"] {
        let found = ["a", "ä,b", "c"].map(|topic| read(text, topic).unwrap());
        assert_eq!(found, [at(1), at(u64::MAX), Position::NOWHERE], "{text}");
    }
    for text in
        ["nonsense", "7:a=1", "0000000000007:1", "0000000000007:a=01", "0000000000007:~a=1", "0000000000007:%ff=1"]
    {
        assert!(text.parse::<Positions>().is_err(), "{text}");
    }
    let many = |count| format!("0000000000007:a=1{}", ",b=2".repeat(count));
    assert!(read(&many(1023), "a").is_ok() && read(&many(1024), "a").is_err());
    // One that was not read in this epoch comes back to a gap.
    let old = Position { epoch: Epoch(6), offset: 9 };
    let text = Positions::new([(Tag::of("a"), old), (Tag::of("b"), at(3))].into_iter()).to_string();
    assert_eq!([read(&text, "a"), read(&text, "b")], [Ok(Position::NOWHERE), Ok(at(3))]);
}

/// Where history is 0, who comes back is told that it has missed something, and who listens loses nothing that it has time for.
#[test]
fn without_a_history_only_who_listens_gets_what_was() {
    let hub = hub(|settings| settings.history.count = 0);
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    count_to(&hub, "a", LIVE as u64);
    assert_eq!(read_all(&topic, at(0)).1.len(), LIVE);
    let back = |after| {
        let Subscribed { at, gap, .. } = hub.subscribe(Duration::ZERO, "a", 1, From::After(after)).unwrap();
        (at, gap)
    };
    assert_eq!(back(at(9)), (at(100), Some(Gap { from: at(9), to: at(100) })));
    assert_eq!(back(at(100)), (at(100), None));
    say(&hub, 0, "a", "one more").unwrap();
    assert_eq!(read_all(&topic, at(0)).0, Some(Gap { from: at(0), to: at(1) }));
}

#[test]
fn who_listens_leaves_places_to_who_publishes() {
    let hub = hub(|settings| settings.most_topics = 8);
    let listen = |topic: &str| hub.subscribe(Duration::ZERO, topic, 0, From::Now).map(drop);
    for number in 0..6 {
        listen(&format!("t{number}")).unwrap();
    }
    assert_eq!(listen("t6").unwrap_err(), Refused::TooManyTopics);
    listen("t5").unwrap();
    for topic in ["p", "q"] {
        say(&hub, 0, topic, "x").unwrap();
        listen(topic).unwrap();
    }
    assert_eq!(say(&hub, 0, "r", "x").unwrap_err(), Refused::TooManyTopics);
}

/// What nobody but a slow client has any more is bounded, too: it is counted for as long as it is there.
#[test]
fn what_is_given_up_is_in_sight_until_nobody_has_it() {
    let hub = hub(|settings| (settings.history.count, settings.memory) = (2, 4 << 20));
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    let text = "x".repeat(60_000);
    let mut taken: Vec<Piece> = (0..100)
        .map(|number| {
            say(&hub, 0, "a", &text).unwrap();
            let mut messages = Vec::new();
            topic.read(at(number), 0, &mut messages);
            if number % 2 == 0 { messages[0].raw_frame() } else { messages[0].envelope_frame() }
        })
        .collect();
    assert!((5_800_000..6_000_000).contains(&hub.left()), "{}", hub.left());
    assert!(hub.is_overrun() && topic.is_overrun() && hub.memory() < 250_000, "{}", hub.memory());
    taken.drain(..90);
    assert!(!hub.is_overrun());
    hub.lend("said to many".as_bytes().into());
    taken.clear();
    assert_eq!(hub.left(), 0);
}

/// What a reader is given from a position on, reading by reading, until there is nothing more: the messages, and whether it was told of a gap.
fn read_on(topic: &Topic, mut at: Position) -> (Vec<Position>, bool) {
    let (mut messages, mut gap) = (Vec::new(), false);
    loop {
        let read = topic.read(at, 1, &mut messages);
        (at, gap) = (read.at, gap || read.gap.is_some());
        if !read.more {
            return (messages.iter().map(|message| message.position()).collect(), gap);
        }
    }
}

#[test]
fn what_an_epoch_follows_can_still_be_read() {
    let hub = hub(|settings| settings.history.count = 4);
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    let (first, other) = (hub.epoch(), Epoch(hub.epoch().0 + 1));
    let of =
        |epoch, offsets: &[u64]| offsets.iter().map(|offset| Position { epoch, offset: *offset }).collect::<Vec<_>>();
    count_to(&hub, "a", 3);
    hub.go_on_in(other);
    // Who was not so far yet goes on, and who was misses nothing.
    assert_eq!(read_on(&topic, at(1)), (of(first, &[2, 3]), false));
    say(&hub, 0, "a", "x").unwrap();
    assert_eq!(read_on(&topic, at(1)), ([of(first, &[2, 3]), of(other, &[1])].concat(), false));
    assert_eq!(read_on(&topic, at(3)), (of(other, &[1]), false));
    assert_eq!(hub.subscribe(Duration::ZERO, "a", 0, From::After(at(2))).unwrap().gap, None);
    // They are among those that the history has room for, and go first.
    say(&hub, 0, "a", "x").unwrap();
    assert_eq!(read_on(&topic, at(1)), ([of(first, &[2, 3]), of(other, &[1, 2])].concat(), false));
    assert_eq!(read_on(&topic, at(0)), ([of(first, &[2, 3]), of(other, &[1, 2])].concat(), true));
    say(&hub, 0, "a", "x").unwrap();
    say(&hub, 0, "a", "x").unwrap();
    assert_eq!(read_on(&topic, at(1)), (of(other, &[1, 2, 3, 4]), true));
    assert_eq!(hub.counts(None, 1).topics[0].messages, 4);
    // Of the one before that nothing is left.
    let last = Epoch(other.0 + 1);
    hub.go_on_in(last);
    say(&hub, 0, "a", "x").unwrap();
    assert_eq!(
        read_on(&topic, Position { epoch: other, offset: 3 }),
        ([of(other, &[4]), of(last, &[1])].concat(), false)
    );
    hub.go_on_in(Epoch(last.0 + 1));
    assert!(read_on(&topic, Position { epoch: other, offset: 3 }).1);
    // Another that does not follow ends all.
    hub.begin(Epoch(last.0 + 2));
    assert_eq!(read_on(&topic, Position { epoch: last, offset: 0 }), (Vec::new(), true));
    assert_eq!(hub.counts(None, 1).topics[0].messages, 0);
}

#[test]
fn an_epoch_in_which_nothing_was_said_is_none() {
    let hub = hub(|_| ());
    let topic = hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic;
    let (first, other) = (hub.epoch(), Epoch(hub.epoch().0 + 1));
    count_to(&hub, "a", 3);
    hub.go_on_in(other);
    assert_eq!(topic.heard(0).epoch, other);
    hub.go_on_in(first);
    hub.begin_behind(1 << 56);
    let next = Next { position: at(6), first: true };
    hub.append_next(Duration::ZERO, "a", next, Payload::Text("x"), None, &[]).unwrap();
    assert_eq!(read_on(&topic, at(1)), (vec![at(2), at(3), at(6)], false));
    assert_eq!(read_on(&topic, at(3)), (vec![at(6)], false));
}

#[test]
fn what_is_very_long_is_not_compressed() {
    let text = "a".repeat(256 * 1024 + 1);
    let mut deflater = Deflater::default();
    for (length, shorter) in [(1024, false), (1025, true), (256 * 1024, true), (256 * 1024 + 1, false)] {
        let hub = hub(|settings| settings.message = 1 << 20);
        say(&hub, 0, "a", &text[..length]).unwrap();
        let mut messages = Vec::new();
        hub.subscribe(Duration::ZERO, "a", 0, From::Now).unwrap().topic.read(at(0), 0, &mut messages);
        assert_eq!(messages[0].deflated_frame(false, &mut deflater).bytes().len() < length, shorter, "{length}");
    }
}

#[test]
fn loops_are_a_set() {
    let mut set = LoopSet::default();
    assert!(set.is_empty() && set.iter().next().is_none());
    for index in [1023, 0, 64, 63, 0] {
        set.insert(index);
    }
    let mut other = LoopSet::default();
    other.insert(5);
    set.extend(other);
    assert_eq!(set.iter().collect::<Vec<_>>(), [0, 5, 63, 64, 1023]);
    assert!(!set.is_empty());
}

#[test]
fn who_is_there_is_told_by_pages() {
    let hub = hub(|_| ());
    for topic in ["b", "a", "c"] {
        hub.subscribe(Duration::ZERO, topic, 0, From::Now).unwrap();
    }
    say(&hub, 0, "b", "x").unwrap();
    let counts = hub.counts(None, 2);
    let names = |counts: &Counts| counts.topics.iter().map(|count| count.topic.to_string()).collect::<Vec<_>>();
    assert_eq!((names(&counts), counts.all, counts.memory), (vec!["a".to_owned(), "b".to_owned()], 3, hub.memory()));
    let bytes = counts.topics[1].bytes;
    let expected = Count { topic: "b".into(), subscribers: 1, messages: 1, bytes, last: at(1) };
    assert!(counts.topics[1] == expected && bytes > 100 && counts.topics[0].bytes == 0);
    assert_eq!((names(&hub.counts(Some("b"), 2)), names(&hub.counts(Some("c"), 2))), (vec!["c".to_owned()], vec![]));
    // A sweep looks at them in turns.
    for number in 0..600 {
        say(&hub, 0, &format!("t{number}"), "x").unwrap();
    }
    let messages = |hub: &Hub| hub.counts(None, 1000).topics.iter().map(|count| count.messages).sum::<usize>();
    let left: Vec<_> = (0..3).map(|_| (hub.sweep(seconds(300)), messages(&hub)).1).collect();
    assert_eq!(left, [601 - 254, 601 - 510, 0]);
}
