//! A chunked body from anybody: however it is split, it decodes to the same, and what is relayed decodes to the same. The
//! first byte seeds the splits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use production_server::http::Refusal;
use production_server::http::body::Chunked;

fuzz_target!(|input: &[u8]| {
    let Some((seed, bytes)) = input.split_first() else { return };
    let whole = decode(bytes, usize::MAX);
    assert_eq!(whole, decode(bytes, 1), "split into single bytes");
    assert_eq!(whole, decode(bytes, usize::from(*seed).max(1)), "split into pieces");
    let relayed = relay(bytes, usize::MAX);
    assert_eq!(relayed, relay(bytes, 1), "relayed as single bytes");
    assert_eq!(relayed, relay(bytes, usize::from(*seed).max(1)), "relayed in pieces");
    assert_eq!(whole.is_err(), relayed.is_err(), "decoding and relaying disagree");
    let (Ok(whole), Ok(mut relayed)) = (whole, relayed) else { return };
    assert_eq!((whole.consumed, whole.done), (relayed.consumed, relayed.done));
    let open = decode(&relayed.bytes, usize::MAX).expect("what was relayed is well-formed");
    assert!(!open.done, "the last chunk was passed on");
    assert_eq!(open.bytes, whole.bytes);
    if relayed.done {
        relayed.bytes.extend_from_slice(b"0\r\n");
        relayed.bytes.extend_from_slice(&relayed.trailers);
        relayed.bytes.extend_from_slice(b"\r\n");
        let again = decode(&relayed.bytes, usize::MAX).expect("what was relayed is well-formed");
        assert_eq!((again.bytes, again.trailers, again.done), (whole.bytes, whole.trailers, true));
    }
});

#[derive(Debug, PartialEq)]
struct Outcome {
    bytes: Vec<u8>,
    trailers: Vec<u8>,
    consumed: usize,
    done: bool,
}

fn decode(bytes: &[u8], piece: usize) -> Result<Outcome, Refusal> {
    run(bytes, piece, |chunked, input| {
        chunked.decode(input).map(|progress| (progress.consumed, progress.data, progress.done))
    })
}

fn relay(bytes: &[u8], piece: usize) -> Result<Outcome, Refusal> {
    run(bytes, piece, |chunked, input| chunked.relay(input).map(|relay| (relay.consumed, relay.pass, relay.done)))
}

type Step = Result<(usize, std::ops::Range<usize>, bool), Refusal>;

fn run(bytes: &[u8], piece: usize, step: impl Fn(&mut Chunked, &[u8]) -> Step) -> Result<Outcome, Refusal> {
    let mut chunked = Chunked::new();
    let mut outcome = Outcome { bytes: Vec::new(), trailers: Vec::new(), consumed: 0, done: false };
    for piece in bytes.chunks(piece.min(bytes.len()).max(1)) {
        let mut input = piece;
        while !input.is_empty() && !outcome.done {
            let (consumed, range, done) = step(&mut chunked, input)?;
            assert!(consumed > 0, "no progress");
            outcome.bytes.extend_from_slice(&input[range]);
            outcome.consumed += consumed;
            outcome.done = done;
            input = &input[consumed..];
        }
    }
    outcome.trailers = chunked.trailers().to_vec();
    Ok(outcome)
}
