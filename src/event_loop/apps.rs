//! The apps of a loop, and how a new configuration takes the place of an old one between two turns.
//!
//! A loop keeps of each app what its next requests are served with, what those that run began with, where that is something else by
//! now, and the connections to its workers. An app that was taken out of the configuration is forgotten once the last of its
//! exchanges is gone, tunnels and requests that their clients have left included; then its kept connections close.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::apps::{App, AppTable, To};
use crate::backends::{Backend, Sock};
use crate::buffers::slots::Key;
use crate::compress::Contexts;
use crate::config::{ErrorPage, Settings};
use crate::dispatch::{AppId, Target, WorkerId};
use crate::http::head::HeadLimits;
use crate::http::reply::{Format, Reply};
use crate::http::route::Edits;

use super::files::KnownFiles;
use super::{Loop, Routes};

/// The apps of a loop.
pub(crate) struct Apps {
    /// Which requests go where, now.
    pub routes: Routes,
    /// The configuration of the server as it is now.
    pub settings: Arc<Settings>,
    /// What is known of the files that are served.
    pub files: KnownFiles,
    /// What compresses answers.
    pub contexts: Contexts,
    /// Whose requests are counted by each series, as access lines say it, of series of earlier configurations, too.
    shown: Vec<Option<Arc<str>>>,
    /// By their ids.
    entries: Vec<Option<Entry>>,
    /// Exchanges that have ended while a grant was on its way to them, each with its app, to whose dispatch it goes back.
    late: Vec<(Key, Rc<App>)>,
    /// Something is kept for exchanges that began before the configuration changed.
    changing: bool,
}

/// An app of a loop.
#[derive(Default)]
struct Entry {
    /// What the next request is served with; `None` once the app was taken out of the configuration.
    current: Option<Rc<App>>,
    /// What requests that run may still be served with.
    past: Vec<Rc<App>>,
    /// The workers that were met, by their places in its dispatch.
    seats: Vec<Option<Seat>>,
}

/// A worker as this loop knows it: where it listens, and the connections kept open to it.
pub(crate) struct Seat {
    pub worker: WorkerId,
    pub target: Arc<Target>,
    pub idle: Vec<Sock>,
}

impl Apps {
    /// Those of that table.
    pub fn new(table: &AppTable) -> Apps {
        let settings = table.settings.clone();
        let routes = Routes::new(table, |_| None);
        let mut apps = Apps {
            routes,
            settings,
            files: KnownFiles::default(),
            contexts: Contexts::default(),
            shown: Vec::new(),
            entries: Vec::new(),
            late: Vec::new(),
            changing: false,
        };
        apps.configure(table);
        apps
    }

    /// What a request to that app is served with, if it is configured.
    pub fn get(&self, id: AppId) -> Option<&Rc<App>> {
        self.entries.get(id.0 as usize)?.as_ref()?.current.as_ref()
    }

