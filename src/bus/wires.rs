//! What a replica keeps of each link, and of whose request became which message.

use std::collections::{HashMap, VecDeque};

use super::frames::{self, Frame};

/// Bytes that wait for a link before more of what was is put behind them.
pub const PUMP_MARK: usize = 128 << 10;
/// Numbers of others that are remembered, so that nothing is numbered twice that was given to two leaders.
const MOST_RECENT: usize = 4096;

/// What of a link is not whole yet, and what waits for it.
#[derive(Debug, Default)]
pub struct Wire {
    /// Bytes of a frame that is not whole.
    pub input: Vec<u8>,
    /// Frames that wait.
    pub output: Vec<u8>,
    /// Bytes of the longest frame that was put there.
    pub longest: usize,
    /// So much of them the kernel has.
    taken: usize,
}

/// What others' requests have become, the oldest forgotten first.
#[derive(Debug, Default)]
pub struct Recent {
    /// The topic and the number, by whose request it was.
    pub by: HashMap<(u64, u64), (Box<str>, u64)>,
    order: VecDeque<(u64, u64)>,
}

impl Recent {
    /// One more.
    pub fn put(&mut self, origin: u64, request: u64, topic: &str, offset: u64) {
        if origin == 0 || self.by.insert((origin, request), (topic.into(), offset)).is_some() {
            return;
        }
        self.order.push_back((origin, request));
        if self.order.len() > MOST_RECENT
            && let Some(oldest) = self.order.pop_front()
        {
            self.by.remove(&oldest);
        }
    }

    /// Whose a message was.
    pub fn origin(&self, topic: &str, offset: u64) -> (u64, u64) {
        let is_it = |(_, (name, number)): &(&(u64, u64), &(Box<str>, u64))| *number == offset && **name == *topic;
        self.by.iter().find(is_it).map_or((0, 0), |(whose, _)| *whose)
    }
}

impl Wire {
    /// Puts a frame behind those that wait.
    pub fn put(&mut self, frame: &Frame<'_>) {
        let before = self.output.len();
        frames::put(&mut self.output, frame);
        self.longest = self.longest.max(self.output.len() - before);
    }

    /// Bytes that the kernel has not taken.
    pub fn left(&self) -> usize {
        self.output.len() - self.taken
    }

    /// Gives the kernel what it takes: `write` says how much that is.
    pub fn flush(&mut self, mut write: impl FnMut(&[u8]) -> usize) {
        while self.taken < self.output.len() {
            match write(&self.output[self.taken..]) {
                0 => break,
                taken => self.taken += taken,
            }
        }
        if self.taken == self.output.len() {
            self.output.clear();
            self.taken = 0;
            self.output.shrink_to(PUMP_MARK);
        } else if self.taken > PUMP_MARK {
            self.output.drain(..self.taken);
            self.taken = 0;
        }
    }
}
