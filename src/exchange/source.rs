//! Where an answer's bytes come from: pulled while its stream has room, left alone while it has none.
//!
//! So that a slow reader does not hold a worker, an answer is taken into memory up to `response_buffer` for one client, and up to
//! `buffer_bytes` for all. Beyond the first, its source goes on once half of what waited has left; beyond the second, once memory
//! comes back, whoever gave it back (`event_loop/memory.rs`), or once its own client has taken everything. Where there is a spool, an answer
//! goes on into that instead (`event_loop/spool.rs`).

use std::sync::Arc;

use crate::apps::Served;
use crate::backends::{Backend, HIGH_MARK, Sock};
use crate::buffers::block::SMALL;
use crate::buffers::slots::Key;
use crate::event_loop::{Loop, Sending};
use crate::http::reader::Reader;

use super::{Ending, Hold, Phase};

/// What feeds an answer.
#[derive(Debug, Default)]
pub(crate) enum Source {
    /// Nothing yet, or no more.
    #[default]
    None,
    /// A worker's connection, read as the stream has room.
    Worker(Sock),
    /// Bytes of our own, from that place on.
    Own(Arc<[u8]>, usize),
    /// A file.
    File(Box<Sending>),
    /// Not known before the body of the request is whole, which is published in that hub.
    Notice(Arc<Served>),
}

impl Source {
    /// The worker's connection, or [`Key::NONE`].
    pub fn link(&self) -> Sock {
        if let Source::Worker(link) = self { *link } else { Key::NONE }
    }
}

impl<B: Backend> Loop<B> {
    /// Has the source bring more, unless so much waits for the client that it must wait, too.
    pub fn pull(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        debug_assert!(exchange.phase == Phase::Relaying, "only an answer's body is pulled");
        let (connection, was) = (exchange.stream.connection, exchange.answer.hold);
        if exchange.answer.spool.is_some() {
            return self.pull_spool(key);
        }
        // Files need not be taken out of anybody's way, and behind a whole answer nothing waits.
        let is_whole = matches!(exchange.source, Source::None);
        let is_short = is_whole || matches!(exchange.source, Source::File(_));
        let most = if is_short { HIGH_MARK } else { exchange.app.settings.buffers.response.max(HIGH_MARK) };
        let unsent = self.unsent(connection);
        let hold = if unsent > if was == Hold::Client { most / 2 } else { most } {
            Hold::Client
        } else if unsent > 0 && !is_whole && !self.memory.has_room() {
            Hold::Memory
        } else {
            Hold::Not
        };
        if hold != Hold::Not && self.begin_spool(key, hold) {
            return self.pull_spool(key);
        }
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        exchange.answer.hold = hold;
        if hold != Hold::Not {
            self.backend.await_room(connection);
            if hold == Hold::Memory {
                self.starve(key);
            }
            return;
        }
        if was != Hold::Not {
            // The worker was held up for our own sake or the client's: it is waited for from now on.
            self.heard(key);
        }
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        match &exchange.source {
            Source::Worker(_) => self.receive_answer(key),
            Source::Own(..) => self.pull_own(key),
            Source::File(_) => self.pull_file(key),
            Source::None => self.finish(key, Ending::Answered { surplus: false }),
            Source::Notice(_) => {}
        }
    }

    /// Receives more of an answer from its worker.
    #[inline]
    pub fn receive_answer(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        let left = match exchange.answer.reader {
            // What is compressed comes in small pieces, so that nobody waits long for another's.
            _ if exchange.answer.coded.is_some() => 0,
            Reader::Length(left) => left,
            _ if exchange.answer.long => u64::MAX,
            _ => 0,
        };
        let size = self.memory.size(left > SMALL as u64);
        self.backend.recv(exchange.link(), size);
    }

    /// The client has taken some of what waited for it.
    pub fn answer_drained(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        match exchange.phase {
            Phase::Tunnel { .. } => self.continue_tunnel(key),
            Phase::Relaying => self.pull(key),
            _ => {}
        }
    }
}
