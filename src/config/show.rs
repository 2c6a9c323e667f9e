//! `production_server config show`: what was said, or all that holds, as a configuration file that says the same, and where each value
//! comes from.
//!
//! Values of the file are shown as they stand there: what `${VARIABLE}` and files for secrets stand for is not printed.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::{Map, Value, json};
use toml::de::DeValue;

use super::arguments::{Given, Source};
use super::clashes::{OF_WORKERS, is_on};
use super::file::{File, Named, RouteSaid, inline};
use super::load::{AppGiven, Loaded, Program};
use super::places::{self, PLACES, Place, Shape};
use super::report::{line_and_column, shown_path};
use super::route::{Route, Target};
use super::tables::TABLES;

/// What is to be shown, and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Show {
    /// Defaults, too.
    pub effective: bool,
    /// Where each value comes from.
    pub origin: bool,
    /// As JSON.
    pub json: bool,
}

/// Keys that have one effect with others, and those: the one that is read last holds, where it says anything.
const RIVALS: [(&str, &[&str]); 5] = [
    ("access-log", &["no-access-log"]),
    ("no-access-log", &["access-log"]),
    ("json-logging", &["log-format", "access-log-format"]),
    ("access-log-format", &["log-format", "json-logging"]),
    ("event-log-format", &["log-format"]),
];

/// Whose values are shown: an app's, or those that are no app's.
struct Scope<'a> {
    app: Option<&'a str>,
    given: &'a [Given],
    program: Option<&'a Program>,
}

/// One line: a key in a table, its value in TOML, and its origin.
struct Line {
    table: String,
    name: Cow<'static, str>,
    value: String,
    origin: String,
}

impl Loaded {
    /// The configuration as text, with an end of line.
    pub fn show(&self, show: Show) -> String {
        let mut lines = Vec::new();
        let server = Scope { app: None, given: &self.given, program: None };
        for (table, _) in TABLES.iter().filter(|(table, _)| !table.starts_with("apps")) {
            match *table {
                "listen[]" => {
                    lines.extend(self.listeners(show));
                    self.apps.iter().for_each(|app| lines.extend(self.lines_of_app(app, show)));
                }
                "limits" => lines.extend(self.all_named(|file| &file.limits)),
                "hub" => lines.extend(self.all_named(|file| &file.hubs)),
                "routes[]" => lines.extend(self.routes()),
                table if table.starts_with("routes[]") || table.contains(".*") => {}
                table => lines.extend(self.lines_of(table, &server, show)),
            }
        }
        if show.json { as_json(&lines) } else { as_toml(&lines, show.origin) }
    }

    fn lines_of_app(&self, app: &AppGiven, show: Show) -> Vec<Line> {
        let scope = Scope { app: Some(&app.name), given: &app.given, program: app.program.as_ref() };
        let tables = TABLES.iter().filter(|(table, _)| table.starts_with("apps.*"));
        let mut lines: Vec<Line> = tables.flat_map(|(table, _)| self.lines_of(table, &scope, show)).collect();
        if lines.is_empty() && self.apps.len() > 1 {
            // It is there, though nothing is said of it.
            let table = format!("apps.{}", app.name);
            lines.push(Line { table, name: "".into(), value: String::new(), origin: String::new() });
        }
        lines
    }

    /// The routes as the file has them, for nothing else says any but those of hubs, which are shown themselves.
    fn routes(&self) -> Vec<Line> {
        let routes = self.file.iter().flat_map(|file| file.routes.iter().enumerate().map(move |route| (file, route)));
        routes.flat_map(|(file, (index, route))| as_said(file, &format!("routes[{index}]"), route)).collect()
    }

    /// The tables of one kind as the file has them; what a flag says is with the keys.
    fn all_named<T>(&self, of: fn(&File) -> &[Named<T>]) -> Vec<Line> {
        let all = self.file.iter().flat_map(|file| of(file).iter().map(move |one| (file, one)));
        all.flat_map(|(file, one)| as_said(file, &one.table, &one.said)).collect()
    }

