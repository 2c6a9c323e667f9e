//! The configuration file: from its text to the values of keys, and to every problem that it has, all at once.
//!
//! `find` reads it, `values` puts in what lies elsewhere, `places` says what may stand where, and the keys' own setters read the
//! values. Nothing here stops at the first problem, and no value is passed over because a flag overrides it.

mod auth;
mod find;
mod named;
mod routes;
mod values;

pub use find::{NAME, Text, VARIABLE, find};
pub(super) use named::Named;
pub(super) use routes::{RouteSaid, inline};

use std::ops::Range;
use std::time::Duration;

use serde_spanned::Spanned;
use toml::de::{DeTable, DeValue};

use super::arguments::{Given, Source, Spot};
use super::clashes::cannot_both_listen;
use super::environment::Environment;
use super::hub::Hub;
use super::keys::{self, Key};
use super::places::{self, Place, Shape};
use super::report::{Problem, line_and_column, shown_path};
use super::route::Draft;
use super::tables;
use super::units::show_duration;
use super::{Settings, units};
use crate::limits::Policy;

/// The longest name of an app, in bytes: it stands in the paths of sockets.
const LONGEST_NAME: usize = 32;

/// What a file says.
#[derive(Debug, Default)]
pub struct File {
    /// Its text.
    pub text: Text,
    /// Its apps.
    pub(super) apps: Vec<AppSaid>,
    /// The values of keys that are no app's; those of `[[listen]]` are in `listen` besides.
    pub(super) given: Vec<Given>,
    /// The addresses to listen on, and what belongs to each alone.
    pub(super) listen: Vec<Listen>,
    /// The limits.
    pub(super) limits: Vec<Named<Policy>>,
    /// The hubs.
    pub(super) hubs: Vec<Named<Hub>>,
    /// The routes, in their order.
    pub(super) routes: Vec<RouteSaid>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

/// One `[apps.NAME]`.
#[derive(Clone, Debug)]
pub(super) struct AppSaid {
    pub(super) name: String,
    /// Where the name stands.
    pub(super) at: Range<usize>,
    /// What its workers run, and where that stands.
    pub(super) command: Option<(Vec<String>, Spot)>,
    /// The values of its keys.
    pub(super) given: Vec<Given>,
}

/// One `[[listen]]`.
#[derive(Debug)]
pub(super) struct Listen {
    pub(super) address: String,
    /// Where the address stands.
    pub(super) at: Range<usize>,
    /// Whatever else is said of it, each with its value, of a list one after the other, and where the whole stands.
    pub(super) own: Vec<Own>,
}

/// A key of one listener, its value for the setter, and where that stands.
type Own = (&'static Key, String, Range<usize>);

impl File {
    /// Reads the text. What is wrong is in `problems`; what could be read all the same is in the rest.
    pub fn parse(text: Text, environment: &Environment) -> File {
        let source = text.text.clone();
        let (table, errors) = DeTable::parse_recoverable(&source);
        let mut reader = Reader { file: File { text, ..File::default() }, environment, app: None, route: None };
        for error in errors {
            let at = error.span().unwrap_or(0..0);
            let message = error.message().replace('\n', " ");
            reader.file.problems.push(Problem::error("this is not TOML", at, message));
        }
        let broken: Vec<usize> =
            reader.file.problems.iter().map(|problem| line(&source, &problem.marks[0].0)).collect();
        reader.root(table.get_ref());
        reader.look_at_routes();
        reader.look_at_names();
        let mut file = reader.file;
        // Of a line that could not be read in whole, what was read of it says nothing.
        let mut seen = 0;
        file.problems.retain(|problem| {
            seen += 1;
            let at = &problem.marks[0].0;
            seen <= broken.len() || !(at.is_empty() && at.start == 0 || broken.contains(&line(&source, at)))
        });
        file
    }
}

/// Whether something may be called so.
fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let plain = name.bytes().all(letter) && name.starts_with(|first: char| first.is_ascii_alphanumeric());
    plain && name.len() <= LONGEST_NAME
}

fn line(text: &str, range: &Range<usize>) -> usize {
    line_and_column(text, range.start).0
}

/// A value's text for the setter, and where it stands.
type Said = (String, Range<usize>);

struct Reader<'a> {
    file: File,
    environment: &'a Environment,
    /// Inside of that app.
    app: Option<usize>,
    /// Inside of that route.
    route: Option<RouteSaid>,
}

