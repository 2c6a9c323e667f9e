//! Hubs as people say them: `[hub.NAME]`, and the flag for one with all defaults. What a hub may hold, and which pages may open sockets.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::keys::{Key, POSITIVE, key};
use super::route::{self, HostPattern, PathPattern};
use super::units::{choice, count, duration, size, switch};
use crate::access::Keys;

/// The hub that `--hub` makes.
pub const OF_FLAG: &str = "hub";
/// What is served below a hub's path.
pub const ENDS: [&str; 3] = ["listen", "notify", "topics"];
/// The longest name of a topic, and the longest pattern, in bytes.
const LONGEST_TOPIC: usize = 255;
/// The largest message that can be allowed, in bytes.
pub const LARGEST_MESSAGE: u64 = 16 << 20;
/// What memory there may be for topics, in bytes.
const MEMORY: RangeInclusive<u64> = 1 << 20..=1 << 40;
/// How old what is kept may get.
const AGE: RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(30 * 86_400);

/// The dialects, by their names.
const DIALECTS: &[(&str, Dialect)] = &[("fields", Dialect::Fields), ("websocket-events", Dialect::Events)];

/// The keys that say something of hubs.
pub const KEYS: &[Key] = &[key("hub", "", "", HUB_HELP, |settings, text| {
    let on = switch(text)?;
    settings.hubs.retain(|hub| hub.name != OF_FLAG);
    settings.hubs.extend(on.then(|| Hub { name: OF_FLAG.to_owned(), ..Hub::default() }));
    Ok(())
})
.example("on")];

const HUB_HELP: &str = "Hold WebSockets and event streams at /api/v1/listen and send them what is posted to /api/v1/notify. [hub.NAME] in the \
    file says more";

/// A hub: topics, who may publish to them, and what they may hold. Checked: every number is within its range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// Its name.
    pub name: String,
    /// Patterns of the topics that exist there, at least one, each of 1 to 255 bytes without white space and control characters; `*` stands
    /// for any run of characters.
    pub topics: Vec<String>,
    /// What is kept of each topic.
    pub history: History,
    /// What there is room for.
    pub room: Room,
    /// How often a socket is pinged.
    pub ping: Duration,
    /// How long its answer may take.
    pub pong: Duration,
    /// How long a long poll waits.
    pub poll: Duration,
    /// Which pages may open sockets and publish, at least one; what comes from no page has no origin, and is not meant.
    pub origins: Vec<Origin>,
    /// The keys of those who may publish; `None`: whoever is on this machine may, and nobody else.
    pub keys: Option<Arc<Keys>>,
    /// Whether messages are compressed for sockets that offer it (permessage-deflate, RFC 7692).
    pub deflate: bool,
    /// Who takes part.
    pub participant: Participant,
    /// Below which path it is served where no route is to it; without a slash at its end, and empty for the root.
    pub path: String,
    /// With whom it shares its messages; `None`: with nobody.
    pub bus: Option<Bus>,
}

/// How much of each topic is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct History {
    /// How many messages, 0 to 1000000; 0: none.
    pub count: usize,
    /// How many bytes of them.
    pub bytes: usize,
    /// For how long.
    pub age: Duration,
}

/// What a hub has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes that all topics together may hold; at least as many as one message may have.
    pub memory: usize,
    /// Topics that there may be at once, 1 to 10000000.
    pub topics: usize,
    /// The most bytes of one message, 1 to 16 MiB.
    pub message: usize,
    /// Topics that one socket may listen to, 1 to 100000.
    pub topics_per_socket: usize,
}

/// The app that takes part in a hub: what happens on sockets becomes requests to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Participant {
    /// Its name; `None`: nobody takes part.
    pub app: Option<String>,
    /// The path of these requests.
    pub path: String,
    /// How they say what has happened, and how the app's answers are read.
    pub dialect: Dialect,
}

/// How the app that takes part in a hub is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Dialect {
    /// What has happened stands in fields.
    #[default]
    Fields,
    /// It stands in the body, as `application/websocket-events`.
    Events,
}

/// What a hub shares its messages over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bus {
    /// With other replicas on this machine that have the same directory, by an absolute path.
    Directory(PathBuf),
    /// With other machines, over Redis.
    Redis(Remote),
    /// With other machines, over NATS.
    Nats(Remote),
}

