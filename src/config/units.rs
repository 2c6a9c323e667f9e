//! Values as people write them: counts, durations, sizes, choices and addresses.
//!
//! Each reader answers with the value or with what would have been right, in words that fit behind "expected".

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::{Internal, ListenAddress, ReadyBy, Scaling, Upstream};

/// The longest path of a Unix socket's address that every system takes, without the NUL (macOS and the BSDs: 104 bytes).
#[cfg(not(target_os = "linux"))]
const SOCKET_PATH_MAX: usize = 103;
/// The longest path of a Unix socket's address, without the NUL (unix(7): 108 bytes).
#[cfg(target_os = "linux")]
const SOCKET_PATH_MAX: usize = 107;

/// A whole number within a range; `_` may separate digits.
pub fn count(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let digits = text.replace('_', "");
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten();
    number
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("expected a whole number from {} to {}", range.start(), range.end()))
}

/// A whole number within a range, or `None` for `auto`.
pub fn count_or_auto(text: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, String> {
    if text.eq_ignore_ascii_case("auto") {
        return Ok(None);
    }
    count(text, range).map(Some).map_err(|expected| format!("{expected}, or auto"))
}

/// The bounds of automatic scaling, `2..8`, or `None` for a text without dots.
pub fn worker_range(text: &str) -> Result<Option<Scaling>, String> {
    let Some((min, max)) = text.split_once("..") else { return Ok(None) };
    let expected = || "expected MIN..MAX with whole numbers from 1 to 1024, the smaller first".to_owned();
    let bound = |text| count(text, 1..=1024).map(|number| number as usize).map_err(|_| expected());
    let scaling = Scaling { min: bound(min)?, max: bound(max)? };
    if scaling.min <= scaling.max { Ok(Some(scaling)) } else { Err(expected()) }
}

/// So many within a time: `5/60s`.
pub fn rate(
    text: &str,
    counts: RangeInclusive<u64>,
    times: RangeInclusive<Duration>,
) -> Result<(u64, Duration), String> {
    let (number, time) = text.split_once('/').ok_or("expected a number and a duration, as in 5/60s")?;
    Ok((count(number, counts)?, duration(time, times)?))
}

/// What shows that a worker is ready: `listen`, `http:PATH`, `notify` or `join`.
pub fn ready(text: &str) -> Result<ReadyBy, String> {
    if let Some(path) = text.strip_prefix("http:") {
        let plain = path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
        return if plain { Ok(ReadyBy::Http(path.to_owned())) } else { Err("expected http:/PATH".to_owned()) };
    }
    match text {
        "listen" => Ok(ReadyBy::Listen),
        "http" => Ok(ReadyBy::Http("/ready".to_owned())),
        "notify" => Ok(ReadyBy::Notify),
        "join" => Ok(ReadyBy::Join),
        _ => Err("expected listen, http:PATH, notify or join".to_owned()),
    }
}

/// A variable of the environment and its value: `NAME=VALUE`.
pub fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').unwrap_or((text, "\0"));
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(letter) || name.as_bytes()[0].is_ascii_digit() || value.contains('\0') {
        return Err("expected the name of a variable and its value without NUL".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// The signals that people may name, by name.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ABRT", libc::SIGABRT),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("USR2", libc::SIGUSR2),
    ("TERM", libc::SIGTERM),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("WINCH", libc::SIGWINCH),
    ("ALRM", libc::SIGALRM),
    ("IO", libc::SIGIO),
];

/// A signal by its name, with or without SIG, in any case, or by its number from 1 to 31.
pub fn signal(text: &str) -> Result<i32, String> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
        return Ok(*number);
    }
    count(text, 1..=31)
        .map(|number| number as i32)
        .map_err(|_| "expected a signal such as HUP, USR1 or TERM, or its number from 1 to 31".to_owned())
}

/// The name of a signal without SIG, or its number.
pub fn signal_name(signal: i32) -> String {
    let known = SIGNALS.iter().find(|(_, number)| *number == signal);
    known.map_or_else(|| signal.to_string(), |(name, _)| (*name).to_owned())
}

