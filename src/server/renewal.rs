//! Certificates that others renew, as certbot does: a thread that looks at their files, has listeners show what is new in them, and says which
//! certificates end. It ends with the server.
//!
//! Files are replaced one after the other: what has changed is read once it has stayed as it is from one look to the next. What is wrong with
//! it changes nothing, is said once, and is looked at again until it is right: its time may come, or somebody may allow it to be read.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::log::{Level, Log};
use crate::tls::{Failure, Policies, Shown};

/// How often is looked.
const LOOK: Duration = Duration::from_secs(5);
/// Certificates that are renewed by somebody else, and are not that long before their end, are told.
const SOON: i64 = 7 * 86_400;

/// The thread; it ends when this goes.
pub(super) struct Renewal {
    /// What shows certificates.
    pub policies: Policies,
    log: Log,
    end: Option<Sender<()>>,
}

/// What a file is known by: device, inode, bytes, and when anything of it changed, in nanoseconds; `None`: it is not there.
type Stamp = Option<(u64, u64, u64, i64)>;

impl Renewal {
    /// None yet, for what those show.
    pub fn of(policies: Policies, log: &Log) -> Renewal {
        Renewal { policies, log: log.clone(), end: None }
    }

    /// Begins to look, once there is anything to look at.
    pub fn begin(&mut self) {
        if self.end.is_some() || self.policies.shown().is_empty() {
            return;
        }
        let (end, ended) = mpsc::channel();
        let (policies, log) = (self.policies.clone(), self.log.clone());
        let body = move || {
            let mut looks = Looks::new(policies, log);
            while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                looks.look();
            }
        };
        match std::thread::Builder::new().name("certificates".to_owned()).spawn(body) {
            Ok(_) => self.end = Some(end),
            Err(error) => {
                self.log.event(Level::Error, "nobody looks whether certificates change", &[("error", &error)])
            }
        }
    }
}

struct Looks {
    policies: Policies,
    log: Log,
    /// The files when they were read, and at the last look.
    read: Vec<(PathBuf, Stamp)>,
    last: Vec<(PathBuf, Stamp)>,
    /// What was wrong when they were read, each with the address of a listener.
    wrong: HashSet<(String, Failure)>,
    /// What was said of certificates.
    said: HashMap<(String, PathBuf), End>,
}

/// How near a certificate's end is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Far,
    Soon,
    /// It does not hold.
    Outdated,
}

impl Looks {
    /// The server has just read the files.
    fn new(policies: Policies, log: Log) -> Looks {
        let read = stamps(&policies);
        let mut looks = Looks { policies, log, last: read.clone(), read, wrong: HashSet::new(), said: HashMap::new() };
        looks.tell_ends();
        looks
    }

    fn look(&mut self) {
        let now = stamps(&self.policies);
        let is_shown = now == self.read && self.wrong.is_empty();
        if !is_shown && now == self.last {
            self.renew();
            self.read.clone_from(&now);
        }
        self.last = now;
        self.tell_ends();
    }

    /// Has listeners show what is new, and says what they do and what keeps them from it.
    fn renew(&mut self) {
        let mut wrong = HashSet::new();
        for (listener, renewed) in self.policies.renew() {
            if let Some(what) = renewed.shown {
                let fields: [(&str, &dyn std::fmt::Display); 2] = [("listener", &listener), ("shown", &what)];
                self.log.event(Level::Info, "certificates have changed", &fields);
            }
            for failure in renewed.failures {
                let one = (listener.clone(), failure);
                if !self.wrong.contains(&one) {
                    let fields: [(&str, &dyn std::fmt::Display); 2] = [("listener", &one.0), ("error", &one.1)];
                    let message = "certificates have changed and cannot be used: the old ones are shown on";
                    self.log.event(Level::Error, message, &fields);
                }
                wrong.insert(one);
            }
        }
        self.wrong = wrong;
    }

    /// Says of which certificates the end has come nearer.
    fn tell_ends(&mut self) {
        let files: Vec<PathBuf> = self.last.iter().map(|(path, _)| path.clone()).collect();
        let mut said = HashMap::new();
        for (listener, shown) in self.policies.shown() {
            let (end, key) = (end(&shown, &files), (listener, shown.path.clone()));
            if self.said.get(&key).is_none_or(|known| *known != end) {
                let (what, listener) = (shown.outdated(), &key.0);
                let until = crate::tls::day(shown.not_after);
                let path = shown.path.display();
                match what {
                    Some(failure) => {
                        let fields: [(&str, &dyn std::fmt::Display); 2] = [("error", &failure), ("listener", listener)];
                        self.log.event(Level::Error, "a certificate that clients are shown does not hold", &fields);
                    }
                    None if end == End::Soon => {
                        let fields: [(&str, &dyn std::fmt::Display); 3] =
                            [("file", &path), ("until", &until), ("listener", listener)];
                        self.log.event(Level::Warn, "a certificate ends soon: renew it", &fields);
                    }
                    None => {}
                }
            }
            said.insert(key, end);
        }
        self.said = said;
    }
}

/// How near its end is; `files` are those that somebody else has to renew.
fn end(shown: &Shown, files: &[PathBuf]) -> End {
    match shown.outdated() {
        Some(_) => End::Outdated,
        None if shown.ends_within(SOON) && files.contains(&shown.path) => End::Soon,
        None => End::Far,
    }
}

fn stamps(policies: &Policies) -> Vec<(PathBuf, Stamp)> {
    let with_stamp = |path: PathBuf| {
        let stamp = stamp(&path);
        (path, stamp)
    };
    policies.files().into_iter().map(with_stamp).collect()
}

fn stamp(path: &Path) -> Stamp {
    let found = std::fs::metadata(path).ok()?;
    let changed = found.ctime().saturating_mul(1_000_000_000).saturating_add(found.ctime_nsec());
    Some((found.dev(), found.ino(), found.len(), changed))
}
