//! Ranges of bytes (RFC 9110 §14): which of a representation a Range field asks for, and how several leave in one answer.

use std::ops::Range;

/// The most ranges of one request that are looked at; who asks for more gets the whole.
pub const MOST: usize = 8;

/// What a Range field asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing that is understood or worth it: the whole is sent.
    Whole,
    /// Nothing that is there: 416.
    Nothing,
    /// One part.
    One(Range<u64>),
    /// Several parts, in the order in which they were asked for; they do not overlap.
    Several(Vec<Range<u64>>),
}

/// Reads a Range field for a representation of `size` bytes. What is malformed, of another unit, of more than [`MOST`] ranges, or of
/// ranges that overlap is as if it were not there (RFC 9110 §14.2).
pub fn asked(field: &[u8], size: u64) -> Asked {
    let Some((unit, set)) = split(field, b'=') else { return Asked::Whole };
    if !unit.trim_ascii().eq_ignore_ascii_case(b"bytes") {
        return Asked::Whole;
    }
    let (mut parts, mut count) = (Vec::new(), 0);
    for spec in set.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|spec| !spec.is_empty()) {
        count += 1;
        match part(spec, size) {
            _ if count > MOST => return Asked::Whole,
            Err(()) => return Asked::Whole,
            Ok(part) => parts.extend(part),
        }
    }
    match parts.len() {
        0 if count == 0 => Asked::Whole,
        0 => Asked::Nothing,
        1 => Asked::One(parts.remove(0)),
        _ if overlap(&parts) => Asked::Whole,
        _ => Asked::Several(parts),
    }
}

/// One range; `None` if nothing of it is there.
fn part(spec: &[u8], size: u64) -> Result<Option<Range<u64>>, ()> {
    let (first, last) = split(spec, b'-').ok_or(())?;
    if first.is_empty() {
        let length = number(last)?;
        return Ok((length > 0 && size > 0).then(|| size.saturating_sub(length)..size));
    }
    let first = number(first)?;
    let last = if last.is_empty() { u64::MAX } else { number(last)? };
    if first > last {
        return Err(());
    }
    Ok((first < size).then(|| first..last.saturating_add(1).min(size)))
}

fn split(text: &[u8], at: u8) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(at, text)?;
    Some((&text[..at], &text[at + 1..]))
}

/// A number of any length: one that is too large for anything is the largest.
fn number(digits: &[u8]) -> Result<u64, ()> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(());
    }
    let add = |number: u64, digit: &u8| number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Ok(digits.iter().fold(0, add))
}

fn overlap(parts: &[Range<u64>]) -> bool {
    let mut sorted: Vec<_> = parts.iter().collect();
    sorted.sort_by_key(|part| part.start);
    sorted.windows(2).any(|pair| pair[0].end > pair[1].start)
}

