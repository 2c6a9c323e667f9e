//! The grammar of an authority without user information: what Host and absolute targets may hold.

/// Whether this is `uri-host [ ":" port ]` (RFC 9110 §7.2, RFC 3986 §3.2.2). Empty is legal.
pub(crate) fn host_is_legal(host: &[u8]) -> bool {
    let (name_is_legal, port) = match host {
        [b'[', rest @ ..] => {
            let Some(close) = rest.iter().position(|byte| *byte == b']') else { return false };
            (literal_is_legal(&rest[..close]), &rest[close + 1..])
        }
        _ => {
            let mut len = 0;
            let mut escaped = false;
            while let Some(byte) = host.get(len)
                && NAME_BYTE[*byte as usize]
            {
                escaped |= *byte == b'%';
                len += 1;
            }
            (!escaped || escapes_are_legal(&host[..len]), &host[len..])
        }
    };
    let port_is_legal = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) && port_fits(digits),
        _ => false,
    };
    name_is_legal && port_is_legal
}

/// Whether an authority names this machine from within: `localhost`, an IPv4 address of 127.0.0.0/8 or `[::1]`, with any port. A
/// page of elsewhere may have its own name point here and have the browser of somebody on this machine ask (DNS rebinding): then
/// the address is a loopback one, and the name is not.
pub fn is_loopback_host(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else { return false };
    let (name, port) = match host.rfind(':') {
        // Those within brackets belong to the address.
        Some(colon) if !host[colon..].contains(']') => (&host[..colon], &host[colon + 1..]),
        _ => (host, ""),
    };
    let is_v6 = |literal: &str| literal.parse() == Ok(std::net::Ipv6Addr::LOCALHOST);
    let is_named = match name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(literal) => is_v6(literal),
        None => {
            name.eq_ignore_ascii_case("localhost")
                || name.parse().is_ok_and(|address: std::net::Ipv4Addr| address.is_loopback())
        }
    };
    is_named && port.len() <= 5 && port.bytes().all(|digit| digit.is_ascii_digit()) && port_fits(port.as_bytes())
}

/// The port that a legal authority names, if it is one that can be connected to.
pub(crate) fn port_of(host: &[u8]) -> Option<u16> {
    let colon = host.iter().rposition(|byte| matches!(byte, b':' | b']')).filter(|at| host[*at] == b':')?;
    std::str::from_utf8(&host[colon + 1..]).ok()?.parse().ok().filter(|port| *port != 0)
}

fn port_fits(digits: &[u8]) -> bool {
    digits.iter().fold(0u32, |port, digit| port * 10 + u32::from(digit - b'0')) <= u32::from(u16::MAX)
}

fn literal_is_legal(literal: &[u8]) -> bool {
    let text = std::str::from_utf8(literal).unwrap_or_default();
    match text.as_bytes() {
        [b'v' | b'V', rest @ ..] => {
            let hex = rest.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            hex > 0
                && rest.get(hex) == Some(&b'.')
                && rest.len() > hex + 1
                && rest[hex + 1..].iter().all(|byte| *byte == b':' || (NAME_BYTE[*byte as usize] && *byte != b'%'))
        }
        _ => text.parse::<std::net::Ipv6Addr>().is_ok(),
    }
}

#[cold]
fn escapes_are_legal(name: &[u8]) -> bool {
    name.split(|byte| *byte == b'%')
        .skip(1)
        .all(|rest| matches!(rest, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}

/// unreserved, sub-delims and `%` of RFC 3986.
const NAME_BYTE: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        let unreserved = b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        let delimiter = matches!(b, b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=');
        table[byte] = unreserved || delimiter || b == b'%';
        byte += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_the_loopback_are_local() {
        for host in [
            "localhost",
            "LocalHost:8080",
            "localhost:",
            "127.0.0.1",
            "127.0.0.1:1",
            "127.255.3.4:65535",
            "[::1]",
            "[::1]:8080",
            "[0:0:0:0:0:0:0:1]:8080",
        ] {
            assert!(is_loopback_host(host.as_bytes()) && host_is_legal(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            ":80",
            "a",
            "example.org",
            "localhost.example.org",
            "localhost.",
            "a.localhost",
            "localhost:99999",
            "localhost:80:80",
            "localhost:a",
            "localhost@example.org",
            "127.0.0.1.example.org",
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "127.0.0.01",
            "0.0.0.0",
            "128.0.0.1",
            "10.0.0.1",
            "::1",
            "[::2]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::1",
            "[::1]a",
            "[127.0.0.1]",
            "[localhost]",
            "\u{e9}",
        ] {
            assert!(!is_loopback_host(host.as_bytes()), "{host}");
        }
        assert!(!is_loopback_host(b"localhost\xff"));
    }
}
