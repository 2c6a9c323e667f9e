//! JSON Web Tokens (RFC 7519): signed by somebody whose keys the configuration names, for this audience, and not expired.
//!
//! Each key has the algorithms that the configuration gives it, and a token is verified with those or not at all (RFC 8725 §3.1). A key of a
//! set that cannot be used is left out; a set without any that can is an error.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, Validation, decode, decode_header, errors::ErrorKind};
use serde::Deserialize;

use super::Live;

/// What tokens may be signed with.
pub const ALGORITHMS: &[(&str, Algorithm)] = &[
    ("HS256", Algorithm::HS256),
    ("HS384", Algorithm::HS384),
    ("HS512", Algorithm::HS512),
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];
/// By how much clocks may differ.
const LEEWAY: Duration = Duration::from_secs(30);
/// The longest token, in bytes.
const LONGEST: usize = 8 * 1024;
/// The fewest bytes of a shared secret: those of the shortest hash (RFC 7518 §3.2).
const LEAST_SECRET: usize = 32;
/// Keys that a set has at most.
const MOST_KEYS: usize = 64;

/// What a token has to be besides genuine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Who may have issued it; empty: whoever has a key.
    pub issuers: Vec<String>,
    /// For whom it has to be; empty: for anybody.
    pub audiences: Vec<String>,
    /// With which algorithms it may be signed; at least one.
    pub algorithms: Vec<Algorithm>,
}

/// A key.
pub(super) struct Key {
    id: Option<String>,
    key: DecodingKey,
    /// With which algorithm it is used, and what else holds.
    rules: Vec<Validation>,
}

/// What tokens are verified with.
pub struct Tokens {
    /// File and rules, by which they are told from others.
    pub(super) text: String,
    keys: Keys,
}

/// Where keys come from.
enum Keys {
    Said(Arc<Vec<Key>>),
    Live(Arc<Live>),
}

/// Why a token is not worth anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unverified {
    /// It is none of ours, or not for us, or not now; `guessed`: somebody may have tried.
    Wrong {
        /// See above.
        guessed: bool,
    },
    /// The keys that would tell have not come yet.
    NoKeys,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Tokens").finish_non_exhaustive()
    }
}

/// What is read of a token.
#[derive(Deserialize)]
struct Claims {
    #[serde(default)]
    sub: Option<String>,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<serde_json::Value>,
}

impl Tokens {
    /// Reads a set of keys (RFC 7517 §5), or one public key in PEM.
    ///
    /// # Errors
    /// What is wrong with it, in one line.
    pub fn parse(text: &str, rules: &Rules) -> Result<Tokens, String> {
        let keys = Keys::Said(Arc::new(set(text, rules)?));
        Ok(Tokens { text: format!("{text}\n{rules:?}"), keys })
    }

    /// Those that are fetched from a URL so often.
    pub fn at(url: &str, rules: &Rules, refresh: Duration) -> Tokens {
        Tokens { text: format!("{url}\n{rules:?}\n{refresh:?}"), keys: Keys::Live(Live::new(url, rules, refresh)) }
    }

    /// The set that is fetched, if one is.
    pub fn live(&self) -> Option<&Live> {
        match &self.keys {
            Keys::Live(live) => Some(live),
            Keys::Said(_) => None,
        }
    }

    /// Whose token it is: its subject, which may be empty.
    pub(super) fn verify(&self, token: &[u8]) -> Result<String, Unverified> {
        let wrong = |guessed| Unverified::Wrong { guessed };
        if token.len() > LONGEST {
            return Err(wrong(false));
        }
        let keys = match &self.keys {
            Keys::Said(keys) => keys.clone(),
            Keys::Live(live) => live.keys().ok_or(Unverified::NoKeys)?,
        };
        let header = decode_header(token).map_err(|_| wrong(true))?;
        let is_other = |key: &&Key| header.kid.is_some() && key.id.is_some() && header.kid != key.id;
        if let Keys::Live(live) = &self.keys
            && keys.iter().all(|key| is_other(&key))
        {
            // It may be new: whoever has it is not to be taken for somebody who guesses.
            live.miss();
            return Err(wrong(false));
        }
        let mut guessed = true;
        // A token that names its key is tried with that alone.
        for key in keys.iter().filter(|key| !is_other(key)) {
            let Some(rules) = key.rules.iter().find(|rules| rules.algorithms[0] == header.alg) else { continue };
            match decode::<Claims>(token, &key.key, rules) {
                // It asks for something that is not understood here (RFC 7515 §4.1.11).
                Ok(token) if token.header.crit.is_some() => return Err(wrong(false)),
                Ok(token) => return Ok(token.claims.sub.unwrap_or_default()),
                Err(error) => guessed &= matches!(error.kind(), ErrorKind::InvalidSignature),
            }
        }
        Err(wrong(guessed))
    }
}

