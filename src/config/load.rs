//! All places together: flags, shorthands, the environment and the file become one [`Loaded`], or are refused.

use std::ffi::OsString;
use std::path::Path;

use clap::ArgMatches;

use super::arguments::{
    Given, Invocation, Refusal, Source, WRONG_CONFIGURATION, apply, from_environment, from_flags, shorthand, win,
};
use super::clashes::{Clash, OF_WORKERS, contradictions, of_hubs, place, whole};
use super::environment::Environment;
use super::file::{self, AppSaid, File, RouteSaid};
use super::report::{Problem, Severity, line_and_column, report, shown_path};
use super::route::{Access, AccessDraft, Draft, Matching, PathPattern, Target};
use super::{
    App, Command, Config, ErrorPage, Front, Hub, ListenAddress, Listener, Route, Settings, UnixListen, hub, keys,
    places, units,
};

/// What the workers run, and where it was said.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) words: Vec<OsString>,
    pub(super) source: Source,
}

/// What the configuration is made of: the command line and the environment of the start, and the file, which may change.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The command line, the program's name first.
    pub arguments: Vec<OsString>,
    /// The variables.
    pub environment: Environment,
}

impl Inputs {
    /// Reads the file as it is now, and makes the configuration of everything that is said. Nothing else is touched.
    ///
    /// # Errors
    /// What is wrong, with all mistakes of the file.
    pub fn load(&self) -> Result<Loaded, Refusal> {
        match super::read(self.arguments.iter().cloned(), &self.environment)? {
            Invocation::Run(loaded) => Ok(*loaded),
            _ => Err(Refusal::usage("error: the command line is not one that serves")),
        }
    }
}

/// What was said of one app.
#[derive(Debug)]
pub(super) struct AppGiven {
    pub(super) name: String,
    pub(super) given: Vec<Given>,
    pub(super) program: Option<Program>,
}

/// Everything that was said, and what it makes together.
#[derive(Debug)]
pub struct Loaded {
    /// What holds.
    pub config: Config,
    /// What was said that is no app's.
    pub(super) given: Vec<Given>,
    /// What was said of each app, in the order of those that are named.
    pub(super) apps: Vec<AppGiven>,
    /// The configuration file, if there is one.
    pub file: Option<File>,
    /// What is odd in the file, but no error.
    pub remarks: Vec<Problem>,
}

