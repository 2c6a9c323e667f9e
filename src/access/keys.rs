//! API keys, of which the server knows the SHA-256 alone: keys are long and random, so that a fast hash is enough, and a look-up by it tells
//! nothing of the key.

use std::collections::HashMap;

use aws_lc_rs::digest::{SHA256, digest};

use super::{check_name, said};

/// The API keys of a file.
pub struct Keys {
    /// The file, by which it is told from another.
    text: String,
    names: HashMap<[u8; 32], String>,
}

impl PartialEq for Keys {
    fn eq(&self, other: &Keys) -> bool {
        self.text == other.text
    }
}

impl Eq for Keys {}

impl std::fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Keys").field("keys", &self.names.len()).finish_non_exhaustive()
    }
}

impl Keys {
    /// Reads `NAME:SHA256` line by line, the hash in hexadecimal digits; empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// The first line that is wrong, by its number from 1, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Keys, (usize, String)> {
        let mut names = HashMap::new();
        for (number, line) in said(text) {
            let wrong = |what: &str| (number, what.to_owned());
            let (name, hex) = line.rsplit_once(':').ok_or_else(|| wrong("expected NAME:SHA256"))?;
            check_name(name, "key").map_err(|what| wrong(&what))?;
            let hash = hash(hex).ok_or_else(|| {
                wrong("expected the SHA-256 of a key, 64 hexadecimal digits, as `printf %s KEY | sha256sum` tells")
            })?;
            if names.insert(hash, name.to_owned()).is_some() {
                return Err(wrong("this key stands on an earlier line, too"));
            }
        }
        if names.is_empty() {
            return Err((1, "expected at least one line NAME:SHA256".to_owned()));
        }
        Ok(Keys { text: text.to_owned(), names })
    }

    /// Whose key it is.
    pub fn find(&self, key: &[u8]) -> Option<&str> {
        let hash: [u8; 32] = digest(&SHA256, key).as_ref().try_into().ok()?;
        self.names.get(&hash).map(String::as_str)
    }
}

fn hash(hex: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = hex.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len() == 64)?;
    let mut bytes = [0; 32];
    bytes.iter_mut().zip(digits.chunks_exact(2)).for_each(|(byte, pair)| *byte = pair[0] << 4 | pair[1]);
    Some(bytes)
}
