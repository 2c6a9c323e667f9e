//! What stands in front of a listener: the header of the PROXY protocol with which its connections begin, and whose word about where a
//! request comes from counts.
//!
//! A connection on a listener that requires the header stays ACCEPTING until it is whole. Whoever may not connect, sends something else,
//! or takes too long, is closed without a word and counted.

use std::net::IpAddr;

use crate::backends::{Backend, How, Peer, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::slots::Key;
use crate::connection::State;
use crate::http::date::Start;
use crate::http::origin::Origin;
use crate::http::proxy_protocol::{self, Header};
use crate::http::rewrite::{self, Forward};
use crate::log::AccessRecord;
use crate::metrics::Counter;

use super::{Accepting, Heads, Listener, Loop};

/// How a connection came, as its socket or a PROXY protocol header says.
pub(crate) struct Arrival {
    /// Who is at its other end.
    pub peer: Peer,
    /// The port that it connected to; 0 for a Unix socket.
    pub port: u16,
    /// It came over TLS: to this server, or to the one in front, as a header says.
    pub secure: bool,
    /// A header says that it is somebody's who came through a balancer, whoever that is.
    pub proxied: bool,
}

impl Arrival {
    pub fn new(peer: Peer, port: u16) -> Arrival {
        Arrival { peer, port, secure: false, proxied: false }
    }
}

/// What a trusted proxy says of who asks.
pub(crate) struct Told {
    /// The client's address, as far as it is known.
    client: Option<IpAddr>,
    /// The request's id; empty if it gave none.
    id: Box<[u8]>,
}

/// What trusted proxies say of the requests in hand, by the indices of their exchanges; kept until another exchange has the entry.
/// Beside the exchanges, which are nearly always asked for by somebody of whom nobody says anything.
#[derive(Default)]
pub(crate) struct Tolds(Vec<Option<Told>>);

impl Tolds {
    #[cold]
    fn of(&self, key: Key) -> Option<&Told> {
        self.0.get(key.index as usize)?.as_ref()
    }

    #[cold]
    fn note(&mut self, key: Key, told: Option<Told>) {
        let index = key.index as usize;
        if self.0.len() <= index {
            self.0.resize_with(index + 1, || None);
        }
        self.0[index] = told;
    }
}

impl Accepting {
    #[inline]
    fn told(&self, key: Key) -> Option<&Told> {
        self.tolds.as_ref()?.of(key)
    }

    /// The client's address, as far as it is known: the one that everything goes by that depends on who asks. `arrival` is that of the
    /// connection of the exchange.
    #[inline]
    pub fn client(&self, key: Key, arrival: &Arrival) -> Option<IpAddr> {
        self.told(key).map_or(arrival.peer.address(), |told| told.client)
    }

    /// The id of an exchange's request, which is `own` unless a trusted proxy has given it another.
    #[inline]
    pub fn id<'a>(&'a self, key: Key, own: &'a [u8]) -> &'a [u8] {
        match self.told(key) {
            Some(told) if !told.id.is_empty() => &told.id,
            _ => own,
        }
    }
}

impl Heads {
    /// The id of the request in hand, which is `own` unless a trusted proxy has given it another.
    #[inline]
    pub fn id<'a>(&self, head: &'a [u8], own: &'a [u8]) -> &'a [u8] {
        if self.origin.trusted && !self.origin.request_id.is_empty() { self.origin.request_id.of(head) } else { own }
    }

    #[cold]
    fn told(&self, head: &[u8]) -> Option<Told> {
        let (client, id) = (self.origin.client, self.origin.request_id.of(head).into());
        self.origin.trusted.then_some(Told { client, id })
    }
}

impl Listener {
    /// What the worker is told of a request that came here.
    #[inline]
    pub fn forward<'a>(
        &self,
        arrival: &Arrival,
        (origin, certificate): (&'a Origin, &'a str),
        id: &'a [u8],
        start: Start,
    ) -> Forward<'a> {
        Forward {
            peer: arrival.peer.ip,
            unix: arrival.peer.unix,
            local_port: arrival.port,
            https: arrival.secure,
            request_id: id,
            start,
            front: if self.plain { None } else { Some(self.told(origin, certificate)) },
            keep_alive: true,
            open: false,
            edits: None,
            identity: b"",
        }
    }

    #[cold]
    fn told<'a>(&self, origin: &'a Origin, client_certificate: &'a str) -> rewrite::Front<'a> {
        rewrite::Front {
            origin: origin.trusted.then_some(origin),
            // Those of peers that are not trusted pass where nobody is.
            traces: self.front.trusted.is_empty(),
            writes_forwarded: self.front.writes_forwarded,
            client_certificate,
        }
    }
}