impl Bus {
    /// Whether it is the same one, though who gets in there, or how it is reached, may be said otherwise.
    pub fn is_same(&self, other: &Bus) -> bool {
        match (self, other) {
            (Bus::Redis(one), Bus::Redis(other)) | (Bus::Nats(one), Bus::Nats(other)) => {
                (&one.host, one.port) == (&other.host, other.port)
            }
            _ => self == other,
        }
    }
}

/// A server that others share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Its name or address; an IPv6 address without its brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether TLS is spoken there.
    pub tls: bool,
    /// Who is to get in.
    pub user: Option<String>,
    /// With what.
    pub password: Option<Secret>,
    /// The file of those that are trusted to say who it is; `None`: whom the system trusts.
    pub ca_file: Option<PathBuf>,
}

/// What is shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret")
    }
}

/// Reads an address such as `rediss://cache.example:6380`.
fn remote(text: &str) -> Option<(bool, Remote)> {
    let (scheme, place) = text.split_once("://")?;
    let (is_redis, tls, port) = match scheme {
        "redis" => (true, false, 6379),
        "rediss" => (true, true, 6379),
        "nats" => (false, false, 4222),
        "tls" => (false, true, 4222),
        _ => return None,
    };
    let (host, port) = match place.rsplit_once(':') {
        Some((host, digits)) if !host.is_empty() && !digits.ends_with(']') => {
            (host, digits.parse().ok().filter(|port| *port != 0)?)
        }
        _ => (place, port),
    };
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let is_host = match bare {
        Some(bare) => bare.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(is_plain),
    };
    let host = bare.unwrap_or(host).to_owned();
    is_host.then_some((is_redis, Remote { host, port, tls, user: None, password: None, ca_file: None }))
}

impl Default for Hub {
    /// One without a name.
    fn default() -> Hub {
        Hub {
            name: String::new(),
            topics: vec!["*".to_owned()],
            history: History { count: 100, bytes: 1 << 20, age: Duration::from_secs(300) },
            room: Room { memory: 64 << 20, topics: 10_000, message: 64 << 10, topics_per_socket: 128 },
            ping: Duration::from_secs(25),
            pong: Duration::from_secs(8),
            poll: Duration::from_secs(25),
            origins: vec![Origin::Same],
            keys: None,
            deflate: true,
            participant: Participant { app: None, path: "/v1/realtime".to_owned(), dialect: Dialect::default() },
            path: "/api/v1".to_owned(),
            bus: None,
        }
    }
}

/// Which pages may open sockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Those that come from where the socket is opened: scheme, host and port are the same.
    Same,
    /// All, also those that have no origin to show ("null").
    Any,
    /// Those of that origin.
    Of {
        /// Whether its scheme is https, and not http.
        secure: bool,
        /// Its host in lower case; an IPv6 address in its brackets.
        host: String,
        /// Its port.
        port: u16,
    },
}

impl Origin {
    /// Reads `same`, `*`, or an origin (RFC 6454 §6.2) such as `https://shop.example:8443`.
    pub(super) fn read(text: &str) -> Result<Origin, String> {
        let of = |text: &str| {
            let (secure, host, port) = parts(text.as_bytes()).filter(|_| !text.ends_with(':'))?;
            match route::host(std::str::from_utf8(host).ok()?) {
                Ok(HostPattern::Exact(host)) => Some(Origin::Of { secure, host, port }),
                _ => None,
            }
        };
        let found = match text {
            "same" => Some(Origin::Same),
            "*" => Some(Origin::Any),
            _ => of(text),
        };
        found.ok_or_else(|| "expected same, *, or an origin such as https://shop.example without a path".to_owned())
    }

    /// Whether a page of that origin, as its browser says it in `Origin`, may open a socket by a request to that authority; `secure`: the
    /// client came by https.
    pub fn admits(&self, origin: &[u8], authority: &[u8], secure: bool) -> bool {
        let is = |(own_secure, own_host, own_port): (bool, &[u8], u16)| {
            parts(origin).is_some_and(|(secure, host, port)| {
                (secure, port) == (own_secure, own_port) && host.eq_ignore_ascii_case(own_host)
            })
        };
        match self {
            Origin::Any => true,
            Origin::Same => host_and_port(authority, secure).is_some_and(|(host, port)| is((secure, host, port))),
            Origin::Of { secure, host, port } => is((*secure, host.as_bytes(), *port)),
        }
    }
}

/// Whether an origin's scheme is https, its host and its port. "null" has none of them.
fn parts(origin: &[u8]) -> Option<(bool, &[u8], u16)> {
    let behind = |scheme: &str| {
        let (start, rest) = origin.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme.as_bytes()).then_some(rest)
    };
    let secure = behind("https://");
    let (host, port) = host_and_port(secure.or_else(|| behind("http://"))?, secure.is_some())?;
    Some((secure.is_some(), host, port))
}

