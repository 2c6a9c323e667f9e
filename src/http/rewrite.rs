//! Heads on their way through: a client's request as a worker gets it, a worker's answer as the client gets it.
//!
//! Lines that pass are copied as they came, in as few runs as the dropped ones leave; only a head with a bare LF in it is
//! written anew line by line. What is hop-by-hop goes in both directions (RFC 9110 §7.6.1), and the framing that we write
//! is the one that was parsed. The `*_room` functions bound what is written; see `Scratch::write`.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::date::Start;
use super::fields::{Fields, Kind, Kinds};
use super::head::{Form, Request, Response};
use super::id::Id;
use super::origin::Origin;
use super::route::Edits;
use super::{Framing, Method, Span, Version};
use crate::buffers::block::Writer;

/// What a worker is told besides the request's own head.
#[derive(Clone, Copy, Debug)]
pub struct Forward<'a> {
    /// The client's address. Ignored for a Unix socket's peer.
    pub peer: IpAddr,
    /// Whether the client came over a Unix socket, so that it has no address.
    pub unix: bool,
    /// The port that the client connected to; 0 leaves `X-Forwarded-Port` out.
    pub local_port: u16,
    /// Whether the client came over TLS.
    pub https: bool,
    /// The id of this request, whoever gave it.
    pub request_id: &'a [u8],
    /// When the request arrived. Written as nginx does, `t=SECONDS.MILLISECONDS`, which every reader of this field understands.
    pub start: Start,
    /// What is known of proxies in front. `None`: nothing, so that nobody is believed but for traces, which pass.
    pub front: Option<Front<'a>>,
    /// Whether the worker's connection is kept; else `Connection: close` is added.
    pub keep_alive: bool,
    /// Leaves framing and empty line to [`request_end`].
    pub open: bool,
    /// What the route changes.
    pub edits: Option<&'a Edits>,
    /// Lines that tell who the client is, where a route has found out: such a route changes something, too.
    pub identity: &'a [u8],
}

/// What is known of proxies in front of the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Front<'a> {
    /// What a trusted one says of where the request comes from. `None`: nothing, or the peer is not trusted.
    pub origin: Option<&'a Origin>,
    /// Whether `traceparent` and `tracestate` pass from a peer that is not trusted.
    pub traces: bool,
    /// Whether `Forwarded` (RFC 7239) is written.
    pub writes_forwarded: bool,
    /// Who the client is by its own certificate: the value of `X-Forwarded-Client-Cert`; empty if it has shown none.
    pub client_certificate: &'a str,
}

impl Front<'_> {
    /// What is dropped of a request.
    #[cold]
    fn dropped(&self) -> Kinds {
        let mut dropped = DROPPED_AND_CLAIMS;
        if !self.traces {
            dropped = dropped.with(TRACES);
        }
        if let Some(origin) = self.origin {
            dropped = dropped.without(origin.passes);
        }
        if self.writes_forwarded {
            dropped = dropped.with(Kinds::of(&[Kind::Forwarded]));
        }
        if !self.client_certificate.is_empty() {
            // Of who has shown it here, nobody in front knows better.
            dropped = dropped.with(Kinds::of(&[Kind::XForwardedClientCert]));
        }
        dropped
    }

    /// Bytes of the chain of addresses, and of `Forwarded`, at most.
    #[cold]
    fn room(&self, request: &Request) -> usize {
        let (chain, host) = self.origin.map_or((0, 0), |origin| (origin.chain_room(20), origin.host.len()));
        2 * chain + 2 * host + request.authority.len() + self.client_certificate.len() + 256
    }
}

/// What a client is told besides the answer's own head.
#[derive(Clone, Copy, Debug)]
pub struct Answer<'a> {
    /// The date now, for answers that carry none.
    pub date: &'a [u8; 29],
    /// The id of this request; empty to leave it out.
    pub request_id: &'a [u8],
    /// The client's version.
    pub client: Version,
    /// Whether the client's connection is kept.
    pub keep_alive: bool,
    /// How the body leaves.
    pub framing: Rewritten,
    /// Whether this is the 101 that was asked for: Upgrade and Connection are kept.
    pub upgrade: bool,
    /// What the route changes.
    pub edits: Option<&'a Edits>,
}

/// How an answer's body leaves, as against how it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewritten {
    /// As it came.
    Same,
    /// In chunks that we put around it.
    Chunked,
    /// Bare, until the connection closes. The caller does not keep it alive then.
    UntilClose,
    /// With this length.
    Length(u64),
}

/// Our name in `Via` (RFC 9110 §7.6.3).
const PSEUDONYM: &[u8; 17] = b"production_server";

