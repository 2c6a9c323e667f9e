//! The configuration read anew while the server runs: what of it holds from then on.
//!
//! Everything that can fail (reading, binding, commands, files of logs) is done before anything changes, and is undone when something
//! after it fails. What needs a new process stays as it is, and is named.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::held::Patience;
use super::loops::{LATER_LINKS, LATER_LISTENERS, share_out, socket_room};
use super::renewal::Renewal;
use super::site::{self, Current};
use super::unix::Owner;
use super::{Listening, Place, descriptors, listen};
use crate::acme::Keeper;
use crate::apps::{App, AppTable};
use crate::bus;
use crate::check;
use crate::config::{self, Changes, Config, Fate, Front, Inputs, ListenAddress, Listener, Loaded, Severity};
use crate::dispatch::AppId;
use crate::helpers::Helpers;
use crate::log::{Level, Log};
use crate::mailbox::{Message, Postboxes};
use crate::metrics::Metrics;
use crate::proc;
use crate::reactor::ListenerSetup;
use crate::supervisor::Supervisor;
use crate::supervisor::reload::{Reloaded, Wanted};
use crate::supervisor::upgrade::Held;
use crate::tls;

/// What takes a new process, which an upgrade starts without losing a request.
const UPGRADE: &str = "`production_server upgrade` starts a process that can";

/// How long a reload waits for the loops, whose turns last milliseconds at most.
const LOOPS_PATIENCE: Duration = Duration::from_millis(500);

/// How long it waits for what is read and worked out: for file systems, and for who knows the names of users.
const READ_PATIENCE: Duration = Duration::from_secs(5);

/// What the server runs by, and what a new configuration is compared with.
pub(super) struct Reloader {
    inputs: Inputs,
    /// As it was said when this process started: what needs another process still is what it says.
    started: Arc<Loaded>,
    /// As it was said last.
    current: Arc<Loaded>,
    /// As it holds.
    config: Config,
    pub table: Current,
    places: Vec<Place>,
    /// Those that are being closed, and may be wanted again.
    closing: Vec<Place>,
    /// The next ids of an app and of a listener.
    next: (usize, u32),
    /// Sockets that a loop has room for, and listeners.
    room: (usize, usize),
    postboxes: Postboxes,
    log: Log,
    metrics: Metrics,
    helpers: Helpers,
    keeper: Keeper,
    renewal: Renewal,
}

/// All that a new configuration takes.
struct Plan {
    loaded: Loaded,
    config: Config,
    changes: Changes,
    table: Arc<AppTable>,
    places: Vec<Place>,
    closed: Vec<Place>,
    opened: Vec<Held>,
    /// Listeners that were to be closed, and are wanted again.
    again: Vec<u32>,
    for_loops: Vec<Vec<ListenerSetup>>,
    next: (usize, u32),
}

impl Reloader {
    /// For a server of that configuration, as it was said and as it holds.
    pub fn new(
        loaded: Loaded,
        inputs: Inputs,
        config: Config,
        table: Arc<AppTable>,
        listeners: &[Listening],
        (postboxes, log, metrics, helpers): (&Postboxes, &Log, &Metrics, &Helpers),
        policies: tls::Policies,
    ) -> Reloader {
        let started = Arc::new(loaded);
        let keeper = Keeper::start(&config.server.acme, &policies, log);
        crate::key_sets::start(log);
        share_hubs(&config, (metrics, postboxes, log), true);
        let sockets = listeners.iter().map(|listening| listening.sockets.len()).sum::<usize>();
        let mut reloader = Reloader {
            inputs,
            current: started.clone(),
            started,
            places: listeners.iter().map(|listening| Place::of(listening, &config.server)).collect(),
            closing: Vec::new(),
            config,
            next: (table.apps.len(), listeners.len() as u32),
            room: (socket_room(&table, 0) + LATER_LINKS, sockets + LATER_LISTENERS),
            table: Current::new(table),
            postboxes: postboxes.clone(),
            log: log.clone(),
            metrics: metrics.clone(),
            helpers: helpers.clone(),
            keeper,
            renewal: Renewal::of(policies, log),
        };
        reloader.show_policies();
        reloader
    }

    /// Tells who shows certificates now.
    fn show_policies(&mut self) {
        let of = |place: &Place| Some((place.address.to_string(), place.tls.clone()?));
        self.renewal.policies.put(self.places.iter().filter_map(of).collect());
        self.renewal.begin();
    }