type Entry<'a, 'i> = (&'a Spanned<std::borrow::Cow<'i, str>>, &'a Spanned<DeValue<'i>>);

/// The entries of a table in the order of the file.
fn entries<'a, 'i>(table: &'a DeTable<'i>) -> Vec<Entry<'a, 'i>> {
    let mut entries: Vec<Entry<'a, 'i>> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

impl Reader<'_> {
    fn root(&mut self, table: &DeTable<'_>) {
        for (key, value) in entries(table) {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("apps", DeValue::Table(apps)) => self.apps(apps),
                ("limits", DeValue::Table(limits)) => self.limits(limits),
                ("hub", DeValue::Table(hubs)) => self.hubs(hubs),
                ("listen", DeValue::Array(listeners)) => self.listeners(key.span(), listeners),
                ("routes", DeValue::Array(routes)) => self.routes(routes),
                ("routes", _) => {
                    let label = "expected a list: write `[[routes]]` above `app = \"web\"`";
                    self.wrong(Problem::error("`routes` is not a list of tables", key.span(), label));
                }
                ("listen", _) => {
                    let label = "expected a list: write `[[listen]]` above `address = \"0.0.0.0:8080\"`";
                    self.wrong(Problem::error("`listen` is not a list of tables", key.span(), label));
                }
                _ => self.entry("", "", (key, value)),
            }
        }
    }

    fn wrong(&mut self, problem: Problem) {
        self.file.problems.push(problem);
    }

    fn apps(&mut self, apps: &DeTable<'_>) {
        const KIND: named::Kind = named::Kind { table: "apps", one: "an app", example: "web" };
        for (key, value) in entries(apps) {
            let Some((name, app)) = self.named(&KIND, (key, value)) else { continue };
            let shown = format!("apps.{name}");
            self.file.apps.push(AppSaid { name, at: key.span(), command: None, given: Vec::new() });
            self.app = Some(self.file.apps.len() - 1);
            self.table("apps.*", &shown, app);
            self.app = None;
        }
    }

    fn listeners(&mut self, at: Range<usize>, listeners: &[Spanned<DeValue<'_>>]) {
        if listeners.is_empty() {
            let label = "expected at least one address";
            self.wrong(Problem::error("there is nothing to listen on", at.clone(), label));
        }
        for listener in listeners {
            let DeValue::Table(table) = listener.get_ref() else {
                let label = "expected a table, as in `[[listen]]` above `address = \"0.0.0.0:8080\"`";
                self.wrong(Problem::error("`listen` is not a list of tables", listener.span(), label));
                continue;
            };
            self.listener(listener.span(), table);
        }
    }

    fn listener(&mut self, at: Range<usize>, table: &DeTable<'_>) {
        let before = self.file.problems.len();
        let mut own = Vec::new();
        self.of_listener("listen[]", "listen", table, &mut own);
        let address = table.iter().find(|(key, _)| key.get_ref() == "address");
        let said = own.iter().position(|(key, _, _)| key.name == "listen").map(|at| own.remove(at).1);
        let Some(((key, value), address)) = address.zip(said) else {
            if before == self.file.problems.len() && !table.contains_key("address") {
                let label = "expected `address = \"IP:PORT\"` or `address = \"unix:PATH\"` in it";
                self.wrong(Problem::error("a listener without an address", at, label));
            }
            return;
        };
        let spot = self.spot("listen.address".to_owned(), value.span());
        if !address.starts_with("unix:") {
            for (_, _, at) in own.iter().filter(|(key, _, _)| places::OF_SOCKET.contains(&key.name)) {
                let problem = Problem::error("only a Unix socket has a mode, an owner and a group", at.clone(), "");
                self.wrong(problem.and(key.span(), "this is a TCP address"));
            }
        }
        let read = |text: &str| units::listen(text).ok();
        let clashes = |other: &&Listen| {
            let both = read(&address).zip(read(&other.address));
            both.is_some_and(|(one, other)| cannot_both_listen(&one, &other))
        };
        if let Some(other) = self.file.listen.iter().find(clashes) {
            let problem = if read(&address) == read(&other.address) {
                let problem = Problem::error("an address is given twice", spot.span, "expected different addresses");
                problem.and(other.at.clone(), "the first time")
            } else {
                let label = "one of both takes what the other is to have";
                Problem::error("two listeners clash", spot.span, label).and(other.at.clone(), "the other")
            };
            return self.wrong(problem);
        }
        let at = spot.span.clone();
        match self.file.given.iter_mut().find(|given| given.key.name == "listen") {
            Some(given) => given.values.push(address.as_str().into()),
            None => self.give("listen", spot, vec![address.clone()]),
        }
        self.file.listen.push(Listen { address, at, own });
    }

    /// What stands in `[[listen]]` or in a table of it.
    fn of_listener(&mut self, path: &str, shown: &str, table: &DeTable<'_>, own: &mut Vec<Own>) {
        for (key, value) in entries(table) {
            let name = key.get_ref().as_ref();
            let (path_of, shown_of) = (format!("{path}.{name}"), format!("{shown}.{name}"));
            let place = places::by_path(&path_of);
            match (value.get_ref(), place.and_then(|place| Some((place, place.key()?)))) {
                (DeValue::Table(inner), _) if places::is_table(&path_of) && !is_reference(inner) => {
                    self.of_listener(&path_of, &shown_of, inner, own);
                }
                (_, Some((place, key))) => {
                    let said = self.leaf(place, &shown_of, value).unwrap_or_default();
                    own.extend(said.into_iter().map(|(text, _)| (key, text, value.span())));
                }
                _ => self.unknown(path, shown, key),
            }
        }
    }

    /// Reads what stands in a table. `path` is as in `places`, `shown` as the file has it.
    fn table(&mut self, path: &str, shown: &str, table: &DeTable<'_>) {
        for entry in entries(table) {
            self.entry(path, shown, entry);
        }
    }

    fn entry(&mut self, path: &str, shown: &str, (key, value): Entry<'_, '_>) {
        let name = key.get_ref().as_ref();
        let join = |path: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let (path_of, shown_of) = (join(path), join(shown));
        let place = places::by_path(&path_of);
        match value.get_ref() {
            DeValue::Table(inner) if places::is_table(&path_of) && !is_reference(inner) => {
                self.table(&path_of, &shown_of, inner);
            }
            _ if place.is_some_and(|place| place.path == places::COMMAND) => self.command(&shown_of, value),
            _ if place.is_some() => {
                let Some(place) = place else { return };
                self.value(place, shown_of, value);
            }
            _ if places::is_table(&path_of) => {
                let label = format!("expected a table, as in `[{shown_of}]`");
                self.wrong(Problem::error(format!("`{shown_of}` is not a table"), key.span(), label));
            }
            _ => self.unknown(path, shown, key),
        }
    }

    /// One value of a key.
    fn value(&mut self, place: &'static Place, shown: String, value: &Spanned<DeValue<'_>>) {
        let Some(said) = self.leaf(place, &shown, value) else { return };
        if place.is_of_route() {
            return self.of_route(place, said, value.span());
        }
        let mut spot = self.spot(shown, value.span());
        spot.written = (place.shape == Shape::Map).then(|| routes::inline(value.get_ref()));
        let off = place.shape == Shape::TextOrFalse && matches!(value.get_ref(), DeValue::Boolean(_));
        let name = if off { "no-access-log" } else { place.name };
        let earlier = self.given().iter().find(|given| given.key.name == name);
        if let Some(Source::File(earlier)) = earlier.map(|given| &given.source) {
            let title = format!("`{}` and `{}` exclude each other", earlier.path, spot.path);
            let problem = Problem::error(title, spot.span, "expected one of them");
            let problem = problem.and(earlier.span.clone(), "and the other");
            self.wrong(problem);
            return;
        }
        let texts = if off { vec!["on".to_owned()] } else { said.into_iter().map(|(text, _)| text).collect() };
        self.give(name, spot, texts);
    }

    /// The values of where the reader is: an app's, or those of none.
    fn given(&mut self) -> &mut Vec<Given> {
        match self.app {
            Some(app) => &mut self.file.apps[app].given,
            None => &mut self.file.given,
        }
    }

    fn give(&mut self, name: &str, spot: Spot, texts: Vec<String>) {
        let values = texts.into_iter().map(Into::into).collect();
        self.given().push(Given { key: keys::by_name(name), source: Source::File(spot), values });
    }

    fn spot(&self, path: String, span: Range<usize>) -> Spot {
        let (line, column) = line_and_column(&self.file.text.text, span.start);
        Spot { file: shown_path(&self.file.text), path, line, column, span, written: None }
    }

    /// The texts of a value, each read by the setter once, or `None` and a problem.
    fn leaf(&mut self, place: &'static Place, shown: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<Said>> {
        let said = self.texts(place, shown, value)?;
        let mut fine = true;
        for (text, at) in &said {
            if let Err(expected) = try_value(place, text) {
                fine = false;
                let at = name_at_fault(place, text, value).unwrap_or_else(|| self.part(place, text, at.clone()));
                self.invalid(place, shown, at, &expected);
            }
        }
        fine.then_some(said)
    }

    /// The part of a value that is wrong, where its key can tell and the value stands in the file letter by letter.
    fn part(&self, place: &Place, text: &str, at: Range<usize>) -> Range<usize> {
        let part = place.key().and_then(|key| key.wrong_part?(text));
        let inside = part.map(|part| (at.start + 1 + part.start..at.start + 1 + part.end, part));
        let same = |(inside, part): &(Range<usize>, Range<usize>)| {
            self.file.text.text.get(inside.clone()).is_some_and(|found| Some(found) == text.get(part.clone()))
        };
        inside.filter(same).map_or(at, |(inside, _)| inside)
    }

    fn invalid(&mut self, place: &Place, shown: &str, at: Range<usize>, expected: &str) {
        let is_pair = self.file.text.text.get(at.clone()).is_some_and(|source| source.starts_with('{'));
        let pair = place.pair.filter(|_| is_pair).map(|pair| pair.example.to_owned());
        let example = pair.unwrap_or_else(|| place.example());
        // A suggestion is an example already.
        let label = match in_file(place, expected.to_owned()) {
            expected if expected.ends_with('?') => expected,
            expected => format!("{expected}, as in {example}"),
        };
        self.wrong(Problem::error(format!("invalid value of `{shown}`"), at, label));
    }

    fn texts(&mut self, place: &'static Place, shown: &str, value: &Spanned<DeValue<'_>>) -> Option<Vec<Said>> {
        match value.get_ref() {
            DeValue::Table(table) if place.shape == Shape::Map => {
                let read = |(key, value): Entry<'_, '_>| {
                    let name = key.get_ref();
                    if name.contains('=') {
                        self.invalid(place, shown, key.span(), "expected a name without `=`");
                        return None;
                    }
                    let (text, at) = self.text(place, &format!("{shown}.{name}"), value)?;
                    Some((format!("{name}={text}"), at))
                };
                let texts: Vec<_> = entries(table).into_iter().map(read).collect();
                texts.into_iter().collect()
            }
            other if place.shape == Shape::Map => {
                let label =
                    format!("expected a table of names and values, found {}; as in {}", kind(other), place.example());
                self.wrong(Problem::error(format!("invalid value of `{shown}`"), value.span(), label));
                None
            }
            DeValue::Array(items) if place.shape == Shape::List => {
                if items.is_empty() {
                    self.invalid(place, shown, value.span(), "expected at least one");
                    return None;
                }
                let read = |item: &Spanned<DeValue<'_>>| match (item.get_ref(), place.pair) {
                    (DeValue::Table(table), Some(pair)) => self.pair(pair, shown, item.span(), table),
                    _ => self.text(place, shown, item),
                };
                let texts: Vec<_> = items.iter().map(read).collect();
                texts.into_iter().collect()
            }
            DeValue::Table(table) => match place.pair {
                Some(pair) if !is_reference(table) => {
                    self.pair(pair, shown, value.span(), table).map(|said| vec![said])
                }
                _ => self.text(place, shown, value).map(|said| vec![said]),
            },
            _ => self.text(place, shown, value).map(|said| vec![said]),
        }
    }

    /// The text of a value that is none of several.
    fn text(&mut self, place: &'static Place, shown: &str, value: &Spanned<DeValue<'_>>) -> Option<Said> {
        use Shape::{Count, Duration, Map, Size, Switch, Text, TextOrFalse, Word};
        let at = value.span();
        let read = match (value.get_ref(), place.shape) {
            (DeValue::String(text), _) => self.string(text, &at),
            (DeValue::Table(table), _) if is_reference(table) => self.reference(table, &at),
            (DeValue::Boolean(on), Switch | Word) => Ok(if *on { "on" } else { "off" }.to_owned()),
            (DeValue::Boolean(on), Map) => Ok(on.to_string()),
            (DeValue::Boolean(false), TextOrFalse) => return Some(("-".to_owned(), at)),
            (DeValue::Integer(number), Count | Map | Size | Word) => {
                let value = i128::from_str_radix(number.as_str(), number.radix());
                Ok(value.map_or_else(|_| number.as_str().to_owned(), |value| value.to_string()))
            }
            // chmod's numbers are octal; in decimal they mean something else.
            (DeValue::Integer(number), Text) if place.name == "listen-mode" && number.radix() == 8 => {
                Ok(format!("{:0>3}", number.as_str()))
            }
            (DeValue::Integer(number), Duration) if number.as_str() == "0" => Ok("0".to_owned()),
            (other, _) => {
                let expected = if place.shape == Map { "expected a string".to_owned() } else { expectation(place) };
                let label = format!("{expected}, found {}; as in {}", kind(other), place.example());
                self.wrong(Problem::error(format!("invalid value of `{shown}`"), at, label));
                return None;
            }
        };
        match read {
            Ok(text) => Some((format!("{}{text}", place.prefix), at)),
            Err(what) => {
                self.wrong(Problem::error(format!("the value of `{shown}` cannot be had"), at, what));
                None
            }
        }
    }

    /// What a string of the value at that place stands for.
    fn string(&mut self, text: &str, at: &Range<usize>) -> Result<String, String> {
        match text.strip_prefix(values::FILE) {
            Some(path) => self.contents(path, at),
            None => self.expand(text, at),
        }
    }

    /// A string of the value at that place with its variables put in, which no report is to print.
    fn expand(&mut self, text: &str, at: &Range<usize>) -> Result<String, String> {
        let own = &mut self.file.text;
        values::expand(text, self.environment, |value, written| own.hide(at, value, written))
    }

    /// What the file at that path says, which no report is to print either.
    fn contents(&mut self, path: &str, at: &Range<usize>) -> Result<String, String> {
        let text = values::contents(&self.expand(path, at)?)?;
        self.file.text.hide(at, &text, &format!("{}{path}", values::FILE));
        Ok(text)
    }

    /// What `{ file = "PATH" }` stands for.
    fn reference(&mut self, table: &DeTable<'_>, at: &Range<usize>) -> Result<String, String> {
        let path = table.values().next().and_then(|value| value.get_ref().as_str());
        self.contents(path.ok_or("expected `file` to be the path of a file")?, at)
    }

    /// Two keys that make one value.
    fn pair(&mut self, pair: places::Pair, shown: &str, at: Range<usize>, table: &DeTable<'_>) -> Option<Said> {
        let mut texts = [None, None];
        let mut complete = true;
        for (key, value) in entries(table) {
            let name = key.get_ref().as_ref();
            let Some(index) = pair.names.iter().position(|known| *known == name) else {
                let label = near(name, pair.names.into_iter())
                    .map_or_else(|| format!("expected `{}` and `{}`", pair.names[0], pair.names[1]), mean);
                self.wrong(Problem::error(format!("unknown key `{name}`"), key.span(), label));
                complete = false;
                continue;
            };
            let read = match (value.get_ref(), pair.shapes[index]) {
                (DeValue::String(text), _) => Some(self.string(text, &value.span())),
                (DeValue::Table(table), _) if is_reference(table) => Some(self.reference(table, &value.span())),
                (DeValue::Integer(number), Shape::Count) => Some(Ok(number.to_string())),
                _ => None,
            };
            if let Some(Err(what)) = read {
                let title = format!("the value of `{shown}.{name}` cannot be had");
                self.wrong(Problem::error(title, value.span(), what));
                complete = false;
                continue;
            }
            texts[index] = read.and_then(Result::ok);
            if texts[index].is_none() {
                let what = match pair.shapes[index] {
                    Shape::Count => "a whole number",
                    Shape::Text => "the path of a file",
                    _ => "a duration such as \"60s\"",
                };
                let label = format!("expected {what}, found {}", kind(value.get_ref()));
                self.wrong(Problem::error(format!("invalid value of `{shown}.{name}`"), value.span(), label));
                complete = false;
            }
        }
        match texts {
            [Some(first), Some(second)] if complete => Some((format!("{first}{}{second}", pair.joint), at)),
            _ if !complete => None,
            _ => {
                let label = format!("expected `{}` and `{}`, as in {}", pair.names[0], pair.names[1], pair.example);
                self.wrong(Problem::error(format!("`{shown}` is not complete"), at, label));
                None
            }
        }
    }

    /// The words of a command.
    fn command(&mut self, shown: &str, value: &Spanned<DeValue<'_>>) {
        let title = format!("invalid value of `{shown}`");
        let items = match value.get_ref() {
            DeValue::Array(items) if !items.is_empty() => items,
            DeValue::String(text) => {
                let words: Vec<String> = text.split_whitespace().map(places::quoted).collect();
                let label = format!("expected an array of words, as in [{}]", words.join(", "));
                return self.wrong(Problem::error(title, value.span(), label));
            }
            other => {
                let found = if other.is_array() { "none" } else { kind(other) };
                let label = format!("expected an array of words, found {found}; as in [\"node\", \"server.js\"]");
                return self.wrong(Problem::error(title, value.span(), label));
            }
        };
        let mut words = Vec::new();
        for item in items.iter() {
            let read = match item.get_ref() {
                DeValue::String(text) => self.expand(text, &item.span()),
                other => Err(format!("expected a string, found {}", kind(other))),
            };
            match read {
                Ok(word) if word.contains('\0') => {
                    self.wrong(Problem::error(title.clone(), item.span(), "a word of a command has no NUL in it"));
                }
                Ok(word) if words.is_empty() && word.is_empty() => {
                    self.wrong(Problem::error(title.clone(), item.span(), "expected the name of a program"));
                    words.push(word);
                }
                Ok(word) => words.push(word),
                Err(what) => self.wrong(Problem::error(title.clone(), item.span(), what)),
            }
        }
        if words.len() == items.len() {
            let spot = self.spot(shown.to_owned(), value.span());
            if let Some(app) = self.app {
                self.file.apps[app].command = Some((words, spot));
            }
        }
    }

    /// A key that means nothing where it stands.
    fn unknown(&mut self, path: &str, shown: &str, key: &Spanned<std::borrow::Cow<'_, str>>) {
        let name = key.get_ref().as_ref();
        let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        if tables::NOT_YET.iter().any(|known| *known == full || *known == name) {
            let title = format!("`{name}` is not known to this version of production_server");
            self.wrong(Problem::error(title, key.span(), "it has no meaning yet: take it out"));
            return;
        }
        let names = places::names_in(path);
        let close = near(name, names.iter().copied());
        let label = close.map_or_else(|| elsewhere(name, shown), |close| Some(mean(close)));
        let label = label.unwrap_or_else(|| {
            let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            format!("expected one of {}", names.join(", "))
        });
        let shown_name: String = name.chars().take(80).collect();
        self.wrong(Problem::error(format!("unknown key `{}`", shown_name.escape_debug()), key.span(), label));
    }
}

