//! What does not go together: values that exclude each other, and what only shows when everything is read.

use super::arguments::{Given, Refusal, Source, WRONG_USAGE};
use super::file::File;
use super::load::Program;
use super::report::{Problem, report};
use super::units::show_duration;
use super::{Hub, ListenAddress, Settings, hub, places};

/// What does not go together, and what has part in it.
pub(super) struct Clash<'a> {
    line: String,
    involved: Vec<&'a Source>,
}

impl Clash<'_> {
    /// Whether the file alone is to blame: all that has part in it stands there, and no default.
    pub(super) fn in_file(&self) -> bool {
        self.involved.len() > 1 && self.involved.iter().all(|source| source.rank() == 0)
    }

    /// Where the environment or the file has part in it, the configuration is wrong.
    fn exit_code(&self) -> u8 {
        let lowest = self.involved.iter().min_by_key(|source| source.rank());
        lowest.map_or(WRONG_USAGE, |source| source.exit_code())
    }

    pub(super) fn problem(&self) -> Problem {
        let spots = self.involved.iter().filter_map(|source| match source {
            Source::File(spot) => Some((spot.span.clone(), String::new())),
            _ => None,
        });
        Problem { marks: spots.collect(), ..Problem::error(self.line.clone(), 0..0, "") }
    }

    pub(super) fn refusal(&self, file: Option<&File>) -> Refusal {
        let line = match file {
            Some(file) if self.involved.iter().any(|source| source.rank() == 0) => {
                report(&file.text, &[self.problem()])
            }
            _ => format!("error: {}", self.line),
        };
        Refusal { line: line.trim_end().to_owned(), exit_code: self.exit_code() }
    }
}

/// What only workers of our own have.
pub(super) const OF_WORKERS: [&str; 3] = ["workers", "max-requests", "max-lifetime"];

/// What cannot hold together, wherever it was said.
pub(super) fn contradictions<'a>(given: &'a [Given], program: Option<&'a Program>) -> Vec<Clash<'a>> {
    let find = |name: &str| given.iter().find(|one| one.key.name == name);
    let mut clashes = Vec::new();
    let mut clash = |one: &'a Given, other: (String, &'a Source), advice: &str| {
        let line = format!("{} and {} exclude each other: {advice}", place(one), other.0);
        clashes.push(Clash { line, involved: vec![&one.source, other.1] });
    };
    let by_key = |other: &'a Given| (place(other), &other.source);
    let apps: Vec<&Given> = ["upstream", "respond", "static"].into_iter().filter_map(find).collect();
    if let [first, second, ..] = &apps[..] {
        clash(first, by_key(second), "expected one of them");
    }
    if let Some(app) = apps.first() {
        if let Some(program) = program {
            let command = match &program.source {
                Source::File(spot) => format!("`{}`", spot.path),
                _ => "a command".to_owned(),
            };
            clash(app, (command, &program.source), "expected one of them");
        }
        // Variables such as WEB_CONCURRENCY are set by the surroundings for whatever runs there; they do not count.
        let mut own = OF_WORKERS.into_iter().filter_map(find);
        if let Some(own) = own.find(|one| !matches!(one.source, Source::Environment(_))) {
            clash(app, by_key(own), "no workers are started then");
        }
    }
    let level = |one: &Given, other: &Given| one.source.rank() == other.source.rank();
    if let (Some(off), Some(on)) = (find("no-access-log").filter(|off| is_on(off)), find("access-log"))
        && level(off, on)
    {
        clash(off, by_key(on), "expected one of them");
    }
    for name in ["log-format", "access-log-format"] {
        if let (Some(json), Some(format)) = (find("json-logging").filter(|json| is_on(json)), find(name))
            && level(json, format)
            && format.values.iter().any(|value| value != "json")
        {
            clash(json, by_key(format), "expected one of them");
        }
    }
    clashes
}

/// Whether a switch is on, as far as its value can be read.
pub(super) fn is_on(given: &Given) -> bool {
    given.values.iter().filter_map(|value| value.to_str()).any(|text| super::units::switch(text) == Ok(true))
}

/// Where a value was said.
pub(super) fn place(given: &Given) -> String {
    match &given.source {
        Source::File(spot) => format!("`{}`", spot.path),
        Source::Flag => format!("--{}", given.key.name),
        Source::Shorthand(text) => text.clone(),
        Source::Environment(name) => format!("{name} in the environment"),
    }
}

