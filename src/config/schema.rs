//! What the configuration file may hold, made of the tables in `keys` and `places`: a JSON Schema for editors, and docs/configuration.md.
//!
//! What a value may be is asked of its setter: the words with which it refuses nothing name the range or the choices.

use serde_json::{Map, Value, json};

use super::file::expectation;
use super::places::{self, PLACES, Place, Shape};
use super::tables::{SHORT, TABLES};
use super::units::SIZE_UNITS;

/// The schema (draft 2020-12), with an end of line.
pub fn schema() -> String {
    let mut properties = Map::new();
    for name in places::names_in("") {
        properties.insert(name.to_owned(), top(name));
    }
    let file = json!({
        "type": "object",
        "description": "The value is what that file says.",
        "properties": { "file": { "type": "string" } },
        "required": ["file"],
        "additionalProperties": false,
    });
    let whole = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration file of production_server",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
        "$defs": { "file": file },
    });
    format!("{whole:#}\n")
}

fn top(name: &str) -> Value {
    let described = |table: &str| TABLES.iter().find(|(path, _)| *path == table).map_or("", |(_, help)| help);
    match name {
        name if name == "apps" || places::NAMED.contains(&name) => json!({
            "type": "object",
            "description": described(name),
            "propertyNames": { "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$" },
            "additionalProperties": table(&format!("{name}.*")),
        }),
        "listen" => {
            let mut item = table("listen[]");
            item["required"] = json!(["address"]);
            json!({ "type": "array", "description": described("listen[]"), "minItems": 1, "items": item })
        }
        "routes" => {
            let mut item = table("routes[]");
            item["oneOf"] = ["app", "upstreams", "respond", "redirect", "static", "hub"]
                .map(|name| json!({ "required": [name] }))
                .into();
            json!({ "type": "array", "description": described("routes[]"), "items": item })
        }
        name => table(name),
    }
}

fn table(path: &str) -> Value {
    let mut properties = Map::new();
    for name in places::names_in(path) {
        let inner = format!("{path}.{name}");
        let value = match places::by_path(&inner) {
            Some(place) if places::is_table(&inner) => json!({ "anyOf": [value(place), table(&inner)] }),
            Some(place) => value(place),
            None => table(&inner),
        };
        properties.insert(name.to_owned(), value);
    }
    let help = TABLES.iter().find(|(known, _)| *known == path).map_or("", |(_, help)| help);
    json!({ "type": "object", "description": help, "properties": properties, "additionalProperties": false })
}

fn value(place: &Place) -> Value {
    let text = json!({ "type": "string" });
    let mut kinds = match place.shape {
        Shape::Text => vec![text],
        Shape::Word => words(place),
        Shape::Switch => vec![json!({ "type": "boolean" }), json!({ "enum": ["on", "off"] })],
        Shape::Count => vec![number(place), text],
        Shape::Duration => vec![json!({ "type": "string", "pattern": DURATION }), json!({ "const": 0 })],
        Shape::Size => {
            vec![json!({ "type": "string", "pattern": size_pattern() }), json!({ "type": "integer", "minimum": 0 })]
        }
        Shape::List if place.pair.is_some() => {
            let pair = json!({ "type": "object" });
            vec![text.clone(), json!({ "type": "array", "items": { "anyOf": [text, pair] }, "minItems": 1 })]
        }
        Shape::List => vec![text, json!({ "type": "array", "items": { "type": "string" }, "minItems": 1 })],
        Shape::Map => vec![
            json!({ "type": "object", "additionalProperties": { "type": ["string", "integer", "boolean", "object"] } }),
        ],
        Shape::TextOrFalse | Shape::False => vec![text, json!({ "const": false })],
    };
    if place.path == places::COMMAND {
        kinds.remove(0);
    } else if place.shape != Shape::Map {
        kinds.push(json!({ "$ref": "#/$defs/file" }));
    }
    if let Some(pair) = place.pair {
        let properties: Map<String, Value> =
            pair.names.iter().map(|name| ((*name).to_owned(), json!({ "type": ["integer", "string"] }))).collect();
        let required = pair.names;
        kinds.push(json!({
            "type": "object", "properties": properties, "required": required, "additionalProperties": false,
        }));
    }
    let key = place.key();
    let mut schema = json!({ "anyOf": kinds, "description": help(place), "x-reload": place.reload.word() });
    if let Some(key) = key.filter(|key| !key.default.is_empty()) {
        let default = place.write(key.default);
        let default = toml::de::DeValue::parse(&default).ok();
        schema["default"] = default.map_or(Value::Null, |value| super::show::to_json(value.get_ref()));
    }
    schema
}

