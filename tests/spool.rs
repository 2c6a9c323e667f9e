//! What waits for slow clients beyond the memory for it waits in files without a name, and holds nobody: answers, and request bodies.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};

use production_server::spool::Queue;
use serde_json::Value;

use crate::panics::Rig;
use crate::support::tls::SUFFIX;
use crate::support::{
    Client, DEADLINE, PROGRAM, Server, Worker, folder, on_every_backend, pattern, through_tls, until,
};

on_every_backend! {
    whoever_reads_late_gets_the_whole_answer_and_holds_no_worker
    many_that_read_late_hold_no_worker_though_the_disk_is_behind
    many_uploads_go_on_as_the_disk_takes_them
    an_answer_that_breaks_is_cut
    whoever_leaves_gives_all_back
    where_the_disk_is_full_the_worker_waits
    a_disk_that_fails_is_as_one_that_is_full
    a_stop_waits_for_what_is_spooled
    a_crowd_that_reads_nothing_leaves_the_worker_free
    what_is_to_arrive_bit_by_bit_is_not_spooled
    the_access_line_tells_what_has_left
    the_framing_of_chunks_is_not_told_as_left
    an_answer_is_told_of_once_its_client_has_it
    an_upload_holds_no_worker_before_it_is_whole
    an_upload_is_sent_again_to_another_worker
    where_the_disk_takes_no_more_of_an_upload_the_rest_streams
    an_upload_that_ends_early_gives_all_back
    an_answer_may_come_before_the_upload_is_read
    a_crowd_of_uploads_leaves_the_worker_free
    uploads_stream_where_they_are_to
}

through_tls! {
    an_upload_holds_no_worker_before_it_is_whole
    where_the_disk_takes_no_more_of_an_upload_the_rest_streams
    whoever_reads_late_gets_the_whole_answer_and_holds_no_worker
    an_answer_that_breaks_is_cut
    whoever_leaves_gives_all_back
    where_the_disk_is_full_the_worker_waits
    a_stop_waits_for_what_is_spooled
}

const MIB: usize = 1 << 20;
/// More than what the kernel and [`SMALL`] memory take.
const LONG: usize = 12 * MIB;

/// The same of an answer: where a relay stands before the client, that takes as much again.
fn long(backend: &str) -> usize {
    if backend.ends_with(SUFFIX) { 2 * LONG } else { LONG }
}

const SMALL: &[&str] =
    &["--buffer-bytes", "2MiB", "--write-timeout", "60s", "--queue-timeout-ms", "60000", "--read-timeout-ms", "60000"];

/// A worker of one request at a time that says how many answers it has given to their last byte.
struct Source {
    worker: Worker,
    given: Arc<AtomicUsize>,
}

impl Source {
    /// `/length`, `/chunked` and `/close` are the pattern of that length, framed so; the first bytes of `/broken` wait for a word to break off.
    fn new(length: usize) -> Source {
        let given = Arc::new(AtomicUsize::new(0));
        let (counted, body) = (given.clone(), pattern(length));
        let worker = Worker::new(move |incoming| {
            while let Some((head, _)) = incoming.request() {
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let whole = match path.as_str() {
                    "/length" => {
                        incoming.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()));
                        incoming.send(&body)
                    }
                    "/chunked" => {
                        incoming.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
                        // Of all sizes, small ones and such as no block holds.
                        let mut rest = &body[..];
                        for size in (0..).map(|turn| [1, 100, 70_000, 1_000_003][turn % 4]) {
                            let (piece, more) = rest.split_at(rest.len().min(size));
                            if piece.is_empty() {
                                break;
                            }
                            incoming.send(format!("{:x};a=b\r\n", piece.len()));
                            incoming.send(piece);
                            incoming.send("\r\n");
                            rest = more;
                        }
                        incoming.send("0\r\nX-Sum: 7\r\n\r\n")
                    }
                    "/close" => {
                        incoming.send("HTTP/1.1 200 OK\r\n\r\n");
                        incoming.send(&body);
                        incoming.finish();
                        true
                    }
                    _ => {
                        incoming.respond(b"small");
                        continue;
                    }
                };
                counted.fetch_add(usize::from(whole), Ordering::SeqCst);
            }
        });
        Source { worker, given }
    }

    fn server(&self, backend: &str, flags: &[&str]) -> Server {
        Server::before(backend, &self.worker.url, &[SMALL, flags].concat())
    }

    /// Waits until the worker has given so many answers.
    fn gives(&self, count: usize) {
        until("the worker has given its answers", || self.given.load(Ordering::SeqCst) == count);
    }
}

