//! What a server serves, as its loops know it: the apps, each with its part of the configuration, its permits and its waiting line.
//!
//! A configuration changes as a whole: a new [`AppTable`] goes to every loop by mail and takes the old one's place between two turns.
//! Exchanges that run by then keep the [`App`] that they began with, to their end.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use crate::access::{self, Auth, Forward};
use crate::config::route::{Access, Files, Matching, Piece, Respond, Target, is_same_to_apps};
use crate::config::{self, Compressing, Front, ListenAddress, Peers, Settings};
use crate::dispatch::{AppId, Dispatch};
use crate::files::Site;
use crate::http::reply::Direct;
use crate::http::route::{Edits, Router};
use crate::hub::{self, Hub};
use crate::limits::{Flight, Limit, Policy, Registry};
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
        let text = |text: &String| Direct::new("text/plain; charset=utf-8", text.as_bytes());
        let direct = settings.instead.respond.as_ref().map(text);
        App { id, server, settings, direct, dispatch, count }
    }

    /// How many connections a loop keeps open to each worker for the next requests.
    pub fn idle_links(&self) -> usize {
        if self.settings.sharing.keepalive { self.settings.sharing.concurrency as usize } else { 0 }
    }
}

/// A hub, and what is said of it.
#[derive(Debug)]
pub struct Served {
    /// Its topics, which outlive configurations.
    pub hub: Arc<Hub>,
    /// What the configuration says.
    pub settings: config::Hub,
    /// The app that takes part.
    pub app: Option<TakesPart>,
    /// The time of hubs.
    times: hub::Registry,
}

/// An app that is told of what happens on a hub's sockets.
#[derive(Debug)]
pub struct TakesPart {
    /// Which.
    pub app: AppId,
    /// The path of the requests to it.
    pub path: String,
    /// How it is spoken to.
    pub dialect: config::Dialect,
}

impl Served {
    fn new(settings: &config::Hub, apps: &[App], metrics: &Metrics) -> Served {
        let (settings, times) = (settings.clone(), metrics.hubs().clone());
        let part = &settings.participant;
        let app = part.app.as_ref().and_then(|name| apps.iter().find(|app| app.settings.name == *name));
        let app = app.map(|app| TakesPart { app: app.id, path: part.path.clone(), dialect: part.dialect });
        Served { hub: times.get(kept_by(&settings)), settings, app, times }
    }

    /// From now on the hub is as is said here.
    pub fn configure(&self) {
        self.hub.configure(kept_by(&self.settings));
    }

    /// A time as hubs count it.
    pub fn since(&self, now: Instant) -> Duration {
        self.times.since(now)
    }
}

/// What a hub is to keep.
fn kept_by(said: &config::Hub) -> hub::Settings {
    let config::History { count, bytes, age } = said.history;
    hub::Settings {
        topics: said.topics.iter().filter_map(|pattern| hub::Pattern::new(pattern).ok()).collect(),
        history: hub::History { count, bytes, age },
        message: said.room.message,
        most_topics: said.room.topics,
        memory: said.room.memory,
        ..hub::Settings::new(&said.name)
    }
}

/// Where a route leads.
#[derive(Debug)]
pub enum To {
    /// To an app; one that the loops answer for may say something else on this route.
    App(AppId, Option<Direct>),
    /// To a fixed answer.
    Direct(Direct),
    /// To files, with the app whose requests these are.
    Files(AppId, Arc<Site>),
    /// To a hub, with an app in whose place what is published is collected.
    Hub(AppId, Arc<Served>),
    /// To another place: the pieces of its address, the status, and lines that are set.
    Redirect(Vec<Piece>, u16, String),
}

/// A route, ready to be taken.
#[derive(Debug)]
pub struct Way {
    /// Where it leads.
    pub to: To,
    /// The files that its app may name.
    pub sendfile: Option<Arc<Site>>,
    /// What it changes of a request.
    pub request: Option<Edits>,
    /// What it changes of an answer.
    pub response: Option<Edits>,
    /// How it compresses answers; `None`: not at all.
    pub compress: Option<Arc<Compressing>>,
    /// By which number the loops count for its requests ([`Metrics::series`]).
    pub series: u16,
    /// Whose these requests are, as access lines say it; `None`: no app's.
    pub app: Option<Arc<str>>,
    /// Who gets in; `None`: all.
    pub guard: Option<Guard>,
}

