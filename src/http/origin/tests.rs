//! Whom a request comes from, and that nobody but those who are trusted has a say in it.

use proptest::prelude::*;

use super::super::head::HeadLimits;
use super::*;

fn peers(text: &str) -> Peers {
    let mut peers = Peers::default();
    peers.add(text).unwrap();
    peers
}

/// The origin of a request with these lines.
fn origin_of(lines: &str, peer: Option<&str>, trust: &str) -> (Origin, String) {
    let head = format!("GET / HTTP/1.1\r\nHost: host.example\r\n{lines}\r\n");
    let mut fields = Fields::default();
    let limits = HeadLimits::new(1 << 20, 10_000);
    head::request(head.as_bytes(), &limits, &mut fields).unwrap().unwrap();
    let mut origin = Origin::default();
    origin.read(head.as_bytes(), &fields, peer.map(|peer| peer.parse().unwrap()), &peers(trust));
    (origin, head)
}

const TRUST: &str = "10.0.0.0/8,unix,fd00::/8";

fn client(lines: &str) -> String {
    origin_of(lines, Some("10.0.0.1"), TRUST).0.client.map_or_else(String::new, |client| client.to_string())
}

fn text(lines: &str) -> (Option<bool>, String, Option<u16>) {
    let (origin, head) = origin_of(lines, Some("10.0.0.1"), TRUST);
    (origin.https, String::from_utf8(origin.host.of(head.as_bytes()).to_vec()).unwrap(), origin.port)
}

#[test]
fn the_client_is_the_first_from_the_right_that_is_not_trusted() {
    for (lines, expected) in [
        ("", "10.0.0.1"),
        ("X-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9"),
        ("X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\n", "203.0.113.9"),
        ("X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9"),
        ("X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.1.1.1,fd00::5\r\n", "203.0.113.9"),
        (
            "X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nX-Forwarded-For: 10.1.1.1\r\nX-Forwarded-For: 10.1.1.2\r\n",
            "203.0.113.9",
        ),
        ("X-Forwarded-For: 10.3.3.3, 10.2.2.2\r\n", "10.3.3.3"),
        ("X-Forwarded-For: , 203.0.113.9, ,\r\nX-Forwarded-For:\r\n", "203.0.113.9"),
        ("X-Forwarded-For: 6.6.6.6, garbage\r\n", "10.0.0.1"),
        ("X-Forwarded-For: 6.6.6.6, unknown, 10.2.2.2\r\n", "10.2.2.2"),
        ("X-Forwarded-For: 6.6.6.6, _hidden, 10.2.2.2\r\n", "10.2.2.2"),
        ("X-Forwarded-For: 203.0.113.9:4711\r\n", "203.0.113.9"),
        ("X-Forwarded-For: [2001:db8::9]:4711\r\n", "2001:db8::9"),
        ("X-Forwarded-For: \"[2001:db8::9]\"\r\n", "2001:db8::9"),
        ("X-Forwarded-For: 2001:db8::9\r\n", "2001:db8::9"),
        ("X-Forwarded-For: fe80::9%eth0\r\n", "fe80::9"),
        ("X-Forwarded-For: ::ffff:203.0.113.9\r\n", "203.0.113.9"),
        ("X-Forwarded-For: 203.0.113.9, ::ffff:10.1.1.1\r\n", "203.0.113.9"),
        // The chain counts for more than what may be its end.
        ("X-Real-IP: 6.6.6.6\r\nX-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9"),
        ("X-Real-IP: 203.0.113.9\r\n", "203.0.113.9"),
        ("X-Real-IP: 203.0.113.9\r\nX-Real-IP: 6.6.6.6\r\n", "10.0.0.1"),
        ("X-Real-IP: 203.0.113.9, 6.6.6.6\r\n", "10.0.0.1"),
        ("Forwarded: for=6.6.6.6, for=203.0.113.9;proto=https, for=10.1.1.1\r\n", "203.0.113.9"),
        (
            "Forwarded: for=6.6.6.6\r\nForwarded: For=\"203.0.113.9:80\"\r\nforwarded: by=x; for=10.1.1.1\r\n",
            "203.0.113.9",
        ),
        ("Forwarded: for=\"[2001:db8::9]:4711\"\r\n", "2001:db8::9"),
        ("Forwarded: for=2001:db8::9\r\n", "2001:db8::9"),
        ("Forwarded: for=6.6.6.6, for=_hidden\r\n", "10.0.0.1"),
        ("Forwarded: for=6.6.6.6, proto=https\r\n", "10.0.0.1"),
        ("Forwarded: for=203.0.113.9, \"\r\n", "10.0.0.1"),
        ("Forwarded: for=203.0.113.9;for=6.6.6.6\r\n", "10.0.0.1"),
        ("Forwarded: for=203.0.113.9;host=\"a, for=6.6.6.6\"\r\n", "203.0.113.9"),
        ("Forwarded: for=6.6.6.6\r\nX-Forwarded-For: 203.0.113.9\r\n", "203.0.113.9"),
    ] {
        assert_eq!(client(lines), expected, "{lines}");
    }
    // Where the peer is not trusted, nothing it says counts; one on a Unix socket has no address.
    let lines = "X-Forwarded-For: 203.0.113.9\r\n";
    assert_eq!(origin_of(lines, Some("11.0.0.1"), TRUST).0.client, Some("11.0.0.1".parse().unwrap()));
    assert_eq!(origin_of(lines, None, "10.0.0.0/8").0.client, None);
    assert_eq!(origin_of(lines, None, TRUST).0.client, Some("203.0.113.9".parse().unwrap()));
    assert_eq!(origin_of("X-Forwarded-For: unknown\r\n", None, TRUST).0.client, None);
}