    fn lines_of(&self, table: &str, scope: &Scope<'_>, show: Show) -> Vec<Line> {
        let here = |place: &&Place| place.path.rsplit_once('.').is_some_and(|(parent, _)| parent == table);
        let table = table.replace('*', scope.app.unwrap_or_default());
        let line = |place: &'static Place| {
            let (value, origin) = match self.said(place, scope) {
                Some(said) => said,
                None if show.effective => (self.default_of(place, scope)?, "default".to_owned()),
                None => return None,
            };
            Some(Line { table: table.clone(), name: place.last().into(), value, origin })
        };
        PLACES.iter().filter(here).filter_map(line).collect()
    }

    /// The value that was said for a place, and where.
    fn said(&self, place: &'static Place, scope: &Scope<'_>) -> Option<(String, String)> {
        if place.path == places::COMMAND {
            let program = scope.program?;
            let value = self.raw(&program.source).unwrap_or_else(|| words_of(program));
            return Some((value, origin(&program.source)));
        }
        let find = |name: &str| scope.given.iter().find(|given| given.key.name == name);
        if let Some(json) = find("json-logging").filter(|json| is_on(json) && !is_beaten(json, scope.given))
            && find("log-format").is_some()
        {
            // Beside it the format of all logs holds for events alone, and a file that says both says two things of access lines.
            match place.path {
                "log.access_json" => return None,
                "log.access.format" => return Some((places::quoted("json"), origin(&json.source))),
                _ => {}
            }
        }
        let given = find(place.name).filter(|given| !is_beaten(given, scope.given))?;
        let value = match &given.source {
            Source::File(spot) => {
                let path = scope.app.and_then(|app| spot.path.strip_prefix(&format!("apps.{app}")));
                let path = path.map_or_else(|| spot.path.clone(), |rest| format!("apps.*{rest}"));
                let here = places::by_path(&path).is_some_and(|found| found.path == place.path);
                self.raw(&given.source).filter(|_| here)?
            }
            _ if places::main_of(place.name).is_some_and(|main| main.path == place.path) => written(place, given)?,
            _ => return None,
        };
        Some((value, origin(&given.source)))
    }

    /// A value as it was written, in the file or elsewhere.
    pub(super) fn written(&self, place: &Place, given: &Given) -> String {
        self.raw(&given.source).or_else(|| written(place, given)).unwrap_or_default()
    }

    /// A command as it was written, in one line.
    pub(super) fn written_command(&self, program: &Program) -> String {
        let Some(raw) = self.raw(&program.source) else { return words_of(program) };
        DeValue::parse(&raw).map_or_else(|_| raw.clone(), |words| inline(words.get_ref()))
    }

    /// What the route that makes the app of that name says in a table, as it is written.
    pub(super) fn written_of_route(&self, app: &str, table: &str) -> Option<String> {
        let file = self.file.as_ref()?;
        // Those of hubs stand before those of the file.
        let own = self.config.routes.len().checked_sub(file.routes.len())?;
        let is_to = |route: &Route| match route.to {
            Target::App(index) => self.config.apps.get(index).is_some_and(|one| one.name == app),
            _ => false,
        };
        let mut routes = self.config.routes[own..].iter().zip(&file.routes);
        let (_, said) = routes.find(|(route, said)| is_to(route) && said.draft.app.is_none())?;
        said.shown.iter().find(|(name, _)| name == table).map(|(_, value)| value.clone())
    }

    /// A value as it stands in the file.
    fn raw(&self, source: &Source) -> Option<String> {
        let Source::File(spot) = source else { return None };
        spot.written.clone().or_else(|| self.slice(&spot.span))
    }

    fn slice(&self, span: &Range<usize>) -> Option<String> {
        self.file.as_ref()?.text.text.get(span.clone()).map(str::to_owned)
    }

    fn default_of(&self, place: &'static Place, scope: &Scope<'_>) -> Option<String> {
        let key = place.key()?;
        let said = |name: &str| scope.given.iter().any(|given| given.key.name == name);
        let main = places::main_of(place.name).is_some_and(|main| main.path == place.path);
        if said(place.name) || !main || place.shape == Shape::False {
            return None;
        }
        if place.name == "run-dir" {
            return Some(places::quoted(&self.config.server.process.run_dir.to_string_lossy()));
        }
        // What the app's workers are is not to be said of an app that has none, nor where the log goes of one that goes nowhere.
        let no_workers = OF_WORKERS.contains(&place.name) && (said("upstream") || said("respond") || said("static"));
        let is_off =
            |given: &Given| given.key.name == "no-access-log" && is_on(given) && !is_beaten(given, scope.given);
        let no_log = place.name == "access-log" && scope.given.iter().any(is_off);
        let applies = !key.default.is_empty() && !no_workers && !no_log;
        applies.then(|| place.write(key.default))
    }

    fn listeners(&self, show: Show) -> Vec<Line> {
        let from_file = self.given.iter().any(|given| given.key.name == "listen" && given.source.rank() == 0);
        let file = self.file.as_ref().filter(|_| from_file);
        let given = self.given.iter().find(|given| given.key.name == "listen");
        if given.is_none() && !show.effective {
            return Vec::new();
        }
        let listen = self.config.listeners.iter().enumerate();
        listen.flat_map(|(index, one)| self.listener(index, &one.address.to_string(), file, given)).collect()
    }

    fn listener(&self, index: usize, address: &str, file: Option<&File>, given: Option<&Given>) -> Vec<Line> {
        let listen = file.and_then(|file| file.listen.get(index));
        let at = |file: &File, span: &Range<usize>| {
            let (line, column) = line_and_column(&file.text.text, span.start);
            format!("{}:{line}:{column}", shown_path(&file.text))
        };
        let raw = listen.and_then(|listen| self.slice(&listen.at));
        let origin_of = given.map_or_else(|| "default".to_owned(), |given| origin(&given.source));
        let origin_of = listen.zip(file).map_or(origin_of, |(listen, file)| at(file, &listen.at));
        let line = |name: &'static str, value, origin| Line {
            table: format!("listen[{index}]"),
            name: name.into(),
            value,
            origin,
        };
        let mut lines = vec![line("address", raw.unwrap_or_else(|| places::quoted(address)), origin_of)];
        for place in PLACES.iter().filter(|place| places::OF_FRONT.contains(&place.name)) {
            let Some(inside) = place.path.strip_prefix("listen[].") else { continue };
            let own = listen.and_then(|listen| listen.own.iter().find(|(key, _, _)| key.name == place.name));
            let above = self.given.iter().any(|given| given.key.name == place.name && given.source.rank() > 0);
            if let Some(((_, _, span), file)) = own.zip(file).filter(|_| !above) {
                lines.extend(self.slice(span).map(|value| line(inside, value, at(file, span))));
            }
        }
        if !address.starts_with("unix:") {
            return lines;
        }
        for name in places::OF_SOCKET {
            let Some(place) = places::main_of(name) else { continue };
            let own = listen.and_then(|listen| listen.own.iter().find(|(key, _, _)| key.name == name));
            let given = self.given.iter().find(|given| given.key.name == name);
            match (given, own.zip(file)) {
                (Some(given), _) => {
                    let value = given.values.last().map(|value| place.write(&value.to_string_lossy()));
                    lines.extend(value.map(|value| line(place.last(), value, origin(&given.source))));
                }
                (None, Some(((_, _, span), file))) => {
                    lines.extend(self.slice(span).map(|value| line(place.last(), value, at(file, span))));
                }
                (None, None) => {}
            }
        }
        lines
    }
}

