//! The command line: what is to be done, and every mistake in one line.

use std::ffi::{OsStr, OsString};
use std::ops::Range;

use clap::builder::OsStringValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches};

use super::environment::Environment;
use super::file::{self, File};
use super::keys::{self, Key};
use super::places;
use super::report::{Problem, report};
use super::steering::{self, Steering};
use super::units::{port_number, show_duration};
use super::{App, Command, Conformance, ListenAddress, Settings};

/// Exit code for wrong flags and shorthands (EX_USAGE of sysexits(3)).
pub const WRONG_USAGE: u8 = 64;
/// Exit code for an invalid configuration, the environment's included (EX_CONFIG of sysexits(3)).
pub const WRONG_CONFIGURATION: u8 = 78;

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// To serve.
    Run(Box<Settings>),
    /// To look whether that would work.
    Check(Box<Loaded>),
    /// To be the built-in worker; the arguments behind the word.
    Worker(Vec<OsString>),
    /// To look at a command through the worker contract.
    Conformance(Conformance),
    /// To be the shim before a worker's command; the arguments behind the word.
    Exec(Vec<OsString>),
    /// To be the guard; the arguments behind the word.
    Guard(Vec<OsString>),
    /// To speak to a server that runs already.
    Steer(Box<Steering>),
    /// To print the help or the version and to end well.
    Print(Box<clap::Error>),
}

/// Why nothing is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One line without its end, that says what is wrong and what would be right; for a configuration file all its mistakes, with
    /// the lines where they are.
    pub line: String,
    /// What the process ends with.
    pub exit_code: u8,
}

impl Refusal {
    pub(super) fn usage(line: impl Into<String>) -> Refusal {
        Refusal { line: line.into(), exit_code: WRONG_USAGE }
    }
}

/// Where a value came from; later ones win.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    File(Spot),
    Environment(String),
    Shorthand(String),
    Flag,
}

/// A place in the configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// The file.
    pub(super) file: String,
    /// The tables and the key there, with dots between.
    pub(super) path: String,
    /// From 1.
    pub(super) line: usize,
    /// From 1.
    pub(super) column: usize,
    /// The value, in bytes of the file.
    pub(super) span: Range<usize>,
}

impl Source {
    pub(super) fn rank(&self) -> u8 {
        match self {
            Source::File(_) => 0,
            Source::Environment(_) => 1,
            Source::Shorthand(_) => 2,
            Source::Flag => 3,
        }
    }

    fn exit_code(&self) -> u8 {
        if self.rank() <= 1 { WRONG_CONFIGURATION } else { WRONG_USAGE }
    }
}

/// The values of one key from the place that wins.
#[derive(Clone, Debug)]
pub(super) struct Given {
    pub(super) key: &'static Key,
    pub(super) source: Source,
    pub(super) values: Vec<OsString>,
}

/// What the workers run, and where it was said.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) words: Vec<OsString>,
    pub(super) source: Source,
}

/// Everything that was said, and what it makes together.
#[derive(Debug)]
pub struct Loaded {
    /// What holds.
    pub settings: Settings,
    /// The configuration file, if there is one.
    pub file: Option<File>,
}

/// What does not go together, and what has part in it.
struct Clash<'a> {
    line: String,
    involved: Vec<&'a Source>,
}

impl Clash<'_> {
    /// Whether the file alone is to blame: all that has part in it stands there, and no default.
    fn in_file(&self) -> bool {
        self.involved.len() > 1 && self.involved.iter().all(|source| source.rank() == 0)
    }

    /// Where the environment or the file has part in it, the configuration is wrong.
    fn exit_code(&self) -> u8 {
        let lowest = self.involved.iter().min_by_key(|source| source.rank());
        lowest.map_or(WRONG_USAGE, |source| source.exit_code())
    }

    fn problem(&self) -> Problem {
        let spots = self.involved.iter().filter_map(|source| match source {
            Source::File(spot) => Some((spot.span.clone(), String::new())),
            _ => None,
        });
        Problem { marks: spots.collect(), ..Problem::error(self.line.clone(), 0..0, "") }
    }

    fn refusal(&self, file: Option<&File>) -> Refusal {
        let line = match file {
            Some(file) if self.involved.iter().any(|source| source.rank() == 0) => {
                report(&file.text, &[self.problem()])
            }
            _ => format!("error: {}", self.line),
        };
        Refusal { line: line.trim_end().to_owned(), exit_code: self.exit_code() }
    }
}

