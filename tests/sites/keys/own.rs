//! The keys of the server, of routes, logs and metrics that hold at once, and what shows only when the server ends.

use super::apps::{ejected, ejected_for_short, ejected_twice_for_short, failing, unwell, well_again};
use super::*;
use crate::support::send_signal;

/// What ends the server.
pub const AT_THE_END: [&str; 1] = ["apps.*.restart.give_up_exit"];

/// A route, what it says from the beginning, and what its keys become.
struct Route {
    base: &'static [Change<'static>],
    to: &'static [Change<'static>],
}

const fn route(base: &'static [Change<'static>], to: &'static [Change<'static>]) -> Route {
    Route { base, to }
}

const ROUTES: &[Route] = &[
    route(&[("match.host", "'old.host'"), ("respond.body", "'host'")], &[("match.host", "'new.host'")]),
    route(
        &[("match.host", "'path'"), ("match.path", "'/old'"), ("respond.body", "'path'")],
        &[("match.path", "'/new'")],
    ),
    route(
        &[("match.host", "'method'"), ("match.method", "'POST'"), ("respond.body", "'method'")],
        &[("match.method", "'GET'")],
    ),
    route(&[("match.host", "'app'"), ("app", "'respond'")], &[("app", "'kept'")]),
    route(&[("match.host", "'upstreams'"), ("upstreams", "FIRST")], &[("upstreams", "SECOND")]),
    route(
        &[("match.host", "'b0.sock'"), ("upstreams", "['unix:FOLDER/a0.sock', 'unix:FOLDER/b0.sock']")],
        &[("balance", "'round-robin'")],
    ),
    route(
        &[("match.host", "'fixed'"), ("respond.body", "'old'")],
        &[("respond.status", "404"), ("respond.body", "'new'"), ("respond.type", "'text/html'")],
    ),
    route(
        &[("match.host", "'away'"), ("redirect.to", "'/old'")],
        &[("redirect.to", "'/new'"), ("redirect.status", "308")],
    ),
    route(
        &[("match.host", "'rewrite'"), ("app", "'kept'")],
        &[("rewrite.strip", "'/api'"), ("rewrite.prefix", "'/v2'")],
    ),
    route(
        &[("match.host", "'fields'"), ("app", "'kept'")],
        &[
            ("request_fields.set", "{ X-Set = 'yes' }"),
            ("request_fields.remove", "['X-Gone']"),
            ("response_fields.set", "{ X-Answer = 'yes' }"),
            ("response_fields.remove", "['X-Own']"),
        ],
    ),
    route(
        &[("match.host", "'coded'"), ("app", "'kept'")],
        &[
            ("compress.codings", "['br', 'gzip']"),
            ("compress.min", "'1B'"),
            ("compress.types", "['text/*']"),
            ("compress.levels", "{ gzip = '1' }"),
            ("compress.jitter", "1"),
            ("compress.events", "true"),
            ("compress.personal", "false"),
        ],
    ),
];

/// A key of the health or the ejection of a route's own upstreams; its number is that of its sockets.
struct Case {
    base: &'static [Change<'static>],
    to: Change<'static>,
    shows: fn(&Rig, &str),
}

const fn case(base: &'static [Change<'static>], to: Change<'static>, shows: fn(&Rig, &str)) -> Case {
    Case { base, to, shows }
}

const OFTEN: Change<'static> = ("health.interval", SHORT);

