//! Blocks: owned pieces of a loop's receive memory, and of the heap where a block would be held too long.
//!
//! A [`Pool`] belongs to one loop and one thread. It hands out [`Block`]s of two sizes; a block goes back to its pool when
//! its last clone is dropped, last in first out, so that the memory in use stays warm in the cache. Clones and slices
//! share the memory, so that bytes are lent from a receive to a send and are never copied.
//!
//! Rules:
//! - A quarter of the small blocks is reserved for [`Share::Worker`], so that slow clients cannot starve the workers' side.
//! - Bytes that wait for somebody (a slow reader, a queue) live in heap blocks, charged with all that they cost to the one
//!   [`Budget`] of the process; [`Block::settle`] and [`super::outbox::Outboxes::settle`] move them there.
//! - The untouched part of the pool's memory costs nothing: pages are the kernel's until they are written.

use std::alloc::Layout;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::kernel;

/// Bytes of a small block: the largest head (16 KiB) with room for what follows it.
pub const SMALL: usize = 18 * 1024;
/// Bytes of a large block, for transfers known or seen to be long.
pub const LARGE: usize = 128 * 1024;
/// Bytes that a heap block costs beyond its capacity, and is charged for: its core, the allocator's header and rounding, and the
/// outbox's node that holds it.
pub const HEAP_OVERHEAD: usize = 96;
/// Runs that are kept behind each other are joined up to this size.
const JOINED_BYTES: usize = 4096;
/// Added to each block's place so that the first lines of the blocks do not fall into the same cache set.
const COLOUR: usize = 64;

/// Which size of block a receive wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// [`SMALL`] bytes: heads and small bodies.
    Small,
    /// [`LARGE`] bytes: a transfer that is known or seen to be long.
    Large,
}

impl Size {
    /// How many bytes a block of that size has room for.
    pub fn bytes(self) -> usize {
        match self {
            Size::Small => SMALL,
            Size::Large => LARGE,
        }
    }
}

/// On whose behalf a block is taken; clients leave the last quarter of the pool to workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// A client's receive.
    Client,
    /// A worker's receive, or a head that is being written.
    Worker,
}

/// The bytes that the whole process may hold on the heap for slow clients and waiting requests.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Budget> {
        Arc::new(Budget { limit, used: AtomicUsize::new(0) })
    }

    /// Bytes that may be charged.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Whether `more` bytes still fit.
    pub fn fits(&self, more: usize) -> bool {
        self.used() + more <= self.limit
    }

    /// Bytes charged now.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Takes so many bytes, whether they fit or not.
    pub(crate) fn charge(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives them back.
    pub(crate) fn credit(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Ordering::Relaxed);
        debug_assert!(before >= bytes, "budget credited more than it was charged");
    }
}

/// Bytes of the budget that are set aside, until this is dropped.
pub struct Promise {
    pool: Pool,
    bytes: usize,
}

impl Promise {
    /// How many bytes are set aside.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.pool.0.budget.credit(self.bytes);
    }
}

/// One loop's receive memory. Cloning gives another handle to the same pool.
#[derive(Clone)]
pub struct Pool(Rc<Shared>);

struct Shared {
    groups: [Group; 2],
    budget: Arc<Budget>,
}

struct Group {
    /// Never read as a slice: blocks reach into it by pointer. Kept for its drop alone.
    _memory: Box<[std::mem::MaybeUninit<u8>]>,
    cores: Box<[Core]>,
    free: RefCell<Vec<u32>>,
    /// How many of the free blocks a client's receive may not take.
    reserve: usize,
    /// With fewer free ones the pool is pressed.
    calm: usize,
}

struct Core {
    data: NonNull<u8>,
    capacity: u32,
    index: u32,
    refs: Cell<u32>,
    home: Home,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    Pool(Size),
    Heap,
}

