//! What a certificate authority needs of listeners, in one place of the process: answers to its challenges while they are pending, and the
//! certificates that it has issued, which are shown by every listener that has none of its own for these names.
//!
//! The answers are looked up by every loop: `http-01` (RFC 8555, 8.3) before routes, `tls-alpn-01` (RFC 8737) by the name that a handshake
//! asks for, if it offers that protocol alone.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::certificates::{Failure, Loaded, Shown, certificates};
use super::der::{self, hex};
use super::policy::{Policies, provider};
use crate::config::Managed;

/// The protocol of a handshake that looks at a challenge's answer and at nothing else (RFC 8737, 6.2).
pub(super) const PROTOCOL: &[u8] = b"acme-tls/1";
/// Where answers are asked for over HTTP, up to the token (RFC 8555, 8.3).
const PLACE: &[u8] = b"/.well-known/acme-challenge/";
/// What the name of a file of a certificate and its key ends with.
pub const EXTENSION: &str = "pem";

#[derive(Debug)]
enum Answer {
    Http { token: String, authorization: String },
    Tls { name: String, key: Arc<CertifiedKey> },
}

static PENDING: AtomicBool = AtomicBool::new(false);
static ANSWERS: RwLock<Vec<Answer>> = RwLock::new(Vec::new());
/// Those that were made until an authority has issued better ones, by the names that they are for: a reload does not make others.
static TEMPORARY: Mutex<Vec<(Vec<String>, Made)>> = Mutex::new(Vec::new());

/// A certificate and its key.
type Made = (CertificateDer<'static>, Vec<u8>);

/// Whether any answer is pending.
#[inline(always)]
pub fn is_challenged() -> bool {
    PENDING.load(Ordering::Relaxed)
}

/// Has a challenge answered over HTTP: `authorization` to whoever asks for `token`.
pub fn answer_http(token: &str, authorization: &str) {
    put(Answer::Http { token: token.to_owned(), authorization: authorization.to_owned() });
}

/// Has a challenge for a name answered in handshakes.
///
/// # Errors
/// When no certificate can be made.
pub fn answer_tls(name: &str, authorization: &str) -> Result<(), String> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, authorization.as_bytes());
    let extension = CustomExtension::new_acme_identifier(digest.as_ref());
    let made = make(&[name.to_owned()], vec![extension]).map_err(|error| error.to_string())?;
    let key = certified(made, provider()).map_err(|failure| failure.what)?;
    put(Answer::Tls { name: name.to_owned(), key: Arc::new(key) });
    Ok(())
}

fn put(answer: Answer) {
    ANSWERS.write().unwrap_or_else(PoisonError::into_inner).push(answer);
    PENDING.store(true, Ordering::Relaxed);
}

/// Takes the answer to a token, or for a name, away.
pub fn withdraw(of: &str) {
    let mut answers = ANSWERS.write().unwrap_or_else(PoisonError::into_inner);
    answers.retain(|answer| match answer {
        Answer::Http { token, .. } => token != of,
        Answer::Tls { name, .. } => name != of,
    });
    PENDING.store(!answers.is_empty(), Ordering::Relaxed);
}

/// The answer that is asked for by a path, if it is pending.
pub fn http_answer(path: &[u8]) -> Option<String> {
    let asked = path.strip_prefix(PLACE)?;
    let answers = ANSWERS.read().unwrap_or_else(PoisonError::into_inner);
    answers.iter().find_map(|answer| match answer {
        Answer::Http { token, authorization } if token.as_bytes() == asked => Some(authorization.clone()),
        _ => None,
    })
}

/// The certificate that answers for a name.
pub(super) fn tls_answer(asked: &str) -> Option<Arc<CertifiedKey>> {
    let answers = ANSWERS.read().unwrap_or_else(PoisonError::into_inner);
    answers.iter().find_map(|answer| match answer {
        Answer::Tls { name, key } if name == asked => Some(key.clone()),
        _ => None,
    })
}

impl Policies {
    /// Has all of them show what there is now for those names, and says why one cannot. What is wrong with other files of theirs keeps none of
    /// it back, and is for whoever looks after them to say.
    pub fn reread(&self, managed: &Managed) -> Vec<Failure> {
        let mut failures = Vec::new();
        for policy in self.all() {
            let said = policy.said();
            if said.managed.as_ref() == Some(managed) {
                let files = said.files();
                failures.extend(policy.renew().failures.into_iter().filter(|failure| !files.contains(&failure.path)));
            }
        }
        failures
    }
}

/// What the names of files begin with that belong to those names at the authority with that URL, whatever the order of the names is.
pub fn base(names: &[String], authority: &str) -> String {
    let names = sorted(names);
    // There is no longer one on most file systems than of 255 bytes, with what stands behind it.
    let first: String = names.first().copied().unwrap_or_default().chars().take(200).collect();
    format!("{first}-{}-{}", short_hash(&names.join(",")), short_hash(authority))
}

