//! Entries of a hub's stream as they are read, and which of them were put in. No connection, no clock.

use std::collections::{HashSet, VecDeque};

use super::MOST_KEPT;
use crate::bus::frames::{self, Said};
use crate::hub::Epoch;

/// The messages that were put in last, by who has published them and the how manieth of theirs.
#[derive(Default)]
pub struct Had {
    order: VecDeque<(u64, u64)>,
    all: HashSet<(u64, u64)>,
}

impl Had {
    /// Whether that one comes for the first time, as far as is known.
    pub fn is_first(&mut self, origin: u64, request: u64) -> bool {
        if !self.all.insert((origin, request)) {
            return false;
        }
        self.order.push_back((origin, request));
        if self.order.len() > MOST_KEPT
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
        true
    }
}

/// The last entry of an epoch that those behind it in a line of epochs follow.
pub fn end_of(line: &[u8], epoch: Epoch) -> Option<u64> {
    let line = std::str::from_utf8(line).ok()?;
    let ends = line.split(' ').filter_map(|part| part.split_once(':'));
    ends.filter(|(name, _)| name.parse() == Ok(epoch)).find_map(|(_, end)| end.parse().ok())
}

/// An entry of the stream.
pub struct Entry<'a> {
    /// In which epoch it was numbered.
    pub epoch: Epoch,
    /// Its number in the stream.
    pub seq: u64,
    /// Its number in its topic.
    pub offset: u64,
    /// Who has published it.
    pub origin: u64,
    /// The how manieth of theirs it is.
    pub request: u64,
    /// What is published.
    pub said: Said<'a>,
}

impl<'a> Entry<'a> {
    /// One as the script writes it.
    pub fn read(text: &'a [u8]) -> Option<Entry<'a>> {
        let end = memchr::memchr(b'\n', text)?;
        let mut words = std::str::from_utf8(&text[..end]).ok()?.split(' ');
        let epoch = words.next()?.parse().ok()?;
        let mut number = || words.next()?.parse::<u64>().ok();
        let (seq, offset, origin, request) = (number()?, number()?, number()?, number()?);
        Some(Entry { epoch, seq, offset, origin, request, said: frames::read_said(&text[end + 1..])? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_as_the_script_writes_it() {
        let said = Said { topic: "a", kind: crate::hub::Kind::Json, id: "", payload: b"{}" };
        let head = format!("{} 7 8 9 10 1700000000\n", Epoch(5));
        let text = [head.as_bytes(), &frames::said(&said)].concat();
        let entry = Entry::read(&text).unwrap();
        assert_eq!((entry.epoch, entry.seq, entry.offset, entry.origin, entry.request), (Epoch(5), 7, 8, 9, 10));
        assert_eq!(entry.said, said);
        for short in 0..text.len() {
            assert!(Entry::read(&text[..short]).is_none(), "{short}");
        }
    }
}
