//! Where a request comes from, as the proxies that we trust tell it: the client's address, and the scheme, host and port that it used.
//!
//! A list such as X-Forwarded-For grows at its right end: each proxy adds the peer that it saw. So it is walked from the right, from
//! a peer that is trusted over entries that are, to the first that is not: that is the client. What stands left of it was said by the
//! client, and goes. An entry that is no address ends the walk at the one before it.
//!
//! Of scheme, host and port, where a field has several, that one is the client's which stands as far from the right end as the client's
//! address does in its list: all of them were added by the same proxy.
//!
//! `Forwarded` (RFC 7239) is read in the same way where X-Forwarded-For is missing. Beside it, it is passed on only if it says the
//! same: many proxies write one of them, and let through what the client says in the other. What it says beyond the client is left out,
//! as it is of X-Forwarded-For. X-Forwarded-Ssl, -Scheme and -Protocol are read where neither tells the scheme, and are passed on only
//! if they say the same.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::fields::{Fields, Kind, Kinds, trim};
use super::head;
use super::host::{host_is_legal, port_of};
use super::{Span, is_token};
use crate::config::Peers;

/// Trusted proxies that one request may have come through; the one that is so far away counts as its client.
const MOST_HOPS: usize = 32;

/// See the module. Kept and reused by its owner, so that it does not allocate.
#[derive(Debug, Default)]
pub struct Origin {
    /// The client's address; `None` where it is only known to have come over a Unix socket.
    pub client: Option<IpAddr>,
    /// Whether the peer is trusted. If not, nothing else here means anything.
    pub trusted: bool,
    /// The client and the proxies behind it, the client last, without the peer. Empty if the peer is the client.
    hops: Vec<IpAddr>,
    /// Whether the client used TLS, if somebody said so.
    pub https: Option<bool>,
    /// The host that it asked for; empty if nobody said so.
    pub host: Span,
    /// The port that it asked; `None` if nobody said so.
    pub port: Option<u16>,
    /// Where the id of a request is that has a well-formed one; empty without.
    pub request_id: Span,
    /// What of the request is passed on as it came.
    pub passes: Kinds,
    /// `Forwarded` says the same as the rest, and more that the client has said: it is written anew.
    pub corrects_forwarded: bool,
}

impl Origin {
    /// Looks whether the peer is trusted, and if so reads what the fields of the request say.
    #[cold]
    pub fn read(&mut self, bytes: &[u8], fields: &Fields, peer: Option<IpAddr>, trust: &Peers) {
        (self.client, self.trusted) = (peer, false);
        if !trust.contains(peer) {
            return;
        }
        self.hops.clear();
        let values = |kind| fields.iter().rev().filter(move |field| field.kind == kind).map(|field| field.value);
        let told = fields.present();
        let mut forwarded = told.has(Kind::Forwarded).then(|| forwarded_elements(bytes, fields)).flatten();
        if told.has(Kind::XForwardedFor) {
            let entries = values(Kind::XForwardedFor).flat_map(|value| value.of(bytes).rsplit(|byte| *byte == b','));
            self.walk(entries.map(trim).filter(|entry| !entry.is_empty()).map(node), trust);
        } else if let Some(elements) = &forwarded {
            self.walk(elements.iter().rev().map(|element| node(element.address.of(bytes))), trust);
        } else if let Some(value) = only(fields, Kind::XRealIp) {
            self.hops.extend(node(value.of(bytes)));
        }
        let place = self.hops.len().saturating_sub(1);
        let said = |kind| {
            let entries = values(kind).flat_map(|value| spans_from_right(bytes, value));
            entries.take(place + 1).last()
        };
        let scheme = |span: Span| scheme(span.of(bytes));
        let legal = |span: &Span| !span.is_empty() && host_is_legal(span.of(bytes));
        self.https = said(Kind::XForwardedProto).and_then(scheme);
        self.host = said(Kind::XForwardedHost).filter(legal).unwrap_or_default();
        let port = said(Kind::XForwardedPort).and_then(|port| std::str::from_utf8(port.of(bytes)).ok()?.parse().ok());
        self.port = port.filter(|port| *port != 0);
        let client = self.hops.last().copied();
        let surplus = forwarded.as_ref().map_or(0, VecDeque::len).saturating_sub(place + 1);
        let element = forwarded.as_mut().and_then(|elements| elements.remove(elements.len().checked_sub(place + 1)?));
        let agrees = element.is_some_and(|element| {
            let (https, host) = (scheme(element.scheme), Some(element.host).filter(legal));
            let same_host = host
                .is_none_or(|host| self.host.is_empty() || host.of(bytes).eq_ignore_ascii_case(self.host.of(bytes)));
            let agrees = node(element.address.of(bytes)) == client
                && https.is_none_or(|https| self.https.unwrap_or(https) == https)
                && same_host;
            if agrees {
                self.https = self.https.or(https);
                self.host = if self.host.is_empty() { host.unwrap_or_default() } else { self.host };
            }
            agrees
        });
        let others = || values(Kind::XForwardedScheme).map(|value| other_scheme(value.of(bytes)));
        if self.https.is_none() && !told.has(Kind::XForwardedProto) {
            self.https = others().next().flatten().filter(|https| others().all(|other| other == Some(*https)));
        }
        self.port = self.port.or_else(|| self.usual_port(bytes));
        let id = only(fields, Kind::XRequestId).filter(|id| head::request_id_is_legal(id.of(bytes)));
        self.request_id = id.unwrap_or_default();
        self.passes = Kinds::of(&[
            Kind::XForwardedClientCert,
            Kind::XForwardedOther,
            Kind::XRequestStart,
            Kind::Traceparent,
            Kind::Tracestate,
        ]);
        if self.https.is_some() && others().all(|other| other == self.https) {
            self.passes = self.passes.with(Kinds::of(&[Kind::XForwardedScheme]));
        }
        if agrees && surplus == 0 {
            self.passes = self.passes.with(Kinds::of(&[Kind::Forwarded]));
        }
        self.corrects_forwarded = agrees && surplus > 0;
        (self.client, self.trusted) = (client.or(peer), true);
    }

