//! Limits: how often and from where.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Site, site};
use crate::support::{Client, Server, Worker, folder, on_every_backend_and_tls, until};

on_every_backend_and_tls! {
    what_is_beyond_a_limit_is_refused_and_told_when_to_come_back
    what_one_limit_refuses_costs_nothing_of_the_others
    fields_tell_clients_apart_and_addresses_are_those_that_proxies_name
    who_has_to_wait_is_served_late
    who_leaves_while_it_waits_is_not_served
    who_waits_and_reads_nothing_is_cut
    answers_say_what_is_left_where_the_limit_says_so
    a_reload_keeps_what_was_used
    addresses_that_are_not_allowed_are_refused
    a_listener_says_itself_whose_requests_are_taken
    an_address_has_as_many_connections_as_it_may
    a_slow_route_leaves_workers_to_the_others
}

const SITE: &str = r#"
[apps.web]
upstream = "{worker}"

[limits.login]
rate = "2/h"

[limits.tenant]
rate = "1/h"
burst = 2
key = "field:X-Tenant"
status = 503

[limits.trial]
rate = "1/h"
dry_run = true

[[routes]]
match.path = "/login"
app = "web"
limits = "login"

[[routes]]
match.path = "/tenant"
respond = "served"
limits = ["tenant"]

[[routes]]
match.path = "/trial"
app = "web"
limits = "trial"

[[routes]]
app = "web"
"#;

fn statuses(client: &mut Client, request: &str, count: usize) -> Vec<u16> {
    (0..count).map(|_| client.ask(request).status).collect()
}

