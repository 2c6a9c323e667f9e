//! Memory of a loop: blocks, outboxes, slots and the timing wheel; and the search through it. No clock, no thread, and of descriptors only files, of which a
//! block takes what is in memory already.

pub mod block;
pub mod outbox;
pub(crate) mod scan;
pub mod slots;
pub mod wheel;
