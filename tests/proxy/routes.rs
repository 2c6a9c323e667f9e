//! Routes: to an app, to a fixed answer, to a redirect, by host, path and method; and what they change on the way.

use std::path::PathBuf;

use crate::support::{Client, Server, Worker, folder, on_every_backend_and_tls};

on_every_backend_and_tls! {
    the_first_route_that_matches_answers
    fields_and_paths_are_changed_on_the_way
    what_is_said_of_a_route_holds_for_every_answer_of_it
    many_routes_are_as_one
}

/// A server with that file; `{worker}` in it is the recording worker.
struct Site {
    server: Server,
    worker: Worker,
    _folder: tempfile::TempDir,
}

fn site(backend: &str, worker: Worker, file: &str) -> Site {
    let folder = folder();
    let path: PathBuf = folder.path().join("site.toml");
    std::fs::write(&path, file.replace("{worker}", &worker.url)).unwrap();
    let server = Server::start(backend, &["-f", path.to_str().unwrap()]);
    Site { server, worker, _folder: folder }
}

const SITE: &str = r#"
[apps.web]
upstream = "{worker}"

[[routes]]
match = { host = "old.example.org", method = ["GET", "HEAD"] }
redirect = { to = "https://new.example.org{path}{query}", status = 308 }

[[routes]]
match = { host = "*.example.org", path = "/api/*" }
app = "web"
rewrite = { strip = "/api", prefix = "/v2" }
request_fields = { set = { X-Tenant = "a" }, remove = ["Cookie", "X-Secret"] }
response_fields = { set = { X-Frame-Options = "DENY" }, remove = "Server" }

[[routes]]
match.host = "tenant.example"
app = "web"
rewrite.prefix = "/tenant-a"

[[routes]]
match.path = "/teapot"
respond = { status = 418, body = "short and stout", type = "text/x-tea" }
response_fields.set = { X-Tea = "green" }

[[routes]]
match.path = "/empty"
respond = { status = 204 }

[[routes]]
match.path = "/here"
redirect = "/there"

[[routes]]
match.path = "/same"
redirect = { to = "https://{host}{path}", status = 308 }

[[routes]]
match.host = "example.org"
app = "web"
"#;

