//! Facts about a socket, one bit each, as both backends of the kernel keep them.

/// Something that keeps its facts in the bits of a number. Which bit says what is each backend's own.
pub(super) trait Flagged {
    /// All facts.
    fn flags(&self) -> u32;

    /// The place where they are kept.
    fn flags_mut(&mut self) -> &mut u32;

    /// Whether one of them holds.
    #[inline]
    fn is(&self, flags: u32) -> bool {
        self.flags() & flags != 0
    }

    /// Makes them hold.
    #[inline]
    fn set(&mut self, flags: u32) {
        *self.flags_mut() |= flags;
    }

    /// Makes them hold no longer.
    #[inline]
    fn clear(&mut self, flags: u32) {
        *self.flags_mut() &= !flags;
    }
}
