//! What the fields of one head say, gathered in one pass over those that mean something to us, and the one framing that follows
//! from them.

use super::fields::{Fields, Kind, Kinds, list_items, trim};
use super::head::Logged;
use super::host::host_is_legal;
use super::names::{is_token, same};
use super::{Framing, Method, Refusal, Span, Version, bad};

/// What the fields of one head say, gathered in one pass.
#[derive(Default)]
pub(super) struct Seen {
    hosts: u32,
    host: Span,
    pub body: Body,
    pub connection: Connection,
    pub expect_continue: bool,
    pub max_forwards: Option<u32>,
    pub accept: Span,
    pub keep_alive_timeout: Option<u32>,
    pub event_stream: bool,
    pub unbuffered: bool,
    pub busy: bool,
    pub draining: bool,
    pub logged: Logged,
}

/// What the fields say of the body and its end.
#[derive(Default)]
pub(super) struct Body {
    lengths: u32,
    length: u64,
    encodings: u32,
    coding: Coding,
}

/// What they say of the connection.
#[derive(Default)]
pub(super) struct Connection {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    websocket: bool,
    /// Whether it names fields that are for this connection alone.
    pub nominates: bool,
}

/// What the Transfer-Encoding lines seen so far come to.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Coding {
    /// No coding.
    #[default]
    Nothing,
    /// `chunked` and nothing else.
    Chunked,
    /// `chunked` behind codings that we do not know.
    UnknownChunked,
    /// Codings that we do not know, without `chunked` so far.
    Unknown,
}

impl Seen {
    /// Takes in what a request's fields say.
    #[inline]
    pub fn request_fields(&mut self, bytes: &[u8], fields: &Fields) -> Result<(), Refusal> {
        const LOOKED_AT: Kinds = Kinds::of(&[
            Kind::Host,
            Kind::ContentLength,
            Kind::TransferEncoding,
            Kind::Connection,
            Kind::Upgrade,
            Kind::Expect,
            Kind::MaxForwards,
            Kind::Accept,
        ]);
        for field in fields.iter().filter(|field| LOOKED_AT.has(field.kind)) {
            let value = field.value.of(bytes);
            match field.kind {
                Kind::Host => {
                    self.hosts += 1;
                    self.host = field.value;
                }
                Kind::Expect => self.expect(value)?,
                Kind::MaxForwards if self.max_forwards.is_none() => self.max_forwards = small_number(value),
                Kind::Accept if self.accept.is_empty() => self.accept = field.value,
                _ => self.framing_field(field.kind, value)?,
            }
        }
        Ok(())
    }

    /// Takes in what an answer's fields say.
    #[inline]
    pub fn response_fields(&mut self, bytes: &[u8], fields: &Fields) -> Result<(), Refusal> {
        const LOOKED_AT: Kinds = Kinds::of(&[
            Kind::ContentLength,
            Kind::TransferEncoding,
            Kind::Connection,
            Kind::Upgrade,
            Kind::KeepAlive,
            Kind::ContentType,
            Kind::XAccelBuffering,
            Kind::RipWorkerBusy,
            Kind::RipWorkerDraining,
            Kind::RipNoLog,
            Kind::RipMark,
        ]);
        for field in fields.iter().filter(|field| LOOKED_AT.has(field.kind)) {
            let value = field.value.of(bytes);
            match field.kind {
                Kind::KeepAlive => self.keep_alive_timeout = keep_alive_timeout(value),
                Kind::ContentType => {
                    self.event_stream |= is_event_stream(value);
                    self.logged.media_type = field.value;
                }
                Kind::RipNoLog => self.logged.silent |= value == b"1",
                Kind::RipMark => self.logged.mark = field.value,
                Kind::XAccelBuffering => self.unbuffered |= value.eq_ignore_ascii_case(b"no"),
                Kind::RipWorkerBusy => self.busy |= value == b"1",
                Kind::RipWorkerDraining => self.draining |= value == b"1",
                _ => self.framing_field(field.kind, value)?,
            }
        }
        Ok(())
    }

