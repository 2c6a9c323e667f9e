//! docs/metrics.md, written from the table of the metrics.

use std::fmt::Write;

use super::families;

/// What stands before the tables.
const OPENING: &str = include_str!("manual.md");

/// The whole document.
pub fn manual() -> String {
    let mut out = OPENING.to_owned();
    for (heading, families) in families::ALL {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(out, "\n## {heading}\n\n| name | type | labels | unit | meaning |\n|---|---|---|---|---|");
        for family in *families {
            let labels: Vec<String> = family.labels.iter().map(|label| format!("`{label}`")).collect();
            let _ = writeln!(
                out,
                "| `{}` | {} | {} | {} | {} |",
                family.name,
                family.kind.name(),
                labels.join(", "),
                family.unit(),
                family.help.replace('|', "\\|")
            );
        }
    }
    out
}
