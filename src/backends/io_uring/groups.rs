//! Provided buffers: blocks of the pool that lie ready for the kernel, in one group for each share and size.
//!
//! An armed receive holds no block. The kernel takes one from the group's ring when bytes have come, and the completion
//! says which; that block then goes up with its event.
//!
//! Rules:
//! - A group holds no more blocks than there are receives that could use them, and at most an eighth of the pool.
//! - A block in a ring belongs to the kernel until a completion names it or the ring is gone.

use std::alloc::Layout;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use ::io_uring::types::BufRingEntry;
use ::io_uring::{IoUring, cqueue};

use super::super::{Size, Sock};
use crate::buffers::block::{Block, Census, Pool, Share};

/// Groups: two shares of two sizes.
pub(super) const GROUPS: usize = 4;
/// Small blocks in a group at most: as many receives can complete in one turn without a second try.
const SMALL_DEPTH: usize = 256;
/// Large blocks in a group at most.
const LARGE_DEPTH: usize = 8;
/// Rings lie on pages of their own, as io_uring_register(2) demands.
const PAGE: usize = 4096;

/// The number of the group for that share and size.
pub(super) fn number(share: Share, size: Size) -> usize {
    (share as usize) * 2 + size as usize
}

/// One ring of provided buffers.
pub(super) struct Group {
    memory: NonNull<BufRingEntry>,
    layout: Layout,
    entries: u16,
    /// Blocks by buffer id.
    blocks: Vec<Option<Block>>,
    /// Buffer ids that name no block.
    unused: Vec<u16>,
    /// Where the next block goes; the kernel reads up to here.
    tail: u16,
    depth: usize,
    share: Share,
    size: Size,
    /// Receives armed on this group.
    pub(super) armed: usize,
    /// Sockets whose receive found no block.
    pub(super) parked: Vec<Sock>,
}

impl Group {
    /// Registers an empty ring with the kernel.
    pub(super) fn new(ring: &IoUring, pool: &Pool, number: usize) -> io::Result<Group> {
        let share = if number < 2 { Share::Client } else { Share::Worker };
        let size = if number.is_multiple_of(2) { Size::Small } else { Size::Large };
        let most = if size == Size::Small { SMALL_DEPTH } else { LARGE_DEPTH };
        let depth = (pool.total(size) / 8).clamp(1, most);
        let entries = depth.next_power_of_two() as u16;
        let bytes = usize::from(entries) * size_of::<BufRingEntry>();
        let layout = Layout::from_size_align(bytes, PAGE).map_err(io::Error::other)?;
        // SAFETY: the layout's size is not zero.
        let memory = unsafe { std::alloc::alloc_zeroed(layout) };
        let memory = NonNull::new(memory.cast::<BufRingEntry>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let group = Group {
            memory,
            layout,
            entries,
            blocks: (0..entries).map(|_| None).collect(),
            unused: (0..entries).rev().collect(),
            tail: 0,
            depth,
            share,
            size,
            armed: 0,
            parked: Vec::new(),
        };
        // SAFETY: the memory holds that many entries and is freed only after the ring is gone or has quiesced.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(memory.as_ptr() as u64, entries, number as u16, 0)?;
        }
        Ok(group)
    }

    /// Blocks that lie ready.
    pub(super) fn ready(&self) -> usize {
        usize::from(self.entries) - self.unused.len()
    }

    /// How many long transfers may be received in one turn: so that blocks are left for those who want little.
    pub(super) fn most_bulk(&self) -> usize {
        self.depth.div_ceil(2)
    }

    /// Counts the blocks in the ring.
    pub(super) fn count_blocks(&self, census: &mut Census) {
        self.blocks.iter().flatten().for_each(|block| census.count(block));
    }

    /// Tops the ring up from the pool, last freed first.
    pub(super) fn refill(&mut self, pool: &Pool) {
        let wanted = self.depth.min(self.armed + self.parked.len());
        let before = self.tail;
        while self.ready() < wanted {
            let Some(block) = pool.take(self.size, self.share) else { break };
            self.put(block);
        }
        if self.tail != before {
            // SAFETY: the first entry is part of the initialised ring; its last two bytes are the ring's tail, which the
            // kernel reads with acquire and nobody else writes.
            let tail = unsafe { &*BufRingEntry::tail(self.memory.as_ptr()).cast::<AtomicU16>() };
            tail.store(self.tail, Ordering::Release);
        }
    }

    /// Writes the block into the next entry; the kernel sees it once the tail is stored.
    fn put(&mut self, mut block: Block) {
        let id = self.unused.pop().expect("a ring has an id for each of its entries");
        let (place, room) = block.spare();
        let index = usize::from(self.tail & (self.entries - 1));
        // SAFETY: the index lies within the ring. The entry is not the kernel's: at most `entries` blocks are ready. The
        // setters leave the tail alone, which shares the first entry's bytes.
        unsafe {
            let entry = &mut *self.memory.as_ptr().add(index);
            entry.set_addr(place as u64);
            entry.set_len(room as u32);
            entry.set_bid(id);
        }
        self.blocks[usize::from(id)] = Some(block);
        self.tail = self.tail.wrapping_add(1);
    }

    /// The block that a completion with these flags has taken from the ring.
    pub(super) fn take(&mut self, flags: u32) -> Option<Block> {
        let id = cqueue::buffer_select(flags)?;
        let block = self.blocks.get_mut(usize::from(id))?.take();
        debug_assert!(block.is_some(), "the kernel names a buffer that it was not given");
        if block.is_some() {
            self.unused.push(id);
        }
        block
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout in `new`; the owner drops groups only once the kernel is done with them.
        unsafe { std::alloc::dealloc(self.memory.as_ptr().cast(), self.layout) };
    }
}
