//! Keys of tokens that lie at a URL.

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

use super::{Site, filled, site};
use crate::support::tls::Pair;
use crate::support::{Client, PROGRAM, Server, Worker, folder, on_every_backend, until};

on_every_backend! {
    keys_are_fetched_and_new_ones_are_found
    what_was_good_last_holds
    a_host_that_does_not_answer_holds_up_no_other
}

const HTML: &str = "<!doctype html><title>Sign in</title>";

const SITE: &str = r#"
[apps.web]
upstream = "{worker}"

[[routes]]
app = "web"
auth.jwt = { keys = "{keys}", algorithms = ["HS256"], refresh = "REFRESH" }
"#;

fn secret(name: &str) -> Vec<u8> {
    format!("the secret of {name}, which is long enough").into_bytes()
}

/// The set with the keys of these names.
fn set(names: &[&str]) -> String {
    let key = |name: &&str| json!({ "kty": "oct", "kid": name, "k": URL_SAFE_NO_PAD.encode(secret(name)) });
    json!({ "keys": names.iter().map(key).collect::<Vec<_>>() }).to_string()
}

/// A token that names its key.
fn token(name: &str) -> String {
    let header = Header { kid: Some(name.to_owned()), ..Header::new(Algorithm::HS256) };
    encode(&header, &json!({ "sub": name, "exp": 4_000_000_000_u64 }), &EncodingKey::from_secret(&secret(name)))
        .unwrap()
}

/// Whoever has the keys: what it answers can be changed.
struct Authority {
    text: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    worker: Worker,
}

impl Authority {
    fn new(text: &str) -> Authority {
        let (text, asked) = (Arc::new(Mutex::new(text.to_owned())), Arc::new(AtomicUsize::new(0)));
        let (says, counts) = (text.clone(), asked.clone());
        let worker = Worker::tcp(move |incoming| {
            while incoming.request().is_some() {
                let text = says.lock().unwrap().clone();
                counts.fetch_add(1, Ordering::SeqCst);
                incoming.respond(text.as_bytes());
            }
        });
        Authority { text, asked, worker }
    }

    fn says(&self, text: &str) {
        text.clone_into(&mut self.text.lock().unwrap());
    }