impl Pool {
    /// Sets aside what a receive of that size may bring, so that no more of them are asked for than there will be room for.
    pub fn promise(&self, size: Size) -> Promise {
        let bytes = size.bytes();
        self.0.budget.charge(bytes);
        Promise { pool: self.clone(), bytes }
    }

    /// A pool of `small` and `large` blocks, whose heap copies are charged to `budget`.
    pub fn new(small: usize, large: usize, budget: Arc<Budget>) -> Pool {
        let groups = [Group::new(Size::Small, small), Group::new(Size::Large, large)];
        Pool(Rc::new(Shared { groups, budget }))
    }

    /// Takes a block of which nothing is filled yet, or `None` when none is left for that share.
    pub fn take(&self, size: Size, share: Share) -> Option<Block> {
        let group = self.group(size);
        let mut free = group.free.borrow_mut();
        if share == Share::Client && free.len() <= group.reserve {
            return None;
        }
        let index = free.pop()?;
        let core = &group.cores[index as usize];
        debug_assert_eq!(core.refs.get(), 0, "a free block is in use");
        core.refs.set(1);
        // The block keeps the pool alive; `Block::drop` gives this count back.
        std::mem::forget(Rc::clone(&self.0));
        Some(Block { core: NonNull::from(core), pool: Rc::as_ptr(&self.0), start: 0, len: 0 })
    }

    /// Copies `bytes` to a heap block of exactly that size, charged to the budget. The caller asks [`Budget::fits`]
    /// where refusing is possible; this never refuses.
    pub fn heap(&self, bytes: &[u8]) -> Block {
        self.heap_joined(bytes, &[])
    }

    /// Like [`Pool::heap`], for two runs of bytes put behind each other.
    pub fn heap_joined(&self, first: &[u8], second: &[u8]) -> Block {
        let mut block = self.heap_empty(first.len() + second.len());
        block.append(first);
        block.append(second);
        block
    }

    /// Bytes behind those that wait already, or as they are where none do.
    pub fn joined(&self, waiting: Option<Block>, block: Block) -> Block {
        match waiting {
            None => block,
            Some(waiting) => self.heap_joined(&waiting, &block),
        }
    }

    /// Like [`Pool::heap`], with room for at least `capacity` bytes in all, so that [`Block::append`] can put more behind them.
    pub fn heap_with_room(&self, bytes: &[u8], capacity: usize) -> Block {
        let mut block = self.heap_empty(capacity.max(bytes.len()));
        block.append(bytes);
        block
    }

    /// Puts a run of bytes that are kept behind others. Small ones are joined, each with those before it that are no larger: so bytes that
    /// come in tiny pieces cost neither an entry a byte nor copying over and over.
    pub fn append_run(&self, runs: &mut Vec<Block>, mut run: Block) {
        while let Some(last) = runs.last()
            && last.len() <= run.len()
            && last.len() + run.len() <= JOINED_BYTES
        {
            run = self.heap_joined(last, &run);
            runs.pop();
        }
        // A small one would keep a whole block.
        let small = run.len() < SMALL / 4;
        runs.push(if small { run.settle(self) } else { run });
    }

    /// A heap block of which nothing is filled yet.
    fn heap_empty(&self, capacity: usize) -> Block {
        let layout = heap_layout(capacity);
        let size = u32::try_from(capacity).expect("a heap block is below 4 GiB");
        // SAFETY: the layout's size is not zero, as it begins with a core.
        let place = NonNull::new(unsafe { std::alloc::alloc(layout) });
        let place = place.unwrap_or_else(|| std::alloc::handle_alloc_error(layout));
        // SAFETY: the bytes behind the core lie within the allocation, or one past its end when there are none.
        let data = unsafe { place.add(size_of::<Core>()) };
        let core = place.cast::<Core>();
        // SAFETY: the allocation has room for a core, is aligned for one, and is nobody else's.
        unsafe { core.write(Core { data, capacity: size, index: 0, refs: Cell::new(1), home: Home::Heap }) };
        self.0.budget.charge(capacity + HEAP_OVERHEAD);
        std::mem::forget(Rc::clone(&self.0));
        Block { core, pool: Rc::as_ptr(&self.0), start: 0, len: 0 }
    }

