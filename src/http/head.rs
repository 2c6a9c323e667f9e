//! The head of a message: request line or status line, fields, and from them the one framing of the body.
//!
//! [`request`] and [`response`] take the bytes received so far and give `None` until the head is whole. What is wrong is
//! said as soon as it is seen, with the rule's place in the RFCs. The start lines are parsed here; field lines by
//! [`Fields`].

use super::fields::{Fields, Kind, Kinds, TOO_MANY_FIELDS};
use super::host::host_is_legal;
use super::names::is_token;
use super::seen::Seen;
use super::{Framing, Method, Refusal, Span, Version, bad};
use crate::buffers::scan::{Piece, end_of};

pub use super::search::HeadSearch;

/// The limits of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of the whole head: above it 431 (502 for an answer).
    pub head: usize,
    /// Bytes of a request's target: above it 414.
    pub target: usize,
    /// Field lines: above it 431 (502 for an answer).
    pub fields: usize,
}

impl HeadLimits {
    /// Heads of so many bytes and field lines. A target may have half of the bytes: behind a longer one, a browser's fields would
    /// have no room.
    pub const fn new(head: usize, fields: usize) -> HeadLimits {
        HeadLimits { head, target: head / 2, fields }
    }

    /// Which of these limits an answer's head is above, in the words that its client and the log are told, with the flag that
    /// raises it; `None` for a refusal that is about anything else.
    #[cold]
    pub fn exceeded(&self, refusal: &Refusal) -> Option<String> {
        if refusal.reason == HEAD_TOO_LARGE.reason {
            return Some(format!("the worker's head has more than {} bytes: raise --max-head", self.head));
        }
        let many = refusal.reason == TOO_MANY_FIELDS.reason;
        many.then(|| format!("the worker's head has more than {} fields: raise --max-fields", self.fields))
    }
}

impl Default for HeadLimits {
    /// 32 KiB, 16 KiB and 200 lines.
    fn default() -> HeadLimits {
        HeadLimits::new(32 * 1024, 200)
    }
}

/// The form of a request target (RFC 9112 §3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `/path?query`.
    Origin,
    /// `http://host/path?query`.
    Absolute,
    /// `*`, for OPTIONS alone.
    Asterisk,
    /// `host:port`, for CONNECT alone; never accepted.
    Authority,
}

/// A request's head. The spans point into the bytes that it was parsed from.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Bytes of the head, with the empty lines before it and the one behind it.
    pub len: usize,
    /// The method, where it is one that we know.
    pub method: Method,
    /// The method's name.
    pub method_span: Span,
    /// What is asked for.
    pub target: Target,
    /// What counts as the host: the authority of an absolute target, else the Host field's value. May be empty.
    pub authority: Span,
    /// The version.
    pub version: Version,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the client will reuse the connection.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// Whether this asks for a WebSocket: a GET without a body, on HTTP/1.1, with both fields set (RFC 6455 §4.1).
    pub websocket: bool,
    /// `Max-Forwards` of an OPTIONS or TRACE request; with 0 the request must be answered here (RFC 9110 §7.6.2).
    pub max_forwards: Option<u32>,
    /// Whether a proxy stands before us, as far as fields tell: Forwarded, X-Forwarded-*, X-Real-IP or Via.
    pub forwarded: bool,
    /// The value of Accept, empty without one. For the format of our own answers.
    pub accept: Span,
    /// How it is copied.
    pub(crate) copy: Copied,
}

/// What has to be known of a head to copy it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Copied {
    /// Where the start line begins.
    pub start: u32,
    /// Where the field lines begin.
    pub fields_start: u32,
    /// Whether the start line may leave as it came.
    pub line_passes: bool,
}

/// A request's target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// All of it, as it came.
    pub whole: Span,
    /// Its form.
    pub form: Form,
    /// Path and query. Of an absolute target it may lack the path, or be empty; see [`Target::path_bytes`].
    pub path: Span,
}