    /// Reads the configuration anew and lets it hold.
    ///
    /// # Errors
    /// Why nothing has changed.
    pub fn reload(&mut self, supervisor: &mut Supervisor, now: Instant) -> Result<Reloaded, String> {
        let names = self.metrics.names();
        let reloaded = self.try_to(supervisor, now);
        if reloaded.is_err() {
            // No loop has the numbers of those that came.
            self.metrics.forget_names_beyond(&names);
        }
        reloaded
    }

    fn try_to(&mut self, supervisor: &mut Supervisor, now: Instant) -> Result<Reloaded, String> {
        let (inputs, shown, started) = (self.inputs.clone(), self.renewal.policies.shown(), self.started.clone());
        let (loaded, config, bars) = in_time(move || read(&inputs, &shown, &started))?;
        loaded.is_of(self.current.path())?;
        let mut changes = self.changes(&loaded);
        let renewed = self.renewed(&loaded)?;
        changes.tls = renewed.iter().map(|(place, prepared)| format!("listener {}: {prepared}", place.asked)).collect();
        if changes.is_empty() {
            self.current = Arc::new(loaded);
            return Ok(Reloaded::default());
        }
        let policies: Vec<_> =
            renewed.into_iter().filter_map(|(place, prepared)| Some((place.tls.clone()?, prepared))).collect();
        let plan = self.plan(loaded, config, changes, supervisor, now)?;
        let (wanted, added) = self.wanted(&plan);
        let prepared = supervisor.prepare(wanted, now).map_err(|error| error.to_string())?;
        let access = Access::change(&plan.changes, &plan.config, &self.config)?;
        let (log, server) = (self.log.clone(), plan.config.server.clone());
        let logs = proc::within(READ_PATIENCE, move || log.prepare(&server.logs.access, &server.logs.events));
        match logs.and_then(|prepared| prepared) {
            Ok(prepared) => self.log.adopt(prepared),
            Err(error) => {
                access.undo();
                return Err(format!("cannot open the log: {error}"));
            }
        }
        // From here on nothing fails.
        for (policy, prepared) in policies {
            policy.replace(prepared);
        }
        let together = site::counted_together(&plan.table).map(|warning| format!("{warning}; {UPGRADE} forget those"));
        let odd: Vec<String> = together.into_iter().chain(bars).collect();
        for warning in plan.loaded.warnings().into_iter().chain(shortage(&plan.config)).chain(odd.iter().cloned()) {
            self.log.event(Level::Warn, warning, &[]);
        }
        if self.config.server.acme != plan.config.server.acme {
            self.keeper.configure(&plan.config.server.acme);
        }
        crate::key_sets::start(&self.log);
        let table = self.table.put(plan.table);
        self.postboxes.broadcast(|| Message::Configure(table.clone()));
        share_hubs(&plan.config, (&self.metrics, &self.postboxes, &self.log), false);
        for (index, setups) in (0..).zip(plan.for_loops) {
            if !setups.is_empty() {
                self.postboxes.post(index, Message::Listen(setups));
            }
        }
        supervisor.hold(plan.opened, &plan.again);
        let rolls = supervisor.apply(prepared, now);
        let closed: Vec<u32> = plan.closed.iter().map(|place| place.id).collect();
        supervisor.close_listeners(&closed, now);
        self.closing.extend(plan.closed);
        self.closing.retain(|place| supervisor.closing().any(|held| held.id == place.id));
        (self.config, self.places, self.next) = (plan.config, plan.places, plan.next);
        self.current = Arc::new(plan.loaded);
        supervisor.is_configured_by(self.current.path());
        self.show_policies();
        self.await_loops(&table);
        Ok(Reloaded { lines: plan.changes.lines(), warnings: odd, rolls, added })
    }

