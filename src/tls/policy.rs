//! Policies: what a listener demands of its clients and shows them. A policy lives as long as its listener; what it says is replaced while it
//! serves, and sessions that have begun go on as they began.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ServerConfig, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};

use super::authority;
pub use super::certificates::Failure;
use super::certificates::{self, Certificates, Loaded, Shown, Table};
use super::self_signed;
use super::tickets::ticketer;
use crate::config::{SpeakTls, Tls, TlsVersion};

/// What is spoken inside (RFC 7301), the preferred first. A client that speaks HTTP/1.0 alone may say so.
const PROTOCOLS: [&[u8]; 2] = [b"http/1.1", b"http/1.0"];

/// What a listener demands and shows, now.
#[derive(Debug)]
pub struct Policy {
    said: RwLock<Tls>,
    config: RwLock<Arc<ServerConfig>>,
    certificates: Arc<Certificates>,
    /// Held by whoever reads its files again: what was read first is shown first.
    renewing: Mutex<()>,
    /// Its sessions have no cipher.
    #[cfg(debug_assertions)]
    pub(super) is_stand_in: bool,
}

/// What a policy is to say, with all that can fail behind it.
#[derive(Debug)]
pub struct Prepared {
    said: Tls,
    config: ServerConfig,
    certificates: Arc<Certificates>,
    table: Table,
}

/// Reads and checks all that a policy needs. That a certificate does not hold now is for [`Shown::outdated`] to say.
///
/// # Errors
/// The first file that is not as it should be.
pub fn prepare(tls: &Tls) -> Result<Prepared, Failure> {
    let loaded = tls.pairs().map(|(chain, key)| Loaded::read(chain, key, provider())).collect::<Result<Vec<_>, _>>()?;
    let issuers = tls.client_ca.as_deref().map_or(Ok(Vec::new()), certificates::certificates)?;
    with_all(tls, loaded, issuers, &[])
}

/// The same for files that somebody has replaced while they are shown, each pair by itself: in the place of what cannot be read, or does not
/// hold, stands what is known, and what is wrong with it goes to `failures`.
fn prepare_again(tls: &Tls, known: &Certificates, failures: &mut Vec<Failure>) -> Result<Prepared, Failure> {
    let shown = known.loaded();
    let mut loaded = Vec::new();
    for (chain, key) in tls.pairs() {
        let old = shown.iter().find(|old| old.shown.path == chain);
        let read = Loaded::read(chain, key, provider()).and_then(|new| match new.shown.outdated() {
            // That one which is shown has ended is said elsewhere.
            Some(failure) if old.is_none_or(|old| old.shown != new.shown) => Err(failure),
            _ => Ok(new),
        });
        match (read, old) {
            (Ok(new), _) => loaded.push(new),
            (Err(failure), Some(old)) => {
                loaded.push(old.clone());
                failures.push(failure);
            }
            (Err(failure), None) => return Err(failure),
        }
    }
    let read = |path: &Path| {
        let issuers = certificates::certificates(path)?;
        verifier(path, &issuers).map(|_| issuers)
    };
    let issuers = tls.client_ca.as_deref().map_or(Ok(Vec::new()), read).unwrap_or_else(|failure| {
        failures.push(failure);
        known.issuers()
    });
    with_all(tls, loaded, issuers, &shown)
}

/// A policy with what was read of its files, and what else it shows; `known`: what it shows until then.
fn with_all(
    tls: &Tls,
    mut loaded: Vec<Loaded>,
    issuers: Vec<CertificateDer<'static>>,
    known: &[Loaded],
) -> Result<Prepared, Failure> {
    let provider = provider();
    if tls.speak == SpeakTls::SelfSigned {
        loaded.push(self_signed::load(provider)?);
    }
    if let Some(managed) = &tls.managed {
        loaded.extend(authority::load(managed, known, provider)?);
    }
    let certificates = Arc::new(Certificates::default());
    let config = config(tls, &issuers, certificates.clone())?;
    Ok(Prepared { said: tls.clone(), config, certificates, table: Table::new(loaded, issuers, tls.strict_sni) })
}

impl Prepared {
    /// The certificates that it shows.
    pub fn shown(&self) -> &[Shown] {
        &self.table.shown
    }
}

/// The policies of all listeners, for those who want to see what they show. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub struct Policies(Arc<Mutex<Vec<OfListener>>>);

/// The address of a listener, and its policy.
type OfListener = (String, Arc<Policy>);

/// What has become of files that were read again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// What is shown now, if that is something new.
    pub shown: Option<String>,
    /// What is wrong with files in whose place the old ones are shown on.
    pub failures: Vec<Failure>,
}

impl Policies {
    /// Listeners have come or gone: those that there are, each with its address.
    pub fn put(&self, all: Vec<(String, Arc<Policy>)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = all;
    }