/// What they began with in versions for which the authority did not matter: with any of the names.
pub fn earlier_bases(names: &[String]) -> Vec<String> {
    let names = sorted(names);
    let hash = short_hash(&names.join(","));
    names.iter().map(|name| format!("{name}-{hash}")).collect()
}

fn sorted(names: &[String]) -> Vec<&str> {
    let mut names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// What tells names of files apart: eight digits.
pub fn short_hash(text: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    hex(&hash.as_ref()[..4])
}

/// The certificates of those names that there are, and a temporary one for names that have none: those of the authority first, as long as they
/// hold, then those of others, and of each the one that ends last. Of those that are shown already, `known`, no file needs to be readable.
pub(super) fn load(managed: &Managed, known: &[Loaded], provider: &CryptoProvider) -> Result<Vec<Loaded>, Failure> {
    let files = std::fs::read_dir(&managed.directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == EXTENSION));
    // What is broken or has ended is ordered anew by whoever looks after them.
    let mut loaded: Vec<Loaded> = files.filter_map(|path| Loaded::read_holding(&path, &path, provider).ok()).collect();
    // Unless it was removed: what cannot be read now, for whatever reason, is still good.
    let kept = known.iter().filter(|one| one.shown.path.parent() == Some(&managed.directory));
    let kept = kept.filter(|one| one.shown.path.extension().is_some_and(|extension| extension == EXTENSION));
    let kept = kept.filter(|one| !loaded.iter().any(|new| new.shown.path == one.shown.path));
    let kept = kept.filter(|one| one.shown.outdated().is_none() && !matches!(one.shown.path.try_exists(), Ok(false)));
    loaded.extend(kept.cloned().collect::<Vec<_>>());
    let end = format!("-{}", short_hash(&managed.authority));
    let is_of_the_authority =
        |path: &Path| path.file_stem().and_then(|stem| stem.to_str()).is_some_and(|stem| stem.ends_with(&end));
    loaded.sort_by_key(|one| std::cmp::Reverse((is_of_the_authority(&one.shown.path), one.shown.not_after)));
    // Nobody is shown a second one for a name, and its end is nothing that anybody needs to hear of.
    let mut covered: Vec<String> = Vec::new();
    loaded.retain(|one| {
        let adds = one.shown.names.iter().any(|name| managed.names.contains(name) && !covered.contains(name));
        covered.extend(one.shown.names.iter().cloned());
        adds
    });
    let has = |name: &&String| !loaded.iter().any(|one| one.shown.names.contains(name));
    let missing: Vec<String> = managed.names.iter().filter(has).cloned().collect();
    if !missing.is_empty() {
        loaded.push(temporary(missing, &managed.directory, provider)?);
    }
    Ok(loaded)
}

fn temporary(names: Vec<String>, directory: &Path, provider: &CryptoProvider) -> Result<Loaded, Failure> {
    let failed =
        |error: rcgen::Error| Failure::new(directory, format!("no temporary certificate can be made: {error}"), "");
    let mut known = TEMPORARY.lock().unwrap_or_else(PoisonError::into_inner);
    let made = match known.iter().find(|(of, _)| *of == names) {
        Some((_, made)) => made.clone(),
        None => {
            let made = make(&names, Vec::new()).map_err(failed)?;
            known.push((names.clone(), made.clone()));
            made
        }
    };
    let facts = der::facts(&made.0).unwrap_or_default();
    let (not_before, not_after) = (facts.not_before, facts.not_after);
    let shown = Shown { path: directory.join("temporary"), names, not_before, not_after };
    Ok(Loaded::made(shown, certified(made, provider)?))
}

fn make(names: &[String], extensions: Vec<CustomExtension>) -> Result<Made, rcgen::Error> {
    let mut params = CertificateParams::new(names)?;
    params.custom_extensions = extensions;
    let key = KeyPair::generate()?;
    Ok((params.self_signed(&key)?.der().clone(), key.serialize_der()))
}

fn certified((certificate, key): Made, provider: &CryptoProvider) -> Result<CertifiedKey, Failure> {
    let failed = |what: String| Failure::new(Path::new("temporary"), what, "");
    let key = PrivateKeyDer::try_from(key).map_err(|error| failed(error.to_owned()))?;
    let key = provider.key_provider.load_private_key(key).map_err(|error| failed(error.to_string()))?;
    Ok(CertifiedKey::new(vec![certificate], key))
}

/// What an authority has issued, as it lies in a file with its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The names that it is for.
    pub names: Vec<String>,
    /// From when it holds, in seconds since 1970.
    pub not_before: i64,
    /// Until when.
    pub not_after: i64,
    /// Its issuer's key identifier and its serial number, by which renewals are suggested (RFC 9773, 4.1).
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

