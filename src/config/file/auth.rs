//! What a route demands of its clients: the files of passwords, keys and tokens are read here, with the rest of the configuration, so that
//! a broken one is shown where it is named, and a reload with one changes nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::super::report::Problem;
use super::super::route::is_url;
use super::find;
use super::routes::RouteSaid;
use crate::access::{Auth, Keys, Passwords, Tokens};

/// The field that API keys come in where nothing else is said.
const KEY_FIELD: &str = "X-Api-Key";
/// How often a set of keys is fetched where nothing else is said.
const REFRESH: Duration = Duration::from_secs(3600);
/// What a password is for where nothing else is said.
const REALM: &str = "restricted";

/// Reads the files that a route names, and keeps what they say with what is said of it; what is wrong.
pub(super) fn read(route: &mut RouteSaid) -> Vec<Problem> {
    let said = &route.draft.access;
    let mut problems = Vec::new();
    let mut wrong = |name: &str, title: String, label: String| {
        let at = route.mark(&format!("routes[].{name}")).unwrap_or_else(|| route.at.clone());
        problems.push(Problem::error(title, at, label));
    };
    let mut auth = Auth {
        realm: said.realm.clone().unwrap_or_else(|| REALM.to_owned()),
        or_address: said.any == Some(true),
        ..Auth::default()
    };
    if let Some(path) = &said.basic {
        match text(path).and_then(|text| Passwords::parse(&text).map_err(|(line, what)| (Some(line), what))) {
            Ok(passwords) => auth.passwords = Some(Arc::new(passwords)),
            Err(why) => wrong("auth.basic", "the file of users cannot be taken".to_owned(), shown(path, why)),
        }
    }
    if let Some(path) = &said.keys {
        match keys(path) {
            Ok(keys) => {
                let field = said.key_field.clone().unwrap_or_else(|| KEY_FIELD.to_owned());
                auth.keys = Some((Arc::new(keys), field));
            }
            Err(label) => wrong("auth.keys", "the file of keys cannot be taken".to_owned(), label),
        }
    } else if said.key_field.is_some() {
        wrong("auth.key_field", "`key_field` has no effect here".to_owned(), "expected `keys` beside it".to_owned());
    }
    auth.tokens = tokens(route, &mut wrong).map(Arc::new);
    let shows = said.basic.is_some() || said.keys.is_some() || said.jwt.is_some();
    let asks = route.mark("routes[].forward_auth").is_some();
    if asks && said.forward.app.is_empty() {
        let label = "expected `app`, as in forward_auth = { app = \"accounts\", path = \"/verify\" }";
        wrong("forward_auth", "nothing says which app is asked".to_owned(), label.to_owned());
    }
    auth.forward = asks.then(|| Arc::new(said.forward.clone()));
    let demands = shows || asks;
    let by_address = !(route.draft.access.allow.is_empty() && route.draft.access.deny.is_empty());
    if said.any.is_some() && usize::from(shows) + usize::from(asks) + usize::from(by_address) < 2 {
        let label = "expected two of `auth`, `forward_auth`, and `allow` or `deny`, in this route: it says how they go together";
        wrong("satisfy", "`satisfy` has no effect here".to_owned(), label.to_owned());
    } else if said.realm.is_some() && !shows {
        wrong("auth.realm", "`realm` has no effect here".to_owned(), "expected `basic`, `keys` or `jwt`".to_owned());
    }
    if demands && problems.is_empty() {
        route.draft.access.read = Some(auth);
    }
    problems
}

/// The keys in a file, or what is wrong with it.
pub(super) fn keys(path: &str) -> Result<Keys, String> {
    let keys = text(path).and_then(|text| Keys::parse(&text).map_err(|(line, what)| (Some(line), what)));
    keys.map_err(|why| shown(path, why))
}

/// What tokens are verified with, if a route says so.
fn tokens(route: &RouteSaid, wrong: &mut dyn FnMut(&str, String, String)) -> Option<Tokens> {
    let said = &route.draft.access;
    match &said.jwt {
        Some(_) if said.rules.algorithms.is_empty() => {
            let label =
                "expected `algorithms` beside it, as in algorithms = [\"RS256\"]: a token must not choose its own";
            wrong("auth.jwt", "nothing says how tokens are signed".to_owned(), label.to_owned());
        }
        Some(url) if is_url(url) => {
            // It is fetched by somebody who can wait; `check` looks at once.
            return Some(Tokens::at(url, &said.rules, said.refresh.unwrap_or(REFRESH)));
        }
        Some(_) if said.refresh.is_some() => {
            let label = "a file is read when the server starts and when it reloads: expected a URL beside it";
            wrong("auth.jwt.refresh", "`refresh` has no effect here".to_owned(), label.to_owned());
        }
        Some(path) => {
            match text(path).and_then(|text| Tokens::parse(&text, &said.rules).map_err(|what| (None, what))) {
                Ok(tokens) => return Some(tokens),
                Err(why) => wrong("auth.jwt.keys", "the keys of tokens cannot be taken".to_owned(), shown(path, why)),
            }
        }
        None if route.mark("routes[].auth.jwt").is_some() => {
            let label = "expected `keys`, as in keys = \"/etc/production_server/jwks.json\"";
            wrong("auth.jwt", "nothing says with which keys tokens are signed".to_owned(), label.to_owned());
        }
        None => {}
    }
    None
}

/// Which line of a file is wrong, if it is one, and what is.
type Why = (Option<usize>, String);

fn text(path: &str) -> Result<String, Why> {
    find::read(Path::new(path)).map(|text| text.text).map_err(|(what, _)| (None, what))
}

fn shown(path: &str, (line, what): Why) -> String {
    let shown: String = path.chars().take(200).collect();
    let line = line.map_or_else(String::new, |line| format!(":{line}"));
    format!("{}{line}: {what}", shown.escape_debug())
}