    /// Blocks of that size that are free now.
    pub fn free(&self, size: Size) -> usize {
        self.group(size).free.borrow().len()
    }

    /// Blocks of that size in all.
    pub fn total(&self, size: Size) -> usize {
        self.group(size).cores.len()
    }

    /// Blocks of that size that are in use now.
    pub fn out(&self, size: Size) -> usize {
        self.total(size) - self.free(size)
    }

    /// Whether more than a quarter of the blocks of a size is out.
    #[inline]
    pub fn is_pressed(&self) -> bool {
        self.0.groups.iter().any(|group| group.free.borrow().len() < group.calm)
    }

    /// Begins a check of who holds the blocks that are out.
    pub fn census(&self) -> Census {
        Census { pool: self.clone(), counted: HashSet::new() }
    }

    /// The budget to which heap blocks are charged.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.0.budget
    }

    fn group(&self, size: Size) -> &Group {
        &self.0.groups[size as usize]
    }
}

impl Group {
    fn new(size: Size, count: usize) -> Group {
        let capacity = size.bytes();
        let stride = capacity + COLOUR;
        // Uninitialised on purpose: a page that no receive has touched is not resident.
        let mut memory = Box::<[u8]>::new_uninit_slice(count * stride);
        let base = memory.as_mut_ptr().cast::<u8>();
        let cores = (0..count)
            .map(|index| Core {
                // SAFETY: index * stride lies within the allocation of count * stride bytes, which is not null.
                data: unsafe { NonNull::new_unchecked(base.add(index * stride)) },
                capacity: capacity as u32,
                index: index as u32,
                refs: Cell::new(0),
                home: Home::Pool(size),
            })
            .collect();
        let free = RefCell::new((0..count as u32).rev().collect());
        Group { _memory: memory, cores, free, reserve: count / 4, calm: count - count / 4 }
    }
}

/// The memory of a heap block: its core, and behind it room for `capacity` bytes.
fn heap_layout(capacity: usize) -> Layout {
    let size = capacity.checked_add(size_of::<Core>());
    let layout = size.and_then(|size| Layout::from_size_align(size, align_of::<Core>()).ok());
    layout.expect("a heap block is below 4 GiB")
}

/// An owned, shareable run of bytes in a pool's block or on the heap. Not `Send`: it belongs to its loop.
pub struct Block {
    core: NonNull<Core>,
    pool: *const Shared,
    start: u32,
    len: u32,
}

impl Block {
    /// A block with the bytes of `range` of this one, sharing its memory.
    ///
    /// # Panics
    /// When the range lies outside of this block.
    pub fn slice(&self, range: Range<usize>) -> Block {
        assert!(range.start <= range.end && range.end <= self.len as usize, "slice outside of its block");
        let mut slice = self.clone();
        slice.start += range.start as u32;
        slice.len = (range.end - range.start) as u32;
        slice
    }

    /// Drops the first `count` bytes from view.
    ///
    /// # Panics
    /// When the block holds fewer.
    pub fn advance(&mut self, count: usize) {
        assert!(count <= self.len as usize, "advance beyond the block's end");
        self.start += count as u32;
        self.len -= count as u32;
    }

