//! What a reload would change: the difference of two configurations, each value with its class. Pure; `places` has the classes.

use std::fmt;

use super::arguments::{Given, Source};
use super::load::{AppGiven, Loaded};
use super::places::{self, Reload};
use super::{App, Config, Listener, keys};

/// A value that is another than it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Its tables and its key, as the file has them.
    pub path: String,
    /// When it takes effect.
    pub class: Reload,
    /// What held, as the file or the command line wrote it: what `${VARIABLE}` and files for secrets stand for is not told.
    pub old: String,
    /// What is to hold.
    pub new: String,
}

/// What becomes of an app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is new.
    Added,
    /// It is not there any more.
    Removed,
    /// It is another app of the same name: workers where upstreams were, or other upstreams.
    Replaced,
    /// These of its values are others.
    Changed(Vec<Changed>),
}

/// The difference of two configurations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Values of the server that are others.
    pub server: Vec<Changed>,
    /// Listeners that are to be opened.
    pub opened: Vec<Listener>,
    /// Listeners that are to be closed.
    pub closed: Vec<Listener>,
    /// Unix sockets that stay, and that others may connect to.
    pub access: Vec<Listener>,
    /// Listeners that stay, and that something else is to stand in front of than when they were opened: who has opened them knows.
    pub fronts: Vec<Listener>,
    /// Listeners that stay, and that say otherwise themselves whose requests are taken.
    pub doors: Vec<Listener>,
    /// Listeners that stay, and whose certificates or rules of TLS are others, each with what is new: who has read the files knows.
    pub tls: Vec<String>,
    /// Whether the limits are others.
    pub limits: bool,
    /// Whether the hubs are others.
    pub hubs: bool,
    /// Whether the routes are others.
    pub routes: bool,
    /// What becomes of apps, by their names.
    pub apps: Vec<(String, Fate)>,
}

impl Changes {
    /// Whether all is as it was.
    pub fn is_empty(&self) -> bool {
        *self == Changes::default()
    }

    /// The values that a reload leaves as they are.
    pub fn left(&self) -> impl Iterator<Item = &Changed> {
        self.server.iter().filter(|changed| changed.class == Reload::Restart)
    }

    /// The difference, each change in one line.
    pub fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.server.iter().map(ToString::to_string).collect();
        lines.extend(self.opened.iter().map(|listener| format!("listener {}: opened", listener.address)));
        lines.extend(self.closed.iter().map(|listener| format!("listener {}: closed", listener.address)));
        let left =
            "what stands in front of it (takes another process: left as it was until `production_server upgrade`)";
        lines.extend(self.fronts.iter().map(|listener| format!("listener {}: {left}", listener.address)));
        lines.extend(self.access.iter().map(|listener| format!("listener {}: mode and owner", listener.address)));
        lines.extend(
            self.doors.iter().map(|listener| format!("listener {}: whose requests are taken", listener.address)),
        );
        lines.extend(self.tls.iter().cloned());
        lines.extend(self.limits.then(|| "limits: changed".to_owned()));
        lines.extend(self.hubs.then(|| "hubs: changed".to_owned()));
        lines.extend(self.routes.then(|| "routes: changed".to_owned()));
        for (name, fate) in &self.apps {
            match fate {
                Fate::Added => lines.push(format!("app {name}: added")),
                Fate::Removed => lines.push(format!("app {name}: removed")),
                Fate::Replaced => lines.push(format!("app {name}: replaced")),
                Fate::Changed(values) => lines.extend(values.iter().map(ToString::to_string)),
            }
        }
        lines
    }
}

impl fmt::Display for Changed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.class {
            Reload::Live | Reload::Listener => "",
            Reload::Roll => " (its workers are replaced)",
            Reload::Restart => " (takes another process: left as it was until `production_server upgrade`)",
        };
        write!(formatter, "{}: {} -> {}{what}", self.path, self.old, self.new)
    }
}