impl Target {
    /// The path without the query: `/` for an absolute target without one, `*` for the asterisk.
    pub fn path_bytes<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let path = self.path.of(bytes);
        let path = &path[..memchr::memchr(b'?', path).unwrap_or(path.len())];
        if path.is_empty() { b"/" } else { path }
    }
}

/// An answer's head. The spans point into the bytes that it was parsed from.
#[derive(Clone, Copy, Debug)]
pub struct Response {
    /// Bytes of the head, with the empty line behind it.
    pub len: usize,
    /// The status code, 100 to 599.
    pub status: u16,
    /// The reason phrase, possibly empty.
    pub status_line_reason: Span,
    /// The version.
    pub version: Version,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the fields announce a body, by a length above zero or a transfer coding, that must not come: the answer is to HEAD,
    /// or has a status without a body (RFC 9110 §6.4.1). So they do by saying nothing of it in an answer to HEAD: the worker's framing of
    /// such a body is the connection's end (RFC 9112 §6.3). Bytes behind the head are then most likely that body.
    pub announces_body: bool,
    /// Whether the worker's connection may be used again after this answer.
    pub keep_alive: bool,
    /// `Keep-Alive: timeout=N`, in seconds.
    pub keep_alive_timeout: Option<u32>,
    /// Whether the body is `text/event-stream`.
    pub event_stream: bool,
    /// Whether the worker asked not to hold the body back: `X-Accel-Buffering: no`.
    pub unbuffered: bool,
    /// A 503 with `Rip-Worker-Busy: 1`: the worker did not run the request.
    pub busy: bool,
    /// A 503 with `Rip-Worker-Draining: 1`: the worker did not run the request and wants no more.
    pub draining: bool,
    /// What the access log may want of it.
    pub logged: Logged,
    /// How it is copied.
    pub(crate) copy: Copied,
}

/// Whether a worker keeps its connection after an answer, and for so many seconds where it says so.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reuse {
    /// It may be used again.
    pub keeps: bool,
    /// `Keep-Alive: timeout=N`.
    pub timeout: Option<u32>,
}

impl Reuse {
    /// What holds after that answer.
    pub fn after(response: &Response) -> Reuse {
        // Whoever says that a body follows where none may come might send it all the same.
        Reuse { keeps: response.keep_alive && !response.announces_body, timeout: response.keep_alive_timeout }
    }
}

/// What an answer says that is for the access log.
#[derive(Clone, Copy, Debug, Default)]
pub struct Logged {
    /// `Rip-No-Log: 1`: no access line.
    pub silent: bool,
    /// `Rip-Mark`: what the app wants its access line to say; possibly empty.
    pub mark: Span,
    /// `Content-Type`, with its parameters; possibly empty.
    pub media_type: Span,
}

/// Parses a request's head; `None` when more bytes are needed. `fields` is filled anew.
///
/// Call it for the first bytes, and when [`HeadSearch::scan`] says so.
///
/// # Errors
/// The refusal to answer with before the connection is closed.
pub fn request(bytes: &[u8], limits: &HeadLimits, fields: &mut Fields) -> Result<Option<Request>, Refusal> {
    fields.clear();
    let start = skip_empty_lines(bytes)?;
    let line = match plain_request_line(bytes, start, limits) {
        Some(line) => line,
        None => match request_line(bytes, start, limits)? {
            Some(line) => line,
            None => return Ok(None),
        },
    };
    let Some(len) = fields.parse(bytes, line.fields_start, limits.fields)? else {
        return too_large(bytes.len() - start, limits);
    };
    if len - start > limits.head {
        return Err(HEAD_TOO_LARGE);
    }
    let mut seen = Seen::default();
    seen.request_fields(bytes, fields)?;
    let of_target = (line.target.form == Form::Absolute).then_some(line.authority);
    let host = seen.host_of_request(bytes, fields, line.version, of_target)?;
    let framing = seen.body.framing_of_request(line.version)?;
    if seen.connection.nominates {
        fields.nominate(bytes)?;
    }
    let modern = line.version == Version::Http11;
    Ok(Some(Request {
        len,
        method: line.method,
        method_span: line.method_span,
        target: line.target,
        authority: host,
        version: line.version,
        framing,
        keep_alive: seen.connection.persists(line.version),
        expect_continue: seen.expect_continue && modern && framing != Framing::None,
        websocket: seen.connection.to_websocket() && modern && line.method == Method::Get && framing == Framing::None,
        max_forwards: seen.max_forwards.filter(|_| matches!(line.method, Method::Options | Method::Trace)),
        forwarded: fields.present().meets(FORWARDED),
        accept: seen.accept,
        copy: Copied { start: start as u32, fields_start: line.fields_start as u32, line_passes: line.passes },
    }))
}

