//! Files that are served, by `--static`, by routes, and in the place of an app's answer (`named`); and error pages.

mod named;
mod refusals;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Answer, Client, PROGRAM, Server, Worker, folder, on_every_backend_and_tls, pattern, until};

on_every_backend_and_tls! {
    a_directory_is_served
    conditions_and_ranges_are_answered
    large_files_are_whole
    a_slow_reader_costs_little_memory
    who_reads_nothing_of_a_file_is_cut
    what_waits_behind_a_file_is_answered
    siblings_that_were_compressed_are_chosen
    routes_say_how_files_are_served
    nothing_outside_and_nothing_hidden_is_served
    changes_are_seen
    files_that_nobody_asks_for_are_closed
    a_burst_of_names_opens_no_more_files_than_are_kept
    who_reads_slowly_keeps_one_file_open
    a_failure_is_over_when_its_cause_is
    a_file_that_shrinks_is_cut
    what_a_route_says_stands_in_every_answer
    a_directory_is_no_fallback
    errors_are_shown_as_pages
    pages_of_a_route_go_before_those_of_its_app_and_these_before_the_servers
    a_reload_says_whose_pages_are_others
    a_slow_disk_holds_up_nobody_else
    a_reload_brings_other_files_and_pages
}

/// A folder with files in `www`.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &[u8])]) -> Folder {
        let folder = Folder(folder());
        std::fs::create_dir(folder.path("www")).unwrap();
        for (name, bytes) in files {
            folder.write(&format!("www/{name}"), bytes);
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string().trim_end_matches('/').to_owned()
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// A server with that configuration file; `{folder}` in it is this one.
    fn server(&self, backend: &str, file: &str) -> Server {
        self.write("site.toml", file.replace("{folder}", &self.text("")).as_bytes());
        Server::start(backend, &["-f", &self.text("site.toml")])
    }

    /// On a disk that is slow until the file `gate` is there.
    fn served_slowly(&self, backend: &str, flags: &[&str]) -> Server {
        let library = self.path("slow_disk.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/slow_disk.c");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let mut compile = Command::new(compiler);
        compile.args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]);
        compile.arg(format!("-DGATE=\"{}\"", self.text("gate"))).arg("-o").arg(&library).arg(source);
        assert!(compile.status().unwrap().success());
        let mut command = Command::new(PROGRAM);
        command.env("LD_PRELOAD", &library);
        Server::start_as(command, backend, &[&["--static", &self.text("www")], flags].concat())
    }

    fn served(&self, backend: &str) -> Server {
        Server::start(backend, &["--static", &self.text("www")])
    }
}

