//! Routes: which requests go where, and what is changed on the way. The values that they consist of, and how those are read from text.
//!
//! The first route that matches is taken. What a request's path is, and how a pattern is compared with it, has `http/route.rs`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::{Balance, Compressing, ErrorPage, Peers, Settings, Upstream};
use crate::access::{Auth, Forward, Rules};

/// One route. All that is said of the request must hold for it to be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Which requests it is for.
    pub matching: Matching,
    /// Who answers them.
    pub to: Target,
    /// Where files lie that the app may name in its place (`X-Sendfile`, `X-Accel-Redirect`).
    pub sendfile: Option<Files>,
    /// What becomes of the path on its way to an app.
    pub rewrite: Rewrite,
    /// What becomes of the request's fields on their way to an app.
    pub request_fields: FieldEdits,
    /// What becomes of the answer's fields.
    pub response_fields: FieldEdits,
    /// How answers are compressed, where the route says so itself.
    pub compress: Option<Compressing>,
    /// What is shown in the place of the server's own errors, before what the app and the server show.
    pub error_pages: Vec<ErrorPage>,
    /// Who gets in.
    pub access: Access,
}

/// Who gets in by a route, and how often.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Whose requests are taken; if it is nobody, all are.
    pub allow: Peers,
    /// Whose requests are refused.
    pub deny: Peers,
    /// The names of its limits.
    pub limits: Vec<String>,
    /// How many of its requests may be under way at once; `None`: as many as the app takes.
    pub max_in_flight: Option<u32>,
    /// What clients have to show; `None`: nothing.
    pub auth: Option<Auth>,
}

impl Access {
    /// Whether it names who gets in, by addresses or by what they show.
    pub fn is_for_some(&self) -> bool {
        self.auth.is_some() || !self.allow.is_empty()
    }
}

/// What is said of who gets in by a route.
#[derive(Clone, Debug, Default)]
pub struct AccessDraft {
    pub(super) allow: Peers,
    pub(super) deny: Peers,
    pub(super) limits: Vec<String>,
    pub(super) max_in_flight: Option<u32>,
    pub(super) basic: Option<String>,
    pub(super) realm: Option<String>,
    pub(super) keys: Option<String>,
    pub(super) key_field: Option<String>,
    pub(super) jwt: Option<String>,
    /// How often what lies at a URL is fetched.
    pub(super) refresh: Option<Duration>,
    pub(super) rules: Rules,
    pub(super) forward: Forward,
    pub(super) any: Option<bool>,
    /// What was made of all that, once the files are read.
    pub(super) read: Option<Auth>,
}

impl Route {
    /// Everything to one app.
    pub fn all_to(app: usize) -> Route {
        Route {
            matching: Matching::default(),
            to: Target::App(app),
            sendfile: None,
            rewrite: Rewrite::default(),
            request_fields: FieldEdits::default(),
            response_fields: FieldEdits::default(),
            compress: None,
            error_pages: Vec::new(),
            access: Access::default(),
        }
    }
}

/// Which requests a route is for; empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matching {
    /// The host that is asked for.
    pub host: Option<HostPattern>,
    /// The path without the query.
    pub path: Option<PathPattern>,
    /// One of these methods, in capitals where they are the usual ones; empty: any.
    pub methods: Vec<String>,
}

/// A host in lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// That name or address; an IPv6 address in its brackets.
    Exact(String),
    /// Every name below that one, which begins with a dot: `*.example.org`, and not `example.org` itself.
    Below(String),
}

/// A path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathPattern {
    /// That path.
    Exact(String),
    /// All that begin so: `/api/*` is written for `/api/` and what lies below it.
    Prefix(String),
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An app, by its index.
    App(usize),
    /// The loop, always alike.
    Respond(Respond),
    /// The loop, with another place.
    Redirect(Redirect),
    /// A hub, by its index.
    Hub(usize),
    /// The loop, with files; the app that stands for all such routes, by its index, has no part in it.
    Files(Files, usize),
}