/// Reads the command line (the program's name first) and the environment.
pub fn read(arguments: impl IntoIterator<Item = OsString>, environment: &Environment) -> Result<Invocation, Refusal> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    match arguments.get(1).and_then(|word| word.to_str()) {
        Some("_exec") => return Ok(Invocation::Exec(arguments[2..].to_vec())),
        Some("_guard") => return Ok(Invocation::Guard(arguments[2..].to_vec())),
        _ => {}
    }
    if arguments.last().is_some_and(|last| last == "--") {
        return Err(Refusal::usage("error: no command stands behind --, as in production_server -- node server.js"));
    }
    let matches = match command().try_get_matches_from(&arguments) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Invocation::Print(Box::new(error)));
        }
        Err(error) => return Err(Refusal::usage(one_line(&error))),
    };
    match matches.subcommand() {
        Some(("worker", worker)) => {
            let given = |(name, flag)| Some([OsString::from(flag), worker.get_one::<OsString>(name)?.clone()]);
            let flags = [("socket", "--socket"), ("module", "--module")];
            Ok(Invocation::Worker(flags.into_iter().filter_map(given).flatten().collect()))
        }
        Some(("run", run)) => serve(run, environment),
        Some(("check", words)) => load(words, environment).map(|loaded| Invocation::Check(Box::new(loaded))),
        Some(("conformance", words)) => {
            super::conformance::read(words).map(Invocation::Conformance).map_err(Refusal::usage)
        }
        Some((word, matches)) => {
            steering::read(word, matches, environment).map(|steering| Invocation::Steer(Box::new(steering)))
        }
        None => serve(&matches, environment),
    }
}

fn serve(matches: &ArgMatches, environment: &Environment) -> Result<Invocation, Refusal> {
    let loaded = load(matches, environment)?;
    Ok(if matches.get_flag("test") {
        Invocation::Check(Box::new(loaded))
    } else {
        Invocation::Run(Box::new(loaded.settings))
    })
}

/// The whole command line as clap knows it; for the help, completions and the manual page.
pub fn command() -> clap::Command {
    let run = clap::Command::new("run").about("Serve; the same as without the word");
    let check = clap::Command::new("check").about("Look whether all that is said would work, and start nothing");
    let socket = Arg::new("socket").long("socket").value_name("PATH").value_parser(OsStringValueParser::new());
    let module = Arg::new("module").long("module").value_name("FILE").value_parser(OsStringValueParser::new());
    let worker = clap::Command::new("worker")
        .about("Be the built-in worker on a Unix socket")
        .arg(socket.help("Where to listen [env: SOCKET_PATH]"))
        .arg(module.help("The shared object that answers, in place of the demonstration [env: MODULE]"));
    let command = with_flags(clap::Command::new("production_server"))
        .about("One binary in front of any app: event loops that serve HTTP and forward it to supervised workers")
        .override_usage("production_server [run] [FLAGS] [SHORTHAND…] [-- COMMAND…]")
        .version(env!("CARGO_PKG_VERSION"))
        .args_conflicts_with_subcommands(true)
        .disable_help_subcommand(true)
        .subcommand(with_flags(run).override_usage("production_server run [FLAGS] [SHORTHAND…] [-- COMMAND…]"))
        .subcommand(with_flags(check).override_usage("production_server check [FLAGS] [SHORTHAND…] [-- COMMAND…]"))
        .subcommand(worker)
        .subcommand(super::conformance::subcommand());
    steering::with_words(command)
}

