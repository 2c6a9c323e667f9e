//! Outboxes: what is queued to leave on each socket, as linked lists in one array per loop.
//!
//! An idle socket costs 16 bytes here and allocates nothing; nodes are used again, last freed first.
//!
//! Rules:
//! - Pieces leave in the order of their arrival.
//! - A block of the pool never waits for a peer: where waiting begins, [`Outboxes::settle`] moves what lies in one to the heap, and
//!   from then on [`Outboxes::push_waiting`] does so with each piece.
//! - Small pieces that wait are put behind each other in one heap block, so that ten thousand slow streams of tiny events cost
//!   neither a node nor an allocation for each event. What is queued already is never moved by that.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use super::block::{Block, Census, Pool};

/// Vectors gathered into one send at most: more would not fit the copy that the kernel makes of them on its stack
/// (`UIO_FASTIOV` is 8, beyond it the kernel allocates), and 16 still hold any ordinary pipeline.
pub const GATHER: usize = 16;

/// A piece of at most this many bytes is copied when it has to wait, though it could wait where it is: a node and a heap block
/// of its own would cost as much.
const COPY_BYTES: usize = 1024;
/// Room of the first heap block in which pieces wait, and of one behind a piece that waits where it is: the next may come soon. Others
/// have as much as waits already, up to [`MOST_ROOM`], so that at most half of what is charged is room that nothing fills yet.
const LEAST_ROOM: usize = 256;
const MOST_ROOM: usize = 16 * 1024;

const NONE: u32 = u32::MAX;

/// Something to send.
#[derive(Clone, Debug)]
pub enum Piece {
    /// Bytes of the program itself.
    Static(&'static [u8]),
    /// Bytes lent from a receive, written by the loop's scratch, or settled on the heap.
    Block(Block),
    /// Bytes that many connections and loops share.
    Shared(Arc<[u8]>, Range<u32>),
}

impl Piece {
    /// A piece of all bytes of `shared`.
    pub fn shared(shared: Arc<[u8]>) -> Piece {
        let len = shared.len() as u32;
        Piece::Shared(shared, 0..len)
    }

    /// The bytes still to be sent.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Piece::Static(bytes) => bytes,
            Piece::Block(block) => block,
            Piece::Shared(bytes, range) => &bytes[range.start as usize..range.end as usize],
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Piece::Static(bytes) => *bytes = &bytes[count..],
            Piece::Block(block) => block.advance(count),
            Piece::Shared(_, range) => range.start += count as u32,
        }
    }
}

impl From<Block> for Piece {
    fn from(block: Block) -> Piece {
        Piece::Block(block)
    }
}

/// One socket's queue: its ends in the array, and the bytes in it.
#[derive(Debug)]
pub struct Outbox {
    head: u32,
    tail: u32,
    bytes: usize,
}

impl Default for Outbox {
    fn default() -> Outbox {
        Outbox { head: NONE, tail: NONE, bytes: 0 }
    }
}

impl Outbox {
    /// Bytes queued.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.head == NONE
    }
}

/// The nodes of all outboxes of a loop.
pub struct Outboxes {
    nodes: Vec<Node>,
    free: u32,
}

struct Node {
    piece: Piece,
    next: u32,
    /// A heap block made for pieces that are copied.
    copied: bool,
}

impl Default for Outboxes {
    fn default() -> Outboxes {
        Outboxes::new()
    }
}

impl Outboxes {
    /// No nodes yet.
    pub fn new() -> Outboxes {
        Outboxes { nodes: Vec::new(), free: NONE }
    }

    /// Queues a piece behind the others; an empty one is dropped, and one that continues the last in memory is joined
    /// to it, so that sixteen pipelined answers leave as one run. An operation in flight keeps what it was given: its
    /// own pointer and length.
    pub fn push(&mut self, outbox: &mut Outbox, piece: Piece) {
        let bytes = piece.bytes().len();
        if bytes == 0 {
            return;
        }
        if let (Some(tail), Piece::Block(block)) = (self.nodes.get_mut(outbox.tail as usize), &piece)
            && let Piece::Block(last) = &mut tail.piece
            && last.absorb(block)
        {
            outbox.bytes += bytes;
            return;
        }
        self.push_node(outbox, piece, false);
    }

    /// Queues a piece that will have to wait for the peer: what lies in a block of the pool, and what is small, is copied to the
    /// heap, into the room of the last piece and then into a new one with room for more.
    pub fn push_waiting(&mut self, outbox: &mut Outbox, piece: Piece, pool: &Pool) {
        let bytes = piece.bytes();
        let may_wait_there = !matches!(&piece, Piece::Block(block) if !block.on_heap());
        if may_wait_there && bytes.len() > COPY_BYTES {
            return self.push_node(outbox, piece, false);
        }
        let (mut copied, mut room) = (0, LEAST_ROOM);
        if let Some(tail) = self.nodes.get_mut(outbox.tail as usize)
            && let Piece::Block(last) = &mut tail.piece
        {
            copied = last.append(bytes);
            outbox.bytes += copied;
            if tail.copied {
                room = outbox.bytes.clamp(LEAST_ROOM, MOST_ROOM);
            }
        }
        let rest = &bytes[copied..];
        if !rest.is_empty() {
            let block = pool.heap_with_room(rest, room);
            self.push_node(outbox, Piece::Block(block), true);
        }
    }

