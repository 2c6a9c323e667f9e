//! What is kept on disk: accounts, what the brakes count, the order under way, and the certificate with its key in one file. Files are written
//! beside what they replace, synced and renamed, so that a full disk or the end of the process leaves what was there; none but the owner
//! may read them. One process at a time has a directory.
//!
//! Names of files say of which names and of which authority they are ([`tls::base`]). Those of earlier versions say nothing of the authority; they
//! are read where they can be of no other.

use std::fs::{DirBuilder, File, Metadata, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::client::{Failure, Obtained};
use super::key::AccountKey;
use super::planner::Brakes;
use crate::config::Acme;
use crate::tls::{self, Issued};

/// An account at an authority.
pub struct Account {
    /// Its key.
    pub key: AccountKey,
    /// Where it is; `None`: it is still to be made.
    pub url: Option<String>,
    /// Whom the authority was told to write to; `None`: nobody knows.
    pub email: Option<String>,
}

/// It in its file.
#[derive(Serialize, Deserialize)]
struct Kept {
    url: Option<String>,
    /// In PKCS#8.
    key: Vec<u8>,
    #[serde(default)]
    email: Option<String>,
}

/// An order in which a certificate was demanded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Where it is.
    pub url: String,
    /// The key of the certificate, in PEM.
    pub key: String,
    /// Where the account is that has begun it; empty: nobody knows.
    #[serde(default)]
    pub account: String,
}

/// The file that a process has locked which has the directory.
const LOCK: &str = "lock";
/// What the name of the file of an order ends with.
const ORDER: &str = "order.json";

/// See the module. For one set of names at one authority.
pub struct Store {
    directory: PathBuf,
    names: Vec<String>,
    /// What the names of files of this set of names begin with.
    base: String,
    /// What they began with in earlier versions, if those can be of no other authority.
    earlier: Vec<String>,
    account: String,
    /// Held as long as this lives.
    lock: File,
}

impl Store {
    /// Opens the directory, which is made if there is none; `None`: another process has it.
    ///
    /// # Errors
    /// When it cannot be made or opened.
    pub fn open(acme: &Acme) -> Result<Option<Store>, Failure> {
        let directory = acme.directory.clone();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|error| cannot("make", &directory, &error))?;
        let path = directory.join(LOCK);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = lock.map_err(|error| cannot("open", &path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(cannot("lock", &path, &error)),
        }
        let (names, base) = (acme.domains.clone(), tls::base(&acme.domains, &acme.url));
        let account = format!("account-{}.json", tls::short_hash(&acme.url));
        let earlier = if is_alone(&directory, &account) { tls::earlier_bases(&names) } else { Vec::new() };
        Ok(Some(Store { directory, names, base, earlier, account, lock }))
    }

    /// Whether it still is the directory that was opened: somebody may have removed it.
    pub fn is_there(&self) -> bool {
        let of_file = |file: Metadata| (file.dev(), file.ino());
        let found = std::fs::metadata(self.directory.join(LOCK)).map(of_file);
        found.is_ok_and(|found| self.lock.metadata().map(of_file).is_ok_and(|held| held == found))
    }

    /// Where the certificate lies.
    pub fn certificate(&self) -> PathBuf {
        self.path(tls::EXTENSION)
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.directory.join(format!("{}.{extension}", self.base))
    }

    /// What an earlier version has kept, the newest first.
    fn earlier(&self, extension: &str) -> Vec<PathBuf> {
        let all = self.earlier.iter().map(|base| self.directory.join(format!("{base}.{extension}")));
        let mut all: Vec<_> = all.filter_map(|path| Some((path.metadata().ok()?.modified().ok()?, path))).collect();
        all.sort();
        all.into_iter().rev().map(|(_, path)| path).collect()
    }

    /// Where it lies: as this version names it, or else as an earlier one did.
    fn found(&self, extension: &str) -> PathBuf {
        let path = self.path(extension);
        if path.exists() { path } else { self.earlier(extension).into_iter().next().unwrap_or(path) }
    }

    /// The certificate, if there is one that holds.
    pub fn held(&self) -> Option<Issued> {
        let mut all = std::iter::once(self.certificate()).chain(self.earlier(tls::EXTENSION));
        all.find_map(|path| tls::issued(&path).ok().filter(|issued| self.is_for_all(issued)))
    }

    fn is_for_all(&self, issued: &Issued) -> bool {
        self.names.iter().all(|name| issued.names.contains(name))
    }