fn with_flags(mut command: clap::Command) -> clap::Command {
    for (heading, keys) in keys::GROUPS {
        for key in *keys {
            command = command.arg(flag(key).help_heading(*heading));
        }
    }
    let shorthand = Arg::new("shorthand")
        .value_name("SHORTHAND")
        .num_args(0..)
        .value_parser(OsStringValueParser::new())
        .help("w:N|auto (workers), c:N (concurrency), r:N[,SECONDSs] (max requests and lifetime), http:PORT, PORT");
    let program = Arg::new("command")
        .value_name("COMMAND")
        .num_args(1..)
        .last(true)
        .value_parser(OsStringValueParser::new())
        .help("What the workers run; {socket} stands for the worker's socket. Without it: the built-in worker");
    let test = Arg::new("test")
        .short('t')
        .long("test")
        .action(ArgAction::SetTrue)
        .help("Only look whether all that is said would work, as production_server check does");
    let command = command.arg(config_flag()).arg(test);
    command.arg(shorthand).arg(program).after_help(AFTER_SHORT).after_long_help(AFTER_LONG)
}

/// The flag that names the configuration file.
pub(super) fn config_flag() -> Arg {
    let help = "The configuration file, or none [default: ./production_server.toml, \
        ~/.config/production_server/production_server.toml or /etc/production_server/production_server.toml]";
    Arg::new("config")
        .short('f')
        .long("config")
        .value_name("FILE")
        .action(ArgAction::Append)
        .value_parser(OsStringValueParser::new())
        .help(help)
        .long_help(format!("{help}\n[env: {}]", file::VARIABLE))
}

pub(super) fn flag(key: &Key) -> Arg {
    let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
    let names: Vec<String> =
        std::iter::once(key.variable()).chain(key.variables.iter().map(|name| (*name).to_owned())).collect();
    let many = if key.many { " (repeatable)" } else { "" };
    let arg = Arg::new(key.name).long(key.name).help(format!("{}{many}{default}", key.help)).long_help(format!(
        "{}{many}{default}\n[env: {}]",
        key.help,
        names.join(", ")
    ));
    let arg = match key.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    if key.is_switch() {
        arg.action(ArgAction::Count)
    } else {
        arg.action(ArgAction::Append).value_name(key.value).value_parser(OsStringValueParser::new())
    }
}

/// The configuration file that the command line, the environment or its usual place name.
pub(super) fn file_of(matches: &ArgMatches, environment: &Environment) -> Result<Option<File>, Refusal> {
    let named = matches.get_many::<OsString>("config").and_then(|mut values| values.next_back());
    Ok(file::find(named, environment)?.map(|text| File::parse(text, environment)))
}

/// Makes the settings of everything that was said.
pub(super) fn load(matches: &ArgMatches, environment: &Environment) -> Result<Loaded, Refusal> {
    let program: Option<Vec<OsString>> = matches.get_many("command").map(|words| words.cloned().collect());
    if program.as_ref().is_some_and(|words| words[0].is_empty()) {
        return Err(Refusal::usage("error: the command behind -- is empty, as in production_server -- node server.js"));
    }
    let mut program = program.map(|words| Program { words, source: Source::Flag });
    let mut shorthands = Vec::new();
    for word in matches.get_many::<OsString>("shorthand").into_iter().flatten() {
        shorthands.extend(shorthand(word)?);
    }
    let file = file_of(matches, environment)?;
    let mut given = Vec::new();
    if let Some(file) = &file {
        let problems = problems_of(file);
        if !problems.is_empty() {
            let line = report(&file.text, &problems).trim_end().to_owned();
            return Err(Refusal { line, exit_code: WRONG_CONFIGURATION });
        }
        given.clone_from(&file.given);
    }
    keys::all().filter_map(|key| from_environment(key, environment)).for_each(|one| win(&mut given, one));
    shorthands.into_iter().for_each(|one| win(&mut given, one));
    keys::all().filter_map(|key| from_flags(key, matches)).for_each(|one| win(&mut given, one));
    inherit(file.as_ref(), &mut given, &mut program);
    if let Some(clash) = contradictions(&given, program.as_ref()).first() {
        return Err(clash.refusal(file.as_ref()));
    }
    // The lower places first, so that of two keys with one effect the higher place's wins.
    given.sort_by_key(|one| one.source.rank());
    let mut settings = Settings { warnings: environment.warnings(), app: App::default(), ..Settings::default() };
    if let Some(file) = &file {
        begin(&mut settings, file);
    }
    for one in &given {
        apply(&mut settings, one)?;
    }
    if let Some(program) = &program {
        settings.app.command = Command::Argv(program.words.clone());
    }
    if !given.iter().any(|one| one.key.name == "run-dir") {
        settings.run_dir = environment.run_dir(&settings.listen);
    }
    if let Some(clash) = whole(&settings, &given).first() {
        return Err(clash.refusal(file.as_ref()));
    }
    let has_unix = settings.listen.iter().any(|address| matches!(address, ListenAddress::Unix(_)));
    let unix_only = given.iter().find(|one| places::OF_SOCKET.contains(&one.key.name));
    if let Some(one) = unix_only.filter(|_| !has_unix) {
        let name = one.key.name;
        settings.warnings.push(format!("--{name} has no effect: no --listen unix:PATH is given"));
    }
    Ok(Loaded { settings, file })
}

