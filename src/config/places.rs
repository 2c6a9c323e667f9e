//! Where each key of `keys` stands in the configuration file, and in what form its value is written there.
//!
//! One table for all that knows the file: the reader, `config show`, the schema and docs/configuration.md. A test demands that every
//! key has its place. Values are read by the key's own setter, from the text that stands for them on the command line.
//!
//! A path names tables and, last, the key, with dots between; `*` is the name of an app, and `listen[]` each table `[[listen]]`.

use std::time::Duration;

use super::keys::{self, Key};
use super::route::{self, Draft};
use super::tables::{SHORT, TABLES};
use super::units::{self, show_duration};

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
    /// When a change of it takes effect.
    pub reload: Reload,
    /// What it is in a route; such places have no key.
    pub route: Option<RouteKey>,
}

/// What is said of a route, which no flag says.
#[derive(Clone, Copy)]
pub struct RouteKey {
    /// What it does, in one line.
    pub help: &'static str,
    /// A good value, as the setter takes it.
    pub example: &'static str,
    /// Reads one value, or says what would have been right.
    pub set: fn(&mut Draft, &str) -> Result<(), String>,
}

/// What a changed value asks of a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reload {
    /// It holds from the next request on, or from the next decision.
    Live,
    /// Listeners are opened and closed; connections that stand are left alone.
    Listener,
    /// The app's workers are replaced by a rolling restart.
    Roll,
    /// It needs another process, which an upgrade starts; a reload names it and leaves it.
    Restart,
}

impl Reload {
    /// Its word in documents.
    pub fn word(self) -> &'static str {
        match self {
            Reload::Live => "live",
            Reload::Listener => "listener",
            Reload::Roll => "roll",
            Reload::Restart => "restart",
        }
    }
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
    /// A table of names and strings; `NAME=VALUE` to the setter.
    Map,
}

impl Place {
    /// The key, unless it is no flag.
    pub fn key(&self) -> Option<&'static Key> {
        keys::all().find(|key| key.name == self.name)
    }

    /// Whether it says something of a route, of the upstreams that are its own, or of a table of [`NAMED`], whose keys are read as those of a
    /// route.
    pub fn is_of_route(&self) -> bool {
        let top = self.path.split('.').next().unwrap_or_default();
        top == "routes[]" || NAMED.contains(&top)
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
            Shape::Map => {
                let (name, value) = text.split_once('=').unwrap_or((text, ""));
                format!("{{ {} = {} }}", map_key(name), quoted(value))
            }
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
            _ if self.path == COMMAND => r#"["node", "server.js"]"#.to_owned(),
            key => {
                let example = key.map(|key| key.example).or(self.route.map(|route| route.example)).unwrap_or_default();
                match (self.shape, self.pair) {
                    (Shape::List, Some(pair)) => format!("[{}]", pair.example),
                    (Shape::List, None) => format!("[{}]", quoted(example)),
                    _ => self.write(example),
                }
            }
        }
    }
}

/// A name in a table of names that are free.
pub fn map_key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { quoted(name) }
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

const fn at(name: &'static str, path: &'static str, shape: Shape, reload: Reload) -> Place {
    Place { name, path, shape, prefix: "", pair: None, reload, route: None }
}

const fn route(
    path: &'static str,
    shape: Shape,
    help: &'static str,
    example: &'static str,
    set: fn(&mut Draft, &str) -> Result<(), String>,
) -> Place {
    Place { route: Some(RouteKey { help, example, set }), ..at("", path, shape, Reload::Live) }
}

/// What the workers run: an array of words, and no flag.
pub const COMMAND: &str = "apps.*.command";
/// What there is many of besides apps, each under a name of its own.
pub const NAMED: [&str; 2] = ["limits", "hub"];
/// An address to listen on.
pub const ADDRESS: &str = "listen[].address";
/// What belongs to one Unix socket that is listened on.
pub const OF_SOCKET: [&str; 3] = ["listen-mode", "listen-owner", "listen-group"];
/// What may be said of one listener in the place of what is said of all.
pub const OF_FRONT: [&str; 15] = [
    "trusted-proxies",
    "forwarded",
    "proxy-protocol",
    "proxy-protocol-timeout",
    "tls",
    "tls-cert",
    "tls-key",
    "tls-certificate",
    "tls-min-version",
    "tls-strict-sni",
    "tls-client-ca",
    "tls-hsts",
    "redirect-https",
    "allow",
    "deny",
];

use Reload::{Listener, Live, Restart, Roll};
use Shape::{Count, False, List, Map, Size, Switch, Text, TextOrFalse, Word};

