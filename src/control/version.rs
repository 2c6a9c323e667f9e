//! The version of a worker's code, by which the newest of those that join is found.

use std::fmt;

use serde_json::Value;

/// Numbers between dots, at most.
const MOST_PARTS: usize = 8;

/// Dotted numbers, compared number by number: `1.9` is older than `1.10`, and `1` is `1.0`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(Vec<u64>);

impl Version {
    /// Reads a text such as `3`, `1.10.2`.
    ///
    /// # Errors
    /// With what would have been right.
    pub fn parse(text: &str) -> Result<Version, String> {
        let part = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit()).then(|| part.parse().ok()).flatten();
        let parts: Option<Vec<u64>> = text.split('.').map(part).collect();
        let mut parts = parts.filter(|parts| parts.len() <= MOST_PARTS).ok_or_else(|| {
            format!("expected at most {MOST_PARTS} whole numbers with dots between, as in \"1.10.2\"")
        })?;
        while parts.last() == Some(&0) {
            parts.pop();
        }
        Ok(Version(parts))
    }

    /// Reads a JSON string, or a JSON number that is whole.
    ///
    /// # Errors
    /// As [`Version::parse`]. `1.10` as a number is refused: it is the same number as `1.1`.
    pub fn of_json(value: &Value) -> Result<Version, String> {
        match value {
            Value::String(text) => Version::parse(text),
            Value::Number(number) => match number.as_u64() {
                Some(number) => Version::parse(&number.to_string()),
                None => Err("expected a whole number, or a string of numbers with dots, as in \"1.10.2\"".to_owned()),
            },
            _ => Err("expected a whole number or a string of numbers with dots, as in \"1.10.2\"".to_owned()),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((first, rest)) = self.0.split_first() else { return formatter.write_str("0") };
        write!(formatter, "{first}")?;
        rest.iter().try_for_each(|part| write!(formatter, ".{part}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn versions_are_ordered_by_their_numbers() {
        let sorted = ["0", "1", "1.0.1", "1.9", "1.10", "2", "10", "1763712000000"];
        for pair in sorted.windows(2) {
            let (older, newer) = (Version::parse(pair[0]).unwrap(), Version::parse(pair[1]).unwrap());
            assert!(older < newer, "{pair:?}");
        }
        assert_eq!(Version::parse("1.0"), Version::parse("1"));
        assert_eq!(Version::of_json(&json!(7)), Version::parse("7.0"));
        assert_eq!(Version::parse("1.10.0").unwrap().to_string(), "1.10");
        assert_eq!(Version::default().to_string(), "0");
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in ["", ".", "1.", ".1", "1..2", "v1", "-1", "+1", "1.a", "18446744073709551616", "1.2.3.4.5.6.7.8.9"]
        {
            assert!(Version::parse(text).unwrap_err().starts_with("expected"), "{text}");
        }
        for value in [json!(1.5), json!(-1), json!(1e300), json!(null), json!([1]), json!(true)] {
            assert!(Version::of_json(&value).unwrap_err().starts_with("expected"), "{value}");
        }
    }
}
