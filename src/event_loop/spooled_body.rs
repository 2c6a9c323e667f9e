//! Request bodies in the spool: what goes beyond `request_buffer` waits in a file until it is whole, and only then a worker is asked for. So a
//! slow upload holds nobody, and a request can be sent again as one that is in memory can.
//!
//! | what happens | what is done |
//! |---|---|
//! | no room on the disk, or it fails, before the body is whole | a worker is asked for; it gets what is here, and the rest streams |
//! | the worker is lost before its answer | it is read anew for the next one |
//! | the answer begins before the body has left | what the worker still wants of it goes on beside the answer |
//! | the file cannot be read | the request fails |

use crate::backends::{Backend, Sock};
use crate::buffers::slots::Key;
use crate::config::Buffering;
use crate::exchange::{Pace, Phase, Request, Upload};
use crate::http::body::last_chunk;
use crate::spool::{Done, Front, PIECE, Queue, Told, Way};

use super::Loop;
use super::spool::USED_UP;

/// A request's body in the spool.
pub(crate) struct SpooledBody {
    queue: Queue,
    /// It is on its way to a worker.
    leaves: bool,
    /// The client waits for the disk.
    stalls: bool,
}

impl SpooledBody {
    /// Puts a run of it behind the others.
    pub fn push(&mut self, data: &[u8]) {
        self.queue.push(data);
    }

    /// Whether its worker waits for the disk.
    pub fn is_read(&self) -> bool {
        self.leaves && self.queue.is_read()
    }

    /// Whether the client waits for the disk.
    pub fn stalls(&self) -> bool {
        self.stalls
    }
}

impl Request {
    /// Whether its body leaves in chunks for the worker, once its head has.
    pub fn leaves_chunked(&self) -> bool {
        self.open && (self.upload != Upload::Whole || self.trailers.is_some())
    }

    /// Whether all that was gathered of it in the spool has left.
    pub fn has_left(&self) -> bool {
        self.spool.as_ref().is_none_or(|body| !body.leaves && body.queue.is_empty())
    }
}