fn counted(server: &Server, name: &str) -> u64 {
    server.status()[name].as_u64().unwrap()
}

/// Nothing waits in the spool any more.
fn expect_empty(server: &Server) {
    until("the spool is empty", || counted(server, "spool_bytes") == 0);
}

fn is_empty(directory: &Path) -> bool {
    std::fs::read_dir(directory).unwrap().next().is_none()
}

fn small(server: &Server) {
    assert_eq!(Client::of(server).get("/small").text(), "small");
}

fn whoever_reads_late_gets_the_whole_answer_and_holds_no_worker(backend: &str) {
    let (source, folder) = (Source::new(long(backend)), folder());
    let server = source.server(backend, &["--spool-dir", folder.path().to_str().unwrap()]);
    let body = pattern(long(backend));
    let mut readers: Vec<Client> = (0..4).map(|_| Client::of(&server)).collect();
    let asked = ["GET /length HTTP/1.1", "GET /chunked HTTP/1.1", "GET /chunked HTTP/1.0", "GET /close HTTP/1.1"];
    for (index, (client, line)) in readers.iter_mut().zip(asked).enumerate() {
        client.send(format!("{line}\r\nHost: a\r\n\r\n"));
        source.gives(index + 1);
        small(&server);
    }
    // What the kernel takes of an answer is its own affair.
    assert!(counted(&server, "spooled") > 1 && counted(&server, "spool_refused") == 0, "{}", server.status());
    assert!(counted(&server, "spool_bytes") > 4 * MIB as u64 && is_empty(folder.path()), "{}", server.status());
    for (client, line) in readers.iter_mut().zip(asked) {
        let answer = client.answer();
        assert!(answer.whole && answer.body == body, "{line}: {} bytes", answer.body.len());
        let trailers = if line == asked[1] { "X-Sum: 7\r\n" } else { "" };
        assert_eq!(answer.trailers, trailers, "{line}");
        if line == asked[2] { client.expect_end() } else { client.expect_alive() }
    }
    expect_empty(&server);
    // And once more over the same connection, with another one behind it.
    let client = &mut readers[0];
    client.send("GET /length HTTP/1.1\r\nHost: a\r\n\r\nGET /small HTTP/1.1\r\nHost: a\r\n\r\n");
    source.gives(5);
    assert!(client.answer().body == body && client.answer().text() == "small");
}

/// Together they bring more than may wait to be written: each goes on as the disk has taken what others brought.
fn many_that_read_late_hold_no_worker_though_the_disk_is_behind(backend: &str) {
    let source = Source::new(long(backend));
    let server = source.server(backend, &["-c", "12"]);
    let mut readers: Vec<Client> = (0..12).map(|_| Client::of(&server)).collect();
    readers.iter_mut().for_each(|client| client.begin("/length"));
    source.gives(readers.len());
    let body = pattern(long(backend));
    for client in &mut readers {
        let answer = client.answer();
        assert!(answer.whole && answer.body == body, "{} bytes", answer.body.len());
    }
    expect_empty(&server);
}

/// The same of what clients send.
fn many_uploads_go_on_as_the_disk_takes_them(backend: &str) {
    let worker = Worker::new(|incoming| {
        while let Some((_, body)) = incoming.request() {
            incoming.respond(body.len().to_string().as_bytes());
        }
    });
    let server = Server::before(backend, &worker.url, &[SMALL, &["--loops", "2"]].concat());
    let mut clients: Vec<Client> = (0..40).map(|_| Client::of(&server)).collect();
    let body = pattern(LONG / 4);
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    std::thread::scope(|scope| {
        for client in &mut clients {
            scope.spawn(|| {
                client.send(&head);
                body.chunks(70_000).for_each(|piece| client.send(piece));
                assert_eq!(client.answer().text(), body.len().to_string());
            });
        }
    });
    assert!(
        counted(&server, "spooled") >= clients.len() as u64 && counted(&server, "spool_refused") == 0,
        "{}",
        server.status()
    );
    expect_empty(&server);
}