fn ask(client: &mut Client, target: &str, fields: &str) -> Answer {
    client.ask(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
}

fn a_directory_is_served(backend: &str) {
    let folder =
        Folder::new(&[("index.html", b"home"), ("a/b.css", b"p{}"), ("empty.txt", b""), ("a/index.html", b"in a")]);
    let server = folder.served(backend);
    let mut client = Client::of(&server);
    for _ in 0..2 {
        // The first answer waits for a helper, and the second finds what that has found.
        let answer = client.get("/");
        assert_eq!((answer.status, answer.text().as_str()), (200, "home"));
        assert_eq!(answer.field("Content-Type"), Some("text/html; charset=utf-8"));
        assert_eq!((answer.field("Accept-Ranges"), answer.field("Cache-Control")), (Some("bytes"), None));
        let answer = client.get("/a/b.css?v=1");
        assert_eq!((answer.text().as_str(), answer.field("Content-Type")), ("p{}", Some("text/css; charset=utf-8")));
        assert_eq!(client.get("/a/").text(), "in a");
        let answer = client.get("/empty.txt");
        assert_eq!((answer.status, answer.field("Content-Length")), (200, Some("0")));
        let answer = client.get("/a?b=c");
        assert_eq!((answer.status, answer.field("Location")), (308, Some("/a/?b=c")));
        let answer = client.get("/missing");
        assert_eq!((answer.status, answer.text().contains("there is no such file")), (404, true));
        client.send("HEAD /a/b.css HTTP/1.1\r\nHost: a\r\n\r\n");
        let answer = client.next_answer(true);
        assert_eq!((answer.status, answer.field("Content-Length")), (200, Some("3")));
        client.send("HEAD /missing HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.next_answer(true).status, 404);
        let answer = client.ask("POST /a/b.css HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab");
        assert_eq!((answer.status, answer.field("Allow")), (405, Some("GET, HEAD, OPTIONS")));
        let answer = client.ask("OPTIONS /a/b.css HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((answer.status, answer.field("Allow")), (204, Some("GET, HEAD, OPTIONS")));
    }
    // All on one connection; and a pipeline is answered in its order.
    client.send(
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /a/ HTTP/1.1\r\nHost: a\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n"
            .repeat(20),
    );
    for _ in 0..20 {
        let answers = [client.answer(), client.answer(), client.answer()];
        assert_eq!(answers.each_ref().map(|answer| answer.status), [200, 200, 404]);
        assert_eq!((answers[0].text(), answers[1].text()), ("home".to_owned(), "in a".to_owned()));
    }
    let answer = client.ask("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(answer.text(), "home");
    client.expect_end();
    assert!(server.apps().to_string().contains("web"));
}

fn conditions_and_ranges_are_answered(backend: &str) {
    let folder = Folder::new(&[("a.txt", b"0123456789")]);
    let server = folder.served(backend);
    let mut client = Client::of(&server);
    let answer = client.get("/a.txt");
    let [etag, modified] = ["ETag", "Last-Modified"].map(|name| answer.field(name).unwrap().to_owned());
    let mut ask = |fields: &str| ask(&mut client, "/a.txt", fields);
    for fields in [
        format!("If-None-Match: {etag}\r\n"),
        format!("If-None-Match: \"x\", W/{etag}\r\n"),
        format!("If-Modified-Since: {modified}\r\n"),
    ] {
        let answer = ask(&fields);
        assert_eq!(
            (answer.status, answer.field("ETag"), answer.text().as_str()),
            (304, Some(etag.as_str()), ""),
            "{fields}"
        );
        assert_eq!((answer.field("Content-Length"), answer.field("Content-Type")), (None, None));
    }
    assert_eq!(ask("If-Match: \"x\"\r\n").status, 412);
    assert_eq!(ask(&format!("If-Match: {etag}\r\n")).status, 200);
    let answer = ask("Range: bytes=2-4\r\n");
    assert_eq!((answer.status, answer.text().as_str()), (206, "234"));
    assert_eq!(answer.field("Content-Range"), Some("bytes 2-4/10"));
    assert_eq!(ask(&format!("Range: bytes=-2\r\nIf-Range: {etag}\r\n")).text(), "89");
    assert_eq!(ask("Range: bytes=-2\r\nIf-Range: \"x\"\r\n").text(), "0123456789");
    let answer = ask(&format!("Range: bytes=-2\r\nIf-Range: {modified}\r\n"));
    assert_eq!((answer.status, answer.text().as_str()), (200, "0123456789"), "another file may have had that date");
    let answer = ask("Range: bytes=10-\r\n");
    assert_eq!((answer.status, answer.field("Content-Range")), (416, Some("bytes */10")));
    let answer = ask("Range: bytes=0-1,-1\r\n");
    let boundary = answer.field("Content-Type").and_then(|value| value.split_once("boundary=")).unwrap().1;
    let part = |range: &str, text: &str| {
        format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Range: bytes {range}/10\r\n\r\n{text}\r\n"
        )
    };
    assert_eq!(answer.status, 206);
    assert_eq!(answer.text(), format!("{}{}--{boundary}--\r\n", part("0-1", "01"), part("9-9", "9")));
}

fn large_files_are_whole(backend: &str) {
    let bytes = pattern(3 << 20);
    let folder = Folder::new(&[("a.bin", &bytes), ("b.bin", &bytes[..20_000])]);
    let server = folder.served(backend);
    let mut client = Client::of(&server);
    for _ in 0..2 {
        assert!(client.get("/a.bin").body == bytes);
        assert!(client.get("/b.bin").body == bytes[..20_000]);
        let answer = ask(&mut client, "/a.bin", "Range: bytes=100000-2000000,2500000-\r\n");
        let body: &[u8] = &answer.body;
        let is_in = |part: &[u8]| {
            body.windows(64).any(|bytes| bytes == &part[..64])
                && body.windows(64).any(|bytes| bytes == &part[part.len() - 64..])
        };
        assert!(answer.status == 206 && is_in(&bytes[100_000..2_000_001]) && is_in(&bytes[2_500_000..]));
    }
    assert_eq!(server.status()["files_cut"], 0);
}

fn a_slow_reader_costs_little_memory(backend: &str) {
    let folder = Folder::new(&[]);
    let file = std::fs::File::create(folder.path("www/sparse")).unwrap();
    file.set_len(1 << 30).unwrap();
    let server = folder.served(backend);
    let mut fast = Client::of(&server);
    let before = server.resident_bytes();
    let mut slow: Vec<Client> = (0..16).map(|_| Client::of(&server)).collect();
    for client in &mut slow {
        client.begin("/sparse");
        assert!(client.head().unwrap().contains("Content-Length: 1073741824"));
        client.take(1 << 20);
    }
    assert_eq!(fast.get("/missing").status, 404);
    let more = server.resident_bytes().saturating_sub(before);
    assert!(more < 32 << 20, "16 readers cost {more} bytes");
    // Those who read on get on.
    assert!(slow.iter_mut().all(|client| client.take(4 << 20).iter().all(|byte| *byte == 0)));
}

/// Of which the kernel takes what it has room for, and nothing waits in the server.
fn who_reads_nothing_of_a_file_is_cut(backend: &str) {
    let folder = Folder::new(&[]);
    std::fs::File::create(folder.path("www/sparse")).unwrap().set_len(64 << 20).unwrap();
    let server = Server::start(backend, &["--static", &folder.text("www"), "--write-timeout", "400ms"]);
    for fields in ["", "Range: bytes=1-50000000\r\n", "Connection: close\r\n"] {
        let mut client = Client::of(&server);
        client.send(format!("GET /sparse HTTP/1.1\r\nHost: a\r\n{fields}\r\n"));
        assert!(client.head().unwrap().starts_with("HTTP/1.1 20"));
        until("who reads nothing is cut", || server.status()["active_connections"] == 0);
    }
    // Who has stopped in the middle as well; and who has taken all goes on.
    let mut client = Client::of(&server);
    client.begin("/sparse");
    client.head().unwrap();
    client.take(8 << 20);
    until("who has stopped is cut", || server.status()["active_connections"] == 0);
    let mut client = Client::of(&server);
    for _ in 0..2 {
        assert_eq!(ask(&mut client, "/sparse", "Range: bytes=0-9999999\r\n").body.len(), 10_000_000);
    }
}

/// Whether its answer is over at once or not.
fn what_waits_behind_a_file_is_answered(backend: &str) {
    let folder = Folder::new(&[]);
    for size in [100, 15_361, 20_000, 70_000, 1_000_000] {
        folder.write(&format!("www/{size}"), &vec![b'x'; size]);
    }
    let text =
        format!("[apps.text]\nrespond = '{}'\n[[routes]]\nmatch.path = '/text'\napp = 'text'\n", "x".repeat(20_000));
    let server = folder.server(backend, &(text + "[[routes]]\nstatic = { root = '{folder}/www' }\n"));
    for target in ["/100", "/15361", "/20000", "/70000", "/1000000", "/text", "/missing", "/livez"] {
        let known = Client::of(&server).get(target);
        let get = |fields: &str| format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let mut client = Client::of(&server);
        client.send(get("") + &get("") + &get("Connection: close\r\n"));
        // Over TLS there is a word for it, which may come when the connection is closed already.
        if !backend.contains("tls") {
            client.finish();
        }
        for _ in 0..3 {
            let answer = client.answer();
            assert_eq!((answer.status, answer.body.len()), (known.status, known.body.len()), "{target}");
        }
        client.expect_end();
    }
}

fn siblings_that_were_compressed_are_chosen(backend: &str) {
    let files: &[(&str, &[u8])] = &[
        ("a.js", b"the script itself"),
        ("a.js.br", b"brotli"),
        ("a.js.zst", b"zstandard"),
        ("a.js.gz", b"zipped"),
        ("b.js", b"alone"),
        ("c.png", b"an image"),
        ("c.png.gz", b"zipped"),
    ];
    let folder = Folder::new(files);
    let server = folder.served(backend);
    let mut client = Client::of(&server);
    let mut tags = Vec::new();
    for (accept, coding, text) in [
        ("", None, "the script itself"),
        ("Accept-Encoding: gzip\r\n", Some("gzip"), "zipped"),
        ("Accept-Encoding: gzip;q=0.5, zstd;q=0.9\r\n", Some("zstd"), "zstandard"),
        ("Accept-Encoding: gzip, deflate, br, zstd\r\n", Some("br"), "brotli"),
        ("Accept-Encoding: gzip;q=0\r\n", None, "the script itself"),
    ] {
        let answer = ask(&mut client, "/a.js", accept);
        assert_eq!((answer.field("Content-Encoding"), answer.text().as_str()), (coding, text), "{accept}");
        assert_eq!(answer.field("Content-Type"), Some("text/javascript; charset=utf-8"));
        assert_eq!(answer.field("Vary"), Some("Accept-Encoding"));
        tags.push(answer.field("ETag").unwrap().to_owned());
    }
    assert!(tags[0] != tags[1] && tags[1] != tags[2] && tags[0] == tags[4], "{tags:?}");
    let answer = ask(&mut client, "/a.js", &format!("Accept-Encoding: gzip\r\nIf-None-Match: {}\r\n", tags[1]));
    assert_eq!((answer.status, answer.field("Vary")), (304, Some("Accept-Encoding")));
    for (target, text) in [("/b.js", "alone"), ("/c.png", "an image")] {
        let answer = ask(&mut client, target, "Accept-Encoding: gzip, br, zstd\r\n");
        assert_eq!(
            (answer.text().as_str(), answer.field("Vary"), answer.field("Content-Encoding")),
            (text, None, None)
        );
    }
}

const SITE: &str = r#"
[apps.web]
upstream = "{worker}"

[[routes]]
match.path = "/assets/*"
static = { root = "{folder}/www", prefix = "/assets", index = ["home.htm", "index.html"], cache = "max-age=60", immutable = ["*-????????.js", "/fonts/*"] }
response_fields = { set = { X-Frame-Options = "DENY" }, remove = "Last-Modified" }

[[routes]]
match.path = "/api/*"
app = "web"

[[routes]]
static = { root = "{folder}/www", fallback = "index.html" }
"#;

fn routes_say_how_files_are_served(backend: &str) {
    let folder = Folder::new(&[
        ("index.html", b"the app"),
        ("a.js", b"script"),
        ("fonts/a.woff2", b"font"),
        ("d/home.htm", b"home"),
        ("d/index.html", b"index"),
    ]);
    let worker = Worker::echo();
    let site = SITE.replace("{worker}", &worker.url).replace("*-????????.js", "/a-*.js");
    let server = folder.server(backend, &site);
    let mut client = Client::of(&server);
    let answer = client.get("/assets/a.js");
    assert_eq!((answer.text().as_str(), answer.field("Cache-Control")), ("script", Some("max-age=60")));
    assert_eq!((answer.field("X-Frame-Options"), answer.field("Last-Modified")), (Some("DENY"), None));
    let answer = client.get("/assets/fonts/a.woff2");
    assert_eq!(answer.field("Cache-Control"), Some("public, max-age=31536000, immutable"));
    assert_eq!((client.get("/assets/d/").text(), client.get("/d/").text()), ("home".to_owned(), "index".to_owned()));
    assert_eq!(client.get("/assets/d").field("Location"), Some("/assets/d/"));
    // A page of an app in the browser, and a script that is missing.
    for _ in 0..2 {
        let answer = client.get("/users/7");
        assert_eq!((answer.status, answer.text().as_str()), (200, "the app"));
        assert_eq!((client.get("/missing.js").status, client.get("/assets/users/7").status), (404, 404));
    }
    assert_eq!(client.get("/api/x").status, 200);
    assert!(worker.of("/api/x").is_some());
}

fn nothing_outside_and_nothing_hidden_is_served(backend: &str) {
    let folder = Folder::new(&[
        ("a/b.txt", b"inside"),
        (".env", b"secret"),
        (".git/config", b"secret"),
        (".well-known/x", b"known"),
    ]);
    folder.write("secret.txt", b"secret");
    symlink("../secret.txt", folder.path("www/link.txt")).unwrap();
    symlink("..", folder.path("www/up")).unwrap();
    symlink("a/b.txt", folder.path("www/inside.txt")).unwrap();
    assert!(Command::new("mkfifo").arg(folder.path("www/fifo")).status().unwrap().success());
    let server = folder.served(backend);
    let mut client = Client::of(&server);
    for target in [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/a/..%2f..%2fsecret.txt",
        "/link.txt",
        "/up/secret.txt",
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/a/../.env",
        "/a%00.txt",
        "/fifo",
        "/a/b.txt/",
        "/a/",
        "/",
    ] {
        let answer = client.get(target);
        assert_eq!(answer.status, 404, "{target}");
        assert!(!answer.text().contains("secret.") && !answer.text().ends_with("secret"), "{target}");
    }
    assert_eq!(client.get("/.well-known/x").text(), "known");
    if cfg!(target_os = "linux") {
        assert_eq!(client.get("/inside.txt").text(), "inside");
    }
}

fn changes_are_seen(backend: &str) {
    let folder = Folder::new(&[("a.txt", b"old")]);
    let server = folder.served(backend);
    let mut client = Client::of(&server);
    let old = client.get("/a.txt");
    assert_eq!((old.text().as_str(), client.get("/b.txt").status), ("old", 404));
    folder.write("www/new", b"newer");
    std::fs::rename(folder.path("www/new"), folder.path("www/a.txt")).unwrap();
    folder.write("www/b.txt", b"there");
    until("the new file is served", || client.get("/a.txt").text() == "newer");
    assert_ne!(client.get("/a.txt").field("ETag"), old.field("ETag"));
    until("the file is there", || client.get("/b.txt").text() == "there");
    std::fs::remove_file(folder.path("www/a.txt")).unwrap();
    until("the file is gone", || client.get("/a.txt").status == 404);
}

fn files_that_nobody_asks_for_are_closed(backend: &str) {
    let names: Vec<String> = (0..20).map(|number| format!("{number}.txt")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &b"bytes"[..])).collect();
    let folder = Folder::new(&files);
    let server = folder.served(backend);
    let mut client = Client::of(&server);
    assert_eq!(client.get("/missing").status, 404);
    let before = server.descriptors();
    for name in &names {
        assert_eq!(client.get(&format!("/{name}")).text(), "bytes");
    }
    assert!(server.descriptors() > before, "they are open for whoever comes next");
    until("they are closed, though nobody asks for anything", || server.descriptors() <= before);
    assert_eq!(client.get("/0.txt").text(), "bytes");
}

/// A folder of so many scripts with all their siblings, each file so long.
fn scripts(count: usize, bytes: usize) -> Folder {
    let folder = Folder::new(&[]);
    for number in 0..count {
        for ending in ["", ".gz", ".br", ".zst"] {
            folder.write(&format!("www/{number}.js{ending}"), &vec![b'x'; bytes]);
        }
    }
    folder
}

fn a_burst_of_names_opens_no_more_files_than_are_kept(backend: &str) {
    let names = 150;
    let folder = scripts(names, 100);
    let server = folder.served(backend);
    let mut clients: Vec<Client> = (0..names).map(|_| Client::of(&server)).collect();
    // All are accepted, and the helpers have what they need.
    assert!(clients.iter_mut().all(|client| client.get("/missing").status == 404));
    let before = server.descriptors();
    for (number, client) in clients.iter_mut().enumerate() {
        client.begin(&format!("/{number}.js"));
    }
    let mut most = 0;
    for client in &mut clients {
        most = most.max(server.descriptors());
        assert_eq!(client.answer().body.len(), 100);
    }
    most = most.max(server.descriptors());
    // Each helper has the root open while it looks.
    assert!(most <= before + 128 + 2, "{before} became {most}");
}

fn who_reads_slowly_keeps_one_file_open(backend: &str) {
    let folder = scripts(1, 8 << 20);
    let server = folder.served(backend);
    // What it does not read is more than all buffers on the way hold.
    let socket = std::net::TcpStream::connect(server.address).unwrap();
    socket2::SockRef::from(&socket).set_recv_buffer_size(16 << 10).unwrap();
    let mut client = Client::over(socket, Vec::new());
    assert_eq!(client.get("/missing").status, 404);
    let before = server.descriptors();
    client.begin("/0.js");
    assert!(client.head().unwrap().contains("Content-Length: 8388608"));
    until("its siblings are closed", || server.descriptors() <= before + 1);
    assert_eq!(server.descriptors(), before + 1);
    assert_eq!(client.take(8 << 20).len(), 8 << 20);
}

fn a_failure_is_over_when_its_cause_is(backend: &str) {
    let folder = Folder::new(&[("a.txt", b"there")]);
    let server = folder.served(backend);
    let mut client = Client::of(&server);
    for _ in 0..3 {
        std::fs::rename(folder.path("www"), folder.path("away")).unwrap();
        until("the root is missed", || client.get("/a.txt").status == 503);
        std::fs::rename(folder.path("away"), folder.path("www")).unwrap();
        assert_eq!(client.get("/a.txt").text(), "there");
    }
}

fn a_file_that_shrinks_is_cut(backend: &str) {
    let folder = Folder::new(&[]);
    let file = std::fs::File::create(folder.path("www/a.bin")).unwrap();
    file.set_len(256 << 20).unwrap();
    let server = folder.served(backend);
    let mut client = Client::of(&server);
    client.begin("/a.bin");
    assert!(client.head().unwrap().contains("Content-Length: 268435456"));
    file.set_len(1 << 20).unwrap();
    let (rest, _) = client.rest();
    assert!(rest.len() < 256 << 20);
    until("it is counted", || server.status()["files_cut"] == 1);
    assert_eq!(Client::of(&server).get("/missing").status, 404);
}

/// Whatever becomes of a request, and whether the name was known before or not.
fn what_a_route_says_stands_in_every_answer(backend: &str) {
    let folder = Folder::new(&[("a.txt", b"text"), ("folder/b.txt", b"")]);
    let site = "[limits.all]\nrate = '6000/m'\nheaders = true\n[[routes]]\nstatic = '{folder}/www'\nlimits = 'all'\n\
                response_fields.set = { X-Set = 'yes' }\n";
    let server = folder.server(backend, site);
    let mut client = Client::of(&server);
    for _ in 0..2 {
        for (method, target, status) in
            [("GET", "/a.txt", 200), ("GET", "/folder", 308), ("OPTIONS", "/a.txt", 204), ("HEAD", "/folder", 308)]
        {
            client.send(format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
            let answer = client.next_answer(method == "HEAD");
            assert_eq!((answer.status, answer.field("X-Set")), (status, Some("yes")), "{method} {target}");
            let said = ["RateLimit", "RateLimit-Policy"].map(|name| answer.all(name).len());
            assert_eq!(said, [1, 1], "{method} {target}: {}", answer.head);
            assert_eq!(answer.field("Location"), (status == 308).then_some("/folder/"));
        }
    }
}

fn a_directory_is_no_fallback(backend: &str) {
    let folder = Folder::new(&[("in/index.html", b"")]);
    let server = folder.server(backend, "[[routes]]\nstatic = { root = '{folder}/www', fallback = '/in' }\n");
    let mut client = Client::of(&server);
    for _ in 0..2 {
        for target in ["/users", "/users/", "/users//"] {
            let answer = client.get(target);
            assert_eq!((answer.status, answer.field("Location")), (404, None), "{target}");
        }
    }
    let check = |fallback: &str| {
        folder.write(
            "site.toml",
            format!("[[routes]]\nstatic = {{ root = '{}', fallback = '{fallback}' }}\n", folder.text("www")).as_bytes(),
        );
        let output = Command::new(PROGRAM).args(["check", "-f", &folder.text("site.toml")]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (fallback, said) in [("/in", "is a directory"), ("/none.html", "there is no fallback"), ("/in/index.html", "")]
    {
        let (done, told) = check(fallback);
        assert!(done && told.contains(said) && told.is_empty() == said.is_empty(), "{fallback}: {told}");
    }
}

fn errors_are_shown_as_pages(backend: &str) {
    let folder = Folder::new(&[]);
    folder.write("404.html", b"<p>nothing here");
    folder.write("503.html", b"<p>we start");
    folder.write("502.txt", b"broken\n");
    folder.write("416.html", b"<p>no such part");
    folder.write("www/www/a.txt", b"0123456789");
    let broken = Worker::saying("nonsense\r\n\r\n");
    let site = format!(
        "[server]\nerror_pages = {{ 404 = \"{{folder}}/404.html\", 416 = \"{{folder}}/416.html\", 502 = \"{{folder}}/502.txt\", 503 = \"{{folder}}/503.html\" }}\n\
         [apps.nobody]\nupstream = \"unix:{{folder}}/nobody\"\nqueue.hold = \"0s\"\n[apps.broken]\nupstream = \"{}\"\n\
         [[routes]]\nmatch.path = \"/nobody\"\napp = \"nobody\"\n[[routes]]\nmatch.path = \"/broken\"\napp = \"broken\"\n\
         [[routes]]\nmatch.path = \"/www/*\"\nstatic = \"{{folder}}/www\"\n",
        broken.url
    );
    let server = folder.server(backend, &site);
    for (target, status, media_type, text) in [
        ("/www/x", 404, "text/html; charset=utf-8", "<p>nothing here"),
        ("/nobody", 503, "text/html; charset=utf-8", "<p>we start"),
        ("/broken", 502, "text/plain; charset=utf-8", "broken\n"),
        ("/elsewhere", 404, "text/html; charset=utf-8", "<p>nothing here"),
    ] {
        let answer = Client::of(&server).get(target);
        assert_eq!(
            (answer.status, answer.field("Content-Type"), answer.text().as_str()),
            (status, Some(media_type), text)
        );
        let answer = ask(&mut Client::of(&server), target, "Accept: application/json\r\n");
        assert!(answer.status == status && !answer.text().contains(text), "{target}");
    }
    for _ in 0..2 {
        let answer = ask(&mut Client::of(&server), "/www/a.txt", "Range: bytes=10-\r\n");
        assert_eq!((answer.status, answer.text().as_str()), (416, "<p>no such part"));
        assert_eq!(answer.field("Content-Range"), Some("bytes */10"));
    }
    let answer = Client::of(&server).get("/nobody");
    assert!(answer.field("Retry-After").is_some() && answer.field("Cache-Control") == Some("no-store"));
}

fn pages_of_a_route_go_before_those_of_its_app_and_these_before_the_servers(backend: &str) {
    let folder = Folder::new(&[]);
    for name in ["server", "app", "route"] {
        folder.write(&format!("{name}.html"), name.as_bytes());
        folder.write(&format!("{name}.json"), format!("\"{name}\"").as_bytes());
    }
    folder.write("keys", b"");
    let broken = Worker::saying("nonsense\r\n\r\n");
    let site = format!(
        "[limits.none]\nrate = '1/h'\n[server]\nerror_pages = {{ 404 = '{{folder}}/server.html', 429 = '{{folder}}/server.html', 502 = '{{folder}}/server.json', \
         503 = '{{folder}}/server.html', 403 = '{{folder}}/server.html' }}\n\
         [apps.starting]\nupstream = 'unix:{{folder}}/nobody'\nqueue.hold = '0s'\n\
         error_pages = {{ 503 = '{{folder}}/app.html', 404 = '{{folder}}/app.html' }}\n\
         [apps.broken]\nupstream = '{}'\nerror_pages.502 = '{{folder}}/app.html'\n\
         [apps.www]\nstatic = '{{folder}}/www'\nerror_pages.404 = '{{folder}}/app.html'\n\
         [[routes]]\nmatch.path = '/route/starting'\napp = 'starting'\nerror_pages.503 = '{{folder}}/route.html'\n\
         [[routes]]\nmatch.path = '/asked'\napp = 'www'\nforward_auth = 'starting'\nerror_pages.502 = '{{folder}}/route.html'\n\
         [[routes]]\nmatch.path = '/starting'\napp = 'starting'\n\
         [[routes]]\nmatch.path = '/broken'\napp = 'broken'\n\
         [[routes]]\nmatch.path = '/www/*'\napp = 'www'\n\
         [[routes]]\nmatch.path = '/files/*'\nstatic = '{{folder}}/www'\nerror_pages.404 = '{{folder}}/route.html'\n\
         [[routes]]\nmatch.path = '/kept'\nrespond = 'in'\nallow = '10.0.0.0/8'\nerror_pages.403 = '{{folder}}/route.html'\n\
         [[routes]]\nmatch.path = '/limited'\nrespond = 'in'\nlimits = 'none'\n",
        broken.url
    );
    let server = folder.server(backend, &site);
    assert_eq!(Client::of(&server).get("/limited").text(), "in");
    for (target, status, text) in [
        ("/route/starting", 503, "route"),
        ("/starting", 503, "app"),
        // It is the route of the request that counts, and not the app that is asked about it.
        ("/asked", 503, "server"),
        ("/broken", 502, "app"),
        ("/www/x", 404, "app"),
        ("/files/x", 404, "route"),
        ("/kept", 403, "route"),
        ("/limited", 429, "server"),
        ("/elsewhere", 404, "server"),
    ] {
        let answer = Client::of(&server).get(target);
        assert_eq!((answer.status, answer.text().as_str()), (status, text), "{target}");
    }
    // Who asks for JSON gets the first that is.
    let answer = ask(&mut Client::of(&server), "/broken", "Accept: application/json\r\n");
    assert_eq!((answer.status, answer.text().as_str()), (502, "\"server\""));
}

fn a_reload_says_whose_pages_are_others(backend: &str) {
    let folder = Folder::new(&[]);
    for name in ["one", "other"] {
        folder.write(&format!("{name}.html"), name.as_bytes());
    }
    let site = "[apps.gone]\nupstream = 'unix:{folder}/nobody'\nqueue.hold = '0s'\nerror_pages.503 = '{folder}/one.html'\n\
                [[routes]]\nmatch.path = '/route'\napp = 'gone'\nerror_pages.503 = '{folder}/other.html'\n\
                [[routes]]\napp = 'gone'\n";
    let server = folder.server(backend, site);
    let run = server.run().display().to_string();
    let reload = |site: &str| {
        folder.write("site.toml", site.replace("{folder}", &folder.text("")).as_bytes());
        let output = Command::new(PROGRAM).args(["reload", "--wait", "--run-dir", &run]).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let shown = || ["/", "/route"].map(|target| Client::of(&server).get(target).text());
    assert_eq!(shown(), ["one", "other"]);
    folder.write("one.html", b"two");
    let (done, said) = reload(site);
    assert!(done && said.contains("apps.gone.error_pages: as they were -> read anew"), "{said}");
    assert_eq!(shown(), ["two", "other"]);
    let (done, said) = reload(&site.replace("one.html", "other.html"));
    let told = said.lines().find(|line| line.contains("apps.gone.error_pages: { 503 = ")).unwrap_or_default();
    assert!(done && told.contains("one.html\" } -> { 503 = ") && told.ends_with("other.html\" }"), "{said}");
    for (from, place) in [("one.html", ":4:"), ("other.html", ":8:")] {
        let (done, said) = reload(&site.replace(from, "missing.html"));
        assert!(!done && said.contains("missing.html cannot be read") && said.contains(place), "{said}");
        assert_eq!(shown(), ["other", "other"], "what held holds");
    }
}

fn a_slow_disk_holds_up_nobody_else(backend: &str) {
    let bytes = pattern(400_000);
    let folder = Folder::new(&[("big.slow", &bytes), ("small.slow", &bytes[..100]), ("a.txt", b"quick")]);
    let server = folder.served_slowly(backend, &["--helpers", "3"]);
    let mut waiting = [Client::of(&server), Client::of(&server)];
    for (client, target) in waiting.iter_mut().zip(["/big.slow", "/small.slow"]) {
        client.begin(target);
        assert!(client.head().unwrap().starts_with("HTTP/1.1 200"), "{target}");
    }
    for _ in 0..100 {
        assert_eq!(Client::of(&server).get("/a.txt").text(), "quick");
    }
    assert!(waiting.iter_mut().all(|client| !client.has_input()), "the disk has not answered");
    folder.write("gate", b"");
    let [big, small] = &mut waiting;
    assert!(big.take(400_000) == bytes && small.take(100) == bytes[..100]);
    assert_eq!(big.get("/a.txt").text(), "quick");
}

#[test]
fn what_is_wrong_is_told_at_the_start() {
    let folder = Folder::new(&[("a.txt", b"")]);
    folder.write("404.html", b"");
    let site = "[[routes]]\nmatch.path = \"/a\"\nstatic = \"{folder}/missing\"\n\
        [[routes]]\nstatic = { root = \"{folder}/www/a.txt\" }\n";
    folder.write("site.toml", site.replace("{folder}", &folder.text("")).as_bytes());
    let missing = folder.text("missing");
    let page = format!("404={}", folder.text("no.html"));
    for (arguments, code, said) in [
        (
            vec!["check", "-f", &folder.text("site.toml")],
            78,
            vec!["there is no directory", ":3:10", "is no directory", ":5:19"],
        ),
        (
            vec!["run", "-f", &folder.text("site.toml"), "--listen", "127.0.0.1:0"],
            78,
            vec!["there is no directory", ":3:10"],
        ),
        (vec!["check", "--static", &missing], 78, vec!["--static: there is no directory"]),
        (vec!["run", "--static", &missing, "--listen", "127.0.0.1:0"], 78, vec!["there is no directory"]),
        (
            vec!["check", "--error-page", &page],
            78,
            vec!["--error-page: the page", "no.html cannot be read", "No such file"],
        ),
    ] {
        let output = Command::new(PROGRAM).args(&arguments).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {told}");
        assert!(said.iter().all(|words| told.contains(words)), "{arguments:?}: {told}");
    }
}

fn a_reload_brings_other_files_and_pages(backend: &str) {
    let folder = Folder::new(&[("a.txt", b"one")]);
    folder.write("other/a.txt", b"two");
    folder.write("404.html", b"first");
    let site = "[server]\nerror_pages.404 = \"{folder}/404.html\"\n[[routes]]\nstatic = \"{folder}/www\"\n";
    // A server that begins without files has no helpers yet.
    let server = folder.server(backend, "[[routes]]\nrespond = \"nothing\"\n");
    let mut client = Client::of(&server);
    assert_eq!(client.get("/a.txt").text(), "nothing");
    let write = |text: &str| folder.write("site.toml", text.replace("{folder}", &folder.text("")).as_bytes());
    write(site);
    server.signal("HUP");
    until("files are served", || client.get("/a.txt").text() == "one");
    assert_eq!(client.get("/b").text(), "first");
    folder.write("404.html", b"second");
    server.signal("HUP");
    until("the page is read anew", || client.get("/b").text() == "second");
    write(&site.replace("/www", "/missing"));
    server.signal("HUP");
    until("it is refused", || server.has_said("there is no directory"));
    assert_eq!(client.get("/a.txt").text(), "one");
    write(&site.replace("/www", "/other"));
    server.signal("HUP");
    until("other files are served", || client.get("/a.txt").text() == "two");
}
