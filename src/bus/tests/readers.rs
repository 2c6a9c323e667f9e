//! Who listens in the worlds of the tests, and what holds for whatever they get: no number is two messages, nothing comes twice, and no id is two.

use std::collections::HashMap;
use std::sync::Arc;

use crate::hub::{Position, Topic};

/// Messages by epoch, topic and number.
pub type Truth = HashMap<(u64, &'static str, u64), String>;

/// Somebody who listens all the time.
pub struct Reader {
    pub topic: Arc<Topic>,
    pub name: &'static str,
    pub at: Position,
    /// Where it has begun.
    pub from: Position,
    /// What it has had since it was last told of a gap.
    pub had: Vec<String>,
    pub gaps: usize,
}

/// The id that a message was published with, if any: its second word.
pub fn id_of(text: &str) -> &str {
    text.split(' ').nth(1).unwrap_or_default()
}

impl Reader {
    pub fn new(topic: Arc<Topic>, name: &'static str, from: Position) -> Reader {
        Reader { topic, name, at: from, from, had: Vec::new(), gaps: 0 }
    }

    /// Reads all there is, and judges it: what has come, `None` for each gap. `knows`: whether the id of that message was known when others were
    /// published.
    pub fn read(&mut self, truth: &mut Truth, knows: impl Fn(&str) -> bool) -> Vec<Option<String>> {
        let mut heard = Vec::new();
        loop {
            let mut messages = Vec::new();
            let read = self.topic.read(self.at, usize::MAX, &mut messages);
            if read.gap.is_some() {
                self.gaps += 1;
                self.had.clear();
                heard.push(None);
            }
            for message in messages {
                let Position { epoch, offset } = message.position();
                let text = String::from_utf8(message.payload().to_vec()).unwrap();
                let known = truth.entry((epoch.0, self.name, offset)).or_insert_with(|| text.clone());
                assert_eq!(*known, text, "two messages have one number");
                assert!(!self.had.contains(&text), "{text} came twice");
                let is_again = |had: &&String| !id_of(&text).is_empty() && id_of(had) == id_of(&text) && knows(had);
                assert_eq!(self.had.iter().find(is_again), None, "two messages have one id: {text}");
                heard.push(Some(text.clone()));
                self.had.push(text);
            }
            self.at = read.at;
            if !read.more {
                return heard;
            }
        }
    }
}