/// A duration with its unit: `200ms`, `5s`, `1m`, `2h`, and `0` for none. Whole milliseconds within the range.
pub fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let expected = || {
        let (from, to) = (show_duration(*range.start()), show_duration(*range.end()));
        format!("expected a duration with its unit (ms, s, m, h) from {from} to {to}")
    };
    let split = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.trim_start() {
        "ms" => 1.0,
        "s" => 1000.0,
        "m" | "min" => 60_000.0,
        "h" => 3_600_000.0,
        "" if number == "0" => 0.0,
        _ => return Err(expected()),
    };
    let number: f64 = number.parse().map_err(|_| expected())?;
    let milliseconds = (number * scale).round();
    // A century of milliseconds is exact in a double.
    if !(0.0..=3.2e12).contains(&milliseconds) || (milliseconds == 0.0 && number > 0.0) {
        return Err(expected());
    }
    Some(Duration::from_millis(milliseconds as u64)).filter(|duration| range.contains(duration)).ok_or_else(expected)
}

/// A share in per cent: `10%`.
pub fn percent(text: &str, range: RangeInclusive<u64>) -> Result<u32, String> {
    let number = text.strip_suffix('%').and_then(|number| count(number.trim_end(), range.clone()).ok());
    number
        .map(|number| number as u32)
        .ok_or_else(|| format!("expected a share from {}% to {}%", range.start(), range.end()))
}

/// A duration where a plain number means milliseconds.
pub fn milliseconds(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let read = if plain { duration(&format!("{text}ms"), range.clone()) } else { duration(text, range.clone()) };
    read.map_err(|_| {
        let (from, to) = (range.start().as_millis(), range.end().as_millis());
        format!("expected milliseconds from {from} to {to}")
    })
}

/// A duration in the largest unit that holds it as a whole number.
pub fn show_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    for (unit, scale) in [("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if milliseconds != 0 && milliseconds.is_multiple_of(scale) {
            return format!("{}{unit}", milliseconds / scale);
        }
    }
    if milliseconds == 0 { "0s".to_owned() } else { format!("{milliseconds}ms") }
}

/// The units of sizes, in any case, and their bytes.
pub const SIZE_UNITS: [(&str, u64); 13] = [
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
];

/// A size in bytes: `64KiB`, `1MiB`, `10MB`, or a plain number of bytes, within a range.
pub fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    let expected = || {
        format!(
            "expected a size (bytes, KiB, MiB, GiB, TiB, kB, MB, GB, TB) from {} to {}",
            show_size(range.start()),
            show_size(range.end())
        )
    };
    let split = text.find(|character: char| !character.is_ascii_digit() && character != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = unit.trim_start();
    let known = SIZE_UNITS.iter().find(|(known, _)| unit.eq_ignore_ascii_case(known));
    let scale = if unit.is_empty() { 1 } else { known.ok_or_else(expected)?.1 };
    let bytes = match number.parse::<u64>() {
        Ok(number) => number.checked_mul(scale).ok_or_else(expected)?,
        Err(_) => {
            let number: f64 = number.parse().map_err(|_| expected())?;
            (number * scale as f64).round() as u64
        }
    };
    Some(bytes).filter(|bytes| range.contains(bytes)).ok_or_else(expected)
}

/// A number of bytes as sizes are written.
pub fn show_size(bytes: &u64) -> String {
    for (unit, shift) in [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if *bytes != 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// One of a few words.
pub fn choice<T: Copy>(text: &str, choices: &[(&str, T)]) -> Result<T, String> {
    let found = choices.iter().find(|(word, _)| text.eq_ignore_ascii_case(word));
    found.map(|(_, value)| *value).ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let (last, first) = words.split_last().expect("a choice has words");
        format!("expected {} or {last}", first.join(", "))
    })
}

/// Yes or no, as environments and files write it.
pub fn switch(text: &str) -> Result<bool, String> {
    let words = [("on", true), ("off", false), ("true", true), ("false", false), ("yes", true), ("no", false)];
    let numbers = [("1", true), ("0", false)];
    choice(text, &words).or_else(|_| choice(text, &numbers)).map_err(|_| "expected on or off".to_owned())
}

