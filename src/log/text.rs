//! Bytes for lines: time stamps, numbers and escapes. Nothing here allocates beyond the buffer that it appends to.

/// A moment as a calendar date and a time of day, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    /// The year, as in 2026.
    pub year: u32,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// 0 to 23.
    pub hour: u32,
    /// 0 to 59.
    pub minute: u32,
    /// 0 to 59.
    pub second: u32,
}

impl Calendar {
    /// The date and time of that many seconds since 1970-01-01T00:00:00Z, in the Gregorian calendar.
    pub fn of(seconds: u64) -> Calendar {
        let (days, rest) = (seconds / 86_400, (seconds % 86_400) as u32);
        // Years that begin in March put the leap day last; eras of 400 years all have 146,097 days.
        let shifted = days + 719_468;
        let day_of_era = shifted % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + shifted / 146_097 * 400 + u64::from(month <= 2);
        Calendar {
            year: year as u32,
            month: month as u32,
            day: day as u32,
            hour: rest / 3600,
            minute: rest / 60 % 60,
            second: rest % 60,
        }
    }
}

/// Month names as log readers expect them.
pub const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Appends a number with leading zeros to at least `width` digits (at most 8).
pub fn put_padded(out: &mut Vec<u8>, number: u32, width: usize) {
    let mut digits = itoa::Buffer::new();
    let digits = digits.format(number).as_bytes();
    let zeros = width.min(8).saturating_sub(digits.len());
    out.extend_from_slice(&b"00000000"[..zeros]);
    out.extend_from_slice(digits);
}

/// Appends a number.
pub fn put_number(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// Appends `2026-11-21T03:45:56`, with `separator` between date and time.
pub fn put_date_time(out: &mut Vec<u8>, seconds: u64, separator: u8) {
    let at = Calendar::of(seconds);
    put_padded(out, at.year, 4);
    for part in [at.month, at.day] {
        out.push(b'-');
        put_padded(out, part, 2);
    }
    out.push(separator);
    put_clock(out, &at);
}

/// Appends `03:45:56`.
pub fn put_clock(out: &mut Vec<u8>, at: &Calendar) {
    put_padded(out, at.hour, 2);
    for part in [at.minute, at.second] {
        out.push(b':');
        put_padded(out, part, 2);
    }
}

/// Where a line is made in one piece, for less than it costs to append its parts one by one: as long as it fits, and holds nothing that has to
/// be escaped.
pub struct Piece {
    bytes: [u8; Piece::ROOM],
    length: usize,
    /// Whether all so far was so.
    plain: bool,
}

impl Default for Piece {
    fn default() -> Piece {
        Piece { bytes: [0; Piece::ROOM], length: 0, plain: true }
    }
}

impl Piece {
    const ROOM: usize = 1024;

    /// Begins a line.
    #[inline]
    pub fn begin(&mut self) {
        (self.length, self.plain) = (0, true);
    }

    /// The line, unless it has to be made in another way.
    #[inline]
    pub fn line(&self) -> Option<&[u8]> {
        self.plain.then(|| &self.bytes[..self.length])
    }

    #[inline]
    fn room<const N: usize>(&mut self) -> Option<&mut [u8; N]> {
        let room = self.bytes.get_mut(self.length..).and_then(|rest| rest.first_chunk_mut());
        match room {
            Some(_) => self.length += N,
            None => self.plain = false,
        }
        room
    }

    /// Bytes that need no escape, of a length that the compiler knows.
    #[inline]
    pub fn fixed<const N: usize>(&mut self, bytes: &[u8; N]) {
        if let Some(room) = self.room::<N>() {
            *room = *bytes;
        }
    }

    /// Bytes that need no escape.
    #[inline]
    pub fn short(&mut self, bytes: &[u8]) {
        self.copy(bytes, false);
    }

    /// Bytes that may need one.
    #[inline]
    pub fn text(&mut self, bytes: &[u8]) {
        self.copy(bytes, true);
    }

    #[inline(always)]
    fn copy(&mut self, bytes: &[u8], judge: bool) {
        let Some(room) = self.bytes.get_mut(self.length..self.length + bytes.len()) else { return self.plain = false };
        self.length += bytes.len();
        let ((words, rest), (room_words, room_rest)) = (bytes.as_chunks::<8>(), room.as_chunks_mut::<8>());
        let mut special = 0;
        for (word, room) in words.iter().zip(room_words) {
            if judge {
                special |= special_bits(u64::from_le_bytes(*word));
            }
            *room = *word;
        }
        self.plain &= special == 0;
        // The rest in two pieces that overlap, or byte by byte where it is shorter than such a piece.
        let word = match (rest.first_chunk::<4>(), rest.last_chunk::<4>()) {
            (Some(first), Some(last)) => {
                if let Some(room) = room_rest.first_chunk_mut() {
                    *room = *first;
                }
                if let Some(room) = room_rest.last_chunk_mut() {
                    *room = *last;
                }
                u64::from(u32::from_le_bytes(*first)) << 32 | u64::from(u32::from_le_bytes(*last))
            }
            _ => {
                let mut word = u64::from_le_bytes(*b"        ");
                for (byte, room) in rest.iter().zip(room_rest) {
                    word = word << 8 | u64::from(*byte);
                    *room = *byte;
                }
                word
            }
        };
        self.plain &= !judge || special_bits(word) == 0;
    }

    /// A number.
    #[inline]
    pub fn number(&mut self, number: u64) {
        match number {
            0..10 => self.fixed(&[b'0' + number as u8]),
            _ => self.short(itoa::Buffer::new().format(number).as_bytes()),
        }
    }

    /// A number below 1000, in three digits.
    #[inline]
    pub fn three_digits(&mut self, number: u32) {
        self.fixed(&[number / 100 % 10, number / 10 % 10, number % 10].map(|digit| b'0' + digit as u8));
    }

    /// As [`put_milliseconds`].
    #[inline]
    pub fn milliseconds(&mut self, micros: u64) {
        self.number(micros / 1000);
        self.fixed(b".");
        self.three_digits((micros % 1000) as u32);
    }
}

/// Appends milliseconds with three decimals, as in `1.234`, from microseconds.
pub fn put_milliseconds(out: &mut Vec<u8>, micros: u64) {
    put_number(out, micros / 1000);
    out.push(b'.');
    put_padded(out, (micros % 1000) as u32, 3);
}

/// Appends seconds with six decimals, as in `0.001234`, from microseconds.
pub fn put_seconds(out: &mut Vec<u8>, micros: u64) {
    put_number(out, micros / 1_000_000);
    out.push(b'.');
    put_padded(out, (micros % 1_000_000) as u32, 6);
}

/// Appends bytes as nginx writes them: quotes, backslashes, controls and everything above 0x7E become `\xHH`, so
/// that nothing from the network can end a field, a line, or steer a terminal.
pub fn put_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    put_runs(out, bytes, first_special, put_hex);
}