/// Reads a set of keys, or one in PEM, for those rules.
pub(super) fn set(text: &str, rules: &Rules) -> Result<Vec<Key>, String> {
    let begin = text.trim_start();
    if begin.starts_with("-----BEGIN ") {
        let (key, family) = pem(begin)?;
        let rules = rules_for(family, None, None, rules);
        if rules.is_empty() {
            return Err("this key is for none of the `algorithms` that are allowed".to_owned());
        }
        return Ok(vec![Key { id: None, key, rules }]);
    }
    if begin.starts_with('<') {
        return Err(
            "this is HTML or XML: expected a set of keys in JSON, {\"keys\": […]}, or a public key in PEM".to_owned()
        );
    }
    let set: Set = serde_json::from_str(text).map_err(|error| {
        format!("expected a set of keys in JSON, {{\"keys\": […]}}, or a public key in PEM: {error}")
    })?;
    if set.keys.len() > MOST_KEYS {
        return Err(format!("{} keys: expected at most {MOST_KEYS}", set.keys.len()));
    }
    let keys: Vec<Key> = set.keys.into_iter().filter_map(|value| key(value, rules)).collect();
    if keys.is_empty() {
        return Err("none of its keys can be used with the `algorithms` that are allowed".to_owned());
    }
    Ok(keys)
}

/// A key of a set, if it can be used.
fn key(value: serde_json::Value, rules: &Rules) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    if matches!(jwk.common.public_key_use, Some(PublicKeyUse::Encryption)) {
        return None;
    }
    let family = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => AlgorithmFamily::Rsa,
        AlgorithmParameters::EllipticCurve(_) => AlgorithmFamily::Ec,
        AlgorithmParameters::OctetKeyPair(_) => AlgorithmFamily::Ed,
        AlgorithmParameters::OctetKey(_) => AlgorithmFamily::Hmac,
        _ => return None,
    };
    // A curve goes with one algorithm (RFC 7518 §3.4).
    let curve = match &jwk.algorithm {
        AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
            EllipticCurve::P256 => Some(Algorithm::ES256),
            EllipticCurve::P384 => Some(Algorithm::ES384),
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve != EllipticCurve::Ed25519 => return None,
        _ => None,
    };
    let own = match jwk.common.key_algorithm {
        Some(name) => Some(name.to_string().parse().ok()?),
        None => None,
    };
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    if family == AlgorithmFamily::Hmac && key.try_get_as_bytes().ok()?.len() < LEAST_SECRET {
        return None;
    }
    let rules = rules_for(family, own, curve, rules);
    (!rules.is_empty()).then_some(Key { id: jwk.common.key_id, key, rules })
}

/// A public key in PEM.
fn pem(text: &str) -> Result<(DecodingKey, AlgorithmFamily), String> {
    if text.starts_with("-----BEGIN PRIVATE")
        || text.starts_with("-----BEGIN RSA PRIVATE")
        || text.starts_with("-----BEGIN EC PRIVATE")
    {
        return Err(
            "this is a private key, which signs tokens: expected the public one, and the private one elsewhere"
                .to_owned(),
        );
    }
    let bytes = text.as_bytes();
    let rsa = DecodingKey::from_rsa_pem(bytes).map(|key| (key, AlgorithmFamily::Rsa));
    let any = rsa.or_else(|_| DecodingKey::from_ec_pem(bytes).map(|key| (key, AlgorithmFamily::Ec)));
    let any = any.or_else(|_| DecodingKey::from_ed_pem(bytes).map(|key| (key, AlgorithmFamily::Ed)));
    any.map_err(|_| "expected a public key in PEM: RSA, P-256, P-384 or Ed25519".to_owned())
}

/// The rules of a key, one for each algorithm that it is used with: its own, where it names one, of those that are allowed.
fn rules_for(
    family: AlgorithmFamily,
    own: Option<Algorithm>,
    curve: Option<Algorithm>,
    rules: &Rules,
) -> Vec<Validation> {
    let is_used = |algorithm: &&Algorithm| {
        family.algorithms().contains(algorithm)
            && own.is_none_or(|own| own == **algorithm)
            && curve.is_none_or(|curve| curve == **algorithm)
    };
    let validation = |algorithm: &Algorithm| {
        let mut validation = Validation::new(*algorithm);
        validation.leeway = LEEWAY.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if !rules.issuers.is_empty() {
            validation.set_issuer(&rules.issuers);
            required.push("iss");
        }
        validation.validate_aud = !rules.audiences.is_empty();
        if validation.validate_aud {
            validation.set_audience(&rules.audiences);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    };
    rules.algorithms.iter().filter(is_used).map(validation).collect()
}
