//! The routes as a loop takes them: where each leads, and what the loop answers itself, is looked up once, when the configuration comes,
//! and not for each request. A server without routes has one, and finds it without a look at the request. What the loop says itself is
//! written here, too.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::apps::{self, App, AppTable, Guard, Served, To, Way};
use crate::backends::{Backend, How, Sock};
use crate::buffers::block::{Block, SMALL, Scratch, Writer};
use crate::buffers::wheel::nanos;
use crate::config::route::Piece;
use crate::config::{Compressing, HTTPS, Internal, Settings};
use crate::connection::State;
use crate::dispatch::AppId;
use crate::files::Site;
use crate::http::head::Request;
use crate::http::reply::{self, Direct, Reply};
use crate::http::route::{Edits, host_of, location};
use crate::http::{Method, body_len};
use crate::mailbox::desk::Document;
use crate::metrics::series::OWN;
use crate::tls;

use super::Loop;
use super::account::Answered;
use super::inside::may_be_inside;

/// What is said where no route takes a request. The connection goes on, for its next request may find one.
const NOBODY: &[u8] = b"no route takes this request\n";

/// What is said where a request is to be sent on to the host that it names, and it names none.
const HOSTLESS: &[u8] = b"this request is sent to another place, and does not say for which host it is\n";

/// An answer of the loop itself, ready to be sent.
pub(crate) struct Written {
    pub head_and_body: Block,
    pub status: u16,
    /// Of the body.
    pub bytes: u64,
}

impl Written {
    /// That answer to a request.
    #[inline(always)]
    pub fn new(
        direct: &Direct,
        scratch: &mut Scratch,
        date: &[u8; 29],
        request: &Request,
        keep_alive: bool,
    ) -> Written {
        let head_only = request.method == Method::Head;
        let fill = |out: &mut Writer<'_>| direct.write(out, date, request.version, keep_alive, head_only);
        let head_and_body = scratch.write(direct.room(), fill);
        Written {
            head_and_body,
            status: direct.status(),
            bytes: if head_only { 0 } else { direct.body().len() as u64 },
        }
    }
}