#[test]
fn a_chain_is_not_followed_for_ever() {
    let lines = format!("X-Forwarded-For: {}10.9.9.9\r\n", "10.0.0.2,".repeat(10_000));
    let (origin, _) = origin_of(&lines, Some("10.0.0.1"), TRUST);
    assert_eq!((origin.chain().count(), origin.client), (MOST_HOPS, Some("10.0.0.2".parse().unwrap())));
    let lines = format!("Forwarded: {}for=10.9.9.9\r\n", "for=10.0.0.2,".repeat(10_000));
    let (origin, _) = origin_of(&lines, Some("10.0.0.1"), TRUST);
    assert_eq!(origin.chain().count(), MOST_HOPS);
    let lines = format!("X-Forwarded-For: {}203.0.113.9\r\n", "6.6.6.6,".repeat(10_000));
    let (origin, _) = origin_of(&lines, Some("10.0.0.1"), TRUST);
    assert_eq!((origin.chain().count(), origin.client), (1, Some("203.0.113.9".parse().unwrap())));
}

#[test]
fn scheme_host_and_port_are_those_of_the_clients_hop() {
    for (lines, expected) in [
        ("", (None, "", None)),
        ("X-Forwarded-Proto: https\r\n", (Some(true), "", Some(443))),
        ("X-Forwarded-Proto: WSS\r\n", (Some(true), "", Some(443))),
        ("X-Forwarded-Proto: http\r\nX-Forwarded-Host: a.example\r\n", (Some(false), "a.example", Some(80))),
        (
            "X-Forwarded-Proto: https\r\nX-Forwarded-Host: a.example:8443\r\n",
            (Some(true), "a.example:8443", Some(8443)),
        ),
        ("X-Forwarded-Proto: https\r\nX-Forwarded-Host: [::1]\r\n", (Some(true), "[::1]", Some(443))),
        ("X-Forwarded-Proto: https\r\nX-Forwarded-Host: a:0\r\n", (Some(true), "a:0", Some(443))),
        ("X-Forwarded-Proto: https\r\nX-Forwarded-Port: 4433\r\n", (Some(true), "", Some(4433))),
        ("X-Forwarded-Proto: gopher\r\nX-Forwarded-Port: 0\r\nX-Forwarded-Host: a b\r\n", (None, "", None)),
        ("X-Forwarded-Port: 70000\r\nX-Forwarded-Host: user@a\r\n", (None, "", None)),
        // One proxy: the client has said the left one.
        ("X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https, http\r\n", (Some(false), "", Some(80))),
        (
            "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Proto: http\r\n",
            (Some(false), "", Some(80)),
        ),
        // Two proxies, the outer of which ends TLS.
        (
            "X-Forwarded-For: 203.0.113.9, 10.1.1.1\r\nX-Forwarded-Proto: https, http\r\nX-Forwarded-Host: a,b\r\n",
            (Some(true), "a", Some(443)),
        ),
        ("X-Forwarded-For: 203.0.113.9, 10.1.1.1\r\nX-Forwarded-Proto: https\r\n", (Some(true), "", Some(443))),
        (
            "X-Forwarded-For: 203.0.113.9, 10.1.1.1\r\nX-Forwarded-Proto: http, https, http\r\n",
            (Some(true), "", Some(443)),
        ),
        (
            "Forwarded: for=6.6.6.6;proto=http, for=203.0.113.9;proto=https;host=\"a:81\"\r\n",
            (Some(true), "a:81", Some(81)),
        ),
        // Beside X-Forwarded-For, only where it says the same.
        ("X-Forwarded-For: 203.0.113.9\r\nForwarded: for=203.0.113.9;proto=https\r\n", (Some(true), "", Some(443))),
        ("X-Forwarded-For: 203.0.113.9\r\nForwarded: for=6.6.6.6;proto=https\r\n", (None, "", None)),
    ] {
        assert_eq!(text(lines), (expected.0, expected.1.to_owned(), expected.2), "{lines}");
    }
}