/// What is said in a table, as the file has it; of one that says nothing, that it is there.
fn as_said(file: &File, table: &str, said: &RouteSaid) -> Vec<Line> {
    let (line, column) = line_and_column(&file.text.text, said.at.start);
    let origin = format!("{}:{line}:{column}", shown_path(&file.text));
    let line = |name: &str, value: &str| Line {
        table: table.to_owned(),
        name: name.to_owned().into(),
        value: value.to_owned(),
        origin: origin.clone(),
    };
    if said.shown.is_empty() {
        return vec![line("", "")];
    }
    said.shown.iter().map(|(name, value)| line(name, value)).collect()
}

/// Whether another key that has the same effect is read after that one.
fn is_beaten(one: &Given, all: &[Given]) -> bool {
    let later = all.iter().skip_while(|given| given.key.name != one.key.name).skip(1);
    let rivals = RIVALS.iter().find(|(name, _)| *name == one.key.name).map_or(&[][..], |(_, rivals)| rivals);
    later.into_iter().any(|given| rivals.contains(&given.key.name) && (!given.key.is_switch() || is_on(given)))
}

/// A value from elsewhere than the file, in TOML.
fn written(place: &Place, given: &Given) -> Option<String> {
    let texts: Vec<String> = given.values.iter().map(|value| value.to_string_lossy().into_owned()).collect();
    match place.shape {
        Shape::Map => {
            let entry = |text: &String| {
                let (name, value) = text.split_once('=').unwrap_or((text, ""));
                format!("{} = {}", places::map_key(name), places::quoted(value))
            };
            Some(format!("{{ {} }}", texts.iter().map(entry).collect::<Vec<_>>().join(", ")))
        }
        Shape::List => Some(array(texts.iter().map(|text| places::quoted(text)))),
        // What is not switched off is not said.
        Shape::False if texts.iter().all(|text| super::units::switch(text) != Ok(true)) => None,
        Shape::Switch => Some(texts.last().is_some_and(|text| super::units::switch(text) == Ok(true)).to_string()),
        _ => texts.last().map(|text| place.write(text)),
    }
}