/// A worker whose answers are sent as the test says, and then break off.
fn breaking(head: &'static str) -> (Worker, Sender<Vec<u8>>) {
    let (tell, told) = channel::<Vec<u8>>();
    let told = Mutex::new(told);
    let worker = Worker::new(move |incoming| {
        if incoming.request().is_some() {
            incoming.send(head);
            told.lock().unwrap().iter().for_each(|piece| _ = incoming.send(piece));
        }
    });
    (worker, tell)
}

fn an_answer_that_breaks_is_cut(backend: &str) {
    let body = pattern(long(backend));
    let framed = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 40000000\r\n\r\n", String::new()),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", format!("{:x}\r\n", body.len() + 1)),
    ];
    for (head, line) in framed {
        let (worker, tell) = breaking(head);
        let server = Server::before(backend, &worker.url, SMALL);
        let mut client = Client::of(&server);
        client.begin("/");
        tell.send([line.as_bytes(), &body].concat()).unwrap();
        until("it is spooled", || counted(&server, "spool_bytes") > MIB as u64);
        drop(tell);
        until("it is cut", || counted(&server, "cut") == 1);
        let answer = client.answer();
        assert!(!answer.whole && body.starts_with(&answer.body), "{head}: {} bytes", answer.body.len());
        expect_empty(&server);
    }
}

fn whoever_leaves_gives_all_back(backend: &str) {
    let source = Source::new(long(backend));
    let server = source.server(backend, &[]);
    let mut client = Client::of(&server);
    client.begin("/length");
    source.gives(1);
    until("it is spooled", || counted(&server, "spool_bytes") > MIB as u64);
    client.reset();
    expect_empty(&server);
    until("it is noticed", || counted(&server, "client_gone") == 1);
    // In the middle of the worker's answer, too.
    let (worker, tell) = breaking("HTTP/1.1 200 OK\r\nContent-Length: 99000000\r\n\r\n");
    let server = Server::before(backend, &worker.url, SMALL);
    let mut client = Client::of(&server);
    client.begin("/");
    tell.send(pattern(long(backend))).unwrap();
    until("it is spooled", || counted(&server, "spool_bytes") > MIB as u64);
    client.reset();
    expect_empty(&server);
}

/// One after the other, each gets all of it: the second as soon as the first has read enough.
fn all_are_served(server: &Server, source: &Source, length: usize) {
    let mut readers: Vec<Client> = (0..3).map(|_| Client::of(server)).collect();
    for client in &mut readers {
        client.begin("/length");
    }
    until("the spool takes no more", || counted(server, "spool_refused") > 0);
    assert!(source.given.load(Ordering::SeqCst) < 3, "the worker is not held");
    let body = pattern(length);
    let read: Vec<_> = readers.into_iter().map(|mut client| std::thread::spawn(move || client.answer())).collect();
    for thread in read {
        let answer = thread.join().unwrap();
        assert!(answer.whole && answer.body == body, "{} bytes", answer.body.len());
    }
    source.gives(3);
    expect_empty(server);
    server.says("is not spooled, and holds its worker");
}

fn where_the_disk_is_full_the_worker_waits(backend: &str) {
    let source = Source::new(long(backend));
    for limit in ["100KiB", "4MiB"] {
        let server = source.server(backend, &["--spool-bytes", limit]);
        source.given.store(0, Ordering::SeqCst);
        all_are_served(&server, &source, long(backend));
        server.says("spool_bytes is used up");
    }
    let server = source.server(backend, &["--spool-bytes", "0"]);
    source.given.store(0, Ordering::SeqCst);
    let mut client = Client::of(&server);
    client.begin("/length");
    until("it waits", || counted(&server, "paused_for_memory") > 0);
    assert!(client.answer().body == pattern(long(backend)));
    assert_eq!((counted(&server, "spooled"), counted(&server, "helper_jobs")), (0, 0));
}