/// Fields that end here in both directions.
const HOP_BY_HOP: Kinds = Kinds::of(&[
    Kind::Nominated,
    Kind::Connection,
    Kind::KeepAlive,
    Kind::ProxyConnection,
    Kind::Te,
    Kind::Http2Settings,
    Kind::Upgrade,
    Kind::TransferEncoding,
]);
const DROPPED_FROM_REQUESTS: Kinds = HOP_BY_HOP.with(Kinds::of(&[
    Kind::Shadow,
    Kind::Proxy,
    Kind::Expect,
    Kind::XForwardedFor,
    Kind::XRequestStart,
    Kind::XRequestId,
]));
/// What a trusted proxy says. Of it [`Origin::passes`] passes as it came; the rest is written anew from what the origin is.
const CLAIMS: Kinds = Kinds::of(&[
    Kind::XForwardedProto,
    Kind::XForwardedHost,
    Kind::XForwardedPort,
    Kind::XForwardedScheme,
    Kind::XForwardedClientCert,
    Kind::XForwardedOther,
    Kind::XRealIp,
    Kind::Forwarded,
]);
/// In which fields a proxy says where a request comes from.
pub const FRONT: Kinds = CLAIMS.with(Kinds::of(&[Kind::XForwardedFor]));
const DROPPED_AND_CLAIMS: Kinds = DROPPED_FROM_REQUESTS.with(CLAIMS);
/// Which trace a request belongs to.
const TRACES: Kinds = Kinds::of(&[Kind::Traceparent, Kind::Tracestate]);
const DROPPED_FROM_ANSWERS: Kinds = HOP_BY_HOP.with(Kinds::of(&[Kind::XRequestId])).with(FOR_US);
/// What a worker says to the server alone.
const FOR_US: Kinds = Kinds::of(&[Kind::RipWorkerBusy, Kind::RipWorkerDraining, Kind::RipNoLog, Kind::RipMark]);
const LENGTH: Kinds = Kinds::of(&[Kind::ContentLength]);

/// Bytes that [`request`] and [`request_end`] write at most.
pub fn request_room(request: &Request, fields: &Fields, forward: &Forward<'_>) -> usize {
    /// The names and fixed values of all that is added, two addresses, and the largest numbers.
    const ADDED: usize = 512;
    // A line written anew gains at most a space and a CR; the host may be written twice more.
    let edited = forward.edits.map_or(0, |edits| edits.room() + forward.identity.len());
    let told = forward.front.as_ref().map_or(0, |front| front.room(request));
    let named = 2 * request.authority.len() + forward.request_id.len();
    request.len + 4 * (fields.len() + 2) + named + edited + told + ADDED
}

/// The lines that do not pass.
#[inline]
pub fn dropped(request: &Request, forward: &Forward<'_>) -> Kinds {
    let mut dropped = forward.front.as_ref().map_or(DROPPED_AND_CLAIMS, Front::dropped);
    if forward.open {
        dropped = dropped.with(LENGTH);
    }
    if request.target.form == Form::Absolute {
        dropped = dropped.with(Kinds::of(&[Kind::Host]));
    }
    if request.max_forwards.is_some() {
        dropped = dropped.with(Kinds::of(&[Kind::MaxForwards]));
    }
    dropped
}

/// Writes the head that a worker gets. Always HTTP/1.1, with exactly one Host.
pub fn request(out: &mut Writer<'_>, bytes: &[u8], request: &Request, fields: &Fields, forward: &Forward<'_>) {
    let dropped = dropped(request, forward);
    let rewritten = forward.edits.filter(|edits| edits.rewrites() && request.target.path.of(bytes) != b"*");
    let line_passes = request.copy.line_passes && rewritten.is_none();
    let start = if line_passes { request.copy.start } else { request.copy.fields_start };
    if !line_passes {
        request_line(out, bytes, request, rewritten);
    }
    match forward.edits {
        None => copy_lines(out, bytes, fields, dropped, start, request.copy.fields_start),
        Some(edits) => {
            copy_edited(out, bytes, fields, dropped, Span { start, end: request.copy.fields_start }, edits);
            out.put(forward.identity);
        }
    }
    if request.target.form == Form::Absolute || !fields.present().has(Kind::Host) {
        // HTTP/1.0 without Host: an empty one is what RFC 9112 §3.2 asks for, and what no worker refuses.
        line(out, b"Host: ", request.authority.of(bytes));
    }
    if let Some(left) = request.max_forwards {
        out.put(b"Max-Forwards: ");
        out.put_decimal(u64::from(left.saturating_sub(1)));
        out.put(b"\r\n");
    }
    forwarded_fields(out, bytes, request, fields, forward);
    if request.websocket {
        out.put(b"Connection: upgrade\r\nUpgrade: websocket\r\n");
    } else if !forward.keep_alive {
        out.put(b"Connection: close\r\n");
    }
    if !forward.open {
        match request.framing {
            Framing::Chunked => out.put(b"Transfer-Encoding: chunked\r\n\r\n"),
            _ => out.put(b"\r\n"),
        }
    }
}

