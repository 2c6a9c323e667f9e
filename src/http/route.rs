//! Which route a request takes, and what a route changes: compiled once from the configuration, and asked for every request.
//!
//! The first route of the file that matches is taken. The hosts lie in a hash table, the paths of each host in a tree of their common
//! beginnings: one walk along a request's path meets every pattern that matches it, so that the number of routes does not matter.
//!
//! Rules:
//! - A path is compared as an app will most likely understand it: `%XX` is decoded, `//` is one slash, `.` and `..` are resolved. So what
//!   is kept from `/admin/*` cannot be had by another spelling. What the app gets is the path as it came; but a route
//!   that rewrites one with dots in it, or with another spelling of what it strips, goes by the segments that are left, each as it came.
//! - A host is compared without its port, in lower case, without a dot at its end.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

use crate::buffers::block::Writer;
use crate::config::ErrorPage;
use crate::config::route::{
    self, FieldEdits, HostPattern, Matching, PathPattern, Piece, Rewrite, Route, is_same_to_apps,
};

/// The longest name of a host (RFC 1035 §2.3.4).
const LONGEST_HOST: usize = 255;

/// Routes by host.
type Hosts = HashMap<Box<[u8]>, Paths, BuildHasherDefault<HostHasher>>;

/// FNV-1a, in few steps for short names. Nobody can make its table slow: what lies in it comes from the configuration alone.
#[derive(Debug)]
struct HostHasher(u64);

