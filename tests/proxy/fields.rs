//! Field lines on their way through, both ways.

use crate::support::tls::SUFFIX;
use crate::support::{Client, Server, Worker, on_every_backend_and_tls};

on_every_backend_and_tls! {
    hop_by_hop_fields_end_here
    what_connection_names_ends_here
    forwarded_fields_are_ours
    what_is_the_clients_passes_untouched
    fields_of_answers
    unwanted_upgrades_are_dropped
}

/// What the worker gets for a GET with these lines, in small letters, one string a line.
fn seen(client: &mut Client, lines: &str) -> Vec<String> {
    let answer = client.ask(&format!("GET /seen HTTP/1.1\r\nHost: test\r\n{lines}\r\n"));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.text().lines().map(str::to_ascii_lowercase).filter(|line| !line.is_empty()).collect()
}

fn values<'a>(lines: &'a [String], name: &str) -> Vec<&'a str> {
    lines.iter().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).collect()
}

fn hop_by_hop_fields_end_here(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    let lines = seen(
        &mut client,
        "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n\
         HTTP2-Settings: AAMAAABkAAQAAP__\r\nUpgrade: h2c\r\nProxy: http://evil\r\nX-Kept: yes\r\n",
    );
    for name in ["connection", "keep-alive", "proxy-connection", "te", "http2-settings", "upgrade", "proxy"] {
        assert!(values(&lines, name).is_empty(), "{name}: {lines:?}");
    }
    assert_eq!(values(&lines, "x-kept"), ["yes"]);
}

