//! Headers of the PROXY protocol, held against the specification's own and against the crate `ppp`.

use proptest::prelude::*;

use super::*;

fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    let len = (rest.len() as u16).to_be_bytes();
    [SIGNATURE, &[command, family, len[0], len[1]][..], rest].concat()
}

fn inet(extensions: &[u8]) -> Vec<u8> {
    v2(0x21, 0x11, &[&[203, 0, 113, 7, 192, 0, 2, 1, 0xdc, 0x04, 0x01, 0xbb], extensions].concat())
}

fn with_sum(mut header: Vec<u8>, at: usize) -> Vec<u8> {
    let sum = crc32c(header.iter());
    header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
    header
}

fn ends(source: &str, target: &str) -> Option<[(IpAddr, u16); 2]> {
    Some([source, target].map(|end| {
        let end: std::net::SocketAddr = end.parse().unwrap();
        (end.ip(), end.port())
    }))
}

/// Every beginning asks for more, the whole is the header, and what is behind it is left alone.
fn accepted(bytes: &[u8]) -> Header {
    for end in 0..bytes.len() {
        assert_eq!(parse(&bytes[..end]), Ok(None), "{end} bytes of {bytes:?}");
    }
    let header = parse(bytes).unwrap().unwrap();
    assert_eq!(header.len, bytes.len());
    assert_eq!(parse(&[bytes, b"GET / HTTP/1.1\r\n\r\n"].concat()), Ok(Some(header)));
    header
}

#[test]
fn the_line_of_version_1() {
    for (text, addresses) in [
        (
            "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
            ends("255.255.255.255:65535", "255.255.255.255:65535"),
        ),
        ("PROXY TCP4 203.0.113.7 192.0.2.1 0 443\r\n", ends("203.0.113.7:0", "192.0.2.1:443")),
        ("PROXY TCP6 2001:db8::7 ::1 56324 443\r\n", ends("[2001:db8::7]:56324", "[::1]:443")),
        ("PROXY UNKNOWN\r\n", None),
        ("PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", None),
    ] {
        let header = accepted(text.as_bytes());
        assert_eq!((header.addresses, header.own, header.tls), (addresses, false, false), "{text}");
    }
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LONGEST_LINE - 16));
    assert_eq!(accepted(longest.as_bytes()).len, LONGEST_LINE);
    for text in [
        &longest.replacen('x', "xx", 1),
        &"P".repeat(6),
        "GET / HTTP/1.1\r\n\r\n",
        "POST / HTTP/1.1\r\n\r\n",
        "PROXY\r\n",
        "PROXY \r\n",
        "PROXY TCP4\r\n",
        "PROXY UNKNOWNS\r\n",
        "proxy TCP4 203.0.113.7 192.0.2.1 1 2\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 1\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 1 2 \r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 1 2 3\r\n",
        "PROXY TCP4  203.0.113.7 192.0.2.1 1 2\r\n",
        "PROXY TCP4 203.0.113.07 192.0.2.1 1 2\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 01 2\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 +1 2\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 1 65536\r\n",
        "PROXY TCP4 ::1 192.0.2.1 1 2\r\n",
        "PROXY TCP4 ::1 ::1 1 2\r\n",
        "PROXY TCP6 203.0.113.7 192.0.2.1 1 2\r\n",
        "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n",
        "PROXY TCP4 203.0.113.7 192.0.2.1 1 2\n\r\n",
    ] {
        assert_eq!(parse(text.as_bytes()), Err(Malformed), "{text:?}");
    }
    assert_eq!(parse(b"PROXY TCP4 203.0.113.7 192.0.2.1 1 2\n"), Ok(None), "until the line is too long");
    assert_eq!(parse(&[b"PROXY ".as_slice(), &[b'1'; 101]].concat()), Err(Malformed));
}

#[test]
fn the_header_of_version_2() {
    let pair = ends("203.0.113.7:56324", "192.0.2.1:443");
    assert_eq!(accepted(&inet(b"")).addresses, pair);
    let v6 = [Ipv6Addr::LOCALHOST.octets(), Ipv6Addr::UNSPECIFIED.octets()].concat();
    let header = accepted(&v2(0x21, 0x21, &[&v6[..], &[0, 1, 0, 2]].concat()));
    assert_eq!(header.addresses, ends("[::1]:1", "[::]:2"));
    for (command, family, rest) in [
        (0x20, 0x00, &b""[..]),
        (0x20, 0x11, b"short"),
        (0x20, 0x00, b"odd"),
        (0x20, 0x41, b""),
        (0x20, 0x13, &[CRC32C, 0, 4, 0, 0, 0, 0]),
        (0x20, 0xff, b"of a family to come"),
        (0x21, 0x00, b"odd"),
        (0x21, 0x31, &[0; 216]),
    ] {
        let header = accepted(&v2(command, family, rest));
        assert_eq!((header.addresses, header.own), (None, command == 0x20), "{command:x} {family:x}");
    }
    let header = accepted(&v2(0x20, 0x11, &inet(b"")[16..]));
    assert_eq!((header.addresses, header.own), (None, true), "the balancer's own");
    for (header, what) in [
        (v2(0x11, 0x11, &[0; 12]), "version 1 in binary"),
        (v2(0x22, 0x11, &[0; 12]), "no such command"),
        (v2(0x21, 0x41, &[0; 216]), "no such family"),
        (v2(0x21, 0x13, &[0; 12]), "no such transport"),
        (v2(0x21, 0x12, &[0; 12]), "datagrams"),
        (v2(0x21, 0x11, &[0; 11]), "half of the addresses"),
        (v2(0x21, 0x21, &[0; 12]), "addresses of another family"),
        (inet(&[4, 0]), "half of an extension"),
        (inet(&[4, 0, 2, 0]), "half of an extension's value"),
        (v2(0x20, 0, &vec![0; MOST_BEHIND + 1]), "more than any balancer sends"),
    ] {
        assert_eq!(parse(&header), Err(Malformed), "{what}");
    }
    assert_eq!(accepted(&inet(&[&[4, 0x0f, 0xf1][..], &[0; MOST_BEHIND - 15]].concat())).len, LONGEST);
    let mut broken = SIGNATURE.to_vec();
    broken[11] = b'\r';
    assert_eq!(parse(&broken), Err(Malformed));
}

