//! The few fields of a certificate (RFC 5280, 4.1) that people want to read: whom it is for, and from when until when it holds. The library
//! judges certificates; this only looks, and what it cannot read it leaves out.

/// What a certificate says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The DNS names and addresses of its subjectAltName, DNS names in small letters.
    pub names: Vec<String>,
    /// Its subject, as in `CN=alice,O=Example` (RFC 4514), the most special part first.
    pub subject: String,
    /// From when it holds, in seconds since 1970.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;
const KEY_IDENTIFIER: u8 = 0x80;
/// id-ce-authorityKeyIdentifier, 2.5.29.35.
const AUTHORITY_KEY: &[u8] = &[0x55, 0x1d, 0x23];
/// id-ce-subjectAltName, 2.5.29.17.
const ALTERNATIVE_NAMES: &[u8] = &[0x55, 0x1d, 0x11];
/// The attributes that RFC 4514, 3, has short names for: those under id-at (2.5.4), and two of 0.9.2342.19200300.100.1.
const ATTRIBUTES: &[(&[u8], &str)] = &[
    (&[0x55, 4, 3], "CN"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 9], "STREET"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
];
const UTF8_STRING: u8 = 0x0c;
const NUMERIC_STRING: u8 = 0x12;
const PRINTABLE_STRING: u8 = 0x13;
const TELETEX_STRING: u8 = 0x14;
const IA5_STRING: u8 = 0x16;
const VISIBLE_STRING: u8 = 0x1a;
const UNIVERSAL_STRING: u8 = 0x1c;
const BMP_STRING: u8 = 0x1e;

/// Reads a certificate; `None` for what is none.
pub fn facts(certificate: &[u8]) -> Option<Facts> {
    let mut rest = signed_part(certificate)?;
    // Serial number, signature algorithm, issuer.
    for _ in 0..3 {
        (_, _, rest) = element(rest)?;
    }
    let (validity, rest) = expect(rest, SEQUENCE)?;
    let (kind, not_before, behind) = element(validity)?;
    let not_before = time(kind, not_before)?;
    let (kind, not_after, _) = element(behind)?;
    let (subject, rest) = expect(rest, SEQUENCE)?;
    let (_, _, rest) = element(rest)?;
    let names = extensions(rest).map(alternative_names).unwrap_or_default();
    Some(Facts { names, subject: name(subject), not_before, not_after: time(kind, not_after)? })
}

/// Whether all of these bytes are a certificate by its form: what is signed, by which algorithm, and the signature.
pub fn is_certificate(bytes: &[u8]) -> bool {
    let parts = || {
        let (parts, behind) = expect(bytes, SEQUENCE)?;
        let (_, rest) = expect(parts, SEQUENCE)?;
        let (_, rest) = expect(rest, SEQUENCE)?;
        let (_, rest) = expect(rest, BITS)?;
        Some(behind.is_empty() && rest.is_empty())
    };
    parts().unwrap_or_default()
}

/// What is signed of a certificate, behind the version.
fn signed_part(certificate: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = expect(certificate, SEQUENCE)?;
    let (rest, _) = expect(certificate, SEQUENCE)?;
    Some(expect(rest, VERSION).map_or(rest, |(_, behind)| behind))
}

/// The extensions, of which `rest` has what stands before them, too.
fn extensions(rest: &[u8]) -> Option<&[u8]> {
    let (_, extensions) = elements(rest).find(|(tag, _)| *tag == EXTENSIONS)?;
    expect(extensions, SEQUENCE).map(|(all, _)| all)
}

/// How a certificate is named where its renewal is suggested (RFC 9773, 4.1): the identifier of its issuer's key (RFC 5280, 4.2.1.1), and its
/// serial number as it is encoded.
pub fn identity(certificate: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let (serial, rest) = expect(signed_part(certificate)?, INTEGER)?;
    let key = elements(extensions(rest)?).find_map(|(_, extension)| {
        let (_, rest) = expect(extension, OBJECT).filter(|(id, _)| *id == AUTHORITY_KEY)?;
        let (_, content) = elements(rest).find(|(tag, _)| *tag == OCTETS)?;
        let (content, _) = expect(content, SEQUENCE)?;
        expect(content, KEY_IDENTIFIER).map(|(key, _)| key.to_vec())
    })?;
    Some((key, serial.to_vec()))
}

