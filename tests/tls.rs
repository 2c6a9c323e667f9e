//! TLS: what a client that speaks it sees. That the rest of the suite holds inside of it, `on_every_backend_and_tls` shows.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, ClientConnection, Error, HandshakeKind, RootCertStore, StreamOwned};

use crate::support::tls::{Pair, SUFFIX};
use crate::support::{Client, DEADLINE, PROGRAM, Server, Worker, folder, on_every_backend, pattern, until};
use crate::upgrades::{Line, meanwhile};

on_every_backend! {
    the_name_that_is_asked_for_chooses_the_certificate
    a_name_that_nobody_has_is_turned_away_where_only_known_ones_are_served
    a_protocol_that_nobody_speaks_inside_is_refused
    what_the_library_is_silent_about_is_told
    a_record_that_cannot_be_opened_ends_the_session_with_an_alert
    bodies_pass_both_ways_in_both_versions
    an_end_in_order_is_said_and_a_cut_is_not
    a_reload_changes_certificates_and_sessions_go_on
    a_reload_with_a_wrong_file_changes_nothing
    a_certificate_that_does_not_hold_keeps_no_server_from_starting_and_replaces_none_that_holds
    files_that_somebody_else_renews_are_read_by_themselves
    a_renewed_certificate_whose_time_has_not_come_is_shown_once_it_has
    a_reload_changes_whose_certificates_are_accepted
    a_session_goes_on_over_an_upgrade
    a_session_that_began_during_an_upgrade_goes_on
    a_request_without_tls_is_told_so
    a_handshake_that_does_not_come_costs_a_place_for_its_time_only
    records_of_one_byte_and_endless_messages_are_bounded
    a_hello_that_never_ends_is_cut_and_a_long_one_is_not
    certificates_of_clients_may_be_long
    a_crowd_that_comes_at_once_is_served
    clients_show_certificates_that_nobody_can_forge
    a_laptop_needs_one_word
    plain_requests_are_sent_to_where_tls_is
    browsers_are_told_to_come_with_tls_only
}

type Stream = StreamOwned<ClientConnection, TcpStream>;

const ASK: &[u8] = b"GET /server HTTP/1.1\r\nHost: a\r\n\r\n";

/// A client whose handshake is done.
fn connect(address: SocketAddr, config: &Arc<ClientConfig>, name: &str) -> Result<Stream, Error> {
    let stream = TcpStream::connect_timeout(&address, DEADLINE).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    let connection = ClientConnection::new(config.clone(), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        if let Err(error) = stream.conn.complete_io(&mut stream.sock) {
            return Err(error
                .get_ref()
                .and_then(|inner| inner.downcast_ref::<Error>())
                .cloned()
                .unwrap_or_else(|| panic!("{error}")));
        }
    }
    Ok(stream)
}

