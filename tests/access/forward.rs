//! Another app is asked about requests before they pass.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Site, site};
use crate::support::{Answer, Client, Worker, on_every_backend_and_tls, until};

on_every_backend_and_tls! {
    what_passes_has_the_fields_that_were_asked_for
    an_answer_of_any_form_lets_pass
    a_refusal_goes_to_the_client_as_it_is
    where_no_word_comes_nobody_gets_in
    a_question_ends_with_its_client
    questions_wait_in_line_for_who_is_asked
    it_goes_together_with_the_other_checks
    a_body_waits_until_its_request_may_pass
    what_was_said_of_a_request_is_forgotten_with_it
}

const SITE: &str = r#"
[apps.web]
upstream = "{worker}"

[apps.accounts]
upstream = "{accounts}"
concurrency = 8
queue.timeout = "30s"
timeouts = { read = "30s", request = "30s" }

[apps.single]
upstream = "{accounts}"
queue.timeout = "30s"
timeouts = { read = "30s", request = "30s" }

[limits.told]
rate = "1000/h"
headers = true

[apps.gone]
upstream = "unix:{folder}/nobody"
queue.hold = "50ms"

[[routes]]
match.path = "/app/*"
app = "web"
forward_auth = { app = "accounts", path = "/verify?x", copy = ["X-Auth-User", "X-Tenant"], timeout = "30s" }
response_fields.set = { X-Route = "app" }
limits = "told"

[[routes]]
match.path = "/short/*"
app = "web"
forward_auth = { app = "accounts", timeout = "50ms" }

[[routes]]
match.path = "/single/*"
app = "web"
forward_auth = { app = "single", timeout = "30s" }

[[routes]]
match.path = "/gone/*"
app = "web"
forward_auth = "gone"

[[routes]]
match.path = "/any/*"
app = "web"
allow = "10.0.0.0/8"
auth.keys = "{folder}/keys"
forward_auth = "accounts"
satisfy = "any"

[[routes]]
match.path = "/word/*"
app = "web"
auth.keys = "{folder}/keys"
forward_auth = "accounts"
satisfy = "any"

[[routes]]
match.path = "/all/*"
app = "web"
auth.keys = "{folder}/keys"
forward_auth = { app = "accounts", copy = ["X-Auth-User", "X-Tenant"] }

[[routes]]
app = "web"
"#;