fn what_is_beyond_a_limit_is_refused_and_told_when_to_come_back(backend: &str) {
    let site = site(backend, SITE, &[]);
    let mut client = Client::of(&site.server);
    let post = "POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc";
    assert_eq!(statuses(&mut client, post, 2), [200, 200]);
    let answer = client.ask(post);
    assert_eq!(answer.status, 429, "{}", answer.text());
    let wait: u32 = answer.field("Retry-After").unwrap().parse().unwrap();
    assert!((1790..=1980).contains(&wait), "{wait}");
    assert_eq!(answer.field("RateLimit-Policy"), Some("\"login\";q=2;w=3600"));
    let told = answer.field("RateLimit").unwrap();
    assert!(told.starts_with("\"login\";r=0;t=1"), "{told}");
    // The connection goes on, the body of what was refused is no request, and other routes know nothing of it.
    let smuggled = "GET /other HTTP/1.1\r\nHost: a\r\n\r\n";
    let post = format!("POST /login HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{smuggled}", smuggled.len());
    assert_eq!(client.ask(&post).status, 429);
    assert_eq!(client.get("/other").status, 200);
    let page = client.ask("GET /login HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\n\r\n");
    assert!(page.status == 429 && page.text().starts_with("{\"error\":{\"status\":429"), "{}", page.text());
    // In a pipeline, too; and what is said of the inside is not limited.
    client.send("GET /login HTTP/1.1\r\nHost: a\r\n\r\nGET /other HTTP/1.1\r\nHost: a\r\n\r\n".as_bytes());
    assert_eq!((client.answer().status, client.answer().status), (429, 200));
    client.expect_alive();
    assert_eq!(statuses(&mut client, "GET /trial HTTP/1.1\r\nHost: a\r\n\r\n", 5), [200; 5]);
    let limits = site.server.limits();
    let login = &limits[0];
    assert_eq!((login["name"].as_str(), login["refused"].as_u64()), (Some("login"), Some(4)), "{limits:?}");
    assert_eq!(login["busiest"][0]["key"], "127.0.0.1");
    assert_eq!(login["busiest"][0]["count"], 4);
    let trial = limits.iter().find(|limit| limit["name"] == "trial").unwrap();
    assert_eq!((trial["refused"].as_u64(), trial["spared"].as_u64()), (Some(0), Some(4)));
    let seen = site.worker.everything();
    let reached = seen.windows(13).filter(|bytes| bytes == b" HTTP/1.1\r\nHo").count();
    assert_eq!(reached, 2 + 2 + 5, "what was refused has reached nobody");
    // Whoever closes is let go.
    let answer = client.ask("GET /login HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert_eq!((answer.status, answer.field("Connection")), (429, Some("close")));
    client.expect_end();
}

fn what_one_limit_refuses_costs_nothing_of_the_others(backend: &str) {
    let file = "[limits.each]\nrate = '3/h'\nkey = 'field:X-Key'\nheaders = true\n[limits.all]\nrate = '1/h'\nkey = 'all'\n\
                [apps.web]\nrespond = 'served'\n\
                [[routes]]\nmatch.path = '/two'\napp = 'web'\nlimits = ['each', 'all']\n\
                [[routes]]\napp = 'web'\nlimits = 'each'\n";
    let site = site(backend, file, &[]);
    let mut client = Client::of(&site.server);
    let two = "GET /two HTTP/1.1\r\nHost: a\r\nX-Key: k\r\n\r\n";
    assert_eq!(statuses(&mut client, two, 4), [200, 429, 429, 429]);
    let refused = client.ask(two);
    assert_eq!(refused.field("RateLimit-Policy"), Some("\"all\";q=1;w=3600"));
    let answer = client.ask("GET /one HTTP/1.1\r\nHost: a\r\nX-Key: k\r\n\r\n");
    assert!(answer.status == 200 && answer.field("RateLimit").unwrap().starts_with("\"each\";r=1;"), "{}", answer.head);
    let limits = site.server.limits();
    let refused = |name: &str| limits.iter().find(|limit| limit["name"] == name).unwrap()["refused"].as_u64();
    assert_eq!((refused("each"), refused("all")), (Some(0), Some(4)));
}

fn fields_tell_clients_apart_and_addresses_are_those_that_proxies_name(backend: &str) {
    let trusting = format!("[server]\ntrusted_proxies = ['loopback']\n{SITE}");
    let site = site(backend, &trusting, &[]);
    let mut client = Client::of(&site.server);
    let mut tenant =
        |name: &str| client.ask(&format!("GET /tenant HTTP/1.1\r\nHost: a\r\nX-Tenant: {name}\r\n\r\n")).status;
    assert_eq!([tenant("secret-a"), tenant("secret-a"), tenant("secret-a")], [200, 200, 503]);
    assert_eq!([tenant("secret-b"), tenant("secret-a")], [200, 503]);
    let limits = site.server.limits();
    let shown = limits.iter().find(|limit| limit["name"] == "tenant").unwrap()["busiest"][0]["key"].clone();
    assert_eq!(shown, "X-Tenant: secr…", "only its beginning is told");
    let mut login = |address: &str| {
        client.ask(&format!("GET /login HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n\r\n")).status
    };
    assert_eq!([login("192.0.2.1"), login("192.0.2.1"), login("192.0.2.1"), login("192.0.2.2")], [200, 200, 429, 200]);
    // One network is one client, where addresses are many.
    assert_eq!([login("2001:db8::1"), login("2001:db8::2"), login("2001:db8::3")], [200, 200, 429]);
    assert_eq!(login("2001:db8:0:1::1"), 200);
    // What stands left of it was said by whoever likes to be somebody else each time.
    assert_eq!(login("198.51.100.7, 192.0.2.1"), 429);
}

fn who_has_to_wait_is_served_late(backend: &str) {
    // The fourth would have to wait for three seconds: a busy machine has one of them to bring all four.
    let file =
        "[limits.slow]\nrate = '1/s'\nburst = 1\ndelay = '2s'\neverywhere = true\n\n[apps.web]\nrespond = 'served'\n";
    let site = site(backend, file, &[]);
    let mut clients: Vec<Client> = (0..4).map(|_| Client::of(&site.server)).collect();
    clients.iter_mut().for_each(|client| client.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n".as_bytes()));
    let mut answers: Vec<u16> = clients.iter_mut().map(|client| client.answer().status).collect();
    answers.sort_unstable();
    assert_eq!(answers, [200, 200, 200, 429], "one at once, two late, and one would be too late");
    let limits = site.server.limits();
    assert_eq!((limits[0]["delayed"].as_u64(), limits[0]["refused"].as_u64()), (Some(2), Some(1)), "{limits:?}");
    let counted = site.server.status()["requests"].as_u64().unwrap();
    assert_eq!(counted, 4, "who waits is counted once");
    // What comes behind one that waits waits with it, and a connection that ends meanwhile is let go.
    let mut client = Client::of(&site.server);
    let two = "GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /server HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(two.as_bytes());
    let first = client.answer().status;
    assert!([200, 429].contains(&first), "{first}");
    assert_eq!(client.answer().text(), "ok");
    drop(client);
    drop(clients);
    until("all have left", || site.server.status()["active_connections"] == 0);
}

/// Who finishes sending has left, unless its connection was to end with that request, or its app serves such clients; bytes behind the request
/// that waits do not hide that.
fn who_leaves_while_it_waits_is_not_served(backend: &str) {
    let file = "[limits.slow]\nrate = '1/3s'\nburst = 1\ndelay = '20s'\neverywhere = true\nkey = 'field:X-Key'\n\n\
                [apps.web]\nupstream = '{worker}'\n\n[apps.serves]\nupstream = '{worker}'\nhalf_close = 'serve'\n\n\
                [[routes]]\nmatch.path = '/serves/*'\napp = 'serves'\n\n[[routes]]\napp = 'web'\n";
    let site = site(backend, file, &[]);
    let ended = [
        ("/left", "", "", false),
        ("/behind", "", "GET /never HTTP/1.1\r\n", false),
        ("/closes", "Connection: close\r\n", "", true),
        ("/serves/kept", "", "", true),
    ];
    let mut clients = Vec::new();
    for (path, line, behind, served) in ended {
        let mut client = Client::of(&site.server);
        let request = |path: &str, line: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Key: {path}\r\n{line}\r\n");
        // The first uses the burst up.
        assert_eq!(client.ask(&request(path, "")).status, 200);
        client.send(request(path, line));
        if !behind.is_empty() {
            until("the request waits", || {
                let limits = site.server.limits();
                limits[0]["delayed"].as_u64() == Some(clients.len() as u64 + 1)
            });
            client.send(behind);
        }
        client.finish();
        clients.push((client, path, served));
    }
    for (client, path, served) in &mut clients {
        assert_eq!(client.whole_answer().map(|answer| answer.status), served.then_some(200), "{path}");
    }
    let seen = String::from_utf8_lossy(&site.worker.everything()).into_owned();
    for (_, path, served) in &clients {
        assert_eq!(seen.matches(&format!("GET {path} ")).count(), 1 + usize::from(*served), "{path}");
    }
    drop(clients);
    until("all have left", || site.server.status()["active_connections"] == 0);
}

/// The wait has the connection's timer, and gives it back to the clock of what was sent before.
fn who_waits_and_reads_nothing_is_cut(backend: &str) {
    const LONG: usize = 16 << 20;
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            let length = head.split('/').nth(1).and_then(|length| length.parse().ok()).unwrap_or(LONG);
            incoming.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n"));
            incoming.send(vec![b'x'; length]);
        }
    });
    let folder = folder();
    let (path, door) = (folder.path().join("site.toml"), folder.path().join("door"));
    let file = "[limits.slow]\nrate = '1/s'\nburst = 1\ndelay = '20s'\nkey = 'field:X-Key'\n\n\
                [apps.web]\nupstream = '{worker}'\nconcurrency = 64\n\n[[routes]]\napp = 'web'\nlimits = 'slow'\n";
    std::fs::write(&path, super::filled(file, &worker, &folder)).unwrap();
    let at_door = format!("unix:{}", door.display());
    // The second answer is more than memory takes, so that its worker waits.
    let little = ["--spool-bytes", "0", "--buffer-bytes", "8MiB", "--write-timeout", "1s"];
    let flags = ["-f", path.to_str().unwrap(), "--listen", "127.0.0.1:0", "--listen", &at_door];
    let server = Server::start(backend, &[&flags[..], &little].concat());
    // One of them is a little more than what the kernel takes: the next request is read, and waits.
    let clients: Vec<UnixStream> = (0..24)
        .map(|number| {
            let mut stream = UnixStream::connect(&door).unwrap();
            let line = format!("Host: a\r\nX-Key: {number}\r\n\r\n");
            let length = 64 * 1024 + number * 16 * 1024;
            write!(stream, "GET /{length}/ HTTP/1.1\r\n{line}GET /long HTTP/1.1\r\n{line}").unwrap();
            stream
        })
        .collect();
    until("some have waited", || server.limits()[0]["delayed"].as_u64() > Some(0));
    until("all are cut", || server.status()["active_connections"] == 0);
    drop(clients);
}

