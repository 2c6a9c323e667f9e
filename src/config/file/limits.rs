//! The tables `[limits.NAME]` of the file, and whether those are there that routes name.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::super::places;
use super::super::report::Problem;
use super::routes::{RouteSaid, inline};
use super::{LONGEST_NAME, Reader, entries, is_name, near};
use crate::limits::Policy;

/// One `[limits.NAME]`.
#[derive(Debug)]
pub(in super::super) struct LimitSaid {
    /// Where its name stands.
    pub at: Range<usize>,
    /// What it allows, if that is whole.
    pub policy: Option<Policy>,
    /// Its name.
    pub name: String,
    /// Its entries as the file writes them.
    pub shown: Vec<(String, String)>,
}

impl Reader<'_> {
    pub(super) fn limits(&mut self, limits: &DeTable<'_>) {
        for (key, value) in entries(limits) {
            let name = key.get_ref().to_string();
            let DeValue::Table(table) = value.get_ref() else {
                let label =
                    format!("expected the name of a limit above it, as in `[limits.login]` and then `{name} = …`");
                self.wrong(Problem::error(format!("`{name}` belongs to a limit"), key.span(), label));
                continue;
            };
            if !is_name(&name) {
                let label =
                    format!("expected 1 to {LONGEST_NAME} letters, digits, `_` and `-`, a letter or digit first");
                self.wrong(Problem::error("invalid name of a limit", key.span(), label));
            }
            let before = self.file.problems.len();
            let shown = entries(table)
                .into_iter()
                .map(|(key, value)| (key.get_ref().to_string(), inline(value.get_ref())))
                .collect();
            // Its keys are read as those of a route are.
            self.route = Some(RouteSaid { at: key.span(), ..RouteSaid::default() });
            self.table("limits.*", &format!("limits.{name}"), table);
            let draft = self.route.take().map(|said| said.draft.limit).unwrap_or_default();
            let policy = match draft.policy(&name) {
                Ok(policy) => Some(policy),
                Err(label) => {
                    if self.file.problems.len() == before {
                        self.wrong(Problem::error(format!("`limits.{name}` is no limit"), key.span(), label));
                    }
                    None
                }
            };
            self.file.limits.push(LimitSaid { at: key.span(), policy, name, shown });
        }
    }

    /// What shows when all limits and routes are read.
    pub(super) fn look_at_limits(&mut self) {
        let names: Vec<&str> = self.file.limits.iter().map(|limit| limit.name.as_str()).collect();
        let mut problems = Vec::new();
        for route in &self.file.routes {
            let Some(at) = route.mark("routes[].limits") else { continue };
            for name in route.draft.access.limits.iter().filter(|name| !names.contains(&name.as_str())) {
                let close = near(name, names.iter().copied()).map(super::mean);
                let label = close.unwrap_or_else(|| "expected the name of a limit, as in [limits.login]".to_owned());
                let shown: String = name.chars().take(80).collect();
                problems.push(Problem::error(
                    format!("there is no limit `{}`", shown.escape_debug()),
                    at.clone(),
                    label,
                ));
            }
        }
        self.file.problems.extend(problems);
    }
}

/// The tables as the file writes them, for those who show it.
pub(in super::super) fn table_of(limit: &LimitSaid) -> String {
    format!("limits.{}", places::map_key(&limit.name))
}