/// Sends a request, and reads until what has come ends so.
fn ask(stream: &mut Stream, request: &[u8], end: &[u8]) -> String {
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(end) {
        let mut buffer = [0; 16 * 1024];
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the connection ended after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// Flags for these certificates.
fn flags(folder: &Path, pairs: &[(&str, &Pair)]) -> Vec<String> {
    let of = |(name, pair): &(&str, &Pair)| {
        let (certificate, key) = pair.write(folder, name);
        [format!("--tls-cert={}", certificate.display()), format!("--tls-key={}", key.display())]
    };
    pairs.iter().flat_map(of).collect()
}

fn start(backend: &str, flags: &[String], more: &[&str]) -> Server {
    let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Server::start(backend, &[&["--respond", "hello"], &flags[..]].concat())
}

/// Trusts all of them.
fn trusting(pairs: &[&Pair]) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    pairs.iter().for_each(|pair| roots.add(pair.certificate.clone()).unwrap());
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

fn shown(stream: &Stream) -> CertificateDer<'static> {
    stream.conn.peer_certificates().unwrap()[0].clone()
}

fn the_name_that_is_asked_for_chooses_the_certificate(backend: &str) {
    let folder = folder();
    let [first, exact, wild] = [&["first.test"][..], &["a.wild.test", "other.test"], &["*.wild.test"]].map(Pair::of);
    let flags = flags(folder.path(), &[("first", &first), ("exact", &exact), ("wild", &wild)]);
    let server = start(backend, &flags, &[]);
    let config = trusting(&[&first, &exact, &wild]);
    for (name, pair) in
        [("first.test", &first), ("a.wild.test", &exact), ("OTHER.test", &exact), ("b.wild.test", &wild)]
    {
        let mut stream = connect(server.address, &config, name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(shown(&stream), pair.certificate, "{name}");
        assert!(ask(&mut stream, ASK, b"ok").starts_with("HTTP/1.1 200 "));
    }
    for name in ["wild.test", "a.b.wild.test", "nobody.test"] {
        let refused = connect(server.address, &config, name).unwrap_err();
        assert!(matches!(refused, Error::InvalidCertificate(_)), "{name} is shown the first: {refused}");
    }
    let shown = server.certificates();
    let names: Vec<&str> = shown.iter().filter_map(|one| one["names"][0].as_str()).collect();
    assert_eq!(names, ["first.test", "a.wild.test", "*.wild.test"]);
    assert_eq!(shown[0]["listener"], server.address.to_string());
    assert!(shown.iter().all(|one| one["not_after"].as_i64() > Some(4_000_000_000)), "{shown:?}");
    until("those are counted", || server.status()["tls_refused"] == 3);
    assert_eq!(server.status()["tls_handshakes"], 4);
}

fn a_name_that_nobody_has_is_turned_away_where_only_known_ones_are_served(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let server = start(backend, &flags(folder.path(), &[("a", &pair)]), &["--tls-strict-sni", "on"]);
    let config = trusting(&[&pair]);
    for name in ["b.test", "127.0.0.1"] {
        let refused = connect(server.address, &config, name).unwrap_err();
        assert_eq!(refused, Error::AlertReceived(AlertDescription::UnrecognisedName), "{name}");
    }
    assert!(connect(server.address, &config, "a.test").is_ok());
    assert_eq!(server.status()["tls_unknown_name"], 2);
}

fn a_protocol_that_nobody_speaks_inside_is_refused(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let server = start(backend, &flags(folder.path(), &[("a", &pair)]), &[]);
    for (offered, spoken) in [
        (&["h2", "http/1.1"][..], Some("http/1.1")),
        (&["http/1.0"], Some("http/1.0")),
        (&["http/1.0", "http/1.1"], Some("http/1.1")),
        (&["spdy/1"], None),
        (&[], Some("")),
    ] {
        let mut config = pair.client();
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        match connect(server.address, &Arc::new(config), "a.test") {
            Ok(stream) => {
                let protocol = stream.conn.alpn_protocol().unwrap_or_default();
                assert_eq!(Some(String::from_utf8_lossy(protocol).as_ref()), spoken);
            }
            Err(error) => {
                assert_eq!((error, spoken), (Error::AlertReceived(AlertDescription::NoApplicationProtocol), None));
            }
        }
    }
    assert_eq!(server.status()["tls_nothing_in_common"], 1);
}

/// Another record in the middle of a message, one that will have 64 KiB, and signatures that no key here makes.
fn what_the_library_is_silent_about_is_told(backend: &str) {
    let server = Server::start(&format!("{backend}{SUFFIX}"), &["--respond", "hello"]);
    let mut hello = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 22]].concat();
    for extension in [[0, 10, 0, 4, 0, 2, 0, 23], [0, 13, 0, 4, 0, 2, 5, 3]] {
        hello.extend(extension);
    }
    hello.extend([0, 11, 0, 2, 1, 0]);
    let message = [&[1, 0, 0, hello.len() as u8][..], &hello].concat();
    // The same claims to be of SSL 3, and another one speaks TLS 1.3 without a share of a key.
    let of_ssl_3 = [&message[..4], &[3, 0], &message[6..]].concat();
    let mut without_share = [&hello[..37], &[0x13, 1], &hello[39..]].concat();
    without_share.extend([0, 43, 0, 3, 2, 3, 4]);
    without_share[42] += 7;
    let without_share = [&[1, 0, 0, without_share.len() as u8][..], &without_share].concat();
    // Two that cannot say which signatures they take: of TLS 1.1, and of TLS 1.2.
    let mut without_signatures = [&hello[..51], &hello[59..]].concat();
    without_signatures[42] -= 8;
    let without_signatures = [&[1, 0, 0, without_signatures.len() as u8][..], &without_signatures].concat();
    let of_tls_1_1 = [&without_signatures[..4], &[3, 2], &without_signatures[6..]].concat();
    let of_ssl_2 = [&[128, 46, 1, 3, 4, 0, 3, 0, 0, 0, 32, 0x13, 1, 0][..], &[7; 32]].concat();
    let record = |kind: u8, body: &[u8]| [&[kind, 3, 3, 0, body.len() as u8][..], body].concat();
    for (sent, alert, counter, count) in [
        ([record(22, &message[..40]), record(23, b"x")].concat(), 10, "tls_failed", 1),
        (record(22, &[1, 1, 0, 0]), 50, "tls_failed", 2),
        (record(22, &[&[2], &message[1..]].concat()), 10, "tls_failed", 3),
        (record(22, &message), 40, "tls_nothing_in_common", 1),
        (record(22, &of_ssl_3), 70, "tls_nothing_in_common", 2),
        (record(22, &without_share), 109, "tls_nothing_in_common", 3),
        (record(22, &of_tls_1_1), 70, "tls_nothing_in_common", 4),
        (record(22, &without_signatures), 40, "tls_nothing_in_common", 5),
        (of_ssl_2, 70, "tls_nothing_in_common", 6),
    ] {
        let mut client = Client::to(server.own);
        client.send(&sent);
        let (rest, _) = client.rest();
        assert_eq!(rest, [21, 3, 3, 0, 2, 2, alert], "{counter}");
        until("it is counted", || server.status()[counter] == count);
    }
}

