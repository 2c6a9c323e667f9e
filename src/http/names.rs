//! Field names: the ones that mean something to us, and what a token is.
//!
//! A name is classified by its length first and then by comparing whole words with the case bit set; that is exact, because
//! names are tokens by then.

/// A field name that we act upon. Everything else is [`Kind::Other`] and passes as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Any name without a meaning to us.
    Other,
    /// A name that `Connection` declares to be hop-by-hop (RFC 9110 §7.6.1). Set instead of the kind that it had.
    Nominated,
    /// A name that only differs from one of ours by `_` in the place of `-`: CGI-like workers could not tell them apart.
    Shadow,
    /// `Host`.
    Host,
    /// `Content-Length`.
    ContentLength,
    /// `Transfer-Encoding`.
    TransferEncoding,
    /// `Connection`.
    Connection,
    /// `Keep-Alive`.
    KeepAlive,
    /// `Proxy-Connection`.
    ProxyConnection,
    /// `TE`.
    Te,
    /// `HTTP2-Settings`.
    Http2Settings,
    /// `Upgrade`.
    Upgrade,
    /// `Expect`.
    Expect,
    /// `Proxy`, which no client has a reason to send and which CGI-like workers take for `HTTP_PROXY` (CVE-2016-5385).
    Proxy,
    /// `X-Forwarded-For`.
    XForwardedFor,
    /// `X-Forwarded-Proto`.
    XForwardedProto,
    /// `X-Forwarded-Host`.
    XForwardedHost,
    /// `X-Forwarded-Port`.
    XForwardedPort,
    /// `X-Forwarded-Ssl`, `-Scheme` and `-Protocol`: in other words what `X-Forwarded-Proto` says. Frameworks believe them as well.
    XForwardedScheme,
    /// `X-Forwarded-Client-Cert`.
    XForwardedClientCert,
    /// Any other `X-Forwarded-*`, such as `-Prefix`.
    XForwardedOther,
    /// `X-Real-IP`.
    XRealIp,
    /// `X-Request-Start`.
    XRequestStart,
    /// `X-Request-Id`.
    XRequestId,
    /// `Forwarded`.
    Forwarded,
    /// `traceparent` of the W3C's Trace Context.
    Traceparent,
    /// `tracestate` of the W3C's Trace Context.
    Tracestate,
    /// `Via`.
    Via,
    /// `Max-Forwards`.
    MaxForwards,
    /// `Accept`.
    Accept,
    /// `Cookie`.
    Cookie,
    /// `Referer`.
    Referer,
    /// `User-Agent`.
    UserAgent,
    /// `Content-Type`.
    ContentType,
    /// `Date`.
    Date,
    /// `Rip-Worker-Busy`.
    RipWorkerBusy,
    /// `Rip-Worker-Draining`.
    RipWorkerDraining,
    /// `Rip-No-Log`.
    RipNoLog,
    /// `Rip-Mark`.
    RipMark,
    /// `X-Accel-Buffering`.
    XAccelBuffering,
}

/// A set of kinds, one bit each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Kinds(u64);

impl Kinds {
    /// The set of these kinds.
    pub const fn of(kinds: &[Kind]) -> Kinds {
        let mut bits = 0;
        let mut index = 0;
        while index < kinds.len() {
            bits |= 1 << kinds[index] as u8;
            index += 1;
        }
        Kinds(bits)
    }

    /// Whether `kind` is in the set.
    #[inline]
    pub const fn has(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    /// Puts a kind in.
    #[inline]
    pub(crate) fn insert(&mut self, kind: Kind) {
        self.0 |= 1 << kind as u8;
    }

    /// Whether any kind is in both sets.
    #[inline]
    pub const fn meets(self, other: Kinds) -> bool {
        self.0 & other.0 != 0
    }

    /// What is in either set.
    #[inline]
    pub const fn with(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    /// What is in this set and not in the other.
    #[inline]
    pub const fn without(self, other: Kinds) -> Kinds {
        Kinds(self.0 & !other.0)
    }
}

/// Whether the byte may stand in a token (RFC 9110 §5.6.2).
#[inline]
pub(crate) const fn is_token(byte: u8) -> bool {
    TOKEN[byte as usize]
}

const TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        byte += 1;
    }
    table
};

/// What a name of letters, digits and hyphens means to us. Most mean nothing, and their length and first letter say so.
#[inline]
pub(crate) fn usual_kind(name: &[u8]) -> Kind {
    /// For each length the letters that a known name of it begins with, one bit each; in the last place those of all longer ones.
    const FIRST: [u32; 20] = {
        const fn letters(letters: &[u8]) -> u32 {
            let mut bits = 0;
            let mut index = 0;
            while index < letters.len() {
                bits |= 1 << (letters[index] & 31);
                index += 1;
            }
            bits
        }
        let mut first = [0; 20];
        first[2] = letters(b"t");
        first[3] = letters(b"v");
        first[4] = letters(b"hd");
        first[5] = letters(b"p");
        first[6] = letters(b"ace");
        first[7] = letters(b"ur");
        first[8] = letters(b"r");
        first[9] = letters(b"fx");
        first[10] = letters(b"cuktr");
        first[11] = letters(b"t");
        first[12] = letters(b"cxm");
        first[13] = letters(b"x");
        first[14] = letters(b"chx");
        first[15] = letters(b"xr");
        first[16] = letters(b"xp");
        first[17] = letters(b"tx");
        first[18] = letters(b"x");
        first[19] = letters(b"rx");
        first
    };
    let Some(first) = name.first() else { return Kind::Other };
    if FIRST[name.len().min(FIRST.len() - 1)] >> (first & 31) & 1 == 0 { Kind::Other } else { by_length(name) }
}