/// Who gets in by a route, and how often.
#[derive(Clone, Debug)]
pub struct Guard {
    /// Who is allowed, and who is not, by whatever route.
    doors: Arc<Doors>,
    /// The same by this one.
    route: Admitted,
    /// What clients have to show; `None`: nothing.
    pub auth: Option<Arc<Auth>>,
    /// What each limit allows, and who has used how much of it.
    pub limits: Vec<(Policy, Arc<Limit>)>,
    /// Whether any of them says what is left.
    pub tells_quota: bool,
    /// How many of its requests may be under way at once, and how many are.
    pub flight: Option<(u32, Arc<Flight>)>,
    /// The app that is asked about requests, and what.
    pub forward: Option<(AppId, Arc<Forward>)>,
    /// Who has shown wrong passwords.
    pub failures: Option<Arc<Limit>>,
    /// The time of limits.
    pub times: Registry,
}

/// Who is allowed, and who is not.
type Admitted = (Peers, Peers);

fn admits((allow, deny): &Admitted, client: Option<IpAddr>) -> bool {
    !deny.contains(client) && (allow.is_empty() || allow.contains(client))
}

/// Who is allowed, and who is not, whatever they ask for: by where they come in.
#[derive(Debug)]
struct Doors {
    all: Admitted,
    /// Of listeners that say so themselves, in the place of that.
    of: Vec<(ListenAddress, Admitted)>,
}

impl Doors {
    fn new(settings: &Settings) -> Doors {
        let admitted = |front: &Front| (front.allow.clone(), front.deny.clone());
        let says = |(_, front): &&(ListenAddress, Front)| front.lets_in() != settings.listening.front.lets_in();
        let of =
            settings.listening.front_of.iter().filter(says).map(|(address, front)| (address.clone(), admitted(front)));
        Doors { all: admitted(&settings.listening.front), of: of.collect() }
    }

    fn at(&self, listener: &ListenAddress) -> &Admitted {
        self.of.iter().find(|(address, _)| address == listener).map_or(&self.all, |(_, admitted)| admitted)
    }
}

impl Guard {
    /// That of a route, or of what no route takes; `None` where all get in.
    fn new(
        (settings, doors): (&Settings, &Arc<Doors>),
        access: &Access,
        label: &str,
        apps: &[App],
        metrics: &Metrics,
    ) -> Option<Guard> {
        let times = metrics.limits().clone();
        let holds = |policy: &&Policy| policy.everywhere || access.limits.contains(&policy.name);
        let limits = settings.limits.iter().filter(holds);
        let limits: Vec<_> = limits.map(|policy| (policy.clone(), times.get(&policy.name))).collect();
        let guard = Guard {
            doors: doors.clone(),
            route: (access.allow.clone(), access.deny.clone()),
            auth: access.auth.clone().map(Arc::new),
            tells_quota: limits.iter().any(|(policy, _)| policy.tells()),
            limits,
            flight: access.max_in_flight.map(|most| (most, times.flight(label))),
            forward: access.auth.as_ref().and_then(|auth| asked(auth, apps)),
            failures: access.auth.is_some().then(|| times.get(FAILURES)),
            times,
        };
        let says = |(allow, deny): &Admitted| !allow.is_empty() || !deny.is_empty();
        let is_open = guard.flight.is_none()
            && guard.limits.is_empty()
            && guard.auth.is_none()
            && !says(&doors.all)
            && !doors.of.iter().any(|(_, admitted)| says(admitted))
            && !says(&guard.route);
        (!is_open).then_some(guard)
    }

    /// Whether that client may come in by that listener, as far as its address goes; one on a Unix socket has none.
    pub fn admits(&self, listener: &ListenAddress, client: Option<IpAddr>) -> bool {
        admits(self.doors.at(listener), client)
            && (admits(&self.route, client) || self.auth.as_ref().is_some_and(|auth| auth.or_address))
    }