/// A certificate with its key.
const CERTIFICATE: Pair = Pair {
    names: ["cert", "key"],
    shapes: [Text, Text],
    joint: super::tls::JOINT,
    example: r#"{ cert = "/etc/ssl/example.org.pem", key = "/etc/ssl/private/example.org.key" }"#,
};

/// All places in the order of the documents.
pub const PLACES: &[Place] = &[
    at("loops", "server.loops", Count, Restart),
    at("backend", "server.backend", Word, Restart),
    at("pin", "server.pin", Word, Restart),
    at("max-connections", "server.max_connections", Count, Restart),
    at("helpers", "server.helpers", Count, Restart),
    at("header-timeout", "server.timeouts.header", Shape::Duration, Live),
    at("body-timeout", "server.timeouts.body", Shape::Duration, Live),
    at("idle-timeout", "server.timeouts.idle", Shape::Duration, Live),
    at("write-timeout", "server.timeouts.write", Shape::Duration, Live),
    at("max-body", "server.max_body", Size, Live),
    at("max-head", "server.max_head", Size, Live),
    at("max-fields", "server.max_fields", Count, Live),
    at("buffer-bytes", "server.buffer_bytes", Size, Restart),
    at("spool-bytes", "server.spool_bytes", Size, Live),
    at("spool-dir", "server.spool_dir", Text, Live),
    at("error-page", "server.error_pages", Map, Live),
    at("internal", "server.internal", Word, Live),
    at("rate-limit", "server.rate_limit", Text, Live),
    at("connections-per-ip", "server.connections_per_ip", Count, Live),
    at("hub", "server.hub", Switch, Live),
    at("allow", "server.allow", List, Live),
    at("deny", "server.deny", List, Live),
    at("shutdown", "server.shutdown", Shape::Duration, Live),
    at("pre-stop-delay", "server.pre_stop_delay", Shape::Duration, Live),
    at("stats-interval", "server.stats_interval", Shape::Duration, Live),
    at("run-dir", "server.run_dir", Text, Restart),
    at("trusted-proxies", "server.trusted_proxies", List, Restart),
    at("forwarded", "server.forwarded", Word, Restart),
    at("proxy-protocol", "server.proxy_protocol.from", List, Restart),
    at("proxy-protocol-timeout", "server.proxy_protocol.timeout", Shape::Duration, Restart),
    at("redirect-https", "server.redirect_https", Word, Restart),
    at("pid-file", "server.pid_file", Text, Restart),
    at("user", "server.user", Text, Restart),
    at("group", "server.group", Text, Restart),
    at("upgrade-timeout", "server.upgrade_timeout", Shape::Duration, Live),
    at("tls", "tls.speak", Word, Restart),
    at("tls-cert", "tls.cert", List, Live),
    at("tls-key", "tls.key", List, Live),
    Place { pair: Some(CERTIFICATE), ..at("tls-certificate", "tls.certificates", List, Live) },
    at("tls-min-version", "tls.min_version", Text, Live),
    at("tls-strict-sni", "tls.strict_sni", Switch, Live),
    at("tls-client-ca", "tls.client_ca", Text, Live),
    at("tls-hsts", "tls.hsts", Shape::Duration, Live),
    at("acme", "acme.email", Text, Live),
    at("domain", "acme.domains", List, Live),
    at("acme-challenge", "acme.challenge", Text, Live),
    at("acme-directory", "acme.directory", Text, Live),
    at("acme-url", "acme.url", Text, Live),
    at("acme-ca-file", "acme.ca_file", Text, Live),
    at("acme-eab-kid", "acme.eab.kid", Text, Live),
    at("acme-eab-key-file", "acme.eab.key_file", Text, Live),
    at("acme-profile", "acme.profile", Text, Live),
    at("listen", ADDRESS, Text, Listener),
    at("listen-mode", "listen[].mode", Text, Listener),
    at("listen-owner", "listen[].owner", Text, Listener),
    at("listen-group", "listen[].group", Text, Listener),
    at("trusted-proxies", "listen[].trusted_proxies", List, Restart),
    at("forwarded", "listen[].forwarded", Word, Restart),
    at("proxy-protocol", "listen[].proxy_protocol.from", List, Restart),
    at("proxy-protocol-timeout", "listen[].proxy_protocol.timeout", Shape::Duration, Restart),
    at("tls", "listen[].tls.speak", Word, Restart),
    at("tls-cert", "listen[].tls.cert", List, Live),
    at("tls-key", "listen[].tls.key", List, Live),
    Place { pair: Some(CERTIFICATE), ..at("tls-certificate", "listen[].tls.certificates", List, Live) },
    at("tls-min-version", "listen[].tls.min_version", Text, Live),
    at("tls-strict-sni", "listen[].tls.strict_sni", Switch, Live),
    at("tls-client-ca", "listen[].tls.client_ca", Text, Live),
    at("tls-hsts", "listen[].tls.hsts", Shape::Duration, Live),
    at("redirect-https", "listen[].redirect_https", Word, Restart),
    at("allow", "listen[].allow", List, Live),
    at("deny", "listen[].deny", List, Live),
    at("", COMMAND, List, Roll),
    at("directory", "apps.*.directory", Text, Roll),
    Place {
        pair: Some(Pair {
            names: ["min", "max"],
            shapes: [Count, Count],
            joint: "..",
            example: "{ min = 2, max = 8 }",
        }),
        ..at("workers", "apps.*.workers", Count, Live)
    },
    at("environment", "apps.*.environment", Map, Roll),
    at("required", "apps.*.required", Switch, Live),
    at("concurrency", "apps.*.concurrency", Count, Roll),
    at("balance", "apps.*.balance", Word, Live),
    at("ready", "apps.*.ready.by", Word, Roll),
    Place { prefix: "http:", ..at("ready", "apps.*.ready.http", Text, Roll) },
    at("ready-timeout", "apps.*.ready.timeout", Shape::Duration, Live),
    at("socket", "apps.*.socket", Word, Roll),
    at("watchdog", "apps.*.watchdog", Shape::Duration, Roll),
    at("keepalive", "apps.*.keepalive", Switch, Live),
    at("max-tunnels", "apps.*.max_tunnels", Count, Live),
    at("half-close", "apps.*.half_close", Word, Live),
    at("request-buffering", "apps.*.request_buffering", Word, Live),
    at("upstream", "apps.*.upstream", List, Live),
    at("respond", "apps.*.respond", Text, Live),
    at("static", "apps.*.static", Text, Live),
    at("error-page", "apps.*.error_pages", Map, Live),
    at("module", "apps.*.module", Text, Roll),
    at("dump-signal", "apps.*.dump_signal", Word, Live),
    at("connect-timeout-ms", "apps.*.timeouts.connect", Shape::Duration, Live),
    at("read-timeout-ms", "apps.*.timeouts.read", Shape::Duration, Live),
    at("request-timeout", "apps.*.timeouts.request", Shape::Duration, Live),
    at("answer-timeout", "apps.*.timeouts.answer", Shape::Duration, Live),
    at("max-queue", "apps.*.queue.size", Count, Live),
    at("queue-timeout-ms", "apps.*.queue.timeout", Shape::Duration, Live),
    at("fair-queue", "apps.*.queue.fair", Word, Live),
    at("hold", "apps.*.queue.hold", Shape::Duration, Live),
    at("compress", "apps.*.compress.codings", List, Live),
    at("compress-min", "apps.*.compress.min", Size, Live),
    at("compress-type", "apps.*.compress.types", List, Live),
    at("compress-level", "apps.*.compress.levels", Map, Live),
    at("compress-jitter", "apps.*.compress.jitter", Count, Live),
    at("compress-events", "apps.*.compress.events", Switch, Live),
    at("compress-personal", "apps.*.compress.personal", Switch, Live),
    at("health-check", "apps.*.health.path", Text, Live),
    at("health-interval", "apps.*.health.interval", Shape::Duration, Live),
    at("health-timeout", "apps.*.health.timeout", Shape::Duration, Live),
    at("health-unhealthy", "apps.*.health.unhealthy", Count, Live),
    at("health-healthy", "apps.*.health.healthy", Count, Live),
    at("health-status", "apps.*.health.status", Text, Live),
    at("eject-after", "apps.*.eject.after", Count, Live),
    at("eject-time", "apps.*.eject.time", Shape::Duration, Live),
    at("eject-max", "apps.*.eject.max", Shape::Duration, Live),
    at("max-requests", "apps.*.recycle.requests", Count, Live),
    at("recycle-jitter", "apps.*.recycle.jitter", Text, Live),
    at("max-lifetime", "apps.*.recycle.lifetime", Shape::Duration, Live),
    at("max-memory", "apps.*.recycle.memory", Size, Live),
    at("max-reloads", "apps.*.recycle.reloads", Count, Live),
    at("drain", "apps.*.restart.drain", Shape::Duration, Live),
    at("start-parallel", "apps.*.restart.start_parallel", Count, Live),
    at("restart-parallel", "apps.*.restart.parallel", Count, Live),
    at("max-unavailable", "apps.*.restart.max_unavailable", Count, Live),
    at("restart-base", "apps.*.restart.base", Shape::Duration, Live),
    at("restart-max", "apps.*.restart.max", Shape::Duration, Live),
    at("max-restarts", "apps.*.restart.max_restarts", Count, Live),
    Place {
        pair: Some(Pair {
            names: ["crashes", "within"],
            shapes: [Count, Shape::Duration],
            joint: "/",
            example: "{ crashes = 5, within = \"60s\" }",
        }),
        ..at("give-up", "apps.*.restart.give_up", Text, Live)
    },
    at("give-up-exit", "apps.*.restart.give_up_exit", Switch, Live),
    at("hot-reload", "apps.*.hot_reload.by", Word, Live),
    at("watch", "apps.*.hot_reload.watch", List, Live),
    at("reload-signal", "apps.*.hot_reload.signal", Word, Live),
    route("limits.*.rate", Text, "How often, in the long run", "300/m", |draft, text| draft.named.limit.rate(text)),
    route("limits.*.burst", Count, BURST_HELP, "20", |draft, text| draft.named.limit.burst(text)),
    route("limits.*.delay", Shape::Duration, DELAY_HELP, "2s", |draft, text| draft.named.limit.delay(text)),
    route("limits.*.key", Text, BY_HELP, "field:X-Tenant", |draft, text| draft.named.limit.by(text)),
    Place {
        pair: Some(Pair { names: ["v4", "v6"], shapes: [Count, Count], joint: "/", example: "{ v4 = 24, v6 = 48 }" }),
        ..route("limits.*.prefix", Text, BITS_HELP, "24/48", |draft, text| draft.named.limit.prefix(text))
    },
    route("limits.*.status", Count, "The status of a refusal [default: 429]", "503", |draft, text| {
        draft.named.limit.status(text)
    }),
    route("limits.*.dry_run", Switch, DRY_RUN_HELP, "on", |draft, text| draft.named.limit.dry_run(text)),
    route("limits.*.everywhere", Switch, EVERYWHERE_HELP, "on", |draft, text| draft.named.limit.everywhere(text)),
    route("limits.*.headers", Switch, HEADERS_HELP, "on", |draft, text| draft.named.limit.headers(text)),
    route("hub.*.topics", List, TOPICS_HELP, "chat.*", |draft, text| draft.named.hub.topic(text)),
    route("hub.*.history.count", Count, COUNT_HELP, "20", |draft, text| draft.named.hub.history_count(text)),
    route("hub.*.history.bytes", Size, "Bytes of them [default: 1MiB]", "256KiB", |draft, text| {
        draft.named.hub.history_bytes(text)
    }),
    route("hub.*.history.age", Shape::Duration, "For how long [default: 5m]", "1h", |draft, text| {
        draft.named.hub.history_age(text)
    }),
    route("hub.*.memory", Size, MEMORY_HELP, "256MiB", |draft, text| draft.named.hub.memory(text)),
    route("hub.*.most_topics", Count, MOST_TOPICS_HELP, "500", |draft, text| draft.named.hub.most_topics(text)),
    route("hub.*.message", Size, "The most bytes of one message [default: 64KiB]", "1MiB", |draft, text| {
        draft.named.hub.message(text)
    }),
    route("hub.*.topics_per_socket", Count, PER_SOCKET_HELP, "16", |draft, text| {
        draft.named.hub.topics_per_socket(text)
    }),
    route("hub.*.ping", Shape::Duration, "How often a socket is pinged [default: 25s]", "50s", |draft, text| {
        draft.named.hub.ping(text)
    }),
    route("hub.*.pong", Shape::Duration, PONG_HELP, "20s", |draft, text| draft.named.hub.pong(text)),
    route("hub.*.poll", Shape::Duration, POLL_HELP, "50s", |draft, text| draft.named.hub.poll(text)),
    route("hub.*.origins", List, ORIGINS_HELP, "https://shop.example", |draft, text| draft.named.hub.origin(text)),
    route("hub.*.keys", Text, PUBLISHERS_HELP, "/etc/production_server/publishers", |draft, text| {
        route::file(text).map(|path| draft.named.hub.keys = Some(path))
    }),
    route("hub.*.deflate", Switch, DEFLATE_HELP, "off", |draft, text| draft.named.hub.deflate(text)),
    route("hub.*.app", Text, HUB_APP_HELP, "web", |draft, text| draft.named.hub.app(text)),
    route("hub.*.events", Text, EVENTS_HELP, "/hub/events", |draft, text| draft.named.hub.events(text)),
    route("hub.*.dialect", Word, DIALECT_HELP, "websocket-events", |draft, text| draft.named.hub.dialect(text)),
    route("hub.*.path", Text, HUB_PATH_HELP, "/bus", |draft, text| draft.named.hub.path(text)),
    route("hub.*.bus.directory", Text, BUS_DIRECTORY_HELP, "/run/production_server/bus", |draft, text| {
        draft.named.hub.bus_directory(text)
    }),
    route("hub.*.bus.url", Text, BUS_URL_HELP, "rediss://redis.example:6379", |draft, text| {
        draft.named.hub.bus_url(text)
    }),
    route("hub.*.bus.user", Text, "Who is to get in there", "chat", |draft, text| draft.named.hub.bus_user(text)),
    route("hub.*.bus.password", Text, "With which password", "file:/run/secrets/redis", |draft, text| {
        draft.named.hub.bus_password(text)
    }),
    route("hub.*.bus.ca_file", Text, BUS_CA_HELP, "/etc/ssl/redis-ca.pem", |draft, text| {
        draft.named.hub.bus_ca_file(text)
    }),
    route("routes[].match.host", Text, HOST_HELP, "example.org", |draft, text| {
        route::host(text).map(|host| draft.matching.host = Some(host))
    }),
    route("routes[].match.path", Text, PATH_HELP, "/api/*", |draft, text| {
        route::path(text).map(|path| draft.matching.path = Some(path))
    }),
    route("routes[].match.method", List, "One of these methods", "GET", |draft, text| {
        route::method(text).map(|method| draft.matching.methods.push(method))
    }),
    route("routes[].app", Text, "The app that answers, by its name", "web", |draft, text| {
        draft.app = Some(text.to_owned());
        Ok(())
    }),
    route("routes[].hub", Text, "The hub that answers, by its name", "chat", |draft, text| {
        draft.to_hub = Some(text.to_owned());
        Ok(())
    }),
    route("routes[].upstreams", List, UPSTREAMS_HELP, "http://127.0.0.1:3000", |draft, text| {
        units::upstream(text).map(|upstream| draft.upstreams.push(upstream))
    }),
    route("routes[].balance", Word, "Which of these upstreams is next", "least", |draft, text| {
        units::choice(text, keys::BALANCES).map(|balance| draft.balance = Some(balance))
    }),
    at("error-page", "routes[].error_pages", Map, Live),
    at("compress", "routes[].compress.codings", List, Live),
    at("compress-min", "routes[].compress.min", Size, Live),
    at("compress-type", "routes[].compress.types", List, Live),
    at("compress-level", "routes[].compress.levels", Map, Live),
    at("compress-jitter", "routes[].compress.jitter", Count, Live),
    at("compress-events", "routes[].compress.events", Switch, Live),
    at("compress-personal", "routes[].compress.personal", Switch, Live),
    at("health-check", "routes[].health.path", Text, Live),
    at("health-interval", "routes[].health.interval", Shape::Duration, Live),
    at("health-timeout", "routes[].health.timeout", Shape::Duration, Live),
    at("health-unhealthy", "routes[].health.unhealthy", Count, Live),
    at("health-healthy", "routes[].health.healthy", Count, Live),
    at("health-status", "routes[].health.status", Text, Live),
    at("eject-after", "routes[].eject.after", Count, Live),
    at("eject-time", "routes[].eject.time", Shape::Duration, Live),
    at("eject-max", "routes[].eject.max", Shape::Duration, Live),
    route("routes[].respond.status", Count, "The status of a fixed answer [default: 200]", "404", |draft, text| {
        route::status(text).map(|status| draft.respond().status = status)
    }),
    route("routes[].respond.body", Text, "The body of a fixed answer", "gone fishing", |draft, text| {
        route::body(text).map(|body| draft.respond().body = body)
    }),
    route("routes[].respond.type", Text, TYPE_HELP, "text/html", |draft, text| {
        route::value(text).map(|value| draft.respond().content_type = value)
    }),
    route("routes[].redirect.to", Text, REDIRECT_HELP, "https://{host}{path}{query}", |draft, text| {
        route::location(text).map(|to| draft.redirect().to = to)
    }),
    route("routes[].redirect.status", Count, "Its status [default: 302]", "308", |draft, text| {
        route::redirect_status(text).map(|status| draft.redirect().status = status)
    }),
    route("routes[].static.root", Text, ROOT_HELP, "/srv/www", |draft, text| {
        route::root(text).map(|root| draft.files().root = root)
    }),
    route("routes[].static.prefix", Text, PREFIX_HELP, "/static", |draft, text| {
        route::part(text).map(|prefix| draft.files().prefix = prefix)
    }),
    route("routes[].static.index", List, INDEX_HELP, "index.html", |draft, text| {
        route::index(text).map(|index| draft.files().index.push(index))
    }),
    route("routes[].static.fallback", Text, FALLBACK_HELP, "/index.html", |draft, text| {
        route::fallback(text).map(|fallback| draft.files().fallback = Some(fallback))
    }),
    route("routes[].static.cache", Text, CACHE_HELP, "no-cache", |draft, text| {
        route::value(text).map(|cache| draft.files().cache = cache)
    }),
    route("routes[].static.immutable", List, IMMUTABLE_HELP, "/assets/*", |draft, text| {
        route::pattern(text).map(|pattern| draft.files().immutable.push(pattern))
    }),
    route("routes[].sendfile.root", Text, SENDFILE_HELP, "/srv/private", |draft, text| {
        route::root(text).map(|root| draft.sendfile().root = root)
    }),
    route("routes[].sendfile.prefix", Text, ACCEL_HELP, "/protected", |draft, text| {
        route::part(text).map(|prefix| draft.sendfile().prefix = prefix)
    }),
    route("routes[].rewrite.strip", Text, STRIP_HELP, "/api", |draft, text| {
        route::part(text).map(|strip| draft.rewrite.strip = strip)
    }),
    route("routes[].rewrite.prefix", Text, "Put in front of what is left", "/v2", |draft, text| {
        route::part(text).map(|prefix| draft.rewrite.prefix = prefix)
    }),
    route(
        "routes[].request_fields.set",
        Map,
        "Fields that the app gets with this value and no other",
        SET,
        |draft, text| draft.request_fields.set(text),
    ),
    route("routes[].request_fields.remove", List, "Fields that the app does not get", "Cookie", |draft, text| {
        route::field(text).map(|name| draft.request_fields.remove.push(name))
    }),
    route(
        "routes[].response_fields.set",
        Map,
        "Fields that an answer has with this value and no other",
        SET,
        |draft, text| draft.response_fields.set(text),
    ),
    route(
        "routes[].response_fields.remove",
        List,
        "Fields that are taken out of an answer",
        "Server",
        |draft, text| route::field(text).map(|name| draft.response_fields.remove.push(name)),
    ),
    route("routes[].allow", List, ALLOW_HELP, "10.0.0.0/8", |draft, text| draft.access.allow.add(text)),
    route(
        "routes[].deny",
        List,
        "Whose requests are refused with 403; it goes before `allow`",
        "192.0.2.0/24",
        |draft, text| draft.access.deny.add(text),
    ),
    route("routes[].limits", List, "The limits that hold here, by their names", "login", |draft, text| {
        draft.access.limits.push(text.to_owned());
        Ok(())
    }),
    route("routes[].max_in_flight", Count, FLIGHT_HELP, "4", |draft, text| {
        units::count(text, 1..=1_000_000).map(|most| draft.access.max_in_flight = Some(most as u32))
    }),
    route("routes[].auth.basic", Text, BASIC_HELP, "/etc/production_server/users", |draft, text| {
        route::file(text).map(|path| draft.access.basic = Some(path))
    }),
    route("routes[].auth.realm", Text, REALM_HELP, "staff", |draft, text| {
        route::value(text).map(|realm| draft.access.realm = Some(realm))
    }),
    route("routes[].auth.keys", Text, KEYS_HELP, "/etc/production_server/keys", |draft, text| {
        route::file(text).map(|path| draft.access.keys = Some(path))
    }),
    route("routes[].auth.key_field", Text, KEY_FIELD_HELP, "Authorization", |draft, text| {
        route::token(text).map(|name| draft.access.key_field = Some(name))
    }),
    route("routes[].auth.jwt.keys", Text, JWT_HELP, "/etc/production_server/jwks.json", |draft, text| {
        route::file_or_url(text).map(|path| draft.access.jwt = Some(path))
    }),
    route("routes[].auth.jwt.refresh", Shape::Duration, REFRESH_HELP, "15m", |draft, text| {
        let range = Duration::from_secs(1)..=Duration::from_secs(86_400);
        units::duration(text, range).map(|refresh| draft.access.refresh = Some(refresh))
    }),
    route("routes[].auth.jwt.algorithms", List, "With which algorithms they may be signed", "RS256", |draft, text| {
        units::choice(text, crate::access::ALGORITHMS).map(|algorithm| draft.access.rules.algorithms.push(algorithm))
    }),
    route(
        "routes[].auth.jwt.issuer",
        List,
        "Who may have issued them (`iss`)",
        "https://id.example.org",
        |draft, text| {
            draft.access.rules.issuers.push(text.to_owned());
            Ok(())
        },
    ),
    route("routes[].auth.jwt.audience", List, "For whom they have to be (`aud`)", "shop", |draft, text| {
        draft.access.rules.audiences.push(text.to_owned());
        Ok(())
    }),
    route("routes[].forward_auth.app", Text, FORWARD_HELP, "accounts", |draft, text| {
        draft.access.forward.app = text.to_owned();
        Ok(())
    }),
    route("routes[].forward_auth.path", Text, "What it is asked for [default: /]", "/verify", |draft, text| {
        route::target(text).map(|path| draft.access.forward.path = path)
    }),
    route("routes[].forward_auth.copy", List, COPY_HELP, "X-Auth-User", |draft, text| {
        route::copied(text).map(|name| draft.access.forward.copy.push(name))
    }),
    route("routes[].forward_auth.timeout", Shape::Duration, PATIENCE_HELP, "2s", |draft, text| {
        let range = Duration::from_millis(1)..=Duration::from_secs(3600);
        units::duration(text, range).map(|timeout| draft.access.forward.timeout = timeout)
    }),
    route("routes[].satisfy", Word, SATISFY_HELP, "any", |draft, text| {
        units::choice(text, &[("all", false), ("any", true)]).map(|any| draft.access.any = Some(any))
    }),
    at("log-format", "log.format", Text, Live),
    at("log-level", "log.level", Word, Live),
    at("json-logging", "log.access_json", Switch, Live),
    at("access-log", "log.access.to", TextOrFalse, Live),
    at("no-access-log", "log.access.to", False, Live),
    at("access-log-format", "log.access.format", Text, Live),
    at("redact-field", "log.access.redact.fields", List, Live),
    at("redact-query", "log.access.redact.query", List, Live),
    at("access-log-sample", "log.access.sample", List, Live),
    at("event-log", "log.events.to", Text, Live),
    at("event-log-format", "log.events.format", Word, Live),
    at("metrics", "metrics.prometheus", Switch, Live),
    at("bungate-metrics", "metrics.bungate", Switch, Live),
    at("statsd", "metrics.statsd.address", Text, Restart),
    at("statsd-format", "metrics.statsd.format", Word, Restart),
    at("statsd-prefix", "metrics.statsd.prefix", Text, Restart),
    at("statsd-tag", "metrics.statsd.tags", List, Restart),
    at("statsd-interval", "metrics.statsd.interval", Shape::Duration, Restart),
    at("cloudwatch", "metrics.cloudwatch.to", Text, Restart),
    at("cloudwatch-namespace", "metrics.cloudwatch.namespace", Text, Restart),
    at("cloudwatch-interval", "metrics.cloudwatch.interval", Shape::Duration, Restart),
    at("admin", "admin.listen", List, Restart),
];

