//! Requests' ids as text.

/// A request's id: sixteen hexadecimal digits.
pub type Id = [u8; 16];

/// The id of that number.
pub fn id_text(id: u64) -> Id {
    let mut text = [0; 16];
    text[..8].copy_from_slice(&hexadecimal((id >> 32) as u32));
    text[8..].copy_from_slice(&hexadecimal(id as u32));
    text
}

/// Eight digits at a time: each four bits are moved to a byte of their own, and those above nine on to the letters.
fn hexadecimal(number: u32) -> [u8; 8] {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let spread = u64::from(number);
    let spread = (spread | spread << 16) & 0x0000_ffff_0000_ffff;
    let spread = (spread | spread << 8) & 0x00ff_00ff_00ff_00ff;
    let spread = (spread | spread << 4) & (0x0f * ONES);
    let letters = (spread + 6 * ONES) >> 4 & ONES;
    (spread + u64::from(b'0') * ONES + letters * u64::from(b'a' - b'9' - 1)).to_be_bytes()
}

#[cfg(test)]
mod tests {
    #[test]
    fn ids_are_sixteen_digits() {
        for id in [0, 1, 9, 10, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210, 0xa0b1_c2d3_e4f5_9a90, u64::MAX] {
            assert_eq!(super::id_text(id), *format!("{id:016x}").as_bytes());
        }
    }
}
