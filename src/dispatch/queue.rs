//! The waiters: a bounded line, first come first served, with cancel by ticket in constant time.
//!
//! Nodes stand in an array that is reserved once; the free ones are chained through it. Each waiter stands in two lines threaded
//! through the nodes: that of all loops, and that of its own loop. Requests that want a tunnel have lines of their own, for a
//! worker full of tunnels passes over all of them, however many they are. In each line those who rejoined stand first, by
//! their clocks, and behind them the others as they came: the oldest of all, or of one loop, is the older of two heads. Where keys
//! take turns (`fair.rs`), only the first of each key stands there, and in the line of all loops alone. All access is under the
//! dispatch's lock.

use std::time::{Duration, Instant};

use super::Waiter;
use super::fair::{Fair, Stood};
use super::types::{Slot, Wish};
use crate::buffers::slots::Key;
use crate::planted::{self, Bug};

/// No node.
const NONE: u32 = u32::MAX;

/// Who came at most so much later than the oldest goes first where a slot comes free on its own loop. A grant for another loop costs
/// a letter and a bell there: with two loops that share workers of one request at a time, half of all grants, and a third of the CPU
/// of a request. One millisecond is what a loop's turn takes when requests queue, so nobody could tell.
pub const HOME_ADVANTAGE: Duration = Duration::from_millis(1);

/// For so many loops the ends of their lines are reserved: as many as the settings allow.
const LOOPS: usize = 1024;

/// Which of its two lines a link belongs to.
#[derive(Clone, Copy)]
enum Scope {
    All = 0,
    Loop = 1,
}

/// One who waits.
pub(super) struct Node {
    pub waiter: Waiter,
    pub wish: Wish,
    /// Its request's clock.
    pub since: Instant,
    /// When it came to the line; never earlier than who came before, whatever the loops' clocks say.
    came: Instant,
    /// Orders those who came, or rejoined, at the same moment.
    number: u64,
    /// How often this node was used; even while it is free, so that no ticket names a free node.
    generation: u32,
    links: [Links; 2],
    /// Whether it rejoined, and so stands in the ordered part at the head.
    front: bool,
    /// Only ever set by a planted fault: a waiter who left and still stands in the line.
    departed: bool,
}

/// Who stands before a node in a line, and who behind. Of a free node, `next` chains the free ones.
#[derive(Clone, Copy)]
struct Links {
    previous: u32,
    next: u32,
}

/// The ends of a line.
#[derive(Clone, Copy)]
struct Ends {
    head: u32,
    tail: u32,
}

const UNLINKED: Links = Links { previous: NONE, next: NONE };
const EMPTY: Ends = Ends { head: NONE, tail: NONE };

/// One who was taken out of the line.
pub(super) struct Removed {
    pub waiter: Waiter,
    pub tunnel: bool,
    /// True only for one who, by a planted fault, is long gone.
    pub departed: bool,
}

pub(super) struct Queue {
    nodes: Vec<Node>,
    /// The first of the free nodes.
    free: u32,
    /// Two of all loops and two of each: without a tunnel and for one; [`line_of`] says which is where.
    lines: Vec<Ends>,
    len: usize,
    limit: usize,
    /// When the last one came.
    latest: Option<Instant>,
    /// How many have come, or come to their turn.
    came: u64,
    /// Those who wait with a key; `None`: nobody does.
    fair: Option<Fair>,
    /// How many they are.
    keyed: usize,
}

/// Memory for a line, to be made before the lock is taken, or to be freed once it is open.
pub(super) struct Spare {
    nodes: Vec<Node>,
    fair: Option<Fair>,
}

impl Queue {
    /// A line for `limit` waiters and, beyond these, room for `rejoining` who come back with a permit's failure.
    pub fn new(limit: usize, rejoining: usize, fair: bool) -> Queue {
        let Spare { nodes, fair } = Queue::spare(limit, rejoining, fair);
        let mut lines = Vec::with_capacity(2 * (1 + LOOPS));
        lines.resize(2, EMPTY);
        Queue { nodes, free: NONE, lines, len: 0, limit, latest: None, came: 0, fair, keyed: 0 }
    }

    /// Memory for a line of that limit; `rejoining` as in [`Queue::new`].
    pub fn spare(limit: usize, rejoining: usize, fair: bool) -> Spare {
        let nodes = Vec::with_capacity(limit.saturating_add(rejoining));
        let fair = fair.then(|| Fair::new(limit, nodes.capacity()));
        Spare { nodes, fair }
    }

