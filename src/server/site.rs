//! What the server serves: the apps of its configuration, each with its permits and its waiting line, and the table that says so to all.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::apps::{App, AppTable};
use crate::config::{Command, Config, ListenAddress, Settings};
use crate::control::MOST_CONNECTIONS;
use crate::dispatch::{AppId, Dispatch, Standing};
use crate::event_loop::MOST_OPEN;
use crate::metrics::{self, Health, Metrics, Status, series};
use crate::supervisor::{self, AppSetup, unit};

/// Descriptors kept for what is neither a client's connection nor a worker's: listeners, logs, rings, an upgrade.
const SPARE_DESCRIPTORS: usize = 64;
/// What part of the descriptors is kept for control connections at most, beyond twice the spare ones: where there are few, clients go first.
const CONTROL_SHARE: usize = 3;
/// Descriptors kept for each worker: the pipes of its output, and as many for its replacement, or for its notify socket and a probe.
const DESCRIPTORS_OF_A_WORKER: usize = 4;

/// The table that holds now, for those who do not get it by mail.
#[derive(Clone)]
pub(super) struct Current(Arc<Mutex<Arc<AppTable>>>);

impl Current {
    /// That table, at first.
    pub fn new(table: Arc<AppTable>) -> Current {
        Current(Arc::new(Mutex::new(table)))
    }

