//! A request's head from anybody: it is refused, or what a worker gets of it is framed the same way.
#![no_main]

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr};

use libfuzzer_sys::fuzz_target;
use production_server::buffers::block::Writer;
use production_server::config::Peers;
use production_server::http::date::Start;
use production_server::http::fields::{Fields, Kind};
use production_server::http::head::{self, HeadLimits, HeadSearch};
use production_server::http::origin::Origin;
use production_server::http::rewrite::{self, Forward, Front};
use production_server::http::{Framing, Version};

fuzz_target!(|bytes: &[u8]| {
    let limits = HeadLimits::default();
    let mut fields = Fields::new(limits.fields);
    let half = head::request(&bytes[..bytes.len() / 2], &limits, &mut fields);
    let whole = head::request(bytes, &limits, &mut fields);
    if half.is_err() {
        assert!(whole.is_err(), "refused in part, accepted whole");
    }
    compare_ways(bytes, limits.fields);
    let Ok(Some(request)) = whole else { return };
    if let Ok(Some(earlier)) = half {
        assert_eq!((earlier.len, earlier.framing), (request.len, request.framing));
    }
    let mut search = HeadSearch::new();
    let found = (1..=request.len).filter(|end| search.scan(&bytes[..*end])).last();
    assert_eq!(found, Some(request.len), "the search misses the head's end");
    let (mut origin, mut trust) = (Origin::default(), Peers::default());
    trust.add("0.0.0.0/1,::/0").expect("networks");
    origin.read(bytes, &fields, Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), &trust);
    for variant in 0..8 {
        let forward = Forward {
            peer: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7)),
            unix: variant == 5,
            local_port: 8080,
            https: false,
            request_id: b"0123456789abcdef",
            start: Start::new(1_700_000_000_123_456),
            front: (variant > 0).then_some(Front {
                origin: (variant & 1 != 0).then_some(&origin),
                traces: variant & 2 != 0,
                writes_forwarded: variant & 4 != 0,
                client_certificate: if variant & 2 != 0 { "CN=a" } else { "" },
            }),
            keep_alive: variant & 2 != 0,
            open: variant & 4 != 0,
            edits: None,
            identity: b"",
        };
        let mut room = vec![MaybeUninit::uninit(); rewrite::request_room(&request, &fields, &forward)];
        let mut out = Writer::new(&mut room);
        rewrite::request(&mut out, bytes, &request, &fields, &forward);
        if forward.open {
            rewrite::request_end(&mut out, request.framing);
        }
        check(out.written(), &request, &forward);
    }
});

/// The plain way through the field lines and httparse's. Only a library built for fuzzing shows both.
fn compare_ways(bytes: &[u8], most: usize) {
    let first_line = bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    #[cfg(fuzzing)]
    assert_ne!(Fields::plain_agrees(bytes, first_line, most), Some(false), "the ways differ");
    #[cfg(not(fuzzing))]
    let _ = (first_line, most);
}

fn check(written: &[u8], request: &head::Request, forward: &Forward<'_>) {
    // What is added may take a head beyond the limits that it kept to.
    let limits = HeadLimits { head: 1 << 20, target: 1 << 20, fields: 300 };
    let mut fields = Fields::new(limits.fields);
    let again = match head::request(written, &limits, &mut fields) {
        Ok(Some(again)) => again,
        other => panic!("not accepted again: {other:?} {:?}", String::from_utf8_lossy(written)),
    };
    assert_eq!(again.len, written.len(), "bytes behind the head");
    assert_eq!((again.framing, again.method), (request.framing, request.method));
    assert_eq!((again.version, again.websocket), (Version::Http11, request.websocket));
    assert_eq!(again.keep_alive, forward.keep_alive || request.websocket);
    let count = |kind| fields.iter().filter(|field| field.kind == kind).count();
    assert_eq!(count(Kind::Host), 1);
    assert_eq!(count(Kind::TransferEncoding), usize::from(request.framing == Framing::Chunked));
    assert!(count(Kind::ContentLength) <= usize::from(request.framing != Framing::Chunked));
    assert_eq!((count(Kind::Shadow), count(Kind::Expect), count(Kind::XRequestId)), (0, 0, 1));
    assert!(!written.windows(2).any(|pair| pair[1] == b'\n' && pair[0] != b'\r'), "a bare LF");
}