fn the_first_route_that_matches_answers(backend: &str) {
    let site = site(backend, Worker::echo(), SITE);
    let mut client = Client::of(&site.server);
    let mut ask = |request: &str| client.ask(&format!("{request}\r\n\r\n"));
    let answer = ask("GET /a?b=c HTTP/1.1\r\nHost: OLD.example.org:8080");
    assert_eq!((answer.status, answer.field("Location")), (308, Some("https://new.example.org/a?b=c")));
    assert_eq!(answer.field("Content-Length"), Some("0"));
    // Not with that method; and no other route is for that host and path.
    let answer = ask("DELETE /a HTTP/1.1\r\nHost: old.example.org");
    assert_eq!(answer.status, 404, "{}", answer.text());
    let answer = ask("GET /teapot HTTP/1.1\r\nHost: any");
    assert_eq!((answer.status, answer.text().as_str()), (418, "short and stout"));
    assert_eq!((answer.field("Content-Type"), answer.field("X-Tea")), (Some("text/x-tea"), Some("green")));
    for spelled in ["/%74eapot", "//teapot", "/x/../teapot?y"] {
        assert_eq!(ask(&format!("GET {spelled} HTTP/1.1\r\nHost: any")).status, 418, "{spelled}");
    }
    let answer = ask("GET /empty HTTP/1.1\r\nHost: any");
    assert_eq!((answer.status, answer.field("Content-Length")), (204, None));
    assert_eq!(
        ask("POST /here HTTP/1.1\r\nHost: any\r\nContent-Length: 3\r\n\r\nabc").field("Location"),
        Some("/there")
    );
    let answer = ask("OPTIONS /same HTTP/1.1\r\nHost: a.b");
    assert_eq!((answer.status, answer.field("Location")), (308, Some("https://a.b/same")));
    for hostless in [
        "GET /same HTTP/1.1\r\nHost:",
        "GET /same HTTP/1.1\r\nHost: :80",
        "GET /same HTTP/1.0\r\nConnection: keep-alive",
    ] {
        let answer = ask(hostless);
        assert_eq!((answer.status, answer.field("Location")), (400, None), "{hostless}");
    }
    let answer = ask("GET /x HTTP/1.1\r\nHost: example.org");
    assert!(answer.status == 200 && answer.text().starts_with("GET /x HTTP/1.1\r\n"), "{}", answer.text());
    let answer = ask("GET /x HTTP/1.1\r\nHost: elsewhere\r\nAccept: application/json");
    assert_eq!(answer.status, 404);
    client.expect_alive();
    // A body behind a request that no route takes is read, and is no request.
    let smuggled = "GET /teapot HTTP/1.1\r\nHost: any\r\n\r\n";
    let answer = client
        .ask(&format!("POST /x HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len()));
    assert_eq!(answer.status, 404);
    client.expect_alive();
}

fn fields_and_paths_are_changed_on_the_way(backend: &str) {
    let site = site(backend, Worker::echo(), SITE);
    let mut client = Client::of(&site.server);
    let answer = client.ask(
        "POST /api/users?q=1 HTTP/1.1\r\nHost: a.example.org\r\nCookie: a=b\r\nx-secret: 1\r\nx-tenant: evil\r\nX-Kept: yes\r\n\
         cookie: c=d\r\nContent-Length: 3\r\n\r\nabc",
    );
    let seen = answer.text();
    let lines: Vec<&str> = seen.lines().collect();
    assert_eq!(lines[0], "POST /v2/users?q=1 HTTP/1.1", "{seen}");
    let has = |name: &str| lines.iter().filter(|line| line.to_ascii_lowercase().starts_with(name)).count();
    assert_eq!((has("cookie:"), has("x-secret:"), has("x-kept: yes"), has("x-tenant:")), (0, 0, 1, 1), "{seen}");
    assert_eq!((has("x-tenant: a"), has("content-length: 3"), has("host: a.example.org")), (1, 1, 1), "{seen}");
    assert_eq!(has("x-forwarded-for: 127.0.0.1"), 1);
    assert!(seen.ends_with("\r\n\r\nabc"), "{seen}");
    assert_eq!((answer.all("X-Frame-Options"), answer.field("Server")), (vec!["DENY"], None));
    // In chunks, and with a target that is absolute.
    let answer = client.ask(
        "POST http://b.example.org/api/ HTTP/1.1\r\nHost: other\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    );
    let seen = answer.text();
    assert!(seen.starts_with("POST /v2/ HTTP/1.1\r\n") && seen.ends_with("abc"), "{seen}");
    let answer = client.ask("GET /api/../plain HTTP/1.1\r\nHost: a.example.org\r\n\r\n");
    assert_eq!(answer.status, 404, "it is not below /api/");
    // However it is spelled: what was stripped is what was found, and nothing leads out of what is put in front.
    for (host, target, line) in [
        ("a.example.org", "/%61pi/users%201?q=/../", "/v2/users%201?q=/../"),
        ("a.example.org", "//x/%2e%2e/api/users", "/v2/users"),
        ("tenant.example", "/../b/secret", "/tenant-a/b/secret"),
        ("tenant.example", "/%2E%2e/b/secret?x", "/tenant-a/b/secret?x"),
        ("tenant.example", "/a%2Fb//c", "/tenant-a/a%2Fb//c"),
    ] {
        let answer = client.ask(&format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        let seen = answer.text();
        assert_eq!(seen.lines().next(), Some(format!("GET {line} HTTP/1.1").as_str()), "{target}: {seen}");
    }
    client.expect_alive();
}

fn what_is_said_of_a_route_holds_for_every_answer_of_it(backend: &str) {
    let long = "x".repeat(100_000);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nServer: app\r\nX-Frame-Options: ALLOW\r\nx-frame-options: again\r\nContent-Length: {}\r\n\r\n{long}",
        long.len()
    );
    let site = site(backend, Worker::saying(answer), SITE);
    let mut client = Client::of(&site.server);
    let answer = client.ask("GET /api/long HTTP/1.1\r\nHost: a.example.org\r\n\r\n");
    assert_eq!((answer.all("X-Frame-Options"), answer.field("Server")), (vec!["DENY"], None));
    assert_eq!(answer.text(), long);
    let answer = client.ask("GET /plain HTTP/1.1\r\nHost: example.org\r\n\r\n");
    assert_eq!((answer.all("X-Frame-Options").len(), answer.field("Server")), (2, Some("app")));
    let answer = client.ask("HEAD /teapot HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!((answer.status, answer.field("Content-Length")), (418, Some("15")));
    drop(site.worker);
}

fn many_routes_are_as_one(backend: &str) {
    let mut file = "[apps.web]\nupstream = \"{worker}\"\n".to_owned();
    for index in 0..500 {
        file.push_str(&format!(
            "[[routes]]\nmatch = {{ host = \"h{}\", path = \"/p{index}/*\" }}\nrespond = \"{index}\"\n",
            index % 7
        ));
    }
    file.push_str("[[routes]]\napp = \"web\"\n");
    let site = site(backend, Worker::saying("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\napp"), &file);
    let mut client = Client::of(&site.server);
    for (host, path, expected) in
        [("h3", "/p3/", "3"), ("h2", "/p499/x", "499"), ("h3", "/p499/x", "app"), ("h9", "/p3/", "app")]
    {
        let answer = client.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(answer.text(), expected, "{host}{path}");
    }
}