/// What a name means to us. `name` is a token.
#[inline]
pub(crate) fn classify(name: &[u8]) -> Kind {
    let kind = by_length(name);
    if kind == Kind::Other && name.len() <= LONGEST && has_underscore(name) { shadow(name) } else { kind }
}

/// Whether there is a `_`, eight bytes at a time: every unknown name of every request is asked this.
#[inline]
fn has_underscore(name: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // The high bit of a byte is set where it is zero after the exclusive or, and possibly above such a byte.
    let found = |word: u64| {
        let word = word ^ (ONES * b'_' as u64);
        word.wrapping_sub(ONES) & !word & (ONES << 7)
    };
    let Some(tail) = name.last_chunk::<8>() else { return name.contains(&b'_') };
    let (words, _) = name.as_chunks::<8>();
    let any = words.iter().fold(found(u64::from_le_bytes(*tail)), |any, word| any | found(u64::from_le_bytes(*word)));
    any != 0
}

/// The longest name with a meaning; names above it shadow nothing.
const LONGEST: usize = 32;

#[cold]
fn shadow(name: &[u8]) -> Kind {
    let mut plain = [0; LONGEST];
    for (to, from) in plain.iter_mut().zip(name) {
        *to = if *from == b'_' { b'-' } else { *from };
    }
    if by_length(&plain[..name.len()]) == Kind::Other { Kind::Other } else { Kind::Shadow }
}

#[inline]
fn by_length(name: &[u8]) -> Kind {
    match name.len() {
        2 if same(name, b"te") => Kind::Te,
        3 if same(name, b"via") => Kind::Via,
        4 => pick(name, [(b"host", Kind::Host), (b"date", Kind::Date)]),
        5 if same(name, b"proxy") => Kind::Proxy,
        6 => pick(name, [(b"accept", Kind::Accept), (b"cookie", Kind::Cookie), (b"expect", Kind::Expect)]),
        7 => pick(name, [(b"upgrade", Kind::Upgrade), (b"referer", Kind::Referer)]),
        8 if same(name, b"rip-mark") => Kind::RipMark,
        9 => pick(name, [(b"forwarded", Kind::Forwarded), (b"x-real-ip", Kind::XRealIp)]),
        10 => pick(
            name,
            [
                (b"connection", Kind::Connection),
                (b"user-agent", Kind::UserAgent),
                (b"keep-alive", Kind::KeepAlive),
                (b"tracestate", Kind::Tracestate),
                (b"rip-no-log", Kind::RipNoLog),
            ],
        ),
        11 if same(name, b"traceparent") => Kind::Traceparent,
        12 => pick(
            name,
            [
                (b"content-type", Kind::ContentType),
                (b"x-request-id", Kind::XRequestId),
                (b"max-forwards", Kind::MaxForwards),
            ],
        ),
        14 => pick(name, [(b"content-length", Kind::ContentLength), (b"http2-settings", Kind::Http2Settings)])
            .or_forwarded(name),
        15 => pick(
            name,
            [
                (b"x-forwarded-for", Kind::XForwardedFor),
                (b"x-request-start", Kind::XRequestStart),
                (b"rip-worker-busy", Kind::RipWorkerBusy),
            ],
        )
        .or_forwarded(name),
        16 => pick(
            name,
            [
                (b"x-forwarded-host", Kind::XForwardedHost),
                (b"x-forwarded-port", Kind::XForwardedPort),
                (b"proxy-connection", Kind::ProxyConnection),
            ],
        )
        .or_forwarded(name),
        17 => pick(
            name,
            [
                (b"transfer-encoding", Kind::TransferEncoding),
                (b"x-forwarded-proto", Kind::XForwardedProto),
                (b"x-accel-buffering", Kind::XAccelBuffering),
            ],
        )
        .or_forwarded(name),
        19 if same(name, b"rip-worker-draining") => Kind::RipWorkerDraining,
        13.. => Kind::Other.or_forwarded(name),
        _ => Kind::Other,
    }
}

impl Kind {
    /// This kind, or `XForwardedScheme`, `XForwardedClientCert` or `XForwardedOther` for a name that nothing else knows and that begins like those.
    #[inline]
    fn or_forwarded(self, name: &[u8]) -> Kind {
        match (self, name.first_chunk::<12>()) {
            (Kind::Other, Some(first)) if same(first, b"x-forwarded-") => forwarded_kind(&name[first.len()..]),
            _ => self,
        }
    }
}