/// The host of an authority, and its port or that of its scheme.
fn host_and_port(authority: &[u8], secure: bool) -> Option<(&[u8], u16)> {
    let find = |byte: u8| authority.iter().position(|found| *found == byte);
    let end = if authority.starts_with(b"[") { find(b']')? + 1 } else { find(b':').unwrap_or(authority.len()) };
    let (host, port) = authority.split_at(end);
    let port = match port {
        [] | [b':'] => [80, 443][usize::from(secure)],
        [b':', digits @ ..] if digits.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(digits).ok()?.parse().ok()?
        }
        _ => return None,
    };
    (!host.is_empty()).then_some((host, port))
}

/// What is said of one hub.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Without its lists, as long as they are not said.
    hub: Hub,
    /// The file of publishers' keys.
    pub(super) keys: Option<String>,
    bus: BusDraft,
}

/// What is said of its bus.
#[derive(Clone, Debug, Default)]
struct BusDraft {
    directory: Option<PathBuf>,
    remote: Option<(bool, Remote)>,
    user: Option<String>,
    password: Option<Secret>,
    ca_file: Option<PathBuf>,
}

impl Default for Draft {
    fn default() -> Draft {
        Draft {
            hub: Hub { topics: Vec::new(), origins: Vec::new(), ..Hub::default() },
            keys: None,
            bus: BusDraft::default(),
        }
    }
}

impl Draft {
    pub(super) fn topic(&mut self, text: &str) -> Result<(), String> {
        let plain = |letter: char| !letter.is_whitespace() && !letter.is_control();
        if text.is_empty() || text.len() > LONGEST_TOPIC || !text.chars().all(plain) {
            return Err(format!(
                "expected a topic or a pattern of topics, 1 to {LONGEST_TOPIC} bytes without spaces and control characters"
            ));
        }
        self.hub.topics.push(text.to_owned());
        Ok(())
    }

    pub(super) fn history_count(&mut self, text: &str) -> Result<(), String> {
        count(text, 0..=1_000_000).map(|count| self.hub.history.count = count as usize)
    }

    pub(super) fn history_bytes(&mut self, text: &str) -> Result<(), String> {
        bytes(text, 1..=*MEMORY.end()).map(|bytes| self.hub.history.bytes = bytes)
    }

    pub(super) fn history_age(&mut self, text: &str) -> Result<(), String> {
        duration(text, AGE).map(|age| self.hub.history.age = age)
    }

    pub(super) fn memory(&mut self, text: &str) -> Result<(), String> {
        bytes(text, MEMORY).map(|bytes| self.hub.room.memory = bytes)
    }

    pub(super) fn most_topics(&mut self, text: &str) -> Result<(), String> {
        count(text, 1..=10_000_000).map(|count| self.hub.room.topics = count as usize)
    }

    pub(super) fn message(&mut self, text: &str) -> Result<(), String> {
        bytes(text, 1..=LARGEST_MESSAGE).map(|bytes| self.hub.room.message = bytes)
    }

    pub(super) fn topics_per_socket(&mut self, text: &str) -> Result<(), String> {
        count(text, 1..=100_000).map(|count| self.hub.room.topics_per_socket = count as usize)
    }

    pub(super) fn ping(&mut self, text: &str) -> Result<(), String> {
        duration(text, POSITIVE).map(|ping| self.hub.ping = ping)
    }

    pub(super) fn pong(&mut self, text: &str) -> Result<(), String> {
        duration(text, POSITIVE).map(|pong| self.hub.pong = pong)
    }

    pub(super) fn poll(&mut self, text: &str) -> Result<(), String> {
        duration(text, POSITIVE).map(|poll| self.hub.poll = poll)
    }

    pub(super) fn origin(&mut self, text: &str) -> Result<(), String> {
        Origin::read(text).map(|origin| self.hub.origins.push(origin))
    }

    pub(super) fn deflate(&mut self, text: &str) -> Result<(), String> {
        switch(text).map(|on| self.hub.deflate = on)
    }

    pub(super) fn app(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() {
            return Err("expected the name of an app".to_owned());
        }
        self.hub.participant.app = Some(text.to_owned());
        Ok(())
    }

