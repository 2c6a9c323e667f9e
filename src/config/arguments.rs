//! The command line: what is to be done, and every mistake in one line.

use std::ffi::{OsStr, OsString};

use clap::builder::OsStringValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches};

use super::environment::Environment;
use super::keys::{self, Key};
use super::steering::{self, Steering};
use super::units::{port_number, show_duration};
use super::{App, Command, Conformance, Settings};

/// Exit code for wrong flags and shorthands (EX_USAGE of sysexits(3)).
pub const WRONG_USAGE: u8 = 64;
/// Exit code for an invalid configuration, the environment's included (EX_CONFIG of sysexits(3)).
pub const WRONG_CONFIGURATION: u8 = 78;

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// To serve.
    Run(Box<Settings>),
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
    /// One line without its end, that says what is wrong and what would be right.
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    Environment(String),
    Shorthand(String),
    Flag,
}

impl Source {
    pub(super) fn rank(&self) -> u8 {
        match self {
            Source::Environment(_) => 0,
            Source::Shorthand(_) => 1,
            Source::Flag => 2,
        }
    }

    fn exit_code(&self) -> u8 {
        if self.rank() == 0 { WRONG_CONFIGURATION } else { WRONG_USAGE }
    }
}

/// The values of one key from the place that wins.
pub(super) struct Given {
    pub(super) key: &'static Key,
    pub(super) source: Source,
    values: Vec<OsString>,
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
        Some(("run", run)) => settings(run, environment).map(|settings| Invocation::Run(Box::new(settings))),
        Some(("conformance", words)) => {
            super::conformance::read(words).map(Invocation::Conformance).map_err(Refusal::usage)
        }
        Some((word, matches)) => {
            steering::read(word, matches, environment).map(|steering| Invocation::Steer(Box::new(steering)))
        }
        None => settings(&matches, environment).map(|settings| Invocation::Run(Box::new(settings))),
    }
}

