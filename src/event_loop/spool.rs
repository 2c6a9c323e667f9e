//! Answers that go on into the spool: where memory ends for one whose client is behind, the rest waits in a file, so that its worker is free
//! at its last byte.
//!
//! The spool stands between the source and the stream: what comes from the worker has been read, checked and framed for the client before it
//! is put into the queue, and leaves it for the stream in the same order, once the client has taken what waited in memory. When nothing waits
//! in the queue any more, there is memory again, and the worker has more to say, its bytes pass by it.
//!
//! | what happens | what is done |
//! |---|---|
//! | others have all that may be gathered for the disk | the worker waits until they are written, and not for the client |
//! | no room on the disk, or it fails | the worker waits for the client, as without a spool; counted, and said seldom |
//! | the worker's answer is whole | its permit goes back at once; the exchange ends when the client has the rest |
//! | the worker's answer breaks | it is cut at once, for the client, too |
//! | the client leaves | its file is closed |
//! | the file cannot be read | the answer is cut |

use std::fmt::Display;

use crate::backends::{Backend, HIGH_MARK, Sock};
use crate::buffers::slots::Key;
use crate::exchange::{Ending, Exchange, Hold, Phase, Source};
use crate::helpers::Kind;
use crate::log::Level;
use crate::mailbox::Message;
use crate::spool::{Done, Front, Job, Queue, Told, Way};

use super::Loop;
use super::compress::FAILED;

/// Why an answer is not in the spool that would have gone on there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Unspooled {
    /// It would not have, so far.
    #[default]
    No,
    /// There was no room. It is tried again as its client takes some, as memory comes back, and now and then while it waits for that.
    ForNow,
    /// There was no room for what had come of it, which is more than one may have, or the disk has failed.
    ForGood,
}

impl Exchange {
    /// Whether anything of it is in the spool.
    #[inline]
    pub fn has_spools(&self) -> bool {
        self.answer.spool.is_some() || self.request.spool.is_some()
    }

    /// Whether its answer is whole, and only its client is waited for, who is to take the rest of it.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Relaying && matches!(self.source, Source::None)
    }
}