/// Ends a head that was left open: the framing of the body as it will be sent, and the empty line.
pub fn request_end(out: &mut Writer<'_>, framing: Framing) {
    match framing {
        Framing::Length(length) => {
            out.put(b"Content-Length: ");
            out.put_decimal(length);
            out.put(b"\r\n\r\n");
        }
        Framing::Chunked => out.put(b"Transfer-Encoding: chunked\r\n\r\n"),
        Framing::None | Framing::UntilClose => out.put(b"\r\n"),
    }
}

#[cold]
fn request_line(out: &mut Writer<'_>, bytes: &[u8], request: &Request, edits: Option<&Edits>) {
    out.put(request.method_span.of(bytes));
    out.put(b" ");
    let path = request.target.path.of(bytes);
    match edits {
        Some(edits) => edits.write_target(out, path),
        None => {
            if path.is_empty() && request.method == Method::Options {
                out.put(b"*");
            } else if !path.starts_with(b"/") && path != b"*" {
                out.put(b"/");
            }
            out.put(path);
        }
    }
    out.put(b" HTTP/1.1\r\n");
}

/// Copies the lines that are not dropped. `start` is where a run may begin: at the field lines or at the start line.
#[inline]
fn copy_lines(out: &mut Writer<'_>, bytes: &[u8], fields: &Fields, dropped: Kinds, start: u32, fields_start: u32) {
    if fields.bare_line_feed {
        return copy_lines_anew(out, bytes, fields, dropped, Span { start, end: fields_start });
    }
    let mut run = Span { start, end: fields_start };
    if !fields.present().meets(dropped) {
        run.end = fields.iter().as_slice().last().map_or(run.end, |field| field.line.end);
        return out.put(run.of(bytes));
    }
    for field in fields.iter() {
        if dropped.has(field.kind) {
            out.put(run.of(bytes));
            run.start = field.line.end;
        }
        run.end = field.line.end;
    }
    out.put(run.of(bytes));
}

#[cold]
fn copy_lines_anew(out: &mut Writer<'_>, bytes: &[u8], fields: &Fields, dropped: Kinds, start_line: Span) {
    out.put(start_line.of(bytes));
    for field in fields.iter().filter(|field| !dropped.has(field.kind)) {
        out.put(field.name.of(bytes));
        line(out, b": ", field.value.of(bytes));
    }
}

/// [`copy_lines`] for a route that changes fields: those that it names go, and its own come.
#[cold]
fn copy_edited(out: &mut Writer<'_>, bytes: &[u8], fields: &Fields, dropped: Kinds, start_line: Span, edits: &Edits) {
    out.put(start_line.of(bytes));
    for field in fields.iter().filter(|field| !dropped.has(field.kind)) {
        let name = field.name.of(bytes);
        if !edits.removes(name) {
            out.put(name);
            line(out, b": ", field.value.of(bytes));
        }
    }
    out.put(edits.lines());
}

#[inline]
fn line<const N: usize>(out: &mut Writer<'_>, name: &[u8; N], value: &[u8]) {
    out.put_all([name, value, b"\r\n"]);
}

/// The request's id. Nearly always it is one of ours, of which the compiler then knows how long it is.
#[inline]
fn id_line(out: &mut Writer<'_>, id: &[u8]) {
    const NAME: &[u8; 14] = b"X-Request-Id: ";
    match <&Id>::try_from(id) {
        Ok(own) => line(out, NAME, own),
        Err(_) => line(out, NAME, id),
    }
}