    /// Waits until every loop serves by that table, so that whoever asks after a reload is served by it; but for no loop that does not turn.
    fn await_loops(&self, table: &AppTable) {
        let end = Instant::now() + LOOPS_PATIENCE;
        while table.taken.load(Ordering::Acquire) < self.postboxes.len() && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// What is other than it is. What needs another process is so until there is one, however often it is said.
    fn changes(&self, loaded: &Loaded) -> Changes {
        let mut changes = config::diff(&self.current, loaded);
        changes.server.retain(|changed| changed.class != config::Reload::Restart);
        changes.server.extend(config::diff(&self.started, loaded).left().cloned());
        let is_other = |listener: &&Listener| {
            let is_it = |place: &&Place| !place.admin && place.asked == listener.address;
            self.places.iter().find(is_it).is_some_and(|place| !place.may_become(&listener.front))
        };
        changes.fronts = loaded.config.listeners.iter().filter(is_other).cloned().collect();
        changes
    }

    /// Listeners that stay, and whose certificates or rules of TLS are others than they show.
    fn renewed(&self, loaded: &Loaded) -> Result<Vec<(&Place, tls::Prepared)>, String> {
        let stays = |place: &Place| {
            let listener = loaded.config.listeners.iter().find(|listener| listener.address == place.asked)?;
            (!place.admin && place.tls.is_some() && place.may_become(&listener.front))
                .then(|| listener.front.tls.clone())
        };
        let (places, said): (Vec<_>, Vec<_>) =
            self.places.iter().filter_map(|place| stays(place).map(|tls| (place, tls))).unzip();
        let prepared = in_time(move || {
            said.iter().map(tls::prepare).collect::<Result<Vec<_>, _>>().map_err(|failure| failure.to_string())
        })?;
        let is_new = |(place, prepared): &(&Place, tls::Prepared)| {
            place.tls.as_ref().is_some_and(|policy| !policy.says(prepared))
        };
        Ok(places.into_iter().zip(prepared).filter(is_new).collect())
    }

    fn plan(
        &self,
        loaded: Loaded,
        mut config: Config,
        changes: Changes,
        supervisor: &Supervisor,
        now: Instant,
    ) -> Result<Plan, String> {
        config.keep_from(&self.config);
        let closes = |asked: &ListenAddress| changes.closed.iter().any(|listener| listener.address == *asked);
        let (gone, mut places): (Vec<Place>, Vec<Place>) =
            self.places.iter().cloned().partition(|place| !place.admin && closes(&place.asked));
        for place in places.iter_mut().filter(|place| !place.admin) {
            let said = loaded.config.server.listening.front_at(&place.asked);
            let stays = if place.may_become(said) { said.clone() } else { place.front.clone() };
            place.front = stays.letting_in_as(said);
        }
        let mut next = self.next;
        let (mut listening, mut again) = (Vec::new(), Vec::new());
        for Listener { address: asked, .. } in &changes.opened {
            if let Some(other) = places.iter().find(|place| config::cannot_both_listen(asked, &place.address)) {
                return Err(taken(asked, other));
            }
            let front = config.server.listening.front_at(asked);
            if let Some(place) = self.returning(asked, front, supervisor) {
                again.push(place.id);
                places.push(Place { front: front.clone(), ..place.clone() });
                continue;
            }
            let mut opened = self.open(&config, asked, supervisor)?;
            opened.id = next.1;
            next.1 += 1;
            places.push(Place::of(&opened, &config.server));
            listening.push(opened);
        }
        let public = || places.iter().filter(|place| !place.admin);
        config.server.listening.at = public().map(|place| place.address.clone()).collect();
        config.server.listening.front_of = public().map(|place| (place.asked.clone(), place.front.clone())).collect();
        let server = Arc::new(config.server.clone());
        let known = self.table.get();
        let stays = |name: &str| !changes.apps.iter().any(|(other, fate)| other == name && *fate == Fate::Replaced);
        let mut apps = Vec::new();
        for app in &config.apps {
            let old = known.apps.iter().find(|old| old.settings.name == app.name && stays(&app.name));
            apps.push(match old {
                Some(old) => App::new(old.id, server.clone(), app.clone(), old.dispatch.clone(), &self.metrics),
                None => {
                    let id = u16::try_from(next.0).ok().filter(|id| *id < u16::MAX);
                    let id = id.ok_or_else(|| format!("this process has had too many apps; {UPGRADE} have more"))?;
                    next.0 += 1;
                    site::new_app(AppId(id), &server, app, &self.metrics, now)
                }
            });
        }
        if config.needs_helpers() {
            self.helpers
                .start(config.server.loops.helpers)
                .map_err(|error| format!("cannot start a thread: {error}"))?;
        }
        let table = Arc::new(AppTable::new(server, apps, &config.routes, &self.metrics));
        let for_loops = share_out(&listening, &config.server).map_err(|error| error.message)?;
        let sockets = places.len().max(for_loops.iter().map(Vec::len).sum());
        if socket_room(&table, 0) > self.room.0 || sockets > self.room.1 {
            return Err(format!(
                "the loops of this process have no room for the connections to so many workers; {UPGRADE} have it"
            ));
        }
        let opened = listening.into_iter().map(Held::from).collect();
        Ok(Plan { loaded, config, changes, table, places, closed: gone, opened, again, for_loops, next })
    }

    /// A TCP listener of that address that was to be closed, still is open, and has that in front of it. Behind port 0 each is another.
    fn returning(&self, asked: &ListenAddress, front: &Front, supervisor: &Supervisor) -> Option<&Place> {
        let is_it = |place: &&Place| {
            place.asked == *asked && place.address == *asked && place.front.clone().letting_in_as(front) == *front
        };
        let is_open = |place: &&Place| supervisor.closing().any(|held| held.id == place.id);
        self.closing
            .iter()
            .find(|place| is_it(place) && is_open(place))
            .filter(|_| matches!(asked, ListenAddress::Tcp(_)))
    }

    /// Opens a listener. On a port that this process listens on already, the look whether another program does must be left out.
    fn open(&self, config: &Config, asked: &ListenAddress, supervisor: &Supervisor) -> Result<Listening, String> {
        if let ListenAddress::Systemd(_) = asked {
            return Err(format!("cannot listen on {asked}: systemd's sockets are taken when the server starts"));
        }
        let port = |address: &ListenAddress| match address {
            ListenAddress::Tcp(address) => Some(address.port()),
            _ => None,
        };
        let wanted = port(asked).filter(|port| *port != 0);
        let closing = supervisor.closing().filter_map(|held| held.address.parse().ok().map(ListenAddress::Tcp));
        let mut ours = self.places.iter().map(|place| place.address.clone()).chain(closing);
        let is_ours = wanted.is_some() && ours.any(|address| port(&address) == wanted);
        let mut listening = listen(&config.server, asked, is_ours, Patience::none()).map_err(|error| error.message)?;
        listening.secure(&config.server).map_err(|failure| failure.to_string())?;
        Ok(listening)
    }

    /// What the supervisor is to do, and the apps that are new.
    fn wanted(&self, plan: &Plan) -> (Wanted, Vec<AppId>) {
        let known = self.table.get();
        let is_in = |id: AppId, apps: &[App]| apps.iter().any(|app| app.id == id);
        let (stay, new): (Vec<&App>, Vec<&App>) = plan.table.apps.iter().partition(|app| is_in(app.id, &known.apps));
        let changes = |app: &&&App| {
            let changed =
                |(name, fate): &(String, Fate)| *name == app.settings.name && matches!(fate, Fate::Changed(_));
            plan.changes.apps.iter().any(changed)
        };
        let wanted = Wanted {
            settings: plan.table.settings.clone(),
            added: new.iter().map(|app| site::setup(app)).collect(),
            changed: stay.iter().filter(changes).map(|app| (app.id, Arc::new(app.settings.clone()))).collect(),
            removed: known.apps.iter().map(|app| app.id).filter(|id| !is_in(*id, &plan.table.apps)).collect(),
        };
        (wanted, new.iter().map(|app| app.id).collect())
    }
}

/// Has hubs share their messages as the configuration says.
fn share_hubs(config: &Config, (metrics, postboxes, log): (&Metrics, &Postboxes, &Log), waits: bool) {
    if let Err(error) = bus::configure(&config.server, (metrics.hubs(), postboxes, log), waits) {
        log.event(
            Level::Error,
            "cannot start the thread by which hubs share messages: they do not",
            &[("error", &error)],
        );
    }
}

/// What the configuration says now, and what is to hold: the same, with the numbers of users in place of their names; and why the process that what was
/// `started` otherwise waits for could not start. A certificate that does not hold is refused, unless it is among those that are shown already: it has
/// expired meanwhile, and keeps nothing else from changing.
fn read(
    inputs: &Inputs,
    shown: &[(String, tls::Shown)],
    started: &Loaded,
) -> Result<(Loaded, Config, Vec<String>), String> {
    let loaded = inputs.load().map_err(|refusal| refusal.line)?;
    let of_tls = check::tls(&loaded, |one| shown.iter().any(|(_, known)| known == one));
    let findings = check::apps(&loaded).into_iter().chain(of_tls).chain(check::files(&loaded));
    let errors: Vec<_> = findings.filter(|it| it.severity == Severity::Error).collect();
    if !errors.is_empty() {
        return Err(loaded.report(&errors));
    }
    let mut config = loaded.config.clone();
    let server = &mut config.server;
    server.listening.unix_of.values_mut().chain([&mut server.listening.unix]).for_each(Owner::number);
    let left: Vec<String> = config::diff(started, &loaded).left().map(|changed| changed.path.clone()).collect();
    let bars = check::of_next_process(&loaded, &left);
    let bars = bars
        .iter()
        .map(|problem| format!("`production_server upgrade` would fail: {}", loaded.in_one_line(problem)))
        .collect();
    Ok((loaded, config, bars))
}

/// Has something read on a thread of its own: the supervisor waits a moment for it, and goes on.
fn in_time<T: Send + 'static>(read: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    proc::within(READ_PATIENCE, read).map_err(|error| match error.kind() {
        ErrorKind::TimedOut => format!(
            "it could not be read within {} s: a file system, or who knows the names of users, does not answer, or it says so much \
             that more time is needed",
            READ_PATIENCE.as_secs()
        ),
        _ => format!("it could not be read: {error}"),
    })?
}

