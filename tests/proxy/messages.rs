//! HTTP/1.1 on the client's side: connections kept and closed, pipelines, versions, targets, expectations, half-closes.

use std::time::Duration;

use crate::support::{Client, Ending, Server, Worker, on_every_backend_and_tls, until};

on_every_backend_and_tls! {
    pipelines_of_any_depth_are_answered_in_order
    a_pipeline_across_many_packets_is_answered_in_order
    connections_are_kept_and_closed_as_asked
    old_clients_are_served
    byte_by_byte_is_as_good_as_at_once
    empty_lines_before_a_request_are_skipped
    targets_of_all_forms_reach_the_worker
    max_forwards_is_counted_down
    expectations_are_answered_here
    bodiless_answers_stay_bodiless
    a_body_that_must_not_come_meets_no_other_request
    interim_answers_pass_to_clients_that_know_them
    half_closed_clients_that_said_close_are_served
    half_closed_clients_that_wait_for_more_are_cancelled
    a_client_that_leaves_frees_its_place
    bodies_of_requests_answered_here_are_skipped
}

const GET: &str = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";

fn pipelines_of_any_depth_are_answered_in_order(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    for depth in [1, 2, 3, 10, 50] {
        let mut client = Client::of(&server);
        let mut requests = String::new();
        for index in 0..depth {
            requests += &match index % 4 {
                0 | 3 => "GET /server HTTP/1.1\r\nHost: test\r\n\r\n".to_owned(),
                1 => format!("GET /{index} HTTP/1.1\r\nHost: test\r\n\r\n"),
                _ => format!("POST /{index} HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nGET "),
            };
        }
        client.send(requests);
        for index in 0..depth {
            let body = client.answer().text();
            match index % 4 {
                0 | 3 => assert_eq!(body, "ok"),
                1 => assert!(body.starts_with(&format!("GET /{index} ")), "{body}"),
                _ => assert!(body.starts_with(&format!("POST /{index} ")) && body.ends_with("\r\n\r\nGET "), "{body}"),
            }
        }
        client.expect_alive();
    }
}

fn a_pipeline_across_many_packets_is_answered_in_order(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    // Far more than is kept for a client whose request is being answered.
    let filler = "f".repeat(1500);
    let requests: String =
        (0..200).map(|index| format!("GET /{index} HTTP/1.1\r\nHost: test\r\nX-Filler: {filler}\r\n\r\n")).collect();
    let mut sender = client.second();
    let sending = std::thread::spawn(move || {
        for packet in requests.as_bytes().chunks(777) {
            sender.send(packet);
        }
    });
    for index in 0..200 {
        let body = client.answer().text();
        assert!(body.starts_with(&format!("GET /{index} ")), "{index}: {body}");
    }
    sending.join().unwrap();
    client.expect_alive();
}

fn connections_are_kept_and_closed_as_asked(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    for path in ["/server", "/forwarded"] {
        for connection in ["", "Connection: keep-alive\r\n", "Connection: foo, bar\r\n"] {
            let answer = client.ask(&format!("GET {path} HTTP/1.1\r\nHost: test\r\n{connection}\r\n"));
            assert_eq!((answer.status, answer.field("connection")), (200, None), "{path} {connection}");
        }
    }
    for path in ["/server", "/forwarded"] {
        for connection in ["close", "Close", "keep-alive, close", "foo,close", "close\r\nConnection: keep-alive"] {
            let mut client = Client::of(&server);
            // What stands behind a last request is not answered.
            client.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: {connection}\r\n\r\n{GET}"));
            let answer = client.answer();
            assert_eq!((answer.status, answer.field("connection")), (200, Some("close")), "{path} {connection}");
            client.expect_end();
        }
    }
    let heads = worker.records().len();
    assert!(heads < 8, "{heads} connections to the worker for requests one after the other");
}

fn old_clients_are_served(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    for path in ["/server", "/forwarded"] {
        let mut client = Client::of(&server);
        client.send(format!("GET {path} HTTP/1.0\r\n\r\nGET /behind HTTP/1.0\r\n\r\n"));
        let answer = client.answer();
        assert_eq!(answer.status, 200);
        assert!(matches!(answer.field("connection"), None | Some("close")), "{}", answer.head);
        client.expect_end();

        let mut client = Client::of(&server);
        for _ in 0..3 {
            let answer = client.ask(&format!("GET {path} HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"));
            assert_eq!((answer.status, answer.field("connection")), (200, Some("keep-alive")), "{path}");
        }
        client.send(format!("GET {path} HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n"));
        assert_eq!(client.answer().status, 200);
        client.expect_end();
    }
    // A later minor version is served as 1.1 (RFC 9110 §2.5).
    let mut client = Client::of(&server);
    let answer = client.ask("GET /next HTTP/1.2\r\nHost: test\r\n\r\n");
    assert!(answer.text().starts_with("GET /next HTTP/1.1\r\n"), "{}", answer.text());
    client.expect_alive();
    let all = String::from_utf8(worker.everything()).unwrap();
    assert!(!all.contains("/behind") && !all.contains("HTTP/1.0\r\n"), "{all}");
    assert_eq!(all.matches("\r\nHost: \r\n").count(), 5, "an old request without a host gets an empty one:\n{all}");
}