/// A fixed answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// Its body; empty for 204 and 304.
    pub body: String,
    /// Its Content-Type.
    pub content_type: String,
}

/// A redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The Location, in pieces.
    pub to: Vec<Piece>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A piece of a Location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text.
    Text(String),
    /// `{path}`: the request's path without the query.
    Path,
    /// `{query}`: the query with its question mark, or nothing.
    Query,
    /// `{host}`: the host without a port.
    Host,
}

/// Files that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The directory that they lie in.
    pub root: PathBuf,
    /// Taken from the front of the path, where it ends at a slash or with the path; without a slash at its end.
    pub prefix: String,
    /// What a directory shows, the first that is there: names without a slash.
    pub index: Vec<String>,
    /// What is served where nothing has the name that was asked for; begins with a slash.
    pub fallback: Option<String>,
    /// `Cache-Control` of what is not immutable; empty: none is said.
    pub cache: String,
    /// Patterns of names that never change their content; `*` stands for anything.
    pub immutable: Vec<String>,
}

impl Default for Files {
    fn default() -> Files {
        Files {
            root: PathBuf::new(),
            prefix: String::new(),
            index: vec!["index.html".to_owned()],
            fallback: None,
            cache: String::new(),
            immutable: Vec::new(),
        }
    }
}

/// What becomes of a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Taken from its front, where it ends at a slash or with the path; without a slash at its end.
    pub strip: String,
    /// Put in front of what is left; without a slash at its end.
    pub prefix: String,
}

/// What becomes of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldEdits {
    /// Fields that have this value and no other, whatever came.
    pub set: Vec<(String, String)>,
    /// Fields that are taken out.
    pub remove: Vec<String>,
}

impl FieldEdits {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.remove.is_empty()
    }

    /// Two names of one field, of which more than one thing is said.
    pub fn clash(&self) -> Option<(&str, &str)> {
        let names = || self.set.iter().map(|(name, _)| name).chain(&self.remove);
        let is_one = |one: &str, other: &str| is_same_to_apps(one.as_bytes(), other.as_bytes());
        self.set.iter().zip(1..).find_map(|((one, _), next)| {
            names().skip(next).find(|other| is_one(one, other)).map(|other| (one.as_str(), other.as_str()))
        })
    }
}

/// What is said of a route, before it is known whether it is whole.
#[derive(Debug, Default)]
pub struct Draft {
    pub(super) matching: Matching,
    pub(super) app: Option<String>,
    pub(super) to_hub: Option<String>,
    pub(super) upstreams: Vec<Upstream>,
    pub(super) balance: Option<Balance>,
    /// What is said of its own upstreams, as keys have it.
    pub(super) own: Option<Box<Settings>>,
    pub(super) respond: Option<Respond>,
    pub(super) redirect: Option<Redirect>,
    /// Without an index, as long as none is said.
    pub(super) files: Option<Files>,
    pub(super) sendfile: Option<Files>,
    pub(super) rewrite: Rewrite,
    pub(super) request_fields: FieldEdits,
    pub(super) response_fields: FieldEdits,
    pub(super) access: AccessDraft,
    /// What is said of something else whose table is read as a route's.
    pub(super) named: NamedDraft,
}

/// What is said of a limit, or of a hub.
#[derive(Debug, Default)]
pub struct NamedDraft {
    pub(super) limit: super::limits::Draft,
    pub(super) hub: super::hub::Draft,
}

impl Draft {
    pub(super) fn respond(&mut self) -> &mut Respond {
        self.respond.get_or_insert_with(|| Respond {
            status: 200,
            body: String::new(),
            content_type: "text/plain; charset=utf-8".to_owned(),
        })
    }

    pub(super) fn files(&mut self) -> &mut Files {
        self.files.get_or_insert_with(|| Files { index: Vec::new(), ..Files::default() })
    }