    /// Another limit holds for those who come, and that they take turns or do not. What is not needed of the memory goes back.
    pub fn set_limit(&mut self, limit: usize, mut spare: Spare) -> Spare {
        self.limit = limit;
        if spare.nodes.capacity() > self.nodes.capacity() {
            spare.nodes.append(&mut self.nodes);
            std::mem::swap(&mut self.nodes, &mut spare.nodes);
        }
        match (&mut self.fair, &mut spare.fair) {
            (Some(old), Some(new)) if old.is_as_large_as(new) => {}
            (Some(old), Some(new)) => {
                new.take_over(old);
                std::mem::swap(old, new);
            }
            // Who waits with a key does so to the end.
            (Some(_), None) if self.keyed > 0 => {}
            (old, new) => std::mem::swap(old, new),
        }
        spare
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For how many nodes memory is reserved.
    pub fn capacity(&self) -> usize {
        self.nodes.capacity()
    }

    /// Whether there is room for one more with that key (0: without any): as many may wait with one as places are left for the others.
    /// So one key has half of the line at most, and whoever comes with another finds a place.
    pub fn takes(&self, turn: u64, tunnel: bool) -> bool {
        let left = self.limit.saturating_sub(self.len);
        left > 0 && self.fair.as_ref().is_none_or(|fair| turn == 0 || fair.waiting(keyed(turn, tunnel)) < left)
    }

    /// Puts a waiter at the end of the line, or behind those who wait with the same key (0: without any).
    pub fn push(&mut self, waiter: Waiter, wish: Wish, since: Instant, now: Instant, turn: u64) -> Key {
        let index = self.node(waiter, wish, since, now, false);
        self.len += 1;
        // One who would rather not have some worker may be passed over, and those behind it may not.
        match &mut self.fair {
            Some(fair) if turn != 0 && wish.exclude == Key::NONE => {
                self.keyed += 1;
                if fair.join(index, keyed(turn, wish.tunnel)) {
                    self.insert_before(Scope::All, index, NONE);
                }
            }
            _ => {
                for scope in [Scope::All, Scope::Loop] {
                    self.insert_before(scope, index, NONE);
                }
            }
        }
        self.ticket(index)
    }

    /// Puts a waiter at the head of the line, behind those who rejoined with an older clock (or an equal one).
    pub fn rejoin(&mut self, waiter: Waiter, wish: Wish, since: Instant, now: Instant) -> Key {
        let index = self.node(waiter, wish, since, now, true);
        for scope in [Scope::All, Scope::Loop] {
            let mut behind = self.lines[line_of(scope, waiter.loop_index, wish.tunnel)].head;
            while behind != NONE {
                let node = &self.nodes[behind as usize];
                if !node.front || node.since > since {
                    break;
                }
                behind = node.links[scope as usize].next;
            }
            self.insert_before(scope, index, behind);
        }
        self.len += 1;
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
            self.take_out(ticket.index, true);
        }
        waiting
    }

    /// The first in the line.
    pub fn first(&self) -> Option<u32> {
        let heads = [false, true].map(|tunnel| self.lines[line_of(Scope::All, 0, tunnel)].head);
        self.older(heads.map(|head| (head != NONE).then_some(head)))
    }

    /// Who gets a slot: the oldest whom it suits, or, if it came free on a loop, the oldest of that loop, unless another is older by
    /// more than [`HOME_ADVANTAGE`] or has rejoined.
    #[inline]
    pub fn first_for(&self, slot: &Slot, home: Option<u16>) -> Option<u32> {
        let oldest = self.oldest_for(slot, Scope::All, 0)?;
        if planted::strikes(Bug::QueueJump, 2) {
            let youngest = self.line(false).filter(|(_, node)| slot.suits(node.wish.exclude)).last();
            return youngest.map(|(index, _)| index).or(Some(oldest));
        }
        // Turns know no loop.
        let Some(home) = home.filter(|_| self.keyed == 0) else { return Some(oldest) };
        if self.nodes[oldest as usize].waiter.loop_index == home {
            return Some(oldest);
        }
        let own = self.oldest_for(slot, Scope::Loop, home).filter(|&own| self.nearly_as_old(own, oldest));
        own.or(Some(oldest))
    }

    /// Takes a waiter out of the line, whose turn it was: the next of its key stands at the end.
    #[inline]
    pub fn remove(&mut self, index: u32) -> Removed {
        self.take_out(index, false)
    }

    /// Takes a waiter out of the line. Where it has waited in vain, the next of its key stands in its place.
    #[inline]
    fn take_out(&mut self, index: u32, in_vain: bool) -> Removed {
        if self.keyed == 0 || !self.leave_key(index, in_vain) {
            for scope in [Scope::All, Scope::Loop] {
                self.unlink(scope, index);
            }
        }
        let node = &mut self.nodes[index as usize];
        debug_assert!(is_waiting(node), "a free node was taken out of the line");
        node.generation = node.generation.wrapping_add(1);
        node.links[0].next = self.free;
        self.free = index;
        self.len -= 1;
        Removed { waiter: node.waiter, tunnel: node.wish.tunnel, departed: node.departed }
    }

