//! Modules of the built-in worker, compiled by the C compiler that any machine with Rust has, in a worker process.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::support::{DEADLINE, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_production_server");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A folder with a module in it, and what probes write.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Compiles the probe with that name and these flags, somewhere aside.
    pub fn probe(&self, name: &str, flags: &[&str]) -> PathBuf {
        let text = |key: &str, value: &Path| format!("-D{key}=\"{}\"", value.display());
        let flags = [
            vec![
                text("NAME", Path::new(name)),
                text("JOURNAL", &self.path("journal")),
                text("GATE", &self.path("gate")),
            ],
            flags.iter().map(|&flag| flag.to_owned()).collect(),
        ]
        .concat();
        self.compile("tests/module/probe.c", &format!("{name}.so"), &flags)
    }

    fn compile(&self, source: &str, name: &str, flags: &[String]) -> PathBuf {
        let out = self.path(name);
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let mut command = Command::new(compiler);
        command.args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]).args(flags);
        let output = command.arg("-o").arg(&out).arg(Path::new(ROOT).join(source)).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        out
    }

    /// Writes over the module's file, in place: the same file, with other bytes.
    pub fn overwrite(&self, with: &Path) {
        std::fs::write(self.path("handler.so"), std::fs::read(with).unwrap()).unwrap();
    }

    /// Puts another file in the place of the module's.
    pub fn replace(&self, with: &Path) {
        std::fs::copy(with, self.path("handler.new")).unwrap();
        std::fs::rename(self.path("handler.new"), self.path("handler.so")).unwrap();
    }

    fn journal(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("journal")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

/// A worker with the folder's module.
struct Worker {
    socket: PathBuf,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(folder: &Folder) -> Worker {
        let socket = folder.path("worker.sock");
        let mut command = Command::new(PROGRAM);
        command.arg("worker").arg("--socket").arg(&socket).arg("--module").arg(folder.path("handler.so"));
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                kept.lock().unwrap().push(line);
            }
        });
        let worker = Worker { socket, child, lines, reader: Some(reader) };
        until("the worker listens", || UnixStream::connect(&worker.socket).is_ok());
        worker
    }

    fn send(&self, request: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// Sends bytes, and reads to the connection's end.
    fn talk(&self, request: &str) -> String {
        whole(self.send(request))
    }

    fn get(&self, path: &str) -> String {
        self.talk(&format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"))
    }

    fn name(&self) -> String {
        body(&self.get("/name")).to_owned()
    }

    /// So many requests were answered, and each answer is released once: behind its last byte, which a client may be faster
    /// to see.
    fn expect_released(&self, mut handled: usize) {
        until("all answers are released", || {
            let counts = self.get("/counts");
            let (answered, released) = body(&counts).split_once(' ').unwrap();
            assert_eq!(answered, handled.to_string());
            handled += 1;
            answered == released
        });
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    fn count(&self, text: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if let Some(reader) = self.reader.take() {
            reader.join().ok();
        }
        if std::thread::panicking() {
            eprintln!("the worker's stderr: {:#?}", self.lines.lock().unwrap());
        }
    }
}

fn whole(mut stream: UnixStream) -> String {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}")).1
}

#[test]
fn a_module_is_given_the_whole_request_and_its_answer_is_framed() {
    let folder = Folder::new();
    folder.replace(&folder.probe("v1", &[]));
    let worker = Worker::start(&folder);
    let answer = worker.talk(
        "PUT /show?a=1&b HTTP/1.1\r\nHost: h\r\nX-Empty:\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
    );
    let seen =
        "PUT\n/show?a=1&b\n/show\na=1&b\n11\nHost=h\nX-Empty=\nTransfer-Encoding=chunked\nConnection=close\n\nabcde";
    assert_eq!(body(&answer), seen);
    let answer = worker.talk("GET http://b?x HTTP/1.0\r\n\r\n");
    assert_eq!(answer, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nv1");
    // One connection: HEAD, no content, the module's own framing, and the next request behind each.
    let answer = worker.talk(
        "HEAD /large HTTP/1.1\r\nHost: a\r\n\r\nGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n\
         GET /framing HTTP/1.1\r\nHost: a\r\n\r\nGET /name HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    );
    let expected = "HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\nHTTP/1.1 204 \r\n\r\n\
                    HTTP/1.1 200 OK\r\nX-Kept: a\tb\r\nContent-Length: 6\r\n\r\nframed\
                    HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nv1";
    assert_eq!(answer, expected);
    assert_eq!(body(&worker.get("/large")).len(), 1 << 20);
    worker.expect_released(7);
}

#[test]
fn wrong_answers_of_a_module_become_500_and_the_worker_goes_on() {
    let folder = Folder::new();
    folder.replace(&folder.probe("v1", &[]));
    let worker = Worker::start(&folder);
    let wrong = [
        "/refuse",
        "/bad-status",
        "/bad-name",
        "/no-name",
        "/bad-value",
        "/nul-value",
        "/many",
        "/wide",
        "/null-fields",
        "/null-body",
        "/endless-body",
    ];
    for path in wrong {
        let answer = worker.get(path);
        let expected = "HTTP/1.1 500 \r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 29\r\n\
                        Connection: close\r\n\r\nthe module's answer is wrong\n";
        assert_eq!(answer, expected, "{path}");
    }
    worker.expect_released(wrong.len());
    assert_eq!(worker.name(), "v1");
    until("it is reported", || worker.count("the module's answer is wrong: ps_handle returned 7") == 1);
    assert_eq!(worker.count("the module's answer is wrong"), 1, "once");
}

#[test]
fn a_changed_module_is_loaded_and_a_broken_one_is_not() {
    let folder = Folder::new();
    folder.replace(&folder.probe("v1", &[]));
    let worker = Worker::start(&folder);
    assert_eq!(worker.name(), "v1");
    // In place, which would crash a process that has mapped the file; requests alone make it look.
    folder.overwrite(&folder.probe("v2", &[]));
    until("a request finds the change", || worker.name() == "v2");
    // By another file, and a signal alone.
    folder.replace(&folder.probe("v3", &[]));
    worker.signal("HUP");
    until("the signal finds the change", || worker.count("is loaded again (reload 2)") == 1);
    assert_eq!(worker.name(), "v3");
    let text = folder.path("text");
    std::fs::write(&text, "not a module").unwrap();
    let cut = folder.path("cut.so");
    let good = std::fs::read(folder.probe("v4", &[])).unwrap();
    std::fs::write(&cut, &good[..good.len() / 2]).unwrap();
    for (broken, said) in [
        (text, "it is no shared object"),
        (cut, "it is cut off"),
        (folder.probe("abi", &["-DABI=7"]), "version 7 of the interface, and this server has version 1"),
        (folder.probe("mute", &["-DNO_HANDLE"]), "it has no function ps_handle"),
        (folder.probe("open", &["-DUNDEFINED"]), "undefined symbol: a_function_that_nobody_has"),
        (folder.probe("sick", &["-DSTART_FAILS"]), "ps_start returned 3"),
        (folder.path("none"), "No such file"),
    ] {
        if broken.exists() {
            folder.replace(&broken);
        } else {
            std::fs::remove_file(folder.path("handler.so")).unwrap();
        }
        worker.signal("HUP");
        until(said, || worker.name() == "v3" && worker.count(said) == 1);
        worker.signal("HUP");
        assert_eq!(worker.name(), "v3");
    }
    folder.replace(&folder.path("v4.so"));
    until("a good one is taken again", || worker.name() == "v4");
    assert_eq!(worker.count("cannot load"), 7, "each is told once");
    assert_eq!(folder.journal(), ["start v1", "start v2", "stop v1", "start v3", "stop v2", "start v4", "stop v3"]);
}

#[test]
fn a_request_finishes_with_the_module_that_it_began_with() {
    let folder = Folder::new();
    folder.replace(&folder.probe("v1", &[]));
    let worker = Worker::start(&folder);
    let waiting = worker.send("GET /wait HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    until("it is in the module", || folder.journal().contains(&"wait v1".to_owned()));
    folder.overwrite(&folder.probe("v2", &[]));
    until("others get the new one", || worker.name() == "v2");
    assert_eq!(folder.journal(), ["start v1", "wait v1", "start v2"], "the old one is not ended");
    std::fs::write(folder.path("gate"), "").unwrap();
    assert_eq!(body(&whole(waiting)), "v1");
    until("the last request ends it", || folder.journal().last().unwrap() == "stop v1");
    assert_eq!(worker.name(), "v2");
}

#[test]
fn the_end_of_the_worker_ends_the_module_after_its_last_request() {
    let folder = Folder::new();
    folder.replace(&folder.probe("v1", &[]));
    let mut worker = Worker::start(&folder);
    let waiting = worker.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n");
    until("it is in the module", || folder.journal().contains(&"wait v1".to_owned()));
    worker.signal("TERM");
    until("it does not listen any more", || UnixStream::connect(&worker.socket).is_err());
    assert_eq!(folder.journal(), ["start v1", "wait v1"]);
    std::fs::write(folder.path("gate"), "").unwrap();
    assert_eq!(body(&whole(waiting)), "v1");
    assert!(worker.child.wait().unwrap().success());
    assert_eq!(folder.journal(), ["start v1", "wait v1", "stop v1"]);
}

#[test]
fn a_module_that_cannot_be_loaded_at_the_start_is_a_mistake_in_the_configuration() {
    let folder = Folder::new();
    let sick = folder.probe("sick", &["-DSTART_FAILS"]);
    for (module, said) in [(sick, "ps_start returned 3"), (folder.path("none.so"), "No such file")] {
        let mut command = Command::new(PROGRAM);
        command.arg("worker").arg("--socket").arg(folder.path("worker.sock")).env("MODULE", &module);
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(stderr.contains("cannot load the module") && stderr.contains(said), "{stderr}");
        assert!(!folder.path("worker.sock").exists());
    }
}

#[test]
fn without_a_module_the_signals_for_a_reload_are_nothing() {
    let folder = Folder::new();
    let socket = folder.path("worker.sock");
    let mut command = Command::new(PROGRAM);
    command.arg("worker").arg("--socket").arg(&socket).env_remove("MODULE").stderr(Stdio::null());
    let worker =
        Worker { socket: socket.clone(), child: command.spawn().unwrap(), lines: Arc::default(), reader: None };
    until("the worker listens", || UnixStream::connect(&socket).is_ok());
    for signal in ["HUP", "USR1", "USR2"] {
        worker.signal(signal);
    }
    assert_eq!(body(&worker.get("/ping")), "pong");
}

#[test]
fn the_example_in_c_serves_and_changes_its_greeting() {
    let folder = Folder::new();
    let greeting = |text: &str| vec![format!("-DGREETING=\"{text}\"")];
    folder.replace(&folder.compile("examples/module/handler.c", "1.so", &greeting("first")));
    let worker = Worker::start(&folder);
    let answer = worker.get("/");
    assert!(answer.contains("\r\nContent-Type: text/plain; charset=utf-8\r\n"), "{answer}");
    assert_eq!(body(&answer), "first (1)\n");
    assert!(worker.get("/none").starts_with("HTTP/1.1 404 "));
    folder.overwrite(&folder.compile("examples/module/handler.c", "2.so", &greeting("second")));
    until("the new greeting", || body(&worker.get("/")).starts_with("second "));
    echoes(&worker);
}

#[test]
fn the_example_in_rust_serves() {
    let folder = Folder::new();
    let compiler = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let mut command = Command::new(compiler);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "-C", "panic=abort", "-D", "warnings", "-o"]);
    command.arg(folder.path("handler.so")).arg(Path::new(ROOT).join("examples/module-rust/src/lib.rs"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let worker = Worker::start(&folder);
    assert_eq!(body(&worker.get("/")), "Hello from Rust (1)\n");
    assert_eq!(body(&worker.get("/none")), "nothing to GET at /none\n");
    echoes(&worker);
}

/// Bodies of several sizes come back.
fn echoes(worker: &Worker) {
    for length in [0_usize, 1, 16 * 1024, 16 * 1024 + 1, 3 << 20] {
        let text = "0123456789abcdef".repeat(length.div_ceil(16));
        let text = &text[..length];
        let head = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        let answer = worker.talk(&format!("{head}{text}"));
        assert!(body(&answer) == text, "{length}");
    }
}
