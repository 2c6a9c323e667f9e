//! Where each key of `keys` stands in the configuration file, and in what form its value is written there.
//!
//! One table for all that knows the file: the reader, `config show`, the schema and docs/configuration.md. A test demands that every
//! key has its place. Values are read by the key's own setter, from the text that stands for them on the command line.
//!
//! A path names tables and, last, the key, with dots between; `*` is the name of an app, and `listen[]` each table `[[listen]]`.

use std::time::Duration;

use super::keys::{self, Key};
use super::units::show_duration;

/// Where one key stands.
pub struct Place {
    /// The key's name in `keys`; empty for what is no flag ([`COMMAND`]).
    pub name: &'static str,
    /// See the module.
    pub path: &'static str,
    /// How its value is written.
    pub shape: Shape,
    /// What stands before a value of this place in the text for the setter, as `http:` in `ready = { http = "/ready" }`.
    pub prefix: &'static str,
    /// The keys of a table that may stand in the place of the value, and what joins their values for the setter.
    pub pair: Option<Pair>,
}

/// Two keys that make one value.
#[derive(Clone, Copy)]
pub struct Pair {
    /// The first and the second.
    pub names: [&'static str; 2],
    /// Their forms.
    pub shapes: [Shape; 2],
    /// What stands between them in the text for the setter.
    pub joint: &'static str,
    /// The whole, as the file writes it.
    pub example: &'static str,
}

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A string.
    Text,
    /// One of a few words, and a boolean where the word is on or off.
    Word,
    /// A boolean, or the words on and off.
    Switch,
    /// A whole number, or one of a few words.
    Count,
    /// A string with a unit.
    Duration,
    /// A string with a unit, or a whole number of bytes.
    Size,
    /// A string or an array of strings.
    List,
    /// A string, or false for nothing.
    TextOrFalse,
    /// A switch that is said by false at a path that another key has.
    False,
}

impl Place {
    /// The key, unless it is no flag.
    pub fn key(&self) -> Option<&'static Key> {
        keys::all().find(|key| key.name == self.name)
    }

    /// Its last segment.
    pub fn last(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// A value of the command line as the file writes it.
    pub fn write(&self, text: &str) -> String {
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty();
        match self.shape {
            Shape::Count if plain(text) && !(text.len() > 1 && text.starts_with('0')) => text.to_owned(),
            Shape::False => "false".to_owned(),
            Shape::Switch | Shape::Word if text.eq_ignore_ascii_case("off") => "false".to_owned(),
            Shape::Switch | Shape::Word if text.eq_ignore_ascii_case("on") => "true".to_owned(),
            // Only flags in milliseconds have durations without a unit.
            Shape::Duration if plain(text) && text != "0" => {
                let duration = text.parse().map(|milliseconds| show_duration(Duration::from_millis(milliseconds)));
                quoted(&duration.unwrap_or_else(|_| format!("{text}ms")))
            }
            _ => quoted(text),
        }
    }

    /// A good value as the file writes it.
    pub fn example(&self) -> String {
        match self.key() {
            Some(_) if self.path == "apps.*.ready.http" => quoted("/ready"),
            Some(key) if self.shape == Shape::List => format!("[{}]", quoted(key.example)),
            Some(key) => self.write(key.example),
            None => r#"["node", "server.js"]"#.to_owned(),
        }
    }
}

/// A TOML string.
pub fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            _ if letter.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(letter))),
            _ => out.push(letter),
        }
    }
    out.push('"');
    out
}

const fn at(name: &'static str, path: &'static str, shape: Shape) -> Place {
    Place { name, path, shape, prefix: "", pair: None }
}

/// What the workers run: an array of words, and no flag.
pub const COMMAND: &str = "apps.*.command";
/// An address to listen on.
pub const ADDRESS: &str = "listen[].address";
/// What belongs to one Unix socket that is listened on.
pub const OF_SOCKET: [&str; 3] = ["listen-mode", "listen-owner", "listen-group"];

use Shape::{Count, False, List, Size, Switch, Text, TextOrFalse, Word};

