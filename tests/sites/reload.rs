//! The configuration read anew while the server runs: what changes, what does not, and that nobody notices.

use std::hash::{BuildHasher, Hasher};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;
use crate::support::{DEADLINE, Worker, exposition};

on_every_backend! {
    a_wrong_configuration_changes_nothing,
    listeners_come_and_go,
    apps_come_change_and_go,
    an_app_may_be_replaced_by_another,
    what_is_told_of_an_app_goes_on_when_it_comes_again,
    an_upstream_that_is_added_leaves_what_is_counted_of_the_others,
    an_app_that_comes_or_goes_leaves_the_server_ready,
    what_stands_in_front_of_a_listener_comes_with_it,
    the_admin_listener_stays_and_keeps_its_address,
    what_needs_another_process_is_named_and_left,
    a_file_that_is_empty_or_gone_changes_nothing,
    what_a_roll_that_was_given_up_was_to_bring_comes_with_the_next_reload,
    more_workers_than_there_is_room_for_are_refused,
    each_upstream_takes_the_room_of_one_worker,
    what_is_told_of_an_app_is_its_own_before_another_comes,
    a_site_without_an_app_tells_about_itself,
    nobody_notices_many_reloads,
}

const HERE: &str = "[[listen]]\naddress = '127.0.0.1:0'\n";
const HELLO: &str = "[apps.web]\nrespond = 'hello'\n";

/// What `reload` says, and its exit code.
fn reload(site: &Site, flags: &[&str]) -> (Option<i32>, String) {
    site.line.word(&[&["reload"], flags].concat())
}

/// A reload that succeeds; what it says.
fn reloaded(site: &Site, text: &str) -> String {
    site.write(text);
    let (code, said) = reload(site, &["--wait"]);
    assert_eq!(code, Some(0), "{said}\n{text}");
    said
}

fn a_wrong_configuration_changes_nothing(backend: &str) {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let site = listening(backend, &[HERE, HELLO].concat());
    let before = site.line.status();
    for (text, why) in [
        ("[apps.web]\nrespnd = 'other'\n".to_owned(), "did you mean `respond`?"),
        ("[apps.web]\nrespond = 'other'\n[apps.more]\n".to_owned(), "nothing says what goes to it"),
        ("[apps.web]\ncommand = ['no-such-program-at-all']\n".to_owned(), "the command cannot be run"),
        (
            "[apps.web]\nrespond = 'other'\n[apps.ghost]\nrespond = 'x'\n[[routes]]\nmatch.path = '/ghost'\napp = 'ghost'\n\
             [[routes]]\napp = 'web'\n[log]\nevents = 'FOLDER/none/access.log'\n"
                .to_owned(),
            "cannot open the log",
        ),
        (format!("{HERE}[[listen]]\naddress = '127.0.0.1:{port}'\n[apps.web]\nrespond = 'other'\n"), "in use"),
        (format!("{HERE}[[listen]]\naddress = 'unix:FOLDER/none/s'\n[apps.web]\nrespond = 'other'\n"), "none/s"),
        (
            format!("{HERE}[[listen]]\naddress = 'systemd:web'\n[apps.web]\nrespond = 'other'\n"),
            "when the server starts",
        ),
    ] {
        site.write(&if text.contains(HERE) { text.clone() } else { [HERE, &text].concat() });
        let (code, said) = reload(&site, &[]);
        assert_eq!(code, Some(78), "{text}: {said}");
        assert!(said.contains(why), "{text}: {said}");
        let status = site.line.status();
        assert_eq!(status["reload"]["state"], "failed");
        assert!(status["reload"]["reason"].as_str().unwrap().contains(why), "{status}");
        assert!(site.word(&["status"]).contains("could not be reloaded"));
        let holds = ["listen", "pid", "loops"].map(|name| status[name] == before[name]);
        assert_eq!(holds, [true; 3], "{status}");
        assert_eq!(site.get("a.example", "/"), (200, "hello".to_owned()), "{text}");
    }
    until("it is told", || site.line.server.has_said("cannot be reloaded; nothing has changed"));
    let metrics = site.client().ask("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").text();
    assert!(metrics.contains("app=\"web\"") && !metrics.contains("ghost"), "{metrics}");
    // By the signal as by the word.
    site.write(&[HERE, "[apps.web]\nrespond = 'by signal'\n"].concat());
    site.line.server.signal("HUP");
    until("the signal reloads", || site.get("a.example", "/").1 == "by signal");
    let status = site.line.status();
    assert_eq!(status["reload"]["state"], "done");
    assert_eq!(status["reload"]["changes"], serde_json::json!(["apps.web.respond: 'hello' -> 'by signal'"]));
    until("it is told", || site.line.server.has_said("apps.web.respond: 'hello' -> 'by signal'"));
    site.line.stop();
}