    /// What the brakes have counted.
    ///
    /// # Errors
    /// When it cannot be read: nothing is ordered then.
    pub fn brakes(&self) -> Result<Brakes, Failure> {
        Ok(read(&self.found("brakes.json"))?.unwrap_or_default())
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written: nothing is ordered then.
    pub fn keep_brakes(&self, brakes: &Brakes) -> Result<(), Failure> {
        write(&self.path("brakes.json"), brakes)
    }

    /// The account; one that is still to be made has its key from here on.
    ///
    /// # Errors
    /// When it cannot be read, made or written.
    pub fn account(&self) -> Result<Account, Failure> {
        if let Some(account) = self.known_account()? {
            return Ok(account);
        }
        let key = AccountKey::generate().ok_or_else(|| Failure::new("no key can be made for an account"))?;
        let account = Account { key, url: None, email: None };
        self.keep_account(&account)?;
        Ok(account)
    }

    /// The account, if there is one, or one is still to be made.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn known_account(&self) -> Result<Option<Account>, Failure> {
        let path = self.directory.join(&self.account);
        let Some(Kept { url, key, email }) = read(&path)? else { return Ok(None) };
        let key = AccountKey::from_document(&key);
        let key = key.ok_or_else(|| Failure::new(format!("{}: its key cannot be read", path.display())))?;
        Ok(Some(Account { key, url, email }))
    }

    /// Keeps what is known of the account.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_account(&self, account: &Account) -> Result<(), Failure> {
        let Account { key, url, email } = account;
        let kept = Kept { url: url.clone(), key: key.document().to_vec(), email: email.clone() };
        write(&self.directory.join(&self.account), &kept)
    }

    /// Forgets an account that the authority knows no more, and its key.
    pub fn forget_account(&self) {
        forget(&self.directory.join(&self.account));
    }

    /// The order under way, if that account has begun it: no other one, and no other authority, knows anything of it.
    pub fn order(&self, account: &str) -> Option<Order> {
        let order: Order = read(&self.found(ORDER)).ok().flatten()?;
        let is_ours = if order.account.is_empty() { is_at(&order.url, account) } else { order.account == account };
        is_ours.then_some(order)
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_order(&self, order: &Order) -> Result<(), Failure> {
        write(&self.path(ORDER), order)
    }

    /// Forgets it.
    pub fn forget_order(&self) {
        forget(&self.path(ORDER));
        self.earlier(ORDER).iter().for_each(|path| forget(path));
    }

    /// Puts a certificate and its key in the place of what was there, once they are seen to be a pair for all names which holds, and `accepts`
    /// takes it.
    ///
    /// # Errors
    /// What is wrong with them, or why they cannot be written.
    pub fn keep(
        &self,
        obtained: &Obtained,
        accepts: impl FnOnce(&Issued) -> Result<(), Failure>,
    ) -> Result<Issued, Failure> {
        let (path, beside) = (self.certificate(), beside(&self.certificate()));
        let text = format!("{}\n{}", obtained.chain.trim_end(), obtained.key);
        let checked = write_beside(&beside, text.as_bytes()).and_then(|()| {
            let issued = tls::issued(&beside).map_err(|failure| Failure::new(failure.to_string()))?;
            if !self.is_for_all(&issued) {
                return Err(Failure::new(format!("the certificate is for {} alone", issued.names.join(", "))));
            }
            accepts(&issued)?;
            replace(&beside, &path)?;
            Ok(issued)
        });
        checked.inspect_err(|_| forget(&beside))
    }
}

/// Whether there is no account in the directory but that of this file.
fn is_alone(directory: &Path, account: &str) -> bool {
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let mut others = files.filter(|path| {
        named(path).is_some_and(|name| name != account && name.starts_with("account-") && name.ends_with(".json"))
    });
    others.all(|path| read::<Kept>(&path).is_ok_and(|kept| kept.is_none_or(|kept| kept.url.is_none())))
}

/// Whether both lie at the same authority: scheme, host and port are the same.
fn is_at(url: &str, other: &str) -> bool {
    let place = |url: &str| url.split('/').take(3).map(str::to_ascii_lowercase).collect::<Vec<_>>();
    place(url) == place(other)
}

fn cannot(what: &str, path: &Path, error: &std::io::Error) -> Failure {
    let hint = match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "; it has to belong to the user that the server runs as, or set acme.directory"
        }
        _ => "",
    };
    Failure::new(format!("cannot {what} {}: {error}{hint}", path.display()))
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Failure> {
    let text = match std::fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(cannot("read", path, &error)),
    };
    let read = serde_json::from_slice(&text);
    read.map(Some).map_err(|error| {
        Failure::new(format!("{}: it cannot be read: {error}; remove it to begin anew", path.display()))
    })
}