impl<B: Backend> Loop<B> {
    /// Whether a body that is larger than memory is to be collected in the spool; its length, where that is known.
    pub fn begin_spooled_body(&mut self, key: Key, length: Option<u64>) -> bool {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return false };
        let limit = exchange.app.server.stores.spool_bytes;
        if limit == 0 || exchange.app.settings.buffers.larger != Buffering::Disk {
            return false;
        }
        if !self.shared.spools.has_room_for(length.unwrap_or(PIECE as u64), limit) {
            self.refuse_spool(USED_UP);
            return false;
        }
        let mut queue = Queue::keeping(&self.shared.spools, self.memory.pool.budget());
        std::mem::take(&mut exchange.request.body).iter().for_each(|run| queue.push(run));
        exchange.request.spool = Some(Box::new(SpooledBody { queue, leaves: false, stalls: false }));
        self.count().spooled.add(1);
        true
    }

    /// Has what has come of a body written, and takes more from the client; whether it is one that is in the spool.
    #[inline]
    pub fn collect_spooled(&mut self, key: Key) -> bool {
        let is_spooled = self.exchanges.lookup(key).is_some_and(|exchange| exchange.request.spool.is_some());
        if is_spooled {
            self.gather_spooled(key);
        }
        is_spooled
    }

    /// The same of one that is there.
    pub fn gather_spooled(&mut self, key: Key) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let Some(body) = &mut exchange.request.spool else { return };
        match body.queue.write(&exchange.app.server, exchange.request.upload != Upload::Collecting) {
            Some(Ok(job)) => self.ask_spool(key, Way::Request, job),
            Some(Err(no_room)) => {
                if no_room.first {
                    self.refuse_spool(USED_UP);
                }
                return self.stream_spooled(key);
            }
            None => {}
        }
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if exchange.request.upload != Upload::Collecting {
            return;
        }
        let Some(body) = &mut exchange.request.spool else { return };
        let (stalled, stream) = (body.stalls, exchange.stream);
        body.stalls = !body.queue.takes_more();
        if body.stalls {
            return self.rearm(key);
        }
        if stalled {
            // Its pace was ours, and not its own.
            exchange.request.pace = Pace::new(now, exchange.request.bytes);
        }
        self.rearm(key);
        self.stream_want(stream);
    }

    /// The disk takes no more of a body: if there is more to come, it streams behind what is here.
    fn stream_spooled(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if exchange.request.upload != Upload::Collecting {
            return;
        }
        let Some(body) = &mut exchange.request.spool else { return };
        if body.queue.is_in_memory() {
            let piece = body.queue.take_tail();
            exchange.request.body = vec![self.memory.pool.heap(&piece)];
            self.close_spooled_body(key);
        }
        self.hold_body(key);
    }

    /// A body in the spool begins to leave for its worker, from its begin on; whether there is one.
    #[inline]
    pub fn send_spooled(&mut self, key: Key) -> bool {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return false };
        let Some(body) = &mut exchange.request.spool else { return false };
        body.queue.rewind();
        body.leaves = true;
        if exchange.request.upload == Upload::Held {
            // It leaves before more is taken from the client.
            exchange.request.upload = Upload::Full;
        }
        self.pump_spooled(key);
        true
    }

    /// The worker has taken some of a request, whose body may be in the spool.
    #[inline]
    pub fn spooled_drained(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if exchange.request.spool.is_some() {
            self.note_move(exchange);
            self.heard(key);
            self.pump_spooled(key);
        }
    }

    /// Gives the worker what it has room for.
    pub fn pump_spooled(&mut self, key: Key) {
        loop {
            let Some(exchange) = self.exchanges.lookup(key) else { return };
            let link = exchange.link();
            if link == Key::NONE || !matches!(exchange.phase, Phase::Awaiting | Phase::Relaying) {
                return;
            }
            if self.link_is_full(link) {
                return self.backend.await_room(link);
            }
            let most = self.memory.size(true).bytes();
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
            let chunked = exchange.request.leaves_chunked();
            let Some(body) = exchange.request.spool.as_mut().filter(|body| body.leaves) else { return };
            match body.queue.front(most) {
                Front::Busy => return,
                Front::Memory(piece) => {
                    let block = self.memory.pool.heap(&piece);
                    self.send_run(link, block, chunked);
                }
                Front::File(job) => return self.ask_spool(key, Way::Request, job),
                Front::Nothing => {
                    body.leaves = false;
                    return self.spooled_left(key, link, chunked);
                }
            }
        }
    }

    /// All that was spooled of a body has left: that was its end, or the rest streams.
    fn spooled_left(&mut self, key: Key, link: Sock, chunked: bool) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if exchange.request.upload != Upload::Whole {
            self.close_spooled_body(key);
            return self.continue_upload(key);
        }
        exchange.times.given = now;
        let begun = exchange.phase == Phase::Relaying;
        if chunked {
            let trailers = exchange.request.trailers.as_deref().unwrap_or_default();
            self.backend.send(link, last_chunk(&mut self.memory.scratch, trailers));
        }
        self.heard(key);
        if begun {
            self.close_spooled_body(key);
        }
    }

    /// A helper has written or read a piece of a request's body, or could not; `None`: it has panicked.
    pub fn body_spooled(&mut self, key: Key, done: Option<Done>) {
        let now = self.time.nanos();
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let (link, chunked) = (exchange.link(), exchange.request.leaves_chunked());
        let Some(body) = &mut exchange.request.spool else { return };
        match body.queue.told(done) {
            // The worker that it was read for is gone; for the next one it is read anew.
            Ok(Told::Bytes(_)) if link == Key::NONE => {}
            Ok(Told::Nothing) => {}
            Ok(Told::Bytes(piece)) => {
                exchange.times.given = now;
                let block = self.memory.pool.heap(&piece);
                self.send_run(link, block, chunked);
                // What the disk took is not the worker's silence.
                self.heard(key);
            }
            Ok(Told::Full(error)) => {
                self.refuse_spool(&error.to_string());
                self.stream_spooled(key);
            }
            Err(_) => return self.fail(key, 500, UNREADABLE),
        }
        self.gather_spooled(key);
        self.pump_spooled(key);
    }

    /// The answer has begun: what has left for its worker is not needed again.
    #[inline]
    pub fn forget_spooled_body(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if exchange.request.spool.is_some() && exchange.request.has_left() {
            self.close_spooled_body(key);
        }
    }

    /// Forgets a request's body in the spool.
    #[cold]
    pub fn close_spooled_body(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if let Some(body) = exchange.request.spool.take() {
            self.close_queue(body.queue);
        }
    }
}

const UNREADABLE: &str = "what was spooled of the request cannot be read";