/// What is to be changed for `new` to hold where `old` holds.
pub fn diff(old: &Loaded, new: &Loaded) -> Changes {
    let mut changes = Changes { server: values(old, &old.given, new, &new.given, None), ..Changes::default() };
    let of_pages = |changed: &Changed| changed.path == "server.error_pages";
    if !changes.server.iter().any(of_pages) {
        let (old, new) = (&old.config.server.error_pages, &new.config.server.error_pages);
        // What is named is as it was, or it would be another value.
        changes.server.extend((old != new).then(|| changed_pages("server", None)));
    }
    let (before, after) = (&old.config.listeners, &new.config.listeners);
    let same = |one: &Listener, all: &[Listener]| all.iter().any(|other| other.address == one.address);
    changes.opened = after.iter().filter(|listener| !same(listener, before)).cloned().collect();
    changes.closed = before.iter().filter(|listener| !same(listener, after)).cloned().collect();
    let earlier = |one: &Listener| before.iter().find(|other| other.address == one.address);
    let admits_others = |one: &&Listener| earlier(one).is_some_and(|other| one.access != other.access);
    changes.access = after.iter().filter(admits_others).cloned().collect();
    let own = |config: &Config, one: &Listener| {
        let front = Some(&one.front).filter(|front| front.lets_in() != config.server.listening.front.lets_in());
        front.map(|front| (front.allow.clone(), front.deny.clone()))
    };
    let opens = |one: &&Listener| earlier(one).is_some_and(|other| own(&new.config, one) != own(&old.config, other));
    changes.doors = after.iter().filter(opens).cloned().collect();
    changes.limits = old.config.server.limits != new.config.server.limits;
    changes.hubs = old.config.server.hubs != new.config.server.hubs;
    // Routes name apps and hubs by their index, which may be another although the app is the same.
    changes.routes = routes(&old.config) != routes(&new.config);
    for app in &old.config.apps {
        let fate = match new.config.apps.iter().find(|other| other.name == app.name) {
            None => Some(Fate::Removed),
            Some(other) if is_another(app, other) => Some(Fate::Replaced),
            Some(other) => match changed_values(old, new, app, other) {
                changed if changed.is_empty() => None,
                changed => Some(Fate::Changed(changed)),
            },
        };
        changes.apps.extend(fate.map(|fate| (app.name.clone(), fate)));
    }
    let is_new = |app: &&App| old.config.apps.iter().all(|other| other.name != app.name);
    changes.apps.extend(new.config.apps.iter().filter(is_new).map(|app| (app.name.clone(), Fate::Added)));
    changes
}

/// Whether an app is not the other with changed values, but something else: its workers are upstreams, or other upstreams.
fn is_another(one: &App, other: &App) -> bool {
    let runs = |app: &App| app.program.command != super::Command::None;
    runs(one) != runs(other)
        || one.instead.respond.is_some() != other.instead.respond.is_some()
        || one.instead.files.is_some() != other.instead.files.is_some()
        || one.instead.upstreams != other.instead.upstreams
}

/// The routes with the names of their apps and hubs.
fn routes(config: &Config) -> Vec<(String, super::Route)> {
    let named = |route: &super::Route| {
        let mut route = route.clone();
        let name = match &mut route.to {
            super::route::Target::App(app) => {
                config.apps.get(std::mem::take(app)).map(|app| app.name.clone()).unwrap_or_default()
            }
            super::route::Target::Hub(hub) => {
                config.server.hubs.get(std::mem::take(hub)).map(|hub| hub.name.clone()).unwrap_or_default()
            }
            // The app that stands for such routes is no part of what they say.
            super::route::Target::Files(_, app) => {
                *app = 0;
                String::new()
            }
            _ => String::new(),
        };
        (name, route)
    };
    config.routes.iter().map(named).collect()
}

/// The values of an app that are others.
fn changed_values(old: &Loaded, new: &Loaded, one: &App, other: &App) -> Vec<Changed> {
    let name = one.name.as_str();
    let find = |loaded: &'_ Loaded| loaded.apps.iter().position(|app| app.name == name);
    let (Some(before), Some(after)) = (find(old), find(new)) else { return changed_of_route(old, new, one, other) };
    let (before, after) = (&old.apps[before], &new.apps[after]);
    let mut changed = values(old, &before.given, new, &after.given, Some(name));
    if one.answering.error_pages != other.answering.error_pages {
        let shown = |loaded: &Loaded, app: &AppGiven| {
            let given = app.given.iter().find(|given| given.key.name == "error-page");
            let written = given.zip(places::by_path("apps.*.error_pages")).map(|(given, at)| loaded.written(at, given));
            written.unwrap_or_else(|| "unset".to_owned())
        };
        let (before, after) = (shown(old, before), shown(new, after));
        changed.push(changed_pages(&format!("apps.{name}"), Some((before, after)).filter(|(old, new)| old != new)));
    }
    let words = |app: &AppGiven| app.program.as_ref().map(|program| program.words.clone());
    if words(before) != words(after) {
        let shown = |loaded: &Loaded, app: &AppGiven| {
            let command = app.program.as_ref().map(|program| loaded.written_command(program));
            command.unwrap_or_else(|| "the built-in worker".to_owned())
        };
        let path = places::COMMAND.replace('*', name);
        changed.push(Changed { path, class: Reload::Roll, old: shown(old, before), new: shown(new, after) });
    }
    changed
}