/// Says so where the workers of more apps leave fewer descriptors to clients than there may be of them: that number stays as it is.
fn shortage(config: &Config) -> Option<String> {
    let (most, limit) = (config.server.bounds.connections, descriptors()?);
    let room = site::most_connections(config, limit);
    let warning = format!(
        "RLIMIT_NOFILE allows {limit} descriptors: enough for {room} connections beside the workers, and not for {most}"
    );
    (room < most).then_some(warning)
}

/// Why nothing is opened where this server listens already: two sockets that share a port share its clients, too.
fn taken(asked: &ListenAddress, other: &Place) -> String {
    let (what, until) = match other.admin {
        true => ("the admin listener", format!("; {UPGRADE} move it")),
        false => ("a listener", String::new()),
    };
    format!("cannot listen on {asked}: {what} of this server has {}{until}", other.address)
}

/// Modes and owners of Unix sockets as they were, to be put back when something after them fails.
struct Access(Vec<(PathBuf, fs::Metadata)>);

impl Access {
    fn change(changes: &Changes, config: &Config, before: &Config) -> Result<Access, String> {
        let mut owners = Vec::new();
        for listener in &changes.access {
            if let ListenAddress::Unix(path) = &listener.address {
                let access = config.server.listening.unix_at(path);
                let owner = Owner::find(access).map_err(|error| error.message)?;
                let owner = owner.or_maker(before.server.listening.unix_at(path), path);
                owners.push((path, access.mode, owner));
            }
        }
        let mut before = Access(Vec::new());
        for (path, mode, owner) in owners {
            if let Err(error) = before.give(path, mode, owner) {
                before.undo();
                return Err(format!("cannot change who may connect to unix:{}: {error}", path.display()));
            }
        }
        Ok(before)
    }