impl Default for HostHasher {
    fn default() -> HostHasher {
        HostHasher(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for HostHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn write_usize(&mut self, number: usize) {
        self.0 = (self.0 ^ number as u64).wrapping_mul(0x0100_0000_01b3);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// Finds routes.
#[derive(Debug, Default)]
pub struct Router {
    /// The first route takes every request.
    takes_all: bool,
    /// Whether any route looks at the path.
    has_paths: bool,
    /// Routes for one host.
    exact: Hosts,
    /// Routes for all hosts below a name, by that name with a dot in front.
    below: Hosts,
    /// The lengths of those names.
    lengths: Vec<usize>,
    /// Routes for any host.
    any: Option<Paths>,
    /// The methods of each route; none: any.
    methods: Vec<Box<[Box<[u8]>]>>,
}

impl Router {
    /// A router for those routes. They are named by their index.
    pub fn new(routes: &[Route]) -> Router {
        let mut router = Router::default();
        for (index, Route { matching, .. }) in routes.iter().enumerate() {
            let paths = match &matching.host {
                None => router.any.get_or_insert_default(),
                Some(HostPattern::Exact(name)) => router.exact.entry(name.as_bytes().into()).or_default(),
                Some(HostPattern::Below(name)) => router.below.entry(name.as_bytes().into()).or_default(),
            };
            match &matching.path {
                None => paths.insert(b"", true, index as u32),
                Some(PathPattern::Prefix(prefix)) => paths.insert(prefix.as_bytes(), true, index as u32),
                Some(PathPattern::Exact(path)) => paths.insert(path.as_bytes(), false, index as u32),
            }
            router.has_paths |= matching.path.is_some();
            router.methods.push(matching.methods.iter().map(|method| method.as_bytes().into()).collect());
        }
        router.takes_all = routes.first().is_some_and(|route| route.matching == Matching::default());
        router.lengths = router.below.keys().map(|name| name.len()).collect();
        router.lengths.sort_unstable();
        router.lengths.dedup();
        router
    }

    /// Whether the first route takes every request.
    pub fn takes_all(&self) -> bool {
        self.takes_all
    }

    /// The first route that matches. `authority` is a legal one and may be empty; `target` is a path with its query.
    pub fn find(&self, authority: &[u8], target: &[u8], method: &[u8]) -> Option<usize> {
        if self.takes_all {
            return Some(0);
        }
        let path = if self.has_paths { resolved(target) } else { Cow::Borrowed(&b""[..]) };
        let path = &*path;
        let mut best = None;
        if let Some(paths) = &self.any {
            self.meet(paths, path, method, &mut best);
        }
        if !self.exact.is_empty() || !self.below.is_empty() {
            let mut room = [0; LONGEST_HOST];
            let host = host_name(authority, &mut room);
            if let Some(paths) = self.exact.get(host) {
                self.meet(paths, path, method, &mut best);
            }
            for length in self.lengths.iter().take_while(|length| **length < host.len()) {
                if let Some(paths) = self.below.get(&host[host.len() - length..]) {
                    self.meet(paths, path, method, &mut best);
                }
            }
        }
        best.map(|index| index as usize)
    }

    fn meet(&self, paths: &Paths, path: &[u8], method: &[u8], best: &mut Option<u32>) {
        paths.meet(path, |routes| {
            for route in routes {
                if best.is_some_and(|best| best <= *route) {
                    return;
                }
                let methods = &self.methods[*route as usize];
                if methods.is_empty() || methods.iter().any(|known| **known == *method) {
                    *best = Some(*route);
                    return;
                }
            }
        });
    }
}

/// Patterns of paths by their common beginnings. The first node is the root, and has no text.
#[derive(Debug)]
struct Paths(Vec<Node>);

#[derive(Debug, Default)]
struct Node {
    /// What stands between the parent and here.
    text: Box<[u8]>,
    /// By the first byte of their text, in its order.
    children: Vec<(u8, u32)>,
    /// Routes for exactly the path up to here, in their order.
    exact: Vec<u32>,
    /// Routes for all that begins so, in their order.
    prefix: Vec<u32>,
}

impl Default for Paths {
    fn default() -> Paths {
        Paths(vec![Node::default()])
    }
}

impl Paths {
    fn insert(&mut self, mut rest: &[u8], prefix: bool, route: u32) {
        let mut at = 0;
        while let Some(first) = rest.first() {
            at = match self.0[at].children.binary_search_by_key(first, |(byte, _)| *byte) {
                Ok(child) => {
                    let child = self.0[at].children[child].1 as usize;
                    let common = self.0[child].text.iter().zip(rest).take_while(|(one, other)| one == other).count();
                    if common < self.0[child].text.len() {
                        self.split(child, common);
                    }
                    rest = &rest[common..];
                    child
                }
                Err(place) => {
                    let child = self.0.len();
                    self.0[at].children.insert(place, (*first, child as u32));
                    self.0.push(Node { text: rest.into(), ..Node::default() });
                    rest = b"";
                    child
                }
            };
        }
        let node = &mut self.0[at];
        if prefix { &mut node.prefix } else { &mut node.exact }.push(route);
    }

    /// Divides a node's text: it keeps the beginning, and a new child has the rest and all else.
    fn split(&mut self, at: usize, length: usize) {
        let child = self.0.len() as u32;
        let mut lower = std::mem::take(&mut self.0[at]);
        let (upper, rest) = lower.text.split_at(length);
        self.0[at] = Node { text: upper.into(), children: vec![(rest[0], child)], ..Node::default() };
        lower.text = rest.into();
        self.0.push(lower);
    }

    /// Shows the routes of every pattern that matches, list by list.
    #[inline]
    fn meet(&self, mut rest: &[u8], mut show: impl FnMut(&[u32])) {
        let mut node = &self.0[0];
        loop {
            show(&node.prefix);
            let Some(first) = rest.first() else { break };
            let Ok(child) = node.children.binary_search_by_key(first, |(byte, _)| *byte) else { return };
            node = &self.0[node.children[child].1 as usize];
            let Some(behind) = rest.strip_prefix(&*node.text) else { return };
            rest = behind;
        }
        show(&node.exact);
    }
}

/// A path without its query; of a target that is none, `/`.
pub fn before_query(target: &[u8]) -> &[u8] {
    let path = &target[..memchr::memchr(b'?', target).unwrap_or(target.len())];
    if path.is_empty() { b"/" } else { path }
}

/// [`before_query`], with its escapes decoded and its dots resolved. Most paths are as they came.
pub fn resolved(target: &[u8]) -> Cow<'_, [u8]> {
    let mut before = 0;
    for (at, byte) in target.iter().enumerate() {
        match byte {
            b'?' if at > 0 => return Cow::Borrowed(&target[..at]),
            b'?' | b'%' => return Cow::Owned(resolve(before_query(target))),
            b'/' | b'.' if before == b'/' => return Cow::Owned(resolve(before_query(target))),
            _ => before = *byte,
        }
    }
    Cow::Borrowed(if target.is_empty() { b"/" } else { target })
}

/// A path with its escapes decoded, one slash for many, and its dots resolved.
#[cold]
fn resolve(path: &[u8]) -> Vec<u8> {
    without_dots(&decoded(path)).0
}

/// A path that begins with a slash, with one slash for many, and its dots resolved; and whether they lead above where it begins, which counts
/// for nothing.
pub fn without_dots(path: &[u8]) -> (Vec<u8>, bool) {
    let mut segments: Vec<&[u8]> = Vec::new();
    let (mut ends_open, mut climbs) = (false, false);
    for segment in path.split(|byte| *byte == b'/') {
        ends_open = matches!(segment, b"" | b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => climbs |= segments.pop().is_none(),
            _ => segments.push(segment),
        }
    }
    let ends_open = ends_open || segments.is_empty();
    (joined(b"", &segments, ends_open), climbs)
}

/// Segments, each behind a slash, and maybe a slash.
fn joined(front: &[u8], all: &[&[u8]], ends_open: bool) -> Vec<u8> {
    let mut out = front.to_vec();
    for segment in all {
        out.push(b'/');
        out.extend_from_slice(segment);
    }
    if ends_open {
        out.push(b'/');
    }
    out
}

/// What a path begins with, its escape decoded, and how many bytes that takes.
fn first_of(path: &[u8]) -> Option<(u8, usize)> {
    let digit = |at: usize| path.get(at).and_then(|byte| char::from(*byte).to_digit(16));
    let first = *path.first()?;
    Some(match (first, digit(1), digit(2)) {
        (b'%', Some(high), Some(low)) => ((high * 16 + low) as u8, 3),
        _ => (first, 1),
    })
}

/// A path with its escapes decoded.
pub fn decoded(mut path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    while let Some((byte, length)) = first_of(path) {
        out.push(byte);
        path = &path[length..];
    }
    out
}

/// What lies between a path's slashes, written out or escaped.
struct Segments<'a> {
    /// As they came; without empty ones, and without dots and what they lead out of.
    kept: Vec<&'a [u8]>,
    /// Whether there is a slash behind the last one.
    ends_open: bool,
    /// Whether there were dots.
    had_dots: bool,
}

impl Segments<'_> {
    fn of(path: &[u8]) -> Segments<'_> {
        let mut segments = Segments { kept: Vec::new(), ends_open: false, had_dots: false };
        let (mut start, mut at) = (0, 0);
        while at <= path.len() {
            let (byte, length) = first_of(&path[at..]).unwrap_or((b'/', 1));
            if byte == b'/' {
                segments.take(&path[start..at]);
                start = at + length;
            }
            at += length;
        }
        segments
    }
}

