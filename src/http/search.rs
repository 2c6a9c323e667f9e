//! The search for a head's end while it arrives in pieces.

use super::head::MOST_EMPTY_BYTES;

/// Finds out whether a head that arrives in pieces is worth parsing again, without reading any byte twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeadSearch {
    /// Bytes already looked at.
    at: u32,
    /// Whether anything but empty lines was seen.
    begun: bool,
    /// Whether the first line's end was told.
    line: bool,
    /// Whether the last byte, or the last but a CR, was a line's end.
    empty: bool,
}

/// In which portion a head without an end of so many bytes is: another one has begun after 4 KiB, and from 32 KiB on after a quarter
/// of the last power of two.
fn portion(len: usize) -> (u32, usize) {
    let shift = len.max(1).ilog2().saturating_sub(2).max(12);
    (shift, len >> shift)
}

impl HeadSearch {
    /// A search that begins at the first byte.
    pub fn new() -> HeadSearch {
        HeadSearch::default()
    }

    /// Whether nothing was searched yet.
    pub fn is_fresh(&self) -> bool {
        self.at == 0
    }

    /// Whether `bytes`, all that was received so far, should be parsed now: they hold the head's end, or their first line
    /// has just become whole, or another 4 KiB or quarter came, so that limits are enforced and garbage is seen early, and a head
    /// of a mebibyte in small pieces is not parsed a hundred times. Each byte is looked at once over all calls.
    pub fn scan(&mut self, bytes: &[u8]) -> bool {
        let from = self.at as usize;
        self.at = bytes.len() as u32;
        let mut fresh = bytes.get(from..).unwrap_or_default();
        if !self.begun {
            let Some(first) = fresh.iter().position(|byte| !matches!(byte, b'\r' | b'\n')) else {
                return bytes.len() > MOST_EMPTY_BYTES;
            };
            self.begun = true;
            fresh = &fresh[first..];
        }
        let mut worth = portion(from) != portion(bytes.len());
        while !fresh.is_empty() {
            if self.empty {
                let [first, rest @ ..] = fresh else { break };
                fresh = rest;
                worth |= *first == b'\n';
                self.empty = matches!(first, b'\r' | b'\n');
                continue;
            }
            let Some(end) = memchr::memchr(b'\n', fresh) else { break };
            worth |= !self.line;
            self.line = true;
            self.empty = true;
            fresh = &fresh[end + 1..];
        }
        worth
    }
}