impl Loaded {
    /// Where the configuration file is, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.file.as_ref().map(|file| file.text.path.as_path())
    }

    /// Looks whether that file, which was read before, is still the one. A file that was found in its usual place and is gone now was not meant to be
    /// one that says nothing: whoever replaces it may have taken it away for a moment. Nor does one from the next usual place say what this server is
    /// to be.
    ///
    /// # Errors
    /// A line that says so.
    pub fn is_of(&self, before: Option<&Path>) -> Result<(), String> {
        let (Some(before), found) = (before, self.path()) else { return Ok(()) };
        let instead = match found {
            Some(found) if found == before => return Ok(()),
            Some(found) => format!("; {} would be read in its place, and is not", found.display()),
            None => String::new(),
        };
        Err(format!("error: {}: the configuration file is gone{instead}", before.display()))
    }

    /// A problem with the value of a key, shown where it was said. `index` is that of the value where there are many; the name is
    /// that of a flag, or `command`; `app` is the one that it belongs to.
    pub fn problem(
        &self,
        severity: Severity,
        app: Option<usize>,
        (name, index): (&str, usize),
        title: &str,
        label: &str,
    ) -> Problem {
        let app = app.and_then(|app| self.apps.get(app));
        let given = app.map_or(&self.given, |app| &app.given).iter().find(|one| one.key.name == name);
        let program = app.and_then(|app| app.program.as_ref()).filter(|_| name == "command");
        let source = given.map(|one| &one.source).or_else(|| program.map(|program| &program.source));
        if let Some(Source::File(spot)) = source {
            let listen = self.file.as_ref().and_then(|file| file.listen.get(index)).filter(|_| name == "listen");
            let span = listen.map_or_else(|| spot.span.clone(), |listen| listen.at.clone());
            return Problem { severity, ..Problem::error(title, span, label) };
        }
        let said = match given {
            Some(one) => place(one),
            None if name == "command" => "the command".to_owned(),
            None => format!("--{name}"),
        };
        let help = if label.is_empty() { Vec::new() } else { vec![label.to_owned()] };
        Problem { severity, title: format!("{said}: {title}"), marks: Vec::new(), help }
    }

    /// A problem with what is said of TLS on a listener, by its index, shown where that value was said, or where anything was.
    pub fn problem_of_tls(
        &self,
        severity: Severity,
        listener: usize,
        value: &str,
        title: &str,
        label: &str,
    ) -> Problem {
        let is_tls = |key: &keys::Key| key.name == "tls" || key.name.starts_with("tls-");
        let own = self.file.as_ref().and_then(|file| file.listen.get(listener)).map_or(&[][..], |listen| &listen.own);
        let of_file = |given: &Given| match &given.source {
            Source::File(spot) if is_tls(given.key) => Some(spot.span.clone()),
            _ => None,
        };
        let mut spans =
            own.iter().filter(|(key, _, _)| is_tls(key)).map(|(_, _, span)| span.clone()).collect::<Vec<_>>();
        spans.extend(self.given.iter().filter_map(of_file));
        let text = self.file.as_ref().map_or("", |file| file.text.text.as_str());
        let exact = spans.iter().find_map(|span| {
            let at = text.get(span.clone())?.find(value).filter(|_| !value.is_empty())?;
            Some(span.start + at..span.start + at + value.len())
        });
        if let Some(span) = exact.or_else(|| spans.first().cloned()) {
            return Problem { severity, ..Problem::error(title, span, label) };
        }
        let mut said = self.given.iter().filter(|given| is_tls(given.key));
        let says =
            |given: &&Given| given.values.iter().any(|one| !value.is_empty() && one.to_string_lossy().contains(value));
        let given = said.clone().find(says).or_else(|| said.next());
        let name = given.map_or_else(|| "--tls-cert".to_owned(), place);
        let help = if label.is_empty() { Vec::new() } else { vec![label.to_owned()] };
        Problem { severity, title: format!("{name}: {title}"), marks: Vec::new(), help }
    }

    /// A problem with what is said of a route, by its index, in the table of that name.
    pub fn problem_of_route(&self, route: usize, name: &str, title: &str, label: &str) -> Problem {
        // Those of hubs stand before those of the file.
        let of_file = |file: &'_ File| route.checked_sub(self.config.routes.len().checked_sub(file.routes.len())?);
        let said = self.file.as_ref().and_then(|file| file.routes.get(of_file(file)?));
        let at = said.and_then(|said| said.mark(&format!("routes[].{name}")));
        Problem::error(title, at.unwrap_or(0..0), label)
    }

    /// What is wrong, as people read it.
    pub fn report(&self, problems: &[Problem]) -> String {
        let none = file::Text::default();
        report(self.file.as_ref().map_or(&none, |file| &file.text), problems)
    }

    /// What is odd, each in one line.
    pub fn warnings(&self) -> Vec<String> {
        let remarks = self.remarks.iter().map(|problem| self.in_one_line(problem));
        self.config.server.source.warnings.iter().cloned().chain(remarks).collect()
    }

    /// A problem in one line.
    pub fn in_one_line(&self, problem: &Problem) -> String {
        let none = file::Text::default();
        let text = self.file.as_ref().map_or(&none, |file| &file.text);
        match problem.marks.first() {
            Some((at, label)) => {
                let (line, column) = line_and_column(&text.text, at.start);
                let colon = if label.is_empty() { "" } else { ": " };
                let said = text.as_written(&format!("{}{colon}{label}", problem.title), &problem.marks);
                format!("{}:{line}:{column}: {said}", shown_path(text))
            }
            None => problem.title.clone(),
        }
    }
}

