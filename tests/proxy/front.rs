//! Behind a proxy: whose word about a request counts, and connections that begin with a PROXY protocol header.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use production_server::http::proxy_protocol::{self, crc32c};

use crate::support::{Client, Server, Worker, folder, on_every_backend, until};

on_every_backend! {
    a_trusted_proxy_is_believed
    what_is_said_of_one_request_is_not_said_of_the_next
    nobody_else_is_believed
    a_peer_that_is_ipv4_over_an_ipv6_listener_is_the_same
    a_refused_request_is_its_clients
    forwarded_is_written_when_it_is_asked_for
    a_proxy_protocol_header_names_the_client
    a_header_may_be_as_long_as_extensions_make_it
    what_is_no_header_is_closed_without_a_word
    a_header_where_none_is_expected_is_no_request
    a_header_must_come_in_time
    only_those_who_may_connect
    the_client_of_a_header_may_be_a_trusted_proxy
    a_stop_does_not_wait_for_headers
    each_listener_may_have_a_front_of_its_own
}

const FRONT: &str = "X-Forwarded-For: 6.6.6.6, 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: shop.example\r\n\
     X-Real-IP: 6.6.6.6\r\nX-Request-Id: front-1\r\nX-Request-Start: t=1700000000.5\r\nX-Forwarded-Prefix: /shop\r\n\
     traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n";

fn request(lines: &str) -> String {
    format!("GET /seen HTTP/1.1\r\nHost: test\r\n{lines}\r\n")
}

/// The values that the worker was told under a name.
fn told(head: &str, name: &str) -> Vec<String> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
}

fn assert_told(head: &str, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        let values = told(head, name);
        let expected = if value.is_empty() { vec![] } else { vec![(*value).to_owned()] };
        assert_eq!(values, expected, "{name} in {head}");
    }
}

fn a_trusted_proxy_is_believed(backend: &str) {
    let (worker, folder) = (Worker::echo(), folder());
    let (socket, log) = (folder.path().join("app.sock"), folder.path().join("access.log"));
    let (listen, log_path) = (format!("unix:{}", socket.display()), log.display().to_string());
    let flags = [
        "--listen",
        "127.0.0.1:0",
        "--listen",
        &listen,
        "--trusted-proxies",
        "loopback,unix",
        "--access-log",
        &log_path,
    ];
    let server = Server::before(backend, &worker.url, &flags);
    let mut client = Client::of(&server);
    let answer = client.ask(&request(FRONT));
    assert_eq!(answer.field("x-request-id"), Some("front-1"));
    let chain = "203.0.113.9, 127.0.0.1";
    let said = [
        ("X-Real-IP", "203.0.113.9"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "shop.example"),
        ("X-Forwarded-Port", "443"),
        ("X-Forwarded-Prefix", "/shop"),
        ("X-Request-Id", "front-1"),
        ("X-Request-Start", "t=1700000000.5"),
        ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ];
    assert_told(&answer.text(), &[&said[..], &[("X-Forwarded-For", chain)]].concat());
    // The next request of the same connection is another client's.
    let answer = client.ask(&request("X-Forwarded-For: \"[2001:db8::9]:4711\"\r\n"));
    assert_told(&answer.text(), &[("X-Real-IP", "2001:db8::9"), ("X-Forwarded-Proto", "http"), ("traceparent", "")]);
    assert_ne!(answer.field("x-request-id"), Some("front-1"));
    let mut unix = UnixStream::connect(&socket).unwrap();
    unix.write_all(request(&format!("{FRONT}Connection: close\r\n")).as_bytes()).unwrap();
    let mut answer = String::new();
    unix.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_told(body, &[&said[..], &[("X-Forwarded-For", "203.0.113.9")]].concat());
    // The loop's own answers are for the same client.
    let answer = client.ask("GET /server HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: 203.0.113.10\r\n\r\n");
    assert_eq!(answer.text(), "ok");
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    until("four lines of the access log", || lines().lines().count() == 4);
    let addresses: Vec<String> = lines()
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["client.address"].as_str().unwrap().to_owned()
        })
        .collect();
    assert_eq!(addresses, ["203.0.113.9", "2001:db8::9", "203.0.113.9", "203.0.113.10"]);
    assert_eq!(lines().matches("\"request.id\":\"front-1\"").count(), 2);
}

