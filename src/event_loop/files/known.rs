//! What a loop knows of files, what is being looked for, and who waits for that.
//!
//! Rules:
//! - What was found out is believed for [`FRESH`], and let go of within as much again, so that a file that is removed does not keep its disk.
//! - What is known and what is being looked for have [`MOST_OPEN`] files open at most: of a name that is looked for as many are counted as
//!   it may have, and what is known makes place for it. Who reads a file has it open besides.
//! - A name waits in line for its turn to be looked for, and is refused where the line is full.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crate::buffers::slots::Key;
use crate::config::Coding;
use crate::files::Site;
use crate::files::answer::Named;
use crate::files::open::Look;
use crate::helpers::Kind;

/// For how long what was found out is believed, in nanoseconds: a second.
pub(super) const FRESH: u64 = 1_000_000_000;
/// How many names a loop knows at most.
const MOST_NAMES: usize = 512;
/// How many files it has open for them at most.
pub const MOST_OPEN: usize = 128;
/// How many a name may have: the file and its siblings.
const MOST_OF_A_NAME: usize = 1 + Coding::ALL.len();
/// How many names are looked for at once: with room for as many files to be known meanwhile.
const MOST_AT_ONCE: usize = MOST_OPEN / MOST_OF_A_NAME / 2;
/// How many are looked for or wait for it at most.
const MOST_IN_LINE: usize = Kind::Waits.room();

/// What is known of files.
#[derive(Default)]
pub(crate) struct KnownFiles {
    /// By the number of the site and the name in it.
    names: HashMap<Box<[u8]>, Known>,
    /// Where such a key is put together.
    key: Vec<u8>,
    /// How many files are open for what is known.
    open: usize,
    /// The names that wait for their turn.
    line: VecDeque<Box<[u8]>>,
    /// How many helpers look for.
    under_way: usize,
}

/// What is known of a name, and who waits to know it.
#[derive(Default)]
struct Known {
    /// Nothing as long as somebody waits.
    look: Option<Look>,
    /// When it was found out, in the loop's nanoseconds.
    at: u64,
    /// Those in line and under way have some, and no others.
    waiting: Vec<Waiter>,
}

/// An exchange that waits for what lies behind a name.
pub(super) struct Waiter {
    pub exchange: Key,
    pub site: Arc<Site>,
    pub name: Box<[u8]>,
    /// Path and query as they came.
    pub target: Box<[u8]>,
    /// What the app has said that has named it.
    pub named: Option<Named>,
}

/// A name that a helper is to look for.
pub(super) struct Search {
    /// As [`KnownFiles::found`] is told it.
    pub key: Box<[u8]>,
    pub site: Arc<Site>,
    pub name: Box<[u8]>,
    /// What is to be closed before.
    pub gone: Vec<Look>,
}

/// How many files are open for what was found out.
fn files_of(look: Option<&Look>) -> usize {
    if let Some(Look::File(served)) = look { 1 + served.coded.len() } else { 0 }
}

impl KnownFiles {
    /// What lies behind a name, if that was found out not long ago.
    fn fresh(&mut self, site: &Site, name: &[u8], now: u64) -> Option<Look> {
        self.key.clear();
        self.key.extend_from_slice(&site.number.to_le_bytes());
        self.key.extend_from_slice(name);
        let known = self.names.get(&self.key[..]).filter(|known| now.saturating_sub(known.at) < FRESH)?;
        known.look.clone()
    }

