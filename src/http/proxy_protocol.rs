//! The header of the PROXY protocol, with which a load balancer begins a connection: versions 1 and 2, as haproxy's
//! doc/proxy-protocol.txt has them.
//!
//! What is not exactly such a header is refused: the listener is for nobody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its bytes; those behind it are the client's.
    pub len: usize,
    /// Whether the connection is the balancer's own (LOCAL): it carries nobody else's requests.
    pub own: bool,
    /// The client's address and port, and those that it connected to. `None`: the connection is the balancer's own, or it
    /// does not know the addresses (UNKNOWN, UNSPEC), or they are paths of Unix sockets; those of the socket hold then.
    pub addresses: Option<[(IpAddr, u16); 2]>,
    /// Whether the balancer says that the client came over TLS.
    pub tls: bool,
}

/// What came is no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// The longest header of version 1, with its CRLF.
const LONGEST_LINE: usize = 107;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// What a header of version 2 has before the addresses.
const FIXED: usize = 16;
/// Bytes behind that, at most: the addresses, and what extensions may add.
const MOST_BEHIND: usize = 4096;
/// Bytes of the longest header that is accepted.
pub const LONGEST: usize = FIXED + MOST_BEHIND;

/// The extension with a checksum of the whole.
const CRC32C: u8 = 0x03;
/// The extension about the client's TLS.
const SSL: u8 = 0x20;

/// Reads a header; `None` when more bytes are needed.
///
/// # Errors
/// What came cannot become one.
pub fn parse(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    match bytes.first() {
        None => Ok(None),
        Some(b'P') => line(bytes),
        Some(_) => binary(bytes),
    }
}

/// Whether both agree as far as both go.
fn begin_alike(bytes: &[u8], with: &[u8]) -> bool {
    let common = bytes.len().min(with.len());
    bytes[..common] == with[..common]
}

/// Version 1: `PROXY TCP4 192.0.2.1 192.0.2.2 56324 443` and CRLF.
fn line(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    if !begin_alike(bytes, b"PROXY ") {
        return Err(Malformed);
    }
    let window = &bytes[..bytes.len().min(LONGEST_LINE)];
    let Some(end) = memchr::memmem::find(window, b"\r\n") else {
        return if bytes.len() < LONGEST_LINE { Ok(None) } else { Err(Malformed) };
    };
    let text = window.get(6..end).and_then(|text| std::str::from_utf8(text).ok()).ok_or(Malformed)?;
    let header = Header { len: end + 2, own: false, addresses: None, tls: false };
    if text == "UNKNOWN" || text.starts_with("UNKNOWN ") {
        return Ok(Some(header));
    }
    let mut words = text.split(' ');
    let mut word = || words.next().ok_or(Malformed);
    let family = word()?;
    let mut address = || {
        let address = word()?.parse().map_err(|_| Malformed)?;
        let fits = matches!((family, address), ("TCP4", IpAddr::V4(_)) | ("TCP6", IpAddr::V6(_)));
        if fits { Ok(address) } else { Err(Malformed) }
    };
    let (source, target) = (address()?, address()?);
    let mut port = || {
        let text = word()?;
        let plain = text == "0" || (!text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit()));
        text.parse::<u16>().ok().filter(|_| plain).ok_or(Malformed)
    };
    let addresses = [(source, port()?), (target, port()?)];
    if words.next().is_some() { Err(Malformed) } else { Ok(Some(Header { addresses: Some(addresses), ..header })) }
}

/// Version 2.
fn binary(bytes: &[u8]) -> Result<Option<Header>, Malformed> {
    if !begin_alike(bytes, SIGNATURE) {
        return Err(Malformed);
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else { return Ok(None) };
    let (command, family) = (fixed[12], fixed[13]);
    let behind = usize::from(u16::from_be_bytes([fixed[14], fixed[15]]));
    let own = command == 0x20;
    let known = family >> 4 <= 3 && family & 15 <= 2;
    if !(own || (command == 0x21 && known)) || behind > MOST_BEHIND {
        return Err(Malformed);
    }
    let Some(rest) = rest.get(..behind) else { return Ok(None) };
    let header = Header { len: FIXED + behind, own, addresses: None, tls: false };
    if !known {
        // The family of a connection of the balancer's own is ignored (2.2), and where its extensions begin is not known.
        return Ok(Some(header));
    }
    let room = match family >> 4 {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    // What a balancer sends for itself may be anything, and is passed over.
    let Some((addresses, extensions)) = rest.split_at_checked(room) else {
        return if own { Ok(Some(header)) } else { Err(Malformed) };
    };
    match extended(&bytes[..header.len], extensions) {
        Ok(_) if own => Ok(Some(header)),
        Err(Extension::Malformed) if own || room == 0 => Ok(Some(header)),
        Ok(tls) => Ok(Some(Header { addresses: pair(family, addresses)?, tls, ..header })),
        Err(_) => Err(Malformed),
    }
}

/// The addresses of a family over a stream.
fn pair(family: u8, bytes: &[u8]) -> Result<Option<[(IpAddr, u16); 2]>, Malformed> {
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    match family {
        0x11 => {
            let address = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
            Ok(Some([(address(0).into(), port(8)), (address(4).into(), port(10))]))
        }
        0x21 => {
            let address = |at: usize| bytes[at..].first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets));
            match (address(0), address(16)) {
                (Some(source), Some(target)) => Ok(Some([(source.into(), port(32)), (target.into(), port(34))])),
                _ => Err(Malformed),
            }
        }
        // Datagrams do not come over a stream.
        0x12 | 0x22 | 0x32 => Err(Malformed),
        _ => Ok(None),
    }
}

enum Extension {
    Malformed,
    WrongSum,
}

/// Reads the extensions behind the addresses of `header`: whether the client came over TLS.
fn extended(header: &[u8], mut rest: &[u8]) -> Result<bool, Extension> {
    let mut tls = false;
    while let [kind, high, low, behind @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, next) = behind.split_at_checked(len).ok_or(Extension::Malformed)?;
        match *kind {
            CRC32C => {
                let said = value.first_chunk::<4>().filter(|_| len == 4).ok_or(Extension::Malformed)?;
                let at = header.len() - behind.len();
                let parts = [&header[..at], &[0; 4], &header[at + 4..]];
                if crc32c(parts.into_iter().flatten()) != u32::from_be_bytes(*said) {
                    return Err(Extension::WrongSum);
                }
            }
            // Its first byte is a set: bit 0 says TLS.
            SSL => tls |= value.first().ok_or(Extension::Malformed)? & 1 == 1,
            _ => {}
        }
        rest = next;
    }
    if rest.is_empty() { Ok(tls) } else { Err(Extension::Malformed) }
}

/// The checksum of RFC 4960, appendix B.
pub fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut byte = 0;
        while byte < 256 {
            let (mut sum, mut bit) = (byte as u32, 0);
            while bit < 8 {
                sum = sum >> 1 ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 };
                bit += 1;
            }
            table[byte] = sum;
            byte += 1;
        }
        table
    };
    !bytes.fold(!0, |sum, byte| sum >> 8 ^ TABLE[((sum ^ u32::from(*byte)) & 0xff) as usize])
}

#[cfg(test)]
mod tests;
