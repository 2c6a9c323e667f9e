//! Three apps on two hosts: each has its own requests, and what becomes of one leaves the others as they were.

use super::*;

on_every_backend! {
    each_request_finds_its_app,
    what_becomes_of_one_leaves_the_others,
    several_apps_are_handed_over_whole,
}

/// Two apps in Python and the built-in worker on two hosts, by four routes.
const SITE: &str = "
[[routes]]
match = { host = 'a.example', path = '/api/*' }
app = 'api'
rewrite = { strip = '/api' }
request_fields = { set = { 'X-Part' = 'api' } }
[[routes]]
match = { host = 'a.example' }
app = 'web'
response_fields = { set = { 'X-Of' = 'web' } }
[[routes]]
match = { host = 'b.example', path = '/old' }
redirect = { to = 'http://a.example/new', status = 308 }
[[routes]]
match = { host = 'b.example' }
app = 'plain'

[apps.web]
command = [PYTHON, 'web', 'FOLDER']
workers = 2
[apps.api]
command = [PYTHON, 'api', 'FOLDER']
workers = 1
queue = { size = 1, timeout = '30s', hold = '30s' }
restart = { base = '5ms', max = '20ms', give_up = { crashes = 3, within = '60s' } }
required = false
[apps.plain]
workers = 1
";

fn each_request_finds_its_app(backend: &str) {
    let site = Site::start(backend, SITE);
    site.until_ready();
    let mut client = site.client();
    let ok = |text: &str| (200, text.to_owned());
    // Over one connection: the app is the request's, and not the connection's.
    for _ in 0..3 {
        assert_eq!(get(&mut client, "a.example", "/api/x?y"), ok("api /x?y"));
        assert_eq!(get(&mut client, "a.example", "/apix"), ok("web /apix"));
        assert_eq!(get(&mut client, "b.example", "/ping"), ok("pong"));
        assert_eq!(get(&mut client, "b.example", "/old").0, 308);
        assert_eq!(get(&mut client, "c.example", "/").0, 404);
    }
    let answer = client.ask("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
    assert!(answer.has("x-of: web"), "{}", answer.head);
    // Each app counts its own.
    let total = |name: &str| site.app(name)["requests"]["total"].as_u64().unwrap();
    until("all answers are counted", || (total("api"), total("web"), total("plain")) == (3, 4, 3));
    // Sockets and lines are told apart by the app's name.
    for name in ["api", "web", "plain"] {
        let socket = site.app(name)["workers"][0]["socket"].as_str().unwrap().to_owned();
        assert!(socket.contains(&format!("/{name}.G1.1.")), "{socket}");
    }
    for name in ["api", "web"] {
        let of_app =
            |line: &String| line.contains(&format!("worker of {name}")) && line.starts_with(&format!("[{name}.G1.1 "));
        until("its worker's line is there", || site.line.server.lines().iter().any(of_app));
    }
    let document = client.ask("GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n").text();
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&document["status"], &document["workers"]), (&"healthy".into(), &4.into()), "{document}");
    let shown = site.word(&["status"]);
    assert!(["api", "web", "plain"].iter().all(|name| shown.contains(name)), "{shown}");
    // Words that are about one app say which they could mean.
    let (code, said) = site.line.word(&["scale", "2"]);
    assert!(code == Some(64) && said.contains("web, api, plain"), "{code:?}: {said}");
    site.word(&["scale", "plain", "2"]);
    site.until_ready();
    assert_eq!((site.pids("plain").len(), site.pids("web").len()), (2, 2));
    site.line.stop();
}

fn what_becomes_of_one_leaves_the_others(backend: &str) {
    let site = Site::start(backend, SITE);
    site.until_ready();
    let others = || (site.pids("web"), site.pids("plain"));
    let (before, api) = (others(), site.pids("api"));
    let mut asked = 0;
    // Both others answer, at once and with no worker replaced.
    let mut others_serve = || {
        let mut client = site.client();
        for _ in 0..20 {
            assert_eq!(get(&mut client, "a.example", "/x"), (200, "web /x".to_owned()));
            assert_eq!(get(&mut client, "b.example", "/ping"), (200, "pong".to_owned()));
            asked += 1;
        }
        until("all answers are counted", || {
            ["web", "plain"].iter().all(|name| site.app(name)["requests"]["total"] == asked)
        });
        assert_eq!(others(), before);
    };
    site.word(&["restart", "api", "--wait"]);
    assert_eq!((&site.app("api")["generation"], &site.app("web")["generation"]), (&2.into(), &1.into()));
    assert_ne!(site.pids("api"), api);
    others_serve();
    // Its only worker is busy, and its line is full.
    let (mut busy, mut waiting) = (site.client(), site.client());
    busy.send("GET /api/block HTTP/1.1\r\nHost: a.example\r\n\r\n");
    until("it is busy", || site.app("api")["workers_busy"] == 1);
    waiting.send("GET /api/later HTTP/1.1\r\nHost: a.example\r\n\r\n");
    until("its line is full", || site.app("api")["queue"]["depth"] == 1);
    assert_eq!(site.get("a.example", "/api/x").0, 503);
    others_serve();
    site.tell("api.go", true);
    assert_eq!((busy.answer().text(), waiting.answer().text()), ("api /block".to_owned(), "api /later".to_owned()));
    // It crashes whenever it is started.
    site.tell("api.crash", true);
    site.word(&["signal", "api", "KILL"]);
    until("it has failed", || site.app("api")["state"] == "failed");
    assert_eq!(site.get("a.example", "/api/x").0, 503);
    others_serve();
    let status = site.line.status();
    assert_eq!(status["state"], "running", "it is not required");
    assert_eq!(site.get("b.example", "/server"), (200, "ok".to_owned()));
    // It comes back by itself or when it is asked to.
    site.tell("api.crash", false);
    site.word(&["restart", "api", "--wait"]);
    assert_eq!(site.get("a.example", "/api/x"), (200, "api /x".to_owned()));
    others_serve();
    site.line.stop();
}

/// All apps are there behind an upgrade before anybody is sent there, those with workers and those without.
fn several_apps_are_handed_over_whole(backend: &str) {
    let site = Site::start(backend, SITE);
    site.until_ready();
    let before = site.line.process();
    let mut kept = site.client();
    assert_eq!(get(&mut kept, "a.example", "/api/x").0, 200);
    // The new server reads the file anew, and has another app.
    let more = "\n[apps.more]\nrespond = 'more'\n[[routes]]\nmatch = { host = 'c.example' }\napp = 'more'\n";
    site.write(&[SITE, more].concat());
    site.line.upgraded();
    for (host, path, text) in [
        ("a.example", "/api/y", "api /y"),
        ("a.example", "/y", "web /y"),
        ("b.example", "/ping", "pong"),
        ("c.example", "/", "more"),
    ] {
        assert_eq!(site.get(host, path), (200, text.to_owned()));
    }
    let status = site.line.status();
    let apps = status["apps"].as_array().unwrap().iter();
    let apps: Vec<_> =
        apps.map(|app| (app["name"].as_str().unwrap(), app["workers_ready"].as_u64().unwrap())).collect();
    assert_eq!(apps, [("web", 2), ("api", 1), ("plain", 1), ("more", 0)]);
    assert_eq!(
        get(&mut kept, "a.example", "/api/x"),
        (200, "api /x".to_owned()),
        "the old server finishes what it has"
    );
    drop(kept);
    until("the old server is gone", || crate::support::Process::of(before).is_none());
    site.line.stop();
}