fn a_disk_that_fails_is_as_one_that_is_full(backend: &str) {
    // A directory that is gone, and files that may not become longer than a megabyte or two: EFBIG stands for ENOSPC.
    let (source, folder) = (Source::new(LONG), folder());
    let directory = folder.path().join("spool");
    std::fs::create_dir(&directory).unwrap();
    let flags = [SMALL, &["--upstream", &source.worker.url, "--spool-dir", directory.to_str().unwrap()]].concat();
    let server = Server::start(backend, &flags);
    std::fs::remove_dir(&directory).unwrap();
    all_are_served(&server, &source, LONG);
    server.says("No such file or directory");
    drop(server);
    std::fs::create_dir(&directory).unwrap();
    source.given.store(0, Ordering::SeqCst);
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\"", PROGRAM]);
    let server = Server::start_as(limited, backend, &flags);
    all_are_served(&server, &source, LONG);
    server.says("File too large");
}

fn a_stop_waits_for_what_is_spooled(backend: &str) {
    let source = Source::new(long(backend));
    let mut server = source.server(backend, &["--shutdown", "60s"]);
    let mut client = Client::of(&server);
    client.begin("/length");
    source.gives(1);
    server.signal("TERM");
    until("it stops", || TcpStream::connect(server.own).is_err());
    let answer = client.answer();
    assert!(answer.whole && answer.body == pattern(long(backend)));
    assert_eq!(server.ended().code(), Some(0));
}

fn a_crowd_that_reads_nothing_leaves_the_worker_free(backend: &str) {
    const READERS: usize = 30;
    const BUFFER: usize = 16 * MIB;
    let (source, body) = (Source::new(LONG), pattern(LONG));
    let server = source.server(backend, &["--buffer-bytes", "16MiB"]);
    small(&server);
    let before = server.resident_bytes();
    let mut readers = Vec::new();
    for index in 0..READERS {
        let mut client = Client::of(&server);
        client.begin(["/length", "/chunked"][index % 2]);
        source.gives(index + 1);
        readers.push(client);
    }
    small(&server);
    assert!(counted(&server, "spooled") > READERS as u64 / 2, "{}", server.status());
    assert_eq!(counted(&server, "spool_refused"), 0);
    let got = server.peak_bytes().saturating_sub(before);
    assert!(got < BUFFER + 16 * MIB, "{got} bytes more resident");
    // Half of them leave, and the others read.
    for client in readers.drain(..READERS / 2) {
        client.reset();
    }
    for client in &mut readers[..8] {
        assert!(client.answer().body == body);
    }
    drop(readers);
    expect_empty(&server);
}

fn what_is_to_arrive_bit_by_bit_is_not_spooled(backend: &str) {
    for field in ["Content-Type: text/event-stream", "X-Accel-Buffering: no"] {
        let worker = Worker::new(move |incoming| {
            while incoming.request().is_some() {
                incoming.send(format!("HTTP/1.1 200 OK\r\n{field}\r\nContent-Length: {LONG}\r\n\r\n"));
                incoming.send(pattern(LONG));
            }
        });
        let server = Server::before(backend, &worker.url, SMALL);
        let mut client = Client::of(&server);
        client.begin("/");
        until("it waits", || counted(&server, "paused_for_memory") > 0);
        assert!(client.answer().body == pattern(LONG));
        assert_eq!(counted(&server, "spooled"), 0, "{field}");
    }
}

fn the_access_line_tells_what_has_left(backend: &str) {
    let (source, folder) = (Source::new(LONG), folder());
    let log = folder.path().join("access.log");
    let server = source.server(backend, &["--access-log", log.to_str().unwrap(), "--access-log-format", "json"]);
    let [mut whole, mut left] = [Client::of(&server), Client::of(&server)];
    for (index, client) in [&mut whole, &mut left].into_iter().enumerate() {
        client.begin(&format!("/{}", ["length", "chunked"][index]));
        source.gives(index + 1);
    }
    left.reset();
    assert!(whole.answer().body.len() == LONG);
    let lines = || std::fs::read_to_string(&log).unwrap_or_default();
    until("both lines are written", || lines().lines().count() == 2);
    let lines: Vec<Value> = lines().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of = |path: &str| lines.iter().find(|line| line["url.path"] == path).unwrap();
    assert_eq!(
        (&of("/length")["http.response.body.size"], &of("/length")["http.response.status_code"]),
        (&LONG.into(), &200.into())
    );
    let bytes = of("/chunked")["http.response.body.size"].as_u64().unwrap();
    assert!(0 < bytes && bytes < LONG as u64, "{bytes}");
}