/// The configuration file that the command line, the environment or its usual place name.
pub(super) fn file_of(matches: &ArgMatches, environment: &Environment) -> Result<Option<File>, Refusal> {
    let named = matches.get_many::<OsString>("config").and_then(|mut values| values.next_back());
    Ok(file::find(named, environment)?.map(|text| File::parse(text, environment)))
}

/// Makes the configuration of everything that was said.
pub(super) fn load(matches: &ArgMatches, environment: &Environment) -> Result<Loaded, Refusal> {
    let program: Option<Vec<OsString>> = matches.get_many("command").map(|words| words.cloned().collect());
    if program.as_ref().is_some_and(|words| words[0].is_empty()) {
        return Err(Refusal::usage("error: the command behind -- is empty, as in production_server -- node server.js"));
    }
    let program = program.map(|words| Program { words, source: Source::Flag });
    let mut said: Vec<Given> = keys::all().filter_map(|key| from_environment(key, environment)).collect();
    for word in matches.get_many::<OsString>("shorthand").into_iter().flatten() {
        shorthand(word)?.into_iter().for_each(|one| win(&mut said, one));
    }
    keys::all().filter_map(|key| from_flags(key, matches)).for_each(|one| win(&mut said, one));
    let file = file_of(matches, environment)?;
    if let Some(file) = &file {
        let problems = problems_of(file);
        if !problems.is_empty() {
            let line = report(&file.text, &problems).trim_end().to_owned();
            return Err(Refusal { line, exit_code: WRONG_CONFIGURATION });
        }
    }
    let (of_app, of_server): (Vec<Given>, Vec<Given>) = said.into_iter().partition(|one| one.key.is_of_app());
    let mut given = file.as_ref().map_or_else(Vec::new, |file| file.given.clone());
    of_server.into_iter().for_each(|one| win(&mut given, one));
    let mut warnings = environment.warnings();
    let mut apps = apps_of(file.as_ref(), of_app, program, &mut warnings)?;
    // One list after the other, so that what was always refused first still is.
    let lists = apps.iter().map(|app| (&app.given, app.program.as_ref())).chain([(&given, None)]);
    for (given, program) in lists {
        if let Some(clash) = contradictions(given, program).first() {
            return Err(clash.refusal(file.as_ref()));
        }
    }
    in_order(&mut given);
    let mut server = Settings::default();
    server.source.warnings = warnings;
    if let Some(file) = &file {
        begin(&mut server, file);
    }
    for one in &given {
        apply(&mut server, one)?;
    }
    server.error_pages = read_pages(server.error_pages);
    if let Some(file) = &file {
        server.limits.extend(file.limits.iter().filter_map(|limit| limit.value.clone()));
        server.hubs.retain(|hub| file.hubs.iter().all(|said| said.name != hub.name));
        server.hubs.extend(file.hubs.iter().filter_map(|hub| hub.value.clone()));
        server.listening.front_of = fronts(&server.listening.front, file, &given);
    }
    super::acme::complete(&mut server, environment, given.iter().any(|one| one.key.name == "listen"));
    if !given.iter().any(|one| one.key.name == "run-dir") {
        server.process.run_dir = environment.run_dir(&server.listening.at);
    }
    if let Some(clash) = whole(&server, &given).first().or(of_hubs(file.as_ref(), &given).first()) {
        return Err(clash.refusal(file.as_ref()));
    }
    let mut configured = Vec::new();
    for app in &mut apps {
        configured.push(configure(app, environment, file.as_ref())?);
    }
    warn_of_sockets(&mut server, &given);
    let listeners = server.listening.at.iter().map(|address| listener(&server, address)).collect();
    let routes = routes_of(file.as_ref(), &server.hubs, &mut configured);
    server.app = configured.first().cloned().unwrap_or_else(nothing);
    let remarks = remarks(file.as_ref(), &routes, &configured, &server.hubs);
    Ok(Loaded { config: Config { server, listeners, routes, apps: configured }, given, apps, file, remarks })
}

/// What stands for an app where there is none.
fn nothing() -> App {
    let mut app = App { workers: 0, ..App::default() };
    app.program.command = Command::None;
    app.instead.respond = Some(String::new());
    app
}

