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
    let provider = provider();
    let mut loaded =
        tls.pairs().map(|(chain, key)| Loaded::read(chain, key, provider)).collect::<Result<Vec<_>, _>>()?;
    if tls.speak == SpeakTls::SelfSigned {
        loaded.push(self_signed::load(provider)?);
    }
    if let Some(managed) = &tls.managed {
        loaded.extend(authority::load(managed, provider)?);
    }
    let certificates = Arc::new(Certificates::default());
    let issuers = tls.client_ca.as_deref().map_or(Ok(Vec::new()), certificates::certificates)?;
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

    /// Has all of them read their files again. Those with others in them, each with the address of its listener, and what it shows now or why not.
    pub fn renew(&self) -> Vec<(String, Result<String, Failure>)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        all.into_iter().filter_map(|(address, policy)| Some((address, policy.renew()?))).collect()
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
    pub(super) fn replace_files(&self, prepared: Prepared) -> bool {
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

    /// Reads its files again; what it shows now, or why it does not show what is new. `None`: nothing is.
    fn renew(&self) -> Option<Result<String, Failure>> {
        let prepared = match prepare(&self.said()) {
            Ok(prepared) if self.says(&prepared) => return None,
            Ok(prepared) => prepared,
            Err(failure) => return Some(Err(failure)),
        };
        let known = self.certificates.shown();
        let new = prepared.shown().iter().filter(|shown| !known.contains(shown));
        if let Some(failure) = new.filter_map(Shown::outdated).next() {
            return Some(Err(failure));
        }
        let shown = prepared.to_string();
        self.replace_files(prepared).then_some(Ok(shown))
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
