//! `production_server check`: whether what is said on the command line, in the environment and in the file would work on this machine.
//!
//! What cannot be read never comes here; this looks at what it means. Nothing is started, made or removed: addresses are bound for a
//! moment, and never listened on. What the server does as another user (`server.user`) is looked at as that user.

mod holder;

use std::io::{ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{AccessFlags, Group, User, access};
use socket2::{Domain, Socket, Type};

use crate::config::route::{Files, Target};
use crate::config::{
    App, CloudWatch, Command, Eject, ErrorPage, Health, ListenAddress, Loaded, LogTarget, Problem, Settings, Severity,
    SpeakTls,
};
use crate::files::open::Look;
use crate::files::{self, Site};
use crate::key_sets;
use crate::metrics::series;
use crate::socket_file;
use crate::spool;
use crate::supervisor::run_directory::{self, check_room};
use crate::supervisor::{memory, program};
use crate::tls;

/// Certificates that end within that time are told, in seconds: a week.
const SOON: i64 = 7 * 86_400;

/// Exit code for an invalid configuration (EX_CONFIG of sysexits(3)).
const INVALID: u8 = 78;

/// Looks, and says on stderr what is wrong. The exit code: 0, or 78 when something would not work. `become_user` makes this process whom the server
/// will be, for good.
pub fn run(loaded: &Loaded, become_user: impl FnOnce(&Settings) -> Result<(), String>) -> u8 {
    let problems = look(loaded, become_user);
    let report = loaded.report(&problems);
    // There is no other place to say it.
    let _ = std::io::stderr().write_all(report.as_bytes());
    if problems.iter().any(|problem| problem.severity == Severity::Error) {
        return INVALID;
    }
    let what = loaded.file.as_ref().map_or_else(
        || "no configuration file; what is said elsewhere is valid".to_owned(),
        |file| format!("{}: valid", file.text.path.display()),
    );
    let _ = writeln!(std::io::stdout(), "{what}");
    0
}

/// Everything that would not work, or is odd.
fn look(loaded: &Loaded, become_user: impl FnOnce(&Settings) -> Result<(), String>) -> Vec<Problem> {
    let mut found = Found { problems: loaded.remarks.clone(), ..Found::of(loaded) };
    for warning in &loaded.config.server.source.warnings {
        found.problems.push(Problem {
            severity: Severity::Warning,
            title: warning.clone(),
            marks: Vec::new(),
            help: Vec::new(),
        });
    }
    found.listeners();
    found.tls(&|_| false);
    // As the server, which opens its listeners and reads certificates first.
    if found.accounts() {
        found.become_user(become_user);
    }
    found.places();
    found.apps();
    found.problems.extend(files(loaded));
    found.key_sets();
    found.memory();
    found.names();
    found.problems
}

/// What would not work, or is odd, of the apps alone.
pub fn apps(loaded: &Loaded) -> Vec<Problem> {
    let mut found = Found::of(loaded);
    found.apps();
    found.problems
}

/// What would not work, or is odd, of certificates and keys. That a certificate does not hold now is an error, but for those that are excused.
pub fn tls(loaded: &Loaded, is_excused: impl Fn(&tls::Shown) -> bool) -> Vec<Problem> {
    let mut found = Found::of(loaded);
    found.tls(&is_excused);
    found.problems
}

/// What would keep the next process from starting, of the values that wait for one: `changed` are their paths.
pub fn of_next_process(loaded: &Loaded, changed: &[String]) -> Vec<Problem> {
    let mut found = Found::of(loaded);
    let changes = |path: &str| changed.iter().any(|changed| changed == path);
    if changes("server.user") || changes("server.group") {
        found.accounts();
    }
    if changes("server.run_dir") {
        found.run_directory(&loaded.config.server.process.run_dir);
    }
    if changes("server.pid_file") {
        found.pid_file();
    }
    if changes("admin.listen") {
        found.admin();
    }
    found.problems.retain(|problem| problem.severity == Severity::Error);
    found.problems
}

/// Directories with files, and error pages, that are not there or that this user may not read.
pub fn files(loaded: &Loaded) -> Vec<Problem> {
    let mut found = Found::of(loaded);
    for (index, app) in loaded.config.apps.iter().enumerate() {
        found.app = Some(index);
        if let Some((title, label)) = app.instead.files.as_ref().and_then(|files| missing_root(&files.root)) {
            found.error("static", 0, &title, &label);
        }
        for (index, title, what) in unreadable(&app.answering.error_pages) {
            found.error("error-page", index, &title, what);
        }
    }
    found.app = None;
    if let Some((title, label)) = loaded.config.server.stores.spool_dir.as_ref().and_then(|spool| unusable_spool(spool))
    {
        found.error("spool-dir", 0, &title, &label);
    }
    for (index, title, what) in unreadable(&loaded.config.server.error_pages) {
        found.error("error-page", index, &title, what);
    }
    for (index, route) in loaded.config.routes.iter().enumerate() {
        for (_, title, what) in unreadable(&route.error_pages) {
            found.problems.push(loaded.problem_of_route(index, "error_pages", &title, what));
        }
        let of_static = match &route.to {
            Target::Files(files, _) => Some(("static", files)),
            _ => None,
        };
        let named = of_static.into_iter().chain(route.sendfile.as_ref().map(|files| ("sendfile", files)));
        for (name, files) in named {
            if let Some((title, label)) = missing_root(&files.root) {
                found.problems.push(loaded.problem_of_route(index, name, &title, &label));
            } else if let Some((title, label)) = missing_fallback(files) {
                // It may come later, as the root's other files may.
                let problem = loaded.problem_of_route(index, "static.fallback", &title, label);
                found.problems.push(Problem { severity: Severity::Warning, ..problem });
            }
        }
    }
    found.problems
}

/// The pages that cannot be read: which they are, in words, too, and why.
fn unreadable(pages: &[ErrorPage]) -> impl Iterator<Item = (usize, String, &str)> {
    pages.iter().enumerate().filter_map(|(index, page)| {
        let what = page.body.as_ref().err()?;
        Some((index, format!("the page {} cannot be read", page.path.display()), what.as_str()))
    })
}

/// What is wrong with a directory that files are to be served from.
fn missing_root(root: &Path) -> Option<(String, String)> {
    let shown = root.display();
    match files::open::root(root) {
        Ok(_) => None,
        Err(Errno::ENOENT) => Some((format!("there is no directory {shown}"), String::new())),
        Err(Errno::ENOTDIR) => Some((format!("{shown} is no directory"), String::new())),
        Err(error) => Some((format!("the directory {shown} cannot be read"), error.desc().to_owned())),
    }
}

/// What is wrong with the file that takes the place of others.
fn missing_fallback(files: &Files) -> Option<(String, &'static str)> {
    let fallback = files.fallback.as_ref()?;
    let shown = format!("{}{fallback}", files.root.display());
    match files::open::look(&Site::new(files), fallback.as_bytes()) {
        Look::File(_) => None,
        Look::Directory => Some((format!("the fallback {shown} is a directory"), "expected the name of a file")),
        Look::Missing | Look::Outside => {
            Some((format!("there is no fallback {shown}"), "until there is, what is missing gets 404"))
        }
        Look::Forbidden | Look::Unavailable => Some((format!("the fallback {shown} cannot be read"), "")),
    }
}

/// What is wrong with a directory that is to hold the files of the spool.
fn unusable_spool(directory: &Path) -> Option<(String, String)> {
    let error = spool::open(directory).err()?;
    Some((format!("no file can be made in {}", directory.display()), error.to_string()))
}

struct Found<'a> {
    loaded: &'a Loaded,
    /// The app that is looked at.
    app: Option<usize>,
    /// Who looks, for people.
    user: String,
    problems: Vec<Problem>,
}