fn byte_by_byte_is_as_good_as_at_once(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    client.send_slowly("GET /slow HTTP/1.1\r\nHost: test\r\nX-A: b\r\n\r\n");
    assert!(client.answer().text().starts_with("GET /slow HTTP/1.1\r\nHost: test\r\nX-A: b\r\n"));
    client.send_slowly("POST /slow HTTP/1.1\r\nHost: test\r\nContent-Length: 5\r\n\r\nhello");
    assert!(client.answer().text().ends_with("\r\n\r\nhello"));
    client.send_slowly(
        "POST /slow HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n\
         03;a=\"b\"\r\nhel\r\n2\r\nlo\r\n0\r\nX-End: yes\r\n\r\n",
    );
    let body = client.answer().text();
    assert!(body.ends_with("\r\n\r\nhelloX-End: yes\r\n"), "{body}");
    client.send_slowly("GET /server HTTP/1.1\nHost: test\n\n");
    assert_eq!(client.answer().text(), "ok");
    assert_eq!(worker.records().len(), 1, "one connection to the worker is enough");
}

fn empty_lines_before_a_request_are_skipped(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    for empty in ["\r\n", "\r\n\r\n", "\n", "\r\n\n\r\n"] {
        let answer = client.ask(&format!("{empty}GET /fine HTTP/1.1\r\nHost: test\r\n\r\n"));
        assert!(answer.text().starts_with("GET /fine "), "{}", answer.text());
        client.send_slowly(empty);
        client.expect_alive();
    }
}

fn targets_of_all_forms_reach_the_worker(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    let cases = [
        ("GET /a/../b//c?d=%0d%0a&e=%zz HTTP/1.1\r\nHost: test", "/a/../b//c?d=%0d%0a&e=%zz", "test"),
        ("GET http://other:81/x?y HTTP/1.1\r\nHost: test", "/x?y", "other:81"),
        ("GET HTTP://other HTTP/1.1\r\nHost: test", "/", "other"),
        ("GET http://other?q HTTP/1.1\r\nHost: test", "/?q", "other"),
        ("GET https://[::1]:8/x HTTP/1.1\r\nHost: test", "/x", "[::1]:8"),
        ("OPTIONS * HTTP/1.1\r\nHost: test", "*", "test"),
        ("OPTIONS http://other HTTP/1.1\r\nHost: test", "*", "other"),
        ("OPTIONS /x HTTP/1.1\r\nHost: test", "/x", "test"),
        ("PROPFIND /dav HTTP/1.1\r\nHost: test", "/dav", "test"),
        ("GET /empty-host HTTP/1.1\r\nHost:", "/empty-host", ""),
    ];
    for (head, target, host) in cases {
        let body = client.ask(&format!("{head}\r\n\r\n")).text();
        let method = head.split(' ').next().unwrap();
        assert!(body.starts_with(&format!("{method} {target} HTTP/1.1\r\n")), "{head}: {body}");
        assert_eq!(body.matches("\r\nHost:").count(), 1, "{head}: {body}");
        assert!(body.contains(&format!("\r\nHost: {host}\r\n")) || (host.is_empty() && body.contains("\r\nHost:\r\n")));
    }
}

fn max_forwards_is_counted_down(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    let answer = client.ask("OPTIONS * HTTP/1.1\r\nHost: test\r\nMax-Forwards: 0\r\n\r\n");
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    worker.expect_nothing("Max-Forwards: 0");
    let answer = client.ask("OPTIONS / HTTP/1.1\r\nHost: test\r\nMax-Forwards: 3\r\n\r\n");
    assert!(answer.text().contains("\r\nMax-Forwards: 2\r\n"), "{}", answer.text());
    // It means nothing with another method.
    let answer = client.ask("GET / HTTP/1.1\r\nHost: test\r\nMax-Forwards: 0\r\n\r\n");
    assert!(answer.text().contains("\r\nMax-Forwards: 0\r\n"), "{}", answer.text());
}