/// A time as the Internet writes it (RFC 3339), as in `2027-01-02T04:00:00Z`, in seconds since 1970; fractions are left out.
pub fn seconds(text: &str) -> Option<i64> {
    let (date, rest) = text.split_at_checked(19)?;
    let is_formed = date.bytes().zip("0000-00-00T00:00:00".bytes()).all(|(found, form)| match form {
        b'0' => found.is_ascii_digit(),
        form => found.eq_ignore_ascii_case(&form),
    });
    let digits: Vec<u8> = date.bytes().filter(u8::is_ascii_digit).collect();
    let local = time(GENERALIZED_TIME, &digits).filter(|_| is_formed)?;
    let zone =
        rest.strip_prefix('.').map_or(rest, |rest| rest.trim_start_matches(|letter: char| letter.is_ascii_digit()));
    if zone.eq_ignore_ascii_case("z") {
        return Some(local);
    }
    let sign = if zone.starts_with('-') { -1 } else { 1 };
    let (hours, minutes) = zone.strip_prefix(['+', '-'])?.split_once(':')?;
    let offset = hours
        .parse::<u8>()
        .ok()
        .zip(minutes.parse::<u8>().ok())
        .filter(|(hours, minutes)| *hours < 24 && *minutes < 60)?;
    Some(local - sign * (i64::from(offset.0) * 3600 + i64::from(offset.1) * 60))
}

/// The first element: its tag, its content, and what is behind it. Lengths of more than four bytes are no certificate's.
fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, mut rest) = rest.split_first()?;
    let mut length = usize::from(first);
    if first >= 0x80 {
        let count = usize::from(first & 0x7f);
        let digits = rest.get(..count).filter(|_| (1..=4).contains(&count))?;
        length = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
        rest = &rest[count..];
    }
    let (content, behind) = rest.split_at_checked(length)?;
    Some((tag, content, behind))
}

fn expect(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    element(bytes).filter(|(found, _, _)| *found == tag).map(|(_, content, behind)| (content, behind))
}

/// All elements of what is in a sequence or a set.
fn elements(mut bytes: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (tag, content, behind) = element(bytes)?;
        bytes = behind;
        Some((tag, content))
    })
}

/// The same, if all of it can be read.
fn all(bytes: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let found: Vec<_> = elements(bytes).collect();
    let last = found.last().map_or(bytes.as_ptr_range().start, |(_, content)| content.as_ptr_range().end);
    (last == bytes.as_ptr_range().end).then_some(found)
}

