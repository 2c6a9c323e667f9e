//! TLS on the way between the backend and the connections, none of which knows of it: what a client sends is taken apart as it comes, in the
//! block that it came in, and what it is sent waits until the end of the turn, when head and body become one record.
//!
//! A connection on a listener that speaks TLS is ACCEPTING until its handshake is done, for which it has the time of a request's head. A
//! loop does the cryptography of [`HANDSHAKES_A_TURN`] handshakes a turn at most: the others have theirs in the next ones, so that a crowd
//! that comes at once does not hold those up who are there.
//!
//! Where bytes are: a record that has come in part lies on the heap, bounded by [`MOST_PENDING`] or [`MOST_OF_CERTIFICATES`] and charged to the budget. Plain bytes that
//! are to be sent are in the blocks where they were lent from until the turn ends; sealed ones are the backend's, which knows where they may
//! wait.
//!
//! A connection that ends in order says so (close_notify, RFC 8446, 6.1); one whose answer was cut does not, so that its client sees it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::backends::{Backend, How, Piece, Size, Sock};
use crate::buffers::block::Block;
use crate::buffers::outbox::{Outbox, Outboxes};
use crate::http::find_present;
use crate::mailbox::Message;
use crate::metrics::Counter;
use crate::tls::{
    HANDSHAKE, HELLO_BYTES, NOT_THIS_VERSION, OVERHEAD_BYTES, RECORD_BYTES, Reason, Session, is_hello_of_ssl_2,
};

use super::{Loop, Task};

/// Handshakes of which a loop does the cryptography in one turn: a fraction of a millisecond each.
const HANDSHAKES_A_TURN: usize = 8;
/// What has come of a record or of a message of a handshake, at most: a ClientHello in full records.
const MOST_PENDING: usize = HELLO_BYTES + 1024;
/// The same where a client was asked for its certificate, which comes with those of its issuers: one of 64 KiB, which is the most that the library takes.
const MOST_OF_CERTIFICATES: usize = 65 * 1024;

/// The clients of a loop that speak TLS.
#[derive(Default)]
pub(crate) struct Secure {
    /// By the indices of their sockets.
    clients: Vec<Option<Box<Secured>>>,
    /// What they are to be sent, as long as it is plain.
    plain: Outboxes,
    /// Whose plain bytes are to be sealed.
    to_seal: Vec<Sock>,
    /// Whose handshakes have their turn in the next ones.
    later: VecDeque<Sock>,
    /// Handshakes since the last of those had its turn.
    handshakes: usize,
    /// What was opened, what is to be said, and what is put together, one after the other.
    opened: Vec<u8>,
    reply: Vec<u8>,
    gathered: Vec<u8>,
}

struct Secured {
    session: Session,
    /// What has come of a record that is not whole.
    pending: Option<Block>,
    outbox: Outbox,
    /// It has begun as it should.
    begun: bool,
    /// Who the client is by its own certificate; empty without one.
    certificate: String,
    /// A field line for each of its answers.
    hsts: Option<Arc<[u8]>>,
    /// The handshake is done.
    ready: bool,
    /// Its last answer was cut, or it has failed: it does not end in order.
    cut: bool,
}

impl Secured {
    /// How much may have come of a record or of a message.
    fn most_pending(&self) -> usize {
        if self.session.awaits_certificates() { MOST_OF_CERTIFICATES } else { MOST_PENDING }
    }
}

impl Secure {
    fn find(&mut self, sock: Sock) -> Option<&mut Secured> {
        self.clients.get_mut(sock.index as usize)?.as_deref_mut()
    }

    /// What workers are told of a client's own certificate; empty without one.
    pub fn certificate(&self, sock: Sock) -> &str {
        self.clients.get(sock.index as usize).and_then(Option::as_deref).map_or("", |secured| &secured.certificate)
    }

