//! Which coding of a body a client likes best (RFC 9110 §12.5.3).

use super::reply;
use crate::config::Coding;

/// Which of the codings that there are, each with the size of its file, a client gets; `None`: the file as it is.
pub fn choose(accept_encoding: Option<&[u8]>, there: &[(Coding, u64)]) -> Option<Coding> {
    let accept = accept_encoding?;
    let weight = |name: &str| {
        let mut any = None;
        for (coding, weight) in reply::weighted(accept) {
            // `x-gzip` is the same as `gzip` (RFC 9110 §8.4.1.3).
            if coding.eq_ignore_ascii_case(name.as_bytes())
                || (name == "gzip" && coding.eq_ignore_ascii_case(b"x-gzip"))
            {
                return Some(weight);
            }
            if coding == b"*" {
                any = Some(weight);
            }
        }
        any
    };
    let liked = there.iter().filter_map(|(coding, size)| Some((*coding, *size, weight(coding.name())?)));
    let best = liked.filter(|(_, _, weight)| *weight > 0).min_by_key(|(_, size, weight)| (1000 - weight, *size))?;
    // The file as it is need not be named to be accepted; where it is, it may be liked more.
    let as_it_is = reply::weighted(accept).find(|(coding, _)| coding.eq_ignore_ascii_case(b"identity"));
    (best.2 >= as_it_is.map_or(0, |(_, weight)| weight)).then_some(best.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coding_is_the_one_that_the_client_likes_best() {
        use Coding::{Brotli, Gzip, Zstd};
        let all = [(Zstd, 30), (Brotli, 20), (Gzip, 40)];
        for (accept, there, expected) in [
            (None, &all[..], None),
            (Some(""), &all, None),
            (Some("gzip, deflate, br, zstd"), &all, Some(Brotli)),
            (Some("gzip, deflate, br, zstd"), &[], None),
            (Some("gzip, deflate, br, zstd"), &all[2..], Some(Gzip)),
            (Some("zstd;q=1, br;q=0.9"), &all, Some(Zstd)),
            (Some("gzip;q=0.5, zstd;q=0.4"), &all, Some(Gzip)),
            (Some("gzip;q=0"), &all, None),
            (Some("x-gzip"), &all, Some(Gzip)),
            (Some("GZIP"), &all, Some(Gzip)),
            (Some("*"), &all, Some(Brotli)),
            (Some("*;q=0"), &all, None),
            (Some("br;q=0, *"), &all, Some(Zstd)),
            (Some("identity"), &all, None),
            (Some("identity, gzip"), &all, Some(Gzip)),
            (Some("identity;q=1, gzip;q=0.5"), &all, None),
            (Some("identity, gzip;q=0.5"), &all, None),
            (Some("identity;q=0, gzip;q=0.5"), &all, Some(Gzip)),
            (Some("gzip;q=0.001"), &all, Some(Gzip)),
            (Some("gzip;q=nonsense"), &all, Some(Gzip)),
            (Some("deflate"), &all, None),
        ] {
            assert_eq!(choose(accept.map(str::as_bytes), there), expected, "{accept:?}");
        }
        let alike = [(Zstd, 20), (Brotli, 20)];
        assert_eq!(choose(Some(b"br, zstd"), &alike), Some(Zstd));
    }
}