/// With a variable in it any string may be right, so that patterns have a way for them.
const DURATION: &str = r"^([0-9.]+ *(ms|s|m|min|h)|0|.*\$\{.*|file:.*)$";

/// What a size may be.
fn size_pattern() -> String {
    let any_case =
        |unit: &str| unit.chars().map(|letter| format!("[{letter}{}]", letter.to_ascii_uppercase())).collect();
    let units: Vec<String> = SIZE_UNITS.iter().map(|(unit, _)| any_case(unit)).collect();
    format!(r"^([0-9.]+ *({})?|.*\$\{{.*|file:.*)$", units.join("|"))
}

/// The range of a whole number.
fn number(place: &Place) -> Value {
    let expected = expectation(place);
    let bounds = expected.strip_prefix("expected a whole number from ").and_then(|rest| rest.split_once(" to "));
    let digits = |text: &str| {
        text.split(|letter: char| !letter.is_ascii_digit()).next().and_then(|text| text.parse::<u64>().ok())
    };
    match bounds.map(|(from, to)| (digits(from), digits(to))) {
        Some((Some(from), Some(to))) => json!({ "type": "integer", "minimum": from, "maximum": to }),
        _ => json!({ "type": "integer" }),
    }
}

/// The choices of a word; those that are no plain list may be any string.
fn words(place: &Place) -> Vec<Value> {
    let expected = expectation(place);
    let list = expected.strip_prefix("expected ").unwrap_or_default().replace(" or ", ", ");
    let choices: Vec<&str> = list.split(", ").collect();
    let plain = |word: &&str| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-' || byte == b'_');
    let boolean = json!({ "type": "boolean" });
    match choices.iter().all(plain) && place.name != "backend" {
        true if choices.contains(&"on") => vec![json!({ "enum": choices }), boolean],
        true => vec![json!({ "enum": choices })],
        false if choices.contains(&"on") => vec![json!({ "type": "string" }), boolean],
        false => vec![json!({ "type": ["string", "integer"] })],
    }
}

const COMMAND_HELP: &str =
    "What the workers run, an array of words; {socket} stands for the worker's socket. Without it: the built-in worker";

/// What a place is for, in one line.
fn help(place: &Place) -> &'static str {
    let route = place.route.map(|route| route.help);
    place.key().map(|key| key.help).or(route).unwrap_or(COMMAND_HELP)
}

/// docs/configuration.md.
pub fn manual() -> String {
    let mut out = String::from(INTRODUCTION);
    for (path, help) in TABLES.iter().filter(|(path, _)| *path != "apps" && !places::NAMED.contains(path)) {
        let header = match path.strip_suffix("[]") {
            Some(list) => format!("[[{list}]]"),
            None => format!("[{}]", path.replace('*', "NAME").replace("[]", "")),
        };
        out.push_str(&format!(
            "\n## `{header}`\n\n{help}\n\n| key | default | takes | flag | reload | |\n|---|---|---|---|---|---|\n"
        ));
        let inside = |place: &&Place| place.path.rsplit_once('.').is_some_and(|(table, _)| table == *path);
        for place in PLACES.iter().filter(inside).filter(|place| place.shape != Shape::False) {
            out.push_str(&row(place));
        }
    }
    out.push_str(&end());
    out
}

fn row(place: &Place) -> String {
    let cell = |text: &str| text.replace('|', "\\|");
    let Some(key) = place.key().filter(|_| !place.is_of_route()) else {
        let (takes, flag) = match place.is_of_route() {
            false => ("an array of words".to_owned(), "behind `--`"),
            true => (takes(place), "–"),
        };
        let (takes, reload, help) = (cell(&takes), place.reload.word(), help(place));
        let (help, default) = help.split_once(" [default: ").unwrap_or((help, ""));
        let own = place.key().filter(|key| !key.default.is_empty()).map(|key| place.write(key.default));
        let default = own.unwrap_or_else(|| default.trim_end_matches(']').to_owned());
        let default = if default.is_empty() { "–".to_owned() } else { format!("`{default}`") };
        return format!("| `{}` | {default} | {takes} | {flag} | {reload} | {} |\n", place.last(), cell(help));
    };
    let main = places::main_of(place.name).is_some_and(|main| main.path == place.path);
    let default =
        if key.default.is_empty() || !main { "–".to_owned() } else { format!("`{}`", place.write(key.default)) };
    let names: Vec<String> = std::iter::once(key.variable())
        .chain(key.variables.iter().map(|name| (*name).to_owned()))
        .map(|name| format!("`{name}`"))
        .collect();
    let short = key.short.map_or_else(String::new, |short| format!("`-{short}`, "));
    let flag = match place.path.starts_with("apps.") && !key.is_of_app() {
        true => "–".to_owned(),
        false => format!("{short}`--{}`, {}", key.name, names.join(", ")),
    };
    let help = key.help.split(" [default:").next().unwrap_or(key.help);
    format!(
        "| `{}` | {} | {} | {flag} | {} | {} |\n",
        place.last(),
        cell(&default),
        cell(&takes(place)),
        place.reload.word(),
        cell(help)
    )
}

