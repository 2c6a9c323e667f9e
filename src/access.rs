//! Who a client is: passwords, API keys and tokens, read from text and compared with what requests say.
//!
//! Rules:
//! - Text in, verdict out: no file and no descriptor is opened here; of the clock tokens alone ask, for whether they have expired.
//! - What a request says is hostile and bounded before it is looked at. No form of it is an error of ours.
//! - An algorithm is what the configuration says, and never what a token or a hash in a request says.
//! - What is secret is shown by nothing here.

mod checks;
mod keys;
mod live;
mod passwords;
mod tokens;

pub use checks::{Asked, Checked, Checks};
pub use keys::Keys;
pub use live::{Live, live, ring, wait};
pub use passwords::{Passwords, Scheme, hash};
pub use tokens::{ALGORITHMS, Rules, Tokens};

use std::sync::Arc;
use std::time::Duration;

use tokens::Unverified;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// What workers are told of who a client is, in fields of these names.
pub const TOLD: &[&str] = &["X-Auth-User", "X-Auth-Method"];
/// The longest value of a field with credentials, in bytes.
const LONGEST: usize = 16 * 1024;
/// What lines begin with that say nothing.
const REMARK: char = '#';
/// The longest name of a user that workers are told, in bytes.
const LONGEST_USER: usize = 256;

/// An app that is asked about a request before it passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Its name.
    pub app: String,
    /// What it is asked for: a path, perhaps with a query.
    pub path: String,
    /// The fields of its answer that go to the request's own app, and come from nobody else.
    pub copy: Vec<String>,
    /// How long it may take, with its place in line.
    pub timeout: Duration,
}

impl Default for Forward {
    fn default() -> Forward {
        Forward { app: String::new(), path: "/".to_owned(), copy: Vec::new(), timeout: Duration::from_secs(5) }
    }
}

/// What a route demands. One of the ways is enough.
#[derive(Clone, Debug, Default)]
pub struct Auth {
    /// What browsers show when they ask for a password.
    pub realm: String,
    /// Users and the hashes of their passwords.
    pub passwords: Option<Arc<Passwords>>,
    /// API keys, and the name of the field that they come in.
    pub keys: Option<(Arc<Keys>, String)>,
    /// What tokens are signed with.
    pub tokens: Option<Arc<Tokens>>,
    /// Who is asked about requests, besides those ways.
    pub forward: Option<Arc<Forward>>,
    /// Whether an allowed address is enough by itself, and so is the word of who is asked, or one of the ways.
    pub or_address: bool,
}

impl PartialEq for Auth {
    fn eq(&self, other: &Auth) -> bool {
        let said = |auth: &Auth| {
            let Auth { realm, passwords, keys, tokens, forward, or_address } = auth.clone();
            let texts = (passwords.map(|it| it.text.clone()), tokens.map(|it| it.text.clone()));
            (realm, texts, keys, forward, or_address)
        };
        said(self) == said(other)
    }
}

impl Eq for Auth {}

/// Who a client is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The name, as a field may hold it.
    pub name: String,
    /// By what it is known: `basic`, `key` or `jwt`.
    pub method: &'static str,
}

impl User {
    /// The lines that tell a worker.
    pub fn lines(&self) -> String {
        let [user, method] = [TOLD[0], TOLD[1]];
        match self.name.as_str() {
            "" => format!("{method}: {}\r\n", self.method),
            name => format!("{user}: {name}\r\n{method}: {}\r\n", self.method),
        }
    }

    fn new(name: &str, method: &'static str) -> User {
        User { name: name.to_owned(), method }
    }
}

/// Whether a field can hold a name as it is, so that it is nobody else's for whoever reads it.
fn is_tellable(name: &str) -> bool {
    name.len() <= LONGEST_USER && name.trim() == name && !name.chars().any(char::is_control)
}

/// Whether a line of a file of users may begin with that name, and a colon behind it.
///
/// # Errors
/// What is wrong with it.
pub fn check_user(name: &str) -> Result<(), String> {
    check_name(name, "user")?;
    if name.contains(':') { Err("expected the name of a user without colons".to_owned()) } else { Ok(()) }
}

/// What is wrong with the name in a file that is not one, that would make its line a remark, or that a field could not hold.
fn check_name(name: &str, what: &str) -> Result<(), String> {
    match name {
        "" => Err(format!("expected the name of a {what} before the colon")),
        name if name.starts_with(REMARK) => {
            Err(format!("expected the name of a {what} that does not begin with {REMARK}, as remarks do"))
        }
        name if !is_tellable(name) => Err(format!(
            "expected the name of a {what} of at most {LONGEST_USER} bytes, without control characters, and without spaces at its ends"
        )),
        _ => Ok(()),
    }
}

/// What credentials are worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// They are this client's.
    User(User),
    /// That takes a while to say.
    Slow(Try),
    /// What would tell is not known yet.
    Unknown,
    /// There are none.
    Nothing,
    /// They are wrong; `guessed`: as those are of somebody who tries.
    Wrong {
        /// Neither expired nor for somebody else.
        guessed: bool,
    },
}