/// The whole command line as clap knows it; for the help, completions and the manual page.
pub fn command() -> clap::Command {
    let run = clap::Command::new("run").about("Serve; the same as without the word");
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
    command.arg(shorthand).arg(program).after_help(AFTER_SHORT).after_long_help(AFTER_LONG)
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

/// Makes the settings of everything that was said.
fn settings(matches: &ArgMatches, environment: &Environment) -> Result<Settings, Refusal> {
    let mut given = Vec::new();
    for key in keys::all() {
        given.extend(from_environment(key, environment));
    }
    for word in matches.get_many::<OsString>("shorthand").into_iter().flatten() {
        for one in shorthand(word)? {
            win(&mut given, one);
        }
    }
    for key in keys::all() {
        if let Some(one) = from_flags(key, matches) {
            win(&mut given, one);
        }
    }
    let program: Option<Vec<OsString>> = matches.get_many("command").map(|words| words.cloned().collect());
    if program.as_ref().is_some_and(|words| words[0].is_empty()) {
        return Err(Refusal::usage("error: the command behind -- is empty, as in production_server -- node server.js"));
    }
    contradictions(&given, program.is_some())?;

    // The lower places first, so that of two keys with one effect the higher place's wins.
    given.sort_by_key(|one| one.source.rank());
    let mut settings = Settings { warnings: environment.warnings(), app: App::default(), ..Settings::default() };
    for one in &given {
        apply(&mut settings, one)?;
    }
    if let Some(words) = program {
        settings.app.command = Command::Argv(words);
    }
    if !given.iter().any(|one| one.key.name == "run-dir") {
        settings.run_dir = environment.run_dir(&settings.listen);
    }
    settings.app.directory = environment.directory(settings.app.directory.take());
    whole(&settings, &given)?;
    let unix_only = ["listen-mode", "listen-owner", "listen-group"];
    if let Some(one) = given.iter().find(|one| unix_only.contains(&one.key.name))
        && !settings.listen.iter().any(|address| matches!(address, super::ListenAddress::Unix(_)))
    {
        let name = one.key.name;
        settings.warnings.push(format!("--{name} has no effect: no --listen unix:PATH is given"));
    }
    Ok(settings)
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
    Ok(())
}

fn wrong_value(given: &Given, value: &OsStr, expected: &str) -> Refusal {
    let (key, value) = (given.key, quoted(value));
    let example = key.example;
    let line = match &given.source {
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

/// Refuses what cannot hold together, wherever it was said.
fn contradictions(given: &[Given], program: bool) -> Result<(), Refusal> {
    let find = |name: &str| given.iter().find(|one| one.key.name == name);
    let refuse = |one: &Given, other: Option<&Given>, advice: &str| {
        let other_place = other.map_or_else(|| "a command".to_owned(), place);
        let line = format!("error: {} and {other_place} exclude each other: {advice}", place(one));
        Err(Refusal { line, exit_code: exit_code([Some(one), other]) })
    };
    let apps: Vec<&Given> = ["upstream", "respond"].into_iter().filter_map(find).collect();
    if let [first, second] = &apps[..] {
        return refuse(first, Some(second), "expected one of them");
    }
    if let Some(app) = apps.first() {
        if program {
            return refuse(app, None, "expected one of them");
        }
        // Variables such as WEB_CONCURRENCY are set by the surroundings for whatever runs there; only words count.
        let mut own = ["workers", "max-requests", "max-lifetime"].into_iter().filter_map(find);
        if let Some(own) = own.find(|one| one.source.rank() > 0) {
            return refuse(app, Some(own), "no workers are started then");
        }
    }
    let level = |one: &Given, other: &Given| one.source.rank() == other.source.rank();
    if let (Some(off), Some(on)) = (find("no-access-log").filter(|off| is_on(off)), find("access-log"))
        && level(off, on)
    {
        return refuse(off, Some(on), "expected one of them");
    }
    if let (Some(json), Some(format)) = (find("json-logging").filter(|json| is_on(json)), find("log-format"))
        && level(json, format)
        && format.values.iter().any(|value| value == "human" || value == "combined")
    {
        return refuse(json, Some(format), "expected one of them");
    }
    Ok(())
}

/// Whether a switch is on, as far as its value can be read.
fn is_on(given: &Given) -> bool {
    given.values.iter().filter_map(|value| value.to_str()).any(|text| super::units::switch(text) == Ok(true))
}

fn place(given: &Given) -> String {
    match &given.source {
        Source::Flag => format!("--{}", given.key.name),
        Source::Shorthand(text) => text.clone(),
        Source::Environment(name) => format!("{name} in the environment"),
    }
}

/// The exit code for values that do not go together: where the environment has part in it, the configuration is wrong.
fn exit_code<const N: usize>(involved: [Option<&Given>; N]) -> u8 {
    let lowest = involved.into_iter().flatten().map(|one| &one.source).min_by_key(|source| source.rank());
    lowest.map_or(WRONG_USAGE, Source::exit_code)
}

/// Checks what only shows when everything is read.
fn whole(settings: &Settings, given: &[Given]) -> Result<(), Refusal> {
    let find = |name: &str| given.iter().find(|one| one.key.name == name);
    // A default is called by the flag that would change it.
    let named = |name: &str| find(name).map_or_else(|| format!("--{name}"), place);
    for (index, address) in settings.listen.iter().enumerate() {
        let chosen_by_kernel = matches!(address, super::ListenAddress::Tcp(address) if address.port() == 0);
        if !chosen_by_kernel && settings.listen[..index].contains(address) {
            let line = format!("error: {}: {address} is given twice: expected different addresses", named("listen"));
            return Err(Refusal { line, exit_code: exit_code([find("listen")]) });
        }
    }
    let timeouts = &settings.app.timeouts;
    if timeouts.connect > timeouts.request {
        let keys = ["connect-timeout-ms", "request-timeout"];
        let (connect, request) = (show_duration(timeouts.connect), show_duration(timeouts.request));
        let line = format!(
            "error: {} ({connect}) is longer than {} ({request}): expected it to be shorter",
            named(keys[0]),
            named(keys[1])
        );
        return Err(Refusal { line, exit_code: exit_code(keys.map(find)) });
    }
    Ok(())
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
Of two places the first wins: flag, shorthand, environment, default.

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