impl<'a> Segments<'a> {
    fn take(&mut self, segment: &'a [u8]) {
        let text = decoded(segment);
        self.ends_open = matches!(&*text, b"" | b"." | b"..");
        self.had_dots |= self.ends_open && !text.is_empty();
        match &*text {
            b"" | b"." => {}
            b".." => drop(self.kept.pop()),
            _ => self.kept.push(segment),
        }
    }
}

/// A host without its port, in lower case. What is longer than any name matches none, and is nothing.
fn host_name<'a>(authority: &[u8], room: &'a mut [u8; LONGEST_HOST]) -> &'a [u8] {
    let name = host_of(authority);
    let name = name.strip_suffix(b".").unwrap_or(name);
    if name.starts_with(b"[")
        && let Some(plain) = plain_v6(name)
    {
        let room = &mut room[..plain.len()];
        room.copy_from_slice(plain.as_bytes());
        return room;
    }
    let Some(room) = room.get_mut(..name.len()) else { return b"" };
    room.copy_from_slice(name);
    room.make_ascii_lowercase();
    room
}

/// An IPv6 address as routes have it, however a client writes it.
#[cold]
fn plain_v6(name: &[u8]) -> Option<String> {
    route::plain_v6(std::str::from_utf8(name).ok()?)
}

