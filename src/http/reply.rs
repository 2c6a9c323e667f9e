//! Answers of our own: errors in the form that the client reads best, and the fixed 200 of a directly served text.

use std::sync::Arc;

use super::Version;
use super::fields::{list_items, trim};
use crate::buffers::block::Writer;
use crate::config::ErrorPage;

/// The form of an error's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A page, for browsers.
    Html,
    /// An object with one member, `error`.
    Json,
    /// One line.
    Text,
}

/// Which form a client wants, by its Accept field (RFC 9110 §12.5.1): what it names with the highest weight, the earlier
/// of two equal ones. Ranges like `*/*` name nothing, so that curl and clients without the field get text.
pub fn negotiate(accept: &[u8]) -> Format {
    let mut best = (Format::Text, 0);
    for (media, weight) in weighted(accept) {
        if let Some(format) = format_of(media)
            && weight > best.1
        {
            best = (format, weight);
        }
    }
    best.0
}

fn format_of(media: &[u8]) -> Option<Format> {
    let is = |name: &str| media.eq_ignore_ascii_case(name.as_bytes());
    let ends =
        |suffix: &[u8]| media.len() > suffix.len() && media[media.len() - suffix.len()..].eq_ignore_ascii_case(suffix);
    if is("text/html") || is("application/xhtml+xml") {
        Some(Format::Html)
    } else if ends(b"/json") || ends(b"+json") {
        Some(Format::Json)
    } else if is("text/plain") {
        Some(Format::Text)
    } else {
        None
    }
}

/// Whether Accept fields name a media type, and no `other` with a greater weight.
pub(crate) fn prefers<'a>(accepts: impl Iterator<Item = &'a [u8]>, media: &str, other: &str) -> bool {
    let (mut liked, mut least) = (0, 0);
    for (range, weight) in accepts.flat_map(weighted) {
        if range.eq_ignore_ascii_case(media.as_bytes()) {
            liked = liked.max(weight);
        } else if range.eq_ignore_ascii_case(other.as_bytes()) {
            least = least.max(weight);
        }
    }
    liked > 0 && liked >= least
}

/// What the items of a list name, each with its weight in thousandths (RFC 9110 §12.4.2).
pub(crate) fn weighted(list: &[u8]) -> impl Iterator<Item = (&[u8], u32)> {
    list_items(list).map(|item| {
        let mut parts = item.split(|byte| *byte == b';').map(trim);
        (parts.next().unwrap_or_default(), parts.find_map(weight).unwrap_or(1000))
    })
}

/// A `q` parameter in thousandths. One that is malformed says what its number says, and 1 where it is none.
fn weight(parameter: &[u8]) -> Option<u32> {
    let [b'q' | b'Q', rest @ ..] = parameter else { return None };
    let number = trim(trim(rest).strip_prefix(b"=")?);
    let weight: f32 = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok()).unwrap_or(1.0);
    Some((weight.clamp(0.0, 1.0) * 1000.0).round() as u32)
}

/// An error's answer.
#[derive(Clone, Copy, Debug)]
pub struct Reply<'a> {
    /// The status, 400 to 599.
    pub status: u16,
    /// A sentence for the reader. Escaped as the format needs it.
    pub detail: &'a str,
    /// The body's form.
    pub format: Format,
    /// The date now.
    pub date: &'a [u8],
    /// Whether the connection is kept.
    pub keep_alive: bool,
    /// Whether the client speaks HTTP/1.0.
    pub http10: bool,
    /// Whether the request was a HEAD: the head tells the length of a body that does not follow.
    pub head_only: bool,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
    /// Whether a page reloads itself. Only asked for where the request is safe.
    pub reload: bool,
    /// The id of the request, told in head and body.
    pub request_id: Option<&'a [u8]>,
    /// Further lines of the head, each behind the end of the one before it.
    pub lines: &'a [u8],
    /// What may be done instead, where the status is 405.
    pub allow: &'static str,
    /// The page that is shown in the place of all this.
    pub page: Option<&'a ErrorPage>,
}