    fn push_node(&mut self, outbox: &mut Outbox, piece: Piece, copied: bool) {
        let bytes = piece.bytes().len();
        let node = Node { piece, next: NONE, copied };
        let index = if self.free == NONE {
            self.nodes.push(node);
            (self.nodes.len() - 1) as u32
        } else {
            let index = self.free;
            self.free = self.nodes[index as usize].next;
            self.nodes[index as usize] = node;
            index
        };
        if outbox.tail == NONE {
            outbox.head = index;
        } else {
            self.nodes[outbox.tail as usize].next = index;
        }
        outbox.tail = index;
        outbox.bytes += bytes;
    }

    /// The pieces at the head of the queue, in order.
    pub fn pieces<'a>(&'a self, outbox: &Outbox) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut index = outbox.head;
        std::iter::from_fn(move || {
            let node = self.nodes.get(index as usize)?;
            index = node.next;
            Some(node.piece.bytes())
        })
    }

    /// Fills `vectors` from the head of the queue and returns how many were filled.
    pub fn gather<'a>(&'a self, outbox: &Outbox, vectors: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (vector, bytes) in vectors.iter_mut().zip(self.pieces(outbox)) {
            *vector = IoSlice::new(bytes);
            count += 1;
        }
        count
    }

    /// Drops the first `sent` bytes of the queue.
    pub fn consume(&mut self, outbox: &mut Outbox, sent: usize) {
        assert!(sent <= outbox.bytes, "more was sent than was queued");
        outbox.bytes -= sent;
        let mut left = sent;
        while left > 0 {
            let node = &mut self.nodes[outbox.head as usize];
            let len = node.piece.bytes().len();
            if left < len {
                node.piece.advance(left);
                return;
            }
            left -= len;
            drop(self.pop(outbox));
        }
    }

    /// Moves everything that lies in blocks of the pool to the heap, as waiting for the peer begins. No operation in flight may
    /// refer to the outbox's pieces.
    pub fn settle(&mut self, outbox: &mut Outbox, pool: &Pool) {
        let mut queued = std::mem::take(outbox);
        while !queued.is_empty() {
            let piece = self.pop(&mut queued);
            self.push_waiting(outbox, piece, pool);
        }
    }

    /// Whether one of its pieces lies in a block of the pool.
    pub fn holds_blocks(&self, outbox: &Outbox) -> bool {
        let mut index = outbox.head;
        while let Some(node) = self.nodes.get(index as usize) {
            if matches!(&node.piece, Piece::Block(block) if !block.on_heap()) {
                return true;
            }
            index = node.next;
        }
        false
    }

    /// Drops everything queued.
    pub fn clear(&mut self, outbox: &mut Outbox) {
        while !outbox.is_empty() {
            drop(self.pop(outbox));
        }
        outbox.bytes = 0;
    }

    /// Drops everything queued, which will never leave: [`Outbox::bytes`] goes on to say how much that was.
    pub fn abandon(&mut self, outbox: &mut Outbox) {
        let bytes = outbox.bytes;
        self.clear(outbox);
        outbox.bytes = bytes;
    }

    /// Counts the blocks of the pool in which pieces lie.
    pub fn count_blocks(&self, census: &mut Census) {
        for node in &self.nodes {
            if let Piece::Block(block) = &node.piece {
                census.count(block);
            }
        }
    }

    /// Pieces queued in all outboxes, for leak checks: looks at each that is not.
    pub fn len(&self) -> usize {
        let unused =
            std::iter::successors(self.nodes.get(self.free as usize), |node| self.nodes.get(node.next as usize));
        self.nodes.len() - unused.count()
    }

    /// Whether no outbox holds a piece.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the first piece out. Its node's own is gone with it, and gives its block back now, not when the node is used again.
    fn pop(&mut self, outbox: &mut Outbox) -> Piece {
        let index = outbox.head;
        let node = &mut self.nodes[index as usize];
        outbox.head = node.next;
        if outbox.head == NONE {
            outbox.tail = NONE;
        }
        let piece = std::mem::replace(&mut node.piece, Piece::Static(b""));
        node.next = self.free;
        self.free = index;
        piece
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::block::{Budget, HEAP_OVERHEAD, Share, Size};

    #[test]
    fn pieces_leave_in_order_and_in_parts() {
        let mut nodes = Outboxes::new();
        let (mut one, mut two) = (Outbox::default(), Outbox::default());
        nodes.push(&mut one, Piece::Static(b"hello "));
        nodes.push(&mut two, Piece::shared(Arc::from(&b"other"[..])));
        nodes.push(&mut one, Piece::Static(b""));
        nodes.push(&mut one, Piece::Static(b"world"));
        nodes.consume(&mut one, 8);
        assert_eq!(nodes.pieces(&one).collect::<Vec<_>>(), [&b"rld"[..]]);
        assert_eq!((one.bytes(), two.bytes()), (3, 5));
        nodes.consume(&mut one, 3);
        nodes.clear(&mut two);
        assert!(one.is_empty() && two.is_empty() && nodes.is_empty());
        nodes.push(&mut one, Piece::Static(b"again"));
        assert_eq!(nodes.nodes.len(), 3, "nodes are used again");
        nodes.abandon(&mut one);
        assert!((one.is_empty(), one.bytes(), nodes.is_empty()) == (true, 5, true), "how much it was is known");
    }

    /// A block of the pool with these bytes.
    fn lent(pool: &Pool, bytes: &[u8]) -> Block {
        let mut block = pool.take(Size::Small, Share::Worker).unwrap();
        let (place, room) = block.spare();
        assert!(bytes.len() <= room);
        // SAFETY: the bytes lie within the room, and are elsewhere now.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
            block.filled(bytes.len());
        }
        block
    }

    #[test]
    fn waiting_bytes_leave_their_blocks() {
        let pool = Pool::new(4, 0, Budget::new(1000));
        let mut nodes = Outboxes::new();
        let mut outbox = Outbox::default();
        let scratch = lent(&pool, b"one two");
        nodes.push(&mut outbox, scratch.slice(0..3).into());
        nodes.push(&mut outbox, Piece::Static(b"-"));
        nodes.push(&mut outbox, scratch.slice(4..7).into());
        nodes.push(&mut outbox, lent(&pool, &[b'x'; 5000]).into());
        drop(scratch);
        assert!(nodes.holds_blocks(&outbox) && pool.free(Size::Small) == 2);
        nodes.settle(&mut outbox, &pool);
        assert!(!nodes.holds_blocks(&outbox) && pool.free(Size::Small) == 4);
        assert_eq!((outbox.bytes(), nodes.len()), (5007, 2), "small pieces lie behind each other");
        let bytes: Vec<u8> = nodes.pieces(&outbox).flatten().copied().collect();
        assert!(bytes.starts_with(b"one-twoxxx") && bytes.len() == 5007);
        assert_eq!(pool.budget().used(), 5007 + 2 * HEAP_OVERHEAD);
        nodes.clear(&mut outbox);
        assert_eq!((outbox.bytes(), nodes.len(), pool.budget().used()), (0, 0, 0));
    }

    #[test]
    fn tiny_pieces_that_wait_cost_little_more_than_their_bytes() {
        let pool = Pool::new(1, 0, Budget::new(1 << 20));
        let mut nodes = Outboxes::new();
        let mut outbox = Outbox::default();
        nodes.push_waiting(&mut outbox, Piece::Static(b"data: 0\n\n"), &pool);
        assert_eq!(pool.budget().used(), LEAST_ROOM + HEAP_OVERHEAD);
        let first = nodes.pieces(&outbox).next().unwrap().as_ptr();
        for _ in 0..10_000 {
            nodes.push_waiting(&mut outbox, Piece::Static(b"data: 0\n\n"), &pool);
        }
        assert_eq!(nodes.pieces(&outbox).next().unwrap().as_ptr(), first, "what waits stays where it is");
        assert!(nodes.len() < 20, "{} nodes", nodes.len());
        let used = pool.budget().used();
        assert!(used < outbox.bytes() * 5 / 4, "{used} bytes charged for {}", outbox.bytes());
        assert!(nodes.pieces(&outbox).flatten().eq(b"data: 0\n\n".repeat(10_001).iter()));
        nodes.clear(&mut outbox);
        assert_eq!(pool.budget().used(), 0);
    }

    #[test]
    fn the_frames_of_chunks_that_wait_cost_little_more_than_their_bytes() {
        let pool = Pool::new(1, 0, Budget::new(1 << 20));
        let mut nodes = Outboxes::new();
        let mut outbox = Outbox::default();
        for _ in 0..100 {
            nodes.push_waiting(&mut outbox, Piece::Static(b"1000\r\n"), &pool);
            nodes.push_waiting(&mut outbox, pool.heap(&[7; 4096]).into(), &pool);
            nodes.push_waiting(&mut outbox, Piece::Static(b"\r\n"), &pool);
        }
        let used = pool.budget().used();
        assert!(used < outbox.bytes() * 5 / 4, "{used} bytes charged for {}", outbox.bytes());
    }

    #[test]
    fn what_many_share_waits_where_it_is() {
        let pool = Pool::new(1, 0, Budget::new(1 << 20));
        let mut nodes = Outboxes::new();
        let mut outbox = Outbox::default();
        let event: Arc<[u8]> = Arc::from(vec![7; COPY_BYTES + 1]);
        nodes.push_waiting(&mut outbox, Piece::shared(event.clone()), &pool);
        assert_eq!((pool.budget().used(), Arc::strong_count(&event)), (0, 2));
    }
}
