//! The short ways through a plain head, held against the long ones that know every rule.

use proptest::prelude::*;

use super::fields::Fields;
use super::head::{self, HeadLimits};

/// Pieces of field lines, legal and not; strung together they come near every rule.
const PIECES: &[&str] = &[
    "Host",
    "x-forwarded-for",
    "X_Forwarded_For",
    "Content-Length",
    "a",
    "Sec-Ch-Ua-Platform",
    "n!#$%&'*+.^`|~",
    ":",
    ": ",
    ":\t ",
    " ",
    "\t",
    "\r\n",
    "\r\n",
    "\n",
    "\r",
    "value",
    "a\tb",
    "=;, \"()<>@",
    "\0",
    "\x7f",
    "\u{e9}",
    "a value that is longer than one window of the search",
    ": x\r\n",
    "Host: a.example\r\n",
    "\r\n\r\n",
    "(",
];

/// What a head says, but for its offsets; or the refusal's status.
fn meaning(bytes: &[u8]) -> Result<Option<String>, u16> {
    let mut fields = Fields::new(16);
    let limits = HeadLimits { target: 40, ..HeadLimits::default() };
    let request = head::request(bytes, &limits, &mut fields).map_err(|refusal| refusal.status)?;
    let Some(request) = request else { return Ok(None) };
    let text = |span: super::Span| String::from_utf8_lossy(span.of(bytes)).into_owned();
    let spans = [request.method_span, request.target.whole, request.target.path, request.authority].map(text);
    let kind = (request.method, request.target.form, request.version, request.keep_alive, bytes.len() - request.len);
    Ok(Some(format!("{spans:?} {kind:?}")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn what_is_plain_means_the_same_to_httparse(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..24), start in 0usize..3, most in 0usize..12,
        noise in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut bytes = [&b"123"[..start], pieces.concat().as_bytes(), b"\r\n\r\nand what follows the head"].concat();
        if let Some((place, byte)) = noise {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        prop_assert_ne!(Fields::plain_agrees(&bytes, start, most), Some(false));
    }

    #[test]
    fn what_is_legal_is_plain(
        lines in prop::collection::vec(
            ("[A-Za-z0-9-]{1,40}|[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,20}", "[ \t]{0,3}", "[ -~\t\u{80}-\u{ff}]{0,80}"), 0..20,
        ),
    ) {
        let text: String = lines.iter().map(|(name, space, value)| format!("{name}:{space}{value}\r\n")).collect();
        let bytes = format!("POST /path HTTP/1.1\r\n{text}\r\n");
        prop_assert_eq!(Fields::plain_agrees(bytes.as_bytes(), 21, lines.len()), Some(true));
    }

    /// A request line that ends with a bare LF takes the long way, and means the same.
    #[test]
    fn a_plain_request_line_means_the_same_in_the_long_way(
        method in "GET|POST|HEAD|PUT|DELETE|OPTIONS|CONNECT|get|M-SEARCH|[A-Z@]{1,3}", gap in " | |  |\t|",
        target in "/[a-z?=%#]{0,20}|/[!-~]{0,60}|/[ -~\u{7f}\u{e9}]{0,9}|\\*|http://a/[a-z]{0,3}|",
        version in " HTTP/1\\.1| HTTP/1\\.1| HTTP/1\\.[0-9]|  HTTP/1\\.1| HTTP/2\\.0| http/1\\.1| HTTP/1\\.1 |",
        empty in "|\r\n|\n",
    ) {
        let head = |end: &str| format!("{empty}{method}{gap}{target}{version}{end}Host: a\r\n\r\nbody");
        prop_assert_eq!(meaning(head("\r\n").as_bytes()), meaning(head("\n").as_bytes()));
    }
}
