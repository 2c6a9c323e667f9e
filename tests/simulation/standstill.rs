//! What must hold whenever nobody can move before time does: everything that was to be sent was offered to the network, and every
//! event was heard, so that whatever is held then is held for somebody who waits.

use std::time::{Duration, Instant};

use production_server::backends::Size;
use production_server::backends::simulated::Simulated;
use production_server::buffers::block::{Budget, Pool, SMALL};
use production_server::event_loop::RESERVED_SHARE;
use production_server::reactor::Reactor;

/// How long an answer may stay paused although the budget has room: it goes on by being told, and not because a timer looks.
const PAUSED: Duration = Duration::from_millis(100);

/// What was seen at the standstills of a run.
#[derive(Default)]
pub struct Standstill {
    /// Since when answers are paused although there is room.
    paused_since: Option<Instant>,
    /// The most bytes that were charged beyond the budget's limit.
    pub overdraft: usize,
}

impl Standstill {
    /// Looks at a loop.
    pub fn check(pool: &Pool, reactor: &Reactor<Simulated>) {
        for size in [Size::Small, Size::Large] {
            let (out, total) = (pool.total(size) - pool.free(size), pool.total(size));
            // One small block is the loop's own, to write heads in.
            let own = usize::from(size == Size::Small);
            assert!(
                out <= total / 4 + own,
                "{out} of {total} {size:?} blocks wait for somebody: {:?}",
                reactor.holdings()
            );
        }
    }

    /// Looks at what all loops share; `paused` answers wait for memory.
    pub fn check_budget(&mut self, budget: &Budget, paused: usize, now: Instant) {
        self.overdraft = self.overdraft.max(budget.used().saturating_sub(budget.limit()));
        if paused == 0 || !budget.fits(SMALL + budget.limit() / RESERVED_SHARE) {
            self.paused_since = None;
            return;
        }
        let since = *self.paused_since.get_or_insert(now);
        let (used, limit) = (budget.used(), budget.limit());
        assert!(now < since + PAUSED, "{paused} answers stay paused although only {used} of {limit} bytes are used");
    }
}