/// A host as it came, without its port.
pub fn host_of(authority: &[u8]) -> &[u8] {
    let digits = authority.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    authority[..authority.len() - digits].strip_suffix(b":").unwrap_or(authority)
}

/// The place of a redirect, for a request to that authority and target; `None` where it is on the host that was asked, and none was.
pub fn location(pieces: &[Piece], authority: &[u8], target: &[u8]) -> Option<Vec<u8>> {
    // What is asked of the whole server (RFC 9112 §3.2.4) is no path.
    let path = match before_query(target) {
        b"*" => b"/",
        path => path,
    };
    let mut out = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.extend_from_slice(text.as_bytes()),
            // Two slashes at its beginning would lead to another host (RFC 3986 §4.2).
            Piece::Path if out.is_empty() => {
                let slashes = path.iter().take_while(|byte| matches!(byte, b'/' | b'\\')).count();
                out.push(b'/');
                out.extend_from_slice(&path[slashes..]);
            }
            Piece::Path => out.extend_from_slice(path),
            Piece::Query => out.extend_from_slice(&target[memchr::memchr(b'?', target).unwrap_or(target.len())..]),
            Piece::Host => match host_of(authority) {
                b"" => return None,
                host => out.extend_from_slice(host),
            },
        }
    }
    Some(out)
}

/// What a route changes of a message, ready to be applied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// The fields that go, those that are set included.
    names: Vec<Box<[u8]>>,
    /// The lines that come.
    lines: Vec<u8>,
    /// What becomes of a request's path.
    rewrite: Rewrite,
    /// What is shown in the place of the server's own errors, before what is shown everywhere.
    pages: Arc<[ErrorPage]>,
}

impl Edits {
    /// The changes of a request's fields and path, if there are any.
    pub fn of_request(fields: &FieldEdits, rewrite: &Rewrite) -> Option<Edits> {
        let changes = !fields.is_empty() || *rewrite != Rewrite::default();
        changes.then(|| Edits { rewrite: rewrite.clone(), ..Edits::of(fields) })
    }

    /// The changes of an answer's fields, if there are any.
    pub fn of_response(fields: &FieldEdits) -> Option<Edits> {
        (!fields.is_empty()).then(|| Edits::of(fields))
    }

    /// Those of an answer, if there are any, and pages in the place of the server's own errors.
    pub fn showing(edits: Option<Edits>, pages: Vec<ErrorPage>) -> Option<Edits> {
        if pages.is_empty() { edits } else { Some(Edits { pages: pages.into(), ..edits.unwrap_or_default() }) }
    }

    /// What is shown in the place of the server's own errors.
    pub fn pages(&self) -> &[ErrorPage] {
        &self.pages
    }

    fn of(fields: &FieldEdits) -> Edits {
        let names = fields.remove.iter().chain(fields.set.iter().map(|(name, _)| name));
        let lines: String = fields.set.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        Edits {
            names: names.map(|name| name.as_bytes().into()).collect(),
            lines: lines.into_bytes(),
            ..Edits::default()
        }
    }

