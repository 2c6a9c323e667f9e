//! A certificate for a laptop: made in memory when the server starts, signed by itself, and gone with it. Clients trust it only if they are
//! told to.

use std::path::PathBuf;
use std::sync::OnceLock;

use aws_lc_rs::digest::{SHA256, digest};
use rcgen::{CertificateParams, DnType, IsCa, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;

use super::certificates::{Failure, Loaded, Shown};
use super::der;

/// Whom it is for, besides the name of the machine.
const NAMES: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// The certificate of this process.
#[derive(Debug)]
pub struct SelfSigned {
    /// As clients are to be given it.
    pub pem: String,
    /// The SHA-256 of it, as in `AB:CD:…`.
    pub fingerprint: String,
    certificate: Vec<u8>,
    key: Vec<u8>,
}

static MADE: OnceLock<Result<SelfSigned, String>> = OnceLock::new();

/// That which was made, if any was.
pub fn self_signed() -> Option<&'static SelfSigned> {
    MADE.get()?.as_ref().ok()
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
    let hash = digest(&SHA256, certificate.der());
    let hex: Vec<String> = hash.as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    Ok(SelfSigned {
        pem: certificate.pem(),
        fingerprint: hex.join(":"),
        certificate: certificate.der().to_vec(),
        key: key.serialize_der(),
    })
}

fn time(from_now: i64) -> time::OffsetDateTime {
    let now = time::OffsetDateTime::now_utc();
    now.saturating_add(time::Duration::seconds(from_now))
}
