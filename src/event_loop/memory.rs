//! The loop's memory, and one rule: **a block of the pool never waits for a peer.**
//!
//! Where waiting begins, bytes move to heap that is charged to the budget of the process, or are not read at all:
//!
//! | who waits | where its bytes are |
//! |---|---|
//! | an outbox whose peer is behind | on the heap; the backend moves them as it tells [`Event::Full`](crate::backends::Event::Full) |
//! | a part of a head, pipelined requests | on the heap ([`Loop::keep_input`]) |
//! | a request in the queue | on the heap, or refused with 503 when the budget has no room |
//! | a request that waits for its answer, a body that comes in | in blocks while three quarters of the pool are free; else they are moved ([`Loop::make_room`]) |
//! | an answer whose client is behind while the budget is used up | in the spool (`event_loop/spool.rs`), or not read further |
//! | a tunnel or an upload whose taker is behind while the budget is used up | not read further |
//!
//! Answers that stopped because the budget was used up go on when memory comes back, the longest waiting first and each by one
//! receive at a time, whoever gave it back: this loop looks at the end of each turn, and tells the others.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backends::{Backend, Size};
use crate::buffers::block::{Block, Pool, SMALL, Scratch};
use crate::buffers::slots::Key;
use crate::exchange::{Hold, Phase, Request};
use crate::log::AccessLog;
use crate::mailbox::Message;
use crate::planted::{self, Bug};

use super::{Loop, Unspooled};

/// The part of the budget, one in so many, that answers and uploads leave to heads and waiting requests: so that readers who take
/// nothing cannot have others refused.
pub const RESERVED_SHARE: usize = 3;

/// A loop's memory.
pub(crate) struct Memory {
    pub pool: Pool,
    pub scratch: Scratch,
    /// One bit for each exchange that began to wait with blocks of the pool, by their indices. Some have ended or keep none any more, which
    /// does no harm: what they keep by now is moved as well.
    holders: Vec<u64>,
    /// There is one since these were moved last.
    holds: bool,
    /// Exchanges whose answers stopped for lack of memory, the longest waiting first.
    starved: VecDeque<Key>,
}

/// What the loops tell each other of the budget.
#[derive(Default)]
pub struct Scarcity {
    /// Some loop has answers that wait for memory.
    starved: AtomicBool,
}

impl Scarcity {
    /// Whether whoever gives memory back knows that somebody waits for it.
    pub fn is_known(&self) -> bool {
        self.starved.load(Ordering::SeqCst)
    }
}

impl Memory {
    pub fn new(pool: Pool) -> Memory {
        let scratch = Scratch::new(pool.clone());
        Memory { pool, scratch, holders: Vec::new(), holds: false, starved: VecDeque::new() }
    }

    /// Whether the budget has room for one more block of an answer or of an upload.
    pub fn has_room(&self) -> bool {
        let budget = self.pool.budget();
        budget.fits(SMALL + budget.limit() / RESERVED_SHARE)
    }

    /// Whether it has room for a request that is to wait.
    pub fn has_reserve(&self) -> bool {
        self.pool.budget().fits(SMALL)
    }

    /// Notes that an exchange keeps blocks of the pool, and is about to wait.
    #[inline]
    pub fn hold(&mut self, key: Key) {
        let (word, bit) = (key.index as usize / 64, 1 << (key.index % 64));
        if self.holders.len() <= word {
            self.holders.resize(word + 1, 0);
        }
        self.holders[word] |= bit;
        self.holds = true;
    }

    /// How many answers may go on at a time while the budget has room: each may bring a block before it is known to be stuck. Without
    /// room for a whole block, none: it would stop at once, and stand last in the list for it.
    fn places(&self) -> usize {
        if !self.has_room() {
            return 0;
        }
        let budget = self.pool.budget();
        let shared = budget.limit() - budget.limit() / RESERVED_SHARE;
        shared.saturating_sub(budget.used()).div_ceil(2 * SMALL)
    }

    /// The size of a receive: large blocks are for long transfers, while little of the budget is used. What gets stuck later is to find
    /// room where something of its size was before.
    pub fn size(&self, long: bool) -> Size {
        if long && self.pool.budget().fits(self.pool.budget().limit() / 4 * 3) { Size::Large } else { Size::Small }
    }
}

impl Request {
    /// Forgets the request's bytes: the answer has begun.
    pub fn release(&mut self, keep_head: bool) {
        if !keep_head {
            self.head = None;
        }
        // Asked first, because most requests have none, and dropping nothing is a call all the same.
        if self.body.capacity() > 0 {
            self.body = Vec::new();
        }
    }

    /// Moves what is kept of it to the heap, as it begins to wait for longer than blocks of the pool may.
    pub fn settle(&mut self, pool: &Pool) {
        self.head = self.head.take().map(|head| head.settle(pool));
        for block in &mut self.body {
            *block = block.clone().settle(pool);
        }
    }