    /// The files that are served, with the usual index where none is said.
    pub(super) fn served(&self) -> Option<Files> {
        let mut files = self.files.clone()?;
        if files.index.is_empty() {
            files.index = Files::default().index;
        }
        Some(files)
    }

    pub(super) fn sendfile(&mut self) -> &mut Files {
        self.sendfile.get_or_insert_default()
    }

    pub(super) fn own(&mut self) -> &mut Settings {
        self.own.get_or_insert_with(Box::default)
    }

    pub(super) fn redirect(&mut self) -> &mut Redirect {
        self.redirect.get_or_insert_with(|| Redirect { to: Vec::new(), status: 302 })
    }
}

impl FieldEdits {
    /// Reads `NAME=VALUE`.
    pub(super) fn set(&mut self, text: &str) -> Result<(), String> {
        let (name, text) = text.split_once('=').ok_or("expected the name of a field and its value")?;
        self.set.push((field(name)?, value(text)?));
        Ok(())
    }
}

impl HostPattern {
    /// Whether every host that the other takes is taken.
    pub fn covers(&self, other: &HostPattern) -> bool {
        match (self, other) {
            (HostPattern::Exact(one), HostPattern::Exact(other)) => one == other,
            (HostPattern::Exact(_), HostPattern::Below(_)) => false,
            (HostPattern::Below(suffix), HostPattern::Exact(name) | HostPattern::Below(name)) => {
                name.ends_with(suffix) && (name.len() > suffix.len() || matches!(other, HostPattern::Below(_)))
            }
        }
    }
}

impl PathPattern {
    /// Whether every path that the other takes is taken.
    pub fn covers(&self, other: &PathPattern) -> bool {
        match (self, other) {
            (PathPattern::Exact(one), PathPattern::Exact(other)) => one == other,
            (PathPattern::Exact(_), PathPattern::Prefix(_)) => false,
            (PathPattern::Prefix(prefix), PathPattern::Exact(path) | PathPattern::Prefix(path)) => {
                path.starts_with(prefix.as_str())
            }
        }
    }
}

impl Matching {
    /// Whether every request that the other is for is taken.
    pub fn covers(&self, other: &Matching) -> bool {
        let host = match (&self.host, &other.host) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(one), Some(other)) => one.covers(other),
        };
        let path = match (&self.path, &other.path) {
            (None, _) => true,
            (Some(PathPattern::Prefix(prefix)), None) => prefix == "/",
            (Some(_), None) => false,
            (Some(one), Some(other)) => one.covers(other),
        };
        let methods = self.methods.is_empty()
            || !other.methods.is_empty() && other.methods.iter().all(|method| self.methods.contains(method));
        host && path && methods
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) => formatter.write_str(name),
            HostPattern::Below(suffix) => write!(formatter, "*{suffix}"),
        }
    }
}

impl fmt::Display for PathPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathPattern::Exact(path) => formatter.write_str(path),
            PathPattern::Prefix(prefix) => write!(formatter, "{prefix}*"),
        }
    }
}

impl fmt::Display for Matching {
    /// As a label shows it: `GET|HEAD *.example.org/api/*`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.methods.is_empty() {
            write!(formatter, "{} ", self.methods.join("|"))?;
        }
        if let Some(host) = &self.host {
            host.fmt(formatter)?;
        }
        match &self.path {
            Some(path) => path.fmt(formatter),
            None => formatter.write_str("/*"),
        }
    }
}

/// A host, or `*.` and the name below which it is.
pub fn host(text: &str) -> Result<HostPattern, String> {
    let expected = || {
        "expected a host such as example.org or [::1] without a port, or *.example.org for all names below it"
            .to_owned()
    };
    let (below, name) = text.strip_prefix("*.").map_or((false, text), |rest| (true, rest));
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let literal = plain_v6(&name);
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let fine = match literal {
        Some(_) => !below,
        None => name.bytes().all(letter) && name.split('.').all(|label| !label.is_empty()),
    };
    if !fine || name.is_empty() || name.len() > 253 {
        return Err(expected());
    }
    let name = literal.unwrap_or(name);
    Ok(if below { HostPattern::Below(format!(".{name}")) } else { HostPattern::Exact(name) })
}

