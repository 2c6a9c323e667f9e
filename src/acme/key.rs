//! The key of an account, and what it signs: JSON Web Signatures with ES256 (RFC 7515, RFC 7518), their thumbprint (RFC 7638), and the binding
//! to an account elsewhere (RFC 8555, 7.3.4).

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// Base64url without padding.
pub fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// An account's key: ECDSA on P-256.
pub struct AccountKey {
    pair: EcdsaKeyPair,
    document: Vec<u8>,
}

impl AccountKey {
    /// A new one; `None` without randomness.
    pub fn generate() -> Option<AccountKey> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).ok()?;
        AccountKey::from_document(document.as_ref())
    }

    /// One that was kept as [`AccountKey::document`].
    pub fn from_document(document: &[u8]) -> Option<AccountKey> {
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document).ok()?;
        Some(AccountKey { pair, document: document.to_vec() })
    }

    /// It in PKCS#8.
    pub fn document(&self) -> &[u8] {
        &self.document
    }

    /// Its public half as a JSON Web Key, with its members in the order of their names.
    fn public(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let point = self.pair.public_key().as_ref();
        let (x, y) = point.get(1..).unwrap_or_default().split_at_checked(32).unwrap_or_default();
        json!({ "crv": "P-256", "kty": "EC", "x": base64(x), "y": base64(y) })
    }

    /// What it is known by.
    pub fn thumbprint(&self) -> String {
        let text = self.public().to_string();
        base64(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref())
    }

    /// A payload for a URL, signed in the name of an account, or by the key alone.
    pub fn sign(&self, url: &str, nonce: &str, account: Option<&str>, payload: &str) -> Option<String> {
        let mut protected = json!({ "alg": "ES256", "nonce": nonce, "url": url });
        match account {
            Some(account) => protected["kid"] = account.into(),
            None => protected["jwk"] = self.public(),
        }
        let sign = |bytes: &[u8]| Some(self.pair.sign(&SystemRandom::new(), bytes).ok()?.as_ref().to_vec());
        Some(jws(&protected, payload, sign)?.to_string())
    }

    /// Says for `url` that the account of that name, whose key is `secret` in base64url, may have an account with this key.
    pub fn bind(&self, url: &str, name: &str, secret: &str) -> Option<Value> {
        let secret = URL_SAFE_NO_PAD.decode(secret.trim().trim_end_matches('=')).ok()?;
        let secret = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let protected = json!({ "alg": "HS256", "kid": name, "url": url });
        jws(&protected, &self.public().to_string(), |bytes| Some(hmac::sign(&secret, bytes).as_ref().to_vec()))
    }
}

fn jws(protected: &Value, payload: &str, sign: impl Fn(&[u8]) -> Option<Vec<u8>>) -> Option<Value> {
    let (protected, payload) = (base64(protected.to_string().as_bytes()), base64(payload.as_bytes()));
    let signature = sign(format!("{protected}.{payload}").as_bytes())?;
    Some(json!({ "protected": protected, "payload": payload, "signature": base64(&signature) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    #[test]
    fn what_is_signed_can_be_verified_and_tells_who_has_signed_it() {
        let key = AccountKey::generate().unwrap();
        let key = AccountKey::from_document(key.document()).unwrap();
        for account in [None, Some("https://ca/account/1")] {
            let jws: Value = serde_json::from_str(&key.sign("https://ca/x", "n1", account, "{}").unwrap()).unwrap();
            let part = |name: &str| URL_SAFE_NO_PAD.decode(jws[name].as_str().unwrap()).unwrap();
            let signed = format!("{}.{}", jws["protected"].as_str().unwrap(), jws["payload"].as_str().unwrap());
            let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key.pair.public_key().as_ref());
            public.verify(signed.as_bytes(), &part("signature")).unwrap();
            let protected: Value = serde_json::from_slice(&part("protected")).unwrap();
            assert_eq!(protected["kid"].as_str(), account);
            assert_eq!(protected["jwk"].is_object(), account.is_none());
            assert_eq!((&protected["nonce"], &protected["url"]), (&"n1".into(), &"https://ca/x".into()));
        }
        assert!(key.bind("https://ca/new", "kid-1", "not base64url!").is_none());
        assert_eq!(
            key.bind("https://ca/new", "kid-1", "zWND").unwrap()["payload"],
            base64(key.public().to_string().as_bytes())
        );
    }

    #[test]
    fn members_are_in_the_order_that_the_thumbprint_needs() {
        let text = AccountKey::generate().unwrap().public().to_string();
        let places: Vec<_> = ["{\"crv\"", "\"kty\"", "\"x\"", "\"y\""].map(|name| text.find(name).unwrap()).into();
        assert!(places.is_sorted(), "{text}");
    }
}