/// Who answers a request. Routes are named by their numbers.
#[derive(Clone, Copy)]
pub(crate) enum Route {
    /// An app gets it.
    App(usize),
    /// The loop says what the route says.
    Direct(usize),
    /// The loop says it in pieces.
    Long(usize),
    /// It says where the route leads.
    Redirect(usize),
    /// It looks for a file.
    Files(usize),
    /// It is one for a hub.
    Hub(usize),
    Nobody,
    Text(&'static [u8]),
    /// That port, where TLS is spoken.
    Https(u16),
    Status,
    /// The answer to a challenge of a certificate authority.
    Challenge,
    Desk(Document),
    Refuse(u16, &'static str),
}

impl Route {
    /// The number of a route that is configured.
    fn number(self) -> Option<usize> {
        match self {
            Route::App(number)
            | Route::Direct(number)
            | Route::Long(number)
            | Route::Redirect(number)
            | Route::Files(number)
            | Route::Hub(number) => Some(number),
            Route::Nobody
            | Route::Text(_)
            | Route::Https(_)
            | Route::Status
            | Route::Challenge
            | Route::Desk(_)
            | Route::Refuse(..) => None,
        }
    }
}

/// What becomes of a request on a route.
pub(crate) enum Leads {
    /// The app gets it.
    App(Rc<App>),
    /// The loop answers it.
    Direct(Direct),
    /// The loop answers it in the place of that app, with more than one piece holds.
    Long(Rc<App>, Direct),
    /// It is sent to another place.
    Redirect(Redirect),
    /// The loop answers it with a file, in the place of that app.
    Files(Rc<App>, Arc<Site>),
    /// The loop answers it for a hub. What is published is collected in the place of that app.
    Hub(Rc<App>, Arc<Served>),
    /// The app is none of those that are served.
    Nowhere,
}

/// Another place: the pieces of its address, the status, and lines that are set.
pub(crate) struct Redirect(Vec<Piece>, u16, String);

impl Redirect {
    /// The answer to a request, whose head `input` begins with.
    #[cold]
    pub fn answer(&self, input: &[u8], request: &Request) -> Direct {
        let Redirect(pieces, status, lines) = self;
        let Some(location) = location(pieces, request.authority.of(input), request.target.path.of(input)) else {
            return Direct::with(400, "Content-Type: text/plain; charset=utf-8\r\n", HOSTLESS);
        };
        let location = String::from_utf8_lossy(&location);
        Direct::with(*status, &format!("Location: {location}\r\n{lines}"), b"")
    }
}

/// A route.
pub(crate) struct LoopRoute {
    pub leads: Leads,
    /// The files that its app may name.
    pub sendfile: Option<Arc<Site>>,
    /// What it changes of a request.
    pub request: Option<Rc<Edits>>,
    /// What it changes of an answer.
    pub response: Option<Rc<Edits>>,
    /// How it compresses answers; `None`: not at all.
    pub compress: Option<Arc<Compressing>>,
    /// By which number its requests are counted ([`Metrics::series`](crate::metrics::Metrics::series)).
    pub series: u16,
    /// Who gets in; `None`: all.
    guard: Option<Rc<Guard>>,
}

impl LoopRoute {
    fn new<'a>(way: &Way, app: impl FnOnce(AppId) -> Option<&'a Rc<App>>) -> LoopRoute {
        let leads = match &way.to {
            To::App(id, own) => match app(*id) {
                Some(app) => match own.as_ref().or(app.direct.as_ref()) {
                    Some(direct) if direct.room() > SMALL => Leads::Long(app.clone(), direct.clone()),
                    Some(direct) => Leads::Direct(direct.clone()),
                    None => Leads::App(app.clone()),
                },
                None => Leads::Nowhere,
            },
            To::Direct(direct) => Leads::Direct(direct.clone()),
            To::Files(id, site) => app(*id).map_or(Leads::Nowhere, |app| Leads::Files(app.clone(), site.clone())),
            To::Hub(id, served) => app(*id).map_or(Leads::Nowhere, |app| Leads::Hub(app.clone(), served.clone())),
            To::Redirect(pieces, status, lines) => Leads::Redirect(Redirect(pieces.clone(), *status, lines.clone())),
        };
        LoopRoute {
            leads,
            sendfile: way.sendfile.clone(),
            request: way.request.clone().map(Rc::new),
            response: way.response.clone().map(Rc::new),
            compress: way.compress.clone(),
            series: way.series,
            guard: way.guard.clone().map(Rc::new),
        }
    }
}

/// All routes of a loop, and where it answers documents of the server's own.
pub(crate) struct Routes {
    /// The first takes every request.
    first_takes_all: bool,
    /// How one is found.
    shared: Arc<apps::Routes>,
    all: Vec<LoopRoute>,
    /// Who gets in where no route takes a request.
    nobody: Option<Rc<Guard>>,
    /// Whether anybody is kept out anywhere, or was before.
    pub is_guarded: bool,
    /// The length of the prefix of the server's own documents; `usize::MAX`: there are none.
    internal: usize,
}

impl Routes {
    /// Those of that table, to those apps.
    pub fn new<'a>(table: &AppTable, app: impl Fn(AppId) -> Option<&'a Rc<App>>) -> Routes {
        let shared = table.routes.clone();
        let all: Vec<LoopRoute> = shared.ways.iter().map(|way| LoopRoute::new(way, &app)).collect();
        let nobody = shared.nobody.clone().map(Rc::new);
        let is_guarded = nobody.is_some() || all.iter().any(|route| route.guard.is_some());
        let internal = internal(&table.settings);
        Routes { first_takes_all: shared.router.takes_all(), shared, all, nobody, is_guarded, internal }
    }

    /// The number of the route that a request takes, whose head `input` begins with.
    #[inline]
    pub fn find(&self, input: &[u8], request: &Request) -> Option<usize> {
        if self.first_takes_all {
            return Some(0);
        }
        self.shared.router.find(
            request.authority.of(input),
            request.target.path.of(input),
            request.method_span.of(input),
        )
    }

    /// The route of that number.
    #[inline]
    pub fn get(&self, number: usize) -> &LoopRoute {
        &self.all[number]
    }

    /// Whether no client may say what a field of that name says, on any route.
    pub fn is_told(&self, name: &[u8]) -> bool {
        self.shared.is_told(name)
    }

    /// Whether who has finished sending is answered by the app of that route all the same.
    pub fn serves_half_closed(&self, number: usize) -> bool {
        matches!(&self.get(number).leads, Leads::App(app) if app.settings.answering.serve_half_closed)
    }

    /// Who gets in by that answer, and by which number it is counted.
    pub fn guard(&self, route: Route) -> Option<(Rc<Guard>, u16)> {
        if matches!(route, Route::Nobody) {
            return Some((self.nobody.clone()?, OWN));
        }
        // What the server says of itself has its own ways of telling who may know.
        let route = self.get(route.number()?);
        Some((route.guard.clone()?, route.series))
    }