/// What a name is that goes on like this behind `X-Forwarded-`.
#[cold]
fn forwarded_kind(rest: &[u8]) -> Kind {
    let schemes: [&[u8]; 3] = [b"ssl", b"scheme", b"protocol"];
    match schemes.iter().any(|known| rest.eq_ignore_ascii_case(known)) {
        true => Kind::XForwardedScheme,
        false if rest.eq_ignore_ascii_case(b"client-cert") => Kind::XForwardedClientCert,
        false => Kind::XForwardedOther,
    }
}

#[inline]
fn pick<const N: usize, const M: usize>(name: &[u8], known: [(&[u8; N], Kind); M]) -> Kind {
    // Indexed, because the compiler unrolls this and does not unroll the iterator.
    let mut index = 0;
    while index < M {
        if same(name, known[index].0) {
            return known[index].1;
        }
        index += 1;
    }
    Kind::Other
}

/// Whether the token `name` is `lower`, which is in lower case, whatever the case of `name`.
#[inline]
pub(crate) fn same<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    const FOLD: u64 = 0x2020_2020_2020_2020;
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let word = |bytes: &[u8; N], at: usize| bytes[at..].first_chunk::<8>().map(|word| u64::from_le_bytes(*word));
    if N < 8 {
        let mut different = 0;
        for (byte, lower) in name.iter().zip(lower) {
            different |= (byte | 0x20) ^ lower;
        }
        return different == 0;
    }
    let mut at = 0;
    let mut different = 0;
    while at + 8 <= N {
        different |= word(name, at).map(|word| word | FOLD).unwrap_or(0) ^ word(lower, at).unwrap_or(0);
        at += 8;
    }
    let tail = N - 8;
    different |= word(name, tail).map(|word| word | FOLD).unwrap_or(0) ^ word(lower, tail).unwrap_or(0);
    different == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case() {
        for (name, kind) in [
            ("hOST", Kind::Host),
            ("TE", Kind::Te),
            ("Transfer-Encoding", Kind::TransferEncoding),
            ("X-FORWARDED-FOR", Kind::XForwardedFor),
            ("X-Forwarded-Ssl", Kind::XForwardedScheme),
            ("X-Forwarded-Scheme", Kind::XForwardedScheme),
            ("x-forwarded-PROTOCOL", Kind::XForwardedScheme),
            ("X-Forwarded-Prefix", Kind::XForwardedOther),
            ("x-forwarded-client-CERT", Kind::XForwardedClientCert),
            ("X-Forwarded-Client-Certs", Kind::XForwardedOther),
            ("X-Forwarded-Ssl-", Kind::XForwardedOther),
            ("X-Forwarded-Prefix-And-More", Kind::XForwardedOther),
            ("X_Forwarded_For", Kind::Shadow),
            ("X-Forwarded_Proto", Kind::Shadow),
            ("Content_Length", Kind::Shadow),
            ("X_Real-IP", Kind::Shadow),
            ("my_field", Kind::Other),
            ("Hosts", Kind::Other),
            ("Content-Lengti", Kind::Other),
            ("Content-LengtH", Kind::ContentLength),
            ("Rip-Worker-Draining", Kind::RipWorkerDraining),
            ("http2-settings", Kind::Http2Settings),
        ] {
            assert_eq!(classify(name.as_bytes()), kind, "{name}");
        }
    }

    #[test]
    fn the_first_letters_hide_no_name() {
        let known = [
            "te",
            "via",
            "host",
            "date",
            "proxy",
            "accept",
            "cookie",
            "expect",
            "upgrade",
            "referer",
            "forwarded",
            "x-real-ip",
            "connection",
            "user-agent",
            "keep-alive",
            "tracestate",
            "traceparent",
            "content-type",
            "x-request-id",
            "max-forwards",
            "content-length",
            "http2-settings",
            "x-forwarded-for",
            "x-request-start",
            "rip-mark",
            "rip-no-log",
            "rip-worker-busy",
            "x-forwarded-host",
            "x-forwarded-port",
            "proxy-connection",
            "transfer-encoding",
            "x-forwarded-proto",
            "x-accel-buffering",
            "rip-worker-draining",
            "x-forwarded-x",
            "x-forwarded-client-cert",
            "x-forwarded-ssl-and-much-more-than-that",
            "X-Forwarded-Scheme",
        ];
        let mut kinds = std::collections::HashSet::new();
        for name in known {
            let kind = usual_kind(name.as_bytes());
            assert_ne!(kind, Kind::Other, "{name}");
            assert_eq!((kind, kind), (classify(name.as_bytes()), usual_kind(name.to_uppercase().as_bytes())), "{name}");
            kinds.insert(kind as u8);
        }
        let other = [Kind::Other, Kind::Nominated, Kind::Shadow];
        let all = (0..=Kind::XAccelBuffering as u8).filter(|kind| !other.iter().any(|other| *other as u8 == *kind));
        assert_eq!(kinds.len(), all.count(), "each kind has its name here");
    }
}
