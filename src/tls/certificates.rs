//! Certificates and their keys: read from files, checked, and found by the name that a client asks for.
//!
//! A client is shown the certificate that has exactly the name it asks for, else one with a wildcard in the place of its first label, else
//! the first of all, unless only names that are known are served. Of several for one name the first is taken whose key the client
//! can verify.
//!
//! The table is replaced whole, while it serves: by a reload, or by whoever renews certificates. Handshakes under way go on with what they
//! have found.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{authority, der};

/// A file of certificates or a key has at most so many bytes: what is larger is something else.
const MOST_BYTES: u64 = 1024 * 1024;

/// What is wrong with a file that a policy needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Failure {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub what: String,
    /// What would be right; may be empty.
    pub hint: String,
}

impl Failure {
    pub(super) fn new(path: &Path, what: impl Into<String>, hint: impl Into<String>) -> Failure {
        Failure { path: path.to_owned(), what: what.into(), hint: hint.into() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}: {}", self.path.display(), self.what)?;
        if self.hint.is_empty() { Ok(()) } else { write!(formatter, "; {}", self.hint) }
    }
}

/// A certificate as people see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// Where it was read from.
    pub path: PathBuf,
    /// The names that it is for.
    pub names: Vec<String>,
    /// From when it holds, in seconds since 1970.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
}

impl Shown {
    /// Why no client takes it now; `None`: it holds.
    pub fn outdated(&self) -> Option<Failure> {
        let now = now();
        if self.not_after <= now {
            let what = format!("the certificate has expired on {}", day(self.not_after));
            return Some(Failure::new(&self.path, what, "renew it"));
        }
        let what = || format!("the certificate does not hold before {}", day(self.not_before));
        (self.not_before > now).then(|| Failure::new(&self.path, what(), "is the clock of this machine right?"))
    }

    /// Whether it ends within so many seconds.
    pub fn ends_within(&self, seconds: i64) -> bool {
        self.not_after - now() < seconds
    }
}

/// A certificate with its chain and its key, ready to be shown.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub shown: Shown,
    pub key: Arc<CertifiedKey>,
}

impl Loaded {
    /// A certificate that was made here.
    pub fn made(shown: Shown, key: CertifiedKey) -> Loaded {
        Loaded { shown, key: Arc::new(key) }
    }

    /// Reads a pair of files, whose certificate need not hold any more.
    pub fn read(chain: &Path, key: &Path, provider: &CryptoProvider) -> Result<Loaded, Failure> {
        let certificates = certificates(chain)?;
        let unread = |number: usize| {
            let what = format!("certificate {number} of {} in it cannot be read", certificates.len());
            Failure::new(chain, what, "clients are shown all of them, and take none where one is broken")
        };
        if let Some(broken) = certificates.iter().position(|certificate| !der::is_certificate(certificate)) {
            return Err(unread(broken + 1));
        }
        let facts = certificates.first().and_then(|first| der::facts(first)).ok_or_else(|| unread(1))?;
        let text = contents(key)?;
        let secret = PrivateKeyDer::from_pem_slice(&text).map_err(|_| {
            let hint = "expected a key that is not encrypted, in PEM: PKCS#8 (`BEGIN PRIVATE KEY`), SEC1 (`BEGIN EC PRIVATE KEY`) or \
                        PKCS#1 (`BEGIN RSA PRIVATE KEY`)";
            Failure::new(key, "there is no private key in it", hint)
        })?;
        let secret = provider.key_provider.load_private_key(secret).map_err(|error| {
            let hint =
                "expected an ECDSA key (P-256, P-384, P-521), an Ed25519 key, or an RSA key of 2048 to 8192 bits";
            Failure::new(key, format!("the private key cannot be used: {error}"), hint)
        })?;
        let pair = CertifiedKey::new(certificates, secret);
        pair.keys_match().map_err(|_| {
            let hint = "the file of certificates begins with that of the server, and those of its issuers follow";
            Failure::new(key, format!("the key is not that of the certificate in {}", chain.display()), hint)
        })?;
        if facts.names.is_empty() {
            let hint = "expected DNS names or addresses in its subjectAltName: clients do not look at its subject";
            return Err(Failure::new(chain, "the certificate is for no name", hint));
        }
        let (not_before, not_after) = (facts.not_before, facts.not_after);
        Ok(Loaded::made(Shown { path: chain.to_owned(), names: facts.names, not_before, not_after }, pair))
    }

    /// Reads a pair of files, and demands that the certificate holds now.
    pub fn read_holding(chain: &Path, key: &Path, provider: &CryptoProvider) -> Result<Loaded, Failure> {
        let loaded = Loaded::read(chain, key, provider)?;
        loaded.shown.outdated().map_or(Ok(loaded), Err)
    }
}

/// The certificates in a file.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let text = contents(path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let hint = "expected PEM, as in `-----BEGIN CERTIFICATE-----`";
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err(Failure::new(path, "there is no certificate in it", hint)),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(Failure::new(path, format!("it cannot be read: {error}"), hint)),
    }
}