    pub(super) fn events(&mut self, text: &str) -> Result<(), String> {
        let Ok(PathPattern::Exact(path)) = route::path(text) else {
            return Err("expected a path such as /v1/realtime".to_owned());
        };
        self.hub.participant.path = path;
        Ok(())
    }

    pub(super) fn dialect(&mut self, text: &str) -> Result<(), String> {
        choice(text, DIALECTS).map(|dialect| self.hub.participant.dialect = dialect)
    }

    pub(super) fn path(&mut self, text: &str) -> Result<(), String> {
        let Ok(PathPattern::Exact(path)) = route::path(text) else {
            return Err("expected a path such as /api/v1".to_owned());
        };
        path.trim_end_matches('/').clone_into(&mut self.hub.path);
        Ok(())
    }

    pub(super) fn bus_directory(&mut self, text: &str) -> Result<(), String> {
        let path = Path::new(text);
        if !path.is_absolute() {
            return Err("expected a path that begins with /".to_owned());
        }
        self.bus.directory = Some(path.to_owned());
        Ok(())
    }

    pub(super) fn bus_url(&mut self, text: &str) -> Result<(), String> {
        let expected = "expected redis://, rediss://, nats:// or tls:// with a host and perhaps a port; the user and the password have keys of \
            their own";
        self.bus.remote = Some(remote(text).ok_or(expected)?);
        Ok(())
    }

    pub(super) fn bus_user(&mut self, text: &str) -> Result<(), String> {
        word(text).map(|user| self.bus.user = Some(user))
    }

    pub(super) fn bus_password(&mut self, text: &str) -> Result<(), String> {
        word(text).map(|password| self.bus.password = Some(Secret(password)))
    }

    pub(super) fn bus_ca_file(&mut self, text: &str) -> Result<(), String> {
        route::file(text).map(|path| self.bus.ca_file = Some(path.into()))
    }

    /// The hub that is said, with those keys, or what is wrong with it as a whole.
    pub(super) fn hub(&self, name: &str, keys: Option<Arc<Keys>>) -> Result<Hub, String> {
        let mut hub = Hub { name: name.to_owned(), keys, ..self.hub.clone() };
        if hub.topics.is_empty() {
            hub.topics = Hub::default().topics;
        }
        if hub.origins.is_empty() {
            hub.origins = Hub::default().origins;
        }
        hub.bus = self.bus.bus()?;
        if hub.room.message > hub.room.memory {
            return Err("expected `memory` to have room for the largest `message`".to_owned());
        }
        Ok(hub)
    }
}

impl BusDraft {
    fn bus(&self) -> Result<Option<Bus>, String> {
        let BusDraft { directory, remote, user, password, ca_file } = self.clone();
        let of_remote = user.is_some() || password.is_some() || ca_file.is_some();
        match (directory, remote) {
            (Some(_), Some(_)) => Err("expected one of `bus.directory` and `bus.url`".to_owned()),
            (directory, None) if of_remote => {
                let what = if directory.is_some() { "a directory has none of them" } else { "there is no `bus.url`" };
                Err(format!("`user`, `password` and `ca_file` belong to a `bus.url`: {what}"))
            }
            (directory, None) => Ok(directory.map(Bus::Directory)),
            (None, Some((_, remote))) if ca_file.is_some() && !remote.tls => {
                Err("`bus.ca_file` is for rediss:// and tls://".to_owned())
            }
            (None, Some(_)) if user.is_some() && password.is_none() => {
                Err("`bus.user` needs a `bus.password`".to_owned())
            }
            (None, Some((is_redis, remote))) => {
                let remote = Remote { user, password, ca_file, ..remote };
                Ok(Some(if is_redis { Bus::Redis(remote) } else { Bus::Nats(remote) }))
            }
        }
    }
}

/// A value that is not empty and has no controls.
fn word(text: &str) -> Result<String, String> {
    match text.is_empty() || text.chars().any(char::is_control) {
        true => Err("expected at least one character, and no controls".to_owned()),
        false => Ok(text.to_owned()),
    }
}