impl<'a> Reply<'a> {
    /// In plain text, to an HTTP/1.1 client whose connection closes.
    pub fn new(status: u16, detail: &'a str, date: &'a [u8]) -> Reply<'a> {
        Reply {
            status,
            detail,
            format: Format::Text,
            date,
            keep_alive: false,
            http10: false,
            head_only: false,
            retry_after: None,
            reload: false,
            request_id: None,
            lines: b"",
            // What goes through here, whatever the app makes of it.
            allow: "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            page: None,
        }
    }
}

/// Bytes that [`error`] writes at most.
pub fn error_room(reply: &Reply<'_>) -> usize {
    const ADDED: usize = 512;
    // One byte of detail is written as six at most (`&quot;`, `\u001f`).
    let body = 6 * reply.detail.len() + 6 * reply.request_id.unwrap_or_default().len();
    ADDED
        + body
        + PAGE.iter().map(|part| part.len()).sum::<usize>()
        + RELOAD.len()
        + reply.lines.len()
        + reply.page.map_or(0, |page| page.bytes().len())
        + reply.request_id.unwrap_or_default().len()
}

/// Writes an error's answer: head and body.
pub fn error(out: &mut Writer<'_>, reply: &Reply<'_>) {
    let mut length = Length(0);
    body(&mut length, reply);
    out.put(b"HTTP/1.1 ");
    out.put_decimal(u64::from(reply.status));
    out.put(b" ");
    out.put(reason(reply.status).as_bytes());
    out.put(match (reply.page, reply.format) {
        (Some(_), _) => b"\r\nContent-Type: ",
        (_, Format::Html) => b"\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: ",
        (_, Format::Json) => b"\r\nContent-Type: application/json\r\nContent-Length: ",
        (_, Format::Text) => &b"\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: "[..],
    });
    if let Some(page) = reply.page {
        out.put_all([page.media_type.as_bytes(), b"\r\nContent-Length: "]);
    }
    out.put_decimal(length.0 as u64);
    out.put(b"\r\nCache-Control: no-store\r\nDate: ");
    out.put(reply.date);
    if reply.status == 405 {
        // Demanded by RFC 9110 §15.5.6.
        out.put_all([b"\r\nAllow: ", reply.allow.as_bytes()]);
    }
    if let Some(seconds) = reply.retry_after {
        out.put(b"\r\nRetry-After: ");
        out.put_decimal(u64::from(seconds));
    }
    if let Some(id) = reply.request_id {
        out.put(b"\r\nX-Request-Id: ");
        out.put(id);
    }
    out.put(reply.lines);
    let version = if reply.http10 { Version::Http10 } else { Version::Http11 };
    out.put(connection(version, reply.keep_alive));
    if !reply.head_only {
        body(out, reply);
    }
}

/// The end of a head: CRLF of the last line, what the version needs to be told about the connection, the empty line.
pub(crate) fn connection(version: Version, keep_alive: bool) -> &'static [u8] {
    match (version, keep_alive) {
        (Version::Http11, true) | (Version::Http10, false) => b"\r\n\r\n",
        (Version::Http11, false) => b"\r\nConnection: close\r\n\r\n",
        (Version::Http10, true) => b"\r\nConnection: keep-alive\r\n\r\n",
    }
}

/// Where a body goes: first to be measured, then to be written.
trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

struct Length(usize);

impl Sink for Length {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

impl Sink for Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        Writer::put(self, bytes);
    }
}