fn expectations_are_answered_here(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &["--max-body", "1MiB"]);
    let head = |lines: &str| format!("POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-Continue\r\n{lines}\r\n");
    let mut client = Client::of(&server);
    for (lines, body) in
        [("Content-Length: 5\r\n", "hello"), ("Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n")]
    {
        // The body is waited for: 100 first.
        client.send(head(lines));
        assert_eq!(client.next_answer(false).status, 100);
        client.send(body);
        assert!(client.answer().text().ends_with("\r\n\r\nhello"));
        // It is there already: no 100.
        client.send(head(lines) + body);
        assert!(client.answer().text().ends_with("\r\n\r\nhello"));
    }
    // Nothing to wait for, and a client that does not know of 100 (RFC 9110 §10.1.1).
    assert_eq!(client.ask(&head("")).status, 200);
    assert_eq!(client.ask(&head("Content-Length: 0\r\n")).status, 200);
    let mut old = Client::of(&server);
    old.send("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    old.expect_silence(Duration::from_millis(100));
    old.send("hello");
    assert_eq!(old.answer().status, 200);
    // A final answer comes without 100, whoever gives it.
    for (lines, status) in [("Content-Length: 1048577\r\n", 413), ("Expect: more\r\nContent-Length: 5\r\n", 417)] {
        let mut client = Client::of(&server);
        client.send(head(lines));
        assert_eq!(client.next_answer(false).status, status);
        client.expect_end();
    }
    let all = String::from_utf8(worker.everything()).unwrap().to_ascii_lowercase();
    assert!(!all.contains("expect"), "{all}");
}

fn bodiless_answers_stay_bodiless(backend: &str) {
    let answers = [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", Some("1000")),
        ("HEAD", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("HEAD", "HTTP/1.1 200 OK\r\nX-Nothing: said\r\n\r\n", None),
        ("GET", "HTTP/1.1 204 No Content\r\n\r\n", None),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", None),
        ("GET", "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", None),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\nETag: \"x\"\r\n\r\n", Some("77")),
        ("GET", "HTTP/1.1 304 Not Modified\r\n\r\n", None),
        ("POST", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Some("0")),
    ];
    for (method, said, length) in answers {
        let worker = Worker::saying(said);
        let server = Server::before(backend, &worker.url, &[]);
        let mut client = Client::of(&server);
        let request = format!("{method} / HTTP/1.1\r\nHost: test\r\n\r\n");
        for _ in 0..3 {
            let answer = client.ask(&request);
            assert_eq!(answer.field("content-length"), length, "{said}");
            assert_eq!(answer.field("transfer-encoding"), None, "{said}");
        }
        let mut old = Client::of(&server);
        old.send(format!("{method} / HTTP/1.0\r\n\r\n"));
        old.next_answer(method == "HEAD");
        old.expect_end();
        // The request behind is read in the right place.
        client.expect_alive();
        // A worker that announces a body which must not come might send it late: such a connection is not used again. To HEAD, nothing
        // announces one that ends with the connection.
        let announces =
            method == "HEAD" || (method == "GET" && (said.contains("Length: ") || said.contains("chunked")));
        assert_eq!(worker.records().len(), if announces { 4 } else { 1 }, "{said}");
    }
}

/// A careless worker sends a body behind the head of an answer that has none, and sends it late: it is nobody's answer.
fn a_body_that_must_not_come_meets_no_other_request(backend: &str) {
    for (method, said) in [
        ("HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 53\r\n\r\n"),
        ("GET", "HTTP/1.1 204 No Content\r\nContent-Length: 53\r\n\r\n"),
        ("GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 53\r\n\r\n"),
    ] {
        let worker = Worker::new(move |incoming| {
            while let Some(head) = incoming.head() {
                if !head.contains(" /bodiless ") {
                    incoming.respond(b"fine");
                    continue;
                }
                incoming.send(said);
                // Not before the server is done with the head: its connection may then be in use again.
                std::thread::sleep(Duration::from_millis(5));
                incoming.send("HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\nsomebody else's!");
            }
        });
        let server = Server::before(backend, &worker.url, &[]);
        for _ in 0..5 {
            let mut client = Client::of(&server);
            client.send(format!("{method} /bodiless HTTP/1.1\r\nHost: test\r\n\r\n"));
            client.next_answer(method == "HEAD");
            assert_eq!(Client::of(&server).get("/other").text(), "fine", "{said}");
        }
    }
}