/// The access line of a request, whose head `head` begins with; where none was understood, that and `protocol` are empty. What became of it
/// is left open.
pub(crate) fn access_record<'a>(
    head: &'a [u8],
    protocol: &'a str,
    client: Option<IpAddr>,
    time_micros: u64,
) -> AccessRecord<'a> {
    let split = |text: &'a [u8]| {
        let end = memchr::memchr2(b' ', b'\r', text).unwrap_or(text.len());
        (&text[..end], text.get(end + 1..).unwrap_or_default())
    };
    let (method, rest) = split(head);
    let (target, _) = split(rest);
    AccessRecord { time_micros, client, method, target, protocol, head, ..AccessRecord::default() }
}

impl<B: Backend> Loop<B> {
    /// An accepted connection may send its first request.
    #[inline]
    pub fn await_first_request(&mut self, sock: Sock) {
        self.become_state(sock, State::ReadingRequest);
        self.arm(sock, self.patience(self.apps.settings.timeouts.header));
        self.backend.recv(sock, Size::Small);
    }

    /// A connection was accepted that has to begin with a header.
    #[cold]
    pub(super) fn await_proxy_header(&mut self, sock: Sock, peer: Peer) {
        let Some(client) = self.table.client(sock) else { return };
        let front = &self.accepting.listeners[client.listener as usize].front;
        if !front.proxies.contains(peer.address()) {
            self.count().proxy_protocol_refused.add(1);
            return self.close_client(sock, How::Now);
        }
        self.time.connections.arm_after(sock.index, front.header_timeout);
        self.backend.recv(sock, Size::Small);
    }

    /// Bytes of a connection whose header is not whole yet.
    #[cold]
    pub fn read_proxy_header(&mut self, sock: Sock, block: Block) {
        let Some(client) = self.table.client(sock) else { return };
        let listener = client.listener;
        let mut input = self.memory.pool.joined(client.input.take(), block);
        let header = match proxy_protocol::parse(&input) {
            Ok(Some(header)) => header,
            Ok(None) if self.memory.has_reserve() => {
                client.input = Some(input.settle(&self.memory.pool));
                return self.backend.recv(sock, Size::Small);
            }
            Ok(None) => return self.refuse_proxy(sock, |counters| &counters.memory_refused),
            Err(_) => return self.refuse_proxy(sock, |counters| &counters.proxy_protocol_invalid),
        };
        input.advance(header.len);
        self.take_proxy_header(sock, &header);
        if !self.has_place(sock) {
            return;
        }
        if self.accepting.listeners[listener as usize].tls.is_some() {
            return self.begin_handshake(sock, Some(input));
        }
        self.begin_requests(sock, input);
    }

    /// What an accepted connection has to begin with is whole: its first requests may come, and have perhaps.
    pub fn begin_requests(&mut self, sock: Sock, input: Block) {
        if input.is_empty() {
            return self.await_first_request(sock);
        }
        if let Some(client) = self.table.client(sock) {
            client.input = Some(input);
        }
        self.become_state(sock, State::ReadingRequest);
        self.arm(sock, self.patience(self.apps.settings.timeouts.header));
        self.read_requests(sock);
    }

    /// From here on the client is whom the header names.
    fn take_proxy_header(&mut self, sock: Sock, header: &Header) {
        let Some(client) = self.table.client(sock) else { return };
        client.arrival.secure = header.tls;
        client.arrival.proxied = !header.own;
        if let Some([(ip, port), (_, target)]) = header.addresses {
            client.arrival.peer = Peer { ip: ip.to_canonical(), port, unix: false };
            client.arrival.port = target;
        }
    }

    /// What a connection has to begin with did not come in time, or its connection ended before.
    #[cold]
    pub fn never_began(&mut self, sock: Sock, ended: bool) {
        if self.is_secure(sock) {
            return self.handshake_missed(sock, ended);
        }
        self.refuse_proxy(sock, |counters| &counters.proxy_protocol_late);
    }

    fn refuse_proxy(&mut self, sock: Sock, counter: impl Fn(&crate::metrics::Counters) -> &Counter) {
        counter(self.count()).add(1);
        self.close_client(sock, How::Now);
    }

    /// Finds out what a trusted proxy says of the request whose head, parsed just now, is `head`, or begins it.
    #[inline]
    pub fn find_origin(&mut self, sock: Sock, head: &[u8]) {
        if self.accepting.tolds.is_some() {
            self.read_origin(sock, head);
        }
    }

    #[cold]
    fn read_origin(&mut self, sock: Sock, head: &[u8]) {
        let Some(client) = self.table.client(sock) else { return };
        let trust = &self.accepting.listeners[client.listener as usize].front.trusted;
        self.heads.origin.read(head, &self.heads.fields, client.arrival.peer.address(), trust);
    }

    /// Keeps for the exchange what was found so. `head` is as it was.
    #[inline]
    pub fn keep_origin(&mut self, key: Key, head: &[u8]) {
        if let Some(tolds) = &mut self.accepting.tolds {
            tolds.note(key, self.heads.told(head));
        }
    }
}