/// Whether the rest waits in memory alone or in a file, too: what its client has not been sent is not told as sent, and who has left or takes
/// nothing has no whole answer.
fn an_answer_is_told_of_once_its_client_has_it(backend: &str) {
    for memory in ["256MiB", "2MiB"] {
        for leaves in [true, false] {
            let (source, folder) = (Source::new(LONG), folder());
            let log = folder.path().join("access.log");
            let patience = if leaves { "60s" } else { "1s" };
            let flags = ["--buffer-bytes", memory, "--write-timeout", patience, "--queue-timeout-ms", "60000"];
            let format = ["--access-log", log.to_str().unwrap(), "--access-log-format", "json"];
            let server = Server::before(backend, &source.worker.url, &[&flags[..], &format].concat());
            let mut client = Client::of(&server);
            client.read_little();
            client.begin("/chunked");
            source.gives(1);
            // It has the worker, and so its line, only when that is free.
            small(&server);
            let lines = || std::fs::read_to_string(&log).unwrap_or_default();
            until("the other's line is written", || lines().contains("/small"));
            let counts = |name| counted(&server, name);
            if leaves {
                assert!(!lines().contains("/chunked"), "{}", lines());
                assert_eq!(counts("client_gone"), 0);
                client.reset();
            }
            until("it is gone", || counts("client_gone") == 1);
            assert_eq!(counts("timeouts"), u64::from(!leaves));
            until("its line is written", || lines().contains("/chunked"));
            let line = lines().lines().find(|line| line.contains("/chunked")).map(str::to_owned).unwrap();
            let line: Value = serde_json::from_str(&line).unwrap();
            assert_eq!(line["http.response.status_code"], 200);
            let (bytes, sent) = (line["http.response.body.size"].as_u64().unwrap(), counts("bytes_sent"));
            assert!(0 < bytes && bytes < sent && sent < LONG as u64, "{bytes} of {sent}");
        }
    }
}

/// Where others gather all that may be gathered for the disk, one more waits for them, and not for its client.
#[test]
fn what_waits_for_others_to_be_written_goes_on_once_they_are() {
    let mut rig = Rig::with(|settings| settings.stores.spool_bytes = 1 << 30);
    rig.shared.helpers.start(1).unwrap();
    let mut others = Queue::new(&rig.shared.spools, &rig.budget);
    others.push(&[0; 64 << 10]);
    assert!(!rig.shared.spools.may_gather(&rig.budget));
    let (_, service) = rig.worker_at("/simulated/worker.sock");
    let client = rig.client("GET /app HTTP/1.1\r\nHost: a\r\n\r\n");
    let worker = rig.world.accept(service).unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n");
    assert_eq!(rig.world.write(worker, head.as_bytes()).unwrap(), head.len());
    let write_all = |rig: &mut Rig| {
        let mut written = 0;
        while let Ok(count @ 1..) = rig.world.write(worker, &[7; 4096]) {
            written += count;
            rig.turns();
        }
        written
    };
    assert!(write_all(&mut rig) < LONG && write_all(&mut rig) == 0);
    assert_eq!(rig.metrics.total().spooled, 1);
    drop(others);
    until("the worker is read from again", || {
        rig.turns();
        write_all(&mut rig) > 0
    });
    assert_eq!(rig.shared.helpers.stop(DEADLINE), 0);
    rig.world.close(client);
    rig.world.close(worker);
    rig.turns();
}