    /// By which number a request is counted that the loop answers itself.
    pub fn series(&self, route: Route) -> u16 {
        route.number().map_or(OWN, |number| self.get(number).series)
    }

    /// What becomes of an answer, as far as its route says so.
    pub fn response(&self, route: Route) -> Option<Rc<Edits>> {
        self.get(route.number()?).response.clone()
    }

    /// Whether it is worth a look if a path with its query names a document of the server's own: said of nearly every request, and so in few
    /// steps.
    #[inline]
    pub fn may_be_inside(&self, path: &[u8]) -> bool {
        path.get(self.internal..).is_some_and(may_be_inside)
    }
}

fn internal(settings: &Settings) -> usize {
    match &settings.telling.internal {
        Internal::Off => usize::MAX,
        Internal::Under(prefix) => prefix.len(),
    }
}

/// Where the same is with TLS.
#[cold]
fn https(input: &[u8], request: &Request, port: u16) -> Direct {
    let host = String::from_utf8_lossy(host_of(request.authority.of(input)));
    let port = if port == HTTPS { String::new() } else { format!(":{port}") };
    let path = String::from_utf8_lossy(request.target.path.of(input));
    let path = match path.as_ref() {
        "*" => "/".into(),
        path if path.starts_with('/') => path.into(),
        query => Cow::Owned(format!("/{query}")),
    };
    Direct::with(308, &format!("Location: https://{host}{port}{path}\r\n"), b"")
}

impl<B: Backend> Loop<B> {
    /// Who answers a request, whose head `input` begins with; `admin`: it came by an admin listener.
    #[inline(always)]
    pub fn route(&mut self, sock: Sock, admin: bool, input: &[u8], request: &Request) -> Route {
        if tls::is_challenged() && tls::http_answer(request.target.path.of(input)).is_some() {
            return Route::Challenge;
        }
        let own =
            admin || request.method == Method::Connect || self.apps.routes.may_be_inside(request.target.path.of(input));
        if own && let Some(route) = self.own_route(sock, admin, input, request) {
            return route;
        }
        let Some(number) = self.apps.routes.find(input, request) else { return Route::Nobody };
        match self.apps.routes.get(number).leads {
            Leads::App(_) => match (request.max_forwards, request.method) {
                (Some(0), Method::Options) => Route::Text(b""),
                (Some(0), Method::Trace) => Route::Refuse(405, "TRACE ends here and is not answered"),
                _ => Route::App(number),
            },
            Leads::Long(..) if request.method != Method::Head => Route::Long(number),
            Leads::Direct(_) | Leads::Long(..) => Route::Direct(number),
            Leads::Redirect(_) => Route::Redirect(number),
            Leads::Files(..) => Route::Files(number),
            Leads::Hub(..) => Route::Hub(number),
            Leads::Nowhere => Route::Nobody,
        }
    }

    /// What becomes of a request that no route is asked about: for a document of the server's own, and what no app gets.
    #[cold]
    fn own_route(&mut self, sock: Sock, admin: bool, input: &[u8], request: &Request) -> Option<Route> {
        let path = request.target.path.of(input);
        if admin && let Some(port) = self.redirects(sock) {
            return Some(match host_of(request.authority.of(input)) {
                b"" => Route::Refuse(
                    400,
                    "this port sends requests to https://, and this one does not say for which host it is",
                ),
                _ => Route::Https(port),
            });
        }
        let name = if admin { Some(path) } else { self.apps.settings.telling.internal.name(path) };
        let refuse = |status, reason| Some(Route::Refuse(status, reason));
        match name.and_then(|name| self.inside(sock, input, request, name)) {
            None if admin => refuse(404, "this address tells about the server and has no app"),
            None if request.method == Method::Connect => {
                refuse(405, "CONNECT is for forward proxies; this server is an origin")
            }
            inside => inside,
        }
    }

    /// The port to which a client's listener sends every request.
    fn redirects(&mut self, sock: Sock) -> Option<u16> {
        let listener = self.table.client(sock)?.listener;
        self.accepting.listeners[listener as usize].front.tls.redirect_https
    }

