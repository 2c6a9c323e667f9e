//! The keys of TLS and of certificates that come by themselves. What an authority is asked is tried with one, in `tests/scripts/acme.py`;
//! here it is one that never answers.

use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, RootCertStore, StreamOwned, SupportedProtocolVersion};

use super::*;
use crate::support::DEADLINE;
use crate::support::tls::Pair;

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];
const OLD: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12];

/// A listener that speaks TLS, whatever the others do.
const SOCKET: &str = "secure.sock";

/// What a client sees that asks for a name: the certificate, the version, and the answer, or why there is none.
fn ask(
    rig: &Rig,
    pairs: &[Pair],
    name: &str,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<(CertificateDer<'static>, ProtocolVersion, String), String> {
    let mut roots = RootCertStore::empty();
    pairs.iter().for_each(|pair| roots.add(pair.certificate.clone()).unwrap());
    let config = ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots);
    let stream = UnixStream::connect(rig.file(SOCKET)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let session = ClientConnection::new(Arc::new(config.with_no_client_auth()), name).unwrap();
    let mut stream = StreamOwned::new(session, stream);
    let mut answer = String::new();
    let asked = stream.write_all(b"GET / HTTP/1.1\r\nHost: respond\r\nConnection: close\r\n\r\n");
    asked.and_then(|()| stream.read_to_string(&mut answer)).map_err(|error| error.to_string())?;
    Ok((stream.conn.peer_certificates().unwrap()[0].clone(), stream.conn.protocol_version().unwrap(), answer))
}

/// What is said for all listeners holds for this one, until it says something else.
pub fn live(rig: &mut Rig) {
    let pairs = [&["a.test", "other.test"][..], &["b.test"], &["a.test", "other.test"], &["b.test"]].map(Pair::of);
    for (pair, name) in pairs.iter().zip(["first", "second", "third", "fourth"]) {
        pair.write(rig.file("").as_path(), name);
    }
    rig.change(&[("tls.speak", "'off'")]);
    let first = [("tls.cert", "'FOLDER/first.pem'"), ("tls.key", "'FOLDER/first.key'")];
    let secure = format!("'unix:FOLDER/{SOCKET}'");
    rig.change(&[&first[..], &[("listen[4].address", secure.as_str()), ("listen[4].tls.speak", "'on'")]].concat());
    let shown = |rig: &Rig, name: &str| ask(rig, &pairs, name, BOTH).map(|(shown, ..)| shown);
    for (own, one, other, age) in [("", 0, 1, 3600), ("listen[4].", 2, 3, 7200)] {
        let name = |at: usize| ["first", "second", "third", "fourth"][at];
        let change = |rig: &mut Rig, key: &str, value: &str| {
            let said = rig.change(&[(&format!("{own}tls.{key}"), value)]);
            assert!(said.contains(&format!("{SOCKET}: ")), "{key}: {said}");
        };
        let (cert, key) = (format!("'FOLDER/{}.pem'", name(one)), format!("'FOLDER/{}.key'", name(one)));
        rig.change(&[(&format!("{own}tls.cert"), &cert), (&format!("{own}tls.key"), &key)]);
        assert_eq!(shown(rig, "a.test"), Ok(pairs[one].certificate.clone()));
        change(rig, "certificates", &format!("[{{ cert = 'FOLDER/{0}.pem', key = 'FOLDER/{0}.key' }}]", name(other)));
        assert_eq!(shown(rig, "b.test"), Ok(pairs[other].certificate.clone()));
        change(rig, "hsts", &format!("'{age}s'"));
        let (_, version, answer) = ask(rig, &pairs, "a.test", BOTH).unwrap();
        assert!(answer.contains(&format!("max-age={age}\r\n")), "{answer}");
        assert_eq!(version, ProtocolVersion::TLSv1_3);
    }
    let old = |rig: &Rig| ask(rig, &pairs, "a.test", OLD).map(|(_, version, _)| version);
    rig.change(&[("tls.min_version", "'1.3'")]);
    assert!(old(rig).unwrap_err().contains("ProtocolVersion"));
    rig.change(&[("listen[4].tls.min_version", "'1.2'")]);
    assert_eq!(old(rig), Ok(ProtocolVersion::TLSv1_2));
    let refused = |rig: &Rig, name: &str| shown(rig, name).unwrap_err();
    assert!(refused(rig, "unknown.test").contains("not valid for name"), "another is shown");
    rig.change(&[("tls.strict_sni", "true")]);
    assert!(refused(rig, "unknown.test").contains("UnrecognisedName"), "{}", refused(rig, "unknown.test"));
    rig.change(&[("listen[4].tls.strict_sni", "false")]);
    assert!(refused(rig, "unknown.test").contains("not valid for name"));
    rig.change(&[("tls.client_ca", "'FOLDER/first.pem'")]);
    assert!(refused(rig, "b.test").contains("CertificateRequired"));
    rig.change(&[("tls.client_ca", "")]);
    assert!(shown(rig, "b.test").is_ok());
    rig.change(&[("listen[4].tls.client_ca", "'FOLDER/first.pem'")]);
    assert!(refused(rig, "b.test").contains("CertificateRequired"));
    authority(rig);
}

/// The authority is asked, and what is under way for it can be seen.
fn authority(rig: &mut Rig) {
    let (listener, asked) = (TcpListener::bind("127.0.0.1:0").unwrap(), mpsc::channel());
    let url = format!("'https://{}/directory'", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let mut first = [0];
            if client.read(&mut first).is_ok() && asked.0.send(first[0]).is_err() {
                return;
            }
        }
    });
    std::fs::write(rig.file("eab.key"), "AAAA").unwrap();
    rig.change(&[
        ("acme.email", "'you@example.org'"),
        ("acme.domains", "['shop.test', 'www.shop.test']"),
        ("acme.challenge", "'tls-alpn-01'"),
        ("acme.directory", "'FOLDER/acme'"),
        ("acme.url", &url),
        ("acme.ca_file", "'FOLDER/first.pem'"),
        ("acme.profile", "'short'"),
        ("acme.eab.kid", "'kid'"),
        ("acme.eab.key_file", "'FOLDER/eab.key'"),
    ]);
    assert_eq!(asked.1.recv_timeout(DEADLINE), Ok(22), "a handshake begins");
    let report = rig.site.line.status()["acme"].clone();
    assert_eq!(report["names"], serde_json::json!(["shop.test", "www.shop.test"]));
    assert_eq!(report["challenge"], "tls-alpn-01");
    assert_eq!(report["authority"], url.trim_matches('\''));
    assert!(rig.file("acme").is_dir());
    until("it is told what went wrong", || !rig.site.line.status()["acme"]["last_error"].is_null());
}
