//! The beginning of a connection from anybody: it is a PROXY protocol header, or it is refused; and another reader finds no other addresses.
#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use ppp::{HeaderResult, v1, v2};
use production_server::http::proxy_protocol::{LONGEST, parse};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    for end in 0..bytes.len().min(LONGEST) {
        match parse(&bytes[..end]) {
            Ok(None) => {}
            early => assert_eq!(early, whole, "{end} bytes are enough, and more change it"),
        }
    }
    assert!(bytes.len() < LONGEST || whole != Ok(None), "it would wait for ever");
    let Ok(Some(header)) = whole else { return };
    assert!(header.len <= bytes.len().min(LONGEST));
    if header.addresses.is_some() {
        assert_eq!(other(bytes), header.addresses, "{:?}", bytes.escape_ascii().to_string());
    }
});

/// What `ppp` finds.
fn other(bytes: &[u8]) -> Option<[(IpAddr, u16); 2]> {
    macro_rules! pair {
        ($it:expr) => {
            Some([($it.source_address.into(), $it.source_port), ($it.destination_address.into(), $it.destination_port)])
        };
    }
    match HeaderResult::parse(bytes) {
        HeaderResult::V1(Ok(header)) => match header.addresses {
            v1::Addresses::Tcp4(it) => pair!(it),
            v1::Addresses::Tcp6(it) => pair!(it),
            v1::Addresses::Unknown => None,
        },
        HeaderResult::V2(Ok(header)) => match header.addresses {
            v2::Addresses::IPv4(it) => pair!(it),
            v2::Addresses::IPv6(it) => pair!(it),
            _ => None,
        },
        _ => None,
    }
}