fn a_record_that_cannot_be_opened_ends_the_session_with_an_alert(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let server = start(backend, &flags(folder.path(), &[("a", &pair)]), &[]);
    let mut stream = connect(server.address, &Arc::new(pair.client()), "a.test").unwrap();
    ask(&mut stream, ASK, b"ok");
    // A whole one, and the next behind it.
    stream.sock.write_all(&[&[23, 3, 3, 0, 20][..], &[7; 20]].concat().repeat(2)).unwrap();
    let error = stream.read(&mut [0]).unwrap_err();
    assert!(error.to_string().contains("BadRecordMac"), "{error}");
    until("it is counted", || server.status()["tls_broken"] == 1);
    assert!(!server.has_said("panic"));
}

fn bodies_pass_both_ways_in_both_versions(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let flags = flags(folder.path(), &[("a", &pair)]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &flags);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut roots = RootCertStore::empty();
        roots.add(pair.certificate.clone()).unwrap();
        let config = ClientConfig::builder_with_protocol_versions(&[version]).with_root_certificates(roots);
        let config = Arc::new(config.with_no_client_auth());
        let mut stream = connect(server.address, &config, "a.test").unwrap();
        for size in [0, 1, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 1, 3_000_000] {
            let body = pattern(size);
            let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n");
            let answer = ask(&mut stream, &[head.as_bytes(), &body].concat(), if size == 0 { b"\r\n" } else { &body });
            assert!(
                answer.contains("x-forwarded-proto: https") || answer.contains("X-Forwarded-Proto: https"),
                "{size}"
            );
        }
    }
}

fn an_end_in_order_is_said_and_a_cut_is_not(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let flags = flags(folder.path(), &[("a", &pair)]);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            let whole = head.starts_with("GET /whole");
            incoming.send(if whole {
                "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"
            } else {
                "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"
            });
            if !whole {
                return;
            }
        }
    });
    let server = Server::before(backend, &worker.url, &flags);
    for (path, clean) in [("/whole", true), ("/cut", false)] {
        let mut stream = connect(server.address, &Arc::new(pair.client()), "a.test").unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer);
        assert!(answer.ends_with(b"\r\n\r\nabc"), "{path}: {}", String::from_utf8_lossy(&answer));
        assert_eq!(end.is_ok(), clean, "{path}: {end:?}");
    }
}

fn a_reload_changes_certificates_and_sessions_go_on(backend: &str) {
    let (folder, old, new) = (folder(), Pair::of(&["a.test"]), Pair::of(&["a.test"]));
    let server = start(backend, &flags(folder.path(), &[("a", &old)]), &[]);
    let config = trusting(&[&old, &new]);
    let mut stream = connect(server.address, &config, "a.test").unwrap();
    assert_eq!((shown(&stream), stream.conn.handshake_kind()), (old.certificate.clone(), Some(HandshakeKind::Full)));
    // What it can come back with is read behind the handshake.
    ask(&mut stream, ASK, b"ok");
    new.write(folder.path(), "a");
    server.signal("HUP");
    let fresh = trusting(&[&old, &new]);
    let no_tickets = |config: &Arc<ClientConfig>| {
        let mut config = ClientConfig::clone(config);
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    };
    until("the new one is shown", || {
        shown(&connect(server.address, &no_tickets(&fresh), "a.test").unwrap()) == new.certificate
    });
    let mut again = connect(server.address, &config, "a.test").unwrap();
    assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    ask(&mut again, ASK, b"ok");
    ask(&mut stream, ASK, b"ok");
    assert_eq!(server.status()["tls_resumed"], 1);
}

