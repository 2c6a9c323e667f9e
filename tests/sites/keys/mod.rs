//! Every key of the configuration is changed in a running server, and does what its reload class says.
//!
//! The list of keys and of their classes is the schema's, which is made of the table that the file is read by: a key that no
//! part of the test changes fails it. Each key of an app has an app of its own, whose name is the key's: what becomes of that app
//! is that key's effect. The server has no flags, for those would win over the file.
//!
//! - `apps`: the keys of an app that hold at once; - `own`: those of the server, of routes, logs and metrics;
//! - `others`: those that roll, that open and close listeners, and that take another process;
//! - `secure`: those of TLS; `hubs`: those of hubs.
//!
//! Where no effect is demanded beyond the class and what the reload tells, the case says why.

mod apps;
mod hubs;
mod others;
mod own;
mod secure;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::{Site, get};
use crate::support::{Answer, Client, Clogged, PROGRAM, Worker, folder, python};
use crate::upgrades::{Line, path};

/// Waits as [`crate::support::until`] does, and looks less often: the status document of so many apps is work.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    crate::support::until(what, || {
        let holds = condition();
        if !holds {
            std::thread::sleep(std::time::Duration::from_millis(15));
        }
        holds
    });
}

/// Where a long time stands, nobody waits for it; where a short one does, somebody does.
const LONG: &str = "'1h'";
const SHORT: &str = "'50ms'";

/// Key and value, as in `apps.web.workers` and `2`; no value takes the key out.
type Change<'a> = (&'a str, &'a str);

/// The configuration file, key by key: `listen[1].mode` is the key `mode` of the second table `[[listen]]`.
#[derive(Clone, Default)]
struct Text {
    root: BTreeMap<String, String>,
    lists: BTreeMap<(String, usize), BTreeMap<String, String>>,
}

impl Text {
    fn set(&mut self, (key, value): Change<'_>) {
        let (table, key) = match key.split_once("].") {
            None => (&mut self.root, key),
            Some((list, key)) => {
                let (list, index) = list.split_once('[').unwrap();
                (self.lists.entry((list.to_owned(), index.parse().unwrap())).or_default(), key)
            }
        };
        match value {
            "" => table.remove(key),
            _ => table.insert(key.to_owned(), value.to_owned()),
        };
    }

    fn whole(&self) -> String {
        let mut text = String::new();
        let lines = |text: &mut String, table: &BTreeMap<String, String>| {
            table.iter().for_each(|(key, value)| writeln!(text, "{key} = {value}").unwrap());
        };
        lines(&mut text, &self.root);
        for ((list, _), table) in &self.lists {
            writeln!(text, "[[{list}]]").unwrap();
            lines(&mut text, table);
        }
        text
    }
}

/// A key as the schema has it, without the name of an app and the number of a table.
fn pattern(key: &str) -> String {
    let mut segments: Vec<String> = key.split('.').map(str::to_owned).collect();
    if ["apps", "limits", "hub"].contains(&segments[0].as_str()) {
        segments[1] = "*".to_owned();
    }
    if let Some((list, _)) = segments[0].split_once('[') {
        segments[0] = format!("{list}[]");
    }
    segments.join(".")
}

/// The keys and their classes, as `config schema` prints them.
fn classes() -> BTreeMap<String, String> {
    fn walk(path: &str, schema: &Value, found: &mut BTreeMap<String, String>) {
        let options = schema["anyOf"].as_array().map_or(&[] as &[Value], Vec::as_slice);
        // A value alone may stand for a table: then the key is in that table.
        let table = options.iter().find(|option| option["properties"].is_object() && option["description"].is_string());
        if let (Some(class), None) = (schema["x-reload"].as_str(), table) {
            found.insert(path.to_owned(), class.to_owned());
            return;
        }
        let table = table.unwrap_or(schema);
        if table["items"].is_object() {
            return walk(&format!("{path}[]"), &table["items"], found);
        }
        let inside = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        for (name, schema) in table["properties"].as_object().into_iter().flatten() {
            walk(&inside(name), schema, found);
        }
        if table["additionalProperties"].is_object() {
            walk(&inside("*"), &table["additionalProperties"], found);
        }
    }
    let output = Command::new(PROGRAM).args(["config", "schema"]).output().unwrap();
    let mut found = BTreeMap::new();
    walk("", &serde_json::from_slice(&output.stdout).unwrap(), &mut found);
    found
}

