//! What is said of certificates that come by themselves: for which names, from whom, and where they are kept.

use std::path::PathBuf;

use super::environment::Environment;
use super::keys::{Key, key, path, store};
use super::tls::{HTTPS, Managed};
use super::units::choice;
use super::{Front, ListenAddress, Settings, SpeakTls};

/// Certificates that an authority issues by ACME.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acme {
    /// Whom the authority writes to; empty: there is no ACME. Given, it says that the authority's terms are accepted.
    pub email: String,
    /// The names of the certificate.
    pub domains: Vec<String>,
    /// Where the account, certificates and keys are kept.
    pub directory: PathBuf,
    /// The authority's directory.
    pub url: String,
    /// Whose certificates are trusted for that URL; `None`: those of the system.
    pub ca_file: Option<PathBuf>,
    /// An account elsewhere that the one here is bound to.
    pub eab_kid: Option<String>,
    /// The file of its key.
    pub eab_key_file: Option<PathBuf>,
    /// The authority's name of a kind of certificate.
    pub profile: Option<String>,
    /// How the names are proven.
    pub challenge: Challenge,
}

/// How a name is proven to be ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Challenge {
    /// By a document on port 80 (RFC 8555, 8.3).
    #[default]
    Http01,
    /// In a handshake on port 443 (RFC 8737).
    TlsAlpn01,
}

impl Challenge {
    /// Its name in the protocol.
    pub fn word(self) -> &'static str {
        match self {
            Challenge::Http01 => "http-01",
            Challenge::TlsAlpn01 => "tls-alpn-01",
        }
    }
}

const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";
/// Where HTTP is spoken without TLS.
const PLAIN: u16 = 80;
/// Where a server with ACME listens when nothing else is said.
const LISTEN: [([u8; 4], u16); 2] = [([0; 4], PLAIN), ([0; 4], HTTPS)];

impl Default for Acme {
    fn default() -> Acme {
        Acme {
            email: String::new(),
            domains: Vec::new(),
            directory: PathBuf::new(),
            url: LETS_ENCRYPT.to_owned(),
            ca_file: None,
            eab_kid: None,
            eab_key_file: None,
            profile: None,
            challenge: Challenge::default(),
        }
    }
}

impl Acme {
    /// Whether certificates are to come at all.
    pub fn is_wanted(&self) -> bool {
        !self.email.is_empty() && !self.domains.is_empty()
    }

    /// The certificates as listeners show them.
    pub fn managed(&self) -> Managed {
        Managed { directory: self.directory.clone(), names: self.domains.clone(), authority: self.url.clone() }
    }
}

/// What follows from it for the rest: where is listened, and which listeners show the certificates.
pub(super) fn complete(settings: &mut Settings, environment: &Environment, listens: bool) {
    if !settings.acme.is_wanted() {
        return;
    }
    if settings.acme.directory.as_os_str().is_empty() {
        settings.acme.directory = environment.state_dir().join("acme");
    }
    if let Ok(absolute) = std::path::absolute(&settings.acme.directory) {
        settings.acme.directory = absolute;
    }
    if !listens {
        settings.listening.at = LISTEN.map(|address| ListenAddress::Tcp(address.into())).to_vec();
    }
    let fronts: Vec<(ListenAddress, Front)> = settings
        .listening
        .at
        .iter()
        .map(|address| {
            let mut front = settings.listening.front_at(address).clone();
            let port = match address {
                ListenAddress::Tcp(address) => Some(address.port()),
                ListenAddress::Unix(_) | ListenAddress::Systemd(_) => None,
            };
            match front.tls.speak {
                SpeakTls::Off => {}
                SpeakTls::Auto if port == Some(PLAIN) => {
                    front.tls.speak = SpeakTls::Off;
                    if !listens {
                        front.tls.redirect_https = Some(HTTPS);
                    }
                }
                _ => front.tls.managed = Some(settings.acme.managed()),
            }
            (address.clone(), front)
        })
        .collect();
    settings.listening.front_of = fronts;
}