/// That a table's error pages are others: those that are named, as they are written, or what their files say.
fn changed_pages(table: &str, named: Option<(String, String)>) -> Changed {
    let (old, new) = named.unwrap_or_else(|| ("as they were".to_owned(), "read anew".to_owned()));
    Changed { path: format!("{table}.error_pages"), class: Reload::Live, old, new }
}

/// The same of what a route's own upstreams make, which is known by its name: what it can do otherwise is in no key of an app.
fn changed_of_route(old: &Loaded, new: &Loaded, one: &App, other: &App) -> Vec<Changed> {
    let both = [("health", one.health != other.health), ("eject", one.eject != other.eject)];
    let written =
        |loaded: &Loaded, table| loaded.written_of_route(&one.name, table).unwrap_or_else(|| "unset".to_owned());
    let changed = both.into_iter().filter(|(_, is_other)| *is_other).map(|(table, _)| Changed {
        path: format!("routes to {}: {table}", one.name),
        class: Reload::Live,
        old: written(old, table),
        new: written(new, table),
    });
    changed.collect()
}

/// The values of keys that are others.
fn values(old: &Loaded, before: &[Given], new: &Loaded, after: &[Given], app: Option<&str>) -> Vec<Changed> {
    let mut changed = Vec::new();
    for key in keys::all().filter(|key| key.is_of_app() == app.is_some()) {
        let Some(place) = places::main_of(key.name).filter(|place| place.reload != Reload::Listener) else { continue };
        let said = |given: &[Given]| {
            let given = given.iter().find(|one| one.key.name == key.name);
            let default = || if key.default.is_empty() { Vec::new() } else { vec![key.default.into()] };
            given.map_or_else(default, |given| given.values.clone())
        };
        if said(before) == said(after) {
            continue;
        }
        let find = |given: &'_ [Given]| given.iter().position(|one| one.key.name == key.name);
        let (before, after) = (find(before).map(|index| &before[index]), find(after).map(|index| &after[index]));
        // Where it is said now, else where it was.
        let here = after.or(before).map_or(place, |given| said_at(given, place, app));
        let show = |loaded: &Loaded, given: Option<&Given>| {
            let default = || if key.default.is_empty() { "unset".to_owned() } else { place.write(key.default) };
            let value = given.map_or_else(default, |given| loaded.written(place, given));
            let there = given.map_or(place, |given| said_at(given, place, app));
            if there.path == here.path { value } else { format!("`{}` {value}", there.last()) }
        };
        let path = here.path.replace('*', app.unwrap_or_default());
        changed.push(Changed { path, class: place.reload, old: show(old, before), new: show(new, after) });
    }
    changed
}

