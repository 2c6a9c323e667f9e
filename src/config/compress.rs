//! Whether answers are compressed, and which. The settings, and their keys.

use std::fmt;

use super::keys::{Key, key, store};
use super::units::{choice, count, show_size, size, switch};

/// A coding of a body (RFC 9110 §8.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coding {
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
    /// RFC 1952.
    Gzip,
}

impl Coding {
    /// All of them, the one that is liked best first.
    pub const ALL: [Coding; 3] = [Coding::Zstd, Coding::Brotli, Coding::Gzip];

    /// Its name in fields.
    pub const fn name(self) -> &'static str {
        match self {
            Coding::Zstd => "zstd",
            Coding::Brotli => "br",
            Coding::Gzip => "gzip",
        }
    }

    /// What is put behind the name of a file that was compressed before.
    pub const fn ending(self) -> &'static str {
        match self {
            Coding::Zstd => ".zst",
            Coding::Brotli => ".br",
            Coding::Gzip => ".gz",
        }
    }

    /// The lowest and the highest level that is fast enough for a loop.
    const fn levels(self) -> (u32, u32) {
        match self {
            Coding::Zstd => (1, 6),
            Coding::Brotli => (0, 5),
            Coding::Gzip => (1, 6),
        }
    }
}

/// How answers are compressed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compressing {
    /// With what, the one that is liked best first; empty: not at all. `None`: nothing was said, which is not at all, or on a route as
    /// the app has it.
    pub codings: Option<Vec<Coding>>,
    /// Bodies that are known to be shorter are left alone; in bytes.
    pub min: u64,
    /// Media types, `*` for anything in the second half; empty: those that usually shrink.
    pub types: Vec<String>,
    /// By the order of the codings.
    pub levels: [u32; 3],
    /// By how many bytes the length of a head varies at most, so that the length of a body tells less about a secret in it (BREACH).
    pub jitter: u32,
    /// Whether event streams are compressed, too.
    pub events: bool,
    /// Whether answers to requests with cookies or credentials are.
    pub personal: bool,
}

impl Default for Compressing {
    fn default() -> Compressing {
        Compressing {
            codings: None,
            min: 512,
            types: Vec::new(),
            levels: [3, 4, 4],
            jitter: 32,
            events: false,
            personal: true,
        }
    }
}

impl Compressing {
    /// The level of a coding.
    pub fn level(&self, coding: Coding) -> u32 {
        self.levels[coding as usize]
    }

    fn add(&mut self, word: &str) -> Result<(), String> {
        let words = Coding::ALL.map(|coding| (coding.name(), Some(coding)));
        let (on, off) = (["on", "true"], ["off", "false"]);
        let codings = self.codings.get_or_insert_default();
        if off.iter().any(|off| word.eq_ignore_ascii_case(off)) {
            codings.clear();
            return Ok(());
        }
        let added = match on.iter().any(|on| word.eq_ignore_ascii_case(on)) {
            true => Coding::ALL.to_vec(),
            false => {
                let found = choice(word, &words).map_err(|expected| format!("{expected}, or on or off"))?;
                found.into_iter().collect()
            }
        };
        codings.extend(added.into_iter().filter(|coding| !codings.contains(coding)).collect::<Vec<_>>());
        Ok(())
    }

    pub(crate) fn set_level(&mut self, text: &str) -> Result<(), String> {
        let (name, level) = text.split_once('=').ok_or("expected a coding and its level, as in gzip=4")?;
        let coding = choice(name, &Coding::ALL.map(|coding| (coding.name(), coding)))?;
        let (low, high) = coding.levels();
        self.levels[coding as usize] = count(level, u64::from(low)..=u64::from(high))? as u32;
        Ok(())
    }
}

impl fmt::Display for Compressing {
    /// In one line, for the difference of two configurations.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let codings = self.codings.as_deref().unwrap_or_default();
        if codings.is_empty() {
            return formatter.write_str("none");
        }
        let name = |coding: &Coding| format!("{}={}", coding.name(), self.level(*coding));
        let names: Vec<String> = codings.iter().map(name).collect();
        let types = if self.types.is_empty() { "the usual types".to_owned() } else { self.types.join(" ") };
        write!(formatter, "{} from {} of {types}, jitter {}", names.join(" "), show_size(&self.min), self.jitter)?;
        formatter.write_str(if self.events { ", events" } else { "" })?;
        formatter.write_str(if self.personal { "" } else { ", nothing personal" })
    }
}

/// A media type, or all of one kind.
fn media_type(text: &str) -> Result<String, String> {
    let is_token = |part: &str| {
        !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&^_.+-".contains(&byte))
    };
    match text.split_once('/') {
        Some((kind, name)) if is_token(kind) && (name == "*" || is_token(name)) => Ok(text.to_ascii_lowercase()),
        _ => Err("expected a media type such as text/css, or text/* for all of a kind".to_owned()),
    }
}

/// The keys of one app.
pub const KEYS: &[Key] = &[
    key("compress", "CODING", "", CODING_HELP, |settings, text| settings.app.answering.compress.add(text))
        .many()
        .example("zstd"),
    key("compress-min", "SIZE", "512B", "Shorter answers are left as they are", |settings, text| {
        store(&mut settings.app.answering.compress.min, size(text, 0..=1 << 30))
    }),
    key("compress-type", "TYPE", "", TYPE_HELP, |settings, text| {
        settings.app.answering.compress.types.push(media_type(text)?);
        Ok(())
    })
    .many()
    .example("text/*"),
    key("compress-level", "CODING=N", "", LEVEL_HELP, |settings, text| settings.app.answering.compress.set_level(text))
        .many()
        .example("gzip=6"),
    key("compress-jitter", "BYTES", "32", JITTER_HELP, |settings, text| {
        store(&mut settings.app.answering.compress.jitter, count(text, 0..=1024).map(|bytes| bytes as u32))
    }),
    key("compress-events", "on|off", "off", "Compress event streams, each event at once", |settings, text| {
        store(&mut settings.app.answering.compress.events, switch(text))
    }),
    key("compress-personal", "on|off", "on", PERSONAL_HELP, |settings, text| {
        store(&mut settings.app.answering.compress.personal, switch(text))
    }),
];

const CODING_HELP: &str = "Compress answers for clients that take it, with zstd, br or gzip, in the order of preference; on: all three; \
    off: not";
const TYPE_HELP: &str =
    "Which media types are compressed; without it: text, scripts, JSON, XML, SVG, WebAssembly and fonts that shrink";
const LEVEL_HELP: &str = "How hard a coding tries: zstd 1 to 6 (3), br 0 to 5 (4), gzip 1 to 6 (4)";
const JITTER_HELP: &str =
    "By how many bytes the head of a compressed answer varies, so that its length tells less of secrets in it (BREACH)";
const PERSONAL_HELP: &str = "Compress answers to requests with cookies or credentials, and answers that set cookies";