/// The page's parts; between them stand status, reason, status, reason, detail and id.
const PAGE: [&str; 7] = [
    "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
     <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"robots\" content=\"noindex\">\n<title>",
    " ",
    "</title>\n<style>\n:root{color-scheme:light dark}\n\
     body{margin:0;min-height:100vh;display:grid;place-items:center;font:16px/1.5 system-ui,sans-serif;\
     background:Canvas;color:CanvasText}\n\
     main{padding:2rem;max-width:34rem;text-align:center}\nb{font-size:4rem;line-height:1;opacity:.3}\n\
     h1{font-size:1.4rem;margin:.6rem 0}\np{margin:.4rem 0;opacity:.8}\nsmall{opacity:.5;overflow-wrap:anywhere}\n\
     </style>\n<main>\n<b>",
    "</b>\n<h1>",
    "</h1>\n<p>",
    "</p>\n<small>",
    "</small>\n</main>\n</html>\n",
];
/// Reloads after 1, 2, 4, then each 8 seconds, counted per tab and forgotten after a minute; without scripts, each 5.
const RELOAD: &str = "<noscript><meta http-equiv=\"refresh\" content=\"5\"></noscript>\n<script>\n\
     try{var k=\"production_server.reload\",s=sessionStorage,v=(s.getItem(k)||\"0 0\").split(\" \"),t=Date.now(),\
     n=t-v[1]<60000?+v[0]:0;s.setItem(k,n+1+\" \"+t)}catch(e){n=2}\n\
     setTimeout(function(){location.reload()},1000*Math.min(8,Math.pow(2,n))*(1+Math.random()/4))\n</script>\n";

fn body(out: &mut impl Sink, reply: &Reply<'_>) {
    let mut number = itoa::Buffer::new();
    let status = number.format(reply.status).as_bytes();
    let reason = reason(reply.status).as_bytes();
    let id = reply.request_id.unwrap_or_default();
    if let Some(page) = reply.page {
        return out.put(page.bytes());
    }
    match reply.format {
        Format::Html => {
            let values = [status, reason, status, reason, reply.detail.as_bytes(), id];
            for (index, part) in PAGE.iter().enumerate() {
                if index == 2 && reply.reload {
                    out.put(b"</title>\n");
                    out.put(RELOAD.as_bytes());
                    out.put(&part.as_bytes()["</title>\n".len()..]);
                } else {
                    out.put(part.as_bytes());
                }
                html(out, values.get(index).copied().unwrap_or_default());
            }
        }
        Format::Json => {
            out.put(b"{\"error\":{\"status\":");
            out.put(status);
            out.put(b",\"message\":\"");
            json(out, reply.detail.as_bytes());
            if !id.is_empty() {
                out.put(b"\",\"request_id\":\"");
                json(out, id);
            }
            out.put(b"\"}}\n");
        }
        Format::Text => {
            for part in [status, b" ", reason, b": ", reply.detail.as_bytes(), b"\n"] {
                out.put(part);
            }
        }
    }
}

fn html(out: &mut impl Sink, text: &[u8]) {
    escaped(out, text, |byte| match byte {
        b'&' => Some(b"&amp;"),
        b'<' => Some(b"&lt;"),
        b'>' => Some(b"&gt;"),
        b'"' => Some(b"&quot;"),
        b'\'' => Some(b"&#39;"),
        _ => None,
    });
}

fn json(out: &mut impl Sink, text: &[u8]) {
    escaped(out, text, |byte| match byte {
        b'"' => Some(b"\\\""),
        b'\\' => Some(b"\\\\"),
        b'\n' => Some(b"\\n"),
        // No other control has a reason to be in a sentence of ours.
        0..0x20 => Some(b" "),
        _ => None,
    });
}

fn escaped(out: &mut impl Sink, text: &[u8], escape: impl Fn(u8) -> Option<&'static [u8]>) {
    let mut from = 0;
    for (at, byte) in text.iter().enumerate() {
        if let Some(instead) = escape(*byte) {
            out.put(&text[from..at]);
            out.put(instead);
            from = at + 1;
        }
    }
    out.put(&text[from..]);
}

/// The reason phrase of a status (RFC 9110 §15, RFC 6585).
pub fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        202 => "Accepted",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        426 => "Upgrade Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

/// The head of an answer of our own whose body follows from elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Document<'a> {
    /// The status.
    pub status: u16,
    /// The media type, of at most 100 bytes.
    pub content_type: &'static str,
    /// Further lines, each with its end.
    pub lines: &'a str,
    /// Bytes of the body.
    pub length: usize,
}