/// The place of a key at which the file says its value, where it has several: `ready.by` and `ready.http`.
fn said_at(given: &Given, main: &'static places::Place, app: Option<&str>) -> &'static places::Place {
    let Source::File(spot) = &given.source else { return main };
    let path = app.and_then(|app| spot.path.strip_prefix(&format!("apps.{app}")));
    let path = path.map_or_else(|| spot.path.clone(), |rest| format!("apps.*{rest}"));
    places::by_path(&path).filter(|place| place.name == main.name).unwrap_or(main)
}

impl Config {
    /// Takes over what a reload cannot change, and where the server is at home.
    pub fn keep_from(&mut self, old: &Config) {
        let (server, old) = (&mut self.server, &old.server);
        server.loops = old.loops;
        server.process.clone_from(&old.process);
        (server.bounds.connections, server.bounds.spare) = (old.bounds.connections, old.bounds.spare);
        server.stores.buffer_bytes = old.stores.buffer_bytes;
        let (telling, old_telling) = (&mut server.telling, &old.telling);
        telling.admin.clone_from(&old_telling.admin);
        let (prometheus, bungate) = (telling.metrics.prometheus, telling.metrics.bungate);
        telling.metrics = super::Metrics { prometheus, bungate, ..old_telling.metrics.clone() };
        let (front, old_front) = (&mut server.listening.front, &old.listening.front);
        let super::Tls { speak, redirect_https, .. } = old_front.tls;
        let tls = super::Tls { speak, redirect_https, ..std::mem::take(&mut front.tls) };
        *front = super::Front { tls, ..old_front.clone() }.letting_in_as(front);
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::places::{PLACES, Place};
    use super::super::{Environment, Invocation};
    use super::*;

    fn load(file: &str, arguments: &[&str]) -> Loaded {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("site.toml");
        std::fs::write(&path, if file.is_empty() { "# All defaults." } else { file }).unwrap();
        let named = [OsString::from("production_server"), "-f".into(), path.into_os_string()];
        let words = named.into_iter().chain(arguments.iter().map(OsString::from));
        match super::super::read(words, &Environment::default()) {
            Ok(Invocation::Run(loaded)) => *loaded,
            other => panic!("{file}\n{other:?}"),
        }
    }

    /// A file with one value, in the table where the place has it.
    fn one(place: &Place, value: &str) -> String {
        let path = place.path.replace('*', "web");
        let (table, name) = path.rsplit_once('.').unwrap();
        format!("[{table}]\n{name} = {value}\n")
    }

    #[test]
    fn every_value_that_changes_is_told_with_its_class() {
        // Where the example is what holds anyway.
        let others = [("server.timeouts.header", "\"1s\""), ("log.access.to", "\"/a\"")];
        let of_listener = |place: &Place| place.reload == Reload::Listener || place.path.starts_with("listen[]");
        let elsewhere = |place: &Place| of_listener(place) || place.is_of_route();
        for place in PLACES.iter().filter(|place| place.key().is_some() && !elsewhere(place)) {
            let other = others.iter().find(|(path, _)| *path == place.path).map(|(_, value)| (*value).to_owned());
            let default = place.key().is_some_and(|key| place.write(key.default) == place.example());
            let value = other.unwrap_or_else(|| if default { different(place) } else { place.example() });
            let changes = diff(&load("", &[]), &load(&one(place, &value), &[]));
            if ["upstream", "respond", "static"].contains(&place.name) {
                assert_eq!(changes.apps, [("web".to_owned(), Fate::Replaced)], "{}", place.path);
                continue;
            }
            let of_app = match &changes.apps[..] {
                [(_, Fate::Changed(changed))] => &changed[..],
                _ => &changes.server[..],
            };
            let classes: Vec<Reload> = of_app.iter().map(|changed| changed.class).collect();
            assert_eq!(classes, [place.reload], "{} = {value}: {changes:?}", place.path);
            assert!(diff(&load(&one(place, &value), &[]), &load(&one(place, &value), &[])).is_empty());
        }
    }

    /// A value that is neither the default nor wrong.
    fn different(place: &Place) -> String {
        use super::super::places::Shape::{Count, Duration, Size, Switch, Text, Word};
        let text = match (place.name, place.shape) {
            ("backend", _) => "\"epoll\"",
            ("fair-queue", _) => "\"user\"",
            ("balance", _) => "\"least\"",
            ("pin", _) => "true",
            ("trusted-proxies" | "proxy-protocol", _) => "\"unix\"",
            ("forwarded", _) => "\"write\"",
            ("ready", _) => "\"notify\"",
            ("socket", _) => "\"tcp\"",
            ("hot-reload", _) => "\"process\"",
            ("half-close", _) => "\"serve\"",
            ("compress-events", _) => "true",
            ("request-buffering", _) => "\"memory\"",
            ("reload-signal", _) => "\"USR1\"",
            ("recycle-jitter", _) => "\"11%\"",
            ("give-up", _) => "\"6/60s\"",
            ("statsd", _) => "\"127.0.0.1:1\"",
            ("statsd-format", _) => "\"datadog\"",
            ("statsd-tag", _) => "\"a:b\"",
            ("error-page", _) => "{ 404 = \"x.html\" }",
            ("admin", _) => "\"127.0.0.1:1\"",
            ("max-fields" | "max-connections", _) => "100",
            (_, Count) => "3",
            (_, Duration) => "\"7s\"",
            ("buffer-bytes" | "max-memory", _) => "\"2MiB\"",
            (_, Size) => "\"512KiB\"",
            (_, Switch | Word) => "false",
            (_, Text) => "\"x\"",
            (name, shape) => panic!("{name} {shape:?}"),
        };
        text.to_owned()
    }

    /// Those of one class have the workers replaced, and no others.
    #[test]
    fn what_is_said_of_a_roll_is_what_causes_one() {
        for place in PLACES.iter().filter(|place| place.path.starts_with("apps.") && place.key().is_some()) {
            if ["upstream", "respond", "static"].contains(&place.name) {
                continue;
            }
            let app = |file: &str| load(file, &[]).config.apps[0].clone();
            let (old, mut new) = (app("[apps.web]\n"), app(&one(place, &place.example())));
            // Where the example is what holds anyway, on a machine of that many cores perhaps.
            if format!("{old:?}") == format!("{new:?}") {
                new = app(&one(place, &different(place)));
            }
            assert_ne!(format!("{old:?}"), format!("{new:?}"), "{}", place.path);
            assert_eq!(old.starts_like(&new), place.reload != Reload::Roll, "{}", place.path);
        }
    }

    #[test]
    fn what_a_reload_cannot_change_is_kept() {
        let listened = |place: &&Place| place.path.starts_with("listen[]");
        for place in PLACES.iter().filter(|place| place.reload == Reload::Restart && !listened(place)) {
            let value = different(place);
            let (old, mut new) = (load("", &[]).config, load(&one(place, &value), &[]).config);
            assert_ne!(format!("{:?}", old.server), format!("{:?}", new.server), "{}", place.path);
            new.keep_from(&old);
            let warnings = |config: &Config| {
                let mut server = config.server.clone();
                server.source.file = None;
                format!("{server:?}")
            };
            assert_eq!(warnings(&old), warnings(&new), "{}", place.path);
        }
    }

    #[test]
    fn apps_listeners_and_routes_come_and_go() {
        let old = load(
            "listen = [{ address = \"1000\" }, { address = \"unix:/a\" }]\n[[routes]]\nmatch.path = \"/x\"\nrespond = \"x\"\n\
             [[routes]]\napp = \"web\"\n[apps.web]\nqueue.size = 5\nenvironment = { SECRET = \"${HOME:-hush}\" }",
            &[],
        );
        let new = load(
            "listen = [{ address = \"unix:/a\", mode = \"0600\" }, { address = \"1001\" }]\n[[routes]]\nmatch.path = \"/y\"\nrespond = \"x\"\n\
             [[routes]]\napp = \"web\"\n[apps.web]\nqueue.size = 6\nenvironment = { SECRET = \"${HOME:-hush!}\" }\n\
             command = [\"node\",\n \"--password=${HOME:-hush}\"]\nerror_pages.404 = \"${HOME:-hush}.html\"\n[server]\nloops = 7\nshutdown = \"1s\"",
            &[],
        );
        let changes = diff(&old, &new);
        let lines = changes.lines();
        assert_eq!(
            lines,
            [
                "server.loops: \"auto\" -> 7 (takes another process: left as it was until `production_server upgrade`)",
                "server.shutdown: \"5s\" -> \"1s\"",
                "listener 0.0.0.0:1001: opened",
                "listener 0.0.0.0:1000: closed",
                "listener unix:/a: mode and owner",
                "routes: changed",
                "apps.web.environment: { SECRET = \"${HOME:-hush}\" } -> { SECRET = \"${HOME:-hush!}\" } \
                 (its workers are replaced)",
                "apps.web.queue.size: 5 -> 6",
                "apps.web.error_pages: unset -> { 404 = \"${HOME:-hush}.html\" }",
                "apps.web.command: the built-in worker -> [\"node\", \"--password=${HOME:-hush}\"] (its workers are replaced)",
            ]
        );
        assert_eq!(changes.left().count(), 1);
        assert!(diff(&new, &new).is_empty());
    }

    #[test]
    fn a_value_is_told_by_the_name_that_the_file_gives_it() {
        let of = |ready: &str| load(&format!("[apps.web]\n{ready}"), &[]);
        let (none, by, http) = (of(""), of("ready = \"notify\""), of("ready.http = \"/up\""));
        let rolls = "(its workers are replaced)";
        for (old, new, line) in [
            (&none, &by, format!("apps.web.ready.by: \"listen\" -> \"notify\" {rolls}")),
            (&none, &http, format!("apps.web.ready.http: `by` \"listen\" -> \"/up\" {rolls}")),
            (&http, &by, format!("apps.web.ready.by: `http` \"/up\" -> \"notify\" {rolls}")),
            (&http, &none, format!("apps.web.ready.http: \"/up\" -> `by` \"listen\" {rolls}")),
        ] {
            assert_eq!(diff(old, new).lines(), [line]);
        }
    }

    /// An app that has another index is the same one, and one that has the index of another is not.
    #[test]
    fn routes_are_compared_by_the_names_of_their_apps() {
        let to = |app: &str, apps: [&str; 2]| {
            let tables: String = apps.iter().map(|name| format!("[apps.{name}]\n")).collect();
            load(
                &format!("[[routes]]\nmatch.path = \"/x\"\napp = \"{app}\"\n[[routes]]\napp = \"{app}\"\n{tables}"),
                &[],
            )
        };
        let index = |loaded: &Loaded| format!("{:?}", loaded.config.routes[0].to);
        let (before, other) = (to("b", ["b", "c"]), to("a", ["a", "c"]));
        assert_eq!(index(&before), index(&other), "the test does what it says");
        assert!(diff(&before, &other).routes);
        let moved = to("b", ["a", "b"]);
        assert_ne!(index(&before), index(&moved), "the test does what it says");
        assert!(!diff(&before, &moved).routes);
    }

    /// So is a hub; and what its file of keys says is part of it.
    #[test]
    fn hubs_are_compared_with_their_keys_and_named_in_routes() {
        let folder = tempfile::tempdir().unwrap();
        let keys = folder.path().join("keys");
        let of = |names: [&str; 2], key: char| {
            std::fs::write(&keys, format!("shop:{}", String::from(key).repeat(64))).unwrap();
            let tables: String = names.iter().map(|name| format!("[hub.{name}]\npath = \"/{name}\"\n")).collect();
            load(&format!("{tables}keys = {keys:?}\n[[routes]]\nhub = \"b\"\n"), &[])
        };
        let before = of(["a", "b"], '0');
        assert!(diff(&before, &of(["a", "b"], '0')).is_empty());
        assert_eq!(diff(&before, &of(["a", "b"], '1')).lines(), ["hubs: changed"]);
        let moved = of(["b", "a"], '0');
        let index = |loaded: &Loaded| loaded.config.routes.last().map(|route| format!("{:?}", route.to));
        assert_ne!(index(&before), index(&moved), "the test does what it says");
        let changes = diff(&before, &moved);
        assert!(changes.hubs && !changes.routes, "the keys are another's");
        let lines = diff(&load("", &[]), &load("", &["--hub"])).lines();
        assert_eq!(lines, ["server.hub: unset -> true", "hubs: changed", "routes: changed"]);
    }

    #[test]
    fn the_upstreams_of_a_route_are_an_app_that_comes_and_goes() {
        let to = |upstream: &str| load(&format!("[[routes]]\nupstreams = \"{upstream}\""), &[]);
        let changes = diff(&to("http://127.0.0.1:1"), &to("http://127.0.0.1:2"));
        let fates: Vec<_> = changes.apps.iter().map(|(name, fate)| (name.as_str(), fate)).collect();
        assert_eq!(fates, [("http://127.0.0.1:1", &Fate::Removed), ("http://127.0.0.1:2", &Fate::Added)]);
        let asked = |interval: &str| {
            load(
                &format!(
                    "[[routes]]\nupstreams = [\"http://127.0.0.1:1\", \"http://127.0.0.1:2\"]\neject.after = 5\n\
                     health = {{ path = \"/up\", interval = \"{interval}\", status = \"204\" }}"
                ),
                &[],
            )
        };
        let (before, after) = (asked("1s"), asked("2s"));
        let app = &before.config.apps[0];
        assert_eq!((app.name.as_str(), app.eject.failures), ("http://127.0.0.1:1 http://127.0.0.1:2", 5));
        assert_eq!((app.health.interval.as_secs(), app.health.status.clone()), (1, 204..=204));
        assert_eq!(
            diff(&before, &after).lines(),
            [
                "routes to http://127.0.0.1:1 http://127.0.0.1:2: health: { path = \"/up\", interval = \"1s\", status = \"204\" } -> \
                 { path = \"/up\", interval = \"2s\", status = \"204\" }"
            ]
        );
        assert!(diff(&after, &after).is_empty());
    }
}