/// A server without the rig's own `--listen`, which would win over the file's.
fn listening(backend: &str, text: &str) -> Site {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "exec \"$0\" $(echo \"$@\" | sed -e 's/--listen 127.0.0.1:0//' -e 's/--loops 1//' -e 's/--no-access-log//')",
        PROGRAM,
    ]);
    Site::start_as(command, backend, text)
}

/// Ports that nobody listens on now, from below the range of which the system takes those of outgoing connections and of the
/// other tests' listeners (ip(7), ip_local_port_range): they stay free until the server opens them.
pub fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let mut random = std::collections::hash_map::RandomState::new().build_hasher();
    let mut free = || {
        loop {
            random.write_u8(0);
            let port = 10_240 + u16::try_from(random.finish() % 20_000).unwrap();
            if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
                return listener;
            }
        }
    };
    let held = std::array::from_fn::<_, COUNT, _>(|_| free());
    held.map(|listener| listener.local_addr().unwrap().port())
}

fn listen(addresses: &[String]) -> String {
    addresses.iter().map(|address| format!("[[listen]]\naddress = '{address}'\n")).collect()
}

fn listeners_come_and_go(backend: &str) {
    let first = "127.0.0.1:0".to_owned();
    let text = |more: &[String]| {
        let all: Vec<String> = [std::slice::from_ref(&first), more].concat();
        format!("[server]\nloops = 2\n{}{HELLO}", listen(&all))
    };
    let site = listening(backend, &text(&[]));
    let mut kept = site.client();
    assert_eq!(kept.get("/").text(), "hello");
    let [port] = free_ports();
    let (tcp, unix) = (format!("127.0.0.1:{port}"), "unix:FOLDER/site.sock".to_owned());
    let said = reloaded(&site, &text(&[tcp.clone(), unix.clone()]));
    assert!(said.contains(&format!("listener {tcp}: opened")), "{said}");
    let address: SocketAddr = tcp.parse().unwrap();
    let mut there = Client::to(address);
    assert_eq!(there.get("/").text(), "hello");
    let path = path(&site.line.folder, "site.sock");
    let mut local = UnixStream::connect(&path).unwrap();
    local.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(site.line.status()["listen"].as_array().unwrap().len(), 3);
    // Others may connect from now on.
    let restricted = format!(
        "{}[[listen]]\naddress = '{unix}'\nmode = '0600'\n{HELLO}",
        text(std::slice::from_ref(&tcp)).replace(HELLO, "")
    );
    reloaded(&site, &restricted);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    // They go: nobody new gets in, and whoever is there stays.
    let said = reloaded(&site, &text(&[]));
    assert!(said.contains(&format!("listener {tcp}: closed")), "{said}");
    assert!(!Path::new(&path).exists());
    until("nobody listens there", || TcpStream::connect(address).is_err());
    assert_eq!(there.get("/").text(), "hello");
    assert_eq!(kept.get("/").text(), "hello");
    local.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    local.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
    // The port is free for others, and comes back; a wildcard beside an address of the same port is no other program.
    drop(TcpListener::bind(address).unwrap());
    reloaded(&site, &text(std::slice::from_ref(&tcp)));
    assert_eq!(Client::to(address).get("/").text(), "hello");
    let everywhere = format!("0.0.0.0:{port}");
    reloaded(&site, &text(&[everywhere]));
    assert_eq!(Client::to(address).get("/").text(), "hello");
    // And what was opened by a reload is handed over as all else is.
    site.line.upgraded();
    assert_eq!(Client::to(address).get("/").text(), "hello");
    drop((kept, there));
    site.line.stop();
}

/// What it is asked for may take as long as a machine that is busy needs.
const WEB: &str = "[apps.web]\ncommand = [PYTHON, 'web', 'FOLDER']\nworkers = 1\ntimeouts = { read = '30s' }\n";

