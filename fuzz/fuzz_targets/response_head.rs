//! An answer's head from a hostile worker: it is refused, or what the client gets of it is framed the same way. The first
//! byte chooses what was asked.
#![no_main]

use std::mem::MaybeUninit;

use libfuzzer_sys::fuzz_target;
use production_server::buffers::block::Writer;
use production_server::http::fields::Fields;
use production_server::http::head::{self, HeadLimits};
use production_server::http::rewrite::{self, Answer, Rewritten};
use production_server::http::{Framing, Method, Version, date};

fuzz_target!(|input: &[u8]| {
    let Some((choice, bytes)) = input.split_first() else { return };
    let method = if choice & 1 == 0 { Method::Get } else { Method::Head };
    let asked_upgrade = choice & 2 != 0;
    let limits = HeadLimits::default();
    let mut fields = Fields::new(limits.fields);
    let half = head::response(&bytes[..bytes.len() / 2], method, asked_upgrade, &limits, &mut fields);
    let whole = head::response(bytes, method, asked_upgrade, &limits, &mut fields);
    if half.is_err() {
        assert!(whole.is_err(), "refused in part, accepted whole");
    }
    for refusal in [half.err(), whole.err()].into_iter().flatten() {
        assert_eq!(refusal.status, 502);
    }
    let Ok(Some(response)) = whole else { return };
    let choices = [Rewritten::Same, Rewritten::Chunked, Rewritten::UntilClose, Rewritten::Length(7)];
    for (index, framing) in choices.into_iter().enumerate() {
        if response.framing == Framing::None && framing != Rewritten::Same {
            continue;
        }
        let answer = Answer {
            date: &date(0),
            request_id: b"0123456789abcdef",
            client: if index & 1 == 0 { Version::Http11 } else { Version::Http10 },
            keep_alive: choice & 4 != 0,
            framing,
            upgrade: response.status == 101,
            edits: None,
        };
        let mut room = vec![MaybeUninit::uninit(); rewrite::response_room(&response, &fields, &answer)];
        let mut out = Writer::new(&mut room);
        rewrite::response(&mut out, bytes, &response, &fields, &answer);
        let expected = match framing {
            _ if response.framing == Framing::None => Framing::None,
            Rewritten::Same => response.framing,
            Rewritten::Chunked => Framing::Chunked,
            Rewritten::UntilClose => Framing::UntilClose,
            Rewritten::Length(length) => Framing::Length(length),
        };
        check(out.written(), &response, method, asked_upgrade, expected);
    }
});

fn check(written: &[u8], response: &head::Response, method: Method, asked_upgrade: bool, expected: Framing) {
    let limits = HeadLimits { head: 1 << 20, target: 1 << 20, fields: 300 };
    let mut fields = Fields::new(limits.fields);
    let again = match head::response(written, method, asked_upgrade, &limits, &mut fields) {
        Ok(Some(again)) => again,
        other => panic!("not accepted again: {other:?} {:?}", String::from_utf8_lossy(written)),
    };
    assert_eq!(again.len, written.len(), "bytes behind the head");
    assert_eq!((again.framing, again.status), (expected, response.status));
    assert_eq!((again.busy, again.draining, again.unbuffered), (false, false, response.unbuffered));
    assert!(!written.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r'), "a bare LF");
}