/// Whether two addresses are one, or one of them takes the other's connections as well: `0.0.0.0:80` those to `127.0.0.1:80`.
pub fn cannot_both_listen(one: &ListenAddress, other: &ListenAddress) -> bool {
    match (one, other) {
        (ListenAddress::Tcp(one), ListenAddress::Tcp(other)) => {
            let all = one.ip().is_unspecified() || other.ip().is_unspecified();
            one.port() != 0 && one.port() == other.port() && one.is_ipv4() == other.is_ipv4() && (all || one == other)
        }
        _ => one == other,
    }
}

/// Hubs that are to be served at one place: those that no route is to.
pub(super) fn of_hubs<'a>(file: Option<&'a File>, given: &'a [Given]) -> Vec<Clash<'a>> {
    let mut served = Vec::new();
    let mut is_said = false;
    for (file, one) in file.iter().flat_map(|file| file.hubs.iter().map(move |one| (file, one))) {
        is_said |= one.name == hub::OF_FLAG;
        let value = one.value.as_ref().filter(|_| !file.has_route_to_hub(&one.name));
        served.extend(value.map(|value| (format!("`{}`", one.table), value.path.clone(), &one.source)));
    }
    let of_flag = given.iter().find(|one| one.key.name == "hub" && is_on(one) && !is_said);
    served.extend(of_flag.map(|one| (place(one), Hub::default().path, &one.source)));
    let mut clashes = Vec::new();
    for (index, (name, path, source)) in served.iter().enumerate() {
        if let Some((other, _, first)) = served[..index].iter().find(|(_, other, _)| other == path) {
            let line = format!(
                "{name} and {other} are both served below {path}/: expected another `path` or a route for one of them"
            );
            clashes.push(Clash { line, involved: vec![*source, *first] });
        }
    }
    clashes
}

/// What only shows when everything is read.
pub(super) fn whole<'a>(settings: &Settings, given: &'a [Given]) -> Vec<Clash<'a>> {
    let find = |name: &str| given.iter().find(|one| one.key.name == name);
    // A default is called by what would change it.
    let default = |name: &str, in_file: bool| match places::main_of(name).filter(|_| in_file) {
        Some(place) => format!("the default of `{}`", place.path.replace('*', &settings.app.name)),
        None => format!("--{name}"),
    };
    let named = |name: &str, other: Option<&Given>| {
        let in_file = other.is_some_and(|other| other.source.rank() == 0);
        find(name).map_or_else(|| default(name, in_file), place)
    };
    let sources = |names: &[&str]| names.iter().filter_map(|name| find(name)).map(|one| &one.source).collect();
    let mut clashes = Vec::new();
    for (index, address) in settings.listening.at.iter().enumerate() {
        let what = match settings.listening.at[..index].iter().find(|other| cannot_both_listen(address, other)) {
            Some(other) if other == address => format!("{address} is given twice: expected different addresses"),
            Some(other) => format!("{address} and {other} clash: one of them takes what the other is to have"),
            None => continue,
        };
        let line = format!("{}: {what}", named("listen", None));
        clashes.push(Clash { line, involved: sources(&["listen"]) });
    }
    let admin = settings.telling.admin.iter();
    let both = admin.flat_map(|own| settings.listening.at.iter().map(move |public| (own, public)));
    for (own, public) in both.filter(|(own, public)| cannot_both_listen(own, public)) {
        let line =
            format!("{}: {own} and the listener {public} clash: expected an address of its own", named("admin", None));
        clashes.push(Clash { line, involved: sources(&["admin", "listen"]) });
    }
    let (timeouts, restart) = (&settings.app.timeouts, &settings.app.life.restart);
    let order = [
        (["connect-timeout-ms", "request-timeout"], timeouts.connect, timeouts.request),
        (["restart-base", "restart-max"], restart.base, restart.max),
        (["eject-time", "eject-max"], settings.app.eject.time, settings.app.eject.max),
    ];
    for (keys, shorter, longer) in order.into_iter().filter(|(_, shorter, longer)| shorter > longer) {
        let line = format!(
            "{} ({}) is longer than {} ({}): expected it to be shorter",
            named(keys[0], find(keys[1])),
            show_duration(shorter),
            named(keys[1], find(keys[0])),
            show_duration(longer)
        );
        clashes.push(Clash { line, involved: sources(&keys) });
    }
    clashes
}
