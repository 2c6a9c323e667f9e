//! The rules of RFC 6455 and RFC 7692 as tables, and what holds however the bytes come.

use std::io::{self, Cursor, Read, Write};

use proptest::prelude::*;
use tungstenite::protocol::{Message, Role, WebSocket};

use super::decode::{Decoder, Event, Limits, Violation};
use super::deflate::{Deflate, Deflater, Inflater};
use super::{Opcode, encode};

mod opening;

const FIN: u8 = 0x80;
const COMPRESSED: u8 = 0x40;
const LIMITS: Limits = Limits { message: 1 << 20 };

/// A client's frame that begins with that byte.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode::frame(&mut frame, Opcode::Binary, false, payload);
    frame[0] = first;
    masked(frame, payload.len(), [0x37, 0xfa, 0x21, 0x3d])
}

/// The same frame as a client sends it, masked byte by byte.
fn masked(mut frame: Vec<u8>, payload: usize, key: [u8; 4]) -> Vec<u8> {
    frame[1] |= 0x80;
    let at = frame.len() - payload;
    for (byte, key) in frame[at..].iter_mut().zip(key.iter().cycle()) {
        *byte ^= key;
    }
    frame.splice(at..at, key);
    frame
}

/// What came of bytes.
#[derive(Debug, PartialEq)]
struct Seen {
    events: Vec<Event>,
    violation: Option<Violation>,
    /// Bytes until the violation was seen, or all.
    taken: usize,
    held: usize,
}

/// Feeds a decoder with pieces of these sizes, again and again from the first one.
fn feed(decoder: &mut Decoder, bytes: &[u8], sizes: &[usize], limits: Limits) -> Seen {
    let (mut inflater, mut bytes) = (Inflater::default(), bytes.to_vec());
    let mut seen = Seen { events: Vec::new(), violation: None, taken: 0, held: 0 };
    let (mut rest, mut sizes) = (&mut bytes[..], sizes.iter().cycle());
    while !rest.is_empty() {
        let size = *sizes.next().unwrap();
        let (mut piece, behind) = rest.split_at_mut(size.clamp(1, rest.len()));
        rest = behind;
        loop {
            let (count, event) = match decoder.take(piece, &limits, &mut inflater) {
                Ok(outcome) => outcome,
                Err(violation) => {
                    seen.taken += piece.len();
                    seen.violation = Some(violation);
                    return seen;
                }
            };
            let is_over = count == 0 && event.is_none();
            seen.taken += count;
            seen.events.extend(event);
            piece = &mut piece[count..];
            seen.held = decoder.held();
            if is_over {
                break;
            }
        }
        assert!(piece.is_empty(), "all that comes is taken");
    }
    seen
}

fn seen(bytes: &[u8], deflate: bool) -> Seen {
    let whole = feed(&mut Decoder::new(deflate), bytes, &[usize::MAX], LIMITS);
    let single = feed(&mut Decoder::new(deflate), bytes, &[1], LIMITS);
    assert_eq!((&whole.events, whole.violation), (&single.events, single.violation), "byte by byte");
    single
}

fn events(bytes: &[u8], deflate: bool) -> Vec<Event> {
    let seen = seen(bytes, deflate);
    assert_eq!((seen.violation, seen.held), (None, 0));
    seen.events
}

fn violation(bytes: &[u8], deflate: bool) -> Option<u16> {
    seen(bytes, deflate).violation.map(Violation::code)
}

fn text(text: &str) -> Event {
    Event::Message { text: true, data: text.into() }
}

fn binary(data: &[u8]) -> Event {
    Event::Message { text: false, data: data.to_vec() }
}