/// It is tried again, though its client takes nothing and no memory comes back.
#[test]
fn what_found_no_room_is_spooled_once_there_is_some() {
    const ROOM: u64 = 1 << 20;
    let mut rig = Rig::with(|settings| settings.stores.spool_bytes = ROOM);
    rig.shared.helpers.start(1).unwrap();
    let begin = || Queue::begin(&rig.shared.spools, &rig.budget, ROOM);
    let others: Vec<Queue> = std::iter::from_fn(begin).collect();
    assert!(!others.is_empty());
    let (_, service) = rig.worker_at("/simulated/worker.sock");
    let client = rig.client("GET /app HTTP/1.1\r\nHost: a\r\n\r\n");
    let worker = rig.world.accept(service).unwrap();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LONG}\r\n\r\n");
    assert_eq!(rig.world.write(worker, head.as_bytes()).unwrap(), head.len());
    while let Ok(1..) = rig.world.write(worker, &[7; 4096]) {
        rig.turns();
    }
    assert_eq!((rig.metrics.total().spooled, rig.metrics.total().spool_refused), (0, 1));
    drop(others);
    // A second.
    (0..20).for_each(|_| rig.turns());
    assert_eq!(rig.metrics.total().spooled, 1);
    assert_eq!(rig.shared.helpers.stop(DEADLINE), 0);
    rig.world.close(client);
    rig.world.close(worker);
    rig.turns();
}

fn the_framing_of_chunks_is_not_told_as_left(backend: &str) {
    let worker = Worker::new(|incoming| {
        if incoming.request().is_some() {
            incoming.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            incoming.send(b"1\r\nx\r\n".repeat(LONG / 6));
            incoming.drain();
        }
    });
    let folder = folder();
    let log = folder.path().join("access.log");
    let flags = ["--access-log", log.to_str().unwrap(), "--access-log-format", "json"];
    let server = Server::before(backend, &worker.url, &[SMALL, &flags].concat());
    let mut client = Client::of(&server);
    client.begin("/");
    until("it is spooled", || counted(&server, "spool_bytes") > 4 * MIB as u64);
    client.reset();
    let line = || std::fs::read_to_string(&log).unwrap_or_default();
    until("the line is written", || line().ends_with('\n'));
    let line: Value = serde_json::from_str(&line()).unwrap();
    let bytes = line["http.response.body.size"].as_u64().unwrap();
    assert!((1..(LONG / 6) as u64).contains(&bytes), "{bytes}");
}

/// A worker of one request at a time that says whether a body is the pattern, and what came behind it in trailers.
fn judge() -> Worker {
    Worker::new(|incoming| {
        while let Some((head, body)) = incoming.request() {
            let expected = pattern(LONG);
            let (body, trailers) = body.split_at(body.len().min(LONG));
            let framing = if head.contains("chunked") { "chunked" } else { "length" };
            let says = if body == expected { "whole" } else { "other bytes" };
            let trailers = String::from_utf8_lossy(trailers).into_owned();
            let text =
                if head.starts_with("GET") { "small".to_owned() } else { format!("{says} {framing} {trailers}") };
            incoming.respond(text.as_bytes());
        }
    })
}

