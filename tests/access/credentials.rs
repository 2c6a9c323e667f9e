//! Credentials: passwords, API keys, tokens, and what workers are told of them.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::{Value, json};

use super::site;
use crate::support::{Answer, Client, PROGRAM, on_every_backend, on_every_backend_and_tls, send_signal, until};

on_every_backend_and_tls! {
    a_password_lets_in_and_the_worker_learns_whose
    keys_and_tokens_let_in
    address_and_credentials_go_together_as_the_route_says
}

/// `secret`, by htpasswd(1) with the least cost.
const USERS: &str = "anna:$2y$04$Z/fkl2DvrPnW7iYsId3Tou114JWUE3vpY9sfM7BJ7F.vc.BmCvCha\n";

const SITE: &str = r#"
[apps.web]
upstream = "{worker}"

[limits.each]
rate = "3/h"
key = "user"

[[routes]]
match.path = "/private*"
app = "web"
auth = { basic = "{folder}/users", realm = "the staff" }
rewrite.prefix = "/in"

[[routes]]
match.path = "/limited"
app = "web"
auth.basic = "{folder}/users"
limits = "each"

[[routes]]
match.path = "/files/*"
static = { root = "{folder}/files", prefix = "/files", immutable = ["/plan*"] }
auth.basic = "{folder}/users"

[[routes]]
match.path = "/fixed"
respond = "for the staff"
auth.basic = "{folder}/users"

[[routes]]
match.path = "/keys"
app = "web"
auth.keys = "{folder}/keys"

[[routes]]
match.path = "/either"
app = "web"
auth = { keys = "{folder}/keys", basic = "{folder}/users" }

[[routes]]
match.path = "/tokens"
app = "web"
auth.jwt = { keys = "{folder}/jwks", algorithms = ["HS256", "ES256"], audience = "shop", issuer = "us" }

[[routes]]
app = "web"
"#;

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

/// The files that the routes name.
fn files() -> Vec<(&'static str, String)> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"key-of-shop");
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let key = json!({ "kty": "oct", "kid": "one", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(SECRET) });
    vec![
        ("files/plan.txt", "for the staff".to_owned()),
        ("users", USERS.to_owned()),
        ("keys", format!("shop:{hex}\n")),
        ("jwks", json!({ "keys": [key] }).to_string()),
    ]
}

fn begin(backend: &str, file: &str) -> super::Site {
    let files = files();
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    site(backend, file, &files)
}

fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", STANDARD.encode(format!("{user}:{password}")))
}