/// What is behind all apps without workers: it does what the path of a request says.
fn upstream(released: Arc<AtomicBool>) -> Worker {
    Worker::new(move |incoming| {
        while let Some((head, _)) = incoming.request() {
            let target = head.split(' ').nth(1).unwrap_or_default();
            if head.to_lowercase().contains("upgrade: websocket") {
                incoming.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
                while let Some(bytes) = incoming.any() {
                    incoming.send(bytes);
                }
                return;
            }
            match target {
                "/hang" => return incoming.drain(),
                "/stream" | "/slow" => {
                    let kind = if target == "/stream" { "text/event-stream" } else { "text/plain" };
                    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n");
                    incoming.send(head);
                    while incoming.send("8\r\ndata: a\n\r\n") {
                        std::thread::sleep(std::time::Duration::from_millis(20));
                    }
                    return;
                }
                "/large" => {
                    incoming.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 256 << 20));
                    while incoming.send([0; 65536]) {}
                    return;
                }
                "/held" => {
                    while !released.load(Ordering::Relaxed) {
                        std::thread::sleep(std::time::Duration::from_millis(5));
                    }
                }
                "/503" => {
                    incoming.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
                    continue;
                }
                "/page" => {
                    let kind = "Content-Type: text/html";
                    incoming.send(format!("HTTP/1.1 200 OK\r\n{kind}\r\nContent-Length: 600\r\n\r\n{:600}", "page"));
                    continue;
                }
                "/accel" => {
                    let named = "X-Accel-Redirect: /protected/a.txt";
                    incoming.send(format!("HTTP/1.1 200 OK\r\n{named}\r\nContent-Length: 0\r\n\r\n"));
                    continue;
                }
                "/flip" if !released.load(Ordering::Relaxed) => {
                    incoming.send("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n");
                    continue;
                }
                _ => {}
            }
            let text = format!("connection {}\r\n{head}", incoming.index);
            incoming.send(format!("HTTP/1.1 200 OK\r\nX-Own: yes\r\nContent-Length: {}\r\n\r\n{text}", text.len()));
        }
    })
}

/// What no reload may close: an event stream, a WebSocket, a connection between two requests, and a request under way.
struct Kept {
    stream: Client,
    socket: Client,
    idle: Client,
    held: Client,
}

impl Kept {
    fn open(address: SocketAddr) -> Kept {
        let begin = |path: &str, more: &str| {
            let mut client = Client::to(address);
            client.send(format!("GET {path} HTTP/1.1\r\nHost: kept\r\n{more}\r\n"));
            client
        };
        let mut stream = begin("/stream", "");
        assert!(stream.head().unwrap().starts_with("HTTP/1.1 200"));
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        let mut socket = begin("/socket", upgrade);
        assert!(socket.head().unwrap().starts_with("HTTP/1.1 101"));
        Kept { stream, socket, idle: Client::to(address), held: begin("/held", "") }
    }

    /// All are there, and go on.
    fn check(&mut self) {
        for _ in 0..3 {
            while !self.stream.line().expect("the stream has ended").contains("data") {}
        }
        self.socket.send("still here");
        assert_eq!(self.socket.take(10), b"still here");
        assert_eq!(self.idle.ask("GET / HTTP/1.1\r\nHost: kept\r\n\r\n").status, 200);
    }
}

/// The server, its file, and what has been changed.
struct Rig {
    site: Site,
    text: Text,
    classes: BTreeMap<String, String>,
    changed: BTreeSet<String>,
    /// Two upstreams: what they have been asked is recorded.
    upstreams: [Worker; 2],
    released: Arc<AtomicBool>,
    kept: Option<Kept>,
    /// An upstream that can be made not to accept.
    full: Mutex<Clogged>,
}