/// How a request for that path says what its body is like, the body in pieces, and its end.
fn framed(path: &str, chunked: bool, body: &[u8]) -> (String, Vec<Vec<u8>>) {
    let framing =
        if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {}", body.len()) };
    let chunk = |piece: &[u8]| match chunked {
        true => [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat(),
        false => piece.to_vec(),
    };
    (format!("PUT {path} HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n"), body.chunks(100_001).map(chunk).collect())
}

fn an_upload_holds_no_worker_before_it_is_whole(backend: &str) {
    let (worker, folder) = (judge(), folder());
    let server =
        Server::before(backend, &worker.url, &[SMALL, &["--spool-dir", folder.path().to_str().unwrap()]].concat());
    let cases = [
        (false, "", "whole length "),
        (true, "0\r\n\r\n", "whole length "),
        (true, "0\r\nX-Sum: 7\r\n\r\n", "whole chunked X-Sum: 7\r\n"),
    ];
    for (index, (chunked, end, said)) in cases.into_iter().enumerate() {
        let mut client = Client::of(&server);
        let path = format!("/upload/{index}");
        let (head, pieces) = framed(&path, chunked, &pattern(LONG));
        client.send(head);
        let (last, first) = pieces.split_last().unwrap();
        first.iter().for_each(|piece| client.send(piece));
        until("it is spooled", || counted(&server, "spool_bytes") > 11 * MIB as u64);
        small(&server);
        assert!(worker.of(&path).is_none() && is_empty(folder.path()), "the worker has it already");
        client.send(last);
        client.send(end);
        assert_eq!(client.answer().text(), said);
        expect_empty(&server);
        client.expect_alive();
    }
    assert_eq!((counted(&server, "spooled"), counted(&server, "spool_refused")), (3, 0));
}

fn an_upload_is_sent_again_to_another_worker(backend: &str) {
    // The first connection ends under it when it has been used before; then there is no place; then it is read to its end.
    let turn = Arc::new(AtomicUsize::new(0));
    let turns = turn.clone();
    let worker = Worker::new(move |incoming| {
        while let Some(head) = incoming.head() {
            if head.starts_with("GET") {
                incoming.respond(b"small");
                continue;
            }
            match turns.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    incoming.take(MIB).unwrap();
                    return;
                }
                2 => {
                    incoming.send("HTTP/1.1 503 Busy\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n");
                    return;
                }
                _ => {
                    let body = incoming.take(LONG).unwrap();
                    incoming.respond(if body == pattern(LONG) { b"whole" } else { b"other bytes" });
                }
            }
        }
    });
    let server = Server::before(backend, &worker.url, SMALL);
    for (method, turns) in [("PUT", 2), ("POST", 4)] {
        small(&server);
        let mut client = Client::of(&server);
        client.send(format!("{method} /upload HTTP/1.1\r\nHost: a\r\nContent-Length: {LONG}\r\n\r\n"));
        client.send(pattern(LONG));
        assert_eq!(client.answer().text(), "whole");
        assert_eq!((turn.load(Ordering::SeqCst), counted(&server, "retries")), (turns, turns as u64 / 2), "{method}");
        expect_empty(&server);
    }
}

fn where_the_disk_takes_no_more_of_an_upload_the_rest_streams(backend: &str) {
    let worker = judge();
    // None of it fits, or the first quarter of that.
    for (limit, chunked) in [("100KiB", true), ("100KiB", false), ("16MiB", true), ("16MiB", false)] {
        let server = Server::before(backend, &worker.url, &[SMALL, &["--spool-bytes", limit]].concat());
        upload_streams(&server, chunked);
        server.says("spool_bytes is used up");
    }
    let mut limited = Command::new("/bin/sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\"", PROGRAM]);
    let server = Server::start_as(limited, backend, &[SMALL, &["--upstream", &worker.url]].concat());
    upload_streams(&server, false);
    server.says("File too large");
}

fn upload_streams(server: &Server, chunked: bool) {
    let mut client = Client::of(server);
    let (head, pieces) = framed("/upload", chunked, &pattern(LONG));
    client.send(head);
    let (last, first) = pieces.split_last().unwrap();
    first.iter().for_each(|piece| client.send(piece));
    until("the worker has begun", || counted(server, "busy") == 1);
    client.send(last);
    if chunked {
        client.send("0\r\n\r\n");
    }
    let said = if chunked { "whole chunked " } else { "whole length " };
    assert_eq!((client.answer().text().as_str(), counted(server, "spool_refused")), (said, 1));
    expect_empty(server);
    client.expect_alive();
}

fn an_upload_that_ends_early_gives_all_back(backend: &str) {
    let worker = judge();
    let server = Server::before(backend, &worker.url, &[SMALL, &["--body-timeout", "1s"]].concat());
    // It leaves, goes on too slowly, or sends no chunk.
    for (then, status) in [(None, None), (Some(""), Some(408)), (Some("no chunk"), Some(400))] {
        let mut client = Client::of(&server);
        let (head, pieces) = framed("/upload", true, &pattern(4 * MIB));
        client.send(head);
        pieces.iter().for_each(|piece| client.send(piece));
        until("it is spooled", || counted(&server, "spool_bytes") > 3 * MIB as u64);
        match then {
            None => client.reset(),
            Some(more) => {
                client.send(more);
                assert_eq!(Some(client.answer().status), status);
            }
        }
        expect_empty(&server);
    }
    worker.expect_nothing("no upload was whole");
}

