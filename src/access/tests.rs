//! Credentials of every kind, the right ones and those that somebody would send who has none.

use std::cell::Cell;
use std::time::SystemTime;

use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Of `secret`, by htpasswd(1) of Apache.
const BCRYPT: &str = "$2y$05$NCjOOhHvCXFew8kW.NeWFu342vatsrjqSkr3aDxxzeIg4Y.5t.fEy";

fn auth(passwords: &str) -> Auth {
    Auth {
        realm: "here".to_owned(),
        passwords: Some(Arc::new(Passwords::parse(passwords).unwrap())),
        ..Auth::default()
    }
}

fn look(auth: &Auth, name: &str, value: &[u8]) -> Found {
    auth.look(|asked| asked.eq_ignore_ascii_case(name).then_some(value))
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

#[test]
fn passwords_are_compared_with_their_hashes() {
    let argon2 = hash(b"secret", Scheme::Argon2id).unwrap();
    let bcrypt = hash(b"secret", Scheme::Bcrypt).unwrap();
    assert_ne!(argon2, hash(b"secret", Scheme::Argon2id).unwrap(), "each has a salt of its own");
    let auth = auth(&format!("# users\nanna:{argon2}\n\nbert:{bcrypt}\r\nü:{BCRYPT}\n"));
    let is_right = |user: &str, password: &str| match look(&auth, "Authorization", basic(user, password).as_bytes()) {
        Found::Slow(attempt) => attempt.is_right(),
        found => panic!("{found:?}"),
    };
    assert!(is_right("anna", "secret") && is_right("bert", "secret") && is_right("ü", "secret"));
    for (user, password) in
        [("anna", "Secret"), ("bert", "secret "), ("anna", ""), ("nobody", "secret"), ("ü", "secret:")]
    {
        assert!(!is_right(user, password), "{user}:{password}");
    }
    assert!(hash(b"", Scheme::Argon2id).is_err() && hash(&[b'a'; 73], Scheme::Bcrypt).is_err());
    let lines = auth.challenge(false);
    assert_eq!(lines, "\r\nWWW-Authenticate: Basic realm=\"here\", charset=\"UTF-8\"");
    for value in ["Basic", "Basic ", "Basic !!!", "Basic YQ==", "Basic Ojo=", "Basic YTpi YTpi"] {
        let found = look(&auth, "Authorization", value.as_bytes());
        assert!(matches!(found, Found::Wrong { .. } | Found::Nothing), "{value}: {found:?}");
    }
    assert_eq!(look(&auth, "Authorization", b"Bearer abc"), Found::Nothing);
    assert_eq!(look(&auth, "Cookie", b"a"), Found::Nothing);
    let long = basic("anna", &"x".repeat(20_000));
    assert_eq!(look(&auth, "Authorization", long.as_bytes()), Found::Wrong { guessed: false });
}

#[test]
fn a_file_of_hashes_is_read_whole_or_says_which_line_is_wrong() {
    let salted = "$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$";
    let hash = STANDARD.encode([7; 33]);
    for (text, line, what) in [
        ("", 1, "at least one line"),
        ("# nobody\n", 1, "at least one line"),
        ("anna", 1, "USER:HASH"),
        ("\n:x", 2, "name of a user"),
        (
            "anna:$apr1$abc$def",
            1,
            "an MD5 hash: expected bcrypt or argon2id; make it anew with `production_server hash-password USER`",
        ),
        ("anna:{SHA}abc=", 1, "an unsalted SHA-1 hash"),
        ("anna:secret", 1, "neither a bcrypt nor an argon2id hash"),
        ("anna:$6$abc$def", 1, "crypt(3)"),
        ("anna:$argon2i$v=19$m=1,t=1,p=1$a$b", 1, "another kind than argon2id"),
        ("anna:$2y$05$short", 1, "malformed"),
        ("anna:$2y$31$bvIG6Nmid91Mu9RcmmWZfO5HJIMCT8riNW0hEp8f6/FuA2/mHZFpe", 1, "cost of 31"),
        ("anna:$argon2id$v=19$m=19456,t=2,p=1$abc", 1, "malformed"),
        (&format!("anna:{salted}!!"), 1, "malformed"),
        (&format!("anna:{}{hash}", salted.replace("m=19456", "m=4194304")), 1, "takes too much"),
        (&format!("anna:{}{hash}", salted.replace("t=2", "t=4000000000")), 1, "takes too much"),
        (&format!("anna:{}{hash}", salted.replace("m=19456", "m=1")), 1, "parameters that cannot be"),
        (&format!("anna:{BCRYPT}\nanna:{BCRYPT}"), 2, "earlier line"),
    ] {
        let (number, said) = Passwords::parse(text).unwrap_err();
        assert!(number == line && said.contains(what), "{text:?}: {number}: {said}");
    }
}

/// Each of the ways is enough, whatever is shown of the other; and of two that are wrong one is a guess.
#[test]
fn a_key_and_a_password_stand_beside_each_other() {
    let keys = Arc::new(Keys::parse(&format!("shop:{}\n", digest_of("key"))).unwrap());
    for name in ["X-Api-Key", "Authorization"] {
        let auth = Auth { keys: Some((keys.clone(), name.to_owned())), ..auth(&format!("anna:{BCRYPT}")) };
        let found = |key: Option<&str>, credentials: Option<&str>| {
            auth.look(|asked| {
                let value = if asked.eq_ignore_ascii_case("authorization") { credentials } else { key };
                value.map(str::as_bytes)
            })
        };
        let shop = Found::User(User { name: "shop".to_owned(), method: "key" });
        let right = basic("anna", "secret");
        if name == "Authorization" {
            assert_eq!(found(None, Some("Bearer key")), shop);
            assert_eq!(found(None, Some("Bearer other")), Found::Wrong { guessed: true });
            assert!(matches!(found(None, Some(&right)), Found::Slow(attempt) if attempt.is_right()));
            assert_eq!(found(None, Some("Basic x")), Found::Wrong { guessed: false });
            continue;
        }
        assert_eq!(found(Some("key"), Some(&basic("anna", "wrong"))), shop);
        for key in ["other", "", &"x".repeat(LONGEST + 1)] {
            let other = found(Some(key), Some(&right));
            assert!(matches!(other, Found::Slow(attempt) if attempt.is_right()), "{} bytes", key.len());
        }
        assert!(matches!(found(Some("other"), Some(&basic("anna", "wrong"))), Found::Slow(_)));
        assert_eq!(found(Some("other"), Some("Basic x")), Found::Wrong { guessed: true });
        assert_eq!(found(Some("other"), Some("Bearer x")), Found::Wrong { guessed: true });
        assert_eq!(found(Some("other"), None), Found::Wrong { guessed: true });
        assert_eq!(found(None, None), Found::Nothing);
    }
}

#[test]
fn keys_are_known_by_their_hashes() {
    // printf %s key-one | sha256sum
    let one = "9b346041bc9a49574eb2665b2ad2a0a3f9f9cce4e42f5d1f26deb8a256b5966a";
    let real = digest_of("key-two");
    let keys = Arc::new(Keys::parse(&format!("# keys\nsome one:{one}\nother:{}\n", real.to_uppercase())).unwrap());
    let auth = Auth { keys: Some((keys, "X-Api-Key".to_owned())), ..Auth::default() };
    let user = User { name: "other".to_owned(), method: "key" };
    let first = User { name: "some one".to_owned(), method: "key" };
    assert_eq!(look(&auth, "x-api-key", b"key-one"), Found::User(first));
    assert_eq!(look(&auth, "x-api-key", b"key-two"), Found::User(user.clone()));
    assert_eq!(look(&auth, "x-api-key", b"key-three"), Found::Wrong { guessed: true });
    assert_eq!(look(&auth, "x-api-key", real.as_bytes()), Found::Wrong { guessed: true }, "the hash is no key");
    assert_eq!(look(&auth, "authorization", b"Bearer key-two"), Found::Nothing);
    let bearer = Auth { keys: auth.keys.clone().map(|(keys, _)| (keys, "Authorization".to_owned())), ..auth };
    assert_eq!(look(&bearer, "authorization", b"bearer key-two"), Found::User(user));
    assert_eq!(look(&bearer, "authorization", b"bearer key-three"), Found::Wrong { guessed: true });
    for (text, line) in
        [("", 1), ("a", 1), (":00", 1), ("a:abc", 1), (&format!("a:{one}0"), 1), (&format!("a:{real}\nb:{real}"), 2)]
    {
        assert_eq!(Keys::parse(text).unwrap_err().0, line, "{text}");
    }
}

fn digest_of(key: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

const GUESSED: Unverified = Unverified::Wrong { guessed: true };
const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({ "sub": "anna", "exp": now() + 600, "iss": "us", "aud": ["shop", "other"] })
}

fn rules(algorithms: &[Algorithm]) -> Rules {
    let (issuers, audiences) = (vec!["us".to_owned()], vec!["shop".to_owned()]);
    Rules { issuers, audiences, algorithms: algorithms.to_vec() }
}

fn set() -> String {
    let secret = URL_SAFE_NO_PAD.encode(SECRET);
    json!({ "keys": [
        { "kty": "oct", "kid": "one", "alg": "HS256", "k": secret },
        { "kty": "oct", "kid": "short", "alg": "HS256", "k": "YWJj" },
        { "kty": "RSA", "kid": "for encryption", "use": "enc", "n": "AQAB", "e": "AQAB" },
        { "kty": "nonsense" },
        7,
    ] })
    .to_string()
}

fn signed(header: &Header, claims: &Value) -> String {
    encode(header, claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

fn with_kid(kid: &str) -> Header {
    Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) }
}

#[test]
fn tokens_are_verified_with_the_keys_and_the_algorithms_of_the_configuration_alone() {
    let tokens = Tokens::parse(&set(), &rules(&[Algorithm::HS256, Algorithm::RS256])).unwrap();
    let verify = |token: &str| tokens.verify(token.as_bytes()).map_err(|why| why == GUESSED);
    let good = signed(&with_kid("one"), &claims());
    assert_eq!(verify(&good), Ok("anna".to_owned()));
    assert_eq!(
        verify(&signed(&Header::new(Algorithm::HS256), &claims())),
        Ok("anna".to_owned()),
        "without the name of a key"
    );
    assert_eq!(verify(&signed(&with_kid("other"), &claims())), Err(true), "of a key that nobody knows");
    assert_eq!(verify(&signed(&Header { alg: Algorithm::HS512, ..with_kid("one") }, &claims())), Err(true));
    let (head, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let swapped = URL_SAFE_NO_PAD.encode(r#"{"alg":"RS256","kid":"one"}"#);
    let other_body =
        URL_SAFE_NO_PAD.encode(json!({ "sub": "root", "exp": now() + 600, "iss": "us", "aud": "shop" }).to_string());
    for token in [
        format!("{none}.{body}."),
        format!("{none}.{body}.{signature}"),
        format!("{swapped}.{body}.{signature}"),
        format!("{head}.{other_body}.{signature}"),
        format!("{head}.{body}."),
        format!("{head}.{body}"),
        format!("{head}.{body}.{signature}.x"),
        String::new(),
        "..".to_owned(),
        "a.b.c".to_owned(),
    ] {
        assert!(verify(&token).is_err(), "{token}");
    }
    let changed = |name: &str, value: Value| {
        let mut claims = claims();
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
            value => claims[name] = value,
        }
        verify(&signed(&with_kid("one"), &claims))
    };
    for (name, value) in [
        ("exp", json!(now() - 60)),
        ("exp", Value::Null),
        ("exp", json!("soon")),
        ("nbf", json!(now() + 60)),
        ("aud", json!("elsewhere")),
        ("aud", Value::Null),
        ("iss", json!("them")),
        ("iss", Value::Null),
    ] {
        assert_eq!(changed(name, value.clone()), Err(false), "{name} {value}");
    }
    assert_eq!(changed("exp", json!(now() - 10)), Ok("anna".to_owned()), "clocks may differ");
    assert_eq!(changed("sub", Value::Null), Ok(String::new()));
    assert_eq!(changed("more", json!("x".repeat(9000))), Err(false), "too long");
    for critical in [&["evil"][..], &["b64"], &[]] {
        let crit = Some(critical.iter().map(|name| (*name).to_owned()).collect());
        let header = Header { crit, ..with_kid("one") };
        assert_eq!(verify(&signed(&header, &claims())), Err(false), "{critical:?} is not understood");
    }
}

#[test]
fn a_name_is_told_as_it_is_or_not_at_all() {
    let tokens = Some(Arc::new(Tokens::parse(&set(), &rules(&[Algorithm::HS256])).unwrap()));
    let auth = Auth { tokens, ..Auth::default() };
    let found = |subject: &str| {
        let token =
            signed(&with_kid("one"), &json!({ "sub": subject, "exp": now() + 600, "iss": "us", "aud": "shop" }));
        look(&auth, "Authorization", format!("Bearer {token}").as_bytes())
    };
    let longest = "x".repeat(LONGEST_USER);
    for name in ["admin", "the admin", "ü", &longest, ""] {
        assert_eq!(found(name), Found::User(User { name: name.to_owned(), method: "jwt" }), "{name:?}");
    }
    let wrong = ["ad\0min", "admin\n", " admin", "admin ", "\u{a0}admin", "ad\u{85}min", &format!("{longest}x")];
    for name in wrong {
        assert_eq!(found(name), Found::Wrong { guessed: false }, "{name:?}");
        assert!(Passwords::parse(&format!("{name}:{BCRYPT}")).is_err(), "{name:?}");
        assert!(Keys::parse(&format!("{name}:{}", digest_of("key"))).is_err(), "{name:?}");
    }
    let passwords =
        Auth { passwords: Some(Arc::new(Passwords::parse(&format!("admin:{BCRYPT}")).unwrap())), ..Auth::default() };
    for name in wrong {
        let found = look(&passwords, "Authorization", basic(name, "secret").as_bytes());
        assert_eq!(found, Found::Wrong { guessed: false }, "{name:?}");
    }
}

#[test]
fn keys_of_a_url_hold_until_there_are_better_ones() {
    let (url, rules) = ("http://one.example/keys", rules(&[Algorithm::HS256]));
    let tokens = Tokens::at(url, &rules, Duration::from_secs(60));
    let own = || super::live().into_iter().find(|live| live.url == url).unwrap();
    let good = signed(&with_kid("one"), &claims());
    let verify = |tokens: &Tokens, token: &str| tokens.verify(token.as_bytes());
    assert_eq!(verify(&tokens, &good), Err(Unverified::NoKeys));
    assert!(!own().is_known() && own().take("<html>").is_err() && !own().is_known());
    assert_eq!(own().take(&set()), Ok(1));
    assert_eq!(verify(&tokens, &good), Ok("anna".to_owned()));
    assert!(!own().is_missed());
    assert_eq!(verify(&tokens, &signed(&with_kid("new"), &claims())), Err(Unverified::Wrong { guessed: false }));
    assert!(own().take_miss() && !own().is_missed());
    assert!(own().take("{}").is_err());
    assert_eq!(verify(&tokens, &good), Ok("anna".to_owned()), "what was good last holds");
    // For another configuration with other rules, too; and once nobody names the URL, it is forgotten.
    let again = Tokens::at(url, &rules, Duration::from_secs(1));
    drop(tokens);
    assert_eq!(verify(&again, &good), Ok("anna".to_owned()));
    drop(again);
    assert!(super::live().iter().all(|live| live.url != url));
    assert_eq!(verify(&Tokens::at(url, &rules, Duration::from_secs(1)), &good), Err(Unverified::NoKeys));
}

#[test]
fn a_public_key_is_no_secret() {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let public = pair.public_key_pem();
    let tokens = Tokens::parse(&public, &rules(&[Algorithm::ES256, Algorithm::HS256])).unwrap();
    let good = encode(
        &Header::new(Algorithm::ES256),
        &claims(),
        &EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap(),
    );
    assert_eq!(tokens.verify(good.unwrap().as_bytes()), Ok("anna".to_owned()));
    // Signed with the public key as if it were a secret.
    let forged =
        encode(&Header::new(Algorithm::HS256), &claims(), &EncodingKey::from_secret(public.as_bytes())).unwrap();
    assert!(tokens.verify(forged.as_bytes()).is_err());
    let ed = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let tokens = Tokens::parse(&ed.public_key_pem(), &rules(&[Algorithm::EdDSA])).unwrap();
    let good = encode(
        &Header::new(Algorithm::EdDSA),
        &claims(),
        &EncodingKey::from_ed_pem(ed.serialize_pem().as_bytes()).unwrap(),
    );
    assert_eq!(tokens.verify(good.unwrap().as_bytes()), Ok("anna".to_owned()));
    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
    let tokens = Tokens::parse(&rsa.public_key_pem(), &rules(&[Algorithm::RS256])).unwrap();
    let key = EncodingKey::from_rsa_pem(rsa.serialize_pem().as_bytes()).unwrap();
    assert_eq!(
        tokens.verify(encode(&Header::new(Algorithm::RS256), &claims(), &key).unwrap().as_bytes()),
        Ok("anna".to_owned())
    );
    assert!(tokens.verify(encode(&Header::new(Algorithm::RS512), &claims(), &key).unwrap().as_bytes()).is_err());
}

#[test]
fn what_is_no_set_of_keys_says_so() {
    let all = rules(&[Algorithm::HS256]);
    let private = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    for (text, what) in [
        ("<!doctype html><title>Sign in</title>", "HTML"),
        ("", "expected a set of keys"),
        ("{}", "missing field `keys`"),
        ("{\"keys\": []}", "none of its keys"),
        ("{\"keys\": [{\"kty\": \"oct\", \"k\": \"YWJj\"}]}", "none of its keys"),
        ("-----BEGIN NONSENSE-----\n", "expected a public key"),
        (&private.serialize_pem(), "private key"),
        (&private.public_key_pem(), "none of the `algorithms`"),
    ] {
        let said = Tokens::parse(text, &all).unwrap_err();
        assert!(said.contains(what), "{text}: {said}");
    }
}

#[test]
fn a_try_is_checked_once_and_remembered_for_a_while_if_it_was_right() {
    let auth = auth(&format!("anna:{BCRYPT}"));
    let Found::Slow(attempt) = look(&auth, "Authorization", basic("anna", "secret").as_bytes()) else { panic!() };
    let Found::Slow(other) = look(&auth, "Authorization", basic("anna", "secre").as_bytes()) else { panic!() };
    let checks = Checks::default();
    let ask = |attempt: &Try, who| checks.ask(attempt, 1, who, || None);
    let done = |attempt: &Try, right| checks.done(attempt, 1, Some(right), 0, || ());
    assert_eq!([ask(&attempt, 1), ask(&attempt, 2), ask(&other, 3)], [Asked::Check, Asked::Wait, Asked::Check]);
    assert_eq!(done(&other, false), [(3, Checked::Wrong)]);
    assert!(!checks.knows(&other, 1, 0) && !checks.knows(&attempt, 1, 0));
    assert_eq!(done(&attempt, true), [(1, Checked::Again), (2, Checked::Again)]);
    assert!(checks.knows(&attempt, 1, 299_000_000_000) && !checks.knows(&attempt, 1, 301_000_000_000));
    assert!(!checks.knows(&attempt, 2, 0), "elsewhere it is a guess as good as any");
    assert_eq!(ask(&attempt, 4), Asked::Check, "nobody is at it any more");
    let changed = self::auth(&format!("anna:{}", BCRYPT.replace("$2y$", "$2b$")));
    let Found::Slow(later) = look(&changed, "Authorization", basic("anna", "secret").as_bytes()) else { panic!() };
    assert!(!checks.knows(&later, 1, 1), "another hash is another try");
    let Found::Slow(gone) =
        look(&self::auth(&format!("bert:{BCRYPT}")), "Authorization", basic("anna", "secret").as_bytes())
    else {
        panic!()
    };
    assert!(!checks.knows(&gone, 1, 1), "nobody is called so any more");
    // However many are right, no more than so many are remembered.
    for number in 0..5000 {
        let name = format!("{number}");
        let Found::Slow(attempt) = look(&auth, "Authorization", basic("anna", &name).as_bytes()) else { panic!() };
        done(&attempt, true);
    }
    assert_eq!(checks.remembered(), 4096);
}

#[test]
fn tries_beyond_the_allowance_are_held_as_long_as_others_of_that_place_are_checked() {
    let auth = auth(&format!("anna:{BCRYPT}"));
    let attempt = |password: &str| {
        let Found::Slow(attempt) = look(&auth, "Authorization", basic("anna", password).as_bytes()) else { panic!() };
        attempt
    };
    let (checks, left) = (Checks::default(), Cell::new(2));
    let ask = |password: &str, from: u64| {
        let take = || match left.get() {
            0 => Some(7),
            some => {
                left.set(some - 1);
                None
            }
        };
        checks.ask(&attempt(password), from, password.to_owned(), take)
    };
    let done = |password: &str, right| {
        let told = checks.done(&attempt(password), 1, right, 0, || left.set(left.get() + 1));
        told.into_iter().map(|(who, said)| format!("{who} {said:?}")).collect::<Vec<_>>().join(", ")
    };
    let asked = [ask("a", 1), ask("b", 1), ask("b", 1), ask("c", 1), ask("d", 1)];
    assert_eq!(asked, [Asked::Check, Asked::Check, Asked::Wait, Asked::Wait, Asked::Wait]);
    assert_eq!(ask("c", 2), Asked::Refused(7), "none of that place is under way");
    assert_eq!(done("a", Some(true)), "a Again, c Again", "there is room for one more");
    assert_eq!(ask("c", 1), Asked::Check);
    // A wrong one leaves no place, but may be the last.
    assert_eq!(done("b", Some(false)), "b Wrong, b Wrong");
    assert_eq!(done("c", Some(false)), "c Wrong, d Again");
    assert_eq!(ask("d", 1), Asked::Refused(7));
    left.set(1);
    assert_eq!([ask("d", 1), ask("e", 1)], [Asked::Check, Asked::Wait]);
    assert_eq!(done("d", None), "d Unknown, e Again", "what was not checked costs nothing");
    assert_eq!(left.get(), 1);
}

proptest! {
    #[test]
    fn nothing_that_a_client_says_is_an_error_of_ours(value in proptest::collection::vec(any::<u8>(), 0..300)) {
        let auth = Auth {
            passwords: Some(Arc::new(Passwords::parse(&format!("anna:{BCRYPT}")).unwrap())),
            tokens: Some(Arc::new(Tokens::parse(&set(), &rules(&[Algorithm::HS256])).unwrap())),
            ..Auth::default()
        };
        for scheme in [&b""[..], b"Basic ", b"Bearer "] {
            let found = look(&auth, "Authorization", &[scheme, &value].concat());
            prop_assert!(!matches!(found, Found::User(_)));
        }
    }

    #[test]
    fn no_file_is_read_for_what_it_is_not(text in "(?s).{0,300}") {
        let _ = (Passwords::parse(&text), Keys::parse(&text));
        let _ = Tokens::parse(&text, &rules(&[Algorithm::HS256]));
    }
}
