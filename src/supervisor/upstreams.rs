//! Servers that something else runs: found by connecting, lost by a refused connect, found again.
//!
//! A name may have several addresses, and others tomorrow (`localhost` is ::1 and 127.0.0.1; a container that is made anew moves). All
//! of them are tried in turn, and the name is looked up again after each round in vain. To the dispatch an upstream at
//! another address is another worker: the connections to the old one are given up, its requests end where they are.
//!
//! Which of those that are found get requests, decides [`Ejection`]; the dispatch is told here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::SockAddr;

use super::probe::{Look, Probe};
use super::resolver::{Lookup, Resolve};
use super::wake::Waker;
use super::{StartError, run_directory};
use crate::config::{App, Upstream};
use crate::dispatch::{AppId, Dispatch, Moves, Target, WorkerId};
use crate::fleet::{Admission, Ejection, EjectionRule, Told};
use crate::log::{Level, Log};
use crate::mailbox::{Message, Postboxes};

/// The wait after the first round in vain; each is twice as long as the one before, up to...
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// ...this one.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// All upstreams of the app.
pub(super) struct Upstreams {
    all: Vec<Watched>,
    /// By the places in `all`.
    ejection: Ejection,
    /// Those that have moved: forgotten once their requests have ended.
    leaving: Vec<WorkerId>,
    resolve: Resolve,
    waker: Waker,
    seen: bool,
    /// What upstreams that are found from now on belong to.
    generation: u32,
}

/// Who is told what has become of an upstream.
#[derive(Clone, Copy)]
pub(super) struct Listeners<'a> {
    pub dispatch: &'a Dispatch,
    pub app: AppId,
    pub postboxes: &'a Postboxes,
    pub log: &'a Log,
}

/// The number of an upstream among the workers' places, by its index.
pub(super) fn place_of(index: usize) -> u32 {
    index as u32 + 1
}

/// One upstream and what is known of it.
struct Watched {
    label: String,
    number: u32,
    /// What is looked up; `None`: it was given as an address.
    name: Option<(String, u16)>,
    /// Where it may be, as was last found.
    addresses: Vec<SockAddr>,
    /// Where it was last found, as the dispatch knows it.
    at: Option<(WorkerId, SockAddr)>,
    /// `None` while it answers.
    search: Option<Search>,
    /// Whether its absence was said.
    said: bool,
}

/// The search for an upstream: rounds over its addresses.
struct Search {
    /// A connect to the address with that index.
    probe: Option<(usize, Probe)>,
    lookup: Option<Lookup>,
    /// When the next round begins.
    next: Instant,
    wait: Duration,
    /// Why the last attempt failed.
    reason: String,
}

impl Search {
    fn new(now: Instant) -> Search {
        Search { probe: None, lookup: None, next: now, wait: FIRST_WAIT, reason: String::new() }
    }

    /// A round was in vain.
    fn rest(&mut self, now: Instant) {
        self.next = now + self.wait;
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
    }
}

impl Upstreams {
    /// Those of the app. Nothing is asked yet; the dispatch knows those that were given as addresses.
    ///
    /// # Errors
    /// When the path of a socket is too long, or the dispatch has no room.
    pub fn new(
        app: &App,
        dispatch: &Dispatch,
        resolve: Resolve,
        waker: Waker,
        now: Instant,
    ) -> Result<Upstreams, StartError> {
        let mut all = Vec::new();
        for (index, upstream) in app.instead.upstreams.iter().enumerate() {
            let (name, addresses) = match upstream {
                Upstream::Unix(path) => {
                    run_directory::check_length(path)?;
                    (None, vec![SockAddr::unix(path)?])
                }
                Upstream::Tcp(host, port) => match host.parse::<IpAddr>() {
                    Ok(ip) => (None, vec![SocketAddr::new(ip, *port).into()]),
                    Err(_) => (Some((host.clone(), *port)), Vec::new()),
                },
            };
            let (label, number) = (upstream.to_string(), place_of(index));
            let search = Some(Search::new(now));
            let mut upstream = Watched { label, number, name, addresses, at: None, search, said: false };
            if let (None, [address]) = (&upstream.name, &upstream.addresses[..]) {
                let address = address.clone();
                let full = || StartError { message: "too many upstreams".to_owned(), code: 64 };
                upstream.at = Some((upstream.add(&address, 0, dispatch, now).ok_or_else(full)?, address));
            }
            all.push(upstream);
        }
        let ejection = Ejection::new(rule(app), all.len(), now);
        Ok(Upstreams { all, ejection, leaving: Vec::new(), resolve, waker, seen: false, generation: 0 })
    }

