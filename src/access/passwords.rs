//! Users and the hashes of their passwords, as in a file of htpasswd(1): bcrypt and argon2id. Whatever is weaker or made for something else
//! is refused with the way out.

use std::collections::HashMap;

use argon2::{Algorithm, Argon2, Params, Version};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use super::{Try, User, check_name, said};

/// The longest password, in bytes.
pub(super) const LONGEST: usize = 1024;
/// The dearest bcrypt: a second or two for each try.
const MOST_COST: u32 = 15;
const LEAST_COST: u32 = 4;
/// The most memory of an argon2, in KiB, and memory times passes.
const MOST_MEMORY: u32 = 128 * 1024;
const MOST_WORK: u64 = 4 * MOST_MEMORY as u64;
const MOST_LANES: u32 = 16;

/// What a hash is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Argon2id with 19 MiB and two passes, as OWASP's password storage cheat sheet has it.
    Argon2id,
    /// bcrypt of cost 12, which other programs understand, too.
    Bcrypt,
}

/// Users and their hashes.
pub struct Passwords {
    /// The file, by which it is told from another.
    pub(super) text: String,
    hashes: HashMap<String, String>,
    /// What is computed for a user who does not exist: the hash of one who does.
    usual: String,
}

impl std::fmt::Debug for Passwords {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Passwords").field("users", &self.hashes.len()).finish_non_exhaustive()
    }
}

impl Passwords {
    /// Reads `USER:HASH` line by line; empty lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// The first line that is wrong, by its number from 1, and what is wrong with it.
    pub fn parse(text: &str) -> Result<Passwords, (usize, String)> {
        let mut hashes = HashMap::new();
        let mut usual = String::new();
        for (number, line) in said(text) {
            let wrong = |what: &str| (number, what.to_owned());
            let (user, hash) = line.split_once(':').ok_or_else(|| wrong("expected USER:HASH"))?;
            check_name(user, "user").map_err(|what| wrong(&what))?;
            check(hash).map_err(|what| (number, what))?;
            if usual.is_empty() {
                hash.clone_into(&mut usual);
            }
            if hashes.insert(user.to_owned(), hash.to_owned()).is_some() {
                return Err(wrong("this user stands on an earlier line, too"));
            }
        }
        if hashes.is_empty() {
            return Err((
                1,
                "expected at least one line USER:HASH, as `production_server hash-password USER` makes it".to_owned(),
            ));
        }
        Ok(Passwords { text: text.to_owned(), hashes, usual })
    }

    pub(super) fn attempt(&self, user: &str, password: Vec<u8>) -> Try {
        let hash = self.hashes.get(user);
        Try {
            user: User::new(user, "basic"),
            password,
            nobody: hash.is_none(),
            hash: hash.unwrap_or(&self.usual).clone(),
        }
    }
}

/// Whether a hash is one that is understood and not too dear, or why not.
fn check(hash: &str) -> Result<(), String> {
    const HINT: &str = "make it anew with `production_server hash-password USER`";
    if hash.starts_with("$argon2id$") {
        let parsed = Hash::parse(hash).ok_or("this argon2id hash is malformed")?;
        let dear = parsed.memory > MOST_MEMORY
            || u64::from(parsed.memory) * u64::from(parsed.passes) > MOST_WORK
            || parsed.lanes > MOST_LANES;
        if dear {
            return Err(format!(
                "this argon2id hash takes too much for each try: expected at most m={MOST_MEMORY}, four passes of that, and p={MOST_LANES}"
            ));
        }
        return parsed.params().map(drop).ok_or_else(|| "this argon2id hash has parameters that cannot be".to_owned());
    }
    if ["$2y$", "$2b$", "$2a$"].iter().any(|kind| hash.starts_with(kind)) {
        let parts: bcrypt::HashParts = hash.parse().map_err(|_| "this bcrypt hash is malformed")?;
        return if (LEAST_COST..=MOST_COST).contains(&parts.get_cost()) {
            Ok(())
        } else {
            Err(format!("this bcrypt hash has a cost of {}: expected {LEAST_COST} to {MOST_COST}", parts.get_cost()))
        };
    }
    let kind = match hash {
        _ if hash.starts_with("$apr1$") || hash.starts_with("$1$") => "an MD5 hash",
        _ if hash.starts_with("{SHA}") => "an unsalted SHA-1 hash",
        _ if hash.starts_with("$argon2") => "an argon2 hash of another kind than argon2id",
        _ if hash.starts_with("$5$") || hash.starts_with("$6$") => "a hash of crypt(3)",
        _ => "neither a bcrypt nor an argon2id hash",
    };
    Err(format!("{kind}: expected bcrypt or argon2id; {HINT}"))
}