fn listener(server: &Settings, address: &ListenAddress) -> Listener {
    let access = match address {
        ListenAddress::Unix(path) => server.listening.unix_at(path).clone(),
        ListenAddress::Tcp(_) | ListenAddress::Systemd(_) => UnixListen::default(),
    };
    Listener { address: address.clone(), access, front: server.listening.front_at(address).clone() }
}

fn warn_of_sockets(server: &mut Settings, given: &[Given]) {
    let has_unix = server.listening.at.iter().any(|address| matches!(address, ListenAddress::Unix(_)));
    let unix_only = given.iter().find(|one| places::OF_SOCKET.contains(&one.key.name));
    if let Some(one) = unix_only.filter(|_| !has_unix) {
        let name = one.key.name;
        server.source.warnings.push(format!("--{name} has no effect: no --listen unix:PATH is given"));
    }
}

/// The apps with what was said of each: those of the file, else the one that flags speak of, which is called `web`.
fn apps_of(
    file: Option<&File>,
    outside: Vec<Given>,
    program: Option<Program>,
    warnings: &mut Vec<String>,
) -> Result<Vec<AppGiven>, Refusal> {
    let in_file =
        |app: &AppSaid| AppGiven { name: app.name.clone(), given: app.given.clone(), program: file_program(app) };
    let named = file.map_or(&[][..], |file| &file.apps);
    let by_flag = outside.iter().find(|one| !matches!(one.source, Source::Environment(_)));
    if named.len() > 1 {
        if by_flag.is_some() || program.is_some() {
            let said = by_flag.map_or_else(|| "the command behind --".to_owned(), place);
            let names: Vec<String> = named.iter().map(|app| format!("[apps.{}]", app.name)).collect();
            let line = format!(
                "error: {said} says nothing of which app it is for: the configuration file has several; write it under {}",
                names.join(" or ")
            );
            return Err(Refusal::usage(line));
        }
        warnings.extend(
            outside.iter().map(|one| format!("{} has no effect: the configuration file has several apps", place(one))),
        );
        return Ok(named.iter().map(in_file).collect());
    }
    let routes = file.map_or(&[][..], |file| &file.routes);
    let is_meant = routes.iter().any(|route| route.draft.app.is_some()) || by_flag.is_some() || program.is_some();
    if named.is_empty() && !routes.is_empty() && !is_meant {
        return Ok(Vec::new());
    }
    let mut app = named.first().map(in_file).unwrap_or_else(|| AppGiven {
        name: App::default().name,
        given: Vec::new(),
        program: None,
    });
    let mut given = app.given.clone();
    outside.into_iter().for_each(|one| win(&mut given, one));
    inherit(&mut given, &mut app.program, program);
    app.given = given;
    Ok(vec![app])
}

/// In the order in which they are to be read, of which the last wins where two keys have one effect: those of the lower places first, and
/// of one place the more special key last, as the table of keys has them; where they stand in the file says nothing.
fn in_order(given: &mut [Given]) {
    given.sort_by_cached_key(|one| (one.source.rank(), keys::all().position(|key| key.name == one.key.name)));
}

/// One app, checked.
fn configure(app: &mut AppGiven, environment: &Environment, file: Option<&File>) -> Result<App, Refusal> {
    in_order(&mut app.given);
    let mut settings = Settings::default();
    settings.app.name.clone_from(&app.name);
    for one in &app.given {
        apply(&mut settings, one)?;
    }
    if let Some(program) = &app.program {
        settings.app.program.command = Command::Argv(program.words.clone());
    }
    if let Some(clash) = whole(&settings, &app.given).first() {
        return Err(clash.refusal(file));
    }
    settings.app.program.directory = environment.directory(settings.app.program.directory.take());
    settings.app.answering.error_pages = read_pages(settings.error_pages);
    Ok(settings.app)
}

fn read_pages(mut pages: Vec<ErrorPage>) -> Vec<ErrorPage> {
    pages.iter_mut().for_each(ErrorPage::read);
    pages
}