const HOST_HELP: &str = "The host that is asked for, without a port; `*.example.org` for every name below it";
const PATH_HELP: &str = "The path without the query; with `*` at its end every path that begins so. It is compared with %XX \
    decoded, `//` made one and dots resolved";
const UPSTREAMS_HELP: &str = "Servers that something else runs, as an app's `upstream`";
const TYPE_HELP: &str = "The Content-Type of a fixed answer [default: text/plain; charset=utf-8]";
const REDIRECT_HELP: &str = "Where a redirect leads; `{path}`, `{query}` (with its ?) and `{host}` are the request's";
const STRIP_HELP: &str = "Taken from the front of the path that the app gets, where a slash or nothing follows";
const ROOT_HELP: &str =
    "The directory with the files; a link on the way to it is followed anew, so that it can be switched over";
const PREFIX_HELP: &str = "Taken from the front of the path, where a slash or nothing follows";
const INDEX_HELP: &str = "What a directory shows, the first that is there [default: index.html]";
const FALLBACK_HELP: &str =
    "What is served where nothing has the name that was asked for, unless that name has an ending";
const CACHE_HELP: &str = "What Cache-Control says of what is not immutable [default: nothing]";
const IMMUTABLE_HELP: &str = "Names that never change their content, `*` for anything: browsers keep them for a year";
const SENDFILE_HELP: &str = "Where files lie that the app may have sent in the place of its answer, by `X-Sendfile` or \
    `X-Accel-Redirect`";