fn words_of(program: &Program) -> String {
    array(program.words.iter().map(|word| places::quoted(&word.to_string_lossy())))
}

fn array(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}

fn origin(source: &Source) -> String {
    match source {
        Source::File(spot) => format!("{}:{}:{}", spot.file, spot.line, spot.column),
        Source::Environment(name) => format!("environment: {}", name.escape_debug()),
        Source::Shorthand(text) => format!("shorthand: {}", text.escape_debug()),
        Source::Flag => "flag".to_owned(),
    }
}

fn as_toml(lines: &[Line], origins: bool) -> String {
    let mut out = String::new();
    let mut table = "";
    for line in lines {
        if line.table != table {
            table = &line.table;
            let separator = if out.is_empty() { "" } else { "\n" };
            let list = table.strip_suffix(']').and_then(|table| table.split_once('['));
            let header = list.map_or_else(|| format!("[{table}]"), |(list, _)| format!("[[{list}]]"));
            out.push_str(&format!("{separator}{header}\n"));
        }
        if line.name.is_empty() {
            continue;
        }
        let entry = format!("{} = {}", line.name, line.value);
        // Behind a value of several lines a comment stands as well.
        out.push_str(&if origins { format!("{entry:<40} # {}\n", line.origin) } else { format!("{entry}\n") });
    }
    out
}

fn as_json(lines: &[Line]) -> String {
    let entry = |line: &Line| {
        let value = DeValue::parse(&line.value).map_or(Value::Null, |value| to_json(value.get_ref()));
        json!({ "key": format!("{}.{}", line.table, line.name), "value": value, "origin": line.origin })
    };
    let entries: Vec<Value> = lines.iter().filter(|line| !line.name.is_empty()).map(entry).collect();
    format!("{:#}\n", Value::Array(entries))
}

pub(super) fn to_json(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => {
            i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Null, Value::from)
        }
        DeValue::Float(number) => number.as_str().parse::<f64>().map_or(Value::Null, Value::from),
        DeValue::Boolean(on) => Value::Bool(*on),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => items.iter().map(|item| to_json(item.get_ref())).collect(),
        DeValue::Table(table) => {
            let entries = table.iter().map(|(key, value)| (key.get_ref().to_string(), to_json(value.get_ref())));
            Value::Object(entries.collect::<Map<String, Value>>())
        }
    }
}