    /// Other settings hold.
    pub fn configure(&mut self, app: &App) {
        self.ejection.set_rule(rule(app));
    }

    /// Whether one was ever found.
    pub fn seen(&self) -> bool {
        self.seen
    }

    /// What is to be polled for.
    pub fn entries(&self) -> impl Iterator<Item = libc::pollfd> {
        self.all.iter().filter_map(|upstream| upstream.search.as_ref()?.probe.as_ref()?.1.entry())
    }

    /// When to look again, whatever the descriptors do.
    pub fn due(&self) -> Option<Instant> {
        self.all.iter().filter_map(Watched::due).chain(self.ejection.due()).min()
    }

    fn index(&self, id: WorkerId) -> Option<usize> {
        self.all.iter().position(|upstream| upstream.id() == Some(id))
    }

    /// The name of one, by its place, if it is known where it is.
    pub fn id(&self, index: usize) -> Option<WorkerId> {
        self.all.get(index)?.id()
    }

    /// Those that accept connections.
    pub fn found(&self) -> impl Iterator<Item = WorkerId> {
        self.all.iter().filter(|upstream| upstream.search.is_none()).filter_map(Watched::id)
    }

    /// A connect to an upstream was refused.
    pub fn unreachable(&mut self, id: WorkerId, now: Instant) {
        let Some(index) = self.index(id) else { return };
        self.ejection.lost(index);
        self.all[index].search.get_or_insert_with(|| Search::new(now));
    }

    /// An upstream has failed too often.
    pub fn failing(&mut self, id: WorkerId, now: Instant) {
        self.index(id).into_iter().for_each(|index| self.ejection.failed(index, now));
    }

    /// An upstream has answered on trial.
    pub fn recovers(&mut self, id: WorkerId, now: Instant) {
        self.index(id).into_iter().for_each(|index| self.ejection.recovers(index, now));
    }

    /// Whether an upstream is left out; `None`: it is none.
    pub fn is_ejected(&self, id: WorkerId) -> Option<bool> {
        self.index(id).map(|index| self.ejection.is_ejected(index))
    }

    /// All that the dispatch knows, those that have moved included.
    pub fn known(&self) -> impl Iterator<Item = WorkerId> {
        self.all.iter().filter_map(Watched::id).chain(self.leaving.iter().copied())
    }

    /// Has the dispatch give requests to those that are to get some. `well`: whether one passes its checks, as far as it is asked.
    pub fn admit(&mut self, well: impl Fn(WorkerId) -> bool, listeners: Listeners<'_>, now: Instant) {
        for (index, upstream) in self.all.iter().enumerate() {
            if let Some(id) = upstream.id().filter(|_| upstream.search.is_none()) {
                self.ejection.set_healthy(index, well(id));
            }
        }
        self.ejection.tick(now);
        let Listeners { dispatch, postboxes, .. } = listeners;
        for (index, admission) in self.ejection.changes() {
            let Some(id) = self.id(index) else { continue };
            match admission {
                Admission::Shut => dispatch.unreachable(id, now),
                Admission::Open(most) => {
                    let grants = dispatch.limit(id, most).into_iter().chain(dispatch.ready(id, now));
                    grants.for_each(|grant| postboxes.grant(grant));
                }
            }
        }
    }