const ACCEL_HELP: &str = "What the paths in `X-Accel-Redirect` begin with";
const SET: &str = "X-Tenant=a";
const BURST_HELP: &str = "How many may come at once [default: the number in the rate]";
const DELAY_HELP: &str = "How long a request beyond that is made to wait rather than refused [default: 0]";
const BY_HELP: &str = "What clients are told apart by: their address, a field of the request, who they are by their credentials, or nothing \
    [default: client_ip]";
const BITS_HELP: &str = "How many bits of an address count [default: { v4 = 32, v6 = 64 }]";
const DRY_RUN_HELP: &str = "Counts what would be refused, and refuses nothing [default: false]";
const EVERYWHERE_HELP: &str = "It holds for all requests, and not only on routes that name it [default: false]";
const HEADERS_HELP: &str =
    "Answers to requests that pass say what is left, too, in `RateLimit` and `RateLimit-Policy` [default: false]";
const TOPICS_HELP: &str =
    "Which topics exist there; `*` stands for any run of characters, `/` and `.` among them [default: *]";
const COUNT_HELP: &str = "Messages of each topic that are kept for those who come back; 0: none [default: 100]";
const MEMORY_HELP: &str = "Memory that all its topics may take together [default: 64MiB]";
const MOST_TOPICS_HELP: &str = "Topics that there may be at once [default: 10000]";
const PER_SOCKET_HELP: &str = "Topics that one socket may listen to [default: 128]";
const PONG_HELP: &str = "How long the answer to a ping may take; then the socket is closed [default: 8s]";
const POLL_HELP: &str = "How long a long poll waits for a message [default: 25s]";
const ORIGINS_HELP: &str = "Which pages may open sockets and publish: same (those that come from the same scheme, host and port), an origin, or * for \
    all; programs that are no browsers send no origin [default: same]";
