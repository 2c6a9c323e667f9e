//! Where a message stands: in which epoch of its hub, and the how manieth of its topic it is. What clients keep, and say when they come back.

use std::fmt;
use std::str::FromStr;

/// Digits of an epoch: 64 bits, five in each.
const DIGITS: usize = 13;
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

impl fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; DIGITS];
        for (at, digit) in text.iter_mut().rev().enumerate() {
            *digit = ALPHABET[(self.0 >> (5 * at) & 31) as usize];
        }
        formatter.write_str(&String::from_utf8_lossy(&text))
    }
}

impl FromStr for Epoch {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Epoch, Malformed> {
        let digit = |number: Option<u64>, byte: u8| {
            let digit = ALPHABET.iter().position(|known| *known == byte)? as u64;
            let number = number?;
            // The first digit has one bit too many.
            (number >> 59 == 0).then_some(number << 5 | digit)
        };
        let number = text.bytes().fold(Some(0), digit);
        number.filter(|_| text.len() == DIGITS).map(Epoch).ok_or(Malformed)
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

/// Where a stream of several topics stands, in the order in which it names them: `epoch:offset,offset,…`. `-` stands for a topic that was not
/// read in this epoch yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Positions {
    epoch: Epoch,
    offsets: Vec<Option<u64>>,
}

impl Positions {
    /// Of cursors, one for each topic: the epoch is the last one of theirs.
    pub fn new(cursors: impl Iterator<Item = Position> + Clone) -> Positions {
        let epoch = cursors.clone().map(|at| at.epoch).max().unwrap_or(Epoch::NONE);
        let offsets = cursors.map(|at| (at.epoch == epoch).then_some(at.offset)).collect();
        Positions { epoch, offsets }
    }

    /// What a client says that comes back to so many topics, for each of them: where it was. What cannot be understood, or is about another
    /// number of topics, is [`Position::NOWHERE`] for all, so that each has its gap.
    pub fn of_topics(text: &str, topics: usize) -> Vec<Position> {
        let positions = text.parse::<Positions>().ok().filter(|positions| positions.offsets.len() == topics);
        let Some(Positions { epoch, offsets }) = positions else { return vec![Position::NOWHERE; topics] };
        let position = |offset: u64| Position { epoch, offset };
        offsets.into_iter().map(|offset| offset.map_or(Position::NOWHERE, position)).collect()
    }
}

impl fmt::Display for Positions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.epoch)?;
        for (at, offset) in self.offsets.iter().enumerate() {
            formatter.write_str(if at == 0 { ":" } else { "," })?;
            match offset {
                Some(offset) => write!(formatter, "{offset}")?,
                None => formatter.write_str("-")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Positions {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Positions, Malformed> {
        let (epoch, offsets) = text.split_once(':').ok_or(Malformed)?;
        let offset = |text: &str| if text == "-" { Ok(None) } else { number(text).map(Some) };
        let offsets: Vec<_> = offsets.split(',').take(MOST_OFFSETS + 1).map(offset).collect::<Result<_, _>>()?;
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