    /// Those, and more: fields that go, those that were to come included, and lines that come.
    pub fn and(edits: Option<&Edits>, names: &[&str], lines: &[u8]) -> Edits {
        let goes = |known: &[u8]| names.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(known));
        let mut all = Edits::default();
        if let Some(edits) = edits {
            (all.rewrite, all.pages) = (edits.rewrite.clone(), edits.pages.clone());
            all.names.clone_from(&edits.names);
            for (name, value) in edits.set().filter(|(name, _)| !goes(name)) {
                all.lines.extend_from_slice(&[name, b": ", value, b"\r\n"].concat());
            }
        }
        all.names.extend(names.iter().map(|name| name.as_bytes().into()));
        all.lines.extend_from_slice(lines);
        all
    }

    /// The lines that come, as names and values.
    pub fn set(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let lines = self.lines.split(|byte| *byte == b'\n').filter_map(|line| line.strip_suffix(b"\r"));
        lines.filter_map(|line| {
            let colon = memchr::memchr(b':', line)?;
            Some((&line[..colon], line[colon + 1..].trim_ascii()))
        })
    }

    /// Bytes that are added at most.
    pub(super) fn room(&self) -> usize {
        self.lines.len() + self.rewrite.prefix.len() + 1
    }

    /// Whether a field goes.
    pub fn removes(&self, name: &[u8]) -> bool {
        self.names.iter().any(|gone| is_same_to_apps(gone, name))
    }

    /// The lines that come.
    pub fn lines(&self) -> &[u8] {
        &self.lines
    }

    /// Whether the path changes.
    pub(super) fn rewrites(&self) -> bool {
        self.rewrite != Rewrite::default()
    }

    /// Writes the path and query that take the place of `target`, a path with its query.
    pub(super) fn write_target(&self, out: &mut Writer<'_>, target: &[u8]) {
        let Rewrite { strip, prefix } = &self.rewrite;
        let found = resolved(target);
        let straight = match found {
            Cow::Borrowed(_) => Cow::Borrowed(target),
            Cow::Owned(found) => straightened(target, &found, strip),
        };
        let rest = behind(&straight, strip).unwrap_or(&straight);
        out.put(prefix.as_bytes());
        if prefix.is_empty() && !rest.starts_with(b"/") {
            out.put(b"/");
        }
        out.put(rest);
    }
}

/// What follows the beginning of a path, where it ends there or a slash is next.
fn behind<'a>(target: &'a [u8], strip: &str) -> Option<&'a [u8]> {
    let rest = target.strip_prefix(strip.as_bytes())?;
    matches!(rest.first(), None | Some(b'/' | b'?')).then_some(rest)
}

