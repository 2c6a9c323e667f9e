//! The search for the byte that ends a piece of a head: a name, a value, a target.
//!
//! Sixteen bytes are looked at together where SSE2 is there (every x86-64 has it, so that nothing is asked at run time), eight
//! elsewhere. A search ends at the first byte that is out of the ordinary; what that byte means is the caller's affair.

/// Which bytes may stand in a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Letters, digits and the hyphen: what nearly every field's name is made of.
    Name,
    /// Anything but controls and DEL (RFC 9110 §5.5). HTAB ends the search, too, although it is legal.
    Value,
    /// Visible ASCII without `#` (RFC 9112 §3.2).
    Target,
}

/// Where the first byte from `from` on lies that may not stand in such a piece; `None` when there is none, or when `bytes` are
/// fewer than are looked at together: no whole head is as short as that.
#[inline(always)]
pub(crate) fn end_of(piece: Piece, bytes: &[u8], from: usize) -> Option<usize> {
    let last = bytes.len().checked_sub(WINDOW)?;
    let mut at = from;
    while at <= last {
        let strangers = wide::strangers(piece, bytes[at..].first_chunk::<WINDOW>()?);
        if strangers != 0 {
            return Some(at + strangers.trailing_zeros() as usize / BITS);
        }
        at += WINDOW;
    }
    // A window from here would reach beyond the end: it is moved back, and what lies before `at` is shifted out of the result.
    let seen = at - last;
    let strangers = wide::strangers(piece, bytes[last..].first_chunk::<WINDOW>()?);
    let strangers = if seen < WINDOW { strangers >> (seen * BITS) } else { 0 };
    (strangers != 0).then(|| at + strangers.trailing_zeros() as usize / BITS)
}

#[cfg(target_arch = "x86_64")]
use sse2 as wide;
#[cfg(not(target_arch = "x86_64"))]
use words as wide;

/// Bytes looked at together.
const WINDOW: usize = wide::WINDOW;
/// Bits of the result that stand for one byte.
const BITS: usize = wide::BITS;

#[cfg(target_arch = "x86_64")]
mod sse2 {
    use std::arch::x86_64::*;

    use super::Piece;

    pub(super) const WINDOW: usize = 16;
    pub(super) const BITS: usize = 1;