/// What is wrong with a file: values, and what does not go together in it.
fn problems_of(file: &File) -> Vec<Problem> {
    let mut problems = file.problems.clone();
    if !problems.is_empty() && file.given.is_empty() {
        return problems;
    }
    let program = file_program(file);
    let mut settings = Settings::default();
    for one in &file.given {
        // Each was read once already, or it would not be among these.
        apply(&mut settings, one).ok();
    }
    let clashes = contradictions(&file.given, program.as_ref());
    let clashes = clashes.into_iter().chain(whole(&settings, &file.given));
    problems.extend(clashes.filter(Clash::in_file).map(|clash| clash.problem()));
    problems
}

fn file_program(file: &File) -> Option<Program> {
    let (words, spot) = file.command.as_ref()?;
    Some(Program { words: words.iter().map(OsString::from).collect(), source: Source::File(spot.clone()) })
}

/// Takes the command from the file, unless somebody says elsewhere what the app is; then what the file says of that goes.
fn inherit(file: Option<&File>, given: &mut Vec<Given>, program: &mut Option<Program>) {
    let Some(file) = file else { return };
    let kinds = ["upstream", "respond"];
    let from_file = |one: &Given| one.source.rank() == 0;
    let replaced = given.iter().any(|one| kinds.contains(&one.key.name) && !from_file(one));
    if program.is_some() || replaced {
        given.retain(|one| !(from_file(one) && kinds.contains(&one.key.name)));
    } else {
        *program = file_program(file);
    }
    if replaced {
        given.retain(|one| !(from_file(one) && OF_WORKERS.contains(&one.key.name)));
    }
}

/// What a file says that is no key: the app's name, and what belongs to single sockets.
fn begin(settings: &mut Settings, file: &File) {
    settings.config = Some(file.text.path.clone());
    if let Some(name) = &file.app {
        settings.app.name.clone_from(name);
    }
    for listen in &file.listen {
        let Ok(ListenAddress::Unix(path)) = super::units::listen(&listen.address) else { continue };
        let mut scratch = Settings::default();
        for (key, value) in &listen.own {
            // It was read once already.
            (key.set)(&mut scratch, value).ok();
        }
        settings.unix_listen_of.insert(path, scratch.unix_listen);
    }
}

/// Puts in a value from a higher place: what came from lower ones goes, what came from the same adds up or is replaced.
pub(super) fn win(given: &mut Vec<Given>, one: Given) {
    if let Some(same) = given.iter_mut().find(|other| other.key.name == one.key.name) {
        if same.key.many && same.source.rank() == one.source.rank() {
            same.values.extend(one.values);
        } else {
            *same = one;
        }
    } else {
        given.push(one);
    }
}