fn what_is_said_of_one_request_is_not_said_of_the_next(backend: &str) {
    let (worker, folder) = (Worker::echo(), folder());
    let (socket, log) = (folder.path().join("app.sock"), folder.path().join("access.log"));
    let (listen, log_path) = (format!("unix:{}", socket.display()), log.display().to_string());
    let flags =
        ["--listen", "127.0.0.1:0", "--listen", &listen, "--trusted-proxies", "loopback", "--access-log", &log_path];
    let server = Server::before(backend, &worker.url, &flags);
    let mut client = Client::of(&server);
    assert_eq!(client.ask(&request(FRONT)).field("x-request-id"), Some("front-1"));
    // The exchange that has ended leaves its place to this one, whose peer is not trusted.
    let mut unix = UnixStream::connect(&socket).unwrap();
    unix.write_all(request(&format!("{FRONT}Connection: close\r\n")).as_bytes()).unwrap();
    let mut answer = String::new();
    unix.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 ") && !answer.contains("front-1"), "{answer}");
    // And this one's is, but says nothing.
    assert_ne!(client.ask(&request("")).field("x-request-id"), Some("front-1"));
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    until("three lines of the access log", || lines().lines().count() == 3);
    let said = |name: &str| -> Vec<String> {
        let parsed = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
        lines().lines().map(|line| parsed(line)[name].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(said("client.address"), ["203.0.113.9", "unix:", "127.0.0.1"]);
    assert_eq!(said("request.id").iter().filter(|id| *id == "front-1").count(), 1);
}

fn nobody_else_is_believed(backend: &str) {
    let worker = Worker::echo();
    let server =
        Server::before(backend, &worker.url, &["--trusted-proxies", "10.0.0.0/8", "--trusted-proxies", "unix"]);
    let answer = Client::of(&server).ask(&request(&format!("{FRONT}Forwarded: for=6.6.6.6\r\ntracestate: a=b\r\n")));
    let port = server.address.port().to_string();
    assert_told(
        &answer.text(),
        &[
            ("X-Forwarded-For", "127.0.0.1"),
            ("X-Real-IP", "127.0.0.1"),
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Host", "test"),
            ("X-Forwarded-Port", &port),
            ("X-Forwarded-Prefix", ""),
            ("Forwarded", ""),
            ("traceparent", ""),
            ("tracestate", ""),
        ],
    );
    assert!(!answer.text().contains("front-1") && !answer.text().contains("1700000000.5"), "{}", answer.text());
}

fn forwarded_is_written_when_it_is_asked_for(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--trusted-proxies", "loopback", "--forwarded", "write"]);
    let mut client = Client::of(&server);
    let answer = client.ask(&request("X-Forwarded-For: 2001:db8::9\r\nX-Forwarded-Proto: https\r\n"));
    let told = "for=\"[2001:db8::9]\";proto=https;host=\"test\", for=127.0.0.1";
    assert_told(&answer.text(), &[("Forwarded", told)]);
    assert_told(&client.get("/seen").text(), &[("Forwarded", "for=127.0.0.1;proto=http;host=\"test\"")]);
}

fn a_peer_that_is_ipv4_over_an_ipv6_listener_is_the_same(backend: &str) {
    if std::net::TcpListener::bind("[::]:0").is_err() {
        // A machine without IPv6.
        return;
    }
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--listen", "[::]:0", "--trusted-proxies", "127.0.0.0/8"]);
    let mut client = Client::to(([127, 0, 0, 1], server.address.port()).into());
    let told = [("X-Forwarded-For", "203.0.113.9, 127.0.0.1"), ("X-Real-IP", "203.0.113.9")];
    for entry in ["203.0.113.9", "::ffff:203.0.113.9", "[::ffff:203.0.113.9]:4711", "6.6.6.6,203.0.113.9:4711"] {
        assert_told(&client.ask(&request(&format!("X-Forwarded-For: {entry}\r\n"))).text(), &told);
    }
    // The same machine over IPv6 is none of 127.0.0.0/8.
    let mut client = Client::to((std::net::Ipv6Addr::LOCALHOST, server.address.port()).into());
    assert_told(&client.ask(&request("X-Forwarded-For: 6.6.6.6\r\n")).text(), &[("X-Forwarded-For", "::1")]);
}

fn a_refused_request_is_its_clients(backend: &str) {
    let (worker, folder) = (Worker::echo(), folder());
    let log = folder.path().join("access.log");
    let flags = ["--trusted-proxies", "loopback", "--access-log", &log.display().to_string()];
    let server = Server::before(backend, &worker.url, &flags);
    let mut client = Client::of(&server);
    client.send("TRACE /refused HTTP/1.1\r\nHost: test\r\nMax-Forwards: 0\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n");
    assert_eq!(client.answer().status, 405);
    // Whose head was not understood, of that the peer and the request line are known.
    let mut client = Client::of(&server);
    client.send("GET /malformed HTTP/1.1\r\nX-Forwarded-For: 203.0.113.9\r\nHost : test\r\n\r\n");
    assert_eq!(client.answer().status, 400);
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    until("two lines of the access log", || lines().lines().count() == 2);
    let seen: Vec<serde_json::Value> = lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said = |line: usize, name: &str| seen[line][name].as_str().unwrap_or_default().to_owned();
    assert_eq!((said(0, "client.address"), said(0, "http.request.method")), ("203.0.113.9".into(), "TRACE".into()));
    assert_eq!(said(0, "url.path"), "/refused");
    assert_eq!((said(1, "client.address"), said(1, "http.request.method")), ("127.0.0.1".into(), "GET".into()));
    assert_eq!(said(1, "url.path"), "/malformed");
}

const V1: &[u8] = b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 443\r\n";

/// A header of version 2 for the same client, with a checksum, and with TLS as haproxy's send-proxy-v2-ssl tells it.
fn v2() -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x1b\xcb\0\x71\x07\xc0\0\x02\x01\xdc\x04\x01\xbb\x03\0\x04\0\0\0\0\x20\0\x05\x01\0\0\0\0".to_vec();
    let end = header.len() as u8;
    header[15] = end - 16;
    let sum = crc32c(header.iter());
    header[31..35].copy_from_slice(&sum.to_be_bytes());
    header
}

fn behind(backend: &str, worker: &Worker, flags: &[&str]) -> Server {
    Server::before(backend, &worker.url, &[&["--proxy-protocol", "loopback"], flags].concat())
}

fn a_proxy_protocol_header_names_the_client(backend: &str) {
    let worker = Worker::echo();
    let server = behind(backend, &worker, &[]);
    let named = [("X-Forwarded-For", "203.0.113.7"), ("X-Real-IP", "203.0.113.7"), ("X-Forwarded-Port", "443")];
    for (header, scheme) in [(V1.to_vec(), "http"), (v2(), "https")] {
        // Header and request in one segment, byte by byte, and with more behind it.
        let mut client = Client::of(&server);
        client.send([&header, request("X-Forwarded-For: 6.6.6.6\r\n").as_bytes()].concat());
        let text = client.answer().text();
        assert_told(&text, &named);
        assert_told(&text, &[("X-Forwarded-Proto", scheme)]);
        // It holds for the connection.
        assert_told(&client.get("/seen").text(), &named);
        let mut client = Client::of(&server);
        client.send_slowly([&header, request("").as_bytes()].concat());
        assert_told(&client.answer().text(), &named);
        let mut client = Client::of(&server);
        client.send(
            [&header, request("").as_bytes(), b"GET /server HTTP/1.1\r\nHost: a\r\n\r\n", request("").as_bytes()]
                .concat(),
        );
        assert_told(&client.answer().text(), &named);
        assert_eq!(client.answer().text(), "ok");
        assert_told(&client.answer().text(), &named);
        // The header alone, and the request when it pleases.
        let known = server.status()["total_connections"].as_u64().unwrap();
        let mut client = Client::of(&server);
        client.send(&header);
        until("the header is taken", || {
            let status = server.status();
            status["total_connections"] == known + 1 && status["connection_states"]["accepting"] == 0
        });
        assert_told(&client.get("/seen").text(), &named);
    }
    // The balancer's own connections, and those of whom it knows nothing, keep the address of the socket. A health check may ask for what the
    // inside tells; who came through it, known or not, is no guest on this machine.
    let binary = |command: u8, family: u8, rest: &[u8]| {
        [b"\r\n\r\n\0\r\nQUIT\n", &[command, family, 0, rest.len() as u8][..], rest].concat()
    };
    for (header, own) in [
        (binary(0x20, 0, b""), true),
        (binary(0x20, 0x11, &[127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 2]), true),
        (b"PROXY UNKNOWN\r\n".to_vec(), false),
        (binary(0x21, 0, b""), false),
        (binary(0x21, 0x31, &[0; 216]), false),
    ] {
        let mut client = Client::of(&server);
        client.send([&header, request("").as_bytes()].concat());
        let port = server.address.port().to_string();
        assert_told(&client.answer().text(), &[("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-Port", &port)]);
        let text = client.ask("GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n").text();
        assert!(text.starts_with(if own { "{\"status\"" } else { "GET /status" }), "{}: {text}", header.escape_ascii());
    }
    for header in [
        V1,
        b"PROXY TCP4 127.0.0.1 127.0.0.1 56324 443\r\n",
        &binary(0x21, 0x11, &[127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 2]),
    ] {
        let mut client = Client::of(&server);
        client.send([header, b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n"].concat());
        assert!(client.answer().text().starts_with("GET /status"), "{}", header.escape_ascii());
    }
    assert_eq!(server.status()["proxy_protocol_invalid"], 0);
}

/// The longest header that is accepted: its extensions are padding that means nothing.
fn longest() -> Vec<u8> {
    let padding = proxy_protocol::LONGEST - 16 - 12 - 3;
    let fixed = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x10\x00\xcb\0\x71\x07\xc0\0\x02\x01\xdc\x04\x01\xbb\x04";
    [&fixed[..], &(padding as u16).to_be_bytes(), &vec![0; padding]].concat()
}

fn a_header_may_be_as_long_as_extensions_make_it(backend: &str) {
    let worker = Worker::echo();
    let server = behind(backend, &worker, &[]);
    let mut other = Client::of(&server);
    other.send(V1);
    for piece in [longest().len(), 1000] {
        let mut client = Client::of(&server);
        for piece in longest().chunks(piece) {
            client.send(piece);
            // The loop has had a turn.
            other.expect_alive();
        }
        assert_told(&client.ask(&request("")).text(), &[("X-Real-IP", "203.0.113.7"), ("X-Forwarded-Port", "443")]);
    }
}

fn a_header_where_none_is_expected_is_no_request(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--trusted-proxies", "loopback"]);
    for header in [V1.to_vec(), v2(), b"PROXY UNKNOWN\r\n".to_vec()] {
        let mut client = Client::of(&server);
        client.send([&header, request("Connection: close\r\n").as_bytes()].concat());
        let (answer, _) = client.rest();
        assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", answer.escape_ascii());
        assert_eq!(answer.windows(9).filter(|bytes| bytes == b"HTTP/1.1 ").count(), 1, "{}", answer.escape_ascii());
    }
    worker.expect_nothing("behind a header that is no request");
}

fn what_is_no_header_is_closed_without_a_word(backend: &str) {
    let worker = Worker::echo();
    let server = behind(backend, &worker, &[]);
    let mut wrong_sum = v2();
    wrong_sum[31] ^= 1;
    let too_long = [&b"PROXY UNKNOWN "[..], &[b'x'; 100]].concat();
    let cases: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"PROXY TCP4 203.0.113.7 192.0.2.1 56324 99999\r\n",
        b"PROXX",
        &wrong_sum,
        &too_long,
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff",
    ];
    for case in cases {
        let mut client = Client::of(&server);
        client.send(case);
        let (answer, _) = client.rest();
        assert!(answer.is_empty(), "{}", answer.escape_ascii());
    }
    assert_eq!(server.status()["proxy_protocol_invalid"], cases.len());
    assert_eq!(server.status()["requests"], 0);
}

fn a_header_must_come_in_time(backend: &str) {
    let worker = Worker::echo();
    let server = behind(backend, &worker, &["--proxy-protocol-timeout", "100ms"]);
    for beginning in [&b""[..], b"PROXY TCP4 203", b"\r\n\r\n\0\r\nQUIT"] {
        let mut client = Client::of(&server);
        client.send(beginning);
        let (answer, _) = client.rest();
        assert!(answer.is_empty(), "{}", answer.escape_ascii());
    }
    assert_eq!(server.status()["proxy_protocol_late"], 3);
    // Bytes that go on coming win no time.
    let header = longest();
    let mut client = Client::of(&server);
    for byte in &header {
        if client.has_input() || !client.try_send(&[*byte]) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(client.rest().0.is_empty());
    assert_eq!(server.status()["proxy_protocol_late"], 4);
    // One that ends before it is whole is late as well.
    let server = behind(backend, &worker, &[]);
    let mut client = Client::of(&server);
    client.send(b"PROXY TCP4 203");
    client.finish();
    assert!(client.rest().0.is_empty());
    assert_eq!(server.status()["proxy_protocol_late"], 1);
    // The time for the header is not that of the request behind it.
    let mut client = Client::of(&server);
    client.send(&V1[..10]);
    client.send(&V1[10..]);
    client.send("GET /se");
    client.send("en HTTP/1.1\r\nHost: test\r\n\r\n");
    assert_told(&client.answer().text(), &[("X-Real-IP", "203.0.113.7")]);
}

fn only_those_who_may_connect(backend: &str) {
    let worker = Worker::echo();
    let folder = folder();
    let listen = format!("unix:{}", folder.path().join("app.sock").display());
    let flags = ["--proxy-protocol", "10.0.0.0/8,unix", "--listen", "127.0.0.1:0", "--listen", &listen];
    let server = Server::before(backend, &worker.url, &flags);
    let mut stranger = TcpStream::connect(server.address).unwrap();
    // It may be closed before this is written.
    let _ = stranger.write_all(&[V1, request("").as_bytes()].concat());
    let mut answer = Vec::new();
    // A reset is as good as an end.
    let _ = stranger.read_to_end(&mut answer);
    assert!(answer.is_empty());
    until("it is counted", || server.status()["proxy_protocol_refused"] == 1);
    let mut unix = UnixStream::connect(folder.path().join("app.sock")).unwrap();
    unix.write_all(&[V1, request("Connection: close\r\n").as_bytes()].concat()).unwrap();
    let mut answer = String::new();
    unix.read_to_string(&mut answer).unwrap();
    assert_told(answer.split_once("\r\n\r\n").unwrap().1, &[("X-Real-IP", "203.0.113.7"), ("X-Forwarded-Port", "443")]);
}

fn the_client_of_a_header_may_be_a_trusted_proxy(backend: &str) {
    let worker = Worker::echo();
    let server = behind(backend, &worker, &["--trusted-proxies", "203.0.113.7"]);
    let lines = "X-Forwarded-For: 198.51.100.1\r\n";
    let ask = |header: &[u8]| {
        let mut client = Client::of(&server);
        client.send([header, request(lines).as_bytes()].concat());
        client.answer().text()
    };
    assert_told(&ask(V1), &[("X-Forwarded-For", "198.51.100.1, 203.0.113.7"), ("X-Real-IP", "198.51.100.1")]);
    let other = b"PROXY TCP4 203.0.113.8 192.0.2.1 56324 443\r\n";
    assert_told(&ask(other), &[("X-Forwarded-For", "203.0.113.8"), ("X-Real-IP", "203.0.113.8")]);
}

fn a_stop_does_not_wait_for_headers(backend: &str) {
    let worker = Worker::echo();
    let mut server = behind(backend, &worker, &["--shutdown", "1h", "--proxy-protocol-timeout", "1h"]);
    let mut client = Client::of(&server);
    client.send(b"PROXY TCP4");
    until("the connection is there", || server.status()["connection_states"]["accepting"] == 1);
    assert_eq!(server.stop(), Some(0));
    assert!(client.rest().0.is_empty());
}

fn each_listener_may_have_a_front_of_its_own(backend: &str) {
    let (worker, folder) = (Worker::echo(), folder());
    let place = |name: &str| folder.path().join(name).display().to_string();
    let file = format!(
        "server.trusted_proxies = [\"loopback\"]\n\
         [[listen]]\naddress = \"unix:{}\"\ntrusted_proxies = [\"unix\"]\n\
         [[listen]]\naddress = \"unix:{}\"\nproxy_protocol = {{ from = [\"unix\"], timeout = \"20s\" }}\nforwarded = \"write\"\n",
        place("trusting"),
        place("required")
    );
    std::fs::write(place("site.toml"), file).unwrap();
    let (trusting, required) = (format!("unix:{}", place("trusting")), format!("unix:{}", place("required")));
    let flags = ["-f", &place("site.toml"), "--listen", "127.0.0.1:0", "--listen", &trusting, "--listen", &required];
    let server = Server::before(backend, &worker.url, &flags);
    let lines = "X-Forwarded-For: 203.0.113.9\r\n";
    let ask = |socket: &str, bytes: &[u8]| {
        let mut stream = UnixStream::connect(place(socket)).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned())
    };
    let last = request(&format!("{lines}Connection: close\r\n"));
    assert_told(&Client::of(&server).ask(&request(lines)).text(), &[("X-Real-IP", "203.0.113.9"), ("Forwarded", "")]);
    assert_told(&ask("trusting", last.as_bytes()), &[("X-Forwarded-For", "203.0.113.9"), ("Forwarded", "")]);
    let told = [("X-Forwarded-For", "203.0.113.7"), ("Forwarded", "for=203.0.113.7;proto=http;host=\"test\"")];
    assert_told(&ask("required", &[V1, last.as_bytes()].concat()), &told);
    assert_eq!(ask("required", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"), "");
}