    /// Keeps the first `len` bytes in view.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len as u32);
    }

    /// Takes the bytes of `next` into view when they follow this view in the same memory; whether they did.
    pub fn absorb(&mut self, next: &Block) -> bool {
        let follows = self.core == next.core && self.start + self.len == next.start;
        if follows {
            self.len += next.len;
        }
        follows
    }

    /// Where a receive may write, as pointer and length: the memory from the end of the view to the end of the block.
    ///
    /// # Panics
    /// When the block is shared.
    pub fn spare(&mut self) -> (*mut u8, usize) {
        assert_eq!(self.core().refs.get(), 1, "a shared block cannot be written");
        let end = (self.start + self.len) as usize;
        // SAFETY: end is at most the capacity, so the pointer stays within the block's memory or one past its end.
        (unsafe { self.core().data.as_ptr().add(end) }, self.core().capacity as usize - end)
    }

    /// Takes `count` more bytes into view, which a receive has written at [`Block::spare`].
    ///
    /// # Safety
    /// These bytes must have been initialised.
    pub unsafe fn filled(&mut self, count: usize) {
        assert!(self.start as usize + self.len as usize + count <= self.core().capacity as usize);
        self.len += count as u32;
    }

    /// Copies as many of `bytes` behind those in view as there is room for, and returns how many. Only a heap block that nobody
    /// else has takes any. What is in view stays where it is, so that the kernel may be reading it meanwhile.
    pub fn append(&mut self, bytes: &[u8]) -> usize {
        if !self.on_heap() || self.core().refs.get() != 1 {
            return 0;
        }
        let (place, room) = self.spare();
        let count = room.min(bytes.len());
        // SAFETY: `place` is good for `room` bytes, which are in nobody's view, so that `bytes` lies elsewhere; they are initialised
        // by the copy.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, count);
            self.filled(count);
        }
        count
    }

    /// Puts behind those in view what the kernel has in memory of a file from a place of it on, at most so many bytes: how many.
    ///
    /// # Errors
    /// As [`kernel::read_now`] says.
    ///
    /// # Panics
    /// When the block is shared.
    pub fn read(&mut self, file: &File, at: u64, most: usize) -> io::Result<usize> {
        let (place, room) = self.spare();
        // SAFETY: `place` is good for `room` bytes, which are in nobody's view, and which are lent as memory that may be uninitialised.
        let room = unsafe { std::slice::from_raw_parts_mut(place.cast(), room.min(most)) };
        let count = kernel::read_now(file, at, room)?;
        // SAFETY: the kernel has written so many bytes there.
        unsafe { self.filled(count) };
        Ok(count)
    }

    /// The bytes in view, to be changed where they are, unless somebody shares them.
    pub fn unshared(&mut self) -> Option<&mut [u8]> {
        if self.core().refs.get() != 1 {
            return None;
        }
        // SAFETY: as in `deref`; and no other view of these bytes exists, for there is one reference, and it is borrowed exclusively.
        Some(unsafe {
            std::slice::from_raw_parts_mut(self.core().data.as_ptr().add(self.start as usize), self.len as usize)
        })
    }

    /// Whether the block lies on the heap.
    pub fn on_heap(&self) -> bool {
        self.core().home == Home::Heap
    }

    /// The same bytes in a form that may wait: a pool's block becomes a heap block of exact size.
    pub fn settle(self, pool: &Pool) -> Block {
        if self.on_heap() { self } else { pool.heap(&self) }
    }

    fn core(&self) -> &Core {
        // SAFETY: a core lives as long as its references are counted; this block is one of them.
        unsafe { self.core.as_ref() }
    }
}

impl Deref for Block {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: start + len is within the capacity, and bytes in view were initialised by whoever called `filled`.
        // Nobody writes to bytes in view: `spare` begins behind them and demands that the block is not shared.
        unsafe { std::slice::from_raw_parts(self.core().data.as_ptr().add(self.start as usize), self.len as usize) }
    }
}

impl Clone for Block {
    fn clone(&self) -> Block {
        let refs = &self.core().refs;
        refs.set(refs.get() + 1);
        Block { core: self.core, pool: self.pool, start: self.start, len: self.len }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let core = self.core();
        let left = core.refs.get() - 1;
        core.refs.set(left);
        if left > 0 {
            return;
        }
        // SAFETY: the first owner forgot one count of the pool; the last one takes it back here, exactly once.
        let shared = unsafe { Rc::from_raw(self.pool) };
        match core.home {
            Home::Pool(size) => shared.groups[size as usize].free.borrow_mut().push(core.index),
            Home::Heap => {
                let capacity = core.capacity as usize;
                shared.budget.credit(capacity + HEAP_OVERHEAD);
                // SAFETY: allocated in `heap_empty` with this layout, and no reference to it is left.
                unsafe { std::alloc::dealloc(self.core.as_ptr().cast(), heap_layout(capacity)) };
            }
        }
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Block").field("len", &self.len).field("heap", &self.on_heap()).finish()
    }
}