    /// Takes the entries of a list, from the right, up to the first that is not trusted.
    fn walk(&mut self, entries: impl Iterator<Item = Option<IpAddr>>, trust: &Peers) {
        for entry in entries.take(MOST_HOPS) {
            let Some(address) = entry else { return };
            self.hops.push(address);
            if !trust.contains(Some(address)) {
                return;
            }
        }
    }

    /// The port where nobody said one: that of the host, or the scheme's, if they were told.
    fn usual_port(&self, bytes: &[u8]) -> Option<u16> {
        port_of(self.host.of(bytes)).or_else(|| self.https.map(|https| if https { 443 } else { 80 }))
    }

    /// The client, and the proxies in the order in which the request passed them, without the peer.
    pub fn chain(&self) -> impl Iterator<Item = IpAddr> {
        self.hops.iter().rev().copied()
    }

    /// Bytes of [`Origin::chain`] as text, at most, each with `room` more.
    pub fn chain_room(&self, room: usize) -> usize {
        /// The longest IPv6 address.
        const LONGEST: usize = 39;
        self.hops.len() * (LONGEST + room)
    }
}

/// The value of the one field of that kind; `None` also for several, for nobody can tell which is meant.
fn only(fields: &Fields, kind: Kind) -> Option<Span> {
    let mut values = fields.iter().filter(|field| field.kind == kind).map(|field| field.value);
    values.next().filter(|_| values.next().is_none())
}

/// The elements of a list from the right, without the whitespace around them; empty ones too.
fn spans_from_right(bytes: &[u8], value: Span) -> impl Iterator<Item = Span> {
    let list = value.of(bytes);
    let mut end = list.len();
    let elements = list.rsplit(|byte| *byte == b',').map(move |element| {
        let start = end - element.len();
        end = start.saturating_sub(1);
        let before = element.len() - element.trim_ascii_start().len();
        let at = value.start as usize + start + before;
        Span::new(at, at + element.trim_ascii().len())
    });
    elements.filter(|element| !element.is_empty())
}

fn scheme(text: &[u8]) -> Option<bool> {
    let is = |name: &[u8]| text.eq_ignore_ascii_case(name);
    match (is(b"https") || is(b"wss"), is(b"http") || is(b"ws")) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

/// What X-Forwarded-Ssl, -Scheme and -Protocol say.
fn other_scheme(text: &[u8]) -> Option<bool> {
    let is = |name: &[u8]| text.eq_ignore_ascii_case(name);
    match (is(b"on") || is(b"ssl"), is(b"off")) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => scheme(text),
    }
}