fn interim_answers_pass_to_clients_that_know_them(backend: &str) {
    let worker = Worker::saying(
        "HTTP/1.1 100 Continue\r\n\r\n\
         HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n\
         HTTP/1.1 102 Processing\r\n\r\n\
         HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    );
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    for _ in 0..2 {
        client.send(GET);
        let hints = client.next_answer(false);
        assert_eq!((hints.status, hints.field("link")), (103, Some("</a.css>; rel=preload")));
        assert_eq!((hints.field("x-hop"), hints.field("connection")), (None, None));
        assert_eq!(client.next_answer(false).status, 102);
        assert_eq!(client.answer().text(), "hi");
    }
    let mut old = Client::of(&server);
    old.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(old.next_answer(false).status, 200);
    assert_eq!(worker.records().len(), 1);
}

fn half_closed_clients_that_said_close_are_served(backend: &str) {
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            std::thread::sleep(Duration::from_millis(100));
            incoming.respond(head.as_bytes());
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    for request in [
        "GET /slow HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
        "POST /slow HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab",
        "GET /slow HTTP/1.0\r\n\r\n",
        "GET /server HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET /server HTTP/1.1\r\nHost: test\r\n\r\nGET /server HTTP/1.1\r\nHost: test\r\n\r\n",
        "GET /slow HTTP/1.1\r\nHost: test\r\n\r\nGET /slow HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n",
    ] {
        let mut client = Client::of(&server);
        client.send(request);
        client.finish();
        for _ in 0..request.matches("Host: test").count().max(1) {
            assert_eq!(client.answer().status, 200, "{request}");
        }
        client.expect_end();
    }
}

fn half_closed_clients_that_wait_for_more_are_cancelled(backend: &str) {
    let worker = Worker::new(|incoming| {
        while incoming.head().is_some() {
            incoming.drain();
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    client.send(format!("GET /server HTTP/1.1\r\nHost: test\r\n\r\n{GET}"));
    until("the worker has the request", || !worker.records().is_empty());
    client.finish();
    // The earlier answer leaves, the one that nobody can be sure to want does not.
    assert_eq!(client.answer().text(), "ok");
    client.expect_end();
    worker.expect_closed(0);
    // A request that is not whole is not served either.
    let mut client = Client::of(&server);
    client.send("POST / HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Length: 9\r\n\r\nhalf");
    client.finish();
    client.expect_end();
    assert_eq!(worker.records().len(), 1);
}

fn a_client_that_leaves_frees_its_place(backend: &str) {
    // One worker, one request at a time: whoever waits behind one that has left must come through.
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            if head.starts_with("GET /stuck") {
                return incoming.drain();
            }
            incoming.respond(b"served");
        }
    });
    let server = Server::before(backend, &worker.url, &[]);
    for _ in 0..3 {
        let mut stuck = Client::of(&server);
        let before = worker.records().iter().filter(|record| record.ended).count();
        let heads = worker.everything().len();
        stuck.send("GET /stuck HTTP/1.1\r\nHost: test\r\n\r\n");
        // It has this request, whole; one that leaves before is never sent on.
        until("the worker is stuck", || {
            worker.everything().get(heads..).is_some_and(|new| new.ends_with(b"production_server\r\n\r\n"))
        });
        drop(stuck);
        assert_eq!(Client::of(&server).get("/next").text(), "served");
        until("the stuck connection ends", || worker.records().iter().filter(|record| record.ended).count() > before);
    }
}

fn bodies_of_requests_answered_here_are_skipped(backend: &str) {
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &[]);
    let mut client = Client::of(&server);
    let body = "x".repeat(100_000);
    client.send(format!("POST /server HTTP/1.1\r\nHost: test\r\nContent-Length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(client.answer().text(), "ok");
    client.send(format!(
        "POST /server HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n{GET}",
        body.len()
    ));
    assert_eq!(client.answer().text(), "ok");
    assert!(client.answer().text().starts_with("GET / "));
    // A broken one is never mistaken for a request.
    client.send(format!("POST /server HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcdeX{GET}"));
    assert_eq!(client.answer().text(), "ok");
    client.expect_end();
    // One that is too long to be read for nothing ends the connection, and the answer is read nevertheless.
    let mut client = Client::of(&server);
    client.send("POST /server HTTP/1.1\r\nHost: test\r\nContent-Length: 5000000\r\n\r\n");
    client.try_send(&[b'x'; 5_000_000]);
    assert_eq!(client.answer().text(), "ok");
    let (rest, ending) = client.rest();
    assert_eq!((rest.len(), ending), (0, Ending::End));
}