const TELLING: &str = r#"
[server]
trusted_proxies = ["loopback"]

[apps.web]
upstream = "{worker}"

[limits.all]
rate = "4/h"
headers = true
everywhere = true

[limits.tenant]
rate = "60/h"
key = "field:X-Tenant"
headers = true

[limits.silent]
rate = "100/h"

[limits.trial]
rate = "1/h"
dry_run = true
headers = true

[limits.person]
rate = "10/h"
key = "user"
headers = true

[[routes]]
match.path = "/tenant"
app = "web"
limits = ["tenant", "silent", "trial"]
response_fields.set = { X-Route = "tenant" }

[[routes]]
match.path = "/fixed"
respond = "fixed"
limits = "silent"

[[routes]]
match.path = "/files/*"
static = { root = "{folder}/files", prefix = "/files" }

[[routes]]
match.path = "/moved"
redirect = "/fixed"

[[routes]]
match.path = "/person"
app = "web"
limits = "person"
auth.keys = "{folder}/keys"
"#;

fn answers_say_what_is_left_where_the_limit_says_so(backend: &str) {
    // The SHA-256 of "secret".
    let keys = "shop:2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b\n";
    let site = site(backend, TELLING, &[("files/a.txt", "a file"), ("keys", keys)]);
    let told = |tenant: &str, path: &str, more: &str| {
        let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {tenant}\r\n{more}\r\n");
        let answer = Client::of(&site.server).ask(&request);
        let fields = ["RateLimit-Policy", "RateLimit"].map(|name| answer.field(name).unwrap_or_default().to_owned());
        (answer.status, fields[0].clone(), fields[1].clone(), answer)
    };
    let (status, policy, left, answer) = told("192.0.2.1", "/tenant", "X-Tenant: a\r\n");
    assert_eq!((status, policy.as_str()), (200, "\"all\";q=4;w=3600, \"tenant\";q=60;w=3600"));
    assert_eq!(left, "\"all\";r=3;t=900, \"tenant\";r=59;t=60");
    assert_eq!(answer.field("X-Route"), Some("tenant"), "what the route says is said as well");
    assert!(answer.text().contains("/tenant"), "{}", answer.text());
    // By whatever answers: the loop with what is fixed, with a file, with another place; and where no route is.
    let (_, policy, left, _) = told("192.0.2.1", "/fixed", "");
    assert_eq!((policy.as_str(), &left[..9]), ("\"all\";q=4;w=3600", "\"all\";r=2"));
    assert_eq!(&told("192.0.2.1", "/files/a.txt", "").2[..9], "\"all\";r=1");
    assert_eq!(&told("192.0.2.1", "/moved", "").2[..9], "\"all\";r=0");
    let (status, policy, left, _) = told("192.0.2.1", "/fixed", "");
    assert_eq!((status, policy.as_str()), (429, "\"all\";q=4;w=3600"));
    assert!(left.starts_with("\"all\";r=0;t=8") || left == "\"all\";r=0;t=900", "{left}");
    // A client's own words are no part of an answer to somebody else.
    assert_eq!(&told("192.0.2.2", "/nothing", "").2[..9], "\"all\";r=3");
    // Credentials that were refused have used nothing of what somebody has.
    let (status, _, left, _) = told("192.0.2.2", "/person", "");
    assert_eq!((status, &left[..9], left.contains("person")), (401, "\"all\";r=2", false), "{left}");
    let (status, _, left, _) = told("192.0.2.2", "/person", "X-Api-Key: secret\r\n");
    assert_eq!((status, left.contains("\"person\";r=9;t=360")), (200, true), "{left}");
    // What the server says of itself is not limited, and a reload takes the fields away.
    assert_eq!(told("192.0.2.2", "/server", "").2, "");
    assert!(site.reload("[apps.web]\nupstream = '{worker}'\n").status.success());
    assert_eq!(told("192.0.2.2", "/tenant", "").2, "");
}