/// The certificates of authorities in a file, for a client that is to trust them.
///
/// # Errors
/// When there is none.
pub fn authorities(path: &Path) -> Result<Vec<Vec<u8>>, Failure> {
    Ok(certificates(path)?.iter().map(|certificate| certificate.to_vec()).collect())
}

fn contents(path: &Path) -> Result<Vec<u8>, Failure> {
    let failed = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "it is read by the user that the server runs as when it is reloaded"
            }
            _ => "",
        };
        Failure::new(path, format!("it cannot be read: {error}"), hint)
    };
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.is_dir() {
        return Err(Failure::new(path, "it is a directory", "expected a file"));
    }
    if metadata.len() > MOST_BYTES || !metadata.is_file() {
        return Err(Failure::new(path, "it is no file of certificates or keys", "expected a file of at most 1 MiB"));
    }
    std::fs::read(path).map_err(failed)
}

/// Now, in seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// The day of a time, as in `2027-03-01`.
pub fn day(seconds: i64) -> String {
    // By the calendar that begins in March, as in `der`.
    let days = seconds.div_euclid(86_400) + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * month + 2) / 5 + 1, if month < 10 { month + 3 } else { month - 9 });
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + i64::from(month <= 2))
}

/// All certificates of a policy, by the names that they are for.
#[derive(Debug, Default)]
pub(super) struct Table {
    exact: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// By the name without its first label.
    wildcards: HashMap<String, Vec<Arc<CertifiedKey>>>,
    /// Shown to whoever asks for no name, and for names that no certificate has.
    default: Vec<Arc<CertifiedKey>>,
    /// Only names that are known are served.
    strict: bool,
    all: Vec<Arc<CertifiedKey>>,
    /// Those who issue clients' certificates.
    issuers: Vec<CertificateDer<'static>>,
    pub shown: Vec<Shown>,
}

impl Table {
    /// A table of those, the first of which is the default.
    pub fn new(loaded: Vec<Loaded>, issuers: Vec<CertificateDer<'static>>, strict: bool) -> Table {
        let mut table = Table { issuers, strict, ..Table::default() };
        for Loaded { shown, key } in loaded {
            for name in &shown.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut table.wildcards, parent),
                    None => (&mut table.exact, name.as_str()),
                };
                names.entry(name.to_owned()).or_default().push(key.clone());
            }
            if table.default.is_empty() || table.shown.first().is_some_and(|first| first.names == shown.names) {
                table.default.push(key.clone());
            }
            table.shown.push(shown);
            table.all.push(key);
        }
        table
    }

    /// Those for the name that a client asks for.
    fn find(&self, name: Option<&str>) -> &[Arc<CertifiedKey>] {
        let known = name.and_then(|name| {
            let wildcard = || self.wildcards.get(name.split_once('.')?.1);
            self.exact.get(name).or_else(wildcard)
        });
        match known {
            Some(known) => known,
            // Whoever asks for no name does not ask for one that is unknown, but nobody is served whom nobody has asked for.
            None if self.strict => &[],
            None => &self.default,
        }
    }
}

/// The certificates of a policy, which may be replaced while it serves.
#[derive(Debug, Default)]
pub struct Certificates(RwLock<Arc<Table>>);

impl Certificates {
    pub(super) fn put(&self, table: Table) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(table);
    }

    fn table(&self) -> Arc<Table> {
        // It is replaced whole, whoever panics. Nobody holds the lock for longer than that takes.
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether they, and those who issue clients', are the same as in a table.
    pub(super) fn are(&self, other: &Table) -> bool {
        let chains = |table: &Table| table.all.iter().map(|one| one.cert.clone()).collect::<Vec<_>>();
        let table = self.table();
        chains(&table) == chains(other) && table.issuers == other.issuers
    }

    /// Those that are shown now, each ready to be shown on.
    pub(super) fn loaded(&self) -> Vec<Loaded> {
        let table = self.table();
        let both = table.shown.iter().zip(&table.all);
        both.map(|(shown, key)| Loaded { shown: shown.clone(), key: key.clone() }).collect()
    }

    /// Those who issue clients' certificates.
    pub(super) fn issuers(&self) -> Vec<CertificateDer<'static>> {
        self.table().issuers.clone()
    }

    /// Those that are shown now.
    pub fn shown(&self) -> Vec<Shown> {
        self.table().shown.clone()
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().map(str::to_ascii_lowercase);
        // Offered alone, it asks for the answer to a challenge (RFC 8737, 3).
        if authority::is_challenged()
            && hello.alpn().is_some_and(|mut offered| offered.all(|one| one == authority::PROTOCOL))
        {
            return authority::tls_answer(name.as_deref()?);
        }
        let table = self.table();
        let found = table.find(name.as_deref());
        let fits = found.iter().find(|one| one.key.choose_scheme(hello.signature_schemes()).is_some());
        // One that the client cannot verify has the library say so.
        fits.or(found.first()).cloned()
    }
}