/// All places in the order of the documents.
pub const PLACES: &[Place] = &[
    at("loops", "server.loops", Count),
    at("backend", "server.backend", Word),
    at("pin", "server.pin", Word),
    at("max-connections", "server.max_connections", Count),
    at("header-timeout", "server.timeouts.header", Shape::Duration),
    at("body-timeout", "server.timeouts.body", Shape::Duration),
    at("idle-timeout", "server.timeouts.idle", Shape::Duration),
    at("write-timeout", "server.timeouts.write", Shape::Duration),
    at("max-body", "server.max_body", Size),
    at("max-head", "server.max_head", Size),
    at("max-fields", "server.max_fields", Count),
    at("buffer-bytes", "server.buffer_bytes", Size),
    at("internal", "server.internal", Word),
    at("shutdown", "server.shutdown", Shape::Duration),
    at("stats-interval", "server.stats_interval", Shape::Duration),
    at("run-dir", "server.run_dir", Text),
    at("trusted-proxies", "server.trusted_proxies", List),
    at("forwarded", "server.forwarded", Word),
    at("proxy-protocol", "server.proxy_protocol.from", List),
    at("proxy-protocol-timeout", "server.proxy_protocol.timeout", Shape::Duration),
    at("listen", ADDRESS, Text),
    at("listen-mode", "listen[].mode", Text),
    at("listen-owner", "listen[].owner", Text),
    at("listen-group", "listen[].group", Text),
    at("", COMMAND, List),
    at("directory", "apps.*.directory", Text),
    Place {
        pair: Some(Pair {
            names: ["min", "max"],
            shapes: [Count, Count],
            joint: "..",
            example: "{ min = 2, max = 8 }",
        }),
        ..at("workers", "apps.*.workers", Count)
    },
    at("concurrency", "apps.*.concurrency", Count),
    at("balance", "apps.*.balance", Word),
    at("ready", "apps.*.ready.by", Word),
    Place { prefix: "http:", ..at("ready", "apps.*.ready.http", Text) },
    at("ready-timeout", "apps.*.ready.timeout", Shape::Duration),
    at("socket", "apps.*.socket", Word),
    at("watchdog", "apps.*.watchdog", Shape::Duration),
    at("keepalive", "apps.*.keepalive", Switch),
    at("max-tunnels", "apps.*.max_tunnels", Count),
    at("half-close", "apps.*.half_close", Word),
    at("upstream", "apps.*.upstream", List),
    at("respond", "apps.*.respond", Text),
    at("module", "apps.*.module", Text),
    at("dump-signal", "apps.*.dump_signal", Word),
    at("connect-timeout-ms", "apps.*.timeouts.connect", Shape::Duration),
    at("read-timeout-ms", "apps.*.timeouts.read", Shape::Duration),
    at("request-timeout", "apps.*.timeouts.request", Shape::Duration),
    at("answer-timeout", "apps.*.timeouts.answer", Shape::Duration),
    at("max-queue", "apps.*.queue.size", Count),
    at("queue-timeout-ms", "apps.*.queue.timeout", Shape::Duration),
    at("hold", "apps.*.queue.hold", Shape::Duration),
    at("max-requests", "apps.*.recycle.requests", Count),
    at("recycle-jitter", "apps.*.recycle.jitter", Text),
    at("max-lifetime", "apps.*.recycle.lifetime", Shape::Duration),
    at("max-memory", "apps.*.recycle.memory", Size),
    at("max-reloads", "apps.*.recycle.reloads", Count),
    at("drain", "apps.*.restart.drain", Shape::Duration),
    at("start-parallel", "apps.*.restart.start_parallel", Count),
    at("restart-parallel", "apps.*.restart.parallel", Count),
    at("max-unavailable", "apps.*.restart.max_unavailable", Count),
    at("restart-base", "apps.*.restart.base", Shape::Duration),
    at("restart-max", "apps.*.restart.max", Shape::Duration),
    at("max-restarts", "apps.*.restart.max_restarts", Count),
    Place {
        pair: Some(Pair {
            names: ["crashes", "within"],
            shapes: [Count, Shape::Duration],
            joint: "/",
            example: "{ crashes = 5, within = \"60s\" }",
        }),
        ..at("give-up", "apps.*.restart.give_up", Text)
    },
    at("give-up-exit", "apps.*.restart.give_up_exit", Switch),
    at("hot-reload", "apps.*.hot_reload.by", Word),
    at("watch", "apps.*.hot_reload.watch", List),
    at("reload-signal", "apps.*.hot_reload.signal", Word),
    at("access-log", "log.access", TextOrFalse),
    at("no-access-log", "log.access", False),
    at("log-format", "log.format", Word),
    at("json-logging", "log.access_json", Switch),
];

