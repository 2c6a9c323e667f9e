//! Dates as HTTP writes them (IMF-fixdate, RFC 9110 §5.6.7), by integer arithmetic.

const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";

/// The date of that many seconds since 1970-01-01, like `Sun, 06 Nov 1994 08:49:37 GMT`. Years above 9999 are held at the
/// last second of that one, because the format has no room for them.
pub fn date(unix_seconds: u64) -> [u8; 29] {
    const LAST: u64 = 253_402_300_799;
    const DAYS: &[u8; 21] = b"ThuFriSatSunMonTueWed";
    let seconds = unix_seconds.min(LAST);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    let weekday = (days % 7) as usize * 3;
    text[..3].copy_from_slice(&DAYS[weekday..weekday + 3]);
    two(&mut text, 5, day);
    let name = (month as usize - 1) * 3;
    text[8..11].copy_from_slice(&MONTHS[name..name + 3]);
    two(&mut text, 12, year / 100);
    two(&mut text, 14, year % 100);
    two(&mut text, 17, second / 3600);
    two(&mut text, 20, second / 60 % 60);
    two(&mut text, 23, second % 60);
    text
}

/// The seconds since 1970-01-01 of a date in one of the three forms of RFC 9110 §5.6.7; `None` for what is none, or lies before. Of a year of
/// two digits nobody knows the century: it is taken for the one between 1970 and 2069.
pub fn parse_date(text: &[u8]) -> Option<u64> {
    let words: Vec<&[u8]> = text.split(|byte| b" ,-".contains(byte)).filter(|word| !word.is_empty()).take(7).collect();
    // `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT` and `Sun Nov  6 08:49:37 1994`.
    let (day, month, year, time) = match words[..] {
        [_, day, month, year, time, b"GMT"] => (day, month, year, time),
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let month = MONTHS.chunks(3).position(|name| name == month)? as u64 + 1;
    let (day, given) = (digits(day, 2)?, digits(year, 4)?);
    let year = match year.len() {
        2 if given < 70 => given + 2000,
        2 => given + 1900,
        _ => given,
    };
    let mut parts = time.split(|byte| *byte == b':').map(|part| digits(part, 2).filter(|_| part.len() == 2));
    let (Some(hour), Some(minute), Some(second), None) = (parts.next()?, parts.next()?, parts.next()?, parts.next())
    else {
        return None;
    };
    // A leap second counts as the one before it.
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_of(year, month, day);
    (civil(days) == (year, month, day)).then(|| days * 86_400 + hour * 3600 + minute * 60 + second.min(59))
}

/// A time in seconds and milliseconds since 1970-01-01, as decimal text: `1700000000.012`. There are ten digits before the point, which is
/// enough until the year 2286.
#[derive(Clone, Copy, Debug)]
pub struct Start([u8; 14]);

impl Start {
    /// The time of so many microseconds since 1970-01-01.
    pub const fn new(micros: u64) -> Start {
        let mut text = *b"0000000000.000";
        let (mut seconds, mut at) = (micros / 1_000_000, 10);
        while at > 0 {
            at -= 1;
            text[at] += (seconds % 10) as u8;
            seconds /= 10;
        }
        Start(text).with_millis(micros / 1000 % 1000)
    }

    /// So many milliseconds, of 999 at most, of the same second.
    #[inline]
    pub const fn with_millis(self, millis: u64) -> Start {
        let Start(mut text) = self;
        text[11] = b'0' + (millis / 100) as u8;
        text[12] = b'0' + (millis / 10 % 10) as u8;
        text[13] = b'0' + (millis % 10) as u8;
        Start(text)
    }

    /// The text.
    #[inline]
    pub const fn text(&self) -> &[u8; 14] {
        &self.0
    }
}

fn digits(text: &[u8], most: usize) -> Option<u64> {
    let fine = (1..=most).contains(&text.len()) && text.iter().all(u8::is_ascii_digit);
    fine.then(|| text.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}

/// The days since 1970-01-01 of a date from then on; the way back from [`civil`].
fn days_of(year: u64, month: u64, day: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Year, month and day of that many days since 1970-01-01. Years are counted from March, so that the leap day is the last
/// of its year and months follow one line (Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

fn two(text: &mut [u8; 29], at: usize, number: u64) {
    text[at] = b'0' + (number / 10) as u8;
    text[at + 1] = b'0' + (number % 10) as u8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_000_000_000, "Sun, 09 Sep 2001 01:46:40 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (253_402_300_799, "Fri, 31 Dec 9999 23:59:59 GMT"),
            (u64::MAX, "Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(&date(seconds)), Ok(text));
        }
    }

    #[test]
    fn every_day_of_a_leap_cycle_follows_the_calendar() {
        let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let weekdays = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        let mut day = 0;
        for year in 1970..2372 {
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
            for (name, length) in months.iter().zip(lengths) {
                for of_month in 1..=length {
                    let expected = format!("{}, {of_month:02} {name} {year} 23:59:59 GMT", weekdays[day % 7]);
                    assert_eq!(date(day as u64 * 86_400 + 86_399), expected.as_bytes());
                    assert_eq!(parse_date(expected.as_bytes()), Some(day as u64 * 86_400 + 86_399), "{expected}");
                    day += 1;
                }
            }
        }
    }

    #[test]
    fn starts_have_ten_digits_and_three() {
        for (micros, text) in [
            (0, "0000000000.000"),
            (12_999, "0000000000.012"),
            (1_700_000_000_999_999, "1700000000.999"),
            (9_999_999_999_000_000, "9999999999.000"),
        ] {
            assert_eq!(std::str::from_utf8(Start::new(micros).text()), Ok(text));
        }
        for millis in 0..1000 {
            let (moved, made) = (Start::new(7_000_000).with_millis(millis), Start::new(7_000_000 + millis * 1000));
            assert_eq!(moved.text(), made.text());
        }
    }

    #[test]
    fn all_three_forms_are_read_and_nothing_else() {
        for (text, seconds) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(784_111_777)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(784_111_777)),
            ("Sun Nov  6 08:49:37 1994", Some(784_111_777)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", Some(0)),
            ("Tue, 29 Feb 2000 00:00:00 GMT", Some(951_782_400)),
            ("Saturday, 01-Jan-00 00:00:00 GMT", Some(946_684_800)),
            ("Tue, 30 Jun 2015 23:59:60 GMT", Some(1_435_708_799)),
            ("Tue, 30 Feb 2000 00:00:00 GMT", None),
            ("Thu, 29 Feb 2001 00:00:00 GMT", None),
            ("Wed, 31 Dec 1969 23:59:59 GMT", None),
            ("Sun, 06 Nov 1994 24:00:00 GMT", None),
            ("Sun, 06 Nov 1994 8:49:37 GMT", None),
            ("Sun, 06 Nov 1994 08:49 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37:00 GMT", None),
            ("Sun, 06 Nov 1994 08:49:37 CET", None),
            ("Sun, 00 Nov 1994 08:49:37 GMT", None),
            ("Sun, 06 nov 1994 08:49:37 GMT", None),
            ("Sun, 06 Nov 99999 08:49:37 GMT", None),
            ("784111777", None),
            ("", None),
        ] {
            assert_eq!(parse_date(text.as_bytes()), seconds, "{text}");
        }
    }
}