#[test]
fn forwarded_passes_only_where_it_says_the_same() {
    let xff = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: a\r\n";
    for (lines, passes) in [
        ("Forwarded: for=203.0.113.9\r\n", true),
        ("Forwarded: for=\"203.0.113.9:81\";proto=https;host=A\r\n", true),
        ("Forwarded: for=6.6.6.6, for=203.0.113.9\r\n", false),
        ("Forwarded: for=6.6.6.6\r\n", false),
        ("Forwarded: for=203.0.113.9;proto=http\r\n", false),
        ("Forwarded: for=203.0.113.9;host=b\r\n", false),
        ("Forwarded: for=203.0.113.9;host=\"\r\n", false),
        ("Forwarded: proto=https\r\n", false),
    ] {
        let (origin, _) = origin_of(&format!("{xff}{lines}"), Some("10.0.0.1"), TRUST);
        assert_eq!(origin.passes.has(Kind::Forwarded), passes, "{lines}");
    }
    assert!(origin_of("Forwarded: for=6.6.6.6\r\n", Some("10.0.0.1"), TRUST).0.passes.has(Kind::Forwarded));
    assert!(!origin_of("Forwarded: ;;=\r\n", Some("10.0.0.1"), TRUST).0.passes.has(Kind::Forwarded));
}

#[test]
fn what_the_client_says_in_forwarded_is_left_out() {
    let corrects = |lines: &str| origin_of(lines, Some("10.0.0.1"), TRUST).0.corrects_forwarded;
    for (lines, expected) in [
        ("Forwarded: for=203.0.113.9\r\n", false),
        ("Forwarded: for=203.0.113.9, for=10.1.1.1\r\n", false),
        ("Forwarded: for=203.0.113.9\r\nForwarded: for=10.1.1.1\r\n", false),
        ("Forwarded: for=6.6.6.6, for=203.0.113.9\r\n", true),
        ("Forwarded: for=6.6.6.6\r\nForwarded: for=203.0.113.9, for=10.1.1.1\r\n", true),
        ("Forwarded: host=evil.example, for=203.0.113.9\r\n", true),
        ("Forwarded: for=6.6.6.6, for=_hidden\r\n", true),
        ("Forwarded: for=6.6.6.6, for=203.0.113.9\r\nX-Forwarded-For: 203.0.113.9\r\n", true),
        // What contradicts is dropped anyway.
        ("Forwarded: for=6.6.6.6, for=203.0.113.9\r\nX-Forwarded-For: 203.0.113.8\r\n", false),
    ] {
        assert_eq!(corrects(lines), expected, "{lines}");
    }
    let many = format!("Forwarded: for=6.6.6.6, for=6.6.6.7{}\r\n", ", for=10.1.1.1".repeat(MOST_HOPS));
    let (origin, _) = origin_of(&many, Some("10.0.0.1"), TRUST);
    assert!(origin.corrects_forwarded && !origin.passes.has(Kind::Forwarded));
}

#[test]
fn other_words_for_the_scheme_are_read_and_pass_where_they_say_the_same() {
    for (lines, https, passes) in [
        ("X-Forwarded-Ssl: on\r\n", Some(true), true),
        ("X-Forwarded-Ssl: off\r\n", Some(false), true),
        ("X-Forwarded-Scheme: https\r\nX-Forwarded-Protocol: SSL\r\n", Some(true), true),
        ("X-Forwarded-Scheme: https\r\nX-Forwarded-Ssl: off\r\n", None, false),
        ("X-Forwarded-Scheme: gopher\r\n", None, false),
        ("X-Forwarded-Scheme: https, http\r\n", None, false),
        ("X-Forwarded-Proto: http\r\nX-Forwarded-Ssl: on\r\n", Some(false), false),
        ("X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: on\r\n", Some(true), true),
        ("X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: on\r\nX-Forwarded-Scheme: http\r\n", Some(true), false),
        ("X-Forwarded-Proto: gopher\r\nX-Forwarded-Ssl: on\r\n", None, false),
        ("Forwarded: for=203.0.113.9;proto=https\r\nX-Forwarded-Ssl: on\r\n", Some(true), true),
        ("Forwarded: for=203.0.113.9;proto=http\r\nX-Forwarded-Ssl: on\r\n", Some(false), false),
    ] {
        let (origin, _) = origin_of(lines, Some("10.0.0.1"), TRUST);
        assert_eq!((origin.https, origin.passes.has(Kind::XForwardedScheme)), (https, passes), "{lines}");
    }
}

