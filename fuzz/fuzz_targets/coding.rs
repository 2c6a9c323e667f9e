//! What a client and an app say of an answer's coding: what becomes of both heads is lines as others, no app loses a tag of its own in a
//! condition that something happens by, whatever is compressed says that it varies, and its bytes come back.
#![no_main]

use std::io::Read;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use production_server::compress::{Contexts, Flush, Wish};
use production_server::config::{Coding, Compressing};
use production_server::http::Method;
use production_server::http::fields::Fields;
use production_server::http::head::{HeadLimits, request, response};

const ASKED: [&str; 6] = ["Accept-Encoding", "If-None-Match", "If-Match", "Cache-Control", "Connection", "Cookie"];
const ANSWERED: [&str; 7] =
    ["Content-Type", "ETag", "Vary", "Cache-Control", "Content-Encoding", "Connection", "Content-Digest"];

fn head(start: &str, names: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut head = start.as_bytes().to_vec();
    for line in bytes.split(|byte| matches!(byte, b'\r' | b'\n')).take(20) {
        let Some((which, value)) = line.split_first() else { continue };
        head.extend([names[usize::from(*which) % names.len()].as_bytes(), b": ", value, b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    head
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let (asked, answered) = rest.split_at(rest.len() / 2);
    let settings = Arc::new(Compressing { codings: Some(Coding::ALL.to_vec()), ..Compressing::default() });
    let (limits, mut fields) = (HeadLimits::new(16 * 1024, 100), Fields::new(100));
    let method = ["GET", "HEAD", "PUT"][usize::from(first % 3)];
    let text = head(&format!("{method} / HTTP/1.1\r\nHost: a\r\n"), &ASKED, asked);
    let Ok(Some(asked)) = request(&text, &limits, &mut fields) else { return };
    let wish = Wish::read(&settings, &text, &asked, &fields, None);
    if let Some(edits) = wish.edits() {
        let set: Vec<_> = edits.set().collect();
        assert_eq!(set.len(), edits.lines().split_inclusive(|byte| *byte == b'\n').count());
        for field in fields.iter().filter(|field| field.name.of(&text).eq_ignore_ascii_case(b"if-match")) {
            let value = set.iter().find(|(name, _)| name == b"If-Match").map(|(_, value)| *value);
            let kept = |item: &[u8]| value.is_none_or(|value| value.windows(item.len()).any(|window| window == item));
            assert!(field.value.of(&text).split(|byte| *byte == b',').filter(|item| !item.is_empty()).all(kept));
        }
    }
    let status = ["200 OK", "304 Not Modified", "206 Partial Content"][usize::from(first / 3 % 3)];
    let text = head(&format!("HTTP/1.1 {status}\r\n"), &ANSWERED, answered);
    let method = [Method::Get, Method::Head, Method::Put][usize::from(first % 3)];
    let Ok(Some(answer)) = response(&text, method, false, &limits, &mut fields) else { return };
    let judged = wish.judge(&text, &answer, &fields, None);
    let Some(coding) = judged.coding else { return };
    let edits = judged.edits.expect("what is compressed says so");
    let says = |wanted: &[u8]| edits.lines().windows(wanted.len()).any(|window| window == wanted);
    let varies = fields.iter().any(|field| field.name.of(&text).eq_ignore_ascii_case(b"vary"));
    assert!(answer.status == 200 && says(coding.name().as_bytes()) && (varies || says(b"Vary: Accept-Encoding")));
    let (mut coded, mut plain) = (Vec::new(), Vec::new());
    let mut encoder = Contexts::default().encoder(coding, &settings, None).expect("the first one");
    for piece in rest.chunks(usize::from(*first) + 1) {
        let flush = if piece.len() % 2 == 0 { Flush::Now } else { Flush::No };
        encoder.encode(piece, flush, &mut coded).expect("it goes in");
    }
    encoder.encode(b"", Flush::End, &mut coded).expect("it ends");
    match coding {
        Coding::Gzip => flate2::read::MultiGzDecoder::new(&coded[..]).read_to_end(&mut plain).map(|_| ()),
        Coding::Zstd => zstd::stream::copy_decode(&coded[..], &mut plain),
        Coding::Brotli => brotli::Decompressor::new(&coded[..], 4096).read_to_end(&mut plain).map(|_| ()),
    }
    .expect("it comes back");
    assert!(plain == rest);
});