const UPSTREAMS: &[Case] = &[
    case(&[OFTEN], ("health.path", "'/asked-of-route'"), |rig, _| {
        until("it is asked", || rig.upstreams[0].of("/asked-of-route").is_some());
    }),
    case(&[("health.path", "'/often-of-route'"), ("health.interval", LONG)], OFTEN, |rig, _| {
        let asked = |bytes: &[u8]| bytes.windows(15).filter(|bytes| bytes == b"/often-of-route").count();
        until("it is asked again and again", || asked(&rig.upstreams[0].everything()) > 3);
    }),
    case(&[OFTEN, ("health.path", "'/hang'"), ("health.timeout", LONG)], ("health.timeout", SHORT), failing),
    case(&[OFTEN, ("health.path", "'/503'"), ("health.unhealthy", "1000")], ("health.unhealthy", "1"), unwell),
    case(
        &[OFTEN, ("health.path", "'/flip'"), ("health.unhealthy", "1"), ("health.healthy", "1000")],
        ("health.healthy", "1"),
        well_again,
    ),
    case(&[OFTEN, ("health.path", "'/'")], ("health.status", "'204'"), failing),
    case(&[("eject.after", "0"), ("eject.time", LONG), ("eject.max", LONG)], ("eject.after", "1"), ejected),
    case(&[("eject.after", "1"), ("eject.time", LONG), ("eject.max", LONG)], ("eject.time", SHORT), ejected_for_short),
    case(
        &[("eject.after", "1"), ("eject.time", SHORT), ("eject.max", LONG)],
        ("eject.max", SHORT),
        ejected_twice_for_short,
    ),
];

/// The upstreams of such a case, which are an app of that name.
fn sockets(index: usize, case: &Case) -> Vec<String> {
    let both = case.to.0.starts_with("eject");
    ["a", "b"][..1 + usize::from(both)].iter().map(|name| format!("unix:FOLDER/{name}{}.sock", index + 1)).collect()
}

pub fn begin(text: &mut Text, backend: &str) {
    for change in [
        ("server.run_dir", "'FOLDER/run'"),
        ("server.backend", &format!("'{backend}'")),
        ("server.loops", "1"),
        ("server.pin", "false"),
        ("server.shutdown", LONG),
        ("server.stats_interval", "'0s'"),
        ("log.access.to", "false"),
        ("log.events.format", "'json'"),
        ("listen[0].address", "'127.0.0.1:0'"),
    ] {
        text.set(change);
    }
    for (index, route) in ROUTES.iter().enumerate() {
        route.base.iter().for_each(|(key, value)| text.set((&format!("routes[{index}].{key}"), value)));
    }
    for (index, case) in UPSTREAMS.iter().enumerate() {
        let (route, sockets) = (20 + index, sockets(index, case));
        let host = sockets.last().unwrap().rsplit('/').next().unwrap();
        text.set((&format!("routes[{route}].match.host"), &format!("'{host}'")));
        text.set((&format!("routes[{route}].upstreams"), &format!("{sockets:?}")));
        case.base.iter().for_each(|(key, value)| text.set((&format!("routes[{route}].{key}"), value)));
    }
}

pub fn live(rig: &mut Rig) {
    server(rig);
    routes(rig);
    files(rig);
    metrics(rig);
    // Whoever is kept has shown what it was for; one that is idle for so long is to go.
    let mut kept = rig.kept.take().unwrap();
    rig.released.store(true, Ordering::Relaxed);
    assert_eq!(kept.held.answer().status, 200, "the request that was under way all the time");
    rig.change(&[("server.timeouts.idle", SHORT)]);
    let mut idle = rig.client();
    assert_eq!(idle.ask("GET / HTTP/1.1\r\nHost: respond\r\n\r\n").status, 200);
    idle.expect_end();
    rig.change(&[("server.timeouts.idle", "'50s'")]);
    access(rig);
}

