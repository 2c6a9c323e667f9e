//! The environment: a snapshot of the variables, and the places that follow from it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::keys::{self, PREFIX};
use super::{ListenAddress, file};

/// Says that this process takes the place of another ([`crate::handover::VARIABLE`]); no setting.
pub const HANDOVER: &str = "PRODUCTION_SERVER_HANDOVER";

/// The variables at the start. A variable that is set to nothing counts as not set.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

/// A place where run directories lie: those in `parent` whose name begins with `prefix`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The directory that holds them.
    pub parent: PathBuf,
    /// What their names begin with.
    pub prefix: String,
    /// Who must own them where anybody could put one, as in /tmp.
    pub owner: Option<u32>,
}

impl Environment {
    /// The variables of this process.
    pub fn of_process() -> Environment {
        std::env::vars_os().collect()
    }

    /// The value of a variable.
    pub fn value(&self, name: impl AsRef<OsStr>) -> Option<&OsStr> {
        self.0.get(name.as_ref()).map(OsString::as_os_str)
    }

    /// Lines about variables that look like ours and mean nothing. Those that Kubernetes sets for a service with the
    /// name production-server are left out.
    pub fn warnings(&self) -> Vec<String> {
        let ours = self.0.keys().filter_map(|name| name.to_str()).filter(|name| name.starts_with(PREFIX));
        ours.filter(|name| {
            ![file::VARIABLE, HANDOVER].contains(name) && !keys::all().any(|key| key.variable() == *name)
        })
        .filter(|name| !["PORT", "SERVICE_"].iter().any(|start| name[PREFIX.len()..].starts_with(start)))
        .map(|name| format!("{name} in the environment is not known and has no effect"))
        .collect()
    }

    /// Where sockets and the lock lie when nothing is said: `$RUNTIME_DIRECTORY` (systemd.exec(5)),
    /// `$XDG_RUNTIME_DIR/production_server-PORT`, or `/tmp/production_server-UID-PORT`.
    pub fn run_dir(&self, listen: &[ListenAddress]) -> PathBuf {
        if let Some(directories) = self.value("RUNTIME_DIRECTORY") {
            // systemd separates several directories by colons; the first is the service's own.
            return std::env::split_paths(directories).next().unwrap_or_else(|| PathBuf::from(directories));
        }
        let place = listen.first().map_or_else(String::new, place);
        if let Some(directory) = self.value("XDG_RUNTIME_DIR") {
            return PathBuf::from(directory).join(format!("production_server-{place}"));
        }
        PathBuf::from(format!("/tmp/production_server-{}-{place}", self.user()))
    }

    /// Where this server keeps what outlives it when nothing is said: `$STATE_DIRECTORY` (systemd.exec(5)), for root
    /// `/var/lib/production_server`, for others `$XDG_STATE_HOME/production_server` or `~/.local/state/production_server`.
    pub fn state_dir(&self) -> PathBuf {
        if let Some(directories) = self.value("STATE_DIRECTORY") {
            return std::env::split_paths(directories).next().unwrap_or_else(|| PathBuf::from(directories));
        }
        let own = self.value("XDG_STATE_HOME").map(PathBuf::from);
        let own = own.or_else(|| self.value("HOME").map(|home| PathBuf::from(home).join(".local/state")));
        own.filter(|_| self.user() != 0).unwrap_or_else(|| "/var/lib".into()).join("production_server")
    }

    /// Where workers start, absolute: that directory, or the one where this process was started. `$PWD` is the shell's path to the
    /// latter, which may go through links (`/srv/app/current`), and is taken as long as it leads there. `None`: nothing but
    /// the directory itself is known.
    pub fn directory(&self, given: Option<PathBuf>) -> Option<PathBuf> {
        let place = |path: &Path| std::fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino())).ok();
        let logical = self.value("PWD").map(PathBuf::from).filter(|path| path.is_absolute());
        let logical = logical.filter(|path| place(path).is_some_and(|named| Some(named) == place(Path::new("."))));
        match given {
            None => logical,
            Some(path) if path.is_absolute() => Some(path),
            Some(path) => logical.or_else(|| std::env::current_dir().ok()).map(|here| here.join(path)),
        }
    }

    /// Where this user's run directories usually lie, whatever their ports: under `$XDG_RUNTIME_DIR`, in /tmp, and in /run as
    /// systemd makes them (`RuntimeDirectory=production_server`).
    pub fn run_dirs(&self) -> Vec<Search> {
        let user = self.user();
        let search = |parent: PathBuf, prefix: String, owner| Search { parent, prefix, owner };
        let own = self.value("XDG_RUNTIME_DIR");
        let own = own.map(|directory| search(directory.into(), "production_server-".to_owned(), Some(user)));
        let shared = [
            search("/tmp".into(), format!("production_server-{user}-"), Some(user)),
            search("/run".into(), "production_server".to_owned(), None),
        ];
        own.into_iter().chain(shared).collect()
    }

    /// A number that tells users apart, without a system call that Rust calls unsafe: who owns this process, or where
    /// there is no /proc, who owns the home directory.
    pub(super) fn user(&self) -> u32 {
        let owner = |path: &OsStr| std::fs::metadata(path).ok().map(|metadata| metadata.uid());
        owner("/proc/self".as_ref()).or_else(|| self.value("HOME").and_then(owner)).unwrap_or(0)
    }
}

impl FromIterator<(OsString, OsString)> for Environment {
    fn from_iter<I: IntoIterator<Item = (OsString, OsString)>>(variables: I) -> Environment {
        Environment(variables.into_iter().filter(|(_, value)| !value.is_empty()).collect())
    }
}

/// What tells servers on one machine apart: the port, the socket's name, or the process where the kernel chooses the port.
fn place(address: &ListenAddress) -> String {
    match address {
        ListenAddress::Tcp(address) if address.port() == 0 => format!("0-{}", std::process::id()),
        ListenAddress::Tcp(address) => address.port().to_string(),
        ListenAddress::Unix(path) => path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        ListenAddress::Systemd(name) => format!("systemd-{}", name.replace('/', "-")),
    }
}
