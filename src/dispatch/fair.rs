//! Turns: of those who wait with a key, only the first of each key stands in the line, and the others wait behind it.
//!
//! Who is served goes, and the next of its key stands at the line's end: round robin over the keys, in constant time, so that whoever
//! floods waits behind itself alone. (Requests count as one each, so that a deficit round robin would do the same.)
//!
//! Keys are hashed with a secret before they come here, so that nobody can choose where they lie. Memory is reserved with that of the
//! line; where no app asks for turns there is none of it.

/// No node, and no group.
const NONE: u32 = u32::MAX;

/// A node's place among those of its key.
#[derive(Clone, Copy)]
struct Member {
    /// [`NONE`]: it stands for itself.
    group: u32,
    previous: u32,
    next: u32,
}

const ALONE: Member = Member { group: NONE, previous: NONE, next: NONE };

/// Those who wait with the same key.
struct Group {
    key: u64,
    /// Who stands in the line.
    first: u32,
    last: u32,
    len: u32,
    /// The next of the same bucket, or of the free ones.
    next: u32,
}

/// How one who leaves had been waiting.
pub(super) enum Stood {
    /// For itself.
    Alone,
    /// Behind another of its key.
    Behind,
    /// As the first of its key; whose turn it is now.
    First(Option<u32>),
}

pub(super) struct Fair {
    /// By nodes, as far as any had a key.
    members: Vec<Member>,
    groups: Vec<Group>,
    /// The first of the free groups.
    free: u32,
    /// The first group of each; a power of two.
    buckets: Vec<u32>,
}

impl Fair {
    /// For a line of so many, in an array of so many nodes.
    pub fn new(limit: usize, nodes: usize) -> Fair {
        let buckets = vec![NONE; limit.clamp(1, 1 << 24).next_power_of_two()];
        Fair { members: Vec::with_capacity(nodes), groups: Vec::with_capacity(limit), free: NONE, buckets }
    }

    /// Whether it has room for as many as another, without more memory.
    pub fn is_as_large_as(&self, other: &Fair) -> bool {
        self.members.capacity() >= other.members.capacity() && self.buckets.len() >= other.buckets.len()
    }

    /// Takes the place of another, whose memory is left to be freed.
    pub fn take_over(&mut self, other: &mut Fair) {
        self.members.append(&mut other.members);
        self.groups.append(&mut other.groups);
        self.free = other.free;
        for group in 0..self.groups.len() as u32 {
            if self.groups[group as usize].len > 0 {
                self.file(group);
            }
        }
    }

    /// How many wait with a key.
    pub fn waiting(&self, key: u64) -> usize {
        self.find(key).map_or(0, |group| self.groups[group as usize].len as usize)
    }

    /// Has a node wait with a key; whether it is the first.
    pub fn join(&mut self, index: u32, key: u64) -> bool {
        if self.members.len() <= index as usize {
            self.members.resize(index as usize + 1, ALONE);
        }
        let Some(group) = self.find(key) else {
            let group = self.group(key, index);
            self.members[index as usize] = Member { group, ..ALONE };
            self.file(group);
            return true;
        };
        let known = &mut self.groups[group as usize];
        let previous = std::mem::replace(&mut known.last, index);
        known.len += 1;
        self.members[index as usize] = Member { group, previous, next: NONE };
        self.members[previous as usize].next = index;
        false
    }

    /// Takes a node away from those of its key.
    pub fn leave(&mut self, index: u32) -> Stood {
        let Some(member) = self.members.get_mut(index as usize) else { return Stood::Alone };
        let Member { group, previous, next } = std::mem::replace(member, ALONE);
        if group == NONE {
            return Stood::Alone;
        }
        let of_key = &mut self.groups[group as usize];
        of_key.len -= 1;
        match previous {
            NONE => of_key.first = next,
            _ => self.members[previous as usize].next = next,
        }
        match next {
            NONE => of_key.last = previous,
            _ => self.members[next as usize].previous = previous,
        }
        match (previous, next) {
            (NONE, NONE) => {
                self.dissolve(group);
                Stood::First(None)
            }
            (NONE, next) => Stood::First(Some(next)),
            _ => Stood::Behind,
        }
    }

    /// Whether a node waits behind another.
    pub fn is_behind(&self, index: u32) -> bool {
        self.members.get(index as usize).is_some_and(|member| member.group != NONE && member.previous != NONE)
    }

    /// How many keys and how many nodes wait, or what is wrong with them.
    pub fn count(&self, waits: impl Fn(u32) -> bool) -> Result<(usize, usize), &'static str> {
        let (mut keys, mut nodes) = (0, 0);
        for (number, group) in self.groups.iter().enumerate().filter(|(_, group)| group.len > 0) {
            if self.find(group.key) != Some(number as u32) {
                return Err("a key is not where it is looked for");
            }
            let (mut index, mut previous, mut count) = (group.first, NONE, 0);
            while index != NONE && count <= group.len {
                let member = self.members[index as usize];
                if member.group != number as u32 || member.previous != previous || !waits(index) {
                    return Err("one waits with a key that is not its own");
                }
                (previous, index, count) = (index, member.next, count + 1);
            }
            if previous != group.last || count != group.len {
                return Err("those of a key are more or fewer than it counts");
            }
            (keys, nodes) = (keys + 1, nodes + count as usize);
        }
        Ok((keys, nodes))
    }

    fn bucket(&self, key: u64) -> usize {
        key as usize & (self.buckets.len() - 1)
    }

    fn find(&self, key: u64) -> Option<u32> {
        let mut group = self.buckets[self.bucket(key)];
        while group != NONE && self.groups[group as usize].key != key {
            group = self.groups[group as usize].next;
        }
        (group != NONE).then_some(group)
    }

    /// A group of that one.
    fn group(&mut self, key: u64, first: u32) -> u32 {
        let group = Group { key, first, last: first, len: 1, next: NONE };
        let index = self.free;
        if index == NONE {
            self.groups.push(group);
            return self.groups.len() as u32 - 1;
        }
        self.free = self.groups[index as usize].next;
        self.groups[index as usize] = group;
        index
    }

    /// Puts a group into its bucket.
    fn file(&mut self, group: u32) {
        let bucket = self.bucket(self.groups[group as usize].key);
        self.groups[group as usize].next = std::mem::replace(&mut self.buckets[bucket], group);
    }

    /// Frees a group that nobody is in any more.
    fn dissolve(&mut self, group: u32) {
        let bucket = self.bucket(self.groups[group as usize].key);
        let next = self.groups[group as usize].next;
        if self.buckets[bucket] == group {
            self.buckets[bucket] = next;
        } else {
            let mut at = self.buckets[bucket] as usize;
            while self.groups[at].next != group {
                at = self.groups[at].next as usize;
            }
            self.groups[at].next = next;
        }
        self.groups[group as usize].next = std::mem::replace(&mut self.free, group);
    }
}