fn apps_come_change_and_go(backend: &str) {
    let web = WEB;
    let api = |name: &str, workers: u32| {
        format!(
            "[apps.api]\ncommand = [PYTHON, '{name}', 'FOLDER']\nworkers = {workers}\nrestart = {{ drain = '20s' }}\n"
        )
    };
    let route = "[[routes]]\nmatch = { host = 'api.example' }\napp = 'api'\n";
    let rest = "[[routes]]\napp = 'web'\n";
    let site = Site::start(backend, web);
    site.until_ready();
    let pids = site.pids("web");
    // It comes, and its first requests wait for it.
    let said = reloaded(&site, &[route, rest, web, &api("api", 1)].concat());
    assert_eq!(site.app("api")["workers_ready"], 1, "it was waited for");
    assert!(said.contains("app api: added") && said.contains("routes: changed"), "{said}");
    assert_eq!(site.get("api.example", "/x"), (200, "api /x".to_owned()));
    assert_eq!(site.pids("web"), pids);
    // It goes while it is busy, and comes again: the first worker of both is number 1 of generation 1.
    let mut first = site.client();
    first.send("GET /block HTTP/1.1\r\nHost: api.example\r\n\r\n");
    until("it is busy", || site.app("api")["workers_busy"] == 1);
    reloaded(&site, web);
    reloaded(&site, &[route, rest, web, &api("api", 1)].concat());
    assert_eq!(site.get("api.example", "/x"), (200, "api /x".to_owned()));
    site.tell("api.go", true);
    assert_eq!(first.answer().text(), "api /block");
    until("the first one has gone", || site.line.status()["apps"].as_array().unwrap().len() == 2);

    // More workers come beside those that it has; a changed command rolls.
    let first = site.pids("api");
    reloaded(&site, &[route, rest, web, &api("api", 2)].concat());
    until("there are two", || site.app("api")["workers_ready"] == 2);
    assert!(site.pids("api").contains(&first[0]));
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    // A new worker is on trial until it has answered.
    let client = ask(site.line.server.address, "api.example", "/ping", true, true, &stop, &asked);
    let said = reloaded(&site, &[route, rest, web, &api("newer", 2)].concat());
    assert!(said.contains("rolling restart") && said.contains("2 of 2 workers are new"), "{said}");
    assert_eq!(site.get("api.example", "/x"), (200, "newer /x".to_owned()));
    // What cannot be started stays away: the old ones serve on.
    site.tell("broken.crash", true);
    site.write(&[route, rest, web, &api("broken", 2)].concat());
    let (code, said) = reload(&site, &["--wait"]);
    assert!(code == Some(75) && said.contains("aborted"), "{code:?} {said}");
    assert_eq!(site.get("api.example", "/x"), (200, "newer /x".to_owned()));
    reloaded(&site, &[route, rest, web, &api("newer", 2)].concat());
    stop.store(true, Ordering::Relaxed);
    client.join().expect("a request has failed");
    // It goes, once its last request is answered; it comes again while that one still runs.
    let mut busy = site.client();
    busy.send("GET /block HTTP/1.1\r\nHost: api.example\r\n\r\n");
    until("it is busy", || site.app("api")["workers_busy"] == 1);
    let said = reloaded(&site, web);
    assert!(said.contains("app api: removed"), "{said}");
    assert_eq!(site.get("api.example", "/x"), (200, "web /x".to_owned()));
    reloaded(&site, &[route, rest, web, &api("again", 1)].concat());
    assert_eq!(site.get("api.example", "/x"), (200, "again /x".to_owned()));
    site.tell("newer.go", true);
    assert_eq!(busy.answer().text(), "newer /block");
    until("the old one has gone", || site.line.status()["apps"].as_array().unwrap().len() == 2);
    assert_eq!(site.get("api.example", "/y"), (200, "again /y".to_owned()));
    assert_eq!(site.pids("web"), pids, "nothing of this was about it");
    assert!(!site.line.server.has_said("cannot start a worker"));
    drop(busy);
    site.line.stop();
}

/// The same name for what is something else: it goes and comes.
fn an_app_may_be_replaced_by_another(backend: &str) {
    let site = Site::start(backend, WEB);
    site.until_ready();
    let (fixed, workers) = ("[apps.web]\nrespond = 'fixed'\n", WEB.replace("'web'", "'again'"));
    for (app, answer) in [(fixed, "fixed"), (&workers, "again /y"), (fixed, "fixed")] {
        let said = reloaded(&site, app);
        assert!(said.contains("app web: replaced"), "{said}");
        assert_eq!(site.get("a.example", "/y"), (200, answer.to_owned()));
    }
    until("only the last one is left", || site.line.status()["apps"].as_array().unwrap().len() == 1);
    site.line.stop();
}

