//! What access lines do not show: fields by their names, and the values of query parameters, however their names are encoded.

use std::ops::Range;

use crate::config::Redaction;
use crate::http::query::decode;

/// What stands in the place of what is hidden.
pub const HIDDEN: &[u8] = b"[redacted]";

/// What is to be hidden.
#[derive(Default)]
pub struct Hidden {
    fields: Vec<String>,
    query: Vec<String>,
}

impl Hidden {
    pub fn new(redaction: &Redaction) -> Hidden {
        Hidden { fields: redaction.fields.clone(), query: redaction.query.clone() }
    }

    /// Whether anything is hidden.
    pub fn any(&self) -> bool {
        !(self.fields.is_empty() && self.query.is_empty())
    }

    /// A field's value, or what stands in its place. `name` is in small letters.
    pub fn field<'a>(&self, name: &str, value: &'a [u8]) -> &'a [u8] {
        if !value.is_empty() && self.fields.iter().any(|hidden| hidden == name) { HIDDEN } else { value }
    }

    /// A target or URL without the values of the parameters that are hidden, and without a user and password before its host (RFC 3986 §3.2.1), in
    /// `scratch` if there are any.
    pub fn query_of<'a>(&self, url: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
        if !self.any() {
            return url;
        }
        let mark = memchr::memchr(b'?', url).filter(|_| !self.query.is_empty());
        let user = user_of(&url[..mark.unwrap_or(url.len())]);
        if mark.is_none() && user.is_empty() {
            return url;
        }
        scratch.clear();
        scratch.extend_from_slice(&url[..user.start]);
        if !user.is_empty() {
            scratch.extend_from_slice(HIDDEN);
        }
        scratch.extend_from_slice(&url[user.end..mark.map_or(url.len(), |mark| mark + 1)]);
        if let Some(mark) = mark {
            self.pairs(&url[mark + 1..], scratch);
        }
        scratch
    }

    /// The same for a query alone. Some read `?` as a letter of a name, others see a second query behind it: hidden is what either would find.
    fn pairs(&self, query: &[u8], out: &mut Vec<u8>) {
        for pair in query.split_inclusive(|byte| b"&;?#".contains(byte)) {
            let (pair, end) = match pair.last() {
                Some(last) if b"&;?#".contains(last) => pair.split_at(pair.len() - 1),
                _ => (pair, &b""[..]),
            };
            match memchr::memchr(b'=', pair) {
                Some(equals) if self.hides(&pair[..equals]) => {
                    out.extend_from_slice(&pair[..=equals]);
                    out.extend_from_slice(HIDDEN);
                }
                _ => out.extend_from_slice(pair),
            }
            out.extend_from_slice(end);
        }
    }

    fn hides(&self, name: &[u8]) -> bool {
        if name.is_ascii() && memchr::memchr2(b'%', b'+', name).is_none() {
            return self.query.iter().any(|hidden| hidden.as_bytes().eq_ignore_ascii_case(name));
        }
        // As it stands, and decoded twice: what is decoded once on the way to the app is still its name.
        let once = decode(name);
        let twice = decode(&once);
        [name, &once, &twice].iter().any(|name| self.query.contains(&String::from_utf8_lossy(name).to_lowercase()))
    }
}

/// Where the user and password of a URL stand, without its query: empty where it has none.
fn user_of(url: &[u8]) -> Range<usize> {
    let start = memchr::memmem::find(url, b"://").map_or(url.len(), |colon| colon + 3);
    let authority = &url[start..];
    let end = authority.iter().position(|byte| b"/#?".contains(byte)).unwrap_or(authority.len());
    start..start + memchr::memrchr(b'@', &authority[..end]).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_hidden_however_their_names_are_written() {
        let query = ["token", "api key"].map(str::to_owned).to_vec();
        let hidden = Hidden::new(&Redaction { fields: vec!["referer".to_owned()], query });
        for (url, shown) in [
            ("/a?b=1", "/a?b=1"),
            ("/a", "/a"),
            ("/token=x", "/token=x"),
            ("/a?token=s&b=2", "/a?token=[redacted]&b=2"),
            ("/a?b=1&TOKEN=s=t", "/a?b=1&TOKEN=[redacted]"),
            ("/a?t%6Fken=s", "/a?t%6Fken=[redacted]"),
            ("/a?t%256Fken=s", "/a?t%256Fken=[redacted]"),
            ("/a?api+key=s;api%20key=t", "/a?api+key=[redacted];api%20key=[redacted]"),
            ("/a?token&token=", "/a?token&token=[redacted]"),
            ("/a?tokens=1&%=2&t%6=3", "/a?tokens=1&%=2&t%6=3"),
            ("https://u:p@h/a", "https://[redacted]@h/a"),
            ("https://u:p@w@h?token=s", "https://[redacted]@h?token=[redacted]"),
            ("https://h/@a?b=@", "https://h/@a?b=@"),
            ("https://h/?x=?token=s#y", "https://h/?x=?token=[redacted]#y"),
        ] {
            let mut scratch = b"old".to_vec();
            assert_eq!(String::from_utf8_lossy(hidden.query_of(url.as_bytes(), &mut scratch)), shown);
        }
        assert_eq!((hidden.field("referer", b"x"), hidden.field("referer", b"")), (HIDDEN, &b""[..]));
        assert_eq!(hidden.field("host", b"x"), b"x");
        assert!(hidden.any() && !Hidden::default().any());
    }
}