    fn give(&mut self, path: &Path, mode: u32, owner: Owner) -> std::io::Result<()> {
        self.0.push((path.to_owned(), fs::symlink_metadata(path)?));
        owner.own(path)?;
        fs::set_permissions(path, Permissions::from_mode(mode))
    }

    fn undo(self) {
        for (path, metadata) in self.0 {
            // As it was; what does not go back is no worse than what was asked for.
            lchown(&path, Some(metadata.uid()), Some(metadata.gid())).ok();
            fs::set_permissions(&path, metadata.permissions()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_nobody_is_named_for_any_more_is_its_makers() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        fs::write(&path, "").unwrap();
        let made = fs::metadata(&path).unwrap();
        let numbered = |owner: Option<&str>, group: Option<&str>| config::UnixListen {
            owner: owner.map(str::to_owned),
            group: group.map(str::to_owned),
            ..config::UnixListen::default()
        };
        let own = |one: config::UnixListen, before| Owner::find(&one).unwrap().or_maker(before, &path);
        let (uid, gid) = (made.uid().to_string(), made.gid().to_string());
        let (named, plain) = (numbered(Some("1"), Some("2")), numbered(None, None));
        assert_eq!(own(plain.clone(), &named), Owner::find(&numbered(Some(&uid), Some(&gid))).unwrap());
        assert_eq!(own(named.clone(), &plain), Owner::find(&named).unwrap());
        assert_eq!(own(plain.clone(), &plain), Owner::default(), "it may belong to whom somebody has given it");
    }

    #[test]
    fn names_of_users_become_numbers_and_unknown_ones_stay() {
        let named = |owner: &str| config::UnixListen { owner: Some(owner.to_owned()), ..config::UnixListen::default() };
        let (mut root, mut nobody) = (named("root"), named("no such user"));
        Owner::number(&mut root);
        Owner::number(&mut nobody);
        assert_eq!((root.owner.as_deref(), root.group), (Some("0"), None));
        assert_eq!(nobody.owner.as_deref(), Some("no such user"));
    }
}