fn bytes(text: &str, range: RangeInclusive<u64>) -> Result<usize, String> {
    usize::try_from(size(text, range)?).map_err(|_| "expected less memory".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::places::PLACES;
    use super::*;

    /// What the help states as defaults, read as values, gives what [`Hub::default`] holds, and no key is without one but that which has none.
    #[test]
    fn the_defaults_of_the_help_are_true() {
        let mut draft = route::Draft::default();
        let mut without = Vec::new();
        for place in PLACES.iter().filter(|place| place.path.starts_with("hub.")) {
            let route = place.route.unwrap();
            match route.help.split_once(" [default: ") {
                Some((_, default)) => assert_eq!((route.set)(&mut draft, default.trim_end_matches(']')), Ok(())),
                None => without.push(place.last()),
            }
            assert_eq!((route.set)(&mut route::Draft::default(), route.example), Ok(()), "{}", place.path);
        }
        assert_eq!(without, ["keys", "app", "directory", "url", "user", "password", "ca_file"]);
        assert_eq!(draft.named.hub.hub("", None), Ok(Hub::default()));
        assert_eq!(Draft::default().hub("", None), Ok(Hub::default()));
    }

    #[test]
    fn a_list_takes_the_place_of_the_default() {
        let mut draft = Draft::default();
        draft.topic("chat.*").unwrap();
        draft.origin("*").unwrap();
        let hub = draft.hub("a", None).unwrap();
        assert_eq!((hub.topics, hub.origins), (vec!["chat.*".to_owned()], vec![Origin::Any]));
    }

    #[test]
    fn a_hub_has_room_for_one_message() {
        let mut draft = Draft::default();
        draft.memory("1MiB").unwrap();
        draft.message("1MiB").unwrap();
        assert!(draft.hub("a", None).is_ok());
        draft.message("1048577").unwrap();
        assert!(draft.hub("a", None).unwrap_err().contains("`memory`"));
    }

    #[test]
    fn a_bus_is_a_directory_or_a_server() {
        type Say = fn(&mut Draft) -> Result<(), String>;
        let bus = |says: &[Say]| {
            let mut draft = Draft::default();
            says.iter().try_for_each(|say| say(&mut draft))?;
            draft.hub("a", None).map(|hub| hub.bus)
        };
        assert_eq!(bus(&[]), Ok(None));
        assert_eq!(bus(&[|it| it.bus_directory("/run/x")]), Ok(Some(Bus::Directory("/run/x".into()))));
        let remote = |host: &str, port, tls| Remote {
            host: host.to_owned(),
            port,
            tls,
            user: None,
            password: None,
            ca_file: None,
        };
        assert_eq!(bus(&[|it| it.bus_url("redis://a")]), Ok(Some(Bus::Redis(remote("a", 6379, false)))));
        assert_eq!(bus(&[|it| it.bus_url("rediss://[::1]:7")]), Ok(Some(Bus::Redis(remote("::1", 7, true)))));
        assert_eq!(bus(&[|it| it.bus_url("nats://10.0.0.1")]), Ok(Some(Bus::Nats(remote("10.0.0.1", 4222, false)))));
        let whole = bus(&[
            |it| it.bus_url("tls://n.example:4443"),
            |it| it.bus_user("anna"),
            |it| it.bus_password("hunter2"),
            |it| it.bus_ca_file("/ca.pem"),
        ]);
        let (user, password) = (Some("anna".to_owned()), Some(Secret("hunter2".to_owned())));
        let ca_file = Some("/ca.pem".into());
        let expected = Bus::Nats(Remote { user, password, ca_file, ..remote("n.example", 4443, true) });
        assert_eq!(whole, Ok(Some(expected.clone())));
        assert!(!format!("{expected:?}").contains("hunter2"));
        for wrong in [
            "",
            "a",
            "http://a",
            "redis://",
            "redis://a:0",
            "redis://a:x",
            "redis://u:p@a",
            "redis://a/1",
            "redis://[::1",
            "redis://::1",
        ] {
            assert!(Draft::default().bus_url(wrong).is_err(), "{wrong}");
        }
        assert!(Draft::default().bus_directory("run/x").is_err());
        assert!(bus(&[|it| it.bus_directory("/x"), |it| it.bus_url("redis://a")]).is_err());
        assert!(bus(&[|it| it.bus_directory("/x"), |it| it.bus_user("a")]).unwrap_err().contains("directory"));
        assert!(bus(&[|it| it.bus_password("a")]).is_err());
        assert!(bus(&[|it| it.bus_url("redis://a"), |it| it.bus_user("a")]).is_err());
        assert!(bus(&[|it| it.bus_url("redis://a"), |it| it.bus_ca_file("/a")]).is_err());
    }

    #[test]
    fn topics_and_paths_are_read_as_people_write_them() {
        let mut draft = Draft::default();
        let longest = "ä".repeat(127) + "x";
        for text in ["*", "chat/*", "chat.*.room-7", "ä", "a,b", longest.as_str()] {
            assert_eq!(draft.topic(text), Ok(()), "{text}");
        }
        let too_long = longest.clone() + "x";
        for text in ["", " ", "a b", "a\tb", "a\u{a0}b", "a\u{7f}", "\0", too_long.as_str()] {
            assert!(draft.topic(text).unwrap_err().starts_with("expected a topic"), "{text}");
        }
        assert_eq!(draft.hub.topics.len(), 6);
        for (text, path) in [("/api/v1", "/api/v1"), ("/bus/", "/bus"), ("/", "")] {
            assert_eq!((draft.path(text), draft.hub.path.as_str()), (Ok(()), path));
        }
        for text in ["", "api", "/api/*", "/a//b", "/a/../b", "/a?b", "/a b"] {
            assert!(draft.path(text).is_err(), "{text}");
        }
    }

    #[test]
    fn origins_are_read_as_browsers_write_them() {
        let of = |secure, host: &str, port| Ok(Origin::Of { secure, host: host.to_owned(), port });
        assert_eq!((Origin::read("same"), Origin::read("*")), (Ok(Origin::Same), Ok(Origin::Any)));
        assert_eq!(Origin::read("https://Shop.example"), of(true, "shop.example", 443));
        assert_eq!(Origin::read("HTTP://shop.example:8080"), of(false, "shop.example", 8080));
        assert_eq!(Origin::read("http://[::1]:3000"), of(false, "[::1]", 3000));
        for text in [
            "",
            "null",
            "shop.example",
            "//shop.example",
            "ws://shop.example",
            "https://",
            "https://:443",
            "https://shop.example/",
            "https://shop.example:",
            "https://shop.example:65536",
            "https://shop.example:8x",
            "https://anna@shop.example",
            "https://*.shop.example",
            "https://shop.example https://other.example",
            "https://[::1",
            "https://ä.example",
        ] {
            assert!(Origin::read(text).unwrap_err().starts_with("expected same"), "{text}");
        }
    }

    #[test]
    fn pages_are_told_apart_by_scheme_host_and_port() {
        let named = |text: &str| Origin::read(text).unwrap();
        for (rule, origin, authority, secure, admitted) in [
            ("same", "https://shop.example", "shop.example", true, true),
            ("same", "https://shop.example", "SHOP.example:443", true, true),
            ("same", "https://Shop.Example:443", "shop.example", true, true),
            ("same", "http://shop.example", "shop.example:80", false, true),
            ("same", "http://localhost:3000", "localhost:3000", false, true),
            ("same", "http://[::1]:3000", "[::1]:3000", false, true),
            ("same", "https://shop.example", "shop.example", false, false),
            ("same", "http://shop.example", "shop.example", true, false),
            ("same", "https://shop.example:8443", "shop.example", true, false),
            ("same", "https://shop.example", "shop.example:8443", true, false),
            ("same", "https://shop.example.evil.example", "shop.example", true, false),
            ("same", "https://evil-shop.example", "shop.example", true, false),
            ("same", "https://shop.example@evil.example", "shop.example", true, false),
            ("same", "https://shop.example/", "shop.example", true, false),
            ("same", "https://shop.example https://evil.example", "shop.example", true, false),
            ("same", "null", "shop.example", true, false),
            ("same", "null", "null", false, false),
            ("same", "", "", false, false),
            ("same", "http://", "", false, false),
            ("same", "http://:80", ":80", false, false),
            ("same", "http://a:99999", "a:99999", false, false),
            ("same", "http://[::1", "[::1", false, false),
            ("https://shop.example", "https://shop.example", "api.example", false, true),
            ("https://shop.example", "https://SHOP.example:443", "", false, true),
            ("https://shop.example", "http://shop.example", "shop.example", true, false),
            ("https://shop.example", "http://shop.example:443", "shop.example", true, false),
            ("https://shop.example", "https://a.shop.example", "shop.example", true, false),
            ("https://shop.example:8443", "https://shop.example", "shop.example", true, false),
            ("http://[::1]:3000", "http://[::1]:3000", "a", true, true),
            ("https://shop.example", "null", "shop.example", true, false),
            ("*", "https://evil.example", "shop.example", true, true),
            ("*", "null", "shop.example", true, true),
        ] {
            let found = named(rule).admits(origin.as_bytes(), authority.as_bytes(), secure);
            assert_eq!(found, admitted, "{rule}: {origin} at {authority}, secure: {secure}");
        }
        assert!(!Origin::Same.admits(b"http://\xff", b"\xfe", false));
    }
}