impl Rig {
    fn start(backend: &str) -> Rig {
        let released = Arc::new(AtomicBool::new(false));
        let upstreams = [upstream(released.clone()), upstream(released.clone())];
        let folder = folder();
        std::fs::write(path(&folder, "worker.py"), include_str!("worker.py")).unwrap();
        for watched in ["none", "by", "watch"] {
            std::fs::create_dir(folder.path().join(watched)).unwrap();
        }
        let mut rig_text = Text::default();
        own::begin(&mut rig_text, backend);
        apps::begin(&mut rig_text);
        others::begin(&mut rig_text);
        let file = path(&folder, "site.toml");
        std::fs::write(&file, filled(&rig_text, folder.path().to_str().unwrap(), &upstreams)).unwrap();
        // The flags of the rig would win over the file; statistics go to stdout.
        let mut command = Command::new("sh");
        let alone = "while [ \"$1\" != -f ]; do shift; done; exec \"$0\" -f \"$2\" > \"${2%/*}/stdout\"";
        command.args(["-c", alone, PROGRAM]);
        for (number, name) in (0..10).flat_map(|number| [(number, "a"), (number, "b")]) {
            let target = upstreams[usize::from(name == "b")].url.trim_start_matches("unix:");
            std::os::unix::fs::symlink(target, folder.path().join(format!("{name}{number}.sock"))).unwrap();
        }
        let full = Mutex::new(Clogged::new(&folder.path().join("full")));
        let line = Line::start_in(folder, command, backend, &["-f", &file]);
        let site = Site { line, file };
        until("all processes are ready", || {
            let apps = site.line.status()["apps"].as_array().unwrap().clone();
            let mut workers = apps.iter().flat_map(|app| app["workers"].as_array().unwrap());
            workers.all(|worker| worker["state"] == "running" || worker["pid"].is_null())
        });
        let kept = Some(Kept::open(site.line.server.address));
        let (classes, changed) = (classes(), BTreeSet::new());
        Rig { site, text: rig_text, classes, changed, upstreams, released, kept, full }
    }

    fn folder(&self) -> &str {
        self.site.line.folder.path().to_str().unwrap()
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.site.line.folder.path().join(name)
    }

    fn class(&self, key: &str) -> &str {
        self.classes.get(&pattern(key)).unwrap_or_else(|| panic!("{key} is not in the schema"))
    }

    /// The processes of each app.
    fn workers(&self) -> BTreeMap<String, BTreeSet<u64>> {
        let status = self.site.line.status();
        let pids = |app: &Value| {
            let workers = app["workers"].as_array().unwrap();
            workers.iter().filter_map(|worker| worker["pid"].as_u64()).collect()
        };
        let apps = status["apps"].as_array().unwrap().iter();
        apps.map(|app| (app["name"].as_str().unwrap().to_owned(), pids(app))).collect()
    }