    fn url(&self) -> String {
        format!("{}/jwks.json", self.worker.url)
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn file(url: &str, refresh: &str) -> String {
    SITE.replace("{keys}", url).replace("REFRESH", refresh)
}

fn ask(server: &Server, name: &str) -> u16 {
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", token(name));
    Client::of(server).ask(&request).status
}

fn key_set(site: &Site) -> serde_json::Value {
    let run = site.server.run().display().to_string();
    let output = std::process::Command::new(PROGRAM).args(["status", "--json", "--run-dir", &run]).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    status["key_sets"][0].clone()
}

fn keys_are_fetched_and_new_ones_are_found(backend: &str) {
    let authority = Authority::new(&set(&["one"]));
    let site = site(backend, &file(&authority.url(), "1h"), &[]);
    until("the keys have come", || ask(&site.server, "one") == 200);
    assert_eq!(authority.asked(), 1);
    let shown = key_set(&site);
    assert_eq!((&shown["keys"], &shown["last_error"]), (&1.into(), &serde_json::Value::Null), "{shown}");
    assert!(shown["url"] == authority.url().as_str() && shown["fetched"].as_i64() > Some(0), "{shown}");
    // Another key comes, and a token that names it has it looked for.
    authority.says(&set(&["one", "two"]));
    assert_eq!(ask(&site.server, "one"), 200);
    assert_eq!(authority.asked(), 1, "nobody has asked for it");
    until("the new one is found", || ask(&site.server, "two") == 200);
    assert_eq!((authority.asked(), ask(&site.server, "one")), (2, 200));
    // Once a minute: who names keys at random has nothing fetched.
    for number in 0..50 {
        assert_eq!(ask(&site.server, &format!("random-{number}")), 401);
    }
    assert_eq!(authority.asked(), 2);
    // A reload begins with what is there, whoever answers by then.
    authority.says(HTML);
    let said = site.reload(&file(&authority.url(), "2h"));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!((ask(&site.server, "two"), authority.asked()), (200, 2));
}

fn what_was_good_last_holds(backend: &str) {
    let authority = Authority::new(HTML);
    let site = site(backend, &file(&authority.url(), "1s"), &[]);
    until("it has been tried", || key_set(&site)["last_error"].is_string());
    assert_eq!(ask(&site.server, "one"), 503, "nobody gets in before there are keys");
    assert!(key_set(&site)["last_error"].as_str().unwrap().contains("HTML"));
    authority.says(&set(&["one"]));
    until("it is good", || ask(&site.server, "one") == 200);
    until("that is shown", || key_set(&site)["last_error"].is_null());
    authority.says(HTML);
    until("it is bad again", || key_set(&site)["last_error"].is_string());
    let before = authority.asked();
    until("it is tried again", || authority.asked() > before + 1);
    let shown = key_set(&site);
    assert_eq!((ask(&site.server, "one"), &shown["keys"]), (200, &1.into()), "{shown}");
    let said = |words: &str| site.server.lines().iter().filter(|line| line.contains(words)).count();
    assert_eq!((said("cannot be fetched;"), said("can be fetched again")), (2, 1), "each is said once");
}

fn a_host_that_does_not_answer_holds_up_no_other(backend: &str) {
    let (silent, authority) = (TcpListener::bind("127.0.0.1:0").unwrap(), Authority::new(&set(&["one"])));
    let other = r#"
[[routes]]
match.path = "/silent"
app = "web"
auth.jwt = { keys = "http://{silent}/jwks.json", algorithms = ["HS256"] }
"#;
    let (address, url) = (silent.local_addr().unwrap().to_string(), authority.url());
    let file = file(&url, "1s").replace("\n[[routes]]", &format!("{other}\n[[routes]]").replace("{silent}", &address));
    let site = site(backend, &file, &[]);
    let held = silent.accept().unwrap();
    until("the keys have come", || ask(&site.server, "one") == 200);
    let before = authority.asked();
    until("they come again and again", || authority.asked() > before + 1);
    authority.says(&set(&["two"]));
    until("the new one is found", || ask(&site.server, "two") == 200);
    let request = format!("GET /silent HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\n\r\n", token("two"));
    assert_eq!(Client::of(&site.server).ask(&request).status, 503, "it is waited for");
    drop(held);
}

#[test]
fn over_https_only_those_are_believed_whom_the_system_trusts() {
    let backend = if cfg!(backend_readiness) { "epoll" } else { "io_uring" };
    let (folder, pair) = (folder(), Pair::of(&["localhost"]));
    std::fs::write(folder.path().join("jwks.json"), set(&["one"])).unwrap();
    let (certificate, key) = pair.write(folder.path(), "id");
    let [certificate, key] = [certificate, key].map(|path| path.to_str().unwrap().to_owned());
    let root = folder.path().to_str().unwrap();
    let authority = Server::start(backend, &["--static", root, "--tls-cert", &certificate, "--tls-key", &key]);
    let url = format!("https://localhost:{}/jwks.json", authority.address.port());
    let worker = Worker::echo();
    let path = folder.path().join("site.toml");
    std::fs::write(&path, filled(&file(&url, "1h"), &worker, &folder)).unwrap();
    let start = |trusted: &str| {
        let mut command = std::process::Command::new(PROGRAM);
        command.env("SSL_CERT_FILE", trusted);
        Server::start_as(command, backend, &["-f", path.to_str().unwrap()])
    };
    let server = start(&certificate);
    until("the keys have come", || ask(&server, "one") == 200);
    let (other, _) = Pair::of(&["other"]).write(folder.path(), "other");
    let server = start(other.to_str().unwrap());
    until("it is said", || server.has_said("cannot be fetched;"));
    assert_eq!(ask(&server, "one"), 503);
}

#[test]
fn check_looks_what_is_there() {
    let folder = folder();
    let check = |url: &str| {
        let path = folder.path().join("site.toml");
        std::fs::write(&path, file(url, "1h").replace("{worker}", "http://127.0.0.1:1")).unwrap();
        let output =
            std::process::Command::new(PROGRAM).args(["check", "-f", path.to_str().unwrap()]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let authority = Authority::new(&set(&["one"]));
    assert_eq!(check(&authority.url()), (Some(0), String::new()));
    authority.says(HTML);
    let (code, said) = check(&authority.url());
    assert!(code == Some(78) && said.contains("this is HTML") && said.contains("site.toml:7:"), "{code:?} {said}");
    authority.says(&"x".repeat(2 << 20));
    let (code, said) = check(&authority.url());
    assert!(code == Some(0) && said.contains("cannot be fetched now"), "{code:?} {said}");
    let (code, said) = check("http://127.0.0.1:1/jwks.json");
    assert!(code == Some(0) && said.contains("cannot be fetched now"), "{code:?} {said}");
    let (code, said) = check("http:///jwks.json");
    assert!(code == Some(78) && said.contains("expected the path of a file, or a URL"), "{code:?} {said}");
}