    /// The page that is shown in the place of an answer of our own, if there is one, and its client would not rather have something else.
    /// Those of its route and its app, which are with what becomes of its answer, go before the server's.
    #[cold]
    pub fn page<'a>(&'a self, reply: &Reply<'_>, edits: Option<&'a Edits>) -> Option<&'a ErrorPage> {
        let fits = |page: &&ErrorPage| page.status == reply.status && (reply.format != Format::Json || page.is_json());
        edits.map_or(&[][..], Edits::pages).iter().chain(&self.settings.error_pages).find(fits)
    }

    /// The name of the app whose requests that series counts, for their access lines; empty where they are no app's.
    #[inline]
    pub fn shown_app(&self, series: u16) -> &str {
        self.shown.get(usize::from(series)).and_then(Option::as_deref).unwrap_or_default()
    }

    /// Some app that is configured.
    pub fn any(&self) -> Option<&Rc<App>> {
        self.entries.iter().flatten().find_map(|entry| entry.current.as_ref())
    }

    /// The place of an app's worker, if it was met.
    #[inline]
    pub fn seat(&self, id: AppId, worker: WorkerId) -> Option<&Seat> {
        let seats = &self.entries.get(id.0 as usize)?.as_ref()?.seats;
        seats.get(worker.index as usize)?.as_ref().filter(|seat| seat.worker == worker)
    }

    #[inline]
    fn place(&mut self, id: AppId, worker: WorkerId) -> Option<&mut Option<Seat>> {
        self.entries.get_mut(id.0 as usize)?.as_mut()?.seats.get_mut(worker.index as usize)
    }

    /// [`Apps::seat`], to be changed.
    #[inline]
    pub fn seat_mut(&mut self, id: AppId, worker: WorkerId) -> Option<&mut Seat> {
        self.place(id, worker)?.as_mut().filter(|seat| seat.worker == worker)
    }

    /// The connection to an app's worker that was used last and is idle.
    #[inline]
    pub fn idle_link(&mut self, id: AppId, worker: WorkerId) -> Option<Sock> {
        self.seat_mut(id, worker)?.idle.pop()
    }

    /// Takes a worker out of its place.
    pub fn take_seat(&mut self, id: AppId, worker: WorkerId) -> Option<Seat> {
        self.place(id, worker)?.take_if(|seat| seat.worker == worker)
    }

    /// Seats an app's worker in its place: who had it before.
    pub fn put_seat(&mut self, id: AppId, seat: Seat) -> Option<Seat> {
        let seats = &mut self.entries.get_mut(id.0 as usize)?.as_mut()?.seats;
        let index = seat.worker.index as usize;
        if seats.len() <= index {
            seats.resize_with(index + 1, || None);
        }
        seats[index].replace(seat)
    }

    /// Whether a configured app has given up that the server is not to be without.
    pub fn has_failed(&self) -> bool {
        let mut current = self.entries.iter().flatten().flat_map(|entry| &entry.current);
        current.any(|app| app.settings.required && app.dispatch.has_failed())
    }

    /// All apps that anything is kept of, as their next or their last requests are served.
    #[cfg(debug_assertions)]
    pub fn all(&self) -> impl Iterator<Item = &Rc<App>> {
        self.entries.iter().flatten().filter_map(|entry| entry.current.as_ref().or(entry.past.last()))
    }

    /// Takes over what a table has; what it has not is leaving.
    fn configure(&mut self, table: &AppTable) {
        self.settings = table.settings.clone();
        for entry in self.entries.iter_mut().flatten() {
            entry.past.extend(entry.current.take());
        }
        for app in &table.apps {
            let index = app.id.0 as usize;
            if self.entries.len() <= index {
                self.entries.resize_with(index + 1, || None);
            }
            let entry = self.entries[index].get_or_insert_default();
            debug_assert!(entry.past.last().is_none_or(|past| Arc::ptr_eq(&past.dispatch, &app.dispatch)));
            entry.current = Some(Rc::new(app.clone()));
        }
        for way in &table.routes.ways {
            if let To::Hub(_, served) = &way.to {
                served.configure();
            }
            let series = usize::from(way.series);
            if self.shown.len() <= series {
                self.shown.resize(series + 1, None);
            }
            // A series is of one app for ever.
            self.shown[series] = self.shown[series].take().or_else(|| way.app.clone());
        }
        let was_guarded = self.routes.is_guarded;
        self.routes = Routes::new(table, |id| self.get(id));
        // Where nobody is kept out any more, what is known of requests that wait is still to be forgotten as they are read.
        self.routes.is_guarded |= was_guarded;
        self.changing = true;
    }

    /// Notes that an exchange has ended while its grant, or the word that its app has failed, is on its way to it.
    pub fn expect_mail(&mut self, key: Key, app: Rc<App>) {
        self.late.push((key, app));
    }

    /// The app of an exchange for which mail came too late.
    pub fn app_of_late(&mut self, key: Key) -> Option<Rc<App>> {
        let at = self.late.iter().position(|(late, _)| *late == key)?;
        Some(self.late.swap_remove(at).1)
    }

    /// Forgets what no exchange is served with any more. Returns the workers of apps that are gone.
    fn sweep(&mut self) -> Vec<Seat> {
        let mut gone = Vec::new();
        self.changing = false;
        for slot in &mut self.entries {
            let Some(entry) = slot else { continue };
            entry.past.retain(|app| Rc::strong_count(app) > 1);
            self.changing |= !entry.past.is_empty();
            if entry.past.is_empty() && entry.current.is_none() {
                gone.extend(slot.take().into_iter().flat_map(|entry| entry.seats).flatten());
            }
        }
        gone
    }
}

impl<B: Backend> Loop<B> {
    /// A new configuration takes the place of the old one.
    pub fn configure(&mut self, table: &AppTable) {
        let before = self.apps.settings.timeouts.idle;
        let counted = self.apps.settings.bounds.connections_per_ip.is_some();
        self.apps.configure(table);
        if !counted && table.settings.bounds.connections_per_ip.is_some() {
            self.count_those_there();
        }
        self.configure_hubs(table);
        self.apps.files.forget();
        self.heads.limits = HeadLimits::new(table.settings.bounds.head, table.settings.bounds.fields);
        self.backend.set_stall(table.settings.timeouts.write);
        self.arm_idle(before);
        // More connections may be allowed than were.
        self.resume_accepting();
        table.taken.fetch_add(1, Ordering::Release);
    }

    /// Whether there may be something for [`Loop::forget_apps`].
    #[inline]
    pub fn is_changing(&self) -> bool {
        self.apps.changing
    }

    /// Forgets apps and settings of an old configuration that no exchange needs any more.
    #[cold]
    pub fn forget_apps(&mut self) {
        let gone = self.apps.sweep();
        self.forget(gone);
    }
}