#[test]
fn an_id_is_taken_over_if_it_is_one() {
    let id = |lines: &str| {
        let (origin, head) = origin_of(lines, Some("10.0.0.1"), TRUST);
        String::from_utf8(origin.request_id.of(head.as_bytes()).to_vec()).unwrap()
    };
    assert_eq!(id("X-Request-Id: front-1/a\r\n"), "front-1/a");
    let long = format!("X-Request-Id: {}\r\n", "a".repeat(129));
    for lines in ["X-Request-Id: a\r\nX-Request-Id: b\r\n", "X-Request-Id: a b\r\n", "X-Request-Id:\r\n", &long] {
        assert_eq!(id(lines), "", "{lines}");
    }
}

/// Pieces of lists, legal and not.
const PIECES: &[&str] = &[
    "6.6.6.6",
    "10.2.2.2",
    "fd00::2",
    "[2001:db8::9]:1",
    "\"",
    "\\",
    ",",
    ", ",
    ";",
    "=",
    "for=",
    "proto=https",
    "host=",
    "unknown",
    "_hidden",
    "%eth0",
    "[",
    "]",
    ":",
    "for=6.6.6.6",
    "for=\"[fd00::1]\"",
    "\t",
    "a",
    "\u{e9}",
];
const NAMES: &[&str] = &[
    "X-Forwarded-For",
    "Forwarded",
    "X-Real-IP",
    "X-Forwarded-Proto",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Request-Id",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Whatever a client says before it, and in whatever other fields: the address that the proxy has added is the client's.
    #[test]
    fn what_a_client_says_never_counts(
        said in prop::collection::vec((prop::sample::select(NAMES), prop::collection::vec(prop::sample::select(PIECES), 0..12)), 0..6),
        proxies in 0usize..3,
    ) {
        let said: String = said.iter().map(|(name, pieces)| format!("{name}: {}\r\n", pieces.concat())).collect();
        let behind: String = (0..proxies).map(|hop| format!("X-Forwarded-For: 10.5.5.{hop}\r\n")).collect();
        let lines = format!("{said}X-Forwarded-For: 203.0.113.9\r\n{behind}");
        let (origin, head) = origin_of(&lines, Some("10.0.0.1"), TRUST);
        prop_assert_eq!(origin.client, Some("203.0.113.9".parse().unwrap()), "{}", lines);
        prop_assert_eq!(origin.chain().count(), proxies + 1);
        let host = origin.host.of(head.as_bytes());
        prop_assert!(host.is_empty() || host_is_legal(host));
        // From anybody else none of it counts.
        let (origin, _) = origin_of(&lines, Some("11.0.0.1"), TRUST);
        prop_assert!(!origin.trusted && origin.client == Some("11.0.0.1".parse().unwrap()));
    }

    /// Nothing is found that nobody has said: the client is the peer, or stands in the fields.
    #[test]
    fn an_address_is_one_that_was_said(
        said in prop::collection::vec((prop::sample::select(NAMES), prop::collection::vec(prop::sample::select(PIECES), 0..12)), 0..6),
    ) {
        let said: String = said.iter().map(|(name, pieces)| format!("{name}: {}\r\n", pieces.concat())).collect();
        let (origin, _) = origin_of(&said, Some("10.0.0.1"), TRUST);
        prop_assert!(origin.client.is_some() && origin.chain().count() <= MOST_HOPS, "{}", said);
        prop_assert_eq!(origin.chain().next().or(Some("10.0.0.1".parse().unwrap())), origin.client);
    }

    #[test]
    fn every_address_is_read_as_it_is_written(address in any::<std::net::IpAddr>(), port in any::<u16>()) {
        let canonical = address.to_canonical();
        let texts = match address {
            IpAddr::V4(v4) => vec![v4.to_string(), format!("{v4}:{port}"), format!("\"{v4}:{port}\"")],
            IpAddr::V6(v6) => vec![v6.to_string(), format!("[{v6}]"), format!("[{v6}]:{port}"), format!("\"[{v6}]:_x\""), format!("{v6}%1")],
        };
        for text in texts {
            prop_assert_eq!(node(text.as_bytes()), Some(canonical), "{}", text);
        }
    }
}