#[test]
fn extensions_are_checked() {
    assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283, "the check value of the algorithm");
    let sum = [CRC32C, 0, 4, 0, 0, 0, 0];
    let tls = [SSL, 0, 5, 1, 0, 0, 0, 0];
    let good = with_sum(inet(&[&[4, 0, 1, 0][..], &sum, &tls].concat()), 35);
    assert_eq!((accepted(&good).tls, accepted(&good).addresses.is_some()), (true, true));
    // But for the byte that says that there is a checksum.
    for at in (12..good.len()).filter(|at| *at != 32) {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        assert!(!matches!(parse(&bad), Ok(Some(header)) if header.addresses.is_some()), "byte {at}");
    }
    assert!(!accepted(&inet(&[SSL, 0, 5, 0, 0, 0, 0, 0])).tls);
    assert_eq!(parse(&inet(&[SSL, 0, 0])), Err(Malformed));
    assert_eq!(parse(&inet(&[CRC32C, 0, 3, 0, 0, 0])), Err(Malformed));
    let own = v2(0x20, 0, &sum);
    assert_eq!(parse(&own), Err(Malformed), "a wrong sum counts wherever one can be read");
    assert_eq!(accepted(&with_sum(own, 19)).addresses, None);
}

/// What `ppp` makes of a header: its addresses if it knows any.
fn other(bytes: &[u8]) -> Option<Option<[(IpAddr, u16); 2]>> {
    use ppp::{HeaderResult, v1, v2};
    match HeaderResult::parse(bytes) {
        HeaderResult::V1(Ok(header)) => Some(match header.addresses {
            v1::Addresses::Tcp4(it) => {
                Some([(it.source_address.into(), it.source_port), (it.destination_address.into(), it.destination_port)])
            }
            v1::Addresses::Tcp6(it) => {
                Some([(it.source_address.into(), it.source_port), (it.destination_address.into(), it.destination_port)])
            }
            v1::Addresses::Unknown => None,
        }),
        HeaderResult::V2(Ok(header)) => Some(match header.addresses {
            v2::Addresses::IPv4(it) => {
                Some([(it.source_address.into(), it.source_port), (it.destination_address.into(), it.destination_port)])
            }
            v2::Addresses::IPv6(it) => {
                Some([(it.source_address.into(), it.source_port), (it.destination_address.into(), it.destination_port)])
            }
            _ => None,
        }),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Where we find addresses, another reader finds the same; it accepts a little more than we do.
    #[test]
    fn another_reader_finds_the_same_addresses(
        binary in any::<bool>(), command in prop::sample::select(vec![0x20u8, 0x21]),
        family in prop::sample::select(vec![0x00u8, 0x11, 0x21, 0x31]), rest in prop::collection::vec(any::<u8>(), 0..60),
        ends in any::<([u8; 4], [u8; 4], u16, u16)>(), v6 in any::<([u16; 8], [u16; 8])>(), six in any::<bool>(),
        noise in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let (a, b, from, to) = ends;
        let mut bytes = match (binary, six) {
            (true, _) => v2(command, family, &rest),
            (false, false) => format!("PROXY TCP4 {} {} {from} {to}\r\n", Ipv4Addr::from(a), Ipv4Addr::from(b)).into_bytes(),
            (false, true) => format!("PROXY TCP6 {} {} {from} {to}\r\n", Ipv6Addr::from(v6.0), Ipv6Addr::from(v6.1)).into_bytes(),
        };
        if !binary && noise.is_none() {
            prop_assert!(parse(&bytes).unwrap().unwrap().addresses.is_some());
        }
        if let Some((place, byte)) = noise {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        if let Ok(Some(Header { addresses: Some(found), .. })) = parse(&bytes) {
            prop_assert_eq!(other(&bytes), Some(Some(found)), "{:?}", bytes);
        }
    }

    #[test]
    fn no_split_changes_the_outcome(bytes in prop::collection::vec(any::<u8>(), 0..64), lead in 0usize..4) {
        let bytes = [[&b""[..], b"PROXY ", b"PROXY TCP4 1.1.1.1 ", SIGNATURE][lead], &bytes].concat();
        let whole = parse(&bytes);
        for end in 0..bytes.len() {
            match parse(&bytes[..end]) {
                Ok(None) => {}
                // What is refused early stays refused, and a header ends where it ends.
                early => prop_assert_eq!(early, whole),
            }
        }
    }
}
