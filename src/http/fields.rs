//! Field lines: the reusable list of them, and the names that mean something to us.
//!
//! Lines are split by httparse, which refuses folded lines, whitespace before the colon, empty names, bare CR, NUL and the
//! other controls, and accepts a bare LF as a line's end. A name is classified by its length first and then by comparing
//! whole words with the case bit set; that is exact, because names are tokens by then.

use super::{Refusal, Span, bad};

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
    /// Any other `X-Forwarded-*`: frameworks believe `-Scheme`, `-Ssl` and `-Prefix` as well.
    XForwardedOther,
    /// `X-Real-IP`.
    XRealIp,
    /// `X-Request-Start`.
    XRequestStart,
    /// `X-Request-Id`.
    XRequestId,
    /// `Forwarded`.
    Forwarded,
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

    /// Whether any kind is in both sets.
    #[inline]
    pub const fn meets(self, other: Kinds) -> bool {
        self.0 & other.0 != 0
    }

    /// What is in either set.
    #[inline]
    pub const fn and(self, other: Kinds) -> Kinds {
        Kinds(self.0 | other.0)
    }

    /// What is in this set and not in the other.
    #[inline]
    pub const fn without(self, other: Kinds) -> Kinds {
        Kinds(self.0 & !other.0)
    }
}

/// One field line.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The name as it came.
    pub name: Span,
    /// The value without the whitespace around it.
    pub value: Span,
    /// The whole line with its end.
    pub line: Span,
    /// What the name means to us.
    pub kind: Kind,
}

/// The field lines of the head that was parsed last. Kept and reused by its owner, so that parsing does not allocate.
#[derive(Debug, Default)]
pub struct Fields {
    list: Vec<Field>,
    present: Kinds,
    /// Whether a line ends without CR.
    pub(crate) bare_line_feed: bool,
    /// The host that was found legal last: nearly all requests of a server name the same.
    legal_host: Vec<u8>,
}

impl Fields {
    /// An empty list with room for `capacity` lines.
    pub fn new(capacity: usize) -> Fields {
        Fields { list: Vec::with_capacity(capacity), ..Fields::default() }
    }

    /// The lines in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, Field> {
        self.list.iter()
    }

    /// Lines in the list.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the head had no field line.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The first line of that kind.
    #[inline]
    pub fn find(&self, kind: Kind) -> Option<&Field> {
        if self.present.has(kind) { self.list.iter().find(|field| field.kind == kind) } else { None }
    }

    /// The first line whose name is `name`, whatever its case. For names without a [`Kind`].
    pub fn find_name<'a>(&self, bytes: &'a [u8], name: &str) -> Option<&'a [u8]> {
        let named = |field: &&Field| field.name.of(bytes).eq_ignore_ascii_case(name.as_bytes());
        self.list.iter().find(named).map(|field| field.value.of(bytes))
    }

    /// The kinds of which there is at least one line.
    #[inline]
    pub fn present(&self) -> Kinds {
        self.present
    }

    /// Whether that host was found legal just before.
    #[inline]
    pub(crate) fn knows_host(&self, host: &[u8]) -> bool {
        self.legal_host == host
    }

    /// Remembers a legal host, within the memory that is there already.
    pub(crate) fn remember_host(&mut self, host: &[u8]) {
        const MOST: usize = 64;
        if host.len() <= MOST {
            self.legal_host.clear();
            self.legal_host.reserve_exact(MOST);
            self.legal_host.extend_from_slice(host);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.present = Kinds::default();
        self.bare_line_feed = false;
    }

    /// Reads the field lines that begin at `start`, up to and with the empty line. Returns the offset behind it, or `None`
    /// when more bytes are needed.
    pub(crate) fn parse(&mut self, bytes: &[u8], start: usize, most: usize) -> Result<Option<usize>, Refusal> {
        /// Enough for a browser's head, and cheap to clear.
        const USUAL: usize = 24;
        let mut headers = [httparse::EMPTY_HEADER; USUAL];
        match httparse::parse_headers(&bytes[start..], &mut headers) {
            Ok(httparse::Status::Complete((len, headers))) => self.take(bytes, start, len, headers, most),
            Ok(httparse::Status::Partial) => Ok(None),
            Err(httparse::Error::TooManyHeaders) => self.parse_many(bytes, start, most),
            Err(_) => Err(diagnose(&bytes[start..])),
        }
    }

    #[cold]
    fn parse_many(&mut self, bytes: &[u8], start: usize, most: usize) -> Result<Option<usize>, Refusal> {
        let mut headers = [httparse::EMPTY_HEADER; MOST_FIELDS];
        match httparse::parse_headers(&bytes[start..], &mut headers) {
            Ok(httparse::Status::Complete((len, headers))) => self.take(bytes, start, len, headers, most),
            Ok(httparse::Status::Partial) => Ok(None),
            Err(httparse::Error::TooManyHeaders) => Err(TOO_MANY),
            Err(_) => Err(diagnose(&bytes[start..])),
        }
    }

    /// Takes over what httparse has found: `len` bytes at `start`, with the empty line.
    fn take(
        &mut self,
        bytes: &[u8],
        start: usize,
        len: usize,
        headers: &[httparse::Header<'_>],
        most: usize,
    ) -> Result<Option<usize>, Refusal> {
        if headers.len() > most {
            return Err(TOO_MANY);
        }
        let base = bytes.as_ptr() as usize;
        let end = start + len;
        let empty_line = if len >= 2 && bytes[end - 2] == b'\r' { 2 } else { 1 };
        let mut bare = empty_line == 1;
        let mut present = self.present.0;
        let mut line_start = start;
        // Each line ends where the next one's name begins.
        let next_names = headers.iter().skip(1).map(|next| next.name.as_ptr() as usize - base);
        let line_ends = next_names.chain([end - empty_line]);
        self.list.extend(headers.iter().zip(line_ends).map(|(header, line_end)| {
            let name = header.name.as_bytes();
            bare |= bytes[line_end - 2] != b'\r';
            let kind = classify(name);
            present |= 1 << kind as u8;
            // httparse gives an empty value an address of its own, outside of `bytes`.
            let value = if header.value.is_empty() { 0 } else { header.value.as_ptr() as usize - base };
            let field = Field {
                name: Span::new(line_start, line_start + name.len()),
                value: Span::new(value, value + header.value.len()),
                line: Span::new(line_start, line_end),
                kind,
            };
            line_start = line_end;
            field
        }));
        self.bare_line_feed |= bare;
        self.present.0 = present;
        Ok(Some(end))
    }

    /// Marks the lines that a `Connection` field names. Host, the framing and what we write ourselves cannot be named
    /// away.
    #[cold]
    pub(crate) fn nominate(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut options = 0;
        for index in 0..self.list.len() {
            if self.list[index].kind != Kind::Connection {
                continue;
            }
            for option in list_items(self.list[index].value.of(bytes)) {
                options += 1;
                if options > MOST_OPTIONS {
                    return Err(bad("RFC 9110 §7.6.1", "too many connection options"));
                }
                self.nominate_one(bytes, option);
            }
        }
        Ok(())
    }

    fn nominate_one(&mut self, bytes: &[u8], option: &[u8]) {
        for field in &mut self.list {
            if NOMINABLE.has(field.kind) && field.name.of(bytes).eq_ignore_ascii_case(option) {
                field.kind = Kind::Nominated;
                self.present.0 |= 1 << Kind::Nominated as u8;
            }
        }
    }
}

/// More field lines than this are refused, whatever the configured limit.
pub const MOST_FIELDS: usize = 256;
/// Options of `Connection` in one head, so that marking what they name stays cheap.
const MOST_OPTIONS: usize = 32;
const TOO_MANY: Refusal = Refusal { status: 431, section: "RFC 6585 §5", reason: "too many field lines" };

/// What `Connection` may declare to be hop-by-hop: what we neither need for framing or routing nor write ourselves.
const NOMINABLE: Kinds = Kinds::of(&[
    Kind::Other,
    Kind::Accept,
    Kind::Cookie,
    Kind::Referer,
    Kind::UserAgent,
    Kind::ContentType,
    Kind::MaxForwards,
    Kind::RipWorkerBusy,
    Kind::RipWorkerDraining,
]);

/// The elements of a comma-separated list (RFC 9110 §5.6.1), without empty ones and the whitespace around them.
pub(crate) fn list_items(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim).filter(|item| !item.is_empty())
}

