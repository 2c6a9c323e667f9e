//! What the readiness backend knows of one socket.

use std::os::fd::OwnedFd;

use super::system;
use crate::backends::closing::Facts;
use crate::backends::flags::Flagged;
use crate::buffers::outbox::Outbox;
use crate::kernel::unacknowledged;

/// Facts about a socket, one bit each.
pub(super) mod flag {
    /// The kernel may have input.
    pub const READABLE: u32 = 1 << 0;
    /// The kernel may take output.
    pub const WRITABLE: u32 = 1 << 1;
    /// The peer's end, an error or urgent data was announced: a short read does not say that nothing is left, and reads go on until
    /// one says so itself.
    pub const ANNOUNCED: u32 = 1 << 2;
    /// A receive is armed.
    pub const ARMED: u32 = 1 << 3;
    /// It is to be a large one.
    pub const LARGE: u32 = 1 << 4;
    /// In the list of those to be read, or parked.
    pub const QUEUED: u32 = 1 << 5;
    /// In the list of those to be flushed.
    pub const DIRTY: u32 = 1 << 6;
    /// The connect has not ended.
    pub const CONNECTING: u32 = 1 << 7;
    /// We connected it: its receives take the workers' share.
    pub const WORKER: u32 = 1 << 8;
    /// End or a failed receive was told.
    pub const ENDED: u32 = 1 << 9;
    /// A send failed.
    pub const SEND_FAILED: u32 = 1 << 10;
    /// The kernel has taken less than it was offered, and the outbox was not empty since: nothing in it lies in the pool.
    pub const BEHIND: u32 = 1 << 11;
    /// `finish` was called.
    pub const FINISH: u32 = 1 << 12;
    /// The sending half is shut.
    pub const SHUT: u32 = 1 << 13;
    /// `close` was called with `Flushed`, and it is not done.
    pub const CLOSING: u32 = 1 << 14;
    /// At that call, a receive was armed and `finish` not called, and nothing had come.
    pub const EXPECTS_NO_INPUT: u32 = 1 << 15;
    /// All is sent; what still comes is discarded.
    pub const LINGERING: u32 = 1 << 16;
    /// Closed; only its event is still to be told.
    pub const CLOSED: u32 = 1 << 17;
    /// A listener.
    pub const LISTENER: u32 = 1 << 18;
    /// A listener that is to be left alone.
    pub const PAUSED: u32 = 1 << 19;
    /// Registered for writability, too.
    pub const WATCHED: u32 = 1 << 20;
    /// Registered.
    pub const REGISTERED: u32 = 1 << 21;
    /// A listener of which the kernel does not tell for now.
    pub const SUSPENDED: u32 = 1 << 22;
    /// `Drain` is to follow the next progress.
    pub const AWAITS_ROOM: u32 = 1 << 23;
    /// An armed receive found no block.
    pub const PARKED: u32 = 1 << 24;
    /// The last receive filled its block: it is in the middle of a long transfer.
    pub const BULK: u32 = 1 << 25;
    /// Bytes of a file follow what is queued.
    pub const FOLLOWED: u32 = 1 << 26;
}

/// One socket or listener. Kept small: an idle connection is this and the kernel's part.
pub(super) struct Socket {
    pub(super) descriptor: Option<OwnedFd>,
    pub(super) flags: u32,
    pub(super) outbox: Outbox,
    pub(super) sent: u64,
    /// In which turn it last received.
    pub(super) turn: u32,
}

impl Socket {
    /// What a close has to know of it.
    pub(super) fn facts(&self) -> Facts {
        Facts {
            connected: !self.is(flag::CONNECTING),
            unsent: !self.outbox.is_empty(),
            send_failed: self.is(flag::SEND_FAILED),
            input_over: self.is(flag::ENDED),
            lingering: self.is(flag::LINGERING),
        }
    }

    /// Bytes that the peer has acknowledged.
    pub(super) fn acknowledged(&self) -> u64 {
        self.sent.saturating_sub(unacknowledged(system::borrow(&self.descriptor)))
    }
}

impl Flagged for Socket {
    #[inline]
    fn flags(&self) -> u32 {
        self.flags
    }

    #[inline]
    fn flags_mut(&mut self) -> &mut u32 {
        &mut self.flags
    }
}

// An idle connection is to cost little: a table of 10,000 stays below half a megabyte.
const _: () = assert!(size_of::<Socket>() <= 40);