    /// What is to be told, with the upstream that it is about.
    pub fn take_told(&mut self) -> Vec<(Told, Option<String>)> {
        let name = |index: usize| self.all.get(index).map(|upstream| upstream.label.clone());
        let told = self.ejection.take_told().into_iter().map(|told| match told {
            Told::Ejected(index, _) | Told::Unhealthy(index) | Told::Tried(index) | Told::Restored(index) => {
                (told, name(index))
            }
            Told::NoneIsWell | Told::OneIsWell => (told, None),
        });
        told.collect()
    }

    /// A worker that drains has no request left; it may be an upstream that has moved, and is forgotten then. Whether it is so.
    pub fn drained(&mut self, id: WorkerId, dispatch: &Dispatch, now: Instant) -> bool {
        let Some(index) = self.leaving.iter().position(|leaving| *leaving == id) else { return false };
        self.leaving.swap_remove(index);
        dispatch.remove(id, now);
        true
    }

    /// The app's permits are dealt out otherwise: each upstream goes on as another worker, of a later generation.
    pub fn renew(&mut self, listeners: Listeners<'_>, now: Instant) {
        self.generation += 1;
        for (index, upstream) in self.all.iter_mut().enumerate() {
            let Some((old, address)) = upstream.at.take() else { continue };
            self.ejection.lost(index);
            upstream.at = upstream.add(&address, self.generation, listeners.dispatch, now).map(|id| (id, address));
            upstream.search.get_or_insert_with(|| Search::new(now));
            listeners.postboxes.broadcast(|| Message::Retire(listeners.app, old));
            self.leaving.push(old);
            listeners.dispatch.drain(old, now);
        }
    }

    /// The app ends: all are forgotten.
    pub fn end(&mut self, listeners: Listeners<'_>, now: Instant) {
        let found = std::mem::take(&mut self.all).into_iter().filter_map(|upstream| Some(upstream.at?.0));
        for id in found.chain(std::mem::take(&mut self.leaving)) {
            listeners.postboxes.broadcast(|| Message::Retire(listeners.app, id));
            listeners.dispatch.remove(id, now);
        }
    }

    /// Looks at those that do not answer.
    pub fn look(&mut self, listeners: Listeners<'_>, now: Instant) {
        for (index, upstream) in self.all.iter_mut().enumerate() {
            let Some(mut search) = upstream.search.take() else { continue };
            match upstream.go_on(&mut search, self.resolve, &self.waker, now) {
                Some(address) => {
                    if !upstream.is_found(address, self.generation, &mut self.leaving, listeners, now) {
                        search.rest(now);
                        upstream.search = Some(search);
                        continue;
                    }
                    if !self.seen || std::mem::take(&mut upstream.said) {
                        upstream.say_found(listeners.log);
                    }
                    // It may be another worker than before.
                    self.ejection.lost(index);
                    self.ejection.found(index);
                    self.seen = true;
                }
                None => {
                    if !search.reason.is_empty() && !std::mem::replace(&mut upstream.said, true) {
                        let message = "upstream does not accept connections; it is tried again";
                        let fields: [(&str, &dyn std::fmt::Display); 2] =
                            [("upstream", &upstream.label), ("reason", &search.reason)];
                        listeners.log.event(Level::Warn, message, &fields);
                    }
                    upstream.search = Some(search);
                }
            }
        }
    }
}

/// How long those that fail are left out.
fn rule(app: &App) -> EjectionRule {
    EjectionRule { first: app.eject.time, longest: app.eject.max, concurrency: app.sharing.concurrency }
}

impl Watched {
    /// Its name in the dispatch.
    fn id(&self) -> Option<WorkerId> {
        self.at.as_ref().map(|(id, _)| *id)
    }

