//! What is kept on disk: accounts, what the brakes count, the order under way, and the certificate with its key in one file. Files are written
//! beside what they replace, synced and renamed, so that a full disk or the end of the process leaves what was there; none but the owner
//! may read them. One process at a time has a directory.

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
#[derive(Serialize, Deserialize)]
struct Account {
    /// Where it is; `None`: it is still to be made.
    url: Option<String>,
    /// Its key, in PKCS#8.
    key: Vec<u8>,
}

/// An order in which a certificate was demanded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// Where it is.
    pub url: String,
    /// The key of the certificate, in PEM.
    pub key: String,
}

/// The file that a process has locked which has the directory.
const LOCK: &str = "lock";

/// See the module. For one set of names at one authority.
pub struct Store {
    directory: PathBuf,
    names: Vec<String>,
    /// What the names of files of this set of names begin with.
    base: String,
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
        let mut names = acme.domains.clone();
        names.sort();
        let base = format!("{}-{}", acme.domains.first().map_or("", String::as_str), short_hash(&names.join(",")));
        let account = format!("account-{}.json", short_hash(&acme.url));
        Ok(Some(Store { directory, names, base, account, lock }))
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

    /// The certificate, if there is one that holds.
    pub fn held(&self) -> Option<Issued> {
        tls::issued(&self.certificate()).ok().filter(|issued| self.is_for_all(issued))
    }

    fn is_for_all(&self, issued: &Issued) -> bool {
        self.names.iter().all(|name| issued.names.contains(name))
    }

    /// What the brakes have counted.
    ///
    /// # Errors
    /// When it cannot be read: nothing is ordered then.
    pub fn brakes(&self) -> Result<Brakes, Failure> {
        Ok(read(&self.path("brakes.json"))?.unwrap_or_default())
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written: nothing is ordered then.
    pub fn keep_brakes(&self, brakes: &Brakes) -> Result<(), Failure> {
        write(&self.path("brakes.json"), brakes)
    }

    /// The key of the account, which is made if there is none, and where the account is, if that is known.
    ///
    /// # Errors
    /// When it cannot be read, made or written.
    pub fn account(&self) -> Result<(AccountKey, Option<String>), Failure> {
        let path = self.directory.join(&self.account);
        if let Some(Account { url, key }) = read(&path)? {
            let key = AccountKey::from_document(&key);
            let key = key.ok_or_else(|| Failure::new(format!("{}: its key cannot be read", path.display())))?;
            return Ok((key, url));
        }
        let key = AccountKey::generate().ok_or_else(|| Failure::new("no key can be made for an account"))?;
        self.keep_account(&key, None)?;
        Ok((key, None))
    }

    /// Keeps where the account is.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_account(&self, key: &AccountKey, url: Option<String>) -> Result<(), Failure> {
        write(&self.directory.join(&self.account), &Account { url, key: key.document().to_vec() })
    }

    /// Forgets an account that the authority knows no more, and its key.
    pub fn forget_account(&self) {
        forget(&self.directory.join(&self.account));
    }

    /// The order under way.
    pub fn order(&self) -> Option<Order> {
        read(&self.path("order.json")).ok().flatten()
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep_order(&self, order: &Order) -> Result<(), Failure> {
        write(&self.path("order.json"), order)
    }

    /// Forgets it.
    pub fn forget_order(&self) {
        forget(&self.path("order.json"));
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

/// What tells names of files apart: eight digits.
fn short_hash(text: &str) -> String {
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes());
    hash.as_ref().iter().take(4).map(|byte| format!("{byte:02x}")).collect()
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
        let (key, url) = store.account().unwrap();
        assert_eq!(url, None);
        store.keep_account(&key, Some("https://ca/1".to_owned())).unwrap();
        let order = Order { url: "https://ca/order/1".to_owned(), key: "KEY".to_owned() };
        store.keep_order(&order).unwrap();
        store.keep(&obtained(&["b.example", "a.example"]), |_| Ok(())).unwrap();
        drop(store);
        let store = Store::open(&acme).unwrap().unwrap();
        assert!(store.is_there());
        assert_eq!(store.brakes().unwrap(), *planner.brakes());
        let (again, url) = store.account().unwrap();
        assert_eq!((again.thumbprint(), url.as_deref()), (key.thumbprint(), Some("https://ca/1")));
        assert_eq!(store.order(), Some(order));
        assert_eq!(store.held().unwrap().names, ["b.example", "a.example"]);
        store.forget_order();
        assert_eq!(store.order(), None);
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
        std::fs::create_dir(beside(&store.path("order.json"))).unwrap();
        let order = Order { url: String::new(), key: String::new() };
        assert!(store.keep_order(&order).unwrap_err().what.contains("order.json.new"));
        assert!(
            Store::open(&acme(Path::new("/dev/null"), &["a"]))
                .is_err_and(|failure| failure.what.starts_with("cannot make"))
        );
    }
}