/// An IPv6 address in its brackets, as there is one way to write it (RFC 5952).
pub fn plain_v6(host: &str) -> Option<String> {
    let address: std::net::Ipv6Addr = host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()?;
    Some(format!("[{address}]"))
}

/// A path, or the beginning of one and a `*`.
pub fn path(text: &str) -> Result<PathPattern, String> {
    let (prefix, text) = text.strip_suffix('*').map_or((false, text), |rest| (true, rest));
    let expected = "expected a path such as /about, or /api/* for all that begin with /api/";
    let plain = |byte: u8| byte.is_ascii_graphic() && !b"?#*%\\".contains(&byte) || byte >= 0x80;
    if !text.starts_with('/') || !text.bytes().all(plain) {
        return Err(expected.to_owned());
    }
    if text.contains("//") || text.split('/').any(|segment| segment == "." || segment == "..") {
        return Err(format!("{expected}; without // and dots, which a request's path is freed of before"));
    }
    Ok(if prefix { PathPattern::Prefix(text.to_owned()) } else { PathPattern::Exact(text.to_owned()) })
}

/// A method.
pub fn method(text: &str) -> Result<String, String> {
    let usual = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"];
    if let Some(usual) = usual.iter().find(|usual| usual.eq_ignore_ascii_case(text)) {
        return Ok((*usual).to_owned());
    }
    let fine = is_token(text) && text != "CONNECT";
    if fine { Ok(text.to_owned()) } else { Err("expected a method such as GET".to_owned()) }
}

/// What an app is asked for: a path, perhaps with a query.
pub fn target(text: &str) -> Result<String, String> {
    let fine = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if fine { Ok(text.to_owned()) } else { Err("expected a path such as /verify".to_owned()) }
}

/// The beginning of a path that is taken off or put on.
pub fn part(text: &str) -> Result<String, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#".contains(&byte));
    if !text.starts_with('/') || !plain {
        return Err("expected the beginning of a path, as in /api".to_owned());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// A directory with files.
pub fn root(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("expected the path of a directory".to_owned());
    }
    Ok(PathBuf::from(text))
}

/// The name of a file in a directory.
pub fn index(text: &str) -> Result<String, String> {
    let fine = !text.is_empty() && !text.starts_with('.') && !text.contains(['/', '\0']);
    if fine { Ok(text.to_owned()) } else { Err("expected the name of a file, as in index.html".to_owned()) }
}

/// The name of a file below a root.
pub fn fallback(text: &str) -> Result<String, String> {
    let below = text.strip_prefix('/').unwrap_or(text);
    let fine = !text.contains('\0') && below.split('/').all(|segment| !segment.is_empty() && !segment.starts_with('.'));
    if fine {
        Ok(format!("/{below}"))
    } else {
        Err("expected the name of a file below the root, as in /index.html".to_owned())
    }
}

/// A pattern of names below a root.
pub fn pattern(text: &str) -> Result<String, String> {
    let fine = text.starts_with(['/', '*']) && !text.contains('\0');
    if fine { Ok(text.to_owned()) } else { Err("expected a pattern such as /assets/* or *.woff2".to_owned()) }
}

/// The status of a fixed answer.
pub fn status(text: &str) -> Result<u16, String> {
    super::units::count(text, 200..=599).map(|status| status as u16)
}

/// The status of a redirect.
pub fn redirect_status(text: &str) -> Result<u16, String> {
    let choices = [("301", 301), ("302", 302), ("303", 303), ("307", 307), ("308", 308)];
    super::units::choice(text, &choices)
}