    /// Keeps of its head only what its access line will show.
    pub fn keep_for_log(&mut self, access: &AccessLog, pool: &Pool) {
        self.head = self.head.take().map(|head| pool.heap(&access.digest(&head)));
    }

    /// What it keeps of the request's bytes.
    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.head.iter().chain(&self.body).chain(&self.trailers)
    }

    /// Whether it keeps blocks of the pool.
    pub fn keeps_blocks(&self) -> bool {
        self.blocks().any(|block| !block.on_heap())
    }
}

impl<B: Backend> Loop<B> {
    /// Notes that an answer has stopped for lack of memory.
    pub fn starve(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup(key) else { return };
        if exchange.answer.unspooled == Unspooled::ForNow {
            // Nobody tells that the spool has room again.
            self.rearm(key);
        }
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        if std::mem::replace(&mut exchange.answer.starved, true) {
            return;
        }
        self.memory.starved.push_back(key);
        self.shared.scarcity.starved.store(true, Ordering::SeqCst);
        self.count().paused_for_memory.add(1);
    }

    /// Moves what an exchange keeps of its request to the heap, as it begins to wait for longer than blocks of the pool may.
    pub fn settle_request(&mut self, key: Key) {
        let Some(exchange) = self.exchanges.lookup_mut(key) else { return };
        match exchange.phase {
            Phase::Relaying => exchange.request.keep_for_log(&self.access, &self.memory.pool),
            _ => exchange.request.settle(&self.memory.pool),
        }
    }

    /// Whether there is anything for [`Loop::make_room`] to look at.
    #[inline]
    pub fn must_make_room(&self) -> bool {
        (self.memory.holds && self.memory.pool.is_pressed()) || self.shared.scarcity.starved.load(Ordering::Relaxed)
    }

    /// At the end of a turn: those that wait move out of the way of a pool that is pressed, and memory that came back is shared out.
    #[cold]
    pub fn make_room(&mut self) {
        if self.memory.pool.is_pressed() && std::mem::take(&mut self.memory.holds) {
            self.settle_holders();
        }
        if self.shared.scarcity.starved.load(Ordering::Relaxed) {
            self.share_memory();
        }
    }

    fn settle_holders(&mut self) {
        for word in 0..self.memory.holders.len() {
            let mut bits = std::mem::take(&mut self.memory.holders[word]);
            while bits != 0 && !planted::active(Bug::WaitingBlock) {
                let key = self.exchanges.key_at(word as u32 * 64 + bits.trailing_zeros());
                key.into_iter().for_each(|key| self.settle_request(key));
                bits &= bits - 1;
            }
        }
    }

    /// The rule of memory: every block that is out lies in a send that is in flight or not tried yet, lies ready for a receive, or is
    /// kept by a request that waits while the pool is not pressed.
    #[cfg(debug_assertions)]
    pub fn check_blocks(&self) {
        let mut census = self.memory.pool.census();
        self.memory.scratch.count_block(&mut census);
        self.backend.count_blocks(&mut census);
        let sending = census.counted();
        let mut waiting: Vec<_> = self.exchanges.iter().map(|(_, exchange)| exchange).collect();
        waiting.retain(|exchange| !matches!(exchange.phase, Phase::Queued { .. } | Phase::Backlog { .. }));
        waiting.iter().flat_map(|exchange| exchange.request.blocks()).for_each(|block| census.count(block));
        debug_assert_eq!(census.missing(), 0, "a block of the pool waits for a peer");
        debug_assert!(
            census.counted() == sending || !self.memory.pool.is_pressed(),
            "requests that wait keep blocks of a pool that is pressed"
        );
    }

    /// Lets answers that stopped for lack of memory go on, and tells the other loops that there is some.
    #[cold]
    pub fn share_memory(&mut self) {
        for _ in 0..self.memory.starved.len().min(self.memory.places()) {
            let Some(key) = self.memory.starved.pop_front() else { break };
            let Some(exchange) = self.exchanges.lookup_mut(key) else { continue };
            exchange.answer.starved = false;
            if exchange.answer.hold == Hold::Memory {
                self.pull(key);
            }
        }
        let left = !self.memory.starved.is_empty();
        if !self.memory.has_room() {
            // The flag stays up, also where this loop's list is empty: whoever gives memory back is to tell the others. Another loop
            // may have taken it down and used the room up before this one came to its turn.
            if left {
                self.shared.scarcity.starved.store(true, Ordering::SeqCst);
            }
            return;
        }
        // Those that are left have their turn in the next one, which the message brings about here, too.
        if self.shared.scarcity.starved.swap(left, Ordering::SeqCst) {
            self.shared.postboxes.broadcast(|| Message::Memory);
        }
    }
}