/// A count of the blocks of a pool by their holders, for checks that each which is out is held by somebody who may. Several views of
/// one block count once.
pub struct Census {
    pool: Pool,
    counted: HashSet<NonNull<Core>>,
}

impl Census {
    /// Counts a block in somebody's hands. One on the heap, or of another pool, is no concern of this pool's.
    pub fn count(&mut self, block: &Block) {
        if !block.on_heap() && std::ptr::eq(block.pool, Rc::as_ptr(&self.pool.0)) {
            self.counted.insert(block.core);
        }
    }

    /// How many blocks were counted so far.
    pub fn counted(&self) -> usize {
        self.counted.len()
    }

    /// How many blocks are out of which nobody was counted as the holder.
    pub fn missing(&self) -> usize {
        self.pool.out(Size::Small) + self.pool.out(Size::Large) - self.counted.len()
    }
}

/// Where a loop writes heads and other small output: behind each other in one block, each handed out as a slice.
///
/// A head of 200 bytes in a block of its own would keep 18 KiB from others and touch a new page for each answer. What of
/// it the kernel does not take is settled on the heap by the outbox, so that a slow reader pins nothing.
pub struct Scratch {
    pool: Pool,
    current: Option<Block>,
    used: usize,
}

impl Scratch {
    /// An empty scratch that takes its blocks from `pool`.
    pub fn new(pool: Pool) -> Scratch {
        Scratch { pool, current: None, used: 0 }
    }

    /// Lets `fill` write at most `most` bytes and returns them as a block. With no block left in the pool, or for more
    /// than a block holds, the bytes lie on the heap.
    pub fn write(&mut self, most: usize, fill: impl FnOnce(&mut Writer<'_>)) -> Block {
        if most > SMALL {
            return self.write_heap(most, fill);
        }
        if self.used + most > SMALL {
            self.current = None;
        }
        if self.current.is_none() {
            self.current = self.pool.take(Size::Small, Share::Worker);
            self.used = 0;
        }
        let Some(current) = &self.current else { return self.write_heap(most, fill) };
        let core = current.core();
        // SAFETY: used + most <= SMALL is the block's capacity; every slice handed out before ends at or below `used`,
        // so these bytes are in nobody's view, and they are lent as memory that may be uninitialised.
        let room = unsafe {
            let place = core.data.as_ptr().add(self.used);
            std::slice::from_raw_parts_mut(place.cast::<std::mem::MaybeUninit<u8>>(), most)
        };
        let mut writer = Writer { room, len: 0 };
        fill(&mut writer);
        let len = writer.len;
        let mut written = current.clone();
        written.start = self.used as u32;
        written.len = len as u32;
        self.used += len;
        written
    }

    /// Counts the block that is being written into.
    pub fn count_block(&self, census: &mut Census) {
        self.current.iter().for_each(|block| census.count(block));
    }

    /// Forgets the current block when everything written into it has been dropped or moved elsewhere, so that the next
    /// turn starts in warm memory.
    pub fn rewind(&mut self) {
        if self.current.as_ref().is_some_and(|block| block.core().refs.get() == 1) {
            self.used = 0;
        }
    }

    fn write_heap(&self, most: usize, fill: impl FnOnce(&mut Writer<'_>)) -> Block {
        let mut memory: Vec<u8> = Vec::with_capacity(most);
        let mut writer = Writer { room: &mut memory.spare_capacity_mut()[..most], len: 0 };
        fill(&mut writer);
        let len = writer.len;
        // SAFETY: the writer has initialised the first `len` bytes.
        unsafe { memory.set_len(len) };
        self.pool.heap(&memory)
    }
}

/// A cursor over memory of known size.
pub struct Writer<'a> {
    room: &'a mut [std::mem::MaybeUninit<u8>],
    len: usize,
}

impl<'a> Writer<'a> {
    /// A writer into `room`, for tests and for callers with memory of their own.
    pub fn new(room: &'a mut [std::mem::MaybeUninit<u8>]) -> Writer<'a> {
        Writer { room, len: 0 }
    }

    /// Appends bytes.
    ///
    /// # Panics
    /// When the room was estimated too small, which is a mistake of ours: estimates are bounds.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        let end = self.len + bytes.len();
        self.room[self.len..end].write_copy_of_slice(bytes);
        self.len = end;
    }