/// A Location with `{path}`, `{query}` and `{host}`.
pub fn location(text: &str) -> Result<Vec<Piece>, String> {
    let expected = "expected a place such as https://{host}{path}{query} or /new";
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(expected.to_owned());
    }
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        if at > 0 {
            pieces.push(Piece::Text(rest[..at].to_owned()));
        }
        let end = rest[at..].find('}').ok_or("`{` without its `}`")? + at;
        pieces.push(match &rest[at + 1..end] {
            "path" => Piece::Path,
            "query" => Piece::Query,
            "host" => Piece::Host,
            _ => return Err(format!("{expected}; between braces path, query or host")),
        });
        rest = &rest[end + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// A Content-Type, or any other field's value.
pub fn value(text: &str) -> Result<String, String> {
    let plain = |byte: u8| byte == b' ' || byte == b'\t' || byte.is_ascii_graphic() || byte >= 0x80;
    if text.bytes().all(plain) && text.trim() == text {
        Ok(text.to_owned())
    } else {
        Err("expected text without control characters, and without spaces at its ends".to_owned())
    }
}

/// The body of a fixed answer, of at most 8 KiB: it leaves in one piece.
pub fn body(text: &str) -> Result<String, String> {
    const LONGEST: usize = 8 << 10;
    if text.len() <= LONGEST { Ok(text.to_owned()) } else { Err("expected at most 8 KiB".to_owned()) }
}

/// What the server writes or reads itself, in lower case: a route cannot change it.
const OWN_FIELDS: &[&str] = &[
    "connection",
    "content-length",
    "date",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
    "x-request-start",
];

const OWN: &str = "the server has its own ways with this field: expected another";

/// What clients show to say who they are, in lower case.
const CREDENTIALS: &[&str] = &["authorization", "cookie", "proxy-authorization"];

/// The name of a field that a route may change.
pub fn field(text: &str) -> Result<String, String> {
    if !is_token(text) {
        return Err("expected the name of a field, as in X-Tenant".to_owned());
    }
    let own = OWN_FIELDS.iter().any(|own| is_same_to_apps(own.as_bytes(), text.as_bytes()));
    if own { Err(OWN.to_owned()) } else { Ok(text.to_owned()) }
}

/// The name of a field that comes from an app that is asked about requests, and from clients no more.
pub fn copied(text: &str) -> Result<String, String> {
    let name = field(text)?;
    let is = |known: &&str| is_same_to_apps(known.as_bytes(), name.as_bytes());
    let begins =
        |known: &str| name.get(..known.len()).is_some_and(|start| is_same_to_apps(known.as_bytes(), start.as_bytes()));
    if CREDENTIALS.iter().any(is) {
        Err("clients could send this field no more, and nobody has it to judge them by: expected another".to_owned())
    } else if begins("content-") {
        Err("what is said of a body comes with it: expected another".to_owned())
    } else if begins("x-forwarded-") || begins("rip-") {
        Err(OWN.to_owned())
    } else {
        Ok(name)
    }
}

/// Whether two names of fields are one to an app that writes them as CGI does, with `_` for each `-` (RFC 3875 §4.1.18).
pub fn is_same_to_apps(one: &[u8], other: &[u8]) -> bool {
    let folded = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| folded(one) == folded(other))
}

/// The path of a file.
pub fn file(text: &str) -> Result<String, String> {
    let fine = !text.is_empty() && !text.contains('\0');
    if fine { Ok(text.to_owned()) } else { Err("expected the path of a file".to_owned()) }
}

/// Whether something lies at a URL, and not in a file.
pub fn is_url(text: &str) -> bool {
    ["http://", "https://"]
        .iter()
        .any(|scheme| text.get(..scheme.len()).is_some_and(|at| at.eq_ignore_ascii_case(scheme)))
}

/// The path of a file, or a URL.
pub fn file_or_url(text: &str) -> Result<String, String> {
    let host = |text: &str| {
        text.split_once("://").is_some_and(|(_, rest)| !rest.is_empty() && !rest.starts_with(['/', '?', ':']))
    };
    if is_url(text) && !(host(text) && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')) {
        return Err("expected the path of a file, or a URL such as https://id.example.org/jwks.json".to_owned());
    }
    file(text)
}

