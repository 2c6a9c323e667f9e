//! Outboxes: what is queued to leave on each socket, as linked lists in one array per loop.
//!
//! An idle socket costs 16 bytes here and allocates nothing; nodes are used again, last freed first.
//!
//! Rules: pieces leave in the order of their arrival; what stays behind after a flush is settled on the heap when it
//! would otherwise keep a mostly empty block from others.

use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use super::block::{Block, Pool};

/// Vectors gathered into one send at most: more would not fit the copy that the kernel makes of them on its stack
/// (`UIO_FASTIOV` is 8, beyond it the kernel allocates), and 16 still hold any ordinary pipeline.
pub const GATHER: usize = 16;

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
    live: usize,
}

struct Node {
    piece: Piece,
    next: u32,
}

impl Default for Outboxes {
    fn default() -> Outboxes {
        Outboxes::new()
    }
}

impl Outboxes {
    /// No nodes yet.
    pub fn new() -> Outboxes {
        Outboxes { nodes: Vec::new(), free: NONE, live: 0 }
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
        let node = Node { piece, next: NONE };
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
        self.live += 1;
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
            self.pop(outbox);
        }
    }

    /// Moves what waits in mostly empty blocks to the heap. For pieces that no operation in flight refers to.
    pub fn settle(&mut self, outbox: &Outbox, pool: &Pool) {
        let mut index = outbox.head;
        while let Some(node) = self.nodes.get_mut(index as usize) {
            if let Piece::Block(block) = &mut node.piece
                && block.wasteful()
            {
                *block = block.clone().settle(pool);
            }
            index = node.next;
        }
    }

    /// Drops everything queued.
    pub fn clear(&mut self, outbox: &mut Outbox) {
        while !outbox.is_empty() {
            self.pop(outbox);
        }
        outbox.bytes = 0;
    }

    /// Pieces queued in all outboxes.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether no outbox holds a piece.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    fn pop(&mut self, outbox: &mut Outbox) {
        let index = outbox.head;
        let node = &mut self.nodes[index as usize];
        outbox.head = node.next;
        if outbox.head == NONE {
            outbox.tail = NONE;
        }
        // Dropping the piece gives its block back now, not when the node is used again.
        node.piece = Piece::Static(b"");
        node.next = self.free;
        self.free = index;
        self.live -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffers::block::{Budget, Share, Size};

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
    }

    #[test]
    fn waiting_bytes_leave_their_block() {
        let pool = Pool::new(4, 0, Budget::new(1000));
        let mut nodes = Outboxes::new();
        let mut outbox = Outbox::default();
        let mut block = pool.take(Size::Small, Share::Worker).unwrap();
        let (place, _) = block.spare();
        // SAFETY: one byte lies within the room.
        unsafe {
            place.write(b'x');
            block.filled(1);
        }
        nodes.push(&mut outbox, block.into());
        assert_eq!(pool.free(Size::Small), 3);
        nodes.settle(&outbox, &pool);
        assert_eq!((pool.free(Size::Small), pool.budget().used()), (4, 1));
        assert_eq!(nodes.pieces(&outbox).collect::<Vec<_>>(), [&b"x"[..]]);
    }
}