    /// Takes a waiter away from those of its key; `false`: it has none.
    #[cold]
    fn leave_key(&mut self, index: u32, in_vain: bool) -> bool {
        let stood = self.fair.as_mut().map_or(Stood::Alone, |fair| fair.leave(index));
        if matches!(stood, Stood::Alone) {
            return false;
        }
        self.keyed -= 1;
        if let Stood::First(next) = stood {
            let Links { next: behind, .. } = self.nodes[index as usize].links[Scope::All as usize];
            let number = self.nodes[index as usize].number;
            self.unlink(Scope::All, index);
            if let Some(next) = next {
                self.came += 1;
                let (number, behind) = if in_vain { (number, behind) } else { (self.came, NONE) };
                self.nodes[next as usize].number = number;
                self.insert_before(Scope::All, next, behind);
            }
        }
        true
    }

    /// Those who stand in the line, first to last: without a tunnel, or for one.
    pub fn line(&self, tunnel: bool) -> impl Iterator<Item = (u32, &Node)> {
        self.walk(line_of(Scope::All, 0, tunnel), Scope::All)
    }

    /// All who wait, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| is_waiting(node))
    }

    /// The older of two who wait.
    #[inline]
    pub fn older(&self, pair: [Option<u32>; 2]) -> Option<u32> {
        match pair {
            [Some(one), Some(other)] => {
                let ahead = self.nodes[other as usize].stands_before(&self.nodes[one as usize]);
                Some(if ahead { other } else { one })
            }
            [one, other] => one.or(other),
        }
    }

    /// What is wrong with the lines, if anything.
    pub fn fault(&self) -> Option<&'static str> {
        let mut counts = [0; 2];
        for line in 0..self.lines.len() {
            let scope = if line < 2 { Scope::All } else { Scope::Loop };
            match self.line_length(line, scope) {
                Ok(length) => counts[scope as usize] += length,
                Err(fault) => return Some(fault),
            }
        }
        let waits = |index: u32| self.nodes.get(index as usize).is_some_and(is_waiting);
        let (keys, keyed) = match self.fair.as_ref().map_or(Ok((0, 0)), |fair| fair.count(waits)) {
            Ok(counted) => counted,
            Err(fault) => return Some(fault),
        };
        let alone = self.len - keyed.min(self.len);
        if counts != [alone + keys, alone] || keyed != self.keyed {
            return Some("the lines hold more or fewer than the queue counts");
        }
        let waiting = self.nodes.iter().filter(|node| is_waiting(node)).count();
        (waiting != self.len).then_some("a living ticket stands outside the queue")
    }

    /// How many stand in a line, or what is wrong with it.
    fn line_length(&self, line: usize, scope: Scope) -> Result<usize, &'static str> {
        let (mut previous, mut count) = (NONE, 0);
        for (index, node) in self.walk(line, scope) {
            if !is_waiting(node) {
                return Err("a free node stands in the queue");
            }
            if self.fair.as_ref().is_some_and(|fair| fair.is_behind(index)) {
                return Err("one whose turn has not come stands in the line");
            }
            if line_of(scope, node.waiter.loop_index, node.wish.tunnel) != line {
                return Err("a waiter stands in the line of another loop, or of other wishes");
            }
            if node.links[scope as usize].previous != previous {
                return Err("the queue's links disagree");
            }
            if previous != NONE && !self.nodes[previous as usize].stands_before(node) {
                return Err("a waiter stands in the wrong place");
            }
            count += 1;
            if count > self.len {
                return Err("the queue holds more than it counts");
            }
            previous = index;
        }
        if previous == self.lines[line].tail { Ok(count) } else { Err("a line has a wrong end") }
    }

    fn walk(&self, line: usize, scope: Scope) -> impl Iterator<Item = (u32, &Node)> {
        let mut index = self.lines.get(line).map_or(NONE, |ends| ends.head);
        std::iter::from_fn(move || {
            let at = index;
            let node = self.nodes.get(at as usize)?;
            index = node.links[scope as usize].next;
            Some((at, node))
        })
    }

    /// The oldest whom a slot suits, of all or of one loop.
    #[inline]
    fn oldest_for(&self, slot: &Slot, scope: Scope, loop_index: u16) -> Option<u32> {
        let plain = self.first_suited(slot, scope, line_of(scope, loop_index, false));
        if !slot.tunnel {
            return plain;
        }
        self.older([plain, self.first_suited(slot, scope, line_of(scope, loop_index, true))])
    }

    /// The first of a line whom a slot suits: those who would rather have another worker are passed over.
    #[inline]
    fn first_suited(&self, slot: &Slot, scope: Scope, line: usize) -> Option<u32> {
        let mut waiting = self.walk(line, scope);
        waiting.find(|(_, node)| slot.suits(node.wish.exclude)).map(|(index, _)| index)
    }

    /// Whether the oldest of a loop may go before the oldest of all.
    #[inline]
    fn nearly_as_old(&self, own: u32, oldest: u32) -> bool {
        let (own, oldest) = (&self.nodes[own as usize], &self.nodes[oldest as usize]);
        match (own.front, oldest.front) {
            (true, true) => own.since.saturating_duration_since(oldest.since) <= HOME_ADVANTAGE,
            (false, false) => own.came.saturating_duration_since(oldest.came) <= HOME_ADVANTAGE,
            _ => false,
        }
    }

    /// A node with these values, linked nowhere yet.
    #[inline]
    fn node(&mut self, waiter: Waiter, wish: Wish, since: Instant, now: Instant, front: bool) -> u32 {
        let lines = line_of(Scope::Loop, waiter.loop_index, true) + 1;
        if self.lines.len() < lines {
            // Once for each loop, and within the reserved room.
            self.lines.resize(lines, EMPTY);
        }
        let came = self.latest.map_or(now, |latest| latest.max(now));
        self.latest = Some(came);
        self.came += 1;
        let number = self.came;
        let index = self.free;
        if index == NONE {
            // Within the reserved room this allocates nothing. Beyond it are only more rejoining waiters than there are
            // permits, whom to refuse would be worse than one growth of the array.
            let (generation, links) = (1, [UNLINKED; 2]);
            let node = Node { waiter, wish, since, came, number, generation, links, front, departed: false };
            self.nodes.push(node);
            return self.nodes.len() as u32 - 1;
        }
        // Field by field: a node that is made whole and then moved here is written twice.
        let node = &mut self.nodes[index as usize];
        self.free = node.links[0].next;
        (node.waiter, node.wish, node.since) = (waiter, wish, since);
        (node.came, node.number) = (came, number);
        node.generation = node.generation.wrapping_add(1);
        (node.front, node.departed) = (front, false);
        index
    }

    /// Links a node in before another of its line, or at the end.
    #[inline]
    fn insert_before(&mut self, scope: Scope, index: u32, behind: u32) {
        let node = &self.nodes[index as usize];
        let line = &mut self.lines[line_of(scope, node.waiter.loop_index, node.wish.tunnel)];
        let kind = scope as usize;
        let ahead = match behind {
            NONE => line.tail,
            _ => self.nodes[behind as usize].links[kind].previous,
        };
        self.nodes[index as usize].links[kind] = Links { previous: ahead, next: behind };
        match ahead {
            NONE => line.head = index,
            _ => self.nodes[ahead as usize].links[kind].next = index,
        }
        match behind {
            NONE => line.tail = index,
            _ => self.nodes[behind as usize].links[kind].previous = index,
        }
    }

    #[inline]
    fn unlink(&mut self, scope: Scope, index: u32) {
        let node = &self.nodes[index as usize];
        let line = &mut self.lines[line_of(scope, node.waiter.loop_index, node.wish.tunnel)];
        let kind = scope as usize;
        let Links { previous, next } = node.links[kind];
        match previous {
            NONE => line.head = next,
            _ => self.nodes[previous as usize].links[kind].next = next,
        }
        match next {
            NONE => line.tail = previous,
            _ => self.nodes[next as usize].links[kind].previous = previous,
        }
    }

    fn ticket(&self, index: u32) -> Key {
        Key { index, generation: self.nodes[index as usize].generation }
    }
}

impl Node {
    /// The order of every line.
    #[inline]
    fn stands_before(&self, other: &Node) -> bool {
        match (self.front, other.front) {
            (true, true) => (self.since, self.number) < (other.since, other.number),
            (false, false) => self.number < other.number,
            (front, _) => front,
        }
    }
}

/// Where in [`Queue::lines`] the line stands that a waiter of this loop and wish belongs to.
#[inline]
fn line_of(scope: Scope, loop_index: u16, tunnel: bool) -> usize {
    let first = match scope {
        Scope::All => 0,
        Scope::Loop => 2 * (1 + usize::from(loop_index)),
    };
    first + usize::from(tunnel)
}

/// The key of those who take turns. Who wants a tunnel may have to wait for longer, and holds up no others of its client.
fn keyed(turn: u64, tunnel: bool) -> u64 {
    turn << 1 | u64::from(tunnel)
}

/// A node's generation is odd while someone waits in it.
#[inline]
fn is_waiting(node: &Node) -> bool {
    node.generation & 1 == 1
}