    pub(super) fn all(&self) -> Vec<Arc<Policy>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(_, policy)| policy.clone()).collect()
    }

    /// The files that they are read from, but for those that an authority here has issued.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.all().iter().flat_map(|policy| policy.said().files()).collect();
        files.sort();
        files.dedup();
        files
    }

    /// Has all of them read their files again, each with the address of its listener.
    pub fn renew(&self) -> Vec<(String, Renewed)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.into_iter().map(|(address, policy)| (address, policy.renew())).collect()
    }

    /// All certificates, each with the address of its listener.
    pub fn shown(&self) -> Vec<(String, Shown)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of = |(address, policy): &(String, Arc<Policy>)| {
            let shown = policy.certificates().shown().into_iter();
            shown.map(|shown| (address.clone(), shown)).collect::<Vec<_>>()
        };
        all.iter().flat_map(of).collect()
    }
}

impl std::fmt::Display for Prepared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let until = |shown: &Shown| format!("{} until {}", shown.names.join(", "), super::day(shown.not_after));
        let all: Vec<String> = self.table.shown.iter().map(until).collect();
        write!(formatter, "certificates of {}", all.join("; "))
    }
}

fn config(
    tls: &Tls,
    issuers: &[CertificateDer<'static>],
    certificates: Arc<Certificates>,
) -> Result<ServerConfig, Failure> {
    let versions = match tls.min_version {
        TlsVersion::V1_2 => &[&TLS13, &TLS12][..],
        TlsVersion::V1_3 => &[&TLS13][..],
    };
    let builder = ServerConfig::builder_with_provider(provider().clone()).with_protocol_versions(versions);
    let builder = builder.expect("the provider has suites of both versions");
    let builder = match &tls.client_ca {
        Some(path) => builder.with_client_cert_verifier(verifier(path, issuers)?),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(certificates);
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
    // Those who come back bring what they need (tickets): nothing is kept here for clients that may never do.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    if tls.client_ca.is_none() {
        config.ticketer = ticketer().clone();
    } else {
        // A session that is resumed shows no certificate, and nobody would see that it is not accepted any more.
        config.send_tls13_tickets = 0;
    }
    Ok(config)
}

/// Accepts clients with a certificate that one of those in the file has issued.
fn verifier(path: &Path, issuers: &[CertificateDer<'static>]) -> Result<Arc<dyn ClientCertVerifier>, Failure> {
    let mut roots = RootCertStore::empty();
    for certificate in issuers {
        roots.add(certificate.clone()).map_err(|error| {
            Failure::new(path, format!("a certificate in it cannot be used: {error}"), "expected those of issuers")
        })?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider().clone()).build();
    verifier.map_err(|error| Failure::new(path, format!("it cannot be used: {error}"), ""))
}

/// The cryptography of the process.
pub(crate) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| Arc::new(aws_lc_rs::default_provider()))
}

/// Gathers the randomness that this thread's first handshake needs, for which the library takes some 50 ms of CPU: whoever serves does it before.
pub fn seed() {
    // Without randomness each handshake says so.
    let _ = provider().secure_random.fill(&mut [0; 32]);
}

impl Policy {
    /// A policy that says that.
    pub fn new(prepared: Prepared) -> Policy {
        let Prepared { said, config, certificates, table } = prepared;
        certificates.put(table);
        Policy {
            said: RwLock::new(said),
            config: RwLock::new(Arc::new(config)),
            certificates,
            renewing: Mutex::default(),
            #[cfg(debug_assertions)]
            is_stand_in: false,
        }
    }

    /// A policy for the simulation, whose sessions are [`super::stand_in`]'s.
    #[cfg(debug_assertions)]
    pub fn stand_in() -> Policy {
        let prepared = prepare(&Tls::default()).expect("nothing is read");
        Policy { is_stand_in: true, ..Policy::new(prepared) }
    }

    /// Has it say something else from the next session on.
    pub fn replace(&self, prepared: Prepared) {
        self.replace_if(prepared, |_, _| true);
    }

    /// The same, if it says the same as before, with what is in its files now: a reload may have been faster. Whether it does.
    fn replace_files(&self, prepared: Prepared) -> bool {
        self.replace_if(prepared, |said, prepared| *said == prepared.said)
    }

    fn replace_if(&self, prepared: Prepared, may: impl FnOnce(&Tls, &Prepared) -> bool) -> bool {
        // Held to the end: who comes at the same time comes behind it.
        let mut said = self.said.write().unwrap_or_else(PoisonError::into_inner);
        if !may(&said, &prepared) {
            return false;
        }
        let Prepared { said: says, mut config, table, .. } = prepared;
        *said = says;
        config.cert_resolver = self.certificates.clone();
        self.certificates.put(table);
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        true
    }

    /// Reads its files again, and shows what is new in them and holds.
    pub(super) fn renew(&self) -> Renewed {
        let _alone = self.renewing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut renewed = Renewed::default();
        match prepare_again(&self.said(), &self.certificates, &mut renewed.failures) {
            Ok(prepared) if self.says(&prepared) => {}
            Ok(prepared) => {
                let shown = prepared.to_string();
                // One that says something else by now has read the files by itself.
                renewed.shown = self.replace_files(prepared).then_some(shown);
            }
            Err(failure) => renewed.failures.push(failure),
        }
        renewed
    }