pub(super) fn from_flags(key: &'static Key, matches: &ArgMatches) -> Option<Given> {
    let values = if key.is_switch() {
        (matches.get_count(key.name) > 0).then(|| vec![OsString::from("on")])?
    } else {
        let values = matches.get_many::<OsString>(key.name)?.cloned();
        // The last one wins, so that a wrapper's flags can be overridden.
        if key.many { values.collect() } else { values.rev().take(1).collect() }
    };
    Some(Given { key, source: Source::Flag, values })
}

pub(super) fn from_environment(key: &'static Key, environment: &Environment) -> Option<Given> {
    let own = key.variable();
    let names = std::iter::once(own.as_str()).chain(key.variables.iter().copied());
    let (name, value) = names.filter_map(|name| environment.value(name).map(|value| (name, value))).next()?;
    let values = match value.to_str() {
        Some(text) if key.many => text.split(',').map(|part| part.trim().into()).collect(),
        _ => vec![value.to_owned()],
    };
    Some(Given { key, source: Source::Environment(name.to_owned()), values })
}

/// What one shorthand stands for.
pub(super) fn shorthand(word: &OsStr) -> Result<Vec<Given>, Refusal> {
    let text = word.to_string_lossy();
    let one = |name: &str, value: &str| Given {
        key: keys::by_name(name),
        source: Source::Shorthand(text.clone().into_owned()),
        values: vec![value.into()],
    };
    let port = |port: &str| match port_number(port) {
        Ok(port) => Ok(vec![one("listen", &port.to_string())]),
        Err(expected) => Err(wrong_shorthand(&text, &expected, "http:8080")),
    };
    match text.split_once(':') {
        Some(("w", value)) => Ok(vec![one("workers", value)]),
        Some(("c", value)) => Ok(vec![one("concurrency", value)]),
        Some(("r", value)) => Ok(match value.split_once(',') {
            Some((requests, lifetime)) => vec![one("max-requests", requests), one("max-lifetime", lifetime)],
            None => vec![one("max-requests", value)],
        }),
        Some(("http", value)) => port(value),
        None if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => port(&text),
        _ => Err(Refusal::usage(format!(
            "error: {} is no shorthand: expected w:N, c:N, r:N[,SECONDSs], http:PORT or a port; a command stands behind --",
            quoted(word)
        ))),
    }
}

fn wrong_shorthand(text: &str, expected: &str, example: &str) -> Refusal {
    Refusal::usage(format!("error: shorthand {}: {expected}, as in {example}", quoted(OsStr::new(text))))
}

/// Reads the values of one key into the settings.
pub(super) fn apply(settings: &mut Settings, given: &Given) -> Result<(), Refusal> {
    let key = given.key;
    if key.name == "listen" {
        settings.listen.clear();
    }
    for value in &given.values {
        let read = match value.to_str() {
            Some(text) => (key.set)(settings, text),
            None => Err("expected UTF-8".to_owned()),
        };
        read.map_err(|expected| wrong_value(given, value, &expected))?;
    }
    if places::OF_SOCKET.contains(&key.name) {
        // What is said for all sockets holds for those of the file, too.
        for access in settings.unix_listen_of.values_mut() {
            let mut scratch = Settings { unix_listen: access.clone(), ..Settings::default() };
            for text in given.values.iter().filter_map(|value| value.to_str()) {
                (key.set)(&mut scratch, text).ok();
            }
            *access = scratch.unix_listen;
        }
    }
    Ok(())
}

fn wrong_value(given: &Given, value: &OsStr, expected: &str) -> Refusal {
    let (key, value) = (given.key, quoted(value));
    let example = key.example;
    let line = match &given.source {
        Source::File(spot) => {
            format!("error: {}, line {}: {} {value}: {expected}", spot.file, spot.line, spot.path)
        }
        Source::Flag => format!("error: --{} {value}: {expected}, as in --{} {example}", key.name, key.name),
        Source::Environment(name) => {
            // A name of somebody else's may take less than the key: PORT is a port.
            let example = if name == "PORT" { "8080" } else { example };
            format!("error: {name}={value} in the environment: {expected}, as in {name}={example}")
        }
        Source::Shorthand(text) => {
            let example = match key.name {
                "workers" => "w:4",
                "concurrency" => "c:1",
                "max-requests" => "r:10000",
                _ => "r:10000,3600s",
            };
            return wrong_shorthand(text, expected, example);
        }
    };
    Refusal { line, exit_code: given.source.exit_code() }
}