    /// What lies behind a name, or behind the one that takes its place where nothing does: and the name. Where it is not known, the name
    /// that is to be asked for.
    pub(super) fn find<'a>(&mut self, site: &'a Site, mut name: &'a [u8], now: u64) -> (Option<Look>, &'a [u8]) {
        loop {
            match (self.fresh(site, name, now), site.fallback(name)) {
                (Some(Look::Missing), Some(fallback)) => name = fallback,
                // Nobody is sent on from a name that is not there to a directory.
                (Some(Look::Directory), None) if site.is_fallback(name) => return (Some(Look::Missing), name),
                (look, _) => return (look, name),
            }
        }
    }

    /// Has an exchange wait for what lies behind a name: whether it is the first. An error: too many names are waited for.
    pub(super) fn wait(&mut self, waiter: Waiter) -> Result<bool, ()> {
        let key: Box<[u8]> = [&waiter.site.number.to_le_bytes()[..], &waiter.name].concat().into();
        if let Some(known) = self.names.get_mut(&key).filter(|known| !known.waiting.is_empty()) {
            known.waiting.push(waiter);
            return Ok(false);
        }
        if self.line.len() + self.under_way >= MOST_IN_LINE {
            return Err(());
        }
        self.line.push_back(key.clone());
        self.names.entry(key).or_default().waiting.push(waiter);
        Ok(true)
    }

    /// The next in line, if there may be files open for it.
    pub(super) fn next(&mut self, now: u64) -> Option<Search> {
        if self.under_way >= MOST_AT_ONCE {
            return None;
        }
        let key = self.line.pop_front()?;
        let known = self.names.get_mut(&key)?;
        let first = known.waiting.first()?;
        let (site, name) = (first.site.clone(), first.name.clone());
        let old = known.look.take();
        self.open -= files_of(old.as_ref());
        let mut gone = self.make_place(now);
        gone.extend(old);
        self.under_way += 1;
        Some(Search { key, site, name, gone })
    }

    /// What lies behind a name was found out: who has waited for it.
    pub(super) fn found(&mut self, key: &[u8], look: Look, now: u64) -> Vec<Waiter> {
        self.under_way -= 1;
        let Some(known) = self.names.get_mut(key) else { return Vec::new() };
        self.open += files_of(Some(&look));
        (known.look, known.at) = (Some(look), now);
        std::mem::take(&mut known.waiting)
    }

    /// Nobody could look for a name: who has waited for it.
    pub(super) fn give_up(&mut self, key: &[u8]) -> Vec<Waiter> {
        self.under_way -= 1;
        self.names.remove(key).map_or_else(Vec::new, |known| known.waiting)
    }

    /// Forgets what is not fresh any more: what was known.
    pub(super) fn forget_stale(&mut self, now: u64) -> Vec<Look> {
        let mut gone = Vec::new();
        self.names.retain(|_, known| {
            let is_fresh = now.saturating_sub(known.at) < FRESH;
            if !is_fresh {
                gone.extend(known.look.take());
            }
            is_fresh || !known.waiting.is_empty()
        });
        self.open -= gone.iter().map(|look| files_of(Some(look))).sum::<usize>();
        gone
    }

    /// Forgets that nothing could be found out of a name.
    pub(super) fn forget_failure(&mut self, key: &[u8]) {
        if self.names.get(key).is_some_and(|known| known.waiting.is_empty()) {
            self.names.remove(key);
        }
    }

    /// Makes place for one more name, and its files: those go that are not fresh any more, and if there are none, the oldest.
    fn make_place(&mut self, now: u64) -> Vec<Look> {
        let is_full = |files: &KnownFiles| {
            let known = files.names.len() - files.line.len() - files.under_way;
            known > MOST_NAMES || files.open + (files.under_way + 1) * MOST_OF_A_NAME > MOST_OPEN
        };
        if !is_full(self) {
            return Vec::new();
        }
        let mut gone = self.forget_stale(now);
        while is_full(self) {
            let idle = self.names.iter().filter(|(_, known)| known.waiting.is_empty());
            let Some(oldest) = idle.min_by_key(|(_, known)| known.at).map(|(key, _)| key.clone()) else { break };
            let look = self.names.remove(&oldest).and_then(|known| known.look);
            self.open -= files_of(look.as_ref());
            gone.extend(look);
        }
        gone
    }

    /// Forgets everything, but for what is waited for.
    pub fn forget(&mut self) {
        self.names.retain(|_, known| !known.waiting.is_empty());
        self.open = self.names.values().map(|known| files_of(known.look.as_ref())).sum();
    }

    /// Whether nothing is known, and nobody waits.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::route::Files;
    use crate::files::open;

    /// Somebody who waits for that name in a site.
    fn waiter(site: &Arc<Site>, name: u64) -> Waiter {
        let name = format!("/{name}").into_bytes().into();
        Waiter { exchange: Key::NONE, site: site.clone(), name, target: Box::default(), named: None }
    }

    fn sites() -> (tempfile::TempDir, Arc<Site>) {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.txt", "a.txt.gz", "a.txt.br", "a.txt.zst"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let site = Arc::new(Site::new(&Files { root: folder.path().to_owned(), ..Files::default() }));
        (folder, site)
    }

    /// What is counted is what is there.
    fn counted(files: &KnownFiles) -> usize {
        let open = files.names.values().map(|known| files_of(known.look.as_ref())).sum::<usize>();
        assert_eq!(files.open, open);
        open
    }

    #[test]
    fn what_is_known_has_a_bound() {
        let (_folder, site) = sites();
        let file = open::look(&site, b"/a.txt");
        assert_eq!(files_of(Some(&file)), MOST_OF_A_NAME);
        for (look, most) in [(Look::Missing, MOST_NAMES), (file, MOST_OPEN / MOST_OF_A_NAME)] {
            let mut files = KnownFiles::default();
            let last = 2 * MOST_NAMES as u64;
            for number in 0..=last {
                assert_eq!(files.wait(waiter(&site, number)), Ok(true));
                let search = files.next(number).unwrap();
                assert_eq!(files.found(&search.key, look.clone(), number).len(), 1);
                assert!(counted(&files) <= MOST_OPEN);
            }
            assert!(files.fresh(&site, format!("/{last}").as_bytes(), last).is_some(), "the oldest go first");
            assert_eq!(files.names.len(), most);
            let before = files.names.len();
            let gone = files.forget_stale(last + FRESH - 9).len();
            assert_eq!((gone, files.names.len()), (before - 9, 9));
            files.forget_stale(FRESH * 10);
            assert!(files.is_empty() && counted(&files) == 0, "what is not fresh goes");
        }
    }

    #[test]
    fn a_burst_of_names_waits_in_line() {
        let (_folder, site) = sites();
        let file = open::look(&site, b"/a.txt");
        let mut files = KnownFiles::default();
        let all = MOST_IN_LINE as u64;
        assert!((0..all).all(|number| files.wait(waiter(&site, number)) == Ok(true)));
        assert_eq!(files.wait(waiter(&site, all)), Err(()), "the line is full");
        assert_eq!(files.wait(waiter(&site, 7)), Ok(false), "who waits for what is waited for needs no place");
        let (mut looked, mut under_way) = (0, VecDeque::new());
        loop {
            under_way.extend(std::iter::from_fn(|| files.next(1)));
            assert!(counted(&files) + under_way.len() * MOST_OF_A_NAME <= MOST_OPEN);
            let Some(search) = under_way.pop_front() else { break };
            let waited = files.found(&search.key, file.clone(), 1).len();
            assert_eq!(waited, 1 + usize::from(&*search.name == b"/7"));
            looked += 1;
        }
        assert_eq!(looked, all);
        assert_eq!(files.wait(waiter(&site, all)), Ok(true));
        let search = files.next(1).unwrap();
        assert_eq!(files.give_up(&search.key).len(), 1);
        assert_eq!((files.under_way, files.line.len()), (0, 0));
    }

    #[test]
    fn a_failure_is_not_known_and_who_waits_is_not_forgotten() {
        let (_folder, site) = sites();
        let mut files = KnownFiles::default();
        for number in 0..2 {
            files.wait(waiter(&site, number)).unwrap();
            let search = files.next(0).unwrap();
            files.found(&search.key, Look::Unavailable, 0);
        }
        files.wait(waiter(&site, 1)).unwrap();
        let keys: Vec<_> = files.names.keys().cloned().collect();
        keys.iter().for_each(|key| files.forget_failure(key));
        assert_eq!(files.names.len(), 1, "somebody waits for the other");
        let file = open::look(&site, b"/a.txt");
        let search = files.next(FRESH).unwrap();
        assert!(matches!(search.gone[..], [Look::Unavailable]), "not even what it was");
        files.found(&search.key, file, FRESH);
        files.wait(waiter(&site, 1)).unwrap();
        assert_eq!((files.forget_stale(2 * FRESH).len(), counted(&files), files.names.len()), (1, 0, 1));
        files.forget();
        assert!(files.next(2 * FRESH).is_some(), "whoever waits is answered");
    }

    #[test]
    fn a_directory_takes_nobodys_place() {
        let (folder, _) = sites();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        let root = folder.path().to_owned();
        let site = Arc::new(Site::new(&Files { root, fallback: Some("/in".to_owned()), ..Files::default() }));
        let mut files = KnownFiles::default();
        for name in ["/0", "/in"] {
            files.wait(Waiter { name: name.as_bytes().into(), ..waiter(&site, 0) }).unwrap();
            let search = files.next(0).unwrap();
            files.found(&search.key, open::look(&site, &search.name), 0);
        }
        assert!(matches!(files.find(&site, b"/0", 0), (Some(Look::Missing), b"/in")));
    }
}