/// Who is asked; the number of those who have left it is counted.
fn accounts(left: Arc<AtomicUsize>) -> Worker {
    Worker::new(move |incoming| {
        while let Some((head, _)) = incoming.request() {
            let uri = crate::support::fields(&head, "X-Forwarded-Uri").first().map(|uri| (*uri).to_owned());
            let name = uri.as_deref().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
            let answer = match name.as_str() {
                "login" => {
                    "302 Found\r\nLocation: /login?next\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nContent-Length: 5\r\n\r\nlogin"
                }
                "who" => "401 Unauthorized\r\nWWW-Authenticate: Cookie realm=\"x\"\r\nContent-Length: 4\r\n\r\nwho?",
                "chunks" => "403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyou\r\n4\r\n not\r\n0\r\n\r\n",
                "busy" => "503 No\r\nRip-Worker-Busy: 1\r\nContent-Length: 0\r\n\r\n",
                "broken" => "500 Oh\r\nContent-Length: 6\r\n\r\nbroken",
                "unchanged" => "304 Not Modified\r\n\r\n",
                "early" => "103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\nX-Tenant: early\r\n\r\n",
                "dies" => return,
                "silent" => {
                    while incoming.receive().is_some_and(|count| count > 0) {}
                    left.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                "parts" => {
                    incoming.send("HTTP/1.1 200 OK\r\nX-Tenant: parts\r\nContent-Length: 7\r\n\r\n");
                    std::thread::yield_now();
                    incoming.send("welcome");
                    continue;
                }
                "chunked" => {
                    "200 OK\r\nX-Tenant: chunked\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\nX-Tenant: trailer\r\n\r\n"
                }
                "long" => {
                    incoming.send("HTTP/1.1 200 OK\r\nX-Tenant: long\r\nContent-Length: 300000\r\n\r\n");
                    incoming.send(vec![b'x'; 300_000]);
                    continue;
                }
                "endless" => {
                    incoming.send("HTTP/1.1 200 OK\r\nX-Tenant: endless\r\n\r\nand so on");
                    incoming.finish();
                    continue;
                }
                _ => {
                    "204 No Content\r\nX-Auth-User: anna\r\nx-tenant: one\r\nX-Tenant: two\r\nX-Secret: kept\r\n\
                     X-Auth-Method: lie\r\n\r\n"
                }
            };
            incoming.send(format!("HTTP/1.1 {answer}"));
        }
    })
}

struct Asked {
    site: Site,
    accounts: Worker,
    left: Arc<AtomicUsize>,
}

fn asked(backend: &str) -> Asked {
    let left = Arc::new(AtomicUsize::new(0));
    let accounts = accounts(left.clone());
    // The SHA-256 of "secret".
    let keys = "shop:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n";
    let site = site(backend, &SITE.replace("{accounts}", &accounts.url), &[("keys", keys)]);
    Asked { site, accounts, left }
}

impl Asked {
    /// What the app was asked for with that request, if it was.
    fn seen(&self, mark: &str) -> Option<String> {
        let all = String::from_utf8_lossy(&self.site.worker.everything()).into_owned();
        all.split("\r\n\r\n").find(|head| head.contains(mark)).map(str::to_owned)
    }

    fn questions(&self) -> usize {
        String::from_utf8_lossy(&self.accounts.everything()).matches("X-Forwarded-Uri:").count()
    }

    fn counted(&self) -> [u64; 3] {
        let status = self.site.server.status();
        ["auth_passed", "auth_refused", "auth_unanswered"].map(|name| status[name].as_u64().unwrap())
    }
}

fn get(client: &mut Client, path: &str, more: &str) -> Answer {
    client.ask(&format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n{more}\r\n"))
}

fn what_passes_has_the_fields_that_were_asked_for(backend: &str) {
    let asked = asked(backend);
    let mut client = Client::of(&asked.site.server);
    let claims = "X-Auth-User: root\r\nX-Tenant: mine\r\nX-Auth-Method: basic\r\nX-Forwarded-Method: PUT\r\n\
                  X_Auth_User: root\r\nX_Tenant: mine\r\nX-Auth_Method: basic\r\n\
                  X-Forwarded-Uri: /else\r\n";
    let post = format!(
        "POST /app/one?q=1 HTTP/1.1\r\nHost: a.example\r\nCookie: c=1\r\nIf-None-Match: \"x\"\r\nRange: bytes=0-1\r\n\
         Expect: 100-continue\r\nX-Hop: 1\r\nConnection: X-Hop\r\n{claims}Content-Length: 3\r\n\r\nxyz"
    );
    client.send(&post);
    let answer = match client.next_answer(false) {
        interim if interim.status == 100 => client.answer(),
        answer => answer,
    };
    assert_eq!((answer.status, answer.field("X-Route")), (200, Some("app")), "{}", answer.head);
    let told = answer.text();
    for line in [
        "POST /app/one?q=1 HTTP/1.1",
        "X-Auth-User: anna",
        "X-Auth-Method: forward",
        "X-Tenant: one",
        "X-Tenant: two",
        "Cookie: c=1",
    ] {
        assert!(told.contains(&format!("{line}\r\n")), "{line}\n{told}");
    }
    for other in ["root", "mine", "X-Secret", "lie", "basic", "X-Auth_Method"] {
        assert!(!told.contains(other), "{other}\n{told}");
    }
    assert!(told.ends_with("xyz"), "{told}");
    let question = String::from_utf8_lossy(&asked.accounts.everything()).into_owned();
    for line in [
        "GET /verify?x HTTP/1.1",
        "Cookie: c=1",
        "X-Forwarded-Method: POST",
        "X-Forwarded-Uri: /app/one?q=1",
        "X-Forwarded-Host: a.example",
        "X-Forwarded-For: 127.0.0.1",
    ] {
        assert_eq!(question.matches(&format!("{line}\r\n")).count(), 1, "{line}\n{question}");
    }
    assert!(question.starts_with("GET /verify?x HTTP/1.1\r\nHost: a.example\r\n"), "{question}");
    for other in ["xyz", "Content-Length", "Expect", "If-None-Match", "Range", "X-Hop", "PUT", "/else", "root", "mine"]
    {
        assert!(!question.contains(other), "{other}\n{question}");
    }
    client.send("GET /app/a HTTP/1.1\r\nHost: a\r\n\r\nGET /app/b HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((client.answer().status, client.answer().status), (200, 200));
    assert_eq!(client.ask("HEAD /app/c HTTP/1.1\r\nHost: a\r\n\r\n").status, 200);
    client.expect_alive();
    // Nor can anybody say so to who is asked on another route.
    assert_eq!(get(&mut client, "/single/x", claims).status, 200);
    let questions = String::from_utf8_lossy(&asked.accounts.everything()).into_owned();
    assert!(questions.contains("X-Forwarded-Uri: /single/x\r\n") && !questions.contains("mine"), "{questions}");
    // Nor can anybody say so on a route that asks nobody.
    let answer = get(&mut client, "/free", claims);
    assert!(answer.status == 200 && !answer.text().contains("root"), "{}", answer.text());
    // Nor behind a body, on either.
    for (path, body) in [("/app/t", "3\r\nabc\r\n"), ("/free", "3\r\nabc\r\n"), ("/app/t", "")] {
        let answer = client.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{body}0\r\nX-Sum: 7\r\nx-tenant: mine\r\n\
             X-Auth-User: root\r\nX-Tenants: all\r\n\r\n"
        ));
        let told = answer.text();
        assert!(told.ends_with("X-Sum: 7\r\nX-Tenants: all\r\n"), "{told}");
        assert!(!told.contains("mine") && !told.contains("root"), "{told}");
    }
    assert_eq!(asked.counted(), [7, 0, 0]);
}

/// In parts, in chunks, longer than is waited for, up to the end of the connection, with hints before it.
fn an_answer_of_any_form_lets_pass(backend: &str) {
    let asked = asked(backend);
    let mut client = Client::of(&asked.site.server);
    for tenant in ["parts", "chunked", "long", "endless", "early"] {
        for _ in 0..3 {
            let answer = get(&mut client, &format!("/app/{tenant}"), "X-Tenant: mine\r\n");
            assert_eq!(answer.status, 200, "{tenant} {}", answer.head);
            let told = answer.text();
            assert!(told.contains(&format!("X-Tenant: {tenant}\r\nX-Auth-Method: forward\r\n")), "{told}");
            assert!(!told.contains("mine") && !told.contains("trailer"), "{told}");
        }
    }
    assert_eq!(asked.counted(), [15, 0, 0]);
}

/// One at a time: who comes second waits, and is asked about once nobody is busy with what the first one has left.
fn questions_wait_in_line_for_who_is_asked(backend: &str) {
    let asked = asked(backend);
    let (mut first, mut second) = (Client::of(&asked.site.server), Client::of(&asked.site.server));
    first.begin("/single/silent");
    until("it is asked", || asked.questions() == 1);
    second.begin("/single/x");
    let apps = || asked.site.server.apps();
    let depth = || {
        let apps = apps();
        let single = apps.as_array().unwrap().iter().find(|app| app["name"] == "single");
        single.unwrap()["queue"]["depth"].clone()
    };
    until("the second waits", || depth() == 1);
    drop(first);
    assert_eq!(second.answer().status, 200);
    assert_eq!((asked.questions(), asked.left.load(Ordering::SeqCst)), (2, 1));
    assert_eq!(asked.counted(), [1, 0, 0]);
}

fn a_refusal_goes_to_the_client_as_it_is(backend: &str) {
    let asked = asked(backend);
    let requests = || asked.site.server.status()["requests"].as_u64().unwrap();
    let before = requests();
    let mut client = Client::of(&asked.site.server);
    let answer = get(&mut client, "/app/login", "");
    assert_eq!((answer.status, answer.text().as_str()), (302, "login"));
    assert_eq!(answer.field("RateLimit"), Some("\"told\";r=999;t=4"));
    assert_eq!(answer.field("Location"), Some("/login?next"));
    assert_eq!(answer.all("Set-Cookie"), ["a=b", "c=d"]);
    let answer = get(&mut client, "/app/who", "");
    assert_eq!((answer.status, answer.text().as_str()), (401, "who?"));
    assert_eq!(answer.field("WWW-Authenticate"), Some("Cookie realm=\"x\""));
    assert_eq!(get(&mut client, "/app/chunks", "").text(), "you not");
    let head = client.ask("HEAD /app/who HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((head.status, head.field("Content-Length"), head.body.len()), (401, Some("4"), 0));
    client.expect_alive();
    // What was refused with a body is no request, and what stands behind it is.
    let smuggled = "GET /app/smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = format!("POST /app/who HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len());
    client.send(format!("{post}GET /app/behind HTTP/1.1\r\nHost: a\r\n\r\n"));
    assert_eq!((client.answer().status, client.answer().status), (401, 200));
    assert!(asked.seen("smuggled").is_none() && asked.seen("/app/behind").is_some());
    // One whose body is still to come ends with its answer.
    client.send("POST /app/who HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\nabc");
    assert_eq!(client.answer().status, 401);
    client.finish();
    client.expect_end();
    for path in ["/app/login", "/app/who", "/app/chunks"] {
        assert!(asked.seen(path).is_none(), "the app knows nothing of {path}");
    }
    assert_eq!(asked.counted(), [1, 6, 0]);
    // And one by which it was seen that the connection lives.
    assert_eq!(requests() - before, 7 + 1, "each is counted once");
}

fn where_no_word_comes_nobody_gets_in(backend: &str) {
    let asked = asked(backend);
    let mut client = Client::of(&asked.site.server);
    for path in ["/app/broken", "/app/unchanged", "/app/dies", "/short/silent", "/gone/x"] {
        let answer = get(&mut client, path, "");
        assert_eq!((answer.status, answer.field("Retry-After")), (503, Some("1")), "{path} {}", answer.head);
        assert!(asked.seen(path).is_none(), "{path}");
    }
    client.expect_alive();
    // Who is alone and has not looked at it is asked once more.
    let before = asked.questions();
    assert_eq!(get(&mut client, "/app/busy", "").status, 503);
    assert_eq!(asked.questions(), before + 2);
    assert_eq!(asked.counted(), [0, 0, 6]);
    asked.site.server.says("no answer");
    assert_eq!(get(&mut client, "/app/x", "").status, 200);
}

fn a_question_ends_with_its_client(backend: &str) {
    let asked = asked(backend);
    let mut client = Client::of(&asked.site.server);
    client.begin("/app/silent");
    until("it is asked", || asked.questions() == 1);
    drop(client);
    until("nobody asks any more", || asked.left.load(Ordering::SeqCst) == 1);
    until("all is over", || asked.site.server.status()["active_connections"] == 0);
    assert_eq!(asked.site.server.status()["client_gone"], 1);
    assert_eq!(asked.counted(), [0, 0, 0]);
    assert!(asked.seen("/app/silent").is_none());
}

fn it_goes_together_with_the_other_checks(backend: &str) {
    let asked = asked(backend);
    let mut client = Client::of(&asked.site.server);
    let key = "X-Api-Key: secret\r\n";
    // With `any`, a key is enough, and without one the word of who is asked.
    assert_eq!((get(&mut client, "/any/who", key).status, asked.questions()), (200, 0));
    assert_eq!((get(&mut client, "/any/who", "").status, get(&mut client, "/any/x", "").status), (401, 200));
    assert_eq!((get(&mut client, "/any/x", "X-Api-Key: guess\r\n").status, asked.questions()), (401, 2));
    // Also where no address is named that would be enough.
    assert_eq!((get(&mut client, "/word/who", "").status, get(&mut client, "/word/x", "").status), (401, 200));
    assert_eq!((get(&mut client, "/word/who", key).status, asked.questions()), (200, 4));
    // With `all`, who has shown no key is not asked about.
    assert_eq!((get(&mut client, "/all/x", "").status, asked.questions()), (401, 4));
    assert_eq!(get(&mut client, "/all/who", key).status, 401);
    let told = get(&mut client, "/all/x", key).text();
    assert!(
        told.contains("X-Auth-User: shop\r\nX-Auth-Method: key\r\n") && told.contains("X-Tenant: one\r\n"),
        "{told}"
    );
    assert!(!told.contains("anna"), "one user is said: {told}");
    assert_eq!(asked.questions(), 6);
}

fn a_body_waits_until_its_request_may_pass(backend: &str) {
    let asked = asked(backend);
    let body = vec![b'x'; 3 << 20];
    let mut client = Client::of(&asked.site.server);
    let mut sender = client.stream.try_clone().unwrap();
    let head = format!("POST /app/x HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let sent = std::thread::spawn(move || sender.write_all(&[head.as_bytes(), &body].concat()).is_ok());
    let answer = client.answer();
    assert!(sent.join().unwrap());
    assert_eq!(answer.status, 200);
    assert!(answer.body.ends_with(&[b'x'; 1000]) && answer.body.len() > 3 << 20);
    client.expect_alive();
}

/// A request that waits for a word, and by a reload needs none any more when it is read again: what it had passed by then is no pass for the next
/// one, once there is a limit.
fn what_was_said_of_a_request_is_forgotten_with_it(backend: &str) {
    let (told, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (tells, counts) = (told.clone(), asked.clone());
    let accounts = Worker::new(move |incoming| {
        while incoming.request().is_some() {
            counts.fetch_add(1, Ordering::SeqCst);
            until("it may answer", || tells.load(Ordering::SeqCst) > 0);
            incoming.respond(b"");
        }
    });
    let free = format!(
        "[apps.web]\nupstream = '{{worker}}'\n[apps.accounts]\nupstream = '{}'\ntimeouts.read = '30s'\n[[routes]]\napp = 'web'\n",
        accounts.url
    );
    let site = site(backend, &format!("{free}forward_auth = {{ app = 'accounts', timeout = '30s' }}\n"), &[]);
    let mut client = Client::of(&site.server);
    client.begin("/waits");
    until("it is asked", || asked.load(Ordering::SeqCst) == 1);
    assert!(site.reload(&free).status.success());
    told.fetch_add(1, Ordering::SeqCst);
    assert_eq!(client.answer().status, 200);
    let limited = format!("[limits.all]\nrate = '1/h'\neverywhere = true\n{free}");
    assert!(site.reload(&limited).status.success());
    assert_eq!((client.get("/counted").status, client.get("/refused").status), (200, 429));
}
