//! Memory of a loop: blocks, outboxes, slots and the timing wheel; and the search through it. No descriptor, no clock, no thread.

pub mod block;
pub mod outbox;
pub(crate) mod scan;
pub mod slots;
pub mod wheel;
