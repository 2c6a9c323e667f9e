//! Events on their way to those who listen for them: one JSON object each, kept only until the supervisor's turn ends.

use std::fmt::Display;

use serde_json::{Map, Value};

/// What has happened in this turn.
#[derive(Debug, Default)]
pub(super) struct News(Vec<Value>);

impl News {
    /// Adds an event with its message for people, and its fields. Numbers stay numbers. Who publishes it adds the time.
    pub fn add(&mut self, event: &str, message: &str, fields: &[(&str, &dyn Display)]) {
        let mut object = Map::new();
        object.insert("event".to_owned(), event.into());
        object.insert("message".to_owned(), message.into());
        for (name, value) in fields {
            let text = value.to_string();
            let value = text.parse::<i64>().map_or_else(|_| Value::from(text.clone()), Value::from);
            object.insert((*name).to_owned(), value);
        }
        self.0.push(Value::Object(object));
    }

    /// Takes all, oldest first.
    pub fn take(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_an_object_with_its_fields() {
        let mut news = News::default();
        news.add("worker-exit", "worker ended", &[("worker", &"web.G1.2"), ("code", &3)]);
        let all = news.take();
        assert_eq!(all.len(), 1);
        assert_eq!((&all[0]["event"], &all[0]["code"]), (&Value::from("worker-exit"), &Value::from(3)));
        assert!(news.take().is_empty());
    }
}