fn an_answer_may_come_before_the_upload_is_read(backend: &str) {
    let (tell, told) = channel::<()>();
    let told = Mutex::new(told);
    let worker = Worker::new(move |incoming| {
        while let Some(head) = incoming.head() {
            if head.starts_with("GET") {
                incoming.respond(b"small");
                continue;
            }
            if head.contains("/refused") {
                // It reads nothing of it, and its connection is of no use any more.
                return incoming.respond(b"no");
            }
            incoming.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegun\r\n");
            told.lock().unwrap().recv().unwrap();
            let whole = incoming.take(LONG).unwrap() == pattern(LONG);
            incoming.send(if whole { "6\r\n whole\r\n0\r\n\r\n" } else { "0\r\n\r\n" });
        }
    });
    let server = Server::before(backend, &worker.url, SMALL);
    let (head, pieces) = framed("/begun", false, &pattern(LONG));
    let mut client = Client::of(&server);
    client.send(head);
    pieces.iter().for_each(|piece| client.send(piece));
    client.head().unwrap();
    assert_eq!(client.take(10), b"5\r\nbegun\r\n");
    tell.send(()).unwrap();
    assert_eq!(client.take(16), b"6\r\n whole\r\n0\r\n\r\n");
    client.expect_alive();
    let (head, pieces) = framed("/refused", false, &pattern(LONG));
    client.send(head);
    pieces.iter().for_each(|piece| client.send(piece));
    assert_eq!(client.answer().text(), "no");
    expect_empty(&server);
    small(&server);
}

fn a_crowd_of_uploads_leaves_the_worker_free(backend: &str) {
    const CROWD: usize = 30;
    const BUFFER: usize = 4 * MIB;
    let worker = judge();
    let server =
        Server::before(backend, &worker.url, &[SMALL, &["--buffer-bytes", "4MiB", "--body-timeout", "60s"]].concat());
    small(&server);
    let before = server.resident_bytes();
    let (head, pieces) = framed("/upload", false, &pattern(LONG));
    let (last, first) = pieces.split_last().unwrap();
    // All at once: what is on its way to the disk has a bound, too, and they take turns.
    let mut crowd: Vec<Client> = std::thread::scope(|scope| {
        let send = || {
            let mut client = Client::of(&server);
            client.send(&head);
            first.iter().for_each(|piece| client.send(piece));
            client
        };
        let sending: Vec<_> = (0..CROWD).map(|_| scope.spawn(send)).collect();
        sending.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let all = (CROWD * (LONG - 200_000)) as u64;
    until("all is spooled", || counted(&server, "spool_bytes") > all);
    small(&server);
    let got = server.peak_bytes().saturating_sub(before);
    assert!(got < BUFFER + 16 * MIB, "{got} bytes more resident");
    assert!(worker.of("/upload").is_none());
    for client in &mut crowd[..8] {
        client.send(last);
    }
    for client in &mut crowd[..8] {
        assert_eq!(client.answer().text(), "whole length ");
    }
    drop(crowd);
    expect_empty(&server);
    assert_eq!((counted(&server, "spool_refused"), counted(&server, "spooled")), (0, CROWD as u64));
}

fn uploads_stream_where_they_are_to(backend: &str) {
    for (buffering, length) in [("memory", LONG), ("off", 100_000)] {
        let worker = judge();
        let server = Server::before(backend, &worker.url, &["--request-buffering", buffering]);
        for chunked in [false, true] {
            let path = format!("/upload/{chunked}");
            let (head, pieces) = framed(&path, chunked, &pattern(LONG)[..length]);
            let (last, first) = pieces.split_last().unwrap();
            let mut client = Client::of(&server);
            client.send(head);
            first.iter().for_each(|piece| client.send(piece));
            until("the worker has begun", || worker.of(&path).is_some());
            client.send(last);
            if chunked {
                client.send("0\r\n\r\n");
            }
            let answer = client.answer().text();
            assert!(answer.starts_with(if length == LONG { "whole" } else { "other" }), "{answer}");
        }
        assert_eq!(counted(&server, "spooled"), 0);
    }
}