    fn framing_field(&mut self, kind: Kind, value: &[u8]) -> Result<(), Refusal> {
        match kind {
            Kind::ContentLength => self.body.length(value)?,
            Kind::TransferEncoding => self.body.transfer_encoding(value)?,
            Kind::Connection => self.connection.options(value)?,
            Kind::Upgrade => self.connection.upgrade_to(value),
            _ => {}
        }
        Ok(())
    }

    fn expect(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for item in list_items(value) {
            if !item.eq_ignore_ascii_case(b"100-continue") {
                return Err(Refusal { status: 417, section: "RFC 9110 §10.1.1", reason: "an unknown expectation" });
            }
            self.expect_continue = true;
        }
        Ok(())
    }

    /// What counts as the host. `of_target` is the authority of an absolute target.
    pub fn host_of_request(
        &self,
        bytes: &[u8],
        fields: &mut Fields,
        version: Version,
        of_target: Option<Span>,
    ) -> Result<Span, Refusal> {
        debug_assert!(self.hosts as usize <= fields.len());
        if self.hosts > 1 {
            return Err(bad("RFC 9112 §3.2", "more than one Host"));
        }
        if self.hosts == 0 && version == Version::Http11 {
            return Err(bad("RFC 9112 §3.2", "no Host"));
        }
        let host = self.host.of(bytes);
        if !fields.knows_host(host) {
            if !host_is_legal(host) {
                return Err(bad("RFC 9112 §3.2", "a malformed Host"));
            }
            fields.remember_host(host);
        }
        Ok(of_target.unwrap_or(self.host))
    }
}

impl Connection {
    /// Whether it may be used again after a message of that version.
    pub fn persists(&self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    /// Whether a switch to WebSocket is meant, by both fields that it takes.
    pub fn to_websocket(&self) -> bool {
        self.websocket && self.upgrade
    }

    fn upgrade_to(&mut self, value: &[u8]) {
        self.websocket |= list_items(value).any(|item| item.eq_ignore_ascii_case(b"websocket"));
    }

    fn options(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if same(value, b"keep-alive") {
            self.keep_alive = true;
            return Ok(());
        }
        for option in list_items(value) {
            if !option.iter().all(|byte| is_token(*byte)) {
                return Err(bad("RFC 9110 §7.6.1", "a connection option that is not a token"));
            }
            if same(option, b"close") {
                self.close = true;
            } else if same(option, b"keep-alive") {
                self.keep_alive = true;
            } else if same(option, b"upgrade") {
                self.upgrade = true;
            } else {
                self.nominates = true;
            }
        }
        Ok(())
    }
}

impl Body {
    fn length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        self.lengths += 1;
        self.length = content_length(value)?;
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        self.encodings += 1;
        for item in value.split(|byte| *byte == b',').map(trim) {
            self.coding = match (self.coding, item) {
                (Coding::Nothing, item) if same(item, b"chunked") => Coding::Chunked,
                (Coding::Unknown, item) if same(item, b"chunked") => Coding::UnknownChunked,
                (Coding::Nothing | Coding::Unknown, item) if coding_is_legal(item) => Coding::Unknown,
                (Coding::Chunked | Coding::UnknownChunked, _) => {
                    return Err(bad("RFC 9112 §6.1", "a transfer coding behind chunked"));
                }
                _ => return Err(bad("RFC 9112 §6.1", "a malformed Transfer-Encoding")),
            };
        }
        Ok(())
    }

    /// Whether there is a body by what the fields say, although none may come in an answer with that status or to that method: a length above
    /// zero, a transfer coding, or nothing where it was HEAD that asked. To GET, that would be a body that ends with the connection.
    pub fn is_announced(&self, status: u16) -> bool {
        self.length > 0 || self.encodings > 0 || (self.lengths == 0 && may_have_body(status))
    }