/// The file of a chain whose second certificate was cut within.
fn with_broken_issuer(pair: &Pair) -> String {
    let lines: Vec<&str> = pair.certificate_pem.lines().collect();
    format!("{}\n{}\n{}\n{}\n", lines.join("\n"), lines[0], lines[1], lines[lines.len() - 1])
}

fn a_reload_with_a_wrong_file_changes_nothing(backend: &str) {
    let (folder, pair, other) = (folder(), Pair::of(&["a.test"]), Pair::of(&["a.test"]));
    let server = start(backend, &flags(folder.path(), &[("a", &pair)]), &[]);
    let path = |name: &str| folder.path().join(name);
    for (break_it, reason) in [
        (Box::new(|| drop(other.write(folder.path(), "b"))) as Box<dyn Fn()>, ""),
        (
            Box::new(|| assert!(std::fs::copy(path("b.key"), path("a.key")).unwrap() > 0)),
            "the key is not that of the certificate in",
        ),
        (Box::new(|| std::fs::remove_file(path("a.key")).unwrap()), "a.key: it cannot be read"),
        (Box::new(|| std::fs::create_dir(path("a.key")).unwrap()), "a.key: it is a directory"),
        (Box::new(|| std::fs::write(path("a.pem"), "nonsense").unwrap()), "a.pem: there is no certificate in it"),
        (Box::new(|| std::fs::remove_file(path("a.pem")).unwrap()), "a.pem: it cannot be read"),
        (
            Box::new(|| std::fs::write(path("a.pem"), with_broken_issuer(&pair)).unwrap()),
            "a.pem: certificate 2 of 2 in it cannot be read",
        ),
    ] {
        break_it();
        server.signal("HUP");
        until("it is told", || reason.is_empty() || server.has_said(reason));
        let stream = connect(server.address, &trusting(&[&pair]), "a.test").unwrap();
        assert_eq!(shown(&stream), pair.certificate);
    }
}

fn a_certificate_that_does_not_hold_keeps_no_server_from_starting_and_replaces_none_that_holds(backend: &str) {
    let (folder, good) = (folder(), Pair::of(&["a.test"]));
    let [old, older, future] =
        [(2019, 2020), (2018, 2019), (2219, 2220)].map(|(from, until)| Pair::of_years(&["a.test"], from, until));
    let path = |name: &str| folder.path().join(name);
    let configure = |more: &str| {
        let text = "listen = [{ address = \"127.0.0.1:0\" }]\ntls.cert = \"a.pem\"\ntls.key = \"a.key\"\n";
        std::fs::write(path("server.toml"), format!("{text}{more}")).unwrap();
    };
    for (broken, what) in [(&old, "has expired on 2020-01-01"), (&future, "does not hold before 2219-01-01")] {
        broken.write(folder.path(), "a");
        configure("server.timeouts.header = \"20s\"\n");
        let mut command = Command::new(PROGRAM);
        command.current_dir(folder.path()).args(["-f", "server.toml"]);
        let server = Server::start_as(command, backend, &["--respond", "hello"]);
        until("it is told", || server.has_said("a certificate that clients are shown does not hold"));
        server.says(&format!("a.pem: the certificate {what}"));
        assert_eq!(server.certificates()[0]["outdated"], format!("the certificate {what}"));
        let status = Command::new(PROGRAM).args(["status", "--run-dir"]).arg(server.run()).output().unwrap();
        let status = String::from_utf8_lossy(&status.stdout).into_owned();
        assert!(status.contains(&format!("the certificate {what}  a.pem")), "{status}");
        let refused = connect(server.address, &trusting(&[broken]), "a.test").unwrap_err();
        assert!(matches!(refused, Error::InvalidCertificate(_)), "{refused}");
        // What is as it was keeps nothing else from changing.
        configure("server.timeouts.header = \"21s\"\n");
        server.signal("HUP");
        until("something else has changed", || server.has_said("server.timeouts.header"));
        // Another one that does not hold changes nothing, and one that holds does.
        let count = |words: &str| server.lines().iter().filter(|line| line.contains(words)).count();
        older.write(folder.path(), "a");
        server.signal("HUP");
        until("it is refused with its place", || count("server.toml:2:13") == 1);
        server.says("a.pem: the certificate has expired on 2019-01-01");
        assert_eq!(server.certificates()[0]["outdated"], format!("the certificate {what}"));
        good.write(folder.path(), "a");
        server.signal("HUP");
        until("the good one is shown", || {
            connect(server.address, &trusting(&[&good]), "a.test")
                .is_ok_and(|stream| shown(&stream) == good.certificate)
        });
        assert!(server.certificates()[0]["outdated"].is_null());
        broken.write(folder.path(), "a");
        server.signal("HUP");
        until("it is refused", || count("server.toml:2:13") == 2);
        let stream = connect(server.address, &trusting(&[&good]), "a.test").unwrap();
        assert_eq!(shown(&stream), good.certificate);
    }
}