    /// What that client has to show, if anything. An address is enough where it is one of those that the route names: one that nobody has
    /// named shows nothing.
    pub fn demands(&self, client: Option<IpAddr>) -> Option<&Arc<Auth>> {
        let is_named = !self.route.0.is_empty() && admits(&self.route, client);
        self.auth.as_ref().filter(|auth| !(auth.or_address && is_named))
    }
}

/// The app that is asked about requests.
fn asked(auth: &Auth, apps: &[App]) -> Option<(AppId, Arc<Forward>)> {
    let forward = auth.forward.clone()?;
    Some((id_of(apps.iter().find(|app| app.settings.name == forward.app)), forward))
}

/// The limit on wrong credentials, which every address has. No limit of the configuration can be called so.
const FAILURES: &str = "wrong credentials";

impl Way {
    /// `told` are the names of fields that say who a client is or what it does, and come from nobody else.
    fn new(
        route: &config::Route,
        told: &[&str],
        server: (&Settings, &Arc<Doors>),
        apps: &[App],
        metrics: &Metrics,
    ) -> Way {
        let mut fields = Cow::Borrowed(&route.response_fields);
        if route.sendfile.is_some() {
            // They are for the server alone, also where they name nothing.
            fields.to_mut().remove.extend(["X-Sendfile", "X-Accel-Redirect"].map(str::to_owned));
        }
        let app = match route.to {
            Target::App(index) | Target::Files(_, index) => apps.get(index),
            _ => None,
        };
        let of_app = app.map_or(&[][..], |app| &app.settings.answering.error_pages);
        let pages = [&route.error_pages, of_app].concat();
        let response = Edits::showing(Edits::of_response(&fields), pages);
        let lines =
            response.as_ref().map_or_else(String::new, |edits| String::from_utf8_lossy(edits.lines()).into_owned());
        let is_private = route.access.is_for_some() || !server.0.listening.front.allow.is_empty();
        let to = match &route.to {
            Target::Files(files, index) => To::Files(id_of(apps.get(*index)), site(files, is_private)),
            Target::App(index) => {
                let app = apps.get(*index);
                let files = app.and_then(|app| app.settings.instead.files.as_ref());
                let respond = app.and_then(|app| app.settings.instead.respond.as_ref()).filter(|_| response.is_some());
                let direct = respond.map(|body| {
                    let content_type = "text/plain; charset=utf-8".to_owned();
                    fixed(&Respond { status: 200, body: body.clone(), content_type }, response.as_ref(), &lines)
                });
                files.map_or(To::App(id_of(app), direct), |files| To::Files(id_of(app), site(files, is_private)))
            }
            Target::Hub(number) => match server.0.hubs.get(*number) {
                Some(hub) => To::Hub(id_of(apps.first()), Arc::new(Served::new(hub, apps, metrics))),
                // An index is always that of a hub.
                None => To::Direct(Direct::with(404, "", b"")),
            },
            Target::Respond(respond) => To::Direct(fixed(respond, response.as_ref(), &lines)),
            Target::Redirect(redirect) => To::Redirect(redirect.to.clone(), redirect.status, lines),
        };
        let is_all = route.matching == Matching::default();
        let label = if is_all { String::new() } else { route.matching.to_string() };
        let mut fields = route.request_fields.clone();
        fields.remove.extend(told.iter().map(|name| (*name).to_owned()));
        let request = Edits::of_request(&fields, &route.rewrite);
        let guard = Guard::new(server, &route.access, &label, apps, metrics);
        let sendfile = route.sendfile.as_ref().map(|files| site(files, is_private));
        let of_app = match route.to {
            Target::App(index) => apps.get(index).map(|app| &app.settings.answering.compress),
            _ => None,
        };
        let compress = route.compress.as_ref().or(of_app);
        let compress = compress.filter(|compress| compress.codings.as_ref().is_some_and(|codings| !codings.is_empty()));
        let compress = compress.cloned().map(Arc::new);
        Way {
            to,
            sendfile,
            request,
            response,
            compress,
            series: metrics.series(app.map(|app| app.count), &label),
            app: app.map(|app| app.settings.name.as_str().into()),
            guard,
        }
    }
}

