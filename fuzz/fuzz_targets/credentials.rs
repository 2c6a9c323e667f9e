//! What a client says of who it is, and files of users, keys and tokens: nothing is an error of ours, nobody gets in without the right thing,
//! and what workers are told fits into a field.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use production_server::access::{ALGORITHMS, Auth, Found, Keys, Passwords, Rules, Tokens};

/// Users, keys and tokens of which the fuzzer knows none.
static AUTH: LazyLock<Auth> = LazyLock::new(|| {
    let users = "anna:$2y$04$Rr/Yea6t/z9N9pQxrmAdUOxd0evfPdC5tmd7aw1Y9UnhpgGGKx0iW\n";
    let keys = "one:2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683\n";
    let jwks = r#"{"keys":[{"kty":"oct","k":"YSBzZWNyZXQgb2YgYXQgbGVhc3QgdGhpcnR5LXR3byBieXRlcw"}]}"#;
    Auth {
        realm: "here".to_owned(),
        passwords: Passwords::parse(users).ok().map(Arc::new),
        keys: Keys::parse(keys).ok().map(|keys| (Arc::new(keys), "X-Api-Key".to_owned())),
        tokens: Tokens::parse(jwks, &rules()).ok().map(Arc::new),
        ..Auth::default()
    }
});

fn rules() -> Rules {
    let algorithms = ALGORITHMS.iter().map(|(_, algorithm)| *algorithm).collect();
    Rules { algorithms, ..Rules::default() }
}

fuzz_target!(|bytes: &[u8]| {
    for scheme in [&b""[..], b"Basic ", b"Bearer "] {
        let value = [scheme, bytes].concat();
        match AUTH.look(|name| name.eq_ignore_ascii_case("authorization").then_some(&value[..])) {
            Found::User(user) => panic!("{user:?}"),
            Found::Slow(attempt) => {
                let lines = attempt.user.lines();
                assert!(lines.ends_with("\r\n") && lines.matches('\n').count() <= 2, "{lines:?}");
            }
            Found::Nothing | Found::Wrong { .. } | Found::Unknown => {}
        }
    }
    let text = String::from_utf8_lossy(bytes);
    let _ = (Passwords::parse(&text), Keys::parse(&text), Tokens::parse(&text, &rules()));
});