    /// Goes on with the search as far as that is possible now; where it answers, if it does.
    fn go_on(&mut self, search: &mut Search, resolve: Resolve, waker: &Waker, now: Instant) -> Option<SockAddr> {
        self.observe(search, now);
        if search.probe.is_none() && now >= search.next {
            search.probe = self.probe(0, now);
            if search.probe.is_none() {
                self.look_up(search, resolve, waker);
            }
        }
        while let Some((index, mut probe)) = search.probe.take() {
            match probe.look(now) {
                Look::Listening => return self.addresses.get(index).cloned(),
                Look::NotYet if probe.descriptor().is_some() => {
                    search.probe = Some((index, probe));
                    return None;
                }
                Look::NotYet => search.reason = probe.reason().unwrap_or_default().to_owned(),
            }
            search.probe = self.probe(index + 1, now);
            if search.probe.is_none() {
                // The round was in vain.
                search.rest(now);
                self.look_up(search, resolve, waker);
            }
        }
        None
    }

    /// Takes in what a look-up has found. What is known already stays in use while one runs, and when it fails.
    fn observe(&mut self, search: &mut Search, now: Instant) {
        let Some(found) = search.lookup.as_ref().and_then(Lookup::take) else { return };
        search.lookup = None;
        match found.map(|found| found.into_iter().map(SockAddr::from).collect::<Vec<_>>()) {
            Ok(found) if found == self.addresses => {}
            Ok(found) => {
                self.addresses = found;
                (search.probe, search.next) = (None, now);
            }
            Err(error) if self.addresses.is_empty() => {
                search.reason = format!("its name cannot be looked up: {error}");
                search.rest(now);
            }
            Err(_) => {}
        }
    }

    /// Begins to look the name up, unless it is an address or that is under way.
    fn look_up(&self, search: &mut Search, resolve: Resolve, waker: &Waker) {
        if let (Some((host, port)), None) = (&self.name, &search.lookup) {
            search.lookup = Some(Lookup::begin(resolve, host, *port, waker));
        }
    }

    fn due(&self) -> Option<Instant> {
        let search = self.search.as_ref()?;
        match &search.probe {
            Some((_, probe)) => Some(probe.next()),
            // The look-up's end wakes.
            None if self.addresses.is_empty() && search.lookup.is_some() => None,
            None => Some(search.next),
        }
    }

    /// A look at the address with that index.
    fn probe(&self, index: usize, now: Instant) -> Option<(usize, Probe)> {
        let address = self.addresses.get(index)?.clone();
        Some((index, Probe::of_upstream(address, now)))
    }

    fn say_found(&self, log: &Log) {
        let address = self.at.as_ref().filter(|_| self.name.is_some()).and_then(|(_, at)| at.as_socket());
        let mut fields = vec![("upstream", &self.label as &dyn std::fmt::Display)];
        fields.extend(address.as_ref().map(|address| ("address", address as &dyn std::fmt::Display)));
        log.event(Level::Info, "upstream answers", &fields);
    }

    /// Makes it known to the dispatch.
    fn add(&self, address: &SockAddr, generation: u32, dispatch: &Dispatch, now: Instant) -> Option<WorkerId> {
        let target = Target {
            address: address.clone(),
            label: self.label.clone(),
            unix: address.is_unix(),
            supervised: false,
            number: self.number,
            moves: Arc::new(Moves::new(now)),
        };
        dispatch.add(target, generation, None)
    }

    /// It answers there; an address that it has moved from is given up. False: the dispatch has no room for it.
    fn is_found(
        &mut self,
        address: SockAddr,
        generation: u32,
        leaving: &mut Vec<WorkerId>,
        listeners: Listeners<'_>,
        now: Instant,
    ) -> bool {
        let Listeners { app, dispatch, postboxes, .. } = listeners;
        if let Some((id, at)) = self.at.take() {
            if at == address {
                self.at = Some((id, at));
            } else {
                postboxes.broadcast(|| Message::Retire(app, id));
                leaving.push(id);
                dispatch.drain(id, now);
            }
        }
        if self.at.is_none() {
            let Some(id) = self.add(&address, generation, dispatch, now) else { return false };
            self.at = Some((id, address));
        }
        true
    }
}
