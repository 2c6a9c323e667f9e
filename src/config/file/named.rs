//! Tables of which there are many, each under a name of its own, `[limits.NAME]` and `[hub.NAME]`, and whether those are there that routes
//! name.

use std::sync::Arc;

use toml::de::{DeTable, DeValue};

use super::super::arguments::Source;
use super::super::hub::Hub;
use super::super::report::Problem;
use super::super::route::Draft;
use super::routes::{RouteSaid, inline};
use super::{Entry, LONGEST_NAME, Reader, auth, entries, is_name, near};
use crate::limits::Policy;

/// A kind of such tables.
pub(super) struct Kind {
    /// The table that they stand in.
    pub table: &'static str,
    /// What one of them is.
    pub one: &'static str,
    /// What one of them may be called.
    pub example: &'static str,
}

const LIMITS: Kind = Kind { table: "limits", one: "a limit", example: "login" };
const HUBS: Kind = Kind { table: "hub", one: "a hub", example: "chat" };

/// One of them.
#[derive(Debug)]
pub(in super::super) struct Named<T> {
    /// Its name.
    pub name: String,
    /// Its table, as its header has it.
    pub table: String,
    /// Where its name stands.
    pub source: Source,
    /// What is said of it.
    pub said: RouteSaid,
    /// What that makes, if it is whole.
    pub value: Option<T>,
}

impl Reader<'_> {
    pub(super) fn limits(&mut self, limits: &DeTable<'_>) {
        self.file.limits = self.all_named(&LIMITS, limits, limit);
    }

    pub(super) fn hubs(&mut self, hubs: &DeTable<'_>) {
        self.file.hubs = self.all_named(&HUBS, hubs, hub);
    }

    /// The name and the table of one, if it is a table; what is wrong with its name is told.
    pub(super) fn named<'a, 'i>(&mut self, kind: &Kind, entry: Entry<'a, 'i>) -> Option<(String, &'a DeTable<'i>)> {
        let (key, value) = entry;
        let (name, one) = (key.get_ref().to_string(), kind.one);
        let DeValue::Table(table) = value.get_ref() else {
            let example = format!("`[{}.{}]`", kind.table, kind.example);
            let label = format!("expected the name of {one} above it, as in {example} and then `{name} = …`");
            self.wrong(Problem::error(format!("`{name}` belongs to {one}"), key.span(), label));
            return None;
        };
        if !is_name(&name) {
            let label = format!("expected 1 to {LONGEST_NAME} letters, digits, `_` and `-`, a letter or digit first");
            self.wrong(Problem::error(format!("invalid name of {one}"), key.span(), label));
        }
        Some((name, table))
    }

    /// All of one kind. `whole` makes of what is said what it says.
    fn all_named<T>(
        &mut self,
        kind: &Kind,
        tables: &DeTable<'_>,
        whole: fn(&RouteSaid, &str) -> Result<T, Problem>,
    ) -> Vec<Named<T>> {
        let mut all = Vec::new();
        for (key, value) in entries(tables) {
            let before = self.file.problems.len();
            let Some((name, inside)) = self.named(kind, (key, value)) else { continue };
            let table = format!("{}.{name}", kind.table);
            let show = |(key, value): Entry<'_, '_>| (key.get_ref().to_string(), inline(value.get_ref()));
            let shown = entries(inside).into_iter().map(show).collect();
            // Its keys are read as those of a route are.
            self.route = Some(RouteSaid { at: key.span(), shown, ..RouteSaid::default() });
            self.table(&format!("{}.*", kind.table), &table, inside);
            let Some(said) = self.route.take() else { continue };
            // What is made of values that could not be read says nothing.
            let whole = (self.file.problems.len() == before).then(|| whole(&said, &name)).transpose();
            let value = whole.unwrap_or_else(|problem| {
                self.wrong(problem);
                None
            });
            let source = Source::File(self.spot(table.clone(), key.span()));
            all.push(Named { name, table, source, said, value });
        }
        all
    }

    /// What shows when all of them and all routes are read.
    pub(super) fn look_at_names(&mut self) {
        let file = &self.file;
        let limits = file.limits.iter().map(|limit| limit.name.as_str()).collect();
        let mut problems = file.missing(&LIMITS, limits, "routes[].limits", |draft| &draft.access.limits);
        let hubs = file.hubs.iter().map(|hub| hub.name.as_str()).collect();
        problems.extend(file.missing(&HUBS, hubs, "routes[].hub", |draft| draft.to_hub.as_slice()));
        self.file.problems.extend(problems);
    }
}

impl super::File {
    /// Those that routes name at a place, and that are none of these.
    fn missing(&self, kind: &Kind, names: Vec<&str>, place: &str, of: fn(&Draft) -> &[String]) -> Vec<Problem> {
        let mut problems = Vec::new();
        for route in &self.routes {
            let Some(at) = route.mark(place) else { continue };
            for name in of(&route.draft).iter().filter(|name| !names.contains(&name.as_str())) {
                let close = near(name, names.iter().copied()).map(super::mean);
                let expected = || format!("expected the name of {}, as in [{}.{}]", kind.one, kind.table, kind.example);
                let shown: String = name.chars().take(80).collect();
                let what = kind.one.trim_start_matches("a ");
                let title = format!("there is no {what} `{}`", shown.escape_debug());
                problems.push(Problem::error(title, at.clone(), close.unwrap_or_else(expected)));
            }
        }
        problems
    }

    /// Whether a route is to the hub of that name.
    pub(in super::super) fn has_route_to_hub(&self, name: &str) -> bool {
        self.routes.iter().any(|route| route.draft.to_hub.as_deref() == Some(name))
    }
}

fn limit(said: &RouteSaid, name: &str) -> Result<Policy, Problem> {
    let wrong = |label| Problem::error(format!("`limits.{name}` is no limit"), said.at.clone(), label);
    said.draft.named.limit.policy(name).map_err(wrong)
}

/// With the keys in the file that it names.
fn hub(said: &RouteSaid, name: &str) -> Result<Hub, Problem> {
    let draft = &said.draft.named.hub;
    let at = |key: &str| said.mark(key).unwrap_or_else(|| said.at.clone());
    let keys = draft.keys.as_deref().map(auth::keys).transpose();
    let keys = keys.map_err(|label| Problem::error("the file of keys cannot be taken", at("hub.*.keys"), label))?;
    let wrong = |label| Problem::error(format!("`hub.{name}` is no hub"), said.at.clone(), label);
    draft.hub(name, keys.map(Arc::new)).map_err(wrong)
}