/// As certbot does it: one file after the other, and nobody is told.
fn files_that_somebody_else_renews_are_read_by_themselves(backend: &str) {
    let (folder, old, new, other) = (folder(), Pair::of(&["a.test"]), Pair::of(&["a.test"]), Pair::of(&["a.test"]));
    let soon = time::OffsetDateTime::now_utc().saturating_add(time::Duration::days(3));
    let ends = Pair::made(&["b.test"], |params| params.not_after = soon);
    let server = start(backend, &flags(folder.path(), &[("a", &old), ("b", &ends)]), &[]);
    until("what ends soon is told", || server.has_said("a certificate ends soon"));
    let config = trusting(&[&old, &new]);
    let shown = || shown(&connect(server.address, &config, "a.test").unwrap());
    assert_eq!(shown(), old.certificate);
    new.write(folder.path(), "a");
    until("the new one is shown", || shown() == new.certificate);
    until("it is told", || server.has_said("certificates have changed"));
    std::fs::write(folder.path().join("a.key"), &other.key_pem).unwrap();
    until("what is wrong is told", || server.has_said("a.key: the key is not that of the certificate in"));
    assert_eq!(shown(), new.certificate);
    // What is wrong with one pair keeps no other from being renewed.
    let renewed = Pair::of(&["b.test"]);
    renewed.write(folder.path(), "b");
    let config = trusting(&[&ends, &renewed]);
    until("the other is shown", || {
        crate::tls::shown(&connect(server.address, &config, "b.test").unwrap()) == renewed.certificate
    });
    assert_eq!(shown(), new.certificate);
}

/// Nothing of the files changes when the time of their certificate comes.
fn a_renewed_certificate_whose_time_has_not_come_is_shown_once_it_has(backend: &str) {
    let (folder, old) = (folder(), Pair::of(&["a.test"]));
    let server = start(backend, &flags(folder.path(), &[("a", &old)]), &[]);
    let begins = time::OffsetDateTime::now_utc().saturating_add(time::Duration::seconds(20));
    let new = Pair::made(&["a.test"], |params| params.not_before = begins);
    new.write(folder.path(), "a");
    until("it is told", || server.has_said("a.pem: the certificate does not hold before"));
    let config = trusting(&[&old, &new]);
    let shown = || connect(server.address, &config, "a.test").map(|stream| shown(&stream));
    assert_eq!(shown().unwrap(), old.certificate);
    until("its time has come", || shown().is_ok_and(|shown| shown == new.certificate));
    assert_eq!(server.lines().iter().filter(|line| line.contains("does not hold before")).count(), 1);
}

fn a_reload_changes_whose_certificates_are_accepted(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let [first, second] = [(); 2].map(|()| Pair::of(&[]));
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, &first.certificate_pem).unwrap();
    let authority = format!("--tls-client-ca={}", path.display());
    let server = start(backend, &[flags(folder.path(), &[("a", &pair)]), vec![authority]].concat(), &[]);
    let accepts = |client: &Pair| {
        let mut roots = RootCertStore::empty();
        roots.add(pair.certificate.clone()).unwrap();
        let builder = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS12]);
        let builder = builder.with_root_certificates(roots);
        let key = PrivateKeyDer::from_pem_slice(client.key_pem.as_bytes()).unwrap();
        let config = builder.with_client_auth_cert(vec![client.certificate.clone()], key).unwrap();
        connect(server.address, &Arc::new(config), "a.test").is_ok()
    };
    assert_eq!((accepts(&first), accepts(&second)), (true, false));
    std::fs::write(&path, &second.certificate_pem).unwrap();
    server.signal("HUP");
    until("the other is accepted", || accepts(&second));
    assert!(!accepts(&first));
}