    /// What holds for both directions: at most one length, and not beside a transfer coding.
    fn check_framing(&self, version: Version) -> Result<(), Refusal> {
        if self.encodings > 0 && self.lengths > 0 {
            return Err(bad("RFC 9112 §6.1", "both Content-Length and Transfer-Encoding"));
        }
        if self.lengths > 1 {
            return Err(bad("RFC 9112 §6.3", "more than one Content-Length"));
        }
        if self.encodings > 0 && version == Version::Http10 {
            return Err(bad("RFC 9112 §6.1", "Transfer-Encoding on HTTP/1.0"));
        }
        if self.encodings > 0 && matches!(self.coding, Coding::Unknown | Coding::Nothing) {
            return Err(bad("RFC 9112 §6.3", "a Transfer-Encoding that does not end in chunked"));
        }
        if self.coding == Coding::UnknownChunked {
            return Err(Refusal { status: 501, section: "RFC 9112 §6.1", reason: "an unknown transfer coding" });
        }
        Ok(())
    }

    /// The framing of a request of that version.
    pub fn framing_of_request(&self, version: Version) -> Result<Framing, Refusal> {
        self.check_framing(version)?;
        Ok(match (self.coding, self.lengths) {
            (Coding::Chunked, _) => Framing::Chunked,
            (_, 0) => Framing::None,
            _ if self.length == 0 => Framing::None,
            _ => Framing::Length(self.length),
        })
    }

    /// The framing of an answer with that version and status to a request with the method `to`.
    pub fn framing_of_response(&self, version: Version, status: u16, to: Method) -> Result<Framing, Refusal> {
        self.check_framing(version)?;
        if to == Method::Head || !may_have_body(status) {
            return Ok(Framing::None);
        }
        Ok(match (self.coding, self.lengths) {
            (Coding::Chunked, _) => Framing::Chunked,
            (_, 0) => Framing::UntilClose,
            _ => Framing::Length(self.length),
        })
    }
}

/// Whether an answer with that status may have a body (RFC 9110 §6.4.1).
fn may_have_body(status: u16) -> bool {
    !matches!(status, 100..=199 | 204 | 304)
}

/// Digits and nothing else, and not more than a signed 64-bit number holds: some readers behind us have no more.
fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    const MALFORMED: Refusal = bad("RFC 9112 §6.3", "a malformed Content-Length");
    if value.is_empty() {
        return Err(MALFORMED);
    }
    let mut length: u64 = 0;
    for byte in value {
        let digit = u64::from(byte.wrapping_sub(b'0'));
        if digit > 9 || length > (i64::MAX as u64 - digit) / 10 {
            return Err(MALFORMED);
        }
        length = length * 10 + digit;
    }
    Ok(length)
}

/// `token *( OWS ";" OWS token "=" ( token / quoted-string ) )` (RFC 9112 §7), with plain tokens as values alone.
fn coding_is_legal(item: &[u8]) -> bool {
    let token = |bytes: &[u8]| !bytes.is_empty() && bytes.iter().all(|byte| is_token(*byte));
    let mut parts = item.split(|byte| *byte == b';').map(trim);
    let name = parts.next().unwrap_or_default();
    token(name)
        && !same(name, b"chunked")
        && parts.all(|part| {
            let equals = part.iter().position(|byte| *byte == b'=').unwrap_or(part.len());
            token(&part[..equals]) && part.get(equals + 1..).is_some_and(token)
        })
}

fn small_number(value: &[u8]) -> Option<u32> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(value.iter().fold(0u32, |number, digit| number.saturating_mul(10).saturating_add(u32::from(digit - b'0'))))
}

/// `timeout=N` of a Keep-Alive field (RFC 2068 §19.7.1).
fn keep_alive_timeout(value: &[u8]) -> Option<u32> {
    list_items(value).find_map(|item| {
        let (name, number) = item.split_at(item.iter().position(|byte| *byte == b'=')?);
        trim(name).eq_ignore_ascii_case(b"timeout").then(|| small_number(trim(&number[1..])))?
    })
}

fn is_event_stream(value: &[u8]) -> bool {
    // Nearly every answer has a type, and nearly none has a subtype of `text` that begins like this.
    if !value.get(5).is_some_and(|byte| matches!(byte, b'e' | b'E')) {
        return false;
    }
    let end = value.iter().position(|byte| *byte == b';').unwrap_or(value.len());
    trim(&value[..end]).eq_ignore_ascii_case(b"text/event-stream")
}