/// Reads a certificate and its key from one file, and demands that they are a pair that holds now.
///
/// # Errors
/// What is wrong with the file.
pub fn issued(path: &Path) -> Result<Issued, Failure> {
    let loaded = Loaded::read_holding(path, path, provider())?;
    let chain = certificates(path)?;
    let first = chain.first().map_or(&[][..], |first| first);
    let facts = der::facts(first).unwrap_or_default();
    let (names, not_before, not_after) = (loaded.shown.names, facts.not_before, facts.not_after);
    Ok(Issued { names, not_before, not_after, identity: der::identity(first) })
}

#[cfg(test)]
mod tests {
    use super::super::prepare;
    use super::*;

    fn pem(kind: &str, bytes: &[u8]) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(bytes);
        format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n")
    }

    /// Writes a certificate for those names and its key into one file; the certificate.
    fn write(file: &Path, names: &[String]) -> CertificateDer<'static> {
        let (certificate, key) = make(names, Vec::new()).unwrap();
        std::fs::write(file, pem("CERTIFICATE", &certificate) + &pem("PRIVATE KEY", &key)).unwrap();
        certificate
    }

    #[test]
    fn answers_are_given_to_their_tokens_while_they_are_pending() {
        answer_http("token-a", "token-a.thumb");
        answer_tls("a.example", "token-b.thumb").unwrap();
        assert!(is_challenged());
        let ask = |token: &str| http_answer([PLACE, token.as_bytes()].concat().as_slice());
        assert_eq!(ask("token-a").as_deref(), Some("token-a.thumb"));
        for other in ["token-b", "token-", "token-a/", "token-a?x", ""] {
            assert_eq!(ask(other), None, "{other}");
        }
        assert_eq!(http_answer(b"/token-a"), None);
        assert!(tls_answer("a.example").is_some() && tls_answer("b.example").is_none());
        withdraw("token-a");
        withdraw("a.example");
        assert!(ask("token-a").is_none() && tls_answer("a.example").is_none());
    }

    #[test]
    fn names_without_a_certificate_have_a_temporary_one_which_stays_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let names = vec!["one.example".to_owned(), "two.example".to_owned()];
        let managed =
            Managed { directory: directory.path().to_owned(), names: names.clone(), authority: String::new() };
        let load = |managed: &Managed| load(managed, &[], provider()).unwrap();
        let shown = |managed: &Managed| load(managed).into_iter().map(|one| one.shown).collect::<Vec<_>>();
        assert_eq!(shown(&managed)[0].names, names);
        let tls = crate::config::Tls { managed: Some(managed.clone()), ..Default::default() };
        let policy = Arc::new(super::super::Policy::new(prepare(&tls).unwrap()));
        assert!(policy.says(&prepare(&tls).unwrap()), "a reload changes nothing");
        let policies = Policies::default();
        policies.put(vec![("127.0.0.1:443".to_owned(), policy.clone())]);
        let file = directory.path().join("one.pem");
        let certificate = write(&file, &names[..1]);
        assert_eq!(issued(&file).unwrap().names, names[..1]);
        assert_eq!(policies.reread(&managed), []);
        let shown = policy.certificates().shown();
        assert_eq!(shown.iter().map(|one| one.names.clone()).collect::<Vec<_>>(), [&names[..1], &names[1..]]);
        std::fs::write(&file, pem("CERTIFICATE", &certificate)).unwrap();
        assert!(issued(&file).is_err());
        assert_eq!(policies.reread(&managed), []);
        assert_eq!(policy.certificates().shown(), shown, "it is shown on, for it holds");
        std::fs::remove_file(&file).unwrap();
        assert_eq!(policies.reread(&managed), []);
        assert_eq!(policy.certificates().shown()[0].names, names, "it was taken away");
    }

    #[test]
    fn certificates_of_the_authority_come_before_others_which_serve_until_they_come() {
        let directory = tempfile::tempdir().unwrap();
        let names = vec!["b.example".to_owned(), "a.example".to_owned()];
        let managed = |authority: &str| Managed {
            directory: directory.path().to_owned(),
            names: names.clone(),
            authority: authority.to_owned(),
        };
        let file = |authority: &str| directory.path().join(format!("{}.{EXTENSION}", base(&names, authority)));
        let shown = |authority: &str| {
            let mut loaded = load(&managed(authority), &[], provider()).unwrap();
            assert_eq!(loaded.len(), 1, "no name needs two");
            loaded.remove(0).shown.path
        };
        let earlier = directory.path().join(format!("{}.{EXTENSION}", earlier_bases(&names)[1]));
        write(&earlier, &names);
        assert_eq!((shown("https://first/"), shown("https://second/")), (earlier.clone(), earlier));
        write(&file("https://first/"), &names);
        assert_eq!(shown("https://first/"), file("https://first/"));
        write(&file("https://second/"), &names);
        assert_eq!(
            (shown("https://first/"), shown("https://second/")),
            (file("https://first/"), file("https://second/"))
        );
        let others: Vec<String> = names.iter().rev().cloned().collect();
        assert_eq!(base(&others, "x"), base(&names, "x"));
        assert_ne!(base(&names[..1], "x"), base(&names, "x"));
        assert_eq!(earlier_bases(&others), earlier_bases(&names));
    }
}