fn a_session_goes_on_over_an_upgrade(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let flags = [flags(folder.path(), &[("a", &pair)]), vec!["--respond=hello".to_owned()]].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let line = Line::start_in(folder, Command::new(PROGRAM), backend, &flags);
    let config = trusting(&[&pair]);
    ask(&mut connect(line.server.address, &config, "a.test").unwrap(), ASK, b"ok");
    line.upgraded();
    let mut again = connect(line.server.address, &config, "a.test").unwrap();
    assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    ask(&mut again, ASK, b"ok");
}

/// The first client comes while the new server starts, which was told before what tickets are sealed with.
fn a_session_that_began_during_an_upgrade_goes_on(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let flags = [&flags(folder.path(), &[("a", &pair)])[..], &meanwhile::slow_app()].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let line = Line::start_in(folder, Command::new(PROGRAM), backend, &flags);
    line.until_ready(1);
    let config = trusting(&[&pair]);
    let new = meanwhile::starts(&line);
    ask(&mut connect(line.server.address, &config, "a.test").unwrap(), ASK, b"ok");
    meanwhile::takes_over(&line, new);
    let mut again = connect(line.server.address, &config, "a.test").unwrap();
    assert_eq!(again.conn.handshake_kind(), Some(HandshakeKind::Resumed));
    ask(&mut again, ASK, b"ok");
}

fn a_request_without_tls_is_told_so(backend: &str) {
    let server = Server::start(&format!("{backend}{SUFFIX}"), &["--respond", "hello"]);
    let mut client = Client::to(server.own);
    let answer = client.get("/");
    assert_eq!((answer.status, answer.text().contains("this port speaks TLS")), (400, true), "{}", answer.text());
    client.expect_end();
    let mut client = Client::to(server.own);
    client.send(b"\x00\x01\x02\x03");
    client.rest();
    let counts = |name: &str| server.status()[name].as_u64();
    until("they are counted", || (counts("tls_plain"), counts("tls_failed")) == (Some(1), Some(1)));
    assert_eq!(server.client().get("/").text(), "hello");
}

/// Half a message, one byte, and nothing at all.
fn a_handshake_that_does_not_come_costs_a_place_for_its_time_only(backend: &str) {
    let server = Server::start(&format!("{backend}{SUFFIX}"), &["--respond", "hello", "--header-timeout", "1s"]);
    let half = [&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3][..], &[7; 100]].concat();
    let mut clients: Vec<Client> = (0..60).map(|_| Client::to(server.own)).collect();
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(&half[..[half.len(), 1, 0][index % 3]]);
    }
    assert_eq!(server.client().get("/").text(), "hello");
    for client in &mut clients {
        client.rest();
    }
    until("they are counted", || server.status()["tls_late"] == 60);
    let mut gone = Client::to(server.own);
    gone.send(&half);
    gone.finish();
    gone.rest();
    until("it is counted", || server.status()["tls_left"] == 1);
}

/// Each byte of a handshake's message in a record of its own, which says that it will have 16 MiB.
fn records_of_one_byte_and_endless_messages_are_bounded(backend: &str) {
    let server = Server::start(&format!("{backend}{SUFFIX}"), &["--respond", "hello"]);
    let mut client = Client::to(server.own);
    let mut records = Vec::new();
    for byte in [1, 255, 255, 255].into_iter().chain(std::iter::repeat_n(0, 40_000)) {
        records.extend([22, 3, 1, 0, 1, byte]);
    }
    // It may be cut off while it sends.
    client.try_send(&records);
    let (rest, _) = client.rest();
    assert!(rest.len() < 100, "{rest:?}");
    until("it is counted", || server.status()["tls_failed"] == 1);
    assert_eq!(server.client().get("/").text(), "hello");
}

/// The beginning of one that says that it will have 60,000 bytes. Real ones have some 2,000.
fn a_hello_that_never_ends_is_cut_and_a_long_one_is_not(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let server = start(backend, &flags(folder.path(), &[("a", &pair)]), &[]);
    let body = [&[1, 0][..], &60_000_u16.to_be_bytes(), &[3, 3], &[7; 20_000]].concat();
    let records: Vec<u8> = body
        .chunks(10_000)
        .flat_map(|part| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat())
        .collect();
    // One that says nothing wrong, in records of one byte, ends where six times its bytes are too many.
    let bytes: Vec<u8> =
        [1, 0, 60, 0, 3, 3].into_iter().chain([7; 5_000]).flat_map(|byte| [22, 3, 1, 0, 1, byte]).collect();
    for (index, sent) in [&records[..11], &records, &bytes].into_iter().enumerate() {
        let mut client = Client::to(server.own);
        client.try_send(sent);
        let (alert, _) = client.rest();
        assert_eq!(alert, [21, 3, 3, 0, 2, 2, 50], "{index}");
        until("it is counted", || server.status()["tls_failed"] == index + 1);
    }
    let mut config = pair.client();
    config.alpn_protocols = (0..50).map(|index| vec![b'a' + index; 250]).chain([b"http/1.1".to_vec()]).collect();
    let mut stream = connect(server.address, &Arc::new(config), "a.test").unwrap();
    ask(&mut stream, ASK, b"ok");
}