/// The tables, each with what it holds.
pub const TABLES: &[(&str, &str)] = &[
    ("server", "The process: event loops, limits and deadlines of the client side."),
    ("server.timeouts", "Deadlines of the client side."),
    (
        "server.proxy_protocol",
        "Load balancers that begin each connection with a header of the PROXY protocol; a list alone stands for `from`.",
    ),
    ("listen[]", "One address to listen on; `[[listen]]` again for each further one."),
    ("apps", "The app behind the loops, under a name of its own: `[apps.web]`."),
    ("apps.*", "One app. It is a command, `upstream`, `respond`, or without any of them the built-in worker."),
    ("apps.*.ready", "When a worker counts as ready; a word alone, as in `ready = \"notify\"`, stands for `by`."),
    ("apps.*.timeouts", "Deadlines of the worker side."),
    ("apps.*.queue", "Requests that wait for a worker."),
    ("apps.*.recycle", "When a worker is replaced."),
    ("apps.*.restart", "How workers are replaced, and how those that crashed come back."),
    ("apps.*.hot_reload", "What changed files do; a word alone, as in `hot_reload = \"process\"`, stands for `by`."),
    ("log", "What is written, and how."),
];

/// Tables for which a value alone stands for one of their keys.
pub const SHORT: &[(&str, &str)] = &[
    ("server.proxy_protocol", "server.proxy_protocol.from"),
    ("apps.*.ready", "apps.*.ready.by"),
    ("apps.*.hot_reload", "apps.*.hot_reload.by"),
];

/// What is planned or usual elsewhere and means nothing to this version: a path, or its last segment alone.
pub const NOT_YET: &[&str] = &[
    "routes",
    "tls",
    "http2",
    "http3",
    "compress",
    "compression",
    "limits",
    "auth",
    "static",
    "hub",
    "publish",
    "metrics",
    "admin",
    "health",
    "upgrade",
    "include",
    "user",
    "pre_stop_delay",
    "listen[].alpn",
    "listen[].client_ca",
    "listen[].systemd",
    "apps.*.environment",
    "apps.*.group",
];

/// The place that is written, of all that one key has. Only for names in `keys`.
pub fn main_of(name: &str) -> Option<&'static Place> {
    PLACES.iter().find(|place| place.name == name)
}

/// The place with exactly that path.
pub fn by_path(path: &str) -> Option<&'static Place> {
    let short = SHORT.iter().find(|(table, _)| *table == path).map(|(_, leaf)| *leaf);
    PLACES.iter().find(|place| place.path == short.unwrap_or(path) && place.shape != Shape::False)
}

/// Whether a path is a table.
pub fn is_table(path: &str) -> bool {
    TABLES.iter().any(|(table, _)| *table == path)
}

/// The names that may stand in a table; the empty path is the file itself.
pub fn names_in(table: &str) -> Vec<&'static str> {
    let inside = |path: &'static str| -> Option<&'static str> {
        let rest = if table.is_empty() { path } else { path.strip_prefix(table)?.strip_prefix('.')? };
        Some(rest.split(['.', '[']).next().unwrap_or(rest))
    };
    let mut names: Vec<&str> = PLACES.iter().filter_map(|place| inside(place.path)).collect();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_place_and_every_place_its_key() {
        for key in keys::all() {
            assert!(main_of(key.name).is_some(), "--{} has no place in the configuration file", key.name);
        }
        for place in PLACES {
            assert!(place.key().is_some() || place.path == COMMAND, "{} has no key", place.path);
            let same = PLACES.iter().filter(|other| other.path == place.path && other.shape != Shape::False);
            assert_eq!(same.count(), 1, "{} twice", place.path);
            let (table, _) = place.path.rsplit_once('.').unwrap();
            assert!(is_table(table), "{table} is not described");
        }
        for (table, _) in TABLES {
            assert!(!names_in(table).is_empty(), "{table} is empty");
        }
        assert_eq!(names_in(""), ["server", "listen", "apps", "log"]);
        assert!(NOT_YET.iter().all(|path| by_path(path).is_none() && !is_table(path)));
    }
}
