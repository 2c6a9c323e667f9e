//! Slots: a bounded array whose entries are named by index and generation.
//!
//! An entry's memory is used again; its name is not, for 2^32 lives of that index. A call on a dead name finds nothing.
//! Room for all entries is reserved once and touched only as far as it was ever used.

/// The name of an entry: which one, and which of its lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Which entry.
    pub index: u32,
    /// Which of its lives; never 0 for a living one, so that 0 can stand for "none".
    pub generation: u32,
}

impl Key {
    /// A name that no entry ever has.
    pub const NONE: Key = Key { index: u32::MAX, generation: 0 };
}

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}.{}", self.index, self.generation)
    }
}

/// A bounded array of `T` with generations.
pub struct Slots<T> {
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    limit: usize,
    live: usize,
}

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    /// Room for at most `limit` entries.
    pub fn new(limit: usize) -> Slots<T> {
        Slots { entries: Vec::with_capacity(limit), free: Vec::new(), limit, live: 0 }
    }

    /// Puts a value into the entry freed last, or `Err` with the value when all are taken. Always inlined, so that a large value is
    /// made where it is to lie.
    #[inline(always)]
    pub fn insert(&mut self, value: T) -> Result<Key, T> {
        let Some(index) = self.vacancy() else { return Err(value) };
        let entry = &mut self.entries[index as usize];
        debug_assert!(entry.value.is_none(), "a free entry holds a value");
        if entry.value.is_some() {
            // Never so; said for the compiler, which then writes the value to its place without one that it could drop.
            return Err(value);
        }
        entry.generation = entry.generation.wrapping_add(1).max(1);
        entry.value = Some(value);
        self.live += 1;
        Ok(Key { index, generation: entry.generation })
    }

    /// The entry freed last, or a new one; `None` when all are taken.
    #[inline]
    fn vacancy(&mut self) -> Option<u32> {
        if let Some(index) = self.free.pop() {
            return Some(index);
        }
        if self.entries.len() == self.limit {
            return None;
        }
        self.entries.push(Entry { generation: 0, value: None });
        Some((self.entries.len() - 1) as u32)
    }

    /// Takes the value out and ends the name, or `None` for a dead name.
    pub fn remove(&mut self, key: Key) -> Option<T> {
        let entry = self.entries.get_mut(key.index as usize).filter(|entry| entry.generation == key.generation)?;
        let value = entry.value.take()?;
        self.free.push(key.index);
        self.live -= 1;
        Some(value)
    }

    /// Drops the value where it is and ends the name; whether it lived. Cheaper than [`Slots::remove`] for large values.
    pub fn discard(&mut self, key: Key) -> bool {
        let Some(entry) = self.entries.get_mut(key.index as usize).filter(|entry| entry.generation == key.generation)
        else {
            return false;
        };
        let lived = entry.value.is_some();
        if lived {
            entry.value = None;
            self.free.push(key.index);
            self.live -= 1;
        }
        lived
    }

    /// The value of a living name.
    #[inline]
    pub fn lookup(&self, key: Key) -> Option<&T> {
        let entry = self.entries.get(key.index as usize)?;
        if entry.generation == key.generation { entry.value.as_ref() } else { None }
    }

    /// The value of a living name, to be changed.
    #[inline]
    pub fn lookup_mut(&mut self, key: Key) -> Option<&mut T> {
        let entry = self.entries.get_mut(key.index as usize)?;
        if entry.generation == key.generation { entry.value.as_mut() } else { None }
    }

    /// The name of the entry that lives at that index.
    pub fn key_at(&self, index: u32) -> Option<Key> {
        let entry = self.entries.get(index as usize)?;
        entry.value.is_some().then_some(Key { index, generation: entry.generation })
    }

    /// How many entries live.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether none lives.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// How many entries may live.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The living entries with their names, in the order of their indices.
    pub fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| {
            let key = Key { index: index as u32, generation: entry.generation };
            entry.value.as_ref().map(|value| (key, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_name_finds_nothing() {
        let mut slots = Slots::new(2);
        let first = slots.insert("first").unwrap();
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second").unwrap();
        assert_eq!(second.index, first.index);
        assert_eq!((slots.lookup(first), slots.lookup(second)), (None, Some(&"second")));
        assert_eq!(slots.remove(first), None);
        assert!(!slots.discard(first) && slots.discard(second) && !slots.discard(second));
        assert!(slots.is_empty() && slots.insert("third").is_ok_and(|third| third.index == first.index));
    }

    #[test]
    fn the_limit_holds() {
        let mut slots = Slots::new(1);
        slots.insert(1).unwrap();
        assert_eq!(slots.insert(2), Err(2));
        assert_eq!(slots.len(), 1);
    }
}