/// `bytes` without optional whitespace at both ends (RFC 9110 §5.6.3).
pub(crate) fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
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
        9 => pick(name, [(b"forwarded", Kind::Forwarded), (b"x-real-ip", Kind::XRealIp)]),
        10 => pick(
            name,
            [(b"connection", Kind::Connection), (b"user-agent", Kind::UserAgent), (b"keep-alive", Kind::KeepAlive)],
        ),
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
    /// This kind, or `XForwardedOther` for a name that nothing else knows and that begins like those.
    #[inline]
    fn or_forwarded(self, name: &[u8]) -> Kind {
        match (self, name.first_chunk::<12>()) {
            (Kind::Other, Some(first)) if same(first, b"x-forwarded-") => Kind::XForwardedOther,
            _ => self,
        }
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

/// Which rule the lines at `bytes` break; for the refusal's text alone.
#[cold]
fn diagnose(bytes: &[u8]) -> Refusal {
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let content = line.strip_suffix(b"\n").map_or(line, |line| line.strip_suffix(b"\r").unwrap_or(line));
        if matches!(content.first(), Some(b' ' | b'\t')) {
            return bad("RFC 9112 §5.2", "a folded field line");
        }
        if content.contains(&b'\r') {
            return bad("RFC 9112 §2.2", "a bare CR");
        }
        if content.is_empty() {
            break;
        }
        let colon = content.iter().position(|byte| *byte == b':').unwrap_or(content.len());
        if colon > 0 && content[..colon].ends_with(b" ") || content[..colon].ends_with(b"\t") {
            return bad("RFC 9112 §5.1", "whitespace between a field's name and its colon");
        }
        if colon == 0 && !content.is_empty() || !content[..colon].iter().all(|byte| is_token(*byte)) {
            return bad("RFC 9110 §5.1", "a field name that is not a token");
        }
        if content[colon..].iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
            return bad("RFC 9110 §5.5", "a control character in a field value");
        }
    }
    bad("RFC 9112 §5", "a field line without a colon")
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
            ("X-Forwarded-Ssl", Kind::XForwardedOther),
            ("X-Forwarded-Scheme", Kind::XForwardedOther),
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
}