impl Found<'_> {
    fn of(loaded: &Loaded) -> Found<'_> {
        Found { loaded, app: None, user: "this user".to_owned(), problems: Vec::new() }
    }

    /// From here on it is looked as the server will be, if this user may become that one.
    fn become_user(&mut self, become_user: impl FnOnce(&Settings) -> Result<(), String>) {
        let settings = &self.loaded.config.server;
        let user = settings.process.user.as_ref().map(|name| ("user", format!("the user {name}")));
        let group = settings.process.group.as_ref().map(|name| ("group", format!("the group {name}")));
        let Some((key, whom)) = user.or(group) else { return };
        match become_user(settings) {
            Ok(()) => self.user = whom,
            Err(what) => self.warning(key, 0, &what, "what follows is looked at as this user"),
        }
    }

    fn error(&mut self, key: &str, index: usize, title: &str, label: &str) {
        self.problems.push(self.loaded.problem(Severity::Error, self.app, (key, index), title, label));
    }

    fn warning(&mut self, key: &str, index: usize, title: &str, label: &str) {
        self.problems.push(self.loaded.problem(Severity::Warning, self.app, (key, index), title, label));
    }

    fn listeners(&mut self) {
        for (index, listener) in self.loaded.config.listeners.iter().enumerate() {
            self.listener(("listen", index), &listener.address);
        }
        self.admin();
    }

    /// What each of several admin listeners was said by is not known; all stand in one list.
    fn admin(&mut self) {
        for address in &self.loaded.config.server.telling.admin {
            self.listener(("admin", 0), address);
        }
    }

    fn listener(&mut self, place: (&str, usize), address: &ListenAddress) {
        match address {
            ListenAddress::Tcp(address) => self.tcp(place, *address),
            ListenAddress::Unix(path) => self.unix(place, path),
            // Who starts the server has them, and not whoever looks.
            ListenAddress::Systemd(_) => {}
        }
    }

    fn tcp(&mut self, (key, index): (&str, usize), address: SocketAddr) {
        let Err(error) = bind(address) else { return };
        match error.kind() {
            ErrorKind::AddrInUse => self.taken((key, index), &address.to_string(), holder::of_tcp(address)),
            ErrorKind::PermissionDenied => {
                let label = "ports below 1024 need privileges, or net.ipv4.ip_unprivileged_port_start";
                self.error(key, index, &format!("this user may not listen on {address}"), label);
            }
            ErrorKind::AddrNotAvailable => {
                let label = "no interface of this machine has that address";
                self.error(key, index, &format!("{address} is not an address of this machine"), label);
            }
            _ => self.error(key, index, &format!("cannot listen on {address}"), &error.to_string()),
        }
    }

    fn unix(&mut self, (key, index): (&str, usize), path: &Path) {
        let shown = path.display();
        match std::fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                let label = "something that is no socket lies there: move it away";
                self.error(key, index, &format!("cannot listen on unix:{shown}"), label);
            }
            Ok(_) if socket_file::answers(path) => {
                self.taken((key, index), &format!("unix:{shown}"), holder::of_unix(path))
            }
            _ => self.writable_parent(key, index, path),
        }
    }

    /// An address on which somebody listens. A server of this kind is probably the one that the configuration is for.
    fn taken(&mut self, (key, index): (&str, usize), address: &str, holder: Option<holder::Holder>) {
        match holder {
            Some(holder) if holder.is_ours() => {
                let label = format!("by process {}: fine if that is the one to be replaced", holder.process);
                self.warning(key, index, &format!("production_server listens on {address} already"), &label);
            }
            Some(holder) => {
                let label =
                    format!("by {} (process {}): stop it, or choose another address", holder.name, holder.process);
                self.error(key, index, &format!("{address} is in use"), &label);
            }
            None => {
                let label = "another program listens there: stop it, or choose another address";
                self.error(key, index, &format!("{address} is in use"), label);
            }
        }
    }

    fn tls(&mut self, is_excused: &dyn Fn(&tls::Shown) -> bool) {
        let acme = &self.loaded.config.server.acme;
        for (has, has_other, name, other) in [
            (!acme.email.is_empty(), !acme.domains.is_empty(), "acme", "a domain (--domain, `acme.domains`)"),
            (!acme.domains.is_empty(), !acme.email.is_empty(), "domain", "your address (--acme, `acme.email`)"),
            (acme.eab_kid.is_some(), acme.eab_key_file.is_some(), "acme-eab-kid", "its key (`acme.eab.key_file`)"),
        ] {
            if has && !has_other {
                self.error(name, 0, "it has no effect alone", &format!("expected {other}, too"));
            }
        }
        let listeners = &self.loaded.config.listeners;
        for (index, listener) in listeners.iter().enumerate() {
            let tls = &listener.front.tls;
            let is_known = listeners[..index].iter().any(|earlier| earlier.front.tls == *tls);
            if is_known || !tls.is_spoken(matches!(listener.address, ListenAddress::Unix(_))) {
                continue;
            }
            let mut say = |severity, value: &str, title: &str, label: &str| {
                self.problems.push(self.loaded.problem_of_tls(severity, index, value, title, label));
            };
            if tls.certs.len() != tls.keys.len() {
                let title =
                    format!("certificates and keys do not go together: {} and {}", tls.certs.len(), tls.keys.len());
                say(Severity::Error, "", &title, "expected a key for each certificate, in the same order");
                continue;
            }
            if tls.pairs().next().is_none() && tls.managed.is_none() && tls.speak != SpeakTls::SelfSigned {
                let label =
                    "expected `certificates = [{ cert = \"FILE\", key = \"FILE\" }]`, or --tls-cert and --tls-key";
                say(Severity::Error, "", "TLS is to be spoken, and there is no certificate", label);
                continue;
            }
            match tls::prepare(tls) {
                Ok(prepared) => {
                    for shown in prepared.shown() {
                        let path = shown.path.to_string_lossy();
                        if let Some(failure) = shown.outdated() {
                            let severity = if is_excused(shown) { Severity::Warning } else { Severity::Error };
                            say(severity, &path, &format!("{path}: {}", failure.what), &failure.hint);
                        } else if shown.ends_within(SOON) {
                            let title = format!("the certificate ends on {}", tls::day(shown.not_after));
                            say(Severity::Warning, &path, &title, "renew it");
                        }
                    }
                }
                Err(failure) => {
                    let path = failure.path.to_string_lossy();
                    say(Severity::Error, &path, &format!("{path}: {}", failure.what), &failure.hint);
                }
            }
        }
    }

    /// Sets of keys that lie elsewhere: what would be found there now.
    fn key_sets(&mut self) {
        for (index, route) in self.loaded.config.routes.iter().enumerate() {
            let tokens = route.access.auth.as_ref().and_then(|auth| auth.tokens.as_ref());
            let Some(live) = tokens.and_then(|tokens| tokens.live()) else { continue };
            let (title, severity, what) = match key_sets::fetch(&live.url) {
                Err(what) => ("the keys of tokens cannot be fetched now", Severity::Warning, what),
                Ok(text) => match live.take(&text) {
                    Err(what) => ("the keys of tokens cannot be taken", Severity::Error, what),
                    Ok(_) => continue,
                },
            };
            let problem = self.loaded.problem_of_route(index, "auth.jwt.keys", title, &format!("{}: {what}", live.url));
            self.problems.push(Problem { severity, ..problem });
        }
    }

    /// Looks whether users and groups are there; answers whether all are.
    fn accounts(&mut self) -> bool {
        let (known, settings) = (self.problems.len(), &self.loaded.config.server);
        let is_name = |name: &&String| name.parse::<u32>().is_err();
        if let Some(name) = settings.process.user.as_ref().filter(is_name)
            && !matches!(User::from_name(name), Ok(Some(_)))
        {
            self.error("user", 0, &format!("there is no user {name:?} on this machine"), "");
        }
        if let Some(name) = settings.process.group.as_ref().filter(is_name)
            && !matches!(Group::from_name(name), Ok(Some(_)))
        {
            self.error("group", 0, &format!("there is no group {name:?} on this machine"), "");
        }
        for listener in &self.loaded.config.listeners {
            let ListenAddress::Unix(_) = listener.address else { continue };
            let access = &listener.access;
            let numeric = |name: &&String| name.parse::<u32>().is_err();
            if let Some(name) = access.owner.as_ref().filter(numeric)
                && !matches!(User::from_name(name), Ok(Some(_)))
            {
                self.error("listen-owner", 0, &format!("there is no user {name:?} on this machine"), "");
            }
            if let Some(name) = access.group.as_ref().filter(numeric)
                && !matches!(Group::from_name(name), Ok(Some(_)))
            {
                self.error("listen-group", 0, &format!("there is no group {name:?} on this machine"), "");
            }
        }
        self.problems.len() == known
    }

    /// Files and directories that are named.
    fn places(&mut self) {
        let settings = &self.loaded.config.server;
        self.run_directory(&settings.process.run_dir);
        self.pid_file();
        if let LogTarget::File(path) = &settings.logs.access.target {
            self.appended("access-log", "the access log", path);
        }
        if let LogTarget::File(path) = &settings.logs.events.target {
            self.appended("event-log", "the event log", path);
        }
        if let Some(CloudWatch::File(path)) = &settings.telling.metrics.cloudwatch {
            self.appended("cloudwatch", "the file of metrics", path);
        }
    }

    fn pid_file(&mut self) {
        let Some(path) = &self.loaded.config.server.process.pid_file else { return };
        match path.is_dir() {
            true => self.error("pid-file", 0, "the pid file is a directory", "expected a file"),
            false => self.writable_parent("pid-file", 0, path),
        }
    }

    /// A file that is written to the end of.
    fn appended(&mut self, key: &str, what: &str, path: &Path) {
        if path.is_dir() {
            self.error(key, 0, &format!("{what} is a directory"), "expected a file");
        } else if path.exists() {
            if access(path, AccessFlags::W_OK).is_err() {
                self.error(key, 0, &format!("{} may not write {what}", self.user), "");
            }
        } else {
            self.writable_parent(key, 0, path);
        }
    }

    fn apps(&mut self) {
        for (index, app) in self.loaded.config.apps.iter().enumerate() {
            self.app = Some(index);
            self.app(app);
        }
        self.app = None;
    }

    /// What one app needs.
    fn app(&mut self, app: &App) {
        if let Some(module) = &app.program.module {
            self.readable("module", 0, module);
        }
        for (index, path) in app.reload.watch.iter().enumerate() {
            self.readable("watch", index, path);
        }
        self.command(app);
        self.health(app);
    }

    /// What is said of health and has no effect.
    fn health(&mut self, app: &App) {
        let (own, plain) = (&app.health, Health::default());
        let said = [
            ("health-interval", own.interval != plain.interval),
            ("health-timeout", own.timeout != plain.timeout),
            ("health-unhealthy", own.unhealthy != plain.unhealthy),
            ("health-healthy", own.healthy != plain.healthy),
            ("health-status", own.status != plain.status),
        ];
        let nothing = "it has no effect";
        match &own.path {
            None => {
                for (key, _) in said.into_iter().filter(|(_, is_said)| *is_said) {
                    self.warning(key, 0, nothing, "nobody is asked without a path: --health-check");
                }
            }
            Some(_) if app.is_answered_by_loops() => {
                self.warning("health-check", 0, nothing, "the loop itself answers")
            }
            Some(_) => {}
        }
        let (own, plain) = (&app.eject, Eject::default());
        let said = [
            ("eject-after", own.failures != plain.failures),
            ("eject-time", own.time != plain.time),
            ("eject-max", own.max != plain.max),
        ];
        for (key, _) in said.into_iter().filter(|(_, is_said)| *is_said && app.instead.upstreams.len() < 2) {
            self.warning(key, 0, nothing, "only upstreams are left out, and only where there are several");
        }
    }

    fn run_directory(&mut self, path: &Path) {
        // What is missing of it is made.
        let there = path.ancestors().find(|ancestor| ancestor.as_os_str().is_empty() || ancestor.exists());
        let there = there.filter(|ancestor| !ancestor.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let shown = there.display();
        if !there.is_dir() {
            self.error("run-dir", 0, "the run directory cannot be made", &format!("{shown} is no directory"));
        } else if access(there, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
            let what = if there == path { "used" } else { "made" };
            let label = format!("{} may not write in {shown}", self.user);
            self.error("run-dir", 0, &format!("the run directory cannot be {what}"), &label);
        } else if let Some(error) = run_directory::look(there).err().filter(|_| there == path) {
            self.error("run-dir", 0, "the run directory cannot be used", &error.to_string());
        } else if let Some(error) = self.lack_of_room(path) {
            self.error("run-dir", 0, "the run directory's path is too long for sockets in it", &error);
        }
    }

    /// Why a worker's socket could not lie in that run directory.
    fn lack_of_room(&self, run_directory: &Path) -> Option<String> {
        let mut own = self.loaded.config.apps.iter().filter(|app| app.program.command != Command::None);
        own.find_map(|app| check_room(run_directory, &app.name).err()).map(|error| error.to_string())
    }

    /// The directory in which a file is to be made.
    fn writable_parent(&mut self, key: &str, index: usize, path: &Path) {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let (title, shown) = (format!("{} cannot be made", path.display()), parent.display());
        if let Err(error) = parent.metadata() {
            let label = match error.kind() {
                ErrorKind::NotFound => format!("there is no directory {shown}"),
                _ => format!("{} may not look at {shown}: {error}", self.user),
            };
            self.error(key, index, &title, &label);
        } else if !parent.is_dir() {
            self.error(key, index, &title, &format!("{shown} is no directory"));
        } else if access(parent, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
            self.error(key, index, &title, &format!("{} may not write in {shown}", self.user));
        }
    }

    fn readable(&mut self, key: &str, index: usize, path: &Path) {
        let shown = path.display();
        match path.metadata() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.error(key, index, &format!("there is no {shown}"), "");
            }
            Ok(_) if access(path, AccessFlags::R_OK).is_ok() => {}
            _ => {
                let label = format!("{} may not read it", self.user);
                self.error(key, index, &format!("{shown} cannot be read"), &label);
            }
        }
    }

    fn command(&mut self, app: &App) {
        let Command::Argv(words) = &app.program.command else { return };
        let directory = app.program.directory.as_deref();
        if let Some(missing) = directory.filter(|directory| !directory.is_dir()) {
            let title = format!("there is no directory {}", missing.display());
            return self.error("directory", 0, &title, "workers start there");
        }
        if let Some(closed) = directory.filter(|directory| access(*directory, AccessFlags::X_OK).is_err()) {
            let title = format!("{} may not be in the directory {}", self.user, closed.display());
            return self.error("directory", 0, &title, "workers start there");
        }
        if let Err(what) = program::check(words, directory) {
            self.error("command", 0, "the command cannot be run", &what);
        }
        // The script of an interpreter; other words may mean anything.
        if let Some(script) = words.get(1).map(PathBuf::from).filter(|word| is_script(word))
            && !directory.unwrap_or(Path::new("")).join(&script).exists()
        {
            let title = format!("there is no {} here", script.display());
            self.warning("command", 0, &title, "the command probably needs it");
        }
    }

    /// Whether the workers at their largest, and what may be held beside them, have room. What they need when nothing is said nobody knows.
    fn memory(&mut self) {
        let config = &self.loaded.config;
        let Some(headroom) = memory::headroom() else { return };
        let buffers = config.server.stores.buffer_bytes as u64;
        let most = |app: &App| app.scaling.map_or(app.workers, |scaling| scaling.max) as u64;
        let mebibytes = |bytes: u64| format!("{} MiB", bytes >> 20);
        if buffers > headroom {
            let title = format!("buffer_bytes may take {}, and {} are left", mebibytes(buffers), mebibytes(headroom));
            return self.warning("buffer-bytes", 0, &title, "memory may run short");
        }
        let limited = config
            .apps
            .iter()
            .enumerate()
            .filter_map(|(index, app)| Some((index, most(app), app.life.recycle.memory?)));
        let (mut all, mut workers) = (0u64, 0);
        for (index, most, each) in limited {
            all = all.saturating_add(each.saturating_mul(most));
            workers += most;
            if all.saturating_add(buffers) > headroom {
                let (all, left) = (mebibytes(all), mebibytes(headroom));
                let title = format!("{workers} workers may take {all} together, and {left} are left");
                self.app = Some(index);
                return self.warning("max-memory", 0, &title, "memory may run short before a worker is replaced");
            }
        }
    }
}

impl Found<'_> {
    /// Whether metrics tell all apps and routes apart.
    fn names(&mut self) {
        let config = &self.loaded.config;
        let (apps, routes) = (config.apps.len(), config.routes.len());
        let mut say = |title: String| {
            let (marks, help) = (Vec::new(), Vec::new());
            self.problems.push(Problem { severity: Severity::Warning, title, marks, help });
        };
        if apps > series::APPS_APART {
            say(format!("metrics tell {} of {apps} apps apart, and count the rest as \"others\"", series::APPS_APART));
        }
        if routes > series::SERIES_APART {
            say(format!(
                "metrics tell {} of {routes} routes apart, and count the rest as \"others\"",
                series::SERIES_APART
            ));
        }
    }
}

fn is_script(word: &Path) -> bool {
    let endings = ["js", "mjs", "cjs", "ts", "py", "rb", "php", "pl"];
    word.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| endings.contains(&ending))
}

/// Takes the address for a moment, as the server would, without listening: a bound socket disturbs nobody.
fn bind(address: SocketAddr) -> std::io::Result<()> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())
}