/// The same, with spaces and one more byte escaped: for fields that nothing but those separate.
pub fn put_escaped_but(out: &mut Vec<u8>, bytes: &[u8], stop: u8) {
    let special = |bytes: &[u8]| bytes.iter().position(|byte| is_special(*byte) || [b' ', stop].contains(byte));
    put_runs(out, bytes, special, put_hex);
}

/// Appends bytes as Apache writes them (`ap_escape_logitem`).
pub fn put_apache(out: &mut Vec<u8>, bytes: &[u8]) {
    put_runs(out, bytes, first_special, |out, byte| match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        0x08 => out.extend_from_slice(b"\\b"),
        0x0b => out.extend_from_slice(b"\\v"),
        _ => {
            let digit = |half: u8| HEX[usize::from(half)].to_ascii_lowercase();
            out.extend_from_slice(&[b'\\', b'x', digit(byte >> 4), digit(byte & 15)]);
        }
    });
}

fn put_hex(out: &mut Vec<u8>, byte: u8) {
    out.extend_from_slice(&[b'\\', b'x', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
}

/// Appends bytes as the inside of a JSON string. What is not UTF-8 becomes U+FFFD; controls, DEL and the C1 controls are
/// escaped, so that a line shown on a terminal cannot steer it.
pub fn put_json(out: &mut Vec<u8>, bytes: &[u8]) {
    if first_special(bytes).is_none() {
        return out.extend_from_slice(bytes);
    }
    if bytes.is_ascii() {
        return put_json_ascii(out, bytes);
    }
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\0'..='\u{7f}' => put_json_ascii(out, &[character as u8]),
                '\u{80}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => put_unicode_escape(out, character as u16),
                _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
}

fn put_json_ascii(out: &mut Vec<u8>, bytes: &[u8]) {
    put_runs(out, bytes, first_special, |out, byte| match byte {
        b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
        b'\n' => out.extend_from_slice(b"\\n"),
        b'\r' => out.extend_from_slice(b"\\r"),
        b'\t' => out.extend_from_slice(b"\\t"),
        _ => put_unicode_escape(out, u16::from(byte)),
    });
}

fn put_unicode_escape(out: &mut Vec<u8>, unit: u16) {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(HEX[usize::from(unit >> shift & 15)].to_ascii_lowercase());
    }
}

/// Appends text for a reader: controls become spaces or `\xHH`, everything else stays.
pub fn put_text(out: &mut Vec<u8>, text: &str) {
    for character in text.chars() {
        match character {
            '\n' | '\t' | '\r' => out.push(b' '),
            '\0'..='\u{1f}' | '\u{7f}' => put_escaped(out, &[character as u8]),
            '\u{80}'..='\u{9f}' => put_unicode_escape(out, character as u16),
            _ => out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

/// Controls, DEL, quotes, backslashes and what is not ASCII.
fn is_special(byte: u8) -> bool {
    !(0x20..0x7f).contains(&byte) || byte == b'"' || byte == b'\\'
}

/// Not 0 if any of eight bytes is such.
#[inline]
fn special_bits(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    // The high bit of a byte is set where it is zero, and possibly above such a byte.
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let unequal = |byte: u8| word ^ (ONES * u64::from(byte));
    let below_space = word.wrapping_sub(ONES * 0x20);
    let special = word | below_space | word.wrapping_add(ONES) | zero(unequal(b'"')) | zero(unequal(b'\\'));
    special & (ONES << 7)
}

/// Where the first such byte is; eight are looked at together, because nearly all texts have none.
fn first_special(bytes: &[u8]) -> Option<usize> {
    let is_plain = |word: &&[u8; 8]| special_bits(u64::from_le_bytes(**word)) == 0;
    let plain = 8 * bytes.as_chunks::<8>().0.iter().take_while(is_plain).count();
    bytes[plain..].iter().position(|byte| is_special(*byte)).map(|place| plain + place)
}

/// Copies `bytes` as they are but for those that `special` finds, which are escaped.
fn put_runs(
    out: &mut Vec<u8>,
    bytes: &[u8],
    special: impl Fn(&[u8]) -> Option<usize>,
    escape: impl Fn(&mut Vec<u8>, u8),
) {
    let mut rest = bytes;
    while let Some(place) = special(rest) {
        out.extend_from_slice(&rest[..place]);
        escape(out, rest[place]);
        rest = &rest[place + 1..];
    }
    out.extend_from_slice(rest);
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

#[cfg(test)]
mod tests {
    use super::*;

    fn text(put: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        put(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn dates_are_right_around_leap_days_and_years() {
        // From `date -u -d @SECONDS +%FT%T`.
        let cases = [
            (0, "1970-01-01T00:00:00"),
            (951_782_399, "2000-02-28T23:59:59"),
            (951_782_400, "2000-02-29T00:00:00"),
            (951_868_800, "2000-03-01T00:00:00"),
            (1_709_164_800, "2024-02-29T00:00:00"),
            (1_735_689_599, "2024-12-31T23:59:59"),
            (1_795_232_756, "2026-11-21T03:45:56"),
            (4_107_542_400, "2100-03-01T00:00:00"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(text(|out| put_date_time(out, seconds, b'T')), expected);
        }
    }

    #[test]
    fn nothing_from_the_network_ends_a_field_or_steers_a_terminal() {
        let hostile = b"/a\"b\\c\r\n\x1b[31m\x7f\xff d";
        assert_eq!(text(|out| put_escaped(out, hostile)), r"/a\x22b\x5Cc\x0D\x0A\x1B[31m\x7F\xFF d");
        assert_eq!(text(|out| put_apache(out, hostile)), r#"/a\"b\\c\r\n\x1b[31m\x7f\xff d"#);
        assert_eq!(text(|out| put_escaped_but(out, b"a b|c\"d,e", b'|')), r"a\x20b\x7Cc\x22d,e");
        assert_eq!(text(|out| put_json(out, hostile)), r#"/a\"b\\c\r\n\u001b[31m\u007f"#.to_owned() + "\u{fffd} d");
        assert_eq!(text(|out| put_text(out, "a\nb\u{1b}c\u{9b}dé")), r"a b\x1Bc\u009bdé");
    }

    #[test]
    fn a_special_byte_is_found_wherever_it_is() {
        for special in 0..=u8::MAX {
            for length in 1..20 {
                for place in 0..length {
                    let mut bytes = [b'!', b'~', b' ', b'#', b'[', b']', b'}'].repeat(3)[..length].to_vec();
                    bytes[place] = special;
                    let expected = bytes.iter().position(|byte| is_special(*byte));
                    assert_eq!(first_special(&bytes), expected, "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn json_strings_read_back() {
        for sample in ["plain", "é€𝄞", "tab\tnul\0 \u{85}\u{2028}", "\"quoted\" \\ back"] {
            let line = format!("\"{}\"", text(|out| put_json(out, sample.as_bytes())));
            assert_eq!(serde_json::from_str::<String>(&line).unwrap(), sample);
        }
    }

    #[test]
    fn milliseconds_have_three_decimals() {
        assert_eq!(text(|out| put_milliseconds(out, 1_234_005)), "1234.005");
        assert_eq!(text(|out| put_milliseconds(out, 7)), "0.007");
    }
}