/// X-Forwarded-*, X-Real-IP, X-Request-*, Via.
fn forwarded_fields(out: &mut Writer<'_>, bytes: &[u8], request: &Request, fields: &Fields, forward: &Forward<'_>) {
    let mut peer = AddressText::default();
    if !forward.unix {
        peer.set(forward.peer);
    }
    let (mut https, mut host, mut port) = (forward.https, request.authority.of(bytes), forward.local_port);
    let mut starts = true;
    let origin = forward.front.and_then(|front| front.origin);
    match origin {
        Some(origin) => {
            https = origin.https.unwrap_or(https);
            host = if origin.host.is_empty() { host } else { origin.host.of(bytes) };
            port = origin.port.unwrap_or(port);
            starts = !(origin.passes.has(Kind::XRequestStart) && fields.present().has(Kind::XRequestStart));
            chain(out, origin, peer.bytes());
        }
        None if !forward.unix => {
            out.put(b"X-Forwarded-For: ");
            peer.put(out);
            out.put(b"\r\nX-Real-IP: ");
            peer.put(out);
            out.put(b"\r\n");
        }
        None => {}
    }
    out.put(if https { b"X-Forwarded-Proto: https\r\n" } else { &b"X-Forwarded-Proto: http\r\n"[..] });
    if !host.is_empty() {
        line(out, b"X-Forwarded-Host: ", host);
    }
    if port != 0 {
        line(out, b"X-Forwarded-Port: ", itoa::Buffer::new().format(port).as_bytes());
    }
    if let Some(front) = forward.front.filter(|front| !front.client_certificate.is_empty()) {
        line(out, b"X-Forwarded-Client-Cert: ", front.client_certificate.as_bytes());
    }
    if let Some(front) = forward.front
        && (front.writes_forwarded || origin.is_some_and(|origin| origin.corrects_forwarded))
    {
        write_forwarded(out, origin, peer.bytes(), https, host);
    }
    if !forward.request_id.is_empty() {
        id_line(out, forward.request_id);
    }
    if starts {
        out.put_all([b"X-Request-Start: t=", forward.start.text(), b"\r\n"]);
    }
    let version = if request.version == Version::Http10 { b"Via: 1.0 " } else { b"Via: 1.1 " };
    out.put_all([version, PSEUDONYM, b"\r\n"]);
}

/// X-Forwarded-For from the client on, with the peer's address behind it, and X-Real-IP, which is the client's.
#[cold]
fn chain(out: &mut Writer<'_>, origin: &Origin, peer: &[u8]) {
    let mut name = &b"X-Forwarded-For: "[..];
    let mut text = AddressText::default();
    for address in origin.chain() {
        text.set(address);
        out.put_all([name, text.bytes()]);
        name = b", ";
    }
    if !peer.is_empty() {
        out.put_all([name, peer]);
        name = b", ";
    }
    if name.len() == 2 {
        out.put(b"\r\n");
    }
    if let Some(client) = origin.client {
        text.set(client);
        line(out, b"X-Real-IP: ", text.bytes());
    }
}

/// `Forwarded`: the client with what it asked for, and the proxies behind it.
#[cold]
fn write_forwarded(out: &mut Writer<'_>, origin: Option<&Origin>, peer: &[u8], https: bool, host: &[u8]) {
    let told = |out: &mut Writer<'_>| {
        out.put(if https { b";proto=https" } else { &b";proto=http"[..] });
        if !host.is_empty() {
            out.put_all([b";host=\"", host, b"\""]);
        }
    };
    let node = |out: &mut Writer<'_>, name: &[u8], address: &[u8]| match address {
        [] => out.put_all([name, b"for=unknown"]),
        // An IPv6 address has brackets, and what has colons quotes (RFC 7239 §6).
        _ if address.contains(&b':') => out.put_all([name, b"for=\"[", address, b"]\""]),
        _ => out.put_all([name, b"for=", address]),
    };
    let mut name = &b"Forwarded: "[..];
    let mut text = AddressText::default();
    for address in origin.into_iter().flat_map(Origin::chain) {
        text.set(address);
        node(out, name, text.bytes());
        if name.len() > 2 {
            told(out);
        }
        name = b", ";
    }
    node(out, name, peer);
    if name.len() > 2 {
        told(out);
    }
    out.put(b"\r\n");
}

/// What each octet of an IPv4 address is written as, with the point behind it.
static OCTETS: [[u8; 4]; 256] = {
    let mut octets = [[0; 4]; 256];
    let mut octet = 0;
    while octet < 256 {
        let (hundreds, tens, ones) =
            (b'0' + (octet / 100) as u8, b'0' + (octet / 10 % 10) as u8, b'0' + (octet % 10) as u8);
        octets[octet] = match octet {
            0..10 => [ones, b'.', 0, 0],
            10..100 => [tens, ones, b'.', 0],
            _ => [hundreds, tens, ones, b'.'],
        };
        octet += 1;
    }
    octets
};

/// An address as text. Fixed room: the longest IPv6 address has 39 characters; an IPv4-mapped one is written as IPv4.
struct AddressText {
    text: [u8; 46],
    len: usize,
}

impl Default for AddressText {
    fn default() -> AddressText {
        AddressText { text: [0; 46], len: 0 }
    }
}