/// What a value may be.
fn takes(place: &Place) -> String {
    let expected = || expectation(place).trim_start_matches("expected ").to_owned();
    match (place.shape, place.pair) {
        // What is compiled in differs.
        _ if place.name == "backend" => "auto, epoll, kqueue or io_uring".to_owned(),
        (Shape::Map, _) => format!("a table of names and strings, as in `{}`", place.example()),
        (Shape::List, Some(pair)) => format!("one or an array of `{}`", pair.example),
        (Shape::List, None) => format!("one or an array of {}", expected()),
        (Shape::Switch, _) => "true or false".to_owned(),
        (_, Some(pair)) => format!("{}, or `{}`", expected(), pair.example),
        _ => expected(),
    }
}

fn end() -> String {
    let shorts: Vec<String> =
        SHORT.iter().map(|(table, leaf)| format!("`{}` for `{}`", short_name(table), short_name(leaf))).collect();
    format!("\nA value alone may stand for a table: {}.\n", shorts.join(", "))
}

fn short_name(path: &str) -> String {
    path.replace("apps.*.", "").replace("[]", "")
}

const INTRODUCTION: &str = "# The configuration file

This page is made of the same tables that read the file; a test fails when it is stale.

The file is TOML. It is `-f FILE`, else `$PRODUCTION_SERVER_CONFIG`, else the first that is there of `./production_server.toml`,
`$XDG_CONFIG_HOME/production_server/production_server.toml` (`~/.config/…`) and `/etc/production_server/production_server.toml`; `-f none` reads none. A
file in a directory that everybody may write to is taken up only when it is the user's own or root's.

Every key may be left out. For each of them a flag wins over a shorthand, that over the environment, that over the file, that over the default; of a list the
higher place replaces the whole. A command behind `--`, `--upstream`, `--respond` or `--static` takes the place of whatever the file says the app is.

- Durations are strings with a unit (`\"200ms\"`, `\"5s\"`, `\"1m\"`, `\"2h\"`), sizes too (`\"64KiB\"`, `\"10MB\"`).
- `${NAME}` in a string is the value of that variable, `${NAME:-text}` has a default, `$${` stands for the characters. A variable that is empty counts as one that is not set.
- `{ file = \"PATH\" }` in the place of a value, or `\"file:PATH\"`, is what that file says without the end of its last line: for secrets. The words of a command are taken as they are, but for their variables.
- Relative paths start in the directory where the server is started, as those of flags do.

`production_server check` looks at everything, as the user that the server becomes, and starts nothing (exit code 0 or 78), `config show --effective --origin` tells what holds and why, `config schema`
prints a JSON Schema for editors, and `init` writes a first file.

`production_server reload` and SIGHUP read the file anew: whole or not at all. The column `reload` says what a changed key does then: `live` holds from the next
request or decision on; `listener` opens and closes listeners, and leaves connections alone; `roll` replaces the app's workers by a rolling restart;
`restart` needs another process: it is named and left as it was, and `production_server upgrade` brings it in without losing a request. What such a value would
fail by there (a user that there is not, an address in use) is said at once. A reload that adds more workers than the process has room for is refused: a loop has
room for 65,536 more connections to the workers of apps that come later, and each app may take `concurrency` + 2 of them, `max_connections` + 2 at most, for each of
its upstreams, or for each of four times its `workers` (64 at least, or the `max` of their scaling).
Several apps are several tables `[apps.NAME]`, each with its own workers, queue and limits, and `[[routes]]` that say what goes to which.
";