/// An address as proxies write it: bare, in brackets or quotes, with a port or a zone, which mean nothing here. `unknown` and names
/// such as `_hidden` are none.
pub fn node(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let text = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(text);
    let (address, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').filter(|(inside, _)| inside.contains(':'))?,
        // More than one colon belong to an IPv6 address.
        None => match text.find(':').filter(|colon| !text[colon + 1..].contains(':')) {
            Some(colon) => text.split_at(colon),
            None => (text, ""),
        },
    };
    if !port.is_empty() && !is_port(port.strip_prefix(':')?) {
        return None;
    }
    let address = match address.split_once('%') {
        Some((address, zone)) if address.contains(':') && !zone.is_empty() => address,
        Some(_) => return None,
        None => address,
    };
    address.parse().ok().map(|address: IpAddr| address.to_canonical())
}

/// A number, or a name that stands for one (RFC 7239 §6.3).
fn is_port(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let named = |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    match text.strip_prefix('_') {
        Some(name) => !name.is_empty() && named(name),
        None => (1..=5).contains(&text.len()) && digits(text),
    }
}

/// What one proxy says in `Forwarded`; values without their quotes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Element {
    address: Span,
    scheme: Span,
    host: Span,
}

/// The last elements of all `Forwarded` fields, as many as are ever looked at and one more; `None` if one of them is malformed.
fn forwarded_elements(bytes: &[u8], fields: &Fields) -> Option<VecDeque<Element>> {
    let mut elements = VecDeque::new();
    for field in fields.iter().filter(|field| field.kind == Kind::Forwarded) {
        let mut reader = Pairs { bytes: &bytes[..field.value.end as usize], at: field.value.start as usize };
        while reader.peek().is_some() {
            if let Some(element) = reader.element()? {
                if elements.len() > MOST_HOPS {
                    elements.pop_front();
                }
                elements.push_back(element);
            }
        }
    }
    Some(elements)
}

/// Reads `Forwarded` (RFC 7239 §4).
struct Pairs<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Pairs<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Passes over bytes of a kind: how many.
    fn skip(&mut self, kind: impl Fn(u8) -> bool) -> usize {
        let count = self.bytes[self.at..].iter().take_while(|byte| kind(**byte)).count();
        self.at += count;
        count
    }

    /// `[ pair ] *( ";" [ pair ] )` and the comma behind it. `Some(None)`: an empty one; `None`: it is malformed.
    fn element(&mut self) -> Option<Option<Element>> {
        let (mut element, mut pairs) = (Element::default(), 0);
        loop {
            self.skip(|byte| matches!(byte, b' ' | b'\t'));
            let start = self.at;
            if self.skip(is_token) > 0 {
                pairs += 1;
                let name = &self.bytes[start..self.at];
                let value = self.value()?;
                for (known, place) in
                    [(&b"for"[..], &mut element.address), (b"proto", &mut element.scheme), (b"host", &mut element.host)]
                {
                    // Each may be there once.
                    if name.eq_ignore_ascii_case(known) && std::mem::replace(place, value) != Span::default() {
                        return None;
                    }
                }
            }
            self.skip(|byte| matches!(byte, b' ' | b'\t'));
            let end = self.peek();
            self.at += usize::from(end.is_some());
            match end {
                Some(b';') => {}
                Some(b',') | None => return Some((pairs > 0).then_some(element)),
                Some(_) => return None,
            }
        }
    }

    /// `=` and a token, or a quoted string without escapes, which no address, scheme or host needs: what is within the quotes. An IPv6
    /// address without quotes is malformed, and meant all the same.
    fn value(&mut self) -> Option<Span> {
        if self.skip(|byte| byte == b'=') != 1 {
            return None;
        }
        let quoted = self.peek() == Some(b'"');
        self.at += usize::from(quoted);
        let start = self.at;
        let len = match quoted {
            true => self.skip(|byte| byte != b'"' && byte != b'\\'),
            false => self.skip(|byte| is_token(byte) || matches!(byte, b':' | b'[' | b']')),
        };
        let value = Span::new(start, self.at);
        let closed = !quoted || self.peek() == Some(b'"');
        self.at += usize::from(quoted);
        (closed && (quoted || len > 0)).then_some(value)
    }
}

#[cfg(test)]
mod tests;