fn a_reload_keeps_what_was_used(backend: &str) {
    let site = site(backend, SITE, &[]);
    let mut client = Client::of(&site.server);
    let request = "GET /login HTTP/1.1\r\nHost: a\r\n\r\n";
    assert_eq!(statuses(&mut client, request, 3), [200, 200, 429]);
    let more = SITE.replace("rate = \"2/h\"", "rate = \"4/h\"\nburst = 3");
    let told = site.reload(&more);
    let said = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(told.status.success() && said.contains("limits: changed"), "{said}");
    // Half an hour was used of the forty-five minutes that three of them take now.
    assert_eq!(statuses(&mut client, request, 2), [429, 429]);
    let wrong = SITE.replace("rate = \"2/h\"", "rate = \"2/fortnight\"");
    let told = site.reload(&wrong);
    let said = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(!told.status.success() && said.contains("limits.login.rate"), "{said}");
    assert_eq!(client.ask(request).status, 429, "what held holds");
    let without = SITE.replace("limits = \"login\"\n", "");
    assert!(site.reload(&without).status.success());
    assert_eq!(client.ask(request).status, 200);
}

fn addresses_that_are_not_allowed_are_refused(backend: &str) {
    let file = r#"
[server]
trusted_proxies = ["loopback"]
deny = ["203.0.113.0/24"]

[[routes]]
match.path = "/inside"
allow = ["10.0.0.0/8", "2001:db8::/32"]
deny = "10.1.0.0/16"
respond = "inside"

[[routes]]
match.path = "/outside"
respond = "outside"
"#;
    let site = site(backend, file, &[]);
    let mut client = Client::of(&site.server);
    let mut ask = |path: &str, address: &str| {
        client.ask(&format!("GET {path} HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: {address}\r\n\r\n")).status
    };
    for (path, address, status) in [
        ("/inside", "10.2.3.4", 200),
        ("/inside", "2001:db8::7", 200),
        ("/inside", "10.1.2.3", 403),
        ("/inside", "11.0.0.1", 403),
        ("/inside", "::ffff:10.2.3.4", 200),
        ("/outside", "11.0.0.1", 200),
        ("/outside", "203.0.113.7", 403),
        ("/nothing", "203.0.113.7", 403),
        ("/nothing", "11.0.0.1", 404),
    ] {
        assert_eq!(ask(path, address), status, "{path} {address}");
    }
    let status = site.server.status();
    assert_eq!((&status["denied"], &status["errors"]), (&4.into(), &4.into()));
}

