//! Ids that publishers have given to messages: who says one again publishes nothing anew. In fixed memory, the oldest forgotten first.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};

use super::ids::Position;
use crate::planted::{self, Bug};

/// An id in its topic: half of a SHA-256, so that nobody finds two that are the same.
pub type Key = [u8; 16];

/// The key of an id in a topic.
pub(super) fn key(topic: &str, id: &str) -> Key {
    // No topic has a control in its name.
    let hash = digest(&SHA256, [topic.as_bytes(), b"\0", id.as_bytes()].concat().as_slice());
    let mut key = Key::default();
    key.copy_from_slice(&hash.as_ref()[..16]);
    key
}

/// The ids that are known.
#[derive(Debug, Default)]
pub(super) struct Known {
    positions: HashMap<Key, (Position, Duration)>,
    /// In the order of their times.
    order: VecDeque<(Duration, Key)>,
}

impl Known {
    /// The message that has that id already.
    pub fn get(&mut self, key: &Key, now: Duration, long: Duration) -> Option<Position> {
        while let Some((at, oldest)) = self.order.front()
            && now.saturating_sub(*at) >= long
        {
            self.positions.remove(oldest);
            self.order.pop_front();
        }
        let known = self.positions.get(key).map(|(position, _)| *position);
        known.filter(|_| !planted::active(Bug::ForgottenId))
    }

    /// Remembers an id that is not known, among at most so many.
    pub fn insert(&mut self, key: Key, position: Position, now: Duration, most: usize) {
        while self.order.len() >= most.max(1)
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.positions.remove(&oldest);
        }
        // Threads look at the clock each for itself: one may be a little behind the other.
        let at = self.order.back().map_or(now, |(last, _)| now.max(*last));
        if self.positions.insert(key, (position, at)).is_none() {
            self.order.push_back((at, key));
        }
    }

    /// All of them, the oldest first.
    pub fn all(&self) -> impl ExactSizeIterator<Item = (&Key, Position, Duration)> {
        self.order
            .iter()
            .map(|(at, key)| (key, self.positions.get(key).map_or(Position::NOWHERE, |(position, _)| *position), *at))
    }
}
