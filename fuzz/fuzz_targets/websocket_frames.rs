//! Frames from anybody: however they are split, they give the same events or the same violation; no message is above the limit, no text
//! is anything but UTF-8, and what is held follows what has come. The first bytes choose the limit and the split.
#![no_main]

use libfuzzer_sys::fuzz_target;
use production_server::websocket::decode::{Decoder, Event, Limits, Violation};
use production_server::websocket::deflate::Inflater;
use production_server::websocket::{Opcode, encode};

fuzz_target!(|input: &[u8]| {
    let [choice, split, bytes @ ..] = input else { return };
    let deflate = choice & 1 != 0;
    let limits = Limits { message: [16, 300, 1 << 16, 1 << 20][usize::from(choice >> 1 & 3)] };
    let whole = read(bytes, deflate, limits, usize::MAX);
    assert_eq!(whole, read(bytes, deflate, limits, 1), "split into single bytes");
    assert_eq!(whole, read(bytes, deflate, limits, usize::from(*split)), "split into pieces");
    let again = whole.0.iter().flat_map(sent).collect::<Vec<u8>>();
    assert_eq!(read(&again, deflate, limits, usize::MAX), (whole.0, None), "sent again");
});

fn read(bytes: &[u8], deflate: bool, limits: Limits, size: usize) -> (Vec<Event>, Option<Violation>) {
    let (mut decoder, mut inflater) = (Decoder::new(deflate), Inflater::default());
    let (mut events, mut bytes) = (Vec::new(), bytes.to_vec());
    let most = 2 * bytes.len() + 256;
    for piece in bytes.chunks_mut(size.max(1)) {
        let mut taken = 0;
        loop {
            let (count, event) = match decoder.take(&mut piece[taken..], &limits, &mut inflater) {
                Ok(outcome) => outcome,
                Err(violation) => return (events, Some(violation)),
            };
            taken += count;
            assert!(decoder.held() <= most, "{} bytes are held", decoder.held());
            match event {
                Some(Event::Message { text, data }) => {
                    assert!(data.len() <= limits.message);
                    assert!(!text || std::str::from_utf8(&data).is_ok());
                    events.push(Event::Message { text, data });
                }
                Some(event) => events.push(event),
                None if count == 0 => break,
                None => {}
            }
        }
        assert_eq!(taken, piece.len(), "all that comes is taken");
    }
    (events, None)
}

/// The same as a client says it, with a mask that changes nothing.
fn sent(event: &Event) -> Vec<u8> {
    let mut frame = Vec::new();
    match event {
        Event::Message { text: true, data } => encode::frame(&mut frame, Opcode::Text, false, data),
        Event::Message { text: false, data } => encode::frame(&mut frame, Opcode::Binary, false, data),
        Event::Ping(payload) => encode::ping(&mut frame, payload),
        Event::Pong(payload) => encode::pong(&mut frame, payload),
        Event::Close(None) => encode::close(&mut frame, 1005, ""),
        Event::Close(Some((code, reason))) => encode::close(&mut frame, *code, reason),
    }
    let header = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    frame[1] |= 0x80;
    frame.splice(header..header, [0; 4]);
    frame
}