fn a_listener_says_itself_whose_requests_are_taken(backend: &str) {
    let (folder, worker) = (folder(), Worker::echo());
    let file = |all: &str, own: &str| {
        format!(
            "[server]\n{all}\n[[listen]]\naddress = '127.0.0.1:0'\n[[listen]]\naddress = 'unix:{{folder}}/door'\n{own}\n\
             [[routes]]\nmatch.path = '/kept'\nallow = '10.0.0.0/8'\nrespond = 'kept'\n[[routes]]\nrespond = 'in'\n"
        )
    };
    let (path, door) = (folder.path().join("site.toml"), folder.path().join("door"));
    std::fs::write(&path, super::filled(&file("", ""), &worker, &folder)).unwrap();
    let at_door = format!("unix:{}", door.display());
    let flags = ["-f", path.to_str().unwrap(), "--listen", "127.0.0.1:0", "--listen", &at_door];
    let site = Site { server: Server::start(backend, &flags), worker, folder };
    let by_door = |target: &str| -> u16 {
        let mut stream = UnixStream::connect(&door).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    };
    // Who comes by a Unix socket has no address.
    for (all, own, by_address, unknown) in [
        ("", "", 200, 200),
        ("deny = 'loopback'", "", 403, 200),
        ("allow = 'loopback'", "", 200, 403),
        ("allow = 'loopback'", "allow = 'unix'", 200, 200),
        ("allow = 'loopback'\ndeny = 'unix'", "allow = 'unix'", 200, 403),
        ("allow = 'loopback'\ndeny = 'unix'", "allow = 'unix'\ndeny = '10.0.0.0/8'", 200, 200),
        ("", "deny = ['10.0.0.0/8', 'unix']", 200, 403),
        ("", "allow = '10.0.0.0/8'", 200, 403),
    ] {
        let told = site.reload(&file(all, own));
        let said = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
        let tells = said.contains(&format!("listener {at_door}: whose requests are taken"));
        assert!(tells || own.is_empty(), "{said}");
        let statuses = || (Client::of(&site.server).get("/").status, by_door("/"));
        until(&format!("{all} | {own}"), || statuses() == (by_address, unknown));
        assert_eq!((Client::of(&site.server).get("/kept").status, by_door("/kept")), (403, 403), "{all} | {own}");
        assert_eq!(by_door("/server"), 200, "what the server says of itself is another matter");
    }
}