    /// One bit for each byte that may not stand in `piece`.
    #[inline(always)]
    pub(super) fn strangers(piece: Piece, window: &[u8; WINDOW]) -> u32 {
        // SAFETY: SSE2 is part of x86-64, and the load, which needs no alignment, takes the sixteen bytes of the window.
        unsafe {
            let bytes = _mm_loadu_si128(window.as_ptr().cast());
            match piece {
                Piece::Name => !_mm_movemask_epi8(name_bytes(bytes)) as u32 & 0xffff,
                Piece::Value => _mm_movemask_epi8(value_strangers(bytes)) as u32,
                Piece::Target => _mm_movemask_epi8(target_strangers(bytes)) as u32,
            }
        }
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn name_bytes(bytes: __m128i) -> __m128i {
        let lower = _mm_or_si128(bytes, _mm_set1_epi8(0x20));
        let letter_or_digit = _mm_or_si128(within(lower, b'a', b'z'), within(bytes, b'0', b'9'));
        _mm_or_si128(letter_or_digit, equal(bytes, b'-'))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn value_strangers(bytes: __m128i) -> __m128i {
        let control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
        _mm_or_si128(control, equal(bytes, 0x7f))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn target_strangers(bytes: __m128i) -> __m128i {
        // Signed: what has its high bit set is below all others.
        let outside = _mm_cmplt_epi8(bytes, _mm_set1_epi8(0x21));
        _mm_or_si128(outside, _mm_or_si128(equal(bytes, 0x7f), equal(bytes, b'#')))
    }

    #[inline]
    #[target_feature(enable = "sse2")]
    fn equal(bytes: __m128i, byte: u8) -> __m128i {
        _mm_cmpeq_epi8(bytes, _mm_set1_epi8(byte as i8))
    }

    /// Moves the range to the lower end of the signed ones, where one comparison tells.
    #[inline]
    #[target_feature(enable = "sse2")]
    fn within(bytes: __m128i, first: u8, last: u8) -> __m128i {
        let moved = _mm_add_epi8(bytes, _mm_set1_epi8(0x80u8.wrapping_sub(first) as i8));
        _mm_cmplt_epi8(moved, _mm_set1_epi8((0x80 + (last - first) + 1) as i8))
    }
}

/// The same in a machine word; also what the tests hold the other one against.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod words {
    use super::Piece;

    pub(super) const WINDOW: usize = 8;
    #[cfg(not(target_arch = "x86_64"))]
    pub(super) const BITS: usize = 8;

    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;

    /// The high bit of each byte that may not stand in `piece`.
    #[inline(always)]
    pub(super) fn strangers(piece: Piece, window: &[u8; WINDOW]) -> u64 {
        let word = u64::from_le_bytes(*window);
        let low = word & !HIGH;
        // No carry leaves a byte: both summands are below 0x80.
        let from = |low: u64, byte: u8| low + ONES * u64::from(0x80 - byte);
        let within = |low: u64, first: u8, last: u8| from(low, first) & !from(low, last + 1);
        let is = |byte: u8| !from(low ^ (ONES * u64::from(byte)), 1);
        HIGH & match piece {
            Piece::Name => {
                let lower = low | (ONES * 0x20);
                word | !(within(lower, b'a', b'z') | within(low, b'0', b'9') | is(b'-'))
            }
            Piece::Value => !word & (!from(low, 0x20) | is(0x7f)),
            Piece::Target => word | !from(low, 0x21) | is(0x7f) | is(b'#'),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn belongs(piece: Piece, byte: u8) -> bool {
        match piece {
            Piece::Name => byte.is_ascii_alphanumeric() || byte == b'-',
            Piece::Value => byte >= 0x20 && byte != 0x7f,
            Piece::Target => (0x21..0x7f).contains(&byte) && byte != b'#',
        }
    }

    #[test]
    fn every_byte_is_told_at_every_place() {
        for piece in [Piece::Name, Piece::Value, Piece::Target] {
            for byte in 0..=255u8 {
                for place in 0..40 {
                    for from in [0, 1, 7, place, 39] {
                        let mut bytes = *b"abcdefghijklmnopqrstuvwxyz0123456789-XYZ";
                        bytes[place] = byte;
                        let expected = (from..40).find(|at| !belongs(piece, bytes[*at]));
                        assert_eq!(end_of(piece, &bytes, from), expected, "{piece:?} {byte:#x} at {place} from {from}");
                    }
                }
            }
        }
    }

    #[test]
    fn both_ways_tell_the_same() {
        for piece in [Piece::Name, Piece::Value, Piece::Target] {
            for byte in 0..=255u8 {
                for other in [b'a', b' ', 0, 0xff, 0x80] {
                    let mut window = [other; 8];
                    window[3] = byte;
                    let strangers = words::strangers(piece, &window);
                    for (place, byte) in window.iter().enumerate() {
                        let bits = (strangers >> (8 * place)) as u8;
                        assert_eq!(bits, if belongs(piece, *byte) { 0 } else { 0x80 }, "{piece:?} {byte:#x}");
                    }
                }
            }
        }
    }

    #[test]
    fn the_end_of_the_bytes_is_none() {
        assert_eq!(end_of(Piece::Name, b"0123456789abcdef", 16), None);
        assert_eq!(end_of(Piece::Name, b"0123456789abcdef", 0), None);
        assert_eq!(end_of(Piece::Name, b"0123456789abcde:", 16), None);
        assert_eq!(end_of(Piece::Name, b"0123456789abcde:", 40), None);
        assert_eq!(end_of(Piece::Name, b"a:", 0), None);
    }
}