/// The name of any field.
pub fn token(text: &str) -> Result<String, String> {
    if is_token(text) { Ok(text.to_owned()) } else { Err("expected the name of a field, as in X-Api-Key".to_owned()) }
}

/// Whether this is a token of RFC 9110 §5.6.2.
pub(super) fn is_token(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_and_shown_alike() {
        for text in ["example.org", "*.example.org", "[::1]", "127.0.0.1"] {
            assert_eq!(host(text).unwrap().to_string(), text);
        }
        assert_eq!(host("Example.ORG."), Ok(HostPattern::Exact("example.org".to_owned())));
        for text in ["", "*", "*.", "a..b", "a:80", "a/b", "*.[::1]", "http://a"] {
            assert!(host(text).is_err(), "{text}");
        }
        for text in ["/", "/*", "/api/*", "/api*", "/about"] {
            assert_eq!(path(text).unwrap().to_string(), text);
        }
        for text in ["", "api", "*", "/a/*/b", "/a?b", "/a//b", "/a/../b", "/%61"] {
            assert!(path(text).is_err(), "{text}");
        }
        assert_eq!(method("get").as_deref(), Ok("GET"));
        assert_eq!(method("Purge").as_deref(), Ok("Purge"));
        assert!(method("CONNECT").is_err() && method("A B").is_err());
        assert_eq!(
            location("https://{host}/x{path}{query}"),
            Ok(vec![
                Piece::Text("https://".to_owned()),
                Piece::Host,
                Piece::Text("/x".to_owned()),
                Piece::Path,
                Piece::Query
            ])
        );
        assert!(location("{nothing}").is_err() && location("a b").is_err() && location("{path").is_err());
        assert!(field("Content-Length").is_err() && field("a b").is_err() && field("X-A").is_ok());
    }

    #[test]
    fn what_covers_what() {
        let matching = |host_text: &str, path_text: &str, methods: &[&str]| Matching {
            host: (!host_text.is_empty()).then(|| host(host_text).unwrap()),
            path: (!path_text.is_empty()).then(|| path(path_text).unwrap()),
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
        };
        let all = matching("", "", &[]);
        for (one, other, covers) in [
            (&all, &matching("a.b", "/x", &["GET"]), true),
            (&matching("", "/*", &[]), &all, true),
            (&matching("", "/a*", &[]), &all, false),
            (&matching("*.b", "", &[]), &matching("a.b", "", &[]), true),
            (&matching("*.b", "", &[]), &matching("b", "", &[]), false),
            (&matching("*.b", "", &[]), &matching("*.a.b", "", &[]), true),
            (&matching("*.b", "", &[]), &matching("*.b", "/x", &[]), true),
            (&matching("*.a.b", "", &[]), &matching("*.b", "", &[]), false),
            (&matching("a.b", "", &[]), &all, false),
            (&matching("a.b", "", &[]), &matching("a.b", "/x", &[]), true),
            (&matching("a.b", "", &[]), &matching("b.b", "", &[]), false),
            (&matching("a.b", "", &[]), &matching("*.b", "", &[]), false),
            (&matching("", "/x", &[]), &matching("a.b", "/x", &[]), true),
            (&matching("", "/x", &[]), &matching("", "/y", &[]), false),
            (&matching("", "/x", &[]), &matching("", "/x*", &[]), false),
            (&matching("", "/api/*", &[]), &matching("", "/api/x", &[]), true),
            (&matching("", "/api/*", &[]), &matching("", "/api", &[]), false),
            (&matching("", "", &["GET"]), &all, false),
            (&matching("", "", &["GET", "HEAD"]), &matching("", "", &["HEAD"]), true),
        ] {
            assert_eq!(one.covers(other), covers, "{one} {other}");
        }
    }
}