/// The routes, those to hubs that have none of their own first, and an app more for each set of upstreams that a route names itself. Where
/// there is no app at all, one stands for the routes: documents about the server, and what is published, are exchanges, and each is some app's.
fn routes_of(file: Option<&File>, hubs: &[Hub], apps: &mut Vec<App>) -> Vec<Route> {
    let said = file.map_or(&[][..], |file| &file.routes);
    let without = |hub: &Hub| !file.is_some_and(|file| file.has_route_to_hub(&hub.name));
    let numbered = hubs.iter().enumerate().filter(|(_, hub)| without(hub));
    let mut routes: Vec<Route> = numbered.flat_map(|(number, hub)| routes_to_hub(number, hub)).collect();
    if said.is_empty() {
        routes.push(Route::all_to(0));
    }
    for RouteSaid { draft, .. } in said {
        let hub = draft.to_hub.as_ref().and_then(|name| hubs.iter().position(|hub| hub.name == *name));
        let to = match (&draft.respond, &draft.redirect, draft.served(), hub) {
            (Some(respond), ..) => Target::Respond(respond.clone()),
            (_, Some(redirect), ..) => Target::Redirect(redirect.clone()),
            (.., Some(files), _) => Target::Files(files, files_app(apps)),
            (.., Some(hub)) => Target::Hub(hub),
            _ => Target::App(app_of(draft, apps)),
        };
        routes.push(Route {
            matching: draft.matching.clone(),
            to,
            sendfile: draft.sendfile.clone(),
            rewrite: draft.rewrite.clone(),
            request_fields: draft.request_fields.clone(),
            response_fields: draft.response_fields.clone(),
            compress: draft
                .own
                .as_ref()
                .map(|own| own.app.answering.compress.clone())
                .filter(|compress| compress.codings.is_some()),
            error_pages: read_pages(draft.own.as_ref().map_or_else(Vec::new, |own| own.error_pages.clone())),
            access: access(draft),
        });
    }
    if apps.is_empty() {
        stand_in("own answers", apps);
    }
    routes
}

/// What leads to a hub that no route is to.
fn routes_to_hub(number: usize, hub: &Hub) -> [Route; hub::ENDS.len()] {
    hub::ENDS.map(|end| {
        let path = Some(PathPattern::Exact(format!("{}/{end}", hub.path)));
        Route { matching: Matching { path, ..Matching::default() }, to: Target::Hub(number), ..Route::all_to(0) }
    })
}

fn access(draft: &Draft) -> Access {
    let AccessDraft { allow, deny, limits, max_in_flight, read, .. } = draft.access.clone();
    Access { allow, deny, limits, max_in_flight, auth: read }
}

/// The index of the app that a route is to. Routes to the same upstreams, with the same balance, have one in common; what
/// the first of them says of their health holds.
fn app_of(draft: &Draft, apps: &mut Vec<App>) -> usize {
    let name = match &draft.app {
        Some(name) => name.clone(),
        None => {
            let upstreams: Vec<String> = draft.upstreams.iter().map(ToString::to_string).collect();
            let way = draft.balance.map(|balance| keys::BALANCES.iter().find(|(_, other)| *other == balance));
            let way = way.flatten().map_or_else(String::new, |(word, _)| format!(" {word}"));
            format!("{}{way}", upstreams.join(" "))
        }
    };
    if let Some(index) = apps.iter().position(|app| app.name == name) {
        return index;
    }
    let mut own = draft.own.as_ref().map_or_else(App::default, |own| own.app.clone());
    own.program.command = Command::None;
    own.instead.upstreams.clone_from(&draft.upstreams);
    own.sharing.balance = draft.balance.unwrap_or(App::default().sharing.balance);
    apps.push(App { name, ..own });
    apps.len() - 1
}

/// The index of the app that stands for all routes to files: each request that takes its time is some app's.
fn files_app(apps: &mut Vec<App>) -> usize {
    stand_in("static files", apps)
}