impl Document<'_> {
    /// Bytes that [`Document::head`] writes at most.
    pub fn room(&self) -> usize {
        384 + self.lines.len()
    }

    /// Writes the head.
    pub fn head(&self, out: &mut Writer<'_>, date: &[u8; 29], client: Version, keep_alive: bool) {
        out.put(b"HTTP/1.1 ");
        out.put_decimal(u64::from(self.status));
        out.put(b" ");
        out.put(reason(self.status).as_bytes());
        out.put_all([b"\r\n", self.lines.as_bytes(), b"Content-Type: ", self.content_type.as_bytes()]);
        out.put(b"\r\nContent-Length: ");
        out.put_decimal(self.length as u64);
        out.put(if self.status == 503 { b"\r\nRetry-After: 1".as_slice() } else { b"" });
        out.put(b"\r\nCache-Control: no-store\r\nDate: ");
        out.put(date);
        out.put(connection(client, keep_alive));
    }
}

/// A fixed answer, made once and written often.
#[derive(Clone, Debug)]
pub struct Direct {
    status: u16,
    /// From the status line up to the date's value.
    start: Box<[u8]>,
    body: Arc<[u8]>,
}

impl Direct {
    /// A 200 of that type with that body.
    pub fn new(content_type: &str, body: &[u8]) -> Direct {
        Direct::with(200, &format!("Content-Type: {content_type}\r\n"), body)
    }

