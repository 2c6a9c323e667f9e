//! Where a message stands: in which epoch of its hub, and the how manieth of its topic it is. What clients keep, and say when they come back.

use std::fmt::{self, Write};
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};

use crate::http::query;

/// Digits of an epoch: 64 bits, five in each.
const DIGITS: usize = 13;
/// Digits of a topic's tag.
const TAG_DIGITS: usize = 10;
/// Crockford's base 32, in small letters.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Offsets of [`Positions`] at most: more topics than any socket may have.
const MOST_OFFSETS: usize = 1024;

/// A life of a hub: as long as it lasts, a number is never given to two messages of a topic. Written as thirteen digits of base 32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// That of no hub.
    pub const NONE: Epoch = Epoch(0);

    /// A new one, from the time in seconds since 1970 and any random number: later ones are greater.
    pub fn new(seconds: u64, random: u64) -> Epoch {
        Epoch(seconds << 28 | random & 0x0fff_ffff)
    }
}

/// Writes the last bits of a number, five to a digit.
fn write_digits(formatter: &mut fmt::Formatter<'_>, number: u64, count: usize) -> fmt::Result {
    (0..count).rev().try_for_each(|at| formatter.write_char(char::from(ALPHABET[(number >> (5 * at) & 31) as usize])))
}

/// The number that so many digits say.
fn read_digits(text: &str, count: usize) -> Option<u64> {
    let digit = |number: Option<u64>, byte: u8| {
        let digit = ALPHABET.iter().position(|known| *known == byte)? as u64;
        let number = number?;
        // The first of thirteen digits has one bit too many.
        (number >> 59 == 0).then_some(number << 5 | digit)
    };
    text.bytes().fold(Some(0), digit).filter(|_| text.len() == count)
}

impl fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_digits(formatter, self.0, DIGITS)
    }
}

impl FromStr for Epoch {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Epoch, Malformed> {
        read_digits(text, DIGITS).map(Epoch).ok_or(Malformed)
    }
}

/// What is no position as a hub writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

impl fmt::Display for Malformed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("no id of a message: expected \"EPOCH:OFFSET\"")
    }
}

impl std::error::Error for Malformed {}

/// A message's place in its topic, written `epoch:offset`. A cursor is the position of the message that was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// The life of the hub.
    pub epoch: Epoch,
    /// Counted from 1; 0 is before the first.
    pub offset: u64,
}

impl Position {
    /// A place in no topic: whoever comes back from there may have missed anything.
    pub const NOWHERE: Position = Position { epoch: Epoch::NONE, offset: 0 };
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.epoch, self.offset)
    }
}

impl FromStr for Position {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Position, Malformed> {
        let (epoch, offset) = text.split_once(':').ok_or(Malformed)?;
        Ok(Position { epoch: epoch.parse()?, offset: number(offset)? })
    }
}

/// A number as it is written here: without a sign and without leading zeros.
fn number(text: &str) -> Result<u64, Malformed> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|_| is_plain).ok_or(Malformed)
}

/// What stands for a topic's name in [`Positions`]: 50 bits of its SHA-256, so that nobody finds another name that has the same by chance, and as long for
/// long names as for short ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag(u64);

impl Tag {
    /// That of a topic.
    pub fn of(topic: &str) -> Tag {
        let hash = digest(&SHA256, topic.as_bytes());
        let number = hash.as_ref().first_chunk().map_or(0, |first| u64::from_be_bytes(*first));
        Tag(number >> (64 - 5 * TAG_DIGITS))
    }
}

/// Where a stream of several topics stands, in whatever order: `epoch:~tag=offset,~tag=offset,…`, each topic by its [`Tag`]. One that was not read in
/// this epoch yet is left out. Clients may say a topic's name, percent-encoded, in the place of its tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    epoch: Epoch,
    offsets: Vec<(Tag, u64)>,
}

impl Positions {
    /// Of cursors, one for each topic: the epoch is the last one of theirs.
    pub fn new(cursors: impl Iterator<Item = (Tag, Position)> + Clone) -> Positions {
        let epoch = cursors.clone().map(|(_, at)| at.epoch).max().unwrap_or(Epoch::NONE);
        let offsets = cursors.filter(|(_, at)| at.epoch == epoch).map(|(tag, at)| (tag, at.offset)).collect();
        Positions { epoch, offsets }
    }

    /// Where it stands in that topic. If it says nothing of it, that is [`Position::NOWHERE`], so that there is a gap.
    pub fn of(&self, topic: &str) -> Position {
        let tag = Tag::of(topic);
        let known = self.offsets.iter().find(|(known, _)| *known == tag);
        known.map_or(Position::NOWHERE, |(_, offset)| Position { epoch: self.epoch, offset: *offset })
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:", self.epoch)?;
        for (at, (tag, offset)) in self.offsets.iter().enumerate() {
            formatter.write_str(if at == 0 { "~" } else { ",~" })?;
            write_digits(formatter, tag.0, TAG_DIGITS)?;
            write!(formatter, "={offset}")?;
        }
        Ok(())
    }
}

impl FromStr for Positions {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Positions, Malformed> {
        let (epoch, offsets) = text.split_once(':').ok_or(Malformed)?;
        let one = |text: &str| {
            let (name, offset) = text.rsplit_once('=').ok_or(Malformed)?;
            let tag = match name.strip_prefix('~') {
                Some(digits) => Tag(read_digits(digits, TAG_DIGITS).ok_or(Malformed)?),
                None => Tag::of(std::str::from_utf8(&query::decode(name.as_bytes())).map_err(|_| Malformed)?),
            };
            Ok((tag, number(offset)?))
        };
        let all = offsets.split(',').take(MOST_OFFSETS + 1).filter(|text| !text.is_empty());
        let offsets: Vec<_> = all.map(one).collect::<Result<_, _>>()?;
        if offsets.len() > MOST_OFFSETS {
            return Err(Malformed);
        }
        Ok(Positions { epoch: epoch.parse()?, offsets })
    }
}

/// From where a subscriber reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// What is published from now on.
    Now,
    /// What was published behind that position.
    After(Position),
}

/// Messages that a subscriber has missed: those behind `from`, up to and with `to`. Where the epochs differ, nobody knows how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What it had read last.
    pub from: Position,
    /// What is before the first that it gets.
    pub to: Position,
}