/// Two of 20,000 bytes each, where one that nobody has asked for is cut far before.
fn certificates_of_clients_may_be_long(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 1], vec![4; 20_000]));
    let long = params.self_signed(&key).unwrap();
    std::fs::write(folder.path().join("ca.pem"), long.pem()).unwrap();
    let authority = format!("--tls-client-ca={}", folder.path().join("ca.pem").display());
    let server = start(backend, &[flags(folder.path(), &[("a", &pair)]), vec![authority]].concat(), &[]);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut roots = RootCertStore::empty();
        roots.add(pair.certificate.clone()).unwrap();
        let builder = ClientConfig::builder_with_protocol_versions(&[version]).with_root_certificates(roots);
        let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = builder.with_client_auth_cert(vec![long.der().clone(), long.der().clone()], secret).unwrap();
        ask(&mut connect(server.address, &Arc::new(config), "a.test").unwrap(), ASK, b"ok");
    }
}

fn a_crowd_that_comes_at_once_is_served(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let server = start(backend, &flags(folder.path(), &[("a", &pair)]), &[]);
    let config = trusting(&[&pair]);
    // All are there before the first gets an answer.
    let clients: Vec<_> = (0..100)
        .map(|_| {
            let mut stream = TcpStream::connect(server.address).unwrap();
            stream.set_read_timeout(Some(DEADLINE)).unwrap();
            let mut session = ClientConnection::new(config.clone(), ServerName::try_from("a.test").unwrap()).unwrap();
            session.write_tls(&mut stream).unwrap();
            StreamOwned::new(session, stream)
        })
        .collect();
    for mut stream in clients {
        assert!(ask(&mut stream, ASK, b"ok").starts_with("HTTP/1.1 200 "));
    }
    assert_eq!(server.status()["tls_handshakes"], 100);
}

fn clients_show_certificates_that_nobody_can_forge(backend: &str) {
    let (folder, pair) = (folder(), Pair::of(&["a.test"]));
    let (mut issuer, key) = (rcgen::CertificateParams::new(Vec::new()).unwrap(), rcgen::KeyPair::generate().unwrap());
    issuer.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority = issuer.self_signed(&key).unwrap();
    std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
    let issuer = rcgen::Issuer::new(issuer, key);
    let client_key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::OrganizationName, "Example, \"Inc\"");
    params.distinguished_name.push(rcgen::DnType::CommonName, "alice\r\nX-Evil: 1");
    let client = params.signed_by(&client_key, &issuer).unwrap();
    let authority = folder.path().join("ca.pem").display().to_string();
    let flags = [flags(folder.path(), &[("a", &pair)]), vec![format!("--tls-client-ca={authority}")]].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let worker = Worker::echo();
    let server = Server::before(backend, &worker.url, &flags);
    // Nor can a proxy that is believed: with its own certificate it is the client of this listener.
    let trusting = Server::before(backend, &worker.url, &[&flags[..], &["--trusted-proxies", "loopback"]].concat());
    let mut roots = RootCertStore::empty();
    roots.add(pair.certificate.clone()).unwrap();
    let builder = ClientConfig::builder().with_root_certificates(roots);
    let secret = PrivateKeyDer::try_from(client_key.serialize_der()).unwrap();
    let config = Arc::new(builder.with_client_auth_cert(vec![client.der().clone()], secret).unwrap());
    for server in [&server, &server, &trusting] {
        let mut stream = connect(server.address, &config, "a.test").unwrap();
        assert_eq!(stream.conn.handshake_kind(), Some(HandshakeKind::Full), "nobody is resumed without a certificate");
        let request = b"POST / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: Subject=\"CN=root\"\r\nContent-Length: 3\r\n\r\nend";
        let answer = ask(&mut stream, request, b"end");
        let line: Vec<&str> =
            answer.lines().filter(|line| line.to_lowercase().starts_with("x-forwarded-client-cert")).collect();
        let [line] = line[..] else { panic!("{answer}") };
        assert!(
            line.contains("Hash=")
                && line.ends_with(r#";Subject="CN=alice\\0D\\0AX-Evil: 1,O=Example\\, \\\"Inc\\\"""#),
            "{line}"
        );
        assert!(!answer.contains("root"), "{answer}");
    }
    // In TLS 1.3 a client learns it behind its own handshake.
    let mut without = connect(server.address, &Arc::new(pair.client()), "a.test").unwrap();
    assert!(without.read(&mut [0]).unwrap_err().to_string().contains("CertificateRequired"));
    until("it is counted", || server.status()["tls_client_certificate"] == 1);
}