fn what_connection_names_ends_here(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    let lines = seen(
        &mut client,
        "Connection: X-Hop, host, content-length, x-forwarded-for, via\r\nConnection: Other-Hop, Cookie, x-request-id\r\n\
         x-hop: 1\r\nX-Hop: 2\r\nOTHER-HOP: 3\r\nX-Hopper: kept\r\n",
    );
    assert!(values(&lines, "x-hop").is_empty() && values(&lines, "other-hop").is_empty(), "{lines:?}");
    assert_eq!(values(&lines, "x-hopper"), ["kept"]);
    assert_eq!(values(&lines, "host"), ["test"]);
    assert_eq!(values(&lines, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(&lines, "via").len(), 1);
    assert_eq!(values(&lines, "x-request-id").len(), 1);
    // The framing cannot be named away: the body would become a request.
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: test\r\n\r\n";
    let request = format!(
        "POST /framed HTTP/1.1\r\nHost: test\r\nConnection: Content-Length\r\nContent-Length: {}\r\n\r\n{smuggled}",
        smuggled.len()
    );
    let body = client.ask(&request).text();
    assert!(body.starts_with("POST /framed ") && body.ends_with(smuggled), "{body}");
    let request = "POST /framed HTTP/1.1\r\nHost: test\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n\
                   \r\n3\r\nabc\r\n0\r\n\r\n";
    assert!(client.ask(request).text().ends_with("\r\n\r\nabc"));
    client.expect_alive();
}

fn forwarded_fields_are_ours(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    let lines = seen(
        &mut client,
        "X-Forwarded-For: 6.6.6.6\r\nx-forwarded-proto: https\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Port: 666\r\n\
         X-Forwarded-Prefix: /evil\r\nX-Forwarded-Ssl: on\r\nX-Real-IP: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\n\
         X-Request-Id: evil\r\nX-Request-Start: t=666\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded_Host: evil\r\n\
         x_real_ip: 6.6.6.6\r\nX_Request_Id: evil\r\nContent_Length: 6\r\nTransfer_Encoding: chunked\r\nX_Mine: kept\r\n\
         Via: 1.1 before\r\n",
    );
    assert!(
        !lines.iter().any(|line| line.contains("evil") || line.contains("t=666") || line.contains("6.6.6.6")),
        "{lines:?}"
    );
    assert_eq!(values(&lines, "x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(values(&lines, "x-real-ip"), ["127.0.0.1"]);
    let scheme = if backend.ends_with(SUFFIX) { "https" } else { "http" };
    assert_eq!(values(&lines, "x-forwarded-proto"), [scheme]);
    assert_eq!(values(&lines, "x-forwarded-host"), ["test"]);
    assert_eq!(values(&lines, "x-forwarded-port"), [server.own.port().to_string()]);
    assert_eq!(values(&lines, "via"), ["1.1 before", "1.1 production_server"]);
    assert_eq!(values(&lines, "x_mine"), ["kept"]);
    for shadow in ["content_length", "transfer_encoding", "x_request_id", "x_real_ip"] {
        assert!(values(&lines, shadow).is_empty(), "{shadow}: {lines:?}");
    }
    let start = values(&lines, "x-request-start");
    let [start] = start[..] else { panic!("{lines:?}") };
    let seconds: f64 = start.strip_prefix("t=").unwrap().parse().unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - 20.0..now + 1.0).contains(&seconds), "{start} at {now}");
    let answer = Client::of(&server).ask("GET / HTTP/1.0\r\n\r\n");
    assert!(answer.text().contains("\r\nVia: 1.0 production_server\r\n"), "{}", answer.text());
}

fn what_is_the_clients_passes_untouched(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    let lines = "Cookie: a=b; c=\"d\"\r\nAccept: */*\r\nCookie: e=f\r\nx-CASE: MiXed\r\nX-Empty:\r\nX-Spaces:   a  b\t \r\n\
                 X-Utf8: gr\u{fc}n\r\nAuthorization: Basic eA==\r\nAccept-Encoding: gzip, br\r\n";
    let answer = client.ask(&format!("GET /seen HTTP/1.1\r\nHost: test\r\n{lines}\r\n"));
    let body = answer.text();
    assert!(body.starts_with(&format!("GET /seen HTTP/1.1\r\nHost: test\r\n{lines}")), "{body}");
    // Lines that end in a bare LF are accepted and do not leave as such.
    client.send("GET /bare HTTP/1.1\nHost: test\nX-A:  b \nX-C: d\r\n\n");
    let body = client.answer().text();
    assert!(body.starts_with("GET /bare HTTP/1.1\r\nHost: test\r\nX-A: b\r\nX-C: d\r\n"), "{body}");
    assert!(!body.replace("\r\n", "").contains('\n'), "{body}");
}

fn fields_of_answers(backend: &str) {
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            let date = if head.starts_with("GET /dated") { "Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n" } else { "" };
            incoming.send(format!(
                "HTTP/1.1 418 I'm a teapot\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=60\r\n\
                 Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nTE: x\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d, e\r\n\
                 X-Request-Id: theirs\r\nX-Accel-Buffering: no\r\nServer: mine\r\nRip-Worker-Busy: 0\r\n{date}\
                 X-Kept: \u{e9}\r\nContent-Length: 2\r\n\r\nhi"
            ));
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    let mut ids = Vec::new();
    for path in ["/dated", "/undated", "/undated"] {
        let answer = client.get(path);
        assert!(answer.head.starts_with("HTTP/1.1 418 I'm a teapot\r\n"), "{}", answer.head);
        for name in ["connection", "x-hop", "keep-alive", "proxy-connection", "upgrade", "te"] {
            assert_eq!(answer.field(name), None, "{name}\n{}", answer.head);
        }
        assert_eq!(answer.all("set-cookie"), ["a=b", "c=d, e"]);
        assert_eq!(answer.field("server"), Some("mine"));
        assert_eq!(answer.field("x-accel-buffering"), Some("no"), "a proxy in front buffers without it");
        assert_eq!(answer.field("x-kept"), Some("\u{e9}"));
        let date = answer.field("date").expect("a Date, once");
        assert_eq!(path == "/dated", date == "Thu, 01 Jan 1970 00:00:00 GMT", "{date}");
        ids.push(answer.field("x-request-id").unwrap().to_owned());
    }
    // The id that the client is told is the one that the worker was told.
    let all = String::from_utf8(worker.everything()).unwrap();
    for id in &ids {
        assert_eq!(all.matches(&format!("X-Request-Id: {id}\r\n")).count(), 1, "{id}\n{all}");
    }
    ids.dedup();
    assert_eq!(ids.len(), 3);
    assert!(client.get("/server").field("date").is_some());
}

fn unwanted_upgrades_are_dropped(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    for lines in [
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n",
        // Without the connection option it is no offer.
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\n",
    ] {
        let lines = seen(&mut client, lines);
        for name in ["connection", "upgrade", "http2-settings"] {
            assert!(values(&lines, name).is_empty(), "{lines:?}");
        }
    }
    // Nor one with a body.
    let body = client.ask(
        "POST / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 2\r\n\r\nab",
    );
    assert!(!body.text().to_ascii_lowercase().contains("upgrade"), "{}", body.text());
    let lines = seen(&mut client, "Connection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Key: x\r\n");
    assert_eq!(values(&lines, "connection"), ["upgrade"]);
    assert_eq!(values(&lines, "upgrade"), ["websocket"]);
    assert_eq!(values(&lines, "sec-websocket-key"), ["x"]);
}