fn mean(name: &str) -> String {
    format!("did you mean `{name}`?")
}

/// Whether a table is `{ file = "PATH" }`.
fn is_reference(table: &DeTable<'_>) -> bool {
    table.len() == 1 && table.contains_key("file")
}

/// The name that was probably meant.
pub(super) fn near<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let plain = name.to_ascii_lowercase().replace('-', "_");
    let distances = names.map(|known| (strsim::osa_distance(&plain, known), known));
    distances
        .filter(|(distance, known)| *distance <= known.len().max(3) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

/// Where a key belongs that stands in the wrong table, or that has the name of its flag.
fn elsewhere(name: &str, shown: &str) -> Option<String> {
    let plain = name.replace('_', "-");
    let by_flag = |flag: &str| places::main_of(flag).filter(|_| !flag.is_empty());
    let close = || {
        let flags: Vec<String> = keys::all().map(|key| key.name.replace('-', "_")).collect();
        near(name, flags.iter().map(String::as_str)).and_then(|flag| by_flag(&flag.replace('_', "-")))
    };
    let same = places::PLACES.iter().filter(|place| place.last() == name && place.shape != Shape::False);
    let mut found: Vec<&Place> = by_flag(&plain).map_or_else(|| same.collect(), |place| vec![place]);
    found.extend(close().filter(|_| found.is_empty()));
    // What is in the same table is meant, where there is such.
    let top = shown.split('.').next().filter(|top| !top.is_empty());
    let inside = |place: &&Place| top.is_some_and(|top| place.path.starts_with(top));
    if found.iter().any(inside) {
        found.retain(inside);
    }
    let headers: Vec<String> = found.iter().map(|place| format!("`{}`", header(place, shown))).collect();
    let last = found.first()?.last();
    Some(format!("did you mean `{last}` in {}?", headers.join(" or ")))
}

/// The line above a key, for somebody who is in the table `shown`.
fn header(place: &Place, shown: &str) -> String {
    let top = place.path.split('.').next().unwrap_or_default();
    let here = shown.strip_prefix(top).and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.split('.').next());
    let name = here.unwrap_or(if top == "apps" { "web" } else { "NAME" });
    let table = place.path.rsplit_once('.').map_or("", |(table, _)| table).replace('*', name);
    match table.strip_suffix("[]") {
        Some(list) => format!("[[{list}]]"),
        None => format!("[{}]", table.replace("[]", "")),
    }
}