/// The frame of several parts in one body (RFC 9110 §14.6): what stands before each of them, and behind the last.
pub fn frame(
    parts: &[Range<u64>],
    size: u64,
    media_type: Option<&[u8]>,
    boundary: &str,
) -> (Vec<Box<[u8]>>, Box<[u8]>) {
    let media_type = media_type.map(|media_type| [b"Content-Type: ", media_type, b"\r\n"].concat()).unwrap_or_default();
    let before = |(index, part): (usize, &Range<u64>)| {
        let start = if index == 0 { "" } else { "\r\n" };
        let (first, last) = (part.start, part.end - 1);
        let begin = format!("{start}--{boundary}\r\n").into_bytes();
        let range = format!("Content-Range: bytes {first}-{last}/{size}\r\n\r\n").into_bytes();
        [begin, media_type.clone(), range].concat().into()
    };
    let behind = format!("\r\n--{boundary}--\r\n").into_bytes().into();
    (parts.iter().enumerate().map(before).collect(), behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One range, as in `2-4`, from byte to byte; several with commas; `*` for the whole, `-` for nothing.
    fn shown(asked: &Asked) -> String {
        let one = |part: &Range<u64>| format!("{}-{}", part.start, part.end - 1);
        match asked {
            Asked::Whole => "*".to_owned(),
            Asked::Nothing => "-".to_owned(),
            Asked::One(part) => one(part),
            Asked::Several(parts) => parts.iter().map(one).collect::<Vec<_>>().join(","),
        }
    }

    const CASES: &[(&str, u64, &str)] = &[
        // One.
        ("bytes=0-0", 10, "0-0"),
        ("bytes=0-9", 10, "0-9"),
        ("bytes=2-4", 10, "2-4"),
        ("bytes=9-9", 10, "9-9"),
        ("bytes=0-10", 10, "0-9"),
        ("bytes=5-", 10, "5-9"),
        ("bytes=0-", 10, "0-9"),
        ("bytes=9-", 10, "9-9"),
        ("bytes=-1", 10, "9-9"),
        ("bytes=-10", 10, "0-9"),
        ("bytes=-11", 10, "0-9"),
        ("bytes=2-99999999999999999999999", 10, "2-9"),
        ("bytes=-99999999999999999999999", 10, "0-9"),
        ("BYTES=2-4", 10, "2-4"),
        ("Bytes=2-4", 10, "2-4"),
        ("bytes= 2-4", 10, "2-4"),
        ("bytes=2-4 ", 10, "2-4"),
        ("bytes=,2-4,", 10, "2-4"),
        ("bytes=007-8", 10, "7-8"),
        ("bytes=0-0", 1, "0-0"),
        // Nothing that is there.
        ("bytes=10-", 10, "-"),
        ("bytes=10-11", 10, "-"),
        ("bytes=-0", 10, "-"),
        ("bytes=99999999999999999999999-", 10, "-"),
        ("bytes=0-", 0, "-"),
        ("bytes=-1", 0, "-"),
        ("bytes=0-0", 0, "-"),
        ("bytes=10-11,12-13", 10, "-"),
        ("bytes=-0,10-", 10, "-"),
        // Not understood.
        ("", 10, "*"),
        ("bytes", 10, "*"),
        ("bytes=", 10, "*"),
        ("bytes=,", 10, "*"),
        ("bytes=-", 10, "*"),
        ("bytes=a-b", 10, "*"),
        ("bytes=1", 10, "*"),
        ("bytes=1-a", 10, "*"),
        ("bytes=4-2", 10, "*"),
        ("bytes=1-2-3", 10, "*"),
        ("bytes=--1", 10, "*"),
        ("bytes=+1-2", 10, "*"),
        ("bytes=1 - 2", 10, "*"),
        ("bytes=0x1-2", 10, "*"),
        ("bytes:1-2", 10, "*"),
        ("lines=1-2", 10, "*"),
        ("items=0-", 10, "*"),
        ("bytes=0-1,a", 10, "*"),
        ("bytes=0-1,4-2", 10, "*"),
        ("bytes=0-1;2-3", 10, "*"),
        ("bytes=\u{ff11}-2", 10, "*"),
        // Several.
        ("bytes=0-1,4-5", 10, "0-1,4-5"),
        ("bytes=0-1, 4-5", 10, "0-1,4-5"),
        ("bytes=4-5,0-1", 10, "4-5,0-1"),
        ("bytes=0-0,-1", 10, "0-0,9-9"),
        ("bytes=0-1,2-3", 10, "0-1,2-3"),
        ("bytes=0-1,10-", 10, "0-1"),
        ("bytes=10-,0-1,99-", 10, "0-1"),
        ("bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7", 10, "0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7"),
        // Too many, or more than there is.
        ("bytes=0-0,1-1,2-2,3-3,4-4,5-5,6-6,7-7,8-8", 10, "*"),
        ("bytes=10-,10-,10-,10-,10-,10-,10-,10-,10-", 10, "*"),
        ("bytes=0-,0-", 10, "*"),
        ("bytes=0-5,5-9", 10, "*"),
        ("bytes=5-9,0-5", 10, "*"),
        ("bytes=0-1,-9", 10, "*"),
        ("bytes=3-4,3-4", 10, "*"),
    ];

    #[test]
    fn ranges_are_read() {
        assert!(CASES.len() >= 60);
        for (field, size, expected) in CASES {
            assert_eq!(shown(&asked(field.as_bytes(), *size)), *expected, "{field:?} of {size}");
        }
    }

    #[test]
    fn no_parts_are_more_than_the_whole() {
        for size in 0..7 {
            for first in 0..8 {
                for second in 0..8 {
                    let field = format!("bytes={first}-{second},-{first},{second}-");
                    if let Asked::Several(parts) = asked(field.as_bytes(), size) {
                        let sum: u64 = parts.iter().map(|part| part.end - part.start).sum();
                        assert!(sum <= size && parts.iter().all(|part| part.start < part.end && part.end <= size));
                    }
                }
            }
        }
    }

    #[test]
    fn several_parts_are_framed() {
        let (before, behind) = frame(&[0..2, 8..10], 10, Some(b"text/plain"), "B");
        let whole: Vec<&[u8]> = vec![&before[0], b"ab", &before[1], b"ij", &behind];
        assert_eq!(
            String::from_utf8(whole.concat()).unwrap(),
            "--B\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\nab\r\n--B\r\n\
             Content-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\nij\r\n--B--\r\n"
        );
        let (before, _) = frame(&[0..2, 8..10], 10, None, "B");
        assert_eq!(String::from_utf8_lossy(&before[1]), "\r\n--B\r\nContent-Range: bytes 8-9/10\r\n\r\n");
    }
}