impl AddressText {
    #[inline(always)]
    fn set(&mut self, address: IpAddr) {
        self.len = 0;
        match address.to_canonical() {
            IpAddr::V4(v4) => {
                for octet in v4.octets() {
                    self.text[self.len..self.len + 4].copy_from_slice(&OCTETS[usize::from(octet)]);
                    self.len += 2 + usize::from(octet >= 10) + usize::from(octet >= 100);
                }
                self.len -= 1;
            }
            IpAddr::V6(v6) => {
                // Cannot fail: the room is larger than any address.
                let _ = write!(self, "{v6}");
            }
        }
    }

    fn bytes(&self) -> &[u8] {
        &self.text[..self.len]
    }

    /// Writes it.
    #[inline]
    fn put(&self, out: &mut Writer<'_>) {
        out.put_first(&self.text, self.len);
    }
}

impl std::fmt::Write for AddressText {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = self.text.get_mut(self.len..self.len + text.len()).ok_or(std::fmt::Error)?;
        room.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

/// Bytes that [`response`] writes at most.
pub fn response_room(response: &Response, fields: &Fields, answer: &Answer<'_>) -> usize {
    const ADDED: usize = 256;
    let edited = answer.edits.map_or(0, Edits::room);
    response.len + 4 * (fields.len() + 2) + answer.request_id.len() + answer.date.len() + edited + ADDED
}

/// Writes the head that the client gets, with the empty line.
pub fn response(out: &mut Writer<'_>, bytes: &[u8], response: &Response, fields: &Fields, answer: &Answer<'_>) {
    let mut dropped = DROPPED_FROM_ANSWERS;
    let bodiless = matches!(response.status, 100..=199 | 204);
    if bodiless || answer.framing != Rewritten::Same {
        // RFC 9110 §8.6 forbids a length with 1xx and 204; a framing of our own replaces the one that came.
        dropped = dropped.with(LENGTH);
    }
    status_and_lines(out, bytes, response, fields, dropped, answer.edits);
    if !answer.request_id.is_empty() {
        id_line(out, answer.request_id);
    }
    if !fields.present().has(Kind::Date) {
        // RFC 9110 §6.6.1: the origin's own is left alone.
        line(out, b"Date: ", answer.date);
    }
    if answer.upgrade {
        return out.put(b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n");
    }
    if !bodiless {
        answer_framing(out, response, answer);
    }
    match (answer.client, answer.keep_alive) {
        (Version::Http11, true) | (Version::Http10, false) => out.put(b"\r\n"),
        (Version::Http11, false) => out.put(b"Connection: close\r\n\r\n"),
        (Version::Http10, true) => out.put(b"Connection: keep-alive\r\n\r\n"),
    }
}

/// Bytes that [`informational`] writes at most.
pub fn informational_room(response: &Response, fields: &Fields) -> usize {
    response.len + 4 * (fields.len() + 2)
}

/// Writes an interim answer (1xx but not 101) on its way to an HTTP/1.1 client.
pub fn informational(out: &mut Writer<'_>, bytes: &[u8], response: &Response, fields: &Fields) {
    debug_assert!(response.status < 200 && response.status != 101);
    status_and_lines(out, bytes, response, fields, DROPPED_FROM_ANSWERS.with(LENGTH), None);
    out.put(b"\r\n");
}

#[inline]
fn status_and_lines(
    out: &mut Writer<'_>,
    bytes: &[u8],
    response: &Response,
    fields: &Fields,
    dropped: Kinds,
    edits: Option<&Edits>,
) {
    let mut start = 0;
    if !response.copy.line_passes {
        out.put(b"HTTP/1.1 ");
        out.put_decimal(u64::from(response.status));
        line(out, b" ", response.status_line_reason.of(bytes));
        start = response.copy.fields_start;
    }
    match edits {
        None => copy_lines(out, bytes, fields, dropped, start, response.copy.fields_start),
        Some(edits) => copy_edited(out, bytes, fields, dropped, Span { start, end: response.copy.fields_start }, edits),
    }
}

#[inline]
fn answer_framing(out: &mut Writer<'_>, response: &Response, answer: &Answer<'_>) {
    match answer.framing {
        Rewritten::Same if response.framing == Framing::Chunked => out.put(b"Transfer-Encoding: chunked\r\n"),
        Rewritten::Same | Rewritten::UntilClose => {}
        Rewritten::Chunked => out.put(b"Transfer-Encoding: chunked\r\n"),
        Rewritten::Length(length) => {
            out.put(b"Content-Length: ");
            out.put_decimal(length);
            out.put(b"\r\n");
        }
    }
}