/// What only workers of our own have.
const OF_WORKERS: [&str; 3] = ["workers", "max-requests", "max-lifetime"];

/// What cannot hold together, wherever it was said.
fn contradictions<'a>(given: &'a [Given], program: Option<&'a Program>) -> Vec<Clash<'a>> {
    let find = |name: &str| given.iter().find(|one| one.key.name == name);
    let mut clashes = Vec::new();
    let mut clash = |one: &'a Given, other: (String, &'a Source), advice: &str| {
        let line = format!("{} and {} exclude each other: {advice}", place(one), other.0);
        clashes.push(Clash { line, involved: vec![&one.source, other.1] });
    };
    let by_key = |other: &'a Given| (place(other), &other.source);
    let apps: Vec<&Given> = ["upstream", "respond"].into_iter().filter_map(find).collect();
    if let [first, second] = &apps[..] {
        clash(first, by_key(second), "expected one of them");
    }
    if let Some(app) = apps.first() {
        if let Some(program) = program {
            let command = match &program.source {
                Source::File(spot) => format!("`{}`", spot.path),
                _ => "a command".to_owned(),
            };
            clash(app, (command, &program.source), "expected one of them");
        }
        // Variables such as WEB_CONCURRENCY are set by the surroundings for whatever runs there; they do not count.
        let mut own = OF_WORKERS.into_iter().filter_map(find);
        if let Some(own) = own.find(|one| !matches!(one.source, Source::Environment(_))) {
            clash(app, by_key(own), "no workers are started then");
        }
    }
    let level = |one: &Given, other: &Given| one.source.rank() == other.source.rank();
    if let (Some(off), Some(on)) = (find("no-access-log").filter(|off| is_on(off)), find("access-log"))
        && level(off, on)
    {
        clash(off, by_key(on), "expected one of them");
    }
    if let (Some(json), Some(format)) = (find("json-logging").filter(|json| is_on(json)), find("log-format"))
        && level(json, format)
        && format.values.iter().any(|value| value == "human" || value == "combined")
    {
        clash(json, by_key(format), "expected one of them");
    }
    clashes
}

/// Whether a switch is on, as far as its value can be read.
fn is_on(given: &Given) -> bool {
    given.values.iter().filter_map(|value| value.to_str()).any(|text| super::units::switch(text) == Ok(true))
}

fn place(given: &Given) -> String {
    match &given.source {
        Source::File(spot) => format!("`{}`", spot.path),
        Source::Flag => format!("--{}", given.key.name),
        Source::Shorthand(text) => text.clone(),
        Source::Environment(name) => format!("{name} in the environment"),
    }
}

/// What only shows when everything is read.
fn whole<'a>(settings: &Settings, given: &'a [Given]) -> Vec<Clash<'a>> {
    let find = |name: &str| given.iter().find(|one| one.key.name == name);
    // A default is called by what would change it.
    let default = |name: &str, in_file: bool| match places::main_of(name).filter(|_| in_file) {
        Some(place) => format!("the default of `{}`", place.path.replace('*', &settings.app.name)),
        None => format!("--{name}"),
    };
    let named = |name: &str, other: Option<&Given>| {
        let in_file = other.is_some_and(|other| other.source.rank() == 0);
        find(name).map_or_else(|| default(name, in_file), place)
    };
    let sources = |names: &[&str]| names.iter().filter_map(|name| find(name)).map(|one| &one.source).collect();
    let mut clashes = Vec::new();
    for (index, address) in settings.listen.iter().enumerate() {
        let chosen_by_kernel = matches!(address, ListenAddress::Tcp(address) if address.port() == 0);
        if !chosen_by_kernel && settings.listen[..index].contains(address) {
            let line = format!("{}: {address} is given twice: expected different addresses", named("listen", None));
            clashes.push(Clash { line, involved: sources(&["listen"]) });
        }
    }
    let (timeouts, restart) = (&settings.app.timeouts, &settings.app.restart);
    let order = [
        (["connect-timeout-ms", "request-timeout"], timeouts.connect, timeouts.request),
        (["restart-base", "restart-max"], restart.base, restart.max),
    ];
    for (keys, shorter, longer) in order.into_iter().filter(|(_, shorter, longer)| shorter > longer) {
        let line = format!(
            "{} ({}) is longer than {} ({}): expected it to be shorter",
            named(keys[0], find(keys[1])),
            show_duration(shorter),
            named(keys[1], find(keys[0])),
            show_duration(longer)
        );
        clashes.push(Clash { line, involved: sources(&keys) });
    }
    clashes
}