const PUBLISHERS_HELP: &str =
    "The file of the keys of those who may publish: lines NAME:SHA256; without it: whoever is on this machine";
const DEFLATE_HELP: &str = "Compress messages for sockets that offer it (permessage-deflate) [default: true]";
const HUB_APP_HELP: &str = "The app that takes part: what happens on sockets becomes requests to it";
const EVENTS_HELP: &str = "The path of these requests [default: /v1/realtime]";
const DIALECT_HELP: &str =
    "How these requests say what has happened, and how the app's answers are read [default: fields]";
const HUB_PATH_HELP: &str =
    "Below which path `listen`, `notify` and `topics` are, where no route is to the hub [default: /api/v1]";
const BUS_DIRECTORY_HELP: &str =
    "The directory by which replicas on this machine find each other: made if it is not there, and nobody else's";
const BUS_URL_HELP: &str = "The server over which machines share messages: Redis (redis://HOST:PORT, or rediss:// with TLS) or NATS (nats://, tls://)";
const BUS_CA_HELP: &str =
    "The file of the authorities that are trusted to say who that server is; without it: those that the system trusts";
const FLIGHT_HELP: &str = "Requests that may be under way at once, from their heads to the end of their answers; beyond: 503. So a slow \
    page cannot have all workers";
const BASIC_HELP: &str = "The file of those who get in with a password (htpasswd: bcrypt or argon2id), as `production_server hash-password` \
    makes its lines";
