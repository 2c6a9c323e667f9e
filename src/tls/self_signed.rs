//! A certificate for a laptop: made in memory when the server starts, signed by itself, and gone with it and its successors. Clients trust it
//! only if they are told to.

use std::fmt;
use std::path::PathBuf;
use std::sync::OnceLock;

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{CertificateParams, DnType, IsCa, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};

use super::certificates::{Failure, Loaded, Shown, now};
use super::{der, provider};

/// Whom it is for, besides the name of the machine.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// One that a successor takes over holds for so long at least, in seconds: it may run for as long as the server before it.
const LEAST_LEFT: i64 = 30 * 86_400;

/// The certificate of this process.
#[derive(Debug)]
pub struct SelfSigned {
    /// As clients are to be given it.
    pub pem: String,
    /// The SHA-256 of it, as in `AB:CD:…`.
    pub fingerprint: String,
    /// Whether a server before this one has made it.
    pub is_inherited: bool,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

/// It, for a successor.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedOver {
    pem: String,
    key: Vec<u8>,
}

impl fmt::Debug for HandedOver {
    /// Without its key.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("HandedOver").field("pem", &self.pem).finish_non_exhaustive()
    }
}

static MADE: OnceLock<Result<SelfSigned, String>> = OnceLock::new();

/// That which was made, if any was.
pub fn self_signed() -> Option<&'static SelfSigned> {
    MADE.get()?.as_ref().ok()
}

/// That, for the successor of this process.
pub fn hand_over_self_signed() -> Option<HandedOver> {
    self_signed().map(|made| HandedOver { pem: made.pem.clone(), key: made.key.clone() })
}

/// Takes over that of a predecessor, before any is made here; one that is none, or does not hold for long, is passed over.
pub fn adopt_self_signed(handed: HandedOver) {
    if let Some(inherited) = SelfSigned::inherited(handed, now()) {
        // One that is there already stays.
        let _ = MADE.set(Ok(inherited));
    }
}

impl SelfSigned {
    fn of(pem: String, certificate: Vec<u8>, key: Vec<u8>) -> SelfSigned {
        let hash = digest(&SHA256, &certificate);
        let hex: Vec<String> = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        SelfSigned { pem, fingerprint: hex.join(":"), is_inherited: false, certificate, key }
    }

    fn inherited(handed: HandedOver, now: i64) -> Option<SelfSigned> {
        let certificate = CertificateDer::from_pem_slice(handed.pem.as_bytes()).ok()?.to_vec();
        let holds = der::facts(&certificate)?.not_after >= now + LEAST_LEFT;
        let key = PrivateKeyDer::try_from(handed.key.clone()).ok()?;
        provider().key_provider.load_private_key(key).ok().filter(|_| holds)?;
        Some(SelfSigned { is_inherited: true, ..SelfSigned::of(handed.pem, certificate, handed.key) })
    }
}

/// It, as a listener shows it: a reload does not make another.
pub(super) fn load(provider: &CryptoProvider) -> Result<Loaded, Failure> {
    let failed = |what: String| Failure::new("self-signed".as_ref(), format!("it cannot be made: {what}"), "");
    let made =
        MADE.get_or_init(|| make().map_err(|error| error.to_string())).as_ref().map_err(|what| failed(what.clone()))?;
    let key = PrivateKeyDer::try_from(made.key.clone()).map_err(|error| failed(error.to_owned()))?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| failed(error.to_string()))?;
    let facts = der::facts(&made.certificate).unwrap_or_default();
    let (not_before, not_after) = (facts.not_before, facts.not_after);
    let shown = Shown { path: PathBuf::from("self-signed"), names: facts.names, not_before, not_after };
    Ok(Loaded::made(shown, CertifiedKey::new(vec![made.certificate.clone().into()], key)))
}

fn make() -> Result<SelfSigned, rcgen::Error> {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    let host = host.filter(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte))
    });
    let names = NAMES.iter().map(|name| (*name).to_owned()).chain(host.filter(|name| name != NAMES[0]));
    let mut params = CertificateParams::new(names.collect::<Vec<_>>())?;
    params.distinguished_name.push(DnType::CommonName, "production_server on this machine");
    params.is_ca = IsCa::ExplicitNoCa;
    // Some clients take none that holds for longer than 398 days.
    params.not_before = time(-86_400);
    params.not_after = time(365 * 86_400);
    let key = KeyPair::generate()?;
    let certificate = params.self_signed(&key)?;
    Ok(SelfSigned::of(certificate.pem(), certificate.der().to_vec(), key.serialize_der()))
}

fn time(from_now: i64) -> time::OffsetDateTime {
    let now = time::OffsetDateTime::now_utc();
    now.saturating_add(time::Duration::seconds(from_now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_shows_what_its_predecessor_has_made_unless_it_ends_soon() {
        let made = make().unwrap();
        let handed = HandedOver { pem: made.pem.clone(), key: made.key.clone() };
        assert!(!format!("{handed:?}").contains("key"));
        let handed: HandedOver = serde_json::from_str(&serde_json::to_string(&handed).unwrap()).unwrap();
        let inherited = SelfSigned::inherited(handed.clone(), now()).unwrap();
        assert!(inherited.is_inherited && !made.is_inherited);
        assert_eq!((&inherited.certificate, &inherited.key), (&made.certificate, &made.key));
        assert_eq!((&inherited.pem, &inherited.fingerprint), (&made.pem, &made.fingerprint));
        assert!(SelfSigned::inherited(handed.clone(), now() + 336 * 86_400).is_none());
        for broken in [HandedOver { pem: String::new(), ..handed.clone() }, HandedOver { key: vec![1], ..handed }] {
            assert!(SelfSigned::inherited(broken, now()).is_none());
        }
    }
}