    /// Writes what the loop itself says to a request, whose head `input` begins with.
    #[inline(always)]
    pub fn write_own(&mut self, route: Route, input: &[u8], request: &Request) -> Option<Written> {
        let made;
        let (direct, series) = match route {
            Route::Direct(number) => match self.apps.routes.get(number) {
                LoopRoute { leads: Leads::Direct(direct) | Leads::Long(_, direct), series, .. } => (direct, *series),
                _ => return None,
            },
            route => {
                made = self.made(route, input, request)?;
                (&made.0, made.1)
            }
        };
        let told;
        let direct = if self.heads.quota.is_empty() {
            direct
        } else {
            told = direct.with_lines(&self.heads.quota);
            &told
        };
        self.counters.of_series(series).answered_here(direct.status());
        let keep_alive = self.keeps_alive(request);
        Some(Written::new(direct, &mut self.memory.scratch, &self.time.day.date, request, keep_alive))
    }

    /// What is made for this request alone, and by which number it is counted.
    #[cold]
    fn made(&self, route: Route, input: &[u8], request: &Request) -> Option<(Direct, u16)> {
        let own = |content_type, body| Some((Direct::new(content_type, body), OWN));
        match route {
            Route::Status => own("application/json", (self.shared.status)().as_bytes()),
            Route::Text(text) => own("text/plain; charset=utf-8", text),
            Route::Https(port) => Some((https(input, request, port), OWN)),
            Route::Challenge => {
                let answer = tls::http_answer(request.target.path.of(input)).unwrap_or_default();
                own("application/octet-stream", answer.as_bytes())
            }
            Route::Redirect(number) => match self.apps.routes.get(number) {
                LoopRoute { leads: Leads::Redirect(to), series, .. } => Some((to.answer(input, request), *series)),
                _ => None,
            },
            _ => {
                let reply = Reply { format: reply::negotiate(request.accept.of(input)), ..Reply::new(404, "", b"") };
                let page = self.apps.page(&reply, None).map(|page| (page.media_type, page.bytes()));
                let (media_type, text) = page.unwrap_or(("text/plain", NOBODY));
                Some((Direct::with(404, &format!("Content-Type: {media_type}\r\n"), text), OWN))
            }
        }
    }

    /// Answers with an error and closes, lingering, so that a client that is still sending reads the refusal.
    pub fn refuse(&mut self, sock: Sock, status: u16, detail: &str) {
        let input = self.table.client(sock).and_then(|client| client.input.take());
        self.refuse_unread(sock, input.as_deref().unwrap_or_default(), (status, detail));
    }

    /// [`Loop::refuse`] of a request that was not understood, or not looked at, and with which `input` begins.
    #[cold]
    pub fn refuse_unread(&mut self, sock: Sock, input: &[u8], refusal: (u16, &str)) {
        self.count().requests.add(1);
        self.refuse_with(sock, refusal, (b"", Duration::ZERO), |work, answered| {
            work.log_refusal(sock, input, answered);
        });
    }

    /// [`Loop::refuse`] of a request that was understood: it stands in the access log with its head.
    pub fn refuse_head(&mut self, sock: Sock, refusal: (u16, &str), accept: &[u8], head: &[u8]) {
        self.refuse_with(sock, refusal, (accept, Duration::ZERO), |work, answered| {
            work.log_answer(sock, head, None, answered);
        });
    }

    /// [`Loop::refuse`] of a head that did not come to its end: that clock runs from its first byte on.
    #[cold]
    pub fn refuse_late(&mut self, sock: Sock) {
        self.count().requests.add(1);
        let (refusal, after) = ((408, "the request did not arrive in time"), self.apps.settings.timeouts.header);
        let input = self.table.client(sock).and_then(|client| client.input.take());
        self.refuse_with(sock, refusal, (b"", after), |work, answered| {
            work.log_refusal(sock, input.as_deref().unwrap_or_default(), answered);
        });
    }

    fn refuse_with(
        &mut self,
        sock: Sock,
        (status, detail): (u16, &str),
        (accept, after): (&[u8], Duration),
        log: impl FnOnce(&mut Loop<B>, &Answered),
    ) {
        self.count().errors.add(1);
        let series = self.count().of_series(OWN);
        series.ended(status);
        series.took.record(nanos(after));
        let reply = Reply { format: reply::negotiate(accept), ..Reply::new(status, detail, &self.time.day.date) };
        let reply = Reply { page: self.apps.page(&reply, None), ..reply };
        let piece = self.memory.scratch.write(reply::error_room(&reply), |out| reply::error(out, &reply));
        let bytes = body_len(&piece) as u64;
        if let Some(client) = self.table.client(sock)
            && client.state == State::ReadingRequest
        {
            self.become_state(sock, State::WritingResponse);
        }
        self.send_head(sock, piece);
        log(self, &Answered { series: OWN, status, bytes, after });
        self.close_client(sock, How::Flushed);
    }
}
