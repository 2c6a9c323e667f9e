//! The command line: what is to be done, and every mistake in one line.

use std::ffi::{OsStr, OsString};
use std::ops::Range;

use clap::builder::OsStringValueParser;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches};

use super::environment::Environment;
use super::file;
use super::keys::{self, Key};
use super::load::{Loaded, load};
use super::places;
use super::shell;
use super::show::Show;
use super::steering::{self, Steering};
use super::units::port_number;
use super::{Conformance, Settings};

/// Exit code for wrong flags and shorthands (EX_USAGE of sysexits(3)).
pub const WRONG_USAGE: u8 = 64;
/// Exit code for an invalid configuration, the environment's included (EX_CONFIG of sysexits(3)).
pub const WRONG_CONFIGURATION: u8 = 78;

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// To serve.
    Run(Box<Loaded>),
    /// To look whether that would work.
    Check(Box<Loaded>),
    /// To show what is configured.
    Show(Box<Loaded>, Show),
    /// To print the schema of the configuration file.
    Schema,
    /// To print that.
    Text(Vec<u8>),
    /// To write a first configuration file.
    Init,
    /// To be the built-in worker; the arguments behind the word.
    Worker(Vec<OsString>),
    /// To look at a command through the worker contract.
    Conformance(Conformance),
    /// To make a line for a file of users.
    HashPassword(HashPassword),
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
    /// How it is written, where that is not what stands there: a table may be written in many pieces.
    pub(super) written: Option<String>,
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

    pub(super) fn exit_code(&self) -> u8 {
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
        Some(("config", words)) => match words.subcommand() {
            Some(("show", words)) => {
                let flag = |name| words.get_flag(name);
                let show = Show { effective: flag("effective"), origin: flag("origin"), json: flag("json") };
                load(words, environment).map(|loaded| Invocation::Show(Box::new(loaded), show))
            }
            _ => Ok(Invocation::Schema),
        },
        Some((word @ ("completions" | "man"), words)) => shell::read(word, words).map(Invocation::Text),
        Some(("init", _)) => Ok(Invocation::Init),
        Some(("check", words)) => load(words, environment).map(|loaded| Invocation::Check(Box::new(loaded))),
        Some(("hash-password", words)) => {
            let user = words.get_one::<String>("user").cloned();
            Ok(Invocation::HashPassword(HashPassword { user, bcrypt: words.get_flag("bcrypt") }))
        }
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
    Ok(if matches.get_flag("test") { Invocation::Check(Box::new(loaded)) } else { Invocation::Run(Box::new(loaded)) })
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
        .subcommand(configuration())
        .subcommand(
            clap::Command::new("init").about("Write a first production_server.toml for the app in this directory"),
        )
        .subcommand(worker)
        .subcommand(hash_password())
        .subcommand(super::conformance::subcommand());
    shell::with_words(steering::with_words(command))
}

/// What `hash-password` is to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashPassword {
    /// Whose password it is; `None`: the hash alone is wanted.
    pub user: Option<String>,
    /// With bcrypt rather than argon2id.
    pub bcrypt: bool,
}

fn hash_password() -> clap::Command {
    let user = |text: &str| crate::access::check_user(text).map(|()| text.to_owned());
    let bcrypt = Arg::new("bcrypt").long("bcrypt").action(ArgAction::SetTrue);
    clap::Command::new("hash-password")
        .about("Make a line for a file of users: the password is asked for, or read from standard input")
        .arg(Arg::new("user").value_name("USER").value_parser(user).help("Whose it is; without it: the hash alone"))
        .arg(bcrypt.help("With bcrypt, which other programs understand, too [default: argon2id]"))
}

/// The words about the configuration.
fn configuration() -> clap::Command {
    let switch =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let show = clap::Command::new("show").about("Print what is said, as a configuration file that says the same");
    let show = with_flags(show)
        .override_usage(
            "production_server config show [--effective] [--origin] [--json] [FLAGS] [SHORTHAND…] [-- COMMAND…]",
        )
        .arg(switch("effective", "Everything that holds, defaults included"))
        .arg(switch("origin", "With the place that each value comes from"))
        .arg(switch("json", "As JSON"));
    clap::Command::new("config")
        .about("Show the configuration, or what may stand in its file")
        .subcommand_required(true)
        .disable_help_subcommand(true)
        .subcommand(show)
        .subcommand(clap::Command::new("schema").about("Print a JSON Schema of the configuration file, for editors"))
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
        settings.listening.at.clear();
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
        for access in settings.listening.unix_of.values_mut() {
            let mut scratch = Settings::default();
            scratch.listening.unix.clone_from(access);
            for text in given.values.iter().filter_map(|value| value.to_str()) {
                (key.set)(&mut scratch, text).ok();
            }
            *access = scratch.listening.unix;
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
  production_server --static ./public                     the files in a directory
  production_server --respond hello --no-access-log       the loops alone, for load tests

Signals:
  TERM, INT   graceful stop within --shutdown; a second one stops now
  QUIT        graceful stop, with the state in the log
  HUP         read the configuration anew, reopen log files, and let the workers load changed code (--hot-reload)
  USR1        reopen log files
  USR2        rolling restart, the replacement first
  TTIN, TTOU  one worker more, one fewer

The configuration file, docs/configuration.md:
  production_server init                                  writes a first one for the app in this directory
  production_server check                                 looks whether all would work, and starts nothing
  production_server config show --effective --origin      what holds, and where it was said

A running server is asked with the commands above, over the control socket in its run directory:
  production_server status 3000                           what the server on port 3000 does
  production_server restart --wait && echo deployed       new code without a lost request
  production_server scale +1
  production_server signal web:2 HUP

Exit codes:
  0   clean stop, command done       71  the system refuses what every start needs
  3   status: nothing runs           73  cannot bind an address or make a socket
  64  wrong flags or shorthands      75  restart --wait: aborted, the old workers
  66  a file cannot be read              serve on
  69  the app gave up before it      77  permission denied
      was ever ready; no server to   78  invalid configuration, the environment
      be asked                           included
  70  an event loop failed
";