/// Reads a value for nothing, or says what would have been right.
fn try_value(place: &Place, text: &str) -> Result<(), String> {
    match (place.route, place.key()) {
        (Some(route), _) => (route.set)(&mut Draft::default(), text),
        (None, Some(key)) => (key.set)(&mut Settings::default(), text),
        (None, None) => Ok(()),
    }
}

/// Where the name of an entry stands that no value would be right for.
fn name_at_fault(place: &Place, text: &str, value: &Spanned<DeValue<'_>>) -> Option<Range<usize>> {
    let DeValue::Table(table) = value.get_ref() else { return None };
    let (name, _) = text.split_once('=').filter(|_| place.shape == Shape::Map)?;
    let example = place.key().map(|key| key.example).or(place.route.map(|route| route.example))?;
    let (_, good) = example.split_once('=')?;
    try_value(place, &format!("{name}={good}")).err()?;
    entries(table).into_iter().find(|(key, _)| key.get_ref() == name).map(|(key, _)| key.span())
}

/// What a key's setter would have taken, in its own words.
pub(super) fn expectation(place: &Place) -> String {
    // Nothing is an address without a port to its reader, which then speaks of ports alone.
    let nothing = if place.path == places::ADDRESS { "?" } else { "" };
    let expected = match try_value(place, nothing) {
        Err(expected) => in_file(place, expected),
        Ok(()) => "expected a string".to_owned(),
    };
    if place.shape == Shape::TextOrFalse { format!("{expected} or false") } else { expected }
}

/// A setter's words, where the flag takes a number of milliseconds and the file a duration.
fn in_file(place: &Place, expected: String) -> String {
    let bounds = expected.strip_prefix("expected milliseconds from ").and_then(|bounds| bounds.split_once(" to "));
    let read = |text: &str| text.parse().ok().map(|milliseconds| show_duration(Duration::from_millis(milliseconds)));
    match bounds.map(|(from, to)| (read(from), read(to))) {
        Some((Some(from), Some(to))) if place.shape == Shape::Duration => {
            format!("expected a duration with its unit (ms, s, m, h) from {from} to {to}")
        }
        _ => expected,
    }
}

/// What a value is, for people.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a number without quotes",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(true) => "true",
        DeValue::Boolean(false) => "false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

#[cfg(test)]
mod tests;