    /// Puts another in its place.
    pub fn put(&self, table: Arc<AppTable>) -> Arc<AppTable> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&table);
        table
    }

    /// The table.
    pub fn get(&self) -> Arc<AppTable> {
        // A table is put in its place whole, whoever panics.
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The apps of a configuration, all of them new. `server` is the server's part of it, as it holds here.
pub(super) fn table(config: &Config, server: &Arc<Settings>, metrics: &Metrics, now: Instant) -> AppTable {
    let app = |(index, app): (usize, &crate::config::App)| {
        // An id is an index into tables: a file of megabytes would be needed for one that does not fit.
        new_app(AppId(u16::try_from(index).unwrap_or(u16::MAX)), server, app, metrics, now)
    };
    let apps = config.apps.iter().enumerate().map(app).collect();
    AppTable::new(server.clone(), apps, &config.routes, metrics)
}

/// An app that was not there before.
pub(super) fn new_app(
    id: AppId,
    server: &Arc<Settings>,
    app: &crate::config::App,
    metrics: &Metrics,
    now: Instant,
) -> App {
    let dispatch = Arc::new(Dispatch::new(unit::policy(app), unit::table_size(app), now));
    App::new(id, server.clone(), app.clone(), dispatch, metrics)
}

/// Says so where metrics do not tell all apps or routes apart.
pub(super) fn counted_together(table: &AppTable) -> Option<String> {
    let apps = table.apps.iter().filter(|app| app.count == series::OTHER_APPS).count();
    let routes = table.routes.ways.iter().filter(|way| way.series == series::OTHER_SERIES).count();
    let warning = format!(
        "metrics count {apps} apps and {routes} routes as \"others\": they tell {} apps and {} routes of apps apart, those included that this \
         process has had before",
        series::APPS_APART,
        series::SERIES_APART
    );
    (apps + routes > 0).then_some(warning)
}

/// What the supervisor is to know of an app.
pub(super) fn setup(app: &App) -> AppSetup {
    AppSetup { id: app.id, settings: Arc::new(app.settings.clone()), dispatch: app.dispatch.clone() }
}

/// Whether the server starts no workers.
pub(super) fn is_alone(apps: &[App]) -> bool {
    apps.iter().all(|app| app.settings.program.command == Command::None)
}

/// How many clients so many descriptors are enough for, beside the workers of all apps and what else the server opens.
pub(super) fn most_connections(config: &Config, descriptors: usize) -> usize {
    let loops = config.server.loops.count;
    let own = |app: &crate::config::App| match app.program.command {
        Command::None => 0,
        Command::BuiltIn | Command::Argv(_) => app.scaling.map_or(app.workers, |scaling| scaling.max),
    };
    let to_workers = |app: &crate::config::App| {
        own(app).max(app.instead.upstreams.len()).saturating_mul(app.sharing.concurrency as usize).saturating_mul(loops)
    };
    let workers: usize = config.apps.iter().map(own).sum();
    let connections = config.apps.iter().map(to_workers).fold(0, usize::saturating_add);
    let files = if config.serves_files() { loops * MOST_OPEN } else { 0 };
    let room = descriptors.saturating_sub(spare(descriptors) + loops * 4 + workers * DESCRIPTORS_OF_A_WORKER + files);
    room.saturating_sub(connections.min(room / 2)).max(1)
}

/// Descriptors of so many that are neither for clients nor for workers.
fn spare(descriptors: usize) -> usize {
    SPARE_DESCRIPTORS + MOST_CONNECTIONS.min(descriptors.saturating_sub(2 * SPARE_DESCRIPTORS) / CONTROL_SHARE)
}

/// What `/status` tells: of all apps together, where there are several.
pub(super) fn status_writer(
    current: Current,
    started: Instant,
    supervised: Arc<supervisor::Status>,
) -> impl Fn() -> String + Send + Sync {
    let port = |address: &ListenAddress| match address {
        ListenAddress::Tcp(address) => Some(address.port()),
        ListenAddress::Unix(_) | ListenAddress::Systemd(_) => None,
    };
    move || {
        let table = current.get();
        let upstreams: usize = table.apps.iter().map(|app| app.settings.instead.upstreams.len()).sum();
        let wanted = upstreams + supervised.wanted.load(std::sync::atomic::Ordering::Relaxed);
        let (mut ready, mut failed) = (0, false);
        for app in &table.apps {
            let snapshot = app.dispatch.snapshot();
            ready += snapshot.workers.iter().filter(|worker| worker.standing == Standing::Ready).count();
            failed |= snapshot.failed && app.settings.required;
        }
        let names: Vec<&str> = table.apps.iter().map(|app| app.settings.name.as_str()).collect();
        metrics::status_json(&Status {
            health: Health::of(ready, wanted, failed),
            app: names.join(", "),
            workers: wanted,
            http_port: table.settings.listening.at.iter().find_map(port),
            uptime: started.elapsed(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{App, Route, Scaling};

    fn config(apps: &[App]) -> Config {
        let server = Settings::for_test();
        Config { server, listeners: Vec::new(), routes: vec![Route::all_to(0)], apps: apps.to_vec() }
    }

    #[test]
    fn descriptors_of_workers_are_reckoned_with() {
        let app = |workers, scaling| App { workers, scaling, ..App::default() };
        let one = |workers, scaling| config(&[app(workers, scaling)]);
        for (workers, descriptors) in [(2, 1024), (40, 300), (40, 1024)] {
            let clients = most_connections(&one(workers, None), descriptors);
            // The pipes of each worker, and of its replacement beside it.
            let left = descriptors - spare(descriptors) - 4 - workers * 4;
            assert!(clients <= left && clients >= left / 2, "{workers} workers, {descriptors}: {clients}");
        }
        let scaling = Some(Scaling { min: 2, max: 40 });
        assert_eq!(most_connections(&one(2, scaling), 300), most_connections(&one(40, None), 300));
        let several = config(&[app(10, None), app(2, scaling), app(0, None)]);
        assert_eq!(most_connections(&several, 1024), most_connections(&one(50, None), 1024));
        let mut alone = app(40, None);
        alone.program.command = Command::None;
        let alone = config(&[alone]);
        assert_eq!(most_connections(&alone, 300), 300 - spare(300) - 4, "no worker is started");
        let mut files = app(0, None);
        files.program.command = Command::None;
        files.instead.files = Some(crate::config::route::Files::default());
        let files = config(&[files]);
        assert_eq!(most_connections(&files, 1024), 1024 - spare(1024) - 4 - MOST_OPEN);
        assert_eq!(most_connections(&one(1000, None), 300), 1);
        assert!(spare(4096) >= MOST_CONNECTIONS + 64, "a full control socket leaves some for the rest");
    }
}