    /// Queues a piece that is to be sealed; gives it back where it is not.
    #[inline(never)]
    fn push(&mut self, sock: Sock, piece: Piece) -> Option<Piece> {
        let Some(secured) = self.clients.get_mut(sock.index as usize).and_then(Option::as_deref_mut) else {
            return Some(piece);
        };
        if secured.outbox.is_empty() {
            self.to_seal.push(sock);
        }
        self.plain.push(&mut secured.outbox, piece);
        None
    }

    /// Puts records of everything that waits for a client behind each other, each as long as it may be.
    fn seal<E>(
        &mut self,
        sock: Sock,
        mut send: impl FnMut(&mut Session, &mut [u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(secured) = self.clients.get_mut(sock.index as usize).and_then(Option::as_deref_mut) else {
            return Ok(());
        };
        while !secured.outbox.is_empty() {
            let mut pieces = self.plain.pieces(&secured.outbox);
            let first = pieces.next().unwrap_or_default();
            let whole = first.len() >= RECORD_BYTES || first.len() == secured.outbox.bytes();
            let bytes = if whole {
                &first[..first.len().min(RECORD_BYTES)]
            } else {
                self.gathered.clear();
                for piece in std::iter::once(first).chain(pieces.by_ref()) {
                    let room = RECORD_BYTES - self.gathered.len();
                    self.gathered.extend_from_slice(&piece[..piece.len().min(room)]);
                    if piece.len() >= room {
                        break;
                    }
                }
                &self.gathered[..]
            };
            let left = secured.pending.as_mut().and_then(Block::unshared).unwrap_or_default();
            send(&mut secured.session, left, bytes)?;
            let sealed = bytes.len();
            drop(pieces);
            self.plain.consume(&mut secured.outbox, sealed);
        }
        Ok(())
    }
}

/// [`Loop::send`], for whoever has borrowed something else of the loop.
#[inline(always)]
pub(crate) fn send<B: Backend>(secure: &mut Option<Box<Secure>>, backend: &mut B, sock: Sock, piece: Piece) {
    match secure {
        None => backend.send(sock, piece),
        Some(secure) => {
            if let Some(piece) = secure.push(sock, piece) {
                backend.send(sock, piece);
            }
        }
    }
}

impl<B: Backend> Loop<B> {
    /// Whether that is a client that speaks TLS.
    #[inline]
    pub fn is_secure(&mut self, sock: Sock) -> bool {
        self.secure.as_mut().is_some_and(|secure| secure.find(sock).is_some())
    }

    /// Sends a piece to a client, or to a worker.
    #[inline(always)]
    pub fn send(&mut self, sock: Sock, piece: Piece) {
        send(&mut self.secure, &mut self.backend, sock, piece);
    }

    /// Sends the head of an answer, with or without its body.
    #[inline(always)]
    pub fn send_head(&mut self, sock: Sock, head: Block) {
        match self.secure.is_some() {
            true => self.send_secure_head(sock, head),
            false => self.backend.send(sock, head.into()),
        }
    }

    #[inline(never)]
    fn send_secure_head(&mut self, sock: Sock, mut head: Block) {
        let secured = self.secure.as_mut().and_then(|secure| secure.find(sock));
        if let Some(line) = secured.and_then(|secured| secured.hsts.clone())
            && let Some(fields) = memchr::memmem::find(&head, b"\r\n\r\n")
            && let [None] = find_present(&head[..fields + 2], [b"strict-transport-security"])
            && let Some(end) = memchr::memchr(b'\n', &head)
        {
            self.send(sock, head.slice(0..end + 1).into());
            self.send(sock, Piece::shared(line));
            head.advance(end + 1);
        }
        self.send(sock, head.into());
    }

    /// Bytes that are to be sent and that the kernel has not taken yet.
    #[inline(always)]
    pub fn unsent(&mut self, sock: Sock) -> usize {
        let sealed = self.backend.unsent(sock);
        match &mut self.secure {
            Some(secure) => sealed + secure.find(sock).map_or(0, |secured| secured.outbox.bytes()),
            None => sealed,
        }
    }

    /// Says that nothing more will be sent, once everything is.
    pub fn finish_sending(&mut self, sock: Sock) {
        if self.secure.is_some() {
            self.seal_end(sock);
        }
        self.backend.finish(sock);
    }

    /// An accepted connection begins with a handshake, of which `input` has come.
    #[cold]
    pub fn begin_handshake(&mut self, sock: Sock, input: Option<Block>) {
        let Some(client) = self.table.client(sock) else { return };
        let Some(policy) = &self.accepting.listeners[client.listener as usize].tls else { return };
        let hsts = Some(policy.hsts()).filter(|line| !line.is_empty()).map(|line| Arc::from(line.into_bytes()));
        let Ok(session) = Session::new(policy) else {
            return self.fail_handshake(sock, |counters| &counters.tls_failed);
        };
        let secure = self.secure.get_or_insert_default();
        let index = sock.index as usize;
        if secure.clients.len() <= index {
            secure.clients.resize_with(index + 1, || None);
        }
        let (pending, outbox, certificate) = (None, Outbox::default(), String::new());
        let secured = Secured { session, pending, outbox, certificate, hsts, begun: false, ready: false, cut: false };
        secure.clients[index] = Some(Box::new(secured));
        self.arm(sock, self.patience(self.apps.settings.timeouts.header));
        match input.filter(|input| !input.is_empty()) {
            Some(input) => drop(self.open_records(sock, input, false)),
            None => self.backend.recv(sock, Size::Small),
        }
    }

    /// Bytes of a client have come.
    pub fn client_received(&mut self, sock: Sock, block: Block) {
        self.count().bytes_received.add(block.len() as u64);
        match self.secure.is_some() {
            true => self.sealed_received(sock, block),
            false => self.plain_received(sock, block),
        }
    }

    #[inline(never)]
    fn sealed_received(&mut self, sock: Sock, block: Block) {
        if let Some(block) = self.open_records(sock, block, false) {
            self.plain_received(sock, block);
        }
    }

    /// What is in bytes that have come from a client: `None` if it is for TLS alone, or is not whole. `has_turn`: of a handshake that has
    /// waited for one.
    fn open_records(&mut self, sock: Sock, block: Block, has_turn: bool) -> Option<Block> {
        let secure = self.secure.as_deref_mut()?;
        let Some(secured) = secure.clients.get_mut(sock.index as usize).and_then(Option::as_deref_mut) else {
            return Some(block);
        };
        let mut input = self.memory.pool.joined(secured.pending.take(), block);
        if !secured.ready {
            let begins = !std::mem::replace(&mut secured.begun, true);
            if begins && input.first().is_some_and(|first| *first != HANDSHAKE) {
                self.refuse_plain(sock, &input);
                return None;
            }
            let must_wait = secure.handshakes >= HANDSHAKES_A_TURN || !secure.later.is_empty();
            if must_wait && !has_turn {
                if secure.later.is_empty() {
                    self.shared.postboxes.post(self.index, Message::ShakeHands);
                }
                secured.pending = Some(input.settle(&self.memory.pool));
                secure.later.push_back(sock);
                return None;
            }
        }
        if input.unshared().is_none() {
            input = self.memory.pool.heap(&input);
        }
        secure.opened.clear();
        secure.reply.clear();
        let records = input.unshared().unwrap_or_default();
        let mut opened = secured.session.open(records, &mut secure.opened, &mut secure.reply);
        let pending = input.slice(opened.used..input.len());
        if opened.failure.is_none() && pending.len() > secured.most_pending() {
            opened.failure = Some(secured.session.say_too_long(&mut secure.reply));
        }
        if !pending.is_empty() && opened.failure.is_none() {
            secured.pending = Some(self.memory.pool.heap(&pending));
        }
        drop(pending);
        if !secure.reply.is_empty() {
            secure.handshakes += usize::from(!secured.ready);
            let reply = self.memory.scratch.write(secure.reply.len(), |out| out.put(&secure.reply));
            self.backend.send(sock, reply.into());
        }
        if let Some(reason) = opened.failure {
            self.fail_session(sock, reason);
            return None;
        }
        if secured.pending.is_some() && !self.memory.has_reserve() {
            self.count().memory_refused.add(1);
            self.cut_session(sock);
            self.client_left(sock, How::Now);
            return None;
        }
        let plain = secure.opened.len();
        if let Some(room) = input.unshared().and_then(|bytes| bytes.get_mut(..plain)) {
            room.copy_from_slice(&secure.opened);
        }
        input.truncate(plain);
        if opened.ended {
            self.work.push_back(Task::End(sock));
        }
        let was_ready = secured.ready;
        secured.ready = secured.session.is_ready();
        match (was_ready, secured.ready) {
            (false, true) => self.end_handshake(sock, input),
            (true, _) if plain > 0 => return Some(input),
            _ if opened.ended => {}
            _ => self.backend.recv(sock, Size::Small),
        }
        None
    }

    /// The handshake is done: the connection goes on as any other, beginning with what has come behind it.
    fn end_handshake(&mut self, sock: Sock, input: Block) {
        let Some(secured) = self.secure.as_mut().and_then(|secure| secure.find(sock)) else { return };
        if secured.session.is_challenge() {
            // The authority has seen what it came for.
            return self.close_client(sock, How::Flushed);
        }
        let resumed = secured.session.is_resumed();
        secured.certificate = secured.session.client().unwrap_or_default();
        let counters = self.count();
        (if resumed { &counters.tls_resumed } else { &counters.tls_handshakes }).add(1);
        if let Some(client) = self.table.client(sock) {
            client.arrival.secure = true;
        }
        self.begin_requests(sock, input);
    }

    /// Those whose handshakes wait have their turn, as many as it leaves.
    #[cold]
    pub fn shake_hands(&mut self) {
        while let Some(secure) = &mut self.secure
            && secure.handshakes < HANDSHAKES_A_TURN
            && let Some(sock) = secure.later.pop_front()
        {
            self.table.subject = sock;
            // Who has left meanwhile has no turn, nor has whoever has that place now.
            if self.table.client(sock).is_some()
                && let Some(input) = secure.find(sock).and_then(|secured| secured.pending.take())
            {
                self.open_records(sock, input, true);
                self.work_off();
            }
        }
        let Some(secure) = &mut self.secure else { return };
        secure.handshakes = 0;
        if !secure.later.is_empty() {
            self.shared.postboxes.post(self.index, Message::ShakeHands);
        }
    }

    /// Whether plain bytes are to be sealed.
    #[inline]
    pub fn must_seal(&self) -> bool {
        self.secure.as_ref().is_some_and(|secure| !secure.to_seal.is_empty())
    }

    /// The turn ends: whatever it has left for clients becomes records.
    pub fn seal_all(&mut self) {
        while let Some(sock) = self.secure.as_mut().and_then(|secure| secure.to_seal.pop()) {
            self.table.subject = sock;
            if !self.seal(sock) {
                self.cut_session(sock);
                self.client_left(sock, How::Now);
            }
        }
    }

    /// Seals what waits for a client; whether it could be.
    fn seal(&mut self, sock: Sock) -> bool {
        let Some(secure) = &mut self.secure else { return true };
        let (scratch, backend) = (&mut self.memory.scratch, &mut self.backend);
        let sealed = secure.seal(sock, |session, left, bytes| {
            let most = bytes.len() + OVERHEAD_BYTES;
            let mut outcome = Ok(());
            let record = scratch.write(most, |out| {
                out.fill(most, |room| match session.seal(left, bytes, room) {
                    Ok(written) => written,
                    Err(error) => {
                        outcome = Err(error);
                        0
                    }
                });
            });
            backend.send(sock, record.into());
            outcome
        });
        sealed.is_ok()
    }

    /// Seals what waits for a client, and that it was the last.
    fn seal_end(&mut self, sock: Sock) {
        if !self.seal(sock) {
            return;
        }
        let Some(secured) = self.secure.as_mut().and_then(|secure| secure.find(sock)) else { return };
        if secured.ready && !secured.cut {
            let left = secured.pending.as_mut().and_then(Block::unshared).unwrap_or_default();
            let session = &mut secured.session;
            let end = self.memory.scratch.write(OVERHEAD_BYTES, |out| {
                out.fill(OVERHEAD_BYTES, |room| session.close(left, room));
            });
            self.backend.send(sock, end.into());
        }
    }

    /// Notes that what a client was sent is not whole, and that its connection is not to end as if it were.
    pub fn cut_session(&mut self, sock: Sock) {
        if let Some(secured) = self.secure.as_mut().and_then(|secure| secure.find(sock)) {
            secured.cut = true;
        }
    }

    /// A connection is about to close, or has closed: what is left of it for TLS goes.
    #[inline(always)]
    pub fn end_session(&mut self, sock: Sock, how: How) {
        if self.secure.is_some() {
            self.drop_session(sock, how);
        }
    }

    #[inline(never)]
    fn drop_session(&mut self, sock: Sock, how: How) {
        if how == How::Flushed {
            self.seal_end(sock);
        }
        let Some(secure) = &mut self.secure else { return };
        if let Some(mut secured) = secure.clients.get_mut(sock.index as usize).and_then(Option::take) {
            secure.plain.clear(&mut secured.outbox);
        }
    }

    /// The handshake did not come to its end in time, or the connection ended before.
    #[cold]
    pub fn handshake_missed(&mut self, sock: Sock, ended: bool) {
        self.fail_handshake(sock, |counters| if ended { &counters.tls_left } else { &counters.tls_late });
    }

    fn fail_handshake(&mut self, sock: Sock, counter: impl Fn(&crate::metrics::Counters) -> &Counter) {
        counter(self.count()).add(1);
        self.close_client(sock, How::Now);
    }

    /// A session cannot go on. Its client has been told.
    #[cold]
    fn fail_session(&mut self, sock: Sock, reason: Reason) {
        let Some(secured) = self.secure.as_mut().and_then(|secure| secure.find(sock)) else { return };
        secured.cut = true;
        if secured.ready {
            self.count().tls_broken.add(1);
            return self.client_left(sock, How::Flushed);
        }
        let counters = self.count();
        let counter = match reason {
            Reason::UnknownName => &counters.tls_unknown_name,
            Reason::NothingInCommon => &counters.tls_nothing_in_common,
            Reason::ClientCertificate => &counters.tls_client_certificate,
            Reason::Refused => &counters.tls_refused,
            Reason::Malformed => &counters.tls_failed,
        };
        counter.add(1);
        self.close_client(sock, How::Flushed);
    }

    /// What has come is no TLS: HTTP is told so in its own words, SSL 2 in its successors', anything else nothing.
    #[cold]
    fn refuse_plain(&mut self, sock: Sock, input: &[u8]) {
        let is_http = input.iter().take_while(|byte| byte.is_ascii_uppercase()).count() > 0;
        let counters = self.count();
        match is_http {
            true => counters.tls_plain.add(1),
            false if is_hello_of_ssl_2(input) => counters.tls_nothing_in_common.add(1),
            false => counters.tls_failed.add(1),
        }
        if let Some(secure) = &mut self.secure {
            secure.clients[sock.index as usize] = None;
        }
        if is_http {
            return self.refuse_unread(sock, input, (400, "this port speaks TLS: ask for https://"));
        }
        if !is_hello_of_ssl_2(input) {
            return self.close_client(sock, How::Now);
        }
        let alert = self.memory.scratch.write(NOT_THIS_VERSION.len(), |out| out.put(&NOT_THIS_VERSION));
        self.backend.send(sock, alert.into());
        self.close_client(sock, How::Flushed);
    }
}