/// The index of the app of that name without a program, in whose place the loops answer.
fn stand_in(name: &str, apps: &mut Vec<App>) -> usize {
    if let Some(index) = apps.iter().position(|app| app.name == name) {
        return index;
    }
    apps.push(App { name: name.to_owned(), ..nothing() });
    apps.len() - 1
}

/// What is odd: routes that are never taken, and apps that get nothing.
fn remarks(file: Option<&File>, routes: &[Route], apps: &[App], hubs: &[Hub]) -> Vec<Problem> {
    let Some(file) = file.filter(|file| !file.routes.is_empty()) else { return Vec::new() };
    let mut problems = Vec::new();
    let warning =
        |title: String, at, label: &str| Problem { severity: Severity::Warning, ..Problem::error(title, at, label) };
    let (of_hubs, routes) = routes.split_at(routes.len() - file.routes.len());
    for (index, (route, said)) in routes.iter().zip(&file.routes).enumerate() {
        let covers = |earlier: &&Route| earlier.matching.covers(&route.matching);
        let never = |label: &str| {
            let at = said.mark("routes[].match").unwrap_or_else(|| said.at.clone());
            warning("a route that is never taken".to_owned(), at, label)
        };
        if let Some(Route { to: Target::Hub(hub), .. }) = of_hubs.iter().find(covers) {
            let name = hubs.get(*hub).map_or("", |hub| hub.name.as_str());
            problems.push(never(&format!("the hub `{name}` is served there: say another `path` of it")));
        } else if let Some(earlier) = routes[..index].iter().position(|earlier| covers(&earlier)) {
            let problem = never("an earlier one takes all of this");
            problems.push(problem.and(file.routes[earlier].at.clone(), "this one"));
        }
    }
    for hub in file.hubs.iter().filter(|hub| file.has_route_to_hub(&hub.name)) {
        if let Some(at) = hub.said.mark("hub.*.path") {
            let label = "a route is to this hub, and it is served there alone";
            problems.push(warning("`path` has no effect here".to_owned(), at, label));
        }
    }
    for (route, said) in routes.iter().zip(&file.routes) {
        let (Target::App(app), Some(own)) = (&route.to, &said.draft.own) else { continue };
        let other = apps.get(*app).filter(|app| (&app.health, &app.eject) != (&own.app.health, &own.app.eject));
        if other.is_some() && said.draft.app.is_none() {
            let at = said.mark("routes[].health").or_else(|| said.mark("routes[].eject"));
            let label = "an earlier route says otherwise of the same upstreams, and that holds";
            problems.extend(at.map(|at| warning("it has no effect".to_owned(), at, label)));
        }
    }
    for said in &file.routes {
        let asked = &said.draft.access.forward.app;
        let own =
            apps.iter().any(|app| app.name == *asked && (app.instead.respond.is_some() || app.instead.files.is_some()));
        if let Some(at) = said.mark("routes[].forward_auth.app").filter(|_| own) {
            let label = "the loop answers in its place where a route is to it, and nobody where it is asked: 503";
            problems.push(warning(format!("the app `{asked}` has no workers"), at, label));
        }
    }
    for (index, app) in apps.iter().enumerate() {
        let asks = |route: &Route| route.access.auth.as_ref()?.forward.as_ref().map(|forward| forward.app == app.name);
        let reached = routes.iter().any(|route| route.to == Target::App(index) || asks(route) == Some(true));
        if let Some(said) = file.apps.iter().find(|said| said.name == app.name).filter(|_| !reached) {
            let title = format!("the app `{}` gets no requests", app.name);
            problems.push(warning(title, said.at.clone(), "no route is to it"));
        }
    }
    problems
}

impl File {
    /// Everything that is wrong with it, as people read it: values, and what does not go together. Empty if there is nothing.
    pub fn complaints(&self) -> String {
        report(&self.text, &problems_of(self))
    }
}