fn an_address_has_as_many_connections_as_it_may(backend: &str) {
    let server = Server::start(backend, &["--respond", "served", "--connections-per-ip", "2"]);
    let (mut first, mut second) = (server.client(), server.client());
    first.expect_alive();
    second.expect_alive();
    let third = Client::reach(server.address).and_then(|mut third| third.stream.read(&mut [0]));
    assert!(matches!(third, Ok(0) | Err(_)), "a third was let in");
    until("it was counted", || server.status()["crowded_out"] == 1);
    drop(first);
    until("there is a place again", || {
        Client::reach(server.address).is_ok_and(|mut next| {
            next.try_send(b"GET /server HTTP/1.1\r\nHost: a\r\n\r\n") && next.whole_answer().is_some()
        })
    });
    second.expect_alive();
}

/// Two upstreams with one request at a time each: the report may have one of them.
fn a_slow_route_leaves_workers_to_the_others(backend: &str) {
    let released = Arc::new(AtomicBool::new(false));
    let slow = |released: Arc<AtomicBool>| {
        Worker::new(move |incoming| {
            while let Some((head, _)) = incoming.request() {
                while head.starts_with("GET /report") && !released.load(Ordering::Relaxed) {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                incoming.respond(b"done");
            }
        })
    };
    let (one, other) = (slow(released.clone()), slow(released.clone()));
    let file = format!(
        "[apps.web]\nupstream = ['{}', '{}']\ntimeouts.read = '30s'\n[[routes]]\nmatch.path = '/report'\napp = 'web'\nmax_in_flight = 1\n\
         [[routes]]\napp = 'web'\n",
        one.url, other.url
    );
    let site = site(backend, &file, &[]);
    let mut first = Client::of(&site.server);
    first.begin("/report");
    let asked = || [&one, &other].iter().any(|worker| worker.of("/report").is_some());
    until("a worker has it", asked);
    let mut client = Client::of(&site.server);
    let answer = client.get("/report");
    assert_eq!((answer.status, answer.field("Retry-After")), (503, Some("1")), "{}", answer.text());
    assert_eq!(client.get("/page").status, 200, "the other worker is free");
    // The client leaves, and its worker is still at it; nor does a reload forget that.
    drop(first);
    until("it has left", || site.server.status()["client_gone"] == 1);
    assert_eq!(client.get("/report").status, 503);
    assert!(site.reload(&format!("{file}\n[[routes]]\nrespond = 'more'\n")).status.success());
    assert_eq!(client.get("/report").status, 503);
    released.store(true, Ordering::Relaxed);
    until("its worker is done", || client.get("/report").status == 200);
    assert_eq!(client.get("/report").text(), "done");
}

#[test]
fn a_flag_limits_every_client() {
    let worker = Worker::echo();
    let backend = if cfg!(backend_readiness) { "epoll" } else { "io_uring" };
    let server = Server::before(backend, &worker.url, &["--rate-limit", "3/h"]);
    let mut client = server.client();
    assert_eq!(statuses(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 5), [200, 200, 200, 429, 429]);
    let mut other = Client::from("127.0.0.2", &server);
    assert_eq!(statuses(&mut other, "GET / HTTP/1.1\r\nHost: a\r\n\r\n", 4), [200, 200, 200, 429]);
}