/// An index is always that of an app; the last name of all is that of none.
fn id_of(app: Option<&App>) -> AppId {
    app.map_or(AppId(u16::MAX), |app| app.id)
}

/// A place with files; `is_private`: not everybody may have them.
fn site(files: &Files, is_private: bool) -> Arc<Site> {
    Arc::new(if is_private { Site::private(files) } else { Site::new(files) })
}

/// A fixed answer with the fields that its route gives it.
fn fixed(respond: &Respond, edits: Option<&Edits>, lines: &str) -> Direct {
    let has_type = !respond.body.is_empty() && edits.is_none_or(|edits| !edits.removes(b"content-type"));
    let content_type = if has_type { format!("Content-Type: {}\r\n", respond.content_type) } else { String::new() };
    Direct::with(respond.status, &format!("{content_type}{lines}"), respond.body.as_bytes())
}

/// The routes, and how one is found.
#[derive(Debug)]
pub struct Routes {
    /// Finds one by its number.
    pub router: Router,
    /// All of them, by their numbers.
    pub ways: Vec<Way>,
    /// Who gets in by none of them; `None`: all.
    pub nobody: Option<Guard>,
    /// The fields that say who a client is or what it does, and come from nobody else.
    told: Vec<String>,
}

impl Routes {
    /// Those routes, to those apps, which stand in the order of the configuration.
    pub fn new(routes: &[config::Route], settings: &Settings, apps: &[App], metrics: &Metrics) -> Routes {
        // On a route that asks nobody, too: an app may not know by which of them a request has come.
        let asks = |route: &'_ config::Route| route.access.auth.is_some();
        let mut told = if routes.iter().any(asks) { access::TOLD.to_vec() } else { Vec::new() };
        let forwards = routes.iter().filter_map(|route| route.access.auth.as_ref()?.forward.as_ref());
        told.extend(forwards.flat_map(|forward| &forward.copy).map(String::as_str));
        if settings.hubs.iter().any(|hub| hub.participant.app.is_some()) {
            told.extend(hub::EVENT_FIELDS);
        }
        let doors = Arc::new(Doors::new(settings));
        let server = (settings, &doors);
        let ways = routes.iter().map(|route| Way::new(route, &told, server, apps, metrics)).collect();
        let nobody = Guard::new(server, &Access::default(), "", apps, metrics);
        let told = told.into_iter().map(str::to_owned).collect();
        Routes { router: Router::new(routes), ways, nobody, told }
    }

    /// Whether a field of that name comes from the server or an app that it asks, and never from a client.
    pub fn is_told(&self, name: &[u8]) -> bool {
        self.told.iter().any(|told| is_same_to_apps(name, told.as_bytes()))
    }
}

/// All that is served.
pub struct AppTable {
    /// The checked configuration of the server.
    pub settings: Arc<Settings>,
    /// Its apps, each with an id of its own. An app that the loops know already has the id and the dispatch that it had; a new one has an
    /// id that none had before.
    pub apps: Vec<App>,
    /// Which requests go where.
    pub routes: Arc<Routes>,
    /// How many loops have it in the place of another.
    pub taken: AtomicUsize,
}

impl AppTable {
    /// Those apps, in the order of the configuration, and its routes.
    pub fn new(settings: Arc<Settings>, apps: Vec<App>, routes: &[config::Route], metrics: &Metrics) -> AppTable {
        let routes = Arc::new(Routes::new(routes, &settings, &apps, metrics));
        AppTable { settings, apps, routes, taken: AtomicUsize::new(0) }
    }

    /// The one app of a server that has one.
    pub fn of_one(settings: Arc<Settings>, dispatch: Arc<Dispatch>, metrics: &Metrics) -> AppTable {
        let app = App::new(AppId::default(), settings.clone(), settings.app.clone(), dispatch, metrics);
        AppTable::new(settings, vec![app], &[config::Route::all_to(0)], metrics)
    }
}

impl std::fmt::Debug for AppTable {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids = self.apps.iter().map(|app| app.id);
        formatter.debug_list().entries(ids).finish()
    }
}