/// A name and a password that are to be compared with a hash.
#[derive(Clone, PartialEq, Eq)]
pub struct Try {
    /// Who the client says that it is.
    pub user: User,
    password: Vec<u8>,
    hash: String,
    /// There is no such user: the work is done all the same, so that nobody learns that by the time that it takes.
    nobody: bool,
}

impl std::fmt::Debug for Try {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Try").field("user", &self.user).finish_non_exhaustive()
    }
}

impl Try {
    /// Whether the password is the right one. Takes as long as its hash says, up to seconds.
    pub fn is_right(&self) -> bool {
        passwords::verify(&self.hash, &self.password) && !self.nobody
    }

    /// What tells it from every other try. Whether there is such a user belongs to it: one who is taken out of the file may be compared with
    /// the very hash that was the user's own.
    fn parts(&self) -> [&[u8]; 4] {
        let there: &[u8] = if self.nobody { b"nobody" } else { b"" };
        [there, self.hash.as_bytes(), self.user.name.as_bytes(), &self.password]
    }
}

impl Auth {
    /// Whether there is anything to show.
    pub fn has_ways(&self) -> bool {
        self.passwords.is_some() || self.keys.is_some() || self.tokens.is_some()
    }

    /// Looks at what a request says. `field` gives the value of the first of its fields with that name.
    pub fn look<'a>(&self, field: impl Fn(&str) -> Option<&'a [u8]>) -> Found {
        let others = || self.by_authorization(field("authorization"));
        let Some((keys, name)) = &self.keys else { return others() };
        let Some(value) = field(name) else { return others() };
        let (fits, is_shared) = (value.len() <= LONGEST, name.eq_ignore_ascii_case("authorization"));
        let key = scheme(value, "bearer").filter(|_| is_shared).unwrap_or(value);
        if let Some(user) = Some(key).filter(|_| fits).and_then(|key| keys.find(key)) {
            return Found::User(User::new(user, "key"));
        }
        // One of the ways is enough; and what is right of one makes no guess of what is wrong of another.
        match others() {
            Found::Nothing => Found::Wrong { guessed: fits },
            Found::Wrong { guessed } => Found::Wrong { guessed: guessed || (fits && !is_shared) },
            found => found,
        }
    }

    fn by_authorization(&self, value: Option<&[u8]>) -> Found {
        let Some(value) = value else { return Found::Nothing };
        if value.len() > LONGEST {
            return Found::Wrong { guessed: false };
        }
        if let (Some(passwords), Some(text)) = (&self.passwords, scheme(value, "basic")) {
            return match pair(text) {
                Some((user, password)) => Found::Slow(passwords.attempt(&user, password)),
                None => Found::Wrong { guessed: false },
            };
        }
        if let (Some(tokens), Some(token)) = (&self.tokens, scheme(value, "bearer")) {
            return match tokens.verify(token) {
                Ok(subject) if is_tellable(&subject) => Found::User(User::new(&subject, "jwt")),
                Ok(_) => Found::Wrong { guessed: false },
                Err(Unverified::NoKeys) => Found::Unknown,
                Err(Unverified::Wrong { guessed }) => Found::Wrong { guessed },
            };
        }
        Found::Nothing
    }

    /// The lines that tell a client what is demanded, each behind the end of the one before it; `wrong`: it has shown something.
    pub fn challenge(&self, wrong: bool) -> String {
        let realm = self.realm.replace(['"', '\\'], "'");
        let mut lines = String::new();
        if self.passwords.is_some() {
            lines.push_str(&format!("\r\nWWW-Authenticate: Basic realm=\"{realm}\", charset=\"UTF-8\""));
        }
        if self.tokens.is_some() {
            let error = if wrong { ", error=\"invalid_token\"" } else { "" };
            lines.push_str(&format!("\r\nWWW-Authenticate: Bearer realm=\"{realm}\"{error}"));
        }
        if lines.is_empty() {
            lines.push_str(&format!("\r\nWWW-Authenticate: ApiKey realm=\"{realm}\""));
        }
        lines
    }
}

/// The lines of a file that say something, each with its number from 1: not those that are empty or begin with `#`.
fn said(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = (1..).zip(text.lines().map(str::trim_end));
    lines.filter(|(_, line)| !line.is_empty() && !line.starts_with(REMARK))
}

/// What stands behind the name of a scheme (RFC 9110 §11.4), if it is that one.
pub(crate) fn scheme<'a>(value: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let (word, rest) = value.split_at_checked(name.len())?;
    (word.eq_ignore_ascii_case(name.as_bytes()) && rest.first() == Some(&b' ')).then(|| rest.trim_ascii())
}

/// A name and a password (RFC 7617 §2).
fn pair(text: &[u8]) -> Option<(String, Vec<u8>)> {
    let mut bytes = STANDARD.decode(text).ok()?;
    let colon = memchr::memchr(b':', &bytes)?;
    let password = bytes.split_off(colon + 1);
    bytes.pop();
    let user = String::from_utf8(bytes).ok()?;
    let plain = !user.is_empty() && is_tellable(&user) && password.len() <= passwords::LONGEST;
    plain.then_some((user, password))
}

#[cfg(test)]
mod tests;