    /// Appends these runs of bytes behind each other, asking only once for room.
    ///
    /// # Panics
    /// As [`Writer::put`].
    #[inline]
    pub fn put_all<const N: usize>(&mut self, parts: [&[u8]; N]) {
        let total = parts.iter().fold(0usize, |total, part| total.saturating_add(part.len()));
        assert!(total <= self.room.len() - self.len, "more is written than there is room for");
        for part in parts {
            // SAFETY: all parts together fit behind `len`, as was just asked. They are shared references and the room is an exclusive
            // one, so that they do not overlap.
            unsafe {
                let place = self.room.as_mut_ptr().add(self.len).cast::<u8>();
                std::ptr::copy_nonoverlapping(part.as_ptr(), place, part.len());
            }
            self.len += part.len();
        }
    }

    /// Appends the first `len` bytes of `text`. Where there is room, all of it is copied: a number of bytes that the compiler knows takes
    /// a few instructions and no call.
    ///
    /// # Panics
    /// As [`Writer::put`].
    #[inline]
    pub fn put_first<const N: usize>(&mut self, text: &[u8; N], len: usize) {
        match self.room[self.len..].first_chunk_mut::<N>() {
            Some(room) if len <= N => {
                room.write_copy_of_slice(text);
                self.len += len;
            }
            _ => self.put(&text[..len]),
        }
    }

    /// Lets `fill` write into room for `most` bytes that are zero, and appends as many as it says.
    ///
    /// # Panics
    /// As [`Writer::put`].
    pub fn fill(&mut self, most: usize, fill: impl FnOnce(&mut [u8]) -> usize) {
        let room = &mut self.room[self.len..self.len + most];
        room.fill(std::mem::MaybeUninit::new(0));
        // SAFETY: all of it was written just now.
        let written = fill(unsafe { &mut *(std::ptr::from_mut(room) as *mut [u8]) });
        assert!(written <= most, "more is written than there is room for");
        self.len += written;
    }

    /// Appends what the kernel has in memory of a file from a place of it on, at most so many bytes: how many.
    ///
    /// # Errors
    /// As [`kernel::read_now`] says.
    ///
    /// # Panics
    /// As [`Writer::put`].
    pub fn read(&mut self, file: &File, at: u64, most: usize) -> io::Result<usize> {
        if most == 0 {
            return Ok(0);
        }
        let count = kernel::read_now(file, at, &mut self.room[self.len..self.len + most])?;
        self.len += count;
        Ok(count)
    }