/// Parses an answer's head; `None` when more bytes are needed. `to` is the method that was asked with, `asked_upgrade`
/// whether a WebSocket was asked for. `fields` is filled anew.
///
/// # Errors
/// A refusal with status 502: what a client is told instead.
pub fn response(
    bytes: &[u8],
    to: Method,
    asked_upgrade: bool,
    limits: &HeadLimits,
    fields: &mut Fields,
) -> Result<Option<Response>, Refusal> {
    answer(bytes, to, asked_upgrade, limits, fields).map_err(Refusal::of_answer)
}

fn answer(
    bytes: &[u8],
    to: Method,
    asked_upgrade: bool,
    limits: &HeadLimits,
    fields: &mut Fields,
) -> Result<Option<Response>, Refusal> {
    fields.clear();
    let Some(line) = status_line(bytes, limits)? else { return Ok(None) };
    let Some(len) = fields.parse(bytes, line.fields_start, limits.fields)? else {
        return too_large(bytes.len(), limits);
    };
    if len > limits.head {
        return Err(HEAD_TOO_LARGE);
    }
    let mut seen = Seen::default();
    seen.response_fields(bytes, fields)?;
    let framing = seen.body.framing_of_response(line.version, line.status, to)?;
    if line.status == 101 && !(asked_upgrade && seen.connection.to_websocket()) {
        return Err(bad("RFC 9110 §15.2.2", "a switch of protocols that nobody asked for"));
    }
    if seen.connection.nominates {
        fields.nominate(bytes)?;
    }
    let persists = seen.connection.persists(line.version);
    Ok(Some(Response {
        len,
        status: line.status,
        status_line_reason: line.reason,
        version: line.version,
        framing,
        announces_body: framing == Framing::None && seen.body.is_announced(line.status),
        keep_alive: persists && framing != Framing::UntilClose && line.status != 101,
        keep_alive_timeout: seen.keep_alive_timeout,
        event_stream: seen.event_stream,
        unbuffered: seen.unbuffered,
        busy: seen.busy && line.status == 503,
        draining: seen.draining && line.status == 503,
        logged: seen.logged,
        copy: Copied { start: 0, fields_start: line.fields_start as u32, line_passes: line.passes },
    }))
}

/// Whether a request's own id is well-formed: 1 to 128 letters, digits and `-_.:=+/@`.
pub(crate) fn request_id_is_legal(id: &[u8]) -> bool {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.:=+/@".contains(byte);
    (1..=128).contains(&id.len()) && id.iter().all(legal)
}

/// Empty lines before a request line that are skipped (RFC 9112 §2.2), in bytes.
pub(crate) const MOST_EMPTY_BYTES: usize = 16;
/// A longer method is none that anybody knows.
const MOST_METHOD_BYTES: usize = 32;
const HEAD_TOO_LARGE: Refusal = Refusal { status: 431, section: "RFC 6585 §5", reason: "the head is too large" };
const TARGET_TOO_LONG: Refusal =
    Refusal { status: 414, section: "RFC 9110 §15.5.15", reason: "the target is too long" };
const FORWARDED: Kinds = Kinds::of(&[
    Kind::Forwarded,
    Kind::Via,
    Kind::XForwardedFor,
    Kind::XForwardedProto,
    Kind::XForwardedHost,
    Kind::XForwardedPort,
    Kind::XForwardedScheme,
    Kind::XForwardedClientCert,
    Kind::XForwardedOther,
    Kind::XRealIp,
    Kind::Shadow,
]);