fn ask(client: &mut Client, path: &str, lines: &str) -> Answer {
    client.ask(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n{lines}\r\n"))
}

/// What the worker was told in fields whose names begin so.
fn told(answer: &Answer, name: &str) -> Vec<String> {
    let text = answer.text();
    let lines = text.lines().filter(|line| line.to_ascii_lowercase().replace('_', "-").starts_with(name));
    lines.map(str::to_owned).collect()
}

fn a_password_lets_in_and_the_worker_learns_whose(backend: &str) {
    let site = begin(backend, SITE);
    let mut client = Client::of(&site.server);
    // Also as an app takes them that writes names as CGI does.
    let forged = "X-Auth-User: root\r\nx-auth-method: jwt\r\nX_Auth_User: root\r\nx-auth_method: jwt\r\n";
    let answer = ask(&mut client, "/private", forged);
    assert_eq!(answer.status, 401, "{}", answer.text());
    assert_eq!(answer.field("WWW-Authenticate"), Some("Basic realm=\"the staff\", charset=\"UTF-8\""));
    let right = basic("anna", "secret");
    let answer = ask(&mut client, "/private", &format!("{forged}{right}"));
    assert_eq!(
        (answer.status, told(&answer, "x-auth-")),
        (200, vec!["X-Auth-User: anna".to_owned(), "X-Auth-Method: basic".to_owned()])
    );
    assert!(answer.text().starts_with("GET /in/private HTTP/1.1\r\n"), "{}", answer.text());
    // Nobody is anybody on a route that does not ask, either.
    let answer = ask(&mut client, "/open", &format!("{forged}{right}"));
    assert_eq!((answer.status, told(&answer, "x-auth-").len()), (200, 0));
    // With a body, in a pipeline, and with nothing behind the refusal taken for a request.
    let post = |lines: &str| format!("POST /private HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n{lines}\r\nhello");
    client.send(format!("{}{}{}", post(&right), post(&basic("anna", "wrong")), post(&right)));
    let statuses = [client.answer(), client.answer(), client.answer()]
        .map(|answer| (answer.status, answer.text().ends_with("hello")));
    assert_eq!(statuses, [(200, true), (401, false), (200, true)]);
    let answer = client.ask("HEAD /private HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((answer.status, answer.body.len()), (401, 0));
    for lines in [
        basic("anna", ""),
        basic("nobody", "secret"),
        basic("anna", "secret "),
        "Authorization: Basic !\r\n".to_owned(),
    ] {
        assert_eq!(ask(&mut client, "/private", &lines).status, 401, "{lines}");
    }
    // Whoever answers: nobody is told anything without.
    for path in ["/files/plan.txt", "/fixed", "/%66ixed", "/open/..//fixed"] {
        assert_eq!(ask(&mut client, path, "").status, 401, "{path}");
        assert_eq!(ask(&mut client, path, &right).text(), "for the staff", "{path}");
    }
    let answer = ask(&mut client, "/files/plan.txt", &right);
    assert_eq!(answer.field("Cache-Control"), Some("private, max-age=31536000, immutable"), "it is not for everybody");
    let counted = site.server.status();
    assert_eq!((counted["auth_passed"].as_u64(), counted["auth_refused"].as_u64()), (Some(8), Some(11)));
    // One of them is for the file.
    assert_eq!(counted["helper_jobs"], 6, "what was right is remembered");
    // A client that has gone meanwhile leaves nothing behind.
    let mut hasty = Client::of(&site.server);
    hasty.send(format!("GET /private HTTP/1.1\r\nHost: a\r\n{}\r\n", basic("anna", "other")));
    drop(hasty);
    until("it is forgotten", || site.server.status()["active_connections"] == 1);
    // Who has been let in is limited by name.
    let statuses: Vec<u16> = (0..4).map(|_| ask(&mut client, "/limited", &right).status).collect();
    assert_eq!(statuses, [200, 200, 200, 429]);
    assert_eq!(site.server.limits()[0]["busiest"][0]["key"], "anna");
}

fn token(header: &Header, changes: &[(&str, Value)]) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let mut claims = json!({ "sub": "anna", "exp": now + 600, "aud": "shop", "iss": "us" });
    for (name, value) in changes {
        claims[*name] = value.clone();
    }
    encode(header, &claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

fn keys_and_tokens_let_in(backend: &str) {
    let site = begin(backend, SITE);
    let mut client = Client::of(&site.server);
    let answer = ask(&mut client, "/keys", "X-API-Key: key-of-shop\r\n");
    assert_eq!((answer.status, told(&answer, "x-auth-user")), (200, vec!["X-Auth-User: shop".to_owned()]));
    for lines in ["", "X-API-Key: other\r\n", "Authorization: Bearer key-of-shop\r\n"] {
        assert_eq!(ask(&mut client, "/keys", lines).status, 401, "{lines}");
    }
    // One that is right is enough, and none that is wrong beside it is a guess.
    for _ in 0..12 {
        let both = |key: &str, password: &str| format!("X-API-Key: {key}\r\n{}", basic("anna", password));
        for (lines, method) in [(both("other", "secret"), "basic"), (both("key-of-shop", "wrong"), "key")] {
            let answer = ask(&mut client, "/either", &lines);
            let told = told(&answer, "x-auth-method");
            assert_eq!((answer.status, told), (200, vec![format!("X-Auth-Method: {method}")]), "{lines}");
        }
    }
    assert_eq!(ask(&mut client, "/either", &format!("X-API-Key: other\r\n{}", basic("anna", "wrong"))).status, 401);
    let header = Header { kid: Some("one".to_owned()), ..Header::new(Algorithm::HS256) };
    let good = token(&header, &[]);
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let answer = ask(&mut client, "/tokens", &bearer(&good));
    let lines = ["X-Auth-User: anna".to_owned(), "X-Auth-Method: jwt".to_owned()];
    assert_eq!((answer.status, told(&answer, "x-auth-")), (200, lines.to_vec()));
    // A subject that a field cannot hold as it is would be somebody else there.
    let evil = token(&header, &[("sub", json!("a\r\nX-Evil: 1\u{7}b"))]);
    assert_eq!(ask(&mut client, "/tokens", &bearer(&evil)).status, 401);
    let critical = Header { crit: Some(vec!["b64".to_owned()]), ..header.clone() };
    assert_eq!(ask(&mut client, "/tokens", &bearer(&token(&critical, &[]))).status, 401);
    let (_, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let head = |text: &str| URL_SAFE_NO_PAD.encode(text);
    for (what, token) in [
        ("alg none", format!("{}.{body}.", head(r#"{"alg":"none"}"#))),
        ("alg swapped", format!("{}.{body}.{signature}", head(r#"{"alg":"ES256","kid":"one"}"#))),
        ("unknown alg", format!("{}.{body}.{signature}", head(r#"{"alg":"XS256"}"#))),
        ("unknown kid", token(&Header { kid: Some("two".to_owned()), ..header.clone() }, &[])),
        ("expired", token(&header, &[("exp", json!(1))])),
        ("of later", token(&header, &[("nbf", json!(99_999_999_999_u64))])),
        ("for others", token(&header, &[("aud", json!("elsewhere"))])),
        ("by others", token(&header, &[("iss", json!("them"))])),
        ("oversized", token(&header, &[("more", json!("x".repeat(12_000)))])),
        ("huge", token(&header, &[("more", json!("x".repeat(18_000)))])),
        ("cut", good[..good.len() - 4].to_owned()),
        ("no token", "a.b.c".to_owned()),
    ] {
        // Somebody who has guessed too often has to wait: from another address each time it is the token that counts.
        let answer = ask(&mut client, "/tokens", &bearer(&token));
        assert!([401, 429].contains(&answer.status), "{what}: {} {}", answer.status, answer.text());
        if answer.status == 401 {
            assert_eq!(
                answer.field("WWW-Authenticate"),
                Some("Bearer realm=\"restricted\", error=\"invalid_token\""),
                "{what}"
            );
        }
    }
    assert_eq!(ask(&mut client, "/tokens", &bearer(&good)).status, 200, "who has a good one is let in all the same");
}

fn address_and_credentials_go_together_as_the_route_says(backend: &str) {
    let file = r#"
[server]
trusted_proxies = ["loopback"]

[apps.web]
upstream = "{worker}"

[[routes]]
match.path = "/both"
app = "web"
allow = "10.0.0.0/8"
auth.basic = "{folder}/users"

[[routes]]
match.path = "/any"
app = "web"
allow = "10.0.0.0/8"
auth.basic = "{folder}/users"
satisfy = "any"

[[routes]]
match.path = "/not-denied"
app = "web"
deny = "10.0.0.0/8"
auth.basic = "{folder}/users"
satisfy = "any"
"#;
    let site = begin(backend, file);
    let mut client = Client::of(&site.server);
    let (none, right, wrong) = (String::new(), basic("anna", "secret"), basic("anna", "wrong"));
    for (path, address, lines, status) in [
        ("/both", "10.0.0.1", &right, 200),
        ("/both", "10.0.0.1", &none, 401),
        ("/both", "11.0.0.1", &right, 403),
        ("/any", "10.0.0.1", &none, 200),
        ("/any", "10.0.0.1", &wrong, 200),
        ("/any", "11.0.0.1", &right, 200),
        ("/any", "11.0.0.1", &none, 401),
        ("/any", "11.0.0.1", &wrong, 401),
        // Who is not among those that are kept out has shown nothing by that.
        ("/not-denied", "11.0.0.1", &none, 401),
        ("/not-denied", "11.0.0.1", &right, 200),
        ("/not-denied", "10.0.0.1", &none, 401),
    ] {
        let answer = ask(&mut client, path, &format!("X-Forwarded-For: {address}\r\n{lines}"));
        assert_eq!(answer.status, status, "{path} {address} {lines}");
    }
}

mod slow {
    use super::*;

    on_every_backend! {
        who_guesses_has_to_wait_and_who_knows_does_not
        guesses_that_come_at_once_are_no_more_than_others
        many_who_know_get_in_at_once
        equal_tries_are_checked_once_and_a_full_line_says_so
        a_broken_file_changes_nothing_and_says_where
    }

    fn who_guesses_has_to_wait_and_who_knows_does_not(backend: &str) {
        let site = begin(backend, &format!("[server]\ntrusted_proxies = ['loopback']\n{SITE}"));
        let mut client = Client::of(&site.server);
        let right = basic("anna", "secret");
        let mut from = |address: &str, lines: &str| {
            ask(&mut client, "/private", &format!("X-Forwarded-For: {address}\r\n{lines}"))
        };
        assert_eq!(from("192.0.2.1", &right).status, 200);
        let guesses: Vec<u16> =
            (0..14).map(|guess| from("192.0.2.1", &basic("anna", &format!("guess {guess}"))).status).collect();
        assert_eq!(guesses, [[401; 10].as_slice(), &[429; 4]].concat());
        let answer = from("192.0.2.1", &basic("anna", "guess again"));
        assert_eq!(answer.status, 429);
        assert!(answer.field("Retry-After").is_some() && answer.field("WWW-Authenticate").is_none());
        assert_eq!(from("192.0.2.1", &right).status, 200, "who is known already is let in");
        assert_eq!(from("192.0.2.2", &basic("anna", "guess")).status, 401, "others may make mistakes");
        let jobs = site.server.status()["helper_jobs"].as_u64();
        assert_eq!(jobs, Some(12), "beyond the limit nothing is computed");
    }

    /// What is answered to those who show these lines, all from one address and all at once.
    fn at_once(site: &crate::access::Site, lines: &[String]) -> Vec<u16> {
        let mut clients: Vec<Client> = lines.iter().map(|_| Client::of(&site.server)).collect();
        site.server.signal("STOP");
        until("it stands still", || site.server.is_stopped());
        for (client, lines) in clients.iter_mut().zip(lines) {
            client.send(format!("GET /private HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        }
        site.server.signal("CONT");
        clients.iter_mut().map(|client| client.answer().status).collect()
    }

    fn guesses_that_come_at_once_are_no_more_than_others(backend: &str) {
        let site = begin(backend, SITE);
        let guesses: Vec<String> = (0..40).map(|guess| basic("anna", &format!("guess {guess}"))).collect();
        let statuses = at_once(&site, &guesses);
        let of = |status: u16| statuses.iter().filter(|known| **known == status).count();
        assert_eq!((of(401), of(429)), (10, 30), "{statuses:?}");
        assert_eq!(site.server.status()["helper_jobs"], 10, "beyond the limit nothing is compared");
        let mut client = Client::of(&site.server);
        assert_eq!(ask(&mut client, "/private", &basic("anna", "secret")).status, 429, "the right one is none better");
    }

    fn many_who_know_get_in_at_once(backend: &str) {
        let site = begin(backend, SITE);
        let users: String = (0..40).map(|user| USERS.replace("anna", &format!("user-{user}"))).collect();
        std::fs::write(site.folder.path().join("users"), users).unwrap();
        assert!(site.reload(SITE).status.success());
        let right: Vec<String> = (0..40).map(|user| basic(&format!("user-{user}"), "secret")).collect();
        assert_eq!(at_once(&site, &right), [200; 40]);
        assert_eq!(site.server.status()["helper_jobs"], 40);
    }

    fn equal_tries_are_checked_once_and_a_full_line_says_so(backend: &str) {
        // Dear enough that a line forms.
        let users = "anna:$2y$05$NCjOOhHvCXFew8kW.NeWFu342vatsrjqSkr3aDxxzeIg4Y.5t.fEy\n";
        let file = format!("[server]\ntrusted_proxies = ['loopback']\n{SITE}");
        let site = begin(backend, &file);
        std::fs::write(site.folder.path().join("users"), users).unwrap();
        assert!(site.reload(&file).status.success());
        let mut clients: Vec<Client> = (0..60).map(|_| Client::of(&site.server)).collect();
        let mut send = |client: usize, password: &str| {
            let address = if client < 10 { 0 } else { client };
            let lines = format!("X-Forwarded-For: 192.0.2.{address}\r\n{}", basic("anna", password));
            clients[client].send(format!("GET /private HTTP/1.1\r\nHost: a\r\n{lines}\r\n"));
        };
        // All are there at once when it goes on.
        site.server.signal("STOP");
        until("it stands still", || site.server.is_stopped());
        (0..10).for_each(|client| send(client, "the same"));
        (10..60).for_each(|client| send(client, &format!("another {client}")));
        site.server.signal("CONT");
        // The loop goes on meanwhile.
        site.server.turn();
        let answers: Vec<Answer> = clients.iter_mut().map(Client::answer).collect();
        assert!(answers[..10].iter().all(|answer| answer.status == 401));
        let refused: Vec<&Answer> = answers.iter().filter(|answer| answer.status == 503).collect();
        let statuses: Vec<u16> = answers.iter().map(|answer| answer.status).collect();
        assert!(!refused.is_empty(), "{statuses:?}");
        assert!(refused.iter().all(|answer| answer.field("Retry-After") == Some("1")), "{}", refused[0].head);
        assert!(answers.iter().all(|answer| [401, 503].contains(&answer.status)));
        let counted = site.server.status();
        assert_eq!((&counted["helper_jobs"], &counted["auth_busy"]), (&json!(51), &json!(refused.len())));
    }

    fn a_broken_file_changes_nothing_and_says_where(backend: &str) {
        let site = begin(backend, SITE);
        let mut client = Client::of(&site.server);
        let (right, other) = (basic("anna", "secret"), basic("bert", "secret"));
        assert_eq!(ask(&mut client, "/private", &right).status, 200);
        std::fs::write(site.folder.path().join("users"), format!("{USERS}bert:$apr1$x$y\n")).unwrap();
        let told = site.reload(SITE);
        let said = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(!told.status.success(), "{said}");
        assert!(said.contains("users:2: an MD5 hash") && said.contains("hash-password"), "{said}");
        std::fs::write(site.folder.path().join("jwks"), "<html>Sign in</html>").unwrap();
        let said = String::from_utf8_lossy(&site.reload(SITE).stderr).into_owned();
        assert!(said.contains("jwks: this is HTML"), "{said}");
        assert_eq!(ask(&mut client, "/private", &right).status, 200, "what held holds");
        let files = files();
        std::fs::write(site.folder.path().join("jwks"), &files[3].1).unwrap();
        std::fs::write(site.folder.path().join("users"), USERS.replace("anna", "bert")).unwrap();
        let told = site.reload(SITE);
        let said = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.status.success() && said.contains("routes: changed"), "{said}");
        assert_eq!(ask(&mut client, "/private", &other).status, 200);
        assert_eq!(ask(&mut client, "/private", &right).status, 401, "whoever is taken out is out");
    }
}

#[test]
fn a_line_for_the_file_of_users_is_made_from_standard_input() {
    let run = |arguments: &[&str], input: &str| {
        let mut child = Command::new(PROGRAM)
            .arg("hash-password")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, line, _) = run(&["anna"], "secret\nmore\n");
    assert!(code == Some(0) && line.starts_with("anna:$argon2id$v=19$m=19456,t=2,p=1$"), "{line}");
    let (_, bcrypt, _) = run(&["--bcrypt"], "secret");
    assert!(bcrypt.starts_with("$2y$12$"), "{bcrypt}");
    let read = production_server::access::Passwords::parse(&format!("{line}bert:{bcrypt}"));
    assert!(read.is_ok(), "{read:?}");
    let (code, _, said) = run(&["anna"], "\n");
    assert!(code == Some(65) && said.contains("expected a password"), "{said}");
    // What would be no line of the file, or none of that user, is not made.
    let long = "n".repeat(257);
    for (name, reason) in [
        ("a:b", "without colons"),
        ("#a", "does not begin with #"),
        (" a", "without spaces at its ends"),
        ("a ", "without spaces at its ends"),
        ("a\tb", "without control characters"),
        (&long, "at most 256 bytes"),
        ("", "expected the name of a user"),
    ] {
        let (code, line, said) = run(&[name], "secret");
        assert!(code == Some(64) && line.is_empty() && said.contains(reason), "{name:?}: {code:?} {line} {said}");
    }
    for name in ["é", "a b", "a#", &long[1..]] {
        let (code, line, said) = run(&[name], "secret");
        let read = production_server::access::Passwords::parse(&line);
        assert!(code == Some(0) && read.is_ok(), "{name}: {code:?} {said} {read:?}");
    }
}

#[test]
fn a_terminal_shows_what_is_typed_again_whatever_ends_the_prompt() {
    let signals = [("INT", libc::SIGINT), ("TERM", libc::SIGTERM), ("HUP", libc::SIGHUP), ("QUIT", libc::SIGQUIT)];
    for (signal, number) in signals {
        let terminal = nix::pty::openpty(None, None).unwrap();
        let shows = || tcgetattr(&terminal.slave).unwrap().local_flags.contains(LocalFlags::ECHO);
        assert!(shows());
        let mut child = Command::new(PROGRAM)
            .args(["hash-password", "anna"])
            .stdin(terminal.slave.try_clone().unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("it asks", || !shows());
        send_signal(child.id(), signal);
        assert_eq!(child.wait().unwrap().signal(), Some(number), "it ends as others do");
        assert!(shows(), "{signal}");
    }
}