    /// Whether it says just that, with the same certificates.
    pub fn says(&self, prepared: &Prepared) -> bool {
        let said = self.said.read().unwrap_or_else(PoisonError::into_inner);
        *said == prepared.said && self.certificates.are(&prepared.table)
    }

    /// The certificates that it shows.
    pub fn certificates(&self) -> &Arc<Certificates> {
        &self.certificates
    }

    /// Whether clients are to show certificates of their own.
    pub(super) fn asks_for_certificates(&self) -> bool {
        self.said.read().unwrap_or_else(PoisonError::into_inner).client_ca.is_some()
    }

    /// The line that every answer gets; empty if none.
    pub fn hsts(&self) -> String {
        let said = self.said.read().unwrap_or_else(PoisonError::into_inner);
        let line = |time: std::time::Duration| format!("Strict-Transport-Security: max-age={}\r\n", time.as_secs());
        said.hsts.map(line).unwrap_or_default()
    }

    /// What it says.
    pub(super) fn said(&self) -> Tls {
        self.said.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        // It is replaced whole, whoever panics. Nobody holds the lock for longer than that takes.
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        if !authority::is_challenged() {
            return config;
        }
        let mut challenged = ServerConfig::clone(&config);
        challenged.alpn_protocols.push(authority::PROTOCOL.to_vec());
        Arc::new(challenged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    /// Files of certificates in a directory, and a policy that shows them.
    struct Files {
        place: tempfile::TempDir,
        policy: Policy,
    }

    impl Files {
        /// Of certificates for those names, each of which begins with the name of its files.
        fn of(names: &[&str]) -> Files {
            let place = tempfile::tempdir().unwrap();
            names.iter().for_each(|name| write(place.path(), name, (-DAY, DAY)));
            let pair = |name: &&str| {
                let [certificate, key] = ["pem", "key"].map(|end| place.path().join(format!("{name}.{end}")));
                (certificate, key)
            };
            let tls = Tls { certificates: names.iter().map(pair).collect(), ..Tls::default() };
            let policy = Policy::new(prepare(&tls).unwrap());
            Files { place, policy }
        }

        fn shown(&self) -> Vec<Vec<u8>> {
            self.policy.certificates.loaded().iter().map(|one| one.key.cert[0].to_vec()).collect()
        }
    }

    /// Writes one for `NAME.example` which holds from and until so many seconds from now.
    fn write(place: &Path, name: &str, (from, until): (i64, i64)) {
        let time = |seconds| time::OffsetDateTime::now_utc().saturating_add(time::Duration::seconds(seconds));
        let mut params = rcgen::CertificateParams::new(vec![format!("{name}.example")]).unwrap();
        (params.not_before, params.not_after) = (time(from), time(until));
        let key = rcgen::KeyPair::generate().unwrap();
        std::fs::write(place.join(format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(place.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    #[test]
    fn each_pair_is_renewed_by_itself() {
        let files = Files::of(&["a", "b"]);
        assert_eq!(files.policy.renew(), Renewed::default());
        let before = files.shown();
        std::fs::remove_file(files.place.path().join("a.pem")).unwrap();
        write(files.place.path(), "b", (-DAY, 2 * DAY));
        let renewed = files.policy.renew();
        assert!(renewed.shown.unwrap().contains("b.example until"), "b is new");
        assert!(renewed.failures[0].path.ends_with("a.pem") && renewed.failures.len() == 1);
        let now = files.shown();
        assert_eq!((now.len(), now[0] == before[0], now[1] == before[1]), (2, true, false));
        let again = files.policy.renew();
        assert_eq!((again.shown, again.failures), (None, renewed.failures), "it is wrong still");
        assert!(prepare(&files.policy.said()).is_err(), "a reload takes all or nothing");
        write(files.place.path(), "a", (-DAY, DAY));
        assert_eq!(files.policy.renew().failures, []);
        assert_ne!(files.shown()[0], before[0]);
    }

    #[test]
    fn one_that_does_not_hold_takes_nobodys_place() {
        let files = Files::of(&["a"]);
        let before = files.shown();
        for span in [(DAY, 2 * DAY), (-2 * DAY, -DAY)] {
            write(files.place.path(), "a", span);
            let Renewed { shown, failures } = files.policy.renew();
            assert_eq!((shown, failures.len(), files.shown() == before), (None, 1, true), "{span:?}");
        }
    }

    #[test]
    fn those_who_issue_clients_certificates_stay_while_their_file_is_broken() {
        let files = Files::of(&["a", "ca"]);
        let path = files.place.path().join("ca.pem");
        let tls = Tls { client_ca: Some(path.clone()), ..files.policy.said() };
        files.policy.replace(prepare(&tls).unwrap());
        let known = files.policy.certificates.issuers();
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n").unwrap();
        write(files.place.path(), "a", (-DAY, 2 * DAY));
        let Renewed { shown, failures } = files.policy.renew();
        assert!(shown.is_some() && failures.iter().all(|failure| failure.path == path), "{failures:?}");
        assert_eq!(files.policy.certificates.issuers(), known);
    }
}
