//! A strict reader of Prometheus' text and of OpenMetrics: what the specifications only recommend is a mistake here.

use std::collections::{BTreeMap, BTreeSet};

/// Samples by name and labels, as in `name{label="value"}`.
pub type Samples = BTreeMap<String, f64>;

struct Family {
    name: String,
    kind: String,
    /// The count of values up to each bound, for each set of labels, as they come.
    buckets: BTreeMap<String, Vec<(String, f64)>>,
}

/// Reads a whole exposition.
pub fn read(text: &str, open: bool) -> Samples {
    assert!(text.ends_with('\n') && !text.contains('\r'), "whole lines");
    let mut lines: Vec<&str> = text.lines().collect();
    if open {
        assert_eq!(lines.pop(), Some("# EOF"));
    }
    let (mut samples, mut seen, mut family): (Samples, BTreeSet<String>, Option<Family>) = Default::default();
    let (mut help, mut kind, mut unit) = (None, None, None);
    for line in lines {
        assert!(!line.is_empty() && line.trim() == line, "{line:?}");
        let Some(comment) = line.strip_prefix("# ") else {
            if let Some(word) = kind.take() {
                let name: String = help.take().unwrap_or_else(|| panic!("no help before {line}"));
                family.take().iter().for_each(|family| check(family, &samples));
                assert!(seen.insert(name.clone()), "{name} twice");
                let unit: Option<String> = unit.take();
                assert!(unit.is_none_or(|unit| name.ends_with(&format!("_{unit}"))), "{name}");
                family = Some(Family { name, kind: word, buckets: BTreeMap::new() });
            }
            let family = family.as_mut().unwrap_or_else(|| panic!("no family before {line}"));
            sample(line, family, open, &mut samples);
            continue;
        };
        let mut words = comment.splitn(3, ' ');
        let (what, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
        assert!(is_name(name), "{line}");
        match what {
            "HELP" => help = Some(name.to_owned()),
            "TYPE" => kind = Some(rest.to_owned()),
            "UNIT" if open => unit = Some(rest.to_owned()),
            _ => panic!("{line}"),
        }
    }
    family.iter().for_each(|family| check(family, &samples));
    samples
}

fn is_name(name: &str) -> bool {
    let fine = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    name.starts_with(|letter: char| letter.is_ascii_lowercase()) && name.chars().all(fine)
}

fn sample(line: &str, family: &mut Family, open: bool, samples: &mut Samples) {
    let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
    let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
    assert!(value.is_finite() && value >= 0.0, "{line}");
    let (name, labels) = match key.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap_or_else(|| panic!("{line}"))),
        None => (key, ""),
    };
    let suffix = name.strip_prefix(&family.name).unwrap_or_else(|| panic!("{line} in {}", family.name));
    let fits = match (family.kind.as_str(), open) {
        ("counter", true) => suffix == "_total",
        ("counter", false) => suffix.is_empty() && name.ends_with("_total"),
        ("gauge", _) => suffix.is_empty(),
        ("unknown", true) => suffix.is_empty(),
        ("info", true) => suffix == "_info" && value == 1.0,
        ("histogram", _) => ["_bucket", "_sum", "_count"].contains(&suffix),
        _ => false,
    };
    assert!(fits, "{line} in a {}", family.kind);
    let mut rest: Vec<&str> = Vec::new();
    let mut bound = None;
    let mut names = BTreeSet::new();
    for label in labels.split(',').filter(|label| !label.is_empty()) {
        let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("{line}"));
        let value =
            value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or_else(|| panic!("{line}"));
        assert!(is_name(name) && !value.is_empty() && !value.contains('"') && names.insert(name), "{line}");
        match name {
            "le" => bound = Some(value.to_owned()),
            _ => rest.push(label),
        }
    }
    assert_eq!(bound.is_some(), suffix == "_bucket" && family.kind == "histogram", "{line}");
    if let Some(bound) = bound {
        family.buckets.entry(rest.join(",")).or_default().push((bound, value));
    }
    assert!(samples.insert(key.to_owned(), value).is_none(), "{line} twice");
}

/// What must hold of a family as a whole.
fn check(family: &Family, samples: &Samples) {
    for (labels, buckets) in &family.buckets {
        let name = |suffix: &str| match labels.is_empty() {
            true => format!("{}{suffix}", family.name),
            false => format!("{}{suffix}{{{labels}}}", family.name),
        };
        let bounds: Vec<f64> = buckets.iter().map(|(bound, _)| bound.replace("+Inf", "inf").parse().unwrap()).collect();
        assert!(bounds.is_sorted_by(|one, other| one < other), "{}: {bounds:?}", family.name);
        assert!(buckets.iter().map(|(_, count)| count).is_sorted(), "{}: {buckets:?}", family.name);
        let (last, count) = buckets.last().unwrap();
        assert_eq!((last.as_str(), Some(count)), ("+Inf", samples.get(&name("_count"))), "{}", family.name);
        assert!(samples.contains_key(&name("_sum")), "{}", family.name);
    }
}