/// Permission bits as chmod(1) writes them: three octal digits, with a 0 or 0o before them or without.
pub fn mode(text: &str) -> Result<u32, String> {
    let prefixed = text.strip_prefix("0o").or_else(|| text.strip_prefix('0').filter(|rest| rest.len() == 3));
    let digits = prefixed.unwrap_or(text);
    let octal = digits.len() == 3 && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    let bits = octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten();
    bits.ok_or_else(|| "expected permissions of three octal digits".to_owned())
}

/// The name or number of a user or group; whether there is one shows at the start.
pub fn account(text: &str) -> Result<String, String> {
    let numeric = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // The greatest number means "leave it as it is" to chown(2).
    let fits = !numeric || text.parse::<u32>().is_ok_and(|number| number < u32::MAX);
    let fine = fits && !text.is_empty() && !text.contains([':', '\0', '/']) && !text.starts_with(['-', '+']);
    if fine { Ok(text.to_owned()) } else { Err("expected a name or a number from 0 to 4294967294".to_owned()) }
}

/// Where the server's own documents are: `on`, `off`, or a prefix such as `/ops` of letters, digits and `-._~` between
/// slashes, so that it can be compared byte by byte.
pub fn internal(text: &str) -> Result<Internal, String> {
    const LONGEST: usize = 64;
    let Some(prefix) = text.strip_prefix('/') else {
        return match switch(text) {
            Ok(true) => Ok(Internal::Under(String::new())),
            Ok(false) => Ok(Internal::Off),
            Err(_) => Err("expected on, off, or a prefix that begins with a slash".to_owned()),
        };
    };
    let plain = |segment: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        !matches!(segment, "" | "." | "..") && segment.bytes().all(legal)
    };
    if text.len() > LONGEST || !prefix.split('/').all(plain) {
        return Err(
            "expected a prefix of letters, digits and -._~ between single slashes, without one at its end".to_owned()
        );
    }
    Ok(Internal::Under(text.to_owned()))
}

/// An address to listen on: `0.0.0.0:8080`, `[::]:8080`, `localhost:8080`, `:8080`, a port, or `unix:/run/app.sock`.
pub fn listen(text: &str) -> Result<ListenAddress, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path).map(ListenAddress::Unix);
    }
    if let Some(name) = text.strip_prefix("systemd:") {
        // As FileDescriptorName= of systemd.socket(5) has them.
        let fine = name.len() <= 255 && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':');
        return match fine {
            true => Ok(ListenAddress::Systemd(name.to_owned())),
            false => Err("expected systemd:NAME, or systemd: for all sockets that it has opened".to_owned()),
        };
    }
    let expected = "expected IP:PORT, a port, unix:PATH or systemd:NAME";
    let tcp = |ip: IpAddr, port: &str| port_number(port).map(|port| ListenAddress::Tcp(SocketAddr::new(ip, port)));
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return tcp(Ipv4Addr::UNSPECIFIED.into(), text);
    }
    if let Ok(address) = text.parse() {
        return Ok(ListenAddress::Tcp(address));
    }
    match text.rsplit_once(':') {
        Some(("" | "*", port)) => tcp(Ipv4Addr::UNSPECIFIED.into(), port),
        Some(("localhost", port)) => tcp(Ipv4Addr::LOCALHOST.into(), port),
        Some((host, port)) if host.parse::<IpAddr>().is_ok() => {
            tcp(Ipv4Addr::UNSPECIFIED.into(), port).and(Err(format!("{expected}; an IPv6 address stands in brackets")))
        }
        _ => Err(expected.to_owned()),
    }
}

/// A TCP port; 0 lets the kernel choose.
pub fn port_number(text: &str) -> Result<u16, String> {
    count(text, 0..=65535).map(|port| port as u16).map_err(|_| "expected a port from 0 to 65535".to_owned())
}

/// A server to forward to: `unix:PATH` or `http://HOST:PORT`, port 80 if none is given.
pub fn upstream(text: &str) -> Result<Upstream, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return socket_path(path).map(Upstream::Unix);
    }
    let expected = || "expected unix:PATH or http://HOST:PORT".to_owned();
    let authority = text.strip_prefix("http://").ok_or_else(expected)?;
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port_number(port)?),
        _ => (authority, 80),
    };
    let bare = match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()),
        None => {
            Some(host).filter(|host| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte)))
        }
    };
    let host = bare.filter(|host| !host.is_empty() && port != 0).ok_or_else(expected)?;
    Ok(Upstream::Tcp(host.to_owned(), port))
}