fn server(rig: &mut Rig) {
    let short = ["header", "body", "write"].map(|name| format!("server.timeouts.{name}"));
    let timeouts = short.iter().map(|key| (key.as_str(), SHORT));
    let others = [
        ("server.timeouts.idle", "'50s'"),
        // tests/spool.rs has what is spooled; whether a directory is of use shows at once.
        ("server.spool_bytes", "'1MiB'"),
        ("server.spool_dir", "'FOLDER'"),
        ("server.max_body", "'10B'"),
        ("server.max_head", "'2KiB'"),
        ("server.max_fields", "20"),
        ("server.internal", "'/inside'"),
        ("server.stats_interval", "'20ms'"),
        ("server.upgrade_timeout", "'100ms'"),
        // These show at the end.
        ("server.shutdown", "'100ms'"),
        ("server.pre_stop_delay", "'2s'"),
    ];
    rig.change(&timeouts.chain(others).collect::<Vec<_>>());
    let status = |line: &str, more: &str| rig.ask("half_close", line, more).status;
    assert_eq!(status("GET /", ""), 200);
    assert_eq!(status("POST /", "Content-Length: 11\r\n"), 413);
    assert_eq!(status("GET /", &format!("X: {}\r\n", "x".repeat(2048))), 431);
    assert_eq!(status("GET /", &"X: x\r\n".repeat(20)), 431);
    assert_eq!((rig.get("a", "/inside/server").0, rig.get("respond", "/server").1.as_str()), (200, "new"));
    for begun in ["GET / HT", "POST / HTTP/1.1\r\nHost: half_close\r\nContent-Length: 10\r\n\r\n"] {
        let mut client = rig.client();
        client.send(begun);
        assert_eq!(client.answer().status, 408, "{begun}");
    }
    let total = || rig.site.app("half_close")["requests"]["total"].as_u64().unwrap();
    let (_unread, before) = (rig.begin("half_close", "/large"), total());
    until("whoever reads nothing is cut", || total() > before);
    let printed = || std::fs::read_to_string(rig.file("stdout")).unwrap();
    until("statistics are printed", || printed().contains("SERVER STATISTICS"));
    // Nobody else is to be hurried.
    let timeouts = short.iter().map(|key| (key.as_str(), "'50s'"));
    rig.change(&timeouts.chain([("server.stats_interval", "'0s'")]).collect::<Vec<_>>());
    // So soon no server has all these workers ready.
    let (code, said) = rig.site.line.word(&["upgrade", "--wait"]);
    assert!(code == Some(75) && said.contains("the old server serves on"), "{code:?}: {said}");
}

fn routes(rig: &mut Rig) {
    let changes = ROUTES.iter().enumerate().flat_map(|(index, route)| {
        route.to.iter().map(move |(key, value)| (format!("routes[{index}].{key}"), (*value).to_owned()))
    });
    let upstreams = UPSTREAMS.iter().enumerate();
    let upstreams =
        upstreams.map(|(index, case)| (format!("routes[{}].{}", 20 + index, case.to.0), case.to.1.to_owned()));
    let changes: Vec<(String, String)> = changes.chain(upstreams).collect();
    let changes: Vec<Change<'_>> = changes.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let said = rig.change(&changes);
    assert!(said.contains("routes: changed"), "{said}");
    let text = |host: &str, path: &str| rig.get(host, path).1;
    assert_eq!((text("new.host", "/").as_str(), rig.get("old.host", "/").0), ("host", 404));
    assert_eq!((text("path", "/new").as_str(), rig.get("path", "/old").0), ("path", 404));
    assert_eq!(text("method", "/"), "method");
    assert!(text("app", "/").starts_with("connection"));
    assert!(text("upstreams", "/of-second").starts_with("connection"));
    assert!(rig.upstreams[1].of("/of-second").is_some());
    (0..4).for_each(|_| assert_eq!(rig.get("b0.sock", "/by-turns").0, 200));
    for upstream in &rig.upstreams {
        assert_eq!(upstream.everything().windows(9).filter(|bytes| bytes == b"/by-turns").count(), 2);
    }
    let fixed = rig.ask("fixed", "GET /", "");
    assert_eq!((fixed.status, fixed.text().as_str(), fixed.field("content-type")), (404, "new", Some("text/html")));
    let away = rig.ask("away", "GET /", "");
    assert_eq!((away.status, away.field("location")), (308, Some("/new")));
    assert!(text("rewrite", "/api/x").contains("GET /v2/x HTTP"));
    let fields = rig.ask("fields", "GET /own", "X-Gone: x\r\n");
    let asked = fields.text();
    assert!(asked.contains("X-Set: yes") && !asked.contains("X-Gone"), "{asked}");
    assert_eq!((fields.field("x-answer"), fields.field("x-own")), (Some("yes"), None));
    for path in ["/page", "/stream"] {
        let head = rig.coded("coded", path, "");
        assert!(head.contains("Content-Encoding: gzip\r\n") && head.contains("X-Padding: 0\r\n"), "{head}");
        assert!(!rig.coded("coded", path, "Cookie: a=b\r\n").contains("Content-Encoding"));
    }
    for (index, case) in UPSTREAMS.iter().enumerate() {
        let app = sockets(index, case).join(" ").replace("FOLDER", rig.folder());
        let table = case.to.0.split('.').next().unwrap();
        assert!(said.contains(&format!("routes to {app}: {table}: ")), "{app}: {said}");
        (case.shows)(rig, &app);
    }
}