/// A target as it can be rewritten, where its path is not the one by which its route was `found`: without dots, and with what is to be
/// stripped in plain letters. Else its segments are as they came, and no longer than before, but for a slash in front.
#[cold]
fn straightened<'a>(target: &'a [u8], found: &[u8], strip: &str) -> Cow<'a, [u8]> {
    let path = before_query(target);
    let Segments { kept, ends_open, had_dots } = Segments::of(path);
    // In what is found already no query is left: a `?` is a letter of its segment.
    let is_front = found.strip_prefix(strip.as_bytes()).is_some_and(|rest| matches!(rest.first(), None | Some(b'/')));
    let front = if is_front { strip } else { "" };
    if !had_dots && behind(target, front).is_some() {
        return Cow::Borrowed(target);
    }
    let stripped = front.split('/').filter(|segment| !segment.is_empty()).count();
    let rest = kept.get(stripped..).unwrap_or_default();
    let mut out = joined(front.as_bytes(), rest, ends_open || kept.is_empty());
    out.extend_from_slice(&target[memchr::memchr(b'?', target).unwrap_or(target.len())..]);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use proptest::prelude::*;

    use super::*;

    fn route(host: &str, path: &str, methods: &[&str]) -> Route {
        let matching = Matching {
            host: (!host.is_empty()).then(|| route::host(host).unwrap()),
            path: (!path.is_empty()).then(|| route::path(path).unwrap()),
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
        };
        Route { matching, ..Route::all_to(0) }
    }

    #[test]
    fn the_first_that_matches_is_taken() {
        let routes = [
            route("old.example.org", "", &["GET", "HEAD"]),
            route("*.example.org", "/api/*", &[]),
            route("", "/login", &[]),
            route("example.org", "/log*", &[]),
            route("", "/api/v1", &[]),
            route("", "/api/*", &["POST"]),
            route("[0:0:0:0:0:0:0:1]", "", &[]),
            route("", "/logout", &[]),
            route("*.a.example.org", "", &[]),
            route("[::ffff:127.0.0.1]", "", &[]),
        ];
        let router = Router::new(&routes);
        for (host, target, method, expected) in [
            ("old.example.org", "/x", "GET", Some(0)),
            ("OLD.example.ORG:8080", "/x", "GET", Some(0)),
            ("old.example.org.", "/api/x", "POST", Some(1)),
            ("old.example.org.:", "/x", "GET", Some(0)),
            ("[::1]", "/", "GET", Some(6)),
            ("[::1:80]", "/", "GET", None),
            ("old.example.org", "/x", "POST", None),
            ("a.b.example.org", "/api/", "GET", Some(1)),
            ("example.org", "/api/", "GET", None),
            ("example.org", "/api/", "POST", Some(5)),
            ("example.org", "/login", "GET", Some(2)),
            ("example.org", "/login?next=/", "GET", Some(2)),
            ("example.org", "/logx", "GET", Some(3)),
            ("other", "/logx", "GET", None),
            ("other", "/logout", "GET", Some(7)),
            ("example.org", "/logout", "GET", Some(3)),
            ("other", "/api/v1", "POST", Some(4)),
            ("other", "/api", "POST", None),
            ("[::1]:80", "/", "GET", Some(6)),
            ("", "/login", "GET", Some(2)),
            ("b.a.example.org", "/", "GET", Some(8)),
            ("a.example.org", "/", "GET", None),
            ("[0:0::0:0:1]:80", "/", "GET", Some(6)),
            ("[::ffff:7f00:1]", "/", "GET", Some(9)),
            ("[::FFFF:127.0.0.1]", "/", "GET", Some(9)),
            ("[::2]", "/", "GET", None),
            ("[::1", "/", "GET", None),
            ("other", "/%6Cogin", "GET", Some(2)),
            ("other", "//login", "GET", Some(2)),
            ("other", "/x/../login", "GET", Some(2)),
            ("other", "/x%2f..%2F.%2Flogin", "GET", Some(2)),
            ("other", "/login/..", "GET", None),
            ("other", "*", "OPTIONS", None),
        ] {
            let found = router.find(host.as_bytes(), target.as_bytes(), method.as_bytes());
            assert_eq!(found, expected, "{method} {host} {target}");
        }
        assert_eq!(Router::new(&[]).find(b"a", b"/", b"GET"), None);
        assert_eq!(Router::new(&[Route::all_to(0)]).find(b"a", b"*", b"OPTIONS"), Some(0));
    }

    /// As it is said: one after the other.
    fn plainly(routes: &[Route], host: &str, path: &str, method: &str) -> Option<usize> {
        routes.iter().position(|Route { matching, .. }| {
            let host = match &matching.host {
                None => true,
                Some(HostPattern::Exact(name)) => name == host,
                Some(HostPattern::Below(name)) => host.len() > name.len() && host.ends_with(name),
            };
            let path = match &matching.path {
                None => true,
                Some(PathPattern::Exact(one)) => one == path,
                Some(PathPattern::Prefix(prefix)) => path.starts_with(prefix),
            };
            host && path && (matching.methods.is_empty() || matching.methods.iter().any(|one| one == method))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_router_finds_what_looking_one_by_one_finds(
            routes in prop::collection::vec(("(|a|a\\.b|\\*\\.b|\\*\\.a\\.b)", "(|/\\*?|/[ab]{1,3}(/[ab]{1,2})?\\*?)", "(|GET)"), 0..30),
            host in "(a|b|a\\.b|b\\.b|b\\.a\\.b)", path in "/([ab]{1,3}(/[ab]{1,2})?)?", method in "(GET|POST)",
        ) {
            let routes: Vec<Route> = routes
                .iter()
                .map(|(host, path, method)| route(host, path, if method.is_empty() { &[] } else { &["GET"] }))
                .collect();
            let found = Router::new(&routes).find(host.as_bytes(), path.as_bytes(), method.as_bytes());
            prop_assert_eq!(found, plainly(&routes, &host, &path, &method));
        }
    }

    #[test]
    fn paths_are_resolved_as_apps_do() {
        for (path, expected) in [
            ("/a/./b", "/a/b"),
            ("/a/b/..", "/a/"),
            ("/../../a", "/a"),
            ("/a%2Fb", "/a/b"),
            ("/%zz%4", "/%zz%4"),
            ("//", "/"),
            ("/a//b//", "/a/b/"),
            ("/%2e%2E/a", "/a"),
            ("/.a", "/.a"),
        ] {
            let path_and_query = format!("{path}?/../%41");
            assert_eq!(resolved(path_and_query.as_bytes()), expected.as_bytes(), "{path}");
            assert_eq!(resolved(path.as_bytes()), expected.as_bytes(), "{path}");
        }
        for (path, expected) in [("/a/b.c/d", "/a/b.c/d"), ("", "/"), ("?a", "/"), ("/a?/../b", "/a"), ("*", "*")] {
            assert_eq!(resolved(path.as_bytes()), expected.as_bytes(), "{path}");
        }
    }

    #[test]
    fn redirects_are_filled_in() {
        let to = |text: &str, host: &str, target: &str| {
            let to = location(&route::location(text).unwrap(), host.as_bytes(), target.as_bytes());
            to.map_or_else(|| "nowhere".to_owned(), |to| String::from_utf8(to).unwrap())
        };
        assert_eq!(to("https://{host}{path}{query}", "a.b:80", "/x?y=1"), "https://a.b/x?y=1");
        assert_eq!(to("https://{host}{path}{query}", "[::1]:80", "/x"), "https://[::1]/x");
        assert_eq!(to("/new{path}", "a", "/x?y"), "/new/x");
        assert_eq!(to("{path}{query}", "a", "//evil.org/?q"), "/evil.org/?q", "never to another host");
        assert_eq!(to("/{query}", "", "?q"), "/?q");
        assert_eq!(to("https://{host}{path}{query}", "a.b", "*"), "https://a.b/", "of the whole server");
        assert_eq!(to("{path}{query}", "a.b", "*"), "/");
        assert_eq!(to("https://{host}{path}", "", "/x"), "nowhere");
        assert_eq!(to("https://{host}{path}", ":80", "/x"), "nowhere");
        assert_eq!(to("https://{host}{path}{query}", "a.b", "?q"), "https://a.b/?q");
    }

    #[test]
    fn targets_are_rewritten() {
        let written = |strip: &str, prefix: &str, target: &str| {
            let rewrite = Rewrite { strip: strip.to_owned(), prefix: prefix.to_owned() };
            let edits = Edits::of_request(&FieldEdits::default(), &rewrite).unwrap();
            let mut room = vec![MaybeUninit::uninit(); target.len() + edits.room()];
            let mut out = Writer::new(&mut room);
            edits.write_target(&mut out, target.as_bytes());
            String::from_utf8_lossy(out.written()).into_owned()
        };
        for (strip, prefix, target, expected) in [
            ("/api", "", "/api/users?x", "/users?x"),
            ("/api", "", "/api", "/"),
            ("/api", "", "/api?x", "/?x"),
            ("/api", "/v2", "/api/users", "/v2/users"),
            ("/api", "/v2", "/api", "/v2"),
            ("/api", "", "/apis", "/apis"),
            ("", "/v2", "/", "/v2/"),
            ("/api", "/v2", "/other", "/v2/other"),
            ("", "/a", "/../b/x?/../c", "/a/b/x?/../c"),
            ("", "/a", "/%2e%2E/b", "/a/b"),
            ("", "/a", "/x/..", "/a/"),
            ("", "/a", "/..", "/a/"),
            ("", "/a", "/x%2F..%2f../b%20c", "/a/b%20c"),
            ("", "/a", "/x%2Fy//z%20", "/a/x%2Fy//z%20"),
            ("/api", "/v1", "/%61pi/x", "/v1/x"),
            ("/api", "/v1", "/%61pi", "/v1"),
            ("/api", "/v1", "/api%3F/admin/x", "/v1/api%3F/admin/x"),
            ("/api", "/v1", "/%61pi%3Fx?y", "/v1/%61pi%3Fx?y"),
            ("/api", "/v1", "//api//x?y=//", "/v1/x?y=//"),
            ("/api", "/v1", "/./api/%78/", "/v1/%78/"),
            ("/api", "", "/../../api", "/"),
            ("/api", "/v1", "/api/../../api/x", "/v1/x"),
            ("/api", "/v1", "/api/../x", "/v1/x"),
            ("/api", "/v1", "/api/../%61pi/x", "/v1/x"),
            ("/api/b", "/v1", "/api%2Fb/x%2Fy", "/v1/x/y"),
            ("/api", "/v1", "/api//x%2Fy", "/v1//x%2Fy"),
            ("/api", "/v1", "?x", "/v1?x"),
        ] {
            assert_eq!(written(strip, prefix, target), expected, "{strip} {prefix} {target}");
        }
    }
}