pub(super) const KEYS: &[Key] = &[
    key("acme", "EMAIL", "", EMAIL_HELP, |settings, text| {
        let is_address = text.split_once('@').is_some_and(|(name, host)| !name.is_empty() && !host.is_empty());
        if !is_address || text.bytes().any(|byte| byte <= b' ' || byte == 127) {
            return Err("expected an address of yours, as in you@example.org".to_owned());
        }
        store(&mut settings.acme.email, Ok(text.to_owned()))
    })
    .example("you@example.org"),
    key("domain", "NAME", "", "A name that the certificate is for", |settings, text| {
        let name = domain(text)?;
        if !settings.acme.domains.contains(&name) {
            settings.acme.domains.push(name);
        }
        Ok(())
    })
    .many()
    .example("shop.example"),
    key("acme-challenge", "http-01|tls-alpn-01", "http-01", CHALLENGE_HELP, |settings, text| {
        let ways = [Challenge::Http01, Challenge::TlsAlpn01].map(|way| (way.word(), way));
        store(&mut settings.acme.challenge, choice(text, &ways))
    })
    .example("tls-alpn-01"),
    key("acme-directory", "DIR", "", DIRECTORY_HELP, |settings, text| store(&mut settings.acme.directory, path(text)))
        .example("/var/lib/production_server/acme"),
    key("acme-url", "URL", LETS_ENCRYPT, "The directory of the certificate authority", |settings, text| {
        let is_url = text.strip_prefix("https://").is_some_and(|rest| !rest.is_empty());
        if !is_url || text.bytes().any(|byte| byte <= b' ' || byte == 127) {
            return Err("expected an address that begins with https://".to_owned());
        }
        store(&mut settings.acme.url, Ok(text.to_owned()))
    })
    .example("https://authority.example/directory"),
    key("acme-ca-file", "FILE", "", CA_HELP, |settings, text| store(&mut settings.acme.ca_file, path(text).map(Some)))
        .example("/etc/ssl/authority.pem"),
    key("acme-eab-kid", "ID", "", "The account at the authority that the one here is bound to", |settings, text| {
        store(&mut settings.acme.eab_kid, word(text))
    })
    .example("kid-1"),
    key("acme-eab-key-file", "FILE", "", "Its key in base64url", |settings, text| {
        store(&mut settings.acme.eab_key_file, path(text).map(Some))
    })
    .example("/etc/production_server/eab.key"),
    key("acme-profile", "NAME", "", "A kind of certificate that the authority offers", |settings, text| {
        store(&mut settings.acme.profile, word(text))
    })
    .example("shortlived"),
];

const EMAIL_HELP: &str = "Get certificates for the given domains from a certificate authority (Let's Encrypt) and renew them; with your \
    address you accept its terms";
const CHALLENGE_HELP: &str = "How domains are proven: over HTTP on port 80, or in a TLS handshake on port 443";
const DIRECTORY_HELP: &str = "Where account, certificates and keys are kept [default: $STATE_DIRECTORY/acme, /var/lib/production_server/acme for \
    root, $XDG_STATE_HOME/production_server/acme for others]";
const CA_HELP: &str = "Whom to trust when the authority is asked, in PEM [default: what the system trusts]";

fn word(text: &str) -> Result<Option<String>, String> {
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if is_word { Ok(Some(text.to_owned())) } else { Err("expected a word without spaces".to_owned()) }
}

/// A DNS name (RFC 1123, 2.1), in small letters. Addresses and wildcards take other challenges than those that there are.
fn domain(text: &str) -> Result<String, String> {
    let name = text.trim_end_matches('.').to_ascii_lowercase();
    let is_label = |label: &str| {
        let plain = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        plain && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    let last = name.rsplit('.').next().unwrap_or_default();
    if name.starts_with("*.") {
        return Err("expected a name without `*`: wildcards take a challenge in DNS, which there is not".to_owned());
    }
    if name.len() > 253 || !name.split('.').all(is_label) || last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(
            "expected a DNS name such as shop.example, in Punycode (xn--…) where it has other letters".to_owned()
        );
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_are_names() {
        for (text, name) in
            [("shop.example", "shop.example"), ("Shop.Example.", "shop.example"), ("localhost", "localhost")]
        {
            assert_eq!(domain(text).as_deref(), Ok(name));
        }
        let long = "a".repeat(64);
        for text in
            ["", "*.example", "127.0.0.1", "::1", "a..b", "-a.example", "a b", "straße.example", "a/b", long.as_str()]
        {
            assert!(domain(text).unwrap_err().starts_with("expected"), "{text}");
        }
    }

    #[test]
    fn listeners_show_the_certificates_but_for_the_plain_one() {
        let environment: Environment = [("STATE_DIRECTORY".into(), "/state".into())].into_iter().collect();
        let acme = Acme { email: "a@b".to_owned(), domains: vec!["a.example".to_owned()], ..Acme::default() };
        let mut settings = Settings { acme, ..Settings::default() };
        complete(&mut settings, &environment, false);
        let said: Vec<String> = settings.listening.at.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["0.0.0.0:80", "0.0.0.0:443"]);
        let spoken = |settings: &Settings| -> Vec<bool> {
            settings
                .listening
                .at
                .iter()
                .map(|address| settings.listening.front_at(address).tls.is_spoken(false))
                .collect()
        };
        assert_eq!(spoken(&settings), [false, true]);
        assert_eq!(settings.listening.front_at(&settings.listening.at[0]).tls.redirect_https, Some(HTTPS));
        assert_eq!(settings.acme.directory, PathBuf::from("/state/acme"));
        let other: ListenAddress = ListenAddress::Tcp(([127, 0, 0, 1], 8443).into());
        settings.listening.at = vec![other];
        settings.listening.front_of.clear();
        complete(&mut settings, &environment, true);
        assert_eq!((settings.listening.at.len(), spoken(&settings)), (1, vec![true]));
    }
}