fn a_laptop_needs_one_word(backend: &str) {
    let mut server = Server::start(backend, &["--respond", "hello", "--tls", "self-signed"]);
    until("it is told", || server.has_said("curl --cacert"));
    let lines = server.lines();
    let line = lines.iter().find(|line| line.contains("curl --cacert")).unwrap();
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    let words: Vec<&str> = line["try"].as_str().unwrap().split(' ').collect();
    let [_, _, path, url] = words[..] else { panic!("{words:?}") };
    assert_eq!(url, format!("https://localhost:{}/", server.address.port()));
    let pem = std::fs::read(path).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let config = Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth());
    for name in ["localhost", "127.0.0.1"] {
        let mut stream = connect(server.address, &config, name).unwrap();
        assert!(ask(&mut stream, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"hello").starts_with("HTTP/1.1 200 "));
    }
    assert!(line["sha256"].as_str().unwrap().len() == 95);
    assert_eq!(server.stop(), Some(0));
    assert!(!std::path::Path::new(path).exists(), "it was made for one run");
}

fn plain_requests_are_sent_to_where_tls_is(backend: &str) {
    let server = Server::start(backend, &["--respond", "hello", "--redirect-https", "8443"]);
    for (request, location) in [
        ("GET /a?b=c HTTP/1.1\r\nHost: example.org:80\r\n\r\n", "https://example.org:8443/a?b=c"),
        ("GET /server HTTP/1.1\r\nHost: [::1]\r\n\r\n", "https://[::1]:8443/server"),
        ("POST http://other.org/x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", "https://other.org:8443/x"),
        ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "https://a:8443/"),
        ("GET http://other.org?x=1 HTTP/1.1\r\nHost: a\r\n\r\n", "https://other.org:8443/?x=1"),
        ("GET http://other.org HTTP/1.1\r\nHost: a\r\n\r\n", "https://other.org:8443/"),
    ] {
        let answer = server.client().ask(request);
        assert_eq!((answer.status, answer.field("location")), (308, Some(location)), "{request}");
    }
    let mut client = server.client();
    assert_eq!(client.ask("GET / HTTP/1.0\r\n\r\n").status, 400);
    assert_eq!(server.client().ask("GET / HTTP/1.1\r\nHost: :80\r\n\r\n").status, 400);
    let server = Server::start(backend, &["--respond", "hello", "--redirect-https", "on"]);
    let mut client = server.client();
    for _ in 0..2 {
        assert_eq!(client.get("/").field("location"), Some("https://test/"));
    }
}

fn browsers_are_told_to_come_with_tls_only(backend: &str) {
    let worker = Worker::new(|incoming| {
        while let Some((head, _)) = incoming.request() {
            let own = if head.starts_with("GET /own") { "Strict-Transport-Security: max-age=1\r\n" } else { "" };
            incoming.send(format!("HTTP/1.1 200 OK\r\n{own}Content-Length: 2\r\n\r\nok"));
        }
    });
    let secure = Server::before(&format!("{backend}{SUFFIX}"), &worker.url, &["--tls-hsts", "8760h"]);
    for (path, age) in [("/", 31_536_000), ("/own", 1), ("/server", 31_536_000)] {
        let answer = secure.client().get(path);
        assert_eq!(answer.field("strict-transport-security"), Some(format!("max-age={age}").as_str()), "{path}");
        assert_eq!(answer.text(), "ok");
    }
    let refused = secure.client().ask("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n");
    assert_eq!((refused.status, refused.field("strict-transport-security").is_some()), (400, true));
    let plain = Server::before(backend, &worker.url, &["--tls-hsts", "8760h"]);
    assert_eq!(plain.client().get("/").field("strict-transport-security"), None);
}