impl<B: Backend> Loop<B> {
    /// Whether an answer that would have to wait, and for what, goes on into the spool instead.
    pub fn begin_spool(&mut self, key: Key, hold: Hold) -> bool {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return false };
        let limit = exchange.app.server.stores.spool_bytes;
        let Some(client) = self.table.client(exchange.stream.connection) else { return false };
        // For the next turn whoever keeps up may well wait, too; and one that has begun to wait for its client goes on when that has taken half.
        let starts = if hold == Hold::Memory { client.behind } else { exchange.answer.hold != Hold::Client };
        if !starts {
            return false;
        }
        // What goes on for as long as somebody listens is never held back; and who still sends is to be read from, which ends with the exchange.
        let may = limit > 0 && !exchange.answer.stream && exchange.is_uploaded();
        if !may || !matches!(exchange.source, Source::Worker(_)) {
            return false;
        }
        if exchange.answer.unspooled == Unspooled::ForGood {
            return false;
        }
        if let Some(queue) = Queue::begin(&self.shared.spools, self.memory.pool.budget(), limit) {
            exchange.answer.spool = Some(Box::new(queue));
            self.count().spooled.add(1);
            return true;
        }
        if std::mem::replace(&mut exchange.answer.unspooled, Unspooled::ForNow) == Unspooled::No {
            self.refuse_spool(USED_UP);
        }
        false
    }

    /// The client of an exchange does not keep up: what waits for memory need not.
    pub fn client_fell_behind(&mut self, sock: Sock) {
        let Some(key) = self.table.client(sock).map(|client| client.exchange) else { return };
        if self.exchanges.lookup(key).is_some_and(|exchange| exchange.answer.hold == Hold::Memory) {
            self.answer_drained(key);
        }
    }

    /// There is no room in the spool for what would go there.
    pub fn refuse_spool(&self, reason: &str) {
        self.count().spool_refused.add(1);
        let fields: [(&str, &dyn Display); 1] = [("reason", &reason)];
        let message = "what waits for a slow client is not spooled, and holds its worker";
        self.shared.log.seldom(Level::Warn, message, &fields);
    }

    /// Has an answer's queue go on at both of its ends, unless it is in doubt whether the answer is whole (`verdict.rs`).
    pub fn pull_spool(&mut self, key: Key) {
        if self.exchanges.lookup(key).is_none_or(|exchange| exchange.phase != Phase::Relaying) {
            return;
        }
        self.drain_spool(key);
        self.fill_spool(key);
    }

    /// Gives the stream what it has room for.
    fn drain_spool(&mut self, key: Key) {
        loop {
            let Some(exchange) = self.exchanges.lookup(key) else { return };
            let (connection, ended) = (exchange.stream.connection, exchange.link() == Key::NONE);
            let unsent = self.unsent(connection);
            let stalls = unsent > HIGH_MARK || (unsent > 0 && !self.memory.has_room());
            let most = self.memory.size(true).bytes();
            let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
            let Some(queue) = &mut exchange.answer.spool else { return };
            if ended {
                exchange.answer.hold = if stalls { Hold::Client } else { Hold::Not };
            }
            if stalls {
                return self.backend.await_room(connection);
            }
            match queue.front(most) {
                Front::Busy => return,
                Front::Memory(piece) => {
                    let block = self.memory.pool.heap(&piece);
                    self.send(connection, block.into());
                }
                Front::File(job) => return self.ask_spool(key, Way::Answer, job),
                Front::Nothing if !ended && !self.memory.has_room() => return,
                Front::Nothing => {
                    self.close_spool(key);
                    return self.pull(key);
                }
            }
        }
    }

    /// Has what waits in memory written, and takes more from the worker.
    fn fill_spool(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let Some(queue) = &mut exchange.answer.spool else { return };
        let job = queue.write(&exchange.app.server, exchange.source.link() == Key::NONE);
        let in_memory = queue.is_in_memory();
        let mut waits_for_client = queue.is_full();
        match job {
            Some(Ok(job)) => self.ask_spool(key, Way::Answer, job),
            Some(Err(no_room)) => {
                waits_for_client = true;
                if no_room.first {
                    self.refuse_spool(USED_UP);
                }
                if in_memory {
                    return self.leave_spool(key);
                }
            }
            None => {}
        }
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let Some(queue) = &mut exchange.answer.spool else { return };
        if exchange.source.link() == Key::NONE {
            return;
        }
        let hold = match queue.takes_more() {
            true => Hold::Not,
            // What waits here is taken by the client, and then this is looked at again. With nothing here it would not be.
            false if waits_for_client && !queue.is_empty() => Hold::Client,
            false => Hold::Memory,
        };
        let was = std::mem::replace(&mut exchange.answer.hold, hold);
        match hold {
            Hold::Not if was == Hold::Not => self.receive_answer(key),
            Hold::Not => {
                self.heard(key);
                self.receive_answer(key);
            }
            _ => self.rearm(key),
        }
    }

    /// Has a helper do what one of an exchange's queues is to have done.
    pub fn ask_spool(&mut self, key: Key, way: Way, job: Job) {
        let message = move |done| Message::Spooled(key, way, done);
        if !self.shared.ask_helper((self.index, &self.counters), Kind::Spools, move || job.run(), message) {
            self.fail(key, 503, UNREADABLE);
        }
    }

    /// A helper has written or read a piece, or could not; `None`: it has panicked.
    pub fn spooled(&mut self, key: Key, way: Way, done: Option<Done>) {
        match way {
            Way::Answer => self.answer_spooled(key, done),
            Way::Request => self.body_spooled(key, done),
        }
    }

    fn answer_spooled(&mut self, key: Key, done: Option<Done>) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let connection = exchange.stream.connection;
        let Some(queue) = &mut exchange.answer.spool else { return };
        let told = queue.told(done);
        let in_memory = queue.is_in_memory();
        match told {
            Ok(Told::Nothing) => {}
            Ok(Told::Bytes(piece)) => {
                let block = self.memory.pool.heap(&piece);
                self.send(connection, block.into());
            }
            Ok(Told::Full(error)) => {
                self.refuse_spool(&error.to_string());
                if in_memory {
                    return self.leave_spool(key);
                }
            }
            Err(_) => return self.fail(key, 500, UNREADABLE),
        }
        self.pull_spool(key);
    }

    /// Nothing of an answer is in the file, and nothing will be: it goes on without.
    fn leave_spool(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let (connection, ended) = (exchange.stream.connection, exchange.link() == Key::NONE);
        let Some(queue) = &mut exchange.answer.spool else { return };
        let piece = queue.take_tail();
        (exchange.answer.hold, exchange.answer.unspooled) = (Hold::Client, Unspooled::ForGood);
        let block = self.memory.pool.heap(&piece);
        self.send(connection, block.into());
        self.close_spool(key);
        if ended { self.pull(key) } else { self.backend.await_room(connection) }
    }

    /// The worker's answer is whole; `surplus`: more bytes came behind it.
    pub fn answer_whole(&mut self, key: Key, surplus: bool) {
        if !self.end_coding(key) {
            return self.fail(key, FAILED.status, FAILED.reason);
        }
        if !self.outlasts_worker(key) {
            return self.finish(key, Ending::Answered { surplus });
        }
        self.keep_worker(key, surplus);
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.source = Source::None;
        exchange.attempt.seat = None;
        (exchange.answer.stream_hold, exchange.answer.reuse.keeps) = (None, false);
        // Nobody wants what is left of its request.
        self.close_spooled_body(key);
        self.pull(key);
    }

    /// Whether so much of a whole answer waits for its client, in memory or in a file, that its exchange goes on without the worker until that
    /// has taken it: only then is known what has come of it. Who still sends is to be read from, which ends with the exchange.
    fn outlasts_worker(&mut self, key: Key) -> bool {
        let Some(exchange) = self.exchanges.lookup(key) else { return false };
        let (is_long, connection) = (exchange.answer.bytes > HIGH_MARK as u64, exchange.stream.connection);
        exchange.answer.spool.is_some() || (is_long && exchange.is_uploaded() && self.unsent(connection) > HIGH_MARK)
    }

    /// Forgets an answer's queue. Its file is closed by a helper, which may take as long as giving its blocks back does.
    #[cold]
    pub fn close_spool(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        let Some(queue) = exchange.answer.spool.take() else { return };
        // They have not left.
        exchange.answer.bytes = exchange.answer.bytes.saturating_sub(queue.data());
        self.close_queue(*queue);
    }

    /// Has a queue's file closed, if it has one.
    pub fn close_queue(&self, queue: Queue) {
        if let Some(store) = queue.into_store() {
            self.shared.have_done(&self.counters, Kind::Spools, move || drop(store), |_| ());
        }
    }
}

pub(super) const USED_UP: &str = "spool_bytes is used up";
const UNREADABLE: &str = "what was spooled cannot be read";
