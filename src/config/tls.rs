//! What is said of TLS: which listeners speak it, and with which certificates.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::keys::{Key, key, path, store};
use super::units::{choice, count, duration, switch};

/// TLS on a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// Whether it is spoken.
    pub speak: SpeakTls,
    /// Files of certificates, each followed by those of its issuers.
    pub certs: Vec<PathBuf>,
    /// Their keys, in the same order.
    pub keys: Vec<PathBuf>,
    /// More of both, in pairs.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
    /// Whether clients that ask for a name which no certificate has are turned away.
    pub strict_sni: bool,
    /// A file with the certificates of those who issue clients' certificates, without which no client is served.
    pub client_ca: Option<PathBuf>,
    /// For how long clients that have come once are to come with TLS only (RFC 6797).
    pub hsts: Option<Duration>,
    /// No TLS is spoken, and every request is sent to that port, where it is.
    pub redirect_https: Option<u16>,
    /// Certificates that an authority issues while the server runs.
    pub managed: Option<Managed>,
}

/// Certificates that an authority issues while the server runs (`[acme]`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Managed {
    /// Where they lie, each with its key in one file.
    pub directory: PathBuf,
    /// The names that they are for.
    pub names: Vec<String>,
    /// The URL of the authority's directory. Those of others serve until there is one of it.
    pub authority: String,
}

/// Whether TLS is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpeakTls {
    /// Where there is a certificate, but on no Unix socket.
    #[default]
    Auto,
    /// It is.
    On,
    /// It is not.
    Off,
    /// It is, also with a certificate that is made at the start.
    SelfSigned,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsVersion {
    /// RFC 5246.
    #[default]
    V1_2,
    /// RFC 8446.
    V1_3,
}

impl Tls {
    /// The files of certificates, each with that of its key.
    pub fn pairs(&self) -> impl Iterator<Item = (&Path, &Path)> {
        let single = self.certs.iter().zip(&self.keys).map(|(cert, key)| (cert.as_path(), key.as_path()));
        single.chain(self.certificates.iter().map(|(cert, key)| (cert.as_path(), key.as_path())))
    }

    /// All files that are read for it.
    pub fn files(&self) -> Vec<PathBuf> {
        let pairs = self.pairs().flat_map(|(cert, key)| [cert, key]);
        pairs.chain(self.client_ca.as_deref()).map(Path::to_owned).collect()
    }

    fn has_files(&self) -> bool {
        !(self.certs.is_empty() && self.keys.is_empty() && self.certificates.is_empty())
    }

    /// Whether it is spoken on a listener; `unix`: on a Unix socket.
    pub fn is_spoken(&self, unix: bool) -> bool {
        match self.speak {
            _ if self.redirect_https.is_some() => false,
            // A certificate without its key, too: whoever gives one means it, and is told what is missing.
            SpeakTls::Auto => !unix && (self.has_files() || self.managed.is_some()),
            SpeakTls::On | SpeakTls::SelfSigned => true,
            SpeakTls::Off => false,
        }
    }
}

/// What stands between the two files of a pair in a value of the command line.
const BETWEEN: char = ':';
/// What stands there where the file says them one by one, so that both may be any path.
pub(super) const JOINT: &str = "\n";

pub(super) const KEYS: &[Key] = &[
    key("tls", "on|off|auto|self-signed", "auto", SPEAK_HELP, |settings, text| {
        let ways = [
            ("auto", SpeakTls::Auto),
            ("on", SpeakTls::On),
            ("off", SpeakTls::Off),
            ("self-signed", SpeakTls::SelfSigned),
        ];
        store(&mut settings.listening.front.tls.speak, choice(text, &ways))
    })
    .example("on"),
    key("tls-cert", "FILE", "", "A certificate in PEM, followed by those of its issuers", |settings, text| {
        settings.listening.front.tls.certs.push(path(text)?);
        Ok(())
    })
    .many()
    .example("/etc/ssl/example.org.pem"),
    key("tls-key", "FILE", "", "Its private key in PEM", |settings, text| {
        settings.listening.front.tls.keys.push(path(text)?);
        Ok(())
    })
    .many()
    .example("/etc/ssl/private/example.org.key"),
    key("tls-certificate", "FILE:FILE", "", PAIR_HELP, |settings, text| {
        let pair = text.split_once(JOINT).or_else(|| text.split_once(BETWEEN));
        let (cert, key) = pair.ok_or("expected a file of certificates and one with the key, as in cert.pem:key.pem")?;
        settings.listening.front.tls.certificates.push((path(cert)?, path(key)?));
        Ok(())
    })
    .many()
    .example("/etc/ssl/example.org.pem:/etc/ssl/private/example.org.key"),
    key("tls-min-version", "1.2|1.3", "1.2", "The oldest version of TLS that is spoken", |settings, text| {
        store(
            &mut settings.listening.front.tls.min_version,
            choice(text, &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)]),
        )
    })
    .example("1.3"),
    key("tls-strict-sni", "on|off", "off", STRICT_HELP, |settings, text| {
        store(&mut settings.listening.front.tls.strict_sni, switch(text))
    })
    .example("on"),
    key("tls-client-ca", "FILE", "", CLIENT_HELP, |settings, text| {
        store(&mut settings.listening.front.tls.client_ca, path(text).map(Some))
    })
    .example("/etc/ssl/clients.pem"),
    key("tls-hsts", "DURATION", "", HSTS_HELP, |settings, text| {
        store(&mut settings.listening.front.tls.hsts, duration(text, HSTS).map(Some))
    })
    .example("8760h"),
    key("redirect-https", "on|off|PORT", "off", REDIRECT_HELP, |settings, text| {
        let port = match text.to_ascii_lowercase().as_str() {
            "on" => Some(HTTPS),
            "off" => None,
            _ => Some(count(text, 1..=65_535).map_err(|_| "expected on, off or the port where TLS is spoken")? as u16),
        };
        settings.listening.front.tls.redirect_https = port;
        Ok(())
    })
    .example("8443"),
];

/// The port of https://.
pub const HTTPS: u16 = 443;
const HSTS: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(10 * 366 * 86_400);
const HSTS_HELP: &str =
    "Add Strict-Transport-Security to answers over TLS: browsers then come with TLS only, for that time";
const REDIRECT_HELP: &str = "Speak no TLS and send every request to https://, port 443 or PORT, with 308";

const SPEAK_HELP: &str = "Whether listeners speak TLS; auto: those on TCP do once there is a certificate; self-signed: with one \
    that is made at the start, for a laptop";
const PAIR_HELP: &str = "A certificate and its key, as --tls-cert and --tls-key in one";
const CLIENT_HELP: &str =
    "Serve only clients with a certificate that one in FILE has issued; workers get it as X-Forwarded-Client-Cert";
const STRICT_HELP: &str = "Turn clients away that ask for a name which no certificate has, or for none";
