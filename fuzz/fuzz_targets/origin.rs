//! What a client says in the fields of proxies, before a trusted proxy adds its own: the address that it adds is the client's, and a worker
//! gets one line of each.
#![no_main]

use std::mem::MaybeUninit;
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use production_server::buffers::block::Writer;
use production_server::config::Peers;
use production_server::http::date::Start;
use production_server::http::fields::{Fields, Kind};
use production_server::http::head::{self, HeadLimits};
use production_server::http::origin::Origin;
use production_server::http::rewrite::{self, Forward, Front};

const NAMES: [&str; 8] = [
    "X-Forwarded-For",
    "Forwarded",
    "X-Real-IP",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Request-Id",
    "X-Forwarded-Ssl",
];

fuzz_target!(|bytes: &[u8]| {
    let mut head = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
    for line in bytes.split(|byte| matches!(byte, b'\r' | b'\n')).take(20) {
        let Some((which, value)) = line.split_first() else { continue };
        head.extend([NAMES[usize::from(*which) % NAMES.len()].as_bytes(), b": ", value, b"\r\n"].concat());
    }
    head.extend(b"X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-For: 10.0.0.2\r\n\r\n");
    let mut fields = Fields::new(100);
    let limits = HeadLimits::new(1 << 20, 100);
    let Ok(Some(request)) = head::request(&head, &limits, &mut fields) else { return };
    let (mut origin, mut trust) = (Origin::default(), Peers::default());
    trust.add("10.0.0.0/8").expect("a network");
    let peer = IpAddr::from([10, 0, 0, 1]);
    origin.read(&head, &fields, Some(peer), &trust);
    let client = Some(IpAddr::from([203, 0, 113, 9]));
    assert_eq!((origin.client, origin.chain().count()), (client, 2));
    let forward = Forward {
        peer,
        unix: false,
        local_port: 80,
        https: false,
        request_id: b"id",
        start: Start::new(0),
        front: Some(Front {
            origin: Some(&origin),
            traces: false,
            writes_forwarded: bytes.len() % 2 == 0,
            client_certificate: "",
        }),
        keep_alive: true,
        open: false,
        edits: None,
        identity: b"",
    };
    let mut room = vec![MaybeUninit::uninit(); rewrite::request_room(&request, &fields, &forward)];
    let mut out = Writer::new(&mut room);
    rewrite::request(&mut out, &head, &request, &fields, &forward);
    let mut again = Fields::new(100);
    assert!(matches!(head::request(out.written(), &limits, &mut again), Ok(Some(_))));
    for kind in [Kind::XForwardedFor, Kind::XRealIp, Kind::XForwardedProto, Kind::XForwardedHost, Kind::XForwardedPort]
    {
        let values: Vec<&[u8]> =
            again.iter().filter(|field| field.kind == kind).map(|field| field.value.of(out.written())).collect();
        assert_eq!(values.len(), 1, "{kind:?} in {}", out.written().escape_ascii());
        let expected = match kind {
            Kind::XForwardedFor => &b"203.0.113.9, 10.0.0.2, 10.0.0.1"[..],
            Kind::XRealIp => b"203.0.113.9",
            _ => continue,
        };
        assert_eq!(values[0], expected);
    }
});