    /// Changes these keys by one reload, and demands what their classes promise; what it says.
    fn change(&mut self, changes: &[Change<'_>]) -> String {
        let before = self.workers();
        for change in changes {
            self.text.set(*change);
            assert!(self.classes.contains_key(&pattern(change.0)), "{} is not in the schema", change.0);
            self.changed.insert(pattern(change.0));
        }
        self.write();
        let said = self.site.word(&["reload", "--wait"]);
        for (key, _) in changes {
            self.demand_told(key, &said);
        }
        let after = self.workers();
        for (app, pids) in before.iter().filter(|(_, pids)| !pids.is_empty()) {
            let of_app = |class: &str| {
                let mut keys = changes.iter().filter(|(key, _)| key.starts_with(&format!("apps.{app}.")));
                keys.any(|(key, _)| self.class(key) == class)
            };
            match of_app("roll") {
                true => assert!(after[app].is_disjoint(pids) && after[app].len() == pids.len(), "{app}: {said}"),
                // Those that load changed code do so with every reload, and one may live for a second only.
                false if ["recycle-reloads", "recycle-lifetime"].contains(&app.as_str()) => {}
                false if app.starts_with("hot_reload-") => {}
                false => assert!(pids.is_subset(&after[app]), "{app}: a worker was replaced"),
            }
        }
        self.kept.iter_mut().for_each(Kept::check);
        said
    }

    /// A reload names what it changes, and what a changed key takes.
    fn demand_told(&self, key: &str, said: &str) {
        let line = said.lines().map(str::trim).find(|line| line.starts_with(&format!("{key}: ")));
        let class = self.class(key);
        match (class, pattern(key).as_str()) {
            // Listeners and routes are named as a whole: their own tests look for the words. So do those of what listeners show.
            (_, pattern) if pattern.starts_with("listen[]") || pattern.starts_with("routes[]") => {}
            ("live", pattern) if pattern.starts_with("tls.") => {}
            (_, pattern) if pattern.starts_with("limits.") => assert!(said.contains("limits: changed"), "{said}"),
            (_, pattern) if pattern.starts_with("hub.") => assert!(said.contains("hubs: changed"), "{said}"),
            ("live", "apps.*.upstream") => assert!(said.contains("app upstream: replaced"), "{said}"),
            ("live", _) => assert!(line.is_some_and(|line| !line.ends_with(')')), "{key}: {said}"),
            ("roll", _) => assert!(line.is_some_and(|line| line.contains("workers are replaced")), "{key}: {said}"),
            ("restart", _) => {
                let left = "(takes another process: left as it was until `production_server upgrade`)";
                assert!(line.is_some_and(|line| line.ends_with(left)), "{key}: {said}");
            }
            other => panic!("{key}: {other:?}"),
        }
    }

    fn write(&self) {
        self.site.write(&filled(&self.text, self.folder(), &self.upstreams));
    }

    fn client(&self) -> Client {
        self.site.client()
    }

    /// What an app answers.
    fn get(&self, app: &str, path: &str) -> (u16, String) {
        // What is an app to the server may be upstreams of a route, which is asked for by the name of the last socket.
        get(&mut self.client(), app.rsplit('/').next().unwrap_or(app), path)
    }

    /// The same of a request with more lines in its head.
    fn ask(&self, app: &str, line: &str, more: &str) -> Answer {
        self.client().ask(&format!("{line} HTTP/1.1\r\nHost: {app}\r\n{more}\r\n"))
    }

    /// The head of an answer to a client that takes gzip and has these fields.
    fn coded(&self, app: &str, path: &str, more: &str) -> String {
        let mut client = self.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {app}\r\nAccept-Encoding: gzip\r\n{more}\r\n"));
        client.head().unwrap()
    }

    /// A request to an app that is under way.
    fn begin(&self, app: &str, path: &str) -> Client {
        let mut client = self.client();
        client.send(format!("GET {path} HTTP/1.1\r\nHost: {app}\r\n\r\n"));
        client
    }

    fn pids(&self, app: &str) -> BTreeSet<u64> {
        self.workers()[app].clone()
    }

    /// How many lines of the event log hold all of that.
    fn told(&self, words: &[&str]) -> usize {
        let lines = self.site.line.server.lines();
        lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    /// Tells a worker something by a file, or takes it back.
    fn tell(&self, name: &str, there: bool) {
        self.site.tell(name, there);
    }

    fn kill(&self, app: &str) {
        self.site.word(&["signal", app, "KILL"]);
    }
}

/// The words of the text that only the rig knows.
fn filled(text: &Text, folder: &str, upstreams: &[Worker; 2]) -> String {
    let both = format!("['{}', '{}']", upstreams[0].url, upstreams[1].url);
    let words = format!("'{}', '-I', '-S', '{folder}/worker.py'", python());
    let text = text.whole().replace("BOTH", &both).replace("FIRST", &format!("'{}'", upstreams[0].url));
    text.replace("SECOND", &format!("'{}'", upstreams[1].url)).replace("WORKER", &words).replace("FOLDER", folder)
}

/// On one backend: what is changed here is not its own.
#[test]
fn every_key_has_the_effect_of_its_class() {
    let backend = if cfg!(backend_readiness) { "epoll" } else { "io_uring" };
    let mut rig = Rig::start(backend);
    apps::live(&mut rig);
    own::live(&mut rig);
    hubs::live(&mut rig);
    others::rolls(&mut rig);
    others::listeners(&mut rig);
    secure::live(&mut rig);
    own::logs(&mut rig);
    others::restarts(&mut rig);
    let all: BTreeSet<String> = rig.classes.keys().cloned().collect();
    let left: Vec<&String> =
        all.difference(&rig.changed).filter(|key| !own::AT_THE_END.contains(&key.as_str())).collect();
    assert!(left.is_empty(), "keys that nobody has changed here: {left:?}");
    own::end(rig);
    own::ends_by_itself(backend);
}