fn files(rig: &mut Rig) {
    for (name, text) in [("a.txt", "named"), ("d/home.txt", "home"), ("gone.html", "gone")] {
        let path = rig.file("files").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    rig.change(&[("routes[30].match.host", "'files'"), ("routes[30].static.root", "'FOLDER/run'")]);
    assert_eq!(rig.get("files", "/in/a.txt").0, 404);
    rig.change(&[
        ("server.error_pages", "{ 404 = 'FOLDER/files/gone.html' }"),
        ("routes[30].static.root", "'FOLDER/files'"),
        ("routes[30].static.prefix", "'/in'"),
        ("routes[30].static.index", "['home.txt']"),
        ("routes[30].static.fallback", "'/a.txt'"),
        ("routes[30].static.cache", "'no-cache'"),
        ("routes[30].static.immutable", "['/a.*']"),
        ("routes[31].match.host", "'sendfile'"),
        ("routes[31].app", "'kept'"),
        ("routes[31].sendfile.root", "'FOLDER/files'"),
        ("routes[31].sendfile.prefix", "'/protected'"),
    ]);
    let cache = |path: &str| rig.ask("files", &format!("GET {path}"), "").field("cache-control").map(str::to_owned);
    assert_eq!(cache("/in/a.txt").as_deref(), Some("public, max-age=31536000, immutable"));
    assert_eq!(cache("/in/d/").as_deref(), Some("no-cache"));
    assert_eq!((rig.get("files", "/in/d/").1.as_str(), rig.get("files", "/in/page").1.as_str()), ("home", "named"));
    assert_eq!(rig.get("files", "/in/missing.js"), (404, "gone".to_owned()));
    assert_eq!(rig.get("sendfile", "/accel").1, "named");
    rig.change(&[
        ("routes[31].sendfile.root", "'FOLDER/run'"),
        ("apps.kept.error_pages", "{ 404 = 'FOLDER/files/a.txt' }"),
    ]);
    assert_eq!(rig.get("sendfile", "/accel"), (404, "named".to_owned()));
    rig.change(&[("routes[31].error_pages", "{ 404 = 'FOLDER/files/d/home.txt' }")]);
    assert_eq!(rig.get("sendfile", "/accel"), (404, "home".to_owned()));
}

/// Who gets in. All is on a route of its own, but for what is said of the whole server, which is taken back.
fn access(rig: &mut Rig) {
    let users = "anna:$2y$04$Rr/Yea6t/z9N9pQxrmAdUOxd0evfPdC5tmd7aw1Y9UnhpgGGKx0iW\n";
    // Of `key`, by sha256sum(1).
    let keys = "one:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683\n";
    let jwks = r#"{"keys":[{"kty":"oct","k":"YSBzZWNyZXQgb2YgYXQgbGVhc3QgdGhpcnR5LXR3byBieXRlcw"}]}"#;
    for (name, text) in [("users", users), ("keys", keys), ("jwks", jwks)] {
        std::fs::write(rig.file(name), text).unwrap();
    }
    let status = |rig: &Rig, more: &str| rig.ask("access", "GET /", more).status;
    let route = |key: &str| format!("routes[40].{key}");
    let change = |rig: &mut Rig, changes: &[Change<'_>]| {
        let changes: Vec<(String, &str)> = changes.iter().map(|(key, value)| (route(key), *value)).collect();
        let changes: Vec<Change<'_>> = changes.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        assert!(rig.change(&changes).contains("routes: changed"));
    };
    // One at a time is enough for whoever asks one after the other; tests/access has what is beyond.
    change(rig, &[("match.host", "'access'"), ("app", "'kept'"), ("max_in_flight", "1")]);
    assert_eq!((status(rig, ""), status(rig, "")), (200, 200));
    change(rig, &[("app", ""), ("max_in_flight", ""), ("respond.body", "'in'")]);
    assert_eq!(status(rig, ""), 200);
    change(rig, &[("allow", "'10.0.0.0/8'")]);
    assert_eq!(status(rig, ""), 403);
    change(rig, &[("allow", "'loopback'"), ("deny", "'127.0.0.0/8'")]);
    assert_eq!(status(rig, ""), 403);
    change(rig, &[("deny", ""), ("auth.basic", "'FOLDER/users'"), ("auth.realm", "'staff'")]);
    let answer = rig.ask("access", "GET /", "");
    assert!(answer.status == 401 && answer.has("realm=\"staff\""), "{}", answer.head);
    assert_eq!(status(rig, "Authorization: Basic YW5uYTpzZWNyZXQ=\r\n"), 200);
    change(rig, &[("satisfy", "'any'")]);
    assert_eq!(status(rig, ""), 200);
    change(rig, &[("satisfy", ""), ("auth.basic", ""), ("auth.keys", "'FOLDER/keys'"), ("auth.key_field", "'X-Door'")]);
    assert_eq!((status(rig, "X-Door: key\r\n"), status(rig, "X-Api-Key: key\r\n")), (200, 401));
    change(
        rig,
        &[
            ("auth.keys", ""),
            ("auth.key_field", ""),
            ("auth.jwt.keys", "'FOLDER/jwks'"),
            ("auth.jwt.algorithms", "'HS256'"),
            ("auth.jwt.issuer", "'us'"),
            ("auth.jwt.audience", "'shop'"),
        ],
    );
    // Of somebody else, but for us; tests/access has what is let in.
    let answer = rig.ask("access", "GET /", "Authorization: Bearer a.b.c\r\n");
    assert!(answer.status == 401 && answer.has("WWW-Authenticate: Bearer"), "{}", answer.head);
    rig.change(&[(&route("auth.jwt.keys"), "'http://127.0.0.1:1/jwks'"), (&route("auth.jwt.refresh"), "'1s'")]);
    // Nobody is there, and it is not known whose token it is.
    assert_eq!(rig.ask("access", "GET /", "Authorization: Bearer a.b.c\r\n").status, 503);
    rig.text.set((&route("auth.jwt.refresh"), ""));
    let gone = ["keys", "algorithms", "issuer", "audience"].map(|name| route(&format!("auth.jwt.{name}")));
    gone.iter().for_each(|key| rig.text.set((key, "")));
    rig.text.set((&route("auth.realm"), ""));
    forwarded(rig, &route);
    rig.change(&[("limits.one.rate", "'1000/s'"), (&route("limits"), "'one'")]);
    limits(rig);
    everybody(rig);
}

/// The app that is asked does what the path says that it is asked for.
fn forwarded(rig: &mut Rig, route: &dyn Fn(&str) -> String) {
    let keys = ["app", "path", "copy", "timeout"].map(|name| route(&format!("forward_auth.{name}")));
    let [app, path, copy, timeout] = keys.each_ref().map(String::as_str);
    let status = |rig: &Rig| rig.ask("access", "GET /", "").status;
    rig.change(&[(app, "'kept'")]);
    assert_eq!(status(rig), 200);
    rig.change(&[(path, "'/503'")]);
    assert_eq!(status(rig), 503);
    rig.change(&[(path, "'/hang'"), (timeout, SHORT)]);
    assert_eq!(status(rig), 503);
    rig.change(&[(path, ""), (timeout, ""), (copy, "'X-Copied'")]);
    assert_eq!(rig.ask("kept", "GET /copied", "X-Copied: mine\r\n").status, 200);
    let seen = rig.upstreams[0].of("/copied").unwrap().bytes;
    assert!(!String::from_utf8_lossy(&seen).contains("mine"), "nobody but who is asked says it");
    rig.change(&[(app, ""), (copy, "")]);
}

fn limits(rig: &mut Rig) {
    let ask = |rig: &Rig, more: &str| rig.ask("access", "GET /", more).status;
    rig.change(&[("limits.one.rate", "'2/h'"), ("limits.one.burst", "1"), ("limits.one.key", "'field:X-Who'")]);
    let who = |rig: &Rig, name: &str| ask(rig, &format!("X-Who: {name}\r\n"));
    assert_eq!((who(rig, "a"), who(rig, "a"), who(rig, "b")), (200, 429, 200));
    rig.change(&[("limits.one.status", "420")]);
    assert_eq!(who(rig, "a"), 420);
    rig.change(&[("limits.one.headers", "true")]);
    assert!(rig.ask("access", "GET /", "X-Who: other\r\n").has("RateLimit: \"one\";r=0;t=1800"));
    rig.change(&[("limits.one.dry_run", "true"), ("limits.one.headers", "")]);
    assert_eq!(who(rig, "a"), 200);
    rig.change(&[("limits.one.rate", "'3600/h'"), ("limits.one.dry_run", "false"), ("limits.one.delay", "'60s'")]);
    assert_eq!((who(rig, "c"), who(rig, "c")), (200, 200), "it waits");
    assert!(rig.site.line.status()["limits"].as_array().unwrap().iter().any(|limit| limit["delayed"] == 1));
    rig.change(&[
        ("limits.one.delay", ""),
        ("limits.one.key", ""),
        ("limits.one.rate", "'1/h'"),
        ("limits.one.everywhere", "true"),
    ]);
    assert_eq!((ask(rig, ""), rig.get("respond", "/").0), (200, 420));
    // By less of an address: another name of the same client.
    rig.change(&[("limits.one.prefix", "{ v4 = 8, v6 = 16 }")]);
    assert_eq!(ask(rig, ""), 200);
    rig.change(&[("limits.one.everywhere", "false")]);
    assert_eq!(rig.get("respond", "/").0, 200);
}

/// The same of all clients.
fn everybody(rig: &mut Rig) {
    let get = |rig: &Rig| rig.get("respond", "/").0;
    rig.change(&[("server.deny", "'127.0.0.1'")]);
    assert_eq!(get(rig), 403);
    rig.change(&[("server.deny", ""), ("server.allow", "'10.0.0.0/8'")]);
    assert_eq!(get(rig), 403);
    rig.change(&[("server.allow", ""), ("listen[0].deny", "'127.0.0.1'")]);
    assert_eq!(get(rig), 403);
    rig.change(&[("listen[0].deny", ""), ("listen[0].allow", "'10.0.0.0/8'")]);
    assert_eq!(get(rig), 403);
    rig.change(&[("listen[0].allow", ""), ("server.rate_limit", "'1/h'")]);
    assert_eq!((get(rig), get(rig)), (200, 429));
    rig.change(&[("server.rate_limit", "")]);
    // Who is there already counts as whoever comes later.
    let mut first = rig.client();
    assert_eq!(first.ask("GET / HTTP/1.1\r\nHost: respond\r\n\r\n").status, 200);
    rig.change(&[("server.connections_per_ip", "1")]);
    let (rest, _) = rig.client().rest();
    assert!(rest.is_empty(), "a second connection was let in");
    drop(first);
    rig.change(&[("server.connections_per_ip", "")]);
    assert_eq!(get(rig), 200);
}

fn metrics(rig: &mut Rig) {
    let metrics = |rig: &Rig| rig.get("localhost", "/inside/metrics");
    assert!(!metrics(rig).1.contains("bungate_requests_total"));
    rig.change(&[("metrics.bungate", "true")]);
    assert!(metrics(rig).1.contains("bungate_requests_total"));
    rig.change(&[("metrics.prometheus", "false")]);
    assert_eq!(metrics(rig).0, 404);
}

pub fn logs(rig: &mut Rig) {
    let access = rig.file("access.log");
    let lines = || std::fs::read_to_string(&access).unwrap_or_default();
    let logged = |rig: &Rig, path: &str| {
        assert_ne!(rig.ask("respond", &format!("GET {path}?token=secret"), "User-Agent: tester\r\n").status, 500);
        let mut line = String::new();
        until("it is logged", || {
            line = lines().lines().find(|line| line.contains(path)).unwrap_or_default().to_owned();
            !line.is_empty()
        });
        line
    };
    rig.change(&[("log.access.to", "'FOLDER/access.log'"), ("log.format", "'{method} at {path}'")]);
    assert_eq!(logged(rig, "/first"), "GET at /first");
    rig.change(&[
        ("log.access.format", "'combined'"),
        ("log.access.redact.fields", "['user-agent']"),
        ("log.access.redact.query", "['token']"),
        ("log.access.sample", "['404:0']"),
    ]);
    assert_eq!(rig.get("nobody", "/unlogged").0, 404);
    let line = logged(rig, "/second");
    assert!(line.contains("\"GET /second?token=") && line.ends_with('"'), "{line}");
    assert!(!line.contains("secret") && !line.contains("tester"), "{line}");
    assert!(!lines().contains("/unlogged"));
    rig.change(&[("log.format", ""), ("log.access.format", ""), ("log.access_json", "true")]);
    let line: Value = serde_json::from_str(&logged(rig, "/third")).unwrap();
    assert!(line.is_object());
    rig.change(&[("log.events.to", "'FOLDER/events.log'"), ("log.events.format", "'human'")]);
    let events = rig.file("events.log");
    let events = || std::fs::read_to_string(&events).unwrap_or_default();
    rig.change(&[("server.max_fields", "21")]);
    until("events are in the file", || events().contains("server.max_fields: 20 -> 21"));
    assert!(events().lines().all(|line| serde_json::from_str::<Value>(line).is_err()), "{}", events());
    rig.change(&[("log.level", "'error'")]);
    rig.change(&[("server.max_fields", "22")]);
    rig.change(&[("log.events.to", "'stderr'"), ("log.events.format", "'json'"), ("log.level", "'info'")]);
    assert!(!events().contains("21 -> 22"), "{}", events());
}

/// A server that is to stop first says that it is not ready, and then cuts what runs on.
pub fn end(rig: Rig) {
    let admin: SocketAddr = rig.site.line.status()["admin"][0].as_str().unwrap().parse().unwrap();
    let mut hanging = rig.begin("timeouts-connect", "/hang");
    send_signal(rig.site.line.process(), "TERM");
    until("it is not ready", || Client::to(admin).get("/readyz").status == 503);
    let (answer, _) = hanging.rest();
    assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    rig.site.line.gone();
}

/// What ends a server is changed in one of its own: it ends once all workers of the app are given up. The other app serves on until balancers
/// have had the time to turn away.
pub fn ends_by_itself(backend: &str) {
    let text = "[server]\npre_stop_delay = '10m'\n[apps.fixed]\nrespond = 'fixed'\n[[routes]]\nmatch = { path = '/fixed' }\napp = 'fixed'\n\
        [[routes]]\napp = 'web'\n[apps.web]\ncommand = [PYTHON, 'web', 'FOLDER']\nworkers = 1\n\
        restart = { base = '1ms', give_up = '2/60s' }\n";
    let site = Site::start(backend, text);
    site.until_ready();
    site.write(&text.replace("'2/60s'", "'2/60s', give_up_exit = true"));
    let said = site.word(&["reload", "--wait"]);
    assert!(said.contains(&AT_THE_END[0].replace('*', "web")), "{said}");
    site.tell("web.crash", true);
    site.word(&["signal", "web", "KILL"]);
    until("it says that it leaves", || site.get("localhost", "/readyz").1.contains("the server stops"));
    assert_eq!(site.get("localhost", "/fixed"), (200, "fixed".to_owned()));
    send_signal(site.line.process(), "TERM");
    assert_eq!(site.line.gone(), Some(69));
}