    /// Appends a decimal number.
    pub fn put_decimal(&mut self, number: u64) {
        self.put(itoa::Buffer::new().format(number).as_bytes());
    }

    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing was written so far.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What was written so far.
    pub fn written(&self) -> &[u8] {
        // SAFETY: `put` has initialised the first `len` bytes.
        unsafe { std::slice::from_raw_parts(self.room.as_ptr().cast::<u8>(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Pool {
        Pool::new(4, 1, Budget::new(1 << 20))
    }

    #[test]
    fn a_block_returns_with_its_last_slice() {
        let pool = pool();
        let mut block = pool.take(Size::Small, Share::Client).unwrap();
        let (place, room) = block.spare();
        assert_eq!(room, SMALL);
        // SAFETY: five bytes lie within the room.
        unsafe {
            std::ptr::copy_nonoverlapping(b"hello".as_ptr(), place, 5);
            block.filled(5);
        }
        let slice = block.slice(1..3);
        drop(block);
        assert_eq!((&*slice, pool.free(Size::Small)), (&b"el"[..], 3));
        drop(slice);
        assert_eq!(pool.free(Size::Small), 4);
    }

    #[test]
    fn clients_leave_the_reserve_to_workers() {
        let pool = pool();
        let held: Vec<_> = std::iter::from_fn(|| pool.take(Size::Small, Share::Client)).collect();
        assert_eq!(held.len(), 3);
        assert!(pool.take(Size::Small, Share::Worker).is_some());
    }

    #[test]
    fn heap_blocks_are_charged_until_they_are_dropped() {
        let pool = pool();
        let block = pool.heap_joined(b"abc", b"def");
        assert_eq!((&*block, pool.budget().used()), (&b"abcdef"[..], 6 + HEAP_OVERHEAD));
        let clone = block.clone();
        drop(block);
        assert_eq!(pool.budget().used(), 6 + HEAP_OVERHEAD);
        drop(clone);
        assert_eq!(pool.budget().used(), 0);
    }

    #[test]
    fn only_a_heap_block_of_one_owner_grows_and_only_within_its_room() {
        let pool = pool();
        let mut block = pool.heap_with_room(b"abc", 8);
        let place = block.as_ptr();
        assert_eq!((block.append(b"defg"), block.append(b"hi"), &*block), (4, 1, &b"abcdefgh"[..]));
        block.advance(2);
        assert_eq!((block.append(b"x"), block.as_ptr()), (0, place.wrapping_add(2)));
        assert_eq!(pool.budget().used(), 8 + HEAP_OVERHEAD);
        let mut shared = pool.heap_with_room(b"abc", 8);
        let clone = shared.clone();
        assert_eq!(shared.append(b"d"), 0);
        drop(clone);
        assert_eq!(shared.append(b"d"), 1);
        assert_eq!(pool.take(Size::Small, Share::Worker).unwrap().append(b"d"), 0, "the pool's blocks wait for nobody");
    }

    #[test]
    fn a_census_counts_each_block_once_and_shows_what_nobody_holds() {
        let pool = pool();
        let mut scratch = Scratch::new(pool.clone());
        let written = [scratch.write(100, |out| out.put(b"one")), scratch.write(100, |out| out.put(b"two"))];
        let large = pool.take(Size::Large, Share::Client).unwrap();
        let mut census = pool.census();
        written.iter().for_each(|block| census.count(block));
        census.count(&pool.heap(b"three"));
        census.count(&self::pool().take(Size::Small, Share::Client).unwrap());
        assert_eq!((census.counted(), census.missing()), (1, 1), "the large one is missing");
        scratch.count_block(&mut census);
        census.count(&large);
        assert_eq!((census.counted(), census.missing(), pool.out(Size::Small)), (2, 0, 1));
    }

    #[test]
    fn a_block_outlives_its_pool_handle() {
        let pool = pool();
        let block = pool.heap(b"still here");
        drop(pool);
        assert_eq!(&*block, b"still here");
    }

    #[test]
    fn scratch_output_shares_a_block_and_falls_back_to_the_heap() {
        let pool = pool();
        let mut scratch = Scratch::new(pool.clone());
        let first = scratch.write(100, |out| out.put(b"one"));
        let second = scratch.write(100, |out| out.put_decimal(12345));
        assert_eq!((&*first, &*second, pool.free(Size::Small)), (&b"one"[..], &b"12345"[..], 3));
        let held: Vec<_> = std::iter::from_fn(|| pool.take(Size::Small, Share::Worker)).collect();
        let third = scratch.write(SMALL, |out| out.put(b"three"));
        assert!(third.on_heap() && held.len() == 3 && &*third == b"three");
    }
}