    /// An answer with that status, those lines, each with its end, and that body; 204 and 304 have none.
    pub fn with(status: u16, lines: &str, body: &[u8]) -> Direct {
        debug_assert!(lines.is_empty() || lines.ends_with("\r\n"));
        let bodiless = matches!(status, 204 | 304);
        debug_assert!(!bodiless || body.is_empty());
        let length = if bodiless { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let start = format!("HTTP/1.1 {status} {}\r\n{lines}{length}Date: ", reason(status));
        Direct { status, start: start.into_bytes().into(), body: body.into() }
    }

    /// The same with further lines, each with its end.
    #[cold]
    pub fn with_lines(&self, lines: &[u8]) -> Direct {
        let at = memchr::memchr(b'\n', &self.start).map_or(0, |at| at + 1);
        let start = [&self.start[..at], lines, &self.start[at..]].concat();
        Direct { start: start.into(), ..self.clone() }
    }

    /// Its status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Its body, which connections and loops share.
    pub fn body(&self) -> &Arc<[u8]> {
        &self.body
    }

    /// Bytes that [`Direct::write`] writes at most.
    pub fn room(&self) -> usize {
        self.start.len() + self.body.len() + 64
    }

    /// Writes head and body, or for a HEAD request the head alone.
    pub fn write(&self, out: &mut Writer<'_>, date: &[u8; 29], client: Version, keep_alive: bool, head_only: bool) {
        out.put(&self.start);
        out.put(date);
        if client == Version::Http11 && keep_alive {
            out.put(b"\r\n\r\n");
        } else {
            out.put(connection(client, keep_alive));
        }
        if !head_only {
            out.put(&self.body);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;
    use crate::http::fields::Fields;
    use crate::http::head::{self, HeadLimits};
    use crate::http::{Framing, Method, date};

    #[test]
    fn accept_chooses_the_form() {
        let browser = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8";
        for (accept, format) in [
            ("", Format::Text),
            ("*/*", Format::Text),
            (browser, Format::Html),
            ("application/json", Format::Json),
            ("Application/Problem+JSON, */*", Format::Json),
            ("application/json, text/plain, */*", Format::Json),
            ("text/plain, application/json", Format::Text),
            ("text/html;q=0.1, application/json;q=0.2", Format::Json),
            ("text/html;q=0.251; x=y, application/json; q=0.25", Format::Html),
            ("text/html;q=0", Format::Text),
            ("application/json;q=0, text/html;q=0.001", Format::Html),
            ("image/png", Format::Text),
            (",;=,q=1;", Format::Text),
        ] {
            assert_eq!(negotiate(accept.as_bytes()), format, "{accept:?}");
        }
    }

    const REPLY: Reply<'_> = Reply {
        status: 503,
        detail: "No <worker> is \"ready\" & able\n",
        format: Format::Text,
        date: b"Thu, 01 Jan 1970 00:00:00 GMT",
        keep_alive: true,
        http10: false,
        head_only: false,
        retry_after: Some(2),
        reload: true,
        request_id: Some(b"id1"),
        lines: b"",
        allow: "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
        page: None,
    };

    /// Head and body of an error, checked by our own parser.
    fn written(reply: &Reply<'_>) -> (String, String) {
        let mut room = vec![MaybeUninit::uninit(); error_room(reply)];
        let mut out = Writer::new(&mut room);
        error(&mut out, reply);
        let mut fields = Fields::new(16);
        let bytes = out.written();
        let response = head::response(bytes, Method::Get, false, &HeadLimits::default(), &mut fields).unwrap().unwrap();
        assert_eq!((response.status, response.keep_alive), (reply.status, reply.keep_alive));
        let (head, body) = bytes.split_at(response.len);
        if !reply.head_only {
            assert_eq!(response.framing, Framing::Length(body.len() as u64));
        }
        (String::from_utf8_lossy(head).into_owned(), String::from_utf8_lossy(body).into_owned())
    }

    #[test]
    fn errors_are_whole_in_every_form() {
        let (head, text) = written(&REPLY);
        assert_eq!(text, "503 Service Unavailable: No <worker> is \"ready\" & able\n\n");
        assert!(head.contains("\r\nRetry-After: 2\r\nX-Request-Id: id1\r\n"), "{head}");
        let (_, page) = written(&Reply { format: Format::Html, ..REPLY });
        assert!(
            page.contains("No &lt;worker&gt; is &quot;ready&quot; &amp; able") && page.contains("location.reload"),
            "{page}"
        );
        let (_, quiet) = written(&Reply { format: Format::Html, reload: false, keep_alive: false, ..REPLY });
        assert!(quiet.ends_with("</html>\n") && !quiet.contains("reload") && !quiet.contains("refresh"), "{quiet}");
        let (_, json) = written(&Reply { format: Format::Json, ..REPLY });
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["error"]["status"], 503);
        assert_eq!(value["error"]["message"], REPLY.detail);
        assert_eq!(value["error"]["request_id"], "id1");
    }

    /// RFC 9110 §15.5.6.
    #[test]
    fn a_refused_method_comes_with_those_that_are_not() {
        let allow = "\r\nAllow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n";
        for status in 400..600 {
            let (head, _) = written(&Reply { status, ..REPLY });
            assert_eq!(head.contains(allow), status == 405, "{head}");
        }
    }

    #[test]
    fn every_error_fits_its_room() {
        let worst = "\"'".repeat(500);
        for format in [Format::Html, Format::Json, Format::Text] {
            for status in 400..600 {
                written(&Reply { status, detail: &worst, format, ..REPLY });
            }
        }
    }

    #[test]
    fn a_head_alone_tells_the_same_length() {
        let (head, body) = written(&Reply { head_only: true, ..REPLY });
        assert_eq!((head, body), (written(&REPLY).0, String::new()));
        let (old, _) = written(&Reply { http10: true, ..REPLY });
        assert!(old.ends_with("\r\nConnection: keep-alive\r\n\r\n"), "{old}");
    }

    #[test]
    fn a_direct_answer_follows_version_and_method() {
        let direct = Direct::new("text/plain", b"ok");
        let write = |client, keep_alive, head_only| {
            let mut room = vec![MaybeUninit::uninit(); direct.room()];
            let mut out = Writer::new(&mut room);
            direct.write(&mut out, &date(0), client, keep_alive, head_only);
            String::from_utf8_lossy(out.written()).into_owned()
        };
        const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\n";
        assert_eq!(write(Version::Http11, true, false), format!("{HEAD}\r\nok"));
        assert_eq!(write(Version::Http11, false, true), format!("{HEAD}Connection: close\r\n\r\n"));
        assert_eq!(write(Version::Http10, true, false), format!("{HEAD}Connection: keep-alive\r\n\r\nok"));
        assert_eq!(write(Version::Http10, false, false), format!("{HEAD}\r\nok"));
    }
}