fn write(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_vec(value).map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    let beside = beside(path);
    write_beside(&beside, &text).and_then(|()| replace(&beside, path)).inspect_err(|_| forget(&beside))
}

/// Where something is written before it takes the place of what is at `path`.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn write_beside(beside: &Path, bytes: &[u8]) -> Result<(), Failure> {
    // One that was left behind may be anything.
    forget(beside);
    let file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(beside);
    let written = file.and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.map_err(|error| cannot("write", beside, &error))
}

fn replace(beside: &Path, path: &Path) -> Result<(), Failure> {
    std::fs::rename(beside, path).map_err(|error| cannot("write", path, &error))?;
    if let Some(directory) = path.parent() {
        File::open(directory)
            .and_then(|directory| directory.sync_all())
            .map_err(|error| cannot("write", path, &error))?;
    }
    Ok(())
}

/// Removes a file. One that is not there, or stays, does no harm.
fn forget(path: &Path) {
    std::fs::remove_file(path).ok();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::acme::planner::Planner;

    fn acme(directory: &Path, names: &[&str]) -> Acme {
        let domains = names.iter().map(|name| (*name).to_owned()).collect();
        Acme { email: "a@b".to_owned(), domains, directory: directory.join("state/acme"), ..Acme::default() }
    }

    fn order(url: &str, account: &str) -> Order {
        Order { url: url.to_owned(), key: "KEY".to_owned(), account: account.to_owned() }
    }

    fn obtained(names: &[&str]) -> Obtained {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        Obtained { chain: made.cert.pem(), key: made.signing_key.serialize_pem() }
    }

    #[test]
    fn what_is_kept_is_there_after_a_restart_and_for_the_owner_alone() {
        let place = tempfile::tempdir().unwrap();
        let acme = acme(place.path(), &["a.example", "b.example"]);
        let store = Store::open(&acme).unwrap().unwrap();
        assert!(Store::open(&acme).unwrap().is_none(), "another process has it");
        let mut planner = Planner::new(store.brakes().unwrap(), None);
        planner.begin(7);
        assert!(planner.order_begins(7));
        store.keep_brakes(planner.brakes()).unwrap();
        assert!(store.known_account().unwrap().is_none());
        let account = store.account().unwrap();
        assert_eq!((&account.url, &account.email), (&None, &None));
        let email = Some("a@b".to_owned());
        let account = Account { url: Some("https://ca/1".to_owned()), email, ..account };
        store.keep_account(&account).unwrap();
        let order = order("https://ca/order/1", "https://ca/1");
        store.keep_order(&order).unwrap();
        store.keep(&obtained(&["b.example", "a.example"]), |_| Ok(())).unwrap();
        drop(store);
        let store = Store::open(&acme).unwrap().unwrap();
        assert!(store.is_there());
        assert_eq!(store.brakes().unwrap(), *planner.brakes());
        let again = store.account().unwrap();
        assert_eq!(again.key.thumbprint(), account.key.thumbprint());
        assert_eq!((again.url, again.email), (account.url, account.email));
        assert_eq!(store.order("https://ca/2"), None, "another account has begun it");
        assert_eq!(store.order("https://ca/1"), Some(order));
        assert_eq!(store.held().unwrap().names, ["b.example", "a.example"]);
        store.forget_order();
        assert_eq!(store.order("https://ca/1"), None);
        for entry in std::fs::read_dir(&acme.directory).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
        assert_eq!(std::fs::metadata(&acme.directory).unwrap().permissions().mode() & 0o777, 0o700);
        std::fs::remove_dir_all(&acme.directory).unwrap();
        assert!(!store.is_there());
        let other = Store::open(&acme).unwrap().unwrap();
        assert!(other.is_there() && !store.is_there());
    }

    #[test]
    fn the_order_of_the_names_matters_as_little_as_the_authority_matters_much() {
        let place = tempfile::tempdir().unwrap();
        let first = acme(place.path(), &["a.example", "b.example"]);
        let store = Store::open(&first).unwrap().unwrap();
        store.keep(&obtained(&["a.example", "b.example"]), |_| Ok(())).unwrap();
        let mut planner = Planner::new(Brakes::default(), None);
        planner.begin(7);
        store.keep_brakes(planner.brakes()).unwrap();
        store.keep_order(&order("https://ca/order/1", "https://ca/1")).unwrap();
        drop(store);
        let other = acme(place.path(), &["b.example", "a.example"]);
        let store = Store::open(&other).unwrap().unwrap();
        assert!(store.held().is_some() && store.order("https://ca/1").is_some());
        assert_eq!(store.brakes().unwrap(), *planner.brakes());
        drop(store);
        let elsewhere = Acme { url: "https://elsewhere/dir".to_owned(), ..first };
        let store = Store::open(&elsewhere).unwrap().unwrap();
        assert!(store.held().is_none() && store.order("https://ca/1").is_none());
        assert_eq!(store.brakes().unwrap(), Brakes::default());
    }

    /// What versions have kept that named their files by the first of the names and not by the authority.
    #[test]
    fn what_an_earlier_version_has_kept_is_found_where_it_can_be_of_no_other_authority() {
        let place = tempfile::tempdir().unwrap();
        let here = acme(place.path(), &["b.example", "a.example"]);
        let store = Store::open(&here).unwrap().unwrap();
        store.keep_account(&Account { url: Some("https://ca/1".to_owned()), ..store.account().unwrap() }).unwrap();
        store.keep(&obtained(&["b.example", "a.example"]), |_| Ok(())).unwrap();
        let mut planner = Planner::new(Brakes::default(), None);
        planner.begin(7);
        store.keep_brakes(planner.brakes()).unwrap();
        let under_way = r#"{"url":"https://ca/order/1","key":"KEY"}"#;
        std::fs::write(store.path(ORDER), under_way).unwrap();
        let earlier = tls::earlier_bases(&here.domains)[1].clone();
        assert!(earlier.starts_with("b.example-"));
        for extension in [tls::EXTENSION, "brakes.json", ORDER] {
            std::fs::rename(store.path(extension), here.directory.join(format!("{earlier}.{extension}"))).unwrap();
        }
        drop(store);
        let store = Store::open(&here).unwrap().unwrap();
        assert!(store.held().is_some());
        assert_eq!(store.brakes().unwrap(), *planner.brakes());
        assert_eq!(store.order("https://ca/1").unwrap(), order("https://ca/order/1", ""));
        assert_eq!(store.order("https://ca:444/1"), None);
        let elsewhere = Acme { url: "https://elsewhere/dir".to_owned(), ..here.clone() };
        drop(store);
        let store = Store::open(&elsewhere).unwrap().unwrap();
        assert!(store.held().is_none() && store.order("https://ca/1").is_none(), "it is of the other account");
        drop(store);
        let store = Store::open(&here).unwrap().unwrap();
        store.forget_order();
        assert_eq!(store.order("https://ca/1"), None);
    }

    #[test]
    fn what_is_no_pair_or_not_accepted_replaces_nothing() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(&acme(place.path(), &["a.example"])).unwrap().unwrap();
        let good = obtained(&["a.example"]);
        store.keep(&good, |_| Ok(())).unwrap();
        let before = std::fs::read(store.certificate()).unwrap();
        let (other, short) = (obtained(&["a.example"]), obtained(&["b.example"]));
        let mixed = Obtained { chain: good.chain.clone(), key: other.key.clone() };
        assert!(store.keep(&mixed, |_| Ok(())).unwrap_err().what.contains("the key is not that of the certificate"));
        assert!(store.keep(&short, |_| Ok(())).unwrap_err().what.contains("is for b.example alone"));
        assert_eq!(store.keep(&other, |_| Err(Failure::new("no"))).unwrap_err().what, "no");
        assert_eq!(std::fs::read(store.certificate()).unwrap(), before);
        assert!(!beside(&store.certificate()).exists());
    }

    #[test]
    fn what_cannot_be_read_or_written_is_said_with_its_place() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open(&acme(place.path(), &["a.example"])).unwrap().unwrap();
        std::fs::write(store.path("brakes.json"), "{").unwrap();
        let failure = store.brakes().unwrap_err().what;
        assert!(failure.contains("brakes.json") && failure.contains("remove it"), "{failure}");
        std::fs::create_dir(beside(&store.path(ORDER))).unwrap();
        assert!(store.keep_order(&order("", "")).unwrap_err().what.contains("order.json.new"));
        assert!(
            Store::open(&acme(Path::new("/dev/null"), &["a"]))
                .is_err_and(|failure| failure.what.starts_with("cannot make"))
        );
    }
}