/// Seconds since 1970. RFC 5280 has both forms end with seconds and Z, and years of two digits from 50 on in the last century.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let digits: Vec<i64> =
        text.iter().map_while(|byte| byte.is_ascii_digit().then(|| i64::from(byte - b'0'))).collect();
    let (year, rest) = match tag {
        UTC_TIME if digits.len() == 12 => {
            let year = digits[0] * 10 + digits[1];
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        GENERALIZED_TIME if digits.len() == 14 => {
            (digits[..4].iter().fold(0, |year, digit| year * 10 + digit), &digits[4..])
        }
        _ => return None,
    };
    let two: Vec<i64> = rest.chunks(2).map(|pair| pair[0] * 10 + pair[1]).collect();
    let [month, day, hour, minute, second] = two[..] else { return None };
    // Days by the calendar that begins in March (Howard Hinnant, "chrono-compatible low-level date algorithms").
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days =
        year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (153 * month + 2) / 5 + day
            - 1
            - 719_468;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

fn alternative_names(extensions: &[u8]) -> Vec<String> {
    let of = |extension: &[u8]| {
        let (object, rest) = expect(extension, OBJECT)?;
        let rest = expect(rest, BOOLEAN).map_or(rest, |(_, behind)| behind);
        let (octets, _) = expect(rest, OCTETS)?;
        let (names, _) = expect(octets, SEQUENCE).filter(|_| object == ALTERNATIVE_NAMES)?;
        Some(elements(names).filter_map(alternative_name).collect())
    };
    elements(extensions).find_map(|(_, extension)| of(extension)).unwrap_or_default()
}

fn alternative_name((tag, name): (u8, &[u8])) -> Option<String> {
    match (tag, name.len()) {
        (DNS_NAME, _) => std::str::from_utf8(name).ok().map(str::to_ascii_lowercase),
        (IP_ADDRESS, 4) => <[u8; 4]>::try_from(name).ok().map(|address| std::net::Ipv4Addr::from(address).to_string()),
        (IP_ADDRESS, 16) => {
            <[u8; 16]>::try_from(name).ok().map(|address| std::net::Ipv6Addr::from(address).to_string())
        }
        _ => None,
    }
}

/// A distinguished name as RFC 4514 writes it. Whom it names is told by all of its parts together: none is left out, and a name of which one
/// cannot be read is written as its bytes.
fn name(parts: &[u8]) -> String {
    let read = || {
        let mut parts = all(parts)?.into_iter().map(relative_name).collect::<Option<Vec<_>>>()?;
        parts.reverse();
        Some(parts.join(","))
    };
    read().unwrap_or_else(|| hexadecimal(parts))
}

/// The attributes of one part, which may be several.
fn relative_name((tag, part): (u8, &[u8])) -> Option<String> {
    let attributes = all(part).filter(|all| tag == SET && !all.is_empty())?;
    let written: Option<Vec<String>> = attributes.into_iter().map(attribute).collect();
    Some(written?.join("+"))
}

fn attribute((tag, attribute): (u8, &[u8])) -> Option<String> {
    let (kind, value) = expect(attribute, OBJECT).filter(|_| tag == SEQUENCE)?;
    let (tag, content, _) = element(value).filter(|(_, _, behind)| behind.is_empty())?;
    let short = ATTRIBUTES.iter().find(|(known, _)| *known == kind).map(|(_, short)| *short);
    // RFC 4514, 2.4: the value of one without a short name, and one that is no text, is written as it is encoded.
    match short {
        Some(short) => {
            let value = text(tag, content).map_or_else(|| hexadecimal(value), |text| escaped(&text));
            Some(format!("{short}={value}"))
        }
        None => Some(format!("{}={}", dotted(kind)?, hexadecimal(value))),
    }
}

/// The text of a value; `None`: it is of another type, or has what is no letter of its type.
fn text(tag: u8, value: &[u8]) -> Option<String> {
    let units = value.chunks(2).map(|unit| <[u8; 2]>::try_from(unit).ok().map(u16::from_be_bytes));
    let letters = value.chunks(4).map(|letter| <[u8; 4]>::try_from(letter).ok().map(u32::from_be_bytes));
    match tag {
        UTF8_STRING | NUMERIC_STRING | PRINTABLE_STRING | IA5_STRING | VISIBLE_STRING => {
            String::from_utf8(value.to_vec()).ok()
        }
        // Its letters beyond ASCII are read in different ways.
        TELETEX_STRING => String::from_utf8(value.to_vec()).ok().filter(|text| text.is_ascii()),
        BMP_STRING => String::from_utf16(&units.collect::<Option<Vec<_>>>()?).ok(),
        UNIVERSAL_STRING => letters.map(|letter| char::from_u32(letter?)).collect(),
        _ => None,
    }
}

/// An object identifier in numbers (X.690, 8.19): seven bits a byte, the last byte of each number below 128, the first two numbers in one.
fn dotted(object: &[u8]) -> Option<String> {
    let (mut numbers, mut number) = (Vec::new(), 0_u64);
    for byte in object {
        // None begins with zeros, or is that large.
        if (number == 0 && *byte == 0x80) || number > u64::MAX >> 7 {
            return None;
        }
        number = number << 7 | u64::from(byte & 0x7f);
        if *byte < 0x80 {
            numbers.push(std::mem::take(&mut number));
        }
    }
    let (first, rest) = numbers.split_first().filter(|_| object.last().is_some_and(|last| *last < 0x80))?;
    let arc = (first / 40).min(2);
    let mut written = format!("{arc}.{}", first - arc * 40);
    rest.iter().for_each(|number| written.push_str(&format!(".{number}")));
    Some(written)
}

fn hexadecimal(bytes: &[u8]) -> String {
    format!("#{}", hex(bytes))
}

/// Two digits for each byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A value that stands for itself: special characters get a backslash, and what cannot stand in a header field becomes its number.
fn escaped(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for (index, letter) in value.char_indices() {
        let at_edge = index == 0 || index + letter.len_utf8() == value.len();
        match letter {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' | '=' => out.extend(['\\', letter]),
            ' ' | '#' if at_edge => out.extend(['\\', letter]),
            ' '..='~' => out.push(letter),
            _ => letter.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| out.push_str(&format!("\\{byte:02X}"))),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_since_1970() {
        for (tag, text, seconds) in [
            (UTC_TIME, "700101000000Z", 0),
            (UTC_TIME, "491231235959Z", 2_524_607_999),
            (GENERALIZED_TIME, "20500101000000Z", 2_524_608_000),
            (UTC_TIME, "240229120000Z", 1_709_208_000),
            (GENERALIZED_TIME, "99991231235959Z", 253_402_300_799),
        ] {
            assert_eq!(time(tag, text.as_bytes()), Some(seconds), "{text}");
        }
        for (tag, text) in [(UTC_TIME, "2402291200Z"), (UTC_TIME, ""), (GENERALIZED_TIME, "240229120000Z"), (4, "x")] {
            assert_eq!(time(tag, text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn times_of_the_internet_are_read_with_their_zones() {
        for (text, found) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2024-02-29T12:00:00z", Some(1_709_208_000)),
            ("2024-02-29T12:00:00.123456Z", Some(1_709_208_000)),
            ("2024-02-29T12:00:00+02:30", Some(1_709_208_000 - 9000)),
            ("2024-02-29t12:00:00-00:30", Some(1_709_208_000 + 1800)),
            ("2024-02-29 12:00:00Z", None),
            ("2024-02-29T12:00:00", None),
            ("2024-02-29T12:00:00+2", None),
            ("2024-02-29T12:00:00+24:00", None),
            ("2024-02-2é", None),
            ("", None),
        ] {
            assert_eq!(seconds(text), found, "{text}");
        }
    }

    #[test]
    fn a_certificate_is_named_by_its_issuers_key_and_its_serial_number() {
        let authority = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![0x69, 0x88, 0x5b]);
        let issuer = rcgen::Issuer::new(params, authority);
        let mut params = rcgen::CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
        params.serial_number = Some(vec![0x00, 0x87, 0x65].into());
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer).unwrap();
        let (key, serial) = identity(certificate.der()).unwrap();
        assert_eq!((key, serial.ends_with(&[0x87, 0x65])), (vec![0x69, 0x88, 0x5b], true));
        let alone = rcgen::generate_simple_self_signed(vec!["a.example".to_owned()]).unwrap();
        assert_eq!(identity(alone.cert.der()), None);
        assert_eq!(identity(b"0"), None);
    }

    /// An element of at most 127 bytes.
    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        [&[tag, content.len() as u8], content].concat()
    }

    fn of(kind: &[u8], tag: u8, value: &[u8]) -> Vec<u8> {
        der(SEQUENCE, &[der(OBJECT, kind), der(tag, value)].concat())
    }

    /// The name of those parts, each of which has those attributes.
    fn named(parts: &[&[Vec<u8>]]) -> String {
        name(&parts.iter().flat_map(|part| der(SET, &part.concat())).collect::<Vec<u8>>())
    }

    #[test]
    fn names_have_all_their_parts() {
        let [cn, o, ou] = [3, 10, 11].map(|number| [0x55, 4, number]);
        let domain = |number| [0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, number];
        let (dc, uid) = (domain(25), domain(1));
        let email = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1];
        let alice = || of(&cn, UTF8_STRING, b"alice");
        for (parts, written) in [
            (
                &[&[of(&dc, IA5_STRING, b"com")][..], &[of(&dc, IA5_STRING, b"example")], &[alice()]][..],
                "CN=alice,DC=example,DC=com",
            ),
            (&[&[of(&o, PRINTABLE_STRING, b"Ex")], &[of(&uid, UTF8_STRING, b"alice")]], "UID=alice,O=Ex"),
            (&[&[alice()], &[of(&email, IA5_STRING, b"a@x")]], "1.2.840.113549.1.9.1=#1603614078,CN=alice"),
            (&[&[alice()], &[of(&[0x55, 4, 5], PRINTABLE_STRING, b"42")]], "2.5.4.5=#13023432,CN=alice"),
            (&[&[of(&o, UTF8_STRING, b"Ex")], &[alice(), of(&ou, UTF8_STRING, b"ops")]], "CN=alice+OU=ops,O=Ex"),
            (&[&[of(&cn, UTF8_STRING, b"#1")], &[of(&o, OCTETS, b"1")]], "O=#040131,CN=\\#1"),
            (&[&[of(&cn, BMP_STRING, b"\0a\0,")], &[of(&cn, UNIVERSAL_STRING, b"\0\0\0b")]], "CN=b,CN=a\\,"),
            (&[&[of(&cn, TELETEX_STRING, b"ab")], &[of(&cn, TELETEX_STRING, b"\xe9")]], "CN=#1401e9,CN=ab"),
            (&[&[of(&cn, UTF8_STRING, b"\xff")], &[of(&cn, BMP_STRING, b"\0")]], "CN=#1e0100,CN=#0c01ff"),
            (&[&[of(&[0x88, 0x37, 0x7f], UTF8_STRING, b"")]], "2.999.127=#0c00"),
            (&[], ""),
        ] {
            assert_eq!(named(parts), written);
        }
    }

    #[test]
    fn a_name_that_cannot_be_read_is_not_another_one() {
        let cn = of(&[0x55, 4, 3], UTF8_STRING, b"alice");
        let good = der(SET, &cn);
        for rest in [
            &b"\x31"[..],
            b"\x31\x00",
            b"\x30\x00",
            b"\x31\x02\x30\x00",
            b"\x31\x09\x30\x07\x06\x03\x55\x04\x83\x0c\x00",
            b"\x31\x0a\x30\x08\x06\x03\x55\x04\x03\x0c\x00\x00",
            b"\x31\x0a\x30\x08\x06\x04\x55\x04\x80\x03\x0c\x00",
        ] {
            let whole = [&good, rest].concat();
            assert_eq!(name(&whole), hexadecimal(&whole), "{rest:02x?}");
        }
        assert_eq!(dotted(&[0x2a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]), None);
    }

    #[test]
    fn a_certificate_is_whole_and_nothing_is_behind_it() {
        let (part, signature) = (der(SEQUENCE, b""), der(BITS, b"\0\x01"));
        let whole = der(SEQUENCE, &[part.clone(), part.clone(), signature.clone()].concat());
        assert!(is_certificate(&whole));
        for end in 0..whole.len() {
            assert!(!is_certificate(&whole[..end]), "{end} bytes of it");
        }
        assert!(!is_certificate(&[&whole[..], b"\0"].concat()));
        for parts in [vec![], vec![&part, &part], vec![&part, &signature], vec![&part, &part, &signature, &part]] {
            let parts: Vec<u8> = parts.into_iter().flatten().copied().collect();
            assert!(!is_certificate(&der(SEQUENCE, &parts)), "{parts:02x?}");
        }
    }

    #[test]
    fn what_is_no_certificate_is_nothing() {
        for bytes in
            [&b""[..], b"0", b"\x30\x84\xff\xff\xff\xff", b"\x30\x89\x01", b"\x30\x02\x30\x00", b"\x30\x80\x00"]
        {
            assert_eq!(facts(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn values_stand_for_themselves() {
        assert_eq!(escaped("a, b=c"), "a\\, b\\=c");
        assert_eq!(escaped(" \r\né "), "\\ \\0D\\0A\\C3\\A9\\ ");
        assert_eq!(escaped("#a#"), "\\#a\\#");
    }
}