fn socket_path(path: &str) -> Result<PathBuf, String> {
    if path.is_empty() || path.contains('\0') || path.len() > SOCKET_PATH_MAX {
        return Err(format!("expected unix: and a path of 1 to {SOCKET_PATH_MAX} bytes"));
    }
    Ok(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_their_unit() {
        let day = Duration::ZERO..=Duration::from_secs(86_400);
        let cases =
            [("200ms", 200), ("5s", 5000), ("1.5s", 1500), ("1m", 60_000), ("2h", 7_200_000), ("0", 0), ("0s", 0)];
        for (text, expected) in cases {
            assert_eq!(duration(text, day.clone()), Ok(Duration::from_millis(expected)), "{text}");
        }
        for text in ["", "5", "s", "-1s", "5 x", "1e3s", "25h", "1.2.3s", "0.1ms", "9999999999999999999999h", "NaNs"] {
            assert!(duration(text, day.clone()).is_err(), "{text}");
        }
        assert_eq!(milliseconds("250", day.clone()), Ok(Duration::from_millis(250)));
        assert_eq!(milliseconds("2s", day), Ok(Duration::from_secs(2)));
    }

    #[test]
    fn sizes_know_both_kinds_of_units() {
        let cases = [("0", 0), ("64KiB", 65_536), ("1MiB", 1 << 20), ("10MB", 10_000_000), ("1.5k", 1536), ("7 b", 7)];
        for (text, expected) in cases {
            assert_eq!(size(text, 0..=1 << 30), Ok(expected), "{text}");
        }
        for text in ["", "MiB", "-1", "2GiB", "1XB", "99999999999999999999", "18446744073709551615GiB"] {
            assert!(size(text, 0..=1 << 30).is_err(), "{text}");
        }
        assert_eq!((size("1TiB", 0..=1 << 40), size("0.5tb", 0..=1 << 40)), (Ok(1 << 40), Ok(500_000_000_000)));
        assert_eq!(size("x", 1024..=1 << 30).unwrap_err().split("from").nth(1), Some(" 1KiB to 1GiB"));
    }

    #[test]
    fn addresses_to_listen_on() {
        let tcp = |text: &str| ListenAddress::Tcp(text.parse().unwrap());
        let cases = [
            ("127.0.0.1:80", tcp("127.0.0.1:80")),
            ("[::]:8080", tcp("[::]:8080")),
            (":3000", tcp("0.0.0.0:3000")),
            ("*:3000", tcp("0.0.0.0:3000")),
            ("3000", tcp("0.0.0.0:3000")),
            ("localhost:0", tcp("127.0.0.1:0")),
            ("unix:/run/a.sock", ListenAddress::Unix("/run/a.sock".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(listen(text), Ok(expected), "{text}");
        }
        for text in ["", "0.0.0.0", "0.0.0.0:65536", "::1:80", "example.org:80", "unix:", "99999", "http://0.0.0.0:80"]
        {
            assert!(listen(text).is_err(), "{text}");
        }
        assert!(listen(&format!("unix:/{}", "a".repeat(SOCKET_PATH_MAX))).is_err());
    }

    #[test]
    fn servers_to_forward_to() {
        let tcp = |host: &str, port| Upstream::Tcp(host.to_owned(), port);
        let cases = [
            ("http://127.0.0.1:3000", tcp("127.0.0.1", 3000)),
            ("http://app.local", tcp("app.local", 80)),
            ("http://[::1]:3000/", tcp("::1", 3000)),
            ("http://[::1]", tcp("::1", 80)),
            ("unix:/run/app.sock", Upstream::Unix("/run/app.sock".into())),
        ];
        for (text, expected) in cases {
            assert_eq!(upstream(text), Ok(expected), "{text}");
        }
        for text in
            ["", "app:80", "https://app", "http://", "http://:80", "http://a:0", "http://a/b", "http://[::1", "unix:"]
        {
            assert!(upstream(text).is_err(), "{text}");
        }
        assert_eq!(tcp("::1", 3000).to_string(), "http://[::1]:3000");
    }
}
