//! What the parts of `http` cost: parsing a small and a browser's head, rewriting them, passing an answer on, relaying
//! chunks. `cargo bench --bench http`.

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr};

use divan::{Bencher, black_box};
use production_server::buffers::block::Writer;
use production_server::http::body::Chunked;
use production_server::http::date::Start;
use production_server::http::fields::Fields;
use production_server::http::head::{self, HeadLimits};
use production_server::http::rewrite::{self, Answer, Forward, Rewritten};
use production_server::http::{Method, Version, date};

fn main() {
    divan::main();
}

const SMALL: &str = "GET / HTTP/1.1\r\nHost: localhost:8080\r\n\r\n";
const BROWSER: &str = "GET /articles/2026/how-it-works?from=front HTTP/1.1\r\nHost: www.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br, zstd\r\nConnection: keep-alive\r\n\
    Referer: https://www.example.com/articles/2026\r\n\
    Cookie: session=4f1c9a2be0d84c6b9d7e3a51c2f8b607; theme=dark; consent=all; _ga=GA1.2.1234567890.1700000000\r\n\
    Upgrade-Insecure-Requests: 1\r\nSec-Fetch-Dest: document\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Site: same-origin\r\n\
    Sec-Fetch-User: ?1\r\nCache-Control: max-age=0\r\n\r\n";

/// A head with the name that the table shows.
struct Head(&'static str, &'static str);

impl std::fmt::Display for Head {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.0)
    }
}

const HEADS: [Head; 2] = [Head("small", SMALL), Head("browser", BROWSER)];
const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 12\r\n\
    Date: Thu, 01 Jan 1970 00:00:00 GMT\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n\r\n";
const FORWARD: Forward<'_> = Forward {
    peer: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10)),
    unix: false,
    local_port: 8080,
    https: false,
    request_id: b"0123456789abcdef01234567",
    start: Start::new(1_700_000_000_012_345),
    front: None,
    keep_alive: true,
    open: false,
    edits: None,
    identity: b"",
};

#[divan::bench(args = HEADS)]
fn parse_request(bencher: Bencher, head: &Head) {
    let head = head.1;
    let mut fields = Fields::new(100);
    let limits = HeadLimits::default();
    bencher.bench_local(|| head::request(black_box(head.as_bytes()), &limits, &mut fields).is_ok());
}

#[divan::bench(args = HEADS)]
fn rewrite_request(bencher: Bencher, head: &Head) {
    let head = head.1;
    let mut fields = Fields::new(100);
    let request = head::request(head.as_bytes(), &HeadLimits::default(), &mut fields).unwrap().unwrap();
    let mut room = [MaybeUninit::uninit(); 4096];
    bencher.bench_local(|| {
        let most = rewrite::request_room(&request, &fields, &FORWARD);
        let mut out = Writer::new(&mut room[..most]);
        rewrite::request(&mut out, black_box(head.as_bytes()), &request, &fields, &FORWARD);
        out.len()
    });
}

#[divan::bench]
fn parse_answer(bencher: Bencher) {
    let mut fields = Fields::new(100);
    let limits = HeadLimits::default();
    bencher
        .bench_local(|| head::response(black_box(ANSWER.as_bytes()), Method::Get, false, &limits, &mut fields).is_ok());
}

#[divan::bench]
fn rewrite_answer(bencher: Bencher) {
    let mut fields = Fields::new(100);
    let limits = HeadLimits::default();
    let response = head::response(ANSWER.as_bytes(), Method::Get, false, &limits, &mut fields).unwrap().unwrap();
    let date = date(0);
    let answer = Answer {
        date: &date,
        request_id: FORWARD.request_id,
        client: Version::Http11,
        keep_alive: true,
        framing: Rewritten::Same,
        upgrade: false,
        edits: None,
    };
    let mut room = [MaybeUninit::uninit(); 4096];
    bencher.bench_local(|| {
        let most = rewrite::response_room(&response, &fields, &answer);
        let mut out = Writer::new(&mut room[..most]);
        rewrite::response(&mut out, black_box(ANSWER.as_bytes()), &response, &fields, &answer);
        out.len()
    });
}

/// Four chunks of 1 KiB and the last one, as one block.
#[divan::bench]
fn relay_chunks(bencher: Bencher) {
    let mut wire = Vec::new();
    for _ in 0..4 {
        wire.extend_from_slice(b"400\r\n");
        wire.extend_from_slice(&[b'x'; 1024]);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    bencher.bench_local(|| {
        let mut chunked = Chunked::new();
        chunked.relay(black_box(&wire)).is_ok()
    });
}

#[divan::bench]
fn format_date(bencher: Bencher) {
    bencher.bench_local(|| date(black_box(1_700_000_000)));
}