/// A document of the server's own.
fn document(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = Client::to(address).ask(&format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    (answer.status, answer.text())
}

/// An app that is removed may be busy when another of its name comes: to those who watch, both are one.
fn what_is_told_of_an_app_goes_on_when_it_comes_again(backend: &str) {
    let site = Site::start(backend, WEB);
    let address = site.line.server.address;
    site.until_ready();
    assert_eq!(site.get("a", "/x").0, 200);
    let mut busy = site.client();
    busy.send("GET /block HTTP/1.1\r\nHost: a\r\n\r\n");
    until("it is busy", || site.app("web")["workers_busy"] == 1);
    let drain = "restart = { drain = '20s' }\n";
    let other = ["[apps.other]\n", &WEB["[apps.web]\n".len()..].replace("'web'", "'other'")].concat();
    // Its requests run on, and the server is ready.
    reloaded(&site, &[WEB, drain].concat());
    reloaded(&site, &other);
    assert_eq!(site.line.status()["state"], "running");
    assert_eq!(document(address, "/readyz?verbose"), (200, "[+] listeners: ok\n[+] app other: ok\nok\n".to_owned()));
    reloaded(&site, &[WEB.replace("'web'", "'again'").as_str(), drain].concat());
    assert_eq!(site.get("a", "/x"), (200, "again /x".to_owned()));
    assert_eq!(document(address, "/readyz").0, 200);
    let scrape = || {
        let (status, text) = document(address, "/metrics");
        assert_eq!(status, 200);
        let samples = exposition::read(&text, false);
        [
            "production_server_worker_starts_total{app=\"web\"}",
            "production_server_app_state{app=\"web\",state=\"running\"}",
        ]
        .map(|name| samples[name])
    };
    let web = || site.line.status()["apps"].as_array().unwrap().iter().filter(|app| app["name"] == "web").count();
    assert_eq!((web(), scrape()), (2, [2.0, 1.0]));
    site.tell("web.go", true);
    assert_eq!(busy.answer().text(), "web /block");
    until("the old one has gone", || web() == 1);
    assert_eq!(scrape(), [2.0, 1.0]);
    site.line.stop();
}

/// To the server it is another app then.
fn an_upstream_that_is_added_leaves_what_is_counted_of_the_others(backend: &str) {
    let workers = [Worker::echo(), Worker::echo()];
    let text = |upstreams: &[String]| format!("[apps.web]\nupstream = {upstreams:?}\nconcurrency = 100\n");
    let urls = [workers[0].url.clone(), workers[1].url.clone()];
    let site = Site::start(backend, &text(&urls[..1]));
    site.until_ready();
    (0..3).for_each(|_| assert_eq!(site.get("a", "/x").0, 200));
    let counted = || {
        let (status, text) = document(site.line.server.address, "/metrics");
        assert_eq!(status, 200);
        exposition::read(&text, false)["production_server_worker_requests_total{app=\"web\",worker=\"1\"}"]
    };
    assert_eq!(counted(), 3.0);
    let said = reloaded(&site, &text(&urls));
    assert!(said.contains("app web: replaced"), "{said}");
    assert_eq!(counted(), 3.0);
    until("the old one has gone", || site.line.status()["apps"].as_array().unwrap().len() == 1);
    assert_eq!(counted(), 3.0);
    site.line.stop();
}

/// An app that is gone for a while is not forgotten, and one that comes and does not get ready is nobody's loss but its own.
fn an_app_that_comes_or_goes_leaves_the_server_ready(backend: &str) {
    let site = Site::start(backend, WEB);
    let address = site.line.server.address;
    site.until_ready();
    let starts = || {
        let apps = site.line.status()["apps"].as_array().unwrap().clone();
        apps.iter().find(|app| app["name"] == "web").map(|app| app["lives"]["starts"].as_u64().unwrap())
    };
    let other = ["[apps.other]\n", &WEB["[apps.web]\n".len()..]].concat();
    let slow = "[apps.slow]\ncommand = ['sleep', '600']\n[[routes]]\nmatch = { host = 'slow' }\napp = 'slow'\n[[routes]]\napp = 'other'\n";
    site.write(&[other.as_str(), slow].concat());
    assert_eq!(reload(&site, &[]).0, Some(0));
    until("the first app has gone", || starts().is_none());
    assert_eq!(site.line.status()["departed"]["starts"], 1);
    assert_eq!(site.line.status()["state"], "running");
    let ready = "[+] app other: ok\n[~] app slow: no worker is ready, which does not count\nok\n";
    until("what counts is ready", || document(address, "/readyz?verbose").1.ends_with(ready));
    assert_eq!(document(address, "/readyz").0, 200);
    reloaded(&site, WEB);
    assert_eq!(starts(), Some(2));
    site.line.stop();
}

/// A listener that stays keeps what stands in front of it, and one that comes again has what is said of it then.
fn what_stands_in_front_of_a_listener_comes_with_it(backend: &str) {
    let [port] = free_ports();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let text = |more: &str| format!("[server]\nloops = 1\n[[listen]]\naddress = '127.0.0.1:0'\n{more}{HELLO}");
    let plain = text(&format!("[[listen]]\naddress = '{address}'\n"));
    let fronted = text(&format!("[[listen]]\naddress = '{address}'\nproxy_protocol = 'loopback'\n"));
    let left = format!("listener {address}: what stands in front of it (takes another process");
    // Where none is required, a header is no request.
    let is_fronted = || {
        let request = "PROXY TCP4 192.0.2.1 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n";
        Client::to(address).ask(request).status == 200
    };
    let site = listening(backend, &fronted);
    assert!(is_fronted());
    // It is said until it holds.
    for _ in 0..2 {
        let said = reloaded(&site, &plain);
        assert!(said.contains(&left), "{said}");
        assert!(is_fronted());
    }
    let closed = || {
        reloaded(&site, &text(""));
        until("nobody listens there", || TcpStream::connect(address).is_err());
    };
    closed();
    let said = reloaded(&site, &plain);
    assert!(said.contains("opened") && !said.contains(&left), "{said}");
    assert!(!is_fronted());
    assert!(reloaded(&site, &plain).contains("as it was"));
    // The same of one that a reload has brought.
    for _ in 0..2 {
        assert!(reloaded(&site, &fronted).contains(&left));
        assert!(!is_fronted());
    }
    // One that has not closed yet comes again only as it was.
    reloaded(&site, &text(""));
    assert!(!reloaded(&site, &fronted).contains(&left));
    assert!(is_fronted());
    assert!(reloaded(&site, &fronted).contains("as it was"));
    site.line.stop();
}

/// Two sockets that share a port share its clients, too: those of the public must not come to the admin listener, nor its own to the public.
fn the_admin_listener_stays_and_keeps_its_address(backend: &str) {
    let ports: [u16; 3] = free_ports();
    let [admin, other, third] = ports.map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let text = |admin: &SocketAddr, more: &[String]| {
        format!(
            "[server]\nloops = 2\n[admin]\nlisten = '{admin}'\n{}{HELLO}",
            listen(&[&["127.0.0.1:0".to_owned()], more].concat())
        )
    };
    let site = listening(backend, &text(&admin, &[]));
    let mut kept = Client::to(admin);
    let ready = "GET /readyz HTTP/1.1\r\nHost: any\r\n\r\n";
    assert_eq!(kept.ask(ready).status, 200);
    for wanted in [admin, other] {
        for there in [admin.to_string(), format!("0.0.0.0:{}", admin.port())] {
            site.write(&text(&wanted, std::slice::from_ref(&there)));
            let (code, said) = reload(&site, &[]);
            assert_eq!(code, Some(78), "{said}");
            let holds = format!("the admin listener of this server has {admin}");
            let clashes = format!("{admin} and the listener {there} clash");
            assert!(said.contains(if wanted == admin { &clashes } else { &holds }), "{said}");
        }
    }
    // It is no listener of the file's, and no reload closes or moves it.
    let said = reloaded(&site, &text(&third, &[other.to_string()]));
    assert!(said.contains("admin.listen") && said.contains("takes another process"), "{said}");
    assert_eq!(Client::to(other).get("/").text(), "hello");
    assert_eq!(site.line.status()["admin"], serde_json::json!([admin.to_string()]));
    reloaded(&site, &text(&admin, &[]));
    assert_eq!((kept.ask(ready).status, document(admin, "/readyz").0, document(admin, "/").0), (200, 200, 404));
    drop(kept);
    site.line.stop();
}

/// A server that finds its file in the directory that it is started in, or else in the folder `own` of its user.
fn unnamed(backend: &str, text: &str) -> Site {
    let folder = folder();
    let (file, own) = (path(&folder, "production_server.toml"), path(&folder, "own"));
    fs::write(&file, text).unwrap();
    let mut command = Command::new("sh");
    let script = "cd \"$XDG_CONFIG_HOME/..\" && exec \"$0\" $(echo \"$@\" | sed -e 's/--listen 127.0.0.1:0//')";
    command.env("XDG_CONFIG_HOME", &own).env_remove("PRODUCTION_SERVER_CONFIG").args(["-c", script, PROGRAM]);
    fs::create_dir_all(format!("{own}/production_server")).unwrap();
    Site { line: Line::start_in(folder, command, backend, &[]), file }
}

fn a_file_that_is_empty_or_gone_changes_nothing(backend: &str) {
    let site = unnamed(backend, &[HERE, HELLO].concat());
    let refused = |what: &str| {
        let (code, said) = reload(&site, &[]);
        assert!(code == Some(78) && said.contains("production_server.toml") && said.contains(what), "{code:?}: {said}");
        assert_eq!(site.get("a.example", "/"), (200, "hello".to_owned()));
    };
    for nothing in ["", "\n \n"] {
        site.write(nothing);
        refused("it is empty");
    }
    fs::remove_file(&site.file).unwrap();
    refused("the configuration file is gone");
    let other = path(&site.line.folder, "own/production_server/production_server.toml");
    fs::write(&other, [HERE, &HELLO.replace("hello", "other")].concat()).unwrap();
    refused("would be read in its place, and is not");
    let (code, said) = site.line.word(&["upgrade", "--wait"]);
    assert!(code == Some(75) && said.contains("the configuration file is gone"), "{code:?}: {said}");
    reloaded(&site, &[HERE, &HELLO.replace("hello", "again")].concat());
    assert_eq!(site.get("a.example", "/").1, "again");
    site.line.stop();
}

fn what_a_roll_that_was_given_up_was_to_bring_comes_with_the_next_reload(backend: &str) {
    let text = |name: &str| {
        let base = "restart = { base = '10ms', max = '50ms' }";
        format!("[server]\nloops = 2\n[apps.web]\ncommand = [PYTHON, '{name}', 'FOLDER']\nworkers = 2\n{base}\n")
    };
    let site = Site::start(backend, &text("one"));
    site.until_ready();
    site.tell("two.crash", true);
    site.write(&text("two"));
    let (code, said) = reload(&site, &["--wait"]);
    assert_eq!(code, Some(75), "{said}");
    assert_eq!(site.get("a.example", "/").1, "one /");
    site.tell("two.crash", false);
    let (code, said) = reload(&site, &["--wait"]);
    assert!(code == Some(0) && said.contains("workers that still have older settings are replaced"), "{said}");
    assert_eq!(site.get("a.example", "/").1, "two /");
    let (code, said) = reload(&site, &["--wait"]);
    assert!(code == Some(0) && !said.contains("older settings"), "{said}");
    site.line.stop();
}

fn what_is_told_of_an_app_is_its_own_before_another_comes(backend: &str) {
    let one = |name: &str| format!("[apps.{name}]\ncommand = [PYTHON, '{name}', 'FOLDER']\nworkers = 1\n");
    let site = Site::start(backend, &one("web"));
    site.until_ready();
    let total = || site.app("web")["requests"]["total"].as_u64().unwrap();
    (0..5).for_each(|_| assert_eq!(document(site.line.server.address, "/server").0, 200));
    (0..2).for_each(|_| assert_eq!(site.get("a.example", "/").0, 200));
    until("both are counted", || total() >= 2);
    assert_eq!(total(), 2, "what the server says of itself is not the app's");
    let routes = "[[routes]]\nmatch = { path = '/api' }\napp = 'api'\n[[routes]]\napp = 'web'\n";
    reloaded(&site, &[&one("web"), &one("api"), routes].concat());
    assert_eq!(total(), 2);
    site.line.stop();
    // And what the loops answer in an app's place.
    let site = Site::start(backend, HELLO);
    (0..3).for_each(|_| assert_eq!(site.get("a.example", "/").0, 200));
    until("all are counted", || site.app("web")["requests"]["total"] == 3);
    site.line.stop();
}

fn more_workers_than_there_is_room_for_are_refused(backend: &str) {
    let text = |workers: &str| {
        format!("[server]\nloops = 2\n[apps.web]\ncommand = [PYTHON, 'web', 'FOLDER']\nworkers = {workers}\n")
    };
    let site = Site::start(backend, &text("1"));
    site.until_ready();
    for workers in ["100", "{ min = 1, max = 100 }"] {
        site.write(&text(workers));
        let (code, said) = reload(&site, &[]);
        assert_eq!(code, Some(78), "{said}");
        assert!(said.contains("room for 64 workers") && said.contains("upgrade"), "{said}");
        let app = site.app("web");
        assert_eq!((&app["workers_wanted"], &app["scaling"]), (&1.into(), &Value::Null));
    }
    site.line.stop();
}

fn each_upstream_takes_the_room_of_one_worker(backend: &str) {
    let text = |apps: usize| {
        let app = |number: usize| {
            format!(
                "[apps.n{number}]\nupstream = 'unix:/none/{number}'\nconcurrency = 1000\n[[routes]]\napp = 'n{number}'\n\
                 match.path = '/n{number}'\n"
            )
        };
        format!("{HELLO}{}[[routes]]\napp = 'web'\n", (0..apps).map(app).collect::<String>())
    };
    let site = Site::start(backend, &text(0));
    site.write(&text(30));
    assert_eq!(reload(&site, &[]).0, Some(0));
    site.write(&text(100));
    let (code, said) = reload(&site, &[]);
    assert!(code == Some(78) && said.contains("no room for the connections to so many workers"), "{said}");
    site.line.stop();
}

fn a_site_without_an_app_tells_about_itself(backend: &str) {
    let [admin] = free_ports();
    let admin = SocketAddr::from(([127, 0, 0, 1], admin));
    let answers = "[[routes]]\nmatch = { path = '/a' }\nrespond = 'a'\n[[routes]]\nredirect = '/a'\n";
    let hub = "[hub.chat]\n[[routes]]\nmatch = { path = '/c/*' }\nhub = 'chat'\n";
    for routes in [answers, hub] {
        let site = listening(backend, &format!("{HERE}[admin]\nlisten = '{admin}'\n{routes}"));
        for name in ["/livez", "/readyz", "/health_check", "/metrics"] {
            assert_eq!(document(admin, name).0, 200, "{name}: {routes}");
            let here = site.client().ask(&format!("GET {name} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
            assert_eq!(here.status, 200, "{name}: {routes}");
        }
        site.line.stop();
    }
}

fn what_needs_another_process_is_named_and_left(backend: &str) {
    let site = listening(backend, &format!("{HERE}[server]\nloops = 1\nmax_connections = 100\n{HELLO}"));
    let text = format!("{HERE}[server]\nloops = 2\nmax_connections = 90\n{}", HELLO.replace("hello", "other"));
    let said = reloaded(&site, &text);
    for (name, change) in [("loops", "1 -> 2"), ("max_connections", "100 -> 90")] {
        assert!(said.contains(&format!("server.{name}: {change} (takes another process")), "{said}");
    }
    assert_eq!((site.line.status()["loops"].clone(), site.get("a", "/").1), (1.into(), "other".to_owned()));
    // It is said until it holds.
    assert!(reloaded(&site, &text).contains("server.loops: 1 -> 2"));
    // And what the next process could not start with.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = taken.local_addr().unwrap();
    let bad = "user = 'no such user'\n";
    let said = reloaded(
        &site,
        &format!("{}[admin]\nlisten = '{admin}'\n", text.replace("loops = 2\n", &format!("loops = 2\n{bad}"))),
    );
    for what in ["there is no user", &format!("{admin} is in use")] {
        assert!(
            said.contains("warning: `production_server upgrade` would fail: ") && said.contains(what),
            "{what}: {said}"
        );
        until("it is told", || site.line.server.has_said(what));
    }
    assert!(!reloaded(&site, &text).contains("would fail"));
    site.line.upgraded();
    assert_eq!(site.line.status()["loops"], 2);
    assert!(reloaded(&site, &text).contains("as it was"));
    site.line.stop();
}

/// A site of two apps and a stream, with more listeners, routes, limits and apps in every second text.
fn texts(ports: [u16; 3], live: &str) -> Vec<String> {
    let all = |own: &str| {
        let listener = format!("[server]\nloops = 2\n{own}\n[[listen]]\naddress = '127.0.0.1:{}'\n", ports[0]);
        let apps = format!(
            "[apps.web]\nworkers = 2\n[apps.live]\nupstream = '{live}'\nconcurrency = 100\n\
             [[routes]]\nmatch = {{ path = '/live/*' }}\napp = 'live'\n"
        );
        (listener, apps)
    };
    let rest = "[[routes]]\nmatch = { path = '/fixed' }\nrespond = 'fixed'\n[[routes]]\napp = 'web'\n";
    let (listener, apps) = all("");
    let (limited, _) =
        all("max_head = '16KiB'\nmax_body = '1MiB'\ntimeouts = { header = '5s', idle = '40s', write = '20s' }");
    let more = "[apps.more]\nworkers = 1\n[[routes]]\nmatch = { path = '/more/*' }\napp = 'more'\nrewrite = { strip = '/more' }\n";
    let fields =
        "[[routes]]\nmatch = { path = '/ping' }\napp = 'web'\nresponse_fields = { set = { 'X-Reloaded' = 'yes' } }\n";
    let other = |port: u16| format!("[[listen]]\naddress = '127.0.0.1:{port}'\n");
    vec![
        [&listener, &apps, rest].concat(),
        [&limited, &other(ports[1]), &apps, more, fields, rest].concat(),
        "[apps.web]\nworkers = 'two'\n".to_owned(),
        [&listener, &other(ports[1]), &other(ports[2]), &apps, more, rest].concat(),
        [&limited, &other(ports[2]), &apps, fields, rest].concat().replace("workers = 2", "workers = 3"),
        [&listener, "[[routes]]\napp = 'nobody'\n"].concat(),
        [&listener, &other(ports[1]), "[log]\naccess = 'FOLDER/access.log'\n", &apps, rest].concat(),
    ]
}

/// Clients that ask all the time. Whoever gets in is answered; that a listener may be gone is no error.
fn ask(
    address: SocketAddr,
    host: &'static str,
    end: &'static str,
    keeps: bool,
    always: bool,
    stop: &Arc<AtomicBool>,
    asked: &Arc<AtomicUsize>,
) -> JoinHandle<()> {
    let (stop, asked) = (stop.clone(), asked.clone());
    std::thread::spawn(move || {
        let mut open: Option<Client> = None;
        while !stop.load(Ordering::Relaxed) {
            let mut client = match open.take() {
                Some(client) => client,
                None => match TcpStream::connect(address) {
                    Ok(stream) => Client::over(stream, Vec::new()),
                    Err(error) => {
                        assert!(!always, "{address}: {error}");
                        std::thread::sleep(Duration::from_millis(5));
                        continue;
                    }
                },
            };
            let close = if keeps { "" } else { "Connection: close\r\n" };
            let answer = client.ask(&format!("GET /ping HTTP/1.1\r\nHost: {host}\r\n{close}\r\n"));
            assert!(answer.status == 200 && answer.text().ends_with(end), "{} {}", answer.head, answer.text());
            asked.fetch_add(1, Ordering::Relaxed);
            open = (keeps && !answer.has("connection: close")).then_some(client);
            std::thread::sleep(Duration::from_millis(2));
        }
    })
}

/// Valid and invalid texts by turns, under clients that keep their connections and such that do not, beside open event streams and
/// WebSockets.
fn nobody_notices_many_reloads(backend: &str) {
    let ports = free_ports();
    let round = Arc::new(AtomicUsize::new(0));
    let told = round.clone();
    let live = Worker::new(move |incoming| {
        let Some((head, _)) = incoming.request() else { return };
        if head.to_lowercase().contains("upgrade: websocket") {
            incoming.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
            while let Some(bytes) = incoming.any() {
                incoming.send(bytes);
            }
            return;
        }
        incoming.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n");
        let event = || format!("data: {:03}\n\n", told.load(Ordering::Relaxed));
        while incoming.send(format!("b\r\n{}\r\n", event())) {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let texts = texts(ports, &live.url);
    let site = listening(backend, &texts[0]);
    site.until_ready();
    let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
    let open = |more: &str| {
        let mut client = Client::to(address(ports[0]));
        client.send(format!("GET /live/it HTTP/1.1\r\nHost: a\r\n{more}\r\n"));
        let head = client.head().unwrap();
        assert!(head.starts_with(if more.is_empty() { "HTTP/1.1 200" } else { "HTTP/1.1 101" }), "{head}");
        client
    };
    let mut streams: Vec<Client> = (0..20).map(|_| open("")).collect();
    let mut sockets: Vec<Client> =
        (0..20).map(|_| open("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n")).collect();
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let always = (0..6).map(|index| ask(address(ports[0]), "a", "pong", index < 4, true, &stop, &asked));
    let sometimes =
        (0..4).map(|index| ask(address(ports[1 + index % 2]), "a", "pong", index < 2, false, &stop, &asked));
    let clients: Vec<JoinHandle<()>> = always.chain(sometimes).collect();
    for number in 1..=texts.len() * 3 {
        let text = &texts[number % texts.len()];
        site.write(text);
        let (code, said) = reload(&site, &[]);
        let wrong = text.contains("'two'") || text.contains("'nobody'");
        assert_eq!(code, Some(if wrong { 78 } else { 0 }), "round {number}: {said}");
        let before = asked.load(Ordering::Relaxed);
        until("requests are answered", || asked.load(Ordering::Relaxed) >= before + 40);
        round.store(number, Ordering::Relaxed);
        for client in &mut sockets {
            client.send("still here");
            assert_eq!(client.take(10), b"still here");
        }
        let event = format!("data: {number:03}");
        for client in &mut streams {
            while !client.line().expect("a stream has ended").contains(&event) {}
        }
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.join().expect("a request has failed");
    }
    let status = site.line.status();
    assert_eq!((&status["counters"]["errors"], &status["counters"]["panics"]), (&0.into(), &0.into()), "{status}");
    drop((streams, sockets));
    site.line.stop();
}
