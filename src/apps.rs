//! What a server serves, as its loops know it: the apps, each with its part of the configuration, its permits and its waiting line.
//!
//! A configuration changes as a whole: a new [`AppTable`] goes to every loop by mail and takes the old one's place between two turns.
//! Exchanges that run by then keep the [`App`] that they began with, to their end.

use std::sync::Arc;

use crate::config::{self, Settings};
use crate::dispatch::{AppId, Dispatch};
use crate::http::reply::Direct;
use crate::metrics::Metrics;

/// An app, and what its requests are served with.
#[derive(Clone)]
pub struct App {
    /// Its name, and the first half of its workers' names in the loops.
    pub id: AppId,
    /// The checked configuration of the server that it is an app of.
    pub server: Arc<Settings>,
    /// Its own part of the checked configuration.
    pub settings: config::App,
    /// The answer of `--respond`, which the loop gives in the app's place.
    pub direct: Option<Direct>,
    /// Its permits and its waiting line: the same for as long as the app lives, however often its settings change.
    pub dispatch: Arc<Dispatch>,
    /// By which number the loops count for it ([`Metrics::app`]).
    pub count: u16,
    /// By which number they count for its requests ([`Metrics::series`]).
    pub series: u16,
}

impl App {
    /// An app of that server.
    pub fn new(
        id: AppId,
        server: Arc<Settings>,
        settings: config::App,
        dispatch: Arc<Dispatch>,
        metrics: &Metrics,
    ) -> App {
        let count = metrics.app(&settings.name);
        let series = metrics.series(count, "");
        let text = |text: &String| Direct::new("text/plain; charset=utf-8", text.as_bytes());
        let direct = settings.respond.as_ref().map(text);
        App { id, server, settings, direct, dispatch, count, series }
    }
}

/// All that is served.
pub struct AppTable {
    /// The checked configuration of the server.
    pub settings: Arc<Settings>,
    /// Its apps, each with an id of its own. An app that the loops know already has the id and the dispatch that it had; a new one has an
    /// id that none had before.
    pub apps: Vec<App>,
}

impl AppTable {
    /// The one app of a server that has one.
    pub fn of_one(settings: Arc<Settings>, dispatch: Arc<Dispatch>, metrics: &Metrics) -> AppTable {
        let app = App::new(AppId::default(), settings.clone(), settings.app.clone(), dispatch, metrics);
        AppTable { settings, apps: vec![app] }
    }
}

impl std::fmt::Debug for AppTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids = self.apps.iter().map(|app| app.id);
        formatter.debug_list().entries(ids).finish()
    }
}
