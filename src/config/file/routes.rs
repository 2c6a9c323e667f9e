//! The routes of the file: each alone, whether it is whole, and whether the apps that they name are there.

use std::ops::Range;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::super::places::{self, Place};
use super::super::report::Problem;
use super::super::route::Draft;
use super::{Reader, Said, entries, near};

/// The name of the app that there is when none is named.
const ONLY_APP: &str = "web";

/// One `[[routes]]`.
#[derive(Debug, Default)]
pub(in super::super) struct RouteSaid {
    /// Where it begins.
    pub at: Range<usize>,
    /// What is said of it.
    pub draft: Draft,
    /// Where each value stands, by the path of its place.
    pub marks: Vec<(&'static str, Range<usize>)>,
    /// Its entries as the file writes them.
    pub shown: Vec<(String, String)>,
}

impl RouteSaid {
    /// Where something below that path is said.
    pub fn mark(&self, path: &str) -> Option<Range<usize>> {
        let below = |place: &str| place.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.marks.iter().find(|(place, _)| below(place)).map(|(_, at)| at.clone())
    }
}

impl Reader<'_> {
    pub(super) fn routes(&mut self, routes: &[Spanned<DeValue<'_>>]) {
        for route in routes {
            let DeValue::Table(table) = route.get_ref() else {
                let label = "expected a table, as in `[[routes]]` above `app = \"web\"`";
                self.wrong(Problem::error("`routes` is not a list of tables", route.span(), label));
                continue;
            };
            let before = self.file.problems.len();
            let show = |(key, value): super::Entry<'_, '_>| (key.get_ref().to_string(), inline(value.get_ref()));
            let shown = entries(table).into_iter().map(show).collect();
            self.route = Some(RouteSaid { at: route.span(), shown, ..RouteSaid::default() });
            self.table("routes[]", "routes", table);
            let Some(mut said) = self.route.take() else { continue };
            if self.file.problems.len() == before {
                let mut problems = incomplete(&said);
                problems.extend(super::auth::read(&mut said));
                self.file.problems.extend(problems);
            }
            self.file.routes.push(said);
        }
    }

    /// A value that belongs to the route in hand.
    pub(super) fn of_route(&mut self, place: &'static Place, said: Vec<Said>, at: Range<usize>) {
        let Some(route) = &mut self.route else { return };
        for (text, _) in &said {
            // Each was read once already.
            match (place.route, place.key()) {
                (Some(own), _) => (own.set)(&mut route.draft, text).ok(),
                (None, key) => key.and_then(|key| (key.set)(route.draft.own(), text).ok()),
            };
        }
        route.marks.push((place.path, at));
    }

    /// What shows when all routes and apps are read.
    pub(super) fn look_at_routes(&mut self) {
        let names: Vec<String> = self.file.apps.iter().map(|app| app.name.clone()).collect();
        let mut problems = Vec::new();
        let app = |route: &RouteSaid| Some((route.draft.app.clone()?, route.mark("routes[].app")?));
        let asked = |route: &RouteSaid| {
            Some((route.draft.access.forward.app.clone(), route.mark("routes[].forward_auth.app")?))
        };
        let of_hub = |hub: &super::Named<crate::config::Hub>| {
            Some((hub.value.as_ref()?.participant.app.clone()?, hub.said.mark("hub.*.app")?))
        };
        let of_routes = self.file.routes.iter().flat_map(|route| [app(route), asked(route)]).flatten();
        for (name, at) in of_routes.chain(self.file.hubs.iter().filter_map(of_hub)) {
            let name = &name;
            if names.contains(name) || (names.is_empty() && name == ONLY_APP) {
                continue;
            }
            let close = near(name, names.iter().map(String::as_str)).map(super::mean);
            let label = close.unwrap_or_else(|| format!("expected the name of an app: write `[apps.{name}]`"));
            let shown: String = name.chars().take(80).collect();
            problems.push(Problem::error(format!("there is no app `{}`", shown.escape_debug()), at, label));
        }
        if let ([first, second, ..], []) = (&self.file.apps[..], &self.file.routes[..]) {
            let problem =
                Problem::error("several apps and no routes", second.at.clone(), "nothing says what goes to it");
            let problem = problem.and(first.at.clone(), "nor to this one");
            let help = format!(
                "write [[routes]] with match = {{ host = \"…\" }} or {{ path = \"/…/*\" }} and app = {}",
                places::quoted(&second.name)
            );
            problems.push(problem.help(help));
        }
        self.file.problems.extend(problems);
    }
}

/// What a route lacks, or has too much of.
fn incomplete(route: &RouteSaid) -> Vec<Problem> {
    const TARGETS: [&str; 6] = ["app", "upstreams", "respond", "redirect", "static", "hub"];
    let mark = |name: &str| route.mark(&format!("routes[].{name}"));
    let targets: Vec<(&str, Range<usize>)> =
        TARGETS.iter().filter_map(|name| mark(name).map(|at| (*name, at))).collect();
    let mut problems = Vec::new();
    match &targets[..] {
        [] => {
            let label = "expected one of `app`, `upstreams`, `respond`, `redirect`, `static` and `hub`";
            problems.push(Problem::error("a route that leads nowhere", route.at.clone(), label));
        }
        [(first, at), (second, other), ..] => {
            let title = format!("`{first}` and `{second}` exclude each other");
            problems
                .push(Problem::error(title, other.clone(), "expected one of them").and(at.clone(), "and the other"));
        }
        [(only, at)] => {
            for name in ["rewrite", "request_fields", "sendfile", "compress", "max_in_flight"] {
                if let Some(changed) = mark(name).filter(|_| !["app", "upstreams"].contains(only)) {
                    let title = format!("`{name}` has no effect here");
                    let problem = Problem::error(title, changed, "it is about what goes to an app");
                    problems.push(problem.and(at.clone(), "and the loop itself answers"));
                }
            }
        }
    }
    for (name, fields) in
        [("request_fields", &route.draft.request_fields), ("response_fields", &route.draft.response_fields)]
    {
        if let Some(((one, other), at)) = fields.clash().zip(mark(&format!("{name}.set"))) {
            let label = format!("`{one}` and `{other}` are one field to apps: expected one of them");
            problems.push(Problem::error(format!("`{name}` says two things of a field"), at, label));
        }
    }
    for name in ["balance", "health", "eject"] {
        if let Some(at) = mark(name).filter(|_| route.draft.upstreams.is_empty()) {
            let label = "it is for `upstreams`; an app has its own, in [apps.NAME]";
            problems.push(Problem::error(format!("`{name}` has no effect here"), at, label));
        }
    }
    if let Some(at) = mark("redirect").filter(|_| route.draft.redirect.as_ref().is_some_and(|to| to.to.is_empty())) {
        let label = "expected `to`, as in redirect = { to = \"/new\", status = 308 }";
        problems.push(Problem::error("a redirect without a place", at, label));
    }
    for (name, files) in [("static", &route.draft.files), ("sendfile", &route.draft.sendfile)] {
        if let Some(at) = mark(name).filter(|_| files.as_ref().is_some_and(|files| files.root.as_os_str().is_empty())) {
            let label = format!("expected `root`, as in {name} = {{ root = \"/srv/www\" }}");
            problems.push(Problem::error("files without a directory", at, label));
        }
    }
    let bodiless = |respond: &super::super::route::Respond| [204, 304].contains(&respond.status);
    if let Some(at) = mark("respond.body").filter(|_| route.draft.respond.as_ref().is_some_and(bodiless)) {
        problems.push(Problem::error("an answer with this status has no body", at, "take the body out, or say 200"));
    }
    problems
}

/// A value in one line, as TOML writes it: what variables and files stand for stays unsaid.
pub(in super::super) fn inline(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => places::quoted(text),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(on) => on.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(items) => {
            format!("[{}]", items.iter().map(|item| inline(item.get_ref())).collect::<Vec<_>>().join(", "))
        }
        DeValue::Table(table) => inline_table(table),
    }
}

fn inline_table(table: &DeTable<'_>) -> String {
    let entry = |(key, value): super::Entry<'_, '_>| {
        format!("{} = {}", places::map_key(key.get_ref()), inline(value.get_ref()))
    };
    let inside: Vec<String> = entries(table).into_iter().map(entry).collect();
    if inside.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", inside.join(", ")) }
}
