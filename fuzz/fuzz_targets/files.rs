//! What a client says of a file: no path leaves the root or names something hidden, and whatever the fields say, the parts lie in the file,
//! do not overlap, and are as many bytes as the head says.
#![no_main]

use libfuzzer_sys::fuzz_target;
use production_server::config::Coding;
use production_server::config::route::Files;
use production_server::files::Site;
use production_server::files::conditions::{Asked, Decision, Facts, decide};
use production_server::http::coding::choose;
use production_server::http::route::resolved;

const NAMES: [&str; 7] = [
    "Range",
    "If-Range",
    "If-Match",
    "If-None-Match",
    "If-Modified-Since",
    "If-Unmodified-Since",
    "Accept-Encoding",
];

fuzz_target!(|bytes: &[u8]| {
    let (target, lines) = bytes.split_at(bytes.len() / 2);
    let site = Site::new(&Files { prefix: "/static".to_owned(), ..Files::default() });
    let path = resolved(target);
    if let Some(name) = site.name(&path) {
        let mut segments = name.split(|byte| *byte == b'/');
        assert!(segments.next() == Some(b""), "{}", name.escape_ascii());
        let hidden = |segment: &[u8]| segment.first() == Some(&b'.') && segment != b".well-known";
        assert!(!segments.any(hidden) && !name.contains(&0), "{}", name.escape_ascii());
    }
    let mut head = b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec();
    for line in lines.split(|byte| matches!(byte, b'\r' | b'\n')).take(20) {
        let Some((which, value)) = line.split_first() else { continue };
        head.extend([NAMES[usize::from(*which) % NAMES.len()].as_bytes(), b": ", value, b"\r\n"].concat());
    }
    head.extend(b"\r\n");
    let asked = Asked::read(&head);
    let there = [(Coding::Gzip, 3), (Coding::Zstd, 2)];
    choose(asked.accept_encoding.as_deref(), &there);
    for size in [0, 1, 10, u64::MAX] {
        let facts = Facts { etag: b"\"a\"", modified: 784_111_777, size };
        let parts = match decide(&asked, &facts, true) {
            Decision::Part(part) => vec![part],
            Decision::Parts(parts) => parts,
            _ => continue,
        };
        assert!(parts.len() <= 8 && parts.iter().all(|part| part.start < part.end && part.end <= size));
        assert!(parts.iter().map(|part| u128::from(part.end - part.start)).sum::<u128>() <= u128::from(size));
    }
});
