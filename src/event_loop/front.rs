//! What stands in front of a listener: the header of the PROXY protocol with which its connections begin, and whose word about where a
//! request comes from counts.
//!
//! A connection on a listener that requires the header stays ACCEPTING until it is whole. Whoever may not connect, sends something else,
//! or takes too long, is closed without a word and counted.

use crate::backends::{Backend, How, Peer, Size, Sock};
use crate::buffers::block::Block;
use crate::connection::State;
use crate::http::proxy_protocol::{self, Header};
use crate::metrics::Counter;

use super::Loop;

impl<B: Backend> Loop<B> {
    /// An accepted connection may send its first request.
    #[inline]
    pub fn await_first_request(&mut self, sock: Sock) {
        self.become_state(sock, State::ReadingRequest);
        self.arm(sock, self.shared.settings.timeouts.header);
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
        if input.is_empty() {
            return self.await_first_request(sock);
        }
        if let Some(client) = self.table.client(sock) {
            client.input = Some(input);
        }
        self.become_state(sock, State::ReadingRequest);
        self.arm(sock, self.shared.settings.timeouts.header);
        self.read_requests(sock);
    }

    /// From here on the client is whom the header names.
    fn take_proxy_header(&mut self, sock: Sock, header: &Header) {
        let Some(client) = self.table.client(sock) else { return };
        client.secure = header.tls;
        if let Some([(ip, port), (_, target)]) = header.addresses {
            client.peer = Peer { ip: ip.to_canonical(), port, unix: false };
            client.local_port = target;
        }
    }

    /// The header did not come in time, or its connection ended before.
    #[cold]
    pub fn proxy_header_missed(&mut self, sock: Sock) {
        self.refuse_proxy(sock, |counters| &counters.proxy_protocol_late);
    }

    fn refuse_proxy(&mut self, sock: Sock, counter: impl Fn(&crate::metrics::Counters) -> &Counter) {
        counter(self.count()).add(1);
        self.close_client(sock, How::Now);
    }

    /// Finds out where the request comes from whose head, parsed just now, begins `input`.
    #[inline]
    pub fn find_origin(&mut self, sock: Sock, input: &[u8]) {
        let Some(client) = self.table.client(sock) else { return };
        let (peer, heads) = (client.peer.address(), &mut self.heads);
        let trust = &self.accepting.listeners[client.listener as usize].front.trusted;
        if trust.is_empty() {
            heads.origin.begin(peer);
        } else {
            heads.origin.read(input, &heads.fields, peer, trust);
        }
    }
}