/// An argon2id hash in its parts (the PHC string format).
struct Hash {
    version: Version,
    memory: u32,
    passes: u32,
    lanes: u32,
    salt: Vec<u8>,
    output: Vec<u8>,
}

impl Hash {
    fn parse(text: &str) -> Option<Hash> {
        let mut parts = text.strip_prefix("$argon2id$")?.split('$');
        let version = Version::try_from(parts.next()?.strip_prefix("v=")?.parse::<u32>().ok()?).ok()?;
        let mut numbers = parts.next()?.split(',');
        let mut number = |name: &str| numbers.next()?.strip_prefix(name)?.parse().ok();
        let (memory, passes, lanes) = (number("m=")?, number("t=")?, number("p=")?);
        let salt = STANDARD_NO_PAD.decode(parts.next()?).ok()?;
        let output = STANDARD_NO_PAD.decode(parts.next()?).ok()?;
        let whole = parts.next().is_none() && (8..=64).contains(&salt.len()) && (16..=64).contains(&output.len());
        whole.then_some(Hash { version, memory, passes, lanes, salt, output })
    }

    fn params(&self) -> Option<Params> {
        Params::new(self.memory, self.passes, self.lanes, Some(self.output.len())).ok()
    }

    fn of(&self, password: &[u8]) -> Option<Vec<u8>> {
        let mut output = vec![0; self.output.len()];
        let argon2 = Argon2::new(Algorithm::Argon2id, self.version, self.params()?);
        argon2.hash_password_into(password, &self.salt, &mut output).ok()?;
        Some(output)
    }
}

/// Whether the hash is that of the password.
pub(super) fn verify(hash: &str, password: &[u8]) -> bool {
    if let Some(parsed) = Hash::parse(hash) {
        let made = parsed.of(password);
        return made.is_some_and(|made| verify_slices_are_equal(&made, &parsed.output).is_ok());
    }
    bcrypt::verify(password, hash).unwrap_or(false)
}

/// The hash of a password, with a salt of its own.
///
/// # Errors
/// What the password lacks, or that the system has no random numbers.
pub fn hash(password: &[u8], scheme: Scheme) -> Result<String, String> {
    if password.is_empty() || password.len() > LONGEST {
        return Err(format!("expected a password of 1 to {LONGEST} bytes"));
    }
    let mut salt = [0; 16];
    aws_lc_rs::rand::fill(&mut salt).map_err(|_| "the system has no random numbers".to_owned())?;
    if scheme == Scheme::Bcrypt {
        // What is longer is cut off by bcrypt, and a password of which a part does not count is no good surprise.
        let longest = 72;
        if password.len() > longest {
            return Err(format!("bcrypt takes {longest} bytes of a password: expected a shorter one, or argon2id"));
        }
        let made = bcrypt::hash_with_salt(password, 12, salt).map_err(|error| error.to_string())?;
        return Ok(made.format_for_version(bcrypt::Version::TwoY));
    }
    let hash = Hash {
        version: Version::V0x13,
        memory: 19 * 1024,
        passes: 2,
        lanes: 1,
        salt: salt.into(),
        output: vec![0; 32],
    };
    let output = hash.of(password).ok_or("there is not enough memory")?;
    let (salt, output) = (STANDARD_NO_PAD.encode(salt), STANDARD_NO_PAD.encode(output));
    Ok(format!("$argon2id$v=19$m={},t={},p={}${salt}${output}", hash.memory, hash.passes, hash.lanes))
}
