//! The waiters: a bounded line, first come first served, with cancel by ticket in constant time.
//!
//! The line is threaded through an array of nodes that is reserved once; so are the free nodes, by the same links. Those who
//! rejoin stand at its head, ordered by their clocks. All access is under the dispatch's lock.

use std::time::Instant;

use super::{Waiter, WorkerId};
use crate::buffers::slots::Key;
use crate::planted::{self, Bug};

/// No node.
const NONE: u32 = u32::MAX;

/// One who waits.
pub(super) struct Node {
    pub waiter: Waiter,
    /// The worker it would rather not get, or [`Key::NONE`].
    pub exclude: WorkerId,
    /// Its request's clock.
    pub since: Instant,
    /// How often this node was used; even while it is free, so that no ticket names a free node.
    generation: u32,
    previous: u32,
    next: u32,
    /// Whether it rejoined, and so stands in the ordered part at the head.
    front: bool,
    /// Only ever set by a planted fault: a waiter who left and still stands in the line.
    pub departed: bool,
}

pub(super) struct Queue {
    nodes: Vec<Node>,
    /// The first of the free nodes, chained by `next`.
    free: u32,
    head: u32,
    tail: u32,
    len: usize,
    limit: usize,
}

impl Queue {
    /// A line for `limit` waiters and, beyond these, room for `rejoining` who come back with a permit's failure.
    pub fn new(limit: usize, rejoining: usize) -> Queue {
        let nodes = Vec::with_capacity(limit.saturating_add(rejoining));
        Queue { nodes, free: NONE, head: NONE, tail: NONE, len: 0, limit }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn is_full(&self) -> bool {
        self.len >= self.limit
    }

    /// For how many nodes memory is reserved.
    pub fn capacity(&self) -> usize {
        self.nodes.capacity()
    }

    /// Puts a waiter at the end of the line.
    pub fn push(&mut self, waiter: Waiter, exclude: WorkerId, since: Instant) -> Key {
        let index = self.node(waiter, exclude, since, false);
        self.insert_before(index, NONE);
        self.ticket(index)
    }

    /// Puts a waiter at the head of the line, behind those who rejoined with an older clock (or an equal one).
    pub fn rejoin(&mut self, waiter: Waiter, exclude: WorkerId, since: Instant) -> Key {
        let index = self.node(waiter, exclude, since, true);
        let mut behind = self.head;
        while behind != NONE {
            let node = &self.nodes[behind as usize];
            if !node.front || node.since > since {
                break;
            }
            behind = node.next;
        }
        self.insert_before(index, behind);
        self.ticket(index)
    }

    /// The waiter of a living ticket.
    pub fn lookup(&self, ticket: Key) -> Option<&Node> {
        self.nodes.get(ticket.index as usize).filter(|node| is_waiting(node) && node.generation == ticket.generation)
    }

    /// Takes the ticket's waiter out of the line; `false` for a dead ticket.
    pub fn cancel(&mut self, ticket: Key) -> bool {
        let waiting = self.lookup(ticket).is_some();
        if waiting && planted::strikes(Bug::ForgottenCancel, 5) {
            self.nodes[ticket.index as usize].departed = true;
        } else if waiting {
            self.remove(ticket.index);
        }
        waiting
    }

    /// The first in the line.
    pub fn first(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    /// The first in the line who takes a slot of `worker`: one who would rather have another (`choosy`) is passed over.
    #[inline]
    pub fn first_for(&self, worker: WorkerId, choosy: bool) -> Option<u32> {
        let mut index = self.head;
        let mut found = None;
        while index != NONE {
            let node = &self.nodes[index as usize];
            if !(choosy && node.exclude == worker) {
                found = Some(index);
                if !planted::active(Bug::QueueJump) || !planted::strikes(Bug::QueueJump, 2) {
                    break;
                }
            }
            index = node.next;
        }
        found
    }

    /// Takes a waiter out of the line; the second is true only for one who, by a planted fault, is long gone.
    #[inline]
    pub fn remove(&mut self, index: u32) -> (Waiter, bool) {
        let free = self.free;
        let node = &mut self.nodes[index as usize];
        debug_assert!(is_waiting(node), "a free node was taken out of the line");
        let (previous, next, waiter, departed) = (node.previous, node.next, node.waiter, node.departed);
        node.generation = node.generation.wrapping_add(1);
        node.next = free;
        self.free = index;
        match previous {
            NONE => self.head = next,
            _ => self.nodes[previous as usize].next = next,
        }
        match next {
            NONE => self.tail = previous,
            _ => self.nodes[next as usize].previous = previous,
        }
        self.len -= 1;
        (waiter, departed)
    }

    /// Those who wait, first to last.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        let mut index = self.head;
        std::iter::from_fn(move || {
            let node = self.nodes.get(index as usize)?;
            index = node.next;
            Some(node)
        })
    }

    /// What is wrong with the line, if anything.
    pub fn fault(&self) -> Option<&'static str> {
        let (mut index, mut previous, mut count) = (self.head, NONE, 0);
        while index != NONE {
            let node = &self.nodes[index as usize];
            if !is_waiting(node) {
                return Some("a free node stands in the queue");
            }
            if node.previous != previous {
                return Some("the queue's links disagree");
            }
            if node.front && previous != NONE {
                let ahead = &self.nodes[previous as usize];
                if !ahead.front || ahead.since > node.since {
                    return Some("one who rejoined stands in the wrong place");
                }
            }
            count += 1;
            if count > self.len {
                return Some("the queue holds more than it counts");
            }
            (previous, index) = (index, node.next);
        }
        if previous != self.tail || count != self.len {
            return Some("the queue holds fewer than it counts");
        }
        let waiting = self.nodes.iter().filter(|node| is_waiting(node)).count();
        (waiting != self.len).then_some("a living ticket stands outside the queue")
    }

    /// A node with these values, linked nowhere yet.
    #[inline]
    fn node(&mut self, waiter: Waiter, exclude: WorkerId, since: Instant, front: bool) -> u32 {
        let (mut index, mut generation) = (self.free, 0);
        if index == NONE {
            // Within the reserved room this allocates nothing. Beyond it are only more rejoining waiters than there are
            // permits, whom to refuse would be worse than one growth of the array.
            index = self.nodes.len() as u32;
        } else {
            let node = &self.nodes[index as usize];
            (self.free, generation) = (node.next, node.generation);
        }
        let generation = generation.wrapping_add(1);
        let node = Node { waiter, exclude, since, generation, previous: NONE, next: NONE, front, departed: false };
        match self.nodes.get_mut(index as usize) {
            Some(place) => *place = node,
            None => self.nodes.push(node),
        }
        index
    }

    /// Links a node in before another, or at the end.
    #[inline]
    fn insert_before(&mut self, index: u32, behind: u32) {
        let ahead = match behind {
            NONE => self.tail,
            _ => self.nodes[behind as usize].previous,
        };
        let node = &mut self.nodes[index as usize];
        (node.previous, node.next) = (ahead, behind);
        match ahead {
            NONE => self.head = index,
            _ => self.nodes[ahead as usize].next = index,
        }
        match behind {
            NONE => self.tail = index,
            _ => self.nodes[behind as usize].previous = index,
        }
        self.len += 1;
    }

    fn ticket(&self, index: u32) -> Key {
        Key { index, generation: self.nodes[index as usize].generation }
    }
}

/// A node's generation is odd while someone waits in it.
#[inline]
fn is_waiting(node: &Node) -> bool {
    node.generation & 1 == 1
}