const REALM_HELP: &str = "What clients are told that the password is for [default: restricted]";
const KEYS_HELP: &str = "The file of API keys: lines NAME:SHA256";
const KEY_FIELD_HELP: &str = "The field that an API key comes in; in Authorization behind Bearer [default: X-Api-Key]";
const JWT_HELP: &str =
    "The file with the keys that tokens are signed with: a JSON Web Key Set, or a public key in PEM; or the URL of one";
const REFRESH_HELP: &str = "How often what lies at a URL is fetched [default: 1h]";
const FORWARD_HELP: &str =
    "The app that is asked about each request: 2xx lets it pass, and 401, 403 and 3xx go to the client";
const COPY_HELP: &str = "Fields of its answer that the request's own app is given, and that clients can send no more: none of those that show who they are";
const PATIENCE_HELP: &str = "How long its answer may take, with its place in line; then 503 [default: 5s]";
const SATISFY_HELP: &str = "Whether address, credentials and `forward_auth` must all be right, as far as they are said, or any of them is \
    enough: all or any [default: all]";
const ALLOW_HELP: &str = "Whose requests are taken, and of all others none: networks, addresses, loopback, unix";

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
    use super::super::tables::NOT_YET;
    use super::*;

    #[test]
    fn every_key_has_its_place_and_every_place_its_key() {
        for key in keys::all() {
            assert!(main_of(key.name).is_some(), "--{} has no place in the configuration file", key.name);
        }
        for place in PLACES {
            let known = place.key().is_some() || place.path == COMMAND || place.route.is_some();
            assert!(known, "{} has no key", place.path);
            let same = PLACES.iter().filter(|other| other.path == place.path && other.shape != Shape::False);
            assert_eq!(same.count(), 1, "{} twice", place.path);
            let (table, _) = place.path.rsplit_once('.').unwrap();
            assert!(is_table(table), "{table} is not described");
        }
        for (table, _) in TABLES {
            assert!(!names_in(table).is_empty(), "{table} is empty");
        }
        assert_eq!(
            names_in(""),
            ["server", "tls", "acme", "listen", "apps", "limits", "hub", "routes", "log", "metrics", "admin"]
        );
        assert!(NOT_YET.iter().all(|path| by_path(path).is_none() && !is_table(path)));
    }
}