/// clap's message for several lines, as one line.
fn one_line(error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    let argument = text(ContextKind::InvalidArg).unwrap_or_default();
    let name = argument.split([' ', '=', '<']).next().unwrap_or_default().trim_end_matches("...");
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let argument = quoted(OsStr::new(&argument)).trim_matches('"').to_owned();
            match text(ContextKind::SuggestedArg) {
                Some(suggestion) => format!("error: {argument} is no flag: did you mean {suggestion}?"),
                None => format!("error: {argument} is no flag: see production_server --help"),
            }
        }
        ErrorKind::InvalidValue if text(ContextKind::InvalidValue).is_none_or(|value| value.is_empty()) => {
            let example = keys::all().find(|key| name.trim_start_matches('-') == key.name).map(|key| key.example);
            format!("error: {name}: expected a value, as in {name} {}", example.unwrap_or("VALUE"))
        }
        ErrorKind::TooManyValues => format!("error: {name}: expected no value"),
        _ => {
            let rendered = error.render().to_string();
            let first = rendered.lines().next().unwrap_or("error: the command line cannot be read");
            format!("{first}: see production_server --help")
        }
    }
}

/// A value in quotes, with everything odd escaped and not longer than a line bears.
pub(super) fn quoted(value: &OsStr) -> String {
    const LONGEST: usize = 80;
    let text = value.to_string_lossy();
    let short: String = text.chars().take(LONGEST).collect();
    if short.len() < text.len() { format!("{:?}…", short) } else { format!("{short:?}") }
}

const AFTER_SHORT: &str = "production_server --help shows more: the environment, examples, signals and exit codes.";

const AFTER_LONG: &str = "\
Of two places the first wins: flag, shorthand, environment, configuration file, default.

Examples:
  production_server                                       the built-in worker on port 8080
  production_server w:4 http:3000 -- node server.js       four workers, each on its own socket at $SOCKET_PATH
  production_server -c 8 -- gunicorn --threads 8 --bind unix:{socket} app:app
  production_server -c 64 -- uvicorn --uds {socket} app:app
  production_server -c 64 --upstream unix:/run/app.sock   in front of a server that something else runs
  production_server --respond hello --no-access-log       the loops alone, for load tests

Signals:
  TERM, INT   graceful stop within --shutdown; a second one stops now
  QUIT        graceful stop, with the state in the log
  HUP         reopen log files, and let the workers load changed code (--hot-reload)
  USR1        reopen log files
  USR2        rolling restart, the replacement first
  TTIN, TTOU  one worker more, one fewer

A running server is asked with the commands above, over the control socket in its run directory:
  production_server status 3000                           what the server on port 3000 does
  production_server restart --wait && echo deployed       new code without a lost request
  production_server scale +1
  production_server signal web:2 HUP

Exit codes:
  0   clean stop, command done       71  the system refuses what every start needs
  3   status: nothing runs           73  cannot bind an address or make a socket
  64  wrong flags or shorthands      75  restart --wait: aborted, the old workers
  69  the app gave up before it          serve on
      was ever ready; no server to   77  permission denied
      be asked                       78  invalid configuration, the environment
  70  an event loop failed               included
";
