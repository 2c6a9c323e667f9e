//! What a topic may be called, and which topics there are.

/// Bytes of a name or pattern at most.
const LONGEST: usize = 255;

/// Whether a topic may be called so: 1 to 255 bytes without spaces, controls, and the `*` of patterns.
pub fn is_name(name: &str) -> bool {
    is_written_well(name) && !name.contains('*')
}

fn is_written_well(text: &str) -> bool {
    (1..=LONGEST).contains(&text.len()) && !text.contains(|letter: char| letter.is_whitespace() || letter.is_control())
}

/// Names of topics: `*` stands for any letters, none and separators included, so that `chat.*` takes `chat.` and `chat.a.b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// A pattern from the configuration.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Pattern, String> {
        if is_written_well(text) {
            return Ok(Pattern(text.to_owned()));
        }
        Err(format!(
            "{text:?} is no pattern of topics: expected 1 to {LONGEST} bytes without spaces and controls, such as \"chat.*\""
        ))
    }

    /// Whether that name is one of them. At most as many steps as both have bytes, multiplied.
    pub fn takes(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut at, mut seen) = (0, 0);
        // Behind the last star, and how much of the name it stands for.
        let mut star = None;
        while seen < name.len() {
            match (pattern.get(at), star) {
                (Some(b'*'), _) => {
                    at += 1;
                    star = Some((at, seen));
                }
                (Some(letter), _) if *letter == name[seen] => (at, seen) = (at + 1, seen + 1),
                (_, Some((behind, until))) => {
                    star = Some((behind, until + 1));
                    (at, seen) = (behind, until + 1);
                }
                (_, None) => return false,
            }
        }
        pattern[at..].iter().all(|letter| *letter == b'*')
    }

    /// As it is written.
    pub fn text(&self) -> &str {
        &self.0
    }
}