/// What is wrong with a file: values, and what does not go together in it.
fn problems_of(file: &File) -> Vec<Problem> {
    let mut problems = file.problems.clone();
    let of_hubs = of_hubs(Some(file), &file.given);
    problems.extend(of_hubs.iter().filter(|clash| clash.in_file()).map(Clash::problem));
    if !problems.is_empty() && file.given.is_empty() && file.apps.iter().all(|app| app.given.is_empty()) {
        return problems;
    }
    let mut add = |given: &[Given], program: Option<&Program>, name: &str| {
        let mut settings = Settings::default();
        name.clone_into(&mut settings.app.name);
        for one in given {
            // Each was read once already, or it would not be among these.
            apply(&mut settings, one).ok();
        }
        let clashes = contradictions(given, program);
        let clashes = clashes.into_iter().chain(whole(&settings, given));
        problems.extend(clashes.filter(Clash::in_file).map(|clash| clash.problem()));
    };
    add(&file.given, None, "web");
    for app in &file.apps {
        add(&app.given, file_program(app).as_ref(), &app.name);
    }
    problems
}

fn file_program(app: &AppSaid) -> Option<Program> {
    let (words, spot) = app.command.as_ref()?;
    Some(Program { words: words.iter().map(OsString::from).collect(), source: Source::File(spot.clone()) })
}

/// What the workers run is what the file says, unless somebody says elsewhere what the app is; then what the file says of that goes.
fn inherit(given: &mut Vec<Given>, own: &mut Option<Program>, program: Option<Program>) {
    let kinds = ["upstream", "respond", "static"];
    let from_file = |one: &Given| one.source.rank() == 0;
    let replaced = given.iter().any(|one| kinds.contains(&one.key.name) && !from_file(one));
    if program.is_some() || replaced {
        given.retain(|one| !(from_file(one) && kinds.contains(&one.key.name)));
        *own = program;
    }
    if replaced {
        given.retain(|one| !(from_file(one) && OF_WORKERS.contains(&one.key.name)));
    }
}

/// What stands in front of single listeners, as far as the file says so and nothing above it does.
fn fronts(all: &Front, file: &File, given: &[Given]) -> Vec<(ListenAddress, Front)> {
    let overridden = |key: &keys::Key| given.iter().any(|one| one.key.name == key.name && one.source.rank() > 0);
    let front = |listen: &file::Listen| {
        let address = units::listen(&listen.address).ok()?;
        let mut scratch = Settings::default();
        scratch.listening.front.clone_from(all);
        let own = listen.own.iter().filter(|(key, _, _)| places::OF_FRONT.contains(&key.name) && !overridden(key));
        let mut certified = false;
        for (index, (key, value, _)) in own.clone().enumerate() {
            // A list takes the place of the one for all.
            match key.name {
                _ if own.clone().take(index).any(|(earlier, _, _)| earlier.name == key.name) => {}
                "trusted-proxies" => scratch.listening.front.trusted = Default::default(),
                "proxy-protocol" => scratch.listening.front.proxies = Default::default(),
                "allow" => scratch.listening.front.allow = Default::default(),
                "deny" => scratch.listening.front.deny = Default::default(),
                // Of certificates the listener's own are all that it has.
                "tls-cert" | "tls-key" | "tls-certificate" if !certified => {
                    certified = true;
                    let tls = &mut scratch.listening.front.tls;
                    (tls.certs, tls.keys, tls.certificates) = Default::default();
                }
                _ => {}
            }
            // It was read once already.
            (key.set)(&mut scratch, value).ok();
        }
        (scratch.listening.front != *all).then_some((address, scratch.listening.front))
    };
    file.listen.iter().filter_map(front).collect()
}

/// What a file says that is no key: what belongs to single sockets.
fn begin(settings: &mut Settings, file: &File) {
    settings.source.file = Some(file.text.path.clone());
    for listen in &file.listen {
        let Ok(ListenAddress::Unix(path)) = units::listen(&listen.address) else { continue };
        let mut scratch = Settings::default();
        for (key, value, _) in &listen.own {
            // It was read once already.
            (key.set)(&mut scratch, value).ok();
        }
        settings.listening.unix_of.insert(path, scratch.listening.unix);
    }
}