/// What the access line of a request can show that was refused before it was understood: the head that `bytes` begin with, from the start
/// line on as far as it has come, and the protocol that this names. `None` where it is no start line of a request, of any version.
#[cold]
pub(crate) fn shown<'a>(bytes: &'a [u8], limits: &HeadLimits) -> Option<(&'a [u8], &'a str)> {
    let head = &bytes[skip_empty_lines(bytes).ok()?..];
    let line = &head[..memchr::memchr(b'\n', head)?];
    let mut words = line.strip_suffix(b"\r").unwrap_or(line).split(|byte| *byte == b' ');
    let (method, target, protocol) = (words.next()?, words.next()?, words.next()?);
    let is_method = (1..=MOST_METHOD_BYTES).contains(&method.len()) && method.iter().all(|byte| is_token(*byte));
    let is_target = (1..=limits.target).contains(&target.len());
    let is_protocol = matches!(protocol, [b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']);
    let is_line = is_method && is_target && is_protocol && words.next().is_none();
    let end = memchr::memmem::find(head, b"\r\n\r\n").map_or(head.len(), |end| end + 4);
    is_line.then_some((&head[..end.min(limits.head)], std::str::from_utf8(protocol).ok()?))
}

fn too_large<T>(len: usize, limits: &HeadLimits) -> Result<Option<T>, Refusal> {
    if len > limits.head { Err(HEAD_TOO_LARGE) } else { Ok(None) }
}

fn skip_empty_lines(bytes: &[u8]) -> Result<usize, Refusal> {
    let mut start = 0;
    loop {
        start += match &bytes[start..] {
            [b'\n', ..] => 1,
            [b'\r', b'\n', ..] => 2,
            _ => break,
        };
        if start > MOST_EMPTY_BYTES {
            return Err(bad("RFC 9112 §2.2", "too many empty lines before the request line"));
        }
    }
    Ok(start)
}

struct RequestLine {
    method: Method,
    method_span: Span,
    target: Target,
    /// The authority of an absolute target, else empty.
    authority: Span,
    version: Version,
    fields_start: usize,
    passes: bool,
}

/// A request line in all forms. Kept apart from the plain way, which would be slower with it.
#[inline(never)]
fn request_line(bytes: &[u8], start: usize, limits: &HeadLimits) -> Result<Option<RequestLine>, Refusal> {
    let fresh = &bytes[start..];
    let Some(feed) = memchr::memchr(b'\n', fresh) else {
        return partial_request_line(fresh, limits).map(|()| None);
    };
    let bare = !fresh[..feed].ends_with(b"\r");
    let line = &fresh[..feed - usize::from(!bare)];
    let (method, method_len) = method(line)?;
    // The version is the last eight bytes, and one space stands before it.
    let Some((rest, version_text)) = line[method_len + 1..].split_last_chunk::<8>() else {
        return Err(bad("RFC 9112 §3", "a request line without target or version"));
    };
    let [target @ .., b' '] = rest else { return Err(version_refusal(line)) };
    let version = version(version_text).ok_or_else(|| version_refusal(line))?;
    if target.len() > limits.target {
        return Err(TARGET_TOO_LONG);
    }
    check_target(target)?;
    let method_end = start + method_len;
    let target_span = Span::new(method_end + 1, method_end + 1 + target.len());
    let (form, authority, path) = target_form(bytes, target_span, method)?;
    Ok(Some(RequestLine {
        method,
        method_span: Span::new(start, method_end),
        target: Target { whole: target_span, form, path },
        authority,
        version,
        fields_start: start + feed + 1,
        passes: form != Form::Absolute && *version_text == *b"HTTP/1.1" && !bare,
    }))
}

/// A request line as nearly all are: whole, with a path that nobody objects to, of HTTP/1.1. `None` leaves it to be looked at
/// in all forms, with the same outcome.
#[inline]
fn plain_request_line(bytes: &[u8], start: usize, limits: &HeadLimits) -> Option<RequestLine> {
    const END: &[u8; 11] = b" HTTP/1.1\r\n";
    let (method, method_len) = method(&bytes[start..]).ok()?;
    let method_end = start + method_len;
    let target_end = end_of(Piece::Target, bytes, method_end + 1)?;
    let target = Span::new(method_end + 1, target_end);
    let plain = bytes[target_end..].starts_with(END) && target.of(bytes).starts_with(b"/");
    (plain && target.len() <= limits.target).then(|| RequestLine {
        method,
        method_span: Span::new(start, method_end),
        target: Target { whole: target, form: Form::Origin, path: target },
        authority: Span::default(),
        version: Version::Http11,
        fields_start: target_end + END.len(),
        passes: true,
    })
}

/// What can be said about a request line whose end is not there yet.
#[cold]
fn partial_request_line(line: &[u8], limits: &HeadLimits) -> Result<(), Refusal> {
    if line == b"\r" {
        return Ok(());
    }
    let method_len = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
    if !line[..method_len].iter().all(|byte| is_token(*byte)) || line.starts_with(b" ") {
        return Err(bad("RFC 9112 §3", "a method that is not a token"));
    }
    if method_len > MOST_METHOD_BYTES {
        return Err(METHOD_UNKNOWN);
    }
    let longest = method_len + 1 + limits.target + " HTTP/1.1\r".len();
    if line.len() > longest { Err(TARGET_TOO_LONG) } else { Ok(()) }
}

const METHOD_UNKNOWN: Refusal =
    Refusal { status: 501, section: "RFC 9110 §9.1", reason: "a method that nobody knows" };

/// The method at the line's begin and the length of its name.
#[inline]
fn method(line: &[u8]) -> Result<(Method, usize), Refusal> {
    match line {
        [b'G', b'E', b'T', b' ', ..] => Ok((Method::Get, 3)),
        [b'P', b'O', b'S', b'T', b' ', ..] => Ok((Method::Post, 4)),
        _ => other_method(line),
    }
}

fn other_method(line: &[u8]) -> Result<(Method, usize), Refusal> {
    let len = line.iter().take_while(|byte| is_token(**byte)).count();
    if len == 0 || line.get(len) != Some(&b' ') {
        return Err(bad("RFC 9112 §3", "a method that is not a token and one space"));
    }
    let method = match &line[..len] {
        b"HEAD" => Method::Head,
        b"PUT" => Method::Put,
        b"DELETE" => Method::Delete,
        b"PATCH" => Method::Patch,
        b"OPTIONS" => Method::Options,
        b"TRACE" => Method::Trace,
        b"CONNECT" => return Err(Refusal { reason: "CONNECT is not served", ..METHOD_UNKNOWN }),
        _ if len > MOST_METHOD_BYTES => return Err(METHOD_UNKNOWN),
        _ => Method::Other,
    };
    Ok((method, len))
}

fn version(text: &[u8; 8]) -> Option<Version> {
    match text {
        b"HTTP/1.1" => Some(Version::Http11),
        b"HTTP/1.0" => Some(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9'] => Some(Version::Http11),
        _ => None,
    }
}

/// Why this request line has no version that we serve.
#[cold]
fn version_refusal(line: &[u8]) -> Refusal {
    match line.last_chunk::<9>() {
        Some([b' ', b'H', b'T', b'T', b'P', b'/', b'2'..=b'9', b'.', b'0'..=b'9']) => {
            Refusal { status: 505, section: "RFC 9110 §15.6.6", reason: "a major version that is not 1" }
        }
        _ => bad("RFC 9112 §2.3", "a malformed request line or version"),
    }
}

/// Refuses anything but visible ASCII, and `#`: a fragment never travels (RFC 9112 §3.2, RFC 9110 §7.1).
fn check_target(target: &[u8]) -> Result<(), Refusal> {
    match target.iter().find(|byte| !(0x21..0x7f).contains(*byte) || **byte == b'#') {
        None => Ok(()),
        Some(b'#') => Err(bad("RFC 9112 §3.2", "a fragment in the target")),
        Some(b' ') => Err(bad("RFC 9112 §3", "more than single spaces in the request line")),
        Some(_) => Err(bad("RFC 9112 §3.2", "a target byte that is not visible ASCII")),
    }
}

/// Form, authority and path of a target.
fn target_form(bytes: &[u8], span: Span, method: Method) -> Result<(Form, Span, Span), Refusal> {
    let target = span.of(bytes);
    match target {
        [b'/', ..] => Ok((Form::Origin, Span::default(), span)),
        b"*" if method == Method::Options => Ok((Form::Asterisk, Span::default(), span)),
        b"*" => Err(bad("RFC 9112 §3.2.4", "the asterisk with another method than OPTIONS")),
        _ => absolute_form(target, span),
    }
}

#[cold]
fn absolute_form(target: &[u8], span: Span) -> Result<(Form, Span, Span), Refusal> {
    let scheme = [&b"http://"[..], b"https://"]
        .into_iter()
        .find(|scheme| target.len() >= scheme.len() && target[..scheme.len()].eq_ignore_ascii_case(scheme));
    let Some(scheme) = scheme else {
        return Err(bad("RFC 9112 §3.2", "a target that is neither a path nor an http URI"));
    };
    let authority_start = span.start as usize + scheme.len();
    let rest = &target[scheme.len()..];
    let len = rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len());
    let authority = &rest[..len];
    if authority.contains(&b'@') {
        return Err(bad("RFC 9110 §4.2.4", "user information in the target"));
    }
    if authority.is_empty() || authority.starts_with(b":") {
        return Err(bad("RFC 9110 §4.2.1", "an http URI without a host"));
    }
    if !host_is_legal(authority) {
        return Err(bad("RFC 9112 §3.2.2", "a malformed authority in the target"));
    }
    let end = authority_start + len;
    Ok((Form::Absolute, Span::new(authority_start, end), Span::new(end, span.end as usize)))
}

struct StatusLine {
    version: Version,
    status: u16,
    reason: Span,
    fields_start: usize,
    passes: bool,
}

fn status_line(bytes: &[u8], limits: &HeadLimits) -> Result<Option<StatusLine>, Refusal> {
    /// What most answers begin with.
    const USUAL: &[u8; 17] = b"HTTP/1.1 200 OK\r\n";
    if bytes.starts_with(USUAL) {
        let (version, reason) = (Version::Http11, Span::new(13, 15));
        return Ok(Some(StatusLine { version, status: 200, reason, fields_start: USUAL.len(), passes: true }));
    }
    let malformed = bad("RFC 9112 §4", "a malformed status line");
    let Some(feed) = memchr::memchr(b'\n', bytes) else {
        let known = bytes.len().min(7);
        if bytes[..known] != b"HTTP/1."[..known] {
            return Err(malformed);
        }
        return too_large(bytes.len(), limits);
    };
    let bare = !bytes[..feed].ends_with(b"\r");
    let line = &bytes[..feed - usize::from(!bare)];
    let Some((version_text, rest)) = line.split_first_chunk::<8>() else { return Err(malformed) };
    let version = version(version_text).ok_or(malformed)?;
    let [b' ', a @ b'1'..=b'5', b @ b'0'..=b'9', c @ b'0'..=b'9', rest @ ..] = rest else { return Err(malformed) };
    let status = u16::from(a - b'0') * 100 + u16::from(b - b'0') * 10 + u16::from(c - b'0');
    let reason = match rest {
        [] => rest,
        [b' ', reason @ ..] => reason,
        _ => return Err(malformed),
    };
    if reason.iter().any(|byte| (*byte < 0x20 && *byte != b'\t') || *byte == 0x7f) {
        return Err(malformed);
    }
    Ok(Some(StatusLine {
        version,
        status,
        reason: Span::new(line.len() - reason.len(), line.len()),
        fields_start: feed + 1,
        passes: *version_text == *b"HTTP/1.1" && !bare && !rest.is_empty(),
    }))
}