#[test]
fn the_examples_of_rfc_6455() {
    let hello = b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    assert_eq!(events(hello, false), [text("Hello")]);
    assert_eq!(frame(0x81, b"Hello"), hello);
    assert_eq!(events(&[frame(0x01, b"Hel"), frame(0x80, b"lo")].concat(), false), [text("Hello")]);
    assert_eq!(events(b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", false), [Event::Pong(b"Hello".into())]);
    let mut ours = Vec::new();
    encode::frame(&mut ours, Opcode::Text, false, b"Hello");
    encode::ping(&mut ours, b"Hello");
    encode::pong(&mut ours, b"");
    assert_eq!(ours, b"\x81\x05Hello\x89\x05Hello\x8a\x00");
    for (length, header) in [
        (125, &b"\x82\x7d"[..]),
        (126, b"\x82\x7e\x00\x7e"),
        (256, b"\x82\x7e\x01\x00"),
        (0xffff, b"\x82\x7e\xff\xff"),
        (0x1_0000, b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00"),
    ] {
        let (mut ours, payload) = (Vec::new(), vec![7; length]);
        encode::frame(&mut ours, Opcode::Binary, false, &payload);
        assert_eq!(ours, [header, &payload].concat(), "{length}");
        assert_eq!(events(&masked(ours, length, [1, 2, 3, 4]), false), [binary(&payload)], "{length}");
    }
}

#[test]
fn the_examples_of_rfc_7692() {
    for payload in [
        &b"\xf2\x48\xcd\xc9\xc9\x07\x00"[..],
        // Not compressed.
        b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00",
        // With a last block.
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00",
        // Two blocks.
        b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00",
        // Streams that end, one behind the other.
        b"\xf3\x48\xcd\xc9\xc9\x07\x00\x03\x00\x03\x00\x00",
        // What a sender leaves that flushes once more at the end.
        b"\xf2\x48\xcd\xc9\xc9\x07\x00\x00\x00\xff\xff",
    ] {
        assert_eq!(events(&frame(FIN | COMPRESSED | 1, payload), true), [text("Hello")], "{payload:?}");
        let (first, second) = payload.split_at(3);
        let fragments = [frame(COMPRESSED | 1, first), frame(FIN | 9, b"?"), frame(FIN, second)].concat();
        assert_eq!(events(&fragments, true), [Event::Ping(b"?".into()), text("Hello")], "{payload:?}");
    }
    assert_eq!(events(&frame(FIN | COMPRESSED | 2, b"\0"), true), [binary(b"")]);
    assert_eq!(events(&frame(FIN | COMPRESSED | 2, b""), true), [binary(b"")]);
    // The second one needs the window of the first, and no window is kept.
    let both =
        [frame(FIN | COMPRESSED | 1, b"\xf2\x48\xcd\xc9\xc9\x07\x00"), frame(FIN | COMPRESSED | 1, b"\xf2\0\x11\0\0")];
    assert_eq!((seen(&both.concat(), true).events, violation(&both.concat(), true)), (vec![text("Hello")], Some(1007)));
    // A message may be sent as it is.
    assert_eq!(events(&frame(FIN | 1, b"Hello"), true), [text("Hello")]);
}

#[test]
fn what_the_framing_forbids_is_1002() {
    let frames = |list: &[(u8, &[u8])]| list.iter().flat_map(|(first, payload)| frame(*first, payload)).collect();
    let with_length = |length: &[u8]| [&[FIN | 2], length, &[0; 4], &[0; 300]].concat();
    let bytes: [Vec<u8>; 24] = [
        b"\x81\x05Hello".to_vec(),
        b"\x88\x00".to_vec(),
        frames(&[(FIN | 0x20 | 1, b"")]),
        frames(&[(FIN | 0x10 | 1, b"")]),
        frames(&[(FIN | COMPRESSED | 1, b"")]),
        frames(&[(FIN | COMPRESSED | 9, b"")]),
        frames(&[(1, b"a"), (FIN | COMPRESSED, b"b")]),
        frames(&[(FIN | 3, b"")]),
        frames(&[(FIN | 7, b"")]),
        frames(&[(FIN | 11, b"")]),
        frames(&[(FIN | 15, b"")]),
        frames(&[(9, b"")]),
        frames(&[(10, b"")]),
        frames(&[(8, b"")]),
        frames(&[(FIN | 9, &[b'a'; 126])]),
        frames(&[(FIN | 8, &[b'a'; 70_000])]),
        frames(&[(FIN, b"")]),
        frames(&[(0, b"")]),
        frames(&[(1, b"a"), (FIN | 1, b"b")]),
        frames(&[(2, b""), (2, b"")]),
        frames(&[(1, b"a"), (FIN, b"b"), (FIN, b"c")]),
        with_length(b"\xfe\x00\x7d"),
        with_length(b"\xff\x00\x00\x00\x00\x00\x00\xff\xff"),
        with_length(b"\xff\x80\x00\x00\x00\x00\x00\x00\x01"),
    ];
    for bytes in bytes {
        let start = &bytes[..bytes.len().min(20)];
        assert_eq!(violation(&bytes, false), Some(1002), "{start:?}");
        // That bit is allowed where it was agreed upon, and only there.
        let allowed = bytes[0] == FIN | COMPRESSED | 1;
        assert_eq!(violation(&bytes, true), if allowed { None } else { Some(1002) }, "{start:?} with deflate");
    }
    for (length, header) in [(126, &b"\xfe\x00\x7e"[..]), (65_536, b"\xff\x00\x00\x00\x00\x00\x01\x00\x00")] {
        let bytes = [&[FIN | 2], header, &[0; 4], &vec![0; length]].concat();
        assert_eq!(events(&bytes, false), [binary(&vec![0; length])]);
    }
    assert_eq!(events(&frame(FIN | 9, &[b'a'; 125]), false), [Event::Ping(vec![b'a'; 125])]);
}

#[test]
fn control_frames_pass_between_fragments_and_messages_are_put_together() {
    let bytes = [
        frame(1, "p\u{e4}".as_bytes().split_last().unwrap().1),
        frame(FIN | 9, b"1"),
        frame(0, b""),
        frame(FIN | 10, b"2"),
        frame(0, b"\xa4c"),
        frame(FIN, b""),
        frame(FIN | 2, b"\xff"),
        frame(FIN | 1, b""),
        frame(FIN | 8, b"\x03\xe8bye"),
    ];
    let close = Event::Close(Some((1000, "bye".to_owned())));
    let (ping, pong) = (Event::Ping(b"1".to_vec()), Event::Pong(b"2".to_vec()));
    let expected = [ping, pong, text("p\u{e4}c"), binary(b"\xff"), text(""), close];
    assert_eq!(events(&bytes.concat(), false), expected);
    assert_eq!(events(&bytes.concat(), true), expected);
}

/// Each text, and how many of its bytes are needed to see that nothing can make it UTF-8; 0: it is, or may still become it.
const TEXTS: [(&[u8], usize); 22] = [
    ("\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}".as_bytes(), 0),
    (b"\x00\x7f\xc2\x80\xdf\xbf\xe0\xa0\x80\xef\xbf\xbf\xf0\x90\x80\x80\xf4\x8f\xbf\xbf", 0),
    (b"\xed\x9f\xbf\xee\x80\x80\xef\xbf\xbd", 0),
    (b"abc\x80def", 4),
    (b"abc\xc0\xaf", 4),
    (b"\xc1\xbf", 1),
    (b"\xc3(", 2),
    (b"\xe0\x9f\xbf", 2),
    (b"\xed\xa0\x80", 2),
    (b"\xed\xbf\xbf", 2),
    (b"\xe1\x80\xc0", 3),
    (b"\xe1\x80\x80\x80", 4),
    (b"\xf0\x8f\xbf\xbf", 2),
    (b"\xf1\x80\x80\x7f", 4),
    (b"\xf4\x90\x80\x80", 2),
    (b"\xf5\x80\x80\x80", 1),
    (b"\xf8\x88\x80\x80\x80", 1),
    (b"\xfc\x84\x80\x80\x80\x80", 1),
    (b"\xfe", 1),
    (b"\xff", 1),
    ("\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}\u{fffd}".as_bytes(), 0),
    (b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited", 13),
];

#[test]
fn a_text_fails_with_the_byte_that_it_cannot_recover_from() {
    for (bytes, fails) in TEXTS {
        for cut in 0..=bytes.len() {
            let (first, second) = bytes.split_at(cut);
            let frames = [frame(1, first), frame(FIN, second)].concat();
            let seen = seen(&frames, false);
            if fails == 0 {
                assert_eq!(seen.events, [Event::Message { text: true, data: bytes.to_vec() }], "{bytes:?}");
                continue;
            }
            let headers = if fails > cut { 12 } else { 6 };
            let expected = (Some(Violation::NotUtf8), headers + fails);
            assert_eq!((seen.violation, seen.taken), expected, "{bytes:?} cut at {cut}");
            let bytes = [frame(2, first), frame(FIN, second)].concat();
            assert_eq!(violation(&bytes, false), None, "bytes may be anything");
        }
        // A compressed text is known when it is whole.
        let mut payload = Vec::new();
        Deflater::default().message(bytes, Deflate::default(), &mut payload);
        let expected = if fails == 0 { None } else { Some(Violation::NotUtf8) };
        assert_eq!(seen(&frame(FIN | COMPRESSED | 1, &payload), true).violation, expected, "{bytes:?}");
    }
    for end in [&b"\xc3"[..], b"\xe1\x80", b"\xf1\x80\x80"] {
        assert_eq!(seen(&frame(1, end), false).violation, None, "it may still become a character");
        assert_eq!(violation(&frame(FIN | 1, end), false), Some(1007), "{end:?}");
    }
}

#[test]
fn a_close_has_a_code_that_may_be_sent_and_a_reason_in_utf_8() {
    let close = |code: u16, reason: &[u8]| frame(FIN | 8, &[&code.to_be_bytes(), reason].concat());
    assert_eq!(events(&frame(FIN | 8, b""), false), [Event::Close(None)]);
    assert_eq!(violation(&frame(FIN | 8, b"\x03"), false), Some(1002));
    for code in (0..=5100).chain([9999, 32_768, 65_535]) {
        let legal = (1000..1004).contains(&code) || (1007..1015).contains(&code) || (3000..5000).contains(&code);
        let expected = if legal { None } else { Some(1002) };
        assert_eq!(violation(&close(code, b""), false), expected, "{code}");
    }
    let longest = "\u{e4}".repeat(61) + "b";
    for reason in ["", "bye", &longest] {
        let expected = Event::Close(Some((1001, reason.to_owned())));
        assert_eq!(events(&close(1001, reason.as_bytes()), false), [expected]);
    }
    assert_eq!(violation(&close(1000, b"\xed\xa0\x80"), false), Some(1007));
    assert_eq!(violation(&close(1000, b"cut \xc3"), false), Some(1007));
    assert_eq!(violation(&close(1005, b"\xff"), false), Some(1002), "the code comes first");
}

#[test]
fn nothing_is_read_behind_a_close_or_a_violation() {
    let close = frame(FIN | 8, b"\x03\xe8");
    for behind in [frame(FIN | 9, b"?"), b"\xff\xff\xff".to_vec(), frame(FIN | 8, b"\x03\xe8")] {
        let bytes = [frame(1, b"begun"), close.clone(), behind.clone()].concat();
        assert_eq!(events(&bytes, false), [Event::Close(Some((1000, String::new())))]);
        let mut decoder = Decoder::new(false);
        let broken = [frame(1, b"begun"), frame(FIN | 2, b"")].concat();
        assert!(feed(&mut decoder, &broken, &[1], LIMITS).violation.is_some());
        let after = feed(&mut decoder, &behind, &[2], LIMITS);
        assert_eq!((after.events, after.violation, after.taken, after.held), (vec![], None, behind.len(), 0));
    }
}

#[test]
fn a_length_above_the_limit_fails_before_a_byte_of_it_is_there() {
    let limits = Limits { message: 1000 };
    let announced = |first: u8, length: u64| [&[first, 0xff], &length.to_be_bytes()[..], &[0; 4]].concat();
    for bytes in [
        announced(FIN | 2, 1 << 30),
        announced(2, i64::MAX as u64),
        announced(FIN | COMPRESSED | 2, 1 << 30),
        [frame(2, &[0; 600]), announced(0, 1 << 30)].concat(),
        frame(FIN | 2, &[0; 1001])[..8].to_vec(),
        [&frame(2, &[0; 600])[..], &frame(0, &[0; 401])[..8]].concat(),
        [&frame(COMPRESSED | 2, &[0; 1000])[..], &frame(0, &[0; 400])[..8]].concat(),
    ] {
        let mut decoder = Decoder::new(true);
        let seen = feed(&mut decoder, &bytes, &[1], limits);
        assert_eq!((seen.violation, seen.taken, decoder.held()), (Some(Violation::TooBig), bytes.len(), 0));
    }
    // What cannot be compressed may be longer before it is inflated.
    let (data, mut payload) = (noise(1000), Vec::new());
    Deflater::default().message(&data, Deflate::default(), &mut payload);
    assert!(payload.len() > data.len());
    let seen = feed(&mut Decoder::new(true), &frame(FIN | COMPRESSED | 2, &payload), &[9], limits);
    assert_eq!((seen.events, seen.violation), (vec![binary(&data)], None));
    for bytes in [
        frame(FIN | 2, &[7; 1000]),
        [frame(2, &[7; 600]), frame(FIN | 9, &[7; 125]), frame(0, b""), frame(FIN, &[7; 400])].concat(),
    ] {
        let seen = feed(&mut Decoder::new(true), &bytes, &[usize::MAX], limits);
        assert_eq!((seen.events.last(), seen.violation), (Some(&binary(&[7; 1000])), None));
    }
}

#[test]
fn memory_follows_what_has_come_and_is_gone_between_messages() {
    assert!(size_of::<Decoder>() <= 40, "{}", size_of::<Decoder>());
    let limits = Limits { message: 1 << 30 };
    for first in [FIN | 1, FIN | 2, FIN | COMPRESSED | 2, 1] {
        let mut decoder = Decoder::new(true);
        let header = [&[first, 0xff], &(1_u64 << 30).to_be_bytes()[..], &[0; 4]].concat();
        assert!(feed(&mut decoder, &header, &[3], limits).held < 256);
        for sent in 1..=5000_u64 {
            let held = feed(&mut decoder, b"a", &[1], limits).held as u64;
            assert!(held >= sent && held <= 2 * sent + 256, "{held} for {sent}");
        }
    }
    // Byte by byte, and each is looked at once.
    assert_eq!(events(&frame(FIN | 1, &[b'a'; 256 << 10]), false).len(), 1);
    // Beyond the doubling, room is made for what may come at most.
    let limits = Limits { message: 100_000 };
    let held = feed(&mut Decoder::new(false), &frame(2, &vec![0; 90_000]), &[7], limits).held;
    assert!((90_000..100_256).contains(&held), "{held}");
    let mut decoder = Decoder::new(false);
    for bytes in [frame(FIN | 1, &[b'a'; 4096]), frame(FIN | 9, &[b'a'; 99]), frame(FIN | 2, b"")] {
        for size in [1, 6, 7, 100, usize::MAX] {
            let seen = feed(&mut decoder, &bytes, &[size], LIMITS);
            assert_eq!((seen.events.len(), seen.held), (1, 0));
        }
    }
    assert_eq!(feed(&mut decoder, &frame(FIN | 9, b"abc")[..8], &[1], LIMITS).events, []);
    assert!(decoder.held() > 0, "a control frame that is not whole is held");
}

#[test]
fn a_bomb_ends_at_the_limit_and_broken_data_are_1007() {
    let mut bomb = Vec::new();
    Deflater::default().message(&vec![0; 8 << 20], Deflate::default(), &mut bomb);
    assert!(bomb.len() < 1 << 16);
    let bytes = frame(FIN | COMPRESSED | 2, &bomb);
    assert_eq!(seen(&bytes, true).violation, Some(Violation::TooBig));
    let mut inflater = Inflater::default();
    for message in [0, 1, 999, 65_536] {
        let mut payload = Vec::new();
        Deflater::default().message(&vec![b'a'; message], Deflate::default(), &mut payload);
        assert_eq!(inflater.message(&payload, message), Ok(vec![b'a'; message]));
        assert_eq!(inflater.message(&bomb, message), Err(Violation::TooBig));
        if message > 0 {
            assert_eq!(inflater.message(&payload, message - 1), Err(Violation::TooBig));
            for cut in 1..payload.len() {
                assert!(inflater.message(&payload[..cut], message).is_err(), "{cut} bytes of {payload:?}");
            }
        }
    }
    // A last block without another behind it; a length that does not agree with itself; a block of a kind that there is not.
    for payload in [&b"\xf3\x48\xcd\xc9\xc9\x07\x00"[..], b"\x00\x05\x00\xfb\xff", b"\x06", b"\x07", b"\xff"] {
        assert_eq!(violation(&frame(FIN | COMPRESSED | 2, payload), true), Some(1007), "{payload:?}");
    }
}

#[test]
fn our_close_is_cut_where_a_character_ends() {
    let close = |code, reason: &str| {
        let mut out = b"before".to_vec();
        encode::close(&mut out, code, reason);
        out.split_off(6)
    };
    assert_eq!(close(1000, ""), b"\x88\x02\x03\xe8");
    assert_eq!(close(1012, "restart"), b"\x88\x09\x03\xf4restart");
    assert_eq!(close(1005, "nothing"), b"\x88\x00");
    for (reason, kept) in [("a".repeat(123), 123), ("a".repeat(124), 123), ("\u{e4}".repeat(62), 122)] {
        let frame = close(1008, &reason);
        assert_eq!(frame, [&[0x88, 2 + kept as u8, 0x03, 0xf0], &reason.as_bytes()[..kept]].concat());
        assert_eq!(
            events(&masked(frame, 2 + kept, [9; 4]), false),
            [Event::Close(Some((1008, reason[..kept].into())))]
        );
    }
    let (mut ping, mut pong) = (Vec::new(), Vec::new());
    encode::ping(&mut ping, &[7; 126]);
    encode::pong(&mut pong, &[7; 126]);
    assert_eq!((&ping[..2], ping.len(), &pong[..2], pong.len()), (&b"\x89\x7d"[..], 127, &b"\x8a\x7d"[..], 127));
    for violation in [Violation::NotUtf8, Violation::NotDeflate, Violation::TooBig] {
        assert!((1..124).contains(&violation.reason().len()));
    }
}

/// Frames as clients send them, and as nobody should.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let first = prop_oneof![
        8 => prop::sample::select(vec![0x80_u8, 0, 0x81, 1, 0x82, 2, 0x89, 0x8a, 0xc1, 0x41]),
        1 => Just(0x88_u8),
        1 => any::<u8>(),
    ];
    let payload = prop_oneof![
        prop::sample::select(vec![
            &b""[..],
            b"a",
            b"\xc3",
            b"\xa4",
            b"\xf0\x9f",
            b"\x92\xa9",
            b"\x03\xe8bye",
            b"\xf2\x48\xcd\xc9\xc9\x07\x00",
            b"\x00",
        ])
        .prop_map(<[u8]>::to_vec),
        prop::collection::vec(any::<u8>(), 0..200),
        "[a-z\u{e4}\u{20ac}]{0,150}".prop_map(String::into_bytes),
    ];
    (first, payload, any::<[u8; 4]>(), prop::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>())))
        .prop_map(|(first, payload, key, noise)| {
            let mut bytes = Vec::new();
            encode::frame(&mut bytes, Opcode::Binary, false, &payload);
            bytes[0] = first;
            let mut bytes = masked(bytes, payload.len(), key);
            if let Some((place, byte)) = noise {
                let place = place.index(bytes.len().min(8));
                bytes[place] = byte;
            }
            bytes
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn every_split_gives_the_same(
        frames in prop::collection::vec(any_frame(), 0..12), sizes in prop::collection::vec(1_usize..40, 1..8),
        deflate in any::<bool>(), message in prop::sample::select(vec![10_usize, 300, 1 << 20]),
    ) {
        let (bytes, limits) = (frames.concat(), Limits { message });
        let whole = feed(&mut Decoder::new(deflate), &bytes, &[usize::MAX], limits);
        for sizes in [&sizes[..], &[1]] {
            let split = feed(&mut Decoder::new(deflate), &bytes, sizes, limits);
            prop_assert_eq!((&split.events, split.violation), (&whole.events, whole.violation));
            prop_assert!(split.held <= 2 * bytes.len() + 256);
        }
        for event in whole.events {
            if let Event::Message { text, data } = event {
                prop_assert!(data.len() <= message && (!text || std::str::from_utf8(&data).is_ok()));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Masked at every offset of the mask and of the memory.
    #[test]
    fn wide_words_take_the_mask_off_as_bytes_do(payload in prop::collection::vec(any::<u8>(), 64), key in any::<[u8; 4]>()) {
        let mut inflater = Inflater::default();
        for length in 0..=payload.len() {
            let bytes = masked([&[0x82, length as u8], &payload[..length]].concat(), length, key);
            for phase in 0..=length.min(9) {
                for offset in 0..8 {
                    let mut room = vec![0; offset];
                    room.extend_from_slice(&bytes);
                    let mut decoder = Decoder::new(false);
                    let (first, second) = room[offset..].split_at_mut(6 + phase);
                    let (mut taken, mut event) = decoder.take(first, &LIMITS, &mut inflater).unwrap();
                    if phase < length {
                        prop_assert_eq!((taken, &event), (6 + phase, &None));
                        (taken, event) = decoder.take(second, &LIMITS, &mut inflater).unwrap();
                        taken += 6 + phase;
                    }
                    prop_assert_eq!((taken, event), (bytes.len(), Some(binary(&payload[..length]))));
                }
            }
        }
    }

    #[test]
    fn messages_come_back_from_fragments_and_windows(
        data in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..3000),
            prop::collection::vec(prop::sample::select(b"abcab".to_vec()), 0..20_000),
            (prop::collection::vec(any::<u8>(), 1..600), 1_usize..100).prop_map(|(part, count)| part.repeat(count)),
        ],
        bits in 9_u8..=15, piece in 1_usize..2000, compressed in any::<bool>(),
    ) {
        let mut payload = data.clone();
        if compressed {
            payload.clear();
            let (mut deflater, mut again) = (Deflater::default(), b"before".to_vec());
            deflater.message(&data, agreed(bits), &mut payload);
            deflater.message(&data, agreed(bits), &mut again);
            prop_assert_eq!(&again[6..], &payload, "nothing is kept of the first one");
            prop_assert!(payload.len() <= super::deflate::bound(data.len()));
        }
        let mut bytes = frame(2 | if compressed { COMPRESSED } else { 0 }, b"");
        for piece in payload.chunks(piece) {
            bytes.extend(frame(0, piece));
            bytes.extend(frame(FIN | 9, b"?"));
        }
        bytes.extend(frame(FIN, b""));
        let mut seen = feed(&mut Decoder::new(true), &bytes, &[1000, 1, 13], LIMITS);
        seen.events.retain(|event| !matches!(event, Event::Ping(_)));
        prop_assert_eq!((seen.events, seen.violation, seen.held), (vec![binary(&data)], None, 0));
    }
}

/// What a client gets that has asked for such a window.
fn agreed(bits: u8) -> Deflate {
    let offer = format!("permessage-deflate; server_max_window_bits={bits}");
    super::deflate::negotiate([offer.as_bytes()].into_iter()).unwrap().unwrap()
}

/// Bytes that have nothing in common.
fn noise(count: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn what_is_sent_looks_back_no_further_than_was_agreed_upon() {
    let mut deflater = Deflater::default();
    for bits in 9..=15 {
        for (distance, is_seen) in [(1 << (bits - 2), true), ((1 << bits) + 1, false)] {
            let (data, mut payload) = (noise(distance).repeat(2), Vec::new());
            deflater.message(&data, agreed(bits), &mut payload);
            assert_eq!(payload.len() < data.len() * 3 / 4, is_seen, "{distance} bytes back and {bits} bits");
            assert_eq!(Inflater::default().message(&payload, data.len()), Ok(data));
        }
    }
}

/// What needs no compressor: blocks as they are, the second of which begins behind 65,535 bytes.
#[test]
fn a_message_is_stored_where_it_cannot_be_compressed() {
    for count in [0, 1, 65_535, 65_536, 200_000] {
        let (data, mut payload) = (vec![b'a'; count], Vec::new());
        super::deflate::store(&data, &mut payload);
        payload.truncate(payload.len() - 4);
        assert!(payload.len() > count && payload.len() <= super::deflate::bound(count));
        assert_eq!(Inflater::default().message(&payload, count), Ok(data));
    }
}

/// A connection in memory: what is read from it, and what was written to it.
struct Pipe(Cursor<Vec<u8>>, Vec<u8>);

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.1.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn client(bytes: Vec<u8>) -> WebSocket<Pipe> {
    WebSocket::from_raw_socket(Pipe(Cursor::new(bytes), Vec::new()), Role::Client, None)
}

#[test]
fn tungstenite_reads_what_is_written_and_writes_what_is_read() {
    let long = "\u{e4}".repeat(40_000);
    let texts = ["", "Hello", &"a".repeat(125), &"b".repeat(126), &"c".repeat(65_535), &long];
    let mut ours = Vec::new();
    for text in texts {
        encode::frame(&mut ours, Opcode::Text, false, text.as_bytes());
        encode::frame(&mut ours, Opcode::Binary, false, text.as_bytes());
        encode::ping(&mut ours, b"?");
    }
    encode::close(&mut ours, 1012, "restart");
    let mut reader = client(ours);
    for text in texts {
        let expected = [Message::text(text), Message::binary(text.as_bytes().to_vec()), Message::Ping(b"?"[..].into())];
        assert!(expected.iter().all(|expected| reader.read().unwrap() == *expected), "{} bytes", text.len());
    }
    let Message::Close(Some(close)) = reader.read().unwrap() else { panic!("no close") };
    assert_eq!((u16::from(close.code), close.reason.as_str()), (1012, "restart"));

    let (mut writer, mut expected) = (client(Vec::new()), Vec::new());
    for sent in texts {
        writer.write(Message::text(sent)).unwrap();
        writer.write(Message::binary(sent.as_bytes().to_vec())).unwrap();
        writer.write(Message::Pong(b"!"[..].into())).unwrap();
        expected.extend([text(sent), binary(sent.as_bytes()), Event::Pong(b"!".into())]);
    }
    writer.close(None).unwrap();
    expected.push(Event::Close(None));
    let theirs = std::mem::take(&mut writer.get_mut().1);
    for sizes in [&[usize::MAX][..], &[1, 2, 3, 4099]] {
        let seen = feed(&mut Decoder::new(false), &theirs, sizes, LIMITS);
        assert!(seen.events == expected && seen.violation.is_none());
    }
}
